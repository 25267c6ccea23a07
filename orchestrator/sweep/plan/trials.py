"""Trials as they are planned, each with its id."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from functools import cached_property

from pydantic import JsonValue

from jobs.config import JobConfig, canonical, trial_id
from jobs.config.identity import default_values, first_version
from orchestrator.sweep.values import Settings


@dataclass(frozen=True)
class Planned:
    """One trial to be: an arm, settings, a seed and a stage, and the job that they make."""

    arm: str
    stage: str
    seed: int
    number: int | None
    """Suggestion number in the arm's tune stage; None in the others."""

    job: JobConfig
    """Of the stage `swap` as of the confirm stage, which it is to be compared with."""

    rules: int
    """Of the run."""

    defaults: Settings
    """Of job keys, as they were when the run was planned."""

    apart: bool = False
    """Whether another arm may ask for the same job: each then has a trial of its own (`apart_id`)."""

    code: str | None = None
    """Digest of the user's code that the run was planned with."""

    @property
    def record(self) -> dict[str, JsonValue]:
        """The job as the ledger keeps it: all of it, as plain JSON."""
        whole: dict[str, JsonValue] = self.job.model_dump(mode="json")
        return whole if self.rules > 1 else first_version(whole, default_values(JobConfig))

    @cached_property
    def id(self) -> str:
        """The trial's id."""
        of_job = trial_id(self.record, rules=self.rules, defaults=self.defaults, code=self.code)
        if self.stage == "swap":
            return swap_id(of_job, self.arm)
        return apart_id(of_job, self.arm) if self.apart else of_job


def apart_id(of_job: str, arm: str) -> str:
    """Compute the id of an arm's trial where the job of another arm has the same id. A row of the ledger, a run of
    MLflow and a value of the report belong to one arm: what two arms ask for is trained twice, bit for bit the same."""
    return hashlib.sha256(canonical([of_job, arm]).encode()).hexdigest()[:12]


def swap_id(of_job: str, arm: str) -> str:
    """Compute the id of an arm's trial at another one's setting. It is never that of a confirm trial, whichever arm may
    yet come to the same job."""
    return hashlib.sha256(canonical([of_job, arm, "swap"]).encode()).hexdigest()[:12]
