"""Rows 9, 10 and 40 of the fault table: MLflow is away, answers 500 or hangs, at the start and in the middle of a run;
and what was told is deleted or renamed there.

A real server, behind a proxy whose behaviour the test switches while a real sweep runs.
"""

from __future__ import annotations

import contextlib
import json
import signal
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Literal

import pytest
from real import SWEEP, Server, call, crowding, driver, ended, status, wait_for

from orchestrator import tracking
from orchestrator.run_dir.folder import RunFolder
from orchestrator.tracking.metadata import PAIRS
from orchestrator.tracking.store import connect

Mood = Literal["pass", "500", "hang", "refuse"]

HANG_S = 60.0
HELD_UP_S = 90.0
"""From the last trial to the exit of a driver whose MLflow is away: the report is drawn meanwhile."""

STALL_S = 5.0
"""No step takes this long, and one that waits for an MLflow that hangs takes twice as long."""

NOISE = 1.5
"""How much slower the median step may look while MLflow is sick, on a machine that does other things too."""

SMALL = SWEEP[: SWEEP.index("[tune]\n")] + "[confirm]\nseeds = 2\n"
"""Four trials, none of them tuned."""

LONG = SMALL.replace("steps = 8", "steps = 4000").replace("every = 3", "every = 100")
"""Minutes of training, in which every twentieth step is logged."""

ANSWER_500 = b"HTTP/1.1 500 Internal Server Error\r\nContent-Length: 4\r\nConnection: close\r\n\r\noops"


