"""The device of a rank, and the memory of a trial: its own, whatever its process did before."""

from __future__ import annotations

import gc
import json
import os
import re
import resource
import subprocess
import sys
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from real import HELPERS
from torch import nn

from jobs.config import Execution, JobConfig
from jobs.core import device
from jobs.core.device import (
    TrialMemory,
    device_of,
    forget_peak_memory,
    peak_memory_bytes,
    process_bytes,
    tensor_bytes,
)
from jobs.train import Training
from jobs.workers.group import Rank

CPU = torch.device("cpu")

needs_glibc = pytest.mark.skipif(
    device._glibc() is None or not device._forget_resident_peak(), reason="needs glibc, and Linux's clear_refs"
)


def test_a_cpu_is_used_where_it_is_asked_for_or_there_is_no_gpu() -> None:
    assert device_of(Execution(device="cpu")) == torch.device("cpu")
    if not torch.cuda.is_available():
        assert device_of(Execution()) == torch.device("cpu")
        with pytest.raises(ValueError, match="torch sees no GPU here; use 'auto' or 'cpu'"):
            device_of(Execution(device="cuda"))


def test_a_peak_is_remembered_until_it_is_forgotten() -> None:
    """Mutant check: a peak that is never forgotten fails where the kernel lets a process forget it."""
    cpu = torch.device("cpu")
    forget_peak_memory(cpu)
    before = peak_memory_bytes(cpu)
    block = np.ones(2**26, np.uint8)  # 64 MiB, above what an allocator keeps
    del block
    assert peak_memory_bytes(cpu) > before + 2**25
    forget_peak_memory(cpu)
    assert peak_memory_bytes(cpu) < before + 2**25


# A trial's own

MB = 2**20


def numbers(megabytes: int) -> np.ndarray[Any, np.dtype[np.uint8]]:
    """An array that takes so much."""
    return np.ones(megabytes * MB, np.uint8)


JOB: dict[str, Any] = {
    "task": "image",
    "seed": 1,
    "budget": {"steps": 3},
    "data": {"train": "digits[:1000]", "confirm": "digits[1000:1200]"},
    "model": {"name": "resnet", "width": 32, "layers": 2},
    "evaluate": {"times": 1, "probe": False, "references": 200},
}


def trained(folder: Path, **changes: Any) -> float:
    """The peak of a job, trained in this process."""
    training = Training(JobConfig.model_validate(JOB | changes), folder, log=lambda _: None)
    while training.result is None:
        training.advance(10)
    return float(training.result["peak_memory_mb"])


def batches(folder: Path, sizes: list[int], **changes: Any) -> list[float]:
    """Peaks of jobs with these batches, one after the other in one process."""
    return [trained(folder / f"{place}", batch={"size": size}, **changes) for place, size in enumerate(sizes)]


def in_a_fresh_process(folder: Path, sizes: list[int], **changes: Any) -> list[float]:
    """The same in a process that has trained nothing yet."""
    code = (
        "import json, sys; from pathlib import Path; import test_device; "
        "print(json.dumps(test_device.batches(Path(sys.argv[1]), *json.loads(sys.argv[2]), **json.loads(sys.argv[3]))))"
    )
    arguments = [str(folder), json.dumps([sizes]), json.dumps(changes)]
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": HELPERS},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    found: list[float] = json.loads(done.stdout.splitlines()[-1])
    return found


SENTENCES: dict[str, Any] = {
    "task": "sentence",
    "data": {"train": "sentences.csv", "confirm": "scored.csv"},
    "model": {"name": "bert", "width": 128, "layers": 2},
}


