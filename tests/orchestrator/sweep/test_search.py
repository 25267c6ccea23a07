"""Suggestions and pruning are functions of the history: reproducible, blind to what comes too late, and useful."""

from __future__ import annotations

import json
import math
import os
import random
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import JsonValue
from threadpoolctl import threadpool_info, threadpool_limits  # type: ignore[import-untyped]

from jobs.config import canonical
from orchestrator.sweep import Tune
from orchestrator.sweep.search import _sampler_seed, defaults, should_prune, suggest, suggestions
from orchestrator.sweep.search.sampling import Observed
from orchestrator.sweep.space.grid import permuted

ROOT = Path(__file__).parents[3]
SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "loss.temperature": {"choices": [0.05, 0.1, 0.2]},
    "model.layers": {"low": 1, "high": 6},
    "optimizer.warmup": {"low": 0.0, "high": 0.35, "step": 0.1},
}
GRID: dict[str, Any] = {"optimizer.lr": {"choices": [1e-4, 1e-3, 1e-2]}, "loss.symmetric": {"choices": [True, False]}}
State = Literal["done", "pruned", "failed"]
FIRST_RATES = [0.0004388024699794923, 0.00017650580627075213]
KERNELS = {name: value for name, value in os.environ.items() if name.startswith(("OPENBLAS_", "MKL_"))}
"""What chooses the routines of linear algebra: with others gp rounds differently."""


def tune(**changes: Any) -> Tune:
    return Tune.model_validate({"trials": 16, "space": SPACE} | changes)


def quality(params: Mapping[str, Any]) -> float:
    """Best at lr 2e-3, temperature 0.1, four layers; warm-up does nothing."""
    rate = math.log10(params["optimizer.lr"] / 2e-3)
    temperature = math.log2(params["loss.temperature"] / 0.1)
    return -(rate**2) - 0.2 * abs(temperature) - 0.01 * float(params["model.layers"] - 4) ** 2


def ask(section: Tune, number: int, history: list[Observed], **changes: Any) -> dict[str, Any]:
    known: dict[str, Any] = {"mode": "max", "sweep_seed": 7, "arm": "infonce", "number": number, "history": history}
    return suggest(section, **(known | changes))


def walk(section: Tune, trials: int, *, mode: Literal["max", "min"] = "max", **changes: Any) -> list[Observed]:
    """The search as a driver would carry it out, with a few failed and pruned suggestions in it."""
    history: list[Observed] = []
    for number in range(trials):
        params = ask(section, number, history, mode=mode, **changes)
        value = quality(params) * (1 if mode == "max" else -1)
        state: State = "failed" if number % 7 == 3 else "pruned" if number % 7 == 5 else "done"
        rungs = {} if state == "failed" else {100: value - 0.1, 200: value - 0.05}
        history.append(Observed(number, params, value if state == "done" else None, state, rungs))
    return history


HISTORY = walk(tune(sampler="random"), 14)


# Suggestions


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_the_order_of_the_history_does_not_matter(sampler: str) -> None:
    """Mutant check: rebuilding the study in the order given fails this for tpe and gp."""
    section = tune(sampler=sampler)
    shuffled = random.Random(1).sample(HISTORY, len(HISTORY))
    assert shuffled != HISTORY
    assert ask(section, 14, shuffled) == ask(section, 14, HISTORY)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_the_history_does_matter(sampler: str) -> None:
    """Without this the tests of reproducibility would hold for a sampler that ignores what it is told."""
    other = [Observed(one.number, one.params, one.value and -one.value, one.state, one.rungs) for one in HISTORY]
    assert ask(tune(sampler=sampler), 14, HISTORY) != ask(tune(sampler=sampler), 14, other)


