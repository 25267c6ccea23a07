"""Of ordered levels: which ones nothing beats, in each stratum, as a second question beside the verdicts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

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
    fallen: Sequence[str],
    mode: statistics.Mode,
) -> WhichSummary | None:
    """Ask which levels of the first factor nothing beats, in every stratum of the others.

    values: label of an arm -> seed -> final metric. fallen: arms that diverged, which are out. None where the first
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
        seeds = sorted(set.intersection(*(set(values.get(label, {})) for label in judged))) if judged else []
        if statistics.smallest_p(len(seeds) + 1) > alpha:
            return None
        table = [[values[label][seed] * (1 if mode == "max" else -1) for label in judged] for seed in seeds]
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
    return WhichSummary(factor, alpha, summaries, _interaction(strata, values))


def _interaction(strata: Mapping[str, Sequence[ArmTable]], values: Mapping[str, Mapping[int, float]]) -> float | None:
    """Ask whether levels differ in the same way in every stratum; None where one lacks a level, or a seed."""
    labels = [[arm["label"] for arm in own] for own in strata.values()]
    if len({len(own) for own in labels}) > 1:
        return None
    seeds = sorted(set.intersection(*(set(values.get(label, {})) for own in labels for label in own)))
    tables = [[[values[label][seed] for label in own] for seed in seeds] for own in labels]
    return statistics.interaction_p(tables) if seeds else None


def _is_number(level: JsonValue) -> bool:
    return isinstance(level, int | float) and not isinstance(level, bool)
