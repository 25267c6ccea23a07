"""Secrets of the environment are planted and looked for, after real sweeps: in what Ray keeps and tells, in ledger,
MLflow, bucket and exports, on the terminal, and on the command lines that every user of the machine can read."""

from __future__ import annotations

import contextlib
import os
import secrets
import subprocess
import sys
import urllib.request
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa
from heads import Head, head
from real import SWEEP, Server, call, driver, wait_for
from servers import new_database, s3_server

from orchestrator.ledger.database import parsed
from orchestrator.session.cluster import start

PLANTED = {
    name: f"planted-{secrets.token_hex(8)}"
    for name in ("AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RAY_AUTH_TOKEN", "HF_TOKEN", "AZURE_STORAGE_KEY")
}
LEDGER, MLFLOW = (f"planted-{secrets.token_hex(8)}" for _ in range(2))
"""Passwords within addresses."""

FEW = SWEEP.partition("[tune]")[0] + "[confirm]\nseeds = 2\n"
"""Four trials of two ranks."""

API = ("v0/actors", "v0/jobs", "v0/tasks", "v0/workers", "v0/runtime_envs", "v0/nodes", "v0/placement_groups", "jobs/")


@dataclass
class Seen:
    """What was looked at while a sweep ran."""

    lines: set[str] = field(default_factory=set)
    """Command lines of all processes."""

    reached: set[str] = field(default_factory=set)
    """Sockets that other machines reach."""

    folders: set[Path] = field(default_factory=set)
    """Of Ray's sessions."""

    def look(self, processes: Iterable[psutil.Process]) -> None:
        for one in processes:
            with contextlib.suppress(psutil.Error, OSError):
                words = one.cmdline()
                self.lines.add(" ".join(words))
                self.folders |= {Path(word[14:]) for word in words if word.startswith("--session-dir=")}
                open_ones = [each for each in start.listeners([one]) if not start.is_loopback(each)]
                self.reached |= {f"{one.name()} {each.laddr}" for each in open_ones}


def watched(*arguments: str, cwd: Path, env: Mapping[str, str], others: tuple[int, ...] = ()) -> tuple[str, Seen]:
    """Run a command to its end. Returns what it printed, and what was seen of its processes and of `others`."""
    seen = Seen()
    with driver(*arguments, cwd=cwd, env=env) as process, (cwd / "said").open("w+") as file:
        assert process.stdout is not None
        copy = subprocess.Popen(["cat"], stdin=process.stdout, stdout=file)

        def over() -> bool:
            for pid in (process.pid, *others):
                with contextlib.suppress(psutil.Error):
                    seen.look([psutil.Process(pid), *psutil.Process(pid).children(recursive=True)])
            return process.poll() is not None

        wait_for(over, seconds=280, what="the end")
        copy.wait()
        file.seek(0)
        text = file.read()
    assert process.returncode == 0, text
    return text, seen


def holding(folder: Path, words: Iterable[str]) -> list[str]:
    """Files below a folder that hold one of the words."""
    found = []
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            content = path.read_bytes()
            found += [f"{path}: {word}" for word in words if word.encode() in content]
    return found


def quoting(texts: Iterable[str], words: Iterable[str]) -> list[str]:
    return [text for text in texts for word in words if word in text]


