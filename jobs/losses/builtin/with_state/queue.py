"""InfoNCE with the last keys of a momentum encoder as further negatives, He et al. 2020 (arXiv:1911.05722): as many as
wanted, whatever the batch."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from jobs.losses.builtin.weighted._dense import MASKED, candidates, same_text


class queue(nn.Module):  # noqa: N801 - a built-in has its module's name
    """State: the last `size` keys by a copy of the model, each with what its pair says, in the order of the batches.

    The copy is not trained: after each step its weights w become momentum w + (1 - momentum) times the model's. What
    says what an anchor's pair says is none of its negatives, the same row in an earlier batch for example. The keys of
    a batch are queued after its loss. An anchor's positive, and the keys of its batch, are those of the copy too, or
    of the `model` itself: then all it has to tell apart are the model and its copy, and it may collapse.
    """

    def __init__(
        self,
        embedding_width: int,
        *,
        size: int = 4096,
        momentum: float = 0.999,
        positive: Literal["copy", "model"] = "copy",
    ) -> None:
        super().__init__()
        if size < 1 or not 0 <= momentum < 1:
            raise ValueError(
                f"loss.options.size = {size} is a number of keys, and momentum = {momentum} a share from 0 to below 1"
            )
        self.momentum, self.positive = float(momentum), positive
        self.register_buffer("keys", torch.zeros(size, embedding_width))
        self.register_buffer("said", torch.full((size, 3), -1, dtype=torch.int64))
        self.register_buffer("queued", torch.zeros((), dtype=torch.int64))
        self.keys: Tensor
        self.said: Tensor
        """Row of the data, and ids of both sides; -1 for none."""
        self.queued: Tensor
        """Keys that were queued so far."""

    def forward(
        self,
        *,
        queries: Tensor,
        keys: Tensor,
        negatives: Tensor | None,
        ids: Tensor | None,
        key_ids: Tensor | None,
        negative_ids: Tensor | None,
        momentum_keys: Tensor,
        rows: Tensor,
        temperature: float | Tensor,
    ) -> Tensor:
        """Compute the mean over anchors; one without negatives counts 0."""
        found = candidates(
            queries=queries,
            keys=momentum_keys.detach() if self.positive == "copy" else keys,
            negatives=negatives,
            ids=ids,
            key_ids=key_ids,
            negative_ids=negative_ids,
        )
        none = torch.full_like(rows, -1)
        said = torch.stack([rows, *(none if side is None else side for side in (ids, key_ids))], dim=1)
        filled = min(int(self.queued), len(self.keys))
        known, known_said = self.keys[:filled].clone(), self.said[:filled].clone()  # they change before backward
        away = (queries @ known.T - found.positive[:, None]) / temperature
        away = away.masked_fill(_is_same(said, known_said), MASKED)
        logits = torch.cat([found.logits(temperature), away], dim=1)
        some = (logits.detach() > MASKED).any(1)
        v = logits[some].logsumexp(1)
        self._queue(momentum_keys.detach(), said)
        return torch.logaddexp(v, torch.zeros_like(v)).sum() / len(queries)

    @torch.no_grad()
    def _queue(self, keys: Tensor, said: Tensor) -> None:
        """Put keys in the place of the oldest, in their order."""
        size = len(self.keys)
        first = max(len(keys) - size, 0)
        places = (self.queued + torch.arange(first, len(keys), device=keys.device)) % size
        self.keys[places] = keys[first:].to(self.keys.dtype)
        self.said[places] = said[first:]
        self.queued += len(keys)


def _is_same(said: Tensor, known: Tensor) -> Tensor:
    """Find where pairs are of one row, or a side of one says what a side of the other says, bool [B, K]."""
    same = said[:, None, 0] == known[None, :, 0]
    return same | same_text(said[:, 1:], known[:, 1:])
