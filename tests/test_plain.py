"""Data in Markdown is what it is: whatever its characters, a reader sees them and nothing else."""

from __future__ import annotations

import pytest
from hostile import ANYTHING, harmless, one_line, read_markdown
from hypothesis import example, given
from hypothesis import strategies as st

from jobs.plain import markdown

PUNCTUATION = "\\`*_{}[]()<>#+-.!|~=&;:$@\"'/ \t\n\r%^0aZé\u202e"
TEXTS = st.text(st.sampled_from(PUNCTUATION) | st.characters(), max_size=40)


@pytest.mark.parametrize("text", ANYTHING)
def test_what_wants_to_be_markdown_is_shown_as_it_is(text: str) -> None:
    seen = read_markdown(markdown(text, starts=True))
    assert seen.lines == [("p", one_line(text))]
    assert seen.tags == ["p"]
    assert harmless(markdown(text))


@given(TEXTS)
@example("![a](b)")
@example("1. a")
@example("a\\|b")
@example("a_b_ __c")
@example("# #")
def test_any_text_is_itself_wherever_it_stands(text: str) -> None:
    """Alone, in a heading, a list, a table, in bold, in italics, between other words. Mutant check: any of the marks
    that `markdown` escapes left as it is."""
    shown = one_line(text)
    own = read_markdown(markdown(text, starts=True))
    assert (own.text, own.tags) == (shown, ["p"] if shown else [])
    if not shown:
        return
    for form, tags in (
        (f"# {markdown(text)}", ["h1"]),
        (f"- {markdown(text, starts=True)}", ["ul", "li"]),
        (
            f"| a | b |\n| --- | --- |\n| {markdown(text)} | 2 |",
            ["table", "thead", "tr", "th", "th", "tbody", "tr", "td", "td"],
        ),
        (f"see {markdown(text)}: ok", ["p"]),
    ):
        seen = read_markdown(form)
        assert seen.tags == tags
        assert shown in [line.removeprefix("see ").removesuffix(": ok") for _, line in seen.lines]
