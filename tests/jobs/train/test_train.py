"""One job, really trained: it learns, it is the same on any number of ranks, and a kill costs nothing but time."""

import copy
import json
import math
import os
import pickle
import shutil
import signal
import threading
import time
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import rank_main
from transformers import ResNetConfig, ResNetModel

from jobs import data
from jobs.artifacts import checkpoint, manifest
from jobs.artifacts.storage import Folder
from jobs.artifacts.trial_dir import Fence, Point, TakenOver
from jobs.config import EXECUTION_METRICS, JobConfig
from jobs.models import ContrastiveModel
from jobs.train import Training
from orchestrator.sweep import merged

BASE: dict[str, Any] = {
    "task": "image",
    "seed": 1,
    "budget": {"steps": 12},
    "data": {"train": "digits[:300]", "confirm": "digits[300:400]"},
    "augment": {"flip": False},
    "model": {"name": "resnet", "width": 8, "layers": 1, "projection_width": 16},
    "batch": {"size": 16},
    "optimizer": {"lr": 3e-3},
    "evaluate": {"times": 3, "probe": False, "references": 300},
    "execution": {"checkpoint_every": 5},
}


def job(**settings: Any) -> JobConfig:
    return JobConfig.model_validate(merged(BASE, {key.replace("__", "."): value for key, value in settings.items()}))


def trained(config: JobConfig, folder: Path, **options: Any) -> Training:
    training = Training(config, folder, log=lambda _: None, **options)
    while training.result is None:
        training.advance(100)
    return training


def values(points: list[Point]) -> dict[tuple[str, int], float]:
    """Everything that was measured, but for times."""
    assert len({(p.key, p.step) for p in points}) == len(points), "a point was told twice"
    return {(p.key, p.step): p.value for p in points if not p.key.startswith(EXECUTION_METRICS)}


def lines(folder: Path) -> list[Point]:
    return [Point(**json.loads(line)) for line in (folder / "points.jsonl").read_text().splitlines()]


def weights(folder: Path) -> dict[str, torch.Tensor]:
    found, _ = checkpoint.newest(folder / "checkpoints")
    assert found is not None
    return found.model


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    folder = tmp_path_factory.mktemp("undisturbed")
    return folder, trained(job(), folder)


def test_a_trial_folder_holds_everything_that_is_known_of_it(undisturbed: tuple[Path, Training]) -> None:
    folder, training = undisturbed
    assert json.loads((folder / "result.json").read_text()) == training.result
    assert JobConfig.model_validate_json((folder / "job.json").read_text()) == job()
    assert values(lines(folder)) == values(training.points)
    assert checkpoint.steps(folder / "checkpoints")[0] == 12
    result = training.result
    assert result is not None
    assert (result["outcome"], result["step"], result["samples"]) == ("ok", 12, 192)
    assert result["negatives_per_anchor"] == 15
    assert result["samples_per_second"] > 0
    assert result["peak_memory_mb"] > 10
    assert set(result["hashes"]) == {"data", "init", "encoder", "order"}
    assert [p.step for p in training.points if p.key == "knn_accuracy"] == [0, 4, 8, 12]


def test_training_beats_the_untrained_encoder(tmp_path: Path) -> None:
    training = trained(job(budget__steps=60, batch__size=32), tmp_path)
    assert training.result is not None
    assert training.result["metrics"]["knn_accuracy"] > training.untrained["knn_accuracy"]
    losses = [p.value for p in training.points if p.key == "train/loss"]
    assert sum(losses[-5:]) < sum(losses[:5])


@pytest.mark.parametrize("steps", [3, 5, 7, 11])
def test_a_kill_at_any_step_changes_not_one_bit(tmp_path: Path, steps: int, undisturbed: tuple[Path, Training]) -> None:
    """The checkpoint is of step 5 or 10, so steps between are trained again; before step 5 all are.

    Mutant check: leaving the optimizer state out of the checkpoint fails, and so does seeding views by time.
    """
    folder, whole = undisturbed
    killed = Training(job(), tmp_path, log=lambda _: None)
    done = 0
    while done < steps:
        killed.advance(1)
        done += 1
    killed.settle()
    del killed
    again = trained(job(), tmp_path)
    assert values(again.points) == values(whole.points) == values(lines(tmp_path))
    expected = weights(folder)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path).items())


