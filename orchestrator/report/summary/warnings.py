"""What a reader should know before believing a number: what is missing, and what is not as it should be."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from orchestrator import statistics
from orchestrator.ledger import Trial
from orchestrator.report import formatting
from orchestrator.report.summary import budgets
from orchestrator.system.display import by_count, counted

Json = dict[str, Any]


def notes(found: Json, lost: Sequence[Trial], *, thinned: Sequence[Trial] = ()) -> list[str]:
    """Sentences on an answer, the gravest first; none when all is well. `lost`: trials that ended without a value;
    `thinned`: those with a batch of which more than half of the negatives were left out."""
    seeds = len(found["seeds"])
    return [*_missing(found, lost), *_several_codes(found), *oddities(found, seeds=seeds), *_thinned(thinned)]


def oddities(found: Json, *, seeds: int) -> Iterable[str]:
    """What is not as it should be in an answer, of one run or of several. seeds: the most that a comparison has."""
    if diverged := sum(arm["diverged"] for arm in found["arms"]):
        ended = diverged + sum(arm["n"] for arm in found["arms"])
        yield (
            f"{diverged} of {counted(ended, 'confirm trial')} diverged and {by_count(diverged, 'has', 'have')} no "
            "metric; a pair with one of them counts as the widest of its comparison, against the arm that diverged."
        )
    tested = sum(one["p"] is not None for one in found["comparisons"])
    if tested and found["smallest_p"] > statistics.ALPHA:
        yield (
            f"{counted(seeds, 'seed')} and {counted(tested, 'comparison')} cannot reach p <= 0.05: the "
            f"smallest p is {found['smallest_p']:.3g}."
        )
    if found["held_equal"] is None:
        yield f"The budget is not equal: arms declare {budgets.several(found['arms'])}."
    for one in found["comparisons"]:
        yield from _pairing(one)
    for one in found["execution_only"]:
        if one["agree"] is False:
            how = "are the same job" if one["identical"] else "differ in execution only"
            yield (
                f"{one['a']} and {one['b']} {how} and should agree; a seed differs by {one['largest_difference']:.3g}."
            )


def _several_codes(found: Json) -> Iterable[str]:
    """Whether the numbers come from more than one program."""
    if len(found["code"]) > 1:
        shown = "; ".join(
            f"{counted(len(group['trials']), 'trial')} by {formatting.code(group)}" for group in found["code"]
        )
        yield f"These numbers come from several programs: {shown}."


def _thinned(trials: Sequence[Trial]) -> Iterable[str]:
    """Whose batches taught less than their size says."""
    if trials:
        arms = ", ".join(dict.fromkeys(trial.arm for trial in trials))
        yield (
            f"{counted(len(trials), 'confirm trial')} of {arms} had a batch of which more than half of the negatives "
            "were left out, as they repeat the anchor or its positive (loss.mask_duplicates)."
        )


def _missing(found: Json, lost: Sequence[Trial]) -> Iterable[str]:
    planned = len(found["arms"]) * len(found["seeds"])
    have = sum(arm["n"] + arm["diverged"] for arm in found["arms"])
    fallen = {arm for one in found["comparisons"] for arm in one["diverged_arms"]}
    never = [arm for arm in found["arms"] if arm["label"] in fallen and not arm["values"]]
    planned -= len(found["seeds"]) * len(never)
    if waiting := planned - have - len(lost):
        yield (
            f"{waiting} of {counted(planned, 'confirm trial')} {by_count(waiting, 'has', 'have')} no result yet; "
            "a comparison that needs one of them is inconclusive until it has."
        )
    for trial in lost:
        why = trial.failure or f"no value of {found['metric']}"
        yield (
            f"{trial.arm}, seed {trial.seed} is lost ({why}, attempts: {trial.attempts}, trial {trial.id}): its "
            "comparisons are inconclusive."
        )


def _pairing(one: Json) -> Iterable[str]:
    """What the two sides of a pair should share by their jobs, and do not."""
    a, b = one["a"], one["b"]
    unlike = {what for what, same in one["shared"].items() if not same}
    wrong = unlike - one["apart"].keys()
    if "data" in unlike:
        yield f"{a} and {b} did not see the same data: a difference may be the data's."
    if "order" in wrong:
        yield f"{a} against {b} is not a paired comparison: both train on the same source, and in different orders."
    for what, part in (("init", "model"), ("encoder", "encoder")):
        if what in wrong:
            yield f"{a} and {b} have the same {part} and other initial weights: a pair shares less than it should."
            return
