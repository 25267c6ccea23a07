"""What a plan says that its seeds can show, from the spread of earlier runs."""

from __future__ import annotations

import contextlib
import json
import math
import re
import sqlite3
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
from orchestrator.cli.printing import power_lines, rounded_up
from orchestrator.preflight import spread
from orchestrator.statistics.power import WANTED, detectable, power, seeds_to_find
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
    (found,) = spread.power(plan, spread.known())
    sd = upper(BETTER)
    assert found.to_json() == {
        "a": "flat",
        "b": "plain",
        "n": 6,
        "sd": pytest.approx(sd),
        "detectable": pytest.approx(detectable(6, 0.05)),
        "needed": seeds_to_find(0.005 / sd, 0.05),
        "source": str(home / "earlier"),
        "unit": "seed",
        "rank_hours": None,
        "needed_rank_hours": None,
    }
    assert sd > stdev(np.subtract(BETTER["flat"], BETTER["plain"]))


def test_of_several_runs_the_widest_counts(home: Path) -> None:
    ran(home / "narrow", BETTER)
    plan = ran(home / "wide", WIDE)
    (found,) = spread.power(plan, spread.known())
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
    assert spread.power(plan, spread.known())[0].spread is not None or "metric" in changes[0]
    own = start(home.parent / "own", TWO)
    own.ledger.close()
    (found,) = spread.power(own.plan, spread.known())
    assert (found.spread, found.needed) == (None, None)


@pytest.mark.parametrize("seeds", [4, 5])
def test_fewer_than_five_pairs_tell_nothing(home: Path, seeds: int) -> None:
    plan = ran(home / "pilot", {arm: values[:seeds] for arm, values in BETTER.items()})
    assert (spread.power(plan, spread.known())[0].spread is None) == (seeds < 5)


def test_an_arm_of_another_budget_is_another_kind(home: Path) -> None:
    plan = ran(home / "unequal", BETTER, TWO + '"budget.samples" = 2000\n')
    (found,) = spread.power(plan, spread.known())
    assert found.spread is None


def test_equal_arms_and_a_damaged_ledger_tell_nothing(home: Path) -> None:
    plan = ran(home / "equal", {"plain": BETTER["plain"], "flat": BETTER["plain"]})
    (home / "damaged").mkdir()
    (home / "damaged" / "ledger.db").write_bytes(b"SQLite format 3\x00" + b"x" * 5000)
    assert spread.power(plan, spread.known())[0].spread is None


def test_contrasts_share_the_level(home: Path) -> None:
    three = TWO + '[[arm]]\nlabel = "dcl"\n"loss.name" = "dcl"\n'
    plan = ran(home / "three", BETTER | {"dcl": WIDE["flat"]}, three)
    found = spread.power(plan, spread.known())
    assert [(one.a, one.b) for one in found] == [("flat", "plain"), ("dcl", "plain")]
    assert {one.detectable for one in found} == {detectable(6, 0.04, 2)}
    sd = upper({"plain": BETTER["plain"], "dcl": WIDE["flat"]}, "dcl")
    assert [one.spread.sd for one in found if one.spread] == pytest.approx([sd, sd])
    assert {one.needed for one in found} == {seeds_to_find(0.005 / sd, 0.04, 2)}


def test_plan_prints_it_for_people_and_for_programs(home: Path, tmp_path: Path) -> None:
    start(tmp_path / "own", TWO).ledger.close()
    (tmp_path / "own" / "sweep.toml").rename(tmp_path / "sweep.toml")
    unknown = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other"])
    assert "6 seeds find a difference of 1.81 sd four times in five; the sd is not known" in unknown.output
    ran(home / "earlier", BETTER)
    known = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other"])
    assert f"by an sd of {upper(BETTER):.3g} (from above) in" in known.output.replace("\n", " ")
    assert f"0.005 takes {seeds_to_find(0.005 / upper(BETTER), 0.05)} seeds" in known.output.replace("\n", " ")
    told = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other", "--json"])
    answer = json.loads(told.output)
    (row,) = answer["power"]
    keys = ["a", "b", "n", "sd", "detectable", "needed", "source", "unit", "rank_hours", "needed_rank_hours"]
    assert [*row] == keys
    took = sum(arm["trial_seconds"] for arm in answer["estimate"]["arms"])
    assert row["rank_hours"] == pytest.approx(6 * took / 3600)
    assert row["needed_rank_hours"] == pytest.approx(row["needed"] * took / 3600)
    shown = f"; {row['rank_hours']:.2g} rank-hours for both arms, and {row['needed_rank_hours']:.2g} for 0.005"
    assert shown in known.output.replace("\n", " ")


def test_contrasts_of_which_the_same_is_known_share_a_line_with_a_range_of_hours() -> None:
    """Of a contrast alone, of its two arms, for the planned seeds and for those that are needed. Seen: a sum over the
    arms of all contrasts, and only where the sd was known. Mutant check: the hours of the first one."""
    spread_ = spread.Spread(0.02, 8, "runs/x")
    like = [
        spread.Power("b", "a", 8, 1.5, spread_, 40, "seed", 1.0, 5.0),
        spread.Power("c", "a", 8, 1.5, spread_, 40, "seed", 2.5, 12.5),
        spread.Power("d", "a", 8, 1.5, spread_, 40),
    ]
    (line,) = power_lines(like, 0.01)
    assert line.endswith(
        "; 0.01 takes 40 seeds; 1.00 to 2.50 rank-hours for both arms of each, and 5.00 to 12.50 for 0.01"
    )
    (line,) = power_lines([spread.Power("b", "a", 8, 1.5, None, None, "seed", 0.0123)], 0.01)
    assert line.endswith("a pilot is a run with confirm.seeds=5; 0.012 rank-hours for both arms")
    (line,) = power_lines([spread.Power("b", "a", 5, math.inf, None, None, "seed", 1.0)], 0.01)
    assert line.endswith(
        "5 seeds cannot find any difference; a pilot tells the sd, no more; 1.00 rank-hours for both arms"
    )


