"""Who was killed because memory ran out: on written-out trees of every kind of cgroup, and by the real kernel."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
from cgroups import limited

from jobs.workers.memory import MB, Reading, read, recount, verdict

V1_MOUNT = "35 31 0:32 {inside} {at} rw,relatime - cgroup cgroup rw,memory"
V2_MOUNT = "41 31 0:38 {inside} {at} rw,nosuid - cgroup2 cgroup2 rw,nsdelegate"
OTHER_V1 = "32 31 0:29 / /sys/fs/cgroup/cpu rw,relatime - cgroup cgroup rw,cpu"
UNLIMITED = "9223372036854771712"


class Machine:
    """A /proc and a /sys in a folder, with one process."""

    def __init__(self, root: Path, cgroup: str, *mounts: str, machine_kills: int = 0) -> None:
        self.root = root
        self.put("proc/7/cgroup", cgroup)
        self.put("proc/7/mountinfo", "\n".join(["23 1 0:21 / /proc rw - proc proc rw", OTHER_V1, *mounts]) + "\n")
        self.put("proc/vmstat", f"pgfault 12\noom_kill {machine_kills}\nthp_migration_success 0\n")

    def put(self, path: str, text: str) -> None:
        file = self.root / path
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)

    def v1(self, path: str, *, kills: int = 0, limit: str = UNLIMITED, used: int = 0, peak: int = 0) -> None:
        self.put(f"{path}/memory.oom_control", f"oom_kill_disable 0\nunder_oom 0\noom_kill {kills}\n")
        self.put(f"{path}/memory.limit_in_bytes", f"{limit}\n")
        self.put(f"{path}/memory.usage_in_bytes", f"{used}\n")
        self.put(f"{path}/memory.max_usage_in_bytes", f"{peak}\n")
        self.put(f"{path}/memory.stat", f"inactive_file 4096\nhierarchical_memory_limit {limit}\n")

    def v2(self, path: str, *, kills: int = 0, inside: int = 0, limit: str = "max", used: int = 0) -> None:
        """kills: here; inside: in cgroups below."""
        self.put(f"{path}/memory.events", f"low 0\nhigh 0\nmax 9\noom 1\noom_kill {kills + inside}\noom_group_kill 5\n")
        self.put(f"{path}/memory.events.local", f"low 0\nmax 9\noom 1\noom_kill {kills}\noom_group_kill 5\n")
        self.put(f"{path}/memory.max", f"{limit}\n")
        self.put(f"{path}/memory.current", f"{used}\n")
        self.put(f"{path}/memory.peak", f"{used}\n")

    def kills(self, count: int) -> None:
        self.put("proc/vmstat", f"oom_kill {count}\n")

    def remove(self, path: str) -> None:
        for file in (self.root / path).iterdir():
            file.unlink()
        (self.root / path).rmdir()

    def read(self) -> Reading:
        return read(7, self.root)


V1 = "sys/fs/cgroup/memory"
V2 = "sys/fs/cgroup"


def v1_container(root: Path) -> tuple[Machine, str]:
    """Docker on cgroup v1: the path of the process is that of the host, and what is mounted is its cgroup."""
    machine = Machine(
        root,
        "5:cpu,cpuacct:/docker/abc\n4:memory:/docker/abc\n1:name=systemd:/docker/abc\n0::/\n",
        V1_MOUNT.format(inside="/docker/abc", at="/sys/fs/cgroup/memory"),
    )
    machine.v1(V1, limit=str(400 * MB), used=100 * MB)
    return machine, V1


def v1_slurm(root: Path) -> tuple[Machine, str]:
    """The job has the limit, the step the process."""
    job = "slurm/uid_1000/job_42"
    machine = Machine(
        root,
        f"4:memory:/{job}/step_0/task_0\n1:name=systemd:/system.slice/slurmd.service\n0::/\n",
        V2_MOUNT.format(inside="/", at="/sys/fs/cgroup/unified"),
        V1_MOUNT.format(inside="/", at="/sys/fs/cgroup/memory"),
    )
    (root / "sys/fs/cgroup/unified").mkdir(parents=True)
    for folder in ("", "/slurm", "/slurm/uid_1000", f"/{job}/step_0", f"/{job}/step_0/task_0"):
        machine.v1(V1 + folder, kills=3)
    machine.v1(f"{V1}/{job}", limit=str(400 * MB), used=100 * MB, peak=390 * MB)
    return machine, f"{V1}/{job}/step_0/task_0"


def v2_container(root: Path) -> tuple[Machine, str]:
    """A cgroup namespace of its own: it looks like a root, and counts."""
    machine = Machine(root, "0::/\n", V2_MOUNT.format(inside="/", at="/sys/fs/cgroup"))
    machine.v2(V2, kills=2, limit=str(400 * MB))
    return machine, V2


def v2_scope(root: Path) -> tuple[Machine, str]:
    """systemd-run --user --scope -p MemoryMax=400M, on a laptop."""
    above = "user.slice/user-1000.slice/user@1000.service/app.slice"
    machine = Machine(root, f"0::/{above}/run-r1.scope\n", V2_MOUNT.format(inside="/", at="/sys/fs/cgroup"))
    for depth in range(1, 5):
        machine.v2("/".join([V2, *above.split("/")[:depth]]), inside=1)
    machine.v2(f"{V2}/{above}/run-r1.scope", kills=1, limit=str(400 * MB))
    return machine, f"{V2}/{above}/run-r1.scope"


def v2_slurm(root: Path) -> tuple[Machine, str]:
    """The leaf that has the process has no memory controller: the step counts."""
    step = "system.slice/slurmstepd.scope/job_42/step_0"
    machine = Machine(root, f"0::/{step}/user/task_0\n", V2_MOUNT.format(inside="/", at="/sys/fs/cgroup"))
    (root / V2 / step / "user/task_0").mkdir(parents=True)
    machine.v2(f"{V2}/{step}")
    machine.v2(f"{V2}/{step.removesuffix('/step_0')}", limit=str(400 * MB))
    return machine, f"{V2}/{step}"


KINDS = [v1_container, v1_slurm, v2_container, v2_scope, v2_slurm]


@pytest.mark.parametrize("make", KINDS)
def test_the_counter_of_the_own_cgroup_decides(make: object, tmp_path: Path) -> None:
    """Others that were ended on the machine, or in cgroups around, change nothing. Mutant check: a verdict from the
    machine's counter takes the second reading for an end by memory."""
    machine, own = make(tmp_path)  # type: ignore[operator]
    before = machine.read()
    assert Path(str(before.own)).parent == tmp_path / own
    assert verdict(before, recount(before)) is None
    machine.kills(4)
    assert verdict(before, recount(before)) is None, "somebody else's"
    kills = before.counts[str(before.own)] + 1
    if "memory.events" in str(before.own):
        machine.v2(own, kills=kills)
    else:
        machine.v1(own, kills=kills)
    assert verdict(before, recount(before)) == "limit of its cgroup 400 MB"


