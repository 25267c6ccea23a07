import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.config import JobConfig
from jobs.trial import Records, open_folder, read_result, write_result, write_whole


def job(seed: int = 0, ranks: int = 1) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "image",
            "seed": seed,
            "budget": {"steps": 3},
            "data": {"train": "digits", "confirm": "digits"},
            "execution": {"ranks": ranks},
        }
    )


def test_points_are_read_back_up_to_a_step_and_a_torn_line_is_left_out(tmp_path: Path) -> None:
    records = Records(tmp_path, writes=True)
    for step in (0, 1, 2):
        records.add({"loss": step / 3, "knn_accuracy": float("nan") if step == 2 else 0.5}, step=step)
    records.flush()
    with (tmp_path / "points.jsonl").open("a") as file:
        file.write('{"key": "loss", "step": 3, "val')
    again = Records(tmp_path, writes=True)
    again.restore(until=1)
    assert again.points == records.points[:4]
    again.flush()
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 4
    assert again.latest() == {"loss": 1 / 3, "knn_accuracy": 0.5}


def test_flushing_twice_writes_once_and_other_ranks_write_nothing(tmp_path: Path) -> None:
    records = Records(tmp_path, writes=True)
    records.add({"loss": 1.0}, step=1)
    records.flush()
    records.flush()
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 1
    other = Records(tmp_path / "other", writes=False)
    other.add({"loss": 1.0}, step=1)
    other.flush()
    assert not (tmp_path / "other").exists()


@given(value=st.floats(allow_nan=False))
def test_a_value_survives_the_disk_bit_for_bit(tmp_path_factory: pytest.TempPathFactory, value: float) -> None:
    folder = tmp_path_factory.mktemp("points")
    records = Records(folder, writes=True)
    records.add({"loss": value}, step=1)
    records.flush()
    again = Records(folder, writes=True)
    again.restore(until=1)
    assert again.points == records.points


def test_a_folder_belongs_to_one_objective(tmp_path: Path) -> None:
    open_folder(tmp_path, job())
    open_folder(tmp_path, job(ranks=2))
    assert json.loads((tmp_path / "job.json").read_text())["execution"]["ranks"] == 2
    with pytest.raises(ValueError, match="only its execution may change"):
        open_folder(tmp_path, job(seed=1))


@pytest.mark.parametrize(
    ("outcome", "checkpoint_step", "counts"),
    [("ok", 3, True), ("ok", 2, False), ("ok", None, False), ("diverged", None, True)],
)
def test_a_result_counts_with_its_checkpoint(
    tmp_path: Path, outcome: str, checkpoint_step: int | None, counts: bool
) -> None:
    assert read_result(tmp_path, checkpoint_step=3) is None
    write_result(tmp_path, {"outcome": outcome, "step": 3})
    assert (read_result(tmp_path, checkpoint_step=checkpoint_step) is not None) == counts


def test_a_file_is_replaced_in_one_piece_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    write_whole(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]
