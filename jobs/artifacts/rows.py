"""What a trial's metrics say of each row, as rows.parquet in its folder. Knows no torch.

    row  group  metric.knn_accuracy  metric.spearman.measured  metric.spearman.wanted ...

`row` is the id of a judged row, or its position; `group`, where the data have one, is equal for rows that belong
together. A metric that is a mean has one column, null for rows that do not count; any other has what it is computed of.
The file's metadata say of each metric its value, its columns and which rows it is of and, of one that is no mean,
what it is without each of some blocks of rows: so whoever compares needs not know how to compute it.

The sha256 of the file is in the trial's result, which is written after it.
"""

from __future__ import annotations

import hashlib
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Final, TypedDict, cast

import numpy as np
from numpy.typing import NDArray

from jobs.artifacts.storage import Storage
from jobs.artifacts.trial_dir import ROWS
from jobs.core.failures import words_of
from jobs.core.outcomes import Outcomes, RowIds

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

NAME: Final = ROWS

DIGEST: Final = "rows"
"""Key of a result: the sha256 of its rows.parquet, where it has one."""

ABOUT: Final = b"outcomes"
"""Key of the file's metadata."""

ROW, GROUP, METRIC = "row", "group", "metric."

LARGEST_SHORT = 2**31

UNREADABLE = (OSError, ValueError, LookupError, TypeError, AttributeError)
"""What reading a file of somebody else raises, beside what pyarrow does."""


class About(TypedDict):
    """What the metadata say of one metric."""

    value: float
    is_mean: bool
    columns: dict[str, str]
    """Name of a column here -> in the file."""

    rows: int
    ids: str
    """Digest of the ids, and groups, of the rows that count."""

    without: list[float] | None
    """The metric without each block of rows; None of a mean, and where it is not defined without one."""

    sizes: list[int]
    """Rows of each block."""

    groups: int | None
    """How many, where there are some."""


@dataclass(frozen=True)
class MetricRows:
    """One metric of one trial, row by row."""

    value: float
    ids: str
    """Digest of the ids and groups of its rows."""

    rows: int
    groups: int | None
    values: NDArray[np.float64] | None
    """[rows], of a mean, in the order of the ids."""

    group_of: NDArray[np.int64] | None
    """[rows], numbers from 0; None where the data have no groups."""

    without: Sequence[float] | None
    sizes: Sequence[int]
    """Of a metric that is no mean: what it is without each block of rows, and how many rows a block has."""


def encode(kept: Mapping[str, tuple[RowIds, Outcomes]]) -> bytes | None:
    """Write metrics, each with the ids of its rows, as the content of a rows.parquet; None where none of them says
    anything by row."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    kept = _alike({name: (own, outcome) for name, (own, outcome) in kept.items() if outcome.columns or outcome.without})
    if not kept:
        return None
    ids = _joined([own for own, _ in kept.values()])
    place = {row: at for at, row in enumerate(ids.ids)}
    columns: dict[str, pa.Array] = {ROW: _of_ids(ids.ids)}
    if ids.groups is not None:
        columns[GROUP] = _of_ids(ids.groups)
    about: dict[str, About] = {}
    for name, (own, outcome) in kept.items():
        at = None if own is ids else np.array([place[row] for row in own.ids], dtype=np.int64)
        named: dict[str, str] = {}
        for inner, values in outcome.columns.items():
            column = METRIC + name + (f".{inner}" if inner else "")
            while column in columns:
                column += "_"
            columns[column] = _of_values(values, at, len(ids))
            named[inner] = column
        about[name] = _about(own if own is ids else _regrouped(own, ids, place), outcome, named)
    table = pa.table(columns)
    has_numbers = pa.types.is_integer(columns[ROW].type)
    sink = io.BytesIO()
    with pq.ParquetWriter(
        sink,
        table.schema,
        compression="zstd",
        use_dictionary=[GROUP],
        column_encoding={ROW: "DELTA_BINARY_PACKED" if has_numbers else "DELTA_BYTE_ARRAY"},
        write_statistics=False,
        store_schema=False,
    ) as file:
        file.write_table(table)
        file.add_key_value_metadata({ABOUT: json.dumps({"version": 1, "metrics": about})})
    return sink.getvalue()


def decode(content: bytes, metric: str) -> MetricRows | None:
    """Read one metric from the content of a rows.parquet; None where it says nothing by row. Raises ValueError for what
    is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        about = _metadata(file).get(metric)
        if about is None:
            return None
        group_of = values = None
        if about["is_mean"]:
            (column,) = about["columns"].values()
            is_grouped = about["groups"] is not None
            table = file.read(columns=[ROW, column, *([GROUP] if is_grouped else [])], use_threads=False)
            every = _floats(table[column])
            counts = np.flatnonzero(~np.isnan(every))
            ids = table[ROW].to_numpy()[counts]
            counts = counts[np.argsort(ids, kind="stable")]  # whoever pairs rows pairs them by what they are
            values, group_of = every[counts], _numbered(table[GROUP].to_pylist(), counts) if is_grouped else None
        return MetricRows(
            value=float(about["value"]),
            ids=str(about["ids"]),
            rows=int(about["rows"]),
            groups=about["groups"],
            values=values,
            group_of=group_of,
            without=about["without"],
            sizes=about["sizes"],
        )
    except (pa.ArrowException, *UNREADABLE) as error:
        raise ValueError(f"{NAME} cannot be read: {words_of(error)}") from error