def test_gp_computes_in_one_thread_and_leaves_torch_and_blas_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside ranks that train, two threads on two processors took three times as long; in BLAS alone, eight times."""
    import optuna
    import torch

    def blas() -> set[int]:
        return {library["num_threads"] for library in threadpool_info() if library["user_api"] == "blas"}

    seen, before = list[tuple[int, set[int]]](), torch.get_num_threads()
    ask_relative = optuna.samplers.GPSampler.sample_relative

    def sample_relative(*arguments: Any) -> Any:
        seen.append((torch.get_num_threads(), blas()))
        return ask_relative(*arguments)

    monkeypatch.setattr(optuna.samplers.GPSampler, "sample_relative", sample_relative)
    torch.set_num_threads(2)
    try:
        with threadpool_limits(limits=2, user_api="blas"):
            ask(tune(sampler="gp"), 14, HISTORY)
            assert (seen, torch.get_num_threads(), blas()) == ([(1, {1})], 2, {2})
    finally:
        torch.set_num_threads(before)


def test_tpe_learns_from_pruned_suggestions_and_not_from_failed_ones() -> None:
    """Mutant check: telling pruned ones as failed fails this."""
    failed = [Observed(o.number, o.params, o.value, "failed" if o.state == "pruned" else o.state) for o in HISTORY]
    without = [
        Observed(o.number, o.params if o.state != "failed" else HISTORY[0].params, o.value, o.state, o.rungs)
        for o in HISTORY
    ]
    assert any(one.state == "pruned" for one in HISTORY)
    assert any(one.state == "failed" for one in HISTORY)
    assert ask(tune(), 14, failed) != ask(tune(), 14, HISTORY)
    assert ask(tune(), 14, without) == ask(tune(), 14, HISTORY)


def test_an_infeasible_setting_steers_the_search_away_and_a_failed_one_does_not() -> None:
    """Large rates do not fit, and nothing else is known of them. Mutant check: told as failed, both are asked for
    equally often."""
    feasible = [Observed(n, {**HISTORY[n].params, "optimizer.lr": 1e-3}, 0.5 + 0.001 * n, "done") for n in range(8)]

    def large(state: Literal["infeasible", "failed"]) -> int:
        beyond = [Observed(n, {**HISTORY[n].params, "optimizer.lr": 8e-3}, None, state) for n in range(8, 14)]
        asked = (ask(tune(), 14, [*feasible, *beyond], sweep_seed=seed) for seed in range(30))
        return sum(params["optimizer.lr"] > 4e-3 for params in asked)

    assert large("infeasible") < large("failed")


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_sampler_takes_a_history_of_nothing_but_infeasible_settings(sampler: str) -> None:
    history = [Observed(n, HISTORY[n].params, None, "infeasible") for n in range(14)]
    assert ask(tune(sampler=sampler), 14, history)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_a_fresh_process_suggests_the_same(sampler: str) -> None:
    """Also with the space's keys in another order, another hash seed, and the history read back from JSON."""
    space = GRID if sampler == "grid" else SPACE
    section = tune(sampler=sampler, space=space)
    history = [] if sampler == "grid" else HISTORY
    number = 4 if sampler == "grid" else 14
    turned = tune(sampler=sampler, space=dict(reversed(space.items())))
    rows = [[o.number, dict(o.params), o.value, o.state, dict(o.rungs)] for o in history]
    program = (
        "import json, sys; from orchestrator.sweep.search import *; from orchestrator.sweep import Tune\n"
        "section, rows, number = json.load(sys.stdin)\n"
        "rows = [Observed(n, p, v, s, {int(k): x for k, x in r.items()}) for n, p, v, s, r in rows]\n"
        "found = suggest(Tune.model_validate(section), mode='max', sweep_seed=7, arm='infonce', number=number,"
        " history=rows)\n"
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        input=json.dumps([turned.model_dump(mode="json"), rows, number]),
        env={"PYTHONPATH": str(ROOT), "PYTHONHASHSEED": "3", **KERNELS},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == ask(section, number, history)
    assert done.stderr == ""


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize("parallel", [1, 3])
def test_only_the_history_up_to_number_minus_parallel_is_seen(sampler: str, parallel: int) -> None:
    """So the same points come whoever finishes first. Mutant check: keeping later entries fails this."""
    section = tune(sampler=sampler, parallel=parallel)
    seen = [one for one in HISTORY if one.number <= 13 - parallel]
    lies = [Observed(n, HISTORY[n].params, 1e6, "done") for n in range(14 - parallel, 14)]
    assert ask(section, 13, seen) == ask(section, 13, [*lies, *seen])
    assert ask(section, 13, seen) != ask(
        section, 13, [*seen[:-1], Observed(len(seen) - 1, seen[-1].params, 1.0, "done")]
    )


@pytest.mark.parametrize("gone", ["missing", "running"])
def test_a_suggestion_that_is_asked_too_early_is_refused(gone: str) -> None:
    kept = [one for one in HISTORY if one.number != 9]
    if gone == "running":
        kept.append(Observed(9, HISTORY[9].params, None, None))
    with pytest.raises(ValueError, match=r"depends on suggestions 0 to 12; not finished: 9"):
        ask(tune(parallel=2), 14, kept)


@given(st.integers(0, 2**31), st.text(max_size=20), st.integers(0, 10**6), st.integers(0, 10**6))
@settings(deadline=None, max_examples=200)
def test_two_numbers_never_share_a_sampler_seed(sweep_seed: int, arm: str, one: int, other: int) -> None:
    seeds: tuple[list[int | str], ...] = ([sweep_seed], [sweep_seed, arm])
    for of in seeds:
        assert (_sampler_seed(of, one) == _sampler_seed(of, other)) == (one == other)


def test_sampler_seeds_of_an_arm_do_not_collide() -> None:
    """Mutant check: 32 bits of a hash of (sweep seed, arm, number) fail this."""
    assert len({_sampler_seed([0], number) for number in range(200_000)}) == 200_000


def test_sweep_seeds_search_differently() -> None:
    section = tune(sampler="random")
    points = [canonical(ask(section, number, [], sweep_seed=seed)) for number in range(8) for seed in (0, 1)]
    assert len(set(points)) == len(points)


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random", "grid"])
def test_arms_that_are_the_same_method_are_searched_alike(sampler: str) -> None:
    """An idle switch: the response is a function of the settings. Mutant check: seeding by the label fails this."""
    space = GRID if sampler == "grid" else SPACE
    section = tune(sampler=sampler, space=space, trials=6)
    if sampler == "grid":
        points = [[ask(section, number, [], arm=arm) for number in range(6)] for arm in ("off", "on")]
        assert points[0] == points[1]
    else:
        assert walk(section, 12, arm="off") == walk(section, 12, arm="on")


def test_runs_of_the_first_rules_keep_the_label_in_their_seeds() -> None:
    """The values that the first version drew for this space; what a begun run would have tried it still tries."""
    section = tune(sampler="random")
    points = [ask(section, 0, [], arm=arm, rules=1) for arm in ("infonce", "flatnce")]
    assert points[0] != points[1]
    assert [point["optimizer.lr"] for point in points] == FIRST_RATES


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_a_key_more_in_one_arm_leaves_the_drawn_values_of_the_others_alone(sampler: str) -> None:
    """Optuna draws key after key from one stream, so a key more would shift all that follow it."""
    more = SPACE | {"augment.crop": {"low": 0.2, "high": 0.9}, "model.heads": {"choices": [1, 2, 4]}}
    for number in range(4):
        few, many = (ask(tune(sampler=sampler, space=space), number, HISTORY[:number]) for space in (SPACE, more))
        assert {key: many[key] for key in few} == few


@given(number=st.integers(0, 10**6), seed=st.integers(0, 2**31 - 1))
def test_drawn_values_lie_in_their_space(number: int, seed: int) -> None:
    values = ask(tune(sampler="random"), number, [], sweep_seed=seed)
    assert 1e-4 <= values["optimizer.lr"] <= 1e-2
    assert values["loss.temperature"] in (0.05, 0.1, 0.2)
    assert values["model.layers"] in range(1, 7)
    assert min(abs(values["optimizer.warmup"] - k / 10) for k in range(4)) < 1e-12


def test_drawn_values_are_uniform_on_the_scale_of_their_key() -> None:
    """Mutant check: a rate that is drawn uniformly and not on its log scale fails this."""
    draws = [ask(tune(sampler="random"), number, []) for number in range(4000)]
    shares = [math.log(draw["optimizer.lr"] / 1e-4) / math.log(100) for draw in draws]
    assert max(abs(sorted(shares)[k] - k / 4000) for k in range(4000)) < 1.63 / math.sqrt(4000)  # Kolmogorov, 1 %
    for key, values in (("loss.temperature", (0.05, 0.1, 0.2)), ("model.layers", range(1, 7))):
        counts = [sum(draw[key] == value for draw in draws) for value in values]
        assert max(abs(count * len(counts) / 4000 - 1) for count in counts) < 0.12
    pairs = [(draw["optimizer.lr"] > 1e-3, draw["model.layers"] > 3) for draw in draws]
    assert abs(sum(a == b for a, b in pairs) / 4000 - 0.5) < 0.04, "keys are independent of each other"


def test_the_grids_of_arms_that_share_keys_agree_on_them_as_far_as_the_budget_reaches() -> None:
    """An arm with a key more tries the shared values in the same order. Mutant check: hashing whole points fails."""
    few = {"optimizer.lr": {"choices": [10.0**-k for k in range(1, 7)]}}
    more = few | {"model.layers": {"choices": [1, 2]}}
    orders = []
    for space in (few, more):
        points = [
            ask(tune(sampler="grid", space=space), number, [], everywhere=["optimizer.lr"])["optimizer.lr"]
            for number in range(6 if space is few else 12)
        ]
        orders.append(list(dict.fromkeys(points)))
    assert orders[0] == orders[1]


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
def test_values_lie_in_the_space_and_are_what_json_gives_back(sampler: str) -> None:
    for one in walk(tune(sampler=sampler), 10):
        values = dict(one.params)
        assert json.loads(json.dumps(values)) == values
        assert list(values) == sorted(SPACE)
        assert type(values["optimizer.lr"]) is float
        assert 1e-4 <= values["optimizer.lr"] <= 1e-2
        assert values["loss.temperature"] in (0.05, 0.1, 0.2)
        assert type(values["model.layers"]) is int
        assert 1 <= values["model.layers"] <= 6
        warmup = values["optimizer.warmup"]
        assert isinstance(warmup, float)
        assert min(abs(warmup - k / 10) for k in range(4)) < 1e-12


@given(
    low=st.integers(-5, 5),
    span=st.sampled_from([0.3, 1, 2.5, 7]),
    step=st.sampled_from([0.1, 0.25, 0.4, 1, 3]),
    seed=st.integers(0, 99),
)
@settings(deadline=None, max_examples=30)
def test_a_step_that_does_not_divide_the_range_stays_inside_it(low: int, span: float, step: float, seed: int) -> None:
    """Optuna warns about such a range, and warnings are errors here. Mutant check: not lowering `high` fails this."""
    section = tune(sampler="random", space={"x": {"low": low, "high": low + span, "step": step}})
    value = ask(section, 0, [], sweep_seed=seed)["x"]
    assert low <= value <= low + span
    assert math.isclose((value - low) / step, round((value - low) / step), abs_tol=1e-9)


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_was_learned_beats_chance(sampler: str, mode: Literal["max", "min"]) -> None:
    """A few suggestions after 24 random observations, in either direction.

    Mutant check: always maximising fails this for min."""
    sign = 1 if mode == "max" else -1
    history = []
    for number in range(24):
        params = ask(tune(sampler="random"), number, [])
        history.append(Observed(number, params, sign * quality(params), "done"))
    learned, chance = (
        [quality(ask(tune(sampler=kind), 24, history, mode=mode, sweep_seed=seed)) for seed in range(16)]
        for kind in (sampler, "random")
    )
    assert sum(learned) > sum(chance) / 2, "the mean distance from the best is at least halved"


# Defaults and grids


def test_defaults_come_first_and_are_completed_from_the_arm() -> None:
    section = tune(defaults=[{"optimizer.lr": 3e-3}, {"loss.temperature": 0.2}], space=GRID | SPACE)
    base = {"optimizer.lr": 1e-3, "loss.temperature": 0.07, "model.layers": 2, "optimizer.warmup": 0.05}
    base |= {"loss.symmetric": False}
    assert ask(section, 0, [], base=base) == base | {"optimizer.lr": 3e-3}
    assert ask(section, 1, [], base=base) == base | {"loss.temperature": 0.2}
    assert defaults(section, base) == [ask(section, 0, [], base=base), ask(section, 1, [], base=base)]


def test_what_neither_the_default_nor_the_arm_gives_is_left_to_the_job() -> None:
    """`optimizer.clip` is None in a job without clipping, and no sweep file can say None."""
    section = tune(defaults=[{"optimizer.lr": 1e-3}], space=SPACE | {"optimizer.clip": {"low": 0.1, "high": 10.0}})
    assert ask(section, 0, [], base={"optimizer.clip": None}) == {"optimizer.lr": 1e-3}


def test_false_and_zero_are_values() -> None:
    section = tune(defaults=[{}], space={"loss.symmetric": {"choices": [True, False]}, "x": {"low": 0, "high": 3}})
    assert ask(section, 0, [], base={"loss.symmetric": False, "x": 0}) == {"loss.symmetric": False, "x": 0}


@pytest.mark.parametrize("sampler", ["tpe", "gp"])
def test_a_default_outside_the_space_is_tried_and_the_sampler_goes_on(sampler: str) -> None:
    """Mutant check: telling it to Optuna all the same raises."""
    section = tune(sampler=sampler, defaults=[{}])
    base = {"optimizer.lr": 0.5, "loss.temperature": 0.07, "model.layers": 2, "optimizer.warmup": 0.05}
    first = ask(section, 0, [], base=base)
    history = [Observed(0, first, 0.9, "done"), *HISTORY[1:]]
    assert first == base
    other = [Observed(0, first, -9.0, "done"), *HISTORY[1:]]
    assert ask(section, 14, history, base=base) == ask(section, 14, other, base=base)


def test_a_grid_is_walked_once_and_is_the_same_in_every_arm() -> None:
    section = tune(sampler="grid", space=GRID, trials=99)
    points = [ask(section, number, []) for number in range(suggestions(section))]
    assert len(points) == 6
    assert len({canonical(point) for point in points}) == 6
    assert points == [ask(section, number, [], arm="flatnce") for number in range(6)]
    assert points != [ask(section, number, [], sweep_seed=8) for number in range(6)]


def test_a_default_is_not_tried_again_by_the_grid() -> None:
    """Mutant check: walking the whole grid after the defaults fails this."""
    inside, outside = {"optimizer.lr": 1e-3, "loss.symmetric": True}, {"optimizer.lr": 5e-3, "loss.symmetric": True}
    section = tune(sampler="grid", space=GRID, defaults=[inside, outside])
    points = [ask(section, number, []) for number in range(suggestions(section))]
    assert points[:2] == [inside, outside]
    assert len(points) == len({canonical(point) for point in points}) == 7


def test_the_end_of_a_grid_is_an_error_that_says_so() -> None:
    with pytest.raises(ValueError, match="the grid ends with 6 suggestions"):
        ask(tune(sampler="grid", space=GRID), 6, [])


def test_a_budget_ends_a_grid_too() -> None:
    assert suggestions(tune(sampler="grid", space=GRID, trials=4)) == 4
    assert suggestions(tune(sampler="tpe", trials=4)) == 4


FIRST_GRID = [
    (True, 0.001), (False, 0.01), (False, 0.001), (True, 0.0001), (True, 0.01), (False, 0.0001)
]  # fmt: skip
"""The order of (symmetric, lr) that the first version gave GRID for the seed 7."""


def test_a_grid_of_the_first_rules_keeps_its_order() -> None:
    """As the first version hashed it, with defaults and with conditions. Mutant check: today's order fails this."""
    named = [{"loss.symmetric": symmetric, "optimizer.lr": lr} for symmetric, lr in FIRST_GRID]
    section = tune(sampler="grid", space=GRID, trials=99)
    assert [ask(section, number, [], rules=1) for number in range(6)] == named
    defaults_first = [named[0], {"loss.symmetric": True, "optimizer.lr": 5e-3}]
    section = tune(sampler="grid", space=GRID, trials=99, defaults=defaults_first)
    assert suggestions(section, rules=1) == 7
    assert [ask(section, number, [], rules=1) for number in range(7)] == [*defaults_first, *named[1:]]
    space = {key: CONDITIONAL[key] for key in ("optimizer.name", "optimizer.schedule", "optimizer.warmup")}
    section, base = tune(sampler="grid", space=space), OWN | {"arm": "infonce"}
    sgd = {"optimizer.name": "sgd", "optimizer.schedule": "cosine"}
    assert [ask(section, number, [], base=base, rules=1) for number in range(4)] == [
        {"optimizer.name": "adamw"},
        sgd | {"optimizer.warmup": 0.1},
        sgd | {"optimizer.warmup": 0.0},
        sgd | {"optimizer.schedule": "linear"},
    ]


def test_the_first_rules_took_0_and_0_0_for_two_points() -> None:
    space = {"loss.margin": {"choices": [0, 1]}}
    section = tune(sampler="grid", space=space, defaults=[{}], trials=9)
    counts = [suggestions(section, {"loss.margin": 0.0}, rules=rules) for rules in (1, 2)]
    assert counts == [3, 2]
    for rules, count in zip((1, 2), counts, strict=True):
        points = [ask(section, n, [], base={"loss.margin": 0.0}, rules=rules) for n in range(count)]
        assert len({canonical(point) for point in points}) == count


@st.composite
def conditional_grids(draw: st.DrawFn) -> tuple[dict[str, Any], dict[str, int], list[str]]:
    """A space of small grids, each key conditional on some of those before; an arm's own values; and shared keys."""
    keys, space = ["a", "b", "c", "d", "e"], dict[str, Any]()
    for index, key in enumerate(keys):
        space[key] = {"choices": draw(st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True))}
        parents = draw(st.sets(st.sampled_from([*keys[:index], "z"]), max_size=2))
        if parents:
            space[key]["when"] = {
                parent: draw(st.lists(st.integers(0, 3), min_size=1, max_size=3)) for parent in parents
            }
    values = {key: draw(st.integers(0, 3)) for key in [*keys, "z"]}
    return space, values, draw(st.lists(st.sampled_from(keys), unique=True))


