"""What a report says, in its order: the question, the verdict, the evidence, what ran, and how to run it again."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

from jobs.core.plain import is_harmless
from orchestrator.report import formatting as text
from orchestrator.report.render import tables
from orchestrator.report.render.blocks import Block, Bullets, Code, Grid, Heading, Paragraph, Picture
from orchestrator.report.render.plots import Plot
from orchestrator.sweep import flatten
from orchestrator.system.display import counted

Json = dict[str, Any]

READING = """
Arms are compared seed by seed: both train from the same seed, and the difference is the arm minus its baseline.

p is the exact sign-flip test: the share of all ways to give the differences signs whose mean is at least as far from
zero. p (Holm) is adjusted for the number of comparisons.

The verdict is the first of these that holds: diverges, when an arm diverged in at least half of its seeds, or no
setting of it trained; same objective, when the arms differ only in how they are computed, which is no question;
equivalent, when the 90% t interval of the mean difference lies inside the
smallest difference that matters (two one-sided tests, Holm-adjusted, at 0.05); better or worse, when p (Holm) is at
most 0.05; otherwise inconclusive, which does not mean equal.

A seed that diverged has no metric. In the test its pair counts as the widest of the comparison, against the arm that
diverged, and such a comparison has no mean difference. A seed that is missing makes its comparisons inconclusive.
Nothing is dropped.
"""

READING_ACROSS = """
Across runs, every arm of the later runs is compared with the first run's baseline, on the seeds that both runs planned.
Holm's adjustment is over these comparisons. What a run planned is judged by its own plan and not once more.
"""


def blocks(answer: Json, plots: Sequence[Plot], sweep: Json, columns: Sequence[tuple[str, str, str]]) -> list[Block]:
    """Everything below the question and the verdict.

    sweep: the resolved sweep. columns: name, type and meaning of each column of results.parquet.
    """
    return [
        Heading("Evidence"),
        _terms(answer),
        tables.comparisons(answer),
        *_picture(plots, "differences"),
        tables.arms(answer),
        *_picture(plots, "curves"),
        *_more(answer, plots),
        *_reading(READING),
        Heading("What ran"),
        *tables.trials(answer),
        Heading("Run it again"),
        *_again(answer, sweep),
        *_data(columns),
    ]


def blocks_of_several(
    answer: Json, plots: Sequence[Plot], sweeps: Mapping[str, Json], columns: Sequence[tuple[str, str, str]]
) -> list[Block]:
    """The same for several runs: each by its own plan first. sweeps: name of a run -> its resolved sweep."""
    runs = answer["runs"]
    return [
        Heading("Each run by its own plan"),
        *(block for one in runs for block in _by_plan(one)),
        Heading("All arms"),
        _terms(answer),
        tables.arms(answer),
        *_picture(plots, "curves"),
        Heading("Across runs"),
        *([tables.comparisons(answer)] if answer["comparisons"] else [Paragraph(answer["sentence"])]),
        *_picture(plots, "differences"),
        *_more(answer, plots),
        *_reading(READING + READING_ACROSS),
        Heading("What ran"),
        *(block for one in runs for block in (Paragraph(f"{one['name']}:"), *tables.trials(one))),
        Heading("Run it again"),
        *(block for one in runs for block in (Paragraph(f"{one['name']}:"), *_again(one, sweeps[one["name"]]))),
        *_data(columns),
    ]


def subtitle(answer: Json) -> str:
    """One line on which run this is."""
    started = datetime.fromtimestamp(answer["created"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"Sweep {answer['sweep']}, run {answer['run'][:8]}, begun {started}, {answer['state']}."


def subtitle_of_several(answer: Json) -> str:
    """Which runs these are."""
    return " ".join(f"{one['name']}: {subtitle(one)}" for one in answer["runs"])


def _by_plan(one: Json) -> Iterator[Block]:
    yield Paragraph(f"{one['name']}: {one['question']}")
    yield tables.comparisons(one)
    if one["notes"]:
        yield Bullets(one["notes"], warning=True)


def _terms(answer: Json) -> Paragraph:
    goal, limit = "higher" if answer["mode"] == "max" else "lower", answer["smallest_difference"]
    matters = f"; differences under {text.value(limit)} do not matter" if limit else ""
    seeds = ", ".join(map(str, answer["seeds"]))
    return Paragraph(f"{answer['metric']}: {goal} is better{matters}. Confirm seeds: {seeds}.")


def _more(answer: Json, plots: Sequence[Plot]) -> Iterator[Block]:
    yield Heading("Cost")
    yield from tables.cost(answer)
    yield from _picture(plots, "cost")
    yield from tables.execution_only(answer)
    yield from tables.tuning(answer)
    yield from _picture(plots, "tuning")
    yield from tables.seeds(answer)


def _picture(plots: Sequence[Plot], name: str) -> Iterator[Block]:
    yield from (Picture(plot) for plot in plots if plot.name == name)


def _reading(parts: str) -> Iterator[Block]:
    yield Heading("How to read this")
    yield Bullets([" ".join(part.split()) for part in parts.strip().split("\n\n")])


def _again(answer: Json, sweep: Json) -> Iterator[Block]:
    environment = dict(answer["environment"])
    command = environment.pop("command", None)
    if command:
        yield Code(command if isinstance(command, str) else " ".join(map(str, command)))
    rows = [(key, _plain(value)) for key, value in flatten(environment).items()]
    if rows:
        yield Grid(("recorded", "value"), rows, words=2)
    yield Code(_json(sweep), title="The sweep, resolved")


def _data(columns: Sequence[tuple[str, str, str]]) -> Iterator[Block]:
    yield Heading("The data")
    yield Paragraph(
        "results.parquet, beside this page, has every trial as a row, those that failed or diverged included."
    )
    yield Grid(("column", "type", "meaning"), columns, words=3, title=f"Its {counted(len(columns), 'column')}")


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _json(value: Any) -> str:
    """JSON to be read and copied: what could not be printed as itself has JSON's own escapes."""
    text = json.dumps(value, indent=2, ensure_ascii=False)
    return "".join(one if is_harmless(one) or one == "\n" else json.dumps(one)[1:-1] for one in text)
