"""Cut, killed and continued anywhere, a sweep is the undisturbed one; and what trials and arms have in common."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from ledgers import cut_off
from test_session import SWEEP, done, opened, play, points_of

from jobs.core.failures import Failure
from orchestrator.ledger import Ledger, Suggestion
from orchestrator.ledger.stored import JsonObject
from orchestrator.session.schedule import Schedule, as_trial
from orchestrator.session.session import Session
from orchestrator.session.writer import Dispatch
from orchestrator.sweep.plan import Plan
from orchestrator.verify import ledger_checks


def unproven(ledger: Ledger) -> list[Any]:
    """What `verify` has against a ledger's ids and suggestions."""
    facts: Any = SimpleNamespace(
        run=ledger.run,
        trials={t.id: t for t in ledger.trials()},
        suggestions=ledger.suggestions(),
        restore="",
        resume="",
    )
    return [*ledger_checks._ids(facts), *ledger_checks._suggested(facts)]


def test_a_repeated_point_takes_the_recorded_result_and_counts(tmp_path: Path) -> None:
    tune = {"trials": 4, "sampler": "random", "space": {"optimizer.lr": {"choices": [0.01]}}}
    with opened(tmp_path, {"tune": tune}) as (session, ledger, _, _plan):
        session.start()
        ran = play(session)
        assert len(ledger.suggestions("infonce")) == 4
        assert sum(d.job["stage"] == "tune" for d in ran) == 2
        assert unproven(ledger) == []


Ended = dict[str, Any]
"""Per trial what it came to, its rungs included."""


def came_to(ledger: Ledger, plan: Plan) -> tuple[Ended, Any, Any]:
    """Every number of a run that may not depend on when its sessions began and ended."""
    ended = {
        t.id: (t.state, t.metric, t.metrics, t.step, [(p.key, p.step, p.value) for p in ledger.points(t.id)])
        for t in ledger.trials()
    }
    observed = {arm: Schedule(plan, ledger).observed(arm) for arm in plan.suggestions}
    return ended, observed, (points_of(ledger), ledger.frozen())


def lag(dispatch: Dispatch) -> dict[str, Any]:
    """Rates that differ in how early they are good: one that is pruned at a rung might recover at the next."""
    report = done(dispatch)
    noise = random.Random(dispatch.trial)
    for point in report["points"][:-1]:
        point["value"] += noise.gauss(0, 0.2)
    return report


class Cut(BaseException):
    """The driver is killed here."""


@pytest.mark.parametrize("parallel", [1, 3])
@pytest.mark.parametrize("prune", ["none", "median", "halving"])
def test_after_every_event_the_search_knows_what_the_ledger_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: str, parallel: int
) -> None:
    """Seen: every pruned trial was without its last rung, {} for {1: 0.22}, until the driver began anew. Mutant check:
    ending a pruned trial before the points of its report are recorded fails for the median and for halving."""
    checked: list[int] = []
    real = Session._deal_with

    def deal_with(self: Session, event: Callable[[], None]) -> None:
        real(self, event)
        fresh = Schedule(self._plan, self._ledger)
        for arm in self._plan.suggestions:
            assert self._schedule.observed(arm) == fresh.observed(arm)
        checked.append(1)

    monkeypatch.setattr(Session, "_deal_with", deal_with)
    tune = SWEEP["tune"] | {"trials": 10, "prune": prune, "parallel": parallel}
    with opened(tmp_path, {"tune": tune}) as (session, ledger, _, _plan):
        session.start()
        play(session, lag)
        assert session.broken is None
        assert bool(ledger.trials(state="pruned")) == (prune != "none")
        assert len(checked) > 60


