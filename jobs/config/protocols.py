"""What each kind of component is called with, and what it gives: one Protocol or more for each kind.

A component takes by name what its signature has of the arguments here, a loss of rows and a loop by place; all other
arguments are its options. Their names
alone are read, by jobs/config/components.py, so nothing here imports torch when it runs. `job` and `config` are the
job's jobs.config.JobConfig, `settings` its section of the component's kind.

B rows of the global batch, c of a part of it (a micro-batch, or a few rows that are tried), n of any number of rows;
D width of embeddings, H hard negatives of a row, L tokens, R references, Q queries.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import ArrayLike, NDArray
    from torch import Tensor, nn


class LossOfRows(Protocol):
    """A loss of each anchor, declared by `jobs.losses.softmax_loss`, which gives it tiles, masks and hard negatives."""

    def __call__(self, v: Tensor) -> Tensor:
        """Give the loss of each anchor, [n]. v [n]: logsumexp over its negatives minus the logit of its positive."""


class Loss(Protocol):
    """A loss of the global batch: a function, or a class of nn.Module that is built with its options and, where it asks
    for them, `embedding_width`, that of queries and keys, and `data_rows`, how many rows data.train has."""

    def __call__(
        self,
        *,
        queries: Tensor,
        keys: Tensor,
        negatives: Tensor | None,
        ids: Tensor | None,
        key_ids: Tensor | None,
        negative_ids: Tensor | None,
        scores: Tensor,
        momentum_keys: Tensor,
        guide_queries: Tensor,
        guide_keys: Tensor,
        guide_negatives: Tensor | None,
        rows: Tensor,
        temperature: float | Tensor,
        step: int,
    ) -> Tensor:
        """Give a scalar. queries, keys [B, D]; negatives [B, H, D]; ids, key_ids, rows int64 [B]; negative_ids int64
        [B, H]; scores [B] of labelled pairs, an error where there are none; momentum_keys [B, D], the keys by a copy of
        the model that follows it by the `momentum` of the class that asks for them; guide_queries, guide_keys [B, Dg]
        and guide_negatives [B, H, Dg], unit rows of the frozen encoder `loss.guide`, an error without one; step from 1.
        Queries and keys are unit rows unless function or class says `normalised = False`."""


class Encoder(Protocol):
    """A class of nn.Module, or a function that returns one."""

    def __call__(
        self,
        *,
        job: object,
        image_shape: tuple[int, int, int] | None,
        vocabulary: int | None,
        inputs: Mapping[str, Tensor] | None,
    ) -> nn.Module:
        """Build a module with `width`, or a `config` with `hidden_size`, which is called as transformers' are and gives
        [n, width], [n, width, h, w] or an object with `last_hidden_state` [n, L, width]. image_shape: channels, height,
        width. vocabulary: number of token ids. inputs: two rows as it will take them, by name."""


class Pooling(Protocol):
    """A function of states, or a class of nn.Module that is built with `width` and called with the rest."""

    def __call__(self, *, states: Tensor, mask: Tensor, first: Tensor, before_last: Tensor, width: int) -> Tensor:
        """Give [n, width]. states [n, L, width] of the last layer, first of the first one, before_last of the one
        before the last; mask [n, L], 1 where a state counts."""


class Augmentation(Protocol):
    """Random views of images, a function of (seed, step, pair, view) alone."""

    def __call__(self, *, images: Tensor, settings: object, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
        """Give float32 of the shape of `images` [c, C, H, W], in [0, 1]. pairs int64 [c]: places in the global batch;
        view: 0 or 1. No image's view may depend on another image."""


class SentenceAugmentation(Protocol):
    """Random views of sentences as rows of tokens, a function of (seed, step, pair, view) alone."""

    def __call__(
        self,
        *,
        tokens: Tensor,
        mask: Tensor,
        words: Tensor,
        mask_token: int | None,
        settings: object,
        seed: int,
        step: int,
        pairs: Tensor,
        view: int,
    ) -> Tensor | tuple[Tensor, Tensor]:
        """Give tokens, or tokens and mask, of any common length. tokens int64 [c, L]; mask [c, L], 1 where a token
        stands; words int64 [c, L], the number of each token's word in its row, from 0, and -1 for special tokens, a
        prompt and padding, which stay as they are; mask_token: id, None where the tokenizer has none; pairs int64 [c]:
        places in the global batch; view: 0 or 1. No row's view may depend on another row, nor on its padding."""


