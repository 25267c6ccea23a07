"""How good is an encoder: metrics of frozen embeddings, never of the training loss.

Images: accuracy of a kNN classifier and of a linear probe. Sentences: Spearman's rank correlation with people's scores.
Both: alignment and uniformity (Wang and Isola 2020, arXiv:2005.10242). All are functions of the embeddings alone, taken
in evaluation mode and without dropout. Rows are encoded in the same batches whichever rank does it, so the numbers are
bit for bit the same for any number of ranks.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from jobs.config import JobConfig, components
from jobs.config.components import metric_name
from jobs.config.sections import MEASURED
from jobs.core.collectives import gather_rows, rank_of, world_of
from jobs.data.tasks import Task, mean_of, task_of
from jobs.metrics.builtin.alignment import alignment as alignment_of
from jobs.metrics.builtin.knn_accuracy import knn_classify
from jobs.metrics.builtin.probe_accuracy import probe_accuracy
from jobs.metrics.builtin.spearman import spearman
from jobs.metrics.builtin.uniformity import uniformity
from jobs.models import ContrastiveModel, Reading
from jobs.models.pretrained.tokenizer import Tokenizer

COSINE_DIGITS = 12
"""Decimals of a cosine by which pairs are ranked: fp64 has 16, and the sum over the features takes some."""


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
) -> dict[str, float]:
    """Compute the model's metrics, the same on every rank. The model's mode is left as it was.

    judged, task: of the job; without a task, it is made for this. Judged is the encoder's output, or the head's with
    job.evaluate.head. All metrics are nan if an embedding is not finite: then, and only then, the model has
    `diverged`. A metric that is not defined for these rows is left out.
    """
    encode = Encoder(model, job.evaluate.batch, job.evaluate.head, group, device)
    with _evaluation_mode(model), threadpool_limits(limits=job.execution.threads):
        return (task or task_of(job, tokenizer)).evaluate(encode, judged, final=final)


def further_metrics(
    job: JobConfig, known: Mapping[str, float], **embedded: Tensor | NDArray[np.generic]
) -> dict[str, float]:
    """Compute the user's own metrics, by the name after the colon; none where the embeddings are not finite.

    Raises ValueError for a metric that gives neither a number nor a number for each row.
    """
    if diverged(known):
        return {}
    metrics: dict[str, float] = {}
    rows = len(embedded["queries"] if "queries" in embedded else embedded["left"])
    for path in job.evaluate.metrics:
        name = metric_name(path)
        if path in MEASURED:
            continue
        measure = components.called("metric", path, job.evaluate.metric_options.get(name, {}))
        outcome = measure(settings=job.evaluate, **embedded)
        metrics |= _defined(**{name: mean_of(outcome, rows, source=f"evaluate.metrics: {path}")})
    return metrics


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
) -> dict[str, float]:
    """Compute knn_accuracy, alignment, uniformity and, if asked for, probe_accuracy of embeddings [R, D] and [Q, D].

    Alignment is that of queries with the same label, a positive pair that no arm's augmentation defines; it is left out
    where no two queries share a label, and uniformity where there is one query.
    """
    known, wanted = np.asarray(reference_labels), np.asarray(query_labels)
    keys = ["knn_accuracy", *(["probe_accuracy"] if probe else []), "alignment", "uniformity"]
    if not (torch.isfinite(references).all() and torch.isfinite(queries).all()):
        return dict.fromkeys(keys, float("nan"))
    unit = F.normalize(queries, dim=-1)
    guessed = knn_classify(F.normalize(references, dim=-1), known, unit, neighbours=neighbours)
    metrics = {"knn_accuracy": float(np.mean(guessed == wanted))}
    if probe:
        metrics["probe_accuracy"] = probe_accuracy(references, known, queries, wanted)
    return metrics | _defined(alignment=alignment_of(unit, wanted), uniformity=uniformity(unit))


def sentence_metrics(left: Tensor, right: Tensor, score: ArrayLike) -> dict[str, float]:
    """Compute spearman, alignment and uniformity of sentence pairs: embeddings [n, D] each, and the pairs' scores [n].

    Alignment is that of pairs with at least four fifths of the highest score, 4 on the usual scale of 0 to 5; where no
    score is above 0, of those in the top fifth of the scores' range.
    """
    wanted = np.asarray(score, dtype=np.float64)
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        return dict.fromkeys(["spearman", "alignment", "uniformity"], float("nan"))
    left, right = F.normalize(left.double(), dim=-1), F.normalize(right.double(), dim=-1)
    highest = wanted.max()
    # A little less, as the bound is rounded: 0.8 * 3 is above 2.4.
    least = 0.8 * highest * (1 - 1e-12) if highest > 0 else highest - 0.2 * (highest - wanted.min())
    close = torch.from_numpy(wanted >= least)
    # Of an encoder that has collapsed all cosines are 1, and what rounding leaves of them has no rank.
    return {
        "spearman": spearman((left * right).sum(-1).numpy().round(COSINE_DIGITS), wanted),
        **_defined(
            alignment=float((left - right)[close].square().sum(-1).mean()),
            uniformity=uniformity(torch.cat([left, right])),
        ),
    }


def _defined(**metrics: float | None) -> dict[str, float]:
    """Return the metrics that are a finite number."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
