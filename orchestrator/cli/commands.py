"""The command line: verbs and exit codes, no logic. Imports lazily, so that --help answers at once."""

from __future__ import annotations

import contextlib
import errno
import json
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

import click

from jobs.core.plain import one_line, visible, visible_lines
from orchestrator.system import terminal
from orchestrator.system.addresses import address_option
from orchestrator.system.display import Harmless, cell, log_lines, table_lines
from orchestrator.system.exit_codes import Exit, InfrastructureMissing
from orchestrator.system.masking import without_user

if TYPE_CHECKING:
    from orchestrator.preflight.estimate import Estimate
    from orchestrator.run_dir.folder import RunFolder
    from orchestrator.sweep.plan import Plan

BUDGETS = ("samples", "steps", "seconds")
"""What a job may be given of, in the order of the plan's table."""

MOST_ROWS, MOST_WATCHED = 300, 100
"""Trials of a table that rich lays out, a millisecond for each; and of one that is drawn every second."""

UNKNOWN = "-"
"""In a table: what is not known, or not there."""

Command = TypeVar("Command", bound=Callable[..., Any])


def _echo(text: str, *, err: bool = False, nl: bool = True) -> None:
    """Print text in which there may be data."""
    click.echo(visible_lines(text), err=err, nl=nl)


OUT, ERR = partial(_echo, nl=False), partial(_echo, nl=False, err=True)
"""Where what is printed on a cluster's head goes."""

SET = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE", help="Override a key, such as job.loss.temperature=0.07."
)
JSON = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
ADDRESS = click.option("--address", metavar="URL", help="Of a cluster's job server: do it there. http://HEAD:8265")
VARIABLES = click.option(
    "--env", "variables", multiple=True, metavar="NAME[=VALUE]", help="Variable of the job's; no secrets."
)
ACCEPT = click.option(
    "--accept-code", is_flag=True, help="Continue a run that was begun with other code or versions, and record that."
)
DETACH = click.option("--detach", is_flag=True, help="Leave the job as soon as it is submitted.")


class _Group(click.Group):
    """Turns errors into one text and an exit code, in one place."""

    def invoke(self, ctx: click.Context) -> Any:
        try:
            return super().invoke(ctx)
        except click.ClickException as error:
            vars(error)["message"] = visible_lines(error.message)  # final for click, and data of the user's
            raise
        except click.exceptions.Exit:
            raise
        except (KeyboardInterrupt, click.Abort):
            _echo("interrupted", err=True)
            sys.exit(Exit.INTERRUPTED)
        except Exception as error:
            from orchestrator.system import exit_codes

            ended = exit_codes.ending(error)
            if ended is None:
                raise
            text, code = ended
            _echo(f"error: {text}", err=True)
            sys.exit(code)


@click.group(cls=_Group)
@click.version_option(package_name="contrastive-orchestrator")
def main() -> None:
    """Does A beat B? Controlled comparisons of contrastive encoders: one file, one command, one answer.

    Exit codes: 0 done; 1 some trials failed, or verify found a fault; 2 bad sweep or usage; 3 another driver holds
    the run; 4 infrastructure missing; 75 the cluster died, run it again; 130 interrupted, resumable.
    """
    terminal.fill_descriptors()


@main.command()
@click.argument("sweep", type=click.Path(path_type=Path))
@click.option("--probe", is_flag=True, help="Train each arm for a few steps, here and now, to estimate the time.")
@click.option("--shown-as", hidden=True)
@SET
@JSON
@ADDRESS
def plan(
    sweep: Path, *, probe: bool, shown_as: str | None, overrides: tuple[str, ...], as_json: bool, address: str | None
) -> None:
    """Say what SWEEP would run, what it can show and how long it takes; writes nothing.

    \b
        orchestrator plan sweeps/quickstart.toml
        orchestrator plan sweeps/quickstart.toml --probe
        orchestrator plan sweeps/quickstart.toml --address http://HEAD:8265

    The time is that of trials of earlier runs that cost the same, or of short probes; with --address of runs in the
    cluster's ledger, on the cluster's nodes, or of probes on its head.
    """
    if address is not None:
        from orchestrator.cli import submission

        flags = [flag for flag, on in (("--probe", probe), ("--json", as_json)) if on]
        flags += ["--shown-as", str(sweep)]
        sys.exit(submission.plan(address, sweep, overrides=overrides, flags=flags, out=OUT, err=ERR))
    from orchestrator import sweep as sweeps
    from orchestrator.preflight import estimate as estimating
    from orchestrator.run_dir import provenance
    from orchestrator.sweep import plan as planning
    from orchestrator.system.masking import masked

    made = planning.make(sweeps.load(sweep, overrides))
    if not address_option():  # a job's own folder is no place for a run
        _refuse_a_taken_place(made.sweep.name, sweep)
    made = made.noting(provenance.look_at_encoders(made))
    tell = partial(_echo, err=True)
    estimate = estimating.from_probes(made, tell=tell) if probe else estimating.from_history(made)
    if as_json:
        _print_json(made.summary() | {"estimate": estimate.summary()})
    else:
        sets = (part for one in overrides for part in ("--set", one))
        again = shlex.join(["orchestrator", "plan", shown_as or str(sweep), *sets, "--probe"])
        _print_plan(made, estimate, masked(f"{again}{address_option()}"))


