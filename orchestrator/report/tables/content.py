"""What a report says, in its order: the question, the verdict, the evidence, what ran, and how to run it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from jobs.core.plain import is_harmless
from orchestrator.ledger.stored import SweepTable
from orchestrator.report import formatting as text
from orchestrator.report.naming import Names, names_of
from orchestrator.report.summary.records import Answer, MultiRunSummary, Summary
from orchestrator.report.summary.records.views import by_each, measures_of
from orchestrator.report.tables import grids
from orchestrator.report.tables.answers import ShortAnswer, short_answers
from orchestrator.report.tables.blocks import (
    Block,
    Bullets,
    Code,
    Grid,
    Heading,
    Paragraph,
    Picture,
    numbered,
)
from orchestrator.report.tables.measures import measures
from orchestrator.report.tables.uncertainty import uncertainty
from orchestrator.sweep import flatten
from orchestrator.system.display import counted, ranges

Columns = Sequence[tuple[str, str, str]]
"""Name, type and meaning of each column of results.parquet."""

AT_FIRST = """
Both arms of a comparison train from the same seeds; what counts is the difference, seed by seed.

p is the share of all sign patterns, of all comparisons at once, that look at least as extreme: one wrong claim in a
whole sweep has a chance of 0.05.

The interval holds every difference that was not rejected; inconclusive does not mean equal.
"""

UNTESTED = """
Where nothing is trained no seed changes a number, so there is no test: the interval is then that of the difference on
other rows of the same kind.
"""

READING = """
Arms are compared seed by seed: both train from the same seed, and the difference is the arm minus its baseline.

If two settings were equal, each seed's difference could as well have the other sign. p is the share of all sign
patterns, of all comparisons at once, that look at least as extreme; p alone is that of the comparison by itself, and
decides nothing. The interval holds every difference that the same count would not have rejected.

The verdict is the first of these that holds: diverges, when an arm diverged in at least half of its seeds, those that
failed left aside, or no setting of it trained; same objective, when the arms differ only in how they are computed,
which is no question; equivalent, when the mean difference lies inside the smallest difference that matters (two
one-sided t tests, adjusted by Holm; p and interval are then of these); better or worse, when p is small enough,
"perhaps by less than matters" where the interval reaches below that smallest difference; otherwise inconclusive, which
does not mean equal. Seeds needed are those that would tell the smallest difference that matters from none four times in
five, as far as seeds lie apart here; where there are as many, the difference may lie between the two. One wrong claim
in the whole sweep has a chance of 0.05: 0.04 for better or worse and 0.01 for equivalent, or 0.05 for either where
there is one comparison or no smallest difference.

Seeds say nothing of other rows. Better or worse "on these rows" means that the interval on other rows of the same kind
has 0 in it: there the difference may be none, or the other way round. It is a t interval, by rows and seeds, and the
seeds alone may be why.

