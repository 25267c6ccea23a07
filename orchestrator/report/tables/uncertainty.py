"""The table of where the uncertainty of a difference comes from, and what has no part in it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from jobs.config.after_sections import without_dims, without_set
from orchestrator.report import formatting
from orchestrator.report.naming import Names
from orchestrator.report.summary.records import Answer, ComparisonSummary, MultiRunSummary, Summary
from orchestrator.report.summary.sentences import unit_of
from orchestrator.report.tables.blocks import Block, Grid, Heading, Paragraph
from orchestrator.statistics.rows import VarianceParts
from orchestrator.system.display import counted


def uncertainty(answer: Answer, names: Names) -> Iterator[Block]:
    """Yield how much of the uncertainty is due to seeds, to rows and to tuned settings, what more of them would buy,
    and of which metrics nothing is known of rows; nothing where no trial has been asked."""
    known = [comparison for comparison in answer.comparisons if comparison.parts.rows is not None]
    lacking = _lacking(answer)
    if not known and not lacking:
        return
    yield Heading("Where the uncertainty comes from")
    if known:
        yield from _parts(known, answer, names)
    if lacking:
        yield Paragraph(lacking)


def _parts(known: Sequence[ComparisonSummary], answer: Answer, names: Names) -> Iterator[Block]:
    is_apart = any(comparison.parts.settings is not None for comparison in known)
    unit = unit_of(answer)
    yield Grid(
        (
            *("comparison", "interval on other rows", f"by {unit}s", *(["by tuned setting"] if is_apart else [])),
            *("by rows", f"1 more {unit}", "1,000 more rows", "rows"),
        ),
        [
            (
                names.pair(comparison.result.a, comparison.result.b) + _of_metric(comparison),
                formatting.interval(parts.interval, sign=True),
                *map(_root, (parts.seeds, *([parts.settings] if is_apart else []), parts.rows)),
                *map(_change, (parts.next_seed, parts.next_1000_rows)),
                _judged(parts),
            )
            for comparison in known
            for parts in (comparison.parts,)
        ],
    )
    apart = ", by tuned setting (which seeds that share one do not count whole)" if is_apart else ""
    yield Paragraph(
        "The interval is for other rows of the same kind, at the level of the verdict, which it qualifies and never "
        f"changes. Standard errors of the mean difference: by {unit}s{apart}, and by the rows that it was measured on. "
        f"Then what one more {unit}, or 1,000 more rows, would do to half of the interval's width."
    )


def _lacking(answer: Answer) -> str:
    """Say which metrics have no interval on other rows, and why; nothing where each has one, or no trial was asked. A
    metric of several sets, or of several numbers of columns, is named once where it is so of all."""
    runs = answer.runs.values() if isinstance(answer, MultiRunSummary) else [answer]
    names = sorted({name for run in runs if isinstance(run, Summary) for name in run.without_rows})
    measured = {name for arm in answer.arms for name in arm.metrics}
    others = {_plain(name) for name in measured.difference(names)}
    if names and not others:
        return (
            "There is no interval on other rows, as trials have kept nothing by row: what was measured is numbers of "
            "all rows together."
        )
    named = list(dict.fromkeys(name if _plain(name) in others else _plain(name) for name in names))
    if not named:
        return ""
    return (
        f"There is no interval on other rows for {formatting.enumerated(named)}: a number of all rows together, of "
        "which nothing is kept by row."
    )


def _plain(metric: str) -> str:
    return without_dims(without_set(metric))


def _of_metric(comparison: ComparisonSummary) -> str:
    return f", {comparison.result.metric}" if comparison.result.metric else ""


def _root(variance: float | None) -> str:
    return formatting.value(None if variance is None else variance**0.5)


def _judged(parts: VarianceParts) -> str:
    groups = "" if parts.groups is None else f" in {counted(parts.groups, 'group')}"
    return f"{formatting.count(parts.judged_rows)}{groups}"


def _change(less: float | None) -> str:
    return formatting.signed(None if less is None else -less)
