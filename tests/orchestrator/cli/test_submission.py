"""The verbs on a cluster: a real one of two nodes with Ray's job server behind a token, PostgreSQL, S3 and MLflow."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import shlex
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import psutil
import pytest
from answers import answered
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from ledgers import start
from real import QUICK, SWEEP, TRIALS, Server, call, children, command, driver, end, free_port, wait_for
from servers import new_database, postgres_server, s3_server

from orchestrator import sweep as sweeps
from orchestrator.cli import main, submission
from orchestrator.cli.submission import asking, bring, server, verbs
from orchestrator.cli.submission.follow import _Output, _refuse_another, log_marker, run_and_follow
from orchestrator.cli.submission.package import entrypoint, environment, package, taken_along
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir import status as statuses
from orchestrator.run_dir.environment import Origin, origin
from orchestrator.run_dir.folder import RunError
from orchestrator.session.cluster.board import FRESH_S, hash_of
from orchestrator.sweep import plan as planning
from orchestrator.system.exit_codes import InfrastructureMissing

TOKEN = secrets.token_hex(16)

OWN_FILES = ("unshare", "--mount", "sh", "-c", 'mount -t tmpfs none /tmp/ray && exec "$@"', "sh")
"""Begins a node whose Ray has files of its own, as a host has: of two raylets that share a folder, one takes a job's
package away under the other's ranks."""


# What goes along


def test_files_that_are_named_by_a_relative_path_go_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "more").mkdir(parents=True)
    for name in ("data/a.parquet", "data/b.parquet", "data/more/c.csv"):
        (tmp_path / name).write_text("x")
    assert taken_along(["data/a.parquet[:100]", "digits[:300]", "s3://bucket/x.parquet"]) == [Path("data/a.parquet")]
    assert taken_along(["data/*.parquet"]) == [Path("data/a.parquet"), Path("data/b.parquet")]
    assert len(taken_along(["data"])) == 3
    assert taken_along([str(tmp_path / "data")]) == [], "an absolute path means what it means there"
    monkeypatch.chdir(tmp_path / "data")
    with pytest.raises(RunError, match="lies above this folder"):
        taken_along(["../data/a.parquet"])


def test_what_is_there_goes_along_before_what_fits_it_and_what_can_be_nowhere_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As whoever reads it there finds it. Mutant checks: a pattern first, and the errors of names that no path has."""
    monkeypatch.chdir(tmp_path)
    for name in ("data[1].csv", "data1.csv", "train?.txt", "~nobody-of-this-name.tsv"):
        (tmp_path / name).write_text("x")
    assert taken_along(["data[1].csv[:5]", "train?.txt"]) == [Path("data[1].csv"), Path("train?.txt")]
    assert taken_along(["~nobody-of-this-name.tsv"]) == [Path("~nobody-of-this-name.tsv")]
    for nowhere in ("~nobody-of-this-name/x.tsv", "x" * 300, f"a/{'y' * 300}*.csv", "a\0b", "S3://b/x", "**x/[a"):
        assert taken_along([nowhere]) == []


def test_a_folder_that_is_called_as_something_without_files_stays(tmp_path: Path) -> None:
    """Mutant check: taking along whatever a name is the name of."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    arm = planning.make(sweeps.load(tmp_path / "sweep.toml")).arms[0]
    names = {"vit", "resnet", "bert", "digits", "digits[:300]"}
    for data, model, kept in (
        ("digits[:300]", "resnet", set()),
        ("digits", None, set()),
        ("resnet", "vit", {"resnet"}),
        ("digits/x.csv", "digits", {"digits/x.csv", "digits"}),
    ):
        job = sweeps.merged(arm.job, {"data.train": data, "model.name": model})
        found = set(verbs._sources(replace(arm, job=job)))
        assert kept <= found
        assert not found & names - kept


def test_what_is_too_large_is_refused_with_where_to_put_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with (tmp_path / "large.parquet").open("wb") as file:
        file.truncate(101 * 2**20)
    with pytest.raises(RunError, match=r"large\.parquet is the largest.*takes 100 MB.*s3://"):
        taken_along(["large.parquet"])


@pytest.mark.parametrize(
    "text",
    [
        *("AWS_SECRET_ACCESS_KEY=w0rd", "MY_TOKEN=w0rd", "LEDGER=postgresql://me:w0rd@host/db", "GITHUB_PAT=w0rd"),
        *("DB=host=db password=w0rd", 'SA={"a": {"private_key": "w0rd"}}', "CONN=Uid=me;Pwd=w0rd", "A=Bearer w0rd"),
    ],
)
def test_secrets_do_not_go_along(text: str) -> None:
    with pytest.raises(RunError, match="is a secret") as error:
        environment([text])
    assert "w0rd" not in str(error.value)


