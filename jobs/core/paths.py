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
    """Return whether an encoder of this name is built from the job and has no files: a built-in, or the user's code."""
    return name is None or name in BUILT_IN or is_import_path(name)


DIGITS = "digits"
"""The name of data that have no file."""


def folders() -> list[Path]:
    """List the folders to search for a relative path, in this order. The current folder is `Path()`, so that what is
    found there keeps its relative name."""
    base = os.environ.get(BASE)
    return [Path(base), Path()] if base and not _is_current(base) else [Path()]


def directory(name: str) -> Path | None:
    """Find the folder on this machine that `name` names, or None. Raises OSError where it may not be looked at."""
    path = expanded(name)
    for folder in [Path()] if path.is_absolute() else folders():
        if (folder / path).is_dir():
            return folder / path
    return None


def is_folder_here(name: str) -> bool:
    """Return whether `directory` finds a folder; False if it may not be looked at, or if no path can have such a
    name."""
    try:
        return directory(name) is not None
    except (OSError, ValueError):
        return False


def expanded(name: str) -> Path:
    """Expand a leading `~` or `~user` of a path to that home; leave it as it is where there is no such user."""
    try:
        return Path(name).expanduser()
    except RuntimeError:
        return Path(name)


def looked_in(name: str) -> str:
    """Name the folders searched, for an error: ` in FOLDER (where the run began) or in FOLDER (the current folder)`.
    Nothing for a path that is looked for in one folder only, which needs no explanation."""
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
