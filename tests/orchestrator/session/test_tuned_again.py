"""[tune] repeats: every arm tuned anew, its settings shared out over the confirm seeds, the repeat as the unit."""

from __future__ import annotations

import math
import random
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest
from pydantic import ValidationError
from test_session import SWEEP, done, opened, play

from jobs.config import ConfigError
from jobs.core.failures import Failure
from orchestrator.report.summary.evidence import summarize
from orchestrator.run_dir.context import Extend
from orchestrator.run_dir.folder import RunError
from orchestrator.session.schedule import extension, untuned_arms
from orchestrator.session.writer import Dispatch
from orchestrator.sweep import Sweep, search
from orchestrator.sweep.plan import make, stored
from orchestrator.sweep.validate import contradictions

TUNE = {"trials": 4, "sampler": "random", "space": {"optimizer.lr": {"low": 1e-4, "high": 1e-1, "log": True}}}


CHOICES = {"choices": [1e-3, 3e-3], "when": {"arm": "tuned"}}


def changes(repeats: int, seeds: int, **tune: Any) -> dict[str, Any]:
    return {"tune": TUNE | {"repeats": repeats} | tune, "confirm": {"seeds": seeds}}


def noisy(dispatch: Dispatch) -> dict[str, Any]:
    """A metric with noise of its own for every setting, by which tuning chooses."""
    lr, loss = dispatch.job["optimizer"]["lr"], dispatch.job["loss"]["name"]
    noise = random.Random(f"{loss} {lr} {dispatch.job['seed']}").gauss(0, 0.01)
    return done(dispatch, 0.8 - 0.02 * abs(math.log10(lr) + 2) + noise)


@pytest.mark.parametrize("sampler", ["random", "tpe"])
def test_each_repeat_is_the_tuning_of_its_own_seed_and_has_its_share_of_the_confirm_seeds(
    tmp_path: Path, sampler: str
) -> None:
    """Mutant check: repeats that see the suggestions of each other, or share one setting."""
    with opened(tmp_path, changes(3, 6, sampler=sampler, trials=12)) as (session, ledger, _, plan):
        session.start()
        play(session, noisy)
        assert session.broken is None
        suggestions = ledger.suggestions("infonce")
        confirm = {trial.seed: trial for trial in ledger.trials(stage="confirm", arm="infonce")}
        frozen = ledger.frozen()["infonce"]
        said = summarize(ledger)
    assert len(suggestions) == 36
    assert [one.number for one in suggestions] == list(range(36))
    tune = plan.sweep.tune
    assert tune is not None
    for repeat in range(3):
        own = suggestions[12 * repeat : 12 * repeat + 12]
        drawn = search.suggest(
            tune, mode="max", sweep_seed=repeat, arm="infonce", number=0, history=[], base=plan.arm("infonce").values
        )
        assert own[0].params == drawn
        rates = {confirm[seed].config.optimizer.lr for seed in plan.seeds_of(repeat)}
        assert len(rates) == 1
        assert rates <= {one.params["optimizer.lr"] for one in own}
    assert plan.seeds_of(1) == plan.confirm_seeds[1::3]
    assert frozen.params["optimizer.lr"] == confirm[plan.confirm_seeds[0]].config.optimizer.lr
    tuned = said.arms[0].tune
    assert tuned is not None
    assert [setting["optimizer.lr"] for setting in tuned.repeats] == [
        confirm[plan.confirm_seeds[repeat]].config.optimizer.lr for repeat in range(3)
    ]
    assert said.unit == "seed"
    assert any("over 3 repeats of the tuning the mean difference has a standard deviation of" in n for n in said.notes)


