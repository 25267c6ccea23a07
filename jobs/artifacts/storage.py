"""Where the files of a trial lie: a local folder, or a bucket and a local folder to work in. Knows no torch.

A file is whole or absent. So is a folder of files (a checkpoint): it is there once its manifest is, which comes last
and goes first.

    Folder    written aside, fsynced, renamed
    Bucket    nothing can be renamed there: the files are uploaded, the manifest last, and that commits them

Whatever cannot be written because the disk is full raises StorageFull, which says how much.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import os
import shutil
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from jobs.artifacts import manifest


class StorageFull(OSError):
    """A file system has no space for what must be written. Older files are as they were."""

    def __init__(self, what: str, needed: int, free: int, folder: str) -> None:
        self.facts = (what, needed, free, folder)
        hint = "" if free < needed else "; the limit may be a quota or the number of files"
        text = f"{what} needs {needed:,} bytes in {folder}, {free:,} are free{hint}"
        super().__init__(errno.ENOSPC, text, folder)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), self.facts, self.__dict__


class Storage(Protocol):
    """A place for the files of a trial, or for its checkpoints. One call at a time for one name."""

    @property
    def scratch(self) -> Path:
        """A local folder to write in."""

    def inside(self, name: str) -> Storage:
        """Return the storage of the subfolder `name`."""

    def read(self, name: str) -> str | None:
        """Read the text of a small file; None if it is not there."""

    def read_bytes(self, name: str) -> bytes | None:
        """Read the content of a file; None if it is not there."""

    def write(self, name: str, content: str | bytes) -> None:
        """Replace a small file in one piece. Raises StorageFull."""

    def publish(self, *names: str) -> None:
        """Make files of `scratch`, as they are now, those that count; what is not there is left out."""

    def download(self, name: str) -> None:
        """Make a file of `scratch` the one that counts: replaced, or removed where there is none."""

    def committed(self) -> list[str]:
        """List the names of the folders of steps that have a manifest, newest first; their files are not looked at."""

    def commit(self, aside: Path, name: str, *, permit: Callable[[], None]) -> None:
        """Make the local folder `aside`, which holds a manifest, the folder `name`. `permit` may raise, just before."""

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """Provide the files of a committed folder on a local disk while the context lasts."""

    def quarantine(self, name: str) -> str:
        """Take a damaged file away, or a damaged folder out of the committed ones, and keep it for a person. Returns
        what it is now called. Raises FileNotFoundError where there is none."""

    def forget(self, name: str) -> None:
        """Delete the kept copy of a local file that is gone."""

    def remove(self, name: str) -> None:
        """Delete a folder, its manifest first."""

    def clean(self) -> None:
        """Delete what writers that are gone left half written."""


@dataclass(frozen=True)
class Folder:
    """A local folder, or one of a shared file system."""

    scratch: Path

    def inside(self, name: str) -> Folder:
        """Return a folder in it."""
        return Folder(self.scratch / name)

    def read(self, name: str) -> str | None:
        """Read a file's text."""
        path = self.scratch / name
        return path.read_text() if path.exists() else None

    def read_bytes(self, name: str) -> bytes | None:
        """Read a file's content."""
        path = self.scratch / name
        return path.read_bytes() if path.exists() else None

    def write(self, name: str, content: str | bytes) -> None:
        """Write it aside, fsync it, rename it."""
        write_whole(self.scratch / name, content)

    def publish(self, *names: str) -> None:
        """Do nothing: what is here counts."""

    def download(self, name: str) -> None:
        """Do nothing: what is here counts."""

    def committed(self) -> list[str]:
        """List the folders that hold a manifest."""
        return [path.name for path in manifest.complete(self.scratch)]

    def commit(self, aside: Path, name: str, *, permit: Callable[[], None]) -> None:
        """Rename it, once."""
        permit()
        if os.path.lexists(self.scratch / name) and not _is_folder(self.scratch / name):
            self.quarantine(name)  # a file in its place is somebody else's, and `remove` deletes folders only
        self.remove(name)
        aside.rename(self.scratch / name)
        manifest.fsync(self.scratch)

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """Provide the folder itself."""
        return contextlib.nullcontext(self.scratch / name)

    def quarantine(self, name: str) -> str:
        """Rename it to NAME.bad-N."""
        path = self.scratch / name
        bad = next(
            candidate for n in itertools.count(1) if not os.path.lexists(candidate := path.with_name(f"{name}.bad-{n}"))
        )
        path.rename(bad)
        return bad.name

    def forget(self, name: str) -> None:
        """Do nothing: there is no other copy."""

    def remove(self, name: str) -> None:
        """Delete the manifest first: a folder that is half deleted is no checkpoint then. Of a link, only the link
        goes."""
        path = self.scratch / name
        if path.is_symlink():
            path.unlink()
        elif _is_folder(path / manifest.NAME):
            drop(path / manifest.NAME)
        else:
            (path / manifest.NAME).unlink(missing_ok=True)
        drop(path)

    def clean(self) -> None:
        """Delete folders set aside by processes that are dead."""
        clean_folder(self.scratch)


