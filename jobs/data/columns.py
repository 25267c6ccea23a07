"""Which columns of a file hold sentences, by the names usual in the field; and what to say where that is not clear.

Reading does what it always did with names it knows. `doubts` is asked before a run begins: what could be meant in two
ways is then refused, and a run that was begun goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import pyarrow.compute as pc

from jobs.data.faults import DataError, brief, listed
from jobs.data.sources import Names, Rows, exactly
from jobs.data.tables import delimiter_hint

TEXT_NAMES = ("text", "sentence", "sentences", "content")
PAIR_NAMES = (
    ("anchor", "positive"),
    ("query", "positive"),
    ("query", "answer"),
    ("query", "passage"),
    ("question", "answer"),
    ("sent0", "sent1"),
    ("premise", "entailment"),
    ("text1", "text2"),
    ("sentence1", "sentence2"),
)
NEGATIVE_NAME = re.compile(r"(hard_?)?neg(ative)?s?_?\d*|contradiction")
SCORE_NAMES = ("score", "label", "similarity_score", "similarity")

SCORED = re.compile(r"(.*[_ ])?(labels?|scores?|similarity|quality|duplicate|relatedness|judge?ment|rating)", re.I)
"""Names that speak of a score, also where it has none of SCORE_NAMES."""

PASSAGES = re.compile(r"(hard_?)?(pos(itive)?|neg(ative)?)s?(_?(passage|ctx|context|doc|document|text)s?)?")
"""Names of positives and negatives, one of them or a list."""

IDS = re.compile(r"(.*[-_. ])?#?(id|idx|index|docid|qid|pid|filename|genre|year)s?_?\d*|#\d id", re.I)
"""Names of what is no sentence."""

LISTS = (
    "lists are not read; write one row for each positive, with columns anchor and positive and, for hard negatives, "
    "negative_1, negative_2 and so on, the same number in every row"
)
NO_TEXTS = "; none of them looks like text: first put the texts in the place of the ids that stand for them"
MANY = {"\t": 0.5, ";": 0.95, "|": 0.95, '","': 0.95}
"""Signs that separate cells, and the share of lines with equally many of them from which on they are taken to."""


def train_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """[text], or [anchor, positive, hard negatives ...]: as wanted, else by their usual names."""
    if wanted is not None:
        return exactly(file, names, wanted)
    for pair in PAIR_NAMES:
        if set(pair) <= set(names):
            scores = [name for name in SCORE_NAMES if name in names]
            if scores:
                raise _scored(file, scores[0], pair)
            return (*pair, *(name for name in names if NEGATIVE_NAME.fullmatch(name)))
    text = next((name for name in TEXT_NAMES if name in names), names[0] if len(names) == 1 else None)
    if text is None:
        raise DataError(
            f"is missing; the columns here are {listed(names)}{_remedy(file, names)}", file=file, column="text"
        )
    return (text,)


def doubts(rows: Rows) -> None:
    """Raise DataError where columns of training data that nobody has named may be meant otherwise."""
    file, chosen, names = rows.spans[0][0], rows.table.column_names, rows.names
    beside = [name for name in names if PASSAGES.fullmatch(name) and name not in chosen]
    lists = [name for name in beside if name in names.lists]
    if lists:
        raise DataError(
            f"has lists of passages beside {listed(chosen)}: {listed(lists)}; {LISTS}. Or name what is meant in "
            "data.columns",
            file=file,
        )
    if beside and len(chosen) == 1:
        raise DataError(
            f"would be all that is trained on, beside {listed(beside)}; set data.columns = {[chosen[0], beside[0]]} "
            f"for pairs, or data.columns = {chosen} for single sentences",
            file=file,
            column=chosen[0],
        )
    scores = [name for name in names if SCORED.fullmatch(name) and name not in chosen]
    if scores and len(chosen) == 2:
        raise _scored(file, scores[0], (chosen[0], chosen[1]))
    if len(chosen) == 1:
        _refuse_cells(rows, file, names)


def hints(file: str, names: Sequence[str]) -> str:
    """What else may be the matter where a CSV or TSV file lacks columns: another delimiter, no header."""
    sign = separator(file)
    if sign is None:
        return ""
    header = sign.join(names)
    found = [delimiter_hint(header, sign)]
    cells = re.split(r"[,;|\t]", header)
    if any(_is_data(cell) for cell in cells) or len(set(names)) < len(names):
        found.append("line 1 names the columns, and looks like data: if the file has no header, add one above it")
    return "".join(f"; {hint}" for hint in found if hint)


def likely_texts(names: Names) -> list[str]:
    """The names that speak neither of ids nor of scores."""
    return [name for name in names if not IDS.fullmatch(name) and not SCORED.fullmatch(name)]


def separator(file: str) -> str | None:
    """What separates the cells of a file, by its name; None for a format that has its own way."""
    return {".csv": ",", ".tsv": "\t"}.get(file.lower().removesuffix(".gz")[-4:])


def _is_data(name: str) -> bool:
    """Whether a name is more likely a cell: a number, nothing, or words in a row, also of a script without spaces."""
    is_long = len(name.split()) > 2 or (len(name) > 5 and not name.isascii() and name.upper() == name.lower())
    return not name.strip() or is_long or re.fullmatch(r"[-+]?\d+([.,]\d*)?", name.strip()) is not None


def _remedy(file: str, names: Names) -> str:
    if names.lists:
        return f". Of these hold lists: {listed(names.lists)}; {LISTS}. Or name columns of text in data.columns"
    hint = hints(file, names)
    texts = likely_texts(names)
    if hint or not names:
        return hint or "; give a file with a column of sentences"
    if not texts:
        return NO_TEXTS
    pair = f", or data.columns = {texts[:2]} for pairs of equal meaning" if len(texts) > 1 else ""
    header = " (line 1 is taken for the header)" if separator(file) else ""
    return f"{header}; name yours, for example data.columns = {texts[:1]} for single sentences{pair}"


def _scored(file: str, score: str, pair: tuple[str, str]) -> DataError:
    return DataError(
        f"scores the pairs, and pairs of low score are no positives; set data.columns = ['{pair[0]}'] "
        f"to train on single sentences, or data.columns = {list(pair)} if all pairs are positives",
        file=file,
        column=score,
    )


def _refuse_cells(rows: Rows, file: str, names: Names) -> None:
    """Raise DataError where single sentences are more likely rows of cells, or no column of sentences at all."""
    [name], column, sign = rows.table.column_names, rows.table[0], separator(file)
    if sign and len(names) == 1 and name not in TEXT_NAMES:
        other = delimiter_hint(name, sign)
        own = f"set data.columns = [{name!r}] if that is the name of the sentences, else write text above line 1"
        raise DataError(f"is the only column, and none that is known; {other or own}", file=file, column=name)
    is_plain = file.lower().removesuffix(".gz").endswith(".txt")
    if is_plain and pc.all(pc.and_(pc.starts_with(column, "{"), pc.ends_with(column, "}"))).as_py():
        raise DataError("holds objects of JSON; let the name of the file end in .jsonl", file=file, column=name)
    if is_plain and pc.all(pc.starts_with(column, "__label__")).as_py():
        raise DataError(
            "begins with __label__ in every row, which would be trained on; remove the labels, or set data.columns = "
            f"[{name!r}] if they are meant",
            file=file,
            column=name,
        )
    for each, share in MANY.items():
        if each != "\t" and not is_plain:
            continue
        [most] = pc.mode(pc.count_substring(column, each)).to_pylist()
        if most["mode"] and most["count"] >= share * len(rows):
            suffix, by = (".csv", "commas") if "," in each else (".tsv", "tabs")
            raise DataError(
                f"has {most['mode']} x {each!r} in {most['count']} of {len(rows)} rows, which seem to be rows of cells "
                f"and no sentences, such as '{brief(column[0].as_py())}'; separate them by {by}, let the name of the "
                f"file end in {suffix}, and write the names of the columns as its first line; or set data.columns = "
                f"[{name!r}] if they are sentences",
                file=file,
                column=name,
            )
