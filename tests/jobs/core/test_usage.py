"""What a trial uses of the machine, measured on this process and in a real training of two ranks."""

from __future__ import annotations

import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from jobs.config import JobConfig
from jobs.core.usage import UNKNOWN, Meter, points
from jobs.train import Training

KEYS = {"system/cpu_utilization_percentage", "system/memory_usage_megabytes"}


def test_a_process_that_computes_uses_a_core_and_one_that_sleeps_none() -> None:
    """Mutant check: a meter that does not begin anew at each look fails this."""
    meter = Meter(torch.device("cpu"))
    began = time.process_time()
    while time.process_time() - began < 0.3:
        sum(range(1000))
    busy, _, *gpu = meter.look()
    time.sleep(0.5)
    idle, *_ = meter.look()
    assert busy > 2 * idle, "in hundredths of a percent"
    assert idle < 3000
    assert gpu == [UNKNOWN, UNKNOWN]


def test_memory_is_what_is_resident() -> None:
    meter = Meter(torch.device("cpu"))
    (_, before, *_), held = meter.look(), np.ones(64 * 2**20, np.uint8)
    (_, after, *_) = meter.look()
    assert 0.9 * held.nbytes < after - before < 2 * held.nbytes


def test_shares_are_means_over_ranks_and_memory_is_a_sum() -> None:
    """A rank without NVML does not count into the mean. Mutant check: counting UNKNOWN as a number fails this."""
    mib = 2**20
    found = points([[5000, 100 * mib, 80, 10 * mib], [7000, 50 * mib, UNKNOWN, 6 * mib]])
    assert found == {
        "system/cpu_utilization_percentage": 60.0,
        "system/memory_usage_megabytes": 150.0,
        "system/gpu_utilization_percentage": 80.0,
        "system/gpu_memory_usage_megabytes": 16.0,
    }
    assert points([[100, mib, UNKNOWN, UNKNOWN]]).keys() == KEYS


def _rank(folder: Path, rank: int) -> tuple[dict[str, list[float]], Any]:
    job: dict[str, Any] = {
        "task": "image",
        "budget": {"steps": 6},
        "data": {"train": "digits[:300]", "confirm": "digits[300:400]"},
        "model": {"name": "resnet", "width": 8, "layers": 1},
        "batch": {"size": 16},
        "evaluate": {"times": 2, "probe": False, "references": 300},
        "execution": {"ranks": 2},
    }
    training = Training(JobConfig.model_validate(job), folder, group=dist.group.WORLD, log=lambda _: None)
    while training.result is None:
        training.advance(100)
    told: dict[str, list[float]] = {}
    for point in training.points:
        if point.key.startswith("system/"):
            told.setdefault(point.key, []).append(point.value)
    return told, training.result


def test_a_trial_tells_what_all_of_its_ranks_use_beside_each_training_point(tmp_path: Path, spawn_ranks: Any) -> None:
    first, second = spawn_ranks(2, partial(_rank, tmp_path))
    told, result = first
    assert told.keys() == KEYS
    assert {len(values) for values in told.values()} == {6}
    assert second[0] == told, "ranks agree"
    assert told["system/memory_usage_megabytes"][-1] > 2 * 100, "torch alone takes more than that, twice"
    assert max(told["system/cpu_utilization_percentage"]) > 1
    assert not any(key.startswith("system/") for key in result["metrics"]), "it is no metric of the encoder"
