"""Where the files of a source are.

A source is `digits`; a file, folder, glob or URI; a name under $ORCHESTRATOR_DATA, with or without its extension; or a
Hub data set. A relative path is looked for where the run began, then in the current folder (jobs/core/paths.py). It
may end in a slice of rows, `[:2000]`. Hidden files, and those that begin with `_`, are no data.
"""

from __future__ import annotations

import difflib
import fnmatch
import itertools
import os
import posixpath
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING
from urllib.parse import quote, unquote

from jobs.core.paths import DIGITS, expanded, folders, looked_in
from jobs.data.formats import SUFFIXES, DataError, short, shown
from jobs.data.remedies import is_hidden, of_file, of_folder, of_inside

if TYPE_CHECKING:
    from pyarrow.fs import FileSystem

ROOT = "ORCHESTRATOR_DATA"
HUB = "hub"
_SLICED = re.compile(r"(.+)\[(-?\d+)?:(-?\d+)?\]", re.DOTALL)
WILD = re.compile(r"[*?\[]")


@dataclass(frozen=True)
class File:
    """One file of a source. Size and time of change tell a later look whether it is still the same."""

    path: str
    size: int = 1
    changed: int | None = 0
    """Nanoseconds; None where the file system does not say, so that nothing tells a changed file of equal size."""
    uri: str | None = None
    """How pyarrow.fs finds it, credentials and options included; None: on a local disk."""


@dataclass(frozen=True)
class Located:
    """A source that was found: its files in order of name, and the slice of their rows."""

    source: str
    files: tuple[File, ...]
    start: int | None
    stop: int | None


def locate(source: str) -> Located:
    """Find the files of a source, as they are now. Raises DataError if there are none."""
    sliced = _SLICED.fullmatch(source)
    name, start, stop = sliced.groups() if sliced else (source, None, None)
    return Located(source, _files(name), None if start is None else int(start), None if stop is None else int(stop))


def _unsliced(source: str) -> str:
    sliced = _SLICED.fullmatch(source)
    return str(sliced[1]) if sliced else source


def _files(name: str) -> tuple[File, ...]:
    if name == DIGITS:
        return (File(DIGITS),)
    if "://" in name:
        files = _remote(name)
        if not files:
            raise DataError(f"there is no such file; data files end in {', '.join(SUFFIXES)}", file=name)
        return files
    path = expanded(name)
    files, refusals = _local_anywhere(path)
    root = os.environ.get(ROOT, "")
    if not files and root and not path.is_absolute():
        try:
            files = _remote_named(root, name) if "://" in root else _local_named(expanded(root), name)
        except DataError as error:
            refusals.append(error)  # what is wrong with the folders before it comes first
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}", name) and not name.endswith(SUFFIXES)
    if not files and hub and not refusals:
        files = (File(name, uri=HUB),)
    if not files:
        raise refusals[0] if refusals else DataError(_not_found(name, root), file=name)
    return files


def _local_anywhere(path: Path) -> tuple[tuple[File, ...], list[DataError]]:
    """Find the files in the first of the folders that has some; if none has, return what was wrong with them."""
    refusals = []
    for top in folders():
        try:
            if files := _local(path, top):
                return files, []
        except DataError as error:
            refusals.append(error)
    return (), refusals


def _not_found(name: str, root: str) -> str:
    where = looked_in(name)
    if near := re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*):/+", name):
        return f"there is no such file{where}; a URI begins with {near[1].lower()}://"
    if not root:
        return f"there is no such file{where}; give a path, or set ${ROOT} to the folder that holds it"
    here = f"a file{where}" if where else "a file here"
    if "://" in root:
        return f"is neither {here} nor a name under ${ROOT} = {shown(root)}"
    known = sorted({_without_suffix(path.name) for path in expanded(root).glob("*") if _is_data(path.name)})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known[:12]) or 'no data files'}"
    return f"is neither {here} nor a name under ${ROOT} = {shown(root)}; {hint}"