def test_what_finds_secrets_finds_one(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a").write_bytes(b"\0" + LEDGER.encode())
    assert holding(tmp_path, [LEDGER, MLFLOW]) == [f"{tmp_path}/in/a: {LEDGER}"]
    seen = Seen()
    with subprocess.Popen([sys.executable, "-c", "input()", LEDGER], stdin=subprocess.PIPE) as process:
        wait_for(lambda: LEDGER in " ".join(psutil.Process(process.pid).cmdline()))
        seen.look([psutil.Process(process.pid)])
        process.communicate(b"\n")
    assert quoting(seen.lines, [LEDGER])


@dataclass
class Site:
    """What a sweep needs, with a planted secret for each part."""

    home: Path
    env: dict[str, str]
    run: str
    """URI of the run."""

    bucket: str
    """URI of all runs."""

    ledger: str
    tracking: Server


@pytest.fixture
def site(tmp_path: Path, postgres: str) -> Iterator[Site]:
    """PostgreSQL, an S3 store and MLflow's server."""
    for name in ("home", "scratch", "mlflow", "tmp"):
        (tmp_path / name).mkdir()
    (tmp_path / "home" / "sweep.toml").write_text(FEW)
    tracking = Server(tmp_path / "mlflow")
    with s3_server() as bucket:
        try:
            tracking.start()
            ledger = new_database(postgres)
            env = PLANTED | {
                "AWS_ACCESS_KEY_ID": "me",
                "HOME": str(tmp_path / "home"),
                "ORCHESTRATOR_SCRATCH": str(tmp_path / "scratch"),
                "ORCHESTRATOR_LEDGER": ledger.replace("a-secret", LEDGER),
                "MLFLOW_TRACKING_URI": tracking.uri.replace("://", f"://me:{MLFLOW}@"),
                "TMPDIR": str(tmp_path / "tmp"),
                "ORCHESTRATOR_ENCODERS": "best",
            }
            assert LEDGER in env["ORCHESTRATOR_LEDGER"]
            yield Site(tmp_path, env, bucket("runs/small"), bucket("runs"), ledger, tracking)
        finally:
            tracking.kill()


def rows(url: str) -> Iterator[str]:
    """Everything that a database holds."""
    engine = sa.create_engine(parsed(url))
    with engine.connect() as connection:
        for table in sa.inspect(engine).get_table_names():
            yield from map(str, connection.execute(sa.text(f'SELECT * FROM "{table}"')).all())
    engine.dispose()


def objects(uri: str) -> Iterator[str]:
    """Names and content of all files of a bucket."""
    from pyarrow import fs

    store, prefix = fs.FileSystem.from_uri(uri)
    for each in store.get_file_info(fs.FileSelector(prefix, recursive=True)):
        if each.type == fs.FileType.File:
            with store.open_input_stream(each.path) as stream:
                yield f"{each.path}: {stream.read()!r}"


def told(where: Head) -> Iterator[str]:
    """What Ray's API tells of the cluster."""
    for page in API:
        address = f"{where.url}/api/{page}{'?detail=1&limit=10000' if page.startswith('v0') else ''}"
        ask = urllib.request.Request(address, headers={"Authorization": f"Bearer {PLANTED['RAY_AUTH_TOKEN']}"})
        with urllib.request.urlopen(ask, timeout=60) as answer:
            yield answer.read().decode()


STORED = """
from orchestrator.session import cluster
with cluster.session(cpus=0):
    from ray.experimental import internal_kv as kv
    for space in (None, b"fun", b"job", b"session", b"cluster", b"dashboard", b"package", b"tracing", b"usage_stats"):
        for key in kv._internal_kv_list(b"", namespace=space):
            print(key, kv._internal_kv_get(key, namespace=space))
"""


@pytest.mark.soak
@pytest.mark.slow
def test_planted_secrets_are_found_nowhere_after_a_sweep_on_a_cluster(site: Site) -> None:
    """Trials write to the bucket with what their nodes have. Mutant check: Tune's own ENV_VARS_TO_PROPAGATE, by which
    the keys of the bucket are in runtime_env_agent.log and told by the API."""
    words = [*PLANTED.values(), LEDGER, MLFLOW]
    with head(site.home, site.env, cpus=2) as where:
        env = site.env | {"RAY_ADDRESS": where.address}
        arguments = ("launch", "sweep.toml", "--into", site.run)
        pids = (where.process.pid, site.tracking.process.pid if site.tracking.process else 0)
        said, seen = watched(*arguments, cwd=site.home / "home", env=env, others=pids)
        assert "[4/4]" in said
        said += call("export", site.run, "flatnce", "exported", cwd=site.home / "home", env=env)
        said += call("verify", site.run, "--json", cwd=site.home / "home", env=env)
        said += call("ui", site.run, cwd=site.home / "home", env=env)
        answers = list(told(where))
        assert any("TrialActor" in text or "ResourceTrainable" in text for text in answers), "it tells of our actors"
        kept = subprocess.run(
            [sys.executable, "-c", STORED],
            env=os.environ | env,
            capture_output=True,
            text=True,
            check=True,
            timeout=120,
        ).stdout
        assert "TrialActor" in kept
        assert (where.folder / "session_latest" / "logs" / "runtime_env_agent.log").stat().st_size
        found = holding(where.folder, words)
    assert quoting([said, *answers, kept], words) == []
    assert found == []
    assert len(seen.lines) > 20
    assert quoting(seen.lines, words) == []
    stored = list(rows(site.ledger))
    assert any("flatnce" in row for row in stored)
    assert quoting(stored, words) == []
    files = list(objects(site.bucket))
    assert any("driver.log" in one for one in files)
    assert quoting(files, words) == []
    assert holding(site.home, words) == [], "working copies, exports, MLflow's store and artifacts, temporary files"


@pytest.mark.slow
def test_a_sweep_on_this_machine_listens_on_loopback_alone_and_keeps_its_secrets(site: Site) -> None:
    """All processes of the session, ranks of two among them. Mutant checks: `_node_ip_address="127.0.0.1"` in place of
    Ray's setting; a store for the ranks that listens on every interface; gloo on the interface of the host's name."""
    words = [*PLANTED.values(), LEDGER, MLFLOW]
    env = site.env | {"TMPDIR": "/tmp", "RAY_ADDRESS": ""}
    arguments = ("launch", "sweep.toml", "--into", site.run, "--offline")
    said, seen = watched(*arguments, cwd=site.home / "home", env=env)
    assert "[4/4]" in said
    assert any("raylet" in line for line in seen.lines)
    assert any("ray::Rank" in line for line in seen.lines)
    assert seen.reached == set()
    assert quoting([said, *seen.lines], words) == []
    (folder,) = seen.folders
    assert holding(folder, words) == []
    assert holding(site.home, words) == []
    assert not (site.home / "home" / ".ray" / "auth_token").exists()
