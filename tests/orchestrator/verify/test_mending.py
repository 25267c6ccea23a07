"""What a trial's folder lacks and the ledger knows is written again, and nothing that only the folder has is lost."""

from __future__ import annotations

import contextlib
import json
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from servers import s3_server

from jobs.artifacts import manifest
from jobs.artifacts.trial_dir import Fence
from orchestrator.ledger import LeaseLost, Ledger, Trial, sqlite_url, this_process
from orchestrator.run_dir.bucket import Remote
from orchestrator.run_dir.folder import RunFolder
from orchestrator.verify import faults_after, mend, mending

FILES = ("job.json", "result.json", "points.jsonl", "attempt.json")


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[str], str]]:
    """`bucket(path)` is the URI of a path in a bucket."""
    with s3_server() as uri:
        yield uri


@pytest.fixture(params=["folder", "s3"])
def folder(
    request: pytest.FixtureRequest, tmp_path: Path, bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> RunFolder:
    """A run that was stopped half-way: five trials are done, one is to be continued."""
    shutil.copytree(Path(__file__).parents[2] / "begun" / "crossed", tmp_path / "crossed")
    if request.param == "folder":
        monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
        return RunFolder(tmp_path / "crossed")
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", sqlite_url(tmp_path / "crossed" / "ledger.db"))
    remote = Remote.of(bucket(tmp_path.name))
    files = [path for path in (tmp_path / "crossed").rglob("*") if path.is_file() and path.name != "ledger.db"]
    remote.put_files(tmp_path / "crossed", files)
    return RunFolder(tmp_path / "copy", remote)


@pytest.fixture
def ledger(folder: RunFolder) -> Iterator[Ledger]:
    with contextlib.closing(folder.open()) as opened:
        opened.acquire(this_process(), 60)
        opened.reconcile()
        yield opened
        opened.release()


def done(ledger: Ledger) -> Trial:
    return ledger.trials(state="done")[0]


def to_be_continued(ledger: Ledger) -> Trial:
    return next(trial for trial in ledger.trials(state="queued") if trial.attempts)


def read(folder: RunFolder, trial: Trial, name: str) -> bytes | None:
    if folder.remote is not None:
        return folder.remote.read(f"trials/{trial.id}/{name}")
    path = folder.trial(trial.id) / name
    return path.read_bytes() if path.exists() else None


def put(folder: RunFolder, trial: Trial, name: str, content: bytes | None) -> None:
    """Replace a file, or delete it."""
    if folder.remote is None:
        path = folder.trial(trial.id) / name
        path.unlink() if content is None else path.write_bytes(content)
    elif content is None:
        folder.remote.delete(f"trials/{trial.id}/{name}")
    else:
        folder.remote.put(f"trials/{trial.id}/{name}", content)


def names(folder: RunFolder, trial: Trial) -> set[str]:
    if folder.remote is not None:
        return set(folder.remote.files(f"trials/{trial.id}"))
    return {path.name for path in folder.trial(trial.id).iterdir()}


def meaning(name: str, content: bytes | None) -> Any:
    assert content is not None
    if name != "points.jsonl":
        found = json.loads(content)
        return {key: value for key, value in found.items() if key != "execution"}
    points = [json.loads(line) for line in content.splitlines()]
    return {(point["key"], point["step"]): (point["value"], point["time"]) for point in points}


DAMAGES: dict[str, Callable[[bytes], bytes | None]] = {
    "missing": lambda _: None,
    "empty": lambda _: b"",
    "blank": lambda _: b"\n \n",
    "no text": lambda _: bytes(range(256)),
    "cut in the middle": lambda content: content[: len(content) // 2],
    "zeros": lambda content: bytes(len(content)),
    "another kind": lambda _: b"[7]",
    "null": lambda _: b"null",
}


@pytest.mark.parametrize("folder", ["folder", pytest.param("s3", marks=pytest.mark.soak)], indirect=True)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", FILES)
def test_a_file_of_a_finished_trial_is_written_again(folder: RunFolder, ledger: Ledger, name: str, damage: str) -> None:
    """Mutant check: mending only what is missing."""
    trial = done(ledger)
    before = read(folder, trial, name)
    assert before is not None
    others = {other: read(folder, trial, other) for other in FILES if other != name}
    assert mend(folder, ledger) == [], "what is in order is left alone"
    put(folder, trial, name, DAMAGES[damage](before))
    (sentence,) = mend(folder, ledger)
    assert sentence.startswith(f"trial {trial.id}: {name} ")
    assert sentence.endswith("; it is written again as the ledger has it")
    assert meaning(name, read(folder, trial, name)) == meaning(name, before)
    assert {other: read(folder, trial, other) for other in others} == others
    assert mend(folder, ledger) == []
    assert faults_after(folder, ledger, None) == []


def test_every_file_of_every_trial_at_once(folder: RunFolder, ledger: Ledger) -> None:
    for trial in ledger.trials(state="done"):
        for name in FILES:
            put(folder, trial, name, None)
    assert len(mend(folder, ledger)) == 4 * len(ledger.trials(state="done"))
    assert faults_after(folder, ledger, None) == []


@pytest.mark.parametrize(
    ("name", "change"),
    [("result.json", {"seconds": 1e9}), ("job.json", {"seed": 77}), ("result.json", {"metrics": {}})],
)
def test_what_was_edited_is_as_the_ledger_has_it_again(
    folder: RunFolder, ledger: Ledger, name: str, change: dict[str, Any]
) -> None:
    trial = done(ledger)
    before = read(folder, trial, name)
    assert before is not None
    put(folder, trial, name, json.dumps(json.loads(before) | change).encode())
    assert len(mend(folder, ledger)) == 1
    assert meaning(name, read(folder, trial, name)) == meaning(name, before)


def test_points_that_only_the_file_has_stay(folder: RunFolder, ledger: Ledger) -> None:
    """The ledger's values stand, and what it does not know may be all that is left of it. Mutant check: writing the
    ledger's points only."""
    trial = done(ledger)
    before = read(folder, trial, "points.jsonl")
    assert before is not None
    first, second, *rest = before.decode().splitlines()
    extra = json.dumps({"key": "loss/extra", "step": 99, "value": 1.5, "time": 7.0})
    changed = json.dumps(json.loads(second) | {"value": 0.123})
    put(folder, trial, "points.jsonl", "\n".join([changed, *rest, extra, first[:9]]).encode())
    (sentence,) = mend(folder, ledger)
    assert "lacked 1 point, 1 point had another value" in sentence
    after = meaning("points.jsonl", read(folder, trial, "points.jsonl"))
    assert after.pop(("loss/extra", 99)) == (1.5, 7.0)
    assert after == meaning("points.jsonl", before)


@pytest.mark.few(3)
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b'{"token": 1}', b'{"token": "1", "attempt": 1}', b"\xff\xfe"])
def test_an_attempt_of_a_trial_that_goes_on_is_named_again(folder: RunFolder, ledger: Ledger, content: bytes) -> None:
    trial = to_be_continued(ledger)
    before = read(folder, trial, "attempt.json")
    assert before is not None
    put(folder, trial, "attempt.json", content)
    (fault,) = faults_after(folder, ledger, None)
    assert "attempt.json" in fault
    assert "orchestrator resume" in fault
    assert len(mend(folder, ledger)) == 1
    assert meaning("attempt.json", read(folder, trial, "attempt.json")) == json.loads(before)
    assert faults_after(folder, ledger, None) == []


