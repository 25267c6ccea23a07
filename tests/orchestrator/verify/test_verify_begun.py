"""A finished run of the first version, told to MLflow as that version did: it verifies as it stands, and what is odd
about what `verify` reads is named for what it is."""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from mounts import read_only
from projected import as_before

from orchestrator import tracking
from orchestrator.ledger import this_process
from orchestrator.run_dir.folder import RunError, RunFolder
from orchestrator.tracking import Projection
from orchestrator.tracking.store import connect
from orchestrator.verify import Verified, verify

BEGUN = Path(__file__).parents[2] / "begun" / "diverged"


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of runs in which `diverged` lies, and its MLflow. For everybody: nothing in it may change."""
    home = tmp_path_factory.mktemp("told") / "runs"
    shutil.copytree(BEGUN, home / "diverged")
    uri = tracking.embedded_uri(home)
    tell(RunFolder(home / "diverged"), uri)
    client = connect(uri)
    with contextlib.closing(RunFolder(home / "diverged").open()) as ledger:
        as_before(ledger, uri)
        diverged = [trial.mlflow_run_id or "" for trial in ledger.trials() if trial.outcome == "diverged"]
    for run_id in diverged:
        client.set_terminated(run_id, "FINISHED", client.get_run(run_id).info.end_time)
        client.delete_tag(run_id, "outcome")
    assert len(diverged) > 1
    return home


@pytest.fixture
def copy(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    for name in ("MLFLOW_TRACKING_URI", "ORCHESTRATOR_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(told, tmp_path / "runs")
    return RunFolder(tmp_path / "runs" / "diverged")


def tell(folder: RunFolder, uri: str) -> None:
    """What a session tells MLflow."""
    with contextlib.closing(folder.open()) as ledger:
        ledger.acquire(this_process(), 600)
        projection = Projection(ledger, uri)
        assert projection.flush(), projection.last_error
        ledger.release()


def checked(folder: RunFolder) -> Verified:
    return verify(folder, tracking.embedded_uri(folder.path.parent))


def test_a_run_of_before_verifies_as_it_was_told(copy: RunFolder) -> None:
    """Seen: each of its diverged trials was two faults until a resume, which nobody can do to a run that cannot be
    written to. A resume shows them as today."""
    found = checked(copy)
    assert found["faults"] == []
    (note,) = [note for note in found["notes"] if "MLflow" in note]
    assert "FINISHED" in note
    assert "shown as FAILED: orchestrator resume" in note
    tell(copy, tracking.embedded_uri(copy.path.parent))
    found = checked(copy)
    assert (found["faults"], [note for note in found["notes"] if "MLflow" in note]) == ([], [])
    runs = tracking.runs_of(tracking.embedded_uri(copy.path.parent), uuid_of(copy))
    assert {run["status"] for run in runs if run["tags"].get("outcome") == "diverged"} == {"FAILED"}


@pytest.mark.parametrize("damage", ["half told", "another status", "another seed"])
def test_and_in_no_other_way(copy: RunFolder, damage: str) -> None:
    """Mutant checks: accepting any status, any tags, or either of the two alone."""
    uri = tracking.embedded_uri(copy.path.parent)
    client = connect(uri)
    run_id = next(
        run["run_id"]
        for run in tracking.runs_of(uri, uuid_of(copy))
        if run["kind"] == "trial" and run["tags"]["orchestrator.outcome"] == "diverged"
    )
    if damage == "half told":
        client.set_tag(run_id, "outcome", "diverged")
    elif damage == "another status":
        client.set_terminated(run_id, "KILLED")
    else:
        client.set_tag(run_id, "seed", "77")
    assert any("orchestrator resume" in fault for fault in checked(copy)["faults"])


def uuid_of(folder: RunFolder) -> str:
    with contextlib.closing(folder.open()) as ledger:
        return ledger.uuid


# What is odd is named


def test_a_word_among_what_the_audit_says_is_not_the_ledgers_fault(
    copy: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: "the ledger is damaged: put back a copy", for a word that something printed at the start of Python."""
    (tmp_path / "noisy").mkdir()
    (tmp_path / "noisy" / "sitecustomize.py").write_text("print('a word of somebody else')\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path / "noisy"), prepend=os.pathsep)
    with pytest.raises(RunError, match=r"a word of somebody else.*python -m jobs.artifacts.audit") as refusal:
        checked(copy)
    assert "ledger" not in str(refusal.value)


@pytest.mark.parametrize(
    "odd",
    [
        "UPDATE runs SET start_time = NULL WHERE rowid % 2",
        "UPDATE metrics SET step = 'a word'",
        "UPDATE tags SET value = NULL WHERE key = 'orchestrator.trial'",
    ],
)
def test_an_odd_answer_of_mlflow_is_mlflows(copy: RunFolder, odd: str) -> None:
    """Seen: a run without its start was "the ledger is damaged". Whatever is made of it, the ledger is not to blame."""
    with contextlib.closing(sqlite3.connect(copy.path.parent / "mlflow.db")) as database, database:
        assert database.execute(odd).rowcount > 0
    try:
        found = checked(copy)["faults"]
    except tracking.TrackingUnavailable as error:
        found = [str(error)]
    assert found
    assert not any("the ledger" in fault and "is damaged" in fault for fault in found)
    assert not any(fault.startswith("what the ledger has") for fault in found)
    assert any("MLflow" in fault for fault in found)


def test_an_odd_row_of_the_ledger_is_the_ledgers(copy: RunFolder) -> None:
    """As before."""
    with contextlib.closing(sqlite3.connect(copy.path / "ledger.db")) as database, database:
        database.execute("UPDATE trials SET job = 'a word'")
    (fault,) = checked(copy)["faults"]
    assert "ledger.db is damaged: 'a word' is no JSON" in fault
    assert "put back a copy of it" in fault


# A store that cannot be written to


@pytest.mark.parametrize(
    "state",
    [
        *("whole", "damaged at its start", "damaged in its middle"),
        pytest.param("locked", marks=pytest.mark.soak),
        "of a newer version",
    ],
)
def test_a_store_that_is_read_only_is_read_or_named(told: Path, tmp_path: Path, state: str) -> None:
    """It is read by way of a copy. Seen: what ailed it was "a fault of the program", or was said of the copy, which is
    gone by then. A locked one would be waited for without end."""
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "another name.db"
    uri = f"sqlite:///{path}"
    shutil.copy(told / "mlflow.db", path)
    held = sqlite3.connect(path, isolation_level=None)
    if state.startswith("damaged"):
        content = path.read_bytes()
        start = 4096 if state == "damaged at its start" else len(content) // 2 // 4096 * 4096
        path.write_bytes(content[:start] + b"garbage " * ((len(content) - start) // 8))
    elif state == "of a newer version":
        held.execute("UPDATE alembic_version SET version_num = 'feedfeedfeed'")
    elif state == "locked":
        held.execute("PRAGMA journal_mode = WAL")
        held.execute("SELECT * FROM alembic_version").fetchall()  # makes the side file by which others see the lock
        held.execute("PRAGMA locking_mode = EXCLUSIVE")
        held.execute("BEGIN EXCLUSIVE")
        held.execute("UPDATE alembic_version SET version_num = version_num")
        assert path.with_name(f"{path.name}-shm").exists()
    uuid = uuid_of(RunFolder(told / "diverged"))
    with contextlib.closing(held), read_only(tmp_path / "runs"):
        if state == "whole":
            assert len(tracking.runs_of(uri, uuid)) == 13
            return
        with pytest.raises(tracking.TrackingUnavailable) as refusal:
            tracking.runs_of(uri, uuid)
    said = str(refusal.value)
    assert said.startswith(f"MLflow at {uri}: ")
    assert said.count(str(path)) >= 1
    assert str(path.parent) in refusal.value.remedy or state == "locked"
    assert tempfile.gettempdir() not in said.replace(str(tmp_path), "")
    assert ("try again" in said) == (state == "locked")


KILLED = """
import os, signal, sqlite3, sys
held = sqlite3.connect(sys.argv[1], isolation_level=None)
held.execute("PRAGMA cache_size = 1")
held.execute("BEGIN")
held.execute("DELETE FROM metrics")
held.execute("UPDATE tags SET value = 'half written'")
held.execute("CREATE TABLE more AS WITH RECURSIVE n(k) AS (SELECT 1 UNION ALL SELECT k + 1 FROM n WHERE k < 500) "
             "SELECT k, randomblob(4000) FROM n")
os.kill(os.getpid(), signal.SIGKILL)
"""
"""Leaves pages of a transaction that never ended in the file, and beside it the journal that takes them back."""


@pytest.mark.parametrize("writable", [True, False])
def test_what_a_killed_driver_was_writing_to_the_store_is_taken_back(
    told: Path, tmp_path: Path, writable: bool
) -> None:
    """Seen: a driver that was killed while it told MLflow, after which every launch and `verify` ended with 4, "is no
    database of SQLite (attempt to write a readonly database)". Mutant checks: `mode=ro` where it can be written to;
    `immutable` where it can not reads what was half written."""
    (tmp_path / "runs").mkdir()
    path = tmp_path / "runs" / "mlflow.db"
    shutil.copy(told / "mlflow.db", path)
    subprocess.run([sys.executable, "-c", KILLED, str(path)], check=False)
    assert path.with_name("mlflow.db-journal").stat().st_size > 0
    uri, uuid = f"sqlite:///{path}", uuid_of(RunFolder(told / "diverged"))
    with contextlib.nullcontext() if writable else read_only(tmp_path / "runs"):
        tracking.check(uri)
        found = tracking.runs_of(uri, uuid)
    assert found == tracking.runs_of(f"sqlite:///{told / 'mlflow.db'}", uuid)
    assert path.with_name("mlflow.db-journal").exists() is not writable
