"""Garbage, absence, emptiness, a folder in place of a file, a read-only disk: every verb answers with words and a code.

The run is one that an older version began; it was told to MLflow, and its report was written, by `resume`.
"""

from __future__ import annotations

import os
import shutil
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from real import call

from orchestrator import cli, exits

BEGUN = Path(__file__).parents[1] / "begun" / "diverged"
TRIAL = "0db085e54acf"
"""A confirm trial of that run with a checkpoint of step 4; `logs` and `export` are asked for it."""

CODES = {0, 1, 2, 3, 4, 75, 130}

OF_THE_RUN = ["sweep.json", "sweep.toml", "ledger.db", "driver.log"]
OF_A_TRIAL = ["job.json", "points.jsonl", "result.json", "attempt.json", "log.rank0.txt"]
OF_A_CHECKPOINT = ["manifest.json", "model.safetensors", "optimizer.pt"]
OF_A_REPORT = ["report.html", "report.md", "results.parquet", "knn_accuracy.png"]
FILES = [
    *OF_THE_RUN,
    *(f"trials/{TRIAL}/{name}" for name in OF_A_TRIAL),
    *(f"trials/{TRIAL}/checkpoints/step_000004/{name}" for name in OF_A_CHECKPOINT),
    *(f"report/{name}" for name in OF_A_REPORT),
    *("trials", f"trials/{TRIAL}", f"trials/{TRIAL}/checkpoints", "report"),
    "../mlflow.db",
]


def garbage(path: Path) -> None:
    remove(path)
    path.write_bytes(bytes(range(256)) * 40)


def absent(path: Path) -> None:
    remove(path)


def empty(path: Path) -> None:
    remove(path)
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    remove(path)
    path.mkdir()
    (path / "inside").write_text("x")


def nested(path: Path) -> None:
    """JSON that is deeper than a parser goes."""
    remove(path)
    path.write_text("[" * 200_000)


def another_shape(path: Path) -> None:
    """JSON of another kind."""
    remove(path)
    path.write_text("[1, null]\n")


DAMAGES = [garbage, absent, empty, a_folder, nested, another_shape]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


@pytest.fixture(scope="module")
def told(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with runs/diverged, finished, told to MLflow and reported. Nothing in it may change."""
    home = tmp_path_factory.mktemp("told")
    shutil.copytree(BEGUN, home / "runs" / "diverged")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("ORCHESTRATOR_LEDGER", "MLFLOW_TRACKING_URI", "ORCHESTRATOR_RUNS"):
            patch.delenv(name, raising=False)
        call("resume", "diverged", cwd=home)
    return home


@pytest.fixture
def home(told: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of it, in which the command line is called."""
    shutil.copytree(told / "runs", tmp_path / "runs")
    monkeypatch.chdir(tmp_path)
    for name in ("ORCHESTRATOR_LEDGER", "MLFLOW_TRACKING_URI", "ORCHESTRATOR_RUNS", exits.TRACEBACK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("ORCHESTRATOR_ENCODERS", "none")
    return tmp_path


@dataclass(frozen=True)
class Done:
    """How a command ended."""

    code: int | None
    """None when it raised."""

    output: str


Run = Callable[..., Done]


@pytest.fixture
def run(capfd: pytest.CaptureFixture[str]) -> Run:
    """`run(*arguments)` is the command line in this process; a session writes to the file descriptors themselves."""

    def call_here(*arguments: str) -> Done:
        code: int | None = None
        text = ""
        try:
            cli.main(list(arguments))
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        except BaseException:
            text = traceback.format_exc()
        captured = capfd.readouterr()
        return Done(code, captured.out + captured.err + text)

    return call_here


VERBS: dict[str, tuple[str, ...]] = {
    "status": ("status", "diverged"),
    "status --json": ("status", "diverged", "--json"),
    "logs": ("logs", "diverged", TRIAL),
    "compare": ("compare", "diverged"),
    "verify": ("verify", "diverged"),
    "stop": ("stop", "diverged", "--wait", "1"),
    "plan": ("plan", "runs/diverged/sweep.toml"),
    "resume": ("resume", "diverged", "--offline"),
    "launch": ("launch", "runs/diverged/sweep.toml", "--into", "runs/diverged", "--offline"),
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("file", FILES)
def test_row_41_every_verb_answers_to_every_damage(
    home: Path, run: Run, file: str, damage: Callable[[Path], None]
) -> None:
    damage(home / "runs" / "diverged" / file)
    wrong = []
    for name, arguments in VERBS.items():
        done = run(*arguments)
        if os.environ.get("SHOW"):
            with open("/tmp/h/show.txt", "a") as f:
                print(
                    f"--- {file} {damage.__name__}: {name} -> {done.code}: {done.output[-1500:] if done.code else ''}",
                    file=f,
                )
        if fault := wrong_with(done, file):
            wrong.append(f"{name}: {fault}")
    assert wrong == []


def wrong_with(done: Done, file: str) -> str | None:
    if "Traceback" in done.output:
        return f"a traceback: {done.output}"
    if done.code not in CODES:
        return f"exit code {done.code}"
    if done.code not in (0, 130) and "unexpected" in done.output:
        return f"not expected: {done.output}"
    if done.code not in (0, 130) and Path(file).name not in done.output:
        return f"it does not name the file: {done.output}"
    return None
