"""What can be wrong with a sweep: arms that are no jobs, and parts that contradict one another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue, ValidationError

from jobs.config import ConfigIssue, JobConfig, canonical, field_names, issues, nearest
from jobs.config.after_sections import at_dims, without_dims, without_set
from jobs.config.components import builtin_names, is_class, is_import_path, is_option, joins, measures, metric_name
from jobs.config.job import USUAL_JUDGES
from orchestrator.sweep.labels import label_issues
from orchestrator.sweep.limits import (
    LARGEST_SEED,
    LONGEST_NAME,
    MOST_ARMS,
    MOST_LOOKED_AT,
    MOST_OF_A_NODE,
    MOST_SEEDS,
    count_issues,
    number_issues,
    repeated_issues,
)
from orchestrator.sweep.model import Arm, SeedLooks, Sweep, arms_of, cross
from orchestrator.sweep.model.metric import OneMetric, usual_mode
from orchestrator.sweep.space import space_issues
from orchestrator.sweep.values import alternatives, identity, list_keys, merged, shown

METRICS = {task: measures(judge, {}) for task, judge in USUAL_JUDGES.items()}
"""What an evaluation of each task measures, unless it has another judge."""

TRAINING_METRICS = ("train/loss", "train/infonce")

FIXED = {"stage": "the plan sets it", "seed": "seeds belong to [confirm]", "task": "must be the same in every arm"}
"""Job keys that arms do not set, and why."""


def job_issues(raw: dict[str, JsonValue]) -> list[ConfigIssue]:
    """Find the faults of every arm as a job, even when another part of the file is wrong."""
    job, compare, named = raw.get("job"), raw.get("compare", {}), raw.get("arm", [])
    if not isinstance(job, dict):
        return []
    all_issues: list[ConfigIssue] = list(_own_task_issues(raw))
    for key in ("stage", "seed"):
        if key in job:
            all_issues.append(ConfigIssue(f"job.{key}", repr(job[key]), "is set by the plan; remove it"))
    job = {key: value for key, value in job.items() if key not in ("stage", "seed")}
    factors = _factors(compare)
    usable = cross(job, factors, _tables(named, alone=True), _tables(raw.get("exclude")))
    if len(usable) > MOST_ARMS:  # which crowd_issues and contradictions say
        usable = []
    known = list(field_names(JobConfig))
    for table, settings in (("compare", compare), *((f"arm {a.label!r}", a.settings) for a in usable if named)):
        for key in settings if isinstance(settings, dict) else ():
            if key in FIXED:
                all_issues.append(ConfigIssue(f"{table}: {key}", "", FIXED[key]))
            elif key not in known and not is_option(key):
                all_issues.append(ConfigIssue(f"{table}: {key}", "", f"is no key of a job{nearest(key, known)}"))
    all_issues += _flat_lists(factors)
    stages = ["tune", "confirm"] if raw.get("tune") is not None else ["confirm"]
    unknown = {issue.key.rpartition(": ")[2] for issue in all_issues}
    for arm, stage in itertools.product(usable, stages):
        whole = {k: v for k, v in arm.settings.items() if k not in unknown}
        try:
            Arm(arm.label, whole, merged(job, whole)).config(stage=stage, seed=0)
        except ValidationError as error:
            for issue in issues(error, JobConfig, "job."):
                of_arm = issue.key.removeprefix("job.") in arm.settings or issue.key == "job"
                suffix = f" (arm {arm.label!r})" if of_arm and arm.settings else ""
                all_issues.append(ConfigIssue(issue.key, issue.found, issue.expected + suffix))
    return all_issues


def _factors(compare: JsonValue) -> dict[str, list[JsonValue]]:
    """Return the factors and their levels; none where something in [compare] is no list of levels."""
    tables = compare if isinstance(compare, dict) else {}
    factors = {key: levels for key, levels in tables.items() if isinstance(levels, list) and levels}
    return factors if len(factors) == len(tables) else {}


def _tables(listed: JsonValue, *, alone: bool = False) -> list[dict[str, JsonValue]]:
    """Return the tables of a list. alone: none where something else is in it."""
    items = listed if isinstance(listed, list) else []
    tables = [item for item in items if isinstance(item, dict)]
    return [] if alone and len(tables) < len(items) else tables


def _flat_lists(compare: Mapping[str, list[JsonValue]]) -> Iterable[ConfigIssue]:
    """Yield an issue for each key that is a list itself and has its levels given as one list."""
    for key, levels in compare.items():
        if key in list_keys() and not any(level is None or isinstance(level, list) for level in levels):
            expected = f"each level of {key} is a list itself: [{shown(levels)}, ...]"
            yield ConfigIssue(f"compare.{key}", shown(levels), expected)


def contradictions(sweep: Sweep) -> list[ConfigIssue]:
    """Find what is wrong with a sweep although every part is well formed."""
    if beyond := list(count_issues(sweep)):
        return beyond
    arms = arms_of(sweep)
    if len(arms) > MOST_ARMS:
        return [
            ConfigIssue("compare", "", f"makes {len(arms):,} arms; at most {MOST_ARMS:,}: exclude more, or tune a key")
        ]
    if beyond := [*label_issues(sweep.arm, arms), *number_issues(sweep, arms)]:
        return beyond
    if excluded := list(_exclude_issues(sweep, arms)):
        return excluded
    if len(arms) < 2:
        return list(_arm_issues(sweep, arms))
    return [
        *repeated_issues(sweep),
        *_arm_issues(sweep, arms),
        *_seed_issues(sweep, is_seedless=all(arm.is_seedless for arm in arms)),
        *_swap_issues(sweep),
        *_metric_issues(sweep, arms),
        *_resource_issues(sweep, arms),
        *(space_issues(sweep.tune, arms) if sweep.tune else ()),
    ]


def _exclude_issues(sweep: Sweep, arms: list[Arm]) -> Iterable[ConfigIssue]:
    """Yield the faults of exclusions: each must leave something out, and no arm may be left without the baseline it is
    compared with."""
    levels_of = {key: set(map(identity, levels)) for key, levels in sweep.compare.items()}
    for index, exclusion in enumerate(sweep.exclude):
        where, known = f"exclude[{index}]", list(sweep.compare)
        if not exclusion:
            yield ConfigIssue(where, "{}", "is empty; name the levels that are left out, such as { 'batch.size' = 16 }")
        for key, levels in exclusion.items():
            if key not in sweep.compare:
                what = f"is no factor of [compare]{nearest(key, known)}"
                yield ConfigIssue(f"{where}.{key}", "", what if known else "needs factors, crossed in [compare]")
                continue
            for level in alternatives(key, levels):
                if identity(level) not in levels_of[key]:
                    named = ", ".join(map(shown, sweep.compare[key]))
                    yield ConfigIssue(
                        f"{where}.{key}", _level_text(level), f"is no level of {key}, which has [{named}]"
                    )
    if not sweep.exclude or not sweep.compare:
        return
    first, levels = next(iter(sweep.compare.items()))
    others = {arm.label: canonical({k: v for k, v in arm.settings.items() if k != first}) for arm in arms}
    baselines = {others[arm.label] for arm in arms if arm.settings[first] == levels[0]}
    for arm in arms:
        if others[arm.label] not in baselines:
            expected = (
                f"has no baseline: {first} = {shown(levels[0])} is excluded beside it; exclude both, put another "
                f"level of {first} first, or name arms with [[arm]]"
            )
            yield ConfigIssue("exclude", repr(arm.label), expected)


def _arm_issues(sweep: Sweep, arms: list[Arm]) -> Iterable[ConfigIssue]:
    if len(arms) < 2:
        yield ConfigIssue(
            "compare", "", "a comparison needs two arms or more; give [compare] factors or two [[arm]] tables"
        )
    elif (first := next(iter(sweep.compare), None)) and len({canonical(arm.settings[first]) for arm in arms}) < 2:
        expected = (
            f"is the first factor, whose levels are compared, and all arms have {shown(arms[0].settings[first])}; "
            "put a factor first of which two levels or more are left"
        )
        yield ConfigIssue(f"compare.{first}", "", expected)
    labels = [arm.label for arm in arms]
    for arm in arms:
        if not arm.label.strip():
            yield ConfigIssue("arm", json.dumps(arm.settings), "every [[arm]] needs a label")
        elif labels.count(arm.label) > 1:
            yield ConfigIssue("arm", repr(arm.label), "this label is given twice")
    seen: dict[str, str] = {}
    for arm in arms:
        same = seen.setdefault(arm.config(stage="confirm", seed=0).id, arm.label)
        if same != arm.label:
            yield ConfigIssue("compare", repr(arm.label), f"is the same trial as arm {same!r}; remove one of the two")


def _seed_issues(sweep: Sweep, *, is_seedless: bool) -> Iterable[ConfigIssue]:
    tuned = set(sweep.tune.seed_list) if sweep.tune else set()
    given = {"tune.seeds": sweep.tune.seed_list if sweep.tune else [], "confirm.seeds": sweep.confirm.seeds}
    for key, seeds in given.items():
        if isinstance(seeds, list):
            if sweep.tune and key == "tune.seeds" and not seeds:
                yield ConfigIssue(
                    key, "[]", "names no seed, so that nothing would be tuned; give one, such as [0], or a count"
                )
            if len(set(seeds)) < len(seeds):
                yield ConfigIssue(key, repr(seeds), "names a seed twice")
            if any(not 0 <= seed <= LARGEST_SEED for seed in seeds):
                yield ConfigIssue(key, repr(seeds), f"seeds are whole numbers from 0 to {LARGEST_SEED}")
    seeds = sweep.confirm.seeds
    if not isinstance(seeds, list) and tuned and max(tuned) > LARGEST_SEED - MOST_SEEDS:
        expected = f"leaves no room for confirm seeds, which follow it up to {LARGEST_SEED}; give smaller ones"
        yield ConfigIssue("tune.seeds", repr(max(tuned)), expected)
    if isinstance(seeds, list) and (both := sorted(tuned & set(seeds))):
        free = max([*tuned, *seeds]) + 1
        yield ConfigIssue(
            "confirm.seeds", repr(seeds), f"seeds {both} are tuned on too; confirm on fresh ones, such as {free}"
        )
    if isinstance(seeds, SeedLooks):
        yield from _look_issues(seeds.looks)
    if sweep.tune and sweep.tune.repeats > 1:
        yield from _repeat_issues(sweep.tune.repeats, seeds)
    count = len(seeds) if isinstance(seeds, list) else seeds
    if is_seedless and count != 1:
        yield ConfigIssue(
            "confirm.seeds",
            repr(seeds.looks if isinstance(seeds, SeedLooks) else seeds),
            "nothing differs between seeds, as nothing is trained and every encoder is a folder: copies of one number "
            "are no test; set confirm.seeds = 1, and the report says what other rows might have shown. For seeds, name "
            "encoders that were trained with them: model.name = 'encoders/{seed}'",
        )
    if not is_seedless and isinstance(count, int) and count < 2:
        yield ConfigIssue("confirm.seeds", repr(seeds), "an interval needs two seeds or more; 'enough' chooses")


def _repeat_issues(repeats: int, seeds: object) -> Iterable[ConfigIssue]:
    if isinstance(seeds, SeedLooks):
        expected = "do not go together with looks; give a number of confirm seeds, or leave tune.repeats out"
        yield ConfigIssue("tune.repeats", str(repeats), expected)
    count = len(seeds) if isinstance(seeds, list) else seeds
    if isinstance(count, int) and count % repeats:
        more = -(-count // repeats) * repeats
        expected = f"is no multiple of tune.repeats = {repeats}, whose settings share the seeds; give {more}"
        yield ConfigIssue("confirm.seeds", f"{count} seeds", expected)


def _swap_issues(sweep: Sweep) -> Iterable[ConfigIssue]:
    """Yield what does not go together with arms that are trained at each other's setting; that they tune a key in
    common, the plan checks."""
    if not sweep.confirm.swap:
        return
    key, found, out = "confirm.swap", "true", "or leave confirm.swap out"
    if sweep.tune is None:
        expected = "trains each arm at the setting that another one was tuned to, and nothing is tuned; add [tune]"
        yield ConfigIssue(key, found, f"{expected}, {out}")
    elif sweep.tune.repeats > 1:
        expected = f"takes one setting of each arm, and tune.repeats = {sweep.tune.repeats} makes several"
        yield ConfigIssue(key, found, f"{expected}; set tune.repeats = 1, {out}")
    if isinstance(sweep.confirm.seeds, SeedLooks):
        expected = "takes the same seeds in all arms, and with looks some end early; give confirm.seeds = 10"
        yield ConfigIssue(key, found, f"{expected}, {out}")


def _look_issues(looks: list[int]) -> Iterable[ConfigIssue]:
    key, found = "confirm.seeds.looks", repr(looks[:MOST_LOOKED_AT])
    if len(looks) < 2:
        yield ConfigIssue(key, found, "are two or more, such as [7, 10, 14]; one number is confirm.seeds = 10")
    elif sorted(set(looks)) != looks or looks[0] < 1:
        yield ConfigIssue(key, found, "are numbers of seeds that increase from look to look, such as [7, 10, 14]")
    elif looks[-1] > MOST_LOOKED_AT:
        yield ConfigIssue(key, found, f"the last look has at most {MOST_LOOKED_AT} seeds, such as [7, 10, 14]")


def _resource_issues(sweep: Sweep, arms: list[Arm]) -> Iterable[ConfigIssue]:
    """Yield the faults of [resources]: NCCL refuses two ranks on one GPU, and a rank uses a GPU or a part of it."""
    gpus, key = sweep.resources.gpus_per_rank, "resources.gpus_per_rank"
    for name, count in (("resources.cpus_per_rank", sweep.resources.cpus_per_rank), (key, gpus)):
        if count > MOST_OF_A_NODE:
            yield ConfigIssue(name, f"{count:.3g}", f"no machine has so many; give at most {MOST_OF_A_NODE:,}")
    kind = sweep.resources.accelerator_type
    if kind is not None and (not kind.strip() or not kind.isprintable() or len(kind) > LONGEST_NAME):
        expected = 'is no type of GPU as Ray names it, such as "A100"; leave it out for any GPU'
        yield ConfigIssue("resources.accelerator_type", ascii(kind[:LONGEST_NAME]), expected)
    if gpus > 1 and gpus != int(gpus):
        yield ConfigIssue(key, f"{gpus:g}", f"is no whole number of GPUs and no share of one; give {int(gpus)}, or 0.5")
    elif 0 < gpus < 1:
        ranks = max(arm.config(stage="confirm", seed=0).execution.ranks for arm in arms)
        if ranks > 1:
            expected = f"several ranks cannot share a GPU, and there are {ranks}; give 1, or job.execution.ranks = 1"
            yield ConfigIssue(key, f"{gpus:g}", expected)


def _metric_issues(sweep: Sweep, arms: list[Arm]) -> Iterable[ConfigIssue]:
    several = len(sweep.metric.every) > 1
    for number, metric in enumerate(sweep.metric.every):
        key = f"metric[{number}]" if several else "metric"
        if metric.name in [before.name for before in sweep.metric.every[:number]]:
            yield ConfigIssue(
                f"{key}.name", repr(metric.name), "is named twice; each metric is judged once, remove one"
            )
        else:
            yield from _one_metric_issues(metric, key, sweep, arms)


def _one_metric_issues(metric: OneMetric, key: str, sweep: Sweep, arms: list[Arm]) -> Iterable[ConfigIssue]:
    name, task = metric.name, arms[0].config(stage="confirm", seed=0).task
    jobs = [arm.config(stage="confirm", seed=0) for arm in arms]
    if jobs[0].is_function:
        return  # what it reports, only it knows
    own = [metric_name(path) for path in jobs[0].evaluate.metrics]
    dims = _shared_dims(jobs)
    of_arms = [_measured(job, own, "confirm") for job in jobs]
    measured = [*itertools.chain.from_iterable(of_arms)]
    in_tune = [*itertools.chain.from_iterable(_measured(job, own, "tune") for job in jobs)]
    known: tuple[str, ...] = tuple(dict.fromkeys(measured))
    known = (*known, *at_dims(known, dims))
    if name in TRAINING_METRICS or name == "loss":
        varied = set(sweep.compare) | {key for arm in sweep.arm for key in arm if key != "label"}
        varied |= set(sweep.tune.space) if sweep.tune else set()
        if blame := sorted(key for key in varied if key.startswith(("loss.", "batch."))):
            yield ConfigIssue(
                f"{key}.name",
                repr(name),
                f"a training loss cannot be compared while {', '.join(blame)} varies: its scale depends on them; "
                + (f"use {known[0]!r}" if known else f"use one that {task} measures"),
            )
            return
        known = (*known, *TRAINING_METRICS)
    if not measured:
        return  # what it measures, only it knows
    if name not in known:
        expected = f"is not measured in task {task!r}, which knows {', '.join(known)}"
        yield ConfigIssue(f"{key}.name", repr(name), expected + nearest(name, list(known)))
    elif lacking := [
        (arm, there)
        for arm, there in zip(arms, of_arms, strict=True)
        if there and name not in (*there, *at_dims(there, dims), *TRAINING_METRICS, "loss")
    ]:
        arm, there = lacking[0]
        expected = (
            f"is not measured in arm {arm.label!r}, which has {', '.join(there)}: all arms are judged by one metric"
        )
        yield ConfigIssue(f"{key}.name", repr(name), expected)
    elif (
        sweep.tune
        and metric is sweep.metric
        and in_tune
        and name not in (*in_tune, *at_dims(in_tune, dims), *TRAINING_METRICS, "loss")
    ):
        expected = (
            "is not measured on data.tune, which tuning looks at; it has "
            f"{', '.join(dict.fromkeys(in_tune))}: give data.tune the sets of data.confirm, or put another metric first"
        )
        yield ConfigIssue(f"{key}.name", repr(name), expected)
    if metric.mode != usual_mode(name) and not metric.mode_is_meant:
        way = "lower" if usual_mode(name) == "min" else "higher"
        yield ConfigIssue(
            f"{key}.mode",
            repr(metric.mode),
            f"{name} is better {way}; leave mode out, or say that this is no mistake: mode_is_meant = true",
        )
    if without_dims(without_set(name)) == "probe_accuracy" and not all(
        a.config(stage="confirm", seed=0).evaluate.probe for a in arms
    ):
        yield ConfigIssue(f"{key}.name", repr(name), "needs job.evaluate.probe = true")


def _measured(job: JobConfig, further: Sequence[str], stage: str) -> list[str]:
    """Name what the judges of a job measure in a stage, with the user's own metrics; nothing of a task or a judge of
    the user's own, which alone know."""
    of_sets = job.judged_alone(stage) if job.task in METRICS else {}
    if any(is_import_path(alone.judge) for alone in of_sets.values()):
        return []
    own = {name: [*measures(one.judge, one.evaluate.judge_options), *further] for name, one in of_sets.items()}
    if "" in own or not own:
        return own.get("", [])
    names = [f"{name}/{metric}" for name, metrics in own.items() for metric in metrics]
    if len(own) > 1 and len({canonical([one.judge, one.evaluate.judge_options]) for one in of_sets.values()}) == 1:
        joins = next(iter(of_sets.values())).judge in JOINING
        names += [f"{whole}/{metric}" for whole in ("mean", *(["all"] * joins)) for metric in next(iter(own.values()))]
    return names


