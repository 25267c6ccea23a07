"""Seeds until the question is settled: what a session trains look by look, whatever is killed on the way."""

from __future__ import annotations

import contextlib
import math
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ledgers import cut_off
from test_session import done, opened, play

from jobs.core.failures import Failure
from orchestrator.ledger import Ledger
from orchestrator.report.summary.evidence import summarize
from orchestrator.report.summary.records import Summary
from orchestrator.run_dir.context import Extend
from orchestrator.run_dir.folder import RunError
from orchestrator.session import schedule
from orchestrator.session.schedule import confirming, extension
from orchestrator.session.writer import Dispatch
from orchestrator.verify import ledger_checks

LOOKS = [7, 10, 14]

TUNE = {"trials": 3, "sampler": "random", "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}}


def changes(levels: dict[float, float], **more: Any) -> dict[str, Any]:
    """A sweep over temperatures without a tune stage; `levels`: what each adds to the metric."""
    return {
        "compare": {"loss.temperature": list(levels)},
        "tune": None,
        "confirm": {"seeds": {"looks": LOOKS}},
        "metric": {"name": "knn_accuracy", "smallest_difference": 0.01},
        **more,
    }


def answer(levels: dict[float, float], spread: float = 0.01) -> Callable[[Dispatch], dict[str, Any]]:
    """Return what ends a trial with the metric of its level and the noise of its seed, that of no other level."""

    def of(dispatch: Dispatch) -> dict[str, Any]:
        temperature, seed = dispatch.job["loss"]["temperature"], dispatch.job["seed"]
        noise = random.Random(f"{temperature} {seed}").gauss(0, spread)
        return done(dispatch, 0.5 + levels[temperature] + noise)

    return of


def trained(ledger: Ledger) -> Counter[str]:
    """Count the confirm trials of each arm that are done."""
    return Counter(trial.arm for trial in ledger.trials(stage="confirm", state="done"))


def run(
    folder: Path, levels: dict[float, float], spread: float = 0.01, **options: Any
) -> tuple[Any, Counter[str], Any]:
    """Run a sweep in one session; what `compare --json` says of it, how many seeds each arm had, all its trials."""
    with opened(folder, changes(levels)) as (session, ledger, _, _plan):
        session.start()
        play(session, answer(levels, spread), **options)
        assert session.broken is None
        numbers = {trial.id: (trial.state, trial.metric) for trial in ledger.trials()}
        return summarize(ledger).to_json(), trained(ledger), numbers


def test_what_differs_clearly_has_the_seeds_of_the_first_look_and_the_sweep_ends(tmp_path: Path) -> None:
    """Mutant check: confirm trials that are all queued when an arm is frozen."""
    said, seeds, _ = run(tmp_path, {0.1: 0.0, 0.2: 0.1, 0.5: -0.1})
    assert set(seeds.values()) == {7}
    assert [one["verdict"] for one in said["comparisons"]] == ["a_better", "b_better"]
    assert [one["look"] for one in said["comparisons"]] == [1, 1]
    assert (said["looks"]["taken"], said["looks"]["ended"], said["complete"]) == (1, "settled", True)
    assert said["notes"] == []


def test_an_open_arm_and_its_baseline_train_on_and_what_is_settled_does_not(tmp_path: Path) -> None:
    said, seeds, _ = run(tmp_path, {0.1: 0.0, 0.2: 0.1, 0.5: 0.012}, 0.016)
    assert seeds["temperature=0.2"] == 7
    assert seeds["temperature=0.1"] == seeds["temperature=0.5"] > 7
    first, second = said["comparisons"]
    assert (first["look"], first["n"], first["verdict"]) == (1, 7, "a_better")
    assert second["n"] == seeds["temperature=0.5"]
    assert said["looks"]["ended"]


def test_looks_that_would_hardly_help_are_not_taken_and_the_answer_says_so(tmp_path: Path) -> None:
    said, seeds, _ = run(tmp_path, {0.1: 0.0, 0.2: 0.0}, 0.05)
    assert said["looks"]["ended"] == "futile"
    assert max(seeds.values()) < 14
    assert said["comparisons"][0]["verdict"] == "inconclusive"
    assert any("fewer than one in ten continuations to 14 seeds" in note for note in said["notes"])


def test_while_a_look_is_under_way_the_answer_is_that_of_the_last_one(tmp_path: Path) -> None:
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.012}
    with opened(tmp_path, changes(levels), concurrent=1) as (session, ledger, _, _plan):
        session.start()
        play(session, answer(levels, 0.016), most=23)
        said = summarize(ledger)
    assert said.looks is not None
    assert (said.looks.taken, said.looks.ended, said.complete) == (1, "", False)
    assert [comparison.result.n for comparison in said.comparisons] == [7, 7]
    assert [comparison.result.verdict for comparison in said.comparisons] == ["a_better", "inconclusive"]
    assert any("Look 2 of 3 is under way, of 10 seeds: the verdicts are as of look 1." in note for note in said.notes)


