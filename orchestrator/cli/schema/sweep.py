"""The JSON Schema of the sweep file, for editors: made of the models that check it, in the forms that the loader reads.

Where the loader takes more than the models, so does the schema: `extends`, under which nothing is missing; dotted keys
and tables for one and the same key; "none" for a key without a value, as TOML has no null; one value or several in
[[exclude]] and `when`. It says what each key may be. What keys must be to one another, only `orchestrator plan` says.

The values of each job key stand once, under `$defs`, whatever tables name the key. No torch, no ray.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

from pydantic import BaseModel

from jobs.config import JobConfig
from orchestrator.sweep import Space, Sweep
from orchestrator.sweep.limits import LONGEST_NAME
from orchestrator.sweep.space import CLOSED
from orchestrator.sweep.validate import FIXED, METRICS
from orchestrator.sweep.values import NONE, none_keys

Schema = dict[str, Any]
"""A JSON Schema, or a part of one, as pydantic makes it."""

Tree = dict[str, "str | Tree"]
"""Name of a key -> its dotted name; of a section -> the same of what is in it."""

DIALECT = "https://json-schema.org/draft/2020-12/schema"

NONES: list[Schema] = [
    {"const": NONE[0]},
    {"type": "string", "pattern": f"^({'|'.join(''.join(f'[{c.upper()}{c}]' for c in word) for word in NONE)})$"},
]
"""The texts that stand for None; the first one is what an editor offers."""

COMPLETE = "complete"


def sweep_schema() -> Schema:
    """Build the whole schema, as JSON."""
    sweep, job = (_as_toml(model) for model in (Sweep, JobConfig))
    known = job.pop("$defs") | sweep.pop("$defs")
    required = {"sweep": sweep.pop("required"), "job": [name for name in job.pop("required") if name in FIXED]}
    required |= {name: table.pop("required", []) for name, table in known.items()}
    leaves = _Leaves(job, known)
    for name in ("stage", "seed"):
        del job["properties"][name]
    keys = sweep["properties"]
    keys["name"]["maxLength"] = LONGEST_NAME
    keys["job"] = {**job, "description": keys["job"]["description"]}
    keys["compare"] |= leaves.table(_levels, FIXED)
    keys["exclude"]["items"] = leaves.table(_alternatives, FIXED)
    keys["arm"]["items"] = leaves.table(_job, FIXED)
    keys["arm"]["items"]["properties"]["label"] = {
        "type": ["string", "integer"],
        "description": "What the arm is called in tables, charts and commands.",
    }
    keys["arm"]["items"]["required"] = ["label"]
    for name in ("Metric", "OneMetric"):
        known[name]["properties"]["name"]["anyOf"] = [
            {"enum": sorted({name for names in METRICS.values() for name in names})},
            {"type": "string"},
        ]
    known["OneMetric"]["required"] = required["OneMetric"]  # a list takes the place of what it extends
    several = "Or several: tuning looks at the first one, and all are one family of the verdict."
    listed = {"type": "array", "minItems": 1, "items": {"$ref": "#/$defs/OneMetric"}}
    about = keys["metric"].pop("description")
    keys["metric"] = {"anyOf": [keys["metric"], listed], "description": f"{about} {several}"}
    concurrent = known["Resources"]["properties"]["concurrent"]
    concurrent["anyOf"] = [{key: concurrent.pop(key) for key in ("type", "exclusiveMinimum")}, *NONES]
    tune = known["Tune"]["properties"]
    tune["defaults"]["items"] = leaves.table(_job, CLOSED)
    space = known.pop("Space")["properties"]
    known["when"] = leaves.table(_alternatives, {}) | {"description": space["when"]["description"]}
    known["when"]["properties"]["arm"] = _alternatives({"type": "string"}, "The label of an arm, or some of them.")
    leaves.defs |= {f"space.{name}": field for name, field in space.items() if name not in ("choices", "when")}
    tune["space"] |= leaves.table(_space, CLOSED)
    del known["Code"]["properties"]["digest"]
    keys["extends"] = {
        "type": "string",
        "description": "Path of another sweep file, beside this one, whose keys this one changes or adds to.",
    }
    return {
        "$schema": DIALECT,
        "title": "Sweep",
        **sweep,
        "not": {
            "required": ["compare", "arm"],
            "properties": {"compare": {"minProperties": 1}, "arm": {"minItems": 1}},
        },
        "if": {"required": ["extends"]},
        "then": {},
        "else": _complete(sweep, required),
        "$defs": {**known, **leaves.defs, COMPLETE: _complete_space()},
    }


Form = Callable[[Schema, str], Schema]
"""Makes what stands for a key in a table: of a reference to the schema of its values, and its description."""


class _Leaves:
    """The keys of a job that hold a value, by their dotted names."""

    def __init__(self, job: Schema, known: Mapping[str, Schema]) -> None:
        """Replace the values of each key by a reference to them."""
        self.defs: dict[str, Schema] = {}
        self._tree = self._collected(job, known, "")

    def table(self, form: Form, closed: Mapping[str, str]) -> Schema:
        """Build a table of job keys, each dotted or in a table of its section; closed keys and sections are not in
        it."""
        tree = {name: below for name, below in self._tree.items() if name not in closed}
        return {"type": "object", "additionalProperties": False} | self._nested(tree, form)

    def _collected(self, table: Schema, known: Mapping[str, Schema], prefix: str) -> Tree:
        """Map each name to the same of a section, or to the dotted key."""
        tree: Tree = {}
        for name, field in table["properties"].items():
            key = prefix + name
            section = known.get(field.get("$ref", "").rpartition("/")[2], {})
            if "properties" in section:
                tree[name] = self._collected(section, known, f"{key}.")
            else:
                self.defs[f"job.{key}"] = _or_none(field) if key in none_keys() else field
                table["properties"][name] = {"$ref": f"#/$defs/job.{key}"}
                tree[name] = key
        return tree

    def _nested(self, tree: Tree, form: Form) -> Schema:
        """Return the keys of a tree as `properties` and, for tables of any keys, as `patternProperties`."""
        properties: dict[str, Schema] = {}
        patterns: dict[str, Schema] = {}
        for name, below in tree.items():
            if isinstance(below, dict):
                inner = self._nested(below, form)
                about = {"type": "object", "additionalProperties": False, "description": f"Of the section {name}."}
                properties[name] = about | inner
                properties |= {f"{name}.{key}": value for key, value in inner["properties"].items()}
                patterns |= {f"^{name}\\.{key[1:]}": value for key, value in inner.get("patternProperties", {}).items()}
            elif self.defs[f"job.{below}"].get("type") == "object":
                properties[name] = self.defs[f"job.{below}"]
                patterns[f"^{name}\\."] = form({}, f"One of {below}.")
            else:
                properties[name] = self._of(below, form)
        return {"properties": properties} | ({"patternProperties": patterns} if patterns else {})

    def _of(self, key: str, form: Form) -> Schema:
        """Build a reference to what stands for a key in tables of this form."""
        name = f"{form.__name__.strip('_')}.{key}"
        if form is not _job and name not in self.defs:
            self.defs[name] = form({"$ref": f"#/$defs/job.{key}"}, self.defs[f"job.{key}"].get("description", ""))
        return {"$ref": f"#/$defs/{name}"}


def _job(values: Schema, about: str) -> Schema:
    """Describe one value, as in a job."""
    return values | {"description": about}


def _levels(values: Schema, about: str) -> Schema:
    """Describe a list of values."""
    return {"type": "array", "minItems": 1, "items": values, "description": about}


def _alternatives(values: Schema, about: str) -> Schema:
    """Describe one value, or a list of them."""
    return {"anyOf": [values, {"type": "array", "minItems": 1, "items": values}], "description": about}


def _space(values: Schema, about: str) -> Schema:
    """Describe a range, or choices."""
    ends = {name: {"$ref": f"#/$defs/space.{name}"} for name in Space.model_fields if name not in ("choices", "when")}
    choices = _levels(values, Space.model_fields["choices"].description or "")
    keys = {**ends, "choices": choices, "when": {"$ref": "#/$defs/when"}}
    return {"type": "object", "additionalProperties": False, "properties": keys, "description": about}


def _or_none(field: Schema) -> Schema:
    """Allow the same values, or a text that stands for None."""
    about = {key: value for key, value in field.items() if key in ("description", "default")}
    values = {key: value for key, value in field.items() if key not in about}
    return about | {"anyOf": [*values.get("anyOf", [values]), *NONES]} | {"default": about.get("default", NONE[0])}


def _complete(sweep: Schema, required: Mapping[str, list[str]]) -> Schema:
    """Require the keys without defaults for a sweep that extends no other sweep, since the sections of that other may
    have them. Those of a job's sections may be in every arm instead."""
    inner: dict[str, Schema] = {"job": {"required": required["job"]}}
    for name, field in sweep["properties"].items():
        ways = [field, *field.get("anyOf", ())]
        if needs := next((own for way in ways if (own := required.get(_referred(way)))), None):
            inner[name] = {"required": needs}
    space = {"space": {"additionalProperties": {"$ref": f"#/$defs/{COMPLETE}"}}}
    inner["tune"] = inner.get("tune", {}) | {"properties": space}
    return {"required": required["sweep"], "properties": inner}


