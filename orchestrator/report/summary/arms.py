"""Arms: the metric of every seed, what training it took, and how the arm was tuned."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from statistics import fmean, stdev
from typing import TypeGuard

from pydantic import JsonValue

from jobs.config import canonical
from jobs.config.after_sections import without_set
from orchestrator import statistics
from orchestrator.ledger import Ledger, Suggestion, Trial
from orchestrator.ledger.stored import ArmTable, JsonObject, TrialResult
from orchestrator.report.summary import budgets
from orchestrator.report.summary.records import ArmSummary, Kind, SeedValue, Spent
from orchestrator.report.summary.records.metrics import ArmByMetric
from orchestrator.report.summary.records.tuning import SuggestionSummary, TuneSummary
from orchestrator.session.schedule import confirming

ONE_PLACE = -0.1
"""Uniformity above which all embeddings are nearly one: that of equal ones is 0, of uniform ones about -4."""

EDGE = 0.1
"""Share of a range, from either end, within which a chosen value lies at its edge."""

NOTHING_LEFT, LAST_STEPS = 1e-6, 5
"""A loss up to this, in so many logged steps at the end, has nothing left to tell apart."""


@dataclass(frozen=True)
class Confirmed:
    """The confirm stage of a run, by label of the arm."""

    trials: dict[str, list[Trial]]
    values: dict[str, dict[int, float]]
    """Seed -> final metric of what trained."""

    diverged: dict[str, set[int]]
    """Seeds of what did not."""

    further: dict[str, dict[str, dict[int, float]]] = field(default_factory=dict)
    """By name of each further metric: the values by it."""

    def by(self, metric: str) -> dict[str, dict[int, float]]:
        """Return the values by a metric."""
        return self.further.get(metric, self.values)


def confirmed(ledger: Ledger, trials: Sequence[Trial]) -> Confirmed:
    """Collect the trials, final metrics and diverged seeds of a run's confirm stage, as far as it was planned. trials:
    all of the run's."""
    plan = ledger.run.sweep["plan"]
    confirm = [trial for trial in trials if trial.stage == "confirm" and trial.seed in set(plan["confirm_seeds"])]
    return confirmed_by([arm["label"] for arm in plan["arms"]], confirm, further_metrics(ledger))


def further_metrics(ledger: Ledger) -> list[str]:
    """Name the metrics by which a run is judged beside its first one."""
    return [metric["name"] for metric in ledger.run.sweep["metric"].get("also", ())]


def confirmed_by(labels: Sequence[str], confirm: Sequence[Trial], further: Iterable[str]) -> Confirmed:
    """Collect final metrics and diverged seeds of confirm trials, by the label of their arm. further: names of metrics
    beside the first one."""
    of_arm = {label: [trial for trial in confirm if trial.arm == label] for label in labels}
    fallen = {label: set[int]() for label in labels} | confirming.diverged(confirm)
    by_others = {metric: confirming.values(confirm, metric) for metric in further}
    return Confirmed(of_arm, confirming.values(confirm), fallen, by_others)


def by_metrics(
    confirm: Confirmed, label: str, metrics: Sequence[tuple[str, statistics.Mode]]
) -> dict[str, ArmByMetric]:
    """Summarise an arm by each of several metrics, given with their modes, the first one first; none of a single
    one."""
    trials, found = confirm.trials[label], {}
    ok = [trial for trial in trials if trial.state == "done" and not diverged(trial)]
    for metric, mode in metrics if len(metrics) > 1 else ():
        mine = confirm.by(metric).get(label, {})
        gains = [
            mine[trial.seed] - before
            for trial in ok
            if trial.seed in mine and (before := trial.came_to.untrained.get(metric)) is not None
        ]
        found[metric] = ArmByMetric(
            n=len(mine),
            mean=fmean(mine.values()) if mine else None,
            ci95=statistics.t_interval(list(mine.values())),
            untrained=_mean(trial.came_to.untrained.get(metric) for trial in trials),
            worse_than_untrained=statistics.is_worse_than_untrained(gains, mode),
            values=mine,
        )
    return found


