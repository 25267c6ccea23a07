"""Ray Tune in its part: warm slots, pruned trials, slots that are killed; with the real session and a real ledger."""

import contextlib
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from real import SLOT, named

from orchestrator.ledger import Ledger, sqlite_url, this_process
from orchestrator.run_dir.context import RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session import cluster as clusters
from orchestrator.session import tune_executor
from orchestrator.session.session import Session
from orchestrator.sweep import Sweep, resolved
from orchestrator.sweep.plan import make

SWEEP: dict[str, Any] = {
    "name": "small",
    "question": "Which?",
    "metric": {"name": "knn_accuracy"},
    "job": {
        "task": "image",
        "budget": {"steps": 8},
        "data": {"train": "digits[:300]", "tune": "digits[300:400]", "confirm": "digits[400:500]"},
        "model": {"name": "resnet", "width": 8, "layers": 1},
        "batch": {"size": 16},
        "evaluate": {"times": 4, "probe": False, "references": 300},
        "execution": {"ranks": 2, "checkpoint_every": 3},
    },
    "compare": {"loss.name": ["infonce", "dcl"]},
    "confirm": {"seeds": 2},
}

SHAPE = tune_executor.Shape(ranks=2, cpus=1, gpus=0)


@pytest.fixture(scope="module")
def cluster() -> Iterator[None]:
    with clusters.session(cpus=2):
        yield


@contextlib.contextmanager
def running(folder: Path, changes: dict[str, Any]) -> Iterator[tuple[Session, Ledger]]:
    plan = make(Sweep.model_validate(SWEEP | changes))
    url = sqlite_url(folder / "ledger.db")
    ledger = Ledger.create(url, name="small", sweep=resolved(plan.sweep) | {"plan": plan.record()})
    ledger.acquire(this_process(), 60)
    session = Session(RunContext(plan, RunFolder(folder), ledger), concurrent=1, tell=lambda _what, _trial: None)
    session.start()
    try:
        yield session, ledger
    finally:
        ledger.release()
        ledger.close()


def placement_groups() -> int:
    from ray.util.placement_group import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


@pytest.mark.usefixtures("cluster")
def test_a_pruned_trial_leaves_its_gang_warm_for_the_next(tmp_path: Path) -> None:
    tune = {
        "trials": 6,
        "prune": "median",
        "sampler": "random",
        "space": {"optimizer.lr": {"low": 1e-5, "high": 1.0, "log": True}},
    }
    with running(tmp_path, {"tune": tune}) as (session, ledger):
        tune_executor.run(session, shape=SHAPE, scratch=tmp_path / "scratch")
        session.close()
        assert session.broken is None
        states = [trial.state for trial in ledger.trials()]
        assert set(states) == {"done", "pruned"}
        assert {trial.attempts for trial in ledger.trials()} == {1}
        pruned = ledger.trials(state="pruned")
        assert all(trial.step is not None and trial.step < 8 for trial in pruned)
    assert placement_groups() == 0


@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_a_slot_that_is_killed_while_it_stands_idle_is_charged_to_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant check: charged to the trial that is due, that has two attempts, the first of them `worker_lost`."""
    with running(tmp_path, {}) as (session, ledger):
        due, asked = session.due, list[bool]()

        def kill_before_the_second(waiting: int = 0) -> bool:
            found = due(waiting)
            asked.extend([True] if found else [])
            if found and len(asked) == 2:
                (slot,) = named(SLOT)
                assert slot.cwd() == str(Path.cwd()), "Tune would have it in its trial's folder"
                slot.kill()
                slot.wait(10)
            return found

        monkeypatch.setattr(session, "due", kill_before_the_second)
        tune_executor.run(session, shape=SHAPE, scratch=tmp_path / "scratch")
        session.close()
        assert session.broken is None
        assert {(one.number, one.state) for one in ledger.attempts()} == {(1, "done")}
        assert len(asked) > len(ledger.attempts())
    assert placement_groups() == 0


def test_tune_passes_no_secret_of_the_driver_s_on_and_no_environment_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it passes on stands in Ray's logs and its API (tests/orchestrator/cluster/test_secrets.py looks there), and
    has Ray start two processes for each slot and each rank. Mutant check: Tune's own cache, which has four variables of
    AWS."""
    names = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SECURITY_TOKEN", "AWS_SESSION_TOKEN", "HF_TOKEN")
    for name in names:
        monkeypatch.setenv(name, "planted")
    actors = tune_executor.ActorClasses()
    assert actors.get(tune_executor.TrialActor) is actors.get(tune_executor.TrialActor)
    assert not vars(actors.get(tune_executor.TrialActor))["_default_options"].get("runtime_env")


@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_another_slot_comes_up_though_trials_are_shorter_than_that_takes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant check: left to itself Tune gives the warm slot to whoever waits for the other one, and ends that."""
    job = SWEEP["job"] | {"budget": {"steps": 2}, "execution": {"ranks": 1, "verify": False}}
    job["evaluate"] = {"times": 1, "probe": False, "references": 300}
    with running(tmp_path, {"job": job, "confirm": {"seeds": 60}}) as (session, ledger):
        report, heard = session.report, list[bool]()

        def have_room_once_the_first_slot_is_warm(*arguments: Any) -> None:
            heard.append(True)
            if len(heard) == 8:
                session.resize(2)
            report(*arguments)

        monkeypatch.setattr(session, "report", have_room_once_the_first_slot_is_warm)
        tune_executor.run(session, shape=tune_executor.Shape(ranks=1, cpus=1, gpus=0), scratch=tmp_path / "scratch")
        session.close()
        ran = sorted((one.started or 0.0, one.ended or 0.0) for one in ledger.attempts())
        assert len(ran) == 120
        assert any(began < ended for (_, ended), (began, _) in itertools.pairwise(ran)), "never two at once"
    assert placement_groups() == 0
