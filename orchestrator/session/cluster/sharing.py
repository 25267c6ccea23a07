"""How those who share a cluster take turns: when a driver gives a warm slot back, and when it may ask for one.

Rules over a picture of the cluster; without ray. Whoever holds nothing is served first: between two trials every sweep
gives slots back until that claim fits. Among those who hold something, one gives only what leaves it no less than the
other then has. So two sweeps whose slots fit side by side have the same share, and two of which only one fits take
turns trial by trial. Nothing is given to a claim that would not fit even so.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

Amounts = Mapping[str, float]
"""How much of each resource, by Ray's name of it."""

PLAIN = ""
"""In place of a job's id: what tasks and actors outside of placement groups hold or wait for. Whose they are Ray does
not tell."""

ROUNDING = 1e-6


@dataclass(frozen=True)
class Claim:
    """A placement group that waits for room; or tasks and actors of one shape."""

    id: str
    job: str
    bundles: tuple[Amounts, ...]
    strategy: str = "PACK"
    """As Ray names them. The strict ones bind, the others are wishes."""

    @property
    def all(self) -> Amounts:
        """What it takes together."""
        return added(self.bundles)


@dataclass(frozen=True)
class Held:
    """A placement group that is there."""

    id: str
    job: str
    on: Mapping[int, Amounts]
    """What it has of each node, by the node's place in the picture."""

    @property
    def all(self) -> Amounts:
        """What it has together."""
        return added(self.on.values())


@dataclass(frozen=True)
class Picture:
    """A cluster at one moment."""

    me: str
    """The job of whoever looks."""

    total: tuple[Amounts, ...]
    """Of each living node."""

    free: tuple[Amounts, ...]
    held: tuple[Held, ...] = ()
    claims: tuple[Claim, ...] = ()
    sweeps: frozenset[str] = frozenset()
    """Jobs that give back between trials as this program does, `me` among them."""

    @cached_property
    def plain(self) -> Amounts:
        """What is held outside of placement groups."""
        free = added([*self.free, *(group.all for group in self.held)])
        used = {name: amount - free.get(name, 0.0) for name, amount in added(self.total).items()}
        return {name: amount for name, amount in used.items() if amount > ROUNDING}

    def of(self, job: str) -> list[Held]:
        """Return the placement groups of a job."""
        return [group for group in self.held if group.job == job]

    def share(self, amounts: Amounts) -> float:
        """Compute the largest part of the cluster, over all resources, that these amounts are."""
        total = added(self.total)
        return max((amount / total[name] for name, amount in amounts.items() if total.get(name)), default=0.0)

    def share_of(self, job: str) -> float:
        """Compute the share that a job has."""
        return self.share(self.plain if job == PLAIN else added(group.all for group in self.of(job)))

    def has_nothing(self, job: str) -> bool:
        """Return whether a job has no room at all."""
        return self.share_of(job) <= ROUNDING

    def freed(self, groups: Sequence[Held]) -> list[Amounts]:
        """Compute what would be free on each node without these groups."""
        return [
            added([free, *(group.on[number] for group in groups if number in group.on)])
            for number, free in enumerate(self.free)
        ]

    def others(self, ignored: Collection[str] = ()) -> list[Claim]:
        """Find others' claims that would fit if all sweeps gave back all they hold, without those `ignored`, by id."""
        most = self.freed([group for group in self.held if group.job in self.sweeps])
        return [
            claim
            for claim in self.claims
            if claim.job != self.me and claim.id not in ignored and placed(claim, most) is not None
        ]


def gives_to(picture: Picture, ignored: Collection[str] = ()) -> Claim | None:
    """Find the claim that calls for giving back a slot that has just ended its trial; None: the slot is kept."""
    _, waiting = _placed_now(picture, picture.others(ignored))
    return next((claim for claim in waiting if _helps(picture, claim) and _is_due(picture, picture.me, claim)), None)


