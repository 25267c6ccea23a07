"""Every built-in gradient transform: its oracle, its masks, its resumption, any ranks.

A built-in gradient transform without a case here, or without an oracle, fails the collection.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given
from hypothesis import strategies as st
from optimizers import TRANSFORMS, child_mask, largest
from ranks import SpawnRanks
from test_optimizers import STEPS, Tower, assert_is, course, job, settings, trained
from torch import Tensor, nn

from jobs.config import ConfigError, JobConfig, Optimizer, components
from jobs.data import Views
from jobs.optim import GradientTransform, build, set_rate
from jobs.optim.transforms.soft_clip import soft_clip
from jobs.train import Training
from jobs.train.step import hard_clip

CASES: dict[str, list[dict[str, Any]]] = {
    "soft_clip": [{}, {"norm": 0.1}],
    "child_tuning": [{}, {"p": 0.2}, {"p": 0.4, "mask": "update"}],
    "child_tuning_d": [{}, {"p": 0.2, "batches": 2}, {"p": 0.4, "mask": "update"}],
}
"""Options to be tried, by gradient transform."""

if without := sorted({*components.builtin_names("transform")} - {*CASES}):
    raise pytest.UsageError(f"a built-in transform is proven here before it is one; there are no cases of {without}")
if without := sorted({*CASES} - {*TRANSFORMS}):
    raise pytest.UsageError(f"a transform has an oracle in tests/support/records/optimizers.py; none of {without}")

EACH = [
    pytest.param(name, options, id=f"{name}-{n}") for name, cases in CASES.items() for n, options in enumerate(cases)
]

SEED = 5


def transform_of(model: nn.Module, name: str, options: dict[str, Any], **others: Any) -> GradientTransform:
    section = {"transform": name, "transform_options": options, "fisher_pairs": 3} | others
    return GradientTransform(model, Optimizer.model_validate(section), seed=SEED)


@pytest.mark.parametrize(("name", "options"), EACH)
def test_ten_steps_of_sgd_with_it_are_the_oracle_s(name: str, options: dict[str, Any]) -> None:
    """Mutant checks: without the division by p, or with the mask of the step before, child_tuning fails; the smallest
    in place of the largest, child_tuning_d."""
    model = Tower()
    followed = course(model)
    draw = np.random.default_rng(8)
    groups = [[{n: draw.normal(size=w.shape) for n, w in followed.weights.items()} for _ in range(3)] for _ in range(2)]

    def gradients(step: int, pairs: int) -> Iterator[dict[str, Tensor]]:
        assert pairs == 3
        for group in groups[step - 1]:
            yield {n: torch.from_numpy(g) for n, g in group.items()}

    optimizer, transform = build(model, settings("sgd", {})), transform_of(model, name, options)
    if transform.looks_first:
        transform.prepare(gradients)
    for step in range(STEPS):
        for key, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(followed.gradients[step][key].copy())
        transform(step + 1)
        set_rate(optimizer, followed.rates[step])
        transform.step(optimizer, step + 1)
    further = {"child_tuning": {"seed": SEED}, "child_tuning_d": {"groups": groups}}.get(name, {})
    assert_is(model, TRANSFORMS[name](followed, **options, **further))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["child_tuning", "child_tuning_d"])
def test_a_masked_number_does_not_move_by_a_bit_where_the_update_is_masked(name: str) -> None:
    """Although Adam's averages and the decay would move it, as they do where its gradient is masked."""
    moved: dict[str, set[bool]] = {}
    for mask in ("gradient", "update"):
        model = Tower()
        followed, before = course(model), {n: p.detach().clone() for n, p in model.named_parameters()}
        transform = transform_of(model, name, {"p": 0.3, "mask": mask})
        first = {n: torch.from_numpy(g) for n, g in followed.gradients[0].items()}
        transform.prepare(lambda _step, _pairs, first=first: iter([first]))  # type: ignore[misc]
        optimizer = build(model, settings("adamw", {}))
        stays = {n: np.ones(w.shape, dtype=bool) for n, w in followed.weights.items()}
        for step in (1, 2):
            for n, parameter in model.named_parameters():
                parameter.grad = torch.from_numpy(followed.gradients[step][n].copy())
                shape = tuple(parameter.shape)
                own = largest({k: g**2 for k, g in followed.gradients[0].items()}, 0.3)[n]
                stays[n] &= ~(child_mask(n, shape, seed=SEED, step=step, p=0.3) if name == "child_tuning" else own)
            transform(step)
            transform.step(optimizer, step)
        assert any(still.any() for still in stays.values())
        moved[mask] = {bool(m) for n, p in model.named_parameters() for m in (p != before[n]).numpy()[stays[n]]}
        assert all((p != before[n]).numpy()[~stays[n]].all() for n, p in model.named_parameters())
    assert moved["update"] == {False}
    assert True in moved["gradient"]


