"""Sweeps made in Python, and how they are written as the TOML file that a driver reads.

What Python gives is written first and then read as any file is, so that nothing is checked twice in two ways: the words
of an error, and what is refused, are those of the command line.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from pydantic import BaseModel, JsonValue

from jobs.config import ConfigError, ConfigIssue
from orchestrator import sweep as sweeps
from orchestrator.sweep.values import NONE, none_keys

NAME = "the sweep"
"""What an error calls a sweep that is no file."""

OF_KEYS = ("job.", "compare.", "exclude.", "arm.", "tune.defaults.", "tune.space.")
"""Where job keys stand, behind these."""

BARE = frozenset("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789_-")
"""Characters of a key without quotes."""


class Sweep(sweeps.Sweep):
    """One question and how it is answered: the tables of a sweep file as arguments, of plain dicts and lists.

    Raises ConfigError with everything that is wrong, as the command line does.
    """

    def __init__(self, **tables: object) -> None:
        checked = sweeps.loads(written(tables), name=NAME)
        super().__init__(**checked.model_dump(exclude_unset=True))

    @classmethod
    def load(cls, path: str | os.PathLike[str], overrides: Iterable[str] = ()) -> Sweep:
        """Read a sweep file. overrides: as `--set` has them. Raises ConfigError."""
        return cls._of(sweeps.load(Path(path), overrides), Path(path).parent)

    @classmethod
    def loads(cls, text: str, overrides: Iterable[str] = ()) -> Sweep:
        """Read the text of a sweep file, as `load` does."""
        return cls._of(sweeps.loads(text, overrides, name=NAME))

    def to_toml(self) -> str:
        """Return the text of its file."""
        return written(self.model_dump(exclude_unset=True))

    @classmethod
    def _of(cls, checked: sweeps.Sweep, folder: Path = Path()) -> Sweep:
        if checked.code is not None:  # its paths must mean the same wherever the sweep is written down
            paths = [str((folder / path).absolute()) for path in checked.code.paths]
            checked = checked.model_copy(update={"code": checked.code.model_copy(update={"paths": paths})})
        return cls.model_construct(_fields_set=set(checked.model_fields_set), **dict(checked))


def _with_whole_paths(tables: Mapping[str, object]) -> Mapping[str, object]:
    """Return the tables with the paths of [code] as they are from here, and without what follows from them."""
    code = tables.get("code")
    if not isinstance(code, Mapping) or not isinstance(code.get("paths"), list | tuple):
        return tables
    paths = [str(Path(path).absolute()) if isinstance(path, str | os.PathLike) else path for path in code["paths"]]
    return {**tables, "code": {key: value for key, value in code.items() if key != "digest"} | {"paths": paths}}


def written(tables: Mapping[str, object]) -> str:
    """Build the text of a sweep file with these tables. None is "none" where the file has that, and is left out
    elsewhere.

    Raises ConfigError for what no file can hold.
    """
    issues: list[ConfigIssue] = []
    plain = _Plain(issues).table(_with_whole_paths(tables), "")
    if issues:
        raise ConfigError(NAME, "sweep", issues)
    lines, below = [], []
    for key, value in plain.items():
        if isinstance(value, dict):
            below += _section(_key(key), value)
        elif isinstance(value, list) and value and all(isinstance(item, dict) for item in value):
            for item in value:
                assert isinstance(item, dict)
                below += ["", f"[[{_key(key)}]]", *(f"{_key(name)} = {_inline(inner)}" for name, inner in item.items())]
        else:
            lines.append(f"{_key(key)} = {_inline(value)}")
    return "\n".join([*lines, *below]) + "\n"


def override(key: str, value: object) -> str:
    """Build the argument of `--set` from a key and a value of Python. Raises ConfigError."""
    issues: list[ConfigIssue] = []
    plain = _Plain(issues).value(value, key)
    if issues:
        raise ConfigError("overrides", "change", issues)
    return f"{key}={_inline(NONE[0] if plain is None else plain)}"


class _Plain:
    """Values of Python as those that TOML has."""

    def __init__(self, issues: list[ConfigIssue]) -> None:
        """Take `issues`, which gets what has no form in TOML."""
        self._issues = issues

    def table(self, given: Mapping[str, object], where: str) -> dict[str, JsonValue]:
        """Convert the table under a dotted key of the file."""
        made: dict[str, JsonValue] = {}
        for key, value in given.items():
            if not isinstance(key, str):
                self._refuse(f"{where}{key}", key, "a key is a text")
                continue
            plain = self.value(value, f"{where}{key}")
            if plain is not None:
                made[key] = plain
        return made

    def value(self, given: object, where: str, *, in_list: bool = False) -> JsonValue:
        """Convert one value; return None where it is to be left out."""
        if hasattr(given, "tolist"):  # numpy's and pandas'
            given = given.tolist()
        if isinstance(given, BaseModel):
            given = given.model_dump(exclude_unset=True)
        if given is None:
            return self._none(where, in_list=in_list)
        if isinstance(given, Mapping):
            return self.table(given, f"{where}.")
        if isinstance(given, Sequence) and not isinstance(given, str | bytes | bytearray):
            return [self.value(item, where, in_list=True) for item in given]
        return self._scalar(given, where)

    def _scalar(self, given: object, where: str) -> JsonValue:
        if isinstance(given, bool | int | float):
            return given
        text = os.fspath(given) if isinstance(given, os.PathLike) else given
        if not isinstance(text, str):
            expected = "is no value of a sweep file, which has texts, numbers, true, false, lists and tables of these"
            self._refuse(where, given, expected)
            return None
        if any("\ud800" <= character <= "\udfff" for character in text):
            self._refuse(where, given, "holds half of a surrogate pair, which is no character; leave it out")
        return str(text)

    def _none(self, where: str, *, in_list: bool) -> str | None:
        above = next((table for table in OF_KEYS if where.startswith(table)), None)
        key = where.removeprefix(above or "").removesuffix(".choices")
        if where == "resources.concurrent" or (above and key.rpartition(".when.")[2] in none_keys()):
            return NONE[0]
        if above in (None, "job.") or (above == "tune.space." and key.rpartition(".")[2] in sweeps.Space.model_fields):
            return NONE[0] if in_list else None
        self._refuse(where, None, "has no form in a sweep file; name the value that it stands for, such as 'vit'")
        return None

    def _refuse(self, where: str, given: object, expected: str) -> None:
        text = repr(given)
        self._issues.append(ConfigIssue(where, text if len(text) <= 60 else f"{text[:57]}...", expected))


def _section(name: str, table: Mapping[str, JsonValue]) -> list[str]:
    """Format a table and, below it, its own tables; further tables inside those stand inline."""
    below = {key: value for key, value in table.items() if isinstance(value, dict) and "." not in name}
    lines = [f"{_key(key)} = {_inline(value)}" for key, value in table.items() if key not in below]
    lines = ["", f"[{name}]", *lines] if lines or not below else []
    for key, value in below.items():
        lines += _section(f"{name}.{_key(key)}", value)
    return lines


def _inline(value: JsonValue) -> str:
    if isinstance(value, dict):
        pairs = ", ".join(f"{_key(key)} = {_inline(inner)}" for key, inner in value.items())
        return f"{{ {pairs} }}" if pairs else "{}"
    if isinstance(value, list):
        return f"[{', '.join(map(_inline, value))}]"
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, float) and not math.isfinite(value):
        return repr(value)  # which the loader refuses by its key
    return str(value).lower() if isinstance(value, bool) else repr(value)


def _key(key: str) -> str:
    return key if key and BARE.issuperset(key) else _inline(key)
