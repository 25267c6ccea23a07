"""Data in Markdown is what it is: whatever its characters, a reader sees them and nothing else."""

from __future__ import annotations

import re

import pytest
from hostile import ANYTHING, harmless, one_line, read_markdown
from hypothesis import example, given
from hypothesis import strategies as st
from markdown_it import MarkdownIt

from jobs.core.plain import beginning, markdown

PUNCTUATION = "\\`*_{}[]()<>#+-.!|~=&;:$@\"'/ \t\n\r%^0aZé\u202e"
TEXTS = st.text(st.sampled_from(PUNCTUATION) | st.characters(), max_size=40)


@pytest.mark.parametrize("text", ANYTHING)
def test_what_wants_to_be_markdown_is_shown_as_it_is(text: str) -> None:
    seen = read_markdown(markdown(text, starts=True))
    assert seen.lines == [("p", one_line(text))]
    assert seen.tags == ["p"]
    assert harmless(markdown(text))


@given(TEXTS, st.integers(1, 60))
@example("@" * 40, 30)
@example("\U000e0041" * 9, 5)
@example(text="\xa0", longest=1)
def test_the_beginning_of_a_text_is_as_long_as_its_markdown_may_be(text: str, longest: int) -> None:
    """And nothing of it is cut in two. Mutant check: cutting the Markdown."""
    kept = beginning(text, longest)
    assert len(markdown(kept, starts=True)) <= longest or kept == "\u2026"
    whole = len(markdown(text, starts=True)) <= longest
    assert kept == text if whole else kept.endswith("\u2026") and text.startswith(kept[:-1])
    # A reader leaves no white space of any kind at the ends of a paragraph, and nobody sees any there.
    assert read_markdown(markdown(kept, starts=True)).text.strip() == one_line(kept).strip()


@pytest.mark.parametrize("form", ["{}", "see {} ok", "| a |\n| --- |\n| {} |"])
@pytest.mark.parametrize(
    "text",
    [
        *("a@b.cd", "mailto:a@b.cd", "xmpp:a@b.cd/x", "a@b@c.de", "<a.b-c_d@e-f.gh>", "x&#64;b.cd", "@org/team"),
        *("www.x.com", "a_www.x.com", "_WWW.x.com", "(www.x.com)", "__www.x.com", "é_www.x"),
    ],
)
def test_no_address_becomes_a_link_on_github(text: str, form: str) -> None:
    """There an address with @ is looked for in the text between marks, once entities are characters again; www. as it
    stands, after anything but a letter or a digit. Mutant checks: an entity for @, and `\\b` before www."""
    said = form.format(markdown(text, starts=form == "{}"))
    inline = [
        part
        for token in MarkdownIt("commonmark", {"html": True}).enable("table").parse(said)
        for part in token.children or ()
    ]
    texts = [part.content for part in inline if part.type == "text"]
    assert one_line(text) in "".join(texts)
    assert not [one for one in texts if re.search(r"@\w", one)]
    assert not re.search(r"(?<![^\W_])www\.", said, re.IGNORECASE)


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