def _local(path: Path, top: Path = Path()) -> tuple[File, ...]:
    """Find a file, the data files in a folder at any depth, or those that fit a glob. A relative path is looked for in
    `top`; the name of `top` itself is no pattern."""
    full = top / path
    try:
        if full.is_file():
            paths = [full]
        elif full.is_dir():
            inside = [file.relative_to(full).as_posix() for file in full.rglob("*") if file.is_file()]
            paths = [full / name for name in _tables(str(full), inside)]
            if not paths:
                plain = f"is a folder without data files; they end in {', '.join(SUFFIXES)}"
                raise DataError(of_folder(full) or plain, file=str(full))
        elif WILD.search(str(path)):
            start = Path(path.anchor) if path.is_absolute() else top
            fitting = list(start.glob(str(path.relative_to(path.anchor))))
            paths = [file for file in fitting if _is_data(file.name) and file.is_file()]
            if not paths and (shown_ := [file for file in fitting if not is_hidden(file.name)]):
                folder = _above_wild(full)
                words = of_file(str(min(shown_))) or (of_folder(folder) if any(map(Path.is_dir, shown_)) else None)
                if words:
                    raise DataError(words, file=str(folder if min(shown_).is_dir() else min(shown_)))
        else:
            paths = []
        # Of the times of a file this is the one that nobody sets back.
        return tuple(File(str(path), path.stat().st_size, path.stat().st_ctime_ns) for path in sorted(paths))
    except DataError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # no right to look, a name too long, no such pattern
        raise DataError(f"cannot be looked for: {short(error)}", file=str(full)) from error


def pictures_beside(source: str, file: str) -> str | None:
    """Return what to say of the folder of a source where images lie beside a file that was taken for a table of them;
    None where there is no such folder."""
    name, table = (connected(uri)[1] if uri.startswith("file:") else uri for uri in (_unsliced(source), file))
    tops = [*folders(), expanded(os.environ.get(ROOT) or ".")]
    for folder in () if "://" in name else (_above_wild(top / expanded(name)) for top in tops):
        is_beside = folder.is_dir() and _is_data(Path(table).name) and Path(table).is_relative_to(folder)
        if is_beside and (words := of_folder(folder)):
            return f"{folder} {words}"
    return None


def _above_wild(path: Path) -> Path:
    """Return the folder to look for a pattern in; the path itself where it is no pattern."""
    parts = list(itertools.takewhile(lambda part: not WILD.search(part), path.parts))
    return Path(*parts)


def _tables(folder: str, inside: Sequence[str]) -> list[str]:
    """Choose the files in a folder that hold rows, without what `datasets` writes about its own. Raises DataError for a
    folder of splits, which are not one table."""
    names = set(inside)
    if "dataset_dict.json" in names:
        splits = sorted({name.partition("/")[0] for name in names if name.endswith("/state.json")})
        raise DataError(
            f"holds {', '.join(splits) or 'splits'}, the splits of a data set; name one of them: "
            f"{folder.rstrip('/')}/{splits[0] if splits else 'train'}",
            file=folder,
        )
    saved = {posixpath.dirname(name) for name in names if name.endswith(".arrow")}
    notes = {posixpath.join(parent, note) for parent in saved for note in ("state.json", "dataset_info.json")}
    return [name for name in inside if _is_data(name) and name not in notes]


def _local_named(root: Path, name: str) -> tuple[File, ...]:
    files = _local(Path(name), root)
    if files or WILD.search(name):
        return files
    return _only([_local(Path(f"{name}{suffix}"), root) for suffix in SUFFIXES], name)


def _remote_named(root: str, name: str) -> tuple[File, ...]:
    address, query = address_and_query(root)
    top = address.rstrip("/")
    uri, plain = f"{top}/{name.replace('%', '%25')}", shown(f"{top}/{name}")
    files = _remote(uri + query)
    if files:
        return files
    return _only([(file,) for file in _remote(f"{uri}.*{query}") if _without_suffix(file.path) == plain], name)


def _only(candidates: list[tuple[File, ...]], name: str) -> tuple[File, ...]:
    there = [files for files in candidates if files]
    if len(there) > 1:
        raise DataError(f"could be {' or '.join(files[0].path for files in there)}; name one", file=name)
    return there[0] if there else ()


