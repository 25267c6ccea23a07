"""What is needed to run a sweep again: command, code, versions, hardware.

A job on a cluster runs a copy of somebody's code, without its history. So the machine that submits it records command
and code, and both travel with the job (`Origin.files`).
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import platform
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

from orchestrator import __version__
from orchestrator.system.masking import MASK, masked, masked_values

PACKAGES = ("torch", "ray", "optuna", "mlflow", "transformers", "pyarrow", "numpy", "scipy", "scikit-learn", "pydantic")
"""Versions that are recorded with a run."""

ROOT = Path(__file__).parents[2]
"""The folder that this package lies in: a checkout, a folder of installed packages, or a job's copy."""

CODE = ("jobs", "orchestrator")
"""Folders of Python files that count although git does not know them: they are imported all the same."""

SUBMITTED, DIFF = "submitted.json", "submitted.diff"
"""Files beside the package in a job's copy. The second lies in the run's folder too, if anything was changed."""

LARGEST_DIFF = 2**20
"""Bytes that are kept of the changes to a checkout."""

GIT_S = 30.0


@dataclass(frozen=True)
class Origin:
    """Where a command was given, and with which code."""

    command: str
    """The whole of it, as a shell takes it."""

    directory: str | None
    """Where it was given: what relative paths in it start from. On the submitting machine, if it was submitted."""

    version: str
    """Of this package."""

    commit: str | None = None
    """Of the checkout that this package lies in; None outside a checkout."""

    dirty: bool | None = None
    """Whether that checkout has changes which are not in the commit; None outside a checkout."""

    submitted: bool = False
    """Whether the command was given to a cluster's job server, from another machine or folder."""

    diff: bytes = b""
    """These changes, as `git apply` takes them."""

    def recorded(self) -> dict[str, object]:
        """Return what a run's ledger keeps of it."""
        content = asdict(self)
        diff = content.pop("diff")
        return content | ({"diff": f"{DIFF}, sha256 {hashlib.sha256(diff).hexdigest()}"} if diff else {})

    def files(self) -> dict[str, bytes]:
        """Return the files that travel with a job, so that `origin` returns the same there."""
        known = asdict(self) | {"submitted": True}
        del known["diff"]
        return {SUBMITTED: json.dumps(known, indent=1).encode()} | ({DIFF: self.diff} if self.diff else {})


def origin(command: str | None = None, *, root: Path = ROOT) -> Origin:
    """Find where this command was given and with which code; in a job, read what the submitting machine recorded.

    command: None is the command line of this process.
    """
    with contextlib.suppress(FileNotFoundError):
        known = json.loads((root / SUBMITTED).read_text())
        diff = root / DIFF
        return Origin(**known, diff=diff.read_bytes() if diff.exists() else b"")
    commit, changes = _commit(root), None
    if commit is not None:
        changes = _changes(root, commit)
    return Origin(
        command=_without_secrets(shlex.split(command)) if command is not None else typed(),
        directory=_working_directory(),
        version=__version__,
        commit=commit,
        dirty=None if changes is None else bool(changes),
        diff=changes or b"",
    )


