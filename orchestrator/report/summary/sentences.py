"""Verdicts in words: the answer as one plain sentence, and what is said of the code behind it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from jobs.config import canonical
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.formatting import MOST_NAMED, enumerated, interval, probability, setting, signed, value
from orchestrator.report.naming import Names, level_text, names_of, place_of, word
from orchestrator.report.summary.records import (
    SIDES,
    Answer,
    ArmSummary,
    CodeGroup,
    ComparisonSummary,
    OutsideSummary,
    Summary,
    WhichSummary,
)
from orchestrator.report.summary.records.views import by_each
from orchestrator.report.summary.untested import without_a_test
from orchestrator.report.swaps import SettingSummary, SwapSummary
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

PERHAPS = "perhaps by less than matters"
"""What qualifies better and worse where the interval reaches below the smallest difference that matters."""


def sentence(answer: Answer) -> str:
    """Put the verdict into words, the levels that nothing beats first where the question is which one."""
    which, names = answer.which if isinstance(answer, Summary) else None, names_of(answer.arms)
    views = by_each(answer)
    said = [_verdicts(view, names) for view in views]
    if len(views) > 1:
        said = [f"By {view.metric}: {text}" for view, text in zip(views, said, strict=True)]
    return " ".join([*([best_levels(which, names)] if which else []), *said])


def best_levels(which: WhichSummary, names: Names) -> str:
    """Name the levels that nothing beats: `Best temperature at batch 16: 0.2; at batch 64: 0.1 or 0.2, which are not
    told apart.`"""
    every = _in_order(level for stratum in which.strata for level in stratum.levels)
    where: dict[str, list[str]] = {}
    for stratum in which.strata:
        chosen = [level for arm, level in zip(stratum.arms, stratum.levels, strict=True) if arm in stratum.best]
        open_ = ", which are not told apart" if len(chosen) > 1 else ""
        named = f"{_levels(chosen, every, 'or') or 'none'}{open_}"
        if stratum.not_judged is not None:
            named = f"not judged, as {stratum.not_judged}"
        # Labels of an earlier version say nothing of a place.
        place = names.where[stratum.arms[0]] if names.are_levels else place_of(stratum.where)
        where.setdefault(named, []).append(place)
    has_places = any(map(any, where.values()))
    others = names.others if names.are_levels else list(map(word, which.strata[0].where))
    return f"Best {word(which.factor)}{'' if has_places else ':'} {_by_place(where, others)}."


def _by_place(where: Mapping[str, Sequence[str]], factors: Sequence[str]) -> str:
    """Say what holds at which places: `at batch 16 and batch 64: this; at batch 256: that`. factors: what the places
    are of."""
    if len(where) == 1:
        ((what, places),) = where.items()
        if len(places) > 1:
            return f"at every {' and '.join(factors)}: {what}"
    return "; ".join(f"at {_places(places)}: {what}" if any(places) else what for what, places in where.items())


def _places(places: Sequence[str]) -> str:
    if len(places) > MOST_NAMED:
        return f"{len(places)} places"
    return enumerated([f"({place})" if "," in place and len(places) > 1 else place for place in places])


def _in_order(levels: Iterable[JsonValue]) -> list[JsonValue]:
    """List each level once, numbers in their order; as they come where some are none."""
    different = list({canonical(level): level for level in levels}.values())
    numbers = [level for level in different if isinstance(level, int | float) and not isinstance(level, bool)]
    return sorted(numbers) if len(numbers) == len(different) else different  # type: ignore[return-value]


def _levels(chosen: Sequence[JsonValue], every: Sequence[JsonValue], last: str) -> str:
    """List levels in their order, three or more between which there is no other one as `0.05 to 0.3`.

    every: the levels of all places, in their order; numbers, or there are no ranges."""
    if not all(isinstance(level, int | float) for level in every):
        return _some([level_text(level) for level in chosen], last)
    at = sorted(every.index(level) for level in chosen)
    runs: list[list[int]] = []
    for k in at:
        if runs and k == runs[-1][-1] + 1:
            runs[-1].append(k)
        else:
            runs.append([k])
    parts = [
        part
        for run in runs
        for part in (
            [f"{level_text(every[run[0]])} to {level_text(every[run[-1]])}"]
            if len(run) > 2
            else [level_text(every[k]) for k in run]
        )
    ]
    return enumerated(parts, last) if len(parts) <= MOST_NAMED else f"{len(at)} of {len(every)} levels"


def _some(parts: Sequence[str], last: str) -> str:
    return enumerated(parts, last) if len(parts) <= MOST_NAMED else f"{len(parts)} arms"


def _verdicts(answer: Answer, names: Names) -> str:
    untested = [comparison for comparison in answer.comparisons if comparison.is_seedless]
    compared = [comparison.result for comparison in answer.comparisons]
    if not any(result.n or result.verdict == "diverges" for result in compared):
        return "No verdict yet: no comparison has a pair of finished confirm trials."
    prefix = "" if answer.complete else "Not complete: "
    if isinstance(answer, Summary) and answer.unit == "seed" and any(arm.tune for arm in answer.arms):
        prefix += "at the settings chosen, " if prefix else "At the settings chosen, "
    if len(compared) == 1:
        return prefix + _clause(answer.comparisons[0], answer, names) + "."
    if len(compared) <= 3:
        clauses = [_clause(comparison, answer, names, brief=True) for comparison in answer.comparisons]
        return prefix + "; ".join(clauses) + "."
    compared = [comparison.result for comparison in answer.comparisons if not comparison.is_seedless]
    if not compared:
        return ("" if answer.complete else "Not complete. ") + without_a_test(untested, answer.metric, names)
    qualified = _qualified(answer) + (f" {without_a_test(untested, answer.metric, names)}" if untested else "")
    of_baseline: dict[str, list[Comparison]] = {}
    for result in compared:
        of_baseline.setdefault(result.b, []).append(result)
    settings = {arm.label: arm.settings for arm in answer.arms}
    where: dict[str, list[str]] = {}
    for b, against in of_baseline.items():
        clause = _against(b, against, names, settings)
        where.setdefault(clause, []).append(names.where[b])
    if len(where) > MOST_NAMED:
        return prefix + tally([result.verdict for result in compared], answer.metric) + qualified
    whole = f"{'on' if prefix else 'On'} {answer.metric}, {_by_place(where, names.others)}."
    return prefix + whole + qualified


def _qualified(answer: Answer) -> str:
    """Count the verdicts of many that hold with a reservation, which the lists of arms have no room for."""
    own = sum(map(is_of_these_rows, answer.comparisons))
    holds = f"{counted(own, 'verdict')} {by_count(own, 'is', 'are')} {THESE_ROWS}"
    rows = f" Of better and worse, {holds}, and others may say otherwise." if own else ""
    small = sum(may_not_matter(c.result, answer.smallest_difference) for c in answer.comparisons)
    return (
        f" Of better and worse, {counted(small, 'verdict')} {by_count(small, 'is', 'are')} {PERHAPS}.{rows}"
        if small
        else rows
    )


HOW = {
    "a_better": ("beats", "beat"),
    "b_better": ("loses to", "lose to"),
    "equivalent": ("is equivalent to", "are equivalent to"),
    "inconclusive": ("is inconclusive against", "are inconclusive against"),
    "same": ("is one objective with", "are one objective with"),
    "diverges": ("diverges and is not compared with", "diverge and are not compared with"),
}
"""Verdict -> what one arm, and several, do to the baseline."""


def _against(b: str, compared: Sequence[Comparison], names: Names, settings: Mapping[str, JsonObject]) -> str:
    """Say what the arms of one baseline do to it: `0.05 to 0.3 beat 0.02, and 1.0 loses to it`."""
    baseline = names.sides(compared[0].a, b)[1]
    if any(b in result.diverged_arms for result in compared):
        too = [result.a for result in compared if result.a in result.diverged_arms]
        also = f", and so did {_arms(too, names, settings)}" if too else ""
        return f"{baseline} diverged, so that nothing is compared with it{also}"
    clauses: list[str] = []
    for verdict, (one, several) in HOW.items():
        own = [
            result.a
            for result in compared
            if ("same" if result.same_objective and result.verdict == "equivalent" else result.verdict) == verdict
        ]
        if own:
            against = "it" if clauses else baseline
            clauses.append(f"{_arms(own, names, settings)} {one if len(own) == 1 else several} {against}")
    return ", and ".join([", ".join(clauses[:-1]), *clauses[-1:]] if len(clauses) > 1 else clauses)


def _arms(labels: Sequence[str], names: Names, settings: Mapping[str, JsonObject]) -> str:
    """List arms of one place by their levels."""
    if not names.are_levels:
        return _some([names.arm[label] for label in labels], "and")
    factor = names.key
    every = _in_order(own[factor] for own in settings.values())
    chosen = [settings[label][factor] for label in labels]
    if all(isinstance(level, int | float) for level in every):
        return _levels(chosen, every, "and")
    return _some([names.level[label] for label in labels], "and")


def tally(verdicts: Sequence[Verdict], metric: str) -> str:
    """Say how many of many comparisons ended in which way: `Of 40 comparisons with a baseline on accuracy, 3 are better
    and 37 inconclusive.`"""
    words = VERDICTS | {"diverges": "diverging"}
    (first, word_of_first), *more = [(n, words[verdict]) for verdict in words if (n := verdicts.count(verdict))]
    head = f"{first} {by_count(first, 'is', 'are')} {word_of_first}"
    parts = [head, *(f"{n} {name}" for n, name in more)]
    return f"Of {counted(len(verdicts), 'comparison')} with a baseline on {metric}, {enumerated(parts)}."


def across(answer: Answer) -> str:
    """Put the verdict over several runs into one plain sentence."""
    if not answer.comparisons:
        return "Across runs there is nothing to compare: every arm of the later runs is the first run's baseline again."
    return f"Across runs, exploratory: {sentence(answer)}"


def verdict_of(comparison: ComparisonSummary, smallest_difference: float) -> str:
    """Return a comparison's verdict on its arm, as tables and plots show it, with what qualifies it."""
    result = comparison.result
    same = result.same_objective and result.verdict == "equivalent"
    if comparison.is_seedless and not same:
        return "no test"
    rows = f" {THESE_ROWS}" if is_of_these_rows(comparison) else ""
    perhaps = f", {PERHAPS}" if may_not_matter(result, smallest_difference) else ""
    return "same objective" if same else f"{VERDICTS[result.verdict]}{rows}{perhaps}"