def named(content: bytes) -> list[str]:
    """List the metrics of which a rows.parquet says something by row. Raises ValueError for what is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        return list(_metadata(pq.ParquetFile(io.BytesIO(content))))
    except (pa.ArrowException, *UNREADABLE) as error:
        raise ValueError(f"{NAME} cannot be read: {words_of(error)}") from error


def means(content: bytes) -> dict[str, tuple[RowIds, Outcomes]]:
    """Read back the metrics that are means, as `encode` takes them. Raises ValueError for what is no such file."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(io.BytesIO(content))
        table = file.read(use_threads=False)
        groups = table[GROUP].to_pylist() if GROUP in table.column_names else None
        whole = RowIds(table[ROW].to_pylist(), groups)
        kept: dict[str, tuple[RowIds, Outcomes]] = {}
        for name, about in _metadata(file).items():
            if about["is_mean"]:
                values = _floats(table[about["columns"][""]])
                counts = ~np.isnan(values)
                own = whole.some(counts)
                ids = own if about["groups"] is not None else RowIds(own.ids)
                kept[name] = ids, Outcomes(float(about["value"]), {"": values[counts]})
    except (pa.ArrowException, *UNREADABLE) as error:
        raise ValueError(f"{NAME} cannot be read: {words_of(error)}") from error
    return kept


def sha256(content: bytes) -> str:
    """Compute what a result says of its rows."""
    return hashlib.sha256(content).hexdigest()


def fault(storage: Storage, expected: object) -> str | None:
    """Find what is wrong with the rows of a trial whose result names `expected`; None if they are there or if it names
    none. Raises ConnectionError where they cannot be asked for."""
    if expected is None:
        return None
    content = storage.read_bytes(NAME)
    if content is None:
        return "it is not there"
    return None if sha256(content) == expected else "it does not match its sha256"


def _alike(kept: Mapping[str, tuple[RowIds, Outcomes]]) -> Mapping[str, tuple[RowIds, Outcomes]]:
    """Have all ids numbers, or all texts."""
    kinds = {type(own.ids[0]) for own, _ in kept.values() if len(own)}
    if len(kinds) < 2:
        return kept
    return {name: (RowIds([str(row) for row in own.ids], own.groups), outcome) for name, (own, outcome) in kept.items()}


