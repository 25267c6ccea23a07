"""What a reader wants first, beside question and verdict: how sure that is, what it cost, and how to run it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.report import formatting
from orchestrator.report.formatting import enumerated
from orchestrator.report.naming import Names
from orchestrator.report.summary.records import Answer, ComparisonSummary, MultiRunSummary, Summary
from orchestrator.report.summary.records.views import by_each, tests_of
from orchestrator.report.summary.sentences import deciding_p, is_of_these_rows, unit_of
from orchestrator.report.summary.untested import no_test
from orchestrator.statistics import power
from orchestrator.system.display import by_count, counted, duration

FEWEST_PAIRS = 5
"""Pairs from which on a standard deviation says what would be found."""

Key = Literal["sure", "cost", "again"]


@dataclass(frozen=True)
class ShortAnswer:
    """The answer to one of the questions that every reader has."""

    key: Key
    name: str
    text: str
    is_command: bool = False


def short_answers(answer: Answer, names: Names, commands: Sequence[str]) -> Iterator[ShortAnswer]:
    """Answer how sure the verdict is, what it cost, and how to run it again. commands: those that began the runs."""
    yield ShortAnswer("sure", "How sure", " ".join(_sure(answer)))
    if cost := " ".join(_cost(answer, names)):
        yield ShortAnswer("cost", "Cost", cost)
    if commands:
        yield ShortAnswer("again", "Again", "\n".join(commands), is_command=True)


def _sure(answer: Answer) -> Iterator[str]:
    unit = unit_of(answer)
    untested = [c for c in answer.comparisons if c.is_seedless]
    tested = [c.result for c in answer.comparisons if c.result.p is not None and c.result.n and not c.is_seedless]
    if untested:
        yield no_test(untested)
    if untested and not tested:
        return
    if not tested:
        yield f"Nothing is claimed{'' if answer.complete else ' yet'}."
        return
    low, high = min(result.n for result in tested), max(result.n for result in tested)
    pairs = counted(high, "pair") if low == high else f"{low} to {high} pairs"
    tests = tests_of(answer)
    finds = [(view.metric, size) for view in by_each(answer) if (size := _finds(view, tests)) is not None]
    sizes = [formatting.value(size) + (f" {metric}" if answer.metrics else "") for metric, size in finds]
    found = f", which would find a difference of {enumerated(sizes)} four times in five" if finds else ""
    several = isinstance(answer, MultiRunSummary)
    of = "of a run's plan, and again in what is compared across runs," if several else "in the whole sweep"
    yield f"{pairs} of {unit}s{found}; the chance of any wrong claim {of} is 0.05."
    claimed = [c for c in answer.comparisons if c.result.verdict in ("a_better", "b_better")]
    if not answer.complete and all(c.result.verdict == "inconclusive" for c in answer.comparisons):
        yield "Nothing is claimed yet."
    largest = max((p for c in claimed if (p := deciding_p(c)) is not None), default=None)
    if len(answer.comparisons) > 1 and largest is not None:
        yield f"Where better or worse is claimed, p is at most {formatting.probability(largest)}."
    yield from _on_other_rows(claimed, unit)


def _on_other_rows(claimed: Sequence[ComparisonSummary], unit: str) -> Iterator[str]:
    """Say whether the claims hold on other rows, by their intervals, and where the rows are not why they may not."""
    known = [comparison for comparison in claimed if comparison.parts.interval is not None]
    if not known:
        return
    of = "" if len(known) == len(claimed) else f", known of {counted(len(known), 'claim')} of {len(claimed)},"
    own = [comparison for comparison in known if is_of_these_rows(comparison)]
    if not own:
        yield f"The intervals for other rows of the same kind{of} leave out 0 as well."
        return
    yield f"On other rows of the same kind {by_count(len(own), 'one claim', f'{len(own)} claims')} may not hold."
    if by_seeds := sum(not comparison.parts.rows_leave_it_open for comparison in own):
        whose = "" if by_seeds == len(own) else f" of {by_seeds}"
        yield f"Not the rows but the spread of the {unit}s is why{whose}: the t interval by {unit}s alone has 0 in it."


def _finds(answer: Answer, tests: int) -> float | None:
    """Compute the difference that this many seeds find with a power of 0.8, by the widest of the comparisons. None with
    looks, of which each has a part of the level, and while seeds are to come. tests: how many the family has, by all
    metrics."""
    if isinstance(answer, Summary) and answer.looks is not None:
        return None
    compared = [c.result for c in answer.comparisons if c.result.p is not None and not c.is_seedless]
    tested = [result for result in compared if result.n_trained == result.n]
    if not tested or min(result.n for result in tested) < FEWEST_PAIRS or not answer.complete:
        return None
    spread = max(float(np.std([pair.difference for pair in result.pairs], ddof=1)) for result in tested)
    effect = power.detectable(min(result.n for result in tested), answer.alpha["difference"], tests)
    return effect * spread if np.isfinite(effect) and spread > 0 else None


def _cost(answer: Answer, names: Names) -> Iterator[str]:
    arms = answer.arms
    total = sum(arm.rank_seconds or 0.0 for arm in arms)
    if not total:
        return
    if isinstance(answer, Summary):
        stages = {stage: seconds for stage, seconds in answer.rank_seconds.items() if seconds}
        parts = [f"{_time(seconds)} to {stage}" for stage, seconds in stages.items()]
        yield f"{_time(sum(stages.values()))} of CPU or GPU{f': {enumerated(parts)}' if len(parts) > 1 else ''}."
    else:
        yield f"{_time(total)} of CPU or GPU in the confirm trials."
    # What diverged did not train to its end.
    whole = [arm for arm in arms if arm.rank_seconds and not arm.diverged]
    seconds = {arm.label: mean for arm in whole if (mean := arm.spent["seconds"].mean) is not None}
    memory = {arm.label: arm.peak_memory_mb for arm in whole if arm.peak_memory_mb is not None}
    if len(seconds) == 2 and len(arms) == 2:
        b, a = (arm.label for arm in arms)
        times = f"{names.spoken[a]} trains {_times(seconds[a], seconds[b], 'as long')} as {names.level[b]}"
        peak = f", with {_times(memory[a], memory[b], 'as much')} memory" if len(memory) == 2 and memory[b] else ""
        yield f"{times} ({_time(seconds[a])} against {_time(seconds[b])} a trial){peak}."
        return
    if not seconds:
        return
    shortest, longest = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    low, high = _time(seconds[shortest]), _time(seconds[longest])
    ends = f"{low} ({names.arm[shortest]}) to {high} ({names.arm[longest]})"
    yield f"A trial trains {ends if low != high else low}."
    if memory:
        least, most = (formatting.quantity(end(memory.values())) for end in (min, max))
        yield f"Peak memory: {least if least == most else f'{least} to {most}'} MB."


def _time(seconds: float) -> str:
    """Format seconds so that what differs by a tenth reads so: `2.33 s`, `145 s`, `12.4 min`, `3.5 h`."""
    if seconds < 600:
        return f"{formatting.quantity(seconds)} s"
    minutes = seconds / 60
    return f"{minutes:.1f} min" if minutes < 100 else duration(seconds)


def _times(x: float, base: float, what: str) -> str:
    """Say `1.24 times as long`; `as long` where that is once."""
    ratio = f"{x / base:.2f}" if base else "many"
    return what if ratio == "1.00" else f"{ratio} times {what}"
