"""Files that a verb makes on the head, brought here: whole and checked, or not there."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from orchestrator.cli.submission.parcel import HERE
from orchestrator.cli.submission.verbs import run_remote
from orchestrator.run_dir import folder as runs
from orchestrator.run_dir.export import Exported
from orchestrator.run_dir.folder import RunError
from orchestrator.system import scratch

MARKER = ".orchestrator-report"
"""File beside a report that was brought here: of which runs it is, and its files."""

LONGEST, LONGEST_BYTES = 100, 200
"""Characters of a folder's name that is made of runs' names, and bytes."""

Write = Callable[[str], None]


@dataclass(frozen=True)
class Answered:
    """What came of a verb whose files come here."""

    code: int
    out: str
    """What it printed to standard output."""

    folder: Path | None
    """Folder of the files here; None where there are none."""


def export(url: str, run: str, wanted: str, dest: Path, *, err: Write) -> tuple[int, Exported | None]:
    """Have an encoder written on the head of the cluster at `url`, and bring it into the new folder `dest`.

    Returns the exit code, and for 0 what was written, as plain JSON. Raises as `run_remote`, RunError where `dest` is
    there already, OSError of this machine's disk; then nothing of it is left here.
    """
    _refuse_existing(dest)
    out: list[str] = []
    with _aside(dest) as files:
        code = run_remote(url, run, ["export", run, wanted, HERE, "--json"], out=out.append, err=err, into=files)
        if code:
            return code, None
        dest.parent.mkdir(parents=True, exist_ok=True)
        _refuse_existing(dest)  # it took its time
        files.rename(dest)
    return code, json.loads("".join(out)) | {"path": str(dest)}


def report(url: str, of: Sequence[str], *, flags: Sequence[str], into: Path | None, err: Write) -> Answered:
    """Have runs compared on the head of the cluster at `url`, and bring the report into the folder `into`, or into a
    folder that is named after them. A report of the same runs is replaced; raises RunError where anything else is
    there."""
    target = into or Path(_named_after(of))
    uris = [runs.at(run).name for run in of]
    _refuse_foreign(target, uris)
    several = ["--into", HERE] if len(of) > 1 else []
    out: list[str] = []
    with _aside(target) as files:
        arguments = ["compare", *of, *several, *flags]
        code = run_remote(url, of[0], arguments, out=out.append, err=err, into=files)
        names = sorted(path.name for path in files.iterdir())
        if not code and not names:
            err("note: the head could not write the report, so none came\n")
        if code or not names:
            return Answered(code, "".join(out), None)
        (files / MARKER).write_text(json.dumps({"runs": uris, "files": names}), "utf-8")
        _put(files, target, uris)
    return Answered(code, "".join(out), target)


@contextlib.contextmanager
def _aside(target: Path) -> Iterator[Path]:
    """Provide a folder on the disk of `target` that goes with the context unless it is renamed. Nothing is made on the
    way to `target` yet."""
    above = next(parent for parent in target.absolute().parents if parent.is_dir())
    with scratch.folder("brought", within=above) as aside:
        files = aside / "files"
        files.mkdir()
        yield files


def _put(files: Path, target: Path, uris: Sequence[str]) -> None:
    """Move the files of a report to `target`, each of them whole at any moment. Files of the report before are
    removed."""
    _refuse_foreign(target, uris)
    if not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        files.rename(target)
        return
    files_before = _marker(target).get("files")
    old = files_before if isinstance(files_before, list) else []
    new = sorted(files.iterdir())
    for path in new:
        path.replace(target / path.name)
    for name in set(old) - {path.name for path in new}:
        (target / Path(str(name)).name).unlink(missing_ok=True)


def _refuse_existing(dest: Path) -> None:
    if dest.is_symlink() or (dest.exists() and not (dest.is_dir() and not any(dest.iterdir()))):
        raise RunError(f"{dest} is there already, and nothing is overwritten; name a new folder, such as {dest}-2")


def _refuse_foreign(target: Path, uris: Sequence[str]) -> None:
    if target.is_dir() and (not any(target.iterdir()) or _marker(target).get("runs") == list(uris)):
        return
    if target.exists() or target.is_symlink():
        raise RunError(
            f"{target} is there already and holds no report of {' and '.join(uris)}, so nothing is put there; name "
            f"another folder: --into {target}-2"
        )


def _marker(target: Path) -> dict[str, object]:
    try:
        content = json.loads((target / MARKER).read_text("utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def _named_after(of: Sequence[str]) -> str:
    """Build a name for a folder here from the runs' last names."""
    names = [unquote(runs.at(run).name.partition("?")[0].rpartition("/")[2]) for run in of]
    name = "".join(
        "-" if character == "/" or not character.isprintable() else character for character in "+".join(names)
    )
    return f"{name[:LONGEST].encode()[:LONGEST_BYTES].decode(errors='ignore')}-report"
