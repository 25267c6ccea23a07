"""What is wrong with a file, in words: each issue with its key, what was found, what is expected, the nearest match."""

from __future__ import annotations

import difflib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args, get_origin

from pydantic import BaseModel, ValidationError


@dataclass(frozen=True)
class ConfigIssue:
    """One thing wrong with a file: the dotted key, what was found there, and what is expected."""

    key: str
    found: str
    expected: str

    def __str__(self) -> str:
        return f"{self.key or '(whole file)'}{' = ' + self.found if self.found else ''}: {self.expected}"


class ConfigError(ValueError):
    """A file is not what it should be. Holds every issue, not the first."""

    def __init__(self, path: str, what: str, issues: list[ConfigIssue]) -> None:
        self.path, self.issues = path, issues
        self.what = what
        super().__init__("\n".join([f"{path} is not a valid {what}:", *(f"  {issue}" for issue in issues)]))

    def __reduce__(self) -> tuple[type[ConfigError], tuple[str, str, list[ConfigIssue]], dict[str, object]]:
        return type(self), (self.path, self.what, self.issues), self.__dict__


def issues(error: ValidationError, model: type[BaseModel], prefix: str = "") -> Iterator[ConfigIssue]:
    """Yield pydantic's errors in our words: dotted key, value found, what is expected, and the nearest match."""
    for item in error.errors():
        parts = [str(part) for part in item["loc"]]
        keys = [part for part in parts if not _is_branch(part)]
        key = (prefix + ".".join(keys)).rstrip(".")
        if item["type"] == "extra_forbidden":
            yield ConfigIssue(
                key, _short(item["input"]), "unknown key" + nearest(key, list(field_names(model, prefix)))
            )
        elif item["type"] == "missing":
            yield ConfigIssue(key, "", "is missing")
        elif item["type"] == "value_error":
            yield ConfigIssue(key, "", str(item["ctx"]["error"]))
        elif item["type"] == "literal_error":
            expected = str(item["ctx"]["expected"])
            choices = [choice.strip("' ") for choice in expected.replace(" or ", ",").split(",")]
            yield ConfigIssue(key, _short(item["input"]), f"must be {expected}{nearest(str(item['input']), choices)}")
        else:
            yield ConfigIssue(key, _short(item["input"]), item["msg"].replace("Input should", "should"))


def field_names(model: type[BaseModel], prefix: str = "") -> Iterator[str]:
    """Yield every dotted key that `model` knows, sections included."""
    for name, field in model.model_fields.items():
        yield prefix + name
        inner = section_of(field.annotation)
        if inner is not None:
            yield from field_names(inner, f"{prefix}{name}.")


def section_of(annotation: object) -> type[BaseModel] | None:
    """Return the section class in an annotation such as `Tune | None`, or None."""
    if get_origin(annotation) is not None:
        return next((section for part in get_args(annotation) if (section := section_of(part))), None)
    return annotation if isinstance(annotation, type) and issubclass(annotation, BaseModel) else None


def nearest(word: str, known: list[str]) -> str:
    """Suggest the nearest known word: `; did you mean 'x'?`, or nothing. Looks at the last part of dotted keys too."""
    close = difflib.get_close_matches(word, known, n=1, cutoff=0.6)
    if not close:
        leaf, leaves = word.rpartition(".")[2], {name.rpartition(".")[2]: name for name in reversed(known)}
        close = [leaves[match] for match in difflib.get_close_matches(leaf, list(leaves), n=1, cutoff=0.6)]
    return f"; did you mean '{close[0]}'?" if close else ""


def _is_branch(part: str) -> bool:
    """Return whether a part names the branch of a union that pydantic tried: `float`, `literal['learned']`."""
    return part in {"float", "int", "str", "bool"} or part.startswith(("literal[", "list[", "function-"))


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
