"""The points of a grid, counted and reached by their numbers, without a list of them.

A grid of a million points of which eight are tried costs eight. Conditions make it a tree: a key that is not tuned
beside the others' values has no branches. What is counted below a branch depends on nothing but which later keys it has
ruled out, so counts are remembered by that.
"""

from __future__ import annotations

import hashlib
import itertools
from collections.abc import Collection, Iterator, Mapping, Sequence

from pydantic import JsonValue

from jobs.config import canonical
from orchestrator.sweep.model import Space
from orchestrator.sweep.space import conditions
from orchestrator.sweep.values import Settings, identity

MOST_COUNTS = 100_000
"""Counts that are remembered; beyond, conditions are too entangled to be counted in a second."""

ROUNDS = 8
"""Of a permutation. Four make it pseudo-random where halves are large; these are small."""


class Keys:
    """Some keys of a space, in an order in which few of them wait for others, and what each choice rules out."""

    def __init__(self, spaces: Mapping[str, Space]) -> None:
        self.spaces = spaces
        self.order = _depth_first(spaces)
        self._children: dict[str, list[str]] = {key: [] for key in self.order}
        for key in self.order:
            for parent in spaces[key].conditions:
                if parent in self._children:
                    self._children[parent].append(key)
        self.branches: dict[str, dict[frozenset[str], list[JsonValue]]] = {}
        """For each key: its choices by the keys that they rule out."""
        for key in self.order:
            branches: dict[frozenset[str], list[JsonValue]] = {}
            for choice in _distinct(spaces[key].choices or []):
                branches.setdefault(self.ruled_out(key, choice), []).append(choice)
            self.branches[key] = branches

    def ruled_out(self, parent: str, value: JsonValue) -> frozenset[str]:
        """Return the keys that are not tuned where `parent` has this value."""
        return frozenset(
            child for child in self._children[parent] if identity(value) not in self.spaces[child].permitted[parent]
        )

    def ruled_out_by_others(self, values: Settings) -> frozenset[str]:
        """Return the keys that are not tuned in an arm of `values`, whatever values these keys have."""
        return frozenset(
            key
            for key, space in self.spaces.items()
            for parent, allowed in space.permitted.items()
            if parent not in self.spaces and identity(values.get(parent)) not in allowed
        )


class Tree:
    """Every combination of the choices of some keys in an arm of `values`, as settings, each once."""

    def __init__(self, keys: Keys, values: Settings) -> None:
        """Count the combinations. Raises ValueError where conditions are too entangled to count what they leave."""
        self._keys, self._branches = keys.order, keys.branches
        self._out = keys.ruled_out_by_others(values)
        self._own = {key: keys.ruled_out(key, values.get(key)) for key in self._keys}
        """For each key: what the arm's own value rules out, where the key is not tuned."""
        self._counts: dict[tuple[int, frozenset[str]], int] = {}
        self.size = self._count(0, self._out)

    def at(self, number: int) -> dict[str, JsonValue]:
        """Return combination `number`, from 0 to `size` - 1."""
        point: dict[str, JsonValue] = {}
        out = self._out
        for depth, key in enumerate(self._keys):
            if key in out:
                out = (out - {key}) | self._own[key]
                continue
            for rules_out, choices in self._branches[key].items():
                below = self._count(depth + 1, out | rules_out)
                if number < below * len(choices):
                    index, number = divmod(number, below)
                    point[key], out = choices[index], out | rules_out
                    break
                number -= below * len(choices)
        return point

    def own(self, point: Settings) -> dict[str, JsonValue] | None:
        """Find the combination that equals `point`, in the words of the choices; return None if there is none."""
        chosen: dict[str, JsonValue] = {}
        out = self._out
        for key in self._keys:
            if key in out:
                out = (out - {key}) | self._own[key]
                continue
            wanted = identity(point[key]) if key in point else None
            for rules_out, choices in self._branches[key].items():
                if same := [choice for choice in choices if identity(choice) == wanted]:
                    chosen[key], out = same[0], out | rules_out
                    break
        return chosen if chosen.keys() == point.keys() else None

    def _count(self, depth: int, out: frozenset[str]) -> int:
        """Count the combinations of the keys from `depth` on, without those that are ruled out."""
        if depth == len(self._keys):
            return 1
        known = self._counts.get((depth, out))
        if known is None:
            key = self._keys[depth]
            if key in out:
                known = self._count(depth + 1, (out - {key}) | self._own[key])
            else:
                known = sum(
                    len(choices) * self._count(depth + 1, out | rules_out)
                    for rules_out, choices in self._branches[key].items()
                )
            if len(self._counts) >= MOST_COUNTS:
                raise ValueError("conditions are too entangled to count the points of the grid; use sampler = 'random'")
            self._counts[depth, out] = known
        return known


