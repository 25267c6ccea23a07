"""Runs that are begun: real processes that are killed while they do it, real SQLite, PostgreSQL and S3."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real import SWEEP
from servers import new_database, s3_server

from orchestrator import sweep as sweeps
from orchestrator.ledger import Ledger, LedgerMissing, sqlite_url, this_process
from orchestrator.run_dir import creation
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.creation import ABANDONED_S, SweepChanged, create, refuse_what_is_no_run
from orchestrator.run_dir.folder import CREATING, CREATING_REMOTE, RunFolder
from orchestrator.sweep import plan as planning
from orchestrator.system.exit_codes import InfrastructureMissing

SCRIPT = Path(__file__).parents[3] / "tests/support/processes/creations.py"


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[str], str]]:
    with s3_server() as uri:
        yield uri


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a sweep, and no ledger in the environment."""
    monkeypatch.delenv("ORCHESTRATOR_LEDGER", raising=False)
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path / "scratch"))
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


def make(home: Path, folder: RunFolder) -> None:
    """Begin a run as `launch` does."""
    file = home / "sweep.toml"
    refuse_what_is_no_run(folder, file)
    create(file, planning.make(sweeps.load(file)), folder).close()


def stands(folder: RunFolder) -> None:
    """The run is there, is the only one in its ledger, and nothing of its making is left."""
    with contextlib.closing(folder.open()) as ledger:
        (run,) = Ledger.runs(folder.ledger_url())
        assert run.uuid == ledger.uuid
    left = folder.path if folder.remote is None else None
    names = {path.name for path in left.iterdir()} if left else set(folder.remote.files())  # type: ignore[union-attr]
    assert not {name for name in names if "creating" in name or name.endswith(".new")}


def mark(folder: RunFolder, **changes: Any) -> None:
    """The marker of a creation that is under way, of this process unless `creator` says otherwise."""
    marker = {"run": "11111111-1111-1111-1111-111111111111", "creator": this_process(), "time": time.time()} | changes
    if folder.remote is not None:
        folder.remote.put(CREATING_REMOTE, json.dumps(marker).encode())
        return
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / CREATING).write_text(json.dumps(marker))


def never_begun(folder: RunFolder, **options: Any) -> Ledger:
    """What the version before this one had made of a run until its last file."""
    folder.path.mkdir(parents=True, exist_ok=True)
    (folder.path / "sweep.toml").write_text(SWEEP)
    return Ledger.create(sqlite_url(folder.path / "ledger.db"), name="small", sweep={}, **options)


@contextlib.contextmanager
def another() -> Iterator[tuple[str, subprocess.Popen[str]]]:
    """A process that lives, and its name as a holder."""
    text = "from orchestrator.ledger import this_process; print(this_process(), flush=True); input()"
    process = subprocess.Popen([sys.executable, "-c", text], stdin=-1, stdout=-1, text=True)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().strip(), process
    finally:
        process.kill()
        process.communicate()


def holder_gone() -> str:
    """The name of a process that has ended."""
    with another() as (name, _):
        pass
    return name


# Killed


def killed_everywhere(home: Path, where: str, database: str, every: int) -> dict[str, int]:
    """What tests/support/processes/creations.py has counted. It kills a creation before every line, and the next one
    again."""
    command = [sys.executable, str(SCRIPT), "sweep.toml", where, database, str(every)]
    done = subprocess.run(command, cwd=home, capture_output=True, text=True, check=False, timeout=1500)
    assert done.returncode == 0, done.stdout + done.stderr
    found: dict[str, int] = json.loads(done.stdout.splitlines()[-1])
    return found


STORES = ["folder", "folder, postgresql", "bucket, postgresql"]


