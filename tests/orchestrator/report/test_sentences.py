"""What the sentence above a report claims, case by case: ranges, places, what diverged, one objective."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import pytest
from ledgers import Begin, Run, answer_of

from orchestrator.report.naming import as_labelled
from orchestrator.report.summary.records import StratumSummary, WhichSummary
from orchestrator.report.summary.sentences import best_levels

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
