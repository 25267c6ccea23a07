"""Images that rows name by their paths: where the files are, what they hold, and whether they are still the same.

A relative path is looked for beside the data file that names it, then where the run began, then in the current folder.
"""

from __future__ import annotations

import hashlib
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.arrays import is_bytes
from jobs.data.formats import DataError, short, shown
from jobs.data.places import File
from jobs.data.remedies import IMAGES
from jobs.data.sources import Rows
from jobs.paths import expanded, folders

_SUFFIXES = tuple(suffix.encode() for suffix in IMAGES)

LONGEST = 1024
"""Characters of a path, at most."""

MARK = "images by path"
"""First part of what `Links.entry` says."""


@dataclass(frozen=True)
class Linked:
    """One file that a row names."""

    name: str
    """As the row has it."""

    place: str
    """A path on a local disk, or a URI."""

    size: int
    changed: int | None
    """Nanoseconds; None where the file system does not say."""


@dataclass(frozen=True)
class Links:
    """The files that rows of a column name, as they were when this was made. Equal for equal files."""

    stamp: str
    """Hash of path, size and time of change of every file."""

    rows: Rows = field(compare=False, repr=False)
    column: str = field(compare=False)
    files: tuple[Linked | None, ...] = field(compare=False, repr=False)
    """Of each row; None where it holds the image itself."""

    @property
    def entry(self) -> list[Any] | None:
        """MARK, bytes in all, and the stamp: what tells a later look that no file has changed. None where a file
        system does not say so."""
        files = [file for file in self.files if file is not None]
        return None if any(file.changed is None for file in files) else [MARK, sum(f.size for f in files), self.stamp]

    def named(self, row: int) -> str:
        """The file that a row names; empty where it holds the image itself."""
        file = self.files[row]
        return "" if file is None else shown(file.place)

    def read(self, row: int) -> bytes:
        """What the file of a row holds. Raises DataError where it is gone or has changed; ConnectionError where it is
        on another machine that does not answer."""
        file = self.files[row]
        assert file is not None, "only rows without bytes are read from files"
        try:
            content, size, changed = _remote(file.place) if "://" in file.place else _local(file.place)
        except FileNotFoundError as error:
            raise self._fault(row, f"names {shown(file.name)}, which is gone; put it back") from error
        except OSError as error:
            if "://" in file.place:
                raise ConnectionError(f"{shown(file.place)} cannot be read: {short(error)}") from error
            raise self._fault(row, f"names {file.name}, which cannot be read: {short(error)}") from error
        if (size, changed) != (file.size, file.changed):
            words = "which has changed since it was first looked at; put back what was there"
            raise self._fault(row, f"names {shown(file.name)}, {words}")
        return content

    def contents(self) -> Iterator[bytes | None]:
        """The image of every row, in order; None where there is none."""
        values = self.rows.table[self.column]
        for row, file in enumerate(self.files):
            held = values[row].as_py() if file is None else None
            yield self.read(row) if file is not None else held["bytes"] if isinstance(held, dict) else None

    def _fault(self, row: int, found: str) -> DataError:
        return self.rows.fault(found, column=self.column, row=row)


def links_of(rows: Rows, column: str) -> Links | None:
    """The files that rows name, looked at now; None where every row holds its image. Raises DataError."""
    names = names_of(rows.table[column])
    if names is None:
        return None
    finder = _Finder(rows, column)
    files = tuple(finder.find(row, name) if name is not None else None for row, name in enumerate(names.to_pylist()))
    stamp = hashlib.blake2b(digest_size=16)
    for file in files:
        stamp.update(repr(file and (file.place, file.size, file.changed)).encode())
    return Links(stamp.hexdigest(), rows, column, files)


def names_of(column: pa.ChunkedArray) -> pa.ChunkedArray | None:
    """The path in each row, null where it holds the image itself; None where no row has a path that counts."""
    kind = column.type
    if pa.types.is_string(kind) or pa.types.is_large_string(kind):
        return column
    if is_bytes(kind) and (column[0].as_py() or b"").lower().endswith(_SUFFIXES):
        try:  # some writers of Parquet make bytes of texts
            return column.cast(pa.large_string())
        except pa.ArrowInvalid:
            return None
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    paths = pc.struct_field(column, "path")
    if kind.get_field_index("bytes") >= 0:
        lacking = pc.is_null(pc.struct_field(column, "bytes"))
        paths = pc.if_else(lacking, paths, pa.scalar(None, paths.type))
    return paths if paths.null_count < len(paths) else None


