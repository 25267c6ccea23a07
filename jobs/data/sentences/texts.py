"""Columns of text: strings that are there and hold something."""

from __future__ import annotations

import dataclasses
import functools

import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.faults import DataError
from jobs.data.formats.lines import NOT_UTF8, first_that_is_not_utf8
from jobs.data.sentences.columns import LISTS, NEGATIVE_NAME
from jobs.data.sources import Rows

BINARY = (pa.types.is_binary, pa.types.is_large_binary)
LISTED = (pa.types.is_list, pa.types.is_large_list, pa.types.is_fixed_size_list, pa.types.is_struct, pa.types.is_map)


@functools.lru_cache(maxsize=8)
def as_text(rows: Rows, names: tuple[str, ...], *, drawn: bool = False) -> Rows:
    """Convert these columns of the rows to strings. Raises DataError at the first null, empty, blank or not UTF-8.

    drawn: the second column may have lists of strings, with one at least, and later ones may, and may lack a row's.
    """
    table = rows.table
    for side, name in enumerate(names):
        kind = table[name].type
        if drawn and side and (is_list_of_texts(kind) or (side > 1 and not any(test(kind) for test in LISTED))):
            table = table.set_column(table.schema.get_field_index(name), name, _optional(rows, name, needed=side == 1))
            continue
        if any(test(kind) for test in LISTED):
            raise rows.fault(f"holds {'objects' if pa.types.is_struct(kind) else 'lists'}; {LISTS}", column=name)
        if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null, *BINARY)):
            raise rows.fault(f"is of type {kind}; sentences are strings", column=name)
        chunks, at = [], 0
        for chunk in table[name].chunks:
            chunks.append(_utf8(rows, name, chunk, at))
            blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunks[-1])), 0), fill_value=True)
            row = pc.index(blank, value=True).as_py()
            if row >= 0:
                raise _blank(rows, name, at + row, is_null=not chunk[row].is_valid)
            at += len(chunk)
        table = table.set_column(table.schema.get_field_index(name), name, pa.chunked_array(chunks))
    return dataclasses.replace(rows, table=table)


def is_list_of_texts(kind: pa.DataType) -> bool:
    """Return whether a column of this type has lists of strings; of empty lists alone nothing else is known."""
    types = pa.types
    if not any(test(kind) for test in (types.is_list, types.is_large_list, types.is_fixed_size_list)):
        return False
    of = kind.value_type
    return bool(types.is_string(of) or types.is_large_string(of) or types.is_null(of))


def _optional(rows: Rows, name: str, *, needed: bool) -> pa.ChunkedArray:
    """Check lists of strings, or strings of which some may lack. Raises DataError for a blank in a list, and for a list
    without a text where one is needed."""
    column = rows.table[name]
    if not is_list_of_texts(column.type):
        chunks = [_utf8(rows, name, chunk, 0) for chunk in column.chunks]
        blank = [pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunk)), 0) for chunk in chunks]
        kept = [pc.if_else(no, pa.scalar(None, chunk.type), chunk) for no, chunk in zip(blank, chunks, strict=True)]
        return pa.chunked_array(kept, kept[0].type)
    if pa.types.is_null(column.type.value_type):
        column = column.cast(pa.list_(pa.string()))
    at = 0
    for chunk in column.chunks:
        counts = pc.fill_null(pc.list_value_length(chunk), 0)
        none = pc.index(pc.equal(counts, 0), value=True).as_py()
        if needed and none >= 0:
            raise rows.fault("has no positive; remove the row or give it one", column=name, row=at + none)
        texts = chunk.flatten()
        blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(texts)), 0), fill_value=True)
        place = pc.index(blank, value=True).as_py()
        if place >= 0:
            row = int(pc.list_parent_indices(chunk)[place].as_py())
            raise rows.fault("has a text that is null or empty; leave it out of the list", column=name, row=at + row)
        at += len(chunk)
    return column


def _blank(rows: Rows, name: str, row: int, *, is_null: bool) -> DataError:
    words = "is null or missing" if is_null else "is empty"
    remedy = "remove the row or write its sentence"
    if NEGATIVE_NAME.fullmatch(name):
        remedy += "; all rows have equally many hard negatives: repeat one, or leave this column out of data.columns"
    return rows.fault(f"{words}; {remedy}", column=name, row=row)


def _utf8(rows: Rows, name: str, chunk: pa.Array, at: int) -> pa.Array:
    """Convert the chunk to strings, without a copy: some writers of Parquet make bytes of them, and text may not be
    UTF-8."""
    binary = any(test(chunk.type) for test in BINARY)
    if pa.types.is_null(chunk.type):
        return chunk.cast(pa.string())
    try:
        text = chunk.cast(pa.string() if pa.types.is_binary(chunk.type) else pa.large_string()) if binary else chunk
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        row = first_that_is_not_utf8(chunk.cast(pa.large_binary()))
        raise rows.fault(NOT_UTF8, column=name, row=None if row is None else at + row) from error
    return text
