"""Losses of a whole batch again, apart from jobs/losses/builtin: numpy in float64, pair by pair, no gradient."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from itertools import product

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Given:
    """What a loss is called with; rows are unit rows where it takes such."""

    queries: Array
    keys: Array
    negatives: Array | None
    ids: list[int] | None
    key_ids: list[int] | None
    negative_ids: list[list[int]] | None
    scores: list[float]
    rows: list[int]
    temperature: float
    step: int
    guide_queries: Array | None = None
    guide_keys: Array | None = None
    guide_negatives: Array | None = None

    def guided(self) -> Given:
        """The same batch as the guide sees it."""
        assert self.guide_queries is not None
        assert self.guide_keys is not None
        return replace(self, queries=self.guide_queries, keys=self.guide_keys, negatives=self.guide_negatives)

    def texts(self, pair: int) -> set[object]:
        """What a pair says."""
        said: set[object] = {ids[pair] for ids in (self.ids, self.key_ids) if ids is not None}
        return said or {f"pair {pair}"}

    def candidates(self, pair: int) -> list[Array]:
        """The negatives of an anchor, one by one."""
        found = [self.keys[j] for j in range(len(self.keys)) if j != pair and not self.texts(pair) & self.texts(j)]
        if self.negatives is not None:
            for j, h in product(range(len(self.negatives)), range(self.negatives.shape[1])):
                if self.negative_ids is None or self.negative_ids[j][h] not in self.texts(pair):
                    found.append(self.negatives[j, h])
        return found


def _infonce(positive: float, negatives: list[float]) -> float:
    return math.log(1 + sum(math.exp(x - positive) for x in negatives))


def hardness_weighted(
    given: Given, beta: float = 1.0, class_prior: float = 0.0, *, fixed: Given | None = None
) -> float:
    """Robinson et al. 2021. fixed: whose similarities the weights are of, which take no gradient."""
    total, tau = 0.0, given.temperature
    for i, query in enumerate(given.queries):
        similar = [float(query @ other) for other in given.candidates(i)]
        if not similar:
            continue
        positive, n = float(query @ given.keys[i]), len(similar)
        weighed = fixed or given
        hard = [math.exp(beta * float(weighed.queries[i] @ other)) for other in weighed.candidates(i)]
        weights = [n * h / sum(hard) for h in hard]
        away = sum(w * math.exp(s / tau) for w, s in zip(weights, similar, strict=True))
        if class_prior:
            away = (away - class_prior * n * math.exp(positive / tau)) / (1 - class_prior)
            away = max(away, n * math.exp(-1 / tau))
        total += math.log(1 + away / math.exp(positive / tau))
    return total / len(given.queries)


def debiased(given: Given, class_prior: float = 0.1, *, fixed: Given | None = None) -> float:
    """Chuang et al. 2020."""
    return hardness_weighted(given, beta=0.0, class_prior=class_prior)


def false_negatives(
    given: Given, rule: str = "margin", margin: float = 0.0, share: float = 0.95, *, fixed: Given | None = None
) -> float:
    """InfoNCE without what is nearer than the positive. fixed: by whose similarities."""
    total, by = 0.0, fixed or given
    for i, query in enumerate(given.queries):
        positive = float(query @ given.keys[i])
        bound = float(by.queries[i] @ by.keys[i])
        most = bound + margin if rule == "margin" else share * bound
        both = zip(given.candidates(i), by.candidates(i), strict=True)
        similar = [float(query @ other) for other, seen in both if float(by.queries[i] @ seen) <= most]
        total += _infonce(positive / given.temperature, [s / given.temperature for s in similar])
    return total / len(given.queries)


def gist(given: Given, rule: str = "margin", margin: float = 0.0, share: float = 0.95, own_side: bool = True) -> float:
    """Solatorio 2024, candidate by candidate; the guide has no gradient."""
    total, guide = 0.0, given.guided()
    for i, query in enumerate(given.queries):
        bound = float(guide.queries[i] @ guide.keys[i])
        most = bound + margin if rule == "margin" else share * bound
        both = zip(given.candidates(i), guide.candidates(i), strict=True)
        similar = [float(query @ other) for other, seen in both if float(guide.queries[i] @ seen) <= most]
        others = [j for j in range(len(given.keys)) if j != i and not given.texts(i) & given.texts(j)]
        for side, of_guide in ((given.queries, guide.queries), (given.keys, guide.keys)) if own_side else ():
            similar += [float(side[i] @ side[j]) for j in others if float(of_guide[i] @ of_guide[j]) <= most]
        positive = float(query @ given.keys[i]) / given.temperature
        total += _infonce(positive, [s / given.temperature for s in similar])
    return total / len(given.queries)


def distillation(given: Given, own_side: bool = False) -> float:
    """Su 2021, cosine by cosine."""
    guide = given.guided()

    def rows(of: Given) -> tuple[list[Array], list[Array]]:
        behind = [] if of.negatives is None else [*of.negatives.reshape(-1, of.negatives.shape[-1])]
        every = [*of.queries, *of.keys, *behind]
        return (every, every) if own_side else ([*of.queries], [*of.keys, *behind])

    pairs = zip(product(*rows(given)), product(*rows(guide)), strict=True)
    return float(np.mean([(float(x @ y) - float(a @ b)) ** 2 for (x, y), (a, b) in pairs]))


def vicreg(given: Given, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0) -> float:
    """Bardes et al. 2022: numpy's own covariances."""
    width = given.queries.shape[1]
    total = invariance * float(np.mean((given.queries - given.keys) ** 2))
    for side in (given.queries, given.keys):
        matrix = np.cov(side, rowvar=False)
        total += variance / 2 * float(np.mean([max(0.0, 1 - math.sqrt(matrix[d, d] + 1e-4)) for d in range(width)]))
        total += covariance / width * sum(matrix[d, e] ** 2 for d, e in product(range(width), repeat=2) if d != e)
    return float(total)


