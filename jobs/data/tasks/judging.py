"""What judges an encoder: which rows of a source it reads, and what it asks an encoder about them.

The built-in judges are the files of jobs/metrics/judges; one of the user's own is a class with the methods of
`protocols.Judge`, which `OwnJudge` makes into what a task needs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence, Sized
from typing import TYPE_CHECKING, Any, Protocol, cast

import numpy as np
import pyarrow as pa

from jobs.config import JobConfig, components, protocols
from jobs.core.outcomes import Outcomes, RowIds, outcomes_of
from jobs.data.faults import DataError
from jobs.data.sources import GROUP, ID, Rows, exactly, ids_in, read
from jobs.data.tasks.sets import Sets
from jobs.models.reading import Reading, reading

if TYPE_CHECKING:
    import torch
    import torch.distributed as dist
    from torch import Tensor


NOT_FINITE = "embeddings"
"""Key of the nan that says that a model has diverged before anything has given a metric a name."""


class Encode(protocols.EncodeRows, Protocol):
    """Embeddings of rows, the same on every rank and for every number of ranks."""

    @property
    def reading(self) -> Reading:
        """How the encoder takes sentences."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that encode together; None for a process by itself."""

    @property
    def device(self) -> torch.device | str:
        """Where this rank computes."""

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Encode likewise what `inputs(start, stop)` gives when it is needed."""


class EncodeTexts(protocols.EncodeTexts, Protocol):
    """Embeddings of texts, as judges ask for them."""

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that encode together; None for a process by itself."""

    @property
    def device(self) -> torch.device | str:
        """Where this rank computes."""


class Judge(Protocol):
    """What a task asks of the judge of a job."""

    def sources(self, source: str) -> Sequence[str]:
        """Name the sources of rows that a source is made of, such as itself."""

    def tables(self, source: str) -> Sequence[Rows]:
        """Read the tables that a source is made of; first the rows that outcomes are of, or that say which these are.
        Raises DataError."""

    def read(self, source: str) -> Any:
        """Read what an encoder is judged on. Raises DataError."""

    def row_ids(self, rows: Any) -> RowIds:
        """Tell apart the rows that outcomes are of, and say which belong together. Raises DataError."""

    def evaluate(self, encode: Any, rows: Any, *, final: bool) -> dict[str, Outcomes]:
        """Judge an encoder on what `read` gave. final: before the first step, and at the end of the job. A nan says
        that it has diverged. encode: an EncodeTexts of sentences, an Encode of images."""

    def check(self, source: str, stage: str) -> Iterator[str]:
        """Warn of what is odd about a source, which is that of data.STAGE. Raises DataError at the first fault."""


def judge_of(job: JobConfig) -> Judge:
    """Load the judge of a job, that of all its sets where it is judged on several. Raises ComponentError for what is no
    judge."""
    if "" not in job.data.sets(job.stage):
        return Sets(job, {name: judge_of(alone) for name, alone in job.judged_alone().items()})
    component = components.load("judge", job.judge)
    if components.is_import_path(job.judge):
        return OwnJudge(job, component)
    return cast("Judge", _built(component, job))


def _built(component: object, job: JobConfig) -> Any:
    """Build a class with its options, and with the job if it asks for it."""
    made = cast("Callable[..., object]", component)
    asks = {"job": job} if components.asks_for(component, "job") else {}
    return made(**components.options("judge", component, job.evaluate.judge_options), **asks)


def checks(job: JobConfig) -> Iterator[str]:
    """Warn of what is odd about all that a job is judged on, in either stage. Raises DataError at the first fault."""
    for stage in ("tune", "confirm"):
        for name, alone in job.judged_alone(stage).items():
            key = f"{stage}.{name}" if name else stage
            yield from judge_of(alone).check(job.data.sets(stage)[name], key)


