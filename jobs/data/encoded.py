"""Images as encoded files: PNG, JPEG and the like."""

from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobs.data.arrays import height_width_channels
from jobs.data.formats import DataError, short
from jobs.data.sources import Rows

KEPT_BYTES = 2**31
"""Decoded pixels of encoded images that a process keeps; a larger column is decoded at every visit."""


class Encoded:
    """PNG, JPEG and the like: decoded when first asked for, and kept if the whole column would fit."""

    def __init__(self, rows: Rows, column: str, image_shape: tuple[int, ...] | None) -> None:
        self._rows, self._column, self._resize = rows, column, image_shape
        self.hwc: tuple[int, int, int] = height_width_channels(image_shape) if image_shape else _shape_of(self._open(0))
        fits = len(rows) * math.prod(self.hwc) <= KEPT_BYTES
        # Memory that nobody writes to is not taken, so a rank pays for the rows it visits.
        self._kept = np.empty((len(rows), *self.hwc), np.uint8) if fits else None
        self._is_kept = np.zeros(len(rows), bool)

    def take(self, rows: NDArray[np.int64]) -> NDArray[np.uint8]:
        """[c, H, W, C]."""
        if self._kept is None:
            return (
                np.stack([self._decoded(int(row)) for row in rows]) if len(rows) else np.empty((0, *self.hwc), np.uint8)
            )
        for row in rows[~self._is_kept[rows]]:
            self._kept[row] = self._decoded(int(row))
        self._is_kept[rows] = True
        return self._kept[rows]

    def check(self) -> None:
        """Raises DataError at the first image that cannot be opened or is of another size than the first."""
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


def _shape_of(image: Any) -> tuple[int, int, int]:
    return image.height, image.width, 1 if image.mode in ("1", "L") else 3
