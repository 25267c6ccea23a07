"""In-batch contrastive losses: exact on any number of ranks, and by whom they are named.

Losses of anchors (`builtin/`, `softmax_loss`) are streamed in tiles (tiled.py); any other function of the global batch
is evaluated on what was gathered (generic.py).
"""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from jobs.config.json_values import JsonObject
from jobs.core.collectives import Group
from jobs.losses.generic import BatchFacts, GuideRows
from jobs.losses.named import JobLoss, row_loss_of
from jobs.losses.spec import LossInputs, LossSpec, RowLoss, RowSums, SoftmaxLoss, softmax_loss
from jobs.losses.tiled import Diagnostics, tiled_loss

__all__ = [
    "BatchFacts",
    "Diagnostics",
    "GuideRows",
    "JobLoss",
    "LossInputs",
    "LossSpec",
    "RowLoss",
    "RowSums",
    "SoftmaxLoss",
    "contrastive_loss",
    "softmax_loss",
]


def contrastive_loss(
    queries: Tensor,
    keys: Tensor,
    *,
    name: str = "infonce",
    temperature: float | Tensor = 0.05,
    symmetric: bool = False,
    same_side: bool = False,
    hard_negatives: Tensor | None = None,
    hard_negative_weight: float = 1.0,
    pair_ids: Tensor | None = None,
    key_ids: Tensor | None = None,
    negative_ids: Tensor | None = None,
    margin: float = 0.0,
    bias: float | Tensor = 0.0,
    group: Group = None,
    tile: int | None = None,
    pool: int | None = None,
    exchange: Literal["gather", "ring"] = "gather",
    options: JsonObject | None = None,
) -> tuple[Tensor, Diagnostics]:
    """Compute the mean in-batch contrastive loss over all B pairs of all ranks, and diagnostics.

    queries, keys [b, D]: row i of each is a pair; the caller normalises. b may differ between ranks and be 0.
    hard_negatives [b, H, D]: seen by every anchor, in the query-to-key direction only; the weight multiplies the
        anchor's own.
    temperature: float or 0-d tensor, which then gets a gradient. bias: likewise, siglip's only.
    pair_ids, key_ids int64 [b], negative_ids int64 [b, H]: hashes of what the anchors, keys and hard negatives say; any
        may be left out. Equal ids, on any rank, are one text, and what says the same is not pushed apart. A
        key is no negative of anchor i if its own id, or that of its own anchor, is the id of i's anchor or of i's
        positive: pairs that share a text are not negatives of each other. As this is mutual, it holds as it is for the
        queries that are candidates of a key (symmetric) and for either side's own (same_side). A hard negative is none
        of anchor i, its own anchor included, if its id is that of i's anchor or of i's positive. Its own anchor's id
        does not count: what is a negative of a text stays one where another pair has that text. Without negative_ids
        all hard negatives stay. One whose id is jobs.core.ids.ABSENT is not there, and a negative of nobody.
    margin: cosine units, taken off the positive's similarity.
    symmetric: mean of both directions. same_side: anchors see their own side too, SimCLR's 2B - 2 negatives.
    pool: consecutive pairs of the global batch, in rank order, that share negatives; the last may be short.
    tile: rows and columns of logits held at once; None chooses. exchange: see `jobs.core.collectives`.
    name: a built-in, or the import path of a loss of anchors, with its options.

    Returns a scalar, the same on every rank, float32 (float64 for float64 features). Its backward gives this rank's
    share: complete gradients of its own rows, and of temperature and bias the part of its own anchors, so that a sum
    over ranks is the single-process gradient. An anchor without negatives contributes 0 (siglip: its positive's term)
    and counts in B. Raises ValueError on every rank for arguments that are wrong or that ranks disagree on.
    """
    spec = LossSpec(
        name=name, options=options or {}, symmetric=symmetric, same_side=same_side, margin=margin, pool=pool,
        hard_negative_weight=hard_negative_weight, exchange=exchange, tile=tile,
    )  # fmt: skip
    inputs = LossInputs(queries, keys, hard_negatives, pair_ids, key_ids, negative_ids, temperature, bias)
    loss, fault = row_loss_of(spec)
    return tiled_loss(spec, loss, inputs, group, fault=fault)
