"""The command line many times over: each command a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

FORKING = """
import atexit, gc, json, os, sys, tempfile
import matplotlib.pyplot, mlflow, pyarrow.parquet
from orchestrator import cli, driver, executor, export, report, tracking, verify
gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        tempfile.tempdir = None
        sys.argv = [cli.__file__, *order["arguments"]]
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        errors = os.open(order["errors"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC) if order["errors"] else output
        os.dup2(output, 1)
        os.dup2(errors, 2)
        gc.disable()
        try:
            cli.main(order["arguments"])
        except SystemExit as end:  # any other error is printed, and ends it with 1
            sys.stdout.flush()
            atexit._run_exitfuncs()
            os._exit(end.code if isinstance(end.code, int) else 0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""

LIMIT_S = 280.0


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    output: str
    """What it printed on standard output, or on either stream where they are not kept apart."""

    errors: str = ""


class Forking:
    """`run(...)` is one command in a new process, without the seconds that imports take."""

    def __init__(self, process: subprocess.Popen[bytes], folder: Path) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        self._orders, self._answers = process.stdin, process.stdout
        self._output, self._errors = folder / "output.txt", folder / "errors.txt"

    def run(self, *arguments: str) -> Done:
        """In this process's folder and environment."""
        return self._done(arguments, Path.cwd(), os.environ, apart=False)

    def call(self, *arguments: str, cwd: Path, env: Mapping[str, str]) -> Done:
        """With the streams apart. Raises TimeoutError, and the process is killed."""
        return self._done(arguments, cwd, env, apart=True)

    def _done(self, arguments: tuple[str, ...], cwd: Path, env: Mapping[str, str], *, apart: bool) -> Done:
        order = {"arguments": arguments, "cwd": str(cwd), "env": dict(env)}
        order |= {"output": str(self._output), "errors": str(self._errors) if apart else ""}
        self._orders.write(json.dumps(order).encode() + b"\n")
        child = int(self._answers.readline())  # and no byte more, as nothing is buffered
        late = not select.select([self._answers], [], [], LIMIT_S)[0]
        if late:
            os.kill(child, signal.SIGKILL)
        code = int(self._answers.readline())
        output, errors = (
            path.read_text("utf-8", errors="replace") if path.exists() else "" for path in (self._output, self._errors)
        )
        if late:
            raise TimeoutError(f"{arguments} took more than {LIMIT_S:.0f} s\n{output}\n{errors}")
        return Done(code, output, errors if apart else "")


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[Forking]:
    """folder: where it keeps what commands print."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MPLBACKEND": "agg"},
    )
    with process:
        try:
            yield Forking(process, folder)
        finally:
            process.kill()
