"""JSON Schemas of values that the program makes: of their types, TypedDicts and dataclasses, with what these say of
themselves. A key that is not named is allowed, so that a later version may add it."""

from __future__ import annotations

import ast
import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import pairwise
from types import NoneType, UnionType
from typing import Any, Literal, NotRequired, Required, Union, get_args, get_origin, get_type_hints, is_typeddict

from pydantic import JsonValue

Schema = dict[str, Any]
"""A JSON Schema, or a part of one."""

NAMES: dict[object, str] = {bool: "boolean", int: "integer", float: "number", str: "string", NoneType: "null"}


@dataclass
class Shapes:
    """Schemas of types, of which those with keys stand once, under `$defs`."""

    special: Mapping[type, Callable[[Shapes], Schema]] = field(default_factory=dict)
    """For a type that does not become JSON field by field: what makes its schema."""
    defs: dict[str, Schema] = field(default_factory=dict)

    def of(self, kind: Any) -> Schema:
        """Return the schema of a type. Raises TypeError for one that cannot be JSON."""
        if kind in (JsonValue, Any, object):
            return {}
        if kind in NAMES:
            return {"type": NAMES[kind]}
        if get_origin(kind) is Literal:
            return {"enum": list(get_args(kind))}
        if is_typeddict(kind) or is_dataclass(kind):
            return self._reference(kind)
        return self._of_several(get_origin(kind), get_args(kind))

    def _of_several(self, origin: object, kinds: Sequence[Any]) -> Schema:
        """Return the schema of a type that is made of others."""
        if origin in (Required, NotRequired):
            return self.of(kinds[0])
        if origin in (Union, UnionType):
            return _either([self.of(kind) for kind in kinds])
        if origin is tuple and kinds[-1] is not ...:
            items = self.of(kinds[0])
            if any(self.of(kind) != items for kind in kinds):
                raise TypeError(f"a tuple of {kinds!r} has values of several types; make it a TypedDict")
            return {"type": "array", "items": items, "minItems": len(kinds), "maxItems": len(kinds)}
        if origin in (list, tuple, Sequence):
            return {"type": "array", "items": self.of(kinds[0])}
        if origin in (dict, Mapping):
            names = {"propertyNames": self.of(kinds[0])} if get_origin(kinds[0]) is Literal else {}
            return {"type": "object", **names, "additionalProperties": self.of(kinds[1])}
        raise TypeError(f"{origin!r} of {kinds!r} is no type of JSON")

    def body(self, kind: type) -> Schema:
        """Return the schema of a type with keys, itself and no reference to it."""
        return self.special[kind](self) if kind in self.special else self.fields(kind)

    def fields(self, kind: type, *, without: Sequence[str] = (), optional: Sequence[str] = ()) -> Schema:
        """Return the schema of a type whose fields are the keys of an object, described by what it says of them."""
        hints, said = get_type_hints(kind, include_extras=True), _said_of_fields(kind)
        names = list(hints) if is_typeddict(kind) else [own.name for own in fields(kind)]
        shapes = {name: self.of(hints[name]) for name in names if name not in without}
        return {
            "type": "object",
            "description": _one_line(inspect.getdoc(kind) or ""),
            "properties": {
                name: shape | ({"description": said[name]} if name in said else {}) for name, shape in shapes.items()
            },
            "required": [
                name for name in shapes if name not in optional and get_origin(hints[name]) is not NotRequired
            ],
        }

    def named(self, name: str, body: Schema) -> Schema:
        """Put a schema under `$defs`, and return a reference to it."""
        self.defs[name] = body
        return {"$ref": f"#/$defs/{name}"}

    def _reference(self, kind: type) -> Schema:
        if kind.__name__ not in self.defs:
            self.defs[kind.__name__] = {}  # it may refer to itself
            self.defs[kind.__name__] = self.body(kind)
        return {"$ref": f"#/$defs/{kind.__name__}"}


def _either(branches: Sequence[Schema]) -> Schema:
    """Join alternatives: names of types to a list of them, None to the values of an enumeration."""
    nothing, others = {"type": "null"}, [branch for branch in branches if branch != {"type": "null"}]
    if all(set(branch) == {"type"} for branch in branches):
        return {"type": [branch["type"] for branch in branches]}
    if len(others) == 1 and set(others[0]) == {"enum"}:
        return {"enum": [*others[0]["enum"], None]}
    if {} in others:
        return {}
    return {"anyOf": [*others, *([nothing] if nothing in branches else [])]}


def _said_of_fields(kind: type) -> dict[str, str]:
    """Return what a class, and the classes of its module that it is made of, say of their fields: the text below
    each."""
    try:
        (made,) = ast.parse(textwrap.dedent(inspect.getsource(kind))).body
    except (OSError, TypeError):  # of a package without its source, the schema says what is needed
        return {}
    assert isinstance(made, ast.ClassDef)
    said: dict[str, str] = {}
    for base in made.bases:
        above = getattr(sys.modules[kind.__module__], base.id, None) if isinstance(base, ast.Name) else None
        if isinstance(above, type) and "__annotations__" in vars(above):
            said |= _said_of_fields(above)
    for line, below in pairwise(made.body):
        match line, below:
            case ast.AnnAssign(target=ast.Name(id=name)), ast.Expr(value=ast.Constant(value=str(text))):
                said[name] = _one_line(text)
    return said


def _one_line(text: str) -> str:
    """Put a docstring into one line, with JSON's word for None."""
    return re.sub(r"\bNone\b", "null", " ".join(text.split()))
