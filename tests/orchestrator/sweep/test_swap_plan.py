"""[confirm] swap: what is planned of it, and what is refused."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from answers import answered
from click.testing import CliRunner

from jobs.config import ConfigError
from orchestrator.cli import main
from orchestrator.ledger import Frozen
from orchestrator.preflight.estimate import estimate
from orchestrator.preflight.estimate.model import Known
from orchestrator.preflight.estimate.text import time_line
from orchestrator.run_dir.status import settings_of
from orchestrator.session.schedule import as_trial
from orchestrator.sweep import Sweep, resolved
from orchestrator.sweep.plan import Plan, make, stored
from orchestrator.sweep.plan.swaps import at_setting
from orchestrator.sweep.plan.trials import apart_id
from orchestrator.sweep.validate import contradictions

ROOT = Path(__file__).parents[3]

SWEEP: dict[str, Any] = {
    "name": "small",
    "question": "Which?",
    "metric": {"name": "knn_accuracy", "smallest_difference": 0.01},
    "job": {
        "task": "image",
        "budget": {"steps": 8},
        "data": {"train": "digits[:1000]", "tune": "digits[1000:1400]", "confirm": "digits[1400:]"},
    },
    "compare": {"loss.name": ["infonce", "flatnce"]},
    "tune": {"trials": 4, "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True}}},
    "confirm": {"seeds": 10, "swap": True},
}


def plan_of(**changes: Any) -> Plan:
    return make(Sweep.model_validate(SWEEP | changes))


def issue_of(**changes: Any) -> str:
    (issue,) = contradictions(Sweep.model_validate(SWEEP | changes))
    return str(issue)


def test_the_trials_are_counted_and_kept_with_the_run() -> None:
    plan = plan_of(compare={"loss.name": ["infonce", "flatnce", "dcl"]})
    assert plan.trials == {"tune": 12, "confirm": 30, "swap": 40}
    summary = plan.summary()
    assert summary["trials"] == {"tune": 12, "confirm": 30, "swap": 40}
    assert summary["swaps"] == [
        {"a": "flatnce", "b": "infonce", "keys": ["optimizer.lr"]},
        {"a": "dcl", "b": "infonce", "keys": ["optimizer.lr"]},
    ]
    kept = json.loads(json.dumps(plan.sweep.model_dump(mode="json") | {"plan": plan.record()}))
    again = stored(kept, plan.rules)
    assert (again.swaps, again.trials) == (plan.swaps, plan.trials)
    frozen = {"infonce": {"optimizer.lr": 1e-3}, "flatnce": {"optimizer.lr": 2e-3}}
    assert again.swapped(frozen) == {
        ("infonce", "flatnce"): {"optimizer.lr": 2e-3},
        ("flatnce", "infonce"): {"optimizer.lr": 1e-3},
    }


def test_a_sweep_that_does_not_ask_for_it_has_none_of_it() -> None:
    plan = plan_of(confirm={"seeds": 10})
    assert (plan.swaps, plan.trials) == ((), {"tune": 8, "confirm": 20})
    assert "swaps" not in plan.summary()
    assert plan.swapped({"infonce": {}, "flatnce": {}}) == {}


def test_an_id_is_that_of_no_confirm_trial() -> None:
    """Neither of the job's own, nor of an arm that is kept apart. Mutant check: `apart_id` for swapped trials."""
    plan = plan_of()
    (swapped, *_), (confirmed, *_) = (
        make_trials("infonce", {"optimizer.lr": 2e-3}) for make_trials in (plan.swap_trials, plan.confirm_trials)
    )
    assert swapped.job == confirmed.job
    assert swapped.id not in (confirmed.id, apart_id(confirmed.id, "infonce"))
    assert swapped.id != plan.swap_trials("flatnce", {"optimizer.lr": 2e-3})[0].id


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"tune": None}, "nothing is tuned; add [tune], or leave confirm.swap out"),
        ({"tune": SWEEP["tune"] | {"repeats": 2}}, "tune.repeats = 2 makes several; set tune.repeats = 1"),
        (
            {"confirm": {"seeds": {"looks": [7, 10, 14]}, "swap": True}},
            "give confirm.seeds = 10, or leave confirm.swap",
        ),
    ],
)
def test_what_does_not_go_together_is_refused_with_what_does(changes: dict[str, Any], words: str) -> None:
    issue = issue_of(**changes)
    assert issue.startswith("confirm.swap = true: ")
    assert words in issue


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"compare": {}, "arm": [{"label": "plain"}]}, "and no two arms are compared; compare an arm with another one"),
        (
            {"compare": {}, "arm": [{"label": "plain"}, {"label": "micro", "execution.micro": 32}]},
            "and micro against plain differ in execution alone; compare arms that differ in more",
        ),
    ],
)
def test_where_nothing_can_be_swapped_the_cause_is_named(changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError) as no:
        plan_of(**changes)
    assert f"{words}, or leave confirm.swap out" in str(no.value)
    assert "in common" not in str(no.value)


