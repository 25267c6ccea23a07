"""What the ledger of one run says: the values of every arm, what they cost, and the verdict of every contrast.

`answer` is what `compare --json` prints; the page, the tables and the plots show its numbers and add none.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

from jobs.config import canonical
from orchestrator import analysis
from orchestrator.ledger import Ledger, Trial
from orchestrator.plan import smallest_p
from orchestrator.report.notes import notes
from orchestrator.report.text import sentence

HASHES = ("data", "init", "order")
"""What two arms must share, seed by seed, for a pair to be a pair; see `hashes` in a trial's result."""

Json = dict[str, Any]


def answer(ledger: Ledger) -> Json:
    """The answer as plain JSON, complete or not; `complete` says which, and `notes` what is missing or odd.

    Metrics are raw, delta = a - b whichever direction is better, times are seconds, memory is MB, intervals are
    [low, high], and None stands for what does not exist, such as the interval of one value. A confirm trial that
    diverged has the metric of its untrained encoder. Raises LedgerError when the ledger cannot be read.
    """
    run, trials = ledger.run, ledger.trials()
    sweep, plan = run.sweep, run.sweep["plan"]
    metric, seeds = sweep["metric"], [int(seed) for seed in plan["confirm_seeds"]]
    confirm = [trial for trial in trials if trial.stage == "confirm"]
    values = _values(ledger, confirm, metric["name"])
    contrasts = [(str(a), str(b)) for a, b in plan["contrasts"]]
    mode, smallest = metric.get("mode", "max"), float(metric.get("smallest_difference", 0.0))
    compared = analysis.compare(values, contrasts, seeds=seeds, mode=mode, smallest_difference=smallest)
    tuned = _tuned(ledger, trials, mode)
    of_arm = {arm["label"]: [trial for trial in confirm if trial.arm == arm["label"]] for arm in plan["arms"]}
    found: Json = {
        "question": sweep["question"],
        "metric": metric["name"],
        "mode": mode,
        "smallest_difference": smallest,
        "sweep": run.name,
        "run": run.uuid,
        "state": run.state,
        "created": run.created,
        "complete": all(one.complete for one in compared),
        "sentence": "",
        "arms": [
            _arm(arm, of_arm[arm["label"]], values, metric["name"], tuned.get(arm["label"])) for arm in plan["arms"]
        ],
        "comparisons": [_comparison(one, of_arm) for one in compared],
        "execution_only": _execution_only(of_arm, values, smallest),
        "seeds": seeds,
        "smallest_p": smallest_p(len(contrasts), len(seeds)),
        "trials": {stage: _counts(trials, stage) for stage in ("tune", "confirm")},
        "attempts": _attempts(ledger),
        "failures": [_failure(trial) for trial in trials if trial.state == "failed"],
        "diverged": [{"trial": t.id, "stage": t.stage, "arm": t.arm, "seed": t.seed} for t in trials if _diverged(t)],
        "environment": run.environment,
        "notes": [],
    }
    ended = [trial for trial in confirm if trial.state in ("done", "pruned", "failed")]
    found["notes"] = notes(found, [trial for trial in ended if trial.seed not in values.get(trial.arm, {})])
    found["sentence"] = sentence(found)
    return found


def curves(ledger: Ledger, found: Json) -> Json:
    """arm -> the metric while it trained, over the confirm trials that count in `found` (an `answer`).

    Each has `samples` (pairs seen), and at each of these the `mean` over seeds and the `low` and `high` end of its 95%
    t interval, None below two seeds. After it diverged, a trial counts as its untrained encoder, here as in the answer.
    """
    metric, drawn = found["metric"], {}
    jobs = {trial.id: trial.job for trial in ledger.trials("confirm")}
    for arm in found["arms"]:
        kept = [one for one in arm["values"] if one["value"] is not None]
        paths = [{point.step: point.value for point in ledger.points(one["trial"], metric)} for one in kept]
        whole = [path for one, path in zip(kept, paths, strict=True) if not one["diverged"]]
        steps = sorted(set.intersection(*map(set, whole))) if whole else []
        columns = [[path.get(step, one["value"]) for one, path in zip(kept, paths, strict=True)] for step in steps]
        bands = [analysis.t_interval(column) for column in columns]
        size = jobs[kept[0]["trial"]]["batch"]["size"] if kept else 0
        drawn[arm["label"]] = {
            "samples": [step * size for step in steps],
            "mean": [fmean(column) for column in columns],
            "low": [band and band[0] for band in bands],
            "high": [band and band[1] for band in bands],
        }
    return drawn


