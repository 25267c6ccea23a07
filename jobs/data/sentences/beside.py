"""Columns beside those that are trained on: what is refused, before a run begins, as it may be meant as well.

Naming columns in data.columns says what is meant.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Collection, Sequence
from pathlib import PurePosixPath

from jobs.data.faults import DataError, listed
from jobs.data.formats import SUFFIXES
from jobs.data.formats.tables import delimiter_hint, quotes_hint
from jobs.data.sentences.columns import IDS, LISTS, PAIR_NAMES, SCORED, TEXT_NAMES, scored, separator
from jobs.data.sources import Names, Rows, begin_of

PASSAGES = re.compile(
    r"((.*[-_. ])?(hard[-_. ]?)?(pos(itive)?|neg(ative)?|hn|distractor|rejected|contradiction)s?|.*negatives?)"
    r"([-_. ]?(passage|ctx|context|doc(ument)?|text|sentence|sent|quer(y|ie)|question|answer|example|sample|candidate|"
    r"response|title)s?)?([-_. ]?\d+)?",
    re.I,
)
"""Names of positives and negatives, one of them or a list."""

SECOND = r"[-_ ]?(\d|[ab]|pair)"
"""After the name of a sentence: it has a second one."""

OTHERS = frozenset(name for pair in PAIR_NAMES for name in pair)

ASIDE = re.compile(
    r"|unnamed: \d+|__index_level_\d+__|(.*[-_. ])?(split|fold|partition|subset|set|source|src|origin|corpus|dataset|"
    r"collection|domain|topic|category|lang(uage)?|locale|country|region|script|licen[cs]e|author|user|annotator|"
    r"worker|speaker|gender|date|time(stamp)?|created|updated|month|day|url|link|page|line|row|number|no|num|n|len(gth)?"
    r"|size|count|token|word|char|start|end|begin|offset|position|title|file|path|version|batch|task|type|config|"
    r"subject|section|publisher|channel|platform|product|brand|department|generator|tag|style|difficulty|event|city)"
    r"s?([-_ ]?\d)?",
    re.I,
)
"""Names of what describes rows and judges none of them."""

NUMERIC = re.compile(r"\s*[-+]?(\d+\.?\d*|\.\d+)(e[-+]?\d+)?\s*", re.I | re.ASCII)
LOOKED_AT = 1000
"""Values by which a column beside a pair is known to score it."""

FEW_WORDS = 5
MANY_NUMBERS = 101
"""Of so many different words, and of more whole numbers than these, 0 to 100, a column that scores has none."""


def doubts(rows: Rows, *, known: str | None = None, grouping: Collection[str | None] = ()) -> None:
    """Raise DataError where columns of training data that nobody has named may be meant otherwise, in any file.

    known: the column that scores the pairs, where the job names one. grouping: those that it names for its sampler.
    """
    _refuse_mixture(rows)
    chosen, seen = rows.table.column_names, set()
    for at, (file, names, _, _) in enumerate(rows.parts()):
        if (names, names.lists) in seen:
            continue
        seen.add((names, names.lists))
        _refuse_passages(file, names, chosen)
        scores = [name for name in names if SCORED.fullmatch(name) and name not in chosen]
        scores += [] if scores or len(chosen) != 2 or known else _judging(rows, at, names)
        scores = [name for name in scores if name not in grouping]
        if scores and len(chosen) == 2 and not known:
            raise scored(file, scores[0], (chosen[0], chosen[1]))
        _refuse_others(file, names, chosen)
        sign = separator(file)
        if len(names) == 1 and sign and names[0] not in TEXT_NAMES:
            other = delimiter_hint(names[0], sign) or quotes_hint(names, sign)
            own = f"set data.columns = {chosen} if that is the name of the sentences, else write text above line 1"
            raise DataError(f"is the only column, and none that is known; {other or own}", file=file, column=chosen[0])


def _refuse_passages(file: str, names: Names, chosen: list[str]) -> None:
    """Raise DataError where positives or negatives would be left out, as their names are not the usual ones."""
    beside = [name for name in names if PASSAGES.fullmatch(name) and name not in chosen]
    lists = [name for name in beside if name in names.lists]
    if lists:
        raise DataError(
            f"has lists of passages beside {listed(chosen)}: {listed(lists)}; {LISTS}. Or name what is meant in "
            "data.columns",
            file=file,
        )
    if not beside:
        return
    if len(chosen) == 1:
        more, less = f"{[chosen[0], beside[0]]} for pairs", "single sentences"
    else:
        more, less = f"{[*chosen, *beside]} if these are hard negatives", "training without"
    raise DataError(
        f"would be all that is trained on, beside {listed(beside)}; set data.columns = {more}, or "
        f"data.columns = {chosen} for {less}",
        file=file,
        column=", ".join(chosen),
    )


def _refuse_others(file: str, names: Names, chosen: list[str]) -> None:
    """Raise DataError where another column is as likely to be meant as the chosen one."""
    if len(chosen) == 1:
        second = re.compile(re.escape(chosen[0]) + SECOND, re.I)
        others = [name for name in names if name in TEXT_NAMES or second.fullmatch(name)]
    else:
        others = [name for name in names if name in OTHERS]
    others = [name for name in others if name not in chosen]
    if others:
        ways = [[*pair] for pair in PAIR_NAMES if set(pair) <= set(names) and [*pair] != chosen[:2]]
        ways = ways or [[chosen[0], others[0]]]
        raise DataError(
            f"would be trained on, and {listed(others)} left out, which may be meant as well; set data.columns = "
            f"{chosen} for that, or for example {' or '.join(f'data.columns = {way}' for way in ways[:3])}",
            file=file,
            column=", ".join(chosen),
        )


def _judging(rows: Rows, at: int, names: Names) -> list[str]:
    """Find the columns of the file of span `at` that may score a pair, by their values."""
    chosen = rows.table.column_names
    known = {*chosen, *names.lists, *(name for name in names if IDS.fullmatch(name) or ASIDE.fullmatch(name))}
    asked = [name for name in names if name not in known and names.count(name) == 1]
    values = begin_of(rows, at, asked, LOOKED_AT) if asked else {}
    return [name for name, column in values.items() if _judges(column)]


def _judges(column: Sequence[object]) -> bool:
    """Return whether values are numbers, true or false, or few words; but not whole numbers that ascend like row
    numbers or are many."""
    values = [f"{value}".strip() for value in column if value is not None and not isinstance(value, bytes)]
    values = [value for value in values if value]
    different = set(values)
    if all(NUMERIC.fullmatch(value) for value in values):
        numbers = [float(value) for value in values]
        is_whole = all(value.lstrip("+-").isdigit() for value in values)
        is_order = len(numbers) > 1 and all(a < b for a, b in itertools.pairwise(numbers))
        return bool(values) and not (is_whole and (is_order or len(different) > MANY_NUMBERS))
    return 1 < len(different) <= min(FEW_WORDS, len(values) // 2) and all(len(value.split()) < 4 for value in different)


def _refuse_mixture(rows: Rows) -> None:
    """Raise DataError for files of a folder that are likely no shards: a README.txt, one file in two formats."""
    endings: dict[str, str] = {}
    stems: dict[str, str] = {}
    for file, _, _ in rows.spans:
        ending = next((suffix for suffix in SUFFIXES[::-1] if file.lower().endswith(suffix)), "")
        stem = file[: len(file) - len(ending)]
        first = stems.setdefault(stem, file)
        endings.setdefault(ending.removesuffix(".gz"), file)
        if first != file:
            raise _mixed(rows, file, f"lies beside {first}, and seems to hold the same rows")
    if ".txt" in endings and len(endings) > 1:
        other = next(file for ending, file in endings.items() if ending != ".txt")
        raise _mixed(rows, endings[".txt"], f"lies beside {other}, and each of its lines would be a row")


def _mixed(rows: Rows, file: str, words: str) -> DataError:
    other = next(path for path, _, _ in rows.spans if path != file)
    glob = f"{PurePosixPath(other).parent}/*{PurePosixPath(other).suffix}".replace(":/", "://", 1)
    return DataError(
        f"{words}; name files of one kind, such as {glob}, or set data.columns = {rows.table.column_names} if all are "
        "meant",
        file=file,
    )
