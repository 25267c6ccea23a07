"""The average of weights: its formula, that it changes no training, that it is what is judged and kept, and that it is
resumed exactly."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import SpawnRanks
from test_optimizers import job, trained
from torch import Tensor, nn

from jobs.artifacts import checkpoint
from jobs.config import Optimizer
from jobs.optim.average import WeightAverage
from jobs.train import Training

SECTION = {"lr": 0.03, "warmup": 0.0}

HALF_LIFE = 20.0
"""Pairs; the batch has 12."""


def weights_of(training: Training) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in training.model.named_parameters()}


def averaged(training: Training) -> dict[str, Tensor]:
    with training.average.in_model():
        return weights_of(training)


def test_the_average_is_the_one_of_the_weights_that_a_plain_training_has(tmp_path: Path) -> None:
    """Of steps 1 to 6, written out. Mutant checks: with the first weights in it, or with beta of another batch size, it
    is another; a training that went on from the average would be another."""
    plain = Training(job(SECTION), tmp_path / "plain", log=lambda _: None)
    course = []
    while plain.result is None:
        plain.advance(1)
        course.append(weights_of(plain))
    plain.settle()
    training = trained(job(SECTION | {"average_half_life": HALF_LIFE}), tmp_path / "averaged")
    beta = 2 ** (-12 / HALF_LIFE)
    shares = np.array([beta ** (len(course) - s) for s in range(1, len(course) + 1)])
    found = averaged(training)
    for name, weight in weights_of(training).items():
        assert torch.equal(weight, course[-1][name])
        expected = sum(w * c[name].numpy() for w, c in zip(shares / shares.sum(), course, strict=True))
        np.testing.assert_allclose(found[name].numpy(), expected, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("half_life", [1e-9, 0.5, 20.0, 1e12, 1e18, 1e300])
def test_any_half_life_is_one(half_life: float) -> None:
    """Much shorter than a step it is the newest weights, much longer their plain mean. Seen: a division by 0 in the
    first step where beta is as near to 1 as numbers are."""
    model = nn.Linear(1, 1, bias=False).double()
    average = WeightAverage(model, Optimizer(average_half_life=half_life), batch=8)
    course = [1.0, -3.0, 0.25, 7.0]
    for step, weight in enumerate(course, 1):
        with torch.no_grad():
            model.weight.fill_(weight)
        average.update(step)
    shares = [2.0 ** (-8 * (len(course) - s) / half_life) for s in range(1, len(course) + 1)]
    expected = sum(w * share for w, share in zip(course, shares, strict=True)) / sum(shares)
    assert float(average.weights["weight"]) == pytest.approx(expected, rel=1e-12)


def test_what_is_judged_and_kept_is_the_average(tmp_path: Path) -> None:
    """A checkpoint's model is it, and so is what is exported. Mutant check: evaluating what is trained fails."""
    training = trained(job(SECTION | {"average_half_life": HALF_LIFE}), tmp_path / "averaged")
    plain = trained(job(SECTION), tmp_path / "plain")
    _, kept, _, _ = checkpoint.weights(training.storage.inside("checkpoints"))
    for name, expected in averaged(training).items():
        assert torch.equal(kept[name], expected)
        assert not torch.equal(kept[name], plain.model.state_dict()[name])
    plain.model.load_state_dict(kept)
    judged = plain._measure(final=True)
    assert training.result is not None
    assert judged
    assert {key: training.result["metrics"][key] for key in judged} == judged
    assert plain.result is not None
    assert plain.result["metrics"] != training.result["metrics"]


@pytest.mark.parametrize("cut", [0, 1, 3, 5])
def test_it_is_resumed_bit_for_bit(tmp_path: Path, cut: int) -> None:
    """With the optimizer's state and a transform's beside it. Mutant check: without what is trained in the checkpoint,
    training goes on from the average and ends elsewhere."""
    transform = {"transform": "child_tuning_d", "fisher_pairs": 4, "average_half_life": HALF_LIFE}
    config = job(SECTION | transform)
    whole = trained(config, tmp_path / "whole")
    begun = trained(config, tmp_path / "parts", steps=cut)
    begun.save()
    begun.settle()
    continued = trained(config, tmp_path / "parts")
    assert whole.result is not None
    assert continued.result is not None
    assert whole.result["metrics"] == continued.result["metrics"]
    for one, other in ((weights_of(whole), weights_of(continued)), (averaged(whole), averaged(continued))):
        assert all(torch.equal(one[name], other[name]) for name in one)


def on_rank(folder: Path, rank: int) -> dict[str, Tensor]:
    section = SECTION | {"average_half_life": HALF_LIFE}
    config = job(section, ranks=dist.get_world_size(), micro=3)
    return averaged(trained(config, folder, group=dist.group.WORLD))


def test_ranks_have_the_same_average_as_one_process(spawn_ranks: SpawnRanks, tmp_path: Path) -> None:
    seen = spawn_ranks(3, partial(on_rank, tmp_path / "ranks"), timeout_s=200)
    alone = averaged(trained(job(SECTION | {"average_half_life": HALF_LIFE}), tmp_path / "alone"))
    for name, expected in alone.items():
        torch.testing.assert_close(seen[0][name], expected, rtol=1e-6, atol=1e-9)
        assert all(torch.equal(seen[rank][name], seen[0][name]) for rank in (1, 2))


@pytest.mark.parametrize(("batch", "half_life"), [(8, 64.0), (64, 64.0), (16, 40.0)])
def test_after_its_half_life_a_step_counts_half_as_much(batch: int, half_life: float) -> None:
    """By what one step's weights of 1 among zeros leave in the average, against those of the newest step."""

    def left(at: int, steps: int) -> Any:
        model = nn.Linear(1, 1, bias=False).double()
        average = WeightAverage(model, Optimizer(average_half_life=half_life), batch=batch)
        for step in range(1, steps + 1):
            nn.init.constant_(model.weight, float(step == at))
            average.update(step)
        return average.weights["weight"].item()

    steps = 9
    for age in range(steps):
        assert left(steps - age, steps) == pytest.approx(left(steps, steps) * 2 ** (-age * batch / half_life))


def test_without_a_half_life_nothing_is_kept() -> None:
    model = nn.Linear(1, 1)
    average = WeightAverage(model, Optimizer(), batch=4)
    before = model.weight.detach().clone()
    average.update(1)
    with average.in_model() as aside:
        assert aside == {}
        assert torch.equal(model.weight, before)
    assert average.weights == {}
