import json
import os
import socket
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

from jobs import checkpoint, manifest
from jobs.storage import Folder


def state(value: float) -> dict[str, Any]:
    weight = torch.full((3, 2), value)
    return {
        "model": {"weight": weight, "tied": weight},
        "optimizer": {"state": {0: {"step": torch.tensor(value)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
        "extra": {"seconds": value},
    }


def save(folder: Path, step: int, keep: int = 2) -> Path:
    checkpoint.save(folder, step=step, keep=keep, **state(float(step)))
    return folder / manifest.name_of(step)


def test_what_is_read_is_what_was_written_bit_for_bit(tmp_path: Path) -> None:
    save(tmp_path, 7)
    found, remarks = checkpoint.newest(tmp_path)
    assert found is not None
    assert remarks == []
    assert (found.step, found.extra) == (7, {"seconds": 7.0})
    expected = state(7.0)
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
    writer.look()
    writer.settle()

    def first() -> None:
        assert gate.wait(60)
        order.append("first")

    def second() -> None:
        order.append("second")
        raise ZeroDivisionError("mine")

    writer.hand_over(first)
    writer.look()

    def other() -> None:
        begun.set()
        writer.hand_over(second)
        order.append("handed over")

    helper = threading.Thread(target=other)
    helper.start()
    assert begun.wait(60)
    assert order == []
    gate.set()
    helper.join()
    for call in (writer.settle, writer.look, writer.settle, partial(writer.hand_over, first)):
        with pytest.raises(ZeroDivisionError, match="mine"):
            call()
    assert order[0] == "first"
    assert sorted(order[1:]) == ["handed over", "second"]


def test_the_same_step_can_be_written_again(tmp_path: Path) -> None:
    save(tmp_path, 5)
    checkpoint.save(tmp_path, step=5, keep=2, **state(6.0))
    found, _ = checkpoint.newest(tmp_path)
    assert found is not None
    assert found.extra == {"seconds": 6.0}


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
    (path / "manifest.json").write_text(json.dumps(told))
    found, remarks = checkpoint.newest(tmp_path)
    assert found is None
    assert remarks
    assert not canary.exists()
