"""What the plots of a report hold, by their lines and marks; and what stands above all tables."""

from __future__ import annotations

import itertools
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from ledgers import BETTER, Begin, Run, finished, tuned
from matplotlib.axes import Axes
from matplotlib.colors import to_rgba
from matplotlib.lines import Line2D

from orchestrator import report
from orchestrator.ledger import Suggestion, Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.naming import names_of
from orchestrator.report.render.cost import draw_cost, known_costs
from orchestrator.report.render.differences import draw_differences
from orchestrator.report.render.figure import INK, MUTED, PAPER
from orchestrator.report.render.levels import caption_of_levels, draw_levels
from orchestrator.report.render.lines import draw_curves
from orchestrator.report.render.looks import looks_of
from orchestrator.report.render.tuned import caption_of_tuned, draw_tuned
from orchestrator.report.summary.evidence import STAGES, curves, space
from orchestrator.report.summary.records import LooksSummary
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
    through = [[x for x, _ in points(line)] for line in axes.lines if line.get_marker() == "None"]
    assert through.count([0.05, 0.1, 0.5]) == 2
    assert {(x, round(y, 6)) for x, y in marks(axes, "o", "s")} == {
        (float(str(arm.settings["loss.temperature"])), round(means[arm.label] or 0.0, 6)) for arm in looks.answer.arms
    }
    filled = [line for line in axes.lines if line.get_marker() in ("o", "s") and line.get_markerfacecolor() != PAPER]
    assert {x for line in filled for x, _ in points(line)} == {0.1}
    assert [x for x, _ in marks(axes, "x")] == [0.5], "seeds diverged there"
    assert [text.get_text() for text in axes.texts] == ["knn_accuracy", "batch 16", "batch 64"]
    assert "A line for each batch." in str(caption_of_levels(looks))
    assert str(caption_of_levels(looks)).endswith(" seeds diverged there, at batch 64."), "whose the cross is"


def named(*arms: tuple[str, str, float | None]) -> str:
    """Tables of arms: label, loss, temperature."""
    tables = []
    for label, loss, temperature in arms:
        known = "" if temperature is None else f'"loss.temperature" = {temperature}\n'
        tables.append(f'[[arm]]\nlabel = "{label}"\n"loss.name" = "{loss}"\n{known}')
    return "\n".join(tables)


GRID = [
    (f"{word}, {t}", loss, t) for word, loss in (("plain", "infonce"), ("flat", "flatnce")) for t in (0.02, 0.2, 0.5)
]


def test_named_arms_that_set_one_number_are_lines_against_it_and_one_that_does_not_goes_across(begin: Begin) -> None:
    """Mutant checks: a line through arms that differ in more; no line across; a legend by what is set, where the labels
    have words for it."""
    run = begin(named(("as it is", "dcl", None), *GRID), seeds=3)
    for k, arm in enumerate(run.plan.arms):
        for trial in run.confirm(arm.label):
            run.done(trial, 0.5 + k / 10 + trial.seed / 100)
    looks = looks_of(report.summarize(run.ledger))
    (axes,) = draw_levels(looks).axes
    means = [arm.mean or 0.0 for arm in looks.answer.arms]
    lines = [points(line) for line in axes.lines if line.get_marker() == "None"]
    at = (0.02, 0.2, 0.5)
    drawn = [line for line in lines if len(line) == 3]
    for line, expected in zip(drawn, (means[1:4], means[4:]), strict=True):
        assert [x for x, _ in line] == [*at]
        assert [y for _, y in line] == pytest.approx(expected)
    assert [y for line in lines if len(line) == 2 for _, y in line] == [means[0]] * 2
    assert [text.get_text() for text in axes.texts] == ["knn_accuracy", "plain", "flat", "as it is"]
    caption = str(caption_of_levels(looks))
    assert caption.startswith("A line for each loss. Mean over the confirm seeds")
    assert caption.endswith("Across: as it is.")


