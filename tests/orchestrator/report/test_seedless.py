"""What is not trained says the same for every seed: copies of a number are no test, and are not made into one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ledgers import Begin, Run, answer_of
from scipy import stats

from jobs.config import ConfigError, components
from jobs.config.after_sections import DRAWN
from orchestrator import report, sweep
from orchestrator.report.summary.records import Summary
from orchestrator.report.summary.sentences import sentence
from orchestrator.report.tables.blocks import Bullets, Grid
from orchestrator.report.tables.content import page
from orchestrator.statistics import rows as of_rows
from orchestrator.sweep import plan as planning

UNTRAINED = '[compare]\n"evaluate.neighbours" = [5, 10, 20]\n'
TRAINED = "job.budget.samples=0"


def played(run: Run, values: dict[str, list[float]]) -> dict[str, Any]:
    for arm, own in values.items():
        for trial, value in zip(run.confirm(arm), own, strict=True):
            run.done(trial, value)
    run.ledger.set_run(state="done")
    return answer_of(run.ledger)


COPIES = {"neighbours=5": [0.5] * 10, "neighbours=10": [0.6] * 10, "neighbours=20": [0.7] * 10}


def test_copies_of_one_number_are_one_pair(begin: Begin) -> None:
    """Mutant check: without the guard both are better with p = 0.002, and 20 beats all."""
    said = played(begin(UNTRAINED, seeds=10, overrides=[TRAINED]), COPIES)
    assert [(one["n"], one["verdict"]) for one in said["comparisons"]] == [(1, "inconclusive")] * 2
    assert [one["p_adjusted"] for one in said["comparisons"]] == [1.0, 1.0]
    assert said["which"] is None


def test_what_is_trained_or_differs_by_seed_is_tested_as_ever(begin: Begin) -> None:
    drawn = COPIES | {"neighbours=20": [0.7 + seed / 1000 for seed in range(10)]}
    said = played(begin(UNTRAINED, seeds=10, overrides=[TRAINED]), drawn)
    assert [(one["n"], one["verdict"]) for one in said["comparisons"]] == [(1, "inconclusive"), (10, "a_better")]
    said = played(begin(UNTRAINED, seeds=10), COPIES)
    assert {one["n"] for one in said["comparisons"]} == {10}


MANY = '[compare]\n"evaluate.neighbours" = [5, 10, 20, 40, 80]\n'


def summary_of(run: Run, values: dict[str, float], rows: float) -> Summary:
    """The summary of arms whose seeds all say that, with intervals on other rows of that half width."""
    for arm, value in values.items():
        for trial in run.confirm(arm):
            run.done(trial, value)
    run.ledger.set_run(state="done")
    made = report.summarize(run.ledger)
    assert all(one.is_seedless for one in made.comparisons), "with or without rows that were kept"
    return replace(made, comparisons=[
        replace(one, parts=replace(one.parts, interval=(one.result.delta - rows, one.result.delta + rows)))
        for one in made.comparisons if one.result.delta is not None
    ])  # fmt: skip


def test_differences_that_no_seed_changes_are_told_with_their_intervals_on_other_rows(begin: Begin) -> None:
    """Mutant check: said to be inconclusive by one pair of seeds, with a chance of 0.05 of a wrong claim."""
    values = dict(zip((f"neighbours={k}" for k in (5, 10, 20, 40, 80)), (0.5, 0.6, 0.7, 0.4, 0.52), strict=True))
    made = summary_of(begin(MANY, seeds=2, overrides=[TRAINED]), values, 0.05)
    assert sentence(made) == (
        "No seed changes this, as nothing is trained, so there is no test. In knn_accuracy, with intervals on other "
        "rows of the same kind: neighbours 10 +0.1000 [+0.0500, +0.1500], neighbours 20 +0.2000 [+0.1500, +0.2500], "
        "neighbours 40 -0.1000 [-0.1500, -0.0500] and neighbours 80 +0.0200 [-0.0300, +0.0700] against 5."
    )
    shown = page(made, cast("Any", {}), ())
    (sure,) = [one.text for one in shown.answers if one.key == "sure"]
    assert sure == (
        "No seed changes 4 differences, as nothing is trained, so there is no test; 3 of 4 intervals on other rows of "
        "the same kind leave out 0."
    )
    (table,) = [one for one in shown.blocks if isinstance(one, Grid) and "p alone" in one.headings]
    assert [(row[2], row[4], row[5], row[6]) for row in table.rows][:1] == [("no test", "[+0.0500, +0.1500]", "–", "–")]
    (reading,) = [one for one in shown.blocks if isinstance(one, Bullets)][:1]
    assert "there is no test" in " ".join(reading.items)
    assert "sign" not in " ".join(reading.items)


def test_of_very_many_it_is_told_how_many_hold(begin: Begin) -> None:
    many = MANY.replace("80]", "80, 90, 95, 99]")
    values = {f"neighbours={k}": 0.5 + k / 1000 for k in (5, 10, 20, 40, 80, 90, 95, 99)}
    made = summary_of(begin(many, seeds=2, overrides=[TRAINED]), values, 0.05)
    assert sentence(made).endswith("4 of 7 intervals on other rows of the same kind leave out 0.")


@given(st.lists(st.integers(-1000, 1000), min_size=3, max_size=30))
def test_one_difference_has_the_interval_of_its_rows(apart: list[int]) -> None:
    """The t interval over rows, of a mean."""
    x = np.array(apart) / 1000
    known = of_rows.of_means(x)
    assert known is not None
    parts = of_rows.parts_of_one([float(x.mean())], known, 0.95)
    half = stats.t.ppf(0.975, len(x) - 1) * x.std(ddof=1) / np.sqrt(len(x))
    assert parts.interval == pytest.approx((x.mean() - half, x.mean() + half), abs=1e-9)
    assert of_rows.parts_of_one([0.1, 0.2], known, 0.95).interval is None


SWEEP = """# Does whitening help?
name = "whitening"
question = "Does whitening help?"
metric = { name = "spearman", smallest_difference = 0.01 }
confirm = { seeds = SEEDS }

