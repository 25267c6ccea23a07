"""A loss call checked on this rank, then agreed on by all ranks before any payload moves."""

from __future__ import annotations

import hashlib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from itertools import chain

import torch
from torch import Tensor

from jobs.config import canonical, nearest
from jobs.config.components import builtin_names
from jobs.core.collectives import Group, agree, rank_of, world_of
from jobs.losses.spec import LossCall, LossInputs, LossSpec, RowLoss

EXCHANGES = ("gather", "ring")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def agreed_call(spec: LossSpec, loss: RowLoss | None, inputs: LossInputs, group: Group, *, fault: str) -> LossCall:
    """Check this rank's arguments and agree on them with every other rank: one small collective.

    loss: None where the spec names no loss of anchors, and `fault` says so. Raises ValueError on every rank when one
    rank's arguments are wrong or differ from the others'.
    """
    named = [fault] if loss is None else _number_faults(spec, loss, inputs)
    faults = chain(tensor_faults(inputs), named)
    counts = agreed_counts(spec, inputs, group, next(faults, None), talks_backward=_talks_backward(spec, loss, inputs))
    assert loss is not None
    return LossCall(
        spec=spec,
        loss=loss,
        temperature=_number(inputs.temperature),
        bias=_bias(spec, inputs),
        hard=inputs.hard,
        texts=sum(ids is not None for ids in (inputs.pair_ids, inputs.key_ids)),
        hard_ids=inputs.negative_ids is not None,
        pool=spec.pool if spec.pool is not None and spec.pool < sum(counts) else None,
        counts=counts,
        rank=rank_of(group),
        width=inputs.queries.shape[1],
        dtype=torch.float64 if inputs.queries.dtype == torch.float64 else torch.float32,
    )


def agreed_counts(
    spec: LossSpec, inputs: LossInputs, group: Group, fault: str | None, *, talks_backward: bool = False
) -> list[int]:
    """Return each rank's number of pairs, once all ranks agree on the spec and on the shapes of their tensors.

    fault: what is wrong with this rank's arguments. Raises ValueError on every rank.
    """
    if world_of(group) == 1:
        if fault:
            raise ValueError(fault)
        counts = [len(inputs.queries)]
    else:
        agreed = [] if fault else [*_agreed(spec, inputs, talks_backward=talks_backward)]
        headers = agree([int(bool(fault)), *(entry.code for entry in agreed)], group, what="contrastive_loss")
        _compare(headers, agreed, fault, rank_of(group))
        counts = [header[1] for header in headers]
    if sum(counts) == 0:
        raise ValueError("no rank has a pair, so the mean is over nothing; give at least one pair on one rank")
    return counts


def _talks_backward(spec: LossSpec, loss: RowLoss | None, inputs: LossInputs) -> bool:
    """Return whether the backward pass will meet the other ranks."""
    given = (inputs.queries, inputs.keys, inputs.hard_negatives, inputs.temperature)
    learns = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given)
    return learns and (spec.exchange == "ring" or (loss is not None and loss.matched))


def tensor_faults(inputs: LossInputs) -> Iterator[str]:
    """Yield what is wrong with this rank's tensors, the first thing first."""
    queries, keys, hard = inputs.queries, inputs.keys, inputs.hard_negatives
    if queries.ndim != 2 or queries.dtype not in DTYPES or queries.shape[1] == 0:
        yield f"queries must be floating point [b, D], not {tensor_words(queries)}"
    if keys.shape != queries.shape or not _alike(keys, queries):
        yield f"keys must be like queries, {tensor_words(queries)}, not {tensor_words(keys)}"
    if hard is not None:
        b, D = queries.shape
        if hard.ndim != 3 or (hard.shape[0], hard.shape[2]) != (b, D) or not _alike(hard, queries):
            yield f"hard_negatives must be [{b}, H, {D}] {queries.dtype} on {queries.device}, not {tensor_words(hard)}"
    yield from _id_faults(inputs)
    for word, value in (("temperature", inputs.temperature), ("bias", inputs.bias)):
        if isinstance(value, Tensor) and value.ndim != 0:
            yield f"{word} must be a number or a 0-d tensor, not {tensor_words(value)}; take {word}.squeeze()"


def _id_faults(inputs: LossInputs) -> Iterator[str]:
    """Yield what is wrong with the ids."""
    b = len(inputs.queries)
    for word, ids in (("pair_ids", inputs.pair_ids), ("key_ids", inputs.key_ids)):
        if ids is not None and (ids.shape != (b,) or ids.dtype != torch.int64):
            yield f"{word} must be int64 [{b}], not {tensor_words(ids)}"
    ids = inputs.negative_ids
    if ids is None:
        return
    if inputs.hard_negatives is None:
        yield "negative_ids are those of hard_negatives, which are not given; leave them out"
    elif ids.shape != inputs.hard_negatives.shape[:2] or ids.dtype != torch.int64:
        yield f"negative_ids must be int64 {list(inputs.hard_negatives.shape[:2])}, not {tensor_words(ids)}"
    if inputs.pair_ids is None and inputs.key_ids is None:
        yield "negative_ids are compared with pair_ids and key_ids; give pair_ids, key_ids or both"


