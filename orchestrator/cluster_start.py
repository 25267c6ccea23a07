"""How a Ray cluster of the driver's own is started: its processes in groups and sessions of their own, so that what
ends or hangs up the driver's group reaches the driver, who sees to them; and none of them outlives the driver.

Ray offers no option for this. What is replaced here, while it starts, is private to the version that constraints.txt
pins, and is looked at afterwards.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any
from unittest import mock

import psutil

HEAD = ("raylet", "gcs_server")
"""Processes of a local head, without which nothing goes on."""

GUARD = """
import os, signal, sys, time
sessions = {int(line) for line in sys.stdin}
for _ in range(20):
    left = False
    for pid in [int(name) for name in os.listdir("/proc") if name.isdigit()]:
        try:
            if os.getsid(pid) in sessions:
                os.kill(pid, signal.SIGKILL)
                left = True
        except OSError:
            pass
    if not left:
        break
    time.sleep(0.05)
"""
"""Ends every process of the sessions that it was told, once whoever told it is gone. Ray's own agents need half a
minute to see that their raylet is dead, and what a rank has started may never see it."""

guards: set[int] = set()
"""Processes that are guards of this one. Whoever ends its children spares them: they act when this process is gone."""


class Guard:
    """A process that outlives this one by a moment, and ends what this one has started in sessions of their own."""

    def __init__(self) -> None:
        try:
            self._process: subprocess.Popen[str] | None = subprocess.Popen(
                [sys.executable, "-I", "-S", "-c", GUARD],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                text=True,
                start_new_session=True,
            )
            guards.add(self._process.pid)
        except OSError as error:
            sys.stderr.write(f"no guard, so parts of Ray may outlive a killed driver by half a minute: {error}\n")
            self._process = None

    def add(self, session: int) -> None:
        """Have this session ended with the driver."""
        if self._process is not None and self._process.stdin is not None:
            with contextlib.suppress(OSError):
                self._process.stdin.write(f"{session}\n")
                self._process.stdin.flush()

    def close(self) -> None:
        """End what is left of the sessions now."""
        if self._process is not None:
            try:
                self._process.communicate(timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
            guards.discard(self._process.pid)


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """While this lasts, SIGTERM stays the driver's to handle. Ray would have it end the driver, with exit code 15, in
    the seconds that it takes to start or to connect."""
    from ray._private import utils

    with mock.patch.object(utils, "set_sigterm_handler"):
        yield


@contextlib.contextmanager
def apart(guard: Guard) -> Iterator[None]:
    """While this lasts, what Ray starts gets a session of its own, is told to the guard, and does not share the
    driver's input."""
    from ray._private import services

    class Apart(services.ConsolePopen):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            stdin = subprocess.DEVNULL if kwargs.get("stdin") is None else kwargs["stdin"]
            super().__init__(*args, **(kwargs | {"stdin": stdin, "start_new_session": True}))
            guard.add(self.pid)

    with mock.patch.object(services, "ConsolePopen", Apart):
        yield


def check() -> None:
    """Say in the log if another version of Ray has started its head in the driver's own group after all."""
    shared = [
        f"{process.name()} (pid {process.pid})"
        for process in psutil.Process().children()
        if process.name() in HEAD and os.getpgid(process.pid) == os.getpgrp()
    ]
    if shared:
        sys.stderr.write(
            f"{' and '.join(shared)} share the driver's process group: a signal to the group ends the cluster first, "
            "and the driver with exit code 75\n"
        )
