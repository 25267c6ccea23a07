"""The report against a real ledger: every number is the ledger's, and what is missing is said at every moment."""

from __future__ import annotations

import io
import itertools
import json
import math
import re
import resource
import struct
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from statistics import fmean
from typing import Any
from xml.etree import ElementTree as ET

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import BETTER, TUNED, TWO, Begin, Run, Written, answer_of, finished
from matplotlib.figure import Figure
from rich.console import Console

from orchestrator import report
from orchestrator.ledger import Point, Suggestion, Trial
from orchestrator.report import formatting
from orchestrator.report.naming import names_of
from orchestrator.report.render import figure, page, plots
from orchestrator.report.render.cost import cost_limits
from orchestrator.report.render.looks import looks_of
from orchestrator.report.summary import pairs
from orchestrator.report.summary.evidence import curves
from orchestrator.report.tables import blocks, grids
from orchestrator.report.tables.content import Page as Words
from orchestrator.run_dir import provenance
from orchestrator.statistics import t_interval

DRAWN = ("differences", "curves", "cost", "tuned", "tuning")
"""The plots of `written`, whose question is not which of several levels."""


def words(*content: blocks.Block) -> Words:
    """A page that says this and little else."""
    return Words("Q", "T", ["V"], "S", [], content)


def test_a_finished_run_gives_the_pinned_answer(begin: Begin) -> None:
    found = answer_of(finished(begin(), BETTER).ledger)
    (one,) = found["comparisons"]
    d = np.subtract(BETTER["flat"], BETTER["plain"])
    assert (found["question"], found["metric"], found["complete"]) == ("Is flat better?", "knn_accuracy", True)
    assert (one["a"], one["b"], one["verdict"]) == ("flat", "plain", "a_better")
    assert [one[key] for key in ("p", "p_adjusted", "p_holm")] == [1 / 32] * 3
    assert found["alpha"] == {"difference": 0.05, "equivalence": 0.05}
    assert (one["interval"], one["interval_kind"]) == (pytest.approx([d.min(), d.max()]), "difference")
    assert one["delta"] == pytest.approx(d.mean())
    assert one["ci95"] == pytest.approx(t_interval(d))
    plain, flat = found["arms"]
    assert [arm["label"] for arm in found["arms"]] == ["plain", "flat"]
    assert (flat["n"], flat["diverged"], flat["samples"], flat["steps"]) == (6, 0, 768, 3)
    assert flat["mean"] == fmean(BETTER["flat"])
    assert flat["ci95"] == list(t_interval(BETTER["flat"]) or ())
    assert flat["samples_per_second"] == pytest.approx(768 / 2.5)
    assert plain["peak_memory_mb"] == 105, "the largest of the seeds"
    assert found["sentence"].startswith("flat beats plain by 0.0175 knn_accuracy (interval [+0.0")
    assert found["notes"] == []


def test_trials_whose_batches_lost_most_negatives_are_noted(begin: Begin) -> None:
    ledger = finished(begin(), BETTER).ledger
    trials = [trial for trial in ledger.trials("confirm") if trial.arm == "flat"][:2]
    for trial in trials:
        ledger.event("batch", "step 3: 40 of the batch's 56 negatives are left out", trial.id)
    (note,) = answer_of(ledger)["notes"]
    assert note.startswith("2 confirm trials of flat had a batch of which more than half of the negatives")


def test_an_answer_is_plain_json_at_every_moment_of_a_run(begin: Begin) -> None:
    run = begin(tune=TUNED)
    said = [answer_of(run.ledger)["sentence"]]
    for p in run.plan.tune_trials("plain", 0, {"optimizer.lr": 1e-3}):
        trial = Trial(p.id, "tune", p.arm, p.seed, p.job.model_dump(mode="json"), number=0)
        run.ledger.add_suggestion(Suggestion("plain", 0, {"optimizer.lr": 1e-3}, (trial.id,)), [trial])
        run.done(trial, 0.8)
        break
    said.append(answer_of(run.ledger)["sentence"])
    for arm in ("plain", "flat"):
        for trial in run.confirm(arm):
            run.done(trial, 0.9)
            found = answer_of(run.ledger)
            assert json.loads(json.dumps(found, allow_nan=False)) == found
            said.append(found["sentence"])
    assert said[:8] == ["No verdict yet: no comparison has a pair of finished confirm trials."] * 8
    open_ = "Not complete: at the settings chosen, flat against plain is inconclusive"
    assert all(sentence.startswith(open_) for sentence in said[8:-1])
    assert said[-1].startswith("At the settings chosen, flat and plain are equivalent"), said[-1]


def test_a_run_in_the_middle_says_what_is_missing_and_decides_nothing(begin: Begin) -> None:
    """All six differences would have one sign. Mutant check: passing only the seeds at hand to compare fails this."""
    run = begin()
    for arm in ("plain", "flat"):
        for trial, metric in list(zip(run.confirm(arm), BETTER[arm], strict=True))[: 6 if arm == "plain" else 5]:
            run.done(trial, metric)
    found = answer_of(run.ledger)
    (one,) = found["comparisons"]
    assert (one["n"], one["verdict"], found["complete"]) == (5, "inconclusive", False)
    assert found["notes"][0].startswith("1 of 12 confirm trials has no result yet")


def test_a_seed_lost_to_infrastructure_is_named_and_decides_nothing(begin: Begin) -> None:
    run = begin()
    for arm in ("plain", "flat"):
        for k, (trial, metric) in enumerate(zip(run.confirm(arm), BETTER[arm], strict=True)):
            run.lost(trial) if (arm, k) == ("flat", 2) else run.done(trial, metric)
    found = answer_of(run.ledger)
    assert found["comparisons"][0]["verdict"] == "inconclusive"
    assert found["comparisons"][0]["n"] == 5
    (failure,) = found["failures"]
    assert (failure["arm"], failure["seed"], failure["failure"]) == ("flat", 2, "worker_lost")
    assert any(note.startswith("flat, seed 2 is lost (worker_lost") for note in found["notes"])


