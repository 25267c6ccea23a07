"""What a loss call asks for, and what a loss of anchors is: value and weights as functions of the streamed row sums."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from dataclasses import dataclass, field, fields
from functools import partial
from typing import TYPE_CHECKING, Literal, overload

import torch
from torch import Tensor

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.config.json_values import JsonObject

QUERIES, KEYS, HARD = 0, 1, 2
"""Sides of a pair. Rows of HARD are flattened, pair-major: [b H, D]."""

MASKED_LOGIT = -1e30
"""Logit of what is not a negative. Finite, so that 0 times it is 0 where 0 * -inf would be NaN."""


@dataclass(frozen=True)
class RowSums:
    """What is known of every anchor of the global batch, all float64. A row is an anchor of one direction."""

    v: Tensor
    """[directions, B]: logsumexp over the negatives of l_ij - l_ii, in logits; -inf for an anchor without negatives."""
    positive: Tensor
    """[B]: l_ii, the margin taken off."""
    streamed: Tensor
    """[directions, B]: the value that was accumulated over tiles, for `textbook` and sigmoid losses; else 0."""
    bias: float
    dtype: torch.dtype
    """Of the features' sums: float32, or float64 for float64 features."""

    @property
    def has_negatives(self) -> Tensor:
        """[directions, B], 1.0 or 0.0."""
        return (self.v != -torch.inf).double()


@dataclass(frozen=True)
class RowLoss:
    """A loss of each anchor of which the gradient is a weighted sum of grad l_ij: tiled, exact for every W.

    The gradient of the mean is 1/B sum_i (weight_i sum_j q_ij grad l_ij - weight'_i grad l_ii), q the softmax over the
    negatives (softmax) or the sigmoid of each logit (sigmoid).
    """

    value: Callable[[RowSums], Tensor]
    """-> [directions, B] float64."""

    weights: Callable[[RowSums], Tensor]
    """-> [2, directions, B] float64: of the negatives and of the positive. With `matched` [2, 2, directions, B]."""

    normaliser: Literal["softmax", "sigmoid"] = "softmax"

    learns_bias: bool = False
    """Whether a bias is added to every logit."""

    same_side: bool = True
    """Whether anchors may see their own side."""

    textbook: bool = False
    """Whether cross entropy is accumulated with the positive among the exponentials."""

    matched: bool = False
    """Whether the gradient by the first weights is scaled, per batch, to the norm of that by the second. The backward
    pass then meets the other ranks."""

    reference: Callable[[Tensor], Tensor] | None = None
    """v -> a value whose derivative is the weight, for the gradient check; None where `value` is one."""

    normalised = True


OfRows = Callable[..., Tensor]
"""A function of v [n] and options that gives [n]."""


class SoftmaxLoss:
    """A loss of the softmax family, named in a job: options -> `RowLoss`."""

    normalised = True

    def __init__(self, value: OfRows, weight: OfRows | None) -> None:
        functools.update_wrapper(self, value)
        self._value, self._weight = value, weight

    def __call__(self, v: Tensor, **options: object) -> Tensor:
        """Compute the value of rows, as the function says."""
        return self._value(v, **options)

    def row_loss(self, **options: object) -> RowLoss:
        """Build the loss with these options."""
        value = partial(self._value, **options)
        weight = partial(self._weight, **options) if self._weight is not None else partial(_derivative, value)
        return RowLoss(
            value=lambda sums: _where_defined(value, sums.v),
            weights=lambda sums: _where_defined(weight, sums.v).expand(2, *sums.v.shape),
            reference=value if self._weight is None else lambda v: weight(v.detach()) * v,
        )


@overload
def softmax_loss(value: OfRows) -> SoftmaxLoss: ...
@overload
def softmax_loss(*, weight: OfRows) -> Callable[[OfRows], SoftmaxLoss]: ...
def softmax_loss(
    value: OfRows | None = None, *, weight: OfRows | None = None
) -> SoftmaxLoss | Callable[[OfRows], SoftmaxLoss]:
    """Make a loss of a function of v, the logsumexp over an anchor's negatives minus the positive's logit.

    value(v, **options): v float64 [n] -> [n], differentiable. An anchor without negatives counts 0 and is not passed.
    weight: what grad v is multiplied by, where that is not the derivative of the value (FlatNCE). Everything that the
    softmax losses have comes with it: tiles, hard negatives, masks of duplicates, both directions, a margin.
    """
    if value is None:
        return lambda function: SoftmaxLoss(function, weight)
    return SoftmaxLoss(value, weight)