def test_from_six_on_the_repeat_is_the_unit_of_the_test(tmp_path: Path) -> None:
    with opened(tmp_path, changes(6, 12)) as (session, ledger, _, plan):
        session.start()
        play(session, noisy)
        said, trials = summarize(ledger), ledger.trials(stage="confirm")
    metric = {(trial.arm, trial.seed): trial.metric or 0.0 for trial in trials}
    (comparison,) = said.comparisons
    assert (said.unit, comparison.result.n, said.smallest_p) == ("repeat", 6, 2**-5)
    for repeat, pair in enumerate(comparison.result.pairs):
        seeds = plan.seeds_of(repeat)
        assert pair.difference == pytest.approx(
            fmean(metric["flatnce", seed] - metric["infonce", seed] for seed in seeds)
        )
    assert "6 repeats" in said.sentence
    assert said.arms[0].n == 12
    assert plan.smallest_p == 2**-5


def test_a_repeat_with_a_seed_that_diverged_has_diverged(tmp_path: Path) -> None:
    def some_diverge(dispatch: Dispatch) -> dict[str, Any]:
        report = noisy(dispatch)
        if (
            dispatch.job["stage"] == "confirm"
            and dispatch.job["loss"]["name"] == "flatnce"
            and dispatch.job["seed"] == 7
        ):
            report["result"] |= {"outcome": "diverged", "metrics": {}}
        return report

    with opened(tmp_path, changes(6, 12)) as (session, ledger, _, _plan):
        session.start()
        play(session, some_diverge)
        (comparison,) = summarize(ledger).comparisons
    assert [pair.diverged for pair in comparison.result.pairs].count("a") == 1
    assert comparison.result.n == 6


@pytest.mark.parametrize(
    ("seeds", "places", "verdict"),
    [
        (24, [(0, 0), (1, 1), (2, 3)], "inconclusive"),
        (24, [(repeat, 0) for repeat in range(6)], "b_better"),
        (24, [(repeat, k) for repeat in range(3) for k in range(4)], "diverges"),
        (12, [(repeat, 1) for repeat in range(6)], "diverges"),
    ],
    ids=["3 of 24", "6 of 24", "12 of 24", "6 of 12"],
)
def test_half_of_the_seeds_decide_that_an_arm_diverges_whatever_repeats_they_are_of(
    tmp_path: Path, seeds: int, places: list[tuple[int, int]], verdict: str
) -> None:
    """Seen: "flatnce diverged in 3 of 24 seeds: it is not compared", as these were of three repeats of six."""
    fallen = set[int]()

    def some_diverge(dispatch: Dispatch) -> dict[str, Any]:
        report = noisy(dispatch)
        job = dispatch.job
        if job["stage"] == "confirm" and job["loss"]["name"] == "flatnce" and job["seed"] in fallen:
            report["result"] |= {"outcome": "diverged", "metrics": {}}
        return report

    with opened(tmp_path, changes(6, seeds)) as (session, ledger, _, plan):
        fallen |= {plan.seeds_of(repeat)[k] for repeat, k in places}
        session.start()
        play(session, some_diverge)
        said = summarize(ledger)
    (comparison,) = said.comparisons
    assert (comparison.result.verdict, said.arms[1].diverged, len(fallen)) == (verdict, len(places), len(places))
    repeats = len({repeat for repeat, _ in places})
    assert comparison.result.diverged("a") == repeats
    words = (
        f"{len(places)} of {seeds} seeds: it is not compared" if verdict == "diverges" else f"{repeats} of 6 repeats"
    )
    assert f"flatnce diverged in {words}" in said.sentence


def test_a_tuning_that_is_cut_anywhere_goes_on_to_the_same(tmp_path: Path) -> None:
    sweep = changes(2, 4, trials=3)
    with opened(tmp_path / "calm", sweep, concurrent=1) as (session, ledger, _, _plan):
        session.start()
        whole = len(play(session, noisy))
        calm = {trial.id: (trial.state, trial.metric) for trial in ledger.trials()}
    for most in range(1, whole, 5):
        for share in (most, 10**6):
            with opened(tmp_path / f"cut {most}", sweep, concurrent=1) as (session, ledger, _, _plan):
                session.start()
                play(session, noisy, most=share)
                found = {trial.id: (trial.state, trial.metric) for trial in ledger.trials()}
        assert found == calm, f"cut after {most} trials"


