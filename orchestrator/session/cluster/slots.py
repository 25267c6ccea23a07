"""The placement groups of a session that shares its cluster: asked for when its turn has come (room.py).

Tune asks for them one by one and never gives one back while it has trials. This is its own manager of placement groups,
which keeps a request to itself until it may be made. What is overridden is private to the version of Ray that
constraints.txt pins.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from ray.air.execution.resources.placement_group import (
    PlacementGroupAcquiredResources,
    PlacementGroupResourceManager,
)

from orchestrator.session.cluster.room import Room

if TYPE_CHECKING:
    from ray import ObjectRef
    from ray.air.execution.resources.request import AcquiredResources, ResourceRequest

PAUSE_S = 0.1
"""How long Tune's loop, with nothing else to wait for, waits for its turn at a time."""


class Slots(PlacementGroupResourceManager):  # type: ignore[misc, unused-ignore]
    """What Tune holds of the cluster."""

    _room: Room

    def __init__(self, update_interval_s: float = 0.1, room: Room | None = None) -> None:
        super().__init__(update_interval_s)  # type: ignore[no-untyped-call, unused-ignore]
        self._kept: list[ResourceRequest] = []
        """Requests that are not made yet."""
        if room is not None:  # the base class calls this again when it has let go of everything
            self._room = room

    def request_resources(self, resource_request: ResourceRequest) -> None:
        """Ask for a slot, now or when it may be asked for."""
        self._kept.append(resource_request)
        self._ask()

    def cancel_resource_request(self, resource_request: ResourceRequest) -> None:
        """Ask for one slot less."""
        if resource_request in self._kept:
            self._kept.remove(resource_request)
        else:
            super().cancel_resource_request(resource_request)
        self._note()

    def update_state(self) -> None:
        """See what is there."""
        self._ask()
        super().update_state()  # type: ignore[no-untyped-call, unused-ignore]
        self._note()

    def get_resource_futures(self) -> list[ObjectRef[object]]:
        """Return what Tune waits for. If that is nothing, pause first: Tune would ask again at once, for ever."""
        futures = list(super().get_resource_futures())
        if self._kept and not futures and not self._acquired_pgs:
            self._room.await_news(PAUSE_S)
        return futures

    def acquire_resources(self, resource_request: ResourceRequest) -> PlacementGroupAcquiredResources | None:
        """Take a slot, if any is there."""
        acquired = super().acquire_resources(resource_request)
        self._note()
        return acquired

    def free_resources(self, acquired_resource: AcquiredResources) -> None:
        """Let go of a slot."""
        assert isinstance(acquired_resource, PlacementGroupAcquiredResources), "as `acquire_resources` returns"
        super().free_resources(acquired_resource)
        self._note()

    def given_back(self) -> bool:
        """Return whether a slot that is not in use is to be given back. If so, what is asked for and not there yet is
        kept back too: it could be served before whoever the slot is for."""
        if not self._room.gives():
            return False
        for request, groups in list(self._request_to_staged_pgs.items()):
            for _ in range(len(groups)):
                super().cancel_resource_request(request)
                self._kept.append(request)
        self._note()
        return True

    def _ask(self) -> None:
        asked = any(self._request_to_staged_pgs.values())
        if self._kept and not asked and self._room.may_ask():
            super().request_resources(self._kept.pop(0))
        self._note()

    def _note(self) -> None:
        staged = sum(map(len, self._request_to_staged_pgs.values()))
        ready = sum(map(len, self._request_to_ready_pgs.values()))
        self._room.note(wants=len(self._kept) + staged, has=len(self._acquired_pgs) + ready)
