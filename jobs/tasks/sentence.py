"""Sentences: alone, in pairs, or in pairs with hard negatives; scored pairs judge an encoder, by rank correlation."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np

from jobs.config import JobConfig
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.batches import Inputs
from jobs.data.sentences import (
    SentenceExamples,
    beside,
    cells,
    scored,
    sentence_examples,
    sentence_rows,
    tokenizer_for,
)
from jobs.data.sentences.duplicates import repeats
from jobs.data.sentences.scored import SentenceEvaluation, sentence_evaluation
from jobs.data.sentences.tokens import tokenised
from jobs.data.sources import row_ids
from jobs.data.tasks import Encode
from jobs.models.pretrained.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor


class SentenceTask:
    """Rows of texts. tokenizer: None for the job's."""

    def __init__(self, job: JobConfig, tokenizer: Tokenizer | None = None) -> None:
        self._job, self._given = job, tokenizer

    @functools.cached_property
    def tokenizer(self) -> Tokenizer:
        """The tokenizer of the job's encoder."""
        return tokenizer_for(self._job) if self._given is None else self._given

    def examples(self) -> SentenceExamples:
        """Read the sentences to train on."""
        return sentence_examples(self._job, self.tokenizer)

    def judged(self) -> SentenceEvaluation:
        """Read the scored pairs of the stage."""
        return sentence_evaluation(str(self._job.eval_split), self._job.data.judged_columns)

    def row_ids(self, judged: SentenceEvaluation) -> RowIds:  # noqa: ARG002 - of the same source
        """Name the scored pairs of the stage."""
        return row_ids(scored.judged_rows(str(self._job.eval_split), self._job.data.judged_columns))

    def inputs(self) -> Inputs:
        """Make two sentences of four tokens."""
        import torch

        ids = torch.ones(2, 4, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids}

    def evaluate(self, encode: Encode, judged: SentenceEvaluation, *, final: bool) -> dict[str, Outcomes]:  # noqa: ARG002
        """Measure spearman, alignment, uniformity, and the metrics of the user's own."""
        from jobs.metrics.evaluate import further_metrics, sentence_metrics

        embedded = self.encoded([*judged.left, *judged.right], encode)
        left, right = embedded[: len(judged.left)], embedded[len(judged.left) :]
        metrics = sentence_metrics(left, right, judged.score)
        scores = np.asarray(judged.score, dtype=np.float64)
        return metrics | further_metrics(self._job, metrics, left=left, right=right, scores=scores)

    def check(self) -> Iterator[str]:
        """Warn of texts that look odd, and of those that come again."""
        job = self._job
        train = sentence_rows(job)
        if job.data.columns is None:
            beside.doubts(train, known=job.data.scores)
            cells.refuse(train, train.table.column_names, "data.columns")
        yield from cells.notes(train, train.table.column_names)
        for source in filter(None, (job.data.tune, job.data.confirm)):
            rows = scored.judged_rows(source, job.data.judged_columns)
            if job.data.judged_columns is None:
                scored.doubts(rows)
            sentence_evaluation(source, job.data.judged_columns)
            if job.data.judged_columns is None:
                cells.refuse(rows, rows.table.column_names[:2], "data.judged_columns")
            yield from cells.notes(rows, rows.table.column_names[:2])
        yield from repeats(job, train)

    def encoded(self, texts: list[str], encode: Encode) -> Tensor:
        """Embed the texts, in order. Batches hold texts of similar length, so little of them is padding."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        tokenizer, reading = self.tokenizer, encode.reading
        tokens = tokenised(tokenizer, texts, max_tokens=reading.max_tokens, prompt=reading.prompt)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")

        def inputs(start: int, stop: int) -> Mapping[str, Tensor]:
            chosen = [torch.tensor(tokens[row]) for row in order[start:stop]]
            return {
                "input_ids": pad_sequence(chosen, batch_first=True, padding_value=tokenizer.pad_token_id),
                "attention_mask": pad_sequence([torch.ones_like(ids) for ids in chosen], batch_first=True),
            }

        encoded = encode.lazily(len(texts), inputs)
        return torch.empty_like(encoded).index_copy_(0, torch.from_numpy(order), encoded)


sentence = SentenceTask
