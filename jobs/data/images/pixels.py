"""Pixels of an image column, whatever their storage: raw bytes where they lie, lists of numbers, encoded images, or
paths of such."""

from __future__ import annotations

import copy
import functools
from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.batches import content_ids
from jobs.data.images.arrays import Arrays, is_bytes
from jobs.data.images.encoded import Encoded, holds_encoded
from jobs.data.images.layout import COLOURED, GREY
from jobs.data.images.links import Links, links_of
from jobs.data.sources import Rows

if TYPE_CHECKING:
    from torch import Tensor

MEAN = STD = 0.5
"""Pixels in [0, 1] are standardised with these."""


class Images:
    """Images of one size. Indexed like a list, it gives what an encoder takes: float32 [c, C, H, W], standardised."""

    def __init__(
        self,
        rows: Rows,
        column: str,
        image_shape: tuple[int, ...] | None = None,
        channels: int | None = None,
        links: Links | None = None,
    ) -> None:
        """Take the images of a column. image_shape: (H, W) or (H, W, C) of raw pixels, and what encoded images are
        resized to; None: as they are. channels: of the images that these are compared with; if those have three, grey
        images are given as three equal channels. links: the files that rows name, where they do."""
        self.rows, self.column = rows, column
        self._source = _source(rows, column, image_shape, channels, links)
        self._at = np.arange(len(rows))
        h, w, c = self._source.hwc
        self.shape: tuple[int, int, int] = (COLOURED if (c, channels) == (GREY, COLOURED) else c, h, w)
        """(C, H, W)."""

    def __len__(self) -> int:
        return len(self._at)

    def __getitem__(self, rows: slice | Sequence[int] | NDArray[np.int64]) -> Tensor:
        return standardised(self.unit(np.arange(len(self))[rows]))

    def unit(self, rows: NDArray[np.int64]) -> Tensor:
        """Return the pixels of these rows, float32 [c, C, H, W] in [0, 1]."""
        import torch

        raw = self._source.take(self._at[rows]).transpose(0, 3, 1, 2)
        if raw.shape[1] != self.shape[0]:
            raw = raw.repeat(self.shape[0], axis=1)
        pixels = torch.from_numpy(np.ascontiguousarray(raw))
        return pixels / 255 if pixels.dtype == torch.uint8 else pixels

    def content_ids(self, rows: NDArray[np.int64]) -> Tensor:
        """Compute ids, int64 [c]: equal for equal pixels."""
        return content_ids(np.ascontiguousarray(self._source.take(self._at[rows])))

    def subset(self, rows: NDArray[np.int64]) -> Images:
        """Select these images, in this order, on the same pixels."""
        chosen = copy.copy(self)
        vars(chosen)["_at"] = self._at[rows]
        return chosen

    def check(self) -> list[str]:
        """Look at the images, or at a sample of very many encoded ones. Returns what a person should know of them.
        Raises DataError at the first that cannot be read or is of another size than the first row's."""
        return self._source.check()


def standardised(unit: Tensor) -> Tensor:
    """Map pixels in [0, 1] to [-1, 1]."""
    return (unit - MEAN) / STD


def images_of(rows: Rows, column: str, image_shape: tuple[int, ...] | None, *, channels: int | None = None) -> Images:
    """Return the images of a column; the same object for the same rows and files, so that what was decoded is kept
    between trials. channels: of the images that these are compared with."""
    _refuse_nulls(rows, column)
    return _images(rows, column, image_shape, channels, links_of(rows, column))


@functools.lru_cache(maxsize=4)
def _images(
    rows: Rows, column: str, image_shape: tuple[int, ...] | None, channels: int | None, links: Links | None
) -> Images:
    return Images(rows, column, image_shape, channels, links)


def _source(
    rows: Rows, column: str, image_shape: tuple[int, ...] | None, channels: int | None, links: Links | None
) -> Arrays | Encoded:
    kind = rows.table.schema.field(column).type
    if pa.types.is_struct(kind):
        at = kind.get_field_index("bytes")
        if at < 0 and links is None:
            raise rows.fault(f"is of type {kind}; a struct must have a field 'bytes' or 'path'", column=column)
        if at >= 0 and not (is_bytes(kind.field(at).type) or pa.types.is_null(kind.field(at).type)):
            raise rows.fault(
                f"is of type {kind}; its 'bytes' must be binary, so images written as text or numbers must be decoded",
                column=column,
            )
    if pa.types.is_struct(kind) or links is not None or holds_encoded(rows.table[column]):
        return Encoded(rows, column, image_shape, channels, links)
    return Arrays(rows, column, image_shape)


def _refuse_nulls(rows: Rows, column: str) -> None:
    """Raise DataError at the first row that holds neither an image nor a path."""
    values = rows.table[column]
    names = [name for name in ("bytes", "path") if pa.types.is_struct(values.type)]
    parts = [pc.struct_field(values, name) for name in names if values.type.get_field_index(name) >= 0] or [values]
    missing = functools.reduce(pc.and_, map(_is_blank, parts))
    row = pc.index(pc.or_(missing, values.is_null()), value=True).as_py()
    if row >= 0:
        raise rows.fault("holds no image; remove the row", column=column, row=row)


def _is_blank(values: pa.ChunkedArray) -> pa.ChunkedArray:
    """Return whether each value is null, or an empty text."""
    is_text = pa.types.is_string(values.type) or pa.types.is_large_string(values.type)
    return pc.fill_null(pc.equal(pc.binary_length(values), 0), fill_value=True) if is_text else values.is_null()
