"""Dropout whose mask is a function of the pair, so that a forward pass can be repeated bit for bit.

Whether an activation is kept is a hash of (seed, step, row, layer call, position, channel), where row numbers the pair
and its view. So encoding a row again, in another micro-batch, on another rank or with other padding drops the same
activations (DESIGN: randomness is a function, not a state). `replace_dropout` puts this in place of every nn.Dropout of
an encoder and of the dropout inside transformers' attention; `dropout_keys` says which rows are being encoded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from jobs.core import randomness

ATTENTION = "keyed_dropout"
"""Name under which transformers finds the attention of transformer.py."""


@dataclass
class _Keys:
    """What the masks of the current forward pass are made of."""

    rows: Tensor
    """int64 [n]: hash of (seed, step, row)."""

    calls: int = 0
    """Dropouts applied so far to these rows."""


_keys: ContextVar[_Keys | None] = ContextVar("dropout_keys", default=None)
"""Of the innermost `dropout_keys` in force, in each thread its own."""


@contextmanager
def dropout_keys(*, seed: int, step: int, rows: Tensor) -> Iterator[None]:
    """Say which rows the forward passes inside encode.

    rows: int64 [n], one for each row of the input: global index of the pair in the batch * views + view. Each call of
    `ContrastiveModel.encode` inside counts layer calls anew, so encoding the same rows again repeats the masks.
    """
    before = _keys.set(_Keys(randomness.mix(randomness.DROPOUT, seed, step, rows)))
    try:
        yield
    finally:
        _keys.reset(before)


def restart() -> None:
    """Begin a forward pass: the next dropout is layer call 0."""
    if (keys := _keys.get()) is not None:
        keys.calls = 0


def seed_of_rows() -> int:
    """Return a seed for the current rows together, for encoders with dropout that cannot be replaced."""
    return int(_current().rows[0])


def drop(x: Tensor, p: float) -> Tensor:
    """Apply dropout to x [n, ..., channels] with the masks of the current rows; 0 < p < 1."""
    return _dropped(x, p)


def leave_uncompiled() -> None:
    """Keep `drop` out of what torch compiles from now on: Inductor inlines the steps of a hash into one another, and
    takes many minutes over it. For those who compile: with it comes torch's compiler, two seconds of imports."""
    global _dropped  # noqa: PLW0603 - a decorator of `_drop` would cost everybody these seconds
    _dropped = torch.compiler.disable(_drop)


def _drop(x: Tensor, p: float) -> Tensor:
    keys = _current()
    if len(keys.rows) != len(x):
        raise RuntimeError(
            f"dropout_keys names {len(keys.rows)} rows, but dropout sees {len(x)}; pass one key for each input row"
        )
    words = randomness.mix(keys.rows.to(x.device), keys.calls)
    keys.calls += 1
    for size in x.shape[1:-1]:
        words = randomness.mix(words[..., None], torch.arange(size, device=x.device))
    kept, scale = randomness.keep(words, x.shape[-1], p)
    masked: Tensor = _Masked.apply(x, kept, scale)  # type: ignore[no-untyped-call]
    return masked


_dropped: Callable[[Tensor, float], Tensor] = _drop


class KeyedDropout(nn.Module):
    """nn.Dropout with keyed masks. Input [n, ..., channels], where n are the rows named by `dropout_keys`."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.p = p

    def forward(self, x: Tensor) -> Tensor:
        """Return x with some of it dropped and the rest scaled up in training mode, else x."""
        return drop(x, self.p) if self.training and self.p > 0 else x


def replace_dropout(encoder: nn.Module) -> None:
    """Put keyed dropout in place of every nn.Dropout of the encoder, and of its attention's where it has a choice."""
    _exchange(encoder, nn.Dropout, KeyedDropout, ATTENTION)


def restore_dropout(encoder: nn.Module) -> None:
    """Undo `replace_dropout`."""
    _exchange(encoder, KeyedDropout, nn.Dropout, "eager")


def _exchange(
    encoder: nn.Module,
    old: type[nn.Dropout | KeyedDropout],
    new: Callable[[float], nn.Module],
    attention: str,
) -> None:
    for module in list(encoder.modules()):
        for name, child in module.named_children():
            if isinstance(child, old):
                setattr(module, name, new(child.p))
    set_attention = getattr(encoder, "set_attn_implementation", None)  # transformers' models have one
    if set_attention is not None:
        set_attention(attention)


def why_unreplayable(encoder: nn.Module, inputs: Mapping[str, Tensor]) -> str | None:
    """Encode inputs of two or more rows in training mode, and say what random numbers other than ours it needs, if any.

    Dropout that is no nn.Dropout (a function called with a probability, drop path, layer drop) draws from torch's
    generator, which is how it is found. Generator, buffers and mode are left as they were.
    """
    rows = torch.arange(len(next(iter(inputs.values()))))
    buffers = {name: buffer.clone() for name, buffer in encoder.named_buffers()}
    was_training = encoder.training
    encoder.train()
    try:
        with torch.random.fork_rng(devices=[]), torch.no_grad(), dropout_keys(seed=0, step=0, rows=rows):
            before = torch.get_rng_state()
            encoder(**inputs)
            if not torch.equal(before, torch.get_rng_state()):
                return "it draws from torch's generator in other places than nn.Dropout and its attention"
    except RuntimeError as error:
        return str(error)
    finally:
        encoder.train(was_training)
        for name, buffer in encoder.named_buffers():
            buffer.copy_(buffers[name])
    return None


class _Masked(torch.autograd.Function):
    """x * kept * scale, keeping only the one-byte mask for the backward pass."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, kept: Tensor, scale: float) -> Tensor:
        ctx.save_for_backward(kept)
        ctx.scale = scale
        return _scaled(x, kept, scale)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (kept,) = ctx.saved_tensors
        return _scaled(gradient, kept, ctx.scale), None, None


def _scaled(x: Tensor, kept: Tensor, scale: float) -> Tensor:
    # The CPU converts bytes three times faster than bools, and multiplies faster than it selects.
    return kept.view(torch.uint8).to(x.dtype).mul_(x).mul_(scale)


def _current() -> _Keys:
    if (keys := _keys.get()) is None:
        raise RuntimeError(
            "this encoder has dropout and is in training mode, so its masks need keys; encode inside "
            "`with dropout_keys(seed=..., step=..., rows=...)`, or call model.eval() first"
        )
    return keys
