"""Begins a run: its files and its row in the ledger, or none of them, wherever the process is killed.

A run exists once sweep.json does, which is written last. A marker comes first: it names the creator and the uuid that
the run will have. Whoever finds a marker whose creator is gone knows all that the creation may have left, in the
folder, the bucket and the database, takes that away, and begins anew.

Two creators at once: of those on one machine the folder's lock lets one in. Elsewhere the marker of the later one
stays, and the earlier one notices it before it writes sweep.json.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import shlex
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from jobs.artifacts import manifest
from jobs.config.user_code import UserCode
from orchestrator import sweep as sweeps
from orchestrator.ledger import Ledger, LedgerError, LedgerMissing, LedgerUnavailable, sqlite_url, this_process
from orchestrator.ledger.database import parsed
from orchestrator.run_dir.bucket import Remote, RemoteError
from orchestrator.run_dir.environment import DIFF, environment, origin
from orchestrator.run_dir.folder import CREATING, CREATING_REMOTE, RunError, RunFolder
from orchestrator.run_dir.own_code import CODE
from orchestrator.sweep.plan import Plan
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.system.process import is_gone

ABANDONED_S = 600.0
"""How old the marker of a creator is that cannot be looked at from here, when it counts as gone."""

SWEEP, IDENTITY, LOG, LEDGER = "sweep.toml", "sweep.json", "driver.log", "ledger.db"
LEDGER_FILES = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", f"{LEDGER}-journal")
DOCTOR = ".orchestrator-doctor-"
"""What a check of the storage, by us or by somebody else, keeps there for seconds, and leaves if it is killed."""


class SweepChanged(RunError):
    """The sweep file is not the one that the run was begun with, or something else lies there. Exit code 2."""


@dataclass(frozen=True)
class _Marker:
    """Who is creating a run."""

    run: str | None
    """The uuid that it will have; None if the marker cannot be read."""

    creator: str
    """As `this_process` names it."""

    time: float
    """Unix seconds."""

    ledger: str | None = None
    """Address of the database, without its password; None for one in the run's folder."""

    @property
    def who(self) -> str:
        """The creator as a person reads it."""
        return self.creator.partition(" [")[0]


@dataclass(frozen=True)
class _Folder:
    """A folder in which a run is made."""

    folder: RunFolder
    path: Path
    marker: str = CREATING

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """Make the folder, and be the only creator in it. Raises SweepChanged."""
        made = not self.path.exists()
        self.path.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(self.path, os.O_RDONLY | os.O_DIRECTORY)
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise SweepChanged(_being_created(str(self.path), _marker_of(self))) from error
            except OSError:  # a file system that has no locks; then markers alone decide
                made = False
            try:
                yield
            except BaseException:
                if made:
                    with contextlib.suppress(OSError):
                        self.path.rmdir()
                raise
        finally:
            os.close(descriptor)

    def names(self) -> dict[str, bool]:
        """List what lies here, each name with whether it is a file."""
        if not self.path.exists():
            return {}
        return {entry.name: entry.is_file(follow_symlinks=False) for entry in os.scandir(self.path)}

    def read(self, name: str) -> bytes | None:
        """Read a file's content; None if it is not there."""
        path = self.path / name
        return path.read_bytes() if path.is_file() else None

    def put(self, name: str, content: bytes) -> None:
        """Write a file in one piece."""
        aside = self.path / _aside(name)
        with aside.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        aside.replace(self.path / name)
        manifest.fsync(self.path)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        (self.path / name).unlink(missing_ok=True)

    def written(self, name: str) -> float:
        """Return when a file was written, in Unix seconds."""
        return (self.path / name).stat().st_mtime


@dataclass(frozen=True)
class _Bucket:
    """The same in a bucket, which nobody can hold."""

    folder: RunFolder
    remote: Remote
    marker: str = CREATING_REMOTE

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        yield

    def names(self) -> dict[str, bool]:
        return {name: bool(info.is_file) for name, info in self.remote.files().items()}

    def read(self, name: str) -> bytes | None:
        return self.remote.read(name)

    def put(self, name: str, content: bytes) -> None:
        self.remote.put(name, content)

    def delete(self, name: str) -> None:
        self.remote.delete(name)

    def written(self, name: str) -> float:
        info = self.remote.files().get(name)
        return 0.0 if info is None else info.mtime_ns / 1e9


