"""The Ray cluster a session runs on: one of its own on this machine, or the one that $RAY_ADDRESS names."""

from __future__ import annotations

import contextlib
import logging
import os
import re
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from types import FrameType, ModuleType

import psutil

from orchestrator.session.cluster import access
from orchestrator.session.cluster import start as cluster_start
from orchestrator.session.cluster.access import address
from orchestrator.session.cluster.capacity import Node, alive, here

Handler = Callable[[int, FrameType | None], object] | int | None
"""Of a signal, as `signal` has it."""

CONNECT_S = 10.0
"""How long $RAY_ADDRESS may take to accept a connection."""


class Refused(ConnectionError):
    """$RAY_ADDRESS does not answer or will not have this process; the text is the reason."""


class NoToken(Refused):
    """It is there and wants a token that it did not get; the text says so, and after `; ` what to do about it."""


@contextlib.contextmanager
def session(*, cpus: int, gpus: int | None = None, card: Mapping[str, str] | None = None) -> Iterator[None]:
    """Keep this process connected to $RAY_ADDRESS, or to a cluster of its own with `cpus`, while the context lasts.

    card: what others on the cluster may know of this process, as metadata of its Ray job.

    Raises ConnectionError when the address does not answer or refuses this process, or when no cluster starts here.
    """
    os.environ |= {"RAY_USAGE_STATS_ENABLED": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    # Ray sets it while its own threads, and this program's, read variables: see `tracking.store.prepare`.
    os.environ.setdefault("PYTHONBREAKPOINT", "ray.util.rpdb.set_trace")
    import ray

    access.keep_private()
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    init = partial(ray.init, log_to_driver=False, logging_level=logging.ERROR, configure_logging=True)
    if card is not None:
        init = partial(init, job_config=ray.job_config.JobConfig(metadata=dict(card)))
    with contextlib.ExitStack() as stack:
        where = _gcs_address() if address() is not None else None
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


def _heard_by(handlers: Mapping[signal.Signals, Handler]) -> None:
    """Set these Python handlers of signals, if this is the main thread: no other thread may."""
    if threading.current_thread() is threading.main_thread():
        for number, handler in handlers.items():
            signal.signal(number, handler)


def home() -> Path:
    """Return the folder where Ray keeps the sessions of clusters that are started on this machine."""
    from ray._common import utils

    return Path(utils.get_default_ray_temp_dir())


def own_folder() -> Path | None:
    """Return the folder of the connected cluster's logs and sockets; None if the cluster is not this process's own."""
    if address() is not None:
        return None
    from ray._private import worker

    node = worker._global_node  # noqa: SLF001 - no public name; None where nothing is connected
    return None if node is None else Path(node.get_session_dir_path())


def nodes() -> list[Node]:
    """Find the nodes to run on: this machine, or the living nodes of the cluster at $RAY_ADDRESS.

    Raises ConnectionError when that cluster does not answer or refuses this process; NoToken is a subclass.
    """
    if address() is None:
        return [here()]
    import ray

    with session(cpus=0):
        return alive(ray.nodes())


def open_to_others() -> bool:
    """Return whether other machines can reach the connected cluster and it takes commands from whoever reaches it."""
    import ray
    from ray import _raylet

    modes: ModuleType = _raylet  # the compiled part
    if modes.get_authentication_mode() == modes.AuthenticationMode.TOKEN:
        return False
    return any(not node["NodeManagerAddress"].startswith("127.") for node in ray.nodes() if node["Alive"])


def end_children() -> None:
    """End with kill -9 every process that this process has started, Ray's among them: for the exit that does not wait.

    Guards are spared. Once this process is gone, they end what is no longer its child: whatever a dead raylet had
    started.
    """
    for process in psutil.Process().children(recursive=True):
        with contextlib.suppress(psutil.Error):
            if process.pid not in cluster_start.guards:
                process.kill()


def _gcs_address() -> str:
    """Resolve $RAY_ADDRESS to its GCS, as host:port, or its client server, as ray://host:port. Raises Refused."""
    named = address() or ""
    if named.startswith("ray://"):
        return named
    from ray._private import services

    try:
        return str(services.canonicalize_bootstrap_address(named))  # which looks for `auto`, and for names
    except (ValueError, OSError) as error:
        raise Refused(" ".join(str(error).split())[:300]) from error


def _token(where: str) -> str | None:
    """Find the token that the cluster at `where` requires and accepts; None if it requires none: a driver in token mode
    would not answer ranks that have no token. Raises Refused or its subclass NoToken."""
    _reach(where)
    insists = os.environ.get(access.MODE, "").strip().lower() == "token"
    gcs = not where.startswith("ray://")
    if gcs and not insists:
        with cluster_start.token(None):
            if _lets_in(where):
                return None
    try:
        word = access.for_cluster(where)
    except access.TokenUnusable as error:
        raise Refused(str(error)) from error
    if word is None and (gcs or insists):
        asked = f"{access.MODE}=token is set" if insists else "it wants a token"
        raise NoToken(f"{asked}, and none is at hand; {access.lacking(where)}")
    if word is not None and gcs:
        with cluster_start.token(word):
            if not _lets_in(where):
                raise NoToken(f"it does not take the token that it was sent; {access.lacking(where, sent=True)}")
    return word


def _reach(where: str) -> None:
    """See that somebody listens. Ray itself would ask for minutes. Raises Refused."""
    if (parts := re.fullmatch(r"(?:ray://)?(?:[^/]*@)?(\[[^]]+\]|[^/:@]+):(\d+)", where)) is not None:
        try:
            socket.create_connection((parts[1].strip("[]"), int(parts[2])), CONNECT_S).close()
        except (OSError, OverflowError, UnicodeError) as error:  # nobody there, no port, no name
            raise Refused(str(error)) from error


def _lets_in(where: str) -> bool:
    """Return whether a GCS accepts the token that Ray has now. Ray itself would ask twenty times, each time with a line
    on the terminal, and then not mention a token. Raises Refused if no working GCS answers there."""
    from ray import _raylet
    from ray.exceptions import AuthenticationError, RpcError

    loaded: ModuleType = _raylet  # the compiled part
    try:
        loaded.GcsClient(address=where)
    except AuthenticationError:
        return False
    except (RpcError, ValueError) as error:  # ValueError: of an address that is none
        what = str(error).strip().rstrip(".")
        raise Refused(f"what listens there is no head of Ray, or is stuck ({what}); name its GCS: HOST:6379") from error
    return True


def _connect(start: Callable[[], object]) -> None:
    """Connect to $RAY_ADDRESS. Ray raises errors of several kinds for what a person must see to."""
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
    """Explain why there is no Ray, and what to do about it."""
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
