"""The tables of a report, each from an answer alone."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from orchestrator.report import formatting
from orchestrator.report.render.blocks import Block, Bullets, Grid, Heading, Paragraph
from orchestrator.report.summary import budgets
from orchestrator.system.display import counted, first_line

Json = dict[str, Any]

IN_COMMON = {
    "data": "rows trained on and judged on",
    "order": "order of the rows",
    "init": "initial weights",
    "encoder": "initial weights of the encoder",
}
"""What is compared by hash (pairs.HASHES), in words."""


def comparisons(answer: Json) -> Grid:
    """Every contrast: its verdict and the numbers behind it."""
    return Grid(
        ("arm - baseline", "verdict", "mean", "95% interval", "95% BCa", "p", "p (Holm)", "n"),
        [
            (
                f"{one['a']} - {one['b']}",
                formatting.verdict_of(one),
                formatting.signed(one["delta"]),
                formatting.interval(one["ci95"], sign=True),
                formatting.interval(one["ci95_bca"], sign=True),
                *(formatting.probability(one[p] if _is_tested(one) else None) for p in ("p", "p_holm")),
                formatting.count(one["n"]),
            )
            for one in answer["comparisons"]
        ],
        words=2,
    )


def arms(answer: Json) -> Grid:
    """Every arm: the metric, how often it diverged, the other metrics."""
    others = sorted({key for arm in answer["arms"] for key in arm["metrics"]} - {answer["metric"]})
    return Grid(
        ("arm", "mean", "95% interval", "untrained", "diverged", *others, "n"),
        [
            (
                arm["label"],
                formatting.value(arm["mean"]),
                formatting.interval(arm["ci95"]),
                formatting.value(arm["untrained"]),
                _diverged(arm),
                *(formatting.value(arm["metrics"].get(key)) for key in others),
                formatting.count(arm["n"]),
            )
            for arm in answer["arms"]
        ],
    )


def cost(answer: Json) -> Iterator[Block]:
    """What training took, and what was held equal."""
    kind = answer["held_equal"]
    given = budgets.several(answer["arms"])
    rounded = ", rounded down to whole batches" if kind == "samples" else ""
    yield Paragraph(f"Held equal between the arms: {f'{given}{rounded}' if kind else f'nothing ({given})'}.")
    yield Grid(
        ("arm", *budgets.KINDS.values(), "negatives", "ranks", "pairs/s", "rank-seconds", "peak MB"),
        [
            (
                arm["label"],
                *(
                    budgets.shown(
                        arm[key], arm[f"{key}_range"], formatting.quantity if key == "seconds" else budgets.count
                    )
                    for key in budgets.KINDS
                ),
                *(formatting.count(arm[key]) for key in ("negatives_per_anchor", "ranks")),
                *(formatting.quantity(arm[key]) for key in ("samples_per_second", "rank_seconds", "peak_memory_mb")),
            )
            for arm in answer["arms"]
        ],
    )
    yield Paragraph(
        "Pairs, steps, seconds and pairs/s are means over the confirm trials, with the lowest and highest where these "
        "differ; rank-seconds (CPU or GPU) are their sum, peak memory is the largest. A trial that diverged counts as "
        "far as it went. Negatives are those of one anchor."
    )


def execution_only(answer: Json) -> Iterator[Block]:
    """Whether arms agree that should, if there are any."""
    if answer["execution_only"]:
        yield Bullets([_same(one) for one in answer["execution_only"]])


def tuning(answer: Json) -> Iterator[Block]:
    """What tuning chose, if there was any."""
    if not any(arm["tune"] for arm in answer["arms"]):
        return
    yield Heading("Tuning")
    yield Grid(
        ("arm", "chosen", "suggestion", "of"),
        [
            (
                arm["label"],
                formatting.setting((arm["tune"] or {}).get("params")),
                formatting.count(_next((arm["tune"] or {}).get("number"))),
                formatting.count(len((arm["tune"] or {}).get("suggestions", ()))),
            )
            for arm in answer["arms"]
        ],
        words=2,
    )


def seeds(answer: Json) -> Iterator[Block]:
    """Every confirm trial's metric, and what the two sides of a pair have in common."""
    of_arm = [{one["seed"]: one for one in arm["values"]} for arm in answer["arms"]]
    if not any(of_arm):
        return
    yield Heading("Seed by seed")
    labels = [arm["label"] for arm in answer["arms"]]
    yield Grid(
        ("arm", *(f"seed {seed}" for seed in answer["seeds"])),
        [
            (label, *(_cell(values.get(seed)) for seed in answer["seeds"]))
            for label, values in zip(labels, of_arm, strict=True)
        ],
    )
    paired = [one for one in answer["comparisons"] if one["n"]]
    if paired:
        yield Paragraph("What both sides of every pair have in common, checked by hash:")
        yield Bullets([f"{IN_COMMON[what]}: {_in_common(what, paired)}." for what in IN_COMMON])


