"""The terminal and the signals of a session: what it prints stays out of sight, and it can be asked to leave."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from types import FrameType
from typing import NoReturn

from orchestrator import cluster
from orchestrator.ledger import Ledger, LedgerError
from orchestrator.progress import Progress
from orchestrator.runs import RunFolder
from orchestrator.session import Session

INTERRUPTED = 130
"""Exit code of what was stopped and can be continued."""


@contextlib.contextmanager
def quiet(folder: RunFolder, progress: Progress) -> Iterator[None]:
    """The terminal belongs to the progress: what Ray, MLflow and C++ print goes to driver.log."""
    progress.detach()
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    log = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    try:
        yield
    finally:
        for written in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a full disk takes no more lines, and this is a log
                written.flush()
        for number, stream in enumerate(saved, 1):
            os.dup2(stream, number)
            os.close(stream)


class Leaving:
    """The way out that does not wait for Ray: the ledger has everything, and what is cut short is resumable."""

    def __init__(self, ledger: Ledger, progress: Progress) -> None:
        self._ledger, self._progress = ledger, progress

    def now(self, code: int, text: str) -> NoReturn:
        """Say why, give the lease back, end the processes this one has started, and leave with `code`."""
        self._progress.say(text)
        giver = threading.Thread(target=self._release, daemon=True)
        giver.start()
        giver.join(2.0)
        cluster.end_children()
        os._exit(code)

    def _release(self) -> None:
        with contextlib.suppress(LedgerError):
            self._ledger.release()


@contextlib.contextmanager
def signals(session: Session, leave: Leaving, *, grace_s: float) -> Iterator[None]:
    """First SIGINT or SIGTERM: checkpoint and stop. After a second one, or when the grace period of a SIGTERM is over:
    stop at once; what the ledger and the checkpoints have is not lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    timers: list[threading.Timer] = []

    def heard(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if session.interrupted:
            leave.now(INTERRUPTED, f"{name}: stopped at once; the run continues from its last checkpoints")
        session.interrupt(name)
        if number == signal.SIGTERM:
            why = (
                f"the grace period of {grace_s:g} s after SIGTERM is over; the run continues from its last checkpoints"
            )
            timers.append(threading.Timer(grace_s, leave.now, (INTERRUPTED, why)))
            timers[-1].daemon = True
            timers[-1].start()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
