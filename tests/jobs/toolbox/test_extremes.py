"""Built-in losses where numbers are extreme: cold temperatures, rows that are alike, batches of few pairs.

Expected values are computed pair by pair in logarithms, apart from jobs/losses and from its other oracles.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from jobs.config import components

NO_TEXTS: dict[str, Any] = {"negatives": None, "ids": None, "key_ids": None, "negative_ids": None}


def units(seed: int, *shape: int) -> Tensor:
    draw = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(shape, generator=draw, dtype=torch.float64), dim=-1)


def log_of_negatives(queries: Tensor, keys: Tensor, i: int, temperature: float, *, beta: float, prior: float) -> Tensor:
    """Compute log N - l_ii of one anchor as Chuang et al. and Robinson et al. have it, with no number above 1 in an
    exponential."""
    positive = queries[i] @ keys[i]
    similar = torch.stack([queries[i] @ keys[j] for j in range(len(keys)) if j != i])
    n = len(similar)
    hardness = (beta * similar).detach()
    log_weights = hardness - hardness.logsumexp(0) + math.log(n)
    away = (log_weights + (similar - positive) / temperature).logsumexp(0)
    least = math.log(n) - (1 + positive) / temperature
    if not prior:
        return away
    share = math.log(prior * n) - away
    if float(share.detach()) >= 0:
        return least
    return torch.maximum(away + torch.log1p(-share.exp()) - math.log(1 - prior), least)


@settings(max_examples=30)
@given(st.integers(0, 2**31), st.integers(2, 6), st.sampled_from([1e-3, 5e-3, 0.02, 0.5]), st.sampled_from([0.0, 4.0]))
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_debiased_is_finite_and_exact_at_cold_temperatures(
    dtype: torch.dtype, seed: int, pairs: int, temperature: float, beta: float
) -> None:
    """Seen: exp of the negatives' logsumexp, which is above what a number can be from a similarity of 0.9 over 0.01 on
    in single precision, so that the loss was infinite and the trial diverged."""
    rows = [units(seed, pairs, 3).to(dtype), units(seed + 1, pairs, 3).to(dtype)]
    leaves = [x.clone().requires_grad_() for x in rows]
    exact = [x.double().requires_grad_() for x in rows]
    loss = components.called("loss", "hardness_weighted", {"class_prior": 0.2, "beta": beta})
    value = loss(queries=leaves[0], keys=leaves[1], temperature=temperature, **NO_TEXTS)
    logs = [log_of_negatives(*exact, i, temperature, beta=beta, prior=0.2) for i in range(pairs)]
    expected = torch.stack([torch.logaddexp(v, torch.zeros_like(v)) for v in logs]).mean()
    near = 1e-9 if dtype == torch.float64 else 2e-6 / temperature
    torch.testing.assert_close(value.double(), expected, rtol=near, atol=near)
    value.backward()
    expected.backward()
    for leaf, x in zip(leaves, exact, strict=True):
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()
        if dtype == torch.float64:
            torch.testing.assert_close(leaf.grad, x.grad, rtol=1e-7, atol=1e-7 / temperature)