def ended(begin: Begin, diverged: Mapping[str, Collection[int]], mode: str = "max") -> dict[str, Any]:
    """The answer of a run in which these seeds of these arms diverged, and the others ended as in BETTER."""
    run = begin(mode=mode)
    for arm in ("plain", "flat"):
        for trial, metric in zip(run.confirm(arm), BETTER[arm], strict=True):
            run.done(trial, metric, outcome="diverged" if trial.seed in diverged.get(arm, ()) else "ok")
    run.ledger.set_run(state="done")
    return answer_of(run.ledger)


def test_seeds_that_are_lost_alike_are_one_note(begin: Begin) -> None:
    """Seen: eight notes on eight seeds. Mutant check: a note for each."""
    run = begin(seeds=8)
    for arm in ("plain", "flat"):
        for trial in run.confirm(arm):
            run.lost(trial) if arm == "flat" and trial.seed > 1 else run.done(trial, 0.9)
    lost = [note for note in answer_of(run.ledger)["notes"] if "lost" in note]
    assert lost == ["flat, seeds 2-7 are lost (worker_lost): its comparisons are inconclusive."]


def test_a_diverged_seed_has_no_metric_and_counts_against_its_arm(begin: Begin) -> None:
    """Flat is better in the five other seeds. Mutant checks: dropping the pair (p = 0.0625 of five) fails this, and so
    does counting it for flat."""
    found = ended(begin, {"flat": [4]})
    flat, (one,) = found["arms"][1], found["comparisons"]
    assert (flat["n"], flat["diverged"], flat["divergence_rate"]) == (5, 1, 1 / 6)
    assert flat["divergence_ci95"] == pytest.approx([0.0301, 0.5635], abs=1e-4), "Wilson's interval of 1 in 6"
    assert [value["value"] for value in flat["values"] if value["diverged"]] == [None]
    assert flat["mean"] == pytest.approx(fmean([*BETTER["flat"][:4], BETTER["flat"][5]]))
    assert (one["verdict"], one["n"], one["n_trained"], one["delta"]) == ("inconclusive", 6, 5, None)
    assert one["diverged"] == {"a": 1, "b": 0, "both": 0}
    assert one["delta_trained"] == pytest.approx(0.018)
    assert (one["p_equivalence"], one["p_equivalence_holm"]) == (None, 1.0), "it still counts among several"
    assert one["p"] > 0.0625
    assert one["differences"][4] == {"seed": 4, "value": None, "diverged": "a"}
    assert found["complete"], "nothing is missing: the seed counts"
    assert "1 of 12 confirm trials diverged" in " ".join(found["notes"])
    assert "flat diverged in 1 of 6 seeds" in found["sentence"]


@pytest.mark.parametrize("mode", ["max", "min"])
@pytest.mark.parametrize("fallen", [{"flat": range(6)}, {"flat": [0, 2, 5]}, {"plain": range(6), "flat": range(6)}])
def test_an_arm_that_diverged_in_half_of_its_seeds_is_not_compared(
    begin: Begin, mode: str, fallen: dict[str, Any]
) -> None:
    """Seen: "lr=100000000.0 beats lr=0.0003", and two arms that both diverge "equivalent"."""
    found = ended(begin, fallen, mode)
    (one,) = found["comparisons"]
    assert one["verdict"] == "diverges"
    assert set(one["diverged_arms"]) == set(fallen)
    assert (one["delta"], one["ci90"], one["p_equivalence"]) == (None, None, None)
    assert f"flat diverged in {len(fallen['flat'])} of 6 seeds" in found["sentence"]
    assert "beats" not in found["sentence"]


@pytest.mark.parametrize(
    ("diverged", "trained", "words"),
    [
        (1, 1, "flat diverged in 1 of 2 seeds that did not fail (8 did): it is not compared with plain"),
        (4, 0, "flat diverged in 4 of 4 seeds that did not fail (6 did): it is not compared with plain"),
        (1, 2, None),
    ],
    ids=["1 of 2", "4 of 4", "1 of 3"],
)
def test_a_seed_that_failed_says_neither_that_it_diverged_nor_that_it_trained(
    begin: Begin, diverged: int, trained: int, words: str | None
) -> None:
    """Mutant check: words that are silent on those that failed, or a rule that counts them as trained."""
    run = begin(seeds=10)
    for trial in run.confirm("plain"):
        run.done(trial, 0.9)
    for k, trial in enumerate(run.confirm("flat")):
        if k >= diverged + trained:
            run.lost(trial)
        else:
            run.done(trial, 0.9, outcome="diverged" if k < diverged else "ok")
    run.ledger.set_run(state="done")
    found = answer_of(run.ledger)
    assert found["comparisons"][0]["verdict"] == ("diverges" if words else "inconclusive")
    assert words is None or words in found["sentence"]
    assert found["arms"][1]["divergence_rate"] == diverged / (diverged + trained)


def test_a_diverged_trial_of_an_older_ledger_has_no_value_either(begin: Begin) -> None:
    """There it was written down with the metric of its untrained encoder."""
    run = begin()
    for arm in ("plain", "flat"):
        for trial, metric in zip(run.confirm(arm), BETTER[arm], strict=True):
            attempt = run.ledger.start_attempt(trial.id, {}, "host")
            outcome: Any = "diverged" if arm == "flat" else "ok"
            run.ledger.finish_attempt(
                trial.id, attempt, state="done", outcome=outcome, metric=metric, metrics={"knn_accuracy": metric}
            )
    found = answer_of(run.ledger)
    assert (found["arms"][1]["n"], found["arms"][1]["mean"]) == (0, None)
    assert found["comparisons"][0]["verdict"] == "diverges"


