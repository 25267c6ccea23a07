"""Every built-in pooling, schedule and encoder: what each is apart from the code, and that a row's is its own.

One that is built in without a case here fails the collection. Losses, optimizers, transforms, augmentations, judges and
samplers have files of their own beside this one and in tests/jobs/data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from ranks import SpawnRanks
from test_generic import Vocabulary, assert_same, tokens
from test_losses_of_batches import gradients
from test_losses_of_batches import job_of as loss_job
from test_optimizers import trained
from test_together import sentence_job

from jobs.config import JobConfig, components
from jobs.data.validate import check_model
from jobs.models import ModelError, build, dropout_keys
from jobs.models.model import pooling_of
from jobs.optim.layers import depths

Row = list[NDArray[np.float64]]
"""States of the tokens of a row that count, in order."""


def _mean(states: Row) -> NDArray[np.float64]:
    return sum(states[1:], states[0]) / len(states)


@dataclass(frozen=True)
class Counted:
    """What counts of a row."""

    last: Row
    first: Row
    """States of the first layer."""

    before: Row
    """States of the layer before the last."""

    weight: NDArray[np.float64]
    """[width], of a learned score."""

    places: list[int]
    """Of these tokens in the padded row, from 1."""


def _attention(row: Counted) -> NDArray[np.float64]:
    weights = [math.exp(sum(row.weight[column] * x for column, x in enumerate(state))) for state in row.last]
    shares = [weight / math.fsum(weights) for weight in weights]
    return _mean([len(shares) * share * state for share, state in zip(shares, row.last, strict=True)])


POOLINGS: dict[str, Callable[[Counted], Any]] = {
    "attention": _attention,
    "cls": lambda row: row.last[0],
    "first_last": lambda row: (_mean(row.first) + _mean(row.last)) / 2,
    "last_two": lambda row: (_mean(row.before) + _mean(row.last)) / 2,
    "lasttoken": lambda row: row.last[-1],
    "max": lambda row: [max(column) for column in zip(*row.last, strict=True)],
    "mean": lambda row: _mean(row.last),
    "mean_sqrt_len_tokens": lambda row: _mean(row.last) * math.sqrt(len(row.last)),
    "weightedmean": lambda row: sum(n * x for n, x in zip(row.places, row.last, strict=True)) / sum(row.places),
}

TRAINED = ("last_two", "attention")
"""Whose gradients are compared."""

SCHEDULES: dict[str, Callable[[float], float]] = {
    "constant": lambda passed: 1.0 + 0 * passed,
    "cosine": lambda passed: math.cos(passed * math.pi / 2) ** 2,
    "linear": lambda passed: 1.0 - passed,
}

ENCODERS: dict[str, dict[str, Any]] = {
    "bert": {"task": "sentence"},
    "resnet": {"task": "image"},
    "vit": {"task": "image", "heads": 2, "patch": 4},
}
"""Task and sizes."""

for kind, cases in (("pooling", POOLINGS), ("schedule", SCHEDULES), ("encoder", ENCODERS)):
    built_in = {*components.builtin_names(kind)} - {*components.KINDS[kind].names}
    if without := sorted(built_in ^ {*cases}):
        raise pytest.UsageError(f"a built-in {kind} is proven here before it is one; {without} are not, or are gone")


@settings(max_examples=25)
@given(st.lists(st.integers(1, 6), min_size=1, max_size=4), st.integers(0, 3), st.integers(0, 2**32 - 1))
@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_is_the_oracle_s_whatever_the_padding(name: str, lengths: list[int], padding: int, seed: int) -> None:
    """Of states beyond a row's end nothing counts, in double. Padding on the left moves places, and the first token."""
    draw, longest = np.random.default_rng(seed), max(lengths) + padding
    first, last, before = draw.normal(size=(3, len(lengths), longest, 3))
    for is_left in (False, True) if name != "cls" else (False,):
        spans = [range(longest - n, longest) if is_left else range(n) for n in lengths]
        mask = torch.tensor([[int(place in span) for place in range(longest)] for span in spans])
        pool, weight = weighted(pooling_of(pooling_job(name), name, 3)[0], draw)
        beside = {"first": torch.tensor(first), "before_last": torch.tensor(before)}
        pooled = pool(states=torch.tensor(last), mask=mask, **beside)
        for row, span in enumerate(spans):
            states = [[of[row, place] for place in span] for of in (last, first, before)]
            counted = Counted(states[0], states[1], states[2], weight, [place + 1 for place in span])
            np.testing.assert_allclose(pooled[row].detach().numpy(), POOLINGS[name](counted), rtol=1e-12, atol=1e-12)


