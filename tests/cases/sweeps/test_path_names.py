"""A name that makes no folder of a run ends in words and exit code 2, at `plan` already, and nothing is made.

Mutant check: the pattern of letters alone, as before, lets `launch` end in a traceback.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner, Result
from ledgers import start

from orchestrator.cli import main


@pytest.fixture(autouse=True)
def _home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    start(tmp_path / "made").ledger.close()
    return tmp_path / "made" / "sweep.toml"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(main, list(arguments), env={"ORCHESTRATOR_TRACEBACK": "1"})


@pytest.mark.parametrize("verb", ["plan", "launch"])
@pytest.mark.parametrize(
    "name",
    [
        *("n" * 300, "n" * 101, "mlflow.db", "mlartifacts", "compared", "mlflow.db-wal", "MLflow.db"),
        *("..", ".hidden", "a/b", "", "a b", "nul\\0"),
    ],
)
def test_a_name_that_makes_no_folder_is_refused(tmp_path: Path, sweep: Path, verb: str, name: str) -> None:
    done = run(verb, str(sweep), "--set", f"name='{name}'")
    assert done.exit_code == 2, (done.output, done.exception)
    assert "name" in done.output
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize("verb", ["plan", "launch"])
def test_a_file_in_the_place_of_the_run_is_named(tmp_path: Path, sweep: Path, verb: str) -> None:
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "demo").write_text("something")
    done = run(verb, str(sweep))
    assert (done.exit_code, "is a file; a run takes a folder" in done.output) == (2, True), done.output
    (tmp_path / "runs" / "other").mkdir()
    (tmp_path / "runs" / "other" / "notes.txt").write_text("mine")
    done = run(verb, str(sweep), "--set", "name=other")
    assert done.exit_code == 2, done.output
    assert (tmp_path / "runs" / "other" / "notes.txt").read_text() == "mine"


@pytest.mark.parametrize("into", ["runs/mlflow.db", "runs/mlartifacts/", "runs/../runs/compared"])
def test_a_folder_that_is_somebody_elses_is_no_place_for_a_run(
    tmp_path: Path, sweep: Path, monkeypatch: pytest.MonkeyPatch, into: str
) -> None:
    monkeypatch.chdir(tmp_path)
    done = run("launch", str(sweep), "--into", into)
    assert done.exit_code == 2, (done.output, done.exception)
    assert "--into" in done.output
    assert not (tmp_path / "runs").exists()


def test_a_usual_name_is_planned_beside_its_own_run(tmp_path: Path, sweep: Path) -> None:
    assert run("plan", str(sweep), "--set", f"name={'n' * 100}").exit_code == 0
    start(tmp_path / "runs" / "demo").ledger.close()
    assert run("plan", str(sweep)).exit_code == 0
