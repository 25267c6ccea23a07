"""How an arm was tuned, suggestion by suggestion."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from orchestrator.ledger import TrialState
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.summary.records.plain_json import AsFields


@dataclass(frozen=True)
class SuggestionSummary(AsFields):
    """One suggestion of a search, over its tune seeds."""

    number: int
    params: JsonObject
    trials: Sequence[str]
    states: Sequence[TrialState]
    value: float | None
    best_so_far: float | None
    range: tuple[float | None, float | None]
    """Lowest and highest over the seeds, of the best setting so far."""


@dataclass(frozen=True)
class TuneSummary(AsFields):
    """How an arm was tuned, and what was chosen."""

    suggestions: Sequence[SuggestionSummary]
    number: int | None
    """Of the suggestion that was chosen; None, as the next two, until one is."""
    params: JsonObject | None
    hash: str | None
    searched_with: str | None
    """The arm whose search this one shares."""
    repeats: Sequence[JsonObject] = ()
    """The setting of each repeat of the tuning, where there are several."""
    edges: Sequence[str] = ()
    """Keys of which the chosen value, in any repeat, lies within a tenth of an end of its range, on the range's own
    scale, or at an end of choices that are numbers."""
    within_noise: bool = False
    """The best setting leads the second, in some repeat, by less than what two seeds of the arm differ by: sqrt(2)
    times the standard deviation of its confirm values."""
    repeat_edges: Sequence[Sequence[str]] = ()
    """Of each of `repeats`, the keys that lie at an edge."""
