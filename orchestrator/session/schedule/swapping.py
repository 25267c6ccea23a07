"""Arms at one another's setting ([confirm] swap): which trials that takes, and which of a run's trials they are.

A swapped trial is trained like a confirm trial, by such a job, and is none: its stage in the ledger is `swap`, so that
whatever reads the confirm stage does not see it. Where a confirm trial has the very job, that one stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from pydantic import ValidationError

from jobs.config import canonical
from orchestrator.ledger import Trial
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.plan.trials import Planned
from orchestrator.sweep.values import Settings


class Pool:
    """The trials of a run among which those of arms at another's setting are found."""

    def __init__(self, trials: Iterable[Trial]) -> None:
        self._swapped: dict[str, Trial] = {}
        self._confirmed: dict[str, list[Trial]] = {}
        for trial in trials:
            if trial.stage == "swap":
                self._swapped[trial.id] = trial
            elif trial.stage == "confirm":
                self._confirmed.setdefault(canonical(trial.job), []).append(trial)

    def find(self, planned: Planned) -> Trial | None:
        """Find the trial of an arm at another's setting: its own, or a confirm trial of the very job, of this arm
        before one of others. None where it is still to be queued."""
        alike = self._confirmed.get(canonical(planned.record), [])
        return self._swapped.get(planned.id) or min(alike, key=lambda trial: trial.arm != planned.arm, default=None)


def planned_at(plan: Plan, arm: str, settings: Settings) -> list[Planned]:
    """Plan the trials of an arm at another's setting; none where that makes no job."""
    try:
        return plan.swap_trials(arm, settings)
    except ValidationError:
        return []


class Swaps:
    """What the swaps of a run call for, as a function of the ledger. What a session has settled it asks no more."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._settled: set[tuple[str, str]] = set()

    def due(
        self,
        frozen: Mapping[str, Settings],
        trials: Callable[[], Sequence[Trial]],
        open_arms: Callable[[], Collection[str]],
    ) -> list[Planned]:
        """List the trials that are called for by now and not there: of swaps both of whose arms are frozen. One of a
        job that a third arm may yet be frozen at waits for that arm, so that no job is trained twice, whoever is first.

        trials, open_arms: give those of the run, and the arms that may still be frozen; asked where they matter.
        """
        called = self._plan.swapped(frozen, without=self._settled)
        if not called:
            return []
        pool, due = Pool(trials()), dict[str, Planned]()
        for (arm, whose), settings in called.items():
            planned = planned_at(self._plan, arm, settings)
            others = [other for other in self._plan.arms if planned and other.label not in frozen]
            reaching = {other.label for other in others if self._plan.reaches(other, planned[0].job)}
            if reaching and reaching & set(open_arms()):
                continue
            self._settled.add((arm, whose))
            due |= {trial.id: trial for trial in planned if pool.find(trial) is None}
        return list(due.values())


def called_for(plan: Plan, frozen: Mapping[str, Settings]) -> list[Planned]:
    """List all trials that the swaps of frozen arms call for, each once."""
    called = plan.swapped(frozen).items()
    return list(
        {trial.id: trial for (arm, _), settings in called for trial in planned_at(plan, arm, settings)}.values()
    )