JOINING = tuple(name for name in builtin_names("judge") if joins(name))
"""Judges that are asked about the rows of several sets together too."""


def _own_judge(job: Mapping[str, JsonValue]) -> str | None:
    """Return the judge of a job, as it is given, if it, or that of a set, is one of the user's own."""
    evaluate = job.get("evaluate")
    judge = evaluate.get("judge") if isinstance(evaluate, dict) else None
    of_sets = judge.values() if isinstance(judge, dict) else [judge]
    return next((own for own in of_sets if isinstance(own, str) and is_import_path(own)), None)


def _shared_dims(jobs: list[JobConfig]) -> list[int]:
    """List the numbers of columns that every arm is measured at."""
    return [d for d in jobs[0].evaluate.dims if all(d in job.evaluate.dims for job in jobs)]


def _own_task_issues(raw: dict[str, JsonValue]) -> Iterable[ConfigIssue]:
    """Yield the faults of a sweep in what only a task, or a judge, of the user's own needs."""
    tables = {key: value for key, value in raw.items() if isinstance(value, dict)}
    job, given = tables.get("job", {}), raw.get("metric", {})
    task, judge = str(job.get("task")), _own_judge(job)
    if (judge is None and task in METRICS) or not (is_import_path(task) or task in builtin_names("task")):
        return
    for number, metric in enumerate(given if isinstance(given, list) else [given]):
        if isinstance(metric, dict) and "mode" not in metric:
            key = f"metric[{number}]" if isinstance(given, list) else "metric"
            what = f"is missing: which way {metric.get('name')!r} is better, only {judge or task} knows"
            yield ConfigIssue(f"{key}.mode", "", what)
    if is_import_path(task) and not is_class(task) and (prune := tables.get("tune", {}).get("prune", "none")) != "none":
        expected = f"compares trials at steps that {task} does not promise to report; set prune = 'none'"
        yield ConfigIssue("tune.prune", repr(prune), expected)


def _level_text(level: JsonValue) -> str:
    return "none" if level is None else repr(level)
