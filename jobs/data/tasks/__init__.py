"""What a task is: rows, views of them that an encoder takes, and what judges it.

The built-in tasks are the files of jobs/metrics/tasks; one of the user's own is a class with the methods of `Parts`,
which `OwnTask` makes into what a job needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from jobs.config import JobConfig, components
from jobs.config.protocols import Parts
from jobs.core.outcomes import Outcomes, RowIds
from jobs.data.batches import FIRST, Draw, Ids, Inputs, Views
from jobs.data.faults import DataError
from jobs.data.tasks.judging import Ask, Encode, Random, count, fails_when_tried, named_rows
from jobs.models.pretrained.tokenizer import Tokenizer

if TYPE_CHECKING:
    from torch import Tensor

FEW = 6
"""Rows that a task of the user's own is tried on."""


class Examples(Protocol):
    """What a job trains on."""

    @property
    def hard_negatives(self) -> int:
        """Hard negatives of each pair."""

    def __len__(self) -> int: ...

    def views(self, rows: NDArray[np.int64], *, seed: int, step: int, pairs: NDArray[np.int64]) -> Views:
        """Make both sides of these data rows, the pairs numbered `pairs` of batch `step`."""

    @property
    def lacks_some(self) -> bool:
        """Whether a pair may have fewer hard negatives than others."""

    def ids(self, rows: NDArray[np.int64], draw: Draw = FIRST) -> Ids:
        """Compute the ids of what these rows say where texts are drawn so."""

    def scores(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Take people's scores of these pairs, [c]; None of data without."""

    def facts(self, name: str) -> NDArray[np.int64]:
        """Give what a sampler may know of all rows: `ids`, `sources` or `labels`, the same array each time. Raises
        DataError where the data have none."""


class Task(Protocol):
    """What the trainer asks of the task of a job."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Of sentences; None for what has no tokens."""

    def examples(self) -> Examples:
        """Read what the job trains on. Raises DataError."""

    def judged(self) -> object:
        """Read what its stage is judged on. Raises DataError."""

    def row_ids(self, judged: object) -> RowIds:
        """Tell apart the rows of `judged()`, and say which belong together. Raises DataError."""

    def inputs(self) -> Inputs:
        """Make two rows that any encoder of the task takes."""

    def evaluate(self, encode: Encode, judged: object, *, final: bool) -> dict[str, Outcomes]:
        """Judge an encoder on `judged()`. final: at the end of the job. A nan says that it has diverged."""

    def check(self) -> Iterator[str]:
        """Warn of what is odd about all that the job reads. Raises DataError at the first fault."""


def task_of(job: JobConfig, tokenizer: Tokenizer | None = None) -> Task:
    """Load the task of a job. tokenizer: of sentences; None: the job's. Raises ComponentError for what is no task."""
    component = components.load("task", job.task)
    if hasattr(component, "views"):
        return OwnTask(job, cast("Callable[..., Parts]", component))
    return cast("Callable[[JobConfig, Tokenizer | None], Task]", component)(job, tokenizer)


class OwnTask:
    """A task of the user's own, as a job uses it."""

    tokenizer = None

    def __init__(self, job: JobConfig, component: Callable[..., Parts]) -> None:
        self._job = job
        options = components.options("task", component, job.options)
        asks = components.asks_for(component, "job")
        self._parts: Parts = component(**options, **({"job": job} if asks else {}))
        self._read: dict[str, object] = {}
        self._ask = Ask(job.task, seed=job.seed)

    def examples(self) -> OwnExamples:
        """Read what the job trains on."""
        return OwnExamples(self._job, self._parts, self._rows(self._job.data.train))

    def judged(self) -> object:
        """Read what its stage is judged on."""
        return self._rows(self._job.eval_split)

    def row_ids(self, judged: object) -> RowIds:
        """Name the rows by `id` and `group` of a table or a mapping, where it has them; else by position."""
        return named_rows(judged)

    def inputs(self) -> Inputs:
        """Take the queries of the first two rows."""
        rows = np.arange(2)
        return self.examples().views(rows, seed=self._job.seed, step=1, pairs=rows).queries

    def evaluate(self, encode: Encode, judged: object, *, final: bool) -> dict[str, Outcomes]:  # noqa: ARG002
        """Ask the class. torch's random numbers within it are the same whenever it is asked."""
        references = {}
        if components.asks_for(self._parts.evaluate, "references"):
            references["references"] = self._rows(self._job.data.train)
        return self._ask(self._parts.evaluate, encode, count(judged), rows=judged, **references)

    def check(self) -> Iterator[str]:
        """Try the class on a few rows, and on embeddings that are random."""
        job, name = self._job, self._job.task
        try:
            rows = self._rows(job.data.train)
            if count(rows) < job.batch.size:
                raise DataError(
                    f"{name} makes {count(rows)} rows of it, fewer than batch.size = {job.batch.size}; give more, or "
                    "set a smaller batch.size",
                    file=job.data.train,
                )
            _refuse_views_of_other_rows(OwnExamples(job, self._parts, rows), job)
            self._try_encoder()
            for source in dict.fromkeys(
                source for stage in ("tune", "confirm") for source in job.data.sets(stage).values()
            ):
                judged = self._rows(source)
                if count(judged) < 2:
                    raise DataError(f"{name} makes {count(judged)} rows of it; two are judged at least", file=source)
                self.evaluate(Random(job), judged, final=True)
        except DataError:
            raise
        except Exception as error:  # whatever a user's code may raise
            raise fails_when_tried(name, error) from error
        yield from ()

    def _try_encoder(self) -> None:
        """Encode two rows by the job's encoder, as it begins."""
        import torch

        from jobs import models

        inputs = self.inputs()
        model = models.build(self._job, inputs=inputs).eval()
        with torch.no_grad():
            embedded = model.embed(inputs)
        if embedded.ndim != 2 or len(embedded) != 2:
            raise DataError(f"gives {list(embedded.shape)} for two rows", file=f"model.name = '{self._job.model.name}'")

    def _rows(self, source: str) -> object:
        """Read once for all that this task is asked for."""
        if source not in self._read:
            self._read[source] = self._parts.rows(source)
        return self._read[source]


class OwnExamples:
    """Rows of a task of the user's own, to train on."""

    def __init__(self, job: JobConfig, parts: Parts, rows: object) -> None:
        self._task, self._parts, self.rows = job.task, parts, rows
        self.hard_negatives = int(getattr(parts, "hard_negatives", 0))
        self.lacks_some = False
        self._facts: dict[str, NDArray[np.int64]] = {}

    def __len__(self) -> int:
        return count(self.rows)

    def views(self, rows: NDArray[np.int64], *, seed: int, step: int, pairs: NDArray[np.int64]) -> Views:
        """Make both sides of these rows, and their hard negatives if there are any."""
        import torch

        chosen = taken(self.rows, rows)
        numbers = torch.from_numpy(np.asarray(pairs, np.int64))

        def side(view: int, size: int) -> Inputs:
            views = self._parts.views(rows=chosen, seed=seed, step=step, pairs=numbers, view=view)
            return _as_inputs(views, size, self._task)

        queries, keys = (side(view, len(rows)) for view in (0, 1))
        return Views(queries, keys, side(2, len(rows) * self.hard_negatives) if self.hard_negatives else None)

    def ids(self, rows: NDArray[np.int64], draw: Draw = FIRST) -> Ids:  # noqa: ARG002 - of lists
        """Return the class's `ids(rows)`, int64 [c], equal for what is the same; without it, each row is its own."""
        import torch

        ids = getattr(self._parts, "ids", None)
        own = rows if ids is None else np.asarray(ids(taken(self.rows, rows)))
        if own.shape != (len(rows),) or own.dtype.kind not in "iu":
            raise ValueError(f"{self._task}: ids gave {own.dtype} {list(own.shape)}; it gives int64 [{len(rows)}]")
        return Ids(torch.from_numpy(own.astype(np.int64)))

    def scores(self, rows: NDArray[np.int64]) -> NDArray[np.float64] | None:
        """Return the class's `scores(rows)`, [c] numbers; None without it."""
        scores = getattr(self._parts, "scores", None)
        if scores is None:
            return None
        own = np.asarray(scores(taken(self.rows, rows)))
        if own.shape != (len(rows),) or own.dtype.kind not in "iufb":
            raise ValueError(f"{self._task}: scores gave {own.dtype} {list(own.shape)}; it gives numbers [{len(rows)}]")
        return own.astype(np.float64)

    def facts(self, name: str) -> NDArray[np.int64]:
        """Return the class's `ids`, `sources` or `labels` of all rows."""
        if name not in self._facts:
            self._facts[name] = self._fact(name)
        return self._facts[name]

    def _fact(self, name: str) -> NDArray[np.int64]:
        rows = len(self)
        if name == "ids":
            return self.ids(np.arange(rows)).pair_ids.numpy()[:, None]
        asked = getattr(self._parts, name, None)
        if asked is None:
            raise DataError(f"has no {name}, which data.sampler asks for; write a method {name}(rows)", file=self._task)
        own = np.asarray(asked(self.rows))
        if own.shape != (rows,) or own.dtype.kind not in "iu":
            raise ValueError(f"{self._task}: {name} gave {own.dtype} {list(own.shape)}; it gives int64 [{rows}]")
        return own.astype(np.int64)


def taken(rows: object, at: NDArray[np.int64]) -> object:
    """Take some of the rows, in this order, in the form that all of them have."""
    if isinstance(rows, Mapping):
        return {name: taken(column, at) for name, column in rows.items()}
    if isinstance(rows, tuple):
        return tuple(taken(column, at) for column in rows)
    if isinstance(rows, list):
        return [rows[row] for row in at]
    if isinstance(rows, pa.Table | pa.ChunkedArray | pa.Array):
        return rows.take(pa.array(at))
    return cast("_Indexed", rows)[at]


class _Indexed(Protocol):
    def __getitem__(self, at: NDArray[np.int64]) -> object: ...


def _as_inputs(given: Tensor | Mapping[str, Tensor], size: int, task: str) -> Inputs:
    """Convert views to what an encoder takes: a tensor alone is its `inputs`."""
    import torch

    named = dict(given) if isinstance(given, Mapping) else {"inputs": given}
    for name, values in named.items():
        if not isinstance(values, torch.Tensor) or values.ndim == 0 or len(values) != size:
            shape = list(values.shape) if isinstance(values, torch.Tensor) else type(values).__name__
            raise ValueError(
                f"{task}: views gave {shape} as {name!r} for {size} rows; it gives a tensor, or several by name, whose "
                "first dimension is that of the rows"
            )
    # Double precision, as numpy has it, is that of the model's alone.
    return {name: x.float() if x.is_floating_point() else x for name, x in named.items()}


def _refuse_views_of_other_rows(examples: OwnExamples, job: JobConfig) -> None:
    """Raise DataError where a row's views are other ones the second time, or beside other rows: ranks and micro-batches
    see other neighbours."""
    import torch

    rows = np.arange(min(FEW, len(examples)))
    pairs = rows[::-1] + 3  # no row is the pair of its own number

    def seen(chosen: NDArray[np.int64]) -> list[Tensor]:
        views = examples.views(rows[chosen], seed=job.seed, step=1, pairs=pairs[chosen])
        return [*views.queries.values(), *views.keys.values()]

    whole, again = seen(rows), seen(rows)
    examples.ids(rows)
    if not all(map(torch.equal, whole, again)):
        raise DataError(
            "views gave other ones the second time; draw random numbers from seed, step, pairs and view alone",
            file=job.task,
        )
    for row in rows:
        for together, alone in zip(whole, seen(rows[row : row + 1]), strict=True):
            shared = together[row : row + 1][(slice(None), *map(slice, alone.shape[1:]))]  # it may be padded further
            if not torch.equal(shared, alone):
                raise DataError(
                    "views gives a row another view beside other rows; a view is of one row and its pair's number",
                    file=job.task,
                )
