"""How a Ray cluster of the driver's own is started: its processes in groups and sessions of their own, so that what
ends or hangs up the driver's group reaches the driver, who sees to them; none of them outlives the driver; and nobody
else reaches them: they listen on loopback, behind a token that no file holds.

Ray offers no option for this. What is replaced here, while it starts, is private to the version that constraints.txt
pins, and is looked at afterwards.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from types import ModuleType
from typing import Any, Protocol
from unittest import mock

import psutil

from orchestrator.session.cluster import access
from orchestrator.system import threads

LOOPBACK = {"RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0", "RAY_enable_metrics_collection": "0"}
"""What has a cluster listen on the loopback interface alone: Ray's own setting for laptops, and no metrics, whose port
would listen on all interfaces and ask for no token."""

HEAD = ("raylet", "gcs_server")
"""Processes of a local head, without which nothing goes on."""

BESIDE = ("start_monitor", "start_api_server", "start_log_monitor")
"""What Ray starts beside a head: an autoscaler, the rest of a dashboard that is off, and what would print the output of
workers, which have files of their own. Each is a Python process, a second of processor time and some 80 MB."""

CONFIG = {"prestart_worker_first_driver": False}
"""Settings of Ray, private to its version, for a cluster of the driver's own. Without this it starts a process for each
processor, at once and before anything else is ready, of which a sweep uses few."""

START_S = 120.0
"""How long Ray may take to start or to connect, in all. It takes seconds, and a minute where everything is busy."""

LAST_WORDS_S = 5.0
"""How long it may still take once nothing can come of it: it may know why."""

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
"""Ends every process of the sessions named on its input, once that input ends. Ray's own agents need half a
minute to see that their raylet is dead, and what a rank has started may never see it."""

guards: set[int] = set()
"""Processes that are guards of this one. Whoever ends its children spares them: they act when this process is gone."""


class Address(Protocol):
    """The end of a connection, as psutil tells it."""

    ip: str
    port: int


class Socket(Protocol):
    """A socket, as psutil tells it."""

    laddr: Address


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

    def join(self) -> None:
        """Have the calling process's session ended with the driver. The process is a fork of the driver and calls this
        before it becomes another program: the driver may be killed before it could do so."""
        if self._process is not None and self._process.stdin is not None:
            signal.signal(signal.SIGPIPE, signal.SIG_IGN)  # somebody may have killed the guard
            with contextlib.suppress(OSError, ValueError):  # or this start was given up, and closed it
                os.write(self._process.stdin.fileno(), f"{os.getsid(0)}\n".encode())
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)

    def close(self) -> None:
        """End what is left of the sessions now."""
        if self._process is not None:
            try:
                self._process.communicate(timeout=5)
            except (OSError, subprocess.TimeoutExpired):
                self._process.kill()
                self._process.wait()
            guards.discard(self._process.pid)


class Start:
    """One start of Ray. Where a head stands still Ray waits for a quarter of an hour, or for ever, and within calls
    that nothing interrupts: so it waits in a thread, and is left there when its time is over."""

    left: threading.Thread | None = None
    """One that has not come back, in any start of this process. Ray cannot be used in this process any more."""

    def __init__(self, work: Callable[[], object]) -> None:
        self._work = work
        self._ended, self._let_go = threading.Event(), threading.Event()
        self._error: BaseException | None = None
        self._thread: threading.Thread | None = None
        self._before: set[psutil.Process] = set()
        self._head: set[psutil.Process] = set()

    def run(self) -> None:
        """Start Ray. Raises what Ray raises; TimeoutError; RuntimeError where a process of its head has died."""
        if Start.left is not None:
            raise TimeoutError("an earlier start in this process has timed out")
        self._before = set(psutil.Process().children())
        self._thread = threads.start(self._begin, name="ray-start", died=self._failed)
        deadline, died = time.monotonic() + START_S, ""
        while not self._ended.wait(0.3):
            if not died and (died := self._dead()):
                deadline = time.monotonic() + LAST_WORDS_S
            if time.monotonic() > deadline:
                raise RuntimeError(f"{died} while it started") if died else TimeoutError(f"timed out: {START_S:g} s")
        if self._error is not None:
            raise threads.raisable(self._error)

    def has_ended(self) -> bool:
        """Return whether the thread comes back, now that its head is gone. If so, Ray may be shut down."""
        if self._thread is not None and not self._ended.wait(LAST_WORDS_S):
            Start.left = self._thread
        return Start.left is None

    def let_go(self) -> None:
        """Let the thread end, after Ray is shut down. Linux ends Ray's processes with the thread that began them."""
        self._let_go.set()

    def _begin(self) -> None:
        self._work()
        self._ended.set()
        self._let_go.wait()

    def _failed(self, error: BaseException) -> None:
        self._error = error
        self._ended.set()

    def _dead(self) -> str:
        """Name a process of the driver's own head that has died; empty if none has."""
        self._head |= {child for child in psutil.Process().children() if named(child) in HEAD} - self._before
        return next(
            (f"{named(child) or 'its head'} (pid {child.pid}) died" for child in self._head if not lives(child)), ""
        )


