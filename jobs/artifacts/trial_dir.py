"""A trial's folder: its job, its points, its result, and whose it is. Every file is whole, or one line short at most.

    job.json  points.jsonl  result.json  attempt.json

Beside them lie checkpoints (checkpoint.py) and outcomes row by row (rows.py). What is written here is fsynced before a
checkpoint that has passed it, and uploaded before it where the trial's files are kept in a bucket (storage.py).
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final, Literal, NotRequired, SupportsFloat, TypedDict, cast

from jobs.artifacts import manifest
from jobs.artifacts.storage import Folder, Storage, disk_full_guard, write_whole
from jobs.core.failures import words_of

if TYPE_CHECKING:
    from jobs.config import JobConfig
    from jobs.config.json_values import Json

JOB, ATTEMPT, POINTS, RESULT = "job.json", "attempt.json", "points.jsonl", "result.json"
ROWS: Final = "rows.parquet"

READING: Final = "reading"
"""Key of a result and of a checkpoint: how the encoder takes and pools its inputs, as its folder said when it began."""


class TakenOver(Exception):
    """A later attempt trains this trial; this one may write nothing more."""


class Fence:
    """Lets the latest attempt at a trial write, and no other one.

    attempt: fencing token of the driver and number of the attempt, the higher pair being the later attempt; None for a
    training of which there is only one, whose fence is always open.
    """

    def __init__(self, storage: Storage, attempt: tuple[int, int] | None) -> None:
        self._storage, self._attempt = storage, attempt
        self.remark: str | None = None
        """What was wrong with the file, once it has been written again."""

    def hold(self) -> None:
        """Claim the trial, also back from an earlier attempt. Raises TakenOver if a later attempt has claimed it.

        A file that names nobody keeps nobody out: whoever the ledger has train the trial writes it again.
        """
        if self._attempt is None:
            return
        text = self._read()
        named = None if text is None else read_attempt(text)
        holder = self._compare(named)
        if text is not None and named is None:
            self.remark = f"{ATTEMPT} {'was empty' if not text.strip() else 'named no attempt'}; it is written again"
        if holder != self._attempt:
            token, number = self._attempt
            self._storage.write(ATTEMPT, json.dumps({"token": token, "attempt": number}))

    def check_local(self) -> None:
        """Raise TakenOver if a later attempt works in the same local folder; asks no bucket."""
        path = self._storage.scratch / ATTEMPT
        if self._attempt is not None and path.is_file():
            self._compare(read_attempt(path.read_text("utf-8", errors="replace")))

    def _read(self) -> str | None:
        """Read the text of the file; `?` where it is no text, or a folder lies in its place, which is set aside."""
        try:
            return self._storage.read(ATTEMPT)
        except UnicodeDecodeError:
            return "?"
        except IsADirectoryError:
            quarantine(self._storage, ATTEMPT)
            return "?"

    def _compare(self, holder: tuple[int, int] | None) -> tuple[int, int] | None:
        assert self._attempt is not None
        if holder is not None and holder > self._attempt:
            raise TakenOver(
                f"attempt {holder[1]} (token {holder[0]}) has taken this trial over from attempt {self._attempt[1]} "
                f"(token {self._attempt[0]}), which stops here: {self._storage.scratch}; if its driver and ledger are "
                f"gone for good, delete the trial's {ATTEMPT}"
            )
        return holder


def read_attempt(text: str) -> tuple[int, int] | None:
    """Parse the fencing token and number of the attempt that attempt.json names; None where it names none."""
    try:
        token, number = _numbers(_object(text), ("token", "attempt"))
    except ValueError:
        return None
    return token, number


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
        self._keys: set[tuple[str, int]] = set()
        self._folder, self._writes, self._permit = folder, writes, permit
        self._written = self._synced = 0

    def add(self, values: Mapping[str, float], *, step: int) -> None:
        """Add the points of one step, by key; the first point of a key stands. Raises ValueError for a value that is
        not one number; then none is added."""
        now = time.time()
        added = [Point(key, step, number(key, value), now) for key, value in values.items()]
        self.points += [point for point in added if (point.key, step) not in self._keys]
        self._keys |= {(key, step) for key in values}

    def latest(self) -> dict[str, float]:
        """Return the newest value of every key."""
        return {point.key: point.value for point in self.points}

    def flush(self, *, sync: bool = True) -> None:
        """Put on disk what is not there yet. Raises StorageFull; the file is then as it was. sync: so that it outlasts
        the machine, and not the process alone."""
        fresh = self.points[self._written :]
        if self._writes and (fresh or (sync and self._synced < self._written)):
            self._permit()
            text = "".join(map(_line, fresh))
            path = self._folder / POINTS
            before = path.stat().st_size if path.exists() else 0
            with disk_full_guard(POINTS, needed=len(text), folder=self._folder, undo=lambda: os.truncate(path, before)):
                with path.open("a") as file:
                    file.write(text)
                    file.flush()
                    if sync:
                        os.fsync(file.fileno())
                if not before or (sync and not self._synced):
                    manifest.fsync(self._folder)
        self._written = len(self.points)
        self._synced = self._written if sync else self._synced

    def restore(self, *, until: int) -> None:
        """Read back the points up to step `until`; later ones will be measured again: bit for bit, unless the budget is
        in seconds."""
        path = self._folder / POINTS
        if not self._writes or not path.exists():
            return
        if path.is_dir():
            Folder(self._folder).quarantine(POINTS)
            return
        self.points = points_of(path.read_text("utf-8", errors="replace"), until=until)
        self._keys = {(point.key, point.step) for point in self.points}
        self._written = self._synced = len(self.points)
        write_whole(path, "".join(map(_line, self.points)))


def points_of(text: str, *, until: int) -> list[Point]:
    """Parse the points that stand, up to step `until`, from the text of points.jsonl."""
    return [point for point in standing(points_in(text)[0]).values() if point.step <= until]


def standing(points: Iterable[Point]) -> dict[tuple[str, int], Point]:
    """Map key and step to the point that stands. Of several with the same key and step the first stands: an attempt
    that was taken over may have added others."""
    first: dict[tuple[str, int], Point] = {}
    for point in points:
        first.setdefault((point.key, point.step), point)
    return first


def points_in(text: str) -> tuple[list[Point], str | None, bool]:
    """Parse the text of points.jsonl. Returns every point; in words, the first line before the last that is no point;
    and whether the last line is no point. A kill cuts only the last line short, and whoever goes on after it writes the
    file again."""
    points = [_point(line) for line in text.splitlines()]
    broken = next((number for number, point in enumerate(points[:-1], 1) if point is None), None)
    fault = None if broken is None else f"line {broken} is no point"
    return [point for point in points if point is not None], fault, bool(points) and points[-1] is None


def points_fault(storage: Storage, *, until: int, expected: int | None) -> str | None:
    """Find what is wrong with the points of a trial that has a checkpoint of step `until`; None if all are on disk.

    expected: how many there were up to then; None where an older version did not write that down. They are on disk
    before the checkpoint is. More may be there: an attempt that was taken over may have added others.
    """
    path = storage.scratch / POINTS
    try:
        storage.download(POINTS)
        text = path.read_text("utf-8")
    except FileNotFoundError:
        return "it is not there"
    except (IsADirectoryError, ValueError) as error:
        return reason(error)
    points, fault, _ = points_in(text)
    if fault is not None:
        return fault
    there = [point for point in standing(points).values() if point.step <= until]
    if not any(point.step == 0 for point in there):
        return "it has no point of step 0"
    if expected is not None and len(there) < expected:
        return f"it has {len(there):,} of the {expected:,} points up to step {until}"
    return None


def _point(line: str) -> Point | None:
    """Parse one line; None for a line that a kill cut short, or two that met."""
    try:
        point = Point(**json.loads(line))
    except (ValueError, TypeError, RecursionError):
        return None
    numbers = manifest.is_count(point.step) and manifest.is_number(point.value) and manifest.is_number(point.time)
    return point if numbers and isinstance(point.key, str) else None


def refuse_other_reading(trained: Mapping[str, object] | None, now: Mapping[str, object]) -> None:
    """Raise ValueError where the encoder's folder no longer says how the trial embeds. trained: what is recorded of the
    trial; None where an earlier version has not."""
    for name in sorted((trained or {}).keys() & now.keys()):
        if (trained or {})[name] != now[name]:
            raise ValueError(
                f"the encoder that the trial began with says {name} = {now[name]!r} today, and it was trained with "
                f"{(trained or {})[name]!r}; bring back the folder's settings of then"
            )


def open_folder(
    storage: Storage, job: JobConfig, *, named: bool = False, remark: Callable[[str], None] = lambda _: None
) -> None:
    """Open a storage as the folder of the trial of `job`. It belongs to one objective; how that is computed may change.

    named: the folder is named after its job, as in a run, so a damaged job.json is set aside, `remark` is called with
    that, and it is written again. Raises ValueError where it holds another job, or may do so.
    """
    try:
        there = read_job(storage)
    except (IsADirectoryError, ValueError, RecursionError) as error:
        if not named:
            raise ValueError(
                f"{storage.scratch / JOB} is damaged ({reason(error)}), so the folder may hold another job; if it does "
                "not, move that file away, and run the same command again"
            ) from error
        remark(f"{JOB} is damaged ({reason(error)}); {quarantine(storage, JOB)}")
        there = None
    if there is not None and there.model_dump(exclude={"execution"}) != job.model_dump(exclude={"execution"}):
        raise ValueError(
            f"{storage.scratch} holds another job ({there.id}), and only its execution may change; use another folder"
        )
    storage.write(JOB, json.dumps(job.model_dump(mode="json"), indent=1))


def read_job(storage: Storage) -> JobConfig | None:
    """Read the job of a trial; None if it has none. Raises IsADirectoryError or ValueError for what is no job."""
    text = storage.read(JOB)
    if text is None:
        return None
    # Not for those who only audit a folder: it takes as long as their work.
    from pydantic import ValidationError

    from jobs.config import JobConfig
    from jobs.config.validation import issues

    content = _object(text)
    try:
        return JobConfig.model_validate(content)
    except ValidationError as error:
        first, *others = issues(error, JobConfig)
        raise ValueError(f"{first}{f'; and {len(others)} more' if others else ''}") from error


def read_result(
    storage: Storage, *, newest: tuple[int, float] | None, remark: Callable[[str], None] = lambda _: None
) -> Result | None:
    """Read the result on disk, if its checkpoint is sound; what diverged, or did not train, has none.
    newest: step and seconds of the newest sound checkpoint. With a budget in seconds, an attempt that was cut short
    before its last checkpoint leaves a result, and nothing else of that training.
    remark: called with what is wrong with a damaged result, which then counts as none.
    """
    try:
        text = storage.read(RESULT)
        result = None if text is None else result_of(text)
    except (IsADirectoryError, ValueError) as error:
        remark(f"{RESULT} is damaged ({reason(error)}); {quarantine(storage, RESULT)}")
        return None
    if result is None:
        return None
    has_none = result["outcome"] == "diverged" or result["step"] == 0
    return result if has_none or newest == (result["step"], result["seconds"]) else None


def write_result(storage: Storage, result: Mapping[str, object]) -> None:
    """Commit the result."""
    storage.write(RESULT, json.dumps(result, indent=1))


class Result(TypedDict):
    """How a training ended, as result.json has it."""

    state: Literal["done"]
    outcome: Literal["ok", "diverged"]
    why: str
    step: int
    metrics: dict[str, float]
    untrained: dict[str, float]
    points: NotRequired[int]
    """How many there are; not in results of older versions."""

    samples: int
    seconds: float
    samples_per_second: float
    peak_memory_mb: float
    negatives_per_anchor: float
    hashes: dict[str, str]
    data: Json
    """What it was trained on and judged on."""

    reading: NotRequired[dict[str, object]]
    """How the encoder takes and pools its inputs; not of a function."""

    rows: NotRequired[str]
    """The sha256 of rows.parquet, where there is one."""

    digest: NotRequired[str]
    """Of all else; not in results of older versions."""


RESULT_KINDS: dict[str, tuple[Callable[[object], bool], str]] = {
    "state": (lambda value: value == "done", "'done'"),
    "outcome": (lambda value: value in ("ok", "diverged"), "'ok' or 'diverged'"),
    "why": (lambda value: isinstance(value, str), "a text"),
    "step": (manifest.is_count, "a whole number"),
    "metrics": (manifest.is_numbers, "an object of numbers"),
    "untrained": (manifest.is_numbers, "an object of numbers"),
    "samples": (manifest.is_count, "a whole number"),
    "seconds": (manifest.is_seconds, "a number of seconds"),
    "samples_per_second": (manifest.is_number, "a number"),
    "peak_memory_mb": (manifest.is_number, "a number"),
    "negatives_per_anchor": (manifest.is_number, "a number"),
    "hashes": (lambda value: isinstance(value, dict), "an object"),
    "data": (lambda value: isinstance(value, dict | list), "an object"),
}
"""What a result has, and of which kind that is."""

POINTS_TOLD: Final = "points"
"""Key of how many points there are, of results and of checkpoints; older versions did not write it down."""


def result_of(text: str) -> Result:
    """Parse the result in the text of result.json. Raises ValueError for what is none, or is not as it was written."""
    result = manifest.intact(_object(text), "it", known=(*RESULT_KINDS, POINTS_TOLD))
    if missing := [key for key in RESULT_KINDS if key not in result]:
        raise ValueError(f"it has no {', '.join(missing)}")
    for key, (fits, what) in RESULT_KINDS.items():
        if not fits(result[key]):
            raise ValueError(f"its {key} is not {what}")
    if not manifest.is_count(result.get(POINTS_TOLD, 0)):
        raise ValueError(f"its {POINTS_TOLD} is not a whole number")
    return cast("Result", result)  # RESULT_KINDS has seen to it


def newest_step(storage: Storage) -> int:
    """Return the step of a trial's newest checkpoint, without a look at its files; -1 where there is none."""
    return max(map(manifest.step_of, storage.inside("checkpoints").committed()), default=-1)


