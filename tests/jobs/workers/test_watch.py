"""Which rank hangs: the one that keeps the others waiting, not one that waits."""

import threading
import time
from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.workers.heartbeat import IDLE, LOADING, Heartbeat, PhaseMonitor, find_hung_rank, stacks


def pulse(phase: str = "step 3", seconds: float = 0.0, *, waits: bool = False) -> Heartbeat:
    return Heartbeat(phase, seconds, waits, "File x.py, line 1\n")


def judge(pulses: dict[int, Heartbeat], silent: dict[int, float] | None = None) -> tuple[int, str] | None:
    return find_hung_rank(pulses, silent or dict.fromkeys(pulses, 0.0), deadline_s=10, loading_s=100)


def test_the_rank_that_is_not_waiting_is_to_blame() -> None:
    """Mutant check: blaming the first one that is late names rank 0."""
    found = judge({0: pulse(seconds=11, waits=True), 1: pulse(seconds=11)})
    assert found == (1, "step 3 has taken 11 s")


def test_a_rank_that_does_not_even_answer_is_to_blame_first() -> None:
    found = judge({0: pulse(seconds=12), 1: pulse(seconds=1)}, {0: 0.0, 1: 10.5})
    assert found == (1, "step 3 has taken 12 s and does not even answer")


def test_when_all_wait_for_each_other_the_first_is_named_and_it_is_said() -> None:
    assert judge({0: pulse(seconds=11, waits=True), 1: pulse(seconds=11, waits=True)}) == (
        0,
        "step 3 has taken 11 s in a collective",
    )


def test_loading_may_take_longer_and_idleness_for_ever() -> None:
    assert judge({0: pulse(LOADING, 99), 1: pulse(IDLE, 1e6)}) is None
    assert judge({0: pulse(LOADING, 101), 1: pulse(IDLE, 1e6)}) is not None


@given(st.lists(st.floats(0, 9.9), min_size=1, max_size=8), st.lists(st.booleans(), min_size=8, max_size=8))
def test_nobody_hangs_within_the_deadline(seconds: list[float], waits: list[bool]) -> None:
    assert (
        judge({rank: pulse(seconds=s, waits=w) for rank, (s, w) in enumerate(zip(seconds, waits, strict=False))})
        is None
    )


@pytest.mark.parametrize("phase", ["step 7", "evaluation"])
def test_another_thread_sees_what_is_done_and_where(phase: str) -> None:
    work, stop = PhaseMonitor(), threading.Event()

    def in_a_function_of_mine(wait: Callable[[], bool]) -> None:
        work.enter(phase)
        wait()

    thread = threading.Thread(target=in_a_function_of_mine, args=(stop.wait,))
    thread.start()
    time.sleep(0.2)
    seen = work.look(12.0)
    stop.set()
    thread.join()
    assert (seen.phase, seen.peak_mb, seen.waits) == (phase, 12.0, False)
    assert 0.1 < seen.seconds < 5
    assert "in_a_function_of_mine" in seen.stack
    assert f"rank 1, {phase} for 0 s" in stacks({1: seen})
