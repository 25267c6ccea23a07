"""The rows of a source as one Arrow table that knows which file each row came from.

Arrow files are used where they lie, in mapped memory. The others become one table, of the columns and (Parquet) the row
groups that were asked for and no more.
"""

from __future__ import annotations

import contextlib
import difflib
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.core.outcomes import Ids, RowIds
from jobs.core.paths import DIGITS, looked_in
from jobs.data.faults import DataError, brief, listed, short
from jobs.data.formats import Reader, nested, reader
from jobs.data.formats.arrow import leave_pandas_out
from jobs.data.resolve import HUB, File, Located, connected, locate

LARGEST_INT64 = 2**63 - 1
ID, GROUP = "id", "group"
"""Columns that tell judged rows apart, and that are equal for rows that belong together, where the data have them."""


class Names(tuple[str, ...]):
    """The names of a file's columns."""

    lists: tuple[str, ...] = ()
    """Those that hold lists or objects."""

    @classmethod
    def of(cls, reader: Reader) -> Names:
        """Return the names of an opened file."""
        names = cls(reader.names)
        names.lists = tuple(reader.lists)
        return names


Choose = Callable[[str, Names, "tuple[str, ...] | None"], tuple[str, ...]]
"""(file, the names of its columns, the names given by the user) -> the columns to read."""


@dataclass(frozen=True, eq=False)
class Rows:
    """The rows of a source, and where each came from."""

    source: str
    table: pa.Table
    spans: tuple[tuple[str, int, int], ...]
    """In order: (file, rows of it before the first one here, rows of it here)."""
    files: tuple[File, ...] = ()
    """Where the file of each span lies."""

    lines: tuple[Callable[[int], int] | None, ...] = ()
    """For each of them, what line a row of the file begins in; None where it has no lines."""

    names: tuple[Names, ...] = ()
    """For each of them, all columns that the file has."""

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def fault(self, found: str, *, column: str | None = None, row: int | None = None) -> DataError:
        """Build a DataError that names the file, and the row as that file counts it."""
        if row is None:
            return DataError(found, file=self.source, column=column)
        at, name, there = next(
            (at, name, row - first + skipped)
            for at, ((name, skipped, taken), first) in enumerate(zip(self.spans, self._starts, strict=True))
            if first <= row < first + taken
        )
        line_of = self.lines[at] if self.lines else None
        line = None if line_of is None else line_of(there)
        return DataError(found, file=name, column=column, row=there, line=line)

    def parts(self) -> Iterator[tuple[str, Names, int, pa.Table]]:
        """Yield for each span: the file, all columns that it has, the first of its rows here, and these rows."""
        for (file, _, taken), names, first in zip(self.spans, self.names, self._starts, strict=True):
            yield file, names, first, self.table.slice(first, taken)

    @property
    def _starts(self) -> list[int]:
        return [0, *np.cumsum([taken for _, _, taken in self.spans])[:-1].tolist()]


def open_table(source: str, *, columns: Sequence[str] | None = None) -> pa.Table:
    """Read the rows of `source` as an Arrow table, of these columns or of all. CSV and TSV hold text and nothing else.

    Raises DataError naming the file, and the column and row where there is one.
    """
    return read(source, exactly, None if columns is None else tuple(columns)).table


