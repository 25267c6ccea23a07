"""Claims about the projection into MLflow, against a real embedded store and one real MLflow server."""

from __future__ import annotations

import contextlib
import math
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pandas as pd
import pytest
from projected import agree, curve, finish, flushed, fresh, planned, train
from pydantic import JsonValue
from real import Server

from orchestrator.ledger import LeaseLost, Ledger, Point, sqlite_url
from orchestrator.tracking import (
    Encoder,
    Projection,
    TrackingUnavailable,
    check,
    compare_address,
    embedded_uri,
    experiment_address,
    runs_of,
    ui_command,
)
from orchestrator.tracking import runs as reading
from orchestrator.tracking import store as stores
from orchestrator.tracking.encoders import save
from orchestrator.tracking.store import connect

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module")
def embedded(tmp_path_factory: pytest.TempPathFactory, tables: Path) -> str:
    """One embedded store for the module."""
    return fresh(tmp_path_factory.mktemp("runs"), tables)


@pytest.fixture(scope="module")
def server(embedded: str) -> Iterator[Server]:
    """A server on the embedded store. Its start takes some ten seconds."""
    one = Server(Path(embedded.removeprefix("sqlite:///")).parent)
    one.start()
    yield one
    one.kill()


@pytest.fixture(params=["embedded", "server"])
def uri(request: pytest.FixtureRequest) -> str:
    found = request.getfixturevalue(request.param)
    return found if isinstance(found, str) else str(found.uri)


@pytest.fixture
def ledger(tmp_path: Path, request: pytest.FixtureRequest) -> Iterator[Ledger]:
    """A run of four trials, in an experiment of its own."""
    name = request.node.name.replace("[", " ").replace("]", "")
    made = Ledger.create(
        sqlite_url(tmp_path / "ledger.db"), name=name, sweep={"question": "A or B?"}, trials=planned(4)
    )
    made.acquire("the test", 600)
    yield made
    made.close()


# What is told


@pytest.mark.few(1)
def test_mlflow_has_what_the_ledger_has(ledger: Ledger, uri: str) -> None:
    train(ledger, "trial0")
    train(ledger, "trial1", end=False)
    ledger.set_run(state="running")
    projection = flushed(ledger, uri)
    done, running = sorted(agree(ledger, uri), key=lambda run: str(run["trial"]))
    (parent,) = [run for run in runs_of(uri, ledger.uuid) if run["kind"] == "sweep"]
    assert (parent["name"], parent["status"]) == (ledger.run.name, "RUNNING")
    assert parent["tags"]["orchestrator.sweep"] == ledger.run.name
    assert parent["tags"]["orchestrator.run"] == ledger.uuid
    assert parent["tags"]["mlflow.note.content"] == "A or B?"
    assert parent["tags"]["trials.queued"] == "2"
    assert (done["status"], running["status"]) == ("FINISHED", "RUNNING")
    ended = ledger.trial("trial0").ended
    assert ended is not None
    assert done["end"] == int(ended * 1000)
    wanted = {"arm": "arm 0", "stage": "confirm", "seed": "0", "trial": "trial0", "state": "done", "attempts": "1"}
    assert wanted.items() <= done["tags"].items()
    assert done["tags"]["orchestrator.outcome"] == "ok"
    assert done["params"].keys() == running["params"].keys()
    assert done["params"]["loss.name"] == "infonce"
    assert done["params"]["loss.temperature"] == "0.1"
    assert done["params"]["model.name"] == "null"
    assert len(done["params"]["long"]) == 6000
    assert done["params"]["long"].endswith(" ...")
    assert done["metrics"]["peak_memory_mb"] == [(2, int(ended * 1000), 100.0)], "a final number without a curve"
    finish(ledger, "trial1")
    ledger.set_run(state="done")
    assert projection.flush()
    assert {run["status"] for run in runs_of(uri, ledger.uuid)} == {"FINISHED"}


