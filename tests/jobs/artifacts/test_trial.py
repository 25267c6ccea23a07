import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from jobs.artifacts import manifest
from jobs.artifacts.storage import Folder
from jobs.artifacts.trial_dir import (
    Fence,
    Records,
    TakenOver,
    open_folder,
    points_fault,
    read_result,
    start_over,
    write_result,
)
from jobs.config import JobConfig


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
    open_folder(Folder(tmp_path), job())
    open_folder(Folder(tmp_path), job(ranks=2))
    assert json.loads((tmp_path / "job.json").read_text())["execution"]["ranks"] == 2
    with pytest.raises(ValueError, match="only its execution may change"):
        open_folder(Folder(tmp_path), job(seed=1))


RESULT: dict[str, Any] = {
    "state": "done",
    "outcome": "ok",
    "why": "done",
    "step": 3,
    "metrics": {"knn_accuracy": 0.5, "train/loss": float("inf")},
    "untrained": {"knn_accuracy": 0.25},
    "points": 5,
    "samples": 48,
    "seconds": 0.5,
    "samples_per_second": 96.0,
    "peak_memory_mb": 7.5,
    "negatives_per_anchor": 30,
    "hashes": {"data": "a"},
    "data": {"train": "digits"},
}


@pytest.mark.parametrize(
    ("outcome", "newest", "counts"),
    [
        ("ok", (3, 0.5), True),
        ("ok", (2, 0.5), False),
        ("ok", (3, 0.4), False),
        ("ok", None, False),
        ("diverged", None, True),
    ],
)
def test_a_result_counts_with_its_checkpoint(
    tmp_path: Path, outcome: str, newest: tuple[int, float] | None, counts: bool
) -> None:
    assert read_result(Folder(tmp_path), newest=(3, 0.5)) is None
    write_result(Folder(tmp_path), RESULT | {"outcome": outcome})
    assert (read_result(Folder(tmp_path), newest=newest) is not None) == counts


def test_of_two_points_of_one_key_and_step_the_first_stands(tmp_path: Path) -> None:
    """A writer that was taken over may have added its own. Mutant check: keeping the last, or both, fails this."""
    records = Records(tmp_path, writes=True)
    records.add({"loss": 1.0, "other": 2.0}, step=1)
    records.flush()
    stale = Records(tmp_path, writes=True)
    stale.add({"loss": 3.0}, step=1)
    stale.flush()
    again = Records(tmp_path, writes=True)
    again.restore(until=1)
    assert again.points == records.points
    assert len((tmp_path / "points.jsonl").read_text().splitlines()) == 2


def test_a_line_that_two_writers_tore_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "points.jsonl").write_text('{"key": "loss"}\n{"key": "loss", "step": 1, "value": 1.0, "time": 0.0}\n')
    records = Records(tmp_path, writes=True)
    records.restore(until=1)
    assert [point.step for point in records.points] == [1]


@pytest.mark.parametrize("later", [(1, 3), (2, 1)])
def test_a_later_attempt_shuts_an_earlier_one_out(tmp_path: Path, later: tuple[int, int]) -> None:
    """Mutant check: comparing the numbers of the attempts alone lets the second case through."""
    first, second = Fence(Folder(tmp_path), (1, 2)), Fence(Folder(tmp_path), later)
    first.hold()
    first.check_local()
    second.hold()
    told = json.loads((tmp_path / "attempt.json").read_text())
    assert (told["token"], told["attempt"]) == later
    for refused in (first.hold, first.check_local, Fence(Folder(tmp_path), (1, 1)).hold):
        with pytest.raises(TakenOver, match=rf"attempt {later[1]} \(token {later[0]}\) has taken this trial over"):
            refused()
    Fence(Folder(tmp_path), later).hold()
    Fence(Folder(tmp_path), None).hold()


