"""The estimate against real ledgers, and as a function of what is known."""

from __future__ import annotations

import hashlib
import json
import random
import sqlite3
import time
from collections.abc import Mapping
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from servers import new_database

from jobs.config import Budget, JobConfig
from orchestrator.ledger import Ledger, Suggestion, Trial, sqlite_url
from orchestrator.preflight import requirements
from orchestrator.preflight.estimate import (
    Estimate,
    Known,
    cost,
    estimate,
    from_history,
    history,
    probes,
    time_line,
)
from orchestrator.run_dir.environment import machine
from orchestrator.session.schedule import as_trial
from orchestrator.sweep import Sweep, resolved
from orchestrator.sweep import plan as planning
from orchestrator.system.display import duration

SWEEP: dict[str, Any] = {
    "name": "demo",
    "question": "Is flat better?",
    "metric": {"name": "knn_accuracy", "smallest_difference": 0.005},
    "job": {
        "task": "image",
        "budget": {"samples": 1000},
        "data": {"train": "digits[:1000]", "tune": "digits[1000:1400]", "confirm": "digits[1400:]"},
        "batch": {"size": 32},
        "evaluate": {"times": 4},
    },
    "compare": {"loss.name": ["infonce", "flatnce"]},
    "confirm": {"seeds": 6},
}
TUNE = {"trials": 4, "defaults": [{}], "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}
BEGUN = 1_000_000.0


def job(**changes: Any) -> dict[str, Any]:
    return {**SWEEP["job"], **changes}


def plan_of(**changes: Any) -> planning.Plan:
    return planning.make(Sweep.model_validate(SWEEP | changes))


def known(planned: Mapping[str, Any] | None = None, **changes: Any) -> Known:
    values: dict[str, Any] = {
        "job": JobConfig.model_validate(planned or job()),
        "gpus_per_rank": 0,
        "training_s": 10.0,
        "samples": 1000,
        "rest_s": 5.0,
        "peak_memory_mb": 100.0,
        "origin": "runs/demo",
    }
    return Known(**(values | changes))


class Runner:
    """A ledger of a run, and hands to play the driver with."""

    def __init__(self, folder: Path, plan: planning.Plan, **environment: Any) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.begin(sqlite_url(folder / "ledger.db"), plan, **environment)
        self.file = folder / "ledger.db"

    def begin(self, url: str, plan: planning.Plan, **environment: Any) -> None:
        sweep = resolved(plan.sweep) | {"plan": plan.summary()}
        self.plan = plan
        self.ledger = Ledger.create(url, name="demo", sweep=sweep, environment=machine() | environment)
        self.ledger.acquire("test", 3600)

    def confirm(self, arm: str) -> list[Trial]:
        trials = [as_trial(planned) for planned in self.plan.confirm_trials(arm, {})]
        self.ledger.add_trials(trials)
        return trials

    def done(self, trial: Trial, *, seconds: float = 10.0, outcome: Any = "ok", execution: Any = None) -> None:
        attempt = self.ledger.start_attempt(trial.id, execution or {}, "host")
        result = {"seconds": seconds, "samples": 992, "peak_memory_mb": 100.0 + trial.seed}
        self.ledger.finish_attempt(trial.id, attempt, state="done", outcome=outcome, metric=0.5, result=result)

    def failed(self, trial: Trial, execution: Any = None, *, again: bool = False) -> None:
        attempt = self.ledger.start_attempt(trial.id, execution or {}, "host")
        self.ledger.finish_attempt(trial.id, attempt, state="failed", failure="worker_lost", again=again)

    def finish(self, arm: str, **how: Any) -> None:
        for trial in self.confirm(arm):
            self.done(trial, **how)

    def close(self, *, wall_s: float = 15.0, first_s: float = 15.0) -> None:
        """Give every trial the wall time of a slow machine, and leave."""
        self.ledger.close()
        with closing(sqlite3.connect(self.file)) as connection, connection:
            connection.execute("UPDATE runs SET created = ?", (BEGUN,))
            connection.execute("UPDATE trials SET started = ?, ended = ?", (BEGUN + 7, BEGUN + 7 + wall_s))
            connection.execute("UPDATE trials SET ended = ? WHERE position = 0", (BEGUN + 7 + first_s,))


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs live, and nothing else that could tell."""
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 2)
    return tmp_path / "runs"


def contents(folder: Path) -> dict[str, tuple[str, int]]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {
        path.relative_to(folder).as_posix(): (hashlib.sha256(path.read_bytes()).hexdigest(), path.stat().st_mtime_ns)
        for path in files
    }


# What earlier runs tell


def test_trials_like_its_own_tell_what_a_sweep_takes(home: Path) -> None:
    """Mutant checks: counting the first trial's start as everybody's, or leaving out the rest, is another time."""
    runner = Runner(home / "first", plan_of())
    for arm in ("infonce", "flatnce"):
        runner.finish(arm)
    runner.close(wall_s=15.0, first_s=35.0)
    found = from_history(plan_of())
    # 31 whole batches of 32 are 992 samples, as there: 10 s of training and 5 s of all else, 12 trials, 2 at once.
    assert [arm.trial_seconds for arm in found.arms] == pytest.approx([15.0, 15.0])
    assert found.seconds == pytest.approx(12 * 15 / 2)
    assert (found.concurrent, found.trials) == (2, 12)
    assert found.rank_hours == pytest.approx(12 * 15 / 3600)
    assert found.start_s == pytest.approx(7 + 20)
    assert [arm.peak_memory_mb for arm in found.arms] == [105.0, 105.0]
    assert found.source == f"12 trials of {home / 'first'}"
    line = time_line(found, "plan")
    assert line == f"about 90 s (12 trials, 2 at once), and 27 s to start; 0.05 rank-hours; from {found.source}"


def test_training_goes_with_samples_and_the_rest_with_evaluations(home: Path) -> None:
    runner = Runner(home / "first", plan_of())
    runner.finish("infonce")
    runner.finish("flatnce")
    runner.close()
    longer = from_history(plan_of(job=job(budget={"samples": 9920})))
    assert longer.arms[0].trial_seconds == pytest.approx(100 + 5)
    oftener = from_history(plan_of(job=job(evaluate={"times": 9})))
    assert oftener.arms[0].trial_seconds == pytest.approx(10 + 5 * 10 / 5)


def test_only_what_was_trained_to_its_end_is_evidence(home: Path) -> None:
    """Mutant check: reading pruned, failed or diverged trials too finds more than one."""
    runner = Runner(home / "first", plan_of(tune=TUNE | {"prune": "median"}))
    good, diverged, failed, *_ = runner.confirm("infonce")
    runner.done(good)
    runner.done(diverged, seconds=0.1, outcome="diverged")
    runner.failed(failed)
    (tuned,) = runner.plan.tune_trials("infonce", 0, {"optimizer.lr": 1e-3})
    runner.ledger.add_suggestion(Suggestion("infonce", 0, {"optimizer.lr": 1e-3}, (tuned.id,)), [as_trial(tuned)])
    attempt = runner.ledger.start_attempt(tuned.id, {}, "host")
    runner.ledger.finish_attempt(tuned.id, attempt, state="pruned", metric=0.1, step=3)
    runner.close()
    (one,) = history().known
    assert (one.training_s, one.samples, one.peak_memory_mb) == (10.0, 992, 100.0 + good.seed)


def test_of_several_attempts_the_speed_is_evidence_and_the_wall_time_is_not(home: Path) -> None:
    """Mutant check: taking its 500 s as the rest of a trial says 498 s more."""
    runner = Runner(home / "first", plan_of())
    for arm in ("infonce", "flatnce"):
        (trial, *_) = runner.confirm(arm)
        runner.failed(trial, again=True)
        runner.done(trial)
    runner.close(wall_s=500, first_s=500)
    found = from_history(plan_of())
    assert found.arms[0].trial_seconds == pytest.approx(10.0)
    assert found.start_s is None
    assert "training alone, without loading and evaluations" in str(found.source)


def test_a_trial_tells_of_the_execution_that_it_had(home: Path) -> None:
    """The first attempt of an arm is told to verify its gradient, which changes no step. Mutant check: using the job
    as planned finds the time of `micro` for a job without."""
    runner = Runner(home / "first", plan_of())
    for arm in ("infonce", "flatnce"):
        first, second, third, *_ = runner.confirm(arm)
        runner.done(first, seconds=10.0, execution={"verify": True})
        runner.done(second, seconds=99.0, execution={"micro": 8})
        runner.failed(third, {"micro": 4}, again=True)
        runner.done(third, seconds=1.0, execution={"micro": 2})
    runner.close(wall_s=100.0, first_s=100.0)
    assert {one.training_s for one in from_history(plan_of()).arms[0].known} == {10.0}
    chunked = from_history(plan_of(job=job(execution={"micro": 8})))
    assert {one.training_s for one in chunked.arms[0].known} == {99.0}
    for micro in (2, 4):
        assert from_history(plan_of(job=job(execution={"micro": micro}))).seconds is None


@pytest.mark.parametrize("damage", ["empty", "garbage", "truncated", "newer", "no tables", "locked", "folder"])
def test_a_ledger_that_cannot_be_read_is_left_out(home: Path, damage: str) -> None:
    """Mutant check: without the check of the version the newer one is read."""
    runner = Runner(home / "good", plan_of())
    runner.finish("infonce")
    runner.close()
    bad = Runner(home / "bad", plan_of())
    bad.finish("infonce")
    bad.close()
    lock = sqlite3.connect(":memory:")
    if damage == "newer":
        with closing(sqlite3.connect(bad.file)) as connection, connection:
            connection.execute("UPDATE orchestrator_schema SET version = 99")
    elif damage == "locked":
        lock = sqlite3.connect(bad.file, isolation_level=None)
        lock.execute("PRAGMA locking_mode = EXCLUSIVE")
        lock.execute("BEGIN EXCLUSIVE")
        lock.execute("UPDATE runs SET name = 'busy'")
    elif damage == "folder":
        bad.file.unlink()
        bad.file.mkdir()
    elif damage == "no tables":
        bad.file.unlink()
        with closing(sqlite3.connect(bad.file)) as connection:
            connection.execute("CREATE TABLE other (a)")
    else:
        whole = bad.file.read_bytes()
        bad.file.write_bytes({"empty": b"", "garbage": b"no database" * 999, "truncated": whole[:5000]}[damage])
    began = time.monotonic()
    found = history()
    lock.close()
    assert time.monotonic() - began < 5
    good = [one for one in found.known if one.origin == str(home / "good")]
    assert len(good) == 6
    if damage != "locked":  # what is locked may be read as it was
        assert len(found.known) == 6
        assert [text.partition(":")[0] for text in found.skipped] == [str(home / "bad")]
    unknown = from_history(plan_of(job=job(model={"width": 16})))
    if damage != "locked":
        assert any("a ledger could not be read" in note for note in unknown.notes)


def test_an_older_ledger_is_read_and_not_brought_forward(home: Path) -> None:
    """Mutant check: opening it by `Ledger.runs` brings it to the newest version."""
    runner = Runner(home / "old", plan_of())
    runner.finish("infonce")
    runner.close()
    with closing(sqlite3.connect(runner.file)) as connection, connection:
        connection.execute("ALTER TABLE leases DROP COLUMN stop")
        connection.execute("UPDATE orchestrator_schema SET version = 1")
    before = contents(home)
    assert len(history().known) == 6
    assert contents(home) == before


def test_what_a_driver_has_just_written_is_read_beside_it(home: Path) -> None:
    """Mutant check: taking every file as unchanging misses what is still in the log."""
    runner = Runner(home / "live", plan_of())
    runner.finish("infonce")
    assert (home / "live" / "ledger.db-wal").stat().st_size
    assert len(history().known) == 6
    runner.ledger.event("still", "writing")
    runner.ledger.close()


def test_reading_leaves_no_trace(home: Path) -> None:
    """Mutant check: opening with mode=ro leaves SQLite's side files."""
    runner = Runner(home / "first", plan_of())
    runner.finish("infonce")
    runner.close()
    before = contents(home)
    assert len(history().known) == 6
    assert contents(home) == before


def test_runs_in_a_server_are_read_too(home: Path, postgres: str, monkeypatch: pytest.MonkeyPatch) -> None:
    url = new_database(postgres)
    runner = Runner(home / "first", plan_of())
    runner.finish("infonce")
    runner.close()
    runner.begin(url, plan_of())
    runner.finish("infonce")
    runner.ledger.close()
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", url)
    assert sorted(one.origin for one in history().known) == sorted([str(home / "first")] * 6 + ["demo"] * 6)


@pytest.mark.parametrize(
    "url", ["postgresql://me:hunter2@127.0.0.1:9/x", "sqlite:////nowhere/ledger.db", "none", "x://"]
)
def test_a_ledger_that_is_not_there_is_left_out_and_keeps_its_secret(
    home: Path, monkeypatch: pytest.MonkeyPatch, url: str
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", url)
    began = time.monotonic()
    (why,) = history().skipped
    assert time.monotonic() - began < 5
    assert why.startswith("$ORCHESTRATOR_LEDGER: ")
    assert "hunter2" not in why


def test_runs_that_are_kept_in_a_bucket_are_no_error(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", "s3://bucket/runs")
    assert history().known == ()


def test_thirty_runs_are_read_in_less_than_a_second(home: Path) -> None:
    """Processor time: a busy machine says nothing about the program. 0.15 s when it was written."""
    runner = Runner(home / "run0", plan_of(confirm={"seeds": 10}))
    for arm in ("infonce", "flatnce"):
        runner.finish(arm)
    runner.close()
    for number in range(1, 30):
        (home / f"run{number}").mkdir()
        (home / f"run{number}" / "ledger.db").write_bytes(runner.file.read_bytes())
    began = time.process_time()
    found = from_history(plan_of())
    assert time.process_time() - began < 1
    assert found.source == "600 trials of 30 runs"


# What is known of one job holds for another


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 5},
        {"stage": "tune"},
        {"budget": {"steps": 7}},
        {"optimizer": {"lr": 0.1, "warmup": 0.5}},
        {"loss": {"temperature": 0.5}},
        {"evaluate": {"times": 9}},
        {"execution": {"verify": True, "checkpoint_every": 3}},
        {"data": {"train": "digits[100:900]", "tune": "digits[:9]", "confirm": "digits[9:20]"}},
        {"batch": {"size": 32, "pool": 32}},
    ],
)
def test_what_costs_nothing_does_not_matter(changes: dict[str, Any]) -> None:
    assert cost(known(job(**changes)).job, 0) == cost(known().job, 0)


