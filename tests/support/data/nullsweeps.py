"""Null sweeps through Session: three arms of which none is better, with the executor's part played here.

`idle` differs from the base in a key that does nothing: what a trial measures is a function of its settings and its
seed. `equal` is an equal method: the same function of its settings, and noise of its own. Both are tuned before they
are confirmed, so there is tuning noise to be taken for a difference.
"""

from __future__ import annotations

import hashlib
import math
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import numpy as np
from test_session import opened, play

from jobs.config import canonical
from orchestrator.session.schedule import confirming
from orchestrator.session.writer import Dispatch
from orchestrator.statistics import Comparison, compare

Sampler = Literal["random", "grid", "tpe", "gp"]
BASE, IDLE, EQUAL = "infonce", "flatnce", "dcl"
"""Values of the key that is compared. What a trial measures knows the last one alone."""

RATE, TEMPERATURE = "optimizer.lr", "loss.temperature"
SPACE: dict[str, dict[str, Any]] = {
    RATE: {"low": 1e-4, "high": 1e-1, "log": True},
    TEMPERATURE: {"low": 0.03, "high": 0.3, "log": True},
}
GRID = {RATE: {"choices": [1e-4, 3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1]}, TEMPERATURE: {"choices": [0.03, 0.1, 0.3]}}

CURVATURE = 2.0
"""Standard deviations of a seed that are lost ten times beside the best learning rate. With less or more of it tuning
noise is taken for a difference less often."""

TRIALS = 7
"""Suggestions of an arm, of which tpe and gp choose three by what was measured. Of 42 trials a sweep costs 0.3 CPU
seconds, and 0.6 with gp."""

TRIALS_OF_REPEAT = 2
"""Suggestions of an arm in each repeat of its tuning, of which the better is taken."""

CONFIRM = 7
"""Confirm seeds, and repeats of a tuning: the joint test then rejects 3 of 64 assignments."""


def measured(number: int, job: Mapping[str, Any]) -> float:
    """What a trial of a sweep measures: how far its settings are from the best of that sweep, and noise."""
    rate, temperature = math.log10(job["optimizer"]["lr"]), math.log10(job["loss"]["temperature"])
    best = _drawn(number)
    lost = CURVATURE * ((rate - best.uniform(-3.2, -1.8)) ** 2 + 4 * (temperature - best.uniform(-1.3, -0.7)) ** 2)
    own = EQUAL if job["loss"]["name"] == EQUAL else ""
    noise = _drawn(number, own, int(job["seed"]), job["optimizer"]["lr"], job["loss"]["temperature"]).normal()
    return 0.8 + 0.01 * (noise - lost)


def _drawn(*key: float | str) -> np.random.Generator:
    return np.random.default_rng(int.from_bytes(hashlib.sha256(canonical(list(key)).encode()).digest()[:8], "big"))


def tuned_once(number: int, *, sampler: Sampler, folder: Path) -> tuple[Comparison, Comparison]:
    """Compare IDLE and EQUAL with BASE, each at the setting that it was tuned to."""
    tune = {"trials": TRIALS, "sampler": sampler, "space": GRID if sampler == "grid" else SPACE}
    idle, equal = _swept(number, [BASE, IDLE, EQUAL], tune, folder)
    assert (idle.a, equal.a) == (IDLE, EQUAL)
    return idle, equal


def tuned_anew(number: int, *, folder: Path) -> Comparison:
    """Compare EQUAL with BASE, both tuned anew for each confirm seed."""
    tune = {"trials": TRIALS_OF_REPEAT, "repeats": CONFIRM, "sampler": "random", "space": SPACE}
    (equal,) = _swept(number, [BASE, EQUAL], tune, folder)
    return equal


def _swept(number: int, arms: list[str], tune: dict[str, Any], folder: Path) -> list[Comparison]:
    """Run one sweep in a new folder inside this one."""
    changes = {
        "metric": {"name": "knn_accuracy"},
        "job": {
            "task": "image",
            "budget": {"steps": 8},
            "data": {"train": "digits[:1000]", "tune": "digits[1000:1400]", "confirm": "digits[1400:]"},
            "evaluate": {"times": 1},
        },
        "compare": {"loss.name": arms},
        "tune": tune | {"seed": number},
        "confirm": {"seeds": CONFIRM},
    }

    def answer(dispatch: Dispatch) -> dict[str, Any]:
        value = measured(number, dispatch.job)
        result = {"outcome": "ok", "step": 8, "metrics": {"knn_accuracy": value}, "untrained": {"knn_accuracy": 0.1}}
        return {
            "points": [{"key": "knn_accuracy", "step": 8, "value": value, "time": 1.0}],
            "step": 8,
            "result": result,
        }

    with (
        tempfile.TemporaryDirectory(dir=folder) as own,
        opened(Path(own), changes) as (session, ledger, _, plan),
    ):
        session.start()
        play(session, answer)
        units = confirming.by_unit(plan, confirming.values(ledger.trials(stage="confirm")), {})
        found = compare(units.values, plan.contrasts, seeds=units.names, resamples=9)
    assert [(one.n, one.complete) for one in found] == [(CONFIRM, True)] * (len(arms) - 1)
    return found
