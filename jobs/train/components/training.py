"""What a job trains with, tried on a few random rows: its task, encoder, pooling, loss, optimizer, and where rows come
from."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

from jobs.config import JobConfig, components

FEW = 6
"""Pairs that a component is tried on."""

WIDE = 2048
"""Columns of embeddings that a loss is tried on where nothing tells how many there are: as many as encoders have."""

MANY = 100
"""Steps within which an optimizer must move a weight: it may accumulate, or a transform mask most of a gradient."""

Issue = tuple[str, str, str]


def try_loss(job: JobConfig) -> Iterator[Issue]:
    """Try the loss: it gives a number, which has a gradient."""
    import torch
    import torch.nn.functional as F

    from jobs.losses import BatchFacts, GuideRows, JobLoss, LossInputs

    width = embedding_width(job)
    loss = JobLoss(job, {"embedding_width": width, "data_rows": FEW})
    if loss.row_loss is None:
        yield from _meaningless(job)
    dtype = torch.float64 if job.model.precision == "fp64" else torch.float32
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randn(FEW, width, generator=draw, dtype=dtype) for _ in range(2)]
    if loss.normalised:
        rows = [F.normalize(x, dim=-1) for x in rows]
    queries, keys = (x.requires_grad_() for x in rows)
    if loss.module is not None:
        loss.module.to(dtype)
    known = isinstance(job.loss.temperature, float)
    temperature = job.loss.temperature if known else torch.tensor(job.loss.temperature_start, requires_grad=True)
    ids = torch.arange(FEW)
    inputs = LossInputs(queries, keys, None, ids, ids, temperature=temperature)  # type: ignore[arg-type]
    scores = (torch.arange(FEW) % 2).double() if job.data.scores is not None or job.is_own_task else None
    guide = None if job.loss.guide is None else GuideRows(*(F.normalize(torch.randn(FEW, 5, dtype=dtype)),) * 2)
    facts = BatchFacts(torch.arange(FEW), 1, job.seed, scores, keys.detach(), guide)
    value, _ = loss(inputs, facts, None)
    value.backward()
    if not torch.isfinite(value):
        yield "loss.name", repr(job.loss.name), f"gives {float(value.detach())} for random rows"
    if queries.grad is None and keys.grad is None:
        yield "loss.name", repr(job.loss.name), "has no gradient in queries and keys; compute its value from them"


def embedding_width(job: JobConfig) -> int:
    """Return how many columns the embeddings have, or may have where only a pretrained encoder could tell."""
    own, built = job.model, {"resnet": 4, "bert": 1, "vit": 1}
    if own.projection != "none":
        return own.projection_width
    return built[str(own.name)] * own.width if own.name in built else WIDE


def _meaningless(job: JobConfig) -> Iterator[Issue]:
    """Yield an issue for each key of losses of anchors that a function of the whole batch would not heed."""
    plain = type(job.loss)()
    for key in ("symmetric", "same_side", "hard_negative_weight", "margin", "bias"):
        if (value := getattr(job.loss, key)) != getattr(plain, key):
            expected = (
                f"is of losses of anchors, and {job.loss.name} is a function of the whole batch, which would not heed "
                "it; remove it, or give the loss an option"
            )
            yield f"loss.{key}", repr(value), expected


def try_optimizer(job: JobConfig) -> Iterator[Issue]:
    """Try optimizer and gradient transform: they move a weight."""
    import torch
    from torch import nn

    from jobs import optim

    model = nn.Linear(4, 4)
    before = model.weight.detach().clone()
    optimizer = optim.build(model, job.optimizer)
    transform = optim.GradientTransform(model, job.optimizer, seed=job.seed)
    noise = {name: torch.randn_like(parameter) for name, parameter in model.named_parameters()}
    transform.prepare(lambda _step, _pairs: iter([noise]))
    # A transform may mask all of these few numbers in the few steps of a short job.
    last = MANY if job.optimizer.transform is not None else min(MANY, job.steps or MANY)
    for step in range(1, last + 1):
        optimizer.zero_grad()
        model(torch.ones(2, 4)).square().mean().backward()
        transform(step)
        transform.step(optimizer, step)
        if step > 1 and not torch.equal(model.weight, before):
            break
    optimizer.load_state_dict(optimizer.state_dict())
    if torch.equal(model.weight, before):
        yield "optimizer.name", repr(job.optimizer.name), f"leaves every weight as it was after {last} steps"


def try_schedule(job: JobConfig) -> Iterator[Issue]:
    """Try the schedule: it gives shares of the peak rate."""
    from jobs import optim

    share = optim.schedule(job.optimizer)
    for passed in (0.0, 0.25, 0.5, 0.75, 0.999):
        value = share(passed)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1e6:
            expected = f"gave {value!r} for passed = {passed}; it gives a share of the peak rate, 0 or more"
            yield "optimizer.schedule", repr(job.optimizer.schedule), expected
            return


def try_augmentation(job: JobConfig) -> Iterator[Issue]:
    """Try the augmentation: no row's view may depend on other rows, which differ by rank and micro-batch."""
    key, name = "augment.name", repr(job.augment.name)
    asked = [what for what in ("images", "tokens") if components.asks_for(_loaded_augmentation(job), what)]
    given = "tokens" if job.task == "sentence" else "images"
    if asked and given not in asked:
        yield key, name, f"asks for {asked[0]}, and task = '{job.task}' gives {given}; use an augmentation of these"
    else:
        yield from (_tried_on_tokens if job.task == "sentence" else _tried_on_images)(job)


