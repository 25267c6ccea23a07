"""Whole sweeps, as a newcomer runs them: real Ray, real MLflow store, real processes that are really killed."""

import json
import shutil
import time
import tomllib
from pathlib import Path
from typing import Any

import pytest
from answers import answered
from real import SWEEP, TRIALS, call, measured, status

from orchestrator import sweep as sweeps
from orchestrator import tracking
from orchestrator.driver import _refuse_changes, execution_overrides
from orchestrator.run_dir.creation import SweepChanged
from orchestrator.run_dir.folder import RunFolder
from orchestrator.sweep import plan as planning
from orchestrator.tracking import metadata


def test_status_compare_mlflow_and_parquet_agree_on_every_number(finished: Path) -> None:
    stood = status(finished)
    assert stood["state"] == "done"
    assert stood["counts"] == {"queued": 0, "running": 0, "done": TRIALS, "pruned": 0, "failed": 0}
    by_status = {trial["id"]: trial["metric"] for trial in stood["trials"]}
    assert measured(finished) == by_status
    nested = [
        run
        for run in tracking.runs_of(tracking.embedded_uri(finished / "runs"), stood["run"])
        if run["kind"] == "trial"
    ]
    assert len(nested) == TRIALS
    assert {run["trial"]: run["metrics"]["knn_accuracy"][-1][2] for run in nested} == by_status
    assert {run["trial"]: run["run_id"] for run in nested} == {t["id"]: t["mlflow_run_id"] for t in stood["trials"]}
    answer = answered("compare", call("compare", "small", "--json", cwd=finished))
    for arm in answer["arms"]:
        own = [t["metric"] for t in stood["trials"] if t["stage"] == "confirm" and t["arm"] == arm["label"]]
        assert arm["n"] == len(own) == 3
        assert arm["mean"] == pytest.approx(sum(own) / 3, abs=1e-12)
    (contrast,) = answer["comparisons"]
    assert (contrast["a"], contrast["b"]) == ("flatnce", "infonce")
    assert contrast["verdict"] in ("a_better", "b_better", "equivalent", "inconclusive", "diverges")


def test_every_point_is_in_mlflow_once(finished: Path) -> None:
    stood = status(finished)
    for run in tracking.runs_of(tracking.embedded_uri(finished / "runs"), stood["run"]):
        if run["kind"] != "trial":
            continue
        assert (run["tags"]["arm"], run["tags"]["stage"]) in {
            (trial["arm"], trial["stage"]) for trial in stood["trials"] if trial["id"] == run["trial"]
        }
        lines = (finished / "runs" / "small" / "trials" / str(run["trial"]) / "points.jsonl").read_text().splitlines()
        on_disk = sorted((p["key"], p["step"], p["value"]) for p in map(json.loads, lines))
        pairs = run["metrics"].pop(metadata.PAIRS)  # which is derived, for an axis of MLflow's charts
        size = int(run["params"]["batch.size"])
        assert [(step, seen) for step, _, seen in pairs] == [
            (step, step * size) for step, _, _ in run["metrics"]["knn_accuracy"]
        ]
        in_mlflow = sorted((key, step, value) for key, points in run["metrics"].items() for step, _, value in points)
        assert in_mlflow == on_disk


def test_the_same_command_again_trains_nothing(finished: Path) -> None:
    before = {trial["id"]: trial["attempts"] for trial in status(finished)["trials"]}
    began = time.monotonic()
    call("launch", "sweep.toml", cwd=finished)
    assert {trial["id"]: trial["attempts"] for trial in status(finished)["trials"]} == before
    assert set(before.values()) == {1}
    assert time.monotonic() - began < 120


def test_an_edited_sweep_is_refused_with_the_keys_that_differ(finished: Path) -> None:
    said = call("launch", "sweep.toml", "--set", "job.loss.temperature=0.2", cwd=finished, code=2)
    assert "job.loss.temperature: null -> 0.2" in said
    assert "--into" in said
    call("launch", "sweep.toml", "--set", "retry.hung=7", "--offline", cwd=finished)