def temp_path(folder: Path, name: str) -> Path:
    """Return a path in `folder` to make what will be called `name`. It names host and process, and is used once."""
    return folder / f".{name}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"


_NUMBERS = itertools.count()


def write_whole(path: Path, content: str | bytes) -> None:
    """Replace a local file in one piece; on disk, name included, on return. Raises StorageFull."""
    whole = content.encode() if isinstance(content, str) else content
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with disk_full_guard(path.name, needed=len(whole), folder=path.parent, undo=lambda: aside.unlink(missing_ok=True)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("wb") as file:
            file.write(whole)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        manifest.fsync(path.parent)


@contextlib.contextmanager
def disk_full_guard(what: str, *, needed: int, folder: Path, undo: Callable[[], object]) -> Iterator[None]:
    """Write `what` inside. Whatever fails is undone, and raised as StorageFull if the disk was full.

    needed: bytes, which the message names. The bytes free are those after undoing.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            undo()
        free = shutil.disk_usage(
            next(parent for parent in (folder, *folder.absolute().parents) if parent.exists())
        ).free
        if is_full(error, short=free < needed):
            raise StorageFull(what, needed, free, str(folder)) from error
        raise


def is_full(error: BaseException | None, *, short: bool) -> bool:
    """Return whether an error means a full disk, by its number or, from libraries that have only words, by these."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left" in str(error) or "quota exceeded" in str(error):
        return True
    # torch.save writes its zip in C++ and says "unexpected pos" or "iostream error", whatever the reason was.
    return (short and isinstance(error, RuntimeError)) or is_full(error.__cause__ or error.__context__, short=False)


def clean_folder(folder: Path) -> None:
    """Remove what writers that are dead have left aside."""
    for path in folder.glob(f".{manifest.PREFIX}*"):
        host, _, rest = path.name.lstrip(".").partition(".")[2].rpartition(".")[0].rpartition(".")
        if not (host == socket.gethostname() and rest.isdigit() and _is_alive(int(rest))):
            drop(path)


def clean_asides(folder: Path, name: str) -> None:
    """Delete what processes of this host that are dead left half written of `name`, at `temp_path(folder, name)`."""
    start = f".{name}.{socket.gethostname()}."
    for path in folder.glob(f".{glob.escape(name)}.*"):
        process, _, number = path.name.removeprefix(start).partition(".")
        if path.name.startswith(start) and process.isdigit() and number.isdigit() and not _is_alive(int(process)):
            drop(path)


def _is_alive(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()


def drop(folder: Path) -> None:
    """Remove a folder, as far as that can be done."""
    shutil.rmtree(folder, ignore_errors=True)
