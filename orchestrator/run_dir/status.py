"""How a run stands: what `status` says, from its ledger alone, so also when its driver is dead."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TypedDict

from pydantic import JsonValue

from orchestrator.ledger import (
    WAITS,
    Frozen,
    Ledger,
    Outcome,
    Run,
    RunState,
    Stage,
    Suggestion,
    Trial,
    TrialState,
)
from orchestrator.ledger.stored import JsonObject
from orchestrator.sweep import plan as planning
from orchestrator.sweep.values import Settings
from orchestrator.system.versions import VERSIONS


class DriverStatus(TypedDict):
    """Who drives a run."""

    holder: str
    since: float
    """Unix seconds."""
    until: float
    """The same, unless it says again that it is there."""


class FrozenSetting(TypedDict):
    """The setting that an arm was frozen at: of the first repeat where it is tuned several times."""

    params: JsonObject
    number: int | None
    """Of the suggestion; None where nothing was tuned."""
    hash: str


class ArmStatus(TypedDict):
    """How an arm stands."""

    label: str
    settings: JsonObject
    """Job keys that make it what it is."""
    frozen: FrozenSetting | None
    """None while it is tuned."""


class TrialStatus(TypedDict):
    """How a trial stands."""

    id: str
    stage: Stage
    arm: str
    seed: int
    number: int | None
    """Of the suggestion, in the tune stage."""
    params: JsonObject | None
    """Its tuned settings, by job key; empty where nothing is tuned, None where the ledger does not tell."""
    state: TrialState
    outcome: Outcome | None
    attempts: int
    failure: str | None
    """Class of the newest failure; `diverged` of a trial whose training became not finite."""
    message: str | None
    mlflow_run_id: str | None
    metric: float | None
    """At the final evaluation; None until then, and of a trial that diverged."""
    step: int | None
    created: float | None
    """When it was planned, in Unix seconds to the millisecond."""
    started: float | None
    """When its first attempt began."""
    ended: float | None
    """When it ended."""
    seconds: float | None
    """Of training, as it counts them itself."""


class StateCounts(TypedDict):
    """Trials in each state."""

    queued: int
    running: int
    done: int
    pruned: int
    failed: int


class Status(TypedDict):
    """How a run stands, as `status --json` prints it."""

    version: int
    sweep: str
    question: str
    run: str
    """Its uuid."""
    state: RunState
    waits: str | None
    """What a queued run waits for."""
    created: float
    """Unix seconds."""
    driver: DriverStatus | None
    """None where nobody drives it."""
    planned: dict[str, int]
    """Trials of each stage by the plan; of `swap` at most."""
    counts: StateCounts
    """Of the trials so far."""
    arms: list[ArmStatus]
    trials: list[TrialStatus]


def status(ledger: Ledger) -> Status:
    """Return the state of a run as plain JSON. Raises LedgerError."""
    run, trials = ledger.run, ledger.trials()
    suggestions, frozen = ledger.suggestions(), ledger.frozen()
    states = Counter(trial.state for trial in trials)
    driver = ledger.holder()
    waiting = run.state == "queued" and driver is not None
    settings = settings_of(run, trials, suggestions, frozen)
    return {
        "version": VERSIONS["status"],
        "sweep": run.name,
        "question": run.sweep["question"],
        "run": run.uuid,
        "state": run.state,
        "waits": next((event.text for event in reversed(ledger.events(WAITS))), None) if waiting else None,
        "created": run.created,
        "driver": None if driver is None else {"holder": driver[0], "since": driver[1], "until": driver[2]},
        "planned": run.sweep["plan"]["trials"],
        "counts": {
            "queued": states["queued"],
            "running": states["running"],
            "done": states["done"],
            "pruned": states["pruned"],
            "failed": states["failed"],
        },
        "arms": [
            {"label": arm["label"], "settings": arm["settings"], "frozen": _frozen(frozen.get(arm["label"]))}
            for arm in run.sweep["plan"].get("arms", ())
        ],
        "trials": [trial_status(trial, settings[trial.id]) for trial in trials],
    }


def trial_status(trial: Trial, params: JsonObject | None) -> TrialStatus:
    """Return how a trial stands. params: its tuned settings."""
    has_diverged = trial.outcome == "diverged"
    return {
        "id": trial.id,
        "stage": trial.stage,
        "arm": trial.arm,
        "seed": trial.seed,
        "number": trial.number,
        "params": params,
        "state": trial.state,
        "outcome": trial.outcome,
        "attempts": trial.attempts,
        "failure": trial.failure or ("diverged" if has_diverged else None),
        "message": trial.message,
        "mlflow_run_id": trial.mlflow_run_id,
        "metric": None if has_diverged else trial.metric,
        "step": trial.step,
        "created": _to_ms(trial.created),
        "started": _to_ms(trial.started),
        "ended": _to_ms(trial.ended),
        "seconds": _to_ms(trial.came_to.seconds),
    }


def _to_ms(seconds: float | None) -> float | None:
    """Round to milliseconds: more is noise, and takes most of the room where a status is kept."""
    return None if seconds is None else round(seconds, 3)


def _frozen(setting: Frozen | None) -> FrozenSetting | None:
    if setting is None:
        return None
    return {"params": setting.params, "number": setting.number, "hash": setting.hash}


def settings_of(
    run: Run, trials: Sequence[Trial], suggestions: Sequence[Suggestion], frozen: Mapping[str, Frozen]
) -> dict[str, JsonObject | None]:
    """Map each trial to its tuned settings: those of its suggestion; in the confirm stage those that the arm was frozen
    at, or one of its suggestions where a repeat or an extension has chosen another one; of a swapped one those that the
    arm has at another's setting. Its job decides."""
    of_trial: dict[str, JsonObject | None] = {
        trial: suggestion.params for suggestion in suggestions for trial in suggestion.trials
    }
    tried: dict[str, list[JsonObject]] = {}
    for suggestion in suggestions:
        tried.setdefault(suggestion.arm, []).append(suggestion.params)
    leaders, is_tuned = run.sweep["plan"].get("searched_with", {}), run.sweep.get("tune") is not None

    swapped: dict[str, list[tuple[Settings, Settings]]] = {}
    if any(trial.stage == "swap" for trial in trials):
        plan = planning.stored(run.sweep, run.rules)
        for (arm, _), params in plan.swapped({arm: own.params for arm, own in frozen.items()}).items():
            swapped.setdefault(arm, []).append((params, plan.whole(arm, params)))

    def known(trial: Trial) -> Sequence[tuple[Settings, Settings]]:
        """List settings, each with what a job at them has."""
        if trial.stage == "swap":
            return swapped.get(trial.arm, [])
        chosen = [frozen[trial.arm].params] if trial.arm in frozen else []
        others = tried.get(leaders.get(trial.arm, trial.arm), [])
        return [(own, own) for own in ([*chosen, *others] if is_tuned else [*chosen, {}])]

    def trained_at(trial: Trial) -> JsonObject | None:
        fitting = (own for own, whole in known(trial) if all(_value(trial.job, key) == whole[key] for key in whole))
        return next((dict(own) for own in fitting), None)

    return {trial.id: of_trial.get(trial.id) if trial.stage == "tune" else trained_at(trial) for trial in trials}


def _value(job: JsonObject, key: str) -> JsonValue:
    """Return the value of a dotted key of a job."""
    value: JsonValue = job
    for name in key.split("."):
        value = value.get(name) if isinstance(value, dict) else None
    return value
