"""The manifest of a checkpoint: the sha256 of each of its files. Written last; without one a checkpoint is not there.

    checkpoints/step_000500/  model.safetensors  optimizer.pt  manifest.json

No torch: what only looks at checkpoints need not load it.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

NAME = "manifest.json"
PREFIX = "step_"


def write(folder: Path, *, step: int, extra: Mapping[str, Any]) -> None:
    """Commit the files in `folder` as the checkpoint of `step`: fsynced, hashed, and only then named."""
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    for name in files:
        fsync(folder / name)
    (folder / NAME).write_text(json.dumps({"step": step, "sha256": files, "extra": extra}, indent=1))
    fsync(folder / NAME)
    fsync(folder)


def check(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint whose files match it. Raises OSError, ValueError or KeyError where they do not."""
    try:
        manifest: dict[str, Any] = json.loads((folder / NAME).read_text("utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{NAME} is no JSON: {error}") from error
    for name, expected in manifest["sha256"].items():
        if sha256(folder / name) != expected:
            raise ValueError(f"{name} does not match its sha256")
    return manifest


def complete(folder: Path) -> list[Path]:
    """Checkpoints in `folder` that have a manifest, newest first; their files are not looked at."""
    found = [path for path in folder.glob(f"{PREFIX}*") if is_step(path.name) and (path / NAME).exists()]
    return sorted(found, key=lambda path: step_of(path.name), reverse=True)


def name_of(step: int) -> str:
    """Name of the folder of a checkpoint."""
    return f"{PREFIX}{step:06d}"


def step_of(name: str) -> int:
    """The step in the name of a checkpoint's folder."""
    return int(name.removeprefix(PREFIX))


def is_step(name: str) -> bool:
    """Whether a folder of this name is a checkpoint; one that was set aside is not."""
    return name.removeprefix(PREFIX).isdigit()


def sha256(path: Path) -> str:
    """Hash of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