def test_a_finished_job_is_not_trained_again(
    undisturbed: tuple[Path, Training], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, whole = undisturbed
    monkeypatch.setattr(Training, "_optimize", None)
    again = Training(job(), folder, log=lambda _: None)
    assert again.result == whole.result
    assert values(again.points) == values(whole.points)


def test_a_result_without_its_checkpoint_is_earned_again(tmp_path: Path) -> None:
    first = trained(job(), tmp_path)
    (tmp_path / "checkpoints" / "step_000012" / "model.safetensors").write_bytes(b"")
    said: list[str] = []
    again = Training(job(), tmp_path, log=said.append)
    assert again.result is None
    assert any("step_000012 is damaged" in line for line in said)
    assert [line for line in said if line in again.remarks] == again.remarks != []
    while again.result is None:
        again.advance(100)
    assert values(again.points) == values(first.points)


def test_a_result_that_is_lost_is_told_again_with_what_its_steps_took(tmp_path: Path) -> None:
    """By a process that trains no step of it, and that has held more meanwhile. Mutant check: the most that this
    process has held is no peak of the trial."""
    first = trained(job(), tmp_path)
    (tmp_path / "result.json").unlink()
    held = np.ones(2**29, np.uint8)
    again = Training(job(), tmp_path, log=lambda _: None)
    del held
    assert again.result == first.result
    assert json.loads((tmp_path / "result.json").read_text()) == first.result
    assert again.points == first.points == lines(tmp_path)


def test_without_a_sound_checkpoint_training_starts_again_and_says_so(tmp_path: Path) -> None:
    first = trained(job(), tmp_path)
    for path in (tmp_path / "checkpoints").glob("step_*/model.safetensors"):
        path.write_bytes(b"")
    said: list[str] = []
    again = Training(job(), tmp_path, log=said.append)
    assert again.step == 0
    assert any("starts again from step 0" in line for line in said)
    assert [remark.partition(" (")[0] for remark in again.remarks] == [
        "checkpoint step_000012 is damaged",
        "checkpoint step_000010 is damaged",
        "no sound checkpoint is left: training starts again from step 0",
    ]
    again.advance(100)
    assert values(again.points).items() <= values(first.points).items()


def test_a_point_cut_short_by_a_kill_is_measured_again(tmp_path: Path) -> None:
    training = Training(job(), tmp_path, log=lambda _: None)
    for _ in range(6):
        training.advance(1)
    path = tmp_path / "points.jsonl"
    path.write_text(path.read_text()[:-9])
    assert trained(job(), tmp_path).result is not None
    assert len(values(lines(tmp_path))) == sum(not p.key.startswith(EXECUTION_METRICS) for p in lines(tmp_path))


# A budget in seconds


def test_a_job_that_is_evaluated_very_often_records_a_thousand_of_them_at_most(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here 5 of 13: the untrained model, the end, and evenly in between. A kill changes nothing of it, and what the
    result has is the last evaluation."""
    monkeypatch.setattr("jobs.config.job.POINTS", 5)
    often = job(evaluate__times=12)
    whole = trained(often, tmp_path / "whole")
    steps = {key: [p.step for p in whole.points if p.key == key] for key in ("knn_accuracy", "uniformity")}
    assert steps == {"knn_accuracy": [0, 3, 6, 9, 12], "uniformity": [0, 3, 6, 9, 12]}
    assert [0, *often.recorded_steps] == [0, 3, 6, 9, 12]
    assert whole.result is not None
    assert whole.result["metrics"]["knn_accuracy"] == [p.value for p in whole.points if p.key == "knn_accuracy"][-1]
    Training(often, tmp_path / "killed", log=lambda _: None).advance(7)
    assert values(trained(often, tmp_path / "killed").points) == values(whole.points)


def timed(seconds: float, **settings: Any) -> JobConfig:
    return job(**{"budget__seconds": seconds, "evaluate__times": 2, **settings})


def on_a_clock(step_s: float) -> type[Training]:
    """Trainings whose every step takes so long by their clock, whatever this machine is doing."""

    class Clocked(Training):
        def _clock(self, seconds: float) -> float:
            assert seconds > self.seconds
            return self.seconds + step_s

    return Clocked


def quietly(kind: type[Training], config: JobConfig, folder: Path) -> Training:
    return kind(config, folder, log=lambda _: None)


def test_a_job_of_seconds_trains_for_them_and_is_judged_at_its_shares(tmp_path: Path) -> None:
    training = quietly(on_a_clock(1 / 16), timed(1.0), tmp_path)
    while training.result is None:
        training.advance(100)
    result = training.result
    assert (result["outcome"], result["step"], result["seconds"], result["samples"]) == ("ok", 16, 1.0, 256)
    assert [p.step for p in training.points if p.key == "knn_accuracy"] == [0, 8, 16]
    rates = [p.value for p in training.points if p.key == "train/learning_rate"]
    assert len(rates) == 16
    assert rates[0] == 0
    assert max(rates) == pytest.approx(3e-3, rel=0.05)
    assert rates[-1] < 0.05 * max(rates), "the schedule has run down with the clock"


def test_real_seconds_are_those_of_training(tmp_path: Path) -> None:
    """Mutant check: counting evaluations, of which there are many here, makes the job too short."""
    began = time.perf_counter()
    training = trained(timed(0.5, evaluate__times=20), tmp_path)
    took = time.perf_counter() - began
    assert training.result is not None
    assert 0.5 <= training.result["seconds"] < took


@pytest.mark.parametrize("damaged", [False, True])
def test_a_job_of_seconds_that_is_killed_keeps_the_seconds_it_used_and_contradicts_nothing(
    tmp_path: Path, damaged: bool
) -> None:
    """What it told before the kill stands in what it tells in the end, though it goes on at twice the speed, and though
    its newest checkpoint may be damaged. Mutant checks: telling all points, or those that the newest checkpoint has
    passed; and starting the clock again."""
    config = timed(2.0, execution__checkpoint_every=3)
    first = quietly(on_a_clock(1 / 16), config, tmp_path)
    told = list(first.points)
    while first.step < 23:
        told += first.advance(4)
    assert max(point.step for point in told) >= 16, "pruning waits for its rung"
    # Killed here: of `first` nothing is used any more, and its points on disk are ahead of its checkpoints.
    first.writer.wait()
    newest, before = checkpoint.steps(tmp_path / "checkpoints")
    if damaged:
        (tmp_path / "checkpoints" / f"step_{newest:06}" / "model.safetensors").write_bytes(b"")
    again = quietly(on_a_clock(1 / 32), config, tmp_path)
    assert again.step == (before if damaged else newest)
    assert again.seconds == again.step / 16
    news = list(again.points)
    while again.result is None:
        news += again.advance(4)
    assert again.result["seconds"] == 2.0
    start = before if damaged else newest
    assert again.result["step"] == start + 2 * (32 - start)
    assert values(told).items() <= values(again.points).items()
    assert values(news) == values(again.points), "everything is told in the end, once"


def test_a_result_of_another_course_is_not_the_end_of_this_one(tmp_path: Path) -> None:
    """Of a training that was killed before its last checkpoint only the result is left, and the next one comes by the
    same step sooner. Mutant check: going by the step alone takes that result with these weights."""
    config = timed(1.0, execution__checkpoint_every=16)
    first = quietly(on_a_clock(1 / 16), config, tmp_path)
    while first.result is None:
        first.advance(100)
    shutil.rmtree(tmp_path / "checkpoints" / "step_000016")
    second = quietly(on_a_clock(1 / 64), config, tmp_path)
    assert second.step == 9, "the step after the evaluation"
    while second.step < 16:
        second.advance(1)
    second.settle()
    third = quietly(on_a_clock(1 / 64), config, tmp_path)
    assert (third.step, third.result) == (16, None)
    assert third.seconds == 9 / 16 + 7 / 64


def _timed_rank(folder: Path, rank: int) -> tuple[int, float, list[int]]:
    time.sleep(0.01 * rank)
    training = trained(timed(0.6, execution__ranks=2), folder, group=dist.group.WORLD)
    assert training.result is not None
    return training.step, training.seconds, [p.step for p in training.points]


@pytest.mark.soak
def test_ranks_of_a_job_of_seconds_go_by_one_clock(tmp_path: Path, spawn_ranks: Any) -> None:
    """Mutant check: each rank going by its own clock fails this, or hangs."""
    first, second = spawn_ranks(2, partial(_timed_rank, tmp_path))
    assert first == second


# Checkpoints in the background


def test_training_goes_on_while_a_checkpoint_is_written_and_the_checkpoint_is_of_its_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, undisturbed: tuple[Path, Training]
) -> None:
    """Mutant checks: writing in `save` itself never gets to step 8, and a snapshot without copies is of step 8."""
    gate, real = threading.Event(), checkpoint.write

    def slow(*arguments: Any, **options: Any) -> None:
        assert gate.wait(60)
        real(*arguments, **options)

    monkeypatch.setattr(checkpoint, "write", slow)
    training = Training(job(), tmp_path, log=lambda _: None)
    while training.step < 5:
        training.advance(1)
    model, optimizer = copy.deepcopy((training.model.state_dict(), training.optimizer.state_dict()))
    try:
        while training.step < 8:
            training.advance(1)
        assert checkpoint.steps(tmp_path / "checkpoints") == []
    finally:
        gate.set()
    training.settle()
    found, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.step == 5
    assert all(torch.equal(found.model[name], value) for name, value in model.items())
    assert not any(
        torch.equal(found.model[name], value) for name, value in training.model.named_parameters() if value.ndim > 1
    ), "nothing was trained since, so this test would be vacuous"
    for number, state in optimizer["state"].items():
        assert all(torch.equal(found.optimizer["state"][number][key], value) for key, value in state.items())
    while training.result is None:
        training.advance(100)
    assert values(training.points) == values(undisturbed[1].points)


def test_a_checkpoint_follows_what_it_has_passed_and_the_result_follows_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant checks: setting the result before settling, or writing it after the last checkpoint, fails this; so does
    leaving out the flush in `save`."""
    seen: dict[str, tuple[bool, bool, bool]] = {}
    real = Folder.commit

    def watched(self: Folder, aside: Path, name: str, **options: Any) -> None:
        threading.Event().wait(0.2)  # long enough for a result that does not wait to be seen
        written = {(point.key, point.step) for point in lines(tmp_path)}
        step = int(name.removeprefix("step_"))
        passed = {(point.key, point.step) for point in training.points if point.step <= step}
        seen[name] = (passed <= written, (tmp_path / "result.json").exists(), training.result is None)
        real(self, aside, name, **options)

    monkeypatch.setattr(Folder, "commit", watched)
    training = Training(job(), tmp_path, log=lambda _: None)
    while training.result is None:
        training.advance(100)
    assert seen == {
        "step_000005": (True, False, True),
        "step_000010": (True, False, True),
        "step_000012": (True, True, True),
    }
    assert checkpoint.steps(tmp_path / "checkpoints") == [12, 10]


def test_what_a_dead_process_left_half_written_goes_when_the_trial_is_opened(tmp_path: Path) -> None:
    leftover = tmp_path / "checkpoints" / ".step_000005.gone.1.0"
    leftover.mkdir(parents=True)
    (leftover / "model.safetensors").write_bytes(b"half")
    Training(job(), tmp_path, log=lambda _: None)
    assert not leftover.exists()


def test_an_attempt_that_was_taken_over_writes_nothing_more(tmp_path: Path, undisturbed: tuple[Path, Training]) -> None:
    """Mutant check: a fence that is not asked before points, or before checkpoints, fails this."""
    first = Training(job(), tmp_path, log=lambda _: None, attempt=(1, 1))
    while first.step < 7:
        first.advance(1)
    first.settle()
    second = Training(job(), tmp_path, log=lambda _: None, attempt=(2, 1))
    assert second.step == 5
    before = (tmp_path / "points.jsonl").read_text()
    with pytest.raises(TakenOver, match=r"attempt 1 \(token 2\) has taken this trial over from attempt 1 \(token 1\)"):
        first.advance(1)
    first._hand_over(first._snapshot())
    with pytest.raises(TakenOver):
        first.settle()
    first.writer = checkpoint.Writer()
    first._hand_over(None, {"outcome": "ok", "step": 12})
    with pytest.raises(TakenOver):
        first.settle()
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(TakenOver):
        Training(job(), tmp_path, log=lambda _: None, attempt=(1, 9))
    assert checkpoint.steps(tmp_path / "checkpoints") == [5]
    assert (tmp_path / "points.jsonl").read_text() == before
    while second.result is None:
        second.advance(100)
    assert values(lines(tmp_path)) == values(undisturbed[1].points)
    found, _ = checkpoint.newest(tmp_path / "checkpoints")
    assert found is not None
    assert found.extra["attempt"] == [2, 1]


def test_an_attempt_goes_on_where_the_file_that_names_the_last_one_is_empty(
    tmp_path: Path, undisturbed: tuple[Path, Training]
) -> None:
    """And says so. Mutant check: telling that among what is wrong with checkpoints says that training starts again."""
    first = Training(job(), tmp_path, log=lambda _: None, attempt=(1, 1))
    while first.step < 7:
        first.advance(1)
    first.settle()
    (tmp_path / "attempt.json").write_text("")
    second = Training(job(), tmp_path, log=lambda _: None, attempt=(2, 2))
    assert (second.step, second.remarks) == (5, ["attempt.json was empty; it is written again"])
    while second.result is None:
        second.advance(100)
    assert values(lines(tmp_path)) == values(undisturbed[1].points)
    assert json.loads((tmp_path / "attempt.json").read_text()) == {"token": 2, "attempt": 2}
    other = tmp_path / "other"
    other.mkdir()
    (other / "attempt.json").write_text("{")
    assert Training(job(), other, log=lambda _: None, attempt=(1, 1)).remarks == [
        "attempt.json named no attempt; it is written again"
    ]


def test_an_attempt_that_is_taken_over_while_it_writes_does_not_commit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant check: asking only before the writing begins fails this."""
    real = manifest.write

    def slow(*arguments: Any, **options: Any) -> None:
        real(*arguments, **options)
        Fence(Folder(tmp_path), (2, 1)).hold()

    monkeypatch.setattr(manifest, "write", slow)
    training = Training(job(budget__steps=6, evaluate__times=1), tmp_path, log=lambda _: None, attempt=(1, 1))
    while training.step < 5:
        training.advance(1)
    with pytest.raises(TakenOver):
        training.settle()
    assert [*(tmp_path / "checkpoints").iterdir()] == []


def phases_of(folder: Path, rank: int) -> tuple[list[str], list[str]]:
    phases: list[str] = []
    config = job(execution__ranks=2, execution__verify=True, execution__checkpoint_every=2, budget__steps=3)
    folder.mkdir(exist_ok=True)
    (folder / f"log.rank{rank}.txt").write_text("printed")
    remote = folder.with_name("far").as_uri()
    training = trained(config, folder, group=dist.group.WORLD, phase=phases.append, remote=remote)
    return phases, training.remarks


@pytest.mark.soak
def test_every_rank_tells_what_it_begins_and_its_log_is_kept(tmp_path: Path, spawn_ranks: Any) -> None:
    """Mutant check: publishing rank 0's log only fails this."""
    ranks = spawn_ranks(2, partial(phases_of, tmp_path / "near"))
    expected = ["loading", "evaluation", "gradient check", "step 1", "evaluation", "step 2", "evaluation", "checkpoint"]
    expected += ["step 3", "evaluation", "checkpoint"]
    for phases, remarks in ranks:
        assert [phase for phase, before in zip(phases, [None, *phases], strict=False) if phase != before] == expected
        assert remarks == []
    assert {path.name for path in (tmp_path / "far").glob("log.*")} == {"log.rank0.txt", "log.rank1.txt"}


# Any way of computing it


@pytest.mark.parametrize("settings", [{"execution__micro": 3}, {"execution__micro": 4, "execution__keep_graphs": 2}])
def test_micro_does_not_change_the_trajectory(tmp_path: Path, settings: dict[str, Any]) -> None:
    whole = trained(job(model__precision="fp64"), tmp_path / "whole")
    chunks = trained(job(model__precision="fp64", **settings), tmp_path / "chunks")
    assert_close(values(chunks.points), values(whole.points))


def assert_close(found: dict[Any, float], expected: dict[Any, float]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert math.isclose(found[key], value, rel_tol=1e-9, abs_tol=1e-9), key


def rank_training(settings: dict[str, Any], folder: Path, rank: int) -> tuple[dict[Any, float], Any]:
    training = trained(job(**settings), folder, group=dist.group.WORLD)
    return values(training.points), training.result


@pytest.mark.few(1)
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_change_the_trajectory(tmp_path: Path, spawn_ranks: Any, world: int) -> None:
    """3 ranks do not divide 16 pairs. Float64: in float32, Adam turns the rounding of a zero gradient into a step."""
    alone = trained(job(model__precision="fp64"), tmp_path / "alone")
    settings = {"model__precision": "fp64", "execution__ranks": world}
    ranks = spawn_ranks(world, partial(rank_training, settings, tmp_path / "ranks"), timeout_s=120)
    assert_close(ranks[0][0], values(alone.points))
    assert all(result["metrics"]["knn_accuracy"] == ranks[0][1]["metrics"]["knn_accuracy"] for _, result in ranks)


def test_a_diverged_job_has_no_metric_and_is_not_an_error(tmp_path: Path) -> None:
    config = job(optimizer__lr=1e38, optimizer__name="sgd", optimizer__warmup=0.0)
    training = trained(config, tmp_path)
    result = training.result
    assert result is not None
    assert result["outcome"] == "diverged"
    assert result["metrics"] == {}, "an encoder that is no encoder scores nothing"
    assert training.untrained["knn_accuracy"] > 0
    assert Training(config, tmp_path, log=lambda _: None).result == result


def test_scores_below_zero_are_no_divergence(tmp_path: Path) -> None:
    """Seen: alignment was that of no pair, and the trial `diverged`."""
    rng, words = np.random.default_rng(0), ["red", "old", "boat", "tree", "cup", "stone", "bird", "lamp"]
    texts = [" ".join(rng.choice(words, 5)) for _ in range(36)]
    (tmp_path / "text.txt").write_text("\n".join(texts))
    judged = [{"sentence1": texts[k], "sentence2": texts[k + 12], "score": -1.0 - k % 3} for k in range(12)]
    (tmp_path / "judged.jsonl").write_text("\n".join(map(json.dumps, judged)))
    config = JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 2},
            "data": {"train": str(tmp_path / "text.txt"), "confirm": str(tmp_path / "judged.jsonl"), "max_tokens": 8},
            "model": {"width": 16, "heads": 2, "layers": 1, "projection": "none", "vocabulary": 100},
            "batch": {"size": 4},
            "evaluate": {"times": 1},
        }
    )
    result = trained(config, tmp_path / "trial").result
    assert result is not None
    assert result["outcome"] == "ok"
    assert all(math.isfinite(result["metrics"][name]) for name in ("spearman", "alignment", "uniformity"))


