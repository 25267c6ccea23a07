"""One file of rows, in any of the formats: its column names, its number of rows, and a function that fetches some."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

SUFFIXES = (
    *(".parquet", ".pq"),
    *(".arrow", ".feather", ".ipc"),
    *(".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    *(".jsonl", ".jsonl.gz", ".ndjson", ".json"),
    *(".txt", ".txt.gz"),
)
"""What the name of a data file ends in."""

BLOCK = 1 << 24
"""Bytes of a text file decoded at once; no cell or JSON object may be longer."""


class DataError(ValueError):
    """Data are not what a job needs. Says in which file, column and row, and what would work."""

    def __init__(self, found: str, *, file: str, column: str | None = None, row: int | None = None) -> None:
        self.found, self.file, self.column, self.row = shown(found), file, column, row
        place = [file]
        if column is not None:
            place.append(f"column '{column}'")
        if row is not None:
            place.append(f"row {row} (the first is 0)")
        super().__init__(shown(f"{', '.join(place)}: {found}"))

    def __reduce__(self) -> tuple[Any, ...]:
        made = functools.partial(type(self), file=self.file, column=self.column, row=self.row)
        return made, (self.found,), self.__dict__


@dataclass(frozen=True)
class Reader:
    """One opened file."""

    names: list[str]
    rows: int
    fetch: Callable[[list[str], int, int], pa.Table]
    """(columns, first row, row after the last) -> their table."""


def shown(text: str) -> str:
    """The text without the credentials that URIs in it may carry, which belong in no log."""
    nobody = re.sub(r"(?<=://)[^/@\s]*@", "", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:key|secret|token|passw|sig)[^=&\s]*=)[^&\s]*", r"\1***", nobody)


def short(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def reader(file: str, *, inside: str | None = None, filesystem: Any = None) -> Reader:
    """Open one file by the format that its name ends in.

    file: the name for people. inside, filesystem: where it lies, if not on a local disk.
    """
    name = file.lower()
    place = inside or file
    with _faults(file):
        if name.endswith((".parquet", ".pq")):
            return _parquet(file, place, filesystem)
        if name.endswith((".arrow", ".feather", ".ipc")):
            return _arrow(place, filesystem)
        if name.endswith(SUFFIXES):
            table = _rows_of_text(file, name.removesuffix(".gz"), place, filesystem)
            return Reader(
                table.column_names, table.num_rows, lambda names, low, high: table.select(names).slice(low, high - low)
            )
    raise DataError(f"is of no known format; the name must end in {', '.join(SUFFIXES)}", file=file)


@contextlib.contextmanager
def _faults(file: str) -> Iterator[None]:
    """Turns what pyarrow raises on a damaged file into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(
            f"cannot be read, it may be cut short or damaged ({short(error)}); copy it again", file=file
        ) from error


def _parquet(file: str, place: str, filesystem: Any) -> Reader:
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(place, filesystem=filesystem, memory_map=filesystem is None)
    groups = [opened.metadata.row_group(i).num_rows for i in range(opened.num_row_groups)]

    def fetch(names: list[str], low: int, high: int) -> pa.Table:
        wanted, first, skipped = [], 0, 0
        for index, rows in enumerate(groups):
            if first + rows <= low:
                skipped += rows
            elif first < high:
                wanted.append(index)
            first += rows
        with _faults(file):
            table = opened.read_row_groups(wanted, columns=names, use_threads=False).select(names)
        return table.slice(low - skipped, high - low)

    return Reader(opened.schema_arrow.names, opened.metadata.num_rows, fetch)


def _arrow(place: str, filesystem: Any) -> Reader:
    """An Arrow file (Feather version 2 is one) or an Arrow stream, mapped if it is local."""
    from pyarrow import ipc

    source = filesystem.open_input_file(place) if filesystem is not None else pa.memory_map(place)
    magic = source.read(6)
    source.seek(0)
    table = (ipc.open_file(source) if magic == b"ARROW1" else ipc.open_stream(source)).read_all()
    return Reader(
        table.column_names, table.num_rows, lambda names, low, high: table.select(names).slice(low, high - low)
    )


def _rows_of_text(file: str, name: str, place: str, filesystem: Any) -> pa.Table:
    """A file of lines. It is read in blocks, so that the text is in memory only once, as the table."""
    from pyarrow import fs

    stream = functools.partial((filesystem or fs.LocalFileSystem()).open_input_stream, place, compression="detect")
    try:
        with stream() as opened:
            if name.endswith(".txt"):
                return _sentences(opened)
            if name.endswith((".csv", ".tsv")):
                from pyarrow import csv

                parse = csv.ParseOptions(delimiter="\t" if name.endswith(".tsv") else ",", newlines_in_values=True)
                return csv.read_csv(opened, csv.ReadOptions(use_threads=False, block_size=BLOCK), parse)
            from pyarrow import json

            return json.read_json(opened, json.ReadOptions(use_threads=False, block_size=BLOCK))
    except (pa.ArrowInvalid, UnicodeDecodeError) as error:
        with stream() as opened:
            line = _first_bad_line(opened)
        if line is not None:
            raise DataError(
                f"line {line} is not UTF-8; convert the file, for example by iconv -f latin1 -t utf-8", file=file
            ) from error
        shape = (
            "a CSV file has as many cells in every line"
            if name.endswith((".csv", ".tsv"))
            else "write one object a line"
        )
        raise DataError(f"cannot be read ({short(error)}); {shape}", file=file) from error


def _sentences(stream: Any) -> pa.Table:
    """One sentence a line."""
    chunks, rest = [], b""
    while block := stream.read(BLOCK):
        lines, mark, rest = (rest + block).rpartition(b"\n")
        if mark:
            chunks.append(_lines(lines))
    if rest:
        chunks.append(_lines(rest))
    return pa.table({"text": pa.chunked_array(chunks, pa.string())})


def _lines(block: bytes) -> pa.Array:
    return pa.array([line.removesuffix("\r") for line in block.decode("utf-8").split("\n")], pa.string())


def _first_bad_line(stream: Any) -> int | None:
    """Number, from 1, of the first line that is not UTF-8."""
    number, rest = 0, b""
    while block := stream.read(BLOCK):
        *lines, rest = (rest + block).split(b"\n")
        for line in lines:
            number += 1
            if not is_utf8(line):
                return number
    return number + 1 if not is_utf8(rest) else None


def is_utf8(line: bytes) -> bool:
    """Whether these bytes are text in UTF-8."""
    try:
        line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
