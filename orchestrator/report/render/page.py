"""A report as one HTML file that opens offline, on a phone, light or dark; and as Markdown beside its PNGs.

Everything from a sweep or a ledger is escaped; the page loads nothing and runs nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from html import escape

from jobs.core import plain
from orchestrator.report.render.plots import Plot
from orchestrator.report.tables.answers import ShortAnswer
from orchestrator.report.tables.blocks import Block, Bullets, Code, Grid, Heading, Paragraph, Picture
from orchestrator.report.tables.content import Page

LONG = 24
"""Characters from which a cell beside numbers is given room, so that these do not squeeze it."""

PAPER_COLUMNS = 12
"""Of a table that has room on paper; in print a row of a wider one is a block, each cell after its column's name."""

STYLE = """
:root { --paper: #fefefe; --ink: #1b1b1b; --muted: #5f5f5f; --line: #dcdcdc; --note: #fff6e0; }
@media screen and (prefers-color-scheme: dark) {
  :root { --paper: #16181b; --ink: #e8e6e3; --muted: #a3a3a3; --line: #3a3d42; --note: #332b17; }
}
* { box-sizing: border-box; }
html { color-scheme: light dark; -webkit-text-size-adjust: 100%; }
body { margin: 0 auto; max-width: 60rem; padding: 2rem 1rem 4rem; background: var(--paper); color: var(--ink);
  font: 1rem/1.55 system-ui, sans-serif; overflow-wrap: break-word; }
h1 { font-size: 1.6rem; line-height: 1.25; margin: 0 0 .75rem; }
h2 { font-size: 1.1rem; margin: 2.75rem 0 .5rem; padding-top: .6rem; border-top: 1px solid var(--line); }
.verdict { font-size: 1.2rem; line-height: 1.45; margin: 0 0 .5rem; }
.subtitle, figcaption, summary { color: var(--muted); font-size: .9rem; }
a { color: inherit; }
.answers { margin: 1rem 0; max-width: 48rem; border-left: 3px solid var(--line); padding-left: 1rem; }
.answers div { display: grid; grid-template-columns: 6rem 1fr; gap: 0 1rem; margin: .35rem 0; }
.answers dt { color: var(--muted); }
.answers dd { margin: 0; overflow-wrap: anywhere; }
.answers code { white-space: pre-wrap; font-size: .9em; }
.warning { background: var(--note); border-radius: .4rem; padding: .6rem 1rem .6rem 2rem; }
.scroll { overflow-x: auto; margin: 1rem 0; }
table { border-collapse: collapse; font-size: .9rem; font-variant-numeric: tabular-nums; min-width: 60%; }
table.words td:last-child { overflow-wrap: anywhere; }
th, td { padding: .35rem .8rem .35rem 0; text-align: left; vertical-align: top; border-bottom: 1px solid var(--line); }
th { font-weight: 600; color: var(--muted); vertical-align: bottom; white-space: nowrap; }
.number { text-align: right; white-space: nowrap; }
td.long { min-width: 14rem; }
p, h1, ul { max-width: 48rem; }
@media screen and (max-width: 40rem) {
  .answers div { grid-template-columns: 1fr; }
  table, tbody, tr, td { display: block; }
  thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); white-space: nowrap; }
  tr { border-bottom: 1px solid var(--line); padding: .4rem 0; }
  td, td.number { border: 0; padding: .1rem 0 .1rem 45%; text-align: left; white-space: normal; position: relative;
    min-height: 1.55em; overflow-wrap: anywhere; }
  td::before { content: attr(data-of); position: absolute; left: 0; width: 42%; color: var(--muted); }
  td:first-child { padding-left: 0; font-weight: 600; }
  td:first-child::before { content: none; }
}
@media print {
  body { max-width: none; padding: 0; font-size: .85rem; }
  h2, h3 { break-after: avoid; }
  figure, tr, .answers, .warning { break-inside: avoid; }
  .scroll { overflow: visible; }
  table { font-size: .72rem; }
  th, td { padding: .25rem .45rem .25rem 0; }
  th { white-space: normal; }
  td.long { min-width: 8rem; }
  /* Paper does not scroll. */
  table.wide, .wide tbody, .wide tr { display: block; }
  .wide thead { position: absolute; width: 1px; height: 1px; overflow: hidden; clip-path: inset(50%); }
  .wide tr { padding: .4rem 0; border-bottom: 1px solid var(--line); }
  .wide td { display: inline-block; border: 0; padding-right: 1.2rem; white-space: normal; }
  .wide td::before { content: attr(data-of) " "; color: var(--muted); }
  .wide td:first-child { display: block; font-weight: 600; }
  .wide td:first-child::before { content: none; }
  details::details-content { content-visibility: visible; }
}
figure { margin: 1.75rem 0; max-width: 40rem; }
figure.wide { max-width: none; }
.panels { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 22rem), 1fr)); gap: 1rem; }
figure svg { width: 100%; height: auto; display: block; }
figure h3 { font-size: 1rem; margin: 0 0 .25rem; }
pre { white-space: pre-wrap; overflow-wrap: anywhere; padding: .75rem 1rem; border: 1px solid var(--line);
  border-radius: .4rem; font-size: .85rem; }
"""


