"""Where MLflow keeps its runs: a server, or the embedded SQLite store beside the run folders.

The address is always given in full: MLflow's own default is a database in the current directory, which on a cluster is
another one for every process.
"""

from __future__ import annotations

import base64
import contextlib
import fcntl
import http.client
import json
import logging
import os
import shlex
import sqlite3
import sys
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from orchestrator.system.masking import masked
from orchestrator.tracking import view

if TYPE_CHECKING:
    from mlflow import MlflowClient

HTTP_TIMEOUT_S = 10

UI_ENVIRONMENT = {"MLFLOW_DISABLE_TELEMETRY": "true", "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false"}
"""For the process of `ui_command`: without it, MLflow's server also starts job runners that nothing here uses."""


class TrackingUnavailable(Exception):
    """MLflow is not there, or cannot be used at this address. The text says what would help."""

    def __init__(self, address: str, reason: str, remedy: str) -> None:
        self.address, self.reason, self.remedy = address, masked(reason), remedy
        super().__init__(f"MLflow at {address}: {self.reason}; {remedy}")

    def __reduce__(self) -> tuple[object, ...]:
        return type(self), (self.address, self.reason, self.remedy), self.__dict__


def embedded_uri(runs: Path) -> str:
    """Return the tracking URI of the store that all runs under the folder `runs` share."""
    return f"sqlite:///{runs.absolute() / 'mlflow.db'}"


def check(uri: str, timeout_s: float = 5.0, *, writes: bool = False) -> None:
    """See that MLflow can be used at `uri` (http, https or sqlite). Raises TrackingUnavailable.

    timeout_s bounds each wait for the server. writes: an embedded store must be writable too. Does not import MLflow.
    """
    without = "start it, correct MLFLOW_TRACKING_URI, or launch with --offline and project later"
    shown = without_password(uri)
    if uri.startswith("sqlite:///"):
        folder = database_of(uri).parent
        nearest = next(path for path in (folder, *folder.parents) if path.exists())
        if not database_of(uri).is_absolute():
            raise TrackingUnavailable(shown, "is relative to the current directory", "give an absolute path")
        refuse_damaged(database_of(uri))
        if writes and not os.access(nearest, os.W_OK):
            raise TrackingUnavailable(shown, f"{nearest} cannot be written", "choose another folder with --into")
        return
    if not uri.startswith(("http://", "https://")):
        remedy = "set MLFLOW_TRACKING_URI to http(s)://host:port, or unset it for the embedded store"
        raise TrackingUnavailable(shown, "is neither a server nor an SQLite file", remedy)
    # /health asks for no credentials, and urllib would take those in the address for part of the host's name.
    scheme, _, rest = uri.rstrip("/").partition("://")
    try:
        with urllib.request.urlopen(f"{scheme}://{rest.rpartition('@')[2]}/health", timeout=timeout_s) as answer:  # noqa: S310
            body = answer.read(100).strip()
    except urllib.error.HTTPError as error:
        raise TrackingUnavailable(shown, f"answered {error.code} {error.reason} to /health", without) from error
    except (OSError, ValueError, http.client.HTTPException) as error:
        raise TrackingUnavailable(shown, str(getattr(error, "reason", error)), without) from error
    if body != b"OK":
        raise TrackingUnavailable(shown, "something else than MLflow answers there", without)
    if (code := _refused(uri, timeout_s)) is not None:
        user = os.environ.get("MLFLOW_TRACKING_USERNAME")
        given = f"does not take the password of {user}" if user else "wants a user and a password, and there are none"
        remedy = "export MLFLOW_TRACKING_USERNAME=... MLFLOW_TRACKING_PASSWORD=..."
        if code == 403:
            given, remedy = f"does not let {user or 'this user'} read", "ask its admin for a user who may EDIT"
        raise TrackingUnavailable(shown, given, remedy)


