"""The files of a trial that is kept in a bucket: made in a local folder, and brought there."""

from __future__ import annotations

import contextlib
import errno
import itertools
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TypeVar

from jobs.artifacts import manifest
from jobs.artifacts.objects import ObjectStore, side_by_side
from jobs.artifacts.storage import Folder, Storage, clean_folder, disk_full_guard, drop, is_full, temp_path, write_whole

PAUSES_S = (0.5, 1.0, 2.0, 4.0)
"""Waits between the attempts at one request to a bucket; the store's own client has then tried twice each."""

SILENT_S = 30
"""How long a store may take to go on with a request."""

T = TypeVar("T")


def at(folder: Path, remote: str | None = None) -> Storage:
    """Return the storage in `folder`, or at `remote`: a URI as pyarrow.fs takes it, with the local copies in `folder`.

    Credentials come from the environment. Raises ValueError for a URI that pyarrow does not know.
    """
    return Folder(folder) if remote is None else Bucket.of(remote, folder)


@dataclass(frozen=True)
class Bucket:
    """A prefix of an object store, and the local folder in which its files are made and checked.

    Every method raises ConnectionError if the store cannot be reached after several attempts.
    """

    objects: ObjectStore
    scratch: Path

    @classmethod
    def of(cls, uri: str, scratch: Path) -> Bucket:
        """Open what `uri` names; nothing is asked of the store yet."""
        return cls(ObjectStore.of(uri, request_s=SILENT_S), scratch)

    def inside(self, name: str) -> Bucket:
        """Return the bucket below the prefix `name` in it."""
        return Bucket(self.objects.inside(name), self.scratch / name)

    def folders(self) -> list[str]:
        """List the names of the prefixes directly in it."""
        return sorted(info.base_name for info in self._ask(self.objects.infos) if not info.is_file)

    def read(self, name: str) -> str | None:
        """Read a file's text from the store."""
        content = self.read_bytes(name)
        return None if content is None else content.decode()

    def read_bytes(self, name: str) -> bytes | None:
        """Read a file's content from the store."""
        return self._ask(lambda: self.objects.read(name))

    def write(self, name: str, content: str | bytes) -> None:
        """Write to the local folder and to the store."""
        write_whole(self.scratch / name, content)
        self.publish(name)

    def publish(self, *names: str) -> None:
        """Upload them side by side, each by one request, so that no reader sees a part of it."""
        there = [name for name in names if (self.scratch / name).exists()]
        side_by_side([partial(self._put, name, (self.scratch / name).read_bytes()) for name in there])

    def download(self, name: str) -> None:
        """Download it, or remove the local copy where there is none."""
        content = self.read_bytes(name)
        if content is None:
            (self.scratch / name).unlink(missing_ok=True)
        else:
            write_whole(self.scratch / name, content)

    def committed(self) -> list[str]:
        """List the prefixes that hold a manifest."""
        names = [name for name, files in self._folders().items() if manifest.NAME in files]
        return sorted(names, key=manifest.step_of, reverse=True)

    def commit(self, aside: Path, name: str, *, permit: Callable[[], None]) -> None:
        """Upload the files side by side, and then the manifest. Older files of that name are no checkpoint from the
        first request on."""
        permit()
        if manifest.NAME in self._folders().get(name, ()):
            self._ask(lambda: self.objects.delete(f"{name}/{manifest.NAME}"))
        files = [path for path in sorted(aside.iterdir()) if path.name != manifest.NAME]
        side_by_side([partial(self._upload, path, f"{name}/{path.name}") for path in files])
        permit()
        self._put(f"{name}/{manifest.NAME}", (aside / manifest.NAME).read_bytes())
        shutil.rmtree(aside)

    @contextlib.contextmanager
    def fetch(self, name: str) -> Iterator[Path]:
        """Download it to a folder that is gone afterwards."""
        here = temp_path(self.scratch, name)
        needed = sum(info.size or 0 for info in self._ask(lambda: self.objects.infos(name, recursive=True)))
        try:
            with disk_full_guard(f"download of {name}", needed=needed, folder=self.scratch, undo=lambda: drop(here)):
                here.mkdir(parents=True)
                self._ask(lambda: self.objects.download(name, here))
            yield here
        finally:
            drop(here)

    def quarantine(self, name: str) -> str:
        """Rename the manifest of a folder to manifest.bad-N.json; or a file, and its local copy as well."""
        if manifest.is_step(name):
            there = self._folders().get(name, set())
            bad = next(other for n in itertools.count(1) if (other := f"manifest.bad-{n}.json") not in there)
            return self._rename(f"{name}/{manifest.NAME}", f"{name}/{bad}", there=manifest.NAME in there)
        local = Folder(self.scratch).quarantine(name) if os.path.lexists(self.scratch / name) else None
        files = self._names()
        if local is not None and name not in files:
            return local
        bad = next(other for n in itertools.count(1) if (other := f"{name}.bad-{n}") not in files)
        return self._rename(name, bad, there=name in files)

    def _rename(self, name: str, bad: str, *, there: bool) -> str:
        if not there:
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), self.objects.path(name))
        self._ask(lambda: self.objects.move(name, bad))
        return bad

    def _names(self) -> set[str]:
        """Return the names of the files directly in it."""
        return {info.base_name for info in self._ask(self.objects.infos) if info.is_file}

    def forget(self, name: str) -> None:
        """Delete one file of the bucket, if it is there."""
        self._ask(lambda: self.objects.delete(name))

    def remove(self, name: str) -> None:
        """Delete the manifest first: a prefix that is half deleted is no checkpoint then."""
        self._ask(lambda: self.objects.delete(f"{name}/{manifest.NAME}"))
        self._ask(lambda: self.objects.delete_folder(name))

    def clean(self) -> None:
        """Delete local folders of processes that are dead, and files that no manifest followed."""
        clean_folder(self.scratch)
        for name, files in self._folders().items():
            if not any(file.startswith("manifest.") for file in files):
                self.remove(name)

    def _folders(self) -> dict[str, set[str]]:
        """Map the name of every step's folder to its files; a folder within it does not count as a file."""
        folders: dict[str, set[str]] = {}
        for info in self._ask(lambda: self.objects.infos(recursive=True)):
            name, _, file = info.path[len(self.objects.prefix) + 1 :].partition("/")
            if manifest.is_step(name):
                folders.setdefault(name, set()).update({file} if file and info.is_file else ())
        return folders

    def _put(self, name: str, content: bytes) -> None:
        self._ask(lambda: self.objects.put(name, content))

    def _upload(self, path: Path, name: str) -> None:
        self._ask(lambda: self.objects.upload(path, name))

    def _ask(self, request: Callable[[], T]) -> T:
        """Make a request, again after a while if it fails. What is not there, and a full local disk, are answers."""
        for pause in PAUSES_S:
            try:
                return request()
            except FileNotFoundError:
                raise
            except OSError as error:
                if is_full(error, short=False):
                    raise
                time.sleep(pause)
        try:
            return request()
        except FileNotFoundError:
            raise
        except OSError as error:
            prefix = re.sub(r".*@", "", self.objects.prefix)
            raise ConnectionError(f"{self.objects.filesystem.type_name}://{prefix} cannot be used: {error}") from error