@pytest.mark.parametrize(
    "changes",
    [
        {"model": {"width": 128}},
        {"model": {"precision": "bf16"}},
        {"batch": {"size": 64}},
        {"batch": {"size": 32, "pool": 8}},
        {"loss": {"name": "dcl"}},
        {"augment": {"crop": 1.0}},
        {"execution": {"ranks": 2}},
        {"execution": {"micro": 8}},
        {"optimizer": {"name": "sgd"}},
        {"data": job()["data"] | {"train": "cifar[:1000]"}},
        {"data": job()["data"] | {"image_shape": [16, 16]}},
        {"data": job()["data"] | {"max_tokens": 64}},
    ],
)
def test_what_sets_the_cost_of_a_step_matters(changes: dict[str, Any]) -> None:
    """Mutant check: adding "augment." to what costs nothing fails its case."""
    assert cost(known(job(**changes)).job, 0) != cost(known().job, 0)
    assert cost(known().job, 0) != cost(known().job, 1)


def test_a_length_that_is_not_given_is_the_former_one_where_no_folder_says_another(tmp_path: Path) -> None:
    """Mutant check: leaving it open for all that is loaded."""
    plain, other = tmp_path / "plain", tmp_path / "other"
    for folder in (plain, other):
        folder.mkdir()
    (other / "modules.json").write_text("[]")
    data = {"train": "a", "confirm": "a", "tune": "a"}
    for name, length in ((str(plain), 32), (str(other), None), ("lab/encoder", None), ("bert", 32)):
        given = job(task="sentence", data=data, model={"name": name})
        given.pop("augment", None)
        assert cost(JobConfig.model_validate(given), 0)["data.max_tokens"] == length


