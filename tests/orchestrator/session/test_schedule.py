"""What the ledger calls for, asked of real ledgers; whole sweeps are played in test_session."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from jobs.config import JobConfig
from orchestrator.ledger import Ledger, Trial, sqlite_url, this_process
from orchestrator.session.schedule import Schedule
from orchestrator.session.schedule.pruning import rung_count, rungs
from orchestrator.sweep import Sweep
from orchestrator.sweep.plan import Plan, make

JOB: dict[str, Any] = {
    "task": "image",
    "budget": {"steps": 8},
    "data": {"train": "digits[:1000]", "tune": "digits[1000:1400]", "confirm": "digits[1400:]"},
    "evaluate": {"times": 4},
}
SWEEP: dict[str, Any] = {
    "name": "small",
    "question": "Which?",
    "metric": {"name": "knn_accuracy"},
    "job": JOB,
    "compare": {"loss.name": ["infonce", "flatnce"]},
    "confirm": {"seeds": 3},
}


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger.create(sqlite_url(tmp_path / "ledger.db"), name="small", sweep={})
    made.acquire(this_process(), 30)
    yield made
    made.close()


def plan(**changes: Any) -> Plan:
    return make(Sweep.model_validate(SWEEP | changes))


def test_without_a_tune_stage_arms_are_frozen_as_given_and_take_turns(ledger: Ledger) -> None:
    schedule = Schedule(plan(), ledger)
    trials = schedule.advance()
    assert [(trials[one].seed, trials[one].arm) for one in schedule.due(trials.values())] == [
        (seed, arm) for seed in (0, 1, 2) for arm in ("infonce", "flatnce")
    ]
    assert {frozen.number for frozen in ledger.frozen().values()} == {None}


def test_asking_again_changes_nothing(ledger: Ledger) -> None:
    tune = {"trials": 3, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}}
    first = Schedule(plan(tune=tune), ledger).advance()
    again = Schedule(plan(tune=tune), ledger).advance()
    assert list(first) == list(again)
    assert [s.number for s in ledger.suggestions("infonce")] == [0]


@pytest.mark.parametrize(("parallel", "asked"), [(1, 1), (2, 2), (9, 3)])
def test_as_many_suggestions_are_in_flight_as_may_be(ledger: Ledger, parallel: int, asked: int) -> None:
    tune = {"trials": 3, "parallel": parallel, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1}}}
    Schedule(plan(tune=tune), ledger).advance()
    assert len(ledger.suggestions("flatnce")) == asked


def trial(**changes: Any) -> Trial:
    return Trial(
        id="x", stage="tune", arm="a", seed=0, job=JobConfig.model_validate(JOB | changes).model_dump(mode="json")
    )


def test_rungs_are_shares_of_the_budget() -> None:
    """Neither the untrained encoder, nor the end, nor what is not finite. Mutant check: counting the end fails this."""
    measured = {0: 0.1, 2: 0.2, 4: float("nan"), 6: 0.6, 8: 0.8}
    assert rungs(trial(), measured) == {1: 0.2, 3: 0.6}
    assert rung_count(trial()) == 3


def test_rungs_of_a_budget_in_seconds_are_its_evaluations_in_order() -> None:
    """Their steps are known only once they were made. Mutant check: counting the untrained encoder fails this."""
    timed = trial(budget={"seconds": 5.0})
    assert rungs(timed, {0: 0.1, 31: 0.2}) == {1: 0.2}
    assert rungs(timed, {77: 0.3, 31: 0.2, 0: 0.1, 110: 0.4, 150: 0.5}) == {1: 0.2, 2: 0.3, 3: 0.4}
    assert rung_count(timed) == 3
    slow = replace(timed, state="done", step=60)
    assert rungs(slow, {0: 0.1, 31: 0.2, 60: 0.3}) == {1: 0.2}, (
        "its end is no rung, though it came after one evaluation"
    )