def place(store: str, home: Path, request: pytest.FixtureRequest, bucket: Callable[[str], str]) -> tuple[str, str]:
    """Where a run goes, and the URL of its ledger."""
    database = new_database(request.getfixturevalue("postgres")) if "postgresql" in store else ""
    return (bucket(f"{home.name}/run") if store.startswith("bucket") else str(home / "runs" / "run")), database


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("store", STORES[::-1])
def test_row_34_a_creation_killed_anywhere_is_begun_anew_by_the_same_command(
    home: Path, store: str, request: pytest.FixtureRequest, bucket: Callable[[str], str]
) -> None:
    """Afterwards there is one run, as it was to be made, and no other row or file.

    Mutant checks, each fails this: no `_discard`; a marker without the uuid; the marker deleted before sweep.json is
    there; `check_out` that keeps the marker.
    """
    found = killed_everywhere(
        home, *place(store, home, request, bucket), every=47 if store.startswith("bucket") else 17
    )
    assert found["kills"] >= 5


@pytest.mark.soak
@pytest.mark.timeout(1600)
@pytest.mark.parametrize("store", STORES)
def test_row_34_a_creation_killed_at_every_line_is_begun_anew_by_the_same_command(
    home: Path, store: str, request: pytest.FixtureRequest, bucket: Callable[[str], str]
) -> None:
    """With a server at every third, in a bucket at every seventh, as steps take longer there."""
    every = {"folder": 1, "folder, postgresql": 3, "bucket, postgresql": 7}[store]
    found = killed_everywhere(home, *place(store, home, request, bucket), every=every)
    assert found["kills"] >= 60


