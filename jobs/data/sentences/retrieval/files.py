"""Where queries, corpus and qrels lie: in one folder, beside the qrels, or where they are named."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import quote

from jobs.data.faults import DataError, listed, short
from jobs.data.formats import SUFFIXES
from jobs.data.resolve import HUB, File, address_and_query, connected, locate

_PLAIN = (".trec", ".qrels", ".qrel", ".txt", "")
"""What a file of qrels without a header may end in, beside .tsv, packed by gzip or not."""

_PACKED = ".gz"

_SPLIT = re.compile(r"(?P<folder>.+):(?P<split>[\w.-]+)", re.DOTALL)


@dataclass(frozen=True)
class Files:
    """The three sources that a source of retrieval is made of."""

    qrels: str
    queries: str
    corpus: str


def files_of(source: str, *, queries: str | None = None, corpus: str | None = None) -> Files:
    """Find the files of a source. queries, corpus: sources of their own, where they lie elsewhere. Raises DataError."""
    if source.endswith("]") and "[" in source:
        raise DataError(
            "ends in a slice of rows, and retrieval is judged by whole qrels; name a split, such as FOLDER:dev",
            file=source,
        )
    address, query = parts_of(source)
    named = _SPLIT.fullmatch(address)
    if named is not None and (folder := _folder(named["folder"] + query)) is not None:
        return _in_folder(folder, named["split"], queries, corpus)
    if (folder := _folder(source)) is not None:
        return _in_folder(folder, None, queries, corpus)
    qrels = _plain_file(source) or _only_file(source)
    return Files(qrels, queries or _beside(qrels, "queries", source), corpus or _beside(qrels, "corpus", source))


def parts_of(source: str) -> tuple[str, str]:
    """Split a source in two: a path, or a URI up to its query, and the query of a URI, which goes with every file."""
    return address_and_query(source) if "://" in source else (source, "")


@dataclass(frozen=True)
class _Folder:
    """A folder, here or at a URI, and what it holds."""

    source: str
    files: Mapping[str, str]
    """Path within the folder -> source."""

    def named(self, stem: str) -> list[str]:
        """List the sources of files of this name, whatever their format."""
        return [source for path, source in self.files.items() if _without_suffix(path) == stem]


def _folder(source: str) -> _Folder | None:
    """Look into a folder; None where the source is none."""
    try:
        found = locate(source).files
    except DataError:
        return None
    if any(file.uri == HUB for file in found):
        return None
    paths = [file.path for file in found]
    name = PurePosixPath(parts_of(source)[0]).name
    if len(paths) == 1 and _without_suffix(name) == _without_suffix(PurePosixPath(paths[0]).name):
        return None
    top = os.path.commonprefix(paths).rpartition("/")[0].removesuffix("/qrels")  # noqa: RUF071 - they may be URIs
    within = {file.path[len(top) + 1 :]: file.path if file.uri is None else file.uri for file in found}
    if all(file.uri is None for file in found):
        here = Path(top)
        plain = (path for path in (*here.glob("qrels*"), *here.glob("qrels/*")) if path.is_file())
        within |= {path.relative_to(here).as_posix(): str(path) for path in plain if _is_plain(path)}
    elif (uri := found[0].uri) is not None:
        address, query = parts_of(uri)
        base = address[: -len(quote(found[0].path[len(top) + 1 :])) - 1]
        for inside in ("", "/qrels"):
            names = [f"{inside[1:]}/{name}".lstrip("/") for name in _names_in(base + inside + query)]
            plain_names = (name for name in names if name.startswith("qrels") and _is_plain(Path(name)))
            within |= {name: f"{base}/{quote(name)}{query}" for name in plain_names}
    return _Folder(source, within)


def _names_in(uri: str) -> list[str]:
    """List the files that lie directly in a folder of a bucket; none where there is no such folder. Raises
    DataError."""
    from pyarrow import fs

    try:
        filesystem, inside = connected(uri)
        infos = filesystem.get_file_info(fs.FileSelector(inside, allow_not_found=True))
    except (OSError, ValueError) as error:
        raise DataError(f"cannot be reached: {short(error)}", file=uri) from error
    return sorted(PurePosixPath(info.path).name for info in infos if info.type == fs.FileType.File)


def _in_folder(folder: _Folder, split: str | None, queries: str | None, corpus: str | None) -> Files:
    names = {
        path.partition("/")[2]: source for path, source in sorted(folder.files.items()) if path.startswith("qrels/")
    }
    splits = {_without_suffix(name): source for name, source in names.items()}
    alone = folder.named("qrels")
    if split is not None and split not in splits:
        raise DataError(f"has no qrels/{split}; there {_are(splits)}", file=folder.source)
    if split is None and alone:
        qrels = alone[0]
    elif split is None and len(splits) != 1 and "test" not in splits:
        raise DataError(
            f"has no qrels of its own, and several splits: {listed(list(splits))}; name one: "
            f"{f':{next(iter(splits))}'.join(parts_of(folder.source))}"
            if splits
            else "holds no qrels; it has qrels/test.tsv, with lines of query-id, corpus-id and score, or the like",
            file=folder.source,
        )
    else:
        qrels = splits[split or ("test" if "test" in splits else next(iter(splits)))]
    return Files(qrels, queries or _one(folder, "queries"), corpus or _one(folder, "corpus"))


def _are(splits: Mapping[str, str]) -> str:
    return f"are {listed(list(splits))}" if splits else "are no qrels"


def _one(folder: _Folder, stem: str) -> str:
    there = folder.named(stem)
    if len(there) != 1:
        example = f"/{stem}.jsonl".join(parts_of(folder.source))
        what = f"could be {' or '.join(there)}" if there else f"there is no {stem}.jsonl, .parquet or .tsv"
        raise DataError(
            f"{what}; name one in evaluate.judge_options = {{ {stem} = '{example}' }}",
            file=folder.source,
        )
    return there[0]


def _plain_file(source: str) -> str | None:
    """Return the path of qrels whose name ends as no table's does; None where there is no such file."""
    from jobs.core.paths import expanded, folders

    path = expanded(source)
    return next((str(top / path) for top in folders() if _is_plain(path) and (top / path).is_file()), None)


