"""Rates of layers: where parameters stand, and that each has its own rate of every step, under every optimizer."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from optimizers import ORACLES
from test_generic import Vocabulary
from test_optimizers import EACH, STEPS, Tower, assert_is, course, job, settings, step_through, trained
from torch import nn
from transformers import (
    AutoModel,
    BertConfig,
    DistilBertConfig,
    GPT2Config,
    ModernBertConfig,
    MPNetConfig,
    RobertaConfig,
    RoFormerConfig,
    ViTConfig,
)

from jobs.config import JobConfig
from jobs.models import build as build_model
from jobs.optim import build, set_rate
from jobs.optim.layers import depths

DECAY = 0.7

TOWER = {"encoder.table": 0, "head": 5} | {f"encoder.layers.{n}": n + 1 for n in range(4)}
"""Depths of the modules of Tower."""


def scales(model: nn.Module) -> dict[str, float]:
    return {name: DECAY ** (5 - TOWER[name.rpartition(".")[0]]) for name, _ in model.named_parameters()}


@pytest.mark.parametrize(("name", "options"), EACH)
def test_ten_steps_with_a_rate_of_each_layer_are_the_oracle_s(name: str, options: dict[str, Any]) -> None:
    """Mutant checks: the embeddings at the rate of the first layer, and set_rate without the scale, fail."""
    model = Tower()
    given = course(model)
    given.scale = scales(model)
    step_through(model, build(model, settings(name, options, layer_decay=DECAY)), given, range(STEPS))
    assert_is(model, ORACLES[name](given, **options))


def test_rates_keep_their_ratios_and_decay_is_as_ever() -> None:
    model = Tower()
    optimizer = build(model, settings("adamw", {}, layer_decay=DECAY))
    for rate in (1.0, 0.3):
        set_rate(optimizer, rate)
        found = {
            id(p): (group["lr"], group["weight_decay"]) for group in optimizer.param_groups for p in group["params"]
        }
        wanted = scales(model)
        for name, p in model.named_parameters():
            assert found[id(p)] == (rate * wanted[name], 0.1 if p.ndim > 1 else 0.0)


def test_without_it_there_are_the_two_groups_of_ever() -> None:
    """So that a checkpoint of a run begun before goes on."""
    groups = build(Tower(), settings("adamw", {})).param_groups
    assert len(groups) == 2
    assert not any("lr_scale" in group for group in groups)


def sections(name: str, **model: Any) -> JobConfig:
    task = "sentence" if name == "bert" else "image"
    whole = {"task": task, "budget": {"steps": 1}, "data": {"train": "x", "confirm": "x"}}
    return JobConfig.model_validate(
        whole
        | {"model": {"name": name, "width": 16, "layers": 2, "heads": 2} | model, "loss": {"temperature": "learned"}}
    )


def by_depth(model: nn.Module) -> dict[int, set[str]]:
    where = depths(model)
    return {depth: {name for name, at in where.of.items() if at == depth} for depth in range(where.head + 1)}


@pytest.mark.parametrize(
    ("name", "layers", "below", "inside"),
    [
        ("bert", 2, "encoder.embeddings.", "encoder.encoder.layer.{}."),
        ("vit", 2, "encoder.embeddings.", "encoder.layers.{}."),
        ("resnet", 6, "encoder.stem. encoder.norm.", "encoder.blocks.{}."),
    ],
)
def test_own_encoders_have_their_layers(name: str, layers: int, below: str, inside: str) -> None:
    given: dict[str, Any] = {"tokenizer": Vocabulary()} if name == "bert" else {"image_shape": (1, 8, 8)}
    found = by_depth(build_model(sections(name), **given))
    assert sorted(found) == list(range(layers + 2))
    assert found[0]
    assert all(name.startswith(tuple(below.split())) for name in found[0]), found[0]
    for number in range(layers):
        assert found[number + 1]
        assert all(name.startswith(inside.format(number)) for name in found[number + 1]), found[number + 1]
    assert {"head.0.weight", "log_temperature"} <= found[layers + 1], found[layers + 1]


SMALL: dict[str, Any] = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "vocab_size": 60,
}

LOADED: list[tuple[Any, str, set[str]]] = [
    (BertConfig(**SMALL), "encoder.layer.{}.", {"pooler"}),
    (RobertaConfig(**SMALL), "encoder.layer.{}.", {"pooler"}),
    (RoFormerConfig(**SMALL, embedding_size=8), "encoder.layer.{}.", set()),
    (MPNetConfig(**SMALL), "encoder.layer.{}.", {"pooler"}),
    (ModernBertConfig(**SMALL, pad_token_id=0), "layers.{}.", {"final_norm"}),
    (
        DistilBertConfig(dim=16, n_layers=3, n_heads=2, hidden_dim=32, vocab_size=60),
        "transformer.layer.{}.",
        set(),
    ),
    (GPT2Config(n_embd=16, n_layer=3, n_head=2, vocab_size=60), "h.{}.", {"ln_f"}),
    (
        ViTConfig(**{key: SMALL[key] for key in SMALL if key != "vocab_size"}, image_size=8, patch_size=4),
        "layers.{}.",
        {"layernorm", "pooler"},
    ),
]


@pytest.mark.parametrize(("config", "inside", "above"), LOADED, ids=lambda x: getattr(x, "model_type", None))
def test_encoders_of_transformers_have_theirs(config: Any, inside: str, above: set[str]) -> None:
    """Tables of relative positions beside the layers (MPNet) are embeddings, a last norm or a pooler is the head's."""
    wrapped = nn.Module()
    wrapped.encoder = AutoModel.from_config(config)  # type: ignore[no-untyped-call]
    found = by_depth(wrapped)
    assert sorted(found) == [0, 1, 2, 3, 4]
    for number in range(3):
        assert found[number + 1]
        assert all(name.startswith(f"encoder.{inside.format(number)}") for name in found[number + 1])
    assert {name.split(".")[1] for name in found[4]} == above
    assert any("embed" in name or "wte" in name for name in found[0])


def test_an_encoder_without_a_list_of_layers_is_one_layer() -> None:
    model = nn.Module()
    model.encoder = nn.Linear(2, 2)
    model.head = nn.Linear(2, 2)
    assert depths(model).of == {"encoder.weight": 1, "encoder.bias": 1, "head.weight": 2, "head.bias": 2}


def test_a_training_with_rates_of_layers_is_resumed_bit_for_bit(tmp_path: Path) -> None:
    """And logs the rate of the head."""
    section = {"name": "muon", "layer_decay": 0.5, "lr": 0.01, "schedule": "constant", "warmup": 0.0}
    config = job(section)
    whole = trained(config, tmp_path / "whole")
    begun = trained(config, tmp_path / "parts", steps=2)
    begun.save()
    begun.settle()
    continued = trained(config, tmp_path / "parts")
    for key, expected in whole.model.state_dict().items():
        assert torch.equal(continued.model.state_dict()[key], expected)
    logged = [point.value for point in whole.points if point.key == "train/learning_rate"]
    assert logged == pytest.approx([0.01] * len(logged))
    assert logged
