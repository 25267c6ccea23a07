"""Cells that are likely no sentences, or not as they stand: quotes, lists, rows of cells in one column.

Where most cells of a column are so, and nobody has named the column, a run is not begun; a few are noted.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.faults import DataError, brief
from jobs.data.formats.tables import quotes_hint
from jobs.data.sentences.columns import separator
from jobs.data.sources import Rows

MOST = 0.5
"""The share of cells from which on it is no chance."""

LIST = r"""(?s)^\s*(\[\s*(['"{\[].*|[-\d][-\d.,\s]*)?\]|\{\s*(['"].*)?\})\s*$"""
SPACED = r'(?s)^\s+".*"\s*$'
WRAPPED = r'(?s)^".*"$'
DOUBLED = r'(?s)^".*"".*"$'
QUOTED = (
    "{stands} in quotes, with doubled quotes within: TSV has no quotes, so they are part of the text; write the file "
    "without them, or as .csv"
)
BREAKS = r"[\r\n]"

VERBS = {"has": ("has", "have"), "stands": ("stands", "stand"), "begins": ("begins", "begin")}
NOTED: dict[str, tuple[tuple[str, str], ...]] = {
    "": (("^\ufeff", "{begins} with a byte order mark: was the file put together from several?"),),
    ",": (
        (BREAKS, "{has} line breaks: is there a quote that was not meant to open a cell?"),
        (SPACED, "{stands} in quotes after a space, so that they are part of the text"),
    ),
    "\t": ((DOUBLED, QUOTED),),
}
OPENS, CLOSES = r'^"[^"]*$', r'^[^"]*"$'
OPEN = "{begins} with a quote that the next row closes: in TSV no cell has a line break, so these are two rows"

JSON = r"""^\s*(\[?\s*\{.*\}\s*\]?|\[\s*".*"\s*\]),?\s*$"""
LABEL = r"^__label__"
SIGNS = {"\t": 0.5, "\x01": 0.5, ";": 0.95, "|": 0.95, '","': 0.95}
"""Signs that separate cells, and the share of lines with one of them from which on they are taken to."""

NUMBERED = (r"^\s*\"?\d+\"?\s*,", r",\s*\"?[-+]?\d+(\.\d+)?\"?\s*$")
"""Rows of cells between commas, which sentences have too, begin or end with a number."""


def refuse(rows: Rows, names: Sequence[str], key: str) -> None:
    """Raise DataError where most cells of these columns, which nobody has named, are likely not meant as they stand.

    key: where to name them.
    """
    if len(rows.table.column_names) == 1:
        _refuse_rows_of_cells(rows)
    for fault, remedy in _mostly(rows, names):
        meant = f", or set {key} = {rows.table.column_names} if it is part of the text"
        raise DataError(f"{fault.found}{remedy}{meant}", file=fault.file, column=fault.column, row=fault.row)


def notes(rows: Rows, names: Sequence[str]) -> Iterator[str]:
    """Yield what may not be meant as it stands in a file of text."""
    yield from (str(fault) for fault, _ in _mostly(rows, names))
    for file, _, _, table in rows.parts():
        sign = separator(file)
        for name in names if sign or _is_plain(file) else ():
            for expression, words in NOTED[""] + NOTED.get(sign or "", ()):
                yield from _note(file, name, pc.match_substring_regex(table[name], expression), words)
        if sign == "\t" and table.num_columns == 1:
            opens, closes = (pc.match_substring_regex(table[0], quote).combine_chunks() for quote in (OPENS, CLOSES))
            yield from _note(file, names[0], pc.and_(opens[:-1], closes[1:]), OPEN)


def _note(file: str, name: str, matches: pa.Array | pa.ChunkedArray, words: str) -> Iterator[str]:
    count = pc.sum(matches).as_py()
    if count:
        cells, number = f"{count} cell{'' if count == 1 else 's'}", 0 if count == 1 else 1
        verb = words.format(**{verb: forms[number] for verb, forms in VERBS.items()})
        yield f"{file}: {cells} of column '{brief(name)}', the first in row {pc.index(matches, value=True)}, {verb}"


def _mostly(rows: Rows, names: Sequence[str]) -> Iterator[tuple[DataError, str]]:
    """Yield what is wrong with most cells of a column of a file, or a second header in it, and the remedy."""
    for file, _, first, table in rows.parts():
        sign = separator(file)
        for name in names:
            column = table[name]
            checks = [(LIST, "holds lists or objects that are written as text", "; write one text in each cell")]
            if sign == "\t":
                checks.append((WRAPPED, "stands in quotes", f"; {quotes_hint([chr(34) * 2], sign)}"))
            if sign == ",":
                checks.append((SPACED, "stands in quotes after a space", "; write no space between comma and quote"))
            for expression, words, remedy in checks:
                matches = pc.match_substring_regex(column, expression)
                count, row = pc.sum(matches).as_py() or 0, pc.index(matches, value=True).as_py()
                if count >= max(2, MOST * len(column)):
                    where = f"{words} in {count} of {len(column)} rows ('{brief(column[row].as_py())}')"
                    yield rows.fault(where, column=name, row=first + row), remedy
        if sign and table.num_columns > 1:
            same = [pc.equal(pc.utf8_trim(table[name], "\ufeff"), name.lstrip("\ufeff")) for name in names]
            both = same[0] if len(same) == 1 else pc.and_(same[0], same[1])
            row = pc.index(both, value=True).as_py()
            if row >= 0:
                words = "holds the name of its column, as if a second header: were files put together?"
                yield rows.fault(words, column=names[0], row=first + row), " Remove the row"


def _is_plain(file: str) -> bool:
    return file.lower().removesuffix(".gz").endswith(".txt")


def _refuse_rows_of_cells(rows: Rows) -> None:
    """Raise DataError where single sentences are more likely rows of cells."""
    for file, _, _, table in rows.parts():
        fault = _rows_of_cells(table[0], is_plain=_is_plain(file))
        if fault is not None:
            raise DataError(
                f"{fault}; or set data.columns = {table.column_names} if they are sentences",
                file=file,
                column=table.column_names[0],
            )


def _rows_of_cells(column: pa.ChunkedArray, *, is_plain: bool) -> str | None:
    rows = len(column)

    def count(expression: str) -> int:
        return pc.sum(pc.match_substring_regex(column, expression)).as_py() or 0

    if is_plain and count(JSON) >= MOST * rows:
        return "holds objects or lists of JSON; let the name of the file end in .jsonl"
    if is_plain and count(LABEL) >= MOST * rows:
        return "begins with __label__, which would be trained on; remove the labels"
    seem = f"which seem to be rows of cells and no sentences, such as '{brief(column[0].as_py())}'"
    headed = "let the name of the file end in {}, and write the names of the columns as its first line"
    for sign, share in SIGNS.items():
        signed = pc.sum(pc.greater(pc.count_substring(column, sign), 0)).as_py() or 0
        if (is_plain or sign == "\t") and signed >= share * rows:
            suffix, by = (".csv", "commas") if "," in sign else (".tsv", "tabs")
            return f"has {sign!r} in {signed} of {rows} rows, {seem}; separate them by {by}, {headed.format(suffix)}"
    numbered = max(count(expression) for expression in NUMBERED)
    if is_plain and numbered >= 0.95 * rows:
        return f"has commas and numbers in {numbered} of {rows} rows, {seem}; {headed.format('.csv')}"
    return None