def _loaded_augmentation(job: JobConfig) -> object:
    return components.load("augmentation", job.augment.name)


def _tried_on_tokens(job: JobConfig) -> Iterator[Issue]:
    """Try rows of several lengths, together, one by one, and with other padding."""
    import torch

    from jobs.data.sentences.augmented import augmented

    key, name, longest = "augment.name", repr(job.augment.name), 9
    draw, pairs = torch.Generator().manual_seed(0), torch.arange(FEW)
    lengths = torch.tensor([9, 3, 6, 2, 7, 5])
    places = torch.arange(longest)
    mask = (places < lengths[:, None]).long()
    tokens = torch.randint(5, 50, (FEW, longest), generator=draw).where(mask > 0, 0)
    is_special = (places == 0) | (places == lengths[:, None] - 1) | (mask == 0)
    words = torch.where(is_special, -1, (places - 1) // 2)

    def views(chosen: slice, *, width: int = longest) -> tuple[list[int], list[int]]:
        given = [x[chosen, :width].clone() for x in (tokens, mask, words)]
        made = augmented(job.augment, *given, mask_token=4, pad=0, seed=job.seed, step=1, pairs=pairs[chosen], view=0)
        ids, seen = made["input_ids"], made["attention_mask"]
        last = int((seen[0] > 0).nonzero().max()) + 1
        return ids[0, :last].tolist(), seen[0, :last].tolist()

    for row in range(FEW):
        alone = views(slice(row, row + 1), width=int(lengths[row]))
        if alone != views(slice(row, row + 1), width=int(lengths[row])):
            yield key, name, "gave other views the second time; draw random numbers from seed, step, pairs, view alone"
            return
        if alone != views(slice(row, FEW)):
            yield key, name, "gives a row another view beside other rows, or with other padding; a view is of one row"
            return


def _tried_on_images(job: JobConfig) -> Iterator[Issue]:
    """Try a few images, together and one by one."""
    import torch

    view_of = components.called("augmentation", job.augment.name, job.augment.options)
    draw = torch.Generator().manual_seed(0)
    images, pairs = torch.rand(FEW, 3, 8, 8, generator=draw), torch.arange(FEW)

    def views(chosen: slice) -> Any:
        return view_of(
            images=images[chosen].clone(), settings=job.augment, seed=job.seed, step=1, pairs=pairs[chosen], view=0
        )

    whole, key, name = views(slice(None)), "augment.name", repr(job.augment.name)
    if not isinstance(whole, torch.Tensor) or whole.shape != images.shape:
        shape = list(whole.shape) if isinstance(whole, torch.Tensor) else type(whole).__name__
        yield key, name, f"gave {shape} for images {list(images.shape)}; it gives views of the same shape"
    elif not torch.equal(whole, views(slice(None))):
        yield key, name, "gave other views the second time; draw random numbers from seed, step, pairs and view alone"
    elif any(not torch.equal(whole[row : row + 1], views(slice(row, row + 1))) for row in range(FEW)):
        yield key, name, "gives an image another view beside other images; a view is of one image and its pair's number"


def try_sampler(job: JobConfig) -> Iterator[Issue]:
    """Try the sampler: it gives the same rows for the same step."""
    import numpy as np

    from jobs.data import batch_rows

    if not components.is_import_path(job.data.sampler):  # what one that is built in needs, only the rows say
        return
    known = {"ids": np.arange(100)[:, None], "sources": np.arange(100) % 2, "labels": np.arange(100) % 10}
    first, again = (
        batch_rows(100, size=min(job.batch.size, 100), seed=job.seed, step=3, job=job, facts=known.__getitem__).tolist()
        for _ in range(2)
    )
    if first != again:
        yield (
            "data.sampler",
            repr(job.data.sampler),
            "gave other rows the second time; it is a function of seed, step",
        )


def try_encoder(job: JobConfig) -> Iterator[Issue]:
    """Try the encoder: it gives a row of numbers for each input."""
    import torch

    from jobs.models import build

    class Tokens:
        pad_token_id, all_special_ids = 0, (0,)

        def __len__(self) -> int:
            return 50

    if job.is_own_task:  # what it takes, only its rows say, which `python -m jobs.data` reads
        return
    model = build(job, tokenizer=Tokens() if job.task == "sentence" else None, image_shape=(3, 32, 32))
    ids = torch.ones(2, 4, dtype=torch.int64)
    images = {"pixel_values": torch.zeros(2, 3, 32, 32)}
    embedded = model.embed({"input_ids": ids, "attention_mask": ids} if job.task == "sentence" else images)
    if embedded.ndim != 2 or not torch.isfinite(embedded).all():
        yield "model.name", repr(job.model.name), f"gives {list(embedded.shape)} for two rows, or what is not finite"


def try_pooling(job: JobConfig) -> Iterator[Issue]:
    """Try the pooling: each row's vector must not depend on the others, nor on what is padding."""
    import torch

    from jobs.models.model import pooling_of

    width, key, name = 768, "model.pooling", repr(job.model.pooling)
    pool, asked = pooling_of(job, job.model.pooling, width)
    if isinstance(pool, torch.nn.Module):
        pool.eval()  # dropout is replaced where it is trained
    draw = torch.Generator().manual_seed(0)
    states, first = (torch.randn(FEW, 5, width, generator=draw) for _ in range(2))
    mask = (torch.arange(5) < torch.tensor([5, 4, 3, 2, 1, 5])[:, None]).long()

    def pooled(states: torch.Tensor, rows: slice) -> torch.Tensor:
        given = dict.fromkeys(asked, first[rows])
        with torch.no_grad():
            return pool(states=states[rows], mask=mask[rows], **given)

    whole = pooled(states, slice(None))
    if not isinstance(whole, torch.Tensor) or whole.shape != (FEW, width):
        shape = list(whole.shape) if isinstance(whole, torch.Tensor) else type(whole).__name__
        yield key, name, f"gave {shape} for states [{FEW}, 5, {width}]; it gives [{FEW}, {width}], a vector of each row"
    elif not all(torch.allclose(whole[row], pooled(states, slice(row, row + 1))[0], atol=1e-5) for row in range(FEW)):
        yield key, name, "gives a row another vector beside other rows; a vector is of one row's states"
    elif not torch.allclose(whole, pooled(torch.where(mask[..., None] == 0, 9.0, states), slice(None)), atol=1e-5):
        yield key, name, "depends on states where mask is 0, which are padding"


def try_task(job: JobConfig) -> Iterator[Issue]:
    """Try the task. Of a class only its methods are looked at: `python -m jobs.data` sees what they do with rows."""

    from jobs.config.protocols import Parts

    component, key, name = components.load("task", job.task), "task", repr(job.task)
    if job.is_function:
        names = list(inspect.signature(component).parameters)[:2] if callable(component) else []
        if len(names) < 2 or isinstance(component, type):
            yield key, name, "is no function of two arguments; write def main(config, context)"
        return
    if not isinstance(component, type):
        expected = f"is no class, as its name says; write class {job.task.rpartition(':')[2]}, or begin it small"
        yield key, name, expected
        return
    for method in ("rows", "views", "evaluate") if job.is_own_task else ():
        _, *arguments = inspect.signature(getattr(Parts, method)).parameters  # without self
        own = getattr(component, method, None)
        asked = list(inspect.signature(own).parameters) if callable(own) else None
        if asked is None or not {*arguments} <= {*asked}:
            yield key, name, f"has no method {method}({', '.join(arguments)}); write one"
