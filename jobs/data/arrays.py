"""Images as numbers: raw bytes where they lie, lists, nested lists, tensors.

A flat row is height, width, channels. Of a nested one the lists say the shape: [H, W], [H, W, 1 or 3], or channels
first, [1 or 3, H, W]; what could be two of these is asked about, never guessed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.formats import DataError
from jobs.data.sources import Rows

GREY, COLOURED = 1, 3
"""Channels of an image of which nothing else is said."""

_BLOCK = 1024


class Arrays:
    """Rows of numbers: views of the Arrow buffers where the numbers are bytes."""

    def __init__(self, rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> None:
        refuse_channels_first(rows, column, image_shape)
        self._rows, self._column = rows, column
        chunks = [chunk for chunk in rows.table[column].chunks if len(chunk)]
        self._starts = np.cumsum([0, *map(len, chunks)])
        read = [_numbers(rows, column, chunk, int(at)) for chunk, at in zip(chunks, self._starts, strict=False)]
        self._parts = [numbers for numbers, _ in read]
        shape = read[0][1]
        for (_, other), at in zip(read, self._starts, strict=False):
            if other != shape:
                raise _odd_size(rows, column, int(at), other, shape)
        self.hwc, self._is_planar = _layout(rows, column, shape, image_shape)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """[c, H, W, C]: uint8, or float32 in [0, 1]."""
        taken = self._flat(rows)
        h, w, c = self.hwc
        if self._is_planar:
            return taken.reshape(len(rows), c, h, w).transpose(0, 2, 3, 1)
        return taken.reshape(len(rows), h, w, c)

    def check(self) -> list[str]:
        """Raises DataError for whole numbers that are 0 and 1 only. Sizes were compared when the column was opened."""
        blocks = (part[low : low + _BLOCK] for part in self._parts for low in range(0, len(part), _BLOCK))
        highest = 0
        for block in blocks:
            highest = max(highest, block.max(initial=0))
            if block.dtype != np.uint8 or highest > 1:
                return []
        if highest == 1:
            raise self._rows.fault(
                "holds no number above 1 in any row, and whole numbers are read as 0 to 255, so every image would be "
                "black; give true and false, or fractions, or multiply by 255",
                column=self._column,
            )
        return []

    def _flat(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        if len(self._parts) == 1:
            only: NDArray[Any] = self._parts[0][rows]
            return only
        out = np.empty((len(rows), self._parts[0].shape[1]), self._parts[0].dtype)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for place in np.unique(places):
            here = places == place
            out[here] = self._parts[place][rows[here] - self._starts[place]]
        return out


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Whether values of this type are bytes, each of its own length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def refuse_channels_first(rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> None:
    """Raise DataError for a data.image_shape that has the channels first."""
    if image_shape and len(image_shape) == 3 and image_shape[0] in (GREY, COLOURED) and image_shape[2] > COLOURED:
        c, h, w = image_shape
        raise rows.fault(
            f"data.image_shape = {list(image_shape)} asks for {w} channels; it is [height, width, channels], so write "
            f"{[h, w, c]}; numbers that lie channel after channel are read from nested lists [{c}][{h}][{w}]",
            column=column,
        )


def _numbers(rows: Rows, column: str, chunk: pa.Array, at: int) -> tuple[NDArray[Any], tuple[int, ...]]:
    """[rows of the chunk, numbers of a row], uint8 or float32 in [0, 1], and the shape of a row. Bytes are no copy."""
    if isinstance(chunk.type, pa.BaseExtensionType) and not isinstance(chunk.type, pa.FixedShapeTensorType):
        chunk = chunk.storage
    kind, n = chunk.type, len(chunk)
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        buffer = np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :]
        return buffer[: n * width].reshape(n, width), (width,)
    if is_bytes(kind):
        offsets = np.frombuffer(chunk.buffers()[1], np.int64 if pa.types.is_large_binary(kind) else np.int32)
        offsets = offsets[chunk.offset : chunk.offset + n + 1]
        odd = np.flatnonzero(np.diff(offsets) != offsets[1] - offsets[0])
        width = int(offsets[1] - offsets[0])
        if len(odd):
            first = int(odd[0])
            raise _odd_size(rows, column, at + first, (int(offsets[first + 1] - offsets[first]),), (width,))
        buffer = np.frombuffer(chunk.buffers()[2] or b"", np.uint8)
        return buffer[offsets[0] : offsets[-1]].reshape(n, width), (width,)
    if isinstance(kind, pa.FixedShapeTensorType):
        values, shape = chunk.storage.flatten(), tuple(kind.shape)
    elif is_list(kind):
        values, shape = _unnested(rows, column, chunk, at)
    else:
        values, shape = chunk, ()
    return _in_range(rows, column, values, at, (n, *shape)), _logical(kind, shape)


def _unnested(rows: Rows, column: str, chunk: pa.Array, at: int) -> tuple[pa.Array, tuple[int, ...]]:
    """The numbers of nested lists, one after another, and the shape that every row has."""
    values = chunk
    shape: list[int] = []
    while is_list(values.type):
        each = math.prod(shape)
        if values.null_count:
            row = at + pc.index(values.is_null(), value=True).as_py() // max(each, 1)
            raise rows.fault("holds a list that is null; remove the row", column=column, row=row)
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[:1])
        if len(odd):
            row, found, usual = at + int(odd[0]) // each, int(lengths[odd[0]]), int(lengths[0])
            if not shape and not is_list(values.type.value_type):
                raise _odd_size(rows, column, row, (found,), (usual,))
            raise rows.fault(
                f"holds a list of {found} where the lists before it are of {usual}; all images must be of one size, "
                "and the lists of an image as long as one another",
                column=column,
                row=row,
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        values = values.flatten()
    return values, tuple(shape)


def _in_range(rows: Rows, column: str, values: pa.Array, at: int, shape: tuple[int, ...]) -> NDArray[Any]:
    """[rows, numbers of a row] of values that lie one after another; truth is 0 or 255. shape: [rows, ...]."""
    kind = values.type
    whole = pa.types.is_integer(kind)
    if len(shape) < 2 or not (whole or pa.types.is_floating(kind) or pa.types.is_boolean(kind)):
        raise rows.fault(
            f"is of type {rows.table.schema.field(column).type}; give raw pixels (fixed_size_binary, or lists of "
            "numbers), encoded images (binary), or their paths (text)",
            column=column,
        )
    top = 1 if pa.types.is_floating(kind) else 255
    if pa.types.is_boolean(kind):
        values = pc.multiply(values.cast(pa.uint8()), pa.scalar(255, pa.uint8()))
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(shape[0], math.prod(shape[1:]))
    good = ((numbers >= 0) & (numbers <= top)).all(1)
    if not good.all():
        how = "divide by 255, or give whole numbers" if top == 1 else "scale 16 bits to 8, and others to fractions"
        raise rows.fault(
            f"holds a number outside 0 to {top}, or none; {how}", column=column, row=at + int(np.argmin(good))
        )
    numbers = numbers.astype(np.uint8 if top == 255 else np.float32, copy=False)
    return _permuted(rows.table.schema.field(column).type, numbers, shape)


def _permuted(kind: pa.DataType, numbers: NDArray[Any], shape: tuple[int, ...]) -> NDArray[Any]:
    """The numbers of tensors in the order of their axes, which may lie in another."""
    if isinstance(kind, pa.FixedShapeTensorType) and kind.permutation is not None:
        axes = (0, *(axis + 1 for axis in kind.permutation))
        return np.ascontiguousarray(numbers.reshape(shape).transpose(axes)).reshape(numbers.shape)
    return numbers


def _logical(kind: pa.DataType, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(kind, pa.FixedShapeTensorType) and kind.permutation is not None:
        return tuple(shape[axis] for axis in kind.permutation)
    return shape


def _odd_size(rows: Rows, column: str, row: int, found: tuple[int, ...], usual: tuple[int, ...]) -> DataError:
    shapes = "" if len(usual) == len(found) == 1 else f" ({_times(found)}, not {_times(usual)})"
    return rows.fault(
        f"holds {math.prod(found)} numbers where the rows before it hold {math.prod(usual)}{shapes}; all images must "
        "be of one size, or encoded as PNG, JPEG or the like",
        column=column,
        row=row,
    )


def _layout(
    rows: Rows, column: str, shape: tuple[int, ...], image_shape: tuple[int, ...] | None
) -> tuple[tuple[int, int, int], bool]:
    """(H, W, C) of rows of this shape, and whether their channels come first."""
    if len(shape) == 1 or math.prod(shape) == 0:
        return _flat_shape(rows, column, math.prod(shape), image_shape), False
    if len(shape) > 3:
        raise rows.fault(
            f"is nested {len(shape)} deep ({_times(shape)}); give [height, width], or the same with 1 or 3 channels "
            "first or last",
            column=column,
            row=0,
        )
    readings = list(_readings(shape, image_shape))
    if len(readings) > 1 and math.prod(shape) > 1:
        (last, _), (first, _) = readings
        other = "and transpose them if it is the second" if first == last else f"or {list(first)} if it is the second"
        raise rows.fault(
            f"is {_times(shape)} numbers, which may be height, width, channels or channels, height, width; set "
            f"data.image_shape = {list(last)} if it is the first, {other}",
            column=column,
            row=0,
        )
    if not readings and image_shape is not None:
        raise rows.fault(
            f"is {_times(shape)} numbers, and data.image_shape = {list(image_shape)} is another shape; leave it out, "
            "or write the [height, width, channels] of a row",
            column=column,
            row=0,
        )
    if not readings:
        raise rows.fault(
            f"is {_times(shape)} numbers, and neither its first nor its last is 1 or 3 channels; set data.image_shape "
            f"= {list(shape)} if the last are the channels, or {[*shape[1:], shape[0]]} if the first are",
            column=column,
            row=0,
        )
    return readings[0]


def _readings(
    shape: tuple[int, ...], image_shape: tuple[int, ...] | None
) -> Iterator[tuple[tuple[int, int, int], bool]]:
    """What a nested row may be: (H, W, C), and whether its channels come first. In a shape of equal sides, which says
    nothing, data.image_shape means what it says: channels last."""
    h, w, c = height_width_channels(shape)
    if len(shape) == 2:
        if image_shape is None or image_shape in ((h, w), (h, w, GREY)):
            yield (h, w, GREY), False
        return
    last, first = (h, w, c), (w, c, h)
    for hwc, is_planar in ((last, False), (first, True)):
        usual = hwc[2] in (GREY, COLOURED)
        fits = image_shape == hwc or (usual and (image_shape is None or image_shape == hwc[:2]))
        if fits and not (is_planar and image_shape == last):
            yield hwc, is_planar


def _flat_shape(rows: Rows, column: str, size: int, image_shape: tuple[int, ...] | None) -> tuple[int, int, int]:
    """(H, W, C) of rows of `size` numbers: as told, or square and grey."""
    side = math.isqrt(size)
    if image_shape:
        shape = height_width_channels(image_shape)
        claim = f"data.image_shape = {list(image_shape)} needs {math.prod(image_shape)}"
    else:
        shape, claim = (side, side, GREY), "that is no square grey image"
    if math.prod(shape) != size or size == 0:
        side = math.isqrt(size // 3)
        works = f"[{side}, {side}, 3]" if 0 < size == 3 * side * side else "the [height, width, channels] of a row"
        raise rows.fault(
            f"holds {size} numbers, and {claim}; set data.image_shape = {works}; numbers that lie channel after "
            "channel must be nested lists, [channels][height][width]",
            column=column,
            row=0,
        )
    return shape


def height_width_channels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`(H, W)` or `(H, W, C)` as the latter."""
    h, w, c = (*shape, GREY)[:3]
    return h, w, c


def _times(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
