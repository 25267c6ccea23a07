"""What the plots of a report hold, by their lines and marks; and what stands above all tables."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ledgers import BETTER, Begin, Run, finished, tuned
from matplotlib.axes import Axes
from matplotlib.lines import Line2D

from orchestrator import report
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.naming import names_of
from orchestrator.report.render.differences import draw_differences
from orchestrator.report.render.figure import INK, PAPER
from orchestrator.report.render.levels import caption_of_levels, draw_levels
from orchestrator.report.render.looks import looks_of
from orchestrator.report.render.tuned import caption_of_tuned, draw_tuned
from orchestrator.report.summary.evidence import space
from orchestrator.report.tables.answers import short_answers

CROSSED = '[compare]\n"loss.temperature" = [0.05, 0.1, 0.5]\n"batch.size" = [16, 64]\n'


def points(line: Line2D) -> list[tuple[float, float]]:
    return [(float(x), float(y)) for x, y in np.asarray(line.get_xydata(), float)]


def marks(axes: Axes, *markers: str) -> list[tuple[float, float]]:
    """Every point that is drawn with one of these markers."""
    return [point for line in axes.lines if line.get_marker() in markers for point in points(line)]


def crossed(begin: Begin, mode: str = "max") -> Run:
    """Temperature 0.1 is the best at either batch, by far, and 0.5 diverges in two seeds at batch 64."""
    run = begin(CROSSED, seeds=8, mode=mode)
    sign = 1 if mode == "max" else -1
    for arm in run.plan.arms:
        best = arm.settings["loss.temperature"] == 0.1
        for trial in run.confirm(arm.label):
            fallen = arm.label == "temperature=0.5, size=64" and trial.seed < 4
            outcome = "diverged" if fallen else "ok"
            run.done(trial, 0.5 + sign * (0.2 * best + trial.seed / 1000 * (1 + best)), outcome=outcome)
    return run


# The metric against the level.


def test_the_metric_is_drawn_against_ordered_levels_a_line_a_place_and_what_may_be_best_is_filled(
    begin: Begin,
) -> None:
    """Mutant checks: a line through all places, levels at equal distances, all marks filled."""
    looks = looks_of(report.summarize(crossed(begin).ledger))
    (axes,) = draw_levels(looks).axes
    means = {arm.label: arm.mean for arm in looks.answer.arms}
    assert axes.get_xscale() == "log", "0.5 is ten times 0.05"
    through = [[x for x, _ in points(line)] for line in axes.lines if line.get_linestyle() == "-"]
    assert through.count([0.05, 0.1, 0.5]) == 2
    assert {(x, round(y, 6)) for x, y in marks(axes, "o", "s")} == {
        (float(str(arm.settings["loss.temperature"])), round(means[arm.label] or 0.0, 6)) for arm in looks.answer.arms
    }
    filled = [line for line in axes.lines if line.get_marker() in ("o", "s") and line.get_markerfacecolor() != PAPER]
    assert {x for line in filled for x, _ in points(line)} == {0.1}
    assert [x for x, _ in marks(axes, "x")] == [0.5], "seeds diverged there"
    assert [text.get_text() for text in axes.texts] == ["knn_accuracy", "batch 16", "batch 64"]
    assert "A line for each batch." in str(caption_of_levels(looks))


def test_levels_without_an_order_are_not_drawn_against(begin: Begin) -> None:
    looks = looks_of(report.summarize(finished(begin(), BETTER).ledger))
    assert caption_of_levels(looks) is None


# Differences.


@pytest.mark.parametrize("mode", ["max", "min"])
def test_a_seed_that_diverged_is_marked_where_its_side_is_worse(begin: Begin, mode: str) -> None:
    """Mutant check: the left edge, whichever is better."""
    run = begin(mode=mode, seeds=8)
    for arm in ("plain", "flat"):
        for trial in run.confirm(arm):
            fallen = (arm, trial.seed) in [("flat", 1), ("plain", 2), ("flat", 3), ("plain", 3)]
            run.done(trial, 0.9 + trial.seed / 1000, outcome="diverged" if fallen else "ok")
    looks = looks_of(report.summarize(run.ledger))
    (axes,) = draw_differences(looks).axes
    crosses = sorted(x for x, _ in marks(axes, "x"))
    low, high = axes.get_xlim()
    assert len(crosses) == 3
    assert crosses[1] == 0.0, "both sides"
    assert low < crosses[0] < low + 0.1 * (high - low)
    assert high - 0.1 * (high - low) < crosses[2] < high
    by_height = {round(y, 6): x for x, y in marks(axes, "x")}
    of_flat = by_height[min(by_height)]  # pairs in the order of their seeds, from above
    assert (of_flat < 0) == (mode == "max")
    assert "3 of 8 diverged" in axes.texts[-1].get_text()


def test_names_stand_left_and_verdicts_right_of_the_panel(begin: Begin) -> None:
    """Seen: names and verdicts over each other and over the dots. Mutant check: either inside."""
    looks = looks_of(report.summarize(crossed(begin).ledger))
    figure = draw_differences(looks)
    (axes,) = figure.axes
    figure.canvas.draw()
    panel = axes.get_window_extent()
    for text in axes.texts:
        box, said = text.get_window_extent(), text.get_text()
        if said.startswith("at batch"):
            continue  # heads its rows, across the panel
        assert box.x1 <= panel.x0 or box.x0 >= panel.x1, said
        assert (box.x1 <= panel.x0) == (said in ("0.1", "0.5"))
    names = [text.get_text() for text in axes.texts]
    assert [said for said in names if said.startswith("at")] == [
        "at batch 16, against 0.05",
        "at batch 64, against 0.05",
    ]


# Tuned keys.


@pytest.mark.parametrize("log", [False, True])
def test_scores_are_drawn_against_what_was_tuned_with_the_chosen_ringed_and_the_edges_shaded(
    begin: Begin, tmp_path: Path, log: bool
) -> None:
    """Mutant checks: the edges of the values that were tried; a tenth of a logarithmic range on a linear scale."""
    run = tuned(tmp_path / "tuned")
    ranges: dict[str, JsonObject] = {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": log}}
    answer = report.summarize(run.ledger)
    looks = looks_of(answer)
    assert space(run.ledger)["optimizer.lr"]["low"] == 1e-4
    (axes,) = draw_tuned(looks, ranges).axes
    scored = {(s.params["optimizer.lr"], s.value) for arm in answer.arms if arm.tune for s in arm.tune.suggestions}
    assert set(marks(axes, "o", "s")) == {(x, y) for x, y in scored if y is not None}
    (rings,) = [points(line) for line in axes.lines if line.get_color() == INK]
    assert [x for x, _ in rings] == [2e-3, 2e-3], "one an arm"
    ends = sorted(x for patch in axes.patches for x in (patch.get_bbox().x0, patch.get_bbox().x1))  # type: ignore[attr-defined]
    tenth = [1e-4 * 100**0.1, 1e-2 / 100**0.1] if log else [1e-4 + 0.1 * 9.9e-3, 1e-2 - 0.1 * 9.9e-3]
    assert ends == pytest.approx([1e-4, *tenth, 1e-2])
    assert axes.get_xscale() == ("log" if log else "linear")
    assert caption_of_tuned(looks_of(report.summarize(begin().ledger))) is None
    run.ledger.close()


def test_choices_are_places_beside_each_other(tmp_path: Path) -> None:
    run = tuned(tmp_path / "tuned")
    (axes,) = draw_tuned(looks_of(report.summarize(run.ledger)), {"optimizer.lr": {"choices": [1e-3, 5e-3]}}).axes
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.001", "0.005", "0.002"]
    run.ledger.close()


# What stands above all tables.


def test_the_answers_say_how_sure_at_what_cost_and_how_to_run_it_again(begin: Begin) -> None:
    answer = report.summarize(finished(begin(seeds=6), BETTER).ledger)
    sure, cost, again = short_answers(answer, names_of(answer.arms), ["orchestrator launch demo.toml"])
    assert re.match(
        r"6 pairs of seeds, which would find a difference of 0\.\d{4} four times in five; one wrong", sure.text
    )
    assert cost.text == (
        "30 s of CPU or GPU in 12 confirm trials. flat trains 1.00 times as long as plain "
        "(2.50 s against 2.50 s a trial), with 1.00 times the memory."
    )
    assert again == replace(again, text="orchestrator launch demo.toml", is_command=True)


def test_nothing_is_said_of_what_is_not_known(begin: Begin) -> None:
    answer = report.summarize(begin().ledger)
    (sure,) = short_answers(answer, names_of(answer.arms), [])
    assert sure.text.startswith("0 pairs of seeds; one wrong claim")


# MLflow.


def test_the_page_links_to_mlflow_s_and_no_other_kind_of_address_is_a_link(begin: Begin, tmp_path: Path) -> None:
    """Mutant check: an address of any scheme."""
    run = finished(begin(), BETTER)
    assert "In MLflow" not in _written(run, tmp_path / "a", ())
    run.ledger.set_run(mlflow_experiment_id="7", mlflow_run_id="f00d")
    assert "run f00d of experiment 7; orchestrator ui opens its pages." in _written(run, tmp_path / "b", ())
    page = 'http://127.0.0.1:5000/#/experiments/7/runs/f00d?a=1&b="2"'
    html = _written(run, tmp_path / "c", [("this run", page), ("charts", "javascript:alert(1)")])
    assert re.findall(r"<a href=\"([^\"]*)\">([^<]*)</a>", html) == [
        (page.replace("&", "&amp;").replace('"', "&quot;"), "this run")
    ]
    assert "charts (javascript:alert(1))" in html


def _written(run: Run, folder: Path, pages: object) -> str:
    report.write(run.ledger, folder, None, pages)  # type: ignore[arg-type]
    return (folder / "report.html").read_text("utf-8")
