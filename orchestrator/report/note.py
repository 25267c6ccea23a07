"""The answer as the description of the sweep's run in MLflow: question, verdict, two tables. Short, as MLflow cuts long
descriptions off, and without pictures, which it cannot show there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from orchestrator.report import page, text
from orchestrator.report.content import Block, Bullets, Grid

MOST_ROWS = 12
"""Of a table: beyond, the report has them."""


def note(answer: dict[str, Any]) -> str:
    """Markdown of at most some 4,000 characters."""
    contrasts = [
        (
            f"{one['a']} - {one['b']}",
            text.VERDICTS[one["verdict"]],
            text.signed(one["delta"]),
            text.interval(one["ci95"], sign=True),
            text.probability(one["p_holm"] if one["n"] else None),
            text.count(one["n"]),
        )
        for one in answer["comparisons"]
    ]
    arms = [
        (
            arm["label"],
            text.value(arm["mean"]),
            text.interval(arm["ci95"]),
            text.count(arm["diverged"]),
            text.quantity(arm["seconds"]),
            text.quantity(arm["peak_memory_mb"]),
        )
        for arm in answer["arms"]
    ]
    blocks: list[Block] = [
        _grid(("arm - baseline", "verdict", "mean", "95% interval", "p (Holm)", "n"), contrasts, words=2),
        _grid(("arm", answer["metric"], "95% interval", "diverged", "seconds", "peak MB"), arms, words=1),
        *([Bullets(answer["notes"])] if answer["notes"] else []),
    ]
    end = "The whole report: Artifacts, `report/report.html`. The trials: the nested runs, or `tags.arm = '...'`."
    return page.markdown(answer["question"], answer["sentence"], "", [], blocks).rstrip() + f"\n\n{end}\n"


def _grid(headings: tuple[str, ...], rows: Sequence[tuple[str, ...]], *, words: int) -> Grid:
    shown = list(rows[:MOST_ROWS])
    if len(rows) > MOST_ROWS:
        shown.append((f"and {len(rows) - MOST_ROWS} more, in the report", *[""] * (len(headings) - 1)))
    return Grid(headings, shown, words)