def untrained(ledger: Ledger, trial: Trial, metric: str) -> float | None:
    """Return the metric of a trial's encoder before its first step."""
    value = trial.came_to.untrained.get(metric)
    if value is None and trial.attempts:
        value = next((point.value for point in ledger.points(trial.id, metric) if point.step == 0), None)
    return value


def whole_of(trial: Trial, section: str, key: str) -> int | None:
    """Return a whole number of a trial's job as it was planned, by whatever version; None where there is none."""
    table = trial.job.get(section)
    number = table.get(key) if isinstance(table, Mapping) else None
    return number if isinstance(number, int) else None


def diverged(trial: Trial) -> bool:
    """Return whether the training of a trial became not finite."""
    return trial.outcome == "diverged"


def arm(
    planned: ArmTable,
    trials: Sequence[Trial],
    mine: Mapping[int, float],
    *,
    metric: str,
    budget: Mapping[Kind, float],
    mode: statistics.Mode,
    tune: TuneSummary | None,
    repeats: int,
    code: Sequence[str | None],
    told_apart: Collection[str],
    params: Mapping[str, JsonObject | None],
    by_metric: Mapping[str, ArmByMetric],
) -> ArmSummary:
    """Compute the numbers of one arm. planned: the arm in the run's plan. mine: seed -> final metric. budget: as
    declared. repeats: of its tuning. code: digests of the code that computed its trials. told_apart: trials whose loss
    had nothing to tell apart. params: tuned settings by trial. by_metric: the arm by each of several metrics."""
    results = [trial.came_to for trial in trials]
    ok = [trial for trial in trials if trial.state == "done" and not diverged(trial)]
    ran = [trial for trial in trials if trial.state == "done"]
    lost = sum(diverged(trial) for trial in trials)
    return ArmSummary(
        label=planned["label"],
        settings=planned["settings"],
        n=len(mine),
        mean=fmean(mine.values()) if mine else None,
        ci95=statistics.t_interval(list(mine.values())),
        diverged=lost,
        divergence_rate=lost / len(ran) if ran else None,
        divergence_ci95=statistics.wilson_interval(lost, len(ran)) if ran else None,
        untrained=_mean(result.untrained.get(metric) for result in results),
        budget=budget,
        spent=_spent(planned, results),
        negatives_per_anchor=_only(result.negatives_per_anchor for result in results)
        or planned.get("negatives_per_anchor"),
        ranks=_only(_ranks(trial) for trial in trials),
        samples_per_second=_mean(result.samples_per_second for result in results),
        peak_memory_mb=max((peak for result in results if (peak := result.peak_memory_mb) is not None), default=None),
        rank_seconds=_total(
            seconds * _ranks(trial) for trial in trials if (seconds := trial.came_to.seconds) is not None
        ),
        worse_than_untrained=statistics.is_worse_than_untrained(_gains(ok, metric), mode),
        collapsed=[trial.seed for trial in ok if trial.id in told_apart or _is_in_one_place(trial)],
        metrics={
            key: _mean(trial.metrics.get(key) for trial in ok)
            for key in sorted({key for trial in ok for key in trial.metrics})
            if not key.startswith("train/")
        },
        values=[_value(trial, mine.get(trial.seed), params.get(trial.id)) for trial in trials],
        tune=None
        if tune is None
        else replace(tune, within_noise=_is_within_noise(tune, list(mine.values()), mode, repeats)),
        code=code,
        by_metric=by_metric,
    )


def told_apart(ledger: Ledger) -> set[str]:
    """Find the trials whose loss had nothing to tell apart: InfoNCE's has come to nothing in their last logged steps,
    or in one of these an anchor had no negative. Trials of earlier versions have not recorded the second."""
    return _at_nothing(ledger) | ledger.trials_above("train/without_negatives", 0.0)


def _at_nothing(ledger: Ledger) -> set[str]:
    key = "train/infonce"
    found = set()
    for trial, steps in ledger.steps_up_to(key, NOTHING_LEFT).items():
        if len(steps) >= LAST_STEPS:
            last = [point.value for point in ledger.points(trial, key)[-LAST_STEPS:]]
            if max(last) <= NOTHING_LEFT:
                found.add(trial)
    return found


