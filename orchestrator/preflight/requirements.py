"""What must be there before a session begins: room for the largest trial, usable data, MLflow, a shared ledger."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import isfinite, nan

from jobs.config import ConfigError, ConfigIssue
from orchestrator.run_dir.context import Options, RunContext
from orchestrator.run_dir.folder import RunFolder
from orchestrator.session import cluster
from orchestrator.session.cluster import access, capacity
from orchestrator.sweep.plan import Plan, jobs_of
from orchestrator.system import scratch
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.system.terminal import caught

GRACE_S = 25.0
"""Seconds from SIGTERM to the hard end, unless $ORCHESTRATOR_GRACE_S says otherwise. Kubernetes and most pre-emptions
allow thirty."""


JOIN_S, LOOK_S = 60.0, 2.0
"""How long nodes of a cluster that was started again may take to join it, and between two looks."""


@dataclass(frozen=True)
class Requirements:
    """What a session needs, and what it has for that: asked once, before it begins, and read by all."""

    max_world_size: int
    """The largest world size that it meets: slots are alike, and hold so many ranks."""

    concurrent: int
    """Trials that run at once on the nodes of now; 0 if none fits."""

    can_autoscale: bool
    """Whether trials that wait make the cluster larger."""

    tracking_uri: str | None
    """MLflow's; None where it is left for later."""

    grace_s: float
    """Seconds that a SIGTERM leaves."""

    notes: tuple[str, ...] = ()
    """What a person should know of it."""

    @classmethod
    def of(cls, context: RunContext, *, say: Callable[[str], None]) -> Requirements:
        """Ask what the next session of a run needs; not the cluster where nothing is left to train: its nodes may be
        gone.

        say: gets a line about a wait for nodes that join later. Raises RunError, RemoteError, InfrastructureMissing,
        ScratchMissing or ConfigError.
        """
        plan, options = context.plan, context.options
        executions = [options.execution, *(attempt.execution for attempt in context.ledger.attempts())]
        ranks, at_once = max_world_size(plan, executions), 1
        uri, grace = _tracking(context.folder, options), grace_s()
        if context.is_left:
            await_room(plan, ranks, say=say)
            at_once = _trials_at_once(plan, ranks)
        return cls(ranks, at_once, can_autoscale(plan), uri, grace, _notes(context.folder))

    @classmethod
    def of_new(cls, plan: Plan, folder: RunFolder, options: Options) -> Requirements:
        """Ask what the first session of a run needs that is not there yet. Raises as `of` does."""
        ranks, uri, grace = max_world_size(plan), _tracking(folder, options), grace_s()
        return cls(ranks, _trials_at_once(plan, ranks), can_autoscale(plan), uri, grace, _notes(folder))


def _tracking(folder: RunFolder, options: Options) -> str | None:
    return None if options.offline else check_tracking(folder)


def _trials_at_once(plan: Plan, ranks: int) -> int:
    check_cluster(plan, ranks)
    return concurrent(plan, ranks)


def max_world_size(plan: Plan, executions: Iterable[Mapping[str, object]] = ()) -> int:
    """Return the largest world size of a sweep's jobs and of `executions`: settings that attempts were given or are to
    get."""
    given = [execution.get("ranks") for execution in executions]
    return max([job.execution.ranks for job in jobs_of(plan)] + [ranks for ranks in given if isinstance(ranks, int)])


def concurrent(plan: Plan, ranks: int, available: Sequence[capacity.Node] | None = None) -> int:
    """Count the trials of `ranks` ranks that run at once, on `available` or on what a session would find; 0 if none
    fits."""
    resources = plan.sweep.resources
    if resources.concurrent is not None and can_autoscale(plan):
        return resources.concurrent
    nodes = usable(plan, _nodes() if available is None else available)
    fit = capacity.slots(nodes, ranks=ranks, cpus=resources.cpus_per_rank, gpus=resources.gpus_per_rank)
    return fit if resources.concurrent is None else min(fit, resources.concurrent)


def can_autoscale(plan: Plan) -> bool:
    """Return whether trials that wait make the cluster larger."""
    return plan.sweep.resources.autoscale and access.address() is not None


def usable(plan: Plan, nodes: Sequence[capacity.Node]) -> list[capacity.Node]:
    """List the nodes that the sweep may run on. Only Ray can tell which GPUs a machine without an address has."""
    wanted = plan.sweep.resources.accelerator_type
    if wanted is None or access.address() is None:
        return list(nodes)
    return [node for node in nodes if wanted in node.accelerators]


@cache
def _nodes() -> list[capacity.Node]:
    """List the nodes to run on, asked once: to connect to a cluster takes seconds."""
    try:
        with caught() as printed:
            return cluster.nodes()
    except cluster.NoToken as error:
        missing = InfrastructureMissing(f"the Ray cluster at RAY_ADDRESS={access.address()}: {error}")
        missing.printed = printed.text
        raise missing from error
    except ConnectionError as error:
        missing = InfrastructureMissing(
            f"no Ray cluster answers at RAY_ADDRESS={access.address()} ({error}); start it, correct the address, or "
            "unset RAY_ADDRESS to run on this machine"
        )
        missing.printed = printed.text
        raise missing from error


