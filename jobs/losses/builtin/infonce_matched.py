"""InfoNCE with its gradient scaled, per batch, to the norm of FlatNCE's gradient of the embeddings."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.losses.builtin.infonce import value
from jobs.losses.spec import MASKED_LOGIT, RowLoss, RowSums


def weights(sums: RowSums) -> Tensor:
    """Compute InfoNCE's weights relative to the largest, so that a batch where every 1 - p underflows still has a
    direction; then FlatNCE's."""
    log = F.logsigmoid(sums.v)
    relative = torch.exp(log - log.max().clamp(min=MASKED_LOGIT))
    return torch.stack([relative, sums.has_negatives])[:, None].expand(2, 2, *sums.v.shape)


infonce_matched = RowLoss(value, weights, matched=True)
