"""A training loop of the user's own, as a trial: `task = "mylab.train:main"`.

`main(config, context)` runs on every rank, in a thread of its own, where torch.distributed's default group is there for
W > 1. What it reports is a trial's points; the last value of the sweep's metric is the trial's. It gets scheduling,
search, retries, resumption, tracking and the verdict. Whether its result depends on ranks, and what a kill costs, are
its own business: it keeps what it needs in `context.checkpoint_dir`, and begins there again.
"""

from __future__ import annotations

import contextlib
import json
import math
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

import numpy as np
import torch
import torch.distributed as dist

from jobs import data
from jobs.artifacts import bucket, checkpoint, manifest, rows, trial_dir
from jobs.artifacts.storage import Storage
from jobs.config import JobConfig, components
from jobs.config.json_values import Json
from jobs.core.collectives import agree, rank_of, world_of
from jobs.core.device import TrialMemory, device_of
from jobs.core.outcomes import Outcomes, RowIds
from jobs.train import continuing, origin

WATCH_S = 1.0
"""How long one call of `advance` watches the function, so that stopping never waits long."""

RETURN_S = 20.0
"""How long a function may take to return once `context.should_stop` holds; then its process is given up."""

OWN = "own"
"""Folder of the function's own checkpoints, within the trial's."""

KEPT = "own.json"
"""The names of its files."""

FURTHEST = 2**62
"""A step that no function comes to."""

BEGUN = "system/ranks"
"""Key of the point that every trial has at step 0."""


class Stop:
    """Whether the function should return: true or false, with or without brackets."""

    def __init__(self) -> None:
        self._event = threading.Event()

    def set(self) -> None:
        """Ask the function to return."""
        self._event.set()

    def __bool__(self) -> bool:
        return self._event.is_set()

    def __call__(self) -> bool:
        """Return the same as `bool`."""
        return self._event.is_set()


class Context:
    """What a function is given beside its job."""

    def __init__(self, training: FunctionTraining, checkpoint_dir: Path) -> None:
        self._training = training
        self.rank, self.world = training.rank, training.world
        self.seed, self.stage = training.job.seed, training.job.stage
        self.data: str = training.job.eval_split
        """The source of the rows that this stage is judged on; `config.data.train` is what is trained on, and
        `jobs.data.open_table` reads either."""
        self.checkpoint_dir = checkpoint_dir
        """A folder that the trial keeps between attempts. Write a file aside and rename it: a kill may come at any
        moment."""
        self.should_stop = Stop()
        """Whether to write a checkpoint and return: the sweep is being stopped. It is continued later."""

    def report(self, metrics: Mapping[str, float], step: int) -> None:
        """Record values of a step. The first value of a key and step stands, so what is done again after a kill may be
        reported again. Those of rank 0 count. Raises ValueError for what is no number, TypeError for no whole step."""
        self._training.take(metrics, step)

    def rows(
        self, name: str, ids: Sequence[object], values: Sequence[float], groups: Sequence[object] | None = None
    ) -> None:
        """Keep a metric's value of every judged row, from rank 0, in rows.parquet of the trial's folder; the newest of
        a metric stand. groups: equal for rows that belong together, None for a row on its own. Raises ValueError for
        what is no number, and for an id that is there twice."""
        self._training.keep_rows(name, ids, values, groups)


