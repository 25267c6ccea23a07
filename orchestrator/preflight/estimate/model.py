"""The estimate: a pure function of a plan and of what trials are known to have taken.

    trial   = training + rest                            rest: loading, evaluations, whatever else is not training
    training = its samples x the known seconds per sample, or what the budget says where that is in seconds
    sweep   = its trials / trials at once, and never less than the longest arm, whose suggestions are made in turn

What is known of a job holds for every job whose steps cost the same. Where there is none, what is known of one that
differs in batch, negatives group or loss has to do, and is called rough.
"""

from __future__ import annotations

import re
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, log
from typing import TypedDict

from jobs.config import JobConfig, canonical
from jobs.config.identity import FORMER
from jobs.core.paths import directory, is_built
from orchestrator.sweep import Arm, flatten
from orchestrator.sweep.plan import Plan

PROBE = "a probe"
"""Where a cost comes from that no earlier run has told."""

FREE = (
    *("stage", "seed", "budget.", "data.train", "data.tune", "data.confirm", "optimizer.", "evaluate.times"),
    *("evaluate.neighbours", "loss.temperature", "loss.margin", "loss.bias", "loss.hard_negative_weight"),
    *("loss.mlm_", "execution.verify", "execution.checkpoint_every", "execution.keep_checkpoints"),
    *("execution.deadline_s", "model.pooling"),
)
"""Keys of a job, or beginnings of keys, that do not set what a step costs."""

NEAR = ("batch.size", "batch.negatives_group", "loss.name")
"""Keys in which a job may differ from one that nothing is known of and still say roughly what it costs."""


@dataclass(frozen=True)
class Known:
    """What one trial, or one probe, has taken."""

    job: JobConfig
    gpus_per_rank: float
    training_s: float
    samples: int
    """Pairs that were trained on in `training_s`."""

    rest_s: float | None
    """Loading, evaluations and all else of a trial that found its ranks warm; None where that cannot be told."""

    peak_memory_mb: float | None
    origin: str
    """The run's folder or name, or PROBE."""

    here: bool = True
    """Whether this machine did it."""

    start_s: float | None = None
    """What came before the first trial of the run, its ranks' start included; None for all others."""


@dataclass(frozen=True)
class ArmEstimate:
    """One arm. Times are None where nothing like it is known."""

    label: str
    trials: int
    ranks: int
    seconds: float | None
    """Of all its trials, one after the other."""

    longest_s: float | None
    """The least that the arm takes, however many trials run at once."""

    known: tuple[Known, ...]
    remarks: tuple[str, ...]
    """What makes the estimate a rough one."""

    @property
    def trial_seconds(self) -> float | None:
        """Seconds of one trial, on average over the stages."""
        return None if self.seconds is None else self.seconds / self.trials

    @property
    def peak_memory_mb(self) -> float | None:
        """The peak of the rank that takes most."""
        return max((known.peak_memory_mb for known in self.known if known.peak_memory_mb is not None), default=None)

    @property
    def source(self) -> str | None:
        """Where the numbers are from, in words."""
        return source(self.known, self.remarks)


class ArmSummary(TypedDict):
    """What an arm takes, as JSON; times and memory are None where nothing like it is known."""

    label: str
    trials: int
    trial_seconds: float | None
    """On average over the stages."""
    peak_memory_mb: float | None
    source: str | None
    """What it is known from, in words."""


class EstimateSummary(TypedDict):
    """What a sweep takes, as JSON; None where an arm is not known."""

    seconds: float | None
    """From the first trial's beginning to the last one's end."""
    start_seconds: float | None
    """Before the first trial."""
    rank_hours: float | None
    """Hours of a rank, over all trials."""
    trials: int
    concurrent: int
    """Trials at once."""
    source: str | None
    notes: list[str]
    arms: list[ArmSummary]


