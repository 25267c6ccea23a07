"""Runs that are kept in a bucket: a real S3 server over HTTP, real PostgreSQL, real drivers that are killed."""

import contextlib
import io
import json
import os
import re
import shutil
import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner, Result
from real import SWEEP, TRIALS, call, driver, wait_for
from servers import new_database, s3_server

from jobs.artifacts.objects import ATTEMPTS, CONNECT_S
from jobs.data.formats import DataError
from jobs.data.resolve import locate
from orchestrator import sweep
from orchestrator.cli import main
from orchestrator.ledger import Ledger, sqlite_url
from orchestrator.preflight.requirements import Requirements
from orchestrator.run_dir import bucket as remote
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.bucket import BadAddress, Remote
from orchestrator.run_dir.context import Options
from orchestrator.run_dir.creation import SweepChanged, create, refuse_what_is_no_run
from orchestrator.run_dir.folder import RunError, RunFolder, at, find, names
from orchestrator.sweep import plan as planning
from orchestrator.system.exit_codes import InfrastructureMissing

QUERY = "?endpoint_override=127.0.0.1:9&scheme=http"


# Addresses


@pytest.mark.parametrize(
    ("uri", "inside", "above"),
    [
        ("s3://b/p/run", "s3://b/p/run/trials/x", "s3://b/p"),
        ("s3://b/p/run/" + QUERY, "s3://b/p/run/trials/x" + QUERY, "s3://b/p" + QUERY),
        ("s3://b/run", "s3://b/run/trials/x", "s3://b"),
        ("s3://b", "s3://b/trials/x", None),
    ],
)
def test_a_prefix_goes_before_what_follows_the_question_mark(uri: str, inside: str, above: str | None) -> None:
    """Mutant check: appending to the URI as it is fails this."""
    remote = Remote.of(uri)
    assert remote.inside("trials/x").uri == inside
    assert remote.above() == (None if above is None else Remote(above))


@pytest.mark.parametrize(
    ("uri", "shown"),
    [
        ("s3://AKIA:hush@bucket/run", "s3://bucket/run"),
        ("s3://AKIA:hu/sh@bucket/run", "s3://bucket/run"),
        ("s3://hush@bucket/run", "s3://bucket/run"),
        ("s3://AKIA:hush@bucket/run@2024", "s3://bucket/run@2024"),
        ("s3://AKIA:9000/hush@bucket/run", "s3://bucket/run"),
        ("s3://AKIA:hush/run", "s3://..."),
        ("abfss://:hush@account/run", "abfss://account/run"),
        ("abfss://AKIA:hu/sh@account/run", "abfss://account/run"),
        ("s3://b/run?access_key=hush&scheme=http&secret_key=hush", "s3://b/run?scheme=http was given with access_key,"),
        ("s3://b/run?session_token=hush", "s3://b/run was given with session_token"),
        ("s3://b/run?to%6Ben=hush", "s3://b/run was given with to%6Ben"),
        ("s3://b/run?endpoint_override=me:hush@host:9000", "s3://b/run was given with endpoint_override"),
        ("abfs://b/run?sas_token=hush", "AZURE_CLIENT_SECRET=..."),
    ],
)
def test_a_uri_that_holds_credentials_is_refused_and_they_are_not_shown(uri: str, shown: str) -> None:
    with pytest.raises(BadAddress, match="holds no credentials") as caught:
        at(uri)
    assert shown in str(caught.value)
    assert "hush" not in str(caught.value)
    assert "AKIA" not in str(caught.value)
    done = CliRunner().invoke(main, ["status", uri])
    assert (done.exit_code, "hush" in done.output) == (2, False)


@pytest.mark.parametrize(
    "uri",
    [
        "gs://anonymous@bucket/run",
        "abfs://container@account/run",
        "abfs://container@account/a:b@2",
        "s3://b/run@2024",
        "s3://b/a:b@c/d",
    ],
)
def test_a_name_before_the_host_is_no_credential_elsewhere(uri: str) -> None:
    assert at(uri).name == uri


