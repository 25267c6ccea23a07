"""All that is done to gradients, rates and weights at once, in trainings of sentences with dropout and a learned
temperature."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import SpawnRanks
from test_optimizers import REAL, trained
from torch import Tensor

from jobs.config import JobConfig

BESIDE: dict[str, Any] = {
    "transform": "child_tuning_d",
    "transform_options": {"p": 0.4, "mask": "update"},
    "fisher_pairs": 3,
    "layer_decay": 0.8,
    "average_half_life": 16.0,
    "clip": 1.0,
    "lr": 0.003,
    "warmup": 0.2,
}


def sentence_job(folder: Path, optimizer: dict[str, Any], **execution: Any) -> JobConfig:
    words = ["red", "green", "blue", "grey"]
    lines = [f"the {words[n % 4]} number {n}\tthe {words[n % 3]} {n // 2}\t{n * 5 % 7 / 6:.3f}" for n in range(32)]
    (folder / "pairs.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 5},
            "data": {
                "train": str(folder / "pairs.tsv"),
                "scores": "score",
                "confirm": str(folder / "pairs.tsv"),
                "judged_columns": ["sentence1", "sentence2", "score"],
            },
            "model": {"name": "bert", "width": 16, "layers": 2, "heads": 2, "vocabulary": 120, "precision": "fp64"},
            "loss": {"temperature": "learned"},
            "batch": {"size": 8},
            "optimizer": BESIDE | optimizer,
            "evaluate": {"times": 1},
            "execution": execution,
        }
    )


@pytest.mark.parametrize("name", REAL)
def test_a_training_of_sentences_is_resumed_bit_for_bit(tmp_path: Path, name: str) -> None:
    """Under every optimizer. Mutant check: a checkpoint without what is trained, or without the masks, fails."""
    config = sentence_job(tmp_path, REAL[name])
    whole = trained(config, tmp_path / "whole")
    begun = trained(config, tmp_path / "parts", steps=2)
    begun.save()
    begun.settle()
    continued = trained(config, tmp_path / "parts")
    assert whole.result is not None
    assert whole.result["outcome"] == "ok"
    assert continued.result is not None
    assert whole.result["metrics"] == continued.result["metrics"]
    for key, expected in whole.model.state_dict().items():
        assert torch.equal(continued.model.state_dict()[key], expected), key
    for key, average in whole.average.weights.items():
        assert torch.equal(continued.average.weights[key], average), key


def outcome(config: JobConfig, folder: Path, group: Any = None) -> dict[str, Tensor]:
    training = trained(config, folder, group=group)
    masks = {f"mask {name}": x for name, x in training.transform.state_dict().items() if isinstance(x, Tensor)}
    return training.model.state_dict() | masks | {f"average {key}": x for key, x in training.average.weights.items()}


def on_rank(folder: Path, rank: int) -> dict[str, Tensor]:
    own = folder / str(rank)
    own.mkdir()
    config = sentence_job(own, {"name": "sgd"}, ranks=dist.get_world_size(), micro=1)
    return outcome(config, folder / "trial", dist.group.WORLD)


def test_ranks_and_micro_batches_make_the_same_steps(spawn_ranks: SpawnRanks, tmp_path: Path) -> None:
    """By SGD, as all others here make steps of what rounding leaves of a gradient of 0, that of a key's bias."""
    (tmp_path / "ranks").mkdir()
    alone = outcome(sentence_job(tmp_path, {"name": "sgd"}), tmp_path / "alone")
    seen = spawn_ranks(3, partial(on_rank, tmp_path / "ranks"), timeout_s=200)
    for key, expected in alone.items():
        torch.testing.assert_close(seen[0][key], expected, rtol=1e-6, atol=1e-9)
        assert all(torch.equal(seen[rank][key], seen[0][key]) for rank in (1, 2))
