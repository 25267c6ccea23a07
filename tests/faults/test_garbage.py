"""Rows 41, 43 and 46 of the fault table: whatever lies in place of a file, or cannot be written, is met with words.

The run is one that an older version began; `resume` brought it forward, told it to MLflow and wrote its report. What
damaged files of a trial do to its training: test_damaged_trials.py.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from damage import DAMAGES, OF_JSON, Damage, a_folder, absent, garbage
from forked import Done, forking
from mounts import read_only
from real import SWEEP, call

from orchestrator.system import exit_codes

BEGUN = Path(__file__).parents[1] / "begun" / "diverged"
TRIAL = "0db085e54acf"
"""A confirm trial of that run with a checkpoint of step 4; `logs` and `export` are asked for it."""

CODES = {0, 1, 2, 3, 4, 75, 130}

JSON_FILES = [
    "sweep.json",
    *(f"trials/{TRIAL}/{name}" for name in ("job.json", "points.jsonl", "result.json", "attempt.json")),
    f"trials/{TRIAL}/checkpoints/step_000004/manifest.json",
]
FILES = [
    *JSON_FILES,
    *("sweep.toml", "ledger.db", "ledger.db-wal", "ledger.db-shm", "driver.log", f"trials/{TRIAL}/log.rank0.txt"),
    *(f"trials/{TRIAL}/checkpoints/step_000004/{name}" for name in ("model.safetensors", "optimizer.pt")),
    *(f"report/{name}" for name in ("report.html", "report.md", "results.parquet", "cost.png")),
    *("trials", f"trials/{TRIAL}", f"trials/{TRIAL}/checkpoints", "report"),
    "../mlflow.db",
]
RARE = ["submitted.diff", *(f"trials/{TRIAL}/{name}" for name in ("log.rank1.txt", "failure.attempt1.txt"))]
RARE += [f"trials/{TRIAL}/rows.parquet", "report/rows.json"]
"""Files that only some runs have: submitted ones, those of several ranks, those in which something failed, those that
keep what they have judged row by row."""
CASES = [(file, damage) for file in (*FILES, *RARE) for damage in DAMAGES]
CASES += [(file, damage) for file in JSON_FILES for damage in OF_JSON]

EXAMPLES = [
    (file, garbage) for file in ("ledger.db", *(f"trials/{TRIAL}/{name}" for name in ("job.json", "result.json")))
]
THOROUGH = [pytest.param(*case, marks=pytest.mark.slow if case in EXAMPLES else pytest.mark.soak) for case in CASES]
"""For verbs that take seconds: garbage in some files in `make test`, everything in `make soak`."""

EVERY_KIND = [
    pytest.param(*case, marks=pytest.mark.slow if number % 35 == 3 else pytest.mark.soak)
    for number, case in enumerate(CASES)
]
"""For verbs that answer at once: a few in `make test`, each damaged in another way, everything in `make soak`."""

READING: dict[str, tuple[str, ...]] = {
    "status": ("status", "diverged"),
    "status --json": ("status", "diverged", "--json"),
    "logs": ("logs", "diverged", TRIAL),
    "compare": ("compare", "diverged"),
    "stop": ("stop", "diverged", "--wait", "1"),
    "plan": ("plan", "runs/diverged/sweep.toml"),
}
EXAMINING = ("doctor", "runs/diverged/sweep.toml", "--into", "runs/diverged", "--offline")
VERIFYING: dict[str, tuple[str, ...]] = {"verify": ("verify", "diverged")}
WRITING: dict[str, tuple[str, ...]] = {
    "resume": ("resume", "diverged", "--offline"),
    "resume --failed": ("resume", "diverged", "--failed", "--offline"),
    "launch": ("launch", "runs/diverged/sweep.toml", "--into", "runs/diverged", "--offline"),
}


Run = Callable[..., Done]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Run]:
    """`run(*arguments)` is the command line in a process of its own."""
    with forking(tmp_path_factory.mktemp("forking")) as made:
        yield made.run


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/diverged, finished, told to MLflow and reported. Nothing in it may change."""
    home = tmp_path_factory.mktemp("told")
    shutil.copytree(BEGUN, home / "runs" / "diverged")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ORCHESTRATOR_LEDGER", "MLFLOW_TRACKING_URI", "ORCHESTRATOR_RUNS"):
            patch.delenv(name, raising=False)
        call("resume", "diverged", cwd=home)
    for file in RARE:
        (home / "runs" / "diverged" / file).write_text("x\n")
    return home


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder in which the command line is called."""
    monkeypatch.chdir(tmp_path)
    for name in ("ORCHESTRATOR_LEDGER", "MLFLOW_TRACKING_URI", "ORCHESTRATOR_RUNS", exit_codes.TRACEBACK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORCHESTRATOR_ENCODERS", "none")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    return tmp_path


@pytest.fixture
def home(told: Path, here: Path) -> Path:
    """The same with a copy of the run."""
    shutil.copytree(told / "runs", here / "runs")
    return here


def wrong_with(done: Done, *names: str) -> str | None:
    """What is not as it should be: a traceback, a code of no table, or words that name none of these."""
    if "Traceback" in done.output:
        return f"a traceback: {done.output}"
    if done.code not in CODES:
        return f"exit code {done.code}"
    if done.code not in (0, 130) and "unexpected" in done.output:
        return f"not expected: {done.output}"
    if done.code not in (0, 130) and not any(name in done.output for name in names):
        return f"it does not name the file: {done.output}"
    return None


def names_of(file: str, damage: Damage) -> list[str]:
    """What a person may know a file by."""
    path = Path(file)
    names = [path.name]
    if "checkpoints" in file:
        names += ["checkpoint", TRIAL]
    if damage is absent and file == "sweep.json":
        names += ["holds no run"]
    if path.name == "mlflow.db":  # one that is gone is as good as another store's
        names += ["MLflow has nothing of this run"]
    return names


@pytest.mark.parametrize(("file", "damage"), EVERY_KIND)
def test_row_41_verbs_that_read_have_words_for_every_damage(home: Path, run: Run, file: str, damage: Damage) -> None:
    """Mutant check: without the handling of errors in _Group three quarters of these end with a traceback."""
    damage(home / "runs" / "diverged" / file)
    wrong = []
    for name, arguments in READING.items():
        if found := wrong_with(run(*arguments), *names_of(file, damage)):
            wrong.append(f"{name}: {found}")
    assert wrong == []


@pytest.mark.parametrize(("file", "damage"), THOROUGH)
def test_row_41_verbs_that_write_or_compare_everything_have_words_for_every_damage(
    home: Path, run: Run, file: str, damage: Damage
) -> None:
    """And `resume` never ends with 0 on what `verify` calls broken."""
    damage(home / "runs" / "diverged" / file)
    wrong, codes = [], {}
    for name, arguments in (VERIFYING | WRITING).items():
        done = run(*arguments)
        codes[name] = done.code
        if found := wrong_with(done, *names_of(file, damage)):
            wrong.append(f"{name}: {found}")
    assert wrong == []
    if codes["resume"] == 0 and file != "../mlflow.db":  # which a session that is offline does not look at
        assert run("verify", "diverged").code == 0


@pytest.mark.parametrize(
    "damage", [pytest.param(one, marks=pytest.mark.slow if one is garbage else pytest.mark.soak) for one in DAMAGES]
)
@pytest.mark.parametrize(
    "file",
    [
        *(pytest.param(name, marks=pytest.mark.soak) for name in ("job.json", "result.json")),
        "checkpoints/step_000004/manifest.json",
        pytest.param("points.jsonl", marks=pytest.mark.soak),
    ],
)
def test_row_41_export_has_words_for_every_damage(home: Path, run: Run, file: str, damage: Damage) -> None:
    damage(home / "runs" / "diverged" / "trials" / TRIAL / file)
    done = run("export", "diverged", TRIAL, "encoder")
    assert wrong_with(done, Path(file).name, "checkpoint") is None
    assert (home / "encoder").exists() == (done.code == 0)
    assert [path.name for path in home.iterdir() if path.name.startswith(".")] == []


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("damage", DAMAGES)
def test_row_41_a_session_that_tells_mlflow_has_words_for_a_damaged_store(home: Path, run: Run, damage: Damage) -> None:
    """Mutant check: MLflow itself asks a folder in place of its store again for a minute and a half."""
    damage(home / "runs" / "mlflow.db")
    done = run("resume", "diverged")
    assert wrong_with(done, "mlflow.db") is None
    assert (done.code == 0) == (damage.__name__ in ("absent", "empty")), done.output


TOUCHED = [name for name in FILES if name.startswith(("sweep", "ledger.db"))]
"""What `doctor` looks at, which takes a while."""


@pytest.mark.parametrize("damage", [garbage, pytest.param(a_folder, marks=pytest.mark.soak)])
@pytest.mark.parametrize(
    "file",
    [pytest.param(name, marks=pytest.mark.slow if name == "ledger.db" else pytest.mark.soak) for name in TOUCHED],
)
def test_row_41_doctor_has_words_for_every_damage(home: Path, run: Run, file: str, damage: Damage) -> None:
    damage(home / "runs" / "diverged" / file)
    done = run(*EXAMINING)
    assert wrong_with(done, *names_of(file, damage), "diverged") is None


PLACES = [("runs", "sweep", "{"), ("trials", "job", "nonsense"), ("trials", "metric", "nonsense")]
PLACES += [("runs", "environment", "[1]"), ("points", "value", "nonsense"), ("trials", "metrics", "[" * 100_000)]


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize(("table", "column", "value"), PLACES)
def test_row_41_a_value_of_the_ledger_that_cannot_be_read_is_told(
    home: Path, run: Run, table: str, column: str, value: str
) -> None:
    """A page whose bytes have changed. Mutant check: JSON's own error says nothing of a ledger."""
    path = home / "runs" / "diverged" / "ledger.db"
    with sqlite3.connect(path) as connection:
        connection.execute(f"UPDATE {table} SET {column} = ?", (value,))
    connection.close()
    wrong = []
    for name, arguments in (READING | VERIFYING | WRITING).items():
        if found := wrong_with(run(*arguments), "ledger.db"):
            wrong.append(f"{name}: {found}")
    assert wrong == []
    assert run("compare", "diverged").code == 4


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("offset", [4096, 0, 16, 18, 100, 8192, -8192])
def test_row_41_a_ledger_with_a_damaged_page_is_told(home: Path, run: Run, offset: int) -> None:
    """Mutant check: a session that does not prove what it leaves ends with 0 on what `verify` calls broken."""
    path = home / "runs" / "diverged" / "ledger.db"
    content = bytearray(path.read_bytes())
    content[offset : offset + 200 if offset > -200 else None] = os.urandom(200)
    path.write_bytes(content)
    wrong, codes = [], {}
    for name, arguments in (READING | WRITING).items():
        done = run(*arguments)
        codes[name] = done.code
        if found := wrong_with(done, "ledger.db"):
            wrong.append(f"{name}: {found}")
    assert wrong == []
    if codes["resume"] == 0:  # bytes that belong to nothing, or the version of a program
        assert run("verify", "diverged").code == 0


