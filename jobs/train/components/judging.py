"""What a job is judged with, tried on a few random rows: its judge, its metrics, and what is done to embeddings."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from jobs.config import JobConfig, components
from jobs.core.paths import is_folder_here
from jobs.train.components.training import FEW, Issue, embedding_width


def _judged_width(job: JobConfig) -> int:
    """Return how many columns what is judged has before anything is done to it; where only weights could tell that are
    not here, as many as are asked for, or more."""
    from jobs.models.pretrained.folder import CONFIG, folder_of

    name = job.model.name or {"image": "vit", "sentence": "bert"}.get(job.task, "")
    if (job.evaluate.head and job.model.projection != "none") or name in components.builtin_names("encoder"):
        own = job.model_copy(update={"model": job.model.model_copy(update={"name": name})})
        if not job.evaluate.head:
            own = own.model_copy(update={"model": own.model.model_copy(update={"projection": "none"})})
        return embedding_width(own)
    if is_folder_here(name):
        hidden = json.loads((folder_of(name) / CONFIG).read_text("utf-8")).get("hidden_size")
        if isinstance(hidden, int):
            return hidden
    numbers = (value for value in job.evaluate.after_options.values() if isinstance(value, int))
    return max([64, *numbers, *job.evaluate.dims])


def try_metric(job: JobConfig) -> Iterator[Issue]:
    """Try the metrics, and what they are without some of the rows."""
    import numpy as np
    import torch

    from jobs.metrics.evaluate import further_metrics

    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(2 * FEW, 16, generator=draw) for _ in range(2))
    labels, gains = np.arange(2 * FEW) % 2, np.arange(4.0 * FEW * FEW).reshape(2 * FEW, -1) % 3
    of_judge: dict[str, dict[str, Any]] = {
        "classes": {"references": left, "reference_labels": labels, "queries": right, "query_labels": labels},
        "retrieval": {"gains": gains, "ideal": -np.sort(-gains), "relevant": (gains > 0).sum(1)},
        "bitext": {"left": left, "right": right, "halves": labels},
        "pairs": {"left": left, "right": right, "scores": labels.astype(float), "halves": labels},
        "sts": {"left": left, "right": right, "scores": np.linspace(0, 5, 2 * FEW), "halves": labels},
    }
    embedded = of_judge[job.judge] | {"embeddings": right}
    blocks = np.arange(2 * FEW) % FEW
    for outcome in further_metrics(job, 2 * FEW, **embedded).values():
        if outcome.without is not None:  # as it is computed once more when a training has ended
            outcome.without(blocks)
    yield from ()


def try_after(job: JobConfig) -> Iterator[Issue]:
    """Try it on embeddings as wide as the job's: what it makes of a row must not depend on the others."""
    import torch

    from jobs.metrics.judged import map_of

    draw = torch.Generator().manual_seed(0)
    width, key, name = _judged_width(job), "evaluate.after", repr(job.evaluate.after)
    training, rows = (torch.randn(count, width, generator=draw, dtype=torch.float64) for count in (2 * FEW, FEW))
    first, second = (map_of(job, training) for _ in range(2))
    made, again = first(rows), second(rows)
    alone = torch.cat([first(rows[at : at + 1]) for at in range(FEW)])
    if not torch.isfinite(made).all():
        yield key, name, "gives what is not finite for random rows"
    elif not torch.equal(made, again):
        yield key, name, "gave other rows the second time; draw random numbers from the seed alone"
    elif not torch.allclose(made, alone):
        yield key, name, "gives a row something else beside other rows; fit to the training rows alone"
    else:
        yield from _more_columns_than(made.shape[1], job, f"{job.evaluate.after} leaves {made.shape[1]} columns")


def _more_columns_than(width: int, job: JobConfig, where: str) -> Iterator[Issue]:
    if job.evaluate.dims and job.evaluate.dims[-1] > width:
        few = f"has {job.evaluate.dims[-1]}, and {where}; give at most {width}"
        yield "evaluate.dims", repr(list(job.evaluate.dims)), few


def try_judge(job: JobConfig) -> Iterator[Issue]:
    """Look at the methods of a judge: `python -m jobs.data` sees what they do with rows."""
    import inspect

    from jobs.config.protocols import Judge
    from jobs.data.tasks.judging import judge_of

    component, key, name = components.load("judge", job.judge), "evaluate.judge", repr(job.judge)
    if not isinstance(component, type):
        yield key, name, f"is no class; write class {job.judge.rpartition(':')[2]} with methods read and evaluate"
        return
    for method, needed in (("read", ["source"]), ("evaluate", ["encode", "rows"])):
        own = getattr(component, method, None)
        asked = list(inspect.signature(own).parameters) if callable(own) else None
        if asked is None or not {*needed} <= {*asked}:
            _, *arguments = inspect.signature(getattr(Judge, method)).parameters  # without self
            yield key, name, f"has no method {method}({', '.join(arguments)}); write one"
            return
    judge_of(job)
    if job.evaluate.after is None and not job.is_own_task:
        width = _judged_width(job)
        yield from _more_columns_than(width, job, f"embeddings have {width} columns")