def test_another_batch_will_do_and_is_called_rough() -> None:
    """The nearest batch size speaks. Mutant check: without the ratio the first one does."""
    told = [known(job(batch={"size": size}), training_s=seconds) for size, seconds in ((512, 1), (64, 2), (8, 3))]
    found = estimate(plan_of(compare={}, arm=[{"label": "only"}]), told, concurrent=1)
    assert found.arms[0].known == (told[1],)
    assert found.source == "1 trial of runs/demo; rough: they had batch.size = 64"
    pooled = estimate(plan_of(compare={}, arm=[{"label": "pooled", "batch.pool": 8}]), told[1:2], concurrent=1)
    assert str(pooled.source).endswith("rough: they had batch.negatives_group = 64, batch.size = 64")
    loss = estimate(plan_of(), [known()], concurrent=1)
    assert (loss.arms[0].remarks, loss.arms[1].remarks) == ((), ("rough: they had loss.name = infonce",))


def test_what_is_known_of_this_machine_goes_first() -> None:
    """Mutant check: looking at the cost first takes the other machine's time."""
    far = known(here=False, training_s=1.0, origin="runs/far")
    near = known(job(batch={"size": 64}), training_s=50.0)
    only = plan_of(compare={}, arm=[{"label": "only"}])
    assert estimate(only, [far, near], concurrent=1).arms[0].known == (near,)
    assert estimate(only, [far], concurrent=1).source == "1 trial of runs/far; measured on another machine"


