"""What is said of trials' folders is what lies in them; nothing heavy is loaded for it."""

from __future__ import annotations

import hashlib
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from jobs.artifacts import manifest
from jobs.artifacts.audit import audit, main
from jobs.artifacts.storage import Folder
from jobs.artifacts.trial_dir import points_fault


@pytest.fixture
def trials(tmp_path: Path) -> Path:
    """The folder of one trial `abc` with three points and checkpoints of steps 4 and 8."""
    folder = tmp_path / "trials" / "abc"
    folder.mkdir(parents=True)
    (folder / "job.json").write_text('{"task": "image"}')
    (folder / "rows.parquet").write_bytes(b"rows")
    (folder / "result.json").write_text('{"step": 8, "metrics": {"m": NaN}}')
    write_points(folder, ("m", 0, 0.5), ("m", 8, math.nan), ("loss", 4, math.inf))
    for step in (4, 8):
        made = folder / "checkpoints" / manifest.name_of(step)
        made.mkdir(parents=True)
        for name in manifest.FILES:
            (made / name).write_bytes(bytes(range(200)))
        manifest.write(made, step=step, extra={"seconds": 1.0, "untrained": {}, "points": step // 4 + 1})
    return tmp_path / "trials"


def write_points(folder: Path, *points: tuple[str, int, float]) -> None:
    with (folder / "points.jsonl").open("a") as file:
        file.writelines(json.dumps({"key": k, "step": s, "value": v, "time": 1.0}) + "\n" for k, s, v in points)


def flip(path: Path, place: int = 100) -> None:
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


def faults(folder: Path) -> list[Any]:
    return [one["fault"] for one in audit(folder)["checkpoints"]]


def test_a_line_of_json_for_each_trial_and_nothing_changes(trials: Path) -> None:
    (trials / "xyz").mkdir()
    (trials / "a file").touch()
    before = {path: path.stat().st_mtime_ns for path in trials.rglob("*")}
    done = subprocess.run(
        [sys.executable, "-m", "jobs.artifacts.audit", str(trials)], capture_output=True, text=True, check=True
    )
    assert {path: path.stat().st_mtime_ns for path in trials.rglob("*")} == before
    abc, xyz = map(json.loads, done.stdout.splitlines())
    assert abc["job"] == {"task": "image"}
    assert math.isnan(abc["result"]["metrics"]["m"])
    assert abc["rows"] == hashlib.sha256(b"rows").hexdigest()
    assert repr(abc["points"]) == "[['m', 0, 0.5], ['m', 8, nan], ['loss', 4, inf]]"
    assert abc["checkpoints"] == [
        {"name": "step_000008", "step": 8, "fault": None},
        {"name": "step_000004", "step": 4, "fault": None},
    ]
    nothing: dict[str, Any] = {"job": None, "result": None, "rows": None, "points": [], "checkpoints": []}
    empty = {"trial": "xyz", "repeated": 0, "torn": 0, "missing": 0, "quarantine": [], "leftovers": [], "faults": []}
    assert xyz == nothing | empty


@pytest.mark.parametrize(
    ("name", "damage", "words"),
    [
        ("model.safetensors", flip, "model.safetensors does not match its sha256"),
        ("model.safetensors", lambda path: path.unlink(), "No such file"),
        ("manifest.json", lambda path: path.write_text("{}"), "its extra is no object"),
        ("manifest.json", lambda path: path.write_text("[1]"), "is no JSON object"),
        ("manifest.json", lambda path: path.write_text('{"step'), "Unterminated string"),
        ("manifest.json", lambda path: path.write_text('{"step": 9, "sha256": {}, "extra": {}}'), "is of step 9"),
    ],
)
def test_a_damaged_checkpoint_is_named_and_its_neighbour_is_not(
    trials: Path, name: str, damage: Any, words: str
) -> None:
    damage(trials / "abc" / "checkpoints" / "step_000008" / name)
    newest, older = faults(trials / "abc")
    assert words in newest
    assert older is None


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "attempt.json is empty"),
        (b" \n", "attempt.json is empty"),
        (b"{", "attempt.json names no attempt"),
        (b"null", "attempt.json names no attempt"),
        (b'{"token": 1}', "attempt.json names no attempt"),
        (b'{"token": 1, "attempt": "2"}', "attempt.json names no attempt"),
        (b"\xff", "attempt.json cannot be read"),
    ],
)
def test_an_attempt_that_names_nobody_is_named(trials: Path, content: bytes, words: str) -> None:
    """None at all is in order: a training of which there is only one has no fence."""
    path = trials / "abc" / "attempt.json"
    assert audit(trials / "abc")["faults"] == []
    path.write_text('{"token": 3, "attempt": 1}')
    assert audit(trials / "abc")["faults"] == []
    path.write_bytes(content)
    (fault,) = audit(trials / "abc")["faults"]
    assert fault.startswith(words)
    path.unlink()
    path.mkdir()
    assert audit(trials / "abc")["faults"][0].startswith("attempt.json cannot be read")


def test_what_was_set_aside_or_never_committed_is_no_checkpoint(trials: Path) -> None:
    checkpoints = trials / "abc" / "checkpoints"
    (checkpoints / "step_000004").rename(checkpoints / "step_000004.bad-1")
    (checkpoints / ".step_000012.77").mkdir()
    (checkpoints / "step_000012").mkdir()
    found = audit(trials / "abc")
    assert [one["name"] for one in found["checkpoints"]] == ["step_000008"]
    assert found["quarantine"] == ["step_000004.bad-1"]
    assert found["leftovers"] == [".step_000012.77", "step_000012"]


