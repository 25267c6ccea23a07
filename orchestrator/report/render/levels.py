"""The plot of the metric against the levels of what is compared, where these have an order: a line for each place."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from jobs.core.plain import visible
from orchestrator.report.naming import word
from orchestrator.report.render.figure import (
    GUTTER,
    INK,
    LEFT,
    MUTED,
    PAPER,
    WIDTH,
    dress,
    label_ends,
    panel,
    text_width,
)
from orchestrator.report.render.looks import TOGETHER, Looks
from orchestrator.report.summary.records import ArmSummary, Summary, WhichSummary

WIDE_RANGE = 8
"""Ratio of the largest level to the smallest from which on their scale is logarithmic."""

TICKS_APART = 0.06
"""Inches between the labels of two levels."""

DASHES: Any = ("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 2, 2)), (0, (10, 3)), (0, (1, 1)))
"""Of the lines of places."""


def found(looks: Looks) -> WhichSummary | None:
    """Return what is known of the levels, where they have an order and few enough places."""
    answer = looks.answer
    which = answer.which if isinstance(answer, Summary) else None
    return which if which is not None and len(which.strata) <= TOGETHER else None


def caption_of_levels(looks: Looks) -> str | None:
    """Say how the levels are read; None where they have no order."""
    if (which := found(looks)) is None:
        return None
    caption = "Mean over the confirm seeds, with its 95% t interval. Filled: the levels that may be the best."
    if len(which.strata) > 1:
        caption = f"A line for each {' and '.join(map(word, which.strata[0].where))}. {caption}"
    fallen = any(arm.diverged for arm in looks.answer.arms)
    return f"{caption} A cross at the lower edge: seeds diverged there." if fallen else caption


def draw_levels(looks: Looks) -> Figure:
    """Draw the metric against the levels."""
    which, arms = found(looks), {arm.label: arm for arm in looks.answer.arms}
    assert which is not None
    figure = Figure(figsize=(WIDTH, 3.1))
    axes = panel(figure, bottom=0.55)
    levels = sorted({float(str(level)) for stratum in which.strata for level in stratum.levels})
    if levels[0] > 0 and levels[-1] / levels[0] >= WIDE_RANGE:
        axes.set_xscale("log")
    ends, crosses = [], []
    for stratum, dash in zip(which.strata, DASHES, strict=False):
        own = [(float(str(level)), arms[label]) for label, level in zip(stratum.arms, stratum.levels, strict=True)]
        own.sort(key=lambda pair: pair[0])
        end = _line(axes, own, stratum.best, looks.of, dash)
        crosses += [level for level, arm in own if arm.diverged]
        if end is not None:
            ends.append((*end, looks.names.where[own[0][1].label], MUTED))
    dress(axes, heading=looks.answer.metric, xlabel=visible(looks.names.factor))
    low, high = axes.get_ylim()
    axes.plot(crosses, [low] * len(crosses), "x", color=INK, markersize=6, markeredgewidth=1.4, clip_on=False)
    axes.set_ylim(low, high)
    _ticks(axes, levels)
    label_ends(axes, [end for end in ends if end[2]])
    return figure


def _line(
    axes: Axes,
    own: Sequence[tuple[float, ArmSummary]],
    best: Sequence[str],
    look: Mapping[str, tuple[str, str]],
    dash: Any,
) -> tuple[float, float] | None:
    """Draw the line of one place, and return its end; None with nothing to draw."""
    known = [(level, arm, arm.mean) for level, arm in own if arm.mean is not None]
    if not known:
        return None
    x, y = [level for level, _, _ in known], [mean for _, _, mean in known]
    axes.plot(x, y, color=MUTED, linewidth=1.2, linestyle=dash, zorder=2)
    banded = [(level, arm.ci95) for level, arm, _ in known if arm.ci95 is not None]
    if len(banded) > 1:
        low, high = ([ends[side] for _, ends in banded] for side in (0, 1))
        axes.fill_between([level for level, _ in banded], low, high, color=MUTED, alpha=0.14, linewidth=0)
    for level, arm, mean in known:
        colour, marker = look[arm.label]
        face = colour if arm.label in best else PAPER
        axes.plot([level], [mean], marker, color=colour, markerfacecolor=face, markersize=6.5, zorder=3)
    return x[-1], y[-1]


def _ticks(axes: Axes, levels: Sequence[float]) -> None:
    """Put a tick at every level, and a number at those that have room."""
    low, high = axes.get_xlim()
    pixels = axes.transData.transform([(x, axes.get_ylim()[0]) for x in (low, high, *levels)])[:, 0]
    inches = (pixels[2:] - pixels[0]) / (pixels[1] - pixels[0]) * (WIDTH - LEFT - GUTTER)
    shown, end = [], -1.0
    for x, level in zip(inches, levels, strict=True):
        half = text_width(f"{level:g}") / 2
        has_room = x - half >= end + TICKS_APART
        shown.append(f"{level:g}" if has_room else "")
        end = x + half if has_room else end
    axes.xaxis.set_major_locator(FixedLocator(list(levels)))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(list(levels), shown)
    axes.set_xlim(low, high)
