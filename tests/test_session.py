"""Decisions of a sweep, with the executor's part played by the test: what is run, in which order, and what follows."""

import contextlib
import random
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from jobs.config import JobConfig
from orchestrator.ledger import Ledger, sqlite_url, this_process
from orchestrator.plan import Plan, make
from orchestrator.runs import RunFolder
from orchestrator.schedule import rung_steps
from orchestrator.session import Dispatch, Failure, Session
from orchestrator.sweep import Sweep, resolved

SWEEP: dict[str, Any] = {
    "name": "small",
    "question": "Which?",
    "metric": {"name": "knn_accuracy", "smallest_difference": 0.01},
    "job": {
        "task": "image",
        "budget": {"steps": 8},
        "data": {"train": "digits[:1000]", "tune": "digits[1000:1400]", "confirm": "digits[1400:]"},
        "evaluate": {"times": 4},
    },
    "compare": {"loss.name": ["infonce", "flatnce"]},
    "tune": {"trials": 6, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}},
    "confirm": {"seeds": 3},
}


def score(job: dict[str, Any]) -> float:
    """A made-up metric, best at lr = 0.01, a little better for flatnce."""
    lr: float = job["optimizer"]["lr"]
    value: float = 0.9 - abs(lr - 0.01) + 0.01 * (job["loss"]["name"] == "flatnce") + 0.001 * int(job["seed"])
    return value


def done(dispatch: Dispatch) -> dict[str, Any]:
    value, steps = score(dispatch.job), JobConfig.model_validate(dispatch.job).evaluation_steps
    points = [
        {"key": "knn_accuracy", "step": step, "value": value * step / steps[-1], "time": 1.0 + step} for step in steps
    ]
    result = {
        "outcome": "ok",
        "step": steps[-1],
        "metrics": {"knn_accuracy": value},
        "untrained": {"knn_accuracy": 0.1},
    }
    return {"points": points, "step": steps[-1], "result": result}


