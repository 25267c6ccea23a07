"""The loss that a job names: a built-in or one of anchors, which are tiled, or any function of the whole batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from torch import Tensor, nn

from jobs.config import components
from jobs.core.collectives import Group
from jobs.losses import generic
from jobs.losses.generic import BatchFacts
from jobs.losses.spec import LossInputs, LossSpec, RowLoss, SoftmaxLoss
from jobs.losses.tiled import Diagnostics, tiled_loss

if TYPE_CHECKING:
    from jobs.config import JobConfig, Loss


class JobLoss:
    """The loss of a job, by either door.

    module: of a loss with parameters or state, to be trained and saved with the model; else None. normalised: whether
    it is given unit rows. row_loss: what it is of anchors; None of a function of the whole batch. sizes: see
    `generic.built`.
    """

    def __init__(self, job: JobConfig, sizes: Mapping[str, int] | None = None) -> None:
        self.spec = LossSpec.of(job)
        self.seed = job.seed
        component = components.load("loss", self.spec.name)
        self._options = components.options("loss", component, self.spec.options)
        self.row_loss = as_row_loss(component, self._options)
        self.normalised = generic.is_normalised(component)
        self.module: nn.Module | None = None
        self.momentum: float | None = None
        """By which a copy of the model follows it; None for a loss that asks for no keys of one."""
        self._asked: frozenset[str] = frozenset()
        self._function: Callable[..., Tensor] | None = None
        if self.row_loss is None:
            if not callable(component):
                raise ValueError(
                    f"loss.name = {self.spec.name!r} is a {type(component).__name__}; name a function of queries and "
                    "keys, an nn.Module class, or a function of rows under @softmax_loss"
                )
            self._asked = generic.asked_for(cast("Callable[..., Tensor]", component))
            _refuse_idle_guide(job.loss, self._asked)
            self.module = generic.built(component, self._options, seed=job.seed, sizes=sizes)
            self._function = self.module or cast("Callable[..., Tensor]", component)
            self.momentum = _momentum(self.spec.name, self.module) if "momentum_keys" in self._asked else None

    def __call__(
        self,
        inputs: LossInputs,
        facts: BatchFacts,
        group: Group,
        *,
        same_as: str | None = None,
    ) -> tuple[Tensor, Diagnostics]:
        """Compute the mean over all pairs of all ranks, and diagnostics; see `contrastive_loss`, `generic.batch_loss`.

        same_as: name of a loss to compute in place of this loss of anchors. Raises ValueError on every rank.
        """
        if self._function is not None:
            options = {} if self.module is not None else self._options
            return generic.batch_loss(
                self._function, self.spec, inputs, facts, group, asked=self._asked, options=options
            )
        if same_as is None:
            return tiled_loss(self.spec, self.row_loss, inputs, group)
        spec = replace(self.spec, name=same_as)
        loss, fault = row_loss_of(spec)
        return tiled_loss(spec, loss, inputs, group, fault=fault)


def _refuse_idle_guide(loss: Loss, asked: frozenset[str]) -> None:
    """Raise ValueError for a guide that nothing asks for, or none where one is asked for."""
    wanted = sorted(name for name in asked if name.startswith("guide_"))
    if loss.guide is not None and not wanted:
        raise ValueError(
            f"loss.guide = '{loss.guide}' is asked for by no argument of loss.name = {loss.name!r}; remove it, or let "
            "the loss ask for guide_queries and guide_keys"
        )
    if loss.guide is None and wanted:
        raise ValueError(
            f"loss.name = {loss.name!r} asks for {wanted[0]}, and loss.guide names no frozen encoder; give the folder "
            "of one, or a name that the Hub knows"
        )


def _momentum(name: str, module: nn.Module | None) -> float:
    """Return the momentum of a loss that asks for keys of a copy of the model. Raises ValueError where it says none."""
    momentum = getattr(module, "momentum", None)
    if not isinstance(momentum, float) or not 0 <= momentum < 1:
        raise ValueError(
            f"loss.name = {name!r} asks for momentum_keys; let it be a class of nn.Module with an attribute "
            "`momentum`, a number from 0 to below 1, such as 0.999"
        )
    return momentum


def check_scores(loss: Loss, scores: Tensor) -> None:
    """Look at the scores of all rows, [n], that the loss will meet, by its own `check_scores` if it has one. Raises
    ValueError for what would end a training, or teach it nothing."""
    component = components.load("loss", loss.name)
    own = getattr(component, "check_scores", None)
    if own is not None:
        own(scores, **components.options("loss", component, loss.options))


def as_row_loss(component: object, options: Mapping[str, object]) -> RowLoss | None:
    """Convert what a name loads to a loss of anchors; None where it is a function of the whole batch."""
    if isinstance(component, SoftmaxLoss):
        return component.row_loss(**options)
    return component if isinstance(component, RowLoss) else None


def row_loss_of(spec: LossSpec) -> tuple[RowLoss | None, str]:
    """Load the loss of anchors that a spec names; or return None, and what is wrong."""
    try:
        component = components.load("loss", spec.name)
        loss = as_row_loss(component, components.options("loss", component, spec.options))
    except ValueError as error:  # of the name, or pydantic's of an option
        return None, str(error)
    if loss is None:
        return None, f"{spec.name!r} is a function of the whole batch, not a loss of anchors; name it in a job"
    return loss, ""
