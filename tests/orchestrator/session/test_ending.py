"""How sessions end: exit codes, and words of what happened and of nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ledgers
import pytest
from real import call
from test_session import SWEEP, diverging, done, opened, out_of_memory_at, play

from jobs.core.failures import Failure
from orchestrator.driver import apply_retry
from orchestrator.run_dir.context import Options, RetryFailed
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session import ending
from orchestrator.session.schedule import Schedule
from orchestrator.session.writer import Dispatch

Answer = Callable[[Dispatch], dict[str, Any] | Failure]


def fails(text: str, kind: str = "user_error") -> Answer:
    """Every trial of flatnce fails, each in words of its own if `text` has a place for a number."""
    seen: list[str] = []

    def answer(dispatch: Dispatch) -> dict[str, Any] | Failure:
        if dispatch.job["loss"]["name"] == "flatnce":
            seen.append(dispatch.trial)
            return Failure(kind, 0, text.format("abcdefghij"[len(seen)]), "")
        return done(dispatch)

    return answer


@pytest.mark.parametrize(
    ("changes", "answer", "code", "state", "words", "silent"),
    [
        ({}, done, 0, "done", [], ["failed", "continue", "diverges"]),
        ({}, fails("bug {}"), 1, "done", ["could not be tuned: none of its 6", "6 trials failed"], ["is stopped"]),
        (
            {"tune": SWEEP["tune"] | {"trials": 3}},
            fails("the same bug"),
            1,
            "done",
            ["flatnce is stopped", "3 trials failed", "--failed"],
            ["continue"],
        ),
        ({}, fails("the same bug"), 1, "stopped", ["flatnce is stopped", "3 trials failed"], ["could not be tuned"]),
        ({"tune": None}, fails("bug {}"), 1, "done", ["3 trials failed", "--failed"], ["is stopped", "diverges"]),
        ({}, diverging(None), 0, "done", ["flatnce diverges: none of its 6 suggestions"], ["failed", "--failed"]),
        ({}, out_of_memory_at(3), 1, "stopped", ["tuning of flatnce waits", "--give-up"], ["is stopped"]),
    ],
    ids=["well", "no setting", "one bug in all", "one bug", "confirm trials", "divergence", "memory"],
)
def test_an_ending_is_told_as_what_it_was(
    tmp_path: Path, changes: dict[str, Any], answer: Answer, code: int, state: str, words: list[str], silent: list[str]
) -> None:
    """Seen: "some trials failed" where none had."""
    with opened(tmp_path, changes) as (session, _ledger, _, _plan):
        session.start()
        play(session, answer)
        found = ending.of(session)
        assert (found.code, found.state) == (code, state)
        said = "\n".join(found.lines)
        assert all(word in said for word in words), said
        assert not any(word in said for word in silent), said


def test_a_run_that_is_done_but_for_an_arm_without_a_setting_is_taken_up_where_a_person_wants_it(
    tmp_path: Path,
) -> None:
    """Seen: the run stayed `stopped`, every resume examined everything and exited 1, and no encoder was ever logged."""
    with opened(tmp_path, {}) as (session, ledger, _, _plan):
        session.start()
        play(session, fails("bug {}"))
        ledger.set_run(state=ending.of(session).state)
        for retry, is_left in ((None, False), (RetryFailed(give_up=True), False), (RetryFailed(), True)):
            assert replace(session.context, options=Options(retry=retry)).is_left is is_left
        apply_retry(ledger, RetryFailed())
    with opened(tmp_path, {}) as (session, ledger, _, _plan):
        session.start()
        play(session)
        found = ending.of(session)
        assert (found.code, found.state, found.lines) == (0, "done", ())
        assert set(ledger.frozen()) == {"infonce", "flatnce"}


@pytest.mark.parametrize(("count", "words"), [(1, "1 trial failed, and somebody gave it up"), (2, "gave them up")])
def test_what_was_given_up_is_counted_in_grammar(tmp_path: Path, count: int, words: str) -> None:
    with opened(tmp_path, {"tune": None}, concurrent=1) as (session, ledger, _, _plan):
        session.start()
        play(
            session, lambda d: Failure("user_error", 0, "a bug", "") if int(d.job["seed"]) < count else done(d), most=5
        )
        for trial in ledger.trials(state="failed")[count:]:
            ledger.requeue(trial.id)
        for trial in ledger.trials(state="failed"):
            ledger.give_up(trial.id)
        assert words in "\n".join(ending.of(session).lines)


@pytest.mark.parametrize(("interrupted", "code"), [(True, 130), (False, 1)])
def test_a_session_that_was_stopped_says_why_and_how_to_go_on(tmp_path: Path, interrupted: bool, code: int) -> None:
    with opened(tmp_path, {"tune": None}, concurrent=1) as (session, _ledger, _, _plan):
        session.start()
        play(session, most=2)
        session.interrupt("SIGINT") if interrupted else session.stop("no reason")
        found = ending.of(session)
        assert (found.code, found.state) == (code, "stopped")
        assert found.lines[0] == f"stopped: {'SIGINT' if interrupted else 'no reason'}"
        assert "orchestrator resume" in found.lines[1]
        assert "failed" not in "".join(found.lines)


def test_a_session_that_ends_before_its_time_does_not_say_that_trials_failed(tmp_path: Path) -> None:
    """It should not happen, and if it does the words are true."""
    with opened(tmp_path, SWEEP, concurrent=1) as (session, _ledger, _, _plan):
        session.start()
        play(session, most=2)
        found = ending.of(session)
        assert (found.code, found.state) == (1, "stopped")
        assert found.lines == (
            f"the session ended before every trial did; continue: orchestrator resume {RunFolder(tmp_path).quoted}",
        )


@pytest.mark.soak
def test_the_process_of_a_run_with_an_arm_that_cannot_be_tuned_ends_with_1_and_the_run_is_done(tmp_path: Path) -> None:
    """Whatever was left to be done is done; nothing is examined or trained by the next resume, which ends alike."""
    run = ledgers.start(tmp_path / "runs" / "small", tune=ledgers.TUNED)
    words = iter("abcdefghijklmnop")
    for _ in range(3):
        Schedule(run.plan, run.ledger).advance()
        for trial in run.ledger.trials(state="queued"):
            if trial.arm == "flat":
                run.lost(trial, f"bug {next(words)}")
            else:
                run.done(trial, 0.9)
    Schedule(run.plan, run.ledger).advance()
    for trial in run.ledger.trials(state="queued"):
        run.done(trial, 0.9)
    run.ledger.set_run(state="running")
    run.ledger.release()
    for _ in range(2):
        said = call("resume", "small", "--offline", cwd=tmp_path, code=1, stdout=True)
        assert "arm flat could not be tuned: none of its 3 suggestions trained to its end" in said
        assert run.ledger.run.state == "done"
