import math
import subprocess
import sys
from typing import Literal

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from jobs.config import Optimizer
from jobs.optim import build, rate, set_rate


def test_the_rate_climbs_to_its_peak_over_the_warm_up_and_then_falls() -> None:
    settings = Optimizer(lr=1.0, warmup=0.1, schedule="linear")
    rates = [rate(settings, step=step, steps=100) for step in range(1, 101)]
    assert rates[:10] == pytest.approx([k / 10 for k in range(1, 11)])
    assert rates[10:] == pytest.approx([1 - k / 90 for k in range(90)])


def test_cosine_is_half_way_down_in_the_middle_and_constant_stays() -> None:
    assert rate(Optimizer(lr=2.0, warmup=0.0, schedule="cosine"), step=51, steps=100) == pytest.approx(1.0)
    assert rate(Optimizer(lr=2.0, warmup=0.0, schedule="constant"), step=100, steps=100) == 2.0


@given(
    steps=st.integers(1, 500),
    warmup=st.floats(0, 0.99),
    schedule=st.sampled_from(["constant", "linear", "cosine"]),
)
def test_every_step_of_every_schedule_has_a_rate_between_0_and_the_peak(
    steps: int, warmup: float, schedule: str
) -> None:
    settings = Optimizer.model_validate({"lr": 0.1, "warmup": warmup, "schedule": schedule})
    rates = [rate(settings, step=step, steps=steps) for step in range(1, steps + 1)]
    assert all(0 < one <= 0.1 + 1e-12 for one in rates)
    peak = math.ceil(warmup * steps)
    assert rates[:peak] == sorted(rates[:peak])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)


def test_matrices_decay_and_vectors_do_not() -> None:
    model = nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3))
    matrices, vectors = build(model, Optimizer(weight_decay=0.3)).param_groups
    assert [p.ndim for p in matrices["params"]] == [2]
    assert matrices["weight_decay"] == 0.3
    assert all(p.ndim == 1 for p in vectors["params"])
    assert vectors["weight_decay"] == 0


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_the_optimizer_moves_against_the_gradient_at_the_rate_it_was_given(name: str) -> None:
    model = nn.Linear(1, 1, bias=False, dtype=torch.float64)
    optimizer = build(model, Optimizer.model_validate({"name": name, "weight_decay": 0.0}))
    set_rate(optimizer, 0.5)
    before = model.weight.item()
    model.weight.grad = torch.ones_like(model.weight)
    optimizer.step()
    assert model.weight.item() == pytest.approx(before - 0.5, abs=1e-6)


@pytest.mark.parametrize("name", ["adamw", "sgd"])
def test_a_step_is_torchs_own_bit_for_bit_and_so_is_what_a_checkpoint_holds(name: Literal["adamw", "sgd"]) -> None:
    settings = Optimizer(name=name, lr=0.1, weight_decay=0.1)
    ours, theirs = (nn.Linear(5, 3) for _ in range(2))
    theirs.load_state_dict(ours.state_dict())
    mine = build(ours, settings)
    kind = {"adamw": torch.optim.AdamW, "sgd": torch.optim.SGD}[name]
    groups = [{**group, "params": list(theirs.parameters())[:1]} for group in mine.param_groups[:1]]
    groups += [{**group, "params": list(theirs.parameters())[1:]} for group in mine.param_groups[1:]]
    torchs = kind(groups)
    for step in range(4):
        for model, optimizer in ((ours, mine), (theirs, torchs)):
            (model(torch.full((2, 5), 1.0 + step)) ** 2).sum().backward()
            optimizer.step()
            optimizer.zero_grad()
        kept = mine.state_dict()
        assert str(kept) == str(torchs.state_dict())
        mine.load_state_dict(kept)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), theirs.parameters(), strict=True))


def test_a_step_does_not_load_torchs_compiler() -> None:
    """Two seconds of processor time in every rank. Mutant check: torch's own optimizers load it."""
    probe = """
import sys
from torch import nn
from jobs.config import Optimizer, components
from jobs.optim import build
for name in components.builtin_names("optimizer"):
    model = nn.Linear(3, 3)
    optimizer = build(model, Optimizer(name=name))
    model.weight.sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    optimizer.load_state_dict(optimizer.state_dict())
print("torch._dynamo" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert done.stdout == "False\n"
