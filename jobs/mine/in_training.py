"""Hard negatives that the model in training mines itself: when, and what of it a checkpoint keeps.

The search is by the weights before the step with which its epochs begin, in evaluation mode, and its result is part of
a checkpoint, as those weights are gone when a training goes on in the middle of an epoch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch

from jobs.config import JobConfig
from jobs.data import SentenceExamples
from jobs.data.sentences.pools import corpus_of
from jobs.metrics.evaluate import Encoder, evaluation_mode
from jobs.metrics.tasks.sentence import Texts
from jobs.mine import Mined, mined
from jobs.models import ContrastiveModel

if TYPE_CHECKING:
    from jobs.core.collectives import Group
    from jobs.data import Tokenizer


class Mining:
    """The searches of one job on this rank, and the newest result. Every rank makes the same calls."""

    def __init__(self, job: JobConfig, examples: object, tokenizer: Tokenizer | None) -> None:
        self._job, self._tokenizer = job, tokenizer
        self._found: Mined | None = None
        self._search = -1
        """Number of the newest search."""
        self._corpus = None
        if job.mine.negatives:
            assert isinstance(examples, SentenceExamples), "JobConfig refuses to mine of others"
            self._corpus, self._rows = corpus_of(examples.rows), len(examples)

    @property
    def found(self) -> Mined | None:
        """The newest result."""
        return self._found

    @property
    def texts(self) -> pa.ChunkedArray:
        """What is searched, in the order that the result counts in."""
        assert self._corpus is not None
        return self._corpus.texts

    def is_due(self, step: int) -> bool:
        """Return whether a search comes before this step, counted from 1."""
        return self._corpus is not None and self._number(step) != self._search

    def search(self, step: int, model: ContrastiveModel, group: Group, device: torch.device | str) -> str:
        """Mine by the model as it is. Returns a sentence on what was found."""
        job, corpus = self._job, self._corpus
        assert corpus is not None
        assert self._tokenizer is not None
        with evaluation_mode(model):
            embed = Texts(Encoder(model, job.evaluate.batch, job.evaluate.head, group, device), self._tokenizer)
            anchors, texts = (embed(column.to_pylist()).to(device) for column in (corpus.anchors, corpus.texts))
            self._found = mined(corpus, anchors, texts, job.mine, group=group)
        self._search = self._number(step)
        few = self._found.few(job.mine.negatives)
        lacking = f"; {few:,} rows have fewer than {job.mine.negatives}" if few else ""
        found, among = len(self._found.members), len(corpus.texts)
        return f"{found:,} hard negatives of {self._rows:,} rows, out of {among:,} texts{lacking}"

    def examples(self, examples: object) -> SentenceExamples:
        """Return the examples with what was mined."""
        assert isinstance(examples, SentenceExamples)
        assert self._found is not None
        assert self._corpus is not None
        return examples.with_mined(self._found.pool(self._corpus))

    def state_dict(self) -> dict[str, Any]:
        """Return what a training goes on with; empty before the first search."""
        if self._found is None:
            return {}
        members, ends = (torch.from_numpy(np.asarray(part)) for part in (self._found.members, self._found.ends))
        return {"search": self._search, "members": members, "ends": ends}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with what `state_dict` gave."""
        self._search = int(state["search"])
        self._found = Mined(state["members"].numpy(), state["ends"].numpy())

    def _number(self, step: int) -> int:
        """Return the number of the newest search before this step: by the epoch that the step's first pair is of."""
        every = self._job.mine.every_epochs
        return (step - 1) * self._job.batch.size // self._rows // every if every else 0
