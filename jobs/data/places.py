"""Where the files of a source are.

A source is `digits`; a file, folder, glob or URI; a name under $ORCHESTRATOR_DATA, with or without its extension; or a
Hub data set. A relative path is looked for where the run began, then in the current folder (jobs/paths.py). It may end
in a slice of rows, `[:2000]`. Hidden files, and those that begin with `_`, are no data.
"""

from __future__ import annotations

import difflib
import fnmatch
import os
import re
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote, unquote

from jobs.data.formats import SUFFIXES, DataError, short, shown
from jobs.data.remedies import of_file, of_folder
from jobs.paths import expanded, folders, looked_in

ROOT = "ORCHESTRATOR_DATA"
DIGITS = "digits"
HUB = "hub"
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
    """The files of a source, as they are now. Raises DataError if there are none."""
    sliced = re.fullmatch(r"(.+)\[(-?\d+)?:(-?\d+)?\]", source, re.DOTALL)
    name, start, stop = sliced.groups() if sliced else (source, None, None)
    return Located(source, _files(name), None if start is None else int(start), None if stop is None else int(stop))


def _files(name: str) -> tuple[File, ...]:
    if name == DIGITS:
        return (File(DIGITS),)
    if "://" in name:
        found = _remote(name)
        if not found:
            raise DataError(f"there is no such file; data files end in {', '.join(SUFFIXES)}", file=name)
        return found
    path = expanded(name)
    found, refusals = _local_anywhere(path)
    root = os.environ.get(ROOT, "")
    if not found and root and not path.is_absolute():
        found = _remote_named(root, name) if "://" in root else _local_named(expanded(root), name)
    hub = re.fullmatch(r"[\w.-]+/[\w.-]+(:[\w.-]+){0,2}", name) and not name.endswith(SUFFIXES)
    if not found and hub and not refusals:
        found = (File(name, uri=HUB),)
    if not found:
        raise refusals[0] if refusals else DataError(_not_found(name, root), file=name)
    return found


def _local_anywhere(path: Path) -> tuple[tuple[File, ...], list[DataError]]:
    """The files in the first of the folders that has some, and why others were not looked into."""
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
    if not root:
        return f"there is no such file{where}; give a path, or set ${ROOT} to the folder that holds it"
    here = f"a file{where}" if where else "a file here"
    if "://" in root:
        return f"is neither {here} nor a name under ${ROOT} = {shown(root)}"
    known = sorted({_without_suffix(each.name) for each in expanded(root).glob("*") if _is_data(each.name)})
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"there are {', '.join(known[:12]) or 'no data files'}"
    return f"is neither {here} nor a name under ${ROOT} = {shown(root)}; {hint}"


def _local(path: Path, top: Path = Path()) -> tuple[File, ...]:
    """A file, the data files in a folder at any depth, or those that fit a glob. A relative path is looked for in
    `top`, whose own name is no pattern."""
    full = top / path
    try:
        if full.is_file():
            found = [full]
        elif full.is_dir():
            inside = list(full.rglob("*"))
            found = [file for file in inside if _is_data(str(file.relative_to(full))) and file.is_file()]
            if not found:
                plain = f"is a folder without data files; they end in {', '.join(SUFFIXES)}"
                raise DataError(of_folder(full, inside) or plain, file=str(full))
        elif WILD.search(str(path)):
            start = Path(path.anchor) if path.is_absolute() else top
            pattern = str(path.relative_to(path.anchor))
            fitting = [file for file in start.glob(pattern) if file.is_file()]
            found = [file for file in fitting if _is_data(file.name)]
            if not found and fitting and (words := of_file(str(min(fitting)))):
                raise DataError(words, file=str(min(fitting)))
        else:
            found = []
        # Of the times of a file this is the one that nobody sets back.
        return tuple(File(str(file), file.stat().st_size, file.stat().st_ctime_ns) for file in sorted(found))
    except DataError:
        raise
    except (OSError, ValueError, NotImplementedError) as error:  # no right to look, a name too long, no such pattern
        raise DataError(f"cannot be looked for: {short(error)}", file=str(full)) from error


def _local_named(root: Path, name: str) -> tuple[File, ...]:
    found = _local(Path(name), root)
    return found or _only([_local(Path(f"{name}{suffix}"), root) for suffix in SUFFIXES], name)


def _remote_named(root: str, name: str) -> tuple[File, ...]:
    address, query = _address(root)
    top = address.rstrip("/")
    place, plain = f"{top}/{name.replace('%', '%25')}", shown(f"{top}/{name}")
    found = _remote(place + query)
    if found:
        return found
    return _only([(each,) for each in _remote(f"{place}.*{query}") if _without_suffix(each.path) == plain], name)


def _only(candidates: list[tuple[File, ...]], name: str) -> tuple[File, ...]:
    found = [each for each in candidates if each]
    if len(found) > 1:
        raise DataError(f"could be {' or '.join(files[0].path for files in found)}; name one", file=name)
    return found[0] if found else ()


def _remote(uri: str) -> tuple[File, ...]:
    """The same for a URI, by pyarrow.fs. A query, such as S3's endpoint_override, goes with every file."""
    address, query = _address(uri)
    wild = WILD.search(address)
    found = _below(address, None, query)
    if found or not wild:
        return found
    base = address[: address.rindex("/", 0, wild.start())]
    return _below(base, unquote(address[len(base) + 1 :]), query)


def _below(base: str, pattern: str | None, query: str) -> tuple[File, ...]:
    """The file at an address, or the data files in a folder: those that fit a pattern, without one all of them."""
    from pyarrow import fs

    try:
        filesystem, inside = fs.FileSystem.from_uri(_valid(base) + query)
        found = [filesystem.get_file_info(inside)]
        if found[0].type == fs.FileType.Directory:
            found = filesystem.get_file_info(fs.FileSelector(inside, recursive=pattern is None or "/" in pattern))
    except Exception as error:  # behind hf:// and its like are packages that raise what they like
        raise DataError(f"cannot be reached: {short(error)}{_schemes(error)}", file=base + query) from error
    files = []
    for each in sorted(found, key=lambda info: str(info.path)):
        within = str(each.path)[len(inside) :].lstrip("/")
        fits = _fits(within, pattern) if pattern is not None else not within or _is_data(within)
        if each.type == fs.FileType.File and fits:
            place, exact = (f"{base}/{within}", f"{_valid(base)}/{quote(within)}") if within else (base, _valid(base))
            files.append(File(shown(place), each.size or 0, each.mtime_ns or None, exact + query))
    return tuple(files)


def _valid(address: str) -> str:
    """The address with all that belongs in no URI as percent signs and digits; those that are there stay."""
    return quote(address, safe="/:@%&=+,;!$'()*~")


def _schemes(error: Exception) -> str:
    if "nrecognized filesystem type" not in str(error):
        return ""
    return "; download it and give its path, or an address that begins with file://, s3://, gs:// or hf://"


def _address(uri: str) -> tuple[str, str]:
    """A URI in two: up to its query, and the query with its mark. A mark without `=` after it is a wild card."""
    address, mark, query = uri.partition("?")
    return (address, mark + query) if "=" in query else (uri, "")


def _fits(within: str, pattern: str) -> bool:
    """Whether a path fits a glob, as local ones do: `**` stands for any folders, other signs stay within one name."""
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