@dataclass(frozen=True)
class Estimate:
    """The whole sweep."""

    arms: tuple[ArmEstimate, ...]
    concurrent: int
    notes: tuple[str, ...] = ()

    at_most: bool = False
    """Whether there may be fewer trials, as those of arms at each other's setting."""

    @property
    def unknown(self) -> list[str]:
        """Labels of the arms without a known trial like theirs."""
        return [arm.label for arm in self.arms if arm.seconds is None]

    @property
    def trials(self) -> int:
        """Trials of all arms."""
        return sum(arm.trials for arm in self.arms)

    @property
    def seconds(self) -> float | None:
        """Wall-clock seconds from the first trial's beginning to the last one's end."""
        if self.unknown:
            return None
        return max(self._shared_s, *(arm.longest_s or 0.0 for arm in self.arms))

    @property
    def in_turn(self) -> bool:
        """Whether an arm whose suggestions wait for one another takes longer than all trials side by side."""
        return self.seconds is not None and self.seconds > self._shared_s

    @property
    def rank_hours(self) -> float | None:
        """Hours of a rank, so of a CPU with one thread or of a GPU, over all trials."""
        return None if self.unknown else sum((arm.seconds or 0.0) * arm.ranks for arm in self.arms) / 3600

    @property
    def start_s(self) -> float | None:
        """What comes before the first trial, where earlier runs tell."""
        starts = [known.start_s for known in self._known if known.start_s is not None]
        return statistics.median(starts) if starts else None

    @property
    def source(self) -> str | None:
        """Where the numbers are from, in words."""
        return source(self._known, dict.fromkeys(remark for arm in self.arms for remark in arm.remarks))

    def summary(self) -> EstimateSummary:
        """Return the estimate as plain JSON."""
        return {
            "seconds": self.seconds,
            "start_seconds": self.start_s,
            "rank_hours": self.rank_hours,
            "trials": self.trials,
            "concurrent": self.concurrent,
            "source": self.source,
            "notes": list(self.notes),
            "arms": [
                {
                    "label": arm.label,
                    "trials": arm.trials,
                    "trial_seconds": arm.trial_seconds,
                    "peak_memory_mb": arm.peak_memory_mb,
                    "source": arm.source,
                }
                for arm in self.arms
            ],
        }

    @property
    def _shared_s(self) -> float:
        """All trials, if some are always left to run side by side."""
        return sum(arm.seconds or 0.0 for arm in self.arms) / self.concurrent

    @cached_property
    def _known(self) -> list[Known]:
        """All known trials that were used, once each: arms may share them, mostly all of them."""
        shared = {id(arm.known): arm.known for arm in self.arms}.values()
        return list({id(known): known for group in shared for known in group}.values())


def estimate(plan: Plan, known: Iterable[Known], *, concurrent: int, notes: Sequence[str] = ()) -> Estimate:
    """Estimate what `plan` takes with `concurrent` trials at once, from what is known."""
    groups = _grouped(known)
    arms = tuple(_arm(plan, arm, groups) for arm in plan.arms)
    return Estimate(arms, concurrent, (*notes, *_notes(plan, arms)), at_most=bool(plan.swaps))


def cost(job: JobConfig, gpus_per_rank: float) -> dict[str, object]:
    """Return all that sets what a step of a job costs, by dotted key: equal values, equal costs."""
    flat = flatten(job.model_dump(mode="json"))
    kept: dict[str, object] = {key: value for key, value in flat.items() if not key.startswith(FREE)}
    return kept | {
        "batch.negatives_group": job.negatives_group,
        "batch.pool": None,
        "loss.mlm": job.loss.mlm_weight > 0,
        "optimizer.name": job.optimizer.name,
        "data.train": re.sub(r"\[[^\[\]]*\]$", "", job.data.train),
        "gpus_per_rank": gpus_per_rank,
        # What is not given is known of an encoder that says nothing; a folder of sentence-transformers says any length.
        "data.max_tokens": job.data.max_tokens or (FORMER["data.max_tokens"] if _says_nothing(job) else None),
    }


def _says_nothing(job: JobConfig) -> bool:
    """Return whether an encoder is built, or lies here as a folder of transformers alone; True too for
    images and where no encoder is named."""
    if job.task == "image" or is_built(job.model.name) or job.model.name is None:
        return True
    try:
        folder = directory(job.model.name)
    except (OSError, ValueError):  # it is said when it is looked at
        return False
    return folder is not None and not (folder / "modules.json").exists()


def source(known: Iterable[Known], remarks: Iterable[str] = ()) -> str | None:
    """Describe the source, as in `16 trials of runs/quickstart`, and what is to be said against it; None for
    nothing."""
    used = list(known)
    origins = sorted({known_trial.origin for known_trial in used} - {PROBE})
    trials = sum(known_trial.origin != PROBE for known_trial in used)
    named = ", ".join(origins) if len(origins) < 4 else f"{len(origins)} runs"
    words = [f"{trials} trial{'s' * (trials > 1)} of {named}"] if trials else []
    words += [PROBE] if len(used) > trials else []
    return "; ".join([" and ".join(words), *remarks]) if used else None


@dataclass(frozen=True)
class _Group:
    """What is known of one cost on one machine."""

    cost: dict[str, object]
    here: bool
    known: tuple[Known, ...]

    @cached_property
    def rate_s(self) -> float:
        """Seconds of a sample. Long trainings tell more than short ones, since the first steps are slow."""
        rates = sorted((trial.training_s / trial.samples, trial.samples) for trial in self.known)
        half, counted = sum(samples for _, samples in rates) / 2, 0
        for rate, samples in rates:
            counted += samples
            if counted >= half:
                return rate
        raise AssertionError("a group holds at least one trial")

    @cached_property
    def evaluation_s(self) -> dict[tuple[str | None, ...], float]:
        """Seconds of what is no training, for each evaluation, by the rows that are judged on; (): on whatever rows.
        Of two, the lower: the first trial of a run has its ranks to start."""
        rest: dict[tuple[str | None, ...], list[float]] = {}
        for trial in self.known:
            if trial.rest_s is not None:
                for rows in ((), (trial.job.eval_split,)):
                    rest.setdefault(rows, []).append(trial.rest_s / _evaluations(trial.job))
        return {rows: statistics.median_low(seconds) for rows, seconds in rest.items()}


