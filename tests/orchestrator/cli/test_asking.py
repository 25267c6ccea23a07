"""Questions to a cluster's head: how answers and files travel in the log of a job, and what is left of a question."""

from __future__ import annotations

import contextlib
import io
import random
from dataclasses import replace
from pathlib import Path
from typing import Any, cast
from urllib.parse import quote, unquote

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.cli.submission import JobSpec, asking, bring, meaning
from orchestrator.cli.submission.parcel import PIECE, Broken, Printed, Reader, Writer, _checksum, mark
from orchestrator.cli.submission.server import DRIVES, Job
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.folder import RunError
from orchestrator.system import exit_codes
from orchestrator.system.addresses import ADDRESS
from orchestrator.system.exit_codes import Exit
from orchestrator.system.process import this_process

# Answers in a log


def log_of(job: str, printed: list[tuple[str, str]], files: dict[str, bytes], folder: Path, *, code: int = 0) -> str:
    """The log of a job that printed this and made these files."""
    log = io.StringIO(f"Running entrypoint for job {job}: python -m x {job}\n")
    log.seek(0, io.SEEK_END)
    writer = Writer(job, log)
    for stream, text in printed:
        Printed(writer, stream).write(text)
    for name, content in files.items():
        (folder / "made").write_bytes(content)
        writer.file(folder / "made", name)
    writer.line(code=code)
    return log.getvalue()


@given(
    st.lists(st.tuples(st.sampled_from(["out", "err"]), st.text()), max_size=6),
    st.lists(st.integers(0, 10_000), max_size=6),
    st.integers(0, 255),
)
def test_what_was_printed_arrives_however_the_log_is_cut_and_told_again(
    printed: list[tuple[str, str]], cuts: list[int], code: int
) -> None:
    """Mutant check: counting lines from where the log broke off."""
    text = log_of("ask-1", printed, {}, Path(), code=code)
    out: list[str] = []
    err: list[str] = []
    reader = Reader("ask-1", out=out.append, err=err.append)
    for cut in cuts:
        reader.restart()
        reader.take(text[: cut % len(text)])
    reader.restart()
    assert reader.take(text)
    assert ("".join(out), "".join(err)) == tuple(
        "".join(told for stream, told in printed if stream == name) for name in ("out", "err")
    )
    assert reader.code == code


@pytest.mark.parametrize("size", [0, 1, PIECE, 2 * PIECE + 7])
def test_files_arrive_byte_for_byte_among_the_lines_of_others(tmp_path: Path, size: int) -> None:
    files = {"model.safetensors": random.Random(size).randbytes(size), "1_Pooling/é config.json": b"{}"}
    lines = log_of("ask-1", [("out", "{}")], files, tmp_path).splitlines(keepends=True)
    text = "".join(part for line in lines for part in (line, "a library: <<ask-1 {}\n", "<<ask-11 {}\n"))
    assert max(map(len, lines)) < 2**20, "a line that fits through every socket"
    (tmp_path / "here").mkdir()
    reader = Reader("ask-1", out=lambda _: None, err=lambda _: None, into=tmp_path / "here")
    for start in range(0, len(text), 100_001):
        reader.take(text[start : start + 100_001])
    assert reader.code == 0
    found = {path.relative_to(tmp_path / "here").as_posix(): path for path in (tmp_path / "here").rglob("*.*")}
    assert {name: path.read_bytes() for name, path in found.items() if path.is_file()} == files


def taken(text: str, into: Path | None = None) -> tuple[str, int | None]:
    """What a reader prints of a log, and its code."""
    out: list[str] = []
    reader = Reader("ask-1", out=out.append, err=out.append, into=into)
    reader.take(text)
    return "".join(out), reader.code


