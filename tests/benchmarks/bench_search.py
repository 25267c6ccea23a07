"""How long a suggestion takes after 100 observations. `make bench` prints it."""

from __future__ import annotations

import math
import time
from statistics import median
from typing import Any

import pytest

from orchestrator.sweep import Tune
from orchestrator.sweep.search import suggest
from orchestrator.sweep.search.sampling import Observed

SPACE: dict[str, Any] = {
    "optimizer.lr": {"low": 1e-4, "high": 1e-2, "log": True},
    "loss.temperature": {"choices": [0.05, 0.1, 0.2]},
    "optimizer.warmup": {"low": 0.0, "high": 0.3},
}


@pytest.mark.parametrize("sampler", ["random", "tpe", "gp"])
def test_a_suggestion_after_100_observations(sampler: str) -> None:
    """Beside trials that take seconds at least, a suggestion must not count."""
    history: list[Observed] = []
    for number in range(100):
        section = Tune.model_validate({"trials": 120, "sampler": "random", "space": SPACE})
        params = suggest(section, mode="max", sweep_seed=0, arm="a", number=number, history=[])
        lr, warmup = params["optimizer.lr"], params["optimizer.warmup"]
        assert isinstance(lr, float)
        assert isinstance(warmup, float)
        value = -((math.log10(lr) + 2.7) ** 2) - warmup
        history.append(Observed(number, params, value, "done"))
    section = Tune.model_validate({"trials": 120, "sampler": sampler, "space": SPACE})
    times = []
    for seed in range(6):
        start = time.perf_counter()
        suggest(section, mode="max", sweep_seed=seed, arm="a", number=100, history=history)
        times.append(time.perf_counter() - start)
    print(
        f"\nsuggest, {sampler}, 100 observations: {median(times[1:]) * 1e3:.0f} ms (first call {times[0] * 1e3:.0f} ms)"
    )
    assert median(times) < 5
