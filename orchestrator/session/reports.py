"""What the ranks of a slot report of their trial, as the session reads it."""

from __future__ import annotations

from typing import Literal, NotRequired, TypedDict

from orchestrator.ledger.stored import AttemptRecord


class PointReport(TypedDict):
    """One value of one curve."""

    key: str
    step: int
    value: float
    time: float
    """Unix seconds."""


class ResultReport(TypedDict):
    """How the training ended; more keys are kept as they are."""

    outcome: Literal["ok", "diverged"]
    why: NotRequired[str]
    """Of one that diverged."""

    step: int
    metrics: dict[str, float]


class FailureReport(TypedDict):
    """A failure, by the fields of `Failure`."""

    kind: str
    rank: int | None
    message: str
    trace: str


class Report(TypedDict):
    """What came after about a second of training, or instead of it `failure`."""

    points: list[PointReport]
    result: ResultReport | None
    failure: NotRequired[FailureReport]
    remarks: NotRequired[list[str]]
    """About files that were damaged."""

    notes: NotRequired[list[str]]
    """About batches."""

    provenance: NotRequired[AttemptRecord]
    """Digests of what the ranks have loaded."""
