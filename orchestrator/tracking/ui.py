"""MLflow's own server on the right store, and the addresses worth opening. Ends when it is interrupted."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
import urllib.error
import urllib.request
import webbrowser
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from types import FrameType
from typing import TypedDict
from urllib.parse import urlsplit

import click

from jobs.core.plain import visible_lines
from orchestrator import tracking
from orchestrator.ledger import Ledger, LedgerError
from orchestrator.run_dir.bucket import RemoteError
from orchestrator.run_dir.folder import RunFolder, find, home, names
from orchestrator.system.exit_codes import Exit, InfrastructureMissing
from orchestrator.system.masking import masked, without_user
from orchestrator.tracking import arms, view

START_S = 90.0
"""A cold start with an embedded store takes 10 to 20 s on two cores."""

MOST_COMPARED = 100
"""MLflow's comparison page gets slow beyond this many runs."""


def serve(run: str | None, *, port: int, browse: bool = False) -> int:
    """Serve the store of `run` (or of the default folder of runs), print its addresses, wait. Returns the exit code.

    browse: open the first of these pages in the browser.
    Raises RunError when there is no such run, RemoteError when it is in a bucket that cannot be used.
    """
    folder = find(run) if run is not None else None
    named = os.environ.get("MLFLOW_TRACKING_URI") if folder is None else folder.mlflow_url()
    uri = named or tracking.embedded_uri(_runs(folder))
    if uri.startswith("http"):
        _show(uri, folder, browse=browse)
        return Exit.DONE
    if not named and not (_runs(folder) / "mlflow.db").exists():
        _echo(f"error: there is no MLflow store in {_runs(folder)} yet; launch a sweep first", err=True)
        return Exit.MISSING
    if not uri.startswith("sqlite:"):
        _echo(f"error: MLFLOW_TRACKING_URI={masked(uri)} is neither a server at http(s) nor a file of SQLite", err=True)
        return Exit.MISSING
    try:
        tracking.check(uri)
    except tracking.TrackingUnavailable as error:
        _echo(f"error: {error}", err=True)
        return Exit.MISSING
    command = tracking.ui_command(uri, port=port)
    address = f"http://127.0.0.1:{port}"
    _echo(f"starting MLflow at {address} ...")
    log = _runs(folder) / "mlflow-server.log"
    with contextlib.suppress(KeyboardInterrupt), _server(command, log) as server:
        if not _wait(server, address):
            _echo(f"error: MLflow did not start (see {log}); is port {port} taken? Try another --port", err=True)
            return Exit.MISSING
        _show(address, folder, browse=browse)
        _echo("Ctrl-C ends it.")
        server.wait()
    return Exit.DONE


class Pages(TypedDict):
    """The server of a run, and its pages."""

    server: str | None
    """None where the store is no server."""
    store: str
    pages: dict[str, str]
    """What -> address."""


def describe(run: str | None) -> Pages:
    """Describe the server of `run`, or of the default folder of runs, and its pages, as plain JSON, without starting a
    server. A store that is no server has no pages. Raises as `serve` does."""
    folder = find(run) if run is not None else None
    named = os.environ.get("MLFLOW_TRACKING_URI") if folder is None else folder.mlflow_url()
    uri = without_user(named or tracking.embedded_uri(_runs(folder)))
    pages = _pages(uri, folder) if uri.startswith("http") else []
    return {"server": uri if uri.startswith("http") else None, "store": uri, "pages": dict(pages)}


def show_elsewhere(answer: Pages, *, browse: bool) -> None:
    """Print where to look, from what `describe` says on the head of a cluster."""
    server = answer["server"]
    if server is None:
        raise InfrastructureMissing(
            f"MLflow's store, as the cluster's head names it, is {answer['store']}, which has no pages; begin its "
            "server on the head: orchestrator ui, without --address"
        )
    pages = list(answer["pages"].items())
    _print_pages(pages, browse=browse)
    if not pages:
        _echo(f"MLflow does not know this run yet; it is at {server}")
    here = urlsplit(server)
    what = "the head itself" if here.hostname in ("127.0.0.1", "localhost", "::1") else "reached from the head"
    port = here.port or (443 if here.scheme == "https" else 80)
    _echo(f"note: {here.hostname} is {what}; where this machine does not reach it, forward its port {port} here")


def links(folder: RunFolder, ledger: Ledger) -> list[tuple[str, str]]:
    """List (what, address) of the pages that a report links to; none where MLflow's store is no server, or has no such
    run. Reads no trials."""
    try:
        server = without_user(folder.mlflow_url() or "").rstrip("/")
    except RemoteError:
        return []
    run = ledger.run
    if not server.startswith("http") or run.mlflow_experiment_id is None or run.mlflow_run_id is None:
        return []
    listed = [("this run", tracking.run_address(server, run.mlflow_experiment_id, run.mlflow_run_id))]
    for page in view.pages(run):
        listed.append((page, tracking.experiment_address(server, run.mlflow_experiment_id, uuid=run.uuid, page=page)))
    return listed


