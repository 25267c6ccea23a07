"""Views of sentences by the augmentation that a job names. Without one the two views are the same tokens."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.config import Augment, components
from jobs.data.batches import Inputs
from jobs.data.sentences.tokens import TokenColumn, padded

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class TokenViews:
    """Makes views of columns of tokens."""

    augment: Augment
    pad: int
    mask_token: int | None
    words: tuple[TokenColumn, ...]
    """Of each column that is augmented, the number of each token's word, from 1; 0 for what no view may change."""

    def view(
        self, column: TokenColumn, rows: NDArray[np.int64], *, seed: int, step: int, pairs: NDArray[np.int64], view: int
    ) -> Inputs:
        """Make one view of these data rows, padded to the longest; see `augmented`."""
        import torch

        ids, lengths = column[rows]
        inputs = padded(ids, lengths, self.pad)
        longest = inputs["input_ids"].shape[1]
        numbers = self.words[min(view, len(self.words) - 1)][rows][0][:, :longest].astype(np.int64)
        return augmented(
            self.augment, inputs["input_ids"], inputs["attention_mask"], torch.from_numpy(numbers) - 1,
            mask_token=self.mask_token, pad=self.pad, seed=seed, step=step,
            pairs=torch.from_numpy(np.asarray(pairs, np.int64)), view=view,
        )  # fmt: skip


def augmented(
    augment: Augment,
    tokens: Tensor,
    mask: Tensor,
    words: Tensor,
    *,
    mask_token: int | None,
    pad: int,
    seed: int,
    step: int,
    pairs: Tensor,
    view: int,
) -> Inputs:
    """Apply the augmentation to rows of tokens: input_ids and attention_mask [c, longest], padded by `pad`.

    tokens, mask, words [c, L]: as an augmentation is called with them. Raises ValueError for what is no rows of tokens.
    """
    import torch

    make = components.called("augmentation", augment.name, augment.options)
    made = make(
        tokens=tokens, mask=mask, words=words, mask_token=mask_token, settings=augment, seed=seed, step=step,
        pairs=pairs, view=view,
    )  # fmt: skip
    ids, seen = made if isinstance(made, tuple) and len(made) == 2 else (made, mask)
    _refuse_no_rows(augment.name, ids, seen, rows=len(tokens))
    ids, seen = ids.to(torch.int64), seen.to(torch.int64)
    places = torch.arange(1, ids.shape[1] + 1)
    ends = (places * (seen > 0)).max(1).values
    # What is erased within a row keeps its id: some encoders count positions by the tokens that are no padding.
    ids = ids.where(places <= ends[:, None], pad)
    longest = int(ends.max())
    return {"input_ids": ids[:, :longest], "attention_mask": seen[:, :longest]}


def _refuse_no_rows(name: str, ids: object, seen: object, *, rows: int) -> None:
    import torch

    if not isinstance(ids, torch.Tensor) or not isinstance(seen, torch.Tensor):
        words = f"{type(ids).__name__} and {type(seen).__name__}"
    elif ids.ndim != 2 or len(ids) != rows or seen.shape != ids.shape or ids.is_floating_point():
        words = f"tokens {ids.dtype} {list(ids.shape)} and a mask {list(seen.shape)}"
    elif not bool((seen > 0).any(1).all()):
        raise ValueError(f"augment.name = {name!r} leaves nothing of a row; let its special tokens stay")
    else:
        return
    raise ValueError(
        f"augment.name = {name!r} gave {words} for {rows} rows; it gives whole numbers [{rows}, length], and a mask of "
        "the same shape unless that of its rows holds"
    )