class Sampler(Protocol):
    """The rows of each global batch, a function of the step alone."""

    def __call__(
        self,
        *,
        rows: int,
        size: int,
        seed: int,
        step: int,
        ids: NDArray[np.int64],
        sources: NDArray[np.int64],
        labels: NDArray[np.int64],
    ) -> NDArray[np.int64]:
        """Give int64 [size], numbers below `rows`. step from 1. Of all rows, and the same arrays in every step: ids
        int64 [rows, k], of what a row says on either side, equal where it is the same text or image; sources and labels
        int64 [rows], equal where rows are of one source or label, -1 where a row has none."""


class MakeOptimizer(Protocol):
    """An optimizer, such as any class of torch.optim."""

    def __call__(
        self, *, params: Iterable[Mapping[str, object]], lr: float, settings: object, model: nn.Module
    ) -> torch.optim.Optimizer:
        """Build it. params: groups with `params` and `weight_decay`, which is no option and not passed by itself; with
        `lr_scale` where layers have rates of their own. model: whose parameters they are, for who treats them by their
        names or modules."""


class Schedule(Protocol):
    """A learning-rate schedule."""

    def __call__(self, passed: float) -> float:
        """Give the share of the peak rate. passed: from 0 to 1 after the warm-up."""


class Transform(Protocol):
    """A gradient transform: a class that is built with its options. With `state_dict` and `load_state_dict` its state
    is checkpointed. It may have two more methods: `prepare`, a PrepareTransform, and `after`, an AfterStep."""

    def __call__(self, *, parameters: Mapping[str, nn.Parameter], step: int, seed: int) -> None:
        """Change `grad` in place, after the sum over ranks and the clipping, on every rank alike."""


class PrepareTransform(Protocol):
    """What a gradient transform does before the first step: `prepare`. Rank 0 calls it, and the other ranks get its
    state, so a transform that has this has `state_dict` and `load_state_dict`, too."""

    def __call__(
        self,
        *,
        parameters: Mapping[str, nn.Parameter],
        gradients: Callable[[int, int], Iterable[Mapping[str, Tensor]]],
        settings: object,
        seed: int,
    ) -> None:
        """Look at gradients at the first weights. gradients(step, pairs): by name, of each group of so many consecutive
        pairs of that step's global batch, as if it were a batch of its own; one group after the other, without a rest
        that is smaller. They know of neither ranks nor micro-batches. settings: the section `optimizer`."""


class AfterStep(Protocol):
    """What a gradient transform does once the optimizer has made its step: `after`. A transform without one, or with
    None in its place, costs no copy of the weights."""

    def __call__(
        self, *, parameters: Mapping[str, nn.Parameter], before: Mapping[str, Tensor], step: int, seed: int
    ) -> None:
        """Change parameters in place, on every rank alike. before: what they were before the step."""


class After(Protocol):
    """What is done to embeddings after training: fitted on rows of data.train, applied to whatever is judged."""

    def __call__(self, *, training: Tensor, seed: int) -> Callable[[Tensor], Tensor]:
        """Fit to float64 `training` [N, D], and give a function of float64 rows [n, D] -> [n, k], each row by itself.
        seed: the job's. What it gives is exported too where it is an nn.Linear."""


class ByRow(Protocol):
    """What `jobs.metrics.by_row` makes of columns: a metric that is no mean over rows."""

    @property
    def value(self) -> float:
        """The metric."""


class ImageMetric(Protocol):
    """A metric of embeddings with labels."""

    def __call__(
        self,
        *,
        references: Tensor,
        reference_labels: NDArray[np.generic],
        queries: Tensor,
        query_labels: NDArray[np.generic],
        settings: object,
    ) -> float | ArrayLike | ByRow:
        """Give a number, or one for each query, or `by_row` of columns [Q]. references [R, D] with labels [R], queries
        [Q, D] with labels [Q]."""


class SentenceMetric(Protocol):
    """A metric of pairs of embeddings with scores."""

    def __call__(
        self,
        *,
        left: Tensor,
        right: Tensor,
        scores: NDArray[np.generic],
        halves: NDArray[np.int64],
        settings: object,
    ) -> float | ArrayLike | ByRow:
        """Give a number, or one for each pair, or `by_row` of columns [n]. left, right [n, D]; scores [n], which
        translations have none of; halves [n], 0 or 1 by a hash of the row's id, for what is chosen on other rows."""


