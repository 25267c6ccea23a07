"""`--set KEY=VALUE`: a key of a sweep file, as TOML writes it or without its quotes, and a value.

job.loss.temperature=0.07     compare.batch.size=[8, 32]     tune.space."optimizer.lr".low=1e-5
metric[1].smallest_difference=0.01
arm.no clip.batch.size=64     arm."a.b".batch.size=64        arm[0].optimizer.clip=none
tune.defaults[0].optimizer.lr=0.003                          exclude[1].batch.size=16
"""

from __future__ import annotations

import re
import tomllib

from pydantic import JsonValue

from jobs.config import ConfigIssue, nearest
from orchestrator.sweep.model import OTHER_WORDS, Space
from orchestrator.sweep.values import RENAMED

PART = re.compile(r"""\s*(?:"((?:[^"\\]|\\.)*)"|'([^']*)'|\[\s*(\d+)\s*\]|([^.="'\[\]]+))""")
"""One part of a key: in quotes of either kind, an index in brackets, or bare."""

EXAMPLE = "for example --set job.loss.temperature=0.07"


def override_issues(raw: dict[str, JsonValue], text: str) -> list[ConfigIssue]:
    """Put one override into the tables of a file, whose arms, factors and spaces have dotted keys. Returns what is
    wrong with it."""
    try:
        parts, value = _labelled(raw, text) or _split(text)
        parts = _by_todays_names(parts)
        path = _path(raw, parts)
        _put(raw, path, _parsed(value))
    except BadOverride as error:
        return [ConfigIssue("--set", shortened(text), str(error))]
    except (ValueError, RecursionError):  # an index or a number of thousands of digits, lists within lists
        return [ConfigIssue("--set", shortened(text), f"is too long or too deep to be read, {EXAMPLE}")]
    return []


def _by_todays_names(parts: list[str | int]) -> list[str | int]:
    """Rename a key, given as its parts, to the name that it has today, however it is divided."""
    for former, today in RENAMED.items():
        parts = [today if part == former else part for part in parts]
        for at in range(len(parts) - 1):
            if parts[at : at + 2] == former.split("."):
                parts = [*parts[:at], *today.split("."), *parts[at + 2 :]]
    return parts


def shortened(text: str) -> str:
    """Shorten an override to 200 characters, and quote it."""
    return repr(text if len(text) <= 200 else text[:197] + "...")


class BadOverride(ValueError):
    """What is wrong with an override."""


def _split(text: str) -> tuple[list[str | int], str]:
    """Split an override into the parts of its key, and the value."""
    parts: list[str | int] = []
    position = 0
    while True:
        match = PART.match(text, position)
        if match is None:
            raise BadOverride(f"must be key=value, {EXAMPLE}")
        quoted, literal, index, bare = match.groups()
        if quoted is not None:
            parts.append(_unquoted(quoted))
        elif index is not None:
            parts.append(int(index))
        else:
            parts.append(literal if literal is not None else bare.strip())
        position = match.end()
        while position < len(text) and text[position].isspace():
            position += 1
        if text[position : position + 1] == "=":
            if "" in parts:
                raise BadOverride(f"has an empty part in its key; it must be key=value, {EXAMPLE}")
            return parts, text[position + 1 :].strip()
        if text[position : position + 1] == ".":
            position += 1
        elif text[position : position + 1] != "[":
            raise BadOverride(f"must be key=value, {EXAMPLE}")


def _unquoted(text: str) -> str:
    try:
        return str(tomllib.loads(f'text = "{text}"')["text"])
    except tomllib.TOMLDecodeError as error:
        raise BadOverride(f"its quoted key is no text: {error}") from error


def _labelled(raw: dict[str, JsonValue], text: str) -> tuple[list[str | int], str] | None:
    """Split an override that names an arm by its label without quotes, whatever the label holds; else return None."""
    arms = raw.get("arm")
    labels = [str(arm.get("label")) for arm in arms if isinstance(arm, dict)] if isinstance(arms, list) else []
    for label in sorted(labels, key=len, reverse=True):
        if text.strip().startswith(f"arm.{label}."):
            parts, value = _split(text.strip()[len(f"arm.{label}.") :])
            return ["arm", label, *parts], value
    return None


