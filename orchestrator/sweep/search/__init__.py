"""What to try next inside an arm, and what to stop early: Optuna as a function of what has been observed.

Nothing is kept between calls. A study is rebuilt in memory from the arm's observations, in the order of their
numbers. Suggestion `number` sees the observations up to `number - tune.parallel` and no others, and so does its
pruning: who finishes first and how often the driver died change nothing.

Arms are searched alike, so that two that do the same thing are frozen at the same setting. What is drawn at random is
a hash of (tune.seed, number, key): an arm that tunes a key more has the same values of the others. What is modelled
comes from Optuna's sampler, seeded by (tune.seed, number): the same points come back for the same version of Optuna
(pinned) and, with `gp`, of torch and scipy. Runs begun by rules 1 keep what those had: samplers seeded by the arm's
label, and Optuna's own random draws.

Imports optuna inside functions, as the command line must answer at once.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import math
from collections.abc import Collection, Iterator, Mapping, Sequence
from decimal import Decimal
from typing import TYPE_CHECKING, Literal

from pydantic import JsonValue

from jobs.config import canonical
from orchestrator.sweep.search.sampling import (
    STARTUP,
    Observed,
    climb,
    decoded_value,
    distribution_of,
    ends_of,
    frozen_trial,
    holds_settings,
    holds_value,
    one_thread,
    pruner_of,
    sampler_of,
    state_of,
    study_of,
    walk,
)
from orchestrator.sweep.space import conditions
from orchestrator.sweep.space.grid import Grid
from orchestrator.sweep.values import Settings

if TYPE_CHECKING:
    from orchestrator.sweep import Space, Tune


def suggest(
    tune: Tune,
    *,
    mode: Literal["max", "min"],
    sweep_seed: int,
    arm: str,
    number: int,
    history: Sequence[Observed],
    base: Settings | None = None,
    everywhere: Collection[str] | None = None,
    rules: int = 2,
) -> dict[str, JsonValue]:
    """Choose the settings of suggestion `number` (from 0) of an arm: values for the keys of `tune.space`.

    The defaults come first, what they lack filled from `base`, the arm's own values by dotted key. A grid follows with
    its other points, the same in every arm, in an order drawn once from the sweep's seed (sweep/space/grid.py), so that
    a budget below its size is a sample and not a corner of it. A key whose condition does not hold is left out
    (sweep/space/conditions.py).

    everywhere: the keys that every arm tunes, None for all; these order a grid. rules: of the run.
    Raises ValueError when the grid is exhausted (see `suggestions`), or when an observation that this suggestion
    depends on is missing.
    """
    base = {**(base or {}), "arm": arm}
    tried = defaults(tune, base)
    if number < len(tried):
        return tried[number]
    if tune.sampler == "grid":
        return _of_grid(
            tune, base, number, sweep_seed=sweep_seed, arm=arm, tried=tried, everywhere=everywhere, rules=rules
        )
    spaces = conditions.within(tune.space, base)
    # A default that was filled from the arm may lie outside the space: it is tried and can win, but the sampler cannot
    # be told.
    visible = [] if tune.sampler == "random" else _visible(tune, number=number, history=history)
    seen = [observed for observed in visible if holds_settings(spaces, base, observed.params)]
    if rules > 1 and (tune.sampler == "random" or _starts_up(tune, seen)):
        return drawn(spaces, base, seed=sweep_seed, number=number)
    fixed = conditions.is_fixed(spaces)
    seed = _sampler_seed([sweep_seed] if rules > 1 else [sweep_seed, arm], number)
    study = study_of(mode, sampler=sampler_of(tune, seed=seed, fixed=fixed))
    space = {key: distribution_of(own) for key, own in sorted(spaces.items())}
    study.add_trials([frozen_trial(observed, space, spaces) for observed in seen])
    with one_thread() if tune.sampler == "gp" else contextlib.nullcontext():
        if not fixed:
            return walk(study.ask(), spaces, base)
        return {key: decoded_value(spaces[key], value) for key, value in study.ask(space).params.items()}


def should_prune(
    tune: Tune,
    *,
    mode: Literal["max", "min"],
    number: int,
    history: Sequence[Observed],
    rungs: Mapping[int, float],
    rung_steps: Sequence[int],
) -> bool:
    """Return whether suggestion `number` should stop at the rung it has just reached.

    rungs: this trial's objective at the rungs so far, by step; rung_steps: the steps of all its rungs, ascending, its
    end not among them. Defaults are never pruned: an arm must be able to fall back on the published setting. Raises
    ValueError for a rung that was skipped, a value that is not finite, or an observation that is missing.
    """
    reached = sorted(step for step in rungs if step in rung_steps)
    if reached != list(rung_steps[: len(reached)]):
        raise ValueError(f"suggestion {number} has rungs {reached} of {list(rung_steps)}: the steps before are missing")
    if tune.prune == "none" or number < len(tune.defaults) or not reached:
        return False
    current = Observed(number, {}, None, "done", {step: rungs[step] for step in reached})
    study = study_of(mode, pruner=pruner_of(tune))
    for observed in _visible(tune, number=number, history=history):
        trial, _ = climb(study, observed)
        state = state_of(observed)
        study.tell(trial, observed.value if state.name == "COMPLETE" else None, state=state)
    return climb(study, current)[1]


def suggestions(tune: Tune, base: Settings | None = None, *, rules: int = 2) -> int:
    """Count the suggestions that an arm gets: its budget, or fewer when a grid ends before. rules: of the run."""
    if tune.sampler != "grid":
        return tune.trials
    tried = defaults(tune, base or {})
    grid = Grid(tune.space, base or {})
    return min(tune.trials, len(tried) + grid.size - len(_taken(grid, tried, rules)))


def defaults(tune: Tune, base: Settings) -> list[dict[str, JsonValue]]:
    """Return the settings tried first. What a default lacks is filled from `base`; what `base` lacks, or has as None
    where that is no choice, is left out and so left to the job. A key whose condition does not hold is left out too."""
    settings = []
    for given in tune.defaults:
        whole = {}
        for key in sorted(tune.space):
            value = given.get(key, base.get(key))
            if value is not None or key in given or (key in base and holds_value(tune.space[key], None)):
                whole[key] = value
        tuned = set(conditions.active(tune.space, base, whole))
        settings.append({key: value for key, value in whole.items() if key in tuned})
    return settings


def drawn(spaces: Mapping[str, Space], base: Settings, *, seed: int, number: int) -> dict[str, JsonValue]:
    """Draw values at random for the keys that are tuned, each a function of (seed, number, key) alone."""
    values, params = dict(base), dict[str, JsonValue]()
    for key, space in spaces.items():
        if conditions.holds(space, values):
            digest = hashlib.sha256(canonical([seed, number, key]).encode()).digest()
            share = (int.from_bytes(digest[:8], "big") >> 11) / 2**53
            values[key] = params[key] = _at(space, share)
    return params


def _at(space: Space, share: float) -> JsonValue:
    """Return the value at a share in [0, 1) of a range, uniform on its own scale, or of its choices."""
    if space.choices is not None:
        return space.choices[int(share * len(space.choices))]
    low, high = ends_of(space)
    if space.integer and space.log:
        # Every whole number has the width of its own unit on the scale, as it has where the scale is plain.
        ends = math.log(low - 0.5), math.log(high + 0.5)
        return min(max(round(math.exp(ends[0] + share * (ends[1] - ends[0]))), int(low)), int(high))
    if space.integer or space.step is not None:
        step = Decimal(str(space.step or 1))
        count = int((Decimal(str(high)) - Decimal(str(low))) // step) + 1
        point = Decimal(str(low)) + step * int(share * count)
        return int(point) if space.integer else float(point)
    if space.log:
        value = math.exp(math.log(low) + share * (math.log(high) - math.log(low)))
        return min(max(value, float(low)), float(high))
    return min(float(low) + share * (float(high) - float(low)), float(high))


def _starts_up(tune: Tune, seen: Sequence[Observed]) -> bool:
    """Return whether the sampler would still draw at random: it counts what it can model."""
    counted = ("done",) if tune.sampler == "gp" else ("done", "pruned", "infeasible")
    ended = [observed for observed in seen if observed.state in counted]
    return sum(observed.value is not None or observed.state != "done" for observed in ended) < STARTUP


def _of_grid(
    tune: Tune,
    base: Settings,
    number: int,
    *,
    sweep_seed: int,
    arm: str,
    tried: Sequence[Settings],
    everywhere: Collection[str] | None,
    rules: int,
) -> dict[str, JsonValue]:
    """Return suggestion `number` of a grid, which comes after the defaults that were tried."""
    grid = Grid(tune.space, base, everywhere)
    taken = _taken(grid, tried, rules)
    whole = len(tried) + grid.size - len(taken)
    if number >= whole:
        raise ValueError(
            f"suggestion {number} of arm {arm!r}: the grid ends with {whole} suggestions; "
            "ask for no more than search.suggestions()"
        )
    points = grid.points(sweep_seed) if rules > 1 else _by_hash(tune, base, sweep_seed)
    others = (point for point in points if canonical(point) not in taken)
    return next(itertools.islice(others, number - len(tried), None))


def _taken(grid: Grid, tried: Sequence[Settings], rules: int) -> set[str]:
    """Find the points of a grid that are among the defaults, as text. Rules 1 took 0 and 0.0 for two points."""
    own = [(point, grid.own(point)) for point in tried]
    return {
        canonical(same)
        for point, same in own
        if same is not None and (rules > 1 or canonical(point) == canonical(same))
    }


def _by_hash(tune: Tune, base: Settings, sweep_seed: int) -> Iterator[dict[str, JsonValue]]:
    """Yield the points of a grid in the order of rules 1, which lists all of them."""
    points = conditions.combinations(tune.space, base, {key: space.choices or [] for key, space in tune.space.items()})
    by_text = {canonical(point): point for point in points}
    for text in sorted(by_text, key=lambda text: hashlib.sha256(f"{sweep_seed} {text}".encode()).digest()):
        yield by_text[text]


def _visible(tune: Tune, *, number: int, history: Sequence[Observed]) -> list[Observed]:
    """Return all observations that suggestion `number` may know of, in order. Raises ValueError if any is missing."""
    last = number - tune.parallel
    seen = {observed.number: observed for observed in history if observed.number <= last}
    missing = [str(n) for n in range(last + 1) if n not in seen or seen[n].state is None]
    if missing:
        raise ValueError(
            f"suggestion {number} with tune.parallel = {tune.parallel} depends on suggestions 0 to {last}; "
            f"not finished: {', '.join(missing)}"
        )
    return [seen[n] for n in sorted(seen)]


def _sampler_seed(of: Sequence[int | str], number: int) -> int:
    """Derive a seed of 32 bits. It is one-to-one in `number` (the factor is odd): a hash of it would sometimes give two
    numbers the same seed, and a sampler with the same seed and little history repeats itself."""
    start = int.from_bytes(hashlib.sha256(canonical(list(of)).encode()).digest()[:4], "big")
    return (start + 0x9E3779B1 * number) % 2**32
