"""A run's folder: where things lie in it, how its ledger is opened, how its driver is stopped, and what `logs` says.

A run may be kept in a bucket (remote.py). Its folder is then a working copy, which may be lost at any time.

Works from the folder and the ledger alone, so also when the driver is dead. Imports no torch, ray, optuna or mlflow.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shlex
import shutil
import time
from dataclasses import dataclass
from pathlib import Path

from jobs.config import nearest
from orchestrator.ledger import Ledger, LedgerError, LedgerMissing, sqlite_url
from orchestrator.run_dir.bucket import Remote, RemoteError, is_uri, refuse_almost_uri
from orchestrator.system.addresses import address_option
from orchestrator.system.exit_codes import Exit

CREATING, CREATING_REMOTE = ".creating", "creating.json"
"""The file beside a run's others, in its folder and in a bucket, while they are being made (creation.py)."""

ASKED = "ORCHESTRATOR_ASKED"
"""Variable of a job that names the request which it meets, or goes on meeting after one that was lost."""


class RunError(ValueError):
    """A run that is not there, or not what was expected; the text says what would work."""

    exit_code = Exit.BAD_USAGE


@dataclass(frozen=True)
class RunFolder:
    """One run on disk, or in a bucket."""

    path: Path
    """Its folder, or the working copy of it on this machine."""

    remote: Remote | None = None
    """Where the run is kept, if not in `path`."""

    @property
    def name(self) -> str:
        """What a person calls it: the folder, or the URI."""
        return str(self.path) if self.remote is None else self.remote.uri

    @property
    def quoted(self) -> str:
        """The name as a command takes it where this is read; see `as_argument`."""
        return as_argument(self.name)

    @property
    def trials(self) -> Path:
        """Folder of the trials' folders."""
        return self.path / "trials"

    @property
    def report(self) -> Path:
        """Folder of the report."""
        return self.path / "report"

    @property
    def log(self) -> Path:
        """What the driver, Ray and MLflow print during a session."""
        return self.path / "driver.log"

    @property
    def report_pages(self) -> list[str]:
        """Where whoever reads this finds the report: its file here and its URI; in a job the command that brings it,
        and the URI unless that is a path of the head."""
        uri = None if self.remote is None else self.remote.inside("report/report.html").uri
        if not address_option():
            return [str(self.report / "report.html"), *([] if uri is None else [uri])]
        return [f"orchestrator compare {self.quoted}", *([] if uri is None or uri.startswith("file:") else [uri])]

    @property
    def identity(self) -> Path:
        """The resolved sweep and the run's uuid, as JSON."""
        return self.path / "sweep.json"

    @property
    def exists(self) -> bool:
        """Whether a run was begun here. Raises RemoteError."""
        return self._identity() is not None

    def trial(self, trial: str) -> Path:
        """Return the folder of one trial."""
        return self.trials / trial

    def trial_uri(self, trial: str) -> str | None:
        """Return the URI of one trial; None if it is kept in its folder."""
        return None if self.remote is None else self.remote.inside(f"trials/{trial}").uri

    def ledger_url(self) -> str:
        """Return the address of the database: $ORCHESTRATOR_LEDGER, or ledger.db in this folder. Raises RunError where
        a run in a bucket lacks the first."""
        named = os.environ.get("ORCHESTRATOR_LEDGER")
        if not named and self.remote is not None:
            raise RunError(
                f"{self.name} is to be continued by any machine, so its ledger must be a database that all of them "
                "reach; name it: export ORCHESTRATOR_LEDGER=postgresql://USER@HOST/DATABASE"
            )
        return named or sqlite_url(self.path / "ledger.db")

    def mlflow_url(self) -> str | None:
        """Return $MLFLOW_TRACKING_URI; None for the embedded store beside the folder. Raises RemoteError where a run in
        a bucket lacks the first."""
        named = os.environ.get("MLFLOW_TRACKING_URI")
        if not named and self.remote is not None:
            raise RemoteError(
                f"{self.name} is to be continued by any machine, so its MLflow must be a server that all of them "
                "reach; name it: export MLFLOW_TRACKING_URI=http://HOST:5000, or add --offline to do without for now"
            )
        return named or None

    def open(self) -> Ledger:
        """Open the ledger of this run. Raises RunError, LedgerError or RemoteError."""
        identity = self._identity()
        if identity is None:
            raise RunError(
                f"{self.name} holds no run{nearest(self.path.name, names(self.path.parent))}; "
                "begin one with: orchestrator launch SWEEP.toml"
            )
        uuid = self._uuid(identity)
        try:
            return Ledger.open(self.ledger_url(), uuid)
        except LedgerMissing as error:
            raise LedgerError(
                f"{str(error).partition(';')[0]}, and {self.name} was begun with one: put a copy of it there, or say "
                "where it is ($ORCHESTRATOR_LEDGER names a database outside the folder): "
                "export ORCHESTRATOR_LEDGER=postgresql://USER@HOST/DATABASE"
            ) from error

    def check_out(self) -> None:
        """Make the working copy of a run in a bucket, without anything of another run; for its driver only.

        A creator that was killed as soon as the run existed has left its marker, which goes.
        """
        if self.remote is None:
            (self.path / CREATING).unlink(missing_ok=True)
            return
        self.remote.delete(CREATING_REMOTE)
        identity = (self._identity() or "").encode()
        if not self.identity.is_file() or self.identity.read_bytes() != identity:
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        self.identity.write_bytes(identity)
        log = self.remote.read(self.log.name) or b""
        if not self.log.exists() or self.log.stat().st_size < len(log):  # else it has what a killed driver wrote
            self.log.write_bytes(log)

    def check_in(self, since: float) -> None:
        """Bring what sessions leave behind to the bucket: reports, and logs and failures written after `since`."""
        if self.remote is None:
            return
        written = [*self.trials.glob("*/log.rank*.txt"), *self.trials.glob("*/failure.attempt*.txt")]
        recent = [path for path in written if path.stat().st_mtime >= since]
        self.remote.put_files(self.path, [path for path in [self.log, *sorted(recent)] if path.exists()])
        self.check_in_report()

    def check_in_report(self) -> None:
        """Bring the report to the bucket; pictures that it no longer has go."""
        if self.remote is None or not self.report.exists():
            return
        here = sorted(path for path in self.report.iterdir() if path.is_file())
        old = self.remote.files(self.report.name).keys() - {path.name for path in here}
        self.remote.put_files(self.path, here)
        for name in old:
            self.remote.delete(f"{self.report.name}/{name}")

    def _identity(self) -> str | None:
        """Read the text of sweep.json where the run is kept; None without any. Raises LedgerError for one that cannot
        be read."""
        if self.remote is None:
            try:
                return self.identity.read_text("utf-8") if self.identity.exists() else None
            except (OSError, ValueError) as error:
                raise self._damaged(getattr(error, "strerror", None) or str(error)) from error
        content = self.remote.read(self.identity.name)
        if content is None:
            self.remote.refuse_missing_bucket()
            return None
        try:
            return content.decode()
        except ValueError as error:
            raise self._damaged(str(error)) from error

    def _uuid(self, identity: str) -> str:
        """Read the run's uuid from the text of sweep.json. Raises LedgerError."""
        try:
            uuid = json.loads(identity)["run"]
        except (ValueError, LookupError, TypeError, RecursionError) as error:
            raise self._damaged(str(error) if identity.strip() else "it is empty") from error
        if not isinstance(uuid, str):
            raise self._damaged("its `run` is no uuid")
        return uuid

    def _damaged(self, why: str) -> LedgerError:
        """Build the error about sweep.json; only its `run` is read, which the ledger knows too."""
        where = str(self.identity) if self.remote is None else self.remote.inside(self.identity.name).uri
        return LedgerError(f"{where} cannot be used ({why}). {self.identity_remedy()}")

    def identity_remedy(self) -> str:
        """Say how to get sweep.json back."""
        known = []
        with contextlib.suppress(LedgerError, RunError, OSError):
            known = Ledger.runs(self.ledger_url())
        if self.remote is not None or len(known) != 1:
            return 'Put a copy of it there, or another file with the uuid that the ledger has: {"run": "UUID"}'
        content, where = json.dumps({"run": known[0].uuid}), shlex.quote(str(self.identity))
        away = f"rm -r {where}; " if self.identity.is_dir() else ""
        return f"All that is needed of it is the run's uuid: {away}echo {shlex.quote(content)} > {where}"


