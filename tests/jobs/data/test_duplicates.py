"""Texts that come again are never pushed from themselves, and a batch that they leave nothing of is no success."""

from __future__ import annotations

import itertools
import json
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks

from jobs import data
from jobs.config import JobConfig
from jobs.data.sentences.duplicates import LOOKED_AT, negatives_in_a_batch, note_on_batch, repeats, text_ids
from jobs.data.sources import Rows
from jobs.train import Training

WORDS = ("lamp", "boat", "cup", "road", "tree", "stone", "bird", "round", "red", "blue", "new", "old", "small", "large",
         "fast", "green")  # fmt: skip


def sentence(number: int) -> str:
    return " ".join(WORDS[number // 16**k % 16] for k in range(4))


def rows_of(**columns: list[str]) -> Rows:
    return Rows("made.jsonl", pa.table(columns), (("made.jsonl", 0, len(next(iter(columns.values())))),))


def write(path: Path, rows: list[dict[str, Any]]) -> str:
    path.write_text("\n".join(json.dumps(row) for row in rows))
    return str(path)


def job(folder: Path, rows: list[dict[str, Any]], **changes: Any) -> JobConfig:
    """A job on these rows, small enough to be trained within a second."""
    scored = [{"sentence1": sentence(7 * k), "sentence2": sentence(11 * k), "score": k % 6} for k in range(12)]
    sections: dict[str, Any] = {
        "task": "sentence",
        "budget": {"steps": 3},
        "data": {"train": write(folder / "train.jsonl", rows), "confirm": write(folder / "scored.jsonl", scored),
                 "max_tokens": 12},
        "model": {"width": 16, "heads": 2, "layers": 1, "projection": "none", "vocabulary": 200},
        "batch": {"size": 8},
        "evaluate": {"times": 1},
    }  # fmt: skip
    for section, values in changes.items():
        sections[section] = sections.get(section, {}) | values if isinstance(values, dict) else values
    return JobConfig.model_validate(sections)


def points(training: Training, key: str) -> list[float]:
    return [point.value for point in training.points if point.key == key]


def run(config: JobConfig, folder: Path, said: list[str] | None = None) -> Training:
    training = Training(config, folder, log=(said if said is not None else []).append)
    while training.result is None:
        training.advance(100)
    return training


# What rows say


def test_one_text_has_one_id_in_whatever_column_and_with_blanks_around_it() -> None:
    """Mutant check: hashing the column's name with the text fails this."""
    rows = rows_of(anchor=["cat", "dog ", "é"], positive=[" dog", "bird", "e\u0301"], n=["\tcat\n", "Cat", "é"])
    ids = text_ids(rows, np.arange(3))
    assert ids.key_ids is not None
    assert ids.negative_ids is not None
    assert ids.negative_ids.shape == (3, 1)
    assert ids.pair_ids[0] == ids.negative_ids[0, 0]
    assert ids.pair_ids[1] == ids.key_ids[0]
    assert ids.pair_ids[2] == ids.negative_ids[2, 0]
    said = [*ids.pair_ids.tolist(), *ids.key_ids.tolist(), *ids.negative_ids.flatten().tolist()]
    assert len(set(said)) == 6, "case and the spelling of a letter are differences"
    assert text_ids(rows_of(text=["cat"]), np.arange(1)).given().keys() == {"pair_ids"}


# What is said of a data set


TEXTS = st.sampled_from("abcdefgh")


@settings(max_examples=60)
@given(rows=st.lists(st.tuples(TEXTS, TEXTS, TEXTS, TEXTS), min_size=2, max_size=12), hard=st.integers(0, 2),
       pool=st.integers(2, 5))  # fmt: skip
def test_the_share_told_is_that_of_an_average_batch(rows: list[tuple[str, ...]], hard: int, pool: int) -> None:
    """Against all pairs of rows. Mutant check: pairs that share two texts counted twice fails this."""
    n = len(rows)
    told = [
        note
        for note in repeats(
            JobConfig.model_validate({"task": "sentence", "budget": {"steps": 1}, "batch": {"size": pool},
                                      "data": {"train": "x", "confirm": "y"}}),
            rows_of(**{f"c{k}": [row[k] for row in rows] for k in range(2 + hard)}),
        )
        if "of the negatives in a batch" in note
    ] if not all_alike(rows, hard) else ["all"]  # fmt: skip
    pairs = [len({*a[:2]} & {*b[:2]}) > 0 for a, b in itertools.permutations(rows, 2)]
    own = [text in row[:2] for row in rows for text in row[2 : 2 + hard]]
    others = [text in a[:2] for a, b in itertools.permutations(rows, 2) for text in b[2 : 2 + hard]]
    taken = (pool - 1) * sum(pairs) / (n * (n - 1))
    taken += sum(own) / n + (pool - 1) * sum(others) / (n * (n - 1))
    share = taken / (pool - 1 + pool * hard)
    if told == ["all"]:
        assert share == pytest.approx(1)
    elif share < 0.0499:
        assert told == []
    elif share > 0.0501:
        assert told[0].startswith(f"about {share:.0%} of the negatives") or abs(share * 100 % 1 - 0.5) < 1e-6


def all_alike(rows: list[tuple[str, ...]], hard: int) -> bool:
    return all({*a[:2]} & {*b[:2]} for a, b in itertools.permutations(rows, 2)) and all(
        text in a[:2] for a in rows for b in rows for text in b[2 : 2 + hard]
    )


ALIKE: dict[str, list[dict[str, Any]]] = {
    "one anchor": [{"anchor": "the same", "positive": sentence(k)} for k in range(9)],
    "one positive, blanks aside": [{"anchor": sentence(k), "positive": "it" + " " * k} for k in range(9)],
    "one text on either side": [
        {"anchor": "it", "positive": sentence(k)} if k % 2 else {"anchor": sentence(k), "positive": "it"}
        for k in range(9)
    ],
    "three texts, any two rows of which share one": [
        {"anchor": "abc"[k % 3], "positive": "bca"[k % 3]} for k in range(9)
    ],
    "one sentence": [{"text": "always the same"} for _ in range(9)],
    "hard negatives too": [{"anchor": "a", "positive": "b", "negative": "ab"[k % 2]} for k in range(9)],
}  # fmt: skip


@pytest.mark.parametrize("kind", ALIKE)
def test_data_that_leave_nothing_of_any_batch_are_refused(tmp_path: Path, kind: str) -> None:
    with pytest.raises(data.DataError, match="every two of its 9 rows share a text") as refused:
        data.check(job(tmp_path, ALIKE[kind]))
    assert "give rows with other texts as well" in str(refused.value)
    unmasked = job(tmp_path, ALIKE[kind], loss={"mask_duplicates": False})
    assert data.check(unmasked) == []


@pytest.mark.parametrize(
    "loss", ["cosent", "cosine_labels", "pair_classifier", "vicreg", "barlow_twins", "mylab:vicreg"]
)
def test_a_loss_without_negatives_has_none_to_leave_out(tmp_path: Path, loss: str) -> None:
    """One query beside many documents that people have scored, or batches of two rows of one sentence. Seen: refused,
    as no negative would be left, or warned of, and a trial that met such a batch ended by it. Mutant check: for losses
    of anchors as well, the test before this one fails."""
    rows = [{"anchor": "one query", "positive": sentence(k), "score": k % 2} for k in range(9)]
    scores = None if "twins" in loss or "vicreg" in loss else "score"
    config = job(tmp_path, rows, loss={"name": loss}, batch={"size": 3}, budget={"steps": 4})
    columns = {"columns": ["anchor", "positive"], "scores": scores}
    config = JobConfig.model_validate(config.model_dump() | {"data": config.data.model_dump() | columns})
    assert data.check(config) == []
    training = run(config, tmp_path / "trial")
    assert training.result is not None
    assert training.notes == []


def test_a_queue_has_negatives_when_a_batch_has_none(tmp_path: Path) -> None:
    """Seen: the trial ended at the first batch of two rows that share a text. It goes on, and says so."""
    rows = [{"anchor": "one" if k < 6 else "two", "positive": sentence(k)} for k in range(12)]
    loss = {"name": "queue", "options": {"size": 8, "momentum": 0.9}}
    config = job(tmp_path, rows, loss=loss, batch={"size": 2}, budget={"steps": 12})
    assert all("ends there as an error" not in note for note in data.check(config))
    training = run(config, tmp_path / "trial")
    assert training.result is not None
    (note,) = training.notes
    assert "only those are left that loss.name = 'queue' has from batches before" in note


def test_the_command_line_refuses_them_with_exit_2_and_creates_nothing(tmp_path: Path) -> None:
    config = job(tmp_path, ALIKE["one positive, blanks aside"])
    (tmp_path / "job.json").write_text(config.model_dump_json())
    done = subprocess.run([sys.executable, "-m", "jobs.train", tmp_path / "job.json", "--into", tmp_path / "trial"],
                          capture_output=True, text=True, check=False, timeout=120)  # fmt: skip
    assert (done.returncode, (tmp_path / "trial").exists()) == (2, False)
    assert done.stderr.startswith("error: ")
    assert "'it' is in 9 of 9 rows" in done.stderr


def test_a_passage_in_many_rows_is_told_before_training_and_rare_repeats_are_not(tmp_path: Path) -> None:
    many = [{"anchor": sentence(k), "positive": "one passage" if k < 30 else sentence(500 + k)} for k in range(100)]
    (told,) = data.check(job(tmp_path, many))
    assert told.startswith("about 9% of the negatives in a batch of data.train are left out")
    assert "('one passage' is in 30 of 100 rows)" in told
    few = [{"anchor": sentence(k), "positive": sentence(500 + k // 2)} for k in range(100)]
    assert data.check(job(tmp_path, few)) == []


def test_hard_negatives_that_are_their_own_positives_are_counted(tmp_path: Path) -> None:
    rows = [{"anchor": sentence(k), "positive": sentence(300 + k), "negative": sentence((300 if k < 2 else 600) + k)}
            for k in range(40)]  # fmt: skip
    (told,) = data.check(job(tmp_path, rows))
    assert told.startswith("2 of 40 hard negatives in data.train are the anchor or the positive of their own row")


def test_of_many_rows_an_even_sample_is_looked_at() -> None:
    n = LOOKED_AT + 50
    rows = rows_of(text=[str(k) if k % 2 else "same" for k in range(n)])
    config = {"task": "sentence", "budget": {"steps": 1}, "data": {"train": "x", "confirm": "y"}}
    (told,) = repeats(JobConfig.model_validate(config), rows)
    assert "about 25% of" in told


# What is said of a batch


def test_a_batch_is_noted_from_half_on_and_refused_when_nothing_is_left(tmp_path: Path) -> None:
    config = job(tmp_path, ALIKE["one sentence"], batch={"size": 8, "pool": 4})
    assert negatives_in_a_batch(config, hard=0) == 8 * 3
    assert negatives_in_a_batch(config, hard=2) == 8 * (3 + 8)
    rows = np.arange(8)
    assert note_on_batch(config, rows, step=5, masked=12, hard=0) is None
    note = note_on_batch(config, rows, step=5, masked=13, hard=0)
    assert note is not None
    assert note.startswith("step 5: 13 of the batch's 24 negatives are left out")
    with pytest.raises(data.DataError, match=r"train\.jsonl: has nothing to tell apart in the batch of step 5: all"):
        note_on_batch(config, rows, step=5, masked=24, hard=0)
    assert note_on_batch(config, rows, step=5, masked=24, hard=1) is None


@pytest.mark.parametrize("n", [3, 5])
def test_a_row_that_stands_twice_in_a_batch_fails_no_trial(tmp_path: Path, n: int) -> None:
    """An epoch of an odd number of rows ends within a batch of two, which may hold the row before it again."""
    rows = [{"anchor": sentence(k), "positive": sentence(400 + k)} for k in range(n)]
    notes, twice = [], 0
    for seed in range(3):
        config = job(tmp_path, rows, batch={"size": 2}, seed=seed, budget={"steps": 30})
        assert data.check(config) == []
        training = run(config, tmp_path / f"trial{seed}")
        assert training.result is not None
        assert training.result["outcome"] == "ok"
        batches = [data.batch_rows(n, size=2, seed=seed, step=step + 1) for step in range(30)]
        twice += any(len(set(batch.tolist())) == 1 for batch in batches)
        notes += training.notes
    assert len(notes) == twice > 0
    assert all("an epoch ends within the batch, which has a row twice" in note for note in notes)


@pytest.mark.parametrize(
    ("names", "size", "steps", "told"),
    [(2, 8, 2, "warned"), (2, 4, 200, "refused"), (5, 4, 40, "warned"), (90, 8, 200, "")],
)
def test_a_batch_that_would_have_nothing_left_is_told_before_training(
    tmp_path: Path, names: int, size: int, steps: int, told: str
) -> None:
    """400 anchors whose positive is one of a few names, in any order; (1/names)**(size - 1) of the batches are of one
    name alone. Mutant check: reckoning with the anchors' texts only."""
    rows = [{"anchor": sentence(k), "positive": f"class {k % names}"} for k in range(400)]
    config = job(tmp_path, rows, batch={"size": size}, budget={"steps": steps})
    if told == "refused":
        with pytest.raises(
            data.DataError, match=r"cannot be trained on for 200 steps: about 1 batch in 8 of data\.train"
        ):
            data.check(config)
    else:
        said = [line for line in data.check(config) if "batch in" in line]
        assert bool(said) == (told == "warned")
        assert all(f"about 1 batch in {1 / (1 / names) ** (size - 1):.0f}"[:18] in line for line in said)
    unmasked = job(tmp_path, rows, batch={"size": size}, budget={"steps": steps}, loss={"mask_duplicates": False})
    assert data.check(unmasked) == []


def half_and_half(n: int, like: int) -> list[dict[str, Any]]:
    """`like` rows about one passage, and others."""
    return [{"anchor": sentence(k), "positive": "one passage" if k < like else sentence(900 + k)} for k in range(n)]


def test_a_trial_notes_its_first_thin_batch_once(tmp_path: Path) -> None:
    said: list[str] = []
    training = run(job(tmp_path, half_and_half(8, 7)), tmp_path / "trial", said)
    assert training.result is not None
    assert training.result["outcome"] == "ok"
    assert points(training, "train/duplicates_masked") == [42] * 3
    (note,) = training.notes
    assert note.startswith("step 1: ")
    assert [line for line in said if line.startswith("note: ")] == [f"note: {note}"]


@pytest.mark.parametrize("name", ["infonce", "flatnce", "siglip"])
def test_a_batch_of_which_nothing_is_left_fails_the_trial_and_moves_nothing(tmp_path: Path, name: str) -> None:
    """Of 40 rows two differ, so some batch of four has nothing: found in training. Mutant check: looking after the
    optimizer's step."""
    config = job(tmp_path, half_and_half(40, 38), batch={"size": 4}, loss={"name": name}, budget={"steps": 40})
    training = Training(config, tmp_path / "trial", log=lambda _: None)
    held: dict[str, Any] = {}

    def train() -> None:
        while training.result is None:
            held.update({name: x.clone() for name, x in training.model.state_dict().items()})
            training.advance(1)

    with pytest.raises(data.DataError, match="has nothing to tell apart in the batch of step"):
        train()
    assert all(bool((x == held[name]).all()) for name, x in training.model.state_dict().items())
    assert training.result is None
    assert not (tmp_path / "trial" / "result.json").exists()


def nothing_left(config: JobConfig, folder: Path, rank: int) -> str:
    ranked = config.model_copy(update={"execution": config.execution.model_copy(update={"ranks": 2})})
    training = Training(ranked, folder, group=dist.group.WORLD, log=lambda _: None)
    try:
        training.advance(1)
    except data.DataError as error:
        return str(error)
    return f"rank {rank} trained"


@pytest.mark.soak
def test_every_rank_ends_at_the_same_batch(tmp_path: Path, spawn_ranks: SpawnRanks) -> None:
    config = job(tmp_path, ALIKE["one anchor"])
    first, second = spawn_ranks(2, partial(nothing_left, config, tmp_path / "trial"), timeout_s=120)
    assert first == second
    assert "all of its 56 negatives are texts that the anchor or its positive has too" in first


def test_equal_images_leave_nothing_either(tmp_path: Path) -> None:
    image = np.arange(64, dtype=np.uint8)
    table = pa.table({"image": pa.array([image.tobytes()] * 20, pa.binary(64)), "label": [0, 1] * 10})
    pq.write_table(table, tmp_path / "same.parquet")
    config = JobConfig.model_validate({
        "task": "image", "budget": {"steps": 2}, "batch": {"size": 8}, "model": {"width": 16, "heads": 2},
        "data": {"train": str(tmp_path / "same.parquet"), "confirm": "digits[:40]"}, "evaluate": {"probe": False},
    })  # fmt: skip
    with pytest.raises(data.DataError, match="are images that the anchor or its positive has too"):
        Training(config, tmp_path / "trial", log=lambda _: None).advance(1)


def test_positives_alike_are_no_longer_pushed_from_themselves(tmp_path: Path) -> None:
    """Rows about two passages, and hard negatives that are their own positives, with a gradient check."""
    rows = [{"anchor": sentence(k), "positive": f"passage {k % 2}", "negative": f"passage {k % 2 if k < 4 else 2}"}
            for k in range(8)]  # fmt: skip
    training = run(job(tmp_path, rows, execution={"verify": True, "micro": 3}), tmp_path / "trial")
    between_pairs = 2 * 4 * 3  # either passage is four rows' positive
    between_hard = sum(rows[i]["positive"] == rows[j]["negative"] for i in range(8) for j in range(8))
    assert points(training, "train/duplicates_masked") == [between_pairs + between_hard] * 3
    assert between_hard == 16
