"""Where trials may be pruned, and what decides it: the rungs that a trial has reached, held against its arm's."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isfinite

from jobs.config import POINTS
from orchestrator.ledger import Trial
from orchestrator.session.reports import PointReport
from orchestrator.sweep import search
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.search import sampling


@dataclass(frozen=True)
class Rung:
    """Where a trial is pruned."""

    step: int
    value: float
    """The metric there, which is the trial's."""


class Climb:
    """One attempt of a trial that may be pruned: the pruner, asked rung by rung.

    A function of the values, however they come: a gang that is continued tells several rungs at once. A rung of which
    the ledger has the metric was asked about when it got it, and is left alone.
    """

    def __init__(
        self, plan: Plan, trial: Trial, history: Sequence[sampling.Observed], decided: Collection[int] = ()
    ) -> None:
        """Take the plan and the trial. history: of the trial's arm. decided: steps where the ledger has its metric."""
        self._plan, self._trial, self._history = plan, trial, history
        self._decided, self._measured = set(decided), dict[int, float]()

    def reach(self, points: Iterable[PointReport]) -> Rung | None:
        """Find the first rung that ends the trial, now that `points` (key, step, value) are known; None: it goes on."""
        tune, metric = self._plan.sweep.tune, self._plan.sweep.metric
        assert tune is not None, "only trials of the tune stage are pruned"
        for point in points:
            if point["key"] == metric.name:
                self._measured.setdefault(point["step"], point["value"])
        steps, reached = rung_steps(self._trial, self._measured), rungs(self._trial, self._measured)
        for rung, step in enumerate(steps, 1):
            if rung not in reached:  # what comes after one that is not finite cannot be compared
                return None
            if step in self._decided:
                continue
            self._decided.add(step)
            if search.should_prune(
                tune,
                mode=metric.mode,
                number=self._trial.number or 0,
                history=self._history,
                rungs={number: reached[number] for number in range(1, rung + 1)},
                rung_steps=list(range(1, rung_count(self._trial) + 1)),
            ):
                return Rung(step, reached[rung])
        return None


def rungs(trial: Trial, measured: Mapping[int, float]) -> dict[int, float]:
    """Return the metric at each rung that a trial has reached, counted from 1; measured: the metric by optimizer step.

    Rungs are its recorded evaluations but the first and the last. Rung k is the k-th of them, whatever the batch size,
    so that trials of different lengths meet at the same share of the budget. (With a budget in seconds, a trial so slow
    that a step used up two shares has a rung less.)
    """
    steps = rung_steps(trial, measured)
    return {k: measured[step] for k, step in enumerate(steps, 1) if step in measured and isfinite(measured[step])}


def rung_steps(trial: Trial, measured: Mapping[int, float]) -> Sequence[int]:
    """Return the steps of the rungs, ascending; with a budget in seconds, of those that were reached."""
    job = trial.config
    if job.steps is not None:
        return job.recorded_steps[:-1]
    end = trial.step if trial.state == "done" else None
    return sorted(step for step in measured if step not in (0, end))[: rung_count(trial)]


def rung_count(trial: Trial) -> int:
    """Count the rungs on the way of a trial."""
    job = trial.config
    return min(job.evaluate.times, POINTS - 1) - 1 if job.steps is None else len(job.recorded_steps) - 1
