"""Plots of a line for every arm: the metric while it trained, and the best setting so far while it was tuned."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import NamedTuple, Protocol

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from jobs.core.plain import visible
from orchestrator.report import formatting
from orchestrator.report.naming import shortened
from orchestrator.report.render.figure import (
    LEFT,
    LINE,
    MUTED,
    TOP,
    WIDTH,
    dress,
    label_ends,
    labels_high,
    panel,
    share_limits,
)
from orchestrator.report.render.looks import TOGETHER, Looks
from orchestrator.report.summary.records import ArmSummary, Curve

TITLE = 24
"""Characters above one of two panels in a row."""


class DrawArm(Protocol):
    """Draws the line of an arm."""

    def __call__(self, axes: Axes, arm: ArmSummary, *, colour: str) -> tuple[float, float] | None:
        """Draw the line and return its end in data units; None with nothing to draw."""


Path = tuple[Sequence[float], Sequence[float]]
"""A line without its dots and bands, in data units."""


def caption_of_curves(looks: Looks, curves: Mapping[str, Curve]) -> str | None:
    """Say how the curves are read; None where there are none."""
    if not any(len(curve.samples) > 2 for curve in curves.values()):
        return None
    caption = f"Mean over the confirm seeds, and its 95% t interval.{_named(looks)}"
    untrained = [arm.untrained for arm in looks.answer.arms if arm.untrained is not None]
    if untrained:
        caption += f" Before training: {formatting.value(fmean(untrained))}, not drawn."
    if any(arm.diverged for arm in looks.answer.arms):
        caption += " Seeds that diverged are not in it."
    return caption


def draw_curves(looks: Looks, curves: Mapping[str, Curve]) -> Figure:
    """Draw the metric of every arm while it trained."""

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
    behind = [_learned(curves[arm.label]) for arm in looks.answer.arms]
    return _by_arm(looks, line, behind, xlabel=" or ".join(sorted(units)) or "pairs seen")


def _learned(curve: Curve) -> Path:
    """Return the curve without its first point: an untrained encoder is so far off that all else would be one line."""
    return curve.samples[1:], curve.mean[1:]


def caption_of_tuning(looks: Looks) -> str | None:
    """Say how the best settings so far are read; None where nothing was tuned."""
    points = [point for arm in looks.answer.arms for point in tried(arm)]
    if not points:
        return None
    seeds = ", mean and range over its tune seeds" if any(point.low != point.high for point in points) else ""
    return f"Lines: the best setting so far{seeds}. Dots: single suggestions.{_named(looks)}"


def draw_tuning(looks: Looks) -> Figure:
    """Draw the best setting so far of every arm."""

    def line(axes: Axes, arm: ArmSummary, *, colour: str) -> tuple[float, float] | None:
        points = tried(arm)
        if not points:
            return None
        number, best = [point.number + 1 for point in points], [point.best for point in points]
        axes.step(number, best, where="post", color=colour, linewidth=1.6)
        low, high = [point.low for point in points], [point.high for point in points]
        axes.fill_between(number, low, high, step="post", color=colour, alpha=0.16, linewidth=0)
        axes.plot(number, [point.value for point in points], ".", color=colour, alpha=0.55, markersize=5)
        return number[-1], best[-1]

    behind = [_steps(tried(arm)) for arm in looks.answer.arms]
    figure = _by_arm(looks, line, behind, xlabel="suggestion")
    for axes in figure.axes:
        axes.xaxis.set_major_locator(MaxNLocator(4, integer=True))
    return figure


class Tried(NamedTuple):
    """A suggestion: its value, NaN where it has none, and the best setting by then with its range over the seeds."""

    number: int
    value: float
    best: float
    low: float
    high: float


def tried(arm: ArmSummary) -> list[Tried]:
    """List the arm's suggestions, from the first one on that has a value."""
    found = []
    for suggestion in arm.tune.suggestions if arm.tune else ():
        best, (low, high) = suggestion.best_so_far, suggestion.range
        if best is not None and low is not None and high is not None:
            value = math.nan if suggestion.value is None else suggestion.value
            found.append(Tried(suggestion.number, value, best, low, high))
    return found


def _steps(points: Sequence[Tried]) -> Path:
    """Return the corners of the best settings so far, as they are held until the next one."""
    xs: list[float] = []
    ys: list[float] = []
    for point in points:
        if not ys or point.best != ys[-1]:
            xs += [point.number + 1] * (2 if ys else 1)
            ys += [*ys[-1:], point.best]
    return ([*xs, points[-1].number + 1], [*ys, ys[-1]]) if points else ([], [])


