"""How numbers and verdicts are written, in one place, so that the page, the tables and the terminal agree."""

from __future__ import annotations

from typing import Any

from rich.box import SIMPLE_HEAD
from rich.console import Group, RenderableType
from rich.table import Table
from rich.text import Text

from orchestrator.system.display import by_count, counted

NOTHING = "–"
"""Written where there is no number."""

VERDICTS = {
    "a_better": "better",
    "b_better": "worse",
    "equivalent": "equivalent",
    "inconclusive": "inconclusive",
    "diverges": "diverges",
}
"""What a verdict says of the arm against its baseline."""


def value(x: float | None) -> str:
    """A metric: four decimals, or three significant digits where those would say nothing."""
    if x is None:
        return NOTHING
    x += 0.0  # minus zero is zero
    return f"{x:.4f}" if x == 0 or 1e-4 <= abs(x) < 1e4 else f"{x:.3g}"


def signed(x: float | None) -> str:
    """A difference of metrics, with its sign."""
    return f"+{value(x)}" if x is not None and x > 0 else value(x)


def interval(ends: list[float] | None, *, sign: bool = False) -> str:
    """[low, high] of a metric, or of a difference (`sign`)."""
    return NOTHING if ends is None else "[" + ", ".join((signed if sign else value)(end) for end in ends) + "]"


def probability(p: float | None) -> str:
    """A p-value: three significant digits."""
    return NOTHING if p is None else f"{p:.3g}"


def quantity(x: float | None) -> str:
    """Seconds, megabytes, pairs per second: about three significant digits, thousands apart."""
    if x is None:
        return NOTHING
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return f"{x:,.{digits}f}"


def count(n: int | None) -> str:
    """A whole number, thousands apart."""
    return NOTHING if n is None else f"{n:,}"


def percent(rate: float | None) -> str:
    """A rate in whole percent."""
    return NOTHING if rate is None else f"{100 * rate:.0f}%"


def code(group: dict[str, Any]) -> str:
    """`code 3f2c9ab01234 (accepted), torch 2.13.0, ray 2.60.0`, or `code not recorded`."""
    if group["code"] is None:
        return "code not recorded"
    versions = ", ".join(f"{name} {version}" for name, version in (group["versions"] or {}).items())
    return f"code {group['code']}{' (accepted)' if group['accepted'] else ''}, {versions}"


def setting(params: dict[str, Any] | None) -> str:
    """`optimizer.lr = 0.003, loss.temperature = 0.1`."""
    if not params:
        return NOTHING
    return ", ".join(f"{key} = {f'{x:.4g}' if isinstance(x, float) else x}" for key, x in params.items())


def sentence(answer: dict[str, Any]) -> str:
    """The verdict in one plain sentence."""
    compared = answer["comparisons"]
    if not any(one["n"] or one["verdict"] == "diverges" for one in compared):
        return "No verdict yet: no comparison has a pair of finished confirm trials."
    prefix = "" if answer["complete"] else "Not complete: "
    if len(compared) == 1:
        return prefix + _clause(compared[0], answer) + "."
    if len(compared) <= 3:
        return prefix + "; ".join(_clause(one, answer, brief=True) for one in compared) + "."
    verdicts = [one["verdict"] for one in compared]
    better, worse, equal, open_, fallen = (verdicts.count(verdict) for verdict in VERDICTS)
    beat, lose = by_count(better, "beats its", "beat their"), by_count(worse, "loses", "lose")
    parts = [
        f"{better} of {len(compared)} arms {beat} baseline on {answer['metric']}",
        f"{worse} {lose} to it",
        f"{equal} {by_count(equal, 'is', 'are')} equivalent to it",
        f"{counted(open_, 'comparison')} {by_count(open_, 'is', 'are')} inconclusive",
        *([f"{fallen} {by_count(fallen, 'diverges', 'diverge')}"] if fallen else []),
    ]
    return f"{prefix}{', '.join(parts[:-1])} and {parts[-1]}."


def across(answer: dict[str, Any]) -> str:
    """The verdict over several runs in one plain sentence."""
    if not answer["comparisons"]:
        return "Across runs there is nothing to compare: every arm of the later runs is the first run's baseline again."
    return f"Across runs, exploratory: {sentence(answer)}"


