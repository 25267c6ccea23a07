"""Where the files of a trial lie: a disk that is really full, and a real S3 server."""

import json
import os
import pickle
import shutil
import signal
import subprocess
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import wait
from errno import EACCES, EDQUOT, ENOSPC
from functools import partial
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest
import torch
from servers import s3_server
from test_train import job, lines, trained, values, weights

from jobs.artifacts import bucket as in_bucket
from jobs.artifacts import checkpoint, manifest, storage
from jobs.artifacts.bucket import Bucket, at
from jobs.artifacts.objects import UPLOADS, side_by_side
from jobs.artifacts.storage import Folder, StorageFull, write_whole
from jobs.artifacts.trial_dir import Fence, Records, TakenOver, start_over, write_result
from jobs.train import Training

EXTRA: manifest.Extra = {"seconds": 1.0, "untrained": {}}


def test_a_file_is_replaced_in_one_piece_and_nothing_is_left_beside_it(tmp_path: Path) -> None:
    write_whole(tmp_path / "a", "old")
    write_whole(tmp_path / "a", "new")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("a", "new")]


# A full disk


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 1 MiB of our own."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a file system")
    folder = tmp_path / "disk"
    folder.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if done.returncode:
        pytest.skip(f"mount refuses here: {done.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def fill(disk: Path, *, leave: int) -> None:
    """Use up a disk but for about `leave` bytes."""
    with (disk / "ballast").open("wb") as file:
        file.write(bytes(shutil.disk_usage(disk).free - leave))


def listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.mark.parametrize(("model", "optimizer"), [(100_000, 1), (1, 100_000), (1, 1)])
def test_a_full_disk_keeps_the_older_checkpoint_and_says_what_is_needed(disk: Path, model: int, optimizer: int) -> None:
    """What fails is safetensors, which says so in words, torch.save, which does not say so, or an open.

    Mutant check: without the look at the space that is free, torch's RuntimeError comes through.
    """
    checkpoint.save(disk / "c", step=5, model={"w": torch.ones(9)}, optimizer={}, extra=EXTRA, keep=2)
    before = listing(disk)
    fill(disk, leave=0 if model == optimizer else 200_000)
    state: dict[str, Any] = {"model": {"w": torch.ones(model)}, "optimizer": {"state": {0: torch.ones(optimizer)}}}
    with pytest.raises(StorageFull) as caught:
        checkpoint.save(disk / "c", step=500, extra=EXTRA, keep=2, **state)
    what, needed, free, folder = caught.value.facts
    assert str(caught.value) == f"checkpoint of step 500 needs {needed:,} bytes in {disk / 'c'}, {free:,} are free"
    assert 4 * (model + optimizer) < needed < 4 * (model + optimizer) + 100_000
    assert free == shutil.disk_usage(disk).free
    assert (what, folder) == ("checkpoint of step 500", str(disk / "c"))
    assert listing(disk) - {"ballast"} == before
    found, remarks = checkpoint.newest(disk / "c")
    assert found is not None
    assert (found.step, remarks) == (5, [])


@pytest.mark.parametrize(
    ("error", "needed", "full"),
    [
        (OSError(ENOSPC, "x"), 1, True),
        (OSError(EDQUOT, "x"), 1, True),
        (RuntimeError("disk quota exceeded"), 1, True),
        (RuntimeError("unexpected pos"), 2**62, True),
        (RuntimeError("unexpected pos"), 1, False),
        (OSError(EACCES, "x"), 2**62, False),
    ],
)
def test_a_full_disk_is_told_from_other_errors(tmp_path: Path, error: Exception, needed: int, full: bool) -> None:
    """Mutant checks: without the numbers the first two fail, and calling any error a full disk fails the last two."""

    def wrapped() -> None:
        with storage.disk_full_guard("it", needed=needed, folder=tmp_path / "not" / "there", undo=lambda: None):
            raise error

    with pytest.raises(StorageFull if full else type(error)) as caught:
        wrapped()
    assert isinstance(caught.value, StorageFull) == full
    assert ("may be a quota" in str(caught.value)) == (full and needed == 1)


def test_points_and_result_on_a_full_disk_leave_no_half_line(disk: Path) -> None:
    """Mutant check: without cutting the file back, a part of the long point stays."""
    records = Records(disk, writes=True)
    records.add({"loss": 1.0}, step=1)
    records.flush()
    before = (disk / "points.jsonl").read_text()
    fill(disk, leave=8192)
    records.add({"x" * 20_000: 1.0}, step=2)
    with pytest.raises(StorageFull, match=r"points.jsonl needs 20,0\d\d bytes in"):
        records.flush()
    assert (disk / "points.jsonl").read_text() == before
    with pytest.raises(StorageFull, match=r"result.json needs 20,0\d\d bytes in"):
        write_result(Folder(disk), {"outcome": "x" * 20_000})
    assert listing(disk) == {"ballast", "points.jsonl"}
    (disk / "ballast").unlink()
    records.flush()
    assert [point.step for point in lines(disk)] == [1, 2]


def test_a_full_disk_survives_being_pickled() -> None:
    """As Ray does with it. Mutant check: without __reduce__ it cannot be read back."""
    error = StorageFull("checkpoint of step 5", 1_234_567, 4096, "/x/y")
    again = pickle.loads(pickle.dumps(error))
    assert str(again) == str(error) == "checkpoint of step 5 needs 1,234,567 bytes in /x/y, 4,096 are free"
    assert (again.errno, again.filename) == (ENOSPC, "/x/y")


def test_training_on_a_full_disk_ends_with_the_reason_and_continues_once_there_is_space(disk: Path) -> None:
    """The error of the background writer is the next call's. Mutant check: an `advance` that does not look fails."""
    whole = trained(job(), disk.parent / "whole")
    training = Training(job(), disk / "trial", log=lambda _: None)
    while training.step < 5:
        training.advance(1)
    training.settle()
    fill(disk, leave=65_536)
    while training.step < 10:
        training.advance(1)
    assert training.writer._work is not None
    wait([training.writer._work], timeout=60)
    with pytest.raises(StorageFull, match="checkpoint of step 10 needs"):
        training.advance(1)
    assert training.step == 10
    assert training.result is None
    assert checkpoint.steps(disk / "trial" / "checkpoints") == [5]
    (disk / "ballast").unlink()
    again = trained(job(), disk / "trial")
    assert values(again.points) == values(whole.points)


# A bucket


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], str]]:
    """An S3 server of our own, over HTTP; `bucket(path)` is the URI of a path in it."""
    monkeypatch.setattr(in_bucket, "PAUSES_S", (0.01, 0.01))
    with s3_server() as uri:
        yield uri


