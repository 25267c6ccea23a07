"""Checkpoints that are whole or absent: written aside, fsynced, renamed, and verified by hash when read.

    checkpoints/step_000500/  model.safetensors  optimizer.pt  manifest.json
    checkpoints/step_000500.bad-1/                                           failed its hashes; kept for a person

No pickle is ever run: weights are safetensors, optimizer state is read with `weights_only=True`.
"""

from __future__ import annotations

import os
import pickle
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jobs import manifest


@dataclass(frozen=True)
class Checkpoint:
    """What was read from a checkpoint that passed its hashes."""

    step: int
    model: dict[str, Tensor]
    optimizer: dict[str, Any]
    extra: dict[str, Any]
    """The manifest's own values: seconds trained so far and the like."""


def save(
    folder: Path, *, step: int, model: dict[str, Tensor], optimizer: dict[str, Any], extra: dict[str, Any], keep: int
) -> Path:
    """Write `folder`/step_NNNNNN in one piece, then drop all but the newest `keep`. Returns its path.

    Raises OSError when the disk is full; the older checkpoints are then untouched.
    """
    final = folder / manifest.name_of(step)
    aside = folder / f".{final.name}.{os.getpid()}"
    shutil.rmtree(aside, ignore_errors=True)
    aside.mkdir(parents=True)
    try:
        # A tensor that is stored twice (tied weights) must be written twice: safetensors refuses shared storage.
        save_file({name: t.detach().cpu().clone() for name, t in model.items()}, aside / "model.safetensors")
        torch.save(optimizer, aside / "optimizer.pt")
        manifest.write(aside, step=step, extra=extra)
        if final.exists():
            shutil.rmtree(final)
        aside.rename(final)
        manifest.fsync(folder)
    except OSError:
        shutil.rmtree(aside, ignore_errors=True)
        raise
    for old in manifest.complete(folder)[keep:]:
        shutil.rmtree(old, ignore_errors=True)
    return final


def newest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint whose files match its manifest, and a sentence for each that was set aside before it."""
    remarks: list[str] = []
    for path in manifest.complete(folder):
        try:
            return _read(path), remarks
        except (OSError, ValueError, KeyError, RuntimeError, pickle.UnpicklingError, SafetensorError) as error:
            bad = next(p for n in range(1, 1000) if not (p := path.with_name(f"{path.name}.bad-{n}")).exists())
            path.rename(bad)
            remarks.append(f"checkpoint {path.name} is damaged ({_first_line(error)}); set aside as {bad.name}")
    return None, remarks


def steps(folder: Path) -> list[int]:
    """Steps of the checkpoints in `folder`, newest first; their files are not looked at."""
    return [manifest.step_of(path.name) for path in manifest.complete(folder)]


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def _read(path: Path) -> Checkpoint:
    found = manifest.check(path)
    return Checkpoint(
        step=found["step"],
        model=load_file(path / "model.safetensors"),
        optimizer=torch.load(path / "optimizer.pt", weights_only=True, map_location="cpu"),
        extra=found["extra"],
    )