def test_the_thread_that_copies_sets_no_variable(
    ledger: Ledger, embedded: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: Ray connected beside it, a thread of Ray read a variable at that moment, and a driver ended by SIGSEGV.
    Mutant check: setting MLflow's variables once it is first asked."""
    for name in stores.SETTINGS:
        monkeypatch.delenv(name, raising=False)
    setting = os.putenv
    by: list[tuple[str, bytes]] = []

    def putenv(name: bytes, value: bytes) -> None:
        by.append((threading.current_thread().name, name))
        setting(name, value)

    monkeypatch.setattr(os, "putenv", putenv)
    projection = Projection(ledger, embedded)
    projection.start()
    assert projection.settled(60)
    assert projection.stop(timeout_s=60)
    assert by
    assert {thread for thread, _ in by} == {threading.main_thread().name}


def test_telling_twice_adds_nothing(ledger: Ledger, uri: str) -> None:
    """Even when the ledger has forgotten that it told. Mutant check: now() in place of a point's time fails this."""
    for trial in ("trial0", "trial1"):
        train(ledger, trial)
    first = flushed(ledger, uri)
    told = runs_of(uri, ledger.uuid)
    assert first.flush()
    ledger.unproject()
    flushed(ledger, uri)
    assert runs_of(uri, ledger.uuid) == told
    agree(ledger, uri)


def test_values_that_are_no_numbers_arrive(ledger: Ledger, uri: str) -> None:
    """NaN as NaN; infinities as the largest float, which is all that MLflow can hold."""
    number = ledger.start_attempt("trial0", {}, "h")
    values = [1.0, math.nan, math.inf, -math.inf]
    points = [Point("trial0", "train/loss", step, value, 1e9 + step) for step, value in enumerate(values)]
    ledger.record_points("trial0", number, points)
    for _ in range(2):
        flushed(ledger, uri)
        ledger.unproject()
    flushed(ledger, uri)
    (run,) = [run for run in runs_of(uri, ledger.uuid) if run["kind"] == "trial"]
    found = [value for _, _, value in run["metrics"]["train/loss"]]
    assert found[0] == 1.0
    assert math.isnan(found[1])
    assert found[2:] == [sys.float_info.max, -sys.float_info.max]


def test_what_was_different_about_an_attempt_is_a_tag(ledger: Ledger, embedded: str) -> None:
    number = ledger.start_attempt("trial0", {}, "h")
    failed = {"failure": "out_of_memory", "message": "CUDA out of memory"}
    ledger.finish_attempt("trial0", number, state="failed", **failed)  # type: ignore[arg-type]
    projection = flushed(ledger, embedded)
    (run,) = agree(ledger, embedded)
    assert run["status"] == "FAILED"
    assert run["tags"]["orchestrator.message"] == "CUDA out of memory"
    assert run["tags"]["orchestrator.failure"] == "out_of_memory"
    ledger.requeue("trial0")
    assert projection.flush()
    assert agree(ledger, embedded)[0]["status"] == "SCHEDULED"
    number = ledger.start_attempt("trial0", {"micro": 32}, "h")
    ledger.record_points("trial0", number, curve("trial0", 3))
    finish(ledger, "trial0", number)
    assert projection.flush()
    (run,) = agree(ledger, embedded)
    assert run["status"] == "FINISHED"
    assert run["tags"]["attempts"] == "2"
    assert run["tags"]["attempt.1.failure"] == "out_of_memory"
    assert run["tags"]["attempt.2.execution.micro"] == "32"
    assert run["tags"]["orchestrator.failure"] == ""
    assert run["params"]["loss.name"] == "infonce", "the parameters stay the planned ones"


def test_the_report_is_on_the_parent_run(ledger: Ledger, uri: str, tmp_path: Path) -> None:
    """Also when it is given after the projection was stopped, as a driver does."""
    from mlflow.artifacts import download_artifacts

    folder = tmp_path / "report"
    folder.mkdir()
    (folder / "report.md").write_text("# It does not matter\n")
    projection = Projection(ledger, uri, interval_s=0.05)
    projection.start()
    ledger.set_run(state="done")
    assert projection.stop(30)
    projection.log_report(folder, "# It does not matter", metrics={"p": 0.5}, tags={"verdict": "inconclusive"})
    assert projection.stop(30), projection.last_error
    (parent,) = runs_of(uri, ledger.uuid)
    assert parent["tags"]["mlflow.note.content"] == "# It does not matter"
    assert parent["tags"]["verdict"] == "inconclusive"
    assert parent["metrics"]["p"][0][2] == 0.5
    found = download_artifacts(run_id=parent["run_id"], artifact_path="report/report.md", tracking_uri=uri)
    assert Path(found).read_text() == "# It does not matter\n"


def test_the_verdict_stays_on_the_experiment_when_mlflow_is_met_again(ledger: Ledger, uri: str, tmp_path: Path) -> None:
    """A driver that continues the run knows the question only. Mutant check: setting the tags anew fails this."""
    (tmp_path / "report").mkdir()
    first = Projection(ledger, uri)
    first.log_report(tmp_path / "report", "x", tags={"verdict": "It does not."})
    assert first.flush(), first.last_error
    flushed(ledger, uri)
    tags = connect(uri).get_experiment(str(ledger.run.mlflow_experiment_id)).tags
    assert tags["mlflow.note.content"] == "A or B? It does not."
    assert tags["mlflow.experimentKind"] == "custom_model_development"


DATA: list[JsonValue] = [
    {"context": "training", "source": "digits[:1000]", "rows": 1000, "digest": "a" * 32},
    {"context": "confirm", "source": "s3://bucket/held-out.parquet", "rows": 400, "digest": "b" * 32},
]


def test_the_data_of_a_trial_are_inputs_of_its_run_and_of_the_parent_once(
    ledger: Ledger, uri: str, tmp_path: Path
) -> None:
    """Two trials on the same data make two datasets, whose rows and digest MLflow shows; telling again adds none."""
    for trial in ("trial0", "trial1"):
        number = ledger.start_attempt(trial, {}, "h")
        ledger.finish_attempt(trial, number, state="done", outcome="ok", metric=0.5, step=2, result={"data": DATA})
    (tmp_path / "report").mkdir()
    for _ in range(2):
        projection = Projection(ledger, uri)
        projection.log_report(tmp_path / "report", "x")
        assert projection.flush(), projection.last_error
        ledger.unproject()
    client = connect(uri)
    for run in runs_of(uri, ledger.uuid):
        stored = client.get_run(run["run_id"]).inputs
        assert stored is not None
        inputs = stored.dataset_inputs
        found = {one.tags[0].value: (one.dataset.name, one.dataset.digest, one.dataset.profile) for one in inputs}
        assert len(inputs) == 2
        assert found == {
            "training": ("digits[:1000]", "a" * 32, '{"num_rows": 1000}'),
            "confirm": ("s3://bucket/held-out.parquet", "b" * 32, '{"num_rows": 400}'),
        }


def test_a_run_says_in_words_what_became_of_its_trial(ledger: Ledger, uri: str) -> None:
    train(ledger, "trial0")
    number = ledger.start_attempt("trial1", {}, "h")
    ledger.finish_attempt("trial1", number, state="failed", failure="user_error", message="no such column")
    number = ledger.start_attempt("trial2", {}, "h")
    ledger.finish_attempt("trial2", number, state="done", outcome="diverged", metric=0.1, step=2)
    flushed(ledger, uri)
    runs = (run for run in runs_of(uri, ledger.uuid) if run["kind"] == "trial")
    said = {run["trial"]: run["tags"]["mlflow.note.content"] for run in runs}
    assert said["trial0"] == "**arm 0**, confirm stage, seed 0, done: metric 2.2500"
    assert said["trial1"] == "**arm 1**, confirm stage, seed 0: failed (user_error): no such column"
    assert said["trial2"] == "**arm 0**, confirm stage, seed 1, done: diverged, so it has no metric"


EMBED = """
import numpy as np

def load(folder):
    scale = float((folder / "scale.txt").read_text())
    return lambda rows: np.array([[scale * len(row), scale] for row in rows], np.float32)
"""


def exported(folder: Path, scale: float) -> Path:
    """A folder as `orchestrator export` writes it, of an encoder that embeds a row as its length."""
    folder.mkdir()
    (folder / "embed.py").write_text(EMBED)
    (folder / "scale.txt").write_text(str(scale))
    return folder


def models(uri: str, ledger: Ledger) -> list[Any]:
    experiment = ledger.run.mlflow_experiment_id
    assert experiment is not None
    return list(connect(uri).search_logged_models([experiment]))


def test_the_best_encoder_of_an_arm_is_a_model_that_mlflow_loads(
    ledger: Ledger, uri: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Once, however often it is told, and linked to the run of its trial. What a kill left half, and what is not the
    best any more, goes. Mutant check: making a model without looking for one fails this."""
    import mlflow

    for trial in ("trial0", "trial2"):
        train(ledger, trial)
    flushed(ledger, uri)
    client = connect(uri)
    experiment = ledger.run.mlflow_experiment_id
    assert experiment is not None
    identity = {"orchestrator.run": ledger.uuid, "arm": "arm 0", "orchestrator.trial": "trial0"}
    half = client.create_logged_model(experiment, name="killed", tags=identity)
    for trial, scale in (("trial2", 3.0), ("trial0", 2.0), ("trial0", 2.0)):
        folder = tmp_path / trial
        projection = Projection(ledger, uri)
        encoder = Encoder(ledger.trial(trial), folder if folder.exists() else exported(folder, scale))
        projection.start()
        assert projection.stop(60), projection.last_error
        projection.log_encoders([encoder])
        assert projection.stop(60), projection.last_error
    (model,) = models(uri, ledger)
    assert model.model_id != half.model_id
    assert (model.name, str(model.status)) == ("arm 0", "READY")
    assert {"arm": "arm 0", "seed": "0", "orchestrator.trial": "trial0"}.items() <= model.tags.items()
    assert model.params["loss.name"] == "infonce"
    outputs = client.get_run(str(ledger.trial("trial0").mlflow_run_id)).outputs
    assert outputs is not None
    (made,) = outputs.model_outputs
    assert made.model_id == model.model_id
    # Not by set_tracking_uri: it writes to the environment, which every process of later tests would inherit.
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    loaded = mlflow.pyfunc.load_model(f"models:/{model.model_id}")
    assert loaded.predict(["four", "seven77"]).tolist() == [[8.0, 2.0], [14.0, 2.0]]
    assert loaded.predict(np.zeros((2, 5, 3), np.uint8)).tolist() == [[10.0, 2.0], [10.0, 2.0]]
    assert loaded.predict(pd.DataFrame({"text": ["a", "bcd"]})).tolist() == [[2.0, 2.0], [6.0, 2.0]]


def test_a_logged_encoder_names_what_loading_it_needs_and_holds_no_pickle(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    save(exported(tmp_path / "encoder", 1.0), folder)
    needs = (folder / "requirements.txt").read_text().splitlines()
    assert [line.partition("==")[0] for line in needs] == ["mlflow", "numpy", "torch", "transformers"]
    assert not any("+" in line for line in needs), "no index has a local version"
    assert not list(folder.rglob("*.pkl"))


def test_an_embedded_store_lies_beside_the_runs_and_nowhere_else(
    ledger: Ledger, tmp_path: Path, tables: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant check: leaving out the artifact location puts artifacts below the current directory and fails this."""
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(elsewhere)
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "report.md").write_text("x")
    projection = Projection(ledger, fresh(runs, tables))
    projection.log_report(tmp_path / "report", "x")
    assert projection.flush(), projection.last_error
    assert list(elsewhere.iterdir()) == []
    assert sorted(path.name for path in runs.iterdir()) == ["mlartifacts", "mlflow.db"]
    assert list((runs / "mlartifacts").rglob("report.md"))


@pytest.mark.parametrize(("runs", "points"), [(100, 25_000), (3, 5)])
def test_the_histories_of_many_runs_are_those_of_each(
    ledger: Ledger, uri: str, monkeypatch: pytest.MonkeyPatch, runs: int, points: int
) -> None:
    """Also when a server cuts its answer off. Mutant check: taking the answer as it comes fails this, and so does
    leaving out the runs after the first `BULK_RUNS`."""
    for number, trial in enumerate(planned(4)):
        train(ledger, trial.id, 3 + number)
    odd = [Point("trial0", "odd", step, value, 1e9) for step, value in enumerate([math.nan, math.inf, 1e-300, -0.1])]
    ledger.record_points("trial0", 1, odd)
    flushed(ledger, uri)
    monkeypatch.setattr(reading, "BULK_RUNS", runs)
    monkeypatch.setattr(reading, "BULK_POINTS", points)
    client = connect(uri)
    found = runs_of(uri, ledger.uuid)
    assert len(found) == 5
    for run in found:
        alone = {
            key: sorted((one.step, one.timestamp, one.value) for one in client.get_metric_history(run["run_id"], key))
            for key in client.get_run(run["run_id"]).data.metrics
        }
        assert repr(sorted(run["metrics"].items())) == repr(sorted(alone.items()))
    assert sorted(len(run["metrics"].get("train/loss", ())) for run in found) == [0, 3, 4, 5, 6]


# One run for each trial, always

KILLED = """
import os, sys
from orchestrator.ledger import Ledger, this_process
from orchestrator.tracking import Projection
ledger = Ledger.open(sys.argv[1])
ledger.acquire(this_process(), 600)
def die(*args, **named):
    os.kill(os.getpid(), 9)
setattr(ledger, sys.argv[3], die)
projection = Projection(ledger, sys.argv[2])
projection.flush()
print(repr(projection.last_error))
"""


@pytest.mark.few(1)
@pytest.mark.parametrize("moment", ["set_run", "set_mlflow_run", "mark_projected", "mark_trial_projected"])
def test_a_kill_at_any_moment_leaves_no_second_run_and_no_point_twice(
    ledger: Ledger, embedded: str, moment: str
) -> None:
    """FAULTS.md row 5: kill -9 between telling MLflow and recording it. Mutant check: not adopting fails this."""
    train(ledger, "trial0")
    ledger.release()
    command = [sys.executable, "-c", KILLED, str(ledger._database.url), embedded, moment]
    done = subprocess.run(command, cwd=ROOT, check=False, capture_output=True, text=True)
    assert done.returncode == -signal.SIGKILL, done.stdout
    ledger.acquire("the test", 600)
    before = {run["run_id"] for run in runs_of(embedded, ledger.uuid)}
    assert before, "the process did not get far enough for this to say anything"
    flushed(ledger, embedded)
    after = {run["run_id"] for run in runs_of(embedded, ledger.uuid)}
    assert before <= after
    assert len(after) == 2
    agree(ledger, embedded)


def test_a_second_run_of_a_trial_is_deleted(ledger: Ledger, embedded: str) -> None:
    train(ledger, "trial0")
    projection = flushed(ledger, embedded)
    assert projection._client is not None
    (nested,) = agree(ledger, embedded)
    projection._client.create_run(nested["experiment_id"], tags=nested["tags"])
    assert len(runs_of(embedded, ledger.uuid)) == 3
    flushed(ledger, embedded)
    agree(ledger, embedded)


def test_a_driver_that_lost_its_lease_leaves_no_run_behind(ledger: Ledger, embedded: str) -> None:
    """Mutant check: not deleting the run it had just made fails this."""
    projection = flushed(ledger, embedded)
    train(ledger, "trial0")
    ledger.release()
    successor = Ledger.open(str(ledger._database.url))
    successor.acquire("successor", 600)
    with pytest.raises(LeaseLost):
        projection.flush()
    assert [run["kind"] for run in runs_of(embedded, ledger.uuid)] == ["sweep"]
    flushed(successor, embedded)
    agree(successor, embedded)
    successor.close()


@pytest.mark.parametrize("lost", ["deleted", "gone", "experiment deleted"])
def test_what_a_person_removed_from_mlflow_comes_back(ledger: Ledger, embedded: str, lost: str) -> None:
    import sqlite3

    train(ledger, "trial0", end=False)
    projection = flushed(ledger, embedded)
    (nested,) = agree(ledger, embedded)
    client = projection._client
    assert client is not None
    if lost == "deleted":
        client.delete_run(nested["run_id"])
    elif lost == "experiment deleted":
        client.delete_experiment(nested["experiment_id"])
    else:
        with contextlib.closing(sqlite3.connect(embedded.removeprefix("sqlite:///"))) as database, database:
            for table in ("tags", "params", "metrics", "latest_metrics", "runs"):
                database.execute(f"DELETE FROM {table} WHERE run_uuid = ?", [nested["run_id"]])
    ledger.record_points("trial0", 1, curve("trial0", 2, offset=3))
    finish(ledger, "trial0")
    for _ in range(4):
        if projection.flush():
            break
    agree(ledger, embedded)


def test_a_run_moves_to_another_store_whole(ledger: Ledger, embedded: str, tmp_path: Path, tables: Path) -> None:
    train(ledger, "trial0")
    flushed(ledger, embedded)
    elsewhere = fresh(tmp_path / "elsewhere", tables)
    flushed(ledger, elsewhere)
    agree(ledger, elsewhere)
    assert [event.kind for event in ledger.events()] == ["tracking_moved"]


def test_runs_of_one_sweep_never_touch_each_other(ledger: Ledger, embedded: str, tmp_path: Path) -> None:
    url = sqlite_url(tmp_path / "other.db")
    other = Ledger.create(url, name=ledger.run.name, sweep={}, trials=planned(4))
    other.acquire("the test", 600)
    for one in (ledger, other):
        train(one, "trial0")
        flushed(one, embedded)
    assert ledger.run.mlflow_experiment_id != other.run.mlflow_experiment_id
    assert ledger.run.mlflow_run_id != other.run.mlflow_run_id
    agree(ledger, embedded)
    agree(other, embedded)
    other.close()


# MLflow away


@pytest.mark.slow
def test_a_server_that_dies_and_returns_has_the_whole_history(ledger: Ledger, server: Server) -> None:
    """FAULTS.md row 10. Mutant check: marking points before they are told fails this."""
    projection = Projection(ledger, server.uri, interval_s=0.05)
    projection.start()
    train(ledger, "trial0")
    train(ledger, "trial1", end=False)
    wait(lambda: not ledger.waiting() and not ledger.unprojected_trials())
    with projection._turn:  # between two passes, so that the next thing told is a point
        server.kill()
    ledger.record_points("trial1", 1, curve("trial1", 2, offset=3))
    wait(lambda: not projection.healthy)
    finish(ledger, "trial1")
    server.start()
    train(ledger, "trial2")
    assert projection.stop(60), projection.last_error
    assert [event.kind for event in ledger.events()] == ["tracking_lost", "tracking_back"]
    assert len(agree(ledger, server.uri)) == 3


def wait(done: Callable[[], bool], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not done():
        assert time.monotonic() < deadline
        time.sleep(0.02)


class Sick(socketserver.BaseRequestHandler):
    """A server that says nothing, or answers 500 to everything."""

    answer: bytes | None = None

    def handle(self) -> None:
        self.request.recv(65536)
        if self.answer is None:
            self.server.over.wait(60)  # type: ignore[attr-defined]
        else:
            self.request.sendall(self.answer)


@contextlib.contextmanager
def sick(answer: bytes | None) -> Iterator[str]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), type("Handler", (Sick,), {"answer": answer})) as one:
        one.daemon_threads = True
        one.over = threading.Event()  # type: ignore[attr-defined]
        thread = threading.Thread(target=one.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{one.server_address[1]}"
        finally:
            one.over.set()  # type: ignore[attr-defined]
            one.shutdown()
            thread.join()


ERROR_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"


@pytest.mark.parametrize("answer", [None, ERROR_500], ids=["hanging", "500"])
def test_a_sick_server_delays_nobody(
    ledger: Ledger, embedded: str, monkeypatch: pytest.MonkeyPatch, answer: bytes | None
) -> None:
    """The sweep goes on at its pace, `stop` returns in time, and another session catches up."""
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "2")
    with sick(answer) as address:
        projection = Projection(ledger, address, interval_s=0.01)
        projection.start()
        start = time.monotonic()
        for trial in planned(4):
            train(ledger, trial.id)
        assert time.monotonic() - start < 2
        if answer:
            wait(lambda: projection.last_error is not None)
        start = time.monotonic()
        assert not projection.stop(1)
        assert time.monotonic() - start < 1.5
    assert projection._thread is not None
    projection._thread.join(10)
    assert not projection._thread.is_alive()
    assert not projection.healthy
    flushed(ledger, embedded)
    assert len(agree(ledger, embedded)) == 4


