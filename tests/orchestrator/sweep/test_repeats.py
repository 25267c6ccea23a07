"""A search may suggest a setting again: then several suggestions ask for the same trials, and all of them count."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from ledgers import Run, answer_of, start

from orchestrator.ledger import Suggestion, Trial
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.schedule import Schedule, untuned_arms
from orchestrator.verify import faults_after

TUNE = """
[tune]
trials = 8
seeds = SEEDS
sampler = "SAMPLER"
space = { "optimizer.lr" = { choices = [1e-3, 3e-3, 1e-2] } }
"""
ARMS = """
[[arm]]
label = "plain"
[[arm]]
label = "flat"
"loss.name" = "flatnce"
[[arm]]
label = "micro"
"execution.micro" = 32
"""
"""Micro is plain, computed in another way: the search of plain is for both."""


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """Folders that are not there yet."""
    above = tmp_path_factory.mktemp("repeats")
    return (above / str(number) for number in itertools.count())


def searched(folder: Path, end: Callable[[Trial], str], *, seeds: int = 1, sampler: str = "random") -> Run:
    """A run whose tune stage has ended, each trial as `end` says: ok, diverged or failed; no confirm trial has."""
    run = start(folder, ARMS, tune=TUNE.replace("SEEDS", str(seeds)).replace("SAMPLER", sampler))
    schedule = Schedule(run.plan, run.ledger)
    while queued := [t for t in schedule.advance().values() if (t.stage, t.state) == ("tune", "queued")]:
        for trial in queued:
            if (how := end(trial)) == "failed":
                run.lost(trial)
            else:
                run.done(trial, 0.8 + trial.seed / 100, outcome=how)
    run.ledger.set_run(state="done")
    return run


def repeats(run: Run, arm: str) -> int:
    """How many suggestions of an arm ask for what an earlier one asked for."""
    asked = [suggestion.trials for suggestion in run.ledger.suggestions(arm)]
    return len(asked) - len(set(asked))


def about_suggestions(folder: Path, run: Run) -> list[str]:
    faults = faults_after(RunFolder(folder), run.ledger, None)
    return [fault for fault in faults if "suggestion" in fault]


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
@pytest.mark.parametrize("seeds", [1, 2])
def test_a_repeated_suggestion_is_no_fault(places: Iterator[Path], sampler: str, seeds: int) -> None:
    """Seen: `verify` called them broken, so `resume` ended with 1 for ever."""
    folder = next(places)
    run = searched(folder, lambda _: "ok", seeds=seeds, sampler=sampler)
    assert repeats(run, "flat") > 0, "eight suggestions of three settings"
    assert about_suggestions(folder, run) == []


@settings(max_examples=8)
@given(data=st.data(), seeds=st.integers(1, 2))
def test_report_and_run_agree_on_which_arms_diverge(places: Iterator[Path], data: st.DataObject, seeds: int) -> None:
    """An arm of which no suggestion can be frozen and of which one diverged, also where another seed of it trained, or
    where it has fewer trials than suggestions. Mutant checks: counting trials against what was planned, and asking
    whether any trial trained."""
    how = st.sampled_from(["diverged", "diverged", "diverged", "ok", "failed"])
    ends: dict[str, str] = {}
    run = searched(next(places), lambda trial: ends.setdefault(trial.id, data.draw(how)), seeds=seeds)
    fallen = {arm for arm, why in untuned_arms(run.plan, run.ledger).items() if why == "diverged"}
    found = answer_of(run.ledger)
    for one in found["comparisons"]:
        assert set(one["diverged_arms"]) == fallen & {one["a"], one["b"]}
        assert (one["verdict"] == "diverges") == bool(one["diverged_arms"])
        assert (one["p"] is None) == (bool(one["diverged_arms"]) or one["same_objective"])


def test_an_arm_whose_every_point_diverged_is_said_to_diverge(places: Iterator[Path]) -> None:
    """Seen: eight suggestions of three settings are three trials, so it was "inconclusive" and in Holm's family."""
    run = searched(next(places), lambda trial: "diverged" if trial.arm == "flat" else "ok")
    assert repeats(run, "flat") > 0
    found = answer_of(run.ledger)
    assert {one["a"]: one["verdict"] for one in found["comparisons"]}["flat"] == "diverges"
    assert "flat diverged at every setting that was tried" in found["sentence"]


def test_an_arm_of_which_one_seed_in_two_diverged_everywhere_is_said_to_diverge(places: Iterator[Path]) -> None:
    """Seen: a suggestion with one seed that trained is infeasible, and was yet taken for one that could be frozen."""
    run = searched(next(places), lambda t: "diverged" if t.arm == "flat" and t.seed == 0 else "ok", seeds=2)
    assert "flat" not in run.ledger.frozen()
    found = answer_of(run.ledger)
    assert {one["a"]: one["verdict"] for one in found["comparisons"]}["flat"] == "diverges"


def test_what_no_suggestion_of_its_own_asks_for_is_still_a_fault(places: Iterator[Path]) -> None:
    """Mutant check: taking any suggestion that names a trial for its own."""
    folder = next(places)
    run = searched(folder, lambda _: "ok")
    trial = next(trial for trial in run.ledger.trials("tune") if trial.arm == "flat")
    run.ledger.add_suggestion(Suggestion("plain", 8, {}, (trial.id,)))
    assert about_suggestions(folder, run) == [], "it is flat's, and plain may come upon it too"
    run.ledger.add_suggestion(Suggestion("plain", 9, {}, ("feedfeed",)))
    (missing,) = about_suggestions(folder, run)
    assert "suggestion 9 of arm plain: asks for trial feedfeed, which the ledger does not have" in missing
