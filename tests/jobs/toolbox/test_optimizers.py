"""Every built-in optimizer: its oracle, its state in the middle of everything, its resumption, any ranks.

A built-in optimizer without a case here, or without an oracle, fails the collection; test_transforms.py does the same
for gradient transforms.
"""

from __future__ import annotations

import copy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optimizers as oracles
import pytest
import torch
import torch.distributed as dist
from optimizers import ORACLES, Course
from ranks import SpawnRanks
from torch import Tensor, nn

from jobs.config import JobConfig, Optimizer, components
from jobs.optim import build, set_rate
from jobs.train import Training
from jobs.train.components import examined

CASES: dict[str, list[dict[str, Any]]] = {
    "adamw": [{}],
    "sgd": [{}],
    "lion": [{}, {"betas": [0.95, 0.98]}],
    "lamb": [{}, {"vectors": "scaled"}],
    "lars": [{}, {"trust": 0.1, "vectors": "scaled"}],
    "adafactor": [{}, {"beta2_decay": -0.5, "floor": 0.1, "clip": 1.1}],
    "muon": [{}, {"momentum": 0.8, "nesterov": False, "scale": "spectral"}],
    "tiger": [{}, {"beta": 0.9, "nan_rule": True}, {"beta": 0.945, "accumulate": 4}],
    "eg_step": [{}, {"gamma": 0.3}],
    "eg_step_full": [{}, {"inner": "momentum", "gamma_scale": 0.5, "gamma_gains": 20.0, "past": 0.5}],
}
"""Options to be tried, by optimizer."""

if without := sorted({*components.builtin_names("optimizer")} - {*CASES}):
    raise pytest.UsageError(f"a built-in optimizer is proven here before it is one; there are no cases of {without}")
if without := sorted({*CASES} - {*ORACLES}):
    raise pytest.UsageError(f"an optimizer has an oracle in tests/support/records/optimizers.py; none of {without}")

EACH = [
    pytest.param(name, options, id=f"{name}-{n}") for name, cases in CASES.items() for n, options in enumerate(cases)
]

STEPS = 10


class Tower(nn.Module):
    """An embedding, layers of matrices, a convolution and a norm, and a matrix that is the head's."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Module()
        self.encoder.table = nn.Embedding(5, 3)
        self.encoder.layers = nn.ModuleList([nn.Linear(3, 4), nn.Conv2d(2, 3, 2), nn.Linear(4, 3), nn.LayerNorm(3)])
        self.head = nn.Linear(3, 2)
        draw = torch.Generator().manual_seed(1)
        for parameter in self.double().parameters():
            nn.init.normal_(parameter, generator=draw)


HIDDEN = {"encoder.layers.0.weight", "encoder.layers.1.weight", "encoder.layers.2.weight"}

GAINS = {"encoder.layers.3.weight"}


def settings(name: str, options: dict[str, Any], **others: Any) -> Optimizer:
    return Optimizer.model_validate({"name": name, "options": options, "weight_decay": 0.1, "momentum": 0.8} | others)


def course(model: nn.Module, *, steps: int = STEPS, decay: float = 0.1) -> Course:
    draw = np.random.default_rng(3)
    named = {name: p.detach().numpy().copy() for name, p in model.named_parameters()}
    return Course(
        weights=named,
        gradients=[{name: draw.normal(size=w.shape) for name, w in named.items()} for _ in range(steps)],
        rates=[0.02 * (1 + step % 3) for step in range(steps)],
        decay={name: decay if w.ndim > 1 else 0.0 for name, w in named.items()},
        hidden=HIDDEN,
        gains=GAINS,
        momentum=0.8,
    )


def step_through(model: nn.Module, optimizer: torch.optim.Optimizer, given: Course, steps: range) -> None:
    for step in steps:
        for name, parameter in model.named_parameters():
            parameter.grad = torch.from_numpy(given.gradients[step][name].copy())
        set_rate(optimizer, given.rates[step])
        optimizer.step()


def assert_is(model: nn.Module, expected: dict[str, Any], *, within: float = 1e-12) -> None:
    for name, parameter in model.named_parameters():
        np.testing.assert_allclose(parameter.detach().numpy(), expected[name], rtol=within, atol=within, err_msg=name)


@pytest.mark.parametrize(("name", "options"), EACH)
def test_ten_steps_are_the_oracle_s(name: str, options: dict[str, Any]) -> None:
    """On matrices, a convolution, vectors, an embedding and a head. Mutant checks: without decay, with the decay of a
    vector, with the rate of the step before, each fails for every name."""
    model = Tower()
    given = course(model)
    step_through(model, build(model, settings(name, options)), given, range(STEPS))
    assert_is(model, ORACLES[name](given, **options))


@pytest.mark.parametrize(("name", "options"), EACH)
def test_a_state_goes_on_from_any_step_bit_for_bit(name: str, options: dict[str, Any]) -> None:
    """As a checkpoint keeps it: copied, saved, read without pickle. Of Tiger, from within an accumulation. Mutant
    check: Tiger with its count of steps beside its groups fails."""
    whole = Tower()
    given = course(whole)
    optimizer = build(whole, settings(name, options))
    step_through(whole, optimizer, given, range(STEPS))
    for cut in (0, 1, 2, 3, 7):
        begun = Tower()
        first = build(begun, settings(name, options))
        step_through(begun, first, given, range(cut))
        kept = copy.deepcopy(first.state_dict())
        second = build(begun, settings(name, options))
        second.load_state_dict(kept)
        step_through(begun, second, given, range(cut, STEPS))
        for one, other in zip(begun.parameters(), whole.parameters(), strict=True):
            assert torch.equal(one, other)


@pytest.mark.parametrize("name", CASES)
def test_what_has_no_gradient_stays(name: str) -> None:
    model = Tower()
    optimizer = build(model, settings(name, {}))
    before = model.head.weight.detach().clone()
    given = course(model)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name != "head.weight":
            parameter.grad = torch.from_numpy(given.gradients[0][parameter_name])
    optimizer.step()
    assert torch.equal(model.head.weight, before)
    assert not torch.equal(model.head.bias, Tower().head.bias)


@pytest.mark.parametrize(("name", "options"), EACH)
def test_a_nan_is_not_hidden(name: str, options: dict[str, Any]) -> None:
    """But by the rule that is asked for. Mutant check: torch's sign, which is 0 of nan, fails for Lion and Tiger."""
    model = Tower()
    given = course(model)
    given.gradients[0]["head.bias"][0] = np.nan
    step_through(model, build(model, settings(name, options)), given, range(4))
    assert model.head.bias.isnan().any() != options.get("nan_rule", False)


