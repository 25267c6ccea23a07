"""A file of results as a table: arms, their seeds, and of each trial the value, or one a row that was judged.

What is not read as a person would read it is refused with its line, or said in a note.
"""

from __future__ import annotations

import csv
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean

from orchestrator.system.exit_codes import Exit

DELIMITERS = ",;\t"

LARGEST = 1e100
"""Values that are judged: their squares are numbers."""

NAMED = 5
"""Seeds, rows or columns that a note or an error names; of more, the first ones."""

KEYS = ("arm", "seed", "row", "group")
"""Columns that say which value it is."""


class ResultsError(ValueError):
    """A file of results that cannot be judged; the text says what was found, where, and what is needed."""

    exit_code = Exit.BAD_USAGE


@dataclass
class Trial:
    """One arm's values of one seed, by row; a single one under the empty name where there are no rows."""

    values: dict[str, float] = field(default_factory=dict)
    lines: dict[str, int] = field(default_factory=dict)

    @property
    def value(self) -> float | None:
        """The mean over rows; None where one is no finite number."""
        return fmean(self.values.values()) if all(map(math.isfinite, self.values.values())) else None


Table = dict[str, dict[int, Trial]]
"""Arm -> seed -> values, in the order of the file."""

Groups = dict[str, tuple[str, int]]
"""Row -> its group, empty for a row on its own, and the line that says so."""


@dataclass(frozen=True)
class Results:
    """What a file says."""

    table: Table
    groups: Groups
    """Of the rows that every trial has which did not diverge."""
    notes: Sequence[str]
    """What of it was not read."""


@dataclass(frozen=True)
class _Columns:
    """Names of the columns in the first line, None for one that is not there."""

    arm: str
    seed: str
    value: str
    row: str | None
    group: str | None
    others: Sequence[str]


_Line = Mapping[str | None, str | None]


def read(path: Path, metric: str, beside: Collection[str] = ()) -> Results:
    """Read a file of results. beside: other metrics that are read of it, each from the column of its name. Raises
    ResultsError, OSError."""
    if metric.casefold() in KEYS:
        raise ResultsError(f"--metric {metric}: that column says which trial it is; name the column of the values")
    table: Table = {}
    groups: Groups = {}
    has_groups = False
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            first = file.readline()
            file.seek(0)
            lines = csv.DictReader(file, delimiter=_delimiter(first), strict=True)
            columns = _columns(path, lines.fieldnames, metric, beside)
            for line in lines:
                _add(table, path, lines.line_num, line, columns)
                _add_group(groups, path, lines.line_num, line, columns)
                has_groups = has_groups or bool(_cell(line, columns.group))
    except (UnicodeDecodeError, csv.Error) as error:
        raise ResultsError(
            f"{path} is no CSV in UTF-8: {error}; its first line names the columns: arm,seed,{metric}"
        ) from error
    if not table:
        raise ResultsError(f"{path} has no results; below its first line, arm,seed,{metric}, stands one line a trial")
    rows = _common_rows(path, table)
    notes = _unread(columns, without_rows=has_groups and not any(rows))
    return Results(table, {row: group for row, group in groups.items() if row in rows}, notes)


def _delimiter(first: str) -> str:
    """Choose what divides cells: what shows the columns that every file has, else what is there most often."""

    def fits(delimiter: str) -> tuple[int, int]:
        try:
            names = {name.casefold() for name in next(csv.reader([first], delimiter=delimiter, strict=True), ())}
        except csv.Error:
            names = set()
        return len(names & set(KEYS)), first.count(delimiter)

    return max(DELIMITERS, key=fits)


def _columns(path: Path, found: Sequence[str] | None, metric: str, beside: Collection[str]) -> _Columns:
    """Find the columns, in capitals or not. Raises ResultsError where one is missing or there twice."""
    names = [name.strip() for name in found or ()]
    column = metric if beside or _named(path, metric, names) is not None else "value"
    arm, seed, value, row, group = (_named(path, name, names) for name in ("arm", "seed", column, "row", "group"))
    missing = [name for name, at in (("arm", arm), ("seed", seed), (column, value)) if at is None]
    if missing or list(found or ()) != names or len(set(names)) < len(names):
        wanted = (
            " or ".join(dict.fromkeys([repr(metric), *([] if beside else ["'value'"])]))
            if column in missing
            else ", ".join(map(repr, missing))
        )
        what = f"lacks the column {wanted}" if missing else "has a column twice, or blanks around a name"
        raise ResultsError(
            f"{path} {what}: it has {', '.join(map(repr, found or ())) or 'none'}; write arm,seed,{metric}"
        )
    assert arm is not None and seed is not None and value is not None  # noqa: PT018 - what is missing was refused
    further = [_named(path, name, names) for name in beside]
    others = [name for name in names if name not in (arm, seed, value, row, group, *further)]
    return _Columns(arm, seed, value, row, group, others)


