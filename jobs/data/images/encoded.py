"""A column of encoded images, PNG, JPEG and the like: in its rows, or in the files that they name."""

from __future__ import annotations

import contextlib
import functools
import math
from collections.abc import Hashable, Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.formats import DataError
from jobs.data.images.arrays import is_bytes
from jobs.data.images.decoding import Undecodable, decoded, is_coloured, peculiarities, resized
from jobs.data.images.layout import COLOURED, GREY, refuse_channels_first
from jobs.data.images.links import Links
from jobs.data.images.survey import evenly, survey
from jobs.data.sources import Rows

if TYPE_CHECKING:
    from PIL.Image import Image as Picture

SIGNATURES = (
    *(b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF8", b"RIFF", b"BM", b"II*\x00", b"MM\x00*"),
    *(b"\x00\x00\x00\x0cjP  ", b"\xff\x4f\xff\x51", b"qoif", b"P5\n", b"P6\n"),
)
"""How encoded images begin: PNG, JPEG, GIF, WebP, BMP, TIFF; JPEG 2000, QOI, PNM."""

FEW = 100
"""Rows of one size that are looked at."""

KEPT_BYTES = 2**31
"""Decoded pixels of encoded images that a process keeps; a larger column is decoded at every visit."""

_surveyed: dict[tuple[Hashable, ...], list[str]] = {}
"""The remarks on columns that are sound: many arms of a plan share their data."""

_coloured: dict[tuple[Hashable, ...], int | None] = {}
"""The first coloured image of columns: rows to train on are judged on as well."""


class Encoded:
    """Encoded images: decoded when first asked for, and kept if the whole column would fit."""

    def __init__(
        self,
        rows: Rows,
        column: str,
        image_shape: tuple[int, ...] | None,
        channels: int | None = None,
        links: Links | None = None,
    ) -> None:
        """Prepare the images. channels: 1 or 3, of images that these are compared with; None: as many as these need."""
        refuse_channels_first(rows, column, image_shape)
        self._rows, self._column, self._links = rows, column, links
        self._stamp = None if links is None else links.stamp
        self._resizes = image_shape is not None
        asked = image_shape[2] if image_shape is not None and len(image_shape) == 3 else None
        if asked not in (None, GREY, COLOURED):
            raise rows.fault(
                f"holds encoded images, which have 1 or 3 channels, and data.image_shape has {asked}", column=column
            )
        c = asked or self._channels(channels)
        size = image_shape[:2] if image_shape is not None else self._decoded(0, self._content(0), c).size[::-1]
        self.hwc: tuple[int, int, int] = (size[0], size[1], c)
        fits = len(rows) * math.prod(self.hwc) <= KEPT_BYTES
        # Memory that nobody writes to is not taken, so a rank pays for the rows it visits.
        self._kept = np.empty((len(rows), *self.hwc), np.uint8) if fits else None
        self._is_kept = np.zeros(len(rows), bool)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Return images [c, H, W, C]. Raises DataError at the first that is no image, or of another size than row 0."""
        if self._kept is None:
            images = [self._pixels(int(row)) for row in rows]
            return np.stack(images) if images else np.empty((0, *self.hwc), np.uint8)
        for row in rows[~self._is_kept[rows]]:
            self._kept[row] = self._pixels(int(row))
        self._is_kept[rows] = True
        return self._kept[rows]

    def check(self) -> list[str]:
        """Decode the images, or a sample of very many. Returns what a person should know of them. Raises DataError at
        the first, of those decoded, that `take` would refuse."""
        size = None if self._resizes else self.hwc
        key = (self._rows.files, self._rows.spans, self._column, self._stamp, self.hwc[2], size)
        if key not in _surveyed:
            _surveyed[key] = list(self._remarks())
        return _surveyed[key]

    def _remarks(self) -> Iterator[str]:
        n = len(self._rows)
        seen, counts = survey(n, self._look)
        if seen < n:
            yield (
                f"{self._rows.source}: {seen:,} of {n:,} images were decoded, evenly spaced; one of the others that "
                "cannot be would fail the trial that first reads it"
            )
        for what, times in sorted(counts.items()):
            yield f"{self._rows.source}: {times:,} of {seen:,} images {what}"

    def _look(self, row: int) -> list[str]:
        content = self._content(row)
        self._sized(row, content)
        return list(peculiarities(content))

    def _channels(self, wanted: int | None) -> int:
        """Choose the channels of all images: 3 if any is coloured or `wanted` is 3. Raises DataError if `wanted` is
        fewer."""
        if wanted == COLOURED:
            return COLOURED
        row = self._first_coloured()
        if row is None:
            return GREY
        if wanted != GREY:
            return COLOURED
        raise self._rows.fault(
            "is coloured, and all images that the encoder is trained on are grey; set data.image_shape = [height, "
            "width, 1] to read all as grey; or, if those it is trained on are encoded too, [height, width, 3] to read "
            "all in colour",
            column=self._column,
            row=row,
        )

    def _first_coloured(self) -> int | None:
        """Find the first image with colours; return None where all are grey."""
        key = (self._rows.files, self._rows.spans, self._column, self._stamp)
        if key not in _coloured:
            _coloured[key] = next(filter(self._is_coloured, range(len(self._rows))), None)
        return _coloured[key]

    def _is_coloured(self, row: int) -> bool:
        if self._links is not None and self._links.files[row] is not None:
            with contextlib.suppress(Undecodable):  # some formats say it further back
                return is_coloured(self._links.head(row))
        try:
            return is_coloured(self._content(row))
        except Undecodable as error:
            raise self._fault(row, error) from error

    def _pixels(self, row: int) -> NDArray[np.uint8]:
        return resized(self._sized(row, self._content(row)), *self.hwc[:2])

    def _sized(self, row: int, content: bytes) -> Picture:
        """Decode a PIL image of mode L or RGB. Raises DataError if it is no image, or of another size than the first
        where images keep their size."""
        h, w, c = self.hwc
        image = self._decoded(row, content, c)
        if not self._resizes and image.size != (w, h):
            raise self._rows.fault(
                f"is {image.height} x {image.width} pixels where the first image is {h} x {w}; "
                f"set data.image_shape = {list(self.hwc)} to have all resized",
                column=self._column,
                row=row,
            )
        return image

    def _decoded(self, row: int, content: bytes, channels: int) -> Picture:
        try:
            return decoded(content, channels)
        except Undecodable as error:
            raise self._fault(row, error) from error

    def _content(self, row: int) -> bytes:
        if self._links is not None and self._links.files[row] is not None:
            return self._links.read(row)
        value = self._rows.table[self._column][row].as_py()
        content: bytes = value["bytes"] if isinstance(value, dict) else value
        return content

    def _fault(self, row: int, error: Undecodable) -> DataError:
        where = f" ({self._links.named(row)})" if self._links is not None and self._links.named(row) else ""
        return self._rows.fault(f"{error}{where}", column=self._column, row=row)


def holds_encoded(column: pa.ChunkedArray) -> bool:
    """Return whether a column of bytes holds encoded images: most begin as such do, or some do and the others differ in
    size, as pixels would not; if the type fixes one size, all that are looked at begin so. Raw pixels may do so by
    chance."""
    if pa.types.is_fixed_size_binary(column.type):
        return all(column[row].as_py().startswith(SIGNATURES) for row in evenly(len(column), FEW))
    if not is_bytes(column.type):
        return False
    boxes = pc.equal(pc.binary_slice(column, 4, 8), pa.scalar(b"ftyp", column.type))  # AVIF, HEIF
    starts = (pc.starts_with(column, pattern=signature) for signature in SIGNATURES)
    encoded = pc.fill_null(functools.reduce(pc.or_, starts, boxes), fill_value=False)
    count = pc.sum(encoded).as_py() or 0
    sizes = pc.min_max(pc.binary_length(column.filter(pc.invert(encoded))))
    return bool(2 * count > len(column) or (count and sizes["min"] != sizes["max"]))
