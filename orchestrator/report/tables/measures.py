"""The table of all that was measured, where the table of the arms has no room for it."""

from __future__ import annotations

from collections.abc import Iterator

from orchestrator.report import formatting
from orchestrator.report.naming import Names
from orchestrator.report.summary.records import Answer
from orchestrator.report.tables.blocks import Block, Grid

MOST_BESIDE = 3
"""Of the further metrics that stand beside the metric: more of them have a table of their own."""

MOST_ACROSS = 6
"""Of the arms that have a column each in that table: of more, each has a row."""


def beside(answer: Answer) -> list[str]:
    """List the further metrics that the table of the arms has a column for."""
    others = sorted({key for arm in answer.arms for key in arm.metrics} - {answer.metric})
    return others if len(others) <= MOST_BESIDE else []


def measures(answer: Answer, names: Names) -> Iterator[Block]:
    """Yield the mean of each metric over an arm's seeds, folded away; nothing where all stand in the table of the
    arms."""
    keys = sorted({key for arm in answer.arms for key in arm.metrics})
    if len(keys) <= MOST_BESIDE + 1:
        return
    columns = [(names.heading, *keys)]
    columns += [
        (names.arm[arm.label], *(formatting.value(arm.metrics.get(key)) for key in keys)) for arm in answer.arms
    ]
    if len(answer.arms) > MOST_ACROSS:
        yield Grid(columns[0], columns[1:], title="All that was measured")
    else:
        first, *rows = zip(*columns, strict=True)
        yield Grid(("mean over seeds", *first[1:]), rows, title="All that was measured")
