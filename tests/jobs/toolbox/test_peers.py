"""Losses and metrics of the toolbox beside those of sentence-transformers, on one process, where theirs are exact: the
same value and the same gradient of the embeddings, before they are made unit rows; the same metrics of embeddings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from judges import Table
from torch import Tensor, nn

from jobs.config import JobConfig
from jobs.core.outcomes import numbers
from jobs.data.sentences.judged import bitext, labelled_pairs
from jobs.data.sentences.retrieval import Retrieval
from jobs.data.sentences.scored import sentence_evaluation
from jobs.data.tasks.judging import judge_of
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


# What judges


class Lookup(nn.Module):
    """An encoder of sentence-transformers that gives each text the embedding it has in a table."""

    def __init__(self, rows: Mapping[str, Any]) -> None:
        super().__init__()
        self.places = {text: place for place, text in enumerate(rows)}
        self.table = nn.Parameter(torch.tensor(np.array([*rows.values()]), dtype=torch.float32), requires_grad=False)

    def preprocess(self, texts: Sequence[str], **_: Any) -> dict[str, Tensor]:
        """Places in the table."""
        return {"input_ids": torch.tensor([[self.places[text]] for text in texts])}

    def forward(self, features: dict[str, Tensor], **_: Any) -> dict[str, Tensor]:
        """Rows of the table."""
        return features | {"sentence_embedding": self.table[features["input_ids"][:, 0]]}


@pytest.fixture(scope="module")
def table() -> dict[str, Any]:
    """Embeddings of 240 texts: of every pair the second is near the first, more or less."""
    random = np.random.default_rng(5)
    left = random.normal(size=(120, 12)).astype(np.float32)
    near = left + random.uniform(0.3, 2.5, size=(120, 1)) * random.normal(size=(120, 12))
    rows = [*left, *near.astype(np.float32)]
    return {f"{side} {at}": rows[at + 120 * (side == "right")] for side in ("left", "right") for at in range(120)}


def measured(judge: str, table: Mapping[str, Any], rows: Any, **options: Any) -> dict[str, float]:
    given = {"judge": judge, "judge_options": options}
    job = JobConfig.model_validate(
        {"task": "sentence", "budget": {"steps": 1}, "data": {"train": "x", "confirm": "y"}, "evaluate": given}
    )
    return numbers(judge_of(job).evaluate(Table(table), rows, final=False))


def test_metrics_are_those_of_sentence_transformers_on_the_same_embeddings(
    losses: Any, table: dict[str, Any], tmp_path: Path
) -> None:
    """Correlations, retrieval, translations and average precision, to 1e-6. Their best accuracy and F1 are by
    thresholds that are chosen on the same pairs, so that ours are no higher."""
    del losses  # is there
    from sentence_transformers import SentenceTransformer, util
    from sentence_transformers.sentence_transformer import evaluation as peers

    model, random = SentenceTransformer(modules=[Lookup(table)], device="cpu"), np.random.default_rng(6)
    left, right = ([f"{side} {at}" for at in range(120)] for side in ("left", "right"))
    scores, same = random.uniform(0, 5, 120), random.integers(0, 2, 120)
    lines = [f"{a},{b},{score},{label}" for a, b, score, label in zip(left, right, scores, same, strict=True)]
    (tmp_path / "pairs.csv").write_text("\n".join(["sentence1,sentence2,score,same", *lines]))
    source = str(tmp_path / "pairs.csv")
    near = partial(pytest.approx, abs=1e-6)

    ours = measured("sts", table, sentence_evaluation(source, ("sentence1", "sentence2", "score")))
    theirs = peers.EmbeddingSimilarityEvaluator(left, right, scores.tolist(), write_csv=False)(model)
    assert ours["spearman"] == near(theirs["spearman_cosine"])
    assert ours["pearson"] == near(theirs["pearson_cosine"])

    pairs = labelled_pairs(source, ("sentence1", "sentence2", "same"))
    ours = measured("pairs", table, pairs)
    theirs = peers.BinaryClassificationEvaluator(left, right, same.tolist(), write_csv=False)(model)
    assert ours["average_precision"] == near(theirs["cosine_ap"])
    assert ours["pair_accuracy"] <= theirs["cosine_accuracy"]
    assert ours["pair_f1"] <= theirs["cosine_f1"]

    ours = measured("bitext", table, bitext(source, ("sentence1", "sentence2")))
    theirs = peers.TranslationEvaluator(left, right, write_csv=False)(model)
    assert 0.1 < ours["accuracy"] < 0.9
    assert ours["accuracy"] == near(theirs["mean_accuracy"])
    assert ours["accuracy_forward"] == near(theirs["src2trg_accuracy"])
    assert ours["accuracy_backward"] == near(theirs["trg2src_accuracy"])

    judged = [(q, int(d)) for q in range(30) for d in {q, *random.integers(0, 120, 3).tolist()}]
    queries: dict[str, Any] = {f"q{at}": text for at, text in enumerate(left[:30])}
    documents: dict[str, Any] = {f"d{at}": text for at, text in enumerate(right)}
    rows = Retrieval(
        [*queries], [*queries.values()], [*documents], [*documents.values()],
        np.array([q for q, _ in judged]), np.array([d for _, d in judged]), np.ones(len(judged), dtype=np.int64), (),
    )  # fmt: skip
    relevant: dict[str, set[str]] = {}
    for q, d in judged:
        relevant.setdefault(f"q{q}", set()).add(f"d{d}")
    evaluator = peers.InformationRetrievalEvaluator(
        queries, documents, relevant, write_csv=False, score_functions={"cos": util.cos_sim},
        precision_recall_at_k=[1, 10, 100],
    )  # fmt: skip
    ours, theirs = measured("retrieval", table, rows), evaluator(model)
    assert 0.1 < ours["ndcg_at_10"] < 0.9
    for name in ("ndcg_at_10", "mrr_at_10", "recall_at_1", "recall_at_10", "recall_at_100", "map_at_100"):
        assert ours[name] == near(theirs[f"cos_{name.replace('_at_', '@')}"]), name
