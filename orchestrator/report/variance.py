"""Where the uncertainty of a difference comes from: seeds, the rows that it was measured on, and tuned settings.

A verdict holds on the rows at hand. What they say of other rows qualifies it and never changes it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace

import numpy as np
from pydantic import JsonValue

from jobs.artifacts import rows as kept_rows
from jobs.artifacts.rows import MetricRows
from orchestrator import statistics
from orchestrator.ledger import Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.run_dir.rows import RowFiles, key_of
from orchestrator.statistics import rows as of_rows
from orchestrator.statistics.numbers import Floats
from orchestrator.statistics.rows import RowVariance, VarianceParts

SAME = 1e-6
"""How far the mean over rows may be from the metric, of whose rows they are said to be."""


def parts_of(
    compared: Sequence[statistics.Comparison],
    trials: Mapping[str, Sequence[Trial]],
    *,
    metric: str,
    smallest_difference: float,
    files: RowFiles | None,
    units: Iterable[tuple[int, ...]] = (),
    seedless: Sequence[tuple[str, str]] = (),
) -> list[VarianceParts]:
    """Find where the uncertainty of each comparison comes from. trials: label of an arm -> its confirm trials. metric:
    the first, which is the trials' own. smallest_difference: the largest of all metrics. files: what they have kept row
    by row; None where that is not asked for. units: the seeds of each pair, where it is of several and bears the name
    of the first. seedless: pairs of arms in which nothing differs between seeds."""
    level = level_of(compared, smallest_difference)
    judges = {name: _Judge(name, is_first=name == metric) for name in {result.metric or metric for result in compared}}
    rows_of = {} if files is None else {name: _Rows(files, judge) for name, judge in judges.items()}
    of_arm = {arm: {trial.seed: trial for trial in own} for arm, own in trials.items()}
    seeds_of = {seeds[0]: seeds for seeds in units}
    said = []
    for result in compared:
        parts = VarianceParts()
        if is_measured(result):
            seeds = [seed for name in result.seeds for seed in seeds_of.get(name, (name,))]
            a, b = ([of_arm[arm][seed] for seed in seeds] for arm in (result.a, result.b))
            name = result.metric or metric
            known = rows_of[name].variance(a, b) if rows_of else None
            apart = [pair.difference for pair in result.pairs]
            is_seedless = (result.a, result.b) in seedless
            parts = (of_rows.parts_of_one if is_seedless else of_rows.parts)(apart, known, level)
            parts = replace(parts, settings=_by_settings(a, b, judges[name]))
        said.append(parts)
    return said


def without_rows(trials: Mapping[str, Sequence[Trial]], files: RowFiles | None) -> list[str]:
    """List the metrics that confirm trials have measured and kept nothing of by row, as the first trial of each arm
    has it. trials, files: as `parts_of` takes them."""
    found: set[str] = set()
    if files is None:
        return []
    for own in trials.values():
        trial = next((trial for trial in own if trial.state == "done" and trial.outcome != "diverged"), None)
        if trial is not None and (kept := _named(trial, files)) is not None:
            found |= {name for name in trial.metrics if not name.startswith("train/")} - kept
    return sorted(found)


def _named(trial: Trial, files: RowFiles) -> set[str] | None:
    """Find the metrics of which a trial has kept something by row; None where its file is not what the ledger knows."""
    if (digest := trial.came_to.rows) is None:
        return set()
    key = key_of("names", digest)
    is_known, value = files.recall(key)
    if is_known and isinstance(value, list):
        return set(map(str, value))
    (content,) = files.read([(trial.id, digest)])
    try:
        names = None if content is None else kept_rows.named(content)
    except ValueError:
        names = None
    if names is not None:
        files.remember(key, list(names))
    return None if names is None else set(names)


def level_of(compared: Sequence[statistics.Comparison], smallest_difference: float) -> float:
    """Return the level of each comparison's interval, by which all hold as often as no claim is wrong."""
    tested = sum(result.p is not None for result in compared)
    return 1 - statistics.levels(tested, smallest_difference).difference / max(1, tested)


def is_measured(result: statistics.Comparison) -> bool:
    """Return whether a comparison is tested and has a mean difference."""
    return result.p is not None and result.delta is not None


@dataclass(frozen=True)
class _Judge:
    """A metric, and where a trial has it."""

    metric: str
    is_first: bool

    def value(self, trial: Trial) -> float | None:
        """Return what the trial came to by the metric."""
        return trial.metric if self.is_first else trial.metrics.get(self.metric)


@dataclass(frozen=True)
class _Side:
    """The rows of one arm, averaged over seeds."""

    any_seed: MetricRows
    """What is the same in all: which rows there are, and how they belong together."""

    value: float
    by_row: Floats
    """The metric's value by row, or without each block."""


