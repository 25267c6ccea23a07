"""What can be wrong with a sweep: arms that are no jobs, and parts that contradict one another."""

from __future__ import annotations

import itertools
import json
from collections.abc import Iterable
from typing import Any

from pydantic import ValidationError

from jobs.config import Fault, JobConfig, faults, field_names, nearest
from orchestrator.sweep.model import Arm, Scalar, Space, Sweep, Tune, arms_of, cross, merged

METRICS = {
    "image": ("knn_accuracy", "probe_accuracy", "alignment", "uniformity"),
    "sentence": ("spearman", "alignment", "uniformity"),
}
"""What an evaluation of each task measures."""

TRAINING_METRICS = ("train/loss", "train/infonce")


def job_faults(raw: dict[str, Any]) -> list[Fault]:
    """Faults of every arm as a job, found even when another part of the file is wrong."""
    job, compare, named = raw.get("job"), raw.get("compare", {}), raw.get("arm", [])
    if not isinstance(job, dict):
        return []
    found: list[Fault] = []
    for key in ("stage", "seed"):
        if key in job:
            found.append(Fault(f"job.{key}", repr(job[key]), "is set by the plan; remove it"))
    job = {key: value for key, value in job.items() if key not in ("stage", "seed")}
    crossed = isinstance(compare, dict) and all(isinstance(v, list) and v for v in compare.values())
    tables = isinstance(named, list) and all(isinstance(arm, dict) for arm in named)
    usable = cross(job, compare if crossed else {}, named if tables else [])
    known = list(field_names(JobConfig))
    fixed = {"stage": "the plan sets it", "seed": "seeds belong to [confirm]", "task": "must be the same in every arm"}
    for place, settings in (("compare", compare), *((f"arm {a.label!r}", a.settings) for a in usable if named)):
        for key in settings if isinstance(settings, dict) else ():
            if key in fixed:
                found.append(Fault(f"{place}: {key}", "", fixed[key]))
            elif key not in known:
                found.append(Fault(f"{place}: {key}", "", f"is no key of a job{nearest(key, known)}"))
    stages = ["tune", "confirm"] if raw.get("tune") is not None else ["confirm"]
    unknown = {fault.key.rpartition(": ")[2] for fault in found}
    for arm, stage in itertools.product(usable, stages):
        whole = {k: v for k, v in arm.settings.items() if k not in unknown}
        try:
            Arm(arm.label, whole, merged(job, whole)).config(stage=stage, seed=0)
        except ValidationError as error:
            for fault in faults(error, JobConfig, "job."):
                of_arm = fault.key.removeprefix("job.") in arm.settings or fault.key == "job"
                suffix = f" (arm {arm.label!r})" if of_arm and arm.settings else ""
                found.append(Fault(fault.key, fault.found, fault.expected + suffix))
    return found


def contradictions(sweep: Sweep) -> list[Fault]:
    """What is wrong although every part is well formed."""
    arms = arms_of(sweep)
    return [
        *_arm_faults(arms),
        *_seed_faults(sweep),
        *_metric_faults(sweep, arms),
        *(_space_faults(sweep.tune, arms) if sweep.tune else ()),
    ]


def _arm_faults(arms: list[Arm]) -> Iterable[Fault]:
    if len(arms) < 2:
        yield Fault("compare", "", "a comparison needs two arms or more; give [compare] factors or two [[arm]] tables")
    labels = [arm.label for arm in arms]
    for arm in arms:
        if not arm.label:
            yield Fault("arm", json.dumps(arm.settings), "every [[arm]] needs a label")
        elif labels.count(arm.label) > 1:
            yield Fault("arm", repr(arm.label), "this label is given twice")
    seen: dict[str, str] = {}
    for arm in arms:
        same = seen.setdefault(arm.config(stage="confirm", seed=0).id, arm.label)
        if same != arm.label:
            yield Fault("compare", repr(arm.label), f"is the same trial as arm {same!r}; remove one of the two")