def test_in_mode_min_the_lower_arm_wins_and_delta_keeps_its_sign(begin: Begin) -> None:
    found = answer_of(finished(begin(mode="min"), BETTER).ledger)
    (one,) = found["comparisons"]
    assert one["delta"] > 0
    assert one["verdict"] == "b_better"
    assert found["sentence"].startswith("plain beats flat by")


def test_arms_that_differ_in_execution_only_are_checked_against_each_other(begin: Begin) -> None:
    arms = '[[arm]]\nlabel = "whole"\n[[arm]]\nlabel = "chunks"\n"execution.micro" = 32\n' + TWO.split("\n", 2)[2]
    values = {"whole": BETTER["plain"], "chunks": [x + 1e-4 for x in BETTER["plain"]], "flat": BETTER["flat"]}
    found = answer_of(finished(begin(arms), values).ledger)
    (pair,) = found["execution_only"]
    assert (pair["a"], pair["b"], pair["n"], pair["agree"]) == ("chunks", "whole", 6, True)
    assert pair["largest_difference"] == pytest.approx(1e-4)
    apart = values | {"chunks": [x + 0.02 for x in BETTER["plain"]]}
    found = answer_of(finished(begin(arms), apart).ledger)
    assert found["execution_only"][0]["agree"] is False
    assert any("differ in execution only and should agree" in note for note in found["notes"])


@pytest.mark.parametrize(
    ("fallen", "verdict", "seeds"),
    [
        ({"chunks": [2, 4]}, "inconclusive", [2, 4]),
        ({"whole": [3]}, "inconclusive", [3]),
        ({"whole": [1], "chunks": [5]}, "inconclusive", [1, 5]),
        ({"whole": [1, 2], "chunks": [1, 2]}, "equivalent", []),
        ({"chunks": [0, 1, 2]}, "diverges", [0, 1, 2]),
    ],
)
def test_one_objective_of_which_one_way_alone_diverges_does_not_agree(
    begin: Begin, fallen: dict[str, list[int]], verdict: str, seeds: list[int]
) -> None:
    """Seen: `equivalent`, "equal in each of 4 seeds", agree. Mutant check: comparing the seeds that both trained."""
    arms = '[[arm]]\nlabel = "whole"\n[[arm]]\nlabel = "chunks"\n"execution.micro" = 32\n'
    run = begin(arms)
    for arm in ("whole", "chunks"):
        for trial, metric in zip(run.confirm(arm), BETTER["plain"], strict=True):
            run.done(trial, metric, outcome="diverged" if trial.seed in fallen.get(arm, ()) else "ok")
    found = answer_of(run.ledger)
    (one,), (pair,) = found["comparisons"], found["execution_only"]
    assert (one["same_objective"], one["verdict"], one["complete"]) == (True, verdict, True)
    assert (pair["agree"], pair["diverged_alone"]) == (not seeds, seeds)
    says = [note for note in found["notes"] if "differ in execution only and should agree" in note]
    shown = f"seed{'s' * (len(seeds) > 1)} {', '.join(map(str, seeds))}"
    both = "chunks and whole differ in execution only and should agree"
    assert says == [f"{both}; one of them alone diverged in {shown}."] * bool(seeds)
    if verdict == "inconclusive":
        assert "are one objective, computed in two ways, and do not agree: " in found["sentence"]
        assert all(f"{arm} diverged in" in found["sentence"] or f"{arm} in " in found["sentence"] for arm in fallen)
        assert found["sentence"].endswith(
            f"; where both trained, equal in knn_accuracy in each of {6 - len(seeds)} seeds."
        )


@pytest.mark.parametrize(
    ("plain", "flat", "held", "said"),
    [
        ({"samples": 1000}, {"samples": 1000}, "samples", "1,000 pairs, rounded down"),
        ({"samples": 1000}, {"samples": 1023}, "samples", "1,000 pairs, 1,023 pairs, rounded down"),
        ({"samples": 1000}, {"samples": 2000}, None, "nothing (1,000 pairs, 2,000 pairs)"),
        ({"steps": 3}, {"steps": 3}, "steps", "3 steps"),
        ({"steps": 3}, {"steps": 4}, None, "nothing (3 steps, 4 steps)"),
        ({"seconds": 30.0}, {"seconds": 30.0}, "seconds", "30 seconds"),
        ({"seconds": 30.0}, {"seconds": 30.5}, None, "nothing (30 seconds, 30.5 seconds)"),
        ({"samples": 768}, {"steps": 3}, None, "nothing (768 pairs, 3 steps)"),
    ],
)
def test_the_budget_that_arms_declare_is_told_as_held_equal_or_noted(
    begin: Begin, plain: dict[str, Any], flat: dict[str, Any], held: str | None, said: str
) -> None:
    """Mutant check: judging by what trials saw, which differs with a budget in seconds, fails this."""
    run = begin()
    for arm, budget in (("plain", plain), ("flat", flat)):
        for trial in run.confirm(arm, budget={"samples": None, "steps": None} | budget):
            run.done(trial, 0.9, step=3 + trial.seed, samples=256 * (3 + trial.seed))
    found = report.summarize(run.ledger)
    assert found.held_equal == held
    assert [arm.budget for arm in found.arms] == [plain, flat]
    noted = [note for note in found.notes if note.startswith("The budget is not equal: arms declare ")]
    assert len(noted) == (held is None)
    assert f"Held equal between the arms: {said}" in page.markdown(words(*grids.cost(found, names_of(found.arms))))


def test_the_budget_of_arms_that_have_not_begun_is_the_plans(begin: Begin) -> None:
    found = answer_of(begin(TWO + '"budget.samples" = 2000\n').ledger)
    assert [arm["budget"] for arm in found["arms"]] == [{"samples": 1000}, {"samples": 2000}]
    assert [(arm["samples"], arm["steps"], arm["seconds"]) for arm in found["arms"]] == [
        (768, 3, None),
        (1792, 7, None),
    ]
    assert found["notes"][-1] == "The budget is not equal: arms declare 1,000 pairs, 2,000 pairs."