def addresses(server: str, ledger: Ledger) -> list[tuple[str, str]]:
    """List (what, address) of the pages that answer a run's question, as far as MLflow has it."""
    run = ledger.run
    if run.mlflow_experiment_id is None:
        return []
    experiment = run.mlflow_experiment_id
    listed = []
    if run.mlflow_run_id is not None:
        listed.append(("answer", tracking.run_address(server, experiment, run.mlflow_run_id)))
        report = tracking.run_address(server, experiment, run.mlflow_run_id, artifact="report/report.html")
        listed.append(("report", report))
    recorded = arms.recorded(ledger.events(arms.RECORDED))
    if recorded:
        listed += _pages_of_arms(server, experiment, ledger, {label: run_id for run_id, label in recorded.items()})
        return listed
    # By seed, so that the first ones are of all arms.
    trials = sorted(ledger.trials(stage="confirm"), key=lambda trial: trial.seed)
    confirmed = [trial.mlflow_run_id for trial in trials if trial.mlflow_run_id is not None]
    if confirmed:
        listed.append(("charts", tracking.experiment_address(server, experiment, uuid=run.uuid)))
        listed.append(("compare", tracking.compare_address(server, experiment, confirmed[:MOST_COMPARED])))
    return listed


def _pages_of_arms(
    server: str, experiment: str, ledger: Ledger, of_arm: Mapping[str, str]
) -> Iterator[tuple[str, str]]:
    """Yield (what, address) of the pages on arms. of_arm: their runs."""
    run = ledger.run
    yield "arms", tracking.experiment_address(server, experiment, uuid=run.uuid, page="arms", charts=False)
    yield "charts", tracking.experiment_address(server, experiment, uuid=run.uuid, page="arms")
    for page in view.pages(run):
        if page != "arms":
            yield page, tracking.experiment_address(server, experiment, uuid=run.uuid, page=page)
    # Compare shows the keys that all runs have, and what diverged has no metric.
    measured = [label for label, want in arms.wanted(ledger).items() if want.has_mean and label in of_arm]
    if measured:
        compared = [of_arm[label] for label in measured[:MOST_COMPARED]]
        yield "compare", tracking.compare_address(server, experiment, compared)


def _echo(text: str, *, err: bool = False) -> None:
    """Print text that may contain data, names of folders among them."""
    click.echo(visible_lines(text), err=err)


def _runs(folder: RunFolder | None) -> Path:
    return folder.path.resolve().parent if folder is not None else home()


def _show(server: str, folder: RunFolder | None, *, browse: bool) -> None:
    """Print where to look: at a run, or at every run of the default folder."""
    _print_pages(_pages(without_user(server), folder), browse=browse)  # a browser asks for them


def _pages(server: str, folder: RunFolder | None) -> list[tuple[str, str]]:
    server = server.rstrip("/")
    if folder is None:
        return [("experiments", f"{server}/#/experiments"), *_answers(server)]
    with contextlib.closing(folder.open()) as ledger:
        return addresses(server, ledger)


def _print_pages(pages: Sequence[tuple[str, str]], *, browse: bool) -> None:
    width = max((len(what) for what, _ in pages), default=0) + 1
    for what, address in pages:
        _echo(f"{what + ':':{width}} {address}")
    if browse and pages:
        webbrowser.open(pages[0][1])


def _answers(server: str) -> Iterator[tuple[str, str]]:
    """Yield (name, address) of the answer page of every run in the default folder that MLflow has."""
    for name in names(home()):
        with contextlib.suppress(LedgerError), contextlib.closing(RunFolder(home() / name).open()) as ledger:
            run = ledger.run
            if run.mlflow_experiment_id is not None and run.mlflow_run_id is not None:
                yield name, tracking.run_address(server, run.mlflow_experiment_id, run.mlflow_run_id)


@contextlib.contextmanager
def _server(command: list[str], log: Path) -> Iterator[subprocess.Popen[bytes]]:
    log.parent.mkdir(parents=True, exist_ok=True)
    heard: list[int] = []
    _on_signals(lambda number, _: heard.append(number))  # one that came now would leave the server behind
    with log.open("ab") as file:
        process = subprocess.Popen(
            command, env=os.environ | tracking.UI_ENVIRONMENT, stdout=file, stderr=file, start_new_session=True
        )
    try:
        _on_signals(_interrupt)
        if heard:
            _interrupt(heard[0], None)
        yield process
    finally:
        # MLflow's workers share its process group, which is ours alone.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, 15)
        process.wait()


def _on_signals(action: Callable[[int, FrameType | None], None] | signal.Handlers) -> None:
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, action)


def _interrupt(_number: int, _frame: FrameType | None) -> None:
    """Raise KeyboardInterrupt: SIGTERM too ends the server. Later signals would leave it behind, and are ignored."""
    _on_signals(signal.SIG_IGN)
    raise KeyboardInterrupt


def _wait(server: subprocess.Popen[bytes], address: str) -> bool:
    deadline = time.monotonic() + START_S
    while time.monotonic() < deadline and server.poll() is None:
        with contextlib.suppress(urllib.error.URLError, ConnectionError, TimeoutError):
            urllib.request.urlopen(f"{address}/health", timeout=2)  # noqa: S310 - our own http address
            return True
        time.sleep(0.3)
    return False
