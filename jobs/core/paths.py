"""Where a relative path of a job lies: in the folder where its run began, else in the current one.

A run may be continued from any folder, by a driver and ranks that were started elsewhere; who starts them names the
folder where the run began in $ORCHESTRATOR_BASE. Without it, only the current folder counts.
"""

from __future__ import annotations

import os
from pathlib import Path

from jobs.config.components import builtin_names, is_import_path

BASE = "ORCHESTRATOR_BASE"
"""Variable that names the folder where the run began."""

BUILT_IN = builtin_names("encoder")
"""Names of encoders that are built from fields of the job and have no files; any other is loaded."""


def is_built(name: str | None) -> bool:
    """Whether an encoder of this name is built from the job and has no files: a built-in, or code of the user's own."""
    return name is None or name in BUILT_IN or is_import_path(name)


DIGITS = "digits"
"""The name of data that have no file."""


def folders() -> list[Path]:
    """The folders in which a relative path is looked for, in this order. The current one is `Path()`, so that what is
    found there keeps its relative name."""
    base = os.environ.get(BASE)
    return [Path(base), Path()] if base and not _is_current(base) else [Path()]


def directory(name: str) -> Path | None:
    """The folder on this machine that `name` names, or None. Raises OSError where it may not be looked at."""
    path = expanded(name)
    for folder in [Path()] if path.is_absolute() else folders():
        if (folder / path).is_dir():
            return folder / path
    return None


def is_folder_here(name: str) -> bool:
    """Whether `directory` finds one; not where it may not be looked at, or where no path can have such a name."""
    try:
        return directory(name) is not None
    except (OSError, ValueError):
        return False


def expanded(name: str) -> Path:
    """The path with a leading `~` or `~user` as that home; as it is where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def looked_in(name: str) -> str:
    """For an error: ` in FOLDER (where the run began) or in FOLDER (the current folder)`. Nothing for a path that is
    looked for in one place only, which needs no explanation."""
    if expanded(name).is_absolute() or len(folders()) == 1:
        return ""
    return f" in {os.environ[BASE]} (where the run began) or in {_current()} (the current folder)"


def _is_current(base: str) -> bool:
    try:
        return Path(base).samefile(Path())
    except OSError:  # the one of the two that is gone is looked into in vain
        return False


def _current() -> str:
    try:
        return str(Path.cwd())
    except OSError:
        return "a folder that is gone"