@pytest.mark.parametrize("store", ["folder, postgresql", "bucket, postgresql"])
def test_the_orphan_in_the_database_goes_and_other_runs_stay(
    home: Path,
    store: str,
    request: pytest.FixtureRequest,
    bucket: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutant check: without `_discard` the orphan stays beside the new run."""
    where, database = place(store, home, request, bucket)
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", database)
    folder = runs.at(where)
    other = Ledger.create(database, name="other", sweep={})
    orphan = Ledger.create(database, name="small", sweep={}, uuid="22222222-2222-2222-2222-222222222222")
    mark(folder, creator=holder_gone(), run=orphan.uuid, ledger=creation._database(folder))
    for ledger in (other, orphan):
        ledger.close()
    make(home, folder)
    with contextlib.closing(folder.open()) as ledger:
        assert {run.uuid for run in Ledger.runs(database)} == {other.uuid, ledger.uuid}


# At the same moment


def together(home: Path, where: str, count: int) -> list[tuple[str, str]]:
    """What several processes say that create the same run at one moment: `made` and its uuid, or why not."""
    text = f"""
import sys, time
from pathlib import Path
from orchestrator import sweep
from orchestrator.run_dir import creation, folder as runs
from orchestrator.sweep import plan
from orchestrator.run_dir.folder import RunError
creation.environment = lambda origin: {{}}
made, folder = plan.make(sweep.load(Path("sweep.toml"))), runs.at({where!r})
time.sleep(max(0, float(sys.argv[1]) - time.time()))
try:
    creation.refuse_what_is_no_run(folder, Path("sweep.toml"))
    print("made", creation.create(Path("sweep.toml"), made, folder).uuid)
except RunError as error:
    print("refused", error)
"""
    at = str(time.time() + 3 + count)
    started = [
        subprocess.Popen([sys.executable, "-c", text, at], cwd=home, stdout=-1, stderr=-1, text=True)
        for _ in range(count)
    ]
    said = []
    for process in started:
        out, err = process.communicate(timeout=120)
        assert process.returncode == 0, err
        word, _, rest = out.partition(" ")
        said.append((word, rest.strip()))
    return said


@pytest.mark.soak
@pytest.mark.parametrize("store", STORES)
@pytest.mark.parametrize(
    "left", [pytest.param("nothing", marks=pytest.mark.slow), pytest.param("a marker", marks=pytest.mark.soak)]
)
def test_of_several_who_create_a_run_at_once_one_does_and_the_others_are_told_why_not(
    home: Path,
    store: str,
    left: str,
    request: pytest.FixtureRequest,
    bucket: Callable[[str], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Mutant check: without the lock, without `_refuse_overtaken`, two are made in most rounds."""
    where, database = place(store, home, request, bucket)
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", database)
    folder = runs.at(where)
    if left == "a marker":
        mark(folder, creator=holder_gone(), ledger=creation._database(folder))
    said = together(home, where, 4)
    made = [rest for word, rest in said if word == "made"]
    assert len(made) == 1, said
    for word, rest in said:
        if word == "refused":
            assert re.search("is being created by .*; once that|was begun by somebody else just now", rest), rest
    stands(folder)
    with contextlib.closing(folder.open()) as ledger:
        assert [ledger.uuid] == made


@pytest.mark.parametrize("store", ["folder", "bucket"])
def test_a_creator_who_is_overtaken_takes_its_own_away_and_nothing_else(
    home: Path, store: str, bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on file systems without locks, and in buckets. Mutant check: an undoing that deletes by name alone."""
    url = sqlite_url(home / "ledger.db")
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", url)
    real = Ledger.create

    def overtaken(*arguments: Any, **keywords: Any) -> Ledger:
        ledger = real(*arguments, **keywords)
        mark(folder, creator="elsewhere pid 3 [- 0]")
        if begun:
            (folder.remote or creation._store_of(folder)).put("sweep.json", b'{"run": "of somebody else"}')
        return ledger

    monkeypatch.setattr(Ledger, "create", overtaken)
    for begun in (False, True):
        where = str(home / f"run{begun}") if store == "folder" else bucket(f"{home.name}/run{begun}")
        folder = runs.at(where)
        words = "by somebody else just now" if begun else "is being created by elsewhere pid 3 since"
        with pytest.raises(SweepChanged, match=words):
            create(home / "sweep.toml", planning.make(sweeps.load(home / "sweep.toml")), folder)
        assert Ledger.runs(url) == []
        at = creation._store_of(folder)
        assert at.names().get(at.marker)
        assert (at.names().get("sweep.json") or False) == begun


# Who has left it


@pytest.mark.parametrize("store", ["folder", "bucket"])
def test_a_living_creator_is_left_alone_and_a_dead_one_is_not(
    home: Path, store: str, bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """However old the marker of a living one is. Mutant check: an age that counts on this machine too."""
    if store == "bucket":
        monkeypatch.setenv("ORCHESTRATOR_LEDGER", sqlite_url(home / "ledger.db"))
    folder = runs.at(str(home / "run") if store == "folder" else bucket(f"{home.name}/run"))
    with another() as (name, process):
        mark(folder, creator=name, time=time.time() - 10 * ABANDONED_S, ledger=creation._database(folder))
        for _ in range(2):
            with pytest.raises(SweepChanged, match=f"is being created by .* pid {process.pid} since"):
                make(home, folder)
        with pytest.raises(SweepChanged, match=f"pid {process.pid}"):
            create(home / "sweep.toml", planning.make(sweeps.load(home / "sweep.toml")), folder)
    make(home, folder)
    stands(folder)


def test_a_creator_on_another_machine_counts_as_gone_after_ten_minutes(home: Path) -> None:
    """By whichever clock; and before that, somebody may say so by deleting the marker."""
    folder = RunFolder(home / "run")
    elsewhere = "node7 pid 12 [0f3c/4026 991]"
    for ago in (5.0, -300.0):
        mark(folder, creator=elsewhere, time=time.time() - ago)
        with pytest.raises(SweepChanged, match=r"by node7 pid 12 since.*delete .*/run/\.creating, or wait for \d+ s"):
            make(home, folder)
    for ago in (ABANDONED_S + 1, -ABANDONED_S - 10):
        mark(folder, creator=elsewhere, time=time.time() - ago)
        make(home, folder)
        stands(folder)
        for path in folder.path.iterdir():
            path.unlink()
    mark(folder, creator=elsewhere)
    (folder.path / CREATING).unlink()
    make(home, folder)


@pytest.mark.parametrize(
    "content", [b"", b"{", b"[]", b'{"run": 3}', b'{"run": 1, "creator": 2, "time": "x"}', b"\xff\xfe", b"\x00" * 40]
)
def test_a_marker_that_cannot_be_read_counts_by_its_age(home: Path, content: bytes) -> None:
    folder = RunFolder(home / "run")
    folder.path.mkdir()
    (folder.path / CREATING).write_bytes(content)
    with pytest.raises(SweepChanged, match="is being created by somebody"):
        make(home, folder)
    old = time.time() - ABANDONED_S - 1
    os.utime(folder.path / CREATING, (old, old))
    make(home, folder)
    stands(folder)


def test_a_creation_in_another_ledger_is_not_forgotten(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The row would stay there for ever. The password of that ledger is not in the marker."""
    folder = RunFolder(home / "run")
    address = "postgresql+psycopg://me:***@db/ledger"
    mark(folder, creator=holder_gone(), ledger=address)
    with pytest.raises(SweepChanged, match=r"in the ledger postgresql\+psycopg://me:\*\*\*@db/ledger, and .* none"):
        make(home, folder)
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", "postgresql://me:word@db/ledger")
    assert creation._database(folder) == address
    refuse_what_is_no_run(folder, home / "sweep.toml")


def test_the_first_session_takes_the_marker_of_a_run_that_exists(home: Path) -> None:
    folder = RunFolder(home / "run")
    make(home, folder)
    mark(folder, creator=holder_gone())
    with pytest.raises(SweepChanged, match="the same command continues it"):
        make(home, folder)
    folder.check_out()
    stands(folder)


# What was there before


def untouched(home: Path, folder: RunFolder, words: str) -> None:
    """It is refused, and what lies there stays as it is."""
    before = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    with pytest.raises(SweepChanged, match=words):
        make(home, folder)
    after = {path.name: path.read_bytes() for path in folder.path.iterdir() if path.is_file()}
    ledger = {name for name in after if name.startswith("ledger.db")}  # looked into, so its log may be beside it
    assert {name: after[name] for name in after.keys() - ledger} == {n: before[n] for n in before.keys() - ledger}


@pytest.mark.parametrize("name", ["thesis.txt", "sweep.json.old", "trials"])
@pytest.mark.parametrize("killed", [False, True])
def test_anything_else_is_left_alone_and_named(home: Path, name: str, killed: bool) -> None:
    folder = RunFolder(home / "run")
    never_begun(folder).close()
    if killed:
        mark(folder, creator=holder_gone())
    path = folder.path / name
    path.mkdir() if name == "trials" else path.write_text("mine")
    untouched(home, folder, rf"is not empty and holds no run \(but {re.escape(name)}\); choose another folder")


@pytest.mark.parametrize("name", [".creating", "sweep.toml", "ledger.db"])
def test_a_folder_in_place_of_a_file_is_left_alone(home: Path, name: str) -> None:
    folder = RunFolder(home / "run")
    (folder.path / name).mkdir(parents=True)
    untouched(home, folder, rf"holds no run \(but {re.escape(name)}\)")


def test_a_file_in_place_of_the_folder_is_refused_in_words(home: Path) -> None:
    (home / "run").write_text("mine")
    with pytest.raises(SweepChanged, match="run is a file; a run takes a folder"):
        make(home, RunFolder(home / "run"))


@pytest.mark.parametrize("content", [SWEEP, SWEEP[:100], ""])
def test_a_copy_of_the_sweep_alone_is_what_a_creation_left(home: Path, content: str) -> None:
    """The version before this one wrote no marker. Nothing is lost, as the copy holds no more than the sweep does."""
    folder = RunFolder(home / "run")
    folder.path.mkdir()
    (folder.path / "sweep.toml").write_text(content)
    make(home, folder)
    stands(folder)
    assert (folder.path / "sweep.toml").read_text() == SWEEP


def test_a_sweep_of_somebody_s_is_left_alone(home: Path) -> None:
    """One with other words, and the very file that was given."""
    folder = RunFolder(home / "run")
    folder.path.mkdir()
    (folder.path / "sweep.toml").write_text(SWEEP + "# a thought\n")
    untouched(home, folder, r"holds no run \(but sweep.toml\)")
    (home / "sweep.toml").unlink()
    (home / "sweep.toml").symlink_to(folder.path / "sweep.toml")
    untouched(home, folder, r"holds no run \(but sweep.toml\)")


def test_the_very_file_that_was_given_is_never_deleted(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Somebody launches the copy in the folder of a killed creation. Mutant check: `_is_given` says no."""
    folder = RunFolder(home / "run")
    never_begun(folder).close()
    mark(folder, creator=holder_gone())
    mine = folder.path / "sweep.toml"
    planned = planning.make(sweeps.load(mine))
    monkeypatch.setattr(Ledger, "create", lambda *_, **__: (_ for _ in ()).throw(OSError("no space")))
    with pytest.raises(InfrastructureMissing, match="no space"):
        create(mine, planned, folder)
    assert [path.name for path in folder.path.iterdir()] == ["sweep.toml"]
    assert mine.read_text() == SWEEP


@pytest.mark.parametrize("more", ["", ".sweep.json"])
def test_a_ledger_whose_run_was_never_held_is_what_a_creation_left(home: Path, more: str) -> None:
    folder = RunFolder(home / "run")
    never_begun(folder).close()
    if more:
        (folder.path / more).write_text("{")
    make(home, folder)
    stands(folder)
    assert not (folder.path / ".sweep.json").exists()


@pytest.mark.parametrize("killed", [False, True])
@pytest.mark.parametrize("journal", [None, b"", b"\0" * 512])
def test_a_ledger_of_which_sqlite_has_written_nothing_is_what_a_creation_left(
    home: Path, killed: bool, journal: bytes | None
) -> None:
    """SQLite makes the file, syncs, and writes its first page later. A kill in between leaves no byte of it."""
    folder = RunFolder(home / "run")
    folder.path.mkdir()
    (folder.path / "sweep.toml").write_text(SWEEP)
    (folder.path / "ledger.db").touch()
    if journal is not None:
        (folder.path / "ledger.db-journal").write_bytes(journal)
    if killed:
        mark(folder, creator=holder_gone())
    make(home, folder)
    stands(folder)


@pytest.mark.soak
@pytest.mark.slow
def test_a_kill_at_any_call_of_the_system_while_the_ledger_is_made_is_survived(home: Path) -> None:
    """By strace, which ends the process at the n-th call of a kind.

    Mutant check: a ledger without a byte is refused.
    """
    strace = shutil.which("strace")
    if strace is None or subprocess.run([strace, "true"], capture_output=True, check=False).returncode:
        pytest.skip("strace is not here, or may not trace")
    folder, sizes = RunFolder(home / "run"), set()
    (home / "make.py").write_text(
        "import sys\nfrom pathlib import Path\n"
        "from test_creation import make\nfrom orchestrator.run_dir.folder import RunFolder\n"
        "make(Path(sys.argv[1]), RunFolder(Path(sys.argv[1]) / 'run'))\n"
    )
    child = [sys.executable, str(home / "make.py"), str(home)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for kind in ("fdatasync", "pwrite64"):
        for number in range(1, 7):
            traced = [strace, "-f", "-o", "/dev/null", "-e", f"trace={kind}"]
            kill = ["-e", f"inject={kind}:signal=KILL:when={number}"]
            subprocess.run([*traced, *kill, *child], env=environment, capture_output=True, check=False)
            if folder.exists:
                pytest.fail(f"{kind} {number} came after the run was made")
            if (file := folder.path / "ledger.db").exists():
                sizes.add(file.stat().st_size)
            make(home, folder)
            stands(folder)
            shutil.rmtree(folder.path)
    assert 0 in sizes
    assert max(sizes) > 0


@pytest.mark.parametrize("killed", [False, True])
def test_a_ledger_whose_run_was_held_is_left_alone(home: Path, killed: bool) -> None:
    """Its sweep.json was lost. One that was held and wrote nothing is found out too, before anything is deleted."""
    folder = RunFolder(home / "run")
    ledger = never_begun(folder)
    if killed:
        mark(folder, creator=holder_gone(), run=ledger.uuid)
    ledger.acquire(this_process(), 1.0)
    ledger.release()
    untouched(home, folder, r"its sweep.json is gone, and run .* was begun already")
    ledger.acquire(this_process(), 1.0)
    ledger.set_run(state="running")
    ledger.release()
    untouched(home, folder, r"its sweep.json is gone, and its ledger.db has the run")
    assert Ledger.runs(ledger._database.address)[0].uuid == ledger.uuid
    ledger.close()


def test_a_ledger_that_is_none_and_one_of_two_runs_are_left_alone(home: Path) -> None:
    folder = RunFolder(home / "run")
    never_begun(folder).close()
    never_begun(folder).close()
    untouched(home, folder, "its ledger.db has the run .*, ")
    for path in folder.path.glob("ledger.db*"):
        path.unlink()
    untouched_garbage = folder.path / "ledger.db"
    untouched_garbage.touch()
    (folder.path / "ledger.db-wal").write_bytes(b"rows, perhaps")
    untouched(home, folder, "is empty, and its log is not")
    (folder.path / "ledger.db-wal").unlink()
    untouched_garbage.write_bytes(b"not a database" * 100)
    untouched(home, folder, "holds a ledger that cannot be read and no run")
    assert untouched_garbage.read_bytes() == b"not a database" * 100
    (folder.path / "sweep.toml").unlink()
    untouched(home, folder, r"holds no run \(but ledger.db\)")


def test_what_a_killed_look_at_the_storage_left_is_no_obstacle(
    home: Path, bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """`launch` looks for seconds before it makes anything, so a kill falls there most often. Mutant check: DOCTOR is
    not looked for."""
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", sqlite_url(home / "ledger.db"))
    old = RunFolder(home / "old")
    for folder in (runs.at(bucket(f"{home.name}/run")), old):
        name = ".orchestrator-doctor-0a1b2c3d"
        folder.path.mkdir(parents=True, exist_ok=True)
        (folder.remote or creation._store_of(folder)).put(name, b"x")
        if folder is old:
            os.utime(folder.path / name, (1.0, 1.0))
        make(home, folder)
        folder.open().close()
    assert not list(old.path.glob(".orchestrator-doctor-*"))


# What fails


def test_ctrl_c_between_the_row_and_its_answer_leaves_nothing(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: taking away only a row whose making has returned."""
    url = sqlite_url(home / "ledger.db")
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", url)
    real = Ledger.create

    def interrupted(*arguments: Any, **keywords: Any) -> Ledger:
        real(*arguments, **keywords).close()
        raise KeyboardInterrupt

    monkeypatch.setattr(Ledger, "create", interrupted)
    with pytest.raises(KeyboardInterrupt):
        make(home, RunFolder(home / "run"))
    assert Ledger.runs(url) == []
    assert not (home / "run").exists()


def test_a_database_that_does_not_answer_is_told_before_anything_is_made(
    home: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", "postgresql://me:word@127.0.0.1:9/ledger")
    with pytest.raises(InfrastructureMissing, match="run cannot be made: ledger") as error:
        make(home, RunFolder(home / "run"))
    assert "word" not in str(error.value)
    assert not (home / "run").exists()


def test_the_killed_process_was_killed(home: Path) -> None:
    """The instrument: it counts, and says what is wrong. A creation that leaves its marker is wrong."""
    text = f"""
import sys
sys.path.insert(0, {str(SCRIPT.parent)!r})
import creations
from pathlib import Path
print(creations.forked(lambda: creations.create(Path("sweep.toml"), "run", die_at=40)))
print(creations.forked(lambda: creations.create(Path("sweep.toml"), "run", die_at=None)))
Path("run/.creating").write_text("x")
print(creations.stands(Path("sweep.toml"), "run", set())[0])
"""
    done = subprocess.run([sys.executable, "-c", text], cwd=home, capture_output=True, text=True, check=True)
    killed, made, wrong = done.stdout.splitlines()
    assert (killed, made) == (f"({int(signal.SIGKILL)}, None)", "(0, 'created')")
    assert "'.creating'" in wrong


def test_a_ledger_that_is_missing_has_no_orphan(home: Path) -> None:
    with pytest.raises(LedgerMissing):
        Ledger.runs(sqlite_url(home / "ledger.db"))
    folder = RunFolder(home / "run")
    mark(folder, creator=holder_gone())
    make(home, folder)
    stands(folder)