def test_a_run_in_a_bucket_has_a_working_copy_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path))
    one, same, other = (at(f"s3://b/{name}?scheme=http") for name in ("one", "one/", "other"))
    assert one == same
    assert one.path.parent == other.path.parent == tmp_path
    assert one.path != other.path
    assert one.trial_uri("abc") == "s3://b/one/trials/abc?scheme=http"
    assert one.quoted == "'s3://b/one?scheme=http'"
    assert at("runs/one") == RunFolder(Path("runs/one"))
    assert at("runs/one").trial_uri("abc") is None
    monkeypatch.delenv("ORCHESTRATOR_SCRATCH")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert at("s3://b/one").path.parent == tmp_path / "cache" / "orchestrator"


# What a store holds


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[str], str]]:
    """`bucket(path)` is the URI of a path in a bucket."""
    with s3_server() as uri:
        yield uri


@pytest.fixture(params=["s3", "file"])
def store(request: pytest.FixtureRequest, bucket: Callable[[str], str], tmp_path: Path) -> Remote:
    """An empty prefix."""
    return Remote.of(bucket(tmp_path.name) if request.param == "s3" else (tmp_path / "there").as_uri())


def test_files_are_put_read_listed_and_deleted(store: Remote, tmp_path: Path) -> None:
    assert (store.read("a"), store.files(), store.with_file("a")) == (None, {}, [])
    store.put("a", b"old")
    store.put("a", b"new")
    (tmp_path / "here" / "sub").mkdir(parents=True)
    (tmp_path / "here" / "sub" / "b").write_bytes(b"")
    store.put_files(tmp_path / "here", [tmp_path / "here" / "sub" / "b"])
    assert (store.read("a"), store.read("sub/b")) == (b"new", b"")
    assert store.files().keys() == {"a", "sub"}
    assert store.files("sub").keys() == {"b"}
    assert store.with_file("b") == ["sub"]
    store.delete("a")
    store.delete("a")
    assert store.files().keys() == {"sub"}


@pytest.fixture
def begun(store: Remote, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> RunFolder:
    """A run under `store`, called `quick`, as its driver sees it."""
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", sqlite_url(tmp_path / "ledger.db"))
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path / "scratch"))
    with contextlib.closing(Ledger.create(sqlite_url(tmp_path / "ledger.db"), name="quick", sweep={})) as ledger:
        store.put("quick/sweep.json", json.dumps({"run": ledger.uuid}).encode())
    return at(store.inside("quick").uri)


def test_a_run_is_found_by_its_uri_and_a_misspelt_one_is_met_with_the_nearest(begun: RunFolder, store: Remote) -> None:
    assert find(begun.name) == begun
    assert names(store) == ["quick"]
    begun.open().close()
    with pytest.raises(
        RunError, match=r"no run at \w+://.*quik.*; did you mean 'quick'\?; runs beside it: quick; begin"
    ):
        find(store.inside("quik").uri)


def test_a_working_copy_holds_nothing_of_another_run_and_no_log_is_cut_short(begun: RunFolder) -> None:
    """Mutant checks: a copy that is kept, and a log that is always taken from the bucket, fail this."""
    assert begun.remote is not None
    begun.trial("abc").mkdir(parents=True)
    (begun.trial("abc") / "attempt.json").write_text('{"token": 9, "attempt": 1}')
    begun.identity.write_text('{"run": "another"}')
    begun.check_out()
    assert {path.name for path in begun.path.iterdir()} == {"sweep.json", "driver.log"}
    begun.log.write_text("one line\n")
    begun.check_in(0)
    with begun.log.open("a") as log:
        log.write("and what a killed driver wrote\n")
    begun.check_out()
    assert begun.log.read_text().endswith("killed driver wrote\n")
    shutil.rmtree(begun.path)
    begun.check_out()
    assert begun.log.read_text() == "one line\n"