class _Finder:
    """Finds files, and remembers listings of folders that are not on a local disk."""

    def __init__(self, rows: Rows, column: str) -> None:
        self._rows, self._column = rows, column
        self._listed: dict[str, dict[str, tuple[int, int | None]]] = {}
        self._beside: list[tuple[File, list[str]]] = []
        """Of each row: its data file, and the folders in which a relative path is looked for."""
        for file, (_, _, taken) in zip(rows.files, rows.spans, strict=True):
            own = [Path(file.path).parent] if file.uri is None and Path(file.path).is_file() else []
            self._beside += [(file, list(dict.fromkeys(map(os.path.realpath, [*own, *folders()]))))] * taken

    def find(self, row: int, name: str) -> Linked:
        """The file that a row names. Raises DataError."""
        file, tops = self._beside[row]
        if "://" in name:
            return self._far(row, name, name) or self._near(row, name, [])
        path = str(expanded(name)) if name.startswith("~") else name
        if path.startswith("/"):
            return self._near(row, name, [path])
        if file.uri is not None:
            address, query = _parts(file.uri)
            if found := self._far(row, name, f"{address.rpartition('/')[0]}/{name}{query}"):
                return found
        return self._near(row, name, [f"{top}/{path}" for top in tops])

    def _near(self, row: int, name: str, candidates: list[str]) -> Linked:
        for path in candidates:
            try:
                info = os.stat(path)  # noqa: PTH116 - for every image of a set, several times a trial
            except (FileNotFoundError, NotADirectoryError):
                continue
            except (OSError, ValueError) as error:  # no right to look, a name too long or with a zero in it
                raise self._fault(row, _absent(name, candidates, short(error))) from error
            if not stat.S_ISREG(info.st_mode):
                raise self._fault(row, f"names {_cut(name)}, which is no file")
            # Of the times of a file this is the one that nobody sets back.
            return Linked(name, path, info.st_size, info.st_ctime_ns)
        raise self._fault(row, _absent(name, candidates, "there is no such file"))

    def _far(self, row: int, name: str, uri: str) -> Linked | None:
        from pyarrow import fs

        address, query = _parts(uri)
        folder, _, last = address.rpartition("/")
        try:
            if uri.startswith("file:"):
                return self._near(row, name, [fs.FileSystem.from_uri(uri)[1]])
            if folder + query not in self._listed:
                filesystem, inside = fs.FileSystem.from_uri(folder + query)
                infos = filesystem.get_file_info(fs.FileSelector(inside, allow_not_found=True))
                self._listed[folder + query] = {
                    info.base_name: (info.size or 0, info.mtime_ns or None)
                    for info in infos
                    if info.type == fs.FileType.File
                }
        except (OSError, ValueError, ImportError, pa.ArrowException) as error:
            if isinstance(error, DataError):
                raise
            raise self._fault(row, _absent(name, [], short(error))) from error
        found = self._listed[folder + query].get(last)
        return None if found is None else Linked(name, uri, *found)

    def _fault(self, row: int, found: str) -> DataError:
        return self._rows.fault(found, column=self._column, row=row)


def _absent(name: str, candidates: list[str], why: str) -> str:
    """What is said of a name that stands for no file."""
    if name.startswith("data:") or len(name) > LONGEST:
        return f"is text that names no file ({_cut(name)}); images written as text (base64) must be decoded to bytes"
    if name.startswith(("http:", "https:")):
        return f"names {_cut(name)}, which is not downloaded; do that, and give paths, or the bytes themselves"
    where = f" (looked for as {', then '.join(candidates)})" if candidates else ""
    return f"names {_cut(name)}, which cannot be read: {why}{where}; put it there, or remove the row"


def _cut(name: str) -> str:
    return shown(name) if len(name) <= LONGEST else f"{shown(name)[:60]}..."


def _parts(uri: str) -> tuple[str, str]:
    """A URI up to its query, and the query with its mark."""
    address, mark, query = uri.partition("?")
    return (address, mark + query) if "=" in query else (uri, "")


def _local(path: str) -> tuple[bytes, int, int | None]:
    """What a file holds, its size and time of change."""
    with Path(path).open("rb") as file:
        info = os.fstat(file.fileno())
        return file.read(), info.st_size, info.st_ctime_ns


def _remote(uri: str) -> tuple[bytes, int, int | None]:
    from pyarrow import fs

    filesystem, inside = fs.FileSystem.from_uri(uri)
    info = filesystem.get_file_info(inside)
    with filesystem.open_input_file(inside) as file:
        return file.read(), info.size or 0, info.mtime_ns or None
