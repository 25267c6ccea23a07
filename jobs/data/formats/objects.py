"""Files of JSON objects as columns: of the keys that are asked for and no others, whatever else the objects hold.

A file is read twice: for its keys, and for the values of those that are used.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TypeGuard

import pyarrow as pa

from jobs.config.json_values import Json, JsonObject
from jobs.data.faults import DataError, brief, listed, short
from jobs.data.formats.decoded import NUMBER, ONE_A_LINE, Twice, kind_of, objects
from jobs.data.formats.lines import NOT_UTF8, Lines, is_escaped

BATCH = 1 << 13
"""Rows that are Python objects at once."""

Open = Callable[[], AbstractContextManager[Iterable[str]]]
"""Opens a file, for its lines."""


@dataclass(frozen=True)
class Objects:
    """A file of objects."""

    file: str
    open_lines: Open
    names: list[str]
    """The keys that any object has, in the order in which they appear."""

    lists: list[str]
    """Those that hold a list or an object somewhere."""

    rows: int
    lines: Lines

    def columns(self, names: Sequence[str], low: int, high: int) -> pa.Table:
        """Read the values of these keys in the objects from `low` to before `high`; null for what an object lacks."""
        chunks: list[list[pa.Array]] = [[] for _ in names]
        first = low
        with self.open_lines() as text:
            rows = itertools.islice((held for _, held in objects(text, self.file)), low, high)
            while batch := list(itertools.islice(rows, BATCH)):
                for name, column in zip(names, chunks, strict=True):
                    column.append(self._array(name, batch, first))
                first += len(batch)
        if first != high:
            raise DataError("has changed while it was read; read it again when it is whole", file=self.file)
        joined = [self._joined(name, column, low) for name, column in zip(names, chunks, strict=True)]
        return pa.Table.from_arrays(joined, names=list(names))

    def _fault(self, words: str, name: str, row: int) -> DataError:
        return DataError(words, file=self.file, column=name, row=row, line=self.lines(row))

    def _array(self, name: str, batch: list[dict[str, Json]], first: int) -> pa.Array:
        """Build one column of a batch that begins with row `first`."""
        for row, held in enumerate(batch, first):
            if isinstance(held, Twice) and name in held.twice:
                raise self._fault("is given twice; give it once", name, row)
        values = [held.get(name) for held in batch]
        try:
            made = pa.array(values)
        except (TypeError, ValueError, OverflowError) as error:
            odd = _odd_one(values, first)
            if odd is None and all(value is None or _is_number(value) for value in values):
                return pa.array([_float(value) if _is_number(value) else None for value in values])
            row, words = odd or (first, f"is no column of one type ({short(error)})")
            raise self._fault(words, name, row) from error
        odd = _odd_one(values, first) if pa.types.is_floating(made.type) and _has_truth(values) else None
        if odd is not None:  # pyarrow makes 1.0 and 0.0 of true and false among fractions
            raise self._fault(odd[1], name, odd[0])
        return made

    def _joined(self, name: str, chunks: list[pa.Array], first: int) -> pa.ChunkedArray:
        """Join the chunks in one type: whole numbers become fractions where there are fractions."""
        kind, known = pa.null(), (first, "null")
        for chunk in chunks:
            row, held = _first(chunk, first)
            try:
                schemas = [pa.schema([(name, of)]) for of in (kind, chunk.type)]
                kind = pa.unify_schemas(schemas, promote_options="permissive").field(0).type
            except pa.ArrowException as error:
                words = f"is no column of one type ({short(error)})" if held == known[1] else _differs(held, *known)
                raise self._fault(words, name, row) from error
            known = (row, held) if known[1] == "null" else known
            first += len(chunk)
        # Whole numbers of more digits than a fraction has become the nearest, as they do within a chunk.
        return pa.chunked_array([chunk.cast(kind, safe=not pa.types.is_floating(kind)) for chunk in chunks], kind)


def survey(open_lines: Open, file: str) -> Objects:
    """Read a file for its keys. Raises DataError where it is no file of objects."""
    names: dict[str, bool] = {}
    lines, rows = Lines(), 0
    held: JsonObject = {}
    with open_lines() as text:
        for line, held in objects(text, file):
            lines.note(rows, line)
            rows += 1
            for name, value in held.items():
                if isinstance(value, list | dict):
                    names[name] = True
                elif name not in names:
                    names[name] = False
    bad = next((name for name in names if is_escaped(name)), None)
    if bad is not None:
        raise DataError(NOT_UTF8, file=file, column=bad)
    if rows == 1:
        _refuse_columns(held, file)
    return Objects(file, open_lines, list(names), [name for name in names if names[name]], rows, lines)


def _refuse_columns(only: JsonObject, file: str) -> None:
    """Raise DataError for a file whose single object holds all rows."""
    parts = [value for value in only.values() if isinstance(value, list | dict)]
    rows = [name for name, value in only.items() if isinstance(value, list) and value and isinstance(value[0], dict)]
    if only and len(parts) == len(only):
        raise DataError(
            f"holds one object ({listed(list(only))}), of columns or of rows by name; {ONE_A_LINE}", file=file
        )
    if rows:
        raise DataError(
            f"holds one object, in which '{brief(rows[0])}' is a list of objects; write the list alone, if those are "
            "the rows",
            file=file,
        )


def _odd_one(values: Sequence[Json], first: int) -> tuple[int, str] | None:
    """Find the first row with another kind of value than before, or text that cannot be encoded; and words for it."""
    known: tuple[int, str] | None = None
    for row, value in enumerate(values, first):
        if isinstance(value, str) and is_escaped(value):
            is_byte = all("\udc80" <= sign <= "\udcff" for sign in value if "\ud800" <= sign <= "\udfff")
            return row, NOT_UTF8 if is_byte else "holds half of a character (a lone surrogate); write all of it"
        if value is not None and known is None:
            known = row, kind_of(value)
        elif value is not None and known is not None and kind_of(value) != known[1]:
            return row, _differs(kind_of(value), *known)
    return None


def _has_truth(values: Sequence[Json]) -> bool:
    return any(isinstance(value, bool) for value in values)


def _differs(kind: str, row: int, known: str) -> str:
    return f"holds {kind} where row {row} holds {known}; write values of one kind, or remove the row"


def _first(chunk: pa.Array, first: int) -> tuple[int, str]:
    """Find the first row that has a value, and its kind."""
    index = next((index for index, value in enumerate(chunk) if value.is_valid), 0)
    return first + index, kind_of(chunk[index].as_py())


def _is_number(value: Json) -> TypeGuard[float]:
    return kind_of(value) == NUMBER


def _float(value: float) -> float:
    try:
        return float(value)
    except OverflowError:
        return float("inf") if value > 0 else float("-inf")
