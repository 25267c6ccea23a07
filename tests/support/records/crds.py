"""What an API server does with an object of a custom kind, from its CustomResourceDefinition: told in JSON schemas.

A CustomResourceDefinition drops unknown fields in silence. Here they are faults, for a field that is dropped does not
do what whoever wrote it meant.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml

METADATA: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["name"],
    "properties": {
        "name": {"type": "string"},
        "namespace": {"type": "string"},
        "labels": {"type": "object", "additionalProperties": {"type": "string"}},
        "annotations": {"type": "object", "additionalProperties": {"type": "string"}},
    },
}
"""Of any kind, as manifests say it: definitions leave it out."""

BITS = {"int32": 31, "int64": 63}


def schemas() -> Path:
    """The folder that $ORCHESTRATOR_SCHEMAS names. Skips without."""
    root = os.environ.get("ORCHESTRATOR_SCHEMAS")
    if not root:
        pytest.skip("$ORCHESTRATOR_SCHEMAS is not set: it names a folder with KubeRay's and Compose's schemas")
    return Path(root)


@cache
def crd(name: str) -> dict[str, Any]:
    """The stored version of the definition in `NAME.yaml` of that folder: apiVersion, kind, schema, validator."""
    found = yaml.safe_load((schemas() / f"{name}.yaml").read_text())["spec"]
    (version,) = (one for one in found["versions"] if one["storage"])
    schema = version["schema"]["openAPIV3Schema"]
    return {
        "apiVersion": f"{found['group']}/{version['name']}",
        "kind": found["names"]["kind"],
        "schema": schema,
        "validator": jsonschema.Draft202012Validator(strict(schema)),
    }


def strict(schema: dict[str, Any], *, root: bool = True) -> dict[str, Any]:
    """A structural schema of Kubernetes as a JSON schema that takes no unknown field and no number out of range."""
    known = {
        key: value for key, value in schema.items() if key not in ("properties", "items", "description", "default")
    }
    if "properties" in schema:
        known["properties"] = {name: strict(one, root=False) for name, one in schema["properties"].items()}
        if not schema.get("x-kubernetes-preserve-unknown-fields"):
            known["additionalProperties"] = False
    elif isinstance(schema.get("additionalProperties"), dict):
        known["additionalProperties"] = strict(schema["additionalProperties"], root=False)
    if "items" in schema:
        known["items"] = strict(schema["items"], root=False)
    if schema.get("format") in BITS:
        limit = 2 ** BITS[schema["format"]]
        known["minimum"] = max(known.get("minimum", -limit), -limit)
        known["maximum"] = min(known.get("maximum", limit - 1), limit - 1)
    if schema.get("nullable") and "type" in known:
        known["type"] = [known["type"], "null"]
    if root:  # what holds for every kind, and is checked as such
        known["properties"]["metadata"] = METADATA
        known["required"] = ["apiVersion", "kind", "metadata", "spec"]
    return known


def faults(one: dict[str, Any], kind: dict[str, Any]) -> list[str]:
    """What an API server would refuse or drop of an object, in words; none where it takes it whole. kind: of `crd`."""
    named = {"apiVersion": kind["apiVersion"], "kind": kind["kind"]}
    wrong = [f"{key}: {one.get(key)!r} is not {value!r}" for key, value in named.items() if one.get(key) != value]
    shape = [f"{error.json_path}: {error.message}" for error in kind["validator"].iter_errors(one)]
    return wrong + shape + ([] if shape else list(_twice(one, kind["schema"], "$")))


def _twice(value: Any, schema: dict[str, Any], at: str) -> Iterator[str]:
    """Items of a list whose keys must be unique and are not: two containers of one name, for example."""
    if isinstance(value, dict):
        for name, inner in value.items():
            under = schema.get("properties", {}).get(name, schema.get("additionalProperties"))
            if isinstance(under, dict):
                yield from _twice(inner, under, f"{at}.{name}")
    elif isinstance(value, list) and "items" in schema:
        keys: list[Any] = []
        if schema.get("x-kubernetes-list-type") == "map":
            fields, items = schema["x-kubernetes-list-map-keys"], schema["items"]["properties"]
            keys = [tuple(one.get(key, items[key].get("default")) for key in fields) for one in value]
        elif schema.get("x-kubernetes-list-type") == "set":
            keys = value
        yield from (f"{at}: {key!r} comes twice" for k, key in enumerate(keys) if key in keys[:k])
        for k, one in enumerate(value):
            yield from _twice(one, schema["items"], f"{at}[{k}]")
