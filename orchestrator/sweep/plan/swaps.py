"""[confirm] swap: which arms are trained at each other's setting too, and what setting that is."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from jobs.config import ConfigError, ConfigIssue
from orchestrator.sweep import Arm, Sweep
from orchestrator.sweep.space import conditions
from orchestrator.sweep.values import Settings
from orchestrator.system.display import listed


@dataclass(frozen=True)
class Swap:
    """A contrast whose arms are trained at each other's setting too."""

    a: str
    b: str
    keys: tuple[str, ...]
    """Job keys that both tune."""


def swaps_of(sweep: Sweep, arms: Mapping[str, Arm], tested: Sequence[tuple[str, str]]) -> tuple[Swap, ...]:
    """List the swaps of a sweep: of the contrasts that ask a question and whose arms tune a key in common."""
    if sweep.tune is None or not sweep.confirm.swap:
        return ()
    space = sweep.tune.space
    tunes = {label: conditions.within(space, arms[label].values) for pair in tested for label in pair}
    common = {(a, b): tuple(key for key in tunes[a] if key in tunes[b]) for a, b in tested}
    return tuple(Swap(a, b, keys) for (a, b), keys in common.items() if keys)


def at_setting(
    space: conditions.Spaces, values: Settings, own: Settings, other: Settings, keys: Collection[str]
) -> Settings | None:
    """Return the settings of an arm of `values` at another's: the other's values of `keys`, which both tune, as far as
    it was tuned to them, and its own of all else. A key whose condition does not hold any more goes; one whose
    condition holds now, and which neither was tuned to, has the value of the arm. None where nothing of the other's is
    left: that is the arm's own setting."""
    given = {key: value for key, value in other.items() if key in keys}
    mixed = {**own, **given}
    tuned = conditions.active(conditions.within(space, values), values, mixed)
    return {key: mixed[key] for key in tuned if key in mixed} if given.keys() & tuned else None


def check_swaps(
    sweep: Sweep, swaps: Sequence[Swap], contrasts: Sequence[tuple[str, str]], tested: Sequence[tuple[str, str]]
) -> list[str]:
    """Return what a reader of the plan should know of contrasts without a swap, where swaps are asked for. Raises
    ConfigError if there is no swap at all."""
    if not sweep.confirm.swap:
        return []
    without = [pair for pair in contrasts if pair not in {(swap.a, swap.b) for swap in swaps}]
    alike, apart = ([f"{a} against {b}" for a, b in without if ((a, b) in tested) == asked] for asked in (False, True))
    causes = [
        (alike, "differ in execution alone", "compare arms that differ in more"),
        (apart, "tune no key in common", "tune one in both, such as 'optimizer.lr'"),
    ]
    known = [(f"{listed(pairs)} {why}", then) for pairs, why, then in causes if pairs]
    if swaps:
        return [f"confirm.swap: {why}, and are not swapped" for why, _ in known]
    whys, thens = zip(*known or [("no two arms are compared", "compare an arm with another one")], strict=True)
    expected = f"trains arms at each other's setting, and {', and '.join(whys)}; {', or '.join(thens)}"
    issue = ConfigIssue("confirm.swap", "true", f"{expected}, or leave confirm.swap out")
    raise ConfigError(sweep.name, "sweep", [issue])