@main.command()
@click.argument("sweep", type=click.Path(path_type=Path))
@click.option("--into", metavar="FOLDER|URI", help="Folder of the run, or a URI such as s3://bucket/NAME.")
@click.option("--offline", is_flag=True, help="Do without MLflow now; a later resume catches it up.")
@ACCEPT
@SET
@ADDRESS
@DETACH
@VARIABLES
def launch(
    sweep: Path,
    *,
    into: str | None,
    offline: bool,
    accept_code: bool,
    overrides: tuple[str, ...],
    address: str | None,
    detach: bool,
    variables: tuple[str, ...],
) -> None:
    """Run SWEEP; the same command again continues it.

    \b
        orchestrator launch sweeps/quickstart.toml --into runs/first-try
        orchestrator launch sweeps/quickstart.toml --into s3://bucket/first-try
        orchestrator launch sweeps/quickstart.toml --into s3://bucket/first-try --address http://HEAD:8265

    The folder is runs/NAME unless given. A run in a bucket has its ledger in $ORCHESTRATOR_LEDGER. With --address the
    run is driven on the cluster's head, with the head's environment, and goes on when this command is left with Ctrl-C;
    the same command follows it again.
    """
    if address is not None:
        from orchestrator.cli import submission

        with _leaving(into, address):
            code = submission.launch(
                address, sweep, into, overrides=overrides, offline=offline, accept_code=accept_code,
                variables=variables, detach=detach,
                write=partial(_echo, nl=False), tell=partial(_echo, err=True),
            )  # fmt: skip
        sys.exit(code)
    _only_with_address(detach=detach, variables=variables)
    terminal.survive()
    from orchestrator import sweep as sweeps
    from orchestrator.run_dir.folder import home

    if into is not None:
        _refuse_what_is_no_place(into)
    place = into or home() / sweeps.load(sweep, overrides).name
    from orchestrator import driver

    options = driver.Options(offline=offline, accept_code=accept_code)
    sys.exit(driver.launch(sweep, place, overrides=overrides, options=options))


@main.command()
@click.argument("run")
@click.option("--failed", is_flag=True, help="Give failed trials another attempt.")
@click.option("--give-up", is_flag=True, help="Give failed trials no other attempt; their settings are infeasible.")
@click.option("--class", "kind", metavar="NAME", help="Only trials that failed in this class.")
@click.option("--offline", is_flag=True, help="Do without MLflow now.")
@ACCEPT
@click.option(
    "--set", "overrides", multiple=True, metavar="job.execution.KEY=VALUE", help="Execution setting of new attempts."
)
@ADDRESS
@DETACH
@VARIABLES
def resume(
    run: str,
    *,
    failed: bool,
    give_up: bool,
    kind: str | None,
    offline: bool,
    accept_code: bool,
    overrides: tuple[str, ...],
    address: str | None,
    detach: bool,
    variables: tuple[str, ...],
) -> None:
    """Continue RUN.

    \b
        orchestrator resume runs/quickstart
        orchestrator resume runs/quickstart --failed --class out_of_memory --set job.execution.micro=32
        orchestrator resume runs/quickstart --give-up --class out_of_memory
        orchestrator resume s3://bucket/first-try --failed --address http://HEAD:8265
    """
    if failed and give_up:
        raise click.UsageError("--failed and --give-up say opposite things; give one of them")
    if kind is not None and not (failed or give_up):
        raise click.UsageError("--class says which failed trials are meant; give --failed or --give-up with it")
    from orchestrator import driver

    execution = driver.execution_overrides(overrides)
    if address is not None:
        from orchestrator.cli import submission

        given = [("--failed", failed), ("--give-up", give_up), ("--offline", offline)]
        given += [("--accept-code", accept_code)]
        arguments = [flag for flag, on in given if on] + (["--class", kind] if kind else [])
        arguments += [part for one in overrides for part in ("--set", one)]
        with _leaving(run, address):
            code = submission.resume(
                address, run, arguments, variables=variables, detach=detach,
                write=partial(_echo, nl=False), tell=partial(_echo, err=True),
            )  # fmt: skip
        sys.exit(code)
    _only_with_address(detach=detach, variables=variables)
    terminal.survive()
    from orchestrator.run_dir.folder import find

    folder = find(run)
    options = driver.Options(offline=offline, accept_code=accept_code)
    again = driver.Again(kind, give_up) if failed or give_up else None
    sys.exit(driver.resume(folder, again=again, execution=execution, options=options))


