"""All that was read of one run, and how values of different sources are compared."""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypedDict

from pydantic import JsonValue

from orchestrator.ledger import Attempt, Frozen, Point, Run, Suggestion, Trial
from orchestrator.run_dir.folder import as_argument
from orchestrator.system.display import counted
from orchestrator.tracking import MlflowRun
from orchestrator.tracking.arms import ArmRun, is_of_arm

__all__ = ["DiskRecord", "Facts", "Finding", "PointKey", "beside", "counted", "other_keys", "same"]

PointKey = tuple[str, int]
"""Key and step of a point."""


class DiskCheckpoint(TypedDict):
    """A checkpoint in a trial's folder, and what is wrong with it."""

    name: str
    step: int
    fault: str | None


class DiskRecord(TypedDict):
    """What a trial's folder holds, as `python -m jobs.artifacts.audit` says."""

    trial: str
    job: JsonValue
    result: JsonValue
    rows: str | None
    points: list[tuple[str, int, float]]
    repeated: int
    torn: int
    missing: int
    checkpoints: list[DiskCheckpoint]
    quarantine: list[str]
    leftovers: list[str]
    faults: list[str]


@dataclass(frozen=True)
class Finding:
    """Something that is wrong, and what mends it: a command, or what a person must do."""

    what: str
    remedy: str

    def __str__(self) -> str:
        return f"{self.what}; {self.remedy}"


@dataclass(frozen=True)
class Facts:
    """All that was read of one run."""

    folder: str
    """The run, as a person names it."""

    run: Run
    trials: dict[str, Trial]
    attempts: Mapping[str, list[Attempt]]
    points: Mapping[str, dict[PointKey, Point]]
    suggestions: list[Suggestion]
    frozen: dict[str, Frozen]
    unprojected: set[str]
    """Trials whose state MLflow does not have."""
    waiting: Mapping[str, set[PointKey]]
    """Points that MLflow does not have, by trial."""
    tracked: list[MlflowRun]
    """MLflow's runs, as `tracking.runs_of` gives them, but for those that somebody deleted there."""
    deleted: set[str]
    """Ids of those."""
    arms: Mapping[str, ArmRun]
    """What MLflow's runs of the arms are to say, by label; empty where no version with such runs wrote to MLflow."""
    of_arms: Mapping[str, str]
    """Arms by the ids of the runs that the ledger has noted as theirs."""
    user_code: str | None
    """Digest of the user's code as it lies in the run; None where there is none, or none that can be read."""
    disk: dict[str, DiskRecord] | None
    """What `python -m jobs.artifacts.audit` says, by trial; None when the trials do not lie on this disk."""

    def within(self, name: str) -> str:
        """Return the address of `name` in the run: before the query, where the run has one."""
        head, mark, query = self.folder.partition("?")
        return f"{head}/{name}{mark}{query}"

    @property
    def resume(self) -> str:
        """The command that continues the run."""
        return f"orchestrator resume {as_argument(self.folder)}"

    @property
    def again(self) -> str:
        """The command that begins the sweep anew."""
        return beside(self.folder)

    @property
    def restore(self) -> str:
        """What remains where the ledger contradicts itself."""
        return f"no command mends that: put back a copy of the ledger from before, or begin anew: {self.again}"

    @property
    def metric(self) -> str:
        """Key of the sweep's metric."""
        return str(self.run.sweep["metric"]["name"])

    @property
    def started(self) -> list[Trial]:
        """Trials that have been attempted."""
        return [trial for trial in self.trials.values() if trial.attempts]

    @cached_property
    def nested(self) -> dict[str, list[MlflowRun]]:
        """MLflow's nested runs by trial."""
        of_trial = defaultdict(list)
        for run in self.tracked:
            if run["kind"] != "sweep" and not is_of_arm(run["kind"], run["run_id"], self.of_arms):
                of_trial[str(run["trial"])].append(run)
        return dict(of_trial)

    @cached_property
    def runs_of_arms(self) -> dict[str, list[MlflowRun]]:
        """MLflow's runs of arms by label."""
        of_arm = defaultdict(list)
        for run in self.tracked:
            if is_of_arm(run["kind"], run["run_id"], self.of_arms):
                of_arm[self.of_arms.get(run["run_id"]) or run["tags"].get("arm", "")].append(run)
        return dict(of_arm)

    @cached_property
    def pairs(self) -> list[tuple[Trial, MlflowRun]]:
        """Trials that have been attempted with their MLflow run, where there is exactly one."""
        return [(trial, runs[0]) for trial in self.started if len(runs := self.nested.get(trial.id, [])) == 1]

    @cached_property
    def folders(self) -> list[tuple[Trial, DiskRecord]]:
        """Trials with what their folder holds, where there is one."""
        return [(trial, self.disk[trial.id]) for trial in self.trials.values() if self.disk and trial.id in self.disk]


def beside(folder: str) -> str:
    """Return the command that begins a sweep anew beside a run, which stays as it is."""
    head, mark, query = folder.partition("?")
    return f"orchestrator launch SWEEP --into {as_argument(f'{head}-2{mark}{query}')}"


def same(a: object, b: object) -> bool:
    """Return whether both are equal, where NaN equals NaN."""
    return bool(a == b) or (isinstance(a, float) and isinstance(b, float) and a != a and b != b)  # noqa: PLR0124


def other_keys(ours: object, theirs: object) -> list[str]:
    """List the keys with different values in two JSON objects, NaN equal to NaN."""
    if not (isinstance(ours, dict) and isinstance(theirs, dict)):
        return [] if ours == theirs else ["(everything)"]
    texts = [{key: json.dumps(value, sort_keys=True) for key, value in side.items()} for side in (ours, theirs)]
    return sorted(key for key in ours.keys() | theirs.keys() if texts[0].get(key) != texts[1].get(key))
