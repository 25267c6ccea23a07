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
    logs = [log_of_negatives(exact[0], exact[1], i, temperature, beta=beta, prior=0.2) for i in range(pairs)]
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


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("pairs", [2, 3, 5, 8, 13])
def test_what_is_embedded_alike_is_no_nearer_than_the_positive(pairs: int, dtype: torch.dtype) -> None:
    """Texts that differ in case alone, or beyond the longest that is read, and keys of them that are told apart by
    their ids. Seen: a dot product of rows and an entry of a matrix product differ in the last bit, and all negatives of
    an anchor, or none, were left out."""
    draw = units(pairs, pairs, 17).to(dtype)
    alike = draw[:1].expand(pairs, -1).clone()
    ids = torch.arange(pairs)
    texts = {"negatives": None, "ids": ids, "key_ids": ids + 100, "negative_ids": None}
    own = components.called("loss", "false_negatives", {})
    value = own(queries=draw[1:2].expand(pairs, -1).clone(), keys=alike, temperature=0.05, **texts)
    assert float(value) == pytest.approx(math.log(pairs), rel=1e-4)
    guided = components.called("loss", "gist", {"own_side": False})
    value = guided(
        queries=draw[:1].expand(pairs, -1), keys=draw[:1].expand(pairs, -1), guide_queries=draw, temperature=0.05,
        guide_keys=alike, guide_negatives=None, **texts,
    )  # fmt: skip
    assert float(value) == pytest.approx(math.log(pairs), rel=1e-4)


@pytest.mark.parametrize(("rule", "bound"), [("margin", 0.3), ("share", 0.5)])
def test_a_candidate_above_the_bound_is_left_out_and_one_below_is_not(rule: str, bound: float) -> None:
    """By a hundred times what rounding is taken to be."""
    positive = torch.tensor([0.6, 0.8], dtype=torch.float64)
    most = 0.6 + bound if rule == "margin" else 0.6 * bound
    for nearer in (True, False):
        cosine = most + (2e-10 if nearer else -2e-10)
        keys = torch.stack([positive, torch.tensor([cosine, math.sqrt(1 - cosine**2)], dtype=torch.float64)])
        queries = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64)
        loss = components.called("loss", "false_negatives", {"rule": rule, rule: bound})
        value = loss(queries=queries, keys=keys, temperature=0.1, **NO_TEXTS)
        of_first = 0.0 if nearer else math.log1p(math.exp((cosine - 0.6) / 0.1))
        second = float(keys[1, 1]), 0.8
        is_left = second[1] <= (second[0] + bound if rule == "margin" else second[0] * bound)
        of_second = math.log1p(math.exp((second[1] - second[0]) / 0.1)) if is_left else 0.0
        assert float(value) == pytest.approx((of_first + of_second) / 2, rel=1e-9)
