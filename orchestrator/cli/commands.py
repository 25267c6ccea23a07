"""The command line: verbs and exit codes, no logic. Imports lazily, so that --help answers at once."""

from __future__ import annotations

import contextlib
import shlex
import sys
from functools import partial
from pathlib import Path

import click

from jobs.core.plain import visible
from orchestrator.cli.group import ACCEPT, ADDRESS, DETACH, ERR, JSON, OUT, SET, VARIABLES, main
from orchestrator.cli.places import do_there, leaving, only_with_address, refuse_a_taken_place, refuse_what_is_no_place
from orchestrator.cli.printing import echo, print_json, print_plan
from orchestrator.system import terminal
from orchestrator.system.addresses import address_option
from orchestrator.system.exit_codes import Exit
from orchestrator.system.versions import versioned


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
    from jobs.config.user_code import importable
    from orchestrator import sweep as sweeps
    from orchestrator.preflight import estimate as estimating
    from orchestrator.preflight import spread
    from orchestrator.run_dir import provenance
    from orchestrator.system.masking import masked

    loaded = sweeps.load(sweep, overrides)
    spreads = spread.known()
    made = spread.planned(loaded, spreads)
    if not address_option():  # a job's own folder is no place for a run
        refuse_a_taken_place(made.sweep.name, sweep)
    made = made.noting(provenance.look_at_encoders(made))
    tell = partial(echo, err=True)
    with importable(sweeps.code_of(loaded, sweep.parent)):
        estimate = estimating.from_probes(made, tell=tell) if probe else estimating.from_history(made)
    power = spread.power(made, spreads, estimate)
    if as_json:
        known = {"power": [one.to_json() for one in power], "estimate": estimate.summary()}
        print_json(versioned("plan", {**made.summary(), **known}))
    else:
        sets = (part for change in overrides for part in ("--set", change))
        again = shlex.join(["orchestrator", "plan", shown_as or str(sweep), *sets, "--probe"])
        print_plan(made, estimate, power, masked(f"{again}{address_option()}"))


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

        with leaving(into, address):
            code = submission.launch(
                address, sweep, into, overrides=overrides, offline=offline, accept_code=accept_code,
                variables=variables, detach=detach,
                write=partial(echo, nl=False), tell=partial(echo, err=True),
            )  # fmt: skip
        sys.exit(code)
    only_with_address(detach=detach, variables=variables)
    terminal.survive()
    from orchestrator import sweep as sweeps
    from orchestrator.run_dir.folder import home

    if into is not None:
        refuse_what_is_no_place(into)
    target = into or home() / sweeps.load(sweep, overrides).name
    from orchestrator import driver
    from orchestrator.run_dir.context import Options

    options = Options(offline=offline, accept_code=accept_code)
    sys.exit(driver.launch(sweep, target, overrides=overrides, options=options))


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
        arguments += [part for change in overrides for part in ("--set", change)]
        with leaving(run, address):
            code = submission.resume(
                address, run, arguments, variables=variables, detach=detach,
                write=partial(echo, nl=False), tell=partial(echo, err=True),
            )  # fmt: skip
        sys.exit(code)
    only_with_address(detach=detach, variables=variables)
    terminal.survive()
    from orchestrator.run_dir.context import Options, RetryFailed
    from orchestrator.run_dir.folder import find

    folder = find(run)
    retry = RetryFailed(kind, give_up) if failed or give_up else None
    options = Options(offline=offline, accept_code=accept_code, retry=retry, execution=execution)
    sys.exit(driver.resume(folder, options=options))