def barlow_twins(given: Given, off_diagonal: float = 5e-3) -> float:
    """Zbontar et al. 2021, a correlation at a time."""
    total, width = 0.0, given.queries.shape[1]
    for d, e in product(range(width), repeat=2):
        x, y = given.queries[:, d], given.keys[:, e]
        spread = math.sqrt(np.var(x) + 1e-5) * math.sqrt(np.var(y) + 1e-5)
        c = float(np.mean((x - x.mean()) * (y - y.mean()))) / spread
        total += (1 - c) ** 2 if d == e else off_diagonal * c**2
    return total


def _ranking(similar: list[float], given: Given) -> float:
    pairs = product(range(len(similar)), repeat=2)
    higher = [(i, k) for i, k in pairs if given.scores[i] > given.scores[k]]
    return math.log(1 + sum(math.exp((similar[k] - similar[i]) / given.temperature) for i, k in higher))


def cosent(given: Given) -> float:
    """Su 2022."""
    return _ranking([float(x @ y) for x, y in zip(given.queries, given.keys, strict=True)], given)


def angle(given: Given, angles: float = 1.0, cosines: float = 1.0) -> float:
    """Li and Li 2023, in complex numbers: of unit rows the quotient has the modulus of the product with a conjugate."""
    half = (given.queries.shape[1] + 1) // 2
    similar = []
    for x, y in zip(given.queries, given.keys, strict=True):
        a, b = (np.pad(side, (0, 2 * half - len(side))) for side in (x, y))
        turned = sum(complex(a[d], a[half + d]) * complex(b[d], -b[half + d]) for d in range(half))
        similar.append(abs(turned.real + turned.imag))
    return angles * _ranking(similar, given) + cosines * cosent(given)


def cosine_labels(given: Given, form: str = "zero", highest: float = 1.0) -> float:
    """Su 2021."""
    total = 0.0
    for x, y, score in zip(given.queries, given.keys, given.scores, strict=True):
        c, t = float(x @ y), score / highest
        alike = max(0.9 - c, 0.0) if form == "bands" else (c - 1) ** 2
        apart = {"zero": c**2, "opposite": (c + 1) ** 2, "bands": max(c - 0.1, 0.0)}[form]
        total += t * alike + (1 - t) * apart
    return total / len(given.scores)


def matryoshka(given: Given, dims: tuple[int, ...], weights: tuple[float, ...] = (), loss: str = "infonce") -> float:
    """Kusupati et al. 2022: once for each d, on unit rows of d columns."""
    total = 0.0
    for number, d in enumerate(dims):

        def cut(rows: Array | None, d: int = d) -> Array | None:
            return None if rows is None else rows[..., :d] / np.linalg.norm(rows[..., :d], axis=-1, keepdims=True)

        queries, keys = cut(given.queries), cut(given.keys)
        assert queries is not None
        assert keys is not None
        part = replace(given, queries=queries, keys=keys, negatives=cut(given.negatives))
        of_d = 0.0
        for i, query in enumerate(part.queries):
            others = [
                math.exp(float(query @ other - query @ part.keys[i]) / part.temperature) for other in part.candidates(i)
            ]
            if others:
                of_d += math.log(sum(others) + (loss == "infonce"))
        total += (weights[number] if weights else 1.0) * of_d / len(given.queries)
    return total


