"""The four plots of a report: differences seed by seed, the metric while training, its cost, and the tuning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial
from statistics import fmean
from typing import Any, NamedTuple

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from orchestrator.report import formatting
from orchestrator.report.render.figure import (
    INK,
    LEFT,
    LINE,
    MUTED,
    PAPER,
    TOP,
    WIDTH,
    dress,
    label_ends,
    labels_high,
    look,
    panel,
    render,
    round_ticks,
    shorten,
)
from orchestrator.system.display import counted

TOGETHER = 6
"""Arms that share one panel; more get a panel each, with the others grey behind it."""

WIDE = 2 * "\u2003"
"""Space that a browser does not make narrower."""

NAMES = ("differences", "curves", "cost", "tuning")
"""Of the plots, and so of their files."""

Json = dict[str, Any]
DrawArm = Callable[..., tuple[float, float] | None]
"""(axes, arm, colour, behind) -> where the arm's line ends, in data units; None when there is nothing to draw."""


class Plot(NamedTuple):
    """One finished plot."""

    name: str
    title: str
    caption: str
    """What is seen and how it is read."""
    png: bytes
    svg: str


def draw(answer: Json, curves: Json) -> list[Plot]:
    """The plots that there are numbers for, in the order of the report. `answer`, `curves`: those of evidence."""
    metric, arms = answer["metric"], answer["arms"]
    plots = []

    def add(name: str, title: str, caption: str, figure: Callable[[], Figure]) -> None:
        plots.append(Plot(name, title, caption, *render(figure, name)))

    if any(one["n_trained"] for one in answer["comparisons"]):
        caption = "Each dot is one seed: the arm minus its baseline. Below the dots, their mean and its 95% t interval."
        if answer["smallest_difference"]:
            caption += (
                f" Shaded: differences under {formatting.value(answer['smallest_difference'])}, too small to matter."
            )
        add("differences", "Difference, seed by seed", caption, partial(_differences, answer))
    if any(len(curve["samples"]) > 2 for curve in curves.values()):
        caption = "Mean over the confirm seeds, and its 95% t interval."
        untrained = [arm["untrained"] for arm in arms if arm["untrained"] is not None]
        if untrained:
            caption += f" Before training: {formatting.value(fmean(untrained))}, not drawn."
        add("curves", f"{metric} while training", caption, partial(_curves, answer, curves))
    if any(arm["n"] and arm["seconds"] is not None for arm in arms):
        caption = "Small: one confirm trial each. Large: the arm's mean."
        add("cost", f"{metric} against time and memory", caption, partial(_cost, answer))
    if any(_tried(arm) for arm in arms):
        caption = "Lines: the best setting so far. Dots: single suggestions."
        if any(one["range"][0] != one["range"][1] for arm in arms for one in _tried(arm)):
            caption = "Lines: the best setting so far, mean and range over its tune seeds. Dots: single suggestions."
        add("tuning", "Tuning, best so far", caption, partial(_tuning, answer))
    return plots


