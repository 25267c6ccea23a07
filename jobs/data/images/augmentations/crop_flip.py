"""Random views of images: crop and resize, flip, brightness.

Views are batched tensor operations in which no image sees another one, with random numbers keyed by (seed, step, pair,
view). They avoid functions that round by the place in the batch (exp, matrix products), so a view has the same bits
whatever else is in the chunk and whichever rank computes it.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from jobs.config import Augment
from jobs.core.randomness import AUGMENT, uniform

SQUAREST, NARROWEST = 1.0, 0.75
"""Bounds of a crop's shorter side over its longer one, as in Inception's and SimCLR's crops (3/4 to 4/3)."""


def crop_flip(images: Tensor, settings: Augment, *, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
    """Make one random view of each image: crop and resize (bilinear), flip, brightness.

    images [c, C, H, W] in [0, 1]; pairs int64 [c]. Returns float32 of the same shape in [0, 1].
    """
    unit, augment = images, settings
    area, shape, tall, left, top, mirror, light = uniform(
        AUGMENT, seed, step, pairs, view, torch.arange(7, device=pairs.device)[:, None]
    )
    area = augment.crop + (1 - augment.crop) * area
    # A crop no longer than the image: its shorter side over its longer one is at least its area.
    narrowest = area.clamp(min=NARROWEST)
    ratio = narrowest + (SQUAREST - narrowest) * shape
    shorter, longer = (area * ratio).sqrt(), (area / ratio).sqrt().clamp(max=1)
    is_tall = tall < 0.5
    width, height = torch.where(is_tall, shorter, longer), torch.where(is_tall, longer, shorter)
    mirrored = (mirror < 0.5) & augment.flip
    if augment.crop < 1:
        across = _window(left, width, unit.shape[3])
        across = torch.where(mirrored[:, None], -across, across)
        down = _window(top, height, unit.shape[2])
        shape = len(unit), *unit.shape[2:]
        grid = torch.stack([across[:, None].expand(shape), down[:, :, None].expand(shape)], -1)
        unit = F.grid_sample(unit, grid, padding_mode="border", align_corners=False)
    elif augment.flip:
        unit = torch.where(mirrored[:, None, None, None], unit.flip(3), unit)
    if augment.brightness:
        factor = 1 + augment.brightness * (2 * light - 1)
        unit = (unit * factor[:, None, None, None]).clamp(max=1)
    return unit


def _window(position: Tensor, share: Tensor, size: int) -> Tensor:
    """Compute where the pixels of a crop lie, [c, size], in coordinates from -1 to 1 (edge to edge of the image).

    share [c]: how much of the side the crop keeps. position [c] in [0, 1): 0 is the first where it fits, 1 the last.
    """
    centres = (torch.arange(size, device=position.device) + 0.5) / size
    return 2 * ((position * (1 - share))[:, None] + share[:, None] * centres) - 1
