"""A sweep that really ran is in order; damaged in any way that is looked for, it gives that fault and no other."""

from __future__ import annotations

import contextlib
import json
import random
import re
import shutil
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from answers import answered
from click.testing import CliRunner
from real import TRIALS, call

from orchestrator import tracking
from orchestrator.cli import main
from orchestrator.ledger import this_process
from orchestrator.run_dir.folder import RunFolder
from orchestrator.tracking.arms import RECORDED
from orchestrator.tracking.store import connect
from orchestrator.verify import SHOWN, Verified, faults_after, mend, verify


@dataclass(frozen=True)
class Copy:
    """A finished run that may be damaged, and one of its confirm trials."""

    folder: RunFolder
    uuid: str
    trial: str
    mlflow_run: str
    parent: str

    @property
    def uri(self) -> str:
        return tracking.embedded_uri(self.folder.path.parent)

    @property
    def files(self) -> Path:
        return self.folder.trial(self.trial)

    def checkpoint(self, step: int) -> Path:
        return self.files / "checkpoints" / f"step_{step:06d}"

    def ledger(self, statement: str, **values: Any) -> None:
        """SQL on the ledger; :trial is known."""
        self._do(self.folder.path / "ledger.db", statement, values)

    def mlflow(self, statement: str, **values: Any) -> None:
        """SQL on MLflow's store; :run is the trial's and :parent the sweep's."""
        self._do(self.folder.path.parent / "mlflow.db", statement, values)

    def verify(self) -> Verified:
        return verify(self.folder, self.uri)

    def _do(self, path: Path, statement: str, values: dict[str, Any]) -> None:
        known = {"uuid": self.uuid, "trial": self.trial, "run": self.mlflow_run, "parent": self.parent, **values}
        with contextlib.closing(sqlite3.connect(path)) as database, database:
            changed = database.execute(statement, {key: v for key, v in known.items() if f":{key}" in statement})
            assert changed.rowcount > 0, f"this changes nothing: {statement}"


RAN: dict[str, Any] = {
    "code": "ab12cd34" * 8,
    "versions": {"torch": "2.13.0", "numpy": "2.4.0"},
    "data": {f"data.{role} = x.csv": str(digit) * 64 for digit, role in enumerate(("train", "tune", "confirm"))},
    "weights": {"encoder": "w" * 64},
}
"""What every attempt ran with."""

BEGUN = RAN | {
    kind: {what: {"bytes": 1, "digest": digest} for what, digest in RAN[kind].items()} for kind in ("data", "weights")
}


