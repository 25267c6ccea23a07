"""The doctor: what it finds on this machine and on real clusters, that it leaves nothing, and that `launch` asks it."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import sqlalchemy as sa
from answers import answered
from ledgers import Begin
from ray.cluster_utils import Cluster
from real import QUICK, SWEEP, call, command, free_port, ray_cluster
from servers import new_database, s3_server

from orchestrator import driver, sweep
from orchestrator.ledger import NOTED, LedgerUnavailable, probe
from orchestrator.preflight import checks, doctor
from orchestrator.preflight import node as nodes
from orchestrator.preflight.doctor import BLOCKER, OK, WARNING, Finding
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.cluster.capacity import Node
from orchestrator.session.cluster.inquiry import Answer
from orchestrator.session.progress import Progress
from orchestrator.sweep import plan as planning
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.tracking import TrackingUnavailable, check

ROOT = Path(__file__).parents[3]


def looked(*arguments: str, cwd: Path, code: int = 0, env: dict[str, str] | None = None) -> dict[str, Any]:
    """What `doctor --json` says; nothing is left where it looked."""
    before = sorted(cwd.rglob("*"))
    done = subprocess.run(
        command("doctor", *arguments, "--json"),
        cwd=cwd,
        env=QUICK | os.environ | (env or {}),
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert done.returncode == code, done.stdout + done.stderr
    assert sorted(cwd.rglob("*")) == before
    found: dict[str, Any] = answered("doctor", done.stdout)
    return found


def of(found: dict[str, Any], check: str, level: str) -> list[dict[str, str]]:
    return [one for one in found["findings"] if (one["check"], one["level"]) == (check, level)]


# On this machine


def test_a_machine_that_has_everything_is_ready(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    found = looked("sweep.toml", cwd=tmp_path)
    assert found["ready"]
    assert {one["check"] for one in found["findings"]} >= {
        "versions",
        "storage",
        "disk",
        "ledger",
        "mlflow",
        "room",
        "data",
    }
    assert {one["level"] for one in found["findings"]} <= {OK, WARNING}


def test_what_is_wrong_is_told_all_at_once_with_its_remedy(tmp_path: Path) -> None:
    """Too many ranks for this machine, no data, no MLflow, no PostgreSQL."""
    wrong = SWEEP.replace("ranks = 2", "ranks = 16").replace('"digits[:300]"', '"nowhere.parquet"')
    (tmp_path / "sweep.toml").write_text(wrong)
    port = free_port()
    env = {
        "MLFLOW_TRACKING_URI": f"http://127.0.0.1:{port}",
        "ORCHESTRATOR_LEDGER": f"postgresql://me@127.0.0.1:{port}/sweeps",
    }
    found = looked("sweep.toml", cwd=tmp_path, code=4, env=env)
    assert not found["ready"]
    for name in ("room", "data", "mlflow", "ledger"):
        assert of(found, name, BLOCKER), name
    assert all(one["remedy"] for one in found["findings"] if one["level"] != OK)
    (room,) = of(found, "room", BLOCKER)
    assert "job.execution.ranks = 16" in room["found"]
    assert "--set job.execution.ranks=" in room["remedy"]
    said = call("doctor", "sweep.toml", "--offline", cwd=tmp_path, code=4, env={"MLFLOW_TRACKING_URI": "http://x"})
    assert said == ""


def test_a_person_reads_the_worst_first_and_what_to_do() -> None:
    found = [Finding("disk", "a", OK, "much"), Finding("clock", "b", WARNING, "is late", "wait"),
             Finding("gpus", "c", BLOCKER, "are gone", "look")]  # fmt: skip
    told = doctor.lines(found)
    assert [line.split()[0] for line in told] == ["blocker", "->", "warning", "->", "ok", "not"]
    assert told[-1] == "not ready: 1 blocker, 1 warning"
    assert doctor.lines(found[:1])[-1] == "ready: nothing wrong"


def test_no_part_of_a_finding_shows_a_secret(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "w0rd-of-mine")
    one = Finding("cluster", "RAY_ADDRESS=ray://me:w0rd@h:1", BLOCKER, "no w0rd-of-mine", "export A=https://w0rd@h/x")
    assert (one.where, one.found, one.remedy) == ("RAY_ADDRESS=ray://me:***@h:1", "no ***", "export A=https://***@h/x")


def test_a_dead_address_is_a_finding(tmp_path: Path) -> None:
    env = {"RAY_ADDRESS": f"127.0.0.1:{free_port()}"}
    found = looked(cwd=tmp_path, code=4, env=env)
    (one,) = of(found, "cluster", BLOCKER)
    assert "unset RAY_ADDRESS" in one["remedy"]
    assert of(found, "mlflow", OK), "the other checks are made"


@pytest.mark.parametrize(
    ("ahead_s", "level"),
    [(0.5, None), (-0.5, None), (3.0, WARNING), (-3.0, WARNING), (400.0, BLOCKER), (-400.0, BLOCKER)],
)
def test_clocks_that_are_far_apart_are_told(ahead_s: float, level: str | None) -> None:
    found = checks.clock("there", ahead_s)
    assert (found.level if found else None) == level
    if found is not None:
        assert ("ahead of" in found.found) == (ahead_s > 0)


def facts(**given: Any) -> nodes.Facts:
    told = {
        "host": "h",
        "code": nodes.code(),
        "storage": None,
        "free": {"/x": 2**40},
        "shared_memory": 2**34,
        "looked": {"versions": {"python": "3.11.7", "torch": "2.13.0", "ray": "2", "transformers": "5"},
                   "missing": {}, "gpus": None},
    }  # fmt: skip
    return nodes.Facts(**told | given)


@pytest.mark.parametrize(
    ("seen", "promised", "words"),
    [
        ({"names": ["H100", "H100"], "cuda": "12.8", "error": None}, 2, None),
        ({"names": ["H100"], "cuda": "12.8", "error": None}, 2, "Ray has 2 GPUs there, torch sees 1 x H100"),
        ({"names": [], "cuda": None, "error": None}, 1, "torch sees none"),
        ({"names": ["H100"], "cuda": "12.8", "error": "GPU 0: out of order"}, 1, "GPU 0: out of order"),
    ],
)
def test_gpus_that_torch_cannot_use_are_told(seen: dict[str, Any], promised: int, words: str | None) -> None:
    told = facts(looked={"versions": {}, "missing": {}, "gpus": seen})
    (found,) = checks._gpus([Answer("n", Node(8, promised), told)], {"n": told}, None)
    assert found.level == (WARNING if words else OK), "without a sweep nobody wants them"
    assert (words or "2 x H100 (CUDA 12.8)") in found.found


@pytest.mark.parametrize(
    ("package", "level"), [("torch", BLOCKER), ("python", BLOCKER), ("ray", WARNING)]
)  # fmt: skip
def test_a_node_with_another_version_is_named(package: str, level: str) -> None:
    usual, other = facts(), facts()
    assert usual.looked is not None
    other = facts(looked=usual.looked | {"versions": usual.looked["versions"] | {package: "0.1"}})
    told = {"a": usual, "b": usual, "c": other}
    (found,) = checks._versions([Answer(name, Node(1, 0)) for name in told], told)
    assert (found.where, found.level) == ("c", level)
    assert f"{package} 0.1, elsewhere" in found.found


def test_what_a_launch_is_warned_of_is_returned_and_what_blocks_it_is_raised(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Of two nodes whose versions are unlike, one late and with little room. Mutant check: blockers alone."""
    usual = facts()
    assert usual.looked is not None
    versions = usual.looked["versions"]
    other = facts(
        looked=usual.looked | {"versions": versions | {"ray": "0.1"}}, free={"/x": 2**31}, shared_memory=2**26
    )
    told = [Answer("a", Node(1, 0), usual), Answer("b", Node(1, 0), other, ahead_s=3.0)]
    monkeypatch.setattr(checks, "_answers", lambda *_, **__: (told, []))
    monkeypatch.setattr(checks, "probe", lambda _: -4.0)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    folder, plan = RunFolder(tmp_path / "run"), planning.make(sweep.load(tmp_path / "sweep.toml"))
    noted = doctor.refuse(folder, plan)
    assert [note.partition(":")[0] for note in noted] == [
        "versions, b", "disk, b", "disk, b", "clock, b", "clock, the ledger's server",
    ]  # fmt: skip
    assert "ray 0.1, elsewhere 2; make the nodes alike: pip install" in " ".join(noted)
    blocked = facts(looked=usual.looked | {"versions": versions | {"torch": "0.1"}})
    told.append(Answer("c", Node(1, 0), blocked))
    with pytest.raises(InfrastructureMissing, match=r"torch 0\.1, elsewhere"):
        doctor.refuse(folder, plan)


