"""The plot of the differences: each comparison seed by seed, with its name at the left and its verdict at the right."""

from __future__ import annotations

from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from orchestrator.report import formatting
from orchestrator.report.render.figure import INK, MUTED, PAPER, WIDTH, panel, round_ticks, text_width, wrapped
from orchestrator.report.render.looks import Looks
from orchestrator.report.summary.records import ComparisonSummary
from orchestrator.report.summary.sentences import deciding_p, lost, verdict_of
from orchestrator.statistics import Comparison
from orchestrator.system.display import counted

MOST_DOTS, MOST_ROWS = 24, 60
"""Comparisons up to which seeds are drawn, and up to which all are."""

VERDICT_LINES = 5
"""The most that a verdict takes, with all that qualifies it."""

LINE_HIGH, RIGHT, WIDE_SPACE = 0.17, 1.3, 2 * "\u2003"
"""Inches of a line of text and of the verdicts; space that a browser does not make narrower."""


def shown(looks: Looks) -> list[ComparisonSummary]:
    """Choose the comparisons that are drawn: of very many those that say something, in their order, and then others."""
    drawn = [comparison for comparison in looks.answer.comparisons if comparison.result.n]
    if len(drawn) <= MOST_ROWS:
        return drawn
    kept = sorted(drawn, key=lambda c: c.result.verdict in ("inconclusive", "equivalent"))[:MOST_ROWS]
    chosen = {id(comparison) for comparison in kept}
    return [comparison for comparison in drawn if id(comparison) in chosen]


def caption_of_differences(looks: Looks) -> str | None:
    """Say how the differences are read; None where there are none."""
    rows = shown(looks)
    if not rows:
        return None
    dots = "Each dot is one seed: the arm minus its baseline. Below the dots, their mean and its interval."
    caption = dots if len(rows) <= MOST_DOTS else "The arm minus its baseline: mean and interval."
    if limit := looks.answer.smallest_difference:
        caption += f" Shaded: differences under {formatting.value(limit)}, too small to matter."
    if any(lost(comparison.result) for comparison in rows):
        caption += " A cross at an edge: a seed in which the side that loses there diverged; in the middle: both did."
    if left := len([c for c in looks.answer.comparisons if c.result.n]) - len(rows):
        caption += f" Of {counted(left, 'more comparison')} the table has the numbers."
    return caption


def title_of_differences(looks: Looks) -> str:
    """Say what is drawn."""
    return f"Difference in {looks.answer.metric}" + (", seed by seed" if len(shown(looks)) <= MOST_DOTS else "")


def draw_differences(looks: Looks) -> Figure:
    """Draw the differences of every comparison."""
    answer, names, rows = looks.answer, looks.names, shown(looks)
    grouped: dict[tuple[str, str], list[ComparisonSummary]] = {}
    for comparison in rows:
        a, b = comparison.result.a, comparison.result.b
        grouped.setdefault((names.at(a, b).strip(), names.sides(a, b)[1]), []).append(comparison)
    left = min(1.35, max(text_width(_name(comparison, looks)) for comparison in rows) + 0.12)
    dots = len(rows) <= MOST_DOTS
    whole = 0.62 + sum(_high(comparison, looks, left, dots=dots) for comparison in rows) + 0.27 * len(grouped)
    figure = Figure(figsize=(WIDTH, whole))
    axes = panel(figure, left=left, right=RIGHT, bottom=0.55, height=whole - 0.62)
    axes.set_ylim(whole - 0.62, 0)  # in inches from the top
    low, high = _limits(rows, answer.smallest_difference)
    axes.set_xlim(low, high)
    axes.axvspan(-answer.smallest_difference, answer.smallest_difference, color=MUTED, alpha=0.13, linewidth=0)
    axes.axvline(0, color=MUTED, linewidth=0.8)
    at = 0.0
    for (place, baseline), group in grouped.items():
        heading = f"{place}, against {baseline}" if place else f"against {baseline}"
        _beside(axes, wrapped(heading, WIDTH - 0.2, 1), at + 0.14, left=left, colour=MUTED)
        at += 0.27
        for comparison in group:
            tall = _high(comparison, looks, left, dots=dots)
            _row(axes, looks, comparison, at + tall / 2, left=left, dots=dots)
            at += tall
    axes.set_yticks([])
    axes.spines["left"].set_visible(False)
    axes.grid(axis="x")
    axes.xaxis.set_major_locator(round_ticks(4))
    worse, better = ("worse", "better") if answer.mode == "max" else ("better", "worse")
    axes.set_xlabel(f"← {worse}{WIDE_SPACE}difference{WIDE_SPACE}{better} →")
    return figure


