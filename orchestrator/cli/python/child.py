"""A driver as a child of this process: what it prints, how it is asked to stop, and what its end means here."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from typing import IO

from orchestrator.system.exit_codes import Exit

POLL_S = 0.1
"""How often is looked whether a driver has printed something, or ended."""

CHUNK = 1 << 16
"""Bytes read at once of what was printed."""

MOST_KEPT = 8
"""Last lines that an error quotes of a driver that ended without saying why."""

COLOURS = ("FORCE_COLOR", "CLICOLOR_FORCE", "TTY_COMPATIBLE", "TTY_INTERACTIVE")
"""Variables of a kernel's by which programs take a file for a terminal. A driver would draw a bar there."""

ERRORS = ("error: ", "Error: ", "Usage: ", "Traceback ")
"""How what ends a driver begins, on its standard error."""

CRASHES = ("Traceback (most recent call last)", "No module named ")
"""What Python says when it ends a program."""

ENDS = (Exit.DONE, Exit.SOME_FAILED, Exit.INTERRUPTED)
"""Exit codes of a session that the run survives in good order."""


class DriverError(RuntimeError):
    """A driver ended before its session did, or without having begun one; the text is what it said."""

    def __init__(self, text: str, exit_code: int) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        """As `Exit` has it, unless a signal ended the driver: then the number of that, negative."""

    def __reduce__(self) -> tuple[type[DriverError], tuple[str, int], dict[str, object]]:
        return type(self), (str(self), self.exit_code), self.__dict__


class Child:
    """One driver. It is in a session of its own, so that what interrupts or ends this process leaves it alone."""

    def __init__(self, arguments: Sequence[str], *, made: contextlib.ExitStack | None = None) -> None:
        """Start it. arguments: of the command line. made: what goes when the driver has ended."""
        self._out, self._err = _Printed("stdout"), _Printed("stderr", until=ERRORS)
        with made or contextlib.ExitStack() as opened:
            for printed in (self._out, self._err):
                opened.callback(printed.close)
            self._process = subprocess.Popen(
                [sys.executable, "-P", "-m", "orchestrator.cli", *arguments],
                stdin=subprocess.DEVNULL,
                stdout=self._out.file,
                stderr=self._err.file,
                env={name: value for name, value in os.environ.items() if name not in COLOURS},
                start_new_session=True,
            )
            self._made = opened.pop_all()
        self.is_shown = False
        """Whether it has ended, and all that it printed was shown."""
        _running.add(self)

    @property
    def pid(self) -> int:
        """Of the driver's process."""
        return self._process.pid

    @property
    def exit_code(self) -> Exit | int | None:
        """How it ended; None while it runs."""
        code = self._process.poll()
        return Exit(code) if code in list(Exit) else code

    @property
    def is_running(self) -> bool:
        """Whether it has not ended."""
        return self._process.poll() is None

    def wait(self, timeout: float | None = None) -> Exit | int:
        """Show what it prints until it ends. Returns the exit code. Raises TimeoutError, after which it runs on."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.exit_code) is None:
            self._out.show()
            self._err.show()
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"the driver (pid {self.pid}) still runs after {timeout:g} s")
            time.sleep(POLL_S)
        self._end(code)
        return code

    def interrupt(self) -> None:
        """Do what Ctrl-C does: have it checkpoint and stop."""
        with contextlib.suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGINT)

    def error(self, run: str) -> DriverError | None:
        """Explain how it ended; return None if that was the end of a session. run: how a person names it."""
        code = self.exit_code
        assert code is not None
        if self._is_of_a_session(code):
            return None
        text = self._err.held.rpartition("\nError: ")[2].removeprefix("error: ").strip()
        if not text and code < 0:
            name = signal.Signals(-code).name
            text = (
                f"the driver of {run} was ended by {name}; nothing that had ended is lost, and the same call continues"
            )
        if not text:
            text = "\n  ".join(["the driver ended, and its last lines are:", *self._out.last, *self._err.last])
        return DriverError(f"{text} (exit code {int(code)})" if code > 0 else text, code)

    def _is_of_a_session(self, code: int) -> bool:
        """Return whether a session ended with this code, or an interrupt ended it before it listened; a crash of
        Python, which has the code of failed trials, does not count."""
        printed = "\n".join([self._err.held, *self._err.last])
        crashed = code == Exit.SOME_FAILED and any(mark in printed for mark in CRASHES)
        return code in (*ENDS, -signal.SIGINT) and not crashed

    def _end(self, code: int) -> None:
        if self.is_shown:
            return
        try:
            self._out.show(whole=True)
            self._err.show(whole=True)
            if self._is_of_a_session(code):  # nobody will raise what was kept back
                self._err.release()
        finally:
            self.is_shown = True
            self._made.close()
            _running.discard(self)


_running: set[Child] = set()
"""Those that nobody may have a hold on any more."""


class _Printed:
    """What a driver prints: kept in a file without a name, which a driver can go on writing to when nobody is there,
    and shown line by line."""

    def __init__(self, stream: str, until: tuple[str, ...] = ()) -> None:
        """Open the file. stream: of `sys`, as it is when a line is shown. until: prefixes; from the first line that
        begins with one of them, all lines are kept back."""
        self.file = tempfile.TemporaryFile()  # noqa: SIM115 - closed by `close`
        self.held = ""
        """What was kept back."""
        self.last: deque[str] = deque(maxlen=MOST_KEPT)
        self._stream, self._until = stream, until
        self._read, self._begun = 0, b""
        self._is_gone = False

    def show(self, *, whole: bool = False) -> None:
        """Show the lines that have come; if `whole`, also a last line without its end."""
        while chunk := os.pread(self.file.fileno(), CHUNK, self._read):  # the position is the driver's
            self._read += len(chunk)
            *lines, self._begun = (self._begun + chunk).split(b"\n")
            self._write([f"{line.decode(errors='replace')}\n" for line in lines])
        if whole and self._begun:
            self._write([f"{self._begun.decode(errors='replace')}\n"])
            self._begun = b""

    def release(self) -> None:
        """Show what was kept back."""
        self._put(self.held)

    def close(self) -> None:
        """Give the file back."""
        self.file.close()

    def _write(self, lines: Sequence[str]) -> None:
        for line in lines:
            if self.held or (self._until and line.startswith(self._until)):
                self.held += line
                continue
            if line.strip():
                self.last.append(line.rstrip())
            self._put(line)

    def _put(self, text: str) -> None:
        stream: IO[str] | None = getattr(sys, self._stream)
        if stream is None or self._is_gone or not text:
            return
        try:
            stream.write(text)
            stream.flush()
        except (OSError, ValueError):  # the terminal is gone, and the driver goes on
            self._is_gone = True


def named(sweep: Path | str) -> list[str]:
    """Return a path as the last argument of a command, whatever it begins with."""
    return ["--", os.fspath(sweep)]
