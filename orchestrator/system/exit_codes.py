"""How errors end the program: one text for a person and an exit code, never a traceback on the terminal."""

from __future__ import annotations

import errno
import os
import re
import tempfile
import traceback
from enum import IntEnum
from pathlib import Path

from orchestrator.system.addresses import address_option
from orchestrator.system.masking import masked


class Exit(IntEnum):
    """The exit codes of every verb."""

    DONE = 0
    SOME_FAILED = 1
    """Some trials failed, or `verify` found a fault."""
    BAD_USAGE = 2
    HELD = 3
    """Another driver holds the run."""
    MISSING = 4
    """Infrastructure: Ray, MLflow, the ledger, storage, disk."""
    CLUSTER_DIED = 75
    """Under the driver. The same command continues."""
    INTERRUPTED = 130
    """Stopped, and can be continued."""


class InfrastructureMissing(Exception):
    """Ray, MLflow, storage or disk is not there; the text names the remedy."""

    exit_code = Exit.MISSING

    printed = ""
    """What a library has printed meanwhile: for driver.log."""


TRACEBACK = "ORCHESTRATOR_TRACEBACK"
"""Environment variable: when it is set, what nobody expected is raised as it is."""

KEPT = "orchestrator_details"
"""Attribute of an unexpected error: the file that has its details."""

REMEDIES = {
    errno.ENOENT: "put it back, or make the folder that it belongs in",
    errno.EISDIR: "a folder lies in its place: move it away",
    errno.ENOTDIR: "a file lies where a folder should be: move it away",
    errno.EEXIST: "something else lies in its place: move it away",
    errno.ENOTEMPTY: "something else lies in its place: move it away",
    errno.EACCES: "let this user read and write it, or run as its owner",
    errno.EPERM: "let this user read and write it, or run as its owner",
    errno.EROFS: "make it writable, or copy the run to a folder that is; status, logs, compare, verify and export only "
    "read a run",
    errno.ENOSPC: "free some space there",
    errno.EDQUOT: "free some space there, or have the quota raised",
    errno.EIO: "its disk, or the connection to it, fails: copy what is left to another",
    errno.ESTALE: "its file server has lost it: mount it again",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EMFILE: "allow more open files: ulimit -n 4096",
    errno.ENFILE: "this machine has too many files open: end some programs",
    errno.ENOMEM: "end some programs, or take a machine with more memory",
}
"""What to do about an error of the system."""


PATH = re.compile(r"(?<![\w:/.~-])/\w|\b(?:sqlite|file):///")
"""Where a path of this machine begins in a text; not in the address of something else."""


def located(text: str) -> str:
    """Return a text that names paths, for whoever reads it: in a job they are the head's, and the text then says so."""
    return f"{text} (on the cluster's head)" if address_option() and PATH.search(text) else text


def ending(error: Exception) -> tuple[str, int] | None:
    """Return the text and the exit code of an error; None for one to be raised as it is: that of a reader of the output
    that has gone away, or an unexpected one while $ORCHESTRATOR_TRACEBACK is set."""
    ended = _ending(error)
    return None if ended is None else (masked(located(ended[0])), ended[1])


def _ending(error: Exception) -> tuple[str, int] | None:
    """Decide how the program ends by an error. Errors of this program have their own exit code, as `exit_code`; those
    of jobs are about what a person gave."""
    from jobs.config import ConfigError

    code = Exit.BAD_USAGE if isinstance(error, ConfigError) else getattr(error, "exit_code", None)
    if isinstance(code, Exit):
        return str(error), code
    if isinstance(error, BrokenPipeError):
        return None
    if isinstance(error, OSError):
        return of_system(error), Exit.MISSING
    return None if os.environ.get(TRACEBACK) else (_unexpected(error), Exit.MISSING)


def logged(error: BaseException) -> str:
    """Return what driver.log gets of an error that ends a session: the text that `ending` has for it and what a library
    has printed, or its traceback."""
    if not isinstance(error, Exception):
        return f"ended by {type(error).__name__}"
    ended = ending(error)
    if ended is None:
        return masked("".join(traceback.format_exception(error)).rstrip())
    return "\n".join(filter(None, [f"error: {ended[0]}", getattr(error, "printed", "")]))


def of_system(error: OSError) -> str:
    """Describe an error of the system: the path, what is the matter with it, and what to do."""
    if error.errno is None or error.strerror is None:
        return str(error) or type(error).__name__
    # Of two, the file that was to be replaced.
    paths = [os.fsdecode(name) for name in (error.filename, error.filename2) if isinstance(name, str | bytes)][-1:]
    remedy = REMEDIES.get(error.errno, "see to it, and run the same command again")
    return f"{''.join(f'{path}: ' for path in paths)}{error.strerror}; {remedy}"


def first_line(error: BaseException) -> str:
    """Return the first line of what an error says."""
    return (str(error).strip().splitlines() or ["it says no more"])[0]


def _unexpected(error: Exception) -> str:
    what = f"unexpected {type(error).__name__}: {first_line(error)}; this is a fault of the program"
    kept = vars(error)  # so that an error that is reported twice, to a log and to a terminal, has one file of details
    kept[KEPT] = kept.get(KEPT) or _kept(masked("".join(traceback.format_exception(error))))
    return f"{what}; details: {kept[KEPT] or f'none, as no folder can be written; {TRACEBACK}=1 prints them'}"


def _kept(text: str) -> Path | None:
    """Write this text to a new file below $TMPDIR, in the usual folder, or here; return its path, None without any."""
    for folder in (os.environ.get("TMPDIR"), None, "."):
        try:
            number, name = tempfile.mkstemp(prefix="orchestrator-error-", suffix=".txt", dir=folder)
            with os.fdopen(number, "w", encoding="utf-8", errors="backslashreplace") as file:
                file.write(text)
        except OSError:
            continue
        return Path(name).absolute()
    return None
