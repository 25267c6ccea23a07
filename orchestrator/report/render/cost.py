"""The plot of what the metric costs: against seconds and against memory, side by side where there is room."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import fmean
from typing import Literal

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report.render.figure import (
    GUTTER,
    INK,
    PAPER,
    TOP,
    WIDTH,
    dress,
    label_ends,
    labels_high,
    panel,
)
from orchestrator.report.render.looks import APART, GREY, Look, Looks
from orchestrator.report.summary.records import ArmSummary, SeedValue

Cost = Literal["seconds", "peak_memory_mb"]

COSTS: dict[Cost, str] = {"seconds": "seconds of training", "peak_memory_mb": "peak memory, MB"}
"""What is drawn against, and what a reader calls it."""


def caption_of_cost(looks: Looks) -> str | None:
    """Say how the costs are read; None where there are none."""
    if not _shown(looks):
        return None
    small = "Small: one confirm trial each. Large: the arm's mean." if len(_shown(looks)) <= APART else "Means of arms."
    if looks.how in ("together", "crossed"):
        return small
    return f"{small} Named: the arms that no other one beats at a lower cost; grey: the others."


def known_costs(looks: Looks) -> list[Cost]:
    """List the costs that are known of some trial."""
    values = [value for arm in _shown(looks) for value in arm.values]
    return [cost for cost in COSTS if any(_cost(value, cost) is not None for value in values)]


def draw_cost(looks: Looks, costs: Sequence[Cost]) -> Figure:
    """Draw the metric against these costs, one panel above the other."""
    shown = _shown(looks)
    # A panel is as tall as its labels, of which there are none where a legend stands.
    tallest = max(labels_high([looks.names.arm[arm.label] for arm in _labelled(looks, shown, cost)]) for cost in costs)
    height, right = (2.2, 0.15) if looks.how == "crossed" else (max(1.9, tallest), GUTTER)
    row, legend = height + 0.55 + TOP, looks.legend_high()
    figure = Figure(figsize=(WIDTH, len(costs) * row + legend))
    if looks.how == "crossed":
        looks.draw_legend(figure)
    for k, cost in enumerate(reversed(costs)):
        axes = panel(figure, bottom=k * row + 0.55, height=height, right=right)
        _panel(axes, looks, shown, cost)
    return figure


def _panel(axes: Axes, looks: Looks, shown: Sequence[ArmSummary], cost: Cost) -> None:
    trials: dict[Look, list[tuple[float, float]]] = {GREY: []}  # first, below the others
    means: dict[Look, list[tuple[float, float]]] = {GREY: []}
    ends, labelled = [], _labelled(looks, shown, cost)
    for arm in shown:
        pairs = [(_cost(value, cost), value.value) for value in arm.values]
        dots = [(spent, value) for spent, value in pairs if spent is not None and value is not None]
        if not dots:
            continue
        xs, ys = zip(*dots, strict=True)
        look, mean = looks.of[arm.label], (fmean(xs), fmean(ys))
        if looks.how != "crossed" and arm not in labelled:
            look = GREY
        elif look == GREY:
            look = Look(INK, look.marker)  # named here, and not among the best
        trials.setdefault(look, []).extend(dots)
        means.setdefault(look, []).append(mean)
        if arm in labelled:
            ends.append((*mean, looks.names.arm[arm.label], look.colour))
    for (colour, marker), dots in trials.items():
        if dots and len(shown) <= APART:
            axes.plot(*zip(*dots, strict=True), marker, color=colour, markersize=3.5, alpha=0.4, markeredgewidth=0)
    for (colour, marker), dots in means.items():
        if dots:
            axes.plot(*zip(*dots, strict=True), marker, color=colour, markersize=8, markeredgecolor=PAPER, zorder=3)
    axes.set_xlim(*cost_limits([x for dots in trials.values() for x, _ in dots]))
    dress(axes, heading=looks.answer.metric, xlabel=COSTS[cost])
    label_ends(axes, ends)


def _labelled(looks: Looks, shown: Sequence[ArmSummary], cost: Cost) -> list[ArmSummary]:
    """Choose the arms that are named beside the panel."""
    if looks.how == "crossed":
        return []
    return list(shown) if looks.how == "together" else _front(looks, shown, cost)


def _front(looks: Looks, shown: Sequence[ArmSummary], cost: Cost) -> list[ArmSummary]:
    """List the arms that no other one beats at a lower cost."""
    sign = 1 if looks.answer.mode == "max" else -1
    spent = {
        arm.label: fmean(known)
        for arm in shown
        if (known := [x for value in arm.values if (x := _cost(value, cost)) is not None])
    }
    front: list[ArmSummary] = []
    measured = (arm for arm in shown if arm.label in spent)
    for arm in sorted(measured, key=lambda arm: (spent[arm.label], -sign * (arm.mean or 0.0))):
        if not front or sign * (arm.mean or 0.0) > sign * (front[-1].mean or 0.0):
            front.append(arm)
    return front


def cost_limits(costs: Sequence[float]) -> tuple[float, float]:
    """Choose limits around all costs, and never so close that a small difference would look large: a tenth of a cost is
    at most a quarter of the width."""
    low, high = min(costs, default=0.0), max(costs, default=1.0)
    width = max(1.2 * (high - low), 0.4 * high) or 1.0
    middle = max((low + high) / 2, width / 2)
    return middle - width / 2, middle + width / 2


def _shown(looks: Looks) -> list[ArmSummary]:
    return [arm for arm in looks.answer.arms if arm.n and arm.spent["seconds"].mean is not None]


def _cost(value: SeedValue, cost: Cost) -> float | None:
    return value.seconds if cost == "seconds" else value.peak_memory_mb
