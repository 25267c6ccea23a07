"""Any other loss: a function of the global batch, exact for every W and micro-batch without knowing of ranks.

    def vicreg(queries, keys, *, variance=25.0): ...        called with what its signature has of these, by name:

    queries, keys [B, D]     rows of all ranks, unit unless the function says `normalised = False`
    negatives [B, H, D]      hard negatives, or None
    ids, key_ids [B], negative_ids [B, H]   int64, equal where it is the same text or image; None where there are none
    scores [B]               people's scores of the pairs; an error where the data have none
    momentum_keys [B, D]     the keys by a copy of the model that follows it by the `momentum` of the class that asks
    guide_queries, guide_keys [B, Dg], guide_negatives [B, H, Dg]   unit rows of the frozen encoder `loss.guide`
    rows [B]                 int64, the pair's row of the data
    temperature, step        a number, or a tensor where it is learned; the optimizer step, from 1
    and its options          as the job has them

and returns a scalar. Each rank evaluates it on what was gathered (one all_gather of the features) and takes the
gradient of its own rows, which is complete: nothing travels in backward. What all ranks compute alike, the gradients of
a temperature and of the loss's own parameters, counts on rank 0 alone, so that the sum over ranks has it once.

A loss with parameters or state is an nn.Module class, built with the options and called the same way, once an optimizer
step (once a group of negatives). Its buffers are its state: equal on all ranks, since all see the same batch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Protocol
from zlib import crc32

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.config.components import LOSS
from jobs.core import randomness
from jobs.core.collectives import Group, gather_rows, rank_of
from jobs.losses.agreement import agreed_counts, tensor_faults, tensor_words
from jobs.losses.builtin.infonce import infonce
from jobs.losses.spec import LossInputs, LossSpec
from jobs.losses.tiled import Diagnostics, tiled_loss


@dataclass(frozen=True)
class GuideRows:
    """What a frozen encoder makes of this rank's pairs: unit rows."""

    queries: Tensor
    """[b, Dg]."""

    keys: Tensor
    """[b, Dg]."""

    negatives: Tensor | None = None
    """[b, H, Dg]; None: there are no hard negatives."""


@dataclass(frozen=True)
class BatchFacts:
    """What a loss may know of its batch beside embeddings: of this rank's pairs."""

    rows: Tensor
    """int64 [b]: rows of the data."""

    step: int
    """Optimizer step, from 1."""

    seed: int
    scores: Tensor | None = None
    """float [b]."""

    momentum_keys: Tensor | None = None
    """[b, D]; None where no loss asks for them."""

    guide: GuideRows | None = None
    """None without `loss.guide`."""


def asked_for(function: Callable[..., object]) -> frozenset[str]:
    """Find which of the provided arguments a function, or the `forward` of a module class, is called with."""
    if isinstance(function, type) and issubclass(function, nn.Module):
        function = function.forward
    return frozenset(inspect.signature(function).parameters) & frozenset(LOSS.provided)


def is_normalised(function: object) -> bool:
    """Return whether a function is given unit rows."""
    return bool(getattr(function, "normalised", True))


def built(
    function: object, options: Mapping[str, object], *, seed: int, sizes: Mapping[str, int] | None = None
) -> nn.Module | None:
    """Build the module of a loss class, its first parameters a function of the seed; None for a plain function.

    sizes: what it may ask for beside its options, `embedding_width` and `data_rows`. An option of the same name counts.
    """
    if not (isinstance(function, type) and issubclass(function, nn.Module)):
        return None
    asked = inspect.signature(function).parameters
    known = {name: size for name, size in (sizes or {}).items() if name in asked}
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(randomness.mix(seed, crc32(b"loss"))))
        return function(**(known | dict(options)))


