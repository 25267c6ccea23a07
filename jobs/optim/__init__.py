"""Optimizers and learning-rate schedules. The rate is a function of the step, so a checkpoint holds no scheduler."""

from __future__ import annotations

import math
from typing import TypeVar, cast

import torch
from torch import nn

from jobs.config import Optimizer

Made = TypeVar("Made", bound=torch.optim.Optimizer)


def _eager(optimizer: type[Made]) -> type[Made]:
    """A class of torch's optimizers as it is where nothing is compiled. Torch's own load its compiler to keep it out
    of their methods: two seconds of processor time and 70 MB in every rank."""
    names = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    plain = {name: getattr(getattr(optimizer, name), "__wrapped__", getattr(optimizer, name)) for name in names}
    plain["step"] = torch.no_grad()(plain["step"])
    return cast("type[Made]", type(optimizer.__name__, (optimizer,), plain))


AdamW, SGD = _eager(torch.optim.AdamW), _eager(torch.optim.SGD)


def build(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """AdamW (Loshchilov and Hutter, 2019) or SGD; matrices decay, biases, norms and loss parameters do not."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decaying = {name for name, p in trained.items() if p.ndim > 1 and not name.startswith("loss_module.")}
    groups = [
        {"params": [trained[name] for name in trained if name in decaying], "weight_decay": settings.weight_decay},
        {"params": [trained[name] for name in trained if name not in decaying], "weight_decay": 0.0},
    ]
    if settings.name == "adamw":
        first, second = settings.betas
        return AdamW(groups, lr=settings.lr, betas=(first, second), fused=True)
    return SGD(groups, lr=settings.lr, momentum=settings.momentum, fused=True)


def rate(settings: Optimizer, *, step: int, steps: int) -> float:
    """Learning rate of optimizer step `step` (1-based) of `steps`: a linear climb over the warm-up, then the schedule,
    which reaches 0 just after the last step."""
    warm = math.ceil(settings.warmup * steps)
    if step <= warm:
        return settings.lr * step / warm
    if settings.schedule == "constant":
        return settings.lr
    return settings.lr * _left(settings, (step - 1 - warm) / max(1, steps - warm))


def rate_at(settings: Optimizer, *, used: float) -> float:
    """Learning rate when a share `used` (0 to 1) of a budget in seconds is used: the same shape as `rate`. With a
    warm-up the first step has rate 0."""
    if used < settings.warmup:
        return settings.lr * used / settings.warmup
    if settings.schedule == "constant":
        return settings.lr
    passed = (used - settings.warmup) / (1 - settings.warmup)
    return settings.lr * _left(settings, passed)


def _left(settings: Optimizer, passed: float) -> float:
    """Share of the peak that is left after the share `passed` of what follows the warm-up."""
    return 1 - passed if settings.schedule == "linear" else (1 + math.cos(math.pi * passed)) / 2


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate."""
    for group in optimizer.param_groups:
        group["lr"] = rate