def test_child_tuning_trains_a_share_of_the_numbers_and_another_one_each_step() -> None:
    model = nn.Linear(100, 50, bias=False)
    transform = transform_of(model, "child_tuning", {"p": 0.25})
    seen = []
    for step in (1, 2):
        model.weight.grad = torch.ones_like(model.weight)
        transform(step)
        assert set(model.weight.grad.unique().tolist()) == {0.0, 4.0}
        seen.append(model.weight.grad > 0)
    shares = [float(mask.float().mean()) for mask in (*seen, seen[0] & seen[1])]
    assert shares == pytest.approx([0.25, 0.25, 0.0625], abs=0.025)


def test_a_group_larger_than_the_batch_is_refused_with_a_value_that_works() -> None:
    with pytest.raises((ConfigError, ValueError), match=r"fisher_pairs = 13 is more than batch.size = 12.*at most 12"):
        job({"transform": "child_tuning_d", "fisher_pairs": 13})


# Clipping


@given(c=st.floats(1e-12, 1e6), scale=st.floats(1e-12, 1e6), seed=st.integers(0, 2**16))
def test_hard_and_soft_clipping_differ_by_at_most_a_factor_of_2(c: float, scale: float, seed: int) -> None:
    """hard / 2 <= soft < hard, and both point where the gradient does. Mutant check: c / (|g| + c / 4) fails. Seen: a
    hard clip by |g| + 1e-6, as torch's is, which small gradients notice."""
    draw = torch.Generator().manual_seed(seed)
    gradients = [scale * torch.randn(n, generator=draw, dtype=torch.float64) for n in (3, 5)]
    hard, soft = (
        {str(n): nn.Parameter(torch.zeros(len(g), dtype=torch.float64)) for n, g in enumerate(gradients)}
        for _ in range(2)
    )
    for parameters in (hard, soft):
        for parameter, g in zip(parameters.values(), gradients, strict=True):
            parameter.grad = g.clone()
    hard_clip([*hard.values()], c, nn.utils.get_total_norm(gradients))
    soft_clip(norm=c)(soft)
    size = float(torch.cat(gradients).norm())
    for key, g in enumerate(gradients):
        a, b = hard[str(key)].grad, soft[str(key)].grad
        assert a is not None
        assert b is not None
        assert bool((b.abs() >= a.abs() / 2 * (1 - 1e-12)).all())
        assert bool((b.abs() <= a.abs() * (1 + 1e-12)).all())
        torch.testing.assert_close(a, g * min(1.0, c / size), rtol=1e-12, atol=0)
        assert torch.equal(b.sign(), g.sign())


@pytest.mark.parametrize("size", [0.0, 5e-324, float("inf")])
def test_a_gradient_of_zero_stays_one(size: float) -> None:
    """Hard and soft; an infinite one leaves no weight as it was, so that it is seen."""
    hard, soft = (nn.Parameter(torch.zeros(2, dtype=torch.float64)) for _ in range(2))
    for parameter in (hard, soft):
        parameter.grad = torch.tensor([size, 0.0], dtype=torch.float64)
    hard_clip([hard], 0.5, nn.utils.get_total_norm([torch.tensor([size], dtype=torch.float64)]))
    soft_clip(norm=0.5)({"weight": soft})
    for parameter in (hard, soft):
        assert parameter.grad is not None
        assert bool(parameter.grad.isfinite().all()) == (size < 1)
        assert size > 1 or float(parameter.grad.norm()) <= size


# In trainings

REAL: dict[str, dict[str, Any]] = {
    f"{name}-{n}": {"transform": name, "transform_options": options, "fisher_pairs": 5, "lr": 0.01}
    for name, cases in CASES.items()
    for n, options in enumerate(cases)
}


@pytest.mark.parametrize("name", REAL)
def test_a_training_is_resumed_bit_for_bit_after_any_step(tmp_path: Path, name: str) -> None:
    """Masks are in the checkpoint. Mutant check: child_tuning_d without its state fails."""
    config = job(REAL[name])
    whole = trained(config, tmp_path / "whole")
    assert whole.result is not None
    assert whole.result["outcome"] == "ok"
    for cut in (0, 1, 4):
        begun = trained(config, tmp_path / f"cut{cut}", steps=cut)
        begun.save()
        begun.settle()
        continued = trained(config, tmp_path / f"cut{cut}")
        assert continued.result is not None
        assert continued.result["metrics"] == whole.result["metrics"]
        for key, expected in whole.model.state_dict().items():
            assert torch.equal(continued.model.state_dict()[key], expected), (cut, key)