def _gains(trials: Sequence[Trial], metric: str) -> list[float]:
    """Return what training brought, seed by seed."""
    before = [trial.came_to.untrained.get(metric) for trial in trials]
    return [t.metric - was for t, was in zip(trials, before, strict=True) if t.metric is not None and was is not None]


def _is_in_one_place(trial: Trial) -> bool:
    found = [value for key, value in trial.metrics.items() if without_set(key) == "uniformity"]
    return bool(found) and min(found) > ONE_PLACE


def tuned(ledger: Ledger, trials: Sequence[Trial], mode: statistics.Mode) -> dict[str, TuneSummary]:
    """Summarise for each arm how its tune stage went and what was chosen; without the arms that were not tuned. An arm
    that shares another arm's search has the suggestions of that search and its own choice, and `searched_with` names
    the other arm."""
    by_id, frozen, repeats = {trial.id: trial for trial in trials}, ledger.frozen(), repeats_of(ledger)
    summaries: dict[str, TuneSummary] = {}
    of_arm: dict[str, list[Suggestion]] = {}
    for suggestion in ledger.suggestions():
        of_arm.setdefault(suggestion.arm, []).append(suggestion)
    for label, suggestions in of_arm.items():
        tried = [[by_id[trial] for trial in suggestion.trials if trial in by_id] for suggestion in suggestions]
        width = max(1, *map(len, tried))  # of a suggestion that makes no job there are no trials
        table = [[_tune_value(trial) for trial in group] or [math.nan] * width for group in tried]
        best, low, high = statistics.best_so_far(table, mode=mode)
        chosen = frozen.get(label)
        summaries[label] = TuneSummary(
            suggestions=[
                SuggestionSummary(
                    number=suggestion.number,
                    params=suggestion.params,
                    trials=suggestion.trials,
                    states=[trial.state for trial in group],
                    value=_real(fmean(given)),
                    best_so_far=_real(best[k]),
                    range=(_real(low[k]), _real(high[k])),
                )
                for k, (suggestion, group, given) in enumerate(zip(suggestions, tried, table, strict=True))
            ],
            number=chosen.number if chosen else None,
            params=chosen.params if chosen else None,
            hash=chosen.hash if chosen else None,
            searched_with=None,
            repeats=_repeats(suggestions, table, repeats, mode) if chosen else (),
        )
        summaries[label] = _with_edges(summaries[label], ledger.run.sweep.get("tune"))
    for label, leader in ledger.run.sweep["plan"].get("searched_with", {}).items():
        if leader in summaries:
            own = frozen.get(label)
            shared = replace(
                summaries[leader],
                number=own.number if own else None,
                params=own.params if own else None,
                hash=own.hash if own else None,
                searched_with=leader,
            )
            summaries[label] = _with_edges(shared, ledger.run.sweep.get("tune"))
    return summaries


def repeats_of(ledger: Ledger) -> int:
    """Return how often every arm of a run is tuned."""
    return int(str((ledger.run.sweep.get("tune") or {}).get("repeats", 1)))


def _with_edges(summary: TuneSummary, tune: JsonObject | None) -> TuneSummary:
    """Note what was chosen at an edge: by the tuning, or in any of its repeats."""
    of_repeats = [_edges(tune, params) for params in summary.repeats]
    found = [*(_edges(tune, summary.params) if summary.params else []), *(key for own in of_repeats for key in own)]
    return replace(summary, edges=list(dict.fromkeys(found)), repeat_edges=of_repeats)


def _edges(tune: JsonObject | None, params: JsonObject) -> list[str]:
    """List the keys that were chosen near an end of their range, or at an end of choices that are numbers."""
    space = (tune or {}).get("space")
    spaces = space if isinstance(space, dict) else {}
    return [key for key, value in params.items() if _is_at_edge(spaces.get(key), value)]


