"""Embeddings that are kept are those that encoding anew gives, bit for bit, or they are not taken."""

from __future__ import annotations

import os
import sys
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import SpawnRanks

from jobs import models
from jobs.config import JobConfig, components
from jobs.data.tasks import task_of
from jobs.metrics import kept
from jobs.metrics.evaluate import Encoder, evaluate


def job_of(*, samples: int = 0, **more: Any) -> JobConfig:
    own: dict[str, Any] = {
        "task": "image",
        "budget": {"samples": samples},
        "data": {"train": "digits[:60]", "confirm": "digits[60:100]"},
        "model": {"name": "resnet", "width": 4, "layers": 1},
        "batch": {"size": 12},
        "evaluate": {"after": "whitening", "batch": 16},
    }
    return JobConfig.model_validate(own | more)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path))
    return tmp_path / "embeddings"


def measured(config: JobConfig, group: Any = None) -> tuple[dict[str, float], int]:
    """What an evaluation says, and how many batches were encoded for it."""
    model = models.build(config, image_shape=(1, 8, 8))
    encoded: list[int] = []
    model.encoder.register_forward_hook(lambda *_: encoded.append(1))
    return evaluate(model, task_of(config).judged(), job=config, group=group), len(encoded)


def test_another_setting_is_judged_on_what_was_encoded_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Bit for bit as without. Mutant check: without the weights in the identity another seed finds these."""
    settings = [{"gamma": 0.5}, {"gamma": 1.0}, {"k": 4, "beta": 0.0}]
    jobs = [job_of(evaluate={"after": "whitening", "after_options": one, "batch": 16}) for one in settings]
    seen = [measured(job) for job in jobs]
    assert [bool(count) for _, count in seen] == [True, False, False]
    assert folder.stat().st_mode & 0o077 == 0
    monkeypatch.setenv("ORCHESTRATOR_EMBEDDINGS_MB", "0")
    anew = [measured(job) for job in jobs]
    assert [said for said, _ in anew] == [said for said, _ in seen]
    assert all(count for _, count in anew)


@pytest.mark.parametrize(
    "other",
    [
        {"seed": 1},
        {"data": {"train": "digits[:61]", "confirm": "digits[60:100]"}},
        {"model": {"name": "resnet", "width": 4, "layers": 1, "precision": "fp64"}},
        {"evaluate": {"after": "whitening", "batch": 17}},
        {"execution": {"threads": 2}},
    ],
    ids=["weights", "rows", "precision", "batches", "threads"],
)
def test_what_decides_a_bit_decides_what_is_found(other: dict[str, Any]) -> None:
    measured(job_of())
    assert measured(job_of(**other))[1]


OWN = """
import torch

class Own(torch.nn.Module):
    def __init__(self, image_shape):
        super().__init__()
        self.width = 8
        self.factor = torch.nn.Parameter(torch.ones(8))

    def forward(self, pixel_values):
        return (pixel_values.flatten(1)[:, 16:24] * self.factor + {shift})[:, :, None, None]
