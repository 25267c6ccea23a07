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
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NotRequired, TypedDict

import jobs
from jobs.config import canonical
from jobs.config.identity import FORMER
from jobs.config.user_code import UserCode
from jobs.core import provenance as computing
from jobs.core.paths import BASE, is_folder_here
from orchestrator.ledger import Attempt, Ledger, Trial
from orchestrator.ledger.stored import AttemptRecord, CodeRecord, JsonObject, ProvenanceRecord, SourceRecord
from orchestrator.run_dir.folder import RunError
from orchestrator.sweep.components import distributions
from orchestrator.sweep.plan import Plan, examined_of, missing_encoders, once_of_seeds
from orchestrator.system import scratch

PACKAGE = Path(jobs.__file__).parent

OTHER_ORIGIN = computing.OTHER_ORIGIN


class Expected(CodeRecord, total=False):
    """What every rank compares with what it loads."""

    data: dict[str, SourceRecord]
    weights: dict[str, SourceRecord]
    directory: str | None
    """Where the run began: relative paths are looked for there first."""
    archive: bytes
    """The user's code."""


class Group(CodeRecord):
    """Code behind the numbers of trials."""

    accepted: bool
    trials: list[str]


class _Answer(TypedDict):
    """What `python -m jobs.data` prints of a job."""

    warnings: list[str]
    data: dict[str, SourceRecord]
    weights: SourceRecord | None
    guide: NotRequired[SourceRecord | None]
    reading: NotRequired[JsonObject]


class DataFault(RunError):
    """The data of a sweep cannot be used, or are not those that the run began with. Exit code 2."""


class OtherCode(RunError):
    """The run was begun with other code or versions, and nobody has accepted these. Exit code 2."""


@dataclass(frozen=True)
class Examined:
    """What a look at the data of a plan says."""

    notes: list[str]
    """What a person should know of the data."""

    record: ProvenanceRecord
    """`code`, `files`, `versions`, `data` and `weights`, as a run keeps them."""


def examine(
    plan: Plan,
    known: ProvenanceRecord | None = None,
    *,
    meanwhile: Callable[[], object] = lambda: None,
    code: UserCode | None = None,
) -> Examined:
    """Read what the jobs of a plan use, in a process of its own, as that needs torch and the driver does not. code: of
    the user.

    known: what the run has recorded. Then the data are not checked again, and only read where their files are not the
    same as then. meanwhile: what to do while the other process reads. Raises DataFault for what cannot be used.
    """
    _refuse_missing(plan)
    whole = [job.model_dump(mode="json") for job in examined_of(plan)]
    distinct = {_looked_at(job): job for job in whole}
    with scratch.folder("data") as temporary:
        paths = [temporary / f"job{number}.json" for number in range(len(distinct))]
        for path, job in zip(paths, distinct.values(), strict=True):
            path.write_text(canonical(job))
        command = [sys.executable, "-m", "jobs.data", *map(str, paths)]
        if known is not None:
            (temporary / "known").write_text(json.dumps({"data": known["data"], "weights": known["weights"]}))
            command += ["--known", str(temporary / "known")]
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as reading:
            try:
                now = today(code, distributions(plan.sweep, code))
                meanwhile()
                answered, refused = reading.communicate()
            except BaseException:  # of every kind, a Ctrl-C among them
                reading.kill()
                raise
    if reading.returncode != 0:
        raise DataFault(refused.strip().removeprefix("error: "))
    answers: list[_Answer] = [json.loads(line) for line in answered.splitlines()]
    data: dict[str, SourceRecord] = {}
    weights: dict[str, SourceRecord] = {}
    for answer, job in zip(answers, distinct.values(), strict=True):
        data |= answer["data"]
        if (guide := answer.get("guide")) is not None:
            weights.setdefault(job["loss"]["guide"], guide)
        if answer["weights"] is not None:
            weights[job["model"]["name"]] = answer["weights"]
    if known is None:
        _refuse_arms_alike(plan, {key: answer["reading"] for key, answer in zip(distinct, answers, strict=True)})
    notes = once_of_seeds(plan, (warning for answer in answers for warning in answer["warnings"]))
    return Examined(notes, {**now, "data": data, "weights": weights})


