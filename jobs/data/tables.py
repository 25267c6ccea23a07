"""Files of lines as tables of text: CSV, TSV, and plain text of one sentence a line.

CSV is RFC 4180: a cell in quotes may hold commas and line ends, and a quote within it is written twice. TSV has no
quotes: a quote is a character like any other, and a cell ends at the next tab. The first line of both names the
columns; empty lines are no rows. Every cell is the text that stands there: nothing becomes a number, a date or null.
"""

from __future__ import annotations

import csv
import itertools
from collections.abc import Iterable, Iterator, Sequence

import pyarrow as pa

from jobs.data.faults import DataError, brief
from jobs.data.lines import NOT_UTF8, Lines, is_escaped, plain

BATCH = 1 << 14
"""Rows that are Python strings at once."""

LONGEST_CELL = 2**31 - 1
SIGNS = (",", "\t", ";", "|")

Row = tuple[int, Sequence[str]]
"""The line in which a row begins, and its cells."""


def sentences(lines: Iterable[str], file: str) -> tuple[pa.Table, Lines]:
    """Plain text: one column `text`, a row for each line, empty ones included."""
    return _table(["text"], _in_utf8(_whole(lines, file), file))


def tabs(lines: Iterable[str], file: str) -> tuple[pa.Table, Lines]:
    """TSV."""
    return _headed(((number, line.split("\t")) for number, line in _whole(lines, file) if line), file, "\t")


def commas(lines: Iterable[str], file: str) -> tuple[pa.Table, Lines]:
    """CSV."""
    return _headed(_quoted(lines, file), file, ",")


def delimiter_hint(header: str, sign: str) -> str:
    """What to do where a header line has another delimiter than `sign`; nothing where it has none."""
    counts = {each: header.count(each) for each in SIGNS if each != sign}
    other = max(counts, key=counts.__getitem__)
    if not counts[other]:
        return ""
    seems = f"the file seems to be separated by {other!r}"
    if sign == "\t":
        return f"{seems}: a .tsv file is separated by tabs; write it so, or name it .csv if it is separated by commas"
    if other == "\t":
        return f"{seems}: let its name end in .tsv, where quotes are part of the text"
    convert = f"csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={other!r}))"
    return f'{seems}: write commas, for example by python -c "import csv, sys; {convert}" < OLD > NEW'


def _quoted(lines: Iterable[str], file: str) -> Iterator[Row]:
    csv.field_size_limit(LONGEST_CELL)
    source = iter(lines)
    header = list(itertools.islice(source, 1))
    reader = csv.reader(itertools.chain(header, source), strict=True)
    while True:
        first = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            is_open = "end of data" in str(error)
            found = "a quote opens in this row and none closes it" if is_open else f"{error}"
            doubled = 'a cell with quotes in it stands in quotes, and they are written twice: "she said ""no"""'
            remedy = delimiter_hint("".join(header), ",") or doubled
            line = first if is_open else reader.line_num
            raise DataError(f"line {line}: {found}; {remedy}", file=file) from error
        if cells:
            yield first, cells


def _headed(rows: Iterator[Row], file: str, sign: str) -> tuple[pa.Table, Lines]:
    """Rows below a row of names, each as long as it."""
    first, names = next(rows, (1, ()))
    if any(map(is_escaped, names)):
        raise DataError(f"line {first} {NOT_UTF8}", file=file)
    return _table(names, _even(rows, file, first, names, sign))


def _even(rows: Iterator[Row], file: str, first: int, names: Sequence[str], sign: str) -> Iterator[Row]:
    for line, cells in rows:
        if len(cells) != len(names):
            every = f"every row has as many cells as the first line has names{_advice(cells, sign)}"
            remedy = delimiter_hint(sign.join(names), sign) or every
            raise DataError(f"line {line} has {_cells(cells)} where line {first} has {len(names)}: {remedy}", file=file)
        yield line, cells


def _advice(cells: Sequence[str], sign: str) -> str:
    if sign == ",":
        return "; a cell with a comma in it stands in quotes, without a space before them"
    return "; a tab within a cell, or at the end of a line, begins another cell" if len(cells) > 1 else ""


def _cells(cells: Sequence[str]) -> str:
    return f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"


def _whole(lines: Iterable[str], file: str) -> Iterator[tuple[int, str]]:
    """The lines without their ends, numbered from 1. Where one holds a newline, the file began with other line ends."""
    for number, line in enumerate(lines, 1):
        text = plain(line)
        if "\n" in text:
            raise DataError(f"line {number} mixes line ends ('{brief(text)}'); write newlines alone", file=file)
        yield number, text


def _in_utf8(lines: Iterable[tuple[int, str]], file: str) -> Iterator[Row]:
    for number, text in lines:
        if is_escaped(text):
            raise DataError(f"line {number} {NOT_UTF8}", file=file)
        yield number, (text,)


def _table(names: Sequence[str], rows: Iterator[Row]) -> tuple[pa.Table, Lines]:
    """Columns of strings, or of bytes where some are not UTF-8, and the line of each row."""
    lines, count = Lines(), 0
    chunks: list[list[pa.Array]] = [[] for _ in names]
    while batch := list(itertools.islice(rows, BATCH)):
        for line, _ in batch:
            lines.note(count, line)
            count += 1
        for place, column in enumerate(chunks):
            column.append(_strings([cells[place] for _, cells in batch]))
    return pa.Table.from_arrays([_joined(column) for column in chunks], names=list(names)), lines


def _strings(values: list[str]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([value.encode(errors="surrogateescape") for value in values], pa.binary())


def _joined(chunks: list[pa.Array]) -> pa.ChunkedArray:
    binary = any(pa.types.is_binary(chunk.type) for chunk in chunks)
    kind = pa.binary() if binary else pa.string()
    return pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
