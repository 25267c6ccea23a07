"""A thread that ends by an exception is heard of, whatever the exception."""

from __future__ import annotations

import sys
import threading

import pytest

from orchestrator import threads


class Mine(BaseException):
    """No Exception."""


@pytest.mark.parametrize("raised", [KeyError("x"), SystemExit(1), KeyboardInterrupt(), GeneratorExit(), Mine()])
def test_whatever_ends_a_thread_is_told_with_the_thread_s_name(raised: BaseException) -> None:
    """Also what rich raises on a broken pipe: Python keeps a thread's SystemExit to itself. Mutant check: catching
    Exception only fails this."""
    heard: list[BaseException] = []

    def work() -> None:
        raise raised

    thread = threads.start(work, name="ledger-writer", died=heard.append)
    timer = threads.after(0.01, work, name="grace", died=heard.append)
    thread.join(5)
    timer.join(5)
    assert heard == [raised, raised]
    assert raised.__notes__ == ["in the thread 'ledger-writer'", "in the thread 'grace'"]


def test_a_thread_that_returns_is_not_told_and_a_cancelled_timer_does_nothing() -> None:
    heard: list[BaseException] = []
    done = threading.Event()
    threads.start(done.set, name="a", died=heard.append).join(5)
    late = threads.after(60, lambda: sys.exit(1), name="b", died=heard.append)
    late.cancel()
    late.join(5)
    assert done.is_set()
    assert not heard
