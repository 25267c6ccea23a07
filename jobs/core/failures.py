"""Why an attempt ended: failure classes, and which of several ranks' errors caused the others.

Ray's exceptions are known by their names, so that this needs no ray.
"""

from __future__ import annotations

import errno
import pickle
import socket
import traceback
from collections.abc import Mapping
from dataclasses import dataclass

from jobs.core.provenance import OTHER_ORIGIN

DEATHS = {"ActorDiedError", "ActorUnavailableError", "OutOfMemoryError", "NodeDiedError"}
"""What Ray says of a process that is gone; whatever the others say then is an echo."""

NODE_DIED = ("node has died", "node has crashed")
"""Ray's words for an actor that went with its node, or with its owner's."""

PEERS = ("Connection closed by peer", "Connection reset", "gloo", "NCCL", "DistBackend")
"""Words of an exception about the network between ranks."""


@dataclass(frozen=True)
class Failure:
    """Why an attempt ended, in the words of the rank that caused it."""

    kind: str
    """One of the failure classes of the ledger: interrupted, worker_lost, node_lost, out_of_memory, hung, storage_full,
    infrastructure, user_error; or OTHER_ORIGIN, which is no trial's failure and ends the session."""

    rank: int | None
    message: str
    """First line of the real exception."""

    trace: str


class GangError(Exception):
    """A rank failed; the gang is gone."""

    def __init__(self, failure: Failure) -> None:
        self.failure = failure
        super().__init__(failure.message)

    def __reduce__(self) -> tuple[type[GangError], tuple[Failure], dict[str, object]]:
        return type(self), (self.failure,), self.__dict__


class UnpicklableError(Exception):
    """Stands for an exception of a rank that no other process could be sent: a class of its own, made by a call that
    pickle cannot repeat. Its text is that exception's."""

    def __init__(self, name: str, text: str, kind: str) -> None:
        self.name, self.kind = name, kind
        super().__init__(text)

    def __reduce__(self) -> tuple[type[UnpicklableError], tuple[str, str, str], dict[str, object]]:
        return type(self), (self.name, str(self), self.kind), self.__dict__


def picklable(error: Exception) -> Exception:
    """Return the exception, or a substitute where another process would get an error about pickling instead."""
    try:
        copy = pickle.loads(pickle.dumps(error))  # noqa: S301 - bytes of a moment ago
    except Exception:  # noqa: BLE001 - whatever its class does when it is copied, the reason must arrive
        copy = None
    if type(copy) is type(error) and str(copy) == str(error):
        return error
    substitute = UnpicklableError(type(error).__name__, str(error), kind_of(error))
    for note in getattr(error, "__notes__", []):
        substitute.add_note(note)
    return substitute


def root_cause(errors: Mapping[int, Exception]) -> Failure:
    """Find which of several ranks' errors caused the others: a death, else an exception that is not about the network
    between ranks, else the first."""

    def order(item: tuple[int, Exception]) -> tuple[bool, bool, int]:
        rank, error = item
        return (not _is(error, *DEATHS), is_about_peers(error), rank)

    rank, error = min(errors.items(), key=order)
    raised = error.cause if _is(error, "RayTaskError") and hasattr(error, "cause") else None
    cause = raised if isinstance(raised, BaseException) else error
    trace = str(error) if raised is not None else "".join(traceback.format_exception(error))
    notes = [note for note in getattr(cause, "__notes__", []) if note.startswith("peak memory")]
    return Failure(kind_of(cause), rank, "; ".join([f"rank {rank}: {first_line(cause)}", *notes]), trace)


def is_about_peers(error: BaseException) -> bool:
    """Return whether an exception is about the network between ranks, and so may be the echo of another rank's end."""
    return any(word in str(error) for word in PEERS)


def kind_of(error: BaseException) -> str:
    """Return the failure class of an exception."""
    if isinstance(error, UnpicklableError):
        return error.kind
    text = str(error)
    died, full = _is(error, "ActorDiedError"), getattr(error, "errno", None) in (errno.ENOSPC, errno.EDQUOT)
    rules = {
        OTHER_ORIGIN: _is(error, "OtherOrigin"),
        "out_of_memory": isinstance(error, MemoryError)
        or _is(error, "OutOfMemoryError")
        or "DefaultCPUAllocator" in text,
        "interrupted": bool(getattr(error, "preempted", False)) or _is(error, "TakenOver"),
        "node_lost": _is(error, "NodeDiedError") or (died and any(words in text for words in NODE_DIED)),
        "worker_lost": died or _is(error, "ActorUnavailableError"),
        "storage_full": isinstance(error, OSError) and full,
        "infrastructure": isinstance(error, ConnectionError | socket.gaierror),
    }
    return next((kind for kind, applies in rules.items() if applies), "user_error")


def first_line(error: BaseException) -> str:
    """Describe an exception in one line; of Ray's many lines about an actor's death, choose the line that says why."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if _is(error, "ActorDiedError"):
        facts = ("class_name:", "actor_id:", "pid:", "name:", "namespace:", "ip:")
        lines = [line for line in lines if not line.startswith(facts)][1:2] or lines
    name = error.name if isinstance(error, UnpicklableError) else type(error).__name__
    return f"{name}: {lines[0]}" if lines else name


def words_of(error: BaseException) -> str:
    """Return the first line of an exception's text, for a sentence that says what it is about; else its class."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0] if lines else type(error).__name__


def peak(megabytes: float) -> str:
    """Describe the most memory of a trial, in words."""
    return f"peak memory of the trial {megabytes:,.0f} MB"


def _is(error: BaseException, *names: str) -> bool:
    return any(kind.__name__ in names for kind in type(error).__mro__)