class OwnJudge:
    """A judge of the user's own, as a job uses it."""

    def __init__(self, job: JobConfig, component: object) -> None:
        self._job, self._own = job, _built(component, job)
        self._ask = Ask(job.judge, seed=job.seed)

    def sources(self, source: str) -> Sequence[str]:
        """Ask the class, or else take the source for one table."""
        own = getattr(self._own, "sources", None)
        return (source,) if own is None else cast("Sequence[str]", own(source))

    def tables(self, source: str) -> Sequence[Rows]:
        """Ask the class, or else take the source for one table."""
        own = getattr(self._own, "tables", None)
        return (read(source, exactly),) if own is None else cast("Sequence[Rows]", own(source))

    def read(self, source: str) -> object:
        """Ask the class."""
        rows: object = self._own.read(source)
        return rows

    def row_ids(self, rows: object) -> RowIds:
        """Ask the class; else name rows by `id` and `group` of a table or a mapping, where it has them, or by place."""
        own = getattr(self._own, "row_ids", None)
        return named_rows(rows) if own is None else cast("RowIds", own(rows))

    def evaluate(self, encode: object, rows: object, *, final: bool) -> dict[str, Outcomes]:
        """Ask the class."""
        further = {"final": final} if components.asks_for(self._own.evaluate, "final") else {}
        return self._ask(self._own.evaluate, encode, len(self.row_ids(rows)), rows=rows, **further)

    def check(self, source: str, stage: str) -> Iterator[str]:
        """Try the class on embeddings that are random."""
        name = self._job.judge
        try:
            rows = self.read(source)
            if (judged := len(self.row_ids(rows))) < 2:
                raise DataError(f"{name} makes {judged} rows of data.{stage}; two are judged at least", file=source)
            if hasattr(self._own, "check"):
                yield from self._own.check(source)
            self.evaluate(Random(self._job), rows, final=True)
        except DataError:
            raise
        except Exception as error:  # whatever a user's code may raise
            raise fails_when_tried(name, error) from error


class NotFiniteError(Exception):
    """An embedding is not finite."""


class Finite:
    """Embeddings that are finite, of whatever is encoded. Raises NotFiniteError for others."""

    def __init__(self, encode: Any) -> None:
        self._encode = encode

    def __call__(self, inputs: Any) -> Tensor:
        """Encode rows."""
        return self._checked(self._encode(inputs))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._encode, name)

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Encode what `inputs(start, stop)` gives."""
        return self._checked(self._encode.lazily(rows, inputs))

    def _checked(self, embedded: Tensor) -> Tensor:
        import torch

        if not torch.isfinite(embedded).all():
            raise NotFiniteError
        return embedded


class Random:
    """Embeddings that depend on nothing, for a try."""

    group, device = None, "cpu"

    def __init__(self, job: JobConfig) -> None:
        self.reading = reading(job)

    def __call__(self, inputs: Tensor | Mapping[str, Tensor] | Sequence[str]) -> Tensor:
        """Encode rows."""
        import torch

        rows = len(next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs)
        return torch.randn(rows, 8, generator=torch.Generator().manual_seed(rows))

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Encode what `inputs(start, stop)` gives."""
        return self(inputs(0, rows))


class Ask:
    """Asks an `evaluate` of the user's own, and reads what it gives. torch's random numbers within it are the same
    whenever it is asked."""

    def __init__(self, name: str, *, seed: int) -> None:
        self._name, self._seed = name, seed
        self._names: tuple[str, ...] = (NOT_FINITE,)

    def __call__(
        self, evaluate: Callable[..., object], encode: object, size: int, *, rows: object, **given: object
    ) -> dict[str, Outcomes]:
        """Ask about `size` rows."""
        import torch

        try:
            with torch.random.fork_rng():
                torch.manual_seed(self._seed)
                outcomes = evaluate(encode=Finite(encode), rows=rows, **given)
        except NotFiniteError:
            return dict.fromkeys(self._names, Outcomes(float("nan")))
        name = self._name
        if not isinstance(outcomes, Mapping) or not outcomes:
            raise ValueError(f"{name}: evaluate gave {outcomes!r}; it gives numbers by name, as {{'accuracy': 0.9}}")
        read = {
            str(key): outcomes_of(gives, size, source=f"{name}: {key} of evaluate") for key, gives in outcomes.items()
        }
        metrics = {
            key: outcome for key, outcome in read.items() if np.isfinite(outcome.value)
        }  # else it is not defined
        self._names = tuple(metrics) or (NOT_FINITE,)
        return metrics


def fails_when_tried(name: str, error: Exception) -> DataError:
    """Say what the user's code has raised, and where."""
    return DataError(f"fails when it is tried: {type(error).__name__}: {error}{components.line_of(error)}", file=name)


def named_rows(rows: object) -> RowIds:
    """Name rows by `id` and `group` of a table or a mapping, where it has them; else by position."""
    columns = {}
    if isinstance(rows, pa.Table | Mapping):
        there = rows.column_names if isinstance(rows, pa.Table) else rows
        columns = {name: rows[name] for name in (ID, GROUP) if name in there}
    return ids_in(columns, count(rows))


def count(rows: object) -> int:
    """Count the rows in what a task reads."""
    if isinstance(rows, pa.Table):
        return int(rows.num_rows)
    columns = rows.values() if isinstance(rows, Mapping) else rows if isinstance(rows, tuple) else None
    if columns is None:
        return len(cast("Sized", rows))
    lengths = {len(column) for column in columns}
    if len(lengths) != 1:
        raise ValueError(f"rows gives columns of {sorted(lengths)} rows; all have the same number")
    return lengths.pop()