def _looked_at(job: Mapping[str, Any]) -> str:
    """Return the parts of a job that decide what a look at it says, as JSON."""
    sections = {key: job[key] for key in ("task", "data", "batch", "evaluate", "model")}
    own = {key: job["loss"][key] for key in ("name", "mask_duplicates", "guide")} | {"augment": job["augment"]}
    labelled = {"labels": job["loss"]["options"]} if job["data"]["scores"] is not None else {}
    return canonical(sections | own | labelled)


def _refuse_arms_alike(plan: Plan, readings: Mapping[str, JsonObject]) -> None:
    """Raise DataFault where what two arms compare is the same once their encoder's folder has its say. readings: by
    `_looked_at`; of an arm that is always tuned in what decides its reading there may be none."""
    first: dict[str, tuple[str, str]] = {}
    for arm in plan.arms:
        job = arm.config(stage="confirm", seed=0).model_dump(mode="json", exclude={"execution"})
        read, own = readings.get(_looked_at(job)), canonical(job)
        if read is None:
            continue
        for key in FORMER:
            section, _, name = key.partition(".")
            del job[section][name]
        label, whole = first.setdefault(canonical([job, read]), (arm.label, own))
        if whole != own:
            names = ["pooling"] if job["task"] == "image" else [key.rpartition(".")[2] for key in FORMER]
            meaning = " and ".join(f"{name} = {read[name]!r}" for name in names)
            also = "" if job["task"] == "image" else ", or a length not given,"
            raise DataFault(
                f"arms {label} and {arm.label} are the same: both have {meaning}, as 'auto'{also} means what the "
                "encoder's folder says, or else the usual; remove one of them"
            )


def _refuse_missing(plan: Plan) -> None:
    """Raise DataFault where encoders that were trained with the seeds of the plan are not there."""
    if lines := missing_encoders(plan):
        raise DataFault("\n".join(lines))