def untrained(ledger: Ledger, trial: Trial, metric: str) -> float | None:
    """The metric of a trial's encoder before its first step."""
    value = ((trial.result or {}).get("untrained") or {}).get(metric)
    if value is None and trial.attempts:
        value = next((point.value for point in ledger.points(trial.id, metric) if point.step == 0), None)
    return value


def _values(ledger: Ledger, confirm: Sequence[Trial], metric: str) -> dict[str, dict[int, float]]:
    """arm -> seed -> final metric, for the confirm trials that have one."""
    found: dict[str, dict[int, float]] = {}
    for trial in confirm:
        value = untrained(ledger, trial, metric) if _diverged(trial) else trial.metric
        ended = trial.state == "done" or _diverged(trial)
        if ended and value is not None and math.isfinite(value):
            found.setdefault(trial.arm, {})[trial.seed] = value
    return found


def _arm(
    arm: Json, trials: Sequence[Trial], values: dict[str, dict[int, float]], metric: str, tune: Json | None
) -> Json:
    label, mine = arm["label"], values.get(arm["label"], {})
    results = [trial.result for trial in trials if trial.result]
    ok = [trial for trial in trials if trial.state == "done" and not _diverged(trial)]
    ran = [trial for trial in trials if trial.state == "done" or _diverged(trial)]
    diverged = sum(_diverged(trial) for trial in trials)
    ranks = {int(trial.job.get("execution", {}).get("ranks", 1)) for trial in trials}
    return {
        "label": label,
        "settings": arm["settings"],
        "n": len(mine),
        "mean": fmean(mine.values()) if mine else None,
        "ci95": _listed(analysis.t_interval(list(mine.values()))),
        "diverged": diverged,
        "divergence_rate": diverged / len(ran) if ran else None,
        "divergence_ci95": _listed(analysis.wilson_interval(diverged, len(ran))) if ran else None,
        "untrained": _mean((result.get("untrained") or {}).get(metric) for result in results),
        "samples": _only(result.get("samples") for result in results) or arm.get("samples"),
        "steps": _only(result.get("step") for result in results) or arm.get("steps"),
        "negatives_per_anchor": _only(r.get("negatives_per_anchor") for r in results)
        or arm.get("negatives_per_anchor"),
        "ranks": _only(ranks),
        "samples_per_second": _mean(result.get("samples_per_second") for result in results),
        "peak_memory_mb": max(
            (r["peak_memory_mb"] for r in results if r.get("peak_memory_mb") is not None), default=None
        ),
        "seconds": _mean(result.get("seconds") for result in results),
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
        "values": [_value(t, mine.get(t.seed)) for t in trials],
        "tune": tune,
    }


def _value(trial: Trial, metric: float | None) -> Json:
    result = trial.result or {}
    costs = {key: result.get(key) for key in ("seconds", "samples_per_second", "peak_memory_mb")}
    return {
        "seed": trial.seed,
        "trial": trial.id,
        "state": trial.state,
        "diverged": _diverged(trial),
        "value": metric,
        **costs,
    }


def _comparison(one: analysis.Comparison, trials: dict[str, list[Trial]]) -> Json:
    hashes = {
        arm: {t.seed: (t.result or {}).get("hashes") or {} for t in trials.get(arm, ())} for arm in (one.a, one.b)
    }
    pairs = [(hashes[one.a].get(seed, {}), hashes[one.b].get(seed, {})) for seed in one.seeds]
    return {
        "a": one.a,
        "b": one.b,
        "n": one.n,
        "delta": one.delta,
        "ci95": _listed(one.ci95),
        "ci95_bca": _listed(one.ci95_bca),
        "ci90": _listed(one.ci90),
        "p": one.p,
        "p_holm": one.p_holm,
        "p_equivalence": one.p_equivalence,
        "p_equivalence_holm": one.p_equivalence_holm,
        "verdict": one.verdict,
        "complete": one.complete,
        "differences": [{"seed": seed, "value": d} for seed, d in zip(one.seeds, one.differences, strict=True)],
        "shared": {
            what: all(a[what] == b[what] for a, b in pairs)
            for what in HASHES
            if pairs and all(what in a and what in b for a, b in pairs)
        },
    }


