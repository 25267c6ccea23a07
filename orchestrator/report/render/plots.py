"""The plots of a report: differences seed by seed, the metric by level and while training, its cost, and the tuning."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import NamedTuple

from orchestrator.ledger.stored import JsonObject
from orchestrator.report.naming import word
from orchestrator.report.render.cost import caption_of_cost, draw_cost, known_costs
from orchestrator.report.render.differences import caption_of_differences, draw_differences, title_of_differences
from orchestrator.report.render.figure import render, svg_alone
from orchestrator.report.render.levels import caption_of_levels, draw_levels, found
from orchestrator.report.render.lines import caption_of_curves, caption_of_tuning, draw_curves, draw_tuning
from orchestrator.report.render.looks import Looks, looks_of
from orchestrator.report.render.tuned import caption_of_tuned, draw_tuned
from orchestrator.report.summary.records import Answer, Curve

NAMES = ("differences", "levels", "curves", "cost", "tuned", "tuning")
"""Of the plots, and so of their files."""


class Plot(NamedTuple):
    """One finished plot."""

    name: str
    title: str
    caption: str
    """What is seen and how it is read."""
    png: bytes
    svgs: tuple[str, ...]
    """Its panels: side by side where a page has room for several."""


def draw(answer: Answer, curves: Mapping[str, Curve], space: Mapping[str, JsonObject] | None = None) -> list[Plot]:
    """Draw the plots that there are numbers for, in the order of the report. curves: by label of the arm. space: what
    the sweep says of each tuned key; without, scores are not drawn against them."""
    looks = looks_of(answer)
    plots = [
        _differences(looks),
        _levels(looks),
        _curves(looks, curves),
        _cost(looks),
        None if space is None else _tuned(looks, space),
        _tuning(looks),
    ]
    return [plot for plot in plots if plot is not None]


def _differences(looks: Looks) -> Plot | None:
    if (caption := caption_of_differences(looks)) is None:
        return None
    png, svg = render(partial(draw_differences, looks), "differences")
    return Plot("differences", title_of_differences(looks), caption, png, (svg,))


def _levels(looks: Looks) -> Plot | None:
    caption, which = caption_of_levels(looks), found(looks)
    if caption is None or which is None:
        return None
    png, svg = render(partial(draw_levels, looks), "levels")
    return Plot("levels", f"{looks.answer.metric} against {word(which.factor)}", caption, png, (svg,))


def _curves(looks: Looks, curves: Mapping[str, Curve]) -> Plot | None:
    if (caption := caption_of_curves(looks, curves)) is None:
        return None
    png, svg = render(partial(draw_curves, looks, curves), "curves")
    return Plot("curves", f"{looks.answer.metric} while training", caption, png, (svg,))


def _cost(looks: Looks) -> Plot | None:
    if (caption := caption_of_cost(looks)) is None:
        return None
    costs = known_costs(looks)
    png, _ = render(partial(draw_cost, looks, costs), "cost")
    panels = tuple(svg_alone(partial(draw_cost, looks, [cost]), "cost", part=cost) for cost in costs)
    against = " and ".join({"seconds": "time", "peak_memory_mb": "memory"}[cost] for cost in costs)
    return Plot("cost", f"{looks.answer.metric} against {against}", caption, png, panels)


def _tuned(looks: Looks, space: Mapping[str, JsonObject]) -> Plot | None:
    if (caption := caption_of_tuned(looks)) is None:
        return None
    png, svg = render(partial(draw_tuned, looks, space), "tuned")
    return Plot("tuned", f"{looks.answer.metric} against what was tuned", caption, png, (svg,))


def _tuning(looks: Looks) -> Plot | None:
    if (caption := caption_of_tuning(looks)) is None:
        return None
    png, svg = render(partial(draw_tuning, looks), "tuning")
    return Plot("tuning", "Tuning, best so far", caption, png, (svg,))
