"""How long a sweep takes, from what trials like its own have taken: earlier runs' in their ledgers, or short probes.

    model    the estimate: pure functions of the plan and of what is known
    history  what earlier runs tell, read without writing
    probing  what a short training in processes of its own tells

Imports no torch, ray, optuna or mlflow, and is quick: `plan` calls it.
"""

from __future__ import annotations

import socket
from collections.abc import Callable
from dataclasses import replace

from orchestrator.preflight import requirements
from orchestrator.preflight.estimate.history import History, history
from orchestrator.preflight.estimate.model import ArmEstimate, Estimate, Known, cost, estimate
from orchestrator.preflight.estimate.probing import ProbeFailed, probe, probes
from orchestrator.preflight.estimate.text import time_line
from orchestrator.session.cluster import access, capacity
from orchestrator.sweep.plan import Plan
from orchestrator.system.addresses import address_option

__all__ = [
    "ArmEstimate",
    "Estimate",
    "History",
    "Known",
    "ProbeFailed",
    "cost",
    "estimate",
    "from_history",
    "from_probes",
    "history",
    "probe",
    "probes",
    "time_line",
]


def from_history(plan: Plan) -> Estimate:
    """Estimate from the ledgers within reach; no cluster is asked."""
    earlier, (at_once, notes) = history(), _at_once(plan)
    made = estimate(plan, earlier.known, concurrent=at_once, notes=notes)
    if not (made.unknown and earlier.skipped):
        return made
    more = f", and {len(earlier.skipped) - 1} more" if len(earlier.skipped) > 1 else ""
    return replace(made, notes=(*made.notes, f"a ledger could not be read, {earlier.skipped[0]}{more}"))


def from_probes(plan: Plan, *, tell: Callable[[str], None]) -> Estimate:
    """Estimate from short trainings on this machine, which take their time; see `probe`. Raises ProbeFailed."""
    at_once, notes = _at_once(plan)
    if address_option():
        notes = [*notes, f"the probes ran on the cluster's head, {socket.gethostname()}; other nodes may be faster"]
    return estimate(plan, probe(plan, tell=tell), concurrent=at_once, notes=notes)


def _at_once(plan: Plan) -> tuple[int, list[str]]:
    """Count the trials that run at once. Returns that, and notes on it. Counted without connecting to a cluster, which
    takes seconds, except in a job, which takes as long anyway."""
    if address_option():
        at_once = requirements.concurrent(plan, requirements.max_world_size(plan))
        return max(1, at_once), [] if at_once else ["no trial fits into the cluster as it is now"]
    at_once = max(1, requirements.concurrent(plan, requirements.max_world_size(plan), [capacity.here()]))
    address = access.address()
    if address is None:
        return at_once, []
    return at_once, [f"trials at once are counted on this machine; the cluster at {address} was not asked"]
