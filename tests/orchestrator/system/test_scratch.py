"""Claims about temporary folders: whose they are, what a kill leaves, and a $TMPDIR that cannot be used."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime, timedelta
from pathlib import Path

import pytest
from mounts import read_only
from real import SWEEP, call, wait_for

from orchestrator.system import scratch
from orchestrator.system.scratch import RAY_SESSION, RAY_STARTS, ScratchMissing

HOLDER = """
import sys
from pathlib import Path
from orchestrator.system import scratch
with scratch.folder("sweep") as place:
    (place / "large").write_text("x")
    if len(sys.argv) > 2:
        scratch.expect(place, Path(sys.argv[2]))
    elif len(sys.argv) > 1:
        scratch.remember(place, Path(sys.argv[1]))
    print(place, flush=True)
    sys.stdin.readline()
"""


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """$TMPDIR, and nothing in it."""
    place = tmp_path / "temporary"
    place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    return place


@contextmanager
def holder(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], Path]]:
    """A process that holds a temporary folder, and the folder."""
    command = [sys.executable, "-c", HOLDER, *arguments]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            yield process, Path(process.stdout.readline().strip())
        finally:
            process.kill()


def killed(*arguments: str) -> Path:
    """What a process left that was killed while it held a temporary folder."""
    with holder(*arguments) as (process, place):
        process.kill()
        process.wait()
    assert (place / "large").exists()
    return place


def clear(place: Path) -> None:
    with scratch.folder("data") as made:
        assert made.parent == place
    assert not made.exists()


def test_what_a_killed_process_left_is_cleared_and_a_living_one_s_is_not(temporary: Path) -> None:
    """Mutant check: clearing by the name alone takes the living one's; not clearing leaves the dead one's."""
    left = killed()
    with holder() as (_, living):
        with scratch.folder("data") as own:
            assert own.exists()
            clear(temporary)
            assert own.exists(), "of this very process"
        assert (living / "large").exists()
        assert not left.exists()


def test_a_folder_of_another_machine_or_user_or_without_an_owner_is_left_alone(temporary: Path) -> None:
    left = killed()
    head, pid, start, machine, tail = left.name.rsplit("-", 4)
    others = [
        f"{head}-{pid}-{start}-00000000-{tail}",  # another boot, container or host
        f"{head}-{pid}-0-{machine}-{tail}",  # a system that does not say when a process began
        f"{head}-{tail}",
        "orchestrator-8f3k2j1d",
        f"x{left.name}",
    ]
    for name in others:
        (temporary / name).mkdir()
    strange = temporary / f"{left.name}1"
    strange.mkdir()
    if os.geteuid() == 0:
        os.chown(strange, 12345, 12345)
        others.append(strange.name)
    target = temporary / "target"
    target.mkdir()
    (temporary / f"{left.name}2").symlink_to(target)
    others += ["target", f"{left.name}2"]
    clear(temporary)
    assert not left.exists()
    assert {path.name for path in temporary.iterdir()} >= set(others)


def test_a_pid_that_is_another_process_s_now_does_not_keep_a_folder(temporary: Path) -> None:
    """Mutant check: asking only whether the pid lives keeps it for ever."""
    left = killed()
    head, _, start, machine, tail = left.name.rsplit("-", 4)
    reused = left.rename(temporary / f"{head}-{os.getpid()}-{start}1-{machine}-{tail}")
    clear(temporary)
    assert not reused.exists()


def test_many_processes_clear_the_same_leftovers_at_once(temporary: Path) -> None:
    for _ in range(3):
        killed()
    code = (
        "from orchestrator.system import scratch\nfor _ in range(20):\n"
        "  with scratch.folder('data') as f: (f / 'x').touch()"
    )
    several = [subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.PIPE, text=True) for _ in range(3)]
    for process in several:
        _, said = process.communicate(timeout=60)
        assert (process.returncode, said) == (0, "")
    assert list(temporary.iterdir()) == []


def test_a_folder_within_another_is_hidden_and_cleared_there(tmp_path: Path) -> None:
    with scratch.folder("report", within=tmp_path) as made:
        assert made.parent == tmp_path
        assert made.name.startswith(".orchestrator-report-")
        left = tmp_path / made.name.replace(f"-{os.getpid()}-", "-1-")
        left.mkdir()
    with scratch.folder("report", within=tmp_path):
        assert not left.exists()


# Ray's session


def session_of(place: Path, name: str = "session_2026-11-28_17-00-00_000001_42") -> Path:
    made = place / name
    (made / "logs").mkdir(parents=True)
    return made


def test_the_ray_session_of_a_killed_driver_goes_with_its_folder(temporary: Path) -> None:
    session = session_of(temporary / "ray")
    other = session_of(temporary / "ray", "session_2026-11-28_17-00-00_000001_43")
    left = killed(str(session))
    clear(temporary)
    assert not left.exists()
    assert not session.exists()
    assert other.exists()


def test_the_ray_session_of_a_living_driver_stays(temporary: Path) -> None:
    session = session_of(temporary / "ray")
    with holder(str(session)):
        clear(temporary)
        assert session.exists()


def begun(place: Path, pid: int | str, later_s: float = 1.0, of: str = "session_") -> Path:
    """A session as Ray names it, begun so long after now."""
    when = datetime.now() + timedelta(seconds=later_s)  # noqa: DTZ005 - Ray's is local
    return session_of(place, f"{of}{when:%Y-%m-%d_%H-%M-%S_%f}_{pid}")


def test_the_session_of_a_driver_killed_while_ray_starts_goes_too(temporary: Path) -> None:
    """Found by the pid in its name, near the time of the note; no other goes. Mutant check: a note only after Ray has
    started leaves it for ever."""
    left = killed("starting", str(temporary / "ray"))
    pid = int(left.name.split("-")[2])
    session = begun(temporary / "ray", pid)
    others = [
        begun(temporary / "ray", pid + 1),
        begun(temporary / "ray", f"1{pid}"),
        begun(temporary / "ray", pid, -3600.0),
        begun(temporary / "ray", pid, 3600.0),
        begun(temporary / "ray", pid, of="session-"),
        begun(temporary / "home", pid),
        session_of(temporary / "ray", f"session_yesterday_{pid}"),
    ]
    clear(temporary)
    assert not session.exists()
    assert not left.exists()
    assert all(other.exists() for other in others)


def test_while_a_pid_is_another_process_s_no_session_of_it_is_deleted(temporary: Path) -> None:
    """It may be starting Ray. Mutant check: deleting it whoever has the pid."""
    left = killed("starting", str(temporary / "ray"))
    parts = left.name.split("-")
    with subprocess.Popen(["sleep", "99"]) as other:
        parts[2] = str(other.pid)
        reused = left.rename(left.with_name("-".join(parts)))
        session = begun(temporary / "ray", other.pid)
        clear(temporary)
        assert session.exists()
        assert reused.exists()
        other.kill()
        other.wait()
    clear(temporary)
    assert not session.exists()
    assert not reused.exists()


@pytest.mark.parametrize("content", [b"", b"\xff\x00garbage", b"x" * 10_000, b"/", b"\x00"])
def test_garbage_in_place_of_ray_s_folder_is_passed_over(temporary: Path, content: bytes) -> None:
    left = killed()
    (left / RAY_STARTS).write_bytes(content)
    clear(temporary)
    assert not left.exists()


STARTS = """
import sys, os, threading
from pathlib import Path
from orchestrator.session import cluster
from orchestrator.system import scratch
home, before = cluster.home(), set(cluster.home().glob("session_*")) if cluster.home().is_dir() else set()
def tell():
    while not (new := set(home.glob(f"session_*_{os.getpid()}")) - before):
        pass
    print(*new, flush=True)
