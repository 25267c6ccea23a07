"""Embeddings of encoders that are not trained, kept on this machine: what sixty settings judge is encoded once.

A file holds what one call has encoded, under the digest of all that decides its bits: weights, precision and how they
are read, the rows as the encoder takes them, batch by batch, threads, device, code and versions. It begins with the
sha256 of the rest, is written aside and renamed, and is read only if it is whole; so it may be deleted at any time, and
be written by several processes at once. The oldest go where all are more than $ORCHESTRATOR_EMBEDDINGS_MB (2,048; with
0 nothing is kept). They lie in $ORCHESTRATOR_SCRATCH/embeddings, or in the user's cache.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from jobs.artifacts.storage import temp_path
from jobs.config import JobConfig, canonical, components, user_code
from jobs.core import provenance
from jobs.core.collectives import agree
from jobs.data.tasks.judging import Encode
from jobs.metrics.judged import Around

BOUND_MB = 2048
"""What all files may take together, unless somebody says otherwise."""

LEFTOVER_S = 3600
"""Age from which on a file that was never renamed is that of a process that was killed."""


class Kept(Around):
    """Embeddings that are looked for among those that are kept, and kept where they are not found. identity: of the
    encoder."""

    def __init__(self, encode: Encode, identity: str) -> None:
        super().__init__(encode)
        self._identity = identity

    def __call__(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Encode rows [n, ...]: [n, D] on the CPU, on every rank."""
        named = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
        rows = len(next(iter(named.values())))
        return self.lazily(rows, lambda start, stop: {name: values[start:stop] for name, values in named.items()})

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Encode likewise what `inputs(start, stop)` gives; the ranks take what is kept only where all have it."""
        folder, bound = place(), bound_bytes()
        if not bound:
            return self._encode.lazily(rows, inputs)
        path = folder / hashlib.sha256(f"{self._identity} {_of_rows(rows, inputs)}".encode()).hexdigest()
        known = read(path)
        if all(has for (has,) in agree([int(known is not None)], self.group, what="kept embeddings")):
            assert known is not None
            return known
        encoded = self._encode.lazily(rows, inputs)
        if known is None and torch.isfinite(encoded).all():
            write(path, encoded, bound=bound)
        return encoded


def identity_of(
    model: nn.Module, job: JobConfig, *, reading: Mapping[str, object], device: torch.device | str
) -> str | None:
    """Compute the digest of all that decides an embedding but the row: sha256, in hex. None where an encoder or a
    pooling of the user's own did not come with the run, so that nothing says when its code has changed."""
    digest = hashlib.sha256()
    own = [name for name in (job.model.name, job.model.pooling) if name and components.is_import_path(name)]
    if own:
        carried = user_code.carried(components.top_module(name) for name in own)
        if carried is None:
            return None
        digest.update(carried.digest.encode())
    for name, values in sorted(model.state_dict().items()):
        whole = values.detach().cpu().contiguous()
        digest.update(f"{name} {whole.dtype} {tuple(whole.shape)}\n".encode())
        digest.update(whole.flatten().view(torch.uint8).numpy().data)
    how = job.model_dump(mode="json", include={"model": True, "evaluate": {"head", "batch"}})
    computed = {"threads": job.execution.threads, "compile": job.execution.compile, "device": str(device)}
    origin = {"code": provenance.code_digest(), "versions": provenance.versions()}
    how["model"].pop("name")  # the weights say it
    digest.update(canonical({**how, **computed, **origin, "reading": dict(reading)}).encode())
    return digest.hexdigest()


def _of_rows(rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> str:
    """Compute the digest of what the encoder is given, in order."""
    digest = hashlib.sha256(f"{rows} rows".encode())
    step = 1024
    for start in range(0, rows, step):
        for name, values in sorted(inputs(start, min(start + step, rows)).items()):
            digest.update(f"{name} {values.dtype} {tuple(values.shape)}\n".encode())
            digest.update(values.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def place() -> Path:
    """Return the folder of kept embeddings."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ORCHESTRATOR_SCRATCH") or cache / "orchestrator") / "embeddings"


def bound_bytes() -> int:
    """Return how many bytes all kept embeddings may have. Raises ValueError for what is no number."""
    given = os.environ.get("ORCHESTRATOR_EMBEDDINGS_MB", "").strip() or str(BOUND_MB)
    if not given.isdecimal():
        raise ValueError(f"ORCHESTRATOR_EMBEDDINGS_MB = {given!r} is no whole number of megabytes, such as {BOUND_MB}")
    return int(given) * 2**20


def read(path: Path) -> Tensor | None:
    """Read kept embeddings; None where there are none, or no whole ones, which are deleted."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    checksum, array = content[:32], content[32:]
    if hashlib.sha256(array).digest() != checksum:
        with contextlib.suppress(OSError):
            path.unlink()
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # the ones that were used last go last
    return torch.from_numpy(np.load(io.BytesIO(array), allow_pickle=False))


def write(path: Path, embedded: Tensor, *, bound: int) -> None:
    """Keep embeddings, and delete the oldest ones beyond the bound. What cannot be written is not kept."""
    buffer = io.BytesIO()
    np.save(buffer, embedded.numpy(), allow_pickle=False)
    array = buffer.getvalue()
    if len(array) > bound // 2:  # it would drive out all others
        return
    aside = temp_path(path.parent, path.name)
    try:
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        aside.write_bytes(hashlib.sha256(array).digest() + array)
        aside.replace(path)
    except OSError:
        with contextlib.suppress(OSError):
            aside.unlink()
        return
    _make_room(path.parent, bound=bound)


def _make_room(folder: Path, *, bound: int) -> None:
    files: list[tuple[float, int, Path]] = []
    for path in folder.iterdir():
        with contextlib.suppress(OSError):  # another process has deleted it
            about = path.stat()
            if not path.name.startswith("."):
                files.append((about.st_mtime, about.st_size, path))
            elif about.st_mtime < time.time() - LEFTOVER_S:
                path.unlink()
    total = sum(size for _, size, _ in files)
    for _, size, path in sorted(files):
        if total <= bound:
            break
        with contextlib.suppress(OSError):
            path.unlink()
        total -= size
