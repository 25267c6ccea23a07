"""What JSON holds, as types: of jobs, records and results where they are plain JSON, as they are stored and sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

Json: TypeAlias = str | int | float | bool | Sequence["Json"] | Mapping[str, "Json"] | None
"""A value. What is read from a file has lists and dicts; what is written may have any sequence and mapping."""

JsonObject: TypeAlias = Mapping[str, Json]
"""An object: keys and values."""
