"""Wires one session together: sweep, plan, run folder, ledger, executor, projection, report. START HERE.

`launch` begins a run or continues it, `resume` continues it; both end in `_drive`. A session opens the ledger,
reconciles it with what earlier sessions left, runs what is due, and reports once every confirm trial has ended.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
import tomllib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from jobs.config import ConfigError, ConfigIssue, Execution, canonical, nearest
from jobs.config import issues as config_issues
from jobs.config.user_code import UserCode, importable
from orchestrator import sweep as sweeps
from orchestrator import verify
from orchestrator.ledger import NOTED, Ledger, this_process
from orchestrator.ledger.stored import JsonObject, ProvenanceRecord
from orchestrator.preflight import doctor, requirements, spread
from orchestrator.preflight.requirements import Requirements
from orchestrator.run_dir import creation, own_code, provenance
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.context import USUAL, Options, RetryFailed, RunContext
from orchestrator.run_dir.creation import SweepChanged
from orchestrator.run_dir.folder import RunError, RunFolder
from orchestrator.run_dir.rows import RowFiles
from orchestrator.session import cluster, ending, holding, schedule
from orchestrator.session.cluster import access, board, capacity, headwatch, picture
from orchestrator.session.cluster.room import Room
from orchestrator.session.cluster.sharing import Claim
from orchestrator.session.progress import Progress
from orchestrator.session.schedule import extension
from orchestrator.session.session import Session
from orchestrator.session.shutdown import Leaving, ended_by_sigterm, quiet, signals
from orchestrator.sweep import plan as planning
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.values import with_none
from orchestrator.system import exit_codes, scratch, threads
from orchestrator.system.exit_codes import Exit
from orchestrator.system.masking import masked
from orchestrator.system.terminal import caught

if TYPE_CHECKING:
    from orchestrator import tracking


PASSING = re.compile(r"\d[\d.,]* (?:GiB|MiB|s)\b|\([0-9a-f]{8}\)")
"""What of a note is another one in the next session: an amount, the id of a node."""

MOST_SAID = 20
"""Files that were written again, and faults that are left, of which a session tells one by one."""


@ended_by_sigterm()
def launch(sweep_file: Path, into: Path | str, *, overrides: Sequence[str] = (), options: Options = USUAL) -> int:
    """Run a sweep in a folder, or at the URI of a bucket, or continue it there. Returns the exit code.

    Raises ConfigError, DataFault, SweepChanged, LeaseHeld, LedgerError, InfrastructureMissing, RunError, BadAddress or
    RemoteError; then nothing is made.
    """
    sweep = sweeps.load(sweep_file, overrides)
    plan, code = planning.make(sweep), sweeps.code_of(sweep, sweep_file.parent)
    folder = runs.at(into)
    requirements.check_places(folder, options)
    if folder.exists:
        with contextlib.closing(folder.open()) as ledger, board.kept(ledger):
            begun = planning.stored(ledger.run.sweep, ledger.run.rules)
            _refuse_changes(folder, begun, plan)
            return _continue(RunContext(begun.with_limits(plan.sweep), folder, ledger, options), code)
    plan = spread.planned(sweep, spread.known() if sweep.confirm.seeds == "enough" else [])
    creation.refuse_what_is_no_run(folder, sweep_file)
    needs = Requirements.of_new(plan, folder, options)
    warned = doctor.refuse(folder, plan)
    with importable(code):
        examined = provenance.examine(plan, meanwhile=_load, code=code)
    creation.refuse_what_is_no_run(folder, sweep_file)  # the checks took their time
    created = creation.create(sweep_file, plan, folder, provenance=examined.record, code=code)
    left_out = () if code is None else code.left_out
    notes = [*warned, *examined.notes, *(f"of [code], {name} stays, as it is over 10 MB" for name in left_out)]
    with contextlib.closing(created) as ledger, board.kept(ledger):
        context = RunContext(plan, folder, ledger, options)
        return _drive(context, needs, record=examined.record, notes=[*needs.notes, *notes], code=code)


@ended_by_sigterm()
def resume(folder: RunFolder, *, options: Options = USUAL) -> int:
    """Continue a run from its ledger. Of the failed trials, those that `options.retry` names get another attempt or
    are given up. Returns the exit code; raises as `launch` does."""
    requirements.check_places(folder, options)
    with contextlib.closing(folder.open()) as ledger, board.kept(ledger):
        plan = planning.stored(ledger.run.sweep, ledger.run.rules)
        return _continue(RunContext(plan, folder, ledger, options))


@ended_by_sigterm()
def extend(folder: RunFolder, *, options: Options) -> int:
    """Add seeds or suggestions to a run whose planned trials have ended, and train them. Returns the exit code; raises
    as `launch` does."""
    assert options.extend is not None
    requirements.check_places(folder, options)
    with contextlib.closing(folder.open()) as ledger, board.kept(ledger):
        plan = planning.stored(ledger.run.sweep, ledger.run.rules)
        extension.asked(plan, ledger, options.extend, schedule.stopped_arms(ledger.trials()))
        return _continue(RunContext(plan, folder, ledger, options))


def _continue(context: RunContext, code: UserCode | None = None) -> int:
    """Go on with a run by the plan that it was begun with, if what it needs is there and is what it was. code: of the
    user, as the sweep file has it now; None: as the run has it."""
    plan, folder, ledger = context.plan, context.folder, context.ledger
    progress = Progress(context)
    with _logged(progress):
        needs = Requirements.of(context, say=progress.say)
        progress.release()
        if not context.is_left:  # the run's nodes and data may be gone
            return _drive(context, needs, record=None, notes=needs.notes, continues=True)
        warned = doctor.refuse(folder, plan)
    recorded, kept = ledger.run.provenance, own_code.read(folder)
    code = code or kept
    if code is None and plan.sweep.code is not None:
        raise RunError(
            f"{folder.name}/{own_code.CODE} is gone, with which the run computes; bring it back, or launch the sweep "
            f"again: orchestrator launch SWEEP --into {folder.quoted}"
        )
    with provenance.looked_for_in(provenance.folder_of(ledger.run.environment)), importable(code):
        examined = provenance.examine(plan, recorded, meanwhile=_load, code=code)
    notes = [*needs.notes, *warned, *examined.notes]
    if recorded is None:
        notes = [*notes, "the code, data and versions that this run was begun with are not recorded"]
    else:
        provenance.refuse_other_data(recorded, examined.record)
        if not context.options.accept_code:
            is_other = code is not None and kept is not None and code.digest != kept.digest
            verb = "launch SWEEP --into" if is_other else "resume"
            provenance.refuse_other_code(recorded, examined.record, resume=f"orchestrator {verb} {folder.quoted}")
    return _drive(context, needs, record=examined.record, notes=notes, continues=True, code=code)


def execution_overrides(texts: Sequence[str]) -> JsonObject:
    """Read `job.execution.micro=32` and the like as execution settings. Raises ConfigError: nothing else may change."""
    known = list(Execution.model_fields)
    settings: JsonObject = {}
    issues = []
    for text in texts:
        key, _, value = (part.strip() for part in text.partition("="))
        name = key.removeprefix("job.execution.")
        if name == key or name not in known:
            hint = nearest(key, [f"job.execution.{field}" for field in known])
            issues.append(ConfigIssue(key, value, f"only job.execution may change between attempts{hint}"))
            continue
        try:
            settings[name] = tomllib.loads(f"value = {value}")["value"]
        except tomllib.TOMLDecodeError:
            settings[name] = value
        settings[name] = with_none(f"execution.{name}", settings[name])
    try:
        Execution.model_validate(settings)
    except ValidationError as error:
        issues += list(config_issues(error, Execution, "job.execution."))
    if issues:
        raise ConfigError("--set", "change", issues)
    return settings


def _drive(
    context: RunContext,
    needs: Requirements,
    *,
    record: ProvenanceRecord | None,
    notes: Sequence[str] = (),
    continues: bool = False,
    code: UserCode | None = None,
) -> int:
    """Run one session. code: of the user. record: the provenance of what is trained now, None where nothing is left to
    train."""
    from orchestrator import tracking

    ledger, options = context.ledger, context.options
    progress = Progress(context)
    with contextlib.ExitStack() as stack:
        stack.enter_context(holding.held(ledger, say=progress.say))
        stack.enter_context(_logged(progress))
        base = provenance.folder_of(ledger.run.environment)
        expected = None if record is None else provenance.expected(record, base, code)
        session = Session(context, concurrent=needs.concurrent, tell=progress.tell, expected=expected)
        uri = needs.tracking_uri
        projection = None if uri is None else tracking.Projection(ledger, uri, say=progress.say)
        leave = Leaving(ledger, progress)
        began = time.time()
        stack.enter_context(signals(session, leave, grace_s=needs.grace_s))
        stack.enter_context(holding.renewed(ledger, died=session.fail))
        stack.enter_context(provenance.looked_for_in(base))
        if projection is not None:
            stack.callback(projection.stop, timeout_s=5)
        stack.callback(progress.release)
        context.folder.check_out()
        with quiet(progress):
            _note(ledger, progress, notes)
            ledger.set_run(state="running")  # before anything is asked for that a kill would leave to the next session
            _apply(context)
            if record is not None:
                provenance.write_down(ledger, record)
                if code is not None:
                    own_code.put(context.folder, code)
            elif options.accept_code:
                provenance.accept_what_ran(ledger)
            if continues:
                for sentence in _shortened(verify.mend(context.folder, ledger)):
                    ledger.event("mended", sentence)
                    progress.say(f"note: {sentence}")
            session.start()
            if projection is not None:
                projection.start()
            _execute(session, needs, leave=leave, progress=progress)
        _raise_what_broke(session)
        ended = ending.of(session)
        ledger.set_run(state=ended.state)
        is_told = _answer(session, projection, progress, began=began)
        status, lines = Exit.INTERRUPTED if session.interrupted else ended.code, ended.lines
        if continues and not status:  # what `verify` calls a fault is no success
            if is_told:
                status, faults = _prove(context, uri)
                lines = (*lines, *faults)
            else:
                status = Exit.MISSING
        _raise_what_broke(session)
        progress.close(lines)
        return status


def _shortened(sentences: Sequence[str]) -> list[str]:
    """Keep at most `MOST_SAID` of them, and say how many there are more: each takes a transaction, and a reader's
    time."""
    more = len(sentences) - MOST_SAID
    return [*sentences[:MOST_SAID], *([f"and {more:,} more files of trials were written again"] if more > 0 else [])]


@contextlib.contextmanager
def _logged(progress: Progress) -> Iterator[None]:
    """Have what ends a session in driver.log: nobody may be there to read the terminal."""
    try:
        yield
    except BaseException as error:
        progress.note(exit_codes.logged(error))
        raise


def _raise_what_broke(session: Session) -> None:
    """Raise what a thread of the session could not get over."""
    if session.broken is not None:
        raise threads.raisable(session.broken)


def _answer(session: Session, projection: tracking.Projection | None, progress: Progress, *, began: float) -> bool:
    """Write the report, show the verdict, and tell MLflow. Returns whether MLflow has everything, or is left out."""
    from orchestrator import report
    from orchestrator.tracking import publish, ui

    ledger, folder = session.context.ledger, session.context.folder
    pages = ui.links(folder, ledger)
    summary = None if session.storage_full else report.write(ledger, folder.report, RowFiles.of(folder), pages)
    if summary is not None:
        progress.answer(report.table(summary))
    folder.check_in(began)  # before MLflow, which may take long
    if projection is None:
        return True
    if summary is None:
        is_told = projection.stop(timeout_s=publish.TELL_S)
    else:
        is_told = publish.answer(projection, ledger, folder, summary, say=progress.say, stopping=session.stopping)
    if not is_told:
        behind = f"MLflow is behind ({projection.last_error})"
        progress.say(f"{behind}; catch up: orchestrator resume {folder.quoted}")
    return is_told


def _prove(context: RunContext, uri: str | None) -> tuple[Exit, list[str]]:
    """Judge whether a run that was continued is sound: return the exit code, and what `verify` calls broken."""
    faults = verify.faults_after(context.folder, context.ledger, uri)
    if not faults:
        return Exit.DONE, []
    more = len(faults) - MOST_SAID
    lines = [f"fault: {fault}" for fault in faults[:MOST_SAID]]
    if more > 0:
        lines.append(f"and {more:,} more: orchestrator verify {context.folder.quoted}")
    return Exit.SOME_FAILED, lines


def _load() -> None:
    """Import what `_execute` will need, Ray among it: seconds, which something else may take as well."""
    with caught():
        from orchestrator.session import tune_executor  # noqa: F401


def _execute(session: Session, needs: Requirements, *, leave: Leaving, progress: Progress) -> None:
    """Run what is due; without anything due, not even Ray is started."""
    if session.finished():
        session.close()
        return
    from orchestrator.session import tune_executor

    plan, folder, resources = session.context.plan, session.context.folder, session.context.plan.sweep.resources
    shape = tune_executor.Shape(
        needs.max_world_size,
        resources.cpus_per_rank,
        resources.gpus_per_rank,
        resources.placement,
        resources.accelerator_type,
    )

    def died(what: str) -> None:
        leave.now(Exit.CLUSTER_DIED, f"the Ray cluster died under the driver: {what}; run the same command again")

    def seen(nodes: list[capacity.Node]) -> None:
        fit = requirements.concurrent(plan, needs.max_world_size, nodes)
        if session.resize(fit):
            room = f"{fit} trial{'s' * (fit != 1)} at once"
            progress.say(f"the cluster has {len(nodes)} nodes now: {room if fit else 'no trial fits, and all wait'}")

    card = {
        picture.SWEEP: plan.sweep.name,
        picture.RUN: folder.name,
        picture.DRIVER: this_process().partition(" [")[0],
    }
    try:
        with scratch.folder("sweep") as temporary:
            if access.address() is None:
                scratch.expect(temporary, cluster.home())  # so that it goes too, should this process be killed
            with (
                cluster.session(cpus=os.cpu_count() or 1, card=card),
                headwatch.watched(died, seen, session.fail),
                _shared(session, needs, tune_executor.slot(shape), progress) as room,
            ):
                if (own := cluster.own_folder()) is not None:
                    scratch.remember(temporary, own)
                tune_executor.run(session, shape=shape, scratch=temporary, room=room)
    finally:
        session.close()


@contextlib.contextmanager
def _shared(session: Session, needs: Requirements, slot: Claim, progress: Progress) -> Iterator[Room | None]:
    """Provide what is known of those who share the cluster while the context lasts; None where the cluster is the
    session's own."""
    if access.address() is None:
        yield None
        return
    painter = picture.Painter()
    with Room(painter, slot, can_autoscale=needs.can_autoscale, say=progress.say, waits=session.waits) as room:
        room.look()
        room.watch(session.fail)
        yield room


