"""From a file to a checked sweep: TOML, one level of `extends`, `--set`, and every issue named at once."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace
from pathlib import Path

from pydantic import JsonValue, ValidationError

from jobs.config import ConfigError, ConfigIssue, issues, nearest
from jobs.config.user_code import CodeError
from orchestrator.sweep.components import code_of, component_issues
from orchestrator.sweep.limits import crowd_issues, secret_issues
from orchestrator.sweep.model import Sweep
from orchestrator.sweep.overrides import override_issues
from orchestrator.sweep.shape import DEEPEST, shape_issues, spaces_in, twice_issues
from orchestrator.sweep.validate import contradictions, job_issues
from orchestrator.sweep.values import NONE, RENAMED, all_with_none, flatten, job_with_none, with_none

LONG_NUMBER = re.compile(rb"[0-9](_?[0-9]){4299}")
"""Digits of which Python makes no number."""

_Change = Callable[[str, JsonValue], JsonValue]
"""Of a key and its value: the value that takes its place."""

LARGEST_FILE = 1_000_000
"""Bytes. A sweep is written by hand; anything larger is not one."""


def load(path: Path, overrides: Iterable[str] = ()) -> Sweep:
    """Read and check a sweep. `overrides` are `key=value` texts. Raises ConfigError with every issue found."""
    table, former = _with_base(_read(path), str(path), path.parent)
    return _checked(table, str(path), path.parent, overrides, former)


def loads(text: str, overrides: Iterable[str] = (), *, name: str = "the sweep") -> Sweep:
    """Read and check a sweep from text, which an error calls by `name`. What it extends is named as seen from here."""
    table, former = _with_base(_parsed(text.encode("utf-8", "surrogatepass"), name), name, Path())
    return _checked(table, name, Path(), overrides, former)


def _checked(
    table: dict[str, JsonValue], where: str, folder: Path, overrides: Iterable[str], notes: Iterable[str]
) -> Sweep:
    """Check the tables of a file, which include what it extends, and make the sweep.
    folder: where its paths start from."""
    raw = _normal(table)
    all_issues: list[ConfigIssue] = []
    refused: list[str] = []
    for text in overrides:
        if wrong := override_issues(raw, text):
            all_issues += wrong
            refused.append(text)
    if shapeless := list(shape_issues(raw)):
        raise ConfigError(where, "sweep", shapeless)
    raw = _with_none(_normal(raw))
    if "digest" in _table(raw, "code"):
        all_issues.append(ConfigIssue("code.digest", "", "follows from the files; remove it"))
    # Alone, since the other issues would quote them.
    if secret := [*secret_issues(raw), *secret_issues({"--set": refused})]:
        raise ConfigError(where, "sweep", secret)
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as error:
        all_issues += [_in_its_list(issue, raw) for issue in issues(error, Sweep)]
        sweep = None
    all_issues += list(crowd_issues(raw)) or job_issues(raw)
    if sweep is not None and not all_issues:
        all_issues += contradictions(sweep)
    if sweep is not None and not all_issues:
        try:
            code = code_of(sweep, folder)
            all_issues += component_issues(sweep, code)
        except CodeError as error:
            all_issues.append(ConfigIssue("code.paths" if sweep.code else "job", "", str(error)))
        else:
            sweep = sweep.as_read(None if code is None else code.digest, notes)
    if sweep is None or all_issues:
        raise ConfigError(where, "sweep", list(dict.fromkeys(all_issues)))
    return sweep


def _in_its_list(issue: ConfigIssue, raw: dict[str, JsonValue]) -> ConfigIssue:
    """Name a metric of a list by its place there, and not as the first one and what it has `also`."""
    if not isinstance(raw.get("metric"), list) or not issue.key.startswith("metric."):
        return issue
    further = re.fullmatch(r"metric\.also\.(\d+)(.*)", issue.key)
    key = f"metric[0]{issue.key[6:]}" if further is None else f"metric[{int(further[1]) + 1}]{further[2]}"
    return replace(issue, key=key, expected=issue.expected.replace("'metric.also.", "'metric."))


def _read(path: Path) -> dict[str, JsonValue]:
    def fail(what: str) -> ConfigError:
        return ConfigError(str(path), "sweep", [ConfigIssue("", "", what)])

    try:
        if path.is_dir():
            raise fail("is a folder; name the TOML file in it")
        if path.stat().st_size > LARGEST_FILE:
            size = path.stat().st_size
            raise fail(f"is {size:,} bytes; a sweep is a short TOML file, such as sweeps/quickstart.toml")
        content = path.read_bytes()
    except ConfigError:
        raise
    except FileNotFoundError as error:
        beside = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise fail(f"there is no such file{nearest(str(path), beside)}") from error
    except (OSError, ValueError) as error:
        raise fail(f"{error}; a sweep is a TOML file, such as sweeps/quickstart.toml") from error
    return _parsed(content, str(path))


def _parsed(content: bytes, name: str) -> dict[str, JsonValue]:
    """Parse the content of a file into its tables."""

    def fail(what: str) -> ConfigError:
        return ConfigError(name, "sweep", [ConfigIssue("", "", what)])

    try:
        table = tomllib.loads(_decoded(content))
    except RecursionError as error:
        raise fail(f"has lists or tables within one another, deeper than {DEEPEST}; a sweep is flat") from error
    except UnicodeDecodeError as error:
        raise fail(f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except ValueError as error:  # tomllib's error names line and column
        raise fail(f"{error}; a sweep is a TOML file, such as sweeps/quickstart.toml") from error
    if not table:
        raise fail("is empty; start from sweeps/quickstart.toml")
    if wrong := [*shape_issues(table), *twice_issues(table)]:
        raise ConfigError(name, "sweep", wrong)
    return table


def _decoded(content: bytes) -> str:
    """Decode the content of a file. Raises ValueError."""
    if content[1:2] == b"\0" or content.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise ValueError("is not UTF-8 text but UTF-16; save it as UTF-8")
    if LONG_NUMBER.search(content):
        raise ValueError("holds a whole number of thousands of digits; none is so large")
    return content.decode("utf-8-sig")  # Windows editors begin files with a mark


def _with_base(table: dict[str, JsonValue], name: str, folder: Path) -> tuple[dict[str, JsonValue], list[str]]:
    """Merge the tables of a file into those that it extends, a path from `folder`; return them with notes on both."""
    base = table.pop("extends", None)
    if base is None:
        return _renamed(_normal(table), name)
    if not isinstance(base, str):
        raise ConfigError(name, "sweep", [ConfigIssue("extends", repr(base), "must be the path of another sweep")])
    if secret := list(secret_issues({"extends": base})):
        raise ConfigError(name, "sweep", secret)
    if "://" in base:
        expected = "must be the path of a sweep beside this; fetch that file first, and name it"
        raise ConfigError(name, "sweep", [ConfigIssue("extends", repr(base), expected)])
    try:
        under = _read(folder / base)
    except ConfigError as error:
        named = ConfigIssue("extends", repr(base), f"is named in {name}")
        raise ConfigError(error.path, "sweep", [*error.issues, named]) from error
    code, inner = _table(under, "code"), Path(base).parent
    if isinstance(paths := code.get("paths"), list):  # they start from the file that names them
        under["code"] = code | {"paths": [str(inner / p) if isinstance(p, str) else p for p in paths]}
    if "extends" in under:
        raise ConfigError(
            name, "sweep", [ConfigIssue("extends", repr(base), "extends another sweep itself; one level is the limit")]
        )
    if "budget" in _table(table, "job"):
        _table(under, "job").pop("budget", None)  # one way of saying it takes the place of another
    (below, former), (above, own) = _renamed(_normal(under), str(folder / base)), _renamed(_normal(table), name)
    return _overlaid(below, above), [*dict.fromkeys([*former, *own])]


def _table(raw: dict[str, JsonValue], key: str) -> dict[str, JsonValue]:
    inner = raw.get(key)
    return inner if isinstance(inner, dict) else {}


def _overlaid(under: dict[str, JsonValue], over: dict[str, JsonValue]) -> dict[str, JsonValue]:
    both = dict(under)
    for key, value in over.items():
        old = both.get(key)
        both[key] = _overlaid(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _normal(raw: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Give factors, arms and spaces dotted keys, however they were nested in the file."""
    table = dict(raw)
    if isinstance(compare := table.get("compare"), dict):
        table["compare"] = flatten(compare)
    for name in ("exclude", "arm"):
        if isinstance(listed := table.get(name), list):
            table[name] = _flat(listed)
    if isinstance(tune := table.get("tune"), dict):
        tune = table["tune"] = dict(tune)
        if isinstance(defaults := tune.get("defaults"), list):
            tune["defaults"] = _flat(defaults)
        if isinstance(spaces := tune.get("space"), dict):
            tune["space"] = {key: _with_flat_when(space) for key, space in spaces_in(spaces)}
    return table


