"""What a session knows of those it shares a cluster with: whether it gives back, whether it may ask, why it waits.

A thread looks at the cluster about once a second, so that Tune's loop asks nobody. The rules are in sharing.py.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

from orchestrator.session.cluster.sharing import Amounts, Claim, Picture, added, gives_to, may_ask, placeable
from orchestrator.system import threads

LOOK_S, SOON_S = 1.0, 0.2
"""How often the cluster is looked at; and while a slot is given away or waited for."""

OLD_S = 5.0
"""A picture that is older is not acted on: the head does not answer, and nothing is given or kept back."""

STUCK_S = 15.0
"""Room that others do not take for so long, though it is enough by what they claim, is not kept for them: what else
they want, labels for example, is not known here. For twice that long nothing is given back for them either, and twice
as long again each time that they do not take it."""

LEFT_OUT_S = 600.0
"""The longest that this lasts: then they may have what there is again, if it is what they wait for."""

SAY_S = 3.0
"""How long a session may wait before a word is said about it."""

CHANGED_S, AGAIN_S = 30.0, 300.0
"""How soon that is said again, with other holders, and with the same."""


class Painter(Protocol):
    """What looks at the cluster: cluster_picture.Painter."""

    def picture(self) -> Picture:
        """Take a picture of the cluster as it is now."""

    def left_out(self) -> dict[str, tuple[float, float]]:
        """Return what sessions have told one another by `leave_out`."""

    def leave_out(self, claims: Mapping[str, tuple[float, float]]) -> None:
        """Tell the cluster's other sessions which claims are ignored, by id: until which unix time, for how many s."""

    def owner(self, job: str) -> object:
        """Return the owner of a job, in words."""

    def of_plain(self) -> Iterable[object]:
        """Return who has room without a placement group, in words."""