def html(page: Page, plots: Sequence[Plot] = ()) -> str:
    """Render the whole page as HTML."""
    pictures = {plot.name: plot for plot in plots}
    warning = _html(Bullets(page.notes, warning=True), {}) if page.notes else ""
    verdicts = "\n".join(f'<p class="verdict">{_text(verdict)}</p>' for verdict in page.verdicts)
    answers = "".join(map(_answer, page.answers))
    body = "\n".join(_html(block, pictures) for block in _seen(page.blocks, pictures))
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; img-src data:">
<title>{_text(page.question)}</title>
<style>{STYLE}</style>
</head>
<body>
<main>
<header id="asked"><h1>{_text(page.question)}</h1>
<p class="subtitle">{_text(page.terms)}</p></header>
<div id="won">{verdicts}</div>
{f'<dl class="answers">{answers}</dl>' if answers else ""}
<p class="subtitle">{_text(page.subtitle)}</p>
{warning}
{body}
</main>
</body>
</html>
"""


def markdown(page: Page, plots: Sequence[Plot] = ()) -> str:
    """Render the whole page as Markdown; pictures are the PNGs of the same folder."""
    pictures = {plot.name: plot for plot in plots}
    top = [
        f"# {plain.markdown(page.question)}",
        *([plain.markdown(page.terms, starts=True)] if page.terms else []),
        *(f"**{plain.markdown(verdict)}**" for verdict in page.verdicts),
        *map(_markdown_answer, page.answers),
        plain.markdown(page.subtitle, starts=True),
    ]
    if page.notes:
        top.append(_markdown(Bullets(page.notes), {}))
    body = (_markdown(block, pictures) for block in _seen(page.blocks, pictures))
    return "\n\n".join([*top, *body]) + "\n"


def _answer(answer: ShortAnswer) -> str:
    text = f"<code>{escape(plain.visible_lines(answer.text))}</code>" if answer.is_command else _text(answer.text)
    return f'<div id="{answer.key}"><dt>{_text(answer.name)}</dt><dd>{text}</dd></div>'


def _markdown_answer(answer: ShortAnswer) -> str:
    if answer.is_command:
        return f"{plain.markdown(answer.name)}:\n\n{_markdown(Code(answer.text), {})}"
    return f"{plain.markdown(answer.name)}: {plain.markdown(answer.text)}"


def _seen(blocks: Sequence[Block], pictures: Mapping[str, Plot]) -> list[Block]:
    """Return the blocks without the pictures that there are no numbers for."""
    return [block for block in blocks if not isinstance(block, Picture) or block.name in pictures]


def _html(block: Block, pictures: Mapping[str, Plot]) -> str:
    match block:
        case Heading(text):
            return f"<h2>{_text(text)}</h2>"
        case Paragraph(text, pages):
            return f"<p>{' '.join([_text(text), ', '.join(_link(*page) for page in pages)]).rstrip()}</p>"
        case Bullets(items, warning):
            listed = "".join(f"<li>{_text(item)}</li>" for item in items)
            return f'<ul class="warning">{listed}</ul>' if warning else f"<ul>{listed}</ul>"
        case Grid(headings, rows, words, title):
            return _folded(title, _html_table(headings, rows, words))
        case Code(text, title):
            return _folded(title, f"<pre>{escape(plain.visible_lines(text))}</pre>")
        case Picture(name):
            plot = pictures[name]
            title = f'<h3 id="plot-{plot.name}">{_text(plot.title)}</h3>'
            panels = "\n".join(plot.svgs)
            wide = f'<div class="panels">{panels}</div>' if len(plot.svgs) > 1 else panels
            opening = '<figure class="wide">' if len(plot.svgs) > 1 else "<figure>"
            return f"{opening}{title}\n{wide}\n<figcaption>{_text(plot.caption)}</figcaption></figure>"


def _folded(title: str, html: str) -> str:
    return f"<details><summary>{_text(title)}</summary>{html}</details>" if title else html


def _html_table(headings: Sequence[str], rows: Sequence[Sequence[str]], words: int) -> str:
    text_only = words >= len(headings)

    def kind(cell: str, column: int) -> str:
        if column >= words:
            return ' class="number"'
        return ' class="long"' if len(cell) > LONG and not text_only else ""

    def cells(row: Sequence[str], tag: str) -> str:
        shown = [_breakable(_text(cell)) if text_only else _text(cell) for cell in row]
        of = [f' data-of="{_text(heading)}"' if tag == "td" else "" for heading in headings]
        return "".join(f"<{tag}{kind(cell, k)}{of[k]}>{shown[k]}</{tag}>" for k, cell in enumerate(row))

    body = "\n".join(f"<tr>{cells(row, 'td')}</tr>" for row in rows)
    head = f"<thead><tr>{cells(headings, 'th')}</tr></thead>"
    kinds = " ".join(["words"] * text_only + ["wide"] * (len(headings) > PAPER_COLUMNS))
    opening = f'<table class="{kinds}">' if kinds else "<table>"
    table = f"{opening}{head}\n<tbody>{body}</tbody></table>"
    # On a phone a row is a block, each of its cells after the name of its column. On a wider screen a table that does
    # not fit scrolls by itself; tabindex lets the keyboard scroll it too.
    return f'<div class="scroll" tabindex="0">{table}</div>'


def _link(what: str, address: str) -> str:
    """Build the link to a page of a server; an address of any other kind is text."""
    if not address.startswith(("http://", "https://")):
        return f"{_text(what)} ({_text(address)})"
    return f'<a href="{escape(address)}">{_text(what)}</a>'


def _text(data: str) -> str:
    """Escape data as the text of an element, with what would turn or break its line as visible escapes."""
    return escape(plain.visible(data))


def _breakable(html: str) -> str:
    """Let a name such as packages.torch or negatives_per_anchor continue on the next line where its parts meet."""
    return re.sub(r"(?<=\w[._])(?=\w)", "<wbr>", html)


def _markdown(block: Block, pictures: Mapping[str, Plot]) -> str:
    match block:
        case Heading(text):
            return f"## {plain.markdown(text)}"
        case Paragraph(text, pages):
            listed = ", ".join(f"{plain.markdown(what)} ({plain.markdown(address)})" for what, address in pages)
            return f"{plain.markdown(text, starts=True)} {listed}".rstrip()
        case Bullets(items):
            return "\n".join(f"- {plain.markdown(item, starts=True)}" for item in items)
        case Grid(headings, rows, words, title):
            rule = ["---" if k < words else "---:" for k in range(len(headings))]
            lines = [map(plain.markdown, headings), rule, *(map(plain.markdown, row) for row in rows)]
            table = "\n".join(f"| {' | '.join(line)} |" for line in lines)
            return (f"{plain.markdown(title, starts=True)}\n\n" if title else "") + table
        case Code(text, title):
            text, fence = plain.visible_lines(text), "```"
            while fence in text:
                fence += "`"
            return (f"{plain.markdown(title, starts=True)}\n\n" if title else "") + f"{fence}\n{text}\n{fence}"
        case Picture(name):
            plot = pictures[name]
            return f"![{plain.markdown(plot.title)}]({plot.name}.png)\n\n{plain.markdown(plot.caption, starts=True)}"