def test_of_several_causes_each_is_named() -> None:
    """One arm tunes what no other does, and one differs in execution alone."""
    tune = SWEEP["tune"] | {"space": {"optimizer.lr": SWEEP["tune"]["space"]["optimizer.lr"] | {"when": {"arm": "c"}}}}
    arms = [{"label": "a"}, {"label": "b", "execution.micro": 32}, {"label": "c", "loss.name": "flatnce"}]
    with pytest.raises(ConfigError) as no:
        plan_of(compare={}, arm=arms, tune=tune)
    assert "b against a differ in execution alone" in str(no.value)
    assert "c against a tune no key in common" in str(no.value)


def test_arms_without_a_tuned_key_in_common_are_refused_or_named() -> None:
    """All of them, or a part. Mutant check: keys of the space whatever their condition."""
    conditions = [{"when": {"loss.name": name}} for name in ("infonce", "flatnce")]
    one, other = ({"low": 1e-4, "high": 1e-2, "log": True} | when for when in conditions)
    tune = SWEEP["tune"] | {"space": {"optimizer.lr": one, "optimizer.weight_decay": other}}
    with pytest.raises(ConfigError, match="and flatnce against infonce tune no key in common; tune") as no:
        plan_of(tune=tune)
    assert "tune one in both, such as 'optimizer.lr', or leave confirm.swap out" in str(no.value)
    everywhere = one | {"when": {"loss.name": ["infonce", "dcl"]}}
    plan = plan_of(
        compare={"loss.name": ["infonce", "flatnce", "dcl"]},
        tune=tune | {"space": tune["space"] | {"optimizer.lr": everywhere}},
    )
    assert [(swap.a, swap.b, swap.keys) for swap in plan.swaps] == [("dcl", "infonce", ("optimizer.lr",))]
    note = "confirm.swap: flatnce against infonce tune no key in common, and are not swapped"
    assert any(note in warning for warning in plan.warnings)


def test_arms_of_one_search_are_not_swapped() -> None:
    """They differ in execution alone."""
    arms = [{"label": "plain"}, {"label": "flat", "loss.name": "flatnce"}, {"label": "micro", "execution.micro": 32}]
    plan = plan_of(compare={}, arm=arms)
    assert [(swap.a, swap.b) for swap in plan.swaps] == [("flat", "plain")]
    note = "confirm.swap: micro against plain differ in execution alone, and are not swapped"
    assert note in plan.warnings


def test_keys_whose_condition_goes_with_the_others_setting_go_too() -> None:
    """Mutant check: momentum for an optimizer that has none. One that the other's setting calls for and that nobody
    was tuned to is the arm's own."""
    space = Sweep.model_validate(
        SWEEP
        | {
            "tune": {
                "trials": 4,
                "space": {
                    "optimizer.name": {"choices": ["adamw", "sgd"]},
                    "optimizer.momentum": {"low": 0.5, "high": 0.9, "when": {"optimizer.name": "sgd"}},
                    "optimizer.warmup": {
                        "low": 0.0,
                        "high": 0.2,
                        "when": {"optimizer.name": "adamw", "arm": "flatnce"},
                    },
                },
            }
        }
    ).tune
    assert space is not None
    plan = plan_of()
    adamw: dict[str, Any] = {"optimizer.name": "adamw", "optimizer.warmup": 0.1}
    sgd: dict[str, Any] = {"optimizer.name": "sgd", "optimizer.momentum": 0.7}
    keys = ("optimizer.name", "optimizer.momentum")
    values = {label: plan.arm(label).values for label in ("infonce", "flatnce")}
    assert at_setting(space.space, values["flatnce"], adamw, sgd, keys) == sgd
    assert at_setting(space.space, values["infonce"], sgd, adamw, keys) == {"optimizer.name": "adamw"}
    assert at_setting(space.space, values["flatnce"], sgd, {"optimizer.name": "adamw"}, keys) == {
        "optimizer.name": "adamw"
    }


CONDITIONAL: dict[str, Any] = {
    "compare": {},
    "arm": [{"label": "b", "batch.size": 64}, {"label": "a", "loss.name": "flatnce", "batch.size": 64}],
    "tune": {
        "trials": 4,
        "space": {
            "batch.size": {"choices": [32, 64], "when": {"arm": "a"}},
            "loss.temperature": {"choices": [0.2, 0.5], "when": {"batch.size": 64}},
        },
    },
}
"""`a` alone tunes the batch that the temperature is tuned at."""


