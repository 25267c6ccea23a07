"""What MLflow's runs say of trials and of the sweep, beside what the ledger has word by word."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

from ledgers import TUNED, Begin, Run
from mlflow.entities import Metric
from projected import CROSSED, as_before, flushed

from orchestrator.run_dir.context import Extend
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session.schedule import extension
from orchestrator.tracking import MlflowRun, runs_of
from orchestrator.tracking.metadata import PAIRS, of_sweep, pairs_seen
from orchestrator.tracking.store import connect
from orchestrator.verify import verify


def of_trials(run: Run, uri: str) -> dict[str, MlflowRun]:
    return {str(one["trial"]): one for one in runs_of(uri, run.ledger.uuid) if one["kind"] == "trial"}


def faults(run: Run, uri: str) -> list[str]:
    """What `verify` has against MLflow's runs."""
    run.ledger.release()
    try:
        found = verify(RunFolder(Path(str(run.ledger._database.path)).parent), uri)["faults"]
    finally:
        run.ledger.acquire("test", 3600)
    return [fault for fault in found if "MLflow" in fault]


def test_pairs_seen_are_the_steps_times_the_batch_at_each_evaluation(begin: Begin, uri: str) -> None:
    run = begin(CROSSED, seeds=2)
    sizes: dict[str, int] = {}
    for arm in run.plan.arms:
        for trial in run.confirm(arm.label):
            run.done(trial, 0.5, curve={0: 0.1, 5: 0.3, 9: 0.5})
            sizes[trial.id] = trial.config.batch.size
    assert set(sizes.values()) == {16, 64}
    flushed(run.ledger, uri)
    told = of_trials(run, uri)
    for trial_id, size in sizes.items():
        curve, metric = told[trial_id]["metrics"][PAIRS], told[trial_id]["metrics"]["knn_accuracy"]
        assert [(step, pairs) for step, _, pairs in curve] == [(step, step * size) for step in (0, 5, 9)]
        assert [at_ms for _, at_ms, _ in curve] == [at_ms for _, at_ms, _ in metric], "telling again adds nothing"
    assert faults(run, uri) == []
    connect(uri).log_batch(told[trial_id]["run_id"], metrics=[Metric(PAIRS, 7.0, 5, 9)])
    assert any(PAIRS in fault for fault in faults(run, uri))


def test_a_loop_of_the_users_own_has_no_pairs(begin: Begin) -> None:
    run = begin(seeds=2)
    trial = run.confirm("plain")[0]
    run.done(trial, 0.5)
    points = run.ledger.points(trial.id)
    assert len(pairs_seen(trial, points, "knn_accuracy")) == 3
    assert pairs_seen(replace(trial, job=trial.job | {"task": "mylab.train:main"}), points, "knn_accuracy") == []
    assert len(pairs_seen(replace(trial, job=trial.job | {"task": "mylab.tasks:Tabular"}), points, "knn_accuracy")) == 3
    assert pairs_seen(replace(trial, job={}), points, "knn_accuracy") == []
    assert pairs_seen(trial, points, "loss") == []


def test_a_run_that_an_earlier_version_wrote_verifies_as_it_is_and_has_the_rest_once_it_is_continued(
    begin: Begin, uri: str
) -> None:
    """It had neither runs of arms nor pairs seen, and a parent run without parameters."""
    run = begin(seeds=2)
    for arm in ("plain", "flat"):
        for trial in run.confirm(arm):
            run.done(trial, 0.5 + trial.seed / 10)
    run.ledger.set_run(state="done")
    flushed(run.ledger, uri)
    as_before(run.ledger, uri)
    assert faults(run, uri) == []
    flushed(run.ledger, uri)
    assert faults(run, uri) == []
    found = runs_of(uri, run.ledger.uuid)
    assert [one["tags"]["arm"] for one in found if one["kind"] == "arm"] == ["plain", "flat"]
    assert all(len(one["metrics"][PAIRS]) == 3 for one in found if one["kind"] == "trial")
    assert found[0]["params"] == of_sweep(run.ledger.run)


def test_the_parent_run_has_the_sweeps_parameters(begin: Begin, uri: str) -> None:
    run = begin(CROSSED, tune=TUNED, seeds=[4, 5])
    flushed(run.ledger, uri)
    (parent,) = runs_of(uri, run.ledger.uuid)
    params = parent["params"]
    assert {
        "metric.name": "knn_accuracy",
        "metric.mode": "max",
        "metric.smallest_difference": "0.005",
        "task": "image",
        "budget.samples": "1000",
        "data.train": "digits",
        "loss.temperature": "[0.05, 0.1]",
        "batch.size": "[16, 64]",
        "tune.trials": "3",
        "confirm.seeds": "[4, 5]",
    }.items() <= params.items()
    assert json.loads(params["optimizer.lr"]) == {"low": 1e-4, "high": 1e-2}
    assert "optimizer.name" not in params, "it is at its default"
    assert parent["tags"]["seeds"] == "[4, 5]"


def test_a_run_that_was_extended_keeps_its_parameters_and_says_its_seeds_as_a_tag(begin: Begin, uri: str) -> None:
    """MLflow refuses another value of a parameter; and the arms have the planned seeds, as the answer has."""
    run = begin(seeds=[1, 2])
    for arm in ("plain", "flat"):
        run.ledger.freeze(arm, {}, None, "abc")
        for trial in run.confirm(arm):
            run.done(trial, 0.5 + trial.seed / 10)
    flushed(run.ledger, uri)
    before = runs_of(uri, run.ledger.uuid)
    extension.record(run.plan, run.ledger, Extend(seeds=2))
    (first, *_) = run.ledger.trials("confirm")
    further = [replace(first, id=f"further{seed}", seed=seed, state="queued", attempts=0) for seed in (3, 4)]
    run.ledger.add_trials(further)
    for trial in further:
        run.done(trial, 0.9)
    flushed(run.ledger, uri)
    (parent,) = [one for one in runs_of(uri, run.ledger.uuid) if one["kind"] == "sweep"]
    assert (parent["params"]["confirm.seeds"], parent["tags"]["seeds"]) == ("[1, 2]", "[1, 2, 3, 4]")
    arms = [[one for one in found if one["kind"] == "arm"] for found in (before, runs_of(uri, run.ledger.uuid))]
    assert arms[0] == arms[1]


def test_the_name_of_a_trials_run_says_what_became_of_it_until_it_is_trained_again(begin: Begin, uri: str) -> None:
    run = begin(seeds=2)
    first, second = run.confirm("plain")
    run.lost(first)
    run.done(second, 0.5, outcome="diverged")
    projection = flushed(run.ledger, uri)
    told = of_trials(run, uri)
    assert told[first.id]["name"] == f"plain seed {first.seed} (failed)"
    assert told[second.id]["name"] == f"plain seed {second.seed} (diverged)"
    assert told[second.id]["tags"]["mlflow.runColor"] == "#d62728"
    run.ledger.requeue(first.id)
    run.done(first, 0.5)
    assert projection.flush(), projection.last_error
    again = of_trials(run, uri)[first.id]
    assert (again["name"], again["tags"]["mlflow.runColor"]) == (f"plain seed {first.seed}", "")
