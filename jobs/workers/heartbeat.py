"""What the ranks of a gang are doing, and which of them hangs. No ray: a rank looks at its own thread, a gang judges.

A hung rank cannot say so, and the ranks that wait for it look just as stuck. The one to blame is the one that is not
waiting: its stack stands outside of every collective, or its process does not even answer.
"""

from __future__ import annotations

import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import wraps
from typing import Concatenate, ParamSpec, Protocol, TypeVar

from jobs.core.failures import kind_of, peak, picklable
from jobs.workers.memory import Reading

COLLECTIVES = ("torch/distributed/", "torch\\distributed\\")
"""Where the innermost frames of a rank stand that waits for others."""

IDLE, LOADING = "idle", "loading"


@dataclass(frozen=True)
class Heartbeat:
    """What one rank is doing."""

    phase: str
    """`step 12`, `evaluation`, `checkpoint`, `loading`, `idle`."""

    seconds: float
    """Since the phase began."""

    waits: bool
    """Whether it stands in a collective."""

    stack: str
    peak_mb: float = 0.0
    """Most memory of the trial so far, where that is known."""

    cgroup: Reading | None = None
    """The memory of the rank's cgroup."""


class PhaseMonitor:
    """What the working thread of a rank does, for another thread to look at."""

    def __init__(self) -> None:
        self._thread = 0
        self._phase, self._since = IDLE, time.monotonic()

    def enter(self, phase: str) -> None:
        """Note that the calling thread does `phase` from now on."""
        self._thread = threading.get_ident()
        self._phase, self._since = phase, time.monotonic()

    def look(self, peak_mb: float = 0.0, cgroup: Reading | None = None) -> Heartbeat:
        """Describe what the working thread does; called by another thread."""
        frame = sys._current_frames().get(self._thread)  # noqa: SLF001 - the documented way to see another thread
        stack = traceback.extract_stack(frame) if frame is not None else []
        waits = any(part in entry.filename for entry in stack[-6:] for part in COLLECTIVES)
        shown = "".join(traceback.format_list(stack))
        return Heartbeat(self._phase, time.monotonic() - self._since, waits, shown, peak_mb, cgroup)


class Worker(Protocol):
    """Whose methods `working` is for."""

    work: PhaseMonitor

    def peak_mb(self) -> float:
        """Return the most memory of its trial so far."""


T = TypeVar("T")
P = ParamSpec("P")
W = TypeVar("W", bound=Worker)


def working(
    phase: str,
) -> Callable[[Callable[Concatenate[W, P], T]], Callable[Concatenate[W, P], T]]:
    """Wrap a method that works in `phase`: others can see it do so, and an exception of it is in the worker's log too.
    An exception for lack of memory says how much there was."""

    def decorate(method: Callable[Concatenate[W, P], T]) -> Callable[Concatenate[W, P], T]:
        @wraps(method)
        def work(self: W, /, *arguments: P.args, **keywords: P.kwargs) -> T:
            self.work.enter(phase)
            try:
                return method(self, *arguments, **keywords)
            except Exception as error:
                if kind_of(error) == "out_of_memory":
                    error.add_note(peak(self.peak_mb()))
                traceback.print_exc()
                sys.stderr.flush()
                if (sent := picklable(error)) is not error:
                    raise sent from error
                raise
            finally:
                self.work.enter(IDLE)

        return work

    return decorate


def find_hung_rank(
    pulses: Mapping[int, Heartbeat], silent_s: Mapping[int, float], *, deadline_s: float, loading_s: float
) -> tuple[int, str] | None:
    """Find the rank that hangs, and what it was doing; None while all is well.

    pulses: the newest of each rank; silent_s: how long each has not answered. A rank is late beyond `deadline_s` in one
    phase (`loading_s` while it loads), counting the time it has been silent since.
    """
    late: dict[int, float] = {}
    for rank, silent in silent_s.items():
        pulse = pulses.get(rank, Heartbeat(LOADING, 0.0, False, ""))
        allowed = loading_s if pulse.phase == LOADING else deadline_s
        if pulse.phase != IDLE and pulse.seconds + silent > allowed:
            late[rank] = pulse.seconds + silent
    if not late:
        return None

    def blame(rank: int) -> tuple[bool, bool, int]:
        answers = silent_s[rank] < min(deadline_s, 5.0) / 2
        waits = answers and rank in pulses and pulses[rank].waits
        return (waits, answers, rank)

    rank = min(late, key=blame)
    phase = pulses[rank].phase if rank in pulses else LOADING
    where = "and does not even answer" if not blame(rank)[1] else "in a collective" if blame(rank)[0] else ""
    return rank, f"{phase} has taken {late[rank]:.0f} s {where}".rstrip()


def stacks(pulses: Mapping[int, Heartbeat]) -> str:
    """Show where every rank stood, for a person."""
    shown = [
        f"rank {rank}, {pulse.phase} for {pulse.seconds:.0f} s:\n{pulse.stack}"
        for rank, pulse in sorted(pulses.items())
    ]
    return "\n".join(shown)