def is_of_these_rows(comparison: ComparisonSummary) -> bool:
    """Return whether an arm is better or worse on the rows at hand, and by its interval may be neither on others."""
    ends = comparison.parts.interval
    return ends is not None and comparison.result.verdict in ("a_better", "b_better") and ends[0] <= 0 <= ends[1]


def may_not_matter(result: Comparison, smallest_difference: float) -> bool:
    """Return whether an arm is better or worse, by an interval that reaches below the smallest difference that
    matters."""
    is_claimed = result.verdict in ("a_better", "b_better") and result.interval is not None
    return is_claimed and min(map(abs, result.interval or ())) < smallest_difference


def seeds_needed(result: Comparison) -> int | None:
    """Return how many seeds would settle an inconclusive comparison; None where nothing is known, and while trials are
    missing."""
    return result.needed if result.complete else None


def is_tested(comparison: ComparisonSummary) -> bool:
    """Return whether a p-value stands behind the verdict of a comparison, or would."""
    result = comparison.result
    return bool(result.n) and result.verdict != "diverges" and not comparison.is_seedless


def deciding_p(comparison: ComparisonSummary) -> float | None:
    """Return the p-value that decided the verdict: of equivalence where that is the verdict, else of the joint test;
    None where nothing was tested."""
    result = comparison.result
    if not is_tested(comparison):
        return None
    return result.p_equivalence_holm if result.interval_kind == "equivalence" else result.p_adjusted


