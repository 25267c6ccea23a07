"""Arms at each other's setting ([confirm] swap): whether they differ at either. It is said beside the verdict, outside
its 5 %, and decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from statistics import fmean
from typing import Literal, get_args

from pydantic import JsonValue

from orchestrator import statistics
from orchestrator.ledger import Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.session.schedule import (
    confirming,
    is_stopped,
    no_job,
    stopped_arms,
    stopped_swaps,
    swapping,
)
from orchestrator.session.schedule.stopping import Setting
from orchestrator.statistics import Interval
from orchestrator.statistics.pairing import paired
from orchestrator.sweep.model.metric import OneMetric
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.plan.swaps import Swap
from orchestrator.sweep.values import Settings
from orchestrator.system.display import by_count, counted

Side = Literal["a", "b", "both"]
Verdict = Literal["either", "depends", "diverged", "incomplete", "none"]


@dataclass(frozen=True)
class SettingSummary:
    """The difference of two arms that are both at the setting of one of them."""

    setting: str
    """Label of the arm whose setting it is; the other one is swapped there."""
    params: JsonObject
    """Its values of the keys that both tune; empty until it has been frozen."""
    kept: JsonObject
    """What the swapped arm has in place of that arm's value of a key that both tune: where one of them was tuned to
    none, as a condition does not hold with the rest of what it has."""
    n: int
    """Pairs, those with a side that diverged included."""
    of: int
    """Pairs that there shall be, one of each confirm seed."""
    delta: float | None
    """Mean of a - b; None, as interval and p, where a side of a pair diverged."""
    ci95: Interval | None
    """Student's, unadjusted."""
    p: float | None
    """Of the paired t test; None, too, unless the verdict is `either` or `depends`."""
    delta_trained: float | None
    n_trained: int
    """Pairs of which both sides trained, and above their mean."""
    diverged: Mapping[Side, int]
    trials: Sequence[str]
    """Of the arm that is swapped there; a confirm trial where one has that very job."""
    missing: str
    """Why there are fewer pairs than seeds, or no interval of all; empty where nothing is missing."""


@dataclass(frozen=True)
class SwapSummary:
    """Whether two arms differ at either one's setting."""

    a: str
    b: str
    keys: Sequence[str]
    """Job keys that both tune."""
    settings: Sequence[SettingSummary]
    """At that of a, and at that of b."""
    p: float | None
    """That they do not differ in one direction at both: the larger of the two, or 1 where the two means have not one
    sign; None unless the verdict is `either` or `depends`."""
    verdict: Verdict
    """`either`: both intervals leave out 0, on one side. `depends`: not so. `diverged`: a pair did, so there is no
    interval. `incomplete`: pairs are missing. `none`: of one setting there is nothing that the other arm can take."""

    metric: str = ""
    """By which they are compared, where there are several; else empty."""

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""
        return {key: value for key, value in asdict(self).items() if value or key != "metric"}


def swapped(
    plan: Plan, trials: Sequence[Trial], frozen: Mapping[str, Settings], untuned: Collection[str]
) -> list[SwapSummary]:
    """Compare arms at each other's setting, by each metric. frozen: settings of the arms. untuned: arms that will have
    none."""
    confirmed: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.stage == "confirm" and trial.seed in plan.confirm_seeds:
            confirmed.setdefault(trial.arm, []).append(trial)
    run = _Run(
        plan,
        swapping.Pool(plan, trials),
        frozen,
        untuned,
        plan.swapped(frozen),
        confirmed,
        stopped_arms(trials),
        stopped_swaps(trials),
        plan.sweep.metric,
    )
    runs = [replace(run, metric=metric) for metric in plan.sweep.metric.every]
    return [_summary(of_metric, swap) for of_metric in runs for swap in plan.swaps]


def _summary(run: _Run, swap: Swap) -> SwapSummary:
    sides = [_Side(run, swap, swap.a, swap.b), _Side(run, swap, swap.b, swap.a)]
    at = [side.summary() for side in sides]
    p = statistics.either_p(*(side.differences for side in sides)) if all(one.p is not None for one in at) else None
    verdict = _verdict(at, p, swapped=not any(side.is_own for side in sides))
    if verdict not in ("either", "depends"):  # whatever is there by now would be tested again and again
        p, at = None, [replace(one, p=None) for one in at]
    return SwapSummary(swap.a, swap.b, swap.keys, at, p, verdict, run.metric.name if run.plan.sweep.metric.also else "")


def _verdict(at: Sequence[SettingSummary], p: float | None, *, swapped: bool) -> Verdict:
    if not swapped:
        return "none"
    if any(any(one.diverged.values()) for one in at):
        return "diverged"
    if p is None or any(one.missing for one in at):
        return "incomplete"
    return "either" if p <= statistics.ALPHA else "depends"


@dataclass(frozen=True)
class _Run:
    """What is known of a run."""

    plan: Plan
    pool: swapping.Pool
    frozen: Mapping[str, Settings]
    untuned: Collection[str]
    settings: Mapping[tuple[str, str], Settings]
    """Of an arm at another's setting, by the labels of both."""
    confirmed: Mapping[str, Sequence[Trial]]
    stopped: Collection[str]
    """Arms."""
    unswapped: Collection[Setting]
    """Settings of others at which an arm is stopped."""
    metric: OneMetric
    """By which the arms are compared."""


