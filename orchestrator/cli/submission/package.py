"""What goes along with a job: this program's code, the sweep file, and the data files that it names by a relative
path."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import shlex
import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from glob import has_magic
from pathlib import Path
from typing import TypedDict

from jobs.config import canonical
from jobs.config.user_code import SUBMITTED, UserCode
from jobs.core.paths import expanded, is_folder_here
from orchestrator.run_dir.environment import Origin
from orchestrator.run_dir.folder import RunError
from orchestrator.system.addresses import SECRET
from orchestrator.system.masking import is_secret
from orchestrator.system.scratch import folder

LARGEST_MB = 100.0
"""How much data a job takes along: it goes through the head's memory."""

LONGEST = 100
"""Characters of a run's name in the ids of its jobs, which become names of files on the head."""

PACKAGES = ("orchestrator", "jobs")

PYTHON = '"${ORCHESTRATOR_PYTHON:-python}"'
"""How the head starts this program: in the environment that its Ray runs in, unless that says otherwise."""

DRIVER, ANSWERS = f"{PYTHON} -m orchestrator.cli", f"{PYTHON} -m orchestrator.cli.answer"


class RuntimeEnv(TypedDict):
    """What Ray needs to run a job."""

    working_dir: str
    env_vars: dict[str, str]


@dataclass(frozen=True)
class JobSpec:
    """What a job is to do with a run."""

    verb: str
    run: str
    """URI of the run."""

    arguments: Sequence[str]
    """Of the command line, the verb first."""

    sweep_file: Path | None = None
    sweep: str | None = None
    """Hash of the sweep, which tells whether two launches mean the same."""

    sources: Sequence[str] = ()
    """What the sweep's jobs name as data, or as an encoder's folder."""

    code: UserCode | None = None
    """Of the user, which the sweep names."""

    environment: Mapping[str, str] = field(default_factory=dict)

    origin: Origin | None = None
    """Which command ordered it, and with which code; it is recorded with a run that the job begins."""

    @property
    def name(self) -> str:
        """What the ids of the run's jobs begin with."""
        last = self.run.partition("?")[0].rstrip("/").rpartition("/")[2][:LONGEST]
        return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', last)}-{hashlib.sha256(self.run.encode()).hexdigest()[:8]}"

    @property
    def digest(self) -> str:
        """Whether two orders ask for the same: what is to be done, with which sweep and which variables."""
        asked = [list(self.arguments), self.sweep, dict(self.environment)]
        return hashlib.sha256(canonical(asked).encode()).hexdigest()[:16]


def entrypoint(order: JobSpec, mark: str) -> str:
    """Build the shell command of a job. It prints the line `mark` first, as Ray's own lines come before; in two parts,
    as Ray prints the command too."""
    return f"printf '%s%s\\n' '{mark[:2]}' {mark[2:].strip()}; {DRIVER} {shlex.join(order.arguments)}"


@contextlib.contextmanager
def package(order: JobSpec) -> Iterator[RuntimeEnv]:
    """Make Ray's runtime environment of a job; its folder is there while the context lasts.

    Raises RunError for files that cannot go along.
    """
    with folder("job") as root:
        for name in PACKAGES:
            source = Path(__file__).parents[3] / name
            shutil.copytree(source, root / name, ignore=shutil.ignore_patterns("__pycache__"))
        if order.sweep_file is not None:
            shutil.copyfile(order.sweep_file, root / "sweep.toml")
        if order.code is not None:
            order.code.write(root / SUBMITTED)
        for name, content in order.origin.files().items() if order.origin is not None else ():
            (root / name).write_bytes(content)
        for file in taken_along(order.sources):
            (root / file).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, root / file)
        yield {"working_dir": str(root), "env_vars": dict(order.environment)}


def taken_along(sources: Sequence[str]) -> list[Path]:
    """List the files here that sources name by a relative path: the cluster has no such folder. Absolute paths, URIs
    and names of data sets mean what they mean there. Raises RunError."""
    sizes: dict[Path, int] = {}
    for source in sources:
        name = re.sub(r"\[-?\d*:-?\d*\]$", "", source)
        folder, _, _ = name.rpartition(":")
        name = folder if folder and not Path(name).exists() and is_folder_here(folder) else name  # FOLDER:SPLIT
        if "://" in name or expanded(name).is_absolute():
            continue
        for path in _named(name):
            if ".." in path.parts:
                raise RunError(f"{source} lies above this folder, and only what is in it goes along to the cluster")
            files = [path] if path.is_file() else [inner for inner in path.rglob("*") if inner.is_file()]
            sizes |= {file: file.stat().st_size for file in files}
    size_mb = sum(sizes.values()) / 2**20
    if size_mb > LARGEST_MB:
        largest = max(sizes, key=lambda file: sizes[file])
        raise RunError(
            f"{len(sizes)} files of {size_mb:.0f} MB would go along to the cluster ({largest} is the largest), and a "
            f"job takes {LARGEST_MB:.0f} MB; put them where every node reads them, and give that path or an s3:// URI"
        )
    return sorted(sizes)


def _named(name: str) -> list[Path]:
    """Find what is there by this name, or else what fits it as a pattern; nothing where no path can have such a
    name."""
    try:
        if Path(name).exists():
            return [Path(name)]
        return list(Path().glob(name)) if has_magic(name) else []
    except (ValueError, NotImplementedError):
        return []
    except OSError as error:
        if error.errno != errno.ENAMETOOLONG:
            raise
        return []


def environment(texts: Sequence[str]) -> dict[str, str]:
    """Read `NAME=VALUE`, or `NAME` for its value here, as variables of a job. Raises RunError for secrets: whoever
    reads the cluster's dashboard reads these."""
    variables = {}
    for text in texts:
        name, given, value = text.partition("=")
        if not given:
            if name not in os.environ:
                raise RunError(f"--env {name}: there is no such variable here; give --env {name}=VALUE")
            value = os.environ[name]
        if not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", name):
            raise RunError(f"--env {name}: that is no name of a variable; give --env NAME=VALUE")
        if SECRET.search(name) or is_secret(name, value):
            raise RunError(
                f"--env {name} is a secret, and a job's variables can be read by everybody who sees the cluster; set "
                "it in the environment of the cluster's head and workers (infra/README.md)"
            )
        variables[name] = value
    return variables
