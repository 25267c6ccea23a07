"""Faults at exact moments, in processes that a test started with this folder on PYTHONPATH. Python imports this first.

$ORCHESTRATOR_FAULT names a JSON file that the test writes; nothing happens while it is not there:

    {"at": "step", "rank": 1, "step": 5, "do": "sleep", "times": 1}

at: `step` (jobs.train.step.exact_gradients is about to compute), `checkpoint` (its files are there, and the manifest
that commits them is about to be), `evaluation` (it gives ODD, one after the other, in place of the metric), `write
NAME`, `wrote NAME` or `delete NAME` (a file of a run that is being created), or the name of a method of the ledger
that is about to be called, or has been: `after NAME`. do: see `_do`. times: how often, over all processes; the file
counts down. skip: how many such moments pass first.
"""

from __future__ import annotations

import fcntl
import importlib.abc
import importlib.machinery
import importlib.util
import json
import os
import signal
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any

PLAN = os.environ.get("ORCHESTRATOR_FAULT")


def _due(**here: Any) -> dict[str, Any] | None:
    """The planned fault, if it is for this moment; it is then one less."""
    if PLAN is None or not Path(PLAN).exists():
        return None
    with Path(PLAN).open("r+") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        plan: dict[str, Any] = json.load(file)
        if plan["times"] < 1 or any(plan.get(key, value) != value for key, value in here.items()):
            return None
        skipped = plan.get("skip", 0)
        left = {"skip": skipped - 1} if skipped else {"times": plan["times"] - 1}
        file.seek(0)
        file.truncate()
        json.dump(plan | left, file)
    return None if skipped else plan


def _do(what: str, chunks: Sequence[Any] = ()) -> None:
    if what == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif what == "sleep":
        time.sleep(100_000)
    elif what == "raise":
        raise LookupError("the bug of this rank")
    elif what == "nan":
        for tensor in chunks[0].views.queries.values():
            tensor[...] = float("nan")
    elif what == "cuda out of memory":
        import torch

        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    elif what == "allocate":
        import resource

        import torch

        used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, resource.RLIM_INFINITY))
        torch.ones(2**30)
    elif what == "eat":
        eaten = bytearray()
        while True:
            eaten += b"x" * 2**26
            time.sleep(0.04)
    else:
        raise ValueError(f"unknown fault {what!r}")


def _rank() -> int:
    from torch import distributed as dist

    return dist.get_rank() if dist.is_initialized() else 0


def _step(module: ModuleType) -> None:
    real: Callable[..., Any] = module.exact_gradients

    def exact_gradients(model: Any, chunks: Sequence[Any], context: Any, **rest: Any) -> Any:
        if (plan := _due(at="step", rank=_rank(), step=context.step)) is not None:
            _do(plan["do"], chunks)
        return real(model, chunks, context, **rest)

    module.exact_gradients = exact_gradients  # type: ignore[attr-defined]


def _manifest(module: ModuleType) -> None:
    real: Callable[..., Any] = module.write

    def write(folder: Path, *, step: int, **rest: Any) -> None:
        if (plan := _due(at="checkpoint", step=step)) is not None:
            _do(plan["do"])
        real(folder, step=step, **rest)

    module.write = write  # type: ignore[attr-defined]


ODD: list[Any] = ["0.9", [0.9, 0.8], None]
"""What an evaluation gives in place of the metric."""


def _evaluate(module: ModuleType) -> None:
    real: Callable[..., dict[str, Any]] = module.evaluate

    def evaluate(*arguments: Any, final: bool, **rest: Any) -> dict[str, Any]:
        measured = real(*arguments, final=final, **rest)
        if (plan := _due(at="evaluation", rank=_rank())) is not None:
            measured["knn_accuracy"] = ODD[len(ODD) - plan["times"]]
        return measured

    module.evaluate = evaluate  # type: ignore[attr-defined]


def _ledger(module: ModuleType) -> None:
    kind = module.Ledger

    def around(name: str) -> None:
        real = getattr(kind, name)

        def method(self: Any, *arguments: Any, **keywords: Any) -> Any:
            if (plan := _due(at=name)) is not None:
                _do(plan["do"])
            result = real(self, *arguments, **keywords)
            if (plan := _due(at=f"after {name}")) is not None:
                _do(plan["do"])
            return result

        setattr(kind, name, method)

    for name in ("set_mlflow_run", "finish_attempt", "acquire", "requeue", "give_up", "ask_to_stop"):
        around(name)


def _creation(module: ModuleType) -> None:
    def wrap(kind: Any) -> None:
        put, delete = kind.put, kind.delete

        def faulty_put(self: Any, name: str, content: bytes) -> None:
            if (plan := _due(at=f"write {name}")) is not None:
                _do(plan["do"])
            put(self, name, content)
            if (plan := _due(at=f"wrote {name}")) is not None:
                _do(plan["do"])

        def faulty_delete(self: Any, name: str) -> None:
            if (plan := _due(at=f"delete {name}")) is not None:
                _do(plan["do"])
            delete(self, name)

        kind.put, kind.delete = faulty_put, faulty_delete

    wrap(module._Folder)
    wrap(module._Bucket)
    make = module.Ledger.create

    def create(*arguments: Any, **keywords: Any) -> Any:
        ledger = make(*arguments, **keywords)
        if (plan := _due(at="wrote ledger")) is not None:
            _do(plan["do"])
        return ledger

    module.Ledger.create = create


PATCHES = {
    "jobs.train.step": _step,
    "jobs.metrics.evaluate": _evaluate,
    "jobs.artifacts.manifest": _manifest,
    "orchestrator.ledger.ledger": _ledger,
    "orchestrator.run_dir.creation": _creation,
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any = None, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if name not in PATCHES:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path, target)
        if spec is not None and spec.loader is not None:
            load = spec.loader.exec_module

            def patched(module: ModuleType) -> None:
                load(module)
                PATCHES[name](module)

            spec.loader.exec_module = patched  # type: ignore[method-assign]
        return spec


if PLAN is not None:
    sys.meta_path.insert(0, _Finder())
