"""Data as plain text: what a terminal would obey, or a reader would take for markup, is printed as what it is.

Labels, questions, failures and logs come from files and other programs. A bracket in them is a bracket, and what a
terminal would obey (escape sequences, marks that turn the direction of a line, invisible characters) is printed as
`\\x1b`, `\\u202e` and so on.
"""

from __future__ import annotations

import re
import unicodedata

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


def markdown(text: str, *, starts: bool = False) -> str:
    """Data within a line of Markdown: shown as the text that it is, by GitHub's readers and by MLflow's.

    Of white space one space is left. starts: the text begins a paragraph or an item, where a number, a dash or a
    bracket may mean more.
    """
    said = visible(re.sub(r"[ \t\r\n]+", " ", text).strip(" "))
    said = re.sub(r"[\\`*|~]", r"\\\g<0>", said)
    said = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", said)  # within a word it means nothing
    said = re.sub(r"&(?=#?\w+;)", "&amp;", said).replace("<", "&lt;").replace("$", "&#36;")
    said = said.replace("](", "]\\(").replace("...", r"\.\.\.").replace("@", "&#64;")
    said = re.sub(r":(?=//|[\w+-]+:)", "&#58;", said)  # a link, or the name of a picture
    said = re.sub(r"(?:(?<=^)|(?<= ))#", "&#35;", said)
    said = re.sub(r"\b(www)\.", r"\1\\.", said, flags=re.IGNORECASE)
    if starts:
        said = re.sub(r"^([-+>=\[])", r"\\\1", said)
        said = re.sub(r"^(\d+)([.)])", r"\1\\\2", said)
    return said