def test_what_training_took_is_the_mean_with_its_range(begin: Begin) -> None:
    """As with a budget in seconds, where no two trials take as many steps. Mutant check: a mean over the trials that
    agree, or none where they differ, fails this."""
    run = begin()
    for trial in run.confirm("plain"):
        run.done(trial, 0.9, step=100 + trial.seed, samples=256 * (100 + trial.seed), seconds=30.0 + trial.seed / 1000)
    (plain, flat) = answer_of(run.ledger)["arms"]
    assert (plain["steps"], plain["steps_range"]) == (102.5, [100, 105])
    assert (plain["samples"], plain["samples_range"]) == (256 * 102.5, [25600, 26880])
    assert (flat["steps"], flat["steps_range"]) == (3, None), "as planned"
    summary = report.summarize(run.ledger)
    _, grid, _ = grids.cost(summary, names_of(summary.arms))
    assert isinstance(grid, blocks.Grid)
    shown = [dict(zip(grid.headings, row, strict=True)) for row in grid.rows]
    assert [(one["pairs"], one["steps"], one["seconds"]) for one in shown] == [
        ("26,240 (25,600 to 26,880)", "102 (100 to 105)", "30.0"),
        ("768", "3", "–"),
    ]


def test_data_that_two_arms_do_not_share_are_noted(begin: Begin) -> None:
    run = begin()
    for trial in run.confirm("plain"):
        run.done(trial, 0.9)
    for trial in run.confirm("flat"):
        run.done(trial, 0.9, hashes={"data": "other"})
    found = answer_of(run.ledger)
    assert found["comparisons"][0]["shared"] == {"data": False, "order": True, "init": True, "encoder": True}
    assert found["notes"][-1] == "flat and plain did not see the same data: a difference may be the data's."


@pytest.mark.parametrize(
    ("setting", "hashes", "note", "reason"),
    [
        ('"loss.name" = "dcl"', {"order": "x"}, "is not a paired comparison", ""),
        ('"loss.name" = "dcl"', {"init": "x"}, "have the same model and other initial weights", ""),
        ('"loss.name" = "dcl"', {"init": "x", "encoder": "x"}, "have the same model and other initial weights", ""),
        ('"model.dropout" = 0.1', {"init": "x"}, "have the same model and other initial weights", ""),
        ('"model.pooling" = "cls"', {"init": "x"}, "have the same model and other initial weights", ""),
        ('"model.pooling" = "attention"', {"init": "x"}, "", "model.pooling"),
        ('"model.pooling" = "attention"', {"encoder": "x"}, "the same encoder and other initial weights", ""),
        ('"model.precision" = "bf16"', {"init": "x"}, "have the same model and other initial weights", ""),
        ('"model.precision" = "fp64"', {"init": "x", "encoder": "x"}, "", "model.precision"),
        ('"model.projection" = "linear"', {"init": "x"}, "", "model.projection"),
        (
            '"model.projection" = "linear"',
            {"init": "x", "encoder": "x"},
            "the same encoder and other initial weights",
            "model.projection",
        ),
        ('"loss.temperature" = "learned"', {"init": "x"}, "", "loss.temperature"),
        (
            '"loss.temperature" = "learned"',
            {"init": "x", "encoder": "x"},
            "the same encoder and other initial weights",
            "loss.temperature",
        ),
        ('"loss.temperature_start" = 0.05', {"init": "x"}, "have the same model and other initial weights", ""),
        ('"model.width" = 32', {"init": "x", "encoder": "x"}, "", "model.width"),
        ('"model.width" = 32', {"order": "x"}, "is not a paired comparison", ""),
        ('"data.train" = "digits[:500]"', {"data": "x", "order": "x"}, "did not see the same data", "data.train"),
    ],
)
def test_a_pair_is_checked_by_hash_and_what_it_need_not_share_is_told_with_the_reason(
    begin: Begin, setting: str, hashes: dict[str, str], note: str, reason: str
) -> None:
    """One seed of six is enough. Mutant checks: excusing every model key, none, or not looking at all seeds fails."""
    run = begin(f'[[arm]]\nlabel = "plain"\n[[arm]]\nlabel = "other"\n{setting}\n')
    for trial in run.confirm("plain"):
        run.done(trial, 0.9)
    for trial in run.confirm("other"):
        run.done(trial, 0.91, hashes=hashes if trial.seed == 4 else {})
    found = report.summarize(run.ledger)
    (one,) = found.comparisons
    assert one.shared == {what: what not in hashes for what in ("data", "order", "init", "encoder")}
    assert [note in said for said in found.notes] == ([True] if note else [])
    shown = page.markdown(words(*grids.seeds(found, names_of(found.arms))))
    for what in hashes:
        (line,) = [line for line in shown.splitlines() if line.startswith(f"- {grids.IN_COMMON[what]}: ")]
        excused = what in one.apart
        assert ("cannot share this, as" in line, "should share this" in line) == (excused, not excused)
        assert (f"as the arms differ in {reason}" in line and "differs" not in line) or not excused


def test_a_loss_with_weights_need_not_begin_as_one_without(begin: Begin) -> None:
    """Mutant check: a classifier of pairs is said to share less than it should with every other loss."""
    run = begin('[[arm]]\nlabel = "plain"\n[[arm]]\nlabel = "other"\n"loss.name" = "dcl"\n')
    for label in ("plain", "other"):
        for trial in run.confirm(label):
            run.done(trial, 0.9, hashes={"init": label})
    trials = run.ledger.trials()
    confirmed = {label: [trial for trial in trials if trial.arm == label] for label in ("plain", "other")}
    (one,) = report.summarize(run.ledger).comparisons
    for name, excused in (("pair_classifier", ["loss.name"]), ("mylab.losses:own", ["loss.name"]), ("cosent", None)):
        jobs: list[Any] = [trial.job for trial in confirmed["other"]]
        own = [
            replace(trial, job={**job, "loss": {**job["loss"], "name": name}})
            for trial, job in zip(confirmed["other"], jobs, strict=True)
        ]
        compared = pairs.comparison(one.result, {**confirmed, "other": own})
        assert compared.apart.get("init") == excused


