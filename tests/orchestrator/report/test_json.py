"""What `compare --json` prints is read by other programs: its keys, their order and its numbers stay as they are."""

from __future__ import annotations

import contextlib
import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from ledgers import BETTER, TUNED, TWO, Begin, answer_of, finished, tuned

from orchestrator import report
from orchestrator.run_dir.folder import RunFolder

BEGUN = Path(__file__).parents[2] / "begun"

HEAD = ["question", "metric", "mode", "smallest_difference"]
MIDDLE = ["complete", "sentence", "arms", "held_equal", "comparisons", "execution_only", "seeds", "alpha"]
MIDDLE += ["smallest_p"]
ARM = [
    *("label", "settings", "n", "mean", "ci95", "diverged", "divergence_rate", "divergence_ci95", "untrained"),
    *("budget", "samples", "samples_range", "steps", "steps_range", "seconds", "seconds_range"),
    *("negatives_per_anchor", "ranks", "samples_per_second", "peak_memory_mb", "rank_seconds"),
    *("worse_than_untrained", "collapsed", "metrics", "values"),
    *("tune", "code"),
]


def rounded(value: Any) -> Any:
    """Numbers of another processor differ in their last digits."""
    if isinstance(value, dict):
        return {key: rounded(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [rounded(inner) for inner in value]
    return float(f"{value:.10g}") if isinstance(value, float) else value


@pytest.mark.parametrize("name", ["diverged", "crossed"])
def test_the_answer_of_a_kept_run_is_what_it_was(tmp_path: Path, name: str) -> None:
    """One has ended, the other is in the middle of its tuning; `answers.json` was printed before the numbers had types
    of their own. Mutant check: two fields of a record in another order."""
    shutil.copytree(BEGUN / name, tmp_path / name)
    with contextlib.closing(RunFolder(tmp_path / name).open()) as ledger:
        found = report.summarize(ledger).to_json()
    kept = json.loads((BEGUN / "answers.json").read_text("utf-8"))[name]
    assert json.dumps(rounded(found), indent=1) == json.dumps(rounded(kept), indent=1)


def test_the_keys_of_a_run_and_of_several_keep_their_order(begin: Begin) -> None:
    one, two = finished(begin(), BETTER), finished(begin(TWO + '"budget.samples" = 2000\n'), BETTER)
    found = report.summarize_several({"a": one.ledger, "b": two.ledger}).to_json()
    assert list(found) == [*HEAD, *MIDDLE, "unit", "runs", "notes"]
    arms: Any = found["arms"]
    assert list(arms[0]) == [*ARM, "run", "arm"]
    runs: Any = found["runs"]
    own = ["unit", "looks", "trials", "attempts", "rank_seconds", "code", "failures", "diverged", "environment", "data"]
    own += ["which", "exploratory", "swaps", "warnings", "notes", "without_rows"]
    assert list(runs[0]) == ["name", *HEAD, "sweep", "run", "state", "created", *MIDDLE, *own]
    assert list(runs[1]["arms"][0]) == ARM


def test_whole_numbers_of_the_ledger_stay_whole(tmp_path: Path, begin: Begin) -> None:
    """Pairs, steps and a range of them are printed without a point. Mutant check: a float of each."""
    run = tuned(tmp_path / "tuned")
    plain = answer_of(run.ledger)["arms"][0]
    run.ledger.close()
    assert json.dumps([plain[key] for key in ("samples", "samples_range", "steps")]) == "[768, [768, 768], 3]"
    assert json.dumps(plain["tune"]["suggestions"][0]["params"]) == '{"optimizer.lr": 0.001}'
    queued = answer_of(begin(tune=TUNED).ledger)["arms"][0]
    assert json.dumps([queued[key] for key in ("samples", "samples_range", "seconds")]) == "[768, null, null]"


def test_the_users_code_is_told_where_there_is_any(begin: Begin) -> None:
    """In its place between what else a number comes from. Mutant check: a group without it."""
    run = finished(begin(), BETTER)
    computed: Any = {"code": "ab12", "versions": {"torch": "2.13.0"}}
    own = computed | {"user_code": "cd34"}
    for trial, recorded in zip(run.ledger.trials("confirm"), [computed, own], strict=False):
        run.ledger.set_provenance(trial.id, 1, recorded | {"data": {}, "weights": {}})
    run.ledger.set_run(provenance=own)
    groups = answer_of(run.ledger)["code"]
    keys = {group.get("user_code"): list(group) for group in groups if group["code"]}
    assert keys == {
        "cd34": ["code", "versions", "user_code", "accepted", "trials"],
        None: ["code", "versions", "accepted", "trials"],
    }
