"""What a report says, in its order: the question, the verdict, the evidence, what ran, and how to run it again.

Blocks without a format; `page` writes them as HTML and as Markdown, so that both say the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from orchestrator.report import text
from orchestrator.report.plots import Plot
from orchestrator.sweep import flatten

Json = dict[str, Any]

READING = """
Arms are compared seed by seed: both train from the same seed, and the difference is the arm minus its baseline.

p is the exact sign-flip test: the share of all ways to give the differences signs whose mean is at least as far from
zero. p (Holm) is adjusted for the number of comparisons.

The verdict is the first of these that holds: equivalent, when the 90% t interval of the mean difference lies inside the
smallest difference that matters (two one-sided tests, Holm-adjusted, at 0.05); better or worse, when p (Holm) is at
most 0.05; otherwise inconclusive, which does not mean equal.

A seed that diverged has the metric of its untrained encoder and is counted. A seed that is missing makes its
comparisons inconclusive. Nothing is dropped.
"""


@dataclass(frozen=True)
class Heading:
    """Title of a part."""

    text: str


@dataclass(frozen=True)
class Paragraph:
    """Running text."""

    text: str


@dataclass(frozen=True)
class Bullets:
    """A list."""

    items: Sequence[str]
    warning: bool = False
    """Something to know before believing the rest."""


@dataclass(frozen=True)
class Grid:
    """A table; columns after the first `words` hold numbers."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    words: int = 1


@dataclass(frozen=True)
class Code:
    """Text to copy. With a title, folded away until asked for."""

    text: str
    title: str = ""


@dataclass(frozen=True)
class Picture:
    """A plot."""

    plot: Plot


Block = Heading | Paragraph | Bullets | Grid | Code | Picture


def blocks(answer: Json, plots: Sequence[Plot], sweep: Json) -> list[Block]:
    """Everything below the question and the verdict. `sweep`: the resolved sweep."""
    return [*_evidence(answer, plots), *_ran(answer), *_again(answer, sweep)]


def subtitle(answer: Json) -> str:
    """One line on which run this is."""
    started = datetime.fromtimestamp(answer["created"], UTC).strftime("%Y-%m-%d %H:%M UTC")
    return f"Sweep {answer['sweep']}, run {answer['run'][:8]}, begun {started}, {answer['state']}."


def _evidence(answer: Json, plots: Sequence[Plot]) -> Iterator[Block]:
    metric, goal = answer["metric"], "higher" if answer["mode"] == "max" else "lower"
    yield Heading("Evidence")
    limit = answer["smallest_difference"]
    matters = f"; differences under {text.value(limit)} do not matter" if limit else ""
    yield Paragraph(f"{metric}: {goal} is better{matters}. Confirm seeds: {', '.join(map(str, answer['seeds']))}.")
    yield Grid(
        ("arm - baseline", "verdict", "mean", "95% interval", "95% BCa", "p", "p (Holm)", "n"),
        [
            (
                f"{one['a']} - {one['b']}",
                text.VERDICTS[one["verdict"]],
                text.signed(one["delta"]),
                text.interval(one["ci95"], sign=True),
                text.interval(one["ci95_bca"], sign=True),
                text.probability(one["p"] if one["n"] else None),
                text.probability(one["p_holm"] if one["n"] else None),
                text.count(one["n"]),
            )
            for one in answer["comparisons"]
        ],
        words=2,
    )
    yield from (Picture(plot) for plot in plots if plot.name == "differences")
    others = sorted({key for arm in answer["arms"] for key in arm["metrics"]} - {metric})
    yield Grid(
        ("arm", "mean", "95% interval", "untrained", "diverged", *others, "n"),
        [
            (
                arm["label"],
                text.value(arm["mean"]),
                text.interval(arm["ci95"]),
                text.value(arm["untrained"]),
                _diverged(arm),
                *(text.value(arm["metrics"].get(key)) for key in others),
                text.count(arm["n"]),
            )
            for arm in answer["arms"]
        ],
    )
    yield from (Picture(plot) for plot in plots if plot.name == "curves")
    yield Heading("Cost")
    yield Grid(
        ("arm", "pairs", "steps", "negatives per anchor", "ranks", "pairs/s", "seconds", "rank-seconds", "peak MB"),
        [
            (
                arm["label"],
                *(text.count(arm[key]) for key in ("samples", "steps", "negatives_per_anchor", "ranks")),
                *(
                    text.quantity(arm[key])
                    for key in ("samples_per_second", "seconds", "rank_seconds", "peak_memory_mb")
                ),
            )
            for arm in answer["arms"]
        ],
    )
    yield Paragraph(
        "Pairs/s and seconds are means over the confirm trials, rank-seconds (CPU or GPU) their sum, peak memory the "
        "largest."
    )
    yield from (Picture(plot) for plot in plots if plot.name == "cost")
    if answer["execution_only"]:
        yield Bullets([_same(one) for one in answer["execution_only"]])
    yield from _tuning(answer, plots)
    yield from _seeds(answer)
    yield Heading("How to read this")
    yield Bullets([" ".join(part.split()) for part in READING.split("\n\n")])


