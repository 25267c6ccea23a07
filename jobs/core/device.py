"""The device a rank computes on, and the most memory a trial has taken there."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import gc
import os
import resource
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path

import pyarrow as pa
import torch
from torch import nn

from jobs.config import Execution

CLEAR_REFS = Path("/proc/self/clear_refs")

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD, M_MMAP_MAX = -1, -3, -4
"""Of glibc's mallopt: how much may lie free at the end of the heap, from which size on a block that the heap has no
room for gets pages of its own, and how many blocks may have such."""

NAMES = {M_TRIM_THRESHOLD: "trim_threshold", M_MMAP_THRESHOLD: "mmap_threshold", M_MMAP_MAX: "mmap_max"}
"""Of the same in the environment."""

OWN_PAGES = 2**17
"""From that size on while a step is measured: glibc's first."""

MEASURING = {M_MMAP_THRESHOLD: OWN_PAGES, M_TRIM_THRESHOLD: OWN_PAGES, M_MMAP_MAX: 2**16}

USUAL = {M_MMAP_THRESHOLD: 2**25, M_TRIM_THRESHOLD: 2**26, M_MMAP_MAX: 2**16}
"""What glibc itself arrives at once large blocks have come and gone, and stays at; unless the environment says
otherwise."""


def device_of(execution: Execution) -> torch.device:
    """Choose this rank's device. Raises ValueError where a GPU is asked for and there is none."""
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

    Made before anything of the trial is loaded, and after what was before it has been let go of.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._measures = device.type == "cuda" or _glibc() is not None
        self._steps, self._largest = 0, 0
        self._reached, self._needed = 0, 0
        process_bytes()
        forget_peak_memory(device)

    def reached(self) -> int:
        """Return the most bytes at any time so far: allocated on a GPU, resident in this process on a CPU."""
        # In this order, as another thread may ask while a step saves the peak and begins it anew.
        return max(peak_memory_bytes(self._device), self._reached)

    def needed(self) -> int:
        """Return the most bytes that a step has needed so far; where that cannot be measured, what was reached."""
        return self._needed or self.reached()

    @contextlib.contextmanager
    def step(self, *, size: Callable[[], int], held: Callable[[], int]) -> Iterator[float]:
        """Measure what happens inside, an optimizer step, if it may need more than those before. Yields the seconds
        that getting ready took.

        size: how much of its data is computed with at once, in any unit. held: bytes of the tensors that it finds. Both
        are asked only where it matters. The second step replaces the first, which has no optimizer's state yet, and
        during which libraries set themselves up.
        """
        began = time.perf_counter()
        self._steps += 1
        early, on_gpu = self._steps <= 2, self._device.type == "cuda"
        if not on_gpu and not self._may_need_more(size, early=early):
            yield 0.0
            return
        self._reached = self.reached()
        with contextlib.nullcontext(True) if on_gpu else _heap_without_room() as has_none:
            self._measures = has_none and _start_counting(self._device)
            if not self._measures:
                self._needed = 0
                yield 0.0
                return
            before = 0 if on_gpu else peak_memory_bytes(self._device) - process_bytes() - held()
            yield time.perf_counter() - began
            needed = peak_memory_bytes(self._device) - before
        self._needed = needed if early else max(needed, self._needed)

    def _may_need_more(self, size: Callable[[], int], *, early: bool) -> bool:
        if not self._measures:
            return False
        allocated = size()
        more = early or allocated > self._largest
        if more:
            self._largest = allocated
        return more