def swap_verdict(swap: SwapSummary, names: Names) -> str:
    """Say whether two arms differ at either one's setting: `at either setting`, or what is so in its place."""
    if swap.verdict == "either":
        return "at either setting"
    if swap.verdict in ("incomplete", "none"):
        whys = dict.fromkeys(one.missing for one in swap.settings if one.missing)
        return f"{'no swap' if swap.verdict == 'none' else 'not complete'}: {'; '.join(whys)}"
    if swap.verdict == "diverged":
        where = [f"{names.arm[one.setting]}'s" for one in swap.settings if any(one.diverged.values())]
        return f"diverged at {' and '.join(where)} setting"
    shown = [
        names.arm[one.setting] for one in swap.settings if one.ci95 is not None and (one.ci95[0] > 0 or one.ci95[1] < 0)
    ]
    way = "neither" if not shown else f"{shown[0]}'s alone" if len(shown) == 1 else "both, the other way round"
    return f"depends on the setting (a difference shows at {way})"


def swap_sentence(swap: SwapSummary, names: Names) -> str:
    """Say what the arms of a contrast come to at each other's setting, in one line."""
    parts = [_at_setting(one, names) for one in swap.settings]
    p = "" if swap.p is None else f", p = {probability(swap.p)}"
    same = "" if not _is_one_setting(swap) else f" (both were tuned to the same {', '.join(swap.keys)})"
    return f"{names.pair(swap.a, swap.b)}: {swap_verdict(swap, names)}{p}; {', '.join(parts)}{same}"


