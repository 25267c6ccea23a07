"""The numbers of an answer, each with its type. `to_json` of each is what `compare --json` prints of it, key for key.

Metrics are raw, differences are a - b whichever direction is better, times are seconds, memory is MB, and None stands
for what does not exist, such as the interval of one value or the metric of a trial that diverged.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Literal

from pydantic import JsonValue

from orchestrator import statistics
from orchestrator.ledger import RunState, Stage, TrialState
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.summary.records.metrics import ArmByMetric, MetricSummary
from orchestrator.report.summary.records.plain_json import AsFields, as_json, fields_as_json
from orchestrator.report.summary.records.tuning import TuneSummary
from orchestrator.report.swaps import SwapSummary
from orchestrator.statistics import Interval
from orchestrator.statistics.rows import VarianceParts

SIDES: tuple[Literal["a", "b", "both"], ...] = ("a", "b", "both")
"""Of a pair, those that may have diverged."""

Kind = Literal["samples", "steps", "seconds"]
"""What a budget can be in."""


@dataclass(frozen=True)
class Spent:
    """What training took, over the confirm trials of an arm; as planned, without a range, while none has ended."""

    mean: float | None
    ends: Interval | None
    """Lowest and highest."""


@dataclass(frozen=True)
class SeedValue(AsFields):
    """One confirm trial: how it ended, and what it cost."""

    seed: int
    trial: str
    state: TrialState
    diverged: bool
    value: float | None
    seconds: float | None
    samples_per_second: float | None
    peak_memory_mb: float | None
    params: JsonObject | None = None
    """Its tuned settings; empty where nothing is tuned, None where that is not known."""
    started: float | None = None
    """Unix seconds, as the next one: when its first attempt began, and when it ended."""
    ended: float | None = None


@dataclass(frozen=True)
class ArmSummary:
    """One arm: its metric, what training took, how it was tuned."""

    label: str
    settings: JsonObject
    n: int
    mean: float | None
    ci95: Interval | None
    diverged: int
    divergence_rate: float | None
    divergence_ci95: Interval | None
    untrained: float | None = None
    budget: Mapping[Kind, float] = field(default_factory=dict)
    """As declared."""
    spent: Mapping[Kind, Spent] = field(default_factory=dict)
    negatives_per_anchor: int | None = None
    ranks: int | None = None
    samples_per_second: float | None = None
    peak_memory_mb: float | None = None
    rank_seconds: float | None = None
    worse_than_untrained: bool = False
    """The 95 % t interval of (final - untrained) over seeds lies on the bad side."""
    collapsed: Sequence[int] = ()
    """Confirm seeds whose encoder puts everything in one place, whose loss has nothing left to tell apart, or that had
    an anchor without a negative in a logged step."""
    metrics: Mapping[str, float | None] = field(default_factory=dict)
    values: Sequence[SeedValue] = ()
    tune: TuneSummary | None = None
    code: Sequence[str | None] = ()
    """Digests of the code behind these numbers."""
    run: str | None = None
    """Among those of several runs: which one, and the next what it calls the arm."""
    arm: str | None = None
    by_metric: Mapping[str, ArmByMetric] = field(default_factory=dict)
    """Where arms are judged by several metrics: the arm by each, by name."""

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""
        made: JsonObject = {}
        for own in fields(self):
            value = getattr(self, own.name)
            if own.name == "spent":
                for kind, spent in self.spent.items():
                    made |= {kind: spent.mean, f"{kind}_range": as_json(spent.ends)}
            elif own.name == "by_metric":
                made |= {"by_metric": as_json(value)} if value else {}
            elif own.name not in ("run", "arm") or value is not None:
                made[own.name] = as_json(value)
        return made


@dataclass(frozen=True)
class ComparisonSummary:
    """One contrast: what its differences say, and what its pairs have in common."""

    result: statistics.Comparison
    shared: Mapping[str, bool]
    """Hash -> whether both trials of every pair have it; without the hashes that a trial did not record."""
    apart: Mapping[str, Sequence[str]]
    """Hash -> the job keys that differ in a pair and may change it."""
    parts: VarianceParts = field(default_factory=VarianceParts)
    """Where the uncertainty comes from."""

    @property
    def is_seedless(self) -> bool:
        """Whether no seed changes it, as nothing is trained: there is no test then, and other rows alone may differ."""
        return self.result.n == 1 and self.parts.seeds == 0.0

    @property
    def interval(self) -> Interval | None:
        """The interval to show: that of the verdict, or without a test that on other rows of the same kind."""
        return self.parts.interval if self.is_seedless else self.result.interval

    @property
    def outlying(self) -> list[int]:
        """Seeds whose difference lies far from the others'."""
        return statistics.outlying({pair.seed: pair.difference for pair in self.result.pairs if not pair.diverged})

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""
        result = self.result
        return {
            "a": result.a,
            "b": result.b,
            **({"metric": result.metric} if result.metric else {}),
            "n": result.n,
            "delta": result.delta,
            "delta_trained": result.delta_trained,
            "n_trained": result.n_trained,
            "ci95": as_json(result.ci95),
            "ci95_bca": as_json(result.ci95_bca),
            "ci90": as_json(result.ci90),
            "interval": as_json(result.interval),
            "interval_kind": result.interval_kind,
            "interval_rows": as_json(self.parts.interval),
            "variance": {key: as_json(value) for key, value in asdict(self.parts).items() if key != "interval"},
            "p": result.p,
            "p_adjusted": result.p_adjusted,
            "p_holm": result.p_holm,
            "p_equivalence": result.p_equivalence,
            "p_equivalence_holm": result.p_equivalence_holm,
            "verdict": result.verdict,
            "needed": result.needed,
            "look": result.look,
            "diverged": {side: result.diverged(side) for side in SIDES},
            "divergence_p": statistics.mcnemar_p(result.diverged("a"), result.diverged("b")),
            "outlying": as_json(self.outlying),
            "diverged_arms": as_json(result.diverged_arms),
            "same_objective": result.same_objective,
            "complete": result.complete,
            "differences": [_difference(pair) for pair in result.pairs],
            "shared": as_json(self.shared),
            "apart": as_json(self.apart),
        }


