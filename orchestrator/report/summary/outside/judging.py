"""The answer on results that another trainer has written: a CSV of arms, seeds and values, judged like a run.

    arm,seed,accuracy
    infonce,1,0.871
    flatnce,1,0.884

One line a trial; or one a row that was judged, with the column `row`: a trial's value is then the mean over its rows,
and `group`, where there is such a column, is equal for rows that belong together. An empty value, nan or inf is a trial
that diverged, which may take one line without a row. Which way is better follows the metric. Nothing is known of a
plan, so every contrast is judged on the seeds that both of its arms have.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from orchestrator import statistics
from orchestrator.report.summary import sentences
from orchestrator.report.summary.outside.direction import usual
from orchestrator.report.summary.outside.reading import NAMED, Groups, ResultsError, Table, Trial, read
from orchestrator.report.summary.pairs import levels
from orchestrator.report.summary.records import ArmSummary, ComparisonSummary, OutsideSummary, SeedValue
from orchestrator.report.summary.records.metrics import ArmByMetric, MetricSummary
from orchestrator.report.variance import is_measured, level_of
from orchestrator.statistics.rows import VarianceParts, of_means
from orchestrator.statistics.rows import parts as parts_of
from orchestrator.system.display import counted


@dataclass(frozen=True)
class Asked:
    """What is asked of a file of results."""

    metric: str
    mode: statistics.Mode | None = None
    """None: as is usual for the metric; higher where nothing is known of it."""

    baseline: str | None = None
    """None: the arm of the first line."""

    smallest_difference: float = 0.0


def judge(path: Path, asked: Asked, *further: Asked) -> OutsideSummary:
    """Judge a file of results. further: other metrics, which are columns of the same file; the baseline is that of the
    first. Raises ResultsError, OSError."""
    every = (asked, *further)
    names = [one.metric for one in every]
    if again := next((name for name in names if names.count(name) > 1), None):
        raise ResultsError(f"--metric {again} is given twice; name each column once")
    files = [read(path, name, beside=[other for other in names if other != name]) for name in names]
    _refuse_half_diverged(path, names, [file.table for file in files])
    results, tables = files[0], {name: file.table for name, file in zip(names, files, strict=True)}
    table, mode = results.table, _mode(asked)
    baseline = next(iter(table)) if asked.baseline is None else asked.baseline
    if baseline not in table:
        raise ResultsError(
            f"--baseline {baseline!r}: {path} has the arms {', '.join(map(repr, table))}; name one of them"
        )
    if len(table) < 2:
        raise ResultsError(f"{path} has one arm, {baseline!r}; a comparison needs two or more")
    contrasts = [(arm, baseline) for arm in table if arm != baseline]
    seeds = {(a, b): [seed for seed in table[a] if seed in table[b]] for a, b in contrasts}
    measured = {
        statistics.Measure(one.metric, _mode(one), one.smallest_difference): {
            arm: _values(trials) for arm, trials in tables[one.metric].items()
        }
        for one in every
    }
    largest = max(one.smallest_difference for one in every)
    diverged = {arm: [seed for seed, trial in trials.items() if trial.value is None] for arm, trials in table.items()}
    compared = statistics.compare_by(
        measured,
        contrasts,
        seeds=seeds,
        divergence=statistics.Divergence(diverged),
    )
    summary = OutsideSummary(
        question=f"Which of the arms in {path.name} has the better {', '.join(names)}?",
        metric=asked.metric,
        mode=mode,
        smallest_difference=asked.smallest_difference,
        complete=all(result.complete for result in compared),
        arms=[
            replace(_arm(arm, trials), by_metric=_by_metric(tables, arm) if further else {})
            for arm, trials in table.items()
        ],
        comparisons=_with_rows(compared, tables, results.groups, largest),
        seeds=sorted({seed for trials in table.values() for seed in trials}),
        alpha=levels(compared, largest),
        smallest_p=statistics.smallest_p(max(map(len, seeds.values()))),
        metrics=[MetricSummary(own.name, own.mode, own.smallest_difference) for own in measured] if further else (),
    )
    notes = [*(_direction(one, _mode(one)) for one in every), *_notes(table, contrasts, summary), *results.notes]
    if not any(result.n or result.verdict == "diverges" for result in compared):
        return replace(summary, sentence=f"No verdict: no other arm has a seed in common with {baseline}.", notes=notes)
    return replace(summary, sentence=sentences.sentence(summary), notes=notes)


def _mode(asked: Asked) -> statistics.Mode:
    return asked.mode or usual(asked.metric) or "max"


def _refuse_half_diverged(path: Path, metrics: Sequence[str], tables: Sequence[Table]) -> None:
    """Raise ResultsError where a trial has one metric and lacks another: what diverged has none."""
    for arm, trials in tables[0].items():
        for seed in trials:
            of_trial = {name: table[arm][seed] for name, table in zip(metrics, tables, strict=True)}
            lacking = [name for name, trial in of_trial.items() if trial.value is None]
            if lacking and len(lacking) < len(metrics):
                line = next(iter(of_trial[lacking[0]].lines.values()))
                has = next(name for name in metrics if name not in lacking)
                raise ResultsError(
                    f"{path}, line {line}: arm {arm!r}, seed {seed} has {has} and no {', '.join(lacking)}; a trial "
                    "that diverged has none of them: empty all, or give all"
                )


def _by_metric(tables: Mapping[str, Table], arm: str) -> dict[str, ArmByMetric]:
    found = {}
    for metric, table in tables.items():
        values = _values(table[arm])
        own = list(values.values())
        mean, ci95 = fmean(own) if own else None, statistics.t_interval(own)
        found[metric] = ArmByMetric(len(own), mean, ci95, None, worse_than_untrained=False, values=values)
    return found


def _direction(asked: Asked, mode: statistics.Mode) -> str:
    """Say which way is better, and who says so, where that is not the metric's name alone."""
    way, other = ("higher", "lower") if mode == "max" else ("lower", "higher")
    known = usual(asked.metric)
    if known is None and asked.mode is None:
        why = ", as far as anyone has said; if not, give --mode min"
    elif known is None:
        why = f", as --mode {mode} says"
    elif known != mode:
        why = f", as --mode {mode} says, though it is usually {other} that is better"
    else:
        why = ""
    return f"{asked.metric}: {way} is better{why}."


