"""Tuned keys of which one must divide another, checked at every value that a search may come to.

A batch size of 16 to 64 beside pools of 16 makes a job at both ends and none at 17; found half-way, that costs what was
trained until then.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence

from pydantic import JsonValue, ValidationError

from jobs.config import DIVIDES, ConfigIssue, JobConfig, issues
from orchestrator.sweep.model import Arm, Space, Tune
from orchestrator.sweep.space import conditions
from orchestrator.sweep.values import Settings, shown

MOST_BESIDE = 20_000
"""Combinations, over all arms, of the keys that decide whether two others meet."""

MOST_SHOWN = 8

APART = "tune one of them with `when`, so that they do not meet"


def multiple_issues(tune: Tune, arms: list[Arm]) -> Iterator[ConfigIssue]:
    """Yield an issue for the first two values that a search in an arm may reach where one should divide the other but
    does not."""
    most = MOST_BESIDE // len(arms) + 1
    for arm in arms:
        inside = conditions.within(tune.space, arm.values)
        for part, whole in DIVIDES.items():
            if part not in inside and whole not in inside:
                continue
            for beside in itertools.islice(_beside(inside, part, whole), most):
                if issue := _fault(inside, arm, part, whole, beside):
                    yield issue
                    return


def _beside(spaces: Mapping[str, Space], part: str, whole: str) -> Iterator[dict[str, JsonValue]]:
    """Yield values of the keys that decide which of these two are tuned, and whether the encoder has the rule."""
    first = [key for key in (part, whole, "model.name") if key in spaces]
    above = dict.fromkeys(parent for key in first for parent in conditions.above(spaces, key))
    keys = [*above, *({"model.name"} & spaces.keys() - above.keys())]
    for point in itertools.product(*(spaces[key].samples for key in keys)):
        yield dict(zip(keys, point, strict=True))


def _fault(spaces: Mapping[str, Space], arm: Arm, part: str, whole: str, beside: Settings) -> ConfigIssue | None:
    keys = dict.fromkeys((*beside, part, whole))
    tuned = conditions.active({key: spaces[key] for key in keys if key in spaces}, arm.values, beside)

    def values(key: str) -> list[int]:
        possible = (
            [arm.values.get(key)] if key not in tuned else [beside[key]] if key in beside else spaces[key].samples
        )
        return [value for value in possible if isinstance(value, int) and value > 0]

    parts, wholes = values(part), values(whole)
    pair = _first_apart(parts, wholes)
    if pair is None:
        return None
    given = {**beside, part: pair[0], whole: pair[1]}
    settings = {key: given[key] for key in tuned}
    try:
        arm.config(stage="tune", seed=0, settings=settings)
    except ValidationError as error:
        reason = "; ".join(issue.expected for issue in issues(error, JobConfig))
    else:  # an encoder without the rule
        return None
    ranges = {key: spaces[key] for key in (whole, part) if key in tuned and spaces[key].choices is None}
    key, remedy = next(iter(ranges), whole), APART
    if ranges:
        remedy = f"tune it with choices or step = {_remedy(part, whole, parts, wholes, ranges)}"
    pairs = ", ".join(f"{name} = {shown(value)}" for name, value in settings.items())
    return ConfigIssue(f"tune.space.{key}", pairs, f"{reason} (arm {arm.label!r}); {remedy}")


def _first_apart(parts: Sequence[int], wholes: Sequence[int]) -> tuple[int, int] | None:
    """Find a part and a whole that it does not divide; return None where every part divides every whole."""
    common = math.gcd(*wholes)
    part = next((number for number in parts if common % number), None)
    return None if part is None else (part, next(number for number in wholes if number % part))


def _remedy(part: str, whole: str, parts: list[int], wholes: list[int], ranges: Mapping[str, Space]) -> str:
    """Suggest a step, and an example, with which every value makes a job."""
    tried = [parts]
    if part in ranges and whole in ranges:
        doubled = [parts[0] * 2**power for power in range(3) if parts[0] * 2**power <= (ranges[part].high or 0)]
        tried = [doubled[:count] for count in (3, 2, 1)]
    for few in tried if whole in ranges else ():
        step = math.lcm(*few)
        if fitting := _multiples(ranges[whole], step):
            beside = f' beside "{part}" = {{ choices = {few} }}' if few != parts else ""
            return f'{step}, for example "{whole}" = {{ choices = {fitting} }}{beside}'
    common = math.gcd(*wholes)
    if part in ranges and (fitting := [number for number in parts if common % number == 0][:MOST_SHOWN]):
        return f'..., for example "{part}" = {{ choices = {fitting} }}'
    return f"..., or {APART}"


def _multiples(space: Space, step: int) -> list[int]:
    """List the first multiples of `step` within a range of whole numbers."""
    low, high = int(space.low or 0), int(space.high or 0)
    return list(range(-(-low // step) * step, high + 1, step)[:MOST_SHOWN])