def _named(looks: Looks) -> str:
    if looks.how != "best":
        return ""
    return f" Named: the baseline and the {TOGETHER - 1} best of {len(looks.answer.arms)} arms; grey: the others."


def _by_arm(looks: Looks, line: DrawArm, behind: Sequence[Path], *, xlabel: str) -> Figure:
    if looks.how == "crossed":
        return _crossed(looks, line, xlabel)
    if looks.how == "apart":
        return _apart(looks, line, behind, xlabel)
    drawn = looks.best if looks.how == "best" else looks.answer.arms
    height = max(2.05, labels_high([looks.names.arm[arm.label] for arm in drawn]))
    figure = Figure(figsize=(WIDTH, height + 0.55 + TOP))
    axes, ends = panel(figure, bottom=0.55), []
    if looks.how == "best":
        axes.plot(*_with_gaps(behind), color=LINE, linewidth=0.9)
    for arm in drawn:
        colour = looks.of[arm.label].colour
        if end := line(axes, arm, colour=colour):
            ends.append((*end, looks.names.arm[arm.label], colour))
    dress(axes, heading=looks.answer.metric, xlabel=xlabel)
    label_ends(axes, ends)
    return figure


def _with_gaps(paths: Sequence[Path]) -> list[list[float]]:
    """Join paths to one line with gaps: as a line for each, those of 150 arms would take a minute."""
    return [[x for path in paths for x in (*path[axis], math.nan)] for axis in (0, 1)]


def _crossed(looks: Looks, line: DrawArm, xlabel: str) -> Figure:
    """Draw a panel for each place, with a line for each level."""
    groups = looks.of_place()
    columns = min(2, len(groups))
    rows = math.ceil(len(groups) / columns)
    legend = looks.legend_high(with_places=False)
    whole = legend + 0.85 + (2.2 if columns == 1 else 1.7) * rows
    figure = Figure(figsize=(WIDTH, whole))
    looks.draw_legend(figure, with_places=False)
    top = 1 - (legend + (0.5 if columns > 1 else 0.35)) / whole
    figure.subplots_adjust(LEFT / WIDTH, 0.5 / whole, 1 - 0.1 / WIDTH, top, wspace=0.12, hspace=0.36)
    panels: list[Axes] = []
    titles = shortened(list(groups), TITLE)
    for index, arms in enumerate(groups.values()):
        panels.append(axes := figure.add_subplot(rows, columns, index + 1))
        for arm in arms:
            line(axes, arm, colour=looks.of[arm.label].colour)
        _place_in_grid(axes, index, len(groups), columns, xlabel)
        axes.set_title(visible(titles[index]), loc="left", pad=4)
    share_limits(panels)
    figure.text(0.06 / WIDTH, 1 - (legend + 0.14) / whole, looks.answer.metric, color=MUTED, va="top")
    return figure


def _apart(looks: Looks, line: DrawArm, behind: Sequence[Path], xlabel: str) -> Figure:
    """Draw a panel for each arm, with all lines grey behind its own."""
    arms, grey = looks.answer.arms, _with_gaps(behind)
    rows = math.ceil(len(arms) / 2)
    whole = 0.9 + 1.5 * rows
    figure = Figure(figsize=(WIDTH, whole))
    figure.subplots_adjust(LEFT / WIDTH, 0.5 / whole, 1 - 0.1 / WIDTH, 1 - 0.5 / whole, wspace=0.12, hspace=0.42)
    panels: list[Axes] = []
    titles = shortened([looks.names.arm[arm.label] for arm in arms], TITLE)
    for index, arm in enumerate(arms):
        panels.append(axes := figure.add_subplot(rows, 2, index + 1))
        axes.plot(*grey, color=LINE, linewidth=0.9)
        line(axes, arm, colour=looks.of[arm.label].colour)
        _place_in_grid(axes, index, len(arms), 2, xlabel)
        axes.set_title(visible(titles[index]), loc="left", pad=4)
    share_limits(panels)
    figure.text(0.06 / WIDTH, 1 - 0.14 / whole, looks.answer.metric, color=MUTED, va="top")
    return figure


def _place_in_grid(axes: Axes, index: int, count: int, columns: int, xlabel: str) -> None:
    """Label the outer panels of a grid alone."""
    last = index >= count - columns
    dress(axes, xlabel=xlabel if last else "")
    axes.tick_params(labelbottom=last, labelleft=index % columns == 0)