def _difference(pair: statistics.Pair) -> JsonObject:
    """Return one seed as JSON: the measured difference, or None and the side that diverged where there is none."""
    if pair.diverged:
        return {"seed": pair.seed, "value": None, "diverged": pair.diverged}
    return {"seed": pair.seed, "value": pair.difference}


@dataclass(frozen=True)
class LooksSummary(AsFields):
    """How far the looks of a run have come, where several were planned."""

    counts: Sequence[int]
    """Seeds of each."""
    taken: int
    ended: str
    """Why no further one follows: `settled`, `futile`, `last`; empty while one does."""
    due: Mapping[str, int]
    """Label of an arm -> how many seeds it trains, as far as is known."""


@dataclass(frozen=True)
class StratumSummary(AsFields):
    """Which levels of the first factor nothing beats, where the others have these values."""

    where: JsonObject
    arms: Sequence[str]
    levels: Sequence[JsonValue]
    seeds: int
    """Those that all levels have."""
    p: Sequence[float | None]
    """Of the hypothesis that no level beats this one; None for one that diverged, and where nothing is judged."""
    best: Sequence[str]
    """Labels of the arms that nothing beats."""
    not_judged: str | None = None
    """Why nothing is said of its levels; None where something is."""


@dataclass(frozen=True)
class WhichSummary(AsFields):
    """Which of several ordered levels may be the best: a question of its own, with an error of its own."""

    factor: str
    alpha: float
    """At which each stratum is asked: 0.05 over all."""
    strata: Sequence[StratumSummary]
    interaction_p: float | None
    """That levels differ in the same way in every stratum; decides nothing."""


@dataclass(frozen=True)
class ExploratorySummary(AsFields):
    """What all that was trained says, where that is more than was planned: it decides nothing."""

    seeds: Sequence[int]
    sentence: str
    comparisons: Sequence[ComparisonSummary]
    """By the test of a fixed number of seeds, each on those that both arms have at their latest setting."""


@dataclass(frozen=True)
class ExecutionPair(AsFields):
    """Two arms whose jobs differ in nothing but `execution`, and how far apart their metrics are."""

    a: str
    b: str
    identical: bool
    """The jobs differ in nothing at all, as in two runs."""
    n: int
    largest_difference: float | None
    """Of the seeds that both trained, of which there are n."""
    agree: bool | None
    diverged_alone: Sequence[int] = ()
    """Seeds in which one of the two diverged and the other trained: then they do not agree."""
    metric: str = ""
    """Of which the difference is, where there are several; else empty."""


@dataclass(frozen=True)
class DataSource(AsFields):
    """Rows that a run was begun with."""

    key: str
    """Of the job: data.train, data.tune or data.confirm."""
    source: str
    rows: int | None
    digest: str | None


@dataclass(frozen=True)
class AttemptCounts(AsFields):
    """Executions of trials, and how those that did not finish ended."""

    total: int
    unfinished: Mapping[str, int]


@dataclass(frozen=True)
class CodeGroup:
    """The code and the versions behind the numbers of trials; None where they were not recorded."""

    code: str | None
    versions: Mapping[str, str] | None
    user_code: str | None
    """Digest of the user's own; None without any."""
    accepted: bool
    """Somebody accepted it later beside the code that the run began with."""
    trials: Sequence[str]

    def to_json(self) -> JsonObject:
        """Return the record as JSON, without a user's code where the user has none."""
        return {key: value for key, value in fields_as_json(self).items() if key != "user_code" or value is not None}