def look_at_encoders(plan: Plan) -> list[str]:
    """Return what a person should know of the encoders of a plan that are folders here. Raises DataFault for an encoder
    that cannot do what its job asks of it. Without such a folder nothing is started."""
    _refuse_missing(plan)
    jobs_ = [
        job for job in examined_of(plan) if any(map(is_folder_here, filter(None, (job.model.name, job.loss.guide))))
    ]
    named = {"task": True, "data": True, "model": True, "loss": {"guide"}}
    distinct = {canonical(job.model_dump(mode="json", include=named)): job for job in jobs_}  # type: ignore[arg-type]
    if not distinct:
        return []
    with scratch.folder("encoders") as temporary:
        paths = [temporary / f"job{number}.json" for number in range(len(distinct))]
        for path, job in zip(paths, distinct.values(), strict=True):
            path.write_text(job.model_dump_json())
        command = [sys.executable, "-m", "jobs.data", "--encoders", *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataFault(done.stderr.strip().removeprefix("error: "))
    return once_of_seeds(plan, (note for line in done.stdout.splitlines() for note in json.loads(line)["warnings"]))


def today(code: UserCode | None = None, also: Iterable[str] = ()) -> ProvenanceRecord:
    """Return code and versions that would compute now. code: of the user. also: distributions of its components."""
    now: ProvenanceRecord = {
        "code": computing.code_digest(PACKAGE),
        "files": dict(computing.code_files(PACKAGE)),
        "versions": computing.versions(also),
    }
    if code is not None:
        now |= {"user_code": code.digest, "user_files": dict(code.digests)}
    return now


def refuse_other_data(recorded: ProvenanceRecord, now: ProvenanceRecord) -> None:
    """Raise DataFault where rows or weights are not those that the run began with, naming them and both digests, or
    are not there any more."""
    different = []
    kinds = ((recorded["data"], now["data"]), (_comparable(recorded), now["weights"]))
    for entries, entries_now in kinds:
        for what, entry in entries.items():
            # What stands before an entry's name, for a person.
            label = "" if entries is recorded["data"] else f"{entry.get('key', 'model.name')} = "
            there = entries_now.get(what)
            if there is None:
                different.append(computing.gone(f"{label}{what}"))
            elif there["digest"] != entry["digest"]:
                different.append(computing.changed(f"{label}{what}", entry["digest"], there["digest"]))
    if different:
        raise DataFault("\n".join(different))


def _comparable(recorded: ProvenanceRecord) -> dict[str, SourceRecord]:
    """Return the weights that were recorded with the names of the files that count; before, others counted as well."""
    return {what: entry for what, entry in recorded["weights"].items() if "names" in entry}


def refuse_other_code(recorded: ProvenanceRecord, now: ProvenanceRecord, *, resume: str) -> None:
    """Raise OtherCode unless this code and these versions began the run, or were accepted since. resume: the command
    that continues the run."""
    if is_known(recorded, now):
        return
    lines = []
    if recorded["code"] != now["code"]:
        names = [f"jobs/{name}" for name in computing.differing_files(recorded["files"], now["files"])]
        lines.append(f"  code {recorded['code']} -> {now['code']}: {computing.listed(names) or 'jobs/'} differ")
    before, after = (side.get("user_code", "none") for side in (recorded, now))
    if before != after:
        names = computing.differing_files(recorded.get("user_files", {}), now.get("user_files", {}))
        lines.append(f"  your code {before[:12]} -> {after[:12]}: {computing.listed(names)} differ")
    for name in computing.other_versions(_versions(recorded), _versions(now)):
        before, after = (_versions(side).get(name, "none") for side in (recorded, now))
        lines.append(f"  {name} {before} -> {after}")
    raise OtherCode(
        "this run was begun with other code, so its numbers would come from two programs:\n"
        + "\n".join(lines)
        + f"\n  continue all the same, which the report then says: {resume} --accept-code"
        "\n  or go back to the code and the versions of then"
    )


def is_known(recorded: ProvenanceRecord, now: CodeRecord) -> bool:
    """Return whether numbers of the run come, or may come, from this code and these versions."""
    return any(
        entry["code"] == now["code"]
        and entry.get("user_code") == now.get("user_code")
        and not computing.other_versions(_versions(entry), _versions(now))
        for entry in all_code(recorded)
    )


def all_code(recorded: ProvenanceRecord) -> Iterator[CodeRecord]:
    """Yield the code that the run began with, and what was accepted since, each with `code` and `versions`."""
    yield recorded
    yield from recorded.get("accepted", ())


def write_down(ledger: Ledger, now: ProvenanceRecord) -> None:
    """Record, under the lease, what the run computes with from now on: all of it where nothing was recorded, and code
    that has just been accepted."""
    recorded = ledger.run.provenance
    if recorded is None:
        begun = ledger.trials() and any(trial.attempts for trial in ledger.trials())
        ledger.set_run(provenance={**now, "late": True} if begun else now)
        return
    kept = _comparable(recorded)
    for what in now["weights"].keys() - kept.keys():  # of a run that was begun before they were, or as they are now
        key = now["weights"][what].get("key", "model.name")
        ledger.event("weights_recorded", f"the files of {key} = {what} are recorded from now on")
    update: ProvenanceRecord = {**recorded, "weights": {**now["weights"], **kept}}
    if update != recorded:
        ledger.set_run(provenance=update)
    accept(ledger, now)


def accept(ledger: Ledger, now: ProvenanceRecord) -> None:
    """Record, under the lease, that numbers of the run may come from this code and these versions."""
    recorded = ledger.run.provenance
    if recorded is None or is_known(recorded, now):
        return
    entry: CodeRecord = {**_computed(now), "time": time.time()}
    ledger.set_run(provenance={**recorded, "accepted": [*recorded.get("accepted", ()), entry]})
    ledger.event("code_accepted", _accepted_words(recorded, now))


def _computed(record: CodeRecord) -> CodeRecord:
    """Return `code` and `versions`, and `user_code` where there is any."""
    computed: CodeRecord = {"code": record.get("code"), "versions": record.get("versions")}
    if own := record.get("user_code"):
        computed["user_code"] = own
    return computed


def _versions(record: CodeRecord) -> dict[str, str]:
    return record.get("versions") or {}


def accept_what_ran(ledger: Ledger) -> None:
    """Accept, under the lease, today's code and versions if attempts of the run have run them: of a finished run they
    were not accepted in time."""
    now = today()
    if any(_is_same(attempt.provenance or {}, now) for attempt in ledger.attempts()):
        accept(ledger, now)


def _accepted_words(recorded: ProvenanceRecord, now: ProvenanceRecord) -> str:
    other = [
        f"{name} {_versions(now).get(name, 'none')} was accepted beside {_versions(recorded).get(name, 'none')}"
        for name in computing.other_versions(_versions(recorded), _versions(now))
    ]
    if recorded["code"] != now["code"]:
        other.insert(0, f"code {now['code']} was accepted beside {recorded['code']}")
    before, after = (side.get("user_code", "none") for side in (recorded, now))
    if before != after:
        other.insert(0, f"your code {after[:12]} was accepted beside {before[:12]}")
    return "; ".join(other)


def expected(record: ProvenanceRecord, directory: str | None, code: UserCode | None = None) -> Expected:
    """Return what every rank compares with what it loads, the folder that it looks in, and the user's code."""
    kept: Expected = {
        "code": record["code"],
        "versions": record["versions"],
        "data": record["data"],
        "weights": record["weights"],
        "directory": directory,
    }
    if code is not None:
        kept |= {"user_code": code.digest, "archive": code.archive()}
    return kept


def of_attempt(expected: Expected, loaded: AttemptRecord | None = None) -> AttemptRecord:
    """Return the digests of an attempt: those of its session, but for what its ranks have reported as loaded."""
    record: AttemptRecord = {
        **_computed(expected),
        "data": {what: entry["digest"] for what, entry in expected["data"].items()},
        "weights": {what: entry["digest"] for what, entry in expected["weights"].items()},
    }
    if loaded is not None:
        record["data"] |= loaded.get("data", {})
        record["weights"] |= loaded.get("weights", {})
        record["code"], record["versions"] = loaded["code"], loaded["versions"]
    return record


def folder_of(environment: Mapping[str, object]) -> str | None:
    """Return where a run began, as its environment has it; None where it is of no use here: what a job takes along lies
    in the job's own folder, which goes with it."""
    directory = environment.get("directory")
    return directory if isinstance(directory, str) and not environment.get("submitted") else None


def held(recorded: ProvenanceRecord | None) -> dict[str, str]:
    """Return environment variables that let the encoders' names mean what they meant where the run began."""
    weights = {} if recorded is None else _comparable(recorded)
    kept = {name: {"revision": entry["revision"], "names": entry["names"]} for name, entry in weights.items()}
    return {computing.HELD: canonical(kept)} if kept else {}


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


def behind(begun: ProvenanceRecord | None, trials: Iterable[Trial], attempts: Iterable[Attempt]) -> list[Group]:
    """Return the code behind the numbers of trials, the code that the run began with first: each with `code` and
    `versions` (None where they were not recorded), the ids of its `trials`, and whether it was `accepted` later.

    A trial stands behind every code that one of its attempts ran: the last goes on from where another stopped.
    begun: `provenance` of the run.
    """
    known: ProvenanceRecord = begun or {}
    ran: dict[str, list[Attempt]] = {}
    for attempt in attempts:
        ran.setdefault(attempt.trial, []).append(attempt)
    groups: dict[str, Group] = {}
    for trial in trials:
        computed = (_computed(attempt.provenance or {}) for attempt in ran.get(trial.id, ()))
        for key, code in {canonical(code): code for code in computed}.items():
            groups.setdefault(key, {**code, "accepted": False, "trials": []})["trials"].append(trial.id)
    for group in groups.values():
        group["accepted"] = not _is_same(known, group) and any(
            _is_same(entry, group) for entry in known.get("accepted") or ()
        )

    def order(group: Group) -> tuple[bool, bool]:
        return group["accepted"], group["code"] is not None and not _is_same(known, group)

    return sorted(groups.values(), key=order)


def _is_same(entry: CodeRecord, other: CodeRecord) -> bool:
    return all(entry.get(key) == other.get(key) for key in ("code", "versions", "user_code"))