def _seed_faults(sweep: Sweep) -> Iterable[Fault]:
    tuned = set(sweep.tune.seed_list) if sweep.tune else set()
    given = {"tune.seeds": sweep.tune.seed_list if sweep.tune else [], "confirm.seeds": sweep.confirm.seeds}
    for key, seeds in given.items():
        if isinstance(seeds, list):
            if len(set(seeds)) < len(seeds):
                yield Fault(key, repr(seeds), "names a seed twice")
            if any(not 0 <= seed < 2**31 for seed in seeds):
                yield Fault(key, repr(seeds), "seeds are whole numbers from 0 to 2147483647")
    seeds = sweep.confirm.seeds
    if isinstance(seeds, list) and (both := sorted(tuned & set(seeds))):
        free = max([*tuned, *seeds]) + 1
        yield Fault(
            "confirm.seeds", repr(seeds), f"seeds {both} are tuned on too; confirm on fresh ones, such as {free}"
        )
    if isinstance(seeds, list | int) and (len(seeds) if isinstance(seeds, list) else seeds) < 2:
        yield Fault("confirm.seeds", repr(seeds), "an interval needs two seeds or more; 'enough' chooses")


def _metric_faults(sweep: Sweep, arms: list[Arm]) -> Iterable[Fault]:
    name, task = sweep.metric.name, arms[0].config(stage="confirm", seed=0).task
    known = METRICS[task]
    if name in TRAINING_METRICS or name == "loss":
        varied = set(sweep.compare) | {key for arm in sweep.arm for key in arm if key != "label"}
        varied |= set(sweep.tune.space) if sweep.tune else set()
        if blame := sorted(key for key in varied if key.startswith(("loss.", "batch."))):
            yield Fault(
                "metric.name",
                repr(name),
                f"a training loss cannot be compared while {', '.join(blame)} varies: its scale depends on them; "
                f"use {known[0]!r}",
            )
            return
        known = (*known, *TRAINING_METRICS)
    if name not in known:
        expected = f"is not measured in task {task!r}, which knows {', '.join(known)}"
        yield Fault("metric.name", repr(name), expected + nearest(name, list(known)))
    if name == "probe_accuracy" and not all(a.config(stage="confirm", seed=0).evaluate.probe for a in arms):
        yield Fault("metric.name", repr(name), "needs job.evaluate.probe = true")


def _space_faults(tune: Tune, arms: list[Arm]) -> Iterable[Fault]:
    known = list(field_names(JobConfig))
    closed = {
        "stage": "the plan sets it",
        "seed": "seeds are not tuned",
        "task": "the task is the question",
        "budget": "the budget is equal in every trial",
        "data": "every trial is judged on the same rows",
        "evaluate": "every trial is judged in the same way",
        "execution": "it does not change the result",
    }
    for key, space in tune.space.items():
        where = f"tune.space.{key}"
        if key not in known:
            yield Fault(where, "", f"is no key of a job{nearest(key, known)}")
        elif (section := key.partition(".")[0]) in closed:
            yield Fault(where, "", f"cannot be tuned: {closed[section]}")
        elif any(key in arm.settings for arm in arms):
            yield Fault(
                where, "", "is compared between the arms, so it cannot be tuned inside them; drop one of the two"
            )
        else:
            yield from _value_faults(where, key, space.ends, arms)
    for index, default in enumerate(tune.defaults):
        for key, value in default.items():
            where = f"tune.defaults[{index}].{key}"
            if key not in tune.space:
                yield Fault(where, repr(value), f"is not in tune.space{nearest(key, list(tune.space))}")
            elif not _inside(tune.space[key], value):
                yield Fault(where, repr(value), f"lies outside tune.space.{key}")
            else:
                yield from _value_faults(where, key, [value], arms)


def _inside(space: Space, value: Any) -> bool:
    if space.choices is not None:
        return value in space.choices
    if isinstance(value, bool) or not isinstance(value, int | float) or space.low is None or space.high is None:
        return False
    return space.low <= value <= space.high


def _value_faults(where: str, key: str, values: list[Scalar], arms: list[Arm]) -> Iterable[Fault]:
    for arm, value in itertools.product(arms, values):
        try:
            arm.config(stage="tune", seed=0, settings={key: value})
        except ValidationError as error:
            for fault in faults(error, JobConfig):
                yield Fault(where, repr(value), fault.expected)
