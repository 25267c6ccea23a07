"""A trial's folder on disk: its job, its points, its result. Every file is whole, or one line short at most.

    job.json  points.jsonl  result.json

Checkpoints lie beside them (checkpoint.py). What is told here is fsynced before a checkpoint that has passed it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from jobs.config import JobConfig


@dataclass(frozen=True)
class Point:
    """One value of one curve."""

    key: str
    step: int
    value: float
    time: float
    """Unix seconds."""


class Records:
    """The points of one trial, in memory and on disk. Ranks other than 0 keep theirs in memory."""

    def __init__(self, folder: Path, *, writes: bool) -> None:
        self.points: list[Point] = []
        self._folder, self._writes = folder, writes
        self._written = 0

    def add(self, values: Mapping[str, float], *, step: int) -> None:
        """Points of one step, by key."""
        now = time.time()
        self.points += [Point(key, step, float(value), now) for key, value in values.items()]

    def latest(self) -> dict[str, float]:
        """The newest value of every key."""
        return {point.key: point.value for point in self.points}

    def flush(self) -> None:
        """Put on disk what is not there yet."""
        fresh, self._written = self.points[self._written :], len(self.points)
        if self._writes and fresh:
            with (self._folder / "points.jsonl").open("a") as file:
                file.writelines(json.dumps(asdict(point)) + "\n" for point in fresh)
                file.flush()
                os.fsync(file.fileno())

    def restore(self, *, until: int) -> None:
        """Read back the points up to step `until`; later ones will be measured again, bit for bit."""
        path = self._folder / "points.jsonl"
        if not self._writes or not path.exists():
            return
        read = []
        for line in path.read_text().splitlines():
            try:
                point = Point(**json.loads(line))
            except ValueError:  # the line that a kill cut short
                continue
            if point.step <= until:
                read.append(point)
        self.points, self._written = read, len(read)
        write_whole(path, "".join(json.dumps(asdict(point)) + "\n" for point in read))


def open_folder(folder: Path, job: JobConfig) -> None:
    """Make a folder the trial of `job`. It belongs to one objective; how that is computed may change.

    Raises ValueError where it holds another job.
    """
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / "job.json"
    if path.exists():
        there = JobConfig.model_validate_json(path.read_text())
        if there.model_dump(exclude={"execution"}) != job.model_dump(exclude={"execution"}):
            raise ValueError(
                f"{folder} holds another job ({there.id}), and only its execution may change; use another folder"
            )
    write_whole(path, json.dumps(job.model_dump(mode="json"), indent=1))


def read_result(folder: Path, *, checkpoint_step: int | None) -> dict[str, Any] | None:
    """The result on disk, if the checkpoint that belongs to it is sound: the newest is of `checkpoint_step`. A
    diverged trial has none."""
    path = folder / "result.json"
    if not path.exists():
        return None
    result: dict[str, Any] = json.loads(path.read_text())
    return result if result["outcome"] == "diverged" or checkpoint_step == result["step"] else None


def write_result(folder: Path, result: Mapping[str, Any]) -> None:
    """Commit the result."""
    write_whole(folder / "result.json", json.dumps(result, indent=1))


def write_whole(path: Path, text: str) -> None:
    """Replace a file in one piece."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)