class Proxy:
    """TCP on 127.0.0.1 between a driver and an MLflow server, which can be made sick and well again.

    A new mood cuts what is open, so that it holds for every request from then on.
    """

    def __init__(self, port: int) -> None:
        self._upstream, self._mood, self._open = port, "pass", set[socket.socket]()
        self._lock, self._over = threading.Lock(), threading.Event()
        self.asked: dict[str, int] = {}
        """Connections that were made in each mood."""
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self.uri = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._thread = threading.Thread(target=self._accept)
        self._thread.start()

    def become(self, mood: Mood) -> None:
        with self._lock:
            self._mood = mood
            self._cut()

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        self._thread.join()
        with self._lock:
            self._cut()

    def _cut(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
        self._open.clear()

    def _accept(self) -> None:
        while not self._over.is_set():
            try:
                caller, _ = self._listener.accept()
            except OSError:
                return
            threading.Thread(target=self._serve, args=(caller,), daemon=True).start()

    def _serve(self, caller: socket.socket) -> None:
        with caller, contextlib.suppress(OSError):
            with self._lock:
                mood = self._mood
                self.asked[mood] = self.asked.get(mood, 0) + 1
                self._open.add(caller)
            if mood == "500":
                caller.recv(65536)
                caller.sendall(ANSWER_500)
            elif mood == "hang":
                caller.settimeout(HANG_S)
                while caller.recv(65536):
                    pass
            elif mood == "pass":
                self._pass(caller)

    def _pass(self, caller: socket.socket) -> None:
        with socket.create_connection(("127.0.0.1", self._upstream)) as server:
            with self._lock:
                self._open.add(server)
            back = threading.Thread(target=_copy, args=(server, caller), daemon=True)
            back.start()
            _copy(caller, server)
            back.join()


def _copy(source: socket.socket, target: socket.socket) -> None:
    with contextlib.suppress(OSError):
        while some := source.recv(65536):
            target.sendall(some)
    for one in (source, target):
        with contextlib.suppress(OSError):
            one.shutdown(socket.SHUT_RDWR)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    """One MLflow server for the module; its start takes some ten seconds."""
    one = Server(tmp_path_factory.mktemp("mlflow"))
    one.start()
    yield one
    one.kill()


@pytest.fixture
def proxy(server: Server) -> Iterator[Proxy]:
    """A proxy before the server, well at first."""
    one = Proxy(server.port)
    yield one
    one.close()


def whole(home: Path, uri: str) -> None:
    """`verify` finds nothing, and MLflow has one run for each trial that was begun, with each of its points once."""
    found = json.loads(call("verify", "small", "--json", cwd=home, env={"MLFLOW_TRACKING_URI": uri}))
    assert found["ok"], found["faults"]
    with contextlib.closing(RunFolder(home / "runs" / "small").open()) as ledger:
        begun = [trial.id for trial in ledger.trials() if trial.attempts]
        told = {trial: [(point.key, point.step) for point in ledger.points(trial)] for trial in begun}
        nested = [run for run in tracking.runs_of(uri, ledger.uuid) if run["kind"] == "trial"]
    assert sorted(str(run["trial"]) for run in nested) == sorted(begun)
    for run in nested:
        in_mlflow = sorted((key, step) for key, points in run["metrics"].items() for step, _, _ in points)
        points = told[str(run["trial"])]
        seen = [(PAIRS, step) for key, step in points if key == "knn_accuracy"]
        assert in_mlflow == sorted([*points, *seen]), f"trial {run['trial']}"


# --- row 9


def test_row_9_mlflow_that_is_away_at_the_start_is_named_with_the_remedy_and_nothing_is_made(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
    away = {"MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}"}
    start = time.monotonic()
    said = call("launch", "sweep.toml", cwd=tmp_path, code=4, env=away)
    took = time.monotonic() - start
    assert f"MLflow at http://127.0.0.1:{port}: " in said
    assert "Connection refused" in said
    assert "start it, correct MLFLOW_TRACKING_URI" in said
    assert "--offline" in said
    assert took < 15 * crowding()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


@pytest.mark.few(1)
@pytest.mark.parametrize(("mood", "words"), [("500", "answered 500"), ("hang", "timed out")])
def test_row_9_a_sick_mlflow_at_the_start_is_no_better(tmp_path: Path, mood: Mood, words: str) -> None:
    """Mutant check: asking for MLflow only after the run is made leaves `runs` behind."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    sick = Proxy(0)
    sick.become(mood)
    try:
        start = time.monotonic()
        said = call("launch", "sweep.toml", cwd=tmp_path, code=4, env={"MLFLOW_TRACKING_URI": sick.uri})
        took = time.monotonic() - start
    finally:
        sick.close()
    assert f"MLflow at {sick.uri}: {words}" in said
    assert took < 15 * crowding()
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


@pytest.mark.soak
def test_row_9_a_run_made_offline_is_projected_whole_by_a_later_resume(tmp_path: Path, server: Server) -> None:
    (tmp_path / "sweep.toml").write_text(SMALL)
    away, there = {"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"}, {"MLFLOW_TRACKING_URI": server.uri}
    call("launch", "sweep.toml", "--offline", cwd=tmp_path, env=away)
    assert "MLflow at http://127.0.0.1:1" in call("resume", "small", cwd=tmp_path, code=4, env=away)
    assert tracking.runs_of(server.uri, status(tmp_path)["run"]) == []
    call("resume", "small", cwd=tmp_path, env=there)
    whole(tmp_path, server.uri)


# --- row 10


def intervals(home: Path) -> Iterator[tuple[float, float]]:
    """(when it began, seconds) between each two logged training steps of a trial."""
    for path in sorted((home / "runs" / "small" / "trials").glob("*/points.jsonl")):
        times = [p["time"] for p in map(json.loads, path.read_text().splitlines()) if p["key"] == "train/loss"]
        yield from ((before, after - before) for before, after in pairwise(times))


@pytest.mark.soak
def test_row_10_training_does_not_notice_a_sick_mlflow_and_its_history_is_whole_afterwards(
    tmp_path: Path, server: Server, proxy: Proxy
) -> None:
    """500, hanging, refusing, really stopped and started again, each for some seconds of one sweep."""
    (tmp_path / "sweep.toml").write_text(LONG)
    folder = RunFolder(tmp_path / "runs" / "small")
    phases: list[tuple[str, float, float]] = []

    def phase(name: str, seconds: float) -> None:
        """Lasts this long, and until the proxy was asked and some steps were logged."""
        start, mood = time.time(), name if name in ("500", "hang", "refuse") else "pass"
        before, logged = proxy.asked.get(mood, 0), len(list(intervals(tmp_path)))
        time.sleep(seconds)
        wait_for(lambda: len(list(intervals(tmp_path))) >= logged + 5, what=f"training while {name}")
        wait_for(lambda: proxy.asked.get(mood, 0) > before, seconds=60, what=f"a request while {name}")
        phases.append((name, start, time.time()))

    with driver("launch", "sweep.toml", cwd=tmp_path, env={"MLFLOW_TRACKING_URI": proxy.uri}) as process:
        wait_for(lambda: len(list(intervals(tmp_path))) >= 10, what="training")
        for mood in ("500", "hang", "refuse"):
            proxy.become("pass")
            phase("well", 5)
            proxy.become(mood)
            phase(mood, 6)
        proxy.become("pass")
        server.kill()
        phase("stopped", 4)
        server.start()
        phase("well", 5)
        assert process.poll() is None, "it ended too early: make the sweep longer"
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=120)
    assert process.returncode == 130, said
    assert "MLflow is behind" not in said
    spent: dict[bool, list[float]] = {True: [], False: []}
    for begun, seconds in intervals(tmp_path):
        name = next((name for name, start, end in phases if start <= begun < end), None)
        if name is not None:
            spent[name == "well"].append(seconds)
    well, sick = statistics.median(spent[True]), statistics.median(spent[False])
    print(f"{1e3 * well:.1f} ms while well, {1e3 * sick:.1f} ms while sick ({len(spent[True])}, {len(spent[False])})")
    assert min(len(spent[True]), len(spent[False])) >= 10
    assert sick < NOISE * well
    assert max(spent[False]) < STALL_S * crowding(), "something waited for MLflow"
    whole(tmp_path, proxy.uri)
    with contextlib.closing(folder.open()) as ledger:
        kinds = [event.kind for event in ledger.events() if event.kind.startswith("tracking_")]
    assert kinds[0] == "tracking_lost"
    assert kinds[-1] == "tracking_back"


@pytest.mark.soak
@pytest.mark.parametrize("mood", ["hang", "500"])
def test_row_10_a_sick_mlflow_does_not_hold_up_the_end_and_resume_catches_up(
    tmp_path: Path, proxy: Proxy, mood: Mood
) -> None:
    (tmp_path / "sweep.toml").write_text(SMALL)
    folder = RunFolder(tmp_path / "runs" / "small")
    there = {"MLFLOW_TRACKING_URI": proxy.uri}
    with driver("launch", "sweep.toml", cwd=tmp_path, env=there) as process:
        wait_for(lambda: ended(folder) >= 1, what="the first trial's end")
        proxy.become(mood)
        wait_for(lambda: ended(folder) == 4, what="the last trial's end")
        start = time.monotonic()
        said, _ = process.communicate(timeout=120)
        took = time.monotonic() - start
    print(f"{mood}: left {took:.1f} s after the last trial")
    assert process.returncode == 0, said
    assert took < HELD_UP_S * crowding()
    assert "MLflow is behind (" in said
    assert "catch up: orchestrator resume runs/small" in said
    assert "flatnce against infonce" in said, "the answer does not need MLflow"
    proxy.become("pass")
    call("resume", "small", cwd=tmp_path, env=there)
    whole(tmp_path, proxy.uri)


# --- row 40


@pytest.mark.soak
def test_row_40_what_was_deleted_or_renamed_in_mlflow_is_in_order_after_resume(tmp_path: Path) -> None:
    """By the real command line, of a finished run; `tests/orchestrator/tracking/test_settle.py` has every case, and
    runs that go on."""
    (tmp_path / "sweep.toml").write_text(SMALL)
    call("launch", "sweep.toml", cwd=tmp_path)
    uri = tracking.embedded_uri(tmp_path / "runs")
    env = {"MLFLOW_TRACKING_URI": uri}
    client = connect(uri)
    with contextlib.closing(RunFolder(tmp_path / "runs" / "small").open()) as ledger:
        run, trial = ledger.run, ledger.trials()[0]
    assert run.mlflow_experiment_id is not None
    assert run.mlflow_run_id is not None
    assert trial.mlflow_run_id is not None
    deeds: list[Callable[[], object]] = [
        partial(client.delete_run, trial.mlflow_run_id),
        partial(client.delete_run, run.mlflow_run_id),
        partial(client._tracking_client.store._hard_delete_run, run.mlflow_run_id),
        partial(client.set_tag, trial.mlflow_run_id, "mlflow.parentRunId", "f" * 32),
        partial(client.rename_experiment, run.mlflow_experiment_id, "renamed"),
        partial(client.delete_experiment, run.mlflow_experiment_id),
    ]
    for deed in deeds:
        deed()
        call("resume", "small", cwd=tmp_path, env=env)
        whole(tmp_path, uri)
        lying = {one["experiment_id"] for one in tracking.runs_of(uri, run.uuid, history=False)}
        assert lying == {run.mlflow_experiment_id}
