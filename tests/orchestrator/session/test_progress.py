from collections.abc import Iterator
from pathlib import Path

import pytest
from rich.table import Table

from orchestrator.ledger import Ledger, Trial, sqlite_url, this_process
from orchestrator.run_dir.context import RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.progress import Progress
from orchestrator.sweep import load
from orchestrator.sweep.plan import make

SWEEP = Path(__file__).parents[3] / "sweeps" / "quickstart.toml"


@pytest.fixture
def ledger(tmp_path: Path) -> Iterator[Ledger]:
    made = Ledger.create(sqlite_url(tmp_path / "ledger.db"), name="quickstart", sweep={})
    made.acquire(this_process(), 30)
    yield made
    made.close()


def context(ledger: Ledger) -> RunContext:
    return RunContext(make(load(SWEEP)), RunFolder(Path("runs/x")), ledger)


def test_piped_progress_is_plain_lines_and_survives_a_redirected_stdout(
    ledger: Ledger, capfd: pytest.CaptureFixture[str]
) -> None:
    progress = Progress(context(ledger))
    progress.detach()
    trial = Trial(
        id="abc", stage="tune", arm="temperature=0.1", seed=0, number=1, job={}, state="done", started=1.0, ended=3.5
    )
    ledger.add_trials([trial])
    progress.tell("knn_accuracy 0.9", trial)
    progress.tell("attempt 1 of trial x was cut short; it continues", None)
    progress.release()
    said = capfd.readouterr().out.splitlines()
    assert said[0] == "Does a temperature of 0.1 beat one of 1.0 on digits?"
    assert "2 arms, 8 tune trials, 12 confirm trials, 0 of 20 done" in said
    assert "[1/20] tune temperature=0.1 2 of 4  knn_accuracy 0.9" in said
    assert "\x1b" not in "".join(said)


def test_the_last_lines_say_how_it_ended_and_where_everything_is(
    ledger: Ledger, capsys: pytest.CaptureFixture[str]
) -> None:
    Progress(context(ledger)).close(["stopped: SIGINT"])
    said = capsys.readouterr().out
    assert "stopped: SIGINT" in said
    assert "orchestrator ui runs/x" in said
    assert "runs/x/report/report.html" in said


def test_the_answer_is_printed_as_a_table(ledger: Ledger, capsys: pytest.CaptureFixture[str]) -> None:
    table = Table("arm", "mean")
    table.add_row("dcl", "0.9")
    Progress(context(ledger)).answer(table)
    assert "dcl" in capsys.readouterr().out