def test_a_run_of_another_machine_is_told_from_ours(home: Path) -> None:
    runner = Runner(home / "far", plan_of(), processor="Abacus")
    runner.finish("infonce")
    runner.close()
    assert {one.here for one in history().known} == {False}


def test_arms_that_nothing_is_known_of_are_named() -> None:
    arms = [{"label": "small"}, {"label": "wide", "model.width": 128}, {"label": "deep", "model.layers": 4}]
    found = estimate(plan_of(compare={}, arm=arms), [known()], concurrent=2)
    assert (found.seconds, found.rank_hours, found.unknown) == (None, None, ["wide", "deep"])
    assert found.arms[0].trial_seconds == pytest.approx(9.92 + 5)
    words = "unknown; nothing like 'wide', 'deep' has run here: orchestrator plan x.toml --probe measures it"
    assert time_line(found, "orchestrator plan x.toml --probe") == words


def test_the_rest_is_told_by_trials_that_were_judged_on_the_same_rows() -> None:
    """Mutant check: the median over both stages gives both 10 s."""
    told = [known(rest_s=5.0), known(job(stage="tune"), rest_s=25.0)]
    found = estimate(plan_of(compare={}, arm=[{"label": "only"}], tune=TUNE), told, concurrent=1)
    assert found.seconds == pytest.approx(6 * (9.92 + 5) + 4 * (9.92 + 25))


