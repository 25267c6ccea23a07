import json
import os
import shutil
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs.artifacts import checkpoint, manifest
from jobs.artifacts.storage import Folder


def state(value: float) -> dict[str, Any]:
    weight = torch.full((3, 2), value)
    return {
        "model": {"weight": weight, "tied": weight},
        "optimizer": {"state": {0: {"step": torch.tensor(value)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "extra": {"seconds": value, "untrained": {"knn_accuracy": 0.25}, "points": 3},
    }


def save(folder: Path, step: int, keep: int = 2) -> Path:
    checkpoint.save(folder, step=step, keep=keep, **state(float(step)))
    return folder / manifest.name_of(step)


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found, remarks = checkpoint.newest(tmp_path)
    assert found is not None
    assert remarks == []
    expected = state(7.0)
    assert (found.step, found.extra) == (7, expected["extra"])
    assert all(torch.equal(found.model[name], expected["model"][name]) for name in ("weight", "tied"))
    assert torch.equal(found.optimizer["state"][0]["step"], torch.tensor(7.0))


def test_the_newest_few_are_kept(tmp_path: Path) -> None:
    for step in (5, 10, 999_999, 1_000_000):
        save(tmp_path, step)
    assert checkpoint.steps(tmp_path) == [1_000_000, 999_999]


def test_an_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert checkpoint.newest(tmp_path / "none") == (None, [])


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "manifest.json"])
@pytest.mark.parametrize("damage", ["truncated", "flipped", "missing"])
def test_a_damaged_checkpoint_is_set_aside_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str) -> None:
    """Mutant check: without the comparison of hashes, one flipped bit of the weights goes unnoticed."""
    save(tmp_path, 5)
    path = save(tmp_path, 10) / name
    content = bytearray(path.read_bytes())
    if damage == "missing":
        path.unlink()
    elif damage == "truncated":
        path.write_bytes(content[: len(content) // 2])
    else:
        content[len(content) // 2 if name != "manifest.json" else content.index(b"sha256") + 40] ^= 1
        path.write_bytes(content)
    found, remarks = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.step == 5
    if name != "manifest.json" or damage != "missing":  # without a manifest it was never committed
        assert (tmp_path / "step_000010.bad-1").is_dir()
        assert "step_000010" in remarks[0]


def test_every_checkpoint_damaged_means_none(tmp_path: Path) -> None:
    for step in (5, 10):
        (save(tmp_path, step) / "optimizer.pt").write_bytes(b"")
    found, remarks = checkpoint.newest(tmp_path)
    assert found is None
    assert len(remarks) == 2


def test_a_half_written_checkpoint_is_invisible(tmp_path: Path) -> None:
    save(tmp_path, 5)
    aside = tmp_path / ".step_000010.123"
    aside.mkdir()
    (aside / "model.safetensors").write_bytes(b"half")
    assert checkpoint.steps(tmp_path) == [5]


def test_what_dead_processes_left_half_written_is_removed_and_what_living_ones_write_is_not(tmp_path: Path) -> None:
    """Mutant checks: without the look at the process the second goes too, or none goes."""
    with subprocess.Popen([sys.executable, "-c", ""]) as process:
        process.wait()
    names = [f".step_000010.{socket.gethostname()}.{pid}.0" for pid in (process.pid, os.getpid())]
    for name in (*names, ".step_000010.123", ".step_000010.another.host.1.7"):
        (tmp_path / name).mkdir(parents=True)
    save(tmp_path, 5)
    Folder(tmp_path).clean()
    assert {path.name for path in tmp_path.iterdir()} == {names[1], "step_000005"}


def test_a_snapshot_shares_nothing_with_what_training_changes() -> None:
    """Mutant check: leaving out `copy=True`, or lists, fails this."""
    live = state(1.0)
    live["optimizer"]["history"] = [torch.ones(2), (torch.ones(2), {"deep": torch.ones(2)})]
    taken = checkpoint.snapshot(step=1, **live)
    for tensor in checkpoint._tensors([live["model"], live["optimizer"]]):
        tensor.fill_(9.0)
    live["optimizer"]["param_groups"][0]["lr"] = 9.0
    live["extra"]["seconds"] = 9.0
    seen = [*checkpoint._tensors([taken.model, taken.optimizer])]
    assert len(seen) == 6
    assert all(torch.equal(tensor, torch.ones_like(tensor)) for tensor in seen)
    assert (taken.optimizer["param_groups"][0]["lr"], taken.extra["seconds"]) == (0.1, 1.0)


def test_the_writer_does_one_thing_at_a_time_and_keeps_its_error(tmp_path: Path) -> None:
    """Mutant checks: handing over without waiting for the work before, or an error that is told once, fails this."""
    writer, gate, begun = checkpoint.Writer(), threading.Event(), threading.Event()
    order: list[str] = []
    writer.raise_if_failed()
    writer.wait()

    def first() -> None:
        assert gate.wait(60)
        order.append("first")

    def second() -> None:
        order.append("second")
        raise ZeroDivisionError("mine")

    writer.submit(first)
    writer.raise_if_failed()

    def other() -> None:
        begun.set()
        writer.submit(second)
        order.append("handed over")

    helper = threading.Thread(target=other)
    helper.start()
    assert begun.wait(60)
    assert order == []
    gate.set()
    helper.join()
    for call in (writer.wait, writer.raise_if_failed, writer.wait, partial(writer.submit, first)):
        with pytest.raises(ZeroDivisionError, match="mine"):
            call()
    assert order[0] == "first"
    assert sorted(order[1:]) == ["handed over", "second"]


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    checkpoint.save(tmp_path, step=5, keep=2, **state(6.0))
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.extra["seconds"] == 6.0


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_failed_write_leaves_the_older_one_and_no_rubbish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(tmp_path, 5)
    real = os.fsync

    def full(descriptor: int) -> None:
        with Path("/dev/full").open("wb", buffering=0) as file:
            file.write(b"x")
        real(descriptor)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match=r"checkpoint of step 10 needs .* may be a quota"):
        save(tmp_path, 10)
    monkeypatch.undo()
    assert [path.name for path in tmp_path.iterdir()] == ["step_000005"]


def test_no_pickle_is_run_on_reading(tmp_path: Path) -> None:
    """Mutant check: weights_only=False lets the canary through."""
    path = save(tmp_path, 5)
    canary = tmp_path / "canary"

    class Evil:
        def __reduce__(self) -> Any:
            return (Path.touch, (canary,))

    torch.save({"state": Evil()}, path / "optimizer.pt")
    told = json.loads((path / "manifest.json").read_text())
    told["sha256"]["optimizer.pt"] = manifest.sha256(path / "optimizer.pt")
    (path / "manifest.json").write_text(json.dumps(manifest.sealed(told)))
    found, remarks = checkpoint.newest(tmp_path)
    assert found is None
    assert remarks
    assert not canary.exists()


# Whatever happens to a checkpoint's files


def unsealed(path: Path) -> None:
    """A manifest as earlier versions wrote it."""
    told = json.loads((path / "manifest.json").read_text())
    told.pop("digest", None)
    (path / "manifest.json").write_text(json.dumps(told, indent=1))


@pytest.fixture(scope="module")
def two(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Checkpoints of steps 500 and 400, new/ as they are written now, old/ as they were."""
    folder = tmp_path_factory.mktemp("two")
    for step in (400, 500):
        save(folder / "new", step)
    shutil.copytree(folder / "new", folder / "old")
    for step in (400, 500):
        unsealed(folder / "old" / manifest.name_of(step))
    return folder


def same(found: checkpoint.Checkpoint | None, step: int) -> bool:
    expected = state(float(step))
    return (
        found is not None
        and (found.step, found.extra) == (step, expected["extra"])
        and all(torch.equal(found.model[name], expected["model"][name]) for name in ("weight", "tied"))
        and torch.equal(found.optimizer["state"][0]["step"], torch.tensor(float(step)))
    )


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.pt", "manifest.json"])
@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255), what=st.sampled_from(["xor", "cut", "add"]))
def test_any_one_byte_that_changes_leaves_what_was_saved_or_the_one_before(
    two: Path, tmp_path: Path, name: str, place: float, change: int, what: str
) -> None:
    """Mutant checks: without the manifest's own digest a step of 508 trains on with the weights of 500; without the
    look at its keys, one whose `digest` is misspelt would be taken for an older version's."""
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    shutil.copytree(two / "new", tmp_path / "c")
    path = tmp_path / "c" / "step_000500" / name
    content = path.read_bytes()
    at = int(place * len(content))
    middle = {"xor": bytes([content[at] ^ change]), "cut": b"", "add": bytes([content[at], change])}[what]
    path.write_bytes(content[:at] + middle + content[at + 1 :])
    found, remarks = checkpoint.newest(tmp_path / "c")
    assert same(found, 400 if remarks else 500)
    assert (tmp_path / "c" / "step_000500.bad-1").exists() == bool(remarks)
    step, weights, _, _ = checkpoint.weights(tmp_path / "c")
    assert step == (400 if remarks else 500)
    assert torch.equal(weights["weight"], torch.full((3, 2), float(step)))


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(place=st.floats(0, 1, exclude_max=True), change=st.integers(1, 255))
def test_a_manifest_of_an_older_version_is_read_and_never_believed_with_another_step_or_without_what_training_needs(
    two: Path, tmp_path: Path, place: float, change: int
) -> None:
    """It has no digest: figures of it may change unseen, but not what they are."""
    shutil.rmtree(tmp_path / "c", ignore_errors=True)
    shutil.copytree(two / "old", tmp_path / "c")
    assert same(checkpoint.newest(tmp_path / "c")[0], 500)
    path = tmp_path / "c" / "step_000500" / "manifest.json"
    content = bytearray(path.read_bytes())
    content[int(place * len(content))] ^= change
    path.write_bytes(content)
    found, remarks = checkpoint.newest(tmp_path / "c")
    assert found is not None
    assert found.step == (400 if remarks else 500)
    assert torch.equal(found.model["weight"], torch.full((3, 2), float(found.step)))
    assert found.extra["seconds"] >= 0
    assert [type(value) for value in found.extra["untrained"].values()] == [float]


WRONG: list[tuple[dict[str, Any], str]] = [
    ({"step": 508}, "manifest.json is of step 508"),
    ({"step": 500.0}, "its step is no whole number"),
    ({"step": True}, "its step is no whole number"),
    ({"sha256": {}}, "it names no sha256 of model.safetensors"),
    ({"sha256": []}, "its sha256 is no object"),
    (
        {"sha256": {"model.safetensors": "0", "optimizer.pt": "0", "../step_000400/optimizer.pt": "0"}},
        "a file elsewhere",
    ),
    ({"extra": None}, "its extra is no object"),
    ({"extra": {"untrained": {}}}, "its seconds is no number"),
    ({"extra": {"seconds": -1.0, "untrained": {}}}, "its seconds is no number"),
    ({"extra": {"seconds": float("nan"), "untrained": {}}}, "its seconds is no number"),
    ({"extra": {"seconds": "1", "untrained": {}}}, "its seconds is no number"),
    ({"extra": {"seconds": 1.0}}, "its untrained is no object of numbers"),
    ({"extra": {"seconds": 1.0, "untrained": {"m": "x"}}}, "its untrained is no object of numbers"),
    ({"extra": {"seconds": 1.0, "untrained": {}, "points": -1}}, "its points is no whole number"),
]


@pytest.mark.parametrize(("change", "words"), WRONG)
@pytest.mark.parametrize("seal", [True, False])
def test_what_is_wrong_with_a_manifest_is_said(
    two: Path, tmp_path: Path, change: dict[str, Any], words: str, seal: bool
) -> None:
    shutil.copytree(two / "new", tmp_path / "c")
    path = tmp_path / "c" / "step_000500"
    unsealed(path)
    told = json.loads((path / "manifest.json").read_text()) | change
    (path / "manifest.json").write_text(json.dumps(manifest.sealed(told) if seal else told))
    with pytest.raises(ValueError, match="no sound checkpoint: checkpoint step_000500 is damaged"):
        checkpoint.weights(tmp_path / "c", step=500)
    found, (remark,) = checkpoint.newest(tmp_path / "c")
    assert same(found, 400)
    assert words in remark


@pytest.mark.parametrize(
    "name", ["step_\u00b2", "step_5", "step_" + "9" * 5000, "000500", "step_-00005", "step_+00005"]
)
def test_a_folder_whose_name_is_of_no_checkpoint_is_none(tmp_path: Path, name: str) -> None:
    """Mutant check: `isdigit` takes what `int` does not."""
    path = save(tmp_path, 500)
    assert not manifest.is_step(name)
    if len(name) < 200:
        shutil.copytree(path, tmp_path / name)
    assert checkpoint.steps(tmp_path) == [500]
