"""What it takes to add a component: one file, outside the package or in it. The patches are in tests/additions/."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
PATCHES = sorted((ROOT / "tests" / "additions").glob("*.patch"))

USED: dict[str, tuple[str, str, dict[str, Any]]] = {
    "loss_of_rows": ("loss", "focal", {"loss": {"name": "{}", "options": {"gamma": 1.5}}}),
    "loss_vicreg": ("loss", "vicreg_added", {"loss": {"name": "{}", "options": {"covariance": 2.0}}}),
    "optimizer": ("optimizer", "signum", {"optimizer": {"name": "{}", "options": {"slow": 0.98}}}),
    "augmentation": ("augmentation", "solarise", {"augment": {"name": "{}", "options": {"above": 0.6}}}),
    "metric": ("metric", "nearest_share", {"evaluate": {"metrics": ["{}"]}}),
    "task": ("task", "tabular", {"task": "{}", "options": {"noise": 0.2}, "model": {"name": "tasklab:MLP"}}),
    "encoder": ("encoder", "mlp", {"model": {"name": "{}", "options": {"width": 8}}}),
}
"""Patch -> kind, name, and a job's sections that use it."""

JOB: dict[str, Any] = {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"}}


def test_every_addition_is_there_twice() -> None:
    assert {path.name for path in PATCHES} == {
        f"{name}.{where}.patch" for name in USED for where in ("built_in", "outside")
    }


@pytest.mark.few(2)
@pytest.mark.parametrize("patch", PATCHES, ids=lambda path: path.stem)
def test_an_addition_touches_one_file_and_is_one(patch: Path, tmp_path: Path) -> None:
    """Applied to a copy of the package, or beside it; then tried as `plan` tries it. Nothing else is changed."""
    name, where = patch.stem.split(".")
    kind, short, sections = USED[name]
    text = patch.read_text("utf-8")
    assert text.count("diff --git") == 1
    assert sum(line.startswith("+") for line in text.splitlines()) <= 40
    shutil.copytree(ROOT / "jobs", tmp_path / "jobs", ignore=shutil.ignore_patterns("__pycache__"))
    subprocess.run(["git", "init", "-q"], cwd=tmp_path, check=True)
    subprocess.run(["git", "apply", str(patch)], cwd=tmp_path, check=True)
    named = short if where == "built_in" else f"mylab.{short}:{short.title() if kind == 'task' else short}"
    if where == "outside":
        (tmp_path / "mylab" / "__init__.py").touch()
    used = json.loads(json.dumps(sections).replace('"{}"', json.dumps(named)))
    options = used["options"] if kind == "task" else next(iter(used.values())).get("options", {})
    asked = {"asked": [{"kind": kind, "name": named, "options": options, "job": JOB | used}]}
    env = os.environ | {"ORCHESTRATOR_CODE": str(tmp_path), "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.train.components"],
        input=json.dumps(asked), capture_output=True, text=True, env=env, cwd=tmp_path, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    if kind == "task":  # its rows are tried with those of the data
        shutil.copy(ROOT / "tests" / "support" / "records" / "tasklab.py", tmp_path)  # an encoder for it
        (tmp_path / "job.json").write_text(json.dumps(JOB | used))
        checked = subprocess.run(
            [sys.executable, "-m", "jobs.data", "job.json"], capture_output=True, text=True, env=env, cwd=tmp_path,
            check=False,
        )  # fmt: skip
        assert checked.returncode == 0, checked.stderr
    assert json.loads(done.stdout) == {"faults": [], "distribution": None}