def test_suggestions_that_wait_for_one_another_bound_the_time() -> None:
    """Mutant check: dividing by the trials at once alone says 0.6 s."""
    found = estimate(plan_of(tune=TUNE), [known()], concurrent=500)
    assert found.seconds == pytest.approx((4 + 1) * 14.92)
    assert "500 at once, but an arm's suggestions in turn" in time_line(found, "plan")
    parallel = estimate(plan_of(tune=TUNE | {"parallel": 4}), [known()], concurrent=500)
    assert parallel.seconds == pytest.approx((1 + 1) * 14.92)


def test_a_reader_is_told_what_the_estimate_leaves_out() -> None:
    space = TUNE["space"] | {"model.width": {"choices": [32, 64]}}  # type: ignore[operator]
    found = estimate(plan_of(tune=TUNE | {"prune": "median", "space": space}), [known()], concurrent=1)
    assert "ends trials early" in found.notes[0]
    assert "model.width is tuned" in found.notes[1]
    assert estimate(plan_of(tune=TUNE), [known()], concurrent=1).notes == ()


def test_trials_at_once_are_those_that_fit_this_machine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    assert from_history(plan_of()).concurrent == 8
    assert from_history(plan_of(job=job(execution={"ranks": 3}))).concurrent == 2
    assert from_history(plan_of(resources={"concurrent": 5})).concurrent == 5
    assert from_history(plan_of(job=job(execution={"ranks": 30}))).concurrent == 1


