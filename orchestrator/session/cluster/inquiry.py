"""Questions to every node of the connected cluster at once."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from orchestrator.session.cluster.capacity import Node, node_from

if TYPE_CHECKING:
    from ray.actor import ActorHandle

Asked = TypeVar("Asked")
Value = TypeVar("Value")


@dataclass(frozen=True)
class Answer(Generic[Value]):
    """What a node answered to a question."""

    name: str
    """Its address, and the beginning of its id."""

    node: Node
    value: Value | None = None
    error: str | None = None
    """Why there is no value."""

    ahead_s: float = 0.0
    """How far its clock is ahead of this process's."""


class _Examined:
    """On one node: calls a function, and tells the time."""

    def call(self, function: Callable[[Asked], Value], asked: Asked) -> Value:
        return function(asked)

    def clock(self) -> float:
        return time.time()


def ask(function: Callable[[Asked], Value], about: Callable[[Node], Asked], *, limit_s: float) -> list[Answer[Value]]:
    """Call `function`, which is imported there, on every living node of the connected cluster at once, with what
    `about` says of that node. A node that has not answered in `limit_s` seconds gets an error."""
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    nodes = [record for record in ray.nodes() if record["Alive"]]
    examined: Any = ray.remote(num_cpus=0, max_restarts=0)(_Examined)  # Ray's types know no methods of actors
    begun: list[tuple[str, Node, ActorHandle[_Examined], ray.ObjectRef[Value]]] = []
    for record in nodes:
        name, node = f"{record['NodeManagerAddress']} ({record['NodeID'][:8]})", node_from(record["Resources"])
        actor: ActorHandle[_Examined] = examined.options(
            scheduling_strategy=NodeAffinitySchedulingStrategy(record["NodeID"], soft=False)
        ).remote()
        begun.append((name, node, actor, actor.call.remote(function, about(node))))
    refs = [ref for *_, ref in begun]
    ray.wait(refs, num_returns=len(refs), timeout=limit_s)
    answers: list[Answer[Value]] = []
    for name, node, actor, ref in begun:
        try:
            answers.append(Answer(name, node, ray.get(ref, timeout=0), ahead_s=_ahead(actor)))
        except ray.exceptions.GetTimeoutError:
            answers.append(Answer(name, node, error=f"it has not answered for {limit_s:.0f} s"))
        except ray.exceptions.RayError as error:
            answers.append(Answer(name, node, error=(str(error).strip().splitlines() or [type(error).__name__])[-1]))
        ray.kill(actor)
    return answers


def _ahead(actor: ActorHandle[_Examined]) -> float:
    """Estimate the clock of an actor's node minus this one's, from the quickest of a few questions."""
    import ray

    tries: list[tuple[float, float]] = []
    for _ in range(5):
        asked = time.time()
        clock: ray.ObjectRef[float] = actor.clock.remote()
        there = ray.get(clock, timeout=10)
        answered = time.time()
        tries.append((answered - asked, there - (asked + answered) / 2))
    return min(tries)[1]
