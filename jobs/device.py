"""The device a rank computes on, and the most memory a trial has taken there."""

from __future__ import annotations

import os
import resource
from pathlib import Path

import torch

from jobs.config import Execution


def device_of(execution: Execution) -> torch.device:
    """This rank's device. Raises ValueError where a GPU is asked for and there is none."""
    if execution.device == "cuda" and not torch.cuda.is_available():
        raise ValueError("execution.device = 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    if execution.device == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    # cuDNN would round what fp32 convolutions take to 10 bits; fp32 is fp32 here, as it is for matrix products.
    torch.backends.cudnn.allow_tf32 = False
    device = torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())
    # NCCL, and what else asks for the current device, must mean this one.
    torch.cuda.set_device(device)
    return device


def forget_peak_memory(device: torch.device) -> None:
    """Begin anew: peaks are per trial, while the process may have trained others before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:  # not Linux, or not allowed: the peak is then the process's own
        return


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory since `forget_peak_memory`: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
