"""What becomes of a terminal makes no difference: not to who prints, not to the exit code, not to the log.

Real processes whose standard streams are real pipes, devices and pseudo-terminals.
"""

from __future__ import annotations

import contextlib
import fcntl
import io
import logging
import os
import pty
import signal
import subprocess
import sys
import termios
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from real import wait_for

from orchestrator.system.terminal import ROOM, Journal, Terminal, of_descriptor, steady

LINES = 40
"""What the program below prints, and what it logs."""

PROGRAM = f"""
import sys, time
from pathlib import Path
from orchestrator.system import terminal

terminal.survive()
journal = terminal.Journal(Path("driver.log"))
ledger = open("ledger.db", "w")
terminal.hangups.tell(journal.line)
sys.stderr.write("an error in words\\n")
for number in range({LINES}):
    print(f"line {{number}} äöü 日本 \\udc80")
    journal.line(f"line {{number}}")
    if number == 2:
        Path("ready").touch()
        while not Path("go").exists():
            time.sleep(0.01)
    if number == 3:
        with journal.catching():
            print("noise")
            import os
            os.system("echo noise of a child; echo noise on fd 2 >&2")
assert ledger.fileno() > 2
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the program runs, and may go on past its third line."""
    (tmp_path / "go").touch()
    return tmp_path


@contextlib.contextmanager
def program(folder: Path, shell: str = "", **options: object) -> Iterator[subprocess.Popen[bytes]]:
    """The program, started by a shell that appends `shell` to its command."""
    command = f'{"" if ";" in shell else "exec "}"{sys.executable}" -c "$PROGRAM" {shell}'
    environment = os.environ | {"PROGRAM": PROGRAM, "PYTHONPATH": str(Path(__file__).parents[3])}
    process = subprocess.Popen(["bash", "-c", command], cwd=folder, env=environment, **options)  # type: ignore[call-overload]
    try:
        yield process
    finally:
        process.kill()
        process.wait()


def logged(folder: Path) -> list[str]:
    """The lines of driver.log without their times."""
    return [line.partition("  ")[2] or line for line in (folder / "driver.log").read_text().splitlines()]


def complete(folder: Path) -> None:
    """Everything is in the log, noise among it, and nothing is in a file that was opened later."""
    lines = logged(folder)
    assert [line for line in lines if line.startswith("line")] == [f"line {number}" for number in range(LINES)]
    assert sorted(line for line in lines if "noise" in line) == ["noise", "noise of a child", "noise on fd 2"]
    assert (folder / "ledger.db").read_bytes() == b""