def files(uri: str) -> dict[str, int]:
    """Sizes of what lies under a URI, by name."""
    from pyarrow import fs

    store, path = fs.FileSystem.from_uri(uri)
    found = store.get_file_info(fs.FileSelector(path, recursive=True, allow_not_found=True))
    return {each.path[len(path) + 1 :]: each.size for each in found if each.type == fs.FileType.File}


def save(place: storage.Storage, step: int, **options: Any) -> None:
    state: dict[str, Any] = {"model": {"w": torch.full((3,), float(step))}, "optimizer": {"lr": 0.1}, "extra": EXTRA}
    checkpoint.write(place, checkpoint.snapshot(step=step, **state), keep=2, **options)


def test_small_files_in_a_bucket_are_the_ones_that_count(bucket: Callable[[str], str], tmp_path: Path) -> None:
    """Mutant check: a `download` that keeps what is here fails this."""
    here, there = at(tmp_path / "here", bucket("t")), at(tmp_path / "there", bucket("t"))
    assert here.read("a.json") is None
    here.write("a.json", "old")
    here.write("a.json", "new")
    assert there.read("a.json") == "new"
    there.download("a.json")
    assert (tmp_path / "there" / "a.json").read_text() == "new"
    (tmp_path / "there" / "stale").write_text("of a life before")
    there.download("stale")
    there.publish("stale")
    assert files(bucket("t")) == {"a.json": 3}
    assert not (tmp_path / "there" / "stale").exists()


