"""Two ways of the articles to compute what options of ours say: rows of both views in one list, and accumulation in
two steps."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_generic import PAIRS, chunks_of
from test_step import sentence_job
from torch import Tensor

from jobs.losses import contrastive_loss
from jobs.models import build, dropout_keys
from jobs.train.step import StepContext, consecutive, exact_gradients

Array = NDArray[np.float64]

TAU = 0.05


class Vocabulary:
    pad_token_id = 0

    def __len__(self) -> int:
        return 50


def self_pairs(rows: Array, tau: float = TAU) -> tuple[float, Array, Array]:
    """SimCSE as it is written for one list of rows, of which 2i and 2i + 1 are one sentence: cross entropy of each row
    over all others. Returns the mean, its gradient, and rows h~ of which <h, h~> has that gradient."""
    n = len(rows)
    labels = [i + 1 - 2 * (i % 2) for i in range(n)]
    similarity = (rows @ rows.T - 1e12 * np.eye(n)) / tau
    weights = np.exp(similarity - similarity.max(1, keepdims=True))
    p = weights / weights.sum(1, keepdims=True)
    value = -np.log(p[np.arange(n), labels]).mean()
    t = np.eye(n)[labels]
    turned = (p + p.T - 2 * t) @ rows
    return float(value), turned / (tau * n), turned


OURS: dict[str, Any] = {"temperature": TAU, "symmetric": True, "same_side": True}


@settings(max_examples=40)
@given(st.integers(0, 2**32 - 1), st.integers(2, 12), st.sampled_from([1, 2, 5, 32]))
def test_self_pairs_in_one_list_are_both_directions_with_the_own_side(seed: int, pairs: int, width: int) -> None:
    """Value and gradient in float64. Mutant check: without the own side, or in one direction, it is another loss."""
    rows = np.random.default_rng(seed).normal(size=(2 * pairs, width))
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    value, gradient, _ = self_pairs(rows)
    leaf = torch.tensor(rows, requires_grad=True)
    ours, _ = contrastive_loss(leaf[0::2], leaf[1::2], **OURS)
    assert float(ours.detach()) == pytest.approx(value, rel=1e-12, abs=1e-12)
    ours.backward()
    assert leaf.grad is not None
    # Differences of rows in units of the temperature.
    np.testing.assert_allclose(leaf.grad.numpy(), gradient, rtol=1e-12, atol=1e-12 / TAU)
    if width > 2 and pairs > 2:
        other, _ = contrastive_loss(leaf[0::2], leaf[1::2], temperature=TAU, symmetric=True)
        assert float(other.detach()) != pytest.approx(value, rel=1e-6)


def numbered(chunk: Any) -> tuple[dict[str, Tensor], Tensor]:
    """A micro-batch as one list, rows 2i and 2i + 1 of one pair, with what dropout knows each row by."""
    longest = max(x.shape[1] for x in (chunk.views.queries["input_ids"], chunk.views.keys["input_ids"]))
    sides = [
        {name: torch.nn.functional.pad(x, (0, longest - x.shape[1])) for name, x in side.items()}
        for side in (chunk.views.queries, chunk.views.keys)
    ]
    rows = {name: torch.stack([side[name] for side in sides], 1).flatten(0, 1) for name in sides[0]}
    return rows, (2 * chunk.pairs[:, None] + torch.arange(2)).flatten()


def test_accumulation_in_two_steps_has_our_gradient_and_a_value_that_is_no_loss() -> None:
    """Of a real encoder with dropout: the batch is encoded without a graph, and then <h, h~> is descended a micro-batch
    at a time. What it descends is another number than the loss; what we show is the loss."""
    job = sentence_job(0.1)

    def model() -> Any:
        return build(job, tokenizer=Vocabulary())

    def encoded(encoder: Any, cut: range) -> Tensor:
        inputs, numbers = numbered(chunks_of([cut], hard=False)[0])
        with dropout_keys(seed=3, step=5, rows=numbers):
            rows: Tensor = encoder.embed(inputs)
        return rows

    two_steps, cuts = model(), consecutive(range(PAIRS), 5)
    with torch.no_grad():
        whole = encoded(two_steps, range(PAIRS))
    value, _, turned = self_pairs(whole.numpy())
    shown = 0.0
    for cut in cuts:
        rows = encoded(two_steps, cut)
        product = (rows * torch.from_numpy(turned)[2 * cut.start : 2 * cut.stop]).sum() / (TAU * 2 * PAIRS)
        product.backward()
        shown += float(product.detach())

    ours = model()

    def loss(queries: Tensor, keys: Tensor, _negatives: Tensor | None) -> Any:
        return contrastive_loss(queries, keys, **OURS)

    result = exact_gradients(ours, chunks_of(cuts, hard=False), StepContext(3, 5), loss=loss)
    gradients = [
        torch.cat([p.grad.flatten() for name, p in sorted(of.named_parameters()) if p.grad is not None])
        for of in (two_steps, ours)
    ]
    assert float((gradients[0] - gradients[1]).norm() / gradients[1].norm()) < 1e-12
    assert result.loss == pytest.approx(value, rel=1e-12)
    assert shown != pytest.approx(value, rel=1e-3)
