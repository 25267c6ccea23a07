"""A sweep ended after 5 of 8 trials and said that some had failed: what followed a trial was not queued yet when the
trial was forgotten, and Tune asked in between. Here what follows takes long, and the loop asks all the time."""

from __future__ import annotations

import threading
import time
from pathlib import Path
from typing import Any

import pytest
from test_session import SWEEP, done, opened

from orchestrator.ledger import TrialState
from orchestrator.session import ending
from orchestrator.session.schedule import Schedule


@pytest.mark.parametrize("concurrent", [1, 2])
def test_a_slow_ledger_and_a_loaded_driver_end_no_sweep_early(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrent: int
) -> None:
    advance = Schedule.advance

    def slow(self: Schedule, arm: str | None = None) -> Any:
        if arm is not None:
            time.sleep(0.1)
        return advance(self, arm)

    monkeypatch.setattr(Schedule, "advance", slow)
    changes = {"tune": SWEEP["tune"] | {"trials": 2, "sampler": "random"}, "confirm": {"seeds": 2}}
    with opened(tmp_path, changes, concurrent=concurrent) as (session, ledger, _, plan):
        session.start()
        over = threading.Event()
        early: list[dict[TrialState, int]] = []

        def ask() -> None:
            while not over.wait(0.001):
                if session.finished():
                    early.append(ledger.counts())
                    return

        asking = threading.Thread(target=ask)
        asking.start()
        while not session.finished():
            if (dispatch := session.next()) is not None:
                time.sleep(0.02)
                session.report(dispatch, done(dispatch))
        over.set()
        asking.join()
        assert ledger.counts()["done"] == sum(plan.trials.values()) == 8
        assert all(counts["queued"] == counts["running"] == 0 for counts in early)
        ended = ending.of(session)
        assert (ended.code, ended.lines) == (0, ())
