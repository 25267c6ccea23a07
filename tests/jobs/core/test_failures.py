"""Which class a failure is of, and which of several ranks caused it."""

import errno
import pickle

import pytest
import torch
from ray.exceptions import ActorDiedError, ActorUnavailableError, NodeDiedError, OutOfMemoryError

from jobs.core.failures import first_line, kind_of, root_cause


class TakenOver(Exception):
    """As jobs/artifacts/trial_dir.py names it."""


def died_on_a_dead_node() -> ActorDiedError:
    error = ActorDiedError()
    error.error_msg = "The actor died unexpectedly.\n\tclass_name: Rank\nThe actor is dead because its node has died."
    return error


def preempted() -> ActorDiedError:
    error = ActorDiedError()
    error._preempted = True
    return error


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "out_of_memory"),
        (OutOfMemoryError("host"), "out_of_memory"),
        (torch.OutOfMemoryError("CUDA out of memory"), "out_of_memory"),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), "out_of_memory"),
        (ActorDiedError(), "worker_lost"),
        (ActorUnavailableError("gone", None), "worker_lost"),
        (NodeDiedError("node"), "node_lost"),
        (died_on_a_dead_node(), "node_lost"),
        (preempted(), "interrupted"),
        (TakenOver("another attempt"), "interrupted"),
        (OSError(errno.ENOSPC, "full"), "storage_full"),
        (OSError(errno.EDQUOT, "quota"), "storage_full"),
        (ConnectionRefusedError(), "infrastructure"),
        (PermissionError(errno.EACCES, "no"), "user_error"),
        (KeyError("x"), "user_error"),
    ],
)
def test_an_exception_has_a_failure_class(error: Exception, kind: str) -> None:
    assert kind_of(error) == kind


def test_memory_that_a_cpu_cannot_give_is_out_of_memory() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(2**60, dtype=torch.int8)
    assert kind_of(caught.value) == "out_of_memory"


def test_the_root_cause_is_told_from_its_echoes() -> None:
    echo = RuntimeError("[gloo/transport/tcp] Connection closed by peer")
    assert root_cause({0: echo, 1: ValueError("lr")}).message == "rank 1: ValueError: lr"
    assert root_cause({0: echo}).rank == 0
    assert root_cause({0: ValueError("then this"), 1: ActorDiedError()}).rank == 1


def test_the_peak_of_a_rank_that_ran_out_of_memory_travels_with_its_exception() -> None:
    error = MemoryError("no more")
    error.add_note("peak memory of the trial 3,412 MB")
    found = root_cause({1: pickle.loads(pickle.dumps(error))})
    assert found.message == "rank 1: MemoryError: no more; peak memory of the trial 3,412 MB"


def test_of_ray_s_many_lines_about_a_death_the_one_that_says_why_is_shown() -> None:
    assert "node has died" in first_line(died_on_a_dead_node())
    assert first_line(ValueError()) == "ValueError"