threading.Thread(target=tell, daemon=True).start()
with scratch.folder("sweep") as place:
    scratch.expect(place, home)
    with cluster.session(cpus=1):
        sys.stdin.readline()
"""


@pytest.mark.slow
def test_a_real_driver_killed_while_ray_starts_leaves_nothing() -> None:
    """In Ray's own folder, for one of a test is too long a path for its sockets."""
    command = [sys.executable, "-c", STARTS]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        session = Path(process.stdout.readline().strip())
        assert session.is_dir()
        process.kill()
    place = scratch.check()

    def gone() -> bool:
        scratch.clear(place)
        return not session.exists()

    wait_for(gone, seconds=60)
    assert not list(place.glob(f"orchestrator-sweep-{process.pid}-*"))


@pytest.mark.parametrize("where", ["home/session_x", "ray/logs", "ray/session_x/../../kept", "ray", "/"])
def test_nothing_but_a_session_in_a_folder_of_ray_s_is_deleted(temporary: Path, where: str) -> None:
    """Mutant check: deleting whatever the file names deletes a person's files."""
    for name in ("home/session_x", "ray/session_x", "ray/logs", "kept"):
        (temporary / name).mkdir(parents=True)
    left = killed(str(temporary / where))
    clear(temporary)
    assert not left.exists()
    for name in ("home/session_x", "ray/session_x", "ray/logs", "kept"):
        assert (temporary / name).exists()