def write_sentences(folder: Path) -> dict[str, Any]:
    """Pairs of up to forty words, and a job on them: batches differ in how long their longest sentence is."""
    words = np.random.default_rng(1).integers(0, 500, (600, 2, 40))
    texts = [[" ".join(f"w{word}" for word in text[: 2 + row % 39]) for text in pair] for row, pair in enumerate(words)]
    pairs = "\n".join(f"{left},{right}" for left, right in texts)
    scored = "\n".join(f"{left},{right},{row % 5}" for row, (left, right) in enumerate(texts[:50]))
    (folder / "train.csv").write_text(f"anchor,positive\n{pairs}\n")
    (folder / "scored.csv").write_text(f"sentence1,sentence2,score\n{scored}\n")
    return SENTENCES | {
        "data": {"train": str(folder / "train.csv"), "confirm": str(folder / "scored.csv")},
        "evaluate": {"times": 1, "probe": False},
    }


@pytest.mark.soak
@needs_glibc
@pytest.mark.slow
@pytest.mark.parametrize("kind", ["images on two threads", "sentences"])
def test_the_peak_of_a_trial_is_its_own_whatever_ran_before_it(kind: str, tmp_path: Path) -> None:
    """Small, big, small in one process, and big, small in another: every small one within 3 %.

    Mutant check: the highest resident memory since the trial began fails, by up to 60 %; so does handing memory back
    between trials, by up to 6 %; so does leaving the heap its room.
    """
    changes = write_sentences(tmp_path) if kind == "sentences" else {"execution": {"threads": 2}}
    first, big, third = in_a_fresh_process(tmp_path / "small first", [32, 256, 32], **changes)
    big_again, after = in_a_fresh_process(tmp_path / "big first", [256, 32], **changes)
    assert third == pytest.approx(first, rel=0.03)
    assert after == pytest.approx(first, rel=0.03)
    assert big_again == pytest.approx(big, rel=0.03)
    assert big > 1.1 * first


@needs_glibc
def test_exact_accumulation_takes_little_more_than_a_small_batch_also_after_a_big_one(tmp_path: Path) -> None:
    """What the shipped study of accumulation shows. Mutant check: the highest resident memory makes them all alike."""
    big = trained(tmp_path / "big", batch={"size": 256})
    chunked = trained(tmp_path / "chunked", batch={"size": 256}, execution={"micro": 32, "verify": False})
    small = trained(tmp_path / "small", batch={"size": 32})
    own = process_bytes() / 2**20
    assert small - own < chunked - own < (small - own) * 1.5 < (big - own) / 2


@needs_glibc
def test_what_a_step_takes_counts_and_not_what_was_there_before_or_is_set_up_once() -> None:
    """Mutant checks: without the second step in place of the first, the 90 MB count; without a measurement of larger
    steps, the 60 do not."""
    there = numbers(200)
    assert needed_megabytes() == pytest.approx([100, 50, 50, 70, 70], abs=3)
    assert peak_memory_bytes(CPU) >= 200 * MB
    del there


def needed_megabytes() -> list[float]:
    """What a trial needs after each of five steps, which find 10 MB and take 90, 40, 80, 60 and 80, on 1, 1, 1, 2 and 2
    pairs."""
    memory = TrialMemory(CPU)
    needed = []
    for pairs, megabytes in [(1, 90), (1, 40), (1, 80), (2, 60), (2, 80)]:
        with memory.step(size=lambda pairs=pairs: pairs, held=lambda: 10 * MB):  # type: ignore[misc]
            work = numbers(megabytes)
            del work
        needed.append((memory.needed() - process_bytes()) / MB)
    return needed


@pytest.mark.few(1)
@needs_glibc
@pytest.mark.parametrize(
    "environment",
    [
        {"MALLOC_MMAP_MAX_": "0"},
        {"GLIBC_TUNABLES": "glibc.malloc.mmap_max=0"},
        {"MALLOC_MMAP_MAX_": "3", "MALLOC_TRIM_THRESHOLD_": "-1", "MALLOC_MMAP_THRESHOLD_": str(2**33)},
    ],
)
def test_a_step_is_measured_whatever_the_environment_asks_of_glibc(environment: dict[str, str]) -> None:
    """Some clusters have every block come from the heap. Mutant check: without M_MMAP_MAX among the options, the room
    of the heap has no end there. Address space is limited, should it have none."""
    code = (
        "import resource; resource.setrlimit(resource.RLIMIT_AS, (2**35, 2**35)); "
        "import json, test_device; print(json.dumps(test_device.needed_megabytes()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(__file__).parent,
        env=os.environ | {"PYTHONPATH": HELPERS} | environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=100,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1]) == pytest.approx([100, 50, 50, 70, 70], abs=3)