@given(conditional_grids(), st.integers(0, 5))
@settings(max_examples=200)
def test_a_grid_has_the_points_of_the_list_of_all_combinations(
    drawn: tuple[dict[str, Any], dict[str, int], list[str]], seed: int
) -> None:
    """Against rules 1, which list them. Mutant check: a key that is not tuned takes the value of a branch."""
    space, base, everywhere = drawn
    section = tune(sampler="grid", space=space, trials=10**6)
    listed = [ask(section, n, [], base=base, rules=1) for n in range(suggestions(section, base, rules=1))]
    common: dict[str, Any] = {"base": base, "everywhere": everywhere, "sweep_seed": seed}
    reached = [ask(section, n, [], **common) for n in range(suggestions(section, base))]
    assert sorted(map(canonical, listed)) == sorted(map(canonical, reached))
    assert len(set(map(canonical, reached))) == len(reached)


@given(st.integers(1, 5000), st.text(max_size=5))
def test_a_permutation_has_each_number_once(size: int, key: str) -> None:
    numbers = range(size) if size < 300 else range(300)
    images = [permuted(number, size, key) for number in numbers]
    assert len(set(images)) == len(images)
    assert min(images) >= 0
    assert max(images) < size


def test_a_permutation_is_as_good_as_random() -> None:
    """Each place equally often over keys, and the neighbour of an image unknown. chi2 at 0.1 %."""
    for size in (2, 3, 6, 17, 100):
        counts = [0] * size
        steps = [0] * size
        for key in range(200 * size):
            first, second = permuted(0, size, str(key)), permuted(1, size, str(key))
            counts[first] += 1
            steps[(second - first) % size] += 1
        assert steps[0] == 0
        for seen, cells in ((counts, size), (steps[1:], size - 1)):
            expected = sum(seen) / cells
            chi2 = sum((count - expected) ** 2 / expected for count in seen)
            assert chi2 < cells + 4.5 * math.sqrt(2 * cells) + 6, (size, seen)


