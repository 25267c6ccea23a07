"""Rows of bytes that would be taken for grey pixels and are something else: wider numbers, or four channels.

In a picture the bytes at every 2nd, 4th or 8th place are like the others. Rows are called something else only where
they are not, so that no picture is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_FLOATS = {"<f4": "float32", ">f4": "float32 (big-endian)", "<f8": "float64", ">f8": "float64 (big-endian)"}
_HALVES = {"<f2": "float16", ">f2": "float16 (big-endian)"}
_LEAST, _MOST = 1e-9, 1e6
"""Sizes of numbers that pixels may have, whatever their scale."""

_NEAR_TOPS = range(32, 90)
"""What the first byte of such a float32 or float64 may be, without its sign; and pixels beside it, where these are."""

_LEAST_HALF = 2.0**-14
"""Smaller ones of float16 have fewer digits."""

_COLUMNS = 3
"""Of the picture, read as grey, in which such numbers must be: a line or a spot may look like anything."""

_TOP_OF_HALF = 0x3C
"""The highest first byte of a float16 in [0, 1]."""

_SOME = 0.1
"""Share of numbers whose lower bytes are no such first bytes."""

_SMALLEST = 64
"""Bytes of a row of which likeness says something."""

_ALIKE = 0.5
"""Of the difference of a pixel and the next; below that, others are far more alike."""

_ENOUGH = 8
"""Numbers that must agree, at least."""


def other_than_pixels(block: NDArray[np.uint8]) -> str | None:
    """Say what rows of bytes [n, size] are, if no grey pixels of one byte each; return None where they may be such."""
    for name, words in _FLOATS.items():
        if _are_floats(block, name):
            return words
    guesses = (*(_by_places(block, width) for width in (8, 4, 2)), _by_likeness(block))
    return next(filter(None, guesses), None) or next(
        (words for name, words in _HALVES.items() if _are_floats(block, name)), None
    )


def _is_wide_enough(block: NDArray[np.uint8], width: int) -> bool:
    """Return whether rows divide into numbers of `width` bytes, enough of them, and the picture has more columns than
    `width`: a column of so few may be special."""
    return block.shape[1] % width == 0 and math.isqrt(block.shape[1]) > width and block.size >= _ENOUGH * width


def _are_floats(block: NDArray[np.uint8], name: str) -> bool:
    """Return whether all are sensible numbers of this type, and their lower bytes are not like their first ones."""
    width = np.dtype(name).itemsize
    if not _is_wide_enough(block, width):
        return False
    with np.errstate(all="ignore"):
        numbers = np.ascontiguousarray(block).view(name).ravel().astype(np.float64)
        sizes = np.abs(numbers)
        sensible = (sizes > _LEAST) & (sizes < _MOST) if name in _FLOATS else (numbers > _LEAST_HALF) & (numbers <= 1)
    columns = _columns(block, width)
    spread = len(np.unique(columns[sensible.reshape(len(block), -1).any(0)]))
    if not (sensible | (numbers == 0)).all() or sensible.sum() < _ENOUGH or spread < _least(columns):
        return False
    parts = block.reshape(-1, width)[sensible]
    parts = parts if name[0] == ">" else parts[:, ::-1]
    if name in _HALVES:
        return float((parts[:, 1] > _TOP_OF_HALF).mean()) > _SOME
    return float((~np.isin(parts[:, 2:] & 0x7F, _NEAR_TOPS)).any(1).mean()) > _SOME


def _by_places(block: NDArray[np.uint8], width: int) -> str | None:
    """Guess what rows hold by their bytes at each of `width` positions: all alike at some of them, and different
    throughout the picture at others."""
    if not _is_wide_enough(block, width):
        return None
    parts = block.reshape(len(block), -1, width)
    firsts, columns = parts[0, 0], _columns(block, width)
    odd = (parts != firsts).any(0)
    live = [len(np.unique(columns[odd[:, byte]])) for byte in range(width)]
    dead = [byte for byte in range(width) if live[byte] == 0]
    spread = all(live[byte] >= _least(columns) for byte in range(width) if byte not in dead)
    if dead and len(dead) < width and spread:
        if not firsts[dead].any() and dead in (list(range(dead[0], width)), list(range(len(dead)))):
            channels = ", or four channels of which the last is empty" if dead == [3] else ""
            return f"whole numbers of {width} bytes each{channels}"
        if width == 4 and dead == [3] and firsts[3] == 255:
            return "four channels, of which the last is opacity (RGBA)"
    if width == 4 and block.size >= 16 * width:
        extreme = np.isin(parts, (0, 255)).mean((0, 1))
        if extreme[3] > 0.95 and extreme[:3].max() < 0.5:
            return "four channels, of which the last is opacity (RGBA)"
    return None


def _by_likeness(block: NDArray[np.uint8]) -> str | None:
    """Guess what rows hold where a pixel is far more like the third or fourth next than like the next: in a grey
    picture the next is the most alike."""
    if block.shape[1] < _SMALLEST:
        return None
    values = block.astype(np.int16)
    next_one, third, fourth = (float(np.abs(values[:, far:] - values[:, :-far]).mean()) for far in (1, 3, 4))
    if min(third, fourth) >= _ALIKE * next_one:
        return None
    return "three channels, pixel by pixel (RGB)" if third < fourth else "four channels, pixel by pixel (RGBA)"


def _columns(block: NDArray[np.uint8], width: int) -> NDArray[np.int64]:
    """Find the column of the picture, read as grey, where each number of a row begins."""
    return np.arange(0, block.shape[1], width) % math.isqrt(block.shape[1])


def _least(columns: NDArray[np.int64]) -> int:
    return min(_COLUMNS, len(np.unique(columns)))