def test_a_bucket_is_told_of_like_a_folder_and_nothing_changes(trials: Path) -> None:
    """Mutant check: the name of the downloaded copy in place of the trial's fails this."""
    flip(trials / "abc" / "checkpoints" / "step_000004" / "model.safetensors")
    for name in ("step_000012", "step_000016"):
        (trials / "abc" / "checkpoints" / name).mkdir()
    (trials / "abc" / "checkpoints" / "step_000012" / "manifest.bad-1.json").touch()  # as a bucket keeps a damaged one
    (trials / "xyz").mkdir()
    before = {path: path.stat().st_mtime_ns for path in trials.rglob("*")}
    told = [
        subprocess.run(
            [sys.executable, "-m", "jobs.artifacts.audit", place], capture_output=True, text=True, check=True
        ).stdout
        for place in (str(trials), trials.as_uri())
    ]
    assert told[0] == told[1]
    abc, xyz = map(json.loads, told[1].splitlines())
    assert (abc["trial"], xyz["trial"]) == ("abc", "xyz")
    assert [one["fault"] for one in abc["checkpoints"]] == [None, "model.safetensors does not match its sha256"]
    assert (abc["quarantine"], abc["leftovers"]) == (["step_000012"], ["step_000016"])
    assert {path: path.stat().st_mtime_ns for path in trials.rglob("*")} == before


def test_a_bucket_that_cannot_be_read_ends_with_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["nonsense://there"]) == 2
    assert "nonsense://there is no folder of trials" in capsys.readouterr().err


def test_the_first_of_two_points_counts_and_a_torn_line_is_counted(trials: Path) -> None:
    write_points(trials / "abc", ("m", 0, 0.75))
    with (trials / "abc" / "points.jsonl").open("a") as file:
        file.write('{"key": "m", "st')
    found = audit(trials / "abc")
    assert found["points"][0] == ("m", 0, 0.5)
    assert (len(found["points"]), found["repeated"], found["torn"]) == (3, 1, 1)


@pytest.mark.parametrize(
    "line",
    [
        '{"key": "m", "step": 2, "value": 1.0}',  # no time
        '{"key": "m", "step": -2, "value": 1.0, "time": 1.0}',
        '{"key": "m", "step": true, "value": 1.0, "time": 1.0}',
        '{"key": "m", "step": 2, "value": true, "time": 1.0}',
        '{"key": "m", "step": 2, "value": "1.0", "time": 1.0}',
        '{"key": 7, "step": 2, "value": 1.0, "time": 1.0}',
        '{"key": "m", "step": 2, "value": 1' + "0" * 400 + ', "time": 1.0}',
        '{"key": "m", "st',
        "garbage",
        "[" * 100_000,
        "",
    ],
)
def test_a_line_that_training_takes_for_no_point_is_none_here_either(trials: Path, line: str) -> None:
    """A kill cuts the last one short, and whoever goes on writes the file again. Mutant check: counting every such line
    as torn calls a file sound with which training begins again."""
    path = trials / "abc" / "points.jsonl"
    there = path.read_text()
    path.write_text(there + line)
    found = audit(trials / "abc")
    assert (len(found["points"]), found["torn"], found["faults"]) == (3, int(line != ""), [])
    path.write_text(f"{line}\n{there}")
    found = audit(trials / "abc")
    assert (len(found["points"]), found["torn"]) == (3, 0)
    assert found["faults"] == ["points.jsonl is damaged (line 1 is no point)"]
    assert points_fault(Folder(trials / "abc"), until=8, expected=3) == "line 1 is no point"


def test_points_that_the_newest_sound_checkpoint_has_passed_are_missed(trials: Path) -> None:
    """Mutant checks: believing a damaged checkpoint, or one that does not say how many there were."""
    path, checkpoints = trials / "abc" / "points.jsonl", trials / "abc" / "checkpoints"
    assert audit(trials / "abc")["missing"] == 0
    lines = path.read_text().splitlines(keepends=True)
    path.write_text("".join([lines[0], lines[1][:9]]))
    assert audit(trials / "abc")["missing"] == 2
    flip(checkpoints / "step_000008" / "model.safetensors")
    assert audit(trials / "abc")["missing"] == 1
    path.unlink()
    assert audit(trials / "abc")["missing"] == 2
    told = json.loads((checkpoints / "step_000004" / "manifest.json").read_text())
    del told["extra"]["points"], told["digest"]
    (checkpoints / "step_000004" / "manifest.json").write_text(json.dumps(told))
    assert audit(trials / "abc")["missing"] == 0


@pytest.mark.parametrize("name", ["job.json", "result.json", "points.jsonl"])
def test_a_file_that_cannot_be_read_is_named(trials: Path, name: str) -> None:
    (trials / "abc" / name).write_bytes(b"{\xff")
    (fault,) = audit(trials / "abc")["faults"]
    assert fault.startswith(f"{name} cannot be read (")


def test_misuse_ends_with_2_and_says_why(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 2
    assert main(["--help"]) == 0
    assert "usage: python -m jobs.artifacts.audit TRIALS" in capsys.readouterr().err
    assert main([str(tmp_path / "gone")]) == 2
    assert "gone is no folder of trials" in capsys.readouterr().err


def test_it_loads_neither_torch_nor_ray() -> None:
    probe = "import sys, jobs.artifacts.audit; print([m for m in ('torch', 'ray', 'pydantic') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", probe], check=True, capture_output=True, text=True)
    assert done.stdout == "[]\n"
