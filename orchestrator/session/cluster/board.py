"""How a run stands, kept by its driver in the metadata of its own job, where the job server tells it without a question
to the head.

A driver that was submitted writes there every two seconds, if something has changed, what `status` says. Whoever asks
trusts it while the job runs and what is written is fresh; else the ledger is asked, by a job.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import json
import lzma
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from types import ModuleType
from typing import Any, Protocol

from jobs.config import canonical
from orchestrator.ledger import Ledger, LedgerError
from orchestrator.run_dir.status import Status, TrialStatus, status
from orchestrator.sweep import Sweep, resolved
from orchestrator.sweep import plan as planning
from orchestrator.system import threads

KEY = "orchestrator.status"
"""Key of the job's metadata."""

OURS = "orchestrator.run"
"""Key that every job of this program has in its metadata."""

SWEEP = "orchestrator.sweep"
"""And the hash of the run's sweep: from the beginning of a job that launches it; of one that resumes it, once it is
driven."""

LARGEST = 256 * 2**10
"""Characters that a status may take, packed: some 4,000 trials. Every list of the cluster's jobs carries them."""

LONGEST = 1000
"""And those of a question, or of another text in it, where that is the reason."""

EVERY_S, BEAT_S = 2.0, 10.0
"""How often the ledger is asked, and after how long an unchanged status is written again, which says that the driver
lives."""

SHARE = 0.05
"""Part of the time that the ledger may be read for this. A large run is read less often."""

FRESH_S = 30.0
"""Older than this, what is written says nothing of now: the driver hangs, or does not reach its ledger."""

PUT_S = 5.0
"""How long the cluster may take to keep it."""


class KeyValueStore(Protocol):
    """What of Ray's client of the GCS is used here, which has no types."""

    def internal_kv_get(self, key: bytes, *, namespace: bytes, timeout: float) -> bytes | None:
        """Return the value of a key; None if there is none."""

    def internal_kv_put(self, key: bytes, value: bytes, overwrite: bool, *, namespace: bytes, timeout: float) -> int:
        """Keep a value."""


@dataclass(frozen=True)
class Posted:
    """What a driver has written."""

    at: float
    """Unix time of the head."""

    status: Status
    """As `status` tells it; without its arms and trials where `left_out`."""

    left_out: bool
    """Whether it is too large to be kept here."""

    def is_fresh(self, now: float) -> bool:
        """Return whether the status says how the run stands now. now: unix time of the head."""
        return now - self.at <= FRESH_S


def hash_of(sweep: Sweep) -> str:
    """Hash a sweep: equal sweeps have equal hashes. The order of factors counts: the first decides the contrasts."""
    asked = [resolved(sweep), list(sweep.compare)]
    return hashlib.sha256(canonical(asked).encode()).hexdigest()[:16]


def packed(stands: Mapping[str, object], *, at: float) -> str:
    """Pack a status into the text to keep, at most LARGEST characters: without its arms and trials where it would be
    longer."""
    text = _encoded({"at": at, "status": {**stands, "trials": _as_columns(stands["trials"])}})
    if len(text) <= LARGEST:
        return text
    short = {key: value[:LONGEST] if isinstance(value, str) else value for key, value in stands.items()}
    lists: dict[str, object] = {key: [] for key, value in stands.items() if isinstance(value, list)}
    return _encoded({"at": at, "status": short | lists, "left_out": True})


def read(text: str) -> Posted | None:
    """Unpack what was packed; None for what another version has written."""
    try:
        content = json.loads(lzma.decompress(base64.b64decode(text, validate=True)))
        stands: Status = content["status"]
        stands["trials"] = _as_rows(stands["trials"])
        return Posted(float(content["at"]), stands, bool(content.get("left_out")))
    except (binascii.Error, lzma.LZMAError, ValueError, LookupError, TypeError, EOFError):
        return None


