"""The verb that compares: the arms of a run, several runs, other trainers' results, one arm after another."""

from __future__ import annotations

import contextlib
import errno
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NoReturn

import click

from orchestrator.cli.group import ADDRESS, ERR, JSON, OUT, main
from orchestrator.cli.places import do_there, refuse_uri_for_a_folder
from orchestrator.cli.printing import (
    echo,
    print_json,
    print_whole,
)
from orchestrator.system.addresses import address_option
from orchestrator.system.versions import versioned

if TYPE_CHECKING:
    from orchestrator.run_dir.folder import RunFolder


@main.command()
@click.argument("run", nargs=-1)
@click.option("--into", metavar="FOLDER", help="Folder of the report of several runs, or of one on a cluster.")
@click.option("--csv", "csv", type=click.Path(path_type=Path), metavar="FILE", help="Results of another trainer.")
@click.option(
    "--metric",
    multiple=True,
    help="Of --csv: the column of the values, or the name of what `value` is. Given again: further columns.",
)
@click.option(
    "--mode",
    type=click.Choice(["max", "min"]),
    multiple=True,
    help="Of --csv: which is better; follows the metric. With several metrics once for each, in their order.",
)
@click.option("--baseline", metavar="ARM", help="Of --csv, or of OTHER: what is compared with; else the first.")
@click.option(
    "--smallest-difference",
    type=float,
    metavar="X",
    multiple=True,
    help="Of --csv: differences below it do not matter. With several metrics once for each, in their order.",
)
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
    metric: tuple[str, ...],
    mode: tuple[Literal["max", "min"], ...],
    baseline: str | None,
    smallest_difference: tuple[float, ...],
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
        orchestrator compare --csv results.csv --metric accuracy --metric loss
        orchestrator compare runs/idea-7 --incumbent runs/best --questions 20

    FILE has the columns arm, seed and METRIC (or value), and may have row, where each line is a row that was judged.
    Less is better of a METRIC such as loss, error_rate, rmse or latency_s, and more of others, unless --mode says
    otherwise; the answer says which way it took. Several metrics are one family: one wrong claim in all of them has a
    chance of 0.05.
    Of several runs, each keeps the verdict of its own plan; below them is one table of all arms, in which the arms of
    the later runs are compared with the first run's baseline. The report of one run lies in it, that of several in
    runs/compared/A+B; with --address it is brought here, into NAME-report. With --incumbent the number of questions is
    fixed by the first and stored with OTHER, and all of them together keep noise once in twenty.
    """
    of_csv: dict[str, object] = {
        "--metric": metric or None,
        "--mode": mode or None,
        "--smallest-difference": smallest_difference or None,
    }
    of_incumbent: dict[str, object] = {"--questions": questions, "--arm": arm}
    (of_csv if incumbent is None else of_incumbent)["--baseline"] = baseline
    places = {"--into": into, "--address": address}
    if wrong := _mixed(run, csv, incumbent, of_csv=of_csv, of_incumbent=of_incumbent, places=places):
        raise click.UsageError(wrong)
    if csv is not None:
        _compare_csv(csv, metric, mode, baseline, smallest_difference, as_json=as_json)
        return
    if incumbent is not None:
        if address is not None:
            flags = [f"{name}={value}" for name, value in of_incumbent.items() if value is not None]
            json_too = ["--json"] if as_json else []
            do_there(address, run[0], ["compare", *run, f"--incumbent={incumbent}", *flags, *json_too])
        _ask(run[0], incumbent, questions, (arm, baseline), as_json=as_json)
        return
    if address is not None:
        _compare_there(address, run, into, as_json=as_json)
    from orchestrator import report
    from orchestrator.run_dir import folder as runs
    from orchestrator.run_dir.bucket import is_uri
    from orchestrator.run_dir.rows import RowFiles
    from orchestrator.tracking import ui

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
            summary, unwritten = report.write(ledger, folder.report, rows, ui.links(folder, ledger)), None
        except OSError as error:
            summary, unwritten = report.summarize(ledger, rows), _unwritten(error, folder.report)
    folder.check_in_report()
    if as_json:
        print_json(versioned("compare", summary.to_json()))
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


def _ask(
    run: str, incumbent: str, questions: int | None, arms: tuple[str | None, str | None], *, as_json: bool
) -> None:
    """Ask one question. arms: of RUN and of the incumbent's run, where they are named."""
    from orchestrator.report import incumbent as asking
    from orchestrator.run_dir import folder as runs

    with contextlib.ExitStack() as stack:
        new, old = (stack.enter_context(contextlib.closing(runs.find(name).open())) for name in (run, incumbent))
        answer = asking.ask(new, old, arm=arms[0], baseline=arms[1], questions=questions)
    if as_json:
        print_json(versioned("compare", answer.to_json()))
        return
    echo(answer.sentence)
    if answer.keep:
        echo(f"next: {asking.next_command(answer, run)}")


def _compare_csv(
    path: Path,
    metrics: Sequence[str],
    modes: Sequence[Literal["max", "min"]],
    baseline: str | None,
    smallest: Sequence[float],
    *,
    as_json: bool,
) -> None:
    from orchestrator import report

    for own in smallest:
        if not 0 <= own < float("inf"):
            raise click.UsageError(f"--smallest-difference {own}: give a number, 0 or more")
    for option, given in (("--mode", modes), ("--smallest-difference", smallest)):
        if given and len(given) != len(metrics):
            raise click.UsageError(
                f"{option} is given {len(given)} times, and --metric {len(metrics)} times; give it once for each "
                "metric, in their order, or not at all"
            )
    asked = [
        report.Asked(name, modes[k] if modes else None, baseline, smallest[k] if smallest else 0.0)
        for k, name in enumerate(metrics)
    ]
    answer = report.judge(path, *asked)
    if as_json:
        print_json(versioned("compare", answer.to_json()))
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
        print_json(versioned("compare", summary.to_json()))
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