def test_an_infinite_value_is_refused_before_it_reaches_the_sampler() -> None:
    with pytest.raises(ValueError, match=r"suggestion 3 .* not finite"):
        Observed(3, {}, 0.5, "done", {100: math.inf})


# Pruning

STEPS = [100, 200, 300]


def curve(number: int, *values: float, state: State | None = None) -> Observed:
    """A trial that reached `len(values)` rungs, the last value its result too."""
    state = state or ("done" if len(values) == len(STEPS) else "pruned")
    rungs = dict(zip(STEPS, values, strict=False))
    return Observed(number, {}, values[-1] if state == "done" else None, state, rungs)


def prune(section: Tune, history: list[Observed], *values: float, number: int | None = None, mode: str = "max") -> bool:
    return should_prune(
        section,
        mode="max" if mode == "max" else "min",
        number=len(history) + section.parallel - 1 if number is None else number,
        history=history,
        rungs=dict(zip(STEPS, values, strict=False)),
        rung_steps=STEPS,
    )


GOOD_AND_BAD = [curve(0, 0.1, 0.2, 0.3), curve(1, 0.3, 0.4, 0.5), curve(2, 0.2, 0.3, 0.4), curve(3, 0.4, 0.5, 0.6)]


@pytest.mark.parametrize("rungs", [(0.0,), (0.1, 0.1), (0.24, 0.34, 0.44)])
def test_none_never_prunes(rungs: tuple[float, ...]) -> None:
    assert not prune(tune(prune="none"), GOOD_AND_BAD, *rungs)