class Grid:
    """The grid of an arm.

    everywhere: the keys that every arm tunes, None for all. Arms that share keys try the same values of them in the
    same order: first each combination of the shared keys once, in an order drawn from the seed, with one combination
    of the rest, drawn from the seed and the shared ones; then each a second time, with another; and so on.
    """

    def __init__(
        self, spaces: Mapping[str, Space], values: Settings, everywhere: Collection[str] | None = None
    ) -> None:
        """Prepare the grid in an arm of `values`. Raises ValueError as `Tree` does."""
        self._spaces, self._values = conditions.within(spaces, values), values
        self._whole = Tree(Keys(self._spaces), values)
        shared = _shared(self._spaces, everywhere)
        rest = {key: space for key, space in self._spaces.items() if key not in shared}
        self._rest = Keys(rest) if rest else None
        self._shared = Tree(Keys({key: self._spaces[key] for key in shared}), values) if rest else self._whole

    @property
    def size(self) -> int:
        """How many points there are."""
        return self._whole.size

    def own(self, point: Settings) -> dict[str, JsonValue] | None:
        """Find the point that equals these settings; return None if they are no point of the grid."""
        return self._whole.own(point)

    def points(self, seed: int) -> Iterator[dict[str, JsonValue]]:
        """Yield every point once, in the order of this seed. The cost is that of the points that are taken."""
        alive: list[int] = []
        for number in range(self._shared.size):
            point, size = self._point(seed, number, 0)
            if size > 1:
                alive.append(number)
            yield point
        for turn in itertools.count(1):
            if not alive:
                return
            longer = []
            for number in alive:
                point, size = self._point(seed, number, turn)
                if size > turn + 1:
                    longer.append(number)
                yield point
            alive = longer

    def _point(self, seed: int, number: int, turn: int) -> tuple[dict[str, JsonValue], int]:
        """Return combination `number` of the shared keys with this turn's of the rest, and how many the rest has."""
        shared = self._shared.at(permuted(number, self._shared.size, canonical([seed, "shared"])))
        if self._rest is None:
            return self._ordered(shared), 1
        rest = Tree(self._rest, {**self._values, **shared})
        point = rest.at(permuted(turn, rest.size, canonical([seed, dict(sorted(shared.items()))])))
        return self._ordered(shared | point), rest.size

    def _ordered(self, point: Settings) -> dict[str, JsonValue]:
        return {key: point[key] for key in self._spaces if key in point}


def permuted(number: int, size: int, key: str) -> int:
    """Permute `number` pseudo-randomly among 0 to size - 1. key: a text that names the permutation.

    It is a Feistel network over the next power of four, walked until it is back inside (Black and Rogaway 2002).
    """
    bits = max(1, -(-(size - 1).bit_length() // 2))
    mask = (1 << bits) - 1
    while True:
        left, right = number >> bits, number & mask
        for turn in range(ROUNDS):
            digest = hashlib.shake_256(f"{key} {turn} {right}".encode()).digest((bits + 7) // 8)
            left, right = right, left ^ (int.from_bytes(digest, "big") & mask)
        number = left << bits | right
        if number < size:
            return number


def _shared(spaces: Mapping[str, Space], everywhere: Collection[str] | None) -> list[str]:
    """Return the keys of `everywhere` that have the same combinations in every arm: their conditions look at no tuned
    key, or at keys that are always tuned, in every arm."""
    common = set(spaces if everywhere is None else everywhere)
    always = {key for key in common & spaces.keys() if not spaces[key].conditions.keys() & spaces.keys()}
    return [key for key in spaces if key in common and spaces[key].conditions.keys() & spaces.keys() <= always - {key}]


def _distinct(choices: Sequence[JsonValue]) -> list[JsonValue]:
    """Return the choices without those that are there twice as text."""
    if len(set(map(identity, choices))) == len(choices):
        return list(choices)
    return list({canonical(choice): choice for choice in reversed(choices)}.values())[::-1]


def _depth_first(spaces: Mapping[str, Space]) -> list[str]:
    """Sort the keys, each after those that its condition looks at and once these are there, so that few keys wait."""
    waiting = {key: spaces[key].conditions.keys() & spaces.keys() for key in conditions.order(spaces)}
    order: list[str] = []
    while waiting:
        ready = [key for key, parents in waiting.items() if parents <= set(order)]
        if depending := [key for key in ready if waiting[key]]:
            chosen = depending[0]
        else:
            # The key that makes another one ready soonest.
            missing = [parents - set(order) for parents in waiting.values() if parents]
            chosen = min(ready, key=lambda key: min((len(few) for few in missing if key in few), default=len(waiting)))
        order.append(chosen)
        del waiting[chosen]
    return order
