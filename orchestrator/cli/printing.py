"""What the verbs print: data as data, in tables and as JSON."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from math import ceil, floor, isfinite, log10
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.config.components import is_class, is_import_path
from jobs.core.plain import one_line, visible, visible_lines
from orchestrator.system.display import MOST_LISTED, Harmless, cell, counted, listed, ranges, table_lines

if TYPE_CHECKING:
    from rich.console import RenderableType

    from orchestrator.preflight.estimate import Estimate
    from orchestrator.preflight.spread import Power
    from orchestrator.run_dir.export import Exported
    from orchestrator.run_dir.status import Status, TrialStatus
    from orchestrator.sweep.plan import Basis, Plan
    from orchestrator.verify import Verified

BUDGETS = ("samples", "steps", "seconds")
"""What a job may be given of, in the order of the plan's table."""

MOST_ROWS, MOST_WATCHED = 300, 100
"""Trials of a table that rich lays out, a millisecond for each; and of one that is drawn every second."""

UNKNOWN = "-"
"""In a table: what is not known, or not there."""


def echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text that may hold data."""
    click.echo(visible_lines(text), err=err, nl=nl)


def print_json(value: object) -> None:
    """Print a value as JSON."""
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def print_whole(renderable: RenderableType) -> None:
    """Print something of rich as wide as it is, also into a pipe."""
    from rich.console import Console

    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else 120).print(Harmless(renderable))


def print_plan(made: Plan, estimate: Estimate, power: Sequence[Power], probe: str) -> None:
    """Print what a sweep would run, what it can show and how long it takes. probe: the command that measures that."""
    from rich.table import Table

    from orchestrator.preflight.estimate import time_line

    summary, differs = made.summary(), made.summary()["differs"]
    echo(f"{one_line(made.sweep.question)}\n")
    keys = [key for key in differs if not key.startswith("budget.") and key not in BUDGETS]
    columns = [(key.rpartition(".")[2], [_level(key, value) for value in differs[key]]) for key in keys]
    budgets = [arm.config(stage="confirm", seed=0).budget for arm in made.arms]
    for key in BUDGETS:
        pairs = zip(summary["arms"], budgets, strict=True)
        columns.append((key, [shown_arm(dict(arm).get(key) or getattr(budget, key, None)) for arm, budget in pairs]))
    columns.append(("s/trial", [shown_arm(_rounded(arm.trial_seconds)) for arm in estimate.arms]))
    columns.append(("peak MB", [shown_arm(_rounded(arm.peak_memory_mb)) for arm in estimate.arms]))
    columns = [(name, values) for name, values in columns if set(values) != {UNKNOWN}]
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", overflow="fold")
    for name, _ in columns:
        table.add_column(cell(name), justify="right", overflow="fold")
    for index, arm in enumerate(made.arms):
        table.add_row(cell(arm.label), *(cell(values[index]) for _, values in columns))
    print_whole(table)
    first: dict[str, object] = {**summary["arms"][0]}
    same = [key for key in (*BUDGETS, "negatives_per_anchor") if key not in differs and first.get(key) is not None]
    shown = ", ".join(f"{key.replace('_', ' ')} {shown_arm(first[key])}" for key in same)
    echo(f"\nequal in every arm: {shown or 'none of samples, steps, seconds, negatives per anchor'}")
    metrics, also = made.sweep.metric.every, made.sweep.metric.also
    then = "; tuning looks at the first, and all are one family of the verdict" if also else ""
    echo(f"metric:    {', '.join(f'{metric.name} ({metric.mode})' for metric in metrics)}{then}")
    contrasts = [f"{a} against {b}" for a, b in made.contrasts]
    count = f"{len(contrasts):,}: " if len(contrasts) > MOST_LISTED else ""
    echo(f"contrasts: {count}{listed(contrasts)}")
    one_objective: dict[str, list[str]] = {}
    for a, b in made.contrasts:
        if (a, b) not in made.tested:
            tuned = ": tuned once, frozen together" if made.searched_with.get(a) or made.searched_with.get(b) else ""
            one_objective.setdefault(tuned, []).append(f"{a} and {b}")
    for tuned, arms in one_objective.items():
        echo(f"one objective: {listed(arms)} differ in execution alone{tuned}, and are not tested")
    swapped = f", {made.trials['swap']} swapped at most" if made.swaps else ""
    echo(f"trials:    {made.trials['tune']} tune, {made.trials['confirm']} confirm{swapped}")
    if made.swaps:
        swaps = [f"{swap.a} and {swap.b} in {', '.join(swap.keys)}" for swap in made.swaps]
        echo(f"swapped:   each arm also at the other's setting, beside the verdict: {listed(swaps)}")
    echo(f"seeds:     tune {ranges(made.tune_seeds)}, confirm {ranges(made.confirm_seeds)}{_basis(made.basis)}")
    task = str(made.sweep.job.get("task"))
    is_own_loop = is_import_path(task) and not is_class(task)  # which no probe can run
    echo(f"time:      {time_line(estimate, None if is_own_loop else probe)}")
    for metric in metrics:
        own = [contrast for contrast in power if contrast.metric in ("", metric.name)]
        for line in power_lines(own, metric.smallest_difference, by=metric.name if also else ""):
            echo(line)
    echo(f"smallest p reachable: {max(made.smallest_p, 1e-5):.4g}")
    for warning in (*made.warnings, *estimate.notes):
        echo(f"note: {visible(warning)}")


def _basis(basis: Basis) -> str:
    """Say how the number of confirm seeds was chosen, where it was not given."""
    if basis["rule"] == "looks":
        counts = [str(count) for count in basis.get("looks", [])]
        return f" (looks at {', '.join(counts[:-1])} and {counts[-1]}: until the question is settled)"
    if basis["rule"] == "fewest":
        return " (the fewest that can reach the level, if all agree)"
    if basis["rule"] == "enough" and basis.get("sd") is None:
        return f" (enough: {basis['n']}, as it is not known what they would find)"
    of = f" of {by}" if (by := basis.get("metric")) else ""
    return f" (enough, by the spread{of} in {basis.get('source')})" if basis["rule"] == "enough" else ""


def power_lines(power: Sequence[Power], smallest_difference: float, *, by: str = "") -> list[str]:
    """Say what the seeds of each contrast can show and what they take, in a line for contrasts of which the same is
    known. What is found is rounded up, so that the figure is enough. by: the metric, where there are several."""
    groups: dict[tuple[object, ...], list[Power]] = {}
    for contrast in power:
        groups.setdefault((contrast.n, contrast.spread, contrast.needed), []).append(contrast)
    lines = []
    for own in groups.values():
        first, others = own[0], len(own) - 1
        which = f" ({first.a} against {first.b}{f' and {others} more' if others else ''})" if len(groups) > 1 else ""
        hours = _hours(own, smallest_difference)
        of = f"power:     {f'by {by}, ' if by else ''}{counted(first.n, first.unit)}"
        if not isfinite(first.detectable):
            lines.append(f"{of} cannot find any difference{which}; a pilot tells the sd, no more{hours}")
            continue
        sd = "sd of the repeats' means" if first.unit == "repeat" else "sd"
        line = f"{of} find a difference of {rounded_up(first.detectable, 2)} {sd} four times in five{which}"
        if first.unit == "repeat":
            line += "; that sd is not known before"
            if first.spread is not None:
                line += f", and that of single seeds is {first.spread.sd:.3g} (from above) in {first.spread.origin}"
        elif first.spread is None:
            line += "; the sd is not known, as nothing like it has run here: a pilot is a run with confirm.seeds=5"
        else:
            found = first.detectable * first.spread.sd
            digits = 2 - floor(log10(found)) if found > 0 else 2
            line += f": {float(rounded_up(found, digits)):.3g}, by an sd of {first.spread.sd:.3g} (from above) in "
            line += first.spread.origin
        lines.append(line + _needed(first, smallest_difference) + hours)
    return lines


def rounded_up(value: float, digits: int) -> str:
    """Write a number with so many digits behind the point, rounded up unless that is off by what a float holds."""
    scale = 10.0**digits
    return f"{ceil(value * scale * (1 - 1e-12)) / scale:.{max(digits, 0)}f}"


def _needed(first: Power, smallest_difference: float) -> str:
    """Say how many seeds the smallest difference takes, where the spread of what is paired is known."""
    if smallest_difference <= 0 or first.spread is None or first.unit == "repeat":
        return ""
    if first.needed is None:
        return f"; {smallest_difference:g} takes more seeds than can be counted"
    return f"; {smallest_difference:g} takes {first.needed:,} seeds"


def _hours(own: Sequence[Power], smallest_difference: float) -> str:
    """Say what the trials of a contrast take, of those whose times are known: the planned ones, and those that the
    smallest difference takes."""
    planned = [contrast.rank_hours for contrast in own if contrast.rank_hours is not None]
    needed = [contrast.needed_rank_hours for contrast in own if contrast.needed_rank_hours is not None]
    if not planned:
        return ""
    more = f", and {_from_to(needed)} for {smallest_difference:g}" if needed else ""
    return f"; {_from_to(planned)} rank-hours for both arms{' of each' if len(own) > 1 else ''}{more}"


def _from_to(hours: Sequence[float]) -> str:
    shown = [f"{value:,.2f}" if value >= 0.1 else f"{value:.2g}" for value in (min(hours), max(hours))]
    return " to ".join(dict.fromkeys(shown))


def _rounded(value: float | None) -> float | int | None:
    """Round a measured number as a table shows it."""
    return None if value is None else round(value, 1) if value < 10 else round(value)


def shown_arm(value: object) -> str:
    """Format a value as a table shows it."""
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _level(key: str, value: object) -> str:
    """Format an arm's value: for a job key, None is a value; for what follows from the job, it means unknown."""
    return "none" if value is None and "." in key else shown_arm(value)


