"""Claims about the names of processes."""

from __future__ import annotations

import os
import subprocess

from orchestrator.process import is_gone, this_process


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
