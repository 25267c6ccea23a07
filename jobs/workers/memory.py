"""What Linux says of memory where a process runs: whom it has ended for lack of it, and how near the limit is.

A process that was ended for its memory looks like one that somebody killed; counters, before and after, show which it
was. The counter of the process's own control group (cgroup) decides wherever there is one, as the machine's also
counts what befell others. Files only, of the machine that this runs on; on other systems nothing is known.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

FULL = 0.9
"""Share of its limit from which on a cgroup that cannot be asked any more counts as one that had run out."""

UNLIMITED = 2**60
"""cgroup v1 has a number for no limit, a little below 2**63."""

MB = 2**20


@dataclass(frozen=True)
class Reading:
    """The memory of a process's cgroup at one moment. What is None or missing is not known."""

    counts: Mapping[str, int] = field(default_factory=dict)
    """By file: how many processes were ended for lack of memory."""

    own: str | None = None
    """The file that counts those of the process's own cgroup, or of the nearest around it that counts."""

    around: tuple[str, ...] = ()
    """Files that count those of a cgroup around it and of all inside, the nearest first. cgroup v1 has none."""

    beside: tuple[str, ...] = ()
    """Such files of the outermost cgroups, for a process that is in none of them."""

    machine: str | None = None
    """The file that counts those of the whole machine."""

    used: int | None = None
    """Bytes in the cgroup with the tightest limit, without files' contents that the system would rather drop."""

    peak: int | None = None
    """The most that cgroup has ever held, with such contents."""

    limit: int | None = None
    """What it may hold."""


def read(process: int | str = "self", root: Path = Path("/")) -> Reading:
    """Read the memory of a living process of this machine, with /proc and /sys below `root`."""
    machine = str(root / "proc/vmstat")
    counts = {machine: count} if (count := _count(machine)) is not None else {}
    chain = _chain(root / "proc" / str(process), root)
    own: str | None = None
    around: list[str] = []
    for folder in chain:
        for name in ("memory.events.local", "memory.events", "memory.oom_control"):
            path = str(folder / name)
            if (count := _count(path)) is None:
                continue
            if own is None:
                own, counts[path] = path, count
            elif name == "memory.events" and folder != Path(own).parent:
                counts[path] = count
                around.append(path)
    beside = []
    if own is None and chain:
        for events in sorted(chain[-1].glob("*/memory.events")):
            if (count := _count(str(events))) is not None:
                counts[str(events)] = count
                beside.append(str(events))
    used, peak, limit = _fullest(chain)
    known = machine if machine in counts else None
    return Reading(counts, own, tuple(around), tuple(beside), known, used, peak, limit)


def recount(before: Reading) -> dict[str, int]:
    """Read the counts of `before` as they are now, without those that are gone. Called on the machine of `before`."""
    return {path: count for path in before.counts if (count := _count(path)) is not None}


def verdict(before: Reading, now: Mapping[str, int] | None) -> str | None:
    """Judge whether a process that has vanished was ended for lack of memory, from its newest reading and what
    `recount` says now (None: its machine did not answer). Returns None if it was not, else what is known of its
    limit."""

    def risen(path: str | None) -> int:
        return now.get(path, 0) - before.counts[path] if now is not None and path is not None else 0

    around = [path for path in before.around if now is not None and path in now]
    note = ""
    if now is None:
        ended = _is_full(before.used, before.limit)
        note = f", at least {FULL:.0%} of it in use before; its node did not answer"
    elif before.own in now:
        ended = risen(before.own) > 0
    elif before.machine in now and risen(before.machine) < 1:
        ended = False
    elif before.own is None:
        others = sum(max(0, risen(path)) for path in before.beside if path in now)
        ended = before.machine in now and risen(before.machine) > others
    elif around:
        ended = risen(around[0]) > 0
    else:
        ended = _is_full(before.peak, before.limit)
        note = f", at least {FULL:.0%} of it reached before; the cgroup is gone"
    limit = "" if before.limit is None else f"limit of its cgroup {before.limit / MB:,.0f} MB"
    return limit + note if ended else None


