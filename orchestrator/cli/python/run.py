"""A run as Python has it: what it says of itself, and the sessions that this process begins on it."""

from __future__ import annotations

import contextlib
import html
import os
import time
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, overload

import click

from jobs.core.plain import one_line, visible
from orchestrator import sweep as sweeps
from orchestrator.cli.places import refuse_what_is_no_place
from orchestrator.cli.python import records
from orchestrator.cli.python.child import Child, named
from orchestrator.cli.python.written import NAME, override, written
from orchestrator.ledger import LedgerError
from orchestrator.ledger.stored import JsonObject
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.bucket import RemoteError
from orchestrator.run_dir.folder import RunError, RunFolder
from orchestrator.run_dir.status import Status
from orchestrator.system import scratch
from orchestrator.system.exit_codes import Exit

if TYPE_CHECKING:
    import pandas as pd

ASK_S = 1.0
"""How often the ledger is asked whether a driver of somebody else's has ended."""

Changes = Iterable[str] | Mapping[str, object]
"""`--set` of the command line: texts `key=value`, or keys and values of Python."""

Row = dict[str, str | int | float | bool | None]
"""One trial, by the columns of results.parquet."""


class Run:
    """A run, in its folder or bucket. Each question is asked of the ledger anew, also while a driver is at work."""

    def __init__(self, folder: RunFolder, name: str, child: Child | None = None) -> None:
        """Take the folder of a run. name: how a person has named it. child: the driver that this process has begun."""
        self._folder, self._name, self._child = folder, name, child

    @property
    def name(self) -> str:
        """Its folder or URI, as it was given."""
        return self._name

    @property
    def path(self) -> Path:
        """Its folder; of a run in a bucket, the working copy on this machine."""
        return self._folder.path

    def status(self) -> Status:
        """Return how it stands: what `orchestrator status --json` prints. Raises RunError, LedgerError."""
        return records.status(self._begun())

    def answer(self) -> JsonObject:
        """Return the verdict, at any moment of the run: what `orchestrator compare --json` prints."""
        return records.answer(self._begun())

    @overload
    def trials(self, as_: Literal["frame"] = ...) -> pd.DataFrame: ...

    @overload
    def trials(self, as_: Literal["rows"]) -> list[Row]: ...

    def trials(self, as_: Literal["frame", "rows"] = "frame") -> pd.DataFrame | list[Row]:
        """Return every trial as a row, with the columns of results.parquet: a DataFrame, or dicts, which need no
        pandas."""
        if as_ not in ("frame", "rows"):
            raise ValueError(f"as_ = {as_!r} must be 'frame' or 'rows'")
        table = records.trials(self._begun())
        rows: list[Row] = table.to_pylist() if as_ == "rows" else []
        return rows if as_ == "rows" else records.frame(table)

    def report(self) -> Path:
        """Write the report as it stands now. Returns the path of its page; beside it lie the plots and the table."""
        return records.report(self._begun())

    @property
    def is_running(self) -> bool:
        """Whether somebody drives it: this process, or any other one."""
        if self._child is not None and self._child.is_running:
            return True
        return self._folder.exists and records.is_driven(self._folder)

    @property
    def exit_code(self) -> Exit | int | None:
        """How the last session ended that this process has begun; None while it runs, or if there was none."""
        return None if self._child is None else self._child.exit_code

    def wait(self, timeout: float | None = None) -> Run:
        """Wait until nobody drives it, and show what the driver prints, if it was begun here. Returns the run.

        Raises DriverError where the session did not come to its end, and TimeoutError. Ctrl-C ends the waiting alone.
        """
        if self._child is None:
            self._await_others(timeout)
        elif not self._child.is_shown:
            self._child.wait(timeout)
            _tell_end(self._child, self._name, stacklevel=3)
        return self

    def stop(self, timeout: float = 120.0) -> bool:
        """Ask whoever drives it to checkpoint and stop, and wait. Returns whether nobody drives it any more; what was
        cut short goes on with `resume`."""
        child = self._child
        if child is not None and child.is_running:
            child.interrupt()
            with contextlib.suppress(TimeoutError):
                child.wait(timeout)
            return not child.is_running
        with contextlib.closing(self._begun().open()) as ledger:
            return runs.stop(ledger, self._folder, wait_s=timeout)[1]

    def resume(
        self,
        *,
        failed: bool = False,
        give_up: bool = False,
        kind: str | None = None,
        execution: Mapping[str, object] | None = None,
        offline: bool = False,
        accept_code: bool = False,
        wait: bool = True,
    ) -> Run:
        """Continue it, as `orchestrator resume` does. Returns this run; see `launch` for `wait` and what is raised.

        failed: give failed trials another attempt; give_up: none; kind: only those of this failure class.
        execution: settings of new attempts, such as {"micro": 32}.
        """
        self._begun()
        flags = {"--failed": failed, "--give-up": give_up, "--offline": offline, "--accept-code": accept_code}
        arguments = ["resume", *(flag for flag, on in flags.items() if on)]
        arguments += [] if kind is None else [f"--class={kind}"]
        settings = {f"job.execution.{key}": value for key, value in (execution or {}).items()}
        arguments += [f"--set={text}" for text in _texts(settings)]
        self._child = Child([*arguments, *named(self._folder.name)])
        if wait:
            _follow(self._child, self._name)
        return self

    def extend(
        self, *, seeds: int = 0, trials: int = 0, arms: Sequence[str] = (), offline: bool = False, wait: bool = True
    ) -> Run:
        """Add seeds or settings once it is done, as `orchestrator extend` does. Returns this run; see `launch` for
        `wait` and what is raised.

        seeds: how many further seeds of each arm; trials: how many further settings; arms: of these alone.
        """
        self._begun()
        counts = {"seeds": seeds, "trials": trials}
        arguments = ["extend", *(["--offline"] if offline else [])]
        arguments += [f"--{name}={count}" for name, count in counts.items() if count]
        arguments += [f"--arm={arm}" for arm in arms]
        self._child = Child([*arguments, *named(self._folder.name)])
        if wait:
            _follow(self._child, self._name)
        return self

    def __repr__(self) -> str:
        return f"Run({self._name!r})"

    def _repr_html_(self) -> str:
        """Render name, question and state for notebooks, as text, whatever they hold."""
        try:
            stood = self.status()
        except (RunError, LedgerError, RemoteError, OSError) as error:
            return f"<pre>{_text(f'{self!r}: {error}')}</pre>"
        rows = {
            "run": self._name,
            "question": stood["question"],
            "state": "running" if stood["driver"] else stood["state"],
            "trials": ", ".join(f"{count} {state}" for state, count in stood["counts"].items() if count),
            "planned": ", ".join(f"{count} {stage}" for stage, count in stood["planned"].items()),
        }
        cells = "".join(f"<tr><th>{key}</th><td>{_text(str(value))}</td></tr>" for key, value in rows.items())
        return f"<table>{cells}</table>"

    def _begun(self) -> RunFolder:
        """Return the folder. Raises RunError while its driver has not begun the run yet."""
        if self._child is not None and self._child.is_running and not self._folder.exists:
            raise RunError(
                f"{self._name} is not begun yet: its driver looks at data and versions first; wait(), or ask again"
            )
        return self._folder

    def _await_others(self, timeout: float | None) -> None:
        deadline = None if timeout is None else time.monotonic() + timeout
        while records.is_driven(self._begun()):
            if deadline is not None and time.monotonic() >= deadline:
                raise TimeoutError(f"{self._name} is still driven after {timeout:g} s")
            time.sleep(ASK_S)


