"""Budgets: what each arm was given, which of pairs, steps and seconds was held equal, and what training took."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import fmean
from typing import Protocol

from orchestrator.ledger import Trial
from orchestrator.ledger.stored import ArmTable, JsonObject
from orchestrator.report import formatting
from orchestrator.report.summary.records import Kind, Spent
from orchestrator.sweep import merged
from orchestrator.system.display import by_count, counted

KINDS: dict[Kind, str] = {"samples": "pairs", "steps": "steps", "seconds": "seconds"}
"""What a budget can be in, and how a reader calls it."""


class Budgeted(Protocol):
    """An arm with its budget as declared, and what training took."""

    @property
    def budget(self) -> Mapping[Kind, float]:
        """As declared."""

    @property
    def spent(self) -> Mapping[Kind, Spent]:
        """Of each kind."""


def declared(job: JsonObject, planned: ArmTable, trials: Sequence[Trial]) -> dict[Kind, float]:
    """Return the budget of an arm as its jobs have it, such as {"samples": 1000}, or as planned while it has no trials.
    job: the sweep's, which the arm's settings go into."""
    jobs = (*(trial.job for trial in trials), merged(job, planned["settings"]))
    table = next((budget for whole in jobs if isinstance(budget := whole.get("budget"), Mapping) and budget), {})
    return {kind: amount for kind in KINDS if isinstance(amount := table.get(kind), int | float)}


def held_equal(arms: Sequence[Budgeted]) -> Kind | None:
    """Find the kind of budget that every arm has the same amount of; None if there is none. Pairs count as equal up to
    a batch."""
    kinds = {kind for arm in arms for kind in arm.budget}
    if len(kinds) != 1 or not all(arm.budget for arm in arms):
        return None
    (kind,) = kinds
    amounts = [arm.budget[kind] for arm in arms]
    spent = [(arm.spent["samples"].mean, arm.spent["steps"].mean) for arm in arms]
    batches = [samples / steps for samples, steps in spent if samples and steps]
    rounding = max(batches, default=0) if kind == "samples" else 0
    return kind if max(amounts) == min(amounts) or max(amounts) - min(amounts) < rounding else None


def words(budget: Mapping[Kind, float]) -> str:
    """Format a budget: `1,000 pairs`."""
    named = (by_count(amount, KINDS[kind].removesuffix("s"), KINDS[kind]) for kind, amount in budget.items())
    amounts = (f"{amount:,.15g}" for amount in budget.values())
    return " and ".join(f"{amount} {name}" for amount, name in zip(amounts, named, strict=True)) or "no budget"


def several(arms: Iterable[Budgeted]) -> str:
    """List each budget of these arms once, `1,000 pairs, 2,000 pairs, 30 seconds`; of many, say how many there are."""
    different = list(dict.fromkeys(words(arm.budget) for arm in arms))
    return ", ".join(different) if len(different) <= 4 else f"{different[0]} and {counted(len(different) - 1, 'other')}"


def spent(amounts: Iterable[float | None], planned: float | None) -> Spent:
    """Compute mean, lowest and highest of what the trials of an arm took. The mean stays a whole number where all took
    the same, and is the planned amount while none has ended."""
    given = [amount for amount in amounts if amount is not None]
    if not given:
        return Spent(planned, None)
    low, high = min(given), max(given)
    return Spent(low if low == high else fmean(given), (low, high))


def shown(spent: Spent, write: Callable[[float | None], str]) -> str:
    """Format `1,024 (980 to 1,060)`; the mean alone where the ends read the same. write: how one number is written."""
    mean = write(spent.mean)
    low, high = (write(end) for end in spent.ends) if spent.ends else (mean, mean)
    return mean if mean == low == high else f"{mean} ({low} to {high})"


def count(amount: float | None) -> str:
    """Format a number of pairs or steps."""
    return formatting.count(None if amount is None else round(amount))