def _flat(tables: list[JsonValue]) -> list[JsonValue]:
    return [flatten(table) if isinstance(table, dict) else table for table in tables]


def _with_flat_when(space: JsonValue) -> JsonValue:
    if isinstance(space, dict) and isinstance(when := space.get("when"), dict):
        return space | {"when": flatten(when)}
    return space


def renamed(sweep: Mapping[str, JsonValue]) -> dict[str, JsonValue]:
    """Return the tables of a sweep, perhaps of an earlier version, with the names that keys have today."""
    return _renamed(_normal(dict(sweep)), "the sweep")[0]


def _renamed(raw: dict[str, JsonValue], where: str) -> tuple[dict[str, JsonValue], list[str]]:
    """Return the tables with the names that keys have today, and a sentence for each key that had a former name. Raises
    ConfigError where a table has both."""
    seen: dict[str, str] = {}

    def keys(value: JsonValue) -> JsonValue:
        """Rename the dotted keys of factors, arms, settings and conditions."""
        if isinstance(value, list):
            return [keys(item) for item in value]
        if not isinstance(value, dict):
            return value
        for key in value.keys() & RENAMED.keys():
            if RENAMED[key] in value:
                issue = ConfigIssue(key, "", f"is {RENAMED[key]} by its former name, which is there too; remove one")
                raise ConfigError(where, "sweep", [issue])
            seen[key] = RENAMED[key]
        return {RENAMED.get(key, key): keys(inner) for key, inner in value.items()}

    table = dict(raw)
    for name in ("compare", "exclude", "arm"):
        if name in table:
            table[name] = keys(table[name])
    if isinstance(tune := table.get("tune"), dict):
        table["tune"] = tune | {name: keys(tune[name]) for name in ("defaults", "space") if name in tune}
    if isinstance(job := table.get("job"), dict):
        table["job"] = job | {name: _section(name, inner, keys) for name, inner in job.items()}
    return table, [f"{former} is called {today} now, and is read as that" for former, today in seen.items()]