class RankingMetric(Protocol):
    """A metric of what a search finds for each query."""

    def __call__(
        self,
        *,
        gains: NDArray[np.float64],
        ideal: NDArray[np.float64],
        relevant: NDArray[np.int64],
        settings: object,
    ) -> float | ArrayLike | ByRow:
        """Give a number, or one for each query, or `by_row` of columns [Q]. gains [Q, K]: what people gave the K
        documents that are found, best first, 0 where they said nothing; ideal [Q, K], the highest that they gave for
        the query; relevant [Q], how many documents they gave more than 0."""


class EmbeddingsMetric(Protocol):
    """A metric of embeddings by themselves."""

    def __call__(self, *, embeddings: Tensor, settings: object) -> float | ByRow:
        """Give a number. embeddings [n, D]: of all rows that judge, of pairs the left ones before the right ones."""


class EncodeRows(Protocol):
    """What judges ask for embeddings: the same on every rank and for every number of ranks."""

    def __call__(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Encode rows [n, ...], as views are: [n, D] on the CPU."""


class Parts(Protocol):
    """A task by its parts: a class that is built with its options, and with `job` if it asks for it."""

    def rows(self, source: str) -> object:
        """Read a source: an Arrow table, an array, a tensor, a list of rows, a tuple or mapping of columns, or any
        object with a length that is indexed by an array of numbers."""

    def views(self, rows: object, seed: int, step: int, pairs: Tensor, view: int) -> Tensor | Mapping[str, Tensor]:
        """Make what an encoder takes of rows: view 0 are the queries, [c, ...], and view 1 their keys; of a class with
        `hard_negatives = H` view 2 are those, [c * H, ...], all of pair 0 first. What is random is a function of seed,
        step, pairs (int64 [c], places in the batch) and view."""

    def evaluate(self, encode: EncodeRows, rows: object) -> Mapping[str, float | ArrayLike | ByRow]:
        """Judge an encoder on rows: a number, or one for each row, or `by_row` of columns, by the name of the metric.
        It takes by name also `references`, the rows of data.train."""


class MakeJudge(Protocol):
    """A class of judges, which is built with its options, and with `job` if it asks for it."""

    def __call__(self, *, job: object) -> Judge:
        """Build a judge."""


class Judge(Protocol):
    """What a source that judges holds, and what an encoder is asked about it. It may have more methods, those of
    JudgeBeside."""

    def read(self, source: str) -> object:
        """Read a source of data.tune or data.confirm: whatever `evaluate` takes. Raises jobs.data.DataError."""

    def evaluate(
        self, encode: EncodeTexts | EncodeRows, rows: object, *, final: bool
    ) -> Mapping[str, float | ArrayLike | ByRow]:
        """Judge an encoder on what `read` gave: a number, or one for each row, or `by_row` of columns, by the name of
        the metric. encode: of sentences an EncodeTexts, of images an EncodeRows. final: before the first step and at
        the end of a training, where there is time for more."""


class JudgeBeside(Protocol):
    """What a judge may have beside a Judge's methods."""

    def row_ids(self, rows: object) -> object:
        """Tell apart the rows that outcomes are of: a jobs.core.outcomes.RowIds. Without it the columns `id` and
        `group` of a table or a mapping do, or else the rows are numbered."""

    def sources(self, source: str) -> Sequence[str]:
        """Name the sources of rows that a source is made of, by whose files data are known to have changed. Without it
        it is one itself."""

    def tables(self, source: str) -> Sequence[object]:
        """Read the tables that a source is made of, each a jobs.data.sources.Rows, whose values are hashed; first the
        one that may share no row with data.train. Without it a source is one table."""

    def check(self, source: str) -> Iterable[str]:
        """Warn of what is odd about a source. Raises jobs.data.DataError."""


class EncodeTexts(Protocol):
    """What judges ask for embeddings of sentences: the same on every rank and for every number of ranks."""

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Encode texts: [n, D] on the CPU."""


class Loop(Protocol):
    """A training loop of the user's own, which runs on every rank. context: jobs.train.function.Context."""

    def __call__(self, config: object, context: object) -> None:
        """Train, and report metrics."""


def arguments(*protocols: type) -> tuple[str, ...]:
    """Name what components of these kinds are called with."""
    signatures = (inspect.signature(protocol.__call__) for protocol in protocols)
    return tuple(dict.fromkeys(name for signature in signatures for name in list(signature.parameters)[1:]))