@needs_glibc
def test_where_no_block_gets_pages_of_its_own_the_heap_is_given_back_and_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """As where the kernel maps no more for this process. Mutant check: without an end to what is taken, this takes all
    addresses there are; without the giving up, what is measured is what the heap already had."""
    monkeypatch.setitem(device.MEASURING, device.M_MMAP_MAX, 0)
    memory = TrialMemory(CPU)
    _, most = resource.getrlimit(resource.RLIMIT_AS)
    resource.setrlimit(resource.RLIMIT_AS, (device._resident("VmSize") + 2**36, most))
    before, peak = device._resident("VmSize"), device._resident("VmPeak")
    room = device._resident("VmData")
    try:
        for _ in range(3):
            with memory.step(size=lambda: 1, held=lambda: 0) as seconds:
                block = numbers(64)
            assert seconds == 0
            del block
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
    assert memory.needed() == memory.reached()
    assert device._resident("VmSize") < before + 200 * MB
    assert device._resident("VmPeak") < max(peak, before + room) + 200 * MB


@given(
    asked=st.dictionaries(st.sampled_from([*device.NAMES]), st.integers(-1, 2**40)),
    as_tunables=st.booleans(),
    noise=st.sampled_from(["", "glibc.malloc.arena_max=1", "glibc.malloc.mmap_max", "=", ":"]),
)
def test_what_the_environment_asks_of_glibc_is_what_it_has_after_a_step(
    asked: dict[int, int], as_tunables: bool, noise: str
) -> None:
    """Mutant check: the usual options whatever was asked for make large blocks slower, or faster, than asked for."""
    if as_tunables:
        text = ":".join([noise, *(f"glibc.malloc.{device.NAMES[option]}={value}" for option, value in asked.items())])
        environment = {"GLIBC_TUNABLES": text, "MALLOC_MMAP_MAX_": "7" if device.M_MMAP_MAX in asked else ""}
    else:
        environment = {f"MALLOC_{device.NAMES[option].upper()}_": str(value) for option, value in asked.items()}
        environment["GLIBC_TUNABLES"] = noise
    found = device._asked_of_glibc(environment)
    assert found == device.USUAL | {option: min(value, 2**31 - 1) for option, value in asked.items()}


@needs_glibc
def test_what_was_reached_between_steps_and_before_the_first_is_not_forgotten() -> None:
    """As in an evaluation. Mutant checks: a peak that is begun anew before it is saved, or at every step."""
    memory = TrialMemory(CPU)
    before, large = peak_memory_bytes(CPU), [250, 200, 150, 100]
    for pairs, megabytes in zip([1, 1, 2, 1], large, strict=True):
        work = numbers(megabytes)
        del work
        with memory.step(size=lambda pairs=pairs: pairs, held=lambda: 0):  # type: ignore[misc]
            pass
        assert memory.reached() >= before + 240 * MB
    assert peak_memory_bytes(CPU) >= before + 90 * MB, "a step that is not measured begins nothing anew"


# What is let go of goes


@pytest.mark.parametrize("kind", ["images", "sentences"])
def test_a_training_that_is_let_go_of_frees_its_model_at_once(kind: str, tmp_path: Path) -> None:
    """Or two of them exist where the next one begins. Mutant check: anything that the training owns and that refers to
    it waits for the garbage collector."""
    changes = write_sentences(tmp_path) if kind == "sentences" else {}
    config = JobConfig.model_validate(JOB | changes | {"batch": {"size": 16}})
    gc.collect()
    gc.disable()
    try:
        training = Training(config, tmp_path / "trial", log=lambda _: None)
        while training.result is None:
            training.advance(10)
        gone = [weakref.ref(one) for one in (training, training.model, training.optimizer)]
        del training
        assert [one() for one in gone] == [None] * 3
    finally:
        gc.enable()


