"""Torch's optimizers as they are where nothing is compiled."""

from __future__ import annotations

from typing import TypeVar, cast

import torch
from torch import nn

Groups = list[dict[str, list[nn.Parameter] | float]]
"""Parameter groups: `params`, `weight_decay` and, where layers have rates of their own, `lr_scale`."""

Made = TypeVar("Made", bound=torch.optim.Optimizer)


def eager(optimizer: type[Made]) -> type[Made]:
    """Make a class of torch's optimizers as it is where nothing is compiled. Torch's own load its compiler to keep it
    out of their methods: two seconds of processor time and 70 MB in every rank."""
    names = ("add_param_group", "load_state_dict", "state_dict", "step", "zero_grad")
    plain = {name: getattr(getattr(optimizer, name), "__wrapped__", getattr(optimizer, name)) for name in names}
    plain["step"] = torch.no_grad()(plain["step"])
    return cast("type[Made]", type(optimizer.__name__, (optimizer,), plain))
