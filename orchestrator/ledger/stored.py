"""The shapes of what the ledger keeps as JSON: the sweep with its plan, and what a trial came to.

What is stored stays as it was written; these say what is read of it. An earlier version wrote less, and a later one
may write more: a key that is not required may be missing, and what nobody knows is left alone.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal, Required, TypedDict

from pydantic import JsonValue

JsonObject = dict[str, JsonValue]


class MetricTable(TypedDict, total=False):
    """[metric] of a sweep."""

    name: Required[str]
    mode: Literal["max", "min"]
    smallest_difference: float
    also: list[MetricTable]
    """Further ones, by which arms are judged too."""


class ArmTable(TypedDict, total=False):
    """An arm of a plan, with what its trials are given as far as that was known before any ran."""

    label: Required[str]
    settings: Required[JsonObject]
    job: JsonObject
    samples: int | None
    steps: int | None
    seconds: float | None
    negatives_per_anchor: int | None


class PlanTable(TypedDict, total=False):
    """The plan of a run."""

    arms: Required[list[ArmTable]]
    contrasts: Required[list[list[str]]]
    trials: Required[dict[str, int]]
    confirm_seeds: Required[list[int]]
    searched_with: dict[str, str]
    defaults: JsonObject
    apart: bool


class CodeTable(TypedDict, total=False):
    """[code] of a sweep."""

    paths: list[str]
    digest: str | None


class SweepTable(TypedDict, total=False):
    """A sweep, resolved, and the plan that was made of it."""

    question: Required[str]
    metric: Required[MetricTable]
    plan: Required[PlanTable]
    job: JsonObject
    compare: dict[str, list[JsonValue]]
    tune: JsonObject | None
    resources: JsonObject
    code: CodeTable | None


class SourceRecord(TypedDict, total=False):
    """Rows, or an encoder, as a run has recorded them. What more it holds tells whether their files are still those."""

    digest: str
    rows: int
    names: list[str]
    """Files of an encoder that count."""

    key: str
    """Of a job, that names an encoder: `loss.guide`; `model.name` where there is none."""
    revision: str | None


class CodeRecord(TypedDict, total=False):
    """What computes: a digest of this program's jobs, versions of packages, and a digest of the user's code, if any."""

    code: str | None
    versions: dict[str, str] | None
    user_code: str
    time: float
    """When it was accepted, of code that was."""


class ProvenanceRecord(CodeRecord, total=False):
    """What a run was begun with, and what was accepted since."""

    files: dict[str, str]
    """Digests of the code, by file."""
    user_files: dict[str, str]
    data: dict[str, SourceRecord]
    weights: dict[str, SourceRecord]
    accepted: list[CodeRecord]
    late: bool
    """Whether it was recorded after the first attempts."""


class AttemptRecord(CodeRecord, total=False):
    """What an attempt ran with."""

    data: JsonObject
    """Digests by source."""
    weights: JsonObject


@dataclass(frozen=True)
class Rows:
    """Rows that a trial trained on or was judged on."""

    context: str
    """`training`, or the stage."""
    source: str
    digest: str
    rows: int


@dataclass(frozen=True)
class TrialResult:
    """What a trial's training came to. Empty where there is no result, None for what its version did not record."""

    step: int | None = None
    samples: int | None = None
    seconds: float | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    negatives_per_anchor: int | None = None
    metrics: Mapping[str, float] = field(default_factory=dict)
    untrained: Mapping[str, float] = field(default_factory=dict)
    """The same before the first step."""
    hashes: Mapping[str, str] = field(default_factory=dict)
    """What paired trials must have in common."""
    data: Sequence[Rows] = ()
    reading: Mapping[str, JsonValue] = field(default_factory=dict)
    """How the encoder took and pooled its inputs."""
    rows: str | None = None
    """The sha256 of what it has kept row by row."""

    @classmethod
    def of(cls, stored: Mapping[str, JsonValue] | None) -> TrialResult:
        """Read the result that a ledger or a result.json holds. A value that is not what belongs there counts as
        none."""
        kept = stored or {}
        counts = kept.get("samples") != 0  # a training loop of the user's own has none that is known
        return cls(
            step=_whole(kept.get("step")),
            samples=_whole(kept.get("samples")) if counts else None,
            seconds=_number(kept.get("seconds")),
            samples_per_second=_number(kept.get("samples_per_second")) if counts else None,
            peak_memory_mb=_number(kept.get("peak_memory_mb")),
            negatives_per_anchor=_whole(kept.get("negatives_per_anchor")),
            metrics=_numbers(kept.get("metrics")),
            untrained=_numbers(kept.get("untrained")),
            hashes={key: text for key, text in _table(kept.get("hashes")).items() if isinstance(text, str)},
            data=tuple(_rows(kept.get("data"))),
            reading=_table(kept.get("reading")),
            rows=rows if isinstance(rows := kept.get("rows"), str) else None,
        )


def _number(value: JsonValue) -> float | None:
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


def _whole(value: JsonValue) -> int | None:
    if isinstance(value, float):
        return int(value) if value.is_integer() else None
    return value if isinstance(value, int) and not isinstance(value, bool) else None


def _table(value: JsonValue) -> Mapping[str, JsonValue]:
    return value if isinstance(value, dict) else {}


def _numbers(value: JsonValue) -> dict[str, float]:
    return {key: number for key, inner in _table(value).items() if (number := _number(inner)) is not None}


def _rows(value: JsonValue) -> Iterator[Rows]:
    for table in value if isinstance(value, list) else ():
        match table:
            case {"context": str(context), "source": str(source), "digest": str(digest), "rows": int(count)}:
                yield Rows(context, source, digest, count)