# Where nothing can be written


@pytest.mark.soak
@pytest.mark.slow
def test_row_46_a_run_that_is_read_only_is_read(home: Path, run: Run) -> None:
    """Mutant check: SQLite cannot open a write-ahead log where it cannot make its side files."""
    with read_only(home / "runs"):
        read = {name: run(*arguments) for name, arguments in (READING | VERIFYING).items()}
        exported = run("export", "diverged", TRIAL, "encoder")
        refused = {name: run(*arguments) for name, arguments in WRITING.items()}
        refused["anew"] = run("launch", "runs/diverged/sweep.toml", "--into", "runs/new", "--offline")
        refused["MLflow"] = run("resume", "diverged")
    assert {name: done.output for name, done in read.items() if done.code} == {}
    assert "note: the report could not be written to runs/diverged/report: " in read["compare"].output
    assert "Read-only file system" in read["compare"].output
    assert "lr=0.0003" in read["compare"].output
    assert exported.code == 0, exported.output
    assert {name: done.code for name, done in refused.items()} == dict.fromkeys(refused, 4)
    for done in refused.values():
        assert wrong_with(done, "runs") is None
        assert "read-only" in done.output.lower() or "cannot be written" in done.output


ONE_BY_ONE = [
    pytest.param(file, broken, marks=pytest.mark.slow if broken and file == "ledger.db" else pytest.mark.soak)
    for file in (*FILES, *RARE)
    for broken in (True, False)
    if not file.endswith(("-wal", "-shm")) and file not in ("trials", "report")
]


