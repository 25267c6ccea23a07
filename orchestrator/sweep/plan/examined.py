"""The jobs of a plan that stand for all others, where rows and encoders are looked at before anything runs."""

from __future__ import annotations

import contextlib
import itertools
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from pydantic import JsonValue, ValidationError

from jobs.config import OF_SEED, JobConfig
from jobs.core.paths import is_folder_here
from orchestrator.sweep.model import Arm
from orchestrator.sweep.space import conditions

if TYPE_CHECKING:
    from orchestrator.sweep.plan import Plan


def jobs_of(plan: Plan) -> list[JobConfig]:
    """Build the job of every arm and stage, as it stands before anything is tuned."""
    stages = ["tune", "confirm"] if plan.sweep.tune else ["confirm"]
    return [arm.config(stage=stage, seed=0) for arm in plan.arms for stage in stages]


def examined_of(plan: Plan) -> list[JobConfig]:
    """Build jobs that stand for all that a plan may train, as far as rows and encoder are concerned: those of
    `jobs_of`, with the ends of what their arms are tuned over."""
    stages = ["tune", "confirm"] if plan.sweep.tune else ["confirm"]
    return [
        arm.config(stage=stage, seed=seed, settings=ends)
        for arm in plan.arms
        for ends in _ends(plan, arm)
        for stage in stages
        for seed in _seeds(plan, arm, stage)
    ]


def _seeds(plan: Plan, arm: Arm, stage: str) -> Sequence[int]:
    """List the seeds of a stage whose jobs read different encoders; one for all where no seed decides it."""
    if arm.encoder_of_seed is None:
        return (0,)
    return plan.tune_seeds if stage == "tune" else plan.confirm_seeds


def as_named(job: dict[str, JsonValue], arm: Arm) -> dict[str, JsonValue]:
    """Return an arm's job with the name of its encoder as it was given, before any seed was put into it."""
    name, model = arm.encoder_of_seed, job["model"]
    return job if name is None or not isinstance(model, dict) else {**job, "model": {**model, "name": name}}


def once_of_seeds(plan: Plan, notes: Iterable[str]) -> list[str]:
    """List notes, once each; what is said alike of the encoders of all seeds is said once, of their name with
    `{seed}`."""
    of_name: dict[str, str] = {}
    seeds_of: Counter[str] = Counter()
    for template in {arm.encoder_of_seed for arm in plan.arms} - {None}:
        assert template is not None
        names = {template.replace(OF_SEED, str(seed)) for seed in {*plan.tune_seeds, *plan.confirm_seeds}}
        of_name |= {f"'{name}'": f"'{template}'" for name in names}
        seeds_of[f"'{template}'"] = len(names)
    said: dict[str, list[str]] = {}
    template_in: dict[str, str] = {}
    for note in dict.fromkeys(notes):
        name = next((name for name in of_name if name in note), None)
        text = note if name is None else note.replace(name, of_name[name])
        said.setdefault(text, []).append(note)
        template_in[text] = "" if name is None else of_name[name]
    return [one for text, own in said.items() for one in ([text] if len(own) == seeds_of[template_in[text]] else own)]


def missing_encoders(plan: Plan) -> list[str]:
    """Say which encoders of which seeds are not there, and what to do about it."""
    lines = []
    for arm in plan.arms:
        template = arm.encoder_of_seed
        for stage, seeds in (("tune", plan.tune_seeds), ("confirm", plan.confirm_seeds)) if template else ():
            assert template is not None
            lacking = [seed for seed in seeds if not is_folder_here(template.replace(OF_SEED, str(seed)))]
            if lacking:
                lines.append(
                    f"arm {arm.label}: model.name = '{template}' is no folder for the {stage} seeds "
                    f"{', '.join(map(str, lacking))}; export them, as orchestrator export RUN ARM '{template}' does "
                    f"for all confirm seeds of an arm, or name the seeds that are there in {stage}.seeds"
                )
    return lines


def _ends(plan: Plan, arm: Arm) -> list[dict[str, JsonValue]]:
    """Choose settings of an arm that stand for all, in the keys that decide what is read."""
    space = plan.sweep.tune.space if plan.sweep.tune else {}
    deciding = [
        key
        for key in space
        if key.startswith("data.") or key in ("model.name", "model.pooling", "model.dropout", "loss.guide")
    ]
    keys = {key: space[key] for chosen in deciding for key in (chosen, *conditions.above(space, chosen))}
    ends = {key: own.ends for key, own in keys.items()}
    names = ends.get("model.name", [None])
    most = max(16 // len(names), 6)  # for each encoder, so that none is left out
    combinations = []
    for settings in itertools.chain.from_iterable(
        conditions.some_combinations(keys, arm.values, ends | {"model.name": [name]}, most=most) for name in names
    ):
        with contextlib.suppress(ValidationError):  # it may be a job with other settings of what else is tuned
            arm.config(stage="confirm", seed=0, settings=settings)
            combinations.append(settings)
    return combinations or [{}]
