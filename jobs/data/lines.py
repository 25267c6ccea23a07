"""A file of text, opened: unpacked, decoded, without its byte order mark, and refused by name where it is no text.

Bytes that are not UTF-8 stay what they are (as lone surrogates, `surrogateescape`), so that they matter only in a
column that is used.
"""

from __future__ import annotations

import codecs
import contextlib
import io
from bisect import bisect_right
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from jobs.data.faults import DataError

SAMPLE = 1 << 16
"""Bytes at the begin of a file by which its encoding and its line ends are known."""

PACKED = {
    b"\x1f\x8b": ("gzip", "add .gz to its name"),
    b"PK\x03\x04": ("a zip archive, which .xlsx files are too", "unpack it, or save the table as CSV in UTF-8"),
    b"BZh91AY&SY": ("packed by bzip2", "unpack it: bunzip2"),
    b"\xfd7zXZ\x00": ("packed by xz", "unpack it: unxz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it: unzstd"),
    b"PAR1": ("a Parquet file", "let its name end in .parquet"),
    b"ARROW1": ("an Arrow file", "let its name end in .arrow"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old Excel file", "save the table as CSV in UTF-8"),
}
"""First bytes of files that are no text -> what they are, and the remedy."""

MARKS = (  # the long ones first, as UTF-32 in little-endian order begins like UTF-16
    *((codecs.BOM_UTF32_LE, "UTF-32", "utf-32"), (codecs.BOM_UTF32_BE, "UTF-32", "utf-32")),
    *((codecs.BOM_UTF16_LE, "UTF-16", "utf-16"), (codecs.BOM_UTF16_BE, "UTF-16", "utf-16")),
)
CONVERT = "convert the file, for example by iconv -f {} -t utf-8"
NOT_UTF8 = f"is not UTF-8; {CONVERT.format('latin1')}"
Newline = Literal["", "\n"]


@dataclass
class Lines:
    """Which line of a file each of its rows begins in, kept as the rows at which their distance changes."""

    rows: list[int] = field(default_factory=list)
    distances: list[int] = field(default_factory=list)

    def note(self, row: int, line: int) -> None:
        """Row `row`, from 0, begins in line `line`, from 1. Rows come in order."""
        if not self.rows or self.distances[-1] != line - row:
            self.rows.append(row)
            self.distances.append(line - row)

    def __call__(self, row: int) -> int:
        """The line, from 1, of row `row`, from 0."""
        return row + self.distances[bisect_right(self.rows, row) - 1]


@contextlib.contextmanager
def opened(file: str, place: str, filesystem: Any, *, newline: Newline) -> Iterator[Iterable[str]]:
    """The lines of a file, each with its end. Raises DataError for what is no text, or text in another encoding.

    newline: where lines end, as `open` has it: "" at every kind of line end, "\\n" at newlines only; but a file without
    any newline, as old Macs wrote, is split at "\\r".
    """
    from pyarrow import fs

    system = filesystem or fs.LocalFileSystem()
    packing = "gzip" if file.lower().endswith(".gz") else None
    with system.open_input_stream(place, compression=None) as stream:
        _refuse_packed(file, stream.read(16), packing)
    with system.open_input_stream(place, compression=packing) as stream:
        sample = stream.read(SAMPLE)
    _refuse_wide(file, sample)
    is_old = newline == "\n" and b"\r" in sample and b"\n" not in sample
    with system.open_input_stream(place, compression=packing) as stream:
        ends = "\r" if is_old else newline
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=ends)
        try:
            yield text
        finally:
            text.detach()  # the stream is closed by its own context


def plain(line: str) -> str:
    """The line without its end: a newline, after a carriage return or not, or a carriage return alone."""
    return line.removesuffix("\n").removesuffix("\r")


def is_escaped(text: str) -> bool:
    """Whether the text holds bytes that were not UTF-8, or half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def _refuse_packed(file: str, first: bytes, packing: str | None) -> None:
    if packing and first and not first.startswith(b"\x1f\x8b"):
        raise DataError("is not gzip, though its name ends in .gz; give it the name of what it is", file=file)
    for magic, (what, remedy) in PACKED.items():
        if not packing and first.startswith(magic):
            raise DataError(f"is no text but {what}; {remedy}", file=file)


def _refuse_wide(file: str, sample: bytes) -> None:
    """UTF-16 and UTF-32: by their mark, else by the zeros that letters, spaces or line ends have in them."""
    for mark, name, codec in MARKS:
        if sample.startswith(mark):
            raise DataError(f"is in {name}; {CONVERT.format(codec)}", file=file)
    # A file in UTF-8 may hold a zero here and there.
    few = 1 if _decoded(sample, "utf-8") is None else max(8, len(sample) // 50)
    if sample.count(0) < few:
        return
    for codec in ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be"):
        text = _decoded(sample, codec)
        if text is not None and "\0" not in text and ("\n" in text or "\r" in text):
            raise DataError(f"is in {codec[:6].upper()}; {CONVERT.format(codec)}", file=file)


def _decoded(sample: bytes, codec: str) -> str | None:
    """The sample in this encoding, whose end may be cut off; None if it is in another one."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return None
