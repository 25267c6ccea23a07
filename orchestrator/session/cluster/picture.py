"""Asks Ray who holds what of the connected cluster, and who waits: the picture that sharing.py has rules for.

The questions are those of Ray's autoscaler and of its job list, to the GCS, a millisecond each. No dashboard is needed.
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import ModuleType
from typing import Protocol

from jobs.core.plain import visible
from orchestrator.session.cluster.board import KeyValueStore
from orchestrator.session.cluster.sharing import PLAIN, Claim, Held, Picture

SWEEP, RUN, DRIVER = "orchestrator.sweep", "orchestrator.run", "orchestrator.driver"
"""What a driver of this program tells of itself in the metadata of its Ray job, which everybody on the cluster sees."""

STUCK, SPACE = b"left_out", b"orchestrator"
"""Key in the store of the cluster's head, and its namespace, under which sessions tell which claims they ignore."""

ANSWER_S = 5
"""How long the head may take for an answer."""

_GROUP = re.compile(r"(?P<name>.+)_group_(?P<group>[0-9a-f]{36})")
"""How Ray names what a placement group has of a node. The last four bytes of a group's id are its job's."""

_UNCOUNTED = re.compile(r"object_store_memory|node:.*|bundle|.*_group_.*")


class _Client(KeyValueStore, Protocol):
    """What of Ray's client of the GCS is used, which has no types."""

    def get_cluster_resource_state(self, *, timeout_s: float) -> bytes:
        """Return the message that Ray's autoscaler asks for."""


class _Tables(Protocol):
    """What of Ray's accessor of the GCS is used."""

    def get_actor_table(self, job_id: None, state: str) -> list[bytes]:
        """Return the messages of the actors in a state."""

    def get_job_table(self, *, skip_submission_job_info_field: bool, skip_is_running_tasks_field: bool) -> list[bytes]:
        """Return the messages of all jobs."""


class _NodeState(Protocol):
    """A node, in Ray's message about the cluster."""

    total_resources: Mapping[str, float]


class _Bundle(Protocol):
    """Resources that are wanted together."""

    resources_bundle: Mapping[str, float]


class _GangRequest(Protocol):
    """A placement group that waits."""

    details: str
    requests: Iterable[_Bundle]


class _Request(Protocol):
    """A task or an actor that waits."""

    request: _Bundle


class _JobConfig(Protocol):
    """What a driver says of its job."""

    metadata: Mapping[str, str]


class _Address(Protocol):
    """Where a process is."""

    ip_address: str


class _JobMessage(Protocol):
    """A Ray job, in the GCS's table of them."""

    job_id: bytes

    config: _JobConfig
    driver_pid: int
    driver_address: _Address
    driver_ip_address: str
    entrypoint: str


@dataclass(frozen=True)
class Owner:
    """Whose a Ray job is."""

    job: str
    sweep: str | None = None
    """Of the run that it drives, if this program does."""

    run: str = ""
    driver: str = ""
    entrypoint: str = ""
    where: str = ""
    """Pid and address of its driver."""

    def __str__(self) -> str:
        if self.sweep is not None:
            return visible(f"sweep {self.sweep} ({self.run}, driven by {self.driver}, Ray job {self.job})")
        known = ", ".join(filter(None, (_program(self.entrypoint), self.where)))
        return visible(f"Ray job {self.job}{f' ({known})' if known else ''}")


class Painter:
    """Makes pictures of the connected cluster; remembers whose each job is."""

    def __init__(self) -> None:
        self.owners: dict[str, Owner] = {}

    def picture(self) -> Picture:
        """Take a picture of the cluster as it is now. Raises whatever Ray raises when its head does not answer."""
        import ray
        from ray.core.generated import autoscaler_pb2

        messages: ModuleType = autoscaler_pb2  # whose names are made when it is loaded
        answer = _client().get_cluster_resource_state(timeout_s=ANSWER_S)
        reply = messages.GetClusterResourceStateReply.FromString(answer)
        state = reply.cluster_resource_state
        nodes = [node for node in state.node_states if node.status != messages.NodeStatus.DEAD]
        held = _held(nodes)
        claims = [*_groups(state.pending_gang_resource_requests), *_plain(state.pending_resource_requests)]
        jobs = {group.job for group in held} | {claim.job for claim in claims} - {PLAIN}
        if jobs - self.owners.keys():
            self.owners = _owners()
        return Picture(
            str(ray.get_runtime_context().get_job_id()),
            tuple(_counted(node.total_resources) for node in nodes),
            tuple(_counted(node.available_resources) for node in nodes),
            tuple(held),
            tuple(claims),
            frozenset(job for job, owner in self.owners.items() if owner.sweep is not None),
        )

    def left_out(self) -> dict[str, tuple[float, float]]:
        """Read the claims that sessions on this cluster ignore, by id: until which unix time, for how many seconds."""
        stored = _client().internal_kv_get(STUCK, namespace=SPACE, timeout=ANSWER_S)
        try:
            return {str(claim): (float(until), float(s)) for claim, (until, s) in json.loads(stored or b"{}").items()}
        except (ValueError, TypeError, AttributeError):  # of another version
            return {}

    def leave_out(self, claims: Mapping[str, tuple[float, float]]) -> None:
        """Store these claims as those of `left_out`, in place of the claims that are there."""
        value = json.dumps(dict(claims)).encode()
        _client().internal_kv_put(STUCK, value, True, namespace=SPACE, timeout=ANSWER_S)

    def owner(self, job: str) -> Owner:
        """Return the owner of a job."""
        return self.owners.get(job, Owner(job))

    def of_plain(self) -> list[Owner]:
        """Find the jobs with a living actor that has resources outside of a placement group, as far as Ray knows."""
        accessor, messages = _tables()
        actors = [messages.ActorTableData.FromString(message) for message in accessor.get_actor_table(None, "ALIVE")]
        jobs = {actor.job_id.hex() for actor in actors if _counted(actor.required_resources)}
        return [self.owner(job) for job in sorted(jobs)]


