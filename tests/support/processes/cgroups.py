"""Real memory cgroups for tests: a limit that Linux holds a process to."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from jobs.workers import memory

MB = 2**20

LIMITS = ("memory.max", "memory.limit_in_bytes")


class Cgroup:
    """A cgroup with a limit, below this process's own."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def take(self, *pids: int) -> None:
        """Move processes into it. What they hold already stays counted where they were."""
        for pid in pids:
            (self.folder / "cgroup.procs").write_text(str(pid))


@contextlib.contextmanager
def limited(limit: int) -> Iterator[Cgroup]:
    """A cgroup that holds `limit` bytes at most. Skips the test where this process may not make one."""
    own = memory.read().own
    if own is None:
        pytest.skip("a memory cgroup cannot be made: this process is in none that counts")
    folder = Path(own).parent / f"orchestrator-test-{os.getpid()}-{time.monotonic_ns()}"
    try:
        folder.mkdir()
    except OSError as error:
        pytest.skip(f"a memory cgroup cannot be made: {error}")
    try:
        try:
            (limit_file,) = [folder / name for name in LIMITS if (folder / name).exists()]
            limit_file.write_text(str(limit))
        except (OSError, ValueError) as error:
            pytest.skip(f"a memory cgroup cannot be given a limit below {own}: {error}")
        yield Cgroup(folder)
    finally:
        deadline = time.monotonic() + 10
        while folder.exists() and time.monotonic() < deadline:  # until the last process in it has ended
            with contextlib.suppress(OSError):
                folder.rmdir()
            time.sleep(0.05)
