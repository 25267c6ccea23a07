"""Row 4 of the fault table at length: twenty kills at random times, on SQLite and on PostgreSQL. `make soak`."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import pytest
from kills import compare
from servers import new_database

KILLS = 20


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize(
    ("store", "how"),
    [
        ("sqlite", {"ranks": 2, "concurrent": 1, "prune": "median"}),
        ("sqlite", {"ranks": 1, "concurrent": 2, "prune": "halving"}),
        ("postgresql", {"ranks": 1, "concurrent": 2, "prune": "halving"}),
    ],
    ids=["two ranks", "two trials at once", "postgresql"],
)
def test_row_4_twenty_kills_lose_nothing_repeat_nothing_and_change_no_number(
    store: str, how: dict[str, Any], tmp_path: Path, request: pytest.FixtureRequest
) -> None:
    """Against one trial at a time without a kill."""
    env = {}
    if store == "postgresql":
        env["ORCHESTRATOR_LEDGER"] = new_database(request.getfixturevalue("postgres"))
    seed = int(os.environ.get("ORCHESTRATOR_SEED", time.time_ns() % 10**6))
    print(f"\nseed {seed}: ORCHESTRATOR_SEED={seed} repeats the times of these kills")
    calm, killed, kills = compare(tmp_path, kills=KILLS, seed=seed, env=env, **how)
    assert kills == KILLS, f"the sweep ended after {kills} kills; make it longer"
    assert min(calm, killed) >= 3, "too few trials are pruned to see anything"
    print(f"{kills} kills; pruned: {calm} undisturbed, {killed} with kills")
