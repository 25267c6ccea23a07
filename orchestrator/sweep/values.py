"""Values of job keys as a sweep file names them: texts, numbers, true and false, lists of these, and none.

TOML has no null: where a key may be None and is no text itself, the text "none" stands for it. A key that is a list in
the job, such as `optimizer.betas`, has lists as its levels and choices.
"""

from __future__ import annotations

import json
import math
from collections.abc import Hashable, Iterator, Mapping, Sequence
from functools import cache
from types import NoneType
from typing import Annotated, Literal, get_args, get_origin

from pydantic import AfterValidator, BaseModel, GetPydanticSchema, JsonValue
from pydantic_core import core_schema

from jobs.config import JobConfig
from jobs.config.validation import section_of

Settings = Mapping[str, JsonValue]
"""Dotted job keys, and a value of each. (TOML has dates too: no key has such a value, and each of them is refused.)"""

RENAMED = {"batch.pool": "batch.negatives_group"}
"""Job keys by the names that they had, which files and runs begun before still use."""


def by_todays_names(settings: Settings) -> Settings:
    """Return the settings by the names that their keys have today."""
    return {RENAMED.get(key, key): value for key, value in settings.items()}


NONE = ("none", "null")
"""Texts that stand for None, in upper or lower case."""


def _level(value: JsonValue) -> JsonValue:
    """Check a value of one key. Raises ValueError."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    return _plain(value)


def _plain(value: JsonValue) -> JsonValue:
    if value is None or isinstance(value, str | bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    raise ValueError(f"{value!r} must be a text, a number, true, false, 'none', or a list of these")


def _levels(value: JsonValue) -> JsonValue:
    """Check one value, or a list of values that are allowed. Raises ValueError."""
    if not isinstance(value, list):
        return _level(value)
    if not value:
        raise ValueError("should have at least 1 item")
    return [_level(item) for item in value]


AsGiven = Annotated[JsonValue, GetPydanticSchema(lambda _type, _handler: core_schema.any_schema())]
"""A value that pydantic passes on unread: what it may be depends on the key, which the job's own model checks."""

Level = Annotated[AsGiven, AfterValidator(_level)]
"""A value of a job key."""

Levels = Annotated[AsGiven, AfterValidator(_levels)]
"""A value, or several of which one is meant; `alternatives` tells them apart."""


def alternatives(key: str, value: JsonValue) -> list[JsonValue]:
    """List the values that `key = value` allows: all of a list, but a plain list is one value of a list key."""
    if not isinstance(value, list):
        return [value]
    if key in list_keys() and not any(item is None or isinstance(item, list) for item in value):
        return [value]
    return value


def identity(value: JsonValue) -> Hashable:
    """Return a hashable that is equal for values that make the same job: 1 and 1.0 are, 1 and true are not."""
    if isinstance(value, list | tuple):
        return tuple(map(identity, value))
    if isinstance(value, dict):  # no value of a key, as another check says
        return repr(value)
    return (isinstance(value, bool), value)


def repeated(values: Sequence[JsonValue]) -> list[JsonValue]:
    """Return a list of the first value that is there twice; an empty list if none is."""
    seen: set[Hashable] = set()
    for value in values:
        if identity(value) in seen:
            return [value]
        seen.add(identity(value))
    return []


def shown(value: JsonValue | Sequence[JsonValue]) -> str:
    """Format a value as the sweep file has it."""
    return "none" if value is None else json.dumps(value, ensure_ascii=False, default=str)


def with_none(key: str, value: JsonValue) -> JsonValue:
    """Return a value of a job key, None where the text "none" stands for it."""
    if isinstance(value, str) and value.lower() in NONE and key in none_keys():
        return None
    return value


def all_with_none(key: str, values: JsonValue) -> JsonValue:
    """Apply `with_none` to several values, or to one."""
    if not isinstance(values, list):
        return with_none(key, values)
    if key in list_keys() and not any(isinstance(item, list) for item in values):
        return values  # one value, whose items are no values of the key
    return [with_none(key, item) for item in values]


@cache
def none_keys() -> frozenset[str]:
    """Return the job keys that may be None and never the text "none"."""
    return frozenset(
        key
        for key, kinds in _kinds(JobConfig).items()
        if NoneType in kinds and str not in kinds and not any(name in kinds for name in NONE)
    )


@cache
def list_keys() -> frozenset[str]:
    """Return the job keys that are lists."""
    return frozenset(key for key, kinds in _kinds(JobConfig).items() if tuple in kinds)


def _kinds(model: type[BaseModel], prefix: str = "") -> dict[str, set[object]]:
    """Return what each key may be: types, and the texts of literals."""
    kinds: dict[str, set[object]] = {}
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is None:
            kinds[prefix + name] = set(_branches(field.annotation))
        else:
            kinds |= _kinds(section, f"{prefix}{name}.")
    return kinds


def _branches(annotation: object) -> Iterator[object]:
    origin = get_origin(annotation)
    if origin is Literal:
        yield from get_args(annotation)
    elif origin is Annotated:
        yield from _branches(get_args(annotation)[0])
    elif origin in (tuple, list):
        yield tuple
    elif origin is not None:
        for part in get_args(annotation):
            yield from _branches(part)
    else:
        yield annotation


def job_with_none(job: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """Return a nested job table with None where the text "none" stands for it."""
    return {
        name: job_with_none(value, f"{prefix}{name}.")
        if isinstance(value, Mapping)
        else with_none(f"{prefix}{name}", value)
        for name, value in job.items()
    }


def flatten(table: Mapping[str, JsonValue], prefix: str = "") -> dict[str, JsonValue]:
    """Flatten nested tables to dotted keys."""
    flat: dict[str, JsonValue] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def merged(job: Mapping[str, object], settings: Settings) -> dict[str, JsonValue]:
    """Merge dotted `settings` into a copy of `job`. Neither is changed."""
    result: dict[str, JsonValue] = json.loads(json.dumps(job, default=str))  # TOML dates are nobody's job
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        table = result
        for section in sections:
            inner = table.setdefault(section, {})
            if not isinstance(inner, dict):  # no job, as another check says
                break
            table = inner
        else:
            if sections == ["budget"]:
                table.clear()  # one way of saying it takes the place of another
            table[leaf] = value
    return result
