"""A sweep that is judged by several metrics: how its file is read, and what its plan says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import stdev
from typing import Any

import numpy as np
import pytest
from ledgers import TWO, start
from scipy import stats
from test_plan import SWEEP

from jobs.config import ConfigError
from orchestrator.cli.printing import power_lines
from orchestrator.preflight import spread
from orchestrator.statistics.power import detectable, seeds_to_find
from orchestrator.sweep import Sweep, loads, resolved
from orchestrator.sweep.load import load
from orchestrator.sweep.plan import SpreadOf, changed_keys, make, stored

FILE = """
name = "mine"
question = "Does FlatNCE beat InfoNCE?"
metric = METRIC
job = { task = "image", budget = { samples = 1000 }, data = { train = "digits", tune = "digits", confirm = "digits" } }
compare = { "loss.name" = ["infonce", "flatnce"] }
"""
BOTH = '[{ name = "knn_accuracy", smallest_difference = 0.01 }, { name = "alignment", smallest_difference = 0.02 }]'


def read(metric: str, *overrides: str) -> Sweep:
    return loads(FILE.replace("METRIC", metric), overrides)


def test_a_list_is_its_first_metric_and_the_others_beside_it() -> None:
    metric = read(BOTH).metric
    assert [(own.name, own.mode, own.smallest_difference) for own in metric.every] == [
        ("knn_accuracy", "max", 0.01),
        ("alignment", "min", 0.02),
    ]
    assert Sweep.model_validate(resolved(read(BOTH))) == read(BOTH), "what a report prints may be launched again"


@pytest.mark.parametrize("one", ['{ name = "alignment" }', '[{ name = "alignment" }]'])
def test_one_metric_is_stored_as_ever(one: str) -> None:
    """Mutant check: `also = []` in what is stored, by which a run that was begun before has another sweep."""
    assert resolved(read(one))["metric"] == {
        "name": "alignment", "mode": "min", "mode_is_meant": False, "smallest_difference": 0.0,
    }  # fmt: skip
    assert changed_keys(resolved(read('{ name = "alignment" }')), resolved(read(one))) == []


@pytest.mark.parametrize(
    ("metric", "words"),
    [
        ("[]", "metric: is a list of tables, such as [{ name ="),
        ('["knn_accuracy", "alignment"]', "metric: is a list of tables, such as [{ name ="),
        ('[{ name = "knn_accuracy" }, { name = "alignmnt" }]', "metric[1].name = 'alignmnt': is not measured in task"),
        ('[{ name = "knn_accuracy" }, { nam = "alignment" }]', "metric[1].name: is missing"),
        ('[{ name = "alignment" }, { name = "alignment" }]', "metric[1].name = 'alignment': is named twice"),
        ('[{ name = "alignment", mode = "max" }, { name = "uniformity" }]', "metric[0].mode = 'max': alignment is"),
        ('[{ name = "alignment" }, { name = "knn_accuracy", also = [] }]', "metric[1].also = []: unknown key"),
        ('[{ name = "knn_accuracy" }, { name = "spearman" }]', "'spearman': is not measured in task 'image'"),
        ('[{ name = "alignment", smallest_difference = -1 }]', "metric[0].smallest_difference = -1: should be"),
    ],
)
def test_what_is_wrong_with_a_list_is_told_by_its_place(metric: str, words: str) -> None:
    with pytest.raises(ConfigError) as refused:
        read(metric)
    assert words in str(refused.value)


def test_a_training_loss_is_refused_as_a_further_metric_too() -> None:
    with pytest.raises(ConfigError, match=r"metric\[1\].name = 'train/loss': a training loss cannot be compared while"):
        read('[{ name = "knn_accuracy" }, { name = "train/loss" }]')


def test_a_metric_of_a_list_is_set_by_its_number() -> None:
    assert read(BOTH, "metric[1].smallest_difference=0.5").metric.also[0].smallest_difference == 0.5
    assert read('{ name = "alignment" }', f"metric={BOTH}").metric == read(BOTH).metric
    with pytest.raises(ConfigError, match=r"metric is a list; say which one, for example --set 'metric\[0\].mode=max'"):
        read(BOTH, "metric.mode=max")


@pytest.mark.parametrize(("below", "above"), [(BOTH, '{ name = "alignment" }'), ('{ name = "alignment" }', BOTH)])
def test_a_file_that_extends_another_has_the_metrics_that_it_gives(below: str, above: str, tmp_path: Path) -> None:
    """Mutant check: the keys of a table over those of the list's first one."""
    (tmp_path / "base.toml").write_text(FILE.replace("METRIC", below))
    (tmp_path / "own.toml").write_text(f'extends = "base.toml"\nmetric = {above}\n')
    assert load(tmp_path / "own.toml").metric == read(above).metric


