"""What is said of differences that no seed changes, as nothing is trained: there is no test, and other rows alone may
say otherwise."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.formatting import MOST_NAMED, enumerated, interval, signed
from orchestrator.report.naming import Names
from orchestrator.report.summary.records import ComparisonSummary
from orchestrator.system.display import by_count, counted

OTHER_ROWS = "on other rows of the same kind"


def without_a_test(compared: Sequence[ComparisonSummary], metric: str, names: Names) -> str:
    """State the differences with their intervals on other rows, baseline by baseline; of very many how many of these
    leave out 0."""
    if len(compared) > MOST_NAMED:
        return no_test(compared)
    of_baseline: dict[tuple[str, str], list[str]] = {}
    for comparison in compared:
        result = comparison.result
        a, b = names.sides(result.a, result.b)
        rows = f" {interval(comparison.interval, sign=True)}" if comparison.interval else ""
        of_baseline.setdefault((b, names.at(result.a, result.b)), []).append(f"{a} {signed(result.delta)}{rows}")
    against = [f"{enumerated(arms)} against {b}{at}" for (b, at), arms in of_baseline.items()]
    intervals = f", with intervals {OTHER_ROWS}" if any(one.interval for one in compared) else ""
    why = "No seed changes this, as nothing is trained, so there is no test"
    return f"{why}. In {metric}{intervals}: {'; '.join(against)}."


def no_test(compared: Sequence[ComparisonSummary]) -> str:
    """Say why there is none, and how many of the intervals on other rows leave out 0."""
    known = [ends for comparison in compared if (ends := comparison.interval) is not None]
    why = f"No seed changes {counted(len(compared), 'difference')}, as nothing is trained, so there is no test"
    if not known:
        return f"{why}."
    apart = sum(low > 0 or high < 0 for low, high in known)
    return (
        f"{why}; {apart} of {counted(len(known), 'interval')} {OTHER_ROWS} {by_count(apart, 'leaves', 'leave')} out 0."
    )
