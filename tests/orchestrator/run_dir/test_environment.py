"""What is recorded of a command and its code, in real checkouts of real git."""

from __future__ import annotations

import base64
import json
import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from orchestrator import __version__
from orchestrator.run_dir.environment import (
    DIFF,
    LARGEST_DIFF,
    ROOT,
    SUBMITTED,
    Origin,
    environment,
    origin,
    typed,
)


def git(folder: Path, *arguments: str) -> str:
    """What git prints; with no settings of this machine's."""
    env = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    who = ("-c", "user.name=A", "-c", "user.email=a@b.c", "-c", "init.defaultBranch=main")
    done = subprocess.run(
        ["git", *who, *arguments], cwd=folder, capture_output=True, text=True, check=True,
        env=env | {"GIT_CONFIG_GLOBAL": os.devnull},
    )  # fmt: skip
    return done.stdout.strip()


def copied(root: Path) -> Path:
    """A folder with these packages in it, as an installer or a clone makes it."""
    for name in ("jobs", "orchestrator"):
        shutil.copytree(ROOT / name, root / name, ignore=shutil.ignore_patterns("__pycache__"))
    (root / "notes.md").write_text("one\ntwo\n")
    (root / ".gitignore").write_text("__pycache__/\n/jobs/local_*.py\n")
    return root


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A clean checkout of these packages."""
    root = copied(tmp_path / "checkout")
    (root / "picture.bin").write_bytes(bytes(range(256)) * 20)
    git(root, "init", "-q")
    git(root, "add", "-A")
    git(root, "commit", "-q", "-m", "one")
    return root


def said_by(root: Path, *, cwd: Path | None = None, **variables: str) -> Origin:
    """The origin as the package in `root` tells it, in a process that has no other."""
    text = (
        "import base64, dataclasses, json; from orchestrator.run_dir.environment import origin; found = "
        "dataclasses.asdict(origin()); found['diff'] = base64.b64encode(found['diff']).decode(); "
        "print(json.dumps(found))"
    )
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=cwd or root, capture_output=True, text=True, check=False,
        env=os.environ | {"PYTHONPATH": str(root)} | variables,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    known = json.loads(done.stdout)
    return Origin(**known | {"diff": base64.b64decode(known["diff"])})


# The code


def test_a_clean_checkout_is_its_commit(checkout: Path, tmp_path: Path) -> None:
    found = said_by(checkout, cwd=tmp_path)
    assert (found.commit, found.dirty, found.diff) == (git(checkout, "rev-parse", "HEAD"), False, b"")
    assert (found.version, found.directory, found.submitted) == (__version__, str(tmp_path), False)
    assert "diff" not in found.recorded()


def test_the_diff_makes_the_checkout_again_from_its_commit(checkout: Path, tmp_path: Path) -> None:
    """A changed, a deleted, a renamed, an added file; Python that git does not know or ignores; nothing but names of
    what is binary. Mutant checks: `git diff` without HEAD, without the unknown files, with --cached."""
    with (checkout / "jobs" / "optim" / "__init__.py").open("a") as file:
        file.write("# tried\n")
    (checkout / "jobs" / "core" / "usage.py").unlink()
    git(checkout, "mv", "notes.md", "thoughts öä.md")
    (checkout / "jobs" / "mine.py").write_text("X = 1\n")
    (checkout / "orchestrator" / "report" / "empty.py").write_text("")
    (checkout / "jobs" / "local_loss.py").write_bytes("Y = 'é'\n".encode("latin-1"))
    (checkout / "jobs" / "staged.py").write_text("Z = 2\n")
    (checkout / "picture.bin").write_bytes(b"\x00\x01" * 999)
    (checkout / "rows.csv").write_text("not code, and unknown to git\n")
    git(checkout, "add", "jobs/staged.py")
    found = said_by(checkout)
    assert found.dirty
    head = found.diff.partition(b"diff --git")[0].decode()
    assert f"commit {found.commit}" in head
    assert "Binary, not in here: picture.bin" in head
    assert b"rows.csv" not in found.diff
    again = tmp_path / "again"
    git(tmp_path, "clone", "-q", str(checkout), str(again))
    (tmp_path / DIFF).write_bytes(found.diff)
    git(again, "apply", str(tmp_path / DIFF))
    for name in ("jobs/optim/__init__.py", "jobs/mine.py", "jobs/local_loss.py", "jobs/staged.py", "thoughts öä.md"):
        assert (again / name).read_bytes() == (checkout / name).read_bytes()
    assert (again / "orchestrator" / "report" / "empty.py").read_bytes() == b""
    assert not (again / "jobs" / "core" / "usage.py").exists()
    assert not (again / "notes.md").exists()
    assert environment(found)["diff"].startswith("submitted.diff, sha256 ")


def test_a_large_diff_keeps_code_and_names_the_rest(checkout: Path) -> None:
    """Mutant check: in git's order the table comes first and takes the room."""
    (checkout / "a_table.csv").write_text("".join(f"{number}\n" for number in range(110_000)))
    git(checkout, "add", "a_table.csv")
    (checkout / "jobs" / "mine.py").write_text("X = 1\n" * 50_000)
    (checkout / "orchestrator" / "generated.py").write_text("x = 1\n" * 200_000)
    found = said_by(checkout)
    head, _, body = found.diff.partition(b"\n\n")
    assert b"b/jobs/mine.py" in body
    assert len(found.diff) < LARGEST_DIFF
    assert b"Too large, not in here: a_table.csv (" in head
    assert b"Too large, not in here: orchestrator/generated.py (" in head
    assert found.dirty


