"""Several judged sets: each with its judge, and all of them together where one judge is asked about each.

A metric of a set is `NAME/metric`, the very number that the set alone would give. Where all sets have one judge with
the same options, `mean/metric` is the mean over the sets, each counting once, of what all of them have; and
`all/metric` is that of the rows of all sets together, if the judge joins rows (`sts`: as one list of pairs, whose
scores must then be on one scale). Rows are told apart by `NAME/id`, and what a metric says of each row is kept by set.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from jobs.config import JobConfig, canonical
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.sources import Rows

if TYPE_CHECKING:
    from torch import Tensor

ALL, MEAN = "all", "mean"
"""Names of what is said of all sets."""


@dataclass(frozen=True)
class JudgedSet:
    """What one set holds."""

    rows: Any
    ids: RowIds


class Sets:
    """The sets that judge the stage of a job."""

    def __init__(self, job: JobConfig, judges: Mapping[str, Any]) -> None:
        """Take the job, and the judge of each set (jobs.data.tasks.judging.Judge)."""
        self._sources, self._judges = job.data.sets(job.stage), judges
        self._is_one = are_joined(job) and len(judges) > 1

    def sources(self, source: str) -> Sequence[str]:  # noqa: ARG002 - the job names them
        """Name the sources of all sets."""
        return [one for name, judge in self._judges.items() for one in judge.sources(self._sources[name])]

    def tables(self, source: str) -> Sequence[Rows]:  # noqa: ARG002
        """Read the tables of all sets."""
        return [table for name, judge in self._judges.items() for table in judge.tables(self._sources[name])]

    def read(self, source: str) -> dict[str, JudgedSet]:  # noqa: ARG002
        """Read all sets. Raises DataError."""
        read = {}
        for name, judge in self._judges.items():
            rows = judge.read(self._sources[name])
            read[name] = JudgedSet(rows, _named(judge.row_ids(rows), name))
        return read

    def row_ids(self, rows: Mapping[str, JudgedSet]) -> RowIds:
        """Name the rows of all sets."""
        return _joined([own.ids for own in rows.values()])

    def evaluate(self, encode: Any, rows: Mapping[str, JudgedSet], *, final: bool) -> dict[str, Outcomes]:
        """Judge an encoder on each set, and on all."""
        of_sets: dict[str, dict[str, Outcomes]] = {}
        embedded: dict[str, list[Tensor]] = {}
        for name, judge in self._judges.items():
            recorded = Recorded(encode)
            of_sets[name] = judge.evaluate(recorded, rows[name].rows, final=final)
            embedded[name] = recorded.given
        metrics = {
            f"{name}/{metric}": replace(outcome, ids=rows[name].ids)
            for name, own in of_sets.items()
            for metric, outcome in own.items()
        }
        if not self._is_one:
            return metrics
        whole = _joined([own.ids for own in rows.values()])
        first, *others = of_sets.values()
        sizes = [len(own.ids) for own in rows.values()]
        for metric in first:
            if all(metric in own for own in others):
                mean = _mean([own[metric] for own in of_sets.values()], sizes)
                metrics[f"{MEAN}/{metric}"] = replace(mean, ids=whole)
        join = getattr(next(iter(self._judges.values())), "joined", None)
        if join is not None:
            together = join([own.rows for own in rows.values()], [given[0] for given in embedded.values()], final=final)
            metrics |= {f"{ALL}/{metric}": replace(outcome, ids=whole) for metric, outcome in together.items()}
        return metrics

    def check(self, source: str, stage: str) -> Iterator[str]:  # noqa: ARG002
        """Warn of what is odd about each set."""
        for name, judge in self._judges.items():
            yield from judge.check(self._sources[name], f"{stage}.{name}")


def are_joined(job: JobConfig) -> bool:
    """Return whether all sets have one judge with the same options, so that some numbers are of all of them."""
    if not isinstance(job.evaluate.judge, dict):
        return True
    return len({canonical([own.judge, own.evaluate.judge_options]) for own in job.judged_alone().values()}) < 2


class Recorded:
    """An encoder whose embeddings are kept as they are given."""

    def __init__(self, encode: Any) -> None:
        self._encode = encode
        self.given: list[Tensor] = []

    def __call__(self, inputs: Any) -> Tensor:
        """Encode rows."""
        return self._kept(self._encode(inputs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encode, name)

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Encode what `inputs(start, stop)` gives."""
        return self._kept(self._encode.lazily(rows, inputs))

    def _kept(self, embedded: Tensor) -> Tensor:
        self.given.append(embedded)
        return embedded


def _named(ids: RowIds, name: str) -> RowIds:
    """Tell the rows, and the groups, of a set from those of others."""
    groups = None if ids.groups is None else [None if group is None else f"{name}/{group}" for group in ids.groups]
    return RowIds([f"{name}/{row}" for row in ids.ids], groups)


def _joined(every: Sequence[RowIds]) -> RowIds:
    has_groups = any(ids.groups is not None for ids in every)
    groups = [group for ids in every for group in ids.groups or [None] * len(ids)]
    return RowIds([row for ids in every for row in ids.ids], groups if has_groups else None)


def _mean(of_sets: Sequence[Outcomes], sizes: Sequence[int]) -> Outcomes:
    """Average a metric over sets of these sizes. It is no mean of rows: each set counts once, however many it has."""
    value = float(np.mean([outcome.value for outcome in of_sets]))
    if any(outcome.without is None and not outcome.is_mean for outcome in of_sets):
        return Outcomes(value)
    ends = np.cumsum(sizes)

    def without(blocks: NDArray[np.int64]) -> list[float]:
        parts = np.split(blocks, ends[:-1])
        count = int(blocks.max()) + 1
        left = [_without(outcome, own, count) for outcome, own in zip(of_sets, parts, strict=True)]
        return [float(mean) for mean in np.mean(left, axis=0)]

    return Outcomes(value, without=without)


def _without(outcome: Outcomes, blocks: NDArray[np.int64], count: int) -> NDArray[np.float64]:
    """Compute the metric of one set without each of so many blocks, of which it need not have rows in all."""
    left = np.full(count, outcome.value)
    there, own = np.unique(blocks, return_inverse=True)
    if outcome.without is not None:
        left[there] = outcome.without(own.astype(np.int64).reshape(-1))
        return left
    (values,) = outcome.columns.values()
    rows = np.asarray(values, dtype=np.float64)
    for place, block in enumerate(there):
        left[block] = np.nanmean(rows[own != place])
    return left
