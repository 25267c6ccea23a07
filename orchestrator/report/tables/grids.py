"""The tables of a report, each from an answer alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from orchestrator.report import formatting
from orchestrator.report.naming import Names, level_text, place_of, word
from orchestrator.report.summary import budgets
from orchestrator.report.summary.records import (
    Answer,
    ArmSummary,
    ComparisonSummary,
    ExecutionPair,
    SeedValue,
    Summary,
)
from orchestrator.report.summary.records.views import by_each
from orchestrator.report.summary.sentences import (
    about,
    code,
    deciding_p,
    is_tested,
    seeds_needed,
    swap_verdict,
    verdict_of,
)
from orchestrator.report.swaps import SettingSummary
from orchestrator.report.tables.blocks import Block, Bullets, Grid, Heading, Paragraph
from orchestrator.report.tables.measures import beside
from orchestrator.statistics import Comparison
from orchestrator.system.display import counted, first_line

MOST_ROWS = 12
"""Of the tables of cost and seeds, which a figure shows too or few readers need: longer ones are folded away."""

IN_COMMON = {
    "data": "rows trained on and judged on",
    "order": "order of the rows",
    "init": "initial weights",
    "encoder": "initial weights of the encoder",
}
"""What is compared by hash (pairs.HASHES), in words."""


def comparisons(answer: Answer, names: Names) -> Grid:
    """Build the table of the contrasts: the verdict of each and the numbers behind it."""
    return _contrasts(answer.comparisons, answer, names)


def _contrasts(shown: Sequence[ComparisonSummary], answer: Answer, names: Names) -> Grid:
    looks = ["look"] if any(comparison.result.look is not None for comparison in shown) else []
    unit = answer.unit if isinstance(answer, Summary) else "seed"
    needed = [f"{unit}s needed"] if any(seeds_needed(comparison.result) for comparison in shown) else []
    return Grid(
        (names.heading, "against", "verdict", "mean", "interval", "p", "p alone", "n", *needed, *looks),
        [
            (
                names.arm[result.a],
                names.sides(result.a, result.b)[1],
                verdict_of(comparison, answer.smallest_difference),
                formatting.signed(result.delta),
                formatting.interval(comparison.interval, sign=True),
                formatting.probability(deciding_p(comparison)),
                formatting.probability(result.p if is_tested(comparison) else None),
                formatting.count(result.n),
                *(_needed(result) for _ in needed),
                *(formatting.count(result.look) for _ in looks),
            )
            for comparison in shown
            for result in (comparison.result,)
        ],
        words=3,
    )


def _needed(result: Comparison) -> str:
    known = seeds_needed(result)
    return formatting.NOTHING if known is None else about(known)


def which(summary: Summary) -> Iterator[Block]:
    """Yield which levels nothing beats, where the question is which one."""
    if (found := summary.which) is None:
        return
    name, means = word(found.factor), {arm.label: arm.mean for arm in summary.arms}
    keys = list(found.strata[0].where)
    yield Heading(f"Which {name}")
    yield Paragraph(
        f"p is the chance of a level that looks as much worse than another one if none were better. At p ≤ "
        f"{found.alpha:.3g} it is out; what is left may be the best, which is lost in one sweep of twenty."
    )
    yield Grid(
        (*map(word, keys), name, "mean", "p", "may be the best"),
        [
            (
                *(level_text(stratum.where[key]) for key in keys),
                level_text(level),
                formatting.value(means.get(arm)),
                formatting.probability(p),
                "not judged" if stratum.not_judged is not None else "yes" if arm in stratum.best else "no",
            )
            for stratum in found.strata
            for arm, level, p in zip(stratum.arms, stratum.levels, stratum.p, strict=True)
        ],
        words=len(keys) + 1,
    )
    if unjudged := [stratum for stratum in found.strata if stratum.not_judged is not None]:
        yield Bullets([f"Not judged at {place_of(stratum.where)}: {stratum.not_judged}." for stratum in unjudged])
    if found.interaction_p is not None:
        yield Paragraph(
            f"Whether {name} does the same at every {' and '.join(map(word, keys))}: p = "
            f"{formatting.probability(found.interaction_p)} that it does (beside the verdict)."
        )


def swaps(summary: Summary, names: Names) -> Iterator[Block]:
    """Yield what arms come to at each other's setting, where they were trained there."""
    if not summary.swaps:
        return
    by = f", by {summary.metric}" if summary.swaps[0].metric else ""
    yield Heading(f"At each other's setting{by}")
    yield Grid(
        (
            "comparison",
            "both at the setting of",
            "beside the verdict",
            "mean",
            "95% interval",
            "p",
            "n",
            "diverged",
        ),
        [
            (
                names.pair(swap.a, swap.b),
                f"{names.arm[at.setting]} ({_both_at(at)})",
                swap_verdict(swap, names),
                formatting.signed(at.delta),
                formatting.interval(at.ci95, sign=True),
                formatting.probability(at.p),
                formatting.count(at.n) if at.n == at.of else f"{at.n} of {at.of}",
                formatting.count(sum(at.diverged.values())),
            )
            for swap in summary.swaps
            for at in swap.settings
        ],
        words=3,
    )
    yield Paragraph(
        "One arm at its own setting and the other there too, in the keys that both tune, on the confirm seeds. "
        "Intervals and p are of paired t tests, unadjusted: this is beside the verdict, outside its 5 %, and decides "
        "nothing. At either setting: both intervals leave out 0, on one side. There is no p while pairs are missing."
    )