def trials(answer: Json) -> Iterator[Block]:
    """What ran, and how it ended."""
    stages = {stage: counts for stage, counts in answer["trials"].items() if any(counts.values())}
    if stages:
        states = list(next(iter(stages.values())))
        yield Grid(
            ("stage", *states), [(stage, *map(formatting.count, counts.values())) for stage, counts in stages.items()]
        )
    if answer["code"]:
        yield Bullets(
            [f"{counted(len(group['trials']), 'trial')}: {formatting.code(group)}" for group in answer["code"]]
        )
    attempts = answer["attempts"]
    ended = ", ".join(f"{n} {kind}" for kind, n in attempts["unfinished"].items())
    yield Paragraph(f"Attempts: {formatting.count(attempts['total'])}" + (f", of which {ended}." if ended else "."))
    if answer["failures"]:
        yield Grid(
            ("failed trial", "stage", "arm", "class", "what was raised", "seed", "attempts"),
            [
                (
                    one["trial"],
                    one["stage"],
                    one["arm"],
                    one["failure"] or formatting.NOTHING,
                    first_line(one["message"] or "") or formatting.NOTHING,
                    str(one["seed"]),
                    formatting.count(one["attempts"]),
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


def _is_tested(one: Json) -> bool:
    """Whether a p-value stands behind the verdict of a comparison, or would."""
    return bool(one["n"]) and one["verdict"] != "diverges"


def _in_common(what: str, paired: Sequence[Json]) -> str:
    """`the same in 1 of 2 comparisons; deep - plain cannot share them, as model.layers differs`."""
    known = [one for one in paired if what in one["shared"]]
    if not known:
        return "not recorded"
    same = [one for one in known if one["shared"][what]]
    said = f"the same in {len(same)} of {counted(len(known), 'comparison')}"
    reasons: dict[str, list[str]] = {}
    for one in known:
        if not one["shared"][what]:
            keys = one["apart"].get(what, ())
            why = " and ".join(keys) + (" differ" if len(keys) > 1 else " differs") if keys else ""
            reasons.setdefault(why, []).append(f"{one['a']} - {one['b']}")
    for why, which in reasons.items():
        who = "; ".join(which) if len(which) <= 3 else counted(len(which), "comparison")
        said += (
            f"; {who} cannot share this, as the arms differ in {why}"
            if why
            else f"; {who} should share this and do not"
        )
    if len(known) < len(paired):
        said += f"; not recorded in {len(paired) - len(known)}"
    return said


def _cell(one: Json | None) -> str:
    if one is None:
        return formatting.NOTHING
    if one["diverged"]:
        return "diverged"
    return one["state"] if one["value"] is None else formatting.value(one["value"])


def _diverged(arm: Json) -> str:
    if not arm["divergence_ci95"]:
        return formatting.NOTHING
    low, high = (formatting.percent(end) for end in arm["divergence_ci95"])
    return f"{arm['diverged']} ({low} to {high})"


def _same(one: Json) -> str:
    how = "are the same job" if one["identical"] else "differ in execution only"
    pair = f"{one['a']} and {one['b']} {how}"
    if one["agree"] is None:
        return f"{pair}; no seed has ended in both."
    verb = "agree" if one["agree"] else "do not agree"
    of = counted(one["n"], "seed")
    return f"{pair} and {verb}: the largest difference of {of} is {formatting.value(one['largest_difference'])}."


def _next(number: int | None) -> int | None:
    return None if number is None else number + 1
