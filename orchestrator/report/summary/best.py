"""Of ordered levels: which ones nothing beats, in each stratum, as a second question beside the verdicts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

from pydantic import JsonValue

from jobs.config import canonical
from orchestrator import statistics
from orchestrator.ledger.stored import ArmTable
from orchestrator.report.summary.records import StratumSummary, WhichSummary

FEWEST_LEVELS = 3
"""Of two, the verdict says it all."""


def which(
    factors: Mapping[str, Sequence[JsonValue]],
    arms: Sequence[ArmTable],
    values: Mapping[str, Mapping[int, float]],
    *,
    diverged: Mapping[str, Collection[int]],
    fallen: Sequence[str],
    mode: statistics.Mode,
) -> WhichSummary | None:
    """Ask which levels of the first factor nothing beats, in every stratum of the others.

    values: label of an arm -> seed -> final metric. diverged: seeds that did, which count as far below the others.
    fallen: arms that diverged as a whole, which are out. None where the first
    factor is not ordered, or has too few levels, or a stratum too few seeds that all its levels have.
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
        ended = [set(values.get(label, {})) | set(diverged.get(label, ())) for label in judged]
        seeds = sorted(set.intersection(*ended)) if judged else []
        if statistics.smallest_p(len(seeds) + 1) > alpha:
            return None
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
            )
        )
    same = len({canonical(stratum.levels) for stratum in summaries}) == 1
    return WhichSummary(factor, alpha, summaries, _interaction(strata, values) if same else None)


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
