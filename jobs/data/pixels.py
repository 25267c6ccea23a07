"""Pixels of an image column, whatever their storage: raw bytes where they lie, lists of numbers, or encoded files."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from jobs.data.arrays import Arrays
from jobs.data.batches import content_ids
from jobs.data.encoded import Encoded
from jobs.data.sources import Rows

SIGNATURES = (b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*")
"""How encoded images begin: PNG, JPEG, GIF, WebP, BMP, TIFF."""

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


def _source(rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> Arrays | Encoded:
    kind = rows.table.schema.field(column).type
    if pa.types.is_struct(kind):
        if kind.get_field_index("bytes") < 0:
            raise rows.fault(f"is of type {kind}; a struct must have a field 'bytes'", column=column)
        return Encoded(rows, column, image_shape)
    is_bytes = pa.types.is_binary(kind) or pa.types.is_large_binary(kind)
    if is_bytes and rows.table[column][0].as_py().startswith(SIGNATURES):
        return Encoded(rows, column, image_shape)
    return Arrays(rows, column, image_shape)


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
