"""Whether the components that jobs name are what they should be, tried before anything runs; in a process of its own.

    python -m jobs.train.components < asked.json      {"asked": [{"kind", "name", "options", "job"}]}

Each is imported, its options are checked, and it is called once on a few random rows. Prints a line of JSON for each:
`faults`, [key, found, expected] each; `distribution`, [name, version] of installed code, else null.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from jobs.config import JobConfig, components, protocols, user_code
from jobs.config.validation import issues
from jobs.train.components import judging, training
from jobs.train.components.training import Issue


def main() -> None:
    """Read what is asked, and answer a line for each."""
    asked = json.loads(sys.stdin.read())["asked"]
    out, sys.stdout = sys.stdout, sys.stderr  # the code may print
    for entry in asked:
        answer = examined(entry["kind"], entry["name"], entry["options"], entry["job"])
        out.write(json.dumps(answer) + "\n")


def examined(kind: str, name: str, options: Mapping[str, Any], job: Mapping[str, Any]) -> dict[str, Any]:
    """Check one component of a job. Returns what is wrong with it, and which distribution it comes from."""
    of = components.KINDS[kind]
    try:
        component = components.load(kind, name)
    except components.ComponentError as error:
        return _answer([(of.key, "", str(error))])
    distribution, foreign = _distribution(name)
    if foreign:
        return _answer([(of.key, repr(name), foreign)])
    try:
        is_loop = kind == "task" and not isinstance(component, type)
        if not is_loop or hasattr(component, "Options"):  # a loop reads them itself unless it says how
            components.options(kind, component, options)
    except ValidationError as error:
        model = components.options_model(kind, component)
        table = f"{of.options}.{components.metric_name(name)}" if kind == "metric" else of.options
        return _answer(
            [
                (f"{table}.{issue.key}", issue.found, issue.expected + _known_options(kind, issue.expected, model))
                for issue in issues(error, model)
            ],
            distribution,
        )
    try:
        tried = list(_TRIED[kind](JobConfig.model_validate(job)))
    except Exception as error:  # noqa: BLE001 - whatever a user's code may raise
        tried = [
            (of.key, repr(name), f"fails when it is tried: {type(error).__name__}: {error}{components.line_of(error)}")
        ]
    return _answer(tried, distribution)


def _answer(wrong: list[Issue], distribution: tuple[str, str] | None = None) -> dict[str, Any]:
    return {"faults": wrong, "distribution": distribution}


def _known_options(kind: str, expected: str, model: type[BaseModel]) -> str:
    if expected == "is missing":
        called = ", ".join(protocols.arguments(*components.KINDS[kind].protocols))
        return (
            f"; what a component of this kind is called with is named {called}, and every other parameter is an option"
        )
    if not expected.startswith("unknown key"):
        return ""
    names = ", ".join(model.model_fields)
    apart = "; an option that one arm alone has is tuned with `when`"
    return f"; its options: {names}" if names else f"; it has no options{apart}"


def _distribution(name: str) -> tuple[tuple[str, str] | None, str]:
    """Find the distribution that an import path was installed with, or what is wrong with where it comes from."""
    if not components.is_import_path(name):
        return None, ""
    top = components.top_module(name)
    file = getattr(sys.modules[top], "__file__", None) or next(iter(getattr(sys.modules[top], "__path__", [])), "")
    folder = os.environ.get(user_code.HERE)
    if folder and Path(file).is_relative_to(folder):
        return None, ""
    if top == "jobs" or Path(file).is_relative_to(Path(__file__).parents[3] / "jobs"):
        return None, ""
    known = importlib.metadata.packages_distributions().get(top, [])
    if known:
        return (known[0], importlib.metadata.version(known[0])), ""
    return None, (
        f"{top} comes from {Path(file).parent}, which is neither in [code] nor an installed distribution, so it would "
        f'not be there on another machine; add [code] paths = ["{top}/"] to the sweep'
    )


_TRIED = {
    "task": training.try_task,
    "loss": training.try_loss,
    "encoder": training.try_encoder,
    "augmentation": training.try_augmentation,
    "pooling": training.try_pooling,
    "sampler": training.try_sampler,
    "optimizer": training.try_optimizer,
    "schedule": training.try_schedule,
    "transform": training.try_optimizer,
    "judge": judging.try_judge,
    "after": judging.try_after,
    "metric": judging.try_metric,
}
