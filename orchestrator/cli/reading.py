"""The verbs that read a run: status, logs, export, verify, ui."""

from __future__ import annotations

import contextlib
import json
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import click

from jobs.config import OF_SEED
from orchestrator.cli.group import ADDRESS, ERR, JSON, main
from orchestrator.cli.places import do_there, leaving, refuse_uri_for_a_folder
from orchestrator.cli.printing import (
    echo,
    print_exported,
    print_json,
    print_status,
    print_verified,
    print_whole,
    shown_arm,
    watch_status,
)
from orchestrator.system.display import cell, log_lines
from orchestrator.system.exit_codes import Exit, InfrastructureMissing
from orchestrator.system.masking import without_user
from orchestrator.system.versions import versioned

if TYPE_CHECKING:
    from orchestrator.run_dir.export import Exported


@main.command()
@click.argument("run", required=False)
@JSON
@click.option("--watch", is_flag=True, help="Keep looking, every two seconds, while it is driven.")
@ADDRESS
def status(run: str | None, *, as_json: bool, watch: bool, address: str | None) -> None:
    """Say how RUN stands, from its ledger alone; with --address and no RUN, which runs the cluster drives.

    \b
        orchestrator status runs/quickstart --json
        orchestrator status --address http://HEAD:8265
        orchestrator status s3://bucket/first-try --address http://HEAD:8265
    """
    if address is not None:
        if run is None:
            if watch:
                raise click.UsageError("--watch is for one RUN; name it")
            _list_jobs(address, as_json)
            return
        _status_there(address, run, as_json=as_json, watch=watch)
        return
    if run is None:
        raise click.UsageError("name a RUN, or give --address URL for the runs that a cluster drives")
    from orchestrator.run_dir import folder as runs
    from orchestrator.run_dir.status import status as status_of

    with contextlib.closing(runs.find(run).open()) as ledger:
        if as_json:
            print_json(status_of(ledger))
        elif watch:
            watch_status(lambda: status_of(ledger), runs.as_argument(run))
        else:
            print_status(status_of(ledger), runs.as_argument(run))


@main.command()
@click.argument("run")
@click.argument("trial", required=False)
@click.option("--rank", type=int, help="Whose log; without it rank 0's, and the newest failure.")
@ADDRESS
def logs(run: str, trial: str | None, rank: int | None, address: str | None) -> None:
    """Print what a rank of TRIAL of RUN printed, and why the trial failed; with --address and no TRIAL, follow the job
    that drives RUN.

    \b
        orchestrator logs runs/quickstart 3f2a --rank 1
        orchestrator logs s3://bucket/first-try --address http://HEAD:8265
    """
    if address is not None and trial is not None:
        do_there(address, run, ["logs", run, trial, *([] if rank is None else ["--rank", str(rank)])])
    if address is not None:
        from orchestrator.cli import submission

        with leaving(run, address):
            code = submission.follow_driver(address, run, write=partial(echo, nl=False), tell=partial(echo, err=True))
        sys.exit(code)
    if trial is None:
        raise click.UsageError(f"name a trial of {run}; `orchestrator status {run}` lists them")
    from orchestrator.run_dir import folder as runs

    click.echo(log_lines(runs.logs(runs.find(run), trial, rank)), nl=False)


@main.command()
@click.argument("run")
@click.argument("trial", metavar="TRIAL|ARM")
@click.argument("dest")
@JSON
@ADDRESS
def export(run: str, trial: str, dest: str, *, as_json: bool, address: str | None) -> None:
    """Write the encoder of TRIAL of RUN to the new folder DEST; of an ARM, of its best confirm trial.

    \b
        orchestrator export runs/quickstart flatnce encoders/flatnce
        orchestrator export runs/quickstart 3f2a encoders/3f2a --json
        orchestrator export runs/quickstart flatnce 'encoders/flatnce/{seed}'
        orchestrator export s3://bucket/first-try flatnce encoders/flatnce --address http://HEAD:8265

    With {seed} in DEST, of each confirm trial of ARM to a folder of its own: model.name = "encoders/flatnce/{seed}" of
    another sweep then judges the encoders that were trained with its seeds.

    transformers' AutoModel and sentence-transformers load the folder without this package, with the embeddings that
    the trial was judged by; one of images, or with pooling attention, with trust_remote_code=True. Its README says how.
    """
    refuse_uri_for_a_folder("an encoder is written to this machine; DEST", dest)
    if address is not None:
        from orchestrator.cli import submission

        if OF_SEED in dest:
            raise click.UsageError(f"{OF_SEED} in DEST goes without --address; export one trial after another")
        code, brought = submission.export(address, run, trial, Path(dest), err=ERR)
        if brought is None:
            sys.exit(code)
        done = brought
    else:
        from orchestrator.run_dir import export as exporting
        from orchestrator.run_dir import folder as runs

        if OF_SEED in dest:
            for each in exporting.export_each(runs.find(run), trial, dest):
                _print_export(each, as_json=as_json)
            return
        done = exporting.export(runs.find(run), trial, Path(dest))
    _print_export(done, as_json=as_json)


