"""An answer by several metrics as one answer for each of them, which tables, plots and sentences are made of."""

from __future__ import annotations

from dataclasses import replace
from typing import TypeVar

from orchestrator import statistics
from orchestrator.report.summary.records import Answer, ArmSummary, Summary
from orchestrator.report.summary.records.metrics import MetricSummary

A = TypeVar("A", bound=Answer)


def by_each(answer: A) -> list[A]:
    """Return the answer by each of its metrics alone, the first one first; the answer itself where it has one.

    Each keeps the levels of the whole family. How the arms were tuned, which level is the best and what failed stand in
    the first one alone.
    """
    return [_by(answer, metric, first=not number) for number, metric in enumerate(answer.metrics)] or [answer]


def _by(answer: A, metric: MetricSummary, *, first: bool) -> A:
    view = replace(
        answer,
        metric=metric.name,
        mode=metric.mode,
        smallest_difference=metric.smallest_difference,
        metrics=(),
        arms=[_arm(arm, metric.name, first=first) for arm in answer.arms],
        comparisons=[comparison for comparison in answer.comparisons if comparison.result.metric == metric.name],
        execution_only=[pair for pair in answer.execution_only if pair.metric == metric.name],
    )
    if isinstance(view, Summary):
        return _within_run(view, metric.name, first=first)  # type: ignore[return-value] # A is Summary here
    return view


def _within_run(view: Summary, metric: str, *, first: bool) -> Summary:
    explored = view.exploratory
    if explored is not None:
        own = [comparison for comparison in explored.comparisons if comparison.result.metric == metric]
        explored = replace(explored, comparisons=own)
    swaps = [swap for swap in view.swaps if swap.metric == metric]
    return replace(view, exploratory=explored, swaps=swaps, which=view.which if first else None)


def _arm(arm: ArmSummary, metric: str, *, first: bool) -> ArmSummary:
    own = arm.by_metric[metric]
    return replace(
        arm,
        n=own.n,
        mean=own.mean,
        ci95=own.ci95,
        untrained=own.untrained,
        worse_than_untrained=own.worse_than_untrained,
        values=[replace(value, value=own.values.get(value.seed)) for value in arm.values],
        tune=arm.tune if first else None,
        collapsed=arm.collapsed if first else (),
        by_metric={},
    )


def measures_of(answer: Answer) -> list[statistics.Measure]:
    """List the metrics that an answer is by, the first one first."""
    listed = [statistics.Measure(own.name, own.mode, own.smallest_difference) for own in answer.metrics]
    return listed or [statistics.Measure(answer.metric, answer.mode, answer.smallest_difference)]


def tests_of(answer: Answer) -> int:
    """Count what is tested together: the contrasts that a test is asked about, by every metric."""
    return sum(comparison.result.p is not None for comparison in answer.comparisons)
