"""A run that somebody deleted in MLflow's pages was never told again, and a renamed experiment split a run in two."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from real import call

from orchestrator.tracking import embedded_uri, runs_of
from orchestrator.tracking.store import connect

BEGUN = Path(__file__).parents[1] / "begun" / "diverged"


def one_trial(client: Any, experiment: str, runs: list[Any]) -> None:
    client.delete_run(next(run["run_id"] for run in runs if run["kind"] == "trial"))


def the_parent(client: Any, experiment: str, runs: list[Any]) -> None:
    client.delete_run(next(run["run_id"] for run in runs if run["kind"] == "sweep"))


def renamed(client: Any, experiment: str, runs: list[Any]) -> None:
    client.rename_experiment(experiment, "renamed by me")


def renamed_and_all_deleted(client: Any, experiment: str, runs: list[Any]) -> None:
    client.rename_experiment(experiment, "renamed by me")
    for run in runs:
        client.delete_run(run["run_id"])


@pytest.mark.soak
@pytest.mark.slow
def test_resume_mends_what_somebody_did_in_mlflow(tmp_path: Path) -> None:
    """A finished run of the first version, told to MLflow first; then one thing after the other, each mended."""
    shutil.copytree(BEGUN, tmp_path / "runs" / "diverged")
    call("resume", "diverged", cwd=tmp_path)
    uri = embedded_uri(tmp_path / "runs")
    identity = json.loads((tmp_path / "runs" / "diverged" / "sweep.json").read_text())["run"]
    deeds: list[Callable[[Any, str, list[Any]], None]] = [one_trial, the_parent, renamed, renamed_and_all_deleted]
    for deed in deeds:
        runs = runs_of(uri, identity, history=False)
        experiment = runs[0]["experiment_id"]
        deed(connect(uri), experiment, runs)
        if deed is not renamed:
            broken = json.loads(call("verify", "diverged", "--json", cwd=tmp_path, code=1, stdout=True))
            assert all("orchestrator resume" in fault for fault in broken["faults"]), deed.__name__
        call("resume", "diverged", cwd=tmp_path)
        found = json.loads(call("verify", "diverged", "--json", cwd=tmp_path))
        assert found["ok"], (deed.__name__, found["faults"])
        after = runs_of(uri, identity, history=False)
        assert {run["experiment_id"] for run in after} == {experiment}
        kinds = Counter(run["kind"] for run in after)
        assert kinds == {"sweep": 1, "trial": 12, "arm": 2}
