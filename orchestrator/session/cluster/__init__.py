"""The Ray cluster a session runs on: one of its own on this machine, or the one that $RAY_ADDRESS names.

Also the watch over it: when its head is gone Ray may wait for minutes without a word, so a thread looks for itself.
"""

from __future__ import annotations

import contextlib
import logging
import math
import os
import re
import shutil
import signal
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from orchestrator.session.cluster import access
from orchestrator.session.cluster import start as cluster_start
from orchestrator.session.cluster.start import HEAD, lives
from orchestrator.system import threads

LOOK_S = 1.0
"""How often the head is looked at."""

CONNECT_S = 10.0
"""How long $RAY_ADDRESS may take to accept a connection."""

SILENT_S = 20.0
"""How long the head may leave a question unanswered. Ray's own limit, after which the process is ended from within, is
a minute."""

TYPE = "accelerator_type:"
"""What the resource begins with by which Ray tells the type of a node's GPUs. There is one of each, of any size."""


class Refused(ConnectionError):
    """$RAY_ADDRESS does not answer or will not have this process; the text is the reason."""


class NoToken(Refused):
    """It is there and wants a token that it did not get; the text says so, and after `; ` what to do about it."""


@dataclass(frozen=True)
class Node:
    """What one node offers."""

    cpus: float
    gpus: float
    accelerators: frozenset[str] = frozenset()
    """Types of its GPUs, as Ray names them."""


def address() -> str | None:
    """The cluster to use, or None for one of our own, which `local` asks for too."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    return named if named.lower() not in ("", "local") else None


@contextlib.contextmanager
def session(*, cpus: int, gpus: int | None = None, card: Mapping[str, str] | None = None) -> Iterator[None]:
    """Be connected to $RAY_ADDRESS, or to a cluster of this process's own with `cpus`, as long as the context lasts.

    card: what others on the cluster may know of this process, as metadata of its Ray job.

    Raises ConnectionError when the address does not answer or will not have this process, or no cluster starts here.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    # Ray sets it while other threads of it, and of ours, read variables: see `tracking.store.prepare`.
    os.environ.setdefault("PYTHONBREAKPOINT", "ray.util.rpdb.set_trace")
    import ray

    access.keep_private()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    init = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    if card is not None:
        init = partial(init, job_config=ray.job_config.JobConfig(metadata=dict(card)))
    with contextlib.ExitStack() as stack:
        where = _found() if address() is not None else None
        stack.enter_context(cluster_start.token(access.new() if where is None else _token(where)))
        guard = cluster_start.Guard() if where is None else None
        own = {"num_cpus": cpus, "num_gpus": gpus, "_system_config": cluster_start.CONFIG}
        local = partial(init, address="local", include_dashboard=False, **own)
        start = cluster_start.Start(local if where is None else partial(init, address=where))
        try:
            with cluster_start.signals_kept():
                if guard is None:
                    _connect(start.run)
                else:
                    with cluster_start.apart(guard), cluster_start.on_loopback(), cluster_start.lean():
                        start.run()
                    cluster_start.check()
        except BaseException as error:  # of every kind, Exception itself and a Ctrl-C among them
            if guard is not None:
                guard.close()
            if start.has_ended():
                with contextlib.suppress(Exception):
                    ray.shutdown()
            start.let_go()
            if isinstance(error, Refused) or not isinstance(error, Exception):
                raise
            raise ConnectionError(_not_started(error)) from error
        _heard_by(handlers)  # Ray's would end this process at once
        try:
            yield
        finally:
            ray.shutdown()
            _heard_by(handlers)  # Ray takes its own back, and with it whatever was there before
            start.let_go()
            if guard is not None:
                guard.close()


def _heard_by(handlers: Mapping[signal.Signals, Any]) -> None:
    """Give signals to these handlers of Python, which only its main thread may."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def home() -> Path:
    """Where Ray keeps the sessions of clusters that are started on this machine."""
    from ray._common import utils

    return Path(utils.get_default_ray_temp_dir())


def own_folder() -> Path | None:
    """Where the connected cluster keeps its logs and sockets, if it is this process's own."""
    if address() is not None:
        return None
    from ray._private import worker

    node: Any = worker._global_node  # noqa: SLF001 - no public name; None where nothing is connected
    return None if node is None else Path(node.get_session_dir_path())


