"""Where the image files are that rows name: beside the data file that names one, where the run began, then in the
current folder; or in the bucket of the data file, and nowhere else.
"""

from __future__ import annotations

import contextlib
import os
import posixpath
import re
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote

import pyarrow as pa

from jobs.core.paths import expanded, folders
from jobs.data.formats import DataError, short, shown
from jobs.data.resolve import HUB, File, address_and_query, connected
from jobs.data.sources import Rows

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

LONGEST = 1024
"""Characters of a path, at most."""


@dataclass(frozen=True)
class Linked:
    """One file that a row names."""

    name: str
    """As the row has it."""

    location: str
    """A path on a local disk, or a URI."""

    size: int
    changed: int | None
    """Nanoseconds; None where the file system does not say."""

    filesystem: FileSystem | None = field(default=None, repr=False)
    """Of pyarrow.fs; None: a local disk."""

    inside: str = ""
    """The path there."""


class Finder:
    """Finds files, and remembers listings of folders that are not on a local disk."""

    def __init__(self, rows: Rows, column: str) -> None:
        self._rows, self._column = rows, column
        self._connected: dict[str, tuple[FileSystem, str]] = {}
        """By URI of a folder or a table: the file system, and the path there."""
        self._listed: dict[tuple[int, str], dict[str, tuple[int, int | None]]] = {}
        """By file system (its id) and folder."""
        self._beside: list[tuple[File, list[str]]] = []
        """Of each row: its data file, and the folders in which a relative path is looked for."""
        for file, (_, _, taken) in zip(rows.files, rows.spans, strict=True):
            own = [Path(file.path).parent] if file.uri is None and Path(file.path).is_file() else []
            self._beside += [(file, list(dict.fromkeys(map(os.path.realpath, [*own, *folders()]))))] * taken

    def find(self, row: int, name: str) -> Linked:
        """Find the file that a row names. Raises DataError."""
        file, tops = self._beside[row]
        if "://" in name or name.startswith("file:/"):
            return self._by_uri(row, name)
        path = str(expanded(name)) if name.startswith("~") else name
        if path.startswith("/"):
            return self._near(row, name, [path])
        if file.uri is not None and file.uri != HUB:
            return self._beside_table(row, name, file.uri, tops)
        return self._near(row, name, [f"{top}/{path}" for top in tops])

    def _by_uri(self, row: int, uri: str) -> Linked:
        address, query = address_and_query(uri)
        folder, _, last = address.rpartition("/")
        filesystem, inside = self._reached(row, uri, f"{folder}/{query}")
        candidates = [f"{inside.rstrip('/')}/{file}" for file in dict.fromkeys((unquote(last), last))]
        if _is_local(filesystem):
            return self._near(row, uri, candidates)
        return self._far(row, uri, filesystem, dict.fromkeys(candidates, uri))

    def _beside_table(self, row: int, name: str, table: str, tops: list[str]) -> Linked:
        """Find a file by its path beside a table. A path is no URI: nothing in it is encoded. A file that a bucket
        lacks is not looked for on this machine, where other files may have its name."""
        filesystem, inside = self._reached(row, name, table)
        path = posixpath.normpath(posixpath.join(posixpath.dirname(inside), name))
        if _is_local(filesystem):
            return self._near(row, name, [path, *(f"{top}/{name}" for top in tops)])
        address, query = address_and_query(table)
        uri = f"{address.rpartition('/')[0]}/{name}{query}"
        return self._far(row, name, filesystem, {path: uri})

    def _near(self, row: int, name: str, candidates: list[str]) -> Linked:
        for path in candidates:
            try:
                info = os.stat(path)  # noqa: PTH116 - for every image of a set, in every trial
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:  # no right to look, a name too long or with a zero in it
                raise self._fault(row, _absent(name, candidates, short(error))) from error
            if not stat.S_ISREG(info.st_mode):
                raise self._fault(row, f"names {_cut(name)}, which is no file")
            # Of the times of a file this is the one that nobody sets back.
            return Linked(name, path, info.st_size, info.st_ctime_ns)
        raise self._fault(row, _absent(name, candidates, "there is no such file"))

    def _far(self, row: int, name: str, filesystem: FileSystem, uris: dict[str, str]) -> Linked:
        """Find the first of these paths that exists on a file system. uris: path -> URI."""
        for path, uri in uris.items():
            folder, last = posixpath.split(path)
            if size_and_time := self._listing(row, name, filesystem, folder).get(last):
                return Linked(name, uri, *size_and_time, filesystem, path)
        raise self._fault(row, _absent(name, [shown(next(iter(uris.values())))], "there is no such file"))

    def _listing(self, row: int, name: str, filesystem: FileSystem, folder: str) -> dict[str, tuple[int, int | None]]:
        """List the size and time of change of each file in a folder."""
        from pyarrow import fs

        key = (id(filesystem), folder)
        if key not in self._listed:
            with self._words(row, name):
                infos = filesystem.get_file_info(fs.FileSelector(folder, allow_not_found=True))
            self._listed[key] = {
                info.base_name: (info.size or 0, info.mtime_ns or None)
                for info in infos
                if info.type == fs.FileType.File
            }
        return self._listed[key]

    def _reached(self, row: int, name: str, uri: str) -> tuple[FileSystem, str]:
        if uri not in self._connected:
            with self._words(row, name):
                self._connected[uri] = connected(uri)
        return self._connected[uri]

    @contextlib.contextmanager
    def _words(self, row: int, name: str) -> Iterator[None]:
        """Turn what pyarrow.fs raises into a DataError."""
        try:
            yield
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            raise self._fault(row, _absent(name, [], short(error))) from error

    def _fault(self, row: int, words: str) -> DataError:
        return self._rows.fault(words, column=self._column, row=row)


def _is_local(filesystem: FileSystem) -> bool:
    return bool(filesystem.type_name == "local")


def _absent(name: str, candidates: list[str], why: str) -> str:
    """Return what to say of a name that stands for no file."""
    if re.fullmatch(r"[\s\[]*\d[\d.]*[\s,\[\]]+\d[\d.,\s\[\]]*", name):
        return f"holds numbers in a text ({_cut(name)}); give lists of numbers, or the bytes of uint8 pixels"
    if name.startswith("data:") or len(name) > LONGEST:
        return f"is text that names no file ({_cut(name)}); images written as text (base64) must be decoded to bytes"
    if name.startswith(("http:", "https:")):
        return f"names {_cut(name)}, which is not downloaded; do that, and give paths, or the bytes themselves"
    where = f" (looked for as {', then '.join(candidates)})" if candidates else ""
    turned = r"write / in place of \, " if "\\" in name else ""
    return f"names {_cut(name)}, which cannot be read: {why}{where}; {turned}put it there, or remove the row"


def _cut(name: str) -> str:
    return shown(name) if len(name) <= LONGEST else f"{shown(name)[:60]}..."
