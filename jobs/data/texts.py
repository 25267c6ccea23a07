"""Columns of text: strings that are there and hold something."""

from __future__ import annotations

import dataclasses
import functools

import pyarrow as pa
import pyarrow.compute as pc

from jobs.data.formats import is_utf8
from jobs.data.sources import Rows

BINARY = (pa.types.is_binary, pa.types.is_large_binary)


@functools.lru_cache(maxsize=8)
def as_text(rows: Rows, names: tuple[str, ...]) -> Rows:
    """The rows with these columns as strings. Raises DataError at the first null, empty, blank or not UTF-8."""
    table = rows.table
    for name in names:
        kind = table[name].type
        if not any(test(kind) for test in (pa.types.is_string, pa.types.is_large_string, *BINARY)):
            raise rows.fault(f"is of type {kind}; sentences are strings", column=name)
        chunks, at = [], 0
        for chunk in table[name].chunks:
            chunks.append(_utf8(rows, name, chunk, at))
            blank = pc.fill_null(pc.equal(pc.utf8_length(pc.utf8_trim_whitespace(chunks[-1])), 0), fill_value=True)
            row = pc.index(blank, value=True).as_py()
            if row >= 0:
                found = "is empty" if chunk[row].is_valid else "is null"
                raise rows.fault(f"{found}; remove the row or write its sentence", column=name, row=at + row)
            at += len(chunk)
        table = table.set_column(table.schema.get_field_index(name), name, pa.chunked_array(chunks))
    return dataclasses.replace(rows, table=table)


def _utf8(rows: Rows, name: str, chunk: pa.Array, at: int) -> pa.Array:
    """The chunk as strings, without a copy: the CSV reader, and some writers of Parquet, make bytes of them."""
    binary = any(test(chunk.type) for test in BINARY)
    try:
        text = chunk.cast(pa.string() if pa.types.is_binary(chunk.type) else pa.large_string()) if binary else chunk
        text.validate(full=True)
    except pa.ArrowInvalid as error:
        values = chunk.cast(pa.large_binary()).to_pylist()
        row = next((i for i, value in enumerate(values) if value is not None and not is_utf8(value)), None)
        raise rows.fault(
            "is not UTF-8; convert the file, for example by iconv -f latin1 -t utf-8",
            column=name,
            row=None if row is None else at + row,
        ) from error
    return text