def _remote(uri: str) -> tuple[File, ...]:
    """Find a file, the data files in a folder, or those that fit a glob, by a URI and pyarrow.fs. A query, such as S3's
    endpoint_override, goes with every file."""
    address, query = address_and_query(uri)
    wild = WILD.search(address)
    files = _below(address, None, query)
    if files or not wild:
        return files
    base = address[: address.rindex("/", 0, wild.start())]
    return _below(base, unquote(address[len(base) + 1 :]), query)


def _below(base: str, pattern: str | None, query: str) -> tuple[File, ...]:
    """Find the file at an address, or the data files in a folder: those that fit a pattern, or all if it is None."""
    from pyarrow import fs

    try:
        filesystem, inside = connected(base + query)
        infos = [filesystem.get_file_info(inside)]
        if infos[0].type == fs.FileType.Directory:
            infos = filesystem.get_file_info(fs.FileSelector(inside, recursive=pattern is None or "/" in pattern))
    except Exception as error:  # behind hf:// and its like are packages that raise what they like
        raise DataError(f"cannot be reached: {short(error)}{_schemes(error)}", file=base + query) from error
    within = {str(info.path)[len(inside) :].lstrip("/"): info for info in infos if info.type == fs.FileType.File}
    if pattern is not None:
        chosen = [name for name in within if _fits(name, pattern)]
    else:
        chosen = [*([""] if "" in within else []), *_tables(shown(base), list(within))]
    if not chosen:
        is_here = filesystem.type_name == "local"
        if words := of_inside(inside if is_here else shown(base), list(within), is_here=is_here):
            raise DataError(words, file=base + query)
    files = []
    for name in sorted(chosen):
        address, exact = (f"{base}/{part}" if name else base for part in (name, quote(name)))
        files.append(File(shown(address), within[name].size or 0, within[name].mtime_ns or None, exact + query))
    return tuple(files)


def connected(uri: str) -> tuple[FileSystem, str]:
    """Connect to the file system of a URI; return it and the path there. What no URI may hold (spaces, umlauts, `#`, a
    `%` without two digits after it) stands for itself."""
    from pyarrow import fs

    address, query = address_and_query(uri)
    address = quote(re.sub(r"%(?![0-9a-fA-F]{2})", "%25", address), safe="/:@%&=+,;!$'()*~")
    filesystem, inside = fs.FileSystem.from_uri(address + query)
    return filesystem, str(inside)


def _schemes(error: Exception) -> str:
    if "nrecognized filesystem type" not in str(error):
        return ""
    return "; download it and give its path, or an address that begins with file://, s3://, gs:// or hf://"


def address_and_query(uri: str) -> tuple[str, str]:
    """Split a URI in two: up to its query, and the query with its mark. A mark without `=` after it is a wild card."""
    address, mark, query = uri.partition("?")
    return (address, mark + query) if "=" in query else (uri, "")


def _fits(within: str, pattern: str) -> bool:
    """Return whether a path fits a glob, as local ones do: `**` stands for any folders, other signs stay within one
    name."""
    return _parts_fit(within.split("/"), pattern.split("/")) and _is_data(PurePosixPath(within).name)


def _parts_fit(parts: list[str], patterns: list[str]) -> bool:
    if not parts or not patterns:
        return not parts and not patterns
    if patterns[0] == "**":
        return any(_parts_fit(parts[skipped:], patterns[1:]) for skipped in range(len(parts)))
    return fnmatch.fnmatchcase(parts[0], patterns[0]) and _parts_fit(parts[1:], patterns[1:])


def _is_data(relative: str) -> bool:
    if not relative.lower().endswith(SUFFIXES):
        return False
    return not any(part.startswith((".", "_")) for part in PurePosixPath(relative).parts)


def _without_suffix(path: str) -> str:
    return next((path.removesuffix(suffix) for suffix in SUFFIXES[::-1] if path.endswith(suffix)), path)
