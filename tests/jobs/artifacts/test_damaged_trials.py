"""A trial whose files are damaged in any way trains on to the very same result, or says what is the matter."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import DAMAGES, OF_JSON, Damage, a_folder, empty, garbage

from jobs.config import JobConfig
from jobs.train import Training

JOB = JobConfig.model_validate(
    {
        "task": "image",
        "budget": {"steps": 8},
        "data": {"train": "digits[:300]", "confirm": "digits[300:400]"},
        "model": {"name": "resnet", "width": 8, "layers": 1},
        "batch": {"size": 16},
        "evaluate": {"times": 2, "probe": False, "references": 300},
        "execution": {"checkpoint_every": 3},
    }
)
CHECKPOINT = "checkpoints/step_000006"
FILES = ["job.json", "points.jsonl", "result.json", "attempt.json", f"{CHECKPOINT}/manifest.json"]
OTHERS = [f"{CHECKPOINT}/model.safetensors", f"{CHECKPOINT}/optimizer.pt", CHECKPOINT, "checkpoints", "rows.parquet"]
CASES = [(file, damage) for file in FILES for damage in (*DAMAGES, *OF_JSON)]
CASES += [(file, damage) for file in OTHERS for damage in DAMAGES]


def finish(folder: Path, number: int) -> Training:
    training = Training(JOB, folder, log=lambda _: None, attempt=(1, number))
    while training.result is None:
        training.advance(8)
    return training


def curves(training: Training) -> dict[tuple[str, int], float]:
    """Every value but those of times and memory."""
    found = {(point.key, point.step): point.value for point in training.points}
    assert len(found) == len(training.points), "a point was told twice"
    return {place: value for place, value in found.items() if not place[0].startswith(("system/", "samples_", "peak_"))}


@pytest.fixture(scope="module")
def half(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A trial that was cut short after six of its eight steps."""
    folder = tmp_path_factory.mktemp("half")
    training = Training(JOB, folder, log=lambda _: None, attempt=(1, 1))
    while training.step < 6:
        training.advance(1)
    training.settle()
    return folder


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Training]:
    folder = tmp_path_factory.mktemp("whole")
    return folder, finish(folder, 1)


def equal(training: Training, undisturbed: Training) -> None:
    assert training.result is not None
    assert undisturbed.result is not None
    for key in ("metrics", "untrained", "step", "outcome", "hashes"):
        assert training.result[key] == undisturbed.result[key], key
    assert curves(training) == curves(undisturbed)
    folder = training.folder
    assert json.loads((folder / "result.json").read_text())["metrics"] == undisturbed.result["metrics"]
    assert JobConfig.model_validate_json((folder / "job.json").read_text()) == JOB
    assert json.loads((folder / "attempt.json").read_text()) == {"token": 1, "attempt": 2}
    lines = [json.loads(line) for line in (folder / "points.jsonl").read_text().splitlines()]
    assert {(line["key"], line["step"]) for line in lines} == {(point.key, point.step) for point in training.points}
    assert (folder / "rows.parquet").read_bytes() == (undisturbed.folder / "rows.parquet").read_bytes()


@pytest.mark.parametrize(("file", "damage"), CASES)
def test_a_trial_that_was_cut_short_is_trained_on_to_the_same_result(
    half: Path, whole: tuple[Path, Training], tmp_path: Path, file: str, damage: Damage
) -> None:
    """Mutant check: points that a checkpoint has passed and that are gone leave a hole in the curve."""
    folder = tmp_path / "trial"
    shutil.copytree(half, folder)
    damage(folder / file)
    equal(finish(folder, 2), whole[1])


@pytest.mark.parametrize(("file", "damage"), [(file.replace("6", "8"), damage) for file, damage in CASES])
def test_a_trial_that_had_ended_tells_the_same_result_again(
    whole: tuple[Path, Training], tmp_path: Path, file: str, damage: Damage
) -> None:
    """Its driver died before the ledger knew. Mutant check: a last checkpoint without its result cannot go on."""
    folder = tmp_path / "trial"
    shutil.copytree(whole[0], folder)
    damage(folder / file)
    equal(finish(folder, 2), whole[1])


@pytest.mark.parametrize("file", ["points.jsonl", "result.json", "job.json"])
def test_what_is_damaged_is_told_and_kept(half: Path, tmp_path: Path, file: str) -> None:
    folder = tmp_path / "trial"
    shutil.copytree(half, folder)
    garbage(folder / file)
    damaged = (folder / file).read_bytes()
    training = Training(JOB, folder, log=lambda _: None, attempt=(1, 2))
    assert any(remark.startswith(f"{file} is damaged (") for remark in training.remarks)
    assert (folder / f"{file}.bad-1").read_bytes() == damaged


