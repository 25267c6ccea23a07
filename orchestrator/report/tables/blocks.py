"""The parts that a report is made of, without a format; `render.page` writes them as HTML and as Markdown."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Heading:
    """Title of a part."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str
    pages: Sequence[tuple[str, str]] = ()
    """Pages elsewhere that stand after it: (what, address) of each."""


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]
    warning: bool = False
    """Something to know before believing the rest."""


@dataclass(frozen=True)
class Grid:
    """A table; columns after the first `words` hold numbers. With a title, folded away until asked for."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1
    title: str = ""


@dataclass(frozen=True)
class Code:
    """Text to copy. With a title, folded away until asked for."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """The plot of this name, where there is one: without the numbers for it there is none."""

    name: str


def numbered(picture: str, number: int) -> str:
    """Name the plot of a further metric: `differences-2`; of the first one, by its own name."""
    return f"{picture}-{number + 1}" if number else picture


Block = Heading | Paragraph | Bullets | Grid | Code | Picture
