"""A job that drives a run, from wherever it stands to its end: found or submitted, followed, run again if lost."""

from __future__ import annotations

import contextlib
import shlex
import time
import uuid
from collections.abc import Callable

from orchestrator.cli.submission import meaning
from orchestrator.cli.submission.package import JobSpec, entrypoint, package
from orchestrator.cli.submission.server import (
    ADDRESS,
    DRIVES,
    ORDER,
    REQUEST,
    RUN,
    VERB,
    Job,
    JobServer,
    ServerUnavailable,
)
from orchestrator.run_dir.bucket import BadAddress, is_uri
from orchestrator.run_dir.folder import ASKED, RunError, at
from orchestrator.session.cluster.board import SWEEP
from orchestrator.system.addresses import ADDRESS as ADDRESS_VARIABLE
from orchestrator.system.exit_codes import Exit, InfrastructureMissing

WAIT_S = 1800.0
"""How long a cluster that has gone may take to come back."""

ASK_S = 2.0

LOSSES = 5
"""How often in a row a job is run again that was lost before it ended anything."""


def log_marker(job: str) -> str:
    """Return the line that comes before a job's own first line."""
    return f"<<{job}\n"


class _Output:
    """A job's log in whole lines: without Ray's own, and without what came before a connection broke."""

    def __init__(self, job: str, write: Callable[[str], None]) -> None:
        self._mark, self._write = log_marker(job).rstrip("\n"), write
        # Ray writes this line before ours and flushes it after them.
        self._rays = f"Running entrypoint for job {job}: "
        self._passed_on = 0
        self.restart()

    def restart(self) -> None:
        """Begin anew: the log comes again from its first line."""
        self._pieces: list[str] = []
        self._begun, self._seen = False, 0

    def take(self, text: str) -> None:
        """Take more of the log."""
        *lines, rest = text.split("\n")
        for line in lines:
            self._line("".join(self._pieces) + line)
            self._pieces.clear()
        if rest:
            self._pieces.append(rest)

    def end(self) -> None:
        """End the log, also where its last line has no end."""
        if self._pieces:
            self.take("\n")

    def _line(self, line: str) -> None:
        if not self._begun:
            self._begun = line.endswith(self._mark)
        elif not line.startswith(self._rays):
            self._seen += 1
            if self._seen > self._passed_on:
                self._passed_on = self._seen
                self._write(f"{line}\n")


def drives(jobs: list[Job], run: str) -> Job | None:
    """Find the job that drives a run now."""
    return next((job for job in reversed(of_run(jobs, run)) if job.verb in DRIVES and not job.over), None)


def of_run(jobs: list[Job], run: str) -> list[Job]:
    """List the jobs that have to do with a run, by whichever of its spellings."""
    return [job for job in jobs if _spelled(job.run) == _spelled(run)]


def _spelled(run: str) -> str:
    try:
        return at(run).name if is_uri(run) else run
    except BadAddress:  # of a job that an older version submitted
        return run


def run_and_follow(
    server: JobServer,
    order: JobSpec,
    *,
    write: Callable[[str], None],
    tell: Callable[[str], None],
    detach: bool = False,
) -> int:
    """Have the run driven on the cluster, and follow that until it ends. Returns the driver's exit code.

    A job that drives the run already is followed instead of submitting another. A job lost with its head is
    submitted again when the cluster is back: it continues, and asks for nothing again that was met. Raises
    KeyboardInterrupt when somebody leaves, which the job does not notice; RunError, InfrastructureMissing.
    """
    lost, asked = 0, uuid.uuid4().hex
    while True:
        try:
            job = _found_or_submitted(server, order, asked, tell)
            asked = job.asked or asked  # of one that was joined: what it has met is not asked for again
            if detach:
                return 0
            ended = followed(server, job, write, tell)
        except ServerUnavailable as error:
            _wait_for(server, str(error), tell)
            continue
        if ended is None:
            tell("the cluster came back without the job")
        elif meaning.of(ended).code == Exit.CLUSTER_DIED:
            tell(f"the job was lost ({ended.message.splitlines()[0][:200] if ended.message else ended.state})")
        else:
            return code_of(server, ended, tell)
        lost += 1
        if lost > LOSSES:
            return Exit.CLUSTER_DIED
        tell("it is run again, and continues")