def test_median_prunes_what_is_below_the_median_of_finished_trials() -> None:
    section = tune(prune="median")
    assert prune(section, GOOD_AND_BAD, 0.24)
    assert not prune(section, GOOD_AND_BAD, 0.26)
    assert prune(section, GOOD_AND_BAD, 0.26, 0.34)
    assert not prune(section, GOOD_AND_BAD, 0.26, 0.36)


def test_median_prunes_what_is_above_it_when_less_is_better() -> None:
    assert prune(tune(prune="median"), GOOD_AND_BAD, 0.26, mode="min")
    assert not prune(tune(prune="median"), GOOD_AND_BAD, 0.24, mode="min")


def test_median_spares_the_first_trials() -> None:
    """Pruned and failed trials do not count as finished. Mutant check: a start-up of 3 fails this."""
    few = [*GOOD_AND_BAD[:3], curve(3, 0.9), curve(4, 0.9, 0.9, state="failed")]
    assert not prune(tune(prune="median"), few, 0.0)
    assert prune(tune(prune="median"), [*few, curve(5, 0.5, 0.6, 0.7)], 0.0)


def test_halving_lets_the_better_half_pass_each_rung() -> None:
    section = tune(prune="halving")
    assert not prune(section, [], 0.1), "the first is the best so far"
    assert prune(section, GOOD_AND_BAD, 0.29), "fifth of five: two may pass, 0.4 and 0.3"
    assert not prune(section, GOOD_AND_BAD, 0.31)
    assert prune(section, GOOD_AND_BAD, 0.31, 0.39)
    assert not prune(section, GOOD_AND_BAD, 0.31, 0.41)


