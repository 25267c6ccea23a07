"""The tables of a report: by other code than the report's, every number follows from the rows of the ledger."""

from __future__ import annotations

import io
import itertools
from collections.abc import Callable, Sequence
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from ledgers import BETTER, Begin, Written
from rich.console import Console
from scipy import stats

from orchestrator import report
from orchestrator.report import parquet
from orchestrator.report.naming import names_of
from orchestrator.report.render.page import markdown
from orchestrator.report.tables import grids
from orchestrator.report.tables.content import Page as Words
from orchestrator.report.tables.measures import measures

Table = list[list[str]]


class Tables(HTMLParser):
    """The text of every table cell of a page."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.inside = False
        self.found: list[Table] = []
        self.feed(html)

    def handle_starttag(self, tag: str, _: list[tuple[str, str | None]]) -> None:
        if tag == "table":
            self.found.append([])
        elif tag == "tr":
            self.found[-1].append([])
        elif tag in ("th", "td"):
            self.inside = True
            self.found[-1][-1].append("")

    def handle_endtag(self, tag: str) -> None:
        self.inside = self.inside and tag not in ("th", "td")

    def handle_data(self, data: str) -> None:
        if self.inside:
            self.found[-1][-1][-1] += data


def of_markdown(markdown: str) -> list[Table]:
    """The same of a report in Markdown."""
    parts = [part.splitlines() for part in markdown.split("\n\n") if part.startswith("| ")]
    rows = [[line.strip("| ").split(" | ") for k, line in enumerate(part) if k != 1] for part in parts]
    return [[[cell.replace("\\", "") for cell in row] for row in table] for table in rows]


class Expected:
    """What the tables must say. SQL, numpy and scipy; nothing of the report but how bytes become columns."""

    def __init__(self, written: Written) -> None:
        self.trials = written.rows("trials")
        self.frozen = {row["arm"]: row for row in written.rows("frozen")}
        self.suggestions = written.rows("suggestions")
        self.file = written.folder / "results.parquet"
        self.confirm = {
            arm: [trial for trial in self.trials if (trial["stage"], trial["arm"]) == ("confirm", arm)]
            for arm in BETTER
        }

    def comparisons(self) -> Table:
        d = np.array(self.values("flat", "metric")) - np.array(self.values("plain", "metric"))
        signs = np.array(list(itertools.product((-1, 1), repeat=len(d))))
        p = f"{np.mean(np.abs(signs @ d) >= abs(d.sum()) - 1e-12):.3g}"
        means = sorted(fmean(some) for size in range(len(d)) for some in itertools.combinations(d, size + 1))
        outside = int(0.05 * 2 ** (len(d) - 1))
        low, high = means[outside - 1], means[-outside]
        return [["flat", "plain", "better", f"{d.mean():+.4f}", f"[{low:+.4f}, {high:+.4f}]", p, p, str(len(d))]]

    def arms(self) -> Table:
        return [
            [
                *(arm, f"{fmean(self.values(arm, 'metric')):.4f}", interval(self.values(arm, "metric"))),
                f"{fmean(self.values(arm, 'result', 'untrained', 'knn_accuracy')):.4f}",
                self.diverged(arm),
                f"{fmean(self.values(arm, 'metrics', 'alignment')):.4f}",
                str(len(self.values(arm, "metric"))),
            ]
            for arm in BETTER
        ]

    def cost(self) -> Table:
        return [
            [
                *(arm, self.spread(arm, "samples"), self.spread(arm, "step"), self.spread(arm, "seconds", ".1f")),
                self.spread(arm, "negatives_per_anchor"),
                str(self.confirm[arm][0]["job"]["execution"]["ranks"]),
                f"{fmean(self.values(arm, 'result', 'samples_per_second')):.0f}",
                f"{sum(self.values(arm, 'result', 'seconds')):.1f}",
                f"{max(self.values(arm, 'result', 'peak_memory_mb')):.0f}",
            ]
            for arm in BETTER
        ]

    def tuning(self) -> Table:
        return [
            [
                *(arm, f"optimizer.lr = {self.frozen[arm]['params']['optimizer.lr']:.4g}"),
                str(self.frozen[arm]["number"] + 1),
                str(sum(row["arm"] == arm for row in self.suggestions)),
            ]
            for arm in BETTER
        ]

    def seeds(self) -> Table:
        return [[arm, *(f"{value:.4f}" for value in self.values(arm, "metric"))] for arm in BETTER]

    def stages(self) -> Table:
        ran = [(trial["stage"], trial["state"]) for trial in self.trials]
        states = ("queued", "running", "done", "pruned", "failed")
        return [[stage, *(str(ran.count((stage, state))) for state in states)] for stage in ("tune", "confirm")]

    def failures(self) -> Table:
        keys = ("id", "stage", "arm", "failure", "message", "seed", "attempts")
        failed = [trial for trial in self.trials if trial["state"] == "failed"]
        return [[str(trial[key]).splitlines()[0] for key in keys] for trial in failed]

    def environment(self) -> Table:
        return [["commit", "3f2c9ab"], ["packages.torch", "2.13"]]

    def columns(self) -> Table:
        return [list(row) for row in parquet.columns(pq.read_schema(self.file))]

    def values(self, arm: str, *keys: str) -> list[Any]:
        found: list[Any] = self.confirm[arm]
        for key in keys:
            found = [one[key] for one in found]
        return found

    def spread(self, arm: str, key: str, shown: str = ",.0f") -> str:
        values = self.values(arm, "result", key)
        mean, ends = f"{fmean(values):{shown}}", f"({min(values):{shown}} to {max(values):{shown}})"
        return mean if min(values) == max(values) else f"{mean} {ends}"

    def diverged(self, arm: str) -> str:
        count = self.values(arm, "outcome").count("diverged")
        ends = stats.binomtest(count, len(self.confirm[arm])).proportion_ci(method="wilson")
        return f"{count} ({100 * ends.low:.0f}% to {100 * ends.high:.0f}%)"


def interval(values: Sequence[float], sign: str = "") -> str:
    low, high = stats.t.interval(0.95, len(values) - 1, fmean(values), stats.sem(values))
    return f"[{low:{sign}.4f}, {high:{sign}.4f}]"


TABLES: list[tuple[str, Callable[[Expected], Table]]] = [
    ("arm, against, verdict", Expected.comparisons),
    ("arm, mean", Expected.arms),
    ("arm, pairs", Expected.cost),
    ("arm, chosen", Expected.tuning),
    ("arm, seed 2, seed 3, seed 4, seed 5, seed 6, seed 7", Expected.seeds),
    ("stage, queued", Expected.stages),
    ("failed trial", Expected.failures),
    ("recorded, value", Expected.environment),
    ("column, type", Expected.columns),
]
"""The beginnings of the headings, in the order of the report."""


@pytest.mark.parametrize("place", range(len(TABLES)), ids=[heading for heading, _ in TABLES])
def test_every_number_of_a_table_follows_from_the_rows_of_the_ledger(written: Written, place: int) -> None:
    """Mutant checks: a seed left out of a mean, the sum in place of the largest memory, the median in place of the
    mean, a suggestion counted from 0, each fails this."""
    heading, expected = TABLES[place]
    first, *rows = Tables(written.read("report.html")).found[place]
    assert ", ".join(first).startswith(heading)
    assert rows == expected(Expected(written))


def test_both_pages_have_the_same_tables_and_no_other(written: Written) -> None:
    html, markdown = Tables(written.read("report.html")).found, of_markdown(written.read("report.md"))
    assert html == markdown
    assert len(html) == len(TABLES)


def measured(begin: Begin, arms: Sequence[str], more: int) -> list[Table]:
    """The tables of a page of arms with so many metrics beside their own."""
    margins = enumerate(arms)
    run = begin("".join(f'[[arm]]\nlabel = "{arm}"\n"loss.margin" = {at / 100}\n' for at, arm in margins))
    for number, arm in enumerate(arms):
        for trial in run.confirm(arm):
            further = {f"recall_at_{at}": 0.1 * at + number for at in range(1, more + 1)}
            run.done(trial, 0.5 + number, more=further)
    found = report.summarize(run.ledger)
    names = names_of(found.arms)
    page = Words("Q", "T", ["V"], "S", [], [grids.arms(found, names), *measures(found, names)])
    return of_markdown(markdown(page))


@pytest.mark.parametrize(("arms", "more"), [(2, 2), (2, 3), (7, 3)])
def test_a_table_is_no_wider_for_many_metrics(begin: Begin, arms: int, more: int) -> None:
    """Seen: a judge that measures nine numbers made the table of the arms twice as wide as the page."""
    labels = [f"a{number}" for number in range(arms)]
    of_arms, *rest = measured(begin, labels, more)
    recalls = [f"recall_at_{at}" for at in range(1, more + 1)]
    if more == 2:
        assert of_arms[0][5:-1] == ["alignment", *recalls]
        assert rest == []
        return
    assert len(of_arms[0]) == 6
    (table,) = rest
    by_arm = table if arms > 6 else [list(column) for column in zip(*table, strict=True)]
    assert by_arm[0][1:] == ["alignment", "knn_accuracy", *recalls]
    assert [row[0] for row in by_arm[1:]] == labels
    for number, row in enumerate(by_arm[1:]):
        expected = [0.5 + number, *(0.1 * at + number for at in range(1, more + 1))]
        assert [float(cell) for cell in row[2:]] == pytest.approx(expected)


def test_a_terminal_shows_forty_comparisons_and_first_those_that_say_something(tmp_path: Path) -> None:
    """Seen: 149 lines of `inconclusive`. Mutant check: the first forty as they come."""
    lines = ["arm,seed,accuracy", *(f"base,{seed},{0.9 + seed / 1000}" for seed in range(8))]
    for arm in range(45):
        step = 0.1 if arm == 44 else 0.0
        lines += [f"arm{arm},{seed},{0.9 + step + (-1) ** seed * 1e-2 + seed / 1000}" for seed in range(8)]
    (tmp_path / "many.csv").write_text("\n".join(lines))
    answer = report.judge(tmp_path / "many.csv", report.Asked("accuracy", "max", None, 0.0))
    printed = io.StringIO()
    Console(width=120, file=printed).print(report.table(answer))
    arms, _, comparisons = printed.getvalue().partition("paired differences")
    assert ("and 6 more arms; --json has all" in arms, "arm39" in arms) == (True, False)
    shown = [line.split(" against ")[0].strip() for line in comparisons.splitlines() if " against base" in line]
    assert shown == ["arm44", *(f"arm{arm}" for arm in range(39))]
    assert "and 5 more comparisons; --json has all" in comparisons
