"""Temporary folders whose names say whose they are, so that the next session clears what a kill -9 left.

    $TMPDIR/orchestrator-PURPOSE-PID-START-MACHINE-RANDOM

START is when the process began and MACHINE this boot and pid namespace: where the same pid is another process, or
cannot be looked up, nothing is touched.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Iterator
from datetime import datetime
from math import nan
from pathlib import Path

from orchestrator.system.exit_codes import Exit
from orchestrator.system.process import machine, start_of

RAY_SESSION = "ray_session"
"""File of a temporary folder that names the folder of the Ray session that its owner has started."""

RAY_STARTS = "ray_starts"
"""The same while Ray starts, which takes seconds: the file names the folder in which its session will be."""

RAY_NAMES = "session_%Y-%m-%d_%H-%M-%S_%f"
"""How Ray names a session by the local time, before its pid."""

STARTING_S = 300.0
"""How long after that note a session of the owner's pid is taken to be the owner's: Ray gives up long before."""

USUAL = ("/tmp", "/var/tmp")  # noqa: S108 - a remedy names one of them
"""Where temporary files may lie."""

_OWNER = re.compile(
    r"\.?orchestrator-[a-z]+-(?P<pid>\d+)-(?P<start>\d+)-(?P<machine>[0-9a-f]{8})-[A-Za-z0-9_]+", re.ASCII
)


class ScratchMissing(OSError):
    """There is no place for temporary files; the text names the remedy."""

    exit_code = Exit.MISSING


@contextlib.contextmanager
def folder(purpose: str, within: Path | None = None) -> Iterator[Path]:
    """Provide a new folder while the context lasts, below $TMPDIR, or hidden in `within`; those of dead processes go.

    purpose: one word in small letters. Raises ScratchMissing.
    """
    parent = check() if within is None else within
    clear(parent)
    try:
        made = Path(tempfile.mkdtemp(prefix=_prefix(purpose, hidden=within is not None), dir=parent))
    except OSError as error:
        raise _missing(parent, error) if within is None else error from error
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)


def check() -> Path:
    """Check that the folder of temporary files is there and can be written, and return it. Raises ScratchMissing.

    Python would quietly take another one for a $TMPDIR that cannot be used; Ray, and what we start, would not.
    """
    named = os.environ.get("TMPDIR")
    try:
        parent = Path(named or tempfile.gettempdir()).absolute()
        if not parent.is_dir():
            raise NotADirectoryError("it is a file" if parent.exists() else "there is no such folder")
        with tempfile.TemporaryFile(dir=parent):
            pass
    except OSError as error:
        raise _missing(Path(named or USUAL[0]), error) from error
    return parent


def expect(scratch: Path, home: Path) -> None:
    """Note in our temporary folder that our Ray session is about to be started, in the folder `home`. Its name is not
    known yet, but ends with the pid."""
    (scratch / RAY_STARTS).write_text(str(home.absolute()))


def remember(scratch: Path, session: Path) -> None:
    """Note in our temporary folder where our Ray session keeps its files, so that they go too after a kill."""
    (scratch / RAY_SESSION).write_text(str(session.absolute()))


def clear(parent: Path) -> None:
    """Delete the temporary folders in `parent` whose owners were processes of this user and machine, and have ended."""
    with contextlib.suppress(OSError):
        for entry in list(os.scandir(parent)):
            if _is_left(entry):
                left = Path(entry.path)
                if _clear_ray_session(left):
                    shutil.rmtree(left, ignore_errors=True)


def _is_left(entry: os.DirEntry[str]) -> bool:
    owner = _OWNER.fullmatch(entry.name)
    if owner is None or owner["machine"] != _here() or owner["start"] == "0":
        return False
    try:
        if not entry.is_dir(follow_symlinks=False) or entry.stat(follow_symlinks=False).st_uid != os.geteuid():
            return False
    except OSError:  # another process has cleared it
        return False
    return start_of(int(owner["pid"])) != int(owner["start"])


def _clear_ray_session(left: Path) -> bool:
    """Delete the files of the Ray session that a dead process has started; False while some of it still runs."""
    try:
        sessions = [Path((left / RAY_SESSION).read_text().strip())]
    except (OSError, ValueError):
        sessions = _begun(left)
        if sessions and start_of(_pid(left)):  # another process has the pid by now, and they may be that one's
            return False
    return all(map(_clear_session, sessions))


def _begun(left: Path) -> list[Path]:
    """Find the session of a process that ended while Ray started, by the pid and the time in its name."""
    try:
        note = left / RAY_STARTS
        home, since = Path(note.read_text().strip()), note.stat().st_mtime
        named = list(home.glob(f"session_*_{_pid(left)}"))
    except (OSError, ValueError):
        return []
    return [path for path in named if -1 < _began(path.name) - since < STARTING_S]


def _began(session: str) -> float:
    """Read from its name when a session began, in unix seconds; nan for another name."""
    try:
        return datetime.strptime(session.rpartition("_")[0], RAY_NAMES).timestamp()  # noqa: DTZ007 - Ray's is local
    except (OverflowError, ValueError):
        return nan


def _pid(left: Path) -> int:
    owner = _OWNER.fullmatch(left.name)
    assert owner is not None
    return int(owner["pid"])


def _clear_session(session: Path) -> bool:
    """Delete a folder if it is a session of this user; False while some of it still runs."""
    try:
        owned = session.lstat().st_uid == os.geteuid() and not session.is_symlink() and session.is_dir()
    except (OSError, ValueError):
        return True
    if not owned or session.parent.name != "ray" or not re.fullmatch(r"session_[\w.-]+", session.name):
        return True
    if _is_used(session.name):
        return False
    shutil.rmtree(session, ignore_errors=True)
    return True


def _is_used(session: str) -> bool:
    import psutil

    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            if process.name() in ("raylet", "gcs_server") and any(session in part for part in process.cmdline()):
                return True
    return False


def _prefix(purpose: str, *, hidden: bool) -> str:
    process = os.getpid()
    return f"{'.' if hidden else ''}orchestrator-{purpose}-{process}-{start_of(process)}-{_here()}-"


def _here() -> str:
    return hashlib.sha256(f"{socket.gethostname()} {machine()}".encode()).hexdigest()[:8]


def _missing(parent: Path, error: OSError) -> ScratchMissing:
    named = "TMPDIR=" if os.environ.get("TMPDIR") else "the folder of temporary files, "
    usable = next((name for name in USUAL if Path(name) != parent and os.access(name, os.W_OK)), "/path/of/a/folder")
    return ScratchMissing(
        f"{named}{parent} cannot be used ({error.strerror or error}); name a folder that can be written: "
        f"export TMPDIR={usable}"
    )