def test_a_claim_that_an_earlier_attempt_overwrote_is_renewed(tmp_path: Path) -> None:
    """Both read before either wrote. Mutant check: a fence that only compares leaves the earlier one in."""
    first, second = Fence(Folder(tmp_path), (1, 1)), Fence(Folder(tmp_path), (1, 2))
    second.hold()
    (tmp_path / "attempt.json").unlink()
    first.hold()
    second.hold()
    with pytest.raises(TakenOver):
        first.hold()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "was empty"),
        (b"{", "named no attempt"),
        (b"[1, 2]", "named no attempt"),
        (b'{"token": null, "attempt": 1}', "named no attempt"),
        (b"\xff\xfe", "named no attempt"),
    ],
)
def test_a_file_that_names_no_attempt_keeps_nobody_out_and_is_written_again(
    tmp_path: Path, content: bytes, words: str
) -> None:
    """A power cut may leave it so. Mutant check: reading it as ever ends the next attempt with a JSONDecodeError."""
    (tmp_path / "attempt.json").write_bytes(content)
    fence = Fence(Folder(tmp_path), (2, 1))
    fence.check_local()
    fence.hold()
    assert fence.remark == f"attempt.json {words}; it is written again"
    with pytest.raises(TakenOver):
        Fence(Folder(tmp_path), (1, 7)).hold()
    sound = Fence(Folder(tmp_path), (2, 2))
    sound.hold()
    assert sound.remark is None


def test_points_are_not_written_once_another_has_taken_over(tmp_path: Path) -> None:
    """Mutant check: flushing before asking fails this."""
    fence = Fence(Folder(tmp_path), (1, 1))
    records = Records(tmp_path, writes=True, permit=fence.check_local)
    records.add({"loss": 1.0}, step=1)
    Fence(Folder(tmp_path), (1, 2)).hold()
    with pytest.raises(TakenOver):
        records.flush()
    assert not (tmp_path / "points.jsonl").exists()


@pytest.mark.parametrize("value", ["0.9", [0.9], None, {}, "nan"])
def test_a_point_is_one_number_and_of_a_step_that_has_another_none_is_kept(tmp_path: Path, value: Any) -> None:
    records = Records(tmp_path, writes=True)
    with pytest.raises(ValueError, match=f"accuracy is {type(value).__name__} .*; it must be one number"):
        records.add({"loss": 1.0, "accuracy": value}, step=1)
    assert records.points == []
    records.add({"loss": float("nan")}, step=2)
    assert len(records.points) == 1


def kept(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("*.bad-*"))


@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), outcome=st.sampled_from(["ok", "diverged"]))
def test_a_result_with_one_byte_that_changed_is_what_was_written_or_none(
    tmp_path_factory: pytest.TempPathFactory, place: float, change: int, outcome: str
) -> None:
    """Mutant check: without its digest a metric may be another one."""
    folder = tmp_path_factory.mktemp("result")
    result = manifest.sealed(RESULT | {"outcome": outcome})
    write_result(Folder(folder), result)
    content = bytearray((folder / "result.json").read_bytes())
    content[int(place * len(content))] ^= change
    (folder / "result.json").write_bytes(content)
    told: list[str] = []
    found = read_result(Folder(folder), newest=(3, 0.5), remark=told.append)
    assert found == (None if told else result)
    assert kept(folder) == (["result.json.bad-1"] if told else [])
    assert all(remark.startswith("result.json is damaged (") for remark in told)


OLD = {key: value for key, value in RESULT.items() if key != "points"}
FITS: dict[str, tuple[Any, ...]] = {
    "why": ("x",),
    "metrics": ({}, {"m": 1}),
    "untrained": ({}, {"m": 1}),
    "negatives_per_anchor": (-1, 2.5),
    "samples_per_second": (-1, 2.5),
    "peak_memory_mb": (-1, 2.5),
    "seconds": (2.5,),
    "hashes": ({}, {"m": 1}, {"m": "x"}, {"m": True}),
    "data": ({}, {"m": 1}, {"m": "x"}, {"m": True}, []),
}