@contextlib.contextmanager
def kept(ledger: Ledger) -> Iterator[None]:
    """Keep the status of a run where the job server tells it, while the context lasts and if this process is the driver
    in a job of this program. Takes nothing from a session: what fails here is noted once, in driver.log."""
    name = own_job()
    if name is None:
        yield
        return
    over = threading.Event()
    try:
        begun = planning.stored(ledger.run.sweep, ledger.run.rules).sweep
        put: Callable[[str | None], None] = _Kept(name, hash_of(begun)).put
    except Exception as error:  # noqa: BLE001 - Ray's inner parts, without which a question takes a job
        _note(error)
        yield
        return

    def died(error: BaseException) -> None:
        if not over.is_set():  # else the ledger was closed meanwhile
            _note(error)

    thread = threads.start(partial(_keep, ledger, put, over), name="board", died=died)
    try:
        yield
    finally:
        over.set()
        thread.join(PUT_S)  # its database may be paused, and leave it without an answer


def own_job() -> str | None:
    """Find the job of this program that has this process as its command, from the variable that Ray sets for that
    process alone; None if there is no such job."""
    try:
        metadata = json.loads(os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR", ""))["metadata"]
        return str(metadata["job_submission_id"]) if OURS in metadata else None
    except (ValueError, LookupError, TypeError):
        return None


def _keep(ledger: Ledger, put: Callable[[str | None], None], over: threading.Event) -> None:
    before: Status | None = None
    written, pause, failed = 0.0, 0.0, False
    while not over.wait(pause):
        began = time.monotonic()
        with contextlib.suppress(LedgerError):  # whoever needs the ledger tells of it; what is written gets old
            stands = status(ledger)
            took = time.monotonic() - began
            if stands != before or began - written >= BEAT_S:
                failed = _put(put, packed(stands, at=time.time()), failed=failed)
                before, written = stands, began
            pause = took / SHARE
        pause = max(EVERY_S, pause)
    _put(put, None, failed=failed)


def _put(put: Callable[[str | None], None], text: str | None, *, failed: bool) -> bool:
    """Put it. Returns whether that has failed, now or before; only the first failure is noted."""
    try:
        put(text)
    except Exception as error:  # noqa: BLE001 - Ray's errors have no common name; without it a question takes a job
        if not failed:
            _note(error)
        return True
    return failed


def _note(error: BaseException) -> None:
    line = f"{type(error).__name__}: {error}".partition("\n")[0][:300]
    sys.stderr.write(f"note: this job's metadata cannot hold the run's status, so `status --address` is slow: {line}\n")


class _Kept:
    """The metadata of a job, in the store of the cluster's head."""

    def __init__(self, job: str, sweep: str) -> None:
        from ray import _raylet
        from ray._private.ray_constants import KV_NAMESPACE_JOB
        from ray.dashboard.modules.job.common import JobInfoStorageClient

        compiled: ModuleType = _raylet
        self._client: KeyValueStore = compiled.GcsClient(address=os.environ["RAY_ADDRESS"])
        self._key = JobInfoStorageClient.JOB_DATA_KEY.format(job_id=job).encode()
        self._namespace = KV_NAMESPACE_JOB
        self._sweep = sweep

    def put(self, text: str | None) -> None:
        """Replace the status, or take it away. The rest of what is known of the job stays; whoever ends the job writes
        there after this process is gone."""
        stored = self._client.internal_kv_get(self._key, namespace=self._namespace, timeout=PUT_S)
        if stored is None:
            return
        info = json.loads(stored)
        if info["status"] != "RUNNING":
            return
        metadata = (info.get("metadata") or {}) | {SWEEP: self._sweep}
        info["metadata"] = {**metadata, KEY: text} if text else {k: v for k, v in metadata.items() if k != KEY}
        value = json.dumps(info).encode()
        self._client.internal_kv_put(self._key, value, True, namespace=self._namespace, timeout=PUT_S)


def _encoded(value: Mapping[str, object]) -> str:
    content = json.dumps(value, separators=(",", ":")).encode()
    return base64.b64encode(lzma.compress(content)).decode()


def _as_columns(trials: object) -> object:
    """Turn trials that all have the same keys into one table of columns, which packs into two thirds of the room."""
    if not isinstance(trials, list) or not any(trials) or any(trial.keys() != trials[0].keys() for trial in trials):
        return trials
    return {key: [trial[key] for trial in trials] for key in trials[0]}


def _as_rows(trials: object) -> list[TrialStatus]:
    """Undo `_as_columns`."""
    rows: Any = trials
    if isinstance(trials, dict):
        rows = [dict(zip(trials, values, strict=True)) for values in zip(*trials.values(), strict=True)]
    return list(rows)
