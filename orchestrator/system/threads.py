"""Threads of a session: none of them ends by an exception that nobody hears of."""

from __future__ import annotations

import threading
from collections.abc import Callable
from threading import Thread, Timer


class ThreadDied(Exception):
    """A thread ended by what is no error of a program: SystemExit, say. Its cause is that, its text tells both."""


def start(work: Callable[[], object], *, name: str, died: Callable[[BaseException], object]) -> Thread:
    """Run `work` in a daemon thread. Whatever ends it, SystemExit among that, goes to `died`, in that thread and with
    the thread's name as a note; what `died` raises in turn is printed as of any other thread."""
    thread = Thread(target=_run, args=(work, name, died), name=name, daemon=True)
    thread.start()
    return thread


def after(seconds: float, work: Callable[[], object], *, name: str, died: Callable[[BaseException], object]) -> Timer:
    """Run `work` as `start` does, but `seconds` from now, unless the timer is cancelled before. More than a thread can
    wait, infinity included, means as long as it can: centuries."""
    timer = Timer(min(seconds, threading.TIMEOUT_MAX), _run, (work, name, died))
    timer.name, timer.daemon = name, True
    timer.start()
    return timer


def raisable(error: BaseException) -> Exception:
    """Return what ended a thread, for the main thread to raise. SystemExit and the like are wrapped, as they would end
    the program there without a word and with an exit code of their own."""
    if isinstance(error, Exception):
        return error
    reason = ", ".join([f"{type(error).__name__}: {error}".rstrip(": "), *getattr(error, "__notes__", [])])
    died = ThreadDied(f"a thread of the session ended by {reason}")
    died.__cause__ = error
    return died


def _run(work: Callable[[], object], name: str, died: Callable[[BaseException], object]) -> None:
    try:
        work()
    except BaseException as error:  # noqa: BLE001 - a library may raise even SystemExit, which Python keeps to itself
        error.add_note(f"in the thread {name!r}")
        died(error)