def test_what_a_session_leaves_behind_goes_to_the_bucket(begun: RunFolder) -> None:
    """Mutant checks: uploading old logs too, and keeping pictures that the report no longer has, fail this."""
    assert begun.remote is not None
    begun.check_out()
    for trial, when in (("old", 1000.0), ("new", 3000.0)):
        begun.trial(trial).mkdir(parents=True)
        for name in ("log.rank1.txt", "failure.attempt1.txt", "points.jsonl"):
            path = begun.trial(trial) / name
            path.write_text(trial)
            os.utime(path, (when, when))
    begun.report.mkdir()
    (begun.report / "report.html").write_text("x")
    (begun.report / "curves.png").write_text("x")
    begun.check_in(2000.0)
    assert begun.remote.files("trials").keys() == {"new"}
    assert begun.remote.files("trials/new").keys() == {"log.rank1.txt", "failure.attempt1.txt"}
    (begun.report / "curves.png").unlink()
    begun.check_in_report()
    assert begun.remote.files("report").keys() == {"report.html"}


@pytest.mark.few(1)
def test_logs_and_failures_come_from_the_bucket_unless_newer_ones_are_here(begun: RunFolder) -> None:
    assert begun.remote is not None
    begun.remote.put("trials/abc123/log.rank0.txt", b"there")
    begun.remote.put("trials/abc123/failure.attempt1.txt", b"why")
    begun.remote.put("trials/abc123/points.jsonl", b"x")
    assert runs.logs(begun, "abc", 0) == "there"
    assert sorted(path.name for path in begun.trial("abc123").iterdir()) == ["failure.attempt1.txt", "log.rank0.txt"]
    (begun.trial("abc123") / "log.rank0.txt").write_text("here")
    begun.remote.put("trials/abc123/log.rank1.txt", b"of rank 1")
    assert runs.logs(begun, "abc", 0) == "here"
    assert runs.logs(begun, "abc", 1) == "of rank 1"
    time.sleep(1.1)  # moto's times are whole seconds
    begun.remote.put("trials/abc123/log.rank0.txt", b"of another machine")
    assert runs.logs(begun, "abc", 0) == "of another machine"
    with pytest.raises(RunError, match=r"'x' names 0 trials .*: abc123"):
        runs.logs(begun, "x", 0)


