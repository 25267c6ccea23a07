from typing import Literal

import pytest
from pydantic import BaseModel, ConfigDict, ValidationError

from jobs.config.validation import ConfigError, ConfigIssue, field_names, issues, nearest, section_of


class Inner(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    rate: float = 0.1
    kind: Literal["tpe", "grid"] = "tpe"


class Outer(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True)
    inner: Inner | None = None
    size: int


def complaints(value: object, prefix: str = "") -> list[str]:
    with pytest.raises(ValidationError) as caught:
        Outer.model_validate(value)
    return [str(issue) for issue in issues(caught.value, Outer, prefix)]


def test_a_fault_names_key_value_expectation_and_the_nearest_match() -> None:
    found = complaints({"inner": {"rat": 1.0, "kind": "tep"}, "size": "x" * 99}, "job.")
    assert "job.inner.rat = 1.0: unknown key; did you mean 'job.inner.rate'?" in found
    assert "job.inner.kind = 'tep': must be 'tpe' or 'grid'; did you mean 'tpe'?" in found
    assert any(line.startswith("job.size = 'xxx") and line.endswith("...: should be a valid integer") for line in found)
    assert complaints({}) == ["size: is missing"]


def test_every_key_is_known_by_its_dotted_name() -> None:
    assert list(field_names(Outer)) == ["inner", "inner.rate", "inner.kind", "size"]
    assert section_of(Inner | None) is Inner
    assert section_of(int) is None


def test_nearest_looks_at_the_last_part_of_dotted_keys() -> None:
    assert nearest("lr", ["optimizer.lr", "loss.name"]) == "; did you mean 'optimizer.lr'?"
    assert nearest("zzz", ["optimizer.lr"]) == ""


def test_an_error_about_a_file_holds_every_fault() -> None:
    error = ConfigError("a.toml", "sweep", [ConfigIssue("x", "1", "too small"), ConfigIssue("", "", "is empty")])
    assert str(error) == "a.toml is not a valid sweep:\n  x = 1: too small\n  (whole file): is empty"