def test_an_arm_with_a_repeat_that_found_nothing_is_not_confirmed(tmp_path: Path) -> None:
    def diverge(dispatch: Dispatch) -> dict[str, Any]:
        report = noisy(dispatch)
        rate = dispatch.job["optimizer"]["lr"]
        if dispatch.job["loss"]["name"] == "flatnce" and rate in of_the_second:
            report["result"] |= {"outcome": "diverged", "metrics": {}}
        return report

    with opened(tmp_path, changes(2, 4)) as (session, ledger, _, plan):
        tune = plan.sweep.tune
        assert tune is not None
        of_the_second = {
            search.suggest(
                tune, mode="max", sweep_seed=1, arm="flatnce", number=k, history=[], base=plan.arm("flatnce").values
            )["optimizer.lr"]
            for k in range(4)
        }
        session.start()
        play(session, diverge)
        said = summarize(ledger)
    assert said.comparisons[0].result.verdict == "diverges"
    assert said.arms[1].values == []


@pytest.mark.parametrize("repeats", [1, 2, 6])
@pytest.mark.parametrize("of_the_last", ["memory", "diverged"])
def test_an_arm_that_only_ran_out_of_memory_has_not_diverged(tmp_path: Path, repeats: int, of_the_last: str) -> None:
    """Seen: with repeats it was said to diverge at every setting, and left the family. It has diverged where a trial of
    every repeat that found nothing did, and those of other repeats say nothing. Mutant checks: a suggestion that is
    infeasible, or a trial of any repeat, counts as diverged."""

    def fall(dispatch: Dispatch) -> dict[str, Any] | Failure:
        if dispatch.job["loss"]["name"] != "flatnce" or dispatch.job["stage"] != "tune":
            return noisy(dispatch)
        if of_the_last == "diverged" and dispatch.job["seed"] == repeats - 1:
            return noisy(dispatch) | {"result": {"outcome": "diverged", "step": 1, "metrics": {}, "untrained": {}}}
        return Failure("out_of_memory", None, "CUDA out of memory", "")

    is_open = True
    while is_open:
        with opened(tmp_path, changes(repeats, 6, trials=2)) as (session, ledger, _, plan):
            session.start()
            play(session, fall)
            failed = [trial for trial in ledger.trials(stage="tune", state="failed") if trial.outcome != "infeasible"]
            is_open = bool(failed)
            for trial in failed:
                ledger.give_up(trial.id)
            said, untuned = summarize(ledger), untuned_arms(plan, ledger)
    has_diverged = of_the_last == "diverged" and repeats == 1
    assert untuned == {"flatnce": "diverged" if has_diverged else "failed"}
    (comparison,) = said.comparisons
    assert comparison.result.verdict == ("diverges" if has_diverged else "inconclusive")
    assert (comparison.result.p_adjusted is None) == has_diverged


def test_the_family_is_that_of_the_plan_whatever_tuning_comes_to(tmp_path: Path) -> None:
    """Seen: tuning chose what another arm had, the pair was "one objective, computed in two ways", and the third arm
    was judged at 0.05, which the plan does not allow. Mutant check: asking the jobs as frozen."""
    sweep = {
        "compare": {},
        "arm": [
            {"label": "default", "optimizer.lr": 1e-3},
            {"label": "tuned"},
            {"label": "warm", "optimizer.lr": 1e-3, "loss.temperature": 0.2},
        ],
        "tune": TUNE | {"trials": 2, "space": {"optimizer.lr": CHOICES}, "sampler": "grid"},
        "confirm": {"seeds": 6},
    }

    def of(dispatch: Dispatch) -> dict[str, Any]:
        seed, warm = dispatch.job["seed"], dispatch.job["loss"]["temperature"] == 0.2
        low = 0.1 * (dispatch.job["optimizer"]["lr"] != 1e-3)
        return done(dispatch, 0.8 - low + warm * (0.02 + 0.001 * seed))

    with opened(tmp_path, sweep) as (session, ledger, _, plan):
        session.start()
        play(session, of)
        frozen, said = ledger.frozen(), summarize(ledger)
    assert plan.tested == plan.contrasts == (("tuned", "default"), ("warm", "default"))
    assert frozen["tuned"].params == {"optimizer.lr": 1e-3}
    alike, warm = (comparison.result for comparison in said.comparisons)
    assert [pair.difference for pair in alike.pairs] == [0.0] * 6
    assert (alike.same_objective, alike.verdict) == (False, "equivalent")
    assert said.alpha == {"difference": 0.04, "equivalence": 0.01}
    assert (warm.p_adjusted, warm.verdict) == (2**-5, "a_better")
    assert (
        "tuned against default: tuning chose the same setting for both, so that only rounding can differ." in said.notes
    )
    assert "one objective" not in said.sentence


