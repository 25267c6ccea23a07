"""The objects of a JSON file, one after the other, each with the line that it begins in.

Usually there is one object a line. Where an object takes several lines, a line has several objects, or the whole file
is one list of them, they are read all the same.
"""

from __future__ import annotations

import itertools
import json
import re
from collections.abc import Iterable, Iterator

from jobs.config.json_values import Json
from jobs.data.faults import DataError, short

ONE_A_LINE = 'write one object a line, such as {"text": "..."}'
NUMBER = "a number"

BATCH = 1 << 20
"""Signs that are decoded at once, and lines that are longer."""

_SPACE = " \t\r\n"
_PART = '"\x7f"'

_BETWEEN = {False: re.compile(r"[^ \t\r\n]|\Z"), True: re.compile(r"[^ \t\r\n,]|\Z")}
"""What begins after white space, and after commas as well, as they stand between the members of a list."""


class Twice(dict[str, Json]):
    """An object that gives some of its keys twice."""

    twice: frozenset[str] = frozenset()


def objects(text: Iterable[str], file: str) -> Iterator[tuple[int, dict[str, Json]]]:
    """Yield each object with the line where it begins. While there is one object a line, many are decoded at once."""
    source, line, is_list = iter(text), 1, None
    while batch := _batch(source):
        values = _at_once(batch)
        if values is None:
            for at, value in _decoded(itertools.chain(batch, source), file, line, is_list=is_list):
                if not isinstance(value, dict):
                    raise DataError(f"line {at} holds {kind_of(value)} and no object; {ONE_A_LINE}", file=file)
                yield at, value
            return
        yield from zip((line + at for at, held in enumerate(batch) if held.strip(_SPACE)), values, strict=True)
        line += len(batch)
        is_list = False if values else is_list


def _batch(source: Iterator[str]) -> list[str]:
    """Read the next lines, as many as are worth decoding at once."""
    lines, size = [], 0
    for line in source:
        lines.append(line)
        size += len(line)
        if size >= BATCH:
            break
    return lines


def _at_once(lines: list[str]) -> list[dict[str, Json]] | None:
    """Decode the objects of lines that hold one each or nothing but space; return None where lines hold anything else.

    They are decoded as one list. A text that occurs nowhere in them separates them, so that no line can close what
    another opens, and none can hold two.
    """
    held = [line for line in lines if line.strip(_SPACE)]
    if not held:
        return []
    joined = f",{_PART},".join(held)
    if joined.count(_PART) != len(held) - 1 or "\\u007" in joined:
        return None
    try:
        values = json.loads(f"[{joined}]", object_pairs_hook=_once)
    except (ValueError, RecursionError):
        return None
    parts = values[1::2]
    is_one_each = len(values) == 2 * len(held) - 1 and all(part == "\x7f" for part in parts)
    return values[::2] if is_one_each and all(isinstance(value, dict) for value in values[::2]) else None


def _decoded(text: Iterable[str], file: str, line: int, *, is_list: bool | None) -> Iterator[tuple[int, Json]]:
    """Yield each value, or each member of the list that is the whole file, with the line where it begins.

    line: the number of the first line. is_list: whether it is within the list; None where that is not known yet.
    A value that does not end within the lines at hand is tried again with twice as many.
    """
    decode = json.JSONDecoder(object_pairs_hook=_once).raw_decode
    source, pending, more = iter(text), "", 1
    is_over = False
    while not is_over:
        got = list(itertools.islice(source, more))
        is_over = len(got) < more
        pending, at = pending + "".join(got), 0
        while True:
            start = _begin(pending, at, is_list)
            line, at = line + pending.count("\n", at, start), start
            if at == len(pending):
                break
            if pending[at] == ("[" if is_list is None else "]" if is_list else ""):
                is_list, at = is_list is None, at + 1
                continue
            is_list = bool(is_list)
            try:
                value, end = decode(pending, at)
            except (ValueError, RecursionError) as error:
                if not is_over and _is_cut(error, pending):
                    break
                raise _no_json(error, pending, at, line, file, is_over=is_over) from error
            yield line, value
            line, at = line + pending.count("\n", at, end), end
        more = 1 if at else 2 * more
        pending = pending[at:]
    if is_list:
        raise DataError(f"the list that the file holds is cut short after line {line}; copy it again", file=file)


def _begin(pending: str, at: int, is_list: bool | None) -> int:
    match = _BETWEEN[bool(is_list)].search(pending, at)
    return len(pending) if match is None else match.start()


def _once(pairs: list[tuple[str, Json]]) -> dict[str, Json]:
    made = dict(pairs)
    if len(made) == len(pairs):
        return made
    names = [name for name, _ in pairs]
    twice = Twice(made)
    twice.twice = frozenset(name for name in made if names.count(name) > 1)
    return twice


def _is_cut(error: Exception, pending: str) -> bool:
    """Return whether the only fault is that the text ends here. A line end never lies within a string or a number."""
    return isinstance(error, json.JSONDecodeError) and error.pos >= len(pending.rstrip())


def _no_json(error: Exception, pending: str, at: int, line: int, file: str, *, is_over: bool) -> DataError:
    if is_over and (_is_cut(error, pending) or "Unterminated" in str(error)):
        return DataError(f"the object that begins in line {line} is cut short; copy the file again", file=file)
    if isinstance(error, json.JSONDecodeError):
        line += pending.count("\n", at, error.pos)
        column = error.pos - pending.rfind("\n", 0, error.pos)
        return DataError(f"line {line} is no JSON ({error.msg}, at sign {column}); {ONE_A_LINE}", file=file)
    reason = "nested too deep" if isinstance(error, RecursionError) else short(error)
    return DataError(f"line {line} cannot be read ({reason}); {ONE_A_LINE}", file=file)


def kind_of(value: object) -> str:
    """Name the kind of a JSON value, in words."""
    if isinstance(value, bool):
        return "true or false"
    kinds = {dict: "an object", list: "a list", str: "text", int: NUMBER, float: NUMBER}
    return next((words for kind, words in kinds.items() if isinstance(value, kind)), "null")
