"""The answer over several runs: what each of them says by its own plan, and one table of all their arms.

Every arm of the later runs is set against the baseline of the first, seed by seed. What a run planned is judged in that
run and not once more here, and an arm that is that baseline again is no question: whether the two agree is said in its
place. So no contrast is tested twice. All are tested together, and all are exploratory: that these runs are
put side by side was decided when their results could be seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator import statistics
from orchestrator.ledger import Ledger
from orchestrator.report import variance
from orchestrator.report.summary import arms, budgets, compatibility, evidence, pairs
from orchestrator.report.summary.records import Curve, MultiRunSummary, Summary
from orchestrator.report.summary.records.metrics import MetricSummary
from orchestrator.report.summary.records.views import by_each, measures_of
from orchestrator.report.summary.sentences import across, code
from orchestrator.report.summary.warnings import oddities
from orchestrator.run_dir.bucket import is_uri
from orchestrator.run_dir.rows import RowFiles
from orchestrator.session.schedule import confirming
from orchestrator.sweep import plan as planning
from orchestrator.sweep.plan import Plan
from orchestrator.system.display import by_count, ranges

EXPLORATORY = (
    "Comparisons across runs were not planned together: these runs were put side by side when their results could be "
    "seen, so what follows is exploratory. The verdict of each run is by its own plan."
)

WAITING = (
    "Nothing is claimed across runs while a seed that two of them planned is still to come: all of these comparisons "
    "are judged together."
)

LONGEST = 100
"""Characters of a folder's name."""


def summarize(named: Mapping[str, Ledger], rows: RowFiles | None = None) -> MultiRunSummary:
    """Return the answer over these runs; `runs` holds that of each. named: short name of a run -> its ledger. rows:
    what their trials have kept row by row.

    Raises RunError, naming what differs, for runs whose arms cannot be compared, and LedgerError.
    """
    runs = {name: evidence.summarize(ledger, rows) for name, ledger in named.items()}
    jobs = {name: compatibility.planned_jobs(ledger.run.sweep) for name, ledger in named.items()}
    compatibility.refuse(runs, jobs)
    measures = _measures(list(runs.values()))
    confirm = _confirmed(
        {name: arms.confirmed(ledger, ledger.trials("confirm")) for name, ledger in named.items()},
        [measure.name for measure in measures[1:]],
    )
    planned = [planning.stored(ledger.run.sweep, ledger.run.rules) for ledger in named.values()]
    units, coming = _units(planned), {label(name, arm): set[int]() for name, run in runs.items() for arm in _of(run)}
    for name, ledger in named.items():
        for arm, seed in evidence.coming(ledger):
            coming[label(name, arm)].add(seed)
    contrasts = _contrasts(runs, confirm)
    asked = {pair: _asked(pair, seeds, units, confirm, coming) for pair, seeds in contrasts.items()}
    most = max(map(len, asked.values()), default=0)
    smallest, largest = measures[0].smallest_difference, max(measure.smallest_difference for measure in measures)
    first = next(iter(runs.values()))
    never = [label(name, arm) for name, ledger in named.items() for arm in evidence.unconfirmed(ledger)]
    paired = confirming.averaged(units, coming, confirm.values, confirm.diverged)
    lacking = {pair: _lacking(pair, own, coming) for pair, own in asked.items() if not set(pair) & set(never)}
    compared = statistics.compare_by(
        {own: confirming.averaged(units, coming, confirm.by(own.name), confirm.diverged).values for own in measures},
        list(asked),
        seeds={pair: [seeds[0] for seeds in own] for pair, own in asked.items()},
        divergence=statistics.Divergence(paired.diverged, never, paired.of_seeds),
        pending=any(lacking.values()),
    )
    variances = variance.parts_of(
        compared, confirm.trials, metric=first.metric, smallest_difference=largest, files=rows, units=units
    )
    arm_summaries = [
        replace(
            arm,
            run=name,
            arm=arm.label,
            label=label(name, arm.label),
            by_metric={own.name: arm.by_metric[own.name] for own in measures} if len(measures) > 1 else {},
        )
        for name, summary in runs.items()
        for arm in summary.arms
    ]
    whole = MultiRunSummary(
        question=" ".join(dict.fromkeys(summary.question for summary in runs.values())),
        metric=first.metric,
        mode=first.mode,
        smallest_difference=smallest,
        complete=all(result.complete for result in compared),
        arms=arm_summaries,
        held_equal=budgets.held_equal(arm_summaries),
        comparisons=[
            pairs.comparison(result, confirm.trials, parts) for result, parts in zip(compared, variances, strict=True)
        ],
        execution_only=evidence.execution_only(confirm, measures),
        seeds=sorted({seed for summary in runs.values() for seed in summary.seeds}),
        alpha=pairs.levels(compared, largest),
        smallest_p=statistics.smallest_p(most),
        unit="repeat" if any(run.unit == "repeat" for run in runs.values()) else "seed",
        runs=runs,
        metrics=[MetricSummary(own.name, own.mode, own.smallest_difference) for own in measures]
        if len(measures) > 1
        else (),
    )
    notes = [
        EXPLORATORY,
        *_repeats(runs),
        *_seeds(runs, units),
        *_missing(runs, contrasts, confirm, coming, never),
        *([WAITING] if any(lacking.values()) else []),
        *oddities(whole, pairs=most),
        *_smallest(runs),
        *_codes(runs),
        *compatibility.differences(runs, jobs),
    ]
    return replace(whole, notes=notes, sentence=across(whole))


