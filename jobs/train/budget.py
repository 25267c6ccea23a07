"""How far a job is: what it has used of its budget, be that samples, steps or seconds.

Learning rate, evaluations, logged points and the end of a job all come at shares of the budget, and all ask here. With
a budget in samples or steps the answers are functions of the step alone; with one in seconds, also of the clock, so
every rank must ask with the same time (rank 0's).

Nothing here is rounded: a share is compared by whole numbers, and whether the budget is used up is decided in one
place, so that the last evaluation, the last logged point and the end are always the same step.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

from jobs import optim
from jobs.config import JobConfig

LOGGED = 50
"""Training points of each key over a whole job, whatever its length: enough for a curve, few enough to compare."""

ALMOST_ALL = math.nextafter(1.0, 0.0)
"""The largest share of a budget that is not all of it."""


@dataclass(frozen=True)
class BudgetMeter:
    """The budget of one job. step: optimizer steps done; seconds: of training so far."""

    job: JobConfig

    @property
    def timed(self) -> bool:
        """Whether the budget is in seconds."""
        return self.job.steps is None

    def is_exhausted(self, step: int, seconds: float) -> bool:
        """Return whether the budget is used up."""
        return seconds >= self._seconds if self.job.steps is None else step >= self.job.steps

    def evaluations(self, step: int, seconds: float) -> int:
        """Count the evaluations that are due by now, without the evaluation before the first step."""
        return self._fraction_used(self.job.evaluate.times, step, seconds)

    def recorded(self, step: int, before_s: float, seconds: float) -> bool:
        """Return whether the evaluation after the step that went from `before_s` to `seconds` is recorded."""
        before, now = self.evaluations(step - 1, before_s), self.evaluations(step, seconds)
        if not self.timed:
            before, now = min(before, step - 1), min(now, step)
        return self.job.is_recorded(before, now)

    def logged(self, step: int, before_s: float, seconds: float) -> bool:
        """Return whether the step that took the training from `before_s` to `seconds` is logged, as the first and the
        last step are."""
        if step == 1 or self.is_exhausted(step, seconds):
            return True
        if self.job.steps is None:
            return self._fraction_used(LOGGED, step, seconds) > self._fraction_used(LOGGED, step - 1, before_s)
        return step % max(1, self.job.steps // LOGGED) == 0

    def rate(self, step: int, seconds: float) -> float:
        """Return the learning rate of optimizer step `step` (1-based), which begins after `seconds`."""
        if self.job.steps is None:
            # The quotient may round up to all of the budget although a moment of it is left.
            used = 1.0 if self.is_exhausted(step - 1, seconds) else min(ALMOST_ALL, seconds / self._seconds)
            return optim.rate_at(self.job.optimizer, used=used)
        return optim.rate(self.job.optimizer, step=step, steps=self.job.steps)

    def describe(self, step: int, seconds: float) -> str:
        """Describe how far the job is: `step 30 of 120`, or `step 30, 2.5 of 10 s`."""
        if self.job.steps is None:
            return f"step {step}, {seconds:.1f} of {self._seconds:g} s"
        return f"step {step} of {self.job.steps}"

    @property
    def _seconds(self) -> float:
        assert self.job.budget.seconds is not None
        return self.job.budget.seconds

    def _fraction_used(self, parts: int, step: int, seconds: float) -> int:
        """Count the whole parts that are used of the budget cut into `parts`: the largest k with k budget <= parts
        used, in whole numbers, because a quotient of floats is rounded and may fall short of a share that is just
        reached."""
        if self.is_exhausted(step, seconds):
            return parts
        if self.job.steps is not None:
            return parts * step // self.job.steps
        used, used_of = seconds.as_integer_ratio()
        budget, budget_of = self._seconds.as_integer_ratio()
        return parts * used * budget_of // (budget * used_of)