@main.command()
@click.argument("sweep", type=click.Path(path_type=Path), required=False)
@click.option("--into", metavar="FOLDER|URI", help="Where the run would be kept; the folder of runs unless given.")
@click.option("--anywhere", is_flag=True, hidden=True)
@click.option("--offline", is_flag=True, help="Do not ask for MLflow.")
@SET
@JSON
@ADDRESS
@VARIABLES
def doctor(
    sweep: Path | None,
    *,
    into: str | None,
    anywhere: bool,
    offline: bool,
    overrides: tuple[str, ...],
    as_json: bool,
    address: str | None,
    variables: tuple[str, ...],
) -> None:
    """Look at everything a run needs, and say what to do about what is not as it should be; exit code 4 on a blocker.

    \b
        orchestrator doctor
        orchestrator doctor sweeps/quickstart.toml --into s3://bucket/first-try --address http://HEAD:8265

    Nodes, versions, GPUs, storage, disks, clocks, ledger, MLflow; and with SWEEP whether its largest trial finds room
    and its data are where trials read them. $RAY_ADDRESS or --address: of a cluster. Leaves nothing behind.
    """
    if address is not None:
        from orchestrator.cli import submission

        flags = [flag for flag, on in (("--offline", offline), ("--json", as_json)) if on]
        sys.exit(
            submission.examine(
                address, sweep, into, overrides=overrides, flags=flags, variables=variables, out=OUT, err=ERR
            )
        )
    _only_with_address(detach=False, variables=variables)
    from orchestrator import sweep as sweeps
    from orchestrator.preflight import doctor as doctors
    from orchestrator.run_dir import folder as runs
    from orchestrator.sweep import plan as planning

    made = None if sweep is None else planning.make(sweeps.load(sweep, overrides))
    place = into or (runs.home() / made.sweep.name if made else runs.home())
    folder = None if anywhere else runs.at(place)  # a job's own folder is no place for a run
    found = doctors.examine(folder, plan=made, offline=offline)
    if as_json:
        _print_json(doctors.summary(found))
    else:
        _echo("\n".join(map(visible, doctors.lines(found))))
    sys.exit(Exit.DONE if doctors.summary(found)["ready"] else Exit.MISSING)


@main.command()
@click.argument("run")
@click.option("--wait", "wait_s", default=120.0, metavar="SECONDS", help="How long to wait until it has stopped.")
@ADDRESS
def stop(run: str, wait_s: float, address: str | None) -> None:
    """Ask whoever drives RUN to checkpoint and stop; it is resumable.

    \b
        orchestrator stop runs/quickstart
        orchestrator stop s3://bucket/first-try --address http://HEAD:8265
    """
    if address is not None:
        _there(address, run, ["stop", run, "--wait", f"{wait_s:g}"])
    from orchestrator.run_dir import folder as runs

    folder = runs.find(run)
    with contextlib.closing(folder.open()) as ledger:
        said, gone = runs.stop(ledger, folder, wait_s=wait_s)
    _echo(said, err=not gone)
    sys.exit(Exit.DONE if gone else Exit.HELD)


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
            _print_json(runs.status(ledger))
        elif watch:
            _watch(lambda: runs.status(ledger), runs.as_argument(run))
        else:
            _print_status(runs.status(ledger), runs.as_argument(run))


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
        _there(address, run, ["logs", run, trial, *([] if rank is None else ["--rank", str(rank)])])
    if address is not None:
        from orchestrator.cli import submission

        with _leaving(run, address):
            code = submission.follow_driver(address, run, write=partial(_echo, nl=False), tell=partial(_echo, err=True))
        sys.exit(code)
    if trial is None:
        raise click.UsageError(f"name a trial of {run}; `orchestrator status {run}` lists them")
    from orchestrator.run_dir import folder as runs

    click.echo(log_lines(runs.logs(runs.find(run), trial, rank)), nl=False)


