"""Short trainings in processes of their own (`python -m jobs.workers.profile`), for each distinct cost of a plan."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from typing import TypedDict

from jobs.config import JobConfig, canonical
from orchestrator.preflight.estimate.model import PROBE, Known, cost
from orchestrator.run_dir.folder import RunError
from orchestrator.sweep.plan import Plan
from orchestrator.system.scratch import folder


class Took(TypedDict):
    """What `jobs.workers.profile` prints of a job."""

    start_s: float
    load_s: float
    first_step_s: float
    step_s: float
    steps: int
    evaluate_s: float
    evaluate_final_s: float
    peak_memory_mb: float


class ProbeFailed(RunError):
    """A job of an arm cannot be trained here; the text names the arm and why. Exit code 2."""


def probes(plan: Plan) -> dict[str, list[JobConfig]]:
    """List what has to be probed, by arm: a job for each stage, unless a job that costs the same is there already."""
    stages = ["tune", "confirm"] if plan.sweep.tune else ["confirm"]
    seen: set[str] = set()
    jobs: dict[str, list[JobConfig]] = {}
    for arm in plan.arms:
        for job in (arm.config(stage=stage, seed=0) for stage in stages):
            key = canonical([cost(job, plan.sweep.resources.gpus_per_rank), job.data.train, job.eval_split])
            if key not in seen:
                seen.add(key)
                jobs.setdefault(arm.label, []).append(job)
    return jobs


def probe(plan: Plan, *, tell: Callable[[str], None]) -> list[Known]:
    """Probe what has to be, one arm after the other on the whole machine; `tell` gets a line before each begins.

    Raises ProbeFailed.
    """
    wanted, known = probes(plan), []
    for number, (label, jobs) in enumerate(wanted.items(), 1):
        if jobs[0].is_function:
            raise ProbeFailed(
                f"arm {label} cannot be probed: task = '{jobs[0].task}' is a training loop of your own; plan without "
                "--probe tells the time of earlier runs"
            )
        tell(f"probing arm {label} ({number} of {len(wanted)})")
        for job, took in zip(jobs, _probed(label, jobs), strict=True):
            known.append(_known(job, plan.sweep.resources.gpus_per_rank, took))
    return known


def _probed(label: str, jobs: list[JobConfig]) -> list[Took]:
    with folder("probe") as scratch:
        paths = [scratch / f"job{number}.json" for number in range(len(jobs))]
        for path, job in zip(paths, jobs, strict=True):
            path.write_text(canonical(job.model_dump(mode="json")))
        command = [sys.executable, "-m", "jobs.workers.profile", *map(str, paths)]
        env = os.environ | {"TMPDIR": str(scratch)}  # what it leaves when it is killed goes with ours
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        error = re.search(r"^error: (.*)", done.stderr, re.M | re.S)
        why = error[1].strip() if error else f"the probe ended with status {done.returncode}"
        raise ProbeFailed(f"arm {label} cannot be probed: {why}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def _known(job: JobConfig, gpus_per_rank: float, took: Took) -> Known:
    evaluations_s = 2 * took["evaluate_final_s"] + (job.evaluate.times - 1) * took["evaluate_s"]
    warming_s = max(0.0, took["first_step_s"] - took["step_s"])
    return Known(
        job=job,
        gpus_per_rank=gpus_per_rank,
        training_s=took["step_s"] * took["steps"],
        samples=job.batch.size * took["steps"],
        rest_s=took["load_s"] + evaluations_s + warming_s,
        peak_memory_mb=took["peak_memory_mb"],
        origin=PROBE,
        start_s=took["start_s"],
    )
