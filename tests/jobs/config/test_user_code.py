"""The user's code as it travels: what goes along, what stays, and that nothing else is ever imported in its place."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.config import user_code
from jobs.config.user_code import CodeError, UserCode, collect, of_archive, unpacked


def package(folder: Path, files: dict[str, str]) -> Path:
    for name, text in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def test_a_package_goes_along_without_what_is_hidden_ignored_or_large(tmp_path: Path) -> None:
    """A `.env` would travel to everybody who reads the bucket."""
    package(
        tmp_path,
        {
            "lab/__init__.py": "", "lab/losses.py": "x = 1", "lab/words.txt": "a", "lab/.env": "SECRET=1",
            "lab/.git/config": "", "lab/__pycache__/a.cpython-311.pyc": "", "lab/secret.py": "",
            "lab/sub/.hidden/x.py": "", "lab/sub/inner.py": "", "other/__init__.py": "", ".gitignore": "secret.py\n",
        },
    )  # fmt: skip
    (tmp_path / "lab" / "weights.bin").write_bytes(b"\0" * (11 << 20))
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    code = collect(["lab/"], tmp_path)
    assert sorted(code.files) == ["lab/__init__.py", "lab/losses.py", "lab/sub/inner.py", "lab/words.txt"]
    assert code.left_out == ("lab/weights.bin (11 MB)",)


def test_what_git_ignores_stays_when_the_sweep_is_named_from_its_own_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seen: git was asked from within the package about paths that began outside it, and a secret went along."""
    package(tmp_path, {"lab/__init__.py": "", "lab/secret.py": "KEY = 1", ".gitignore": "lab/secret.py\n"})
    subprocess.run(["git", "init", "-q", str(tmp_path)], check=True)
    monkeypatch.chdir(tmp_path)
    for base in (Path(), Path(), Path("lab/..")):
        assert sorted(collect(["lab/"], base).files) == ["lab/__init__.py"]


def test_paths_are_collected_by_their_last_name_wherever_they_lie(tmp_path: Path) -> None:
    package(tmp_path, {"libs/deep/lab/__init__.py": "", "one.py": "", "sweeps/here.toml": ""})
    code = collect(["../libs/deep/lab", "../one.py"], tmp_path / "sweeps")
    assert sorted(code.files) == ["lab/__init__.py", "one.py"]


@pytest.mark.parametrize(
    ("paths", "said"),
    [
        (["labb/"], r"there is no .*labb.*packages beside the sweep: lab/"),
        (["lab/", "libs/lab"], "are both called lab"),
        (["data.csv"], "neither a folder nor a Python file"),
        (["empty"], "no Python file"),
        (["linked"], "is a link out of"),
    ],
)
def test_what_cannot_be_collected_is_refused_in_words(tmp_path: Path, paths: list[str], said: str) -> None:
    package(
        tmp_path, {"lab/__init__.py": "", "libs/lab/x.py": "", "data.csv": "", "empty/a.txt": "", "linked/a.py": ""}
    )
    (tmp_path / "linked" / "b.py").symlink_to(tmp_path / "data.csv")
    with pytest.raises(CodeError, match=said):
        collect(paths, tmp_path)


NAMES = st.from_regex(r"[a-z]{1,5}(/[a-z]{1,5}){0,2}\.py", fullmatch=True)


@settings(max_examples=50)
@given(files=st.dictionaries(NAMES, st.binary(max_size=40), min_size=1, max_size=5))
def test_an_archive_holds_the_code_and_the_same_code_is_the_same_bytes(files: dict[str, bytes]) -> None:
    code = UserCode(files)
    again = of_archive(code.archive())
    assert again.files == files
    assert again.digest == code.digest
    assert again.archive() == code.archive()


@settings(max_examples=50)
@given(
    first=st.dictionaries(NAMES, st.binary(max_size=5), max_size=3),
    other=st.dictionaries(NAMES, st.binary(max_size=5), max_size=3),
)
def test_other_code_has_another_digest(first: dict[str, bytes], other: dict[str, bytes]) -> None:
    assert (UserCode(first).digest == UserCode(other).digest) == (first == other)


@pytest.mark.parametrize("content", [b"", b"no zip", UserCode({"a.py": b"x" * 99}).archive()[:-30]])
def test_a_damaged_archive_is_refused(content: bytes) -> None:
    with pytest.raises(CodeError, match="cannot be read"):
        of_archive(content)


def test_what_lies_in_the_place_of_unpacked_code_is_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The folder has a name that others on the machine can guess. Mutant check: taking it as it is fails."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code = UserCode({"lab/__init__.py": b"x = 1", "lab/data.txt": b"a"})
    first = unpacked(code)
    assert unpacked(code) == first
    (first / "lab" / "__pycache__").mkdir()
    assert unpacked(code) == first  # what Python keeps is no change
    (first / "lab" / "__init__.py").write_bytes(b"x = 2")
    second = unpacked(code)
    assert second != first
    assert (second / "lab" / "__init__.py").read_bytes() == b"x = 1"
    assert list(tmp_path.iterdir())


def test_a_process_imports_the_code_of_its_run_before_any_other(tmp_path: Path) -> None:
    package(tmp_path, {"elsewhere/lab.py": "x = 'elsewhere'"})
    source = (
        "import sys, base64\n"
        "from jobs.config import user_code\n"
        "user_code.activate(base64.b64decode(sys.argv[1]), sys.argv[2])\n"
        "user_code.activate(base64.b64decode(sys.argv[1]), sys.argv[2])\n"
        "import lab; print(lab.x)\n"
        "other = user_code.UserCode({'b.py': b''})\n"
        "try: user_code.activate(other.archive(), other.digest)\n"
        "except user_code.CodeError as error: print(error)\n"
    )
    import base64
    import os

    code = UserCode({"lab.py": b"x = 'of the run'"})
    done = subprocess.run(
        [sys.executable, "-c", source, base64.b64encode(code.archive()).decode(), code.digest],
        env=os.environ | {"PYTHONPATH": str(tmp_path / "elsewhere"), "TMPDIR": str(tmp_path)},
        capture_output=True, text=True, check=True,
    )  # fmt: skip
    first, second = done.stdout.splitlines()
    assert first == "of the run"
    assert "this process has the code" in second


def test_an_archive_that_is_not_of_its_digest_is_refused() -> None:
    with pytest.raises(CodeError, match="its archive was changed"):
        user_code.activate(UserCode({"a.py": b""}).archive(), "0" * 64)
