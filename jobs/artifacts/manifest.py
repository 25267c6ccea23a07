"""The manifest of a checkpoint: the sha256 of each of its files. Written last; without one a checkpoint is not there.

    checkpoints/step_000500/  model.safetensors  optimizer.pt  manifest.json

It holds a digest of itself, so that a bit of it that changed is noticed like one of the files. No torch: what only
looks at checkpoints need not load it.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final, NotRequired, TypedDict, cast

NAME = "manifest.json"
PREFIX = "step_"

MODEL, OPTIMIZER = FILES = ("model.safetensors", "optimizer.pt")
"""What every checkpoint has."""

KEYS = ("step", "sha256", "extra")
"""All that a manifest of a version without digests holds."""

DIGEST: Final = "digest"


class Extra(TypedDict):
    """What a manifest holds of the training, beside the files."""

    seconds: float
    """Trained so far."""

    untrained: dict[str, float]
    """Metrics of the encoder as it was before the first step."""

    points: NotRequired[int]
    """How many there are up to the step; not in manifests of older versions."""

    reading: NotRequired[dict[str, object]]
    """How the encoder takes and pools its inputs."""

    world: NotRequired[int]
    attempt: NotRequired[Sequence[int] | None]
    """World size and attempt that have written it, for whoever looks for a fault."""


@dataclass(frozen=True)
class Manifest:
    """The content of a manifest whose files match it."""

    step: int
    sha256: dict[str, str]
    """By file."""

    extra: Extra


def write(folder: Path, *, step: int, extra: Extra) -> None:
    """Commit the files in `folder` as the checkpoint of `step`: fsynced, hashed, and only then named.

    extra: `seconds` trained so far, `untrained` metrics, and the number of `points` up to `step`; see `check`.
    """
    files = {path.name: sha256(path) for path in sorted(folder.iterdir())}
    for name in files:
        fsync(folder / name)
    text = json.dumps(sealed({"step": step, "sha256": files, "extra": extra}), indent=1)
    (folder / NAME).write_text(text, "utf-8")
    fsync(folder / NAME)
    fsync(folder)


def check(folder: Path, *, step: int) -> Manifest:
    """Read the manifest of the checkpoint of `step` in `folder`, and check that its files match it.

    Raises OSError or ValueError where they do not, where it is of another step or not as it was written, and where it
    lacks what training cannot go on without: `seconds` and `untrained`. Manifests of older versions have no `points`.
    """
    try:
        text = (folder / NAME).read_text("utf-8")
        content = intact(json.loads(text), NAME, known=KEYS)
    except RecursionError as error:
        raise ValueError(f"{NAME} is nested too deeply") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"{NAME} is no JSON: {error}") from error
    files, extra = content.get("sha256"), content.get("extra")
    if fault := _fault(content.get("step"), files, extra, step):
        raise ValueError(f"{NAME} {fault}")
    checked = Manifest(step, cast("dict[str, str]", files), cast("Extra", extra))  # `_fault` has seen to both
    for name, expected in checked.sha256.items():
        if sha256(folder / name) != expected:
            raise ValueError(f"{name} does not match its sha256")
    return checked


def _fault(named: object, files: object, extra: object, step: int) -> str | None:
    """Return what is wrong with a manifest's content, or None. named: the step in it."""
    missing = [name for name in FILES if isinstance(files, dict) and name not in files]
    if not isinstance(extra, dict):
        return "is damaged: its extra is no object"
    rules = {
        "is damaged: its step is no whole number": type(named) is int,
        f"is of step {named}": named == step,
        "is damaged: its sha256 is no object": isinstance(files, dict),
        f"is damaged: it names no sha256 of {', '.join(missing)}": not missing,
        "is damaged: it names a file elsewhere": isinstance(files, dict)
        and all(Path(name).name == name for name in files),
        "is damaged: its seconds is no number": is_seconds(extra.get("seconds")),
        "is damaged: its untrained is no object of numbers": is_numbers(extra.get("untrained")),
        "is damaged: its points is no whole number": is_count(extra.get("points", 0)),
        "is damaged: its reading is no object": isinstance(extra.get("reading", {}), dict),
    }
    return next((what for what, holds in rules.items() if not holds), None)


def is_number(value: object) -> bool:
    """Return whether a JSON value is a number to read as a float: a float, or an integer below 2**63 in magnitude."""
    return isinstance(value, float) or (type(value) is int and abs(value) < 2**63)


def is_seconds(value: object) -> bool:
    """Return whether a JSON value is a finite number, 0 or more."""
    return isinstance(value, int | float) and is_number(value) and 0 <= value < math.inf


def is_numbers(value: object) -> bool:
    """Return whether a JSON value is an object of numbers."""
    return isinstance(value, dict) and all(map(is_number, value.values()))


def is_count(value: object) -> bool:
    """Return whether a JSON value is a whole number, 0 or more, that a database can store."""
    return type(value) is int and 0 <= value < 2**63


def sealed(content: Mapping[str, object]) -> dict[str, object]:
    """Return a copy of a JSON object with the digest of its content."""
    return {**content, DIGEST: digest_of(content)}


def digest_of(content: Mapping[str, object]) -> str:
    """Compute the digest of a JSON object, whatever the order of its keys, without the digest that it may hold."""
    text = json.dumps({key: value for key, value in content.items() if key != DIGEST}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def intact(content: object, name: str, *, known: Collection[str]) -> dict[str, object]:
    """Return the content of the file `name`, if it is as `sealed` made it. Raises ValueError for any other.

    known: the keys of versions without digests. An object with only these is accepted; with other keys, it may be an
    object with a misspelt `digest`.
    """
    if not isinstance(content, dict):
        raise ValueError(f"{name} is no JSON object")  # noqa: TRY004 - it is the file's content that is wrong
    if DIGEST in content:
        if sealed(content) != content:
            raise ValueError(f"{name} does not match its own digest")
    elif unknown := [key for key in content if key not in known]:
        raise ValueError(f"{name} has neither a digest nor only keys of versions without one: {unknown[0][:40]!r}")
    return content


def complete(folder: Path) -> list[Path]:
    """List the checkpoints in `folder` that have a manifest, newest first; their files are not looked at."""
    folders = [path for path in folder.glob(f"{PREFIX}*") if is_step(path.name) and (path / NAME).exists()]
    return sorted(folders, key=lambda path: step_of(path.name), reverse=True)


def name_of(step: int) -> str:
    """Return the name of a checkpoint's folder."""
    return f"{PREFIX}{step:06d}"


def step_of(name: str) -> int:
    """Parse the step from the name of a checkpoint's folder."""
    return int(name.removeprefix(PREFIX))


def is_step(name: str) -> bool:
    """Return whether a folder of this name is a checkpoint; not if it was set aside, or if a person named it."""
    digits = name.removeprefix(PREFIX)
    return digits.isascii() and digits.isdigit() and len(digits) < 19 and name == name_of(int(digits))


def sha256(path: Path) -> str:
    """Compute the SHA-256 of a file's content, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fsync(path: Path) -> None:
    """Wait until a file, or the names in a folder, are on disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
