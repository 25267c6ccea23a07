"""A user's module of components, as it would stand outside the package: what the open doors are tried with."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from pydantic import BaseModel, Field
from torch import Tensor, nn

from jobs.losses import softmax_loss
from jobs.metrics import Outcomes, by_row


@softmax_loss
def focal(v: Tensor, *, gamma: float = 2.0) -> Tensor:
    """InfoNCE of each row, times (1 - p) to the power of gamma."""
    return F.softplus(v) * torch.sigmoid(v) ** gamma


@softmax_loss(weight=torch.ones_like)
def flat(v: Tensor) -> Tensor:
    """FlatNCE, written outside."""
    return F.softplus(v)


def vicreg(
    queries: Tensor, keys: Tensor, *, invariance: float = 25.0, variance: float = 25.0, covariance: float = 1.0
) -> Tensor:
    """VICReg (Bardes et al. 2022, arXiv:2105.04906): covariances over the batch, which no row sum expresses."""
    total = invariance * F.mse_loss(queries, keys)
    for side in (queries, keys):
        centred = side - side.mean(0)
        spread = (centred.square().mean(0) + 1e-4).sqrt()
        square = (centred.T @ centred / (len(side) - 1)).square()
        total = total + variance * F.relu(1 - spread).mean()
        total = total + covariance * (square.sum() - square.diagonal().sum()) / side.shape[1]
    return total


vicreg.normalised = False  # type: ignore[attr-defined]


class Centred(nn.Module):
    """A loss with a parameter and a state: cosines to a moving mean of the keys, sharpened by a learned scale."""

    def __init__(self, width: int = 8, momentum: float = 0.9) -> None:
        super().__init__()
        self.momentum = momentum
        self.scale = nn.Parameter(torch.randn(width))
        self.register_buffer("mean", torch.zeros(width))
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))
        self.mean: Tensor
        self.calls: Tensor

    def forward(self, queries: Tensor, keys: Tensor, temperature: float | Tensor, rows: Tensor, step: int) -> Tensor:
        """A scalar of the whole batch."""
        with torch.no_grad():
            self.calls += 1
            self.mean.mul_(self.momentum).add_(keys.mean(0), alpha=1 - self.momentum)
        logits = (queries * self.scale) @ (keys - self.mean).T / temperature
        weight = 1 + (rows % 3).to(logits.dtype) / step
        return (weight * F.cross_entropy(logits, torch.arange(len(logits)), reduction="none")).mean()


def everything(
    queries: Tensor,
    keys: Tensor,
    negatives: Tensor | None,
    ids: Tensor | None,
    key_ids: Tensor | None,
    negative_ids: Tensor | None,
    rows: Tensor,
    temperature: float | Tensor,
    step: int,
    *,
    noise: float = 0.1,
) -> Tensor:
    """Uses all that there is, and random numbers."""
    logits = queries @ keys.T / temperature
    if ids is not None:
        logits = logits.masked_fill((ids[:, None] == ids) & ~torch.eye(len(ids), dtype=torch.bool), -1e9)
    if negatives is not None:
        logits = torch.cat([logits, queries @ negatives.flatten(0, 1).T / temperature], 1)
    logits = logits + noise * torch.rand(logits.shape[1], dtype=logits.dtype) * step
    return F.cross_entropy(logits, torch.arange(len(rows))) + logits.var()


class Bounds(BaseModel, extra="forbid"):
    """Options that are checked by a model of their own."""

    low: float = Field(0.1, gt=0)
    high: float = 0.9


def banded(queries: Tensor, keys: Tensor, **options: Any) -> Tensor:
    """Cosines that leave a band."""
    cosine = (queries * keys).sum(1)
    return F.relu(options["low"] - cosine).mean() + F.relu(cosine - options["high"]).mean()


banded.Options = Bounds  # type: ignore[attr-defined]


class Inner(BaseModel):
    """Within options."""

    scale: float = 2.0


class Nested(BaseModel):
    """Options that are no plain JSON once they are read."""

    weights: tuple[float, float] = (1.0, 0.5)
    inner: Inner = Inner()


def nested(queries: Tensor, keys: Tensor, *, weights: tuple[float, float], inner: Inner) -> Tensor:
    """Uses a tuple and a model."""
    return inner.scale * (weights[0] * (queries - keys).square().mean() - weights[1] * (queries @ keys.T).var())


nested.Options = Nested  # type: ignore[attr-defined]


def scored(queries: Tensor, keys: Tensor, scores: Tensor) -> Tensor:
    """Needs what images do not have."""
    return F.mse_loss((queries * keys).sum(1), scores)


def two_numbers(queries: Tensor, keys: Tensor) -> Tensor:
    """No scalar."""
    return (queries * keys).sum(1)


def detached(queries: Tensor, keys: Tensor) -> Tensor:
    """Without a gradient."""
    return (queries * keys).sum().detach()


# Optimizers, schedules, transforms


def staircase(passed: float, *, stairs: int = 3) -> float:
    """Down in equal steps."""
    return 1 - int(passed * stairs) / stairs


class Dropped:
    """A gradient transform with a state: each element is dropped by a key of (seed, step), and counted."""

    def __init__(self, *, p: float = 0.3) -> None:
        self.p, self.calls = p, 0

    def __call__(self, parameters: dict[str, nn.Parameter], step: int, seed: int) -> None:
        """The same on every rank."""
        self.calls += 1
        for number, parameter in enumerate(parameters.values()):
            if parameter.grad is not None:
                draw = torch.Generator().manual_seed(seed * 1_000_003 + step * 1009 + number)
                kept = torch.rand(parameter.shape, generator=draw, dtype=torch.float64) >= self.p
                parameter.grad.mul_(kept.to(parameter.grad) * (1 + 0.01 * self.calls))

    def state_dict(self) -> dict[str, Tensor]:
        """How often it was called."""
        return {"calls": torch.tensor(self.calls)}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Go on."""
        self.calls = int(state["calls"])