@main.command()
@click.argument("run", nargs=-1, required=True)
@click.option("--into", metavar="FOLDER", help="Folder of the report of several runs, or of one on a cluster.")
@JSON
@ADDRESS
def compare(run: tuple[str, ...], into: str | None, *, as_json: bool, address: str | None) -> None:
    """Print the verdict of RUN, and write report.html, report.md and results.parquet.

    \b
        orchestrator compare runs/quickstart --json
        orchestrator compare runs/temperature runs/flatnce --into both
        orchestrator compare s3://bucket/first-try --address http://HEAD:8265

    Of several runs, each keeps the verdict of its own plan; below them is one table of all arms, in which the arms of
    the later runs are compared with the first run's baseline. The report of one run lies in it, that of several in
    runs/compared/A+B; with --address it is brought here, into NAME-report.
    """
    if address is not None:
        _compare_there(address, run, into, as_json=as_json)
    from orchestrator import report
    from orchestrator.run_dir import folder as runs
    from orchestrator.run_dir.bucket import is_uri

    folders = [runs.find(one) for one in run]
    if len(folders) > 1:
        _compare_several(folders, into, as_json)
        return
    (folder,) = folders
    if into is not None:
        raise click.UsageError(f"--into is for several runs; the report of one lies in it: {folder.report}")
    with contextlib.closing(folder.open()) as ledger:
        try:
            answer, unwritten = report.write(ledger, folder.report), None
        except OSError as error:
            answer, unwritten = report.answer(ledger), _unwritten(error, folder.report)
    folder.check_in_report()
    if as_json:
        _print_json(answer)
    else:
        _print(report.table(answer))
        if not address_option():  # else whoever asked is told where it is there
            _print_places([page for page in folder.report_pages if unwritten is None or is_uri(page)])


def _unwritten(error: OSError, place: Path) -> str:
    """Say that the report cannot be written where nothing can; any other error is raised again."""
    from orchestrator.system import exit_codes

    if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
        raise error
    text = f"note: the report could not be written to {place}: {exit_codes.of_system(error)}"
    _echo(text, err=True)
    return text


def _compare_several(folders: list[RunFolder], into: str | None, as_json: bool) -> None:
    from orchestrator import report
    from orchestrator.run_dir import folder as runs

    _refuse_uri_for_a_folder("the report of several runs lies on this machine; --into", into)
    with contextlib.ExitStack() as stack:
        ledgers = [stack.enter_context(contextlib.closing(folder.open())) for folder in folders]
        named = report.names([folder.name for folder in folders], ledgers)
        place = Path(into) if into is not None else runs.home() / "compared" / report.folder_name(named)
        try:
            answer, unwritten = report.write_several(named, place), None
        except OSError as error:
            answer, unwritten = report.answer_of_several(named), _unwritten(error, place)
    if as_json:
        _print_json(answer)
    else:
        _print(report.table_of_several(answer))
        if unwritten is None and not address_option():
            _print_places([str(place / "report.html")])


def _print_places(places: Sequence[str]) -> None:
    for number, place in enumerate(places):
        _echo(f"{'' if number else 'report:':7} {place}")


