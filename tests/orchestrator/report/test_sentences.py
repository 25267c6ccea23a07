"""What the sentence above a report claims, case by case: ranges, places, what diverged, one objective."""

from __future__ import annotations

import io
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ledgers import Begin, Run, answer_of, finished
from rich.console import Console

from orchestrator import report
from orchestrator.report import terminal
from orchestrator.report.naming import as_labelled, names_of
from orchestrator.report.render.differences import draw_differences
from orchestrator.report.render.looks import looks_of
from orchestrator.report.summary.records import StratumSummary, WhichSummary
from orchestrator.report.summary.sentences import about, best_levels
from orchestrator.report.tables import grids

Metric = Callable[[dict[str, Any]], float | None]
"""Settings of an arm -> its metric; None where it diverges."""


def played(run: Run, metric: Metric) -> str:
    """The sentence on a run whose arms come to this, and a little noise."""
    for k, arm in enumerate(run.plan.arms):
        for trial in run.confirm(arm.label):
            value = metric(dict(arm.settings))
            noise = ((trial.seed * 7 + k * 3) % 5) / 10_000
            run.done(trial, (value or 0.0) + noise, outcome="ok" if value is not None else "diverged")
    said: str = answer_of(run.ledger)["sentence"]
    return said


def temperatures(levels: Sequence[float | str], more: str = "") -> str:
    shown = ", ".join(f'"{level}"' if isinstance(level, str) else str(level) for level in levels)
    return f'[compare]\n"loss.temperature" = [{shown}]\n{more}'


@pytest.mark.parametrize(
    ("levels", "good", "said"),
    [
        ([0.1, 0.01, 0.02, 0.3], {0.01, 0.02, 0.3}, "Best temperature: 0.01, 0.02 or 0.3, which"),
        ([0.01, 0.02, 0.05, 0.3], {0.02, 0.05, 0.3}, "Best temperature: 0.02 to 0.3, which"),
        ([0.3, 0.05, 0.01, 0.02], {0.02, 0.05, 0.3}, "Best temperature: 0.02 to 0.3, which"),
        ([0.1, 0.5, 0.01, 1.0, 0.02], {0.5, 0.01, 1.0}, "Best temperature: 0.01, 0.5 or 1.0, which"),
    ],
)
def test_a_range_of_levels_holds_no_level_that_is_not_meant(
    begin: Begin, levels: list[float], good: set[float], said: str
) -> None:
    """Seen: "0.01 to 0.3" of levels in the file's order, with 0.1 between them, which was beaten."""
    run = begin(temperatures(levels), seeds=8)
    assert said in played(run, lambda own: 0.9 if own["loss.temperature"] in good else 0.5)


def test_the_baseline_is_no_part_of_a_range(begin: Begin) -> None:
    """Seen: "0.05 to 0.3 beat 0.1"."""
    run = begin(temperatures([0.1, 0.05, 0.2, 0.3, 1.0]), seeds=8)
    said = played(run, lambda own: 0.5 if own["loss.temperature"] in (0.1, 1.0) else 0.9)
    assert "On knn_accuracy, 0.05, 0.2 and 0.3 beat 0.1" in said


def test_a_place_without_a_level_has_no_range_across_it(begin: Begin) -> None:
    more = '"batch.size" = [16, 64]\n[[exclude]]\n"loss.temperature" = 0.1\n"batch.size" = 64\n'
    run = begin(temperatures([0.02, 0.05, 0.1, 0.2, 0.3], more), seeds=8)
    said = played(run, lambda own: 0.5 if own["loss.temperature"] == 0.02 else 0.9)
    assert "at batch 16: 0.05 to 0.3 beat 0.02; at batch 64: 0.05, 0.2 and 0.3 beat 0.02." in said