def test_a_ledger_from_before_a_hash_was_recorded_is_read_and_says_so(begin: Begin, tmp_path: Path) -> None:
    run = begin()
    for arm in BETTER:
        for trial in run.confirm(arm):
            run.done(trial, 0.9, hashes={"encoder": ""} if arm == "plain" else {})
    found = report.write(run.ledger, tmp_path / "report")
    assert found.comparisons[0].shared == {"data": True, "order": True, "init": True}
    assert found.notes == []
    assert "- initial weights of the encoder: not recorded." in (tmp_path / "report" / "report.md").read_text("utf-8")


def test_curves_end_at_the_means_of_the_answer(begin: Begin) -> None:
    """A diverged seed is left out, and so is a trial that has not ended. Mutant check: taking points of every trial
    fails this."""
    run = begin()
    plain, flat = run.confirm("plain"), run.confirm("flat")
    for trial in plain[:4]:
        run.done(trial, 0.9)
    run.done(flat[0], 0.9)
    run.done(flat[3], 0.8)
    run.done(flat[1], 0.9, outcome="diverged")
    attempt = run.ledger.start_attempt(flat[2].id, {}, "host")
    run.ledger.record_points(flat[2].id, attempt, [Point(flat[2].id, "knn_accuracy", 0, 0.1, 1e9)])
    found = report.summarize(run.ledger)
    drawn = curves(run.ledger, found)
    assert drawn["plain"].samples == drawn["flat"].samples == [0, 256, 768]
    assert drawn["plain"].mean == pytest.approx([0.3, 0.6, 0.9])
    assert drawn["flat"].mean == pytest.approx([0.3, (0.6 + 0.55) / 2, (0.9 + 0.8) / 2])
    assert [drawn[arm.label].mean[-1] for arm in found.arms] == [arm.mean for arm in found.arms]
    assert (drawn["flat"].low[-1], drawn["flat"].high[-1]) == found.arms[1].ci95


def test_an_evaluation_that_is_not_finite_costs_no_report(begin: Begin) -> None:
    """A trial that diverged there is in no curve. Mutant check: taking the point as it is raises."""
    run = begin(TWO)
    for arm, values in BETTER.items():
        for k, (trial, metric) in enumerate(zip(run.confirm(arm), values, strict=True)):
            broken = {0: 0.3, 1: math.nan} if k == 0 else None
            run.done(trial, metric, outcome="diverged" if broken else "ok", curve=broken)
    drawn = curves(run.ledger, report.summarize(run.ledger))["flat"]
    assert drawn.mean[1] == pytest.approx(fmean(0.3 + (m - 0.3) / 2 for m in BETTER["flat"][1:]))
    assert all(map(math.isfinite, drawn.mean))


def test_curves_of_trials_that_stop_by_the_clock_are_joined_evaluation_by_evaluation(begin: Begin) -> None:
    """No two trials are evaluated at the same step. Mutant checks: joining by step leaves one point, and the mean of
    another evaluation than the last would end elsewhere than the answer; both fail this."""
    run = begin()
    steps = iter([(50, 100), (54, 110), (46, 90, 91), (50, 100), (50, 100), (50, 100)])
    for trial in run.confirm("plain"):
        middle = next(steps)
        run.done(trial, 0.9, curve={0: 0.3, **{step: 0.6 + k / 10 for k, step in enumerate(middle)}, middle[-1]: 0.9})
    found = report.summarize(run.ledger)
    plain = curves(run.ledger, found)["plain"]
    assert plain.samples == pytest.approx([0, 256 * 50, 256 * (4 * 100 + 110 + 91) / 6])
    assert plain.mean == pytest.approx([0.3, 0.6, 0.9])
    assert plain.mean[-1] == found.arms[0].mean


def test_tuning_is_told_per_arm(written: Written) -> None:
    plain, flat = (arm["tune"] for arm in written.answer["arms"])
    assert (plain["number"], plain["params"], plain["hash"]) == (2, {"optimizer.lr": 2e-3}, "abc")
    assert [one["value"] for one in plain["suggestions"]] == pytest.approx([0.856, 0.86, 0.857])
    assert [one["best_so_far"] for one in plain["suggestions"]] == pytest.approx([0.856, 0.86, 0.86])
    assert plain["suggestions"][0]["range"] == pytest.approx([0.851, 0.861])
    assert [one["value"] for one in flat["suggestions"]][1] is None, "a suggestion that failed has no value"


# Files.


class Page(HTMLParser):
    """What a browser would load or run, and whether every tag is closed."""

    VOID = frozenset({"meta", "br", "img", "link", "input", "hr", "wbr"})

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[str] = []
        self.loads: list[str] = []
        self.words = ""
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.loads += [
            v for k, v in attrs if v and k in ("src", "href", "xlink:href", "data") and not v.startswith("#")
        ]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words += data if "style" not in self.open else ""


HOSTILE = '<script>alert(1)</script> $\\frac$ | [x](http://evil) & "q"'