class _Rows:
    """What the rows of trials say of one metric; each file is read once."""

    def __init__(self, files: RowFiles, judge: _Judge) -> None:
        self._files, self._judge = files, judge
        self._sides: dict[tuple[str, ...], _Side | None] = {}

    def variance(self, a: Sequence[Trial], b: Sequence[Trial]) -> RowVariance | None:
        """Compute the variance over rows of the mean difference of these pairs; None where a trial has kept no rows of
        the metric, or not of the same ones."""
        if any(trial.came_to.rows is None for trial in (*a, *b)):
            return None
        made_of: list[JsonValue] = [[trial.came_to.rows, self._judge.value(trial)] for trial in (*a, *b)]
        key = key_of(self._judge.metric, made_of)
        is_known, value = self._files.recall(key)
        if is_known and value is None:
            return None
        if is_known and (known := _read(value)) is not None:
            return known
        try:
            left, right = self._side(a), self._side(b)
        except FileNotFoundError:
            return None
        found = None if left is None or right is None else _difference(left, right)
        self._files.remember(key, None if found is None else asdict(found))
        return found

    def _side(self, trials: Sequence[Trial]) -> _Side | None:
        """Average what the trials of an arm have kept; None where that is of other rows, or of another metric. Raises
        FileNotFoundError for what is not where it should be."""
        kept = [(trial.id, str(trial.came_to.rows)) for trial in trials]
        which = tuple(digest for _, digest in kept)
        if which not in self._sides:
            contents = self._files.read(kept)
            if None in contents:
                raise FileNotFoundError(kept_rows.NAME)
            self._sides[which] = self._averaged(trials, [content for content in contents if content is not None])
        return self._sides[which]

    def _averaged(self, trials: Sequence[Trial], contents: Sequence[bytes]) -> _Side | None:
        metrics: list[MetricRows] = []
        for trial, content in zip(trials, contents, strict=True):
            try:
                kept = kept_rows.decode(content, self._judge.metric)
            except ValueError:
                return None
            is_whole = kept is not None and (kept.values is not None or kept.without is not None)
            if kept is None or not is_whole or not _is_close(kept.value, self._judge.value(trial)):
                return None
            metrics.append(kept)
        first = metrics[0]
        if any((kept.ids, kept.values is None) != (first.ids, first.values is None) for kept in metrics):
            return None
        by_row = np.array([kept.without if kept.values is None else kept.values for kept in metrics], dtype=np.float64)
        return _Side(first, float(np.mean([kept.value for kept in metrics])), by_row.mean(axis=0))


def _difference(a: _Side, b: _Side) -> RowVariance | None:
    """Compute the variance over rows of the difference of two sides; None where they are of other rows."""
    rows = a.any_seed
    if (rows.ids, rows.values is None) != (b.any_seed.ids, b.any_seed.values is None):
        return None
    if rows.values is not None:
        return of_rows.of_means(a.by_row - b.by_row, rows.group_of)
    return of_rows.of_blocks(a.value - b.value, a.by_row - b.by_row, rows.sizes, rows.groups)


def _is_close(value: float, metric: float | None) -> bool:
    return metric is not None and math.isclose(value, metric, rel_tol=SAME, abs_tol=SAME * SAME)


def _read(value: JsonValue) -> RowVariance | None:
    """Read what was kept of a variance; None for what is none."""
    match value:
        case {
            "variance": float(variance),
            "units": int(units),
            "rows": int(rows),
            "groups": None | int() as groups,
            "is_jackknife": bool(is_jackknife),
        } if 0 <= variance < math.inf and units > 1 and rows > 0:
            return RowVariance(variance, units, rows, groups, is_jackknife)
    return None


def _by_settings(a: Sequence[Trial], b: Sequence[Trial], judge: _Judge) -> float | None:
    """Compute how much of the variance by seeds is due to settings that were tuned apart; None where all have one, or
    each its own."""
    labels = list(zip(_settings(a), _settings(b), strict=True))
    values = [(judge.value(x), judge.value(y)) for x, y in zip(a, b, strict=True)]
    apart = [x - y for x, y in values if x is not None and y is not None]
    return of_rows.between(apart, labels) if len(apart) == len(labels) else None


def _settings(trials: Sequence[Trial]) -> list[int]:
    """Number the settings of an arm's trials, equal where they train alike but for the seed."""
    known: list[JsonObject] = []
    numbers = []
    for trial in trials:
        job = {key: value for key, value in trial.job.items() if key not in ("seed", "execution")}
        if job not in known:
            known.append(job)
        numbers.append(known.index(job))
    return numbers
