"""One file of rows, in any of the formats: its column names, its number of rows, and a function that fetches some."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pyarrow as pa

from jobs.data.faults import DataError, short, shown
from jobs.data.formats import objects, tables
from jobs.data.formats.lines import blocks, opened
from jobs.data.remedies import of_file

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

__all__ = ["SUFFIXES", "DataError", "Reader", "reader", "short", "shown"]

SUFFIXES = (
    *(".parquet", ".pq"),
    *(".arrow", ".feather", ".ipc"),
    *(".csv", ".csv.gz", ".tsv", ".tsv.gz"),
    *(".jsonl", ".jsonl.gz", ".ndjson", ".ndjson.gz", ".json", ".json.gz"),
    *(".txt", ".txt.gz"),
)
"""What the name of a data file ends in."""


UNPACK = {
    ".bz2": "bunzip2",
    ".xz": "unxz",
    ".zst": "unzstd",
    ".gz": "gunzip",
    ".lz4": "unlz4",
    ".zip": "unzip",
    ".tar.gz": "tar -xf",
    ".tar": "tar -xf",
    ".tgz": "tar -xf",
}


@dataclass(frozen=True)
class Reader:
    """One opened file."""

    names: list[str]
    rows: int
    fetch: Callable[[list[str], int, int], pa.Table]
    """(columns, first row, row after the last) -> their table."""

    lists: Sequence[str] = ()
    """The columns that hold lists or objects."""

    line: Callable[[int], int] | None = None
    """The line, from 1, in which a row begins; None for a format without lines."""


def reader(file: str, *, inside: str | None = None, filesystem: FileSystem | None = None) -> Reader:
    """Open one file by the format that its name ends in.

    file: the name for people. inside, filesystem: where it lies, if not on a local disk.
    """
    name = file.lower()
    path = inside or file
    with _faults(file):
        if name.endswith((".parquet", ".pq")):
            return _parquet(file, path, filesystem)
        if name.endswith((".arrow", ".feather", ".ipc")):
            return _arrow(file, path, filesystem)
        if name.endswith(SUFFIXES):
            return _text(file, path, filesystem)
    known = f"the name must end in {', '.join(SUFFIXES)}"
    raise DataError(_packed(name) or of_file(file) or f"is of no known format; {known}", file=file)


def _packed(name: str) -> str | None:
    """Return what to say of a packed file that holds rows, by its name in lower case; None for any other."""
    known = f"the name must end in {', '.join(SUFFIXES)}"
    if name.endswith((".xlsx", ".xls", ".ods")):
        return f"is a spreadsheet; save the table as CSV in UTF-8: {known}"
    for ending, command in UNPACK.items():
        if name.endswith(ending) and name.removesuffix(ending).endswith(SUFFIXES):
            return f"is packed in a way that is not read; unpack it: {command}. Of an unpacked file {known}"
    return None


@contextlib.contextmanager
def _faults(file: str) -> Iterator[None]:
    """Turn what pyarrow raises on a damaged file into a DataError that names it."""
    try:
        yield
    except DataError:
        raise
    except (OSError, EOFError, pa.ArrowException) as error:
        raise DataError(
            f"cannot be read, it may be cut short or damaged ({short(error)}); copy it again", file=file
        ) from error


def _parquet(file: str, path: str, filesystem: FileSystem | None) -> Reader:
    import pyarrow.parquet as pq

    opened = pq.ParquetFile(path, filesystem=filesystem, memory_map=filesystem is None)
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

    schema = opened.schema_arrow
    return Reader(schema.names, opened.metadata.num_rows, fetch, nested(schema))


def nested(schema: pa.Schema) -> list[str]:
    """Return the names of the columns that hold lists or objects."""
    return [field.name for field in schema if pa.types.is_nested(field.type)]


def _arrow(file: str, path: str, filesystem: FileSystem | None) -> Reader:
    """Open an Arrow file (Feather version 2 is one) or an Arrow stream, mapped if it is local."""
    from pyarrow import ipc

    source = filesystem.open_input_file(path) if filesystem is not None else pa.memory_map(path)
    magic = source.read(6)
    source.seek(0)
    if magic.startswith(b"FEA1"):
        raise DataError("is Feather of version 1; write version 2, as pyarrow.feather.write_feather does", file=file)
    table = (ipc.open_file(source) if magic == b"ARROW1" else ipc.open_stream(source)).read_all()
    return Reader(table.column_names, table.num_rows, functools.partial(_part, table), nested(table.schema))


def _text(file: str, path: str, filesystem: FileSystem | None) -> Reader:
    """Open a file of lines: of objects, of cells, or of sentences."""
    name = file.lower().removesuffix(".gz")
    if not name.endswith((".csv", ".tsv", ".txt")):
        surveyed = objects.survey(functools.partial(opened, file, path, filesystem), file)

        def fetch(names: list[str], low: int, high: int) -> pa.Table:
            with _faults(file):
                return surveyed.columns(names, low, high)

        return Reader(surveyed.names, surveyed.rows, fetch, surveyed.lists, surveyed.lines)
    kind = {".csv": tables.commas, ".tsv": tables.tabs, ".txt": tables.sentences}[name[-4:]]
    with blocks(file, path, filesystem) as text:
        table, lines = kind(text, file)
    return Reader(table.column_names, table.num_rows, functools.partial(_part, table), line=lines)


def _part(table: pa.Table, names: list[str], low: int, high: int) -> pa.Table:
    return table.select(names).slice(low, high - low)