def _tuning(answer: Json, plots: Sequence[Plot]) -> Iterator[Block]:
    if not any(arm["tune"] for arm in answer["arms"]):
        return
    yield Heading("Tuning")
    yield Grid(
        ("arm", "chosen", "suggestion", "of"),
        [
            (
                arm["label"],
                text.setting((arm["tune"] or {}).get("params")),
                text.count(_next((arm["tune"] or {}).get("number"))),
                text.count(len((arm["tune"] or {}).get("suggestions", ()))),
            )
            for arm in answer["arms"]
        ],
        words=2,
    )
    yield from (Picture(plot) for plot in plots if plot.name == "tuning")


def _seeds(answer: Json) -> Iterator[Block]:
    of_arm = [{one["seed"]: one for one in arm["values"]} for arm in answer["arms"]]
    if not any(of_arm):
        return

    def cell(one: Json | None) -> str:
        if one is None:
            return text.NOTHING
        mark = " (diverged)" if one["diverged"] else ""
        return one["state"] if one["value"] is None else text.value(one["value"]) + mark

    yield Heading("Seed by seed")
    labels = [arm["label"] for arm in answer["arms"]]
    seeds = answer["seeds"]
    yield Grid(
        ("arm", *(f"seed {seed}" for seed in seeds)),
        [(label, *(cell(values.get(seed)) for seed in seeds)) for label, values in zip(labels, of_arm, strict=True)],
    )
    shared = [one["shared"] for one in answer["comparisons"] if one["shared"]]
    if shared:
        parts = [
            f"{what}: shared in {sum(one.get(key, False) for one in shared)} of {len(shared)} comparisons"
            for key, what in (("data", "training data"), ("order", "order of the data"), ("init", "initial weights"))
        ]
        yield Paragraph("What both sides of every pair have in common, by hash. " + "; ".join(parts) + ".")


def _ran(answer: Json) -> Iterator[Block]:
    yield Heading("What ran")
    stages = {stage: counts for stage, counts in answer["trials"].items() if any(counts.values())}
    if stages:
        states = list(next(iter(stages.values())))
        yield Grid(("stage", *states), [(stage, *map(text.count, counts.values())) for stage, counts in stages.items()])
    attempts = answer["attempts"]
    ended = ", ".join(f"{n} {kind}" for kind, n in attempts["unfinished"].items())
    yield Paragraph(f"Attempts: {text.count(attempts['total'])}" + (f", of which {ended}." if ended else "."))
    if answer["failures"]:
        yield Grid(
            ("failed trial", "stage", "arm", "class", "what was raised", "seed", "attempts"),
            [
                (
                    one["trial"],
                    one["stage"],
                    one["arm"],
                    one["failure"] or text.NOTHING,
                    _first_line(one["message"]),
                    str(one["seed"]),
                    text.count(one["attempts"]),
                )
                for one in answer["failures"]
            ],
            words=5,
        )
    if answer["diverged"]:
        yield Grid(
            ("diverged trial", "stage", "arm", "seed"),
            [(one["trial"], one["stage"], one["arm"], str(one["seed"])) for one in answer["diverged"]],
            words=3,
        )


def _again(answer: Json, sweep: Json) -> Iterator[Block]:
    yield Heading("Run it again")
    environment = dict(answer["environment"])
    command = environment.pop("command", None)
    if command:
        yield Code(command if isinstance(command, str) else " ".join(map(str, command)))
    rows = [(key, _plain(value)) for key, value in flatten(environment).items()]
    if rows:
        yield Grid(("recorded", "value"), rows, words=2)
    yield Code(json.dumps(sweep, indent=2, ensure_ascii=False), title="The sweep, resolved")


def _diverged(arm: Json) -> str:
    if not arm["divergence_ci95"]:
        return text.NOTHING
    low, high = (text.percent(end) for end in arm["divergence_ci95"])
    return f"{arm['diverged']} ({low} to {high})"


def _same(one: Json) -> str:
    pair = f"{one['a']} and {one['b']} differ in execution only"
    if one["agree"] is None:
        return f"{pair}; no seed has ended in both."
    verb = "agree" if one["agree"] else "do not agree"
    return f"{pair} and {verb}: the largest difference of {one['n']} seeds is {text.value(one['largest_difference'])}."


def _next(number: int | None) -> int | None:
    return None if number is None else number + 1


def _first_line(message: str | None) -> str:
    return next(iter((message or "").strip().splitlines()), text.NOTHING)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
