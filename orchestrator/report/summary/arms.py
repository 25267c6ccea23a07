"""Arms: the metric of every seed, what training it took, and how the arm was tuned."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from orchestrator import statistics
from orchestrator.ledger import Ledger, Trial
from orchestrator.report.summary import budgets
from orchestrator.report.summary.pairs import listed

Json = dict[str, Any]


@dataclass(frozen=True)
class Confirmed:
    """The confirm stage of a run, by label of the arm."""

    trials: dict[str, list[Trial]]
    values: dict[str, dict[int, float]]
    """Seed -> final metric of what trained."""

    diverged: dict[str, set[int]]
    """Seeds of what did not."""


def confirmed(ledger: Ledger, trials: Sequence[Trial]) -> Confirmed:
    """What the confirm trials of a run say. trials: all of the run's."""
    sweep = ledger.run.sweep
    confirm = [trial for trial in trials if trial.stage == "confirm"]
    labels = [arm["label"] for arm in sweep["plan"]["arms"]]
    of_arm = {label: [trial for trial in confirm if trial.arm == label] for label in labels}
    lost = {label: {trial.seed for trial in of_arm[label] if diverged(trial)} for label in labels}
    return Confirmed(of_arm, _values(confirm), lost)


def untrained(ledger: Ledger, trial: Trial, metric: str) -> float | None:
    """The metric of a trial's encoder before its first step."""
    value = ((trial.result or {}).get("untrained") or {}).get(metric)
    if value is None and trial.attempts:
        value = next((point.value for point in ledger.points(trial.id, metric) if point.step == 0), None)
    return value


def diverged(trial: Trial) -> bool:
    """Whether its training became not finite."""
    return trial.outcome == "diverged"


def arm(
    planned: Json, trials: Sequence[Trial], mine: Mapping[int, float], *, metric: str, budget: Json, tune: Json | None
) -> Json:
    """One arm as plain JSON. planned: the arm in the run's plan. mine: seed -> final metric. budget: as declared."""
    results = [trial.result for trial in trials if trial.result]
    ok = [trial for trial in trials if trial.state == "done" and not diverged(trial)]
    ran = [trial for trial in trials if trial.state == "done"]
    lost = sum(diverged(trial) for trial in trials)
    ranks = {int(trial.job.get("execution", {}).get("ranks", 1)) for trial in trials}
    return {
        "label": planned["label"],
        "settings": planned["settings"],
        "n": len(mine),
        "mean": fmean(mine.values()) if mine else None,
        "ci95": listed(statistics.t_interval(list(mine.values()))),
        "diverged": lost,
        "divergence_rate": lost / len(ran) if ran else None,
        "divergence_ci95": listed(statistics.wilson_interval(lost, len(ran))) if ran else None,
        "untrained": _mean((result.get("untrained") or {}).get(metric) for result in results),
        "budget": budget,
        **_spent(planned, results),
        "negatives_per_anchor": _only(result.get("negatives_per_anchor") for result in results)
        or planned.get("negatives_per_anchor"),
        "ranks": _only(ranks),
        "samples_per_second": _mean(result.get("samples_per_second") for result in results),
        "peak_memory_mb": max(
            (one["peak_memory_mb"] for one in results if one.get("peak_memory_mb") is not None), default=None
        ),
        "rank_seconds": _total(
            result["seconds"] * trial.job.get("execution", {}).get("ranks", 1)
            for trial in trials
            if (result := trial.result) and result.get("seconds") is not None
        ),
        "metrics": {
            key: _mean(trial.metrics.get(key) for trial in ok)
            for key in sorted({key for trial in ok for key in trial.metrics})
            if not key.startswith("train/")
        },
        "values": [_value(trial, mine.get(trial.seed)) for trial in trials],
        "tune": tune,
    }


def tuned(ledger: Ledger, trials: Sequence[Trial], mode: statistics.Mode) -> dict[str, Json]:
    """arm -> how its tune stage went and what was chosen; without the arms that were not tuned. An arm that another one
    is tuned for has that one's, and `searched_with` names it."""
    by_id, frozen = {trial.id: trial for trial in trials}, ledger.frozen()
    found: dict[str, Json] = {}
    for label in dict.fromkeys(suggestion.arm for suggestion in ledger.suggestions()):
        suggestions = ledger.suggestions(label)
        tried = [[by_id[one] for one in suggestion.trials if one in by_id] for suggestion in suggestions]
        width = max(1, *map(len, tried))  # of a suggestion that makes no job there are no trials
        table = [[_tune_value(trial) for trial in group] or [math.nan] * width for group in tried]
        best, low, high = statistics.best_so_far(table, mode=mode)
        found[label] = {
            "suggestions": [
                {
                    "number": suggestion.number,
                    "params": suggestion.params,
                    "trials": list(suggestion.trials),
                    "states": [trial.state for trial in group],
                    "value": _real(fmean(given)),
                    "best_so_far": _real(best[k]),
                    "range": [_real(low[k]), _real(high[k])],
                }
                for k, (suggestion, group, given) in enumerate(zip(suggestions, tried, table, strict=True))
            ],
            "number": frozen[label].number if label in frozen else None,
            "params": frozen[label].params if label in frozen else None,
            "hash": frozen[label].hash if label in frozen else None,
            "searched_with": None,
        }
    for label, leader in ledger.run.sweep["plan"].get("searched_with", {}).items():
        if leader in found:
            own = frozen.get(label)
            chosen = {"number": own and own.number, "params": own and own.params, "hash": own and own.hash}
            found[label] = {**found[leader], **chosen, "searched_with": leader}
    return found


def _values(confirm: Sequence[Trial]) -> dict[str, dict[int, float]]:
    found: dict[str, dict[int, float]] = {}
    for trial in confirm:
        trained = trial.state == "done" and not diverged(trial)
        if trained and trial.metric is not None and math.isfinite(trial.metric):
            found.setdefault(trial.arm, {})[trial.seed] = trial.metric
    return found


def _value(trial: Trial, metric: float | None) -> Json:
    result = trial.result or {}
    costs = {key: result.get(key) for key in ("seconds", "samples_per_second", "peak_memory_mb")}
    return {
        "seed": trial.seed,
        "trial": trial.id,
        "state": trial.state,
        "diverged": diverged(trial),
        "value": metric,
        **costs,
    }


def _spent(planned: Json, results: Sequence[Json]) -> Json:
    """What training took over the confirm trials, and its range; as planned while none has ended."""
    found: Json = {}
    for key, name in (("samples", "samples"), ("steps", "step"), ("seconds", "seconds")):
        mean, ends = budgets.spent(result.get(name) for result in results)
        found |= {key: planned.get(key) if mean is None else mean, f"{key}_range": ends}
    return found


def _tune_value(trial: Trial) -> float:
    return trial.metric if trial.state == "done" and not diverged(trial) and trial.metric is not None else math.nan


def _real(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(given: Iterable[float | None]) -> float | None:
    finite = [value for value in given if value is not None and math.isfinite(value)]
    return fmean(finite) if finite else None


def _total(given: Iterable[float]) -> float | None:
    counted = list(given)
    return sum(counted) if counted else None


def _only(given: Iterable[int | None]) -> int | None:
    """The value that all share; None when there is none or they differ."""
    found = {value for value in given if value is not None}
    return found.pop() if len(found) == 1 else None
