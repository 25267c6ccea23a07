"""Rows 1-3, 13, 14, 16-20, 25 of the fault table: what goes wrong on a rank or in its folder, under a real session.

Real Ray, Tune, gangs, ranks over gloo, and a real ledger; faults happen at exact steps (inject/sitecustomize.py) or to
processes and files as they are found.
"""

from __future__ import annotations

import contextlib
import json
import re
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from cgroups import MB, limited
from real import RANK, SLOT, named, recovered, wait_for

from jobs.artifacts import manifest
from jobs.config import EXECUTION_METRICS
from orchestrator import tracking
from orchestrator.ledger import Attempt, Ledger, Trial, sqlite_url, this_process
from orchestrator.run_dir.context import Options, RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session import cluster as clusters
from orchestrator.session import tune_executor
from orchestrator.session.session import Session
from orchestrator.sweep import Sweep, resolved
from orchestrator.sweep.plan import make
from orchestrator.tracking import metadata

SWEEP: dict[str, Any] = {
    "name": "faulty",
    "question": "Which?",
    "metric": {"name": "knn_accuracy"},
    "job": {
        "task": "image",
        "budget": {"steps": 12},
        "data": {"train": "digits[:300]", "confirm": "digits[400:500]"},
        "model": {"name": "resnet", "width": 8, "layers": 1},
        "batch": {"size": 16},
        "evaluate": {"times": 2, "probe": False, "references": 300},
        "execution": {"ranks": 2, "checkpoint_every": 4, "deadline_s": 30.0},
    },
    "compare": {"loss.name": ["infonce", "dcl"]},
    "confirm": {"seeds": 1},
}

SHAPE = tune_executor.Shape(ranks=2, cpus=1, gpus=0)


@pytest.fixture(scope="module")
def plan_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fault") / "fault.json"


