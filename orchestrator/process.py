"""What tells one process of a machine from every other, also from a later one of the same pid."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

_HERE = re.compile(r"^(?P<host>\S+) pid (?P<pid>\d+) \[(?P<machine>\S+) (?P<start>\d+)\]$")


def this_process() -> str:
    """A holder's name that another process of this machine can check: host, pid, boot, pid namespace, start time."""
    return f"{socket.gethostname()} pid {os.getpid()} [{machine()} {start_of(os.getpid())}]"


def is_gone(holder: str) -> bool:
    """Whether a holder named by `this_process` was on this machine and has ended. False when that cannot be known."""
    match = _HERE.match(holder)
    if match is None or match["host"] != socket.gethostname() or match["machine"] != machine():
        return False
    return match["start"] != "0" and start_of(int(match["pid"])) != int(match["start"])


def machine() -> str:
    """This boot of this machine and this pid namespace: where a pid means the same process. `-` where unknown."""
    try:
        return (
            f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').stat().st_ino}"
        )
    except OSError:
        return "-"


def start_of(pid: int) -> int:
    """Start time of a process in clock ticks since boot, or 0 when there is none or the system does not say."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return 0
    state, *fields = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(fields[18])
