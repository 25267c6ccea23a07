"""Optuna in memory: studies, samplers, pruners and distributions made of what a sweep says, for search.py."""

from __future__ import annotations

import contextlib
import math
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from jobs.config import canonical
from orchestrator.sweep.space import conditions
from orchestrator.sweep.values import Settings, identity

if TYPE_CHECKING:
    from optuna import Study, Trial
    from optuna.distributions import BaseDistribution, CategoricalChoiceType
    from optuna.pruners import BasePruner
    from optuna.samplers import BaseSampler
    from optuna.trial import FrozenTrial, TrialState

    from orchestrator.sweep import Space, Tune


STARTUP = 4
"""Observations, defaults included, before tpe and gp stop drawing at random. Optuna's 10 is above the usual budget of
eight, so it would never search. Of 1, 2, 4 and 8, on noisy bowls of three keys, 4 was best or level for tpe with 8 and
16 trials; for gp they were level."""

HALVING = 2
"""Successive halving lets this share of the trials pass a rung: one in two. Optuna's one in four would leave nothing
of a budget of eight."""

MEDIAN_STARTUP = 4
"""Trials that must have finished before the median prunes: half of the usual budget of eight."""


@dataclass(frozen=True)
class Observed:
    """What became of one suggestion. Raises ValueError if a number in it is not finite."""

    number: int
    """Counts the arm's suggestions from 0."""

    params: Settings
    """What was suggested: dotted job keys."""

    value: float | None
    """The objective. None: the setting failed, or is infeasible, as one that diverged is."""

    state: Literal["done", "pruned", "failed", "infeasible"] | None
    """None: still running."""

    rungs: Mapping[int, float] = field(default_factory=dict)
    """The objective at each rung that was reached, by step. Rungs are shares of the budget and counted in order, as
    the steps differ where the batch size is tuned."""

    def __post_init__(self) -> None:
        numbers = [*self.rungs.values(), *([] if self.value is None else [self.value])]
        if not all(math.isfinite(number) for number in numbers):
            raise ValueError(
                f"suggestion {self.number} has value {self.value} and rungs {dict(self.rungs)}: not finite"
            )


def study_of(mode: str, *, sampler: BaseSampler | None = None, pruner: BasePruner | None = None) -> Study:
    """Make an empty study in memory."""
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return optuna.create_study(
        storage=optuna.storages.InMemoryStorage(),
        sampler=sampler or optuna.samplers.RandomSampler(seed=0),
        pruner=pruner or optuna.pruners.NopPruner(),
        direction="maximize" if mode == "max" else "minimize",
    )


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """Have torch and the BLAS of scipy compute in this thread alone while this lasts. A process of few points gains
    nothing from more, which wait for one another while ranks have the processors; and what is suggested should not be a
    matter of how many there are. Optuna asks OpenBLAS by a variable, which one that is loaded already never reads."""
    import torch
    from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with threadpool_limits(limits=1, user_api="blas"):
            yield
    finally:
        torch.set_num_threads(before)


def walk(trial: Trial, spaces: Mapping[str, Space], base: Settings) -> dict[str, JsonValue]:
    """Ask for the keys one after the other, as what is suggested for a key decides whether another is tuned."""
    values, params = dict(base), dict[str, JsonValue]()
    for key, space in spaces.items():
        if conditions.holds(space, values):
            values[key] = params[key] = _ask(trial, key, space)
    return params


def _ask(trial: Trial, key: str, space: Space) -> JsonValue:
    from optuna.distributions import FloatDistribution, IntDistribution

    if space.choices is not None:
        return decoded_value(space, trial.suggest_categorical(key, _coded_choices(space)))
    distribution = distribution_of(space)
    if isinstance(distribution, IntDistribution):
        low, high, step = distribution.low, distribution.high, distribution.step
        return trial.suggest_int(key, low, high, log=distribution.log, step=step)
    assert isinstance(distribution, FloatDistribution)
    return trial.suggest_float(key, distribution.low, distribution.high, log=distribution.log, step=distribution.step)


def sampler_of(tune: Tune, *, seed: int, fixed: bool) -> BaseSampler:
    """Make the sampler that a sweep asks for. fixed: every key is in every trial; else tpe models together those that
    are tuned together."""
    import optuna

    if tune.sampler == "random":
        return optuna.samplers.RandomSampler(seed=seed)
    if tune.sampler == "gp":
        return optuna.samplers.GPSampler(
            seed=seed,
            n_startup_trials=STARTUP,
            deterministic_objective=False,
            warn_independent_sampling=False,
        )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)  # `group` has been there since 2.8
        return optuna.samplers.TPESampler(
            seed=seed,
            n_startup_trials=STARTUP,
            n_ei_candidates=24,
            multivariate=True,
            group=not fixed,
            constant_liar=False,  # the rebuilt study holds no running trials
        )