def test_what_a_trial_that_goes_on_does_not_need_is_not_made(folder: RunFolder, ledger: Ledger) -> None:
    """It failed before it was loaded, perhaps, or has not got that far."""
    trial = to_be_continued(ledger)
    put(folder, trial, "job.json", None)
    put(folder, trial, "attempt.json", None)
    before = names(folder, trial)
    assert mend(folder, ledger) == []
    assert names(folder, trial) == before


@pytest.mark.few(1)
@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe"])
def test_a_result_that_cannot_be_read_does_not_stop_a_trial_that_goes_on(
    folder: RunFolder, ledger: Ledger, content: bytes
) -> None:
    """It is kept for a person, under another name."""
    trial = to_be_continued(ledger)
    for number in (1, 2):
        put(folder, trial, "result.json", content)
        (sentence,) = mend(folder, ledger)
        assert "it is set aside, and the trial goes on" in sentence
        assert read(folder, trial, "result.json") is None
        assert read(folder, trial, f"result.json.bad-{number}") == content
    assert faults_after(folder, ledger, None) == []


@pytest.mark.parametrize("content", [b"", b"\xff\xfe", bytes(300)])
def test_points_of_a_trial_that_goes_on_are_the_ledgers_where_the_file_has_none(
    folder: RunFolder, ledger: Ledger, content: bytes
) -> None:
    """Else its curve would begin at its newest checkpoint."""
    trial = done(ledger)
    go_on(ledger, trial)
    points = {(point.key, point.step): (point.value, point.time) for point in ledger.points(trial.id)}
    assert points
    put(folder, trial, "points.jsonl", content)
    assert len(mend(folder, ledger)) == 1
    assert meaning("points.jsonl", read(folder, trial, "points.jsonl")) == points


