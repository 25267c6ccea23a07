"""Rows 21 and 26 of the fault table: bad sweeps and bad data, as a person meets them on the command line."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from real import SWEEP, call, crowding

LONGEST_S = 10.0
"""A person who has misspelt something is told before turning to something else."""

TUNE_SEEDS = "trials = 2\nseeds = [3, 4]"
CONFIRM_SEEDS = "seeds = [4, 5, 6]"


def refused(verb: str, sweep: Path, *arguments: str, cwd: Path) -> str:
    """What it says, in time, with exit code 2, and with nothing made."""
    before = listing(cwd)
    start = time.monotonic()
    said = call(verb, sweep.name, *arguments, cwd=cwd, code=2)
    took = time.monotonic() - start
    assert took < LONGEST_S * crowding(), f"took {took:.1f} s"
    assert listing(cwd) == before
    assert said.startswith("error: ")
    assert "Traceback" not in said
    return said


def listing(folder: Path) -> list[tuple[str, int]]:
    return sorted((str(path), path.stat().st_size) for path in folder.rglob("*"))


def several(*changes: tuple[str, str]) -> str:
    """The sweep with these changes."""
    text = SWEEP
    for old, new in changes:
        assert old in text
        text = text.replace(old, new, 1)
    return text


BAD = {
    "several faults at once": (
        [
            ("width = 8", "widht = 8"),
            ("size = 16", 'size = "many"'),
            ("trials = 2", "trails = 2"),
            ('"loss.name"', '"loss.nam"'),
            ("seeds = 3", "seeds = 3\n[resources]\nconcurent = 1"),
        ],
        ["job.model.widht", "job.batch.size = 'many'", "tune.trails", "loss.nam", "resources.concurent"],
    ),
    "an unknown key": ([("width = 8", "widht = 8")], ["job.model.widht", "did you mean 'job.model.width'?"]),
    "a misspelt metric": ([("knn_accuracy", "knn_acuracy")], ["metric.name", "did you mean 'knn_accuracy'?"]),
    "a loss as metric while temperature varies": (
        [("knn_accuracy", "train/loss"), ('"loss.name" = ["infonce", "flatnce"]', '"loss.temperature" = [0.1, 0.2]')],
        ["metric.name", "cannot be compared while loss.temperature varies", "use 'knn_accuracy'"],
    ),
    "the same arm twice": (
        [('"loss.name" = ["infonce", "flatnce"]', '"loss.name" = ["infonce"]\n"loss.margin" = [0, 0.0]')],
        ["compare", "is the same trial as arm"],
    ),
    "the same label twice": ([('["infonce", "flatnce"]', '["infonce", "infonce"]')], ["arm", "is given twice"]),
    "tune and confirm seeds that overlap": (
        [("trials = 2", TUNE_SEEDS), ("seeds = 3", CONFIRM_SEEDS)],
        ["confirm.seeds = [4, 5, 6]", "seeds [4] are tuned on too", "such as 7"],
    ),
    "contradictions of several parts": (
        [("knn_accuracy", "spearman"), ("trials = 2", TUNE_SEEDS), ("seeds = 3", CONFIRM_SEEDS), ("1e-4", "2e-3")],
        ["metric.name = 'spearman'", "confirm.seeds", "tune.defaults[0].optimizer.lr"],
    ),
}  # fmt: skip

NONSENSE: dict[str, tuple[bytes, str]] = {
    "not UTF-8": (SWEEP.replace("Does", "D\xf6es").encode("latin-1"), "is not UTF-8 text (byte "),
    "empty": (b"", "is empty; start from sweeps/quickstart.toml"),
    "blank": (b"\n# later\n", "is empty; start from sweeps/quickstart.toml"),
    "10 MB of bytes": (np.random.default_rng(0).bytes(10_000_000), "10,000,000 bytes; a sweep is a short TOML file"),
    "10 MB of keys": (b"".join(b"k%07d = 1\n" % n for n in range(770_000)), "a sweep is a short TOML file"),
    "no TOML": (b"name: small\n", "line 1, column 5"),
    "cut short": (SWEEP.encode()[: SWEEP.index('"flatnce"]') + 4], "a sweep is a TOML file"),
}


@pytest.mark.few(4)
@pytest.mark.parametrize("verb", ["plan", "launch"])
@pytest.mark.parametrize(("changes", "words"), BAD.values(), ids=BAD)
def test_row_21_a_bad_sweep_ends_with_2_every_fault_named_and_nothing_made(
    tmp_path: Path, verb: str, changes: list[tuple[str, str]], words: list[str]
) -> None:
    (tmp_path / "sweep.toml").write_text(several(*changes))
    said = refused(verb, tmp_path / "sweep.toml", cwd=tmp_path)
    assert [word for word in words if word not in said] == [], said
    assert "sweep.toml" in said.splitlines()[0]


@pytest.mark.few(4)
@pytest.mark.parametrize("verb", ["plan", "launch"])
@pytest.mark.parametrize(("content", "words"), NONSENSE.values(), ids=NONSENSE)
def test_row_21_a_file_that_is_no_sweep_ends_with_2_and_nothing_made(
    tmp_path: Path, verb: str, content: bytes, words: str
) -> None:
    (tmp_path / "sweep.toml").write_bytes(content)
    said = refused(verb, tmp_path / "sweep.toml", cwd=tmp_path)
    assert words in said
    assert len(said) < 2000


@pytest.mark.parametrize("verb", ["plan", "launch"])
def test_row_21_a_folder_in_place_of_a_sweep_is_named(tmp_path: Path, verb: str) -> None:
    (tmp_path / "sweeps").mkdir()
    assert "is a folder; name the TOML file in it" in refused(verb, tmp_path / "sweeps", cwd=tmp_path)


@pytest.mark.parametrize("verb", ["plan", "launch"])
def test_row_21_a_sweep_that_is_not_there_is_named_with_its_neighbour(tmp_path: Path, verb: str) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    said = refused(verb, tmp_path / "swep.toml", cwd=tmp_path)
    assert "there is no such file; did you mean 'sweep.toml'?" in said


def test_row_21_more_ranks_than_the_cluster_has_are_refused_with_a_number_that_works(tmp_path: Path) -> None:
    cpus = os.cpu_count() or 1
    ranks = max(64, 4 * cpus)
    (tmp_path / "sweep.toml").write_text(several(("ranks = 2", f"ranks = {ranks}"), ("size = 16", f"size = {ranks}")))
    said = refused("launch", tmp_path / "sweep.toml", cwd=tmp_path)
    assert f"job.execution.ranks = {ranks}: " in said
    assert f"there are {cpus}; use fewer, for example --set job.execution.ranks={cpus}" in said
    (tmp_path / "sweep.toml").write_text(several(("ranks = 2", f"ranks = {ranks}")))
    said = refused("launch", tmp_path / "sweep.toml", cwd=tmp_path)
    assert f"\n  job: execution.ranks = {ranks} leaves ranks without a pair of batch.size = 16" in said


# --- row 26

ROWS = 40
GOOD: dict[str, dict[str, list[Any]]] = {
    "image": {
        "image": [bytes([n] * 32 + [255 - n] * 32) for n in range(ROWS)],
        "label": [n % 4 for n in range(ROWS)],
    },
    "sentence": {"text": [f"a sentence about the number {n}" for n in range(ROWS)]},
}
SCORED: dict[str, list[Any]] = {
    "sentence1": [f"the first of {n}" for n in range(ROWS)],
    "sentence2": [f"the second of {n}" for n in range(ROWS)],
    "score": [n / 8 for n in range(ROWS)],
}
TASKS = {
    "image": [("[job.data]", "[job.data]\nimage_shape = [8, 8]")],
    "sentence": [
        ('"image"', '"sentence"'),
        ('"knn_accuracy"', '"spearman"'),
        ('[job.model]\nname = "resnet"\nwidth = 8\nlayers = 1\n', ""),
        ("probe = false\nreferences = 300\n", ""),
    ],
}
DATA = [
    ("digits[:300]", "train.parquet"),
    ("digits[300:400]", "judged.parquet[:20]"),
    ("digits[400:500]", "judged.parquet[20:]"),
]


def table(columns: dict[str, list[Any]]) -> pa.Table:
    found = pa.table(columns)
    if "image" in columns:
        found = found.set_column(0, "image", pa.array(columns["image"], pa.binary(64)))
    return found


def sweep_with_data(folder: Path, task: str) -> None:
    """A sweep on good data of this task, in `train.parquet` and `judged.parquet`."""
    (folder / "sweep.toml").write_text(several(*DATA, *TASKS[task]))
    pq.write_table(table(GOOD[task]), folder / "train.parquet")
    judged = GOOD[task] if task == "image" else SCORED
    pq.write_table(table(judged), folder / "judged.parquet")


def empty(path: Path) -> None:
    path.write_bytes(b"")


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def holed(path: Path) -> None:
    """As long as before, and its beginning is gone: only reading the rows shows it."""
    size = path.stat().st_size
    path.write_bytes(bytes(size // 2) + path.read_bytes()[size // 2 :])


def without(column: str) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pq.read_table(path).drop_columns([column]), path)


def null(column: str, row: int) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        whole = pq.read_table(path)
        place = whole.column_names.index(column)
        values = whole[column].to_pylist()
        values[row] = None
        pq.write_table(whole.set_column(place, column, pa.array(values, whole.schema.field(column).type)), path)

    return write


def only(rows: int) -> Callable[[Path], None]:
    return lambda path: pq.write_table(pq.read_table(path).slice(0, rows), path)


ROW_7 = "row 7 (the first is 0): "
BAD_DATA: list[tuple[str, str, Callable[[Path], None], str]] = [
    ("image", "train", null("image", 7), f"train.parquet, column 'image', {ROW_7}holds no image"),
    ("image", "judged", holed, "judged.parquet: cannot be read, it may be cut short or damaged"),
    ("sentence", "train", empty, "train.parquet: is empty (0 bytes)"),
    ("sentence", "judged", without("score"), "judged.parquet, column 'score': is missing"),
    ("image", "train", empty, "train.parquet: is empty (0 bytes)"),
    ("image", "judged", empty, "judged.parquet: is empty (0 bytes)"),
    ("image", "train", without("image"), "train.parquet, column 'image': is missing; the columns here are label"),
    ("image", "judged", without("label"), "judged.parquet[:20], column 'label': is missing"),
    ("image", "judged", null("label", 7), f"judged.parquet, column 'label', {ROW_7}"),
    ("image", "judged", null("image", 27), "judged.parquet, column 'image', row 27 (the first is 0): holds no image"),
    ("image", "train", only(1), "train.parquet: has 1 row; contrastive training needs at least two"),
    ("image", "train", only(15), "train.parquet: has 15 rows, fewer than batch.size = 16"),
    ("image", "train", only(0), "train.parquet: has no rows"),
    ("image", "judged", only(21), "judged.parquet[20:]: has 1 row; data.confirm needs at least two"),
    ("image", "train", cut, "train.parquet: cannot be read, it may be cut short or damaged"),
    ("sentence", "train", without("text"), "train.parquet, column 'text': is missing; the columns here are none"),
    ("sentence", "train", null("text", 7), f"train.parquet, column 'text', {ROW_7}"),
    ("sentence", "judged", null("sentence2", 7), f"judged.parquet, column 'sentence2', {ROW_7}"),
    ("sentence", "judged", null("score", 27), "judged.parquet, column 'score', row 27 (the first is 0): holds no "),
    ("sentence", "train", only(1), "train.parquet: has 1 row; contrastive training needs at least two"),
    ("sentence", "train", only(15), "train.parquet: has 15 rows, fewer than batch.size = 16"),
    ("sentence", "judged", only(21), "judged.parquet[20:]: has 1 row; data.confirm needs at least two"),
    ("sentence", "train", cut, "train.parquet: cannot be read, it may be cut short or damaged"),
]  # fmt: skip


@pytest.mark.few(3)
@pytest.mark.parametrize(("task", "file", "damage", "words"), BAD_DATA)
def test_row_26_bad_data_end_with_2_naming_file_column_and_row_before_anything_is_made(
    tmp_path: Path, task: str, file: str, damage: Callable[[Path], None], words: str
) -> None:
    sweep_with_data(tmp_path, task)
    damage(tmp_path / f"{file}.parquet")
    assert words in refused("launch", tmp_path / "sweep.toml", cwd=tmp_path)


@pytest.mark.parametrize("task", ["image", "sentence"])
def test_row_26_the_same_data_undamaged_are_taken(tmp_path: Path, task: str) -> None:
    """So that the cases above fail for what was damaged, and for nothing else: the next check in line refuses."""
    sweep_with_data(tmp_path, task)
    said = call("launch", "sweep.toml", cwd=tmp_path, code=4, env={"MLFLOW_TRACKING_URI": "http://127.0.0.1:1"})
    assert "http://127.0.0.1:1" in said
