"""A plan as plain JSON."""

from __future__ import annotations

from typing import NotRequired, TypedDict

from pydantic import JsonValue

from orchestrator.sweep.plan.seeds import Basis
from orchestrator.sweep.values import Settings


class Costs(TypedDict):
    """What each trial of an arm is given."""

    samples: int | None
    """Pairs seen; None, as steps, where only training tells."""
    steps: int | None
    seconds: NotRequired[float | None]
    """Where the budget is in seconds."""
    negatives_per_anchor: int


class PlannedArm(Costs):
    """An arm of a plan."""

    label: str
    settings: Settings
    """Job keys that make it what it is."""


class PlannedSwap(TypedDict):
    """A contrast whose arms are trained at each other's setting too."""

    a: str
    b: str
    keys: list[str]
    """Job keys that both tune."""


class StageCounts(TypedDict):
    """Trials of each stage."""

    tune: int
    confirm: int
    swap: NotRequired[int]
    """Of arms at each other's setting, at most; where that was asked for."""


class Summary(TypedDict):
    """A plan as `plan --json` prints it."""

    arms: list[PlannedArm]
    contrasts: list[list[str]]
    """[a, b]: arm a against its baseline b."""
    trials: StageCounts
    tune_seeds: list[int]
    confirm_seeds: list[int]
    seeds_by: Basis
    smallest_p: float
    """The smallest p-value these seeds can reach."""
    differs: dict[str, list[JsonValue]]
    """Job keys that are not the same in every arm, with the value of each arm."""
    searched_with: dict[str, str]
    """Arm -> the arm that is tuned for both, as they differ in `execution` alone."""
    swaps: NotRequired[list[PlannedSwap]]
    """Contrasts whose arms are trained at each other's setting too; where that was asked for."""
    warnings: list[str]
