"""The verbs of the command line that take an address."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jobs.config import canonical
from orchestrator import plan as planning
from orchestrator import runs
from orchestrator import sweep as sweeps
from orchestrator.environment import origin
from orchestrator.readiness import InfrastructureMissing
from orchestrator.remote import is_uri
from orchestrator.runs import RunError

from .follow import DRIVES, attend, drives, followed, mark_of
from .package import Order, entrypoint, environment, package
from .server import RUN, VERB, JobServer, ServerAway

Write = Callable[[str], None]


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
    order = Order(
        verb="launch",
        run=run,
        arguments=[*arguments, *(part for one in overrides for part in ("--set", one))],
        sweep_file=sweep_file,
        sweep=_hash(sweep),
        sources=sorted({source for arm in plan.arms for source in _sources(arm)}),
        environment=environment(variables),
        origin=origin(),
    )
    return attend(_reached(url), order, write=write, tell=tell, detach=detach)


def resume(
    url: str, run: str, arguments: Sequence[str], *, variables: Sequence[str], detach: bool, write: Write, tell: Write
) -> int:
    """Continue a run on the cluster at `url`. Returns the driver's exit code; raises as `launch` does."""
    order = Order(
        verb="resume",
        run=_kept_elsewhere(run, "s3://BUCKET/NAME"),
        arguments=["resume", run, *arguments],
        environment=environment(variables),
        origin=origin(),
    )
    return attend(_reached(url), order, write=write, tell=tell, detach=detach)


def ask(url: str, run: str, arguments: Sequence[str]) -> tuple[int, str]:
    """Run a verb that ends by itself on the head of the cluster at `url`, where ledger and bucket are in reach.

    Returns its exit code and what it printed; the job is forgotten again. Raises RunError, BadAddress,
    InfrastructureMissing.
    """
    _kept_elsewhere(run, "s3://BUCKET/NAME")
    return _asked(url, Order(verb=arguments[0], run=run, arguments=arguments))


def examine(
    url: str,
    sweep_file: Path | None,
    into: str | None,
    *,
    overrides: Sequence[str],
    flags: Sequence[str],
    variables: Sequence[str],
) -> tuple[int, str]:
    """Run the doctor on the head of the cluster at `url`, with what `launch` would take along. Returns as `ask` does.

    Raises ConfigError, RunError, BadAddress, InfrastructureMissing.
    """
    sources: set[str] = set()
    if sweep_file is not None:
        plan = planning.make(sweeps.load(sweep_file, overrides))
        sources = {source for arm in plan.arms for source in _sources(arm)}
    place = ["--anywhere"] if into is None else ["--into", _kept_elsewhere(into, "--into s3://BUCKET/NAME")]
    arguments = ["doctor", *(["sweep.toml"] if sweep_file else []), *place, *flags]
    order = Order(
        verb="doctor",
        run=into or "",
        arguments=[*arguments, *(part for one in overrides for part in ("--set", one))],
        sweep_file=sweep_file,
        sources=sorted(sources),
        environment=environment(variables),
    )
    return _asked(url, order)


def _asked(url: str, order: Order) -> tuple[int, str]:
    server, name = _reached(url), f"ask-{order.verb}-{uuid.uuid4().hex[:8]}"
    printed: list[str] = []
    try:
        with package(order) as runtime_env:
            metadata = {RUN: order.run, VERB: order.verb}
            server.submit(name, entrypoint(order, mark_of(name)), runtime_env=runtime_env, metadata=metadata)
        job = server.job(name)
        ended = None if job is None else followed(server, job, printed.append, lambda _: None)
        if ended is None or ended.exit_code is None:
            why = "it was lost" if ended is None else ended.message
            raise InfrastructureMissing(f"the cluster at {url} could not run `{order.verb}`: {why}")
        server.delete(name)
    except ServerAway as error:
        raise InfrastructureMissing(f"{url} no longer answers: {error}") from error
    return ended.exit_code, "".join(printed)


def follow_driver(url: str, run: str, *, write: Write, tell: Write) -> int:
    """Follow the job that drives a run, or print what the last one printed. Returns the driver's exit code.

    Raises RunError, InfrastructureMissing.
    """
    server = _reached(url)
    try:
        jobs = server.jobs()
        job = drives(jobs, run) or next((one for one in reversed(jobs) if one.run == run), None)
        if job is None:
            known = sorted({one.run for one in jobs if one.run})
            raise RunError(f"no job on {url} drives {run}; jobs there are of: {', '.join(known) or 'no run'}")
        ended = followed(server, job, write, tell)
    except ServerAway as error:
        raise InfrastructureMissing(f"{url} no longer answers: {error}") from error
    return 0 if ended is None else ended.exit_code or 0


def listed(url: str) -> list[dict[str, Any]]:
    """The jobs that drive or drove runs on the cluster at `url`, oldest first. Raises InfrastructureMissing."""
    jobs = _reached(url).jobs()
    return [
        {"job": one.id, "run": one.run, "verb": one.verb, "state": one.state, "exit_code": one.exit_code,
         "started": one.started}
        for one in jobs
        if one.verb in DRIVES
    ]  # fmt: skip


def _reached(url: str) -> JobServer:
    """The job server, which answers. Raises InfrastructureMissing."""
    server = JobServer(url)
    try:
        server.version()
    except ServerAway as error:
        raise InfrastructureMissing(
            f"no job server of Ray answers at {url} ({error}); is the cluster up, and its dashboard's port forwarded? "
            "For example: kubectl port-forward svc/HEAD 8265"
        ) from error
    return server


def _kept_elsewhere(run: str | None, example: str) -> str:
    """A run that outlives the folder of the job that drives it. Raises RunError; BadAddress for credentials in it."""
    if run is None or not is_uri(run):
        found = "" if run is None else f", not in {run}"
        raise RunError(
            f"a job's folder goes with it, so a run on a cluster is kept in a bucket{found}; give its URI: {example}"
        )
    runs.at(run)
    return run


def _hash(sweep: sweeps.Sweep) -> str:
    """Whether two sweeps are the same. The order of the factors counts: the first one decides the contrasts."""
    asked = [sweeps.resolved(sweep), list(sweep.compare)]
    return hashlib.sha256(canonical(asked).encode()).hexdigest()[:16]


def _sources(arm: sweeps.Arm) -> list[str]:
    job = arm.config(stage="confirm", seed=0)
    named = [job.data.train, job.data.tune, job.data.confirm, job.model.name]
    return [one for one in named if one is not None]
