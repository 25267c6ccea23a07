"""What can be wrong with the search space of a sweep: keys, conditions, defaults, and values that make no job."""

from __future__ import annotations

import itertools
from collections.abc import Iterable

from pydantic import JsonValue, ValidationError

from jobs.config import ConfigIssue, JobConfig, field_names, issues, nearest
from jobs.config.components import is_option
from orchestrator.sweep.model import Arm, Space, Tune
from orchestrator.sweep.space import conditions
from orchestrator.sweep.space.grid import Grid
from orchestrator.sweep.space.multiples import multiple_issues
from orchestrator.sweep.values import identity, shown

MOST_COMBINATIONS = 256
"""Of tuned values, over all arms, that are tried as jobs before anything runs: a tenth of a second."""

MOST_CHECKED = 20_000
"""Values of one key, over all arms, that are tried as jobs one by one. Each is, in one arm at least."""

CLOSED = {
    "stage": "the plan sets it",
    "seed": "seeds are not tuned",
    "task": "the task is the question",
    "budget": "the budget is equal in every trial",
    "data": "every trial is judged on the same rows",
    "evaluate": "every trial is judged in the same way",
    "execution": "it does not change the result",
}
"""Job keys, and sections, that are not tuned, and why."""


def space_issues(tune: Tune, arms: list[Arm]) -> Iterable[ConfigIssue]:
    """Yield the faults of `tune.space` and `tune.defaults`, in the arms where their keys are tuned."""
    known = list(field_names(JobConfig))

    def is_known(key: str) -> bool:
        return key in known or is_option(key)

    if wrong := list(_condition_issues(tune, arms)):
        yield from wrong
        return
    sound, apart = True, list(multiple_issues(tune, arms)) if all(map(is_known, tune.space)) else []
    for key, space in tune.space.items():
        where = f"tune.space.{key}"
        inside = [arm for arm in arms if key in conditions.within(tune.space, arm.values)]
        if not is_known(key):
            issue = [ConfigIssue(where, "", f"is no key of a job{nearest(key, known)}")]
        elif (section := key.partition(".")[0]) in CLOSED:
            issue = [ConfigIssue(where, "", f"cannot be tuned: {CLOSED[section]}")]
        elif blame := [arm.label for arm in inside if key in arm.settings]:
            expected = "is compared between the arms, so it cannot be tuned inside them; drop one of the two"
            if free := [arm.label for arm in arms if arm.label not in blame]:
                expected += f", or tune it in the other arms alone: when = {{ arm = {shown(free)} }}"
            issue = [ConfigIssue(where, "", expected)]
        elif not inside:
            issue = [ConfigIssue(f"{where}.when", shown(space.when), "holds in no arm; correct it, or remove the key")]
        else:
            issue = [clash for clash in apart if clash.key == where] or list(_value_issues(where, key, tune, inside))
        sound = sound and not issue
        yield from issue
    for index, default in enumerate(tune.defaults):
        yield from _default_issues(f"tune.defaults[{index}]", default, tune, arms)
    if sound:
        yield from _combination_issues(tune, arms)
    if sound and tune.sampler == "grid":
        yield from _grid_issues(tune, arms)


def _grid_issues(tune: Tune, arms: list[Arm]) -> Iterable[ConfigIssue]:
    for arm in arms:
        try:
            Grid(tune.space, arm.values)
        except ValueError as error:
            yield ConfigIssue("tune.space", "", str(error))
            return


def _condition_issues(tune: Tune, arms: list[Arm]) -> Iterable[ConfigIssue]:
    known = list(dict.fromkeys(key for arm in arms for key in arm.values))
    for key, space in tune.space.items():
        for parent, allowed in space.conditions.items():
            where = f"tune.space.{key}.when.{parent}"
            tuned = tune.space.get(parent)
            if parent == key:
                yield ConfigIssue(where, "", "is the key itself; a condition looks at another one")
            elif parent not in known:
                yield ConfigIssue(where, "", f"is no key of a job{nearest(parent, known)}")
            elif tuned is not None and tuned.choices is None:
                yield ConfigIssue(where, "", f"needs choices: tune.space.{parent} is a range")
            else:
                own = [arm.values.get(parent) for arm in arms]
                possible = set(map(identity, [*own, *((tuned.choices or []) if tuned else [])]))
                for value in allowed:
                    if identity(value) not in possible:
                        expected = f"is never the value of {parent}{nearest(str(value), [str(other) for other in own])}"
                        yield ConfigIssue(where, "none" if value is None else repr(value), expected)
    try:
        conditions.order(tune.space)
    except ValueError as error:
        yield ConfigIssue("tune.space", "", str(error))