def v2_root(root: Path) -> Machine:
    """No container, no systemd: nothing counts at the root but for its children, and the machine."""
    machine = Machine(root, "0::/\n", V2_MOUNT.format(inside="/", at="/sys/fs/cgroup"), machine_kills=9)
    machine.v2(f"{V2}/docker", inside=4)
    machine.v2(f"{V2}/system.slice")
    machine.put(f"{V2}/cgroup.procs", "7\n")
    return machine


def test_at_a_root_that_counts_nothing_it_is_what_the_machine_counts_and_no_other_cgroup(tmp_path: Path) -> None:
    """Mutant check: without what the children count, another user's container at its limit is this rank's end."""
    machine = v2_root(tmp_path)
    before = machine.read()
    assert before.own is None
    machine.kills(10)
    machine.v2(f"{V2}/docker", inside=5)
    assert verdict(before, recount(before)) is None, "a container's"
    machine.kills(11)
    assert verdict(before, recount(before)) == ""


def test_without_any_memory_cgroup_it_is_what_the_machine_counts(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "1:name=systemd:/\n", machine_kills=1)
    before = machine.read()
    assert verdict(before, recount(before)) is None
    machine.kills(2)
    assert verdict(before, recount(before)) == ""


def test_of_a_scope_that_is_gone_the_cgroup_around_it_knows(tmp_path: Path) -> None:
    """systemd removes a scope with its last process."""
    machine, own = v2_scope(tmp_path)
    before = machine.read()
    around = own.rpartition("/")[0]
    machine.remove(own)
    machine.kills(1)
    assert verdict(before, recount(before)) is None, "another scope of another user"
    machine.v2(around, inside=2)
    assert verdict(before, recount(before)) == "limit of its cgroup 400 MB"


