"""Real sweeps for tests: the command line in processes of its own, their ranks, and how they are killed."""

from __future__ import annotations

import atexit
import contextlib
import json
import os
import random
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import psutil
import pyarrow.parquet as pq
from forked import Forking, forking

from orchestrator.ledger import Ledger, LedgerMissing, sqlite_url
from orchestrator.run_dir.folder import RunFolder
from orchestrator.tracking import UI_ENVIRONMENT, TrackingUnavailable, check, embedded_uri, ui_command

if TYPE_CHECKING:
    from ray.cluster_utils import Cluster

SWEEP = """
name = "small"
question = "Does FlatNCE beat InfoNCE?"
metric = { name = "knn_accuracy", smallest_difference = 0.01 }
[job]
task = "image"
budget = { steps = 8 }
[job.data]
train = "digits[:300]"
tune = "digits[300:400]"
confirm = "digits[400:500]"
[job.model]
name = "resnet"
width = 8
layers = 1
[job.batch]
size = 16
[job.evaluate]
times = 2
probe = false
references = 300
[job.execution]
ranks = 2
checkpoint_every = 3
[compare]
"loss.name" = ["infonce", "flatnce"]
[tune]
trials = 2
defaults = [{ "optimizer.lr" = 1e-3 }]
[tune.space]
"optimizer.lr" = { low = 1e-4, high = 1e-2, log = true }
[confirm]
seeds = 3
"""
"""Ten trials of a fraction of a second."""

LONG = SWEEP.replace("steps = 8", "steps = 3000").replace("checkpoint_every = 3", "checkpoint_every = 20")
"""The same with trials that last, to be disturbed."""

TRIALS = 2 * 2 + 2 * 3

LEFT_FOR_A_KILL = 2
"""Trials that must be left to wait with a kill, beside one for each later kill: two may end at once."""

LIMIT_S = 280.0

HELPERS = os.pathsep.join(str(folder) for folder in sorted(Path(__file__).parents[1].iterdir()) if folder.is_dir())
"""Where modules such as this one lie, as $PYTHONPATH has it."""

QUICK = {"ORCHESTRATOR_ENCODERS": "none"}
"""What a launch does without unless a test asks for it: to export an encoder takes longer than these sweeps."""

RANK, SLOT = ("ray::Rank",), ("ray::TrialActor", "ray::ResourceTrainable")
"""How the processes of ranks, and of the actors that drive them, name themselves."""


def command(*arguments: str) -> list[str]:
    """The command line of this checkout."""
    return [sys.executable, "-m", "orchestrator.cli", *arguments]


def call(
    *arguments: str,
    cwd: Path,
    code: int = 0,
    env: Mapping[str, str] | None = None,
    stdout: bool | None = None,
    imports: bool = False,
) -> str:
    """Run it to its end. Returns what it printed: standard output for code 0, else standard error, or as `stdout`
    says. imports: with the seconds that these take, where time is measured."""
    whole = QUICK | os.environ | dict(env or {})
    if imports or _differs(whole) or not _one_by_one.acquire(blocking=False):
        done = subprocess.run(
            command(*arguments), cwd=cwd, capture_output=True, text=True, check=False, timeout=LIMIT_S, env=whole
        )
        ended_with, output, errors = done.returncode, done.stdout, done.stderr
    else:
        try:
            forked = _forking().call(*arguments, cwd=cwd, env=whole)
        except BaseException:  # its answers may be those to this command from now on
            _forking.cache_clear()
            raise
        finally:
            _one_by_one.release()
        ended_with, output, errors = forked.code, forked.output, forked.errors
    assert ended_with == code, f"exit code {ended_with}\n{output}\n{errors}"
    return output if (code == 0 if stdout is None else stdout) else errors


_one_by_one = threading.Lock()
"""Around what `_forking` does, which is one thing at a time."""


@cache
def _forking() -> Forking:
    """What commands of this process are forked from."""
    stack = contextlib.ExitStack()
    atexit.register(stack.close)
    folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="forking-"))
    return stack.enter_context(forking(Path(folder)))


AT_ANY_TIME = ("ORCHESTRATOR_", "PYTEST_", "MLFLOW_TRACKING_URI", "HOME", "COLUMNS", "PWD", "RAY_ADDRESS")
"""Variables that are read when they are needed. Of others some are read with an import, which is over."""

_environment = dict(os.environ)


def _differs(env: Mapping[str, str]) -> bool:
    """Whether an environment is another one than that in which everything was imported."""
    names = (name for name in env.keys() | _environment.keys() if env.get(name) != _environment.get(name))
    return any(not name.startswith(AT_ANY_TIME) for name in names)


