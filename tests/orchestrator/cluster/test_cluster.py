"""Placement: how many trials a cluster holds, where their ranks lie, and what happens when nodes come and go. Clusters
are several raylets on this machine, in one test each with a network of its own."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import sys
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.cluster_utils import Cluster
from real import (
    QUICK,
    SWEEP,
    TRIALS,
    call,
    children,
    command,
    crowding,
    driver,
    end,
    ended,
    hosts,
    measured,
    named,
    ray_cluster,
    wait_for,
)

from jobs.config import ConfigError
from jobs.workers.network import use_the_nodes_network
from orchestrator import sweep as sweeps
from orchestrator.preflight import requirements
from orchestrator.run_dir.folder import RunFolder
from orchestrator.run_dir.status import status
from orchestrator.session import cluster
from orchestrator.session.cluster import access, capacity, headwatch
from orchestrator.session.cluster.capacity import Node
from orchestrator.sweep import plan as planning
from orchestrator.sweep.plan import Plan
from orchestrator.system.exit_codes import InfrastructureMissing

SLOWER = SWEEP.replace("steps = 8", "steps = 120").replace("checkpoint_every = 3", "checkpoint_every = 20")


# How many trials fit


def placed(node: Node, *, cpus: float, gpus: float) -> int:
    """Ranks that a node takes one after the other, each GPU by itself."""
    free, devices, count = node.cpus, [1.0] * int(node.gpus), 0
    while free >= cpus - 1e-9:
        if 0 < gpus < 1:
            device = next((one for one, left in enumerate(devices) if left >= gpus - 1e-9), None)
            if device is None:
                break
            devices[device] -= gpus
        elif gpus:
            if len(devices) < gpus:
                break
            del devices[: int(gpus)]
        free -= cpus
        count += 1
    return count


NODES = st.lists(st.builds(Node, st.integers(0, 9), st.integers(0, 4)), max_size=4)


@given(NODES, st.integers(1, 4), st.integers(1, 3), st.sampled_from([0, 0.2, 0.25, 0.3, 0.5, 0.6, 1, 2]))
def test_as_many_trials_fit_as_can_be_placed_one_rank_after_the_other(
    nodes: list[Node], ranks: int, cpus: int, gpus: float
) -> None:
    places = sum(placed(node, cpus=cpus, gpus=gpus) for node in nodes)
    assert capacity.slots(nodes, ranks=ranks, cpus=cpus, gpus=gpus) == places // ranks
    assert capacity.fits(nodes, ranks=ranks, cpus=cpus, gpus=gpus) == (places >= ranks)


def test_two_gpus_hold_two_ranks_of_six_tenths_and_not_three() -> None:
    assert capacity.slots([Node(8, 2)], ranks=1, cpus=1, gpus=0.6) == 2


def plan_of(tmp_path: Path, *overrides: str) -> Plan:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return planning.make(sweeps.load(tmp_path / "sweep.toml", overrides))


def test_only_nodes_with_the_wanted_gpus_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    told: list[dict[str, Any]] = [
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 2.0, "accelerator_type:H100": 1.0}},
        {"Alive": True, "Resources": {"CPU": 8.0, "GPU": 4.0, "accelerator_type:T4": 1.0}},
        {"Alive": False, "Resources": {"CPU": 8.0, "GPU": 8.0, "accelerator_type:H100": 1.0}},
    ]
    monkeypatch.setattr(requirements, "_nodes", lambda: capacity.alive(told))
    either = plan_of(tmp_path, "resources.gpus_per_rank=1")
    assert requirements.concurrent(either, 2) == 3
    one = plan_of(tmp_path, "resources.gpus_per_rank=1", "resources.accelerator_type='H100'")
    assert requirements.concurrent(one, 2) == 1
    requirements.check_cluster(one, 2)
    none = plan_of(tmp_path, "resources.gpus_per_rank=1", "resources.accelerator_type='A100'")
    with pytest.raises(InfrastructureMissing, match="'A100', but the cluster has H100, T4"):
        requirements.check_cluster(none, 2)


@pytest.mark.parametrize(
    "address", ["[::1]:PORT", "ray://[::1]:PORT", "ray://me:w0rd@127.0.0.1:PORT", "me@127.0.0.1:PORT", "é" * 70 + ":1"]
)
def test_it_is_knocked_at_every_kind_of_address_before_ray_asks_for_minutes(address: str) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        began = time.monotonic()
        with pytest.raises(cluster.Refused, match=r"refused|label empty or too long|not available|unreachable"):
            cluster._token(address.replace("PORT", str(closed.getsockname()[1])))
    assert time.monotonic() - began < 10


def test_an_address_without_a_port_number_is_refused_in_words() -> None:
    with pytest.raises(cluster.Refused, match="Invalid gcs_address"):
        cluster._token("127.0.0.1:port")


@pytest.mark.parametrize("named", ["", " ", "local", "LOCAL", "Local "])
def test_no_address_is_a_cluster_of_ones_own(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", named)
    assert access.address() is None


@pytest.mark.parametrize("comes", [[], [[Node(0, 0)]], [[], [Node(0, 0)], [Node(0, 0), Node(1, 0)]]])
def test_a_run_that_goes_on_waits_for_the_nodes_of_a_cluster_that_was_started_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, comes: list[list[Node]]
) -> None:
    """The head is there first. Mutant check: to ask once is exit 2, `there are 0 CPUs`."""
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(requirements, "LOOK_S", 0.001)
    looks = iter([*comes, [Node(0, 0), Node(2, 0)]])
    monkeypatch.setattr(cluster, "nodes", lambda: next(looks))
    said: list[str] = []
    requirements._nodes.cache_clear()
    requirements.await_room(plan_of(tmp_path), 2, say=said.append)
    requirements.check_cluster(plan_of(tmp_path), 2)
    assert len(said) == bool(comes)
    assert next(looks, None) is None
    requirements._nodes.cache_clear()


def test_a_cluster_that_stays_too_small_is_refused_after_a_while(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    monkeypatch.setattr(requirements, "LOOK_S", 0.001)
    monkeypatch.setattr(requirements, "JOIN_S", 0.05)
    monkeypatch.setattr(cluster, "nodes", lambda: [Node(1, 0)])
    requirements._nodes.cache_clear()
    requirements.await_room(plan_of(tmp_path), 2, say=lambda _: None)
    with pytest.raises(ConfigError, match="there are 1"):
        requirements.check_cluster(plan_of(tmp_path), 2)
    requirements._nodes.cache_clear()


def test_a_share_of_a_gpu_is_refused_when_an_attempt_is_given_several_ranks(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "_nodes", lambda: [Node(8, 2)])
    plan = plan_of(tmp_path, "resources.gpus_per_rank=0.5", "job.execution.ranks=1")
    requirements.check_cluster(plan, 1)
    with pytest.raises(ConfigError, match="a share of a GPU, which allows one rank"):
        requirements.check_cluster(plan, 2)


def test_autoscale_asks_a_cluster_for_room_and_not_this_machine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(requirements, "_nodes", lambda: [Node(0, 0)])
    plan = plan_of(tmp_path, "resources.autoscale=true", "resources.concurrent=5", "resources.gpus_per_rank=1")
    monkeypatch.setenv("RAY_ADDRESS", "10.0.0.1:6379")
    requirements.check_cluster(plan, 2)
    assert requirements.concurrent(plan, 2) == 5
    monkeypatch.delenv("RAY_ADDRESS")
    with pytest.raises(InfrastructureMissing, match="there are 0 GPUs"):
        requirements.check_cluster(plan, 2)


# Where they lie


@pytest.mark.parametrize(("address", "name"), [("127.0.0.1", "lo"), ("192.0.2.1", "eth1"), ("fe80::1", "eth1")])
def test_ranks_meet_on_the_interface_that_has_the_nodes_address(
    address: str, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    interfaces = {"docker0": ["172.17.0.1"], "lo": ["127.0.0.1", "::1"], "eth1": ["fe80::1%eth1", "192.0.2.1"]}
    found = {name: [SimpleNamespace(address=one) for one in all_of] for name, all_of in interfaces.items()}
    monkeypatch.setattr(psutil, "net_if_addrs", lambda: found)
    environment: dict[str, str] = {}
    monkeypatch.setattr(os, "environ", environment)
    use_the_nodes_network(address)
    assert environment == {"GLOO_SOCKET_IFNAME": name, "NCCL_SOCKET_IFNAME": f"={name}"}
    environment |= {"GLOO_SOCKET_IFNAME": "mine"}
    use_the_nodes_network(address)
    assert environment["GLOO_SOCKET_IFNAME"] == "mine"


@pytest.fixture(scope="module")
def two_nodes() -> Iterator[Cluster]:
    """A head without CPUs and two nodes of two CPUs, the second with what Ray would call an A100."""
    with ray_cluster() as found:
        found.add_node(num_cpus=2)
        found.add_node(num_cpus=2, resources={"accelerator_type:A100": 1})
        yield found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("resources", "nodes"),
    [
        pytest.param('placement = "pack"', 1, marks=pytest.mark.soak),
        pytest.param('placement = "spread"', 2, marks=pytest.mark.soak),
        pytest.param('placement = "spread"\naccelerator_type = "A100"', 1, marks=pytest.mark.soak),
    ],
)
def test_ranks_lie_where_the_sweep_says(two_nodes: Cluster, tmp_path: Path, resources: str, nodes: int) -> None:
    (tmp_path / "sweep.toml").write_text(SLOWER + f"[resources]\nconcurrent = 1\n{resources}\n")
    env = {"RAY_ADDRESS": str(two_nodes.address)}
    folder = RunFolder(tmp_path / "runs" / "small")
    with driver("launch", "sweep.toml", "--offline", cwd=tmp_path, env=env) as process:
        wait_for(lambda: process.poll() is not None or list(folder.trials.glob("*/checkpoints/step_*/manifest.json")))
        assert process.poll() is None, process.communicate()[0]
        assert len(hosts()) == nodes
        call("stop", "small", cwd=tmp_path)
        said, _ = process.communicate(timeout=100)
        assert process.returncode == 130, said


@pytest.mark.soak
def test_trials_of_several_sizes_wait_for_one_another_and_measure_what_they_do_elsewhere(
    two_nodes: Cluster, tmp_path: Path
) -> None:
    """On nodes with an A100, of which there is one: a trial of one rank waits for one of two, and the other way round.
    Nothing deadlocks, and the metrics are those of this machine by itself."""
    crossed = '[compare]\n"loss.name" = ["infonce", "flatnce"]\n'
    named = (
        '[[arm]]\nlabel = "single"\n"loss.name" = "infonce"\n"execution.ranks" = 1\n'
        '[[arm]]\nlabel = "double"\n"loss.name" = "flatnce"\n"execution.ranks" = 2\n'
    )
    text = SWEEP.replace(crossed, named).replace("trials = 2", "trials = 2\nparallel = 2")
    assert named in text
    (tmp_path / "sweep.toml").write_text(text)
    env = {"RAY_ADDRESS": str(two_nodes.address)}
    there = ("--into", "runs/there", "--set", "resources.accelerator_type='A100'")
    said = call("launch", "sweep.toml", "--offline", *there, cwd=tmp_path, env=env)
    assert f"[{TRIALS}/{TRIALS}]" in said
    call("launch", "sweep.toml", "--offline", "--into", "runs/here", cwd=tmp_path)
    assert measured(tmp_path, "there") == measured(tmp_path, "here")
    with contextlib.closing(RunFolder(tmp_path / "runs" / "there").open()) as ledger:
        assert {trial.config.execution.ranks for trial in ledger.trials(state="done")} == {1, 2}


# Nodes that come and go


@pytest.mark.soak
def test_a_sweep_waits_for_the_nodes_it_asks_for_and_uses_those_that_come(
    undisturbed: dict[str, float], tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP + "[resources]\nconcurrent = 2\nautoscale = true\n")
    with ray_cluster() as found:
        env = {"RAY_ADDRESS": str(found.address)}
        with driver("launch", "sweep.toml", "--offline", cwd=tmp_path, env=env) as process:
            folder = RunFolder(tmp_path / "runs" / "small")
            words = wait_for(lambda: process.poll() is not None or waits(folder))
            assert "waits for 2 CPUs" in words
            assert not began(folder), "an attempt begins once its slot is there"
            found.add_node(num_cpus=2)
            said, _ = process.communicate(timeout=200)
            assert process.returncode == 0, said
    assert measured(tmp_path) == undisturbed


def waits(folder: RunFolder) -> Any:
    """What a run says that it waits for."""
    if not folder.exists:
        return None
    with contextlib.closing(folder.open()) as ledger:
        return status(ledger)["waits"]


def began(folder: RunFolder) -> bool:
    if not folder.exists:
        return False
    with contextlib.closing(folder.open()) as ledger:
        return bool(ledger.attempts())


@pytest.mark.soak
@pytest.mark.slow
def test_a_node_that_is_added_is_used_and_one_that_is_lost_is_done_without(tmp_path: Path) -> None:
    """With one node there is room for one trial, with two for two; without any, all wait."""
    (tmp_path / "sweep.toml").write_text(SLOWER.split("[tune]")[0] + "[confirm]\nseeds = 3\n")
    folder = RunFolder(tmp_path / "runs" / "small")
    with ray_cluster() as found:
        first = found.add_node(num_cpus=2)
        env = {"RAY_ADDRESS": str(found.address)}
        with driver("launch", "sweep.toml", "--offline", cwd=tmp_path, env=env) as process:
            wait_for(lambda: process.poll() is not None or list(folder.trials.glob("*/points*")) or hosts())
            found.add_node(num_cpus=2)
            wait_for(lambda: process.poll() is not None or len(hosts()) == 2, what="the use of the second node")
            found.remove_node(first, allow_graceful=False)
            before = ended(folder)
            wait_for(lambda: process.poll() is not None or ended(folder) > before, what="another trial's end")
            said, _ = process.communicate(timeout=200)
            assert process.returncode == 0, said
    assert "the cluster has 3 nodes now: 2 trials at once" in said
    assert "the cluster has 2 nodes now: 1 trial at once" in said
    with contextlib.closing(folder.open()) as ledger:
        assert ledger.counts()["done"] == 2 * 3
        failures = [one.failure for one in ledger.attempts() if one.state == "failed"]
        assert set(failures) <= {"node_lost"}, "also where its ranks are gone before it is"
        assert len(failures) <= 1


# Hosts with networks of their own


class Hosts:
    """Two network namespaces with a cable between them. Neither has a loopback that the other reaches."""

    def __init__(self) -> None:
        mark = uuid.uuid4().hex[:6]
        self.names = [f"orchestrator-{mark}-{number}" for number in (1, 2)]
        self.cable = [f"eth{mark}{number}" for number in (1, 2)]
        self.addresses = ["10.213.77.1", "10.213.77.2"]
        self.processes: list[subprocess.Popen[bytes]] = []

    def lay(self) -> None:
        """Skips where that is not allowed."""
        for name in self.names:
            made = subprocess.run(["ip", "netns", "add", name], capture_output=True, text=True, check=False)
            if made.returncode:
                pytest.skip(f"two hosts on one machine need network namespaces: {made.stderr.strip()}")
        one, other = ((cable, "netns", name) for name, cable in zip(self.names, self.cable, strict=True))
        self._ip("link", "add", *one, "type", "veth", "peer", "name", *other)
        for name, cable, address in zip(self.names, self.cable, self.addresses, strict=True):
            self._ip("-n", name, "addr", "add", f"{address}/24", "dev", cable)
            for link in (cable, "lo"):
                self._ip("-n", name, "link", "set", link, "up")

    def inside(self, host: int) -> list[str]:
        """Begins a command that runs on a host."""
        return ["ip", "netns", "exec", self.names[host]]

    def start(self, host: int, *options: str, log: Path) -> None:
        """A node of a Ray cluster."""
        start = [*self.inside(host), sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *options]
        with log.open("wb") as file:
            node = subprocess.Popen(
                [*start, f"--node-ip-address={self.addresses[host]}"], stdout=file, stderr=file, start_new_session=True
            )
        self.processes.append(node)
        wait_for(lambda: node.poll() is not None or "will now block" in log.read_text(), what="a node")
        assert node.poll() is None, log.read_text()

    def end(self) -> None:
        family = []
        for process in self.processes:
            if process.poll() is None:
                family += [psutil.Process(process.pid), *children(process)]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for process in self.processes:
            process.wait()
        end(family)
        for name in self.names:
            subprocess.run(["ip", "netns", "delete", name], capture_output=True, check=False)

    def _ip(self, *arguments: str) -> None:
        subprocess.run(["ip", *arguments], check=True, capture_output=True)


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux" or not Path("/usr/sbin/ip").exists(), reason="needs Linux and iproute2")
def test_ranks_on_hosts_with_networks_of_their_own_find_each_other(
    undisturbed: dict[str, float], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each host holds one rank of every trial. The host's name resolves to loopback on both, as on many machines."""
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", secrets.token_hex(16))
    (tmp_path / "sweep.toml").write_text(SWEEP + '[resources]\nplacement = "spread"\n')
    made = Hosts()
    try:
        made.lay()
        made.start(0, "--head", "--port=6379", "--num-cpus=1", "--include-dashboard=false", log=tmp_path / "head.log")
        made.start(1, f"--address={made.addresses[0]}:6379", "--num-cpus=1", log=tmp_path / "node.log")
        done = subprocess.run(
            [*made.inside(0), *command("launch", "sweep.toml", "--offline")],
            cwd=tmp_path,
            env=QUICK | os.environ | {"RAY_ADDRESS": f"{made.addresses[0]}:6379"},
            capture_output=True,
            text=True,
            check=False,
            timeout=280,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    finally:
        made.end()
    assert measured(tmp_path) == undisturbed


START = """
from orchestrator.session import cluster
from orchestrator.session.cluster import start as cluster_start
cluster_start.START_S = 12.0
for _ in range(2):
    try:
        with cluster.session(cpus=1):
            print("started")
    except ConnectionError as error:
        print(f"refused: {error}", flush=True)
"""


@contextlib.contextmanager
def starting(process: str, *, after_s: float) -> Iterator[tuple[subprocess.Popen[str], psutil.Process]]:
    """A program that starts Ray, `after_s` seconds after a process of Ray's head was there; and that process."""
    family: list[psutil.Process] = []
    with subprocess.Popen(
        [sys.executable, "-c", START], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as starter:
        try:
            (found,) = wait_for(lambda: named((process,), starter.pid), what=f"the {process}")
            time.sleep(after_s)
            family = children(starter)
            yield starter, found
        finally:
            starter.kill()
            end(family)


MOMENTS = [("gcs_server", 0.0), ("gcs_server", 0.05), ("gcs_server", 0.4), ("gcs_server", 1.5)]
MOMENTS += [("raylet", 0.0), ("raylet", 0.4), ("raylet", 0.8)]


@pytest.mark.soak
@pytest.mark.parametrize(
    ("stopped", "after_s"),
    [pytest.param(*one, marks=pytest.mark.slow if one[1] == 0.4 else pytest.mark.soak) for one in MOMENTS],
)
def test_a_ray_that_does_not_start_in_time_is_told_in_words(stopped: str, after_s: float) -> None:
    """One of its processes stands still, from whichever moment. Seen: Ray waits for a quarter of an hour, or for ever,
    in calls that nothing interrupts. A second start begins anew, or is told what the first has left behind."""
    with starting(stopped, after_s=after_s) as (starter, process):
        process.suspend()
        said, _ = starter.communicate(timeout=100 * crowding())
    first, second = said.splitlines()
    assert first.lower().startswith("refused: ray does not start on this machine: timed out")
    assert "run the same command again" in first
    assert second == "started" or "an earlier start in this process has timed out" in second
    assert starter.returncode == 0


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("killed", ["gcs_server", "raylet"])
def test_a_ray_of_which_a_process_dies_while_it_starts_is_told_in_words(killed: str) -> None:
    """Seen: of a GCS that is gone Ray says nothing for a minute, and then ends the process from within."""
    with starting(killed, after_s=0.2) as (starter, process):
        process.kill()
        said, _ = starter.communicate(timeout=100 * crowding())
    assert said.startswith("refused: Ray does not start on this machine: ")
    assert starter.returncode == 0


@pytest.mark.slow
def test_ctrl_c_ends_a_start_that_hangs() -> None:
    """Mutant check: a call in C++ hears of it when it is over, which is never."""
    with starting("gcs_server", after_s=0.4) as (starter, process):
        process.suspend()
        time.sleep(2)
        began = time.monotonic()
        starter.send_signal(signal.SIGINT)
        _, said = starter.communicate(timeout=60 * crowding())
    assert said.rstrip().endswith("KeyboardInterrupt")
    assert time.monotonic() - began < 11 * crowding()


def test_a_ray_that_cannot_start_where_its_files_are_to_lie_is_told_with_a_place(tmp_path: Path) -> None:
    """Sockets have short paths. Mutant check: without the remedy nobody knows that it is about TMPDIR."""
    far = tmp_path / ("far" * 30)
    far.mkdir()
    env = os.environ | {"RAY_TMPDIR": str(far)}
    done = subprocess.run(
        [sys.executable, "-c", START], env=env, capture_output=True, text=True, check=False, timeout=100
    )
    assert done.stdout.startswith("refused: Ray does not start on this machine: ")
    assert "export TMPDIR=/tmp RAY_TMPDIR=/tmp" in done.stdout


@pytest.mark.parametrize("asks", [True, False])
def test_a_watch_that_asks_no_more_does_not_take_its_own_silence_for_the_head_s(
    monkeypatch: pytest.MonkeyPatch, asks: bool
) -> None:
    """Seen: what ended the thread that asks was a cause to checkpoint and stop, and after 20 s of nobody asking the
    driver left in the middle of that, with 75 and "the cluster died". The death of Ray's own processes is still seen.
    """
    monkeypatch.setattr(headwatch, "SILENT_S", 0.2)
    monkeypatch.setattr(headwatch, "LOOK_S", 0.02)
    dead: list[str] = []
    failed: list[BaseException] = []
    watch: Any = object.__new__(headwatch._Watch)
    own: list[Any] = []
    watch.__dict__ |= {"_dead": dead.append, "_seen": None, "_failed": failed.append, "_own": own, "_lost": []}
    watch.__dict__ |= {"over": threading.Event(), "_answered_at": time.monotonic(), "_refusal": ""}
    cause = KeyError("seen")
    if not asks:
        watch.died(cause)
    looking = threading.Thread(target=watch.look, daemon=True)
    looking.start()
    looking.join(1.0)
    assert failed == ([] if asks else [cause])
    assert bool(dead) == asks
    gone = subprocess.Popen(["true"])
    own.append(psutil.Process(gone.pid))
    looking.join(5.0)
    assert dead
    watch.over.set()
    gone.wait()