def test_what_an_arm_was_tuned_to_stays_its_own_where_the_other_has_none() -> None:
    """A key that both may tune, and the other one's setting does not. Mutant check: leaving out all that both tune."""
    plan = plan_of(**CONDITIONAL)
    assert plan.sweep.tune is not None
    space, keys = plan.sweep.tune.space, ("loss.temperature", "optimizer.lr")
    assert [swap.keys for swap in plan.swaps] == [("loss.temperature",)]
    own, other = {"loss.temperature": 0.5, "optimizer.lr": 0.1}, {"batch.size": 32, "optimizer.lr": 0.2}
    with_rate = dict(space) | {"optimizer.lr": Sweep.model_validate(SWEEP).tune.space["optimizer.lr"]}  # type: ignore[union-attr]
    assert at_setting(with_rate, plan.arm("b").values, own, other, keys) == own | {"optimizer.lr": 0.2}
    assert at_setting(with_rate, plan.arm("a").values, other, own, keys) == other | {"optimizer.lr": 0.1}


def test_where_nothing_of_the_others_setting_is_left_there_is_no_swap() -> None:
    """The arm would be trained at its own setting. Mutant check: settings without a key of the other's."""
    plan = plan_of(**CONDITIONAL)
    assert plan.swapped({"a": {"batch.size": 32}, "b": {"loss.temperature": 0.5}}) == {}
    both = plan.swapped({"a": {"batch.size": 64, "loss.temperature": 0.2}, "b": {"loss.temperature": 0.5}})
    assert both == {
        ("b", "a"): {"loss.temperature": 0.2},
        ("a", "b"): {"batch.size": 64, "loss.temperature": 0.5},
    }


def test_status_tells_the_settings_of_a_swapped_trial_apart_by_all_that_is_tuned() -> None:
    """At the setting of one arm the baseline has its own warmup, which neither was tuned to. Mutant check: the first
    setting that has no other value of its keys."""
    space = {
        "optimizer.name": {"choices": ["adamw", "sgd"]},
        "batch.size": {"choices": [32, 64], "when": {"arm": "x"}},
        "optimizer.warmup": {"low": 0.0, "high": 0.4, "when": {"optimizer.name": "adamw", "batch.size": 64}},
    }
    arms = [{"label": "base"}, {"label": "x", "loss.name": "flatnce"}, {"label": "y", "loss.name": "dcl"}]
    job = SWEEP["job"] | {"batch": {"size": 64}}
    plan = plan_of(compare={}, arm=arms, job=job, tune={"trials": 4, "space": space})
    params: dict[str, dict[str, Any]] = {
        "base": {"optimizer.name": "sgd"},
        "x": {"optimizer.name": "adamw", "batch.size": 32},
        "y": {"optimizer.name": "adamw", "optimizer.warmup": 0.3},
    }
    called = plan.swapped(params)
    assert (called["base", "x"], called["base", "y"]) == ({"optimizer.name": "adamw"}, params["y"])
    trials = [as_trial(planned) for who in "xy" for planned in plan.swap_trials("base", called["base", who])[:1]]
    run: Any = SimpleNamespace(sweep=resolved(plan.sweep) | {"plan": plan.record()}, rules=plan.rules)
    frozen = {arm: Frozen(own, 0, "") for arm, own in params.items()}
    shown = settings_of(run, trials, [], frozen)
    assert [shown[trial.id] for trial in trials] == [called["base", "x"], called["base", "y"]]


def test_the_time_counts_the_most_there_may_be_and_says_so() -> None:
    job = plan_of().arm("infonce").config(stage="confirm", seed=0)
    known = [Known(job, 0, 10.0, 512, 1.0, None, "runs/before")]
    for swap, word in ((True, " at most (48 trials"), (False, " (28 trials")):
        found = estimate(plan_of(confirm={"seeds": 10, "swap": swap}), known, concurrent=1)
        assert f"{word}, one at a time)" in time_line(found, None)
        assert [note for note in found.notes if "confirm.swap" in note] == [
            "confirm.swap takes 20 of the trials at most, which the time counts: fewer where arms are tuned alike"
        ] * swap


def test_the_time_counts_them_by_arm() -> None:
    """The baseline is swapped with every other arm."""
    plan = plan_of(compare={"loss.name": ["infonce", "flatnce", "dcl"]})
    found = {arm.label: arm.trials for arm in estimate(plan, [], concurrent=1).arms}
    assert found == {"infonce": 4 + 10 + 20, "flatnce": 4 + 10 + 10, "dcl": 4 + 10 + 10}
    assert sum(found.values()) == sum(plan.trials.values())


def test_plan_prints_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_RUNS", str(tmp_path))
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    command = ["plan", str(ROOT / "sweeps" / "quickstart.toml"), "--set", "confirm.swap=true"]
    done = CliRunner().invoke(main, command)
    assert done.exit_code == 0, done.output
    assert " swapped at most" in done.output
    assert "each arm also at the other's setting, beside the verdict: " in done.output
    answer = answered("plan", CliRunner().invoke(main, [*command, "--json"]).stdout)
    assert answer["trials"]["swap"] == 2 * len(answer["swaps"]) * len(answer["confirm_seeds"])
    refused = CliRunner().invoke(main, [*command, "--set", "confirm.seeds={looks=[7, 10, 14]}"])
    assert (refused.exit_code, "confirm.swap = true" in refused.output) == (2, True), refused.output
