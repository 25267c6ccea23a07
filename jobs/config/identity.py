"""What a trial's id is made of, so that the same job has the same id on every machine, and a new field renames nothing.

Rules 2 hash what differs from the defaults that the run was planned with. Rules 1, those of the first version, hashed
the whole job; for runs begun with it they are kept, without the fields that came later. No torch, no ray.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection, Mapping
from functools import cache

from pydantic import BaseModel, JsonValue

from jobs.config.json_values import Json, JsonObject
from jobs.config.validation import section_of

SCHEMA = 2
"""Goes into every id, and up when the meaning of an existing field changes: old and new trials then never share one."""

_FIRST = """
    task stage seed budget.samples budget.steps budget.seconds data.train data.tune data.confirm data.columns
    data.max_tokens data.image_shape augment.crop augment.flip augment.brightness model.name model.width
    model.layers model.heads model.patch model.vocabulary model.norm model.pooling model.projection
    model.projection_width model.dropout model.precision loss.name loss.temperature loss.temperature_start
    loss.temperature_range loss.symmetric loss.same_side loss.hard_negative_weight loss.mask_duplicates
    loss.margin loss.bias loss.mlm_weight loss.mlm_probability batch.size batch.pool optimizer.name optimizer.lr
    optimizer.weight_decay optimizer.betas optimizer.momentum optimizer.warmup optimizer.schedule optimizer.clip
    evaluate.times evaluate.head evaluate.neighbours evaluate.references evaluate.probe evaluate.batch
    execution.ranks execution.micro execution.micro_tokens execution.keep_graphs execution.graph_memory_mb
    execution.tile execution.exchange execution.compile execution.verify execution.threads execution.device
    execution.checkpoint_every execution.keep_checkpoints execution.deadline_s
"""

FIRST_FIELDS = frozenset(_FIRST.split())
"""Job keys of the version that hashed whole jobs."""

FORMER: dict[str, JsonValue] = {"model.pooling": "mean", "data.max_tokens": 32}
"""Defaults of earlier versions, where they are others today. Runs that did not write theirs down had these; and ids
count from them, so that a job by today's default shares no id with one by the former."""


FOLLOWED: dict[str, JsonValue] = {"model.pooling": "auto", "data.max_tokens": None}
"""The defaults that have taken the place of the former ones."""


def hashed(job: Mapping[str, JsonValue], *, rules: int, defaults: JsonObject, code: str | None = None) -> str:
    """Hash a job as plain JSON, stage and seed included, to twelve hex digits of sha256.

    rules: those of the run. defaults: by dotted key; what equals them is left out. code: digest of the user's code.
    """
    if rules < 2:
        return _digest(first_version(job, defaults))
    flat = flat_values(job)
    counted = {key: flat[key] for key in flat if not _is_default(key, flat, defaults)}
    return _digest({"schema": SCHEMA, "job": counted} | ({} if code is None else {"code": code}))


def first_version(job: Mapping[str, JsonValue], defaults: JsonObject) -> dict[str, JsonValue]:
    """Return a job as the first version wrote it: without later fields, unless they are set."""

    def kept(table: Mapping[str, JsonValue], prefix: str) -> dict[str, JsonValue]:
        left: dict[str, JsonValue] = {}
        for name, value in table.items():
            key = prefix + name
            if isinstance(value, dict):
                inner = kept(value, f"{key}.")
                if inner or any(field.startswith(f"{key}.") for field in FIRST_FIELDS):  # else a later section
                    left[name] = inner
            elif key in FIRST_FIELDS or not _is_default(key, {key: value}, defaults):
                left[name] = value
        return left

    return kept(job, "")


@cache
def default_values(model: type[BaseModel]) -> dict[str, JsonValue]:
    """Collect the default of every key of a config that has a default, sections included, by dotted key, as JSON."""
    defaults: dict[str, JsonValue] = {}
    for name, field in model.model_fields.items():
        section = section_of(field.annotation)
        if section is not None:
            defaults |= {f"{name}.{key}": value for key, value in default_values(section).items()}
        elif not field.is_required():
            defaults[name] = json.loads(canonical(field.get_default(call_default_factory=True)))
    return defaults


def counted_from(model: type[BaseModel]) -> dict[str, JsonValue]:
    """Return the values that an id leaves out: for every key its default, or the first default that it had."""
    return default_values(model) | FORMER


def with_former(job: JsonObject) -> dict[str, Json]:
    """Complete a job as given to an earlier version with the defaults of that time, where they are others today."""
    whole = _copied(job)
    for key, value in FORMER.items():
        section, name = key.split(".")
        if isinstance(table := whole.setdefault(section, {}), dict):
            table.setdefault(name, value)
    return whole


def as_begun(job: JsonObject, there: JsonObject, *, written: Collection[str] = ()) -> dict[str, Json]:
    """Return a job as it is today, with what another job, begun by an earlier version, had by the defaults of that
    time. written: keys that the job's file gives, which stay."""
    whole = _copied(job)
    for key, value in FORMER.items():
        section, name = key.split(".")
        table, begun = whole[section], there[section]
        assert isinstance(table, dict)
        assert isinstance(begun, Mapping)
        if key not in written and table[name] == FOLLOWED[key] and begun[name] == value:
            table[name] = value
    return whole


def _copied(job: JsonObject) -> dict[str, Json]:
    """Copy a job, so that its sections may be changed."""
    return {name: dict(value) if isinstance(value, Mapping) else value for name, value in job.items()}


_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)


def canonical(value: object) -> str:
    """Serialise a value as JSON with sorted keys and no white space, so that equal values have equal text."""
    return _CANONICAL.encode(value)


def flat_values(table: JsonObject, prefix: str = "") -> dict[str, Json]:
    """Flatten nested tables to dotted keys; an empty table is a value."""
    flat: dict[str, Json] = {}
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            flat |= flat_values(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def _is_default(key: str, flat: JsonObject, defaults: JsonObject) -> bool:
    return key in defaults and canonical(flat[key]) == canonical(defaults[key])


def _digest(value: object) -> str:
    return hashlib.sha256(canonical(value).encode()).hexdigest()[:12]
