"""What a rank says after a call: how far its job is, its new points, its result."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NotRequired, TypedDict

from jobs.workers.memory import Reading

if TYPE_CHECKING:
    from jobs.artifacts.trial_dir import Point, Result
    from jobs.config.json_values import Json
    from jobs.train import Training
    from jobs.train.function import FunctionTraining


class PointRecord(TypedDict):
    """A `trial_dir.Point` as it leaves a rank."""

    key: str
    step: int
    value: float
    time: float


class Report(TypedDict):
    """What a rank says after a call."""

    points: list[PointRecord]
    """New ones, of rank 0."""

    step: int
    result: Result | dict[str, Any] | None
    notes: list[str]
    reading: NotRequired[tuple[float, Reading]]
    """Of `Rank.reading`; not what a gang hands on."""

    remarks: NotRequired[list[str]]
    """What was wrong with the trial's files. This and what follows: of a job that has just begun."""

    provenance: NotRequired[dict[str, Json]]
    """Digests of what it computes with."""


def report_of(training: Training | FunctionTraining, points: Sequence[Point]) -> Report:
    """Report where a training stands, with these points of it. Takes its notes away."""
    records: list[PointRecord] = [
        {"key": point.key, "step": point.step, "value": point.value, "time": point.time} for point in points
    ]
    notes, training.notes = training.notes, []
    return {"points": records, "step": training.step, "result": training.result, "notes": notes}
