"""What is used of other distributions beyond what they document stands in one table, with the test that fails first."""

from __future__ import annotations

import ast
import importlib.util
import inspect
import re
from collections.abc import Mapping
from functools import cache
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest
from packaging.utils import canonicalize_name
from private import OWN, ROOT, TABLE, Private, is_covered, uses

SOURCES = sorted(path.relative_to(ROOT).as_posix() for top in OWN for path in (ROOT / top).rglob("*.py"))


def test_a_private_name_is_used_only_with_its_row() -> None:
    """A new use fails this: find a documented way, or give it a row and a test. Mutant check: any row left out."""
    found = {(use, file) for file in SOURCES for use in uses((ROOT / file).read_text("utf-8"))}
    assert len(found) > len(TABLE)
    assert sorted(f"{file}: {use}" for use, file in found if not is_covered(use, file)) == []


def test_whatever_way_a_private_name_is_used_it_is_found() -> None:
    """Mutant checks: names by assignment, by text, of a loop; a parameter that is called like a module."""
    text = """
import os, sys
import torch
from ray import _raylet, tune
from ray._private import services as s, worker
from ray.tune.execution import tune_controller
from mlflow.utils import rest_utils
from jobs import _own
from unittest import mock
KEPT = ("_one", "two")
NAME = "_name"

def f(x, tune_controller):
    loaded: object = _raylet
    for name in KEPT:
        mock.patch.object(s, name)
    getattr(torch.lib, NAME, None)
    mock.patch.object(worker.Node, "start")
    return loaded.Config(1).value, x.y()._hidden, tune_controller._reuse, self._mine, cls._ours, tune._trials, os._exit

def g(worker):
    x = torch.Tensor()._version
    return worker.anything, x.__dict__, torch.float32, tune.Tuner
"""
    assert set(uses(text)) == {
        *("ray._raylet", "ray._private.services", "ray._private.worker", "ray.tune.execution.tune_controller"),
        *("mlflow.utils.rest_utils", "ray._raylet.Config", "ray._private.services._one", "ray._private.services.two"),
        *("torch.lib._name", "ray._private.worker.Node.start", "ray._private.worker.Node", "._hidden", "._reuse"),
        *("ray.tune._trials", "._version"),
    }


@pytest.mark.parametrize("row", TABLE, ids=lambda row: row.names[0])
def test_a_row_says_what_is_used_where_why_and_which_test_fails_first(row: Private) -> None:
    for file in row.files:
        text = (ROOT / file).read_text("utf-8")
        assert any(_shown(name) in text for name in row.names), file
    everywhere = "".join((ROOT / file).read_text("utf-8") for file in row.files)
    assert [name for name in row.names if _shown(name) not in everywhere] == []
    assert row.why
    file, _, function = row.test.partition("::")
    assert f"def {function}(" in (ROOT / file).read_text("utf-8")


def _shown(name: str) -> str:
    """As a name stands in the code."""
    if name.startswith("tag:"):
        return name.removeprefix("tag:")
    if "/" in name:
        return name.rpartition(" ")[2].partition("{")[0]
    return name.removesuffix(".__wrapped__").rpartition(".")[2]


@pytest.mark.parametrize(
    ("row", "name"),
    [(row, name) for row in TABLE for name in row.names],
    ids=[name for row in TABLE for name in row.names],
)
def test_a_private_name_is_there_as_it_is_used(row: Private, name: str) -> None:
    """The first to fail when a version moves: seconds, and no cluster. Mutant check: another name in the table."""
    if "/" in name:
        method, _, path = name.rpartition(" ")
        file = {"ray": "dashboard/modules/job/job_head.py", "mlflow": "server/__init__.py"}[row.distribution]
        text = re.sub(r"\(\s+", "(", (_folder(row.distribution) / file).read_text("utf-8"))
        path = path.replace("{submission_id}", "{job_or_submission_id}").replace("/gcs", "/{protocol}/{package_name}")
        assert f'.{method.lower() or "route"}("{path}"' in text.replace('_add_static_prefix("', '"')
    elif name.startswith("tag:"):
        pages = (_folder("mlflow") / "server/js/build/static/js").glob("main.*.js")
        assert any(f'"{_shown(name)}"' in page.read_text("utf-8") for page in pages)
    elif name == "_system_config":
        assert f"{name}: " in (_folder("ray") / "_private/worker.py").read_text("utf-8")
    else:
        _check(row, name)


def _folder(name: str) -> Path:
    spec = importlib.util.find_spec(name)
    assert spec is not None
    assert spec.origin is not None
    return Path(spec.origin).parent


@cache
def _distributions() -> Mapping[str, list[str]]:
    """Read once who brings which package: that takes half a second."""
    return packages_distributions()


def _check(row: Private, name: str) -> None:
    parts = name.split(".")
    owners = {canonicalize_name(owner) for owner in _distributions()[parts[0]]}
    assert canonicalize_name(row.distribution) in owners
    found: object = importlib.import_module(parts[0])
    for number, part in enumerate(parts[1:], 2):
        if inspect.isclass(found) and not hasattr(found, part):  # what its objects get when they are made
            assert number == len(parts)
            assert f"self.{part}" in inspect.getsource(found)
            return
        if not hasattr(found, part):
            importlib.import_module(".".join(parts[:number]))
        found = getattr(found, part)
    if row.takes and name == row.names[0]:
        assert callable(found)
        assert set(row.takes) <= set(inspect.signature(found).parameters)


def test_what_a_class_of_ours_calls_its_own_is_not_its_base_s() -> None:
    """A method with an underscore would replace one of the base that nobody knows of, without a word. Mutant check: a
    `_call_impl` on a class of torch."""
    clashes = []
    for file in SOURCES:
        for node in ast.walk(ast.parse((ROOT / file).read_text("utf-8"))):
            if isinstance(node, ast.ClassDef) and node.bases:
                hidden = [item.name for item in node.body if isinstance(item, ast.FunctionDef | ast.AsyncFunctionDef)]
                hidden = [name for name in hidden if name.startswith("_") and not name.endswith("__")]
                clashes += [f"{file}: {node.name}.{name}" for name in hidden if _is_of_a_base(file, node.name, name)]
    assert clashes == []


def _is_of_a_base(file: str, made: str, name: str) -> bool:
    """Whether a class of another distribution, of which one of ours is made, has such an attribute."""
    module = importlib.import_module(file.removesuffix(".py").removesuffix("/__init__").replace("/", "."))
    bases = getattr(module, made).__mro__ if hasattr(module, made) else ()
    return any(name in vars(base) for base in bases if base.__module__.partition(".")[0] not in OWN)


def test_what_overrides_a_method_of_an_undocumented_class_takes_what_that_takes() -> None:
    """Tune calls it by these names. Mutant check: another name of a parameter."""
    from orchestrator.session.cluster.slots import Slots

    base = Slots.__mro__[1]
    assert any(f"{base.__module__}.{base.__qualname__}" in row.names for row in TABLE)
    both = [name for name in vars(Slots) if name in dir(base) and inspect.isfunction(getattr(base, name))]
    assert {"request_resources", "acquire_resources", "free_resources"} <= set(both)
    for name in set(both) - {"__init__"}:
        ours, theirs = (list(inspect.signature(getattr(owner, name)).parameters) for owner in (Slots, base))
        assert ours == theirs, name