def test_disks_and_shared_memory_that_are_small_are_told() -> None:
    free = {"/full": 2**20, "/little": 2**28, "/low": 2**31, "/fine": 2**40}
    told = {"a": facts(free=free), "b": facts(shared_memory=2**26)}
    found = list(checks._disk(told))
    assert [(one.where, one.level) for one in found] == [("a", BLOCKER), *[("a", WARNING)] * 2, ("b", WARNING)]
    assert [one.found.partition(" free")[0] for one in found[:3]] == ["1.0 MiB", "256.0 MiB", "2.0 GiB"]


def test_a_file_system_that_is_full_is_a_blocker_of_launch(tmp_path: Path) -> None:
    """A real one of a megabyte, in a mount namespace of its own."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    (tmp_path / "runs").mkdir()
    inside = f'mount -t tmpfs -o size=1m none "{tmp_path}/runs" && exec "$@"'
    begin = ["unshare", "--mount", "sh", "-c", inside, "sh"]
    if subprocess.run([*begin, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs mount namespaces")
    done = subprocess.run(
        [*begin, *command("launch", "sweep.toml")],
        cwd=tmp_path, env=QUICK | os.environ, capture_output=True, text=True, check=False, timeout=100,
    )  # fmt: skip
    assert done.returncode == 4, done.stdout + done.stderr
    assert "MiB free" in done.stderr
    assert "->" in done.stderr


@pytest.mark.soak
def test_what_the_doctor_warns_of_stands_in_the_report_once(tmp_path: Path) -> None:
    """A disk with little room, which is less when more seeds are trained. Mutant check: warnings dropped; each kept
    with the amount that is free."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    (tmp_path / "runs").mkdir()
    inside = f'mount -t tmpfs -o size=300m none "{tmp_path}/runs" && exec "$@"'
    begin = ["unshare", "--mount", "sh", "-c", inside, "sh"]
    if subprocess.run([*begin, "true"], capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs mount namespaces")
    few = ["--set", "confirm.seeds=2", "--set", "tune.trials=1", "--offline"]
    steps = [
        shlex.join(command("launch", "sweep.toml", *few)),
        shlex.join(command("extend", "runs/small", "--seeds", "+1", "--offline")),
        f"{shlex.join(command('compare', 'runs/small', '--json'))} > answer.json",
    ]
    done = subprocess.run(
        [*begin, "sh", "-c", " && ".join(steps)],
        cwd=tmp_path, env=QUICK | os.environ, capture_output=True, text=True, check=False, timeout=280,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    (warned,) = [text for text in json.loads((tmp_path / "answer.json").read_text())["warnings"] if "disk" in text]
    assert warned.startswith("disk, this machine: ")
    assert f"MiB free in {tmp_path}/runs/small; " in warned
    said = [line for line in done.stdout.splitlines() if line.startswith("note: disk, this machine: ")]
    assert len(said) == 2, "every session says it"


@pytest.mark.parametrize(
    ("first", "again", "kept"),
    [
        ("disk, h: 4.2 GiB free in /x; free", "disk, h: 1.9 GiB free in /x; free", 1),
        ("disk, h: 4.2 GiB free in /x; free", "disk, h: 900.0 MiB free in /x; free", 1),
        ("clock, 10.0.0.1 (0a1b2c3d): 2.3 s ahead; x", "clock, 10.0.0.1 (ffffffff): 2.9 s ahead; x", 1),
        ("disk, h: 4.2 GiB free in /x; free", "disk, h: 4.2 GiB free in /y; free", 2),
        ("versions, h: ray 2.59, elsewhere 2.60; x", "versions, h: ray 2.58, elsewhere 2.60; x", 2),
    ],
)
def test_a_note_that_says_the_same_in_the_next_session_is_kept_once(
    begin: Begin, tmp_path: Path, first: str, again: str, kept: int
) -> None:
    run = begin()
    progress = Progress(run.context(tmp_path / "run0"))
    for notes in ([first, first], [again], [first]):
        driver._note(run.ledger, progress, notes)
    progress.close([])
    assert len(run.ledger.events(NOTED)) == kept


def test_what_a_node_reads_must_be_what_the_driver_wrote(tmp_path: Path) -> None:
    (tmp_path / "mark").write_text("this")
    assert nodes.storage(nodes.StorageMarker("mark", "this", folder=str(tmp_path))) is None
    assert "not the folder that the driver writes to" in str(
        nodes.storage(nodes.StorageMarker("mark", "that", folder=str(tmp_path)))
    )
    assert [path.name for path in tmp_path.iterdir()] == ["mark"]
    assert "not the folder" in str(nodes.storage(nodes.StorageMarker("mark", "this", folder=str(tmp_path / "none"))))


def test_a_bucket_is_written_read_and_left_as_it_was(tmp_path: Path) -> None:
    with s3_server() as bucket:
        found = looked("--into", bucket("small"), "--offline", cwd=tmp_path, code=4)
        assert of(found, "storage", OK)
        assert "ORCHESTRATOR_LEDGER=postgresql" in of(found, "ledger", BLOCKER)[0]["remedy"]
        from orchestrator.run_dir.bucket import Remote

        remote = Remote.of(bucket("small"))
        assert remote.files() == {}
        missing = bucket("small").replace("s3://bucket-", "s3://none-")
        (one,) = of(looked("--into", missing, "--offline", cwd=tmp_path, code=4), "storage", BLOCKER)
        assert "there is no bucket" in one["found"]
        assert "aws s3 mb" in one["remedy"]


def test_a_ledger_is_tried_without_a_trace(postgres: str, tmp_path: Path) -> None:
    url = new_database(postgres)
    assert abs(probe(url)) < 1.0
    engine = sa.create_engine(url.replace("postgresql:", "postgresql+psycopg:"))
    assert sa.inspect(engine).get_table_names() == []
    with engine.begin() as connection:
        connection.exec_driver_sql("CREATE ROLE reader LOGIN")
        connection.exec_driver_sql("REVOKE CREATE ON SCHEMA public FROM PUBLIC")
    engine.dispose()
    with pytest.raises(LedgerUnavailable, match="permission denied"):
        probe(url.replace("postgres:a-secret", "reader"))
    probe(f"sqlite:///{tmp_path}/ledger.db")
    assert list(tmp_path.iterdir()) == []


class Guarded(BaseHTTPRequestHandler):
    """MLflow behind a password."""

    code: ClassVar[int] = 401

    def do_GET(self) -> None:
        allowed = "Basic " + base64.b64encode(b"me:word").decode()
        fine = self.path == "/health" or self.headers.get("Authorization") == allowed
        self.send_response(200 if fine else self.code)
        self.end_headers()
        self.wfile.write(b"OK" if self.path == "/health" else b"{}")

    def log_message(self, *_: Any) -> None:
        """Nothing."""


@pytest.fixture
def guarded() -> Iterator[str]:
    server = HTTPServer(("127.0.0.1", 0), Guarded)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_an_mlflow_that_wants_a_password_says_so_before_anything_runs(
    guarded: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("USERNAME", "PASSWORD", "TOKEN"):
        monkeypatch.delenv(f"MLFLOW_TRACKING_{name}", raising=False)
    with pytest.raises(TrackingUnavailable, match=r"wants a user and a password.*MLFLOW_TRACKING_USERNAME"):
        check(f"http://{guarded}")
    check(f"http://me:word@{guarded}")
    monkeypatch.setenv("MLFLOW_TRACKING_USERNAME", "me")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "word")
    check(f"http://{guarded}")
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "wrong")
    with pytest.raises(TrackingUnavailable, match="does not take the password of me"):
        check(f"http://{guarded}")
    monkeypatch.setattr(Guarded, "code", 403)
    with pytest.raises(TrackingUnavailable, match=r"does not let me read.*EDIT"):
        check(f"http://{guarded}")


# On a cluster


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    with ray_cluster() as found:
        found.add_node(num_cpus=2)
        found.add_node(num_cpus=2, num_gpus=1)
        yield found


@pytest.mark.soak
@pytest.mark.slow
def test_every_node_of_a_cluster_is_asked_and_launch_asks_first(two_nodes: Cluster, tmp_path: Path) -> None:
    """One of the nodes was started with a GPU that is not there: nobody minds but a sweep that wants it."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    env = {"RAY_ADDRESS": str(two_nodes.address)}
    found = looked("sweep.toml", "--into", "runs/small", cwd=tmp_path, env=env)
    (cluster,) = of(found, "cluster", OK)
    assert cluster["found"] == "3 nodes, 4 CPUs, 1 GPUs"
    (clocks,) = of(found, "clock", OK)
    assert "3 nodes" in clocks["where"]
    assert "only this machine can continue" in of(found, "ledger", WARNING)[0]["found"]
    if shutil.which("nvidia-smi"):
        pytest.skip("there may be a GPU here")
    wanted = ("--set", "resources.gpus_per_rank=1", "--set", "job.execution.ranks=1")
    found = looked("sweep.toml", *wanted, cwd=tmp_path, code=4, env=env)
    (gpus,) = of(found, "gpus", BLOCKER)
    assert "Ray has 1 GPUs there, torch sees none" in gpus["found"]
    said = call("launch", "sweep.toml", *wanted, "--offline", cwd=tmp_path, code=4, env=env)
    assert "1 blocker; `orchestrator doctor` looks again" in said
    assert "torch sees none" in said
    assert not (tmp_path / "runs").exists(), "nothing is made"


@pytest.mark.slow
def test_a_node_that_runs_other_code_is_a_blocker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The node imports a copy of this package in which a comment was added, and does not find the driver's folder's
    data by the name that the driver does."""
    copy = tmp_path / "copy"
    for name in ("jobs", "orchestrator"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    with (copy / "jobs" / "train" / "budget.py").open("a") as file:
        file.write("# changed\n")
    home = tmp_path / "home"
    (home / "data").mkdir(parents=True)
    with ray_cluster() as found:
        monkeypatch.setenv("PYTHONPATH", str(copy))
        found.add_node(num_cpus=2)
        monkeypatch.delenv("PYTHONPATH")
        env = {"RAY_ADDRESS": str(found.address), "PYTHONPATH": str(ROOT)}
        told = looked("--offline", cwd=home, code=4, env=env)
        (one,) = of(told, "versions", BLOCKER)
        assert "other code" in one["found"]
        assert "same commit" in one["remedy"]


def test_what_ranks_find_is_told_as_json() -> None:
    command = [sys.executable, "-m", "jobs.workers.node_info", "--gpus", "digits", "no-such-file.parquet"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=ROOT)
    found = json.loads(done.stdout)
    assert found["versions"]["torch"].startswith("2.")
    assert list(found["missing"]) == ["no-such-file.parquet"]
    assert found["gpus"]["error"] is None
