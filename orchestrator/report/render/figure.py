"""What the plots of a report have in common: size, colours, labels beside the panel, and how they become PNG and SVG.

Every arm keeps its place, colour and marker through all plots: colours by Okabe and Ito, which colour-blind eyes can
tell apart. Figures are narrow, so that a phone shows them at a readable size.
"""

from __future__ import annotations

import io
import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.textpath import text_to_path
from matplotlib.ticker import FuncFormatter, MaxNLocator
from matplotlib.transforms import Bbox

from jobs.core.plain import visible

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P")
INK, MUTED, LINE, PAPER = "#1b1b1b", "#666666", "#dcdcdc", "#fefefe"
"""Of text and means, ticks, grids, and what is behind; the page replaces them by its own, light or dark."""

WIDTH, GUTTER, LEFT, TOP = 4.9, 1.35, 0.62, 0.3
"""Inches: of a figure, of the labels to the right of its panel, of the ticks to its left, of the heading above it."""

FONT, LABELS_AT, LABEL_LINES = 9.5, 1.07, 3
"""Points; where labels beside a panel begin, in its widths; and the most lines that one takes."""

LEGEND_ROW = 0.22
"""Inches of a row of a legend."""

MARGIN = 0.05
"""Between what is drawn and the edges of a panel, in its widths."""

STYLE: Any = {
    "font.size": FONT,
    "axes.labelsize": FONT,
    "axes.titlesize": FONT,
    "axes.titley": 1.0,  # else each is placed by a search for what might be in its way
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.linewidth": 0.6,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.axisbelow": True,
    "figure.facecolor": PAPER,
    "axes.facecolor": PAPER,
    "grid.color": LINE,
    "grid.linewidth": 0.6,
    "text.color": INK,
    "text.parse_math": False,  # an arm's label may hold a dollar sign
    "xtick.color": MUTED,
    "xtick.major.width": 0.6,
    "xtick.major.size": 3,
    "ytick.color": MUTED,
    "ytick.major.size": 0,
    "svg.fonttype": "none",
}


def panel(
    figure: Figure, *, bottom: float, height: float | None = None, left: float = LEFT, right: float = GUTTER
) -> Axes:
    """Add axes placed in inches from the edges of the figure; without a height, up to the heading."""
    width, whole = figure.get_size_inches()
    tall = whole - bottom - TOP if height is None else height
    return figure.add_axes((left / width, bottom / whole, (width - left - right) / width, tall / whole))


def dress(axes: Axes, *, heading: str = "", xlabel: str = "") -> None:
    """Give the axes a quiet grid, round ticks, and the heading in place of a label that runs up the side."""
    axes.grid(axis="y")
    axes.spines["left"].set_visible(False)
    axes.yaxis.set_major_locator(round_ticks(5))
    axes.xaxis.set_major_locator(round_ticks(4))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: _short_number(x)))
    axes.set_xlabel(xlabel)
    if heading:
        axes.annotate(
            heading, (0, 1), (-LEFT * 72 + 4, 7), xycoords="axes fraction", textcoords="offset points", color=MUTED
        )


def share_limits(panels: Sequence[Axes]) -> None:
    """Give all panels the limits that show what is in any of them. Axes that share theirs tell each other of every
    line, which takes as long as drawing."""
    whole = Bbox.union([axes.dataLim for axes in panels])
    for axes in panels:
        for axis, limits, place in (
            (axes.xaxis, whole.intervalx, axes.set_xlim),
            (axes.yaxis, whole.intervaly, axes.set_ylim),
        ):
            low, high = axis.get_major_locator().nonsingular(*limits)  # apart, where all that is drawn is one value
            place(low - MARGIN * (high - low), high + MARGIN * (high - low))


def round_ticks(most: int) -> MaxNLocator:
    """Return a locator for at most `most` intervals between ticks, at steps people count in."""
    return MaxNLocator(most, steps=[1, 2, 2.5, 5, 10], min_n_ticks=3)


def label_ends(axes: Axes, ends: Sequence[tuple[float, float, str, str]]) -> None:
    """Write names to the right of the panel, each joined to its point: (x, y, name, colour) in data units.

    Call it last: the limits of the axes must be final."""
    height, (low, high) = _points_high(axes), axes.get_ylim()
    names = [wrapped(name) for _, _, name, _ in ends]
    wanted = [(y - low) / (high - low) * height for _, y, _, _ in ends]
    placed = spread(wanted, [_label_size(name) for name in names], height)
    for (x, y, _, colour), name, at in zip(ends, names, placed, strict=True):
        line = {"arrowstyle": "-", "color": colour, "linewidth": 0.7, "alpha": 0.6, "relpos": (0, 0.5)}
        line |= {"shrinkA": 1, "shrinkB": 2}
        axes.annotate(
            name,
            (x, y),
            (LABELS_AT, at / height),
            textcoords="axes fraction",
            va="center",
            zorder=1.8,  # below every marker
            annotation_clip=False,
            linespacing=1.05,
            arrowprops=line,
        )


