"""The plots of a report: differences seed by seed, the metric by level and while training, its cost, and the tuning."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from functools import partial
from typing import NamedTuple

from matplotlib.figure import Figure

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
from orchestrator.report.summary.records.views import A, by_each
from orchestrator.report.tables.blocks import numbered

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


def draw(
    answer: A, curves: Callable[[A], Mapping[str, Curve]], space: Mapping[str, JsonObject] | None = None
) -> list[Plot]:
    """Draw the plots that there are numbers for, in the order of the report, metric by metric. curves: gives those of
    an answer by one metric, by label of the arm. space: what the sweep says of each tuned key; without, scores are not
    drawn against them."""
    first, *others = by_each(answer)
    plots = _of_metric(first, curves(first), space)
    for number, view in enumerate(others, 1):
        plots += [plot._replace(name=numbered(plot.name, number)) for plot in _of_metric(view, curves(view), None)]
    return plots


def is_of_a_report(name: str) -> bool:
    """Return whether a plot's name, or its file's, is one that a report may have had."""
    return re.fullmatch(rf"({'|'.join(NAMES)})(-\d+)?(\.png)?", name) is not None


def _of_metric(answer: Answer, curves: Mapping[str, Curve], space: Mapping[str, JsonObject] | None) -> list[Plot]:
    looks = looks_of(answer)
    metric, drawn = answer.metric, found(looks)
    levels = f"{metric} against {'' if drawn is None else word(drawn.factor)}"
    plots = [
        _plot(
            "differences", title_of_differences(looks), caption_of_differences(looks), partial(draw_differences, looks)
        ),
        _plot("levels", levels, caption_of_levels(looks), partial(draw_levels, looks)),
        _plot(
            "curves", f"{metric} while training", caption_of_curves(looks, curves), partial(draw_curves, looks, curves)
        ),
        _cost(looks),
        None
        if space is None
        else _plot(
            "tuned", f"{metric} against what was tuned", caption_of_tuned(looks), partial(draw_tuned, looks, space)
        ),
        _plot("tuning", "Tuning, best so far", caption_of_tuning(looks), partial(draw_tuning, looks)),
    ]
    return [plot for plot in plots if plot is not None]


def _plot(name: str, title: str, caption: str | None, drawn: Callable[[], Figure]) -> Plot | None:
    """Render a plot of one panel; None without a caption, as there is nothing to draw."""
    if caption is None:
        return None
    png, svg = render(drawn, name)
    return Plot(name, title, caption, png, (svg,))


def _cost(looks: Looks) -> Plot | None:
    if (caption := caption_of_cost(looks)) is None:
        return None
    costs = known_costs(looks)
    png, _ = render(partial(draw_cost, looks, costs), "cost")
    panels = tuple(svg_alone(partial(draw_cost, looks, [cost]), "cost", part=cost) for cost in costs)
    against = " and ".join({"seconds": "time", "peak_memory_mb": "memory"}[cost] for cost in costs)
    return Plot("cost", f"{looks.answer.metric} against {against}", caption, png, panels)