def test_variables_go_along_by_name_or_with_a_value(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_HOME", "/models")
    monkeypatch.delenv("NOT_SET", raising=False)
    assert environment(["HF_HOME", "NCCL_DEBUG=INFO"]) == {"HF_HOME": "/models", "NCCL_DEBUG": "INFO"}
    with pytest.raises(RunError, match="NOT_SET=VALUE"):
        environment(["NOT_SET"])
    with pytest.raises(RunError, match="no name") as error:
        environment(["MY-TOKEN=w0rd"])
    assert "w0rd" not in str(error.value)
    assert environment(["TOKENIZER=bert-base", "MAX_TOKENS=128"]) == {"TOKENIZER": "bert-base", "MAX_TOKENS": "128"}


def test_the_log_begins_with_our_first_line_and_is_not_told_twice() -> None:
    """Also when it comes again from the start, in other pieces, after the connection broke."""
    told: list[str] = []
    output = _Output("small-1", told.append)
    rays = "Running entrypoint for job small-1: printf '%s%s' '<<' small-1; python\n"
    for text in ("setting up\n", "<<sma", "ll-1\n" + rays + "one\nt"):
        output.take(text)
    output.restart()
    for text in ("setting up\n" + rays + "<<small-1\non", "e\ntwo\n"):
        output.take(text)
    assert "".join(told) == "one\ntwo\n"


@given(
    st.lists(st.text(st.sampled_from("ab\r\x0b\x0c\x1c\x85\u2028\u2029\u202e \n"), max_size=9), max_size=9), st.data()
)
def test_a_log_is_told_whole_and_once_however_it_is_cut(pieces: list[str], data: st.DataObject) -> None:
    """A line ends at a line feed alone, and the last one may have none. Mutant checks: `splitlines`, and leaving out
    what has no end."""
    text = "".join(pieces)
    log = "setting up<<small-1\n" + text
    told: list[str] = []
    output = _Output("small-1", told.append)
    for cut in data.draw(st.lists(st.integers(0, len(log)), max_size=4)):
        for place in range(0, cut, 3):
            output.take(log[place : min(place + 3, cut)])
        output.restart()
    output.take(log)
    output.end()
    assert "".join(told) == text + ("\n" if text and not text.endswith("\n") else "")
    assert [line.count("\n") for line in told] == [1] * len(told)


def test_following_a_long_log_takes_as_long_as_it_is() -> None:
    """Also one line of it. Mutant check: reading all of it again for each piece, which copies a thousand times as
    much."""
    told: list[str] = []
    output = _Output("small-1", told.append)
    output.take("<<small-1\n")
    began = time.process_time()
    for number in range(60_000):
        output.take(f"line {number}\n")
    for _ in range(60_000):
        output.take("x" * 100)
    output.end()
    assert time.process_time() - began < 5
    assert len(told) == 60_001
    assert told[-1] == "x" * 6_000_000 + "\n"


def test_the_command_does_not_hold_the_mark_and_prints_it(tmp_path: Path) -> None:
    order = submission.JobSpec(verb="status", run="s3://b/it's", arguments=["status", "s3://b/it's"])
    text = entrypoint(order, log_marker("small-1"))
    assert log_marker("small-1").strip() not in text
    printed = subprocess.run(
        text.replace("-m orchestrator.cli", "-c 'import sys; print(sys.argv[1:])'"), shell=True,
        capture_output=True, text=True, check=True, cwd=tmp_path,
        env=os.environ | {"ORCHESTRATOR_PYTHON": sys.executable},
    ).stdout  # fmt: skip
    assert printed == log_marker("small-1") + str(["status", "s3://b/it's"]) + "\n"


def job(given: submission.JobSpec, **changes: Any) -> submission.Job:
    """The job that an order was given to, as its server tells it."""
    known: dict[str, Any] = {"id": "small-1", "state": "RUNNING", "run": given.run, "verb": given.verb}
    known |= {"sweep": given.sweep, "order": given.digest, "exit_code": None, "error": None}
    return submission.Job(**known | {"message": "", "started": 1.0} | changes)


def ordered(*arguments: str, sweep: str | None = None, **environment: str) -> submission.JobSpec:
    return submission.JobSpec(
        verb=arguments[0], run="s3://b/small", arguments=arguments, sweep=sweep, environment=environment
    )


FAILED = ordered("resume", "s3://b/small", "--failed", "--class", "out_of_memory")


@pytest.mark.parametrize(
    "asked",
    [
        ordered("resume", "s3://b/small", "--failed", "--class", "out_of_memory"),
        ordered("resume", "s3://b/small"),
    ],
)
def test_the_same_order_joins_its_job_and_a_plain_resume_any(asked: submission.JobSpec) -> None:
    """Mutant check: comparing the verbs alone, or joining only plain ones."""
    _refuse_another(job(FAILED), asked)
    same = ordered("launch", "sweep.toml", "--into", "s3://b/small", "--offline", sweep="3f2c")
    _refuse_another(job(same), ordered("launch", "sweep.toml", "--into", "s3://b/small", sweep="3f2c"))
    _refuse_another(job(same), same)


@pytest.mark.parametrize(
    "asked",
    [
        ordered("resume", "s3://b/small", "--failed"),
        ordered("resume", "s3://b/small", "--give-up", "--class", "out_of_memory"),
        ordered("resume", "s3://b/small", "--failed", "--class", "out_of_memory", "--set", "job.execution.micro=8"),
        ordered("resume", "s3://b/small", "--failed", "--class", "out_of_memory", NCCL_DEBUG="INFO"),
        ordered("launch", "sweep.toml", "--into", "s3://b/small", sweep="another"),
    ],
)
def test_another_order_is_refused_in_words(asked: submission.JobSpec) -> None:
    with pytest.raises(RunError, match=r"driven by job small-1 with (other options|another sweep); stop that first"):
        _refuse_another(job(FAILED, sweep="3f2c"), asked)
    with pytest.raises(RunError, match="stop that first"):
        _refuse_another(job(FAILED, sweep="3f2c", order=None), asked)  # which an older version submitted


def test_a_launch_joins_a_job_that_resumes_the_run_once_that_says_of_which_sweep(tmp_path: Path) -> None:
    """It says what the ledger has. Mutant check: joining one that says nothing."""
    begun = start(tmp_path / "demo")
    asked = hash_of(sweeps.load(tmp_path / "demo" / "sweep.toml"))
    stored = hash_of(planning.stored(begun.ledger.run.sweep, begun.ledger.run.rules).sweep)
    begun.ledger.close()
    launch = ordered("launch", "sweep.toml", "--into", "s3://b/small", sweep=asked)
    with pytest.raises(RunError, match=r"not said yet of which sweep it is; .*orchestrator logs s3://b/small"):
        _refuse_another(job(FAILED), launch)
    _refuse_another(job(FAILED, sweep=stored), launch)
    with pytest.raises(RunError, match="with another sweep; stop that first"):
        _refuse_another(job(FAILED, sweep=stored), replace(launch, sweep="another"))


def test_a_server_that_goes_away_after_it_has_answered_is_told_in_words(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever is asked. Mutant check: `ServerUnavailable` as it is, which nobody expects."""

    class Leaving:
        url, now = "http://head", 0.0

        def version(self) -> str:
            return "2"

        def jobs(self) -> list[submission.Job]:
            raise submission.ServerUnavailable("it is gone")

        def job(self, _: str) -> submission.Job | None:
            raise submission.ServerUnavailable("it is gone")

    monkeypatch.setattr(verbs, "JobServer", lambda _: Leaving())
    said: Callable[[str], None] = lambda _: None  # noqa: E731
    run = "s3://b/small"
    for asked in (
        lambda: verbs.listed("http://head"),
        lambda: verbs.posted("http://head", run),
        lambda: verbs.wait_for_status("http://head", run, tell=said),
        lambda: verbs.follow_driver("http://head", run, write=said, tell=said),
        lambda: verbs.run_remote("http://head", run, ["status", run], out=said, err=said),
    ):
        with pytest.raises(InfrastructureMissing, match="http://head"):
            asked()


@pytest.mark.parametrize("state", ["RUNNING", "PENDING"])
def test_whoever_watches_waits_a_while_for_a_driver_that_says_nothing(
    monkeypatch: pytest.MonkeyPatch, state: str
) -> None:
    """As long as one that lives may take to say something; one that has not begun is waited for. Mutant check: waiting
    for ever."""
    known, told, moment = job(FAILED, state=state), list[str](), [0.0]

    class Silent:
        url, now = "http://head", 0.0

        def jobs(self) -> list[submission.Job]:
            return [known] if moment[0] < 500 else []

    def pass_time(seconds: float) -> None:
        moment[0] += seconds

    monkeypatch.setattr(verbs, "JobServer", lambda _: Silent())
    monkeypatch.setattr(time, "monotonic", lambda: moment[0])
    monkeypatch.setattr(time, "sleep", pass_time)
    verbs.wait_for_status("http://head", "s3://b/small", tell=told.append)
    assert (moment[0] < FRESH_S + 5) == (state == "RUNNING")
    assert ("its ledger is asked" in told[-1]) == (state == "RUNNING")


class Losing:
    """A job server that loses the first jobs with their head; what each was told to ask for."""

    url = "http://head"

    def __init__(self, losses: int, running: list[submission.Job]) -> None:
        self.losses, self.known, self.asked = losses, running, list[str]()

    def jobs(self) -> list[submission.Job]:
        return [one for one in self.known if not one.over]

    def submit(self, name: str, _: str, *, runtime_env: dict[str, Any], metadata: dict[str, str]) -> bool:
        self.asked.append(runtime_env["env_vars"][runs.ASKED])
        assert metadata[server.REQUEST] == self.asked[-1]
        found = {"order": metadata[server.ORDER], "asked": metadata[server.REQUEST]}
        self.known.append(job(FAILED, id=name, **found))
        return True

    def tail(self, name: str, _: Callable[[str], None]) -> None:
        lost, self.losses = self.losses > 0, self.losses - 1
        code = 75 if lost else 0
        self.known = [replace(one, state="FAILED", exit_code=code) if one.id == name else one for one in self.known]

    def job(self, name: str) -> submission.Job | None:
        return next((one for one in self.known if one.id == name), None)


@pytest.mark.parametrize("joined", [False, True])
def test_a_job_that_takes_the_place_of_a_lost_one_asks_for_nothing_again(joined: bool) -> None:
    """Whoever submits it. Another command asks anew. Mutant check: a name for each job."""
    running = [job(FAILED, asked="the first asker's")] if joined else []
    site = Losing(3, running)
    tell: Callable[[str], None] = lambda _: None  # noqa: E731
    assert run_and_follow(cast("Any", site), FAILED, write=tell, tell=tell) == 0
    assert len(site.asked) == (3 if joined else 4)
    assert len(set(site.asked)) == 1
    assert (site.asked[0] == "the first asker's") == joined
    later = Losing(0, [])
    assert run_and_follow(cast("Any", later), FAILED, write=tell, tell=tell) == 0
    assert later.asked[0] not in site.asked


def test_sweeps_that_differ_in_the_order_of_their_factors_are_others(tmp_path: Path) -> None:
    """The first factor decides the contrasts. Mutant check: hashing the sorted sweep alone."""
    two = ['"loss.name" = ["infonce", "flatnce"]', '"batch.size" = [16, 32]']
    found = []
    for factors in (two, two[::-1], two):
        (tmp_path / "sweep.toml").write_text(SWEEP.replace(two[0], "\n".join(factors)))
        found.append(hash_of(sweeps.load(tmp_path / "sweep.toml")))
    assert found[0] == found[2] != found[1]


def test_command_and_code_of_who_submits_go_along_and_are_told_on_the_head(tmp_path: Path) -> None:
    """By the package in the job's own folder, which is no checkout."""
    there = Origin("orchestrator launch a.toml --address http://h", "/home/me", "0.1", "3f2c9ab", True, diff=b"a diff")
    order = replace(FAILED, origin=there)
    text = "import json; from orchestrator.run_dir.environment import *; o = origin(); "
    text += "print(json.dumps(environment(o)), o.diff)"
    with package(order) as runtime_env:
        done = subprocess.run(
            [sys.executable, "-c", text], cwd=runtime_env["working_dir"], capture_output=True, text=True, check=True,
            env=os.environ | {"PYTHONPATH": runtime_env["working_dir"]},
        ).stdout  # fmt: skip
    assert done.endswith("b'a diff'\n")
    told = json.loads(done.removesuffix("b'a diff'\n"))
    wanted = there.recorded() | {"submitted": True}
    assert {key: told[key] for key in wanted} == wanted
    assert told["packages"]["ray"]
    with package(FAILED) as runtime_env:
        assert not list(Path(runtime_env["working_dir"]).glob("submitted*"))


# Addresses


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    return tmp_path


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        (["--into", "s3://b/small"], 4, "no job server of Ray answers at http://127.0.0.1:PORT"),
        (["--into", "runs/small"], 2, "kept in a bucket, not in runs/small; give its URI: --into s3://BUCKET/small"),
        ([], 2, "--into s3://BUCKET/small"),
        (["--into", "s3://me:word@b/small"], 2, "credentials"),
    ],
)
def test_what_cannot_be_submitted_says_what_would_work(
    sweep: Path, arguments: list[str], code: int, words: str
) -> None:
    port = str(free_port())
    said = call("launch", "sweep.toml", *arguments, "--address", f"http://127.0.0.1:{port}", cwd=sweep, code=code)
    assert words.replace("PORT", port) in said
    assert "Traceback" not in said


