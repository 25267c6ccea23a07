"""Budgets: what each arm was given, which of pairs, steps and seconds was held equal, and what training took."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from statistics import fmean
from typing import Any

from orchestrator.ledger import Trial
from orchestrator.report import formatting
from orchestrator.sweep import merged
from orchestrator.system.display import by_count, counted

KINDS = {"samples": "pairs", "steps": "steps", "seconds": "seconds"}
"""What a budget can be in, and how a reader calls it."""

Json = dict[str, Any]


def declared(sweep: Json, planned: Json, trials: Sequence[Trial]) -> Json:
    """The budget of an arm as its jobs have it, such as {"samples": 1000}; of its plan while it has no trials."""
    jobs = (*(trial.job for trial in trials), merged(sweep.get("job", {}), planned["settings"]))
    found: Mapping[str, Any] = next((job["budget"] for job in jobs if job.get("budget")), {})
    return {kind: found[kind] for kind in KINDS if found.get(kind) is not None}


def held_equal(arms: Sequence[Json]) -> str | None:
    """The kind of budget that every arm has the same amount of; pairs count as equal up to a batch. None: no kind."""
    kinds = {kind for arm in arms for kind in arm["budget"]}
    if len(kinds) != 1 or not all(arm["budget"] for arm in arms):
        return None
    (kind,) = kinds
    amounts = [arm["budget"][kind] for arm in arms]
    batches = [arm["samples"] / arm["steps"] for arm in arms if arm["samples"] and arm["steps"]]
    rounding = max(batches, default=0) if kind == "samples" else 0
    return kind if max(amounts) == min(amounts) or max(amounts) - min(amounts) < rounding else None


def words(budget: Json) -> str:
    """`1,000 pairs`."""
    named = (by_count(amount, KINDS[kind].removesuffix("s"), KINDS[kind]) for kind, amount in budget.items())
    amounts = (f"{amount:,.15g}" for amount in budget.values())
    return " and ".join(f"{amount} {name}" for amount, name in zip(amounts, named, strict=True)) or "no budget"


def several(arms: Iterable[Json]) -> str:
    """`1,000 pairs, 2,000 pairs, 30 seconds`: each budget of these arms once; of many, how many there are."""
    found = list(dict.fromkeys(words(arm["budget"]) for arm in arms))
    return ", ".join(found) if len(found) <= 4 else f"{found[0]} and {counted(len(found) - 1, 'other')}"


def spent(amounts: Iterable[float | None]) -> tuple[float | None, list[float] | None]:
    """Mean, and [lowest, highest], of what the trials of an arm took; a whole number where all took the same."""
    given = [amount for amount in amounts if amount is not None]
    if not given:
        return None, None
    low, high = min(given), max(given)
    return (low if low == high else fmean(given)), [low, high]


def shown(mean: float | None, ends: Sequence[float] | None, write: Any) -> str:
    """`1,024 (980 to 1,060)`; the mean alone where the others read the same. write: how one number is written."""
    said: str = write(mean)
    low, high = (write(end) for end in ends) if ends else (said, said)
    return said if low == said == high else f"{said} ({low} to {high})"


def count(amount: float | None) -> str:
    """Pairs or steps."""
    return formatting.count(None if amount is None else round(amount))