@pytest.mark.parametrize("case", ["installed", "in an environment below somebody's checkout", "no commit yet"])
def test_without_a_checkout_of_its_own_there_is_no_commit(tmp_path: Path, case: str) -> None:
    """Mutant check: the commit of the folder above, which is another project's."""
    if case == "installed":
        root = copied(tmp_path / "site-packages")
    else:
        git(tmp_path, "init", "-q")
        (tmp_path / ".gitignore").write_text("env/\n")
        (tmp_path / "thesis.tex").write_text("x")
        if case != "no commit yet":
            git(tmp_path, "add", "-A")
            git(tmp_path, "commit", "-q", "-m", "mine")
            root = copied(tmp_path / "env" / "site-packages")
        else:
            root = copied(tmp_path / "src")
            git(tmp_path, "add", "-A")
    found = said_by(root, GIT_CEILING_DIRECTORIES=str(tmp_path.parent))
    assert (found.commit, found.dirty, found.diff, found.version) == (None, None, b"", __version__)


@pytest.mark.parametrize(
    "settings",
    [
        ["color.ui=always", "diff.noprefix=true", "core.quotepath=true"],
        ["diff.external=/bin/false", "diff.renames=copies", "diff.mnemonicPrefix=true"],
    ],
)
def test_settings_of_the_user_s_and_of_a_hook_change_nothing(
    checkout: Path, tmp_path: Path, settings: list[str]
) -> None:
    """git starts hooks with variables that name its own repository."""
    (checkout / "jobs" / "mine.py").write_text("X = 1\n")
    (checkout / "notes.md").write_text("three\n")
    plain = said_by(checkout)
    for setting in settings:
        git(checkout, "config", *setting.split("=", 1))
    other = tmp_path / "other"
    other.mkdir()
    git(other, "init", "-q")
    assert said_by(checkout, GIT_DIR=str(other / ".git"), GIT_WORK_TREE=str(other)) == plain
    assert b"+X = 1" in plain.diff


def test_a_checkout_of_another_user_s_is_told_too(checkout: Path) -> None:
    """As in a container. git refuses it unless it is told otherwise."""
    if os.geteuid() != 0:
        pytest.skip("to give a checkout away one must be root")
    for path in [checkout, *checkout.rglob("*")]:
        os.chown(path, 65534, 65534)
    assert said_by(checkout).commit == git(checkout, "-c", "safe.directory=*", "rev-parse", "HEAD")


def test_without_git_there_is_no_commit(checkout: Path, tmp_path: Path) -> None:
    found = said_by(checkout, PATH=str(tmp_path))
    assert (found.commit, found.dirty) == (None, None)


