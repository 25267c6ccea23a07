"""Verdicts in words: the answer as one plain sentence, and what is said of the code behind it."""

from __future__ import annotations

from collections.abc import Sequence

from orchestrator.report.formatting import interval, probability, signed, value
from orchestrator.report.summary.records import (
    SIDES,
    Answer,
    ArmSummary,
    CodeGroup,
    ComparisonSummary,
    Summary,
    WhichSummary,
)
from orchestrator.statistics import Comparison, Verdict
from orchestrator.system.display import by_count, counted

VERDICTS: dict[Verdict, str] = {
    "a_better": "better",
    "b_better": "worse",
    "equivalent": "equivalent",
    "inconclusive": "inconclusive",
    "diverges": "diverges",
}
"""What a verdict says of the arm against its baseline."""

THESE_ROWS = "on these rows"
"""What qualifies better and worse where the interval on other rows has 0 in it."""


def sentence(answer: Answer) -> str:
    """Put the verdict into words, the levels that nothing beats first where the question is which one."""
    which = answer.which if isinstance(answer, Summary) else None
    return " ".join([*([_best(which)] if which else []), _verdicts(answer)])


def _best(which: WhichSummary) -> str:
    """Name the levels that nothing beats: `Best temperature at size 16: 0.2; at size 64: 0.1 or 0.2, which are not told
    apart.`"""
    name, parts = which.factor.rpartition(".")[2], []
    for stratum in which.strata:
        at = ", ".join(f"{key.rpartition('.')[2]} {level}" for key, level in stratum.where.items())
        levels = [f"{level}" for arm, level in zip(stratum.arms, stratum.levels, strict=True) if arm in stratum.best]
        open_ = ", which are not told apart" if len(levels) > 1 else ""
        named = f"{', '.join(levels[:-1])} or {levels[-1]}" if len(levels) > 1 else (levels or ["none"])[0]
        parts.append(f"{f'at {at}: ' if at else ''}{named}{open_}")
    return f"Best {name}{'' if which.strata[0].where else ':'} {'; '.join(parts)}."


def _verdicts(answer: Answer) -> str:
    compared = [comparison.result for comparison in answer.comparisons]
    if not any(result.n or result.verdict == "diverges" for result in compared):
        return "No verdict yet: no comparison has a pair of finished confirm trials."
    prefix = "" if answer.complete else "Not complete: "
    if isinstance(answer, Summary) and answer.unit == "seed" and any(arm.tune for arm in answer.arms):
        prefix += "at the settings chosen, " if prefix else "At the settings chosen, "
    if len(compared) == 1:
        return prefix + _clause(answer.comparisons[0], answer) + "."
    if len(compared) <= 3:
        return prefix + "; ".join(_clause(comparison, answer, brief=True) for comparison in answer.comparisons) + "."
    own = sum(is_of_these_rows(comparison) for comparison in answer.comparisons)
    holds = f"{counted(own, 'verdict')} {by_count(own, 'is', 'are')} {THESE_ROWS}"
    rows = f" Of better and worse, {holds}, and others may say otherwise." if own else ""
    return prefix + tally([result.verdict for result in compared], answer.metric) + rows


def tally(verdicts: Sequence[Verdict], metric: str) -> str:
    """Say how many of many comparisons ended in which way."""
    better, worse, equal, open_, fallen = (verdicts.count(verdict) for verdict in VERDICTS)
    beat, lose = by_count(better, "beats its", "beat their"), by_count(worse, "loses", "lose")
    parts = [
        f"{better} of {len(verdicts)} arms {beat} baseline on {metric}",
        f"{worse} {lose} to it",
        f"{equal} {by_count(equal, 'is', 'are')} equivalent to it",
        f"{counted(open_, 'comparison')} {by_count(open_, 'is', 'are')} inconclusive",
        *([f"{fallen} {by_count(fallen, 'diverges', 'diverge')}"] if fallen else []),
    ]
    return f"{', '.join(parts[:-1])} and {parts[-1]}."


def across(answer: Answer) -> str:
    """Put the verdict over several runs into one plain sentence."""
    if not answer.comparisons:
        return "Across runs there is nothing to compare: every arm of the later runs is the first run's baseline again."
    return f"Across runs, exploratory: {sentence(answer)}"


def verdict_of(comparison: ComparisonSummary) -> str:
    """Return a comparison's verdict on its arm, as tables and plots show it."""
    result = comparison.result
    same = result.same_objective and result.verdict == "equivalent"
    qualified = f" {THESE_ROWS}" if is_of_these_rows(comparison) else ""
    return "same objective" if same else VERDICTS[result.verdict] + qualified


def is_of_these_rows(comparison: ComparisonSummary) -> bool:
    """Return whether an arm is better or worse on the rows at hand, and because of these may be neither on others."""
    return comparison.parts.rows_leave_it_open and comparison.result.verdict in ("a_better", "b_better")


def is_tested(result: Comparison) -> bool:
    """Return whether a p-value stands behind the verdict of a comparison, or would."""
    return bool(result.n) and result.verdict != "diverges"


def deciding_p(result: Comparison) -> float | None:
    """Return the p-value that decided the verdict: of equivalence where that is the verdict, else of the joint test;
    None where nothing was tested."""
    if not is_tested(result):
        return None
    return result.p_equivalence_holm if result.interval_kind == "equivalence" else result.p_adjusted


