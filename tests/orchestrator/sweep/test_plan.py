import contextlib
import hashlib
import json
import sqlite3
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import JsonValue

from jobs.config import JobConfig, canonical, trial_id
from jobs.config.identity import FOLLOWED, FORMER, counted_from, default_values
from orchestrator.ledger import Ledger, sqlite_url
from orchestrator.statistics.power import seeds_to_find
from orchestrator.sweep import Sweep, flatten, load, merged, resolved
from orchestrator.sweep.model import cross
from orchestrator.sweep.plan import (
    Plan,
    changed_keys,
    changed_order,
    is_as_begun,
    make,
    stored,
)
from orchestrator.sweep.plan.seeds import SpreadOf
from orchestrator.sweep.plan.trials import Planned
from orchestrator.sweep.space import conditions

ROOT = Path(__file__).parents[3]
DEFAULTS = "09d40ba971c46e19"

SWEEP: dict[str, Any] = {
    "name": "small",
    "question": "Does FlatNCE beat InfoNCE?",
    "metric": {"name": "knn_accuracy", "smallest_difference": 0.01},
    "job": {
        "task": "image",
        "budget": {"samples": 1000},
        "data": {"train": "digits[:1000]", "tune": "digits[1000:1400]", "confirm": "digits[1400:]"},
    },
    "compare": {"loss.name": ["infonce", "dcl", "flatnce"], "batch.size": [16, 64]},
    "tune": {
        "trials": 4,
        "defaults": [{"optimizer.lr": 1e-3}],
        "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}},
    },
}


def plan_of(**changes: Any) -> Any:
    return make(Sweep.model_validate(SWEEP | changes))


def test_contrasts_pair_the_first_factors_levels_within_each_level_of_the_others() -> None:
    assert plan_of().contrasts == (
        ("dcl, size=16", "infonce, size=16"),
        ("dcl, size=64", "infonce, size=64"),
        ("flatnce, size=16", "infonce, size=16"),
        ("flatnce, size=64", "infonce, size=64"),
    )


def test_named_arms_are_compared_with_the_first() -> None:
    arms = [
        {"label": "big", "batch.size": 64},
        {"label": "small", "batch.size": 16},
        {"label": "tiny", "batch.size": 8},
    ]
    assert plan_of(compare={}, arm=arms).contrasts == (("small", "big"), ("tiny", "big"))


@pytest.mark.parametrize(
    ("seeds", "sd", "n"),
    [
        ("enough", None, 10),
        ("enough", 0.001, 8),
        ("enough", 0.01, 16),
        ("enough", 0.02, 20),
        ("fewest", 0.02, 6),
        (7, 0.02, 7),
        ([5, 6, 7], 0.02, 3),
    ],
)
def test_the_number_of_confirm_seeds_follows_from_the_rule_and_what_is_known(
    seeds: Any, sd: float | None, n: int
) -> None:
    """Four contrasts, 0.01 matters. Mutant checks: a level of 0.05, or not divided by the contrasts; no upper bound."""
    made = make(
        Sweep.model_validate(SWEEP | {"confirm": {"seeds": seeds}}),
        None if sd is None else {"knn_accuracy": SpreadOf(sd, "runs/first")},
    )
    assert len(made.confirm_seeds) == made.basis["n"] == n
    needed = seeds_to_find(0.01 / sd, 0.04, 4) if sd and seeds == "enough" else None
    assert made.basis.get("needed") == needed
    assert any("are the most that 'enough' gives" in warning for warning in made.warnings) == ((needed or 0) > 20)
    assert stored(resolved(made.sweep) | {"plan": made.record()}, made.rules).basis == made.basis, "nothing looks again"


def test_a_sweep_that_gives_the_number_of_a_run_begun_with_a_word_is_that_of_the_run() -> None:
    """As shipped sweeps do now. Mutant check: any number."""
    begun = plan_of(confirm={"seeds": "enough"})
    assert is_as_begun(begun, "confirm.seeds", 10)
    assert not is_as_begun(begun, "confirm.seeds", 11)
    assert not is_as_begun(plan_of(confirm={"seeds": 9}), "confirm.seeds", 10)