def _is_at_edge(own: JsonValue, value: JsonValue) -> bool:
    """Return whether a chosen value lies within a tenth of an end of its range, on the range's own scale; of choices
    that are numbers, whether it is the least or the largest, or beyond. own: what the sweep says of the key."""
    if not isinstance(own, dict) or not _is_number(value):
        return False
    choices = own.get("choices")
    if isinstance(choices, list):
        levels = sorted(level for level in choices if _is_number(level)) if all(map(_is_number, choices)) else []
        return len(levels) > 1 and levels[0] < levels[-1] and not levels[0] < value < levels[-1]
    low, high = own.get("low"), own.get("high")
    if not _is_number(low) or not _is_number(high) or low == high:
        return False
    numbers = [value, low, high]
    if own.get("log"):
        if min(numbers) <= 0:  # a default that was filled from the arm, and lies outside
            return True
        numbers = [math.log(number) for number in numbers]
    share = (numbers[0] - numbers[1]) / (numbers[2] - numbers[1])
    return not EDGE < share < 1 - EDGE


def _is_number(value: JsonValue) -> TypeGuard[float]:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_within_noise(tune: TuneSummary, values: Sequence[float], mode: statistics.Mode, repeats: int) -> bool:
    """Return whether, in some repeat of the tuning, the best setting leads the second by less than noise."""
    if len(values) < 2 or len(tune.suggestions) % repeats:
        return False
    count, noise = len(tune.suggestions) // repeats, math.sqrt(2) * stdev(values)
    parts = (tune.suggestions[first : first + count] for first in range(0, len(tune.suggestions), max(1, count)))
    return any(lead is not None and lead < noise for lead in (_lead(part, mode) for part in parts))


def _lead(tried: Sequence[SuggestionSummary], mode: statistics.Mode) -> float | None:
    """Return by how much the best setting leads the second; None of fewer than two. What was suggested again, or makes
    the same trials, is the same setting."""
    scored = [(one, one.value) for one in tried if one.value is not None]
    scored.sort(key=lambda pair: pair[1], reverse=mode == "max")
    if not scored:
        return None
    best, first = scored[0]
    others = (
        value for one, value in scored if canonical(one.params) != canonical(best.params) and one.trials != best.trials
    )
    second = next(others, None)
    return None if second is None else abs(first - second)


def _repeats(
    suggestions: Sequence[Suggestion], table: Sequence[Sequence[float]], repeats: int, mode: statistics.Mode
) -> list[JsonObject]:
    """Return the best setting of each repeat of a tuning; none where there is one alone. table: what each suggestion
    came to, seed by seed."""
    if repeats < 2 or len(suggestions) % repeats:
        return []
    count, sign, best = len(suggestions) // repeats, 1 if mode == "max" else -1, []
    means = [fmean(values) for values in table]
    for first in range(0, len(suggestions), count):
        tried = [k for k in range(first, first + count) if math.isfinite(means[k])]
        best += [suggestions[max(tried, key=lambda k: (sign * means[k], -k))].params] if tried else []
    return best


def _value(trial: Trial, metric: float | None, params: JsonObject | None) -> SeedValue:
    result = trial.came_to
    return SeedValue(
        seed=trial.seed,
        trial=trial.id,
        state=trial.state,
        diverged=diverged(trial),
        value=metric,
        seconds=result.seconds,
        samples_per_second=result.samples_per_second,
        peak_memory_mb=result.peak_memory_mb,
        params=params,
        started=trial.started,
        ended=trial.ended,
    )


def _ranks(trial: Trial) -> int:
    return whole_of(trial, "execution", "ranks") or 1


def _spent(planned: ArmTable, results: Sequence[TrialResult]) -> dict[Kind, Spent]:
    """Summarise what training took over the confirm trials."""
    return {
        "samples": budgets.spent((result.samples for result in results), planned.get("samples")),
        "steps": budgets.spent((result.step for result in results), planned.get("steps")),
        "seconds": budgets.spent((result.seconds for result in results), planned.get("seconds")),
    }


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
    """Return the value that all share; None when there is none or they differ."""
    values = {value for value in given if value is not None}
    return values.pop() if len(values) == 1 else None