@pytest.mark.parametrize("key", OLD)
def test_a_result_of_an_older_version_has_all_that_is_read_of_it_and_of_its_kind(tmp_path: Path, key: str) -> None:
    """It has no digest, and no number of points. A missing key of one ended every session with a KeyError."""

    def damage(result: dict[str, Any]) -> str:
        told: list[str] = []
        (tmp_path / "result.json").write_text(json.dumps(result))
        read_result(Folder(tmp_path), newest=(3, 0.5), remark=told.append)
        return " ".join(told)

    assert damage(OLD) == ""
    assert f"it has no {key})" in damage({name: value for name, value in OLD.items() if name != key})
    assert damage({f"{name}x" if name == key else name: value for name, value in OLD.items()})
    values: list[Any] = [None, True, -1, 2.5, "x", [], {}, {"m": 1}, {"m": "x"}, {"m": True}]
    for value in values:
        fits = json.dumps(value) in map(json.dumps, FITS.get(key, ()))
        assert (damage(OLD | {key: value}) == "") == fits, value


def test_points_that_a_checkpoint_has_passed_are_all_there(tmp_path: Path) -> None:
    """Mutant check: whatever can be read is taken for everything; a cut line that is the last one is no fault."""
    records = Records(tmp_path, writes=True)
    for step in range(4):
        records.add({"loss": 1.0, "other": 2.0}, step=step)
    records.flush()
    path = tmp_path / "points.jsonl"
    lines = path.read_text().splitlines(keepends=True)

    def fault(*there: str, told: int | None = 6) -> str | None:
        path.write_text("".join(there))
        return points_fault(Folder(tmp_path), until=2, expected=told)

    assert fault(*lines) is None
    assert fault(*lines[:6], lines[6][:9]) is None
    assert fault(*lines[:5], lines[5][:9]) == "it has 5 of the 6 points up to step 2"
    assert fault(lines[0], lines[1][:9]) == "it has 1 of the 6 points up to step 2"
    assert fault(*lines[:2], *lines[3:]) == "it has 5 of the 6 points up to step 2"
    assert fault(*lines[:5], lines[4], lines[7]) == "it has 5 of the 6 points up to step 2"
    assert fault(*lines[:2], *lines[3:], told=None) is None, "an older version did not write that down"
    assert fault(*lines, told=5) is None, "a writer that was taken over may have added one"


@given(cut=st.floats(0, 1))
def test_wherever_points_are_cut_it_is_noticed_before_the_last_of_them(
    tmp_path_factory: pytest.TempPathFactory, cut: float
) -> None:
    folder = tmp_path_factory.mktemp("points")
    records = Records(folder, writes=True)
    for step in range(3):
        records.add({"loss": step / 7}, step=step)
    records.flush()
    content = (folder / "points.jsonl").read_bytes()
    (folder / "points.jsonl").write_bytes(content[: int(cut * len(content))])
    whole = cut * len(content) >= len(content) - 1  # all but the end of the last line
    assert (points_fault(Folder(folder), until=2, expected=3) is None) == whole


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"seed": "x"}, "seed = 'x': should be a valid integer"),
        ({"sead": 1, "seed": "x"}, "; and 1 more"),
        ([], "it is no JSON object"),
    ],
)
def test_what_is_wrong_with_a_damaged_job_is_said_first(tmp_path: Path, content: Any, words: str) -> None:
    """Mutant check: pydantic's first line counts errors."""
    told = job().model_dump(mode="json")
    (tmp_path / "job.json").write_text(json.dumps(told | content if isinstance(content, dict) else content))
    with pytest.raises(ValueError, match=r"job\.json is damaged") as caught:
        open_folder(Folder(tmp_path), job())
    assert words in str(caught.value)
    assert "validation error" not in str(caught.value)


def test_starting_over_keeps_everything_and_says_where(tmp_path: Path) -> None:
    place = Folder(tmp_path)
    assert start_over(place, place.inside("checkpoints")) == "it had left nothing else"
    (tmp_path / "points.jsonl").write_text("x")
    assert start_over(place, place.inside("checkpoints")) == "what it had left is kept as points.jsonl.bad-1"
    for name in ("points.jsonl", "result.json"):
        (tmp_path / name).write_text("x")
    made = tmp_path / "checkpoints" / "step_000006"
    made.mkdir(parents=True)
    (made / "manifest.json").write_text("{}")
    assert start_over(place, place.inside("checkpoints")) == (
        "what it had left is kept as result.json.bad-1, points.jsonl.bad-2, checkpoints/step_000006.bad-1"
    )
    assert kept(tmp_path) == ["points.jsonl.bad-1", "points.jsonl.bad-2", "result.json.bad-1"]