def _compare_there(address: str, run: tuple[str, ...], into: str | None, *, as_json: bool) -> NoReturn:
    """Compare on the cluster's head, and bring the report here."""
    from orchestrator.cli import submission

    _refuse_uri_for_a_folder("the report is brought to this machine; --into", into)
    flags = ["--json"] if as_json else []
    try:
        done = submission.report(address, run, flags=flags, into=None if into is None else Path(into), err=ERR)
    except OSError as error:
        _unwritten(error, Path(into or "."))
        several = ["--into", submission.HERE] if len(run) > 1 else []
        sys.exit(submission.ask(address, run[0], ["compare", *run, *several, *flags], out=OUT, err=ERR))
    _echo(done.out, nl=False)
    if done.place is not None:
        _echo(f"report: {done.place / 'report.html'}", err=as_json)
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
    _refuse_uri_for_a_folder("an encoder is written to this machine; DEST", dest)
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
        _print_json(done)
    else:
        _print_exported(done)


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
        _there(address, run, ["verify", run, *(["--json"] if as_json else [])])
    from orchestrator import tracking
    from orchestrator import verify as verifying
    from orchestrator.preflight import requirements
    from orchestrator.run_dir import folder as runs
    from orchestrator.system import exit_codes

    folder = runs.find(run)
    try:
        found = verifying.verify(folder, requirements.tracking_uri(folder))
    except tracking.TrackingUnavailable as error:
        raise InfrastructureMissing(str(error)) from error
    found |= {kind: [exit_codes.located(text) for text in found[kind]] for kind in ("faults", "notes")}
    if as_json:
        _print_json(found)
    else:
        _print_verified(found)
    sys.exit(Exit.DONE if found["ok"] else Exit.SOME_FAILED)


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
        if code := submission.ask(address, run, arguments, out=out.append, err=ERR):
            sys.exit(code)
        found = json.loads("".join(out))
        if as_json:
            _print_json(found)
        else:
            server.show_elsewhere(found, browse=browse)
    elif as_json:
        _print_json(server.told(run))
    else:
        sys.exit(server.serve(run, port=port, browse=browse))


def _there(address: str, run: str, arguments: list[str]) -> NoReturn:
    """Do it on the cluster's head; prints what that printed, and exits as it did."""
    from orchestrator.cli import submission

    sys.exit(submission.ask(address, run, arguments, out=OUT, err=ERR))


def _status_there(address: str, run: str, *, as_json: bool, watch: bool) -> None:
    """How a run stands, from what its driver has left with the job server; else from its ledger, by a job."""
    from orchestrator.cli import submission

    there = f"{shlex.quote(run)} --address {shlex.quote(without_user(address))}"
    if watch and not as_json:
        submission.wait_for_status(address, run, tell=partial(_echo, err=True))
        _watch(partial(submission.standing, address, run), there)
    posted = submission.posted(address, run)
    if posted is not None and not posted.left_out:
        if as_json:
            _print_json(posted.status)
        else:
            _print_status(posted.status, there)
        return
    if posted is not None:
        _echo("note: the run has too many trials for its job's metadata, so a job asks the ledger", err=True)
    _there(address, run, ["status", run, *(["--json"] if as_json else [])])


@contextlib.contextmanager
def _leaving(run: str | None, address: str) -> Iterator[None]:
    """Ctrl-C leaves a job, which goes on."""
    try:
        yield
    except KeyboardInterrupt:
        there = f"{shlex.quote(str(run))} --address {shlex.quote(without_user(address))}"
        _echo(
            f"\nleft; the job goes on\n  follow it: orchestrator logs {there}\n  stop it:   orchestrator stop {there}",
            err=True,
        )
        sys.exit(Exit.INTERRUPTED)


def _refuse_uri_for_a_folder(what: str, place: str | None) -> None:
    """Raise UsageError for a URI, or what is almost one, where a folder of this machine is meant."""
    from orchestrator.run_dir.bucket import almost_uri, is_uri

    if place is not None and (is_uri(place) or almost_uri(place) is not None):
        raise click.UsageError(f"{what} takes a folder, not {place}")


def _refuse_what_is_no_place(into: str) -> None:
    """Raise UsageError for a folder in which MLflow or a report lies, or will lie."""
    from orchestrator.run_dir.bucket import is_uri
    from orchestrator.sweep.limits import TAKEN

    if not is_uri(into) and Path(into).name.lower() in TAKEN:
        raise click.UsageError(
            f"--into {into}: {Path(into).name} lies in the folder of runs for MLflow or reports; name another folder, "
            "such as --into runs/first-try"
        )


def _refuse_a_taken_place(name: str, sweep: Path) -> None:
    """Raise SweepChanged where something lies in the place of a run of this name that is no run and none to be."""
    from orchestrator.run_dir import creation
    from orchestrator.run_dir import folder as runs

    folder = runs.at(runs.home() / name)
    if not folder.exists and not (folder.path / runs.CREATING).exists():
        creation.refuse_what_is_no_run(folder, sweep)


def _only_with_address(*, detach: bool, variables: tuple[str, ...]) -> None:
    if detach or variables:
        raise click.UsageError("--detach and --env are for jobs on a cluster; give its --address too")


