"""Where a tuned key is tuned: conditions on the arm and on other tuned keys.

    "optimizer.momentum" = { low = 0.5, high = 0.99, when = { "optimizer.name" = "sgd" } }
    "loss.temperature"   = { choices = [0.05, 0.1],  when = { arm = ["plain", "flat"] } }

A condition looks at a value: the one suggested for that key, else the arm's own. A key whose condition does not hold is
not suggested, and the job keeps the arm's value. `values` are dotted job keys of an arm, and `arm`, its label.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from graphlib import CycleError, TopologicalSorter

from pydantic import JsonValue

from orchestrator.sweep.model import Space
from orchestrator.sweep.values import Settings, identity

Spaces = Mapping[str, Space]


def order(spaces: Spaces) -> list[str]:
    """Sort the keys, each after those that its condition looks at, else by name. Raises ValueError for a cycle."""
    graph = TopologicalSorter({key: sorted(spaces[key].conditions.keys() & spaces.keys()) for key in sorted(spaces)})
    try:
        graph.prepare()
    except CycleError as error:
        raise ValueError(f"conditions go in a circle: {' -> '.join(error.args[1])}") from error
    ordered: list[str] = []
    while graph.is_active():
        ready = sorted(graph.get_ready())
        ordered += ready
        graph.done(*ready)
    return ordered


def holds(space: Space, values: Settings) -> bool:
    """Return whether the key of `space` is tuned where the others have these values."""
    return all(identity(values.get(key)) in allowed for key, allowed in space.permitted.items())


def active(spaces: Spaces, values: Settings, params: Settings) -> list[str]:
    """Return the keys that are tuned in an arm of `values` once `params` are suggested, in order."""
    seen, tuned = dict(values), []
    for key in order(spaces):
        if holds(spaces[key], seen):
            tuned.append(key)
            if key in params:
                seen[key] = params[key]
    return tuned


def within(spaces: Spaces, values: Settings) -> dict[str, Space]:
    """Return the keys that can be tuned in an arm of `values`, with their spaces, in order: whatever is suggested for
    others decides the rest."""
    possible: dict[str, list[JsonValue]] = {}
    tunable: dict[str, Space] = {}
    for key in order(spaces):
        space = spaces[key]
        seen = {parent: possible.get(parent, [values.get(parent)]) for parent in space.conditions}
        if all(any(identity(value) in space.permitted[parent] for value in seen[parent]) for parent in seen):
            tunable[key] = space
            possible[key] = [*(space.choices or []), *([values[key]] if key in values else [])]
    return tunable


def is_fixed(spaces: Spaces) -> bool:
    """Return whether no condition looks at another tuned key: then all of `within` an arm are always tuned together."""
    return not any(space.conditions.keys() & spaces.keys() for space in spaces.values())


def combinations(
    spaces: Spaces, values: Settings, ends: Mapping[str, Sequence[JsonValue]]
) -> Iterator[dict[str, JsonValue]]:
    """Yield every combination of `ends`, the values of each key that stand for all, that an arm of `values` can be
    given: as settings. A combination that comes twice is given twice."""
    keys = list(within(spaces, values))
    for point in itertools.product(*(ends[key] for key in keys)):
        given = dict(zip(keys, point, strict=True))
        tuned = active({key: spaces[key] for key in keys}, values, given)
        yield {key: given[key] for key in tuned}


def above(spaces: Spaces, key: str) -> list[str]:
    """Find the tuned keys that decide whether `key` is: those its condition looks at, those that theirs look at, ..."""
    parents: dict[str, None] = {}
    waiting = [key]
    while waiting:
        for parent in spaces[waiting.pop()].conditions.keys() & spaces.keys() - parents.keys():
            parents[parent] = None
            waiting.append(parent)
    return sorted(parents)


def some_combinations(
    spaces: Spaces, values: Settings, ends: Mapping[str, Sequence[JsonValue]], *, most: int
) -> Iterator[dict[str, JsonValue]]:
    """Yield at most `most` of `combinations`, spread evenly over all of them."""
    keys = list(within(spaces, values))
    whole = math.prod(len(ends[key]) for key in keys)
    for number in range(min(most, whole)):
        rest, point = number * whole // min(most, whole), {}
        for key in reversed(keys):
            rest, index = divmod(rest, len(ends[key]))
            point[key] = ends[key][index]
        tuned = active({key: spaces[key] for key in keys}, values, point)
        yield {key: point[key] for key in tuned}


def among(value: JsonValue, allowed: Sequence[JsonValue]) -> bool:
    """Return whether a value is one of those allowed. 1 and true are not the same."""
    wanted = identity(value)
    return any(identity(choice) == wanted for choice in allowed)
