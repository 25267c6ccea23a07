"""The verbs of the command line that take an address."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TypedDict

from jobs.core.paths import DIGITS, is_built
from orchestrator import sweep as sweeps
from orchestrator.cli.submission import asking, meaning
from orchestrator.cli.submission.follow import code_of, drives, followed, of_run, run_and_follow
from orchestrator.cli.submission.package import JobSpec, environment
from orchestrator.cli.submission.server import DRIVES, Job, JobServer, ServerUnavailable
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.bucket import is_uri, refuse_almost_uri
from orchestrator.run_dir.environment import origin
from orchestrator.run_dir.folder import RunError
from orchestrator.run_dir.status import Status
from orchestrator.session.cluster.board import FRESH_S, Posted, hash_of
from orchestrator.sweep import plan as planning
from orchestrator.system.exit_codes import InfrastructureMissing

Write = Callable[[str], None]


STATUS_S = 2.0
"""How often a driver that has not said anything yet is looked at."""


def launch(
    url: str,
    sweep_file: Path,
    into: str | None,
    *,
    overrides: Sequence[str],
    offline: bool,
    accept_code: bool = False,
    variables: Sequence[str],
    detach: bool,
    write: Write,
    tell: Write,
) -> int:
    """Run a sweep on the cluster at `url`, or follow or continue it there. Returns the driver's exit code.

    Raises ConfigError, RunError, BadAddress, InfrastructureMissing.
    """
    sweep = sweeps.load(sweep_file, overrides)
    plan = planning.make(sweep)
    run = _kept_elsewhere(into, f"--into s3://BUCKET/{sweep.name}")
    flags = [flag for flag, on in (("--offline", offline), ("--accept-code", accept_code)) if on]
    arguments = ["launch", "sweep.toml", "--into", run, *flags]
    order = JobSpec(
        verb="launch",
        run=run,
        arguments=[*arguments, *(part for override in overrides for part in ("--set", override))],
        sweep_file=sweep_file,
        sweep=hash_of(sweep),
        sources=sorted({source for arm in plan.arms for source in _sources(arm)}),
        code=sweeps.code_of(sweep, sweep_file.parent),
        environment=environment(variables),
        origin=origin(),
    )
    return run_and_follow(_reached(url), order, write=write, tell=tell, detach=detach)


def resume(
    url: str,
    run: str,
    arguments: Sequence[str],
    *,
    variables: Sequence[str],
    detach: bool,
    write: Write,
    tell: Write,
    verb: str = "resume",
) -> int:
    """Continue a run on the cluster at `url`, or extend it. Returns the driver's exit code; raises as `launch` does."""
    order = JobSpec(
        verb=verb,
        run=_kept_elsewhere(run, "s3://BUCKET/NAME"),
        arguments=[verb, run, *arguments],
        environment=environment(variables),
        origin=origin(),
    )
    return run_and_follow(_reached(url), order, write=write, tell=tell, detach=detach)


def run_remote(
    url: str, run: str | None, arguments: Sequence[str], *, out: Write, err: Write, into: Path | None = None
) -> int:
    """Run a verb that ends by itself on the head of the cluster at `url`, where ledger and bucket are in reach.

    run: None for a verb of no run. into: a folder for the files that the verb makes; of them the argument HERE stands
    for a new folder there. Returns the exit code; what was printed goes to `out` and `err`. Raises RunError,
    BadAddress, InfrastructureMissing.
    """
    named = "" if run is None else _kept_elsewhere(run, "s3://BUCKET/NAME")
    order = JobSpec(verb=arguments[0], run=named, arguments=arguments)
    return asking.run(_reached(url), order, out=out, err=err, tell=_line(err), into=into)


def run_doctor(
    url: str,
    sweep_file: Path | None,
    into: str | None,
    *,
    overrides: Sequence[str],
    flags: Sequence[str],
    variables: Sequence[str],
    out: Write,
    err: Write,
) -> int:
    """Run the doctor on the head of the cluster at `url`, with what `launch` would take along.

    Returns as `run_remote` does. Raises ConfigError, RunError, BadAddress, InfrastructureMissing.
    """
    where = ["--anywhere"] if into is None else ["--into", _kept_elsewhere(into, "--into s3://BUCKET/NAME")]
    arguments = ["doctor", *(["sweep.toml"] if sweep_file else []), *where, *flags]
    order = _of_sweep(arguments, sweep_file, overrides, variables, run=into or "")
    return asking.run(_reached(url), order, out=out, err=err, tell=_line(err))


def plan(url: str, sweep_file: Path, *, overrides: Sequence[str], flags: Sequence[str], out: Write, err: Write) -> int:
    """Plan a sweep on the head of the cluster at `url`: with its nodes, and the earlier runs in its ledger. Returns and
    raises as `run_doctor` does."""
    order = _of_sweep(["plan", "sweep.toml", *flags], sweep_file, overrides, ())
    return asking.run(_reached(url), order, out=out, err=err, tell=_line(err))


def _of_sweep(
    arguments: Sequence[str],
    sweep_file: Path | None,
    overrides: Sequence[str],
    variables: Sequence[str],
    *,
    run: str = "",
) -> JobSpec:
    """Make a question about a sweep, which goes along with its data. Raises ConfigError, RunError."""
    sources: set[str] = set()
    code = None
    if sweep_file is not None:
        sweep = sweeps.load(sweep_file, overrides)
        made, code = planning.make(sweep), sweeps.code_of(sweep, sweep_file.parent)
        sources = {source for arm in made.arms for source in _sources(arm)}
    return JobSpec(
        verb=arguments[0],
        run=run,
        arguments=[*arguments, *(part for override in overrides for part in ("--set", override))],
        sweep_file=sweep_file,
        sources=sorted(sources),
        code=code,
        environment=environment(variables),
    )


