"""The four plots of a report: differences seed by seed, the metric while training, its cost, and the tuning."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import partial
from statistics import fmean
from typing import NamedTuple, Protocol

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
    share_limits,
    shorten,
)
from orchestrator.report.summary.records import Answer, ArmSummary, ComparisonSummary, Curve
from orchestrator.report.summary.sentences import deciding_p, lost, verdict_of
from orchestrator.statistics import Comparison
from orchestrator.system.display import counted

TOGETHER = 6
"""Arms that share one panel; more get a panel each, with the others grey behind it."""

WIDE = 2 * "\u2003"
"""Space that a browser does not make narrower."""

NAMES = ("differences", "curves", "cost", "tuning")
"""Of the plots, and so of their files."""


class DrawArm(Protocol):
    """Draws the line of an arm."""

    def __call__(self, axes: Axes, arm: ArmSummary, *, colour: str) -> tuple[float, float] | None:
        """Draw the line and return its end in data units; None with nothing to draw."""


Path = tuple[Sequence[float], Sequence[float]]
"""A line without its dots and bands, in data units."""


class Plot(NamedTuple):
    """One finished plot."""

    name: str
    title: str
    caption: str
    """What is seen and how it is read."""
    png: bytes
    svg: str


def draw(answer: Answer, curves: Mapping[str, Curve]) -> list[Plot]:
    """Draw the plots that there are numbers for, in the order of the report. curves: by label of the arm."""
    drawn = (_draw_differences(answer), _draw_curves(answer, curves), _draw_cost(answer), _draw_tuning(answer))
    return [plot for plot in drawn if plot is not None]


def _draw_differences(answer: Answer) -> Plot | None:
    shown = [comparison for comparison in answer.comparisons if comparison.result.n_trained]
    if not shown:
        return None
    caption = "Each dot is one seed: the arm minus its baseline. Below the dots, their mean and its interval."
    if answer.smallest_difference:
        limit = formatting.value(answer.smallest_difference)
        caption += f" Shaded: differences under {limit}, too small to matter."
    made = render(partial(_differences, answer, shown), "differences")
    return Plot("differences", "Difference, seed by seed", caption, *made)


def _draw_curves(answer: Answer, curves: Mapping[str, Curve]) -> Plot | None:
    if not any(len(curve.samples) > 2 for curve in curves.values()):
        return None
    caption = "Mean over the confirm seeds, and its 95% t interval."
    untrained = [arm.untrained for arm in answer.arms if arm.untrained is not None]
    if untrained:
        caption += f" Before training: {formatting.value(fmean(untrained))}, not drawn."
    made = render(partial(_curves, answer, curves), "curves")
    return Plot("curves", f"{answer.metric} while training", caption, *made)


def _draw_cost(answer: Answer) -> Plot | None:
    shown = [arm for arm in answer.arms if arm.n and arm.spent["seconds"].mean is not None]
    if not shown:
        return None
    caption = "Small: one confirm trial each. Large: the arm's mean."
    made = render(partial(_cost, answer, shown), "cost")
    return Plot("cost", f"{answer.metric} against time and memory", caption, *made)


def _draw_tuning(answer: Answer) -> Plot | None:
    tried = [point for arm in answer.arms for point in _tried(arm)]
    if not tried:
        return None
    caption = "Lines: the best setting so far. Dots: single suggestions."
    if any(point.low != point.high for point in tried):
        caption = "Lines: the best setting so far, mean and range over its tune seeds. Dots: single suggestions."
    return Plot("tuning", "Tuning, best so far", caption, *render(partial(_tuning, answer), "tuning"))


def _differences(answer: Answer, shown: Sequence[ComparisonSummary]) -> Figure:
    figure = Figure(figsize=(WIDTH, 0.62 + 0.82 * len(shown)))
    axes = panel(figure, left=0.25, right=0.25, bottom=0.62, height=0.82 * len(shown))
    limit, order = answer.smallest_difference, [arm.label for arm in answer.arms]
    axes.axvspan(-limit, limit, color=MUTED, alpha=0.13, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    across = axes.get_yaxis_transform()
    for row, comparison in enumerate(shown):
        result = comparison.result
        colour, marker = look(order.index(result.a))
        values = _measured(result)
        heights = [row + 0.02 + 0.22 * (k / max(len(values) - 1, 1) - 0.5) for k in range(len(values))]
        axes.plot(values, heights, marker, color=colour, markersize=5, alpha=0.75, markeredgewidth=0)
        if result.interval:
            axes.plot(result.interval, [row + 0.28] * 2, color=INK, linewidth=1.4, solid_capstyle="butt")
        if result.delta is not None:
            axes.plot([result.delta], [row + 0.28], "D", color=INK, markersize=4.5)
        verdict = verdict_of(comparison) + (
            f", {lost(result)} of {counted(result.n, 'pair')} diverged" if lost(result) else ""
        )
        if (p := deciding_p(result)) is not None:
            verdict += f", p = {formatting.probability(p)}"
        named = shorten(f"{result.a} - {result.b}", 62 - len(verdict))
        box = {"facecolor": PAPER, "edgecolor": "none", "pad": 1}  # lines end where words are
        axes.text(0, row - 0.27, named, transform=across, va="center", bbox=box)
        axes.text(1, row - 0.27, verdict, transform=across, va="center", ha="right", color=MUTED, bbox=box)
    axes.set_ylim(len(shown) - 0.5, -0.5)
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(round_ticks(5))
    results = [comparison.result for comparison in shown]
    ends = [x for result in results for x in (*(result.interval or ()), *_measured(result))]
    low, high = min(0.0, -limit, *ends), max(0.0, limit, *ends)
    margin = 0.06 * (high - low) or 1.0
    axes.set_xlim(low - margin, high + margin)
    left, right = ("worse", "better") if answer.mode == "max" else ("better", "worse")
    axes.set_xlabel(f"← {left}{WIDE}difference in {answer.metric}{WIDE}{right} →")
    return figure


def _measured(result: Comparison) -> list[float]:
    """Return the differences of the seeds where both sides trained."""
    return [pair.difference for pair in result.pairs if not pair.diverged]


def _curves(answer: Answer, curves: Mapping[str, Curve]) -> Figure:
    def line(axes: Axes, arm: ArmSummary, *, colour: str) -> tuple[float, float] | None:
        curve = curves[arm.label]
        samples, mean = _learned(curve)
        low, high = ([end for end in ends[1:] if end is not None] for ends in (curve.low, curve.high))
        if not samples:
            return None
        axes.plot(samples, mean, color=colour, linewidth=1.6)
        if len(low) == len(samples):
            axes.fill_between(samples, low, high, color=colour, alpha=0.16, linewidth=0)
        return samples[-1], mean[-1]

    units = {curve.unit for curve in curves.values()}
    behind = [_learned(curves[arm.label]) for arm in answer.arms]
    return _by_arm(answer, line, behind, xlabel=" or ".join(sorted(units)) or "pairs seen")


def _learned(curve: Curve) -> Path:
    """Return the curve without its first point: an untrained encoder is so far off that all else would be one line."""
    return curve.samples[1:], curve.mean[1:]


def _cost(answer: Answer, shown: Sequence[ArmSummary]) -> Figure:
    order = [arm.label for arm in answer.arms]
    height = max(1.7, labels_high([arm.label for arm in shown]))
    row = height + 0.55 + TOP
    figure = Figure(figsize=(WIDTH, 2 * row))
    for bottom, key, xlabel in ((row, "seconds", "seconds of training"), (0, "peak_memory_mb", "peak memory, MB")):
        axes, ends = panel(figure, bottom=bottom + 0.55, height=height), []
        costs: list[float] = []
        for arm in shown:
            colour, marker = look(order.index(arm.label))
            pairs = [(value.seconds if key == "seconds" else value.peak_memory_mb, value.value) for value in arm.values]
            dots = [(cost, value) for cost, value in pairs if cost is not None and value is not None]
            if not dots:
                continue
            xs, ys = zip(*dots, strict=True)
            axes.plot(xs, ys, marker, color=colour, markersize=3.5, alpha=0.4, markeredgewidth=0)
            axes.plot(fmean(xs), fmean(ys), marker, color=colour, markersize=8, markeredgecolor=PAPER, zorder=3)
            ends.append((fmean(xs), fmean(ys), arm.label, colour))
            costs += xs
        axes.set_xlim(*cost_limits(costs))
        dress(axes, heading=answer.metric, xlabel=xlabel)
        label_ends(axes, ends)
    return figure


def cost_limits(costs: Sequence[float]) -> tuple[float, float]:
    """Choose limits around all costs, and never so close that a small difference would look large: a tenth of a cost is
    at most a quarter of the width."""
    low, high = min(costs, default=0.0), max(costs, default=1.0)
    width = max(1.2 * (high - low), 0.4 * high) or 1.0
    middle = max((low + high) / 2, width / 2)
    return middle - width / 2, middle + width / 2


def _tuning(answer: Answer) -> Figure:
    def line(axes: Axes, arm: ArmSummary, *, colour: str) -> tuple[float, float] | None:
        tried = _tried(arm)
        if not tried:
            return None
        number, best = [point.number + 1 for point in tried], [point.best for point in tried]
        axes.step(number, best, where="post", color=colour, linewidth=1.6)
        low, high = [point.low for point in tried], [point.high for point in tried]
        axes.fill_between(number, low, high, step="post", color=colour, alpha=0.16, linewidth=0)
        axes.plot(number, [point.value for point in tried], ".", color=colour, alpha=0.55, markersize=5)
        return number[-1], best[-1]

    figure = _by_arm(answer, line, [_steps(_tried(arm)) for arm in answer.arms], xlabel="suggestion")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


def _by_arm(answer: Answer, line: DrawArm, behind: Sequence[Path], *, xlabel: str) -> Figure:
    """Draw one panel for all arms, or one for each when they are many, with all lines grey behind its own."""
    arms, metric = answer.arms, answer.metric
    if len(arms) <= TOGETHER:
        figure = Figure(figsize=(WIDTH, 2.9))
        axes, ends = panel(figure, bottom=0.55), []
        for index, arm in enumerate(arms):
            colour, _ = look(index)
            if end := line(axes, arm, colour=colour):
                ends.append((*end, arm.label, colour))
        dress(axes, heading=metric, xlabel=xlabel)
        label_ends(axes, ends)
        return figure
    # One line with gaps: as a line for each arm, those of 150 arms would take a minute.
    grey = [[x for path in behind for x in (*path[axis], math.nan)] for axis in (0, 1)]
    rows = math.ceil(len(arms) / 2)
    whole = 0.9 + 1.5 * rows
    figure = Figure(figsize=(WIDTH, whole))
    figure.subplots_adjust(LEFT / WIDTH, 0.5 / whole, 1 - 0.1 / WIDTH, 1 - 0.5 / whole, wspace=0.12, hspace=0.42)
    panels: list[Axes] = []
    for index, arm in enumerate(arms):
        panels.append(axes := figure.add_subplot(rows, 2, index + 1))
        axes.plot(*grey, color=LINE, linewidth=0.9)
        line(axes, arm, colour=look(index)[0])
        last = index >= len(arms) - 2
        dress(axes, xlabel=xlabel if last else "")
        axes.tick_params(labelbottom=last, labelleft=index % 2 == 0)
        axes.set_title(shorten(arm.label, 28), loc="left", pad=4)
    share_limits(panels)
    figure.text(0.06 / WIDTH, 1 - 0.14 / whole, metric, color=MUTED, va="top")
    return figure


class Tried(NamedTuple):
    """A suggestion: its value, NaN where it has none, and the best setting by then with its range over the seeds."""

    number: int
    value: float
    best: float
    low: float
    high: float


def _steps(tried: Sequence[Tried]) -> Path:
    """Return the corners of the best settings so far, as they are held until the next one."""
    xs: list[float] = []
    ys: list[float] = []
    for point in tried:
        if not ys or point.best != ys[-1]:
            xs += [point.number + 1] * (2 if ys else 1)
            ys += [*ys[-1:], point.best]
    return ([*xs, tried[-1].number + 1], [*ys, ys[-1]]) if tried else ([], [])


def _tried(arm: ArmSummary) -> list[Tried]:
    """Return the arm's suggestions, from the first one on that has a value."""
    tried = []
    for suggestion in arm.tune.suggestions if arm.tune else ():
        best, (low, high) = suggestion.best_so_far, suggestion.range
        if best is not None and low is not None and high is not None:
            value = math.nan if suggestion.value is None else suggestion.value
            tried.append(Tried(suggestion.number, value, best, low, high))
    return tried
