"""What the ledger holds, as plain values, and the errors it raises."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property, partial
from typing import Literal

from jobs.config import JobConfig, canonical
from orchestrator.ledger.stored import AttemptRecord, JsonObject, ProvenanceRecord, SweepTable, TrialResult
from orchestrator.system.exit_codes import Exit

Stage = Literal["tune", "confirm", "swap"]
"""`swap`: an arm at the setting of another one, by a job like those of the confirm stage. Its trials are beside the
answer: no mean, no verdict, no further seed is made of them."""

TrialState = Literal["queued", "running", "done", "pruned", "failed"]
AttemptState = Literal["running", "done", "pruned", "failed", "interrupted"]
RunState = Literal["planned", "queued", "running", "stopped", "done"]
"""`queued`: a driver has it, and waits for room on its cluster; an event of kind `WAITS` says why."""
Outcome = Literal["ok", "diverged", "infeasible"]
"""How a trial's training went; `infeasible`: it failed, and a person gave it up."""

WAITS = "waits"
NOTED = "noted"
"""Kind of the events that say what a launch told before anything ran."""

TRIAL_STATES: tuple[TrialState, ...] = ("queued", "running", "done", "pruned", "failed")


class LedgerError(Exception):
    """The ledger cannot do what it was asked; the text says what was found and what would work."""

    exit_code = Exit.MISSING


class LedgerMissing(LedgerError):
    """There is no ledger, or no such run, at this address."""


class LedgerUnavailable(LedgerError):
    """The database does not answer, is locked, or its disk is full. Nothing of the transaction was kept."""


class LedgerAway(LedgerUnavailable):
    """The database does not answer for a reason that passes: it restarts, fails over, or another process has it."""

    def __init__(self, reason: str, remedy: str = "") -> None:
        self.reason = reason
        """What is wrong, without what a person may do about it."""
        super().__init__(reason, remedy)

    def __str__(self) -> str:
        return "; ".join(filter(None, self.args))


class LedgerDamaged(LedgerError):
    """The database answers, with what no ledger writes. Its cause says what that is."""


class Undecodable(ValueError):
    """What the database holds in a column is not what belongs there."""


class LeaseHeld(LedgerError):
    """Another driver holds the run. Times are unix seconds by the database's clock."""

    exit_code = Exit.HELD

    def __init__(self, text: str, *, holder: str, since: float, expires: float, token: int) -> None:
        self.holder, self.since, self.expires, self.token = holder, since, expires, token
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        made = partial(type(self), holder=self.holder, since=self.since, expires=self.expires, token=self.token)
        return made, self.args, self.__dict__


class LeaseLost(LedgerError):
    """This process does not hold the run, or not any more; nothing was written."""

    exit_code = Exit.HELD


@dataclass(frozen=True)
class Run:
    """One sweep being carried out."""

    uuid: str
    name: str
    sweep: SweepTable
    """The sweep, resolved, and its plan."""
    state: RunState
    created: float
    environment: JsonObject
    mlflow_experiment_id: str | None = None
    mlflow_run_id: str | None = None
    rules: int = 1
    """Which rules make ids, sampler seeds and looks from the sweep: those of the version that began the run."""
    provenance: ProvenanceRecord | None = None
    """Digests of code, data and weights as the run was begun, and code accepted since. None: not recorded."""


@dataclass(frozen=True)
class Trial:
    """One training run. A new one needs only its first fields; the rest is written by the ledger."""

    id: str
    stage: Stage
    arm: str
    seed: int
    job: JsonObject
    """As planned. What later attempts override is on the attempt."""
    number: int | None = None
    """The suggestion it belongs to, in the tune stage."""
    state: TrialState = "queued"
    outcome: Outcome | None = None
    metric: float | None = None
    """The sweep's metric at the final evaluation."""
    metrics: dict[str, float] = field(default_factory=dict)
    step: int | None = None
    """The furthest optimizer step the ledger has a point of."""
    attempts: int = 0
    failure: str | None = None
    """Failure class of the newest attempt; None once the trial is done or pruned."""
    message: str | None = None
    result: JsonObject | None = None
    """As it was written; `came_to` reads it."""
    mlflow_run_id: str | None = None
    created: float | None = None
    started: float | None = None
    ended: float | None = None
    revision: int = 0
    """Goes up with every change of state, so that a projection knows what it has shown."""

    @cached_property
    def config(self) -> JobConfig:
        """The job. Raises ValidationError for one that this version does not understand."""
        return JobConfig.model_validate(self.job)

    @cached_property
    def came_to(self) -> TrialResult:
        """The result, as far as there is one."""
        return TrialResult.of(self.result)

    @cached_property
    def objective(self) -> str:
        """What it optimises, as text."""
        return objective(self.job)


def objective(job: JsonObject) -> str:
    """Return what a job optimises, as text: all of it except for how it is computed."""
    return canonical({key: value for key, value in job.items() if key != "execution"})


@dataclass(frozen=True)
class Attempt:
    """One execution of a trial, counted from 1."""

    trial: str
    number: int
    state: AttemptState
    execution: JsonObject
    """Overrides of `job.execution`, dotted or nested as the caller gave them."""
    host: str
    failure: str | None = None
    message: str | None = None
    started: float | None = None
    ended: float | None = None
    provenance: AttemptRecord | None = None
    """Digests of code, data and weights that it ran with. None: not recorded."""

    @property
    def seconds(self) -> float:
        """How long it took; 0 while it runs."""
        return 0.0 if self.started is None or self.ended is None else max(0.0, self.ended - self.started)


@dataclass(frozen=True)
class Point:
    """One value of one curve. `time` is unix seconds, taken where the value was measured."""

    trial: str
    key: str
    step: int
    value: float
    time: float


@dataclass(frozen=True)
class Suggestion:
    """Suggestion `number` of an arm: tuned values by dotted job key, and one trial id for each tune seed."""

    arm: str
    number: int
    params: JsonObject
    trials: tuple[str, ...]


@dataclass(frozen=True)
class Frozen:
    """The setting an arm goes into the confirm stage with, and the hash of it."""

    params: JsonObject
    number: int | None
    hash: str


@dataclass(frozen=True)
class Event:
    """Something worth telling that is not a state: a checkpoint set aside, a takeover, a refusal."""

    time: float
    kind: str
    text: str
    trial: str | None = None