def _grouped(known: Iterable[Known]) -> list[_Group]:
    costs: dict[tuple[int, float], tuple[str, dict[str, object]]] = {}  # trials of an arm may share their job
    groups: dict[tuple[str, bool], tuple[dict[str, object], list[Known]]] = {}
    for trial in known:
        key = (id(trial.job), trial.gpus_per_rank)
        if key not in costs:
            costs[key] = (canonical(value := cost(trial.job, trial.gpus_per_rank)), value)
        text, value = costs[key]
        groups.setdefault((text, trial.here), (value, []))[1].append(trial)
    return [_Group(value, here, tuple(trials)) for (_, here), (value, trials) in groups.items()]


def _arm(plan: Plan, arm: Arm, groups: Sequence[_Group]) -> ArmEstimate:
    tune = plan.sweep.tune
    suggestions = plan.asked(arm.label) if arm.label in plan.suggestions else 0
    confirmed, others = len(plan.confirm_seeds), sum(arm.label in (swap.a, swap.b) for swap in plan.swaps)
    counts = {"tune": suggestions * (len(plan.tune_seeds) // plan.repeats), "confirm": confirmed * (1 + others)}
    jobs = {stage: arm.config(stage=stage, seed=0) for stage, count in counts.items() if count}
    trials, ranks = sum(counts.values()), jobs["confirm"].execution.ranks
    wanted = cost(jobs["confirm"], plan.sweep.resources.gpus_per_rank)
    group, remarks = _nearest(wanted, jobs["confirm"].batch.size, groups)
    if group is None:
        return ArmEstimate(arm.label, trials, ranks, None, None, (), ())
    took = {stage: _trial_s(job, group) for stage, job in jobs.items()}
    turns = {"tune": ceil(suggestions / tune.parallel) if tune else 0, "confirm": 2 if others else 1}
    if all(known.rest_s is None for known in group.known):
        remarks = (*remarks, "training alone, without loading and evaluations")
    return ArmEstimate(
        arm.label,
        trials,
        ranks,
        sum(counts[stage] * seconds for stage, seconds in took.items()),
        sum(turns[stage] * seconds for stage, seconds in took.items()),
        group.known,
        remarks,
    )


def _nearest(
    wanted: Mapping[str, object], batch_size: int, groups: Iterable[_Group]
) -> tuple[_Group | None, tuple[str, ...]]:
    """Find what is known of the nearest cost, and what is to be said against it. This machine goes first: another one
    may be fifty times as fast, another batch hardly is."""

    def differing(group: _Group) -> list[str]:
        keys = sorted(wanted.keys() | group.cost.keys())
        return [key for key in keys if wanted.get(key) != group.cost.get(key)]

    def distance(group: _Group) -> tuple[bool, int, float, str]:
        ratio = abs(log(batch_size / group.known[0].job.batch.size))
        return (not group.here, len(differing(group)), ratio, canonical(group.cost))

    close = [group for group in groups if set(differing(group)) <= set(NEAR)]
    if not close:
        return None, ()
    best = min(close, key=distance)
    keys = differing(best)
    if all(costs["batch.negatives_group"] == costs["batch.size"] for costs in (wanted, best.cost)):
        keys = [key for key in keys if key != "batch.negatives_group"]  # said by the size
    rough = [f"rough: they had {', '.join(f'{key} = {best.cost[key]}' for key in keys)}"] if keys else []
    return best, (*rough, *([] if best.here else ["measured on another machine"]))


def _trial_s(job: JobConfig, group: _Group) -> float:
    """Estimate the seconds of one trial. Its rest is best known from trials that were judged on the same rows."""
    budget: float | None = job.budget.seconds
    training = group.rate_s * (job.steps or 0) * job.batch.size if budget is None else budget
    rest = group.evaluation_s
    return training + _evaluations(job) * rest.get((job.eval_split,), rest.get((), 0.0))


def _evaluations(job: JobConfig) -> int:
    return job.evaluate.times + 1


def _notes(plan: Plan, arms: Sequence[ArmEstimate]) -> list[str]:
    tune, notes = plan.sweep.tune, []
    if tune is None or all(arm.seconds is None for arm in arms):
        return []
    if tune.prune != "none":
        notes.append(f"tune.prune = {tune.prune!r} ends trials early, so that the time is the most it takes")
    if plan.swaps:
        notes.append(
            f"confirm.swap takes {plan.trials['swap']} of the trials at most, which the time counts: fewer where arms "
            "are tuned alike"
        )
    costly = [key for key in tune.space if not key.startswith(FREE)]
    if costly:
        notes.append(
            f"{', '.join(costly)} is tuned and sets what a trial costs; the time is that of the arm's own value"
        )
    return notes
