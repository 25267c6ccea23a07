"""The answer on results that another trainer has written: a CSV of arms, seeds and values, judged like a run.

    arm,seed,accuracy
    infonce,1,0.871
    flatnce,1,0.884

One line a trial; or one a row that was judged, with the column `row`: a trial's value is then the mean over its rows,
and `group`, where there is such a column, is equal for rows that belong together. An empty value, nan or inf is a trial
that diverged. Nothing is known of a plan, so every contrast is judged on the seeds that both of its arms have.
"""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from statistics import fmean

import numpy as np
from numpy.typing import NDArray

from orchestrator import statistics
from orchestrator.report.summary import sentences
from orchestrator.report.summary.pairs import levels
from orchestrator.report.summary.records import ArmSummary, ComparisonSummary, OutsideSummary, SeedValue
from orchestrator.report.variance import is_measured, level_of
from orchestrator.statistics.rows import VarianceParts, of_means
from orchestrator.statistics.rows import parts as parts_of
from orchestrator.system.display import counted
from orchestrator.system.exit_codes import Exit

DELIMITERS = ",;\t"

LARGEST = 1e100
"""Values that are judged: their squares are numbers."""

NAMED = 5
"""Seeds or rows that a note or an error names; of more, the first ones."""


class ResultsError(ValueError):
    """A file of results that cannot be judged; the text says what was found, where, and what is needed."""

    exit_code = Exit.BAD_USAGE


@dataclass(frozen=True)
class Asked:
    """What is asked of a file of results."""

    metric: str
    mode: statistics.Mode = "max"
    baseline: str | None = None
    """None: the arm of the first line."""

    smallest_difference: float = 0.0


@dataclass
class _Trial:
    """One arm's values of one seed, by row; a single one under the empty name where there are no rows."""

    values: dict[str, float] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The mean over rows; None where one is no finite number."""
        return fmean(self.values.values()) if all(map(math.isfinite, self.values.values())) else None


_Table = dict[str, dict[int, _Trial]]
"""Arm -> seed -> values, in the order of the file."""

_Groups = dict[str, tuple[str, int]]
"""Row -> its group, empty for a row on its own, and the line that says so."""


def judge(path: Path, asked: Asked) -> OutsideSummary:
    """Judge a file of results. Raises ResultsError, OSError."""
    table, groups = _read(path, asked.metric)
    baseline = next(iter(table)) if asked.baseline is None else asked.baseline
    if baseline not in table:
        raise ResultsError(
            f"--baseline {baseline!r}: {path} has the arms {', '.join(map(repr, table))}; name one of them"
        )
    if len(table) < 2:
        raise ResultsError(f"{path} has one arm, {baseline!r}; a comparison needs two or more")
    _refuse_other_rows(path, table)
    contrasts = [(arm, baseline) for arm in table if arm != baseline]
    seeds = {(a, b): [seed for seed in table[a] if seed in table[b]] for a, b in contrasts}
    values = {arm: _values(trials) for arm, trials in table.items()}
    diverged = {arm: [seed for seed, trial in trials.items() if trial.value is None] for arm, trials in table.items()}
    compared = statistics.compare(
        values,
        contrasts,
        seeds=seeds,
        mode=asked.mode,
        smallest_difference=asked.smallest_difference,
        divergence=statistics.Divergence(diverged),
    )
    summary = OutsideSummary(
        question=f"Which of the arms in {path.name} has the better {asked.metric}?",
        metric=asked.metric,
        mode=asked.mode,
        smallest_difference=asked.smallest_difference,
        arms=[_arm(arm, trials) for arm, trials in table.items()],
        comparisons=_with_rows(compared, table, groups, asked.smallest_difference),
        seeds=sorted({seed for trials in table.values() for seed in trials}),
        alpha=levels(compared, asked.smallest_difference),
        smallest_p=statistics.smallest_p(max(map(len, seeds.values()))),
    )
    return replace(summary, sentence=sentences.sentence(summary), notes=list(_notes(table, contrasts, summary)))


def _with_rows(
    compared: Sequence[statistics.Comparison], table: _Table, groups: _Groups, smallest_difference: float
) -> list[ComparisonSummary]:
    """Summarise the contrasts, with what their rows say of other rows, where the file has a line for each."""
    level, group_of = level_of(compared, smallest_difference), _group_of(groups)
    summaries = []
    for result in compared:
        parts = VarianceParts()
        if is_measured(result):
            a, b = ([table[arm][seed].values for seed in result.seeds] for arm in (result.a, result.b))
            by_row = [fmean(x[row] - y[row] for x, y in zip(a, b, strict=True)) for row in groups]
            known = of_means(by_row, group_of)  # of a single row, which has no name, nothing is known
            parts = parts_of([pair.difference for pair in result.pairs], known, level)
        summaries.append(ComparisonSummary(result, {}, {}, parts))
    return summaries


def _group_of(groups: _Groups) -> NDArray[np.int64] | None:
    """Number the groups of the rows, in the order of the file; None where there are none."""
    units = [("group", group) if group else ("row", row) for row, (group, _) in groups.items()]
    names = {unit: number for number, unit in enumerate(dict.fromkeys(units))}
    has_groups = any(group for group, _ in groups.values())
    return np.array([names[unit] for unit in units], dtype=np.int64) if has_groups else None


def _read(path: Path, metric: str) -> tuple[_Table, _Groups]:
    table: _Table = {}
    groups: _Groups = {}
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            lines = csv.DictReader(file, delimiter=max(DELIMITERS, key=first.count), strict=True)
            column = _columns(path, lines.fieldnames, metric)
            for line in lines:
                _add(table, path, lines.line_num, line, column)
                _add_group(groups, path, lines.line_num, line)
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(
            f"{path} is no CSV in UTF-8: {error}; its first line names the columns: arm,seed,{metric}"
        ) from error
    if not table:
        raise ResultsError(f"{path} has no results; below its first line, arm,seed,{metric}, stands one line a trial")
    return table, groups


def _columns(path: Path, found: Sequence[str] | None, metric: str) -> str:
    """Return the column of the values. Raises ResultsError where one is missing or there twice."""
    names = [name.strip() for name in found or ()]
    column = metric if metric in names else "value"
    missing = [name for name in ("arm", "seed", column) if name not in names]
    if missing or list(found or ()) != names or len(set(names)) < len(names):
        wanted = (
            " or ".join(dict.fromkeys([repr(metric), "'value'"]))
            if column in missing
            else ", ".join(map(repr, missing))
        )
        what = f"lacks the column {wanted}" if missing else "has a column twice, or blanks around a name"
        raise ResultsError(
            f"{path} {what}: it has {', '.join(map(repr, found or ())) or 'none'}; write arm,seed,{metric}"
        )
    return column


def _add(table: _Table, path: Path, number: int, line: Mapping[str | None, str | None], column: str) -> None:
    """Add a line. Raises ResultsError for one that is short or long, or says again what another one says."""
    where = f"{path}, line {number}"
    if None in line or None in line.values():
        raise ResultsError(f"{where}: it has not as many cells as the first line has names")
    arm, seed, row = (str(line.get(name) or "").strip() for name in ("arm", "seed", "row"))
    if not arm:
        raise ResultsError(f"{where}: the arm is empty; give it a name")
    try:
        whole = int(seed)
    except ValueError:
        raise ResultsError(f"{where}: seed {seed!r} is no whole number; pairs are found by it") from None
    trial = table.setdefault(arm, {}).setdefault(whole, _Trial())
    if row in trial.lines:
        again = f"arm {arm!r}, seed {whole}" + (f", row {row!r}" if row else "")
        hint = "" if "row" in line else "; if each line is a row that was judged, name them in a column 'row'"
        raise ResultsError(f"{where}: {again} stands in line {trial.lines[row]} too{hint}")
    trial.values[row], trial.lines[row] = _number(where, str(line[column]).strip()), number


def _add_group(groups: _Groups, path: Path, number: int, line: Mapping[str | None, str | None]) -> None:
    """Add the group of a line's row. Raises ResultsError where another line has another one."""
    row, group = (str(line.get(name) or "").strip() for name in ("row", "group"))
    known, first = groups.setdefault(row, (group, number))
    if row and known != group:
        raise ResultsError(
            f"{path}, line {number}: row {row!r} is of group {group!r}, and of {known!r} in line {first}; give it one"
        )