@pytest.fixture(scope="module")
def cluster(plan_file: Path) -> Iterator[None]:
    """A Ray session whose workers read the planned faults."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PYTHONPATH", str(Path(__file__).parent / "inject"))
        patch.setenv("ORCHESTRATOR_FAULT", str(plan_file))
        with clusters.session(cpus=2):
            yield


class Fault:
    """Plans a fault: `fault("raise", rank=1, step=5)`."""

    def __init__(self, plan: Path) -> None:
        self._plan = plan

    def __call__(self, do: str, **where: Any) -> None:
        self._plan.write_text(json.dumps({"at": "step", "do": do, "times": 1} | where))

    def at(self) -> float:
        """When it happened, in unix seconds: the file then counts down."""
        return self._plan.stat().st_mtime


@pytest.fixture
def fault(cluster: None, plan_file: Path) -> Iterator[Fault]:
    """See `Fault`."""
    yield Fault(plan_file)
    plan_file.unlink(missing_ok=True)


class Run:
    """One session after the other on one folder."""

    def __init__(self, folder: Path, **changes: Any) -> None:
        self.folder = RunFolder(folder)
        job = {**SWEEP["job"], **changes.pop("job", {})}
        self.plan = make(Sweep.model_validate(SWEEP | {"job": job} | changes))
        folder.mkdir(exist_ok=True)
        self.ledger = Ledger.create(
            sqlite_url(folder / "ledger.db"), name="faulty", sweep=resolved(self.plan.sweep) | {"plan": {}}
        )
        self.said: list[str] = []

    def go(self, *, execution: dict[str, Any] | None = None) -> Session:
        """A session, from where the ledger stands to its end."""
        self.ledger.acquire(this_process(), 60)
        session = Session(
            RunContext(self.plan, self.folder, self.ledger, Options(execution=execution or {})),
            concurrent=1,
            tell=lambda what, _: self.said.append(what),
        )
        session.start()
        try:
            if not session.finished():
                tune_executor.run(session, shape=SHAPE, scratch=self.folder.path / "scratch")
        finally:
            session.close()
            self.ledger.release()
        assert session.broken is None
        return session

    def requeue(self) -> None:
        """Another attempt for the first trial, as `resume --failed` does it."""
        self.ledger.acquire(this_process(), 60)
        self.ledger.requeue(self.first.id)
        self.ledger.release()

    @property
    def first(self) -> Trial:
        """The trial that runs first."""
        return self.ledger.trials()[0]

    def attempts(self) -> list[Attempt]:
        """Of the first trial."""
        return self.ledger.attempts(self.first.id)

    def checkpoints(self) -> Path:
        """Of the first trial."""
        return self.folder.trial(self.first.id) / "checkpoints"

    def recovered(self, row: str, fault_at: float) -> None:
        """Print the time from the fault, unix seconds, to the first point of the next attempt."""
        times = [attempt.started or 0 for attempt in self.ledger.attempts() if (attempt.started or 0) > fault_at]
        fresh = [point.time for point in self.ledger.points() if point.time > min(times)]
        recovered(row, min(fresh) - fault_at)

    def log(self) -> str:
        """What rank 0 of the first trial printed."""
        return (self.folder.trial(self.first.id) / "log.rank0.txt").read_text()

    def points(self) -> dict[tuple[str, str, int], float]:
        """Every point but how fast and how large."""
        return {
            (p.trial, p.key, p.step): p.value for p in self.ledger.points() if not p.key.startswith(EXECUTION_METRICS)
        }


@pytest.fixture(scope="module")
def calm(cluster: None, tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str, int], float]:
    """The points of the undisturbed sweep."""
    run = Run(tmp_path_factory.mktemp("calm") / "run")
    run.go()
    return run.points()


def placement_groups() -> int:
    from ray.util.placement_group import placement_group_table

    return sum(group["state"] != "REMOVED" for group in placement_group_table().values())


@contextlib.contextmanager
def meanwhile(work: Callable[[], None]) -> Iterator[None]:
    """Do something beside, and hear of it when it fails."""
    failed: list[BaseException] = []

    def guarded() -> None:
        try:
            work()
        except BaseException as error:  # noqa: BLE001 - raised in the test's thread
            failed.append(error)

    thread = threading.Thread(target=guarded)
    thread.start()
    yield
    thread.join()
    if failed:
        raise failed[0]


def test_row_1_a_killed_rank_costs_one_attempt_that_goes_on_from_the_newest_checkpoint(
    fault: Fault, tmp_path: Path, calm: dict[tuple[str, str, int], float]
) -> None:
    """The same MLflow run, no point twice, and the same numbers as if nothing had been."""
    fault("kill", rank=1, step=7)
    run = Run(tmp_path / "run")
    run.go()
    first, second = run.attempts()
    assert (first.state, first.failure) == ("failed", "worker_lost")
    assert (first.message or "").startswith("rank 1: ")
    assert second.state == "done"
    assert "continues after step 4 of 12" in run.log()
    assert run.points() == calm
    assert (first.ended or 0) - fault.at() < 5, "it took too long to be noticed"
    run.recovered("1", fault.at())
    run.ledger.acquire(this_process(), 60)
    uri = tracking.embedded_uri(tmp_path)
    assert tracking.Projection(run.ledger, uri).flush()
    nested = [one for one in tracking.runs_of(uri, run.ledger.uuid) if one["kind"] == "trial"]
    assert sorted(str(one["trial"]) for one in nested) == sorted(trial.id for trial in run.ledger.trials())
    measured = [(one["trial"], {k: p for k, p in one["metrics"].items() if k != metadata.PAIRS}) for one in nested]
    told = [(trial, key, step) for trial, own in measured for key, points in own.items() for step, _, _ in points]
    assert len(told) == len(set(told)) == len(run.ledger.points())
    (own,) = [one for one in nested if one["trial"] == run.first.id]
    assert own["tags"]["attempt.1.failure"] == "worker_lost"


@pytest.mark.soak
def test_row_2_a_checkpoint_cut_short_by_a_kill_is_ignored(
    fault: Fault, tmp_path: Path, calm: dict[tuple[str, str, int], float]
) -> None:
    """Rank 0 is killed once the files are written and before the manifest, which commits them."""
    fault("kill", at="checkpoint", step=8)
    run = Run(tmp_path / "run")
    left: list[str] = []

    def look() -> None:
        wait_for(lambda: len(run.ledger.attempts()) > 0 and run.attempts()[0].failure)
        left.extend(path.name for path in run.folder.trials.glob("*/checkpoints/.step_000008*/*"))

    with meanwhile(look):
        run.go()
    assert sorted(left) == ["model.safetensors", "optimizer.pt"]
    first, second = run.attempts()
    assert (first.failure, second.state) == ("worker_lost", "done")
    assert (first.message or "").startswith("rank 0: ")
    assert "continues after step 4 of 12" in run.log()
    assert run.points() == calm
    assert not list(run.folder.trials.glob("*/checkpoints/.step_*")), "what was left is cleared away"
    run.recovered("2", fault.at())


@pytest.mark.soak
@pytest.mark.usefixtures("cluster")
def test_row_3_a_killed_slot_takes_its_ranks_with_it_and_leaks_no_placement_group(
    tmp_path: Path, calm: dict[tuple[str, str, int], float]
) -> None:
    run = Run(tmp_path / "run")
    orphans: list[psutil.Process] = []
    killed: list[float] = []

    def kill_slot() -> None:
        wait_for(lambda: list(run.folder.trials.glob("*/checkpoints/step_000004/manifest.json")))
        orphans.extend(named(RANK))
        killed.append(time.time())
        named(SLOT)[0].kill()
        assert not psutil.wait_procs(orphans, timeout=5)[1], "a rank outlived its slot"

    with meanwhile(kill_slot):
        run.go()
    assert len(orphans) == 2
    assert [one.failure for one in run.ledger.attempts() if one.failure] == ["worker_lost"]
    assert run.points() == calm
    assert placement_groups() == 0
    run.recovered("3", killed[0])


@pytest.mark.soak
def test_row_13_a_checkpoint_with_one_flipped_bit_is_set_aside_and_the_event_recorded(
    fault: Fault, tmp_path: Path, calm: dict[tuple[str, str, int], float]
) -> None:
    """Other damage: tests/jobs/artifacts/test_checkpoint.py."""
    fault("raise", rank=0, step=10)
    run = Run(tmp_path / "run")
    run.go()
    assert run.first.failure == "user_error"
    weights = run.checkpoints() / "step_000008" / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[len(content) // 2] ^= 1
    weights.write_bytes(content)
    run.requeue()
    run.go()
    assert "continues after step 4 of 12" in run.log()
    (event,) = run.ledger.events("checkpoint")
    assert event.trial == run.first.id
    assert "step_000008 is damaged (model.safetensors does not match its sha256)" in event.text
    assert (run.checkpoints() / "step_000008.bad-1").is_dir()
    assert run.points() == calm


@pytest.mark.soak
def test_row_14_without_a_sound_checkpoint_it_starts_again_from_step_0_and_says_so(
    fault: Fault, tmp_path: Path, calm: dict[tuple[str, str, int], float]
) -> None:
    fault("raise", rank=1, step=10)
    run = Run(tmp_path / "run")
    run.go()
    for path in manifest.complete(run.checkpoints()):
        (path / "optimizer.pt").write_bytes(b"")
    run.requeue()
    run.go()
    assert "training starts again from step 0" in run.log()
    assert "training starts again from step 0" in run.ledger.events("checkpoint")[-1].text
    assert run.points() == calm


@pytest.mark.soak
def test_row_16_a_rank_that_gets_no_memory_is_told_with_its_peak(fault: Fault, tmp_path: Path) -> None:
    fault("allocate", rank=1, step=5)
    run = Run(tmp_path / "run")
    run.go()
    (attempt,) = run.attempts()
    assert attempt.failure == "out_of_memory"
    assert (attempt.message or "").startswith("rank 1: RuntimeError")
    assert "peak memory of the trial" in (attempt.message or "")
    assert {trial.state for trial in run.ledger.trials()} == {"failed", "done"}, "the sweep goes on"


@pytest.mark.soak
def test_row_16_a_rank_that_linux_ends_at_the_limit_of_its_cgroup_is_out_of_memory(
    fault: Fault, tmp_path: Path
) -> None:
    """A real cgroup and a real end: both ranks may take 300 MB more than they have. On another node:
    tests/faults/test_nodes.py. Mutant check: `worker_lost`, and five more attempts."""
    run = Run(tmp_path / "run", job={"budget": {"steps": 600}})
    with limited(300 * MB) as cgroup:

        def hold_and_eat() -> None:
            wait_for(lambda: list(run.folder.trials.glob("*/checkpoints/step_000004/manifest.json")))
            cgroup.take(*[rank.pid for rank in named(RANK)])
            time.sleep(2)  # a report or two
            fault("eat", rank=1)

        with meanwhile(hold_and_eat):
            run.go()
    (attempt,) = run.attempts()
    assert attempt.failure == "out_of_memory", attempt.message
    assert re.fullmatch(
        # Both are in the cgroup, and Linux chooses.
        r"rank [01] was killed by the system because memory ran out; peak memory of the trial [1-9][\d,]* MB; "
        r"limit of its cgroup 300 MB",
        attempt.message or "",
    )
    assert {trial.state for trial in run.ledger.trials()} == {"failed", "done"}, "the sweep goes on"


@pytest.mark.soak
def test_row_17_a_gpu_out_of_memory_is_not_tried_again_blindly_but_with_less(
    fault: Fault, tmp_path: Path, calm: dict[tuple[str, str, int], float]
) -> None:
    """That the search waits for it: tests/orchestrator/session/test_session.py."""
    fault("cuda out of memory", rank=0, step=5)
    run = Run(tmp_path / "run")
    run.go()
    assert [one.failure for one in run.attempts()] == ["out_of_memory"]
    run.requeue()
    run.go(execution={"micro": 4})
    assert [one.execution.get("micro") for one in run.attempts()] == [None, 4]
    assert run.first.state == "done"
    ours = {key: value for key, value in run.points().items() if key[1] == "knn_accuracy"}
    assert ours == {key: value for key, value in calm.items() if key[1] == "knn_accuracy"}


def test_row_18_a_nan_on_one_rank_stops_all_of_them_at_that_step(fault: Fault, tmp_path: Path) -> None:
    fault("nan", rank=1, step=6)
    run = Run(tmp_path / "run")
    run.go()
    assert (run.first.state, run.first.outcome, run.first.attempts) == ("done", "diverged", 1), run.first.message
    result = run.first.came_to
    assert result.step == 5
    assert result.metrics == {}
    assert run.first.metric is None
    assert result.untrained["knn_accuracy"] > 0
    assert {trial.state for trial in run.ledger.trials()} == {"done"}


@pytest.mark.soak
def test_row_19_the_exception_of_the_only_rank_that_raises_is_what_is_seen(fault: Fault, tmp_path: Path) -> None:
    """In the ledger, in the rank's own log and in the failure file. Mutant check: reporting the first error that
    comes in names rank 0 and its broken connection in some runs."""
    fault("raise", rank=1, step=5)
    run = Run(tmp_path / "run")
    run.go()
    (attempt,) = run.attempts()
    seconds = (attempt.ended or 0) - fault.at()
    assert seconds < 5
    recovered("19", seconds)
    assert (attempt.failure, attempt.message) == ("user_error", "rank 1: LookupError: the bug of this rank")
    folder = run.folder.trial(run.first.id)
    assert "LookupError: the bug of this rank" in (folder / "failure.attempt1.txt").read_text()
    assert "LookupError: the bug of this rank" in (folder / "log.rank1.txt").read_text()


@pytest.mark.soak
def test_row_20_a_rank_that_sleeps_for_ever_is_named_with_its_stack(
    fault: Fault, tmp_path: Path, calm: dict[tuple[str, str, int], float]
) -> None:
    """Not rank 0, which waits for it. Mutant check: a watch that blames the first late rank names rank 0."""
    fault("sleep", rank=1, step=6)
    job = {"execution": SWEEP["job"]["execution"] | {"deadline_s": 4.0}}
    run = Run(tmp_path / "run", job=job)
    run.go()
    first, second = run.attempts()
    assert (first.failure, second.state) == ("hung", "done")
    assert (first.message or "").startswith("rank 1 hangs: step 6 has taken ")
    assert (first.ended or 0) - fault.at() < 4 + 15
    told = (run.folder.trial(run.first.id) / "failure.attempt1.txt").read_text()
    assert "time.sleep(100_000)" in told
    assert sorted(value for _, value in run.points().items()) == sorted(calm.values())
    run.recovered("20, with a deadline of 4 s", fault.at())


@pytest.mark.soak
def test_row_25_a_metric_that_is_no_number_fails_that_attempt_and_the_sweep_goes_on(
    fault: Fault, tmp_path: Path
) -> None:
    """Text, several numbers, nothing, at the first evaluation; missing at the last one:
    tests/orchestrator/session/test_session.py. One that is not finite is the encoder's doing and not the user's: the
    trial has diverged."""
    fault("", at="evaluation", rank=0, times=3)
    run = Run(tmp_path / "run", job={"execution": SWEEP["job"]["execution"] | {"ranks": 1}}, confirm={"seeds": 3})
    run.go()
    assert {trial.message for trial in run.ledger.trials(state="failed")} == {
        "rank 0: ValueError: knn_accuracy is str '0.9'; it must be one number",
        "rank 0: ValueError: knn_accuracy is list '[0.9, 0.8]'; it must be one number",
        "rank 0: ValueError: knn_accuracy is NoneType 'None'; it must be one number",
    }
    assert len(run.ledger.trials(state="done")) == 3
