"""`{seed}` in the name of an encoder: confirm seed s judges the encoder that was trained with seed s."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from jobs.config import OF_SEED
from orchestrator import sweep
from orchestrator.run_dir import provenance
from orchestrator.sweep import plan as planning

SWEEP = """
name = "whitening"
question = "Does whitening help?"
metric = { name = "spearman", smallest_difference = 0.01 }
confirm = { seeds = [1, 2, 3] }

[job]
task = "sentence"
budget = { samples = 0 }
data = { train = "a.tsv", confirm = "b.tsv" }
model = { name = "encoders/A/{seed}" }

[[arm]]
label = "plain"

[[arm]]
label = "whitened"
evaluate.after = "whitening"

[[arm]]
label = "other"
model.name = "encoders/B/{seed}"
"""


@pytest.fixture
def plan(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> planning.Plan:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return planning.make(sweep.load(tmp_path / "sweep.toml"))


def names(plan: planning.Plan, arm: str) -> list[str | None]:
    return [planned.job.model.name for planned in plan.confirm_trials(arm, {})]


def test_each_seed_has_its_encoder_also_in_a_plan_that_was_stored(plan: planning.Plan) -> None:
    """Mutant check: a plan that keeps the job of seed 0 has encoders/A/0 in every trial."""
    expected = {"plain": "A", "whitened": "A", "other": "B"}
    kept = json.loads(json.dumps(sweep.resolved(plan.sweep) | {"plan": plan.record()}))
    again = planning.stored(kept, planning.RULES)
    for arm, letter in expected.items():
        own = [f"encoders/{letter}/{seed}" for seed in (1, 2, 3)]
        assert names(plan, arm) == own
        assert names(again, arm) == own
        ids = [planned.id for planned in plan.confirm_trials(arm, {})]
        assert [planned.id for planned in again.confirm_trials(arm, {})] == ids
        assert len({*ids}) == 3
    assert plan.tested == again.tested == (("whitened", "plain"), ("other", "plain"))


def test_the_files_of_every_seed_are_looked_at(plan: planning.Plan) -> None:
    looked = {job.model.name for job in planning.examined_of(plan)}
    assert looked == {f"encoders/{letter}/{seed}" for letter in "AB" for seed in (1, 2, 3)}


def test_seeds_without_an_encoder_are_named_with_what_makes_them(plan: planning.Plan, tmp_path: Path) -> None:
    for name in ("A/1", "A/2", "A/3", "B/2"):
        (tmp_path / "encoders" / name).mkdir(parents=True)
    with pytest.raises(provenance.DataFault) as caught:
        provenance.examine(plan)
    (line,) = str(caught.value).splitlines()
    assert line.startswith(f"arm other: model.name = 'encoders/B/{OF_SEED}' is no folder for the confirm seeds 1, 3;")
    assert f"orchestrator export RUN ARM 'encoders/B/{OF_SEED}'" in line
    for seed in (1, 3):
        (tmp_path / "encoders/B" / str(seed)).mkdir()
    assert planning.missing_encoders(plan) == []


def test_what_is_said_of_every_seed_s_encoder_is_said_once(plan: planning.Plan) -> None:
    of_a = [f"model.name = 'encoders/A/{seed}' is read as its folder says" for seed in (1, 2, 3)]
    of_b = [f"model.name = 'encoders/B/{seed}' has no length" for seed in (1, 3)]
    said = planning.once_of_seeds(plan, ["other", *of_a, *of_b, "other"])
    assert said == ["other", f"model.name = 'encoders/A/{OF_SEED}' is read as its folder says", *of_b]