@pytest.mark.few(1)
@pytest.mark.parametrize("order", range(3))
def test_in_whatever_order_trials_end_the_same_seeds_are_trained(tmp_path: Path, order: int) -> None:
    levels = {0.1: 0.0, 0.2: 0.02, 0.5: 0.012}
    calm = run(tmp_path / "calm", levels, 0.02)
    mixed = run(tmp_path / "mixed", levels, 0.02, order=random.Random(order))
    assert mixed[1:] == calm[1:]
    assert mixed[0]["comparisons"] == calm[0]["comparisons"]


@pytest.mark.parametrize("every", [71, pytest.param(1, marks=pytest.mark.soak)])
def test_wherever_the_writer_is_killed_the_looks_are_those_of_the_undisturbed_sweep(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """After every transaction of the writer, or some of them. Mutant check: a look whose arms are queued in a
    transaction each."""
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.012}
    calm = run(tmp_path / "calm", levels, 0.016)
    left = cut_off(monkeypatch, KeyboardInterrupt)
    for allowed in range(0, 10**6, every):
        left[0] = allowed
        with opened(tmp_path / str(allowed), changes(levels)) as (session, _, _, _plan):
            session.start()
            play(session, answer(levels, 0.016))
            whole = session.broken is None
        left[0] = 10**9
        said, seeds, numbers = run(tmp_path / str(allowed), levels, 0.016)
        assert (seeds, numbers) == calm[1:], f"killed after {allowed} transactions"
        assert said["comparisons"] == calm[0]["comparisons"]
        if whole:
            assert allowed > 30
            break


def test_an_arm_whose_trials_fail_alike_keeps_the_others_from_no_look(tmp_path: Path) -> None:
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.012}

    def fail(dispatch: Dispatch) -> dict[str, Any] | Failure:
        if dispatch.job["loss"]["temperature"] == 0.5:
            return Failure("user_error", None, "no such thing", "")
        return answer(levels)(dispatch)

    with opened(tmp_path, changes(levels)) as (session, ledger, said, _plan):
        session.start()
        play(session, fail)
        summary = summarize(ledger)
    assert [comparison.result.verdict for comparison in summary.comparisons] == ["a_better", "inconclusive"]
    assert summary.looks is not None
    assert (summary.looks.taken, summary.looks.ended) == (1, "settled")
    assert sum("look 1 of 3, 7 seeds: 1 of 2 comparisons settled" in line for line in said) == 1


def failing(arm: str, levels: dict[float, float], spread: float, stage: str) -> Callable[[Dispatch], Any]:
    """Return what ends every trial of an arm in a stage with the same failure, and the others as `answer` does."""

    def of(dispatch: Dispatch) -> dict[str, Any] | Failure:
        temperature, of_stage = dispatch.job["loss"]["temperature"], dispatch.job["stage"]
        if f"temperature={temperature}" == arm and of_stage == stage:
            return Failure("user_error", None, "no such thing", "")
        return answer(levels, spread)(dispatch)

    return of


