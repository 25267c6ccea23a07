"""What a batch is: which rows it holds, what the encoder gets of them, and which of them are the same."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from jobs.config import JobConfig, components
from jobs.core.ids import ABSENT
from jobs.data.samplers.shuffled import shuffled

if TYPE_CHECKING:
    import torch
    from torch import Tensor
    from typing_extensions import Buffer

Inputs = dict[str, "Tensor"]
"""What an encoder takes, batch first: pixel_values; or input_ids and attention_mask."""


@dataclass(frozen=True)
class Views:
    """c pairs as an encoder takes them. Row i of queries and row i of keys are a pair."""

    queries: Inputs
    keys: Inputs
    negatives: Inputs | None = None
    """H hard negatives of each pair, [c * H, ...]: those of pair 0 first."""
    absent: Tensor | None = None
    """bool [c * H]: places of hard negatives that are not there, in which the anchor stands; None: all are."""


@dataclass(frozen=True)
class Draw:
    """By what texts are drawn for a part of a batch."""

    seed: int = 0
    step: int = 1
    pairs: NDArray[np.int64] | None = None
    """[c]: places of the pairs in the batch; None: from 0 on."""


FIRST = Draw()
"""Of the first pairs of a first step."""


@dataclass(frozen=True)
class Ids:
    """What c pairs say, as int64 that are equal where it is the same text, or the same image, whichever side it is on.
    The names are those of `contrastive_loss`."""

    pair_ids: Tensor
    """[c], of the anchors."""
    key_ids: Tensor | None = None
    """[c]; None: a key says what its anchor says."""
    negative_ids: Tensor | None = None
    """[c, H], ABSENT for one that is not there; None: there are no hard negatives."""

    def to(self, device: torch.device | str) -> Ids:
        """Return the ids on a device."""
        return Ids(**{name: ids.to(device) for name, ids in self.given().items()})

    def apart(self, first: int) -> Ids:
        """Return ids that tell all texts apart, whatever they say, and only know which hard negatives are not there.

        first: place of the first pair in the batch.
        """
        import torch

        pairs = torch.arange(first, first + len(self.pair_ids), device=self.pair_ids.device)
        if self.negative_ids is None:
            return Ids(pairs)
        hard = self.negative_ids.shape[1]
        numbers = -1 - (pairs[:, None] * hard + torch.arange(hard, device=pairs.device))
        return Ids(pairs, None, torch.where(self.negative_ids == ABSENT, ABSENT, numbers))

    def all_alike(self) -> bool:
        """Return whether every two pairs share an id, of anchor or key, so that none is a negative of another."""
        import torch

        own = torch.stack([ids for ids in (self.pair_ids, self.key_ids) if ids is not None], 1)
        shared = (own[:, None, :, None] == own[None, :, None, :]).flatten(2).any(2)
        return bool(shared.all())

    def given(self) -> dict[str, Tensor]:
        """Return the ids by name, without those that are None."""
        named = {"pair_ids": self.pair_ids, "key_ids": self.key_ids, "negative_ids": self.negative_ids}
        return {name: ids for name, ids in named.items() if ids is not None}


FACTS = ("ids", "sources", "labels")
"""What a sampler may ask for of all rows, by name; see jobs.config.protocols.Sampler."""


def batch_rows(
    n_rows: int,
    *,
    size: int,
    seed: int,
    step: int,
    job: JobConfig | None = None,
    facts: Callable[[str], NDArray[np.int64]] | None = None,
) -> NDArray[np.int64]:
    """Choose the data rows, int64 [size], of the global batch of optimizer step `step` = 1, 2, ... job: its sampler
    draws them; None: epochs in random orders. facts: name -> what a sampler that asks for it is given of all rows, the
    same array each time. Raises ValueError for a sampler that gives anything else."""
    if job is None or job.data.sampler == "shuffled":
        return shuffled(n_rows, size, seed, step)
    draw = components.called("sampler", job.data.sampler, job.data.sampler_options)
    asks = functools.partial(components.asks_for, components.load("sampler", job.data.sampler))
    known = {name: facts(name) for name in FACTS if facts is not None and asks(name)}
    rows = np.asarray(draw(rows=n_rows, size=size, seed=seed, step=step, **known))
    if rows.shape != (size,) or rows.dtype.kind not in "iu" or rows.min() < 0 or rows.max() >= n_rows:
        raise ValueError(
            f"data.sampler = {job.data.sampler!r} gave {rows.dtype} {list(rows.shape)} for step {step}; it gives "
            f"{size} whole numbers from 0 to {n_rows - 1}, rows of the data"
        )
    return rows.astype(np.int64)


def content_ids(contents: Iterable[Buffer]) -> Tensor:
    """Hash contents to int64 [c]: equal for equal contents on any machine, else equal with probability 2**-64."""
    import torch

    hashes = [hashlib.blake2b(content, digest_size=8).digest() for content in contents]
    return torch.from_numpy(np.frombuffer(b"".join(hashes), "<i8").astype(np.int64))