_Store = _Folder | _Bucket


def refuse_what_is_no_run(folder: RunFolder, sweep_file: Path | None = None) -> None:
    """Leave alone what lies there, unless a killed creation has left it. Changes nothing.

    Raises SweepChanged for anything else, for a run that somebody has just begun, and for one that is being created;
    InfrastructureMissing, RemoteError.
    """
    try:
        if folder.remote is None and folder.path.exists() and not folder.path.is_dir():
            raise SweepChanged(f"{folder.name} is a file; a run takes a folder, so choose another place with --into")
        if folder.exists:
            raise _begun(folder.name)
        _refuse_foreign(_store_of(folder), sweep_file)
    except OSError as error:
        raise InfrastructureMissing(f"{folder.name} cannot be read: {error}; choose another with --into") from error


def create(
    sweep_file: Path,
    plan: Plan,
    folder: RunFolder,
    *,
    provenance: Mapping[str, object] | None = None,
    code: UserCode | None = None,
) -> Ledger:
    """Make a run's files and its ledger, or nothing. What a killed creation has left there goes first.

    provenance: digests that the run begins with. code: of the user. Raises InfrastructureMissing, or SweepChanged where
    somebody else makes the run at the same moment.
    """
    store, source = _store_of(folder), origin()
    try:
        files = {SWEEP: sweep_file.read_bytes(), DIFF: source.diff, CODE: b"" if code is None else code.archive()}
        stored = sweeps.resolved(plan.sweep) | {"plan": plan.record()}
        ledger = partial(Ledger.create, name=plan.sweep.name, sweep=stored, rules=plan.rules, provenance=provenance)
        ledger = partial(ledger, environment=environment(source))
        with store.held():
            return _Creation(sweep_file, store).carry_out({k: v for k, v in files.items() if v}, stored, ledger)
    except (OSError, LedgerError, RemoteError) as error:
        raise InfrastructureMissing(f"{folder.name} cannot be made: {error}") from error


class _Creation:
    """One creation, step by step, each of which may be the last."""

    def __init__(self, sweep_file: Path, store: _Store) -> None:
        self._sweep_file, self._folder, self._store = sweep_file, store.folder, store
        self._marker = _Marker(str(uuid.uuid4()), this_process(), time.time(), _database(self._folder))
        self._ledger: Ledger | None = None
        self._has_row = False
        """Whether the ledger may have the run."""

    def carry_out(
        self, files: Mapping[str, bytes], stored: Mapping[str, object], ledger: Callable[..., Ledger]
    ) -> Ledger:
        """Make the run. stored: its sweep. ledger: makes its row. Raises what went wrong, and then all of it is undone
        as far as possible."""
        folder, store, marker = self._folder, self._store, self._marker
        if folder.exists:
            raise _begun(folder.name)
        left = _marker_of(store)
        if left is not None:
            _refuse_the_living(store, left)
            # First the row, which only the old marker names; then the files, by the new one.
            _discard(folder, left)
        elif store.names().get(LEDGER):
            _discard(folder, None)
        if marker.ledger is not None:
            with contextlib.suppress(LedgerMissing):
                Ledger.runs(folder.ledger_url())  # a database that does not answer is reported before anything is made
        try:
            store.put(store.marker, json.dumps(asdict(marker)).encode())
            self._clear()
            for file, content in files.items():
                store.put(file, content)
            self._has_row = True
            self._ledger = ledger(folder.ledger_url(), uuid=marker.run)
            self._refuse_overtaken()
            # Last, in one piece: a run exists once this file does.
            store.put(IDENTITY, json.dumps({"run": marker.run, **stored}, indent=1).encode())
        except BaseException:
            # What cannot be undone now, because a store is gone, the next launch finds by the marker.
            with contextlib.suppress(OSError, LedgerError, RemoteError, RunError):
                self._undo()
            raise
        with contextlib.suppress(OSError, RemoteError):  # else the first session of the run does it
            store.delete(store.marker)
        return self._ledger

    def _clear(self) -> None:
        names, store = self._store.names(), self._store
        for name in _created(store):
            if names.get(name) and name != store.marker and not self._is_given(name):
                store.delete(name)
        for name in names:
            if name.startswith(DOCTOR) and store.written(name) < time.time() - ABANDONED_S:
                store.delete(name)

    def _undo(self) -> None:
        """Take the run away again, in an order that lets every step be the last one."""
        store, marker = self._store, self._marker
        identity = store.read(IDENTITY) if store.names().get(IDENTITY) else None
        written = identity is not None and json.loads(identity).get("run") == marker.run
        if written:  # this was not confirmed, but it happened
            store.delete(IDENTITY)
        if self._ledger is not None:
            self._ledger.discard()
        elif self._has_row:
            _discard(self._folder, marker)
        if _marker_of(store) != marker:  # somebody else is creating it, so the files are theirs
            return
        if identity is None or written:
            self._clear()
        store.delete(store.marker)

    def _refuse_overtaken(self) -> None:
        if self._folder.exists:
            raise _begun(self._folder.name)
        now = _marker_of(self._store)
        if now != self._marker:
            raise SweepChanged(_being_created(self._folder.name, now))

    def _is_given(self, name: str) -> bool:
        """Return whether a file is the very one that was given, which is a person's."""
        path = self._folder.path / name
        return self._folder.remote is None and path.exists() and path.samefile(self._sweep_file)


