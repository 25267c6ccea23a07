"""A trial's folder: its job, its points, its result, and whose it is. Every file is whole, or one line short at most.

    job.json  points.jsonl  result.json  attempt.json

Checkpoints lie beside them (checkpoint.py). What is told here is fsynced before a checkpoint that has passed it, and
uploaded before it where the trial's files are kept in a bucket (storage.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jobs import manifest
from jobs.storage import Storage, room, write_whole

if TYPE_CHECKING:
    from jobs.config import JobConfig

ATTEMPT = "attempt.json"
JOB = "job.json"
POINTS = "points.jsonl"
RESULT = "result.json"


class TakenOver(Exception):
    """A later attempt trains this trial; this one may write nothing more."""


class Fence:
    """Lets the latest attempt at a trial write, and no other one.

    attempt: fencing token of the driver and number of the attempt, the higher pair being the later attempt; None for a
    training of which there is only one, whose fence is always open.
    """

    def __init__(self, place: Storage, attempt: tuple[int, int] | None) -> None:
        self._place, self._attempt = place, attempt
        self.remark: str | None = None
        """What was wrong with the file, once it has been written again."""

    def hold(self) -> None:
        """Claim the trial, also back from an earlier attempt. Raises TakenOver if a later one has claimed it.

        A file that names nobody keeps nobody out: whoever was told by the ledger to train the trial writes it again.
        """
        if self._attempt is None:
            return
        text = self._read()
        holder = self._compare(text)
        if text is not None and holder is None:
            self.remark = f"{ATTEMPT} {'was empty' if not text.strip() else 'named no attempt'}; it is written again"
        if holder != self._attempt:
            token, number = self._attempt
            self._place.write(ATTEMPT, json.dumps({"token": token, "attempt": number}))

    def _read(self) -> str | None:
        try:
            return self._place.read(ATTEMPT)
        except UnicodeDecodeError:
            return "?"

    def glance(self) -> None:
        """Raise TakenOver if a later attempt works in the same local folder; asks no bucket."""
        path = self._place.scratch / ATTEMPT
        if self._attempt is not None and path.exists():
            self._compare(path.read_bytes().decode(errors="replace"))

    def _compare(self, text: str | None) -> tuple[int, int] | None:
        assert self._attempt is not None
        holder = None if text is None else read_attempt(text)
        if holder is not None and holder > self._attempt:
            raise TakenOver(
                f"attempt {holder[1]} (token {holder[0]}) has taken this trial over from attempt {self._attempt[1]} "
                f"(token {self._attempt[0]}), which stops here: {self._place.scratch}; if its driver and ledger are "
                f"gone for good, delete the trial's {ATTEMPT}"
            )
        return holder


def read_attempt(text: str) -> tuple[int, int] | None:
    """Fencing token and number of the attempt that attempt.json names; None where it names none."""
    try:
        holder = json.loads(text)
        pair = (holder["token"], holder["attempt"])
    except (ValueError, TypeError, LookupError):
        return None
    return pair if all(type(value) is int for value in pair) else None


@dataclass(frozen=True)
class Point:
    """One value of one curve."""

    key: str
    step: int
    value: float
    time: float
    """Unix seconds."""


class Records:
    """The points of one trial, in memory and on disk. Ranks other than 0 keep theirs in memory.

    `permit` is called before each write, and may raise.
    """

    def __init__(self, folder: Path, *, writes: bool, permit: Callable[[], None] = lambda: None) -> None:
        self.points: list[Point] = []
        self._folder, self._writes, self._permit = folder, writes, permit
        self._written = 0

    def add(self, values: Mapping[str, float], *, step: int) -> None:
        """Points of one step, by key. Raises ValueError for what is not one number; then none is added."""
        now = time.time()
        self.points += [Point(key, step, _number(key, value), now) for key, value in values.items()]

    def latest(self) -> dict[str, float]:
        """The newest value of every key."""
        return {point.key: point.value for point in self.points}

    def flush(self) -> None:
        """Put on disk what is not there yet. Raises StorageFull; the file is then as it was."""
        fresh = self.points[self._written :]
        if self._writes and fresh:
            self._permit()
            text = "".join(map(_line, fresh))
            path = self._folder / POINTS
            before = path.stat().st_size if path.exists() else 0
            with room(POINTS, needed=len(text), folder=self._folder, undo=lambda: os.truncate(path, before)):
                with path.open("a") as file:
                    file.write(text)
                    file.flush()
                    os.fsync(file.fileno())
                if not before:
                    manifest.fsync(self._folder)
        self._written = len(self.points)

    def restore(self, *, until: int) -> None:
        """Read back the points up to step `until`; later ones will be measured again: bit for bit, unless the budget is
        in seconds."""
        path = self._folder / POINTS
        if not self._writes or not path.exists():
            return
        self.points = points_of(path.read_text(), until=until)
        self._written = len(self.points)
        write_whole(path, "".join(map(_line, self.points)))


def points_of(text: str, *, until: int) -> list[Point]:
    """The points in the text of points.jsonl, up to step `until`.

    Of several points of one key and step the first stands: an attempt that was taken over may have added others.
    """
    read: dict[tuple[str, int], Point] = {}
    for line in text.splitlines():
        try:
            point = Point(**json.loads(line))
        except (ValueError, TypeError):  # the line that a kill cut short, or two lines that met
            continue
        if point.step <= until:
            read.setdefault((point.key, point.step), point)
    return list(read.values())


def open_folder(place: Storage, job: JobConfig) -> None:
    """Make a place the trial of `job`. It belongs to one objective; how that is computed may change.

    Raises ValueError where it holds another job.
    """
    text = place.read(JOB)
    if text is not None:
        there = type(job).model_validate_json(text)
        if there.model_dump(exclude={"execution"}) != job.model_dump(exclude={"execution"}):
            raise ValueError(
                f"{place.scratch} holds another job ({there.id}), and only its execution may change; use another folder"
            )
    place.write(JOB, json.dumps(job.model_dump(mode="json"), indent=1))


def read_result(place: Storage, *, newest: tuple[int, float] | None) -> dict[str, Any] | None:
    """The result on disk, if the checkpoint that belongs to it is sound. A diverged trial has none.

    newest: step and seconds of the newest sound checkpoint. With a budget in seconds, an attempt that was cut short
    before its last checkpoint leaves the result of a training that nothing else is left of.
    """
    text = place.read(RESULT)
    if text is None:
        return None
    result: dict[str, Any] = json.loads(text)
    return result if result["outcome"] == "diverged" or newest == (result["step"], result["seconds"]) else None


def write_result(place: Storage, result: Mapping[str, Any]) -> None:
    """Commit the result."""
    place.write(RESULT, json.dumps(result, indent=1))


def _number(key: str, value: Any) -> float:
    try:
        if isinstance(value, str):
            raise TypeError
        return float(value)
    except (TypeError, ValueError, RuntimeError) as error:  # torch has its own for a tensor of several
        shown = " ".join(str(value).split())[:60]
        raise ValueError(f"{key} is {type(value).__name__} {shown!r}; it must be one number") from error


def _line(point: Point) -> str:
    return json.dumps(asdict(point)) + "\n"
