"""The answer as the description of the sweep's run in MLflow: verdict first, then two tables. Short, as MLflow cuts
long descriptions off, and without pictures, which it cannot show there."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from jobs.core.plain import beginning
from orchestrator.report.naming import as_labelled
from orchestrator.report.render import page
from orchestrator.report.summary.records import Answer
from orchestrator.report.summary.records.views import by_each
from orchestrator.report.tables import content, grids
from orchestrator.report.tables.blocks import Block, Grid, Paragraph

MOST_ROWS, MOST_NOTES = 12, 5
"""Of a table, and of what a reader should know: beyond, the report has them."""

LONGEST = 4200
"""Characters from which labels are so long that the tables get fewer rows. MLflow gets links to its pages besides."""

LONGEST_QUESTION, LONGEST_SENTENCE = 500, 1500
"""Characters of what stands above the tables."""

LONGEST_LABEL, LONGEST_METRIC = 100, 30
"""Characters of a label, and of a further metric, in a metric's name."""


def note(answer: Answer) -> str:
    """Return the answer as Markdown of at most some 4,200 characters."""
    written = (_note(answer, rows) for rows in range(MOST_ROWS, 0, -1))
    return next((text for text in written if len(text) <= LONGEST), _note(answer, 0, notes=0))


def _note(answer: Answer, rows: int, *, notes: int = MOST_NOTES) -> str:
    names = as_labelled(answer.arms)
    shown: list[Block] = []
    for view in by_each(answer):
        shown += [Paragraph(f"By {view.metric}:")] if answer.metrics else []
        shown += [_short(grids.comparisons(view, names), rows), _short(grids.arms(view, names), rows)]
    question, sentence = beginning(answer.question, LONGEST_QUESTION), beginning(answer.sentence, LONGEST_SENTENCE)
    whole = page.markdown(content.Page(question, "", [sentence], "", answer.notes[:notes], shown))
    # The page folds a description after its first lines: no room for a heading.
    head, _, rest = whole.partition("\n")
    rest = "\n".join(_apart(line) for line in rest.rstrip().splitlines())
    end = "The whole report: Artifacts, `report/report.html`. The trials: the nested runs, or `tags.arm = '...'`."
    return f"*{head.removeprefix('# ')}*\n{rest}\n\n{end}\n"


def numbers(answer: Answer) -> dict[str, float]:
    """Return the answer's own numbers as metrics of MLflow, which allows fewer characters in a name than a label may
    have."""
    named = metric_names([arm.label for arm in answer.arms])
    metrics = {f"mean/{named[arm.label]}": arm.mean for arm in answer.arms}
    for view in by_each(answer):
        # Of further metrics with the metric in front, so that the first one's names are those of a single one.
        by = "" if view.metric == answer.metric else f"{_hashed_if_long(view.metric)}/"
        metrics |= {f"{by}mean/{named[arm.label]}": arm.mean for arm in view.arms} if by else {}
        for result in (comparison.result for comparison in view.comparisons):
            if result.n:
                pair = f"{named[result.a]} - {named[result.b]}"
                metrics |= {f"{by}delta/{pair}": result.delta, f"{by}p_adjusted/{pair}": result.p_adjusted}
    return {key: value for key, value in metrics.items() if value is not None}


def metric_names(labels: Sequence[str]) -> dict[str, str]:
    """Return labels as parts of a metric's name: MLflow allows few characters, takes / for a path, and 250 characters
    in all. Names that are cut off, or alike without the other characters, are told apart by a hash."""
    plain = {label: re.sub(r"[^\w\- ]", "_", label) for label in labels}
    alike = Counter(plain.values())
    long = {label for label, name in plain.items() if len(name) > LONGEST_LABEL or (alike[name] > 1 and name != label)}
    return {label: _hashed(label, name) if label in long else name for label, name in plain.items()}


def _hashed_if_long(metric: str) -> str:
    """Shorten a metric's name, so that what follows it has room: 250 characters are all that MLflow takes."""
    return metric if len(metric) <= LONGEST_METRIC else f"{metric[: LONGEST_METRIC - 9]}-{_digest(metric)}"


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:8]


def _hashed(label: str, name: str) -> str:
    return f"{name[: LONGEST_LABEL - 9]}-{_digest(label)}"


def _apart(line: str) -> str:
    """Put room between the cells of a table's row, as MLflow's style leaves none."""
    return line.replace(" | ", " &nbsp; | ") if line.startswith("| ") and "---" not in line else line


def _short(grid: Grid, rows: int) -> Grid:
    more = len(grid.rows) - rows
    if more <= 0:
        return grid
    empty = [""] * (len(grid.headings) - 1)
    return replace(grid, rows=[*grid.rows[:rows], [f"and {more} more, in the report", *empty]])
