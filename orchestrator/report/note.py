"""The answer as the description of the sweep's run in MLflow: verdict first, then two tables. Short, as MLflow cuts
long descriptions off, and without pictures, which it cannot show there."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from orchestrator.report import page, tables
from orchestrator.report.blocks import Grid

MOST_ROWS = 12
"""Of a table: beyond, the report has them."""


def note(answer: dict[str, Any]) -> str:
    """Markdown of at most some 4,000 characters."""
    shown = [_short(tables.comparisons(answer)), _short(tables.arms(answer))]
    whole = page.markdown(answer["question"], [answer["sentence"]], "", answer["notes"], shown)
    # The page folds a description after its first lines: no room for a heading.
    head, _, rest = whole.partition("\n")
    end = "The whole report: Artifacts, `report/report.html`. The trials: the nested runs, or `tags.arm = '...'`."
    return f"*{head.removeprefix('# ')}*\n{rest.rstrip()}\n\n{end}\n"


def _short(grid: Grid) -> Grid:
    more = len(grid.rows) - MOST_ROWS
    if more <= 0:
        return grid
    empty = [""] * (len(grid.headings) - 1)
    return replace(grid, rows=[*grid.rows[:MOST_ROWS], [f"and {more} more, in the report", *empty]])