@pytest.mark.parametrize(
    ("repeats", "sd", "n"), [(3, 0.02, 18), (3, 0.01, 18), (4, 0.02, 20), (5, None, 10), (7, 0.02, 14), (7, None, 14)]
)
def test_with_repeats_enough_is_a_multiple_of_them_and_twenty_at_most(repeats: int, sd: float | None, n: int) -> None:
    """Seen: 21, of seven. Mutant check: the next multiple."""
    tune = {"trials": 2, "repeats": repeats, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2}}}
    sweep = Sweep.model_validate(SWEEP | {"tune": tune, "confirm": {"seeds": "enough"}})
    made = make(sweep, None if sd is None else {"knn_accuracy": SpreadOf(sd, "runs/first")})
    assert len(made.confirm_seeds) == made.basis["n"] == n
    needed = made.basis.get("needed")
    warned = [note for note in made.warnings if "are the most that 'enough' gives" in note]
    assert bool(warned) == ((needed or 0) > n)
    assert all(f"{n} confirm seeds are the most that 'enough' gives in a multiple" in note for note in warned)


def test_without_a_smallest_difference_enough_are_ten() -> None:
    sweep = Sweep.model_validate(SWEEP | {"metric": {"name": "knn_accuracy"}})
    assert len(make(sweep, {"knn_accuracy": SpreadOf(0.01, "runs/first")}).confirm_seeds) == 10


def test_repeats_of_a_grid_that_is_tried_whole_are_told_to_be_the_same() -> None:
    whole = {"trials": 4, "sampler": "grid", "space": {"optimizer.lr": {"choices": [1e-3, 1e-2]}}, "repeats": 2}
    assert any("to try every point in each repeat" in warning for warning in plan_of(tune=whole).warnings)
    more = {"choices": [1e-4, 1e-3, 3e-3, 1e-2, 1e-1]}
    sampled = whole | {"space": {"optimizer.lr": more}}
    assert not any("to try every point" in warning for warning in plan_of(tune=sampled).warnings)


def test_confirm_seeds_are_fresh_and_trials_are_counted() -> None:
    made = plan_of()
    assert made.confirm_seeds == tuple(range(1, 11))
    assert not set(made.confirm_seeds) & set(made.tune_seeds)
    assert made.trials == {"tune": 6 * 4, "confirm": 6 * 10}
    two = plan_of(tune=SWEEP["tune"] | {"seeds": 2})
    assert (two.trials["tune"], two.confirm_seeds[0]) == (6 * 4 * 2, 2)


def test_a_grid_smaller_than_its_budget_is_walked_once() -> None:
    grid = {"trials": 9, "sampler": "grid", "space": {"optimizer.lr": {"choices": [1e-3, 1e-2]}}}
    assert plan_of(tune=grid).trials["tune"] == 6 * 2


def test_trials_of_one_suggestion_differ_in_stage_or_seed_only() -> None:
    made = plan_of(tune=SWEEP["tune"] | {"seeds": 2})
    tuned = made.tune_trials("dcl, size=16", 0, {"optimizer.lr": 0.005})
    confirmed = made.confirm_trials("dcl, size=16", {"optimizer.lr": 0.005})
    everything = [*tuned, *confirmed]
    assert len({trial.id for trial in everything}) == len(everything)
    assert {trial.job.optimizer.lr for trial in everything} == {0.005}
    assert {trial.job.loss.name for trial in everything} == {"dcl"}
    assert [trial.job.stage for trial in everything] == ["tune"] * 2 + ["confirm"] * 10


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"confirm": {"seeds": 3}}, "cannot reach p <= 0.04 (smallest: 0.25)"),
        ({"metric": {"name": "knn_accuracy"}}, "'equivalent' can never be the verdict"),
        ({"tune": {"trials": 2, "space": SWEEP["tune"]["space"]}}, "tune.defaults is empty"),
        ({"tune": None}, "without a tune stage"),
        ({"compare": {"budget.samples": [500, 1000]}}, "budgets are not equal"),
        ({"compare": {"budget.seconds": [5.0, 10.0]}}, "arms train for 10 s, 5 s: their budgets are not equal"),
        ({"arm": [{"label": "a"}, {"label": "b", "budget.seconds": 5.0}], "compare": {}}, "for 3 steps, 5 s"),
        ({"job": SWEEP["job"] | {"data": dict.fromkeys(("train", "tune", "confirm"), "digits")}}, "the same rows"),
    ],
)
def test_a_reader_is_warned(changes: dict[str, Any], words: str) -> None:
    assert any(words in warning for warning in plan_of(**changes).warnings)


