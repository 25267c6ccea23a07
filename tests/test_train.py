"""One job, really trained: it learns, it is the same on any number of ranks, and a kill costs nothing but time."""

import json
import math
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from jobs import checkpoint
from jobs.config import JobConfig
from jobs.train import Point, Training
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

TIMES = {"samples_per_second", "peak_memory_mb"}


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
    return {(p.key, p.step): p.value for p in points if p.key not in TIMES}


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
    assert set(result["hashes"]) == {"data", "init", "order"}
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
    while again.result is None:
        again.advance(100)
    assert values(again.points) == values(first.points)


def test_without_a_sound_checkpoint_training_starts_again_and_says_so(tmp_path: Path) -> None:
    first = trained(job(), tmp_path)
    for path in (tmp_path / "checkpoints").glob("step_*/model.safetensors"):
        path.write_bytes(b"")
    said: list[str] = []
    again = Training(job(), tmp_path, log=said.append)
    assert again.step == 0
    assert any("starts again from step 0" in line for line in said)
    again.advance(100)
    assert values(again.points).items() <= values(first.points).items()


def test_a_point_cut_short_by_a_kill_is_measured_again(tmp_path: Path) -> None:
    training = Training(job(), tmp_path, log=lambda _: None)
    for _ in range(6):
        training.advance(1)
    path = tmp_path / "points.jsonl"
    path.write_text(path.read_text()[:-9])
    assert trained(job(), tmp_path).result is not None
    assert len(values(lines(tmp_path))) == len(lines(tmp_path)) - len(TIMES)


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


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_do_not_change_the_trajectory(tmp_path: Path, spawn_ranks: Any, world: int) -> None:
    """3 ranks do not divide 16 pairs. Float64: in float32, Adam turns the rounding of a zero gradient into a step."""
    alone = trained(job(model__precision="fp64"), tmp_path / "alone")
    settings = {"model__precision": "fp64", "execution__ranks": world}
    ranks = spawn_ranks(world, partial(rank_training, settings, tmp_path / "ranks"), timeout_s=120)
    assert_close(ranks[0][0], values(alone.points))
    assert all(result["metrics"]["knn_accuracy"] == ranks[0][1]["metrics"]["knn_accuracy"] for _, result in ranks)


def test_a_diverged_job_scores_its_untrained_evaluation_and_is_not_an_error(tmp_path: Path) -> None:
    config = job(optimizer__lr=1e38, optimizer__name="sgd", optimizer__warmup=0.0)
    training = trained(config, tmp_path)
    result = training.result
    assert result is not None
    assert result["outcome"] == "diverged"
    assert result["metrics"]["knn_accuracy"] == training.untrained["knn_accuracy"]
    assert Training(config, tmp_path, log=lambda _: None).result == result


def test_a_learned_temperature_stays_in_its_range_and_is_tracked(tmp_path: Path) -> None:
    settings = {"loss__temperature": "learned", "loss__temperature_range": [0.069, 0.071], "optimizer__lr": 0.1}
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


def test_sentences_train_and_are_judged_by_rank_correlation(tmp_path: Path) -> None:
    words = ["a", "cat", "dog", "runs", "sleeps", "eats", "the", "fast", "slow", "bird", "sings", "loud", "old", "man"]
    draw = torch.Generator().manual_seed(0)

    def sentence() -> str:
        return " ".join(words[int(i)] for i in torch.randint(len(words), (6,), generator=draw))

    (tmp_path / "train.txt").write_text("\n".join(sentence() for _ in range(80)))
    rows = [{"sentence1": sentence(), "sentence2": sentence(), "score": i % 6} for i in range(30)]
    (tmp_path / "sts.jsonl").write_text("\n".join(json.dumps(row) for row in rows))
    config = JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 4},
            "data": {"train": str(tmp_path / "train.txt"), "confirm": str(tmp_path / "sts.jsonl")},
            "model": {"width": 16, "heads": 2, "layers": 1, "vocabulary": 100},
            "batch": {"size": 8},
            "evaluate": {"times": 2},
            "execution": {"micro": 3},
        }
    )
    result = trained(config, tmp_path / "trial").result
    assert result is not None
    assert -1 <= result["metrics"]["spearman"] <= 1
