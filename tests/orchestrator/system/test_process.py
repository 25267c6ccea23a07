"""Claims about the names of processes."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from orchestrator.system.process import is_gone, machine, start_of, this_process


def test_only_a_process_of_this_machine_can_be_known_to_have_ended() -> None:
    """Mutant check: not comparing the boot id and the start time fails this."""
    mine = this_process()
    assert not is_gone(mine)
    assert not is_gone("somebody")
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    dead = mine.replace(f" pid {os.getpid()} ", f" pid {ended.pid} ")
    assert is_gone(dead)
    assert not is_gone("elsewhere" + dead), "another host"
    assert not is_gone(dead.replace("[", "[0")), "another boot, or another container"
    assert is_gone(mine.replace("]", "1]")), "the pid is another process's now"


def test_a_process_that_is_hidden_from_us_lives() -> None:
    """/proc mounted with hidepid=2 shows nobody the processes of others. Mutant check: what has no entry has ended."""
    mine = this_process()
    text = (
        "import os, sys; from orchestrator.system.process import is_gone, start_of\n"
        "assert start_of(int(sys.argv[2])) == 0, 'it is to be hidden'\n"
        "print(is_gone(sys.argv[1]), is_gone(sys.argv[1].replace(f' pid {sys.argv[2]} ', f' pid {sys.argv[3]} ')))"
    )
    with subprocess.Popen(["true"]) as ended:
        ended.wait()
    inner = [sys.executable, "-c", text, mine, str(os.getpid()), str(ended.pid)]
    hide = 'mount -t proc -o hidepid=2 proc /proc && exec setpriv --reuid 65534 --regid 65534 --clear-groups "$@"'
    command = ["unshare", "--mount", "sh", "-c", hide, "sh"]
    able = subprocess.run([*command, "true"], capture_output=True, text=True, check=False)
    if able.returncode:
        pytest.skip(f"/proc cannot be mounted with hidepid here: {able.stderr.strip()}")
    done = subprocess.run([*command, *inner], capture_output=True, text=True, check=False)
    assert done.stdout.split() == ["False", "True"], done.stderr


def test_what_ended_and_waits_for_its_parent_is_gone_and_no_pid_is_too_large(monkeypatch: pytest.MonkeyPatch) -> None:
    mine = this_process()

    def named(pid: int) -> str:
        return mine.replace(f" pid {os.getpid()} ", f" pid {pid} ")

    with subprocess.Popen(["true"]) as zombie:
        os.waitid(os.P_PID, zombie.pid, os.WEXITED | os.WNOWAIT)
        assert start_of(zombie.pid) == 0
        assert is_gone(named(zombie.pid))
    assert is_gone(named(10**30))
    monkeypatch.setattr("orchestrator.system.process._stat", lambda _: None)
    assert not is_gone(mine), "it is there, whoever hides it"
    assert not is_gone(named(1))
    assert is_gone(named(zombie.pid))
    assert machine() in mine