@contextlib.contextmanager
def signals_kept() -> Iterator[None]:
    """Keep SIGTERM the driver's to handle, while this lasts. Ray would have it end the driver, with exit code 15, in
    the seconds that it takes to start or to connect."""
    from ray._private import utils

    with mock.patch.object(utils, "set_sigterm_handler"):
        yield


@contextlib.contextmanager
def apart(guard: Guard) -> Iterator[None]:
    """Give what Ray starts, while this lasts, a session of its own that the guard knows, and not the driver's input."""
    from ray._private import services

    driver = os.getpid()

    def prepared(prepare: Callable[[], object] | None) -> Callable[[], None]:
        """Return what the child does before it becomes another program: Ray's own preparation, and what Ray leaves
        out."""

        def prepare_child() -> None:
            guard.join()
            if prepare is not None:
                prepare()
            if os.getppid() != driver:  # it was killed before Ray asked Linux to end this with it
                os._exit(1)

        return prepare_child

    class Apart(services.ConsolePopen):  # type: ignore[misc, unused-ignore]
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            stdin = subprocess.DEVNULL if kwargs.get("stdin") is None else kwargs["stdin"]
            own = {"stdin": stdin, "start_new_session": True, "preexec_fn": prepared(kwargs.get("preexec_fn"))}
            super().__init__(*args, **(kwargs | own))

    with mock.patch.object(services, "ConsolePopen", Apart):
        yield


@contextlib.contextmanager
def on_loopback() -> Iterator[None]:
    """Give what Ray starts, while this lasts, the loopback address. `_node_ip_address` would not do: Ray puts in its
    place an address that others reach."""
    from ray._private import ray_constants

    before = {name: os.environ.get(name) for name in LOOPBACK}
    os.environ |= LOOPBACK
    try:
        with mock.patch.object(ray_constants, "ENABLE_RAY_CLUSTER", False):  # read from LOOPBACK at import
            yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


@contextlib.contextmanager
def lean() -> Iterator[None]:
    """Have Ray start, while this lasts, a head without what a sweep on a cluster of its own does not need (BESIDE)."""
    from ray._private.node import Node

    with contextlib.ExitStack() as stack:
        for name in BESIDE:
            stack.enter_context(mock.patch.object(Node, name, return_value=None))
        yield


@contextlib.contextmanager
def token(word: str | None) -> Iterator[None]:
    """Have Ray use this token and no other while the context lasts; None: it sends none. Ray would look in the home
    folder, and keep there what it makes up, for others to read."""

    def read_again() -> None:
        from ray import _raylet

        loaded: ModuleType = _raylet  # the compiled part
        loaded.Config.initialize("")
        loaded.AuthenticationTokenLoader.instance().reset_cache()

    try:
        with access.environment(word):
            read_again()
            yield
    finally:
        read_again()


def check() -> None:
    """Say in the log if another version of Ray has started its head in the driver's own group after all, or listens
    where others reach it."""
    family = psutil.Process().children(recursive=True)
    if reached := sorted(
        {f"{socket.laddr.ip}:{socket.laddr.port}" for socket in listeners(family) if not is_loopback(socket)}
    ):
        sys.stderr.write(f"Ray listens where other machines reach it, behind its token: {' '.join(reached)}\n")
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


def listeners(processes: Iterable[psutil.Process]) -> list[Socket]:
    """List the sockets of these processes that wait for TCP connections, as psutil reports them."""
    sockets: list[Socket] = []
    for process in processes:
        with contextlib.suppress(psutil.Error, OSError):
            sockets += [
                connection for connection in process.net_connections("tcp") if connection.status == psutil.CONN_LISTEN
            ]
    return sockets


def is_loopback(listener: Socket) -> bool:
    """Return whether only this machine reaches a socket."""
    return ipaddress.ip_address(listener.laddr.ip.removeprefix("::ffff:").partition("%")[0]).is_loopback


def named(process: psutil.Process) -> str:
    """Return the name of a process; empty if it is gone."""
    try:
        return str(process.name())
    except psutil.Error:
        return ""


def lives(process: psutil.Process) -> bool:
    """Return whether a process is there and is more than its exit code."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
