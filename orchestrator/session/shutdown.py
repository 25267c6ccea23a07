"""The terminal and the signals of a session: what it prints stays out of sight, and it can be asked to leave."""

from __future__ import annotations

import contextlib
import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from types import FrameType
from typing import NoReturn

from orchestrator.ledger import Ledger
from orchestrator.session import cluster
from orchestrator.session.holding import give_back
from orchestrator.session.progress import Progress
from orchestrator.session.session import Session
from orchestrator.system import threads
from orchestrator.system.exit_codes import Exit
from orchestrator.system.terminal import Journal, hangups

ECHO_S = 1.0
"""A SIGTERM so soon after another one is the same request."""


@contextlib.contextmanager
def quiet(progress: Progress) -> Iterator[None]:
    """Keep the terminal for the progress while the context lasts: what Ray, MLflow and C++ print goes to driver.log, as
    does every line of the progress, also afterwards."""
    journal = Journal(progress.context.folder.log)
    hangups.tell(journal.line)
    progress.detach(journal)
    if journal.fault is not None:
        progress.say(f"note: {journal.fault}")
    with journal.catching():
        yield


class Leaving:
    """The way out that does not wait for Ray: the ledger has everything, and what is cut short is resumable."""

    def __init__(self, ledger: Ledger, progress: Progress) -> None:
        self._ledger, self._progress = ledger, progress

    def now(self, code: int, text: str) -> NoReturn:
        """Say why, give the lease back, end the processes that this process has started, and leave with `code`, even if
        some of that fails."""
        try:
            self._progress.say(text)
            giver = threads.start(partial(give_back, self._ledger), name="lease", died=self._not_released)
            giver.join(2.0)
            cluster.end_children()
            self._progress.abandon(1.0)
        finally:
            os._exit(code)

    def _not_released(self, error: BaseException) -> None:
        self._progress.say(f"the lease could not be given back and runs out by itself: {error}")


@contextlib.contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Have SIGTERM do what Ctrl-C does: raise KeyboardInterrupt, so that what was started is ended and what was begun
    is given back. For the checks before a session and what follows it; `signals` is for the session."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def heard(_number: int, _frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, heard)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


@contextlib.contextmanager
def signals(session: Session, leave: Leaving, *, grace_s: float) -> Iterator[None]:
    """Handle SIGINT and SIGTERM while the context lasts: checkpoint and stop after the first signal; stop at once after
    a second, or when the grace period of a SIGTERM is over. What the ledger and the checkpoints have is not lost.

    A SIGTERM right after another is the same request: `timeout`, batch systems and container runtimes send one to the
    process and one to its group.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []
    terminated_at = -ECHO_S

    def cut(_error: BaseException) -> None:
        os._exit(Exit.INTERRUPTED)

    def heard(number: int, _frame: FrameType | None) -> None:
        nonlocal terminated_at
        name = signal.Signals(number).name
        if number == signal.SIGTERM:
            if time.monotonic() - terminated_at < ECHO_S:
                return
            terminated_at = time.monotonic()
        if session.interrupted:
            leave.now(Exit.INTERRUPTED, f"{name}: stopped at once; the run continues from its last checkpoints")
        session.interrupt(name)
        if number == signal.SIGTERM:
            why = (
                f"the grace period of {grace_s:g} s after SIGTERM is over; the run continues from its last checkpoints"
            )
            timers.append(threads.after(grace_s, partial(leave.now, Exit.INTERRUPTED, why), name="grace", died=cut))

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