def nodes() -> list[Node]:
    """What there is to run on: this machine, or the living nodes of the cluster at $RAY_ADDRESS.

    Raises ConnectionError when that does not answer, NoToken among them.
    """
    if address() is None:
        return [here()]
    import ray

    with session(cpus=0):
        return alive(ray.nodes())


def alive(told: Sequence[Mapping[str, Any]]) -> list[Node]:
    """The living nodes of what `ray.nodes()` tells."""
    return [_node(one["Resources"]) for one in told if one["Alive"]]


def node_of(actor: str) -> str:
    """The id of the node on which an actor of the connected cluster is or was, by the actor's id; empty if unknown."""
    from ray._private import state  # Ray's public way asks the dashboard, which a cluster of our own has not

    known = state.actors(actor) if actor else {}
    return str(known.get("Address", {}).get("NodeID", ""))


@dataclass(frozen=True)
class Answer:
    """What a node answered to a question."""

    name: str
    """Its address, and the beginning of its id."""

    node: Node
    value: Any = None
    error: str | None = None
    """Why there is no value."""

    ahead_s: float = 0.0
    """How far its clock is ahead of this process's."""


class _Examined:
    """On one node: calls a function, and tells the time."""

    def call(self, function: Callable[[Any], Any], asked: Any) -> Any:
        return function(asked)

    def clock(self) -> float:
        return time.time()


def ask(function: Callable[[Any], Any], about: Callable[[Node], Any], *, limit_s: float) -> list[Answer]:
    """Call `function`, which is imported there, on every living node of the connected cluster at once, with what
    `about` says of that node. One that has not answered in `limit_s` seconds gets an error."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    told = [one for one in ray.nodes() if one["Alive"]]
    examined: Any = ray.remote(num_cpus=0, max_restarts=0)(_Examined)
    begun = []
    for one in told:
        actor = examined.options(scheduling_strategy=NodeAffinitySchedulingStrategy(one["NodeID"], soft=False)).remote()
        begun.append((one, actor, actor.call.remote(function, about(_node(one["Resources"])))))
    refs = [ref for *_, ref in begun]
    ray.wait(refs, num_returns=len(refs), timeout=limit_s)
    answers = []
    for one, actor, ref in begun:
        name = f"{one['NodeManagerAddress']} ({one['NodeID'][:8]})"
        node = _node(one["Resources"])
        try:
            answers.append(Answer(name, node, ray.get(ref, timeout=0), ahead_s=_ahead(actor)))
        except ray.exceptions.GetTimeoutError:
            answers.append(Answer(name, node, error=f"it has not answered for {limit_s:.0f} s"))
        except ray.exceptions.RayError as error:
            answers.append(Answer(name, node, error=(str(error).strip().splitlines() or [type(error).__name__])[-1]))
        ray.kill(actor)
    return answers


def _ahead(actor: Any) -> float:
    """The clock of an actor's node minus this one's, from the quickest of a few questions."""
    import ray

    tries = []
    for _ in range(5):
        asked = time.time()
        told = ray.get(actor.clock.remote(), timeout=10)
        answered = time.time()
        tries.append((answered - asked, told - (asked + answered) / 2))
    return float(min(tries)[1])


def open_to_others() -> bool:
    """Whether the connected cluster can be reached from other machines and takes commands from whoever reaches it."""
    import ray
    from ray import _raylet

    modes: Any = _raylet  # has no types
    if modes.get_authentication_mode() == modes.AuthenticationMode.TOKEN:
        return False
    return any(not one["NodeManagerAddress"].startswith("127.") for one in ray.nodes() if one["Alive"])


def here() -> Node:
    """What this machine offers. The type of its GPUs is Ray's to find out."""
    return Node(os.cpu_count() or 1, _gpus())


def fits(available: Sequence[Node], *, ranks: int, cpus: float, gpus: float) -> bool:
    """Whether `ranks` bundles of `cpus` and `gpus` find a place."""
    return slots(available, ranks=1, cpus=cpus, gpus=gpus) >= ranks


