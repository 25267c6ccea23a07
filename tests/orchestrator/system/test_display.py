"""What a terminal would obey is printed as text, and everything else as it is."""

from __future__ import annotations

import io
import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console
from rich.table import Table

from jobs.core.plain import visible, visible_lines
from orchestrator.system.display import Harmless, cell, log_lines

UNSEEN = "\u200c\u200d\ufe0f\ufe00\u034f\u115f\u1160\u3164\uffa0\u2800\u17b4\u180b\u2065\U000e0100\U0001d159"


@pytest.mark.parametrize(
    "text",
    [
        *("plain [b]x[/b] :warning:", "naïve Ω 日本語", "שלום سلام", "a\\nb", "mieux\u00a0?", "全角\u3000空白"),
        *("👩\u200d🔬", "👩🏽\u200d🚀", "❤\ufe0f\u200d🔥", "1\ufe0f\u20e3", "‼\ufe0f", "©\ufe0e"),
        *("می\u200cخواهم", "क्\u200dष", "ന്\u200d", "葛\U000e0100", "ᠠ\u180b"),
    ],
)
def test_what_is_harmless_stays(text: str) -> None:
    assert visible(text) == visible_lines(text) == log_lines(text) == text


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]0;title\x07", r"\x1b]0;title\x07"),
        ("a\nb\tc\r", r"a\nb\tc\r"),
        ("\x9b2J\x7f", r"\x9b2J\x7f"),
        ("\u202e\u2066\u200f\u061c", r"\u202e\u2066\u200f\u061c"),
        ("\u2028\u2029\ufeff\u00ad\u200b", r"\u2028\u2029\ufeff\xad\u200b"),
        ("\udce9", r"\udce9"),
        ("\U000e0041", r"\U000e0041"),
        *((f"a{mark}", f"a{mark.encode('unicode_escape').decode()}") for mark in UNSEEN),
        *((f"{mark}b c", f"{mark.encode('unicode_escape').decode()}b c") for mark in UNSEEN),
        ("a\u200db", r"a\u200db"),
        ("я\u200cя", r"я\u200cя"),
        ("क\u200d", r"क\u200d"),
        ("क\u200d\u034fक", r"क\u200d\u034fक"),
        ("日\ufe0f5\ufe0f", r"日\ufe0f5\ufe0f"),
        ("👩\u200d\u200d🔬", r"👩\u200d\u200d🔬"),
    ],
)
def test_what_a_terminal_would_obey_is_shown(text: str, shown: str) -> None:
    assert visible(text) == shown


def test_lines_stay_where_there_are_several() -> None:
    assert visible_lines("a\r\n\tb\x1b[1m\n") == "a\n\tb\\x1b[1m\n"
    assert log_lines("10 %\r20 %\r\nend\n") == "10 %\n20 %\nend\n"


@given(st.text(st.characters() | st.sampled_from(f"{UNSEEN}क्ष👩❤1\u20e3a ")))
def test_text_of_any_kind_becomes_harmless_once_and_for_all(text: str) -> None:
    shown = visible(text)
    assert visible(shown) == shown
    assert "\n" not in shown
    assert not any(unicodedata.category(character) in ("Cc", "Cs") for character in shown)
    shown.encode()


def test_a_table_shows_brackets_and_marks() -> None:
    """Mutant check: `add_row(text)` takes [b] for markup."""
    table, written = Table(box=None), io.StringIO()
    table.add_column("arm")
    table.add_row(cell("[b]x[/b] [/y] :warning: \x1b[31m"))
    Console(file=written, width=80).print(Harmless(table))
    assert "[b]x[/b] [/y] :warning: \\x1b[31m" in written.getvalue()


def test_what_others_render_is_harmless_too() -> None:
    """Also on a terminal, whose own colours stay. Mutant check: without Harmless the escape arrives."""
    from rich.text import Text

    written = io.StringIO()
    console = Console(file=written, width=80, force_terminal=True, color_system="standard")
    console.print(Harmless(Text("red\x1b]0;x\u202e", style="red")))
    assert written.getvalue() == "\x1b[31mred\\x1b]0;x\\u202e\x1b[0m\n"
