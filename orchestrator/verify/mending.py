"""Writes again what a trial's folder lacks and the ledger knows: job.json, result.json, points.jsonl, attempt.json.

The ledger is the truth of whatever was written into it, so a file that is gone, empty or damaged is written as the
ledger has it. What only the folder has, stays: points that the ledger does not have, and checkpoints, which nothing can
make again. A folder in place of a file is renamed and kept.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from pydantic import JsonValue

from jobs.artifacts.bucket import at
from jobs.artifacts.storage import Folder, write_whole
from jobs.artifacts.trial_dir import (
    ATTEMPT,
    JOB,
    POINTS,
    RESULT,
    newest_step,
    points_in,
    read_attempt,
    reason,
    standing,
)
from orchestrator.ledger import Attempt, Ledger, Point, Trial
from orchestrator.run_dir.bucket import RemoteError
from orchestrator.run_dir.folder import RunFolder
from orchestrator.verify.disk_checks import may_change, other_job
from orchestrator.verify.facts import counted, other_keys, same

RENEW_S = 5.0
"""How often the lease is renewed meanwhile."""

AT_ONCE = 16
"""Trials whose files are asked of a bucket at once."""

ENDED = ("done", "pruned")


def mend(folder: RunFolder, ledger: Ledger) -> list[str]:
    """Write again the files of started trials that the ledger knows better; returns a sentence for each.

    To be called under the lease, before any attempt is begun. Raises LedgerError.
    """
    attempts: dict[str, list[Attempt]] = {}
    for attempt in ledger.attempts():
        attempts.setdefault(attempt.trial, []).append(attempt)
    fences, renewed = ledger.fences(), time.monotonic()
    sentences: list[str] = []
    with ThreadPoolExecutor(1 if folder.remote is None else AT_ONCE) as pool:
        started = [trial for trial in ledger.trials() if trial.attempts]
        for mended in pool.map(
            lambda trial: _mend(folder, ledger, trial, attempts.get(trial.id, []), fences.get(trial.id)), started
        ):
            sentences += mended
            if time.monotonic() > renewed + RENEW_S:
                ledger.renew()
                renewed = time.monotonic()
    return sentences


@dataclass(frozen=True)
class _File:
    """A file of a trial, in a folder or in a bucket."""

    folder: RunFolder
    trial: str
    name: str

    @property
    def path(self) -> Path:
        return self.folder.trial(self.trial) / self.name

    def read(self) -> str | None:
        """Return its text; None if there is none. Raises ValueError for what is no text, OSError or RemoteError."""
        if self.folder.remote is None:
            if self.path.is_dir():
                raise ValueError(f"{self.path} is a folder")
            return self.path.read_text("utf-8") if self.path.exists() else None
        content = self.folder.remote.read(f"trials/{self.trial}/{self.name}")
        return None if content is None else content.decode("utf-8")

    def write(self, text: str) -> None:
        """Replace it in one piece."""
        if self.folder.remote is not None:
            self.folder.remote.put(f"trials/{self.trial}/{self.name}", text.encode())
            return
        if self.path.is_dir():
            self.quarantine()
        write_whole(self.path, text)

    def quarantine(self) -> None:
        """Rename it to NAME.bad-N."""
        if self.folder.remote is None:
            Folder(self.path.parent).quarantine(self.name)
            return
        remote, prefix = self.folder.remote, f"trials/{self.trial}"
        there = remote.files(prefix)
        free = next(name for number in itertools.count(1) if (name := f"{self.name}.bad-{number}") not in there)
        remote.put(f"{prefix}/{free}", remote.read(f"{prefix}/{self.name}") or b"")
        remote.delete(f"{prefix}/{self.name}")

    def newest_checkpoint(self) -> int:
        """Return the step of the trial's newest checkpoint, whatever its files hold; -1 where there is none."""
        return newest_step(at(self.path.parent, self.folder.trial_uri(self.trial)))


