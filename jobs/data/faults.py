"""What is wrong with data, in words: the file, the column, the row, and what would work."""

from __future__ import annotations

import functools
import re
from typing import Any


class DataError(ValueError):
    """Data are not what a job needs. Says in which file, column and row, and what would work."""

    def __init__(self, found: str, *, file: str, column: str | None = None, row: int | None = None) -> None:
        self.found, self.file, self.column, self.row = shown(found), file, column, row
        place = [file]
        if column is not None:
            place.append(f"column '{column}'")
        if row is not None:
            place.append(f"row {row} (the first is 0)")
        super().__init__(shown(f"{', '.join(place)}: {found}"))

    def __reduce__(self) -> tuple[Any, ...]:
        made = functools.partial(type(self), file=self.file, column=self.column, row=self.row)
        return made, (self.found,), self.__dict__


def shown(text: str) -> str:
    """The text without the credentials that URIs in it may carry, which belong in no log."""
    return re.sub(r"(?<=://)[^/@\s]*@", "", text)


def short(error: BaseException) -> str:
    """The first line of an error's text, at most 200 characters."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__)[:200]
