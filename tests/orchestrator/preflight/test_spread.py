"""What a plan says that its seeds can show, from the spread of earlier runs."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner
from ledgers import BETTER, TWO, finished, start
from scipy import stats

from orchestrator.cli import main
from orchestrator.preflight import spread
from orchestrator.statistics.power import detectable, seeds_to_find
from orchestrator.sweep import plan as planning


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where runs live, and nothing else that could tell."""
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    return tmp_path / "runs"


def ran(folder: Path, values: Mapping[str, Sequence[float]], arms: str = TWO, **how: Any) -> planning.Plan:
    run = finished(start(folder, arms, seeds=len(next(iter(values.values()))), **how), values)
    run.ledger.close()
    return run.plan


def upper(values: Mapping[str, Sequence[float]], a: str = "flat", b: str = "plain") -> float:
    d = np.subtract(values[a], values[b])
    return float(stdev(d) * np.sqrt((len(d) - 1) / stats.chi2.ppf(0.2, len(d) - 1)))


WIDE = {"plain": BETTER["plain"], "flat": [x + y for x, y in zip(BETTER["plain"], [0.1, -0.1] * 3, strict=True)]}


def test_a_run_like_it_tells_the_spread_from_above(home: Path) -> None:
    """Mutant checks: the standard deviation itself, and the fifth above in place of the one below."""
    plan = ran(home / "earlier", BETTER)
    (found,) = spread.power(plan)
    sd = upper(BETTER)
    assert found.to_json() == {
        "a": "flat",
        "b": "plain",
        "n": 6,
        "sd": pytest.approx(sd),
        "detectable": pytest.approx(detectable(6, 0.05)),
        "needed": seeds_to_find(0.005 / sd, 0.05),
        "source": str(home / "earlier"),
    }
    assert sd > stdev(np.subtract(BETTER["flat"], BETTER["plain"]))


def test_of_several_runs_the_widest_counts(home: Path) -> None:
    ran(home / "narrow", BETTER)
    plan = ran(home / "wide", WIDE)
    (found,) = spread.power(plan)
    assert found.spread is not None
    assert found.spread.sd == pytest.approx(upper(WIDE))
    assert found.spread.origin == str(home / "wide")


@pytest.mark.parametrize(
    "changes",
    [
        ["job.budget.samples=2000"],
        ["job.data.confirm=digits[:900]"],
        ["job.data.train=digits[:900]"],
        ["metric.name=probe_accuracy"],
    ],
)
def test_what_was_measured_otherwise_tells_nothing(home: Path, changes: list[str]) -> None:
    plan = ran(home / "other", BETTER, overrides=changes)
    assert spread.power(plan)[0].spread is not None or "metric" in changes[0]
    own = start(home.parent / "own", TWO)
    own.ledger.close()
    (found,) = spread.power(own.plan)
    assert (found.spread, found.needed) == (None, None)


@pytest.mark.parametrize("seeds", [4, 5])
def test_fewer_than_five_pairs_tell_nothing(home: Path, seeds: int) -> None:
    plan = ran(home / "pilot", {arm: values[:seeds] for arm, values in BETTER.items()})
    assert (spread.power(plan)[0].spread is None) == (seeds < 5)


def test_an_arm_of_another_budget_is_another_kind(home: Path) -> None:
    plan = ran(home / "unequal", BETTER, TWO + '"budget.samples" = 2000\n')
    (found,) = spread.power(plan)
    assert found.spread is None


def test_equal_arms_and_a_damaged_ledger_tell_nothing(home: Path) -> None:
    plan = ran(home / "equal", {"plain": BETTER["plain"], "flat": BETTER["plain"]})
    (home / "damaged").mkdir()
    (home / "damaged" / "ledger.db").write_bytes(b"SQLite format 3\x00" + b"x" * 5000)
    assert spread.power(plan)[0].spread is None


def test_contrasts_share_the_level(home: Path) -> None:
    three = TWO + '[[arm]]\nlabel = "dcl"\n"loss.name" = "dcl"\n'
    plan = ran(home / "three", BETTER | {"dcl": WIDE["flat"]}, three)
    found = spread.power(plan)
    assert [(one.a, one.b) for one in found] == [("flat", "plain"), ("dcl", "plain")]
    assert {one.detectable for one in found} == {detectable(6, 0.02)}
    sd = upper({"plain": BETTER["plain"], "dcl": WIDE["flat"]}, "dcl")
    assert [one.spread.sd for one in found if one.spread] == pytest.approx([sd, sd])
    assert {one.needed for one in found} == {seeds_to_find(0.005 / sd, 0.02)}


def test_plan_prints_it_for_people_and_for_programs(home: Path, tmp_path: Path) -> None:
    start(tmp_path / "own", TWO).ledger.close()
    (tmp_path / "own" / "sweep.toml").rename(tmp_path / "sweep.toml")
    unknown = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other"])
    assert "6 seeds find a difference of 1.43 sd four times in five; the sd is not known" in unknown.output
    ran(home / "earlier", BETTER)
    known = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other"])
    assert f"by an sd of {upper(BETTER):.4f} at most in" in known.output.replace("\n", " ")
    assert f"0.005 takes {seeds_to_find(0.005 / upper(BETTER), 0.05)} seeds" in known.output.replace("\n", " ")
    told = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other", "--json"])
    (row,) = json.loads(told.output)["power"]
    assert [*row] == ["a", "b", "n", "sd", "detectable", "needed", "source"]
