"""Pixels of an image column, whatever their storage: raw bytes where they lie, lists of numbers, or encoded files."""

from __future__ import annotations

import copy
import functools
import io
import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.batches import content_ids
from jobs.data.formats import DataError, short
from jobs.data.sources import Rows

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
"""How encoded images begin: PNG, JPEG, GIF, WebP, BMP, TIFF."""

KEPT_BYTES = 2**31
"""Decoded pixels of encoded images that a process keeps; a larger column is decoded at every visit."""

MEAN = STD = 0.5
"""Pixels in [0, 1] are standardised with these."""


class Images:
    """Images of one size. Indexed like a list, it gives what an encoder takes: float32 [c, C, H, W], standardised."""

    def __init__(self, rows: Rows, column: str, image_shape: tuple[int, ...] | None = None) -> None:
        """image_shape: (H, W) or (H, W, C) of raw pixels, and what encoded images are resized to; None: as they are."""
        _refuse_nulls(rows, column)
        self.rows, self.column = rows, column
        self._source = _source(rows, column, image_shape)
        self._at = np.arange(len(rows))
        self.shape: tuple[int, int, int] = (self._source.hwc[2], *self._source.hwc[:2])
        """(C, H, W)."""

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> Tensor:
        return standardised(self.unit(np.arange(len(self))[rows]))

    def unit(self, rows: NDArray[np.int64]) -> Tensor:
        """float32 [c, C, H, W] in [0, 1]."""
        raw = self._source.take(self._at[rows]).reshape(len(rows), *self._source.hwc)
        pixels = torch.from_numpy(np.ascontiguousarray(raw.transpose(0, 3, 1, 2)))
        return pixels / 255 if pixels.dtype == torch.uint8 else pixels

    def content_ids(self, rows: NDArray[np.int64]) -> Tensor:
        """int64 [c]: equal for equal pixels."""
        return content_ids(self._source.take(self._at[rows]))

    def subset(self, rows: NDArray[np.int64]) -> Images:
        """These images, in this order, on the same pixels."""
        chosen = copy.copy(self)
        vars(chosen)["_at"] = self._at[rows]
        return chosen

    def check(self) -> None:
        """Raises DataError at the first image that cannot be opened or is of another size than the first."""
        self._source.check()


def standardised(unit: Tensor) -> Tensor:
    """Pixels in [0, 1] to [-1, 1]."""
    return (unit - MEAN) / STD


@functools.lru_cache(maxsize=4)
def images_of(rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> Images:
    """Images of a column; the same object for the same rows, so that what was decoded is kept between trials."""
    return Images(rows, column, image_shape)


class _Raw:
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


class _Encoded:
    """PNG, JPEG and the like: decoded when first asked for, and kept if the whole column would fit."""

    def __init__(self, rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> None:
        self._rows, self._column, self._resize = rows, column, image_shape
        self.hwc: tuple[int, int, int] = _hwc(image_shape) if image_shape else _shape_of(self._open(0))
        fits = len(rows) * math.prod(self.hwc) <= KEPT_BYTES
        # Memory that nobody writes to is not taken, so a rank pays for the rows it visits.
        self._kept = np.empty((len(rows), *self.hwc), np.uint8) if fits else None
        self._is_kept = np.zeros(len(rows), bool)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self._kept is None:
            return (
                np.stack([self._decoded(int(row)) for row in rows]) if len(rows) else np.empty((0, *self.hwc), np.uint8)
            )
        for row in rows[~self._is_kept[rows]]:
            self._kept[row] = self._decoded(int(row))
        self._is_kept[rows] = True
        return self._kept[rows]

    def check(self) -> None:
        for row in range(len(self._rows)):
            self._open(row)

    def _open(self, row: int) -> Any:
        """A PIL image of which only the header was read. Raises DataError if it is none or of another size."""
        from PIL import Image

        value = self._rows.table[self._column][row].as_py()
        try:
            image = Image.open(io.BytesIO(value["bytes"] if isinstance(value, dict) else value))
        except OSError as error:
            raise self._unreadable(row, error) from error
        if image.mode.startswith(("I", "F")):
            raise self._rows.fault(
                f"has more than 8 bits a channel (mode {image.mode}); convert it to 8 bits",
                column=self._column,
                row=row,
            )
        first = getattr(self, "hwc", None)
        if first is not None and self._resize is None and (image.height, image.width) != first[:2]:
            raise self._rows.fault(
                f"is {image.height} x {image.width} pixels where the first image is {first[0]} x {first[1]}; "
                f"set data.image_shape = {list(first)} to have all resized",
                column=self._column,
                row=row,
            )
        return image

    def _decoded(self, row: int) -> NDArray[np.uint8]:
        image = self._open(row)
        h, w, c = self.hwc
        try:
            image = image.convert("L" if c == 1 else "RGB")
        except OSError as error:
            raise self._unreadable(row, error) from error
        if image.size != (w, h):
            from PIL import Image

            image = image.resize((w, h), Image.Resampling.BILINEAR)
        return np.asarray(image, np.uint8).reshape(h, w, c)

    def _unreadable(self, row: int, error: OSError) -> DataError:
        return self._rows.fault(f"is no readable image ({short(error)}); remove it", column=self._column, row=row)


def _source(rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> _Raw | _Encoded:
    kind = rows.table.schema.field(column).type
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            raise rows.fault(f"is of type {kind}; a struct must have a field 'bytes'", column=column)
        return _Encoded(rows, column, image_shape)
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if is_bytes and rows.table[column][0].as_py().startswith(SIGNATURES):
        return _Encoded(rows, column, image_shape)
    return _Raw(rows, column, image_shape)


def _refuse_nulls(rows: Rows, column: str) -> None:
    at = 0
    for chunk in rows.table[column].chunks:
        inner = chunk
        if pa.types.is_struct(chunk.type) and chunk.type.get_field_index("bytes") >= 0:
            inner = chunk.field("bytes")
        for array in (chunk, inner):
            if array.null_count:
                row = at + pc.index(pc.is_null(array), value=True).as_py()
                raise rows.fault("holds no image; remove the row", column=column, row=row)
        at += len(chunk)


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
        shape, claim = _hwc(image_shape), f"data.image_shape = {list(image_shape)} needs {math.prod(image_shape)}"
    else:
        lengths, values = [], chunk
        while is_list(values.type):
            lengths.append(len(values[0].as_py()))
            values = values.flatten()
        side = math.isqrt(size)
        shape = _hwc(tuple(lengths)) if len(lengths) > 1 else (side, side, 1)
        claim = "that is no square grey image"
    if math.prod(shape) != size or size == 0:
        side = math.isqrt(size // 3)
        works = f"[{side}, {side}, 3]" if 0 < size == 3 * side * side else "the [height, width, channels] of a row"
        raise rows.fault(f"holds {size} numbers, and {claim}; set data.image_shape = {works}", column=column, row=0)
    return shape


def _hwc(shape: tuple[int, ...]) -> tuple[int, int, int]:
    h, w, c = (*shape, 1)[:3]
    return h, w, c


def _shape_of(image: Any) -> tuple[int, int, int]:
    return image.height, image.width, 1 if image.mode in ("1", "L") else 3
