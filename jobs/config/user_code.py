"""The user's own code: what `[code] paths` names, as it travels with a run and counts in its trials' ids.

Every path, a package's folder or a module's file, is collected under its last name: in a run all of them lie side by
side, and the folder that they lie in is put on `sys.path`. Hidden files, those that git ignores and those over 10 MB
stay where they are. No torch, no ray.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = "ORCHESTRATOR_CODE"
"""Variable of a process: the folder that its user's code lies in."""

SUBMITTED = "submitted_code"
"""Folder beside the sweep file of a job on a cluster, in which the code came along."""

LARGEST_FILE = 10 * 2**20
LARGEST_MB = 100

EPOCH = (1980, 1, 1, 0, 0, 0)
"""Of every file in an archive, so that the same code is the same bytes."""


class CodeError(ValueError):
    """A path of [code] cannot be collected."""


@dataclass(frozen=True)
class UserCode:
    """Files by the path that they have in a run."""

    files: Mapping[str, bytes]
    left_out: tuple[str, ...] = ()
    """What stays although it is neither hidden nor ignored, with the reason."""

    @property
    def digest(self) -> str:
        """sha256, in hex, over names and contents."""
        whole = hashlib.sha256()
        for name, content in sorted(self.files.items()):
            whole.update(f"{len(name.encode())} {name} {len(content)}\n".encode())
            whole.update(content)
        return whole.hexdigest()

    @property
    def digests(self) -> dict[str, str]:
        """Twelve hex digits for every file."""
        return {name: hashlib.sha256(content).hexdigest()[:12] for name, content in sorted(self.files.items())}

    def archive(self) -> bytes:
        """Pack the files as a zip, the same bytes for the same code."""
        held = io.BytesIO()
        with zipfile.ZipFile(held, "w", zipfile.ZIP_DEFLATED) as archive:
            for name, content in sorted(self.files.items()):
                archive.writestr(zipfile.ZipInfo(name, EPOCH), content, zipfile.ZIP_DEFLATED)
        return held.getvalue()

    def write(self, folder: Path) -> None:
        """Write the files below a folder."""
        for name, content in self.files.items():
            path = folder / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)


def of_archive(content: bytes) -> UserCode:
    """Read what an archive holds. Raises CodeError for a damaged archive."""
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            return UserCode({name: archive.read(name) for name in archive.namelist() if _is_below(name)})
    except (zipfile.BadZipFile, zipfile.LargeZipFile, OSError, ValueError, RuntimeError) as error:
        raise CodeError(f"the code of the run cannot be read: {error}") from error


def _is_below(name: str) -> bool:
    return not name.startswith("/") and ".." not in name.split("/") and not name.endswith("/")


def collect(paths: Sequence[str], base: Path) -> UserCode:
    """Collect the files of [code] paths, which are relative to `base`. Raises CodeError."""
    files: dict[str, bytes] = {}
    left_out: list[str] = []
    names: dict[str, str] = {}
    for given in paths:
        path = Path(os.path.abspath(base / given))  # noqa: PTH100 - git is asked from elsewhere, and links stay
        name = path.name
        if (base / SUBMITTED / name).exists():
            path = base / SUBMITTED / name
        if name in names:
            raise CodeError(f"{given!r} and {names[name]!r} are both called {name}; give one of them another name")
        names[name] = given
        if not path.exists():
            beside = ", ".join(sorted(f"{p.name}/" for p in base.iterdir() if (p / "__init__.py").exists())[:5])
            hint = f"; packages beside the sweep: {beside}" if beside else ""
            raise CodeError(f"there is no {path}: paths start from the folder of the sweep file{hint}")
        if not (path.is_dir() or path.suffix == ".py"):
            raise CodeError(f"{given!r} is neither a folder nor a Python file; give the folder of a package")
        candidates = sorted(_files(path))
        ignored = _ignored(path if path.is_dir() else path.parent, candidates)
        for file in candidates:
            inner = f"{name}/{file.relative_to(path).as_posix()}" if path.is_dir() else name
            if file in ignored:
                continue
            if file.is_symlink() and not file.resolve().is_relative_to(path.resolve()):
                raise CodeError(f"{file} is a link out of {given}; put a copy of the file there")
            if (size := file.stat().st_size) > LARGEST_FILE:
                left_out.append(f"{inner} ({size / 2**20:.0f} MB)")
            else:
                files[inner] = file.read_bytes()
    if not any(name.endswith(".py") for name in files):
        raise CodeError(f"{', '.join(map(repr, paths))}: no Python file that is neither hidden nor ignored by git")
    if (total := sum(map(len, files.values())) / 2**20) > LARGEST_MB:
        raise CodeError(f"{total:.0f} MB of code; a run takes {LARGEST_MB} MB along: name the package's folder alone")
    return UserCode(files, tuple(left_out))


