"""What a run's numbers come from: code, versions, data and weights, recorded when it begins and compared ever after.

Data or weights that are no longer those of the run end a session before any trial; other code or versions do too,
unless somebody accepts them, which is then said wherever the run's numbers stand. A run that was begun before this was
recorded continues, and reads `code not recorded`.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jobs
from jobs import provenance as computing
from jobs.config import canonical
from jobs.paths import BASE
from orchestrator import scratch
from orchestrator.ledger import Attempt, Ledger, Trial
from orchestrator.plan import Plan, jobs_of
from orchestrator.runs import RunError

PACKAGE = Path(jobs.__file__).parent

Json = dict[str, Any]


class DataFault(RunError):
    """The data of a sweep cannot be used, or are not those that the run began with. Exit code 2."""


class OtherCode(RunError):
    """The run was begun with other code or versions, and nobody has accepted these. Exit code 2."""


@dataclass(frozen=True)
class Examined:
    """What a look at the data of a plan says."""

    notes: list[str]
    """What a person should know of the data."""

    record: Json
    """`code`, `files`, `versions`, `data` and `weights`, as a run keeps them."""


def examine(plan: Plan, known: Json | None = None) -> Examined:
    """Read what the jobs of a plan use, in a process of its own, as that needs torch and the driver does not.

    known: what the run has recorded. Then the data are not checked again, and only read where their files are not the
    same as then. Raises DataFault for what cannot be used.
    """
    whole = [job.model_dump(mode="json") for job in jobs_of(plan)]
    distinct = {
        canonical({key: job[key] for key in ("task", "data", "batch", "evaluate", "model")}): job for job in whole
    }
    with scratch.folder("data") as place:
        paths = [place / f"job{number}.json" for number in range(len(distinct))]
        for path, job in zip(paths, distinct.values(), strict=True):
            path.write_text(canonical(job))
        command = [sys.executable, "-m", "jobs.data", *map(str, paths)]
        if known is not None:
            (place / "known").write_text(json.dumps({"data": known["data"], "weights": known["weights"]}))
            command += ["--known", str(place / "known")]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataFault(done.stderr.strip().removeprefix("error: "))
    answers = [json.loads(line) for line in done.stdout.splitlines()]
    data: Json = {}
    weights: Json = {}
    for answer, job in zip(answers, distinct.values(), strict=True):
        data |= answer["data"]
        if answer["weights"] is not None:
            weights[job["model"]["name"]] = answer["weights"]
    notes = list(dict.fromkeys(warning for answer in answers for warning in answer["warnings"]))
    return Examined(notes, {**today(), "data": data, "weights": weights})


def today() -> Json:
    """The code and the versions that would compute now."""
    return {
        "code": computing.code_digest(PACKAGE),
        "files": dict(computing.code_files(PACKAGE)),
        "versions": computing.versions(),
    }


def refuse_other_data(recorded: Json, now: Json) -> None:
    """Raise DataFault where rows or weights are not those that the run began with, naming them and both digests."""
    different = [
        computing.changed(str(what), before[what]["digest"], entry["digest"])
        for before, after in ((recorded["data"], now["data"]), (recorded["weights"], now["weights"]))
        for what, entry in after.items()
        if what in before and before[what]["digest"] != entry["digest"]
    ]
    if different:
        raise DataFault("\n".join(different))


def refuse_other_code(recorded: Json, now: Json, *, resume: str) -> None:
    """Raise OtherCode unless this code and these versions began the run, or were accepted since. resume: the command
    that continues the run."""
    if is_known(recorded, now):
        return
    lines = []
    if recorded["code"] != now["code"]:
        names = [f"jobs/{name}" for name in computing.differing_files(recorded["files"], now["files"])]
        lines.append(f"  code {recorded['code']} -> {now['code']}: {computing.listed(names) or 'jobs/'} differ")
    for name in sorted(recorded["versions"].keys() | now["versions"].keys()):
        before, after = (side["versions"].get(name, "none") for side in (recorded, now))
        if before != after:
            lines.append(f"  {name} {before} -> {after}")
    raise OtherCode(
        "this run was begun with other code, so its numbers would come from two programs:\n"
        + "\n".join(lines)
        + f"\n  continue all the same, which the report then says: {resume} --accept-code"
        "\n  or go back to the code and the versions of then"
    )


def is_known(recorded: Json, now: Json) -> bool:
    """Whether numbers of the run come, or may come, from this code and these versions."""
    return any(entry["code"] == now["code"] and entry["versions"] == now["versions"] for entry in all_code(recorded))


def all_code(recorded: Json) -> Iterator[Json]:
    """The code that the run began with, and what was accepted since, each with `code` and `versions`."""
    yield recorded
    yield from recorded.get("accepted", ())


def write_down(ledger: Ledger, now: Json) -> None:
    """Record, under the lease, what the run computes with from now on: all of it where nothing was recorded, and code
    that has just been accepted."""
    recorded = ledger.run.provenance
    if recorded is None:
        begun = ledger.trials() and any(trial.attempts for trial in ledger.trials())
        ledger.set_run(provenance={**now, "late": True} if begun else now)
        return
    update: Json = {**recorded, "weights": {**now["weights"], **recorded["weights"]}}
    if not is_known(recorded, now):
        entry = {"code": now["code"], "versions": now["versions"], "time": time.time()}
        update["accepted"] = [*recorded.get("accepted", ()), entry]
        ledger.event("code_accepted", f"code {now['code']} was accepted beside {recorded['code']}")
    if update != recorded:
        ledger.set_run(provenance=update)


def expected(record: Json, directory: str | None) -> Json:
    """What every rank compares with what it loads, and the folder in which it looks for it."""
    kept = ("code", "versions", "data", "weights")
    return {key: record[key] for key in kept} | {"directory": directory}


def of_attempt(expected: Json, loaded: Json | None = None) -> Json:
    """The digests of an attempt: those of its session, but for what its ranks have said that they loaded."""
    record: Json = {"code": expected["code"], "versions": expected["versions"]}
    for kind in ("data", "weights"):
        record[kind] = {what: entry["digest"] for what, entry in expected[kind].items()}
        record[kind] |= (loaded or {}).get(kind, {})
    return record | {key: loaded[key] for key in ("code", "versions") if loaded is not None}


def folder_of(environment: Mapping[str, Any]) -> str | None:
    """Where a run began, as its environment has it; None where it is of no use here: what a job takes along lies in the
    job's own folder, which goes with it."""
    return None if environment.get("submitted") else environment.get("directory")