def _chain(process: Path, root: Path) -> list[Path]:
    """List the folders of the process's memory cgroup and of those around it, as far as they can be seen from here."""
    try:
        lines = (process / "cgroup").read_text().splitlines()
        mounts = (process / "mountinfo").read_text().splitlines()
    except OSError:
        return []
    paths = dict(line.split(":", 2)[1:] for line in lines if line.count(":") >= 2)
    for controllers, path in sorted(paths.items(), reverse=True):  # v1's first: a hybrid v2 has no memory
        if controllers and "memory" not in controllers.split(","):
            continue
        for inside, mountpoint in _mounts(mounts, "cgroup" if controllers else "cgroup2"):
            top = root / mountpoint.lstrip("/")
            folder = top.joinpath(*_below(path, inside))
            while folder != top and not folder.is_dir():
                folder = folder.parent
            if folder.is_dir():
                return [folder, *folder.parents][: len(folder.relative_to(top).parts) + 1]
    return []


def _mounts(lines: list[str], kind: str) -> Iterator[tuple[str, str]]:
    """Yield for each mount of cgroups with memory the cgroup that is mounted, and where."""
    for line in lines:
        ahead, _, behind = line.partition(" - ")
        fields, (fstype, _, options) = ahead.split(), [*behind.split(), "", "", ""][:3]
        if fstype == kind and (kind == "cgroup2" or "memory" in options.split(",")):
            unescaped = (re.sub(r"\\([0-7]{3})", lambda code: chr(int(code[1], 8)), word) for word in fields[3:5])
            yield tuple(unescaped)  # type: ignore[misc]


def _below(path: str, inside: str) -> tuple[str, ...]:
    """Find the names that lead from a mounted cgroup to that at `path`; none if that is not below, as in containers."""
    names, mounted = PurePosixPath(path).parts[1:], PurePosixPath(inside).parts[1:]
    return names[len(mounted) :] if names[: len(mounted)] == mounted and ".." not in names else ()


def _fullest(chain: list[Path]) -> tuple[int | None, int | None, int | None]:
    """Read the bytes in use, the peak and the limit of the cgroup with the tightest limit."""
    limited: list[tuple[int, Path]] = []
    for folder in chain:
        limits = [_number(folder / "memory.max"), _number(folder / "memory.limit_in_bytes")]
        limits.append(_stat(folder, "hierarchical_memory_limit"))  # v1: also of those that cannot be seen from here
        limited.extend((limit, folder) for limit in limits if limit is not None and limit < UNLIMITED)
    if not limited:
        return None, None, None
    limit, folder = min(limited, key=lambda pair: pair[0])
    held = _number(folder / "memory.current", folder / "memory.usage_in_bytes")
    droppable = _stat(folder, "total_inactive_file") or _stat(folder, "inactive_file") or 0
    used = None if held is None else max(0, held - droppable)
    return used, _number(folder / "memory.peak", folder / "memory.max_usage_in_bytes"), limit


def _is_full(used: int | None, limit: int | None) -> bool:
    return used is not None and limit is not None and used >= FULL * limit


def _number(*paths: Path) -> int | None:
    """Read the number in the first of these files that has one; `max` is none."""
    for path in paths:
        try:
            return int(path.read_text())
        except (OSError, ValueError):
            continue
    return None


def _stat(folder: Path, name: str) -> int | None:
    return _labelled(folder / "memory.stat", name)


def _count(path: str) -> int | None:
    return _labelled(Path(path), "oom_kill")


def _labelled(path: Path, name: str) -> int | None:
    """Read the number behind `name` in a file of lines `name number`."""
    try:
        match = re.search(rf"^{name} (\d+)$", path.read_text(), re.MULTILINE)
    except (OSError, ValueError):
        return None
    return int(match[1]) if match else None
