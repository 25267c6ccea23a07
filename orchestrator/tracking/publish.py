"""Copies an answer into MLflow once there is one: the report, the verdict in a few lines, and every arm's best encoder.

Nothing here may cost the run its answer: what cannot be told is said, and the next `resume` tries again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from jobs.config.components import is_import_path
from orchestrator import report, tracking
from orchestrator.ledger import Ledger, LedgerError, Trial
from orchestrator.run_dir import export
from orchestrator.run_dir.bucket import RemoteError
from orchestrator.run_dir.folder import RunError, RunFolder
from orchestrator.system import scratch
from orchestrator.system.exit_codes import InfrastructureMissing

TELL_S = 60.0
"""How long MLflow may take for what is left when a session ends."""

ENCODER_S = 60.0
"""How much longer for each encoder, whose files may be large."""

AT_ONCE = 2
"""Encoders exported at once: each is a process that loads torch."""

ABSENT = (InfrastructureMissing, LedgerError, RemoteError, OSError)
"""What may be the matter with where things are kept."""

SWITCH = "ORCHESTRATOR_ENCODERS"
"""Environment variable: `none` logs no encoders, where time is short, or room where MLflow keeps its artifacts."""


def answer(
    projection: tracking.Projection,
    ledger: Ledger,
    folder: RunFolder,
    summary: report.Summary,
    *,
    say: Callable[[str], None],
    stopping: Callable[[], bool] = lambda: False,
) -> bool:
    """Copy the answer of a run into MLflow, and wait for it. Returns whether MLflow has everything.

    stopping: asked between encoders; once true, no further encoder is exported. The lease must be held, and renewed
    meanwhile.
    """
    tags = {"verdict": summary.sentence, "question": summary.question}
    step, numbers = summary.attempts.total, report.numbers(summary)
    projection.log_report(folder.report, report.note(summary), metrics=numbers, tags=tags, step=step)
    due = summary.state == "done" and os.environ.get(SWITCH) != "none"
    with contextlib.ExitStack() as stack:
        if due:
            projection.settled(TELL_S)  # which notes what encoders MLflow has lost
        try:
            encoders = []
            if due:
                temporary = stack.enter_context(scratch.folder("encoders"))
                encoders = _exported(ledger, folder, temporary, say, stopping)
        except ABSENT as error:
            say(f"note: encoders are not logged in MLflow: {error}")
            encoders = []
        projection.log_encoders(encoders)
        is_complete = projection.stop(timeout_s=TELL_S + ENCODER_S * len(encoders))
        projection.log_encoders([])  # their folders go now
        return is_complete


def _exported(
    ledger: Ledger, folder: RunFolder, made: Path, say: Callable[[str], None], stopping: Callable[[], bool]
) -> list[tracking.Encoder]:
    """Export the best encoder of each arm, by processes of their own, except those that MLflow has."""
    wanted = list(_wanted(ledger, folder))
    if not wanted:
        return []
    say(f"exporting the best encoder of {len(wanted)} arm{'s' if len(wanted) > 1 else ''} for MLflow")

    def write(number: int, trial: Trial) -> tracking.Encoder | str:
        path = made / str(number)
        if stopping():
            return f"the encoder of {trial.arm} is not logged in MLflow: the session was stopped"
        try:
            export.export(folder, trial.id, path)
        except (RunError, RuntimeError, *ABSENT) as error:
            return f"the encoder of {trial.arm} is not logged in MLflow: {error}"
        return tracking.Encoder(trial, path)

    with ThreadPoolExecutor(AT_ONCE) as pool:
        written: Sequence[tracking.Encoder | str] = list(pool.map(write, range(len(wanted)), wanted))
    for encoder in written:
        if isinstance(encoder, str):
            say(f"note: {encoder}")
    return [encoder for encoder in written if not isinstance(encoder, str)]


def _wanted(ledger: Ledger, folder: RunFolder) -> Iterator[Trial]:
    run, trials = ledger.run, ledger.trials()
    logged = tracking.logged(ledger.events())
    if is_import_path(str(run.sweep["job"].get("task"))):
        return  # the encoder of a task of the user's own is code that whoever loads it would not have
    for arm in dict.fromkeys(trial.arm for trial in trials if trial.stage == "confirm"):
        with contextlib.suppress(RunError):  # none of its confirm trials ended well: there is no encoder to log
            trial, _ = export.choose(run, trials, arm, folder)
            if trial.id not in logged:
                yield trial