# Tiger


@pytest.mark.parametrize("k", [1, 2, 3, 5])
def test_tiger_accumulating_is_tiger_on_averages(k: int) -> None:
    """And so are its momenta, as a sign does not tell their scale. Mutant check: (1 - beta) in place of (1 - beta) / k
    fails."""
    model, averaged = Tower(), Tower()
    given = course(model, steps=3 * k)
    optimizer, other = build(model, settings("tiger", {"accumulate": k})), build(averaged, settings("tiger", {}))
    step_through(model, optimizer, given, range(3 * k))
    means = copy.deepcopy(given)
    means.gradients = [
        {name: np.mean([given.gradients[n][name] for n in range(at, at + k)], axis=0) for name in given.weights}
        for at in range(0, 3 * k, k)
    ]
    means.rates = given.rates[k - 1 :: k]
    step_through(averaged, other, means, range(3))
    assert_is(model, {name: p.detach().numpy() for name, p in averaged.named_parameters()})
    for mine, theirs in zip(model.parameters(), averaged.parameters(), strict=True):
        momenta = [made.state[p]["momentum"] for made, p in ((optimizer, mine), (other, theirs))]
        torch.testing.assert_close(momenta[0], momenta[1], rtol=1e-12, atol=1e-12)


def test_tiger_shrinks_at_a_nan_and_counts_it() -> None:
    """A gain goes towards 1, all else towards 0, and what it has accumulated stays. Mutant check: a rule of each
    parameter by itself fails, as only one has the nan."""
    model = Tower()
    given = course(model)
    given.gradients[4]["head.bias"][0] = np.nan
    given.gradients[7]["encoder.table.weight"][:] = np.nan
    for options in ({"nan_rule": True}, {"nan_rule": True, "accumulate": 3, "shrink": 0.9}):
        model = Tower()
        optimizer = build(model, settings("tiger", options))
        step_through(model, optimizer, given, range(STEPS))
        assert_is(model, oracles.tiger(given, **options))
        assert {group["nan_steps"] for group in optimizer.state_dict()["param_groups"]} == {2}


# Muon


def test_muon_is_torchs_but_for_the_rounding_of_bfloat16() -> None:
    """Torch iterates in bfloat16 whatever it is given, and so a last bit of the gradient would show in every weight."""
    matrix = nn.Linear(6, 4, bias=False).double()
    theirs = copy.deepcopy(matrix)
    mine = build(nn.Sequential(matrix), settings("muon", {"scale": "spectral"}, lr=0.1))
    other = torch.optim.Muon(theirs.parameters(), lr=0.1, weight_decay=0.1, momentum=0.95)
    draw = torch.Generator().manual_seed(2)
    for _ in range(3):
        gradient = torch.randn(4, 6, generator=draw, dtype=torch.float64)
        for model, optimizer in ((matrix, mine), (theirs, other)):
            model.weight.grad = gradient.clone()
            optimizer.step()
    assert not torch.equal(matrix.weight, theirs.weight)
    torch.testing.assert_close(matrix.weight, theirs.weight, rtol=0.02, atol=0.01)


