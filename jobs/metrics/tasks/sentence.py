"""Sentences: alone, in pairs, or in pairs with hard negatives; scored pairs judge an encoder, unless `evaluate.judge`
says otherwise."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from jobs.config import JobConfig, components
from jobs.config.components import is_import_path
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.batches import Inputs
from jobs.data.faults import DataError, counted
from jobs.data.sentences import (
    SentenceExamples,
    beside,
    cells,
    sentence_examples,
    sentence_rows,
    tokenizer_for,
)
from jobs.data.sentences.duplicates import repeats
from jobs.data.sentences.pools import corpus_of, first_texts, pool_of
from jobs.data.sentences.scored import train_scores
from jobs.data.sentences.tokens import known_tokens
from jobs.data.sources import Rows
from jobs.data.tasks.judging import Encode, Judge, checks, judge_of
from jobs.models.pretrained.tokenizer import Tokenizer

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
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

    @functools.cached_property
    def _judge(self) -> Judge:
        return judge_of(self._job)

    def judged(self) -> object:
        """Read what judges the stage."""
        return self._judge.read(self._job.eval_split)

    def row_ids(self, judged: object) -> RowIds:
        """Name the rows that judge the stage."""
        return self._judge.row_ids(judged)

    def inputs(self) -> Inputs:
        """Make two sentences of four tokens."""
        import torch

        ids = torch.ones(2, 4, dtype=torch.int64)
        return {"input_ids": ids, "attention_mask": ids}

    def evaluate(self, encode: Encode, judged: object, *, final: bool) -> dict[str, Outcomes]:
        """Have the judge measure."""
        return self._judge.evaluate(Texts(encode, self.tokenizer), judged, final=final)

    def training(self, encode: Encode, rows: int) -> Tensor:
        """Encode anchors and then positives of the first rows of data.train; of a list of positives the first."""
        columns = first_texts(sentence_rows(self._job)).table.slice(0, rows).columns[:2]
        return Texts(encode, self.tokenizer)([text for column in columns for text in column.to_pylist()])

    def check(self) -> Iterator[str]:
        """Warn of texts that look odd, and of those that come again."""
        job = self._job
        train = sentence_rows(job)
        texts = first_texts(train)
        if job.data.columns is None:
            beside.doubts(train, known=job.data.scores, grouping=(job.data.source, job.data.label))
            cells.refuse(texts, texts.table.column_names, "data.columns")
        yield from cells.notes(texts, texts.table.column_names)
        yield from self._lacking(train)
        if job.augments_tokens:
            self._try_views()
        yield from checks(job)
        if job.trains:
            self._look_at_scores()
            yield from repeats(job, train)

    def _look_at_scores(self) -> None:
        """Raise DataError for scores that the loss cannot learn from."""
        data, loss = self._job.data, self._job.loss
        if data.scores is None or is_import_path(loss.name):
            return
        import torch

        from jobs.losses.named import check_scores

        try:
            check_scores(loss, torch.from_numpy(np.unique(train_scores(data.train, data.scores))))
        except ValueError as error:
            raise DataError(str(error), file=data.train, column=data.scores) from error

    def _lacking(self, train: Rows) -> Iterator[str]:
        """Warn of rows that have fewer hard negatives than are drawn. Raises DataError where none can be mined."""
        drawn, mine = self._job.data.hard_negatives, self._job.mine
        if mine.negatives and mine.window[0] >= (texts := len(corpus_of(train).texts) - 1):
            raise DataError(
                f"has {texts} texts beside a positive, and mine.window = {list(mine.window)} passes over the nearest "
                f"{mine.window[0]}, so nothing would be mined; for example mine.window = [0, {max(texts, 1)}]",
                file=train.source,
            )
        if drawn:
            few = int((pool_of(train, tuple(train.table.column_names[2:])).counts() < drawn).sum())
            if few:
                yield (
                    f"{counted(few)} of data.train have fewer than data.hard_negatives = {drawn} hard negatives; their "
                    "places stay empty"
                )

    def _try_views(self) -> None:
        """Make views of the first rows. Raises DataError where the tokenizer lacks what the augmentation needs."""
        rows = np.arange(min(2, len(self.examples())))
        try:
            self.examples().views(rows, seed=self._job.seed, step=1, pairs=rows)
        except DataError:
            raise
        except Exception as error:  # whatever a user's code may raise
            raise DataError(
                f"fails when it is tried: {type(error).__name__}: {error}{components.line_of(error)}",
                file=f"augment.name = '{self._job.augment.name}'",
            ) from error


class Texts:
    """Embeddings of texts by an encoder of token rows."""

    def __init__(self, encode: Encode, tokenizer: Tokenizer) -> None:
        self._encode, self._tokenizer = encode, tokenizer

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that encode together."""
        return self._encode.group

    @property
    def device(self) -> torch.device | str:
        """Where this rank computes."""
        return self._encode.device

    def __call__(self, texts: Sequence[str]) -> Tensor:
        """Embed the texts, in order: [n, D]. Batches hold texts of similar length, so little of them is padding."""
        import torch
        from torch.nn.utils.rnn import pad_sequence

        tokenizer, reading = self._tokenizer, self._encode.reading
        tokens = known_tokens(tokenizer)(texts, max_tokens=reading.max_tokens, prompt=reading.prompt)
        order = np.argsort([len(ids) for ids in tokens], kind="stable")

        def inputs(start: int, stop: int) -> Mapping[str, Tensor]:
            chosen = [torch.from_numpy(tokens[row].astype(np.int64)) for row in order[start:stop]]
            return {
                "input_ids": pad_sequence(chosen, batch_first=True, padding_value=tokenizer.pad_token_id),
                "attention_mask": pad_sequence([torch.ones_like(ids) for ids in chosen], batch_first=True),
            }

        encoded = self._encode.lazily(len(texts), inputs)
        return torch.empty_like(encoded).index_copy_(0, torch.from_numpy(order), encoded)


sentence = SentenceTask