def lost(result: Comparison) -> int:
    """Count the pairs of a comparison with a side that diverged."""
    return sum(result.diverged(side) for side in SIDES)


def code(group: CodeGroup) -> str:
    """Describe the code: `code 3f2c9ab01234 (accepted), torch 2.13.0, ray 2.60.0`, or `code not recorded`."""
    if group.code is None:
        return "code not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in (group.versions or {}).items())
    own = f", your code {group.user_code[:12]}" if group.user_code else ""
    return f"code {group.code}{own}{' (accepted)' if group.accepted else ''}, {versions}"


def _clause(comparison: ComparisonSummary, answer: Answer, *, brief: bool = False) -> str:
    result, metric = comparison.result, answer.metric
    if result.verdict == "diverges":
        return _diverges(result, answer.arms)
    if result.same_objective:
        return _same_objective(result, metric)
    evidence = f"p = {probability(deciding_p(result))}" + ("" if brief else f", {counted(result.n, _unit(answer))}")
    if lost(result):
        evidence = f"({evidence}, of which {lost(result)} diverged in {_sides(result)})"
        by, delta = "", f"{signed(result.delta_trained)} {metric} where both trained"
    else:
        ends = f"interval {interval(_of_winner(result), sign=True)}, " if result.interval else ""
        evidence = f"({ends}{evidence})"
        by, delta = f" by {value(abs(result.delta or 0.0))}", f"{signed(result.delta)} {metric}"
    if result.verdict in ("a_better", "b_better"):
        winner, loser = (result.a, result.b) if result.verdict == "a_better" else (result.b, result.a)
        perhaps = ", perhaps by less than matters" if _may_not_matter(result, answer.smallest_difference) else ""
        rows = f" {THESE_ROWS}" if is_of_these_rows(comparison) else ""
        return f"{winner} beats {loser}{by}{'' if by else ' on'} {metric}{rows}{perhaps} {evidence}"
    if result.verdict == "equivalent":
        limit = value(answer.smallest_difference)
        return f"{result.a} and {result.b} are equivalent: their mean {metric} differs by less than {limit} {evidence}"
    return f"{result.a} against {result.b} is inconclusive: {delta} {evidence}{_more(result, answer)}"


def _unit(answer: Answer) -> str:
    return answer.unit if isinstance(answer, Summary) else "seed"


def _of_winner(result: Comparison) -> tuple[float, float] | None:
    """Return the interval with the sign of the sentence: of the winner's advantage, which is a positive amount, where
    there is a winner; else as it is."""
    if result.interval is None or result.verdict not in ("a_better", "b_better") or (result.delta or 0.0) >= 0:
        return result.interval
    low, high = result.interval
    return -high, -low


def _more(result: Comparison, answer: Answer) -> str:
    """Say how many seeds would settle it: `; about 77 seeds would tell a difference of 0.0100 from none`."""
    if result.needed is None or result.needed <= result.n or not result.complete:
        return ""
    about = result.needed if result.needed < 100 else round(result.needed, 1 - len(str(result.needed)) + 1)
    return (
        f"; about {about:,} {_unit(answer)}s would tell a difference of {value(answer.smallest_difference)} from none"
    )


def _may_not_matter(result: Comparison, smallest_difference: float) -> bool:
    """Return whether the interval of a difference reaches below the smallest one that matters."""
    return bool(result.interval) and min(map(abs, result.interval or ())) < smallest_difference


def _diverges(result: Comparison, arms: Sequence[ArmSummary]) -> str:
    """Say which arms diverged: `lr=1 diverged in 6 of 6 seeds: it is not compared with lr=0.1`."""
    counts = {arm.label: (arm.diverged, arm.diverged + arm.n) for arm in arms}
    some = {arm.label for arm in arms if arm.tune and any(one.value is not None for one in arm.tune.suggestions)}
    clauses = []
    for label in result.diverged_arms:
        fallen, ended = counts[label]
        clauses.append(
            f"{label} diverged in {fallen} of {counted(ended, 'seed')}"
            if ended
            else f"{label} diverged at every setting of a repeat of its tuning"
            if label in some
            else f"{label} diverged at every setting that was tried"
        )
    if len(clauses) == 1:
        other = result.b if result.diverged_arms == (result.a,) else result.a
        return f"{clauses[0]}: it is not compared with {other}"
    return f"{clauses[0]} and {clauses[1]}: they are not compared"


def _same_objective(result: Comparison, metric: str) -> str:
    """Say how far apart one objective is, computed in two ways: `big batch and exact accumulation are one objective,
    computed in two ways: a seed differs by at most 0.0031 knn_accuracy`."""
    apart = [abs(pair.difference) for pair in result.pairs if not pair.diverged]
    far = f"a seed differs by at most {value(max(apart, default=0.0))} {metric}"
    if not apart:
        far = "no seed has ended in both"
    elif not any(apart):
        far = f"equal in {metric} in each of {counted(len(apart), 'seed')}"
    return f"{result.a} and {result.b} are one objective, computed in two ways: {far}"


def _sides(result: Comparison) -> str:
    names = {"a": result.a, "b": result.b, "both": "both"}
    return ", ".join(f"{names[side]} ({count})" for side in SIDES if (count := result.diverged(side)))
