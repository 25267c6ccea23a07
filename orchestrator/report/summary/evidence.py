"""What the ledger of one run says: the values of every arm, what they cost, and the verdict of every contrast.

`answer` is what `compare --json` prints; the page, the tables and the plots show its numbers and add none.
"""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Any

from orchestrator import statistics
from orchestrator.ledger import Ledger, Trial
from orchestrator.report.formatting import sentence
from orchestrator.report.summary import arms, budgets, pairs
from orchestrator.report.summary.warnings import notes
from orchestrator.run_dir import provenance
from orchestrator.session import schedule
from orchestrator.sweep import plan as planning

Json = dict[str, Any]


def answer(ledger: Ledger) -> Json:
    """The answer as plain JSON, complete or not; `complete` says which, and `notes` what is missing or odd.

    Metrics are raw, delta = a - b whichever direction is better, times are seconds, memory is MB, intervals are
    [low, high], and None stands for what does not exist, such as the interval of one value or the metric of a trial
    that diverged. Raises LedgerError when the ledger cannot be read.
    """
    run, trials = ledger.run, ledger.trials()
    sweep, plan = run.sweep, run.sweep["plan"]
    metric, seeds = sweep["metric"], [int(seed) for seed in plan["confirm_seeds"]]
    confirm = arms.confirmed(ledger, trials)
    contrasts = [(str(a), str(b)) for a, b in plan["contrasts"]]
    mode, smallest = metric.get("mode", "max"), float(metric.get("smallest_difference", 0.0))
    same = [one for one in contrasts if pairs.one_objective(confirm.trials, sweep, *one)]
    compared = statistics.compare(
        confirm.values,
        contrasts,
        seeds=seeds,
        mode=mode,
        smallest_difference=smallest,
        divergence=statistics.Divergence(confirm.diverged, unconfirmed(ledger)),
        same_objective=same,
    )
    tuned = arms.tuned(ledger, trials, mode)
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
            arms.arm(
                arm,
                confirm.trials[arm["label"]],
                confirm.values.get(arm["label"], {}),
                metric=metric["name"],
                budget=budgets.declared(sweep, arm, confirm.trials[arm["label"]]),
                tune=tuned.get(arm["label"]),
            )
            for arm in plan["arms"]
        ],
        "held_equal": None,
        "comparisons": [pairs.comparison(one, confirm.trials) for one in compared],
        "execution_only": pairs.execution_only(confirm.trials, confirm.values, smallest),
        "seeds": seeds,
        "smallest_p": planning.smallest_p(sum(one.p is not None for one in compared), len(seeds)),
        "trials": {stage: _counts(trials, stage) for stage in ("tune", "confirm")},
        "attempts": _attempts(ledger),
        "code": provenance.behind(run.provenance, trials, ledger.attempts()),
        "failures": [_failure(trial) for trial in trials if trial.state == "failed"],
        "diverged": [
            {"trial": t.id, "stage": t.stage, "arm": t.arm, "seed": t.seed} for t in trials if arms.diverged(t)
        ],
        "environment": run.environment,
        "notes": [],
    }
    for arm in found["arms"]:
        ids = {value["trial"] for value in arm["values"]}
        codes = [group["code"] for group in found["code"] if not ids.isdisjoint(group["trials"])]
        arm["code"] = list(dict.fromkeys(codes))
    found["held_equal"] = budgets.held_equal(found["arms"])
    ended = [one for one in trials if one.stage == "confirm" and one.state in ("done", "pruned", "failed")]
    found["notes"] = notes(
        found,
        [
            one
            for one in ended
            if one.seed not in confirm.values.get(one.arm, {}) and one.seed not in confirm.diverged[one.arm]
        ],
        thinned=_thinned(ledger, trials),
    )
    found["sentence"] = sentence(found)
    return found


def _thinned(ledger: Ledger, trials: Sequence[Trial]) -> list[Trial]:
    """The confirm trials of whose batches something was told."""
    told = {event.trial for event in ledger.events("batch")}
    return [trial for trial in trials if trial.stage == "confirm" and trial.id in told]


def unconfirmed(ledger: Ledger) -> list[str]:
    """The arms that are never confirmed, because no suggestion could be frozen and one diverged: as the run itself has
    it when it ends."""
    run = ledger.run
    untuned = schedule.untuned_arms(planning.stored(run.sweep, run.rules), ledger)
    return [arm for arm, why in untuned.items() if why == "diverged"]


def curves(ledger: Ledger, found: Json) -> Json:
    """arm -> the metric while it trained, over the confirm trials that count in `found` (an `answer`).

    Each has `samples` (pairs seen), and at each of these the `mean` over seeds and the `low` and `high` end of its 95%
    t interval, None below two seeds. A trial that diverged is not in it, as it has no metric. Trials are joined
    evaluation by evaluation: with a budget in seconds these come after equal shares of it, and the pairs are the mean
    of those seen by then.
    """
    drawn: Json = {}
    jobs = {trial.id: trial.job for trial in ledger.trials("confirm")}
    for arm in found["arms"]:
        kept = [one for one in arm["values"] if one["value"] is not None]
        paths = [[(point.step, point.value) for point in ledger.points(one["trial"], found["metric"])] for one in kept]
        count = min(map(len, paths), default=0)
        at = [*range(count - 1), -1] if count else []
        columns = [[path[k][1] for path in paths] for k in at]
        bands = [statistics.t_interval(column) for column in columns]
        size = jobs[kept[0]["trial"]]["batch"]["size"] if kept else 0
        drawn[arm["label"]] = {
            "samples": [size * fmean(path[k][0] for path in paths) for k in at],
            "mean": [fmean(column) for column in columns],
            "low": [band and band[0] for band in bands],
            "high": [band and band[1] for band in bands],
        }
    return drawn


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
