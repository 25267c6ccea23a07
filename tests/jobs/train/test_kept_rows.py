"""What a training keeps of its last evaluation, row by row: beside its result, whole, and the same on any ranks."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import mylab
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import torch.distributed as dist
from ranks import SpawnRanks
from servers import s3_server
from test_train import job, trained

from jobs.artifacts import bucket as in_bucket
from jobs.artifacts import rows
from jobs.config import JobConfig
from jobs.core.outcomes import RowIds
from jobs.metrics.builtin.spearman import rank_correlation as spearman
from jobs.train import Training
from jobs.train.components import examined


def metric_rows(folder: Path, metric: str) -> rows.MetricRows:
    found = rows.decode((folder / rows.NAME).read_bytes(), metric)
    assert found is not None
    return found


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, trained(job(evaluate__probe=True), folder)


def test_a_metric_of_bits_keeps_them(whole: tuple[Path, Training]) -> None:
    folder, training = whole
    assert training.result is not None
    table = pq.read_table(folder / rows.NAME)
    assert table.column_names == ["row", "metric.knn_accuracy", "metric.probe_accuracy"]
    assert table["row"].to_pylist() == list(range(100))
    for name in ("knn_accuracy", "probe_accuracy"):
        bits = table[f"metric.{name}"]
        assert pa.types.is_boolean(bits.type)
        assert np.mean(bits.to_numpy()) == training.result["metrics"][name] == metric_rows(folder, name).value
    assert json.loads((folder / "result.json").read_text())["rows"] == rows.sha256((folder / rows.NAME).read_bytes())


def test_metrics_over_pairs_of_rows_say_what_they_are_without_blocks(whole: tuple[Path, Training]) -> None:
    folder, training = whole
    assert training.result is not None
    for name in ("alignment", "uniformity"):
        kept = metric_rows(folder, name)
        assert kept.value == training.result["metrics"][name]
        assert kept.without is not None
        assert len(kept.without) == len(kept.sizes) == 20
        assert np.mean(kept.without) == pytest.approx(kept.value, rel=0.02)
        assert len(set(kept.without)) > 1


def test_only_the_confirm_stage_keeps_rows(tmp_path: Path) -> None:
    """And of an encoder that is not finite there is nothing to keep."""
    tune = trained(job(stage="tune", data__tune="digits[300:400]"), tmp_path / "tune")
    assert tune.result is not None
    assert "rows" not in tune.result
    diverged = trained(job(optimizer__name="sgd", optimizer__lr=1e12), tmp_path / "diverged")
    assert diverged.result is not None
    assert (diverged.result["outcome"], diverged.result.get("rows")) == ("diverged", None)
    assert not list(tmp_path.glob("*/rows.parquet"))


def on_ranks(config: JobConfig, folder: Path, rank: int) -> Any:
    training = trained(config, folder / ("kept" if rank == 0 else f"rank{rank}"), group=dist.group.WORLD)
    assert training.result is not None
    return training.result["metrics"], training.result["rows"]


def test_one_rank_writes_and_all_would_write_the_same(spawn_ranks: SpawnRanks, tmp_path: Path) -> None:
    results = spawn_ranks(2, partial(on_ranks, job(execution__ranks=2), tmp_path))
    assert results[0] == results[1]
    assert [path.parent.name for path in tmp_path.rglob(rows.NAME)] == ["kept"]
    assert rows.sha256((tmp_path / "kept" / rows.NAME).read_bytes()) == results[0][1]


# Kills


@pytest.mark.parametrize("damage", ["gone", "cut", "a folder"])
def test_rows_that_a_result_lacks_are_made_again_and_nothing_is_trained(
    whole: tuple[Path, Training], tmp_path: Path, damage: str
) -> None:
    """As after a kill that no fsync outlasts, before anybody knows of the result. Mutant check: a result that counts
    whatever became of its rows."""
    folder = tmp_path / "trial"
    shutil.copytree(whole[0], folder)
    path = folder / rows.NAME
    before = path.read_bytes()
    path.write_bytes(before[:100])
    if damage != "cut":
        path.unlink()
    if damage == "a folder":
        path.mkdir()
    training = Training(job(evaluate__probe=True), folder, log=lambda _: None)
    assert training.result is not None
    assert whole[1].result is not None
    assert training.result["metrics"] == whole[1].result["metrics"]
    assert path.read_bytes() == before
    assert training.result["rows"] == rows.sha256(before)
    assert any(rows.NAME in remark for remark in training.remarks)
    assert (folder / f"{rows.NAME}.bad-1").exists() == (damage != "gone")
    assert Training(job(evaluate__probe=True), folder, log=lambda _: None).remarks == []


def test_a_training_that_was_stopped_keeps_the_rows_of_one_that_was_not(
    whole: tuple[Path, Training], tmp_path: Path
) -> None:
    stopped = Training(job(evaluate__probe=True), tmp_path, log=lambda _: None)
    stopped.advance(7)
    stopped.save()
    stopped.settle()
    assert not (tmp_path / rows.NAME).exists()
    trained(job(evaluate__probe=True), tmp_path)
    assert (tmp_path / rows.NAME).read_bytes() == (whole[0] / rows.NAME).read_bytes()


def test_a_trial_of_an_older_version_has_none_and_stands(whole: tuple[Path, Training], tmp_path: Path) -> None:
    """Its result names no rows. It is not judged again for want of them."""
    from jobs.artifacts import manifest

    folder = tmp_path / "trial"
    shutil.copytree(whole[0], folder)
    (folder / rows.NAME).unlink()
    result = {key: value for key, value in json.loads((folder / "result.json").read_text()).items() if key != "rows"}
    (folder / "result.json").write_text(json.dumps(result | {"digest": manifest.digest_of(result)}))
    training = Training(job(evaluate__probe=True), folder, log=lambda _: None)
    assert training.remarks == []
    assert training.result is not None
    assert "rows" not in training.result
    assert not (folder / rows.NAME).exists()


@pytest.fixture
def store(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    monkeypatch.setattr(in_bucket, "PAUSES_S", (0.01, 0.01))
    with s3_server() as uri:
        yield uri


def test_in_a_bucket_they_lie_with_the_result(
    whole: tuple[Path, Training], store: Callable[[str], str], tmp_path: Path
) -> None:
    """And are looked at there, whatever lies here."""
    uri = store("t")
    trained(job(evaluate__probe=True), tmp_path / "one", remote=uri)
    before = (whole[0] / rows.NAME).read_bytes()
    there = in_bucket.at(tmp_path / "look", uri)
    assert there.read_bytes(rows.NAME) == before
    again = Training(job(evaluate__probe=True), tmp_path / "two", remote=uri, log=lambda _: None)
    assert again.remarks == []
    assert again.result is not None
    there.write(rows.NAME, before[:-1])
    mended = Training(job(evaluate__probe=True), tmp_path / "three", remote=uri, log=lambda _: None)
    assert len(mended.remarks) == 1
    assert there.read_bytes(rows.NAME) == before


# Ids, groups, and metrics of one's own


def sentences(folder: Path, columns: str = "group,id") -> JobConfig:
    words = ["a", "the", "cat", "dog", "sat", "ran", "on", "under", "big", "small", "red", "blue", "mat", "slowly"]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, rng.integers(2, 12))) for _ in range(60)]
    (folder / "train.txt").write_text("\n".join(lines))
    judged = [f"{a},{b},{k % 6},{k // 5},p{k}" for k, (a, b) in enumerate(zip(lines[:25], lines[25:50], strict=True))]
    (folder / "sts.csv").write_text("\n".join([f"sentence1,sentence2,score,{columns}", *judged]))
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 2},
            "data": {"train": str(folder / "train.txt"), "confirm": str(folder / "sts.csv[5:]"), "max_tokens": 16},
            "model": {"width": 16, "heads": 2, "vocabulary": 100},
            "batch": {"size": 8},
            "evaluate": {"times": 1},
        }
    )


def test_sentences_keep_cosine_and_score_with_the_ids_and_groups_of_the_data(tmp_path: Path) -> None:
    """Of the rows that are judged, in whatever batches they were encoded. Mutant check: positions in the whole file."""
    training = trained(sentences(tmp_path), tmp_path / "trial")
    assert training.result is not None
    table = pq.read_table(tmp_path / "trial" / rows.NAME)
    assert table["row"].to_pylist() == [f"p{k}" for k in range(5, 25)]
    assert table["group"].to_pylist() == [str(k // 5) for k in range(5, 25)]
    measured, wanted = (table[f"metric.spearman.{name}"].to_numpy() for name in ("measured", "wanted"))
    assert wanted.tolist() == [float(k % 6) for k in range(5, 25)]
    assert spearman(measured, wanted) == training.result["metrics"]["spearman"]
    close = table["metric.alignment"].to_pylist()
    assert [value is not None for value in close] == [k % 6 >= 4 for k in range(5, 25)]
    assert np.mean([value for value in close if value is not None]) == pytest.approx(
        training.result["metrics"]["alignment"]
    )
    assert metric_rows(tmp_path / "trial", "spearman").groups == 4


def test_columns_of_other_names_are_none_of_ours(tmp_path: Path) -> None:
    trained(sentences(tmp_path, "scene,number"), tmp_path / "trial")
    table = pq.read_table(tmp_path / "trial" / rows.NAME)
    assert table["row"].to_pylist() == list(range(20))
    assert "group" not in table.column_names


def test_columns_of_ids_and_groups_are_no_part_of_the_data(tmp_path: Path) -> None:
    """A run that was begun before anybody looked at them goes on. Mutant check: reading them with the other columns."""
    from jobs import data

    (tmp_path / "one").mkdir()
    (tmp_path / "other").mkdir()
    one, other = sentences(tmp_path / "one"), sentences(tmp_path / "other", "scene,number")
    assert data.fingerprint(one) == data.fingerprint(other)


def test_ones_own_metrics_keep_what_they_give(tmp_path: Path) -> None:
    """A number keeps nothing; a number for each row, and columns, are kept."""
    config = job(evaluate__metrics=["mylab:nearest_share", "mylab:spread_of_norms", "mylab:norm_ratio"])
    training = trained(config, tmp_path)
    assert training.result is not None
    table = pq.read_table(tmp_path / rows.NAME)
    own = [name for name in table.column_names if "knn" not in name]
    assert own == ["row", "metric.nearest_share", "metric.norm_ratio.first", "metric.norm_ratio.whole"]
    first, norms = (table[f"metric.norm_ratio.{name}"].to_numpy() for name in ("first", "whole"))
    assert training.result["metrics"]["norm_ratio"] == pytest.approx(first.sum() / norms.sum())
    kept = metric_rows(tmp_path, "norm_ratio")
    blocks = RowIds.positions(100).blocks()
    assert kept.without == pytest.approx([first[blocks != k].sum() / norms[blocks != k].sum() for k in range(20)])
    assert {"spread_of_norms", "nearest_share"} <= training.result["metrics"].keys()
    assert rows.decode((tmp_path / rows.NAME).read_bytes(), "spread_of_norms") is None


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("brittle", "LookupError: a row is missing"),
        ("halves", "gave by_row columns of {'x': [6]} for 12 rows; give a number for each row"),
    ],
)
def test_what_is_wrong_with_columns_is_found_before_any_trial(
    monkeypatch: pytest.MonkeyPatch, name: str, words: str
) -> None:
    """Mutant check: a metric that is tried on all rows alone."""
    monkeypatch.setenv("ORCHESTRATOR_CODE", str(Path(mylab.__file__).parent))
    config = job(evaluate__metrics=[f"mylab:{name}"]).model_dump(mode="json")
    (fault,) = examined("metric", f"mylab:{name}", {}, config)["faults"]
    assert words in fault[2]


def test_a_task_of_ones_own_keeps_its_outcomes_with_its_ids(tmp_path: Path) -> None:
    from test_own_task import job as own_job

    training = trained(own_job("Grouped"), tmp_path)
    assert training.result is not None
    table = pq.read_table(io.BytesIO((tmp_path / rows.NAME).read_bytes()))
    assert table.column_names == ["row", "group", "metric.closeness"]
    assert len(set(table["row"].to_pylist())) == 100
    assert np.mean(table["metric.closeness"].to_numpy()) == pytest.approx(training.result["metrics"]["closeness"])
    assert torch.is_grad_enabled()
