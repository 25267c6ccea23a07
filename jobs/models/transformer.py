"""Encoders of transformers: BERT and ViT from a job's fields, any other loaded; and their attention with keyed dropout.

transformers calls attention by name (`AttentionInterface`), which is the only way to reach the dropout inside it.
"""

from __future__ import annotations

import inspect
import os
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import (
    AttentionInterface,
    AttentionMaskInterface,
    AutoModel,
    BertConfig,
    BertModel,
    PreTrainedModel,
    ViTConfig,
    ViTModel,
)
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from jobs.config import JobConfig
from jobs.core.failures import words_of
from jobs.core.paths import is_folder_here, looked_in
from jobs.models.dropout import ATTENTION, drop
from jobs.models.errors import ModelError
from jobs.models.pretrained import folder as pretrained
from jobs.models.pretrained import weights
from jobs.models.pretrained.anatomy import Anatomy, anatomy, read_config, set_dropout


def bert(job: JobConfig, vocabulary: int, max_tokens: int) -> nn.Module:
    """Build a BERT of the job's size for `vocabulary` token ids and texts of `max_tokens`, not yet initialised."""
    model = job.model
    p = 0.1 if model.dropout is None else model.dropout
    config = BertConfig(
        vocab_size=vocabulary,
        hidden_size=model.width,
        num_hidden_layers=model.layers,
        num_attention_heads=model.heads,
        intermediate_size=4 * model.width,
        max_position_embeddings=max_tokens,
        hidden_dropout_prob=p,
        attention_probs_dropout_prob=p,
    )
    return BertModel(config, add_pooling_layer=False)


def vit(job: JobConfig, image_shape: tuple[int, int, int]) -> nn.Module:
    """Build a ViT of the job's size, not yet initialised. image_shape: channels, height, width."""
    model = job.model
    channels, height, width = image_shape
    if height % model.patch or width % model.patch:
        raise ModelError(
            f"model.patch = {model.patch} must divide the images' sides, {height} x {width}; "
            f"use for example model.patch = {_largest_divisor(height, width, at_most=model.patch)}"
        )
    p = model.dropout or 0.0
    config = ViTConfig(
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
    return ViTModel(config, add_pooling_layer=False)


def _largest_divisor(height: int, width: int, *, at_most: int) -> int:
    return next(side for side in range(at_most, 0, -1) if height % side == 0 and width % side == 0)


def load(name: str, job: JobConfig) -> nn.Module:
    """Load a pretrained encoder from a folder or the Hub, in fp32, without its pooler. No code of a folder is run."""
    folder, anatomy_of = examined(name, job)
    check_weights(name, job)
    try:
        config = read_config(folder)
        if job.model.dropout is not None:
            set_dropout(config, job.model.dropout)
        encoder: PreTrainedModel
        encoder, loading = AutoModel.from_pretrained(
            folder,
            config=config,
            local_files_only=True,
            trust_remote_code=False,
            dtype=torch.float32,
            output_loading_info=True,
            ignore_mismatched_sizes=True,
        )
        weights.refuse_unfit(folder, loading)
    except ModelError as error:
        raise _untrainable(name, error) from error
    except weights.UNREADABLE as error:
        raise _not_loadable(name, words_of(error)) from error
    wanted = {"image": "pixel_values", "sentence": "input_ids"}[job.task]
    assert anatomy_of.main_input == encoder.main_input_name == wanted, "examined is what is loaded"
    # A pooler's weights would get no gradient, and pooling is ours to choose.
    if "add_pooling_layer" in inspect.signature(type(encoder).__init__).parameters:
        encoder.pooler = cast("Any", None)
    return encoder


def examined(name: str, job: JobConfig) -> tuple[Path, Anatomy]:
    """Find the folder of a pretrained encoder, and what it is, before its weights are loaded. Raises ModelError for
    what cannot be trained or is of the other task."""
    try:
        folder = pretrained.folder_of(name)
    except pretrained.EncoderError as error:
        raise _not_loadable(name, error.reason) from error
    if (missing := pretrained.why_no_config(folder)) is not None:
        raise _not_loadable(name, missing)
    try:
        own = anatomy(folder, dropout=job.model.dropout)
    except ModelError as error:
        raise _untrainable(name, error) from error
    wanted = {"image": "pixel_values", "sentence": "input_ids"}[job.task]
    if own.main_input != wanted:
        raise ModelError(
            f"model.name = '{name}' encodes {own.main_input}, but task = '{job.task}' gives {wanted}; "
            f"use an encoder of {job.task}s"
        )
    return folder, own


def check_weights(name: str, job: JobConfig) -> list[str]:
    """Check the weights of a pretrained encoder and return notes on them. Raises ModelError for those that are not of
    its network."""
    folder, _ = examined(name, job)
    try:
        return [f"model.name = '{name}': {note}" for note in weights.examine(folder)]
    except ModelError as error:
        raise _untrainable(name, error) from error
    except weights.UNREADABLE as error:
        raise _not_loadable(name, words_of(error)) from error


def _untrainable(name: str, error: ModelError) -> ModelError:
    """Add the encoder's name to the error that says why it cannot be trained, unless it names a key of the job."""
    return error if str(error).startswith("model.") else ModelError(f"model.name = '{name}' cannot be trained: {error}")


def _not_loadable(name: str, reason: str) -> ModelError:
    """Say what is wrong with an encoder that is not there, or has files that cannot be read."""
    local = is_folder_here(name)
    offline = os.environ.get("HF_HUB_OFFLINE", "").upper() in {"1", "ON", "YES", "TRUE"}
    no_folder = "" if local else f"no folder{looked_in(name) or ' here'} and "
    return ModelError(
        f"model.name = '{name}' is {no_folder}not loadable"
        f"{'; HF_HUB_OFFLINE is set, so only the local cache was searched' if offline and not local else ''}"
        f" ({reason}). Give a folder with config.json and model.safetensors, a name "
        "that the Hub knows, or 'vit', 'resnet' or 'bert' to train from nothing"
    )


def _attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    *,
    dropout: float = 0.0,
    scaling: float | None = None,
    **others: Any,
) -> tuple[Tensor, Tensor | None]:
    """Let query [n, heads, q, d] attend to key and value [n, heads, k, d]; the mask is bool (True attends) or added."""
    if dropout == 0 or not module.training:
        return sdpa_attention_forward(module, query, key, value, attention_mask, scaling=scaling, **others)
    if attention_mask is None and (others.get("is_causal") or getattr(module, "is_causal", False)):
        raise RuntimeError(f"attention dropout of a causal encoder ({type(module).__name__}) cannot be replayed")
    if (groups := query.shape[1] // key.shape[1]) > 1:
        key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * (query.shape[-1] ** -0.5 if scaling is None else scaling)
    for bias in (others.get("position_bias"), attention_mask):
        if bias is not None and bias.dtype == torch.bool:
            scores = scores.masked_fill(~bias, torch.finfo(scores.dtype).min)
        elif bias is not None:
            scores = scores + bias
    weights = drop(torch.softmax(scores, dim=-1), dropout)
    return (weights @ value.to(weights.dtype)).transpose(1, 2).contiguous(), None


AttentionInterface.register(ATTENTION, _attention)
AttentionMaskInterface.register(ATTENTION, sdpa_mask)
