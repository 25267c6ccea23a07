"""What a driver does while its ledger's database is away: it goes on training, begins nothing, and asks again.

A call that fails because the database cannot be reached is made again until it works or OUTAGE_S are over. The answer
to the first try may have been lost on its way, so a method that is called again looks first whether it was done.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import TypeVar

from orchestrator.ledger.records import LedgerAway

OUTAGE_S = 300.0
"""How long a database may be away: a restart or a failover takes less."""

SLOW_S = 1.0
"""A call that takes longer than this is one to a database that seems away: one that is paused does not say so."""

PAUSES_S = (0.2, 0.5, 1.0, 2.0, 5.0)
"""Between two tries; the last one again and again."""

T = TypeVar("T")

RETRIED: ContextVar[bool] = ContextVar("retried", default=False)
"""Whether the method of the ledger that runs now was tried before, and may have done its work then."""


class Outage:
    """Whether the database is away, as seen by every thread that asks it.

    It is away while any call fails. That another call is answered meanwhile says nothing for the one that fails: a
    standby is read and not written.
    """

    def __init__(self, say: Callable[[str], None], *, longest_s: float = OUTAGE_S) -> None:
        self._say, self._longest_s = say, longest_s
        self._lock = threading.Lock()
        self._calls: dict[int, float] = {}
        """When the call that each thread waits for began."""
        self._failing: set[int] = set()
        """Threads whose call has failed and is tried again."""
        self._since: float | None = None
        """When the first call failed of those that overlap."""

    def through(self, call: Callable[[], T]) -> T:
        """Return the result of `call`, tried again while the database is away. Raises LedgerAway when that takes too
        long."""
        with self._under_way():
            for number in range(10**9):
                try:
                    answer = call()
                except LedgerAway as error:
                    if not self._may_wait(error):
                        raise
                    RETRIED.set(True)
                    time.sleep(PAUSES_S[min(number, len(PAUSES_S) - 1)])
                else:
                    self._is_answered()
                    return answer
        raise AssertionError("the loop above ends by itself")

    def lasted_s(self) -> float:
        """Return how long the database has left a call unanswered, by itself or with errors; 0 when nobody asks."""
        now = time.monotonic()
        with self._lock:
            return max((now - moment for moment in self._calls.values()), default=0.0)

    def seems_away(self) -> bool:
        """Return whether nothing should be begun now."""
        return self.lasted_s() > SLOW_S

    @contextmanager
    def _under_way(self) -> Iterator[None]:
        key, token = threading.get_ident(), RETRIED.set(False)
        with self._lock:
            outer = key in self._calls
            self._calls.setdefault(key, time.monotonic())
        try:
            yield
        finally:
            RETRIED.reset(token)
            if not outer:
                with self._lock:
                    self._calls.pop(key, None)
                    self._failing.discard(key)
                    if not self._failing:  # the last one has given up, and of that its error tells
                        self._since = None

    def _may_wait(self, error: LedgerAway) -> bool:
        key, now = threading.get_ident(), time.monotonic()
        with self._lock:
            first = not self._failing
            if first:
                self._since = now
            self._failing.add(key)
            left_s = self._longest_s - (now - self._calls[key])
        if first and left_s > 0:
            again = f"it is asked again for {left_s:.0f} s"
            self._say(f"{error.reason}; training goes on and nothing is begun; {again}")
        return left_s > 0

    def _is_answered(self) -> None:
        with self._lock:
            self._failing.discard(threading.get_ident())
            since = None if self._failing else self._since
            if since is not None:
                self._since = None
        if since is not None:
            self._say(f"the ledger is back after {time.monotonic() - since:.0f} s")
