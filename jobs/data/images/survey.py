"""How many images are decoded before any trial starts, and which."""

from __future__ import annotations

import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor

from jobs.data.formats import DataError

MOST = 20_000
"""Rows that are looked at, at most; of more, so many that lie evenly."""

SECONDS = 60.0
"""How long that may take, at most; what was looked at by then lies evenly as well."""


def survey(n: int, look: Callable[[int], Iterable[str]]) -> tuple[int, Counter[str]]:
    """Look at rows 0 ... n-1 on all cores. Returns how many were looked at, and how often each remark was made.

    Raises the DataError of the first row, among those looked at, that has one.
    """
    order, until = list(evenly(n, MOST)), time.monotonic() + SECONDS
    threads = min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1, n)
    lock = threading.Lock()
    faults: dict[int, DataError] = {}

    def some(rows: list[int]) -> tuple[int, Counter[str]]:
        seen, remarks = 0, Counter[str]()
        for row in rows:
            if time.monotonic() > until and seen:
                break
            with lock:
                if row > min(faults, default=n):  # an earlier row is at fault already
                    continue
            try:
                remarks.update(look(row))
            except DataError as error:
                with lock:
                    faults[row] = error
            seen += 1
        return seen, remarks

    with ThreadPoolExecutor(threads) as pool:
        parts = list(pool.map(some, [order[first::threads] for first in range(threads)]))
    if faults:
        raise faults[min(faults)]
    return sum(seen for seen, _ in parts), sum((remarks for _, remarks in parts), Counter())


def evenly(n: int, most: int) -> Iterator[int]:
    """Yield at most `most` of the rows 0 ... n-1, 0 first, in such an order that those up to any moment lie evenly."""
    taken = min(n, most)
    bits = max(taken - 1, 1).bit_length()
    for number in range(2**bits):
        mirrored = int(f"{number:0{bits}b}"[::-1], 2)
        if mirrored < taken:
            yield mirrored * n // taken