def _with_rows(
    compared: Sequence[statistics.Comparison],
    tables: Mapping[str, Table],
    groups: Groups,
    smallest_difference: float,
) -> list[ComparisonSummary]:
    """Summarise the contrasts, with what their rows say of other rows, where the file has a line for each. tables: by
    metric, the first one first."""
    level, group_of = level_of(compared, smallest_difference), _group_of(groups)
    summaries = []
    for result in compared:
        parts = VarianceParts()
        if is_measured(result):
            table = tables[result.metric or next(iter(tables))]
            a, b = ([table[arm][seed].values for seed in result.seeds] for arm in (result.a, result.b))
            by_row = [fmean(x[row] - y[row] for x, y in zip(a, b, strict=True)) for row in groups]
            known = of_means(by_row, group_of)  # of a single row, which has no name, nothing is known
            parts = parts_of([pair.difference for pair in result.pairs], known, level)
        summaries.append(ComparisonSummary(result, {}, {}, parts))
    return summaries


def _group_of(groups: Groups) -> NDArray[np.int64] | None:
    """Number the groups of the rows, in the order of the file; None where there are none."""
    units = [("group", group) if group else ("row", row) for row, (group, _) in groups.items()]
    names = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    has_groups = any(group for group, _ in groups.values())
    return np.array([names[unit] for unit in units], dtype=np.int64) if has_groups else None


def _values(trials: Mapping[int, Trial]) -> dict[int, float]:
    return {seed: value for seed, trial in trials.items() if (value := trial.value) is not None}


def _arm(label: str, trials: Mapping[int, Trial]) -> ArmSummary:
    values, lost = list(_values(trials).values()), sum(trial.value is None for trial in trials.values())
    return ArmSummary(
        label=label,
        settings={},
        n=len(values),
        mean=fmean(values) if values else None,
        ci95=statistics.t_interval(values),
        diverged=lost,
        divergence_rate=lost / len(trials),
        divergence_ci95=statistics.wilson_interval(lost, len(trials)),
        values=[
            SeedValue(seed, "", "done", trial.value is None, trial.value, None, None, None)
            for seed, trial in trials.items()
        ],
    )


def _notes(table: Table, contrasts: Sequence[tuple[str, str]], summary: OutsideSummary) -> Iterator[str]:
    yield "Nothing is known of a plan: every comparison is judged on the seeds that both arms have."
    for a, b in contrasts:
        alone = sorted(set(table[a]) ^ set(table[b]))
        if alone:
            named = ", ".join(map(str, alone[:NAMED])) + (
                f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
            )
            yield f"{a} against {b}: {counted(len(alone), 'seed')} of one arm alone ({named}) left out."
    for one, other in _alike(table):
        yield f"{one!r} and {other!r} are two arms here, though they differ in writing alone."
    if summary.smallest_p > (level := summary.alpha["difference"]):
        yield f"These seeds cannot reach p <= {level:g}: the smallest p is {summary.smallest_p:.3g}."


def _alike(labels: Iterable[str]) -> Iterator[tuple[str, str]]:
    """Yield pairs of labels that differ in capitals, in blanks or in how a number is written: 0.1 and 1e-1."""
    first: dict[str | float, str] = {}
    for label in labels:
        try:
            plain: str | float = float(label)
        except ValueError:
            plain = re.sub(r"\s+", " ", label).casefold()
        if first.setdefault(plain, label) != label:
            yield first[plain], label