def print_verified(verified: Verified) -> None:
    """Print what `verify` has found."""
    runs, points = f"{verified['mlflow_runs']:,} MLflow runs", f"{verified['points']:,} points"
    counted = f"{verified['trials']:,} trials, {runs}, {points}, {verified['checkpoints']:,} checkpoints"
    faults = len(verified["faults"])
    echo(f"verify: {'ok' if verified['ok'] else f'{faults} fault' + 's' * (faults > 1)}, {counted}")
    for kind, texts in (("fault", verified["faults"]), ("note", verified["notes"])):
        for text in texts:
            echo(f"{kind}: {visible(text)}")


def print_exported(done: Exported) -> None:
    """Print what was exported, and where to."""
    echo(f"{done['chosen']}: step {done['step']:,}, {done['width']} columns")
    for remark in done["remarks"]:
        echo(f"note: {visible(remark)}")
    echo(f"encoder: {done['path']}")
    code = f"SentenceTransformer({done['path']!r}{', trust_remote_code=True' if done['trust_remote_code'] else ''})"
    echo(f"load it: {code}, or as {Path(done['path']) / 'README.md'} says")


TRIAL = ("trial", "stage", "arm", "seed", "state", "step", "metric", "attempts", "failure")
"""Columns of the trials of a run."""


