"""What a loss call asks for: checked on this rank, then agreed by all ranks before any payload moves."""

from __future__ import annotations

import difflib
import math
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import chain

import torch
from torch import Tensor

from jobs.core.collectives import Group, agree, rank_of, world_of

NAMES = ("infonce", "infonce_ce", "infonce_matched", "dcl", "flatnce", "siglip")
EXCHANGES = ("gather", "ring")
DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)

QUERIES, KEYS, HARD = 0, 1, 2
"""Sides of a pair. Rows of HARD are flattened, pair-major: [b H, D]."""


@dataclass(frozen=True)
class LossSpec:
    """A checked and agreed loss call, without its tensors."""

    name: str
    temperature: float
    margin: float
    bias: float
    log_weight: float
    """Added to the logits of an anchor's own hard negatives."""
    symmetric: bool
    same_side: bool
    hard: int
    """Hard negatives of each pair, H."""
    texts: int
    """Ids of each pair: of its anchor, of its key, of both, or of neither."""
    hard_ids: bool
    """Whether hard negatives have ids too."""
    pool: int | None
    exchange: str
    counts: list[int]
    """Pairs of each rank."""
    rank: int
    width: int
    tile: int | None
    dtype: torch.dtype
    """Of similarities, sums and the loss: float64 for float64 features, float32 for all others."""

    @property
    def total(self) -> int:
        """Pairs of the global batch, B."""
        return sum(self.counts)

    @property
    def start(self) -> int:
        """Global index of this rank's first pair."""
        return sum(self.counts[: self.rank])

    @property
    def directions(self) -> tuple[int, ...]:
        """Sides whose rows are anchors."""
        return (QUERIES, KEYS) if self.symmetric else (QUERIES,)

    @property
    def blocks(self) -> list[tuple[int, int]]:
        """(anchors' side, candidates' side) of every block of logits."""
        blocks = [(anchor, KEYS - anchor) for anchor in self.directions]
        if self.same_side:
            blocks += [(anchor, anchor) for anchor in self.directions]
        return blocks + ([(QUERIES, HARD)] if self.hard else [])

    @property
    def softmax(self) -> bool:
        """False for siglip, whose terms do not share a normaliser."""
        return self.name != "siglip"


@dataclass(frozen=True)
class LossInputs:
    """The arguments of `contrastive_loss` on this rank, as given."""

    queries: Tensor
    keys: Tensor
    hard_negatives: Tensor | None
    pair_ids: Tensor | None
    key_ids: Tensor | None
    negative_ids: Tensor | None
    name: str
    temperature: float | Tensor
    bias: float | Tensor
    margin: float
    hard_negative_weight: float
    symmetric: bool
    same_side: bool
    pool: int | None
    exchange: str
    tile: int | None

    @property
    def talks_backward(self) -> bool:
        """Whether the backward pass will meet the other ranks."""
        given = (self.queries, self.keys, self.hard_negatives, self.temperature)
        learns = torch.is_grad_enabled() and any(isinstance(x, Tensor) and x.requires_grad for x in given)
        return learns and (self.exchange == "ring" or self.name == "infonce_matched")


def agreed_problem(request: LossInputs, group: Group) -> LossSpec:
    """Check this rank's arguments and agree on them with every other rank: one small collective.

    Raises ValueError on every rank when one rank's arguments are wrong or differ from the others'.
    """
    fault = next(chain(_tensor_faults(request), _number_faults(request)), None)
    rank = rank_of(group)
    if world_of(group) == 1:
        if fault:
            raise ValueError(fault)
        counts = [len(request.queries)]
    else:
        header = [1] + [0] * len(_AGREED) if fault else [0, *(read(request) for _, read, _ in _AGREED)]
        headers = agree(header, group, what="contrastive_loss")
        _compare(headers, fault, rank)
        counts = [line[1] for line in headers]
    if sum(counts) == 0:
        raise ValueError("no rank has a pair, so the mean is over nothing; give at least one pair on one rank")
    return LossSpec(
        name=request.name,
        temperature=_number(request.temperature),
        margin=request.margin,
        bias=_number(request.bias),
        log_weight=math.log(request.hard_negative_weight),
        symmetric=request.symmetric,
        same_side=request.same_side,
        hard=_hard(request),
        texts=sum(ids is not None for ids in (request.pair_ids, request.key_ids)),
        hard_ids=request.negative_ids is not None,
        pool=request.pool if request.pool is not None and request.pool < sum(counts) else None,
        exchange=request.exchange,
        counts=counts,
        rank=rank,
        width=request.queries.shape[1],
        tile=request.tile,
        dtype=torch.float64 if request.queries.dtype == torch.float64 else torch.float32,
    )


def _tensor_faults(request: LossInputs) -> Iterator[str]:
    """What is wrong with this rank's tensors, the first thing first."""
    queries, keys, hard = request.queries, request.keys, request.hard_negatives
    if queries.ndim != 2 or queries.dtype not in DTYPES or queries.shape[1] == 0:
        yield f"queries must be floating point [b, D], not {_described(queries)}"
    if keys.shape != queries.shape or not _alike(keys, queries):
        yield f"keys must be like queries, {_described(queries)}, not {_described(keys)}"
    if hard is not None:
        b, D = queries.shape
        if hard.ndim != 3 or (hard.shape[0], hard.shape[2]) != (b, D) or not _alike(hard, queries):
            yield f"hard_negatives must be [{b}, H, {D}] {queries.dtype} on {queries.device}, not {_described(hard)}"
    yield from _id_faults(request)
    for word, value in (("temperature", request.temperature), ("bias", request.bias)):
        if isinstance(value, Tensor) and value.ndim != 0:
            yield f"{word} must be a number or a 0-d tensor, not {_described(value)}; take {word}.squeeze()"


