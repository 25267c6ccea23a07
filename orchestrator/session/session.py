"""One driver's work on one run: what is handed out, what is made of what comes back, and when to stop.

Two threads meet here. Tune's loop asks `next` and `prune` and only enqueues what came back; it never waits for the
database. The writer thread alone begins attempts, records how trials end, asks for what follows, and decides when the
session is over: one thread, from one state, under one lock. No ray, no torch.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from typing import cast

from jobs.core.failures import Failure
from orchestrator.ledger import OUTAGE_S, LedgerUnavailable
from orchestrator.session.reports import Report
from orchestrator.session.writer import LOOK_S, Dispatch, Writer
from orchestrator.system import threads

QUEUE_TIMEOUT_S = 10.0
"""How long Tune's loop may wait for the writer, as long as the ledger answers."""

CLOSE_S = 60.0
"""How long the writer may take for one event when the session ends, unless the ledger is away."""


class Session(Writer):
    """One driver's work on one run, from where the ledger stands to the end or to a stop."""

    # Called by the main thread.

    def start(self) -> None:
        """Reconcile with what earlier sessions left, then let the writer work."""
        for attempt in self._ledger.reconcile():
            text = f"attempt {attempt.number} of trial {attempt.trial} was cut short; it continues"
            self._ledger.event("cut_short", text, attempt.trial)
            self._tell(text, None)
        self._refill()
        with self._lock:
            self._decide()
        self._ledger.outage = self._outage
        self._writer = threads.start(self._write, name="ledger-writer", died=self.fail)

    def resize(self, concurrent: int) -> bool:
        """Have at most so many trials at once from now on, 0 while none fits, and say whether that is new. Those that
        run are left alone."""
        with self._lock:
            before, self._concurrent = self._concurrent, concurrent
            self._lock.notify_all()
        return concurrent != before

    def close(self) -> None:
        """Write what is enqueued, and put what was cut short back into the queue."""
        self._closing = True
        self._events.put(None)
        if self._writer is not None:
            self._await(self._writer)
        self._ledger.outage = self._patience
        if self.broken is None:
            for dispatch in list(self._running.values()):
                self._ledger.finish_attempt(
                    dispatch.trial, dispatch.attempt, state="interrupted", message=self.stopped_by or "cut short"
                )
            self._running.clear()

    def _await(self, writer: threading.Thread) -> None:
        """Let the writer write what is enqueued, while it gets on or the ledger may come back."""
        dealt, deadline = self._dealt, time.monotonic() + CLOSE_S
        while writer.is_alive():
            writer.join(LOOK_S)
            self.stopping()  # which ends the wait for a ledger that has been away too long
            if isinstance(self.broken, LedgerUnavailable):
                return
            if self._dealt != dealt or self._outage.seems_away():
                dealt, deadline = self._dealt, time.monotonic() + CLOSE_S
            elif time.monotonic() > deadline:
                why = f"the thread that writes the ledger has stood still for {CLOSE_S:.0f} s, and not for the ledger"
                self.fail(TimeoutError(f"{why}; what ran is resumable: run the same command again"))
                return

    # Called by Tune's loop, which never waits for the ledger.

    def due(self, waiting: int = 0) -> bool:
        """Return whether one more attempt is to begin as soon as a slot is there for it, besides the number `waiting`
        for theirs. Waits as `next` does, but begins nothing: a trial that waits for a slot is queued."""
        deadline = time.monotonic() + QUEUE_TIMEOUT_S
        with self._lock:
            while not self._stop.is_set():
                if self._can_begin(waiting):
                    return not self._outage.seems_away()
                if not self._pending or self._outage.seems_away() or time.monotonic() > deadline:
                    return False
                self._lock.wait(LOOK_S / 4)
        return False

    def waits(self, why: str | None) -> None:
        """Note why the session has begun to wait for room on its cluster, having none; None: it has some again."""
        self._enqueue(lambda: self._note_waiting(why))

    def next(self) -> Dispatch | None:
        """Take the next attempt that is due, which the writer has begun in the ledger; None if there is none.

        Waits while the writer deals with what came back and begins it, which takes milliseconds: after a None, Tune
        would sleep for two seconds. While the ledger is away nothing is begun.
        """
        deadline = time.monotonic() + QUEUE_TIMEOUT_S
        with self._lock:
            while not self._stop.is_set():
                if self._begun:
                    return self._begun.popleft()
                if self._can_begin() and not self._asked:
                    self._asked = True
                    self._enqueue(self._begin)
                if not self._pending or self._outage.seems_away() or time.monotonic() > deadline:
                    return None
                self._lock.wait(LOOK_S / 4)  # that the ledger has gone away nobody notifies
        return None

    def finished(self) -> bool:
        """Return whether the session is stopping, or nothing is running, nothing is due and nothing will be."""
        with self._lock:
            return self._stop.is_set() or self._over

    def stopping(self) -> bool:
        """Return whether running trials shall end now."""
        if self._outage.lasted_s() > OUTAGE_S + LOOK_S and self.broken is None:
            self.fail(
                LedgerUnavailable(f"the ledger has not answered for {OUTAGE_S:.0f} s; see that it can be reached")
            )
        return self._stop.is_set()

    def report(self, dispatch: Dispatch, report: Mapping[str, object]) -> None:
        """Enqueue what a gang reported, and with it that its trial is pruned, where `prune` has said so."""
        rung = self._pruned.pop(dispatch.trial, None)
        sent = cast("Report", report)  # by ranks of this program, which Tune has added to
        self._enqueue(lambda: self._on_report(dispatch, sent, rung))

    def lost(self, dispatch: Dispatch, failure: Failure) -> None:
        """Enqueue that a slot was lost with its trial."""
        self._enqueue(lambda: self._fail(dispatch, failure))

    def prune(self, dispatch: Dispatch, report: Mapping[str, object]) -> bool:
        """Return whether the trial ends at a rung it has reached: a function of the ledger and of its own values. If
        so, Tune stops it, and its end is recorded with this report, which `report` is to bring: Tune asks first."""
        with self._lock:
            climb = self._climbs.get(dispatch.trial)
        if climb is None or report.get("result") is not None or "failure" in report:
            return False
        rung = climb.reach(cast("Report", report)["points"])
        if rung is not None:
            self._pruned[dispatch.trial] = rung
        return rung is not None

    def _enqueue(self, event: Callable[[], None]) -> None:
        with self._lock:
            self._pending += 1
        self._events.put(event)

    # The writer thread.
