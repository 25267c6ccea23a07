"""Optimizers, learning-rate schedules and gradient transforms. The rate is a function of the step, so a checkpoint
holds no scheduler. What each of them is called with stands in jobs/config/protocols.py.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping
from typing import cast

import torch
from torch import Tensor, nn

from jobs.config import Optimizer, components
from jobs.optim.eager import Groups, eager
from jobs.optim.layers import depths


def build(model: nn.Module, settings: Optimizer) -> torch.optim.Optimizer:
    """Build the job's optimizer. Matrices decay; biases, norms and parameters of the loss do not."""
    groups = _groups(model, settings)
    make = cast("Callable[..., torch.optim.Optimizer]", components.load("optimizer", settings.name))
    options = components.options("optimizer", make, settings.options)
    asked = inspect.signature(make).parameters
    given = {"params": groups, "lr": settings.lr, "settings": settings, "model": model}
    if isinstance(make, type) and issubclass(make, torch.optim.Optimizer) and make.__module__.startswith("torch."):
        make = eager(make)
    made = make(**{key: value for key, value in given.items() if key in asked}, **options)
    if not isinstance(made, torch.optim.Optimizer):
        raise components.ComponentError(
            f"optimizer.name = {settings.name!r} gives a {type(made).__name__}; give a class of torch.optim, or a "
            "function that returns one: (params, lr, **options) -> torch.optim.Optimizer"
        )
    return made


def _groups(model: nn.Module, settings: Optimizer) -> Groups:
    """Group parameters by their decay, and by their layer where layers have rates of their own, the head's first."""
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    decaying = {name for name, p in trained.items() if p.ndim > 1 and not name.startswith("loss_module.")}
    decays = [(settings.weight_decay, decaying), (0.0, trained.keys() - decaying)]
    if settings.layer_decay is None:
        return [{"params": [p for n, p in trained.items() if n in names], "weight_decay": d} for d, names in decays]
    where = depths(model)
    groups: Groups = []
    for depth in range(where.head, -1, -1):
        scale = settings.layer_decay ** (where.head - depth)
        for decay, names in decays:
            own = [p for name, p in trained.items() if name in names and where.of[name] == depth]
            if own:
                groups.append({"params": own, "weight_decay": decay, "lr_scale": scale})
    return groups


GroupGradients = Callable[[int, int], Iterator[Mapping[str, Tensor]]]
"""(step, pairs) -> gradients by name of each group of so many consecutive pairs of that step's global batch."""


class GradientTransform:
    """The job's gradient transform: none, or a component."""

    def __init__(self, model: nn.Module, settings: Optimizer, *, seed: int) -> None:
        self._named = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self._seed = seed
        self._settings = settings
        self._transform: Callable[..., object] | None = None
        if settings.transform is not None:
            component = components.load("transform", settings.transform)
            options = components.options("transform", component, settings.transform_options)
            self._transform = cast("Callable[..., Callable[..., object]]", component)(**options)

    @property
    def looks_first(self) -> bool:
        """Whether it is prepared before the first step."""
        return self._method("prepare") is not None

    def prepare(self, gradients: GroupGradients) -> None:
        """Let it look at gradients at the first weights. What it makes of them is its state."""
        if (prepare := self._method("prepare")) is not None:
            self._call(prepare, gradients=gradients, settings=self._settings)

    def __call__(self, step: int) -> None:
        """Change the gradients in place, on every rank alike."""
        if self._transform is not None:
            self._call(self._transform, step=step)

    def step(self, optimizer: torch.optim.Optimizer, step: int) -> None:
        """Make the optimizer's step, and let the transform change it."""
        after = self._method("after")
        before = {} if after is None else {name: p.detach().clone() for name, p in self._named.items()}
        optimizer.step()
        if after is not None:
            self._call(after, before=before, step=step)

    def _method(self, name: str) -> Callable[..., object] | None:
        found: Callable[..., object] | None = getattr(self._transform, name, None)
        return found

    def _call(self, function: Callable[..., object], **given: object) -> None:
        """Call a function with what it asks for."""
        asked, provided = inspect.signature(function).parameters, {"parameters": self._named, "seed": self._seed}
        function(**{key: value for key, value in (provided | given).items() if key in asked})

    def state_dict(self) -> Mapping[str, object]:
        """Return the state of the transform, empty for a transform without a state."""
        own: Callable[[], Mapping[str, object]] | None = getattr(self._transform, "state_dict", None)
        return {} if own is None else dict(own())

    def load_state_dict(self, state: Mapping[str, object]) -> None:
        """Go on from a checkpoint."""
        own: Callable[[Mapping[str, object]], object] | None = getattr(self._transform, "load_state_dict", None)
        if state and own is not None:
            own(state)


def rate(settings: Optimizer, *, step: int, steps: int) -> float:
    """Compute the learning rate of optimizer step `step` (1-based) of `steps`: a linear climb over the warm-up, then
    the schedule, which reaches 0 just after the last step."""
    warm = math.ceil(settings.warmup * steps)
    if step <= warm:
        return settings.lr * step / warm
    return settings.lr * _left(settings, (step - 1 - warm) / max(1, steps - warm))


def rate_at(settings: Optimizer, *, used: float) -> float:
    """Compute the learning rate when a share `used` (0 to 1) of a budget in seconds is used: the same shape as `rate`.
    With a warm-up the first step has rate 0."""
    if used < settings.warmup:
        return settings.lr * used / settings.warmup
    passed = (used - settings.warmup) / (1 - settings.warmup)
    return settings.lr * _left(settings, passed)


def _left(settings: Optimizer, passed: float) -> float:
    """Compute the share of the peak that is left after the share `passed` of what follows the warm-up."""
    return float(schedule(settings)(passed))


def schedule(settings: Optimizer) -> Callable[[float], float]:
    """Load the job's schedule. Raises ComponentError, and pydantic's ValidationError for options that it lacks."""
    share = components.called("schedule", settings.schedule, settings.schedule_options)
    return lambda passed: share(passed=passed)


def set_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Give every parameter group this learning rate, times its own scale."""
    for group in optimizer.param_groups:
        group["lr"] = rate * group.get("lr_scale", 1.0)


def rate_of(optimizer: torch.optim.Optimizer) -> float:
    """Return the learning rate that `set_rate` gave it."""
    group = optimizer.param_groups[0]
    return float(group["lr"] / group.get("lr_scale", 1.0))


def takes_nan(optimizer: torch.optim.Optimizer) -> bool:
    """Return whether it says, by an attribute `takes_nan`, that it has a rule for gradients that are not finite: then a
    step of such does not end the training."""
    return bool(getattr(optimizer, "takes_nan", False))


def counts(optimizer: torch.optim.Optimizer) -> dict[str, float]:
    """Return what it has counted so far, as points of a trial, if it has a method `counts` of numbers by name."""
    own: Callable[[], Mapping[str, float]] | None = getattr(optimizer, "counts", None)
    return {} if own is None else {f"train/{name}": float(number) for name, number in own().items()}