@pytest.mark.parametrize("stage", ["confirm", "tune"])
def test_an_arm_that_is_stopped_keeps_no_verdict_of_the_others_back(tmp_path: Path, stage: str) -> None:
    """Seen: `inconclusive` for good, as nothing was left to do and its trials never end. Its own comparison stays in
    the family. Mutant check: counting its queued trials, or those it has none of, as still to come."""
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.0}
    sweep = changes(levels, confirm={"seeds": 8}, tune=None if stage == "confirm" else TUNE | {"trials": 6})
    with opened(tmp_path, sweep) as (session, ledger, _, plan):
        session.start()
        play(session, failing("temperature=0.5", levels, 0.01, stage))
        said = summarize(ledger)
    better, lost = (comparison.result for comparison in said.comparisons)
    assert (better.verdict, better.n, better.complete) == ("a_better", 8, True)
    assert (lost.verdict, lost.complete) == ("inconclusive", False)
    assert len(plan.tested) == sum(one.p_adjusted is not None for one in (better, lost)) == 2
    assert said.alpha == {"difference": 0.04, "equivalence": 0.01}
    (why,) = [note for note in said.notes if "stopped" in note]
    assert why.startswith("temperature 0.5 is stopped, as trials failed alike: ")
    assert not any("have no result yet" in note for note in said.notes)


def test_an_arm_that_was_tuned_with_a_stopped_one_keeps_no_verdict_back(tmp_path: Path) -> None:
    """Of arms that differ in execution alone one is tuned for both; stopped before, neither is ever frozen."""
    sweep = changes({}, compare={}, confirm={"seeds": 8}, tune=TUNE | {"trials": 6}) | {
        "arm": [
            {"label": "plain"},
            {"label": "warm", "loss.temperature": 0.2},
            {"label": "cold", "loss.temperature": 0.5},
            {"label": "cold, by parts", "loss.temperature": 0.5, "execution.micro": 32},
        ]
    }
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.0}
    with opened(tmp_path, sweep) as (session, ledger, _, plan):
        assert plan.searched_with == {"cold, by parts": "cold"}
        session.start()
        play(session, failing("temperature=0.5", levels, 0.01, "tune"))
        said = summarize(ledger)
    assert [one.result.verdict for one in said.comparisons] == ["a_better", "inconclusive", "inconclusive"]


@pytest.mark.parametrize("seeds", [8, {"looks": LOOKS}])
def test_a_trial_of_a_stopped_arm_that_still_runs_is_waited_for(tmp_path: Path, seeds: Any) -> None:
    """It may yet bring a value. Mutant check: whatever a stopped arm has begun counts as lost."""
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.0}
    running: list[str] = []
    with opened(tmp_path, changes(levels, confirm={"seeds": seeds}), concurrent=24) as (session, ledger, _, _plan):
        session.start()
        of = failing("temperature=0.5", levels, 0.01, "confirm")
        ran = [dispatch for _ in range(24) if (dispatch := session.next()) is not None]
        cold = [dispatch for dispatch in ran if dispatch.job["loss"]["temperature"] == 0.5]
        running = [cold[-1].trial]
        for dispatch in ran:
            if dispatch.trial in running:
                continue
            if isinstance(report := of(dispatch), Failure):
                session.lost(dispatch, report)
            else:
                session.report(dispatch, report)
        deadline = time.monotonic() + 30
        while len(ledger.trials(state="done")) < (16 if seeds == 8 else 14) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert [trial.id for trial in ledger.trials(state="running")] == running
        during = summarize(ledger)
    assert {one.result.verdict for one in during.comparisons} == {"inconclusive"}
    assert during.looks is None or during.looks.taken == 0


