"""The watch over the cluster's head: when it is gone Ray may wait for minutes without a word, so a thread looks."""

from __future__ import annotations

import contextlib
import math
import threading
import time
from collections.abc import Callable, Iterator

import psutil

from orchestrator.session.cluster.access import address
from orchestrator.session.cluster.capacity import Node, alive
from orchestrator.session.cluster.start import HEAD, lives
from orchestrator.system import threads

LOOK_S = 1.0
"""How often the head is looked at."""


SILENT_S = 20.0
"""How long the head may leave a question unanswered. Ray's own limit, after which the process is ended from within, is
a minute."""


@contextlib.contextmanager
def watched(
    dead: Callable[[str], None],
    seen: Callable[[list[Node]], None] = lambda _: None,
    failed: Callable[[BaseException], None] | None = None,
) -> Iterator[None]:
    """Watch the head of the connected cluster from two threads while the context lasts. One calls `dead` with what
    happened when the head is gone; the other calls `seen` with the nodes that there are, at once and whenever they
    change. When a thread ends by an exception, in `seen` for example, `failed` gets it; without `failed`, `dead` gets
    its text.

    Ray must be initialised. `dead` is not expected to return: what waits for Ray waits for ever.
    """
    watch = _Watch(dead, seen, failed)
    for work in (watch.ask, watch.look):
        threads.start(work, name=f"cluster-{work.__name__}", died=watch.died)
    try:
        yield
    finally:
        watch.over.set()


class _Watch:
    """The two threads of `watched`."""

    def __init__(
        self,
        dead: Callable[[str], None],
        seen: Callable[[list[Node]], None],
        failed: Callable[[BaseException], None] | None,
    ) -> None:
        import ray

        self._dead, self._seen, self._failed = dead, seen, failed
        self.over = threading.Event()
        self._own = [p for p in psutil.Process().children() if p.name() in HEAD] if address() is None else []
        self._home = ray.get_runtime_context().get_node_id()
        self._answered_at = time.monotonic()
        self._refusal = ""
        self._lost: list[str] = []

    def ask(self) -> None:
        """Ask the head for its nodes, again and again. Ray may leave the question unanswered."""
        import ray

        before: frozenset[str] | None = None
        while not self.over.is_set():
            try:
                nodes = ray.nodes()
            except Exception as error:  # noqa: BLE001 - of many kinds; a head that is busy may answer the next time
                self._refusal = f": {type(error).__name__}: {error}"[:200]
                self.over.wait(LOOK_S)
                continue
            if any(node["NodeID"] == self._home and not node["Alive"] for node in nodes):
                self._lost.append("the raylet of the driver's node died")
            self._answered_at = time.monotonic()
            now = frozenset(node["NodeID"] for node in nodes if node["Alive"])
            if now != before:
                self._seen(alive(nodes))
            before = now
            self.over.wait(LOOK_S)

    def look(self) -> None:
        """See whether the head lives and answers."""
        before = time.monotonic()
        while not self.over.wait(LOOK_S):
            now = time.monotonic()
            if now - before > SILENT_S / 2:  # this process was stopped, or its machine slept, and the head may have too
                self._answered_at = max(now, self._answered_at)
            before = now
            self._lost.extend(f"{p.name()} (pid {p.pid}) died" for p in self._own if not lives(p))
            if time.monotonic() - self._answered_at > SILENT_S:
                self._lost.append(f"the head has not answered for {SILENT_S:.0f} s{self._refusal}")
            if self._lost and not self.over.is_set():
                self._dead(self._lost[0])
                return

    def died(self, error: BaseException) -> None:
        """Handle the exception that has ended one of the threads."""
        if self.over.is_set():
            return
        self._answered_at = math.inf  # where nobody asks, silence says nothing
        if self._failed is not None:
            self._failed(error)
        else:
            self._dead(f"the watch over it ended with {type(error).__name__}: {error}")
