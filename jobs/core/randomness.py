"""Randomness as a function of keys: no state to save, replay or share between ranks.

Every random number of a job is a hash of what it is for: `uniform(AUGMENT, seed, step, pair, view)`. The same keys give
the same number on any device, with any number of threads, in whatever chunk or rank they are asked for. All of it is
integer arithmetic, which is exact; no library's random generator, whose streams may change between versions, is used.

The hash is a chain of 32-bit finalisers (two multiply and xor-shift rounds, the constants of C. Wellons' hash
prospector, "[16 21f0aaad 15 d35a2d97 15]"). It is not cryptographic. Two different lists of keys agree with
probability 2**-32, which is far below what training can notice.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

ORDER, AUGMENT, DROPOUT, INITIALISE, MASKING, CHILD, GROUPED, DRAWN, PROJECTION = range(1, 10)
"""First key of each use, so that no two uses of a seed share numbers."""

_MASK = 0xFFFFFFFF
_START = 0x6A09E667
# The second multiplier is written as its 32-bit negative: a 32-bit number times one below 2**31 in size fits int64.
_MULTIPLY_1, _MULTIPLY_2, _MULTIPLY_HIGH = 0x21F0AAAD, 0xD35A2D97 - 2**32, 0x1E35A7BD


def mix(*keys: int | Tensor) -> Tensor:
    """Hash the keys, in order.

    keys: ints, or integer tensors that broadcast together (and share a device); 64 bits of each count.
    Returns int64 of the broadcast shape, each in [0, 2**32). Distinct values below 2**32 of the last key never collide.
    """
    state: int | Tensor = _START
    for key in keys:
        state = _finalise(state ^ _finalise(_fold(key)))
    return state if isinstance(state, Tensor) else torch.tensor(state)


def uniform(*keys: int | Tensor) -> Tensor:
    """Return float32 in [0, 1) of the keys' broadcast shape: multiples of 2**-24, so exact on every device."""
    return (mix(*keys) >> 8).to(torch.float32) * 2.0**-24


def permutation(n: int, *keys: int) -> NDArray[np.int64]:
    """Return an order of 0 .. n-1, int64 [n]: the numbers sorted by their hashes. A function of the keys alone."""
    hashes = mix(*keys, torch.arange(n)).numpy()
    return np.argsort(hashes, kind="stable")


def init_seed(seed: int) -> int:
    """Return the seed for a torch.Generator that draws initial weights, in [0, 2**32)."""
    return int(mix(INITIALISE, seed))


def _fold(key: int | Tensor) -> int | Tensor:
    """Reduce 64 bits to 32, leaving numbers below 2**32 as they are."""
    if isinstance(key, Tensor):
        key = key.to(torch.int64)
    return (key ^ ((key >> 32) * _MULTIPLY_HIGH)) & _MASK


def _finalise(word: int | Tensor) -> int | Tensor:
    """Apply a bijection of [0, 2**32); every bit of the input moves about half of the bits of the output."""
    word = ((word ^ (word >> 16)) * _MULTIPLY_1) & _MASK
    word = ((word ^ (word >> 15)) * _MULTIPLY_2) & _MASK
    return word ^ (word >> 15)


def keep(keys: Tensor, channels: int, p: float) -> tuple[Tensor, float]:
    """Choose which of `channels` numbers per key survive dropout with probability p, and what to multiply them by.

    keys: int64 [...] from `mix`. Whether channel c is kept depends on its key and c alone, not on `channels`.
    Returns bool [..., channels] and the reciprocal of the exact probability of keeping. One 32-bit word decides for two
    channels, with 16 bits each, so p is rounded to a multiple of 2**-16 between 2**-16 and 1 - 2**-16.
    """
    kept = min(max(round((1 - p) * 2**16), 1), 2**16 - 1)
    words = _signed(keys)[..., None] ^ _signed(mix(torch.arange(-(-channels // 2), device=keys.device)))
    spare = torch.empty_like(words)
    for shift, below, factor in ((16, 2**16 - 1, _MULTIPLY_1), (15, 2**17 - 1, _MULTIPLY_2), (15, 2**17 - 1, 1)):
        # int32 has no logical shift: shift in copies of the sign, then mask them away. Its products wrap.
        torch.bitwise_right_shift(words, shift, out=spare)
        words ^= spare.bitwise_and_(below)
        if factor != 1:
            words *= factor
    return words.view(torch.int16)[..., :channels] < kept - 2**15, 2**16 / kept


def _signed(words: Tensor) -> Tensor:
    """Return the same 32 bits as int32, without a conversion out of range."""
    return ((words << 32) >> 32).to(torch.int32)
