"""From a sweep to what will be run: arms, contrasts, seeds, trials, and what a reader should know before paying for it.

A plan is made once, by `make`, when a run is begun. What a run was planned as is stored with it, and `stored` reads it
back, so that a later version of the program, or of a default, changes nothing of it. Pure functions of the sweep;
imports no torch, ray, optuna or mlflow.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any, cast

from pydantic import JsonValue, ValidationError

from jobs.config import JobConfig, canonical, trial_id
from jobs.config.identity import FORMER, counted_from, with_former
from orchestrator.sweep import Arm, Sweep, arms_of, flatten, merged, search
from orchestrator.sweep.model import Space
from orchestrator.sweep.plan.examined import as_named, examined_of, jobs_of, missing_encoders, once_of_seeds
from orchestrator.sweep.plan.seeds import (
    REPEATS_AS_UNITS,
    Basis,
    SpreadOf,
    basis_of,
    check_looks,
    confirm_seeds,
    family_of,
    tune_seeds,
)
from orchestrator.sweep.plan.summary import Costs, StageCounts, Summary
from orchestrator.sweep.plan.swaps import Swap, at_setting, check_swaps, swaps_of
from orchestrator.sweep.plan.trials import Planned
from orchestrator.sweep.plan.warnings import own_loop, warnings
from orchestrator.sweep.space import conditions
from orchestrator.sweep.values import Settings, by_todays_names

__all__ = [
    "REPEATS_AS_UNITS", "RULES", "Basis", "Plan", "SpreadOf", "Summary", "changed_keys", "changed_order", "differing",
    "examined_of", "family_of", "is_as_begun", "jobs_of", "make", "missing_encoders", "once_of_seeds", "own_loop",
    "stored",
]  # fmt: skip

RULES = 2
"""What a new run is planned by. 1: ids hash the whole job, samplers are seeded by the arm's label. 2: ids hash what
differs from the defaults, samplers know no labels, and arms of one objective are tuned once."""


@dataclass(frozen=True)
class Plan:
    """Everything that follows from a sweep before anything is run."""

    sweep: Sweep
    arms: tuple[Arm, ...]
    contrasts: tuple[tuple[str, str], ...]
    """(a, b): arm a against its baseline b."""

    tune_seeds: tuple[int, ...]
    confirm_seeds: tuple[int, ...]
    suggestions: Mapping[str, int]
    """Tune suggestions of each arm that is searched, by label: its budget, or fewer where a grid is smaller. Empty
    without a tune stage."""

    warnings: tuple[str, ...]
    rules: int = RULES
    """By which ids and sampler seeds follow from the sweep."""

    searched_with: Mapping[str, str] = field(default_factory=dict)
    """Arm -> the arm that is tuned for both, because the two differ in nothing but `execution`."""

    defaults: Settings = field(default_factory=lambda: counted_from(JobConfig))
    """Of job keys: the values that ids leave out, as they were when the run was planned."""

    basis: Basis = field(default_factory=lambda: Basis(rule="given", n=0))
    """How the number of confirm seeds was chosen; not in runs that were begun before."""

    apart: bool = True
    """Whether trials of arms that may ask for the same job are kept apart; not in runs that were begun before."""

    @cached_property
    def tested(self) -> tuple[tuple[str, str], ...]:
        """The contrasts that ask a question: between arms of one objective there is none, they must agree."""
        if self.rules < 2:
            return self.contrasts
        return tuple(
            (a, b)
            for a, b in self.contrasts
            if _is_asked(self.arm(a), self.arm(b), self.searched_with if self.sweep.tune else None)
        )

    @property
    def looks(self) -> tuple[int, ...]:
        """How many of the confirm seeds each look has; none where there is one number of seeds for all."""
        return tuple(self.basis.get("looks", ()))

    @property
    def repeats(self) -> int:
        """How often every arm is tuned."""
        return self.sweep.tune.repeats if self.sweep.tune else 1

    @property
    def units(self) -> list[tuple[int, ...]]:
        """The confirm seeds of each unit of the test: a seed, or from REPEATS_AS_UNITS repeats on a repeat."""
        if self.repeats < REPEATS_AS_UNITS:
            return [(seed,) for seed in self.confirm_seeds]
        return [self.seeds_of(repeat) for repeat in range(self.repeats)]

    def seeds_of(self, repeat: int) -> tuple[int, ...]:
        """Return the confirm seeds that have the settings of a repeat."""
        return self.confirm_seeds[repeat :: self.repeats]

    def asked(self, arm: str) -> int:
        """Count the suggestions of an arm that is searched, over all repeats."""
        return self.suggestions[arm] * self.repeats

    @cached_property
    def swaps(self) -> tuple[Swap, ...]:
        """The contrasts whose arms are trained at each other's setting too."""
        return swaps_of(self.sweep, self._by_label, self.tested)

    def swapped(
        self, frozen: Mapping[str, Settings], without: Collection[tuple[str, str]] = ()
    ) -> dict[tuple[str, str], Settings]:
        """Return the settings of arms at another's, by the labels of both: of the swaps whose arms are both frozen, and
        where it is another setting. without: pairs of labels that are left out."""
        return {
            (arm, whose): settings
            for swap in self.swaps
            for arm, whose in ((swap.b, swap.a), (swap.a, swap.b))
            if (arm, whose) not in without and arm in frozen and whose in frozen
            for settings in (at_setting(self._space, self.arm(arm).values, frozen[arm], frozen[whose], swap.keys),)
            if settings is not None
        }

    @property
    def _space(self) -> Mapping[str, Space]:
        return self.sweep.tune.space if self.sweep.tune else {}

    def whole(self, arm: str, settings: Settings) -> Settings:
        """Complete settings of an arm with its own values of what may be tuned in it and was not."""
        values = self.arm(arm).values
        return {key: settings.get(key, values.get(key)) for key in conditions.within(self._space, values)}

    @property
    def trials(self) -> dict[str, int]:
        """Trials per stage; with looks, those of the last one too, which may not be needed. Of arms at each other's
        setting, where there are any, the most that there may be."""
        swapped = 2 * len(self.swaps) * len(self.confirm_seeds)
        return {
            "tune": sum(map(self.asked, self.suggestions)) * (len(self.tune_seeds) // self.repeats),
            "confirm": len(self.arms) * len(self.confirm_seeds),
            **({"swap": swapped} if swapped else {}),
        }

    @property
    def smallest_p(self) -> float:
        """The smallest p-value these seeds can reach."""
        return 2.0 ** (1 - len(self.units)) if self.tested else 1.0

    def arm(self, label: str) -> Arm:
        """Return the arm with this label."""
        return self._by_label[label]

    @cached_property
    def _by_label(self) -> dict[str, Arm]:
        return {arm.label: arm for arm in self.arms}

    def noting(self, notes: Sequence[str]) -> Plan:
        """Return the same plan with more of what a reader should know, as warnings."""
        return replace(self, warnings=(*self.warnings, *notes))

    def with_limits(self, sweep: Sweep) -> Plan:
        """Return the same plan with [resources] and [retry] of another sweep: what may change within a run."""
        limits = {"resources": sweep.resources, "retry": sweep.retry}
        return replace(self, sweep=self.sweep.model_copy(update=limits))

    def tune_trials(self, label: str, number: int, settings: Settings) -> list[Planned]:
        """Plan the trials of one suggestion, one for each tune seed of its repeat."""
        count = len(self.tune_seeds) // self.repeats
        repeat = number // self.suggestions[label] if self.repeats > 1 else 0
        return self._planned(label, settings, number, self.tune_seeds[repeat * count : (repeat + 1) * count])

    def confirm_trials(self, label: str, settings: Settings, seeds: Sequence[int] | None = None) -> list[Planned]:
        """Plan the trials of an arm's settings, one for each confirm seed. seeds: others than the planned ones."""
        return self._planned(label, settings, None, self.confirm_seeds if seeds is None else seeds)

    def swap_trials(self, label: str, settings: Settings) -> list[Planned]:
        """Plan the trials of an arm at another's setting. Raises pydantic's ValidationError where that makes no job."""
        jobs = [self.arm(label).config(stage="confirm", seed=seed, settings=settings) for seed in self.confirm_seeds]
        return [Planned(label, "swap", job.seed, None, job, self.rules, self.defaults, code=self._code) for job in jobs]

    def job_id(self, job: Mapping[str, JsonValue]) -> str:
        """Compute the id of a job as the ledger keeps it, whichever arm or stage its trial is of."""
        return trial_id(job, rules=self.rules, defaults=self.defaults, code=self._code)

    @property
    def _code(self) -> str | None:
        return None if self.sweep.code is None else self.sweep.code.digest

    def _planned(self, label: str, settings: Settings, number: int | None, seeds: Sequence[int]) -> list[Planned]:
        arm, stage = self.arm(label), "confirm" if number is None else "tune"
        jobs = [arm.config(stage=stage, seed=seed, settings=settings) for seed in seeds]
        apart, code = self.apart and any(self.reaches(other, jobs[0]) for other in self._before(label)), self._code
        return [Planned(label, stage, job.seed, number, job, self.rules, self.defaults, apart, code) for job in jobs]

    def _before(self, label: str) -> Sequence[Arm]:
        return self.arms[: [arm.label for arm in self.arms].index(label)]

    def reaches(self, arm: Arm, job: JobConfig) -> bool:
        """Return whether a search within an arm could come to this very job, whatever it has come to so far."""
        if (tune := self.sweep.tune) is None:
            return False
        values, spaces = flatten(job.model_dump(mode="json")), conditions.within(tune.space, arm.values)
        fixed = [key for key, value in arm.settings.items() if key not in spaces and value is not None]
        if any(arm.values[key] != values.get(key) for key in fixed if key in arm.values):
            return False  # most arms, at once
        given = {key: values[key] for key in spaces if key in values}
        tuned = conditions.active(spaces, arm.values, given)
        if not given.keys() >= {*tuned}:
            return False  # an option of a component, which a job has only where it is given
        try:
            return arm.config(stage=job.stage, seed=job.seed, settings={key: given[key] for key in tuned}) == job
        except ValidationError:
            return False

    def record(self) -> dict[str, JsonValue]:
        """Return the plan as plain JSON, from which `stored` makes it again: what the ledger keeps."""
        summary = self.summary()
        configs = [arm.config(stage="confirm", seed=0) for arm in self.arms]
        jobs = [config.model_dump(mode="json", exclude={"stage", "seed"}) for config in configs]
        jobs = [as_named(job, arm) for job, arm in zip(jobs, self.arms, strict=True)]
        arms = [{**arm, "job": job} for arm, job in zip(summary["arms"], jobs, strict=True)]
        more = {"suggestions": dict(self.suggestions), "defaults": dict(self.defaults), "apart": self.apart}
        whole = {**summary, "arms": arms, **more}
        plain: dict[str, JsonValue] = json.loads(json.dumps(whole, allow_nan=False))
        return plain

    def summary(self) -> Summary:
        """Return the plan as plain JSON: what `plan --json` prints."""
        made: Summary = {
            "arms": [
                {"label": arm.label, "settings": arm.settings, **_costs(arm.config(stage="confirm", seed=0))}
                for arm in self.arms
            ],
            "contrasts": [list(pair) for pair in self.contrasts],
            "trials": StageCounts(tune=self.trials["tune"], confirm=self.trials["confirm"]),
            "tune_seeds": list(self.tune_seeds),
            "confirm_seeds": list(self.confirm_seeds),
            "seeds_by": self.basis,
            "smallest_p": self.smallest_p,
            "differs": differing(self.arms),
            "searched_with": dict(self.searched_with),
            "warnings": list(self.warnings),
        }
        if self.swaps:
            made["trials"]["swap"] = self.trials["swap"]
            made["swaps"] = [{"a": swap.a, "b": swap.b, "keys": list(swap.keys)} for swap in self.swaps]
        return made


def make(sweep: Sweep, spreads: Mapping[str, SpreadOf] | None = None) -> Plan:
    """Make the plan of a valid sweep, by today's rules.

    spreads: by metric, standard deviation of paired differences like its own, as far as known.
    Raises ConfigError for looks that make no test, and for swaps where there are none.
    """
    arms = tuple(arms_of(sweep))
    contrasts = tuple(_contrasts(sweep, arms))
    shared, named = _searched_with(sweep, arms), {arm.label: arm for arm in arms}
    tested = [(a, b) for a, b in contrasts if _is_asked(named[a], named[b], shared if sweep.tune else None)]
    asked = len(tested)
    check_looks(sweep, asked)
    unswapped = check_swaps(sweep, swaps_of(sweep, named, tested), contrasts, tested)
    tuned = tune_seeds(sweep)
    basis = basis_of(sweep, asked, spreads or {})
    confirmed = confirm_seeds(sweep, tuned, basis["n"])
    leading = [arm for arm in arms if arm.label not in shared]
    suggestions = {arm.label: search.suggestions(sweep.tune, arm.values) for arm in leading} if sweep.tune else {}
    return Plan(
        sweep=sweep,
        arms=arms,
        contrasts=contrasts,
        tune_seeds=tuned,
        confirm_seeds=confirmed,
        suggestions=suggestions,
        warnings=(*warnings(sweep, arms, suggestions, asked, basis), *unswapped),
        basis=basis,
        searched_with=shared,
    )


def stored(sweep: Mapping[str, Any], rules: int) -> Plan:
    """Rebuild the plan that a run was begun with.
    sweep: as the ledger keeps it, the plan under `plan`; rules: of the run.

    Runs of the first version kept less of it; what they lack follows from the sweep as it did then.
    """
    kept = sweep["plan"]
    parsed = Sweep.model_validate({key: value for key, value in sweep.items() if key != "plan"})
    arms = tuple(
        Arm(arm["label"], arm["settings"], arm.get("job") or merged(with_former(parsed.job), arm["settings"]))
        for arm in kept["arms"]
    )
    suggestions = kept.get("suggestions")
    if suggestions is None:
        tune = parsed.tune
        suggestions = {arm.label: search.suggestions(tune, arm.values, rules=rules) for arm in arms} if tune else {}
    return Plan(
        sweep=parsed,
        arms=arms,
        contrasts=tuple((a, b) for a, b in kept["contrasts"]),
        tune_seeds=tuple(kept["tune_seeds"]),
        confirm_seeds=tuple(kept["confirm_seeds"]),
        suggestions=suggestions,
        warnings=tuple(kept["warnings"]),
        rules=rules,
        searched_with=kept.get("searched_with", {}),
        defaults=kept.get("defaults", {}),
        apart=kept.get("apart", False),
        basis=kept.get("seeds_by", Basis(rule="given", n=len(kept["confirm_seeds"]))),
    )


def _is_asked(a: Arm, b: Arm, shared: Mapping[str, str] | None) -> bool:
    """Return whether a contrast asks a question: not where both arms have one objective, and what is tuned of it is
    tuned for both. shared: arm -> the arm that is tuned for it too; None where nothing is tuned."""
    if a.objective != b.objective:
        return True
    return shared is not None and shared.get(a.label, a.label) != shared.get(b.label, b.label)


def differing(arms: Sequence[Arm]) -> dict[str, list[JsonValue]]:
    """Find the job keys, resolved and derived, that are not the same in every arm, with the value of each arm."""
    jobs = [arm.config(stage="confirm", seed=0) for arm in arms]
    rows = [flatten(job.model_dump(mode="json")) | cast("dict[str, JsonValue]", _costs(job)) for job in jobs]
    keys = dict.fromkeys(key for row in rows for key in row)
    return {key: [row.get(key) for row in rows] for key in keys if len({canonical(row.get(key)) for row in rows}) > 1}


def changed_keys(old: Mapping[str, JsonValue], new: Mapping[str, JsonValue]) -> list[tuple[str, object, object]]:
    """List (key, old, new) where two resolved sweeps differ, except for keys that may change within a run."""
    before, after = flatten(old), flatten(new)
    free = (
        "retry.",
        "code.",
        *(f"resources.{key}" for key in ("accelerator_type", "autoscale", "concurrent", "placement")),
    )
    return [
        (key, before.get(key), after.get(key))
        for key in sorted(before.keys() | after.keys())
        if before.get(key) != after.get(key) and not key.startswith(free)
    ]


def is_as_begun(begun: Plan, key: str, value: object) -> bool:
    """Return whether a run has always had this value of a key of its sweep: by a default that has changed since, or by
    what a word in its place came to."""
    if key == "confirm.seeds" and isinstance(begun.sweep.confirm.seeds, str):  # a shipped sweep may give a number now
        return value == len(begun.confirm_seeds)
    name = key.removeprefix("job.")
    return name in FORMER and value == FORMER[name] and all(arm.values.get(name) == value for arm in begun.arms)


def _searched_with(sweep: Sweep, arms: Sequence[Arm]) -> dict[str, str]:
    """Map each arm that shares its objective and its tuned keys with an earlier arm to that arm: to tune them apart
    would compare one method at two settings."""
    if sweep.tune is None:
        return {}
    first: dict[str, str] = {}
    shared: dict[str, str] = {}
    for arm in arms:
        tuned = canonical(list(conditions.within(sweep.tune.space, arm.values)))
        leader = first.setdefault(arm.objective + tuned, arm.label)
        if leader != arm.label:
            shared[arm.label] = leader
    return shared


def changed_order(old: Plan, new: Plan) -> tuple[list[str], list[str]] | None:
    """Return the factors of both plans if these come in another order, which makes other contrasts; else None."""
    contrasts = [[[by_todays_names(p.arm(arm).settings) for arm in pair] for pair in p.contrasts] for p in (old, new)]
    arms = [[by_todays_names(arm.settings) for arm in p.arms] for p in (old, new)]
    if contrasts[0] == contrasts[1] and arms[0] == arms[1]:
        return None
    return list(old.sweep.compare), list(new.sweep.compare)


def _contrasts(sweep: Sweep, arms: Sequence[Arm]) -> list[tuple[str, str]]:
    """Pair the first factor's levels with its first, within each level of the others; or each arm with the first."""
    if not sweep.compare:
        return [(arm.label, arms[0].label) for arm in arms[1:]]
    first = next(iter(sweep.compare))
    baseline = {
        canonical({k: v for k, v in arm.settings.items() if k != first}): arm.label
        for arm in arms
        if arm.settings[first] == sweep.compare[first][0]
    }
    pairs = [(arm.label, baseline[canonical({k: v for k, v in arm.settings.items() if k != first})]) for arm in arms]
    return [(a, b) for a, b in pairs if a != b]


def _costs(job: JobConfig) -> Costs:
    """Return what a trial is given. Samples and steps are None where only training will tell; seconds are left out
    where the budget has none."""
    if job.is_function:  # what a step is, only it knows
        costs: Costs = {"samples": job.budget.samples, "steps": job.budget.steps, "negatives_per_anchor": 0}
        return costs if job.budget.seconds is None else {**costs, "seconds": job.budget.seconds}
    samples = None if job.steps is None else job.steps * job.batch.size
    costs = {"samples": samples, "steps": job.steps, "negatives_per_anchor": job.negatives_per_anchor}
    return costs if job.steps is not None else {**costs, "seconds": job.budget.seconds}