def test_what_does_not_go_together_is_refused_with_what_does(tmp_path: Path) -> None:
    def sweep(**changed: Any) -> Sweep:
        return Sweep.model_validate(SWEEP | changed)

    (issue,) = contradictions(sweep(**changes(4, 10)))
    assert str(issue).startswith("confirm.seeds = 10 seeds: is no multiple of tune.repeats = 4")
    assert str(issue).endswith("give 12")
    (issue,) = contradictions(sweep(tune=TUNE | {"repeats": 2}, confirm={"seeds": {"looks": [7, 10, 14]}}))
    assert "do not go together with looks" in issue.expected
    with pytest.raises(ValidationError, match="prune needs one repeat, found repeats = 2"):
        sweep(tune=TUNE | {"repeats": 2, "prune": "halving"})
    made = make(sweep(tune=TUNE | {"repeats": 4}, confirm={"seeds": "enough"}))
    assert (len(made.confirm_seeds), made.trials["tune"]) == (12, 2 * 4 * 4)
    with opened(tmp_path, changes(2, 4)) as (session, ledger, _, plan):
        session.start()
        play(session, noisy)
        with pytest.raises(RunError, match=r"tune\.repeats is not extended"):
            extension.record(plan, ledger, Extend(seeds=2))
        assert stored(ledger.run.sweep, ledger.run.rules).repeats == 2


def test_looks_that_can_reject_nothing_are_refused_by_the_plan() -> None:
    with pytest.raises(ConfigError, match="a first look at 5 seeds can reject nothing"):
        make(Sweep.model_validate(SWEEP | {"confirm": {"seeds": {"looks": [5, 9]}}}))


def test_a_repeat_that_comes_to_the_job_of_another_arm_has_trials_of_its_own(tmp_path: Path) -> None:
    """Seen: where the first repeat had come to another setting, the second one's trials were those of the other arm,
    and this one had none. Mutant check: asking the first trial whether all of them are kept apart."""
    apart = changes(2, 4, trials=1, defaults=[]) | {
        "compare": {},
        "arm": [{"label": "default", "optimizer.lr": 1e-3}, {"label": "tuned"}],
    }
    choices = {"choices": [1e-3, 3e-3], "when": {"arm": "tuned"}}
    apart["tune"] |= {"space": {"optimizer.lr": choices}, "seed": seed_that_draws([3e-3, 1e-3], choices)}
    with opened(tmp_path, apart) as (session, ledger, _, plan):
        session.start()
        play(session, noisy)
        assert session.broken is None
        confirm = {(trial.arm, trial.seed): trial.config.optimizer.lr for trial in ledger.trials(stage="confirm")}
    assert confirm == {
        (arm, seed): rate
        for arm, rates in (("default", [1e-3, 1e-3]), ("tuned", [3e-3, 1e-3]))
        for repeat, rate in enumerate(rates)
        for seed in plan.seeds_of(repeat)
    }


def seed_that_draws(rates: list[float], choices: dict[str, Any]) -> int:
    """Find a tune.seed by which the first suggestion of each repeat is this rate."""
    space = Sweep.model_validate(
        SWEEP | {"tune": TUNE | {"space": {"optimizer.lr": {"choices": choices["choices"]}}}}
    ).tune
    assert space is not None
    return next(
        seed
        for seed in range(100)
        if [search.drawn(space.space, {}, seed=seed + k, number=0)["optimizer.lr"] for k in range(len(rates))] == rates
    )
