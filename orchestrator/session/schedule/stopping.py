"""What is stopped because its trials fail in the same way: a bug or an impossible setting, and not bad luck."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable

from orchestrator.ledger import Trial

SAME_FAILURES = 3
"""Different trials that fail with the same words before their arm is stopped: a bug or an impossible setting, not bad
luck. Of two arms, and while none has succeeded, they stop the sweep."""


def stopped_arms(trials: Iterable[Trial]) -> dict[str, str]:
    """Find the arms where SAME_FAILURES trials failed alike, and the message. What a person gave up does not count, nor
    what an arm does at another's setting."""
    return _stopped(trial for trial in trials if trial.stage != "swap")


def stopped_swaps(trials: Iterable[Trial]) -> dict[str, str]:
    """Find the arms where SAME_FAILURES trials at another's setting failed alike, and the message: no more of these are
    begun, and all else of the arm goes on."""
    return _stopped(trial for trial in trials if trial.stage == "swap")


def _stopped(trials: Iterable[Trial]) -> dict[str, str]:
    alike = _failed_alike(trials)
    return {
        arm: next(iter(messages))
        for of_arm in alike.values()
        for arm, messages in of_arm.items()
        if len(messages) >= SAME_FAILURES
    }


def stops_the_sweep(trials: Iterable[Trial]) -> str | None:
    """Explain why the whole sweep stops: SAME_FAILURES trials, of two arms or more, failed alike, and none has
    succeeded. A trial that diverged has not succeeded. None: the sweep goes on."""
    trials = list(trials)
    if any(trial.state in ("done", "pruned") and trial.outcome != "diverged" for trial in trials):
        return None
    for of_arm in _failed_alike(trials).values():
        count = sum(map(len, of_arm.values()))
        if len(of_arm) > 1 and count >= SAME_FAILURES:
            return f"{count} trials failed in the same way: {next(iter(next(iter(of_arm.values()))))}"
    return None


def _failed_alike(trials: Iterable[Trial]) -> dict[str, dict[str, list[str]]]:
    """Group the messages of failed trials by what they have in common and by arm."""
    alike: dict[str, dict[str, list[str]]] = defaultdict(lambda: defaultdict(list))
    for trial in trials:
        if trial.state == "failed" and trial.outcome != "infeasible":
            message = trial.message or ""
            alike[fingerprint(trial.failure or "", message)][trial.arm].append(message)
    return alike


def fingerprint(kind: str, message: str) -> str:
    """Extract what two failures have in common when one bug causes both: numbers, addresses and paths do not count."""
    text = re.sub(r"^rank \d+: ", "", message)
    return f"{kind} {re.sub(r'(/[^ /:]+)+|0x[0-9a-f]+|[0-9a-f]{12,}|[0-9]+', '#', text)}"
