"""Checkpoints that are whole or absent: written aside, fsynced, committed, and verified by hash when read.

    checkpoints/step_000500/  model.safetensors  optimizer.pt  manifest.json
    checkpoints/step_000500.bad-1/                                           failed its hashes; kept for a person

A `snapshot` is taken between two steps; a `Writer` puts it where it belongs (storage.py) while training goes on. No
pickle is ever run: weights are safetensors, optimizer state is read with `weights_only=True`.
"""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar, cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.optim.optimizer import StateDict

from jobs.artifacts import manifest
from jobs.artifacts.storage import Folder, Storage, StorageFull, disk_full_guard, temp_path
from jobs.core.failures import words_of

OVERHEAD = 65_536
OVERHEAD_OF_A_TENSOR = 512
"""Bytes of names, headers and block ends beside the values: about so many, and rather too many."""

T = TypeVar("T")

LIBRARIES = (RuntimeError, pickle.UnpicklingError, SafetensorError)
"""What torch and safetensors raise for a file that is none of theirs."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a training at one step: to be written, or read from files that passed their hashes."""

    step: int
    model: dict[str, Tensor]
    optimizer: StateDict
    extra: manifest.Extra
    """The manifest's own values: seconds trained so far and the like; see `manifest.check`."""

    @property
    def bytes(self) -> int:
        """About how many bytes its files take."""
        return OVERHEAD + sum(tensor.nbytes + OVERHEAD_OF_A_TENSOR for tensor in _tensors([self.model, self.optimizer]))


def snapshot(*, step: int, model: dict[str, Tensor], optimizer: StateDict, extra: manifest.Extra) -> Checkpoint:
    """Copy the state as it is now to the CPU, so that nothing that training changes later is shared."""
    return Checkpoint(step, _copied(model), _copied(optimizer), _copied(extra))


def write(storage: Path | Storage, taken: Checkpoint, *, keep: int, permit: Callable[[], None] = lambda: None) -> None:
    """Commit `taken` as step_NNNNNN of `storage`, then drop all but the newest `keep`.

    `permit` is called just before, and may raise. Raises StorageFull when the disk is full. In both cases the older
    checkpoints are untouched, and nothing half written is left.
    """
    storage, name = _at(storage), manifest.name_of(taken.step)
    aside = temp_path(storage.scratch, name)

    def undo() -> None:
        shutil.rmtree(aside, ignore_errors=True)

    with disk_full_guard(f"checkpoint of step {taken.step}", needed=taken.bytes, folder=storage.scratch, undo=undo):
        aside.mkdir(parents=True)
        save_file({key: tensor.contiguous() for key, tensor in taken.model.items()}, aside / manifest.MODEL)
        torch.save(taken.optimizer, aside / manifest.OPTIMIZER)
        manifest.write(aside, step=taken.step, extra=taken.extra)
        storage.commit(aside, name, permit=permit)
    for old in storage.committed()[keep:]:
        storage.remove(old)


def save(
    storage: Path | Storage,
    *,
    step: int,
    model: dict[str, Tensor],
    optimizer: StateDict,
    extra: manifest.Extra,
    keep: int,
) -> None:
    """Take a snapshot and commit it, here and now. Raises as `write` does."""
    write(storage, snapshot(step=step, model=model, optimizer=optimizer, extra=extra), keep=keep)


def newest(storage: Path | Storage) -> tuple[Checkpoint | None, list[str]]:
    """Return the newest checkpoint that is as it was saved, and a sentence for each that was set aside before it.

    Raises ConnectionError or StorageFull where files could not be read: that says nothing about them.
    """
    storage, remarks = _at(storage), list[str]()
    for name in storage.committed():
        try:
            with storage.fetch(name) as path:
                return _read(path, manifest.step_of(name)), remarks
        except (ConnectionError, StorageFull):
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, *LIBRARIES) as error:
            remarks.append(f"checkpoint {name} is damaged ({words_of(error)}); set aside as {storage.quarantine(name)}")
    return None, remarks


def weights(
    storage: Path | Storage, *, step: int | None = None
) -> tuple[int, dict[str, Tensor], manifest.Extra, list[str]]:
    """Read the model of the newest checkpoint, or of the one at `step`, that matches its manifest. Returns the step,
    the model, the manifest's own values, and what was wrong with newer checkpoints.

    Changes nothing, even while a training is at work. Raises ValueError if there is none; ConnectionError or
    StorageFull as `newest` does.
    """
    storage, remarks = _at(storage), list[str]()
    there = storage.committed()
    for name in there if step is None else [name for name in there if manifest.step_of(name) == step]:
        try:
            with storage.fetch(name) as path:
                content = manifest.check(path, step=manifest.step_of(name))
                return content.step, load_file(path / manifest.MODEL), content.extra, remarks
        except (ConnectionError, StorageFull):
            raise
        except (OSError, ValueError, LookupError, TypeError, AttributeError, *LIBRARIES) as error:
            remarks.append(f"checkpoint {name} is damaged ({words_of(error)})")
    if remarks:
        raise ValueError(f"no sound checkpoint: {'; '.join(remarks)}")
    known = ", ".join(str(manifest.step_of(name)) for name in there)
    raise ValueError(f"no checkpoint of step {step}, only of {known}" if known else "no checkpoint yet")


def steps(storage: Path | Storage) -> list[int]:
    """List the steps of the checkpoints in `storage`, newest first; their files are not looked at."""
    return [manifest.step_of(name) for name in _at(storage).committed()]


class Writer:
    """One background thread that does one piece of work at a time. After an error it does no more."""

    def __init__(self) -> None:
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="writer")
        self._work: Future[None] | None = None

    def submit(self, work: Callable[[], None]) -> None:
        """Do `work` in the background, once what was submitted before is done. Raises as `wait` does."""
        self.wait()
        self._work = self._thread.submit(work)

    def raise_if_failed(self) -> None:
        """Raise the error of the submitted work, if it has failed; again at every call."""
        if self._work is not None and self._work.done():
            self._work.result()

    def wait(self) -> None:
        """Wait until all that was submitted is done. Raises its error, again at every call."""
        if self._work is not None:
            self._work.result()


def _at(storage: Path | Storage) -> Storage:
    return Folder(storage) if isinstance(storage, Path) else storage


def _copied(state: T) -> T:
    copy: object = state
    if isinstance(state, Tensor):
        copy = state.detach().to("cpu", copy=True)
    elif isinstance(state, dict):
        copy = {key: _copied(value) for key, value in state.items()}
    elif isinstance(state, list | tuple):
        copy = type(state)(_copied(value) for value in state)
    return cast("T", copy)  # of the same type, entry by entry


def _tensors(state: object) -> Iterator[Tensor]:
    if isinstance(state, Tensor):
        yield state
    elif isinstance(state, dict | list | tuple):
        for value in state.values() if isinstance(state, dict) else state:
            yield from _tensors(value)


def _read(path: Path, step: int) -> Checkpoint:
    content = manifest.check(path, step=step)
    return Checkpoint(
        step=content.step,
        model=load_file(path / manifest.MODEL),
        optimizer=torch.load(path / manifest.OPTIMIZER, weights_only=True, map_location="cpu"),
        extra=content.extra,
    )
