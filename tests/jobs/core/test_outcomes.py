"""What a metric says of each row: the metric itself, what it is without some rows, and which rows belong together."""

from __future__ import annotations

import math
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from jobs.core.outcomes import BLOCKS, Outcomes, RowIds, by_row, mean_of, outcomes_of


def ratio(hit: Any, said: Any) -> float:
    return float(hit.sum() / said.sum())


def test_a_metric_that_is_no_mean_is_computed_of_the_rows_that_are_left() -> None:
    """Mutant check: leaving the block itself in, and the others out, fails."""
    hit, said = np.array([1.0, 0, 1, 1, 0, 1]), np.array([1.0, 2, 1, 3, 1, 2])
    outcome = by_row(ratio, hit=torch.tensor(hit), said=said.tolist())
    assert float(outcome) == outcome.value == 4 / 10
    assert not outcome.is_mean
    assert outcome.without is not None
    blocks = np.array([0, 1, 1, 2, 0, 2])
    expected = [hit[blocks != k].sum() / said[blocks != k].sum() for k in range(3)]
    assert outcome.without(blocks) == pytest.approx(expected)


@pytest.mark.parametrize(
    "columns",
    [{}, {"a": [1.0], "b": [1.0, 2.0]}, {"a": 1.0}, {"a": [[1.0, 2.0]]}],
    ids=["none", "lengths", "one", "two"],
)
def test_columns_are_numbers_for_each_row(columns: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match="with one number for each row"):
        by_row(ratio, **columns)


def test_what_a_metric_gives_is_read_in_each_of_its_forms() -> None:
    number, rows = outcomes_of(0.25, 3, source="m"), outcomes_of(torch.tensor([True, False, True]), 3, source="m")
    assert (number.value, number.columns, number.is_mean) == (0.25, {}, False)
    assert (rows.value, rows.is_mean) == (2 / 3, True)
    made = by_row(ratio, hit=[1.0, 0.0, 1.0], said=[1.0, 1.0, 1.0])
    assert outcomes_of(made, 3, source="m") is made
    pairs = Outcomes(0.5, without=list)
    assert outcomes_of(pairs, 7, source="m") is pairs
    with pytest.raises(ValueError, match=r"^m gave \[2\] for 3 rows"):
        outcomes_of([0.1, 0.2], 3, source="m")
    with pytest.raises(ValueError, match=r"^m gave by_row columns of .* for 4 rows"):
        outcomes_of(made, 4, source="m")


def test_bits_are_averaged_as_they_were() -> None:
    """Bit for bit: 1/3 and 2/3 of three rows."""
    for bits in ([True, False, False], [True, True, False]):
        assert mean_of(np.array(bits)).value == float(np.mean(np.array(bits)))


# Blocks


ids = st.lists(st.integers(0, 10**6), min_size=1, max_size=200, unique=True)


@given(ids, st.integers(1, 40), st.randoms(use_true_random=False))
def test_a_row_is_in_the_same_block_wherever_it_stands(own: list[int], most: int, random: Any) -> None:
    """As trials of another version may read the rows in another order. Mutant check: blocks by position fail."""
    blocks = RowIds(own).blocks(most)
    sizes = Counter(blocks.tolist())
    assert set(sizes) == set(range(len(sizes)))
    assert len(sizes) == min(most, len(own))
    assert max(sizes.values()) - min(sizes.values()) <= 1
    moved = random.sample(own, len(own))
    again = dict(zip(moved, RowIds(moved).blocks(most).tolist(), strict=True))
    assert [again[row] for row in own] == blocks.tolist()


@given(st.lists(st.integers(0, 12) | st.none(), min_size=2, max_size=120))
def test_rows_that_belong_together_stay_together(groups: list[int | None]) -> None:
    rows = RowIds(range(len(groups)), groups)
    blocks = rows.blocks()
    for group in {*groups} - {None}:
        assert len({block for own, block in zip(groups, blocks.tolist(), strict=True) if own == group}) == 1
    assert len(set(rows.units)) == len({*groups} - {None}) + groups.count(None), "each without a group is on its own"
    assert len(set(blocks.tolist())) <= BLOCKS
    assert set(blocks.tolist()) == set(range(max(blocks) + 1)), "no block is empty"


def test_a_digest_is_that_of_ids_and_groups() -> None:
    known = [
        RowIds(range(3)),
        RowIds([0, 1, 2]),
        RowIds([0, 1, 3]),
        RowIds(["0", "1", "2"]),
        RowIds(range(3), [1, 1, 2]),
        RowIds(range(3), ["1", "1", "2"]),
        RowIds(range(3), [1, None, 2]),
    ]
    digests = [rows.digest for rows in known]
    assert digests[0] == digests[1], "positions are numbers"
    assert len(set(digests)) == len(known) - 1


def test_some_of_the_rows_keep_their_groups() -> None:
    rows = RowIds(["a", "b", "c"], [1, None, 2]).some(np.array([True, False, True]))
    assert (list(rows.ids), rows.groups) == (["a", "c"], [1, 2])
    assert math.isnan(outcomes_of(None, 3, source="m").value), "as before: a metric that is not defined"
