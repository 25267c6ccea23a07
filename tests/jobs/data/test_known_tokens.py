"""Tokens of texts that judge again and again: kept up to a bound, and the same as those of an encoding anew."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_judged_sets import job, sources
from tokenizers import Tokenizer, models, pre_tokenizers

from jobs import data
from jobs import models as encoders
from jobs.config import JobConfig
from jobs.data.sentences import tokens
from jobs.data.sentences.tokens import KnownTokens, known_tokens, tokenised
from jobs.data.tasks import task_of
from jobs.metrics.evaluate import evaluate

__all__ = ["sources"]

WORDS = ["red", "green", "blue", "a", "b"]


class Counting:
    """A tokenizer that knows how many texts it was asked for."""

    def __init__(self) -> None:
        import transformers

        inside = Tokenizer(models.WordLevel({word: at for at, word in enumerate(["[UNK]", *WORDS])}, unk_token="[UNK]"))
        inside.pre_tokenizer = pre_tokenizers.Whitespace()
        make: Any = transformers.PreTrainedTokenizerFast
        self.inside = make(tokenizer_object=inside, unk_token="[UNK]", pad_token="[UNK]")
        self.asked: list[str] = []

    def __call__(self, texts: list[str], **how: Any) -> Any:
        self.asked += texts
        return self.inside(texts, **how)


COUNTING = Counting()

TEXTS = st.lists(st.lists(st.sampled_from(WORDS), min_size=1, max_size=6).map(" ".join), max_size=12)


@given(st.lists(st.tuples(TEXTS, st.sampled_from([(3, ""), (9, ""), (9, "red ")])), max_size=5), st.integers(0, 5000))
def test_what_is_given_is_what_encoding_anew_gives(calls: list[tuple[list[str], tuple[int, str]]], bound: int) -> None:
    """For any texts, whatever was asked before and whatever is kept, which is never more than the bound. Mutant checks:
    tokens of another prompt or length; the tokens of the texts that are missing for all."""
    known: Any = KnownTokens(COUNTING, bound=bound)  # type: ignore[arg-type]
    for texts, (length, prompt) in calls:
        expected = tokenised(COUNTING.inside, texts, max_tokens=length, prompt=prompt) if texts else []
        assert [ids.tolist() for ids in known(texts, max_tokens=length, prompt=prompt)] == expected
        assert known.held <= bound
        kept = [(text, ids) for own in known._known.values() for text, ids in own.items()]
        assert sum(sys.getsizeof(text) + sys.getsizeof(ids) for text, ids in kept) <= known.held


def test_a_text_is_encoded_once_while_there_is_room() -> None:
    known: Any = KnownTokens(COUNTING, bound=10**6)  # type: ignore[arg-type]
    COUNTING.asked.clear()
    for _ in range(3):
        known(["red", "blue", "red"], max_tokens=5)
    assert COUNTING.asked == ["red", "blue"]
    full: Any = KnownTokens(COUNTING, bound=0)  # type: ignore[arg-type]
    for _ in range(2):
        full(["red", "blue"], max_tokens=5)
    assert COUNTING.asked == ["red", "blue"] * 3


@pytest.mark.parametrize("bound", [0, 2000, 2**28])
def test_a_judge_gives_the_same_bits_whatever_is_kept(
    sources: dict[str, str], bound: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """At the first evaluation and at the next. Mutant check: tokens in the order of their lengths."""
    config = job(sources, {"a": sources["a"], "b": sources["b"]}, execution={"threads": 1})
    tokenizer = data.tokenizer_for(config)
    model = encoders.build(config, tokenizer=tokenizer).eval()

    def measured(keep: Callable[[Any], Any]) -> list[dict[str, float]]:
        monkeypatch.setattr("jobs.metrics.tasks.sentence.known_tokens", keep)
        task = task_of(config, tokenizer)
        judged = task.judged()
        return [evaluate(model, judged, job=config, tokenizer=tokenizer, task=task, final=True) for _ in range(2)]

    def anew(own: Any) -> Any:
        return lambda texts, **how: [np.array(ids, np.int32) for ids in tokenised(own, texts, **how)]

    kept = KnownTokens(tokenizer, bound=bound)
    first, again = measured(lambda _: kept)
    assert first == again == measured(anew)[0]
    assert (kept.held > 0) == (bound > 0)
    assert known_tokens(tokenizer) is known_tokens(tokenizer), "one for all who ask in this process"
    assert isinstance(config, JobConfig)
    assert known_tokens(tokenizer)._bound == tokens.TOKENS_MB * 2**20