def as_argument(name: str) -> str:
    """Quote a run's name as a command takes it where this is read: for the shell, and in a job with `--address`."""
    return f"{shlex.quote(name)}{address_option()}"


def at(name: Path | str) -> RunFolder:
    """Return the run in a folder or at a URI. Raises BadAddress for credentials in it and for what is almost a URI."""
    if not is_uri(str(name)):
        refuse_almost_uri(str(name))
        return RunFolder(Path(name))
    remote = Remote.of(str(name))
    return RunFolder(scratch() / hashlib.sha256(remote.uri.encode()).hexdigest()[:16], remote)


def scratch() -> Path:
    """Return the folder of the working copies of runs in buckets: $ORCHESTRATOR_SCRATCH, or one in the user's cache."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return Path(os.environ.get("ORCHESTRATOR_SCRATCH") or cache / "orchestrator")


def home() -> Path:
    """Return the folder where runs live by default: $ORCHESTRATOR_RUNS, or `runs` here. Raises RunError, BadAddress."""
    named = os.environ.get("ORCHESTRATOR_RUNS") or "runs"
    refuse_almost_uri(named)
    if is_uri(named):
        raise RunError("ORCHESTRATOR_RUNS names a folder; for a run in a bucket give its URI: --into s3://bucket/NAME")
    return Path(named)


def names(parent: Path | Remote) -> list[str]:
    """List the names of the runs in a folder or under a URI."""
    if isinstance(parent, Remote):
        return parent.with_file("sweep.json")
    return sorted(path.parent.name for path in parent.glob("*/sweep.json"))


def find(run: str) -> RunFolder:
    """Find the run that a person means: folder, URI or name under `home`. Raises RunError with the nearest match."""
    if is_uri(run):
        return _find_remote(at(run))
    refuse_almost_uri(run)
    for path in (Path(run), home() / run):
        if (folder := RunFolder(path)).exists:
            return folder
    for path in (Path(run), home() / run):
        if (path / "ledger.db").is_file():
            raise RunError(
                f"{path} holds a ledger and no sweep.json, so it is no run: if it was never begun, the same "
                f"`orchestrator launch` continues. {RunFolder(path).identity_remedy()}"
            )
    known = names(home())
    listed = f"; runs in {home()}: {', '.join(known)}" if known else f"; {home()} holds no run yet"
    raise RunError(f"there is no run {run!r}{nearest(run, known)}{listed}")


def _find_remote(folder: RunFolder) -> RunFolder:
    if folder.exists:
        return folder
    assert folder.remote is not None
    above = folder.remote.above()
    known = [] if above is None else names(above)
    last = folder.name.partition("?")[0].rpartition("/")[2]
    listed = f"; runs beside it: {', '.join(known)}" if known else ""
    raise RunError(
        f"there is no run at {folder.name}{nearest(last, known)}{listed}; "
        f"begin it: orchestrator launch SWEEP.toml --into {folder.quoted}"
    )


def stop(ledger: Ledger, folder: RunFolder, *, wait_s: float) -> tuple[str, bool]:
    """Ask the driver of a run to stop, and wait for it. Returns what to tell, and whether nobody drives it now.

    A driver whose lease has expired is asked too, as it may wait for its database, or a clock was set ahead. It counts
    as gone when it does not renew the lease in the time that a living driver takes, as for whoever takes it over.
    """
    driver = ledger.last_holder()
    if driver is None:
        return f"nobody drives {folder.name}; continue it: orchestrator resume {folder.quoted}", True
    ledger.ask_to_stop()
    who, deadline = driver.holder.partition(" [")[0], time.monotonic() + wait_s
    silent_since = time.monotonic()
    while (moment := time.monotonic()) < deadline:
        now = ledger.last_holder()
        if now is None or now.token != driver.token:
            return f"{who} has stopped; continue: orchestrator resume {folder.quoted}", True
        if not now.expired or now.heard != driver.heard:
            driver, silent_since = now, moment
        elif moment - silent_since > now.watch_s:
            heard = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(now.heard))
            known = f"{who} was last heard of at {heard} and counts as gone; should it live, it has been asked to stop"
            return f"{known}. Continue: orchestrator resume {folder.quoted}", True
        time.sleep(0.2)
    return (
        f"{who} was asked to stop and has not within {wait_s:g} s; if it hangs, end that process: nothing is lost",
        False,
    )


def logs(folder: RunFolder, trial: str, rank: int | None) -> str:
    """Return what one rank of one trial printed; the trial's id may be shortened. Raises RunError.

    rank: None is rank 0, and after it the whole of the newest failure, in the words of the rank that caused it.
    """
    known = {path.name for path in folder.trials.glob("*") if path.is_dir()}
    if folder.remote is not None:
        known |= folder.remote.files("trials").keys()
    named = sorted(name for name in known if name.startswith(trial))
    if len(named) != 1:
        some = ", ".join(named[:5]) or ", ".join(sorted(known)[:5]) or "none yet"
        raise RunError(f"{trial!r} names {len(named)} trials of {folder.name}; trials there: {some}")
    _fetch_texts(folder, named[0])
    here = folder.trial(named[0])
    path = here / f"log.rank{rank or 0}.txt"
    failures = {
        int(path.stem.removeprefix("failure.attempt")): path
        for path in here.glob("failure.attempt*.txt")
        if path.stem.removeprefix("failure.attempt").isdecimal()
    }
    newest = failures[max(failures)] if failures and rank is None else None
    if not path.exists() and newest is None:
        ranks = sorted(p.name for p in here.glob("log.rank*.txt"))
        there = ", ".join(ranks) or "none"
        raise RunError(f"rank {rank or 0} of trial {named[0]} has no log; there are: {there} (no {path})")
    text = path.read_text(errors="replace") if path.exists() else ""
    if newest is not None:
        number = newest.stem.removeprefix("failure.attempt")
        text += f"\n--- attempt {number} failed ---\n{newest.read_text(errors='replace').rstrip()}\n"
    return text


def _fetch_texts(folder: RunFolder, trial: str) -> None:
    """Bring a trial's logs and failures from the bucket, unless what is here is newer."""
    if folder.remote is None:
        return
    for name, info in folder.remote.files(f"trials/{trial}").items():
        here = folder.trial(trial) / name
        if not name.startswith(("log.rank", "failure.attempt")) or (
            here.exists() and here.stat().st_mtime >= info.mtime_ns / 1e9
        ):
            continue
        content = folder.remote.read(f"trials/{trial}/{name}")
        if content is not None:
            here.parent.mkdir(parents=True, exist_ok=True)
            here.write_bytes(content)