def test_many_places_of_several_factors_are_said_once_where_the_same_holds(begin: Begin) -> None:
    """Seen: six places of three factors, each named twice, in which nobody hears where one ends."""
    more = '"loss.name" = ["infonce", "flatnce"]\n"batch.size" = [16, 64, 256]\n'
    run = begin(temperatures([0.02, 0.1, 0.3], more), seeds=10)
    said = played(run, lambda own: 0.9 if own["loss.temperature"] == 0.1 else 0.5)
    assert said.startswith("Best temperature at every loss and batch: 0.1. On knn_accuracy, at every loss and batch: ")


@pytest.mark.parametrize("fallen", [{0.05}, {0.05, 0.5}])
def test_who_diverged_is_named_and_nobody_else(begin: Begin, fallen: set[float]) -> None:
    """Seen: "0.1 to 2.0 diverge" where the baseline alone did."""
    run = begin(temperatures([0.05, 0.1, 0.5, 1.0, 2.0]), seeds=8)
    said = played(run, lambda own: None if own["loss.temperature"] in fallen else 0.9)
    also = ", and so did 0.5" if 0.5 in fallen else ""
    assert f"On knn_accuracy, 0.05 diverged, so that nothing is compared with it{also}." in said


def test_an_arm_that_diverged_is_named_beside_the_others(begin: Begin) -> None:
    run = begin(temperatures([0.05, 0.1, 0.5, 1.0, 2.0]), seeds=8)
    said = played(run, lambda own: None if own["loss.temperature"] == 2.0 else 0.5 + own["loss.temperature"] / 4)
    assert "0.1 to 1.0 beat 0.05, and 2.0 diverges and is not compared with it." in said


def test_one_objective_computed_in_several_ways_is_no_question_of_the_best(begin: Begin) -> None:
    """Seen: "Best micro: 128. 8 to 128 are equivalent to 4"."""
    run = begin('[compare]\n"execution.micro" = [4, 8, 16, 32, 64]\n', seeds=8)
    said = played(run, lambda _: 0.9)
    assert said == "On knn_accuracy, 8 to 64 are one objective with 4."


def test_of_very_many_levels_there_is_a_number(begin: Begin) -> None:
    levels = [round(0.01 * k, 2) for k in range(1, 31)]
    run = begin(temperatures(levels), seeds=8)
    good = set(levels[1::2])
    said = played(run, lambda own: 0.9 if own["loss.temperature"] in good else 0.5)
    assert said.startswith("Best temperature: 15 of 30 levels, which are not told apart. On knn_accuracy, 15 of 30 ")


@pytest.mark.parametrize(
    ("best", "said"),
    [
        ([["b"], ["d"]], "Best temperature at every batch: 0.1."),
        ([["a"], ["d"]], "Best temperature at batch 16: 0.05; at batch 64: 0.1."),
    ],
)
def test_places_are_named_where_arms_have_labels_of_another_version(best: list[list[str]], said: str) -> None:
    """Their names are then the labels, which have no place. Seen: "at every : 0.1"."""
    strata = [
        StratumSummary({"batch.size": size}, arms, [0.05, 0.1], 8, [0.9, 0.9], own)
        for size, arms, own in zip((16, 64), (["a", "b"], ["c", "d"]), best, strict=True)
    ]
    arms: Any = [SimpleNamespace(label=label, settings={}) for label in "abcd"]
    assert best_levels(WhichSummary("loss.temperature", 0.025, strata, None), as_labelled(arms)) == said


# What qualifies a verdict, and what would settle one.

ABOVE = [0.0152, 0.0165, 0.0158, 0.0171, 0.0149, 0.0163, 0.0172, 0.0158]
"""Differences of eight seeds around 0.016, the smallest that matters here: better, perhaps by less than matters."""

FAR = [0.051, 0.049, 0.052, 0.048, 0.05, 0.0503, 0.0497, 0.05]
APART = [0.04, -0.03, 0.02, -0.035, 0.05, -0.02, 0.03, -0.04]
"""Which no eight seeds can tell from none, nor from 0.016."""