@given(st.floats(0, 1, exclude_max=True))
@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_is_its_formula(name: str, passed: float) -> None:
    assert components.called("schedule", name, {})(passed=passed) == pytest.approx(SCHEDULES[name](passed), abs=1e-12)


def encoder_job(name: str, seed: int = 0) -> JobConfig:
    sizes = {key: value for key, value in ENCODERS[name].items() if key != "task"}
    model = {"name": name, "width": 16, "layers": 1, "heads": 2, "precision": "fp64", "dropout": 0.1} | sizes
    return JobConfig.model_validate(
        {
            "task": ENCODERS[name]["task"],
            "seed": seed,
            "budget": {"steps": 1},
            "data": {"train": "x", "confirm": "x"},
            "model": model,
        }
    )


def rows_for(name: str) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(4)
    if ENCODERS[name]["task"] == "sentence":
        return tokens(6, 9, 4)
    return {"pixel_values": torch.randn(6, 1, 8, 8, generator=draw, dtype=torch.float64)}


@pytest.mark.parametrize("name", ENCODERS)
def test_an_encoder_gives_a_row_its_own_embedding(name: str) -> None:
    """Alone, beside others and padded further, with the dropout of its number; and starts as its seed says."""
    inputs, shape = rows_for(name), (1, 8, 8)
    model, same, other = (
        build(encoder_job(name, seed), tokenizer=Vocabulary(), image_shape=shape) for seed in (0, 0, 1)
    )
    weights = [torch.cat([p.detach().flatten() for p in of.parameters()]) for of in (model, same, other)]
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])

    def embedded(rows: list[int], padding: int = 0) -> torch.Tensor:
        chosen = {key: x[rows] for key, x in inputs.items()}
        if "input_ids" in chosen:
            chosen = {key: torch.nn.functional.pad(x, (0, padding)) for key, x in chosen.items()}
        with dropout_keys(seed=1, step=2, rows=torch.tensor(rows)):
            return model.embed(chosen)

    whole = embedded([*range(6)])
    for row in range(6):
        torch.testing.assert_close(embedded([row], padding=2)[0], whole[row], rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(embedded([5, 1])[0], whole[5], rtol=1e-10, atol=1e-12)


# Poolings of models


def pooling_job(pooling: str, **model: Any) -> JobConfig:
    """Of sentences, as those of batch losses, whose `model` is what is of interest."""
    sizes = {"name": "bert", "width": 16, "layers": 3, "heads": 2, "projection_width": 8, "precision": "fp64"}
    return loss_job("queue", {"size": 16, "momentum": 0.5}, model=sizes | {"dropout": 0.1, "pooling": pooling} | model)


def weighted(pool: Any, draw: np.random.Generator) -> tuple[Any, NDArray[np.float64]]:
    """Give a pooling with parameters some in double, and return them; zeros for one without."""
    parameters = [*pool.double().parameters()] if isinstance(pool, torch.nn.Module) else []
    for parameter in parameters:
        parameter.data.copy_(torch.from_numpy(draw.normal(size=parameter.shape)))
    return pool, parameters[0].detach().numpy() if parameters else np.zeros(0)


@pytest.mark.parametrize("name", POOLINGS)
def test_a_model_pools_the_states_of_its_own_layers_but_those_of_a_prompt(name: str) -> None:
    """Padded on the right and on the left. Mutant check: the layer before the last taken for the first fails."""
    model = build(pooling_job(name), tokenizer=Vocabulary()).eval()
    model.skipped = 2
    _, weight = weighted(model.pool, np.random.default_rng(1))
    for is_left in (False, True):
        inputs = {key: x.flip(1) if is_left else x for key, x in tokens(5, 9, 6).items()}
        pooled, output = model.encode(inputs), model.encoder(**inputs, output_hidden_states=True)
        assert len(output.hidden_states) == 4
        layers = [output.hidden_states[n].detach().numpy() for n in (3, 1, 2)]
        for row, mask in enumerate(inputs["attention_mask"].tolist()):
            places = [place for place, counts in enumerate(mask) if counts and place >= 2]
            states = [[of[row, place] for place in places] for of in layers]
            counted = Counted(states[0], states[1], states[2], weight, [place + 1 for place in places])
            np.testing.assert_allclose(pooled[row].detach().numpy(), POOLINGS[name](counted), rtol=1e-12, atol=1e-12)


def image_job(pooling: str, **model: Any) -> JobConfig:
    job = encoder_job("vit")
    return job.model_copy(update={"model": job.model.model_copy(update={"layers": 3, "pooling": pooling} | model)})


def test_the_last_two_layers_of_an_image_are_those_of_its_patches() -> None:
    """The class token is not pooled."""
    model = build(image_job("last_two"), image_shape=(1, 8, 8)).eval()
    pixels = rows_for("vit")["pixel_values"]
    output = model.encoder(pixels, output_hidden_states=True)
    expected = (output.hidden_states[-2][:, 1:].mean(1) + output.last_hidden_state[:, 1:].mean(1)) / 2
    torch.testing.assert_close(model.encode({"pixel_values": pixels}), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    ("job", "says"),
    [
        (pooling_job("last_two", layers=1), "'bert' has 1; use model.layers = 2 or more"),
        (image_job("last_two", layers=1), "'vit' has 1; use model.layers = 2 or more, or model.pooling = 'mean'"),
        (image_job("last_two", name="resnet"), "use model.pooling = 'mean', or model.name = 'vit'"),
        (image_job("first_last", name="resnet"), "model.name = 'resnet' gives a feature map"),
    ],
)
def test_layers_that_an_encoder_has_not_are_refused_before_anything_runs(job: JobConfig, says: str) -> None:
    """By whoever looks at data and encoder, and by whoever builds it."""
    shape = (1, 8, 8) if job.task == "image" else None
    for refuse in (lambda: check_model(job), lambda: build(job, tokenizer=Vocabulary(), image_shape=shape)):
        with pytest.raises(ModelError, match=re.escape(says)):
            refuse()


def test_layers_of_a_pretrained_encoder_are_counted_by_its_configuration(tmp_path: Path) -> None:
    """A feature map of stages has none. A pooling of one's own is refused by the states that it gets."""
    bert = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    stages = transformers.ResNetConfig(hidden_sizes=[4, 4], depths=[1, 1], embedding_size=4)
    transformers.ResNetModel(stages).save_pretrained(tmp_path / "stages")
    with pytest.raises(ModelError, match=r"bert' has 1; use model\.pooling = 'mean'"):
        check_model(pooling_job("last_two", name=str(tmp_path / "bert")))
    with pytest.raises(ModelError, match=r"stages' does not say how many it has; use model\.pooling = 'mean'"):
        check_model(image_job("last_two", name=str(tmp_path / "stages"), dropout=None))
    own = build(pooling_job("tasklab:both_ends", layers=1), tokenizer=Vocabulary()).eval()
    with pytest.raises(ModelError, match="this encoder has one layer"):
        own.encode(tokens(3, 5, 1))


def test_a_pooling_of_ones_own_may_ask_for_both_layers() -> None:
    """Mutant check: the first that is asked for in both places fails."""
    inputs = tokens(4, 7, 2)
    own, output = (build(pooling_job(name), tokenizer=Vocabulary()).eval() for name in ("tasklab:both_ends", "mean"))
    states = output.encoder(**inputs, output_hidden_states=True).hidden_states
    torch.testing.assert_close(own.encode(inputs), states[1][:, 0] - 2 * states[2][:, 0], rtol=1e-12, atol=1e-12)


def on_rank(rank: int) -> list[dict[str, torch.Tensor]]:
    return [gradients(pooling_job(name), micro=3 - rank, group=dist.group.WORLD) for name in TRAINED]


@pytest.mark.parametrize("world", [2, 3])
def test_every_world_size_and_micro_batch_has_the_gradient_of_one_process(spawn_ranks: SpawnRanks, world: int) -> None:
    """With dropout, and keys by a copy of the model that follows."""
    expected = [gradients(pooling_job(name)) for name in TRAINED]
    for results in spawn_ranks(world, on_rank, timeout_s=200):
        for seen, exact in zip(results, expected, strict=True):
            assert_same(seen, exact)


@pytest.mark.parametrize("name", TRAINED)
def test_a_micro_batch_has_the_gradient_of_the_whole(name: str) -> None:
    assert_same(gradients(pooling_job(name), micro=5), gradients(pooling_job(name)))


def test_attention_begins_as_the_mean_and_counts_nothing_of_an_empty_row() -> None:
    inputs = tokens(4, 7, 2)
    ours, mean = (build(pooling_job(name), tokenizer=Vocabulary()).eval() for name in ("attention", "mean"))
    torch.testing.assert_close(ours.encode(inputs), mean.encode(inputs), rtol=1e-12, atol=1e-12)
    states = torch.randn(2, 3, 16, dtype=torch.float64, requires_grad=True)
    pooled = ours.pool(states=states, mask=torch.tensor([[0, 0, 0], [1, 1, 0]]))
    assert pooled[0].tolist() == [0] * 16
    (gradient,) = torch.autograd.grad(pooled.square().sum(), states)
    assert torch.isfinite(gradient).all()
    assert not gradient[0].any()


@pytest.mark.parametrize("name", ["vit", "resnet"])
def test_attention_weighs_the_patches_of_an_image_or_the_places_of_its_map(name: str) -> None:
    """Mutant check: a class token that counts fails."""
    job = encoder_job(name)
    job = job.model_copy(update={"model": job.model.model_copy(update={"pooling": "attention"})})
    model, inputs = build(job, image_shape=(1, 8, 8)).eval(), rows_for(name)
    _, weight = weighted(model.pool, np.random.default_rng(3))
    last = model.encoder(inputs["pixel_values"])
    states = last.flatten(2).transpose(1, 2) if name == "resnet" else last.last_hidden_state[:, 1:]
    for pooled, row in zip(model.encode(inputs), states.detach().numpy(), strict=True):
        expected = POOLINGS["attention"](Counted([*row], [], [], weight, []))
        np.testing.assert_allclose(pooled.detach().numpy(), expected, rtol=1e-12, atol=1e-12)


def attention_job(folder: Path, **execution: Any) -> JobConfig:
    """With a copy that follows, a decay by layers and an average of weights."""
    job = sentence_job(folder, {"name": "sgd", "lr": 0.5}, **execution)
    queue = {"name": "queue", "options": {"size": 16, "momentum": 0.5}}
    loss = job.loss.model_copy(update=queue)
    model = job.model.model_copy(update={"pooling": "attention", "dropout": 0.1})
    return JobConfig.model_validate(job.model_copy(update={"loss": loss, "model": model}).model_dump(mode="json"))


def weights_on_rank(folder: Path, rank: int) -> dict[str, torch.Tensor]:
    (own := folder / str(rank)).mkdir()
    config = attention_job(own, ranks=dist.get_world_size(), micro=1)
    return trained(config, folder / "trial", group=dist.group.WORLD).model.state_dict()


def test_attention_is_learned_followed_and_resumed_and_on_any_ranks_the_same(
    spawn_ranks: SpawnRanks, tmp_path: Path
) -> None:
    """Bit for bit from a checkpoint. Its rate is the head's."""
    config = attention_job(tmp_path)
    whole = trained(config, tmp_path / "whole")
    begun = trained(config, tmp_path / "parts", steps=2)
    begun.save()
    begun.settle()
    weights, continued = whole.model.state_dict(), trained(config, tmp_path / "parts").model.state_dict()
    for key, expected in weights.items():
        assert torch.equal(continued[key], expected), key
    learned, followed = (weights[f"{of}pool.module.weight"] for of in ("", "follower."))
    assert learned.any()
    assert followed.any()
    assert not torch.equal(learned, followed)
    assert depths(whole.model).of["pool.module.weight"] == depths(whole.model).head
    (tmp_path / "ranks").mkdir()
    for seen in spawn_ranks(2, partial(weights_on_rank, tmp_path / "ranks"), timeout_s=200):
        for key, expected in weights.items():
            torch.testing.assert_close(seen[key], expected, rtol=1e-6, atol=1e-9)