def _parsed(value: str) -> JsonValue:
    try:
        table = tomllib.loads(f"value = {value}")
    except tomllib.TOMLDecodeError:
        return value  # a bare word is a text
    if len(table) > 1:
        raise BadOverride(f"has several lines of which each sets something; give each a --set of its own, {EXAMPLE}")
    parsed: JsonValue = table["value"]
    return parsed


def _path(raw: dict[str, JsonValue], parts: list[str | int]) -> list[str | int]:
    """Find where in the tables the value belongs: job keys are one part wherever they are dotted in the tables."""
    path = parts
    match parts:
        case ["compare", _, *_]:
            path = ["compare", _dotted(parts[1:])]
        case ["tune", "space", _, *_]:
            path = ["tune", "space", *_in_space(parts[2:])]
        case ["tune", "defaults", index, _, *_]:
            path = ["tune", "defaults", _index(raw.get("tune"), "defaults", index), _dotted(parts[3:])]
        case ["exclude", index, _, *_]:
            path = ["exclude", _index(raw, "exclude", index), _dotted(parts[2:])]
        case ["arm", named, _, *_]:
            path = ["arm", _arm(raw, named), _dotted(parts[2:])]
        case ["arm", named] if not str(named).isdecimal():
            raise BadOverride(f"names no key of the arm, for example --set 'arm.{named}.batch.size=64'")
        case ["job", *_]:
            path = [*_dotted(parts).split(".")]
    return path


def _in_space(parts: list[str | int]) -> list[str | int]:
    """Separate a tuned key from the part of its space that is set."""
    if "when" in parts[1:]:
        at = parts.index("when", 1)
        return [_dotted(parts[:at]), "when", *([_dotted(parts[at + 1 :])] if parts[at + 1 :] else [])]
    if len(parts) > 1 and (parts[-1] in Space.model_fields or parts[-1] in OTHER_WORDS):
        return [_dotted(parts[:-1]), parts[-1]]
    return [_dotted(parts)]


def _dotted(parts: list[str | int]) -> str:
    return ".".join(map(str, parts))


def _index(table: JsonValue, name: str, index: str | int) -> int:
    """Return an index into a list of tables as an int. Raises BadOverride if the list does not have it."""
    tables = table.get(name) if isinstance(table, dict) else None
    count = len(tables) if isinstance(tables, list) else 0
    if str(index).isdecimal() and int(index) < count:
        return int(index)
    known = f"0 to {count - 1}" if count else "none"
    raise BadOverride(f"{name}[{index}] is not there; {name} has {known}")


def _arm(raw: dict[str, JsonValue], named: str | int) -> int:
    """Find the index of an arm, given its label or that index. Raises BadOverride."""
    arms = raw.get("arm")
    if not isinstance(arms, list) or not arms:
        raise BadOverride("there is no [[arm]] in the file; of arms that [compare] crosses set compare.KEY=[...]")
    labels = [str(arm.get("label")) if isinstance(arm, dict) else "" for arm in arms]
    if isinstance(named, str) and named in labels:
        return labels.index(named)
    if str(named).isdecimal() and int(named) < len(arms):
        return int(named)
    listed = ", ".join(map(repr, labels[:10]))
    raise BadOverride(f"no arm has the label or number {named!r}{nearest(str(named), labels)}; arms: {listed}")


def _put(raw: dict[str, JsonValue], path: list[str | int], value: JsonValue) -> None:
    table: JsonValue = raw
    for part in path[:-1]:
        if isinstance(table, dict):
            table = table.setdefault(str(part), {})
        elif isinstance(table, list) and str(part).isdecimal() and int(part) < len(table):
            table = table[int(part)]
        else:
            raise BadOverride(f"{part} is not there: what lies above it is no table")
    leaf = path[-1]
    if isinstance(table, list) and str(leaf).isdecimal() and int(leaf) < len(table):
        table[int(leaf)] = value
        return
    if path[:1] == ["metric"] and isinstance(raw.get("metric"), list) and not str(path[1]).isdecimal():
        raise BadOverride(f"metric is a list; say which one, for example --set 'metric[0].{path[1]}={value}'")
    if not isinstance(table, dict):
        above = path[-2] if len(path) > 1 else leaf
        raise BadOverride(f"{above} is not a table")
    if path[:-1] == ["job", "budget"]:
        table.clear()
    table[str(leaf)] = value
