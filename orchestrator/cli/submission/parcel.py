"""What a job on the head tells whoever asked, as marked lines of its log: what a verb printed, the files that it made,
and its exit code. Everything else in the log is Ray's, or a library's.

    <<JOB crc 1 {"out": "text"}                 what the verb printed; "err" for standard error
    <<JOB crc 2 {"file": "report.md"}           a file begins
    <<JOB crc 3 {"data": "..."}                 a piece of it: base64 of zlib
    <<JOB crc 4 {"sha256": "...", "bytes": 5}   it ends
    <<JOB crc 5 {"code": 0}                     the answer ends

Lines are counted and checked, as whoever else writes to the log may do so within one. They are ASCII and short enough
for the sockets that pass them on. Both sides are of one version, as the code goes along with the job.
"""

from __future__ import annotations

import base64
import hashlib
import io
import json
import threading
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO

BRINGS = "--brings"
"""Before a verb whose files are sent."""

HERE = "@brought"
"""Argument that stands for a new folder of the head whose files are sent."""

PIECE = 192 * 2**10
"""Bytes of a file in one line. Sockets of aiohttp take lines of four megabytes."""

TEXT = 16_000
"""Characters of a text in one line."""


class Broken(Exception):
    """An answer did not arrive whole."""


def mark(job: str) -> str:
    """Return how the lines of a job begin. Ray prints the command, but there the two parts do not stand together."""
    return f"<<{job} "


def _checksum(text: str) -> str:
    return f"{zlib.crc32(text.encode(errors='surrogatepass')):08x}"


def _decoded(text: str) -> dict[str, object]:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise Broken(f"a line of the answer is no JSON ({error})") from error
    if not isinstance(content, dict) or not content:
        raise Broken("a line of the answer says nothing")
    return content


def _unpacked(piece: str) -> bytes:
    try:
        return zlib.decompress(base64.b64decode(piece, validate=True))
    except (ValueError, TypeError, zlib.error) as error:
        raise Broken(f"a piece of a file cannot be unpacked ({error})") from error


class Writer:
    """Writes an answer to the log of the job that it is given in."""

    def __init__(self, job: str, log: IO[str]) -> None:
        self._mark, self._log, self._lines = mark(job), log, 0
        self._lock = threading.Lock()

    def line(self, **content: object) -> None:
        """Write one line, from any thread. What another writer has left without an end is ended first."""
        with self._lock:
            self._lines += 1
            text = f"{self._lines} {json.dumps(content)}"
            self._log.write(f"\n{self._mark}{_checksum(text)} {text}\n")
            self._log.flush()

    def file(self, path: Path, name: str) -> int:
        """Write a file under the name that it is to have. Returns its size in bytes."""
        self.line(file=name)
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as content:
            while piece := content.read(PIECE):
                digest.update(piece)
                size += len(piece)
                self.line(data=base64.b64encode(zlib.compress(piece, 1)).decode())
        self.line(sha256=digest.hexdigest(), bytes=size)
        return size


class Printed(io.TextIOBase):
    """A text stream, standard output or error of a verb, whose text goes into the answer."""

    def __init__(self, writer: Writer, stream: str) -> None:
        self._writer, self._stream = writer, stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """What is printed is text from end to end."""
        return "utf-8"

    def writable(self) -> bool:
        """Return True: it takes text."""
        return True

    def write(self, text: str) -> int:
        """Pass it on. Raises TypeError for bytes, which tells click that this is a stream of text."""
        if not isinstance(text, str):
            raise TypeError("text is wanted")
        for start in range(0, len(text), TEXT):
            self._writer.line(**{self._stream: text[start : start + TEXT]})
        return len(text)


class Reader:
    """Reads an answer from the log of its job, which may come again from its first line after a connection broke.

    into: the folder for files; without it there must be none. Methods raise Broken, and OSError of the disk.
    """

    def __init__(
        self, job: str, *, out: Callable[[str], None], err: Callable[[str], None], into: Path | None = None
    ) -> None:
        self._mark, self._into = mark(job), into
        self._print = {"out": out, "err": err}
        self._rest, self._taken = "", 0
        self._name: str | None = None
        """Of the file that has begun and not ended."""
        self._content, self._size, self._path = hashlib.sha256(), 0, Path()
        self.code: int | None = None
        self.others: list[str] = []
        """The last lines that are not of the answer."""

    def restart(self) -> None:
        """Begin anew: the log comes again."""
        self._rest = ""

    def take(self, text: str) -> bool:
        """Take more of the log. Returns whether the answer is whole."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if not line.startswith(self._mark):
                self.others = [*self.others, line][-20:] if line.strip() else self.others
            elif self.code is None:
                self._take(line.removeprefix(self._mark))
        return self.code is not None

    def _take(self, line: str) -> None:
        checksum, _, text = line.partition(" ")
        number, _, content = text.partition(" ")
        if _checksum(text) != checksum or not number.isdecimal():
            raise Broken(f"line {self._taken + 1} of the answer came damaged")
        if int(number) > self._taken + 1:
            raise Broken(f"line {self._taken + 1} of the answer is missing")
        if int(number) == self._taken + 1:  # else it comes again
            self._taken += 1
            self._line(_decoded(content))

    def _line(self, content: dict[str, object]) -> None:
        (first, value), *_ = content.items()
        if (self._name is None) == (first in ("data", "sha256")) and first not in self._print:
            raise Broken(f"a file came in part, {self._name or 'without a name'}")
        if first == "code" and isinstance(value, int):
            self.code = value
        elif not isinstance(value, str):
            raise Broken(f"a line of the answer says {first} in no text")
        elif first in self._print:
            self._print[first](value)
        elif first == "file":
            self._begin(value)
        elif first == "data":
            self._append(_unpacked(value))
        elif first == "sha256":
            if (self._content.hexdigest(), self._size) != (value, content.get("bytes")):
                raise Broken(f"{self._name} did not arrive as it was sent")
            self._name = None

    def _begin(self, name: str) -> None:
        parts = Path(name).parts
        if self._into is None or not parts or "\0" in name or Path(name).is_absolute() or ".." in parts:
            raise Broken(f"a file came that nobody asked for: {name!r}")
        self._name, self._content, self._size = name, hashlib.sha256(), 0
        self._path = self._into / name
        self._path.parent.mkdir(parents=True, exist_ok=True)
        self._path.write_bytes(b"")

    def _append(self, piece: bytes) -> None:
        self._content.update(piece)
        self._size += len(piece)
        with self._path.open("ab") as file:
            file.write(piece)
