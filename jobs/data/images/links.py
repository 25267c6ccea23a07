"""Images that rows name by their paths: where the files are, what they hold, and whether they are still the same.

They are looked at once a training, and compared with that look whenever one is read; one that was only touched, by what
it holds.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
from collections.abc import Callable, Iterator
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.formats import DataError, short, shown
from jobs.data.formats.lines import NOT_UTF8, first_that_is_not_utf8
from jobs.data.images.arrays import is_bytes, is_text
from jobs.data.images.finding import Finder, Linked
from jobs.data.remedies import IMAGES
from jobs.data.sources import Rows

_SUFFIXES = tuple(suffix.encode() for suffix in IMAGES)

HEAD = 1 << 16
"""Bytes at the begin of a file in which most formats say size and colours."""

MARK = "images by path"
"""First part of `Links.entry`."""


@dataclass(frozen=True)
class Links:
    """The files that rows of a column name, as they were when this was made. Equal for equal files."""

    stamp: str
    """Hash of path, size and time of change of every file."""

    rows: Rows = field(compare=False, repr=False)
    column: str = field(compare=False)
    files: tuple[Linked | None, ...] = field(compare=False, repr=False)
    """Of each row; None where it holds the image itself."""

    hashes: dict[int, bytes] = field(default_factory=dict, compare=False, repr=False)
    """Of what each file held when all were read, if they were in this process."""

    is_as_before: list[Callable[[Links], bool]] = field(default_factory=list, compare=False, repr=False)
    """Whether a later look finds what these files held; empty where nobody has given any."""

    @property
    def entry(self) -> list[str | int] | None:
        """MARK, bytes in all, and the stamp: what tells a later look that no file has changed. None where a file
        system does not say so."""
        files = [file for file in self.files if file is not None]
        return None if any(file.changed is None for file in files) else [MARK, sum(f.size for f in files), self.stamp]

    def named(self, row: int) -> str:
        """Return the location of the file that a row names; an empty text where the row holds the image itself."""
        file = self.files[row]
        return "" if file is None else shown(file.location)

    def read(self, row: int) -> bytes:
        """Read the file of a row. Raises DataError where it is gone or holds something else than at first;
        ConnectionError where it is on another machine that does not answer."""
        content, is_same = self._read(row)
        if not is_same and not self._held_before(row, content):
            how = "" if self.hashes else ", in what it holds or in its time alone"
            words = f"which has changed since it was first looked at{how}; put back what was there, and begin again"
            raise self._fault(row, f"names {shown(self._file(row).name)}, {words}")
        return content

    def head(self, row: int) -> bytes:
        """Read the beginning of a row's file: what PIL needs to tell its size and colours, in most formats."""
        content, is_same = self._read(row, HEAD)
        return content if is_same else self.read(row)

    def contents(self) -> Iterator[bytes | None]:
        """Yield the image of every row, in order; None where there is none."""
        values = self.rows.table[self.column]
        for row, file in enumerate(self.files):
            held = values[row].as_py() if file is None else None
            content = self.read(row) if file is not None else held["bytes"] if isinstance(held, dict) else None
            if file is not None and content is not None:
                self.hashes[row] = _hash(content)
            yield content

    def _read(self, row: int, most: int = -1) -> tuple[bytes, bool]:
        """Read at most so many bytes of a row's file; return them, and whether it is as it was when this was made."""
        file = self._file(row)
        try:
            content, size, changed = (_local if file.filesystem is None else _remote)(file, most)
        except FileNotFoundError as error:
            raise self._fault(row, f"names {shown(file.name)}, which is gone; put it back") from error
        except (OSError, ValueError, pa.ArrowException) as error:
            if isinstance(error, OSError) and file.filesystem is not None:
                raise ConnectionError(f"{shown(file.location)} cannot be read: {short(error)}") from error
            raise self._fault(row, f"names {shown(file.name)}, which cannot be read: {short(error)}") from error
        return content, (size, changed) == (file.size, file.changed)

    def _file(self, row: int) -> Linked:
        file = self.files[row]
        assert file is not None, "only rows without bytes are read from files"
        return file

    def _held_before(self, row: int, content: bytes) -> bool:
        """Return whether the file of a row held this at first: it may have been touched only. Where no file's content
        is known, all are read once more."""
        with _COMPARING:
            if not self.hashes and self.is_as_before:
                again = _looked_at(self.rows, self.column)
                if again is not None and self.is_as_before[0](again):
                    self.hashes.update(again.hashes)
        return self.hashes.get(row) == _hash(content)

    def _fault(self, row: int, words: str) -> DataError:
        return self.rows.fault(words, column=self.column, row=row)