def _where_defined(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    """Apply the function to the rows that have negatives, and give 0 for all others."""
    some = v != -torch.inf
    rows = v[some]
    values = function(rows)
    if not isinstance(values, Tensor) or values.shape != rows.shape:
        given = list(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ValueError(f"a function of rows gave {given} for v {list(rows.shape)}; it gives one value for each row")
    return torch.zeros_like(v).masked_scatter(some, values.to(v.dtype))


def _derivative(function: Callable[[Tensor], Tensor], v: Tensor) -> Tensor:
    with torch.enable_grad():
        v = v.detach().requires_grad_()
        value = function(v)
        return torch.autograd.grad(value.sum(), v)[0] if v.numel() else torch.zeros_like(v)


@dataclass(frozen=True)
class LossSpec:
    """A loss as a job describes it, from the config to the kernel. Ranks must agree on all of it but `tile`."""

    name: str = "infonce"
    """A built-in, or an import path."""

    options: JsonObject = field(default_factory=dict)
    symmetric: bool = False
    same_side: bool = False
    hard_negative_weight: float = 1.0
    margin: float = 0.0
    """Cosine units."""

    bias: float = 0.0
    pool: int | None = None
    """Consecutive pairs of the global batch that share negatives; None: all."""

    exchange: str = "gather"
    tile: int | None = None

    @staticmethod
    def of(job: JobConfig) -> LossSpec:
        """Build the spec of a job's loss."""
        known = {field.name for field in fields(LossSpec)}
        given = {key: value for key, value in job.loss if key in known}
        execution = {key: value for key, value in job.execution if key in known}
        return LossSpec(**given, **execution, pool=job.batch.negatives_group or job.batch.pool)


@dataclass(frozen=True)
class LossInputs:
    """The tensors of a loss call on this rank, as given."""

    queries: Tensor
    keys: Tensor
    hard_negatives: Tensor | None = None
    pair_ids: Tensor | None = None
    key_ids: Tensor | None = None
    negative_ids: Tensor | None = None
    temperature: float | Tensor = 0.05
    bias: float | Tensor | None = None
    """In place of the spec's, where it is learned."""

    @property
    def hard(self) -> int:
        """Hard negatives of each pair, H."""
        return 0 if self.hard_negatives is None else self.hard_negatives.shape[1]


@dataclass(frozen=True)
class LossCall:
    """A checked and agreed call, without its tensors."""

    spec: LossSpec
    loss: RowLoss
    temperature: float
    bias: float
    hard: int
    """Hard negatives of each pair, H."""
    texts: int
    """Ids of each pair: of its anchor, of its key, of both, or of neither."""
    hard_ids: bool
    """Whether hard negatives have ids too."""
    pool: int | None
    """None where all pairs share negatives."""
    counts: list[int]
    """Pairs of each rank."""
    rank: int
    width: int
    dtype: torch.dtype
    """Of similarities, sums and the loss: float64 for float64 features, float32 for all others."""

    @property
    def total(self) -> int:
        """Pairs of the global batch, B."""
        return sum(self.counts)

    @property
    def start(self) -> int:
        """Global index of this rank's first pair."""
        return sum(self.counts[: self.rank])

    @property
    def log_weight(self) -> float:
        """Added to the logits of an anchor's own hard negatives."""
        return math.log(self.spec.hard_negative_weight)

    @property
    def directions(self) -> tuple[int, ...]:
        """Sides whose rows are anchors."""
        return (QUERIES, KEYS) if self.spec.symmetric else (QUERIES,)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(anchors' side, candidates' side) of every block of logits."""
        blocks = [(anchor, KEYS - anchor) for anchor in self.directions]
        if self.spec.same_side:
            blocks += [(anchor, anchor) for anchor in self.directions]
        return blocks + ([(QUERIES, HARD)] if self.hard else [])

    @property
    def softmax(self) -> bool:
        """False where terms do not share a normaliser."""
        return self.loss.normaliser == "softmax"