@given(st.data(), st.lists(st.text(max_size=20).map(lambda text: text.replace("<", "")), min_size=1, max_size=5))
def test_whatever_others_leave_between_lines_takes_nothing_away(data: st.DataObject, others: list[str]) -> None:
    """Another writer's line needs no end. Mutant check: a line that does not begin with one's own end."""
    log = io.StringIO()
    writer = Writer("ask-1", log)
    for number in range(4):
        log.write(data.draw(st.sampled_from(others)))
        writer.line(out=f"{number}\n")
    writer.line(code=7)
    assert taken(log.getvalue()) == ("0\n1\n2\n3\n", 7)


@pytest.mark.parametrize("other", ["w", "warn\n", ""])
def test_an_answer_that_was_hit_anywhere_is_broken_or_arrives_whole(tmp_path: Path, other: str) -> None:
    """By another's text at any place, or without any of its lines. Mutant checks: lines without a checksum, and
    without a number."""
    files = {"a": b"x" * 50, "b": b""}
    text = log_of("ask-1", [("out", "one"), ("err", "two")], files, tmp_path, code=3)
    lines = text.splitlines(keepends=True)
    hit = [text[:place] + other + text[place:] for place in range(len(text))] if other else []
    hit += [] if other else ["".join(lines[:place] + lines[place + 1 :]) for place in range(len(lines))]
    whole = 0
    for number, log in enumerate(hit):
        folder = tmp_path / f"here{number}"
        folder.mkdir()
        with contextlib.suppress(Broken):
            found, code = taken(log, folder)
            whole += code == 3
            if code is not None:
                assert (found, code) == ("onetwo", 3)
                assert {path.name: path.read_bytes() for path in folder.iterdir()} == files
    assert whole > 1


@pytest.mark.parametrize("lost", [["sha256"], ["data", "sha256"], ["data"], ["file"], ["file", "data"]])
def test_a_file_that_came_in_part_is_no_answer(tmp_path: Path, lost: list[str]) -> None:
    """Also where those who wrote it have not counted what they left out."""
    for name in ("a", "b"):
        (tmp_path / name).write_bytes(random.Random(0).randbytes(3 * PIECE))
    log = io.StringIO()
    writer = Writer("ask-1", log)
    line = writer.line
    writer.line = lambda **told: None if set(lost) & set(told) else line(**told)  # type: ignore[method-assign]
    for name in ("a", "b"):
        writer.file(tmp_path / name, name)
    writer.line(code=0)
    with pytest.raises(Broken, match=r"in part|did not arrive"):
        taken(log.getvalue(), tmp_path)


@pytest.mark.parametrize("told", ["{", "[]", "{}", "5", '{"data": "%"}', '{"data": "AAAA"}', '{"data": 5}'])
def test_what_is_no_line_of_an_answer_is_told_as_that(tmp_path: Path, told: str) -> None:
    """With the right count and checksum. Mutant check: errors of json, base64 and zlib as they are."""
    log = io.StringIO()
    Writer("ask-1", log).line(file="a")
    with pytest.raises(Broken):
        taken(log.getvalue() + f"{mark('ask-1')}{_checksum(f'2 {told}')} 2 {told}\n", tmp_path)


@pytest.mark.parametrize("name", ["../a", "/tmp/a", "b/../../a", "", "a\0b"])
def test_a_file_for_elsewhere_is_refused(tmp_path: Path, name: str) -> None:
    log = io.StringIO()
    Writer("ask-1", log).line(file=name)
    with pytest.raises(Broken, match="nobody asked for"):
        taken(log.getvalue(), tmp_path)
    assert list(tmp_path.iterdir()) == []


# What is left of questions


class Head:
    """A job server that remembers what is done to its jobs."""

    now, url = 10_000.0, "http://h"

    def __init__(self) -> None:
        self.done: list[tuple[str, str]] = []
        self.known: list[Job] = []

    def jobs(self) -> list[Job]:
        return self.known

    def job(self, name: str) -> Job | None:
        return next((replace(job, state="SUCCEEDED") for job in self.known if job.id == name), None)

    def submit(self, name: str, _: str, **__: Any) -> None:
        raise NotImplementedError

    def stop(self, name: str) -> None:
        self.done.append(("stop", name))

    def delete(self, name: str) -> None:
        self.done.append(("delete", name))
        self.known = [job for job in self.known if job.id != name]


