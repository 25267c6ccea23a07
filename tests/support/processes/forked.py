"""The command line many times over: each command a process of its own, forked from one that has imported everything.

Such a process is a child of this one, as one begun by `subprocess` is: it may be signalled, killed and waited for.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO

FORKING = """
import atexit, gc, json, os, socket, sys, tempfile
before = dict(os.environ)
import matplotlib.pyplot, mlflow, pyarrow.parquet
from mlflow.store.model_registry import sqlalchemy_store
from mlflow.store.tracking import sqlalchemy_store
from orchestrator import driver, report, tracking, verify
from orchestrator.cli import __main__ as cli
from orchestrator.run_dir import export
from orchestrator.session import tune_executor
from orchestrator.tracking import publish
gc.collect()
gc.freeze()
imported = {name: value for name, value in os.environ.items() if before.get(name) != value}  # as the imports set them

def command(order, output, errors):
    if order["session"]:
        os.setsid()
    os.chdir(order["cwd"])
    os.environ.clear()
    os.environ.update(order["env"] | imported)
    tempfile.tempdir = None
    sys.argv = [cli.__file__, *order["arguments"]]
    for number, stream in enumerate((os.open(os.devnull, os.O_RDONLY), output, errors)):
        os.dup2(stream, number)
    os.closerange(3, 200)
    try:
        cli.main(order["arguments"])
    except SystemExit as end:  # any other error is printed, and ends it with 1
        sys.stdout.flush()
        atexit._run_exitfuncs()
        os._exit(end.code if isinstance(end.code, int) else 0)

with socket.socket(fileno=int(sys.argv[1])) as orders:
    while True:
        text, streams, _, _ = socket.recv_fds(orders, 2**20, 2)
        if not text:
            os._exit(0)
        first = os.fork()
        if first == 0:
            child = os.fork()
            if child == 0:
                break
            orders.send(str(child).encode())
            os._exit(0)  # whereupon the child belongs to whoever gave the order
        os.waitpid(first, 0)
        for stream in streams:
            os.close(stream)
command(json.loads(text), *streams)
"""

LIMIT_S = 280.0

PR_SET_CHILD_SUBREAPER = 36


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    output: str
    """What it printed on standard output, or on either stream where they are not kept apart."""

    errors: str = ""


class Process(subprocess.Popen[str]):
    """A child of this process that somebody else has forked."""

    def __init__(self, pid: int, arguments: tuple[str, ...], output: IO[str] | None) -> None:
        self.args, self.pid, self.returncode = list(arguments), pid, None
        self.stdin, self.stdout, self.stderr = None, output, None
        self.encoding, self.errors, self.text_mode, self.pipesize = "utf-8", "replace", True, -1
        self._child_created, self._communication_started, self._input = True, False, None
        self._waitpid_lock, self._sigint_wait_secs = threading.Lock(), 0.25


class Forking:
    """`run(...)` is one command in a new process, without the seconds that imports take."""

    def __init__(self, orders: socket.socket, folder: Path) -> None:
        self._orders, self._lock = orders, threading.Lock()
        self._output, self._errors = folder / "output.txt", folder / "errors.txt"

    def run(self, *arguments: str) -> Done:
        """In this process's folder and environment."""
        return self._done(arguments, Path.cwd(), os.environ, apart=False)

    def call(self, *arguments: str, cwd: Path, env: Mapping[str, str]) -> Done:
        """With the streams apart. Raises TimeoutError, and the process is killed."""
        return self._done(arguments, cwd, env, apart=True)

    def start(self, *arguments: str, cwd: Path, env: Mapping[str, str]) -> Process:
        """In a session of its own; both of its streams are `stdout`."""
        reading, writing = os.pipe()
        try:
            pid = self._order(arguments, cwd, env, (writing, writing), session=True)
        except BaseException:
            os.close(reading)
            raise
        finally:
            os.close(writing)
        return Process(pid, arguments, os.fdopen(reading, encoding="utf-8", errors="replace"))

    def _done(self, arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str], *, apart: bool) -> Done:
        with contextlib.ExitStack() as stack:
            output = stack.enter_context(self._output.open("w+", encoding="utf-8", errors="replace"))
            errors = (
                stack.enter_context(self._errors.open("w+", encoding="utf-8", errors="replace")) if apart else output
            )
            pid = self._order(arguments, cwd, env, (output.fileno(), errors.fileno()), session=False)
            process = Process(pid, arguments, None)
            try:
                code = process.wait(LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                raise TimeoutError(f"{arguments} took more than {LIMIT_S:.0f} s\n{self._read()}") from None
        return Done(code, self._output.read_text("utf-8", "replace"), self._read() if apart else "")

    def _read(self) -> str:
        return self._errors.read_text("utf-8", "replace") if self._errors.exists() else ""

    def _order(
        self, arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str], streams: tuple[int, int], *, session: bool
    ) -> int:
        order = {"arguments": arguments, "cwd": str(cwd), "env": dict(env), "session": session}
        with self._lock, _adopting():
            socket.send_fds(self._orders, [json.dumps(order).encode()], streams)
            answer = self._orders.recv(100)
            assert answer, "what commands are forked from has ended"
            pid = int(answer)
            _wait_until_mine(pid)
        return pid


@contextlib.contextmanager
def _adopting() -> Iterator[None]:
    """Processes below this one whose parent ends are this one's, for a moment."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    try:
        yield
    finally:
        libc.prctl(PR_SET_CHILD_SUBREAPER, 0, 0, 0, 0)


def _wait_until_mine(pid: int) -> None:
    while int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[1]) != os.getpid():
        pass


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[Forking]:
    """folder: where it keeps what commands print."""
    mine, its = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with mine:
        with its:
            process = subprocess.Popen(
                [sys.executable, "-c", FORKING, str(its.fileno())],
                stdin=subprocess.DEVNULL,
                pass_fds=[its.fileno()],
                env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MPLBACKEND": "agg"},
            )
        with process:
            try:
                yield Forking(mine, folder)
            finally:
                process.kill()