MANIFEST = "checkpoints/step_000004/manifest.json"


def go_on(ledger: Ledger, trial: Trial) -> None:
    """As if its driver had died before it told of the result."""
    with contextlib.closing(sqlite3.connect(ledger._database.path or "")) as database, database:
        database.execute("UPDATE trials SET state = 'queued', result = NULL WHERE id = ?", [trial.id])
        database.execute("UPDATE attempts SET state = 'interrupted' WHERE trial = ?", [trial.id])


def tell_of_points(folder: RunFolder, trial: Trial) -> int:
    """The checkpoint of step 4 says how many points there were, as those of this version do."""
    told, points = read(folder, trial, MANIFEST), read(folder, trial, "points.jsonl")
    assert told is not None
    assert points is not None
    found = json.loads(told)
    found["extra"]["points"] = len(points.splitlines())
    put(folder, trial, MANIFEST, json.dumps(manifest.sealed(found)).encode())
    return len(points.splitlines())


@pytest.mark.few(1)
@pytest.mark.parametrize("kept", [slice(1), slice(3, None), slice(-1)])
def test_points_of_a_trial_that_goes_on_which_its_checkpoint_has_passed_are_the_ledgers(
    folder: RunFolder, ledger: Ledger, kept: slice
) -> None:
    """Then nothing is measured again. Mutant check: a file with any point in it is left as it is."""
    trial = done(ledger)
    number = tell_of_points(folder, trial)
    go_on(ledger, trial)
    before = read(folder, trial, "points.jsonl")
    assert before is not None
    assert (mend(folder, ledger), faults_after(folder, ledger, None)) == ([], [])
    lines = before.splitlines(keepends=True)[kept]
    put(folder, trial, "points.jsonl", b"".join(lines))
    (fault,) = faults_after(folder, ledger, None)
    assert f"points.jsonl lacks {number - len(lines):,} point" in fault
    assert "again when the trial goes on: orchestrator resume" in fault
    (sentence,) = mend(folder, ledger)
    assert f"points.jsonl lacked {number - len(lines)} point" in sentence
    assert meaning("points.jsonl", read(folder, trial, "points.jsonl")) == meaning("points.jsonl", before)
    assert (mend(folder, ledger), faults_after(folder, ledger, None)) == ([], [])


@pytest.mark.few(1)
def test_points_of_a_trial_that_goes_on_which_no_checkpoint_has_passed_are_not_written(
    folder: RunFolder, ledger: Ledger
) -> None:
    """They are measured again. A bucket is behind the ledger after every kill."""
    trial = done(ledger)
    go_on(ledger, trial)
    content = read(folder, trial, "points.jsonl")
    assert content is not None
    put(folder, trial, MANIFEST, None)
    put(folder, trial, "points.jsonl", b"".join(content.splitlines(keepends=True)[:-3]))
    assert mend(folder, ledger) == []


@pytest.mark.few(1)
def test_a_hole_that_ledger_and_disk_share_is_found(folder: RunFolder, ledger: Ledger) -> None:
    """Mutant check: comparing them with one another only."""
    trial = done(ledger)
    tell_of_points(folder, trial)
    content = read(folder, trial, "points.jsonl")
    assert content is not None
    lost, *rest = content.splitlines(keepends=True)
    put(folder, trial, "points.jsonl", b"".join(rest))
    place = json.loads(lost)
    with contextlib.closing(sqlite3.connect(ledger._database.path or "")) as database, database:
        at = [trial.id, place["key"], place["step"]]
        database.execute("DELETE FROM points WHERE trial = ? AND key = ? AND step = ?", at)
    assert mend(folder, ledger) == []
    faults = [fault for fault in faults_after(folder, ledger, None) if "points.jsonl" in fault]
    (fault,) = faults
    assert "lacks 1 point that its newest checkpoint has passed, and so does the ledger; put it back" in fault


@pytest.mark.few(1)
def test_a_line_in_the_middle_that_is_no_point_is_mended(folder: RunFolder, ledger: Ledger) -> None:
    """Training would begin again with it, so it is a fault here too, whatever the trial's state."""
    trials = [done(ledger), ledger.trials(state="done")[1]]
    go_on(ledger, trials[1])
    before = [read(folder, trial, "points.jsonl") or b"" for trial in trials]
    for trial, content in zip(trials, before, strict=True):
        put(folder, trial, "points.jsonl", b'{"key": "m", "step": 0, "value": 1.0}\n' + content)
    faults = faults_after(folder, ledger, None)
    assert len(faults) == 2
    assert all("points.jsonl is damaged (line 1 is no point); have it written again" in fault for fault in faults)
    sentences = mend(folder, ledger)
    assert len(sentences) == 2
    assert all("points.jsonl was damaged (line 1 is no point); it is written again" in each for each in sentences)
    for trial, content in zip(trials, before, strict=True):
        assert meaning("points.jsonl", read(folder, trial, "points.jsonl")) == meaning("points.jsonl", content)
    assert (mend(folder, ledger), faults_after(folder, ledger, None)) == ([], [])