def _refuse_foreign(store: _Store, sweep_file: Path | None) -> None:
    """Raise SweepChanged unless all that lies there was left by creations that ended before their time."""
    folder = store.folder
    names = {name: is_file for name, is_file in store.names().items() if not name.startswith(DOCTOR)}
    marker = _marker_of(store)
    known = _created(store) if marker is not None else _created_before_markers(store)
    foreign = sorted(name for name, is_file in names.items() if name not in known or not is_file)
    if foreign:
        raise _not_empty(folder.name, foreign)
    if marker is not None:
        _refuse_the_living(store, marker)
        if marker.ledger is not None and marker.ledger != _database(folder):
            raise SweepChanged(
                f"a launch that was killed has begun to create {folder.name} in the ledger {marker.ledger}, and "
                f"ORCHESTRATOR_LEDGER names {_database(folder) or 'none'}; name that ledger again, so that nothing "
                f"is left in it, or choose another folder with --into"
            )
    if folder.remote is not None:
        return
    if names.get(LEDGER):
        if SWEEP not in names:
            raise _not_empty(folder.name, [LEDGER])
        _refuse_a_driven_ledger(folder, None if marker is None else marker.run)
    elif marker is None and SWEEP in names and not _is_copy(folder.path / SWEEP, sweep_file):
        raise _not_empty(folder.name, [SWEEP])


def _refuse_the_living(store: _Store, marker: _Marker) -> None:
    """Raise SweepChanged while the creator of a marker lives, or may live where it cannot be looked at."""
    folder = store.folder
    if is_gone(marker.creator) or marker.creator == this_process():
        return
    if _machine(marker.creator) == _machine(this_process()):
        raise SweepChanged(_being_created(folder.name, marker))
    age_s = abs(time.time() - marker.time)  # clocks of other machines may be ahead
    if age_s < ABANDONED_S:
        kept = folder.path / store.marker if folder.remote is None else folder.remote.inside(store.marker).uri
        raise SweepChanged(
            f"{_being_created(folder.name, marker)} If it is gone, which cannot be seen from here, delete "
            f"{shlex.quote(str(kept))}, or wait for {ABANDONED_S - age_s:.0f} s"
        )


def _refuse_a_driven_ledger(folder: RunFolder, run: str | None) -> None:
    """Raise SweepChanged unless the ledger in the folder holds at most a run that was never begun.

    run: its uuid, if a marker names it.
    """
    try:
        runs = Ledger.runs(sqlite_url(folder.path / LEDGER))
    except LedgerMissing:
        return
    except LedgerError as error:
        raise SweepChanged(
            f"{folder.name} holds a ledger that cannot be read and no run ({error}); choose another folder with --into"
        ) from error
    if len(runs) > 1 or any(known.state != "planned" or run not in (None, known.uuid) for known in runs):
        raise SweepChanged(
            f"{folder.name} is not empty and holds no run: its {IDENTITY} is gone, and its {LEDGER} has the run "
            f"{', '.join(known.uuid for known in runs)}; bring {IDENTITY} back, or choose another folder with --into"
        )