A seed that diverged has no metric. In the test its pair counts as the widest of the comparison, against the arm that
diverged, and such a comparison has no mean difference. A seed that is missing makes its comparisons inconclusive.
Nothing is dropped.
"""

READING_ACROSS = """
Across runs, every arm of the later runs is compared with the first run's baseline, on the seeds that both runs planned.
The joint test is over these comparisons. What a run planned is judged by its own plan and not once more.
"""


@dataclass(frozen=True)
class Page:
    """A report in words, from its title to its last table."""

    question: str
    terms: str
    """By what the arms are compared."""
    verdicts: Sequence[str]
    subtitle: str
    """Which run, or runs, this is."""
    notes: Sequence[str]
    """What to know before believing the rest."""
    blocks: Sequence[Block]
    answers: Sequence[ShortAnswer] = ()


def page(summary: Summary, sweep: SweepTable, columns: Columns, mlflow: Block | None = None) -> Page:
    """Build the report of a run. sweep: as resolved, which can be launched again. mlflow: where the run is there."""
    names = names_of(summary.arms)
    blocks = [
        *_how_to_read(summary),
        Heading("Evidence"),
        *_evidence(summary, names),
        *grids.exploratory(summary, names),
        *_more(summary, names),
        *_reading("The rules of the verdict", READING),
        Heading("What ran"),
        *_warned(summary),
        *grids.trials(summary),
        *grids.data(summary),
        *([mlflow] if mlflow else []),
        Heading("Run it again"),
        *_again(summary, sweep),
        *grids.labels(summary, names),
        *_data(columns),
    ]
    answers = list(short_answers(summary, names, _commands(summary)))
    return Page(summary.question, _terms(summary), [summary.sentence], _which(summary), summary.notes, blocks, answers)


def _evidence(summary: Summary, names: Names) -> Iterator[Block]:
    """Yield the tables and figures behind the verdicts, metric by metric."""
    for number, view in enumerate(by_each(summary)):
        yield from _by_metric(view, of=summary)
        yield grids.comparisons(view, names)
        yield Picture(numbered("differences", number))
        yield from grids.which(view)
        yield Picture(numbered("levels", number))
        yield grids.arms(view, names)
        yield Picture(numbered("curves", number))
    yield from measures(summary, names)


def _by_metric(view: Answer, *, of: Answer) -> Iterator[Block]:
    """Yield by which metric the next tables are, where there are several."""
    if of.metrics:
        yield Heading(f"By {view.metric}")


def multi_run_page(answer: MultiRunSummary, sweeps: Mapping[str, SweepTable], columns: Columns) -> Page:
    """Build the report of several runs: each by its own plan first. sweeps: name of a run -> its resolved sweep."""
    runs, names = answer.runs, names_of(answer.arms)
    blocks = [
        *_how_to_read(answer, *runs.values()),
        Heading("Each run by its own plan"),
        *(block for name, summary in runs.items() for block in _by_plan(name, summary)),
        Heading("All arms"),
        *_all_arms(answer, names),
        Heading("Across runs"),
        *(_across(answer, names) if answer.comparisons else [Paragraph(answer.sentence)]),
        *_more(answer, names),
        *_reading("The rules of the verdict", READING + READING_ACROSS),
        Heading("What ran"),
        *(block for name, summary in runs.items() for block in (Paragraph(f"{name}:"), *grids.trials(summary))),
        Heading("Run it again"),
        *(block for name, summary in runs.items() for block in (Paragraph(f"{name}:"), *_again(summary, sweeps[name]))),
        *grids.labels(answer, names),
        *_data(columns),
    ]
    verdicts = [*(f"{name}: {summary.sentence}" for name, summary in runs.items()), answer.sentence]
    subtitle = " ".join(f"{name}: {_which(summary)}" for name, summary in runs.items())
    commands = list(dict.fromkeys(command for summary in runs.values() for command in _commands(summary)))
    answers = list(short_answers(answer, names, commands))
    return Page(answer.question, _terms(answer), verdicts, subtitle, answer.notes, blocks, answers)


def _all_arms(answer: MultiRunSummary, names: Names) -> Iterator[Block]:
    for number, view in enumerate(by_each(answer)):
        yield from _by_metric(view, of=answer)
        yield grids.arms(view, names)
        yield Picture(numbered("curves", number))
    yield from measures(answer, names)


def _across(answer: MultiRunSummary, names: Names) -> Iterator[Block]:
    for number, view in enumerate(by_each(answer)):
        yield from _by_metric(view, of=answer)
        yield grids.comparisons(view, names)
        yield Picture(numbered("differences", number))


def _which(summary: Summary) -> str:
    """Say in one line which run this is."""
    started = datetime.fromtimestamp(summary.created, UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"Sweep {summary.sweep}, run {summary.run[:8]}, begun {started}, {summary.state}."


def _by_plan(name: str, summary: Summary) -> Iterator[Block]:
    yield Paragraph(f"{name}: {summary.question}")
    names = names_of(summary.arms)
    for view in by_each(summary):
        yield from _by_metric(view, of=summary)
        yield grids.comparisons(view, names)
        yield from grids.swaps(view, names)
    if summary.notes:
        yield Bullets(summary.notes, warning=True)


def _terms(answer: Answer) -> str:
    """Say by what the arms are compared."""
    terms = []
    for metric in measures_of(answer):
        goal, limit = "higher" if metric.mode == "max" else "lower", metric.smallest_difference
        matters = f"; differences under {text.value(limit)} do not matter" if limit else ""
        terms.append(f"{metric.name}: {goal} is better{matters}.")
    return f"{' '.join(terms)} Confirm seeds: {ranges(answer.seeds)}."


def _more(answer: Answer, names: Names) -> Iterator[Block]:
    views = by_each(answer)
    yield from uncertainty(answer, names)
    yield Heading("Cost")
    yield from grids.cost(answer, names)
    for number in range(len(views)):
        yield Picture(numbered("cost", number))
    yield from grids.execution_only(answer, names)
    yield from grids.tuning(answer, names)
    yield Picture("tuned")
    yield Picture("tuning")
    for number, view in enumerate(views):
        if isinstance(view, Summary) and view.swaps:
            yield from grids.swaps(view, names)
        yield from grids.seeds(view, names, further=number > 0)


def _warned(summary: Summary) -> Iterator[Block]:
    """Yield what plan, doctor and launch warned of."""
    if summary.warnings:
        yield Paragraph("Before anything ran, plan and launch warned:")
        yield Bullets(summary.warnings, warning=True)


def _how_to_read(*answers: Answer) -> Iterator[Block]:
    """Yield what a reader has to know of intervals and p, as far as there are tests, and what stands where none are."""
    untested = [comparison.is_seedless for answer in answers for comparison in answer.comparisons]
    tests = [] if untested and all(untested) else [AT_FIRST]
    yield from _reading("How to read this", "\n".join([*tests, *([UNTESTED] if any(untested) else [])]))


def _reading(title: str, parts: str) -> Iterator[Block]:
    yield Heading(title)
    yield Bullets([" ".join(part.split()) for part in parts.strip().split("\n\n")])


def _again(summary: Summary, sweep: SweepTable) -> Iterator[Block]:
    environment = {key: value for key, value in summary.environment.items() if key != "command"}
    yield from map(Code, _commands(summary))
    rows = [(key, _plain(value)) for key, value in flatten(environment).items()]
    if rows:
        yield Grid(("recorded", "value"), rows, words=2)
    yield Code(_json(sweep), title="The sweep, resolved")


def _commands(summary: Summary) -> list[str]:
    """Return the command that began a run, as it was typed, where it was recorded."""
    command = summary.environment.get("command")
    return [" ".join(map(str, command)) if isinstance(command, list) else str(command)] if command else []


def _data(columns: Columns) -> Iterator[Block]:
    yield Heading("The data")
    yield Paragraph(
        "results.parquet, beside this page, has every trial as a row, those that failed or diverged included."
    )
    yield Grid(("column", "type", "meaning"), columns, words=3, title=f"Its {counted(len(columns), 'column')}")


def _plain(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(value: object) -> str:
    """Format JSON to be read and copied: what could not be printed as itself has JSON's own escapes."""
    printed = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(
        character if is_harmless(character) or character == "\n" else json.dumps(character)[1:-1]
        for character in printed
    )