@pytest.mark.parametrize("lost", [[("temperature=0.5", 3)], [("temperature=0.1", 6)], [("temperature=0.5", None)]])
@pytest.mark.parametrize("noted", [True, False])
def test_a_seed_that_was_lost_when_a_look_was_taken_stays_lost_whatever_a_retry_brings(
    tmp_path: Path, lost: list[tuple[str, int | None]], noted: bool
) -> None:
    """One seed, one of the baseline, and all of an arm that is stopped. Seen: a retry judged the look anew, and could
    withdraw what it had decided. What the retry brings is exploratory. noted: by the session that took the look, or, as
    with a run of an earlier version, before the retry. Mutant check: judging what there is by now."""
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.0}

    def fail(dispatch: Dispatch) -> dict[str, Any] | Failure:
        arm, seed = f"temperature={dispatch.job['loss']['temperature']}", dispatch.job["seed"]
        if (arm, seed) in lost or (arm, None) in lost:
            return Failure("user_error", None, f"no such thing{'s' * seed if (arm, None) not in lost else ''}", "")
        return answer(levels)(dispatch)

    with opened(tmp_path, changes(levels)) as (session, ledger, _, plan):
        session.start()
        play(session, fail)
        before, has_failed = summarize(ledger), ledger.trials(state="failed")
        assert len(ledger.events(confirming.LOST)) == 1
    if not noted:
        with contextlib.closing(sqlite3.connect(tmp_path / "ledger.db")) as database, database:
            database.execute("DELETE FROM events WHERE kind = ?", (confirming.LOST,))
    assert before.looks is not None
    assert before.looks.ended
    with opened(tmp_path, changes(levels)) as (session, ledger, _, plan):
        schedule.note_lost(plan, ledger)
        for trial in has_failed:
            ledger.requeue(trial.id)
        during = summarize(ledger)
        session.start()
        play(session, lambda dispatch: done(dispatch, 0.9))
        after = summarize(ledger)
        assert not ledger.trials(state="failed")
    for later in (during, after):
        assert [one.result for one in later.comparisons] == [one.result for one in before.comparisons]
        assert (later.looks, later.sentence) == (before.looks, before.sentence)
    assert during.exploratory is before.exploratory is None
    assert after.exploratory is not None
    assert [len(one.result.pairs) for one in after.exploratory.comparisons][-1] >= 7
    assert any("lost when a look was taken" in note for note in after.notes)


def test_a_lost_seed_that_is_retried_before_the_look_is_taken_counts(tmp_path: Path) -> None:
    levels = {0.1: 0.0, 0.2: 0.1}
    with opened(tmp_path, changes(levels), concurrent=1) as (session, ledger, _, plan):
        session.start()
        play(session, lambda _: Failure("user_error", None, "no such thing", ""), most=1)
        play(session, answer(levels), most=5)
        assert not ledger.events(confirming.LOST)
        schedule.note_lost(plan, ledger)
        (failed,) = ledger.trials(state="failed")
        ledger.requeue(failed.id)
    with opened(tmp_path, changes(levels)) as (session, ledger, _, plan):
        session.start()
        play(session, answer(levels))
        (comparison,) = summarize(ledger).comparisons
        assert not ledger.events(confirming.LOST)
    assert (comparison.result.n, comparison.result.verdict) == (7, "a_better")


def extend(folder: Path, sweep: dict[str, Any], wanted: Extend, of: Callable[[Dispatch], Any]) -> Summary:
    """Begin another session that adds what is wanted, and play it to its end."""
    with opened(folder, sweep) as (session, ledger, _, plan):
        extension.record(plan, ledger, wanted)
        session.start()
        play(session, of)
        assert session.broken is None
        return summarize(ledger)


@pytest.mark.parametrize("seeds", [7, {"looks": LOOKS}])
def test_further_seeds_are_trained_and_the_planned_verdict_stays(tmp_path: Path, seeds: Any) -> None:
    """Mutant check: a comparison of all confirm trials that there are."""
    levels = {0.1: 0.0, 0.2: 0.0}
    sweep = changes(levels, confirm={"seeds": seeds})
    of = answer(levels, 0.05)
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, of)
        before, ids = summarize(ledger), {trial.id: trial for trial in ledger.trials()}
    after = extend(tmp_path, sweep, Extend(seeds=6), of)
    assert before.exploratory is None
    assert [one.result for one in after.comparisons] == [one.result for one in before.comparisons]
    assert after.sentence == before.sentence
    assert after.exploratory is not None
    assert len(after.exploratory.seeds) == len(before.comparisons[0].result.pairs) + 6
    assert [note for note in after.notes if note not in before.notes] == [
        f"Exploratory, beyond the plan, on {len(after.exploratory.seeds)} seeds: {after.exploratory.sentence}"
    ]
    again = extend(tmp_path, sweep, Extend(seeds=2), of)
    assert again.exploratory is not None
    assert len(again.exploratory.seeds) == len(after.exploratory.seeds) + 2
    with opened(tmp_path, sweep) as (_, ledger, _, _plan):
        assert {id_: trial for id_, trial in {t.id: t for t in ledger.trials()}.items() if id_ in ids} == ids


