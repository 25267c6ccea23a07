"""Which rows a job is judged on: by the columns `id` and `group`, where the data have them, read beside the rest."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from jobs.artifacts import rows
from jobs.core.outcomes import mean_of
from jobs.data.sources import exactly, ids_in, read, row_ids


def of(path: Path, columns: dict[str, Any], part: str = "") -> Any:
    table = pa.table({"text": [f"t{k}" for k in range(len(next(iter(columns.values()))))]} | columns)
    pq.write_table(table, path)
    return row_ids(read(f"{path}{part}", exactly, ("text",)))


@pytest.mark.parametrize("name", ["id", "group"])
@pytest.mark.parametrize(
    "column",
    [
        pa.array([2**64 - 1, 2**63, 1], pa.uint64()),
        pa.array([10**6, -(10**6), 0], pa.date32()),
        pa.array([0, 1, 2], pa.timestamp("us", tz="US/Nowhere")),
        pa.array([2**62, 1, 2], pa.duration("s")),
        pa.Array.from_buffers(
            pa.string(), 3, [None, pa.py_buffer(np.array([0, 1, 2, 3], np.int32).tobytes()), pa.py_buffer(b"\xff\xfea")]
        ),
    ],
    ids=["beyond int64", "dates beyond Python's", "a zone that is none", "durations beyond Python's", "no text"],
)
def test_columns_that_nobody_asked_for_end_nothing(name: str, column: pa.Array) -> None:
    """Seen: each of these ended a trial, at its beginning or, of ids, after all its training."""
    ids = ids_in({name: column}, 3)
    assert len(ids) == 3
    kept = {"m": (ids, mean_of(np.array([0.0, 1.0, 1.0])))}
    assert rows.encode(kept) is not None


def test_ids_and_groups_are_those_of_the_rows_that_are_judged(tmp_path: Path) -> None:
    found = of(tmp_path / "a.parquet", {"id": [3, 1, 7, 9], "group": ["x", "y", "y", None]}, "[1:]")
    assert (list(found.ids), found.groups) == ([1, 7, 9], ["y", "y", None])


@pytest.mark.parametrize(
    "ids",
    [[1, 1, 2], [1, None, 2], [0.5, None, 1.5], ["a", "", "b"], [[1], [2], [3]]],
    ids=["twice", "null", "nan", "empty", "lists"],
)
def test_what_does_not_tell_rows_apart_is_no_id(tmp_path: Path, ids: list[Any]) -> None:
    assert list(of(tmp_path / "a.parquet", {"id": ids}).ids) == [0, 1, 2]


@pytest.mark.parametrize(
    ("groups", "expected"),
    [
        ([1, 1, 2], [1, 1, 2]),
        (["a", "", None], ["a", None, None]),
        ([True, False, True], ["True", "False", "True"]),
        ([1.0, float("nan"), 2.5], ["1.0", None, "2.5"]),
        ([None, None, None], None),
        (["", "", ""], None),
        ([[1], [1], [2]], None),
    ],
)
def test_groups_are_whatever_is_written_as_one(tmp_path: Path, groups: list[Any], expected: list[Any] | None) -> None:
    assert of(tmp_path / "a.parquet", {"group": groups}).groups == expected


def test_a_column_that_one_file_lacks_or_that_cannot_be_read_is_left_out(tmp_path: Path) -> None:
    """Nobody has asked for it, so it ends nothing. Mutant check: raising what reading it raises."""
    one, other = pa.table({"text": ["a"], "group": [1]}), pa.table({"text": ["b"]})
    pq.write_table(one, tmp_path / "1.parquet")
    pq.write_table(other, tmp_path / "2.parquet")
    assert row_ids(read(str(tmp_path / "*.parquet"), exactly, ("text",))).groups is None
    pq.write_table(pa.table({"text": ["b"], "group": [["x"]]}), tmp_path / "2.parquet")
    found = row_ids(read(str(tmp_path / "*.parquet"), exactly, ("text",)))
    assert (list(found.ids), found.groups) == ([0, 1], None)


@pytest.mark.parametrize(
    "column", [[4, 5, 6], np.array([4, 5, 6]), torch.tensor([4, 5, 6]), pa.array([4, 5, 6]), ("d", "e", "f")]
)
def test_columns_of_a_task_of_ones_own_have_any_form(column: Any) -> None:
    found = ids_in({"id": column, "group": column}, 3)
    assert list(found.ids) == found.groups
    assert found.ids[0] in (4, "d")


@pytest.mark.parametrize("column", [[4, 5], [[1, 2], [3], [4]], object(), {"a": 1}, "abc"])
def test_what_is_no_column_is_left_out(column: Any) -> None:
    found = ids_in({"id": column, "group": column}, 3)
    assert (list(found.ids), found.groups) == ([0, 1, 2], None)
