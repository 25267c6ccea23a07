"""A thread that ends by an exception is heard of, whatever the exception."""

from __future__ import annotations

import math
import sys
import threading
import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.system import threads


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


@given(st.floats(min_value=threading.TIMEOUT_MAX / 2, allow_nan=False) | st.just(math.inf))
def test_no_wait_is_too_long_for_a_timer(seconds: float) -> None:
    """Mutant check: `Timer` by itself dies of OverflowError for some of these, and nobody hears of it."""
    heard: list[BaseException] = []
    timer = threads.after(seconds, lambda: heard.append(KeyError()), name="grace", died=heard.append)
    time.sleep(0.002)
    assert timer.is_alive()
    timer.cancel()
    timer.join(5)
    assert not timer.is_alive()
    assert not heard


@pytest.mark.parametrize("error", [KeyError("x"), OSError(5, "broken"), SystemExit(1), KeyboardInterrupt(), Mine()])
def test_what_ended_a_thread_is_raised_as_an_error(error: BaseException) -> None:
    """An error as it is; what would end the main thread in silence, by another that says so."""
    raised = threads.raisable(error)
    assert isinstance(raised, Exception)
    assert raised is error or (type(error).__name__ in str(raised) and raised.__cause__ is error)
