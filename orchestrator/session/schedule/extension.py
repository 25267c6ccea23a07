"""What was asked for once a run's planned trials had ended: further seeds, further suggestions.

An extension is kept in the ledger as an event, so a session that is killed is continued like any other. It never
changes the planned verdict: its seeds are beyond the planned ones, and what they say is exploratory. Where further
suggestions find a better setting, that setting is confirmed on seeds on which nothing was trained before, and with it
the arms that it is compared with.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass

from jobs.config import nearest
from orchestrator.ledger import Ledger
from orchestrator.run_dir.context import Extend
from orchestrator.run_dir.folder import RunError
from orchestrator.session.schedule.confirming import HAS_ENDED
from orchestrator.sweep import search
from orchestrator.sweep.limits import LARGEST_SEED, MOST_SEEDS
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.plan.trials import Planned
from orchestrator.sweep.search.sampling import Observed
from orchestrator.sweep.values import Settings

KIND = "extension"
"""Of the events that hold extensions."""


@dataclass(frozen=True)
class Extension:
    """What was added to a run."""

    seeds: Sequence[int]
    """Confirm seeds; with `trials`, those on which a setting is confirmed that turns out to be better."""

    trials: int
    arms: Sequence[str]


def recorded(ledger: Ledger) -> list[Extension]:
    """Read the extensions of a run, oldest first."""
    return [Extension(**one) for event in ledger.events(KIND) for one in json.loads(event.text)]


def record(plan: Plan, ledger: Ledger, wanted: Extend, stopped: Collection[str] = ()) -> list[Extension]:
    """Add to a run what a person asks for. stopped: arms of which nothing more is begun. Raises RunError, and then
    nothing has changed."""
    added = asked(plan, ledger, wanted, stopped)
    ledger.event(KIND, json.dumps([asdict(extension) for extension in added]))  # all, or none
    return added


def asked(plan: Plan, ledger: Ledger, wanted: Extend, stopped: Collection[str] = ()) -> list[Extension]:
    """Return what a request would add to a run. Raises RunError for one that cannot be met."""
    arms = _meant(plan, ledger, wanted, stopped)
    taken = [*plan.tune_seeds, *plan.confirm_seeds, *(seed for old in recorded(ledger) for seed in old.seeds)]
    first, added = max(taken) + 1, []
    for seeds, trials in ((len(plan.confirm_seeds) if wanted.trials else 0, wanted.trials), (wanted.seeds, 0)):
        if seeds > MOST_SEEDS or first + seeds > LARGEST_SEED:
            raise RunError(f"{seeds:,} seeds are too many; at most {MOST_SEEDS:,}, up to seed {LARGEST_SEED}")
        if seeds:
            added.append(Extension(list(range(first, first + seeds)), trials, arms))
            first += seeds
    return added


def _meant(plan: Plan, ledger: Ledger, wanted: Extend, stopped: Collection[str]) -> list[str]:
    """Check a request against the run, and list the arms that are meant."""
    labels, frozen, trials = [arm.label for arm in plan.arms], ledger.frozen(), ledger.trials()
    if plan.repeats > 1:
        raise RunError(
            "a sweep with tune.repeats is not extended, as each seed belongs to a repeat; launch a larger one"
        )
    if wanted.seeds <= 0 and wanted.trials <= 0:
        raise RunError("nothing is asked for; give --seeds +6 or --trials +8")
    for label in wanted.arms:
        if label not in labels:
            raise RunError(f"{label!r} is no arm of this run{nearest(label, labels)}; it has {', '.join(labels)}")
        if label not in frozen or label in stopped:
            raise RunError(f"arm {label!r} has no setting that was confirmed, so there is nothing to add to")
    of_answer = [trial for trial in trials if trial.stage != "swap"]  # which no seed is added to
    open_ = sum(trial.state not in HAS_ENDED for trial in of_answer if trial.arm not in stopped)
    if open_ or not frozen:
        what = f"{open_} of its trials have not ended" if open_ else "no arm is tuned yet"
        raise RunError(f"the run is under way ({what}); resume it first, then extend it")
    there = {(trial.arm, trial.seed) for trial in trials}
    for old in recorded(ledger):
        begun = {arm for arm, seed in there if seed in set(old.seeds)}
        if not old.trials and not set(old.arms) - set(stopped) <= begun:
            raise RunError("what the run was extended by before has not begun; resume it first, then extend it again")
    if wanted.trials > 0 and plan.sweep.tune is None:
        raise RunError("the sweep has no [tune], so there are no further settings to try; give --seeds +6")
    arms = [
        label
        for label in labels
        if label in frozen and label not in stopped and (not wanted.arms or label in wanted.arms)
    ]
    if wanted.trials > 0:
        more = wanted.trials + sum(old.trials for old in recorded(ledger))
        leaders = {plan.searched_with.get(label, label) for label in arms}
        if all(budget(plan, arm, more) <= len(ledger.suggestions(arm)) for arm in leaders):
            raise RunError("every point of the grid was tried; give --seeds +6")
    return arms


def budget(plan: Plan, arm: str, further: int) -> int:
    """Count the suggestions that an arm gets with so many more than planned; a grid may end before."""
    tune = plan.sweep.tune
    assert tune is not None, "only a tune stage has suggestions"
    if not further:
        return plan.asked(arm)
    more = tune.model_copy(update={"trials": tune.trials + further})
    return search.suggestions(more, plan.arm(arm).values, rules=plan.rules)


class Extended:
    """What the extensions of a run call for, as a function of the ledger."""

    def __init__(self, plan: Plan, extensions: Sequence[Extension]) -> None:
        self._plan, self.extensions = plan, extensions

    def budget(self, arm: str, *, before: int | None = None) -> int:
        """Count the suggestions of an arm that is searched. before: with the extensions before that one alone."""
        further = sum(
            one.trials for one in self.extensions[:before] if any(self._leader(label) == arm for label in one.arms)
        )
        return budget(self._plan, arm, further)

    def setting(
        self, arm: str, before: int, frozen: Mapping[str, Settings], observed: Mapping[str, Sequence[Observed]]
    ) -> Settings:
        """Return the setting of an arm after the extensions before that one: as frozen, or the best of all that was
        tried by then."""
        if self._plan.sweep.tune is None or not any(one.trials for one in self.extensions[:before]):
            return frozen[arm]
        leader = self._leader(arm)
        tried = observed[leader][: self.budget(leader, before=before)]
        found = best(tried, self._plan.sweep.metric.mode)
        return frozen[arm] if found is None else found.params

    def trials(
        self,
        frozen: Mapping[str, Settings],
        observed: Mapping[str, Sequence[Observed]],
        stopped: Collection[str] = (),
    ) -> tuple[list[Planned], bool]:
        """List the confirm trials that are called for so far, and say whether these are all. observed: what is known of
        each arm that is searched. frozen, stopped: arms of which more is begun, and of which nothing is."""
        called, is_all = list[Planned](), True
        for number, extension in enumerate(self.extensions):
            arms = {arm for arm in extension.arms if arm in frozen and self._leader(arm) not in stopped}
            if extension.trials:
                leaders = {arm: self._leader(arm) for arm in arms}
                count = {leader: self.budget(leader, before=number + 1) for leader in leaders.values()}
                settled = {arm for arm, leader in leaders.items() if _is_settled(observed[leader], count[leader])}
                if settled != arms:  # what they come to may be compared with the others
                    is_all = False
                    continue
                arms = {
                    arm
                    for arm in arms
                    if self.setting(arm, number + 1, frozen, observed) != self.setting(arm, number, frozen, observed)
                }
            for arm in self._with_rivals(arms, frozen):
                setting = self.setting(arm, number + 1, frozen, observed)
                called += self._plan.confirm_trials(arm, setting, seeds=extension.seeds)
        return called, is_all

    def _leader(self, arm: str) -> str:
        return self._plan.searched_with.get(arm, arm)

    def _with_rivals(self, arms: set[str], frozen: Collection[str]) -> Iterable[str]:
        """List these arms and those that they are compared with, in the order of the plan."""
        compared = {arm for pair in self._plan.contrasts if arms & set(pair) for arm in pair} | arms
        return [arm.label for arm in self._plan.arms if arm.label in compared and arm.label in frozen]


def best(observed: Iterable[Observed], mode: str) -> Observed | None:
    """Find the best of what was tried, the first of equals; None where nothing trained to its end."""
    sign = 1 if mode == "max" else -1
    usable = [tried for tried in observed if tried.state == "done" and tried.value is not None]
    return max(usable, key=lambda tried: (sign * (tried.value or 0.0), -tried.number), default=None)


def _is_settled(observed: Sequence[Observed], count: int) -> bool:
    return len(observed) >= count and all(tried.state is not None for tried in observed[:count])