def _clause(one: dict[str, Any], answer: dict[str, Any], *, brief: bool = False) -> str:
    a, b, metric = one["a"], one["b"], answer["metric"]
    if one["verdict"] == "diverges":
        return _diverges(one, answer)
    if one["same_objective"]:
        return _same_objective(one, answer)
    evidence = f"p = {probability(one['p_holm'])}" + ("" if brief else f", {counted(one['n'], 'seed')}")
    lost = sum(one["diverged"].values())
    if lost:
        evidence = f"({evidence}, of which {lost} diverged in {_sides(one)})"
        by, delta = "", f"{signed(one['delta_trained'])} {metric} where both trained"
    else:
        evidence = f"(95% interval {interval(one['ci95'], sign=True)}, {evidence})"
        by, delta = f" by {value(abs(one['delta'] or 0.0))}", f"{signed(one['delta'])} {metric}"
    if one["verdict"] in ("a_better", "b_better"):
        winner, loser = (a, b) if one["verdict"] == "a_better" else (b, a)
        return f"{winner} beats {loser}{by}{'' if by else ' on'} {metric} {evidence}"
    if one["verdict"] == "equivalent":
        limit = value(answer["smallest_difference"])
        within = "" if brief else f" (90% interval {interval(one['ci90'], sign=True)}, {counted(one['n'], 'seed')})"
        return f"{a} and {b} are equivalent: their mean {metric} differs by less than {limit}{within}"
    return f"{a} against {b} is inconclusive: {delta} {evidence}"


def _diverges(one: dict[str, Any], answer: dict[str, Any]) -> str:
    """`lr=1 diverged in 6 of 6 seeds: it is not compared with lr=0.1`."""
    counts = {arm["label"]: (arm["diverged"], arm["diverged"] + arm["n"]) for arm in answer["arms"]}
    said = []
    for arm in one["diverged_arms"]:
        lost, ended = counts[arm]
        said.append(
            f"{arm} diverged in {lost} of {counted(ended, 'seed')}"
            if ended
            else f"{arm} diverged at every setting that was tried"
        )
    if len(said) == 1:
        other = one["b"] if one["diverged_arms"] == [one["a"]] else one["a"]
        return f"{said[0]}: it is not compared with {other}"
    return f"{said[0]} and {said[1]}: they are not compared"


def _same_objective(one: dict[str, Any], answer: dict[str, Any]) -> str:
    """`big batch and exact accumulation are one objective: a seed differs by at most 0.0031 knn_accuracy`."""
    apart = [abs(each["value"]) for each in one["differences"] if each["value"] is not None]
    far = f"a seed differs by at most {value(max(apart, default=0.0))} {answer['metric']}"
    if not apart:
        far = "no seed has ended in both"
    elif not any(apart):
        far = f"equal in {answer['metric']} in each of {counted(len(apart), 'seed')}"
    return f"{one['a']} and {one['b']} are one objective, computed in two ways: {far}"


def _sides(one: dict[str, Any]) -> str:
    names = {"a": one["a"], "b": one["b"], "both": "both"}
    return ", ".join(f"{names[side]} ({count})" for side, count in one["diverged"].items() if count)


def verdict_of(one: dict[str, Any]) -> str:
    """A comparison's verdict on its arm, as tables and plots show it."""
    same = one["same_objective"] and one["verdict"] == "equivalent"
    return "same objective" if same else VERDICTS[one["verdict"]]


def table(answer: dict[str, Any]) -> RenderableType:
    """What a terminal shows: the arms, the comparisons, the verdict. Fits 80 columns."""
    arms = Table(box=SIMPLE_HEAD, title=Text(f"{answer['metric']} by arm"), title_justify="left", padding=(0, 1))
    arms.add_column("arm", overflow="fold", min_width=12)
    for heading in ("n", "mean", "95% interval", "diverged", "pairs/s", "peak MB"):
        arms.add_column(heading, justify="right", no_wrap=True)
    for arm in answer["arms"]:
        arms.add_row(
            Text(arm["label"]),
            count(arm["n"]),
            value(arm["mean"]),
            interval(arm["ci95"]),
            count(arm["diverged"]),
            quantity(arm["samples_per_second"]),
            quantity(arm["peak_memory_mb"]),
        )
    comparisons = Table(box=SIMPLE_HEAD, title=Text("paired differences"), title_justify="left", padding=(0, 1))
    comparisons.add_column("a - b", overflow="fold", min_width=12)
    for heading in ("mean", "95% interval", "p (Holm)", "verdict on a"):
        comparisons.add_column(heading, justify="right", no_wrap=True)
    for one in answer["comparisons"]:
        comparisons.add_row(
            Text(f"{one['a']} - {one['b']}"),
            signed(one["delta"]),
            interval(one["ci95"], sign=True),
            probability(one["p_holm"] if one["n"] and one["verdict"] != "diverges" else None),
            verdict_of(one),
        )
    notes = [Text(f"note: {note}") for note in answer["notes"]]
    return Group(arms, comparisons, *notes, Text(answer["sentence"], style="bold"))


def table_of_several(answer: dict[str, Any]) -> RenderableType:
    """The verdict of each run, and below them the tables over all."""
    planned = [Text.assemble((f"{one['name']}: ", "bold"), one["sentence"]) for one in answer["runs"]]
    return Group(*planned, Text(), table(answer))
