"""What MLflow has after a sweep, told by a real driver: the note, the data, a model for each arm, and once only."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from real import SWEEP, call, driver

from orchestrator import report
from orchestrator.run_dir import export
from orchestrator.run_dir.folder import RunFolder
from orchestrator.tracking import LOGGED, MOVED, embedded_uri, publish, runs_of
from orchestrator.tracking.store import connect

LOAD = """
import sys, mlflow, numpy as np
sys.modules["jobs"] = sys.modules["orchestrator"] = None
mlflow.set_tracking_uri(sys.argv[1])
pixels = np.load(sys.argv[3])
np.save(sys.argv[4], mlflow.pyfunc.load_model(f"models:/{sys.argv[2]}").predict(pixels))
"""
"""In a process that cannot import this project."""


@pytest.fixture(scope="module")
def home(finished: Path) -> Path:
    """A folder with a finished sweep in runs/small, launched once more."""
    assert "exporting" not in call("launch", "sweep.toml", cwd=finished, env={"ORCHESTRATOR_ENCODERS": "best"}), (
        "MLflow has them"
    )
    return finished


def models(home: Path) -> list[Any]:
    client = connect(embedded_uri(home / "runs"))
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    return list(client.search_logged_models([experiment.experiment_id]))


@pytest.mark.slow
def test_every_arm_has_its_best_encoder_once_and_the_ledger_says_so(home: Path) -> None:
    """Mutant check: forgetting what was logged exports again; taking the first trial in place of the best fails too."""
    folder = RunFolder(home / "runs" / "small")
    with contextlib.closing(folder.open()) as ledger:
        best = {arm: export.choose(ledger.run, ledger.trials(), arm, folder)[0] for arm in ("infonce", "flatnce")}
        events = ledger.events(LOGGED)
    found = {model.tags["arm"]: model for model in models(home)}
    assert {arm: model.tags["orchestrator.trial"] for arm, model in found.items()} == {a: t.id for a, t in best.items()}
    assert len(models(home)) == len(events) == 2
    assert {arm: model.source_run_id for arm, model in found.items()} == {a: t.mlflow_run_id for a, t in best.items()}


@pytest.mark.soak
@pytest.mark.slow
def test_a_model_of_mlflow_gives_the_embeddings_of_the_export_without_this_project(home: Path, tmp_path: Path) -> None:
    (model,) = [one for one in models(home) if one.tags["arm"] == "flatnce"]
    pixels = np.random.default_rng(0).integers(0, 17, (5, 8, 8)).astype(np.uint8)
    np.save(tmp_path / "pixels.npy", pixels)
    command = [sys.executable, "-W", "ignore", "-c", LOAD, embedded_uri(home / "runs"), model.model_id]
    files = [str(tmp_path / "pixels.npy"), str(tmp_path / "out.npy")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONPATH"} | {"HF_HUB_OFFLINE": "1"}
    done = subprocess.run(
        [*command, *files], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]
    call("export", "runs/small", "flatnce", str(tmp_path / "encoder"), cwd=home)
    sys.path.insert(0, str(tmp_path / "encoder"))
    try:
        import embed  # type: ignore[import-not-found]

        ours = embed.load(tmp_path / "encoder")(pixels)
    finally:
        sys.path.remove(str(tmp_path / "encoder"))
        sys.modules.pop("embed", None)
    np.testing.assert_allclose(np.load(files[1]), ours, atol=1e-6)


@pytest.mark.slow
def test_the_sweeps_run_says_the_verdict_and_every_run_its_data(home: Path) -> None:
    with contextlib.closing(RunFolder(home / "runs" / "small").open()) as ledger:
        uuid = ledger.uuid
    client = connect(embedded_uri(home / "runs"))
    for run in runs_of(embedded_uri(home / "runs"), uuid):
        if run["kind"] == "arm":
            assert run["tags"]["mlflow.note.content"].startswith(f"**{run['tags']['arm']}**: knn_accuracy 0.")
            continue
        inputs = client.get_run(run["run_id"]).inputs
        assert inputs is not None
        names = {(one.tags[0].value, one.dataset.name) for one in inputs.dataset_inputs}
        assert ("training", "digits[:300]") in names
        if run["kind"] == "sweep":
            assert {("tune", "digits[300:400]"), ("confirm", "digits[400:500]")} < names
            assert run["tags"]["verdict"] in run["tags"]["mlflow.note.content"]
            assert "| flatnce &nbsp; | infonce " in run["tags"]["mlflow.note.content"]
            with contextlib.closing(RunFolder(home / "runs" / "small").open()) as ledger:
                numbers = report.numbers(report.summarize(ledger))
            assert {key: points[0][2] for key, points in run["metrics"].items()} == numbers
            assert {len(points) for points in run["metrics"].values()} == {1}, "told twice, and there once"
        else:
            stage = run["tags"]["stage"]
            assert run["tags"]["mlflow.note.content"].startswith(f"**{run['tags']['arm']}**, {stage} stage")
            assert {key for key in run["metrics"] if key.startswith("system/")} >= {"system/memory_usage_megabytes"}


@pytest.mark.slow
def test_runs_are_found_by_their_tags(home: Path) -> None:
    client = connect(embedded_uri(home / "runs"))
    experiment = client.get_experiment_by_name("small")
    assert experiment is not None
    for wanted, count in (("tags.arm = 'flatnce' AND tags.stage = 'confirm'", 3), ("tags.verdict LIKE '%flatnce%'", 1)):
        assert len(client.search_runs([experiment.experiment_id], wanted)) == count


@pytest.mark.soak
@pytest.mark.parametrize("later_s", [0.5, 6.0])
def test_a_driver_killed_while_it_logs_encoders_is_continued_and_leaves_each_once(
    tmp_path: Path, later_s: float
) -> None:
    """While they are exported, and while MLflow is told. What nobody drives any more ends by itself."""
    text = SWEEP.replace("trials = 2", "trials = 1").replace("seeds = 3", "seeds = 2")
    (tmp_path / "sweep.toml").write_text(text)
    encoders = {"ORCHESTRATOR_ENCODERS": "best"}
    with driver("launch", "sweep.toml", cwd=tmp_path, env=encoders) as process:
        assert process.stdout is not None
        assert any("exporting the best encoder" in line for line in process.stdout)
        time.sleep(later_s)
    again = call("launch", "sweep.toml", cwd=tmp_path, env=encoders)
    assert "behind" not in again
    assert sorted((model.tags["arm"], str(model.status)) for model in models(tmp_path)) == [
        ("flatnce", "READY"),
        ("infonce", "READY"),
    ]
    assert json.loads(call("verify", "small", "--json", cwd=tmp_path))["ok"]
    assert "exporting" not in call("launch", "sweep.toml", cwd=tmp_path, env=encoders)


class Absent:
    """A projection that keeps what it is given."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def log_report(self, _folder: Path, note: str, **_: Any) -> None:
        self.told.append(note)

    def log_encoders(self, found: list[Any]) -> None:
        self.told.append(len(found))

    def settled(self, timeout_s: float) -> bool:
        return timeout_s < 0

    def stop(self, timeout_s: float) -> bool:
        return timeout_s > 0