def test_a_link_in_place_of_a_session_is_not_followed(temporary: Path) -> None:
    precious = temporary / "precious"
    precious.mkdir()
    (temporary / "ray").mkdir()
    (temporary / "ray" / "session_x").symlink_to(precious)
    killed(str(temporary / "ray" / "session_x"))
    clear(temporary)
    assert precious.exists()


@pytest.mark.parametrize("content", [b"", b"\xff\x00garbage", b"x" * 10_000])
def test_garbage_in_place_of_the_session_s_name_is_passed_over(temporary: Path, content: bytes) -> None:
    left = killed()
    (left / RAY_SESSION).write_bytes(content)
    clear(temporary)
    assert not left.exists()


def test_a_session_whose_head_still_runs_is_cleared_later(temporary: Path) -> None:
    """A raylet outlives its driver by a moment. Mutant check: deleting at once takes its files from under it."""
    session = session_of(temporary / "ray")
    left = killed(str(session))
    name = temporary / "raylet"
    name.symlink_to(Path(sys.executable).resolve())
    command = [str(name), "-c", "print(1, flush=True); input()", f"--session={session}"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as head:
        assert head.stdout is not None
        head.stdout.readline()
        clear(temporary)
        assert session.exists()
        assert left.exists()
        head.kill()
    clear(temporary)
    assert not session.exists()
    assert not left.exists()


# A $TMPDIR that cannot be used


def missing(place: Path) -> None:
    """Nothing is there."""


def a_file(place: Path) -> None:
    place.write_text("x")


def below_a_file(place: Path) -> None:
    place.parent.rmdir()
    place.parent.write_text("x")


@pytest.mark.parametrize("make", [missing, a_file, below_a_file])
def test_a_tmpdir_that_cannot_be_used_is_named_with_a_remedy(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, make: Callable[[Path], None]
) -> None:
    """Mutant check: Python's own choice quietly writes to another folder."""
    place = tmp_path / "below" / "temporary"
    place.parent.mkdir()
    make(place)
    monkeypatch.setenv("TMPDIR", str(place))
    with pytest.raises(ScratchMissing, match=rf"^TMPDIR={place} cannot be used \(.+\); .*: export TMPDIR=/") as refusal:
        scratch.folder("data").__enter__()
    assert str(pickle.loads(pickle.dumps(refusal.value))) == str(refusal.value)


def test_a_tmpdir_that_cannot_be_written_is_named(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with read_only(temporary), pytest.raises(ScratchMissing, match="Read-only file system"):
        scratch.check()
    monkeypatch.setenv("TMPDIR", "")
    assert scratch.check().is_dir(), "one that is empty is none"


def test_the_command_line_says_so_and_makes_nothing(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    said = call("launch", "sweep.toml", "--offline", cwd=tmp_path, code=4, env={"TMPDIR": str(tmp_path / "none")})
    assert said.startswith(f"error: TMPDIR={tmp_path / 'none'} cannot be used (there is no such folder)")
    assert "export TMPDIR=" in said
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]
