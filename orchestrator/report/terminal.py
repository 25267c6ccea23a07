"""An answer as a terminal shows it."""

from __future__ import annotations

from collections.abc import Iterator

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.report.formatting import NOTHING, count, interval, probability, quantity, signed, value
from orchestrator.report.naming import Names, names_of
from orchestrator.report.summary.records import Answer, MultiRunSummary, Summary
from orchestrator.report.summary.records.views import by_each
from orchestrator.report.summary.sentences import about, deciding_p, seeds_needed, swap_sentence, verdict_of
from orchestrator.system.display import counted

MOST_ROWS = 40
"""Of a table in a terminal; the page and the JSON have all."""


def table(answer: Answer) -> RenderableType:
    """Build the tables of the arms and of the comparisons, the notes and the verdict. Fits 80 columns. Of very many
    comparisons it shows those that say something, in their order, and then others."""
    names, tables = names_of(answer.arms), []
    for view in by_each(answer):
        tables += [*_arms(view), *_comparisons(view, names, by=f", {view.metric}" if answer.metrics else "")]
    notes = [Text(f"note: {note}") for note in answer.notes]
    return Group(
        *tables,
        *notes,
        *(_swaps(answer, names) if isinstance(answer, Summary) else ()),
        Text(answer.sentence, style="bold"),
    )


def _arms(answer: Answer) -> list[RenderableType]:
    arms = Table(box=SIMPLE_HEAD, title=Text(f"{answer.metric} by arm"), title_justify="left", padding=(0, 1))
    arms.add_column("arm", overflow="fold", min_width=12)
    for heading in ("n", "mean", "95% interval", "diverged", "pairs/s", "peak MB"):
        arms.add_column(heading, justify="right", no_wrap=True)
    for arm in answer.arms[:MOST_ROWS]:
        arms.add_row(
            Text(arm.label),
            count(arm.n),
            value(arm.mean),
            interval(arm.ci95),
            count(arm.diverged),
            quantity(arm.samples_per_second),
            quantity(arm.peak_memory_mb),
        )
    return _whole(arms, len(answer.arms), "arm")


def _comparisons(answer: Answer, names: Names, *, by: str) -> list[RenderableType]:
    title = Text(f"paired differences{by}")
    comparisons = Table(box=SIMPLE_HEAD, title=title, title_justify="left", padding=(0, 1))
    comparisons.add_column("a against b", overflow="fold", min_width=12)
    for heading in ("mean", "interval", "p"):
        comparisons.add_column(heading, justify="right", no_wrap=True)
    unit = answer.unit if isinstance(answer, Summary) else "seed"
    has_needed = any(seeds_needed(comparison.result) for comparison in answer.comparisons)
    if has_needed:
        comparisons.add_column(f"{unit}s\nneeded", justify="right", no_wrap=True)
    comparisons.add_column("verdict on a", justify="right", min_width=12, max_width=14)
    shown = list(answer.comparisons)
    if len(shown) > MOST_ROWS:
        shown.sort(key=lambda comparison: comparison.result.verdict in ("inconclusive", "equivalent"))
    for comparison in shown[:MOST_ROWS]:
        result = comparison.result
        comparisons.add_row(
            Text(names.pair(result.a, result.b)),
            signed(result.delta),
            interval(comparison.interval, sign=True),
            probability(deciding_p(comparison)),
            *([NOTHING if (needed := seeds_needed(result)) is None else about(needed)] if has_needed else []),
            verdict_of(comparison, answer.smallest_difference),
        )
    return _whole(comparisons, len(shown), "comparison")


def _swaps(answer: Summary, names: Names) -> Iterator[Text]:
    """Yield a line of any two arms at each other's setting; of very many, those that say something, and then others."""
    shown = list(answer.swaps)
    if len(shown) > MOST_ROWS:
        shown.sort(key=lambda swap: swap.verdict in ("incomplete", "none"))
    for swap in shown[:MOST_ROWS]:
        by = f", by {swap.metric}" if swap.metric else ""
        yield Text(f"beside the verdict, each at the other's setting{by}: {swap_sentence(swap, names)}")
    if left := len(shown[MOST_ROWS:]):
        yield Text(f"and {counted(left, 'more comparison')} at each other's setting; --json has all")


def _whole(shown: Table, rows: int, what: str) -> list[RenderableType]:
    """Return a table, and below it how many rows it has left out."""
    left = rows - shown.row_count
    return [shown, *([Text(f"and {counted(left, f'more {what}')}; --json has all\n")] if left else [])]


def multi_run_table(answer: MultiRunSummary) -> RenderableType:
    """Build the lines with the verdict of each run, and below them the tables over all runs."""
    planned = [Text.assemble((f"{name}: ", "bold"), run.sentence) for name, run in answer.runs.items()]
    return Group(*planned, Text(), table(answer))
