"""What belongs to the soak, and a share of it: what there are minutes for, begun at another place for another commit.

Ten shares of a third each leave out one test in sixty, by chance.
"""

from __future__ import annotations

import collections
import hashlib
import os
import time
from collections.abc import Sequence
from typing import TypeVar

import pytest

MINUTES, COMMIT = "ORCHESTRATOR_SOAK_MINUTES", "ORCHESTRATOR_SOAK_COMMIT"
"""Variables: how long tests may begin, none for no end; and the hash of a commit, which says where they begin."""

CASES: pytest.StashKey[collections.Counter[str]] = pytest.StashKey()
"""How many cases of each test marked `few` were collected."""

BEGAN = time.monotonic()

T = TypeVar("T")


def minutes() -> float | None:
    """How long tests may begin; None: all of them run."""
    given = os.environ.get(MINUTES)
    return float(given) if given else None


def pytest_runtest_setup() -> None:
    """Skip what there is no time to begin."""
    limit = minutes()
    if limit is not None and time.monotonic() - BEGAN > 60 * limit:
        pytest.skip("no time is left: the share of another commit has it")


def pytest_itemcollected(item: pytest.Item) -> None:
    """Of a test marked `few(n)`, leave all cases but the first n to the soak; what is asked for by its name runs."""
    if (marker := item.get_closest_marker("few")) is not None:
        cases = item.config.stash.setdefault(CASES, collections.Counter())
        test = item.nodeid.partition("[")[0]
        cases[test] += 1
        if cases[test] > marker.args[0]:
            item.add_marker("soak")


def rotated(values: Sequence[T], what: str) -> list[T]:
    """The values from another one on, by the commit and by what they are."""
    seed = hashlib.sha256(f"{os.environ.get(COMMIT, '')} {what}".encode()).digest()
    start = int.from_bytes(seed[:8]) * len(values) // 2**64
    return [*values[start:], *values[:start]]


def in_its_order(groups: dict[str, list[T]]) -> list[T]:
    """The values of all groups: these in an order of no meaning, each from another value on."""
    names = sorted(groups, key=lambda name: hashlib.sha256(name.encode()).digest())
    return [value for name in rotated(names, "groups") for value in rotated(groups[name], name)]