def _joined(all_ids: Sequence[RowIds]) -> RowIds:
    """Join the ids of several metrics, each id once, in the order in which they come first."""
    first, *others = all_ids
    if all(own is first for own in others):
        return first
    groups: dict[int | str, int | str | None] = {}
    for own in all_ids:
        for row, group in zip(own.ids, own.groups or [None] * len(own), strict=True):
            groups[row] = groups.get(row) if group is None else group
    has_groups = any(own.groups is not None for own in all_ids)
    return RowIds(list(groups), list(groups.values()) if has_groups else None)


def _regrouped(own: RowIds, ids: RowIds, place: Mapping[int | str, int]) -> RowIds:
    """Return the ids of a metric's rows with the groups that the file has of them: none where it has groups of other
    rows alone, as of another one of several sets."""
    groups = None if ids.groups is None else [ids.groups[place[row]] for row in own.ids]
    return RowIds(own.ids, None if groups is None or not any(group is not None for group in groups) else groups)


def _about(ids: RowIds, outcome: Outcomes, named: dict[str, str]) -> About:
    own, sizes, without = ids, list[int](), None
    if outcome.without is None:
        (values,) = outcome.columns.values()
        counts = ~np.isnan(values.astype(np.float64))
        own = ids if counts.all() else ids.some(counts)
    else:
        blocks = ids.blocks()
        sizes = np.bincount(blocks).tolist()
        without = _left_out(outcome, blocks)
    return {
        "value": outcome.value,
        "is_mean": outcome.is_mean,
        "columns": named,
        "rows": len(own),
        "ids": own.digest,
        "without": without,
        "sizes": sizes,
        "groups": None if own.groups is None else len(set(own.units)),
    }


def _left_out(outcome: Outcomes, blocks: NDArray[np.int64]) -> list[float] | None:
    """Compute a metric without each block; None where it is not defined without one of them."""
    assert outcome.without is not None
    try:
        values = [float(value) for value in outcome.without(blocks)]
    except Exception:  # noqa: BLE001 - whatever a user's code may raise; what all rows gave stands
        return None
    return values if np.isfinite(values).all() else None


def _of_ids(ids: Sequence[int | str | None]) -> pa.Array:
    """Make the column of ids or groups: the shortest integers that hold them, or texts."""
    import pyarrow as pa

    if any(isinstance(own, str) for own in ids):
        return pa.array([own if own is None else str(own) for own in ids], pa.string())
    is_short = all(own is None or abs(own) < LARGEST_SHORT for own in cast("Sequence[int | None]", ids))
    return pa.array(ids, pa.int32() if is_short else pa.int64())


def _of_values(values: NDArray[np.bool_] | NDArray[np.float64], at: NDArray[np.int64] | None, rows: int) -> pa.Array:
    """Make a metric's column: bits where there is nothing else, null where a row has none. at: place of each value."""
    import pyarrow as pa

    every = values.astype(np.float64)
    if at is not None:
        every = np.full(rows, np.nan)
        every[at] = values
    is_absent = np.isnan(every)
    if np.isin(every[~is_absent], (0.0, 1.0)).all():
        return pa.array(every == 1.0, pa.bool_(), mask=is_absent)
    return pa.array(every, pa.float64(), mask=is_absent)


def _floats(column: pa.ChunkedArray) -> NDArray[np.float64]:
    """Convert a metric's column to float64, nan where it is null."""
    import pyarrow as pa

    numbers = column.cast(pa.uint8()) if pa.types.is_boolean(column.type) else column
    return cast("NDArray[np.float64]", numbers.cast(pa.float64()).to_numpy())


def _numbered(groups: Sequence[int | str | None], counts: NDArray[np.int64]) -> NDArray[np.int64]:
    """Number the groups of the rows that count, in this order; a row without one has its own."""
    every = RowIds(range(len(groups)), groups).units
    units = [every[at] for at in counts.tolist()]
    names = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    return np.array([names[unit] for unit in units], dtype=np.int64)


def _metadata(file: pq.ParquetFile) -> Mapping[str, About]:
    """Read what the file says of its metrics, by name. Raises LookupError or ValueError for a file of somebody else."""
    return cast("Mapping[str, About]", json.loads((file.metadata.metadata or {})[ABOUT])["metrics"])