def exactly(file: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Return the columns of `wanted`, which must all be there; without it, every column."""
    for name in wanted or ():
        if wanted is not None and wanted.count(name) > 1:
            raise DataError("is asked for twice; name different columns", file=file, column=name)
        if names.count(name) > 1:
            raise DataError("is there twice; give the columns of a file different names", file=file, column=name)
        if name not in names:
            close = difflib.get_close_matches(name, names, n=1)
            hint = f"; did you mean '{brief(close[0])}'?" if close else ""
            raise DataError(f"is missing; the columns here are {listed(names)}{hint}", file=file, column=name)
    return tuple(names) if wanted is None else wanted


def read(source: str, choose: Choose, wanted: tuple[str, ...] | None = None) -> Rows:
    """Read the rows of `source` with the columns that `choose` picks from the names it has.

    The same files, unchanged, give the same object again within a process, so that what is derived from it can be kept.
    """
    return _read(locate(source), choose, wanted)


@functools.lru_cache(maxsize=8)
def _read(located: Located, choose: Choose, wanted: tuple[str, ...] | None) -> Rows:
    leave_pandas_out()
    readers = [_open(file) for file in located.files]
    shown_by = next((at for at, opened in enumerate(readers) if opened.names), 0)  # an empty file may have no names
    names = choose(located.files[shown_by].path, Names.of(readers[shown_by]), wanted)
    total = sum(opened.rows for opened in readers)
    if total == 0:
        raise DataError("has no rows; give a file with at least two", file=located.source)
    start, stop, _ = slice(located.start, located.stop).indices(total)
    if start >= stop:
        raise DataError(f"the slice leaves nothing of {total} rows; give one within [0:{total}]", file=located.source)
    tables, spans, files, lines, every, first = [], [], [], [], [], 0
    for file, opened in zip(located.files, readers, strict=True):
        low, high = max(start - first, 0), min(stop - first, opened.rows)
        first += opened.rows
        if low < high:
            exactly(file.path, opened.names, names)
            tables.append(_plain(opened.fetch(list(names), low, high)))
            spans.append((file.path, low, high - low))
            files.append(file)
            lines.append(opened.line)
            every.append(Names.of(opened))
    joined = _joined(tables, [name for name, _, _ in spans])
    return Rows(located.source, joined, tuple(spans), tuple(files), tuple(lines), tuple(every))


def row_ids(rows: Rows) -> RowIds:
    """Name rows by their column `id`, else by position, and group them by their column `group`, where every file has
    it and it is no column that the job uses. Columns that cannot be read are left out: nobody has asked for them."""
    columns = {}
    for name in (ID, GROUP):
        if name not in rows.table.column_names and all(names.count(name) == 1 for names in rows.names):
            with contextlib.suppress(DataError):
                columns[name] = read(rows.source, exactly, (name,)).table[name]
    return ids_in(columns, len(rows))


@functools.lru_cache(maxsize=4)
def sources_of(rows: Rows, column: str | None) -> NDArray[np.int64]:
    """Number the sources of rows, int64 [n]: values of the column, or, without one, files. Raises DataError for one
    file."""
    if column is not None:
        return groups_of(rows, column)
    if len(rows.spans) < 2:
        raise rows.fault(
            "is one file, and data.sampler asks for sources; name the column that says where a row is from in "
            "data.source, or give several files"
        )
    return np.repeat(np.arange(len(rows.spans)), [taken for _, _, taken in rows.spans])


@functools.lru_cache(maxsize=4)
def groups_of(rows: Rows, column: str) -> NDArray[np.int64]:
    """Number what a column of the rows' files holds, int64 [n]: equal where values are, -1 where there is none."""
    return numbered(read(rows.source, exactly, (column,)).table[column])


def numbered(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Number the values of a column from 0, int64 [n]; -1 for null and for an empty text. Lists are told apart as they
    are written."""
    if pa.types.is_nested(column.type):
        column = pa.chunked_array([pa.array([None if v is None else str(v) for v in column.to_pylist()], pa.string())])
    if pa.types.is_string(column.type) or pa.types.is_large_string(column.type):
        column = pc.if_else(pc.equal(column, ""), pa.scalar(None, column.type), column)
    coded = column.dictionary_encode().unify_dictionaries()
    chunks = [chunk.indices.fill_null(-1).to_numpy().astype(np.int64) for chunk in coded.chunks]
    return np.concatenate([np.empty(0, np.int64), *chunks])


def ids_in(columns: Mapping[str, object], rows: int) -> RowIds:
    """Name rows by columns `id` and `group`. Ids are whole numbers or texts, each there once, or else the rows'
    positions count. A row whose group is null or empty is on its own."""
    ids, groups = (_names_in(columns.get(name), rows) for name in (ID, GROUP))
    grouped = None if groups is None or set(groups) == {None} else groups
    if ids is None or None in ids or len(set(ids)) < rows:
        return RowIds(range(rows), grouped)
    return RowIds(cast("Ids", ids), grouped)


def _names_in(column: object, rows: int) -> list[int | str | None] | None:
    """Read whole numbers or texts, and other numbers as texts; None for any other column."""
    if column is None:
        return None
    try:
        array = column if isinstance(column, pa.ChunkedArray | pa.Array) else pa.array(np.asarray(column))
        kind, types = array.type, pa.types
        is_text = types.is_string(kind) or types.is_large_string(kind)
        values = array.to_pylist() if len(array) == rows and (is_text or types.is_primitive(kind)) else None
    except (ValueError, TypeError, OverflowError, pa.ArrowException):  # no text, or no date that Python has
        return None
    if values is None:
        return None
    is_short = types.is_integer(kind) and all(value is None or value <= LARGEST_INT64 for value in values)
    if is_text or is_short:
        return [None if value == "" else value for value in values]
    return [None if value is None or value != value else str(value) for value in values]  # noqa: PLR0124 - nan


def begin_of(rows: Rows, at: int, names: Sequence[str], most: int) -> dict[str, list[object]]:
    """Read the first values of columns that need not be among those of `rows`, in the file of span `at`: `most` at
    most. Columns that cannot be read are left out."""
    opened, (_, low, taken) = _open(rows.files[at]), rows.spans[at]
    values = {}
    for name in names:
        with contextlib.suppress(DataError):  # nobody uses it
            values[name] = opened.fetch([name], low, low + min(taken, most))[name].to_pylist()
    return values


def _plain(table: pa.Table) -> pa.Table:
    """Replace dictionaries (categories of pandas) and views (as polars writes them) by what they stand for."""
    for column, field in enumerate(table.schema):
        kind = _plain_type(field.type)
        if kind != field.type:
            table = table.set_column(column, field.name, _without_list_views(table[column]).cast(kind))
    return table


def _without_list_views(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """Replace views of lists in the column by lists: `cast` of pyarrow 25 takes views for longer than they are."""
    return pa.chunked_array([_lists(chunk) for chunk in column.chunks]) if column.num_chunks else column


def _lists(array: pa.Array) -> pa.Array:
    kind, types = array.type, pa.types
    if types.is_struct(kind):
        parts = [_lists(part) for part in array.flatten()]
        fields = [kind.field(index).with_type(part.type) for index, part in enumerate(parts)]
        return pa.StructArray.from_arrays(parts, fields=fields, mask=array.is_null())
    if not any(
        test(kind) for test in (types.is_list, types.is_large_list, types.is_list_view, types.is_large_list_view)
    ):
        return array
    ends = np.cumsum(pc.fill_null(pc.list_value_length(array), 0).to_numpy(), dtype=np.int64)
    mask = array.is_null() if array.null_count else None
    return pa.LargeListArray.from_arrays(np.concatenate([[0], ends]), _lists(array.flatten()), mask=mask)


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """Return the type of the same values without dictionaries and views, also within structs and lists."""
    types = pa.types
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if types.is_struct(kind):
        fields = [kind.field(index) for index in range(kind.num_fields)]
        return pa.struct([field.with_type(_plain_type(field.type)) for field in fields])
    if types.is_fixed_size_list(kind):
        return pa.list_(kind.value_field.with_type(_plain_type(kind.value_type)), kind.list_size)
    for make, tests in (
        (pa.list_, (types.is_list, types.is_list_view)),
        (pa.large_list, (types.is_large_list, types.is_large_list_view)),
    ):
        if any(test(kind) for test in tests):
            return make(kind.value_field.with_type(_plain_type(kind.value_type)))
    plain = {types.is_string_view: pa.string(), types.is_binary_view: pa.large_binary()}
    return next((other for test, other in plain.items() if test(kind)), kind)


def _joined(tables: list[pa.Table], files: list[str]) -> pa.Table:
    """Join the tables of all files into one, without copying where their types agree."""
    if len(tables) == 1:
        return tables[0]
    tables = _like_numbers(tables)
    joined = tables[0].schema
    for table, file in zip(tables, files, strict=True):
        try:
            joined = pa.unify_schemas([joined, table.schema], promote_options="permissive")
        except pa.ArrowException as error:
            raise DataError(
                f"does not match {files[0]}: {short(error)}; give files with equal columns", file=file
            ) from error
    return pa.concat_tables(tables, promote_options="permissive")


def _like_numbers(tables: list[pa.Table]) -> list[pa.Table]:
    """Convert columns of text that hold numbers where another file has numbers in that column: CSV beside Parquet."""
    wanted = {field.name for table in tables for field in table.schema if pa.types.is_primitive(field.type)}
    for index, table in enumerate(tables):
        for column, field in enumerate(table.schema):
            if field.name in wanted and pa.types.is_string(field.type):
                if pc.any(pc.match_substring(table[column], "x", ignore_case=True)).as_py():
                    continue  # pyarrow would make a number of 0x10
                for kind in (pa.int64(), pa.float64()):
                    with contextlib.suppress(pa.ArrowInvalid):
                        numbers = pc.utf8_trim_whitespace(table[column]).cast(kind)
                        tables[index] = tables[index].set_column(column, field.name, numbers)
                        break
    return tables


def _open(file: File) -> Reader:
    if file.path == DIGITS:
        return _whole(_digits())
    if file.uri == HUB:
        return _whole(_hub(file.path))
    if file.size == 0:
        raise DataError("is empty (0 bytes); give a file with rows", file=file.path)
    if file.uri is None:
        return reader(file.path)
    try:
        filesystem, path = connected(file.uri)
        return reader(file.path, inside=path, filesystem=filesystem)
    except DataError:
        raise
    except Exception as error:  # behind hf:// and its like are packages that raise what they like
        raise DataError(f"cannot be read: {short(error)}", file=file.path) from error


def _whole(table: pa.Table) -> Reader:
    def fetch(names: list[str], low: int, high: int) -> pa.Table:
        return table.select(names)[low:high]

    return Reader(table.column_names, table.num_rows, fetch, nested(table.schema))


@functools.lru_cache(maxsize=1)
def _hub(name: str) -> pa.Table:
    """Load `owner/name`, `owner/name:split` or `owner/name:config:split` through the `datasets` package."""
    repository, *rest = name.split(":")
    config, split = (None, *rest, "train")[:2] if len(rest) < 2 else rest
    try:
        import datasets  # type: ignore[import-not-found, import-untyped, unused-ignore]
    except ImportError as error:
        raise DataError(
            f"is no file{looked_in(name) or ' here'}, and reading it from the Hub needs a package: "
            f"pip install datasets (or give files: hf://datasets/{repository}/**/*.parquet)",
            file=name,
        ) from error
    try:
        loaded: Any = datasets.load_dataset(repository, config, split=split)
    except (OSError, ValueError, RuntimeError) as error:
        raise DataError(f"cannot be read from the Hub: {short(error)}", file=name) from error
    return loaded.data.table


@functools.lru_cache(maxsize=1)
def _digits() -> pa.Table:
    """Read the 1,797 handwritten digits that scikit-learn bundles: image = 8*8 uint8 row-major, label = 0 .. 9.

    They are read from its data file, because importing scikit-learn takes two seconds and reading takes ten
    milliseconds.
    """
    import importlib.util

    from pyarrow import csv

    spec = importlib.util.find_spec("sklearn")
    path = (
        Path(spec.submodule_search_locations[0]) / "datasets/data/digits.csv.gz"
        if spec and spec.submodule_search_locations
        else None
    )
    if path is None or not path.is_file():
        raise DataError("come with scikit-learn, which is not here: pip install scikit-learn", file=DIGITS)
    raw = csv.read_csv(path, read_options=csv.ReadOptions(autogenerate_column_names=True))
    values = np.stack([column.to_numpy() for column in raw.columns], axis=1)
    pixels = np.rint(values[:, :64] * (255 / 16)).astype(np.uint8)
    images = pa.FixedSizeBinaryArray.from_buffers(pa.binary(64), len(pixels), [None, pa.py_buffer(pixels.tobytes())])
    return pa.table({"image": images, "label": pa.array(values[:, 64].astype(np.int8))})