def test_a_sound_plan_has_no_warnings() -> None:
    assert plan_of(compare={"loss.name": ["infonce", "flatnce"]}).warnings == ()


def test_the_summary_says_what_differs_between_arms() -> None:
    summary = plan_of().summary()
    assert set(summary["differs"]) == {"loss.name", "batch.size", "steps", "samples", "negatives_per_anchor"}
    assert summary["smallest_p"] == 2.0**-9


def test_changed_keys_are_listed_except_those_that_may_change() -> None:
    def sweep(margin: float, count: int) -> dict[str, JsonValue]:
        resources: dict[str, JsonValue] = {"concurrent": count, "cpus_per_rank": count}
        return {"job": {"loss": {"margin": margin}}, "retry": {"hung": count}, "resources": resources}

    assert changed_keys(sweep(0.1, 1), sweep(0.2, 2)) == [
        ("job.loss.margin", 0.1, 0.2),
        ("resources.cpus_per_rank", 1, 2),
    ]


def test_a_thousand_trials_are_planned_within_five_seconds(tmp_path: Path) -> None:
    began = time.perf_counter()
    made = plan_of(compare={"model.width": list(range(4, 404, 4))}, confirm={"seeds": 10})
    made.summary()
    assert made.trials["confirm"] == 1000
    assert time.perf_counter() - began < 5


def read_back(made: Plan, folder: Path) -> Plan:
    """The plan as a later session finds it: through a ledger in a file."""
    kept = resolved(made.sweep) | {"plan": made.record()}
    with contextlib.closing(
        Ledger.create(sqlite_url(folder / "ledger.db"), name="x", sweep=kept, rules=made.rules)
    ) as ledger:
        return stored(ledger.run.sweep, ledger.run.rules)


def trials_of(plan: Plan) -> list[tuple[str, str, str, int]]:
    """Everything that a plan says of its trials, tuned ones at a setting of our own."""
    tuned = [
        (trial.id, trial.arm, trial.stage, trial.seed)
        for label in plan.suggestions
        for trial in plan.tune_trials(label, 0, {"optimizer.lr": 0.0123})
    ]
    confirmed = [
        (trial.id, trial.arm, trial.stage, trial.seed)
        for arm in plan.arms
        for trial in plan.confirm_trials(arm.label, {"optimizer.lr": 0.0123})
    ]
    return tuned + confirmed


@pytest.mark.parametrize("path", sorted((ROOT / "sweeps").glob("*.toml")), ids=lambda path: path.stem)
@pytest.mark.parametrize("turned", [False, True], ids=["as-it-is", "permuted"])
def test_a_plan_survives_its_ledger(path: Path, turned: bool, tmp_path: Path) -> None:
    """Seen: the ledger sorted keys, so that the plan made again had other arms, and compared sizes with one another in
    place of temperatures. Mutant checks: sorting the keys of what is stored changes nothing here, and making the plan
    again from a sorted sweep fails for every sweep whose factors are not in the order of the alphabet."""
    sweep = load(path)
    if turned:
        sweep = sweep.model_copy(
            update={
                "compare": dict(reversed(sweep.compare.items())),
                "job": dict(reversed(sweep.job.items())),
                "arm": sweep.arm[:1] + sweep.arm[:0:-1],
            }
        )
    made = make(sweep)
    again = read_back(made, tmp_path)
    assert again.contrasts == made.contrasts
    assert [(arm.label, arm.settings) for arm in again.arms] == [(arm.label, arm.settings) for arm in made.arms]
    assert [list(arm.settings) for arm in again.arms] == [list(arm.settings) for arm in made.arms]
    assert (again.tune_seeds, again.confirm_seeds) == (made.tune_seeds, made.confirm_seeds)
    assert (again.suggestions, again.searched_with) == (made.suggestions, made.searched_with)
    assert (again.trials, again.smallest_p, again.warnings) == (made.trials, made.smallest_p, made.warnings)
    assert trials_of(again) == trials_of(made)
    assert again.record() == made.record()
    assert changed_keys(resolved(again.sweep), resolved(made.sweep)) == []
    assert changed_order(again, made) is None


