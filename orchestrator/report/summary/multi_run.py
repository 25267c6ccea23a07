"""The answer over several runs: what each of them says by its own plan, and one table of all their arms.

Every arm of the later runs is set against the baseline of the first, seed by seed. What a run planned is judged in that
run and not once more here, and an arm that is that baseline again is no question: whether the two agree is said in its
place. So no contrast is tested twice. All are tested together, and all are exploratory: that these runs are
put side by side was decided when their results could be seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from orchestrator import statistics
from orchestrator.ledger import Ledger
from orchestrator.report import variance
from orchestrator.report.summary import arms, budgets, compatibility, evidence, pairs
from orchestrator.report.summary.records import Curve, MultiRunSummary, Summary
from orchestrator.report.summary.sentences import across, code
from orchestrator.report.summary.warnings import oddities
from orchestrator.run_dir.bucket import is_uri
from orchestrator.run_dir.rows import RowFiles
from orchestrator.system.display import ranges

EXPLORATORY = (
    "Comparisons across runs were not planned together: these runs were put side by side when their results could be "
    "seen, so what follows is exploratory. The verdict of each run is by its own plan."
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
    confirm = _confirmed({name: arms.confirmed(ledger, ledger.trials("confirm")) for name, ledger in named.items()})
    planned = _contrasts(runs, confirm)
    most = max(map(len, planned.values()), default=0)
    smallest = max(summary.smallest_difference for summary in runs.values())
    first = next(iter(runs.values()))
    never = [label(name, arm) for name, ledger in named.items() for arm in evidence.unconfirmed(ledger)]
    compared = statistics.compare(
        confirm.values,
        list(planned),
        seeds=planned,
        mode=first.mode,
        smallest_difference=smallest,
        divergence=statistics.Divergence(confirm.diverged, never),
    )
    variances = variance.parts_of(
        compared, confirm.trials, metric=first.metric, smallest_difference=smallest, files=rows
    )
    arm_summaries = [
        replace(arm, run=name, arm=arm.label, label=label(name, arm.label))
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
        execution_only=pairs.execution_only(confirm.trials, confirm.values, confirm.diverged, smallest),
        seeds=sorted({seed for summary in runs.values() for seed in summary.seeds}),
        alpha=pairs.levels(compared, smallest),
        smallest_p=statistics.smallest_p(most),
        runs=runs,
    )
    notes = [
        EXPLORATORY,
        *_seeds(runs),
        *_missing(runs, compared, planned),
        *oddities(whole, seeds=most),
        *_smallest(runs),
        *_codes(runs),
        *compatibility.differences(runs, jobs),
    ]
    return replace(whole, notes=notes, sentence=across(whole))


def _confirmed(of_runs: Mapping[str, arms.Confirmed]) -> arms.Confirmed:
    """Merge the confirm stages of several runs into one, by the labels of this answer."""
    return arms.Confirmed(
        {label(name, arm): trials for name, run in of_runs.items() for arm, trials in run.trials.items()},
        {label(name, arm): values for name, run in of_runs.items() for arm, values in run.values.items()},
        {label(name, arm): lost for name, run in of_runs.items() for arm, lost in run.diverged.items()},
    )


def _contrasts(runs: Mapping[str, Summary], confirm: arms.Confirmed) -> dict[tuple[str, str], list[int]]:
    """Choose what to compare across runs, on which seeds: the arms of the later runs with the baseline of the first, on
    the seeds that both planned and neither lost. There is no plan that a lost seed could break."""
    first, *later = runs
    baseline, lost = label(first, runs[first].arms[0].label), _lost(runs)
    return {
        (label(name, arm.label), baseline): [
            seed
            for seed in common(runs[first].seeds, runs[name].seeds)
            if not {(label(name, arm.label), seed), (baseline, seed)} & lost
        ]
        for name in later
        for arm in runs[name].arms
        if not pairs.same_objective(confirm.trials[label(name, arm.label)], confirm.trials[baseline])
    }


def curves(named: Mapping[str, Ledger], answer: MultiRunSummary) -> dict[str, Curve]:
    """Collect the curves of each run, by the labels of this answer."""
    return {
        label(name, arm): curve
        for name, summary in answer.runs.items()
        for arm, curve in evidence.curves(named[name], summary).items()
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


def _seeds(runs: Mapping[str, Summary]) -> Iterable[str]:
    first, *later = runs
    for name in later:
        mine, other = runs[first].seeds, runs[name].seeds
        both = common(mine, other)
        if len(both) == len(mine) == len(other):
            continue
        dropped = sorted(set(mine) ^ set(other))
        text = f"{first} and {name} planned different confirm seeds: compared on those that both have "
        text += f"({ranges(both)}), without {ranges(dropped)}."
        yield text if len(both) >= 2 else f"{text} It takes two or more, so {name} is inconclusive here."


def _lost(runs: Mapping[str, Summary]) -> set[tuple[str, int]]:
    """Return the arms, by their labels here, and the confirm seeds whose trials have failed."""
    failed = ((name, trial) for name, summary in runs.items() for trial in summary.failures)
    return {(label(name, trial.arm), trial.seed) for name, trial in failed if trial.stage == "confirm"}


def _missing(
    runs: Mapping[str, Summary],
    compared: Sequence[statistics.Comparison],
    planned: Mapping[tuple[str, str], Sequence[int]],
) -> Iterable[str]:
    failed = _lost(runs)
    for result in compared:
        lost = sorted({seed for arm, seed in failed if arm in (result.a, result.b)})
        if lost:
            yield f"{result.a} against {result.b} lost seed {ranges(lost)}: compared on the others."
        coming = [seed for seed in planned[result.a, result.b] if seed not in result.seeds]
        if coming:
            yield f"{result.a} against {result.b} lacks seed {ranges(coming)}, which is still to come: inconclusive."


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
    declared = {name: summary.smallest_difference for name, summary in runs.items()}
    if len(set(declared.values())) > 1:
        shown = ", ".join(f"{value:g} in {name}" for name, value in declared.items())
        yield f"The runs declare different smallest differences that matter ({shown}); here it is the largest."