def start_over(storage: Storage, checkpoints: Storage) -> str:
    """Set aside all that a training has left, so that it can begin again. Returns where that is, in words.

    The result goes first: of a training that diverged it counts by itself.
    """
    kept = [name for file in (RESULT, POINTS) if (name := _quarantine(storage, file)) is not None]
    kept += [f"{checkpoints.scratch.name}/{checkpoints.quarantine(name)}" for name in checkpoints.committed()]
    return f"what it had left is kept as {', '.join(kept)}" if kept else "it had left nothing else"


def _object(text: str) -> dict[str, object]:
    """Parse an object. Raises ValueError for text that is no JSON object."""
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    if not isinstance(content, dict):
        raise ValueError("it is no JSON object")  # noqa: TRY004 - it is the file's content that is wrong
    return content


def _numbers(content: Mapping[str, object], keys: Sequence[str]) -> list[int]:
    """Return the values of these keys. Raises ValueError for a value that is missing, or is no whole number."""
    if missing := [key for key in keys if key not in content]:
        raise ValueError(f"it has no {', '.join(missing)}")
    numbers: list[int] = []
    for key in keys:
        value = content[key]
        if type(value) is not int:
            raise ValueError(f"its {key} is no whole number")
        numbers.append(value)
    return numbers


def quarantine(storage: Storage, name: str) -> str:
    """Keep a damaged file for a person. Returns what became of it, in words."""
    kept = _quarantine(storage, name)
    return "it is written again" if kept is None else f"set aside as {kept}"


def _quarantine(storage: Storage, name: str) -> str | None:
    """Set a file aside. Returns what it is now called; None where there is none."""
    try:
        return storage.quarantine(name)
    except FileNotFoundError:
        return None


def reason(error: Exception) -> str:
    """Describe what is wrong with a file, in one line."""
    return "a folder lies in its place" if isinstance(error, IsADirectoryError) else words_of(error)


def number(key: str, value: object) -> float:
    """Convert a value to a number. Raises ValueError for a text, None, or what holds several; of one number in an array
    or a tensor the shape does not matter."""
    single = value
    try:
        if getattr(value, "size", None) == 1 or getattr(value, "numel", int)() == 1:
            single = cast("Any", value).item()
        if isinstance(single, str | bytes | bytearray | memoryview):
            raise TypeError
        return float(cast("SupportsFloat", single))
    except (TypeError, ValueError, RuntimeError, ArithmeticError) as error:  # torch has its own for a tensor of several
        shown = " ".join(str(value).split())[:60]
        raise ValueError(f"{key} is {type(value).__name__} {shown!r}; it must be one number") from error


def _line(point: Point) -> str:
    return json.dumps(asdict(point)) + "\n"