@pytest.mark.parametrize(
    "arms",
    [
        [("one", "infonce", 0.02), ("two", "infonce", 0.2), ("three", "flatnce", 0.5)],
        [("one", "infonce", None), ("two", "flatnce", None)],
    ],
)
def test_named_arms_without_a_number_that_makes_a_line_have_no_such_figure(
    begin: Begin, arms: list[tuple[str, str, float | None]]
) -> None:
    run = begin(named(*arms), seeds=3)
    for arm in run.plan.arms:
        for trial in run.confirm(arm.label):
            run.done(trial, 0.5 + trial.seed / 100)
    assert caption_of_levels(looks_of(report.summarize(run.ledger))) is None


@pytest.mark.parametrize("way", ["lost", "few", "diverged"])
def test_levels_are_drawn_by_their_means_where_the_best_is_not_judged(begin: Begin, way: str) -> None:
    """Seen: no figure after one lost seed. Mutant check: drawn where the question is answered alone."""
    run = begin(CROSSED, seeds=3 if way == "few" else 8)
    for arm in run.plan.arms:
        for trial in run.confirm(arm.label):
            bad = arm.label == "temperature=0.1, size=64"
            if bad and way == "lost":
                run.lost(trial)
            else:
                run.done(trial, 0.5 + trial.seed / 100, outcome="diverged" if bad and way == "diverged" else "ok")
    looks = looks_of(report.summarize(run.ledger))
    (axes,) = draw_levels(looks).axes
    drawn = marks(axes, "o", "s")
    assert len(drawn) == sum(arm.mean is not None for arm in looks.answer.arms)
    assert ("Filled" in str(caption_of_levels(looks))) == (way != "few")
    assert ("Small: where that is not judged" in str(caption_of_levels(looks))) == (way == "lost")


@pytest.mark.parametrize(("places", "lost"), [(7, False), (8, True), (26, False)])
def test_many_places_have_a_panel_each_with_the_same_limits(begin: Begin, places: int, lost: bool) -> None:
    """Seen: no figure of more than six. Mutant check: limits of each panel alone."""
    sizes = [4 * k for k in range(2, places + 2)]
    run = begin(f'[compare]\n"loss.temperature" = [0.05, 0.1, 0.5]\n"batch.size" = {sizes}\n', seeds=8)
    for k, arm in enumerate(run.plan.arms):
        for trial in run.confirm(arm.label):
            if lost and k == 4 and trial.seed == 2:
                run.lost(trial)
            else:
                run.done(trial, 0.5 + k / 100 + trial.seed / 1000)
    looks = looks_of(report.summarize(run.ledger))
    figure = draw_levels(looks)
    figure.canvas.draw()
    panels = min(places, 24)
    assert len(figure.axes) == panels
    assert len({(axes.get_xlim(), axes.get_ylim()) for axes in figure.axes}) == 1
    assert [axes.get_title(loc="left") for axes in figure.axes] == [f"batch {size}" for size in sizes[:panels]]
    assert all(len(marks(axes, "o")) == 3 for axes in figure.axes)
    assert {line.get_color() for axes in figure.axes for line in axes.lines if line.get_marker() == "o"} == {INK}
    boxes = [text.get_window_extent() for axes in figure.axes for text in (axes.title, *axes.get_xticklabels())]
    assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 for box in boxes)
    assert ("2 more places" in str(caption_of_levels(looks))) == (places == 26)


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
    assert [tick.get_text() for tick in axes.get_xticklabels()] == ["0.001", "0.002", "0.005"], "in their order"
    run.ledger.close()


def many_tuned(begin: Begin, arms: int, *, ended: bool = True) -> report.Summary:
    """Named arms that are tuned over two keys, of which some settings lack the second."""
    labels = [f"method-{chr(97 + k)}" for k in range(arms)]
    own = "".join(f'[[arm]]\nlabel = "{label}"\n"loss.margin" = {k / 100}\n' for k, label in enumerate(labels))
    run = begin(
        own,
        tune='[tune]\ntrials = 3\nsampler = "random"\n[tune.space]\n"optimizer.lr" = { low = 1e-4, high = 1e-1 }\n'
        '"optimizer.weight_decay" = { low = 1e-6, high = 1e-2 }\n',
    )
    for k, label in enumerate(labels):
        for number in range(3):
            setting: JsonObject = {"optimizer.lr": 1e-3 * (number + 1 + k / 10)}
            if number != 1:
                setting["optimizer.weight_decay"] = 1e-4 * (number + 1)
            planned = run.plan.tune_trials(label, number, {**setting, "optimizer.weight_decay": 1e-4 * (number + 1)})
            trials = [Trial(p.id, "tune", label, p.seed, p.job.model_dump(mode="json"), number=number) for p in planned]
            run.ledger.add_suggestion(Suggestion(label, number, setting, tuple(t.id for t in trials)), trials)
            for trial in trials:
                run.done(trial, 0.5 + k / 50 + number / 200)
        if ended:
            run.ledger.freeze(label, {"optimizer.lr": 1e-3 * (2 + k / 10)}, 1, "abc")
            for trial in run.confirm(label):
                run.done(trial, 0.6 + k / 50 + trial.seed / 1000, seconds=10.0 + k)
    return report.summarize(run.ledger)