def test_of_a_v1_step_that_is_gone_the_peak_against_the_limit_decides_and_it_is_said(tmp_path: Path) -> None:
    """Unless the machine has ended nobody since."""
    machine, own = v1_slurm(tmp_path)
    before = machine.read()
    assert (before.limit, before.peak) == (400 * MB, 390 * MB)
    machine.remove(own)
    assert verdict(before, recount(before)) is None
    machine.kills(1)
    assert verdict(before, recount(before)) == (
        "limit of its cgroup 400 MB, at least 90% of it reached before; the cgroup is gone"
    )
    assert verdict(replace(before, peak=300 * MB), recount(before)) is None


def test_of_a_node_that_does_not_answer_what_was_in_use_decides(tmp_path: Path) -> None:
    machine, _ = v1_container(tmp_path)
    before = machine.read()
    assert before.used == 100 * MB - 4096, "without the cache of files"
    assert verdict(before, None) is None
    assert verdict(replace(before, used=380 * MB), None) == (
        "limit of its cgroup 400 MB, at least 90% of it in use before; its node did not answer"
    )


def test_the_tightest_limit_is_the_limit_also_one_that_cannot_be_seen(tmp_path: Path) -> None:
    machine, _ = v2_scope(tmp_path / "v2")
    machine.v2(f"{V2}/user.slice", limit=str(300 * MB), used=250 * MB)
    found = machine.read()
    assert (found.limit, found.used) == (300 * MB, 250 * MB)
    machine, own = v1_container(tmp_path / "v1")
    machine.put(f"{own}/memory.stat", f"hierarchical_memory_limit {200 * MB}\n")
    assert machine.read().limit == 200 * MB


def test_a_mount_with_blanks_and_a_path_outside_of_it_are_read(tmp_path: Path) -> None:
    mount = V2_MOUNT.format(inside="/../..", at=r"/sys/fs/c\040group")
    machine = Machine(tmp_path, "0::/../elsewhere\n", mount)
    machine.v2("sys/fs/c group", limit=str(400 * MB))
    assert machine.read().own == str(tmp_path / "sys/fs/c group/memory.events.local")


def test_where_nothing_can_be_read_nothing_is_known(tmp_path: Path) -> None:
    before = read(7, tmp_path)
    assert before == Reading()
    assert verdict(before, recount(before)) is None
    assert verdict(before, None) is None


def test_damaged_files_are_as_none(tmp_path: Path) -> None:
    machine = Machine(tmp_path, "garbage\n0::/a\n", "short line", V2_MOUNT.format(inside="/", at="/sys/fs/cgroup"))
    machine.put(f"{V2}/a/memory.events.local", "oom_kill many\n")
    machine.put(f"{V2}/a/memory.max", "\n")
    assert machine.read().own is None
    assert machine.read().limit is None


# The real kernel

EAT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_AS, (2**31, 2**31))  # should the cgroup not hold it, it fails and nothing else does
sys.stdin.read(1)
eaten = []
while True:
    eaten.append(b"x" * 2**24)
"""


@contextmanager
def eater() -> Iterator[subprocess.Popen[bytes]]:
    """A process that takes all the memory there is, once it is told to. Only in a cgroup with a limit."""
    process = subprocess.Popen([sys.executable, "-c", EAT], stdin=subprocess.PIPE)
    try:
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdin is not None
        process.stdin.close()


def test_the_kernel_s_end_of_a_process_is_told_from_somebody_s(tmp_path: Path) -> None:
    """One process is ended at its cgroup's limit, and meanwhile one in another cgroup by kill -9."""
    with limited(300 * MB) as tight, limited(300 * MB) as roomy, eater() as eats, eater() as sits:
        tight.take(eats.pid)
        roomy.take(sits.pid)
        before, its = read(eats.pid), read(sits.pid)
        assert before.limit == 300 * MB
        assert Path(str(before.own)).parent == tight.folder
        assert eats.stdin is not None
        eats.stdin.write(b"!")
        eats.stdin.flush()
        assert eats.wait(timeout=60) == -signal.SIGKILL
        os.kill(sits.pid, signal.SIGKILL)
        assert sits.wait(timeout=60) == -signal.SIGKILL
        assert verdict(before, recount(before)) == "limit of its cgroup 300 MB"
        assert verdict(its, recount(its)) is None, "although the machine has ended a process meanwhile"
