"""What is stopped because its trials fail in the same way: a bug or an impossible setting, and not bad luck."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping
from typing import TypeVar

from jobs.config import canonical
from orchestrator.ledger import Trial

Setting = tuple[str, str]
"""An arm, and the job that it is trained by but for the seed, as text."""

Kind = TypeVar("Kind", bound=Hashable)

SAME_FAILURES = 3
"""Different trials that fail with the same words before their arm is stopped: a bug or an impossible setting, not bad
luck. Of two arms, and while none has succeeded, they stop the sweep."""


def stopped_arms(trials: Iterable[Trial]) -> dict[str, str]:
    """Find the arms where SAME_FAILURES trials failed alike, and the message. What a person gave up does not count, nor
    what an arm does at another's setting."""
    return _stopped((trial for trial in trials if trial.stage != "swap"), _arm)


def stopped_swaps(trials: Iterable[Trial]) -> dict[Setting, str]:
    """Find the settings of others where SAME_FAILURES trials of an arm failed alike, and the message: no more of these
    are begun, and all else of the arm goes on."""
    return _stopped((trial for trial in trials if trial.stage == "swap"), setting_of)


def is_stopped(trial: Trial, arms: Collection[str], swaps: Collection[Setting]) -> bool:
    """Return whether a trial is of a stopped arm, or of one at a setting that is stopped."""
    return trial.arm in arms or (bool(swaps) and trial.stage == "swap" and setting_of(trial) in swaps)


def setting_of(trial: Trial) -> Setting:
    """Return what the trials of an arm that differ in the seed alone have in common."""
    return trial.arm, canonical({key: value for key, value in trial.job.items() if key != "seed"})


def _arm(trial: Trial) -> str:
    return trial.arm


def _stopped(trials: Iterable[Trial], kind: Callable[[Trial], Kind]) -> dict[Kind, str]:
    return {
        one: next(iter(messages))
        for of_kind in _failed_alike(trials, kind).values()
        for one, messages in of_kind.items()
        if len(messages) >= SAME_FAILURES
    }


def stops_the_sweep(trials: Iterable[Trial]) -> str | None:
    """Explain why the whole sweep stops: SAME_FAILURES trials, of two arms or more, failed alike, and none has
    succeeded. A trial that diverged has not succeeded. None: the sweep goes on."""
    trials = list(trials)
    if any(trial.state in ("done", "pruned") and trial.outcome != "diverged" for trial in trials):
        return None
    for of_arm in _failed_alike(trials, _arm).values():
        count = sum(map(len, of_arm.values()))
        if len(of_arm) > 1 and count >= SAME_FAILURES:
            return f"{count} trials failed in the same way: {next(iter(next(iter(of_arm.values()))))}"
    return None


def _failed_alike(trials: Iterable[Trial], kind: Callable[[Trial], Kind]) -> Mapping[str, dict[Kind, list[str]]]:
    """Group the messages of failed trials by what they have in common and by the kind of trial."""
    alike: dict[str, dict[Kind, list[str]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if trial.state == "failed" and trial.outcome != "infeasible":
            message = trial.message or ""
            alike[fingerprint(trial.failure or "", message)][kind(trial)].append(message)
    return alike


def fingerprint(kind: str, message: str) -> str:
    """Extract what two failures have in common when one bug causes both: numbers, addresses and paths do not count."""
    text = re.sub(r"^rank \d+: ", "", message)
    return f"{kind} {re.sub(r'(/[^ /:]+)+|0x[0-9a-f]+|[0-9a-f]{12,}|[0-9]+', '#', text)}"
