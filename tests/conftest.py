"""Real ranks for tests: processes joined by gloo over a file, ended with the test whatever happens in it."""

from __future__ import annotations

import contextlib
import gc
import json
import multiprocessing
import os
import signal
import sys
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import share
from browser import chromium
from filelock import FileLock
from hypothesis import settings
from ledgers import Begin, Run, Written, start, tuned
from ranks import SpawnRanks, rank_starter
from real import SWEEP, TRIALS, call, measured
from servers import new_database, postgres_server
from share import pytest_itemcollected, pytest_runtest_setup  # noqa: F401 - hooks of pytest

from orchestrator.ledger import Ledger, sqlite_url

if TYPE_CHECKING:
    from playwright.sync_api import Browser


# Tests use each other's helpers: their files have names of their own, whatever folder they lie in.
sys.path += sorted({str(path.parent) for path in Path(__file__).parent.rglob("test_*.py")} - set(sys.path))


# Property tests try the same examples in every run, so that what passes on one machine passes on a fresh clone. New
# ones are looked for by `make soak`, which names the seed to repeat them by.
settings.register_profile("repeatable", deadline=None, derandomize=True, print_blob=True)
settings.register_profile("random", deadline=None, derandomize=False, print_blob=True)  # $CI would repeat them
settings.load_profile(os.environ.get("ORCHESTRATOR_PROPERTIES") or "repeatable")

# What `nohup make test &` is deaf to, the processes that tests start would be too.
if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:
    signal.signal(signal.SIGHUP, signal.SIG_DFL)
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


SHARE = ("test_driver.py", "test_export.py", "test_mlflow_pages.py", "test_publish.py", "test_verify.py")
"""Files whose tests share the finished sweep."""

SHIPPED = ("test_answers.py", "test_cli.py", "test_written.py")
"""Files that load every shipped sweep, whose components a process tries once."""


LONG_S = 10.0
"""From how many seconds on the time of a file is printed."""

SECONDS = Path(__file__).with_name("seconds.json")
"""What files of tests took, those that take more than LONG_S; others come last."""


def group_of(name: str) -> str:
    """What stays in one worker of `make test`: a file, or all that share the finished sweep or load the shipped
    ones."""
    return "finished" if name in SHARE else "shipped" if name in SHIPPED else name


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Groups of tests by the time that they were once seen to take, most first: so the workers end together."""
    groups: dict[str, list[pytest.Item]] = {}
    for item in items:
        if "finished" in getattr(item, "fixturenames", ()):
            assert item.path.name in SHARE, f"{item.path.name} belongs to SHARE, for it uses the finished sweep"
        groups.setdefault(group_of(item.path.name), []).append(item)
    seen: dict[str, float] = json.loads(SECONDS.read_text("utf-8"))
    seconds = {
        name: sum(seen.get(file, 0.0) for file in {one.path.name for one in own}) for name, own in groups.items()
    }
    if share.minutes() is not None:
        items[:] = share.in_its_order(groups)
    else:
        items[:] = [item for name in sorted(groups, key=lambda name: -seconds[name]) for item in groups[name]]


def pytest_terminal_summary(terminalreporter: Any) -> None:
    """The time of each file that takes some, as its tests took it side by side with those of other workers. With
    $ORCHESTRATOR_SECONDS it is written to that file too, by which tests/seconds.json is made anew."""
    seconds: dict[str, float] = {}
    for reports in terminalreporter.stats.values():
        for report in reports:
            if isinstance(report, pytest.TestReport):
                name = report.nodeid.partition("::")[0]
                seconds[name] = seconds.get(name, 0.0) + report.duration
    long = sorted(((took, name) for name, took in seconds.items() if took >= LONG_S), reverse=True)
    if long:
        terminalreporter.section(f"{sum(seconds.values()):.0f} s, by file")
        for took, name in long:
            terminalreporter.write_line(f"{took:7.0f} s  {name}")
    if (place := os.environ.get("ORCHESTRATOR_SECONDS")) is not None:
        known = {name.rpartition("/")[2]: round(took) for took, name in long}
        Path(place).write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", "utf-8")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:
    """By these groups. Those of `--dist loadgroup` are not seen by pytest-xdist 3.8 under pytest 9.2."""
    from xdist.scheduler import LoadScopeScheduling

    class Groups(LoadScopeScheduling):  # type: ignore[misc]
        def _split_scope(self, nodeid: str) -> str:
            return group_of(nodeid.partition("::")[0].rpartition("/")[2])

    return Groups(config, log)


@pytest.fixture(scope="module", autouse=True)
def _what_is_there_stays() -> None:
    """Modules, tests and what fixtures of the session hold are half a million objects. A training collects garbage
    before it begins, and goes through all that are not frozen."""
    gc.collect()
    gc.freeze()


@pytest.fixture(scope="session")
def forkserver() -> ForkServerContext:
    """A process that has imported once what ranks and modules of tests import: a rank forked from it starts in
    milliseconds. What is missing here each of them imports anew, as it looks for its function in a test's module."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(
        [
            *("torch.distributed", "jobs.losses", "jobs.models", "jobs.metrics.evaluate", "jobs.train", "jobs.export"),
            *("transformers.modeling_utils", "scipy.stats", "sklearn.neighbors", "pyarrow.parquet"),
            *("pytest", "hypothesis"),
        ]
    )
    return context


