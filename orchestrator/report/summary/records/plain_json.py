"""Records of numbers, and how they become JSON."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import Field, fields
from typing import ClassVar, Protocol, runtime_checkable

from pydantic import JsonValue

from orchestrator.ledger.stored import JsonObject


@runtime_checkable
class Record(Protocol):
    """Numbers that know how they are written as JSON."""

    __dataclass_fields__: ClassVar[dict[str, Field[object]]]

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""


class AsFields:
    """What is written as JSON field by field."""

    def to_json(self: Record) -> JsonObject:
        """Return the record as JSON."""
        return fields_as_json(self)


BY_SEVERAL = ("metrics", "by_metric", "metric")
"""Fields that say something only where there are several metrics, and are left out where they are empty."""


def fields_as_json(record: Record) -> JsonObject:
    """Return the fields of a record as JSON, by name and in their order."""
    named = ((field.name, getattr(record, field.name)) for field in fields(record))
    return {name: as_json(value) for name, value in named if value or name not in BY_SEVERAL}


def as_json(value: object) -> JsonValue:
    """Convert a value of a record to JSON. Raises TypeError for what cannot be JSON."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {str(key): as_json(inner) for key, inner in value.items()}
    if isinstance(value, Sequence):
        return [as_json(inner) for inner in value]
    if isinstance(value, Record):  # last: the check of a protocol takes as long as all of the others
        return value.to_json()
    raise TypeError(f"{value!r} is no JSON")