def test_a_run_of_an_older_version_is_continued_by_the_same_command(tmp_path: Path) -> None:
    """Its stored sweep lacks keys that have a default today. Mutant check: comparing what is stored as it is."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    folder = RunFolder(tmp_path / "runs" / "small")
    plan = planning.make(sweeps.load(tmp_path / "sweep.toml"))
    stored: dict[str, Any] = sweeps.resolved(plan.sweep) | {"plan": plan.summary()}
    del stored["exclude"], stored["resources"], stored["tune"]["space"]["optimizer.lr"]["when"]
    begun = planning.stored(stored, 1)
    _refuse_changes(folder, begun, plan)
    other = planning.make(sweeps.load(tmp_path / "sweep.toml", ["resources.cpus_per_rank=2"]))
    with pytest.raises(SweepChanged, match=r"resources.cpus_per_rank: 1 -> 2"):
        _refuse_changes(folder, begun, other)


def test_a_run_begun_with_a_key_s_former_name_is_continued_by_the_same_file(tmp_path: Path) -> None:
    """It keeps the name, and so its ids. Mutant checks: names compared as they are, in the job or in the arms."""
    text = SWEEP.replace('"loss.name" = ["infonce", "flatnce"]', '"batch.pool" = [16, 8]')
    (tmp_path / "sweep.toml").write_text(text)
    plan = planning.make(sweeps.load(tmp_path / "sweep.toml"))
    before = planning.make(sweeps.Sweep.model_validate(tomllib.loads(text)))
    assert [arm.label for arm in before.arms] == ["pool=16", "pool=8"]
    begun = planning.stored(sweeps.resolved(before.sweep) | {"plan": before.record()}, 2)
    folder = RunFolder(tmp_path / "runs" / "small")
    _refuse_changes(folder, begun, plan)
    trials = begun.confirm_trials("pool=8", {})
    assert {trial.id for trial in trials} == {trial.id for trial in before.confirm_trials("pool=8", {})}
    other = planning.make(sweeps.load(tmp_path / "sweep.toml", ["job.loss.margin=0.1"]))
    with pytest.raises(SweepChanged, match="margin"):
        _refuse_changes(folder, begun, other)


def test_factors_in_another_order_are_another_sweep(tmp_path: Path) -> None:
    """The first one decides what is compared with what."""
    factors = ['"loss.name" = ["infonce", "flatnce"]', '"batch.size" = [16, 32]']
    plans = []
    for order in (factors, factors[::-1]):
        (tmp_path / "sweep.toml").write_text(SWEEP.replace(factors[0], "\n".join(order)))
        plans.append(planning.make(sweeps.load(tmp_path / "sweep.toml")))
    folder = RunFolder(tmp_path / "runs" / "small")
    _refuse_changes(folder, plans[0], plans[0])
    with pytest.raises(SweepChanged, match=r'compare: \["loss.name","batch.size"\] -> \["batch.size","loss.name"\]'):
        _refuse_changes(folder, *plans)


@pytest.mark.slow
def test_a_run_begun_by_the_first_version_is_continued_with_the_numbers_that_it_would_have_had(tmp_path: Path) -> None:
    """Stopped at 5 of 24; `crossed.json` has what that version measured when nothing stopped it. Its ledger keeps
    factors by the alphabet, so that a plan made again compared sizes and no temperatures, and ended in KeyError."""
    begun = Path(__file__).parents[2] / "begun"
    shutil.copytree(begun / "crossed", tmp_path / "runs" / "crossed")
    call("resume", "crossed", cwd=tmp_path)
    stood = status(tmp_path, "crossed")
    assert {trial["id"]: trial["metric"] for trial in stood["trials"]} == json.loads(
        (begun / "crossed.json").read_text()
    )
    answer = answered("compare", call("compare", "crossed", "--json", cwd=tmp_path))
    assert [(one["a"], one["b"]) for one in answer["comparisons"]][:2] == [
        ("temperature=0.2, size=32", "temperature=0.1, size=32"),
        ("temperature=0.2, size=16", "temperature=0.1, size=16"),
    ]
    # One was cut short, and two programs trained it.
    assert [(group["code"] is None, len(group["trials"])) for group in answer["code"]] == [(True, 6), (False, 19)]
    assert any("6 trials by code not recorded" in note for note in answer["notes"])
    found = answered("verify", call("verify", "crossed", "--json", cwd=tmp_path))
    assert found["ok"], found["faults"]
    (tmp_path / "sweep.toml").write_text((begun / "crossed" / "sweep.toml").read_text())
    call("launch", "sweep.toml", "--offline", cwd=tmp_path)


@pytest.mark.soak
def test_a_run_finished_by_the_first_version_is_compared_by_todays_rules(tmp_path: Path) -> None:
    """There the arm that diverged in six of six seeds was inconclusive, with the score of its untrained encoders."""
    shutil.copytree(Path(__file__).parents[2] / "begun" / "diverged", tmp_path / "runs" / "diverged")
    answer = answered("compare", call("compare", "diverged", "--json", cwd=tmp_path))
    (one,) = answer["comparisons"]
    assert (one["verdict"], one["diverged_arms"], one["delta"]) == ("diverges", ["lr=1e+18"], None)
    call("resume", "diverged", cwd=tmp_path)
    found = answered("verify", call("verify", "diverged", "--json", cwd=tmp_path))
    assert found["ok"], found["faults"]


def test_logs_are_a_rank_s_own(finished: Path) -> None:
    trial = status(finished)["trials"][0]["id"]
    assert "step 8 of 8" in call("logs", "small", trial[:6], cwd=finished)


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        pytest.param('"digits[:300]"', '"nowhere.parquet"', "nowhere.parquet", marks=pytest.mark.soak),
        pytest.param("size = 16", "size = 301", "fewer than batch.size", marks=pytest.mark.soak),
        ('"loss.name"', '"loss.nam"', "did you mean 'loss.name'?"),
        ("name = \"knn_accuracy\"", "name = \"train/loss\"", "cannot be compared while loss.name varies"),
    ],
)  # fmt: skip
def test_a_bad_sweep_ends_with_2_and_creates_nothing(tmp_path: Path, old: str, new: str, words: str) -> None:
    assert old in SWEEP
    (tmp_path / "sweep.toml").write_text(SWEEP.replace(old, new))
    assert words in call("launch", "sweep.toml", cwd=tmp_path, code=2)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_more_gpus_than_there_are_ends_with_4_and_creates_nothing(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP + "[resources]\ngpus_per_rank = 8\n")
    assert "--set resources.gpus_per_rank=0" in call("launch", "sweep.toml", cwd=tmp_path, code=4)
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]


def test_a_folder_that_holds_something_else_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert "is not empty and holds no run" in call("launch", "sweep.toml", "--into", "mine", cwd=tmp_path, code=2)


def test_only_execution_may_change_between_attempts() -> None:
    assert execution_overrides(["job.execution.micro=32", "job.execution.exchange=ring"]) == {
        "micro": 32,
        "exchange": "ring",
    }
    assert execution_overrides(["job.execution.micro=none", 'job.execution.tile="None"']) == {
        "micro": None,
        "tile": None,
    }
    for text, words in (
        ("job.loss.name=dcl", "only job.execution may change"),
        ("job.execution.micro=-1", "greater than 0"),
    ):
        with pytest.raises(ValueError, match=words):
            execution_overrides([text])
