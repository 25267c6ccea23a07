"""How arms look in the plots of a report: every arm keeps its colour and marker through all of them.

Few arms are named beside what is drawn of them. Many that cross the levels of factors have the colour of their level
and the marker of their place, and a legend says which.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from jobs.core.plain import visible
from orchestrator.report.naming import Names, names_of
from orchestrator.report.render.figure import COLOURS, INK, LEGEND_ROW, MARKERS, MUTED, WIDTH, text_width
from orchestrator.report.summary.records import Answer, ArmSummary

TOGETHER = 6
"""Arms that share one panel, each with its name beside it."""

APART = 24
"""Arms that have a panel each, where nothing crosses; of more the best are named."""

MOST_LEVELS, MOST_PLACES = 12, len(MARKERS)
"""Of a legend."""

RAMP = ("#0f8f86", "#2b6fd6", "#8757c8", "#c9487f", "#e0801f")
"""Colours of ordered levels, from low to high; each can be told from paper, light or dark."""

How = Literal["together", "crossed", "apart", "best"]
"""`together`: in one panel; `crossed`: a panel for each place; `apart`: one for each arm; `best`: the best in one."""


class Look(NamedTuple):
    """Of one arm."""

    colour: str
    marker: str


GREY = Look(MUTED, "o")
"""Of what is not named: a colour that nothing explains says nothing."""


@dataclass(frozen=True)
class Looks:
    """Of all arms."""

    answer: Answer
    names: Names
    how: How
    of: Mapping[str, Look]
    """By label."""
    levels: Mapping[str, str]
    """Level -> colour, where there is a legend."""
    places: Mapping[str, str]
    """Place among the other factors -> marker, where there is a legend and more than one."""

    @property
    def best(self) -> list[ArmSummary]:
        """The arms of the best means, the baseline of all first."""
        sign = -1 if self.answer.mode == "max" else 1
        first, *others = self.answer.arms
        known = sorted((arm for arm in others if arm.mean is not None), key=lambda arm: sign * (arm.mean or 0.0))
        return [first, *known[: TOGETHER - 1]]

    @property
    def named(self) -> list[ArmSummary]:
        """The arms whose names stand beside a panel of all: few enough to have room; none where a legend stands."""
        if self.how == "crossed":
            return []
        return list(self.answer.arms) if self.how == "together" else self.best

    def of_place(self) -> dict[str, list[ArmSummary]]:
        """Group the arms by their place."""
        groups: dict[str, list[ArmSummary]] = {}
        for arm in self.answer.arms:
            groups.setdefault(self.names.where[arm.label], []).append(arm)
        return groups

    def legend_high(self, *, with_places: bool = True) -> float:
        """Compute the inches that the legend takes; 0 where there is none."""
        rows = sum(math.ceil(len(entries) / columns) for _, entries, columns in self._legend(with_places=with_places))
        return rows * LEGEND_ROW

    def draw_legend(self, figure: Figure, *, with_places: bool = True) -> None:
        """Draw the legend below the upper edge of a figure."""
        width, height = figure.get_size_inches()
        top = 0.02
        for title, entries, columns in self._legend(with_places=with_places):
            figure.text(0.05 / width, 1 - (top + LEGEND_ROW / 2) / height, visible(title), color=MUTED, va="center")
            start = 0.05 + text_width(title) + 0.16
            step = (WIDTH - start) / columns
            for k, (text, colour, marker) in enumerate(entries):
                x, y = start + step * (k % columns), top + LEGEND_ROW * (k // columns + 0.5)
                mark = Line2D([x + 0.05], [height - y], marker=marker, color=colour, markersize=5.5, linestyle="")
                mark.set_transform(figure.dpi_scale_trans)
                figure.add_artist(mark, clip=False)
                figure.text((x + 0.15) / width, 1 - y / height, visible(text), va="center")
            top += LEGEND_ROW * math.ceil(len(entries) / columns)

    def _legend(self, *, with_places: bool) -> list[tuple[str, list[tuple[str, str, str]], int]]:
        """List the parts of the legend: a title, (text, colour, marker) of each entry, and in how many columns."""
        parts = []
        if self.levels:
            parts.append((self.names.factor, [(text, colour, "o") for text, colour in self.levels.items()]))
        if self.places and with_places:
            parts.append(("", [(text, INK, marker) for text, marker in self.places.items()]))
        return [(title, entries, _columns(title, [text for text, _, _ in entries])) for title, entries in parts]


def looks_of(answer: Answer) -> Looks:
    """Choose how the arms of an answer look."""
    names, labels = names_of(answer.arms), [arm.label for arm in answer.arms]
    levels = list(dict.fromkeys(names.level[label] for label in labels))
    places = list(dict.fromkeys(names.where[label] for label in labels))
    are_many = len(labels) > TOGETHER or (len(places) > 1 and len(levels) > 2)
    if names.are_levels and are_many and len(levels) <= MOST_LEVELS and len(places) <= MOST_PLACES:
        ordered = all(map(_is_number, levels)) and len(levels) > 2
        colours = _ramp(len(levels)) if ordered or len(levels) > len(COLOURS) else list(COLOURS)
        colour = dict(zip(sorted(levels, key=float) if ordered else levels, colours, strict=False))
        colour = {level: colour[level] for level in levels}
        marker = dict(zip(places, MARKERS, strict=False))
        of = {label: Look(colour[names.level[label]], marker[names.where[label]]) for label in labels}
        return Looks(answer, names, "crossed", of, colour, marker if len(places) > 1 else {})
    how: How = "together" if len(labels) <= TOGETHER else "apart" if len(labels) <= APART else "best"
    # Colours repeat after six arms, and colour and marker together after 36.
    each = {label: Look(COLOURS[k % 6], MARKERS[(k + k // 6) % 6]) for k, label in enumerate(labels)}
    looks = Looks(answer, names, how, each, {}, {})
    if how != "best":
        return looks
    named = {arm.label: Look(COLOURS[k], MARKERS[k]) for k, arm in enumerate(looks.best)}
    return Looks(answer, names, how, {label: named.get(label, GREY) for label in labels}, {}, {})


def _ramp(count: int) -> list[str]:
    stops = [[int(colour[k : k + 2], 16) for k in (1, 3, 5)] for colour in RAMP]
    made = []
    for k in range(count):
        low, part = divmod(k / max(count - 1, 1) * (len(stops) - 1), 1)
        a, b = stops[int(low)], stops[min(int(low) + 1, len(stops) - 1)]
        made.append("#" + "".join(f"{round(x + (y - x) * part):02x}" for x, y in zip(a, b, strict=True)))
    return made


def _columns(title: str, texts: Sequence[str]) -> int:
    """Choose how many entries of a legend fit beside each other."""
    room = WIDTH - 0.05 - text_width(title) - 0.16
    widest = max(map(text_width, texts), default=0.0) + 0.3
    return min(max(1, int(room / widest)), len(texts))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