def _follow(child: Child, name: str) -> None:
    """Wait for a driver. The first Ctrl-C stops it in good order, the second one no longer waits for that."""
    try:
        child.wait()
    except KeyboardInterrupt:
        child.interrupt()
        child.wait()
        raise
    _tell_end(child, name, stacklevel=4)


def _tell_end(child: Child, name: str, *, stacklevel: int) -> None:
    """Raise what ended a driver before its time; warn where trials are missing."""
    if (error := child.error(name)) is not None:
        raise error
    if child.exit_code == Exit.SOME_FAILED:
        text = f"{name}: some trials failed, or differ from their files; status() names them, and resume(failed=True)"
        warnings.warn(f"{text} tries them again", RuntimeWarning, stacklevel=stacklevel)
    elif child.exit_code != Exit.DONE:
        text = f"{name} was stopped before its end; resume(), or the same launch, continues it"
        warnings.warn(text, RuntimeWarning, stacklevel=stacklevel)


def launch(
    sweep: sweeps.Sweep | Mapping[str, object] | str | os.PathLike[str],
    into: str | os.PathLike[str] | None = None,
    *,
    overrides: Changes = (),
    offline: bool = False,
    accept_code: bool = False,
    wait: bool = True,
) -> Run:
    """Run a sweep, or continue it, as `orchestrator launch` does, in a child process. Returns its run.

    sweep: the path of a file, a Sweep, or a dict of its tables. into: a folder, or the URI of a bucket; else
    runs/NAME. overrides: changes of keys for this run. offline: do without MLflow now. accept_code: go on though code
    or versions differ. wait: show what the driver prints until the session has ended; else return at once.

    Raises ConfigError for a sweep that is none, and DriverError, with an exit code, where the session does not come to
    its end. Trials that failed, and a stop from elsewhere, are a RuntimeWarning: `run.exit_code` tells. Ctrl-C has the
    driver checkpoint and stop, and is raised when it has; a second one is raised at once.
    """
    texts = list(_texts(overrides))
    path: Path | None = None
    if isinstance(sweep, str | os.PathLike):
        path, text = Path(sweep), ""
        checked = sweeps.load(path, texts)
    elif not isinstance(sweep, sweeps.Sweep | Mapping):
        raise TypeError(f"a sweep is given as a path, a Sweep or a dict, and this is {sweep!r}")
    else:
        text = written(sweep if isinstance(sweep, Mapping) else sweep.model_dump(exclude_unset=True))
        checked = sweeps.loads(text, texts, name=NAME)
        if isinstance(sweep, Mapping) and "extends" in sweep:  # which is looked for beside the file
            text, texts = written(checked.model_dump(exclude_unset=True)), []
    name = os.fspath(into) if into is not None else str(runs.home() / checked.name)
    try:
        refuse_what_is_no_place(name)
    except click.UsageError as error:
        raise RunError(error.message) from None
    folder = _absolute(runs.at(name))
    arguments = ["launch", f"--into={folder.name}", *(f"--set={change}" for change in texts)]
    arguments += [flag for flag, on in (("--offline", offline), ("--accept-code", accept_code)) if on]
    with contextlib.ExitStack() as stack:
        if path is None:
            path = stack.enter_context(scratch.folder("launch")) / "sweep.toml"
            path.write_text(text, "utf-8")
        child = Child([*arguments, *named(path)], made=stack)
    run = Run(folder, name, child)
    if wait:
        _follow(child, name)
    return run


def open_run(run: str | os.PathLike[str]) -> Run:
    """Open the run in a folder, at a URI, or with a name under runs/, whoever drives it. Raises RunError."""
    name = os.fspath(run)
    return Run(_absolute(runs.find(name)), name)


def _absolute(folder: RunFolder) -> RunFolder:
    """Return the folder with its absolute path, since the current folder may be another one later."""
    return folder if folder.remote is not None else replace(folder, path=folder.path.absolute())


def _texts(changes: Changes) -> Iterable[str]:
    if isinstance(changes, str):
        return [changes]
    if isinstance(changes, Mapping):
        return [override(key, value) for key, value in changes.items()]
    return changes


def _text(data: str) -> str:
    return html.escape(visible(one_line(data)))
