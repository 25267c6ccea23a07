"""Kill the driver of a pruned, tuned sweep at random times, and compare every number with an undisturbed run.

    python tests/support/processes/kills.py --kills 20 --ranks 2 --prune median
    python tests/support/processes/kills.py --kills 20 --ranks 1 --concurrent 2 --prune halving --postgres

Prints the pruned trials of both runs, and whether states and metrics are equal bit for bit; exit code 1 if not.
"""

from __future__ import annotations

import argparse
import contextlib
import random
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from real import SWEEP, call, driver, kill_at_random, proven, status
from servers import new_database, postgres_server

LONG = (
    SWEEP.replace("steps = 8", "steps = 120")
    .replace("checkpoint_every = 3", "checkpoint_every = 25")
    .replace("times = 2", "times = 4")
    .replace("low = 1e-4, high = 1e-2", "low = 1e-6, high = 1e-1")
    .replace("seeds = 3", "seeds = 4")
)
"""Rates of which many are bad enough to be pruned."""

SUGGESTIONS = 20
"""Of each arm: enough for twenty kills."""

TRIALS = 2 * SUGGESTIONS + 2 * 4
"""Of the sweep: to tune, and to confirm."""

NUMBERS = ("state", "outcome", "metric", "step")
"""Of a trial, what must be equal."""


def sweep(*, ranks: int, prune: str) -> str:
    """The sweep as TOML."""
    return LONG.replace("ranks = 2", f"ranks = {ranks}").replace(
        "trials = 2\n", f'trials = {SUGGESTIONS}\nprune = "{prune}"\n'
    )


def numbers(home: Path, env: Mapping[str, str]) -> dict[str, tuple[Any, ...]]:
    """What every trial came to."""
    found = status(home, env=env)
    return {trial["id"]: tuple(trial[key] for key in NUMBERS) for trial in found["trials"]}


def compare(
    home: Path, *, kills: int, ranks: int, concurrent: int, prune: str, seed: int, env: Mapping[str, str]
) -> tuple[int, int, int]:
    """Run the sweep twice below `home`, once undisturbed and once with kills. Returns how many trials were pruned in
    each, and how many kills there were. Raises AssertionError where a number differs."""
    text = sweep(ranks=ranks, prune=prune)
    arguments = ("--set", f"resources.concurrent={concurrent}")
    calm, killed = home / "calm", home / "killed"
    for folder in (calm, killed):
        folder.mkdir(parents=True)
        (folder / "sweep.toml").write_text(text)
    call("launch", "sweep.toml", "--offline", "--set", "resources.concurrent=1", cwd=calm)
    expected = numbers(calm, {})
    between_s = (4.0, 18.0) if ranks == 1 else (6.0, 24.0)  # to start ranks takes most of it
    moments = random.Random(seed)
    times = kill_at_random(
        killed, kills=kills, moments=moments, between_s=between_s, trials=TRIALS, env=env, arguments=arguments
    )
    with driver("launch", "sweep.toml", *arguments, cwd=killed, env=env) as process:
        said, _ = process.communicate(timeout=900)
        assert process.returncode == 0, said
    found = numbers(killed, env)
    differ = {trial for trial in expected.keys() | found.keys() if expected.get(trial) != found.get(trial)}
    assert not differ, {trial: (expected.get(trial), found.get(trial)) for trial in differ}
    proven(killed, trials=TRIALS, env=env)
    pruned = [sum(state == "pruned" for state, *_ in run.values()) for run in (expected, found)]
    return pruned[0], pruned[1], len(times)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--ranks", type=int, default=2)
    parser.add_argument("--concurrent", type=int, default=1, help="trials at once in the run that is killed")
    parser.add_argument("--prune", choices=["none", "median", "halving"], default="median")
    parser.add_argument("--seed", type=int, default=time.time_ns() % 10**6, help="of the moments")
    parser.add_argument("--postgres", action="store_true", help="a ledger in PostgreSQL")
    options = parser.parse_args()
    print(f"--seed {options.seed} repeats these moments", flush=True)
    with contextlib.ExitStack() as stack:
        env = {}
        if options.postgres:
            env["ORCHESTRATOR_LEDGER"] = new_database(stack.enter_context(postgres_server()))
        home = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="kills-")))
        try:
            calm, killed, kills = compare(
                home, kills=options.kills, ranks=options.ranks, concurrent=options.concurrent, prune=options.prune,
                seed=options.seed, env=env,
            )  # fmt: skip
        except AssertionError as error:
            print(f"NOT EQUAL: {error}")
            return 1
    print(f"{kills} kills; pruned: {calm} undisturbed, {killed} with kills; states and metrics equal bit for bit")
    return 0


if __name__ == "__main__":
    sys.exit(main())
