"""What `status` says of every trial: its tuned settings, by whichever way it came to them, and its times."""

from __future__ import annotations

import time
from pathlib import Path

import pytest
from ledgers import TUNED, Begin, answer_of, tuned
from test_session import opened, play
from test_tuned_again import changes, noisy

from orchestrator.ledger import Ledger
from orchestrator.run_dir.context import Extend
from orchestrator.run_dir.status import status
from orchestrator.session.schedule import extension


def rates(ledger: Ledger) -> dict[str, tuple[object, float]]:
    """The learning rate of each trial as `status` has it among its settings, and as its job has it."""
    jobs = {trial.id: trial.config.optimizer.lr for trial in ledger.trials()}
    return {
        trial["id"]: ((trial["params"] or {}).get("optimizer.lr"), jobs[trial["id"]])
        for trial in status(ledger)["trials"]
    }


def test_a_trial_has_the_settings_of_its_suggestion_and_a_confirmed_one_those_of_its_arm(tmp_path: Path) -> None:
    run = tuned(tmp_path / "run")
    stood = status(run.ledger)
    assert all(told == trained for told, trained in rates(run.ledger).values())
    assert [arm["frozen"] for arm in stood["arms"]] == [
        {"params": {"optimizer.lr": 2e-3}, "number": 2, "hash": "abc"}
    ] * 2
    assert [arm["settings"] for arm in stood["arms"]] == [{}, {"loss.name": "flatnce"}]
    run.ledger.close()


@pytest.mark.parametrize("repeats", [3, 6])
def test_with_repeats_each_confirm_seed_has_the_setting_of_its_own(tmp_path: Path, repeats: int) -> None:
    """Mutant check: the frozen setting, which is that of the first repeat, for all."""
    with opened(tmp_path, changes(repeats, 2 * repeats)) as (session, ledger, _, _plan):
        session.start()
        play(session, noisy)
        found, answer = rates(ledger), answer_of(ledger)
        confirm = {trial.id for trial in ledger.trials(stage="confirm")}
    assert all(told == trained for told, trained in found.values())
    assert len({trained for trial, (_, trained) in found.items() if trial in confirm}) > 2
    told = {value["trial"]: value["params"]["optimizer.lr"] for arm in answer["arms"] for value in arm["values"]}
    assert told == {trial: trained for trial, (_, trained) in found.items() if trial in confirm}


def test_an_extension_that_chooses_another_setting_is_told_by_its_trials(tmp_path: Path) -> None:
    with opened(tmp_path, changes(1, 6)) as (session, ledger, _, plan):
        session.start()
        play(session, noisy)
    with opened(tmp_path, changes(1, 6)) as (session, ledger, _, plan):
        extension.record(plan, ledger, Extend(trials=24))
        session.start()
        play(session, noisy)
        found = rates(ledger)
        confirm = {trial.id for trial in ledger.trials(stage="confirm")}
        answer_of(ledger)
    assert all(told == trained for told, trained in found.values())
    assert len({trained for trial, (_, trained) in found.items() if trial in confirm}) > 2, (
        "a newer setting was confirmed"
    )


def test_an_arm_that_is_tuned_with_another_has_its_own_entry(tmp_path: Path) -> None:
    compare = {"execution.micro": [8, 16]}
    with opened(tmp_path, changes(1, 2) | {"compare": compare}) as (session, ledger, _, plan):
        session.start()
        play(session, noisy)
        stood, found = status(ledger), rates(ledger)
    assert plan.searched_with
    assert all(told == trained for told, trained in found.values())
    assert all(arm["frozen"] for arm in stood["arms"])


def test_where_nothing_is_tuned_there_are_no_settings_and_what_is_not_known_is_none(
    begin: Begin, tmp_path: Path
) -> None:
    untuned = begin()
    untuned.confirm("flat")
    assert {str(trial["params"]) for trial in status(untuned.ledger)["trials"]} == {"{}"}
    unfrozen = begin(tune=TUNED)
    unfrozen.confirm("flat", {"optimizer.lr": 0.5})
    assert {str(trial["params"]) for trial in status(unfrozen.ledger)["trials"]} == {"None"}


def test_times_are_those_of_the_ledger_to_the_millisecond(begin: Begin) -> None:
    run, before = begin(), time.time()
    first, second, *_ = run.confirm("flat")
    run.done(first, 0.9)
    run.ledger.start_attempt(second.id, {}, "here")
    ended, running, queued = status(run.ledger)["trials"][:3]
    kept = run.ledger.trial(first.id)
    for told, there in ((ended["started"], kept.started), (ended["ended"], kept.ended)):
        assert abs((told or 0.0) - (there or 0.0)) < 6e-4
    assert ended["seconds"] == 2.5
    assert before - 0.01 <= (ended["created"] or 0) <= (ended["started"] or 0) <= (ended["ended"] or 0)
    assert (running["ended"], running["seconds"], queued["started"]) == (None, None, None)