def test_a_default_that_changes_later_changes_no_run_that_is_there(tmp_path: Path) -> None:
    """What was planned has its defaults written out, and its ids are made with the defaults of then."""
    made = make(load(ROOT / "sweeps" / "quickstart.toml"))
    ids = trials_of(made)
    kept: dict[str, Any] = resolved(made.sweep) | {"plan": made.record()}
    kept["plan"]["defaults"]["optimizer.weight_decay"] = 0.5  # as if it had been another one when this was planned
    other = stored(kept, 2)
    assert {trial[0] for trial in trials_of(other)}.isdisjoint(trial[0] for trial in ids)
    later = {**kept["plan"]["defaults"], "loss.a_later_field": 3}
    job = made.confirm_trials(made.arms[0].label, {})[0].record
    grown = merged(job, {"loss.a_later_field": 3})
    assert trial_id(grown, defaults=later) == trial_id(job, defaults=later), "a new field renames nothing"
    assert trial_id(merged(grown, {"loss.a_later_field": 4}), defaults=later) != trial_id(job)


@pytest.mark.parametrize("run", ["crossed", "diverged"])
def test_ids_of_the_first_version_are_made_as_it_made_them(run: str) -> None:
    """Also once jobs have more fields: those at their defaults do not count."""
    with contextlib.closing(sqlite3.connect(ROOT / "tests" / "begun" / run / "ledger.db")) as database:
        rows = database.execute("SELECT id, job FROM trials").fetchall()
    assert rows
    for known, text in rows:
        job = json.loads(text)
        assert trial_id(job, rules=1) == known
        grown = job | {"loss": job["loss"] | {"a_later_field": 3}, "later": {"field": None}}
        later = {"loss.a_later_field": 3, "later.field": None}
        assert trial_id(grown, rules=1, defaults=later) == known
        assert trial_id(grown, rules=1) != known, "a field that is set counts"


def test_the_defaults_of_jobs_are_those_that_ids_were_made_with() -> None:
    """A default that changes makes other jobs of the same file. If that is meant: write the former one, which runs of
    the first rules had (they do not store theirs) and from which ids count, into jobs.config.identity.FORMER, and the
    new one into FOLLOWED."""
    digest = hashlib.sha256(canonical(counted_from(JobConfig)).encode()).hexdigest()[:16]
    assert digest == DEFAULTS


def test_a_former_default_and_the_one_that_followed_it_share_no_id() -> None:
    today = default_values(JobConfig)
    assert {key: today[key] for key in FORMER} == FOLLOWED
    made: dict[str, Any] = make(Sweep.model_validate(SWEEP)).confirm_trials("dcl, size=16", {})[0].record
    ids = {trial_id(made)}
    for key, value in FORMER.items():
        section, name = key.split(".")
        ids.add(trial_id(made | {section: made[section] | {name: value}}))
    assert len(ids) == 1 + len(FORMER)


def test_a_run_that_was_planned_with_former_defaults_has_the_jobs_and_ids_of_then() -> None:
    """As the version before wrote it: jobs written out, defaults of then. Mutant check: today's defaults in the place
    of those that were stored."""
    made = make(load(ROOT / "sweeps" / "quickstart.toml"))
    kept: dict[str, Any] = resolved(made.sweep) | {"plan": made.record()}
    for arm in kept["plan"]["arms"]:
        arm["job"]["model"]["pooling"], arm["job"]["data"]["max_tokens"] = "mean", 32
    trials = [stored(kept, 2).confirm_trials(arm.label, {"optimizer.lr": 0.0123})[0] for arm in made.arms]
    assert {(trial.job.model.pooling, trial.job.data.max_tokens) for trial in trials} == {("mean", 32)}
    assert [trial.id for trial in trials] == ["b91eaafd335c", "a5fe5f0d5a3d"]


