"""Where the files of a trial lie: a local folder, or a bucket and a local folder to work in. Knows no torch.

A file is whole or absent. So is a folder of files (a checkpoint): it is there once its manifest is, which comes last
and goes first.

    Folder    written aside, fsynced, renamed
    Bucket    nothing can be renamed there: the files are uploaded, the manifest last, and that commits them

Whatever cannot be written for want of space raises StorageFull, which says how much.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import itertools
import os
import re
import shutil
import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol, TypeVar

from jobs.artifacts import manifest

PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Waits between the attempts at one request to a bucket; the store's own client has then tried twice each."""

CONNECT_S, SILENT_S = 5, 30
"""How long a store may take to accept a connection, and to go on with a request."""

UPLOADS = 8
"""Files uploaded at once: a request to a store far away waits longer than it sends."""

T = TypeVar("T")


class StorageFull(OSError):
    """A file system has no space for what must be written. Older files are as they were."""

    def __init__(self, what: str, needed: int, free: int, folder: str) -> None:
        self.told = (what, needed, free, folder)
        hint = "" if free < needed else "; the limit may be a quota or the number of files"
        told = f"{what} needs {needed:,} bytes in {folder}, {free:,} are free{hint}"
        super().__init__(errno.ENOSPC, told, folder)

    def __str__(self) -> str:
        return str(self.strerror)

    def __reduce__(self) -> tuple[Any, ...]:
        return type(self), self.told, self.__dict__


class Storage(Protocol):
    """A place for the files of a trial, or for its checkpoints. One call at a time for one name."""

    @property
    def scratch(self) -> Path:
        """A local folder to write in."""

    def inside(self, name: str) -> Storage:
        """The place `name` within this one."""

    def read(self, name: str) -> str | None:
        """The content of a small file; None if it is not there."""

    def write(self, name: str, text: str) -> None:
        """Replace a small file in one piece. Raises StorageFull."""

    def publish(self, *names: str) -> None:
        """Make files of `scratch`, as they are now, those that count; what is not there is left out."""

    def bring(self, name: str) -> None:
        """Make a file of `scratch` the one that counts: replaced, or removed where there is none."""

    def committed(self) -> list[str]:
        """Names of the folders of steps that have a manifest, newest first; their files are not looked at."""

    def commit(self, aside: Path, name: str, *, permit: Callable[[], None]) -> None:
        """Make the local folder `aside`, which holds a manifest, the folder `name`. `permit` may raise, just before."""

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """The files of a committed folder on a local disk."""

    def set_aside(self, name: str) -> str:
        """Take a damaged file away, or a damaged folder out of the committed ones, and keep it for a person. Returns
        what it is now called. Raises FileNotFoundError where there is none."""

    def remove(self, name: str) -> None:
        """Delete a folder, its manifest first."""

    def clean(self) -> None:
        """Delete what writers that are gone left half written."""


def at(folder: Path, remote: str | None = None) -> Storage:
    """The folder, or what `remote` names: a URI as pyarrow.fs takes it, whose local copies then lie in `folder`.

    Credentials come from the environment. Raises ValueError for a URI that pyarrow does not know.
    """
    return Folder(folder) if remote is None else Bucket.of(remote, folder)


