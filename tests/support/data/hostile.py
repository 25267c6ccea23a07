"""Texts that want to be more than text, and readers that tell whether they were taken for it."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from markdown_it import MarkdownIt

from jobs.core.plain import visible

BRACKETS = "[/data/a] [bold red]b[/] [link=file:///x]c[/link] [c] :warning: @one a@b.cd www.d.ef ..."
HTML = "<script>alert(1)</script><img src=http://evil.invalid/h.png onerror=alert(1)> &lt;b&gt; &#33; <!-- x -->"
MARKDOWN = (
    "![m](http://evil.invalid/m.png) [l](javascript:alert(1)) <http://evil.invalid/a> `c` *e* _u_ ~~s~~ a|b \\| $x^2$"
)
STARTS = [
    "# one",
    "- two",
    "1. three",
    "> four",
    "[five]: http://evil.invalid/r",
    "[ ] six",
    "=== 7",
    "~~~",
    "+ 8",
    "9) 9",
]
SVG = '#666666 #dcdcdc url(#p0) href="#x" id="y" font-family: evil; --ink {{x}} {% y %} %s'
MARKS = "\x1b[31m\x07\x08\x9b2J\u202eabc\u2066\u200f\u2028\ufeff\x00\U000e0041"
"""Escape, bell, backspace, the one-byte form of a sequence, marks that turn or break a line, NUL, a letter unseen."""

LABELS = [f"x {BRACKETS}", HTML, MARKDOWN, SVG, "be\u202eta\u2066\u200f\ufeff", *STARTS[:3]]
"""Such as a sweep may have: one line, without control characters."""

ANYTHING = [*LABELS, *STARTS[3:], MARKS, f"two\nlines\r\n\n# {MARKS}", "\udcff.parquet", "x" * 3000 + "![y](z)"]
"""What a failure, a log or a name of a file may hold."""


def one_line(text: str) -> str:
    """What a line of plain text shows of data."""
    return visible(re.sub(r"[ \t\r\n]+", " ", text).strip(" "))


def harmless(text: str) -> bool:
    """Whether nothing of MARKS would reach a terminal or a reader's eye as itself."""
    return not any(mark in text for mark in "\x1b\x07\x08\x9b\x00\u202e\u2066\u200f\u2028\ufeff\U000e0041\udcff")


class Seen(HTMLParser):
    """Every tag with its attributes, and the text of each element that is a line of its own."""

    VOID = ("meta", "br", "hr", "img", "wbr", "input", "link")
    LINES = ("p", "li", "td", "th", "h1", "h2", "h3", "title", "summary", "figcaption", "text", "pre")

    def __init__(self, html: str) -> None:
        super().__init__(convert_charrefs=True)
        self.tags: list[str] = []
        self.attributes: list[tuple[str, str]] = []
        self.lines: list[tuple[str, str]] = []
        self._open: list[str] = []
        self.feed(html)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.attributes += [(f"{tag}.{name}", value or "") for name, value in attrs]
        if tag not in self.VOID:
            self._open.append(tag)
        if tag in self.LINES:
            self.lines.append((tag, ""))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in self.VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        if tag in self._open:
            while self._open.pop() != tag:
                pass

    def handle_data(self, data: str) -> None:
        if self.lines and any(tag in self.LINES for tag in self._open):
            tag, text = self.lines[-1]
            self.lines[-1] = (tag, text + data)

    @property
    def text(self) -> str:
        return "\n".join(text for _, text in self.lines)

    @property
    def shape(self) -> list[str]:
        """Tags that data could have made; nothing of what wraps a word."""
        return [tag for tag in self.tags if tag != "wbr"]


def read_markdown(text: str) -> Seen:
    """As a reader of GitHub's Markdown sees it: CommonMark, tables, strikethrough, HTML let through."""
    return Seen(MarkdownIt("commonmark", {"html": True}).enable(["table", "strikethrough"]).render(text))
