"""What a trial uses of the machine while it trains: CPU, memory, GPU, under the names that MLflow shows as system
metrics."""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Sequence
from pathlib import Path

import torch

PREFIX = "system/"
"""Of the keys: how it was computed, never what."""

UNKNOWN = -1


class Meter:
    """What this process has used since it was looked at before."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._at, self._cpu = time.perf_counter(), time.process_time()
        self._asks_nvml = device.type == "cuda"

    def look(self) -> list[int]:
        """Measure CPU in hundredths of a percent of one core, resident bytes, GPU in percent, GPU bytes; UNKNOWN where
        there is none. Whole numbers, so that ranks can exchange them in one header (collectives.agree)."""
        at, cpu = time.perf_counter(), time.process_time()
        share = (cpu - self._cpu) / max(at - self._at, 1e-9)
        self._at, self._cpu = at, cpu
        on_gpu = self._device.type == "cuda"
        reserved = torch.cuda.memory_reserved(self._device) if on_gpu else UNKNOWN
        return [round(1e4 * share), _resident_bytes(), self._gpu_percent(), reserved]

    def _gpu_percent(self) -> int:
        if not self._asks_nvml:
            return UNKNOWN
        try:
            return int(torch.cuda.utilization(self._device))
        except Exception:  # noqa: BLE001 - NVML raises errors of its own, and without it a trial trains all the same
            self._asks_nvml = False
            return UNKNOWN


def points(looks: Sequence[Sequence[int]]) -> dict[str, float]:
    """Compute the points of one step from every rank's `look`: shares are means over the ranks that know theirs, memory
    is their sum."""
    cpu, memory, gpu, gpu_memory = (
        [value for value in column if value != UNKNOWN] for column in zip(*looks, strict=True)
    )
    usage = {
        "cpu_utilization_percentage": sum(cpu) / 100 / len(cpu),
        "memory_usage_megabytes": sum(memory) / 2**20,
    }
    if gpu:
        usage["gpu_utilization_percentage"] = sum(gpu) / len(gpu)
    if gpu_memory:
        usage["gpu_memory_usage_megabytes"] = sum(gpu_memory) / 2**20
    return {PREFIX + key: float(value) for key, value in usage.items()}


def _resident_bytes() -> int:
    try:
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):  # not Linux: the peak stands in
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
