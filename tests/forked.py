"""The command line many times over: each command a process of its own, forked from one that has imported everything."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FORKING = """
import atexit, gc, json, os, sys
import matplotlib.pyplot, mlflow, pyarrow.parquet
from orchestrator import cli, driver, export, report, tracking, verify
gc.freeze()
for line in sys.stdin:
    order = json.loads(line)
    child = os.fork()
    if child == 0:
        os.chdir(order["cwd"])
        os.environ.clear()
        os.environ.update(order["env"])
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        output = os.open(order["output"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        os.dup2(output, 1)
        os.dup2(output, 2)
        gc.disable()
        try:
            cli.main(order["arguments"])
        except SystemExit as end:  # any other error is printed, and ends it with 1
            sys.stdout.flush()
            atexit._run_exitfuncs()
            os._exit(end.code if isinstance(end.code, int) else 0)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int
    output: str
    """What it printed on either stream."""


class Forking:
    """`run(...)` is one command in a new process, without the seconds that imports take."""

    def __init__(self, process: subprocess.Popen[str], output: Path) -> None:
        self._process, self._output = process, output

    def run(self, *arguments: str) -> Done:
        """In this process's folder and environment."""
        order = {"arguments": arguments, "cwd": str(Path.cwd()), "env": dict(os.environ), "output": str(self._output)}
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order) + "\n")
        self._process.stdin.flush()
        code = int(self._process.stdout.readline())
        return Done(code, self._output.read_text("utf-8", errors="replace"))


@contextlib.contextmanager
def forking(folder: Path) -> Iterator[Forking]:
    """folder: where it keeps what commands print."""
    process = subprocess.Popen(
        [sys.executable, "-c", FORKING],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"MLFLOW_DISABLE_TELEMETRY": "true", "MPLBACKEND": "agg"},
    )
    with process:
        try:
            yield Forking(process, folder / "output.txt")
        finally:
            process.kill()
