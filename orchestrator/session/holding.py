"""The lease of one run, from when it is taken until it is given back: patience with its database, and renewal.

A session's writer renews it too, and hears of it first when another took it. But a session is only the middle of what a
driver does under its lease.
"""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Callable, Iterator

from orchestrator.ledger import LeaseLost, Ledger, LedgerError, Outage, this_process
from orchestrator.session.writer import LEASE_S, RENEW_S
from orchestrator.system import threads

RELEASE_S = 10.0
"""How long giving the lease back may take."""


@contextlib.contextmanager
def held(ledger: Ledger, *, say: Callable[[str], None]) -> Iterator[None]:
    """Hold the lease while the context lasts. A call that fails because the database is away is made again, for five
    minutes at most (`Outage`), and `say` gets a line. Raises LeaseHeld.

    No Ctrl-C or SIGTERM keeps it from being given back.
    """
    before, ledger.outage = ledger.outage, None
    try:
        ledger.acquire(this_process(), LEASE_S)
        ledger.outage = Outage(say)
        yield
    finally:
        with _undisturbed():
            threads.start(lambda: give_back(ledger), name="lease", died=lambda _: None).join(RELEASE_S)
        ledger.outage = before


@contextlib.contextmanager
def renewed(ledger: Ledger, *, died: Callable[[BaseException], object]) -> Iterator[None]:
    """Renew the lease while the context lasts. Where it is lost, whoever writes next hears of it; where the ledger
    fails otherwise, it is tried again. What else ends the renewing goes to `died`."""
    over = threading.Event()

    def renew() -> None:
        while not over.wait(RENEW_S):
            try:
                ledger.renew()
            except LeaseLost:
                return
            except LedgerError:
                continue

    thread = threads.start(renew, name="lease", died=died)
    try:
        yield
    finally:
        over.set()
        thread.join(1.0)  # not for ever: its database may be paused, and leave it without an answer


def give_back(ledger: Ledger) -> None:
    """Release the lease, if it is held, and leave no run behind that seems to run. Never raises LedgerError: a lease
    that cannot be given back runs out by itself."""
    if ledger.token is None:
        return
    ledger.outage = Outage(lambda _: None, longest_s=RELEASE_S)
    with contextlib.suppress(LedgerError):
        if ledger.run.state in ("queued", "running"):
            ledger.set_run(state="stopped")
    with contextlib.suppress(LedgerError):
        ledger.outage.through(ledger.release)


@contextlib.contextmanager
def _undisturbed() -> Iterator[None]:
    """Ignore Ctrl-C and SIGTERM, for what takes seconds at most."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, signal.SIG_IGN) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