def environment(origin: Origin) -> dict[str, Any]:
    """Collect what is needed to run a sweep again: command, code, versions, hardware. No environment variables, as they
    may hold secrets."""
    return {
        **origin.recorded(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "platform": platform.platform(),
        **machine(),
    }


def machine() -> dict[str, object]:
    """Return what sets how fast trials run here: processor, cpus, gpus."""
    return {"processor": _processor(), "cpus": os.cpu_count(), "gpus": _gpus()}


def typed() -> str:
    """Return the command line of this process, as a shell takes it."""
    by_module = sys.argv[0].endswith("cli/__main__.py")  # python -m orchestrator.cli
    program = "orchestrator" if by_module or Path(sys.argv[0]).name == "orchestrator" else sys.argv[0]
    return _without_secrets([program, *sys.argv[1:]])


def _without_secrets(words: list[str]) -> str:
    """Join the words as a shell takes them; a password or a key within an address is masked, also one with a slash in
    it, and so is what a variable holds as a secret."""
    plain = (re.sub(r"(\w://[^/:@\s]*:)[^@\s]+@", rf"\1{MASK}@", word) for word in words)
    return shlex.join(masked(word) for word in plain)


def _working_directory() -> str | None:
    try:
        return str(Path.cwd())
    except FileNotFoundError:  # it was deleted under this process
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _git(root: Path, *arguments: str, codes: tuple[int, ...] = (0,)) -> bytes | None:
    """Return what git prints about the checkout in `root`, whatever a user's settings are; None if it cannot."""
    # Variables of a hook that started this process name another repository.
    kept = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    # Code of this checkout is being run, so whose it is does not matter any more; containers often have another user.
    settings = ("-c", "safe.directory=*", "-c", "core.quotepath=false", "-c", "core.fsmonitor=false")
    try:
        done = subprocess.run(
            ["git", *settings, "-C", str(root), *arguments],
            capture_output=True,
            check=False,
            timeout=GIT_S,
            env=kept | {"LC_ALL": "C", "GIT_OPTIONAL_LOCKS": "0", "GIT_TERMINAL_PROMPT": "0"},
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode in codes else None


def _commit(root: Path) -> str | None:
    """Return the commit of the checkout that holds this package. A package that is installed below somebody's checkout,
    in its virtual environment for example, is no part of it."""
    if _git(root, "ls-files", "--error-unmatch", "--", f"orchestrator/run_dir/{Path(__file__).name}") is None:
        return None
    commit = _git(root, "rev-parse", "--verify", "HEAD")
    return None if commit is None else commit.decode().strip()


def _changes(root: Path, commit: str) -> bytes | None:
    """Collect what differs from the commit, as `git apply` takes it: Python files first; files that do not fit and
    binary ones by name alone. Empty if nothing differs; None if git cannot say."""
    plain = ("--no-color", "--no-ext-diff", "--no-textconv", "--src-prefix=a/", "--dst-prefix=b/")
    tracked = _git(root, "diff", *plain, "--no-renames", "--relative", "HEAD", "--", ".")
    names = _git(root, "ls-files", "--others", "-z", "--", *(f"{folder}/*.py" for folder in CODE))
    if tracked is None or names is None:
        return None
    sections = list(_sections(tracked))
    for name in sorted(filter(None, names.decode(errors="surrogateescape").split("\0"))):
        made = _git(root, "diff", *plain, "--no-index", "--", os.devnull, name, codes=(0, 1))
        sections += _sections(made or f"diff --git a/{name} b/{name}\nBinary files differ\n".encode())
    if not sections:
        return b""
    head = [f"What differs from commit {commit}; `git apply {DIFF}` makes these changes again.".encode()]
    plain_ones, sections = sections, [masked_values(section) for section in sections]
    changed = [_name(section) for section, shown in zip(plain_ones, sections, strict=True) if section != shown]
    head += [f"Not as it was, for {MASK} stands for secrets of the environment: ".encode() + name for name in changed]
    text = [section for section in sections if not _is_binary(section)]
    head += [b"Binary, not in here: " + _name(section) for section in sections if _is_binary(section)]
    kept, size = [], 0
    for section in sorted(text, key=lambda section: (not _name(section).endswith(b".py"), len(section))):
        if size + len(section) <= LARGEST_DIFF:
            kept.append(section)
            size += len(section)
        else:
            what = f" ({len(section):,} bytes; {LARGEST_DIFF:,} are kept in all)"
            head.append(b"Too large, not in here: " + _name(section) + what.encode())
    return b"\n".join([*head, b"", b"".join(kept)])


def _sections(diff: bytes) -> Iterator[bytes]:
    """Yield the parts of a diff, one for each file."""
    yield from (part for part in re.split(rb"^(?=diff --)", diff, flags=re.M) if part)


def _name(section: bytes) -> bytes:
    """Return the file that a part is about. Its first line has the name twice: `diff --git a/NAME b/NAME`."""
    both = section.partition(b"\n")[0].removeprefix(b"diff --git ")
    return both[2 : len(both) // 2]


def _is_binary(section: bytes) -> bool:
    return re.search(rb"^Binary files ", section.partition(b"\n@@")[0], re.M) is not None


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    return (_output("nvidia-smi", "--query-gpu=name,memory.total", "--format=csv,noheader") or "").splitlines()
