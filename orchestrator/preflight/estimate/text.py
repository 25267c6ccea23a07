"""The estimate in words."""

from __future__ import annotations

from orchestrator.preflight.estimate.model import Estimate
from orchestrator.system.display import duration

NAMED = 3
"""Arms that are named; of more, the first ones."""


def time_line(estimate: Estimate, command: str | None) -> str:
    """State in one line how long it takes, and how that is known; or that it is not, and `command`, which measures it,
    if any does."""
    if estimate.seconds is None and command is None:
        return f"unknown; nothing like {_unknown(estimate)} has run here"
    if estimate.seconds is None:
        return f"unknown; nothing like {_unknown(estimate)} has run here: {command} measures it"
    at_once = "one at a time" if estimate.concurrent == 1 else f"{estimate.concurrent} at once"
    if estimate.in_turn:
        at_once += ", but an arm's suggestions in turn"
    start = "" if estimate.start_s is None else f", and {duration(estimate.start_s)} to start"
    hours, most = estimate.rank_hours or 0.0, " at most" if estimate.at_most else ""
    return (
        f"about {duration(estimate.seconds)}{most} ({estimate.trials} trials, {at_once}){start}; "
        f"{hours:,.{0 if hours >= 10 else 2}f} rank-hours; from {estimate.source}"
    )


def _unknown(estimate: Estimate) -> str:
    labels = estimate.unknown
    if len(labels) == len(estimate.arms):
        return "it"
    more = f" and {len(labels) - NAMED} more" if len(labels) > NAMED else ""
    return ", ".join(f"'{label}'" for label in labels[:NAMED]) + more