@dataclass(frozen=True)
class FailedTrial(AsFields):
    """A trial that failed, and why."""

    trial: str
    stage: Stage
    arm: str
    seed: int
    attempts: int
    failure: str | None
    message: str | None


@dataclass(frozen=True)
class DivergedTrial(AsFields):
    """A trial whose training became not finite."""

    trial: str
    stage: Stage
    arm: str
    seed: int


@dataclass(frozen=True, kw_only=True)
class Summary(AsFields):
    """The answer of one run, complete or not."""

    question: str
    metric: str
    mode: statistics.Mode
    smallest_difference: float
    sweep: str
    run: str
    state: RunState
    created: float
    complete: bool
    sentence: str = ""
    """The verdict in words: like `notes`, made of the numbers."""
    arms: Sequence[ArmSummary]
    held_equal: Kind | None
    comparisons: Sequence[ComparisonSummary]
    execution_only: Sequence[ExecutionPair]
    seeds: Sequence[int]
    alpha: Mapping[str, float]
    """At which levels the contrasts are judged: of a `difference`, and of `equivalence`."""
    smallest_p: float
    unit: Literal["seed", "repeat"]
    """What is paired: confirm seeds, or repeats of the tuning with the mean of their seeds."""
    looks: LooksSummary | None
    trials: Mapping[Stage, Mapping[TrialState, int]]
    attempts: AttemptCounts
    rank_seconds: Mapping[Stage, float]
    """That training took, on every rank: of all trials, those beyond the plan too."""
    code: Sequence[CodeGroup]
    failures: Sequence[FailedTrial]
    diverged: Sequence[DivergedTrial]
    environment: JsonObject
    data: Sequence[DataSource] = ()
    which: WhichSummary | None = None
    exploratory: ExploratorySummary | None = None
    swaps: Sequence[SwapSummary] = ()
    """Of arms that were trained at each other's setting too: beside the verdict, and decides nothing."""
    warnings: Sequence[str] = ()
    """What plan and launch warned of, before anything ran."""
    notes: Sequence[str] = ()
    """What is missing or odd."""
    metrics: Sequence[MetricSummary] = ()
    """Where arms are judged by several: all, `metric` first, at which tuning looks. Each contrast is judged by each."""
    without_rows: Sequence[str] = ()
    """Metrics that were measured and have no interval on other rows, as trials keep nothing of them by row."""


@dataclass(frozen=True, kw_only=True)
class MultiRunSummary:
    """The answer over several runs."""

    question: str
    metric: str
    mode: statistics.Mode
    smallest_difference: float
    complete: bool
    sentence: str = ""
    arms: Sequence[ArmSummary]
    held_equal: Kind | None
    comparisons: Sequence[ComparisonSummary]
    execution_only: Sequence[ExecutionPair]
    seeds: Sequence[int]
    alpha: Mapping[str, float]
    """At which levels the contrasts are judged: of a `difference`, and of `equivalence`."""
    smallest_p: float
    unit: Literal["seed", "repeat"]
    """What is paired: confirm seeds, or the seeds of a repeat of a tuning where a run has such units."""
    runs: Mapping[str, Summary]
    """Each run by its own plan, by name."""
    notes: Sequence[str] = ()
    metrics: Sequence[MetricSummary] = ()
    """Where all runs are judged by several: these."""

    def to_json(self) -> JsonObject:
        """Return the record as JSON."""
        runs: list[JsonValue] = [{"name": name, **run.to_json()} for name, run in self.runs.items()]
        return fields_as_json(self) | {"runs": runs}


@dataclass(frozen=True, kw_only=True)
class OutsideSummary(AsFields):
    """The answer on results of another trainer, of which no plan is known."""

    question: str
    metric: str
    mode: statistics.Mode
    smallest_difference: float
    planned: bool = False
    complete: bool
    """Every contrast has seeds that both of its arms have."""
    sentence: str = ""
    arms: Sequence[ArmSummary]
    held_equal: Kind | None = None
    comparisons: Sequence[ComparisonSummary]
    execution_only: Sequence[ExecutionPair] = ()
    seeds: Sequence[int]
    alpha: Mapping[str, float]
    smallest_p: float
    notes: Sequence[str] = ()
    metrics: Sequence[MetricSummary] = ()
    """Where several were named: all, in their order."""


Answer = Summary | MultiRunSummary | OutsideSummary
"""What tables, plots and sentences are made of."""


@dataclass(frozen=True)
class Curve:
    """The metric of an arm while it trained, over its confirm trials, evaluation by evaluation."""

    samples: Sequence[float]
    """Pairs seen."""
    mean: Sequence[float]
    low: Sequence[float | None]
    """Ends of the 95% t interval, None below two seeds."""
    high: Sequence[float | None]
    unit: str = "pairs seen"
    """Of `samples`: `step` in a training loop of the user's own, of which no pairs are known."""
