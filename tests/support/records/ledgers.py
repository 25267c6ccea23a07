"""Ledgers for tests: a sweep and its plan are real, and what a driver would record is recorded by hand."""

from __future__ import annotations

import contextlib
import itertools
import json
import sqlite3
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from orchestrator import sweep
from orchestrator.ledger import Ledger, Point, Suggestion, Trial, sqlite_url
from orchestrator.ledger.stored import JsonObject
from orchestrator.run_dir.context import USUAL, Options, RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.sweep import plan as planning
from orchestrator.system.versions import versioned

TOML = """
name = NAME
question = QUESTION
metric = { name = "knn_accuracy", mode = MODE, mode_is_meant = true, smallest_difference = SMALLEST }
job = { task = "image", budget = { samples = 1000 }, data = { train = "digits", tune = "digits", confirm = "digits" } }
confirm = { seeds = SEEDS }
ARMS
TUNE
"""
TWO = """[[arm]]\nlabel = "plain"\n[[arm]]\nlabel = "flat"\n"loss.name" = "flatnce"\n"""
TUNED = '[tune]\ntrials = 3\nseeds = 2\nspace = { "optimizer.lr" = { low = 1e-4, high = 1e-2 } }'


def hashes_of(seed: int) -> dict[str, str]:
    """What every trial of a seed shares, unless a test says otherwise."""
    return {"data": "d", "order": f"o{seed}", "init": f"i{seed}", "encoder": f"e{seed}"}


@dataclass
class Run:
    """A ledger, the plan behind it, and hands to play the driver with."""

    ledger: Ledger
    plan: planning.Plan

    def context(self, folder: Path, options: Options = USUAL) -> RunContext:
        """The run as its driver has it, in `folder`."""
        return RunContext(self.plan, RunFolder(folder), self.ledger, options)

    def confirm(self, arm: str, settings: Mapping[str, Any] | None = None, **job: Any) -> list[Trial]:
        """The arm's confirm trials, queued; `job` replaces parts of their jobs."""
        planned = self.plan.confirm_trials(arm, settings or {})
        trials = [Trial(p.id, "confirm", p.arm, p.seed, p.job.model_dump(mode="json") | job) for p in planned]
        self.ledger.add_trials(trials)
        return trials

    def done(
        self,
        trial: Trial,
        metric: float,
        *,
        outcome: str = "ok",
        hashes: Mapping[str, str] | None = None,
        curve: Mapping[int, float] | None = None,
        points: Sequence[Point] = (),
        more: Mapping[str, float] | None = None,
        **costs: float | str,
    ) -> None:
        """End a trial. points: beside those of the curve of its metric; more: metrics beside it."""
        attempt = self.ledger.start_attempt(trial.id, {}, "host")
        ok, size = outcome == "ok", trial.config.batch.size
        curve = curve or ({0: 0.3, 1: 0.3 + (metric - 0.3) / 2, 3: metric} if ok else {0: 0.3, 1: 0.35})
        self.ledger.record_points(
            trial.id, attempt, [*(Point(trial.id, "knn_accuracy", *at, 1e9) for at in curve.items()), *points]
        )
        metrics: dict[str, float] = (
            {"knn_accuracy": metric, "alignment": 0.5 + trial.seed / 50, **(more or {})} if ok else {}
        )
        step = max(curve) if ok else 3
        result: JsonObject = {
            "outcome": outcome,
            "metrics": {**metrics},
            "untrained": {"knn_accuracy": 0.3},
            "step": step,
            "samples": step * size,
            "seconds": 2.5,
            "samples_per_second": step * size / 2.5,
            "peak_memory_mb": 100.0 + trial.seed,
            "negatives_per_anchor": size - 1,
            "hashes": {key: value for key, value in {**hashes_of(trial.seed), **(hashes or {})}.items() if value},
            **costs,
        }
        self.ledger.finish_attempt(
            trial.id,
            attempt,
            state="done",
            outcome="ok" if ok else "diverged",
            metric=metric if ok else None,
            metrics=metrics,
            step=step,
            result=result,
        )

    def lost(self, trial: Trial, message: str = "rank 1 ended with signal 9\n at line 3") -> None:
        attempt = self.ledger.start_attempt(trial.id, {}, "host")
        self.ledger.finish_attempt(trial.id, attempt, state="failed", failure="worker_lost", message=message)


Begin = Callable[..., Run]
"""Of the fixture `begin`: `start` in a new folder."""


