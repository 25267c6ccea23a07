"""Of ordered levels: which ones nothing beats, in each stratum, as a second question beside the verdicts."""

from __future__ import annotations

import itertools
from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue

from jobs.config import canonical
from orchestrator import statistics
from orchestrator.ledger.stored import ArmTable
from orchestrator.report.naming import level_text
from orchestrator.report.summary.records import StratumSummary, WhichSummary
from orchestrator.system.display import by_count, counted, listed

FEWEST_LEVELS = 3
"""Of two, the verdict says it all."""


def which(
    factors: Mapping[str, Sequence[JsonValue]],
    arms: Sequence[ArmTable],
    values: Mapping[str, Mapping[int, float]],
    *,
    diverged: Mapping[str, Collection[int]],
    fallen: Collection[str],
    pending: Collection[str],
    mode: statistics.Mode,
) -> WhichSummary | None:
    """Ask which levels of the first factor nothing beats, stratum by stratum of the others: one that cannot be judged
    takes nothing from the rest, which keep the level that was planned.

    values: label of an arm -> seed -> final metric. diverged: seeds that did, which count as far below the others.
    fallen: arms that diverged as a whole, which are out. pending: arms with trials still to come, which leave their
    stratum for later. None where the first factor is not ordered, or has too few levels, or no stratum can be judged.
    """
    factor = next(iter(factors), None)
    if factor is None or len(factors[factor]) < FEWEST_LEVELS or not all(map(_is_number, factors[factor])):
        return None
    strata: dict[str, list[ArmTable]] = {}
    for arm in arms:
        others = {key: value for key, value in arm["settings"].items() if key != factor}
        strata.setdefault(canonical(others), []).append(arm)
    alpha = statistics.ALPHA / len(strata)
    summaries = []
    for own in strata.values():
        judged = [arm["label"] for arm in own if arm["label"] not in fallen]
        ended = {label: set(values.get(label, {})) | set(diverged.get(label, ())) for label in judged}
        seeds = sorted(set.intersection(*ended.values())) if judged else []
        missing = _missing(own, ended, len(seeds), alpha=alpha, pending=pending, factor=factor)
        beaten: dict[str, float] = {}
        if missing is None:
            table = _table(judged, seeds, values, 1 if mode == "max" else -1)
            beaten = dict(zip(judged, statistics.beaten_p(table), strict=True))
        summaries.append(
            StratumSummary(
                where={key: value for key, value in own[0]["settings"].items() if key != factor},
                arms=[arm["label"] for arm in own],
                levels=[arm["settings"][factor] for arm in own],
                seeds=len(seeds),
                p=[beaten.get(arm["label"]) for arm in own],
                best=[arm["label"] for arm in own if beaten.get(arm["label"], 0.0) > alpha],
                not_judged=missing,
            )
        )
    open_ = sum(stratum.not_judged is not None for stratum in summaries)
    if open_ == len(summaries):
        return None
    same = not open_ and len({canonical(stratum.levels) for stratum in summaries}) == 1
    return WhichSummary(factor, alpha, summaries, _interaction(strata, values) if same else None)


def _missing(
    own: Sequence[ArmTable],
    ended: Mapping[str, Collection[int]],
    shared: int,
    *,
    alpha: float,
    pending: Collection[str],
    factor: str,
) -> str | None:
    """Say why a stratum cannot be judged; None where it can. ended: the seeds of each arm that did not diverge as a
    whole, of which so many are shared."""
    if any(arm["label"] in pending for arm in own):
        return "confirm trials are still to come"
    if not ended:
        return "every level diverged"
    if empty := [level_text(arm["settings"][factor]) for arm in own if not ended.get(arm["label"], {0})]:
        return f"{listed(empty, separator=', ')} {by_count(len(empty), 'has', 'have')} no result"
    needed = next(n for n in itertools.count(1) if statistics.smallest_p(n + 1) <= alpha)
    if shared < needed:
        return f"its levels share {counted(shared, 'seed')} and {needed} are needed"
    return None


def _table(
    labels: Sequence[str], seeds: Sequence[int], values: Mapping[str, Mapping[int, float]], sign: int
) -> list[list[float]]:
    """Build the values seed by level, of which more is better. A level that diverged is further below the others of its
    seed than any two levels are apart."""
    rows = [
        [sign * values[label][seed] if seed in values.get(label, {}) else None for label in labels] for seed in seeds
    ]
    known = [[value for value in row if value is not None] for row in rows]
    widest = max((max(row) - min(row) for row in known if row), default=0.0) or 1.0
    low = [min(row) - widest if row else 0.0 for row in known]
    return [[low[k] if value is None else value for value in row] for k, row in enumerate(rows)]


def _interaction(strata: Mapping[str, Sequence[ArmTable]], values: Mapping[str, Mapping[int, float]]) -> float | None:
    """Ask whether levels differ in the same way in every stratum, which all have the same; None where one lacks a
    seed."""
    labels = [[arm["label"] for arm in own] for own in strata.values()]
    seeds = sorted(set.intersection(*(set(values.get(label, {})) for own in labels for label in own)))
    tables = [[[values[label][seed] for label in own] for seed in seeds] for own in labels]
    return statistics.interaction_p(tables) if seeds else None


def _is_number(level: JsonValue) -> bool:
    return isinstance(level, int | float) and not isinstance(level, bool)
