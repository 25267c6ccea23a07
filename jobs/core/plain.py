"""Data as plain text: what a terminal would obey, or a reader would take for markup, is printed as what it is.

Labels, questions, failures and logs come from files and other programs. A bracket in them is a bracket, and what a
terminal would obey (escape sequences, marks that turn the direction of a line, invisible characters) is printed as
`\\x1b`, `\\u202e` and so on.
"""

from __future__ import annotations

import re
import unicodedata

JOINERS = "\u200c\u200d"
"""Which scripts and emoji are written with."""

SELECTORS = "\u180b-\u180d\u180f\ufe00-\ufe0f\U000e0100-\U000e01ef"
"""Which form a character has: of an emoji, a Han or a Mongolian one. As a range of a pattern."""

VIRAMA = 9
"""Combining class of the signs after which a joiner decides the form, also at the end of a word."""

DEPENDENT = re.compile(f"[{JOINERS}{SELECTORS}]")

UNSEEN = re.compile(
    "[\u034f\u115f\u1160\u17b4\u17b5\u2065\u2800\u3164\uffa0\ufff0-\ufff8\U0001d159\U000e0000-\U000e00ff\U000e01f0-\U000e0fff]"
)
"""What takes no room, or room and no ink, and is neither a space nor a control character."""


def is_harmless(character: str) -> bool:
    """Return whether a terminal prints a character as itself, if it stands where it belongs."""
    category = unicodedata.category(character)
    return (category not in ("Cc", "Cf", "Cs", "Zl", "Zp") or character in JOINERS) and not UNSEEN.match(character)


def visible(text: str, *, keep: str = "") -> str:
    """Show data in one line of text, with every character that is not harmless as its escape.

    keep: control characters that stay as they are.
    """
    if text.isascii() and (text.isprintable() or text.translate(dict.fromkeys(map(ord, keep))).isprintable()):
        return text
    return "".join(
        character
        if character in keep or (is_harmless(character) and _belongs(text, index))
        else character.encode("unicode_escape", "surrogatepass").decode()
        for index, character in enumerate(text)
    )


def _belongs(text: str, index: int) -> bool:
    """Return whether a joiner or selector is seen by what it does to its neighbours; True for any other character."""
    if not DEPENDENT.match(text, index):
        return True
    before, after = text[index - 1 : index], text[index + 1 : index + 2]
    if text[index] in JOINERS:
        joined = _is_joined(before) or (before == "\ufe0f" and _belongs(text, index - 1))
        return (joined and _is_joined(after)) or unicodedata.combining(before or " ") == VIRAMA
    if text[index] in "\ufe0e\ufe0f":
        key = after == "\u20e3" and before in tuple("#*0123456789")
        return key or (_is_joined(before, least=0x80) and unicodedata.category(before)[0] in "SP")
    return _is_joined(before) and unicodedata.category(before) == "Lo"


def _is_joined(character: str, *, least: int = 0x530) -> bool:
    """Return whether a character is a letter, a mark, a symbol or punctuation of a script that has joiners. least: the
    first character that may be."""
    if not character or ord(character) < least or UNSEEN.match(character) or DEPENDENT.match(character):
        return False
    return unicodedata.category(character)[0] in "LMSP"


def visible_lines(text: str) -> str:
    """Show a text of several lines, and keep its line ends and tabs."""
    return visible(text.replace("\r\n", "\n"), keep="\n\t")


def one_line(text: str) -> str:
    """Show a text of the user's as one visible line, with each run of white space as one space."""
    return visible(re.sub(r"[ \t\r\n]+", " ", text).strip(" "))


def beginning(text: str, longest: int) -> str:
    """Return the text, or as much of its beginning as takes at most `longest` characters of Markdown, with an
    ellipsis."""
    kept = text
    while (length := len(markdown(kept, starts=True))) > longest:
        kept = f"{kept[: max(0, min(len(kept) - 2, len(kept) * longest // length))].rstrip()}\u2026"
    return kept


def markdown(text: str, *, starts: bool = False) -> str:
    """Escape data within a line of Markdown: GitHub's readers and MLflow's show it as the text that it is.

    Each run of white space becomes one space. starts: the text begins a paragraph or an item, where a number, a dash or
    a bracket may mean more.
    """
    escaped = one_line(text)
    escaped = re.sub(r"[\\`*|~]", r"\\\g<0>", escaped)
    escaped = re.sub(r"(?<![^\W_])_|_(?![^\W_])", r"\\_", escaped)  # within a word it means nothing
    escaped = re.sub(r"&(?=#?\w+;)", "&amp;", escaped).replace("<", "&lt;").replace("$", "&#36;")
    escaped = escaped.replace("](", "]\\(").replace("...", r"\.\.\.")
    escaped = escaped.replace("@", "@<!-- -->")  # GitHub looks for addresses once entities are characters again
    escaped = re.sub(r":(?=//|[\w+-]+:)", "&#58;", escaped)  # a link, or the name of a picture
    escaped = re.sub(r"(?:(?<=^)|(?<= ))#", "&#35;", escaped)
    escaped = re.sub(r"(?<![^\W_])(www)\.", r"\1\\.", escaped, flags=re.IGNORECASE)
    if starts:
        escaped = re.sub(r"^([-+>=\[])", r"\\\1", escaped)
        escaped = re.sub(r"^(\d+)([.)])", r"\1\\\2", escaped)
    return escaped
