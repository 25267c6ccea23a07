"""The built-in components as data: what a sweep may name, with which options, and whose idea each of them is.

python -m jobs.config.catalogue      prints it as JSON; in a process of its own, as components import torch
"""

from __future__ import annotations

import importlib
import inspect
import json
import re
import sys
from typing import Any, TypedDict

from jobs.config import components
from jobs.config.components import KINDS, Kind

SOURCE = re.compile(r"arXiv:\d{4}\.\d{4,5}|kexue \d+|doi:\S+[\w)]")
"""What a docstring names a publication by."""


VERSION = 1


class Component(TypedDict):
    """A built-in."""

    kind: str
    name: str
    key: str
    """Of a job, that names it."""

    options_key: str
    default: bool
    """Whether a job has it unless it names another one."""

    description: str
    """The docstring of its module."""

    sources: list[str]
    options: dict[str, Any]
    """The JSON Schema of its options."""


def catalogue() -> list[Component]:
    """List every built-in of every kind, as components are ordered in KINDS and by name. Imports all of them."""
    return [_component(kind, name) for kind in KINDS.values() for name in sorted(_own_names(kind))]


def _own_names(kind: Kind) -> set[str]:
    """Name the built-ins that are components, and no words such as "auto"."""
    return {*components.builtin_names(kind.name)} - {*kind.names}


def _component(kind: Kind, name: str) -> Component:
    component = components.load(kind.name, name)
    module = importlib.import_module(components.module_of(kind.name, name))
    description = inspect.cleandoc(module.__doc__ or "")
    schema = components.options_model(kind.name, component).model_json_schema()
    return {
        "kind": kind.name,
        "name": name,
        "key": kind.key,
        "options_key": kind.options,
        "default": name == kind.default,
        "description": description,
        "sources": sorted(set(SOURCE.findall(description))),
        "options": {key: schema[key] for key in ("properties", "required", "$defs") if key in schema},
    }


def main() -> None:
    """Print it with the version of this form: within one, keys may be added."""
    sys.stdout.write(json.dumps({"version": VERSION, "components": catalogue()}, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