def _refuse_changes(folder: RunFolder, begun: Plan, plan: Plan) -> None:
    """Raise SweepChanged where the file no longer says what the run was begun with. begun: the plan of the run."""
    # Both resolved by today's program: an older version did not know every key that has a default today.
    changed = planning.changed_keys(*(sweeps.renamed(sweeps.resolved(each)) for each in (begun.sweep, plan.sweep)))
    changed = [change for change in changed if not planning.is_as_begun(begun, change[0], change[2])]
    if not changed and (order := planning.changed_order(begun, plan)) is not None:
        changed = [("compare", *order)]
    if changed:
        lines = "\n".join(f"  {key}: {canonical(before)} -> {canonical(after)}" for key, before, after in changed)
        head, mark, query = folder.name.partition("?")
        added = any(key.startswith(("confirm.seeds", "tune.trials")) for key, _, _ in changed)
        more = f"\n  add seeds or settings:  orchestrator extend {folder.quoted} --seeds +6" if added else ""
        raise SweepChanged(
            f"{folder.name} was begun with another sweep; these keys differ:\n{lines}\n"
            f"  continue it as it was: orchestrator resume {folder.quoted}{more}\n"
            f"  start another:         orchestrator launch SWEEP --into {runs.as_argument(f'{head}-2{mark}{query}')}"
        )


