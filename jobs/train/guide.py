"""A guide: a frozen encoder whose similarities a loss asks for, of the rows of the data as they are.

It is loaded as `model.name` would be: its own tokenizer, and pooling, prompt, length and normalisation as its folder
says. A row is embedded once, when it is first asked for, and kept. Rows are embedded in blocks that are cut from the
data, and not from batches: so each has the same bits on every rank, in every micro-batch and after every kill.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs import data, models
from jobs.config import JobConfig
from jobs.data.batches import FIRST, Draw
from jobs.data.images import ImageExamples
from jobs.data.sentences.pools import EMPTY
from jobs.data.sentences.tokens import TokenColumn, padded
from jobs.losses import GuideRows
from jobs.models import ModelError
from jobs.models.pretrained.folder import EncoderError

BLOCK = 16
"""Consecutive texts, or images, of the data that are embedded together."""


class Guide:
    """The guide of a job, on this rank. Raises ModelError for an encoder that cannot be one.

    known_by: digests of its files and of the rows that it sees. What this process has embedded of these stands in later
    trials too; None: nothing does.
    """

    def __init__(self, job: JobConfig, *, device: torch.device | str, known_by: str | None = None) -> None:
        own = job.guide
        assert own is not None, "a job without a guide has none"
        self._device = device
        try:
            task = data.task_of(own)
            self._examples = task.examples()
            self._model = models.build(own, tokenizer=task.tokenizer, inputs=task.inputs(), device=device)
        except (ModelError, EncoderError, data.DataError) as error:
            raise models.refused_guide(job, error) from error
        self._model.eval().requires_grad_(requires_grad=False)
        how = (own.task, own.data.model_dump_json(), own.model.precision, str(device))
        self._tables: dict[int, _Table] = {} if known_by is None else _tables_of(known_by, how)
        """By the number of the column of texts; 0 of images."""

    def rows(self, rows: NDArray[np.int64], draw: Draw = FIRST) -> GuideRows:
        """Return what the guide makes of these data rows: unit rows [c, Dg], and [c, H, Dg] of hard negatives. The
        place of one that is not there has the anchor's. draw: by what texts are drawn of lists."""
        queries, *others = self._sides(rows, draw)
        keys = others[0] if others else queries
        return GuideRows(queries, keys, torch.stack(others[1:], 1) if len(others) > 1 else None)

    def _sides(self, rows: NDArray[np.int64], draw: Draw) -> list[Tensor]:
        if isinstance(self._examples, ImageExamples):
            images = self._examples.images
            return [self._looked_up(0, rows, len(images), lambda at: {"pixel_values": images[at]})]
        assert isinstance(self._examples, data.SentenceExamples), "JobConfig refuses a guide of other tasks"
        pad = self._examples.tokenizer.pad_token_id
        sides: list[Tensor] = []
        for column, places in self._examples.places(rows, draw):
            none = places == EMPTY
            at = places[~none]
            number = self._examples.columns.index(column)
            units = self._looked_up(number, at, len(column.texts), functools.partial(_padded, column.tokens, pad))
            if none.any():
                here = torch.from_numpy(np.flatnonzero(~none)).to(self._device)
                units = sides[0].index_copy(0, here, units) if len(at) else sides[0]
            sides.append(units)
        return sides

    def _looked_up(
        self, column: int, at: NDArray[np.int64], total: int, inputs: Callable[[NDArray[np.int64]], data.Inputs]
    ) -> Tensor:
        """Look up the unit rows of some of a column's texts or images, and embed those that are not known."""
        table = self._tables.setdefault(column, _Table(total))
        for block in np.unique(at[~table.known[at]] // BLOCK):
            whole = np.arange(block * BLOCK, min((block + 1) * BLOCK, total))
            table.put(whole, self._embedded(inputs(whole)))
        return torch.from_numpy(table.units[at]).to(self._device)

    @torch.no_grad()
    def _embedded(self, inputs: data.Inputs) -> NDArray[np.floating]:
        encoded = self._model.encode({name: values.to(self._device) for name, values in inputs.items()})
        precise = encoded if encoded.dtype == torch.float64 else encoded.float()
        units: NDArray[np.floating] = F.normalize(precise, dim=-1).cpu().numpy()
        return units


def _padded(tokens: TokenColumn, pad: int, at: NDArray[np.int64]) -> data.Inputs:
    return padded(*tokens[at], pad)


@functools.lru_cache(maxsize=2)
def _tables_of(_known_by: str, _how: tuple[str, ...]) -> dict[int, _Table]:
    """Return the tables of a guide and its rows: the same ones for the same, so that a warm rank embeds a text once."""
    return {}


class _Table:
    """Unit rows of a column, as far as they are known. Memory that nobody writes to is not taken."""

    def __init__(self, total: int) -> None:
        self.known = np.zeros(total, bool)
        self.units: NDArray[np.floating] = np.zeros((total, 0), np.float32)

    def put(self, at: NDArray[np.int64], units: NDArray[np.floating]) -> None:
        """Keep unit rows [c, Dg]."""
        if not self.units.shape[1]:
            self.units = np.zeros((len(self.known), units.shape[1]), units.dtype)
        self.units[at], self.known[at] = units, True