@dataclass(frozen=True)
class _Side:
    """Both arms of a swap at the setting of one of them."""

    run: _Run
    swap: Swap
    whose: str
    other: str

    @property
    def settings(self) -> Settings | None:
        """What the other arm has at this setting; None until it is known, and where that is what it was tuned to."""
        return self.run.settings.get((self.other, self.whose))

    @property
    def is_own(self) -> bool:
        """Whether the other arm can take nothing of this setting."""
        return self.whose in self.run.frozen and self.other in self.run.frozen and self.settings is None

    @cached_property
    def job(self) -> Mapping[str, JsonValue] | None:
        """That of the other arm at this setting."""
        return None if self.settings is None else swapping.job_at(self.run.plan, self.other, self.settings)

    @cached_property
    def trials(self) -> dict[str, Sequence[Trial]]:
        """Those of each arm at this setting, as far as they are there."""
        found = [] if self.job is None else self.run.pool.at(self.other, self.job)
        return {self.whose: self.run.confirmed.get(self.whose, []), self.other: found}

    @cached_property
    def pairs(self) -> list[statistics.Pair]:
        """Those that have ended."""
        plan, labels = self.run.plan, (self.swap.a, self.swap.b)
        metric, sweep = self.run.metric, plan.sweep
        further = None if metric.name == sweep.metric.name else metric.name
        values = {label: _values(self.trials[label], further) for label in labels}
        fallen = statistics.Divergence({label: _diverged(self.trials[label]) for label in labels})
        return paired(values, fallen, labels, plan.confirm_seeds, metric.mode)

    @property
    def differences(self) -> list[float]:
        """a - b of the seeds that both trained."""
        return [pair.difference for pair in self.pairs if not pair.diverged]

    def summary(self) -> SettingSummary:
        """Summarise the differences."""
        trained, n, plan, params = self.differences, len(self.pairs), self.run.plan, self.run.frozen.get(self.whose, {})
        theirs, here = plan.whole(self.whose, params), plan.whole(self.other, self.settings or {})
        whole = len(trained) == n
        mean = fmean(trained) if trained else None
        return SettingSummary(
            setting=self.whose,
            params={key: params[key] for key in self.swap.keys if key in params},
            kept={key: here[key] for key in self.swap.keys if self.settings and here[key] != theirs[key]},
            n=n,
            of=len(plan.confirm_seeds),
            delta=mean if whole else None,
            ci95=statistics.t_interval(trained) if whole else None,
            p=statistics.paired_t_p(trained) if whole else None,
            delta_trained=mean,
            n_trained=len(trained),
            diverged={side: sum(pair.diverged == side for pair in self.pairs) for side in get_args(Side)},
            trials=[trial.id for trial in self.trials[self.other]],
            missing=self._missing(),
        )

    def _missing(self) -> str:
        """Explain why pairs, or the interval, are missing; empty where nothing is."""
        run = self.run
        for arm in (self.swap.a, self.swap.b):
            if arm not in run.frozen:
                if arm in run.stopped or run.plan.searched_with.get(arm) in run.stopped:
                    return f"{arm} is stopped, and no setting of it was frozen"
                return f"no setting of {arm} was frozen" if arm in run.untuned else f"{arm} is not tuned yet"
        if self.settings is None:
            return f"{self.whose}'s setting has nothing that {self.other} can take"
        if self.job is None:
            why = no_job(run.plan, self.other, "confirm", self.settings)
            return f"{self.other} makes no job at {self.whose}'s setting: {why}"
        if len(self.pairs) == len(run.plan.confirm_seeds):
            return "one seed has no interval" if len(self.pairs) == 1 else ""
        return self._seeds_missing()

    def _seeds_missing(self) -> str:
        """Count the seeds that were lost, are still to come, or are not begun, and say why these are not."""
        by_seed = {label: {trial.seed: trial for trial in own} for label, own in self.trials.items()}
        lost, waits, coming = 0, list[str](), 0
        for seed in self.run.plan.confirm_seeds:
            own, swapped = (by_seed[label].get(seed) for label in (self.whose, self.other))
            states = {trial.state for trial in (own, swapped) if trial is not None}
            if "failed" in states:
                lost += 1
            elif own is None or swapped is None or not states <= set(confirming.HAS_ENDED):
                why = self._waits_for(own, swapped)
                waits += [why] if why else []
                coming += not why
        counts = [
            (lost, "was", "were", "lost"),
            (coming, "is", "are", "still to come"),
            (len(waits), "is", "are", "not begun"),
        ]
        (n, words), *rest = [(n, f"{by_count(n, one, more)} {what}") for n, one, more, what in counts if n]
        others = "".join(f", and {count} {what}" for count, what in rest)
        because = f", as {' and '.join(dict.fromkeys(waits))}" if waits else ""
        return f"{counted(n, 'seed')} {words} at {self.whose}'s{others}{because}"

    def _waits_for(self, own: Trial | None, swapped: Trial | None) -> str:
        """Say what is stopped, so that nothing more comes of a pair of trials; empty where more does."""
        run = self.run
        if self.whose in run.stopped and (own is None or own.state == "queued"):
            return f"{self.whose} is stopped"
        if swapped is None:  # nothing is queued for or at an arm that is stopped
            return next((f"{arm} is stopped" for arm in (self.other, self.whose) if arm in run.stopped), "")
        if swapped.state != "queued" or not is_stopped(swapped, run.stopped, run.unswapped):
            return ""
        return f"{self.other} is stopped{'' if self.other in run.stopped else ' there'}"


def _values(trials: Sequence[Trial], metric: str | None) -> dict[int, float]:
    return {seed: value for own in confirming.values(trials, metric).values() for seed, value in own.items()}


def _diverged(trials: Sequence[Trial]) -> set[int]:
    return set[int]().union(*confirming.diverged(trials).values())