def _differences(answer: Json) -> Figure:
    shown = [one for one in answer["comparisons"] if one["n_trained"]]
    figure = Figure(figsize=(WIDTH, 0.62 + 0.82 * len(shown)))
    axes = panel(figure, left=0.25, right=0.25, bottom=0.62, height=0.82 * len(shown))
    limit, order = answer["smallest_difference"], [arm["label"] for arm in answer["arms"]]
    axes.axvspan(-limit, limit, color=MUTED, alpha=0.13, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    across = axes.get_yaxis_transform()
    for row, one in enumerate(shown):
        colour, marker = look(order.index(one["a"]))
        values = _measured(one)
        heights = [row + 0.02 + 0.22 * (k / max(len(values) - 1, 1) - 0.5) for k in range(len(values))]
        axes.plot(values, heights, marker, color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        if one["ci95"]:
            axes.plot(one["ci95"], [row + 0.28] * 2, color=INK, linewidth=1.4, solid_capstyle="butt")
        if one["delta"] is not None:
            axes.plot([one["delta"]], [row + 0.28], "D", color=INK, markersize=4.5)
        lost = sum(one["diverged"].values())
        verdict = formatting.verdict_of(one) + (f", {lost} of {counted(one['n'], 'pair')} diverged" if lost else "")
        if one["p_holm"] is not None and one["verdict"] != "diverges":
            verdict += f", p = {formatting.probability(one['p_holm'])}"
        named = shorten(f"{one['a']} - {one['b']}", 62 - len(verdict))
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # lines end where words are
        axes.text(0, row - 0.27, named, transform=across, va="center", bbox=box)
        axes.text(1, row - 0.27, verdict, transform=across, va="center", ha="right", color=MUTED, bbox=box)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(round_ticks(5))
    ends = [x for one in shown for x in (*(one["ci95"] or ()), *_measured(one))]
    low, high = min(0.0, -limit, *ends), max(0.0, limit, *ends)
    margin = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    left, right = ("worse", "better") if answer["mode"] == "max" else ("better", "worse")
    axes.set_xlabel(f"← {left}{WIDE}difference in {answer['metric']}{WIDE}{right} →")
    return figure


def _measured(one: Json) -> list[float]:
    """The differences of the seeds in which both sides trained."""
    return [each["value"] for each in one["differences"] if each["value"] is not None]


def _curves(answer: Json, curves: Json) -> Figure:
    def one(axes: Axes, arm: Json, colour: str, behind: bool) -> tuple[float, float] | None:
        # Without the first point: an untrained encoder is so far off that all else would be one line.
        seen, mean, low, high = (curves[arm["label"]][key][1:] for key in ("samples", "mean", "low", "high"))
        if not seen:
            return None
        axes.plot(seen, mean, color=colour, linewidth=0.9 if behind else 1.6)
        if not behind and None not in low:
            axes.fill_between(seen, low, high, color=colour, alpha=0.16, linewidth=0)
        return seen[-1], mean[-1]

    return _by_arm(answer, one, xlabel="pairs seen")


def _cost(answer: Json) -> Figure:
    shown = [arm for arm in answer["arms"] if arm["n"] and arm["seconds"] is not None]
    order = [arm["label"] for arm in answer["arms"]]
    height = max(1.7, labels_high([arm["label"] for arm in shown]))
    row = height + 0.55 + TOP
    figure = Figure(figsize=(WIDTH, 2 * row))
    for bottom, key, xlabel in ((row, "seconds", "seconds of training"), (0, "peak_memory_mb", "peak memory, MB")):
        axes, ends = panel(figure, bottom=bottom + 0.55, height=height), []
        costs: list[float] = []
        for arm in shown:
            colour, marker = look(order.index(arm["label"]))
            dots = [(one[key], one["value"]) for one in arm["values"] if None not in (one[key], one["value"])]
            if not dots:
                continue
            xs, ys = zip(*dots, strict=True)
            axes.plot(xs, ys, marker, color=colour, markersize=3.5, alpha=0.4, markeredgewidth=0)
            axes.plot(fmean(xs), fmean(ys), marker, color=colour, markersize=8, markeredgecolor=PAPER, zorder=3)
            ends.append((fmean(xs), fmean(ys), arm["label"], colour))
            costs += xs
        axes.set_xlim(*cost_limits(costs))
        dress(axes, heading=answer["metric"], xlabel=xlabel)
        label_ends(axes, ends)
    return figure


def cost_limits(costs: Sequence[float]) -> tuple[float, float]:
    """Around all costs, and never so close that a small difference would look large: a tenth of a cost is at most a
    quarter of the width."""
    low, high = min(costs, default=0.0), max(costs, default=1.0)
    width = max(1.2 * (high - low), 0.4 * high) or 1.0
    middle = max((low + high) / 2, width / 2)
    return middle - width / 2, middle + width / 2


def _tuning(answer: Json) -> Figure:
    def one(axes: Axes, arm: Json, colour: str, behind: bool) -> tuple[float, float] | None:
        tried = _tried(arm)
        if not tried:
            return None
        number, best = [each["number"] + 1 for each in tried], [each["best_so_far"] for each in tried]
        axes.step(number, best, where="post", color=colour, linewidth=0.9 if behind else 1.6)
        if not behind:
            low, high = zip(*(each["range"] for each in tried), strict=True)
            axes.fill_between(number, low, high, step="post", color=colour, alpha=0.16, linewidth=0)
            values = [math.nan if each["value"] is None else each["value"] for each in tried]
            axes.plot(number, values, ".", color=colour, alpha=0.55, markersize=5)
        return number[-1], best[-1]

    figure = _by_arm(answer, one, xlabel="suggestion")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def _by_arm(answer: Json, one: DrawArm, *, xlabel: str) -> Figure:
    """One panel for all arms, or one for each when they are many."""
    arms, metric = answer["arms"], answer["metric"]
    if len(arms) <= TOGETHER:
        figure = Figure(figsize=(WIDTH, 2.9))
        axes, ends = panel(figure, bottom=0.55), []
        for index, arm in enumerate(arms):
            colour, _ = look(index)
            if end := one(axes, arm, colour, False):
                ends.append((*end, arm["label"], colour))
        dress(axes, heading=metric, xlabel=xlabel)
        label_ends(axes, ends)
        return figure
    rows = math.ceil(len(arms) / 2)
    whole = 0.9 + 1.5 * rows
    figure = Figure(figsize=(WIDTH, whole))
    figure.subplots_adjust(LEFT / WIDTH, 0.5 / whole, 1 - 0.1 / WIDTH, 1 - 0.5 / whole, wspace=0.12, hspace=0.42)
    grid = figure.subplots(rows, 2, sharex=True, sharey=True, squeeze=False)
    for index, axes in enumerate(grid.flat):
        if index >= len(arms):
            axes.set_visible(False)
            continue
        for other in arms:
            if other is not arms[index]:
                one(axes, other, LINE, True)
        one(axes, arms[index], look(index)[0], False)
        last = index >= len(arms) - 2
        dress(axes, xlabel=xlabel if last else "")
        axes.tick_params(labelbottom=last)
        axes.set_title(shorten(arms[index]["label"], 28), loc="left", pad=4)
    figure.text(0.06 / WIDTH, 1 - 0.14 / whole, metric, color=MUTED, va="top")
    return figure


def _tried(arm: Json) -> list[Json]:
    """The arm's suggestions, from the first one on that has a value."""
    return [one for one in (arm["tune"] or {}).get("suggestions", ()) if one["best_so_far"] is not None]