class FunctionTraining:
    """One job whose task is a function, on this rank: what `Training` is to the others."""

    def __init__(
        self,
        job: JobConfig,
        folder: Path,
        *,
        group: dist.ProcessGroup | None = None,
        log: Callable[[str], None] = print,
        attempt: tuple[int, int] | None = None,
        remote: str | None = None,
        phase: Callable[[str], None] = lambda _: None,
        expected: origin.Expected | None = None,
        trial_memory: TrialMemory | None = None,
    ) -> None:
        self.job, self.folder, self.log, self.phase = job, folder, log, phase
        self.phase("loading")
        self.rank, self.world = rank_of(group), world_of(group)
        # The function has the default group to itself: collectives of two threads may not meet in one.
        self.control = None if group is None else dist.new_group(backend="gloo")
        self.storage: Storage = bucket.at(folder, remote)
        self.trial_memory = trial_memory or TrialMemory(device_of(job.execution))
        self.step, self.seconds = 0, 0.0
        self.result: trial_dir.Result | None = None
        self.remarks: list[str] = []
        self.notes: list[str] = []
        self.provenance: dict[str, Json] = {}
        self._lock = threading.Lock()
        self._error: BaseException | None = None
        self._fence = trial_dir.Fence(self.storage, attempt)
        self._rows: dict[str, tuple[RowIds, Outcomes]] = {}
        """Rank 0: what was kept row by row, by metric."""
        self._records = trial_dir.Records(folder, writes=self.rank == 0, permit=self._fence.check_local)
        if self.rank == 0:
            continuing.open_folder(self.storage, self._fence, job, named=attempt is not None, remark=self._remark)
        origin.begin(expected or {})
        self.provenance = origin.look(job, expected or {}).digests if expected else {}
        own = self.folder / OWN
        own.mkdir(parents=True, exist_ok=True)
        self._kept: dict[str, tuple[int, int]] = {}
        self._resume()
        torch.set_num_threads(job.execution.threads)
        self._returned = 0
        function = cast("Callable[[JobConfig, Context], object]", components.load("task", job.task))
        self.context = Context(self, own)
        self._thread = threading.Thread(target=self._run, args=(function,), name="main of the task", daemon=True)
        self._began_s = time.perf_counter()
        if self.result is None:
            self._thread.start()

    @property
    def points(self) -> list[trial_dir.Point]:
        """Every point so far."""
        with self._lock:
            return list(self._records.points)

    def take(self, metrics: Mapping[str, float], step: int) -> None:
        """Record what the function reports."""
        if isinstance(step, bool) or not isinstance(step, int) or step < 0:
            raise TypeError(f"report(metrics, step): step = {step!r}; give a whole number, 0 or more")
        with self._lock:
            self._records.add({str(key): value for key, value in metrics.items()}, step=step)
            # Before the function can write a checkpoint of this step: after a kill it would not report it again.
            self._records.flush(sync=False)
            self.step = max(self.step, step)

    def keep_rows(
        self, name: str, ids: Sequence[object], values: Sequence[float], groups: Sequence[object] | None
    ) -> None:
        """Write a metric's value of every row."""
        what = f"rows({name!r})"
        if not name or not isinstance(name, str):
            raise ValueError(f"{what}: the name is that of a metric; give a word, such as 'accuracy'")
        if len(ids) != len(values):
            raise ValueError(f"{what}: {len(ids)} ids and {len(values)} values; give one value for each row")
        if groups is not None and len(groups) != len(ids):
            raise ValueError(f"{what}: {len(ids)} ids and {len(groups)} groups; give each row one, or None")
        own = RowIds(_named(ids), None if groups is None else _groups(groups))
        if self.rank != 0:
            return
        numbers = np.array([trial_dir.number(f"{what}: {row}", value) for row, value in zip(ids, values, strict=True)])
        if not np.isfinite(numbers).any():  # a version before took this; nobody's training ends for it
            self._remark(f"{what}: no row has a number, so nothing is kept of it")
            return
        if len(set(own.ids)) < len(own):
            twice = next(row for row, times in Counter(own.ids).items() if times > 1)
            self._remark(f"{what}: the id {twice!r} is there twice, so nothing is kept of it; give each row its own")
            return
        self._rows[name] = own, Outcomes(float(np.nanmean(numbers)), {"": numbers})
        if (content := rows.encode(self._rows)) is not None:
            self._fence.hold()  # in a bucket too: an attempt that was given up may still be at work on another node
            self.storage.write(rows.NAME, content)

    def advance(self, steps: int) -> list[trial_dir.Point]:  # noqa: ARG002 - a function has steps of its own
        """Watch the function for a second, or until it has ended on every rank. Returns new points."""
        self.phase(f"step {self.step + 1}")
        deadline = time.monotonic() + WATCH_S
        while self._thread.is_alive() and (left := deadline - time.monotonic()) > 0:
            self._thread.join(min(left, 0.05))
        # Asked first: what it has reported and raised by its end is all there afterwards.
        is_alive = self._thread.is_alive()
        if self._error is not None:
            raise self._error
        self.seconds = time.perf_counter() - self._began_s
        with self._lock:
            self._records.flush()
        self._keep()
        running = agree([int(is_alive)], self.control, what="the function's end")
        if self.result is None and not any(alive for (alive,) in running) and not self.context.should_stop:
            self._end()
        return self._new()

    def save(self) -> None:
        """Ask the function to return, and wait for it. Raises RuntimeError where it does not."""
        self.context.should_stop.set()
        self._thread.join(RETURN_S)
        if self._thread.is_alive():
            raise RuntimeError(
                f"{self.job.task} did not return within {RETURN_S:.0f} s of context.should_stop; look at it in the loop"
            )
        with self._lock:
            self._records.flush()
        self._keep()
        self._leave()

    def settle(self) -> None:
        """Do nothing: `advance` and `save` have written everything when they return."""

    def _run(self, function: Callable[[JobConfig, Context], object]) -> None:
        try:
            function(self.job, self.context)
        except Exception as error:  # noqa: BLE001 - it is raised by `advance`
            self._error = error
        except BaseException as error:  # noqa: BLE001 - which would end the rank in silence
            self._error = RuntimeError(f"{self.job.task} ended by {type(error).__name__}: {error}; return instead")

    def _leave(self) -> None:
        """Give up the ranks' own group: a group that outlives the default group ends the process with an abort."""
        if self.control is not None:
            dist.destroy_process_group(self.control)
            self.control = None

    def _new(self) -> list[trial_dir.Point]:
        points = self.points
        news, self._returned = points[self._returned :], len(points)
        return news

    def _resume(self) -> None:
        """Read back the points of earlier attempts, and the function's own files, or the result."""
        newest, result = continuing.find(self.storage, remark=self._remark) if self.rank == 0 else (None, None)
        stands = result is not None and (newest is not None or result["outcome"] == "diverged")
        held: list[trial_dir.Result | None] = [result if stands else None]
        if self.control is not None:
            dist.broadcast_object_list(held, group=self.control, group_src=0)
        (self.result,) = held
        if self.rank == 0:
            if self.result is None:
                self.storage.download(trial_dir.POINTS)
            self._records.restore(until=FURTHEST)
        if self.result is not None:
            self.step, self.seconds = self.result["step"], self.result["seconds"]
            return
        if self.rank != 0:
            return
        for name in self._kept_names():
            (self.folder / OWN / name).parent.mkdir(parents=True, exist_ok=True)
            self.storage.inside(OWN).download(name)
        self._restore_rows()
        self._records.add({BEGUN: float(self.world)}, step=0)
        self.step = max((point.step for point in self._records.points), default=0)

    def _restore_rows(self) -> None:
        """Read back what was kept row by row: a function that has been to its end may not keep it again."""
        try:
            content = self.storage.read_bytes(rows.NAME)
            self._rows = {} if content is None else rows.means(content)
        except ValueError as error:
            kept = trial_dir.quarantine(self.storage, rows.NAME)
            self._remark(f"{rows.NAME} is damaged ({trial_dir.reason(error)}); {kept}")

    def _kept_names(self) -> list[str]:
        """Read the names of the function's files as they were kept last; none where the list of them is damaged."""
        try:
            names = json.loads(self.storage.read(KEPT) or "[]")
        except (ValueError, IsADirectoryError) as error:
            self._remark(f"{KEPT} is damaged ({error}): the loop's own files are those that lie here")
            return []
        return [name for name in names if isinstance(name, str)] if isinstance(names, list) else []

    def _keep(self) -> None:
        """Bring the function's files to where the trial is kept."""
        if self.rank != 0:
            return
        own, stamps = self.storage.inside(OWN), dict(_stamps(self.folder / OWN))
        changed = [name for name, stamp in stamps.items() if self._kept.get(name) != stamp]
        gone = self._kept.keys() - stamps.keys()
        if changed or gone:
            self.storage.publish(trial_dir.POINTS)  # no checkpoint is ahead of what was reported before it
            own.publish(*changed)
            self.storage.write(KEPT, json.dumps(sorted(stamps)))
        for name in gone:
            own.forget(name)
        self._kept = stamps

    def _end(self) -> None:
        """Commit the result."""
        latest = self._records.latest()
        metrics = {key: value for key, value in latest.items() if key != BEGUN}
        diverged = sorted(key for key, value in metrics.items() if not math.isfinite(value))
        peak = max(memory for (memory,) in agree([self.trial_memory.needed()], self.control, what="peak memory"))
        result: trial_dir.Result = {
            "state": "done",
            "outcome": "diverged" if diverged else "ok",
            "why": f"{diverged[0]} is not finite" if diverged else "done",
            "step": self.step,
            "metrics": {} if diverged else metrics,
            "untrained": {},
            trial_dir.POINTS_TOLD: len(self._records.points),
            "samples": 0,
            "seconds": self.seconds,
            "samples_per_second": 0.0,
            "peak_memory_mb": peak / 2**20,
            "negatives_per_anchor": 0,
            "hashes": {"data": data.fingerprint(self.job)},
            "data": data.dataset_info(self.job),
        }
        content = None if diverged else rows.encode(self._rows)
        if content is not None:
            result["rows"] = rows.sha256(content)
        result[manifest.DIGEST] = manifest.digest_of(result)
        self.log(f"{result['outcome']} at step {self.step}: {result['why']}")
        if self.rank == 0:
            taken = checkpoint.snapshot(
                step=self.step,
                model={},
                optimizer={},
                extra={
                    "seconds": self.seconds, "untrained": {}, trial_dir.POINTS_TOLD: len(self._records.points),
                    "world": self.world, "attempt": None,
                },
            )  # fmt: skip
            keep = self.job.execution.keep_checkpoints
            taken_in = None if diverged else taken
            continuing.commit(self.storage, self._fence, taken=taken_in, result=result, keep=keep, kept=content)
        agree([self.step], self.control, what="the result")  # no rank leaves before it is committed
        self.result = result
        self._leave()

    def _remark(self, sentence: str) -> None:
        self.remarks.append(sentence)
        self.log(sentence)


def _named(ids: Sequence[object]) -> list[int | str]:
    """Return ids as whole numbers, if all are; else as texts."""
    single = [getattr(own, "item", lambda own=own: own)() for own in ids]
    if all(isinstance(own, int) and not isinstance(own, bool) and abs(own) < 2**63 for own in single):
        return list(single)
    return [str(own) for own in single]


def _groups(groups: Sequence[object]) -> list[int | str | None]:
    """Return groups likewise. None stays, and so are nan and an empty text, as in columns of data."""
    absent = [group is None or group == "" or group != group for group in groups]  # noqa: PLR0124 - nan
    named = iter(_named([group for group, is_absent in zip(groups, absent, strict=True) if not is_absent]))
    return [None if is_absent else next(named) for is_absent in absent]


def _stamps(folder: Path) -> Iterator[tuple[str, tuple[int, int]]]:
    """Yield name, size and time of every file below a folder; what goes while it is looked at is not among them."""
    for path in sorted(folder.rglob("*")):
        with contextlib.suppress(FileNotFoundError):
            if path.is_file():
                info = path.stat()
                yield path.relative_to(folder).as_posix(), (info.st_size, info.st_mtime_ns)