def slots(available: Sequence[Node], *, ranks: int, cpus: float, gpus: float) -> int:
    """How many gangs of `ranks` the cluster holds at once, however their ranks lie on its nodes: both placements are
    wishes, which yield before a gang has to wait."""
    return sum(_places(node, cpus=cpus, gpus=gpus) for node in available) // ranks


@contextlib.contextmanager
def watched(
    dead: Callable[[str], None],
    seen: Callable[[list[Node]], None] = lambda _: None,
    failed: Callable[[BaseException], None] | None = None,
) -> Iterator[None]:
    """Call `dead`, from a thread, with what happened when the head of the connected cluster is gone; and `seen`, from
    another, with the nodes that there are: at once, and whenever they are others than before. When one of the threads
    ends by an exception, of `seen` for example, `failed` gets it; without one, `dead` gets its text.

    Ray must be initialised. `dead` is not expected to return: what waits for Ray waits for ever.
    """
    watch = _Watch(dead, seen, failed)
    for work in (watch.ask, watch.look):
        threads.start(work, name=f"cluster-{work.__name__}", died=watch.died)
    try:
        yield
    finally:
        watch.over.set()


class _Watch:
    """The two threads of `watched`."""

    def __init__(
        self,
        dead: Callable[[str], None],
        seen: Callable[[list[Node]], None],
        failed: Callable[[BaseException], None] | None,
    ) -> None:
        import ray

        self._dead, self._seen, self._failed = dead, seen, failed
        self.over = threading.Event()
        self._own = [p for p in psutil.Process().children() if p.name() in HEAD] if address() is None else []
        self._home = ray.get_runtime_context().get_node_id()
        self._answered_at = time.monotonic()
        self._refusal = ""
        self._lost: list[str] = []

    def ask(self) -> None:
        """Ask the head for its nodes, again and again. Ray may leave the question unanswered."""
        import ray

        before: frozenset[str] | None = None
        while not self.over.is_set():
            try:
                told = ray.nodes()
            except Exception as error:  # noqa: BLE001 - of many kinds; a head that is busy may answer the next time
                self._refusal = f": {type(error).__name__}: {error}"[:200]
                self.over.wait(LOOK_S)
                continue
            if any(node["NodeID"] == self._home and not node["Alive"] for node in told):
                self._lost.append("the raylet of the driver's node died")
            self._answered_at = time.monotonic()
            now = frozenset(node["NodeID"] for node in told if node["Alive"])
            if now != before:
                self._seen(alive(told))
            before = now
            self.over.wait(LOOK_S)

    def look(self) -> None:
        """See whether the head lives and answers."""
        before = time.monotonic()
        while not self.over.wait(LOOK_S):
            now = time.monotonic()
            if now - before > SILENT_S / 2:  # this process was stopped, or its machine slept, and the head may have too
                self._answered_at = max(now, self._answered_at)
            before = now
            self._lost.extend(f"{p.name()} (pid {p.pid}) died" for p in self._own if not lives(p))
            if time.monotonic() - self._answered_at > SILENT_S:
                self._lost.append(f"the head has not answered for {SILENT_S:.0f} s{self._refusal}")
            if self._lost and not self.over.is_set():
                self._dead(self._lost[0])
                return

    def died(self, error: BaseException) -> None:
        """One of them ended by an exception."""
        if self.over.is_set():
            return
        self._answered_at = math.inf  # where nobody asks, silence says nothing
        if self._failed is not None:
            self._failed(error)
        else:
            self._dead(f"the watch over it ended with {type(error).__name__}: {error}")


def end_children() -> None:
    """kill -9 every process that this one has started, Ray's among them: for the way out that does not wait.

    A guard is spared. Once this process is gone it ends what is no child of it any more: whatever a dead raylet had
    started.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid not in cluster_start.guards:
                process.kill()


def _found() -> str:
    """Where the GCS of $RAY_ADDRESS is, as host:port, or a client server at ray://host:port. Raises Refused."""
    named = address() or ""
    if named.startswith("ray://"):
        return named
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address(named))  # which looks for `auto`, and for names
    except (ValueError, OSError) as error:
        raise Refused(" ".join(str(error).split())[:300]) from error


