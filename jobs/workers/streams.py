"""Where a process prints to: into a file while it has a trial, C++ included."""

from __future__ import annotations

import os
import sys
from pathlib import Path

from jobs.artifacts.storage import Folder


class Streams:
    """The standard output and the standard error of this process, as they were when this was made."""

    def __init__(self) -> None:
        self._own = [os.dup(1), os.dup(2)]

    def append_to(self, path: Path) -> None:
        """Have everything that is printed from now on end up in a file. A folder in its place is set aside."""
        path.parent.mkdir(parents=True, exist_ok=True)
        kept = Folder(path.parent).quarantine(path.name) if path.is_dir() else None
        sys.stdout.flush()
        sys.stderr.flush()
        file = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        for number in (1, 2):
            os.dup2(file, number)
        os.close(file)
        if kept is not None:
            sys.stdout.write(f"{path.name} was a folder; set aside as {kept}\n")
            sys.stdout.flush()

    def restore(self) -> None:
        """Have it end up where it did before."""
        for number, stream in enumerate(self._own, 1):
            os.dup2(stream, number)