def _both_at(at: SettingSummary) -> str:
    kept = f"; the other keeps {formatting.setting(at.kept)}" if at.kept else ""
    return f"{formatting.setting(at.params)}{kept}"


def exploratory(summary: Summary, names: Names) -> Iterator[Block]:
    """Yield what was trained beyond the plan says, if anything was."""
    if (found := summary.exploratory) is not None:
        yield Heading("Beyond the plan")
        yield Paragraph(
            f"Exploratory, on {counted(len(found.seeds), 'seed')}, each arm at its latest setting: {found.sentence} "
            "The verdict above was planned and stays; to test again whenever the first seeds have not shown anything "
            "finds differences that are none."
        )
        for view in by_each(summary):
            if summary.metrics:
                yield Paragraph(f"By {view.metric}:")
            yield _contrasts(view.exploratory.comparisons if view.exploratory else (), view, names)


def arms(answer: Answer, names: Names) -> Grid:
    """Build the table of the arms: the metric, how often each diverged, the other metrics where these are few."""
    others = beside(answer)
    return Grid(
        (names.heading, "mean", "95% interval", "untrained", "diverged", *others, "n"),
        [
            (
                names.arm[arm.label],
                formatting.value(arm.mean),
                formatting.interval(arm.ci95),
                formatting.value(arm.untrained),
                _diverged(arm),
                *(formatting.value(arm.metrics.get(key)) for key in others),
                formatting.count(arm.n),
            )
            for arm in answer.arms
        ],
    )


def cost(answer: Answer, names: Names) -> Iterator[Block]:
    """Yield what training took, and what was held equal."""
    kind = answer.held_equal
    given = budgets.several(answer.arms)
    rounded = ", rounded down to whole batches" if kind == "samples" else ""
    yield Paragraph(f"Held equal between the arms: {f'{given}{rounded}' if kind else f'nothing ({given})'}.")
    yield Grid(
        (names.heading, *budgets.KINDS.values(), "negatives", "ranks", "pairs/s", "rank-seconds", "peak MB"),
        [
            (
                names.arm[arm.label],
                budgets.shown(arm.spent["samples"], budgets.count),
                budgets.shown(arm.spent["steps"], budgets.count),
                budgets.shown(arm.spent["seconds"], formatting.quantity),
                formatting.count(arm.negatives_per_anchor),
                formatting.count(arm.ranks),
                formatting.quantity(arm.samples_per_second),
                formatting.quantity(arm.rank_seconds),
                formatting.quantity(arm.peak_memory_mb),
            )
            for arm in answer.arms
        ],
        title=_folded(answer, "What training took"),
    )
    yield Paragraph(
        "Pairs, steps, seconds and pairs/s are means over the confirm trials, with the lowest and highest where these "
        "differ; rank-seconds (CPU or GPU) are their sum, peak memory is the largest. A trial that diverged counts as "
        "far as it went. Negatives are those of one anchor."
    )


