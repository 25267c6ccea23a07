"""What nodes have, and how many slots they hold."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

TYPE = "accelerator_type:"
"""What the resource begins with by which Ray tells the type of a node's GPUs. There is one of each, of any size."""


@dataclass(frozen=True)
class Node:
    """What one node offers."""

    cpus: float
    gpus: float
    accelerators: frozenset[str] = frozenset()
    """Types of its GPUs, as Ray names them."""


def alive(nodes: Sequence[Mapping[str, Any]]) -> list[Node]:
    """Return the living nodes among those that `ray.nodes()` reports."""
    return [node_from(node["Resources"]) for node in nodes if node["Alive"]]


def node_of(actor: str) -> str:
    """Find the id of the node that has or had an actor (by id) of the connected cluster; empty if unknown."""
    from ray._private import state  # Ray's public way asks the dashboard, which a driver's own cluster has not

    known = state.actors(actor) if actor else {}
    return str(known.get("Address", {}).get("NodeID", ""))


def here() -> Node:
    """Return what this machine offers, without the type of its GPUs: Ray finds that out."""
    return Node(os.cpu_count() or 1, _gpus())


def fits(available: Sequence[Node], *, ranks: int, cpus: float, gpus: float) -> bool:
    """Return whether there is room for `ranks` bundles of `cpus` and `gpus`."""
    return slots(available, ranks=1, cpus=cpus, gpus=gpus) >= ranks


def slots(available: Sequence[Node], *, ranks: int, cpus: float, gpus: float) -> int:
    """Count the gangs of `ranks` that the cluster holds at once, however their ranks lie on its nodes: both placements
    are wishes, which yield before a gang has to wait."""
    return sum(_places(node, cpus=cpus, gpus=gpus) for node in available) // ranks


def node_from(resources: Mapping[str, float]) -> Node:
    """Build the node that has these resources of Ray's."""
    types = frozenset(name.removeprefix(TYPE) for name in resources if name.startswith(TYPE))
    return Node(resources.get("CPU", 0.0), resources.get("GPU", 0.0), types)


def _places(node: Node, *, cpus: float, gpus: float) -> int:
    """Count the ranks that a node holds. A share lies on one GPU: two GPUs hold two ranks of 0.6, not three."""
    counts = []
    if cpus:
        counts.append(int(node.cpus / cpus + 1e-9))
    if 0 < gpus < 1:
        counts.append(int(node.gpus) * int(1 / gpus + 1e-9))
    elif gpus:
        counts.append(int(node.gpus / gpus + 1e-9))
    return min(counts)


def _gpus() -> int:
    """Count the GPUs of this machine with nvidia-smi: the driver, which asks, does not load torch."""
    if shutil.which("nvidia-smi") is None:
        return 0
    listed = subprocess.run(["nvidia-smi", "-L"], capture_output=True, text=True, check=False).stdout
    return sum(line.startswith("GPU ") for line in listed.splitlines())
