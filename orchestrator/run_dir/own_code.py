"""The user's code that a run computes with, as it lies in the run's folder or bucket."""

from __future__ import annotations

import contextlib

from jobs.config.user_code import CodeError, UserCode, of_archive
from orchestrator.run_dir.folder import RunError, RunFolder

CODE = "code.zip"


def read(folder: RunFolder) -> UserCode | None:
    """Read the code of a run; None without any. Raises RunError for an archive that is damaged, RemoteError."""
    path = folder.path / CODE
    content = (path.read_bytes() if path.exists() else None) if folder.remote is None else folder.remote.read(CODE)
    try:
        return None if content is None else of_archive(content)
    except CodeError as error:
        raise RunError(f"{folder.name}/{CODE}: {error}; bring it back, or launch the sweep again") from error


def put(folder: RunFolder, code: UserCode) -> None:
    """Have a run compute with this code from now on. Nothing is written where it is the same."""
    with contextlib.suppress(RunError):
        if (kept := read(folder)) is not None and kept.digest == code.digest:
            return
    if folder.remote is not None:
        folder.remote.put(CODE, code.archive())
        return
    aside = folder.path / f".{CODE}.new"
    aside.write_bytes(code.archive())
    aside.replace(folder.path / CODE)
