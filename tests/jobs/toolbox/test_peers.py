"""Losses of the toolbox beside those of sentence-transformers, on one process, where theirs are exact: the same value
and the same gradient of the embeddings, before they are made unit rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.losses.builtin.scored.angle import angle
from jobs.losses.builtin.scored.cosent import cosent
from jobs.losses.builtin.scored.cosine_labels import cosine_labels
from jobs.losses.builtin.weighted.gist import gist
from jobs.losses.builtin.weighted.matryoshka import matryoshka
from jobs.losses.builtin.with_state.pair_classifier import pair_classifier

TAU = 0.125

PAIRS, WIDTH, HARD = 10, 8, 2

SCORES = torch.tensor([0, 1, 1, 0, 2, 5, 3, 3, 4, 0], dtype=torch.float64)

LABELS = (SCORES > 2).double()


class Shown(nn.Module):
    """An encoder whose embeddings of each column are given."""

    device = torch.device("cpu")

    def __init__(self, *columns: Tensor) -> None:
        super().__init__()
        self.columns = columns

    def forward(self, features: dict[str, Any]) -> dict[str, Tensor]:
        return {"sentence_embedding": self.columns[features["column"]]}


def rows(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def unit(values: Tensor) -> Tensor:
    return F.normalize(values, dim=-1)


def compare(theirs: Callable[[list[Tensor]], Tensor], ours: Callable[[list[Tensor]], Tensor], columns: int) -> None:
    """Compute both on leaves of their own, and hold value and gradients against each other."""
    sides: list[tuple[Tensor, list[Tensor]]] = []
    for loss in (theirs, ours):
        leaves = [rows(column, PAIRS, WIDTH).requires_grad_() for column in range(columns)]
        value = loss(leaves)
        value.backward()
        sides.append((value.detach(), leaves))
    (their_value, their_leaves), (our_value, our_leaves) = sides
    assert float(our_value) == pytest.approx(float(their_value), rel=1e-9)
    for mine, other in zip(our_leaves, their_leaves, strict=True):
        assert mine.grad is not None
        assert other.grad is not None
        assert float(other.grad.norm()) > 1e-3
        assert float((mine.grad - other.grad).norm() / other.grad.norm()) < 1e-9


def texts(**given: Tensor | None) -> dict[str, Any]:
    return {"ids": None, "key_ids": None, "negative_ids": None} | given


@pytest.fixture(scope="module")
def losses() -> Any:
    return pytest.importorskip("sentence_transformers.sentence_transformer.losses")


def test_cosent_and_angle(losses: Any) -> None:
    peers = losses.CoSENTLoss(None, scale=1 / TAU), losses.AnglELoss(None, scale=1 / TAU)
    ranked: list[Callable[[Tensor, Tensor], Tensor]] = [
        lambda q, k: cosent(unit(q), unit(k), SCORES, TAU),
        lambda q, k: angle(unit(q), unit(k), SCORES, TAU, cosines=0.0),
    ]
    for peer, ours in zip(peers, ranked, strict=True):
        compare(
            lambda sides, peer=peer: peer.compute_loss_from_embeddings(sides, SCORES),  # type: ignore[misc]
            lambda sides, ours=ours: ours(*sides),  # type: ignore[misc]
            2,
        )


def test_labels_as_cosines(losses: Any) -> None:
    peer = losses.CosineSimilarityLoss(None)
    compare(
        lambda sides: peer.compute_loss_from_embeddings(sides, LABELS),
        lambda sides: cosine_labels(unit(sides[0]), unit(sides[1]), LABELS),
        2,
    )


def test_a_classifier_of_pairs(losses: Any) -> None:
    """Theirs has a bias, which ours has not."""

    def theirs(sides: list[Tensor]) -> Tensor:
        peer = losses.SoftmaxLoss(Shown(*sides), WIDTH, num_labels=2).double()
        with torch.no_grad():
            peer.classifier.weight.copy_(weight)
            peer.classifier.bias.zero_()
        return torch.as_tensor(peer([{"column": 0}, {"column": 1}], LABELS.long()))

    def ours(sides: list[Tensor]) -> Tensor:
        module = pair_classifier(WIDTH).double()
        with torch.no_grad():
            module.linear.weight.copy_(weight)
        value: Tensor = module(sides[0], sides[1], LABELS)
        return value

    weight = rows(9, 2, 3 * WIDTH)
    compare(theirs, ours, 2)


@pytest.mark.parametrize(("strategy", "margin"), [("absolute", 0.1), ("relative", 0.05), ("absolute", 0.0)])
def test_what_a_guide_takes_for_positives(losses: Any, strategy: str, margin: float) -> None:
    """Their margin is subtracted from the positive's similarity, ours is added to it. The relative rule is compared
    with a guide of positive pairs that are near, as theirs takes the size of the similarity."""
    guide = rows(20, PAIRS, WIDTH)
    guides = [guide + (0.0 if column == 0 else 0.8) * rows(20 + column, PAIRS, WIDTH) for column in range(3)]
    assert bool(((unit(guides[0]) * unit(guides[1])).sum(1) > 0).all())

    def theirs(sides: list[Tensor]) -> Tensor:
        peer = losses.GISTEmbedLoss.__new__(losses.GISTEmbedLoss)
        nn.Module.__init__(peer)  # its own asks for two tokenizers
        peer.model, peer.guide = Shown(*sides), Shown(*guides)
        peer.temperature, peer.similarity_fct, peer.must_retokenize = TAU, nn.CosineSimilarity(dim=-1), False
        peer.margin_strategy, peer.margin, peer.gather_across_devices = strategy, margin, False
        peer.contrast_anchors = peer.contrast_positives = True
        peer.cross_entropy_loss = nn.CrossEntropyLoss()
        return torch.as_tensor(peer([{"column": 0}, {"column": 1}, {"column": 2}], None))

    def ours(sides: list[Tensor]) -> Tensor:
        queries, keys, negatives = map(unit, sides)
        guide_queries, guide_keys, guide_negatives = map(unit, guides)
        rule: dict[str, Any] = {"rule": "margin", "margin": -margin}
        if strategy == "relative":
            rule = {"rule": "share", "share": 1 - margin}
        # Theirs takes every third text for everybody's negative; ours numbers it by its pair.
        return gist(
            queries=queries, keys=keys, negatives=negatives[:, None], guide_queries=guide_queries,
            guide_keys=guide_keys, guide_negatives=guide_negatives[:, None], temperature=TAU, **texts(), **rule,
        )  # fmt: skip

    compare(theirs, ours, 3)


def test_the_first_columns(losses: Any) -> None:
    dims, weights = [8, 4, 2], [1.0, 0.5, 2.0]

    def theirs(sides: list[Tensor]) -> Tensor:
        model = Shown(*sides)
        inner = losses.MultipleNegativesRankingLoss(model, scale=1 / TAU)
        model.get_embedding_dimension = lambda: WIDTH  # type: ignore[assignment]
        peer = losses.MatryoshkaLoss(model, inner, matryoshka_dims=dims, matryoshka_weights=weights)
        return torch.as_tensor(peer([{"column": column} for column in range(1 + HARD)], None))

    def ours(sides: list[Tensor]) -> Tensor:
        return matryoshka(
            queries=sides[0], keys=sides[1], negatives=torch.stack(sides[2:], 1), temperature=TAU, dims=tuple(dims),
            weights=tuple(weights), **texts(),
        )  # fmt: skip

    compare(theirs, ours, 1 + HARD)
