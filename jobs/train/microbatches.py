"""A rank's share of every global batch, cut into micro-batches that are encoded together."""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray

from jobs import data
from jobs.config import JobConfig
from jobs.train.step import MicroBatch, consecutive, share, within_tokens


class Batches:
    """The global batches of one job, as rank `rank` of `world` computes with them.

    It reads the data of the rank's own pairs, and of no others; only `micro_batch` reads what it is asked for.
    """

    def __init__(self, examples: data.Examples, job: JobConfig, *, rank: int, world: int) -> None:
        self._examples, self._job, self._rank, self._world = examples, job, rank, world

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the data rows of the global batch of optimizer step `step` = 1, 2, ..."""
        job = self._job
        return data.batch_rows(
            len(self._examples), size=job.batch.size, seed=job.seed, step=step, job=job, facts=self._examples.facts
        )

    def spans(self, rows: NDArray[np.int64], step: int = 1) -> list[range]:
        """Cut this rank's pairs of the batch of a step into micro-batches, as positions in the batch."""
        mine = share(len(rows), rank=self._rank, world=self._world)
        budget = self._job.execution.micro_tokens
        if budget is None:
            return consecutive(mine, self._job.execution.micro)
        assert isinstance(self._examples, data.SentenceExamples), "JobConfig refuses micro_tokens of others"
        lengths = self._examples.lengths(rows[mine.start : mine.stop], self.draw(step, mine)).tolist()
        return within_tokens(mine, lengths, sentences=2 + self._examples.hard_negatives, budget=budget)

    def draw(self, step: int, pairs: range) -> data.Draw:
        """Return by what texts are drawn for some pairs of the batch."""
        return data.Draw(self._job.seed, step, np.arange(pairs.start, pairs.stop))

    def ids(self, step: int, rows: NDArray[np.int64], pairs: range, *, masks: bool) -> data.Ids | None:
        """Return what some pairs of the batch say, by their positions in it; without `masks` only which of their hard
        negatives are not there, and None where all are."""
        if not masks and not self._examples.lacks_some:
            return None
        ids = self._examples.ids(rows[pairs.start : pairs.stop], self.draw(step, pairs))
        return ids if masks else ids.apart(pairs.start)

    def micro_batch(self, step: int, rows: NDArray[np.int64], pairs: range) -> MicroBatch:
        """Return the views of some pairs of the batch, by their positions in it."""
        places = np.arange(pairs.start, pairs.stop)
        views = self._examples.views(rows[places], seed=self._job.seed, step=step, pairs=places)
        return MicroBatch(views, torch.from_numpy(places))

    def largest(self, step: int) -> int:
        """Return the size of the step's largest micro-batch on this rank, in pairs; for sentences, in pairs times the
        tokens of its longest sentence."""
        rows = self.rows(step)
        spans = self.spans(rows, step)
        if isinstance(self._examples, data.SentenceExamples):
            first, mine = spans[0].start, range(spans[0].start, spans[-1].stop)
            lengths = self._examples.lengths(rows[first : mine.stop], self.draw(step, mine))
            longest = [int(lengths[span.start - first : span.stop - first].max(initial=0)) for span in spans]
            return max(len(span) * tokens for span, tokens in zip(spans, longest, strict=True))
        return max(map(len, spans))
