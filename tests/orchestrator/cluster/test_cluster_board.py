"""What a driver in a job of the cluster leaves of its run where the job server tells it."""

from __future__ import annotations

import json
import random
import threading
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import Begin

from orchestrator.ledger import Ledger, RunState
from orchestrator.run_dir.status import Status, trial_status
from orchestrator.run_dir.status import status as known_status
from orchestrator.session.cluster import board
from orchestrator.session.cluster.board import FRESH_S, KEY, LARGEST, kept, own_job, packed, read

VALUES = st.dictionaries(st.text(), st.none() | st.booleans() | st.integers() | st.text() | st.floats(allow_nan=False))


@given(VALUES, st.lists(VALUES, max_size=5))
def test_what_is_read_is_what_was_packed(head: dict[str, object], trials: list[dict[str, object]]) -> None:
    status = {**head, "trials": trials}
    found = read(packed(status, at=7.5))
    assert found is not None
    assert (found.status, found.at, found.left_out) == (status, 7.5, False)


def test_thousands_of_trials_find_room_with_all_that_is_known_of_them(begin: Begin) -> None:
    """Ids, times and values that nothing can foretell. Mutant check: a row for each trial."""
    chance, (trial, *_) = random.Random(0), begin().confirm("flat")
    blank: Any = trial_status(trial, {"optimizer.lr": 0.01})
    trials = []
    for number in range(3_800):
        began = 1.79e9 + 7 * number + round(chance.random(), 3)
        times = {"created": 1.79e9, "started": began, "ended": began + round(60 * chance.random(), 3), "seconds": 60.5}
        ids = {"id": f"{chance.getrandbits(48):012x}", "mlflow_run_id": f"{chance.getrandbits(128):032x}"}
        trials.append(blank | ids | times | {"metric": chance.random(), "seed": number})
    found = read(packed({"trials": trials}, at=1.0))
    assert found is not None
    assert (found.left_out, found.status["trials"]) == (False, trials)


@given(st.text())
def test_what_another_program_has_written_is_nothing(text: str) -> None:
    """Mutant check: without one of the errors in `read` a metadata of another version ends `status --address`."""
    assert read(text) is None


def test_a_run_too_large_for_metadata_keeps_its_counts_and_says_so() -> None:
    trials = [{"id": f"{number * 2654435761 % 2**64:016x}{number:08x}"} for number in range(60_000)]
    status = {"state": "running", "counts": {"done": 60_000}, "trials": trials}
    text = packed(status, at=1.0)
    found = read(text)
    assert len(text) <= LARGEST
    assert found is not None
    assert found.left_out
    assert dict(found.status) == {**status, "trials": []}


@pytest.mark.parametrize("size", [300_000, pytest.param(3_000_000, marks=pytest.mark.soak)])
def test_not_even_a_long_question_makes_it_too_long(size: int) -> None:
    """Of texts that cannot be packed. Mutant check: leaving out the trials alone."""
    question = "".join(map(chr, random.Random(size).choices(range(0x4E00, 0x9C00), k=size)))
    text = packed({"state": "running", "question": question, "waits": None, "trials": []}, at=1.0)
    found = read(text)
    assert found is not None
    assert len(text) <= LARGEST
    assert (found.left_out, found.status["question"]) == (True, question[:1000])


def test_what_a_driver_said_long_ago_says_nothing_of_now() -> None:
    found = read(packed({"trials": []}, at=100.0))
    assert found is not None
    assert found.is_fresh(100.0 + FRESH_S)
    assert not found.is_fresh(100.1 + FRESH_S)


@pytest.mark.parametrize(
    ("told", "job"),
    [
        ({"metadata": {"job_submission_id": "small-1", board.OURS: "s3://b/small"}}, "small-1"),
        ({"metadata": {"job_submission_id": "raysubmit_1"}}, None),
        ({}, None),
        ("no object", None),
    ],
)
def test_only_the_driver_in_a_job_of_ours_keeps_one(
    monkeypatch: pytest.MonkeyPatch, told: object, job: str | None
) -> None:
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(told))
    assert own_job() == job
    monkeypatch.delenv("RAY_JOB_CONFIG_JSON_ENV_VAR")
    assert own_job() is None


def test_it_is_written_when_something_changes_and_goes_with_the_driver(
    begin: Begin, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant check: writing every time, or leaving the last one there."""
    run, over = begin(), threading.Event()
    monkeypatch.setattr(board, "EVERY_S", 0.001)
    monkeypatch.setattr(board, "BEAT_S", 3600.0)
    changes: dict[int, RunState] = {4: "running", 8: "done"}
    looked = iter(range(13))

    def status(ledger: Ledger) -> Status:
        look = next(looked)
        if look in changes:
            ledger.set_run(state=changes[look])
        if look == 12:
            over.set()
        return known_status(ledger)

    monkeypatch.setattr(board, "status", status)
    seen: list[str | None] = []
    board._keep(run.ledger, seen.append, over)
    found = [read(text) for text in seen if text]
    assert [one.status["state"] for one in found if one is not None] == ["planned", "running", "done"]
    assert seen[-1] is None
    assert found[-1] is not None
    assert found[-1].status == known_status(run.ledger)


def test_a_cluster_that_does_not_keep_it_costs_a_note_and_no_session(
    begin: Begin, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    metadata = {"metadata": {"job_submission_id": "small-1", board.OURS: "s3://b/small"}}
    monkeypatch.setenv("RAY_JOB_CONFIG_JSON_ENV_VAR", json.dumps(metadata))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with kept(begin().ledger):
        pass
    said = capsys.readouterr().err
    assert said.count("note: ") == 1
    assert "`status --address` is slow: KeyError" in said
    assert KEY not in said