def _files(path: Path) -> Iterator[Path]:
    if path.is_file():
        yield path
        return
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(name for name in folders if not name.startswith(".") and name != "__pycache__")
        yield from (Path(folder, name) for name in names if _counts(Path(folder, name)))


def _counts(path: Path) -> bool:
    return not path.name.startswith(".") and path.suffix not in (".pyc", ".pyo") and path.is_file()


def _ignored(folder: Path, files: Sequence[Path]) -> set[Path]:
    """Return the files that git ignores; none where there is no git, or no checkout."""
    try:
        asked = subprocess.run(
            ["git", "check-ignore", "--stdin", "-z"],
            input="\0".join(map(str, files)).encode(), cwd=folder, capture_output=True, timeout=30, check=False,
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired):
        return set()
    return {Path(os.fsdecode(name)) for name in asked.stdout.split(b"\0") if name} if asked.returncode == 0 else set()


_active: dict[str, str] = {}
"""Digest -> folder of the code that this process has on its path."""


def activate(archive: bytes, digest: str) -> None:
    """Make the code of an archive importable in this process. Raises CodeError where it is not of this digest, or where
    this process has other code already."""
    if digest in _active:
        return
    code = of_archive(archive)
    if code.digest != digest:
        raise CodeError(f"the code of the run is {code.digest[:12]}, not {digest[:12]}: its archive was changed")
    if _active:
        raise CodeError(f"this process has the code {next(iter(_active))[:12]}, not {digest[:12]}; start another one")
    _active[digest] = os.environ[HERE] = str(unpacked(code))
    activate_here()


def unpacked(code: UserCode) -> Path:
    """Return a folder of this machine that holds the code, for all processes of the user and made in one piece."""
    root = Path(tempfile.gettempdir())
    shared = root / f"orchestrator-code-{os.getuid()}-{code.digest[:16]}"
    if not _holds(shared, code):
        own = Path(tempfile.mkdtemp(prefix="orchestrator-code-", dir=root))
        code.write(own)
        try:
            own.rename(shared)
        except OSError:  # another process was faster, or something else lies there
            if not _holds(shared, code):
                return own
            shutil.rmtree(own, ignore_errors=True)
    return shared


def _holds(folder: Path, code: UserCode) -> bool:
    """Return whether a folder is this user's own and holds this code, whatever Python has cached beside it."""
    if folder.is_symlink() or not folder.is_dir() or folder.stat().st_uid != os.getuid():
        return False
    there = {path.relative_to(folder).as_posix(): path for path in _files(folder)}
    return there.keys() == code.files.keys() and all(
        not path.is_symlink() and path.read_bytes() == code.files[name] for name, path in there.items()
    )


@contextlib.contextmanager
def importable(code: UserCode | None) -> Iterator[None]:
    """Have the processes that are started meanwhile import this code."""
    before = os.environ.get(HERE)
    if code is not None:
        os.environ[HERE] = str(unpacked(code))
    try:
        yield
    finally:
        os.environ.pop(HERE, None)
        if before is not None:
            os.environ[HERE] = before


def activate_here() -> None:
    """Make the folder that $ORCHESTRATOR_CODE names importable, before anything else that has those names."""
    folder = os.environ.get(HERE)
    if folder and folder not in sys.path:
        sys.path.insert(0, folder)


def carried(modules: Iterable[str]) -> UserCode | None:
    """Read the folder that $ORCHESTRATOR_CODE names; None where one of these imported modules lies elsewhere."""
    folder = os.environ.get(HERE)
    if not folder or not all(_is_in(folder, module) for module in modules):
        return None
    root = Path(folder)
    return UserCode({path.relative_to(root).as_posix(): path.read_bytes() for path in _files(root)})


def _is_in(folder: str, module: str) -> bool:
    imported = sys.modules.get(module)
    file = getattr(imported, "__file__", None) or next(iter(getattr(imported, "__path__", [])), None)
    return file is not None and Path(file).is_relative_to(folder)
