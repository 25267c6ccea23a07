"""What the ledger of one run says: the values of every arm, what they cost, and the verdict of every contrast.

`compare --json` prints `summarize` as JSON; the page, the tables and the plots show its numbers and add none.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from statistics import fmean

from jobs.config.components import is_class, is_import_path
from orchestrator import statistics
from orchestrator.ledger import NOTED, TRIAL_STATES, Attempt, Ledger, Run, Stage, Trial, TrialState
from orchestrator.ledger.stored import JsonObject, ProvenanceRecord
from orchestrator.report import swaps, variance
from orchestrator.report.formatting import value
from orchestrator.report.naming import Names, names_of
from orchestrator.report.summary import arms, best, budgets, pairs
from orchestrator.report.summary.records import (
    ArmSummary,
    AttemptCounts,
    CodeGroup,
    Curve,
    DataSource,
    DivergedTrial,
    ExecutionPair,
    ExploratorySummary,
    FailedTrial,
    LooksSummary,
    Summary,
)
from orchestrator.report.summary.records.metrics import MetricSummary
from orchestrator.report.summary.records.views import measures_of
from orchestrator.report.summary.sentences import sentence
from orchestrator.report.summary.warnings import notes
from orchestrator.run_dir import provenance
from orchestrator.run_dir.rows import RowFiles
from orchestrator.run_dir.status import settings_of
from orchestrator.session import schedule
from orchestrator.session.schedule import confirming
from orchestrator.sweep import plan as planning
from orchestrator.sweep.plan import Plan

STAGES: tuple[Stage, ...] = ("tune", "confirm", "swap")


def summarize(ledger: Ledger, rows: RowFiles | None = None) -> Summary:
    """Return the answer of a run, complete or not; `complete` says which, and `notes` what is missing or odd.

    rows: what its trials have kept row by row; without, nothing is said of other rows. Raises LedgerError when the
    ledger cannot be read.
    """
    run, trials = ledger.run, ledger.trials()
    plan, metric = run.sweep["plan"], run.sweep["metric"]
    confirm = arms.confirmed(ledger, trials)
    mode, smallest = metric.get("mode", "max"), float(metric.get("smallest_difference", 0.0))
    planned, untuned = planning.stored(run.sweep, run.rules), _untuned(ledger)
    measures = _measures(run)
    largest = max(measure.smallest_difference for measure in measures)
    stopped = schedule.stopped_arms(trials)
    before = confirming.lost_before(ledger) if planned.looks else {}
    looked = confirming.course(planned, trials, untuned, stopped, before) if planned.looks else None
    never, coming = _unconfirmed(untuned), confirming.to_come(planned, trials, untuned, stopped, looked)
    judged = _without(confirm, before)
    compared = _compared(run, planned, judged, never, pending=_pending(planned, never, coming), looked=looked)
    attempts = ledger.attempts()
    code = [_code_group(group) for group in provenance.behind(run.provenance, trials, attempts)]
    summaries = _arms(ledger, trials, confirm, mode, code)
    seeds = [int(seed) for seed in plan["confirm_seeds"]]
    variances = variance.parts_of(
        compared,
        confirm.trials,
        metric=metric["name"],
        smallest_difference=largest,
        files=rows,
        units=planned.units,
        seedless=pairs.seedless(confirm.trials, planned.contrasts),
    )
    summary = Summary(
        question=run.sweep["question"],
        metric=metric["name"],
        mode=mode,
        smallest_difference=smallest,
        sweep=run.name,
        run=run.uuid,
        state=run.state,
        created=run.created,
        complete=all(result.complete for result in compared),
        arms=summaries,
        held_equal=budgets.held_equal(summaries),
        comparisons=[
            pairs.comparison(result, confirm.trials, parts) for result, parts in zip(compared, variances, strict=True)
        ],
        execution_only=execution_only(confirm, measures),
        seeds=seeds,
        alpha=pairs.levels(compared, largest),
        smallest_p=statistics.smallest_p(len(planned.units)),
        unit="repeat" if planned.repeats >= planning.REPEATS_AS_UNITS else "seed",
        looks=None if looked is None else LooksSummary(planned.looks, looked.taken, looked.ended, looked.due),
        trials={stage: _counts(trials, stage) for stage in STAGES if stage != "swap" or planned.swaps},
        attempts=_counted(attempts),
        rank_seconds={stage: _rank_seconds(trials, stage) for stage in STAGES},
        code=code,
        failures=[_failure(trial) for trial in trials if trial.state == "failed"],
        diverged=[DivergedTrial(t.id, t.stage, t.arm, t.seed) for t in trials if arms.diverged(t)],
        environment=run.environment,
        data=_data(run.provenance),
        swaps=swaps.swapped(planned, trials, {arm: own.params for arm, own in ledger.frozen().items()}, untuned),
        warnings=list(dict.fromkeys([*planned.warnings, *(event.text for event in ledger.events(NOTED))])),
        metrics=[MetricSummary(own.name, own.mode, own.smallest_difference) for own in measures]
        if len(measures) > 1
        else (),
        without_rows=variance.without_rows(confirm.trials, rows),
    )
    which = None
    if not pairs.seedless(confirm.trials, planned.contrasts) and not all(result.same_objective for result in compared):
        fallen = [arm for result in compared for arm in result.diverged_arms]
        units = confirming.by_unit(planned, judged.values, judged.diverged)
        which = best.which(
            planned.sweep.compare,
            plan["arms"],
            units.values,
            diverged=units.diverged,
            fallen=fallen,
            pending={arm for arm, seed in coming if seed not in before.get(arm, ())},  # what was lost stays so
            mode=mode,
        )
    retried = {
        arm: sorted(seeds & {*confirm.values.get(arm, {}), *confirm.diverged[arm]}) for arm, seeds in before.items()
    }
    explored = _exploratory(summary, planned, trials, stopped, rows, more=any(retried.values()))
    summary = replace(summary, which=which, exploratory=explored)
    warnings = notes(
        summary,
        list(_lost(trials, confirm)),
        retried=retried,
        over=_over(planned, trials, untuned, stopped),
        thinned=_thinned(ledger, trials),
        past_nan=_past_nan(ledger, trials),
    )
    warnings += _tuned_alike(planned, confirm, names_of(summaries))
    warnings += _between_repeats(planned, confirm, compared, names_of(summaries))
    if is_import_path(task := str(run.sweep.get("job", {}).get("task"))) and not is_class(task):
        warnings.append(f"{planning.own_loop(task)}.")
    return replace(summary, notes=warnings, sentence=sentence(summary))


def _without(confirm: arms.Confirmed, lost: Mapping[str, Collection[int]]) -> arms.Confirmed:
    """Leave out what seeds have come to that count as lost."""
    fallen = {arm: seeds.difference(lost.get(arm, ())) for arm, seeds in confirm.diverged.items()}
    further = {metric: confirming.without(values, lost) for metric, values in confirm.further.items()}
    return replace(confirm, values=confirming.without(confirm.values, lost), diverged=fallen, further=further)


def _measures(run: Run) -> list[statistics.Measure]:
    """List the metrics by which a run is judged, the first one first."""
    metric = run.sweep["metric"]
    return [
        statistics.Measure(own["name"], own.get("mode", "max"), float(own.get("smallest_difference", 0.0)))
        for own in (metric, *metric.get("also", ()))
    ]


def execution_only(confirm: arms.Confirmed, measures: Sequence[statistics.Measure]) -> list[ExecutionPair]:
    """Find the pairs of arms that should agree, by each metric."""
    return [
        pair
        for own in measures
        for pair in pairs.execution_only(
            confirm.trials,
            confirm.by(own.name),
            confirm.diverged,
            own.smallest_difference,
            own.name if len(measures) > 1 else "",
        )
    ]


def _exploratory(
    summary: Summary,
    plan: Plan,
    trials: Sequence[Trial],
    stopped: Collection[str],
    rows: RowFiles | None,
    *,
    more: bool,
) -> ExploratorySummary | None:
    """Judge all confirm trials at the latest setting of their arms, where that is more than the plan has judged. more:
    it is, whatever seeds there are."""
    confirm = sorted((trial for trial in trials if trial.stage == "confirm"), key=lambda trial: trial.seed)
    latest = {trial.arm: pairs.without_seed(trial.job) for trial in confirm}
    own = [trial for trial in confirm if pairs.without_seed(trial.job) == latest[trial.arm]]
    measures = measures_of(summary)
    kept = arms.confirmed_by([arm.label for arm in plan.arms], own, [measure.name for measure in measures[1:]])
    seeds = {
        (a, b): sorted({t.seed for t in kept.trials[a]} & {t.seed for t in kept.trials[b]}) for a, b in plan.contrasts
    }
    planned = [comparison.result for comparison in summary.comparisons]
    never = {arm for result in planned for arm in result.diverged_arms if arm not in latest}
    is_open = summary.looks is not None and not summary.looks.ended  # what a look is about to judge is not shown
    if is_open or (not more and all(trial.seed in plan.confirm_seeds for trial in confirm)):
        return None
    alike = pairs.seedless(kept.trials, plan.contrasts)
    seeds = {pair: own[:1] if pair in alike else own for pair, own in seeds.items()}
    found = statistics.compare_by(
        {measure: kept.by(measure.name) for measure in measures},
        plan.contrasts,
        seeds=seeds,
        divergence=statistics.Divergence(kept.diverged, never),
        same_objective=[pair for pair in plan.contrasts if pair not in plan.tested],
        pending=any(confirming.may_end(trial, stopped) for trial in own),
    )
    largest = max(measure.smallest_difference for measure in measures)
    variances = variance.parts_of(found, kept.trials, metric=summary.metric, smallest_difference=largest, files=rows)
    comparisons = [pairs.comparison(result, kept.trials, parts) for result, parts in zip(found, variances, strict=True)]
    whole = replace(summary, comparisons=comparisons, complete=all(result.complete for result in found))
    used = sorted({seed for own_seeds in seeds.values() for seed in own_seeds})
    return ExploratorySummary(used, sentence(whole), comparisons)


def _between_repeats(
    plan: Plan, confirm: arms.Confirmed, compared: Sequence[statistics.Comparison], names: Names
) -> Iterable[str]:
    """Yield how far the repeats of a tuning lie apart, where the seed is the unit and so does not count them."""
    if not 1 < plan.repeats < planning.REPEATS_AS_UNITS:
        return
    for result in compared:
        sd = confirming.between_repeats(plan, confirm.by(result.metric), result.a, result.b)
        if sd is not None:
            of = f" in {result.metric}" if result.metric else ""
            yield (
                f"{names.pair(result.a, result.b)}: over {plan.repeats} repeats of the tuning the mean difference{of} "
                f"has a standard deviation of {value(sd)}; the verdict is at the settings chosen, and "
                f"{planning.REPEATS_AS_UNITS} repeats or more would judge the tuning too."
            )


def _data(record: ProvenanceRecord | None) -> list[DataSource]:
    """List the rows that a run was begun with, where it has recorded them."""
    found = []
    for name, source in ((record or {}).get("data") or {}).items():
        key, _, place = name.partition(" = ")
        found.append(DataSource(key, place, source.get("rows"), source.get("digest")))
    return found


def _pending(plan: Plan, never: Collection[str], coming: Collection[tuple[str, int]]) -> bool:
    """Return whether confirm trials of the family are still to come. never: arms whose contrasts are not in it."""
    family = {arm for pair in plan.tested if not set(pair) & set(never) for arm in pair}
    return any(arm in family for arm, _ in coming)


def _over(plan: Plan, trials: Sequence[Trial], untuned: Collection[str], stopped: Collection[str]) -> dict[str, str]:
    """Say why no further confirm trial is begun of an arm, where that is so."""
    whys = dict.fromkeys(confirming.over(plan, trials, untuned, stopped), "has no setting that could be confirmed")
    for arm in (whys.keys() - set(untuned)) | set(stopped):
        whys[arm] = f"{'is' if arm in stopped else 'was tuned with an arm that is'} stopped, as trials failed alike"
    return {arm.label: whys[arm.label] for arm in plan.arms if arm.label in whys}


def _compared(
    run: Run,
    plan: Plan,
    confirm: arms.Confirmed,
    never: Sequence[str],
    *,
    pending: bool,
    looked: statistics.Course | None,
) -> list[statistics.Comparison]:
    """Judge the planned contrasts. never: arms without a confirm trial, as no setting trained."""
    units = confirming.by_unit(plan, confirm.values, confirm.diverged)
    alike = pairs.seedless(confirm.trials, plan.contrasts)
    return statistics.compare_by(
        {
            measure: confirming.by_unit(plan, confirm.by(measure.name), confirm.diverged).values
            for measure in _measures(run)
        },
        plan.contrasts,
        seeds={pair: units.names[:1] if pair in alike else units.names for pair in plan.contrasts},
        divergence=statistics.Divergence(units.diverged, never, units.of_seeds),
        same_objective=_one_objective(run, plan, confirm),
        pending=pending,
        looked=looked,
    )


def _one_objective(run: Run, plan: Plan, confirm: arms.Confirmed) -> list[tuple[str, str]]:
    """List the contrasts that ask no question: as planned, whatever tuning came to, so that the family and its levels
    are those of the plan. Runs of the first rules planned none, and there the jobs as frozen decide."""
    if plan.rules < 2:
        return [pair for pair in plan.contrasts if pairs.one_objective(confirm.trials, run.sweep, *pair)]
    return [pair for pair in plan.contrasts if pair not in plan.tested]


def _tuned_alike(plan: Plan, confirm: arms.Confirmed, names: Names) -> Iterable[str]:
    """Yield the contrasts that are tested and whose arms tuning has made the same, so that they differ in nothing."""
    for a, b in plan.tested if plan.rules >= 2 and plan.sweep.tune else ():
        if pairs.same_objective(confirm.trials[a], confirm.trials[b]):
            yield f"{names.pair(a, b)}: tuning chose the same setting for both, so that only rounding can differ."


def _arms(
    ledger: Ledger,
    trials: Sequence[Trial],
    confirm: arms.Confirmed,
    mode: statistics.Mode,
    code: Sequence[CodeGroup],
) -> list[ArmSummary]:
    """Summarise the arms in the order of the plan."""
    run, tuned, told_apart = ledger.run, arms.tuned(ledger, trials, mode), arms.told_apart(ledger)
    params = settings_of(run, trials, ledger.suggestions(), ledger.frozen())
    sweep, repeats, summaries = run.sweep, arms.repeats_of(ledger), []
    metrics = [(measure.name, measure.mode) for measure in _measures(run)]
    for planned in sweep["plan"]["arms"]:
        label = planned["label"]
        own = confirm.trials[label]
        ids = {trial.id for trial in own}
        summaries.append(
            arms.arm(
                planned,
                own,
                confirm.values.get(label, {}),
                metric=sweep["metric"]["name"],
                budget=budgets.declared(sweep.get("job", {}), planned, own),
                mode=mode,
                tune=tuned.get(label),
                repeats=repeats,
                told_apart=told_apart,
                params=params,
                code=list(dict.fromkeys(group.code for group in code if not ids.isdisjoint(group.trials))),
                by_metric=arms.by_metrics(confirm, label, metrics),
            )
        )
    return summaries


def _code_group(group: provenance.Group) -> CodeGroup:
    """Convert the code behind numbers, as provenance.behind gives it, to a record of the summary."""
    return CodeGroup(group["code"], group["versions"], group.get("user_code"), group["accepted"], group["trials"])


def _lost(trials: Sequence[Trial], confirm: arms.Confirmed) -> Iterable[Trial]:
    """Yield the planned confirm trials that have ended without a value, and not because they diverged."""
    planned = {trial.id for own in confirm.trials.values() for trial in own}
    for trial in trials:
        if trial.id in planned and trial.state in confirming.HAS_ENDED:
            has_value = trial.seed in confirm.values.get(trial.arm, {})
            if not has_value and trial.seed not in confirm.diverged[trial.arm]:
                yield trial


def _thinned(ledger: Ledger, trials: Sequence[Trial]) -> list[Trial]:
    """Return the confirm trials that have an event about a batch in the ledger."""
    noted = {event.trial for event in ledger.events("batch")}
    return [trial for trial in trials if trial.stage == "confirm" and trial.id in noted]


def _past_nan(ledger: Ledger, trials: Sequence[Trial]) -> list[Trial]:
    """Return the confirm trials that went on after steps without a finite gradient, by a rule of their optimizer."""
    counted = ledger.trials_above("train/nan_steps", 0.0)
    return [trial for trial in trials if trial.stage == "confirm" and trial.id in counted]


def unconfirmed(ledger: Ledger) -> list[str]:
    """List the arms that are never confirmed, because no suggestion could be frozen and one diverged: as the run itself
    has it when it ends."""
    return _unconfirmed(_untuned(ledger))


def coming(ledger: Ledger) -> set[tuple[str, int]]:
    """Find the planned confirm trials of a run that may still get a result, by arm and seed."""
    plan, trials, untuned = planning.stored(ledger.run.sweep, ledger.run.rules), ledger.trials(), _untuned(ledger)
    stopped = schedule.stopped_arms(trials)
    looked = confirming.course(plan, trials, untuned, stopped, confirming.lost_before(ledger)) if plan.looks else None
    return confirming.to_come(plan, trials, untuned, stopped, looked)


def _untuned(ledger: Ledger) -> dict[str, str]:
    """Map each arm that will have no confirm trial to why."""
    run = ledger.run
    return dict(schedule.untuned_arms(planning.stored(run.sweep, run.rules), ledger))


def _unconfirmed(untuned: Mapping[str, str]) -> list[str]:
    return [arm for arm, why in untuned.items() if why == "diverged"]


def curves(ledger: Ledger, summary: Summary) -> dict[str, Curve]:
    """Compute for each arm the metric while it trained, over the confirm trials that count in the summary, which is by
    one metric.

    A trial that diverged is not in it, as it has no metric. Trials are joined evaluation by evaluation: with a budget
    in seconds these come after equal shares of it, and the pairs are the mean of those seen by then.
    """
    drawn: dict[str, Curve] = {}
    task = str(ledger.run.sweep.get("job", {}).get("task"))
    is_own = is_import_path(task) and not is_class(task)
    sizes = {trial.id: arms.whole_of(trial, "batch", "size") for trial in ledger.trials("confirm")}
    for arm in summary.arms:
        kept = [value.trial for value in arm.values if value.value is not None]
        paths = [[(point.step, point.value) for point in ledger.points(trial, summary.metric)] for trial in kept]
        count = min(map(len, paths), default=0)
        at = [*range(count - 1), -1] if count else []
        columns = [[path[k][1] for path in paths] for k in at]
        bands = [statistics.t_interval(column) for column in columns]
        size = 1 if is_own else sizes[kept[0]] or 0 if kept else 0
        drawn[arm.label] = Curve(
            samples=[size * fmean(path[k][0] for path in paths) for k in at],
            mean=[fmean(column) for column in columns],
            low=[band and band[0] for band in bands],
            high=[band and band[1] for band in bands],
            unit="step" if is_own else "pairs seen",
        )
    return drawn


def space(ledger: Ledger) -> dict[str, JsonObject]:
    """Return what the sweep says of each key that it tunes: a range, or choices."""
    spaces = (ledger.run.sweep.get("tune") or {}).get("space")
    return {key: own for key, own in spaces.items() if isinstance(own, dict)} if isinstance(spaces, dict) else {}


def _counted(attempts: Sequence[Attempt]) -> AttemptCounts:
    lost: dict[str, int] = {}
    for attempt in attempts:
        if attempt.state in ("failed", "interrupted"):
            kind = attempt.failure or attempt.state
            lost[kind] = lost.get(kind, 0) + 1
    return AttemptCounts(len(attempts), dict(sorted(lost.items())))


def _rank_seconds(trials: Sequence[Trial], stage: Stage) -> float:
    """Add up the seconds of all trials of a stage, by each of their ranks."""
    own = (trial for trial in trials if trial.stage == stage)
    return sum(
        ((trial.came_to.seconds or 0.0) * (arms.whole_of(trial, "execution", "ranks") or 1) for trial in own), start=0.0
    )


def _failure(trial: Trial) -> FailedTrial:
    return FailedTrial(trial.id, trial.stage, trial.arm, trial.seed, trial.attempts, trial.failure, trial.message)


def _counts(trials: Sequence[Trial], stage: Stage) -> dict[TrialState, int]:
    return {state: sum(t.state == state for t in trials if t.stage == stage) for state in TRIAL_STATES}
