"""Verbs that read a run of 3,000 trials, and the plan of 5,000, answer in seconds of processor time."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
from answers import answered
from large import fill, written
from real import command, crowding

pytestmark = pytest.mark.soak  # a claim about time

TRIALS = 3000


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which the large run is kept, in runs/large."""
    folder = tmp_path_factory.mktemp("large")
    assert fill(folder / "runs" / "large", arms=10, suggestions=TRIALS // 10 - 10) == TRIALS
    return folder


def spent(arguments: list[str], cwd: Path) -> tuple[float, str]:
    """Processor time of a program, and what it printed."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, check=False, env=os.environ)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime, done.stdout


def within(limit: float, arguments: list[str], modules: str, cwd: Path) -> str:
    """What a verb prints, which takes less processor time without what it imports, or does so the second time."""
    took: list[float] = []
    while len(took) < 2 and (not took or took[-1] >= limit):
        imports, _ = spent([sys.executable, "-c", f"import orchestrator.cli, {modules}"], cwd)
        whole, printed = spent(command(*arguments), cwd)
        took.append(whole - imports)
    assert min(took) < limit
    return printed


def patience() -> float:
    """By how much a crowded processor is slower: two programs share a core, and its caches."""
    return min(2.0, crowding())


def test_status_of_three_thousand_trials(home: Path) -> None:
    """0.2 s. Mutant check: a query for each trial."""
    printed = within(1 * patience(), ["status", "large", "--json"], "orchestrator.run_dir.status", home)
    stood = answered("status", printed)
    assert len(stood["trials"]) == TRIALS
    assert all(trial["params"] for trial in stood["trials"])


def test_compare_of_three_thousand_trials(home: Path) -> None:
    """1.5 s with the report. Seen: 4 s, as jobs were written out for each of their keys, trials were looked for in
    lists and garbage in all that had been read."""
    printed = within(3 * patience(), ["compare", "large", "--json"], "orchestrator.report", home)
    answer = json.loads(printed)
    assert len(answer["comparisons"]) == 9
    assert sum(len(one["trials"]) for arm in answer["arms"] for one in arm["tune"]["suggestions"]) == TRIALS - 100


@pytest.mark.parametrize(("arms", "suggestions"), [(10, 490), (250, 10)])
def test_plan_of_five_thousand_trials(tmp_path: Path, arms: int, suggestions: int) -> None:
    """0.3 s and 0.9 s, of many arms as of few."""
    written(tmp_path, arms=arms, suggestions=suggestions)
    for more in ([], ["--json"]):
        within(2 * patience(), ["plan", "sweep.toml", *more], "orchestrator.sweep.plan", tmp_path)