def refuse_damaged(path: Path) -> None:
    """Raise TrackingUnavailable for a file that is no database: MLflow itself asks it again for a minute and a half,
    and then ends with a traceback."""
    shown = f"sqlite:///{path}"
    if path.is_dir():
        raise TrackingUnavailable(shown, "is a folder", remedy_for(shown))
    if not path.exists() or (journal_of(path) and not is_writable(path)):
        return  # what was cut short is taken back in a copy
    try:
        with contextlib.closing(reader(path)) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master").fetchall()
    except sqlite3.Error as error:
        if "locked" not in str(error):
            raise TrackingUnavailable(shown, f"is no database of SQLite ({error})", remedy_for(shown)) from error


def reader(path: Path) -> sqlite3.Connection:
    """Open a connection to read, also where nothing can be written. Elsewhere SQLite takes back what a killed process
    was writing, which it refuses to a connection that may only read."""
    mode = "mode=ro" if path.with_name(f"{path.name}-shm").exists() else "immutable=1"
    return sqlite3.connect(f"file:{quote(str(path))}?{'mode=rw' if is_writable(path) else mode}", uri=True)


def journal_of(path: Path) -> Path | None:
    """Find the journal that takes back a transaction that was cut short or is being made; None if there is none."""
    journal = path.with_name(f"{path.name}-journal")
    return journal if journal.is_file() and journal.stat().st_size else None


def is_writable(path: Path) -> bool:
    """Return whether a file and its folder, where SQLite keeps its side files, can be written."""
    return os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)


def remedy_for(uri: str) -> str:
    """Suggest what to do about a store that cannot be used."""
    if not uri.startswith("sqlite:///"):
        return "see what its log says, and try again"
    path = shlex.quote(str(database_of(uri)))
    return f"put back a copy of it; or move it away, and each run's resume tells a new one: mv {path} {path}.bad"


def _refused(uri: str, timeout_s: float) -> int | None:
    """Return 401 or 403 if the server does not let this process in with the credentials that MLflow's own client would
    take; else None."""
    scheme, _, rest = uri.rstrip("/").partition("://")
    user, _, host = rest.rpartition("@")
    name, password = os.environ.get("MLFLOW_TRACKING_USERNAME"), os.environ.get("MLFLOW_TRACKING_PASSWORD")
    headers = {}
    if user or (name and password):
        pair = unquote(user) if user else f"{name}:{password}"
        headers["Authorization"] = "Basic " + base64.b64encode(pair.encode()).decode()
    elif token := os.environ.get("MLFLOW_TRACKING_TOKEN"):
        headers["Authorization"] = f"Bearer {token}"
    elif Path("~/.mlflow/credentials").expanduser().exists():
        return None  # in a format of MLflow's
    ask = urllib.request.Request(  # noqa: S310 - `check` has seen to the scheme
        f"{scheme}://{host}/api/2.0/mlflow/experiments/get?experiment_id=0", headers=headers
    )
    try:
        with urllib.request.urlopen(ask, timeout=timeout_s):  # noqa: S310
            return None
    except urllib.error.HTTPError as error:
        return error.code if error.code in (401, 403) else None
    except (OSError, ValueError, http.client.HTTPException):
        return None


SETTINGS = {
    "MLFLOW_DISABLE_TELEMETRY": "true",
    # One attempt of bounded length: the projection itself tries again, and knows when to stop.
    "MLFLOW_HTTP_REQUEST_TIMEOUT": str(HTTP_TIMEOUT_S),
    "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    "MLFLOW_SUPPRESS_PRINTING_URL_TO_STDOUT": "true",
    "MLFLOW_ENABLE_ARTIFACTS_PROGRESS_BAR": "false",
}
"""Variables that MLflow reads whenever it does something, as far as nobody has set them."""


def prepare() -> None:
    """Set what MLflow reads from the environment.

    Call it before a thread of Ray may be at work: a thread that reads a variable while another variable comes to be set
    reads memory that was freed, and ends the process (glibc before 2.41).
    """
    for name, value in SETTINGS.items():
        os.environ.setdefault(name, value)