class Seen(Exception):
    """Ends a test where the second model would be built."""


def test_a_model_that_refers_to_itself_is_gone_before_the_next_is_built(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As some loaded encoders do. Mutant check: collecting garbage only once the next trial is loaded."""
    rank = Rank(0)
    job = JobConfig.model_validate(JOB | {"batch": {"size": 16}}).model_dump(mode="json")
    rank.begin(job, str(tmp_path / "first"), None, None, None)
    assert isinstance(rank._training, Training)
    model = rank._training.model
    vars(model)["itself"] = [model]
    gone = weakref.ref(model)
    del model
    rank.end()
    gc.disable()
    try:

        def build(*_: Any, **__: Any) -> None:
            raise Seen("gone" if gone() is None else "still there")

        monkeypatch.setattr("jobs.models.build", build)
        with pytest.raises(Seen, match="gone"):
            rank.begin(job, str(tmp_path / "second"), None, None, None)
    finally:
        gc.enable()
        rank.end()


@pytest.mark.parametrize("where", ["jobs.data.task_of", "jobs.models.build", "jobs.metrics.evaluate.evaluate"])
def test_a_rank_that_gets_no_memory_while_it_loads_is_told_with_its_peak(
    where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant check: asking the training, which is none before its first evaluation is over, says 0 MB."""

    def fail(*_: Any, **__: Any) -> None:
        raise MemoryError("no more")

    monkeypatch.setattr(where, fail)
    rank = Rank(0)
    assert rank.peak_mb() == 0
    job = JobConfig.model_validate(JOB | {"batch": {"size": 16}}).model_dump(mode="json")
    with pytest.raises(MemoryError) as caught:
        rank.begin(job, str(tmp_path), None, None, None)
    (note,) = caught.value.__notes__
    assert re.fullmatch(r"peak memory of the trial [1-9][\d,]* MB", note)
    rank.end()
    assert rank.peak_mb() == 0


@pytest.mark.parametrize("without", ["clear_refs", "glibc"])
def test_where_a_step_cannot_be_measured_it_is_what_was_reached(without: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Another system, another C library or allocator, a container that forbids it."""
    if without == "glibc":
        monkeypatch.setattr(device, "_glibc", lambda: None)
    else:
        monkeypatch.setattr(device, "CLEAR_REFS", Path("/nowhere/clear_refs"))
    memory = TrialMemory(CPU)
    for _ in range(2):
        with memory.step(size=lambda: 1, held=lambda: 0) as seconds:
            block = numbers(64)
        assert seconds == 0
    assert memory.needed() == memory.reached() >= 64 * MB
    del block


@needs_glibc
def test_a_step_that_raises_gives_the_heap_its_room_back() -> None:
    """Mutant check: without the `finally`, what lay free in the heap is lost, and its size in addresses grows."""
    libc = device._glibc()
    assert libc is not None
    device._tune(libc, device.USUAL)
    blocks = [numbers(20) for _ in range(10)]
    end = numbers(1)  # so that they lie free in the heap, and not behind its end
    before = device._resident("VmSize")
    del blocks
    with pytest.raises(MemoryError), TrialMemory(CPU).step(size=lambda: 1, held=lambda: 0):
        raise MemoryError
    blocks = [numbers(20) for _ in range(10)]
    assert device._resident("VmSize") < before + 100 * MB
    del blocks, end


def test_every_tensor_that_a_step_finds_counts_once() -> None:
    """Weights, buffers, the optimizer's state and what is left of gradients; tied weights are one tensor."""
    model = nn.Sequential(nn.Linear(100, 100, bias=False), nn.Linear(100, 100, bias=False), nn.BatchNorm1d(100))
    model[1].weight = model[0].weight
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    norm = 4 * (4 * 100) + 8
    assert tensor_bytes(model, optimizer) == 40_000 + norm
    model(torch.ones(2, 100)).sum().backward()
    optimizer.step()
    assert tensor_bytes(model, optimizer) == 3 * 40_000 + norm + 2 * (2 * 400)