class Room:
    """One session's share of a cluster. Safe to call from several threads."""

    def __init__(
        self,
        painter: Painter,
        slot: Claim,
        *,
        can_autoscale: bool,
        say: Callable[[str], None],
        waits: Callable[[str | None], None],
    ) -> None:
        """Take the painter and the settings. slot: what a trial takes. can_autoscale: whether claims make the cluster
        larger. say: gets a line for a person. waits: gets what the session waits for when it begins to wait without any
        slot, and None when it has a slot."""
        self._painter, self._slot, self._can_autoscale = painter, slot, can_autoscale
        self._say, self._waits = say, waits
        self._news = threading.Condition()
        # Everything below is read and changed under it.
        self._picture: Picture | None = None
        self._looked = -OLD_S
        self._gave: dict[str, float] = {}
        """Jobs to which a slot was given that they have not got yet, and the share that they had then."""
        self._fits_since: dict[str, float] = {}
        """Claims of others for which there is room, by id."""
        self._left_out: dict[str, tuple[float, float]] = {}
        """Claims that did not take it, by id: until which unix time they are ignored, and how long that is, s. Kept as
        long as they wait: that they do not fit while a session has the room does not make them others. All sessions go
        by the same: one would keep the room that another one takes, else."""
        self._wants = self._has = 0
        self._wanting_since: float | None = None
        self._waiting = False
        """Whether `waits` knows."""
        self._told_of: float | None = None
        """Since when it has been waiting, if that was said."""
        self._spoken: dict[bool, tuple[float, str]] = {}
        """When it was last said what is waited for, and who held it; with a slot, and without any."""
        self._over = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Room:
        return self

    def __exit__(self, *_: object) -> None:
        with self._news:
            self._over = True
            self._news.notify_all()
        if self._thread is not None:
            self._thread.join(OLD_S)  # Ray may not be shut down while it is asked something

    def watch(self, died: Callable[[BaseException], object]) -> None:
        """Look at the cluster, again and again, in a thread."""
        self._thread = threads.start(self._watch, name="room", died=died)

    # Called by Tune's loop.

    def gives(self) -> bool:
        """Return whether a slot that has ended its trial is given back, because somebody else is to have it."""
        with self._news:
            picture = self._picture if self._is_fresh() else None
            claim = None if picture is None else gives_to(picture, self._ignored())
            if picture is None or claim is None:
                return False
            self._gave.setdefault(claim.job, picture.share_of(claim.job))
            self._news.notify_all()
        return True

    def may_ask(self) -> bool:
        """Return whether one more slot may be asked for, while none is being asked for."""
        with self._news:
            if self._picture is None or not self._is_fresh():
                return True
            if self._is_behind():
                return False
            return may_ask(
                self._picture, self._slot, gave=self._gave, ignored=self._ignored(), can_autoscale=self._can_autoscale
            )

    def note(self, *, wants: int, has: int) -> None:
        """Note how many slots are waited for, and how many are there."""
        with self._news:
            lost = self._has > 0 and not has
            self._wants, self._has = wants, has
            if not wants:
                self._wanting_since = None
            elif self._wanting_since is None or lost:
                self._wanting_since = time.monotonic()
        if has:
            self._tell_waiting(None)

    def await_news(self, timeout_s: float) -> None:
        """Wait until the cluster has been looked at again."""
        with self._news:
            self._news.wait(timeout_s)

    # The thread.

    def look(self) -> None:
        """Look at the cluster now."""
        try:
            picture = self._painter.picture()
            left_out = self._painter.left_out() if any(claim.job != picture.me for claim in picture.claims) else {}
        except Exception:  # noqa: BLE001 - of many kinds; what an old picture means is known, and the head is watched
            return
        now = time.monotonic()
        with self._news:
            self._picture, self._looked = picture, now
            ignored = self._leave_out_the_stuck(picture, left_out, now)
            claiming = {claim.job for claim in picture.others(self._ignored())}
            self._gave = {
                job: share for job, share in self._gave.items() if job in claiming and picture.share_of(job) <= share
            }
            self._news.notify_all()
        if ignored:
            try:
                self._painter.leave_out(ignored)
            except Exception:  # noqa: BLE001 - as above; the others find out by themselves
                return

    def speak(self) -> None:
        """Say what is waited for, if that is due."""
        with self._news:
            picture, has, since = self._picture, self._has, self._wanting_since
            if picture is None or since is None or time.monotonic() - since < SAY_S:
                return
        try:
            holders = _holders(picture, self._painter)
        except Exception:  # noqa: BLE001 - as in `look`; it is said the next time
            return
        text = _words(picture, self._slot, holders, has)
        if not has:
            self._tell_waiting(text)
        if not holders and time.monotonic() - since < STUCK_S:
            return  # it is about to be placed
        at, before = self._spoken.get(has > 0, (-AGAIN_S, ""))
        passed = time.monotonic() - at
        who = "; ".join(holders)
        if passed >= AGAIN_S or (who != before and passed >= (AGAIN_S if has else CHANGED_S)):
            self._spoken[has > 0] = (time.monotonic(), who)
            self._told_of = self._told_of if has else since
            self._say(text)

    def _watch(self) -> None:
        while True:
            self.look()
            self.speak()
            with self._news:
                soon = self._gave or (self._wants and not self._has) or self._is_behind()
                if self._news.wait_for(lambda: self._over, SOON_S if soon else LOOK_S):
                    return

    def _tell_waiting(self, text: str | None) -> None:
        with self._news:
            if self._waiting == (text is not None) or (text is not None and self._has):
                return
            self._waiting = text is not None
            self._waits(text)
            if text is None and self._told_of is not None:
                self._say(f"has a slot after {time.monotonic() - self._told_of:.0f} s, and goes on")
                self._told_of = None

    def _is_behind(self) -> bool:
        """Return whether a slot has come that the picture does not have yet."""
        return self._has > 0 and self._picture is not None and self._picture.has_nothing(self._picture.me)

    def _is_fresh(self) -> bool:
        return time.monotonic() - self._looked < OLD_S

    def _leave_out_the_stuck(
        self, picture: Picture, from_others: Mapping[str, tuple[float, float]], now: float
    ) -> dict[str, tuple[float, float]]:
        """Leave out the claims that have not taken the room that was there for them for STUCK_S seconds. Return all
        claims left out from now on, for the other sessions to know, if any of them is new; else none."""
        waiting, at = {claim.id for claim in picture.claims}, time.time()
        both = sorted([*self._left_out.items(), *from_others.items()], key=lambda entry: entry[1])
        # What lasts longer than it can comes from a clock that is ahead, or this one has jumped back.
        self._left_out = {
            claim: (until, s) for claim, (until, s) in both if claim in waiting and until <= at + LEFT_OUT_S
        }
        fits = {claim.id for claim in placeable(picture, self._ignored())}
        self._fits_since = {claim: self._fits_since.get(claim, now) for claim in fits}
        stuck = [claim for claim, since in self._fits_since.items() if now - since > STUCK_S]
        for claim in stuck:
            _, before_s = self._left_out.get(claim, (0.0, STUCK_S))
            lasts_s = min(2 * before_s, LEFT_OUT_S)
            self._left_out[claim] = (at + lasts_s, lasts_s)
            del self._fits_since[claim]
        return dict(self._left_out) if stuck else {}

    def _ignored(self) -> set[str]:
        now = time.time()
        return {claim for claim, (until, _) in self._left_out.items() if now < until}


def _holders(picture: Picture, painter: Painter) -> list[str]:
    """List in words who has what, except for the looker."""
    jobs = sorted({group.job for group in picture.held} - {picture.me})
    holders = [f"{painter.owner(job)}: {amount(added(group.all for group in picture.of(job)))}" for job in jobs]
    if picture.plain:
        names = " and ".join(map(str, painter.of_plain())) or "tasks"
        holders.append(f"{names}, outside of placement groups: {amount(picture.plain)}")
    return holders


def _words(picture: Picture, slot: Claim, holders: list[str], has: int) -> str:
    wanted = slot.all
    total, free = ({name: added(of).get(name, 0.0) for name in wanted} for of in (picture.total, picture.free))
    ranks = len(slot.bundles)
    what = f"{amount(wanted)} for a slot of {ranks} rank{'s' * (ranks != 1)}"
    if has:
        what = f"{amount(wanted)} for slot {has + 1}"
    held = f"held by {'; '.join(holders)}" if holders else "Ray has not placed it yet"
    return f"waits for {what}: of the cluster's {amount(total)} {_number(free)} free; {held}"


def amount(of: Amounts) -> str:
    """Format amounts as `2 CPUs and 1 GPU`; marks of accelerators do not count."""
    parts = [
        f"{value:g} {name}{'s' * (value != 1 and name.isupper())}"
        for name, value in sorted(of.items())
        if not name.startswith("accelerator_type:") and (value or len(of) == 1)
    ]
    return " and ".join(parts) or "nothing"


def _number(free: Amounts) -> str:
    counts = [f"{value:g}" for name, value in sorted(free.items()) if not name.startswith("accelerator_type:")]
    return f"{' and '.join(counts)} {'is' if counts == ['1'] else 'are'}"
