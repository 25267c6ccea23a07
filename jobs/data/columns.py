"""Which columns of a file hold sentences, by the names usual in the field."""

from __future__ import annotations

import re
from collections.abc import Sequence

from jobs.data.formats import DataError
from jobs.data.sources import exactly

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


def train_columns(file: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """[text], or [anchor, positive, hard negatives ...]: as wanted, else by their usual names."""
    if wanted is not None:
        return exactly(file, names, wanted)
    for pair in PAIR_NAMES:
        if set(pair) <= set(names):
            scores = [name for name in SCORE_NAMES if name in names]
            if scores:
                raise DataError(
                    f"scores the pairs, and pairs of low score are no positives; set data.columns = ['{pair[0]}'] "
                    f"to train on single sentences, or data.columns = {list(pair)} if all pairs are positives",
                    file=file,
                    column=scores[0],
                )
            return (*pair, *(name for name in names if NEGATIVE_NAME.fullmatch(name)))
    text = next((name for name in TEXT_NAMES if name in names), names[0] if len(names) == 1 else None)
    if text is None:
        example = f"; name yours in data.columns, for example data.columns = ['{names[0]}']" if names else ""
        raise DataError(
            f"is missing; the columns here are {', '.join(names) or 'none'}{example}", file=file, column="text"
        )
    return (text,)
