"""What tells one process of a machine from every other, also from a later one of the same pid."""

from __future__ import annotations

import os
import re
import socket
from pathlib import Path

_HERE = re.compile(r"^(?P<host>\S+) pid (?P<pid>\d+) \[(?P<machine>\S+) (?P<start>\d+)\]$")


def this_process() -> str:
    """Name this process so that another on this machine can check it: host, pid, boot, pid namespace, start time."""
    return f"{socket.gethostname()} pid {os.getpid()} [{machine()} {start_of(os.getpid())}]"


def is_gone(holder: str) -> bool:
    """Return whether a holder named by `this_process` was on this machine and has ended; False when that is unknown."""
    match = _HERE.match(holder)
    if match is None or match["host"] != socket.gethostname() or match["machine"] != machine():
        return False
    pid, start = int(match["pid"]), int(match["start"])
    if start == 0:
        return False
    stat = _stat(pid)
    return not _exists(pid) if stat is None else _start(stat) != start


def machine() -> str:
    """Name this boot of this machine and this pid namespace: where a pid means the same process. `-` where unknown."""
    try:
        return (
            f"{Path('/proc/sys/kernel/random/boot_id').read_text().strip()}/{Path('/proc/self/ns/pid').stat().st_ino}"
        )
    except OSError:
        return "-"


def start_of(pid: int) -> int:
    """Return the start time of a process in clock ticks since boot; 0 if there is none or the system does not say."""
    stat = _stat(pid)
    return 0 if stat is None else _start(stat)


def _stat(pid: int) -> str | None:
    """Read what the system says of a process; None where there is none, or it is hidden from us (hidepid)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return None


def _start(stat: str) -> int:
    """Parse the start time in clock ticks since boot; 0 for a process that has ended and waits for its parent."""
    state, *fields = stat.rpartition(")")[2].split()
    return 0 if state in "ZX" else int(fields[18])


def _exists(pid: int) -> bool:
    """Return whether there is a process of this pid, also one that we may not look at."""
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it is there, and another user's
        return True
    return True