def test_checkpoints_in_a_bucket_are_kept_dropped_and_read_like_local_ones(
    bucket: Callable[[str], str], tmp_path: Path
) -> None:
    place = at(tmp_path / "here", bucket("c"))
    assert checkpoint.newest(place) == (None, [])
    for step in (5, 10, 15, 15):
        save(place, step)
    assert checkpoint.steps(place) == [15, 10]
    assert {name.split("/")[0] for name in files(bucket("c"))} == {"step_000010", "step_000015"}
    found, remarks = checkpoint.newest(at(tmp_path / "elsewhere", bucket("c")))
    assert found is not None
    assert (found.step, remarks, found.optimizer) == (15, [], {"lr": 0.1})
    assert torch.equal(found.model["w"], torch.full((3,), 15.0))
    assert [*(tmp_path / "here").iterdir()] == [*(tmp_path / "elsewhere").iterdir()] == []


def test_uploads_run_side_by_side_and_the_manifest_comes_after_all_of_them(
    bucket: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each upload waits until another one runs. Mutant check: one after the other breaks the barrier."""
    together, log = threading.Barrier(2, timeout=20), []
    upload, put = Bucket._upload, Bucket._put

    def uploaded(self: Bucket, path: Path, name: str) -> None:
        together.wait()
        upload(self, path, name)
        log.append(name.rpartition("/")[2])

    def placed(self: Bucket, name: str, content: bytes) -> None:
        if not name.endswith(manifest.NAME):
            together.wait()
        put(self, name, content)
        log.append(name.rpartition("/")[2])

    monkeypatch.setattr(Bucket, "_upload", uploaded)
    monkeypatch.setattr(Bucket, "_put", placed)
    place = at(tmp_path / "trial", bucket("side"))
    assert isinstance(place, Bucket)
    checkpoint.save(place.inside("c"), step=5, model={"w": torch.ones(9)}, optimizer={}, extra=EXTRA, keep=2)
    assert (sorted(log[:2]), log[2:]) == (["model.safetensors", "optimizer.pt"], [manifest.NAME])
    for name in ("points.jsonl", "log.rank0.txt"):
        (place.scratch / name).write_text(name)
    place.publish("points.jsonl", "log.rank0.txt", "not-there.txt")
    assert sorted(log[3:]) == ["log.rank0.txt", "points.jsonl"]
    assert [place.read(name) for name in ("points.jsonl", "log.rank0.txt")] == ["points.jsonl", "log.rank0.txt"]


def test_after_an_error_no_upload_begins() -> None:
    """Each that fails has waited for its retries."""
    begun: list[int] = []

    def fail(number: int) -> None:
        begun.append(number)
        threading.Event().wait(0.05)
        raise ConnectionError(f"upload {number}")

    with pytest.raises(ConnectionError, match="upload"):
        side_by_side([partial(fail, number) for number in range(100)])
    assert len(begun) <= 2 * UPLOADS


def test_an_upload_that_fails_leaves_none_behind_that_still_runs(
    bucket: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The caller may go on and delete: nobody writes after it has the error. And no manifest follows."""
    running, upload = [], Bucket._upload

    def uploaded(self: Bucket, path: Path, name: str) -> None:
        if name.endswith(manifest.OPTIMIZER):
            raise ConnectionError("gone")
        running.append(name)
        threading.Event().wait(0.2)  # longer than the other one takes to fail
        upload(self, path, name)
        running.remove(name)

    monkeypatch.setattr(Bucket, "_upload", uploaded)
    place = at(tmp_path / "trial", bucket("fails")).inside("c")
    with pytest.raises(ConnectionError, match="gone"):
        checkpoint.save(place, step=5, model={"w": torch.ones(9)}, optimizer={}, extra=EXTRA, keep=2)
    assert running == []
    assert place.committed() == []


@pytest.mark.parametrize("damage", ["truncated", "missing", "manifest"])
def test_a_damaged_checkpoint_in_a_bucket_is_set_aside_and_the_one_before_is_used(
    bucket: Callable[[str], str], tmp_path: Path, damage: str
) -> None:
    """Mutant check: without the comparison of hashes, or without moving the manifest, this fails."""
    place = Bucket.of(bucket("c"), tmp_path)
    save(place, 5)
    save(place, 10)
    name = "manifest.json" if damage == "manifest" else "optimizer.pt"
    if damage == "missing":
        place.objects.delete(f"step_000010/{name}")
    else:
        content = place.objects.read(f"step_000010/{name}")
        assert content is not None
        place.objects.put(f"step_000010/{name}", content[:-9])
    found, remarks = checkpoint.newest(place)
    assert found is not None
    assert found.step == 5
    assert "step_000010 is damaged" in remarks[0]
    assert "set aside as step_000010/manifest.bad-1.json" in remarks[0]
    assert checkpoint.steps(place) == [5]
    place.clean()
    assert "step_000010/manifest.bad-1.json" in files(bucket("c")), "it is kept for a person"
    save(place, 10)
    assert checkpoint.steps(place) == [10, 5]


def test_a_file_in_a_bucket_is_set_aside_there_and_here(bucket: Callable[[str], str], tmp_path: Path) -> None:
    """Mutant check: leaving the store's copy, as if it were about to be replaced, keeps a result that counts."""
    place = Bucket.of(bucket("t"), tmp_path)
    with pytest.raises(FileNotFoundError):
        place.quarantine("result.json")
    for number in (1, 2):
        place.write("result.json", f"damaged {number}")
        assert place.quarantine("result.json") == f"result.json.bad-{number}"
        assert place.read("result.json") is None
        assert not (tmp_path / "result.json").exists()
        assert place.read(f"result.json.bad-{number}") == f"damaged {number}"
    (tmp_path / "result.json").write_text("only here")
    place.quarantine("result.json")
    assert files(bucket("t")).keys() == {"result.json.bad-1", "result.json.bad-2"}
    assert not (tmp_path / "result.json").exists()
    with pytest.raises(FileNotFoundError):
        place.inside("checkpoints").quarantine("step_000005")


def test_starting_over_in_a_bucket_leaves_nothing_there_that_counts(
    bucket: Callable[[str], str], tmp_path: Path
) -> None:
    place = at(tmp_path / "here", bucket("t"))
    checkpoints = place.inside("checkpoints")
    assert start_over(place, checkpoints) == "it had left nothing else"
    for name in ("result.json", "points.jsonl"):
        place.write(name, "x")
    save(checkpoints, 5)
    assert start_over(
        at(tmp_path / "there", bucket("t")), at(tmp_path / "there", bucket("t")).inside("checkpoints")
    ) == (
        "what it had left is kept as result.json.bad-1, points.jsonl.bad-1, checkpoints/step_000005/manifest.bad-1.json"
    )
    assert (place.read("result.json"), place.read("points.jsonl"), checkpoints.committed()) == (None, None, [])
    kept = {name for name in files(bucket("t")) if "bad" in name}
    assert kept == {"result.json.bad-1", "points.jsonl.bad-1", "checkpoints/step_000005/manifest.bad-1.json"}


# Whatever lies where a checkpoint belongs


def a_file(path: Path) -> None:
    path.write_text("x")


def a_folder_of_something(path: Path) -> None:
    (path / "inside").mkdir(parents=True)


def a_manifest_that_is_a_folder(path: Path) -> None:
    (path / "manifest.json" / "inside").mkdir(parents=True)


def a_link_to_a_folder(path: Path) -> None:
    (path.parent.parent / "elsewhere").mkdir()
    (path.parent.parent / "elsewhere" / "manifest.json").write_text("x")
    path.symlink_to(path.parent.parent / "elsewhere")


def a_link_to_nothing(path: Path) -> None:
    path.symlink_to(path.parent / "nothing")


LYING = [a_file, a_folder_of_something, a_manifest_that_is_a_folder, a_link_to_a_folder, a_link_to_nothing]


@pytest.mark.parametrize("step", [5, 15])
@pytest.mark.parametrize("lying", LYING)
def test_whatever_lies_where_a_checkpoint_was_or_will_be_stops_no_save(
    tmp_path: Path, lying: Callable[[Path], None], step: int
) -> None:
    """Mutant checks: deleting a manifest that is a folder as a file, or a link to a folder as one."""
    place = Folder(tmp_path / "c")
    save(place, 10)
    lying(tmp_path / "c" / manifest.name_of(step))
    for new in (15, 20, 25):
        save(place, new)
        found, remarks = checkpoint.newest(place)
        assert found is not None
        assert (found.step, remarks) == (new, [])
    assert checkpoint.steps(place) == [25, 20]
    if lying is a_link_to_a_folder:
        assert (tmp_path / "elsewhere" / "manifest.json").read_text() == "x", "what is not ours stays"


def die_before_the_manifest(uri: str, folder: str) -> None:
    os.environ |= {"AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b", "AWS_EC2_METADATA_DISABLED": "true"}
    put = Bucket._put

    def dying(self: Bucket, name: str, content: bytes) -> None:
        if name == "step_000010/manifest.json":
            os.kill(os.getpid(), signal.SIGKILL)
        put(self, name, content)

    Bucket._put = dying  # type: ignore[method-assign]
    for step in (5, 10):
        save(at(Path(folder), uri), step)


def test_a_kill_between_files_and_manifest_leaves_the_checkpoint_before(
    bucket: Callable[[str], str], tmp_path: Path, forkserver: ForkServerContext
) -> None:
    """Mutant check: uploading the manifest with the others, in the order of their names, fails this."""
    process = forkserver.Process(target=die_before_the_manifest, args=(bucket("c"), str(tmp_path)))
    process.start()
    process.join(120)
    assert process.exitcode == -signal.SIGKILL
    place = at(tmp_path, bucket("c"))
    assert {"step_000010/model.safetensors", "step_000010/optimizer.pt"} < files(bucket("c")).keys()
    assert checkpoint.steps(place) == [5]
    assert [path.name.split(".")[1] for path in tmp_path.iterdir()] == ["step_000010"]
    place.clean()
    assert {name.split("/")[0] for name in files(bucket("c"))} == {"step_000005"}
    assert [*tmp_path.iterdir()] == []


def test_an_upload_that_fails_for_a_moment_is_made_again_and_one_that_fails_for_long_is_told(
    bucket: Callable[[str], str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was committed stays. Mutant check: one attempt only fails this."""
    from pyarrow import fs

    place = at(tmp_path, bucket("c"))
    save(place, 5)
    real, failures = fs.copy_files, [2]

    def failing(*arguments: Any, **options: Any) -> None:
        failures[0] -= 1
        if failures[0] >= 0:
            raise OSError("AWS Error NETWORK_CONNECTION")
        real(*arguments, **options)

    monkeypatch.setattr(fs, "copy_files", failing)
    save(place, 10)
    failures[0] = 3 * 2  # every attempt at either file, side by side
    with pytest.raises(ConnectionError, match=r"s3://bucket-\w+/c cannot be used: AWS Error NETWORK"):
        save(place, 15)
    assert [*tmp_path.iterdir()] == []
    failures[0] = 3
    with pytest.raises(ConnectionError):
        checkpoint.newest(place)
    assert checkpoint.steps(place) == [10, 5], "what cannot be reached is not damaged"


def test_a_checkpoint_that_finds_no_space_here_is_not_called_damaged(
    bucket: Callable[[str], str], disk: Path, tmp_path: Path
) -> None:
    """Mutant check: setting aside whatever cannot be read fails this."""
    state: dict[str, Any] = {"model": {"w": torch.ones(100_000)}, "optimizer": {}, "extra": EXTRA}
    checkpoint.save(at(tmp_path / "one", bucket("c")), step=5, keep=2, **state)
    fill(disk, leave=100_000)
    place = at(disk / "two", bucket("c"))
    with pytest.raises(StorageFull, match=r"download of step_000005 needs 40\d,\d\d\d bytes in .*two"):
        checkpoint.newest(place)
    assert checkpoint.steps(place) == [5]
    assert listing(disk) == {"ballast"}


def test_a_job_in_a_bucket_continues_on_another_machine_bit_for_bit(
    bucket: Callable[[str], str], tmp_path: Path
) -> None:
    """The second life has an empty folder. Mutant checks: not uploading points before the manifest, or not bringing
    them, fails this."""
    whole = trained(job(), tmp_path / "whole")
    first = Training(job(), tmp_path / "one", log=lambda _: None, remote=bucket("t"), attempt=(1, 1))
    for _ in range(7):
        first.advance(1)
    first.settle()
    (tmp_path / "two").mkdir()
    (tmp_path / "two" / "log.rank0.txt").write_text("what the rank printed\n")
    second = trained(job(), tmp_path / "two", remote=bucket("t"), attempt=(1, 2))
    assert values(second.points) == values(whole.points) == values(lines(tmp_path / "two"))
    there = at(tmp_path / "three", bucket("t"))
    found, _ = checkpoint.newest(there.inside("checkpoints"))
    assert found is not None
    assert (found.step, found.extra["attempt"]) == (12, [1, 2])
    expected = weights(tmp_path / "whole")
    assert found.model.keys() == expected.keys()
    assert all(torch.equal(value, expected[name]) for name, value in found.model.items())
    names = {name for name in files(bucket("t")) if "/" not in name}
    assert names == {"attempt.json", "job.json", "log.rank0.txt", "points.jsonl", "result.json", "rows.parquet"}
    assert json.loads(there.read("result.json") or "") == second.result
    assert Training(job(), tmp_path / "three", log=lambda _: None, remote=bucket("t")).result == second.result
    first.save()
    with pytest.raises(TakenOver, match=r"attempt 2 \(token 1\)"):
        first.settle()
    with pytest.raises(ValueError, match="holds another job"):
        Training(job(seed=2), tmp_path / "four", log=lambda _: None, remote=bucket("t"))


def test_an_attempt_in_a_bucket_that_was_taken_over_commits_nothing(
    bucket: Callable[[str], str], tmp_path: Path
) -> None:
    """Not even between the files and the manifest. Mutant check: asking only before the files fails this."""
    place = at(tmp_path / "one", bucket("t"))
    mine = Fence(place, (1, 1))
    asked: list[int] = []

    def permit() -> None:
        asked.append(1)
        if len(asked) == 2:
            Fence(at(tmp_path / "two", bucket("t")), (2, 1)).hold()
        mine.hold()

    with pytest.raises(TakenOver):
        save(place.inside("checkpoints"), 5, permit=permit)
    assert checkpoint.steps(place.inside("checkpoints")) == []
    assert manifest.NAME not in {name.rpartition("/")[2] for name in files(bucket("t"))}


def test_any_uri_of_pyarrow_is_a_place(tmp_path: Path) -> None:
    place = at(tmp_path / "here", (tmp_path / "there").as_uri())
    place.write("a", "b")
    save(place.inside("checkpoints"), 5)
    assert checkpoint.steps(tmp_path / "there" / "checkpoints") == [5]
    assert (tmp_path / "there" / "a").read_text() == "b"
    with pytest.raises(ValueError, match="nonsense"):
        at(tmp_path, "nonsense://there")