@pytest.mark.parametrize("seeds", [6, 8, 10, 14, 20])
@pytest.mark.parametrize("contrasts", [1, 3, 7])
def test_a_figure_that_is_printed_is_enough(seeds: int, contrasts: int) -> None:
    """Rounded up, as the table of docs/verdict.md. Seen: 1.51 where 1.5131 sd are found. Mutant check: `.2f`."""
    alpha = 0.05 if contrasts == 1 else 0.04
    effect = detectable(seeds, alpha, contrasts)
    (line,) = power_lines([spread.Power("b", "a", seeds, effect, spread.Spread(0.0123, 8, "runs/x"), None)], 0.0)
    match = re.search(r"a difference of ([\d.]+) sd .*: ([\d.e-]+), by an sd", line)
    assert match is not None
    assert power(float(match[1]), seeds, alpha, contrasts) >= WANTED
    assert float(match[1]) - effect < 0.01
    assert effect * 0.0123 <= float(match[2]) < effect * 0.0123 * 1.01


@pytest.mark.parametrize(("value", "digits", "shown"), [(1.16, 2, "1.16"), (1.1600001, 2, "1.17"), (2.0, 2, "2.00")])
def test_a_figure_that_is_exact_stays_as_it_is(value: float, digits: int, shown: str) -> None:
    assert rounded_up(value, digits) == shown


REPEATED = '[tune]\ntrials = 2\nrepeats = 6\nspace = { "optimizer.lr" = { low = 1e-4, high = 1e-2 } }'


def test_the_sd_of_repeats_is_not_that_of_single_seeds(home: Path, tmp_path: Path) -> None:
    """Seen: "6 seeds find 1.81 sd", beside an sd of seeds, for 24 seeds of six repeats, and "enough" that asks how many
    seeds find what matters. Mutant check: `needed` by the sd of single seeds."""
    ran(home / "earlier", WIDE)
    own = start(tmp_path / "own", TWO, tune=REPEATED, seeds=24)
    own.ledger.close()
    (found,) = spread.power(own.plan, spread.known())
    row = found.to_json()
    assert (row["n"], row["unit"], row["sd"], row["needed"], row["source"]) == (6, "repeat", None, None, None)
    (line,) = power_lines([found], 0.005)
    assert "6 repeats find a difference of 1.81 sd of the repeats' means four times in five" in line
    assert f"that of single seeds is {upper(WIDE):.3g} (from above) in" in line
    assert "takes" not in line
    sweep = own.plan.sweep.model_copy(update={"confirm": own.plan.sweep.confirm.model_copy(update={"seeds": "enough"})})
    made = spread.planned(sweep, spread.known())
    assert (made.basis["n"], made.basis["sd"], made.basis["needed"]) == (12, None, None)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e308])
def test_a_value_that_is_no_number_in_an_old_ledger_tells_nothing(home: Path, value: float) -> None:
    """Seen: one nan ended every plan with a traceback."""
    plan = ran(home / "earlier", BETTER)
    with contextlib.closing(sqlite3.connect(home / "earlier" / "ledger.db")) as database, database:
        for trial, result in database.execute("SELECT id, result FROM trials").fetchall():
            text = json.dumps(json.loads(result) | {"metrics": {"knn_accuracy": value}})
            database.execute("UPDATE trials SET result = ? WHERE id = ?", (text, trial))
    assert spread.power(plan, spread.known())[0].spread is None


def test_arms_of_one_objective_and_rounding_are_no_spread(home: Path) -> None:
    """Mutant check: an earlier run over ranks says that eight seeds are enough for anything."""
    two = TWO.replace('"loss.name" = "flatnce"', '"execution.ranks" = 2')
    noisy = {"plain": BETTER["plain"], "flat": [x + y for x, y in zip(BETTER["plain"], [1e-5, 2e-5] * 3, strict=True)]}
    ran(home / "ranks", noisy, two)
    equal = {"plain": [0.1, 0.2, 0.3, 0.4, 0.5, 0.6], "flat": [0.4, 0.5, 0.6, 0.7, 0.8, 0.9]}
    plan = ran(home / "constant", equal)
    assert spread.power(plan, spread.known())[0].spread is None


def test_five_seeds_cannot_find_anything(home: Path, tmp_path: Path) -> None:
    start(tmp_path / "own", TWO, seeds=5).ledger.close()
    (tmp_path / "own" / "sweep.toml").rename(tmp_path / "sweep.toml")
    shown = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other"])
    assert "5 seeds cannot find any difference" in shown.output
    told = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml"), "--set", "name=other", "--json"])
    assert json.loads(told.output)["power"][0]["detectable"] is None


def test_enough_seeds_follow_from_what_is_known_of_runs_like_it(home: Path) -> None:
    ran(home / "earlier", WIDE)
    own = start(home.parent / "own", TWO)
    own.ledger.close()
    sweep = own.plan.sweep.model_copy(update={"confirm": own.plan.sweep.confirm.model_copy(update={"seeds": "enough"})})
    assert len(spread.planned(sweep, []).confirm_seeds) == 10
    made = spread.planned(sweep, spread.known())
    assert (len(made.confirm_seeds), made.basis.get("source")) == (20, str(home / "earlier"))
