"""The terminal of a driver, which never matters: closed, full, hung up or not read from, the sweep goes on.

What is printed goes through a thread of its own, so that nobody waits for a terminal and no error of its reaches who
prints. What must not be lost goes to driver.log besides (`Journal`). Imports little, for a driver calls it first
thing.
"""

from __future__ import annotations

import atexit
import contextlib
import errno
import os
import signal
import sys
import tempfile
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from datetime import datetime
from pathlib import Path
from typing import IO, TextIO, cast

from jobs.core.plain import visible_lines
from orchestrator.system import threads
from orchestrator.system.masking import masked

ROOM = 1 << 20
"""Bytes that wait for a terminal which takes none. What comes then is left out."""

CHUNK = 1 << 12
"""Bytes written at once."""

PATIENCE_S = 5.0
"""How long the last lines wait for a terminal that takes nothing before they are given up."""

LONGEST_S = 60.0
"""How long they wait for one that takes them slowly."""

NO_ROOM = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Errors of a file that takes nothing now and may take something later. After any other the terminal is gone."""


class Terminal:
    """A text stream that never raises and never keeps its writer waiting. A signal handler may write too.

    put: writes some of these bytes and says how many. None: there is no terminal, and nothing is written.
    change: what becomes of each line before, if anything. Then lines of up to CHUNK are written whole, as others may
    write to the same place; a last one without an end once it settles.
    """

    errors, mode, closed = "backslashreplace", "w", False

    def __init__(
        self,
        put: Callable[[bytes], int] | None,
        *,
        encoding: str,
        terminal: bool,
        descriptor: int | None,
        change: Callable[[str], str] | None = None,
    ):
        self._put, self._terminal, self._descriptor, self._change = put, terminal, descriptor, change
        self.encoding = encoding
        self.name = "<terminal>"
        self._begun = ""
        """A line without its end, of those that are changed."""
        self._pending: deque[bytes] = deque()
        self._changed = threading.Condition(threading.RLock())
        self._left_out = 0
        self._taken_at = time.monotonic()
        self._stalled = False
        self.lost: str | None = None if put is not None else "it was closed from the beginning"
        """Why nothing is written any more."""
        if descriptor is not None:
            threads.start(self._work, name="terminal", died=self._lose)

    def write(self, text: str) -> int:
        """Hand over text. Takes any, whatever the terminal's encoding."""
        # Of bytes, by which click finds out what kind of stream this is, an error.
        with self._changed:
            data = self._whole(text).encode(self.encoding, self.errors)
            if data and self.lost is None and self._descriptor is None:
                self._write_some(data)  # a stream of a test or a notebook: in memory
            elif data and self.lost is None:
                if sum(map(len, tuple(self._pending))) + len(data) > ROOM:  # a copy: a handler may come in between
                    self._left_out += 1
                else:
                    self._pending.append(data)
                self._changed.notify_all()
        return len(text)

    def _whole(self, text: str) -> str:
        """Return what is to be written of a text now."""
        if self._change is None:
            return text
        end = len(text) if len(self._begun) + len(text) > CHUNK else text.rfind("\n") + 1
        whole, rest = text[:end], text[end:]
        if whole:
            whole, self._begun = self._begun + whole, ""
        self._begun += rest  # a handler may have come in between
        return self._change(whole)

    def writelines(self, lines: list[str]) -> None:
        """Hand over several texts."""
        self.write("".join(lines))

    def flush(self) -> None:
        """Do nothing: a writer does not wait."""

    def settle(self, patience_s: float = PATIENCE_S) -> bool:
        """Wait until all is written, at most `patience_s` without a byte taken. True if it is, or never will be.

        A terminal that took nothing in this time is not waited for again before it takes something.
        """
        began = time.monotonic()
        with self._changed:
            if self._begun:
                self.write("\n")
            while self._pending and self.lost is None:
                now = time.monotonic()
                until = min(max(began, self._taken_at) + (0 if self._stalled else patience_s), began + LONGEST_S)
                if now >= until:
                    self._stalled = True
                    return False
                self._changed.wait(until - now)
        return True

    def isatty(self) -> bool:
        """Return whether a person may look at what is written."""
        return self._terminal

    def fileno(self) -> int:
        """Return the descriptor that is written to. Raises OSError if there is none."""
        if self._descriptor is None:
            raise OSError(errno.EBADF, "the terminal has no descriptor")
        return self._descriptor

    def writable(self) -> bool:
        """Return True."""
        return True

    def readable(self) -> bool:
        """Return False."""
        return False

    def _work(self) -> None:
        """Write piece by piece, in the thread, until the terminal is gone."""
        with contextlib.suppress(
            AttributeError, ValueError
        ):  # in the background, on a terminal set to stop such writers
            signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTTOU})
        while True:
            with self._changed:
                self._changed.wait_for(lambda: self._pending)
                data = self._pending[0]
            taken = self._write_some(data[:CHUNK])
            if taken is None:
                return
            with self._changed:
                self._pending[0] = data[taken:]
                if taken:
                    self._taken_at, self._stalled = time.monotonic(), False
                if not self._pending[0]:
                    self._pending.popleft()
                if self._left_out and not self._pending:
                    self._pending.append(f"[{self._left_out} lines left out; driver.log has them]\n".encode())
                    self._left_out = 0
                self._changed.notify_all()

    def _write_some(self, data: bytes) -> int | None:
        """Write some bytes; return how many were written, or must be given up, or None when the terminal is gone."""
        assert self._put is not None
        try:
            return self._put(data)
        except BlockingIOError:  # somebody else who has this pipe made it so
            time.sleep(0.05)
            return 0
        except (OSError, ValueError) as error:
            if getattr(error, "errno", None) in NO_ROOM:
                return len(data)
            self._lose(error)
            return None

    def _lose(self, error: BaseException) -> None:
        with self._changed:
            self.lost = f"{type(error).__name__}: {error}"
            self._pending.clear()
            self._changed.notify_all()


