"""How good is an encoder: metrics of frozen embeddings, never of the training loss.

Which of them is a judge's to say (jobs/metrics/judges). All are functions of the embeddings alone, taken in evaluation
mode and without dropout. Rows are encoded in the same batches whichever rank does it, so the numbers are bit for bit
the same for any number of ranks.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from jobs.config import Evaluate, JobConfig, components
from jobs.config.components import metric_name
from jobs.config.sections import MEASURED
from jobs.core.collectives import gather_rows, rank_of, world_of
from jobs.core.outcomes import Outcomes, numbers, outcomes_of
from jobs.data.tasks import Task, task_of
from jobs.data.tasks.judging import Encode
from jobs.metrics.judged import judge
from jobs.metrics.kept import Kept, identity_of
from jobs.models import ContrastiveModel, Reading
from jobs.models.pretrained.tokenizer import Tokenizer


@dataclass(frozen=True)
class Encoder:
    """What a task encodes its rows with: batch i is always rows i * size and following, and rank i % W encodes it."""

    model: ContrastiveModel
    size: int
    """Rows encoded at once."""

    head: bool = False
    """Whether embeddings are the head's output in place of the encoder's."""

    group: dist.ProcessGroup | None = None
    device: torch.device | str = "cpu"

    @property
    def reading(self) -> Reading:
        """How the encoder takes sentences."""
        return self.model.reading

    def __call__(self, inputs: Tensor | Mapping[str, Tensor]) -> Tensor:
        """Encode rows [n, ...]: [n, D] on the CPU, on every rank."""
        named = dict(inputs) if isinstance(inputs, Mapping) else {"inputs": inputs}
        rows = len(next(iter(named.values())))
        return self.lazily(rows, lambda start, stop: {name: values[start:stop] for name, values in named.items()})

    def lazily(self, rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        """Encode likewise what `inputs(start, stop)` gives for those rows when they are encoded."""
        model, device = self.model, self.device
        rank, world = rank_of(self.group), world_of(self.group)
        spans = [(start, min(start + self.size, rows)) for start in range(0, rows, self.size)]
        width = model.out_width if self.head else model.width
        dtype = torch.float64 if model.precision == "fp64" else torch.float32
        own = [torch.empty(0, width, dtype=dtype, device=device)]
        for start, stop in spans[rank::world]:
            hidden = model.encode({name: values.to(device) for name, values in inputs(start, stop).items()})
            own.append((model.project(hidden) if self.head else hidden).to(dtype))
        counts = [sum(stop - start for start, stop in spans[other::world]) for other in range(world)]
        gathered = gather_rows(torch.cat(own), counts, self.group).cpu()
        order = [torch.arange(start, stop) for other in range(world) for start, stop in spans[other::world]]
        return torch.empty_like(gathered).index_copy_(0, torch.cat(order), gathered)


def evaluate(
    model: ContrastiveModel,
    judged: object,
    *,
    job: JobConfig,
    tokenizer: Tokenizer | None = None,
    task: Task | None = None,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
    final: bool = False,
    outcomes: dict[str, Outcomes] | None = None,
) -> dict[str, float]:
    """Compute the model's metrics, the same on every rank. The model's mode is left as it was.

    judged, task: of the job; without a task, it is made for this. Judged is the encoder's output, or the head's with
    job.evaluate.head, after job.evaluate.after. All metrics are nan if an embedding is not finite: then, and only then,
    the model has `diverged`. A metric that is not defined for these rows is left out. outcomes: filled with the same
    metrics, and what they say of each row.
    """
    encode: Encode = Encoder(model, job.evaluate.batch, job.evaluate.head, group, device)
    if not job.trains:  # other settings are judged on the same embeddings
        identity = identity_of(model, job, reading=model.reading.record, device=device)
        encode = encode if identity is None else Kept(encode, identity)
    with evaluation_mode(model), threadpool_limits(limits=job.execution.threads):
        metrics = judge(task or task_of(job, tokenizer), encode, judged, job=job, final=final)
    if outcomes is not None:
        outcomes |= metrics
    return numbers(metrics)


def measured(
    job: JobConfig, names: Sequence[str], rows: int, **embedded: Tensor | NDArray[np.generic]
) -> dict[str, Outcomes]:
    """Compute the built-in metrics of these names, and those that the job asks for: the user's own by the name after
    the colon, before a built-in one of the same name.

    rows: how many have an outcome. embedded: what metrics may ask for by name. All named ones are nan if an embedding
    is not finite. Raises ValueError for a metric that gives neither a number, nor a number for each row, nor what
    `by_row` makes, and for a built-in one that asks for what is not there.
    """
    plain = of_names(names, rows, settings=job.evaluate, **embedded)
    return plain if diverged(numbers(plain)) else plain | further_metrics(job, rows, **embedded)


def of_names(
    names: Sequence[str], rows: int, *, settings: Evaluate, **embedded: Tensor | NDArray[np.generic]
) -> dict[str, Outcomes]:
    """Compute built-in metrics without options; a metric that is not defined for these rows is left out."""
    if not all(bool(torch.isfinite(own).all()) for own in embedded.values() if isinstance(own, Tensor)):
        return dict.fromkeys(names, Outcomes(math.nan))
    metrics: dict[str, Outcomes] = {}
    for name in names:
        outcome = components.called("metric", name, {})(settings=settings, **embedded)
        metrics |= _defined(**{name: None if outcome is None else outcomes_of(outcome, rows, source=name)})
    return metrics


def further_metrics(job: JobConfig, rows: int, **embedded: Tensor | NDArray[np.generic]) -> dict[str, Outcomes]:
    """Compute the metrics that the job asks for; see `measured`."""
    metrics: dict[str, Outcomes] = {}
    for path in job.evaluate.metrics:
        name = metric_name(path)
        given = job.evaluate.metric_options.get(name, {})
        if path in MEASURED and not given:
            continue
        measure = components.called("metric", path, given)
        if not components.is_import_path(path):
            _refuse_what_is_not_there(path, {*embedded, *given, "settings"})
        outcome = measure(settings=job.evaluate, **embedded)
        read = None if outcome is None else outcomes_of(outcome, rows, source=f"evaluate.metrics: {path}")
        metrics |= _defined(**{name: read})
    return metrics


def _refuse_what_is_not_there(name: str, there: set[str]) -> None:
    """Raise ValueError where a built-in metric needs what the judge does not give."""
    signature = inspect.signature(cast("Callable[..., object]", components.load("metric", name)))
    needed = [key for key, own in signature.parameters.items() if own.default is own.empty and key not in there]
    if needed:
        raise ValueError(
            f"evaluate.metrics: {name} is computed of {', '.join(needed)}, which this judge does not give; leave it "
            "out, or name another judge in evaluate.judge"
        )


def diverged(metrics: Mapping[str, float]) -> bool:
    """Return whether these are metrics of a model with embeddings that are not finite. Any other metric that is not
    defined was left out, so that it never decides."""
    return any(map(math.isnan, metrics.values()))


def image_metrics(
    references: Tensor,
    reference_labels: ArrayLike,
    queries: Tensor,
    query_labels: ArrayLike,
    *,
    neighbours: int,
    probe: bool,
) -> dict[str, Outcomes]:
    """Compute knn_accuracy, alignment, uniformity and, if asked for, probe_accuracy of embeddings [R, D] and [Q, D].

    Alignment is left out where no two queries share a label, and uniformity where there is one query.
    """
    names = ["knn_accuracy", *(["probe_accuracy"] if probe else []), "alignment", "uniformity"]
    return of_names(
        names,
        len(queries),
        settings=Evaluate(neighbours=neighbours),
        references=references,
        reference_labels=np.asarray(reference_labels),
        queries=queries,
        query_labels=np.asarray(query_labels),
        embeddings=queries,
    )


def sentence_metrics(left: Tensor, right: Tensor, score: ArrayLike) -> dict[str, Outcomes]:
    """Compute spearman, alignment and uniformity of pairs: embeddings [n, D] each, and their scores [n]."""
    return of_names(
        ["spearman", "alignment", "uniformity"],
        len(left),
        settings=Evaluate(),
        left=left,
        right=right,
        scores=np.asarray(score, dtype=np.float64),
        embeddings=torch.cat([left, right]).double(),
    )


def _defined(**metrics: Outcomes | None) -> dict[str, Outcomes]:
    """Return the metrics that are a finite number."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value.value)}


@contextmanager
def evaluation_mode(model: nn.Module) -> Iterator[None]:
    """Have the model neither drop anything nor build graphs while the context lasts."""
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
