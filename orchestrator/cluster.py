"""The Ray cluster a session runs on: one of its own on this machine, or the one that $RAY_ADDRESS names.

Also the watch over it: when its head is gone Ray may wait for minutes without a word, so a thread looks for itself.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import psutil

LOOK_S = 1.0
"""How often the head is looked at."""

SILENT_S = 20.0
"""How long the head may leave a question unanswered. Ray's own limit, after which the process is ended from within, is
a minute."""

HEAD = ("raylet", "gcs_server")
"""Processes of a local head, without which nothing goes on."""


@dataclass(frozen=True)
class Node:
    """What one node offers."""

    cpus: float
    gpus: float


def address() -> str | None:
    """The cluster to use, or None for one of our own."""
    return os.environ.get("RAY_ADDRESS") or None


@contextlib.contextmanager
def session(*, cpus: int, gpus: int | None = None) -> Iterator[None]:
    """Be connected to $RAY_ADDRESS, or to a cluster of this process's own with `cpus`, as long as the context lasts.

    Raises ConnectionError when the address does not answer.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    import ray

    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    start = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    if address() is None:
        start(address="local", num_cpus=cpus, num_gpus=gpus, include_dashboard=False)
    else:
        start(address=address())
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():  # Ray's would end this process at once
            signal.signal(number, handler)
    try:
        yield
    finally:
        ray.shutdown()


def nodes() -> list[Node]:
    """What there is to run on: this machine, or the living nodes of the cluster at $RAY_ADDRESS.

    Raises ConnectionError when that does not answer.
    """
    if address() is None:
        return [here()]
    import ray

    with session(cpus=0):
        alive = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    return [Node(found.get("CPU", 0.0), found.get("GPU", 0.0)) for found in alive]


def here() -> Node:
    """What this machine offers."""
    return Node(os.cpu_count() or 1, _gpus())


def fits(available: Sequence[Node], *, ranks: int, cpus: float, gpus: float) -> bool:
    """Whether `ranks` bundles of `cpus` and `gpus` find a place."""
    return slots(available, ranks=1, cpus=cpus, gpus=gpus) >= ranks


def slots(available: Sequence[Node], *, ranks: int, cpus: float, gpus: float) -> int:
    """How many gangs of `ranks` the cluster holds at once."""
    wanted = [(name, amount) for name, amount in (("cpus", cpus), ("gpus", gpus)) if amount]
    places = sum(min(int(getattr(node, name) / amount + 1e-9) for name, amount in wanted) for node in available)
    return places // ranks


@contextlib.contextmanager
def watched(dead: Callable[[str], None]) -> Iterator[None]:
    """Call `dead`, from a thread, with what happened when the head of the connected cluster is gone.

    Ray must be initialised. `dead` is not expected to return: what waits for Ray waits for ever.
    """
    import ray

    over = threading.Event()
    own = [p for p in psutil.Process().children() if p.name() in HEAD] if address() is None else []
    home = ray.get_runtime_context().get_node_id()
    answered = [time.monotonic()]
    lost: list[str] = []

    def ask() -> None:
        while not over.is_set():
            if any(node["NodeID"] == home and not node["Alive"] for node in ray.nodes()):
                lost.append("the raylet of the driver's node died")
            answered[0] = time.monotonic()
            over.wait(LOOK_S)

    def look() -> None:
        before = time.monotonic()
        while not over.wait(LOOK_S):
            now = time.monotonic()
            if now - before > SILENT_S / 2:  # this process was stopped, or its machine slept, and the head may have too
                answered[0] = now
            before = now
            lost.extend(f"{p.name()} (pid {p.pid}) died" for p in own if not _lives(p))
            if time.monotonic() - answered[0] > SILENT_S:
                lost.append(f"the head has not answered for {SILENT_S:.0f} s")
            if lost and not over.is_set():
                dead(lost[0])
                return

    for work in (ask, look):
        threading.Thread(target=work, name=f"cluster-{work.__name__}", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def end_children() -> None:
    """kill -9 every process that this one has started, Ray's among them: for the way out that does not wait."""
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            process.kill()


def _gpus() -> int:
    """GPUs of this machine; a question of the driver's, which does not load torch."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())


def _lives(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False