def tensor_bytes(model: nn.Module, optimizer: torch.optim.Optimizer, others: Iterable[object] = ()) -> int:
    """Count the bytes that parameters, buffers, gradients and the optimizer's state take now, and tensors among
    `others`, each storage once."""
    own = [*model.parameters(), *model.buffers(), *(value for value in others if isinstance(value, torch.Tensor))]
    own += [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    own += [value for state in optimizer.state.values() for value in state.values() if isinstance(value, torch.Tensor)]
    storages = {tensor.untyped_storage().data_ptr(): tensor.untyped_storage().nbytes() for tensor in own}
    return sum(storages.values())


def forget_peak_memory(device: torch.device) -> None:
    """Hand back what earlier trials of this process have left, and count peaks from here."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # of a GPU that nothing has used yet there is no peak to begin anew
        torch.cuda.empty_cache()
    _start_counting(device)


def peak_memory_bytes(device: torch.device) -> int:
    """Return the most memory since `forget_peak_memory`: allocated on a GPU, resident in this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return _resident("VmHWM") or resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@functools.cache
def process_bytes() -> int:
    """Return the bytes that this process held at the first call, which comes before its first trial loads anything."""
    return _resident("VmRSS")


def _start_counting(device: torch.device) -> bool:
    """Begin the peak anew, at what is in use now. Returns whether that is possible."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return True
    _hand_back()
    return _forget_resident_peak()


def _hand_back() -> None:
    pa.default_memory_pool().release_unused()
    if (libc := _glibc()) is not None:
        libc.malloc_trim(0)


def _forget_resident_peak() -> bool:
    """Have Linux begin the peak of this process anew. Returns whether it does; if not, the peak is that of its whole
    life."""
    try:
        CLEAR_REFS.write_text("5")
    except OSError:
        return False
    return True


@contextlib.contextmanager
def _heap_without_room() -> Iterator[bool]:
    """Have every larger block take pages of its own, which go back to the system with it. Yields whether they will.

    glibc takes a block from what is free in its heap, if there is room, and what is freed there stays resident: how
    much that is depends on everything that has ever been in the heap. So its room is taken, which costs no memory, as
    nothing is written there. Such blocks take longer, which is why this is for a few steps.
    """
    libc = _glibc()
    assert libc is not None
    _tune(libc, MEASURING)
    taken: list[int] = []
    try:
        yield _take_room(libc, taken)
    finally:
        _free(libc, taken)
        _tune(libc, _asked_of_glibc(os.environ))


def _take_room(libc: ctypes.CDLL, taken: list[int]) -> bool:
    """Take what is free in the heap, as blocks that are added to `taken`. Returns False, and takes none, where there is
    no end to it: where blocks get no pages of their own, the heap grows with each."""
    size, room = 2**26, _resident("VmData")  # no room is larger than all that the process has
    while size >= OWN_PAGES:
        block = libc.malloc(size)
        if not block or room < 0:
            libc.free(block)
            _free(libc, taken)
            return False
        if _has_own_pages(block):
            libc.free(block)
            size //= 2
        else:
            taken.append(block)
            room -= size
    return True


def _free(libc: ctypes.CDLL, blocks: list[int]) -> None:
    while blocks:
        libc.free(blocks.pop())


def _asked_of_glibc(environment: Mapping[str, str]) -> dict[int, int]:
    """Return the usual options, by number, as far as the environment has no others: MALLOC_MMAP_MAX_=0, or the same in
    GLIBC_TUNABLES, which counts more."""
    tunables = dict(part.split("=", 1) for part in environment.get("GLIBC_TUNABLES", "").split(":") if "=" in part)
    options = dict(USUAL)
    for option, name in NAMES.items():
        for text in (environment.get(f"MALLOC_{name.upper()}_"), tunables.get(f"glibc.malloc.{name}")):
            with contextlib.suppress(TypeError, ValueError):
                options[option] = min(int(text, 0), 2**31 - 1)  # type: ignore[arg-type]
    return options


def _has_own_pages(block: int) -> bool:
    """Return whether glibc has mapped a block by itself: a bit of the size, which is stored ahead of the block."""
    word = ctypes.c_size_t
    return bool(word.from_address(block - ctypes.sizeof(word)).value & 2)


def _tune(libc: ctypes.CDLL, options: dict[int, int]) -> None:
    for option, value in options.items():
        libc.mallopt(option, value)


def _resident(name: str) -> int:
    """Read a number of bytes by its name in /proc/self/status; 0 on other systems."""
    try:
        return int(Path("/proc/self/status").read_text().partition(f"{name}:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        return 0


@functools.cache
def _glibc() -> ctypes.CDLL | None:
    """Return the C library, if it is glibc and memory comes from it; else None."""
    try:
        libc, process = ctypes.CDLL("libc.so.6"), ctypes.CDLL(None)
        libc.malloc.restype, libc.malloc.argtypes = ctypes.c_void_p, [ctypes.c_size_t]
        libc.free.argtypes = [ctypes.c_void_p]
        its, used = (ctypes.cast(library.malloc, ctypes.c_void_p).value for library in (libc, process))
        can = libc.malloc_trim and libc.mallopt
    except (AttributeError, OSError, TypeError):
        return None
    return libc if can and its == used else None  # not the same: another allocator was loaded ahead of it
