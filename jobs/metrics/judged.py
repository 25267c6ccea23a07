"""What judges are given: the encoder's embeddings, what `evaluate.after` makes of them, and the first columns of that.

Everything here is called by every rank with the same embeddings, and gives the same.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Protocol, cast

import torch
import torch.distributed as dist
from torch import Tensor, nn

from jobs.config import JobConfig, components
from jobs.config.after_sections import at_dims
from jobs.core.outcomes import Outcomes
from jobs.data.tasks import Task
from jobs.data.tasks.judging import Encode
from jobs.models import Reading

Map = Callable[[Tensor], Tensor]
"""Of rows [n, D] to rows [n, k]."""


class TrainingRows(Protocol):
    """A task whose rows of data.train can be encoded as those that are judged are."""

    def training(self, encode: Encode, rows: int) -> Tensor:
        """Encode what the first so many rows of data.train hold: [N, D] on the CPU."""


class Around:
    """What encodes, and something around it: the same model, ranks and device."""

    def __init__(self, encode: Encode) -> None:
        self._encode = encode

    @property
    def reading(self) -> Reading:
        """How the encoder takes sentences."""
        return self._encode.reading

    @property
    def group(self) -> dist.ProcessGroup | None:
        """The ranks that encode together; None for a process by itself."""
        return self._encode.group

    @property
    def device(self) -> torch.device | str:
        """Where this rank computes."""
        return self._encode.device


class Mapped(Around):
    """Embeddings after a map."""

    def __init__(self, encode: Encode, apply: Map) -> None:
        super().__init__(encode)
        self._apply = apply

    def __call__(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Encode rows [n, ...]: [n, k] on the CPU, on every rank."""
        return self._apply(self._encode(inputs))

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Encode likewise what `inputs(start, stop)` gives when it is needed."""
        return self._apply(self._encode.lazily(rows, inputs))


class Repeated(Around):
    """Embeddings that are computed once, and given again in the same order: whoever judges asks for the same ones."""

    def __init__(self, encode: Encode) -> None:
        super().__init__(encode)
        self._known: list[Tensor] = []
        self._given = 0

    def again(self) -> None:
        """Begin with the first embeddings."""
        self._given = 0

    def __call__(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Give the next embeddings."""
        return self._next(lambda: self._encode(inputs))

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Give the next embeddings."""
        return self._next(lambda: self._encode.lazily(rows, inputs))

    def _next(self, encoded: Callable[[], Tensor]) -> Tensor:
        if self._given == len(self._known):
            self._known.append(encoded())
        self._given += 1
        return self._known[self._given - 1]


def judge(task: Task, encode: Encode, judged: object, *, job: JobConfig, final: bool) -> dict[str, Outcomes]:
    """Judge an encoder on the rows of the task: on all columns of its embeddings, after what the job does to them, and
    on the first of these. Raises ValueError for more columns than there are."""
    if job.evaluate.after is not None:
        encode = Mapped(encode, fitted(job, task, encode))
    if not job.evaluate.dims:
        return task.evaluate(encode, judged, final=final)
    repeated = Repeated(encode)
    metrics = task.evaluate(repeated, judged, final=final)
    for d in job.evaluate.dims:
        repeated.again()
        few = task.evaluate(Mapped(repeated, first_columns(d)), judged, final=final)
        metrics |= dict(zip(at_dims(few, [d]), few.values(), strict=True))
    return metrics


def fitted(job: JobConfig, task: Task, encode: Encode) -> Map:
    """Fit what the job does to embeddings to those of data.train. Embeddings that are not finite are left as they
    are."""
    training = _training_rows(job, task).training(encode, job.evaluate.after_rows).double()
    if not torch.isfinite(training).all():
        return lambda rows: rows.double() * torch.nan  # the model has diverged
    return map_of(job, training)


def map_of(job: JobConfig, training: Tensor) -> Map:
    """Fit the job's component to float64 rows [N, D]. What it gives raises ValueError where it makes something else
    than rows."""
    apply = _made(job, training)

    def mapped(rows: Tensor) -> Tensor:
        made = apply(rows.double())
        if not isinstance(made, Tensor) or made.ndim != 2 or len(made) != len(rows):
            shape = list(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ValueError(
                f"evaluate.after = '{job.evaluate.after}' made {shape} of embeddings {list(rows.shape)}; it makes "
                f"[{len(rows)}, k]"
            )
        return made.detach()

    return mapped


def linear_of(job: JobConfig, task: Task, encode: Encode) -> nn.Linear:
    """Fit likewise a map that others can apply: a module in place of a function. Raises ValueError for what is none."""
    apply = _made(job, _training_rows(job, task).training(encode, job.evaluate.after_rows).double())
    if isinstance(apply, nn.Linear):
        return apply
    raise ValueError(
        f"evaluate.after = '{job.evaluate.after}' gives a {type(apply).__name__}, which a folder cannot hold; let it "
        "give an nn.Linear, or export a trial without evaluate.after"
    )


def _made(job: JobConfig, training: Tensor) -> Map:
    fit = components.called("after", str(job.evaluate.after), job.evaluate.after_options)
    made: Map = fit(training=training, seed=job.seed)
    return made


def first_columns(d: int) -> Map:
    """Cut rows to their first d columns. Raises ValueError where they have fewer."""

    def cut(rows: Tensor) -> Tensor:
        if d > rows.shape[1]:
            raise ValueError(
                f"evaluate.dims has {d}, but what is judged has {rows.shape[1]} columns; give at most {rows.shape[1]}"
            )
        return rows[:, :d].contiguous()

    return cut


def _training_rows(job: JobConfig, task: Task) -> TrainingRows:
    if not hasattr(task, "training"):
        raise ValueError(f"evaluate.after is of images and sentences; let evaluate() of {job.task} do it")
    return cast("TrainingRows", task)
