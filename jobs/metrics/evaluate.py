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
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from numpy.typing import ArrayLike
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence

from jobs.config import JobConfig, components
from jobs.config.components import metric_name
from jobs.config.sections import MEASURED
from jobs.core.collectives import gather_rows, rank_of, world_of
from jobs.data import ImageEvaluation, Images, SentenceEvaluation
from jobs.data.sentences.tokens import tokenised
from jobs.metrics.builtin.alignment import alignment as alignment_of
from jobs.metrics.builtin.knn_accuracy import knn_classify
from jobs.metrics.builtin.probe_accuracy import probe_accuracy
from jobs.metrics.builtin.spearman import spearman
from jobs.metrics.builtin.uniformity import uniformity
from jobs.models import ContrastiveModel, Reading

COSINE_DIGITS = 12
"""Decimals of a cosine by which pairs are ranked: fp64 has 16, and the sum over the features takes some."""

DECISIVE = ("knn_accuracy", "spearman")
"""What a trial is judged on first: defined for all finite embeddings."""


def evaluate(
    model: ContrastiveModel,
    data: ImageEvaluation | SentenceEvaluation,
    *,
    job: JobConfig,
    tokenizer: Any = None,
    group: dist.ProcessGroup | None = None,
    device: torch.device | str = "cpu",
    final: bool = False,
) -> dict[str, float]:
    """Metrics of the model, the same on every rank. The model's mode is left as it was.

    Images: knn_accuracy, alignment, uniformity, and probe_accuracy where `final` and job.evaluate.probe say so.
    Sentences: spearman, alignment, uniformity. Judged is the encoder's output, or the head's with job.evaluate.head.
    All are nan if an embedding is not finite: then, and only then, the model has `diverged`. A metric that is not
    defined for these rows is left out.
    """

    def features(rows: int, inputs: Callable[[int, int], Mapping[str, Tensor]]) -> Tensor:
        return _encode(model, rows, inputs, size=job.evaluate.batch, head=job.evaluate.head, group=group, device=device)

    with _evaluation_mode(model), threadpool_limits(limits=job.execution.threads):
        if isinstance(data, ImageEvaluation):
            references = features(len(data.reference_pixels), partial(_pixels, data.reference_pixels))
            queries = features(len(data.query_pixels), partial(_pixels, data.query_pixels))
            metrics = image_metrics(
                references,
                data.reference_labels,
                queries,
                data.query_labels,
                neighbours=job.evaluate.neighbours,
                probe=final and job.evaluate.probe,
            )
            labels = (np.asarray(data.reference_labels), np.asarray(data.query_labels))
            return metrics | further_metrics(
                job, metrics, references=references, reference_labels=labels[0], queries=queries, query_labels=labels[1]
            )
        sentences = _encode_sentences([*data.left, *data.right], tokenizer, model.reading, features)
        left, right = sentences[: len(data.left)], sentences[len(data.left) :]
        metrics = sentence_metrics(left, right, data.score)
        return metrics | further_metrics(
            job, metrics, left=left, right=right, scores=np.asarray(data.score, dtype=np.float64)
        )


def further_metrics(job: JobConfig, known: Mapping[str, float], **embedded: Any) -> dict[str, float]:
    """The metrics of the user's own, by the name after the colon; none where the embeddings are not finite.

    Raises ValueError for a metric that gives neither a number nor a number for each row.
    """
    if diverged(known):
        return {}
    found: dict[str, float] = {}
    rows = len(embedded["queries"] if "queries" in embedded else embedded["left"])
    for path in job.evaluate.metrics:
        name = metric_name(path)
        if path in MEASURED:
            continue
        measure = components.called("metric", path, job.evaluate.metric_options.get(name, {}))
        outcome = measure(settings=job.evaluate, **embedded)
        values = np.asarray(outcome.detach().cpu() if isinstance(outcome, Tensor) else outcome, dtype=np.float64)
        if values.ndim and values.shape != (rows,):
            raise ValueError(
                f"evaluate.metrics: {path} gave {list(values.shape)} for {rows} rows; a metric gives one number, or "
                "one for each row"
            )
        found |= _defined(**{name: float(values.mean())})
    return found


def diverged(metrics: Mapping[str, float]) -> bool:
    """Whether these metrics are those of a model whose embeddings are not finite. What else is not defined was left
    out, so that it never decides."""
    return any(math.isnan(metrics[name]) for name in DECISIVE if name in metrics)


def image_metrics(
    references: Tensor,
    reference_labels: ArrayLike,
    queries: Tensor,
    query_labels: ArrayLike,
    *,
    neighbours: int,
    probe: bool,
) -> dict[str, float]:
    """knn_accuracy, alignment, uniformity and, if asked for, probe_accuracy of embeddings [R, D] and [Q, D].

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
    """spearman, alignment and uniformity of pairs of sentences: embeddings [n, D] each, and the pairs' scores [n].

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
    """Those that are a number."""
    return {name: value for name, value in metrics.items() if value is not None and math.isfinite(value)}


def _pixels(pixels: Images, start: int, stop: int) -> Mapping[str, Tensor]:
    return {"pixel_values": pixels[start:stop]}


def _encode_sentences(texts: list[str], tokenizer: Any, read: Reading, features: Callable[..., Tensor]) -> Tensor:
    """Embeddings of the texts, in order. Batches hold texts of similar length, so that little of them is padding."""
    tokens = tokenised(tokenizer, texts, max_tokens=read.max_tokens, prompt=read.prompt)
    order = np.argsort([len(ids) for ids in tokens], kind="stable")

    def inputs(start: int, stop: int) -> Mapping[str, Tensor]:
        chosen = [torch.tensor(tokens[row]) for row in order[start:stop]]
        return {
            "input_ids": pad_sequence(chosen, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad_sequence([torch.ones_like(ids) for ids in chosen], batch_first=True),
        }

    encoded = features(len(texts), inputs)
    return torch.empty_like(encoded).index_copy_(0, torch.from_numpy(order), encoded)


def _encode(
    model: ContrastiveModel,
    rows: int,
    inputs: Callable[[int, int], Mapping[str, Tensor]],
    *,
    size: int,
    head: bool,
    group: dist.ProcessGroup | None,
    device: torch.device | str,
) -> Tensor:
    """Embeddings [rows, D] on the CPU, on every rank. inputs(start, stop) gives those rows' encoder inputs.

    Batch i is always rows i * size and following, and rank i % W encodes it.
    """
    rank, world = rank_of(group), world_of(group)
    spans = [(start, min(start + size, rows)) for start in range(0, rows, size)]
    width = model.out_width if head else model.width
    own = [torch.empty(0, width, dtype=torch.float64 if model.precision == "fp64" else torch.float32, device=device)]
    for start, stop in spans[rank::world]:
        hidden = model.encode({name: values.to(device) for name, values in inputs(start, stop).items()})
        own.append((model.project(hidden) if head else hidden).to(own[0].dtype))
    counts = [sum(stop - start for start, stop in spans[other::world]) for other in range(world)]
    gathered = gather_rows(torch.cat(own), counts, group).cpu()
    places = [torch.arange(start, stop) for other in range(world) for start, stop in spans[other::world]]
    return torch.empty_like(gathered).index_copy_(0, torch.cat(places), gathered)


@contextmanager
def _evaluation_mode(model: nn.Module) -> Iterator[None]:
    was_training = model.training
    model.eval()
    try:
        with torch.no_grad():
            yield
    finally:
        model.train(was_training)