@pytest.mark.parametrize(
    "shell",
    [
        *(">&-", ">&- 2>&-", "<&- >&- 2>&-", "<&-", "2>&-"),
        *("> /dev/full", "> /dev/full 2> /dev/full", ">&- 2> /dev/full", "2>&1 < /dev/null > /dev/full"),
    ],
)
def test_a_stream_that_is_closed_or_full_changes_nothing(folder: Path, shell: str) -> None:
    """Mutant check: without `fill_descriptors` the ledger gets what is printed; without `steady` the exit code is 120
    on /dev/full."""
    with program(folder, shell, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        out, error = process.communicate(timeout=60)
        assert process.returncode == 0, error.decode()
    complete(folder)
    if "1" not in shell and ">" not in shell:
        assert out.decode().count("line ") == LINES
    if ">" not in shell:
        assert error == b"an error in words\n"


def test_what_is_printed_in_pieces_is_one_line_of_the_log_whoever_prints_meanwhile(tmp_path: Path) -> None:
    """`print` itself hands over a text and then its end. Seen: `noisenoise of a child`. And a secret is one in pieces
    too. Mutant check: writing each piece as it comes."""
    journal = Journal(tmp_path / "driver.log")
    with journal.catching():
        for piece in ("postgresql://me:", "w0rd@host/db", " is away\nand"):
            sys.stdout.write(piece)
            time.sleep(0.05)  # a thread writes
            subprocess.run(["sh", "-c", "echo noise of a child"], check=True)
        sys.stdout.write(" so on")
    lines = (tmp_path / "driver.log").read_text().splitlines()
    assert lines[:2] == ["noise of a child"] * 2
    assert sorted(lines[2:]) == ["and so on", "noise of a child", "postgresql://me:***@host/db is away"]


def test_what_has_no_end_is_not_kept_for_ever(tmp_path: Path) -> None:
    """As the bars of libraries. Mutant check: waiting for an end, whatever comes."""
    path = tmp_path / "driver.log"
    with Journal(path).catching():
        for number in range(2000):
            sys.stdout.write(f"\r{number} of many")
        wait_for(lambda: path.stat().st_size > 10_000, seconds=10)
    assert path.read_bytes().decode() == "".join(f"\r{number} of many" for number in range(2000)) + "\n"


@pytest.mark.parametrize("reads", [0, 1, 3])
def test_a_reader_that_leaves_changes_nothing(folder: Path, reads: int) -> None:
    """As `| head -1`, or `| less` that is left. Mutant check: writing to sys.stdout directly ends with 120 or 1."""
    (folder / "go").unlink()
    with program(folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, bufsize=0) as process:
        assert process.stdout is not None
        lines = [process.stdout.readline() for _ in range(reads)]
        process.stdout.close()
        (folder / "go").touch()
        assert process.wait(60) == 0
    complete(folder)
    assert all(lines)


@pytest.mark.soak
def test_a_reader_that_reads_nothing_holds_nobody_up(folder: Path) -> None:
    """A pipe that is full from the start, as of `| less` that nobody scrolls, keeps the last lines for some seconds
    and no longer. Mutant check: writing without a thread waits for ever."""
    receiver, sender = os.pipe()
    os.set_blocking(sender, False)
    with contextlib.suppress(BlockingIOError):
        while True:
            os.write(sender, b"x" * 4096)
    os.set_blocking(sender, True)
    with program(folder, stdout=sender, stderr=sender) as process:
        began = time.monotonic()
        wait_for(lambda: (folder / "driver.log").exists() and f"line {LINES - 1}" in logged(folder), seconds=60)
        assert process.wait(60) == 0
        assert time.monotonic() - began < 50
    complete(folder)
    os.close(receiver)
    os.close(sender)


def test_a_pipe_that_somebody_made_non_blocking_gets_every_line(folder: Path) -> None:
    """Whoever shares a pipe may do so, and then a full one is an error. Mutant check: giving up on EAGAIN fails
    this."""
    receiver, sender = os.pipe()
    fcntl.fcntl(sender, fcntl.F_SETPIPE_SZ, 4096)
    os.set_blocking(sender, False)
    os.write(sender, b"x" * 4090)
    with program(folder, stdout=sender, stderr=subprocess.DEVNULL) as process:
        os.close(sender)
        wait_for((folder / "driver.log").exists, seconds=60)
        time.sleep(0.3)
        with os.fdopen(receiver, "rb") as file:
            text = file.read().decode()
        assert process.wait(60) == 0
    assert [line.split()[1] for line in text.removeprefix("x" * 4090).splitlines()] == [str(n) for n in range(LINES)]


@pytest.mark.parametrize("leader", [True, False], ids=["as a session of its own", "as a job of a shell"])
def test_a_terminal_that_hangs_up_changes_nothing_and_the_log_has_it(folder: Path, leader: bool) -> None:
    """An ssh connection that drops: SIGHUP, then errors. Mutant check: without `hangups` both die of the signal."""
    (folder / "go").unlink()
    master, slave = pty.openpty()

    def own() -> None:
        os.setsid()
        fcntl.ioctl(0, termios.TIOCSCTTY, 0)

    shell = "" if leader else "; true"  # then the shell is the leader, and dies of the signal
    with program(folder, shell, stdin=slave, stdout=slave, stderr=slave, preexec_fn=own) as process:
        os.close(slave)
        wait_for((folder / "ready").exists, seconds=60)
        seen = os.read(master, 4096).decode()
        os.close(master)
        time.sleep(0.2)
        (folder / "go").touch()
        if leader:
            assert process.wait(60) == 0
        wait_for(lambda: f"line {LINES - 1}" in logged(folder), seconds=60)
        wait_for(lambda: len([line for line in logged(folder) if "noise" in line]) == 3, seconds=60)
    assert "line 0 äöü 日本" in seen
    complete(folder)
    if leader:
        assert any("SIGHUP" in line and "goes on" in line for line in logged(folder))


def test_a_hangup_by_hand_is_survived_by_the_process_and_what_it_starts_and_nohup_stays_deaf(folder: Path) -> None:
    """Mutant check: a handler in place of the blocked signal lets the child die."""
    script = (
        "import subprocess, sys; from pathlib import Path; from orchestrator.system import terminal\n"
        "terminal.survive()\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; print(1, flush=True); time.sleep(60)'],"
        " stdout=subprocess.PIPE)\n"
        "child.stdout.readline(); print('ready', flush=True); sys.stdin.readline(); sys.stdin.readline()\n"
        "log = terminal.Journal(Path('driver.log')); terminal.hangups.tell(log.line)\n"
        "sys.exit(7 if child.poll() is None else 1)"
    )
    for prefix, noted in ((), 2), (("nohup",), 0):
        process = subprocess.Popen(
            [*prefix, sys.executable, "-c", script],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            start_new_session=True,
        )
        assert process.stdout is not None
        assert process.stdin is not None
        process.stdout.readline()
        for _ in range(2):
            os.killpg(process.pid, signal.SIGHUP)
            time.sleep(0.2)
            process.stdin.write(b"\n")
            process.stdin.flush()
        assert process.wait(30) == 7
        os.killpg(process.pid, signal.SIGKILL)
        process.stdout.close()
        process.stdin.close()
        assert sum("SIGHUP" in line for line in logged(folder)) == noted
        (folder / "driver.log").unlink()


# One stream


@pytest.fixture
def pipe() -> Iterator[tuple[int, Terminal]]:
    """The end to read from, and a terminal on the other."""
    receiver, sender = os.pipe()
    yield receiver, of_descriptor(sender, "ascii")
    with contextlib.suppress(OSError):
        os.close(receiver)


def test_text_that_the_terminal_has_no_letters_for_is_escaped(pipe: tuple[int, Terminal]) -> None:
    receiver, terminal = pipe
    terminal.write("größer \udc80\n")
    assert terminal.settle()
    assert os.read(receiver, 100) == b"gr\\xf6\\xdfer \\udc80\n"


def test_what_a_stalled_terminal_has_no_room_for_is_left_out_and_said(pipe: tuple[int, Terminal]) -> None:
    """Memory stays bounded, and what was kept arrives in order when it is read on. Mutant check: keeping all fails
    this."""
    receiver, terminal = pipe
    line = "x" * 999 + "\n"
    for _ in range(2 * ROOM // len(line)):
        terminal.write(line)
    assert sum(map(len, terminal._pending)) <= ROOM
    began = time.monotonic()
    assert not terminal.settle(0.2)
    assert not terminal.settle(60), "it is not waited for again"
    assert time.monotonic() - began < 5
    texts: list[str] = []

    def read() -> None:
        with os.fdopen(receiver, closefd=False) as file:
            while not texts or "left out" not in texts[-1]:
                texts.append(file.readline())

    reader = threading.Thread(target=read)
    reader.start()
    reader.join(30)
    assert set(texts[:-1]) == {line}
    left_out = int(texts[-1].split()[0].strip("["))
    assert len(texts) - 1 + left_out == 2 * ROOM // len(line)
    terminal.write("on\n")
    assert terminal.settle(), "it takes something again"


def test_a_signal_handler_may_write_while_the_main_thread_does(pipe: tuple[int, Terminal]) -> None:
    """Mutant check: a lock that its own thread waits for hangs here."""
    receiver, terminal = pipe

    def read() -> None:
        while not os.read(receiver, 65536).endswith(b"end\n"):
            pass

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    heard: list[int] = []

    def handler(number: int, _frame: object) -> None:
        heard.append(number)
        terminal.write("signal\n")
        terminal.settle(0.01)

    before = signal.signal(signal.SIGALRM, handler)
    signal.setitimer(signal.ITIMER_REAL, 0.0005, 0.0005)
    try:
        until = time.monotonic() + 1
        while time.monotonic() < until:
            terminal.write("line\n")
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    terminal.write("end\n")
    assert terminal.settle()
    reader.join(30)
    assert not reader.is_alive(), "it would read from a descriptor that another test opens"
    assert len(heard) > 20


def test_streams_in_memory_and_none_at_all_are_taken_too() -> None:
    memory = io.StringIO()
    steady(memory).write("here")
    assert memory.getvalue() == "here"
    memory.close()
    for stream in (memory, None):
        nothing = steady(stream)
        nothing.write("lost")
        assert nothing.settle()
        assert nothing.lost
    assert steady(nothing) is nothing  # type: ignore[arg-type]


@pytest.mark.parametrize("obstacle", ["folder", "missing"])
def test_a_log_that_cannot_be_written_is_named_and_stops_nothing(tmp_path: Path, obstacle: str) -> None:
    path = tmp_path / ("driver.log" if obstacle == "folder" else "gone/driver.log")
    if obstacle == "folder":
        path.mkdir()
    journal = Journal(path)
    assert journal.fault is not None
    assert str(path) in journal.fault
    journal.line("x")
    with journal.catching():
        sys.stdout.write("noise")


def test_what_a_library_says_in_python_has_no_secret_in_the_log(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", "w0rd-of-mine")
    journal = Journal(tmp_path / "driver.log")
    with journal.catching():
        sys.stderr.write("printed: w0rd-of-mine, ledger: postgresql://me:w0rd@h/db\n")
        handler = logging.StreamHandler()
        handler.emit(
            logging.makeLogRecord({"msg": "Retrying http://me:w0rd@h:5000/api of %s", "args": ("w0rd-of-mine",)})
        )
        sys.stdout.writelines(["a w0rd-of-mine\n", "plain\n"])
    said = (tmp_path / "driver.log").read_text()
    assert "w0rd" not in said
    assert said.count("***") == 5
    assert said.endswith("a ***\nplain\n")


PRINTS_BY_C = """
import os, sys
from orchestrator.system.terminal import caught
try:
    with caught() as found:
        os.write(2, b"raw\\n")
        os.system("echo child")
        raise KeyError("inside")
except KeyError:
    print("after", repr(found.text))
"""


def test_what_a_library_prints_by_c_is_kept_and_the_terminal_is_as_it_was() -> None:
    """Also where what was done meanwhile fails. Mutant check: by Python's streams alone."""
    done = subprocess.run([sys.executable, "-c", PRINTS_BY_C], capture_output=True, text=True, check=True, timeout=30)
    assert (done.stdout, done.stderr) == ("after 'raw\\nchild'\n", "")
