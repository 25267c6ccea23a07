"""The shape of a file's tables, before anything is made of them: how deep they are, and keys in two spellings."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping

from pydantic import JsonValue

from jobs.config import ConfigIssue
from orchestrator.sweep.model import Space

DEEPEST = 20
"""Tables and lists within one another. A sweep needs six."""

MOST_BITS = 10_000
"""Of a whole number. Python writes none of more than 4,300 digits."""


def shape_issues(raw: Mapping[str, object]) -> Iterator[ConfigIssue]:
    """Yield an issue for what nothing can be made of: tables that are too deep, and numbers that cannot be written."""
    waiting: list[tuple[object, tuple[str, ...], int]] = [(raw, (), 0)]
    while waiting:
        value, keys, depth = waiting.pop()
        if depth > DEEPEST:
            yield ConfigIssue(".".join(keys[:3]), "", f"has lists or tables within one another, deeper than {DEEPEST}")
            return
        if isinstance(value, Mapping):
            waiting += [(inner, (*keys, str(name)[:60]), depth + 1) for name, inner in value.items()]
        elif isinstance(value, list):
            waiting += [(inner, keys, depth + 1) for inner in value]
        elif isinstance(value, int) and value.bit_length() > MOST_BITS:
            yield ConfigIssue(".".join(keys), "", f"is a whole number of {value.bit_length():,} bits; none is so large")
            return


def twice_issues(raw: Mapping[str, JsonValue]) -> Iterator[ConfigIssue]:
    """Yield an issue for each key in two spellings, such as "batch.size" and batch.size: one would be lost."""
    tune = raw.get("tune")
    tune = tune if isinstance(tune, Mapping) else {}
    flat = {"compare": raw.get("compare")}
    for name, table in (("exclude", raw), ("arm", raw), ("tune.defaults", tune)):
        listed = table.get(name.removeprefix("tune."))
        flat |= {f"{name}[{index}]": item for index, item in enumerate(listed if isinstance(listed, list) else ())}
    if isinstance(spaces := tune.get("space"), Mapping):
        tuned = list(spaces_in(spaces))
        yield from _repeated("tune.space", (key for key, _ in tuned))
        for key, space in tuned:
            if isinstance(space, Mapping):
                flat[f"tune.space.{key}.when"] = space.get("when")
    for where, item in flat.items():
        if isinstance(item, Mapping):
            yield from _repeated(where, _leaves(item))


def spaces_in(table: Mapping[str, JsonValue], prefix: str = "") -> Iterator[tuple[str, JsonValue]]:
    """Yield the tuned keys and their spaces, however they are nested."""
    known = set(Space.model_fields)
    for key, value in table.items():
        inner = value if isinstance(value, dict) else {}
        if inner and all(isinstance(below, dict) for below in inner.values()) and not known & set(inner):
            yield from spaces_in(inner, f"{prefix}{key}.")
        else:
            yield prefix + key, value


def _leaves(table: Mapping[str, JsonValue], prefix: str = "") -> Iterator[str]:
    """Yield the dotted keys of nested tables, as `flatten` makes them."""
    for key, value in table.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield prefix + key


def _repeated(where: str, keys: Iterable[str]) -> Iterator[ConfigIssue]:
    for key, count in Counter(keys).items():
        if count > 1:
            expected = 'is there in two spellings, as "a.b" and as a.b or [a] b; keep one of them'
            yield ConfigIssue(f"{where}.{key}", "", expected)