@pytest.mark.parametrize(("file", "broken"), ONE_BY_ONE)
def test_row_46_one_file_or_folder_that_cannot_be_written_is_told(
    home: Path, run: Run, file: str, broken: bool
) -> None:
    """Also where it is damaged and would be written again; nothing can be renamed over it, for it is a mount."""
    path = home / "runs" / "diverged" / file
    if broken and path.is_file():
        garbage(path)
    with read_only(path):
        wrong = []
        for name, arguments in (READING | VERIFYING | WRITING).items():
            if found := wrong_with(run(*arguments), *names_of(file, garbage)):
                wrong.append(f"{name}: {found}")
    assert wrong == []


@pytest.mark.slow
def test_row_46_a_run_of_an_older_version_that_is_read_only_is_read(here: Path, run: Run) -> None:
    """Its tables are brought forward in memory, and it stays as it is."""
    shutil.copytree(BEGUN, here / "runs" / "diverged")
    before = (here / "runs" / "diverged" / "ledger.db").read_bytes()
    with read_only(here / "runs"):
        read = {name: run(*arguments) for name, arguments in (READING | VERIFYING).items()}
        refused = run(*WRITING["resume"])
    assert {name: done.output for name, done in read.items() if done.code and name != "verify"} == {}
    assert wrong_with(read["verify"], "diverged") is None
    assert refused.code == 4
    assert "ledger.db is read-only here" in refused.output
    assert (here / "runs" / "diverged" / "ledger.db").read_bytes() == before