def _note(ledger: Ledger, progress: Progress, notes: Sequence[str]) -> None:
    """Say what a person should know, and keep it for the report, once: what was measured, and the ids that nodes have
    in a cluster that is started again, are others in the next session."""
    kept = {PASSING.sub("", event.text) for event in ledger.events(NOTED)}
    for note in dict.fromkeys(notes):
        progress.say(f"note: {note}")
        if (lasting := PASSING.sub("", masked(note))) not in kept:
            kept.add(lasting)
            ledger.event(NOTED, note)


def _apply(context: RunContext) -> None:
    """Record in the ledger what a person asks of the run."""
    options = context.options
    if options.retry is not None:
        schedule.note_lost(context.plan, context.ledger)
        apply_retry(context.ledger, options.retry)
    if options.extend is not None:
        stopped = schedule.stopped_arms(context.ledger.trials())
        extension.record(context.plan, context.ledger, options.extend, stopped)


def apply_retry(ledger: Ledger, retry: RetryFailed) -> None:
    """Queue failed trials again, or give them up, as a person has asked."""
    for trial in ledger.trials(state="failed"):
        if retry.kind is None or trial.failure == retry.kind:
            if retry.give_up:
                ledger.give_up(trial.id)
            else:
                ledger.requeue(trial.id, asked=os.environ.get(runs.ASKED))