def _measures(runs: Sequence[Summary]) -> list[statistics.Measure]:
    """List the metrics by which all of these runs are judged, the first one first, with the largest of their smallest
    differences that matter."""
    of_runs = [{own.name: own for own in measures_of(run)} for run in runs]
    return [
        replace(own, smallest_difference=max(run[own.name].smallest_difference for run in of_runs))
        for own in of_runs[0].values()
        if all(own.name in run for run in of_runs)
    ]


def _confirmed(of_runs: Mapping[str, arms.Confirmed], further: Iterable[str]) -> arms.Confirmed:
    """Merge the confirm stages of several runs into one, by the labels of this answer. further: the metrics beside the
    first one."""
    return arms.Confirmed(
        {label(name, arm): trials for name, run in of_runs.items() for arm, trials in run.trials.items()},
        {label(name, arm): values for name, run in of_runs.items() for arm, values in run.values.items()},
        {label(name, arm): lost for name, run in of_runs.items() for arm, lost in run.diverged.items()},
        {
            metric: {label(name, arm): own for name, run in of_runs.items() for arm, own in run.by(metric).items()}
            for metric in further
        },
    )


def _of(summary: Summary) -> list[str]:
    return [arm.label for arm in summary.arms]


def _contrasts(runs: Mapping[str, Summary], confirm: arms.Confirmed) -> dict[tuple[str, str], list[int]]:
    """Choose what to compare across runs, on which seeds: the arms of the later runs with the baseline of the first, on
    the seeds that both planned."""
    first, *later = runs
    baseline = label(first, runs[first].arms[0].label)
    return {
        (label(name, arm), baseline): common(runs[first].seeds, runs[name].seeds)
        for name in later
        for arm in _of(runs[name])
        if not pairs.same_objective(confirm.trials[label(name, arm)], confirm.trials[baseline])
    }


def _units(plans: Sequence[Plan]) -> list[tuple[int, ...]]:
    """Put together the seeds that are one unit in any of the runs, in the order in which they were planned: those of a
    repeat of a tuning share a setting, and are no pairs of their own whatever the other run has."""
    of: dict[int, set[int]] = {}
    for plan in plans:
        for unit in plan.units:
            together = set(unit).union(*(of.get(seed, ()) for seed in unit))
            of |= dict.fromkeys(together, together)
    return list(dict.fromkeys(tuple(sorted(together)) for together in of.values()))


def _asked(
    contrast: tuple[str, str],
    seeds: Sequence[int],
    units: Sequence[tuple[int, ...]],
    confirm: arms.Confirmed,
    coming: Mapping[str, Collection[int]],
) -> list[tuple[int, ...]]:
    """List the units that a contrast is judged on: both runs planned all seeds of each, and in neither arm one has
    ended without a result or is not trained. There is no plan that a lost seed could break."""
    there = set(seeds)
    for arm in contrast:
        there &= {*confirm.values.get(arm, {}), *confirm.diverged[arm], *coming[arm]}
    whole = [unit for unit in units if there >= set(unit)]
    return sorted(whole, key=lambda unit: min(map(seeds.index, unit)))


def _lacking(
    contrast: tuple[str, str], units: Sequence[tuple[int, ...]], coming: Mapping[str, Collection[int]]
) -> list[int]:
    """List the seeds of these units that an arm still lacks."""
    return [seed for unit in units for seed in unit if any(seed in coming[arm] for arm in contrast)]


def curves(named: Mapping[str, Ledger], answer: MultiRunSummary) -> dict[str, Curve]:
    """Collect the curves of each run, by the labels of this answer, which is by one metric."""
    return {
        label(name, arm): curve
        for name, summary in answer.runs.items()
        for view in by_each(summary)
        if view.metric == answer.metric
        for arm, curve in evidence.curves(named[name], view).items()
    }


def names(places: Sequence[str], ledgers: Sequence[Ledger]) -> dict[str, Ledger]:
    """Choose a short, unique name for each run: the end of its folder or URI, and the start of its uuid where
    needed."""
    last = [
        address.partition("?")[0].rstrip("/").rpartition("/")[2] if is_uri(address) else Path(address).resolve().name
        for address in places
    ]
    shown = [
        name if last.count(name) == 1 else f"{name}-{ledger.uuid[:6]}"
        for name, ledger in zip(last, ledgers, strict=True)
    ]
    if len(set(shown)) < len(shown):  # a run that is named twice, which `answer` refuses
        shown = [f"{name} ({number})" for number, name in enumerate(shown, 1)]
    return dict(zip(shown, ledgers, strict=True))


