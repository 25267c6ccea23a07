"""The thread of a session that writes the ledger: what it begins, and what it makes of what comes back."""

from __future__ import annotations

import contextlib
import queue
import socket
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from jobs.config import EXECUTION_METRICS
from jobs.core.failures import Failure
from orchestrator.ledger import WAITS, Outage, Point, Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.run_dir import provenance
from orchestrator.run_dir.context import RunContext
from orchestrator.session.reports import Report
from orchestrator.session.schedule import (
    Schedule,
    setting_of,
    stopped_arms,
    stopped_swaps,
    stops_the_sweep,
    swapping,
    wrong_metric,
)
from orchestrator.session.schedule.pruning import Climb, Rung
from orchestrator.sweep import merged
from orchestrator.system.masking import masked

LEASE_S = 30.0
"""A driver that is silent this long may be replaced. One that ended on this machine is replaced at once."""

RENEW_S = LEASE_S / 4

LOOK_S = 1.0
"""How often the ledger is asked whether somebody wants the session to stop."""


@dataclass(frozen=True)
class Dispatch:
    """One attempt of one trial, ready to run."""

    trial: str
    attempt: int
    job: dict[str, Any]
    """With this attempt's execution settings."""

    folder: str
    token: int
    """The fencing token of the driver."""

    remote: str | None = None
    """URI at which the trial's files are kept, if not in `folder`."""

    expected: provenance.Expected | None = None
    """Digests of what the run is computed with (provenance.expected), which the ranks compare with what they load."""