"""


@pytest.mark.parametrize("carried", [True, False], ids=["with the run", "installed"])
def test_code_of_ones_own_decides_what_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, carried: bool) -> None:
    """An encoder whose weights stay while its module changes: what comes with a run counts by all that it holds, and of
    other code nothing is known, so nothing is kept. Mutant check: without the code in the identity the embeddings of
    the former module are found."""
    (lab := tmp_path / "lab").mkdir()
    monkeypatch.syspath_prepend(lab)
    monkeypatch.setenv("ORCHESTRATOR_CODE", str(lab) if carried else "")
    monkeypatch.setattr(sys, "dont_write_bytecode", True)  # two versions are written within a second
    seen = []
    for shift in (0, 0, 1):
        (lab / "keptlab.py").write_text(OWN.format(shift=shift))
        monkeypatch.delitem(sys.modules, "keptlab", raising=False)
        components._called.cache_clear()  # as in another process
        said, encoded = measured(job_of(model={"name": "keptlab:Own"}, evaluate={"batch": 16}))
        seen.append((said["uniformity"], bool(encoded)))
    assert seen[0][0] == seen[1][0] != seen[2][0]
    assert [encoded for _, encoded in seen] == [True, not carried, True]


def test_a_training_keeps_nothing(folder: Path) -> None:
    """Its weights change. Mutant check: kept whatever the budget is."""
    measured(job_of(samples=24))
    assert not folder.exists()


def test_a_file_that_is_not_whole_is_encoded_anew(folder: Path) -> None:
    """Cut short, a bit turned, empty; and afterwards it is whole again."""
    expected, _ = measured(job_of())
    for spoilt in (lambda c: c[:-7], lambda c: c[:200] + bytes([c[200] ^ 1]) + c[201:], lambda _: b""):
        for path in folder.iterdir():
            path.write_bytes(spoilt(path.read_bytes()))
        assert measured(job_of())[0] == expected
    assert measured(job_of())[1] == 0


def test_the_oldest_go_and_what_a_kill_has_left_goes_too(folder: Path) -> None:
    rows = torch.zeros(1000, 32)
    folder.mkdir()
    left, fresh = folder / ".a.host.1.0", folder / ".b.host.2.0"
    for path in (left, fresh):
        path.write_bytes(b"half")
    os.utime(left, (time.time() - 2 * kept.LEFTOVER_S,) * 2)
    size = 1000 * 32 * 4 + 160
    for number in range(5):
        kept.write(folder / str(number), rows, bound=3 * size)
        os.utime(folder / str(number), (number, number))
        if number == 2:
            assert kept.read(folder / "0") is not None  # and so it is the newest now
    assert sorted(path.name for path in folder.iterdir()) == [".b.host.2.0", "0", "3", "4"]
    kept.write(folder / "5", rows, bound=size)
    assert not (folder / "5").exists()


def test_many_writers_at_once_leave_a_whole_file(folder: Path) -> None:
    rows = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0))
    path, seen = folder / "same", []

    def write_and_read() -> None:
        for _ in range(20):
            kept.write(path, rows, bound=2**30)
            known = kept.read(path)
            seen.append(known is not None and torch.equal(known, rows))

    threads = [threading.Thread(target=write_and_read) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert seen == [True] * 80
    assert [one.name for one in folder.iterdir()] == ["same"]


def test_a_place_that_cannot_be_written_keeps_nothing_and_ends_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path / "file"))
    first, again = measured(job_of()), measured(job_of())
    assert first == again
    assert first[1]
    monkeypatch.setenv("ORCHESTRATOR_EMBEDDINGS_MB", "2 GB")
    with pytest.raises(ValueError, match=r"'2 GB' is no whole number of megabytes, such as 2048"):
        measured(job_of())


def on_rank(scratch: Path, lacking: int, rank: int) -> tuple[dict[str, float], int]:
    """A rank without the file has all encode again: nobody waits for another one."""
    os.environ["ORCHESTRATOR_SCRATCH"] = str(scratch / str(rank))
    config = job_of(execution={"ranks": dist.get_world_size()})
    measured(config, dist.group.WORLD)
    if rank == lacking:
        for path in kept.place().iterdir():
            path.unlink()
    return measured(config, dist.group.WORLD)


@pytest.mark.parametrize("lacking", [1, 9], ids=["one lacks it", "all have it"])
def test_ranks_take_it_where_all_have_it(spawn_ranks: SpawnRanks, tmp_path: Path, lacking: int) -> None:
    alone, _ = measured(job_of())
    seen = spawn_ranks(2, partial(on_rank, tmp_path, lacking), timeout_s=200)
    assert [said for said, _ in seen] == [alone] * 2
    assert all(bool(count) == (lacking == 1) for _, count in seen)


def test_embeddings_that_are_not_finite_are_not_kept(folder: Path) -> None:
    model = models.build(job_of(), image_shape=(1, 8, 8)).eval()
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
        encode = kept.Kept(Encoder(model, 16), "identity")
        assert torch.isnan(encode({"pixel_values": torch.zeros(3, 1, 8, 8)})).all()
    assert not folder.exists()
