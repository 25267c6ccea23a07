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
from jobs.core.outcomes import Outcomes, by_row, mean_of, numbers, outcomes_of
from jobs.data.tasks import Task, task_of
from jobs.metrics.builtin.alignment import alignment as alignment_of
from jobs.metrics.builtin.knn_accuracy import knn_classify
from jobs.metrics.builtin.probe_accuracy import probe_accuracy
from jobs.metrics.builtin.spearman import spearman
from jobs.metrics.builtin.uniformity import uniformity, uniformity_without
from jobs.metrics.judged import judge
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
    outcomes: dict[str, Outcomes] | None = None,
) -> dict[str, float]:
    """Compute the model's metrics, the same on every rank. The model's mode is left as it was.

    judged, task: of the job; without a task, it is made for this. Judged is the encoder's output, or the head's with
    job.evaluate.head, after job.evaluate.after. All metrics are nan if an embedding is not finite: then, and only then,
    the model has `diverged`. A metric that is not defined for these rows is left out. outcomes: filled with the same
    metrics, and what they say of each row.
    """
    encode = Encoder(model, job.evaluate.batch, job.evaluate.head, group, device)
    with _evaluation_mode(model), threadpool_limits(limits=job.execution.threads):
        metrics = judge(task or task_of(job, tokenizer), encode, judged, job=job, final=final)
    if outcomes is not None:
        outcomes |= metrics
    return numbers(metrics)


def further_metrics(
    job: JobConfig, known: Mapping[str, Outcomes], **embedded: Tensor | NDArray[np.generic]
) -> dict[str, Outcomes]:
    """Compute the user's own metrics, by the name after the colon; none where the embeddings are not finite.

    Raises ValueError for a metric that gives neither a number, nor a number for each row, nor what `by_row` makes.
    """
    if diverged(numbers(known)):
        return {}
    metrics: dict[str, Outcomes] = {}
    rows = len(embedded["queries"] if "queries" in embedded else embedded["left"])
    for path in job.evaluate.metrics:
        name = metric_name(path)
        if path in MEASURED:
            continue
        measure = components.called("metric", path, job.evaluate.metric_options.get(name, {}))
        outcome = measure(settings=job.evaluate, **embedded)
        metrics |= _defined(**{name: outcomes_of(outcome, rows, source=f"evaluate.metrics: {path}")})
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
) -> dict[str, Outcomes]:
    """Compute knn_accuracy, alignment, uniformity and, if asked for, probe_accuracy of embeddings [R, D] and [Q, D].

    Alignment is that of queries with the same label, a positive pair that no arm's augmentation defines; it is left out
    where no two queries share a label, and uniformity where there is one query.
    """
    known, wanted = np.asarray(reference_labels), np.asarray(query_labels)
    keys = ["knn_accuracy", *(["probe_accuracy"] if probe else []), "alignment", "uniformity"]
    if not (torch.isfinite(references).all() and torch.isfinite(queries).all()):
        return dict.fromkeys(keys, Outcomes(float("nan")))
    unit = F.normalize(queries, dim=-1)
    guessed = knn_classify(F.normalize(references, dim=-1), known, unit, neighbours=neighbours)
    metrics = {"knn_accuracy": mean_of(np.asarray(guessed == wanted))}
    if probe:
        metrics["probe_accuracy"] = mean_of(probe_accuracy(references, known, queries, wanted))

    def without(blocks: NDArray[np.int64]) -> list[float]:
        kept = [blocks != block for block in range(int(blocks.max()) + 1)]
        aligned = (alignment_of(unit[torch.from_numpy(rows)], wanted[rows]) for rows in kept)
        return [math.nan if value is None else value for value in aligned]

    return metrics | _defined(
        alignment=_of_pairs(alignment_of(unit, wanted), without),
        uniformity=_of_pairs(uniformity(unit), lambda blocks: uniformity_without(unit, blocks)),
    )


def sentence_metrics(left: Tensor, right: Tensor, score: ArrayLike) -> dict[str, Outcomes]:
    """Compute spearman, alignment and uniformity of sentence pairs: embeddings [n, D] each, and the pairs' scores [n].

    Alignment is that of pairs with at least four fifths of the highest score, 4 on the usual scale of 0 to 5; where no
    score is above 0, of those in the top fifth of the scores' range.
    """
    wanted = np.asarray(score, dtype=np.float64)
    if not (torch.isfinite(left).all() and torch.isfinite(right).all()):
        return dict.fromkeys(["spearman", "alignment", "uniformity"], Outcomes(float("nan")))
    left, right = F.normalize(left.double(), dim=-1), F.normalize(right.double(), dim=-1)
    highest = wanted.max()
    # A little less, as the bound is rounded: 0.8 * 3 is above 2.4.
    least = 0.8 * highest * (1 - 1e-12) if highest > 0 else highest - 0.2 * (highest - wanted.min())
    close = torch.from_numpy(wanted >= least)
    apart = (left - right)[close].square().sum(-1)
    of_rows = np.full(len(wanted), math.nan)
    of_rows[close.numpy()] = apart.numpy()
    both = torch.cat([left, right])
    # Of an encoder that has collapsed all cosines are 1, and what rounding leaves of them has no rank.
    measured = (left * right).sum(-1).numpy().round(COSINE_DIGITS)
    return {
        "spearman": by_row(spearman, measured=measured, wanted=wanted),
        **_defined(
            alignment=Outcomes(float(apart.mean()), {"": of_rows}),
            uniformity=_of_pairs(
                uniformity(both), lambda blocks: uniformity_without(both, np.concatenate([blocks, blocks]))
            ),
        ),
    }


def _of_pairs(value: float | None, without: Callable[[NDArray[np.int64]], list[float]]) -> Outcomes | None:
    """Return a metric over pairs of rows, which has nothing to say of a single row."""
    return None if value is None else Outcomes(value, without=without)


def _defined(**metrics: Outcomes | None) -> dict[str, Outcomes]:
    """Return the metrics that are a finite number."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value.value)}


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