def test_a_diverged_job_without_a_sound_checkpoint_does_not_start_again_nor_says_so(tmp_path: Path) -> None:
    """Mutant check: saying so before the result is read."""
    config = job(optimizer__lr=1e38, optimizer__name="sgd", optimizer__warmup=0.0, execution__checkpoint_every=1)
    result = trained(config, tmp_path).result
    checkpoints = checkpoint.steps(tmp_path / "checkpoints")
    assert checkpoints, "a step before it diverged"
    for step in checkpoints:
        (tmp_path / "checkpoints" / f"step_{step:06}" / "model.safetensors").write_bytes(b"")
    again = Training(config, tmp_path, log=lambda _: None)
    assert again.result == result
    assert all("is damaged" in remark for remark in again.remarks)
    assert len(again.remarks) == len(checkpoints)


def test_a_learned_temperature_stays_in_its_range_and_is_tracked(tmp_path: Path) -> None:
    settings = {"loss__temperature": "learned", "loss__temperature_range": [0.069, 0.071], "optimizer__lr": 0.005}
    training = trained(job(**settings), tmp_path)
    seen = [p.value for p in training.points if p.key == "train/temperature"]
    assert all(0.069 - 1e-6 <= value <= 0.071 + 1e-6 for value in seen)
    assert len(set(seen)) > 1


