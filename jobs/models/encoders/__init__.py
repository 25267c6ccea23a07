"""The built-in encoders, which are trained from nothing, beside what transformers' AutoModel loads.

Each module holds a function of its name; one of the user's own is a class or a function likewise: of job, image_shape
(channels, height, width), vocabulary (number of token ids) or inputs (two rows as it will take them) what it asks for,
and its options, -> nn.Module. It is called as transformers' are: pixel_values [n, C, H, W], or input_ids and
attention_mask [n, L], or what else a task's views have by name; gives embeddings [n, width], a feature map [n, width,
h, w] or an object with `last_hidden_state` [n, L, width]; and has `width`, or a `config` with `hidden_size`.
Its first weights are drawn with the generator seeded by the job's seed.

transformers takes seconds to import, so only what needs it does: a ResNet starts without.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import cast
from zlib import crc32

import torch
from torch import Tensor, nn

from jobs.config import JobConfig, components
from jobs.core import randomness
from jobs.models.errors import ModelError
from jobs.models.pretrained.folder import BUILT
from jobs.models.resnet import ResNet

TOKEN_SPREAD = 0.02
"""Standard deviation of a new BERT's embeddings, as Devlin et al. 2019 (arXiv:1810.04805)."""

POSITION_SPREAD = 0.5
"""Standard deviation of a new ViT's positions and class token. At the usual 0.02 a patch drowns out where it is, and a
small ViT that trains for some hundred steps does not learn it: its kNN accuracy on digits falls short of 0.6 instead of
reaching 0.85."""


def make_encoder(
    job: JobConfig,
    *,
    vocabulary: int | None,
    image_shape: tuple[int, int, int] | None,
    inputs: Mapping[str, Tensor] | None = None,
) -> nn.Module:
    """Make the job's encoder, initialised, on the CPU, with ordinary dropout.

    vocabulary: number of token ids, of sentences. image_shape: channels, height, width, of images. inputs: two rows as
    it will take them.
    """
    name = job.model.name or {"image": "vit", "sentence": "bert"}[job.task]
    if name not in BUILT and not components.is_import_path(name):
        from jobs.models import transformer

        return transformer.load(name, job)
    if name in BUILT and (other := _of_other_task(name, job, has_images=image_shape is not None)):
        raise ModelError(f"model.name = '{name}' cannot encode task = '{job.task}'; use model.name = {other}")
    if job.task == "sentence" and vocabulary is None:
        raise ModelError(f"model.name = '{name}' needs a tokenizer; pass tokenizer_for(job)")
    if job.task == "image" and image_shape is None:
        raise ModelError(f"model.name = '{name}' needs image_shape: channels, height and width of the images")
    build = components.called("encoder", name, job.model.options)
    encoder = build(job=job, vocabulary=vocabulary, image_shape=image_shape, inputs=inputs)
    if not isinstance(encoder, nn.Module):
        raise ModelError(
            f"model.name = '{name}' gives a {type(encoder).__name__}; give a class of nn.Module, or a function that "
            "returns one"
        )
    if name in BUILT:
        spread = POSITION_SPREAD if name == "vit" else TOKEN_SPREAD
        initialise(encoder, randomness.init_seed(job.seed), "encoder", spread)
    return encoder


def _of_other_task(name: str, job: JobConfig, *, has_images: bool) -> str:
    """Name the encoders of the job's task, by what they ask for; empty where this built-in encoder is one of them."""
    if job.task not in ("image", "sentence") and not has_images:
        return repr(components.ENCODER.example)
    needed = "vocabulary" if job.task == "sentence" else "image_shape"
    if needed in inspect.signature(_loaded(name)).parameters:
        return ""
    # Only now, as to look at the others imports them, and with them transformers.
    return " or ".join(repr(own) for own in BUILT if needed in inspect.signature(_loaded(own)).parameters)


def _loaded(name: str) -> Callable[..., object]:
    return cast("Callable[..., object]", components.load("encoder", name))


def initialise(module: nn.Module, seed: int, prefix: str, spread: float = TOKEN_SPREAD) -> None:
    """Draw every weight of a new module from a generator of its own, seeded by (seed, its name).

    So a weight depends on its name and shape alone, not on what else the model has: arms that differ in the head or in
    the number of layers start from the same weights elsewhere. Linear maps, patches included, as Glorot and Bengio
    2010; convolutions of a ResNet as He et al. 2015 (arXiv:1502.01852); embedding tables, class token and positions
    from a normal of standard deviation `spread`. Biases are 0, and norms keep their 1 and 0.
    """
    generator = torch.Generator()
    for path, part in module.named_modules():
        for name, parameter in part.named_parameters(recurse=False):
            generator.manual_seed(int(randomness.mix(seed, crc32(f"{prefix}.{path}.{name}".encode()))))
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