def _number_faults(spec: LossSpec, loss: RowLoss, inputs: LossInputs) -> Iterator[str]:
    """Yield what is wrong with this rank's other arguments."""
    if spec.exchange not in EXCHANGES:
        yield f"exchange must be one of {', '.join(EXCHANGES)}, not {spec.exchange!r}" + nearest(
            str(spec.exchange), [*EXCHANGES]
        )
    temperature, bias, weight = _number(inputs.temperature), _bias(spec, inputs), spec.hard_negative_weight
    if not (math.isfinite(temperature) and temperature > 0):
        yield f"temperature must be finite and above 0, for example 0.05, not {temperature}"
    if not (math.isfinite(bias) and math.isfinite(spec.margin)):
        yield f"bias and margin must be finite, not {bias} and {spec.margin}"
    if not loss.learns_bias and (isinstance(inputs.bias, Tensor) or bias != 0):
        yield f"bias is siglip's only, and name is {spec.name!r}; leave it out, or set name='siglip'"
    if not (math.isfinite(weight) and weight > 0):
        yield f"hard_negative_weight must be finite and above 0, for example 1.0, not {weight}"
    if spec.same_side and not loss.same_side:
        yield f"same_side is not defined for name={spec.name!r}; set same_side=False"
    for word, size in (("tile", spec.tile), ("pool", spec.pool)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            yield f"{word} must be a whole number above 0, or None, not {size!r}"


def _alike(x: Tensor, like: Tensor) -> bool:
    return x.dtype == like.dtype and x.device == like.device


def tensor_words(x: Tensor) -> str:
    """Describe the shape, dtype and device of a tensor, for a person."""
    return f"{list(x.shape)} {x.dtype} on {x.device}"


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _bias(spec: LossSpec, inputs: LossInputs) -> float:
    return _number(spec.bias if inputs.bias is None else inputs.bias)


@dataclass(frozen=True)
class _Agreed:
    """One value on which ranks agree: its name, an int64 that is equal where it is, and how to read that again."""

    word: str
    code: int
    read: Callable[[int], str] = str


def _agreed(spec: LossSpec, inputs: LossInputs, *, talks_backward: bool) -> Iterator[_Agreed]:
    """Yield what a header holds after its fault flag. Ranks may differ in the first value, b, alone."""
    yield _Agreed("b", len(inputs.queries))
    yield _Agreed("width D", inputs.queries.shape[1])
    yield _Agreed("hard negatives H", inputs.hard)
    yield _Agreed("dtype", DTYPES.index(inputs.queries.dtype), lambda index: str(DTYPES[index]))
    yield _of_number("temperature", _number(inputs.temperature))
    for field in fields(spec):
        value = _bias(spec, inputs) if field.name == "bias" else getattr(spec, field.name)
        if field.name == "tile":
            continue
        if isinstance(value, bool):
            yield _of_flag(field.name, value)
        elif isinstance(value, float):
            yield _of_number(field.name, value)
        elif value is None or isinstance(value, int):
            yield _Agreed(field.name, value or 0, lambda size: str(size or None))
        else:
            yield _of_text(field.name, value if isinstance(value, str) else canonical(dict(value)))
    for word in ("pair_ids", "key_ids", "negative_ids"):
        yield _of_flag(f"{word} given", getattr(inputs, word) is not None)
    yield _of_flag("a gradient that needs other ranks", talks_backward)


def _of_number(word: str, value: float) -> _Agreed:
    """Encode a float by its bits, so that ranks compare it exactly."""
    bits = int(struct.unpack("<q", struct.pack("<d", value))[0])
    return _Agreed(word, bits, lambda code: repr(struct.unpack("<d", struct.pack("<q", code))[0]))


def _of_flag(word: str, value: bool) -> _Agreed:
    return _Agreed(word, int(value), lambda code: str(bool(code)))


def _of_text(word: str, value: str) -> _Agreed:
    """Encode a text by a hash, as a header holds numbers: this rank's own text and the usual ones can be read again."""
    known = {_text_code(text): repr(text) for text in (*builtin_names("loss"), *EXCHANGES, value)}
    return _Agreed(word, _text_code(value), lambda code: known.get(code, "another"))


def _text_code(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big", signed=True)


def _compare(headers: list[list[int]], agreed: list[_Agreed], fault: str | None, rank: int) -> None:
    """Raise ValueError, on every rank alike, when a rank refused its arguments or ranks differ."""
    refused = [str(number) for number, header in enumerate(headers) if header[0]]
    if refused:
        raise ValueError(
            f"rank {rank}: {fault}"
            if fault
            else f"rank {', '.join(refused)} refused its arguments, see its own message"
        )
    differing = []
    for index, entry in enumerate(agreed[1:], start=2):
        codes = [header[index] for header in headers]
        if len(set(codes)) > 1:
            differing.append(
                f"{entry.word} is " + ", ".join(f"{entry.read(c)} on rank {r}" for r, c in enumerate(codes))
            )
    if differing:
        raise ValueError(f"ranks disagree: {'; '.join(differing)}; every rank must pass the same")