def parts(report: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """A gang reports after every evaluation; the result comes with the last."""
    for point in report["points"]:
        last = point is report["points"][-1]
        yield {"points": [point], "step": point["step"], "result": report["result"] if last else None}


@contextlib.contextmanager
def opened(
    tmp_path: Path, changes: dict[str, Any], **options: Any
) -> Iterator[tuple[Session, Ledger, list[str], Plan]]:
    plan = make(Sweep.model_validate(SWEEP | changes))
    folder = RunFolder(tmp_path)
    url = sqlite_url(tmp_path / "ledger.db")
    if (tmp_path / "ledger.db").exists():
        ledger = Ledger.open(url)
    else:
        ledger = Ledger.create(url, name="small", sweep=resolved(plan.sweep) | {"plan": plan.summary()})
    ledger.acquire(this_process(), 30)
    said: list[str] = []
    session = Session(
        plan, ledger, folder, concurrent=options.pop("concurrent", 4), tell=lambda what, _: said.append(what), **options
    )
    try:
        yield session, ledger, said, plan
    finally:
        session.close()
        ledger.release()
        ledger.close()


def play(
    session: Session,
    answer: Callable[[Dispatch], dict[str, Any] | Failure] = done,
    *,
    order: random.Random | None = None,
    most: int = 10**6,
) -> list[Dispatch]:
    """Tune's part: ask for attempts, bring back answers, in any order, until nothing is left or `most` were run."""
    ran: list[Dispatch] = []
    flying: list[Dispatch] = []
    deadline = time.monotonic() + 60
    while not (session.finished() and not flying) and time.monotonic() < deadline:
        while len(ran) < most and (dispatch := session.next()) is not None:
            ran.append(dispatch)
            flying.append(dispatch)
        if flying:
            dispatch = flying.pop(order.randrange(len(flying)) if order else 0)
            report = answer(dispatch)
            if isinstance(report, Failure):
                session.lost(dispatch, report)
                continue
            for part in parts(report):
                pruned = session.prune(dispatch, part)
                session.report(dispatch, part)
                if pruned:
                    break
        elif len(ran) >= most:
            return ran
        else:
            time.sleep(0.002)
    return ran


def points_of(ledger: Ledger) -> dict[tuple[str, int], Any]:
    return {(s.arm, s.number): s.params for s in ledger.suggestions()}


def test_tune_then_freeze_then_confirm_and_the_best_setting_wins(tmp_path: Path) -> None:
    with opened(tmp_path, {}) as (session, ledger, _, plan):
        session.start()
        ran = play(session)
        assert len(ran) == len({d.trial for d in ran}) == plan.trials["tune"] + plan.trials["confirm"]
        trials = ledger.trials()
        assert {t.state for t in trials} == {"done"}
        for arm, frozen in ledger.frozen().items():
            tuned = [t for t in trials if t.arm == arm and t.stage == "tune"]
            best = max(tuned, key=lambda t: t.metric or 0)
            assert frozen.number == best.number
            confirmed = [t for t in trials if t.arm == arm and t.stage == "confirm"]
            assert {t.job["optimizer"]["lr"] for t in confirmed} == {best.job["optimizer"]["lr"]}
            assert [t.seed for t in confirmed] == [1, 2, 3]
            assert {t.job["stage"] for t in confirmed} == {"confirm"}


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("prune", ["none", "median", "halving"])
def test_the_points_do_not_depend_on_who_finishes_first(tmp_path: Path, parallel: int, prune: str) -> None:
    """Ten suggestions, so that the last ones see more than the sampler's start-up of four, after which it searches.

    Mutant check: asking as soon as fewer than `parallel` are in flight, with whatever has finished, fails for
    parallel = 3.
    """
    tune = SWEEP["tune"] | {"trials": 10, "parallel": parallel, "prune": prune}
    seen = []
    for shuffle in range(3):
        with opened(tmp_path / str(shuffle), {"tune": tune}) as (session, ledger, _, _plan):
            session.start()
            play(session, order=random.Random(shuffle))
            states = {t.id: (t.state, t.metric) for t in ledger.trials()}
            seen.append((points_of(ledger), ledger.frozen(), states))
    assert seen[0] == seen[1] == seen[2]


@pytest.fixture(autouse=True)
def _folders(tmp_path: Path) -> None:
    for name in "012":
        (tmp_path / name).mkdir()


@pytest.mark.parametrize("cut", [1, 3, 7, 12])
def test_a_session_cut_short_is_continued_with_the_same_points(tmp_path: Path, cut: int) -> None:
    with opened(tmp_path / "0", {}) as (session, ledger, _, _plan):
        session.start()
        play(session)
        expected = points_of(ledger), ledger.frozen()
    ran: list[str] = []
    for most in (cut, 10**6):
        with opened(tmp_path / "1", {}, concurrent=1) as (session, ledger, _, _plan):
            session.start()
            ran += [d.trial for d in play(session, most=most)]
            found = points_of(ledger), ledger.frozen()
    assert found == expected
    assert len(ran) == len(set(ran)), "a finished trial was run again"


def test_an_attempt_left_running_is_interrupted_and_does_not_count_against_retries(tmp_path: Path) -> None:
    with opened(tmp_path, {"retry": {"worker_lost": 0}}, concurrent=1) as (session, ledger, _, _plan):
        session.start()
        first = session.next()
        assert first is not None
        session.stop("SIGTERM")
    with opened(tmp_path, {"retry": {"worker_lost": 0}}, concurrent=1) as (session, ledger, _, _plan):
        (attempt,) = ledger.attempts(first.trial)
        assert (attempt.state, attempt.message) == ("interrupted", "SIGTERM")
        session.start()
        again = session.next()
        assert again is not None
        assert (again.trial, again.attempt) == (first.trial, 2)
        session.report(again, done(again))


def test_a_lost_worker_is_retried_as_often_as_its_class_allows(tmp_path: Path) -> None:
    def lose(dispatch: Dispatch) -> dict[str, Any] | Failure:
        if dispatch.job["seed"] == 2:
            return Failure("worker_lost", 1, f"rank 1 died in trial {dispatch.trial}", "trace")
        return done(dispatch)

    with opened(tmp_path, {"retry": {"worker_lost": 2}}) as (session, ledger, said, _plan):
        session.start()
        play(session, lose)
        lost = [t for t in ledger.trials() if t.seed == 2]
        assert {(t.state, t.attempts, t.failure) for t in lost} == {("failed", 3, "worker_lost")}
        assert all("rank 1 died" in (t.message or "") for t in lost)
        assert {t.state for t in ledger.trials() if t.seed != 2} == {"done"}
        assert sum("it gets another attempt" in line for line in said) == 4
        assert (RunFolder(tmp_path).trial(lost[0].id) / "failure.attempt1.txt").read_text() == "trace"


def test_three_trials_that_fail_in_the_same_words_stop_the_sweep(tmp_path: Path) -> None:
    with opened(tmp_path, {}) as (session, ledger, _, _plan):
        session.start()
        play(session, lambda _: Failure("user_error", 0, "KeyError: 'labell'", ""))
        assert session.stopped_by is not None
        assert "3 trials failed in the same way: KeyError: 'labell'" in session.stopped_by
        assert len(ledger.trials(state="failed")) == 3


def test_a_metric_that_was_not_measured_fails_that_attempt_and_names_what_was(tmp_path: Path) -> None:
    def without(dispatch: Dispatch) -> dict[str, Any]:
        report = done(dispatch)
        if dispatch.job["seed"] == 1:
            report["result"]["metrics"] = {"uniformity": -1.0}
        return report

    with opened(tmp_path, {}) as (session, ledger, _, _plan):
        session.start()
        play(session, without)
        failed = ledger.trials(state="failed")
        assert {t.seed for t in failed} == {1}
        assert "'knn_accuracy' was not measured; the trial measured uniformity" in (failed[0].message or "")


def test_an_arm_of_which_every_suggestion_failed_is_not_frozen(tmp_path: Path) -> None:
    def fail(dispatch: Dispatch) -> dict[str, Any] | Failure:
        if dispatch.job["loss"]["name"] == "flatnce":
            return Failure("user_error", 0, f"bad luck {dispatch.trial}", "")
        return done(dispatch)

    with opened(tmp_path, {}) as (session, ledger, _, _plan):
        session.start()
        play(session, fail)
        assert set(ledger.frozen()) == {"infonce"}
        assert len(ledger.trials(stage="confirm", state="done")) == 3


def test_a_repeated_point_takes_the_recorded_result_and_counts(tmp_path: Path) -> None:
    tune = {"trials": 4, "sampler": "random", "space": {"optimizer.lr": {"choices": [0.01]}}}
    with opened(tmp_path, {"tune": tune}) as (session, ledger, _, _plan):
        session.start()
        ran = play(session)
        assert len(ledger.suggestions("infonce")) == 4
        assert sum(d.job["stage"] == "tune" for d in ran) == 2


def test_a_pruned_trial_ends_at_its_rung_and_confirm_trials_never_do(tmp_path: Path) -> None:
    tune = SWEEP["tune"] | {"prune": "median", "trials": 8}
    with opened(tmp_path, {"tune": tune}) as (session, ledger, _, _plan):
        session.start()
        play(session)
        pruned = ledger.trials(state="pruned")
        assert pruned
        assert {t.stage for t in pruned} == {"tune"}
        assert all((t.metric is not None and t.step in rung_steps(t)) or t.step == 8 for t in pruned)
        assert {t.state for t in ledger.trials(stage="confirm")} == {"done"}


def test_execution_settings_of_a_resume_reach_the_attempt_and_stay(tmp_path: Path) -> None:
    with opened(tmp_path, {}, concurrent=1, execution={"micro": 4}) as (session, ledger, _, _plan):
        session.start()
        first = session.next()
        assert first is not None
        assert first.job["execution"]["micro"] == 4
        assert ledger.trial(first.trial).job["execution"]["micro"] is None
    with opened(tmp_path, {}, concurrent=1) as (session, ledger, _, _plan):
        session.start()
        again = session.next()
        assert again is not None
        assert (again.trial, again.job["execution"]["micro"]) == (first.trial, 4)
        assert [a.execution for a in ledger.attempts(first.trial)] == [{"micro": 4}, {"micro": 4}]


def test_the_first_attempt_of_every_arm_and_no_other_verifies_its_gradient(tmp_path: Path) -> None:
    with opened(tmp_path, {}) as (session, ledger, _, _plan):
        session.start()
        play(session)
        verified = [t for t in ledger.trials() for a in ledger.attempts(t.id) if a.execution == {"verify": True}]
        assert sorted((t.arm, t.stage, t.number) for t in verified) == [("flatnce", "tune", 0), ("infonce", "tune", 0)]


def test_a_lost_lease_stops_the_session(tmp_path: Path) -> None:
    with opened(tmp_path, {}) as (session, ledger, _, _plan):
        session.start()
        other = Ledger.open(sqlite_url(tmp_path / "ledger.db"))
        ledger.release()
        other.acquire("somebody else", 30)
        play(session)
        assert session.broken is not None
        assert session.stopping()
        other.close()