def test_an_accumulation_is_no_fault_when_a_plan_tries_it() -> None:
    """Mutant check: trying two steps alone finds that no weight has moved."""
    sections = job({"name": "tiger", "options": {"accumulate": 16}}).model_dump(mode="json")
    longer = sections | {"budget": {"steps": 16}}
    assert examined("optimizer", "tiger", {"accumulate": 16}, longer)["faults"] == []


# In trainings


IMAGE: dict[str, Any] = {
    "task": "image",
    "budget": {"steps": 6},
    "data": {"train": "digits[:80]", "confirm": "digits[100:150]"},
    "model": {"name": "resnet", "width": 8, "layers": 1, "precision": "fp64"},
    "batch": {"size": 12},
    "evaluate": {"times": 1, "probe": False, "references": 60},
    "execution": {"checkpoint_every": 50},
}


def job(optimizer: dict[str, Any], **execution: Any) -> JobConfig:
    whole = IMAGE | {"optimizer": optimizer}
    return JobConfig.model_validate(whole | {"execution": IMAGE["execution"] | execution})


def trained(config: JobConfig, folder: Path, *, steps: int = 99, group: Any = None) -> Training:
    training = Training(config, folder, log=lambda _: None, group=group)
    while training.result is None and training.step < steps:
        training.advance(1)
    training.settle()
    return training


def test_a_training_goes_on_by_the_rule_and_says_how_often(tmp_path: Path) -> None:
    """From a checkpoint too; without the rule it has diverged. Mutant check: a count that no checkpoint holds."""
    rule = {"name": "tiger", "options": {"nan_rule": True}}
    loss = {"name": "mylab:nan_at", "options": {"times": 2}}
    config = JobConfig.model_validate(IMAGE | {"optimizer": rule, "loss": loss})
    whole = trained(config, tmp_path / "whole")
    assert whole.result is not None
    assert whole.result["outcome"] == "ok"
    assert whole.result["metrics"]["train/nan_steps"] == 2
    assert all(np.isfinite(point.value) for point in whole.points)
    begun = trained(config, tmp_path / "parts", steps=3)
    begun.save()
    begun.settle()
    continued = trained(config, tmp_path / "parts")
    assert continued.result is not None
    assert continued.result["metrics"] == whole.result["metrics"]
    plain = config.model_copy(update={"optimizer": Optimizer(name="tiger")})
    diverged = trained(plain, tmp_path / "plain")
    assert diverged.result is not None
    assert diverged.result["outcome"] == "diverged"
    assert "train/nan_steps" not in {point.key for point in diverged.points}


REAL: dict[str, dict[str, Any]] = {name: {"name": name, "options": cases[-1]} for name, cases in CASES.items()}
"""A section `optimizer` for each, with the last of its options: Tiger's accumulates over four steps."""


@pytest.mark.parametrize("name", REAL)
def test_a_training_is_resumed_bit_for_bit_after_any_step(tmp_path: Path, name: str) -> None:
    config = job(REAL[name])
    whole = trained(config, tmp_path / "whole")
    assert whole.result is not None
    assert whole.result["outcome"] == "ok"
    for cut in (1, 2, 3, 4):
        begun = trained(config, tmp_path / f"cut{cut}", steps=cut)
        begun.save()
        begun.settle()
        continued = trained(config, tmp_path / f"cut{cut}")
        assert continued.result is not None
        assert continued.result["metrics"] == whole.result["metrics"]
        for key, expected in whole.model.state_dict().items():
            assert torch.equal(continued.model.state_dict()[key], expected), (cut, key)


def on_rank(folder: Path, rank: int) -> dict[str, dict[str, Tensor]]:
    world = dist.get_world_size()
    return {
        name: trained(job(section, ranks=world, micro=3), folder / name, group=dist.group.WORLD).model.state_dict()
        for name, section in REAL.items()
    }


@pytest.mark.parametrize("world", [2, 3])
def test_ranks_and_micro_batches_make_the_same_steps(spawn_ranks: SpawnRanks, tmp_path: Path, world: int) -> None:
    """To rounding with one process, and bit for bit among the ranks."""
    seen = spawn_ranks(world, partial(on_rank, tmp_path / "ranks"), timeout_s=400)
    for name, section in REAL.items():
        alone = trained(job(section), tmp_path / name).model.state_dict()
        for key, expected in alone.items():
            torch.testing.assert_close(seen[0][name][key], expected, rtol=1e-6, atol=1e-8)
            assert all(torch.equal(seen[rank][name][key], seen[0][name][key]) for rank in range(1, world))
