"""rows.parquet: what was written is read back by whoever knows the name of the metric, and not how it is made."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.artifacts import rows
from jobs.artifacts.storage import Folder
from jobs.core.outcomes import Outcomes, RowIds, by_row, mean_of
from jobs.metrics.builtin.spearman import rank_correlation as spearman


def encoded(**kept: tuple[RowIds, Outcomes]) -> bytes:
    content = rows.encode(kept)
    assert content is not None
    return content


def decoded(content: bytes, metric: str) -> rows.MetricRows:
    found = rows.decode(content, metric)
    assert found is not None
    return found


names = st.integers(-(2**40), 2**40) | st.integers(0, 99)
texts = st.text(st.characters(codec="utf-8"), max_size=8)
values = st.floats(-1e6, 1e6) | st.sampled_from([0.0, 1.0])


@settings(max_examples=60)
@given(st.data())
def test_a_mean_is_read_back_whatever_the_ids_and_groups(data: st.DataObject) -> None:
    """In the order of the ids. Rows that do not count are left out, and a row without a group is one."""
    own = data.draw(st.lists(names, min_size=1, max_size=30, unique=True) | st.lists(texts, min_size=1, unique=True))
    n = len(own)
    groups = data.draw(st.none() | st.lists(st.none() | st.integers(0, 4), min_size=n, max_size=n))
    column = np.array(data.draw(st.lists(values | st.just(np.nan), min_size=n, max_size=n)))
    counts = ~np.isnan(column)
    ids, value = RowIds(own, groups), float(np.mean(column[counts])) if counts.any() else 0.0
    content = encoded(m=(ids, Outcomes(value, {"": column})))
    found = decoded(content, "m")
    assert (found.value, found.rows, found.without) == (value, counts.sum(), None)
    assert found.values is not None
    there = ids.some(counts)
    order = sorted(range(len(there)), key=lambda at: there.ids[at])
    assert found.values.tolist() == [column[counts][at] for at in order]
    assert found.ids == ids.some(counts).digest
    if groups is None:
        assert found.groups is None
        assert found.group_of is None
    else:
        assert found.group_of is not None
        units = [there.units[at] for at in order]
        assert found.groups == len(set(units))
        together = [[a == b for b in units] for a in units]
        assert (found.group_of[:, None] == found.group_of).tolist() == together or not units
    (back, outcome) = rows.means(content)["m"]
    assert (list(back.ids), outcome.columns[""].tolist()) == (list(ids.some(counts).ids), column[counts].tolist())
    assert encoded(m=(back, outcome)) == content or not counts.all(), "so that it can be written again"


def test_a_metric_that_is_no_mean_says_what_it_is_without_each_block() -> None:
    rng = np.random.default_rng(0)
    measured, wanted = rng.normal(size=57), rng.integers(0, 5, 57).astype(float)
    ids = RowIds.positions(57)
    found = decoded(encoded(rank=(ids, by_row(spearman, measured=measured, wanted=wanted))), "rank")
    blocks = ids.blocks()
    assert found.value == spearman(measured, wanted)
    expected = [spearman(measured[blocks != k], wanted[blocks != k]) for k in range(20)]
    assert found.without == pytest.approx(expected, abs=1e-15)
    assert list(found.sizes) == np.bincount(blocks).tolist()
    assert found.values is None


def test_columns_are_what_a_metric_can_be_computed_of_again() -> None:
    rng = np.random.default_rng(1)
    measured, wanted = rng.normal(size=9), rng.normal(size=9)
    content = encoded(s=(RowIds([f"r{i}" for i in range(9)]), by_row(spearman, measured=measured, wanted=wanted)))
    table = pq.read_table(io.BytesIO(content))
    assert table.column_names == ["row", "metric.s.measured", "metric.s.wanted"]
    again = spearman(*(table[name].to_numpy() for name in table.column_names[1:]))
    assert again == decoded(content, "s").value


def fails(**columns: Any) -> float:
    if len(columns["x"]) < 4:
        raise ZeroDivisionError
    return 0.5


@pytest.mark.parametrize("combine", [fails, lambda x: np.nan if len(x) < 4 else 0.5], ids=["raises", "nan"])
def test_what_is_not_defined_without_some_rows_has_nothing_to_say(combine: Any) -> None:
    """The training has ended, and its metric stands."""
    found = decoded(encoded(m=(RowIds(range(4)), by_row(combine, x=[1.0, 2, 3, 4]))), "m")
    assert (found.value, found.without, found.values) == (0.5, None, None)


def test_metrics_of_other_rows_lie_in_one_table() -> None:
    """Mutant check: values by position and not by id fail."""
    content = encoded(
        a=(RowIds(["x", "y", "z"]), mean_of(np.array([1.0, 0.5, 0.25]))),
        b=(RowIds(["z", "w"], ["g", "g"]), mean_of(np.array([True, False]))),
        c=(RowIds([7]), mean_of(np.array([3.0]))),
    )
    table = pq.read_table(io.BytesIO(content)).to_pydict()
    assert table == {
        "row": ["x", "y", "z", "w", "7"],
        "group": [None, None, "g", "g", None],
        "metric.a": [1.0, 0.5, 0.25, None, None],
        "metric.b": [None, None, True, False, None],
        "metric.c": [None, None, None, None, 3.0],
    }
    assert [decoded(content, name).rows for name in "abc"] == [3, 2, 1]
    assert {name: list(own.ids) for name, (own, _) in rows.means(content).items()} == {
        "a": ["x", "y", "z"],
        "b": ["z", "w"],
        "c": ["7"],
    }


def test_names_may_be_anything() -> None:
    odd = {"row": 0.1, "group": 0.2, "a.b": 0.3, 'q"\n': 0.4}
    kept = {name: (RowIds(range(2)), mean_of(np.array([0.0, value]))) for name, value in odd.items()}
    kept["a"] = (RowIds(range(2)), by_row(lambda b: float(b.sum()), b=[1.0, 2.0]))
    content = rows.encode(kept)
    assert content is not None
    assert {name: decoded(content, name).value for name in kept} == {
        **{name: value / 2 for name, value in odd.items()},
        "a": 3.0,
    }


def test_what_says_nothing_by_row_is_not_there() -> None:
    assert rows.encode({"m": (RowIds(range(3)), Outcomes(0.5))}) is None
    assert rows.encode({}) is None
    content = encoded(m=(RowIds(range(3)), Outcomes(0.5)), n=(RowIds(range(3)), mean_of(np.ones(3))))
    assert rows.decode(content, "m") is None


def test_it_is_small() -> None:
    """Ten thousand rows, right or wrong by two metrics: under 4 kB; a cosine and a score each: under 100 kB."""
    rng = np.random.default_rng(0)
    ids = RowIds.positions(10_000)
    bits = {name: (ids, mean_of(rng.random(10_000) < 0.9)) for name in ("knn_accuracy", "probe_accuracy")}
    assert len(encoded(**bits)) < 4_000
    ranked = by_row(spearman, measured=rng.normal(size=10_000), wanted=rng.integers(0, 26, 10_000) / 5)
    assert len(encoded(spearman=(ids, ranked))) < 100_000


@pytest.mark.parametrize("damage", [b"", b"PAR1", b"no parquet at all"])
def test_a_file_of_something_else_is_said_to_be_one(damage: bytes) -> None:
    sound = encoded(m=(RowIds(range(3)), mean_of(np.ones(3))))
    for content in (damage, sound[: len(sound) // 2], sound[:-9] + damage):
        with pytest.raises(ValueError, match=r"^rows\.parquet cannot be read"):
            rows.decode(content, "m")
        with pytest.raises(ValueError, match=r"^rows\.parquet cannot be read"):
            rows.means(content)
    other = io.BytesIO()
    pq.write_table(pq.read_table(io.BytesIO(sound)).replace_schema_metadata(None), other)
    with pytest.raises(ValueError, match=r"^rows\.parquet cannot be read"):
        rows.decode(other.getvalue(), "m")


def test_a_result_knows_its_rows(tmp_path: Path) -> None:
    storage, content = Folder(tmp_path), encoded(m=(RowIds(range(3)), mean_of(np.ones(3))))
    expected = rows.sha256(content)
    assert rows.fault(storage, None) is None, "a result of an older version names none"
    assert rows.fault(storage, expected) == "it is not there"
    storage.write(rows.NAME, content)
    assert rows.fault(storage, expected) is None
    storage.write(rows.NAME, content[:-1])
    assert rows.fault(storage, expected) == "it does not match its sha256"


@pytest.mark.parametrize("kind", [int, str])
def test_rows_are_paired_by_what_they_are_whatever_the_order_in_which_they_were_measured(kind: type) -> None:
    """Seen: of a metric that was kept in another order than the first one, each value was taken for another row's, and
    the same rows in another order were said to be other rows. Mutant check: values in the order of the file."""
    there, back = [kind(k) for k in range(5, 15)], [kind(k) for k in range(14, 4, -1)]
    value = {row: 0.1 * k for k, row in enumerate(there)}
    groups = {row: f"g{k // 2}" for k, row in enumerate(there)}

    def measured(order: Sequence[Any]) -> tuple[RowIds, Outcomes]:
        return RowIds(order, [groups[row] for row in order]), mean_of(np.array([value[row] for row in order]))

    one = rows.decode(encoded(a=measured(there), m=measured(back)), "m")
    other = rows.decode(encoded(m=measured(back)), "m")
    third = rows.decode(encoded(m=measured(there)), "m")
    assert one is not None
    assert other is not None
    assert third is not None
    assert one.ids == other.ids == third.ids
    np.testing.assert_array_equal(one.values, other.values)
    np.testing.assert_array_equal(one.values, third.values)
    np.testing.assert_array_equal(one.group_of, third.group_of)