@pytest.mark.parametrize("name", ["infonce_ce", "infonce_matched", "dcl", "flatnce", "siglip"])
def test_every_loss_trains(tmp_path: Path, name: str) -> None:
    training = trained(job(loss__name=name, budget__steps=4, evaluate__times=1), tmp_path)
    assert training.result is not None
    assert training.result["outcome"] == "ok"
    assert {"train/loss", "train/infonce", "train/gradient_norm"} <= set(training.result["metrics"])


def test_an_impossible_device_is_refused(tmp_path: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(ValueError, match="torch sees no GPU"):
        Training(job(execution__device="cuda"), tmp_path)


WORDS = ["a", "cat", "dog", "runs", "sleeps", "eats", "the", "fast", "slow", "bird", "sings", "loud", "old", "man"]


def sentence_job(folder: Path, *, hard: bool = False, **settings: Any) -> JobConfig:
    """A small job on sentences of 2 to 9 words that it writes to `folder`; with a hard negative each if `hard`."""
    draw = torch.Generator().manual_seed(0)

    def sentence() -> str:
        length = int(torch.randint(2, 10, (), generator=draw))
        return " ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (length,), generator=draw))

    names = ["anchor", "positive", "negative"] if hard else ["text"]
    train = [{name: sentence() for name in names} for _ in range(80)]
    judged = [{"sentence1": sentence(), "sentence2": sentence(), "score": i % 6} for i in range(30)]
    for name, rows in (("train", train), ("judged", judged)):
        (folder / f"{name}.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    base = {
        "task": "sentence",
        "seed": 1,
        "budget": {"steps": 6},
        "data": {"train": str(folder / "train.jsonl"), "confirm": str(folder / "judged.jsonl")},
        "model": {"width": 16, "heads": 2, "layers": 1, "vocabulary": 100, "projection_width": 8, "dropout": 0.1},
        "batch": {"size": 12},
        "evaluate": {"times": 2},
        "execution": {"checkpoint_every": 4},
    }
    return JobConfig.model_validate(merged(base, {key.replace("__", "."): value for key, value in settings.items()}))


def test_sentences_train_and_are_judged_by_rank_correlation(tmp_path: Path) -> None:
    result = trained(sentence_job(tmp_path, execution__micro=5), tmp_path / "trial").result
    assert result is not None
    assert -1 <= result["metrics"]["spearman"] <= 1
    assert "train/mlm_loss" not in result["metrics"]


SENTENCES: dict[str, Any] = {"model__precision": "fp64", "loss__mlm_weight": 0.1, "hard": True}
"""In float64, with dropout 0.1, hard negatives and the auxiliary loss."""


@pytest.mark.parametrize(
    "settings",
    [
        {"execution__micro": 5},
        {"execution__micro_tokens": 100},
        {"execution__micro": 2, "execution__graph_memory_mb": 1},
    ],
)
def test_chunks_do_not_change_the_trajectory_of_sentences(tmp_path: Path, settings: dict[str, Any]) -> None:
    """Mutant checks: dropout keyed by the place in the chunk fails, and so do masks keyed so."""
    whole = trained(sentence_job(tmp_path, **SENTENCES), tmp_path / "whole")
    chunks = trained(sentence_job(tmp_path, **SENTENCES, **settings), tmp_path / "chunks")
    assert ("train/mlm_loss", 6) in values(whole.points)
    assert_close(values(chunks.points), values(whole.points))


def sentence_training(folder: Path, rank: int) -> dict[Any, float]:
    config = JobConfig.model_validate_json((folder / "config.json").read_text())
    return values(trained(config, folder / "ranks", group=dist.group.WORLD).points)


@pytest.mark.soak
@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_change_the_trajectory_of_sentences(tmp_path: Path, spawn_ranks: Any, world: int) -> None:
    alone = trained(sentence_job(tmp_path, **SENTENCES), tmp_path / "alone")
    config = sentence_job(tmp_path, **SENTENCES, execution__ranks=world, execution__micro_tokens=60)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    ranks = spawn_ranks(world, partial(sentence_training, tmp_path), timeout_s=120)
    assert_close(ranks[0], values(alone.points))


def visited(folder: Path, rank: int) -> tuple[list[list[int]], list[int]]:
    """Rows that this rank has tokenised, by column, and those that its steps have computed with."""
    config = JobConfig.model_validate_json((folder / "config.json").read_text())
    training = trained(config, folder / "ranks", group=dist.group.WORLD)
    assert isinstance(training.examples, data.SentenceExamples)
    size, rows = config.batch.size, len(training.examples)
    batches = [data.batch_rows(rows, size=size, seed=config.seed, step=step + 1) for step in range(training.step)]
    own = {int(row) for batch in batches for row in batch[size * rank // 2 : size * (rank + 1) // 2]}
    return [np.flatnonzero(column.tokens._lengths).tolist() for column in training.examples.columns], sorted(own)


@pytest.mark.soak
@pytest.mark.parametrize("micro_tokens", [None, 60])
def test_a_rank_tokenises_the_rows_of_its_own_pairs_and_no_others(
    tmp_path: Path, spawn_ranks: Any, micro_tokens: int | None
) -> None:
    """Mutant check: a size of the step that is taken from the whole batch makes every rank tokenise all of it."""
    settings = {"execution__ranks": 2, "execution__verify": False, "budget__steps": 3, "evaluate__times": 1}
    config = sentence_job(tmp_path, hard=True, execution__micro_tokens=micro_tokens, **settings)
    (tmp_path / "config.json").write_text(config.model_dump_json())
    ranks = spawn_ranks(2, partial(visited, tmp_path), timeout_s=120)
    for columns, own in ranks:
        assert columns == [own] * 3
    assert set(ranks[0][1]).isdisjoint(ranks[1][1])


def test_a_kill_changes_not_one_bit_of_sentences_with_dropout_and_the_auxiliary_loss(tmp_path: Path) -> None:
    """80 rows are 6.7 batches of 12, so step 4, whose checkpoint is continued from, ends inside the first epoch.

    Mutant check: leaving the auxiliary head out of the checkpoint fails this.
    """
    config = sentence_job(tmp_path, hard=True, loss__mlm_weight=0.1, execution__micro=5)
    whole = trained(config, tmp_path / "whole")
    killed = Training(config, tmp_path / "killed", log=lambda _: None)
    for _ in range(5):
        killed.advance(1)
    killed.settle()
    del killed
    again = trained(config, tmp_path / "killed")
    assert values(again.points) == values(whole.points)
    expected = weights(tmp_path / "whole")
    assert any(name.startswith("mlm.") for name in expected)
    assert all(torch.equal(value, expected[name]) for name, value in weights(tmp_path / "killed").items())


# Precision and compiler


def gradient_of(config: JobConfig, folder: Path) -> torch.Tensor:
    """The first step's whole gradient, float64."""
    training = Training(config, folder, log=lambda _: None)
    rows = training.batches.rows(1)
    training._gradients(1, rows, training.batches.spans(rows))
    return torch.cat([p.grad.double().flatten() for p in training.model.parameters() if p.grad is not None])


@pytest.mark.parametrize("task", ["image", "sentence"])
def test_bf16_trains_and_its_gradient_is_fp32s_to_its_own_rounding(tmp_path: Path, task: str) -> None:
    """An activation keeps 8 bits, so is off by up to 0.4 %, and the loss divides what is left of similarities by 0.1:
    16 % of the gradient were measured on images and 2 % on sentences, 20 % are allowed (a cosine of 0.98).

    Mutant check: an autocast that is never entered makes the two equal, and fails.
    """
    make = partial(sentence_job, tmp_path) if task == "sentence" else job
    low, full = (make(model__precision=precision, execution__micro=5) for precision in ("bf16", "fp32"))
    found, exact = gradient_of(low, tmp_path / "low"), gradient_of(full, tmp_path / "full")
    assert 1e-4 < float((found - exact).norm() / exact.norm()) < 0.2
    training = trained(low, tmp_path / "trial")
    assert training.result is not None
    assert training.result["outcome"] == "ok"
    assert all(p.dtype == torch.float32 for p in training.model.parameters())
    assert all(math.isfinite(value) for value in values(training.points).values())


@pytest.mark.soak
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore:The .grad attribute of a Tensor:UserWarning")
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on the CPU")
def test_a_compiled_encoder_trains_as_the_eager_one_with_dropout_and_chunks_of_any_shape(tmp_path: Path) -> None:
    """About a minute of compiling. Mutant check: an encoder that loses its dropout when it is compiled fails this."""
    settings: dict[str, Any] = {
        "model__precision": "fp64",
        "loss__mlm_weight": 0.1,
        "execution__micro_tokens": 100,
        "budget__steps": 3,
        "evaluate__times": 1,
    }
    eager = trained(sentence_job(tmp_path, **settings), tmp_path / "eager")
    compiled = trained(
        sentence_job(tmp_path, **settings, execution__compile=True, execution__verify=True), tmp_path / "compiled"
    )
    assert_close(values(compiled.points), values(eager.points))


# What would change the result is refused


def test_batch_norm_of_a_loaded_encoder_is_refused_where_the_batch_is_cut(tmp_path: Path) -> None:
    """Mutant check: without the look at the modules it trains."""
    encoder = ResNetModel(
        ResNetConfig(num_channels=1, embedding_size=4, hidden_sizes=[4, 8], depths=[1, 1], layer_type="basic")
    )
    encoder.save_pretrained(tmp_path / "encoder")
    settings = {"model__name": str(tmp_path / "encoder"), "budget__steps": 1, "evaluate__times": 1}
    with pytest.raises(ValueError, match=r"has batch norm \(encoder\..*layer or group norm.*ranks = 1 without micro"):
        Training(job(**settings, execution__micro=8), tmp_path / "cut", log=lambda _: None)
    assert trained(job(**settings, execution__micro=16), tmp_path / "whole").result is not None


# A rank that fails in the middle of a step


def fail_in_a_step(folder: Path, how: str, rank: int) -> None:
    """Three ranks, two chunks each; rank 1 fails at its second one of the second step."""
    settings: dict[str, Any] = {"execution__ranks": 3, "execution__micro": 3, "budget__steps": 4}
    if how == "disagrees" and rank == 1:
        settings["loss__margin"] = 0.1
    training = Training(job(**settings), folder / f"rank{rank}", group=dist.group.WORLD, log=lambda _: None)
    if how == "disagrees":
        (folder / "fault").touch()
        training.advance(4)
    training.advance(1)
    embed, calls = ContrastiveModel.embed, []

    def failing(model: ContrastiveModel, inputs: Any) -> torch.Tensor:
        calls.append(1)
        if rank == 1 and len(calls) == 2:
            (folder / "fault").touch()
            if how == "is killed":
                os.kill(os.getpid(), signal.SIGKILL)
            raise ZeroDivisionError("mine")
        return embed(model, inputs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ContrastiveModel, "embed", failing)
        training.advance(4)


@pytest.mark.soak
@pytest.mark.parametrize("how", ["is killed", "raises", "disagrees"])
def test_a_rank_that_fails_within_a_step_ends_all_ranks_by_name_within_seconds(
    tmp_path: Path, forkserver: ForkServerContext, how: str
) -> None:
    """Every rank by itself: nobody ends them here. Mutant check: a rank that sleeps in place of failing fails this."""
    job_bytes, pipes, processes = pickle.dumps(partial(fail_in_a_step, tmp_path, how)), [], []
    try:
        for rank in range(3):
            receiver, sender = forkserver.Pipe(duplex=False)
            arguments = (rank, 3, str(tmp_path / "store"), job_bytes, sender, 120)
            processes.append(forkserver.Process(target=rank_main, args=arguments, daemon=True))
            processes[-1].start()
            sender.close()
            pipes.append(receiver)
        ends = []
        for pipe in pipes:
            assert pipe.poll(120), "a rank waits for ever"
            try:
                ends.append(str(pickle.loads(pipe.recv_bytes())[1]))
            except EOFError:
                ends.append("died")
        assert time.time() - (tmp_path / "fault").stat().st_mtime < 10
    finally:
        for process in processes:
            process.kill()
            process.join()
    if how == "disagrees":
        assert all("ranks disagree: margin is 0.0 on rank 0, 0.1 on rank 1" in end for end in ends), ends
    else:
        assert ends[1] == {"is killed": "died", "raises": "mine"}[how]
        assert all("onnection" in ends[rank] or "closed by peer" in ends[rank] for rank in (0, 2)), ends
