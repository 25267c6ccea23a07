"""What an answer by several metrics says of each of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from orchestrator import statistics
from orchestrator.report.summary.records.plain_json import AsFields
from orchestrator.statistics import Interval


@dataclass(frozen=True)
class MetricSummary(AsFields):
    """One of several metrics by which arms are judged."""

    name: str
    mode: statistics.Mode
    smallest_difference: float


@dataclass(frozen=True)
class ArmByMetric(AsFields):
    """One arm by one of several metrics."""

    n: int
    mean: float | None
    ci95: Interval | None
    untrained: float | None
    worse_than_untrained: bool
    values: Mapping[int, float]
    """Seed -> value, of what trained."""