def _number(where: str, text: str) -> float:
    """Parse a value; nan for an empty one. Raises ResultsError for a text, and for a number whose square is none."""
    try:
        value = float(text) if text else math.nan
    except ValueError:
        raise ResultsError(f"{where}: {text!r} is no number; leave it empty for a trial that diverged") from None
    if math.isfinite(value) and abs(value) > LARGEST:
        raise ResultsError(
            f"{where}: {text} is beyond {LARGEST:g}; give it in larger units, or empty for one that diverged"
        )
    return value


def _refuse_other_rows(path: Path, table: _Table) -> None:
    """Raise ResultsError where two trials were not judged on the same rows: means over other rows do not compare."""
    known: tuple[str, int, set[str]] | None = None
    for arm, trials in table.items():
        for seed, trial in trials.items():
            if known is None:
                known = arm, seed, set(trial.lines)
            elif apart := sorted(known[2] ^ set(trial.lines)):
                raise ResultsError(
                    f"{path}: arm {arm!r}, seed {seed} and arm {known[0]!r}, seed {known[1]} have other rows, such as "
                    f"{', '.join(map(repr, apart[:NAMED]))}; give every trial the same ones, empty where it diverged"
                )


def _values(trials: Mapping[int, _Trial]) -> dict[int, float]:
    return {seed: value for seed, trial in trials.items() if (value := trial.value) is not None}


def _arm(label: str, trials: Mapping[int, _Trial]) -> ArmSummary:
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


def _notes(table: _Table, contrasts: Sequence[tuple[str, str]], summary: OutsideSummary) -> Iterator[str]:
    yield "Nothing is known of a plan: every comparison is judged on the seeds that both arms have."
    for a, b in contrasts:
        alone = sorted(set(table[a]) ^ set(table[b]))
        if alone:
            named = ", ".join(map(str, alone[:NAMED])) + (
                f" and {len(alone) - NAMED} more" if len(alone) > NAMED else ""
            )
            yield f"{a} against {b}: {counted(len(alone), 'seed')} of one arm alone ({named}) left out."
    if summary.smallest_p > (level := summary.alpha["difference"]):
        yield f"These seeds cannot reach p <= {level:g}: the smallest p is {summary.smallest_p:.3g}."
