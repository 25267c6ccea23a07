"""What is printed for a person: data as data (jobs/core/plain.py), in rich's tables too; words that go with counts."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING

from jobs.core.plain import visible, visible_lines

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

MOST_LISTED, FEW = 8, 3
"""How many things one line lists, and of more, how many of the first."""


def log_lines(text: str) -> str:
    """Return `visible_lines` of what a program printed: a bar, which goes back to its line's start, takes lines."""
    return visible_lines(text.replace("\r\n", "\n").replace("\r", "\n"))


def cell(value: object) -> Text:
    """Return data as a cell in a table of rich: no markup, no emoji codes."""
    from rich.text import Text

    return Text(visible(str(value)))


def table_lines(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> Iterator[str]:
    """Yield the lines of a table of data, for so many rows that rich would take seconds."""
    from rich.cells import cell_len

    cells = [[visible(str(value)) for value in row] for row in (headings, *rows)]
    widths = [max(map(cell_len, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        yield "  ".join(text + " " * (width - cell_len(text)) for text, width in zip(row, widths, strict=True)).rstrip()


class Harmless:
    """Anything that rich prints, as it would reach the terminal, with the data in it made visible."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        """Yield the segments to print; called by rich."""
        from rich.segment import Segment

        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else visible(text, keep="\n"), style, control)


def counted(count: int, singular: str, many: str | None = None) -> str:
    """Return a count with its noun: `1 trial`, `2,000 trials`. many: the plural, if it is not `singular` with an s."""
    return f"{count:,} {by_count(count, singular, f'{singular}s' if many is None else many)}"


def by_count(count: float, singular: str, many: str) -> str:
    """Return the word that goes with a count: `has` with 1, `have` with any other."""
    return singular if count == 1 else many


def duration(seconds: float) -> str:
    """Format seconds as `45 s`, `12 min`, `3.5 h` or `4.2 days`."""
    for size, unit in ((1, "s"), (60, "min")):
        if round(seconds / size) < 100:
            return f"{seconds / size:.0f} {unit}"
    hours = seconds / 3600
    return f"{hours:.1f} h" if hours < 48 else f"{hours / 24:.1f} days"


def ranges(numbers: Iterable[int]) -> str:
    """Write whole numbers in their order, three or more that follow one another as a range: `0-4, 7`. None: `none`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}-{run[-1]}" if len(run) > 2 else ", ".join(map(str, run)) for run in runs) or "none"


def listed(texts: Sequence[str], *, most: int = MOST_LISTED, separator: str = "; ") -> str:
    """Join texts; of more than `most` the first few, and how many more there are: `a; b; c; and 18 more`."""
    few = texts if len(texts) <= most else [*texts[:FEW], f"and {len(texts) - FEW:,} more"]
    return separator.join(few)


def first_line(text: str) -> str:
    """Return the first line of a text that is not blank; empty where there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