def question(name: str = "ask-status-1", **changes: Any) -> Job:
    known: dict[str, Any] = {
        "state": "RUNNING",
        "run": "s3://b/r",
        "verb": "status",
        "sweep": None,
        "order": None,
        "exit_code": None,
    }
    known |= {"error": None, "message": "", "started": Head.now - 5, "asker": this_process()}
    return Job(id=name, **known | changes)


OVER: dict[str, Any] = {"state": "SUCCEEDED", "ended": Head.now - 1}
GONE = this_process().replace(" pid ", " pid 9")
OTHER = "elsewhere pid 1 [boot/1 1]"
AGES: list[dict[str, Any]] = [{"started": Head.now - 86_400}, {"state": "STOPPED", "ended": 1.0}]


@pytest.mark.parametrize(
    ("job", "done"),
    [
        (question(), None),
        (question(**OVER), None),
        (question(asker=OTHER, **OVER), None),
        (question(asker=GONE, **OVER), "delete"),
        (question(asker=GONE), "stop"),
        (question(asker=OTHER, state="FAILED", ended=Head.now - 601), "delete"),
        (question(asker=OTHER, started=Head.now - 3601), "stop"),
        (question(asker=None, state="STOPPED", ended=Head.now - 601), "delete"),
        (question("raysubmit_1", asker=GONE, **OVER), None),
        (question("small-1", verb="launch", state="FAILED", ended=1.0), None),
        *(
            (question(f"ask-{verb}s-6b0b2d5f-1", verb=verb, asker=None, **ages), None)
            for verb in DRIVES
            for ages in AGES
        ),
    ],
)
def test_what_nobody_reads_any_more_goes_and_nothing_else(job: Job, done: str | None) -> None:
    head = Head()
    asking._living([job], cast("Any", head))
    assert head.done == ([] if done is None else [(done, job.id)])


def test_drivers_take_no_questions_turn_and_their_ids_are_names_of_files() -> None:
    """Of runs whose names begin as the ids of questions do, or are long. Mutant check: going by the id alone."""
    names = ["ask-" + "mé" * length for length in (1, 50, 500)]
    orders = [JobSpec(verb="resume", run=f"s3://b/{name}", arguments=["resume"]) for name in names]
    drivers = [question(f"{order.name}-1", verb=order.verb, started=1.0) for order in orders]
    head = Head()
    assert asking._living(drivers, cast("Any", head)) == []
    assert head.done == []
    assert all(job.id.isascii() and len(f"job-driver-{job.id}.log") < 200 for job in drivers)
    assert len({order.name for order in orders}) == len(orders)


@pytest.mark.parametrize("others", [0, 3, 4, 9])
@pytest.mark.parametrize("at_once", [False, True])
def test_only_so_many_questions_are_answered_at_a_time(others: int, at_once: bool) -> None:
    """Of those who submit at once the latest yield. Mutant check: counting only before it is submitted."""
    head = Head()
    head.known = [] if at_once else [question(f"ask-{number}") for number in range(others)]

    def submit(name: str, _: str, **__: Any) -> None:
        head.known += [question(f"ask-{number}") for number in range(others if at_once else 0)]
        head.known.append(question(name))

    head.submit = submit  # type: ignore[method-assign]
    order = JobSpec(verb="status", run=RUN, arguments=["status", RUN])
    taken = asking._submitted(cast("Any", head), order, "ask-mine", brings=False)
    assert taken == (others < asking.MOST)
    assert ("ask-mine" in [job.id for job in head.known]) == taken


# What the end of a job means