def _list_jobs(address: str, as_json: bool) -> None:
    from orchestrator.cli import submission

    jobs = submission.listed(address)
    if as_json:
        _print_json({"jobs": jobs})
        return
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for column in ("job", "verb", "state", "exit code", "run"):
        table.add_column(column, overflow="fold")
    for job in jobs:
        cells = (job["job"], job["verb"], job["meaning"], _shown(job["exit_code"]), job["run"])
        table.add_row(*map(cell, cells))
    if not jobs:
        _echo(f"no job on {without_user(address)} drives a run")
        return
    _print(table)
    latest = {job["run"]: job for job in jobs}
    for job in latest.values():
        _echo(f"{job['meaning']}: {job['next']}")


def _print_json(value: Any) -> None:
    click.echo(json.dumps(value, indent=1, allow_nan=False))


def _print(renderable: Any) -> None:
    from rich.console import Console

    console = Console(highlight=False)
    Console(highlight=False, width=None if console.is_terminal else 120).print(Harmless(renderable))


def _print_plan(made: Plan, estimate: Estimate, probe: str) -> None:
    from rich.table import Table

    from orchestrator.preflight.estimate import time_line

    summary, differs = made.summary(), made.summary()["differs"]
    _echo(f"{one_line(made.sweep.question)}\n")
    keys = [key for key in differs if not key.startswith("budget.") and key not in BUDGETS]
    columns = [(key.rpartition(".")[2], [_level(key, value) for value in differs[key]]) for key in keys]
    budgets = [arm.config(stage="confirm", seed=0).budget for arm in made.arms]
    for key in BUDGETS:
        pairs = zip(summary["arms"], budgets, strict=True)
        columns.append((key, [_shown(arm.get(key) or getattr(budget, key, None)) for arm, budget in pairs]))
    columns.append(("s/trial", [_shown(_rounded(arm.trial_seconds)) for arm in estimate.arms]))
    columns.append(("peak MB", [_shown(_rounded(arm.peak_memory_mb)) for arm in estimate.arms]))
    columns = [(name, values) for name, values in columns if set(values) != {UNKNOWN}]
    table = Table(box=None, pad_edge=False)
    table.add_column("arm", overflow="fold")
    for name, _ in columns:
        table.add_column(cell(name), justify="right", overflow="fold")
    for place, arm in enumerate(made.arms):
        table.add_row(cell(arm.label), *(cell(values[place]) for _, values in columns))
    _print(table)
    first = summary["arms"][0]
    same = [key for key in (*BUDGETS, "negatives_per_anchor") if key not in differs and first.get(key) is not None]
    shown = ", ".join(f"{key.replace('_', ' ')} {_shown(first[key])}" for key in same)
    _echo(f"\nequal in every arm: {shown or 'none of samples, steps, seconds, negatives per anchor'}")
    _echo(f"metric:    {made.sweep.metric.name} ({made.sweep.metric.mode})")
    _echo(f"contrasts: {'; '.join(f'{a} against {b}' for a, b in made.contrasts)}")
    for a, b in made.contrasts:
        if (a, b) not in made.tested:
            tuned = ": tuned once, frozen together" if made.searched_with.get(a) or made.searched_with.get(b) else ""
            _echo(f"one objective: {a} and {b} differ in execution alone{tuned}, and are not tested")
    _echo(f"trials:    {made.trials['tune']} tune, {made.trials['confirm']} confirm")
    _echo(f"seeds:     tune {list(made.tune_seeds)}, confirm {list(made.confirm_seeds)}")
    _echo(f"time:      {time_line(estimate, probe)}")
    _echo(f"smallest p reachable: {made.smallest_p:.4g}")
    for warning in (*made.warnings, *estimate.notes):
        _echo(f"note: {visible(warning)}")


def _rounded(value: float | None) -> float | int | None:
    """A measured number as a table shows it."""
    return None if value is None else round(value, 1) if value < 10 else round(value)


def _shown(value: Any) -> str:
    """A value as a table shows it."""
    if value is None:
        return UNKNOWN
    return f"{value:,}" if isinstance(value, int) and not isinstance(value, bool) else str(value)


def _level(key: str, value: Any) -> str:
    """The value of an arm: of a job key, None is a value, and of what follows from the job it is unknown."""
    return "none" if value is None and "." in key else _shown(value)