def check_cluster(plan: Plan, ranks: int) -> None:
    """Check that the largest trial finds room. Raises ConfigError, or InfrastructureMissing where there are no GPUs, or
    none of their type."""
    resources, every = plan.sweep.resources, _nodes()
    nodes = usable(plan, every)
    if ranks > 1 and 0 < resources.gpus_per_rank < 1:
        expected = f"resources.gpus_per_rank = {resources.gpus_per_rank:g} is a share of a GPU, which allows one rank"
        raise ConfigError(plan.sweep.name, "sweep", [ConfigIssue("job.execution.ranks", str(ranks), expected)])
    if can_autoscale(plan):
        return
    if not nodes and every:
        known = sorted({kind for node in every for kind in node.accelerators})
        raise InfrastructureMissing(
            f"resources.accelerator_type = {resources.accelerator_type!r}, but the cluster has "
            f"{', '.join(known) or 'no GPU whose type Ray knows'}; name one of its types, or leave the key out"
        )
    if resources.gpus_per_rank and not capacity.fits(nodes, ranks=ranks, cpus=0, gpus=resources.gpus_per_rank):
        raise InfrastructureMissing(
            f"resources.gpus_per_rank = {resources.gpus_per_rank} for {ranks} ranks, but there are "
            f"{sum(node.gpus for node in nodes):g} GPUs; set it to 0 with --set resources.gpus_per_rank=0"
        )
    if not capacity.fits(nodes, ranks=ranks, cpus=resources.cpus_per_rank, gpus=0):
        needed, cpus = ranks * resources.cpus_per_rank, sum(node.cpus for node in nodes)
        expected = (
            f"with resources.cpus_per_rank = {resources.cpus_per_rank} that takes {needed} CPUs, and there are "
            f"{cpus:g}; use fewer, for example --set job.execution.ranks={max(1, int(cpus // resources.cpus_per_rank))}"
        )
        issue = ConfigIssue("job.execution.ranks", str(ranks), expected)
        raise ConfigError(plan.sweep.name, "sweep for this cluster", [issue])


def await_room(plan: Plan, ranks: int, *, say: Callable[[str], None]) -> None:
    """Wait until the largest trial of a run that was under way finds room, for `JOIN_S` at most: a cluster that was
    started again has its head before its nodes. Raises InfrastructureMissing where no cluster answers."""
    if access.address() is None:
        return
    resources, deadline, announced = plan.sweep.resources, time.monotonic() + JOIN_S, False

    def has_room() -> bool:
        nodes, cpus, gpus = usable(plan, _nodes()), resources.cpus_per_rank, resources.gpus_per_rank
        return can_autoscale(plan) or capacity.fits(nodes, ranks=ranks, cpus=cpus, gpus=gpus)

    while not has_room() and time.monotonic() < deadline:
        if not announced:
            say(f"the cluster has no room for a trial now; waiting for its nodes, {JOIN_S:.0f} s at most")
        announced = True
        time.sleep(LOOK_S)
        _nodes.cache_clear()


def check_places(folder: RunFolder, options: Options) -> None:
    """See that there is room for temporary files here; and for a run in a bucket a ledger and an MLflow that other
    machines reach, which are named and not asked yet. Raises RunError, RemoteError or ScratchMissing."""
    scratch.check()
    if folder.remote is not None:
        folder.ledger_url()
        if not options.offline:
            folder.mlflow_url()


def _notes(folder: RunFolder) -> tuple[str, ...]:
    if folder.remote is not None and folder.ledger_url().startswith("sqlite"):
        return ("ORCHESTRATOR_LEDGER is a file of SQLite, so only this machine can continue the run",)
    return ()


def check_tracking(folder: RunFolder) -> str:
    """Return the URI of MLflow after a check that it is there. Raises InfrastructureMissing, RemoteError."""
    from orchestrator import tracking

    uri = tracking_uri(folder)
    try:
        tracking.check(uri, writes=True)
    except tracking.TrackingUnavailable as error:
        raise InfrastructureMissing(f"{error}; or add --offline to project the run later") from error
    return uri


def tracking_uri(folder: RunFolder) -> str:
    """Return $MLFLOW_TRACKING_URI, or the embedded store beside the run folders: one for all of them. Raises
    RemoteError for a run in a bucket, which has no such store."""
    from orchestrator import tracking

    return folder.mlflow_url() or tracking.embedded_uri(folder.path.resolve().parent)


def grace_s() -> float:
    """Read the seconds that a SIGTERM leaves: $ORCHESTRATOR_GRACE_S. Raises InfrastructureMissing for what is no number
    of them: nan, inf, a negative number."""
    text = os.environ.get("ORCHESTRATOR_GRACE_S") or str(GRACE_S)
    try:
        seconds = float(text)
    except ValueError:
        seconds = nan
    if not (isfinite(seconds) and seconds >= 0):
        raise InfrastructureMissing(f"ORCHESTRATOR_GRACE_S={text} is no number of seconds; unset it, or give 25")
    return seconds
