"""Every exception of ours arrives in another process as what it was, so that `status` can name the real reason."""

from __future__ import annotations

import importlib
import pickle
import pkgutil
import warnings
from collections.abc import Callable
from typing import Any

import pytest
from ray import cloudpickle

import jobs
import orchestrator
from jobs.artifacts.storage import StorageFull
from jobs.config import ConfigError, ConfigIssue
from jobs.core.failures import Failure, UnpicklableError, first_line, kind_of, picklable, root_cause
from jobs.data import DataError
from jobs.models.pretrained.folder import EncoderError
from jobs.models.pretrained.modules import FolderError
from jobs.workers.group import GangError
from orchestrator.cli.python.child import DriverError
from orchestrator.ledger import LeaseHeld
from orchestrator.tracking import TrackingUnavailable

MADE: dict[str, Callable[[type[Any]], BaseException]] = {
    "ConfigError": lambda _: ConfigError(
        "a.toml", "sweep", [ConfigIssue("job.task", "'x'", "must be image"), ConfigIssue("", "", "y")]
    ),
    "DataError": lambda _: DataError("is null", file="s3://key:secret@bucket/a.csv", column="text", row=7),
    "DriverError": lambda _: DriverError("the driver ended with 4", 4),
    "EncoderError": lambda _: EncoderError("m cannot be looked at (r). Give another", "r"),
    "FolderError": lambda _: FolderError("modules.json is no JSON"),
    "GangError": lambda _: GangError(Failure("hung", 1, "rank 1: TimeoutError: x", "trace")),
    "LeaseHeld": lambda _: LeaseHeld("held", holder="host [1]", since=1.5, expires=31.5, token=4),
    "RequestRefused": lambda kind: kind(404, "Request failed with status code 404: no such job"),
    "StorageFull": lambda _: StorageFull("a checkpoint", 1000, 10, "/disk"),
    "TrackingUnavailable": lambda _: TrackingUnavailable("http://host:5000", "nobody listens", "start it"),
    "UnpicklableError": lambda _: UnpicklableError("TheirError", "their text", "user_error"),
    "_RankFailed": lambda kind: kind("rank 1: x", 2),
} | dict.fromkeys(
    [
        *(
            "BadAddress",
            "BadOverride",
            "Broken",
            "CodeError",
            "ComponentError",
            "DataFault",
            "Differs",
            "GradientMismatch",
            "InfrastructureMissing",
            "LeaseLost",
            "LedgerAway",
            "LedgerDamaged",
            "LedgerError",
        ),
        *(
            "LedgerMissing",
            "LedgerUnavailable",
            "ModelError",
            "NoToken",
            "OtherCode",
            "OtherOrigin",
            "ProbeFailed",
            "RemoteError",
            "ResultsError",
            "RunError",
        ),
        *(
            "Redirected",
            "Refused",
            "ScratchMissing",
            "ServerUnavailable",
            "SweepChanged",
            "TakenOver",
            "ThreadDied",
            "TokenRefused",
        ),
        *("TokenUnusable", "Undecodable", "Unreachable", "NotFiniteError", "_Undo"),
    ],
    lambda kind: kind("what was found; what works"),
)
"""One of each class. A new class needs an entry here, and a `__reduce__` where its arguments are not its `args`."""


def classes() -> dict[str, type[BaseException]]:
    """Every exception class that a module of ours defines."""
    modules = []
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # MLflow's, about a model's signature
        for package in (jobs, orchestrator):
            for module in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
                if not module.name.endswith("__main__"):
                    modules.append(importlib.import_module(module.name))
    return {
        name: value
        for module in modules
        for name, value in vars(module).items()
        if isinstance(value, type) and issubclass(value, BaseException) and value.__module__ == module.__name__
    }


def attributes(error: BaseException) -> dict[str, Any]:
    return vars(error) | {"text": str(error), "notes": getattr(error, "__notes__", [])}


@pytest.mark.parametrize("pickler", [pickle, cloudpickle], ids=["pickle", "cloudpickle"])
def test_every_exception_of_ours_survives_pickling(pickler: Any) -> None:
    """Twice over, with a note, and as a subclass. Mutant check: DataError without `__reduce__` fails this."""
    known = classes()
    assert known.keys() == MADE.keys(), "each class needs one line in MADE, and a way to be pickled"
    for name, kind in known.items():
        error = MADE[name](kind)
        error.add_note("peak memory 5 MB")
        again = pickle.loads(pickler.dumps(pickle.loads(pickler.dumps(error))))
        assert type(again) is type(error) is kind
        assert attributes(again) == attributes(error)
        assert str(error)


class TheirError(Exception):
    """As libraries write them: pickle calls it with its text alone."""

    def __init__(self, text: str, *, line: int) -> None:
        super().__init__(f"{text} in line {line}")


class WorseError(TheirError):
    """Raises something else altogether when it is copied."""

    def __reduce__(self) -> Any:
        raise RecursionError("no copy")


def test_an_exception_that_cannot_be_sent_arrives_by_its_name_its_text_and_its_class() -> None:
    """Mutant check: `picklable` that only tries to dump fails this, for what fails is the loading."""
    here = type("MemoryHungry", (MemoryError,), {})("9 bytes")  # a class of no module
    for error, name, kind in (
        (TheirError("bad cell", line=3), "TheirError: bad cell in line 3", "user_error"),
        (WorseError("bad cell", line=4), "WorseError: bad cell in line 4", "user_error"),
        (here, "MemoryHungry: 9 bytes", "out_of_memory"),
    ):
        error.add_note("peak memory of the trial 5 MB")
        sent = pickle.loads(pickle.dumps(picklable(error)))
        assert (first_line(sent), kind_of(sent)) == (name, kind)
        failure = root_cause({1: sent})
        assert failure.message == f"rank 1: {name}; peak memory of the trial 5 MB"
        assert failure.kind == kind


def test_what_can_be_sent_is_sent_as_it_is() -> None:
    for error in (ValueError("x"), OSError(28, "No space left", "/disk"), DataError("is null", file="a", row=1)):
        assert picklable(error) is error