def _client() -> _Client:
    """Return the client that asks the connected cluster's GCS."""
    from ray._private import worker

    connected: ModuleType = worker
    client: _Client = connected.global_worker.gcs_client
    return client


def _program(entrypoint: str) -> str:
    """Name the program that a command runs, without arguments and without settings of the environment, which may be
    secrets: this goes to logs."""
    words = [word for word in entrypoint.split()[:20] if "=" not in word]
    name, *rest = [word.rpartition("/")[2] for word in words] or [""]
    if name.startswith("python") and rest[:1] == ["-m"]:
        name = " ".join([name, *rest[:2]])
    elif name.startswith("python") and rest and rest[0].endswith(".py"):
        name = f"{name} {rest[0]}"
    return name[:100]


def _held(nodes: Iterable[_NodeState]) -> list[Held]:
    groups: dict[str, dict[int, dict[str, float]]] = defaultdict(lambda: defaultdict(dict))
    for number, node in enumerate(nodes):
        for name, amount in node.total_resources.items():
            match = _GROUP.fullmatch(name)
            if match and not re.fullmatch(r"bundle|.+_group_\d+", match["name"]):
                groups[match["group"]][number][match["name"]] = amount
    return [Held(group, group[-8:], on) for group, on in sorted(groups.items())]


def _groups(requests: Iterable[_GangRequest]) -> list[Claim]:
    claims = []
    for request in requests:
        group, _, rest = request.details.partition(":")
        bundles = tuple(dict(bundle.resources_bundle) for bundle in request.requests)
        claims.append(Claim(group, group[-8:], bundles, rest.partition("|")[0]))
    return claims


def _plain(requests: Iterable[_Request]) -> list[Claim]:
    """Build one claim per shape of tasks and actors outside of groups: the next is a claim when the first is placed."""
    shapes = [
        _counted(pending.request.resources_bundle)
        for pending in requests
        if not _in_group(pending.request.resources_bundle)
    ]
    return [Claim(f"plain {sorted(shape.items())}", PLAIN, (shape,)) for shape in shapes if shape]


def _in_group(resources: Mapping[str, float]) -> bool:
    return any("_group_" in name for name in resources)


def _counted(resources: Mapping[str, float]) -> dict[str, float]:
    return {name: amount for name, amount in resources.items() if not _UNCOUNTED.fullmatch(name)}


def _owners() -> dict[str, Owner]:
    accessor, messages = _tables()
    messages_of_jobs = accessor.get_job_table(skip_submission_job_info_field=True, skip_is_running_tasks_field=True)
    return {owner.job: owner for owner in map(_owner, map(messages.JobTableData.FromString, messages_of_jobs))}


def _tables() -> tuple[_Tables, ModuleType]:
    """Return the accessor of the GCS tables, and the module of the messages that they hold."""
    from ray._private import state
    from ray.core.generated import gcs_pb2

    return state.state._connect_and_get_accessor(), gcs_pb2  # noqa: SLF001 - the public lists leave out what is needed


def _owner(job: _JobMessage) -> Owner:
    metadata = job.config.metadata
    where = f"pid {job.driver_pid} at {job.driver_address.ip_address or job.driver_ip_address}"
    return Owner(
        job.job_id.hex(),
        metadata.get(SWEEP),
        metadata.get(RUN, ""),
        metadata.get(DRIVER, "") or where,
        job.entrypoint,
        where,
    )