@pytest.fixture(scope="session")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder in which a sweep was run to its end, in runs/small. For everybody: nothing in it may change."""
    with measuring(tmp_path_factory) as metrics:
        home = tmp_path_factory.mktemp("finished")
        (home / "sweep.toml").write_text(SWEEP)
        said = call("launch", "sweep.toml", cwd=home, env={"ORCHESTRATOR_ENCODERS": "best"})
        metrics.write_text(json.dumps(measured(home)))
    assert f"[{TRIALS}/{TRIALS}]" in said
    assert "flatnce against infonce" in said
    assert "orchestrator ui runs/small" in said
    return home


@pytest.fixture(scope="session")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, float]:
    """The metric of every trial of `real.SWEEP` in a folder on this machine when nothing happens to it; measured once
    for all workers of a test run."""
    with measuring(tmp_path_factory) as metrics:
        if not metrics.exists():
            home = tmp_path_factory.mktemp("undisturbed")
            (home / "sweep.toml").write_text(SWEEP)
            call("launch", "sweep.toml", "--offline", cwd=home)
            metrics.write_text(json.dumps(measured(home)))
        found: dict[str, float] = json.loads(metrics.read_text())
    return found


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A folder with the small sweep."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


@contextlib.contextmanager
def measuring(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """One worker at a time, in an environment that names no cluster and no database; where the metrics belong."""
    top = tmp_path_factory.getbasetemp()
    place = top.parent if "PYTEST_XDIST_WORKER" in os.environ else top
    elsewhere = ("ORCHESTRATOR_LEDGER", "MLFLOW_TRACKING_URI", "RAY_ADDRESS", "RAY_AUTH_MODE", "RAY_AUTH_TOKEN")
    with FileLock(place / "undisturbed.lock"), pytest.MonkeyPatch.context() as patch:
        for name in elsewhere:
            patch.delenv(name, raising=False)
        yield place / "undisturbed.json"


@pytest.fixture(scope="module")
def postgres() -> Iterator[str]:
    """URL of a private PostgreSQL server, with `{}` for the database (see `servers.new_database`)."""
    with postgres_server() as url:
        yield url


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """URL of an empty database, of each kind that a ledger may be kept in."""
    if request.param == "sqlite":
        return sqlite_url(tmp_path / "ledger.db")
    server: str = request.getfixturevalue("postgres")
    return new_database(server)


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An embedded store of MLflow without a run, to copy: making its tables takes 2 s."""
    from orchestrator.tracking import embedded_uri  # mlflow takes seconds to import
    from orchestrator.tracking.store import connect

    folder = tmp_path_factory.mktemp("tables")
    connect(embedded_uri(folder))
    return folder / "mlflow.db"


@pytest.fixture
def uri(tmp_path: Path, tables: Path) -> str:
    """URI of an embedded store of MLflow without a run."""
    from projected import fresh

    return fresh(tmp_path, tables)


@pytest.fixture
def opened() -> Iterator[Callable[[Ledger], Ledger]]:
    """`opened(ledger)` is that ledger, which is closed with the test."""
    with contextlib.ExitStack() as stack:

        def keep(ledger: Ledger) -> Ledger:
            stack.callback(ledger.close)
            return ledger

        yield keep


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Headless Chromium (see `browser.chromium`). Not for the session: tests after it may need an event loop."""
    with chromium() as opened:
        yield opened


@pytest.fixture
def begin(tmp_path: Path) -> Iterator[Begin]:
    """`begin(...)` is `ledgers.start` in a new folder; every ledger is closed with the test."""
    made: list[Run] = []

    def _begin(*args: Any, **kwargs: Any) -> Run:
        made.append(start(tmp_path / f"run{len(made)}", *args, **kwargs))
        return made[-1]

    yield _begin
    for run in made:
        run.ledger.close()


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Written]:
    """Made once for the tests of a module that only look at it."""
    from orchestrator import report  # matplotlib takes a second to import

    folder = tmp_path_factory.mktemp("tuned")
    run = tuned(folder / "run")
    yield Written(run, folder / "report", report.write(run.ledger, folder / "report").to_json())
    run.ledger.close()


@pytest.fixture
def spawn_ranks(forkserver: ForkServerContext, tmp_path: Path) -> Iterator[SpawnRanks]:
    """See `rank_starter`; for one test."""
    with rank_starter(forkserver, tmp_path) as start:
        yield start
