"""What a metric says of each row that it was measured on, so that others can ask what other rows would have said.

A metric that is a mean has a number for each row. Any other metric has whatever it is computed of (a cosine and a
score, say), and says what it would be without some of the rows: `by_row` makes that of a function of columns. No torch.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, SupportsFloat, TypeAlias, cast

import numpy as np
from numpy.typing import ArrayLike, NDArray

BLOCKS = 20
"""Parts of the rows, each of which a metric that is no mean is computed without."""

Column: TypeAlias = NDArray[np.bool_] | NDArray[np.float64]
Ids: TypeAlias = Sequence[int | str]


@dataclass(frozen=True)
class Outcomes:
    """A metric, and what it says of each of n rows."""

    value: float
    columns: Mapping[str, Column] = field(default_factory=dict)
    """[n] each, by name. Of a mean it is one, without a name; nan for a row that does not count."""

    without: Callable[[NDArray[np.int64]], Sequence[float]] | None = None
    """Of a metric that is no mean: what it is without each block of rows, given the block of each row, [n], from 0."""

    ids: RowIds | None = None
    """Of its rows, where these are others than all that the job is judged on: those of one of several sets."""

    def __float__(self) -> float:
        return self.value

    @property
    def is_mean(self) -> bool:
        """Whether the metric is the mean of its one column."""
        return self.without is None and bool(self.columns)


def mean_of(values: Column) -> Outcomes:
    """Average values [n] of rows; a metric that is a mean."""
    return Outcomes(float(np.mean(values)), {"": values})


def by_row(combine: Callable[..., SupportsFloat], /, **columns: ArrayLike) -> Outcomes:
    """Compute a metric that is no mean: `combine(**columns)`, of columns with a number for each row.

    It is called with all rows, and once the training has ended with some of them left out. Raises ValueError for
    columns that are not of one length.
    """
    arrays = {name: plain(column) for name, column in columns.items()}
    shapes = {name: list(array.shape) for name, array in arrays.items()}
    if not arrays or any(
        array.ndim != 1 or array.shape != next(iter(arrays.values())).shape for array in arrays.values()
    ):
        raise ValueError(f"by_row: columns of {shapes}; give one or more, with one number for each row")

    def without(blocks: NDArray[np.int64]) -> list[float]:
        kept = (blocks != block for block in range(int(blocks.max()) + 1))
        return [float(combine(**{name: array[rows] for name, array in arrays.items()})) for rows in kept]

    return Outcomes(float(combine(**arrays)), arrays, without)


def outcomes_of(given: object, rows: int, *, source: str) -> Outcomes:
    """Read what a metric gives: a number, one for each row, or what `by_row` has made. Raises ValueError, with words
    that begin with `source`, for anything else."""
    if isinstance(given, Outcomes):
        if given.columns and any(len(column) != rows for column in given.columns.values()):
            shapes = {name: list(column.shape) for name, column in given.columns.items()}
            raise ValueError(f"{source} gave by_row columns of {shapes} for {rows} rows; give a number for each row")
        return given
    values = plain(given)
    if values.ndim and values.shape != (rows,):
        raise ValueError(
            f"{source} gave {list(values.shape)} for {rows} rows; a metric gives one number, or one for each row"
        )
    return mean_of(values) if values.ndim else Outcomes(float(values))


def plain(values: object) -> NDArray[np.float64]:
    """Convert numbers, an array or a tensor on any device to float64."""
    detach = getattr(values, "detach", None)
    given = values if detach is None else cast("Any", detach)().cpu()
    return np.asarray(given, dtype=np.float64)


def numbers(outcomes: Mapping[str, Outcomes]) -> dict[str, float]:
    """Return the metrics alone."""
    return {name: outcome.value for name, outcome in outcomes.items()}


@dataclass(frozen=True)
class RowIds:
    """What tells rows apart, and which of them belong together."""

    ids: Ids
    groups: Sequence[int | str | None] | None = None
    """Equal for rows that are no independent samples: of one scene, one speaker. None for a row on its own."""

    @classmethod
    def positions(cls, rows: int) -> RowIds:
        """Number the rows."""
        return cls(range(rows))

    def __len__(self) -> int:
        return len(self.ids)

    @cached_property
    def units(self) -> list[tuple[str, int | str]]:
        """The row's group, or where it has none the row itself."""
        groups = self.groups or [None] * len(self)
        return [
            ("row", own) if group is None else ("group", group) for own, group in zip(self.ids, groups, strict=True)
        ]

    @cached_property
    def digest(self) -> str:
        """Hash of the ids and the groups, in the order of the ids: equal for the same rows."""
        order = sorted(range(len(self)), key=lambda at: (isinstance(self.ids[at], str), self.ids[at]))
        units = [self.units[at] for at in order] if self.groups else None
        return hashlib.sha256(repr([[self.ids[at] for at in order], units]).encode()).hexdigest()

    def some(self, chosen: NDArray[np.bool_]) -> RowIds:
        """Return the ids of some of the rows."""
        at = np.flatnonzero(chosen).tolist()
        groups = None if self.groups is None else [self.groups[row] for row in at]
        return RowIds([self.ids[row] for row in at], groups)

    @cached_property
    def halves(self) -> NDArray[np.int64]:
        """Which of two halves each row is in, [n], 0 or 1: by a hash of its id, groups whole. What is chosen on the one
        is tried on the other."""
        return self.blocks(2)

    def blocks(self, most: int = BLOCKS) -> NDArray[np.int64]:
        """Split the rows into at most so many parts of about one size, [n], from 0. Groups stay whole. Which part a
        row falls into is a hash of its id, so it is the same in every trial and not a matter of the rows' order."""
        names = {unit: number for number, unit in enumerate(dict.fromkeys(self.units))}
        of_row = np.array([names[unit] for unit in self.units], dtype=np.int64)
        hashed = [hashlib.blake2b(repr(unit).encode(), digest_size=16).digest() for unit in names]
        order = np.array(sorted(range(len(names)), key=hashed.__getitem__), dtype=np.int64)
        sizes = np.bincount(of_row, minlength=len(names))[order]
        middles = np.cumsum(sizes) - sizes / 2
        part = np.empty(len(names), dtype=np.int64)
        part[order] = np.floor(middles / max(len(self), 1) * min(most, len(names))).astype(np.int64)
        return np.unique(part[of_row], return_inverse=True)[1].astype(np.int64).reshape(-1)
