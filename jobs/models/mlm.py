"""Masked language modelling, the auxiliary loss of SimCSE (Gao et al. 2021, arXiv:2104.08821; Devlin et al. 2019).

Some tokens of every sentence of the batch are masked, the encoder sees the sentences once more, and a small head
guesses what stood there. Which tokens are masked is a function of (seed, step, sentence, position), so it depends
neither on ranks, nor on micro-batches, nor on padding. `jobs/train/step.py` adds the loss to the contrastive one.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.config import JobConfig
from jobs.core.randomness import MASKING, mix, uniform

MASKED, RANDOM = 0.8, 0.1
"""Shares of the chosen tokens that become the mask token, and a random one; the rest stay as they are."""


@dataclass(frozen=True)
class Masking:
    """How tokens are masked, and what the loss weighs."""

    weight: float
    """Of the loss, beside the contrastive one."""

    probability: float
    """Share of the tokens that are chosen."""

    mask: int
    """Id of the mask token."""

    special: tuple[int, ...]
    """Ids that are never chosen: padding, first and last token and the like."""

    vocabulary: int
    """Ids are below it."""


@dataclass(frozen=True)
class Masked:
    """Sentences with masked tokens."""

    inputs: dict[str, Tensor]
    chosen: Tensor
    """bool [n, L]: where the head must guess."""

    labels: Tensor
    """int64 [m]: what stood there, row after row."""


class MaskedLanguageHead(nn.Module):
    """BERT's head: linear map, GELU, layer norm; then the encoder's own table of input embeddings, and a bias."""

    def __init__(self, width: int, table: nn.Embedding) -> None:
        super().__init__()
        self.transform = nn.Linear(width, table.embedding_dim)
        self.norm = nn.LayerNorm(table.embedding_dim)
        self.bias = nn.Parameter(torch.zeros(table.num_embeddings))

    def forward(self, hidden: Tensor, table: Tensor) -> Tensor:
        """Compute the logits [m, vocabulary] of tokens from their last hidden states, `hidden` [m, width]."""
        return F.linear(self.norm(F.gelu(self.transform(hidden))), table, self.bias)


def masking(job: JobConfig, tokenizer: Any) -> Masking | None:
    """Build the job's masking; None without auxiliary loss. Raises ValueError if the tokenizer has no mask token."""
    if not job.loss.mlm_weight:
        return None
    if tokenizer.mask_token_id is None:
        raise ValueError(
            f"loss.mlm_weight = {job.loss.mlm_weight} needs a mask token, and the tokenizer of "
            f"model.name = '{job.model.name}' has none; use 'bert' or another masked language model, or mlm_weight = 0"
        )
    return Masking(
        weight=job.loss.mlm_weight,
        probability=job.loss.mlm_probability,
        mask=int(tokenizer.mask_token_id),
        special=tuple(sorted(tokenizer.all_special_ids)),
        vocabulary=len(tokenizer),
    )


def masked(
    inputs: Mapping[str, Tensor], rows: Tensor, how: Masking, *, seed: int, step: int, there: Tensor | None = None
) -> Masked:
    """Mask tokens of input_ids int64 [n, L].

    rows: int64 [n], the number of each sentence in the global batch: its pair's index * views + view. there: bool [n],
    which of them are sentences of the batch, and no text in the place of one that is missing; None: all.
    """
    ids = inputs["input_ids"]
    keys = mix(MASKING, seed, step, rows.to(ids.device))[:, None]
    places = torch.arange(ids.shape[1], device=ids.device)
    ordinary = inputs["attention_mask"].bool() & ~torch.isin(ids, torch.tensor(how.special, device=ids.device))
    if there is not None:
        ordinary &= there[:, None]
    chosen = ordinary & (uniform(keys, places, 0) < how.probability)
    fate = uniform(keys, places, 1)
    other = torch.where(fate < MASKED, how.mask, mix(keys, places, 2) % how.vocabulary)
    seen = torch.where(chosen & (fate < MASKED + RANDOM), other, ids)
    return Masked({**inputs, "input_ids": seen}, chosen, ids[chosen])
