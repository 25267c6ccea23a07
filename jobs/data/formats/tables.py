"""Files of lines as tables of text: CSV, TSV, and plain text of one sentence a line.

CSV is RFC 4180: a cell in quotes may hold commas and line ends, and a quote within it is written twice. TSV has no
quotes: a quote is a character like any other, and a cell ends at the next tab. The first line of both names the
columns; empty lines are no rows. Every cell is the text that stands there: nothing becomes a number, a date or null.
"""

from __future__ import annotations

import csv
import io
from collections import deque
from collections.abc import Callable, Iterator, Sequence

import pyarrow as pa

from jobs.data.faults import DataError, brief
from jobs.data.formats.lines import NOT_UTF8, Blocks, Lines, is_escaped, is_utf8, plain
from jobs.data.formats.quick import columns_of

LONGEST_CELL = 2**31 - 1
SIGNS = (",", "\t", ";", "|")

Row = tuple[int, Sequence[str]]
"""The line in which a row begins, and its cells."""


Read = Callable[[bytes, Blocks, int, str, str], tuple[list[Row], int, DataError | None]]
"""(a block, those after it, its first line, the file, its header) -> the rows that begin in it, the next line, and what
is wrong below these rows."""


def sentences(blocks: Blocks, file: str) -> tuple[pa.Table, Lines]:
    """Read plain text: one column `text`, a row for each line, empty ones included."""
    made, line = _Columns(["text"]), 1
    for block in blocks:
        texts = _texts(block, blocks.end, line, file)
        row = next((row for row, text in enumerate(texts) if is_escaped(text)), None) if not is_utf8(block) else None
        if row is not None:
            raise DataError(f"line {line + row} {NOT_UTF8}", file=file)
        made.add([pa.array(texts, pa.string())], line)
        line += len(texts)
    return made.table()


def tabs(blocks: Blocks, file: str) -> tuple[pa.Table, Lines]:
    """Read TSV."""
    return _headed(blocks, file, "\t", _tabbed)


def commas(blocks: Blocks, file: str) -> tuple[pa.Table, Lines]:
    """Read CSV."""
    return _headed(blocks, file, ",", _quoted)


def delimiter_hint(header: str, sign: str, *, any_other: bool = False) -> str:
    """Suggest a remedy where a header line has another delimiter more often than `sign`, or at all if `any_other`; else
    return an empty text."""
    counts = {other: header.count(other) for other in SIGNS if other != sign}
    other = max(counts, key=counts.__getitem__)
    if counts[other] <= (0 if any_other else header.count(sign)):
        return ""
    seems = f"the file seems to be separated by {other!r}"
    if sign == "\t":
        return f"{seems}: a .tsv file is separated by tabs; write it so, or name it .csv if it is separated by commas"
    if other == "\t":
        return f"{seems}: let its name end in .tsv, where quotes are part of the text"
    return f"{seems}: write commas, for example by {_to_commas(other)}"


def quotes_hint(cells: Sequence[str], sign: str) -> str:
    """Suggest a remedy where cells of a TSV file stand in quotes; return an empty text where they do not."""
    if sign != "\t" or not all(len(cell) > 1 and cell[0] == cell[-1] == '"' for cell in cells):
        return ""
    return (
        "TSV has no quotes, so these would be part of the text: write the file without them, or as .csv, for example "
        f"by {_to_commas(sign)}"
    )


def _to_commas(sign: str) -> str:
    convert = f"csv.writer(sys.stdout).writerows(csv.reader(sys.stdin, delimiter={sign!r}))"
    return f'python -c "import csv, sys; {convert}" < OLD > NEW'


class _Columns:
    """Columns in the making, and the line of each row."""

    def __init__(self, names: Sequence[str]) -> None:
        self.names, self.rows, self.lines = list(names), 0, Lines()
        self.chunks: list[list[pa.Array]] = [[] for _ in names]

    def add(self, columns: Sequence[pa.Array | pa.ChunkedArray], line: int) -> None:
        """Add rows that have a line each; the first is in line `line`."""
        self.lines.note(self.rows, line)
        self.rows += len(columns[0])
        for chunks, column in zip(self.chunks, columns, strict=True):
            chunks.extend(column.chunks if isinstance(column, pa.ChunkedArray) else [column])

    def add_rows(self, rows: Sequence[Row]) -> None:
        """Add rows that begin anywhere."""
        for line, _ in rows:
            self.lines.note(self.rows, line)
            self.rows += 1
        for number, chunks in enumerate(self.chunks):
            chunks.append(_strings([cells[number] for _, cells in rows]))

    def table(self) -> tuple[pa.Table, Lines]:
        """Build the table, of strings, or of bytes where some are not UTF-8; return it and the line of each row."""
        return pa.Table.from_arrays([_joined(chunks) for chunks in self.chunks], names=self.names), self.lines