@pytest.fixture
def copy(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Copy:
    for name in ("MLFLOW_TRACKING_URI", "ORCHESTRATOR_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(finished / "runs", tmp_path / "runs")
    folder = RunFolder(tmp_path / "runs" / "small")
    with contextlib.closing(folder.open()) as ledger:
        run, trial = ledger.run, ledger.trials(stage="confirm")[0]
    assert run.mlflow_run_id is not None
    assert trial.mlflow_run_id is not None
    made = Copy(folder, run.uuid, trial.id, trial.mlflow_run_id, run.mlflow_run_id)
    made.ledger("UPDATE runs SET provenance = :begun", begun=json.dumps(BEGUN))
    made.ledger("UPDATE attempts SET provenance = :ran", ran=json.dumps(RAN))
    # What is done to a trial shows in its arm too: tests/orchestrator/tracking/test_arms.py is about those.
    made.ledger("DELETE FROM events WHERE kind = :kind", kind=RECORDED)
    return made


# Damages


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def edit(path: Path, **values: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def edit_points(copy: Copy, change: Callable[[list[dict[str, Any]]], list[dict[str, Any]]]) -> None:
    path = copy.files / "points.jsonl"
    points = [json.loads(line) for line in path.read_text().splitlines()]
    path.write_text("".join(json.dumps(point) + "\n" for point in change(points)))


def lose_a_trial(copy: Copy) -> None:
    copy.ledger("DELETE FROM points WHERE trial = :trial")
    copy.ledger("DELETE FROM attempts WHERE trial = :trial")
    copy.ledger("DELETE FROM trials WHERE id = :trial")


def train_twice(copy: Copy) -> None:
    copy.ledger(
        "INSERT INTO attempts SELECT run, trial, 2, token, state, execution, host, failure, message, started, ended, "
        "provenance FROM attempts WHERE trial = :trial"
    )
    copy.ledger("UPDATE trials SET attempts = 2 WHERE id = :trial")


def forget_mlflow(copy: Copy) -> None:
    copy.ledger("UPDATE runs SET mlflow_run_id = NULL, mlflow_experiment_id = NULL")
    copy.ledger("UPDATE trials SET mlflow_run_id = NULL, projected = 0")
    copy.ledger("UPDATE points SET projected = 0")
    lose_mlflow(copy)


def lose_mlflow(copy: Copy) -> None:
    for path in copy.folder.path.parent.glob("mlflow.db*"):
        path.unlink()


def never_project_the_points(copy: Copy) -> None:
    copy.ledger("UPDATE points SET projected = 0 WHERE trial = :trial")
    copy.mlflow("DELETE FROM metrics WHERE run_uuid = :run")
    copy.mlflow("DELETE FROM latest_metrics WHERE run_uuid = :run")


def lose_every_text(copy: Copy) -> None:
    for path in copy.files.glob("*.json*"):
        path.unlink()


def put_a_folder_in_place_of_the_job(copy: Copy) -> None:
    (copy.files / "job.json").unlink()
    (copy.files / "job.json").mkdir()


def another_mlflow_run(copy: Copy, **changed: str) -> None:
    client = connect(copy.uri)
    twin = client.get_run(copy.mlflow_run)
    client.create_run(twin.info.experiment_id, tags={**twin.data.tags, **changed})


LOSS_AT_4 = "WHERE trial = :trial AND key = 'train/loss' AND step = 4"
LOSS_AT_4_IN_MLFLOW = "WHERE run_uuid = :run AND key = 'train/loss' AND step = 4"
INSERT_METRIC = (
    "INSERT INTO metrics (key, value, timestamp, run_uuid, step, is_nan) "
    "SELECT key, value, timestamp + :later, run_uuid, step + :further, is_nan FROM metrics "
) + LOSS_AT_4_IN_MLFLOW

RESTORE = "no command mends that: put back a copy of the ledger from before, or begin anew: orchestrator launch SWEEP"
TELL = "; tell it: orchestrator resume .*small$"
ANEW = "; delete that run in MLflow, and it is made anew by: orchestrator resume .*small$"
WRITTEN = "; have it written again as the ledger has it: orchestrator resume .*small$"
COPY = (
    "put it back from a copy: nothing makes it again[.] The verdict does not need it, only `orchestrator export` does$"
)

DAMAGES: dict[str, tuple[Callable[[Copy], Any], list[str]]] = {
    # The ledger in itself
    "a trial runs though the run is done": (
        lambda copy: copy.ledger("UPDATE trials SET state = 'running' WHERE id = :trial"),
        [
            "T: the ledger says it is running, but the run is done.*" + RESTORE,
            "T: the ledger says running, its last attempt ended as done",
            "T: the ledger says running, MLflow's run R is FINISHED and not RUNNING",
            "T: tag state: the ledger says 'running', MLflow says 'done'" + TELL,
        ],
    ),
    "a state differs": (
        lambda copy: copy.ledger("UPDATE trials SET state = 'failed', failure = 'hung' WHERE id = :trial"),
        [
            "T: the ledger says failed, its last attempt ended as done",
            "T: the ledger says failed, MLflow's run R is FINISHED and not FAILED",
            "T: tag state: the ledger says 'failed', MLflow says 'done'" + TELL,
        ],
    ),
    "an attempt is missing": (
        lambda copy: copy.ledger("UPDATE attempts SET number = 2 WHERE trial = :trial"),
        [r"T: the ledger counts 1 attempt and has \[2\]"],
    ),
    "a finished trial was trained again": (
        train_twice,
        ["T: attempt 1 of 2 is done, yet another one followed it"],
    ),
    "an end is missing": (
        lambda copy: copy.ledger("UPDATE trials SET ended = NULL WHERE id = :trial"),
        ["T: the ledger says done, but has no ended of it"],
    ),
    "a metric differs": (
        lambda copy: copy.ledger("UPDATE trials SET metric = 0.125 WHERE id = :trial"),
        [f"T: the ledger says knn_accuracy = 0.125, its {where} says 0[.]" for where in ("result", "metrics", "curve")],
    ),
    "a step differs": (
        lambda copy: copy.ledger("UPDATE trials SET step = 9 WHERE id = :trial"),
        ["T: the ledger says step 9, its furthest point is at step 8"],
    ),
    "a job was edited": (
        lambda copy: copy.ledger(
            "UPDATE trials SET job = replace(job, '\"width\":8', '\"width\":4') WHERE id = :trial"
        ),
        [
            "T: the job that the ledger has of it is the job of trial [0-9a-f]{12}; " + RESTORE,
            "T: is not the setting that arm infonce was frozen at",
            "T: parameter model.width: the ledger says '4', MLflow says '8'" + TELL,
            "T: its job.json is not the job that the ledger has; model differ",
        ],
    ),
    "a suggestion is missing": (
        lambda copy: copy.ledger("DELETE FROM suggestions WHERE arm = 'flatnce' AND number = 1"),
        ["trial [0-9a-f]{12}: is in the tune stage, but no suggestion of arm flatnce asks for it"],
    ),
    "a suggestion asks for what is not there": (
        lambda copy: copy.ledger("UPDATE suggestions SET trials = '[\"0123\"]' WHERE arm = 'flatnce' AND number = 1"),
        [
            "suggestion 1 of arm flatnce: asks for trial 0123, which the ledger does not have",
            "trial [0-9a-f]{12}: is in the tune stage, but no suggestion of arm flatnce asks for it",
        ],
    ),
    "a suggestion has another number": (
        lambda copy: copy.ledger("UPDATE trials SET number = 7 WHERE stage = 'tune' AND arm = 'dcl' OR number = 1"),
        [
            f"suggestion 1 of arm {arm}: asks for trial .* suggestion 7 of arm {arm} in the tune stage"
            for arm in ("flatnce", "infonce")
        ],
    ),
    "a frozen setting is another": (
        lambda copy: copy.ledger("UPDATE frozen SET hash = 'feedfeedfeed' WHERE arm = 'infonce'"),
        ["is not the setting that arm infonce was frozen at .feedfeedfeed."] * 3,
    ),
    "an arm was never frozen": (
        lambda copy: copy.ledger("DELETE FROM frozen WHERE arm = 'flatnce'"),
        ["arm flatnce: has 3 confirm trials, but was never frozen"],
    ),
    "a trial is lost": (
        lose_a_trial,
        [
            "arm infonce: is frozen, but has no confirm trial on seed 1, as other arms have",
            "MLflow's run R .* is tagged as trial T of this run, which the ledger does not have",
            "trials/T is the folder of a trial that the ledger does not have",
        ],
    ),
    # MLflow
    "points were never projected": (
        never_project_the_points,
        ["MLflow lacks the state of 0 trials and 129 points; tell it: orchestrator resume .*small$"],
    ),
    "a run was carried out offline": (
        forget_mlflow,
        ["MLflow lacks the state of 10 trials and 1,290 points; tell it: orchestrator resume .*small$"],
    ),
    "another store": (lose_mlflow, ["MLflow has nothing of this run, .* as P; set MLFLOW_TRACKING_URI .* resume"]),
    "the parent run has another state": (
        lambda copy: copy.mlflow("UPDATE runs SET status = 'RUNNING' WHERE run_uuid = :parent"),
        ["the run is done, MLflow's parent run P is RUNNING and not FINISHED; tell it: orchestrator resume"],
    ),
    "the parent run is doubled": (
        lambda copy: another_mlflow_run(copy, **{"orchestrator.kind": "sweep"}),
        ["the ledger says that MLflow's parent run is P, MLflow has P, [0-9a-f]{32}; .* orchestrator resume"],
    ),
    "a trial has two runs": (
        another_mlflow_run,
        ["T: the ledger says that its MLflow run is R, MLflow has 2: R, [0-9a-f]{32}; .* orchestrator resume"],
    ),
    "a trial has no run": (
        lambda copy: connect(copy.uri).delete_run(copy.mlflow_run),
        ["T: its MLflow run R was deleted there; restore it there, or have it done: orchestrator resume .*small$"],
    ),
    "a trial has another run": (
        lambda copy: copy.ledger("UPDATE trials SET mlflow_run_id = 'feed' WHERE id = :trial"),
        ["T: the ledger says that its MLflow run is feed, MLflow has 1: R" + TELL],
    ),
    "an orphan": (
        lambda copy: another_mlflow_run(copy, **{"orchestrator.trial": "0123"}),
        ["MLflow's run .* is tagged as trial 0123 of this run, which the ledger does not have; delete .*resume"],
    ),
    "a run has another status": (
        lambda copy: copy.mlflow("UPDATE runs SET status = 'KILLED' WHERE run_uuid = :run"),
        ["T: the ledger says done, MLflow's run R is KILLED and not FINISHED"],
    ),
    "the parent run was deleted": (
        lambda copy: connect(copy.uri).delete_run(copy.parent),
        ["MLflow's parent run P was deleted there; restore it there, or have it done: orchestrator resume .*small$"],
    ),
    "the experiment was deleted": (
        lambda copy: connect(copy.uri).delete_experiment(connect(copy.uri).get_run(copy.parent).info.experiment_id),
        ["MLflow's parent run P was deleted there; .*resume", *["trial .* its MLflow run .* was deleted there"] * 10],
    ),
    "a run lies under nothing": (
        lambda copy: copy.mlflow("DELETE FROM tags WHERE run_uuid = :run AND key = 'mlflow.parentRunId'"),
        ["T: MLflow's run R lies under no run, not under the parent run P; hang it there: orchestrator resume"],
    ),
    "a run lies in another experiment": (
        lambda copy: copy.mlflow(
            "UPDATE runs SET experiment_id = :other WHERE run_uuid = :run",
            other=int(connect(copy.uri).create_experiment("small, split")),
        ),
        ["trial T: MLflow's run R lies in experiment 2, the ledger says that the run is in experiment 1; bring all"],
    ),
    "the ledger has another experiment": (
        lambda copy: copy.ledger("UPDATE runs SET mlflow_experiment_id = '7'"),
        ["the parent run: MLflow's run P lies in experiment 1, the ledger says.* in experiment 7", *["lies in"] * 10],
    ),
    "a run lies elsewhere": (
        lambda copy: copy.mlflow("UPDATE tags SET value = 'feed' WHERE run_uuid = :run AND key = 'mlflow.parentRunId'"),
        ["T: MLflow's run R lies under feed, not under the parent run P; hang it there: orchestrator resume .*small$"],
    ),
    "a parameter differs": (
        lambda copy: copy.mlflow("UPDATE params SET value = '17' WHERE run_uuid = :run AND key = 'batch.size'"),
        ["T: parameter batch.size: the ledger says '16', MLflow says '17'" + TELL],
    ),
    "parameters are missing": (
        lambda copy: copy.mlflow("DELETE FROM params WHERE run_uuid = :run AND key IN ('batch.size', 'seed')"),
        ["T: parameter seed: the ledger says '1', MLflow says 'nothing', and 1 more" + TELL],
    ),
    "a parameter too many": (
        lambda copy: copy.mlflow("INSERT INTO params (key, value, run_uuid) VALUES ('extra', '1', :run)"),
        ["T: parameter extra: the ledger says 'nothing', MLflow says '1'" + TELL],
    ),
    "a tag differs": (
        lambda copy: copy.mlflow("UPDATE tags SET value = 'dcl' WHERE run_uuid = :run AND key = 'arm'"),
        ["T: tag arm: the ledger says 'infonce', MLflow says 'dcl'" + TELL],
    ),
    "MLflow lacks a point": (
        lambda copy: copy.mlflow("DELETE FROM metrics " + LOSS_AT_4_IN_MLFLOW),
        ["T: MLflow's run R lacks 1 point; train/loss at step 4: the ledger says .*, MLflow nothing" + ANEW],
    ),
    "MLflow has a point twice": (
        lambda copy: copy.mlflow(INSERT_METRIC, later=5, further=0),
        ["T: MLflow's run R has twice 1 point; train/loss at step 4"],
    ),
    "MLflow has a point too many": (
        lambda copy: copy.mlflow(INSERT_METRIC, later=0, further=100),
        ["T: MLflow's run R has, and the ledger not, 1 point; train/loss at step 104: the ledger says nothing"],
    ),
    "MLflow has another value": (
        lambda copy: copy.mlflow("UPDATE metrics SET value = 0.125 " + LOSS_AT_4_IN_MLFLOW),
        ["T: MLflow's run R has with another value 1 point; train/loss at step 4: .*, MLflow 0.125 at"],
    ),
    "MLflow has NaN": (
        lambda copy: copy.mlflow("UPDATE metrics SET value = 0, is_nan = 1 " + LOSS_AT_4_IN_MLFLOW),
        ["T: MLflow's run R has with another value 1 point; train/loss at step 4: .*, MLflow nan at"],
    ),
    "MLflow has another time": (
        lambda copy: copy.mlflow("UPDATE metrics SET timestamp = timestamp + 1 " + LOSS_AT_4_IN_MLFLOW),
        ["T: MLflow's run R has with another time 1 point; train/loss at step 4"],
    ),
    # The ledger against both
    "the ledger lacks a point": (
        lambda copy: copy.ledger("DELETE FROM points " + LOSS_AT_4),
        [
            "T: MLflow's run R has, and the ledger not, 1 point; train/loss at step 4: the ledger says nothing",
            "T: its points.jsonl has, and the ledger not, 1 point; train/loss at step 4: the ledger says nothing",
        ],
    ),
    "the ledger has another value": (
        lambda copy: copy.ledger("UPDATE points SET value = 0.125 " + LOSS_AT_4),
        [
            "T: MLflow's run R has with another value 1 point; train/loss at step 4: the ledger says 0.125 at",
            "T: its points.jsonl has with another value 1 point; train/loss at step 4: the ledger says 0.125, the file",
        ],
    ),
    # The disk
    "an attempt is empty": (
        lambda copy: (copy.files / "attempt.json").write_text(""),
        ["T: attempt.json is empty, so it keeps no earlier attempt from writing" + WRITTEN],
    ),
    "an attempt is no attempt": (
        lambda copy: (copy.files / "attempt.json").write_text('{"token": "1", "attempt": null}'),
        ["T: attempt.json names no attempt, .*" + WRITTEN],
    ),
    "an attempt is no text": (
        lambda copy: (copy.files / "attempt.json").write_bytes(bytes(range(256))),
        ["T: attempt.json cannot be read .*" + WRITTEN],
    ),
    "every text is gone": (
        lose_every_text,
        [
            "T: the ledger says done, but its folder has no job.json" + WRITTEN,
            "T: the ledger has a result, its folder has no result.json" + WRITTEN,
            "T: its points.jsonl lacks 129 points.*" + WRITTEN,
        ],
    ),
    "points on disk are no text": (
        lambda copy: (copy.files / "points.jsonl").write_bytes(bytes(range(256))),
        ["T: points.jsonl cannot be read .*" + WRITTEN, "T: its points.jsonl lacks 129 points.*" + WRITTEN],
    ),
    "a folder in place of a file": (
        put_a_folder_in_place_of_the_job,
        [
            "T: job.json cannot be read .*" + WRITTEN,
            "T: the ledger says done, but its folder has no job.json" + WRITTEN,
        ],
    ),
    "the disk is another": (
        lambda copy: shutil.rmtree(copy.folder.trials),
        ["trials is not there, so no file of 10 started trials could be looked at"],
    ),
    "an unknown folder": (
        lambda copy: (copy.folder.trials / "feed").mkdir(),
        ["trials/feed is the folder of a trial that the ledger does not have; move it away"],
    ),
    "a folder is gone": (
        lambda copy: shutil.rmtree(copy.files),
        ["T: the ledger says done, but .*trials/T is not there; put it back .* all but its checkpoints .*resume"],
    ),
    "a job on disk is another": (
        lambda copy: edit(copy.files / "job.json", seed=5),
        ["T: its job.json is not the job that the ledger has; seed differ" + WRITTEN],
    ),
    "a job on disk is none": (
        lambda copy: (copy.files / "job.json").write_text("[]"),
        [r"T: its job.json is not the job that the ledger has; \(everything\) differ" + WRITTEN],
    ),
    "a job on disk is gone": (
        lambda copy: (copy.files / "job.json").unlink(),
        ["T: the ledger says done, but its folder has no job.json" + WRITTEN],
    ),
    "what it has kept by row is gone": (
        lambda copy: (copy.files / "rows.parquet").unlink(),
        ["T: its rows.parquet is not there; put it back from a copy: nothing makes it again. Only what is said"],
    ),
    "what it has kept by row is damaged": (
        lambda copy: flip(copy.files / "rows.parquet"),
        ["T: its rows.parquet is damaged: it does not match its sha256; put it back from a copy"],
    ),
    "a result was edited": (
        lambda copy: edit(copy.files / "result.json", seconds=0.5),
        ["T: its result.json is not the ledger's result; seconds differ" + WRITTEN],
    ),
    "a result is gone": (
        lambda copy: (copy.files / "result.json").unlink(),
        ["T: the ledger has a result, its folder has no result.json" + WRITTEN],
    ),
    "a result is no JSON": (
        lambda copy: (copy.files / "result.json").write_text("{"),
        [
            "T: result.json cannot be read.*" + WRITTEN,
            "T: the ledger has a result, its folder has no result.json" + WRITTEN,
        ],
    ),
    "a point on disk is gone": (
        lambda copy: edit_points(copy, lambda points: points[1:]),
        [
            "T: its points.jsonl lacks 1 point; knn_accuracy at step 0: the ledger says 0[.].*, the file nothing"
            + WRITTEN
        ],
    ),
    "a bit of the newest checkpoint": (
        lambda copy: flip(copy.checkpoint(8) / "model.safetensors"),
        ["T: step_000008 in .*/checkpoints is damaged: model.safetensors does not match its sha256; " + COPY],
    ),
    "a bit of an older checkpoint": (
        lambda copy: flip(copy.checkpoint(6) / "optimizer.pt"),
        ["T: step_000006 in .*/checkpoints is damaged: optimizer.pt does not match .*; nothing needs it .*: mv /.*"],
    ),
    "the newest checkpoint is gone": (
        lambda copy: shutil.rmtree(copy.checkpoint(8)),
        ["T: the ledger's result is of step 8, the newest checkpoint in .* is of step 6; " + COPY],
    ),
    "every checkpoint is gone": (
        lambda copy: shutil.rmtree(copy.files / "checkpoints"),
        ["T: the ledger's result is of step 8, the newest checkpoint in .* is none; " + COPY],
    ),
}


@pytest.mark.parametrize("name", DAMAGES)
def test_a_damage_gives_its_fault_and_no_other(copy: Copy, name: str) -> None:
    damage, expected = DAMAGES[name]
    damage(copy)
    store = copy.folder.path.parent / "mlflow.db"
    there = store.exists()
    found = copy.verify()
    assert store.exists() == there, "it must not make a store where there is none"
    patterns = [re.sub(r"\b[TRP]\b", lambda m: known(copy)[m[0]], pattern) for pattern in expected]
    assert len(found["faults"]) == len(patterns), "\n".join(found["faults"])
    for fault, pattern in zip(found["faults"], patterns, strict=True):
        assert re.search(pattern, fault), f"{pattern!r} expected, found {fault!r}"
    assert found["ok"] is False
    assert_remedies(found["faults"])


REMEDIES: tuple[str, ...] = (
    "; .*(orchestrator resume|orchestrator launch SWEEP --into|put it back|put back a copy|move it away|mv /)",
)
REMEDIES += ("; verify where the run's folder lies$", "; take these lines out of the file", "^[.]{3} and [0-9,]+ more")


def assert_remedies(faults: list[str]) -> None:
    """Every fault says what to do."""
    for fault in faults:
        assert any(re.search(remedy, fault) for remedy in REMEDIES), fault


def resumed(copy: Copy) -> list[str]:
    """What a session does that has nothing to train; returns what it finds broken in the end."""
    with contextlib.closing(copy.folder.open()) as ledger:
        ledger.acquire(this_process(), 60)
        mend(copy.folder, ledger)
        projection = tracking.Projection(ledger, copy.uri)
        assert projection.flush(), projection.last_error
        left = faults_after(copy.folder, ledger, copy.uri)
        ledger.release()
    return left


EXAMPLES = ["a run was carried out offline", "MLflow has a point twice", "the ledger has another value"]
EXAMPLES += ["a job on disk is another"]
"""Those that `make test` mends: of the search, of MLflow, of the ledger and of the disk."""


@pytest.mark.few(4)
@pytest.mark.parametrize("name", [*EXAMPLES, *(name for name in DAMAGES if name not in EXAMPLES)])
def test_a_remedy_is_true(copy: Copy, name: str) -> None:
    """Where every fault says `resume`, that is all it takes; where it says more, the test does that first. What cannot
    be mended is told by the session too, which so does not end as if all were well. Mutant check: a `mend` that does
    nothing, or an MLflow that is only looked at, fails this."""
    damage, _ = DAMAGES[name]
    damage(copy)
    faults = copy.verify()["faults"]
    for fault in faults:
        if "delete that run in MLflow, and it" in fault:
            connect(copy.uri).delete_run(copy.mlflow_run)
            break
        if (move := re.search("; nothing needs it any more: (mv .*)$", fault)) is not None:
            subprocess.run(move[1], shell=True, check=True)
        if (stranger := re.search("^(/.*) is the folder of a trial .*; move it away$", fault)) is not None:
            shutil.move(stranger[1], copy.folder.path.parent / "moved")
    left = resumed(copy)
    assert left == copy.verify()["faults"]
    if all("orchestrator resume" in fault or "; nothing needs it" in fault for fault in faults):
        assert left == [] or name == "a folder is gone"
    else:
        assert_remedies(left)


def known(copy: Copy) -> dict[str, str]:
    return {"T": copy.trial, "R": copy.mlflow_run, "P": copy.parent}


# A ledger that is damaged itself


def pages(copy: Copy) -> tuple[Path, int, list[int]]:
    """The ledger's file, with nothing left in its log and no page unused; the size of a page, and a dozen of them: the
    first ones, those at the top of indexes, and some of the others."""
    path = copy.folder.path / "ledger.db"
    with contextlib.closing(sqlite3.connect(path)) as database:
        database.execute("VACUUM")
        database.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        ((size,),) = database.execute("PRAGMA page_size")
        ((count,),) = database.execute("PRAGMA page_count")
        indexes = [page - 1 for (page,) in database.execute("SELECT rootpage FROM sqlite_master WHERE type = 'index'")]
    return path, size, sorted({0, 1, *indexes[::3], *range(2, count, count // 6), count // 2, count - 1})


def overwrite(path: Path, page: int, size: int, content: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(page * size)
        file.write((content * size)[:size])


GARBAGE = {"zeros": bytes(1), "noise": random.Random(0).randbytes(4096), "text": b"lorem ipsum "}


@pytest.mark.parametrize("content", GARBAGE)
def test_a_damaged_page_of_the_ledger_is_a_fault_wherever_it_is(copy: Copy, content: str) -> None:
    """Never a traceback, also where not a row can be read, and never in order. Mutant check: without asking SQLite,
    pages of which no row is read stay unseen."""
    path, size, chosen = pages(copy)
    whole = path.read_bytes()
    for page in chosen:
        path.write_bytes(whole)
        overwrite(path, page, size, GARBAGE[content])
        code, said = ask(copy)
        assert code == 1, f"page {page}: {said}"
        fault = said.splitlines()[1]
        assert re.match(
            f"fault: the ledger {path} is damaged: .*; put back a copy of it from before .* --into .*-2$", fault
        )
    assert json.loads(ask(copy, "--json")[1])["ok"] is False
    path.write_bytes(whole)
    for side in path.parent.glob("ledger.db-*"):
        side.unlink()
    assert ask(copy)[0] == 0


@pytest.mark.parametrize(
    ("table", "column", "value"),
    [
        ("trials", "job", '\'{"task": "ima\''),
        ("trials", "job", "'[]'"),
        ("trials", "result", "'7'"),
        ("trials", "metrics", "CAST(x'ff00ff' AS TEXT)"),
        ("runs", "sweep", "'{}'"),
        ("runs", "sweep", "'{\"a'"),
        ("runs", "provenance", "'[1]'"),
        ("attempts", "execution", "'torn'"),
        ("points", "value", "'many'"),
        ("events", "text", "CAST(x'c3' AS TEXT)"),
        ("suggestions", "trials", "'null'"),
    ],
)
def test_a_value_that_no_ledger_writes_is_a_fault(copy: Copy, table: str, column: str, value: str) -> None:
    """What a damaged page may hold that SQLite itself takes for sound: JSON that is torn or of another kind, text that
    is none."""
    if table == "events":
        with contextlib.closing(copy.folder.open()) as ledger:
            ledger.acquire("the test", 60)
            ledger.event("checkpoint", "something")
            ledger.release()
    copy.ledger(f"UPDATE {table} SET {column} = {value}")
    code, said = ask(copy)
    assert code == 1, said
    assert said.startswith("verify: "), said
    assert_remedies([line.removeprefix("fault: ") for line in said.splitlines() if line.startswith("fault: ")])


def test_a_server_that_is_away_is_no_damage(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", "postgresql://me@127.0.0.1:1/none")
    code, said = ask(copy)
    assert code == 4
    assert "is damaged" not in said


# What the attempts ran with


def ran(copy: Copy, attempt: dict[str, Any] | None, run: dict[str, Any] | None = None) -> Verified:
    """What `verify` says where three confirm trials ran with something else."""
    if run is not None:
        copy.ledger("UPDATE runs SET provenance = :run", run=json.dumps(run))
    copy.ledger(
        "UPDATE attempts SET provenance = :ran WHERE trial IN "
        "(SELECT id FROM trials WHERE stage = 'confirm' AND arm = 'infonce')",
        ran=None if attempt is None else json.dumps(attempt),
    )
    return copy.verify()


@pytest.mark.parametrize("role", ["train", "tune", "confirm"])
def test_other_data_are_a_fault(copy: Copy, role: str) -> None:
    """Mutant check: comparing the data that trials train on only."""
    source = f"data.{role} = x.csv"
    faults = ran(copy, RAN | {"data": RAN["data"] | {source: "f" * 64}})["faults"]
    assert len(faults) == 3
    (fault,) = [fault for fault in faults if copy.trial in fault]
    was = RAN["data"][source]
    assert f"attempt 1 ran with other data than the run was begun with: {source} had {was}, then {'f' * 64}" in fault
    assert re.search(
        "; its numbers do not belong with the others: .*orchestrator launch SWEEP --into .*small-2$", fault
    )


def test_other_weights_are_a_fault_and_weights_of_no_record_are_none(copy: Copy) -> None:
    assert ran(copy, RAN | {"weights": {"encoder": "w" * 64, "another": "v" * 64}})["faults"] == []
    faults = ran(copy, RAN | {"weights": {"encoder": "v" * 64}})["faults"]
    assert len(faults) == 3
    was = f"encoder had {'w' * 64}, then {'v' * 64}"
    assert f"ran with other weights than the run was begun with: {was}" in faults[0]


def test_other_code_is_a_fault_until_it_is_accepted_and_then_named(copy: Copy) -> None:
    code, torch = "ef567890" * 8, {"torch": "2.14.0", "numpy": "2.4.0"}
    found = ran(copy, RAN | {"code": code})
    assert len(found["faults"]) == 3
    assert (
        "attempt 1 ran code ef567890, which is not the run's (code ab12cd34) and was not accepted" in found["faults"][0]
    )
    assert re.search(
        "; with that code at hand accept it: orchestrator resume .*small --accept-code", found["faults"][0]
    )
    accepted = {"code": code, "versions": RAN["versions"], "time": 1.0}
    found = ran(copy, RAN | {"code": code}, BEGUN | {"accepted": [accepted]})
    assert found["faults"] == []
    assert found["notes"] == ["versions of code: 7 trials by code ab12cd34, 3 trials by code ef567890 (accepted)"]
    found = ran(copy, RAN | {"code": code, "versions": torch})
    assert "ran code ef567890 with torch 2.14.0, which is not the run's" in found["faults"][0]
    found = ran(copy, RAN | {"versions": torch}, BEGUN | {"accepted": [accepted | RAN | {"versions": torch}]})
    assert found["faults"] == []
    assert found["notes"] == [
        "versions of code: 7 trials by code ab12cd34, 3 trials by code ab12cd34 with torch 2.14.0 (accepted)"
    ]


def test_code_that_was_not_recorded_is_a_note_with_the_number_of_trials(copy: Copy) -> None:
    found = ran(copy, None)
    assert (found["faults"], found["notes"]) == ([], ["code not recorded: 3 trials"])


# A run that the version before began


@pytest.fixture
def begun(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> RunFolder:
    for name in ("MLFLOW_TRACKING_URI", "ORCHESTRATOR_LEDGER"):
        monkeypatch.delenv(name, raising=False)
    shutil.copytree(Path(__file__).parents[2] / "begun" / request.param, tmp_path / "runs" / request.param)
    return RunFolder(tmp_path / "runs" / request.param)


@pytest.mark.few(1)
@pytest.mark.parametrize("begun", ["crossed", "diverged"], indirect=True)
def test_a_run_that_the_version_before_began_is_in_order_once_mlflow_has_been_told(begun: RunFolder) -> None:
    uri = tracking.embedded_uri(begun.path.parent)
    with contextlib.closing(begun.open()) as ledger:
        ledger.acquire(this_process(), 60)
        ledger.reconcile()
        started = sum(trial.attempts > 0 for trial in ledger.trials())
        diverged = [trial.id for trial in ledger.trials() if trial.outcome == "diverged"]
        assert mend(begun, ledger) == []
        projection = tracking.Projection(ledger, uri)
        assert projection.flush(), projection.last_error
        assert faults_after(begun, ledger, uri) == []
        assert faults_after(begun, ledger, None) == []
        assert faults_after(begun, ledger, "http://127.0.0.1:1") == [], "what does not answer is not judged"
        ledger.release()
        runs = {run["trial"]: run for run in tracking.runs_of(uri, ledger.uuid)}
    found = verify(begun, uri)
    assert found["faults"] == []
    assert f"code not recorded: {started} trials" in found["notes"]
    assert bool(diverged) == (begun.path.name == "diverged")
    for trial in diverged:
        assert (runs[trial]["status"], runs[trial]["tags"]["outcome"]) == ("FAILED", "diverged")


@pytest.mark.parametrize("begun", ["crossed"], indirect=True)
def test_the_id_of_a_job_of_before_is_the_hash_of_it(begun: RunFolder) -> None:
    with contextlib.closing(sqlite3.connect(begun.path / "ledger.db")) as database, database:
        database.execute("UPDATE trials SET seed = seed, job = replace(job, '\"steps\":', '\"steps\": ')")
        database.execute(
            'UPDATE trials SET job = replace(job, \'"task":"image"\', \'"task":"sentence"\') WHERE position = 0'
        )
    faults = verify(begun, tracking.embedded_uri(begun.path.parent))["faults"]
    assert sum("the job that the ledger has of it is the job of trial" in fault for fault in faults) == 1


# What is in order


def test_an_undamaged_run_is_in_order_also_on_the_command_line(finished: Path) -> None:
    found = answered("verify", call("verify", "small", "--json", cwd=finished))
    with contextlib.closing(RunFolder(finished / "runs" / "small").open()) as ledger:
        recorded = all(attempt.provenance for attempt in ledger.attempts())
    notes = [] if recorded else [f"code not recorded: {TRIALS} trials"]
    assert found == {
        "version": 1,
        "ok": True,
        "trials": TRIALS,
        "mlflow_runs": TRIALS,
        "points": 129 * TRIALS,
        "checkpoints": 2 * TRIALS,
        "faults": [],
        "notes": notes,
    }
    said = call("verify", "small", cwd=finished)
    assert said.splitlines() == [
        "verify: ok, 10 trials, 10 MLflow runs, 1,290 points, 20 checkpoints",
        *(f"note: {note}" for note in notes),
    ]


def test_values_that_are_no_numbers_are_the_same_everywhere(copy: Copy) -> None:
    """NaN equals NaN, and MLflow holds the largest float for an infinity."""
    for step, ledger, mlflow, is_nan, disk in (
        (4, "nan", 0.0, 1, float("nan")),
        (5, 9e999, sys.float_info.max, 0, float("inf")),
        (6, -9e999, -sys.float_info.max, 0, float("-inf")),
    ):
        where = f"key = 'train/loss' AND step = {step}"
        copy.ledger(f"UPDATE points SET value = :value WHERE trial = :trial AND {where}", value=ledger)
        copy.mlflow(
            f"UPDATE metrics SET value = :value, is_nan = :nan WHERE run_uuid = :run AND {where}",
            value=mlflow,
            nan=is_nan,
        )
        edit_points(copy, lambda points, at=step, value=disk: [changed(p, at, value) for p in points])  # type: ignore[misc]
    assert copy.verify()["faults"] == []


def changed(point: dict[str, Any], step: int, value: float, key: str = "train/loss") -> dict[str, Any]:
    return point | {"value": value} if (point["key"], point["step"]) == (key, step) else point


def test_a_final_number_without_a_curve_belongs_to_mlflow_too(copy: Copy) -> None:
    copy.ledger("UPDATE trials SET metrics = replace(metrics, '{', '{\"extra\": 7,') WHERE id = :trial")
    copy.ledger('UPDATE trials SET result = replace(result, \'"metrics":{\', \'"metrics":{"extra": 7,\')')
    for path in copy.folder.trials.glob("*/result.json"):
        edit(path, metrics={"extra": 7, **json.loads(path.read_text())["metrics"]})
    (fault,) = copy.verify()["faults"]
    assert "lacks 1 point; extra at step 8: the ledger says 7.0 at" in fault
    with contextlib.closing(copy.folder.open()) as ledger:
        ended_ms = int((ledger.trial(copy.trial).ended or 0) * 1000)
    for table in ("metrics", "latest_metrics"):
        copy.mlflow(
            f"INSERT INTO {table} (key, value, timestamp, run_uuid, step, is_nan) "
            "VALUES ('extra', 7, :ended, :run, 8, 0)",
            ended=ended_ms,
        )
    assert copy.verify()["faults"] == []


def test_a_point_told_but_not_noted_as_told_is_only_counted(copy: Copy) -> None:
    """A kill between telling MLflow and noting it: `resume` is all that is asked for."""
    copy.ledger("UPDATE points SET projected = 0 WHERE trial = :trial AND step = 4")
    copy.ledger("UPDATE trials SET projected = projected - 1 WHERE id = :trial")
    (fault,) = copy.verify()["faults"]
    assert re.search("the state of 1 trial and [0-9]+ points", fault)


# Notes


def test_the_remains_of_kills_are_notes(copy: Copy) -> None:
    checkpoints = copy.files / "checkpoints"
    copy.checkpoint(6).rename(checkpoints / "step_000006.bad-1")
    (checkpoints / ".step_000006.99").mkdir()
    edit_points(copy, lambda points: [*points, points[0] | {"value": 7.0}])
    with (copy.files / "points.jsonl").open("a") as file:
        file.write('{"key": "knn')
    found = copy.verify()
    assert found["faults"] == []
    assert found["checkpoints"] == 2 * TRIALS - 1
    assert found["notes"] == [
        "1 checkpoint damaged and set aside",
        "1 checkpoint never committed",
        "1 point in points.jsonl again",
        "1 line of points.jsonl cut short by a kill",
    ]


@pytest.mark.parametrize(
    ("key", "execution", "allowed"),
    [
        ("train/loss", '{"micro": 8}', True),
        ("train/loss", '{"verify": true}', False),
        ("samples_per_second", "{}", True),
    ],
)
def test_what_another_attempt_measured_with_another_value_is_a_note(
    copy: Copy, key: str, execution: str, allowed: bool
) -> None:
    """Bit for bit the same is only what is computed in the same way."""
    copy.ledger("UPDATE attempts SET number = 2, execution = '{}' WHERE trial = :trial")
    copy.ledger(
        "INSERT INTO attempts SELECT run, trial, 1, token, 'interrupted', :execution, host, failure, message, started, "
        "ended, provenance FROM attempts WHERE trial = :trial",
        execution=execution,
    )
    copy.ledger("UPDATE trials SET attempts = 2 WHERE id = :trial")
    edit_points(copy, lambda points: [changed(point, 8, 7.0, key) for point in points])
    found = copy.verify()
    told, other = (found["notes"], found["faults"]) if allowed else (found["faults"], found["notes"])
    assert other == []
    (text,) = told
    assert f"{key} at step 8" in text
    assert ("measured again by another attempt" in text) == allowed


def test_a_trial_may_be_pruned_between_two_points(copy: Copy) -> None:
    set_state(copy, "pruned", "pruned", "KILLED")
    (copy.files / "result.json").unlink()
    copy.ledger("UPDATE trials SET step = 9 WHERE id = :trial")
    assert copy.verify()["faults"] == []


def set_state(copy: Copy, state: str, attempt: str, status: str) -> None:
    """A state that ledger and MLflow agree on."""
    copy.ledger("UPDATE trials SET state = :state, failure = 'hung' WHERE id = :trial", state=state)
    copy.ledger("UPDATE attempts SET state = :state WHERE trial = :trial", state=attempt)
    copy.mlflow("UPDATE runs SET status = :status WHERE run_uuid = :run", status=status)
    copy.mlflow("UPDATE tags SET value = :state WHERE run_uuid = :run AND key = 'state'", state=state)


@pytest.mark.parametrize(
    ("state", "attempt", "status"),
    [("pruned", "pruned", "KILLED"), ("failed", "failed", "FAILED"), ("queued", "interrupted", "SCHEDULED")],
)
def test_the_disk_of_what_is_not_done_may_be_ahead(copy: Copy, state: str, attempt: str, status: str) -> None:
    set_state(copy, state, attempt, status)
    edit_points(copy, lambda points: [*points, points[-1] | {"step": 9}])
    (copy.files / "job.json").unlink() if state != "pruned" else None
    found = copy.verify()
    assert found["faults"] == []
    assert f"trial {copy.trial}: the ledger says {state}, its folder has a result already" in found["notes"]
    (copy.files / "result.json").unlink()
    ahead = f"trial {copy.trial}: its points.jsonl is 1 point ahead of the ledger"
    assert (ahead in copy.verify()["notes"]) == (state == "pruned")


def test_a_pruned_trial_s_metric_is_on_its_curve_and_its_points_are_on_disk(copy: Copy) -> None:
    set_state(copy, "pruned", "pruned", "KILLED")
    copy.ledger("UPDATE trials SET metric = 0.123 WHERE id = :trial")
    edit_points(copy, lambda points: points[1:])
    metric, point = copy.verify()["faults"]
    assert "knn_accuracy = 0.123, its curve says None" in metric
    assert "points.jsonl lacks 1 point; knn_accuracy at step 0" in point


@pytest.mark.parametrize("rules", [1, 2])
def test_a_diverged_trial_needs_no_checkpoint_and_is_failed_in_mlflow(copy: Copy, rules: int) -> None:
    """It has no metric; in runs that were begun before, that of its untrained encoder."""
    with contextlib.closing(copy.folder.open()) as ledger:
        trial = ledger.trial(copy.trial)
        (first, *_) = ledger.points(copy.trial, key="knn_accuracy")
    assert trial.result is not None
    assert first.value != trial.metric
    old = rules == 1
    metrics = trial.metrics | {"knn_accuracy": first.value} if old else {}
    result = trial.result | {"outcome": "diverged", "metrics": metrics}
    copy.ledger(
        "UPDATE trials SET outcome = 'diverged', metric = :metric, metrics = :metrics, result = :result "
        "WHERE id = :trial",
        metric=first.value if old else None,
        metrics=json.dumps(metrics),
        result=json.dumps(result),
    )
    (copy.files / "result.json").write_text(json.dumps(result))
    shutil.rmtree(copy.files / "checkpoints")
    status, tag = copy.verify()["faults"]
    assert "the ledger says done, diverged, MLflow's run" in status
    assert "is FINISHED and not FAILED; tell it: orchestrator resume" in status
    assert "tag outcome: the ledger says 'diverged', MLflow says 'nothing'" in tag
    assert resumed(copy) == []
    assert copy.verify()["faults"] == []


def test_what_a_dead_driver_left_running_is_a_note(copy: Copy) -> None:
    set_state(copy, "running", "running", "RUNNING")
    copy.ledger("UPDATE runs SET state = 'stopped'")
    copy.mlflow("UPDATE runs SET status = 'KILLED' WHERE run_uuid = :parent")
    found = copy.verify()
    assert found["faults"] == []
    assert copy.trial in found["notes"][0]
    assert "the next launch or resume closes this: orchestrator resume" in found["notes"][0]


def test_a_trial_that_never_started_needs_no_folder_and_no_mlflow_run(copy: Copy) -> None:
    copy.ledger("UPDATE trials SET state = 'queued', attempts = 0, mlflow_run_id = NULL, step = NULL WHERE id = :trial")
    for table in ("points", "attempts"):
        copy.ledger(f"DELETE FROM {table} WHERE trial = :trial")
    shutil.rmtree(copy.files)
    (orphan,) = copy.verify()["faults"]
    assert "which the ledger never started" in orphan
    connect(copy.uri).delete_run(copy.mlflow_run)
    found = copy.verify()
    assert found["faults"] == []
    assert "1 trial still to run" in found["notes"][0]


def test_many_faults_of_a_kind_are_counted(copy: Copy) -> None:
    for number in range(SHOWN + 3):
        (copy.folder.trials / f"feed{number:02}").mkdir()
    faults = copy.verify()["faults"]
    assert len(faults) == SHOWN + 1
    assert faults[-1].startswith("... and 3 more like this one: ")


# Exit codes


def ask(copy: Copy, *arguments: str) -> tuple[int, str]:
    done = CliRunner().invoke(main, ["verify", str(copy.folder.path), *arguments])
    return done.exit_code, done.output


def test_a_fault_ends_with_1_in_words_and_in_json(copy: Copy) -> None:
    (copy.folder.trials / "feed").mkdir()
    (copy.checkpoint(6) / "manifest.json").unlink()
    code, said = ask(copy)
    assert code == 1
    head, fault, note = said.splitlines()
    assert head == "verify: 1 fault, 10 trials, 10 MLflow runs, 1,290 points, 19 checkpoints"
    assert fault.startswith("fault: ")
    assert fault.endswith("trials/feed is the folder of a trial that the ledger does not have; move it away")
    assert note == "note: 1 checkpoint never committed"
    code, said = ask(copy, "--json")
    assert (code, json.loads(said)["ok"]) == (1, False)


def test_a_run_that_is_driven_ends_with_3_and_names_the_driver(copy: Copy) -> None:
    with contextlib.closing(copy.folder.open()) as ledger:
        ledger.acquire(this_process(), 60)
        code, said = ask(copy, "--json")
        ledger.release()
    assert code == 3
    assert said.startswith("error: ")
    assert "has been driving this run since" in said


def test_a_driver_that_starts_meanwhile_is_noticed(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    with contextlib.closing(copy.folder.open()) as ledger:
        real = subprocess.run

        def late(command: list[str], **named: Any) -> Any:
            if "jobs.artifacts.audit" in command:
                ledger.acquire(this_process(), 60)
            return real(command, **named)

        monkeypatch.setattr(subprocess, "run", late)
        assert ask(copy)[0] == 3
        ledger.release()


def test_an_unknown_run_ends_with_2(tmp_path: Path) -> None:
    done = CliRunner().invoke(main, ["verify", str(tmp_path / "gone")])
    assert done.exit_code == 2


def test_an_mlflow_that_does_not_answer_ends_with_4(copy: Copy, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        monkeypatch.setenv("MLFLOW_TRACKING_URI", f"http://127.0.0.1:{closed.getsockname()[1]}")
        code, said = ask(copy)
    assert code == 4
    assert "Connection refused" in said
