"""Images as numbers: raw bytes where they lie, lists, nested lists, tensors.

`layout` says what a row's numbers are; bytes that are no pixels are refused.
"""

from __future__ import annotations

import math
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.formats import DataError
from jobs.data.images.layout import layout, refuse_channels_first, times
from jobs.data.images.mistaken import other_than_pixels
from jobs.data.images.survey import evenly
from jobs.data.remedies import of_bytes, of_text
from jobs.data.sources import Rows

Pixels: TypeAlias = NDArray[np.uint8 | np.float32]
"""0 to 255, or fractions."""

_BLOCK = 1024
_FEW = 100
"""Rows whose bytes are looked at for another type."""

_DARK = 0.25
"""Of white; where no image is lighter, white may be another number than is thought."""


class Arrays:
    """Rows of numbers: views of the Arrow buffers where the numbers are bytes."""

    def __init__(self, rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> None:
        refuse_channels_first(rows, column, image_shape)
        _refuse_what_is_no_pixels(rows, column)
        self._rows, self._column = rows, column
        chunks = [chunk for chunk in rows.table[column].chunks if len(chunk)]
        self._starts = np.cumsum([0, *map(len, chunks)])
        read = [_numbers(rows, column, chunk, int(at)) for chunk, at in zip(chunks, self._starts, strict=False)]
        self._parts = [numbers for numbers, _ in read]
        shape = read[0][1]
        for (_, other), at in zip(read, self._starts, strict=False):
            if other != shape:
                raise _odd_size(rows, column, int(at), other, shape)
        if len(shape) == 1 and image_shape is None:
            self._refuse_other_types()
        self.hwc, self._is_planar = layout(rows, column, shape, image_shape)

    def take(self, rows: NDArray[np.int64]) -> Pixels:
        """Return the images of these rows, [c, H, W, C]: uint8, or float32 in [0, 1]."""
        taken = self._flat(rows)
        h, w, c = self.hwc
        if self._is_planar:
            return taken.reshape(len(rows), c, h, w).transpose(0, 2, 3, 1)
        return taken.reshape(len(rows), h, w, c)

    def check(self) -> list[str]:
        """Return what a person should know of the numbers. Raises DataError for whole numbers that are 0 and 1 only.
        Sizes were compared when the column was opened."""
        blocks = (part[low : low + _BLOCK] for part in self._parts for low in range(0, len(part), _BLOCK))
        whole = self._parts[0].dtype == np.uint8
        highest, white = 0.0, 255 if whole else 1
        for block in blocks:
            highest = max(highest, float(block.max(initial=0)))
            if highest >= _DARK * white:
                return []
        if highest == 1:
            raise self._rows.fault(
                "holds no number above 1 in any row, and whole numbers are read as 0 to 255, so every image would be "
                "black; give true and false, or fractions, or multiply by 255",
                column=self._column,
            )
        if highest == 0:
            return [f"{self._rows.source}: column '{self._column}' holds 0 alone in every row: all images are black"]
        kind = "whole numbers" if whole else "fractions"
        note = (
            f"{self._rows.source}: column '{self._column}' holds no number above {highest:g} in any row, and {kind} "
            f"are read as 0 to {white}, so all images are dark; scale them if white is {highest:g}"
        )
        return [note]

    def _refuse_other_types(self) -> None:
        """Raise DataError for rows of bytes that are numbers of another type: as such they have a shape too."""
        some = np.array(list(evenly(int(self._starts[-1]), _FEW)))
        block = self._flat(some)
        content = self._rows.table[self._column][0].as_py()
        if isinstance(content, bytes) and math.isqrt(len(content)) ** 2 != len(content) and (text := of_text(content)):
            raise self._rows.fault(f"holds {text}", column=self._column, row=0)
        what = other_than_pixels(block.astype(np.uint8, copy=False)) if block.dtype == np.uint8 else None
        if what is not None:
            side = math.isqrt(block.shape[1])
            works = f", or, if they are grey pixels, set data.image_shape = [{side}, {side}]"
            raise self._rows.fault(
                f"holds {block.shape[1]} bytes a row that look like {what}; give bytes of uint8, 1 or 3 channels, or "
                f"lists of the numbers{works if side * side == block.shape[1] else ''}",
                column=self._column,
                row=0,
            )

    def _flat(self, rows: NDArray[np.int64]) -> Pixels:
        if len(self._parts) == 1:
            return self._parts[0][rows]
        out: Pixels = np.empty((len(rows), self._parts[0].shape[1]), self._parts[0].dtype)
        parts = np.searchsorted(self._starts, rows, side="right") - 1
        for part in np.unique(parts):
            here = parts == part
            out[here] = self._parts[part][rows[here] - self._starts[part]]
        return out


def is_list(kind: pa.DataType) -> bool:
    """Return whether values of this type are lists."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_bytes(kind: pa.DataType) -> bool:
    """Return whether values of this type are bytes, each of its own length."""
    return bool(pa.types.is_binary(kind) or pa.types.is_large_binary(kind))


def is_text(kind: pa.DataType) -> bool:
    """Return whether values of this type are texts."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind))


def _refuse_what_is_no_pixels(rows: Rows, column: str) -> None:
    """Raise DataError where the first row is bytes that some other file begins with."""
    is_held = is_bytes(rows.table.schema.field(column).type)
    what = of_bytes(rows.table[column][0].as_py() or b"") if is_held else None
    if what is not None:
        raise rows.fault(f"holds {what}", column=column, row=0)


def _numbers(rows: Rows, column: str, chunk: pa.Array, at: int) -> tuple[Pixels, tuple[int, ...]]:
    """Read the numbers of a chunk, [rows of the chunk, numbers of a row], uint8 or float32 in [0, 1], and the shape of
    a row. Bytes are not copied."""
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
    """Flatten nested lists: return their numbers, one after another, and the shape that every row has."""
    values = chunk
    shape: list[int] = []
    while is_list(values.type):
        per_row = math.prod(shape)
        if values.null_count:
            row = at + pc.index(values.is_null(), value=True).as_py() // max(per_row, 1)
            raise rows.fault("holds a list that is null; remove the row", column=column, row=row)
        lengths = pc.list_value_length(values).to_numpy(zero_copy_only=False)
        odd = np.flatnonzero(lengths != lengths[:1])
        if len(odd):
            row, length, usual = at + int(odd[0]) // per_row, int(lengths[odd[0]]), int(lengths[0])
            if not shape and not is_list(values.type.value_type):
                raise _odd_size(rows, column, row, (length,), (usual,))
            raise rows.fault(
                f"holds a list of {length} where the lists before it are of {usual}; all images must be of one size, "
                "and the lists of an image as long as one another",
                column=column,
                row=row,
            )
        shape.append(int(lengths[0]) if len(lengths) else 0)
        values = values.flatten()
    return values, tuple(shape)


def _in_range(rows: Rows, column: str, values: pa.Array, at: int, shape: tuple[int, ...]) -> Pixels:
    """Convert values, one after another, to pixels [rows, numbers of a row]; truth is 0 or 255. shape: [rows, ...]."""
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
    numbers: NDArray[np.integer | np.floating] = values.to_numpy(zero_copy_only=False).reshape(
        shape[0], math.prod(shape[1:])
    )
    good = ((numbers >= 0) & (numbers <= top)).all(1)
    if not good.all():
        how = _how(numbers) if top == 1 else "scale 16 bits to 8, and others to fractions"
        raise rows.fault(
            f"holds a number outside 0 to {top}, or none; {how}", column=column, row=at + int(np.argmin(good))
        )
    pixels: Pixels = numbers.astype(np.uint8 if top == 255 else np.float32, copy=False)
    return _permuted(rows.table.schema.field(column).type, pixels, shape)


def _how(numbers: NDArray[np.integer | np.floating]) -> str:
    """Say how numbers become fractions, by the highest and the lowest of them."""
    finite = numbers[np.isfinite(numbers)]
    low, high = (finite.min(), finite.max()) if finite.size else (0, 0)
    if low < 0:
        return f"they are {low:g} to {high:g} here; scale them so that black is 0 and white is 1"
    if 1 < high < _DARK * 255:
        return f"the highest here is {high:g}; divide by what white is"
    return "divide by 255, or give whole numbers"


def _permuted(kind: pa.DataType, numbers: Pixels, shape: tuple[int, ...]) -> Pixels:
    """Bring the numbers of tensors into the order of their axes; they may be stored in another order."""
    if isinstance(kind, pa.FixedShapeTensorType) and kind.permutation is not None:
        axes = (0, *(axis + 1 for axis in kind.permutation))
        return np.ascontiguousarray(numbers.reshape(shape).transpose(axes)).reshape(numbers.shape)
    return numbers


def _logical(kind: pa.DataType, shape: tuple[int, ...]) -> tuple[int, ...]:
    if isinstance(kind, pa.FixedShapeTensorType) and kind.permutation is not None:
        return tuple(shape[axis] for axis in kind.permutation)
    return shape


def _odd_size(rows: Rows, column: str, row: int, shape: tuple[int, ...], usual: tuple[int, ...]) -> DataError:
    if is_bytes(rows.table.schema.field(column).type):
        for at in (row, 0):
            content = rows.table[column][at].as_py() or b""
            if what := of_bytes(content) or of_text(content):
                return rows.fault(f"holds {what}", column=column, row=at)
    shapes = "" if len(usual) == len(shape) == 1 else f" ({times(shape)}, not {times(usual)})"
    return rows.fault(
        f"holds {math.prod(shape)} numbers where the rows before it hold {math.prod(usual)}{shapes}; all images must "
        "be of one size, or encoded as PNG, JPEG or the like",
        column=column,
        row=row,
    )