def test_a_cluster_is_not_asked(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nobody answers there. Mutant check: asking what a session would find waits for minutes."""
    requirements._nodes.cache_clear()
    monkeypatch.setattr("os.cpu_count", lambda: 8)
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:9")
    asked = from_history(plan_of())
    assert (asked.concurrent, "127.0.0.1:9 was not asked" in asked.notes[0]) == (8, True)


@pytest.mark.skipif("seconds" not in Budget.model_fields, reason="there is no budget in seconds yet")
def test_a_budget_in_seconds_costs_these_seconds_and_the_rest() -> None:
    found = estimate(plan_of(job=job(budget={"seconds": 60})), [known()], concurrent=1)
    assert found.arms[0].trial_seconds == pytest.approx(60 + 5)


def test_jobs_that_cost_the_same_are_probed_once() -> None:
    tuned = probes(plan_of(tune=TUNE))
    assert [(label, [job.stage for job in jobs]) for label, jobs in tuned.items()] == [
        ("infonce", ["tune", "confirm"]),
        ("flatnce", ["tune", "confirm"]),
    ]
    same = probes(plan_of(compare={"optimizer.lr": [1e-3, 1e-2], "loss.temperature": [0.1, 0.2]}))
    assert list(same) == ["lr=0.001, temperature=0.1"]


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (99.4, "99 s"),
        (99.6, "2 min"),
        (720, "12 min"),
        (5940, "99 min"),
        (6e3, "1.7 h"),
        (4e5, "4.6 days"),
    ],
)
def test_durations_are_rounded_for_people(seconds: float, words: str) -> None:
    assert duration(seconds) == words


# Invariants

COSTS = st.builds(
    known,
    planned=st.sampled_from([job(), job(batch={"size": 64}), job(loss={"name": "flatnce"}), job(stage="tune")]),
    training_s=st.floats(0.01, 1e4),
    samples=st.integers(1, 10**6),
    rest_s=st.none() | st.floats(0, 1e3),
    peak_memory_mb=st.none() | st.floats(1, 1e5),
    origin=st.sampled_from(["runs/a", "runs/b", "a probe"]),
    here=st.booleans(),
    start_s=st.none() | st.floats(0, 100),
)
TOLD = st.lists(COSTS, min_size=1, max_size=8)


def of(told: list[Known], *, concurrent: int = 1, **changes: Any) -> Estimate:
    return estimate(plan_of(tune=TUNE, **changes), told, concurrent=concurrent)


@given(TOLD, st.integers(32, 10**6), st.integers(32, 10**6))
def test_more_samples_never_cost_less(told: list[Known], a: int, b: int) -> None:
    few, many = sorted((a, b))
    less, more = (of(told, job=job(budget={"samples": samples})).seconds for samples in (few, many))
    assert less is not None
    assert more is not None
    assert less <= more


@given(TOLD, st.integers(1, 20))
def test_the_whole_is_the_sum_of_its_parts(told: list[Known], concurrent: int) -> None:
    one, many = of(told), of(told, concurrent=concurrent)
    total = sum((arm.trial_seconds or 0) * arm.trials for arm in one.arms)
    assert one.seconds == pytest.approx(total)
    assert one.rank_hours == pytest.approx(total / 3600)
    assert many.seconds is not None
    assert total / concurrent <= many.seconds * (1 + 1e-12)
    assert many.seconds <= total * (1 + 1e-12)
    assert json.loads(json.dumps(many.summary(), allow_nan=False))["seconds"] == many.seconds


@given(TOLD, st.randoms())
def test_the_order_of_runs_does_not_matter(told: list[Known], chance: random.Random) -> None:
    """Mutant check: the rate of the group's first trial in place of the middle one fails this."""
    shuffled = told.copy()
    chance.shuffle(shuffled)
    a, b = of(told).summary(), of(shuffled).summary()
    assert (a["seconds"], a["start_seconds"], a["source"]) == (b["seconds"], b["start_seconds"], b["source"])
    assert [arm["peak_memory_mb"] for arm in a["arms"]] == [arm["peak_memory_mb"] for arm in b["arms"]]
