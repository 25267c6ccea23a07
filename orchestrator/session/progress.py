"""What a person sees while a session runs: a live bar on a terminal, plain lines when piped. All of it is in driver.log
too, and what becomes of the terminal makes no difference (terminal.py)."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Sequence
from typing import IO, cast

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from jobs.core.plain import one_line, visible_lines
from orchestrator.ledger import Trial
from orchestrator.run_dir.context import RunContext
from orchestrator.system.display import Harmless
from orchestrator.system.exit_codes import located
from orchestrator.system.masking import masked
from orchestrator.system.terminal import Journal, Terminal, steady

ABOUT = ("note: ", "fault: ")
"""Beginnings of lines that may name files of this machine."""

SHOW_CURSOR = "\n\x1b[?25h"
"""What ends a bar's line and brings back the cursor, which rich hides."""


class Progress:
    """Tells how a session goes. Safe to call from several threads."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self._plan, self._ledger = context.plan, context.ledger
        self._total = sum(count for stage, count in self._plan.trials.items() if stage != "swap")
        self._began = time.monotonic()
        self._terminal: Terminal | None = None
        """Standard output as it was when the first line was said, whatever happens to it."""
        self._journal: Journal | None = None
        self._console = Console(highlight=False)
        self._bar: Bar | None = None

    def detach(self, journal: Journal | None = None) -> None:
        """Begin: write to standard output as it is now, although it is about to be redirected, and to `journal`."""
        self._journal = journal
        terminal = cast(IO[str], self._opened())
        if Console(file=terminal).is_terminal:
            self._console = Console(file=terminal, force_terminal=True, highlight=False)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            # What others print is the journal's, and no business of the bar.
            self._bar = Bar(
                *columns, console=self._console, transient=True, redirect_stdout=False, redirect_stderr=False
            )
            self._bar.add_task("trials", total=self._known(), completed=self._ended())
            self._bar.start()
        trials, swapped = self._plan.trials, ""
        if "swap" in trials:
            swapped = f"at most {trials['swap']} trials at each other's setting, "
        self.say(one_line(self._plan.sweep.question))
        self.say(
            f"{len(self._plan.arms)} arms, {trials['tune']} tune trials, {trials['confirm']} confirm trials, {swapped}"
            f"{self._ended()} of {self._known()} done"
        )
        for warning in self._plan.warnings:
            self.say(f"note: {warning}")

    def release(self) -> None:
        """Take the bar away, and wait for what was said to be written, if the terminal takes it."""
        self._end_bar()
        if self._terminal is not None:
            self._terminal.settle()

    def abandon(self, patience_s: float) -> None:
        """Leave the bar as it is, but not the cursor hidden, and wait at most `patience_s` seconds for a terminal that
        takes nothing: for the exit that does not wait. Asks rich for nothing: another thread may hold its locks."""
        if self._terminal is not None:
            if self._bar is not None:
                self._terminal.write(SHOW_CURSOR)
            self._terminal.settle(patience_s)

    def note(self, text: str) -> None:
        """Write one line to the log alone."""
        if self._journal is None:
            self._journal = Journal(self.context.folder.log)
        self._journal.line(text)

    def say(self, text: str) -> None:
        """Print and log one line, without the secrets that a library's error may quote. Never fails and never waits."""
        text = masked(located(text) if text.startswith(ABOUT) else text)
        if self._journal is not None:
            self._journal.line(text)
        self._opened()
        self._console.print(visible_lines(text), markup=False, emoji=False, soft_wrap=True)

    def tell(self, what: str, trial: Trial | None) -> None:
        """Say that something happened, to a trial or to the session."""
        if trial is None:
            self.say(what)
            return
        ended = self._ended()
        which = f"seed {trial.seed}"
        if trial.number is not None:
            which = f"{trial.number + 1} of {max(trial.number + 1, self._plan.asked(trial.arm))}"
        self.say(f"[{ended}/{self._known()}] {trial.stage} {trial.arm} {which}  {what}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=ended, total=self._known())

    def answer(self, table: RenderableType) -> None:
        """Print and log the verdict table."""
        self.release()
        terminal = cast(IO[str], self._opened())
        console = Console(file=terminal, highlight=False, width=None if self._console.is_terminal else 100)
        console.print()
        console.print(Harmless(table))
        if self._journal is not None:
            plain = io.StringIO()
            Console(file=plain, highlight=False, width=100).print(Harmless(table))
            self._journal.line(plain.getvalue().rstrip())

    def close(self, ending: Sequence[str]) -> None:
        """Print and log the last lines: how the session ended, where everything is, and the next command."""
        self.release()
        folder = self.context.folder
        lines = [*ending]
        lines += [f"{'' if number else 'report:':7}  {page}" for number, page in enumerate(folder.report_pages)]
        if not self.context.options.offline:
            lines += [f"MLflow:  orchestrator ui {folder.quoted}"]
        lines += [f"{time.monotonic() - self._began:.0f} s"]
        for line in ["", *lines]:
            self.say(line)
        self.release()

    def _opened(self) -> Terminal:
        if self._terminal is None:
            self._terminal = steady(sys.stdout)
            self._console = Console(
                file=cast(IO[str], self._terminal), force_terminal=False, highlight=False, width=400
            )
        return self._terminal

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _known(self) -> int:
        """Count the trials: as planned, with those at other settings that have turned out to be needed, or more where
        the run was extended."""
        swapped = sum(self._ledger.counts("swap").values()) if self._plan.swaps else 0
        return max(self._total + swapped, sum(self._ledger.counts().values()))

    def _ended(self) -> int:
        return sum(count for state, count in self._ledger.counts().items() if state in ("done", "pruned", "failed"))
