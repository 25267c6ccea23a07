"""What is printed for a person: data as data, neither rich's markup nor commands to the terminal.

Labels, questions, failures and logs come from files and other programs. A bracket in them is a bracket, and what a
terminal would obey (escape sequences, marks that turn the direction of a line, invisible characters) is printed as
`\\x1b`, `\\u202e` and so on.
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console, ConsoleOptions, RenderableType
    from rich.segment import Segment
    from rich.text import Text

HARMLESS_FORMAT = "\u200c\u200d"
"""Joiners, which scripts and emoji are written with."""


def is_harmless(character: str) -> bool:
    """Whether a terminal prints a character as itself."""
    category = unicodedata.category(character)
    return category not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in HARMLESS_FORMAT


def visible(text: str, *, keep: str = "") -> str:
    """Data in one line of text, with every other character than harmless ones as its escape.

    keep: control characters that stay as they are.
    """
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character
        if is_harmless(character) or character in keep
        else character.encode("unicode_escape", "surrogatepass").decode()
        for character in text
    )


def visible_lines(text: str) -> str:
    """A text of several lines, whose ends and tabs stay."""
    return visible(text.replace("\r\n", "\n"), keep="\n\t")


def log_lines(text: str) -> str:
    """The same of what a program printed: a progress bar, which goes back to the start of its line, takes lines."""
    return visible_lines(text.replace("\r\n", "\n").replace("\r", "\n"))


def cell(value: Any) -> Text:
    """Data in a table of rich: no markup, no emoji codes."""
    from rich.text import Text

    return Text(visible(str(value)))


class Harmless:
    """Anything that rich prints, as it would reach the terminal, with the data in it made visible."""

    def __init__(self, renderable: RenderableType) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterable[Segment]:
        """Called by rich."""
        from rich.segment import Segment

        for text, style, control in console.render(self._renderable, options):
            yield Segment(text if control else visible(text, keep="\n"), style, control)


def counted(count: int, one: str, many: str | None = None) -> str:
    """`1 trial`, `2,000 trials`. many: the plural, where it is not `one` with an s."""
    return f"{count:,} {by_count(count, one, f'{one}s' if many is None else many)}"


def by_count(count: float, one: str, many: str) -> str:
    """The word that goes with a count: `has` with 1, `have` with any other."""
    return one if count == 1 else many


def first_line(text: str) -> str:
    """The first line of a text that is not blank; empty where there is none."""
    return next((line.strip() for line in text.splitlines() if line.strip()), "")