def _default_issues(where: str, default: dict[str, JsonValue], tune: Tune, arms: list[Arm]) -> Iterable[ConfigIssue]:
    for key, value in default.items():
        if key not in tune.space:
            yield ConfigIssue(f"{where}.{key}", repr(value), f"is not in tune.space{nearest(key, list(tune.space))}")
        elif not _inside(tune.space[key], value):
            yield ConfigIssue(f"{where}.{key}", repr(value), f"lies outside tune.space.{key}")
        elif not any(key in conditions.active(tune.space, arm.values, default) for arm in arms):
            expected = f"is tuned in no arm beside the rest of this default: see tune.space.{key}.when"
            yield ConfigIssue(f"{where}.{key}", repr(value), expected)
    for arm in arms:
        tuned = conditions.active(tune.space, arm.values, default)
        settings = {key: default[key] for key in tuned if key in default}
        yield from _job_issues(where, arm, settings)


def _inside(space: Space, value: JsonValue) -> bool:
    if space.choices is not None:
        return conditions.among(value, space.choices)
    if isinstance(value, bool) or not isinstance(value, int | float) or space.low is None or space.high is None:
        return False
    return space.low <= value <= space.high


def _combination_issues(tune: Tune, arms: list[Arm]) -> Iterable[ConfigIssue]:
    """Yield the faults that no single value shows: a job that some values make impossible together would end the sweep
    half-way."""
    ends = {key: _ends(space) for key, space in tune.space.items()}
    most = max(1, MOST_COMBINATIONS // len(arms))
    for arm in arms:
        for settings in conditions.some_combinations(tune.space, arm.values, ends, most=most):
            if impossible := list(_job_issues("tune.space", arm, settings)):
                remedy = "; tune one of them with `when`, so that they do not meet"
                yield from (ConfigIssue(issue.key, issue.found, issue.expected + remedy) for issue in impossible)
                return


def _value_issues(where: str, key: str, tune: Tune, arms: list[Arm]) -> Iterable[ConfigIssue]:
    """Yield the faults of ends and choices of one key that make no job in an arm, whatever stands beside them that its
    condition allows."""
    above = conditions.above(tune.space, key)
    ends = _ends(tune.space[key])
    most = max(1, MOST_CHECKED // len(ends))
    for arm in arms[:most]:
        values = {
            parent: [*_ends(tune.space[parent]), *([arm.values[parent]] if parent in arm.values else [])]
            for parent in above
        }
        for value in ends:
            value_issues: list[ConfigIssue] = []
            for beside in itertools.islice(itertools.product(*values.values()), MOST_CHECKED // len(ends) + 1):
                given = dict(zip(above, beside, strict=True)) | {key: value}
                tuned = conditions.active({name: tune.space[name] for name in (*above, key)}, arm.values, given)
                if key not in tuned:
                    continue
                value_issues = list(_job_issues(where, arm, {name: given[name] for name in tuned}))
                if not value_issues:
                    break
            remedy = _in_whole_numbers(tune.space[key]) if value_issues else ""
            value_text = "none" if value is None else repr(value)
            yield from (ConfigIssue(where, value_text, issue.expected + remedy) for issue in value_issues)


def _ends(space: Space) -> list[JsonValue]:
    """Return the choices, or the two ends of a range as a sampler gives them."""
    samples = space.samples
    return samples if space.choices is not None else [samples[0], *samples[-1:][: len(samples) - 1]]


def _in_whole_numbers(space: Space) -> str:
    """Suggest what to write for a range that has decimals as its values because its ends alone, or its step alone, are
    whole numbers."""
    given = [number for number in (space.low, space.high, space.step) if number is not None]
    if (
        space.integer
        or not any(isinstance(number, int) for number in given)
        or any(number != int(number) for number in given)
    ):
        return ""
    names = zip(("low", "high", "step"), (space.low, space.high, space.step), strict=True)
    whole = ", ".join(f"{name} = {int(number)}" for name, number in names if number is not None)
    decimal = next(number for number in given if isinstance(number, float))
    return f"; {shown(decimal)} makes decimals: write {{ {whole} }}"


def _job_issues(where: str, arm: Arm, settings: dict[str, JsonValue]) -> Iterable[ConfigIssue]:
    try:
        arm.config(stage="tune", seed=0, settings=settings)
    except ValidationError as error:
        pairs = ", ".join(f"{key} = {shown(value)}" for key, value in settings.items())
        for issue in issues(error, JobConfig):
            yield ConfigIssue(where, pairs, issue.expected)
