"""The plot of the score against every tuned key: all arms in one figure, with the edges of each range."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator
from pydantic import JsonValue

from jobs.core.plain import visible
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.naming import level_text, word
from orchestrator.report.render.figure import (
    GUTTER,
    INK,
    MUTED,
    TOP,
    WIDTH,
    dress,
    label_ends,
    labels_high,
    panel,
    shorten,
)
from orchestrator.report.render.looks import GREY, Look, Looks
from orchestrator.report.summary.arms import EDGE
from orchestrator.report.summary.records import ArmSummary
from orchestrator.report.summary.records.tuning import SuggestionSummary

BELOW = 3
"""Ratio of the lower end of a logarithmic range to where what is 0 or less is drawn."""

MOST_KEYS = 12
"""Tuned keys that are drawn."""


def keys(looks: Looks) -> list[str]:
    """List the keys that were tuned, of suggestions that came to something."""
    found = (key for arm in looks.answer.arms for suggestion in _scored(arm) for key in suggestion.params)
    return list(dict.fromkeys(found))[:MOST_KEYS]


def caption_of_tuned(looks: Looks) -> str | None:
    """Say how the scores are read; None where nothing was tuned."""
    if not keys(looks):
        return None
    caption = (
        "Each dot is one suggestion, mean over its tune seeds; ringed: the one that was chosen. Shaded: the tenths at "
        "the ends of a range, where a chosen value suggests a wider one."
    )
    if looks.how in ("together", "crossed"):
        return caption
    others = len(looks.named) - 1
    best = "" if not others else " and the best one" if others == 1 else f" and the {others} best"
    return f"{caption} Named: the baseline{best} of {len(looks.answer.arms)} arms; grey: the others."


def draw_tuned(looks: Looks, space: Mapping[str, JsonObject]) -> Figure:
    """Draw the score against every tuned key. space: what the sweep says of each."""
    tuned = keys(looks)
    has_names = bool(looks.named)
    high = max(1.75, labels_high([looks.names.arm[arm.label] for arm in looks.named]))
    row, legend = high + 0.55 + TOP, looks.legend_high() if looks.how == "crossed" else 0.0
    whole = row * len(tuned) + legend
    figure = Figure(figsize=(WIDTH, whole))
    if looks.how == "crossed":
        looks.draw_legend(figure)
    for k, key in enumerate(tuned):
        bottom = whole - legend - row * (k + 1) + 0.55
        axes = panel(figure, bottom=bottom, height=high, right=GUTTER if has_names else 0.15)
        _panel(axes, looks, key, space.get(key, {}), has_names=has_names)
    return figure


def _panel(axes: Axes, looks: Looks, key: str, own: JsonObject, *, has_names: bool) -> None:
    scored = [(arm, suggestion) for arm in looks.answer.arms for suggestion in _scored(arm) if key in suggestion.params]
    low, high = own.get("low"), own.get("high")
    is_range = isinstance(low, int | float) and isinstance(high, int | float)
    places = [] if is_range else _choices(own, [suggestion.params[key] for _, suggestion in scored])
    named = {arm.label for arm in looks.named}
    is_explained = named if named else looks.of
    dots: dict[Look, list[tuple[float, float]]] = {GREY: []}
    rings: list[tuple[float, float]] = []
    ends: dict[str, tuple[float, float, str, str]] = {}
    # The chosen one last, so that the name stands there; else at the best one so far.
    sign = 1 if looks.answer.mode == "max" else -1
    for arm, suggestion in sorted(scored, key=lambda pair: (_is_chosen(*pair), sign * (pair[1].value or 0.0))):
        look = looks.of[arm.label] if arm.label in is_explained else GREY
        x, y = _at(suggestion.params[key], places), suggestion.value
        if x is not None and own.get("log") and x <= 0 and isinstance(low, int | float):
            x = float(low) / BELOW  # a logarithmic scale has no place for it
        if x is None or y is None:
            continue
        dots.setdefault(look, []).append((x, y))
        if _is_chosen(arm, suggestion):
            rings.append((x, y))
        if arm.label in named:
            ends[arm.label] = (x, y, looks.names.arm[arm.label], look.colour)
    for (colour, marker), points in dots.items():  # grey ones first, below the others
        at = [[point[axis] for point in points] for axis in (0, 1)]
        axes.plot(*at, marker, color=colour, markersize=4.5, alpha=0.7, markeredgewidth=0)
    at = [[ring[axis] for ring in rings] for axis in (0, 1)]
    axes.plot(*at, "o", markerfacecolor="none", color=INK, markersize=9, markeredgewidth=1.2)
    if isinstance(low, int | float) and isinstance(high, int | float):
        tried = [x for points in dots.values() for x, _ in points]
        _range(axes, float(low), float(high), tried, is_log=bool(own.get("log")))
    dress(axes, heading=looks.answer.metric, xlabel=visible(word(key)))
    if isinstance(low, int | float) and isinstance(high, int | float) and own.get("log"):
        _log_ticks(axes, float(low), float(high))
    elif places:
        axes.xaxis.set_major_locator(FixedLocator(list(range(len(places)))))
        room = max(2, (38 if has_names else 56) // len(places))
        axes.set_xticks(range(len(places)), [shorten(text, room) for text in places])
        axes.set_xlim(-0.5, len(places) - 0.5)
    if has_names:
        label_ends(axes, list(ends.values()))


def _is_chosen(arm: ArmSummary, suggestion: SuggestionSummary) -> bool:
    return arm.tune is not None and suggestion.number == arm.tune.number


def _range(axes: Axes, low: float, high: float, tried: Sequence[float], *, is_log: bool) -> None:
    """Show a range, and what was tried outside it, and shade its ends."""
    least, most = min([low, *tried]), max([high, *tried])
    if is_log and low > 0:
        axes.set_xscale("log")
        margin = (high / low) ** 0.03
        edge = (high / low) ** EDGE
        axes.set_xlim(least / margin, most * margin)
        ends = ((low, low * edge), (high / edge, high))
    else:
        axes.set_xlim(least - 0.03 * (high - low), most + 0.03 * (high - low))
        ends = ((low, low + EDGE * (high - low)), (high - EDGE * (high - low), high))
    for start, stop in ends:
        axes.axvspan(start, stop, color=MUTED, alpha=0.13, linewidth=0)


def _choices(own: JsonObject, tried: Sequence[JsonValue]) -> list[str]:
    """List choices as places: numbers in their order, all else as the sweep has it; and what was tried besides."""
    given = own.get("choices")
    listed = [*(given if isinstance(given, list) else []), *tried]
    numbers = [level for level in listed if isinstance(level, int | float) and not isinstance(level, bool)]
    return list(dict.fromkeys(map(level_text, sorted(numbers) if len(numbers) == len(listed) else listed)))


def _log_ticks(axes: Axes, low: float, high: float) -> None:
    """Put ticks at powers of ten, or at the ends where there are fewer than two."""
    powers = [10.0**k for k in range(math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9) + 1)]
    at = powers[:: math.ceil(len(powers) / 5)] if len(powers) > 1 else [low, high]
    axes.xaxis.set_major_locator(FixedLocator(at))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(at, [f"{x:g}" for x in at])


def _at(value: object, places: Sequence[str]) -> float | None:
    """Return where a value lies: itself, or its place among choices."""
    if places:
        return float(places.index(level_text(value)))  # type: ignore[arg-type]
    return float(value) if isinstance(value, int | float) else None


def _scored(arm: ArmSummary) -> list[SuggestionSummary]:
    return [suggestion for suggestion in (arm.tune.suggestions if arm.tune else ()) if suggestion.value is not None]