def pruner_of(tune: Tune) -> BasePruner:
    """Make the pruner that a sweep asks for."""
    import optuna

    if tune.prune == "median":
        return optuna.pruners.MedianPruner(
            n_startup_trials=MEDIAN_STARTUP, n_warmup_steps=0, interval_steps=1, n_min_trials=1
        )
    return optuna.pruners.SuccessiveHalvingPruner(
        min_resource=1, reduction_factor=HALVING, min_early_stopping_rate=0, bootstrap_count=0
    )


def distribution_of(space: Space) -> BaseDistribution:
    """Return the distribution of a key, in Optuna's terms."""
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    if space.choices is not None:
        return CategoricalDistribution(_coded_choices(space))
    low, high = ends_of(space)
    if space.step is not None:
        # The last value on the lattice. Optuna would take it too, with a warning.
        first, step = Decimal(str(low)), Decimal(str(space.step))
        high = float(first + (Decimal(str(high)) - first) // step * step)
    if space.integer:
        return IntDistribution(int(low), int(high), log=space.log, step=int(space.step or 1))
    return FloatDistribution(float(low), float(high), log=space.log, step=space.step)


def ends_of(space: Space) -> tuple[float, float]:
    """Return the ends of a range."""
    assert space.low is not None
    assert space.high is not None
    return space.low, space.high


def holds_settings(spaces: Mapping[str, Space], base: Settings, params: Settings) -> bool:
    """Return whether every key that is tuned under these settings has a value within its space."""
    return all(
        key in params and holds_value(spaces[key], params[key]) for key in conditions.active(spaces, base, params)
    )


def holds_value(space: Space, value: JsonValue) -> bool:
    """Return whether a value lies within the space of its key."""
    if space.choices is not None:
        return conditions.among(value, space.choices)
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    low, high = ends_of(space)
    step = space.step or (1 if space.integer else None)
    on_lattice = step is None or abs((value - low) / step - round((value - low) / step)) < 1e-8
    return low <= value <= high and on_lattice


def state_of(observed: Observed) -> TrialState:
    """Return how a trial ended, in Optuna's terms."""
    from optuna.trial import TrialState

    if observed.state == "pruned":
        return TrialState.PRUNED
    return TrialState.COMPLETE if observed.state == "done" and observed.value is not None else TrialState.FAIL


def _coded_choices(space: Space) -> list[CategoricalChoiceType]:
    """Encode choices as Optuna takes them: it knows None, texts and numbers, and no lists."""
    choices = space.choices or []
    return [canonical(choice) for choice in choices] if _is_coded(space) else [_scalar(choice) for choice in choices]


def _coded(space: Space, value: JsonValue) -> CategoricalChoiceType:
    if not _is_coded(space):
        return _scalar(value)
    return canonical(next(choice for choice in space.choices or [] if identity(choice) == identity(value)))


def _scalar(value: JsonValue) -> CategoricalChoiceType:
    assert not isinstance(value, list | dict), "a space with a list among its choices is coded"
    return value


def decoded_value(space: Space, value: JsonValue) -> JsonValue:
    """Return the value that Optuna's stands for."""
    if not _is_coded(space):
        return value
    return next(choice for choice in space.choices or [] if canonical(choice) == value)


def _is_coded(space: Space) -> bool:
    return any(isinstance(choice, list) for choice in space.choices or [])


def frozen_trial(observed: Observed, space: Mapping[str, BaseDistribution], spaces: Mapping[str, Space]) -> FrozenTrial:
    """Make the trial that Optuna learns from."""
    from optuna.trial import TrialState, create_trial

    state, infeasible = state_of(observed), observed.state == "infeasible"
    return create_trial(
        # Samplers pass over what failed; what is infeasible is to steer them away.
        state=TrialState.PRUNED if infeasible else state,
        constraints={"feasible": 1.0} if infeasible else None,
        value=observed.value if state is TrialState.COMPLETE else None,
        params={key: _coded(spaces[key], observed.params[key]) for key in space if key in observed.params},
        distributions={key: distribution for key, distribution in space.items() if key in observed.params},
        intermediate_values=dict(_reports(observed)),
    )


def climb(study: Study, observed: Observed) -> tuple[Trial, bool]:
    """Report the rungs one by one to a new trial of `study`, asking the pruner at each, as halving keeps in the trial
    which rungs it has passed. Returns the trial and what the pruner said at the last."""
    trial, stop = study.ask(), False
    for step, value in _reports(observed):
        trial.report(value, step)
        stop = trial.should_prune()
    return trial, stop


def _reports(observed: Observed) -> Iterator[tuple[int, float]]:
    """Yield (step for Optuna, objective) for each rung. Optuna's halving puts rung k at step HALVING ** k, so each of
    our rungs becomes one of its own, however far apart they are."""
    for index, step in enumerate(sorted(observed.rungs)):
        yield HALVING**index, observed.rungs[step]