def test_a_sick_server_is_named_when_it_is_asked_for_runs() -> None:
    with sick(ERROR_500) as address, pytest.raises(TrackingUnavailable, match=rf"{address}: .*500.*; see what its log"):
        runs_of(address, "some run")


@pytest.mark.parametrize(
    ("answer", "said"),
    [
        (None, "timed out"),
        (ERROR_500, "answered 500 Internal Server Error to /health"),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\nConnection: close\r\n\r\nmail", "something else than MLflow"),
    ],
)
def test_a_server_that_cannot_be_used_is_named_with_what_helps(answer: bytes | None, said: str) -> None:
    with sick(answer) as address, pytest.raises(TrackingUnavailable, match=rf"{address}: {said}.*; .*--offline"):
        check(address, 0.3)


def test_what_is_no_store_is_refused(tmp_path: Path, server: Server, embedded: str) -> None:
    check(server.uri)
    check(embedded)
    check(embedded_uri(tmp_path / "not" / "there" / "yet"))
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        port = closed.getsockname()[1]
        with pytest.raises(TrackingUnavailable, match="Connection refused") as refusal:
            check(f"http://me:a-secret@127.0.0.1:{port}")
    assert "a-secret" not in str(refusal.value)
    assert refusal.value.address == f"http://me@127.0.0.1:{port}"
    for bad, said in [
        ("file:///x/mlruns", "neither a server nor"),
        ("sqlite:///mlflow.db", "relative to the current"),
        ("http://127.0.0.1:port", "nonnumeric port"),
        ("http://[::1/", "Invalid IPv6"),
        ("http://a host/", "control characters"),
    ]:
        with pytest.raises(TrackingUnavailable, match=said):
            check(bad)


