"""Wires one session together: sweep, plan, run folder, ledger, executor, projection, report. START HERE.

`launch` begins a run or continues it, `resume` continues it; both end in `_drive`. A session opens the ledger,
reconciles it with what earlier sessions left, runs what is due, and reports once every confirm trial has ended.
"""

from __future__ import annotations

import contextlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn

from pydantic import ValidationError

from jobs.config import ConfigError, Execution, Fault, JobConfig, canonical, nearest
from jobs.config import faults as config_faults
from orchestrator import cluster, runs
from orchestrator import plan as planning
from orchestrator import sweep as sweeps
from orchestrator.environment import environment
from orchestrator.ledger import Ledger, LedgerError, this_process
from orchestrator.plan import Plan
from orchestrator.progress import Progress
from orchestrator.remote import RemoteError
from orchestrator.runs import RunFolder
from orchestrator.schedule import withheld
from orchestrator.session import LEASE_S, Session

DONE, SOME_FAILED, MISSING, CLUSTER_DIED, INTERRUPTED = 0, 1, 4, 75, 130

GRACE_S = 25.0
"""Seconds from SIGTERM to the hard end, unless $ORCHESTRATOR_GRACE_S says otherwise. Kubernetes and most pre-emptions
allow thirty."""


class InfrastructureMissing(Exception):
    """Ray, MLflow, storage or disk is not there; the text names the remedy. Exit code 4."""


class DataFault(ValueError):
    """The data of a sweep cannot be used; the text names file, column and row. Exit code 2."""


class SweepChanged(ValueError):
    """The sweep file is not the one that the run was begun with. Exit code 2."""


@dataclass(frozen=True)
class Options:
    """How a session is carried out; none of it changes the result."""

    offline: bool = False
    """Leave MLflow for later."""


@dataclass(frozen=True)
class Again:
    """What becomes of failed trials."""

    kind: str | None = None
    """Only those of this failure class; None: all."""

    give_up: bool = False
    """They get no other attempt, and their settings count as infeasible."""


def launch(sweep_file: Path, into: Path | str, *, overrides: Sequence[str] = (), options: Options = Options()) -> int:
    """Run a sweep in a folder, or at the URI of a bucket, or continue it there. Returns the exit code.

    Raises ConfigError, DataFault, SweepChanged, LeaseHeld, LedgerError, InfrastructureMissing, RunError, BadAddress or
    RemoteError; then nothing is made.
    """
    sweep = sweeps.load(sweep_file, overrides)
    plan = planning.make(sweep)
    folder = runs.at(into)
    notes = _check_shared(folder, options)
    if folder.exists:
        with contextlib.closing(folder.open()) as ledger:
            _refuse_changes(folder, ledger, plan)
            return _drive(plan, folder, ledger, options, notes=notes)
    _refuse_what_is_no_run(folder)
    _check_cluster(plan, _ranks(plan))
    notes += _check_data(plan)
    _refuse_what_is_no_run(folder)  # the checks took their time
    _check_tracking(folder, options)
    with contextlib.closing(_create(sweep_file, plan, folder)) as ledger:
        return _drive(plan, folder, ledger, options, notes=notes)


def resume(
    folder: RunFolder,
    *,
    again: Again | None = None,
    execution: Mapping[str, Any] | None = None,
    options: Options = Options(),
) -> int:
    """Continue a run from its ledger. Of the failed trials, those that `again` says get another attempt or are given
    up; new attempts have other `execution` settings if given. Returns the exit code; raises as `launch` does."""
    notes = _check_shared(folder, options)
    with contextlib.closing(folder.open()) as ledger:
        stored = {key: value for key, value in ledger.run.sweep.items() if key != "plan"}
        plan = planning.make(sweeps.Sweep.model_validate(stored))
        _check_cluster(plan, _ranks(plan, ledger, execution))
        return _drive(plan, folder, ledger, options, again=again, execution=execution, notes=notes)


