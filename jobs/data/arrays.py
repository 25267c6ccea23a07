"""Images as numbers: raw bytes where they lie, or lists."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.formats import DataError
from jobs.data.sources import Rows


class Arrays:
    """Rows of numbers: views of the Arrow buffers where the numbers are bytes."""

    def __init__(self, rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> None:
        chunks = [chunk for chunk in rows.table[column].chunks if len(chunk)]
        self._starts = np.cumsum([0, *map(len, chunks)])
        self._parts = [_numbers(rows, column, chunk, int(at)) for chunk, at in zip(chunks, self._starts, strict=False)]
        size = self._parts[0].shape[1]
        for part, at in zip(self._parts, self._starts, strict=False):
            if part.shape[1] != size:
                raise _odd_size(rows, column, int(at), part.shape[1], size)
        self.hwc = _raw_shape(rows, column, chunks[0], size, image_shape)

    def take(self, rows: NDArray[np.int64]) -> NDArray[Any]:
        """[c, numbers of an image]."""
        if len(self._parts) == 1:
            only: NDArray[Any] = self._parts[0][rows]
            return only
        out = np.empty((len(rows), self._parts[0].shape[1]), self._parts[0].dtype)
        places = np.searchsorted(self._starts, rows, side="right") - 1
        for place in np.unique(places):
            here = places == place
            out[here] = self._parts[place][rows[here] - self._starts[place]]
        return out

    def check(self) -> None:
        """Sizes were compared when the column was opened."""


def _numbers(rows: Rows, column: str, chunk: pa.Array, at: int) -> NDArray[Any]:
    """[rows of the chunk, numbers of a row]: uint8, or float32 in [0, 1]. Bytes are not copied."""
    kind, n = chunk.type, len(chunk)
    if pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        return np.frombuffer(chunk.buffers()[1], np.uint8)[chunk.offset * width :][: n * width].reshape(n, width)
    if pa.types.is_binary(kind) or pa.types.is_large_binary(kind):
        offsets = np.frombuffer(chunk.buffers()[1], np.int64 if pa.types.is_large_binary(kind) else np.int32)
        offsets = offsets[chunk.offset : chunk.offset + n + 1]
        _one_size(rows, column, at, np.diff(offsets))
        return np.frombuffer(chunk.buffers()[2] or b"", np.uint8)[offsets[0] : offsets[-1]].reshape(n, -1)
    values = chunk
    while is_list(values.type):
        if not pa.types.is_fixed_size_list(values.type):
            lengths = pc.fill_null(pc.list_value_length(values), 0).to_numpy(zero_copy_only=False)
            _one_size(rows, column, at, lengths.reshape(n, -1).sum(1))
        values = values.flatten()
    if not is_list(kind) or not (pa.types.is_integer(values.type) or pa.types.is_floating(values.type)):
        raise rows.fault(
            f"is of type {kind}; give raw pixels (fixed_size_binary, or lists of numbers) or encoded images (binary)",
            column=column,
        )
    top = 255 if pa.types.is_integer(values.type) else 1
    numbers: NDArray[Any] = values.to_numpy(zero_copy_only=False).reshape(n, -1)
    good = ((numbers >= 0) & (numbers <= top)).all(1)
    if not good.all():
        row = at + int(np.argmin(good))
        raise rows.fault(f"holds a number outside 0 to {top}, or none", column=column, row=row)
    return numbers.astype(np.uint8 if top == 255 else np.float32, copy=False)


def is_list(kind: pa.DataType) -> bool:
    """Whether values of this type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def _one_size(rows: Rows, column: str, at: int, sizes: NDArray[Any]) -> None:
    odd = np.flatnonzero(sizes != sizes[0])
    if len(odd):
        raise _odd_size(rows, column, at + int(odd[0]), int(sizes[odd[0]]), int(sizes[0]))


def _odd_size(rows: Rows, column: str, row: int, found: int, usual: int) -> DataError:
    return rows.fault(
        f"holds {found} numbers where the rows before it hold {usual}; all images must be of one size",
        column=column,
        row=row,
    )


def _raw_shape(
    rows: Rows, column: str, chunk: pa.Array, size: int, image_shape: tuple[int, ...] | None
) -> tuple[int, int, int]:
    """(H, W, C) of rows of `size` numbers: as told, as nested, or square and grey."""
    if image_shape:
        shape, claim = (
            height_width_channels(image_shape),
            f"data.image_shape = {list(image_shape)} needs {math.prod(image_shape)}",
        )
    else:
        lengths, values = [], chunk
        while is_list(values.type):
            lengths.append(len(values[0].as_py()))
            values = values.flatten()
        side = math.isqrt(size)
        shape = height_width_channels(tuple(lengths)) if len(lengths) > 1 else (side, side, 1)
        claim = "that is no square grey image"
    if math.prod(shape) != size or size == 0:
        side = math.isqrt(size // 3)
        works = f"[{side}, {side}, 3]" if 0 < size == 3 * side * side else "the [height, width, channels] of a row"
        raise rows.fault(f"holds {size} numbers, and {claim}; set data.image_shape = {works}", column=column, row=0)
    return shape


def height_width_channels(shape: tuple[int, ...]) -> tuple[int, int, int]:
    """`(H, W)` or `(H, W, C)` as the latter."""
    h, w, c = (*shape, 1)[:3]
    return h, w, c