TOLD = """
import sys
from orchestrator.ledger import Ledger, this_process
from orchestrator.tracking import Projection, runs_of
ledger = Ledger.open(sys.argv[1])
ledger.acquire(this_process(), 600)
projection = Projection(ledger, sys.argv[2])
projection.flush()
print(projection.last_error, len(runs_of(sys.argv[2], ledger.uuid)))
"""


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("damage", ["garbage", "a folder", "a damaged page"])
def test_a_store_that_is_damaged_is_named_with_what_helps(
    ledger: Ledger, tmp_path: Path, tables: Path, damage: str
) -> None:
    """And that helps. Mutant check: looking whether the folder can be written, and no further."""
    train(ledger, "trial0")
    uri, path, content = embedded_uri(tmp_path), tmp_path / "mlflow.db", tables.read_bytes()
    if damage == "a folder":
        path.mkdir()
    elif damage == "garbage":
        path.write_bytes(bytes(range(256)) * 100)
    else:
        path.write_bytes(content[:4096] + b"garbage " * ((len(content) - 4096) // 8))
    with pytest.raises(TrackingUnavailable, match=r"mlflow.db: .*; put back a copy of it; or .*: mv /") as refusal:
        runs_of(uri, ledger.uuid)
    if damage != "a damaged page":  # which is not looked for before anything runs
        with pytest.raises(TrackingUnavailable, match=r"is a folder|is no database of SQLite"):
            check(uri)
    subprocess.run(refusal.value.remedy.rpartition(": ")[2], shell=True, check=True)
    ledger.release()
    command = [sys.executable, "-c", TOLD, str(ledger._database.url), uri]  # this process has the old file open
    done = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "None 2\n"


def test_the_projection_ends_quietly_when_its_lease_is_lost(ledger: Ledger, embedded: str) -> None:
    projection = Projection(ledger, embedded, interval_s=0.01)
    projection.start()
    wait(lambda: ledger.run.mlflow_run_id is not None)
    ledger.release()
    successor = Ledger.open(str(ledger._database.url))
    successor.acquire("successor", 600)
    train(successor, "trial0")
    assert projection._thread is not None
    projection._thread.join(10)
    assert isinstance(projection.last_error, LeaseLost)
    successor.close()


@pytest.mark.parametrize("error", [SystemExit(1), ValueError("no")])
def test_whatever_a_library_raises_under_the_projection_it_tries_again(
    ledger: Ledger, embedded: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """rich raises SystemExit where its terminal is gone. Mutant check: a projection that expects nothing but
    exceptions ends, and says that all is well."""
    projection, sound = Projection(ledger, embedded, interval_s=0.01), Projection._tell
    failed = threading.Event()

    def tell(self: Projection) -> Exception | None:
        if failed.is_set():
            return sound(self)
        raise error

    monkeypatch.setattr(Projection, "_tell", tell)
    projection.start()
    wait(lambda: not projection.healthy)
    failed.set()
    train(ledger, "trial0")
    assert projection.stop(60)
    assert projection.healthy
    assert len(agree(ledger, embedded)) == 1
    assert {event.kind for event in ledger.events()} >= {"tracking_lost", "tracking_back"}


# Pages and speed


def test_the_user_interface_serves_the_store_and_its_pages(server: Server) -> None:
    with urllib.request.urlopen(compare_address(server.uri, "1", ["a", "b"])) as page:
        assert b"<title>MLflow</title>" in page.read()
    assert compare_address("http://h:1/", "7", ["a", "b"]).endswith(
        "h:1/#/compare-runs?runs=%5B%22a%22%2C%22b%22%5D&experiments=%5B%227%22%5D&workflowType=machine_learning"
    )
    address = experiment_address("http://h:1", "7", uuid="12345678-abcd-ef")
    begins = "http://h:1/#/experiments/7/runs?workflowType=machine_learning&viewStateShareKey=12345678abcd"
    assert address == f"{begins}&compareRunsMode=CHART"
    address = experiment_address("http://h:1", "7", uuid="12345678-abcd-ef", page="arms", charts=False)
    assert address == f"{begins}a&compareRunsMode=TABLE"
    with pytest.raises(ValueError, match="is a server already"):
        ui_command("http://h:1")


def test_importing_the_projection_does_not_import_mlflow() -> None:
    probe = "import sys, orchestrator.tracking; print([m for m in ('mlflow', 'torch', 'ray') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], cwd=ROOT, check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"


@pytest.mark.soak
def test_a_first_store_is_made_without_a_word(tmp_path: Path) -> None:
    """MLflow logs each of its migrations otherwise, into the middle of the progress display; nor does it use the
    current directory. Mutant check: leaving the loggers at INFO, or the filter of warnings out, fails this."""
    runs, elsewhere = tmp_path / "runs", tmp_path / "elsewhere"
    elsewhere.mkdir()
    probe = f"from orchestrator.tracking.store import connect; connect({embedded_uri(runs)!r})"
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-W", "error", "-c", probe]
    done = subprocess.run(command, cwd=elsewhere, env=environment, capture_output=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, b"", b"")
    assert list(elsewhere.iterdir()) == []
    assert [path.name for path in runs.iterdir()] == ["mlflow.db"]


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("later_s", [0.0, 0.3, 0.6])
def test_an_embedded_store_whose_making_was_cut_short_by_a_kill_is_made_again(tmp_path: Path, later_s: float) -> None:
    """MLflow makes its tables one by one, and cannot go on from half of them. Mutant check: made in its place."""
    make = "import sys; from orchestrator.tracking.store import connect; connect(sys.argv[1]).search_experiments()"
    uri = stores.embedded_uri(tmp_path)
    process = subprocess.Popen([sys.executable, "-c", make, uri])
    try:
        deadline = time.monotonic() + 60
        while not any(path.stat().st_size for path in tmp_path.glob("*mlflow.db*")):
            assert time.monotonic() < deadline
            time.sleep(0.005)
        time.sleep(later_s)
    finally:
        process.kill()
        process.wait()
    done = subprocess.run([sys.executable, "-c", make, uri], capture_output=True, text=True, check=False, timeout=60)
    assert done.returncode == 0, done.stderr[-500:]
    assert [path.name for path in tmp_path.iterdir()] == ["mlflow.db"], "what was left is cleared away"


@pytest.mark.few(3)
@pytest.mark.parametrize("error", [GeneratorExit(), KeyboardInterrupt(), MemoryError("none left")])
def test_the_death_of_the_projection_is_said_at_once_and_the_end_of_the_session_catches_up(
    ledger: Ledger, uri: str, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    """Mutant check: kept in `last_error` alone it is heard of when the session ends."""
    said, told = list[str](), Event()

    def say(text: str) -> None:
        said.append(text)
        told.set()

    def dies() -> bool:
        raise error

    projection = Projection(ledger, uri, interval_s=0.01, say=say)

    with monkeypatch.context() as patch:
        patch.setattr(projection, "flush", dies)
        projection.start()
        assert told.wait(10)
    (line,) = said
    assert line.startswith("note: nothing more is written to MLflow until the session ends")
    assert type(error).__name__ in line
    assert not projection.healthy
    assert projection.stop(60), projection.last_error
    assert projection.healthy