def steady(stream: IO[str] | None) -> Terminal:
    """Wrap a stream so that it never fails: to the same place, through a descriptor of its own where it has one."""
    if isinstance(stream, Terminal):
        return stream
    if stream is None:
        return Terminal(None, encoding="utf-8", terminal=False, descriptor=None)
    with contextlib.suppress(OSError, ValueError):
        stream.flush()
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        descriptor = os.dup(stream.fileno())
    except (AttributeError, OSError, ValueError):  # closed, or in memory
        return Terminal(_into(stream, encoding), encoding=encoding, terminal=False, descriptor=None)
    return of_descriptor(descriptor, encoding)


def of_descriptor(descriptor: int, encoding: str = "utf-8", change: Callable[[str], str] | None = None) -> Terminal:
    """Build a stream to a descriptor, then its own, that never fails; `change` as Terminal has it."""
    return Terminal(
        lambda data: os.write(descriptor, data),
        encoding=encoding,
        terminal=os.isatty(descriptor),
        descriptor=descriptor,
        change=change,
    )


def _into(stream: IO[str], encoding: str) -> Callable[[bytes], int]:
    def put(data: bytes) -> int:
        stream.write(data.decode(encoding, "replace"))
        stream.flush()
        return len(data)

    return put


class Journal:
    """driver.log: every line of a session, with the time, whether or not a terminal has shown it."""

    def __init__(self, path: Path | None) -> None:
        self.fault: str | None = None
        """Why there is none. A log that cannot be written stops no sweep."""
        try:
            self._descriptor = os.open(path or os.devnull, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
        except OSError as error:
            self.fault = f"{path} cannot be written ({error.strerror}), so nothing is logged there"
            self._descriptor = os.open(os.devnull, os.O_WRONLY)

    def line(self, text: str) -> None:
        """Write a line, or several, with the time, and data as data. Never raises: on a full disk the line is lost, and
        the next may fit. Safe in a signal handler."""
        now = datetime.now().astimezone().isoformat(sep=" ", timespec="seconds")
        lines = "".join(
            f"{now}  {line}".rstrip() + "\n" for line in visible_lines(masked(text)).rstrip("\n").split("\n")
        )
        with contextlib.suppress(OSError):
            os.write(self._descriptor, lines.encode("utf-8", "backslashreplace"))

    @contextlib.contextmanager
    def catching(self) -> Iterator[None]:
        """Have what this process and its children print, by Python or by C, in the log. Secrets are masked in what
        Python prints here; the rest does not pass through this process."""
        noise = of_descriptor(os.dup(self._descriptor), change=masked)
        streams = sys.stdout, sys.stderr
        try:
            with _redirected(self._descriptor):
                sys.stdout = sys.stderr = cast(TextIO, noise)
                yield
        finally:
            noise.settle()
            sys.stdout, sys.stderr = streams


@contextlib.contextmanager
def _redirected(descriptor: int) -> Iterator[None]:
    """Have what this process and its children write to standard output and error go there."""
    saved = {}
    for number, stream, original in ((1, sys.stdout, sys.__stdout__), (2, sys.stderr, sys.__stderr__)):
        with contextlib.suppress(AttributeError, OSError, ValueError):
            stream.flush()
        if original is not None:  # else it was closed when Python started, and may be another file's number by now
            with contextlib.suppress(OSError):
                saved[number] = os.dup(number)
    for number in saved:
        os.dup2(descriptor, number)
    try:
        yield
    finally:
        for number, kept in saved.items():
            os.dup2(kept, number)
            os.close(kept)


class Caught:
    """What was printed."""

    text = ""


@contextlib.contextmanager
def caught() -> Iterator[Caught]:
    """Keep what libraries print by C from the terminal, where there is no driver.log yet; it is printed afterwards."""
    printed = Caught()
    try:
        file = tempfile.TemporaryFile()  # noqa: SIM115 - closed below
    except OSError:  # a full disk, of which others tell
        yield printed
        return
    with file:
        try:
            with _redirected(file.fileno()):
                yield printed
        finally:
            file.seek(0)
            printed.text = file.read().decode(errors="replace").strip()


class Hangups:
    """SIGHUP, which a terminal sends when it goes: survived, with everything that this process starts, and noted."""

    def __init__(self) -> None:
        self._survives = False
        self._unheard: deque[str] = deque()
        self._note: Callable[[str], object] = self._unheard.append

    def survive(self) -> None:
        """Begin. The signal is blocked, as only that is passed on to processes which are started from now on, and a
        thread waits for it. Where it is ignored already, as under nohup, it stays so."""
        if self._survives or signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
            return
        self._survives = True
        signal.signal(signal.SIGHUP, lambda *_: self._heard())  # for a thread that was there before
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGHUP})
        threads.start(
            self._wait, name="hangups", died=lambda error: self._note(f"no hangup is noted any more: {error}")
        )

    def tell(self, note: Callable[[str], object]) -> None:
        """Call `note` with a line for every hangup from now on, and for those that there were."""
        self._note = note
        while self._unheard:
            note(self._unheard.popleft())

    def _wait(self) -> None:
        while True:
            signal.sigwait({signal.SIGHUP})
            self._heard()

    def _heard(self) -> None:
        self._note("SIGHUP: the terminal is gone or was left; the sweep goes on, and its lines are here")


hangups = Hangups()
"""Of this process."""


def fill_descriptors() -> None:
    """Open what is closed of standard input, output and error on nothing. Else the next file that is opened, a ledger
    perhaps, gets that number, and whatever is printed goes into it."""
    for number, mode in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        try:
            os.fstat(number)
        except OSError:
            opened = os.open(os.devnull, mode)
            os.dup2(opened, number)
            if opened != number:
                os.close(opened)
    for number, name in ((1, "stdout"), (2, "stderr")):
        if getattr(sys, name) is None:
            stream = os.fdopen(number, "w", encoding="utf-8", closefd=False)
            setattr(sys, name, stream)
            setattr(sys, f"__{name}__", stream)


def survive() -> None:
    """Let no terminal, from here to the end of this process, end it, hold it up or change its exit code. To be called
    by the main thread before there are others."""
    fill_descriptors()
    hangups.survive()
    streams = steady(sys.stdout), steady(sys.stderr)
    sys.stdout, sys.stderr = cast(TextIO, streams[0]), cast(TextIO, streams[1])
    for stream in streams:
        atexit.register(stream.settle)