def _named(path: Path, name: str, names: Sequence[str]) -> str | None:
    """Find a column by its name, or by one that differs in capitals alone. Raises ResultsError where two do."""
    alike = [name] if name in names else [own for own in names if own.casefold() == name.casefold()]
    if len(alike) > 1:
        raise ResultsError(f"{path} has the column {name!r} twice: {', '.join(map(repr, alike))}; name one of them so")
    return alike[0] if alike else None


def _cell(line: _Line, column: str | None) -> str:
    return "" if column is None else str(line.get(column) or "").strip()


def _add(table: Table, path: Path, number: int, line: _Line, columns: _Columns) -> None:
    """Add a line. Raises ResultsError for one that is short or long, or says again what another one says."""
    where = f"{path}, line {number}"
    if None in line or None in line.values():
        raise ResultsError(f"{where}: it has not as many cells as the first line has names")
    arm, seed, row = (_cell(line, column) for column in (columns.arm, columns.seed, columns.row))
    if not arm:
        raise ResultsError(f"{where}: the arm is empty; give it a name")
    whole = _seed(where, seed)
    trial = table.setdefault(arm, {}).setdefault(whole, Trial())
    if row in trial.lines:
        again = f"arm {arm!r}, seed {whole}" + (f", row {row!r}" if row else "")
        hint = "" if columns.row else "; if each line is a row that was judged, name them in a column 'row'"
        raise ResultsError(f"{where}: {again} stands in line {trial.lines[row]} too{hint}")
    trial.values[row], trial.lines[row] = _number(where, _cell(line, columns.value)), number


def _seed(where: str, text: str) -> int:
    """Parse a seed: 1, 01 and 1.0 are one. Raises ResultsError for what is no whole number, or only written as one."""
    digits = re.fullmatch(r"([+-]?\d+)(\.0*)?", text)
    try:
        if digits is not None:
            return int(digits[1])
    except ValueError:  # more digits than Python reads
        pass
    shown = text if len(text) <= 40 else f"{text[:40]}..."
    raise ResultsError(f"{where}: seed {shown!r} is no whole number; pairs are found by it")


def _add_group(groups: Groups, path: Path, number: int, line: _Line, columns: _Columns) -> None:
    """Add the group of a line's row. Raises ResultsError where another line has another one."""
    row, group = _cell(line, columns.row), _cell(line, columns.group)
    known, first = groups.setdefault(row, (group, number))
    if row and known != group:
        raise ResultsError(
            f"{path}, line {number}: row {row!r} is of group {group!r}, and of {known!r} in line {first}; give it one"
        )


def _number(where: str, text: str) -> float:
    """Parse a value; nan for an empty one. Raises ResultsError for a text, and for a number whose square is none."""
    try:
        value = float(text.replace("_", "?")) if text else math.nan  # Python alone reads 1_0 as 10
    except ValueError:
        raise ResultsError(f"{where}: {text!r} is no number; leave it empty for a trial that diverged") from None
    if (math.isfinite(value) or any(map(str.isdigit, text))) and abs(value) > LARGEST:
        raise ResultsError(
            f"{where}: {text} is beyond {LARGEST:g}; give it in larger units, or empty for one that diverged"
        )
    return value


def _common_rows(path: Path, table: Table) -> set[str]:
    """Return the rows that trials were judged on. One that diverged may have any, or none: it has no mean. Raises
    ResultsError where two others were not judged on the same rows: means over other rows do not compare."""
    known: tuple[str, int, set[str]] | None = None
    for arm, trials in table.items():
        for seed, trial in trials.items():
            if trial.value is None:
                continue
            if known is None:
                known = arm, seed, set(trial.lines)
            elif apart := sorted(known[2] ^ set(trial.lines)):
                raise ResultsError(
                    f"{path}: arm {arm!r}, seed {seed} and arm {known[0]!r}, seed {known[1]} have other rows, such as "
                    f"{', '.join(map(repr, apart[:NAMED]))}; give every trial the same ones, empty where it diverged"
                )
    return set() if known is None else known[2]


def _unread(columns: _Columns, *, without_rows: bool) -> list[str]:
    """Say which columns were not read. without_rows: there are groups, of rows that have no names."""
    notes = []
    if without_rows:
        why = "it says which rows belong together, and there is no column 'row'"
        notes.append(f"The column {columns.group!r} was not read: {why}.")
    if columns.others:
        named = ", ".join(map(repr, columns.others[:NAMED]))
        more = f" and {len(columns.others) - NAMED} more" if len(columns.others) > NAMED else ""
        notes.append(f"Not read: the column{'s' * (len(columns.others) > 1)} {named}{more}.")
    return notes
