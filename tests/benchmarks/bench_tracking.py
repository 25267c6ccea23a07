"""How fast the ledger is told to MLflow: 200 trials of 500 points, to a real server. `make bench` prints it.

The ratio is to one call for each point, as most callbacks do it, measured in the same run on the same server.
"""

from __future__ import annotations

import time
from pathlib import Path

from real import Server

from orchestrator.ledger import Ledger, Point, Trial, sqlite_url
from orchestrator.ledger.stored import JsonObject
from orchestrator.tracking import Projection, runs_of
from orchestrator.tracking.store import connect

TRIALS, STEPS, KEYS = 200, 100, ("knn_accuracy", "train/loss", "train/infonce", "train/temperature", "system/memory")
JOB: JsonObject = {"task": "image", "loss": {"name": "infonce", "temperature": 0.1}, "optimizer": {"lr": 1e-3}}


def test_two_hundred_trials_of_five_hundred_points(tmp_path: Path) -> None:
    """Every point arrives, once, and at least ten times as fast as one by one."""
    trials = [Trial(id=f"trial{n}", stage="confirm", arm=f"arm {n % 4}", seed=n // 4, job=JOB) for n in range(TRIALS)]
    ledger = Ledger.create(
        sqlite_url(tmp_path / "ledger.db"), name="many", sweep={"question": "A or B?"}, trials=trials
    )
    ledger.acquire("the benchmark", 3600)
    for trial in trials:
        number = ledger.start_attempt(trial.id, {}, "h")
        points = [Point(trial.id, key, step, step / 7, 1.7e9 + step) for key in KEYS for step in range(STEPS)]
        ledger.record_points(trial.id, number, points)
        ledger.finish_attempt(trial.id, number, state="done", outcome="ok", metric=0.5, step=STEPS)
    server = Server(tmp_path)
    server.start()
    try:
        client = connect(server.uri)
        run = client.create_run(client.create_experiment("one by one"))
        began = time.perf_counter()
        for step in range(100):
            client.log_metric(run.info.run_id, "loss", step / 7, step=step)
        single_s = (time.perf_counter() - began) / 100
        projection = Projection(ledger, server.uri)
        began = time.perf_counter()
        assert projection.flush(), projection.last_error
        took_s = time.perf_counter() - began
        total = TRIALS * STEPS * len(KEYS)
        told = sum(len(points) for one in runs_of(server.uri, ledger.uuid) for points in one["metrics"].values())
    finally:
        server.kill()
        ledger.close()
    ratio = single_s * total / took_s
    print(
        f"\n{TRIALS} trials, {total:,} points: {took_s:.1f} s ({total / took_s:,.0f} points/s), {ratio:.0f} times as "
        f"fast as one call a point ({1 / single_s:.0f} points/s)"
    )
    assert told == total
    assert ratio > 10