def test_the_pages_of_a_run_in_a_bucket_need_a_server(begun: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    for verb in ("ui", "verify"):
        done = CliRunner().invoke(main, [verb, begun.name])
        assert (done.exit_code, "export MLFLOW_TRACKING_URI=http://" in done.output) == (4, True), done.output


# Beginning a run


def launched(home: Path, uri: str, *arguments: str) -> Result:
    """What `launch` says, which must be within half a minute."""
    (home / "sweep.toml").write_text(SWEEP)
    began = time.monotonic()
    done = CliRunner().invoke(main, ["launch", str(home / "sweep.toml"), "--into", uri, *arguments])
    assert time.monotonic() - began < 30
    return done


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder to work in, with a ledger and a scratch folder, neither of which is there yet."""
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", sqlite_url(tmp_path / "ledger.db"))
    monkeypatch.setenv("ORCHESTRATOR_SCRATCH", str(tmp_path / "scratch"))
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    return tmp_path


def test_without_a_ledger_that_others_reach_it_ends_with_2(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", "")
    done = launched(home, "s3://bucket/run" + QUERY, "--offline")
    assert (done.exit_code, "export ORCHESTRATOR_LEDGER=postgresql://" in done.output) == (2, True), done.output
    assert f"s3://bucket/run{QUERY}" in done.output, "click's paths make one slash of two"
    assert [path.name for path in home.iterdir()] == ["sweep.toml"]


def test_a_ledger_in_a_file_is_allowed_with_a_note(home: Path) -> None:
    (home / "sweep.toml").write_text(SWEEP)
    plan, offline = planning.make(sweep.load(home / "sweep.toml")), Options(offline=True)
    (note,) = Requirements.of_new(plan, at("s3://bucket/run"), offline).notes
    assert note == "ORCHESTRATOR_LEDGER is a file of SQLite, so only this machine can continue the run"
    assert Requirements.of_new(plan, at(home), offline).notes == ()


def test_without_an_mlflow_that_others_reach_it_ends_with_4(home: Path) -> None:
    done = launched(home, "s3://bucket/run" + QUERY)
    assert (done.exit_code, "add --offline" in done.output) == (4, True), done.output
    assert "export MLFLOW_TRACKING_URI=http://" in done.output
    assert [path.name for path in home.iterdir()] == ["sweep.toml"]


def test_a_bucket_that_is_not_there_ends_with_4(home: Path, bucket: Callable[[str], str]) -> None:
    uri = bucket("run").replace("s3://", "s3://no-")
    done = launched(home, uri, "--offline")
    assert (done.exit_code, "there is no bucket 'no-bucket-" in done.output) == (4, True), done.output
    assert "aws s3 mb s3://no-bucket-" in done.output
    assert "--endpoint-url http://127.0.0.1:" in done.output
    assert [path.name for path in home.iterdir()] == ["sweep.toml"]


def test_a_store_that_is_not_there_ends_with_4(home: Path, bucket: Callable[[str], str]) -> None:
    done = launched(home, "s3://bucket/run" + QUERY + "&region=us-east-1", "--offline")
    assert (done.exit_code, "curl -sI http://127.0.0.1:9" in done.output) == (4, True), done.output
    assert [path.name for path in home.iterdir()] == ["sweep.toml"]


def test_a_store_that_says_nothing_ends_with_4(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With shorter limits, so as not to wait. Mutant check: with pyarrow's own it takes 100 s."""
    assert (CONNECT_S + remote.REQUEST_S) * ATTEMPTS <= 30
    monkeypatch.setattr(remote, "REQUEST_S", 1)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        uri = f"s3://bucket/run?endpoint_override=127.0.0.1:{silent.getsockname()[1]}&scheme=http&region=us-east-1"
        done = launched(home, uri, "--offline")
    assert (done.exit_code, "See that it answers: curl" in done.output) == (4, True), done.output


@pytest.mark.parametrize(("given", "words"), [(False, "there are none here"), (True, "these may not do that")])
def test_credentials_that_are_missing_or_wrong_end_with_4(
    home: Path, bucket: Callable[[str], str], monkeypatch: pytest.MonkeyPatch, given: bool, words: str
) -> None:
    from moto import settings

    monkeypatch.setattr(settings, "INITIAL_NO_AUTH_ACTION_COUNT", 0)
    monkeypatch.setenv("HOME", str(home))
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "wrong") if given else monkeypatch.delenv(name)
    done = launched(home, bucket(f"run-{given}"), "--offline")
    assert (done.exit_code, words in done.output) == (4, True), done.output
    assert "export AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=..." in done.output
    assert [path.name for path in home.iterdir()] == ["sweep.toml"]


@pytest.mark.parametrize("uri", ["nonsense://there/run", "s3://bucket/run?endpoint=x"])
def test_what_is_no_address_ends_with_2(home: Path, uri: str) -> None:
    done = launched(home, uri, "--offline")
    assert (done.exit_code, "is no address of an object store" in done.output) == (2, True), done.output


@pytest.mark.parametrize(
    ("uri", "right"),
    [
        ("s3://bucket/my run?region=x", "s3://bucket/my%20run?region=x"),
        ("file:///tmp/läufe/1", "file:///tmp/l%C3%A4ufe/1"),
        ("s3://bucket/a#1", "s3://bucket/a%231"),
        ("gs://bucket/a[1]", "gs://bucket/a%5B1%5D"),
    ],
)
def test_what_no_uri_may_have_is_told_with_the_right_spelling(uri: str, right: str) -> None:
    """Of `a#1` and `a#2` pyarrow makes one and the same place."""
    with pytest.raises(BadAddress, match=f"give it as {re.escape(right)}$"):
        Remote.of(uri)
    assert Remote.of(right).uri == right