@pytest.mark.parametrize("run", ["crossed", "diverged"])
def test_a_plan_of_the_first_version_goes_on_with_the_defaults_of_then(run: str) -> None:
    """Nothing of it names them. Mutant check: `merged` of the sweep's job as it is."""
    with contextlib.closing(sqlite3.connect(ROOT / "tests" / "begun" / run / "ledger.db")) as database:
        ((text,),) = database.execute("SELECT sweep FROM runs").fetchall()
        rows = database.execute("SELECT id, arm, stage, job FROM trials").fetchall()
    plan = stored(json.loads(text), 1)
    frozen = [arm.config(stage="confirm", seed=0) for arm in plan.arms]
    assert {(job.model.pooling, job.data.max_tokens) for job in frozen} == {("mean", 32)}
    for key, value in FORMER.items():
        assert is_as_begun(plan, f"job.{key}", value), "a file that writes it down asks for nothing else"
        assert not is_as_begun(plan, f"job.{key}", FOLLOWED[key])
    assert not is_as_begun(make(plan.sweep), "job.model.pooling", "mean"), "nor is it what a run of today had"
    for known, arm, stage, job in rows:
        values, space = flatten(json.loads(job)), plan.sweep.tune.space if plan.sweep.tune else {}
        settings = {key: values[key] for key in space}
        trials = plan.tune_trials(arm, 0, settings) if stage == "tune" else plan.confirm_trials(arm, settings)
        assert known in {trial.id for trial in trials}


def test_arms_of_one_objective_take_no_seed_from_the_others() -> None:
    """Between them nothing is tested, so there is one comparison less."""
    plan = make(load(ROOT / "sweeps" / "batch_size_vs_accumulation_cpu.toml"))
    same = set(plan.contrasts) - set(plan.tested)
    assert same
    for a, b in same:
        assert plan.arm(a).config(stage="confirm", seed=0).batch == plan.arm(b).config(stage="confirm", seed=0).batch
    assert plan.smallest_p == 2.0 ** (1 - len(plan.confirm_seeds))


SHARED: list[dict[str, Any]] = [
    {  # a value that the other arm may be tuned to
        "arm": [{"label": "default", "optimizer.lr": 1e-3}, {"label": "tuned"}],
        "space": {"optimizer.lr": {"choices": [3e-4, 1e-3, 3e-3], "when": {"arm": "tuned"}}},
    },
    {  # nothing is fixed, but what one has by default
        "arm": [{"label": "a", "loss.temperature": 0.1}, {"label": "b", "loss.temperature": 0.2}, {"label": "c"}],
        "space": {"loss.temperature": {"choices": [0.05, 0.1, 0.2], "when": {"arm": "c"}}},
    },
    {  # each has a key of its own
        "arm": [{"label": "lr", "loss.temperature": 0.1}, {"label": "t", "optimizer.lr": 3e-3}],
        "space": {
            "optimizer.lr": {"choices": [1e-3, 3e-3], "when": {"arm": "lr"}},
            "loss.temperature": {"choices": [0.05, 0.1], "when": {"arm": "t"}},
        },
    },
]


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("shared", SHARED)
def test_no_two_arms_have_a_trial_in_common_whatever_they_are_tuned_to(shared: dict[str, Any], turned: bool) -> None:
    """Of every point of their spaces, in both stages. Mutant check: ids of jobs alone clash in each of these."""
    changes = {
        "compare": {},
        "arm": shared["arm"][::-1] if turned else shared["arm"],
        "tune": {"trials": 8, "sampler": "grid", "space": shared["space"]},
    }
    plan = make(Sweep.model_validate(SWEEP | changes))
    tune = plan.sweep.tune
    assert tune is not None
    trials: list[Planned] = []
    for arm in plan.arms:
        ends = {key: space.choices or [] for key, space in tune.space.items()}
        for number, point in enumerate(conditions.combinations(tune.space, arm.values, ends)):
            trials += [*plan.tune_trials(arm.label, number, point), *plan.confirm_trials(arm.label, point)]
    assert len({trial.id for trial in trials}) == len(trials)
    assert len({replace(trial, apart=False).id for trial in trials}) < len(trials), "else this shows nothing"
    first = plan.arms[0].label
    assert not any(trial.apart for trial in trials if trial.arm == first), "the first one has the ids of its jobs"


def test_an_arm_of_code_of_ones_own_is_called_by_its_name_unless_two_are_called_so() -> None:
    def labels(*names: str) -> list[str]:
        return [arm.label for arm in cross({}, {"loss.name": list(names)}, [])]

    assert labels("infonce", "mylab.losses:focal") == ["infonce", "focal"]
    assert labels("focal", "a:focal") == ["loss.name=focal", "loss.name=a:focal"]
