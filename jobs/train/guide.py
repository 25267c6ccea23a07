"""A guide: a frozen encoder whose similarities a loss asks for, of the rows of the data as they are.

It is loaded as `model.name` would be: its own tokenizer, and pooling, prompt, length and normalisation as its folder
says. A row is embedded once, when it is first asked for, and kept. Rows are embedded in blocks that are cut from the
data, and not from batches: so each has the same bits on every rank, in every micro-batch and after every kill.
"""

from __future__ import annotations

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from jobs import data, models
from jobs.config import JobConfig
from jobs.data.images import ImageExamples
from jobs.data.sentences.tokens import padded
from jobs.losses import GuideRows
from jobs.models import ModelError
from jobs.models.pretrained.folder import EncoderError

BLOCK = 16
"""Consecutive rows of the data that are embedded together."""


class Guide:
    """The guide of a job, on this rank. Raises ModelError for an encoder that cannot be one."""

    def __init__(self, job: JobConfig, *, device: torch.device | str) -> None:
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
        self._sides: tuple[NDArray[np.floating], ...] = ()
        """Of each column, the unit row of each row of the data, [n, Dg]; memory that nobody writes to is not taken."""
        self._known = np.zeros(len(self._examples), bool)

    def rows(self, rows: NDArray[np.int64]) -> GuideRows:
        """Return what the guide makes of these data rows, unit rows [c, Dg], and [c, H, Dg] of hard negatives."""
        for block in np.unique(rows[~self._known[rows]] // BLOCK):
            self._embed(np.arange(block * BLOCK, min((block + 1) * BLOCK, len(self._known))))
        queries, *others = (torch.from_numpy(side[rows]).to(self._device) for side in self._sides)
        keys = others[0] if others else queries
        return GuideRows(queries, keys, torch.stack(others[1:], 1) if len(others) > 1 else None)

    @torch.no_grad()
    def _embed(self, rows: NDArray[np.int64]) -> None:
        for column, inputs in enumerate(self._inputs(rows)):
            here = {name: values.to(self._device) for name, values in inputs.items()}
            encoded = self._model.encode(here)
            precise = encoded if encoded.dtype == torch.float64 else encoded.float()
            units = F.normalize(precise, dim=-1).cpu().numpy()
            if column == len(self._sides):
                self._sides += (np.zeros((len(self._known), units.shape[1]), units.dtype),)
            self._sides[column][rows] = units
        self._known[rows] = True

    def _inputs(self, rows: NDArray[np.int64]) -> list[dict[str, Tensor]]:
        """Make what the guide takes of each column of these rows: of images without an augmentation."""
        if isinstance(self._examples, ImageExamples):
            return [{"pixel_values": self._examples.images[rows]}]
        assert isinstance(self._examples, data.SentenceExamples), "JobConfig refuses a guide of other tasks"
        pad = self._examples.tokenizer.pad_token_id
        return [padded(*column.tokens[rows], pad) for column in self._examples.columns]