@pytest.mark.parametrize(
    ("text", "right"),
    [
        ("S3://bucket/x/run", "s3://bucket/x/run"),
        ("gs:/bucket/x/run", "gs://bucket/x/run"),
        (" abfs://c@a/run ", "abfs://c@a/run"),
        ("File:/tmp/run", "file:///tmp/run"),
    ],
)
def test_what_is_almost_a_uri_is_no_folder(
    text: str, right: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Unless there is one, as an earlier version made them. Mutant check: taking it for a path."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    for arguments in (
        ["launch", "sweep.toml", "--into", text],
        ["doctor", "--into", text],
        ["status", text],
        ["launch", "sweep.toml", "--into", text, "--address", "http://h:1"],
    ):
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, f"give it as {right}," in done.output) == (2, True), done.output
    for arguments in (["export", "run", "flat", text], ["compare", "a", "--into", text, "--address", "http://h:1"]):
        done = CliRunner().invoke(main, arguments)
        assert (done.exit_code, "a folder, not" in done.output) == (2, True), done.output
    assert [path.name for path in tmp_path.iterdir()] == ["sweep.toml"]
    Path(text).mkdir(parents=True)
    assert at(text).path == Path(text)
    assert at(f"./{text}").path == Path(f"./{text}")


def test_a_sweep_extends_a_file_here_and_data_are_told_how_a_uri_begins(tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text('extends = "s3://bucket/base.toml"\n')
    done = CliRunner().invoke(main, ["plan", str(tmp_path / "sweep.toml")])
    assert (done.exit_code, "must be the path of a sweep beside this" in done.output) == (2, True), done.output
    with pytest.raises(DataError, match="a URI begins with gs://"):
        locate("GS:/bucket/a.parquet")


def test_a_prefix_that_holds_something_else_is_left_alone(home: Path, store: Remote) -> None:
    store.put("run/thesis.txt", b"x")
    done = launched(home, store.inside("run").uri, "--offline")
    assert (done.exit_code, "is not empty and holds no run" in done.output) == (2, True), done.output
    assert store.files("run").keys() == {"thesis.txt"}


@pytest.mark.parametrize("broken", ["sweep.json", "sweep.toml", "ledger"])
def test_a_creation_that_fails_leaves_no_run_and_no_row(
    home: Path, monkeypatch: pytest.MonkeyPatch, broken: str
) -> None:
    """What cannot be written is a file whose place a folder has. Mutant check: without `discard` the row stays."""
    folder = at((home / "there").as_uri())
    (home / "sweep.toml").write_text(SWEEP)
    plan = planning.make(sweep.load(home / "sweep.toml"))
    url = folder.ledger_url()
    if broken == "ledger":
        monkeypatch.setenv("ORCHESTRATOR_LEDGER", "mysql://nowhere/x")
    else:
        (home / "there" / broken).mkdir(parents=True)
    with pytest.raises(InfrastructureMissing, match="there cannot be made"):
        create(home / "sweep.toml", plan, folder)
    assert not [path for path in (home / "there").rglob("*") if path.is_file()]
    assert not folder.path.exists()
    assert not (home / "ledger.db").exists() or Ledger.runs(url) == []


def test_a_run_that_somebody_began_meanwhile_is_not_begun_again(begun: RunFolder) -> None:
    with pytest.raises(SweepChanged, match="by somebody else just now"):
        refuse_what_is_no_run(begun)


# Whole sweeps


def metrics(folder: RunFolder) -> dict[str, float]:
    """The metric of every trial in the bucket's results.parquet."""
    assert folder.remote is not None
    rows = pq.read_table(io.BytesIO(folder.remote.read("report/results.parquet") or b"")).to_pylist()
    return {row["trial"]: row["metric"] for row in rows}


@pytest.fixture(scope="module")
def shared(postgres: str, bucket: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with the sweep; ledger, MLflow and scratch are in the environment."""
    home = tmp_path_factory.mktemp("shared")
    (home / "sweep.toml").write_text(SWEEP)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ORCHESTRATOR_LEDGER", new_database(postgres))
        patch.setenv("ORCHESTRATOR_SCRATCH", str(home / "scratch"))
        patch.setenv("MLFLOW_TRACKING_URI", f"sqlite:///{home}/mlflow.db")
        yield home


@pytest.fixture(scope="module")
def whole(
    shared: Path, bucket: Callable[[str], str], tmp_path_factory: pytest.TempPathFactory
) -> tuple[RunFolder, dict[str, float]]:
    """The sweep in a bucket, and the metrics of the same sweep in a folder; both are run at once to save time."""
    home, folder = tmp_path_factory.mktemp("local"), at(bucket("runs/whole"))
    (home / "sweep.toml").write_text(SWEEP)
    with driver("launch", "sweep.toml", "--offline", cwd=home, env={"ORCHESTRATOR_LEDGER": ""}) as process:
        said = call("launch", "sweep.toml", "--into", folder.name, "--offline", cwd=shared)
        assert f"[{TRIALS}/{TRIALS}]" in said
        said, _ = process.communicate(timeout=120)
        assert process.returncode == 0, said
    rows = pq.read_table(home / "runs" / "small" / "report" / "results.parquet").to_pylist()
    return folder, {row["trial"]: row["metric"] for row in rows}


@pytest.mark.slow
def test_a_sweep_in_a_bucket_measures_what_the_same_sweep_in_a_folder_does(
    shared: Path, whole: tuple[RunFolder, dict[str, float]]
) -> None:
    """And the verbs take its URI on a machine that has no copy of it. Mutant check: a report that stays where it was
    written, or a log that is only looked for here, fails this."""
    folder, local = whole
    uri = folder.name
    assert metrics(folder) == local
    shutil.rmtree(shared / "scratch")
    stood = json.loads(invoked("status", uri, "--json"))
    assert stood["counts"]["done"] == TRIALS
    assert "step 8 of 8" in invoked("logs", uri, stood["trials"][0]["id"][:6])
    assert f"continue it: orchestrator resume {folder.quoted}" in invoked("stop", uri)
    answer = json.loads(invoked("compare", uri, "--json"))
    assert [arm["n"] for arm in answer["arms"]] == [3, 3]
    said = call("launch", "sweep.toml", "--into", uri, "--offline", "--set", "confirm.seeds=4", cwd=shared, code=2)
    assert "runs/whole-2?endpoint_override" in said


@pytest.mark.soak
def test_a_killed_driver_s_sweep_is_continued_by_a_machine_that_has_nothing_of_it(
    shared: Path, bucket: Callable[[str], str], whole: tuple[RunFolder, dict[str, float]]
) -> None:
    """Mutant check: without `remote` in what the executor hands to the gang, verify finds no trial."""
    folder = at(bucket("runs/killed"))
    launch = ("launch", "sweep.toml", "--into", folder.name)
    with contextlib.ExitStack() as stack:
        process = stack.enter_context(driver(*launch, cwd=shared))
        wait_for(lambda: process.poll() is not None or folder.exists, what="the run")
        ledger = stack.enter_context(contextlib.closing(folder.open()))
        wait_for(lambda: process.poll() is not None or ledger.counts()["done"] >= 3, what="three trials")
        assert process.poll() is None, "it ended before it could be killed"
    with contextlib.closing(folder.open()) as ledger:
        before = {trial.id: trial.attempts for trial in ledger.trials(state="done")}
    assert 3 <= len(before) < TRIALS
    shutil.rmtree(shared / "scratch")
    said = call(*launch, cwd=shared)
    assert f"orchestrator ui {folder.quoted}" in said
    assert metrics(folder) == whole[1]
    with contextlib.closing(folder.open()) as ledger:
        assert {trial.id: trial.attempts for trial in ledger.trials() if trial.id in before} == before
    shutil.rmtree(shared / "scratch")
    found = json.loads(invoked("verify", folder.name, "--json"))
    assert found["ok"], found["faults"]
    assert found["trials"] == found["mlflow_runs"] == TRIALS
    assert found["checkpoints"] >= TRIALS
    trial = next(iter(before))
    assert folder.remote is not None
    folder.remote.put(f"trials/{trial}/checkpoints/step_000008/model.safetensors", b"damaged")
    (fault,) = json.loads(invoked("verify", folder.name, "--json", code=1))["faults"]
    assert "model.safetensors does not match its sha256; put it back from a copy" in fault


def invoked(*arguments: str, code: int = 0) -> str:
    """What a verb prints."""
    done = CliRunner().invoke(main, list(arguments))
    assert done.exit_code == code, done.output
    return done.stdout
