"""A grid is never listed: of a million points the few that are tried are reached by their numbers.

Mutant check: building all points, as before, takes 36 s for 10^5 of them and does not end for 10^12.
"""

from __future__ import annotations

import itertools
import json
import time
import tracemalloc
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from ledgers import start

from jobs.config import ConfigError
from orchestrator.cli import main
from orchestrator.session.schedule import Schedule
from orchestrator.sweep import Tune, load
from orchestrator.sweep.plan import make
from orchestrator.sweep.search import suggest, suggestions

KEYS = (
    *("optimizer.lr", "optimizer.weight_decay", "optimizer.warmup", "loss.temperature", "augment.brightness"),
    *("loss.margin", "optimizer.momentum", "augment.crop", "loss.mlm_probability", "loss.hard_negative_weight"),
    *("model.dropout", "optimizer.clip"),
)


def space(keys: int, choices: int) -> str:
    values = [round((index + 1) / (choices + 1), 6) for index in range(choices)]
    return "".join(f'"{key}" = {{ choices = {values} }}\n' for key in KEYS[:keys])


def tune(keys: int, choices: int, *, trials: int = 8, more: str = "", defaults: str = "[]") -> str:
    head = f'[tune]\ntrials = {trials}\nsampler = "grid"\ndefaults = {defaults}\n[tune.space]\n'
    return head + space(keys, choices) + more


@pytest.mark.parametrize(
    ("keys", "choices"), [(5, 10), (6, 10), (4, 60), (12, 10), pytest.param(2, 1000, marks=pytest.mark.soak), (12, 60)]
)
def test_plan_and_every_suggestion_take_no_time_whatever_the_size(tmp_path: Path, keys: int, choices: int) -> None:
    run = start(tmp_path / "demo", tune=tune(keys, choices))
    began = time.process_time()
    tracemalloc.start()
    made = make(load(tmp_path / "demo" / "sweep.toml"))
    schedule = Schedule(made, run.ledger)
    trials = schedule.advance()
    again = [suggest_all(made, arm.label) for arm in made.arms]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert time.process_time() - began < 10  # a loaded machine; it takes 0.3 s
    assert peak < 30e6
    assert made.trials["tune"] == 2 * 8
    assert again[0] == again[1], "arms that tune the same keys try the same points"
    assert len({json.dumps(point) for point in again[0]}) == 8
    assert trials
    assert f"8 of {choices**keys:,} points of the grid are tried" in " ".join(made.warnings)


def suggest_all(made: Any, arm: str) -> list[dict[str, Any]]:
    base = made.arm(arm).values
    return [
        suggest(made.sweep.tune, mode="max", sweep_seed=0, arm=arm, number=number, history=[], base=base)
        for number in range(made.suggestions[arm])
    ]


def test_plan_says_how_many_of_how_many_points_are_tried(tmp_path: Path) -> None:
    run = start(tmp_path / "demo", tune=tune(6, 10))
    run.ledger.close()
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "demo" / "sweep.toml")])
    assert done.exit_code == 0, done.output
    assert "note: 8 of 1,000,000 points of the grid are tried in each arm" in done.output
    whole = start(tmp_path / "whole", tune=tune(2, 2))
    assert not any("points of the grid" in warning for warning in whole.plan.warnings)


def test_a_million_trials_of_a_larger_grid_are_counted_and_the_first_are_there_at_once(tmp_path: Path) -> None:
    run = start(tmp_path / "demo", tune=tune(12, 10, trials=1_000_000))
    assert run.plan.trials["tune"] == 2_000_000
    points = suggest_all_of(run.plan.sweep.tune, 50)
    assert len({json.dumps(point) for point in points}) == 50


def suggest_all_of(section: Tune | None, count: int) -> list[dict[str, Any]]:
    assert section is not None
    common: dict[str, Any] = {"mode": "max", "sweep_seed": 0, "arm": "plain", "history": []}
    return [suggest(section, number=number, **common) for number in range(count)]


WHEN = """"optimizer.name" = { choices = ["adamw", "sgd"] }
"optimizer.schedule" = { choices = ["cosine", "linear", "constant"], when = { "optimizer.name" = "sgd" } }
"""


def test_a_grid_with_conditions_is_counted_and_not_listed(tmp_path: Path) -> None:
    """adamw: 10^6 points; sgd: three schedules each, and momentum where it is not constant."""
    momentum = '"loss.bias" = { choices = [-1.0, -2.0], when = { "loss.name" = "siglip" } }\n'
    more = WHEN + momentum + '"evaluate" = 1\n'
    run_space = tune(6, 10, trials=10**6, more=more.replace('"evaluate" = 1\n', ""))
    arms = '[[arm]]\nlabel = "plain"\n[[arm]]\nlabel = "siglip"\n"loss.name" = "siglip"\n'
    run = start(tmp_path / "demo", arms, tune=run_space)
    section = run.plan.sweep.tune
    assert section is not None
    large = section.model_copy(update={"trials": 10**9})
    sizes = {arm.label: suggestions(large, arm.values) for arm in run.plan.arms}
    assert sizes == {"plain": 10**6 * 4, "siglip": 10**6 * 8}