@main.command()
@click.argument("run")
@click.option("--seeds", type=click.IntRange(min=1), metavar="+N", help="Train so many further seeds of each arm.")
@click.option("--trials", type=click.IntRange(min=1), metavar="+N", help="Try so many further settings in each arm.")
@click.option("--arm", "arms", multiple=True, metavar="LABEL", help="Only of this arm; may be given several times.")
@click.option("--offline", is_flag=True, help="Do without MLflow now.")
@ACCEPT
@ADDRESS
@DETACH
@VARIABLES
def extend(
    run: str,
    *,
    seeds: int | None,
    trials: int | None,
    arms: tuple[str, ...],
    offline: bool,
    accept_code: bool,
    address: str | None,
    detach: bool,
    variables: tuple[str, ...],
) -> None:
    """Add seeds or settings to RUN, once it is done.

    \b
        orchestrator extend runs/quickstart --seeds +6
        orchestrator extend runs/quickstart --trials +8 --arm flatnce

    Nothing that has finished is trained again. The planned verdict stays; what all seeds say is exploratory. A setting
    that turns out to be better is confirmed on fresh seeds.
    """
    if seeds is None and trials is None:
        raise click.UsageError("nothing to add; give --seeds +6, or --trials +8")
    if address is not None:
        from orchestrator.cli import submission

        arguments = [flag for flag, on in (("--offline", offline), ("--accept-code", accept_code)) if on]
        counts = [(name, count) for name, count in (("seeds", seeds), ("trials", trials)) if count is not None]
        arguments += [f"--{name}={count}" for name, count in counts] + [f"--arm={arm}" for arm in arms]
        with leaving(run, address):
            code = submission.resume(
                address, run, arguments, verb="extend", variables=variables, detach=detach,
                write=partial(echo, nl=False), tell=partial(echo, err=True),
            )  # fmt: skip
        sys.exit(code)
    only_with_address(detach=detach, variables=variables)
    terminal.survive()
    from orchestrator import driver
    from orchestrator.run_dir.context import Extend, Options
    from orchestrator.run_dir.folder import find

    folder = find(run)
    options = Options(offline=offline, accept_code=accept_code, extend=Extend(seeds or 0, trials or 0, arms))
    sys.exit(driver.extend(folder, options=options))


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
            submission.run_doctor(
                address, sweep, into, overrides=overrides, flags=flags, variables=variables, out=OUT, err=ERR
            )
        )
    only_with_address(detach=False, variables=variables)
    from jobs.config.user_code import importable
    from orchestrator import sweep as sweeps
    from orchestrator.preflight import doctor as doctors
    from orchestrator.run_dir import folder as runs
    from orchestrator.sweep import plan as planning

    loaded = None if sweep is None else sweeps.load(sweep, overrides)
    made = None if loaded is None else planning.make(loaded)
    code = None if sweep is None or loaded is None else sweeps.code_of(loaded, sweep.parent)
    target = into or (runs.home() / made.sweep.name if made else runs.home())
    folder = None if anywhere else runs.at(target)  # a job's own folder is no place for a run
    with importable(code):
        findings = doctors.examine(folder, plan=made, offline=offline)
    if as_json:
        print_json(versioned("doctor", doctors.summary(findings)))
    else:
        echo("\n".join(map(visible, doctors.lines(findings))))
    sys.exit(Exit.DONE if doctors.summary(findings)["ready"] else Exit.MISSING)


@main.command()
@click.argument("verb", required=False)
def schema(verb: str | None) -> None:
    """Print the JSON Schema of a sweep file, by which an editor completes and checks it; or of what VERB prints with
    --json; or `components`, all that is built in: what a sweep may name, with the schema of its options and its source.

    \b
        orchestrator schema > sweep.schema.json
        orchestrator schema status
        orchestrator schema components

    With `#:schema ./sweep.schema.json` as the first line of a sweep, editors that use Taplo know its keys. What a verb
    prints has the version of its schema: within one, keys may be added, and none that is required goes.
    """
    if verb is None:
        from orchestrator.cli.schema.sweep import sweep_schema

        print_json(sweep_schema())
        return
    if verb == "components":
        from orchestrator.sweep.components import built_in

        print_json(built_in())
        return
    from orchestrator.cli.schema.answers import answer_schema

    print_json(answer_schema(verb))


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
        do_there(address, run, ["stop", run, "--wait", f"{wait_s:g}"])
    from orchestrator.run_dir import folder as runs

    folder = runs.find(run)
    with contextlib.closing(folder.open()) as ledger:
        text, gone = runs.stop(ledger, folder, wait_s=wait_s)
    echo(text, err=not gone)
    sys.exit(Exit.DONE if gone else Exit.HELD)
