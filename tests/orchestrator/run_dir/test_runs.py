import json
from pathlib import Path

import pytest
from click.testing import CliRunner

from orchestrator.cli import main
from orchestrator.ledger import Ledger, LedgerError, Trial, sqlite_url, this_process
from orchestrator.run_dir.folder import RunError, RunFolder, find, home, logs, names
from orchestrator.run_dir.status import status

PLAN = {"trials": {"tune": 0, "confirm": 1}}


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run called `quick` under $ORCHESTRATOR_RUNS."""
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    made = RunFolder(tmp_path / "quick")
    made.path.mkdir()
    trial = Trial(id="abc123", stage="confirm", arm="dcl", seed=1, job={})
    ledger = Ledger.create(made.ledger_url(), name="quick", sweep={"question": "Which?", "plan": PLAN}, trials=[trial])
    made.identity.write_text(json.dumps({"run": ledger.uuid}))
    ledger.close()
    return made


def test_a_run_is_found_by_name_and_by_folder(folder: RunFolder) -> None:
    assert find("quick") == find(str(folder.path)) == folder
    assert names(home()) == ["quick"]


def test_a_misspelt_run_is_met_with_the_nearest_and_the_known(folder: RunFolder) -> None:
    with pytest.raises(RunError, match=r"no run 'quik'; did you mean 'quick'\?.*: quick"):
        find("quik")
    with pytest.raises(RunError, match="orchestrator launch"):
        RunFolder(folder.path.parent / "other").open()


def test_runs_in_a_bucket_are_named_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: a Path of the URI, which would be a folder called `s3:`, fails this."""
    monkeypatch.setenv("ORCHESTRATOR_RUNS", "s3://bucket/runs")
    with pytest.raises(RunError, match="--into s3://bucket/NAME"):
        home()


def test_status_has_the_pinned_keys_and_needs_no_driver(folder: RunFolder) -> None:
    ledger = folder.open()
    found = status(ledger)
    assert (found["sweep"], found["state"], found["driver"]) == ("quick", "planned", None)
    assert found["counts"] == {"queued": 1, "running": 0, "done": 0, "pruned": 0, "failed": 0}
    keys = {"id", "stage", "arm", "seed", "state", "attempts", "failure", "mlflow_run_id", "metric", "step"}
    assert keys <= set(found["trials"][0])
    ledger.acquire(this_process(), 30)
    driver = status(ledger)["driver"]
    assert driver is not None
    assert driver["holder"] == this_process()
    ledger.release()
    ledger.close()
    json.dumps(found)


def test_a_diverged_trial_is_done_and_its_status_says_what_became_of_it(folder: RunFolder) -> None:
    ledger = folder.open()
    ledger.acquire(this_process(), 30)
    number = ledger.start_attempt("abc123", {}, "h")
    ledger.finish_attempt("abc123", number, state="done", outcome="diverged", metric=0.1)
    (found,) = status(ledger)["trials"]
    assert (found["state"], found["failure"]) == ("done", "diverged")
    ledger.release()
    ledger.close()
    shown = CliRunner().invoke(main, ["status", str(folder.path)]).output
    assert "diverged" in shown
    assert "None" not in shown


def test_the_ledger_s_address_comes_from_the_environment_where_it_is_named(
    folder: RunFolder, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", sqlite_url(tmp_path / "elsewhere.db"))
    with pytest.raises(LedgerError, match="ORCHESTRATOR_LEDGER names a database outside the folder"):
        folder.open()


def test_logs_are_found_by_a_shortened_id_and_a_rank(folder: RunFolder) -> None:
    trial = folder.trial("abc123")
    trial.mkdir(parents=True)
    (trial / "log.rank0.txt").write_text("hello")
    assert logs(folder, "abc", 0) == logs(folder, "abc", None) == "hello"
    with pytest.raises(RunError, match=r"rank 1 of trial abc123 has no log; there are: log.rank0.txt"):
        logs(folder, "abc", 1)
    with pytest.raises(RunError, match=r"'x' names 0 trials .*: abc123"):
        logs(folder, "x", 0)


def test_logs_end_with_the_newest_failure_unless_a_rank_is_asked_for(folder: RunFolder) -> None:
    trial = folder.trial("abc123")
    trial.mkdir(parents=True)
    for number in (1, 9, 10):
        (trial / f"failure.attempt{number}.txt").write_text(f"LookupError: bug {number}")
    assert logs(folder, "abc", None) == "\n--- attempt 10 failed ---\nLookupError: bug 10\n"
    (trial / "log.rank0.txt").write_text("hello")
    assert logs(folder, "abc", None).startswith("hello\n--- attempt 10")
    assert logs(folder, "abc", 0) == "hello"
