"""Arms at each other's setting ([confirm] swap): whether they differ at either. It is said beside the verdict, outside
its 5 %, and decides nothing."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from statistics import fmean
from typing import Literal, get_args

from orchestrator import statistics
from orchestrator.ledger import Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.session.schedule import confirming, no_job, swapping
from orchestrator.statistics import Interval
from orchestrator.statistics.pairing import paired
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.plan.swaps import Swap
from orchestrator.sweep.values import Settings
from orchestrator.system.display import by_count, counted

Side = Literal["a", "b", "both"]
Verdict = Literal["either", "depends", "diverged", "incomplete"]


@dataclass(frozen=True)
class SettingSummary:
    """The difference of two arms that are both at the setting of one of them."""

    setting: str
    """Label of the arm whose setting it is; the other one is swapped there."""
    params: JsonObject
    """Its values of the keys that both tune; empty until it has been frozen."""
    n: int
    """Pairs, those with a side that diverged included."""
    delta: float | None
    """Mean of a - b; None, as interval and p, where a side of a pair diverged."""
    ci95: Interval | None
    """Student's, unadjusted."""
    p: float | None
    """Of the paired t test."""
    delta_trained: float | None
    n_trained: int
    """Pairs of which both sides trained, and above their mean."""
    diverged: Mapping[Side, int]
    trials: Sequence[str]
    """Of the arm that is swapped there; a confirm trial where one has that very job."""
    missing: str
    """Why there are fewer pairs than seeds; empty where there are as many."""


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
    """That they do not differ in one direction at both: the larger of the two; None where either has none."""
    verdict: Verdict
    """`either`: both intervals leave out 0, on one side. `depends`: not so. `diverged`: a pair did, so there is no
    interval. `incomplete`: pairs are missing."""

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""
        return {**asdict(self)}


def swapped(
    plan: Plan, trials: Sequence[Trial], frozen: Mapping[str, Settings], untuned: Collection[str]
) -> list[SwapSummary]:
    """Compare arms at each other's setting. frozen: settings of the arms. untuned: arms that will have none."""
    confirmed: dict[str, list[Trial]] = {}
    for trial in trials:
        if trial.stage == "confirm" and trial.seed in plan.confirm_seeds:
            confirmed.setdefault(trial.arm, []).append(trial)
    run = _Run(plan, swapping.Pool(plan, trials), frozen, untuned, plan.swapped(frozen), confirmed)
    return [_summary(run, swap) for swap in plan.swaps]


def _summary(run: _Run, swap: Swap) -> SwapSummary:
    sides = [_Side(run, swap, swap.a, swap.b), _Side(run, swap, swap.b, swap.a)]
    at = [side.summary() for side in sides]
    p = statistics.either_p(*(side.differences for side in sides)) if all(one.p is not None for one in at) else None
    return SwapSummary(swap.a, swap.b, swap.keys, at, p, _verdict(at, p))


def _verdict(at: Sequence[SettingSummary], p: float | None) -> Verdict:
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


@dataclass(frozen=True)
class _Side:
    """Both arms of a swap at the setting of one of them."""

    run: _Run
    swap: Swap
    whose: str
    other: str

    @cached_property
    def trials(self) -> dict[str, Sequence[Trial]]:
        """Those of each arm at this setting, as far as they are there."""
        settings = self.run.settings.get((self.other, self.whose))
        planned = [] if settings is None else swapping.planned_at(self.run.plan, self.other, settings)
        found = [trial for one in planned if (trial := self.run.pool.find(one)) is not None]
        return {self.whose: self.run.confirmed.get(self.whose, []), self.other: found}

    @cached_property
    def pairs(self) -> list[statistics.Pair]:
        """Those that have ended."""
        plan, labels = self.run.plan, (self.swap.a, self.swap.b)
        values = {label: _values(self.trials[label]) for label in labels}
        fallen = statistics.Divergence({label: _diverged(self.trials[label]) for label in labels})
        return paired(values, fallen, labels, plan.confirm_seeds, plan.sweep.metric.mode)

    @property
    def differences(self) -> list[float]:
        """a - b of the seeds that both trained."""
        return [pair.difference for pair in self.pairs if not pair.diverged]

    def summary(self) -> SettingSummary:
        """Summarise the differences."""
        trained, n, params = self.differences, len(self.pairs), self.run.frozen.get(self.whose, {})
        whole = len(trained) == n
        mean = fmean(trained) if trained else None
        return SettingSummary(
            setting=self.whose,
            params={key: params[key] for key in self.swap.keys if key in params},
            n=n,
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
        """Explain why pairs are missing; empty where none is."""
        for arm in (self.swap.a, self.swap.b):
            if arm not in self.run.frozen:
                return f"no setting of {arm} was frozen" if arm in self.run.untuned else f"{arm} is not tuned yet"
        if (why := no_job(self.run.plan, self.other, "confirm", self.run.settings[self.other, self.whose])) is not None:
            return f"{self.other} makes no job at {self.whose}'s setting: {why}"
        lost = len({trial.seed for own in self.trials.values() for trial in own if trial.state == "failed"})
        coming = len(self.run.plan.confirm_seeds) - len(self.pairs) - lost
        if coming:
            return f"{counted(coming, 'seed')} {by_count(coming, 'is', 'are')} still to come at {self.whose}'s"
        return f"{counted(lost, 'seed')} {by_count(lost, 'was', 'were')} lost at {self.whose}'s" if lost else ""


def _values(trials: Sequence[Trial]) -> dict[int, float]:
    return {seed: value for own in confirming.values(trials).values() for seed, value in own.items()}


def _diverged(trials: Sequence[Trial]) -> set[int]:
    return set[int]().union(*confirming.diverged(trials).values())