def _token(where: str) -> str | None:
    """The token that the cluster at `where` wants and takes; None if it wants none: a driver in token mode would not
    answer ranks that have none. Raises Refused, NoToken among them."""
    _reach(where)
    insists = os.environ.get(access.MODE, "").strip().lower() == "token"
    gcs = not where.startswith("ray://")
    if gcs and not insists:
        with cluster_start.token(None):
            if _lets_in(where):
                return None
    try:
        found = access.for_cluster(where)
    except access.TokenUnusable as error:
        raise Refused(str(error)) from error
    if found is None and (gcs or insists):
        asked = f"{access.MODE}=token is set" if insists else "it wants a token"
        raise NoToken(f"{asked}, and none is at hand; {access.lacking(where)}")
    if found is not None and gcs:
        with cluster_start.token(found):
            if not _lets_in(where):
                raise NoToken(f"it does not take the token that it was sent; {access.lacking(where, sent=True)}")
    return found


def _reach(where: str) -> None:
    """See that somebody listens. Ray itself would ask for minutes. Raises Refused."""
    if (place := re.fullmatch(r"(?:ray://)?(?:[^/]*@)?(\[[^]]+\]|[^/:@]+):(\d+)", where)) is not None:
        try:
            socket.create_connection((place[1].strip("[]"), int(place[2])), CONNECT_S).close()
        except (OSError, OverflowError, UnicodeError) as error:  # nobody there, no port, no name
            raise Refused(str(error)) from error


def _lets_in(where: str) -> bool:
    """Whether a GCS answers to the token that Ray has now. Ray itself would ask twenty times, each with a line on the
    terminal, and then say nothing of a token. Raises Refused for what is no GCS."""
    from ray import _raylet
    from ray.exceptions import AuthenticationError, RpcError

    loaded: Any = _raylet  # has no types
    try:
        loaded.GcsClient(address=where)
    except AuthenticationError:
        return False
    except (RpcError, ValueError) as error:  # ValueError: of an address that is none
        what = str(error).strip().rstrip(".")
        raise Refused(f"what listens there is no head of Ray, or is stuck ({what}); name its GCS: HOST:6379") from error
    return True


def _connect(start: Callable[[], Any]) -> None:
    """To $RAY_ADDRESS. Ray raises errors of several kinds for what a person must see to."""
    from ray.exceptions import AuthenticationError

    try:
        start()
    except AuthenticationError as error:
        raise NoToken(f"it does not let this process in; {access.lacking(address() or '')}") from error
    except (RuntimeError, ValueError, ConnectionError) as error:
        if isinstance(error, RuntimeError) and "ersion mismatch" not in str(error) and "auth" not in str(error).lower():
            raise
        raise Refused(" ".join(str(error).split())[:300]) from error


def _not_started(error: Exception) -> str:
    """Why there is no Ray, and what to do about it."""
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if address() is not None:
        return (
            f"Ray at RAY_ADDRESS={address()} cannot be used: {reason}; see the logs of its head, or unset RAY_ADDRESS"
        )
    if "connect to gcs" in reason.lower():  # as Ray says after seconds, or a minute, of a head that stands still
        reason = "timed out: its head, which has started, does not answer"
    remedy = "its logs are below ray/session_latest/logs in the folder of temporary files"
    if "timed out" in reason.lower() or isinstance(error, TimeoutError):
        remedy = "this machine is short of processors or memory: end other programs, and run the same command again"
    elif "AF_UNIX" in reason or isinstance(error, OSError):
        remedy = "give it a short folder that can be written: export TMPDIR=/tmp RAY_TMPDIR=/tmp"
    return f"Ray does not start on this machine: {reason}; {remedy}"


def _node(resources: Mapping[str, float]) -> Node:
    types = frozenset(name.removeprefix(TYPE) for name in resources if name.startswith(TYPE))
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), types)


def _places(node: Node, *, cpus: float, gpus: float) -> int:
    """How many ranks a node holds. A share lies on one GPU: two GPUs hold two ranks of 0.6, not three."""
    found = []
    if cpus:
        found.append(int(node.cpus / cpus + 1e-9))
    if 0 < gpus < 1:
        found.append(int(node.gpus) * int(1 / gpus + 1e-9))
    elif gpus:
        found.append(int(node.gpus / gpus + 1e-9))
    return min(found)


def _gpus() -> int:
    """GPUs of this machine; a question of the driver's, which does not load torch."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())