[job]
task = "sentence"
budget = { samples = 0 }
data = { train = "a.tsv", confirm = "b.tsv" }
model = { name = "some/folder" }
evaluate = { after = "AFTER" }

[compare]
"evaluate.after_options.k" = [8, 16]
"""


def plan_of(folder: Path, after: str, seeds: str) -> planning.Plan:
    (folder / "sweep.toml").write_text(SWEEP.replace("AFTER", after).replace("SEEDS", seeds))
    return planning.make(sweep.load(folder / "sweep.toml"))


@pytest.mark.parametrize("seeds", ["10", "[1, 2]", '"enough"', "{ looks = [7, 10, 14] }"])
def test_seeds_that_cannot_differ_are_refused_before_anything_runs(tmp_path: Path, seeds: str) -> None:
    with pytest.raises(ConfigError, match=r"confirm.seeds = .*nothing differs between seeds.*set confirm.seeds = 1"):
        plan_of(tmp_path, "pca", seeds)


def test_one_seed_is_a_plan_where_none_differ_and_none_where_they_do(tmp_path: Path) -> None:
    assert "there is no test" in " ".join(plan_of(tmp_path, "pca", "1").warnings)
    assert len(plan_of(tmp_path, "random_projection", "10").confirm_seeds) == 10
    with pytest.raises(ConfigError, match="two seeds or more"):
        plan_of(tmp_path, "random_projection", "1")


def test_the_built_ins_that_draw_are_those_that_ask_for_the_seed() -> None:
    asking = {name for name in components.builtin_names("after")
              if components.asks_for(components.load("after", name), "seed")}  # fmt: skip
    assert asking == set(DRAWN)