def may_ask(
    picture: Picture,
    slot: Claim,
    *,
    gave: Collection[str] = (),
    ignored: Collection[str] = (),
    can_autoscale: bool = False,
) -> bool:
    """Return whether one more slot may be asked for now.

    slot: what it takes. gave: jobs that were given a slot and have not got it yet; until then a new claim could be
    served before theirs, because Ray keeps no order. can_autoscale: whether claims make the cluster larger.
    """
    others, nothing = picture.others(ignored), picture.has_nothing(picture.me)
    if any(claim.job in gave and (picture.has_nothing(claim.job) or not nothing) for claim in others):
        return False
    left, waiting = _placed_now(picture, others)
    if placed(slot, left) is not None:
        return nothing or can_autoscale or not any(picture.has_nothing(claim.job) for claim in waiting)
    if len(waiting) < len(others):
        return False  # it would overtake those that are about to be placed
    giving = picture.sweeps - {picture.me}
    return nothing or can_autoscale or any(_is_due(picture, job, slot) for job in giving if picture.of(job))


def placeable(picture: Picture, ignored: Collection[str] = ()) -> list[Claim]:
    """Find others' claims that fit in what is free now: Ray is about to place them."""
    others = picture.others(ignored)
    _, waiting = _placed_now(picture, others)
    return [claim for claim in others if claim not in waiting]


def placed(claim: Claim, free: Sequence[Amounts]) -> list[Amounts] | None:
    """Compute what is left of each node once a claim has its place there; None if it does not fit."""
    left = [dict(node) for node in free]
    if claim.strategy == "STRICT_PACK":
        whole = claim.all
        return next((_without(left, number, whole) for number, node in enumerate(left) if _holds(node, whole)), None)
    open_ = set(range(len(left)))
    for bundle in sorted(claim.bundles, key=lambda bundle: -sum(bundle.values())):
        number = next((at for at in sorted(open_) if _holds(left[at], bundle)), None)
        if number is None:
            return None
        left[number] = dict(_without(left, number, bundle)[number])
        if claim.strategy == "STRICT_SPREAD":
            open_.discard(number)
    return list(left)


def added(amounts: Iterable[Amounts]) -> Amounts:
    """Sum several amounts, resource by resource."""
    total: dict[str, float] = {}
    for part in amounts:
        for name, amount in part.items():
            total[name] = total.get(name, 0.0) + amount
    return total


def _helps(picture: Picture, claim: Claim) -> bool:
    """Return whether what the looker holds is of any use to a claim: not if the claim fits only once others give back,
    and then even without it."""
    mine = picture.of(picture.me)
    if not mine or placed(claim, picture.freed(mine)) is not None:
        return bool(mine)
    given: list[Held] = []
    for group in picture.held:
        if group.job in picture.sweeps and group.job != picture.me:
            given.append(group)
            if placed(claim, picture.freed([*mine, *given])) is not None:
                return placed(claim, picture.freed(given)) is None
    return False


def _is_due(picture: Picture, giver: str, claim: Claim) -> bool:
    """Return whether a job that holds slots owes room to a claim that does not fit as it is."""
    if picture.has_nothing(claim.job):
        return True
    theirs = picture.share_of(claim.job) + picture.share(claim.all)
    kept = picture.of(giver)
    given: list[Held] = []
    while kept:
        given.append(kept.pop())
        if placed(claim, picture.freed(given)) is not None:
            return picture.share(added(group.all for group in kept)) >= theirs - ROUNDING
    return False


def _placed_now(picture: Picture, claims: Sequence[Claim]) -> tuple[list[Amounts], list[Claim]]:
    """Put the claims that fit on nodes. Return what is left free of each node, and the claims that still wait."""
    left, waiting = list(picture.free), list[Claim]()
    for claim in claims:
        after = placed(claim, left)
        if after is None:
            waiting.append(claim)
        else:
            left = after
    return left, waiting


def _holds(free: Amounts, wanted: Amounts) -> bool:
    return all(free.get(name, 0.0) >= amount - ROUNDING for name, amount in wanted.items())


def _without(free: Sequence[Amounts], number: int, taken: Amounts) -> list[Amounts]:
    return [
        {name: amount - taken.get(name, 0.0) for name, amount in node.items()} if at == number else node
        for at, node in enumerate(free)
    ]