def _discard(folder: RunFolder, marker: _Marker | None) -> None:
    """Take the row of a run that was never begun out of its ledger. Raises SweepChanged if it was begun, or
    LedgerUnavailable."""
    inside = folder.remote is None and (marker is None or marker.ledger is None)
    if inside and not (folder.path / LEDGER).exists():
        return
    run = None if marker is None else marker.run
    if run is None and not inside:
        return
    url = sqlite_url(folder.path / LEDGER) if inside else folder.ledger_url()
    try:
        Ledger.open(url, run).discard()
    except LedgerMissing:
        return
    except LedgerUnavailable:
        raise
    except LedgerError as error:
        raise SweepChanged(
            f"{folder.name} is not empty and holds no run: its {IDENTITY} is gone, and {error}; bring {IDENTITY} "
            "back, or choose another folder with --into"
        ) from error


def _store_of(folder: RunFolder) -> _Store:
    return _Folder(folder, folder.path) if folder.remote is None else _Bucket(folder, folder.remote)


def _aside(name: str) -> str:
    """Return the name of a file until all of it is written."""
    return f".{name.removeprefix('.')}" if name == IDENTITY else f".{name.removeprefix('.')}.new"


def _created(store: _Store) -> tuple[str, ...]:
    """List the names of all that a creation makes, the marker last."""
    if isinstance(store, _Bucket):
        return (SWEEP, DIFF, CODE, store.marker)
    files = (SWEEP, DIFF, CODE, store.marker)
    return (*LEDGER_FILES, LOG, *map(_aside, (*files, IDENTITY)), *files)


def _created_before_markers(store: _Store) -> tuple[str, ...]:
    """List the names of what creations without a marker made, and of a marker that was not yet in its place."""
    return (SWEEP,) if isinstance(store, _Bucket) else (SWEEP, *LEDGER_FILES, _aside(IDENTITY), _aside(store.marker))


def _marker_of(store: _Store) -> _Marker | None:
    """Read the marker that lies there, if any. Of a marker that cannot be read only the time is known."""
    if not store.names().get(store.marker):
        return None
    content = store.read(store.marker)
    if content is None:
        return None
    try:
        marker = _Marker(**json.loads(content))
        known = isinstance(marker.creator, str) and isinstance(marker.time, (int, float))
    except (ValueError, TypeError):
        known = False
    if not known:
        marker = _Marker(None, "somebody", store.written(store.marker))
    return marker


def _is_copy(path: Path, sweep_file: Path | None) -> bool:
    """Return whether nothing is lost with a file: it is another one with the content of the given one, or its start."""
    if sweep_file is None or path.samefile(sweep_file):
        return False
    return sweep_file.read_bytes().startswith(path.read_bytes())


def _database(folder: RunFolder) -> str | None:
    """Return where the ledger is, without its password; None if it is in the run's folder."""
    url = folder.ledger_url()
    if url == sqlite_url(folder.path / LEDGER):
        return None
    return parsed(url).render_as_string(hide_password=True)


def _machine(holder: str) -> tuple[str, str]:
    """Return host, and boot and pid namespace, of a process named by `this_process`."""
    return holder.partition(" pid ")[0], holder.rpartition("[")[2].partition(" ")[0]


def _begun(name: str) -> SweepChanged:
    return SweepChanged(f"{name} was begun by somebody else just now; the same command continues it")


def _being_created(name: str, marker: _Marker | None) -> str:
    who = "somebody else" if marker is None else marker.who
    since = "" if marker is None else time.strftime(" since %H:%M:%S", time.localtime(marker.time))
    return f"{name} is being created by {who}{since}; once that is done, the same command continues it."


def _not_empty(name: str, names: list[str]) -> SweepChanged:
    some = ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")
    return SweepChanged(f"{name} is not empty and holds no run (but {some}); choose another folder with --into")
