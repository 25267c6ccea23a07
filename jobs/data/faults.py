"""What is wrong with data, in words: the file, the column, the row, and what would work."""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Sequence


class DataError(ValueError):
    """Data are not what a job needs. Says in which file, column and row, in which line of a file that has lines, and
    what would work."""

    def __init__(
        self, found: str, *, file: str, column: str | None = None, row: int | None = None, line: int | None = None
    ) -> None:
        self.found, self.file, self.column, self.row, self.line = shown(found), file, column, row, line
        location = [file]
        if column is not None:
            location.append(f"column '{brief(column)}'")
        if row is not None:
            location.append(f"row {row} (the first is 0)")
        where = "" if line is None else f" (line {line} of the file)"
        super().__init__(shown(f"{', '.join(location)}: {found}{where}"))

    def __reduce__(self) -> tuple[Callable[[str], DataError], tuple[str], dict[str, object]]:
        made = functools.partial(type(self), file=self.file, column=self.column, row=self.row, line=self.line)
        return made, (self.found,), self.__dict__


def shown(text: str) -> str:
    """Strip the credentials that URIs in the text may carry: they belong in no log."""
    nobody = re.sub(r"(?<=://)[^/@\s]*@", "", text)
    return re.sub(r"(?i)([?&][^=&\s]*(?:key|secret|token|passw|sig)[^=&\s]*=)[^&\s]*", r"\1***", nobody)


def short(error: BaseException) -> str:
    """Return the first line of an error's text, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]


def brief(text: str, length: int = 60) -> str:
    """Fit a name or a cell into a sentence: write it in one line, and cut it to `length` characters and `...`."""
    line = text.encode(errors="backslashreplace").decode().translate(_ENDS)
    return line if len(line) <= length else f"{line[:length]}..."


def counted(rows: int) -> str:
    """Format a number of rows: `1 row`, `2 rows`."""
    return f"{rows} row{'' if rows == 1 else 's'}"


def listed(names: Sequence[str], most: int = 20) -> str:
    """List names of columns, the first `most` of them; empty names, and those with blanks at an end, in quotes."""
    shown_names = [brief(name) if name and name == name.strip() else f"'{brief(name)}'" for name in names[:most]]
    return ", ".join(shown_names + [f"and {len(names) - most} more"] * (len(names) > most)) or "none"


_ENDS = {ord(sign): repr(sign)[1:-1] for sign in "\n\r\t\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029\0"}