# The command


def test_the_whole_command_is_recorded_as_it_was_typed(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["launch", "sweeps/my sweep.toml", "--set", "job.loss.temperature=0.07", "--address", "http://h:1"]
    for program in ("/venv/bin/orchestrator", "/src/orchestrator/cli/__main__.py"):
        monkeypatch.setattr(sys, "argv", [program, *words])
        assert typed() == (
            "orchestrator launch 'sweeps/my sweep.toml' --set job.loss.temperature=0.07 --address http://h:1"
        )
    monkeypatch.setattr(sys, "argv", ["study.py", "7"])
    assert typed() == "study.py 7"
    assert origin("orchestrator launch 'a b'").command == "orchestrator launch 'a b'"


@pytest.mark.parametrize(
    ("word", "shown"),
    [
        ("https://me:hush@head:8265", "https://***@head:8265"),
        ("http://hush@head:8265", "http://***@head:8265"),
        ("postgresql://me:hu/sh@db/ledger", "postgresql://me:***@db/ledger"),
        (
            "s3://bucket/run?region=x&secret_key=hush&scheme=http",
            "s3://bucket/run?region=x&secret_key=***&scheme=http",
        ),
        ("gs://anonymous@bucket/run", "gs://anonymous@bucket/run"),
        ("s3://bucket/run?endpoint_override=h:9000", "s3://bucket/run?endpoint_override=h:9000"),
    ],
)
def test_what_is_recorded_holds_no_secret(monkeypatch: pytest.MonkeyPatch, word: str, shown: str) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_PASSWORD", "hush")
    monkeypatch.setenv("ORCHESTRATOR_LEDGER", "postgresql://me:hush@db/ledger")
    monkeypatch.setattr(sys, "argv", ["orchestrator", "launch", "a.toml", "--address", word])
    found = environment(origin())
    assert found["command"] == f"orchestrator launch a.toml --address {shlex.quote(shown)}"
    assert found["packages"]["torch"]
    assert found["cpus"] >= 1
    assert "hush" not in json.dumps(found)


def test_a_secret_of_the_environment_is_masked_in_the_command_and_in_the_diff(
    checkout: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Somebody has typed it, or written it into the code. Mutant check: by the form of an address alone."""
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789abcdef")
    monkeypatch.setattr(sys, "argv", ["orchestrator", "launch", "a.toml", "--set", "question=hf_0123456789abcdef"])
    (checkout / "jobs" / "more.py").write_text("TOKEN = 'hf_0123456789abcdef'\nx = 1\n")
    found = origin(root=checkout)
    assert found.command.endswith("--set 'question=***'")
    assert b"+TOKEN = '***'" in found.diff
    assert b"Not as it was, for *** stands for secrets of the environment: jobs/more.py\n" in found.diff
    assert b"hf_0123456789abcdef" not in found.diff


# With a job


def test_what_travels_with_a_job_is_told_there_in_its_place(checkout: Path, tmp_path: Path) -> None:
    """The head has no checkout; and one that has is not asked. Mutant check: computing it there again."""
    (checkout / "jobs" / "mine.py").write_text("X = 1\n")
    here = said_by(checkout, cwd=tmp_path)
    for root in (copied(tmp_path / "job"), checkout):
        for name, content in here.files().items():
            (root / name).write_bytes(content)
        there = said_by(root)
        assert there.submitted
        assert there.recorded() == here.recorded() | {"submitted": True}
        assert there.diff == here.diff
    clean = Origin("orchestrator launch", "/home/me", "1.0", "3f2c", dirty=False)
    assert list(clean.files()) == [SUBMITTED]


def test_a_folder_that_is_gone_is_no_reason_to_fail(checkout: Path, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    text = f"import os; os.rmdir({str(gone)!r}); from orchestrator.run_dir.environment import origin; "
    text += "print(origin().directory)"
    gone.mkdir()
    done = subprocess.run(
        [sys.executable, "-c", text], cwd=gone, capture_output=True, text=True, check=True,
        env=os.environ | {"PYTHONPATH": str(checkout)},
    )  # fmt: skip
    assert done.stdout.strip() == "None"