def unexplained(axes: Axes) -> set[str]:
    """The colours of marks that no name beside the panel has."""
    named = {str(text.arrow_patch.get_edgecolor()) for text in axes.texts if text.arrow_patch is not None}  # type: ignore[attr-defined]
    drawn = {line.get_color() for line in axes.lines if line.get_marker() not in ("None", "") and points(line)}
    return {str(colour) for colour in drawn if colour not in (INK, MUTED) and str(to_rgba(colour, 0.6)) not in named}


@pytest.mark.parametrize("ended", [True, False], ids=["ended", "tuning"])
@pytest.mark.parametrize("arms", [4, 6, 8, 26])
def test_every_colour_of_what_was_tuned_has_a_name(begin: Begin, arms: int, ended: bool) -> None:
    """Seen: eight arms in six colours, with rings and no name; and none of anybody while tuning. Mutant check: all
    colours kept, or names at rings alone."""
    looks = looks_of(many_tuned(begin, arms, ended=ended))
    figure = draw_tuned(looks, {})
    figure.canvas.draw()
    assert len(figure.axes) == 2
    for axes in figure.axes:
        assert unexplained(axes) == set()
        names = [text for text in axes.texts if text.get_text().startswith("method")]
        assert len(names) == (min(arms, 6) if ended or arms <= 6 else 1)
        assert all(text.get_window_extent().y0 >= 0 for text in names)
    assert ("grey: the others" in str(caption_of_tuned(looks))) == (arms > 6)


@pytest.mark.parametrize("arms", [5, 8, 26])
def test_every_colour_of_a_cost_has_a_name(begin: Begin, arms: int) -> None:
    """Seen: colours of arms that are beaten at a lower cost, which nothing names."""
    looks = looks_of(many_tuned(begin, arms))
    for axes in draw_cost(looks, known_costs(looks)).axes:
        assert unexplained(axes) == set()
        names = [text for text in axes.texts if text.get_text().startswith("method")]
        grey = [
            point
            for line in axes.lines
            if line.get_color() == MUTED and line.get_markersize() == 8
            for point in points(line)
        ]
        assert len(grey) == arms - len(names), "who is named is not grey"


# What stands above all tables.


def test_the_answers_say_how_sure_at_what_cost_and_how_to_run_it_again(begin: Begin) -> None:
    answer = report.summarize(finished(begin(seeds=6), BETTER).ledger)
    sure, cost, again = short_answers(answer, names_of(answer.arms), ["orchestrator launch demo.toml"])
    assert re.match(
        r"6 pairs of seeds, which would find a difference of 0\.\d{4} four times in five; the chance", sure.text
    )
    assert cost.text == (
        "30.0 s of CPU or GPU. flat trains as long as plain (2.50 s against 2.50 s a trial), with as much memory."
    )
    assert again == replace(again, text="orchestrator launch demo.toml", is_command=True)


def test_nothing_is_said_of_what_is_not_known(begin: Begin) -> None:
    answer = report.summarize(begin().ledger)
    (sure,) = short_answers(answer, names_of(answer.arms), [])
    assert sure.text == "Nothing is claimed yet."