# The plan


def planned(seeds: Any, spreads: Mapping[str, SpreadOf] | None = None, also: float = 0.02) -> Any:
    metric = [SWEEP["metric"], {"name": "alignment", "smallest_difference": also}]
    return make(Sweep.model_validate(SWEEP | {"metric": metric, "confirm": {"seeds": seeds}}), spreads)


@pytest.mark.parametrize(
    ("knn", "alignment", "by"), [(0.01, 0.01, "knn_accuracy"), (0.005, 0.02, "alignment"), (0.005, None, None)]
)
def test_enough_seeds_are_those_that_the_metric_takes_which_needs_most(
    knn: float, alignment: float | None, by: str | None
) -> None:
    """Four contrasts by two metrics, at the level of eight tests. Mutant checks: of the first metric; four tests; no
    more than it takes where the other's spread is not known."""
    known = {"knn_accuracy": SpreadOf(knn, "runs/x")}
    known |= {"alignment": SpreadOf(alignment, "runs/y")} if alignment else {}
    made = planned("enough", known)
    needs = [seeds_to_find(0.01 / knn, 0.04, 8), seeds_to_find(0.02 / alignment, 0.04, 8) if alignment else 10]
    most = max(need or 0 for need in needs)
    assert len(made.confirm_seeds) == min(max(most, 8), 20)
    assert made.basis["metric"] == (by or "knn_accuracy")
    assert stored(resolved(made.sweep) | {"plan": made.record()}, made.rules).basis == made.basis


def test_a_plan_says_of_which_metric_nothing_can_be_equivalent() -> None:
    assert any("smallest_difference of alignment is 0" in note for note in planned(8, also=0.0).warnings)
    assert not any("of knn_accuracy is 0" in note for note in planned(8, also=0.0).warnings)


def test_looks_are_held_to_the_level_of_all_metrics_together() -> None:
    """One contrast by one metric has 0.05; by two it could be wrong in both ways, and has 0.04."""
    one = {"compare": {"loss.name": ["infonce", "flatnce"]}}
    for first in (6, 7):
        alone = Sweep.model_validate(SWEEP | one | {"confirm": {"seeds": {"looks": [first, 10, 14]}}})
        both = alone.model_copy(update={"metric": read(BOTH).metric})
        refused = []
        for sweep in (alone, both):
            try:
                make(sweep)
            except ConfigError:
                refused.append(len(sweep.metric.every))
        assert refused == ([1, 2] if first == 6 else [])


def ended(folder: Path, knn: Sequence[float], alignment: Sequence[float]) -> Any:
    run = start(folder, TWO, seeds=len(knn), overrides=[f"metric={BOTH}"])
    for arm, sign in (("plain", 0), ("flat", 1)):
        for trial, one, other in zip(run.confirm(arm), knn, alignment, strict=True):
            run.done(trial, 0.9 + sign * one, more={"alignment": 0.5 + sign * other})
    run.ledger.close()
    return run.plan


def test_the_spread_and_the_power_are_of_each_metric(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant checks: the first metric's spread for both; the power of a single contrast's test."""
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path / "runs"))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    rng = np.random.default_rng(0)
    knn, alignment = list(rng.normal(size=8) * 0.004), list(rng.normal(size=8) * 0.03)
    plan = ended(tmp_path / "runs" / "earlier", knn, alignment)
    found = spread.power(plan, spread.known())
    assert [one.metric for one in found] == ["knn_accuracy", "alignment"]
    for one, d, smallest in zip(found, (knn, alignment), (0.01, 0.02), strict=True):
        assert one.spread is not None
        sd = stdev(d) * np.sqrt(7 / stats.chi2.ppf(0.2, 7))
        assert one.spread.sd == pytest.approx(sd)
        assert one.detectable == pytest.approx(detectable(8, 0.04, 2))
        assert one.needed == seeds_to_find(smallest / float(sd), 0.04, 2)
        (line,) = power_lines([one], smallest, by=one.metric)
        assert line.startswith(f"power:     by {one.metric}, 8 seeds find a difference of")
        assert f"{smallest:g} takes {one.needed:,} seeds" in line
    assert len({one.to_json()["metric"] for one in found}) == 2
    assert "metric" not in spread.power(make(Sweep.model_validate(SWEEP)), spread.known())[0].to_json()