def _folded(answer: Answer, what: str) -> str:
    return f"{what}, {counted(len(answer.arms), 'arm')}" if len(answer.arms) > MOST_ROWS else ""


def execution_only(answer: Answer, names: Names) -> Iterator[Block]:
    """Yield whether the arms that should agree do, if there are any."""
    if answer.execution_only:
        yield Bullets([_same(pair, names) for pair in answer.execution_only])


def tuning(answer: Answer, names: Names) -> Iterator[Block]:
    """Yield what tuning chose, if there was any."""
    if not any(arm.tune for arm in answer.arms):
        return
    yield Heading("Tuning")
    rows = [(names.arm[arm.label], *_chosen(arm)) for arm in answer.arms]
    yield Grid((names.heading, "chosen", "suggestion", "of"), rows, words=2)


def _chosen(arm: ArmSummary) -> Sequence[str]:
    if arm.tune is None:
        return formatting.setting(None), formatting.count(None), formatting.count(0)
    number = None if arm.tune.number is None else arm.tune.number + 1
    of = formatting.count(len(arm.tune.suggestions))
    return formatting.setting(arm.tune.params), formatting.count(number), of


def seeds(answer: Answer, names: Names, *, further: bool = False) -> Iterator[Block]:
    """Yield every confirm trial's metric, and what the two sides of a pair have in common. further: by another metric
    than the first, with which this stands."""
    of_arm = [{value.seed: value for value in arm.values} for arm in answer.arms]
    if not any(of_arm):
        return
    yield Heading(f"Seed by seed, {answer.metric}" if further else "Seed by seed")
    labels = [names.arm[arm.label] for arm in answer.arms]
    title = _folded(answer, f"{answer.metric} seed by seed")
    if len(answer.seeds) > max(MOST_ROWS, len(labels)):  # no page is that wide
        rows = [(str(seed), *(_cell(values.get(seed)) for values in of_arm)) for seed in answer.seeds]
        yield Grid(("seed", *labels), rows, title=title)
    else:
        rows = [
            (label, *(_cell(values.get(seed)) for seed in answer.seeds))
            for label, values in zip(labels, of_arm, strict=True)
        ]
        yield Grid((names.heading, *(f"seed {seed}" for seed in answer.seeds)), rows, title=title)
    paired = [comparison for comparison in answer.comparisons if comparison.result.n and not further]
    if paired:
        yield Paragraph("What both sides of every pair have in common, checked by hash:")
        yield Bullets([f"{IN_COMMON[what]}: {_in_common(what, paired, names)}." for what in IN_COMMON])


def data(summary: Summary) -> Iterator[Block]:
    """Yield which rows the run was begun with."""
    if summary.data:
        yield Grid(
            ("rows", "source", "digest", "count"),
            [
                (one.key, one.source, (one.digest or formatting.NOTHING)[:12], formatting.count(one.rows))
                for one in summary.data
            ],
            words=3,
        )


def labels(answer: Answer, names: Names) -> Iterator[Block]:
    """Yield the labels that stand behind the names, where these are others."""
    if any(names.arm[arm.label] != arm.label for arm in answer.arms):
        rows = [(names.arm[arm.label], arm.label) for arm in answer.arms]
        title = "Names on this page, and the labels that commands and MLflow know"
        yield Grid((names.heading, "label"), rows, words=2, title=title)