def _print_export(done: Exported, *, as_json: bool) -> None:
    if as_json:
        print_json(versioned("export", done))
    else:
        print_exported(done)


@main.command()
@click.argument("run")
@JSON
@ADDRESS
def verify(run: str, *, as_json: bool, address: str | None) -> None:
    """Prove that ledger, MLflow and checkpoints of RUN say the same, or list what differs; writes nothing.

    \b
        orchestrator verify runs/quickstart --json
    """
    if address is not None:
        do_there(address, run, ["verify", run, *(["--json"] if as_json else [])])
    from orchestrator import tracking
    from orchestrator import verify as verifying
    from orchestrator.preflight import requirements
    from orchestrator.run_dir import folder as runs
    from orchestrator.system import exit_codes

    folder = runs.find(run)
    try:
        verified = verifying.verify(folder, requirements.tracking_uri(folder))
    except tracking.TrackingUnavailable as error:
        raise InfrastructureMissing(str(error)) from error
    verified["faults"] = [exit_codes.located(text) for text in verified["faults"]]
    verified["notes"] = [exit_codes.located(text) for text in verified["notes"]]
    if as_json:
        print_json(versioned("verify", verified))
    else:
        print_verified(verified)
    sys.exit(Exit.DONE if verified["ok"] else Exit.SOME_FAILED)


@main.command()
@click.argument("run", required=False)
@click.option("--port", default=5000, help="Port on 127.0.0.1.")
@click.option("--open", "browse", is_flag=True, help="Open the first of the pages in the browser.")
@click.option("--json", "as_json", is_flag=True, help="Print the pages of a server as JSON, and start none.")
@ADDRESS
def ui(run: str | None, port: int, *, browse: bool, as_json: bool, address: str | None) -> None:
    """Start MLflow on the right store, and print where to look: the answer of RUN, its report, its charts by arm, and
    its trials side by side. Without RUN, the answer of every run under runs/.

    \b
        orchestrator ui runs/quickstart --open
        orchestrator ui s3://bucket/first-try --address http://HEAD:8265

    With --address nothing is started: it prints the pages of the server that the cluster tells.
    """
    from orchestrator.tracking import ui as server

    if address is not None:
        from orchestrator.cli import submission

        out: list[str] = []
        arguments = ["ui", *([] if run is None else [run]), "--json"]
        if code := submission.run_remote(address, run, arguments, out=out.append, err=ERR):
            sys.exit(code)
        pages = json.loads("".join(out))
        if as_json:
            print_json(pages)
        else:
            server.show_elsewhere(pages, browse=browse)
    elif as_json:
        print_json(versioned("ui", server.describe(run)))
    else:
        sys.exit(server.serve(run, port=port, browse=browse))


def _status_there(address: str, run: str, *, as_json: bool, watch: bool) -> None:
    """Print how a run stands, from what its driver has left with the job server; else from its ledger, by a job."""
    from orchestrator.cli import submission

    there = f"{shlex.quote(run)} --address {shlex.quote(without_user(address))}"
    if watch and not as_json:
        submission.wait_for_status(address, run, tell=partial(echo, err=True))
        watch_status(partial(submission.standing, address, run), there)
    posted = submission.posted(address, run)
    if posted is not None and not posted.left_out:
        if as_json:
            print_json(posted.status)
        else:
            print_status(posted.status, there)
        return
    if posted is not None:
        echo("note: the run has too many trials for its job's metadata, so a job asks the ledger", err=True)
    do_there(address, run, ["status", run, *(["--json"] if as_json else [])])


def _list_jobs(address: str, as_json: bool) -> None:
    from orchestrator.cli import submission

    jobs = submission.listed(address)
    if as_json:
        print_json(versioned("status", {"jobs": jobs}))
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("job", "verb", "state", "exit code", "run"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        cells = (job["job"], job["verb"], job["meaning"], shown_arm(job["exit_code"]), job["run"])
        table.add_row(*map(cell, cells))
    if not jobs:
        echo(f"no job on {without_user(address)} drives a run")
        return
    print_whole(table)
    latest = {job["run"]: job for job in jobs}
    for job in latest.values():
        echo(f"{job['meaning']}: {job['next']}")