def print_status(status: Status, run: str) -> None:
    """Say how a run stands. run: as a command takes it."""
    if len(status["trials"]) <= MOST_ROWS:
        print_whole(_status_table(status, status["trials"], run))
        return
    rows = table_lines(TRIAL, map(_trial_cells, status["trials"]))
    echo("\n".join([*map(visible, _status_lines(status, run)), *rows]))


def _status_table(status: Status, trials: Sequence[TrialStatus], run: str) -> RenderableType:
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in TRIAL:
        table.add_column(name, overflow="fold")
    for trial in trials:
        table.add_row(*map(cell, _trial_cells(trial)))
    more = len(status["trials"]) - len(trials)
    return Group(*map(cell, _status_lines(status, run)), table, *([cell(f"and {more:,} more")] if more else []))


def _status_lines(status: Status, run: str) -> list[str]:
    counts = "  ".join(f"{state} {count}" for state, count in status["counts"].items() if count)
    if status["driver"]:
        driven = f"driven by {status['driver']['holder'].partition(' [')[0]}"
    else:
        over = status["state"] == "done"
        driven = f"driven by nobody{'' if over else f'; continue it: orchestrator resume {run}'}"
    parts = [part for part in (status["state"], counts, driven) if part]
    return [f"{status['sweep']}: {'; '.join(parts)}", *([status["waits"]] if status["waits"] else [])]


def _trial_cells(trial: TrialStatus) -> tuple[object, ...]:
    metric = "-" if trial["metric"] is None else f"{trial['metric']:.4f}"
    failure = trial["failure"] or ""
    if failure and trial["message"]:
        failure += f": {trial['message']}"
    first = (trial["id"], trial["stage"], trial["arm"], trial["seed"], trial["state"], trial["step"] or 0, metric)
    return (*first, trial["attempts"], failure)


def watch_status(look: Callable[[], Status | None], run: str) -> None:
    """Show how a run stands while it may change by itself, or until nobody tells any more; of many trials those that
    run or have just changed. run: as a command takes it."""
    import time

    from rich.live import Live

    def goes_on(status: Status) -> bool:
        """Return whether the run may change by itself: a planned run has no driver yet; a running one without a driver
        was killed."""
        is_driven = status["state"] in ("queued", "running") and status["driver"] is not None
        return status["state"] == "planned" or is_driven

    status = look()
    if status is None:
        return
    with Live(Harmless(_status_table(status, _watched(status, status), run)), refresh_per_second=1) as live:
        while (latest := look()) is not None:
            live.update(Harmless(_status_table(latest, _watched(latest, status), run)))
            status = latest
            if not goes_on(status):
                return
            time.sleep(2)


def _watched(status: Status, before: Status) -> list[TrialStatus]:
    """Choose the trials to show: all, or of many those that run and those that have changed."""
    trials: list[TrialStatus] = status["trials"]
    if len(trials) <= MOST_WATCHED:
        return trials
    known = {trial["id"]: trial for trial in before["trials"]}
    moving = [trial for trial in trials if trial["state"] == "running" or trial != known.get(trial["id"])]
    return moving[:MOST_WATCHED]
