"""Blocks of CSV and TSV that pyarrow reads by the rules of jobs/data/formats/tables.py, at many times the speed.

Any other block is left to those: one with a cell of several lines, with an empty line or a carriage return within a
line, with quotes that do not fit, with rows of other lengths, or with bytes that are not UTF-8.
"""

from __future__ import annotations

import codecs
import re

import pyarrow as pa

QUOTED = re.compile(rb'(?m)(?:^|,)"[^"\n]*(?:""[^"\n]*)*"(?=,|\r?$)')
"""A cell in quotes with the comma before it. Matches follow one another from the left, so that a quote that none of
them covers begins no cell, or one that does not end as it should."""

LARGEST = 1 << 30


def columns_of(block: bytes, count: int, sign: str) -> list[pa.ChunkedArray] | None:
    """Read a block of lines, a row in each, as columns of strings; return None where it has to be read with care.

    count: how many cells a row has. sign: what separates them; quotes have a meaning only if it is a comma.
    """
    if not _is_plain(block) or (sign == "," and b'"' in block and b'"' in QUOTED.sub(b"", block)):
        return None
    from pyarrow import csv

    names = [f"{number}" for number in range(count)]
    try:
        table = csv.read_csv(
            pa.BufferReader(block),
            read_options=csv.ReadOptions(column_names=names, use_threads=False, block_size=max(len(block), 1 << 20)),
            parse_options=csv.ParseOptions(
                delimiter=sign, quote_char='"' if sign == "," else False, double_quote=sign == ","
            ),
            convert_options=csv.ConvertOptions(
                column_types=dict.fromkeys(names, pa.string()),
                strings_can_be_null=False,
                quoted_strings_can_be_null=False,
            ),
        )
    except pa.ArrowInvalid:
        return None
    lines = block.count(b"\n") + (not block.endswith(b"\n"))
    return list(table.columns) if table.num_rows == lines else None


def _is_plain(block: bytes) -> bool:
    """Return whether lines end at LF or CRLF alone and none is empty, in a block without byte order mark that is not
    too large."""
    if len(block) > LARGEST or block.startswith((codecs.BOM_UTF8, b"\n", b"\r")):
        return False
    if b"\n\n" in block or b"\n\r" in block:
        return False
    return b"\r" not in block or block.count(b"\r") == block.count(b"\r\n")
