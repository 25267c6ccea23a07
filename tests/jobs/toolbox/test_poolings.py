"""Every built-in pooling, schedule and encoder: what each is apart from the code, and that a row's is its own.

One that is built in without a case here fails the collection. Losses, optimizers, transforms, augmentations, judges and
samplers have files of their own beside this one and in tests/jobs/data.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from test_generic import Vocabulary, tokens

from jobs.config import JobConfig, components
from jobs.models import build, dropout_keys

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

    places: list[int]
    """Of these tokens in the padded row, from 1."""


POOLINGS: dict[str, Callable[[Counted], Any]] = {
    "cls": lambda row: row.last[0],
    "first_last": lambda row: (_mean(row.first) + _mean(row.last)) / 2,
    "lasttoken": lambda row: row.last[-1],
    "max": lambda row: [max(column) for column in zip(*row.last, strict=True)],
    "mean": lambda row: _mean(row.last),
    "mean_sqrt_len_tokens": lambda row: _mean(row.last) * math.sqrt(len(row.last)),
    "weightedmean": lambda row: sum(n * x for n, x in zip(row.places, row.last, strict=True)) / sum(row.places),
}

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
    first, last = draw.normal(size=(2, len(lengths), longest, 3))
    for is_left in (False, True) if name != "cls" else (False,):
        spans = [range(longest - n, longest) if is_left else range(n) for n in lengths]
        mask = torch.tensor([[int(place in span) for place in range(longest)] for span in spans])
        pool = components.called("pooling", name, {})
        pooled = pool(states=torch.tensor(last), first=torch.tensor(first), mask=mask)
        for row, span in enumerate(spans):
            states = [[of[row, place] for place in span] for of in (last, first)]
            expected = POOLINGS[name](Counted(states[0], states[1], [place + 1 for place in span]))
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