def pair_classifier(given: Given, weight: Array) -> float:
    """Softmax regression, class by class. weight [classes, 3 D]."""
    total = 0.0
    for x, y, label in zip(given.queries, given.keys, given.scores, strict=True):
        logits = weight @ np.concatenate([x, y, np.abs(x - y)])
        total += math.log(sum(math.exp(logit - logits[int(label)]) for logit in logits))
    return total / len(given.scores)


class Sogclr:
    """Yuan et al. 2022, u itself and not its logarithm, row by row."""

    def __init__(self, gamma: float, symmetric: bool) -> None:
        self.gamma, self.symmetric = gamma, symmetric
        self.u: dict[tuple[int, int], float] = {}

    def step(self, given: Given) -> tuple[float, Array, Array]:
        """Value of the next step, and its gradient in queries and keys."""
        sides = [given]
        if self.symmetric:
            sides.append(
                replace(
                    given, queries=given.keys, keys=given.queries, ids=given.key_ids, key_ids=given.ids, negatives=None
                )
            )
        value, gradients = 0.0, [np.zeros_like(given.queries), np.zeros_like(given.keys)]
        for side, part in enumerate(sides):
            mine, its = gradients[side], gradients[1 - side]
            g = {i: self._g(part, i) for i in range(len(part.queries)) if part.candidates(i)}
            for row in {part.rows[i] for i in g}:
                mean = float(np.mean([g[i] for i in g if part.rows[i] == row]))
                before = self.u.get((side, row))
                self.u[side, row] = mean if before is None else (1 - self.gamma) * before + self.gamma * mean
            for i in g:
                u = self.u[side, part.rows[i]]
                value += math.log(u)
                self._add_gradient(part, i, 1 / u, mine, its)
        scale = len(sides) * len(given.queries)
        return value / scale, gradients[0] / scale, gradients[1] / scale

    @staticmethod
    def _g(part: Given, i: int) -> float:
        query, positive = part.queries[i], part.queries[i] @ part.keys[i]
        return float(np.mean([math.exp((query @ other - positive) / part.temperature) for other in part.candidates(i)]))

    @staticmethod
    def _add_gradient(part: Given, i: int, weight: float, mine: Array, its: Array) -> None:
        query, own = part.queries[i], part.keys[i]
        others = [j for j in range(len(part.keys)) if j != i and not part.texts(i) & part.texts(j)]
        for j in others:
            other = part.keys[j]
            term = weight * math.exp(float(query @ other - query @ own) / part.temperature) / len(others)
            mine[i] += term * (other - own) / part.temperature
            its[j] += term * query / part.temperature
            its[i] -= term * query / part.temperature


class Queue:
    """He et al. 2020: a list of keys, oldest first, with what each says."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.kept: list[tuple[Array, int, set[object]]] = []

    def step(self, given: Given, momentum_keys: Array) -> float:
        """Value of the next step."""
        total = 0.0
        for i, query in enumerate(given.queries):
            others = given.candidates(i)
            others += [key for key, row, said in self.kept if row != given.rows[i] and not said & given.texts(i)]
            if others:
                positive = query @ given.keys[i]
                total += math.log(1 + sum(math.exp((query @ x - positive) / given.temperature) for x in others))
        for j, key in enumerate(momentum_keys):
            self.kept.append((key, given.rows[j], given.texts(j)))
        self.kept = self.kept[-self.size :]
        return total / len(given.queries)


class Triangle:
    """Su 2021: distances and a margin, pair by pair."""

    def __init__(self, margin: float | None = None, share: float = 1.0, every: int = 100) -> None:
        self.fixed, self.share, self.every = margin is not None, share, every
        self.margin = margin or 0.0

    def step(self, given: Given) -> float:
        """Value of a step; the margin is that of its pairs where it is due."""

        def distance(x: Array, y: Array) -> float:
            return math.sqrt(max(1 - float(x @ y), 0.0))

        own = [distance(x, y) for x, y in zip(given.queries, given.keys, strict=True)]
        if not self.fixed and given.step % self.every == 1 % self.every:
            self.margin = self.share * sum(own) / len(own)
        total = 0.0
        for i, query in enumerate(given.queries):
            away = [
                (own[i] + self.margin - distance(query, other)) / given.temperature for other in given.candidates(i)
            ]
            total += math.log(1 + sum(map(math.exp, away)))
        return total / len(own)


ORACLES: dict[str, Callable[..., float]] = {
    function.__name__: function
    for function in (
        hardness_weighted, debiased, false_negatives, vicreg, barlow_twins, cosent, angle, cosine_labels, matryoshka,
        gist, distillation,
    )
}  # fmt: skip
"""By the name of the loss."""