def test_options_of_jobs_want_an_address(sweep: Path) -> None:
    assert "--address" in call("launch", "sweep.toml", "--detach", cwd=sweep, code=2)
    assert "no job server" in call("status", "--address", "ray://127.0.0.1:1", cwd=sweep, code=2)


# On a cluster


class Site:
    """A cluster, each of whose nodes is a process group of `ray start --block`, and a bucket beside it."""

    def __init__(self, folder: Path, bucket: Callable[[str], str]) -> None:
        self.folder, self.bucket = folder, bucket
        self.gcs, self.dashboard = free_port(), free_port()
        self.nodes: list[subprocess.Popen[bytes]] = []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.dashboard}"

    def start(self) -> None:
        """A head without CPUs for trials, and two nodes; one after the other, as nodes of one address share ports."""
        self.head()
        for _ in range(2):
            self._node("--num-cpus=2", f"--address=127.0.0.1:{self.gcs}")
        wait_for(lambda: answers(self.url), what="the job server")

    def head(self, *options: str) -> None:
        """Only a head, without CPUs."""
        self._node(
            "--head", "--num-cpus=0", f"--port={self.gcs}", f"--dashboard-port={self.dashboard}",
            "--dashboard-host=127.0.0.1", f"--ray-client-server-port={free_port()}", *options,
        )  # fmt: skip

    def end(self) -> None:
        """kill -9 every process of every node."""
        family = [one for node in self.nodes for one in [psutil.Process(node.pid), *children(node)]]
        for one in family:
            with contextlib.suppress(psutil.NoSuchProcess):
                one.kill()
        for node in self.nodes:
            node.wait()
        end(family)
        self.nodes.clear()

    def _node(self, *options: str) -> None:
        # The ports that `ray start` takes by itself may be another session's.
        own = ("--node-ip-address=127.0.0.1", "--dashboard-agent-listen-port=0")
        start = [*OWN_FILES, sys.executable, "-m", "ray.scripts.scripts", "start", "--block", *own, *options]
        path = self.folder / f"node{len(self.nodes)}.log"
        with path.open("wb") as log:
            node = subprocess.Popen(start, stdout=log, stderr=log, start_new_session=True)
        self.nodes.append(node)
        wait_for(lambda: node.poll() is not None or "will now block" in path.read_text(), what="a node")
        assert node.poll() is None, path.read_text()


