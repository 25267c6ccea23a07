"""How the numbers of a row are an image: height, width, channels.

A flat row is height, width, channels. Of a nested one the lists say the shape: [H, W], [H, W, 1 or 3], or channels
first, [1 or 3, H, W]; what could be two of these, or a flattened picture, is asked about, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

from jobs.data.sources import Rows

GREY, COLOURED = 1, 3
"""Channels of an image where nothing says otherwise."""

_SMALLEST = 4
"""Pixels of a picture that may have been flattened."""

RGBA = 4


def refuse_channels_first(rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> None:
    """Raise DataError for a data.image_shape that has the channels first."""
    if image_shape and len(image_shape) == 3 and image_shape[0] in (GREY, COLOURED) and image_shape[2] > COLOURED:
        c, h, w = image_shape
        raise rows.fault(
            f"data.image_shape = {list(image_shape)} asks for {w} channels; it is [height, width, channels], so write "
            f"{[h, w, c]}; numbers that lie channel after channel are read from nested lists [{c}][{h}][{w}]",
            column=column,
        )


def layout(
    rows: Rows, column: str, shape: tuple[int, ...], image_shape: tuple[int, ...] | None
) -> tuple[tuple[int, int, int], bool]:
    """Find (H, W, C) of rows of this shape, and whether their channels come first."""
    if len(shape) == 1 or math.prod(shape) == 0:
        return _flat_shape(rows, column, math.prod(shape), image_shape), False
    if len(shape) > 3:
        raise rows.fault(
            f"is nested {len(shape)} deep ({times(shape)}); give [height, width], or the same with 1 or 3 channels "
            "first or last",
            column=column,
            row=0,
        )
    readings = list(_readings(shape, image_shape))
    if len(readings) > 1 and math.prod(shape) > 1:
        (last, _), (first, _) = readings
        other = "and transpose them if it is the second" if first == last else f"or {list(first)} if it is the second"
        raise rows.fault(
            f"is {times(shape)} numbers, which may be height, width, channels or channels, height, width; set "
            f"data.image_shape = {list(last)} if it is the first, {other}",
            column=column,
            row=0,
        )
    if not readings and image_shape is not None:
        out = "leave it out, or " if len(shape) == 3 and 1 not in shape else ""
        raise rows.fault(
            f"is {times(shape)} numbers, and data.image_shape = {list(image_shape)} is another shape; {out}write the "
            "[height, width, channels] of a row",
            column=column,
            row=0,
        )
    if not readings and (len(shape) == 2 or 1 in shape):
        c = next(side for side in (RGBA, COLOURED, GREY) if side in shape)
        side = math.isqrt(math.prod(shape) // c)
        works = f"[{side}, {side}, {c}]" if side * side * c == math.prod(shape) else "[height, width, channels]"
        raise rows.fault(
            f"is {times(shape)} numbers, which may be a picture of that size or a flattened one; set data.image_shape "
            f"= {list(shape)} if it is the first, or {works} if it is the second",
            column=column,
            row=0,
        )
    if not readings:
        raise rows.fault(
            f"is {times(shape)} numbers, and neither its first nor its last is 1 or 3 channels; set data.image_shape "
            f"= {list(shape)} if the last are the channels, or {[*shape[1:], shape[0]]} if the first are",
            column=column,
            row=0,
        )
    return readings[0]


def _readings(
    shape: tuple[int, ...], image_shape: tuple[int, ...] | None
) -> Iterator[tuple[tuple[int, int, int], bool]]:
    """Yield what a nested row may be: (H, W, C), and whether its channels come first. Where equal sides of a shape say
    nothing, data.image_shape means what it says: channels last."""
    if image_shape is not None:
        yield from _as_told(shape, image_shape)
        return
    h, w, c = height_width_channels(shape)
    if len(shape) == 2:
        if not _may_be_flattened(h, w, channels=True):
            yield (h, w, GREY), False
        return
    both = [reading for reading in (((h, w, c), False), ((w, c, h), True)) if reading[0][2] in (GREY, COLOURED)]
    if len(both) != 1 or not _may_be_flattened(*both[0][0][:2], channels=False):
        yield from both


def _may_be_flattened(h: int, w: int, *, channels: bool) -> bool:
    """Return whether pixels of this height and width may be a whole picture in a row; or, with `channels`, if one of
    the two may be its channels, each channel of a picture."""
    small, large = sorted((h, w))
    return small in ((GREY, COLOURED, RGBA) if channels else (GREY,)) and large >= _SMALLEST and large > small


def _as_told(shape: tuple[int, ...], image_shape: tuple[int, ...]) -> Iterator[tuple[tuple[int, int, int], bool]]:
    """Yield the readings that data.image_shape allows: the lists of a picture, or with some of its axes flattened."""
    h, w, c = height_width_channels(image_shape)
    if len(image_shape) == 2 and math.prod(shape) == COLOURED * h * w:
        c = COLOURED
    whole: dict[bool, list[tuple[int, ...]]] = {False: [(h, w, c)], True: [(c, h, w)]}
    flattened: dict[bool, list[tuple[int, ...]]] = {
        False: [(h * w, c), (h, w * c), (h * w * c,)],
        True: [(c, h * w), (c * h, w)],
    }
    if shape not in whole[False] + whole[True]:
        shape = _without_ones(shape)
        whole = {first: [_without_ones(lists) for lists in whole[first] + flattened[first]] for first in whole}
    is_last = shape in whole[False]
    if is_last:
        yield (h, w, c), False
    if shape in whole[True] and not (is_last and (c == GREY or len(image_shape) == 3)):
        yield (h, w, c), True


def _without_ones(shape: tuple[int, ...]) -> tuple[int, ...]:
    return tuple(side for side in shape if side != 1)


def _flat_shape(rows: Rows, column: str, size: int, image_shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """Find (H, W, C) of rows of `size` numbers: as `image_shape` has them, or square and grey."""
    side = math.isqrt(size)
    if image_shape:
        shape = height_width_channels(image_shape)
        claim = f"data.image_shape = {list(image_shape)} needs {math.prod(image_shape)}"
    else:
        shape, claim = (side, side, GREY), "that is no square grey image"
    if math.prod(shape) != size or size == 0:
        raise rows.fault(f"holds {size} numbers, and {claim}; {_flat_remedy(size, image_shape)}", column=column, row=0)
    return shape


def _flat_remedy(size: int, image_shape: tuple[int, ...] | None) -> str:
    """Suggest what to do about rows of `size` numbers that do not have the shape they should."""
    lists = "numbers that lie channel after channel must be nested lists, [channels][height][width]"
    side = math.isqrt(size // COLOURED)
    if image_shape is None:
        works = (
            [side, side, COLOURED] if 0 < size == COLOURED * side * side else "the [height, width, channels] of a row"
        )
        return f"set data.image_shape = {works}; {lists}"
    per_pixel, rest = divmod(size, math.prod(image_shape))
    if rest == 0 and per_pixel == COLOURED and image_shape[2:] in ((), (GREY,)):
        return f"set data.image_shape = {[*image_shape[:2], COLOURED]}; {lists}"
    if rest == 0 and per_pixel in (2, 4, 8):
        return (
            f"that is {per_pixel} bytes for each, as of float32, int64 or the like, or of four channels; give bytes of "
            "uint8, or lists of the numbers"
        )
    return f"set data.image_shape = the [height, width, channels] of a row; {lists}"


def height_width_channels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """Return `(H, W)` or `(H, W, C)` as the latter."""
    h, w, c = (*shape, GREY)[:3]
    return h, w, c


def times(shape: tuple[int, ...]) -> str:
    """Write a shape as people do: `28 x 28`."""
    return " x ".join(map(str, shape))
