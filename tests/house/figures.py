"""Figures of the house: how large its parts are, what points up, and through how many hands a value goes.

    python tests/house/figures.py [FOLDER]     of this checkout, or of another one, such as of an earlier commit

Ends with 1 where a figure is over its limit.
"""

from __future__ import annotations

import ast
import statistics
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

from shelves import ROOT, SHELVES, arrows, levels

Function = ast.FunctionDef | ast.AsyncFunctionDef

HANDS = {"temperature": "temperature", "margin": "margin", "run folder": "RunFolder"}
"""A value -> its name, or its type, in the functions that carry it."""


@dataclass(frozen=True)
class Figure:
    """One line of the table."""

    name: str
    value: float
    limit: float | None = None
    where: str = ""

    @property
    def is_over(self) -> bool:
        """Whether it is over its limit."""
        return self.limit is not None and self.value > self.limit


def figures(root: Path) -> Iterator[Figure]:
    """Every figure of the packages below a checkout."""
    sources = {
        path.relative_to(root).as_posix(): path.read_text("utf-8")
        for top in ("jobs", "orchestrator")
        for path in sorted((root / top).rglob("*.py"))
    }
    trees = {name: ast.parse(source) for name, source in sources.items()}
    entries = Counter(str(Path(part).parent) for part in _parts(sources))
    yield Figure("files", len(sources))
    yield Figure("folders", len(entries))
    fullest, most = entries.most_common(1)[0]
    yield Figure("entries of the fullest folder", most, 12, fullest)
    yield Figure("levels of folders", max(name.count("/") for name in sources))
    yield from _sizes("file", [(source.count("\n"), name) for name, source in sources.items()], 450)
    parts = [(node, name) for name, tree in trees.items() for node in ast.walk(tree)]
    classes = [(_lines(node), f"{node.name} in {name}") for node, name in parts if isinstance(node, ast.ClassDef)]
    yield from _sizes("class", classes, 300)
    functions = [(_lines(node), f"{node.name} in {name}") for node, name in parts if isinstance(node, Function)]
    yield from _sizes("function", functions, None)
    yield Figure("Any", sum(isinstance(node, ast.Name) and node.id == "Any" for node, _ in parts))
    found = arrows(root)
    yield Figure("arrows between units", len(set(found)))
    yield Figure("circles", sum(_has_circle(folder, found) for folder in {folder for folder, *_ in found}), 0)
    if root == ROOT:
        up = {arrow for arrow in found if levels(arrow[0])[arrow[1]] >= levels(arrow[0])[arrow[2]]}
        yield Figure("arrows up", len(up), 0, ", ".join(f"{user} -> {used}" for _, user, used in sorted(up)))
        yield Figure("units without a place", len(entries.keys() - SHELVES.keys()), 0)
    words = [(_words(node), f"{name}:{node.name}") for node, name in parts if isinstance(node, Function)]
    for value, name in HANDS.items():
        carry = {place for names, place in words if name in names}
        files = {place.partition(":")[0] for place in carry}
        yield Figure(f"functions that carry the {value}", len(carry), None, f"in {len(files)} files")


def _parts(sources: dict[str, str]) -> set[str]:
    """Every file and folder, `__init__` left out."""
    names = {name for name in sources if not name.endswith("__init__.py")}
    return names | {str(folder) for name in sources for folder in list(Path(name).parents)[:-2]}


def _lines(node: ast.ClassDef | Function) -> int:
    return (node.end_lineno or node.lineno) - node.lineno + 1


def _sizes(kind: str, sizes: list[tuple[int, str]], limit: int | None) -> Iterator[Figure]:
    longest, where = max(sizes)
    yield Figure(f"median {kind}, lines", statistics.median(size for size, _ in sizes))
    yield Figure(f"longest {kind}, lines", longest, limit, where)


def _has_circle(folder: str, found: list[tuple[str, str, str]]) -> bool:
    graph: dict[str, set[str]] = {}
    for place, user, used in found:
        if place == folder and user != used:
            graph.setdefault(user, set()).add(used)
    try:
        TopologicalSorter(graph).prepare()
    except CycleError:
        return True
    return False


def _words(node: Function) -> set[str]:
    """Collect the names of a function's values and the types of its parameters."""
    given = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    types = {word for one in given if one.annotation for word in ast.unparse(one.annotation).split()}
    values = (getattr(below, key, None) for below in ast.walk(node) for key in ("id", "arg", "attr"))
    return types | {value for value in values if value is not None}


def main(arguments: list[str]) -> int:
    """Print the table. Returns the exit status."""
    found = list(figures(Path(arguments[0]).resolve() if arguments else ROOT))
    for one in found:
        limit = "" if one.limit is None else f"at most {one.limit:g}" + ("  OVER" if one.is_over else "")
        sys.stdout.write(f"{one.name:<44}{one.value:>8g}  {limit:<20}{one.where}".rstrip() + "\n")
    return int(any(one.is_over for one in found))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