def execution_overrides(texts: Sequence[str]) -> dict[str, Any]:
    """`job.execution.micro=32` and the like as execution settings. Raises ConfigError: nothing else may change."""
    known = list(Execution.model_fields)
    found: dict[str, Any] = {}
    faults = []
    for text in texts:
        key, _, value = (part.strip() for part in text.partition("="))
        name = key.removeprefix("job.execution.")
        if name == key or name not in known:
            hint = nearest(key, [f"job.execution.{one}" for one in known])
            faults.append(Fault(key, value, f"only job.execution may change between attempts{hint}"))
            continue
        try:
            found[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            found[name] = value
    try:
        Execution.model_validate(found)
    except ValidationError as error:
        faults += list(config_faults(error, Execution, "job.execution."))
    if faults:
        raise ConfigError("--set", "change", faults)
    return found


def _drive(
    plan: Plan,
    folder: RunFolder,
    ledger: Ledger,
    options: Options,
    *,
    again: Again | None = None,
    execution: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
) -> int:
    from orchestrator import report, tracking

    _check_tracking(folder, options)
    ledger.acquire(this_process(), LEASE_S)
    progress = Progress(plan, ledger)
    ranks = _ranks(plan, ledger, execution)
    session = Session(
        plan, ledger, folder, concurrent=_concurrent(plan, ranks), tell=progress.tell, execution=execution
    )
    projection = None if options.offline else tracking.Projection(ledger, tracking_uri(folder))
    leave = _Leaving(ledger, progress)
    began = time.time()
    try:
        folder.check_out()
        with _signals(session, leave):
            with _quiet(folder, progress):
                for note in notes:
                    progress.say(f"note: {note}")
                if again is not None:
                    _decide(ledger, again)
                ledger.set_run(state="running")
                session.start()
                if projection is not None:
                    projection.start()
                _execute(plan, session, ranks, leave)
            code = _ending(plan, ledger, session)
            if session.broken is not None:
                raise session.broken
            _tell_who_waits(ledger, folder, progress)
            if not session.storage_full:
                progress.answer(report.table(report.write(ledger, folder.report)))
            if projection is not None:
                if not session.storage_full:
                    projection.log_report(folder.report)
                if not projection.stop(timeout_s=60):
                    behind = f"MLflow is behind ({projection.last_error})"
                    progress.say(f"{behind}; catch up: orchestrator resume {folder.quoted}")
            folder.check_in(began)
            progress.close(folder, code, session.stopped_by, offline=options.offline)
            return code
    finally:
        progress.release()
        if projection is not None:
            projection.stop(timeout_s=5)
        with contextlib.suppress(LedgerError):
            ledger.release()


def _execute(plan: Plan, session: Session, ranks: int, leave: _Leaving) -> None:
    """Run what is due; without anything due, not even Ray is started."""
    if session.finished():
        session.close()
        return
    from orchestrator import executor

    resources = plan.sweep.resources
    shape = executor.Shape(ranks, resources.cpus_per_rank, resources.gpus_per_rank)
    scratch = Path(tempfile.mkdtemp(prefix="orchestrator-"))

    def died(what: str) -> None:
        leave.now(CLUSTER_DIED, f"the Ray cluster died under the driver: {what}; run the same command again")

    try:
        with cluster.session(cpus=os.cpu_count() or 1), cluster.watched(died):
            executor.run(session, shape=shape, scratch=scratch)
    finally:
        session.close()
        shutil.rmtree(scratch, ignore_errors=True)


def _ending(plan: Plan, ledger: Ledger, session: Session) -> int:
    if session.broken is not None:
        return MISSING
    if session.stopped_by is not None:
        ledger.set_run(state="stopped")
        return INTERRUPTED if session.interrupted else MISSING if session.storage_full else SOME_FAILED
    unanswered = len(ledger.frozen()) < len(plan.arms)
    ledger.set_run(state="stopped" if unanswered else "done")
    return SOME_FAILED if unanswered or ledger.trials(state="failed") else DONE


def _tell_who_waits(ledger: Ledger, folder: RunFolder, progress: Progress) -> None:
    arms = sorted({trial.arm for trial in ledger.trials(stage="tune") if withheld(trial)})
    if arms:
        resume = f"orchestrator resume {folder.quoted}"
        progress.say(
            f"tuning of {', '.join(arms)} waits: a trial ran out of memory, which says nothing about its setting.\n"
            f"  try it with less:  {resume} --failed --class out_of_memory --set job.execution.micro=32\n"
            f"  or do without it:  {resume} --give-up --class out_of_memory"
        )


def _create(sweep_file: Path, plan: Plan, folder: RunFolder) -> Ledger:
    """The run's folder and ledger, or nothing."""
    stored = sweeps.resolved(plan.sweep) | {"plan": json.loads(canonical(plan.summary()))}
    made, ledger = not folder.path.exists(), None
    try:
        folder.path.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(sweep_file, folder.path / "sweep.toml")
        if folder.remote is not None:
            folder.remote.put_files(folder.path, [folder.path / "sweep.toml"])
        ledger = Ledger.create(
            folder.ledger_url(), name=plan.sweep.name, sweep=stored, environment=environment(sweep_file, folder.quoted)
        )
        # Last, in one piece: a run exists once this file does.
        aside = folder.path / ".sweep.json"
        aside.write_text(json.dumps({"run": ledger.uuid, **stored}, indent=1))
        if folder.remote is not None:
            folder.remote.put(folder.identity.name, aside.read_bytes())
        aside.replace(folder.identity)
    except (OSError, LedgerError, RemoteError) as error:
        if ledger is not None:
            with contextlib.suppress(LedgerError):
                ledger.discard()
        if folder.remote is not None:
            with contextlib.suppress(RemoteError):
                folder.remote.delete("sweep.toml")
        if made:
            shutil.rmtree(folder.path, ignore_errors=True)
        raise InfrastructureMissing(f"{folder.name} cannot be made: {error}") from error
    return ledger


def _refuse_what_is_no_run(folder: RunFolder) -> None:
    """Whatever else lies there is left alone, and a run that somebody has just begun there too. Raises SweepChanged."""
    if folder.exists:
        raise SweepChanged(f"{folder.name} was begun by somebody else just now; the same command continues it")
    if folder.remote is not None:
        found = bool(folder.remote.files().keys() - {"sweep.toml"})  # what a creation leaves that was killed
    else:
        found = folder.path.exists() and any(folder.path.iterdir())
    if found:
        raise SweepChanged(f"{folder.name} is not empty and holds no run; choose another folder with --into")


def _refuse_changes(folder: RunFolder, ledger: Ledger, plan: Plan) -> None:
    old = {key: value for key, value in ledger.run.sweep.items() if key != "plan"}
    changed = planning.changed_keys(old, sweeps.resolved(plan.sweep))
    if changed:
        lines = "\n".join(f"  {key}: {canonical(before)} -> {canonical(after)}" for key, before, after in changed)
        head, mark, query = folder.name.partition("?")
        raise SweepChanged(
            f"{folder.name} was begun with another sweep; these keys differ:\n{lines}\n"
            f"  continue it as it was: orchestrator resume {folder.quoted}\n"
            f"  start another:         orchestrator launch SWEEP --into {shlex.quote(f'{head}-2{mark}{query}')}"
        )


def _decide(ledger: Ledger, again: Again) -> None:
    for trial in ledger.trials(state="failed"):
        if again.kind is None or trial.failure == again.kind:
            if again.give_up:
                ledger.give_up(trial.id)
            else:
                ledger.requeue(trial.id)


def _jobs(plan: Plan) -> list[JobConfig]:
    stages = ["tune", "confirm"] if plan.sweep.tune else ["confirm"]
    return [arm.config(stage=stage, seed=0) for arm in plan.arms for stage in stages]


def _ranks(plan: Plan, ledger: Ledger | None = None, execution: Mapping[str, Any] | None = None) -> int:
    """The largest world size that a session meets: of the sweep, of `execution`, of what attempts were given before."""
    sizes = [job.execution.ranks for job in _jobs(plan)]
    if execution and "ranks" in execution:
        sizes.append(execution["ranks"])
    if ledger is not None:
        sizes += [attempt.execution["ranks"] for attempt in ledger.attempts() if "ranks" in attempt.execution]
    return max(sizes)


def _concurrent(plan: Plan, ranks: int) -> int:
    resources = plan.sweep.resources
    fit = max(1, cluster.slots(_nodes(), ranks=ranks, cpus=resources.cpus_per_rank, gpus=resources.gpus_per_rank))
    return min(fit, resources.concurrent or fit)


def _nodes() -> list[cluster.Node]:
    try:
        return cluster.nodes()
    except ConnectionError as error:
        raise InfrastructureMissing(
            f"no Ray cluster answers at RAY_ADDRESS={cluster.address()} ({error}); start it, correct the address, or "
            "unset RAY_ADDRESS to run on this machine"
        ) from error


def _check_cluster(plan: Plan, ranks: int) -> None:
    """Whether the largest trial finds a place. Raises ConfigError, or InfrastructureMissing for want of GPUs."""
    resources, nodes = plan.sweep.resources, _nodes()
    if resources.gpus_per_rank and not cluster.fits(nodes, ranks=ranks, cpus=0, gpus=resources.gpus_per_rank):
        raise InfrastructureMissing(
            f"resources.gpus_per_rank = {resources.gpus_per_rank} for {ranks} ranks, but there are "
            f"{sum(node.gpus for node in nodes):g} GPUs; set it to 0 with --set resources.gpus_per_rank=0"
        )
    if not cluster.fits(nodes, ranks=ranks, cpus=resources.cpus_per_rank, gpus=0):
        needed, cpus = ranks * resources.cpus_per_rank, sum(node.cpus for node in nodes)
        expected = (
            f"with resources.cpus_per_rank = {resources.cpus_per_rank} that takes {needed} CPUs, and there are "
            f"{cpus:g}; use fewer, for example --set job.execution.ranks={max(1, int(cpus // resources.cpus_per_rank))}"
        )
        fault = Fault("job.execution.ranks", str(ranks), expected)
        raise ConfigError(plan.sweep.name, "sweep for this cluster", [fault])


def _check_data(plan: Plan) -> list[str]:
    """Every distinct use of data, in a process of its own, for the checks need torch and the driver does not.

    Returns warnings. Raises DataFault.
    """
    jobs = [job.model_dump(mode="json") for job in _jobs(plan)]
    distinct = {canonical({key: job[key] for key in ("task", "data", "batch", "evaluate")}): job for job in jobs}
    with tempfile.TemporaryDirectory() as scratch:
        paths = [Path(scratch) / f"job{number}.json" for number in range(len(distinct))]
        for path, job in zip(paths, distinct.values(), strict=True):
            path.write_text(canonical(job))
        command = [sys.executable, "-m", "jobs.data", *map(str, paths)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise DataFault(done.stderr.strip().removeprefix("error: "))
    found = [json.loads(line)["warnings"] for line in done.stdout.splitlines()]
    return list(dict.fromkeys(warning for warnings in found for warning in warnings))


def _check_shared(folder: RunFolder, options: Options) -> list[str]:
    """What a run in a bucket needs besides: a ledger and an MLflow that other machines reach. Returns notes.

    Raises RunError, RemoteError or InfrastructureMissing.
    """
    if folder.remote is None:
        return []
    url = folder.ledger_url()
    _check_tracking(folder, options)
    if url.startswith("sqlite"):
        return ["ORCHESTRATOR_LEDGER is a file of SQLite, so only this machine can continue the run"]
    return []


def _check_tracking(folder: RunFolder, options: Options) -> None:
    """Whether MLflow is there, unless it is left for later. Raises InfrastructureMissing."""
    from orchestrator import tracking

    if not options.offline:
        try:
            tracking.check(tracking_uri(folder))
        except tracking.TrackingUnavailable as error:
            raise InfrastructureMissing(f"{error}; or add --offline to project the run later") from error


def tracking_uri(folder: RunFolder) -> str:
    """$MLFLOW_TRACKING_URI, or the embedded store beside the run folders: one for all of them. Raises RemoteError for
    a run in a bucket, which has no such place."""
    from orchestrator import tracking

    return folder.mlflow_url() or tracking.embedded_uri(folder.path.resolve().parent)


@contextlib.contextmanager
def _quiet(folder: RunFolder, progress: Progress) -> Iterator[None]:
    """The terminal belongs to the progress: what Ray, MLflow and C++ print goes to driver.log."""
    progress.detach()
    sys.stdout.flush()
    sys.stderr.flush()
    saved = [os.dup(number) for number in (1, 2)]
    log = os.open(folder.log, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    for number in (1, 2):
        os.dup2(log, number)
    os.close(log)
    try:
        yield
    finally:
        for written in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError):  # a full disk takes no more lines, and this is a log
                written.flush()
        for number, stream in enumerate(saved, 1):
            os.dup2(stream, number)
            os.close(stream)


class _Leaving:
    """The way out that does not wait for Ray: the ledger has everything, and what is cut short is resumable."""

    def __init__(self, ledger: Ledger, progress: Progress) -> None:
        self._ledger, self._progress = ledger, progress

    def now(self, code: int, text: str) -> NoReturn:
        """Say why, give the lease back, end the processes this one has started, and leave with `code`."""
        self._progress.say(text)
        giver = threading.Thread(target=self._release, daemon=True)
        giver.start()
        giver.join(2.0)
        cluster.end_children()
        os._exit(code)

    def _release(self) -> None:
        with contextlib.suppress(LedgerError):
            self._ledger.release()


@contextlib.contextmanager
def _signals(session: Session, leave: _Leaving) -> Iterator[None]:
    """First SIGINT or SIGTERM: checkpoint and stop. After a second one, or when the grace period of a SIGTERM is over:
    stop at once; what the ledger and the checkpoints have is not lost."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    grace_s = float(os.environ.get("ORCHESTRATOR_GRACE_S") or GRACE_S)
    timers: list[threading.Timer] = []

    def heard(number: int, _frame: FrameType | None) -> None:
        name = signal.Signals(number).name
        if session.interrupted:
            leave.now(INTERRUPTED, f"{name}: stopped at once; the run continues from its last checkpoints")
        session.interrupt(name)
        if number == signal.SIGTERM:
            why = (
                f"the grace period of {grace_s:g} s after SIGTERM is over; the run continues from its last checkpoints"
            )
            timers.append(threading.Timer(grace_s, leave.now, (INTERRUPTED, why)))
            timers[-1].daemon = True
            timers[-1].start()

    before = {number: signal.signal(number, heard) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        for timer in timers:
            timer.cancel()
