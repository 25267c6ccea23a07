"""Arms at one another's setting ([confirm] swap): which trials that takes, and which of a run's trials they are.

A swapped trial is trained like a confirm trial, by such a job, and is none: its stage in the ledger is `swap`, so that
whatever reads the confirm stage does not see it. Where a confirm trial has the very job, that one stands for it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from pydantic import JsonValue, ValidationError

from jobs.config import canonical
from orchestrator.ledger import Trial
from orchestrator.session.schedule.stopping import stopped_arms
from orchestrator.sweep import flatten
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.plan.trials import Planned
from orchestrator.sweep.values import Settings


class Pool:
    """The trials of a run among which those of arms at another's setting are found: by arm, seed, and the id of what
    they are trained at, which is the same where an earlier version of the program wrote a job with fewer fields."""

    def __init__(self, plan: Plan, trials: Iterable[Trial]) -> None:
        """Take all trials of a run of `plan`. A confirm trial that is not begun, as its arm is stopped, stands for
        none."""
        self._plan, self._ids = plan, dict[str, str]()
        self._there: dict[tuple[str, int], list[Trial]] = {}
        trials = list(trials)
        stopped = stopped_arms(trials)
        for trial in trials:
            waits = trial.stage == "confirm" and trial.state == "queued" and trial.arm in stopped
            if trial.stage != "tune" and not waits:
                self._there.setdefault((self._setting(trial.job), trial.seed), []).append(trial)

    def find(self, planned: Planned) -> Trial | None:
        """Find the trial of an arm at another's setting: its own, or a confirm trial of the very job, of this arm
        before one of others. None where it is still to be queued."""
        return self._of(planned.arm, self._setting(planned.record), planned.seed)

    def at(self, arm: str, job: Mapping[str, JsonValue]) -> list[Trial]:
        """Find those of all seeds, as far as they are there. job: of any seed."""
        setting = self._setting(job)
        found = (self._of(arm, setting, seed) for seed in self._plan.confirm_seeds)
        return [trial for trial in found if trial is not None]

    def _of(self, arm: str, setting: str, seed: int) -> Trial | None:
        alike = self._there.get((setting, seed), [])
        fitting = [trial for trial in alike if trial.stage == "confirm" or trial.arm == arm]
        return min(fitting, key=lambda trial: (trial.stage != "swap", trial.arm != arm), default=None)

    def _setting(self, job: Mapping[str, JsonValue]) -> str:
        """Compute what jobs that differ in the seed alone have in common."""
        unseeded = {**job, "seed": 0}
        text = canonical(unseeded)
        if text not in self._ids:  # an id takes ten times as long
            self._ids[text] = self._plan.job_id(unseeded)
        return self._ids[text]


def planned_at(plan: Plan, arm: str, settings: Settings) -> list[Planned]:
    """Plan the trials of an arm at another's setting; none where that makes no job."""
    try:
        return plan.swap_trials(arm, settings)
    except ValidationError:
        return []


def job_at(plan: Plan, arm: str, settings: Settings) -> Mapping[str, JsonValue] | None:
    """Build the job of an arm at another's setting, of no seed in particular; None where that makes none."""
    try:
        job: dict[str, JsonValue] = (
            plan.arm(arm).config(stage="confirm", seed=0, settings=settings).model_dump(mode="json")
        )
    except ValidationError:
        return None
    return job


class Swaps:
    """What the swaps of a run call for, as a function of the ledger. What a session has settled it asks no more, until
    other arms are stopped."""

    def __init__(self, plan: Plan) -> None:
        self._plan = plan
        self._settled: set[tuple[str, str]] = set()
        self._stopped: set[str] = set()

    def due(
        self,
        frozen: Mapping[str, Settings],
        stopped: Collection[str],
        trials: Callable[[], Sequence[Trial]],
        open_arms: Callable[[], Collection[str]],
    ) -> list[Planned]:
        """List the trials that are called for by now and not there: of swaps both of whose arms are frozen, and neither
        is stopped. One of a job that a third arm may yet be frozen at waits for that arm, so that no job is trained
        twice, whoever is first.

        trials, open_arms: give those of the run, and the arms that may still be frozen; asked where they matter.
        """
        if self._stopped != set(stopped):  # whose trials may have stood for others
            self._stopped = set(stopped)
            self._settled.clear()
        called = self._plan.swapped(_running(frozen, stopped), without=self._settled)
        if not called:
            return []
        pool, due = Pool(self._plan, trials()), dict[str, Planned]()
        for (arm, whose), settings in called.items():
            planned = planned_at(self._plan, arm, settings)
            others = [other for other in self._plan.arms if planned and other.label not in frozen]
            reaching = {other.label for other in others if self._plan.reaches(other, planned[0].job)}
            if reaching and reaching & set(open_arms()):
                continue
            self._settled.add((arm, whose))
            due |= {trial.id: trial for trial in planned if pool.find(trial) is None}
        return list(due.values())


def called_for(plan: Plan, frozen: Mapping[str, Settings], stopped: Collection[str] = ()) -> list[Planned]:
    """List all trials that the swaps of frozen arms call for, each once. stopped: arms that are left out, as nothing is
    queued for them."""
    called = plan.swapped(_running(frozen, stopped)).items()
    return list(
        {trial.id: trial for (arm, _), settings in called for trial in planned_at(plan, arm, settings)}.values()
    )


def setting_in_words(plan: Plan, trial: Trial) -> str:
    """Name what a swapped trial is trained at: `optimizer.lr = 0.01`."""
    keys = dict.fromkeys(key for swap in plan.swaps if trial.arm in (swap.a, swap.b) for key in swap.keys)
    values = flatten(trial.job)
    return ", ".join(f"{key} = {values.get(key)}" for key in keys)


def _running(frozen: Mapping[str, Settings], stopped: Collection[str]) -> dict[str, Settings]:
    return {arm: settings for arm, settings in frozen.items() if arm not in stopped}