def labels_high(names: Sequence[str]) -> float:
    """Compute the height in inches that these names take when written beside a panel."""
    return sum(_label_size(wrapped(name)) for name in names) / 72


def spread(wanted: Sequence[float], sizes: Sequence[float], room: float) -> list[float]:
    """Find middles for boxes of these sizes, near the wanted ones and in their order, without overlap, below `room`."""
    order = sorted(range(len(wanted)), key=lambda k: wanted[k])
    placed = list(wanted)
    for k, under in zip(order[1:], order, strict=False):
        placed[k] = max(placed[k], placed[under] + (sizes[k] + sizes[under]) / 2)
    ceiling = room
    for k in reversed(order):
        placed[k] = min(placed[k], ceiling - sizes[k] / 2)
        ceiling = placed[k] - sizes[k] / 2
    return placed


def shorten(label: str, longest: int) -> str:
    """Shorten a label to at most `longest` characters, all of them visible."""
    label = visible(label)
    return label if len(label) <= longest else visible(label[: longest - 1]) + "…"


def render(draw: Callable[[], Figure], name: str) -> tuple[bytes, str]:
    """Render a figure as PNG, and as an <svg> element for a page that defines --ink, --muted, --line and --paper. The
    same numbers give the same bytes."""
    return _rendered(draw, name, "", with_png=True)


def svg_alone(draw: Callable[[], Figure], name: str, *, part: str) -> str:
    """Render one panel of several under one name as an <svg> element. part: which one, as ids must differ."""
    return _rendered(draw, name, part, with_png=False)[1]


def _rendered(draw: Callable[[], Figure], name: str, part: str, *, with_png: bool) -> tuple[bytes, str]:
    with mpl.rc_context(STYLE | {"svg.hashsalt": name}), warnings.catch_warnings():
        # The bundled font lacks some scripts; the page shows such a label, the PNG shows boxes.
        warnings.filterwarnings("ignore", message="Glyph .* missing from font")
        figure, png, svg = draw(), io.BytesIO(), io.StringIO()
        if with_png:
            figure.savefig(png, format="png", dpi=200, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return png.getvalue(), _themed(svg.getvalue(), name, part)


def _themed(svg: str, name: str, part: str) -> str:
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"\s*<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    opening, _, rest = svg.partition(">")
    opening = re.sub(r' (width|height)="[^"]*"', "", opening)
    svg = f'{opening} role="img" aria-labelledby="plot-{name}">{rest}'
    # In tags and styles alone: a label may read like any of these.
    return re.sub(r"<style.*?</style>|<[^>]*>", lambda tag: _themed_tag(tag[0], name + part), svg, flags=re.DOTALL)


def _themed_tag(tag: str, name: str) -> str:
    for colour, role in ((INK, "ink"), (MUTED, "muted"), (LINE, "line"), (PAPER, "paper")):
        tag = tag.replace(colour, f"var(--{role})")
    # Ids are unique in one figure only, and the page holds several.
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(url\(#|href="#)', rf"\1{name}-", tag)
    return re.sub(r'font-family: [^;"]*', "font-family: system-ui, sans-serif", tag)


def _points_high(axes: Axes) -> float:
    return axes.get_window_extent().height * 72 / axes.figure.dpi


def wrapped(name: str, room: float | None = None, most: int = LABEL_LINES) -> str:
    """Wrap a name into lines of so many inches, as beside a panel unless given: at spaces, and within what has none.
    What is more than so many lines ends in an ellipsis."""
    lines = [""]
    for word in visible(name).split():
        rest = word
        while rest:
            longer = f"{lines[-1]} {rest}".strip()
            if _fits(longer, room):
                lines[-1], rest = longer, ""
            elif lines[-1]:
                lines.append("")
            else:
                cut = next((k for k in range(len(rest) - 1, 0, -1) if _fits(rest[:k], room)), 1)
                lines[-1], rest = rest[:cut], rest[cut:]
                lines += [""] if rest else []
    if len(lines) > most:
        last = lines[most - 1]
        cuts = (f"{last[:end]}…" for end in range(len(last), 0, -1))
        lines = [*lines[: most - 1], next((cut for cut in cuts if _fits(cut, room)), "…")]
    return "\n".join(map(visible, lines))  # what belongs to the character before it may now begin a line


def _fits(line: str, room: float | None = None) -> bool:
    """Return whether a line fits into so many inches; beside a panel, unless given."""
    return text_width(line) <= (GUTTER - (LABELS_AT - 1) * (WIDTH - LEFT - GUTTER) - 0.03 if room is None else room)


def text_width(line: str) -> float:
    """Compute the inches that a line of text takes."""
    width: float = text_to_path.get_text_width_height_descent(visible(line), FontProperties(size=FONT), False)[0]
    return width / 72


def _label_size(wrapped: str) -> float:
    return 11.5 * (1 + wrapped.count("\n")) + 1.5


def _short_number(x: float) -> str:
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(x) >= size:
            return f"{x / size:g}{unit}"
    return f"{x:g}"
