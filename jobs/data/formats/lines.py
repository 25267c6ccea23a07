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
from typing import IO, TYPE_CHECKING, Literal

import pyarrow as pa

from jobs.data.faults import DataError

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

SAMPLE = 1 << 16
"""Bytes at the begin of a file by which its encoding and its line ends are known."""

BLOCK = 1 << 20
"""Bytes that are read at once, and lines that are longer."""

PACKED = {
    b"\x1f\x8b": ("gzip", "add .gz to its name"),
    b"PK\x03\x04": ("a zip archive, which .xlsx files are too", "unpack it, or save the table as CSV in UTF-8"),
    b"BZh91AY&SY": ("packed by bzip2", "unpack it: bunzip2"),
    b"\xfd7zXZ\x00": ("packed by xz", "unpack it: unxz"),
    b"\x28\xb5\x2f\xfd": ("packed by zstd", "unpack it: unzstd"),
    b"PAR1": ("a Parquet file", "let its name end in .parquet"),
    b"ARROW1": ("an Arrow file", "let its name end in .arrow"),
    b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1": ("an old Excel file", "save the table as CSV in UTF-8"),
    b"version https://git-lfs.github.com/spec/": ("a pointer of Git LFS to the file", "fetch it: git lfs pull"),
    b"<!doctype html": ("a page of HTML", "download the file itself"),
    b"<html": ("a page of HTML", "download the file itself"),
}
"""First bytes of files that are no text -> what they are, and the remedy."""

MARKS = (  # the long ones first, as UTF-32 in little-endian order begins like UTF-16
    *((codecs.BOM_UTF32_LE, "UTF-32", "utf-32"), (codecs.BOM_UTF32_BE, "UTF-32", "utf-32")),
    *((codecs.BOM_UTF16_LE, "UTF-16", "utf-16"), (codecs.BOM_UTF16_BE, "UTF-16", "utf-16")),
)
CONVERT = "convert the file, for example by iconv -f {} -t utf-8"
NOT_UTF8 = (
    "is not UTF-8; convert the file from its own encoding, such as gb18030, big5, shift_jis, euc-kr, cp1251 or cp1252: "
    "iconv -f gb18030 -t utf-8"
)
Newline = Literal["\r", "\n"]


@dataclass
class Lines:
    """Which line of a file each of its rows begins in, kept as the rows at which their distance changes."""

    rows: list[int] = field(default_factory=list)
    distances: list[int] = field(default_factory=list)

    def note(self, row: int, line: int) -> None:
        """Record that row `row`, from 0, begins in line `line`, from 1. Rows come in order."""
        if not self.rows or self.distances[-1] != line - row:
            self.rows.append(row)
            self.distances.append(line - row)

    def __call__(self, row: int) -> int:
        """Return the line, from 1, where row `row`, from 0, begins."""
        return row + self.distances[bisect_right(self.rows, row) - 1]


@contextlib.contextmanager
def opened(file: str, path: str, filesystem: FileSystem | None) -> Iterator[Iterable[str]]:
    """Open the lines of a file, each with its end, while the context lasts. Raises DataError for what is no text, or
    text in UTF-16 or UTF-32.

    Lines end at newlines only; but a file without any newline, as old Macs wrote, is split at "\\r".
    """
    with _stream(file, path, filesystem) as (stream, end):
        text = io.TextIOWrapper(stream, encoding="utf-8-sig", errors="surrogateescape", newline=end)
        try:
            yield text
        finally:
            text.detach()  # the stream is closed by its own context


@contextlib.contextmanager
def blocks(file: str, path: str, filesystem: FileSystem | None) -> Iterator[Blocks]:
    """Open a file as `opened` does, but in blocks of bytes, while the context lasts."""
    with _stream(file, path, filesystem) as (stream, end):
        yield Blocks(_whole_lines(stream, end.encode()), end)


@dataclass(frozen=True)
class Blocks:
    """A file in blocks of whole lines: first the first line, then as many as come together."""

    blocks: Iterator[bytes]
    end: Newline
    """Where its lines end."""

    def __iter__(self) -> Iterator[bytes]:
        return self.blocks


def _whole_lines(stream: IO[bytes], end: bytes) -> Iterator[bytes]:
    pending: list[bytes] = []
    is_first = True
    while got := stream.read(BLOCK):
        cut = got.rfind(end) + 1
        if not cut:
            pending.append(got)
            continue
        block, pending = b"".join([*pending, got[:cut]]), [got[cut:]]
        if is_first:
            cut, is_first = block.index(end) + 1, False
            yield block[:cut].removeprefix(codecs.BOM_UTF8)
            block = block[cut:]
        if block:
            yield block
    if last := b"".join(pending):
        yield last.removeprefix(codecs.BOM_UTF8) if is_first else last


@contextlib.contextmanager
def _stream(file: str, path: str, filesystem: FileSystem | None) -> Iterator[tuple[IO[bytes], Newline]]:
    """Provide the bytes of a file, unpacked, and the sign that ends its lines, while the context lasts."""
    from pyarrow import fs

    system = filesystem or fs.LocalFileSystem()
    packing = "gzip" if file.lower().endswith(".gz") else None
    with system.open_input_stream(path, compression=None) as stream:
        _refuse_gzip(file, stream.read(2), packing)
    with system.open_input_stream(path, compression=packing) as stream:
        sample = stream.read(SAMPLE)
    _refuse_no_text(file, sample.removeprefix(codecs.BOM_UTF8).lstrip(), packing)
    _refuse_wide(file, sample)
    # The last line may end in a newline all the same, as an editor or `echo` put one there.
    lines = sample.rstrip(b"\r\n") if len(sample) < SAMPLE else sample
    is_old = b"\r" in lines and b"\n" not in lines
    with system.open_input_stream(path, compression=packing) as stream:
        yield stream, "\r" if is_old else "\n"


def plain(line: str) -> str:
    """Strip the end of a line: a newline, after carriage returns or not, or carriage returns alone."""
    return line.removesuffix("\n").rstrip("\r")


def is_escaped(text: str) -> bool:
    """Return whether the text holds bytes that were not UTF-8, or half of a character."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return True
    return False


def is_utf8(value: bytes) -> bool:
    """Return whether bytes are text in UTF-8."""
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def first_that_is_not_utf8(values: pa.Array | pa.ChunkedArray) -> int | None:
    """Find the first row of a column of bytes that is no text in UTF-8; return None where all are."""
    return next((row for row, value in enumerate(values.to_pylist()) if not is_utf8(value or b"")), None)


def _refuse_gzip(file: str, first: bytes, packing: str | None) -> None:
    if packing and first and first != b"\x1f\x8b":
        raise DataError("is not gzip, though its name ends in .gz; give it the name of what it is", file=file)


def _refuse_no_text(file: str, sample: bytes, packing: str | None) -> None:
    begin = sample[:64].lower()
    for magic, (what, remedy) in PACKED.items():
        if begin.startswith(magic.lower()):
            inside = f"holds {what} within gzip; unpack it: gunzip" if packing else f"is no text but {what}; {remedy}"
            raise DataError(inside, file=file)


def _refuse_wide(file: str, sample: bytes) -> None:
    """Refuse UTF-16 and UTF-32: by their mark, else by the zeros that letters, spaces or line ends have in them."""
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
    """Decode the sample in this encoding; its end may be cut off. Returns None if it is in another encoding."""
    try:
        return codecs.getincrementaldecoder(codec)().decode(sample)
    except UnicodeDecodeError:
        return None
