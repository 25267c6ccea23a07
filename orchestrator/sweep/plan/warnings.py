"""What a reader of a plan should know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from jobs.config import JobConfig
from orchestrator.sweep import Arm, Sweep
from orchestrator.sweep.plan.seeds import REPEATS_AS_UNITS, Basis, family_of
from orchestrator.sweep.space.grid import Grid
from orchestrator.system.display import listed


def warnings(
    sweep: Sweep, arms: Sequence[Arm], suggestions: Mapping[str, int], contrasts: int, basis: Basis
) -> list[str]:
    """List what is odd about a plan. contrasts: how many are tested."""
    from orchestrator.statistics import levels, power

    repeats = sweep.tune.repeats if sweep.tune else 1
    notes, seeds = [*sweep.notes], repeats if repeats >= REPEATS_AS_UNITS else basis["n"]
    reachable = power.smallest_p(seeds)
    level = levels(family_of(sweep, contrasts), max(sweep.metric.smallest_differences)).difference
    if is_seedless(arms):
        notes.append(
            "nothing differs between seeds, as nothing is trained: there is no test, and the report says what other "
            "rows might have shown"
        )
    elif contrasts and reachable > level:
        notes.append(
            f"{seeds} confirm seeds cannot reach p <= {level:g} (smallest: {reachable:.3g}); "
            f"use confirm.seeds = {power.UNKNOWN}, or 'enough'"
        )
    needed, sd, by = basis.get("needed"), basis.get("sd"), basis.get("metric", sweep.metric.name)
    smallest = next(metric.smallest_difference for metric in sweep.metric.every if metric.name == by)
    if sd is not None and smallest > 0 and (needed is None or needed > seeds):
        many = f"more than {power.MOST:,}" if needed is None else f"{needed:,}"
        what = "confirm seeds are the most that 'enough' gives"
        if repeats > 1:
            what += f" in a multiple of tune.repeats = {repeats}"
        notes.append(
            f"{seeds} {what}; {many} would find "
            f"{smallest:g}{f' {by}' * bool(sweep.metric.also)} four times in five, by the sd of {sd:.4g} in "
            f"{basis.get('source')}: give a number, or a larger metric.smallest_difference"
        )
    for metric in sweep.metric.every:
        if metric.smallest_difference == 0:
            of, on = (f" of {metric.name}", f" on {metric.name}") if sweep.metric.also else ("", "")
            notes.append(
                f"metric.smallest_difference{of} is 0, so 'equivalent' can never be the verdict{on}; "
                "give the smallest difference worth having"
            )
    if sweep.tune and not sweep.tune.defaults:
        notes.append("tune.defaults is empty: give the published setting, so that every arm tries it first")
    jobs = [arm.config(stage="confirm", seed=0) for arm in arms]
    if sweep.tune is None and any(job.loss.name != jobs[0].loss.name for job in jobs):
        notes.append(
            "losses are compared without a tune stage: their gradients differ in scale, "
            "so one learning rate favours one of them; add [tune]"
        )
    notes += _unequal(jobs)
    if len(set(suggestions.values())) > 1:
        sizes = listed([f"{label} {count}" for label, count in suggestions.items()], separator=", ")
        notes.append(f"grids differ in size, and so does what is tried in each arm: {sizes}")
    notes += _sampled(sweep, arms, suggestions)
    notes += _alike(sweep, arms, suggestions)
    if jobs[0].is_function:
        notes.append(own_loop(jobs[0].task))
    if sweep.tune:
        notes += dict.fromkeys(note for job in jobs for note in _tuned_on(job, sweep))
    return notes


def _tuned_on(job: JobConfig, sweep: Sweep) -> Iterable[str]:
    """Yield a warning for each set that the verdict is by and that tuning looks at too, by its source."""
    tune, confirm = (job.data.sets(stage) for stage in ("tune", "confirm"))
    seen = _looked_at(tune, [sweep.metric.every[0].name])
    for name in _looked_at(confirm, [metric.name for metric in sweep.metric.every]):
        for other in seen:
            if tune[other] == confirm[name]:
                rows = [
                    f"data.{stage}{f'.{own}' if own else ''}" for stage, own in (("tune", other), ("confirm", name))
                ]
                yield f"{' and '.join(rows)} are the same rows: the verdict favours what was tuned on them"


def _looked_at(sets: Mapping[str, str], metrics: Sequence[str]) -> list[str]:
    """List the sets that metrics are of: one, or all where a metric is of all."""
    named = {metric.partition("/")[0] for metric in metrics}
    return [name for name in sets if name in named or not named.issubset(sets)]


def is_seedless(arms: Sequence[Arm]) -> bool:
    """Return whether nothing in any arm differs between seeds, as far as that is known before it runs."""
    return all(arm.is_seedless for arm in arms)


def own_loop(task: str) -> str:
    """Return the warning about numbers that a training loop of the user's own has reported."""
    return f"task = {task!r} is a training loop of your own: whether its numbers depend on ranks is its own business"


def _sampled(sweep: Sweep, arms: Sequence[Arm], suggestions: Mapping[str, int]) -> Iterable[str]:
    """Yield the warning about grids that are tried only in part."""
    tune = sweep.tune
    if tune is None or tune.sampler != "grid":
        return
    sizes = {arm.label: Grid(tune.space, arm.values).size for arm in arms if arm.label in suggestions}
    parts = {label: f"{suggestions[label]:,} of {size:,}" for label, size in sizes.items() if suggestions[label] < size}
    if not parts:
        return
    how = "drawn by tune.seed; tune.trials says how many"
    if len(parts) == len(sizes) and len(set(parts.values())) == 1:
        yield f"{next(iter(parts.values()))} points of the grid are tried in each arm, {how}"
    else:
        tried = listed([f"{part} in {label}" for label, part in parts.items()], separator=", ")
        yield f"of the points of the grid are tried {tried}, {how}"


def _alike(sweep: Sweep, arms: Sequence[Arm], suggestions: Mapping[str, int]) -> Iterable[str]:
    """Yield the warning about repeats of a tuning that try the same points: then only the seeds differ."""
    tune = sweep.tune
    if tune is None or tune.repeats == 1 or any(space.choices is None for space in tune.space.values()):
        return
    if all(Grid(tune.space, arm.values).size <= suggestions[arm.label] for arm in arms if arm.label in suggestions):
        yield (
            "tune.trials is enough to try every point in each repeat, so repeats differ in their seeds alone; that is "
            "how tuning varies only where these points are all that one would try"
        )


def _unequal(jobs: Sequence[JobConfig]) -> Iterable[str]:
    """Yield the warning about unequal budgets. Budgets that are equal in samples, steps or seconds count as equal."""
    declared = {job.budget for job in jobs}
    if jobs[0].is_function:
        if len(declared) > 1:
            yield "arms declare different budgets"
        return
    if any(job.steps is None for job in jobs):
        if len(declared) > 1:
            kinds = {f"{job.budget.seconds:g} s" if job.steps is None else f"{job.steps:,} steps" for job in jobs}
            yield f"arms train for {', '.join(sorted(kinds))}: their budgets are not equal"
        return
    seen = {job.steps * job.batch.size for job in jobs if job.steps is not None}
    if max(seen) - min(seen) <= max(job.batch.size for job in jobs):  # rounding to whole batches
        return
    pairs = f"{min(seen):,} to {max(seen):,} pairs"
    if len(declared) == 1 and jobs[0].budget.steps is not None:
        yield f"budgets are equal in steps, {jobs[0].steps:,}: arms see {pairs}"
    else:
        yield f"arms see {pairs}: their budgets are not equal"
