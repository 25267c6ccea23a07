"""The built-in samplers: what a batch and an epoch hold, for any data, and from any step on.

A built-in sampler without a case in KNOWN fails the collection.
"""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from jobs import data
from jobs.config import JobConfig, components
from jobs.data import DataError
from jobs.data.samplers.by_label import by_label
from jobs.data.samplers.by_source import by_source
from jobs.data.samplers.no_duplicates import no_duplicates
from jobs.data.validate import check, digests

KNOWN = {"shuffled", "no_duplicates", "by_source", "by_label"}

if without := sorted({*components.builtin_names("sampler")} ^ KNOWN):
    raise pytest.UsageError(f"a built-in sampler has its rules proven here; there are none of {without}")


def stream(batches: list[NDArray[np.int64]]) -> list[int]:
    return [row for batch in batches for row in batch.tolist()]


# no_duplicates

texts = st.lists(st.tuples(st.integers(0, 30), st.integers(100, 130)), min_size=4, max_size=60)


@settings(max_examples=40)
@given(texts, st.integers(1, 7), st.integers(0, 3))
def test_every_row_comes_once_an_epoch_and_no_batch_repeats_a_text_that_need_not(
    said: list[tuple[int, int]], size: int, seed: int
) -> None:
    """Mutant checks: `shuffled` in its place, and the last rows of an epoch chosen in
    another order the second time, fail this."""
    ids, rows = np.array(said), len(said)
    size = min(size, rows)
    steps = 3 * rows // size + 1
    batches = [no_duplicates(rows, size, seed, step, ids) for step in range(1, steps + 1)]
    flat = stream(batches)
    for epoch in range(3):
        assert sorted(flat[epoch * rows : (epoch + 1) * rows]) == list(range(rows))
    most = max(Counter(text for pair in said for text in set(pair)).values())
    if most == 1:
        for batch in batches:
            assert len({*ids[batch].reshape(-1).tolist()}) == 2 * size
    for step in (steps, 1, steps // 2 + 1):
        assert no_duplicates(rows, size, seed, step, np.array(said)).tolist() == batches[step - 1].tolist()


def repeated(batch: NDArray[np.int64], ids: NDArray[np.int64]) -> bool:
    own = [set(ids[row].tolist()) for row in batch]
    return any(a & b for a, b in itertools.combinations(own, 2))


@pytest.mark.parametrize("rows", [640, 701])
def test_no_batch_repeats_a_text_where_there_is_room_also_across_the_end_of_an_epoch(rows: int) -> None:
    """Every anchor has five positives, and every positive three anchors; 701 rows are no whole number of batches.
    Mutant checks: no room made for what is left, and the texts of the batch that an epoch completes not known, fail
    this."""
    draw = np.random.default_rng(5)
    ids = np.stack([np.arange(rows) // 5, 1000 + draw.permutation(rows) // 3], 1)
    batches = [no_duplicates(rows, 32, 7, step, ids) for step in range(1, 100)]
    plain = [data.batch_rows(rows, size=32, seed=7, step=step) for step in range(1, 100)]
    assert not any(repeated(batch, ids) for batch in batches)
    assert sum(repeated(batch, ids) for batch in plain) > 50, "no batch would have repeated one anyway"
    assert stream(batches)[:rows] != stream(batches)[rows : 2 * rows], "two epochs are one order"


def test_leftovers_come_last_and_nothing_is_lost() -> None:
    """A text in 60 of 100 rows, in batches of 10: all but one of it in a batch repeat it, and these are at the end."""
    ids = np.stack([np.where(np.arange(100) < 60, 0, np.arange(100)), 1000 + np.arange(100)], 1)
    batches = [no_duplicates(100, 10, 1, step, ids) for step in range(1, 11)]
    held = [int((ids[batch, 0] == 0).sum()) for batch in batches]
    assert sorted(stream(batches)) == list(range(100))
    assert held[:4] == [1, 1, 1, 1]
    assert held == sorted(held)


# by_source


@settings(max_examples=60)
@given(st.lists(st.integers(6, 40), min_size=1, max_size=5), st.integers(1, 6), st.integers(0, 3))
def test_a_batch_is_of_one_source_and_sources_take_turns_by_their_rows(counts: list[int], size: int, seed: int) -> None:
    """To within one batch at the end of every cycle. Mutant check: sources that take turns one by one fail this."""
    sources = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) * 7, counts))
    rows, cycle = len(sources), -(-len(sources) // size)
    batches = [by_source(rows, size, seed, step, sources) for step in range(1, 4 * cycle + 1)]
    by: dict[int, list[int]] = {7 * source: [] for source in range(len(counts))}
    for step, batch in enumerate(batches, 1):
        (source,) = {*sources[batch].tolist()}
        by[source] += batch.tolist()
        if step % cycle == 0:
            for number, count in enumerate(counts):
                assert abs(len(by[7 * number]) / size - step * count / rows) <= 1 + 1e-9
    for number, count in enumerate(counts):
        for start in range(0, len(by[7 * number]) - count + 1, count):
            assert len({*by[7 * number][start : start + count]}) == count
    assert by_source(rows, size, seed, 2 * cycle, sources.copy()).tolist() == batches[2 * cycle - 1].tolist()


def test_a_source_that_is_smaller_than_a_batch_is_refused() -> None:
    with pytest.raises(ValueError, match=r"a source has 3 rows, fewer than a batch of one source holds; set batch"):
        by_source(13, 4, 0, 1, np.array([0] * 10 + [1] * 3))


# by_label


@settings(max_examples=60)
@given(st.lists(st.integers(0, 30), min_size=3, max_size=9), st.integers(1, 3), st.integers(1, 3), st.integers(0, 3))
def test_a_batch_has_equally_many_rows_of_each_of_its_labels(
    counts: list[int], classes: int, each: int, seed: int
) -> None:
    """And an epoch has as many batches as there can be. Mutant check: labels drawn with replacement fail this."""
    labels = np.random.default_rng(seed).permutation(np.repeat(np.arange(len(counts)) - 1, counts))  # -1: without one
    size, groups = classes * each, [count // each for count in counts[1:]]
    batches_of_an_epoch = max(b for b in range(sum(groups) + 1) if sum(min(g, b) for g in groups) >= b * classes)
    if batches_of_an_epoch == 0:
        with pytest.raises(ValueError, match=r"a batch of \d+ holds"):
            by_label(len(labels), size, seed, 1, labels, per_label=each)
        return
    steps = 2 * batches_of_an_epoch
    batches = [by_label(len(labels), size, seed, step, labels, per_label=each) for step in range(1, steps + 1)]
    for batch in batches:
        held = Counter(labels[batch].tolist())
        assert len(held) == classes
        assert -1 not in held
        assert {*held.values()} == {each}
    for epoch in (batches[:batches_of_an_epoch], batches[batches_of_an_epoch:]):
        assert len({*stream(epoch)}) == len(stream(epoch))
    again = by_label(len(labels), size, seed, steps, labels.copy(), per_label=each)
    assert again.tolist() == batches[-1].tolist()


# In a job


def job(folder: Path, sampler: str, **keys: Any) -> JobConfig:
    judged = [{"sentence1": f"a {n} b", "sentence2": f"a {n + 1} c", "score": n} for n in range(6)]
    (folder / "judged.jsonl").write_text("\n".join(map(json.dumps, judged)))
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 4},
            "data": {"train": str(folder / "*.rows.jsonl"), "confirm": str(folder / "judged.jsonl")}
            | {"sampler": sampler, "max_tokens": 8}
            | keys,
            "model": {"name": "bert", "width": 8, "layers": 1, "heads": 1, "projection": "none", "vocabulary": 100},
            "batch": {"size": 4},
            "evaluate": {"times": 1},
        }
    )


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Two files: 12 and 8 rows; each anchor in two of them, but for blanks around it; topics and marks of all."""
    words = ["ash", "bay", "cliff", "dune", "elm", "fern", "grove", "hill", "isle", "jetty"]
    rows: list[dict[str, Any]] = [
        {"anchor": f"the {words[n % 10]}{' ' * (n // 10)}", "positive": f"some {words[n % 10]} {n}"}
        | {"topic": f"t{n % 3}", "mark": n % 5 if n % 7 else None}
        for n in range(20)
    ]
    for name, part in (("a", rows[:12]), ("b", rows[12:])):
        (tmp_path / f"{name}.rows.jsonl").write_text("\n".join(map(json.dumps, part)))
    return tmp_path


def drawn(job: JobConfig, steps: int = 10) -> list[list[int]]:
    examples = data.train_examples(job)
    return [
        data.batch_rows(len(examples), size=4, seed=job.seed, step=step, job=job, facts=examples.facts).tolist()
        for step in range(1, steps + 1)
    ]


def test_a_job_gives_samplers_what_they_ask_for(folder: Path) -> None:
    for batch in drawn(job(folder, "no_duplicates")):
        assert len({row % 10 for row in batch}) == 4
    for batch in drawn(job(folder, "by_source")):
        assert len({row < 12 for row in batch}) == 1
    for batch in drawn(job(folder, "by_source", source="topic")):
        assert len({row % 3 for row in batch}) == 1
    for batch in drawn(job(folder, "by_label", label="mark")):
        assert sorted(Counter(row % 5 for row in batch).values()) == [2, 2]
        assert all(row % 7 for row in batch)
    for name in ("no_duplicates", "by_source", "by_label"):
        check(job(folder, name, source="topic", label="mark"))


def test_what_a_sampler_lacks_is_said_before_anything_is_trained(folder: Path) -> None:
    with pytest.raises(DataError, match=r"has no labels, which data.sampler asks for; name their column in data.label"):
        check(job(folder, "by_label", columns=["anchor", "positive"]))
    with pytest.raises(DataError, match=r"is one file, and data.sampler asks for sources; name the column"):
        check(job(folder, "by_source", train=str(folder / "a.rows.jsonl"), columns=["anchor", "positive"]))
    with pytest.raises(DataError, match=r"per_label = 3 must be a number above 0 that divides batch.size = 4"):
        check(job(folder, "by_label", label="mark", sampler_options={"per_label": 3}))
    with pytest.raises(DataError, match=r"topics.*is missing; .*did you mean 'topic'"):
        check(job(folder, "by_source", source="topics", columns=["anchor", "positive"]))


def test_the_columns_that_batches_are_made_by_are_of_what_a_run_is_begun_with(folder: Path) -> None:
    """Mutant check: a digest of the texts alone fails this."""
    plain, named = (digests(job(folder, "by_source", **keys), stage_only=True) for keys in ({}, {"source": "topic"}))
    (key,) = (key for key in plain if key.startswith("data.train"))
    assert plain[key]["digest"] != named[f'{key} source "topic"']["digest"]


def test_images_of_equal_pixels_never_meet_and_labels_are_theirs() -> None:
    given = {
        "task": "image",
        "budget": {"steps": 4},
        "data": {"train": "digits[:300]", "confirm": "digits[300:400]", "sampler": "by_label"},
        "batch": {"size": 20},
        "model": {"name": "resnet", "width": 4, "layers": 1},
    }
    labels = data.open_table("digits[:300]")["label"].to_numpy()
    examples = data.train_examples(JobConfig.model_validate(given))
    batch = data.batch_rows(300, size=20, seed=0, step=2, job=JobConfig.model_validate(given), facts=examples.facts)
    assert sorted(Counter(labels[batch].tolist()).values()) == [2] * 10
    ids = examples.facts("ids")
    assert ids.shape == (300, 1)
    assert ids is examples.facts("ids")


@pytest.mark.soak
def test_a_million_rows_are_planned_in_seconds() -> None:
    """Seen: 3 s an epoch on one core, of which two go over all rows one by one."""
    import time

    ids = np.stack([np.arange(10**6) // 3, 10**6 + np.arange(10**6) // 2], 1)
    before = time.process_time()
    no_duplicates(10**6, 256, 0, 1, ids)
    assert time.process_time() - before < 20