@dataclass(frozen=True)
class Folder:
    """A local folder, or one of a shared file system."""

    scratch: Path

    def inside(self, name: str) -> Folder:
        """A folder in it."""
        return Folder(self.scratch / name)

    def read(self, name: str) -> str | None:
        """A file's text."""
        path = self.scratch / name
        return path.read_text() if path.exists() else None

    def write(self, name: str, text: str) -> None:
        """Written aside, fsynced, renamed."""
        write_whole(self.scratch / name, text)

    def publish(self, *names: str) -> None:
        """Nothing to do: what is here counts."""

    def bring(self, name: str) -> None:
        """Nothing to do: what is here counts."""

    def committed(self) -> list[str]:
        """Folders that hold a manifest."""
        return [path.name for path in manifest.complete(self.scratch)]

    def commit(self, aside: Path, name: str, *, permit: Callable[[], None]) -> None:
        """One rename."""
        permit()
        if os.path.lexists(self.scratch / name) and not _is_folder(self.scratch / name):
            self.set_aside(name)  # a file in its place is none of ours, and `remove` deletes folders only
        self.remove(name)
        aside.rename(self.scratch / name)
        manifest.fsync(self.scratch)

    def fetch(self, name: str) -> AbstractContextManager[Path]:
        """The folder itself."""
        return contextlib.nullcontext(self.scratch / name)

    def set_aside(self, name: str) -> str:
        """Renamed to NAME.bad-N."""
        path = self.scratch / name
        bad = next(each for n in itertools.count(1) if not os.path.lexists(each := path.with_name(f"{name}.bad-{n}")))
        path.rename(bad)
        return bad.name

    def remove(self, name: str) -> None:
        """Without its manifest, a folder that is half deleted is no checkpoint. Of a link, only the link is deleted."""
        path = self.scratch / name
        if path.is_symlink():
            path.unlink()
        elif _is_folder(path / manifest.NAME):
            _drop(path / manifest.NAME)
        else:
            (path / manifest.NAME).unlink(missing_ok=True)
        _drop(path)

    def clean(self) -> None:
        """Folders set aside by processes that are dead."""
        _clean(self.scratch)


