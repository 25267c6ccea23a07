"""What a reader should know before believing a number: what is missing, and what is not as it should be."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from orchestrator import statistics
from orchestrator.ledger import Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.formatting import probability
from orchestrator.report.naming import Names, names_of
from orchestrator.report.summary import budgets, sentences
from orchestrator.report.summary.records import (
    Answer,
    ArmSummary,
    CodeGroup,
    ComparisonSummary,
    ExploratorySummary,
    LooksSummary,
    Summary,
)
from orchestrator.report.summary.records.tuning import TuneSummary
from orchestrator.report.summary.records.views import by_each, measures_of
from orchestrator.system.display import by_count, counted, listed, ranges


def notes(
    summary: Summary,
    lost: Sequence[Trial],
    *,
    over: Mapping[str, str],
    retried: Mapping[str, Sequence[int]],
    thinned: Sequence[Trial] = (),
    past_nan: Sequence[Trial] = (),
) -> list[str]:
    """Return sentences on a summary, the gravest first; none when all is well. `lost`: trials that ended without a
    value; `over`: arms of which no further confirm trial is begun, and why; `retried`: seeds of an arm that were
    lost when a look was taken, and have a result since; `thinned`: trials with a batch that had
    more than half of its negatives left out; `past_nan`: trials that went on after steps without a finite gradient."""
    seeds = len(summary.seeds)
    return [
        *_missing(summary, lost, over),
        *_looks(summary.looks),
        *_retried(retried, names_of(summary.arms)),
        *_exploratory(summary.exploratory),
        *_several_codes(summary.code),
        *oddities(summary, pairs=seeds),
        *_thinned(thinned, names_of(summary.arms)),
        *_past_nan(past_nan, names_of(summary.arms)),
    ]


def oddities(answer: Answer, *, pairs: int) -> Iterable[str]:
    """Yield what is not as it should be in an answer of one run or several. pairs: the most that a comparison has."""
    if diverged := sum(arm.diverged for arm in answer.arms):
        ended = diverged + sum(arm.n for arm in answer.arms)
        yield (
            f"{diverged} of {counted(ended, 'confirm trial')} diverged and {by_count(diverged, 'has', 'have')} no "
            "metric; a pair with one of them counts as the widest of its comparison, against the arm that diverged."
        )
    names = names_of(answer.arms)
    views = by_each(answer)
    for view in views:
        for arm in view.arms:
            yield from _of_arm(arm, names.alone(arm.label), view.metric)
    close = [names.alone(arm.label) for arm in answer.arms if arm.tune and arm.tune.within_noise]
    if close:
        whose = "its tuning" if len(close) == 1 else "the tuning of each"
        several = listed(close, separator=", ")
        yield f"{several}: the best two settings of {whose} lie closer together than two seeds do."
    tested = sum(comparison.result.p is not None for comparison in answer.comparisons)
    is_seedless = all(comparison.is_seedless for comparison in answer.comparisons)
    if tested and not is_seedless and answer.smallest_p > (level := answer.alpha["difference"]):
        several = counted(pairs, sentences.unit_of(answer))
        yield f"{several} cannot reach p <= {level:g}: the smallest p is {answer.smallest_p:.3g}."
    if answer.held_equal is None:
        yield f"The budget is not equal: arms declare {budgets.several(answer.arms)}."
    for comparison in views[0].comparisons:
        yield from _outlying(comparison, names)
        yield from _pairing(comparison, names)
    for comparison in (comparison for view in views[1:] for comparison in view.comparisons):
        yield from _outlying(comparison, names)
    yield from _should_agree(answer, names)


def _should_agree(answer: Answer, names: Names) -> Iterable[str]:
    """Yield which arms differ in execution alone and lie apart."""
    smallest = {measure.name: measure.smallest_difference for measure in measures_of(answer)}
    for pair in answer.execution_only:
        if pair.agree is False:
            how = "are the same job" if pair.identical else "differ in execution only"
            both = f"{names.arm[pair.a]} and {names.arm[pair.b]}"
            ways = []
            if alone := pair.diverged_alone:
                seeds_ = f"{by_count(len(alone), 'seed', 'seeds')} {', '.join(map(str, alone))}"
                ways.append(f"one of them alone diverged in {seeds_}")
            if (largest := pair.largest_difference or 0.0) > smallest[pair.metric or answer.metric]:
                ways.append(f"a seed differs by {largest:.3g}{f' {pair.metric}' if pair.metric else ''}")
            yield f"{both} {how} and should agree; {' and '.join(ways)}."


def _of_arm(arm: ArmSummary, name: str, metric: str) -> Iterable[str]:
    """Yield what is odd about what an arm has learned."""
    if arm.worse_than_untrained:
        yield f"{name} is worse than its encoder was before training, in {metric}: it has unlearned."
    if arm.tune and arm.tune.edges:
        ends = ", ".join(_edge(arm.tune, key) for key in arm.tune.edges)
        yield f"{name} was tuned to an edge of its range ({ends}): a wider range may hold a better setting."
    if arm.collapsed:
        seeds = ", ".join(map(str, arm.collapsed))
        yield (
            f"{name} has collapsed in {counted(len(arm.collapsed), 'seed')} ({seeds}): its embeddings are nearly "
            "one, its loss has nothing left to tell apart, or an anchor had no negative."
        )


def _edge(tune: TuneSummary, key: str) -> str:
    """Say which value of a key lies at an edge, and in how many repeats of the tuning."""
    if not tune.repeats:
        return f"{key} = {_level(tune.params, key)}"
    own = [params for params, edges in zip(tune.repeats, tune.repeat_edges, strict=True) if key in edges]
    levels = listed(list(dict.fromkeys(_level(params, key) for params in own)), separator=" or ")
    return f"{key} = {levels} in {len(own)} of {counted(len(tune.repeats), 'repeat')}"


def _level(params: JsonObject | None, key: str) -> str:
    level = (params or {}).get(key)
    return f"{level:.4g}" if isinstance(level, float) else str(level)


def _several_codes(groups: Sequence[CodeGroup]) -> Iterable[str]:
    """Yield a sentence if the numbers come from more than one program."""
    if len(groups) > 1:
        shown = "; ".join(f"{counted(len(group.trials), 'trial')} by {sentences.code(group)}" for group in groups)
        yield f"These numbers come from several programs: {shown}."


def _thinned(trials: Sequence[Trial], names: Names) -> Iterable[str]:
    """Yield a sentence on the trials with batches that taught less than their size says."""
    if trials:
        arms = ", ".join(dict.fromkeys(names.alone(trial.arm) for trial in trials))
        yield (
            f"{counted(len(trials), 'confirm trial')} of {arms} had a batch of which more than half of the negatives "
            "were left out, as they repeat the anchor or its positive (loss.mask_duplicates)."
        )


def _past_nan(trials: Sequence[Trial], names: Names) -> Iterable[str]:
    """Yield a sentence for each arm on its trials that would have diverged, had a rule not taken what was not
    finite."""
    for arm in dict.fromkeys(trial.arm for trial in trials):
        own = [trial for trial in trials if trial.arm == arm]
        steps = int(sum(trial.metrics.get("train/nan_steps", 0.0) for trial in own))
        yield (
            f"{names.alone(arm)}: {counted(len(own), 'confirm trial')} went on after steps without a finite gradient "
            f"({counted(steps, 'step')} in all), by a rule of the optimizer, where others diverge."
        )


def _missing(summary: Summary, lost: Sequence[Trial], over: Mapping[str, str]) -> Iterable[str]:
    fallen = {label for comparison in summary.comparisons for label in comparison.result.diverged_arms}
    first = summary.looks.counts[0] if summary.looks else len(summary.seeds)
    due = {arm.label: summary.looks.due.get(arm.label, first) if summary.looks else first for arm in summary.arms}
    due |= {arm.label: 0 for arm in summary.arms if arm.label in fallen and not arm.values}
    without = {arm.label: sum(trial.arm == arm.label for trial in lost) for arm in summary.arms}
    planned = sum(due.values())
    missing = {arm.label: max(0, due[arm.label] - arm.n - arm.diverged - without[arm.label]) for arm in summary.arms}
    if waiting := sum(count for label, count in missing.items() if label not in over):
        yield (
            f"{waiting} of {counted(planned, 'confirm trial')} {by_count(waiting, 'has', 'have')} no result yet; "
            "a comparison that needs one of them is inconclusive until it has."
        )
    names = names_of(summary.arms)
    for label, why in over.items():
        if count := missing[label]:
            are = by_count(count, "is", "are")
            yield (
                f"{names.alone(label)} {why}: {counted(count, 'confirm trial')} of it {are} not trained, and its "
                "comparisons are inconclusive."
            )
    alike: dict[tuple[str, str], list[Trial]] = {}
    for trial in lost:
        alike.setdefault((trial.arm, trial.failure or f"no value of {summary.metric}"), []).append(trial)
    for (arm, why), own in alike.items():
        (one, *more), seeds = own, ranges(trial.seed for trial in own)
        about = "" if more else f", attempts: {one.attempts}, trial {one.id}"
        are = "seeds {} are" if more else "seed {} is"
        yield f"{names.alone(arm)}, {are.format(seeds)} lost ({why}{about}): its comparisons are inconclusive."


def _looks(looks: LooksSummary | None) -> Iterable[str]:
    """Yield a sentence on looks that are still to come, or will not be taken."""
    if looks is None:
        return
    total, last = len(looks.counts), looks.counts[-1]
    if not looks.ended:
        since = f"as of look {looks.taken}" if looks.taken else "before the first look"
        seeds = counted(looks.counts[looks.taken], "seed")
        yield f"Look {looks.taken + 1} of {total} is under way, of {seeds}: the verdicts are {since}."
    elif looks.ended == "futile":
        seeds = counted(looks.counts[looks.taken - 1], "seed")
        yield (
            f"Stopped at look {looks.taken} of {total}, of {seeds}: fewer than one in ten continuations to {last} "
            "seeds would have settled what is open."
        )


def _retried(retried: Mapping[str, Sequence[int]], names: Names) -> Iterable[str]:
    """Yield a sentence on seeds that came too late for their look."""
    for arm, seeds in retried.items():
        if seeds:
            yield (
                f"{names.alone(arm)}, {by_count(len(seeds), 'seed', 'seeds')} {ranges(seeds)}: lost when a look was "
                "taken, and so for the planned verdict; what came of it since is exploratory."
            )


def _exploratory(found: ExploratorySummary | None) -> Iterable[str]:
    """Yield what seeds beyond the plan say."""
    if found is not None:
        yield f"Exploratory, beyond the plan, on {counted(len(found.seeds), 'seed')}: {found.sentence}"


def _outlying(comparison: ComparisonSummary, names: Names) -> Iterable[str]:
    """Yield which seeds lie far from the others."""
    if comparison.outlying:
        result = comparison.result
        (a, b), at = names.sides(result.a, result.b), names.at(result.a, result.b)
        seeds = ", ".join(map(str, comparison.outlying))
        many = len(comparison.outlying)
        lies = f"{by_count(many, 'seed', 'seeds')} {seeds} {by_count(many, 'lies', 'lie')}"
        by = f" by {result.metric}" if result.metric else ""
        yield f"{a} against {b}{at}: {lies} far from the others{by}; nothing is left out."


def _pairing(comparison: ComparisonSummary, names: Names) -> Iterable[str]:
    """Yield sentences on what both sides of a pair should share by their jobs and do not, and on all different data."""
    result = comparison.result
    (a, b), at = names.sides(result.a, result.b), names.at(result.a, result.b)
    b += at
    unlike = {what for what, same in comparison.shared.items() if not same}
    wrong = unlike - comparison.apart.keys()
    if (p := statistics.mcnemar_p(result.diverged("a"), result.diverged("b"))) is not None:
        yield (
            f"{a} alone diverged in {counted(result.diverged('a'), 'seed')} and {b} alone in {result.diverged('b')}: "
            f"p = {probability(p)} (McNemar's test, beside the verdict)."
        )
    if "data" in unlike:
        yield f"{a} and {b} did not see the same data: a difference may be the data's."
    if "order" in wrong:
        yield f"{a} against {b} is not a paired comparison: both train on the same source, and in different orders."
    for what, part in (("init", "model"), ("encoder", "encoder")):
        if what in wrong:
            yield f"{a} and {b} have the same {part} and other initial weights: a pair shares less than it should."
            return