def connect(uri: str) -> MlflowClient:
    """Make a client of the store at `uri`, whatever MLflow's global settings; make an embedded database if needed.

    Takes seconds the first time in a process, and 2 s more where the database has to be made.
    """
    prepare()
    # MLflow 3.17 itself uses a loader that SQLAlchemy 2.1 deprecates.
    warnings.filterwarnings("ignore", message=r"The ``noload`` loader strategy is deprecated")
    for name in ("alembic", "mlflow.store.db.utils"):
        logging.getLogger(name).setLevel(logging.WARNING)
    from mlflow import MlflowClient

    with _one_at_a_time(uri):
        if uri.startswith("sqlite:///") and not database_of(uri).exists():
            _make(database_of(uri))
        return MlflowClient(uri, registry_uri=uri)


def _make(path: Path) -> None:
    """Make an embedded store aside and put it in place whole: MLflow makes its tables one by one, and a process killed
    half-way would leave a database that MLflow refuses ever after."""
    from mlflow import MlflowClient

    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()
    made, whole = (path.with_name(f".{path.name}.{part}") for part in ("made", "whole"))
    client = MlflowClient(f"sqlite:///{made}", registry_uri=f"sqlite:///{made}")
    client.search_experiments(max_results=1)
    client.search_registered_models(max_results=1)
    # A copy, because MLflow keeps its connections to the file that it made.
    with contextlib.closing(sqlite3.connect(made)) as source, contextlib.closing(sqlite3.connect(whole)) as copy:
        source.backup(copy)
    whole.replace(path)
    for left in path.parent.glob(f".{path.name}.*"):
        left.unlink()


def artifact_root(uri: str) -> str | None:
    """Return the folder of an embedded store's artifacts as a URI; None where a server decides."""
    return (database_of(uri).parent / "mlartifacts").as_uri() if uri.startswith("sqlite:///") else None


def ui_command(uri: str, *, port: int = 5000, host: str = "127.0.0.1") -> list[str]:
    """Build the command that serves an embedded store; start it with UI_ENVIRONMENT. Raises ValueError for a server at
    http(s), which needs none."""
    root = artifact_root(uri)
    if root is None:
        raise ValueError(f"{without_password(uri)} is a server already; open it in a browser")
    where = ["--host", host, "--port", str(port), "--workers", "1"]
    stores = ["--backend-store-uri", uri, "--default-artifact-root", root, "--artifacts-destination", root]
    return [sys.executable, "-m", "mlflow", "server", *stores, *where]


def run_address(server: str, experiment_id: str, run_id: str, *, artifact: str = "") -> str:
    """Build the address of the page of MLflow's UI on one run, or on one file of it."""
    page = f"{server.rstrip('/')}/#/experiments/{experiment_id}/runs/{run_id}"
    return f"{page}{f'/artifacts/{artifact}' if artifact else ''}?{view.TRAINING}"


def compare_address(server: str, experiment_id: str, run_ids: Sequence[str]) -> str:
    """Build the address of the page of MLflow's UI that sets these runs side by side. It gets slow beyond about 100."""
    runs, experiments = (quote(json.dumps(ids, separators=(",", ":"))) for ids in (list(run_ids), [experiment_id]))
    return f"{server.rstrip('/')}/#/compare-runs?runs={runs}&experiments={experiments}&{view.TRAINING}"


def experiment_address(
    server: str, experiment_id: str, *, uuid: str, page: view.Page = "curves", charts: bool = True
) -> str:
    """Build the address of a page of MLflow's UI on a run of the ledger (view.py), as charts or as a table."""
    return f"{server.rstrip('/')}/{view.address(experiment_id, uuid, page, charts=charts)}"


def database_of(uri: str) -> Path:
    """Return the file of an embedded store."""
    return Path(uri.removeprefix("sqlite:///"))


def without_password(uri: str) -> str:
    """Strip an address of its password, so that it may be shown."""
    scheme, mark, rest = uri.partition("://")
    user, at, host = rest.rpartition("@")
    return f"{scheme}{mark}{user.partition(':')[0]}{at}{host}"


@contextmanager
def _one_at_a_time(uri: str) -> Iterator[None]:
    """Lock the folder of an embedded store while the context lasts: two sweeps that start together in one folder must
    not both make the tables of its store."""
    if not uri.startswith("sqlite:///"):
        yield
        return
    folder = database_of(uri).parent
    folder.mkdir(parents=True, exist_ok=True)
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