@pytest.mark.parametrize("mask", ["gradient", "update"])
@pytest.mark.parametrize("name", ["child_tuning", "child_tuning_d"])
def test_to_train_all_numbers_is_to_train_without_it_bit_for_bit(tmp_path: Path, name: str, mask: str) -> None:
    """With a loss that has a state, and dropout: looking at gradients of groups leaves no trace. Mutant check: without
    gradient_check.untouched the loss has been called more often."""
    loss = {"name": "mylab:Centred", "options": {"width": 64}}
    without: dict[str, Any] = {"lr": 0.01}
    section = without | {"transform": name, "transform_options": {"p": 1.0, "mask": mask}, "fisher_pairs": 4}
    plain, masked = (
        trained(JobConfig.model_validate(job(optimizer).model_dump() | {"loss": loss}), tmp_path / str(n))
        for n, optimizer in enumerate((without, section))
    )
    assert plain.result is not None
    assert masked.result is not None
    assert plain.result["metrics"] == masked.result["metrics"]
    for key, expected in plain.model.state_dict().items():
        assert torch.equal(masked.model.state_dict()[key], expected), key


def outcome(config: JobConfig, folder: Path, group: Any = None) -> dict[str, Tensor]:
    training = trained(config, folder, group=group)
    masks = {f"mask {name}": x for name, x in training.transform.state_dict().items() if isinstance(x, Tensor)}
    return training.model.state_dict() | masks


def on_rank(folder: Path, rank: int) -> dict[str, dict[str, Tensor]]:
    how = {"ranks": dist.get_world_size(), "micro": 3}
    return {name: outcome(job(section, **how), folder / name, dist.group.WORLD) for name, section in REAL.items()}


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_and_micro_batches_make_the_same_steps(spawn_ranks: SpawnRanks, tmp_path: Path, world: int) -> None:
    """To rounding with one process, and bit for bit among the ranks; masks bit for bit with one process, too."""
    seen = spawn_ranks(world, partial(on_rank, tmp_path / "ranks"), timeout_s=400)
    for name, section in REAL.items():
        alone = outcome(job(section), tmp_path / name)
        assert any(key.startswith("mask ") for key in alone) == name.startswith("child_tuning_d")
        for key, expected in alone.items():
            within = {"rtol": 0, "atol": 0} if key.startswith("mask ") else {"rtol": 1e-6, "atol": 1e-8}
            torch.testing.assert_close(seen[0][name][key], expected, **within)
            assert all(torch.equal(seen[rank][name][key], seen[0][name][key]) for rank in range(1, world))


def squares(training: Training, pairs: int, batches: int) -> dict[str, Any]:
    """Sums of squared gradients of InfoNCE, each group encoded by itself and differentiated plainly."""
    named = dict(training.model.named_parameters())
    total = {name: np.zeros(p.shape) for name, p in named.items()}
    for step in range(1, batches + 1):
        rows = training.batches.rows(step)
        for first in range(0, len(rows) - pairs + 1, pairs):
            views: Views = training.batches.micro_batch(step, rows, range(first, first + pairs)).views
            queries, keys = (training.model.embed(side) for side in (views.queries, views.keys))
            logits = queries @ keys.T / training.model.temperature()
            value = nn.functional.cross_entropy(logits, torch.arange(pairs))
            slopes = torch.autograd.grad(value, list(named.values()))
            for name, slope in zip(named, slopes, strict=True):
                total[name] += slope.numpy() ** 2
    return total


@pytest.mark.parametrize("batches", [1, 2])
def test_child_tuning_d_chooses_by_groups_of_the_batches_it_will_train_on(tmp_path: Path, batches: int) -> None:
    """Twelve pairs in groups of five leave two pairs out. Mutant check: groups of four choose others."""
    options = {"p": 0.1, "batches": batches}
    config = job({"transform": "child_tuning_d", "transform_options": options, "fisher_pairs": 5})
    training = Training(config, tmp_path / "trial", log=lambda _: None)
    expected = largest(squares(training, 5, batches), 0.1)
    others = largest(squares(training, 4, batches), 0.1)
    training.advance(1)
    masks = {name: mask.numpy() for name, mask in training.transform.state_dict().items()}  # type: ignore[attr-defined]
    wrong = sum(int((masks[name] != mask).sum()) for name, mask in expected.items())
    assert wrong == 0
    assert any((masks[name] != mask).any() for name, mask in others.items()), "vacuous"