@pytest.mark.parametrize(
    ("prune", "sampler", "every"),
    [
        ("halving", "random", 4),
        pytest.param("halving", "tpe", 1, marks=pytest.mark.soak),
        pytest.param("median", "tpe", 1, marks=pytest.mark.soak),
    ],
)
def test_wherever_a_pruned_sweep_is_cut_it_ends_as_if_it_had_not_been(
    tmp_path: Path, prune: str, sampler: str, every: int
) -> None:
    """After any number of trials, or every fourth. Seen: cut after 6 or 10, 4 trials ended at another rung with
    another metric. Mutant check: taking what was observed before the last rung was recorded fails for halving."""
    changes = {"tune": SWEEP["tune"] | {"trials": 8, "prune": prune, "sampler": sampler}, "confirm": {"seeds": 2}}
    with opened(tmp_path / "0", changes, concurrent=1) as (session, ledger, _, plan):
        session.start()
        whole = len(play(session, lag))
        calm = came_to(ledger, plan)
    for most in range(min(2, every), whole, every):
        for share in (most, 10**6):
            with opened(tmp_path / f"cut {most}", changes, concurrent=1) as (session, ledger, _, plan):
                session.start()
                play(session, lag, most=share)
                found = came_to(ledger, plan)
        assert found == calm, f"cut after {most} trials"


@pytest.mark.soak
@pytest.mark.parametrize(
    ("prune", "every"),
    [("halving", 9), *(pytest.param(prune, 1, marks=pytest.mark.soak) for prune in ("halving", "median"))],
)
def test_wherever_the_writer_is_killed_the_continued_sweep_is_the_undisturbed_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, prune: str, every: int
) -> None:
    """After every single transaction of the writer, or every ninth. Seen: killed between the end of a pruned trial and
    its points, the trial had no last rung for ever, and `verify` said so for ever. Mutant check: recording the points
    in a transaction of their own, after the end, fails this."""
    changes = {"tune": SWEEP["tune"] | {"trials": 6, "prune": prune, "sampler": "random"}, "confirm": {"seeds": 2}}
    with opened(tmp_path / "0", changes, concurrent=1) as (session, ledger, _, plan):
        session.start()
        play(session, lag)
        calm = came_to(ledger, plan)
    left = cut_off(monkeypatch, Cut)
    for allowed in range(0, 10**6, every):
        folder = tmp_path / f"killed {allowed}"
        left[0] = allowed
        with opened(folder, changes, concurrent=1) as (session, ledger, _, plan):
            session.start()
            play(session, lag)
            whole = session.broken is None
        left[0] = 10**9
        with opened(folder, changes, concurrent=1) as (session, ledger, _, plan):
            session.start()
            play(session, lag)
            assert came_to(ledger, plan) == calm, f"killed after {allowed} transactions"
        if whole:
            assert allowed > 60
            break


TUNED_APART: dict[str, Any] = {
    "compare": {},
    "arm": [{"label": "default", "optimizer.lr": 1e-3}, {"label": "tuned"}],
    "tune": {
        "trials": 3,
        "seeds": 2,
        "sampler": "grid",
        "space": {"optimizer.lr": {"choices": [3e-4, 1e-3, 3e-3], "when": {"arm": "tuned"}}},
    },
}
"""One arm has the value that the other one may be tuned to."""


def best_at_the_default(dispatch: Dispatch) -> dict[str, Any]:
    return done(dispatch, 0.9 - abs(dispatch.job["optimizer"]["lr"] - 1e-3) + 0.001 * int(dispatch.job["seed"]))


@pytest.mark.parametrize("turned", [False, True])
@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
def test_arms_that_ask_for_one_job_each_have_a_trial_of_it_and_the_same_numbers(
    tmp_path: Path, sampler: str, turned: bool
) -> None:
    """Seen: the row belonged to the first arm, and the search of the other one ended in a KeyError. Mutant check: one
    id for both leaves `tuned` without confirm trials."""
    arms = TUNED_APART["arm"][::-1] if turned else TUNED_APART["arm"]
    tune = TUNED_APART["tune"] | {"sampler": sampler, "trials": 5}
    changes = TUNED_APART | {"arm": arms, "tune": tune}
    found = []
    for number in range(2):
        folder, shuffle = tmp_path / str(number), random.Random(number)
        for most in (4, 10**6) if number else (10**6,):
            with opened(folder, changes, concurrent=2) as (session, ledger, _, plan):
                session.start()
                play(session, best_at_the_default, order=shuffle, most=most)
                assert session.broken is None
                found_now = came_to(ledger, plan)
                trials, frozen = ledger.trials(), ledger.frozen()
                assert unproven(ledger) == []
        found.append(found_now)
        assert {t.state for t in trials} == {"done"}
        assert frozen["tuned"].params == {"optimizer.lr": 1e-3}
        of = {arm: {t.seed: t.metric for t in trials if t.arm == arm and t.stage == "confirm"} for arm in frozen}
        assert of["default"] == of["tuned"], "so that the verdict says that they are the same"
        assert list(of["tuned"]) == list(plan.confirm_seeds)
        assert len({t.id for t in trials}) == len(trials)
    assert found[0] == found[1], "ids and numbers do not depend on who asked first"