def _print_verified(found: dict[str, Any]) -> None:
    numbers = ("trials", "mlflow_runs", "points", "checkpoints")
    counted = ", ".join(f"{found[name]:,} {name.replace('mlflow_', 'MLflow ')}" for name in numbers)
    faults = len(found["faults"])
    _echo(f"verify: {'ok' if found['ok'] else f'{faults} fault' + 's' * (faults > 1)}, {counted}")
    for kind in ("fault", "note"):
        for text in found[f"{kind}s"]:
            _echo(f"{kind}: {visible(text)}")


def _print_exported(done: dict[str, Any]) -> None:
    _echo(f"{done['chosen']}: step {done['step']:,}, {done['width']} columns")
    for remark in done["remarks"]:
        _echo(f"note: {visible(remark)}")
    _echo(f"encoder: {done['path']}")
    code = f"SentenceTransformer({done['path']!r}{', trust_remote_code=True' if done['trust_remote_code'] else ''})"
    _echo(f"load it: {code}, or as {Path(done['path']) / 'README.md'} says")


TRIAL = ("trial", "stage", "arm", "seed", "state", "step", "metric", "attempts", "failure")
"""Columns of the trials of a run."""


def _print_status(found: dict[str, Any], run: str) -> None:
    """Say how a run stands. run: as a command takes it."""
    if len(found["trials"]) <= MOST_ROWS:
        _print(_status_table(found, found["trials"], run))
        return
    rows = table_lines(TRIAL, map(_trial_cells, found["trials"]))
    _echo("\n".join([*map(visible, _status_lines(found, run)), *rows]))


def _status_table(found: dict[str, Any], trials: Sequence[dict[str, Any]], run: str) -> Any:
    from rich.console import Group
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in TRIAL:
        table.add_column(name, overflow="fold")
    for trial in trials:
        table.add_row(*map(cell, _trial_cells(trial)))
    more = len(found["trials"]) - len(trials)
    return Group(*map(cell, _status_lines(found, run)), table, *([cell(f"and {more:,} more")] if more else []))


def _status_lines(found: dict[str, Any], run: str) -> list[str]:
    counts = "  ".join(f"{state} {count}" for state, count in found["counts"].items() if count)
    if found["driver"]:
        driven = f"driven by {found['driver']['holder'].partition(' [')[0]}"
    else:
        over = found["state"] == "done"
        driven = f"driven by nobody{'' if over else f'; continue it: orchestrator resume {run}'}"
    parts = [part for part in (found["state"], counts, driven) if part]
    return [f"{found['sweep']}: {'; '.join(parts)}", *([found["waits"]] if found["waits"] else [])]


def _trial_cells(trial: dict[str, Any]) -> tuple[Any, ...]:
    metric = "-" if trial["metric"] is None else f"{trial['metric']:.4f}"
    failure = trial["failure"] or ""
    if failure and trial["message"]:
        failure += f": {trial['message']}"
    first = (trial["id"], trial["stage"], trial["arm"], trial["seed"], trial["state"], trial["step"] or 0, metric)
    return (*first, trial["attempts"], failure)


def _watch(look: Callable[[], dict[str, Any] | None], run: str) -> None:
    """Show how a run stands while it may change by itself, or until nobody tells any more; of many trials those that
    run or have just changed. run: as a command takes it."""
    import time

    from rich.live import Live

    def goes_on(found: dict[str, Any]) -> bool:
        """Whether it may change by itself: a run that is planned has not got its driver yet; one that is running and
        has none was killed."""
        return found["state"] == "planned" or (found["state"] in ("queued", "running") and found["driver"] is not None)

    found = look()
    if found is None:
        return
    with Live(Harmless(_status_table(found, _watched(found, found), run)), refresh_per_second=1) as live:
        while (latest := look()) is not None:
            live.update(Harmless(_status_table(latest, _watched(latest, found), run)))
            found = latest
            if not goes_on(found):
                return
            time.sleep(2)


def _watched(found: dict[str, Any], before: dict[str, Any]) -> list[dict[str, Any]]:
    """The trials that are shown: all, or of many those that run and those that have changed."""
    trials: list[dict[str, Any]] = found["trials"]
    if len(trials) <= MOST_WATCHED:
        return trials
    known = {trial["id"]: trial for trial in before["trials"]}
    moving = [trial for trial in trials if trial["state"] == "running" or trial != known.get(trial["id"])]
    return moving[:MOST_WATCHED]