@dataclass(frozen=True)
class Bucket:
    """A prefix of an object store, and the local folder in which its files are made and checked.

    Every method raises ConnectionError if the store cannot be reached after several attempts.
    """

    store: Any
    """The pyarrow.fs.FileSystem."""

    prefix: str
    """Bucket and prefix, as `store` takes paths."""

    scratch: Path

    @classmethod
    def of(cls, uri: str, scratch: Path) -> Bucket:
        """What `uri` names; nothing is asked of the store yet."""
        from pyarrow import fs

        store, prefix = fs.FileSystem.from_uri(uri)
        if isinstance(store, fs.S3FileSystem):
            # A URI cannot say how long to wait, and left alone pyarrow waits for minutes. What a store is pickled as
            # are the options it was made with.
            _, (options,) = store.__reduce__()
            limits = {"connect_timeout": CONNECT_S, "request_timeout": SILENT_S}
            store = fs.S3FileSystem(**options | limits, retry_strategy=fs.AwsStandardS3RetryStrategy(max_attempts=2))
        return cls(store, prefix.rstrip("/"), scratch)

    def inside(self, name: str) -> Bucket:
        """A prefix in it."""
        return Bucket(self.store, f"{self.prefix}/{name}", self.scratch / name)

    def folders(self) -> list[str]:
        """Names of the prefixes directly in it."""
        from pyarrow import fs

        found = self._ask(self.store.get_file_info, fs.FileSelector(self.prefix, allow_not_found=True))
        return sorted(each.base_name for each in found if each.type == fs.FileType.Directory)

    def read(self, name: str) -> str | None:
        """A file's text, from the store."""
        found = self._get(name)
        return None if found is None else found.decode()

    def write(self, name: str, text: str) -> None:
        """To the local folder and to the store."""
        write_whole(self.scratch / name, text)
        self.publish(name)

    def publish(self, *names: str) -> None:
        """Uploaded side by side, each by one request, so that no reader sees a part of it."""
        there = [name for name in names if (self.scratch / name).exists()]
        side_by_side([partial(self._put, name, (self.scratch / name).read_bytes()) for name in there])

    def bring(self, name: str) -> None:
        """Downloaded."""
        text = self.read(name)
        if text is None:
            (self.scratch / name).unlink(missing_ok=True)
        else:
            write_whole(self.scratch / name, text)

    def committed(self) -> list[str]:
        """Prefixes under which there is a manifest."""
        found = [name for name, files in self._folders().items() if manifest.NAME in files]
        return sorted(found, key=manifest.step_of, reverse=True)

    def commit(self, aside: Path, name: str, *, permit: Callable[[], None]) -> None:
        """Uploaded side by side, and then the manifest. Older files of that name are no checkpoint from the first
        request on."""
        permit()
        if manifest.NAME in self._folders().get(name, ()):
            self._ask(self.store.delete_file, f"{self.prefix}/{name}/{manifest.NAME}")
        self._ask(self.store.create_dir, f"{self.prefix}/{name}")
        files = [path for path in sorted(aside.iterdir()) if path.name != manifest.NAME]
        side_by_side([partial(self._copy, str(path), f"{self.prefix}/{name}/{path.name}", up=True) for path in files])
        permit()
        self._put(f"{name}/{manifest.NAME}", (aside / manifest.NAME).read_bytes())
        shutil.rmtree(aside)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Downloaded to a folder that is gone afterwards."""
        here = aside_of(self.scratch, name)
        files = self._ask(self.store.get_file_info, self._all(name))
        needed = sum(each.size or 0 for each in files)
        try:
            with room(f"download of {name}", needed=needed, folder=self.scratch, undo=lambda: _drop(here)):
                here.mkdir(parents=True)
                self._copy(f"{self.prefix}/{name}", str(here), up=False)
            yield here
        finally:
            _drop(here)

    def set_aside(self, name: str) -> str:
        """Of a folder the manifest is renamed, to manifest.bad-N.json, and of a file the local copy as well."""
        if manifest.is_step(name):
            there = self._folders().get(name, set())
            bad = next(each for n in itertools.count(1) if (each := f"manifest.bad-{n}.json") not in there)
            return self._rename(f"{name}/{manifest.NAME}", f"{name}/{bad}", there=manifest.NAME in there)
        local = Folder(self.scratch).set_aside(name) if os.path.lexists(self.scratch / name) else None
        files = self._names()
        if local is not None and name not in files:
            return local
        bad = next(each for n in itertools.count(1) if (each := f"{name}.bad-{n}") not in files)
        return self._rename(name, bad, there=name in files)

    def _rename(self, name: str, bad: str, *, there: bool) -> str:
        if not there:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), f"{self.prefix}/{name}")
        self._ask(self.store.move, f"{self.prefix}/{name}", f"{self.prefix}/{bad}")
        return bad

    def _names(self) -> set[str]:
        """The files directly in it."""
        from pyarrow import fs

        found = self._ask(self.store.get_file_info, fs.FileSelector(self.prefix, allow_not_found=True))
        return {each.base_name for each in found if each.type == fs.FileType.File}

    def remove(self, name: str) -> None:
        """Without its manifest, a prefix that is half deleted is no checkpoint."""
        with contextlib.suppress(FileNotFoundError):
            self._ask(self.store.delete_file, f"{self.prefix}/{name}/{manifest.NAME}")
        with contextlib.suppress(FileNotFoundError):
            self._ask(self.store.delete_dir, f"{self.prefix}/{name}")

    def clean(self) -> None:
        """Local folders of processes that are dead, and files that no manifest followed."""
        _clean(self.scratch)
        for name, files in self._folders().items():
            if not any(file.startswith("manifest.") for file in files):
                self.remove(name)

    def _folders(self) -> dict[str, set[str]]:
        """The files of every folder of a step; a folder within one is none of them."""
        from pyarrow import fs

        found: dict[str, set[str]] = {}
        for each in self._ask(self.store.get_file_info, self._all()):
            name, _, file = each.path[len(self.prefix) + 1 :].partition("/")
            if manifest.is_step(name):
                found.setdefault(name, set()).update({file} if file and each.type == fs.FileType.File else ())
        return found

    def _all(self, name: str = "") -> Any:
        from pyarrow import fs

        return fs.FileSelector(f"{self.prefix}/{name}".rstrip("/"), recursive=True, allow_not_found=True)

    def _get(self, name: str) -> bytes | None:
        def get() -> bytes:
            with self.store.open_input_stream(f"{self.prefix}/{name}") as stream:
                return bytes(stream.read())

        try:
            return self._ask(get)
        except FileNotFoundError:
            return None

    def _put(self, name: str, content: bytes) -> None:
        path = f"{self.prefix}/{name}"

        def put() -> None:
            with self.store.open_output_stream(path) as stream:
                stream.write(content)

        try:
            self._ask(put)
        except FileNotFoundError:  # a store that has folders
            self._ask(self.store.create_dir, path.rpartition("/")[0])
            self._ask(put)

    def _copy(self, source: str, target: str, *, up: bool) -> None:
        from pyarrow import fs

        here = fs.LocalFileSystem()
        filesystems = (here, self.store) if up else (self.store, here)
        self._ask(
            fs.copy_files, source, target, source_filesystem=filesystems[0], destination_filesystem=filesystems[1]
        )

    def _ask(self, request: Callable[..., T], *arguments: Any, **options: Any) -> T:
        """Make a request, again after a while if it fails. What is not there, and a full local disk, are answers."""
        for pause in PAUSES_S:
            try:
                return request(*arguments, **options)
            except FileNotFoundError:
                raise
            except OSError as error:
                if _is_full(error, short=False):
                    raise
                time.sleep(pause)
        try:
            return request(*arguments, **options)
        except FileNotFoundError:
            raise
        except OSError as error:
            place = re.sub(r".*@", "", self.prefix)
            raise ConnectionError(f"{self.store.type_name}://{place} cannot be used: {error}") from error


def side_by_side(uploads: Sequence[Callable[[], object]]) -> None:
    """Call all of them, at most UPLOADS at once; after an error none that has not begun. Raises the first one's error,
    once none of them runs any more."""
    if len(uploads) == 1:
        uploads[0]()
    elif uploads:
        with ThreadPoolExecutor(min(len(uploads), UPLOADS), thread_name_prefix="upload") as pool:
            begun = [pool.submit(upload) for upload in uploads]
            wait(begun, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)
        for each in begun:
            if not each.cancelled():
                each.result()


def aside_of(folder: Path, name: str) -> Path:
    """A path in `folder` at which to make what will be called `name`. It tells whose it is, and is used once."""
    return folder / f".{name}.{socket.gethostname()}.{os.getpid()}.{next(_NUMBERS)}"


_NUMBERS = itertools.count()


def write_whole(path: Path, text: str) -> None:
    """Replace a local file in one piece; on disk, name included, on return. Raises StorageFull."""
    aside = path.with_name(f".{path.name}.{os.getpid()}.{threading.get_ident()}")
    with room(path.name, needed=len(text.encode()), folder=path.parent, undo=lambda: aside.unlink(missing_ok=True)):
        path.parent.mkdir(parents=True, exist_ok=True)
        with aside.open("w") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(path)
        manifest.fsync(path.parent)


@contextlib.contextmanager
def room(what: str, *, needed: int, folder: Path, undo: Callable[[], object]) -> Iterator[None]:
    """Write `what` inside. Whatever fails is undone, and raised as StorageFull if it failed for want of space.

    needed: bytes, of which the message tells. The bytes free are those after undoing.
    """
    try:
        yield
    except BaseException as error:
        with contextlib.suppress(OSError):
            undo()
        free = shutil.disk_usage(next(each for each in (folder, *folder.absolute().parents) if each.exists())).free
        if _is_full(error, short=free < needed):
            raise StorageFull(what, needed, free, str(folder)) from error
        raise


def _is_full(error: BaseException | None, *, short: bool) -> bool:
    """Whether an error is one of a full disk, by its number or, from libraries that have only words, by these."""
    if error is None:
        return False
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    if "No space left" in str(error) or "quota exceeded" in str(error):
        return True
    # torch.save writes its zip in C++ and says "unexpected pos" or "iostream error", whatever the reason was.
    return (short and isinstance(error, RuntimeError)) or _is_full(error.__cause__ or error.__context__, short=False)


def _clean(folder: Path) -> None:
    for path in folder.glob(f".{manifest.PREFIX}*"):
        host, _, rest = path.name.lstrip(".").partition(".")[2].rpartition(".")[0].rpartition(".")
        if not (host == socket.gethostname() and rest.isdigit() and _is_alive(int(rest))):
            _drop(path)


def clean_asides(folder: Path, name: str) -> None:
    """Delete what processes of this host that are dead left half written of `name`, at `aside_of(folder, name)`."""
    start = f".{name}.{socket.gethostname()}."
    for path in folder.glob(f".{glob.escape(name)}.*"):
        process, _, number = path.name.removeprefix(start).partition(".")
        if path.name.startswith(start) and process.isdigit() and number.isdigit() and not _is_alive(int(process)):
            _drop(path)


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


def _drop(folder: Path) -> None:
    shutil.rmtree(folder, ignore_errors=True)
