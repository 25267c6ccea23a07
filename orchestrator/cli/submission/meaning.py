"""What the end of a job that drives a run means for the run. Ray calls all that did not end with 0 failed, also what a
person has stopped."""

from __future__ import annotations

import shlex
import signal
from dataclasses import dataclass

from orchestrator.cli.submission.server import Job
from orchestrator.system.exit_codes import Exit

DIED = ("JOB_SUPERVISOR_ACTOR_DIED", "JOB_SUPERVISOR_ACTOR_UNKNOWN_FAILURE")
"""Ray's words for a job whose node or supervisor is gone."""


def _by_signal(number: signal.Signals) -> tuple[int, int]:
    """Return the exit codes after a signal: of the process that it ended, and of a shell that had this process as its
    command."""
    return -number, 128 + number


KILLED = _by_signal(signal.SIGKILL)

STOPPED = (Exit.INTERRUPTED, *_by_signal(signal.SIGINT), *_by_signal(signal.SIGTERM), *_by_signal(signal.SIGHUP))

ENDED = {
    Exit.DONE: "done",
    Exit.SOME_FAILED: "some trials failed",
    Exit.BAD_USAGE: "refused",
    Exit.HELD: "another driver held the run",
    Exit.MISSING: "something it needs was missing",
    Exit.CLUSTER_DIED: "the cluster died, resumable",
}
"""By the driver's exit code."""

LOOKS = {Exit.SOME_FAILED: "status", Exit.BAD_USAGE: "logs", Exit.MISSING: "logs"}
"""The verb that says why, for ends that continuing does not mend by itself."""


@dataclass(frozen=True)
class Meaning:
    """What became of a job."""

    words: str
    code: int | None
    """With what whoever follows the job ends; None while it goes on."""

    verb: str
    """What to do next with the run."""

    def next(self, run: str, url: str) -> str:
        """Return the command for whoever reaches the job server at `url`."""
        return f"orchestrator {self.verb} {shlex.quote(run)} --address {shlex.quote(url)}"


def of(job: Job) -> Meaning:
    """Derive what a job means for its run."""
    if not job.over:
        return Meaning("running" if job.state == "RUNNING" else "waiting to start", None, "logs")
    if job.state == "SUCCEEDED":
        return Meaning(ENDED[Exit.DONE], Exit.DONE, "compare")
    if job.state == "STOPPED" or job.exit_code in STOPPED:
        return Meaning("stopped, resumable", Exit.INTERRUPTED, "resume")
    if job.error in DIED or job.exit_code in KILLED:
        return Meaning("killed, resumable", Exit.CLUSTER_DIED, "resume")
    if job.exit_code is None:
        return Meaning("could not start", Exit.MISSING, "logs")
    known = job.exit_code in ENDED
    words = ENDED[Exit(job.exit_code)] if known else f"failed with {job.exit_code}"
    return Meaning(words, job.exit_code, LOOKS.get(Exit(job.exit_code), "resume") if known else "logs")