def batch_loss(
    function: Callable[..., Tensor],
    spec: LossSpec,
    inputs: LossInputs,
    facts: BatchFacts,
    group: Group,
    *,
    asked: frozenset[str],
    options: Mapping[str, object],
) -> tuple[Tensor, Diagnostics]:
    """Compute the value of a function over all pairs of all ranks, the mean over groups of negatives, and diagnostics.

    function: a module, or a function with these options; asked: what it is called with. Its gradient is this rank's
    share. Raises ValueError on every rank where ranks disagree, and for what is not one number.
    """
    fault = next(tensor_faults(inputs), None)
    if fault is None and "scores" in asked and facts.scores is None:
        fault = f"loss.name = {spec.name!r} asks for scores, which the data do not have; name the column in data.scores"
    if fault is None and "guide_" in " ".join(asked) and facts.guide is None:
        fault = f"loss.name = {spec.name!r} asks for a guide; name a frozen encoder in loss.guide, such as a folder"
    counts = agreed_counts(spec, inputs, group, fault)
    rank = rank_of(group)
    if isinstance(function, nn.Module):
        _count_once(function, counts=rank == 0)
    batch = _gathered(inputs, facts, counts, group)
    temperature = inputs.temperature
    if isinstance(temperature, Tensor):
        temperature = _OnRank.apply(temperature, rank == 0)  # type: ignore[no-untyped-call]
    B, size = sum(counts), spec.pool or sum(counts)
    device = inputs.queries.device
    total: Tensor | None = None
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(int(randomness.mix(facts.seed, facts.step, crc32(b"loss"))))
        for start in range(0, B, size):
            part = {key: x if x is None else x[start : start + size] for key, x in batch.items()}
            given = {**part, "temperature": temperature, "step": facts.step}
            value = function(**{key: given[key] for key in asked}, **options)
            _refuse_what_is_no_number(value, spec.name)
            weighted = value * (len(part["rows"]) / B) if size < B else value  # type: ignore[arg-type]
            total = weighted if total is None else total + weighted
    assert total is not None
    return total, _diagnostics(spec, inputs, group)


def _gathered(inputs: LossInputs, facts: BatchFacts, counts: list[int], group: Group) -> dict[str, Tensor | None]:
    """Gather everybody's rows by name, this rank's own with their graph."""
    start = sum(counts[: rank_of(group)])

    def all_rows(own: Tensor | None, *, graph: bool = False) -> Tensor | None:
        if own is None:
            return None
        whole = gather_rows(own.detach().contiguous(), counts, group)
        if not graph or len(counts) == 1:
            return own if len(counts) == 1 else whole
        return torch.cat([whole[:start], own, whole[start + len(own) :]])

    device = inputs.queries.device
    return {
        "queries": all_rows(inputs.queries, graph=True),
        "keys": all_rows(inputs.keys, graph=True),
        "negatives": all_rows(inputs.hard_negatives, graph=True),
        "ids": all_rows(inputs.pair_ids),
        "key_ids": all_rows(inputs.key_ids),
        "negative_ids": all_rows(inputs.negative_ids),
        "rows": all_rows(facts.rows.to(device)),
        "scores": all_rows(None if facts.scores is None else facts.scores.to(device)),
        "momentum_keys": all_rows(facts.momentum_keys),
        **({} if facts.guide is None else {f"guide_{side}": all_rows(x) for side, x in vars(facts.guide).items()}),
    }


class _Context(Protocol):
    """What the backward pass of `_OnRank` is handed by its forward pass."""

    counts: bool


class _OnRank(torch.autograd.Function):
    """The identity, whose gradient counts on one rank."""

    @staticmethod
    def forward(ctx: _Context, x: Tensor, counts: bool) -> Tensor:
        ctx.counts = counts
        return x.clone()

    @staticmethod
    def backward(ctx: _Context, grad: Tensor) -> tuple[Tensor, None]:
        return grad if ctx.counts else torch.zeros_like(grad), None


COUNTS = "_counts_here"
"""Attribute of a loss's module: whether the next gradients of its parameters count on this rank."""


def _count_once(module: nn.Module, *, counts: bool) -> None:
    if not hasattr(module, COUNTS):
        for parameter in module.parameters():
            if parameter.requires_grad:
                parameter.register_hook(lambda grad: grad if getattr(module, COUNTS) else torch.zeros_like(grad))
    setattr(module, COUNTS, counts)


def _refuse_what_is_no_number(value: object, name: str) -> None:
    if not isinstance(value, Tensor) or value.ndim != 0 or not value.is_floating_point():
        words = tensor_words(value) if isinstance(value, Tensor) else f"a {type(value).__name__}"
        raise ValueError(f"{name} returned {words}; a loss returns one number as a 0-d tensor, such as x.mean()")
    if torch.is_grad_enabled() and not value.requires_grad:
        raise ValueError(
            f"{name} returned a number without a gradient; compute it from queries and keys by torch alone"
        )


def _diagnostics(spec: LossSpec, inputs: LossInputs, group: Group) -> Diagnostics:
    """Compute the diagnostics of the same embeddings under InfoNCE, so that losses are compared by the same numbers."""
    with torch.no_grad():
        units = (inputs.queries, inputs.keys, inputs.hard_negatives)
        queries, keys, hard = (None if x is None else F.normalize(x.detach(), dim=-1) for x in units)
        temperature = inputs.temperature.detach() if isinstance(inputs.temperature, Tensor) else inputs.temperature
        assert queries is not None
        assert keys is not None
        same = replace(inputs, queries=queries, keys=keys, hard_negatives=hard, temperature=temperature)
        plain = LossSpec(pool=spec.pool, exchange=spec.exchange, tile=spec.tile)
        return tiled_loss(plain, infonce, same, group)[1]
