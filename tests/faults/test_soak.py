"""Row 4 of the fault table at length: twenty kills at random times, on SQLite and on PostgreSQL. `make soak`."""

from __future__ import annotations

import json
import os
import random
import time
from pathlib import Path

import pytest
from real import SWEEP, call, driver, kill_at_random, measured, proven
from servers import new_database

LONG = (
    SWEEP.replace("steps = 8", "steps = 120")
    .replace("ranks = 2", "ranks = 1")
    .replace("checkpoint_every = 3", "checkpoint_every = 25")
    .replace("trials = 2\n", 'trials = 12\nprune = "median"\n')
    .replace("times = 2", "times = 4")
    .replace("seeds = 3", "seeds = 8")
)

TRIALS = 2 * 12 + 2 * 8
KILLS = 20


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The metrics of the sweep when nothing happens to it, one trial after the other."""
    home = tmp_path_factory.mktemp("undisturbed")
    (home / "sweep.toml").write_text(LONG)
    call("launch", "sweep.toml", "--offline", "--set", "resources.concurrent=1", cwd=home)
    return measured(home)


@pytest.mark.soak
@pytest.mark.timeout(2400)
@pytest.mark.parametrize("store", ["sqlite", "postgresql"])
def test_row_4_twenty_kills_lose_nothing_repeat_nothing_and_change_no_number(
    store: str, tmp_path: Path, request: pytest.FixtureRequest, undisturbed: dict[str, float]
) -> None:
    """Two trials at a time on PostgreSQL, one on SQLite, against one at a time without a kill."""
    env, arguments = {}, ("--set", "resources.concurrent=1")
    if store == "postgresql":
        env["ORCHESTRATOR_LEDGER"] = new_database(request.getfixturevalue("postgres"))
        arguments = ("--set", "resources.concurrent=2")
    seed = int(os.environ.get("ORCHESTRATOR_SEED", time.time_ns() % 10**6))
    print(f"\nseed {seed}: ORCHESTRATOR_SEED={seed} repeats the times of these kills")
    (tmp_path / "sweep.toml").write_text(LONG)
    times = kill_at_random(
        tmp_path, kills=KILLS, moments=random.Random(seed), between_s=(3.0, 16.0), env=env, arguments=arguments
    )
    with driver("launch", "sweep.toml", *arguments, cwd=tmp_path, env=env) as process:
        said, _ = process.communicate(timeout=600)
        assert process.returncode == 0, said
    assert len(times) == KILLS, f"the sweep ended after {len(times)} kills; make it longer"
    assert measured(tmp_path) == undisturbed
    proven(tmp_path, trials=TRIALS, env=env)
    stood = json.loads(call("status", "small", "--json", cwd=tmp_path, env=env))
    attempts = [trial["attempts"] for trial in stood["trials"]]
    print(f"{KILLS} kills: {sum(attempts)} attempts for {len(attempts)} trials")
