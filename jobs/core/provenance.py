"""What computes a number: the code of this package and the versions of others; and digests of files.

Digests are of what matters: comments and docstrings do not count, and neither does where a file lies. No torch, no ray.
"""

from __future__ import annotations

import ast
import hashlib
import io
import re
import sys
import tokenize
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache, lru_cache
from importlib import metadata
from pathlib import Path
from typing import TypeAlias

COMPUTING_PACKAGES = ("torch", "transformers", "tokenizers", "numpy", "pyarrow", "pillow", "ray")
"""Packages whose version may change a result, or how it is rounded."""

RECORDED_LATER = ("pillow",)
"""Those that earlier versions of this package did not record: that they say nothing of one is no change."""

OTHER_ORIGIN = "other_origin"
"""How the failure of a rank is called whose code, versions, data or weights are not those of its session."""

Stamp: TypeAlias = tuple[str, int, int]
"""Path of a file, its size, and when it last changed in any way, in nanoseconds."""

HELD = "ORCHESTRATOR_HELD"
"""Variable that says what encoders' names meant where a run began: JSON, name -> `revision` and `names` of files."""


def code_digest(package: Path | None = None) -> str:
    """Compute twelve hex digits over every .py file of a package, this package unless another is named."""
    return combined(code_files(package or Path(__file__).parents[1]))


@cache
def code_files(package: Path) -> Mapping[str, str]:
    """Map the name of every .py file below a package's folder to its digest, without comments, docstrings and blank
    lines; as they were when this process first asked. Hidden files, such as an editor's locks, are left out."""
    names = (path.relative_to(package) for path in sorted(package.rglob("*.py")))
    shown = [name for name in names if not any(part.startswith((".", "__pycache__")) for part in name.parts)]
    return {name.as_posix(): of_code(package / name) for name in shown if (package / name).is_file()}


def of_code(path: Path) -> str:
    """Compute the digest of a Python file without comments, docstrings and blank lines; of its bytes if it is no
    Python."""
    return _of_code(path.read_bytes())


@lru_cache(maxsize=1000)
def _of_code(content: bytes) -> str:
    """Compute the digest of a file with this content, cached: what is imported is digested twice, before and after."""
    try:
        return _text_digest(bare_code(io.TextIOWrapper(io.BytesIO(content), "utf-8").read()))
    except (SyntaxError, ValueError, RecursionError, tokenize.TokenError):
        return hashlib.sha256(content).hexdigest()[:12]


def bare_code(source: str) -> str:
    """Return a Python file's lines without comments, strings that are statements (docstrings) and blank lines.

    They are cut by position in the text, so that no version of Python prints it otherwise.
    """
    lines = [line.encode() for line in io.StringIO(source)]
    spans = [
        ((node.lineno, node.col_offset), (node.end_lineno or node.lineno, node.end_col_offset or 0))
        for node in _statements(ast.parse(source))
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)
    ]
    for row, before, comment in _comments(source):  # its columns are in characters, those of ast in bytes
        start = len(before.encode())
        spans.append(((row, start), (row, start + len(comment.encode()))))
    for (first, start), (last, end) in sorted(spans, reverse=True):
        lines[first - 1 : last] = [lines[first - 1][:start] + lines[last - 1][end:]]
    text = b"".join(lines).decode()
    return "\n".join(line.rstrip() for line in text.splitlines() if line.strip())


def _statements(node: ast.AST) -> Iterator[ast.AST]:
    """Yield every statement below a node; a tenth of what `ast.walk` visits."""
    for field in ("body", "handlers", "orelse", "finalbody", "cases"):
        for below in getattr(node, field, ()):
            yield below
            yield from _statements(below)


STRING_OR_COMMENT = re.compile(
    r'''"""[^"\\]*(?:(?:\\.|"(?!""))[^"\\]*)*"""|"(?:\\.|[^"\\\n])*"'''
    r"""|'''[^'\\]*(?:(?:\\.|'(?!''))[^'\\]*)*'''|'(?:\\.|[^'\\\n])*'"""
    r"|#[^\n]*",
    re.DOTALL,
)
"""Before Python 3.12 no string lies within another, so that comments are found by these words alone."""


def _comments(source: str) -> Iterator[tuple[int, str, str]]:
    """Yield, for every comment, its row, what stands before it in its line, and its text."""
    if sys.version_info >= (3, 12):
        for token in tokenize.generate_tokens(io.StringIO(source).readline):
            if token.type == tokenize.COMMENT:
                yield token.start[0], token.line[: token.start[1]], token.string
        return
    row, counted = 1, 0
    for match in STRING_OR_COMMENT.finditer(source):  # ten times as fast as `tokenize`, which is Python there
        if match[0].startswith("#"):
            row, counted = row + source.count("\n", counted, match.start()), match.start()
            yield row, source[source.rfind("\n", 0, counted) + 1 : counted], match[0]


def versions(also: Iterable[str] = ()) -> dict[str, str]:
    """Read the versions of COMPUTING_PACKAGES, and of those named, that are installed, whatever they were built for;
    nothing is imported."""
    names = dict.fromkeys((*COMPUTING_PACKAGES, *also))
    return {name: version for name in names if (version := _version(name)) is not None}


@cache
def _version(name: str) -> str | None:
    """Read a package's version as it was when this process first asked: what it imports later is of that or fails."""
    try:
        return metadata.version(name).partition("+")[0]
    except metadata.PackageNotFoundError:
        return None


def other_versions(before: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """List the packages whose versions differ, or that only one side has, unless `before` could not yet record them."""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return [name for name in names if name in before or name not in RECORDED_LATER]


def stamp(path: Path) -> Stamp:
    """Return the path, size and time of change of a file, which tell later whether it is still the same. Its time of
    change cannot be set back, unlike that of its content."""
    info = path.stat()
    return str(path.resolve()), info.st_size, info.st_ctime_ns


def differing_files(before: Mapping[str, str], after: Mapping[str, str]) -> list[str]:
    """List the names whose digest differs, or that only one side has."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def gone(what: str) -> str:
    """Return the words for data or weights that a run was begun with and that its jobs no longer name or find."""
    return f"{what} is gone, with which the run was begun; put it back, or begin another run without it"


def changed(what: str, before: str, now: str) -> str:
    """Return the words for data or weights that are no longer those that a run was begun with."""
    return (
        f"{what} is not what the run was begun with: its digest was {before[:16]} and is {now[:16]}; put back what was "
        "there, or begin another run with what is there now"
    )


def combined(digests: Mapping[str, str]) -> str:
    """Combine several digests, by name, into one digest of twelve hex digits."""
    return _text_digest("\n".join(f"{name} {digests[name]}" for name in sorted(digests)))


def _text_digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:12]


@lru_cache(maxsize=1000)
def file_digest(path: str, _size: int, _changed: int) -> str:
    """Compute the digest of a file as it is at that size and time, cached: a warm rank asks for each trial."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def listed(names: Sequence[str], most: int = 5) -> str:
    """List names as `a, b and 3 more`."""
    shown: Iterable[str] = names[:most]
    more = len(names) - most
    return ", ".join(shown) + (f" and {more} more" if more > 0 else "")
