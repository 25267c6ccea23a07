"""Where a run may be begun, and what is no place for one; and the words for a person who leaves a job."""

from __future__ import annotations

import contextlib
import shlex
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NoReturn

import click

from orchestrator.cli.group import ERR, OUT
from orchestrator.cli.printing import echo
from orchestrator.system.exit_codes import Exit
from orchestrator.system.masking import without_user


@contextlib.contextmanager
def leaving(run: str | None, address: str) -> Iterator[None]:
    """Let Ctrl-C leave a job, which goes on, while the context lasts."""
    try:
        yield
    except KeyboardInterrupt:
        there = f"{shlex.quote(str(run))} --address {shlex.quote(without_user(address))}"
        echo(
            f"\nleft; the job goes on\n  follow it: orchestrator logs {there}\n  stop it:   orchestrator stop {there}",
            err=True,
        )
        sys.exit(Exit.INTERRUPTED)


def refuse_uri_for_a_folder(what: str, folder: str | None) -> None:
    """Raise UsageError for a URI, or what is almost one, where a folder of this machine is meant."""
    from orchestrator.run_dir.bucket import almost_uri, is_uri

    if folder is not None and (is_uri(folder) or almost_uri(folder) is not None):
        raise click.UsageError(f"{what} takes a folder, not {folder}")


def refuse_what_is_no_place(into: str) -> None:
    """Raise UsageError for a folder where MLflow or a report lies, or will lie."""
    from orchestrator.run_dir.bucket import is_uri
    from orchestrator.sweep.limits import TAKEN

    if not is_uri(into) and Path(into).name.lower() in TAKEN:
        raise click.UsageError(
            f"--into {into}: {Path(into).name} lies in the folder of runs for MLflow or reports; name another folder, "
            "such as --into runs/first-try"
        )


def refuse_a_taken_place(name: str, sweep: Path) -> None:
    """Raise SweepChanged if the folder for a run of this name holds something that is neither a run nor the beginning
    of a run."""
    from orchestrator.run_dir import creation
    from orchestrator.run_dir import folder as runs

    folder = runs.at(runs.home() / name)
    if not folder.exists and not (folder.path / runs.CREATING).exists():
        creation.refuse_what_is_no_run(folder, sweep)


def only_with_address(*, detach: bool, variables: tuple[str, ...]) -> None:
    """Refuse options of a job on a cluster where no cluster was named."""
    if detach or variables:
        raise click.UsageError("--detach and --env are for jobs on a cluster; give its --address too")


def do_there(address: str, run: str, arguments: list[str]) -> NoReturn:
    """Do it on the cluster's head; prints what that printed, and exits as it did."""
    from orchestrator.cli import submission

    sys.exit(submission.run_remote(address, run, arguments, out=OUT, err=ERR))
