"""What a person sees while a session runs: a live bar on a terminal, plain lines when piped."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Sequence
from typing import Any, TextIO

from rich.console import Console, RenderableType
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as Bar

from orchestrator.ledger import Ledger, Trial
from orchestrator.plan import Plan
from orchestrator.runs import RunFolder


class Progress:
    """Tells how a session goes. Safe to call from several threads."""

    def __init__(self, plan: Plan, ledger: Ledger) -> None:
        self._plan, self._ledger = plan, ledger
        self._total = sum(plan.trials.values())
        self._began = time.monotonic()
        self._terminal: TextIO | None = None
        """Our own copy of standard output, while descriptor 1 points elsewhere."""
        self._console = Console(highlight=False)
        self._bar: Bar | None = None

    def detach(self) -> None:
        """Keep the terminal although file descriptor 1 is about to point elsewhere."""
        self._terminal = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
        if self._console.is_terminal:
            self._console = Console(file=self._terminal, force_terminal=True, highlight=False)
            columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())
            self._bar = Bar(*columns, console=self._console, transient=True)
            self._bar.add_task("trials", total=self._total, completed=self._ended())
            self._bar.start()
        else:
            self._console = Console(file=self._terminal, force_terminal=False, highlight=False, width=400)
        trials = self._plan.trials
        self.say(f"{self._plan.sweep.question}")
        self.say(
            f"{len(self._plan.arms)} arms, {trials['tune']} tune trials, {trials['confirm']} confirm trials, "
            f"{self._ended()} of {self._total} done"
        )
        for warning in self._plan.warnings:
            self.say(f"note: {warning}")

    def release(self) -> None:
        """Write to standard output again."""
        self._end_bar()
        if self._terminal is not None:
            self._console = Console(highlight=False)
            self._terminal.close()
            self._terminal = None

    def say(self, text: str) -> None:
        """One line."""
        self._console.print(text, markup=False, soft_wrap=True)

    def tell(self, what: str, trial: Trial | None) -> None:
        """Something happened, to a trial or to the session."""
        if trial is None:
            self.say(what)
            return
        ended = self._ended()
        which = f"seed {trial.seed}"
        if trial.number is not None:
            which = f"{trial.number + 1} of {self._plan.suggestions[trial.arm]}"
        self.say(f"[{ended}/{self._total}] {trial.stage} {trial.arm} {which}  {what}")
        if self._bar is not None:
            self._bar.update(self._bar.task_ids[0], completed=ended)

    def answer(self, table: RenderableType) -> None:
        """The verdict table."""
        self.release()
        console = Console(highlight=False, width=None if self._console.is_terminal else 100)
        console.print()
        console.print(table)

    def close(self, folder: RunFolder, ending: Sequence[str], *, offline: bool) -> None:
        """The last lines: how it ended, where everything is, and the next command."""
        self.release()
        lines = [*ending]
        lines += [f"report:  {folder.report / 'report.html'}"]
        if folder.remote is not None:
            lines += [f"         {folder.remote.inside('report/report.html').uri}"]
        if not offline:
            lines += [f"MLflow:  orchestrator ui {folder.quoted}"]
        lines += [f"{time.monotonic() - self._began:.0f} s"]
        print("\n".join(["", *lines]))

    def _end_bar(self) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _ended(self) -> int:
        counts: dict[Any, int] = dict(self._ledger.counts())
        return sum(counts.get(state, 0) for state in ("done", "pruned", "failed"))