def answers(url: str) -> bool:
    try:
        submission.JobServer(url).version()
    except submission.ServerUnavailable:
        return False
    return True


@pytest.fixture(scope="module")
def own_files() -> None:
    Path("/tmp/ray").mkdir(exist_ok=True)
    allowed = subprocess.run([*OWN_FILES, "true"], capture_output=True, text=True, check=False)
    if allowed.returncode:
        pytest.skip(f"nodes with files of their own need mount namespaces: {allowed.stderr.strip()}")


@pytest.fixture(scope="module")
def site(own_files: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    folder = tmp_path_factory.mktemp("site")
    tracking = Server(folder)
    with postgres_server() as postgres, s3_server() as bucket, pytest.MonkeyPatch.context() as patch:
        tracking.start()
        for name, value in {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": TOKEN,
            "RAY_USAGE_STATS_ENABLED": "0",
            "ORCHESTRATOR_LEDGER": new_database(postgres),
            "ORCHESTRATOR_SCRATCH": str(folder / "scratch"),
            "MLFLOW_TRACKING_URI": tracking.uri,
            "ORCHESTRATOR_PYTHON": sys.executable,
            **QUICK,
        }.items():
            patch.setenv(name, value)
        made = Site(folder, bucket)
        try:
            made.start()
            yield made
        finally:
            made.end()
            tracking.kill()


def metrics(stood: statuses.Status | dict[str, Any]) -> dict[str, float | None]:
    return {trial["id"]: trial["metric"] for trial in stood["trials"]}


def laptop() -> dict[str, str]:
    """An environment that knows the address and the token, and neither ledger, bucket nor MLflow."""
    hidden = ("ORCHESTRATOR_LEDGER", "MLFLOW_TRACKING_URI", "AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")
    return {name: "" if name in hidden else value for name, value in os.environ.items()}


@dataclass(frozen=True)
class Submitted:
    """A sweep that a laptop has had run to its end."""

    run: str
    said: str
    folder: Path
    """Where it was submitted."""


@pytest.fixture(scope="module")
def submitted(site: Site, tmp_path_factory: pytest.TempPathFactory) -> Submitted:
    run, folder = site.bucket("runs/small%20one"), tmp_path_factory.mktemp("laptop")
    (folder / "sweep.toml").write_text(SWEEP)
    said = call("launch", "sweep.toml", "--into", run, "--address", site.url, cwd=folder, env=laptop())
    return Submitted(run, said, folder)


@pytest.mark.soak
@pytest.mark.slow
def test_a_sweep_submitted_from_a_laptop_measures_what_a_local_one_does(
    site: Site, undisturbed: dict[str, float], submitted: Submitted
) -> None:
    """The laptop reaches the job server and nothing else. Bit for bit, as the world size is the same."""
    run, at, sweep = submitted.run, ("--address", site.url), submitted.folder
    told = json.loads(call("doctor", "sweep.toml", "--into", run, "--json", *at, cwd=sweep, env=laptop()))
    assert told["ready"]
    assert {(one["check"], one["found"]) for one in told["findings"]} >= {
        ("cluster", "3 nodes, 4 CPUs, 0 GPUs"),
        ("storage", "the bucket can be written, and files in it replaced"),
        ("ledger", "PostgreSQL can be written"),
        ("mlflow", "the server answers"),
        ("room", "2 trials of 2 ranks at once"),
    }
    assert call("doctor", *at, cwd=sweep, env=laptop()).endswith("ready: nothing wrong\n")
    said = submitted.said
    assert "[10/10]" in said
    assert "Running entrypoint" not in said, "Ray's own lines are left out"
    for verb in ("compare", "ui"):
        assert f"orchestrator {verb} {shlex.quote(run)} --address {site.url}\n" in said
    assert str(site.folder) not in said, "a path of the head means nothing here"
    stood = answered("status", call("status", run, "--json", *at, cwd=sweep, env=laptop()))
    assert stood["state"] == "done"
    assert metrics(stood) == undisturbed
    assert answered("verify", call("verify", run, "--json", *at, cwd=sweep, env=laptop()))["ok"]
    near = json.loads(call("status", run, "--json", cwd=sweep))
    assert metrics(near) == undisturbed, "what reaches ledger and bucket needs no address"
    with contextlib.closing(runs.at(run).open()) as ledger:
        recorded, here = ledger.run.environment, origin()
    typed = shlex.join(["orchestrator", "launch", "sweep.toml", "--into", run, *at])
    assert (recorded["command"], recorded["directory"], recorded["submitted"]) == (typed, str(sweep), True)
    assert (recorded["commit"], recorded["dirty"]) == (here.commit, here.dirty)
    remote = runs.at(run).remote
    assert remote is not None
    assert remote.read("submitted.diff") == (here.diff or None)
    trial = stood["trials"][0]["id"]
    assert "step" in call("logs", run, trial, *at, cwd=sweep, env=laptop())
    assert "10/10" in call("logs", run, *at, cwd=sweep, env=laptop()), "the driver's log"
    jobs = answered("status", call("status", "--json", *at, cwd=sweep, env=laptop()))["jobs"]
    assert [(job["state"], job["exit_code"]) for job in jobs if job["run"] == run] == [("SUCCEEDED", 0)]


@pytest.mark.soak
@pytest.mark.slow
def test_what_the_head_makes_comes_to_a_laptop_whole(site: Site, submitted: Submitted, tmp_path: Path) -> None:
    """The same files, and nothing of one that cannot be made. Mutant check: without the hold the log is emptied, or
    ends, before it is read."""
    run, at = submitted.run, ("--address", site.url)
    here = partial(call, cwd=tmp_path, env=laptop())
    said = [here("compare", run, *at)]
    assert "report: small one-report/report.html\n" in said[0]
    remote, report = runs.at(run).remote, tmp_path / "small one-report"
    assert remote is not None
    assert {path.name for path in report.iterdir()} == {*remote.files("report"), bring.MARKER}
    assert (report / "report.html").read_bytes() == remote.read("report/report.html")
    (tmp_path / "sweep.toml").write_text(SWEEP)
    said.append(here("plan", "sweep.toml", *at))
    assert "2 at once" in said[-1], "as many as the cluster's nodes take"
    told = re.search(r"from (\d+) trials of small", said[-1])
    assert told is not None, f"which its ledger tells: {said[-1]}"
    assert int(told[1]) >= TRIALS, "others of these tests may have run the same"
    said.append(here("export", run, "flatnce", "new/flat nce", *at))
    assert f"load it: SentenceTransformer({'new/flat nce'!r}" in said[-1]
    near = call("export", run, "flatnce", "near", cwd=tmp_path)
    assert near.splitlines()[0] == said[-1].splitlines()[0]
    for path in (tmp_path / "near").iterdir():
        assert (tmp_path / "new/flat nce" / path.name).read_bytes() == path.read_bytes()
    said.append(here("ui", run, *at))
    assert [line.partition(":")[0] for line in said[-1].splitlines()] == [
        "answer", "report", "arms", "charts", "curves", "search", "compare", "note"
    ]  # fmt: skip
    said.append(here("export", run, "nosuch", "other", *at, code=2))
    assert "arms: infonce, flatnce" in said[-1]
    said.append(here("status", run.replace("one", "two"), *at, code=2))
    assert f"--address {site.url}" in said[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"sweep.toml", "small one-report", "new", "near"}
    assert str(site.folder) not in "".join(said)


@pytest.mark.soak
@pytest.mark.slow
def test_questions_leave_no_job_whoever_is_killed_or_leaves(site: Site, submitted: Submitted) -> None:
    """Mutant check: without the look at who asked, the killed laptop's job stays."""
    ask = command("status", submitted.run, "--address", site.url)
    server = submission.JobServer(site.url)

    def questions() -> list[str]:
        return [job.id for job in server.jobs() if job.id.startswith("ask-")]

    for number, code in ((signal.SIGKILL, -9), (signal.SIGINT, 130)):
        with subprocess.Popen(ask, env=QUICK | laptop(), stderr=subprocess.PIPE) as asker:
            before = set(questions())
            wait_for(lambda: set(questions()) - before, what="a question")  # noqa: B023
            asker.send_signal(number)
            assert asker.wait(60) == code
    call("status", submitted.run, "--address", site.url, cwd=submitted.folder, env=laptop())
    wait_for(lambda: (call("status", submitted.run, "--address", site.url, cwd=submitted.folder, env=laptop()) != "")
             and not questions(), what="the questions to go")  # fmt: skip


@pytest.mark.soak
@pytest.mark.slow
def test_a_living_driver_says_how_its_run_stands_and_one_that_was_stopped_has_not_failed(
    site: Site, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In a folder of the head's. Mutant check: a status that is kept in the job's own words ends this with a question,
    and Ray calls what a person has stopped failed."""
    (tmp_path / "long.toml").write_text(SWEEP.replace("steps = 8", "steps = 4000"))
    run, at = (site.folder / "héad's").as_uri(), ("--address", site.url)
    call("launch", "long.toml", "--into", run, "--offline", "--detach", *at, cwd=tmp_path, env=laptop())
    with monkeypatch.context() as patch:
        patch.setattr(asking, "run", lambda *_, **__: pytest.fail("no job is needed"))
        wait_for(lambda: (stands := submission.standing(site.url, run)) and stands["counts"]["running"])
        done = CliRunner().invoke(main, ["status", run, "--json", *at])
        assert done.exit_code == 0, done.output
        assert "driven by" in CliRunner().invoke(main, ["status", run, *at]).output
        with contextlib.closing(runs.at(run).open()) as ledger:
            known = statuses.status(ledger)
    told = json.loads(done.stdout)
    assert told.keys() == known.keys()
    assert [trial["id"] for trial in told["trials"]] == [trial["id"] for trial in known["trials"]][
        : len(told["trials"])
    ]
    assert [trial.keys() for trial in told["trials"]] == [known["trials"][0].keys()] * len(told["trials"])
    assert told["driver"] is not None
    assert known["driver"] is not None
    assert told["driver"]["holder"] == known["driver"]["holder"]
    server = submission.JobServer(site.url)
    (name,) = [job.id for job in server.jobs() if job.run == run]
    server.stop(name)  # as `ray job stop` does
    wait_for(lambda: (found := server.job(name)) is not None and found.over)
    listed = call("status", *at, cwd=tmp_path, env=laptop())
    assert f"stopped, resumable: orchestrator resume {shlex.quote(run)} --address {site.url}\n" in listed
    said = call("logs", run, *at, cwd=tmp_path, env=laptop(), code=130)
    assert f"job {name}: stopped, resumable; next: orchestrator resume" in said


@pytest.mark.soak
def test_a_job_that_is_left_goes_on_and_the_same_command_follows_it(site: Site, sweep: Path) -> None:
    """Mutant check: submitting without a look at the jobs there makes two, of which one ends with 3."""
    run, at = site.bucket("left"), ("--address", site.url)
    launch = ("launch", "sweep.toml", "--into", run, *at)
    with driver(*launch, cwd=sweep, env=laptop()) as process:
        wait_for(lambda: runs.at(run).exists)
        process.send_signal(signal.SIGINT)
        said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert f"orchestrator logs '{run}' --address {site.url}" in said
    both = [subprocess.Popen(command(*launch), cwd=sweep, env=QUICK | laptop(), stderr=subprocess.PIPE, text=True)
            for _ in range(2)]  # fmt: skip
    told = [one.communicate(timeout=200)[1] for one in both]
    assert [one.returncode for one in both] == [0, 0], told
    jobs = [job for job in submission.listed(site.url) if job["run"] == run]
    assert len(jobs) == 1
    assert all("this follows it" in text for text in told)


@pytest.mark.soak
def test_row_35_a_resume_failed_whose_asker_was_killed_is_joined_by_the_same_command(
    site: Site, tmp_path: Path
) -> None:
    """One job, whoever asks how often; what asks for something else is refused, and a plain resume may look on.

    Mutant check: without the digest in the job's metadata the same command ends with 2.
    """
    (tmp_path / "sweep.toml").write_text(SWEEP.replace("steps = 8", "steps = 4000"))
    run, at = site.bucket("again"), ("--address", site.url)
    call("launch", "sweep.toml", "--into", run, "--detach", *at, cwd=tmp_path, env=laptop())
    started(run)
    call("stop", run, *at, cwd=tmp_path, env=laptop())
    again = ("resume", run, "--failed", *at)
    with driver(*again, cwd=tmp_path, env=laptop()):
        wait_for(lambda: [job for job in submission.listed(site.url) if (job["run"], job["verb"]) == (run, "resume")])
    # kill -9 by the context's end
    wait_for(lambda: [job for job in submission.listed(site.url) if job["run"] == run][-1]["state"] == "RUNNING")
    for other in (("--give-up",), ("--failed", "--class", "hung"), ("--failed", "--env", "NCCL_DEBUG=INFO")):
        said = call("resume", run, *other, *at, cwd=tmp_path, env=laptop(), code=2)
        assert "with other options; stop that first" in said
    with contextlib.ExitStack() as stack:
        both = [
            stack.enter_context(driver(*words, cwd=tmp_path, env=laptop())) for words in (again, ("resume", run, *at))
        ]
        started(run)
        # It has said of which sweep it is, so that a launch of that one joins it.
        call("launch", "sweep.toml", "--into", run, "--detach", *at, cwd=tmp_path, env=laptop())
        said = call(
            "launch", "sweep.toml", "--set", "confirm.seeds=4", "--into", run, *at, cwd=tmp_path, env=laptop(), code=2
        )
        assert "with another sweep; stop that first" in said
        wait_for(lambda: "has stopped" in call("stop", run, *at, cwd=tmp_path, env=laptop()))
        told = [process.communicate(timeout=120)[0] for process in both]
        assert [process.returncode for process in both] == [130, 130], told
    assert all("this follows it" in text for text in told), told
    jobs = [job for job in submission.listed(site.url) if job["run"] == run]
    assert [job["verb"] for job in jobs] == ["launch", "resume"]


@pytest.mark.soak
def test_two_who_submit_at_once_meet_in_one_job(site: Site, sweep: Path) -> None:
    run = site.bucket("both")
    launch = ("launch", "sweep.toml", "--into", run, "--address", site.url)
    both = [subprocess.Popen(command(*launch), cwd=sweep, env=QUICK | laptop()) for _ in range(2)]
    try:
        wait_for(lambda: [job for job in submission.listed(site.url) if job["run"] == run])
        started(run)
        assert "has stopped" in call("stop", run, "--address", site.url, cwd=sweep, env=laptop())
        assert [one.wait(timeout=120) for one in both] == [130, 130]
    finally:
        for one in both:
            one.kill()
    assert len([job for job in submission.listed(site.url) if job["run"] == run]) == 1
    assert "[10/10]" in call("resume", run, "--address", site.url, cwd=sweep, env=laptop())


def started(run: str) -> None:
    """Wait until a trial of it runs."""

    def runs_now() -> bool:
        folder = runs.at(run)
        if not folder.exists:
            return False
        with contextlib.closing(folder.open()) as ledger:
            return ledger.counts()["running"] > 0

    wait_for(runs_now)


def test_a_wrong_token_is_told_with_the_remedy(site: Site, sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "f" * 32)
    said = call("status", "--address", site.url, cwd=sweep, code=4)
    assert "refuses this one" in said
    assert "export RAY_AUTH_TOKEN=" in said
    assert "f" * 32 not in said


@pytest.mark.soak
def test_a_head_that_takes_no_jobs_is_told_with_the_remedy(
    own_files: None, tmp_path: Path, sweep: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another Ray has the port of its agent; the head answers all the same."""
    monkeypatch.setattr(server, "AGENT_S", 0.0)
    monkeypatch.setenv("RAY_AUTH_MODE", "token")
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    site = Site(tmp_path, str)
    with socket.create_server(("127.0.0.1", 0)) as other:
        try:
            site.head(f"--dashboard-agent-listen-port={other.getsockname()[1]}")
            wait_for(lambda: answers(site.url), what="the job server")
            with pytest.raises(InfrastructureMissing, match="--dashboard-agent-listen-port=0"):
                submission.run_remote(
                    site.url, "s3://bucket/run", ["status", "s3://bucket/run"], out=lambda _: None, err=lambda _: None
                )
        finally:
            site.end()


@pytest.mark.soak
def test_an_edited_sweep_is_refused_on_the_cluster_too(site: Site, sweep: Path) -> None:
    run = site.bucket("edited")
    at = ("--into", run, "--address", site.url)
    with driver("launch", "sweep.toml", *at, cwd=sweep, env=laptop()):
        wait_for(lambda: [job for job in submission.listed(site.url) if job["run"] == run])
        (sweep / "sweep.toml").write_text(SWEEP.replace("seeds = 3", "seeds = 4"))
        said = call("launch", "sweep.toml", *at, cwd=sweep, env=laptop(), code=2)
        assert "with another sweep; stop that first" in said
        started(run)
        call("stop", run, "--address", site.url, cwd=sweep, env=laptop())
    with driver("launch", "sweep.toml", *at, cwd=sweep, env=laptop()) as process:
        assert "these keys differ" in process.communicate(timeout=60)[0]
    assert process.returncode == 2


@pytest.mark.soak
def test_a_lost_head_is_waited_for_and_the_run_continues(
    site: Site, undisturbed: dict[str, float], sweep: Path
) -> None:
    """The new head remembers no job; whoever follows the old one submits it again. Losing it costs no attempt."""
    run = site.bucket("head")
    with driver("launch", "sweep.toml", "--into", run, "--address", site.url, cwd=sweep, env=laptop()) as process:
        started(run)
        site.end()
        site.start()
        said, _ = process.communicate(timeout=300)
    assert process.returncode == 0, said
    assert "does not answer" in said
    assert "it is run again, and continues" in said
    with contextlib.closing(runs.at(run).open()) as ledger:
        stood = statuses.status(ledger)
    assert metrics(stood) == undisturbed
    assert stood["counts"]["done"] == TRIALS