@pytest.mark.few(1)
@pytest.mark.parametrize("execution", [{"devise": "cpu"}, "cpu", {"ranks": "two"}])
def test_a_job_whose_execution_cannot_be_read_is_written_again(
    folder: RunFolder, ledger: Ledger, execution: Any
) -> None:
    """`export` says that this is how it is mended. Mutant check: comparing everything but the execution."""
    trial = done(ledger)
    before = read(folder, trial, "job.json")
    assert before is not None
    put(folder, trial, "job.json", json.dumps(json.loads(before) | {"execution": {"micro": 1}}).encode())
    assert (mend(folder, ledger), faults_after(folder, ledger, None)) == ([], []), "it may be computed otherwise"
    put(folder, trial, "job.json", json.dumps(json.loads(before) | {"execution": execution}).encode())
    (fault,) = faults_after(folder, ledger, None)
    assert "job.json is no job: its execution cannot be read; have it written again" in fault
    assert len(mend(folder, ledger)) == 1
    assert json.loads(read(folder, trial, "job.json") or b"") == trial.job
    assert faults_after(folder, ledger, None) == []


@pytest.mark.parametrize("folder", ["folder"], indirect=True)
@pytest.mark.parametrize("name", FILES)
def test_a_folder_in_place_of_a_file_is_kept_aside(folder: RunFolder, ledger: Ledger, name: str) -> None:
    trial = done(ledger)
    path = folder.trial(trial.id) / name
    before = path.read_bytes()
    for number in (1, 2):
        path.unlink()
        (path / "sub").mkdir(parents=True)
        (sentence,) = mend(folder, ledger)
        assert "is a folder" in sentence
        assert meaning(name, path.read_bytes()) == meaning(name, before)
        assert (path.with_name(f"{name}.bad-{number}") / "sub").is_dir()
    assert faults_after(folder, ledger, None) == []


@pytest.mark.parametrize("folder", ["folder"], indirect=True)
def test_what_cannot_be_written_is_told_and_the_rest_is_mended(folder: RunFolder, ledger: Ledger) -> None:
    first, second = ledger.trials(state="done")[:2]
    shutil.rmtree(folder.trial(first.id))
    folder.trial(first.id).write_text("a file in place of the trial's folder")
    put(folder, second, "result.json", b"")
    sentences = mend(folder, ledger)
    assert sum("could not be looked at or written again" in sentence for sentence in sentences) == 4
    assert any(sentence.startswith(f"trial {second.id}: result.json") for sentence in sentences)


@pytest.mark.parametrize("folder", ["folder"], indirect=True)
def test_the_lease_is_renewed_meanwhile(folder: RunFolder, ledger: Ledger, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a bucket it may take longer than a lease. Mutant check: not renewing."""
    monkeypatch.setattr(mending, "RENEW_S", -1.0)
    before = ledger.holder()
    time.sleep(0.05)
    mend(folder, ledger)
    after = ledger.holder()
    assert before is not None
    assert after is not None
    assert after[2] > before[2]
    with contextlib.closing(Ledger.open(folder.ledger_url())) as other:
        ledger.release()
        other.acquire("another driver", 60)
        with pytest.raises(LeaseLost):
            mend(folder, ledger)


@pytest.mark.parametrize("folder", ["folder"], indirect=True)
def test_an_attempt_of_a_driver_that_was_replaced_stays_shut_out(folder: RunFolder, ledger: Ledger) -> None:
    """The file names the last attempt of the ledger, so an earlier one may not write."""
    from jobs.artifacts.storage import Folder
    from jobs.artifacts.trial_dir import TakenOver

    trial = to_be_continued(ledger)
    with contextlib.closing(sqlite3.connect(folder.path / "ledger.db")) as database:
        ((token, number),) = database.execute("SELECT token, number FROM attempts WHERE trial = ?", [trial.id])
    (folder.trial(trial.id) / "attempt.json").write_text("")
    mend(folder, ledger)
    with pytest.raises(TakenOver):
        Fence(Folder(folder.trial(trial.id)), (token - 1, number)).hold()
    Fence(Folder(folder.trial(trial.id)), (token, number + 1)).hold()
