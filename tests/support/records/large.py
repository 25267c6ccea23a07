"""A run of thousands of trials, all done, whose rows are put into its ledger at once and not one by one."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import sqlalchemy as sa

from orchestrator import sweep
from orchestrator.ledger import Ledger, Suggestion, Trial, schema, sqlite_url
from orchestrator.session.schedule import as_trial
from orchestrator.sweep import plan as planning

SWEEP = """
name = "large"
question = "Which temperature is best?"
metric = { name = "knn_accuracy", smallest_difference = 0.01 }
[job]
task = "image"
budget = { steps = 8 }
batch = { size = 16 }
data = { train = "digits[:300]", tune = "digits[300:400]", confirm = "digits[400:500]" }
[compare]
"loss.temperature" = TEMPERATURES
[tune]
trials = TRIALS
defaults = [{ "optimizer.lr" = 1e-3 }]
space = { "optimizer.lr" = { low = 1e-4, high = 1e-2, log = true } }
[confirm]
seeds = 10
"""
VERSIONS = {"torch": "2.13.0", "transformers": "5.23.0", "numpy": "2.3.0", "pyarrow": "18.0.0", "ray": "2.60.0"}
CODE: Any = {"code": "a" * 16, "versions": VERSIONS, "data": {"digits[400:500]": "d" * 16}, "weights": {}}
KEYS = ("train/loss", "train/infonce", "knn_accuracy", "alignment", "uniformity")


def written(folder: Path, *, arms: int, suggestions: int) -> Path:
    """The file of a sweep of so many temperatures."""
    temperatures = [round(0.05 + number / 100, 2) for number in range(arms)]
    folder.mkdir(parents=True, exist_ok=True)
    text = SWEEP.replace("TEMPERATURES", str(temperatures)).replace("TRIALS", str(suggestions))
    (folder / "sweep.toml").write_text(text)
    return folder / "sweep.toml"


def fill(folder: Path, *, arms: int, suggestions: int) -> int:
    """Make the run in `folder`; returns its trials: `suggestions` and ten seeds in each of `arms`."""
    loaded = sweep.load(written(folder, arms=arms, suggestions=suggestions))
    plan, chance = planning.make(loaded), random.Random(0)
    kept = sweep.resolved(loaded) | {"plan": plan.record()}
    ledger = Ledger.create(sqlite_url(folder / "ledger.db"), name="large", sweep=kept, rules=plan.rules)
    (folder / "sweep.json").write_text(json.dumps({"run": ledger.uuid}))
    ledger.acquire("test", 3600)
    begun: Any = CODE | {"files": {}, "data": {name: {"digest": digest} for name, digest in CODE["data"].items()}}
    ledger.set_run(state="done", provenance=begun)
    trials: list[Trial] = []
    for arm in plan.arms:
        for number in range(suggestions):
            params: dict[str, Any] = {"optimizer.lr": 1e-4 * 100 ** chance.random()}
            own = [as_trial(planned) for planned in plan.tune_trials(arm.label, number, params)]
            ledger.add_suggestion(Suggestion(arm.label, number, params, tuple(trial.id for trial in own)), own)
            trials += own
        ledger.freeze(arm.label, {"optimizer.lr": 2e-3}, 1, "abc")
        own = [as_trial(planned) for planned in plan.confirm_trials(arm.label, {"optimizer.lr": 2e-3})]
        ledger.add_trials(own)
        trials += own
    ledger.release()
    ledger.close()
    engine = sa.create_engine(sqlite_url(folder / "ledger.db"))
    with engine.begin() as connection:
        _end_all(connection, ledger.uuid, [(trial, 0.8 + chance.random() / 20) for trial in trials])
    engine.dispose()
    return len(trials)


def _end_all(connection: sa.Connection, run: str, trials: list[tuple[Trial, float]]) -> None:
    """What drivers would have recorded of them, in one transaction."""
    table, ends, attempts, points = schema.trials, [], [], []
    for place, (trial, metric) in enumerate(trials):
        began = 1.79e9 + 7 * place
        metrics = {"knn_accuracy": metric, "alignment": 0.5, "uniformity": -1.2, "train/loss": 0.1}
        hashes = {"data": "d", "order": f"o{trial.seed}", "init": f"i{trial.seed}", "encoder": f"e{trial.seed}"}
        result = {
            "outcome": "ok", "metrics": metrics, "untrained": {"knn_accuracy": 0.3}, "step": 8, "samples": 128,
            "seconds": 2.5, "samples_per_second": 51.2, "peak_memory_mb": 100.0, "negatives_per_anchor": 15,
            "hashes": hashes,
        }  # fmt: skip
        ends.append({"own": trial.id, "m": metric, "all": metrics, "came": result, "b": began, "e": began + 3})
        of_trial = {"run": run, "trial": trial.id}
        attempts.append(
            of_trial | {"number": 1, "token": 1, "state": "done", "execution": {}, "host": "here", "started": began}
            | {"ended": began + 3, "provenance": CODE}
        )  # fmt: skip
        for key in KEYS:
            for step in range(9):
                value = {"key": key, "step": step, "value": metric * step / 8, "time": began + step / 10}
                points.append(of_trial | value | {"attempt": 1, "projected": True})
    done = {"state": "done", "outcome": "ok", "step": 8, "attempts": 1, "mlflow_run_id": "0" * 32}
    bound = {"metric": "m", "metrics": "all", "result": "came", "started": "b", "ended": "e"}
    changed = done | {column: sa.bindparam(name) for column, name in bound.items()}
    connection.execute(table.update().where(table.c.id == sa.bindparam("own")).values(**changed), ends)
    connection.execute(schema.attempts.insert(), attempts)
    connection.execute(schema.points.insert(), points)