class Writer:
    """What a session knows, and what its writer thread does with it."""

    def __init__(
        self,
        context: RunContext,
        *,
        concurrent: int,
        tell: Callable[[str, Trial | None], None],
        expected: provenance.Expected | None = None,
    ) -> None:
        self.context = context
        self._plan, self._ledger, self._folder = context.plan, context.ledger, context.folder
        self._concurrent, self._tell = concurrent, tell
        self._execution, self._expected = dict(context.options.execution), expected
        self._schedule = Schedule(
            self._plan,
            self._ledger,
            ending=lambda: self._closing or self._stop.is_set(),
            tell=lambda text: tell(text, None),
        )
        self._patience = self._ledger.outage  # a driver's, which lasts longer than the session
        self._outage = self._patience or Outage(lambda text: tell(text, None))
        self._events: queue.Queue[Callable[[], None] | None] = queue.Queue()
        self._lock = threading.Condition()
        # Everything down to `_climbs` is read and changed under the lock; only the writer takes from `_ready`.
        self._pending = 0
        """Events that the writer has not dealt with."""
        self._dealt = 0
        """Events that it has dealt with."""
        self._ready: deque[str] = deque()
        """Trials that are due, and not begun."""
        self._begun: deque[Dispatch] = deque()
        """Attempts that the ledger has as begun, and that Tune's loop has not taken."""
        self._asked = False
        """The writer has been asked to begin one."""
        self._running: dict[str, Dispatch] = {}
        """Attempts that the ledger has as begun, and that have not ended."""
        self._over = False
        """Nothing runs, nothing is due, nothing is left to deal with."""
        self._climbs: dict[str, Climb] = {}
        """Of the running trials that may be pruned. Tune's loop alone asks them."""
        self._trials: dict[str, Trial] = {}
        """As of their last event. The writer's own, once it runs."""
        self._verified: set[str] = set()
        """Arms of which a gradient was to be compared. The writer's own."""
        self._noted: set[str] = set()
        """Arms of whose batches something was said: their other trials have the same to say. The writer's own."""
        self._waited: str | None = None
        """What it was last noted to wait for. What is noted is masked, and not to be compared with this."""
        self._pruned: dict[str, Rung] = {}
        """Trials that Tune's loop was asked to end, until it brings their report. Its own."""
        self._stop = threading.Event()
        self._closing = False
        self.stopped_by: str | None = None
        """Why the session stopped before its end, in words for a person."""
        self.interrupted = False
        """Whether a person or a signal stopped it."""
        self.other_origin: str | None = None
        """What a rank computes with that is not what the session began with; the session then stops."""
        self.storage_full: str | None = None
        """What did not fit on the disk; the session then stops."""
        self.broken: BaseException | None = None
        """What the writer could not get over; the session then stops."""
        self._writer: threading.Thread | None = None

    def stop(self, why: str) -> None:
        """Let running trials checkpoint, and start no more. Safe in a signal handler."""
        if self.stopped_by is None:
            self.stopped_by = why
        self._stop.set()

    def interrupt(self, name: str) -> None:
        """Stop because of a signal."""
        self.interrupted = True
        self.stop(name)

    def fail(self, cause: BaseException) -> None:
        """Stop because of something that nobody can go on without: a thread that died, a ledger that is lost."""
        if self.broken is None:
            self.broken = cause
        self.stop(f"{type(cause).__name__}: {cause}")

    def _write(self) -> None:
        """Deal with events until there is a None. Whatever goes wrong stops the session and is its cause (`fail`):
        nothing may go on without the ledger, and a thread that dies in silence would hold machines and lease for
        ever. SystemExit too: rich raises it where a pipe is broken."""
        renew_at = time.monotonic() + RENEW_S
        look_at = time.monotonic() + LOOK_S
        while True:
            try:
                event = self._events.get(timeout=max(0.0, min(renew_at, look_at) - time.monotonic()))
            except queue.Empty:
                pass
            else:
                if event is None:
                    return
                self._deal_with(event)
            if time.monotonic() >= look_at:
                if self._ledger.asked_to_stop():
                    self.interrupt("asked to, by orchestrator stop")
                look_at = time.monotonic() + LOOK_S
            if time.monotonic() >= renew_at:
                self._ledger.renew()
                renew_at = time.monotonic() + RENEW_S

    def _deal_with(self, event: Callable[[], None]) -> None:
        event()
        with self._lock:
            self._pending -= 1
            self._dealt += 1
            self._decide()

    def _decide(self) -> None:
        """Decide whether the session is over: only here. Called under the lock, at the start and after events."""
        self._over = not (self._pending or self._running or self._ready)
        self._lock.notify_all()

    def _can_begin(self, besides: int = 0) -> bool:
        room = self._concurrent - len(self._running)
        return min(room, len(self._ready)) > besides and not self._stop.is_set()

    def _begin(self) -> None:
        """Begin the next attempt that is due."""
        with self._lock:
            self._asked = False
            if self._begun or not self._can_begin():
                return
            trial = self._trials[self._ready.popleft()]
        execution = self._execution or self._latest_execution(trial) or self._first_of_arm(trial)
        record = None if self._expected is None else provenance.of_attempt(self._expected)
        attempt = self._ledger.start_attempt(trial.id, execution, socket.gethostname(), provenance=record)
        settings = {f"execution.{key}": value for key, value in execution.items()}
        dispatch = Dispatch(
            trial.id,
            attempt,
            merged(trial.job, settings),
            str(self._folder.trial(trial.id).resolve()),
            self._ledger.token or 0,
            self._folder.trial_uri(trial.id),
            self._expected,
        )
        self._verified.add(trial.arm)
        climb = self._schedule.climb(trial)
        with self._lock:
            if climb is not None:
                self._climbs[trial.id] = climb
            self._running[trial.id] = dispatch
            self._begun.append(dispatch)

    def _note_waiting(self, why: str | None) -> None:
        self._ledger.set_run(state="running" if why is None else "queued")
        if why is not None and why != self._waited:
            self._ledger.event(WAITS, why)
            self._waited = why

    def _on_report(self, dispatch: Dispatch, report: Report, rung: Rung | None) -> None:
        if "failure" in report:
            self._fail(dispatch, Failure(**report["failure"]))
            return
        for remark in map(masked, report.get("remarks", [])):
            self._ledger.event("checkpoint", remark, dispatch.trial)
            self._tell(f"trial {dispatch.trial}: {remark}", None)
        for note in report.get("notes", []):
            self._ledger.event("batch", note, dispatch.trial)
            if (arm := self._trials[dispatch.trial].arm) not in self._noted:
                self._noted.add(arm)
                self._tell(f"trial {dispatch.trial} of {arm}: {note}", None)
        if self._expected is not None and (loaded := report.get("provenance")) is not None:
            record = provenance.of_attempt(self._expected, loaded)
            self._ledger.set_provenance(dispatch.trial, dispatch.attempt, record)
        points = [Point(dispatch.trial, p["key"], p["step"], p["value"], p["time"]) for p in report["points"]]
        if rung is not None:
            self._prune(dispatch, rung, [point for point in points if point.step <= rung.step])
            return
        self._ledger.record_points(dispatch.trial, dispatch.attempt, points)
        result, metric = report["result"], self._plan.sweep.metric.name
        if result is None:
            return
        diverged = result["outcome"] == "diverged"
        judged = [own.name for own in self._plan.sweep.metric.every]
        if self._trials[dispatch.trial].stage == "tune":  # which looks at the first alone
            judged = judged[:1]
        wrong = None if diverged else next(filter(None, (wrong_metric(own, result["metrics"]) for own in judged)), None)
        if wrong is not None:
            self._fail(dispatch, Failure("user_error", None, wrong, ""))
            return
        value = None if diverged else result["metrics"][metric]
        self._ledger.finish_attempt(
            dispatch.trial,
            dispatch.attempt,
            state="done",
            outcome=result["outcome"],
            metric=value,
            metrics={} if diverged else dict(result["metrics"]),
            step=result["step"],
            result=dict(result),
        )
        self._ended(dispatch, f"diverged: {result.get('why', '')}" if diverged else f"{metric} {value:.4f}")

    def _prune(self, dispatch: Dispatch, rung: Rung, points: list[Point]) -> None:
        """End a trial at a rung, together with the points that say so: both are recorded, or neither."""
        there = [point for point in points if point.step == rung.step and not point.key.startswith(EXECUTION_METRICS)]
        self._ledger.finish_attempt(
            dispatch.trial,
            dispatch.attempt,
            state="pruned",
            metric=rung.value,
            step=rung.step,
            metrics={point.key: point.value for point in there},
            points=points,
        )
        self._ended(dispatch, f"pruned at step {rung.step} with {self._plan.sweep.metric.name} {rung.value:.4f}")

    def _fail(self, dispatch: Dispatch, failure: Failure) -> None:
        # An error may quote how its process gets in somewhere; this is read by whoever reads the ledger and MLflow.
        failure = replace(failure, message=masked(failure.message), trace=masked(failure.trace))
        if failure.kind == provenance.OTHER_ORIGIN:  # no trial is charged with what it could not have trained on
            self.other_origin = self.other_origin or failure.message
            self.stop(failure.message)
            failure = replace(failure, kind="interrupted")
        again = self._should_retry(dispatch.trial, failure)
        self._ledger.finish_attempt(
            dispatch.trial,
            dispatch.attempt,
            state="interrupted" if failure.kind == "interrupted" else "failed",
            failure=failure.kind,
            message=failure.message,
            again=again,
        )
        if failure.trace:
            path = self._folder.trial(dispatch.trial) / f"failure.attempt{dispatch.attempt}.txt"
            with contextlib.suppress(OSError):  # the disk may be what failed; the ledger has the first line
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(failure.trace)
        log = f"{self._folder.trial(dispatch.trial)}/log.rank0.txt"
        if dispatch.remote is not None:
            log = f"orchestrator logs {self._folder.quoted} {dispatch.trial}"
        then = "it gets another attempt" if again else f"log: {log}"
        if (
            failure.kind == "storage_full"
            and self._count(dispatch.trial, failure) > self._plan.sweep.retry.storage_full
        ):
            self.storage_full = failure.message
            self.stop(failure.message)
        self._ended(dispatch, f"attempt {dispatch.attempt} failed ({failure.kind}): {failure.message}; {then}")
        trials = list(self._trials.values())
        if not again and (why := stops_the_sweep(trials)) is not None:
            self.stop(why)
        elif not again:
            trial, at = self._trials[dispatch.trial], ""
            if trial.stage == "swap":
                message = stopped_swaps(trials).get(setting_of(trial))
                at = f" at another's setting ({swapping.setting_in_words(self._plan, trial)})"
            else:
                message = stopped_arms(trials).get(trial.arm)
            if message is not None:
                self._tell(f"arm {trial.arm}{at} is stopped, as its trials fail in the same way: {message}", None)

    def _should_retry(self, trial: str, failure: Failure) -> bool:
        """Return whether the trial goes back to the queue. After a full disk it does, even if nothing more is begun;
        what was interrupted is nobody's fault."""
        if failure.kind in ("interrupted", "storage_full"):
            return True
        return self._count(trial, failure) < getattr(self._plan.sweep.retry, failure.kind, 0)

    def _count(self, trial: str, failure: Failure) -> int:
        """Count the attempts of the trial that have ended like this."""
        return sum(attempt.failure == failure.kind for attempt in self._ledger.attempts(trial))

    def _ended(self, dispatch: Dispatch, what: str) -> None:
        trial = self._ledger.trial(dispatch.trial)
        with self._lock:
            self._running.pop(dispatch.trial, None)
            self._climbs.pop(dispatch.trial, None)
        self._refill(trial.arm)
        # What training took, over all attempts: between sessions a run may stand still for days.
        took_s = sum(attempt.seconds for attempt in self._ledger.attempts(trial.id))
        self._tell(f"{what}  {trial.id} {took_s:.1f} s", trial)

    def _refill(self, arm: str | None = None) -> None:
        """Queue what the ledger calls for, in every arm or in the arm where a trial has ended."""
        trials = self._schedule.advance(arm)
        with self._lock:
            self._trials |= trials
            due = self._schedule.due(self._trials.values())
            self._ready = deque(trial for trial in due if trial not in self._running)

    def _first_of_arm(self, trial: Trial) -> JsonObject:
        """Return the settings that have an arm's first attempt compare its gradient with one process's before it
        trains; none for later attempts."""
        begun = any(other.attempts for other in self._trials.values() if other.arm == trial.arm)
        return {} if begun or trial.arm in self._verified else {"verify": True}

    def _latest_execution(self, trial: Trial) -> JsonObject:
        """Return the settings of the attempt before, which stay until a person asks for others."""
        attempts = self._ledger.attempts(trial.id) if trial.attempts else []
        return dict(attempts[-1].execution) if attempts else {}
