"""The plot of the metric against the levels of what is compared, where these have an order: a line for each place."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from os.path import commonprefix
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from pydantic import JsonValue

from jobs.config import canonical
from jobs.core.plain import visible
from orchestrator.report.formatting import enumerated
from orchestrator.report.naming import level_text, shortened, word
from orchestrator.report.render.figure import (
    COLOURS,
    GUTTER,
    INK,
    LEFT,
    MARGIN,
    MUTED,
    PAPER,
    WIDTH,
    dress,
    label_ends,
    panel,
    text_width,
)
from orchestrator.report.render.looks import TOGETHER, Looks
from orchestrator.report.summary.best import FEWEST_LEVELS
from orchestrator.report.summary.records import ArmSummary, Summary
from orchestrator.system.display import counted

WIDE_RANGE = 8
"""Ratio of the largest level to the smallest from which on their scale is logarithmic."""

TICKS_APART = 0.06
"""Inches between the labels of two levels."""

MOST_PANELS = 24
"""Places that are drawn; of more than TOGETHER each has a panel of its own."""

TITLE = 24
"""Characters above one of two panels in a row."""

DASHES: Any = ("-", (0, (6, 2)), (0, (2, 2)), (0, (6, 2, 2, 2)), (0, (10, 3)), (0, (1, 1)))
"""Of the lines of places."""


@dataclass(frozen=True)
class Levels:
    """What is drawn: of each place, the arms by their level."""

    factor: str
    """Job key of what the levels are of."""
    places: Sequence[Sequence[tuple[float, ArmSummary]]]
    """In the order of their levels."""
    titles: Sequence[str]
    """Of the places; empty where there is one alone."""
    best: frozenset[str]
    """Labels of the arms that may be the best, where that is judged."""
    judged: frozenset[str]
    """Labels of the arms of places that are."""
    left_out: int = 0
    """Places that are not drawn."""
    others: Sequence[str] = ()
    """What the keys are called that places differ in."""
    beside: Sequence[ArmSummary] = ()
    """Arms without a level, of a sweep that names its arms: each is a line across, to compare with."""


def found(looks: Looks) -> Levels | None:
    """Return the arms by place and level where these have an order, and some place has a line to draw: by the numbers
    of the arms, whether or not it could be judged which level is the best."""
    answer = looks.answer
    if not isinstance(answer, Summary) or all(c.result.same_objective for c in answer.comparisons):
        return None
    if answer.which is None and not looks.names.are_levels:
        return _of_named(answer)
    of_place = _asked(answer) if answer.which is not None else _ordered(looks)
    drawn = [own for own in of_place if sum(arm.mean is not None for _, arm in own) > 1]
    if not drawn:
        return None
    which = answer.which
    judged = [stratum for stratum in (which.strata if which else ()) if stratum.not_judged is None]
    return Levels(
        looks.names.key if which is None else which.factor,
        drawn[:MOST_PANELS],
        [looks.names.where[own[0][1].label] for own in drawn[:MOST_PANELS]] if len(of_place) > 1 else [],
        frozenset(label for stratum in judged for label in stratum.best),
        frozenset(label for stratum in judged for label in stratum.arms),
        len(of_place) - len(drawn[:MOST_PANELS]),
        looks.names.others,
    )


def _of_named(answer: Summary) -> Levels | None:
    """Return named arms by the number that most of them set, such as how many columns are kept: a place for each value
    of what else they set, of enough levels to make a line. None where there is no such number."""
    numbers = dict.fromkeys(key for arm in answer.arms for key, value in arm.settings.items() if _is_level(value))
    found: dict[str, list[list[tuple[float, ArmSummary]]]] = {}
    for key in numbers:
        strata: dict[str, list[tuple[float, ArmSummary]]] = {}
        for arm in answer.arms:
            if _is_level(level := arm.settings.get(key)) and arm.mean is not None:
                strata.setdefault(canonical(_without(arm, key)), []).append((float(str(level)), arm))
        found[key] = [sorted(own, key=lambda pair: pair[0]) for own in strata.values() if len(own) >= FEWEST_LEVELS]
    factor = max(found, key=lambda key: sum(map(len, found[key])), default=None)
    if factor is None or not 0 < len(found[factor]) <= TOGETHER:
        return None
    places = found[factor]
    beside = [arm for arm in answer.arms if factor not in arm.settings and arm.mean is not None]
    others = dict.fromkeys(key for own in places for key in _without(own[0][1], factor))
    return Levels(
        factor,
        places,
        _titles(places, factor),
        frozenset(),
        frozenset(),
        others=[word(key) for key in others],
        beside=beside[:TOGETHER] if len(beside) + len(places) <= TOGETHER else (),
    )


def _titles(places: Sequence[Sequence[tuple[float, ArmSummary]]], factor: str) -> list[str]:
    """Name places of named arms by the words that the labels of each begin with; where that tells none from another, by
    what else their arms set."""
    shared = [commonprefix([arm.label for _, arm in own]) for own in places]  # noqa: RUF071 - labels are no paths
    begun = [start.rpartition(" ")[0].rstrip(" ,:=-(") for start in shared]
    if all(begun) and len({*begun}) == len(begun):
        return begun
    return [", ".join(map(level_text, _without(own[0][1], factor).values())) for own in places]


def _without(arm: ArmSummary, key: str) -> dict[str, JsonValue]:
    """Return what an arm sets beside one key."""
    return {name: value for name, value in arm.settings.items() if name != key}


def _is_level(value: JsonValue) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _asked(answer: Summary) -> list[list[tuple[float, ArmSummary]]]:
    """Return the arms as the question of the best level has them, whatever they are called."""
    assert answer.which is not None
    arms = {arm.label: arm for arm in answer.arms}
    return [
        sorted(
            ((float(str(level)), arms[label]) for label, level in zip(stratum.arms, stratum.levels, strict=True)),
            key=lambda pair: pair[0],
        )
        for stratum in answer.which.strata
    ]


def _ordered(looks: Looks) -> list[list[tuple[float, ArmSummary]]]:
    """Return the arms by the first factor that they are named by; none where its levels are no numbers, or too few."""
    if not looks.names.are_levels:
        return []
    levels = {arm.label: arm.settings[looks.names.key] for arm in looks.answer.arms}
    if not all(map(_is_level, levels.values())):
        return []
    if len({float(str(level)) for level in levels.values()}) < FEWEST_LEVELS:
        return []
    pairs = [[(float(str(levels[arm.label])), arm) for arm in own] for own in looks.of_place().values()]
    return [sorted(own, key=lambda pair: pair[0]) for own in pairs]


def caption_of_levels(looks: Looks) -> str | None:
    """Say how the levels are read; None where they have no order."""
    if (drawn := found(looks)) is None:
        return None
    caption = "Mean over the confirm seeds, with its 95% t interval."
    arms = [arm for own in drawn.places for _, arm in own]
    if drawn.judged:
        caption += " Filled: the levels that may be the best."
        if any(arm.label not in drawn.judged for arm in arms):
            caption += " Small: where that is not judged."
    if drawn.titles:
        others = " and ".join(drawn.others) or "place"
        caption = f"A {'panel' if len(drawn.places) > TOGETHER else 'line'} for each {others}. {caption}"
    if drawn.beside:
        caption += f" Across: {enumerated([looks.names.arm[arm.label] for arm in drawn.beside])}."
    if drawn.left_out:
        caption += f" Of {counted(drawn.left_out, 'more place')} the table has the numbers."
    if not any(arm.diverged for arm in arms):
        return caption
    # Where lines share a panel, a cross does not say whose it is.
    fallen = [title for title, own in zip(drawn.titles, drawn.places, strict=False) if any(a.diverged for _, a in own)]
    whose = f", at {enumerated(fallen)}" if fallen and len(drawn.places) <= TOGETHER else ""
    return f"{caption} A cross at the lower edge: seeds diverged there{whose}."


def draw_levels(looks: Looks) -> Figure:
    """Draw the metric against the levels: a line for each place, or of many places a panel for each."""
    drawn = found(looks)
    assert drawn is not None
    levels = sorted({level for own in drawn.places for level, _ in own})
    is_log = levels[0] > 0 and levels[-1] / levels[0] >= WIDE_RANGE
    if len(drawn.places) > TOGETHER:
        return _small_multiples(looks, drawn, levels, is_log=is_log)
    figure = Figure(figsize=(WIDTH, 3.1))
    axes = panel(figure, bottom=0.55)
    if is_log:
        axes.set_xscale("log")
    ends = []
    is_named = isinstance(looks.answer, Summary) and looks.answer.which is None and not looks.names.are_levels
    for number, (own, title, dash) in enumerate(zip(drawn.places, drawn.titles or [""], DASHES, strict=False)):
        colour = COLOURS[number] if is_named else None
        end = _line(axes, own, drawn, looks, dash, line_colour=colour)
        if end is not None:
            ends.append((*end, title, colour or MUTED))
    for arm in drawn.beside:
        assert arm.mean is not None
        axes.axhline(arm.mean, color=INK, linewidth=0.9, linestyle=(0, (1, 2)), zorder=1)
        ends.append((levels[-1], arm.mean, looks.names.arm[arm.label], INK))
    dress(axes, heading=looks.answer.metric, xlabel=visible(word(drawn.factor)))
    _crosses(axes, [level for own in drawn.places for level, arm in own if arm.diverged])
    _ticks(axes, levels, WIDTH - LEFT - GUTTER)
    label_ends(axes, [end for end in ends if end[2]])
    return figure


def _small_multiples(looks: Looks, drawn: Levels, levels: Sequence[float], *, is_log: bool) -> Figure:
    """Draw a panel for each place, all with the same limits."""
    rows = math.ceil(len(drawn.places) / 2)
    whole = 0.9 + 1.5 * rows
    figure = Figure(figsize=(WIDTH, whole))
    figure.subplots_adjust(LEFT / WIDTH, 0.5 / whole, 1 - 0.1 / WIDTH, 1 - 0.5 / whole, wspace=0.12, hspace=0.42)
    panels = [figure.add_subplot(rows, 2, index + 1) for index in range(len(drawn.places))]
    titles = shortened(list(drawn.titles), TITLE)
    for index, (axes, own) in enumerate(zip(panels, drawn.places, strict=True)):
        if is_log:
            axes.set_xscale("log")
        _line(axes, own, drawn, looks, "-")
        last = index >= len(panels) - 2
        dress(axes, xlabel=visible(word(drawn.factor)) if last else "")
        axes.tick_params(labelbottom=last, labelleft=index % 2 == 0)
        axes.set_title(visible(titles[index]), loc="left", pad=4)
    low, high = _limits(panels)
    margin = (levels[-1] / levels[0]) ** MARGIN if is_log else MARGIN * (levels[-1] - levels[0])
    for axes, own in zip(panels, drawn.places, strict=True):
        axes.set_xlim(
            *((levels[0] / margin, levels[-1] * margin) if is_log else (levels[0] - margin, levels[-1] + margin))
        )
        axes.set_ylim(low, high)
        _crosses(axes, [level for level, arm in own if arm.diverged])
        _ticks(axes, levels, (WIDTH - LEFT - 0.1) / 2.12)
    figure.text(0.06 / WIDTH, 1 - 0.14 / whole, looks.answer.metric, color=MUTED, va="top")
    return figure


def _limits(panels: Sequence[Axes]) -> tuple[float, float]:
    """Return limits of the metric that show what is in any panel."""
    ends = [axes.dataLim.intervaly for axes in panels]
    low, high = min(low for low, _ in ends), max(high for _, high in ends)
    margin = MARGIN * (high - low) or 0.5
    return low - margin, high + margin


def _crosses(axes: Axes, levels: Sequence[float]) -> None:
    """Mark at the lower edge the levels at which seeds diverged."""
    low, high = axes.get_ylim()
    axes.plot(levels, [low] * len(levels), "x", color=INK, markersize=6, markeredgewidth=1.4, clip_on=False)
    axes.set_ylim(low, high)


def _line(
    axes: Axes,
    own: Sequence[tuple[float, ArmSummary]],
    drawn: Levels,
    looks: Looks,
    dash: Any,
    *,
    line_colour: str | None = None,
) -> tuple[float, float] | None:
    """Draw the line of one place, and return its end; None with nothing to draw. line_colour: of all that is drawn of
    it; None: of each arm its own."""
    known = [(level, arm, arm.mean) for level, arm in own if arm.mean is not None]
    if not known:
        return None
    x, y = [level for level, _, _ in known], [mean for _, _, mean in known]
    axes.plot(x, y, color=line_colour or MUTED, linewidth=1.2, linestyle=dash, zorder=2)
    banded = [(level, arm.ci95) for level, arm, _ in known if arm.ci95 is not None]
    if len(banded) > 1:
        low, high = ([ends[side] for _, ends in banded] for side in (0, 1))
        axes.fill_between(
            [level for level, _ in banded], low, high, color=line_colour or MUTED, alpha=0.14, linewidth=0
        )
    for level, arm, mean in known:
        # Of so many that nothing says whose a colour is, the place on the axis says all.
        colour, marker = looks.of[arm.label] if looks.how in ("together", "crossed") else (INK, "o")
        if line_colour is not None:
            colour, marker = line_colour, "o"
        face = colour if arm.label in drawn.best else PAPER
        size = 4.0 if drawn.judged and arm.label not in drawn.judged else 6.5
        axes.plot([level], [mean], marker, color=colour, markerfacecolor=face, markersize=size, zorder=3)
    return x[-1], y[-1]


def _ticks(axes: Axes, levels: Sequence[float], wide: float) -> None:
    """Put a tick at every level, and a number at those that have room in so many inches."""
    low, high = axes.get_xlim()
    pixels = axes.transData.transform([(x, axes.get_ylim()[0]) for x in (low, high, *levels)])[:, 0]
    inches = (pixels[2:] - pixels[0]) / (pixels[1] - pixels[0]) * wide
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
