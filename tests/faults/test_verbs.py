"""Rows 34 to 36 of the fault table: `launch`, `resume --failed`, `resume --give-up` and `stop`, killed half-way.

By the command line, in processes of their own; where a creation can be killed besides is in test_creation.py.
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from real import LONG, SWEEP, TRIALS, call, driver, measured, status, wait_for
from servers import new_database, s3_server
from test_drivers import fault

from orchestrator.ledger import Ledger
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.folder import RunFolder

UNTUNED = SWEEP[: SWEEP.index("[tune]")] + SWEEP[SWEEP.index("[confirm]") :]
"""Six trials, all of them confirming, so that a failed one holds up no other."""


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[str], str]]:
    with s3_server() as uri:
        yield uri


def killed(*arguments: str, home: Path, env: dict[str, str], seconds: float = 120) -> None:
    """The command ends by kill -9, where `env` says."""
    with driver(*arguments, cwd=home, env=env) as process:
        said, _ = process.communicate(timeout=seconds)
        assert process.returncode == -signal.SIGKILL, said


MARKER = {"folder": ".creating", "bucket": "creating.json"}
POINTS = ["write MARKER", "wrote MARKER", "wrote sweep.toml", "wrote ledger", "write sweep.json", "delete MARKER"]


@pytest.mark.soak
@pytest.mark.parametrize("store", ["folder", "folder, postgresql", "bucket, postgresql"])
@pytest.mark.parametrize("point", POINTS)
def test_row_34_a_launch_killed_while_it_creates_is_continued_by_the_same_command(
    home: Path, store: str, point: str, request: pytest.FixtureRequest, bucket: Callable[[str], str]
) -> None:
    """Up to the moment at which the second one would take the lease, where it is killed too; then there is one run."""
    kind = store.partition(",")[0]
    where = str(home / "runs" / "small") if kind == "folder" else bucket(f"{home.name}/small")
    database = new_database(request.getfixturevalue("postgres")) if "postgresql" in store else ""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_LEDGER", database)
        patch.setenv("ORCHESTRATOR_SCRATCH", str(home / "scratch"))
        folder = runs.at(where)
        launch = ("launch", "sweep.toml", "--offline", "--into", where)
        for moment in (point.replace("MARKER", MARKER[kind]), "acquire"):
            killed(*launch, home=home, env=fault(home, moment))
        with contextlib.closing(folder.open()) as ledger:
            assert [run.uuid for run in Ledger.runs(folder.ledger_url())] == [ledger.uuid]
            assert str(ledger.run.environment["command"]).startswith("orchestrator launch sweep.toml --offline --into ")
            assert ledger.run.environment["directory"] == str(home)


@pytest.mark.soak
def test_row_34_the_sweep_of_a_killed_creation_measures_what_an_undisturbed_one_does(
    home: Path, undisturbed: dict[str, float]
) -> None:
    killed("launch", "sweep.toml", "--offline", home=home, env=fault(home, "wrote ledger"))
    assert {path.name for path in (home / "runs" / "small").iterdir()} >= {".creating", "ledger.db"}
    assert f"[{TRIALS}/{TRIALS}]" in call("launch", "sweep.toml", "--offline", cwd=home)
    assert measured(home) == undisturbed
    assert not list((home / "runs" / "small").glob(".creating*"))


@pytest.mark.soak
def test_row_35_resume_failed_killed_half_way_gives_each_failed_trial_one_attempt(home: Path) -> None:
    """Two of three are queued again when it is killed; the same command queues the third."""
    (home / "sweep.toml").write_text(UNTUNED)
    env = fault(home, "step", "raise", rank=0, step=2, times=2)
    said = call("launch", "sweep.toml", cwd=home, code=1, env=env)
    before = status(home)
    assert before["counts"]["failed"] == 2, said
    killed("resume", "small", "--failed", home=home, env=fault(home, "requeue", skip=1))
    half = status(home)
    assert (half["counts"]["failed"], half["counts"]["queued"]) == (1, 1)
    assert half["driver"] is None
    killed("resume", "small", "--failed", home=home, env=fault(home, "after requeue"))
    assert status(home)["counts"]["queued"] == 2
    call("resume", "small", "--failed", cwd=home)
    after = status(home)
    failed = {trial["id"] for trial in before["trials"] if trial["state"] == "failed"}
    assert {trial["id"]: trial["attempts"] for trial in after["trials"]} == {
        trial["id"]: 1 + (trial["id"] in failed) for trial in before["trials"]
    }
    with contextlib.closing(RunFolder(home / "runs" / "small").open()) as ledger:
        points = Counter((point.trial, point.key, point.step) for point in ledger.points())
        states = Counter(attempt.state for attempt in ledger.attempts())
    assert set(points.values()) == {1}
    assert states == {"done": 6, "failed": 2}
    assert '"ok": true' in call("verify", "small", "--json", cwd=home)


@pytest.mark.soak
def test_row_35_resume_give_up_killed_half_way_gives_up_the_rest_when_asked_again(home: Path) -> None:
    (home / "sweep.toml").write_text(UNTUNED)
    call("launch", "sweep.toml", "--offline", cwd=home, code=1, env=fault(home, "step", "raise", rank=0, times=2))
    killed("resume", "small", "--offline", "--give-up", home=home, env=fault(home, "after give_up"))
    assert [trial["outcome"] for trial in status(home)["trials"]].count("infeasible") == 1
    call("resume", "small", "--offline", "--give-up", cwd=home, code=1)
    stood = status(home)["trials"]
    assert [trial["outcome"] for trial in stood].count("infeasible") == 2
    assert {trial["attempts"] for trial in stood} == {1}


@pytest.mark.soak
def test_row_36_stop_killed_before_it_asks_changes_nothing_and_after_it_the_driver_stops(home: Path) -> None:
    (home / "sweep.toml").write_text(LONG)
    folder = RunFolder(home / "runs" / "small")

    def newest() -> int:
        manifests = folder.trials.glob("*/checkpoints/step_*/manifest.json")
        return max((int(path.parent.name[5:]) for path in manifests), default=0)

    with driver("launch", "sweep.toml", "--offline", cwd=home) as process:
        wait_for(newest)
        killed("stop", "small", home=home, env=fault(home, "ask_to_stop"))
        reached = newest()
        wait_for(lambda: newest() > reached)
        time.sleep(2.0)  # a driver looks every second whether somebody asks
        assert process.poll() is None
        killed("stop", "small", home=home, env=fault(home, "after ask_to_stop"))
        said, _ = process.communicate(timeout=60)
        assert process.returncode == 130, said
    assert "asked to, by orchestrator stop" in said
    stood = status(home)
    assert (stood["state"], stood["counts"]["running"], stood["driver"]) == ("stopped", 0, None)
    assert "nobody drives" in call("stop", "small", cwd=home)
    with driver("resume", "small", "--offline", cwd=home) as process:
        reached = newest()
        wait_for(lambda: newest() > reached, what="the one who asked meant the session that was there")
        process.send_signal(signal.SIGINT)
        assert process.wait(60) == 130
