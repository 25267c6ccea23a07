"""Which columns of a file hold sentences, by the names usual in the field; and what to say where that is not clear.

Reading does what it always did with names it knows. What could be meant in two ways is refused before a run begins
(jobs/data/sentences/beside.py, jobs/data/sentences/cells.py), and a run that was begun goes on.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.data.faults import DataError, listed
from jobs.data.formats.tables import delimiter_hint, quotes_hint
from jobs.data.sources import Names, exactly

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

IDS = re.compile(r"(.*[-_. ])?#?(id|idx|index|docid|qid|pid|filename|genre|year)s?_?\d*|#\d id", re.I)
"""Names of what is no sentence."""

LISTS = (
    "lists are not read unless data.hard_negatives says how many of them to draw for each pair (0 where there are "
    "none) and data.columns names the anchor, the positives and the hard negatives; or write one row for each "
    "positive, with columns anchor and positive and, for hard negatives, negative_1, negative_2 and so on, the same "
    "number in every row"
)
NO_TEXTS = "; none of them looks like text: first put the texts in the place of the ids that stand for them"


def train_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Choose [text], or [anchor, positive, hard negatives ...]: as wanted, else by their usual names."""
    if wanted is not None:
        return exactly(file, names, wanted)
    for pair in PAIR_NAMES:
        if set(pair) <= set(names):
            scores = [name for name in SCORE_NAMES if name in names]
            if scores:
                raise scored(file, scores[0], pair)
            return (*pair, *(name for name in names if NEGATIVE_NAME.fullmatch(name)))
    text = next((name for name in TEXT_NAMES if name in names), names[0] if len(names) == 1 else None)
    if text is None:
        raise DataError(
            f"is missing; the columns here are {listed(names)}{_remedy(file, names)}", file=file, column="text"
        )
    return (text,)


def scored_columns(scores: str, file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Choose as `train_columns` does among all but the column that scores the pairs, which must be there."""
    exactly(file, names, (scores,))
    others = Names(name for name in names if name != scores)
    others.lists = tuple(name for name in names.lists if name != scores)
    chosen = train_columns(file, others, wanted)
    if len(chosen) == 1:
        raise DataError(
            f"scores pairs, and {chosen[0]} is a single sentence; name both sentences in data.columns, or leave out "
            "data.scores",
            file=file,
            column=scores,
        )
    return chosen


def hints(file: str, names: Sequence[str]) -> str:
    """Suggest what else may be the matter where a CSV or TSV file lacks columns: another delimiter, no header."""
    sign = separator(file)
    if sign is None:
        return ""
    header = sign.join(names)
    is_data = any(_is_data(cell) for cell in re.split(r"[,;|\t]", header)) or len(set(names)) < len(names)
    hints = [delimiter_hint(header, sign, any_other=is_data), quotes_hint(names, sign)]
    if is_data:
        hints.append("line 1 is taken for the names of columns: if the file has no header, add one above it")
    return "".join(f"; {hint}" for hint in hints if hint)


def likely_texts(names: Names) -> list[str]:
    """Choose the names that speak neither of ids nor of scores."""
    return [name for name in names if name.strip() and not IDS.fullmatch(name) and not SCORED.fullmatch(name)]


def separator(file: str) -> str | None:
    """Return what separates the cells of a file, by its name; None for a format that has its own way."""
    return {".csv": ",", ".tsv": "\t"}.get(file.lower().removesuffix(".gz")[-4:])


def _is_data(name: str) -> bool:
    """Return whether a name is more likely a cell: a number, or several words, also of a script without spaces."""
    is_long = len(name.split()) > 2 or (len(name) > 5 and not name.isascii() and name.upper() == name.lower())
    return is_long or re.fullmatch(r"[-+]?\d+([.,]\d*)?", name.strip()) is not None


def _remedy(file: str, names: Names) -> str:
    if names.lists:
        return f". Of these hold lists: {listed(names.lists)}; {LISTS}. Or name columns of text in data.columns"
    hint, texts = hints(file, names), likely_texts(names)
    if not any(name.strip() for name in names):
        return "; give a file with a column of sentences, and with names in its first line"
    if not texts:
        return hint or NO_TEXTS
    pair = f", or data.columns = {texts[:2]} for pairs of equal meaning" if len(texts) > 1 else ""
    header = " (line 1 is taken for the header)" if separator(file) and not hint else ""
    name = f"{'or ' * bool(hint)}name yours, for example data.columns = {texts[:1]} for single sentences"
    return f"{header}{hint}; {name}{pair}"


def scored(file: str, score: str, pair: tuple[str, str]) -> DataError:
    """Build the error for a column that scores the pair beside it."""
    return DataError(
        f"scores the pairs, and pairs of low score are no positives; set data.columns = ['{pair[0]}'] "
        f"to train on single sentences, or data.columns = {list(pair)} if all pairs are positives",
        file=file,
        column=score,
    )