class SignDescent(torch.optim.Optimizer):
    """The sign of a moving average, as Lion's and Tiger's."""

    def __init__(self, params: Any, lr: float, *, beta: float = 0.9) -> None:
        super().__init__(params, {"lr": lr})
        self.beta = beta

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]  # noqa: ARG002
        """One step."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    mean = self.state[parameter].setdefault("mean", torch.zeros_like(parameter))
                    mean.mul_(self.beta).add_(parameter.grad, alpha=1 - self.beta)
                    parameter.add_(mean.sign() + group["weight_decay"] * parameter, alpha=-group["lr"])


def no_optimizer(params: Any, lr: float) -> str:
    """None."""
    return "none"


# Views, samplers, encoders, metrics


def noisy(images: Tensor, *, seed: int, step: int, pairs: Tensor, view: int, strength: float = 0.1) -> Tensor:
    """Noise that is keyed by pair."""
    noise = [
        torch.rand(images.shape[1:], generator=torch.Generator().manual_seed(seed + 7 * step + 1013 * int(pair) + view))
        for pair in pairs
    ]
    return (images + strength * torch.stack(noise)).clamp(0, 1) if noise else images


def brightest(images: Tensor) -> Tensor:
    """Depends on its neighbours, which no view may."""
    return images / images.max()


def unkeyed(images: Tensor) -> Tensor:
    """Draws from the global generator, which no view may."""
    return images * torch.rand(len(images), 1, 1, 1)


def in_order(rows: int, size: int, step: int) -> Any:
    """Rows as they come."""
    return (torch.arange((step - 1) * size, step * size) % rows).numpy()


def beyond(rows: int, size: int) -> Any:
    """Rows that are not there."""
    return [rows] * size


class Flat(nn.Module):
    """Two layers of all pixels, as a feature map of one pixel."""

    def __init__(self, image_shape: tuple[int, int, int], *, width: int = 12, dropout: float = 0.0) -> None:
        super().__init__()
        self.width = width
        pixels = image_shape[0] * image_shape[1] * image_shape[2]
        self.layers = nn.Sequential(
            nn.Flatten(), nn.Linear(pixels, width), nn.ReLU(), nn.Dropout(dropout), nn.Linear(width, width)
        )

    def forward(self, pixel_values: Tensor) -> Tensor:
        """[n, width, 1, 1]."""
        hidden: Tensor = self.layers(pixel_values)
        return hidden[:, :, None, None]


class States:
    """As transformers name what they give."""

    def __init__(self, last_hidden_state: Tensor) -> None:
        self.last_hidden_state = last_hidden_state


class Bag(nn.Module):
    """A table of token embeddings."""

    def __init__(self, vocabulary: int, *, width: int = 12) -> None:
        super().__init__()
        self.width = width
        self.table = nn.Embedding(vocabulary, width)
        self.dropout = nn.Dropout(0.1)

    def forward(self, input_ids: Tensor, attention_mask: Tensor, output_hidden_states: bool = False) -> States:  # noqa: ARG002
        """[n, L, width]."""
        return States(self.dropout(self.table(input_ids)))


def nearest_share(queries: Tensor, query_labels: Any, *, k: int = 1) -> Tensor:
    """For each query, how many of its nearest k have its label."""
    unit = F.normalize(queries, dim=-1)
    near = (unit @ unit.T).fill_diagonal_(-2).topk(k).indices
    labels = torch.as_tensor(query_labels)
    return (labels[near] == labels[:, None]).double().mean(1)


def spread_of_norms(queries: Tensor) -> float:
    """A number, of which nothing is kept by row."""
    return float(queries.norm(dim=1).std())


def norm_ratio(queries: Tensor) -> Outcomes:
    """How much of the norms' sum is the first feature's: no mean over rows."""
    return by_row(lambda first, whole: first.sum() / whole.sum(), first=queries[:, 0].abs(), whole=queries.norm(dim=1))


def halves(queries: Tensor) -> Outcomes:
    """Wrong: what it is computed of is not one number for each row."""
    return by_row(lambda x: x.mean(), x=queries[: len(queries) // 2, 0])


def brittle(queries: Tensor) -> Outcomes:
    """Wrong: it fails where a row is left out."""
    rows = len(queries)

    def combine(x: Any) -> float:
        if len(x) < rows:
            raise LookupError("a row is missing")
        return float(x.mean())

    return by_row(combine, x=queries[:, 0])


def score_gap(left: Tensor, right: Tensor, scores: Any) -> float:
    """A number of sentences."""
    cosine = F.cosine_similarity(left.double(), right.double())
    return float((cosine * torch.as_tensor(scores - scores.mean())).mean())


def matrix(queries: Tensor) -> Tensor:
    """No metric."""
    return queries


def reversed_words(tokens: Tensor, mask: Tensor, words: Tensor, *, pairs: Tensor, view: int) -> Tensor:
    """Tokens of every other view from the last to the first, special ones left where they are."""
    free = words >= 0
    places = torch.arange(tokens.shape[1]).expand_as(tokens)
    first, last = free.long().argmax(1, keepdim=True), free.long().cumsum(1).argmax(1, keepdim=True)
    turned = tokens.gather(1, torch.where(free, first + last - places, places))
    return torch.where(((pairs + view) % 2 == 1)[:, None], turned, tokens)


def of_the_longest(tokens: Tensor, mask: Tensor) -> Tensor:
    """Depends on how long other rows are."""
    return torch.where((mask > 0) & (torch.arange(tokens.shape[1]) > 0), tokens + tokens.shape[1], tokens)


def unit_rows(training: Tensor) -> Callable[[Tensor], Tensor]:
    """After training: rows of length 1 around the mean, which no linear map gives."""
    mean = training.mean(0)
    return lambda rows: F.normalize(rows - mean, dim=-1)


def by_what_is_judged(training: Tensor) -> Callable[[Tensor], Tensor]:
    """After training: a fault, as the mean is that of the rows that are judged."""
    return lambda rows: rows - rows.mean(0)


def nan_at(queries: Tensor, keys: Tensor, step: int, *, at: int = 3, times: int = 1) -> Tensor:
    """InfoNCE that is not a number at some steps."""
    value = F.cross_entropy(queries @ keys.T / 0.1, torch.arange(len(queries)))
    return value * float("nan") if at <= step < at + times else value