def test_nothing_of_a_sweep_or_a_ledger_can_become_markup(begin: Begin, tmp_path: Path) -> None:
    """Labels, questions and exceptions come from elsewhere. Mutant check: one missing escape fails this."""
    arms = TWO.replace('"flat"', json.dumps(HOSTILE))
    run = begin(arms, question=HOSTILE)
    for arm in ("plain", HOSTILE):
        for k, trial in enumerate(run.confirm(arm)):
            run.lost(trial, message=HOSTILE) if k == 3 else run.done(trial, 0.9 + k / 100)
    report.write(run.ledger, tmp_path / "report")
    page_ = Page((tmp_path / "report" / "report.html").read_text("utf-8"))
    assert "script" not in page_.tags
    assert "a" not in page_.tags
    assert page_.words.count(HOSTILE) >= 5, "shown as it is: question, tables, failures"
    written = (tmp_path / "report" / "report.md").read_text("utf-8").partition("## Run it again")[0]
    assert "<script" not in written
    assert "](http" not in written
    assert all(len(re.findall(r"(?<!\\)\|", line)) == 9 for line in written.splitlines() if "| inconclusive |" in line)


@pytest.mark.parametrize(
    "block",
    [
        blocks.Heading(HOSTILE),
        blocks.Paragraph(HOSTILE),
        blocks.Bullets([HOSTILE]),
        blocks.Grid(["one", HOSTILE], [["1", "2"]]),
        blocks.Grid(["one"], [[HOSTILE]]),
        blocks.Code(HOSTILE),
        blocks.Code("text", title=HOSTILE),
        blocks.Picture("name"),
    ],
)
def test_every_kind_of_block_shows_hostile_text_as_text(block: blocks.Block) -> None:
    drawn = [plots.Plot("name", HOSTILE, HOSTILE, b"", ("<svg></svg>",))]
    html = Page(page.html(words(block), drawn))
    assert HOSTILE in html.words
    assert not {"script", "a"} & set(html.tags)
    if not isinstance(block, blocks.Code):
        assert "<script" not in page.markdown(words(block), drawn)


def test_the_page_is_one_file_that_loads_nothing(written: Written) -> None:
    html = written.read("report.html")
    found = Page(html)
    assert not found.open, "every tag is closed"
    assert found.loads == []
    assert not re.search(r"url\((?!#)|@import", html)
    assert len(html) < 2_000_000
    order = [html.index(part) for part in ("<h1>", 'class="verdict"', "<table>", "<svg", "What ran", "Run it again")]
    assert order == sorted(order), "question, verdict, evidence, what ran, how to run it again"
    assert "orchestrator launch demo.toml" in found.words
    assert "3f2c9ab" in found.words


def test_pictures_on_the_page_are_whole_and_share_no_ids(written: Written) -> None:
    html = written.read("report.html")
    pictures = re.findall(r"<svg.*?</svg>", html, flags=re.DOTALL)
    assert len(pictures) == 6, "of five plots, one of two panels"
    ids = [node.attrib["id"] for picture in pictures for node in ET.fromstring(picture).iter() if "id" in node.attrib]
    assert len(ids) == len(set(ids))
    for name in re.findall(r'(?:url\(#|href="#)([^)"]+)', html):
        assert name in ids
    for colour in (figure.INK, figure.MUTED, figure.LINE, figure.PAPER):
        assert colour not in "".join(pictures), "greys come from the page, which may be dark"
    assert set(re.findall(r'font-family: ([^;"]*)', "".join(pictures))) == {"system-ui, sans-serif"}


def test_plots_are_pngs_of_one_width(written: Written) -> None:
    for name in DRAWN:
        head = (written.folder / f"{name}.png").read_bytes()[:24]
        assert head[:8] == b"\x89PNG\r\n\x1a\n"
        assert struct.unpack(">I", head[16:20])[0] == 980, "4.9 inches at 200 dots"


def test_the_same_ledger_gives_the_same_files_and_old_plots_go(written: Written, begin: Begin, tmp_path: Path) -> None:
    folder = tmp_path / "report"
    report.write(written.run.ledger, folder)
    for file in written.folder.iterdir():
        assert file.read_bytes() == (folder / file.name).read_bytes(), file.name
    report.write(begin().ledger, folder)
    assert {file.name for file in folder.iterdir()} == {"report.html", "report.md", "results.parquet"}


def svg_of(folder: Path, name: str) -> str:
    """The picture under a title of report.html."""
    html = (folder / "report.html").read_text("utf-8")
    found = re.search(rf'<h3 id="plot-{name}">.*?</figure>', html, flags=re.DOTALL)
    assert found is not None
    return found[0]


def test_many_arms_that_nothing_crosses_get_a_panel_each(begin: Begin, tmp_path: Path) -> None:
    arms = "".join(f'[[arm]]\nlabel = "arm {n}"\n"loss.margin" = {n / 100}\n' for n in range(8))
    run = begin(arms)
    finished(run, {arm.label: [0.9 + k / 100 for k in range(6)] for arm in run.plan.arms})
    found = report.write(run.ledger, tmp_path / "report")
    assert len(found.comparisons) == 7
    curves = svg_of(tmp_path / "report", "curves")
    assert all(f">{arm.label}</text>" in curves for arm in run.plan.arms)


def test_arms_that_cross_factors_get_a_panel_for_each_place_and_a_legend_of_levels(
    begin: Begin, tmp_path: Path
) -> None:
    """Every arm has a line, in the colour of its level. Mutant check: arms by their index, whose colours repeat."""
    arms = '[compare]\n"loss.temperature" = [0.05, 0.1, 0.2, 0.5]\n"batch.size" = [16, 32]\n'
    run = begin(arms)
    finished(run, {arm.label: [0.9 + k / 100 for k in range(6)] for arm in run.plan.arms})
    report.write(run.ledger, tmp_path / "report")
    curves = svg_of(tmp_path / "report", "curves")
    looked = looks_of(report.summarize(run.ledger))
    assert looked.how == "crossed"
    for level, colour in looked.levels.items():
        assert f">{level}</text>" in curves
        assert curves.count(f"stroke: {colour}; stroke-width: 1.6") == 2, "a line in each of two panels"
    assert all(f">{place}</text>" in curves for place in ("batch 16", "batch 32"))
    assert len(set(looked.of.values())) == 8