@contextlib.contextmanager
def looked_at_once() -> Iterator[None]:
    """Look at the files that rows name only once while the context lasts, however often they are asked for. A later
    read of a file is compared with that look."""
    if _looks.get() is not None:
        yield
        return
    token = _looks.set({})
    try:
        yield
    finally:
        _looks.reset(token)


_looks: ContextVar[dict[tuple[Rows, str], Links | None] | None] = ContextVar("looks", default=None)
_COMPARING = threading.Lock()
"""Of many threads that meet a touched file, one reads all files again."""


def links_of(rows: Rows, column: str) -> Links | None:
    """Look at the files that rows name, once within `looked_at_once`; return None where every row holds its image.
    Raises DataError."""
    looks = _looks.get()
    if looks is None:
        return _looked_at(rows, column)
    if (rows, column) not in looks:
        looks[rows, column] = _looked_at(rows, column)
    return looks[rows, column]


def _looked_at(rows: Rows, column: str) -> Links | None:
    names = names_of(rows, column)
    if names is None:
        return None
    finder = Finder(rows, column)
    files = tuple(finder.find(row, name) if name is not None else None for row, name in enumerate(names.to_pylist()))
    stamp = hashlib.blake2b(digest_size=16)
    for file in files:
        stamp.update(repr(file and (file.location, file.size, file.changed)).encode(errors="backslashreplace"))
    return Links(stamp.hexdigest(), rows, column, files)


def names_of(rows: Rows, column: str) -> pa.ChunkedArray | None:
    """Read the path in each row, null where it holds the image itself; return None where no row has a path that counts.
    Raises DataError for paths that are no text."""
    values = rows.table[column]
    kind = values.type
    if is_text(kind):
        return values
    if is_bytes(kind) and (values[0].as_py() or b"").lower().endswith(_SUFFIXES):
        return _as_text(rows, column, values)  # some writers of Parquet make bytes of texts
    if not pa.types.is_struct(kind) or kind.get_field_index("path") < 0:
        return None
    paths = pc.struct_field(values, "path")
    if kind.get_field_index("bytes") >= 0:
        lacking = pc.is_null(pc.struct_field(values, "bytes"))
        paths = pc.if_else(lacking, paths, pa.scalar(None, paths.type))
    if paths.null_count == len(paths):
        return None
    if is_text(paths.type):
        return paths
    if not is_bytes(paths.type):
        raise rows.fault(f"is of type {kind}; its 'path' must be text", column=column)
    return _as_text(rows, column, paths)


def _as_text(rows: Rows, column: str, names: pa.ChunkedArray) -> pa.ChunkedArray:
    try:
        return names.cast(pa.large_string())
    except pa.ArrowInvalid as error:
        row = first_that_is_not_utf8(names)
        if row is not None and b"\0" in names[row].as_py():
            words = "holds bytes that are no text, where other rows name files; give either in all rows"
            raise rows.fault(words, column=column, row=row) from error
        raise rows.fault(NOT_UTF8, column=column, row=row) from error


def _hash(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=16).digest()


def _local(linked: Linked, most: int) -> tuple[bytes, int, int | None]:
    """Read a file on a local disk, and after that its size and time of change."""
    with Path(linked.location).open("rb", buffering=0) as file:
        content = file.readall() if most < 0 else file.read(most)
        info = os.fstat(file.fileno())
        return content, info.st_size, info.st_ctime_ns


def _remote(linked: Linked, most: int) -> tuple[bytes, int, int | None]:
    assert linked.filesystem is not None, "a file on a local disk is read by `_local`"
    with linked.filesystem.open_input_file(linked.inside) as file:
        content = file.read(None if most < 0 else most)
    info = linked.filesystem.get_file_info(linked.inside)
    return content, info.size or 0, info.mtime_ns or None