def test_what_tuning_took_is_part_of_the_cost(tmp_path: Path) -> None:
    """Seen: the confirm trials alone, which are often the smaller part."""
    run = tuned(tmp_path / "tuned")
    answer = report.summarize(run.ledger)
    _, cost = short_answers(answer, names_of(answer.arms), [])
    took = [sum(trial.came_to.seconds or 0.0 for trial in run.ledger.trials(stage)) for stage in STAGES[:2]]
    tune, confirm = (f"{seconds:.1f}" if seconds < 100 else f"{seconds:.0f}" for seconds in took)
    assert f" of CPU or GPU: {tune} s to tune and {confirm} s to confirm. flat trains 1.08 times as" in cost.text
    run.ledger.close()


def test_an_arm_that_diverged_is_no_fast_one_and_few_seconds_are_not_minutes(begin: Begin) -> None:
    """Seen: "A trial trains 0.56 s (2.0)", which diverged; and "2 min against 2 min" of 100 and 145 s."""
    run = begin('[compare]\n"loss.temperature" = [0.05, 0.1, 2.0]\n', seeds=6)
    for arm in run.plan.arms:
        took = {"temperature=0.05": 100.0, "temperature=0.1": 145.0}.get(arm.label, 0.56)
        for trial in run.confirm(arm.label):
            run.done(trial, 0.9, outcome="diverged" if took < 1 else "ok", seconds=took)
    answer = report.summarize(run.ledger)
    cost = next(one.text for one in short_answers(answer, names_of(answer.arms), []) if one.key == "cost")
    assert "A trial trains 100 s (0.05) to 145 s (0.1)." in cost


def test_with_looks_nothing_is_said_of_what_would_be_found(begin: Begin) -> None:
    """Each has a part of the level. Mutant check: the whole of it at the look that was taken."""
    answer = report.summarize(finished(begin(seeds=6), BETTER).ledger)
    looked = replace(answer, looks=LooksSummary((6, 8), 1, "settled", {}))
    assert "would find" in next(iter(short_answers(answer, names_of(answer.arms), []))).text
    assert "would find" not in next(iter(short_answers(looked, names_of(answer.arms), []))).text


def test_a_default_outside_the_range_that_was_chosen_is_in_view(tmp_path: Path) -> None:
    """Seen: no ring anywhere, and a line from its name across the panel."""
    run = tuned(tmp_path / "tuned")
    ranges: list[JsonObject] = [{"low": 1e-5, "high": 1e-3}, {"low": 4e-3, "high": 1e-2, "log": True}]
    for own in ranges:
        (axes,) = draw_tuned(looks_of(report.summarize(run.ledger)), {"optimizer.lr": own}).axes
        low, high = axes.get_xlim()
        assert all(low <= x <= high for x, _ in marks(axes, "o", "s"))
    run.ledger.close()


def test_every_label_beside_a_panel_is_within_the_figure(begin: Begin) -> None:
    """Seen: the last of six long names across the lower edge. Mutant check: one height for any names."""
    arms = "".join(
        f'[[arm]]\nlabel = "accumulate-gradients-over-pools-of-{n}"\n"loss.margin" = {n / 100}\n' for n in range(6)
    )
    run = begin(arms)
    finished(run, {arm.label: [0.9 + k / 1000 for k in range(6)] for arm in run.plan.arms})
    summary = report.summarize(run.ledger)
    figure = draw_curves(looks_of(summary), curves(run.ledger, summary))
    figure.canvas.draw()
    (axes,) = figure.axes
    for text in axes.texts:
        box = text.get_window_extent()
        assert box.y0 >= 0
        assert box.y1 <= figure.bbox.y1


def test_numbers_below_levels_do_not_touch(begin: Begin) -> None:
    """Seen: "16384 32768 65536" run together."""
    run = begin('[compare]\n"model.projection_width" = [1024, 4096, 8192, 16384, 32768, 65536]\n')
    finished(run, {arm.label: [0.5 + n / 10 + k / 1000 for k in range(6)] for n, arm in enumerate(run.plan.arms)})
    figure = draw_levels(looks_of(report.summarize(run.ledger)))
    figure.canvas.draw()
    boxes = [tick.get_window_extent() for tick in figure.axes[0].get_xticklabels() if tick.get_text()]
    assert len(boxes) > 2
    assert all(a.x1 < b.x0 for a, b in itertools.pairwise(boxes))


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