def posted(url: str, run: str) -> Posted | None:
    """Read what the driver of a run has written of it just now, which takes no job; None where nobody drives it on the
    cluster at `url`, or the driver does not say. Raises as `run_remote` does."""
    return _known(JobServer(url), _kept_elsewhere(run, "s3://BUCKET/NAME"))[1]


def standing(url: str, run: str) -> Status | None:
    """Read only the status that the driver has written, without its trials where they are too many."""
    written = posted(url, run)
    return None if written is None else written.status


def wait_for_status(url: str, run: str, *, tell: Write) -> None:
    """Wait until the job that drives a run, if any, says how it stands or ends, or has long had the time to. Raises as
    `run_remote` does."""
    server, name, announced = JobServer(url), _kept_elsewhere(run, "s3://BUCKET/NAME"), False
    deadline: float | None = None
    while True:
        driving, written = _known(server, name)
        if driving is None or written is not None:
            return
        if driving.state == "RUNNING":
            deadline = deadline or time.monotonic() + FRESH_S
            if time.monotonic() > deadline:
                tell(f"job {driving.id} does not say how the run stands; its ledger is asked, once")
                return
        if not announced:
            tell(f"job {driving.id} has not said yet how the run stands; waiting for it, Ctrl-C leaves")
        announced = True
        time.sleep(STATUS_S)


def _known(server: JobServer, run: str) -> tuple[Job | None, Posted | None]:
    """Find the job that drives a run, and what it says of the run."""
    try:
        driving = drives(server.jobs(), run)
    except ServerUnavailable as error:
        raise _no_server(server.url, error) from error
    if driving is None or driving.posted is None or not driving.posted.is_fresh(server.now):
        return driving, None
    return driving, driving.posted


def follow_driver(url: str, run: str, *, write: Write, tell: Write) -> int:
    """Follow the job that drives a run, or print what the last one printed. Returns the driver's exit code.

    Raises RunError, InfrastructureMissing.
    """
    server = _reached(url)
    try:
        jobs = server.jobs()
        jobs = [known_job for known_job in jobs if known_job.verb in DRIVES]
        job = drives(jobs, run) or next(iter(reversed(of_run(jobs, run))), None)
        if job is None:
            known = sorted({known_job.run for known_job in jobs})
            raise RunError(f"no job on {server.url} drives {run}; jobs there are of: {', '.join(known) or 'no run'}")
        ended = followed(server, job, write, tell)
    except ServerUnavailable as error:
        raise InfrastructureMissing(f"{server.url} no longer answers: {error}") from error
    if ended is None:
        raise InfrastructureMissing(
            f"the cluster came back without job {job.id}; go on: orchestrator resume {shlex.quote(run)} "
            f"--address {shlex.quote(server.url)}"
        )
    return code_of(server, ended, tell)


class ListedJob(TypedDict):
    """A job that drives or drove a run."""

    job: str
    run: str
    verb: str
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_code: int | None
    """Of the driver; None while it runs, and when it was lost."""
    started: float
    """Unix seconds."""
    meaning: str
    """For the run, in words."""
    next: str
    """The command that helps."""


def listed(url: str) -> list[ListedJob]:
    """List the jobs that drive or drove runs on the cluster at `url`, oldest first, and what that means for the run.
    Raises InfrastructureMissing."""
    server = _reached(url)
    rows: list[ListedJob] = []
    try:
        jobs = server.jobs()
    except ServerUnavailable as error:
        raise _no_server(server.url, error) from error
    for job in jobs:
        meant = meaning.of(job)
        if job.verb in DRIVES:
            rows.append(
                {
                    "job": job.id,
                    "run": job.run,
                    "verb": job.verb,
                    "state": job.state,
                    "exit_code": job.exit_code,
                    "started": job.started,
                    "meaning": meant.words,
                    "next": meant.next(job.run, server.url),
                }
            )
    return rows


def _reached(url: str) -> JobServer:
    """Return the job server after it has answered. Raises InfrastructureMissing."""
    server = JobServer(url)
    try:
        server.version()
    except ServerUnavailable as error:
        raise _no_server(server.url, error) from error
    return server


def _no_server(url: str, error: ServerUnavailable) -> InfrastructureMissing:
    return InfrastructureMissing(
        f"no job server of Ray answers at {url} ({error}); is the cluster up, and its dashboard's port forwarded? "
        "For example: kubectl port-forward svc/HEAD 8265"
    )


def _kept_elsewhere(run: str | None, example: str) -> str:
    """Return the name of a run that outlives the folder of the job that drives it. Raises RunError; BadAddress for
    credentials in it."""
    if run is None or not is_uri(run):
        refuse_almost_uri(run or "")
        given = "" if run is None else f", not in {run}"
        raise RunError(
            f"a job's folder goes with it, so a run on a cluster is kept in a bucket{given}; give its URI: {example}"
        )
    return runs.at(run).name


def _line(write: Write) -> Write:
    """Make a writer of lines."""
    return lambda text: write(f"{text}\n")


def _sources(arm: sweeps.Arm) -> list[str]:
    """List what an arm's jobs name as data or as an encoder, other than what has no files; the sources that a judge's
    options name too."""
    job = arm.config(stage="confirm", seed=0)
    beside = (job.evaluate.judge_options.get(key) for key in ("queries", "corpus", "references"))
    every = [*job.data.every_source, *(source for source in beside if isinstance(source, str))]
    data = [source for source in every if source.partition("[")[0] != DIGITS]
    encoders = [name for name in (job.model.name, job.loss.guide) if name is not None and not is_built(name)]
    return [*data, *encoders]