def test_one_lost_line_in_the_middle_is_noticed(half: Path, tmp_path: Path) -> None:
    """A last line that a kill cut short is none. Mutant check: reading what can be read leaves a hole in a curve."""
    folder = tmp_path / "trial"
    shutil.copytree(half, folder)
    path = folder / "points.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([*lines, lines[-1][:20]]))
    assert Training(JOB, folder, log=lambda _: None, attempt=(1, 2)).step == 6
    path.write_text("".join([*lines[:3], "garbage\n", *lines[4:]]))
    again = Training(JOB, folder, log=lambda _: None, attempt=(1, 3))
    assert again.step == 0
    assert any("line 4 is no point" in remark for remark in again.remarks)


@pytest.mark.parametrize("ended", [True, False])
@pytest.mark.parametrize("kept", [slice(1), slice(2, None), slice(-1)])
def test_points_that_were_cut_off_are_measured_again(
    half: Path, whole: tuple[Path, Training], tmp_path: Path, ended: bool, kept: slice
) -> None:
    """All but the first line, the first two, the last one. Its driver died before the ledger knew, so that nothing else
    has them. Mutant check: believing whatever is left, the curve keeps a hole that the ledger and the disk share."""
    folder = tmp_path / "trial"
    shutil.copytree(whole[0] if ended else half, folder)
    path = folder / "points.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([line for line in lines[kept] if line]))
    training = finish(folder, 2)
    equal(training, whole[1])
    assert any("points.jsonl is damaged (it has " in remark for remark in training.remarks)


def test_points_of_a_training_that_diverged_are_all_there_too(tmp_path: Path) -> None:
    """It has no checkpoint that says how many there were, only its result."""
    job = JobConfig.model_validate(JOB.model_dump() | {"optimizer": JOB.optimizer.model_dump() | {"lr": 1e8}})
    folder = tmp_path / "trial"

    def trained(number: int) -> Training:
        training = Training(job, folder, log=lambda _: None, attempt=(1, number))
        while training.result is None:
            training.advance(8)
        return training

    first = trained(1)
    assert first.result is not None
    assert first.result["outcome"] == "diverged"
    assert trained(2).remarks == []
    path = folder / "points.jsonl"
    path.write_text("".join(path.read_text().splitlines(keepends=True)[:-1]))
    again = trained(3)
    assert curves(again) == curves(first)
    assert any("points.jsonl is damaged (it has " in remark for remark in again.remarks)


def test_a_checkpoint_that_is_no_folder_of_ours_does_not_stop_what_prunes_it(half: Path, tmp_path: Path) -> None:
    """Mutant check: deleting the manifest of an older checkpoint as a file ends every attempt at the next save."""
    folder = tmp_path / "trial"
    shutil.copytree(half, folder)
    manifest = folder / "checkpoints" / "step_000003" / "manifest.json"
    a_folder(manifest)
    training = finish(folder, 2)
    assert training.result is not None
    assert not manifest.parent.exists()


LOGGING = """
import sys
from jobs.workers.group import Rank
rank = Rank(1)
rank.open_log(sys.argv[1])
print("of the trial", flush=True)
rank.end()
print("of nobody", flush=True)
"""


def test_a_folder_in_place_of_a_ranks_log_is_kept_aside(tmp_path: Path) -> None:
    """Mutant check: it is opened as a file, which ends every attempt."""
    log = tmp_path / "log.rank1.txt"
    for number in (1, 2):
        a_folder(log)
        command = [sys.executable, "-c", LOGGING, str(tmp_path)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
        assert (done.returncode, done.stdout) == (0, "of nobody\n"), done.stderr
        assert log.read_text() == f"log.rank1.txt was a folder; set aside as log.rank1.txt.bad-{number}\nof the trial\n"
        assert (tmp_path / f"log.rank1.txt.bad-{number}" / "inside").read_text() == "x"


# By itself: nobody knows whose folder it is


def trained_alone(folder: Path) -> subprocess.CompletedProcess[str]:
    job = folder.parent / "job.json"
    job.write_text(json.dumps(JOB.model_dump(mode="json")))
    command = [sys.executable, "-m", "jobs.train", str(job), "--into", str(folder)]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=200)


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("file", "damage", "code", "words"),
    [
        ("job.json", garbage, 2, "job.json is damaged ("),
        ("job.json", empty, 2, "move that file away, and run the same command again"),
        ("points.jsonl", garbage, 0, "points.jsonl is damaged ("),
        (".", empty, 1, "trial"),
    ],
)
def test_a_job_by_itself_ends_with_words(
    half: Path, tmp_path: Path, file: str, damage: Callable[[Any], None], code: int, words: str
) -> None:
    folder = tmp_path / "trial"
    shutil.copytree(half, folder)
    (folder / "attempt.json").unlink()
    damage(folder if file == "." else folder / file)
    done = trained_alone(folder)
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
    assert words in done.stdout + done.stderr
