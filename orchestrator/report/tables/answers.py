"""What a reader wants first, beside question and verdict: how sure that is, what it cost, and how to run it again."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from orchestrator.report import formatting
from orchestrator.report.naming import Names
from orchestrator.report.summary.records import Answer, ArmSummary, Summary
from orchestrator.report.summary.sentences import deciding_p, is_of_these_rows
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
    if cost := " ".join(_cost(answer.arms, names)):
        yield ShortAnswer("cost", "Cost", cost)
    if commands:
        yield ShortAnswer("again", "Again", "\n".join(commands), is_command=True)


def _sure(answer: Answer) -> Iterator[str]:
    unit = answer.unit if isinstance(answer, Summary) else "seed"
    most = max((comparison.result.n for comparison in answer.comparisons), default=0)
    finds = _finds(answer)
    found = "" if finds is None else f", which would find a difference of {formatting.value(finds)} four times in five"
    yield f"{counted(most, 'pair')} of {unit}s{found}; one wrong claim in the whole sweep has a chance of at most 0.05."
    claimed = [c for c in answer.comparisons if c.result.verdict in ("a_better", "b_better")]
    largest = max((p for c in claimed if (p := deciding_p(c.result)) is not None), default=None)
    if len(answer.comparisons) > 1 and largest is not None:
        yield f"Where better or worse is claimed, p is at most {formatting.probability(largest)}."
    if known := [c for c in claimed if c.parts.interval is not None]:
        own = sum(map(is_of_these_rows, known))
        yield (
            f"On other rows of the same kind {by_count(own, 'one claim', f'{own} claims')} may not hold."
            if own
            else "Other rows of the same kind would say the same."
        )


def _finds(answer: Answer) -> float | None:
    """Compute the difference that this many seeds find with a power of 0.8, by the widest of the comparisons."""
    tested = [c.result for c in answer.comparisons if c.result.p is not None and c.result.n_trained == c.result.n]
    if not tested or min(result.n for result in tested) < FEWEST_PAIRS or not answer.complete:
        return None
    spread = max(float(np.std([pair.difference for pair in result.pairs], ddof=1)) for result in tested)
    effect = power.detectable(min(result.n for result in tested), answer.alpha["difference"], len(tested))
    return effect * spread if np.isfinite(effect) and spread > 0 else None


def _cost(arms: Sequence[ArmSummary], names: Names) -> Iterator[str]:
    seconds = {arm.label: mean for arm in arms if (mean := arm.spent["seconds"].mean) is not None and arm.rank_seconds}
    if not seconds:
        return
    memory = {arm.label: arm.peak_memory_mb for arm in arms if arm.peak_memory_mb is not None}
    total = sum(arm.rank_seconds or 0.0 for arm in arms)
    trials = sum(arm.n + arm.diverged for arm in arms)
    yield f"{duration(total)} of CPU or GPU in {counted(trials, 'confirm trial')}."
    if len(seconds) == 2 and len(arms) == 2:
        b, a = (arm.label for arm in arms)
        times = f"{names.spoken[a]} trains {_times(seconds[a], seconds[b])} as long as {names.level[b]}"
        peak = f", with {_times(memory[a], memory[b])} the memory" if len(memory) == 2 and memory[b] else ""
        yield f"{times} ({_seconds(seconds[a])} against {_seconds(seconds[b])} a trial){peak}."
        return
    shortest, longest = min(seconds, key=seconds.__getitem__), max(seconds, key=seconds.__getitem__)
    yield f"A trial trains {_seconds(seconds[shortest])} ({names.arm[shortest]})" + (
        f" to {_seconds(seconds[longest])} ({names.arm[longest]})." if longest != shortest else "."
    )
    if memory:
        low, high = (formatting.quantity(end(memory.values())) for end in (min, max))
        yield f"Peak memory: {low if low == high else f'{low} to {high}'} MB."


def _seconds(seconds: float) -> str:
    return duration(seconds) if seconds >= 100 else f"{formatting.quantity(seconds)} s"


def _times(x: float, base: float) -> str:
    return f"{x / base:.2f} times" if base else "many times"
