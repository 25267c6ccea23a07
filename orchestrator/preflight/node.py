"""What one node tells of itself; runs there. Imports nothing heavy."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NotRequired, TypedDict

from orchestrator.run_dir.bucket import Remote, RemoteError

LOOK_S = 90.0
"""How long `python -m jobs.workers.node_info` may take: it imports torch, over a network file system perhaps."""


@dataclass(frozen=True)
class StorageMarker:
    """Where files of a run lie, and a file that the driver has put there."""

    name: str
    content: str
    folder: str | None = None
    uri: str | None = None


@dataclass(frozen=True)
class Questions:
    """What a node is asked."""

    marker: StorageMarker | None
    scratch: str
    sources: Sequence[str] = ()
    """Of data, as the sweep's jobs name them."""

    gpus: bool = False
    ranks: bool = True
    """Whether trials may run there."""


class GpuInfo(TypedDict):
    """What torch sees of a node's GPUs."""

    names: list[str]
    cuda: str | None
    """The version that torch was built for; None: for CPUs only."""

    error: str | None


class NodeInfo(TypedDict):
    """What `python -m jobs.workers.node_info` prints."""

    versions: dict[str, str]
    gpus: GpuInfo | None
    missing: NotRequired[dict[str, str]]
    """Sources of data that are not there, each with why."""


@dataclass(frozen=True)
class Facts:
    """What it answers."""

    host: str
    code: str
    """Hash of the code of this package that runs there."""

    storage: str | None
    """What went wrong with the files of a run, or None."""

    free: dict[str, int] = field(default_factory=dict)
    """Free bytes, by folder."""

    shared_memory: int | None = None
    """Bytes of /dev/shm; None where there is none."""

    looked: NodeInfo | None = None
    """What `python -m jobs.workers.node_info` printed."""

    trouble: str = ""
    """Why it printed nothing."""


def facts(asked: Questions) -> Facts:
    """Collect the answers of this node."""
    looked, trouble = _looked(asked) if asked.ranks else (None, "")
    return Facts(
        host=socket.gethostname(),
        code=code(),
        storage=None if asked.marker is None else storage(asked.marker),
        free={folder: _free(Path(folder)) for folder in _folders(asked)},
        shared_memory=shutil.disk_usage("/dev/shm").total if Path("/dev/shm").is_dir() else None,  # noqa: S108
        looked=looked,
        trouble=trouble,
    )


def code() -> str:
    """Hash the source of this package, as it would be imported here."""
    top = Path(__file__).parents[2]
    digest = hashlib.sha256()
    for path in sorted(path for name in ("jobs", "orchestrator") for path in (top / name).rglob("*.py")):
        digest.update(f"{path.relative_to(top).as_posix()}\0".encode())
        digest.update(path.read_bytes())
    return digest.hexdigest()[:12]


def storage(marker: StorageMarker) -> str | None:
    """Read what the driver wrote, write a file, replace it, delete it. Returns what went wrong, or None."""
    try:
        if marker.uri is not None:
            return _bucket(Remote(marker.uri), marker)
        return _folder(Path(marker.folder or "."), marker)
    except RemoteError as error:
        return str(error)
    except OSError as error:
        return f"{type(error).__name__}: {error}"


def _folder(folder: Path, marker: StorageMarker) -> str | None:
    seen = folder / marker.name
    if not seen.exists() or seen.read_text() != marker.content:
        return f"{folder} is not the folder that the driver writes to"
    final, aside = (folder / f"{marker.name}-{uuid.uuid4().hex[:8]}{end}" for end in ("", ".aside"))
    try:
        for text in ("one", "two"):
            with aside.open("w") as file:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
            aside.replace(final)
        return None if final.read_text() == "two" else f"a file of {folder} that was replaced is the old one"
    finally:
        for path in (final, aside):
            path.unlink(missing_ok=True)


def _bucket(remote: Remote, marker: StorageMarker) -> str | None:
    if remote.read(marker.name) != marker.content.encode():
        return f"{remote.uri} has not what the driver wrote there"
    name = f"{marker.name}-{uuid.uuid4().hex[:8]}"
    try:
        for text in (b"one", b"two"):
            remote.put(name, text)
        return None if remote.read(name) == b"two" else f"a file of {remote.uri} that was replaced is the old one"
    finally:
        remote.delete(name)


def _folders(asked: Questions) -> list[str]:
    folder = asked.marker.folder if asked.marker is not None else None
    return list(dict.fromkeys([folder or asked.scratch, tempfile.gettempdir()]))


def _free(folder: Path) -> int:
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free


def _looked(asked: Questions) -> tuple[NodeInfo | None, str]:
    command = [sys.executable, "-m", "jobs.workers.node_info", *(["--gpus"] if asked.gpus else []), *asked.sources]
    # A Ray worker that was given no GPU may have all hidden; the code is the one that this process has imported.
    hidden = ("CUDA_VISIBLE_DEVICES", "PYTHONPATH")
    env = {name: value for name, value in os.environ.items() if name not in hidden}
    env["PYTHONPATH"] = os.pathsep.join([str(Path(__file__).parents[2]), *filter(None, [os.environ.get("PYTHONPATH")])])
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=LOOK_S, env=env)
    except subprocess.TimeoutExpired:
        return None, f"`python -m jobs.workers.node_info` took longer than {LOOK_S:.0f} s"
    if done.returncode != 0:
        return None, (done.stderr.strip().splitlines() or ["it does not say why"])[-1]
    answer: NodeInfo = json.loads(done.stdout.splitlines()[-1])
    return answer, ""