def _id_faults(request: LossInputs) -> Iterator[str]:
    """What is wrong with the ids."""
    b = len(request.queries)
    for word, ids in (("pair_ids", request.pair_ids), ("key_ids", request.key_ids)):
        if ids is not None and (ids.shape != (b,) or ids.dtype != torch.int64):
            yield f"{word} must be int64 [{b}], not {_described(ids)}"
    ids = request.negative_ids
    if ids is None:
        return
    if request.hard_negatives is None:
        yield "negative_ids are those of hard_negatives, which are not given; leave them out"
    elif ids.shape != request.hard_negatives.shape[:2] or ids.dtype != torch.int64:
        yield f"negative_ids must be int64 {list(request.hard_negatives.shape[:2])}, not {_described(ids)}"
    if request.pair_ids is None and request.key_ids is None:
        yield "negative_ids are compared with pair_ids and key_ids; give pair_ids, key_ids or both"


def _number_faults(request: LossInputs) -> Iterator[str]:
    """What is wrong with this rank's other arguments."""
    yield from _wrong_choice("name", request.name, NAMES)
    yield from _wrong_choice("exchange", request.exchange, EXCHANGES)
    temperature, bias, weight = _number(request.temperature), _number(request.bias), request.hard_negative_weight
    if not (math.isfinite(temperature) and temperature > 0):
        yield f"temperature must be finite and above 0, for example 0.05, not {temperature}"
    if not (math.isfinite(bias) and math.isfinite(request.margin)):
        yield f"bias and margin must be finite, not {bias} and {request.margin}"
    if request.name != "siglip" and (isinstance(request.bias, Tensor) or bias != 0):
        yield f"bias is siglip's only, and name is {request.name!r}; leave it out, or set name='siglip'"
    if not (math.isfinite(weight) and weight > 0):
        yield f"hard_negative_weight must be finite and above 0, for example 1.0, not {weight}"
    if request.same_side and request.name == "siglip":
        yield "same_side is not defined for name='siglip'; set same_side=False"
    for word, size in (("tile", request.tile), ("pool", request.pool)):
        if size is not None and (isinstance(size, bool) or not isinstance(size, int) or size < 1):
            yield f"{word} must be a whole number above 0, or None, not {size!r}"


def _wrong_choice(word: str, value: str, known: tuple[str, ...]) -> Iterator[str]:
    if value not in known:
        close = difflib.get_close_matches(str(value), known, n=1)
        yield f"{word} must be one of {', '.join(known)}, not {value!r}" + (
            f"; did you mean {close[0]!r}?" if close else ""
        )


def _alike(x: Tensor, like: Tensor) -> bool:
    return x.dtype == like.dtype and x.device == like.device


def _described(x: Tensor) -> str:
    return f"{list(x.shape)} {x.dtype} on {x.device}"


def _number(value: float | Tensor) -> float:
    return float(value.detach()) if isinstance(value, Tensor) else float(value)


def _hard(request: LossInputs) -> int:
    return 0 if request.hard_negatives is None else request.hard_negatives.shape[1]


def _bits(value: float | Tensor) -> int:
    """A float's bits, so that ranks can compare it exactly."""
    return int(struct.unpack("<q", struct.pack("<d", _number(value)))[0])


def _float(bits: int) -> str:
    return repr(struct.unpack("<d", struct.pack("<q", bits))[0])


def _flag(value: int) -> str:
    return str(bool(value))


_AGREED: list[tuple[str, Callable[[LossInputs], int], Callable[[int], str] | None]] = [
    ("b", lambda r: len(r.queries), None),
    ("width D", lambda r: r.queries.shape[1], str),
    ("hard negatives H", _hard, str),
    ("dtype", lambda r: DTYPES.index(r.queries.dtype), lambda index: str(DTYPES[index])),
    ("name", lambda r: NAMES.index(r.name), lambda index: repr(NAMES[index])),
    ("exchange", lambda r: EXCHANGES.index(r.exchange), lambda index: repr(EXCHANGES[index])),
    ("temperature", lambda r: _bits(r.temperature), _float),
    ("bias", lambda r: _bits(r.bias), _float),
    ("margin", lambda r: _bits(r.margin), _float),
    ("hard_negative_weight", lambda r: _bits(r.hard_negative_weight), _float),
    ("symmetric", lambda r: int(r.symmetric), _flag),
    ("same_side", lambda r: int(r.same_side), _flag),
    ("pool", lambda r: r.pool or 0, lambda size: str(size or None)),
    ("pair_ids given", lambda r: int(r.pair_ids is not None), _flag),
    ("key_ids given", lambda r: int(r.key_ids is not None), _flag),
    ("negative_ids given", lambda r: int(r.negative_ids is not None), _flag),
    ("a gradient that needs other ranks", lambda r: int(r.talks_backward), _flag),
]
"""What a header holds after its fault flag: its name, how it is read, how it is shown. The rows b alone may differ."""


def _compare(headers: list[list[int]], fault: str | None, rank: int) -> None:
    """Raise ValueError, on every rank alike, when a rank refused its arguments or ranks differ."""
    faulty = [str(number) for number, line in enumerate(headers) if line[0]]
    if faulty:
        raise ValueError(
            f"rank {rank}: {fault}" if fault else f"rank {', '.join(faulty)} refused its arguments, see its own message"
        )
    differing = []
    for place, (word, _, shown) in enumerate(_AGREED, start=1):
        values = [line[place] for line in headers]
        if shown is not None and len(set(values)) > 1:
            differing.append(f"{word} is " + ", ".join(f"{shown(v)} on rank {r}" for r, v in enumerate(values)))
    if differing:
        raise ValueError(f"ranks disagree: {'; '.join(differing)}; every rank must pass the same")