def test_of_very_many_arms_all_are_drawn_and_the_best_named(begin: Begin, tmp_path: Path) -> None:
    """A panel each would be a page of 150 rows, and two minutes."""
    arms = "".join(f'[[arm]]\nlabel = "arm {n}"\n"loss.margin" = {n / 100}\n' for n in range(30))
    run = begin(arms)
    finished(run, {arm.label: [0.5 + n / 100 + k / 1000 for k in range(6)] for n, arm in enumerate(run.plan.arms)})
    report.write(run.ledger, tmp_path / "report")
    curves = svg_of(tmp_path / "report", "curves")
    assert [n for n in range(30) if f">arm {n}</text>" in curves] == [0, 25, 26, 27, 28, 29]
    assert "5 best of 30 arms; grey: the others" in curves


def test_a_report_that_cannot_be_finished_leaves_the_old_one(begin: Begin, tmp_path: Path) -> None:
    """Files of this process may not pass 20 kB, which stands for a full disk. Mutant check: writing straight into the
    folder fails this."""
    folder = tmp_path / "report"
    run = begin()
    report.write(run.ledger, folder)
    before = {file.name: file.read_bytes() for file in folder.iterdir()}
    finished(run, BETTER)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(OSError, match="File too large"):
            report.write(run.ledger, folder)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert {file.name: file.read_bytes() for file in folder.iterdir()} == before
    assert [file.name for file in tmp_path.iterdir() if file.name.startswith(".report-")] == []
    report.write(run.ledger, folder)
    assert "beats" in (folder / "report.html").read_text("utf-8")


# Looks.


def luminance(colour: str) -> float:
    parts = [int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in parts]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]


def contrast(a: str, b: str) -> float:
    dark, light = sorted((luminance(a), luminance(b)))
    return (light + 0.05) / (dark + 0.05)


@pytest.mark.parametrize("scheme", [0, 1], ids=["light", "dark"])
def test_text_is_readable_in_both_schemes(scheme: int) -> None:
    """WCAG AA: 4.5 for text, also on the note's ground."""
    found = re.findall(r":root \{ (.*?) \}", page.STYLE)[scheme]
    colours = dict(re.findall(r"--(\w+): (#\w{6})", found))
    for ground in ("paper", "note"):
        assert contrast(colours["ink"], colours[ground]) >= 4.5
    assert contrast(colours["muted"], colours["paper"]) >= 4.5


def test_labels_beside_a_panel_keep_their_order_and_never_overlap() -> None:
    wanted, sizes = [50.0, 51.0, 49.0, 120.0, 119.0], [10.0, 22.0, 10.0, 10.0, 10.0]
    placed = figure.spread(wanted, sizes, 122.0)
    order = np.argsort(wanted)
    assert list(np.argsort(placed)) == list(order)
    for under, above in itertools.pairwise(order):
        assert placed[above] - placed[under] >= (sizes[above] + sizes[under]) / 2 - 1e-9
    assert max(p + s / 2 for p, s in zip(placed, sizes, strict=True)) <= 122


@pytest.mark.parametrize(
    "name",
    [
        "flatnce, size=256",
        "WWWWWWWWWWWWWWWWWWWWWWWWW",
        "big batch " * 9,
        "flatnce_cpu: flatnce, size=16, temperature=0.05",
    ],
)
def test_labels_beside_a_panel_end_within_the_figure(name: str) -> None:
    """Mutant check: wrapping by the number of characters, whatever their width, fails this."""
    drawn = Figure(figsize=(figure.WIDTH, 2.9))
    axes = figure.panel(drawn, bottom=0.55)
    figure.label_ends(axes, [(0.5, 0.5, name, figure.COLOURS[0])])
    (label,) = axes.texts
    label.set_fontsize(figure.FONT)
    assert label.get_window_extent().x1 <= drawn.bbox.x1
    assert label.get_text().replace("\n", " ").startswith(name[:6])
    assert label.get_text().count("\n") < figure.LABEL_LINES


@given(st.lists(st.floats(0.0, 1e6), min_size=1))
def test_costs_are_all_in_view_and_never_so_close_that_a_hundredth_looks_large(costs: list[float]) -> None:
    low, high = cost_limits(costs)
    assert low < high
    assert low - 1e-9 <= min(costs)
    assert max(costs) <= high + 1e-9
    assert low >= 0
    assert 0.01 * max(costs) <= 0.026 * (high - low)


def test_the_table_fits_eighty_columns_and_ends_with_the_verdict(begin: Begin) -> None:
    run = finished(begin(TWO.replace('"flat"', '"[red]a long label of an arm, batch.size=16384"')), {})
    for arm, values in zip(run.plan.arms, BETTER.values(), strict=True):
        for trial, metric in zip(run.confirm(arm.label), values, strict=True):
            run.done(trial, metric)
    found = report.summarize(run.ledger)
    console = Console(width=80, record=True, file=io.StringIO())
    console.print(report.table(found))
    lines = console.export_text().rstrip().splitlines()
    assert max(map(len, lines)) <= 80
    shown = " ".join(" ".join(lines).split())
    assert shown.count("[red]") == 3, "in both tables and the sentence: a label is no markup"
    assert shown.endswith(found.sentence)


@pytest.mark.parametrize(
    ("x", "shown"),
    [
        (0.91234, "0.9123"),
        (-0.0, "0.0000"),
        (None, "–"),
        (0.00001234, "1.23e-05"),
        (123456.0, "1.23e+05"),
        (-3.5, "-3.5000"),
    ],
)
def test_a_metric_is_written_with_four_decimals_or_three_digits(x: float | None, shown: str) -> None:
    assert formatting.value(x) == shown