def test_a_run_begun_when_trials_were_shared_goes_on_with_the_one_that_is_there(tmp_path: Path) -> None:
    """It ended in a KeyError right after the suggestion. What it has keeps its id, and what follows does not clash."""
    with opened(tmp_path, TUNED_APART) as (session, ledger, _, plan):
        before = replace(plan, apart=False)
        session._plan = before
        session._schedule = Schedule(before, ledger)
        shared = before.tune_trials("default", 0, {})
        assert [t.id for t in shared] == [t.id for t in before.tune_trials("tuned", 0, {"optimizer.lr": 1e-3})]
        settings: dict[str, JsonObject] = {"default": {}, "tuned": {"optimizer.lr": 1e-3}}
        for arm, params in settings.items():
            one = Suggestion(arm, 0, params, tuple(t.id for t in shared))
            ledger.add_suggestion(one, map(as_trial, shared))
        session.start()
        play(session, best_at_the_default)
    with opened(tmp_path, TUNED_APART) as (session, ledger, _, plan):
        before = replace(plan, apart=False)
        session._plan = before
        session._schedule = Schedule(before, ledger)
        session.start()
        play(session, best_at_the_default)
        assert session.broken is None
        confirmed = ledger.trials(stage="confirm", state="done")
        assert sorted((t.arm, t.seed) for t in confirmed) == [
            (arm, seed) for arm in ("default", "tuned") for seed in plan.confirm_seeds
        ]
        assert {t.id for t in ledger.trials(arm="default")} >= {t.id for t in shared}
        sweep = ledger.run.sweep
        ledger.set_run(sweep={**sweep, "plan": {**sweep["plan"], "apart": False}})
        assert unproven(ledger) == []


@pytest.mark.parametrize("prune", ["median", "halving", "none"])
def test_a_trial_that_may_be_pruned_waits_for_those_before_it_that_were_queued_again(
    tmp_path: Path, prune: str
) -> None:
    """Seen: both were begun at once, and asking the pruner about the later one raised ValueError in Tune's loop, as
    what it is compared with had not ended. Mutant check: handing out whatever is queued fails this."""
    changes = {"tune": SWEEP["tune"] | {"prune": prune, "trials": 5}}

    def second_fails(dispatch: Dispatch) -> dict[str, Any] | Failure:
        of = {trial: one.number for one in ledger.suggestions() for trial in one.trials}
        if of.get(dispatch.trial) == 1:
            return Failure("user_error", 0, f"bug of {dispatch.job['loss']['name'][:3]}", "")
        return lag(dispatch)

    with opened(tmp_path, changes, concurrent=1) as (session, ledger, _, plan):
        session.start()
        play(session, second_fails, most=6)
    with opened(tmp_path, changes, concurrent=4) as (session, ledger, _, plan):
        Schedule(plan, ledger).advance()
        assert ledger.counts()["failed"] == 2
        assert ledger.counts()["queued"] == 2
        for trial in ledger.trials(state="failed"):
            ledger.requeue(trial.id)
        session.start()
        first = {ledger.trial(d.trial).number for _ in range(4) if (d := session.next()) is not None}
        assert first == ({1} if prune != "none" else {1, 3})
    with opened(tmp_path, changes, concurrent=4) as (session, ledger, _, plan):
        session.start()
        play(session, lag, order=random.Random(3))
        assert session.broken is None
        assert ledger.counts()["queued"] == 0
        assert len(ledger.trials(stage="confirm", state="done")) == plan.trials["confirm"]
