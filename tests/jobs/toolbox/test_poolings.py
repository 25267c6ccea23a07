"""Every built-in pooling, schedule and encoder: what each is apart from the code, and that a row's is its own.

One that is built in without a case here fails the collection. Losses, optimizers, transforms, augmentations, judges and
samplers have files of their own beside this one and in tests/jobs/data.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
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

from jobs.config import JobConfig, components
from jobs.models import ModelError, build, check_encoder, dropout_keys

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

    places: list[int]
    """Of these tokens in the padded row, from 1."""


POOLINGS: dict[str, Callable[[Counted], Any]] = {
    "cls": lambda row: row.last[0],
    "first_last": lambda row: (_mean(row.first) + _mean(row.last)) / 2,
    "last_two": lambda row: (_mean(row.before) + _mean(row.last)) / 2,
    "lasttoken": lambda row: row.last[-1],
    "max": lambda row: [max(column) for column in zip(*row.last, strict=True)],
    "mean": lambda row: _mean(row.last),
    "mean_sqrt_len_tokens": lambda row: _mean(row.last) * math.sqrt(len(row.last)),
    "weightedmean": lambda row: sum(n * x for n, x in zip(row.places, row.last, strict=True)) / sum(row.places),
}

TRAINED = ("last_two",)
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
        pool = components.called("pooling", name, {})
        beside = {"first": torch.tensor(first), "before_last": torch.tensor(before)}
        pooled = pool(states=torch.tensor(last), mask=mask, **beside)
        for row, span in enumerate(spans):
            states = [[of[row, place] for place in span] for of in (last, first, before)]
            expected = POOLINGS[name](Counted(states[0], states[1], states[2], [place + 1 for place in span]))
            np.testing.assert_allclose(pooled[row].numpy(), expected, rtol=1e-12, atol=1e-12)


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


@pytest.mark.parametrize("name", POOLINGS)
def test_a_model_pools_the_states_of_its_own_layers_but_those_of_a_prompt(name: str) -> None:
    """Padded on the right and on the left. Mutant check: the layer before the last taken for the first fails."""
    model = build(pooling_job(name), tokenizer=Vocabulary()).eval()
    model.skipped = 2
    for is_left in (False, True):
        inputs = {key: x.flip(1) if is_left else x for key, x in tokens(5, 9, 6).items()}
        pooled, output = model.encode(inputs), model.encoder(**inputs, output_hidden_states=True)
        assert len(output.hidden_states) == 4
        layers = [output.hidden_states[n].detach().numpy() for n in (3, 1, 2)]
        for row, mask in enumerate(inputs["attention_mask"].tolist()):
            places = [place for place, counts in enumerate(mask) if counts and place >= 2]
            states = [[of[row, place] for place in places] for of in layers]
            expected = POOLINGS[name](Counted(states[0], states[1], states[2], [place + 1 for place in places]))
            np.testing.assert_allclose(pooled[row].detach().numpy(), expected, rtol=1e-12, atol=1e-12)


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
    for refuse in (lambda: check_encoder(job, None), lambda: build(job, tokenizer=Vocabulary(), image_shape=shape)):
        with pytest.raises(ModelError, match=re.escape(says)):
            refuse()


def test_layers_of_a_pretrained_encoder_are_counted_by_its_configuration(tmp_path: Path) -> None:
    """A feature map of stages has none. A pooling of one's own is refused by the states that it gets."""
    bert = transformers.BertConfig(vocab_size=50, hidden_size=16, num_hidden_layers=1, num_attention_heads=2)
    transformers.BertModel(bert).save_pretrained(tmp_path / "bert")
    stages = transformers.ResNetConfig(hidden_sizes=[4, 4], depths=[1, 1], embedding_size=4)
    transformers.ResNetModel(stages).save_pretrained(tmp_path / "stages")
    with pytest.raises(ModelError, match=r"bert' has 1; use model\.pooling = 'mean'"):
        check_encoder(pooling_job("last_two", name=str(tmp_path / "bert")), None)
    with pytest.raises(ModelError, match=r"stages' does not say how many it has; use model\.pooling = 'mean'"):
        check_encoder(image_job("last_two", name=str(tmp_path / "stages"), dropout=None), None)
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