def status(cwd: Path, run: str = "small", env: Mapping[str, str] | None = None) -> dict[str, Any]:
    """What `status --json` says."""
    found: dict[str, Any] = json.loads(call("status", run, "--json", cwd=cwd, env=env))
    return found


def has_ended_one(run: Path) -> bool:
    """Whether a run is there, and one of its trials is done."""
    if not (run / "sweep.json").exists():
        return False
    with contextlib.closing(Ledger.open(sqlite_url(run / "ledger.db"))) as ledger:
        return any(trial.state == "done" for trial in ledger.trials())


def measured(home: Path, run: str = "small") -> dict[str, float]:
    """The metric of every trial in the run's results.parquet."""
    with (home / "runs" / run / "report" / "results.parquet").open("rb") as file:
        rows = pq.read_table(file).to_pylist()
    return {row["trial"]: row["metric"] for row in rows}


def ended(folder: RunFolder) -> int:
    """How many trials are done."""
    if not folder.exists:
        return 0
    with contextlib.closing(folder.open()) as ledger:
        return ledger.counts()["done"]


@contextlib.contextmanager
def driver(*arguments: str, cwd: Path, env: Mapping[str, str] | None = None) -> Iterator[subprocess.Popen[str]]:
    """The command line as a process in a session of its own; whatever is left of it in the end is killed. It is forked
    from one that has imported everything, unless its environment has what imports read."""
    whole = QUICK | os.environ | dict(env or {})
    process: subprocess.Popen[str]
    if _differs(whole):
        process = subprocess.Popen(
            command(*arguments),
            cwd=cwd,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
            env=whole,
        )
    else:
        process = _forking().start(*arguments, cwd=cwd, env=whole)
    try:
        yield process
    finally:
        kill(process)


def kill_at_random(
    home: Path,
    *,
    kills: int,
    moments: random.Random,
    between_s: tuple[float, float],
    trials: int = TRIALS,
    env: Mapping[str, str] | None = None,
    arguments: tuple[str, ...] = (),
) -> list[float]:
    """Launch, kill -9 after a random time, and so on; at once where hardly more of the `trials` are left than kills, so
    that a quick machine has as many kills as a slow one. Returns the times; fewer when the sweep has ended before."""
    times: list[float] = []
    url = (env or {}).get("ORCHESTRATOR_LEDGER") or sqlite_url(home / "runs" / "small" / "ledger.db")
    for later in reversed(range(kills)):
        began, delay = time.monotonic(), moments.uniform(*between_s)
        with driver("launch", "sweep.toml", *arguments, cwd=home, env=env) as process:
            while (
                process.poll() is None
                and time.monotonic() < began + delay
                and trials - _ended_in(url) > later + LEFT_FOR_A_KILL
            ):
                time.sleep(0.1)
            if process.poll() is not None:
                break
        times.append(time.monotonic() - began)
        print(f"kill {kills - later} after {times[-1]:.1f} s")
    return times


def _ended_in(url: str) -> int:
    """How many trials are done or pruned in the ledger of a run that may not be begun."""
    try:
        with contextlib.closing(Ledger.open(url)) as ledger:
            counts = ledger.counts()
    except LedgerMissing:
        return 0
    return counts["done"] + counts["pruned"]


def recovered(row: str, seconds: float) -> None:
    """Print how long it took: `pytest tests/faults -s | grep ^row` gathers the table of infra/FAULTS.md."""
    print(f"\nrow {row}: {seconds:.1f} s")


def proven(home: Path, *, trials: int = TRIALS, env: Mapping[str, str] | None = None) -> None:
    """`verify` finds nothing, and no finished trial was trained again."""
    found = json.loads(call("verify", "small", "--json", cwd=home, env=env))
    assert found["ok"], found["faults"]
    assert found["trials"] == found["mlflow_runs"] == trials
    stood = json.loads(call("status", "small", "--json", cwd=home, env=env))
    assert stood["counts"]["done"] + stood["counts"]["pruned"] == trials


def kill(process: subprocess.Popen[Any]) -> None:
    """kill -9, and then the agents of its Ray session, which outlive their raylet."""
    family = children(process) if process.poll() is None else []
    process.kill()
    process.wait()
    if process.stdout is not None:
        process.stdout.close()
    end(family)