@pytest.mark.parametrize(
    ("state", "exit_code", "error", "words", "code", "verb"),
    [
        ("PENDING", None, None, "waiting to start", None, "logs"),
        ("RUNNING", None, None, "running", None, "logs"),
        ("SUCCEEDED", 0, None, "done", 0, "compare"),
        ("STOPPED", None, None, "stopped, resumable", 130, "resume"),
        ("FAILED", 130, None, "stopped, resumable", 130, "resume"),
        ("FAILED", -15, None, "stopped, resumable", 130, "resume"),
        ("FAILED", 143, None, "stopped, resumable", 130, "resume"),
        ("FAILED", 75, None, "the cluster died, resumable", 75, "resume"),
        ("FAILED", -9, None, "killed, resumable", 75, "resume"),
        ("FAILED", 137, None, "killed, resumable", 75, "resume"),
        ("FAILED", None, "JOB_SUPERVISOR_ACTOR_DIED", "killed, resumable", 75, "resume"),
        ("FAILED", None, "RUNTIME_ENV_SETUP_FAILURE", "could not start", 4, "logs"),
        ("FAILED", 1, None, "some trials failed", 1, "status"),
        ("FAILED", 2, None, "refused", 2, "logs"),
        ("FAILED", 3, None, "another driver held the run", 3, "resume"),
        ("FAILED", 4, None, "something it needs was missing", 4, "logs"),
        ("FAILED", 127, None, "failed with 127", 127, "logs"),
    ],
)
def test_the_end_of_a_job_is_told_as_what_it_means(
    state: str, exit_code: int | None, error: str | None, words: str, code: int | None, verb: str
) -> None:
    found = meaning.of(question("small-1", state=state, exit_code=exit_code, error=error))
    assert (found.words, found.code, found.verb) == (words, code, verb)
    assert found.next("s3://b/a?x=1&y", "http://h:1") == f"orchestrator {verb} 's3://b/a?x=1&y' --address http://h:1"


# What is read elsewhere than it is printed