def _is_plain(path: Path) -> bool:
    return Path(path.name.lower().removesuffix(_PACKED)).suffix in _PLAIN


def _only_file(source: str) -> str:
    found = locate(source).files
    if len(found) != 1 or found[0].uri == HUB:
        raise DataError(
            "is neither a folder with queries, corpus and qrels, nor one file of qrels, such as FOLDER/qrels/test.tsv",
            file=source,
        )
    return found[0].path if found[0].uri is None else found[0].uri


def _beside(qrels: str, stem: str, source: str) -> str:
    """Find a table of this name beside the qrels, or one folder above. Raises DataError."""
    address, query = parts_of(qrels)
    wanted = [f"{stem}{suffix}" for suffix in SUFFIXES]
    folder = address
    for _ in range(2):
        folder = folder.rpartition("/")[0] if "://" in address else str(PurePosixPath(folder).parent)
        if "://" not in address:
            there = [name for name in wanted if Path(folder, name).is_file()]
        elif folder.endswith(("/", ":")):  # the bucket itself is the last one
            break
        else:
            known = _names_in(folder + query)
            there = [name for name in wanted if name in known]
        if there:
            return f"{folder}/{there[0]}{query}" if "://" in address else str(Path(folder, there[0]))
    raise DataError(
        f"has no {stem}.jsonl, .parquet or .tsv beside it, nor one folder above; name yours in evaluate.judge_options "
        f"= {{ {stem} = 'FILE' }}",
        file=source,
    )


def _without_suffix(path: str) -> str:
    plain = [end for kind in _PLAIN for end in (kind, kind + _PACKED) if end]
    endings = sorted((*SUFFIXES, *plain), key=len, reverse=True)
    return next((path[: -len(end)] for end in endings if path.lower().endswith(end)), path)


def located(source: str) -> File:
    """Find a file that is no table by its name, or is one."""
    path = Path(source)
    if path.is_file():
        return File(source, path.stat().st_size, path.stat().st_ctime_ns)
    return locate(source).files[0]