@pytest.mark.soak
@pytest.mark.slow
def test_encoders_that_mlflow_has_lost_are_logged_again_by_the_next_session(home: Path, tmp_path: Path) -> None:
    """And not by the one after it. Mutant check: asking which are due before MLflow has been met."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    for path in (tmp_path / "runs").glob("mlflow.db*"):
        path.unlink()
    env = {"ORCHESTRATOR_ENCODERS": "best"}
    assert "exporting the best encoder of 2 arms" in call("resume", "small", cwd=tmp_path, env=env)
    assert sorted(model.tags["arm"] for model in models(tmp_path)) == ["flatnce", "infonce"]
    assert json.loads(call("verify", "small", "--json", cwd=tmp_path))["ok"]
    assert "exporting" not in call("resume", "small", cwd=tmp_path, env=env)


@pytest.mark.soak
@pytest.mark.slow
def test_what_is_the_matter_with_an_encoder_is_said_and_costs_nothing(home: Path, tmp_path: Path) -> None:
    """A folder of checkpoints that is gone, and a session that is stopped meanwhile."""
    shutil.copytree(home / "runs", tmp_path / "runs")
    folder, said, projection = RunFolder(tmp_path / "runs" / "small"), list[str](), Absent()
    with contextlib.closing(folder.open()) as ledger:
        ledger.acquire("the test", 30)
        ledger.event(MOVED, "so that all encoders are due")
        found = report.summarize(ledger)
        shutil.rmtree(folder.trials)
        told: Any = projection
        for stopping in (False, True):
            assert publish.answer(told, ledger, folder, found, say=said.append, stopping=partial(bool, stopping))
    assert projection.told == [report.note(found), 0, 0] * 2
    reasons = [line for line in said if line.startswith("note: the encoder of")]
    assert len(reasons) == 4
    assert all("holds no trial" in line for line in reasons[:2])
    assert all("the session was stopped" in line for line in reasons[2:])