@contextlib.contextmanager
def looked_for_in(directory: str | None) -> Iterator[None]:
    """Have relative paths of data and encoders mean what they meant where the run began, also in what is started."""
    before = os.environ.get(BASE)
    if directory is not None:
        os.environ[BASE] = directory
    try:
        yield
    finally:
        os.environ.pop(BASE, None)
        if before is not None:
            os.environ[BASE] = before


def behind(ledger: Ledger, trials: Sequence[Trial]) -> list[Json]:
    """The code behind the numbers of trials, the code that the run began with first: each with `code` and `versions`
    (None where they were not recorded), the ids of its `trials`, and whether it was `accepted` later."""
    attempts: dict[str, Attempt] = {attempt.trial: attempt for attempt in ledger.attempts()}  # the last of each stays
    groups: dict[str, Json] = {}
    for trial in trials:
        if trial.id in attempts:
            recorded = attempts[trial.id].provenance or {}
            code = {"code": recorded.get("code"), "versions": recorded.get("versions")}
            groups.setdefault(canonical(code), {**code, "accepted": False, "trials": []})["trials"].append(trial.id)
    begun = ledger.run.provenance or {}
    for group in groups.values():
        group["accepted"] = any(
            entry["code"] == group["code"] and entry["versions"] == group["versions"]
            for entry in begun.get("accepted", ())
        )
    return sorted(groups.values(), key=lambda group: group["accepted"])
