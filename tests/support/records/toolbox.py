"""The reference page of the built-in components, made of what `orchestrator schema components` prints.

python tests/support/records/toolbox.py write   put it into docs/toolbox.md
"""

from __future__ import annotations

import itertools
import json
import re
import sys
from pathlib import Path
from typing import Any

from jobs.config.catalogue import Component, catalogue

PAGE = Path(__file__).parents[3] / "docs" / "toolbox.md"

HEAD = """# Built-in components

What a sweep may name without code of its own, by kind. `orchestrator schema components` prints the same as JSON, with
the JSON Schema of every option. Names of import paths, and what a component of your own is called with:
[components.md](components.md). (This page is made by `python tests/support/records/toolbox.py write`.)
"""


def page() -> str:
    """The whole page."""
    kinds = itertools.groupby(catalogue(), key=lambda component: component["kind"])
    return "\n".join([HEAD, *("\n".join(_table(list(own))) for _, own in kinds)])


def _table(own: list[Component]) -> list[str]:
    first = own[0]
    lines = [f"## {first['kind'].capitalize()}: `{first['key']}`, options in `{first['options_key']}`", ""]
    lines += ["| name | what it is | options |", "| --- | --- | --- |"]
    for component in own:
        name = f"`{component['name']}`{' (default)' if component['default'] else ''}"
        lines.append(f"| {name} | {_cell(component['description'])} | {_options(component['options'])} |")
    return [*lines, ""]


def _cell(description: str) -> str:
    """The first paragraph, in one line."""
    text = " ".join(description.partition("\n\n")[0].split())
    return re.sub(r"(?<!\\)\|", r"\\|", text)


def _options(schema: dict[str, Any]) -> str:
    required = schema.get("required", [])
    shown = (
        f"`{name}`" if name in required else f"`{name} = {json.dumps(about.get('default'))}`"
        for name, about in schema.get("properties", {}).items()
    )
    return ", ".join(shown)


if __name__ == "__main__":
    if sys.argv[1:] == ["write"]:
        PAGE.write_text(page(), "utf-8")
    else:
        sys.stdout.write(page())
