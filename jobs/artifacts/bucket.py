"""The files of a trial that is kept in a bucket: made in a local folder, and brought there."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

from jobs.artifacts import manifest
from jobs.artifacts.storage import Folder, Storage, clean_folder, disk_full_guard, drop, is_full, temp_path, write_whole

PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Waits between the attempts at one request to a bucket; the store's own client has then tried twice each."""

CONNECT_S, SILENT_S = 5, 30
"""How long a store may take to accept a connection, and to go on with a request."""

UPLOADS = 8
"""Files uploaded at once: a request to a store far away waits longer than it sends."""

T = TypeVar("T")


def at(folder: Path, remote: str | None = None) -> Storage:
    """The folder, or what `remote` names: a URI as pyarrow.fs takes it, whose local copies then lie in `folder`.

    Credentials come from the environment. Raises ValueError for a URI that pyarrow does not know.
    """
    return Folder(folder) if remote is None else Bucket.of(remote, folder)


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

    def download(self, name: str) -> None:
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
        here = temp_path(self.scratch, name)
        files = self._ask(self.store.get_file_info, self._all(name))
        needed = sum(each.size or 0 for each in files)
        try:
            with disk_full_guard(f"download of {name}", needed=needed, folder=self.scratch, undo=lambda: drop(here)):
                here.mkdir(parents=True)
                self._copy(f"{self.prefix}/{name}", str(here), up=False)
            yield here
        finally:
            drop(here)

    def quarantine(self, name: str) -> str:
        """Of a folder the manifest is renamed, to manifest.bad-N.json, and of a file the local copy as well."""
        if manifest.is_step(name):
            there = self._folders().get(name, set())
            bad = next(each for n in itertools.count(1) if (each := f"manifest.bad-{n}.json") not in there)
            return self._rename(f"{name}/{manifest.NAME}", f"{name}/{bad}", there=manifest.NAME in there)
        local = Folder(self.scratch).quarantine(name) if os.path.lexists(self.scratch / name) else None
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
        clean_folder(self.scratch)
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
                if is_full(error, short=False):
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
