"""`python -m jobs.artifacts.audit TRIALS`: what the folders of trials hold, one line of JSON for each; read only.

TRIALS is a folder, or a URI of pyarrow.fs; of a bucket one trial after another is downloaded and then looked at.

    {"trial", "job", "result", "rows", "points": [[key, step, value]], "repeated", "torn", "missing",
     "checkpoints": [{"name", "step", "fault"}], "quarantine", "leftovers", "faults"}

Every checkpoint is read and hashed. Imports neither torch nor ray, so that it answers as fast as the disk does.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import TypedDict

from jobs.artifacts import manifest
from jobs.artifacts.bucket import Bucket
from jobs.artifacts.trial_dir import ATTEMPT, JOB, POINTS, POINTS_TOLD, RESULT, ROWS, points_in, read_attempt
from jobs.core.failures import words_of
from jobs.core.plain import visible_lines


class CheckpointRecord(TypedDict):
    """A checkpoint that has a manifest."""

    name: str
    step: int
    fault: str | None


class TrialRecord(TypedDict):
    """What `audit` says of a trial, a line of JSON."""

    trial: str
    job: object
    result: object
    rows: str | None
    points: list[tuple[str, int, float]]
    repeated: int
    torn: int
    missing: int
    checkpoints: list[CheckpointRecord]
    quarantine: list[str]
    leftovers: list[str]
    faults: list[str]


def main(arguments: list[str]) -> int:
    """Run with these command-line arguments. Returns the exit status."""
    if len(arguments) != 1 or arguments[0].startswith("-"):
        sys.stderr.write(
            "usage: python -m jobs.artifacts.audit TRIALS    where TRIALS is the folder of a run's trials, or a URI\n"
        )
        return 0 if arguments in (["-h"], ["--help"]) else 2
    (trials,) = arguments
    try:
        for record in _in_bucket(trials) if "://" in trials else _in_folder(Path(trials)):
            sys.stdout.write(json.dumps(record) + "\n")
    except (OSError, ValueError) as error:
        sys.stderr.write(visible_lines(f"error: {trials} is no folder of trials: {error}\n"))
        return 2
    return 0


def _in_folder(trials: Path) -> Iterator[TrialRecord]:
    for folder in sorted(path for path in trials.iterdir() if path.is_dir()):
        yield audit(folder)


def _in_bucket(uri: str) -> Iterator[TrialRecord]:
    """Audit each trial in a folder of its own, so that nothing is judged by what lies on this disk already."""
    with tempfile.TemporaryDirectory(prefix="audit-") as scratch:
        bucket = Bucket.of(uri, Path(scratch))
        for name in bucket.folders():
            with bucket.fetch(name) as folder:
                yield audit(folder) | {"trial": name}


def audit(folder: Path) -> TrialRecord:
    """Describe what one trial's folder holds, as plain JSON.

    `job` and `result` are None where there is none, `rows` is the sha256 of rows.parquet; `points` has the first of
    those that are there twice, `repeated` counts the others and `torn` is 1 where a kill cut the last line short;
    `missing` counts those that the newest sound checkpoint has passed and that are not there. The `fault` of a sound
    checkpoint is None; those that were set aside and those that were never committed are only named. `faults` says
    which files cannot be read or are damaged.
    """
    faults: list[str] = []
    _attempt(folder / ATTEMPT, faults)
    points, repeated, torn = _points(folder / POINTS, faults)
    checkpoints = folder / "checkpoints"
    names = sorted(path.name for path in checkpoints.iterdir()) if checkpoints.is_dir() else []
    complete = manifest.complete(checkpoints)
    # In a bucket it is the manifest that is renamed.
    bad = {path.parent.name for path in checkpoints.glob("*/manifest.bad-*")} - {path.name for path in complete}
    quarantine = [name for name in names if ".bad-" in name or name in bad]
    looked_at = [_checkpoint(path) for path in complete]
    counted = next(((step["step"], counted) for step, counted in looked_at if counted is not None), (0, 0))
    return {
        "trial": folder.name,
        "job": _json(folder / JOB, faults),
        "result": _json(folder / RESULT, faults),
        "rows": _sha256(folder / ROWS),
        "points": points,
        "repeated": repeated,
        "torn": torn,
        "missing": max(0, counted[1] - sum(step <= counted[0] for _, step, _ in points)),
        "checkpoints": [checkpoint for checkpoint, _ in looked_at],
        "quarantine": quarantine,
        "leftovers": [name for name in names if name not in quarantine and checkpoints / name not in complete],
        "faults": faults,
    }


def _attempt(path: Path, faults: list[str]) -> None:
    """Add to `faults` what is wrong with attempt.json. A training that has no other attempts has no such file."""
    if not path.exists():
        return
    try:
        text = path.read_text("utf-8")
    except (OSError, ValueError) as error:
        faults.append(f"{path.name} cannot be read ({error})")
        return
    if read_attempt(text) is None:
        what = "is empty" if not text.strip() else "names no attempt"
        faults.append(f"{path.name} {what}, so it keeps no earlier attempt from writing")


def _json(path: Path, faults: list[str]) -> object:
    if not path.exists():
        return None
    try:
        return json.loads(path.read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        faults.append(f"{path.name} cannot be read ({error})")
        return None


def _sha256(path: Path) -> str | None:
    """Hash a file; None where it cannot be read, which is a fault where a result says that it is there."""
    try:
        return manifest.sha256(path)
    except OSError:
        return None


def _points(path: Path, faults: list[str]) -> tuple[list[tuple[str, int, float]], int, int]:
    if not path.exists():
        return [], 0, 0
    try:
        there, fault, torn = points_in(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        faults.append(f"{path.name} cannot be read ({error})")
        return [], 0, 0
    if fault is not None:
        faults.append(f"{path.name} is damaged ({fault})")
    values: dict[tuple[str, int], float] = {}
    for point in there:
        values.setdefault((point.key, point.step), point.value)
    return [(key, step, value) for (key, step), value in values.items()], len(there) - len(values), int(torn)


def _checkpoint(path: Path) -> tuple[CheckpointRecord, int | None]:
    """Check a checkpoint. Returns its record, and how many points there were up to its step, where it is sound and says
    so."""
    step, fault, counted = manifest.step_of(path.name), None, None
    try:
        counted = manifest.check(path, step=step).extra.get(POINTS_TOLD)
    except (OSError, ValueError) as error:
        fault = words_of(error)
    return {"name": path.name, "step": step, "fault": fault}, counted


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
