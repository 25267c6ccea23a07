"""The verbs that read a run: status, logs, compare, export, verify, ui."""

from __future__ import annotations

import contextlib
import errno
import json
import shlex
import sys
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from orchestrator.cli.group import ADDRESS, ERR, JSON, OUT, main
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
from orchestrator.system.addresses import address_option
from orchestrator.system.display import cell, log_lines
from orchestrator.system.exit_codes import Exit, InfrastructureMissing
from orchestrator.system.masking import without_user

if TYPE_CHECKING:
    from orchestrator.run_dir.folder import RunFolder


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

    with contextlib.closing(runs.find(run).open()) as ledger:
        if as_json:
            print_json(runs.status(ledger))
        elif watch:
            watch_status(lambda: runs.status(ledger), runs.as_argument(run))
        else:
            print_status(runs.status(ledger), runs.as_argument(run))


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
@click.argument("run", nargs=-1)
@click.option("--into", metavar="FOLDER", help="Folder of the report of several runs, or of one on a cluster.")
@click.option("--csv", "csv", type=click.Path(path_type=Path), metavar="FILE", help="Results of another trainer.")
@click.option("--metric", help="Of --csv: the column of the values, or the name of what `value` is.")
@click.option("--mode", type=click.Choice(["max", "min"]), help="Of --csv: which is better; max unless given.")
@click.option("--baseline", metavar="ARM", help="Of --csv: what the others are compared with; else the first arm.")
@click.option("--smallest-difference", type=float, metavar="X", help="Of --csv: differences below it do not matter.")
@click.option("--incumbent", metavar="OTHER", help="Ask whether the new arm of RUN beats the baseline of this run.")
@click.option("--questions", type=click.IntRange(1, 10_000), help="Of --incumbent: how many there may be; 20.")
@click.option("--arm", metavar="LABEL", help="Of --incumbent: the new arm, where RUN has several.")
@JSON
@ADDRESS
def compare(
    run: tuple[str, ...],
    into: str | None,
    *,
    incumbent: str | None,
    questions: int | None,
    arm: str | None,
    csv: Path | None,
    metric: str | None,
    mode: Literal["max", "min"] | None,
    baseline: str | None,
    smallest_difference: float | None,
    as_json: bool,
    address: str | None,
) -> None:
    """Print the verdict of RUN, and write report.html, report.md and results.parquet; with --csv judge the results of
    any other trainer.

    \b
        orchestrator compare runs/quickstart --json
        orchestrator compare runs/temperature runs/flatnce --into both
        orchestrator compare s3://bucket/first-try --address http://HEAD:8265
        orchestrator compare --csv results.csv --metric accuracy --smallest-difference 0.01
        orchestrator compare runs/idea-7 --incumbent runs/best --questions 20

    FILE has the columns arm, seed and METRIC (or value), and may have row, where each line is a row that was judged.
    Of several runs, each keeps the verdict of its own plan; below them is one table of all arms, in which the arms of
    the later runs are compared with the first run's baseline. The report of one run lies in it, that of several in
    runs/compared/A+B; with --address it is brought here, into NAME-report. With --incumbent the number of questions is
    fixed by the first and stored with OTHER, and all of them together keep noise once in twenty.
    """
    of_csv = {"--metric": metric, "--mode": mode, "--baseline": baseline, "--smallest-difference": smallest_difference}
    of_incumbent = {"--questions": questions, "--arm": arm}
    places = {"--into": into, "--address": address}
    if wrong := _mixed(run, csv, incumbent, of_csv=of_csv, of_incumbent=of_incumbent, places=places):
        raise click.UsageError(wrong)
    if csv is not None and metric is not None:
        _compare_csv(csv, metric, mode or "max", baseline, smallest_difference or 0.0, as_json=as_json)
        return
    if incumbent is not None:
        if address is not None:
            flags = [f"{name}={value}" for name, value in of_incumbent.items() if value is not None]
            json_too = ["--json"] if as_json else []
            do_there(address, run[0], ["compare", *run, f"--incumbent={incumbent}", *flags, *json_too])
        _ask(run[0], incumbent, questions, arm, as_json=as_json)
        return
    if address is not None:
        _compare_there(address, run, into, as_json=as_json)
    from orchestrator import report
    from orchestrator.run_dir import folder as runs
    from orchestrator.run_dir.bucket import is_uri
    from orchestrator.run_dir.rows import RowFiles

    folders = [runs.find(name) for name in run]
    if len(folders) > 1:
        _compare_several(folders, into, as_json)
        return
    (folder,) = folders
    if into is not None:
        raise click.UsageError(f"--into is for several runs; the report of one lies in it: {folder.report}")
    rows = RowFiles.of(folder)
    with contextlib.closing(folder.open()) as ledger:
        try:
            summary, unwritten = report.write(ledger, folder.report, rows), None
        except OSError as error:
            summary, unwritten = report.summarize(ledger, rows), _unwritten(error, folder.report)
    folder.check_in_report()
    if as_json:
        print_json(summary.to_json())
    else:
        print_whole(report.table(summary))
        if not address_option():  # else the caller names the place on the cluster
            _print_places([page for page in folder.report_pages if unwritten is None or is_uri(page)])


