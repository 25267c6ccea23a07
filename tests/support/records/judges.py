"""Oracles of the judges and metrics that are built in: each from its definition, in float64, by plain loops or by
another package; and a corpus that is small enough to be searched by hand."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytrec_eval
import torch
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

Floats = NDArray[np.float64]


class Table:
    """Embeddings of texts that are given, whatever they say."""

    group, device = None, "cpu"

    def __init__(self, rows: Mapping[str, Sequence[float]]) -> None:
        self.rows = rows

    def __call__(self, texts: Sequence[str]) -> torch.Tensor:
        """The row of each text."""
        return torch.tensor([list(self.rows[text]) for text in texts], dtype=torch.float64)


def unit(rows: Floats) -> Floats:
    """Rows of length 1; of zeros, zeros."""
    lengths: Floats = np.linalg.norm(rows, axis=-1, keepdims=True)
    return np.divide(rows, lengths, out=np.zeros_like(rows), where=lengths > 0)


def trec(
    scores: Mapping[str, Mapping[str, float]], qrels: Mapping[str, Mapping[str, int]], at: Mapping[str, Sequence[int]]
) -> dict[str, dict[str, float]]:
    """The numbers of trec_eval by query: of the run that these scores are, for metrics as the retrieval judge calls
    them. Its reciprocal rank knows no cut, so the run is cut."""
    names = {"ndcg": "ndcg_cut", "recall": "recall", "map": "map_cut"}
    asked = {f"{names[name]}.{','.join(map(str, counts))}" for name, counts in at.items() if name in names}
    run = {query: dict(found) for query, found in scores.items()}
    given = {query: dict(own) for query, own in qrels.items()}
    by_query = pytrec_eval.RelevanceEvaluator(given, asked).evaluate(run)
    answer: dict[str, dict[str, float]] = {}
    for name, counts in at.items():
        for count in counts:
            if name in names:
                column = f"{names[name]}_{count}"
                answer[f"{name}_at_{count}"] = {query: own[column] for query, own in by_query.items()}
            else:
                cut = {query: dict(_first(found, count)) for query, found in run.items()}
                ranked = pytrec_eval.RelevanceEvaluator(given, {"recip_rank"}).evaluate(cut)
                answer[f"mrr_at_{count}"] = {query: own["recip_rank"] for query, own in ranked.items()}
    return answer


def _first(found: Mapping[str, float], count: int) -> list[tuple[str, float]]:
    return sorted(found.items(), key=lambda each: (np.float32(each[1]), each[0]), reverse=True)[:count]


def cosine(left: Floats, right: Floats) -> Floats:
    """Of pairs, without what rounding leaves."""
    return np.array([round(float(a @ b), 12) for a, b in zip(unit(left), unit(right), strict=True)])


def pearson(left: Floats, right: Floats, scores: Floats) -> float:
    """By numpy."""
    return float(np.corrcoef((unit(left) * unit(right)).sum(1), scores)[0, 1])


def average_precision(left: Floats, right: Floats, labels: Floats) -> float:
    """By scikit-learn."""
    return float(average_precision_score(labels, cosine(left, right)))


def thresholds(cosine: Floats) -> list[float]:
    """Every place to cut between cosines."""
    values = sorted(set(cosine.tolist()))
    return [-math.inf, *((a + b) / 2 for a, b in itertools.pairwise(values)), math.inf]


def told_by_other_half(cosine: Floats, same: NDArray[np.bool_], halves: NDArray[np.int64], goodness: Any) -> list[bool]:
    """What is said of each pair by the lowest of the thresholds that are best for the other half."""
    says = [False] * len(same)
    for half in (0, 1):
        other = halves != half
        best = max(thresholds(cosine[other]), key=lambda cut: (goodness(cosine[other] >= cut, same[other]), -cut))
        for row in np.flatnonzero(halves == half):
            says[row] = bool(cosine[row] >= best)
    return says


def accuracy(says: NDArray[np.bool_], same: NDArray[np.bool_]) -> float:
    """The share that is right, as a count, so that equal ones are equal."""
    return int((says == same).sum())


def f1(says: NDArray[np.bool_], same: NDArray[np.bool_]) -> float:
    """From precision and recall."""
    hits = int((says & same).sum())
    return 0.0 if not hits else 2 * hits / int(says.sum() + same.sum())


def places(left: Floats, right: Floats) -> list[int]:
    """At which place each translation is found, from 1."""
    found = []
    for row, own in enumerate(unit(left)):
        scores = [round(float(own @ other), 12) for other in unit(right)]
        order = sorted(range(len(scores)), key=lambda at: (-scores[at], at))
        found.append(1 + order.index(row))
    return found


def largest_eigenvalue_share(rows: Floats) -> float:
    """By a singular value decomposition."""
    spread = unit(rows) - unit(rows).mean(0)
    variances = np.linalg.svd(spread, compute_uv=False) ** 2
    return float(variances[0] / variances.sum())


def random_pair_cosine(rows: Floats) -> float:
    """Over every pair."""
    own = unit(rows)
    return float(np.mean([own[a] @ own[b] for a in range(len(own)) for b in range(a)]))


def v_measure(labels: Sequence[Any], clusters: Sequence[Any]) -> float:
    """From entropies of counts."""
    pairs = list(zip(labels, clusters, strict=True))

    def entropy(values: Sequence[Any]) -> float:
        counts = np.unique([str(value) for value in values], return_counts=True)[1] / len(values)
        return float(-(counts * np.log(counts)).sum())

    joint, of_labels, of_clusters = entropy(pairs), entropy(labels), entropy(clusters)
    homogeneity = 1 - (joint - of_clusters) / of_labels if of_labels else 1.0
    completeness = 1 - (joint - of_labels) / of_clusters if of_clusters else 1.0
    total = homogeneity + completeness
    return 2 * homogeneity * completeness / total if total else 0.0


# A corpus

CORPUS = {
    "d1": ("Sparrows", "small brown birds of fields and towns"),
    "d2": ("Swifts", "birds that sleep in the air"),
    "d3": ("", "a loaf of bread rises in a warm oven"),
    "d4": ("Ovens", "heat for bread and for pots"),
    "d5": ("Rivers", "water that runs from hills to the sea"),
    "d6": ("", "small boats on a slow river"),
    "d7": ("Swifts", "birds that sleep in the air"),
    "q3": ("", "how do rivers run"),
}

QUERIES = {
    "q1": "which birds sleep in the air",
    "q2": "how does bread rise",
    "q3": "how do rivers run",
    "q4": "what is nobody asking",
    "q5": "small things",
}

QRELS = {
    "test": {"q1": {"d2": 2, "d7": 1, "d1": 0}, "q2": {"d3": 2, "d4": 1}, "q3": {"d5": 2, "d6": 1, "q3": 1}},
    "dev": {"q2": {"d3": 1}, "q5": {"d1": 1, "d6": 1, "d5": -1}},
}


def beir(folder: Path) -> Path:
    """The corpus as BEIR has it."""
    (folder / "qrels").mkdir(parents=True)
    corpus = [{"_id": name, "title": title, "text": text} for name, (title, text) in CORPUS.items()]
    (folder / "corpus.jsonl").write_text("".join(json.dumps(row) + "\n" for row in corpus))
    queries = [{"_id": name, "text": text, "metadata": {}} for name, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("".join(json.dumps(row) + "\n" for row in queries))
    for split, qrels in QRELS.items():
        lines = [f"{query}\t{document}\t{rel}" for query, own in qrels.items() for document, rel in own.items()]
        (folder / "qrels" / f"{split}.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return folder