def test_commands_of_a_job_have_its_address_and_its_report_is_no_path_of_the_head(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    folder, there = runs.at("s3://b/a%20b?x=1"), runs.at((tmp_path / "run").as_uri())
    monkeypatch.delenv(ADDRESS, raising=False)
    assert folder.quoted == "'s3://b/a%20b?x=1'"
    assert folder.report_pages == [str(folder.report / "report.html"), "s3://b/a%20b/report/report.html?x=1"]
    assert exit_codes.located(f"{tmp_path} is full") == f"{tmp_path} is full"
    monkeypatch.setenv(ADDRESS, "http://h:8265")
    assert folder.quoted == "'s3://b/a%20b?x=1' --address http://h:8265"
    assert folder.report_pages == [f"orchestrator compare {folder.quoted}", "s3://b/a%20b/report/report.html?x=1"]
    assert there.report_pages == [f"orchestrator compare {there.quoted}"]


@pytest.mark.parametrize(
    ("text", "is_path"),
    [
        ("/root/.cache/x: No space left on device; free some", True),
        ("details: /tmp/orchestrator-error-1.txt", True),
        ("the ledger sqlite:////var/l.db is empty", True),
        ("no run at s3://b/x/y; begin it: orchestrator launch a.toml --into 's3://b/x' --address http://h:1", False),
        ("http://h:5000/api does not answer", False),
        ("3 pairs/s and a/b", False),
    ],
)  # fmt: skip
def test_a_path_in_what_a_job_says_is_said_to_be_the_heads(
    monkeypatch: pytest.MonkeyPatch, text: str, is_path: bool
) -> None:
    monkeypatch.setenv(ADDRESS, "http://h:8265")
    assert exit_codes.located(text) == text + (" (on the cluster's head)" if is_path else "")
    assert exit_codes.ending(RunError(text)) == (exit_codes.located(text), Exit.BAD_USAGE)


# Where files come to lie


RUN = "s3://b/runs/a%20b?x=1"


@pytest.fixture
def answered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """The files with which the head answers, or an exit code; the current folder is empty."""
    files = {"report.html": b"new", "results.parquet": b"p"}

    def ask(_url: str, _run: str, _arguments: list[str], *, into: Path, **_: Any) -> int:
        for name, content in files.items():
            if name == "code":
                return int(content)
            (into / name).write_bytes(content)
        return 0

    monkeypatch.setattr(bring, "run_remote", ask)
    monkeypatch.chdir(tmp_path)
    return files


def brought(into: str | None = None, *, of: str = RUN) -> bring.Answered:
    return bring.report("http://h", [of], flags=[], into=None if into is None else Path(into), err=lambda _: None)


def test_a_report_is_named_after_its_run_and_replaced_whole(answered: dict[str, bytes]) -> None:
    """A plot that is no longer drawn goes, and what somebody put beside it stays."""
    answered["tuning.png"] = b"old"
    assert brought().folder == Path("a b-report")
    (Path("a b-report") / "notes.txt").write_text("mine")
    del answered["tuning.png"]
    answered["report.html"] = b"newer"
    assert brought().folder == Path("a b-report")
    found = {path.name: path.read_bytes() for path in Path("a b-report").iterdir() if path.name != bring.MARKER}
    assert found == {"report.html": b"newer", "results.parquet": b"p", "notes.txt": b"mine"}
    assert [path.name for path in Path().iterdir()] == ["a b-report"]


@pytest.mark.parametrize(
    ("last", "length"), [("x" * 300, 100), ("%E5%A4%A7" * 99, 66), ("é" * 40 + "%F0%9F%A7%AA" * 60, 70)]
)
def test_a_report_of_a_run_with_a_long_name_has_a_name_that_a_folder_may_have(
    answered: dict[str, bytes], last: str, length: int
) -> None:
    """In bytes too. Mutant check: cutting characters alone."""
    place = brought(of=f"s3://b/{quote(unquote(last))}").folder
    assert place is not None
    assert (place / "report.html").exists()
    assert len(place.name.removesuffix("-report")) == length
    assert "\ufffd" not in place.name


@pytest.mark.parametrize("other", ["folder", "file", "report of another run", "link"])
def test_what_is_somebody_elses_is_left_alone(answered: dict[str, bytes], other: str) -> None:
    place = Path("mine")
    if other == "file":
        place.write_text("x")
    elif other == "link":
        place.symlink_to("nowhere")
    elif other == "folder":
        place.mkdir()
        (place / "report.html").write_text("x")
    else:
        brought("mine", of="s3://b/other")
    before = sorted(map(str, Path().rglob("*")))
    with pytest.raises(RunError, match="name another folder: --into mine-2"):
        brought("mine")
    assert sorted(map(str, Path().rglob("*"))) == before


def test_an_export_that_fails_or_is_left_makes_nothing(answered: dict[str, bytes]) -> None:
    answered["code"] = b"2"
    assert bring.export("http://h", RUN, "x", Path("new/enc"), err=lambda _: None) == (2, None)
    assert list(Path().iterdir()) == []
    Path("enc").mkdir()
    (Path("enc") / "mine").write_text("x")
    with pytest.raises(RunError, match="name a new folder, such as enc-2"):
        bring.export("http://h", RUN, "x", Path("enc"), err=lambda _: None)


def test_an_interrupted_export_makes_nothing(answered: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: Any, into: Path, **__: Any) -> int:
        (into / "model.safetensors").write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(bring, "run_remote", interrupted)
    with pytest.raises(KeyboardInterrupt):
        bring.export("http://h", RUN, "x", Path("new/enc"), err=lambda _: None)
    assert list(Path().iterdir()) == []


def test_two_jobs_of_one_run_are_told_apart_from_those_of_its_neighbour() -> None:
    """By whichever of its spellings."""
    from orchestrator.cli.submission.follow import drives

    own = question("a-1", verb="launch", run="s3://b/a/")
    other = replace(own, id="a-2", run="s3://b/a2")
    assert drives([own, other], "s3://b/a") == own
    assert drives([other], "s3://b/a") is None