def _at_setting(one: SettingSummary, names: Names) -> str:
    pairs = f" ({one.n} of {counted(one.of, 'pair')})" if one.n < one.of else ""
    kept = f", whose other arm keeps {setting(one.kept)}" if one.kept else ""
    return f"{signed(one.delta)} {interval(one.ci95, sign=True)} at {names.arm[one.setting]}'s{pairs}{kept}"


def _is_one_setting(swap: SwapSummary) -> bool:
    """Return whether both arms were tuned to the same values of the keys that both tune."""
    first, other = (one.params for one in swap.settings)
    return bool(first) and first == other and not any(one.kept for one in swap.settings)


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


def _clause(comparison: ComparisonSummary, answer: Answer, names: Names, *, brief: bool = False) -> str:
    result, metric = comparison.result, answer.metric
    (a, b), at = names.sides(result.a, result.b), names.at(result.a, result.b)
    if result.verdict == "diverges":
        return _diverges(result, answer.arms, names)
    if result.same_objective:
        return _same_objective(result, metric, f"{a} and {b}{at}", names, unit_of(answer))
    if not result.n:
        return f"{a} against {b}{at} has no seed that both have finished"
    evidence = _evidence(comparison, unit_of(answer), brief=brief)
    if lost(result):
        evidence = f"({evidence}; {_sides(result, names, unit_of(answer))})"
        by, delta = "", f"{signed(result.delta_trained)} {metric} where both trained"
    else:
        ends = f"interval {interval(_of_winner(result), sign=True)}, " if result.interval else ""
        evidence = f"({ends}{evidence})"
        by, delta = f" by {value(abs(result.delta or 0.0))}", f"{signed(result.delta)} {metric}"
    if result.verdict in ("a_better", "b_better"):
        winner, loser = (a, b) if result.verdict == "a_better" else names.sides(result.b, result.a)
        perhaps = f", {PERHAPS}" if may_not_matter(result, answer.smallest_difference) else ""
        rows = f" {THESE_ROWS}" if is_of_these_rows(comparison) else ""
        return f"{winner} beats {loser}{at}{by}{'' if by else ' on'} {metric}{rows}{perhaps} {evidence}"
    if result.verdict == "equivalent":
        limit = value(answer.smallest_difference)
        return f"{a} and {b}{at} are equivalent: their mean {metric} differs by less than {limit} {evidence}"
    return f"{a} against {b}{at} is inconclusive: {delta} {evidence}{_more(result, answer)}"


def _evidence(comparison: ComparisonSummary, unit: str, *, brief: bool) -> str:
    """Say what decides: `p = 0.0020, 10 seeds`; of encoders that are not trained, and so say the same for every seed,
    the interval on other rows, as there is no test."""
    result = comparison.result
    if comparison.is_seedless:
        rows = (
            f"; on other rows of the same kind {interval(comparison.interval, sign=True)}"
            if comparison.interval
            else ""
        )
        return f"no seed changes it, as nothing is trained, so there is no test{rows}"
    return f"p = {probability(deciding_p(comparison))}" + ("" if brief else f", {counted(result.n, unit)}")