@pytest.mark.parametrize("index", [True, False])
def test_row_46_what_a_killed_driver_left_in_the_write_ahead_log_is_read_where_nothing_can_be_written(
    home: Path, run: Run, index: bool
) -> None:
    """With the log's index beside it, and without, as in a copy. Mutant check: `immutable` alone reads what was."""
    path = home / "runs" / "diverged" / "ledger.db"
    writer = sqlite3.connect(path)
    writer.execute("UPDATE runs SET name = 'of the log'")
    writer.commit()
    kept = {name: path.with_name(name).read_bytes() for name in ("ledger.db", "ledger.db-wal", "ledger.db-shm")}
    writer.close()
    for name, content in kept.items():
        path.with_name(name).write_bytes(content)
    if not index:
        path.with_name("ledger.db-shm").unlink()
    with read_only(home / "runs"):
        done = run("status", "diverged")
    assert done.code == 0, done.output
    assert done.output.startswith("of the log: ")
    assert list((home / "temporary").iterdir()) == []


@pytest.mark.parametrize("fault", ["absent", "a file", "read-only"])
def test_row_43_a_folder_for_temporary_files_that_cannot_be_used_ends_with_4(
    here: Path, run: Run, monkeypatch: pytest.MonkeyPatch, fault: str
) -> None:
    (here / "sweep.toml").write_text(SWEEP)
    place = here / "place"
    if fault == "a file":
        place.write_text("x")
    elif fault == "read-only":
        place.mkdir()
    monkeypatch.setenv("TMPDIR", str(place))
    with read_only(place) if fault == "read-only" else contextlib.nullcontext():
        done = run("launch", "sweep.toml", "--offline")
    assert done.code == 4
    assert wrong_with(done, f"TMPDIR={place}") is None
    assert not (here / "runs").exists()