def test_of_one_arm_those_that_it_is_compared_with_train_too_and_no_others(tmp_path: Path) -> None:
    levels = {0.1: 0.0, 0.2: 0.0, 0.5: 0.0}
    sweep = changes(levels, confirm={"seeds": 7})
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, answer(levels))
    extend(tmp_path, sweep, Extend(seeds=3, arms=("temperature=0.2",)), answer(levels))
    with opened(tmp_path, sweep) as (_, ledger, _, _plan):
        assert trained(ledger) == {"temperature=0.1": 10, "temperature=0.2": 10, "temperature=0.5": 7}


def test_a_better_setting_that_further_suggestions_find_is_confirmed_on_fresh_seeds(tmp_path: Path) -> None:
    """And so is its baseline. Mutant check: confirming it on the planned seeds, on which the other one was judged."""
    levels = {0.1: 0.0, 0.2: 0.02}
    sweep = changes(levels, tune=TUNE, confirm={"seeds": 7})

    def of(dispatch: Dispatch) -> dict[str, Any]:
        lr, seed = dispatch.job["optimizer"]["lr"], dispatch.job["seed"]
        temperature = dispatch.job["loss"]["temperature"]
        noise = random.Random(f"{temperature} {seed}").gauss(0, 0.002)
        return done(dispatch, 0.9 - 0.05 * abs(math.log10(lr) + 2) + levels[temperature] + noise)

    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, of)
        before = summarize(ledger)
        frozen = ledger.frozen()
    after = extend(tmp_path, sweep, Extend(trials=20), of)
    with opened(tmp_path, sweep) as (_, ledger, _, plan):
        assert len(ledger.suggestions("temperature=0.1")) == 23
        assert ledger.frozen() == frozen
        confirm = [trial for trial in ledger.trials(stage="confirm") if trial.seed not in plan.confirm_seeds]
        assert min(trial.seed for trial in confirm) > max(plan.confirm_seeds)
        assert Counter(trial.arm for trial in confirm) == {"temperature=0.1": 7, "temperature=0.2": 7}
        (rate,) = {trial.config.optimizer.lr for trial in confirm}
        first = float(str(frozen["temperature=0.1"].params["optimizer.lr"]))
        assert abs(math.log10(rate) + 2) < abs(math.log10(first) + 2)
    assert [one.result for one in after.comparisons] == [one.result for one in before.comparisons]
    assert after.exploratory is not None
    assert after.exploratory.seeds == [max(before.seeds) + 1 + seed for seed in range(7)]


def test_an_extension_that_is_killed_is_continued_by_a_resumption(tmp_path: Path) -> None:
    levels = {0.1: 0.0, 0.2: 0.0}
    sweep = changes(levels, confirm={"seeds": 7})
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, answer(levels))
    with opened(tmp_path, sweep, concurrent=1) as (session, ledger, _, plan):
        extension.record(plan, ledger, Extend(seeds=4))
        session.start()
        play(session, answer(levels), most=3)
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, answer(levels))
        assert trained(ledger) == {"temperature=0.1": 11, "temperature=0.2": 11}


