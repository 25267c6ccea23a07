"""Threads of a session: none of them ends by an exception that nobody hears of."""

from __future__ import annotations

from collections.abc import Callable
from threading import Thread, Timer


def start(work: Callable[[], object], *, name: str, died: Callable[[BaseException], object]) -> Thread:
    """Run `work` in a daemon thread. Whatever ends it, SystemExit among that, goes to `died`, in that thread and with
    the thread's name as a note; what `died` raises in turn is printed as of any other thread."""
    thread = Thread(target=_run, args=(work, name, died), name=name, daemon=True)
    thread.start()
    return thread


def after(seconds: float, work: Callable[[], object], *, name: str, died: Callable[[BaseException], object]) -> Timer:
    """The same, but `seconds` from now, unless the timer is cancelled before."""
    timer = Timer(seconds, _run, (work, name, died))
    timer.name, timer.daemon = name, True
    timer.start()
    return timer


def _run(work: Callable[[], object], name: str, died: Callable[[BaseException], object]) -> None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - a library may raise even SystemExit, which Python keeps to itself
        error.add_note(f"in the thread {name!r}")
        died(error)