def _execution_only(of_arm: dict[str, list[Trial]], values: dict[str, dict[int, float]], smallest: float) -> list[Json]:
    """Pairs of arms whose jobs differ in nothing but `execution`, and how far apart their metrics are, seed by seed.

    Training turns rounding into something larger, so they need not be identical; they agree when no seed differs by
    more than the smallest difference that matters.
    """
    labels, found = list(of_arm), []
    for i, b in enumerate(labels):
        for a in labels[i + 1 :]:
            jobs = {arm: {trial.seed: trial.job for trial in of_arm[arm]} for arm in (a, b)}
            both = jobs[a].keys() & jobs[b].keys()
            if not both or any(_objective(jobs[a][seed]) != _objective(jobs[b][seed]) for seed in both):
                continue
            have = sorted(both & values.get(a, {}).keys() & values.get(b, {}).keys())
            largest = max((abs(values[a][seed] - values[b][seed]) for seed in have), default=None)
            agree = None if largest is None else largest == 0 or largest <= smallest
            found.append({"a": a, "b": b, "n": len(have), "largest_difference": largest, "agree": agree})
    return found


def _tuned(ledger: Ledger, trials: Sequence[Trial], mode: analysis.Mode) -> dict[str, Json]:
    """arm -> how its tune stage went and what was chosen."""
    by_id, frozen = {trial.id: trial for trial in trials}, ledger.frozen()
    found: dict[str, Json] = {}
    for arm in dict.fromkeys(suggestion.arm for suggestion in ledger.suggestions()):
        suggestions = ledger.suggestions(arm)
        tried = [[by_id[one] for one in suggestion.trials if one in by_id] for suggestion in suggestions]
        values = [[_tune_value(trial) for trial in group] or [math.nan] for group in tried]
        best, low, high = analysis.best_so_far(values, mode=mode)
        found[arm] = {
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
                for k, (suggestion, group, given) in enumerate(zip(suggestions, tried, values, strict=True))
            ],
            "number": frozen[arm].number if arm in frozen else None,
            "params": frozen[arm].params if arm in frozen else None,
            "hash": frozen[arm].hash if arm in frozen else None,
        }
    return found


def _tune_value(trial: Trial) -> float:
    return trial.metric if trial.state == "done" and not _diverged(trial) and trial.metric is not None else math.nan


def _attempts(ledger: Ledger) -> Json:
    """Executions of trials, and how those that did not finish ended."""
    attempts = ledger.attempts()
    lost: dict[str, int] = {}
    for attempt in attempts:
        if attempt.state in ("failed", "interrupted"):
            kind = attempt.failure or attempt.state
            lost[kind] = lost.get(kind, 0) + 1
    return {"total": len(attempts), "unfinished": dict(sorted(lost.items()))}


def _failure(trial: Trial) -> Json:
    keys = ("stage", "arm", "seed", "attempts", "failure", "message")
    return {"trial": trial.id, **{key: getattr(trial, key) for key in keys}}


def _counts(trials: Sequence[Trial], stage: str) -> dict[str, int]:
    states = ("queued", "running", "done", "pruned", "failed")
    return {state: sum(t.state == state for t in trials if t.stage == stage) for state in states}


def _objective(job: Json) -> str:
    return canonical({key: value for key, value in job.items() if key != "execution"})


def _diverged(trial: Trial) -> bool:
    return trial.outcome == "diverged"


def _listed(interval: analysis.Interval | None) -> list[float] | None:
    return None if interval is None else list(interval)


def _real(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _mean(values: Iterable[float | None]) -> float | None:
    given = [value for value in values if value is not None and math.isfinite(value)]
    return fmean(given) if given else None


def _total(values: Iterable[float]) -> float | None:
    given = list(values)
    return sum(given) if given else None


def _only(values: Iterable[int | None]) -> int | None:
    """The value that all share; None when there is none or they differ."""
    given = {value for value in values if value is not None}
    return given.pop() if len(given) == 1 else None