def test_many_conditions_are_counted_without_trying_all_of_their_values() -> None:
    """Twenty pairs of a key and one that it decides: 2^20 ways, each key of its own. By hand 3^20."""
    keys: dict[str, Any] = {f"a{index:02}": {"choices": [0, 1]} for index in range(20)}
    keys |= {f"b{index:02}": {"choices": [0, 1], "when": {f"a{index:02}": 1}} for index in range(20)}
    section = Tune.model_validate({"trials": 10**15, "sampler": "grid", "space": keys})
    began = time.process_time()
    assert suggestions(section) == 3**20
    assert len({json.dumps(point, sort_keys=True) for point in suggest_all_of(section, 200)}) == 200
    assert time.process_time() - began < 5


def test_a_chain_of_conditions_is_counted(tmp_path: Path) -> None:
    """Each key is tuned where the one before is 1; and where two neighbours are. Counted by listing, for few."""
    for count, size in ((10, None), (36, 1)):
        chain: dict[str, Any] = {"k00": {"choices": [0, 1]}}
        for index in range(1, count):
            chain[f"k{index:02}"] = {"choices": [0, 1], "when": {f"k{index - 1:02}": 1}}
        section = Tune.model_validate({"trials": 10**15, "sampler": "grid", "space": chain})
        assert suggestions(section) == count + 1
        assert size is None or suggest_all_of(section, 3)


@pytest.mark.parametrize("text", ["compare", "arms"])
def test_a_million_arms_are_refused_before_they_are_made(tmp_path: Path, text: str) -> None:
    """The same kind: what is crossed is counted first."""
    levels = ", ".join(str(0.001 * index) for index in range(1, 61))
    factors = "".join(f'"{key}" = [{levels}]\n' for key in KEYS[:4])
    run = start(tmp_path / "demo")
    run.ledger.close()
    toml = (tmp_path / "demo" / "sweep.toml").read_text()
    head = toml[: toml.index("[[arm]]")]
    named = "".join(
        f'[[arm]]\nlabel = "{index}"\n"optimizer.lr" = {0.001 + index * 1e-6:.6f}\n' for index in range(1200)
    )
    (tmp_path / "many.toml").write_text(head + (f"[compare]\n{factors}" if text == "compare" else named))
    began = time.process_time()
    with pytest.raises(ConfigError, match=r"(12,960,000|1,200) arms; at most 1,000"):
        load(tmp_path / "many.toml")
    assert time.process_time() - began < 10


def test_arms_that_share_keys_try_the_same_shared_values() -> None:
    """Also below the size of the grid, where one of them tunes a key more. Mutant check: hashing whole points."""
    few = {key: {"choices": list(range(1, 61))} for key in KEYS[:3]}
    more = few | {
        "model.layers": {"choices": [1, 2, 3]},
        "model.width": {"choices": [8, 16], "when": {"model.layers": 2}},
    }
    points = []
    for keys in (few, more):
        section = Tune.model_validate({"trials": 40, "sampler": "grid", "space": keys})
        common: dict[str, Any] = {"mode": "max", "sweep_seed": 3, "arm": "x", "history": [], "everywhere": list(few)}
        found = [suggest(section, number=number, **common) for number in range(40)]
        points.append([{key: point[key] for key in few} for point in found])
    assert points[0] == points[1]
    assert all(len({point[key] for point in points[0]}) > 20 for key in few), "a sample, and no corner"


@pytest.mark.soak
def test_no_point_comes_twice_and_all_come_in_the_end() -> None:
    """Over seeds each point of a small grid comes first about equally often."""
    keys = {
        "a": {"choices": [1, 2, 3]},
        "b": {"choices": [True, False]},
        "c": {"choices": ["x", "y"], "when": {"b": True}},
    }
    section = Tune.model_validate({"trials": 99, "sampler": "grid", "space": keys})
    firsts: dict[str, int] = {}
    for seed, everywhere in itertools.product(range(300), (None, ["a"], ["b"], [])):
        common: dict[str, Any] = {
            "mode": "max",
            "sweep_seed": seed,
            "arm": "x",
            "history": [],
            "everywhere": everywhere,
        }
        points = [json.dumps(suggest(section, number=number, **common)) for number in range(suggestions(section))]
        assert len(set(points)) == len(points) == 9
        firsts[points[0]] = firsts.get(points[0], 0) + 1
    assert len(firsts) == 9
    assert max(firsts.values()) < 4 * min(firsts.values())