def _section(name: str, inner: JsonValue, renamed_keys: Callable[[JsonValue], JsonValue]) -> JsonValue:
    """Rename the keys in a section of a job as dotted keys are renamed."""
    if not isinstance(inner, dict):
        return inner
    dotted = renamed_keys({f"{name}.{key}": inner[key] for key in inner})
    assert isinstance(dotted, dict)
    return {key.removeprefix(f"{name}."): value for key, value in dotted.items()}


def _with_none(raw: dict[str, JsonValue]) -> dict[str, JsonValue]:
    """Put None in the tables where the text "none" stands for it. What is no table stays, for the models to refuse."""

    def tables(value: JsonValue, change: _Change) -> JsonValue:
        if isinstance(value, list):
            return [tables(item, change) for item in value]
        return {key: change(key, inner) for key, inner in value.items()} if isinstance(value, dict) else value

    def levels(key: str, value: JsonValue) -> JsonValue:
        return [with_none(key, level) for level in value] if isinstance(value, list) else value

    def space(key: str, value: JsonValue) -> JsonValue:
        if not isinstance(value, dict):
            return value
        changed = dict(value)
        if "choices" in value:
            changed["choices"] = levels(key, value["choices"])
        if "when" in value:
            changed["when"] = tables(value["when"], all_with_none)
        return changed

    table = dict(raw)
    if isinstance(job := table.get("job"), dict):
        table["job"] = job_with_none(job)
    changes: dict[str, _Change] = {"compare": levels, "exclude": all_with_none, "arm": with_none}
    table |= {name: tables(table[name], change) for name, change in changes.items() if name in table}
    resources = table.get("resources")
    if isinstance(resources, dict) and str(resources.get("concurrent")).lower() in NONE:
        table["resources"] = resources | {"concurrent": None}
    if isinstance(tune := table.get("tune"), dict):
        changes = {"defaults": with_none, "space": space}
        table["tune"] = tune | {name: tables(tune[name], change) for name, change in changes.items() if name in tune}
    return table
