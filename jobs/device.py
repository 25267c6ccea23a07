"""The device a rank computes on, and the most memory a trial has taken there."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import resource
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn

from jobs.config import Execution

CLEAR_REFS = Path("/proc/self/clear_refs")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Of glibc's mallopt: how much may lie free at the end of the heap, and from which size on a block that the heap has no
room for gets pages of its own."""

OWN_PAGES = 2**17
"""That size while a step is measured: glibc's first."""

USUAL = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26}
"""What glibc itself arrives at once large blocks have come and gone, and stays at."""


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


class TrialMemory:
    """The most memory that one trial's steps need on this rank, whatever its process did before.

    On a GPU that is what was allocated. On a CPU it is the process as it was before its first trial, and what training
    adds: parameters and buffers, the optimizer's state, and the most that a step takes beside them, which is its
    inputs, activations and gradients. What a process keeps from trial to trial (data, libraries loaded on the way, and
    memory that was freed and not handed back, which grows with the largest trial) does not count.

    held: bytes of the tensors that a step finds.
    """

    def __init__(self, device: torch.device, held: Callable[[], int]) -> None:
        self._device, self._held = device, held
        self._steps, self._largest = 0, 0
        self._reached, self._needed = 0, 0
        forget_peak_memory(device)

    def reached(self) -> int:
        """The most bytes at any time so far: allocated on a GPU, resident in this process on a CPU."""
        return max(self._reached, peak_memory_bytes(self._device))

    def needed(self) -> int:
        """The most bytes that a step has needed so far; where that cannot be measured, what was reached."""
        return self._needed or self.reached()

    @contextlib.contextmanager
    def step(self, size: Callable[[], int]) -> Iterator[float]:
        """Measure what happens inside, an optimizer step, if it may need more than those before: `size` says how much
        of its data is computed with at once, and is asked only if that matters. Yields the seconds that getting ready
        took.

        The second step replaces the first, which has no optimizer's state yet, and during which libraries set
        themselves up.
        """
        began = time.perf_counter()
        self._steps += 1
        early = self._steps <= 2
        on_gpu = self._device.type == "cuda"
        if not on_gpu:
            pairs = size() if _can_measure() else 0
            if not _can_measure() or not (early or pairs > self._largest):
                yield 0.0
                return
            self._largest = pairs if early else max(pairs, self._largest)
        self._reached = self.reached()
        with contextlib.nullcontext() if on_gpu else _heap_without_room():
            _start_counting(self._device)
            before = 0 if on_gpu else peak_memory_bytes(self._device) - process_bytes() - self._held()
            yield time.perf_counter() - began
            needed = peak_memory_bytes(self._device) - before
        self._needed = needed if early else max(needed, self._needed)


def tensor_bytes(model: nn.Module, optimizer: torch.optim.Optimizer) -> int:
    """What parameters, buffers, gradients and the optimizer's state take now, each storage once."""
    own = [*model.parameters(), *model.buffers()]
    own += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    own += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in own}
    return sum(storages.values())


def forget_peak_memory(device: torch.device) -> None:
    """Hand back what earlier trials of this process have left, and count peaks from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.empty_cache()
    _start_counting(device)


def peak_memory_bytes(device: torch.device) -> int:
    """The most memory since `forget_peak_memory`: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def process_bytes() -> int:
    """What this process held when it was asked for the first time; called before its first trial loads anything."""
    return _resident("VmRSS")


def _start_counting(device: torch.device) -> None:
    """Begin the peak anew, at what is in use now."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        _hand_back()
        _forget_resident_peak()


def _hand_back() -> None:
    pa.default_memory_pool().release_unused()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _forget_resident_peak() -> bool:
    """Whether Linux begins the peak of this process anew; where it does not, that of all its life is all there is."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _heap_without_room() -> Iterator[None]:
    """Have every larger block take pages of its own, which go back to the system with it.

    glibc takes a block from what is free in its heap, if there is room, and what is freed there stays resident: how
    much that is depends on everything that has ever been in the heap. So its room is taken, which costs no memory, as
    nothing is written there. Such blocks take longer, which is why this is for a few steps.
    """
    libc = _glibc()
    assert libc is not None
    taken = []
    _tune(libc, {M_MMAP_THRESHOLD: OWN_PAGES, M_TRIM_THRESHOLD: OWN_PAGES})
    try:
        size = 2**26
        while size >= OWN_PAGES:
            block = libc.malloc(size)
            if block and not _has_own_pages(block):
                taken.append(block)
            else:
                libc.free(block)
                size //= 2
        yield
    finally:
        for block in taken:
            libc.free(block)
        _tune(libc, USUAL)


def _has_own_pages(block: int) -> bool:
    """Whether glibc has mapped a block by itself: a bit of the size, which stands ahead of the block."""
    word = ctypes.c_size_t
    return bool(word.from_address(block - ctypes.sizeof(word)).value & 2)


def _tune(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


def _can_measure() -> bool:
    """Whether what a step needs can be told from what the process had before."""
    return _glibc() is not None and _forget_resident_peak()


def _resident(name: str) -> int:
    """Bytes by their name in /proc/self/status; 0 on other systems."""
    try:
        return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """The C library, if it is glibc and memory comes from it; else None."""
    try:
        libc, process = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        its, used = (ctypes.cast(library.malloc, ctypes.c_void_p).value for library in (libc, process))
        can = libc.malloc_trim and libc.mallopt
    except (AttributeError, OSError, TypeError):
        return None
    return libc if can and its == used else None  # not the same: another allocator was loaded ahead of it