def code_of(server: JobServer, ended: Job, tell: Callable[[str], None]) -> int:
    """Return the exit code for whoever followed a job that is over; say what the end means, and what to do next.

    Raises InfrastructureMissing for a job that could not be run.
    """
    end = meaning.of(ended)
    if ended.exit_code is None and end.code == Exit.MISSING:
        raise InfrastructureMissing(f"the cluster could not run job {ended.id}: {ended.message}")
    if end.code:
        code = "" if ended.exit_code is None else f" (exit code {ended.exit_code})"
        tell(f"job {ended.id}: {end.words}{code}; next: {end.next(ended.run, server.url)}")
    return end.code or Exit.DONE


def _found_or_submitted(server: JobServer, order: JobSpec, asked: str, tell: Callable[[str], None]) -> Job:
    while True:
        jobs = server.jobs()
        driving = drives(jobs, order.run)
        if driving is not None:
            _refuse_another(driving, order, server.url)
            tell(f"{order.run} is driven by job {driving.id} since {_clock(driving.started)}; this follows it")
            return driving
        taken = [int(number) for job in jobs if (number := job.id.removeprefix(order.name + "-")).isdigit()]
        name = f"{order.name}-{1 + max(taken, default=0)}"  # two who submit at once meet at the same id
        metadata = {RUN: order.run, VERB: order.verb, ORDER: order.digest, REQUEST: asked, ADDRESS: server.url}
        metadata |= {SWEEP: order.sweep} if order.sweep else {}
        with package(order) as runtime_env:
            runtime_env["env_vars"] |= {ASKED: asked, ADDRESS_VARIABLE: server.url}
            made = server.submit(name, entrypoint(order, log_marker(name)), runtime_env=runtime_env, metadata=metadata)
        if not made:
            continue
        job = server.job(name)
        if job is None:
            raise ServerUnavailable("it has forgotten the job that it just took")
        tell(f"job {name} on {server.url} drives {order.run}")
        return job


def _refuse_another(driving: Job, order: JobSpec, url: str = "URL") -> None:
    """Raise RunError for an order that asks for something else than the driving job does. The same order joins the job
    that it was given to, a launch joins one of the same sweep, and a plain resume joins any."""
    same = driving.order == order.digest or (order.verb == "launch" and driving.sweep == order.sweep)
    plain = order.verb == "resume" and len(order.arguments) == 2
    if same or plain:
        return
    there = f"{shlex.quote(order.run)} --address {shlex.quote(url)}"
    if order.verb == "launch" and driving.sweep is None:
        raise RunError(
            f"{order.run} is driven by job {driving.id}, which has not said yet of which sweep it is; try again in a "
            f"minute, or follow it: orchestrator logs {there}"
        )
    what = "another sweep" if order.verb == "launch" else "other options"
    raise RunError(f"{order.run} is driven by job {driving.id} with {what}; stop that first: orchestrator stop {there}")


def followed(server: JobServer, job: Job, write: Callable[[str], None], tell: Callable[[str], None]) -> Job | None:
    """Pass on the log of a job until it is over. Returns the job as it ended, or None if the server lost it.

    The commands in it get the address that reaches the server from here.
    """
    theirs, ours = (f" --address {shlex.quote(url)}" for url in (job.address or server.url, server.url))
    output = _Output(job.id, lambda line: write(line.replace(theirs, ours)))
    while True:
        try:
            output.restart()
            server.tail(job.id, output.take)
            current = server.job(job.id)
        except ServerUnavailable as error:
            _wait_for(server, str(error), tell)
            current = server.job(job.id)
            if current is not None and not current.over:
                tell("it answers again, and the job goes on")
                continue
            output.restart()
            with contextlib.suppress(ServerUnavailable):
                output.take("" if current is None else server.log(job.id))
        if current is None or current.over:
            output.end()
            return current
        time.sleep(ASK_S)  # its log ended a moment before the job does


def _wait_for(server: JobServer, why: str, tell: Callable[[str], None]) -> None:
    """Wait until the server answers. Raises InfrastructureMissing when that takes too long."""
    tell(f"{server.url} does not answer ({why}); waiting for it, Ctrl-C leaves")
    deadline = time.monotonic() + WAIT_S
    while True:
        try:
            server.jobs()
        except ServerUnavailable as error:
            if time.monotonic() > deadline:
                raise InfrastructureMissing(
                    f"{server.url} has not answered for {WAIT_S / 60:.0f} minutes ({error}); when it is back, the same "
                    "command continues the run"
                ) from error
            time.sleep(ASK_S)
        else:
            return


def _clock(seconds: float) -> str:
    return time.strftime("%H:%M:%S", time.localtime(seconds))
