"""What the verbs print with --json, held to its schema: as shipped, and so that it has no key that is not in it.

python tests/support/records/answers.py write   write down what the schemas of today promise
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator
from jsonschema.exceptions import ValidationError

from jobs.config import canonical
from orchestrator.cli.schema.answers import ANSWERS, answer_schema
from orchestrator.system.versions import VERSIONS


def strict(schema: Any) -> Any:
    """The same schema, which allows no key that it does not name."""
    if isinstance(schema, list):
        return [strict(one) for one in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {key: strict(value) for key, value in schema.items()}
    has_keys = schema.get("type") == "object" and isinstance(schema.get("properties"), dict)
    return closed | ({"additionalProperties": False} if has_keys and "additionalProperties" not in schema else {})


@cache
def validators(verb: str) -> tuple[Draft202012Validator, Draft202012Validator]:
    """As shipped, and strict."""
    schema = answer_schema(verb)
    return Draft202012Validator(schema), Draft202012Validator(strict(schema))


def faults(verb: str, answer: Mapping[str, Any]) -> list[str]:
    """What the schemas of a verb have against an answer, one thing each."""
    found = []
    for validator, what in zip(validators(verb), ("", "strictly: "), strict=True):
        error = next(validator.iter_errors(answer), None)
        if error is not None:
            one = likeliest(error)
            found.append(f"{what}{one.json_path}: {one.message[:300]}")
    return found


def likeliest(error: ValidationError) -> ValidationError:
    """Of alternatives what the one has against a value that has least against it."""
    if not error.context:
        return error
    branches: dict[Any, list[ValidationError]] = {}
    for one in error.context:
        branches.setdefault(one.schema_path[0], []).append(one)
    return likeliest(min(branches.values(), key=len)[0])


def answered(verb: str, printed: str) -> Any:
    """What a verb has printed, which is valid by its schema."""
    answer = json.loads(printed)
    assert faults(verb, answer) == []
    return answer


PROMISED = Path(__file__).parents[2] / "orchestrator" / "cli" / "promised.txt"


def promises() -> Iterator[str]:
    """A line for each key of each schema: its version, whether it is always there, and what it may be."""
    for verb in ANSWERS:
        schema = answer_schema(verb)
        for name, body in [*enumerate(schema.get("anyOf", [schema])), *schema["$defs"].items()]:
            for key, shape in body["properties"].items():
                kept = "always" if key in body["required"] else "or not"
                yield f"{verb} {VERSIONS[verb]} {name}.{key} {kept} {canonical(undescribed(shape))}"


def undescribed(shape: Any) -> Any:
    """The same schema, without words."""
    if isinstance(shape, dict):
        return {key: undescribed(value) for key, value in shape.items() if key != "description"}
    return [undescribed(one) for one in shape] if isinstance(shape, list) else shape


if __name__ == "__main__" and sys.argv[1:] == ["write"]:
    PROMISED.write_text("".join(f"{line}\n" for line in promises()), "utf-8")