def compared(begin: Begin, *differences: Sequence[float], smallest: float = 0.016) -> report.Summary:
    """The answer on arms m0, m1, ... that differ by so much from the baseline, seed by seed."""
    labels = ["plain", *(f"m{k}" for k in range(len(differences)))]
    own = "".join(f'[[arm]]\nlabel = "{label}"\n"loss.margin" = {k / 100}\n' for k, label in enumerate(labels))
    run = begin(own, seeds=len(differences[0]), smallest=smallest)
    base = [0.8 + k / 1000 for k in range(len(differences[0]))]
    values = [[x + y for x, y in zip(base, d, strict=True)] for d in differences]
    return report.summarize(finished(run, dict(zip(labels, [base, *values], strict=True))).ledger)


def everywhere(answer: report.Summary) -> list[str]:
    """The verdicts as the page's table, the terminal and the plot of the differences have them."""
    names = names_of(answer.arms)
    grid = grids.comparisons(answer, names)
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(terminal.table(answer))
    plot = " ".join(text.get_text() for axes in draw_differences(looks_of(answer)).axes for text in axes.texts)
    cells = " ".join(row[grid.headings.index("verdict")] for row in grid.rows)
    return [" ".join(said.split()) for said in (cells, console.export_text(), plot)]


@pytest.mark.parametrize("contrasts", [1, 3, 4, 7])
def test_perhaps_by_less_than_matters_stands_wherever_the_verdict_stands(begin: Begin, contrasts: int) -> None:
    """Seen: gone from four contrasts on, and never in a table. Mutant check: the count of all claims."""
    small = contrasts - 1 if contrasts > 1 else 1
    answer = compared(begin, *[ABOVE] * small, *[FAR] * (contrasts - small))
    assert {c.result.verdict for c in answer.comparisons} == {"a_better"}
    if contrasts < 4:
        assert answer.sentence.count("perhaps by less than matters") == small
    else:
        assert answer.sentence.endswith(f" Of better and worse, {small} verdicts are perhaps by less than matters.")
    table, shown, plot = everywhere(answer)
    assert table.count("better, perhaps by less than matters") == small
    assert plot.count("better, perhaps by less than matters") == small
    assert shown.count("less than") >= small


@pytest.mark.parametrize("contrasts", [1, 4])
def test_how_many_seeds_would_settle_it_is_told_however_many_comparisons_there_are(
    begin: Begin, contrasts: int
) -> None:
    """Seen: in JSON alone from four contrasts on."""
    answer = compared(begin, APART, *[FAR] * (contrasts - 1))
    needed = answer.comparisons[0].result.needed
    assert needed is not None
    assert needed > 8
    if contrasts == 1:
        assert f"; about {about(needed)} seeds would tell a difference of 0.0160 from none." in answer.sentence
    grid = grids.comparisons(answer, names_of(answer.arms))
    column = grid.headings.index("seeds needed")
    assert [row[column] for row in grid.rows] == [about(needed), *["–"] * (contrasts - 1)]
    _, terminal_table, _ = everywhere(answer)
    assert "needed" in terminal_table
    assert about(needed) in terminal_table


def test_where_nothing_is_open_there_is_no_column_of_seeds(begin: Begin) -> None:
    answer = compared(begin, FAR)
    assert "seeds needed" not in grids.comparisons(answer, names_of(answer.arms)).headings


def test_seeds_that_should_have_told_say_that_the_difference_may_lie_between(begin: Begin) -> None:
    """Seen: nothing, where as many seeds were trained as are needed. Between none and 0.016 there is no verdict."""
    answer = compared(begin, [0.009 + (0.0142 + k / 10_000) * (-1) ** k for k in range(12)])
    (one,) = answer.comparisons
    assert one.result.verdict == "inconclusive"
    assert one.result.needed is not None
    assert one.result.needed <= one.result.n
    assert answer.sentence.endswith(
        "; these seeds would tell a difference of 0.0160 from none four times in five, and it may lie between the two."
    )