def _referred(field: Schema) -> str:
    """Return the name of the section that a field refers to; empty where it is none."""
    return str(field.get("$ref", "")).rpartition("/")[2]


def _complete_space() -> Schema:
    """Require both ends of a range; a table without any key of a space is a table of several spaces."""
    return {
        "if": {"anyOf": [{"required": [name]} for name in Space.model_fields]},
        "then": {
            "anyOf": [{"required": ["choices"]}, {"required": ["low", "high"]}],
            "not": {"anyOf": [{"required": ["choices", name]} for name in ("low", "high", "step")]},
        },
        "else": {"additionalProperties": {"$ref": f"#/$defs/{COMPLETE}"}},
    }


def _as_toml(model: type[BaseModel]) -> Schema:
    """Build the schema of a model without titles, null and the defaults of whole sections, with descriptions in one
    line; a reference has the description of what it refers to."""
    whole = model.model_json_schema()
    known = whole.get("$defs", {})

    def changed(value: object) -> object:
        if isinstance(value, list):
            return [changed(item) for item in value]
        return changed_table(value) if isinstance(value, dict) else value

    def changed_table(table: Schema) -> Schema:
        untitled = {key: value for key, value in table.items() if not (key == "title" and isinstance(value, str))}
        kept: Schema = {key: changed(value) for key, value in untitled.items()}
        if kept.get("default", 0) in (None, [], {}):
            del kept["default"]
        if "anyOf" in kept:
            branches = list(_without_null(kept.pop("anyOf")))
            kept |= branches[0] if len(branches) == 1 else {"anyOf": branches}
        if isinstance(kept.get("description"), str):
            kept["description"] = " ".join(kept["description"].split())
        if "$ref" in kept:
            kept.pop("default", None)
            above = known[kept["$ref"].rpartition("/")[2]]
            kept.setdefault("description", " ".join(above.get("description", "").split()))
        return kept

    return changed_table(whole)


def _without_null(branches: list[Schema]) -> Iterator[Schema]:
    """Yield the branches that TOML can write. A whole number is a number."""
    for branch in branches:
        if branch.get("type") != "null" and not (branch == {"type": "integer"} and {"type": "number"} in branches):
            yield branch