def trials(summary: Summary) -> Iterator[Block]:
    """Yield what ran, and how it ended."""
    stages = {stage: counts for stage, counts in summary.trials.items() if any(counts.values())}
    if stages:
        states = list(next(iter(stages.values())))
        yield Grid(
            ("stage", *states), [(stage, *map(formatting.count, counts.values())) for stage, counts in stages.items()]
        )
    if summary.code:
        yield Bullets([f"{counted(len(group.trials), 'trial')}: {code(group)}" for group in summary.code])
    attempts = summary.attempts
    ended = ", ".join(f"{n} {kind}" for kind, n in attempts.unfinished.items())
    yield Paragraph(f"Attempts: {formatting.count(attempts.total)}" + (f", of which {ended}." if ended else "."))
    if summary.failures:
        yield Grid(
            ("failed trial", "stage", "arm", "class", "what was raised", "seed", "attempts"),
            [
                (
                    trial.trial,
                    trial.stage,
                    trial.arm,
                    trial.failure or formatting.NOTHING,
                    first_line(trial.message or "") or formatting.NOTHING,
                    str(trial.seed),
                    formatting.count(trial.attempts),
                )
                for trial in summary.failures
            ],
            words=5,
        )
    if summary.diverged:
        yield Grid(
            ("diverged trial", "stage", "arm", "seed"),
            [(trial.trial, trial.stage, trial.arm, str(trial.seed)) for trial in summary.diverged],
            words=3,
        )


def _in_common(what: str, paired: Sequence[ComparisonSummary], names: Names) -> str:
    """Say how many comparisons share this, and why the others do not: `the same in 1 of 2 comparisons; deep
    against plain cannot share this, as the arms differ in model.layers`."""
    known = [comparison for comparison in paired if what in comparison.shared]
    if not known:
        return "not recorded"
    same = [comparison for comparison in known if comparison.shared[what]]
    words = f"the same in {len(same)} of {counted(len(known), 'comparison')}"
    reasons: dict[str, list[str]] = {}
    for comparison in known:
        if not comparison.shared[what]:
            keys = comparison.apart.get(what, ())
            reasons.setdefault(" and ".join(keys), []).append(names.pair(comparison.result.a, comparison.result.b))
    for why, which in reasons.items():
        who = "; ".join(which) if len(which) <= 3 else counted(len(which), "comparison")
        words += (
            f"; {who} cannot share this, as the arms differ in {why}"
            if why
            else f"; {who} should share this and do not"
        )
    if len(known) < len(paired):
        words += f"; not recorded in {len(paired) - len(known)}"
    return words


def _cell(value: SeedValue | None) -> str:
    if value is None:
        return formatting.NOTHING
    if value.diverged:
        return "diverged"
    return value.state if value.value is None else formatting.value(value.value)


def _diverged(arm: ArmSummary) -> str:
    if not arm.divergence_ci95:
        return formatting.NOTHING
    low, high = (formatting.percent(end) for end in arm.divergence_ci95)
    return f"{arm.diverged} ({low} to {high})"


def _same(pair: ExecutionPair, names: Names) -> str:
    how = "are the same job" if pair.identical else "differ in execution only"
    arms = f"{names.arm[pair.a]} and {names.arm[pair.b]} {how}"
    if pair.agree is None:
        return f"{arms}; no seed has ended in both."
    verb = "agree" if pair.agree else "do not agree"
    alone = len(pair.diverged_alone)
    parts = [f"one alone diverged in {counted(alone, 'seed')}"] if alone else []
    if pair.n:
        of = counted(pair.n, "seed")
        parts.append(
            f"the largest difference of {of} is {formatting.value(pair.largest_difference)}"
            + (f" {pair.metric}" if pair.metric else "")
        )
    return f"{arms} and {verb}: {'; '.join(parts)}."