def _headed(blocks: Blocks, file: str, sign: str, read: Read) -> tuple[pa.Table, Lines]:
    """Read rows below a row of names, each as long as that row. Blocks that are plain enough are read at once."""
    made: _Columns | None = None
    first, line, header = 1, 1, ""
    for block in blocks:
        header = header or _text(block)
        columns = columns_of(block, len(made.names), sign) if made is not None and blocks.end == "\n" else None
        if made is not None and columns is not None:
            made.add(columns, line)
            line += len(columns[0])
            continue
        rows, line, fault = read(block, blocks, line, file, header)
        if made is None and rows:
            first, names = rows.pop(0)
            if any(map(is_escaped, names)):
                raise DataError(f"line {first} {NOT_UTF8}", file=file)
            made = _Columns(names)
        if made is not None:
            _refuse_ragged(rows, file, first, made.names, sign)
            made.add_rows(rows)
        if fault is not None:
            raise fault
    return (made or _Columns([])).table()


def _refuse_ragged(rows: Sequence[Row], file: str, first: int, names: Sequence[str], sign: str) -> None:
    for line, cells in rows:
        if len(cells) != len(names):
            every = f"every row has as many cells as the first line has names{_advice(cells, sign)}"
            remedy = delimiter_hint(sign.join(names), sign) or every
            raise DataError(f"line {line} has {_cells(cells)} where line {first} has {len(names)}: {remedy}", file=file)


def _advice(cells: Sequence[str], sign: str) -> str:
    if sign == ",":
        return "; a cell with a comma in it stands in quotes, without a space before them"
    return "; a tab within a cell, or at the end of a line, begins another cell" if len(cells) > 1 else ""


def _cells(cells: Sequence[str]) -> str:
    return f"{len(cells)} cell{'' if len(cells) == 1 else 's'}"


def _tabbed(
    block: bytes, blocks: Blocks, line: int, file: str, _header: str
) -> tuple[list[Row], int, DataError | None]:
    texts = _texts(block, blocks.end, line, file)
    return [(number, text.split("\t")) for number, text in enumerate(texts, line) if text], line + len(texts), None


def _quoted(block: bytes, blocks: Blocks, line: int, file: str, header: str) -> tuple[list[Row], int, DataError | None]:
    csv.field_size_limit(LONGEST_CELL)
    # Lines end at every kind of line end here, as the one that is in a cell in quotes stays what it is.
    lines = deque(io.StringIO(_text(block), newline=""))
    reader = csv.reader(_fed(lines, blocks), strict=True)
    rows: list[Row] = []
    while lines:
        first = line + reader.line_num
        try:
            cells = next(reader)
        except csv.Error as error:
            is_open = "end of data" in str(error)
            words = "a quote opens in this row and none closes it" if is_open else f"{error}"
            doubled = 'a cell with quotes in it stands in quotes, and they are written twice: "she said ""no"""'
            remedy = delimiter_hint(header, ",") or doubled
            bad = first if is_open else line + reader.line_num - 1
            return rows, line, DataError(f"line {bad}: {words}; {remedy}", file=file)
        if cells:
            rows.append((first, cells))
    return rows, line + reader.line_num, None


def _fed(lines: deque[str], blocks: Blocks) -> Iterator[str]:
    """Yield these lines, and those of the next blocks while a cell in quotes is open."""
    while True:
        while lines:
            yield lines.popleft()
        more = next(iter(blocks), b"")
        if not more:
            return
        lines.extend(io.StringIO(_text(more), newline=""))


def _text(block: bytes) -> str:
    return block.decode("utf-8", "surrogateescape")


def _texts(block: bytes, end: str, line: int, file: str) -> list[str]:
    """Split a block into its lines without their ends. Raises DataError where a line holds a newline, as the file then
    began with other line ends."""
    texts = _text(block).split(end)
    if not texts[-1]:
        texts.pop()
    if end == "\n" and b"\r" not in block:
        return texts
    texts = [plain(text) for text in texts]
    row = next((row for row, text in enumerate(texts) if "\n" in text), None)
    if row is not None:
        raise DataError(f"line {line + row} mixes line ends ('{brief(texts[row])}'); write newlines alone", file=file)
    return texts


def _strings(values: list[str]) -> pa.Array:
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError:
        return pa.array([value.encode(errors="surrogateescape") for value in values], pa.binary())


def _joined(chunks: list[pa.Array]) -> pa.ChunkedArray:
    binary = any(pa.types.is_binary(chunk.type) for chunk in chunks)
    kind = pa.binary() if binary else pa.string()
    return pa.chunked_array([chunk.cast(kind) for chunk in chunks], kind)