def folder_name(named: Iterable[str]) -> str:
    """Return `a+b`, the name of the folder for the report of these runs unless another one is given."""
    whole = "+".join(named)
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def label(run: str, arm: str) -> str:
    """Return the label of an arm among those of several runs."""
    return f"{run}: {arm}"


def common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """Return the confirm seeds that two runs both planned, in the order of the first."""
    return [seed for seed in a if seed in b]


def _repeats(runs: Mapping[str, Summary]) -> Iterable[str]:
    names = [name for name, summary in runs.items() if summary.unit == "repeat"]
    if names:
        have = by_count(len(names), "has", "have")
        yield (
            f"{' and '.join(names)} {have} repeats of the tuning as units: what is paired across runs is a repeat, "
            "with the mean of its seeds in either run; one that lacks a seed is left out."
        )


def _seeds(runs: Mapping[str, Summary], units: Sequence[tuple[int, ...]]) -> Iterable[str]:
    first, *later = runs
    for name in later:
        mine, other = runs[first].seeds, runs[name].seeds
        whole = [unit for unit in units if set(unit) <= set(mine) & set(other)]
        both = sorted(seed for unit in whole for seed in unit)
        if len(both) == len(mine) == len(other):
            continue
        dropped = sorted({*mine, *other}.difference(both))
        text = f"{first} and {name} planned different confirm seeds: compared on those that both have "
        text += f"({ranges(both)}), without {ranges(dropped)}."
        yield text if len(whole) >= 2 else f"{text} It takes two or more, so {name} is inconclusive here."


def _missing(
    runs: Mapping[str, Summary],
    contrasts: Mapping[tuple[str, str], Sequence[int]],
    confirm: arms.Confirmed,
    coming: Mapping[str, Collection[int]],
    never: Collection[str],
) -> Iterable[str]:
    """Yield which common seeds a comparison does without, and which it waits for."""
    listed = ((name, trial) for name, summary in runs.items() for trial in summary.failures)
    failed = {(label(name, trial.arm), trial.seed) for name, trial in listed if trial.stage == "confirm"}
    for pair, seeds in contrasts.items():
        if set(pair) & set(never):
            continue
        lost = sorted({seed for seed in seeds for arm in pair if (arm, seed) in failed})
        there = [{*confirm.values.get(arm, {}), *confirm.diverged[arm], *coming[arm], *lost} for arm in pair]
        untrained = [seed for seed in seeds if any(seed not in own for own in there)]
        others = "compared on the others" if len(lost) + len(untrained) < len(seeds) else "there is nothing to compare"
        if lost:
            yield f"{pair[0]} against {pair[1]} lost seed {ranges(lost)}: {others}."
        if untrained:
            yield f"{pair[0]} against {pair[1]}: seed {ranges(untrained)} has no result in both: {others}."
        to_come = [seed for seed in seeds if seed not in lost and any(seed in coming[arm] for arm in pair)]
        if to_come:
            yield f"{pair[0]} against {pair[1]} lacks seed {ranges(to_come)}, which is still to come: inconclusive."


def _codes(runs: Mapping[str, Summary]) -> Iterable[str]:
    """Yield a note if the runs were computed by different programs. A run with several has its own note on that."""
    named: dict[str, list[str]] = {}
    for name, summary in runs.items():
        for group in summary.code:
            named.setdefault(code(replace(group, accepted=False)), []).append(name)
    begun = sum(bool(summary.code) for summary in runs.values())
    if any(len(which) < begun for which in named.values()):
        shown = "; ".join(f"{program} in {' and '.join(which)}" for program, which in named.items())
        yield f"The runs were computed by different programs: {shown}."


def _smallest(runs: Mapping[str, Summary]) -> Iterable[str]:
    several = any(summary.metrics for summary in runs.values())
    of_runs = {name: {own.name: own for own in measures_of(summary)} for name, summary in runs.items()}
    for metric in [own.name for own in _measures(list(runs.values()))]:
        declared = {name: own[metric].smallest_difference for name, own in of_runs.items()}
        if len(set(declared.values())) > 1:
            shown = ", ".join(f"{value:g} in {name}" for name, value in declared.items())
            of = f" of {metric}" if several else ""
            yield f"The runs declare different smallest differences{of} that matter ({shown}); here it is the largest."
    for metric in dict.fromkeys(metric for own in of_runs.values() for metric in own):
        if without := [name for name, own in of_runs.items() if metric not in own]:
            are = by_count(len(without), "is", "are")
            yield f"{' and '.join(without)} {are} not judged by {metric}, which is left out here."