def start(
    folder: Path,
    arms: str = TWO,
    *,
    tune: str = "",
    mode: str = "max",
    question: str = "Is flat better?",
    name: str = "demo",
    seeds: int | list[int] = 6,
    smallest: float = 0.005,
    environment: Mapping[str, Any] | None = None,
    overrides: Sequence[str] = (),
    database: str | None = None,
) -> Run:
    """A run in a new folder with its lease held and nothing done.

    overrides: as `--set` takes them. database: URL of the ledger, if it is not to lie in the folder.
    """
    folder.mkdir(parents=True)
    put = {"NAME": name, "QUESTION": question, "MODE": mode, "SMALLEST": smallest, "SEEDS": seeds}
    toml = TOML.replace("ARMS", arms).replace("TUNE", tune)
    for word, value in put.items():
        toml = toml.replace(word, json.dumps(value, ensure_ascii=False))  # TOML has no pairs of surrogates
    (folder / "sweep.toml").write_text(toml, "utf-8")
    loaded = sweep.load(folder / "sweep.toml", tuple(overrides))
    plan = planning.make(loaded)
    recorded: dict[str, Any] = {
        "command": "orchestrator launch demo.toml",
        "commit": "3f2c9ab",
        "packages": {"torch": "2.13"},
    }
    ledger = Ledger.create(
        database or sqlite_url(folder / "ledger.db"),
        name=name,
        sweep=sweep.resolved(loaded) | {"plan": plan.record()},
        environment={**recorded, **(environment or {})},
    )
    (folder / "sweep.json").write_text(json.dumps({"run": ledger.uuid}))
    ledger.acquire("test", 3600)
    return Run(ledger, plan)


def finished(run: Run, values: Mapping[str, Sequence[float]], settings: Mapping[str, Any] | None = None) -> Run:
    """Every confirm trial done, with these metrics."""
    for arm, metrics in values.items():
        for trial, metric in zip(run.confirm(arm, settings), metrics, strict=True):
            run.done(trial, metric)
    run.ledger.set_run(state="done")
    return run


BETTER = {"plain": [0.90, 0.91, 0.89, 0.90, 0.92, 0.91], "flat": [0.92, 0.925, 0.91, 0.915, 0.935, 0.93]}


def tuned(folder: Path) -> Run:
    """A tuned and finished run; costs differ from trial to trial, and the suggestion 1 of flat failed."""
    run = start(folder, tune=TUNED)
    for arm, (number, lr) in itertools.product(BETTER, enumerate((1e-3, 5e-3, 2e-3))):
        planned = run.plan.tune_trials(arm, number, {"optimizer.lr": lr})
        trials = [Trial(p.id, "tune", arm, p.seed, p.job.model_dump(mode="json"), number=number) for p in planned]
        suggestion = Suggestion(arm, number, {"optimizer.lr": lr}, tuple(trial.id for trial in trials))
        run.ledger.add_suggestion(suggestion, trials)
        for trial in trials:
            run.lost(trial) if (arm, number) == ("flat", 1) else run.done(trial, 0.85 + lr + trial.seed / 100)
    for arm in BETTER:
        run.ledger.freeze(arm, {"optimizer.lr": 2e-3}, 2, "abc")
    for k, (arm, metrics) in enumerate(BETTER.items()):
        for trial, metric in zip(run.confirm(arm, {"optimizer.lr": 2e-3}), metrics, strict=True):
            took: dict[str, Any] = {"seconds": 11.3 + trial.seed / 7 + k, "peak_memory_mb": 612.7 - 40 * k + trial.seed}
            took["samples_per_second"] = 700 + 3.5 * trial.seed - 90 * k
            run.done(trial, metric, **took)
    run.ledger.set_run(state="done")
    return run


def cut_off(patch: pytest.MonkeyPatch, error: type[BaseException]) -> list[int]:
    """Let the thread that writes ledgers write as often as the one number says, any number at first, and then raise."""
    left, real = [10**9], Ledger._write

    @contextlib.contextmanager
    def write(self: Ledger) -> Iterator[Any]:
        is_writer = threading.current_thread().name == "ledger-writer"
        if left[0] <= 0 and is_writer:
            raise error
        with real(self) as found:
            yield found
        left[0] -= is_writer

    patch.setattr(Ledger, "_write", write)
    return left


def answer_of(ledger: Ledger) -> dict[str, Any]:
    """The answer of a run as `compare --json` prints it, which is valid by its schema."""
    from answers import faults

    from orchestrator import report  # matplotlib takes a second to import

    plain: dict[str, Any] = json.loads(json.dumps(report.summarize(ledger).to_json(), allow_nan=False))
    assert faults("compare", versioned("compare", plain)) == []
    return plain


@dataclass
class Written:
    """The run of `tuned` and its report."""

    run: Run
    folder: Path
    answer: dict[str, Any]

    def read(self, name: str) -> str:
        """Text of a file of the report."""
        return (self.folder / name).read_text("utf-8")

    def rows(self, table: str) -> list[dict[str, Any]]:
        """What the database itself holds, read by nothing of ours; text that is JSON is decoded."""
        with contextlib.closing(sqlite3.connect(self.folder.parent / "run" / "ledger.db")) as database:
            database.row_factory = sqlite3.Row
            found = [dict(row) for row in database.execute(f"SELECT * FROM {table}")]
        decoded = ("job", "result", "metrics", "params")
        return [
            {key: json.loads(value) if key in decoded and value is not None else value for key, value in row.items()}
            for row in found
        ]