def end(family: list[psutil.Process]) -> None:
    """Wait until processes have ended, and end those that do not."""
    _, left = psutil.wait_procs(family, timeout=5)
    for one in left:
        with contextlib.suppress(psutil.NoSuchProcess):
            one.kill()


def children(process: subprocess.Popen[Any]) -> list[psutil.Process]:
    """Every process below this one."""
    return list(psutil.Process(process.pid).children(recursive=True))


def named(names: tuple[str, ...], parent: int | None = None) -> list[psutil.Process]:
    """Processes below `parent` (this one) whose title begins with one of `names`, oldest first."""
    found = []
    for process in psutil.Process(parent).children(recursive=True):
        with contextlib.suppress(psutil.NoSuchProcess):
            if "".join(process.cmdline()[:1]).startswith(names) or process.name() in names:
                found.append(process)
    return sorted(found, key=lambda one: float(one.create_time()))


def wait_for(condition: Callable[[], Any], *, seconds: float = 120, what: str = "it") -> Any:
    """The first true value of `condition`. Fails when that takes too long. Most of the time is left to those who are
    waited for: a look that takes long is taken seldom."""
    deadline = time.monotonic() + seconds
    while True:
        began = time.monotonic()
        if found := condition():
            return found
        now = time.monotonic()
        assert now < deadline, f"{what} did not happen within {seconds:g} s"
        time.sleep(min(max(0.02, 4 * (now - began)), 1.0))


@contextlib.contextmanager
def ray_cluster(*, notices_soon: bool = True) -> Iterator[Cluster]:
    """A Ray cluster on this machine: a head without CPUs, to which nodes can be added, and without an autoscaler. It
    notices a lost node within three seconds, or as late as Ray does by itself."""
    from ray.cluster_utils import Cluster

    from orchestrator.session.cluster.start import CONFIG, lean

    soon = {"health_check_period_ms": 1000, "health_check_failure_threshold": 3, "health_check_initial_delay_ms": 0}
    config = CONFIG | (soon if notices_soon else {})
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    with lean():
        cluster = Cluster(
            initialize_head=True,
            connect=False,
            head_node_args={"num_cpus": 0, "include_dashboard": False, "_system_config": config},
        )
    try:
        yield cluster
    finally:
        with contextlib.suppress(Exception):
            cluster.shutdown()
        end([process for process in psutil.Process().children(recursive=True) if process.pid not in before])


def hosts() -> list[psutil.Process]:
    """Raylets of this test under which ranks live."""
    return [raylet for raylet in named(("raylet",)) if named(RANK, raylet.pid)]


class Server:
    """A real MLflow server on 127.0.0.1, which can be killed and started again on its port and store."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, embedded_uri(folder)
        self.port = free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.log = folder / "server.log"
        self.process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                ui_command(self.store, port=self.port),
                cwd=self.log.parent,
                env={**os.environ, **UI_ENVIRONMENT},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )
        deadline = time.monotonic() + 90
        while True:
            try:
                check(self.uri, 1)
            except TrackingUnavailable:
                assert self.process.poll() is None, self.log.read_text()
                assert time.monotonic() < deadline, self.log.read_text()
                time.sleep(0.1)
            else:
                return

    def kill(self) -> None:
        """The server and the workers that it started, no other."""
        if self.process is not None:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()
            self.process = None


def free_port() -> int:
    """A port of 127.0.0.1 that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def crowding() -> float:
    """How many processes want each processor, at least one: by this much a deadline in wall time is stretched."""
    return max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1))


def killed_and_whole(folder: Path, write: Callable[[Path], Path]) -> list[dict[str, Any]]:
    """The answers of a sweep whose driver was killed after the first trial and which was resumed, and of the same one
    undisturbed. write: puts the sweep, and what it needs, into a folder, and returns its file, which has its name."""
    for name in ("whole", "killed"):
        (folder / name).mkdir()
        sweep = write(folder / name)
    run = f"runs/{sweep.stem}"
    call("launch", sweep.name, "--offline", cwd=folder / "whole")
    with driver("launch", sweep.name, cwd=folder / "killed") as process:
        wait_for(partial(has_ended_one, folder / "killed" / run), what="the first trial")
        kill(process)
    call("resume", run, cwd=folder / "killed")
    assert "verify: ok" in call("verify", run, cwd=folder / "killed")
    return [json.loads(call("compare", run, "--json", cwd=folder / name)) for name in ("killed", "whole")]


def numbers(answer: dict[str, Any]) -> list[list[float]]:
    """The metric of every confirm trial, arm by arm."""
    return [[row["value"] for row in arm["values"]] for arm in answer["arms"]]