def _mend(
    folder: RunFolder, ledger: Ledger, trial: Trial, attempts: Sequence[Attempt], fence: tuple[int, int] | None
) -> list[str]:
    file, sentences = partial(_File, folder, trial.id), []
    for name, mended in (
        (JOB, partial(_job, file(JOB), trial)),
        (RESULT, partial(_result, file(RESULT), trial)),
        (POINTS, partial(_points, file(POINTS), trial, attempts, ledger)),
        (ATTEMPT, partial(_attempt, file(ATTEMPT), trial, fence)),
    ):
        try:
            if why := mended():
                sentences.append(f"trial {trial.id}: {name} {why}")
        except (OSError, RemoteError) as error:
            sentences.append(f"trial {trial.id}: {name} could not be looked at or written again: {error}")
    return sentences


def _job(file: _File, trial: Trial) -> str | None:
    """Write job.json again if it is missing or wrong, and return why; a trial that failed before it was loaded has
    none."""
    stored, damage = _json(file)
    if stored is None and damage is None and trial.state not in ENDED:
        return None
    if damage is None and other_job(trial.job, stored) is None:
        return None
    file.write(json.dumps(trial.job, indent=1))
    return _written("was missing" if stored is None and damage is None else damage or "was of another job")


def _result(file: _File, trial: Trial) -> str | None:
    stored, damage = _json(file)
    if trial.state == "done" and trial.result is not None:
        if damage is None and stored is not None and not other_keys(trial.result, stored):
            return None
        file.write(json.dumps(trial.result, indent=1))
        return _written("was missing" if stored is None and damage is None else damage or "was another one")
    if damage is None:
        return None
    file.quarantine()
    return f"{damage}; it is set aside, and the trial goes on from its newest checkpoint"


def _points(file: _File, trial: Trial, attempts: Sequence[Attempt], ledger: Ledger) -> str | None:
    """Write the file's points with the ledger's values, and those of the ledger that it lacks. Where a trial goes on,
    the ledger may be ahead of the file, which is then cut back to the newest checkpoint anyway: only points that the
    checkpoint has passed were there once."""
    try:
        there, fault, _ = points_in(file.read() or "")
        damage = None if fault is None else f"was damaged ({fault})"
    except ValueError as error:
        there, damage = [], f"could not be read ({reason(error)})"
    theirs = standing(there)
    goes_on = trial.state not in ENDED and damage is None and (theirs or not trial.step)
    ours = {(point.key, point.step): point for point in ledger.points(trial.id)}
    lacking = [at for at in ours if at not in theirs]
    if goes_on:
        passed = file.newest_checkpoint() if lacking else 0
        lacking = [at for at in lacking if at[1] <= passed]
    changed = [at for at, point in theirs.items() if _changed(point.value, ours.get(at), attempts)]
    if goes_on and not lacking:
        return None
    if not (damage or lacking or changed):
        return None
    merged = {at: asdict(point) for at, point in theirs.items()}
    merged |= {at: _line(point) for at, point in ours.items() if at in {*lacking, *changed}}
    lines = sorted(merged.values(), key=lambda line: int(line["step"]))
    file.write("".join(json.dumps(line) + "\n" for line in lines))
    other = [f"{counted(len(changed), 'point')} had another value"] if changed else []
    return _written(damage or ", ".join([f"lacked {counted(len(lacking), 'point')}", *other]))


def _changed(value: float, ours: Point | None, attempts: Sequence[Attempt]) -> bool:
    return ours is not None and not same(value, ours.value) and not may_change(attempts, ours.key)


def _line(point: Point) -> dict[str, str | int | float]:
    return {"key": point.key, "step": point.step, "value": point.value, "time": point.time}


def _attempt(file: _File, trial: Trial, fence: tuple[int, int] | None) -> str | None:
    if fence is None:
        return None
    try:
        text = file.read()
        if text is None and trial.state not in ENDED:
            return None
        if text is not None and read_attempt(text) is not None:
            return None
        damage = "was missing" if text is None else "was empty" if not text.strip() else "was damaged"
    except ValueError as error:
        damage = f"could not be read ({reason(error)})"
    token, number = fence
    file.write(json.dumps({"token": token, "attempt": number}))
    return _written(damage)


def _json(file: _File) -> tuple[JsonValue, str | None]:
    """Return what a file holds, None if it is not there; and what is wrong with it."""
    try:
        text = file.read()
        if text is None:
            return None, None
        return json.loads(text), None
    except (ValueError, RecursionError) as error:
        return None, f"could not be read ({reason(error)})"


def _written(why: str) -> str:
    return f"{why}; it is written again as the ledger has it"