def test_of_many_comparisons_the_sentence_says_what_won_where(begin: Begin) -> None:
    """Seen: "2 of 4 arms beat their baseline, 1 lose to it", which names none. Mutant check: one place's verdicts told
    of another."""
    arms = '[compare]\n"loss.name" = ["infonce", "flatnce", "dcl"]\n"batch.size" = [16, 32]\n'
    run = begin(arms)
    values = [BETTER["plain"], BETTER["plain"], BETTER["flat"], BETTER["plain"], [0.5] * 6, [0.9, 0.95] * 3]
    finished(run, {arm.label: v for arm, v in zip(run.plan.arms, values, strict=True)})
    assert answer_of(run.ledger)["sentence"] == (
        "On knn_accuracy, at batch 16: flatnce beats infonce, and dcl loses to it; "
        "at batch 32: flatnce is equivalent to infonce, and dcl is inconclusive against it."
    )


def test_where_the_same_holds_it_is_said_once_and_of_very_many_how_many_there_are(begin: Begin) -> None:
    arms = '[compare]\n"loss.name" = ["infonce", "flatnce", "dcl"]\n"batch.size" = [16, 32]\n'
    of_loss = {"infonce": BETTER["plain"], "flatnce": BETTER["flat"], "dcl": BETTER["flat"]}
    run = begin(arms)
    finished(run, {arm.label: of_loss[str(arm.settings["loss.name"])] for arm in run.plan.arms})
    assert answer_of(run.ledger)["sentence"] == ("On knn_accuracy, at every batch: flatnce and dcl beat infonce.")
    many = "".join(f'[[arm]]\nlabel = "arm {n}"\n"loss.margin" = {n / 100}\n' for n in range(9))
    run = begin(many)
    finished(run, {arm.label: BETTER["flat" if k else "plain"] for k, arm in enumerate(run.plan.arms)})
    assert answer_of(run.ledger)["sentence"] == "On knn_accuracy, 8 arms beat arm 0."


# The programs behind the numbers.

CODE: Any = {"code": "ab12cd34ef56", "versions": {"torch": "2.13.0"}}
LATER: Any = {"code": "ef56ab12cd34", "versions": {"torch": "2.14.0"}}


def computed(run: Run, by: Mapping[str, Sequence[Any]]) -> Run:
    """A finished run whose confirm trials were computed by these programs, arm by arm and seed by seed."""
    finished(run, BETTER)
    for arm, programs in by.items():
        trials = run.ledger.trials("confirm", arm)
        for trial, program in zip(trials, programs, strict=True):
            if program is not None:
                run.ledger.set_provenance(trial.id, 1, program | {"data": {}, "weights": {}})
    run.ledger.set_run(provenance=CODE | {"accepted": [LATER]})
    return run


def test_a_page_names_every_program_behind_its_numbers(begin: Begin, tmp_path: Path) -> None:
    """On the page itself, in both formats. One program is no warning, and is named too."""
    several = computed(begin(), {"plain": [CODE] * 6, "flat": [CODE] * 5 + [LATER]})
    found = report.write(several.ledger, tmp_path / "several")
    note = "These numbers come from several programs: 11 trials by code ab12cd34ef56, torch 2.13.0; "
    note += "1 trial by code ef56ab12cd34 (accepted), torch 2.14.0."
    assert note in found.notes
    assert [arm.code for arm in found.arms] == [["ab12cd34ef56"], ["ab12cd34ef56", "ef56ab12cd34"]]
    html = Page((tmp_path / "several" / "report.html").read_text("utf-8"))
    for words in (html.words, (tmp_path / "several" / "report.md").read_text("utf-8")):
        assert note in words
        assert "1 trial: code ef56ab12cd34 (accepted), torch 2.14.0" in words
    assert (tmp_path / "several" / "report.html").read_text("utf-8").index(note) < html_evidence(tmp_path / "several")
    one = computed(begin(), {"plain": [CODE] * 6, "flat": [CODE] * 6})
    found = report.write(one.ledger, tmp_path / "one")
    assert found.notes == []
    assert "12 trials: code ab12cd34ef56, torch 2.13.0" in (tmp_path / "one" / "report.md").read_text("utf-8")


def html_evidence(folder: Path) -> int:
    return (folder / "report.html").read_text("utf-8").index("Evidence")


def test_a_trial_of_two_programs_stands_behind_both(begin: Begin, monkeypatch: pytest.MonkeyPatch) -> None:
    """A trial that one program began and another ended. Mutant check: one program for each trial. One that was never
    attempted has none."""
    run = computed(begin(), {"plain": [CODE] * 6, "flat": [CODE] * 6})
    first = run.ledger.trials("confirm", "flat")[0].id
    real = provenance.behind

    def behind(*given: Any) -> list[provenance.Group]:
        return [*real(*given), LATER | {"accepted": True, "trials": [first]}]

    monkeypatch.setattr(provenance, "behind", behind)
    assert [arm["code"] for arm in answer_of(run.ledger)["arms"]] == [
        [CODE["code"]],
        [CODE["code"], LATER["code"]],
    ]
    queued = begin()
    queued.confirm("plain")
    monkeypatch.undo()
    assert [arm["code"] for arm in answer_of(queued.ledger)["arms"]] == [[], []]


@pytest.mark.parametrize(
    ("second", "said"),
    [
        (LATER, "code ab12cd34ef56, torch 2.13.0 in a; code ef56ab12cd34, torch 2.14.0 in b"),
        (None, "code ab12cd34ef56, torch 2.13.0 in a; code not recorded in b"),
        (CODE, ""),
    ],
)
def test_runs_of_different_programs_are_said_to_be(begin: Begin, second: Any, said: str) -> None:
    """Their environments may be the same: another commit is not the only way to other code."""
    runs = {name: computed(begin(), {arm: [by] * 6 for arm in BETTER}) for name, by in (("a", CODE), ("b", second))}
    runs["b"].ledger.set_run(provenance=second or CODE)
    notes = report.summarize_several({name: run.ledger for name, run in runs.items()}).notes
    found = [note for note in notes if "programs" in note]
    assert found == ([f"The runs were computed by different programs: {said}."] if said else [])
