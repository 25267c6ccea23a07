"""Encoders: built from a job's fields and trained from nothing, or loaded by transformers' AutoModel."""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, cast
from zlib import crc32

import torch
from torch import nn
from transformers import (
    AutoConfig,
    AutoModel,
    BertConfig,
    BertModel,
    PreTrainedConfig,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)

from jobs import randomness
from jobs.config import JobConfig
from jobs.models.resnet import ResNet

BUILT = ("vit", "resnet", "bert")
"""Names of the encoders that are built here; any other is loaded."""

TOKEN_SPREAD = 0.02
"""Standard deviation of a new BERT's embeddings, as Devlin et al. 2019 (arXiv:1810.04805)."""

POSITION_SPREAD = 0.5
"""Standard deviation of a new ViT's positions and class token. At the usual 0.02 a patch drowns out where it is, and a
small ViT that trains for some hundred steps does not learn it: its kNN accuracy on digits falls short of 0.6 instead of
reaching 0.85."""


class ModelError(ValueError):
    """The model a job asks for cannot be made. Says what was found, what is needed and what works."""


def make_encoder(job: JobConfig, *, vocabulary: int | None, image_shape: tuple[int, int, int] | None) -> nn.Module:
    """The job's encoder, initialised, on the CPU, with ordinary dropout.

    vocabulary: number of token ids, for `bert`. image_shape: channels, height, width, for `vit` and `resnet`.
    """
    name = job.model.name or {"image": "vit", "sentence": "bert"}[job.task]
    if name not in BUILT:
        return _load(name, job)
    if (name == "bert") != (job.task == "sentence"):
        works = "'vit' or 'resnet'" if job.task == "image" else "'bert'"
        raise ModelError(f"model.name = '{name}' cannot encode task = '{job.task}'; use model.name = {works}")
    if name == "bert":
        if vocabulary is None:
            raise ModelError("model.name = 'bert' needs a tokenizer; pass tokenizer_for(job)")
        encoder: nn.Module = BertModel(_bert_config(job, vocabulary), add_pooling_layer=False)
    elif image_shape is None:
        raise ModelError(f"model.name = '{name}' needs image_shape: channels, height and width of the images")
    elif name == "vit":
        encoder = ViTModel(_vit_config(job, image_shape), add_pooling_layer=False)
    else:
        encoder = ResNet(
            channels=image_shape[0],
            width=job.model.width,
            layers=job.model.layers,
            norm=job.model.norm,
            dropout=job.model.dropout or 0.0,
        )
    initialise(encoder, randomness.init_seed(job.seed), "encoder")
    return encoder


def initialise(module: nn.Module, seed: int, prefix: str) -> None:
    """Draw every weight of a new module from a generator of its own, seeded by (seed, its name).

    So a weight depends on its name and shape alone, not on what else the model has: arms that differ in the head or in
    the number of layers start from the same weights elsewhere. Linear maps, patches included, as Glorot and Bengio
    2010; convolutions of a ResNet as He et al. 2015 (arXiv:1502.01852); embedding tables, class token and positions
    from a normal. Biases are 0, and norms keep their 1 and 0.
    """
    generator = torch.Generator()
    spread = POSITION_SPREAD if isinstance(module, ViTModel) else TOKEN_SPREAD
    for place, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            generator.manual_seed(int(randomness.mix(seed, crc32(f"{prefix}.{place}.{name}".encode()))))
            if isinstance(part, nn.Linear | nn.Conv2d) and parameter.ndim == 1:
                nn.init.zeros_(parameter)
            elif isinstance(part, nn.Conv2d) and isinstance(module, ResNet):
                nn.init.kaiming_normal_(parameter, mode="fan_out", nonlinearity="relu", generator=generator)
            elif isinstance(part, nn.Linear | nn.Conv2d):
                nn.init.xavier_uniform_(parameter.detach().flatten(1), generator=generator)
            elif parameter.ndim >= 2:
                nn.init.normal_(parameter, std=spread, generator=generator)
        if isinstance(part, nn.Embedding) and part.padding_idx is not None:
            nn.init.zeros_(part.weight[part.padding_idx].detach())


def _bert_config(job: JobConfig, vocabulary: int) -> BertConfig:
    model = job.model
    p = 0.1 if model.dropout is None else model.dropout
    return BertConfig(
        vocab_size=vocabulary,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        max_position_embeddings=job.data.max_tokens,
        hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )


def _vit_config(job: JobConfig, image_shape: tuple[int, int, int]) -> ViTConfig:
    model = job.model
    channels, height, width = image_shape
    if height % model.patch or width % model.patch:
        raise ModelError(
            f"model.patch = {model.patch} must divide the images' sides, {height} x {width}; "
            f"use for example model.patch = {_largest_divisor(height, width, at_most=model.patch)}"
        )
    p = model.dropout or 0.0
    return ViTConfig(
        image_size=(height, width),
        num_channels=channels,
        patch_size=model.patch,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )


def _largest_divisor(height: int, width: int, *, at_most: int) -> int:
    return next(side for side in range(at_most, 0, -1) if height % side == 0 and width % side == 0)


def _load(name: str, job: JobConfig) -> nn.Module:
    """A pretrained encoder from a local folder or the Hub, in fp32, without its pooler."""
    local = Path(name).is_dir()
    try:
        config = AutoConfig.from_pretrained(name, local_files_only=local)
        if job.model.dropout is not None:
            _set_dropout(config, job.model.dropout)
        encoder: PreTrainedModel = AutoModel.from_pretrained(
            name, config=config, local_files_only=local, dtype=torch.float32
        )
    except (OSError, ValueError) as error:
        if isinstance(error, ModelError):
            raise
        offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
        raise ModelError(
            f"model.name = '{name}' is {'' if local else 'no folder here and '}not loadable"
            f"{'; HF_HUB_OFFLINE is set, so only the local cache was searched' if offline and not local else ''}"
            f" ({str(error).strip().splitlines()[0]}). Give a folder with config.json and model.safetensors, a name "
            "that the Hub knows, or 'vit', 'resnet' or 'bert' to train from nothing"
        ) from error
    wanted = {"image": "pixel_values", "sentence": "input_ids"}[job.task]
    if encoder.main_input_name != wanted:
        raise ModelError(
            f"model.name = '{name}' encodes {encoder.main_input_name}, but task = '{job.task}' gives {wanted}; "
            f"use an encoder of {job.task}s"
        )
    # A pooler's weights would get no gradient, and pooling is ours to choose.
    if "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters:
        encoder.pooler = cast("Any", None)
    return encoder


def _set_dropout(config: PreTrainedConfig, p: float) -> None:
    """Set every dropout that a transformers configuration names."""
    suffixes = ("dropout", "dropout_prob", "dropout_rate", "pdrop")
    names = [key for key, value in config.to_dict().items() if type(value) in (int, float) and key.endswith(suffixes)]
    if p and not names:
        raise ModelError(f"model.dropout = {p}, but this encoder's configuration names no dropout; leave it out")
    for name in names:
        setattr(config, name, p)