def _row(axes: Axes, looks: Looks, comparison: ComparisonSummary, middle: float, *, left: float, dots: bool) -> None:
    """Draw one comparison around a height in inches. left: inches beside the panel."""
    result = comparison.result
    colour, marker = looks.of[result.a]
    values = measured(result)
    if dots:
        heights = [middle - 0.09 + 0.16 * (k / max(len(values) - 1, 1) - 0.5) for k in range(len(values))]
        size = 5 if len(values) <= 20 else 3.5
        axes.plot(values, heights, marker, color=colour, markersize=size, alpha=0.75, markeredgewidth=0)
    line = middle + (0.12 if dots else 0)
    if comparison.interval:
        axes.plot(comparison.interval, [line] * 2, color=INK, linewidth=1.4, solid_capstyle="butt")
    if result.delta is not None:
        axes.plot([result.delta], [line], "D", color=INK if dots else colour, markersize=4.5)
    _crosses(axes, result, middle, colour, is_more_better=looks.answer.mode == "max")
    _beside(axes, wrapped(_name(comparison, looks), left - 0.1), middle, left=left)
    _beside(axes, _verdict(comparison, looks, dots=dots), middle)


def _name(comparison: ComparisonSummary, looks: Looks) -> str:
    """Name the arm of a comparison, whose baseline and place stand above."""
    a, b = comparison.result.a, comparison.result.b
    return looks.names.level[a] if looks.names.where[a] == looks.names.where[b] else looks.names.arm[a]


def _crosses(axes: Axes, result: Comparison, middle: float, colour: str, *, is_more_better: bool) -> None:
    """Draw a cross for each pair that diverged, at the edge where the side that did is worse."""
    low, high = axes.get_xlim()
    edge = 0.03 * (high - low)
    worse_for_a = low + edge if is_more_better else high - edge
    at = {"a": worse_for_a, "b": low + high - worse_for_a, "both": 0.0}
    crosses = [at[pair.diverged] for pair in result.pairs if pair.diverged]
    heights = [middle - 0.09 + 0.16 * (k / max(len(crosses) - 1, 1) - 0.5) for k in range(len(crosses))]
    axes.plot(crosses, heights, "x", color=colour, markersize=5, markeredgewidth=1.4)


def _verdict(comparison: ComparisonSummary, looks: Looks, *, dots: bool) -> str:
    """Write the verdict and its p-value in as many lines as they take; among many rows the verdict alone."""
    result = comparison.result
    verdict = verdict_of(comparison, looks.answer.smallest_difference)
    lines = [wrapped(verdict, RIGHT - 0.15, most=VERDICT_LINES)]
    if dots and (p := deciding_p(comparison)) is not None:
        lines.append(f"p = {formatting.probability(p)}")
    if lost(result):
        lines.append(f"{lost(result)} of {result.n} diverged")
    return "\n".join(lines)


def _high(comparison: ComparisonSummary, looks: Looks, left: float, *, dots: bool) -> float:
    """Compute the inches that a row takes."""
    name = wrapped(_name(comparison, looks), left - 0.1)
    lines = 1 + max(name.count("\n"), _verdict(comparison, looks, dots=dots).count("\n"))
    return max(0.5 if dots else 0.24, LINE_HIGH * lines + 0.12)


def _limits(rows: Sequence[ComparisonSummary], limit: float) -> tuple[float, float]:
    ends = [x for one in rows for x in (*(one.interval or ()), *measured(one.result))]
    low, high = min(0.0, -limit, *ends), max(0.0, limit, *ends)
    margin = 0.06 * (high - low) or 1.0
    return low - margin, high + margin


def measured(result: Comparison) -> list[float]:
    """List the differences of the seeds where both sides trained."""
    return [pair.difference for pair in result.pairs if not pair.diverged]


def _beside(axes: Axes, text: str, at: float, *, left: float | None = None, colour: str = INK) -> None:
    """Write beside the panel at a height in data units: so many inches to its left, or to its right. Lines end where
    words are."""
    edge, points = (1, 8.0) if left is None else (0, 4 - left * 72)
    axes.annotate(
        text,
        (edge, at),
        (points, 0),
        xycoords=axes.get_yaxis_transform(),
        textcoords="offset points",
        annotation_clip=False,
        va="center",
        linespacing=1.2,
        color=colour,
        bbox={"facecolor": PAPER, "edgecolor": "none", "pad": 1},
    )