def test_halving_judges_a_rung_by_what_reached_it_pruned_and_failed_trials_too() -> None:
    """Optuna keeps this in attributes that it writes while a trial runs; they are rebuilt by running the pruner again.

    Mutant check: adding the history's trials without replaying their rungs fails this."""
    history = [curve(0, 0.1, 0.2, 0.3), curve(1, 0.8, state="pruned"), curve(2, 0.9, 0.05, state="failed")]
    section = tune(prune="halving")
    assert prune(section, history, 0.7), "fourth of four at the first rung: 0.9 and 0.8 pass"
    assert not prune(section, history, 0.85, 0.21), "at the second rung there are three, 0.2 the best before"
    assert prune(section, history, 0.85, 0.19)


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_rungs_are_counted_not_matched_by_step(pruner: str) -> None:
    """A trial with twice the batch takes half the steps to the same share of its budget. Mutant check: reporting the
    steps themselves fails this."""
    twice = [
        Observed(o.number, {}, o.value, o.state, {step // 2: v for step, v in o.rungs.items()}) for o in GOOD_AND_BAD
    ]
    for values in [(0.2,), (0.35,), (0.35, 0.3), (0.35, 0.45)]:
        assert prune(tune(prune=pruner), twice, *values) == prune(tune(prune=pruner), GOOD_AND_BAD, *values)


@pytest.mark.parametrize("pruner", ["median", "halving"])
@given(st.data())
@settings(deadline=None, max_examples=25)
def test_pruning_neither_sees_what_comes_later_nor_the_order(pruner: str, data: st.DataObject) -> None:
    """Mutant check: keeping later entries fails this."""
    level = st.floats(0, 1).map(lambda x: round(x, 2))
    curves = data.draw(st.lists(st.lists(level, min_size=1, max_size=3), min_size=6, max_size=10))
    history = [curve(number, *values) for number, values in enumerate(curves)]
    mine = data.draw(st.lists(level, min_size=1, max_size=3))
    section = tune(prune=pruner, parallel=data.draw(st.integers(1, 3)))
    number = len(history) - 1
    seen = history[: number - section.parallel + 1]
    shuffled = data.draw(st.permutations(history))
    assert prune(section, seen, *mine, number=number) == prune(section, list(shuffled), *mine, number=number)


@pytest.mark.parametrize("pruner", ["median", "halving"])
def test_the_published_default_is_never_pruned(pruner: str) -> None:
    """An arm must be able to fall back on it. Mutant check: leaving the rule out fails this for both."""
    late = [*GOOD_AND_BAD, curve(4, 0.5, 0.6, 0.7)]
    assert prune(tune(prune=pruner), late, 0.0, number=5)
    assert not prune(tune(prune=pruner, defaults=[{}] * 6), late, 0.0, number=5)


def test_a_step_between_rungs_is_no_reason_to_prune_and_a_skipped_rung_is_an_error() -> None:
    section = tune(prune="median")
    common: dict[str, Any] = {"mode": "max", "number": 4, "history": GOOD_AND_BAD, "rung_steps": STEPS}
    assert not should_prune(section, rungs={50: 0.0}, **common)
    with pytest.raises(ValueError, match=r"has rungs \[200\] of \[100, 200, 300\]"):
        should_prune(section, rungs={200: 0.9}, **common)


def test_pruning_before_the_history_is_there_is_refused() -> None:
    with pytest.raises(ValueError, match="not finished: 1"):
        prune(tune(prune="median"), [GOOD_AND_BAD[0], *GOOD_AND_BAD[2:]], 0.5, number=4)


# Conditions

CONDITIONAL: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "optimizer.name": {"choices": ["adamw", "sgd"]},
    "optimizer.momentum": {"low": 0.5, "high": 0.99, "when": {"optimizer.name": "sgd"}},
    "optimizer.schedule": {"choices": ["cosine", "linear"], "when": {"optimizer.name": ["sgd"]}},
    "optimizer.warmup": {"choices": [0.0, 0.1], "when": {"optimizer.schedule": "cosine", "arm": "infonce"}},
    "loss.bias": {"low": -10.0, "high": 0.0, "when": {"loss.name": "siglip"}},
}
OWN: dict[str, JsonValue] = {"loss.name": "infonce", "optimizer.schedule": "linear", "optimizer.name": "adamw"}


def allowed(params: Mapping[str, Any], arm: str) -> bool:
    """By hand, for CONDITIONAL: which keys stand beside which."""
    sgd = params["optimizer.name"] == "sgd"
    warmup = sgd and params.get("optimizer.schedule") == "cosine" and arm == "infonce"
    keys = {"optimizer.lr", "optimizer.name"}
    keys |= {"optimizer.momentum", "optimizer.schedule"} if sgd else set()
    keys |= {"optimizer.warmup"} if warmup else set()
    return set(params) == keys | ({"loss.bias"} if arm == "siglip" else set())


@pytest.mark.parametrize("sampler", ["tpe", "gp", "random"])
@pytest.mark.parametrize("arm", ["infonce", "siglip"])
def test_a_key_is_suggested_where_its_condition_holds_and_nowhere_else(sampler: str, arm: str) -> None:
    """Twenty suggestions, each seeing those before it; the same again from the same history, in any order.
    Mutant check: walking the keys by name, so that a child comes before its parent, fails this."""
    section = tune(sampler=sampler, space=CONDITIONAL)
    base = OWN | {"loss.name": arm}
    history: list[Observed] = []
    for number in range(20):
        params = ask(section, number, history, arm=arm, base=base)
        assert allowed(params, arm), params
        assert 1e-4 <= params["optimizer.lr"] <= 1e-2
        history.append(Observed(number, params, -abs(math.log10(params["optimizer.lr"]) + 3), "done"))
    assert {one.params["optimizer.name"] for one in history} == {"adamw", "sgd"}
    again = ask(section, 20, random.Random(3).sample(history, 20), arm=arm, base=base)
    assert again == ask(section, 20, history, arm=arm, base=base)


def test_a_conditional_search_learns() -> None:
    """Momentum 0.9 under sgd is far the best, and in the end mostly asked for; at random it would be worth 0.4.
    Mutant check: leaving conditional observations out of the study fails this."""

    def worth(params: Mapping[str, Any]) -> float:
        return 1 - abs(params["optimizer.momentum"] - 0.9) if "optimizer.momentum" in params else 0.0

    section, found = tune(space=CONDITIONAL, trials=40), []
    for seed in range(3):
        history: list[Observed] = []
        for number in range(30):
            params = ask(section, number, history, base=OWN, sweep_seed=seed)
            history.append(Observed(number, params, worth(params), "done"))
        found += [worth(one.params) for one in history[15:]]
    assert sum(found) / len(found) > 0.6


def test_a_grid_has_a_point_once_whatever_its_conditions() -> None:
    """adamw; sgd times two schedules, one of which has two warm-ups in the arm `infonce`."""
    space = {key: CONDITIONAL[key] for key in ("optimizer.name", "optimizer.schedule", "optimizer.warmup")}
    section = tune(sampler="grid", space=space)
    for arm, size in (("infonce", 4), ("siglip", 3)):
        base = OWN | {"arm": arm}
        points = [ask(section, number, [], arm=arm, base=base) for number in range(suggestions(section, base))]
        assert len(points) == len({str(sorted(point.items())) for point in points}) == size


def test_a_default_leaves_out_what_is_not_tuned_beside_it() -> None:
    section = tune(space=CONDITIONAL, defaults=[{"optimizer.lr": 1e-3}, {"optimizer.name": "sgd"}])
    base = OWN | {"arm": "infonce", "optimizer.lr": 2e-3, "optimizer.momentum": 0.9}
    assert defaults(section, base) == [
        {"optimizer.lr": 1e-3, "optimizer.name": "adamw"},
        {"optimizer.lr": 2e-3, "optimizer.momentum": 0.9, "optimizer.name": "sgd", "optimizer.schedule": "linear"},
    ]


def test_a_condition_on_the_arm_alone_changes_nothing_for_the_arms_it_holds_in() -> None:
    """The points of runs that are under way stay: an arm whose every key is tuned is asked as without conditions."""
    plain = tune(space=GRID | SPACE, sampler="tpe")
    marked = tune(space=GRID | {key: one | {"when": {"arm": "infonce"}} for key, one in SPACE.items()}, sampler="tpe")
    for number in range(3):
        assert ask(plain, number, HISTORY) == ask(marked, number, HISTORY)