def test_a_run_with_an_arm_that_was_stopped_is_extended_without_it(tmp_path: Path) -> None:
    """Its trials stay queued for ever. Mutant check: counting them as trials that have not ended."""
    levels = {0.1: 0.0, 0.2: 0.0, 0.5: 0.0}
    sweep = changes(levels, confirm={"seeds": 7})

    def fail(dispatch: Dispatch) -> dict[str, Any] | Failure:
        if dispatch.job["loss"]["temperature"] == 0.5:
            return Failure("user_error", None, "no such thing", "")
        return answer(levels)(dispatch)

    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, fail)
        assert ledger.trials(state="queued")
    with opened(tmp_path, sweep) as (session, ledger, _, plan):
        extension.record(plan, ledger, Extend(seeds=2), ["temperature=0.5"])
        session.start()
        play(session, fail)
        assert trained(ledger) == {"temperature=0.1": 9, "temperature=0.2": 9}


@pytest.mark.parametrize(
    ("wanted", "words"),
    [
        (Extend(), "nothing is asked for"),
        (Extend(seeds=2, arms=("temperature=0.3",)), "did you mean 'temperature=0"),
        (Extend(trials=2), r"has no \[tune\]"),
        (Extend(seeds=10**9), "too many"),
    ],
)
def test_what_cannot_be_added_is_refused_with_what_can_and_nothing_changes(
    tmp_path: Path, wanted: Extend, words: str
) -> None:
    levels = {0.1: 0.0, 0.2: 0.0}
    sweep = changes(levels, confirm={"seeds": 7})
    with opened(tmp_path, sweep) as (session, ledger, _, plan):
        with pytest.raises(RunError, match="under way"):
            extension.record(plan, ledger, Extend(seeds=1))
        session.start()
        play(session, answer(levels))
        before = ledger.events()
        with pytest.raises(RunError, match=words):
            extension.record(plan, ledger, wanted)
        assert ledger.events() == before


def findings(ledger: Ledger) -> list[str]:
    """What `verify` has against the frozen settings of a ledger."""
    facts: Any = SimpleNamespace(
        run=ledger.run, trials={t.id: t for t in ledger.trials()}, frozen=ledger.frozen(), restore=""
    )
    return [str(found) for found in ledger_checks._frozen(facts)]


@pytest.mark.parametrize("what", ["looks", "one arm's seeds", "a better setting"])
def test_verify_has_nothing_against_looks_and_extensions(tmp_path: Path, what: str) -> None:
    """Seen: arms that had ended at the first look, or that were not extended, lacked confirm trials."""
    levels = {0.1: 0.0, 0.2: 0.1, 0.5: 0.012}
    sweep = changes(levels) if what == "looks" else changes(levels, confirm={"seeds": 7})
    if what == "a better setting":
        sweep |= {"tune": TUNE}
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, answer(levels, 0.016))
        assert findings(ledger) == []
    wanted = {"one arm's seeds": Extend(seeds=2, arms=("temperature=0.2",)), "a better setting": Extend(trials=9)}
    if what in wanted:
        extend(tmp_path, sweep, wanted[what], answer(levels, 0.016))
        with opened(tmp_path, sweep) as (_, ledger, _, _plan):
            assert findings(ledger) == []


def test_an_extension_that_has_not_begun_is_not_added_to(tmp_path: Path) -> None:
    """Seen: killed before it had queued anything, the same command added the same number again."""
    levels = {0.1: 0.0, 0.2: 0.0}
    sweep = changes(levels, confirm={"seeds": 7})
    with opened(tmp_path, sweep) as (session, ledger, _, plan):
        session.start()
        play(session, answer(levels))
        extension.record(plan, ledger, Extend(seeds=4))
        with pytest.raises(RunError, match="has not begun; resume it first"):
            extension.record(plan, ledger, Extend(seeds=4))
    with opened(tmp_path, sweep) as (session, ledger, _, _plan):
        session.start()
        play(session, answer(levels))
        assert set(trained(ledger).values()) == {11}


def test_while_looks_go_on_nothing_is_exploratory_and_nothing_is_counted_below_none(tmp_path: Path) -> None:
    """Seen: a fixed test of what looks had looked at, for an arm that is equivalent and trains on; "-7 of 14"."""
    levels = {0.1: 0.0, 0.2: 0.0, 0.5: 0.012}
    said, seeds, _ = run(tmp_path, levels, 0.004)
    assert said["exploratory"] is None
    assert not any("have no result yet" in note or note.startswith("-") for note in said["notes"]), seeds
