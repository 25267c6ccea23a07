"""One exact optimizer step, and the gradient contract.

The loss is the mean over all B pairs of the global batch. Each rank back-propagates the sum of its own rows' losses
divided by B; gradients are summed over ranks, in one all-reduce per step, after which clipping and the optimizer run.
So the update equals that of one process on the concatenated batch, for any number of ranks and any chunking.

Exact accumulation, when a rank's share does not fit into memory at once (Gao et al. 2021, "Scaling deep contrastive
learning batch size under memory limited setup"):

1. encode every chunk, with a graph only for the last few (`keep_graphs`);
2. evaluate the loss once on all embeddings of all ranks: this gives the gradient to each embedding and to the loss's
   own parameters;
3. push each chunk's slice of that gradient through its graph, encoding the chunk again where none was kept. Dropout
   is a function of (seed, step, pair, view), so the second encoding is the first one bit for bit.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.collectives import sum_gradients
from jobs.data import Inputs, Views
from jobs.losses import Diagnostics
from jobs.models import ContrastiveModel, dropout_keys

LossFunction = Callable[[Tensor, Tensor, Tensor | None], tuple[Tensor, Diagnostics]]
"""(queries [b, D], keys [b, D], hard negatives [b, H, D] or None) -> (global mean, diagnostics)."""


@dataclass(frozen=True)
class Chunk:
    """Pairs of this rank that are encoded together."""

    views: Views
    pairs: Tensor
    """int64 [c]: the place of each pair in the global batch."""


@dataclass(frozen=True)
class StepResult:
    """What a step leaves behind besides gradients."""

    loss: float
    """Global mean, the same on every rank."""

    gradient_norm: float
    """Of the whole gradient, after the sum over ranks and before clipping."""

    diagnostics: Diagnostics

    @property
    def finite(self) -> bool:
        """False when the step must not be applied: the trial has diverged, on every rank alike."""
        return bool(np.isfinite(self.loss) and np.isfinite(self.gradient_norm))


def share(size: int, *, rank: int, world: int) -> range:
    """The consecutive pairs of a global batch of `size` that belong to `rank`; shares differ by one pair at most."""
    return range(size * rank // world, size * (rank + 1) // world)


def exact_gradients(
    model: ContrastiveModel,
    chunks: Sequence[Chunk],
    *,
    loss: LossFunction,
    seed: int,
    step: int,
    keep_graphs: int = 0,
    clip: float | None = None,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
) -> StepResult:
    """Fill the `grad` of every parameter with the gradient of the global mean loss, summed over ranks and clipped.

    chunks: this rank's share, in order; a single chunk keeps its graph whatever `keep_graphs` says.
    clip: largest norm of the gradient. Returns loss, norm and diagnostics of the global batch.
    """
    for parameter in model.parameters():
        parameter.grad = None
    kept = len(chunks) if len(chunks) <= 1 else min(keep_graphs, len(chunks))
    graphed = range(len(chunks) - kept, len(chunks))
    encoded = []
    for index, chunk in enumerate(chunks):
        with torch.set_grad_enabled(index in graphed):
            encoded.append(_encode(model, chunk, seed=seed, step=step, device=device))
    leaves = [[part.detach().requires_grad_() for part in parts] for parts in encoded]
    value, diagnostics = loss(*_whole(leaves))
    value.backward()
    for index in reversed(range(len(chunks))):
        parts = encoded[index]
        if index not in graphed:
            parts = _encode(model, chunks[index], seed=seed, step=step, device=device)
        torch.autograd.backward(parts, [_gradient(leaf) for leaf in leaves[index]])
        encoded[index] = []  # frees this chunk's graph before the next is built
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    sum_gradients(trained, group)
    norm = nn.utils.get_total_norm([p.grad for p in trained if p.grad is not None])
    if clip is not None:
        nn.utils.clip_grads_with_norm_(trained, clip, norm)
    return StepResult(float(value.detach()), float(norm), diagnostics)


def _encode(model: ContrastiveModel, chunk: Chunk, *, seed: int, step: int, device: torch.device | str) -> list[Tensor]:
    """Embeddings of a chunk: queries [c, D], keys [c, D] and, where there are any, hard negatives [c, H, D].

    All views go through the encoder in one batch; the dropout mask of a row depends on its pair and view alone.
    """
    views, count = chunk.views, len(chunk.pairs)
    parts = [views.queries, views.keys] + ([views.negatives] if views.negatives is not None else [])
    hard = _rows(parts[2]) // max(count, 1) if len(parts) == 3 else 0
    per_pair = 2 + hard
    rows = [chunk.pairs * per_pair, chunk.pairs * per_pair + 1]
    if hard:
        rows.append((chunk.pairs[:, None] * per_pair + 2 + torch.arange(hard)).reshape(-1))
    inputs = {name: tensor.to(device, non_blocking=True) for name, tensor in _joined(parts).items()}
    with dropout_keys(seed=seed, step=step, rows=torch.cat(rows).to(device)):
        embedded = model.embed(inputs)
    queries, keys, *negatives = embedded.split([count, count] + ([count * hard] if hard else []))
    return [queries, keys, *(part.unflatten(0, (count, hard)) for part in negatives)]


def _joined(parts: Sequence[Inputs]) -> Inputs:
    """The views below one another; token sequences are padded to the longest (0 is also the mask of a pad)."""
    result: Inputs = {}
    for name in parts[0]:
        tensors = [part[name] for part in parts]
        if tensors[0].ndim == 2:
            longest = max(tensor.shape[1] for tensor in tensors)
            tensors = [F.pad(tensor, (0, longest - tensor.shape[1])) for tensor in tensors]
        result[name] = torch.cat(tensors)
    return result


def _rows(inputs: Inputs) -> int:
    return len(next(iter(inputs.values())))


def _whole(leaves: Sequence[Sequence[Tensor]]) -> tuple[Tensor, Tensor, Tensor | None]:
    """Queries, keys and hard negatives of all chunks."""
    whole = [torch.cat(parts) if len(parts) > 1 else parts[0] for parts in zip(*leaves, strict=True)]
    return whole[0], whole[1], whole[2] if len(whole) > 2 else None


def _gradient(leaf: Tensor) -> Tensor:
    return torch.zeros_like(leaf) if leaf.grad is None else leaf.grad


def diagnostics_points(result: StepResult) -> dict[str, float]:
    """A step's values under the keys they are tracked by."""
    values = {f"train/{name}": value for name, value in dataclasses.asdict(result.diagnostics).items()}
    return {"train/loss": result.loss, "train/gradient_norm": result.gradient_norm, **values}