def unit_of(answer: Answer) -> str:
    """Name what is paired."""
    return "seed" if isinstance(answer, OutsideSummary) else answer.unit


def _of_winner(result: Comparison) -> tuple[float, float] | None:
    """Return the interval with the sign of the sentence: of the winner's advantage, which is a positive amount, where
    there is a winner; else as it is."""
    if result.interval is None or result.verdict not in ("a_better", "b_better") or (result.delta or 0.0) >= 0:
        return result.interval
    low, high = result.interval
    return -high, -low


def _more(result: Comparison, answer: Answer) -> str:
    """Say how many seeds would settle it: `; about 77 seeds would tell a difference of 0.0100 from none`; or that these
    should have."""
    if (needed := seeds_needed(result)) is None:
        return ""
    limit, units = value(answer.smallest_difference), f"{unit_of(answer)}s"
    if needed <= result.n:
        return (
            f"; these {units} would tell a difference of {limit} from none four times in five, and it may lie between "
            "the two"
        )
    return f"; about {about(needed)} {units} would tell a difference of {limit} from none"


def about(needed: int) -> str:
    """Format how many seeds are needed, of many the first two digits."""
    return f"{needed if needed < 100 else round(needed, 2 - len(str(needed))):,}"


def _diverges(result: Comparison, arms: Sequence[ArmSummary], names: Names) -> str:
    """Say which arms diverged: `lr=1 diverged in 6 of 6 seeds: it is not compared with lr=0.1`."""
    counts = {arm.label: (arm.diverged, arm.diverged + arm.n) for arm in arms}
    failed = {arm.label: sum(value.state == "failed" for value in arm.values) for arm in arms}
    some = {arm.label for arm in arms if arm.tune and any(one.value is not None for one in arm.tune.suggestions)}
    clauses = []
    for label in result.diverged_arms:
        (fallen, ended), name = counts[label], names.alone(label)
        clauses.append(
            f"{name} diverged in {fallen} of {counted(ended, 'seed')}"
            + (f" that did not fail ({failed[label]} did)" if failed[label] else "")
            if ended
            else f"{name} diverged at every setting of a repeat of its tuning"
            if label in some
            else f"{name} diverged at every setting that was tried"
        )
    if len(clauses) == 1:
        other = result.b if result.diverged_arms == (result.a,) else result.a
        return f"{clauses[0]}: it is not compared with {names.level[other]}"
    return f"{clauses[0]} and {clauses[1]}: they are not compared"


def _same_objective(result: Comparison, metric: str, both: str, names: Names, unit: str) -> str:
    """Say how far apart one objective is, computed in two ways: `big batch and exact accumulation are one objective,
    computed in two ways: a seed differs by at most 0.0031 knn_accuracy`."""
    apart = [abs(pair.difference) for pair in result.pairs if not pair.diverged]
    far = f"a {unit} differs by at most {value(max(apart, default=0.0))} {metric}"
    if not apart:
        far = f"no {unit} has ended in both"
    elif not any(apart):
        far = f"equal in {metric} in each of {counted(len(apart), unit)}"
    same = f"{both} are one objective, computed in two ways"
    if result.diverged("a") or result.diverged("b"):
        rest = f"; where both trained, {far}" if apart else ""
        return f"{same}, and do not agree: {_sides(result, names, unit)}{rest}"
    return f"{same}: {far}"


def _sides(result: Comparison, names: Names, unit: str) -> str:
    """Say in how many seeds which side diverged: `flat diverged in 2 of 8 seeds and both in 1`."""
    a, b = names.sides(result.a, result.b)
    named = {"a": a, "b": b, "both": "both"}
    (first, *more) = [(named[side], count) for side in SIDES if (count := result.diverged(side))]
    rest = [f"{name} in {count}" for name, count in more]
    return enumerated([f"{first[0]} diverged in {first[1]} of {counted(result.n, unit)}", *rest])