def _mixed(
    run: Sequence[str],
    csv: Path | None,
    incumbent: str | None,
    *,
    of_csv: Mapping[str, object],
    of_incumbent: Mapping[str, object],
    places: Mapping[str, object],
) -> str | None:
    """Explain which options do not go together; None where they do."""
    given = [name for name, value in (*of_csv.items(), *of_incumbent.items()) if value is not None]
    if csv is not None:
        if run or incumbent is not None or any(value is not None for value in places.values()):
            return "--csv takes no RUN, no --into, no --incumbent and no --address: a file is judged here"
        if of_csv["--metric"] is None:
            return "--csv needs --metric, the column of the values; give --metric accuracy"
        wrong, whose = [name for name in given if name in of_incumbent], "--incumbent alone"
    else:
        wrong, whose = [name for name in given if name in of_csv], "--csv alone; a run has its own in its sweep"
        if not wrong and incumbent is None:
            wrong, whose = given, "--incumbent alone"
    if wrong:
        return f"{', '.join(wrong)}: of {whose}"
    if incumbent is not None and (len(run) != 1 or places["--into"] is not None):
        return "--incumbent takes one RUN, and no --into"
    return "name a RUN, or give --csv FILE" if csv is None and not run else None


def _ask(run: str, incumbent: str, questions: int | None, arm: str | None, *, as_json: bool) -> None:
    from orchestrator.report import incumbent as asking
    from orchestrator.run_dir import folder as runs

    with contextlib.ExitStack() as stack:
        new, old = (stack.enter_context(contextlib.closing(runs.find(name).open())) for name in (run, incumbent))
        answer = asking.ask(new, old, arm=arm, questions=questions)
    if as_json:
        print_json(answer.to_json())
        return
    echo(answer.sentence)
    if answer.keep:
        echo(f"next: {asking.next_command(answer, run)}")


def _compare_csv(
    path: Path, metric: str, mode: Literal["max", "min"], baseline: str | None, smallest: float, *, as_json: bool
) -> None:
    from orchestrator import report

    if not 0 <= smallest < float("inf"):
        raise click.UsageError(f"--smallest-difference {smallest}: give a number, 0 or more")
    answer = report.judge(path, report.Asked(metric, mode, baseline, smallest))
    if as_json:
        print_json(answer.to_json())
    else:
        print_whole(report.table(answer))


def _unwritten(error: OSError, folder: Path) -> str:
    """Say that the report cannot be written where nothing can; any other error is raised again."""
    from orchestrator.system import exit_codes

    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
        raise error
    text = f"note: the report could not be written to {folder}: {exit_codes.of_system(error)}"
    echo(text, err=True)
    return text


def _compare_several(folders: list[RunFolder], into: str | None, as_json: bool) -> None:
    from orchestrator import report
    from orchestrator.run_dir import folder as runs
    from orchestrator.run_dir.rows import RowFiles

    refuse_uri_for_a_folder("the report of several runs lies on this machine; --into", into)
    with contextlib.ExitStack() as stack:
        ledgers = [stack.enter_context(contextlib.closing(folder.open())) for folder in folders]
        named = report.names([folder.name for folder in folders], ledgers)
        target = Path(into) if into is not None else runs.home() / "compared" / report.folder_name(named)
        rows = RowFiles.of(*folders, within=target)
        try:
            summary, unwritten = report.write_several(named, target, rows), None
        except OSError as error:
            summary, unwritten = report.summarize_several(named, rows), _unwritten(error, target)
    if as_json:
        print_json(summary.to_json())
    else:
        print_whole(report.table_of_several(summary))
        if unwritten is None and not address_option():
            _print_places([str(target / "report.html")])


def _print_places(paths: Sequence[str]) -> None:
    for number, path in enumerate(paths):
        echo(f"{'' if number else 'report:':7} {path}")


def _compare_there(address: str, run: tuple[str, ...], into: str | None, *, as_json: bool) -> NoReturn:
    """Compare on the cluster's head, and bring the report here."""
    from orchestrator.cli import submission

    refuse_uri_for_a_folder("the report is brought to this machine; --into", into)
    flags = ["--json"] if as_json else []
    try:
        done = submission.report(address, run, flags=flags, into=None if into is None else Path(into), err=ERR)
    except OSError as error:
        _unwritten(error, Path(into or "."))
        several = ["--into", submission.HERE] if len(run) > 1 else []
        sys.exit(submission.run_remote(address, run[0], ["compare", *run, *several, *flags], out=OUT, err=ERR))
    echo(done.out, nl=False)
    if done.folder is not None:
        echo(f"report: {done.folder / 'report.html'}", err=as_json)
    sys.exit(done.code)


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
        orchestrator export s3://bucket/first-try flatnce encoders/flatnce --address http://HEAD:8265

    transformers' AutoModel and sentence-transformers load the folder without this package, with the embeddings that
    the trial was judged by; an encoder of images with trust_remote_code=True. Its README says how.
    """
    refuse_uri_for_a_folder("an encoder is written to this machine; DEST", dest)
    if address is not None:
        from orchestrator.cli import submission

        code, brought = submission.export(address, run, trial, Path(dest), err=ERR)
        if brought is None:
            sys.exit(code)
        done = brought
    else:
        from orchestrator.run_dir import export as exporting
        from orchestrator.run_dir import folder as runs

        done = exporting.export(runs.find(run), trial, Path(dest))
    if as_json:
        print_json(done)
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
        print_json(verified)
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
        print_json(server.describe(run))
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
        print_json({"jobs": jobs})
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
