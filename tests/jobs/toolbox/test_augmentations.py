"""Every built-in augmentation of sentences: its oracle, and that a view is a function of (seed, step, pair, view).

A built-in augmentation without a case here, or among those of images, fails the collection.
"""

from __future__ import annotations

import re
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from hypothesis import given, settings
from hypothesis import strategies as st
from mylab import reversed_words
from ranks import SpawnRanks
from test_optimizers import trained
from torch import Tensor
from views import MASK, ORACLES, Draw

from jobs.config import Augment, JobConfig, components
from jobs.data.sentences import sentence_examples, tokenizer_for
from jobs.data.sentences.augmented import augmented
from jobs.data.sentences.tokens import word_numbers
from jobs.data.validate import check
from jobs.train import Training
from jobs.train.components import examined
from jobs.train.microbatches import Batches

OF_IMAGES = ("crop_flip",)
"""Those of images: tests/jobs/data/test_data.py."""

CASES: dict[str, list[dict[str, Any]]] = {
    "none": [{}],
    "crop_words": [{}, {"share": 0.5}, {"share": 0.9}],
    "delete_words": [{}, {"share": 0.4}, {"share": 0.95}],
    "delete_word": [{}],
    "mask_tokens": [{}, {"share": 0.6}, {"share": 1.0}],
    "shuffle_tokens": [{}],
    "cut_tokens": [{}, {"share": 0.5}, {"share": 0.95}],
}
"""Options to be tried, by augmentation."""

if without := sorted({*components.builtin_names("augmentation")} - {*CASES} - {*OF_IMAGES}):
    raise pytest.UsageError(f"a built-in augmentation is proven here before it is one; there are no cases of {without}")
if without := sorted({*CASES} - {*ORACLES}):
    raise pytest.UsageError(f"an augmentation has an oracle in tests/support/records/views.py; none of {without}")

EACH = [
    pytest.param(name, options, id=f"{name}-{n}") for name, cases in CASES.items() for n, options in enumerate(cases)
]

FIRST, LAST, PAD = 2, 3, 0

Sentence = list[list[int]]


def rows_of(sentences: list[Sentence], padding: int) -> list[Tensor]:
    """Tokens, mask and numbers of words, between FIRST and LAST, padded by that much beyond the longest."""
    flat = [[FIRST, *(token for word in words for token in word), LAST] for words in sentences]
    numbers = [[-1, *(n for n, word in enumerate(words) for _ in word), -1] for words in sentences]
    longest = max(map(len, flat)) + padding
    return [
        torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
        for rows, fill in ((flat, PAD), ([[1] * len(row) for row in flat], 0), (numbers, -1))
    ]


def viewed(
    name: str, options: dict[str, Any], sentences: list[Sentence], pairs: list[int], *, padding: int = 0, view: int = 0
) -> list[tuple[list[int], list[int]]]:
    """Tokens and mask of each view, up to its last token."""
    made = augmented(
        Augment(name=name, options=options), *rows_of(sentences, padding), mask_token=MASK, pad=PAD, seed=7, step=3,
        pairs=torch.tensor(pairs), view=view,
    )  # fmt: skip
    ids, mask = made["input_ids"], made["attention_mask"]
    ends = [int(row.nonzero().max()) + 1 for row in mask]
    assert all((row[end:] == PAD).all() for row, end in zip(ids, ends, strict=True))
    assert ids.shape[1] == max(ends)
    return [(ids[n, :end].tolist(), mask[n, :end].tolist()) for n, end in enumerate(ends)]


SENTENCES = st.lists(
    st.lists(st.lists(st.integers(5, 99), min_size=1, max_size=3), min_size=1, max_size=9), min_size=1, max_size=4
)


@settings(max_examples=25)
@given(SENTENCES, st.integers(0, 3), st.integers(0, 1), st.integers(0, 1000))
@pytest.mark.parametrize(("name", "options"), EACH)
def test_a_view_is_the_oracle_s_alone_and_beside_others(
    name: str, options: dict[str, Any], sentences: list[Sentence], padding: int, view: int, first: int
) -> None:
    """Whatever the padding and the rows beside it. Mutant check: a draw that does not know the pair fails."""
    pairs = [first + 3 * n for n in range(len(sentences))]
    together = viewed(name, options, sentences, pairs, padding=padding, view=view)
    for words, pair, seen in zip(sentences, pairs, together, strict=True):
        expected = ORACLES[name](words, Draw(7, 3, pair, view), **options)
        plain = [token for word in words for token in word]
        erased = [plain[n] if token is None else token for n, token in enumerate(expected)]
        assert seen == (
            [FIRST, *erased, LAST],
            [1, *(int(token is not None) for token in expected), 1],
        )
        assert viewed(name, options, [words], [pair], view=view) == [seen]


@settings(max_examples=50)
@given(SENTENCES, st.integers(0, 1000))
def test_what_a_view_has_is_of_its_sentence(sentences: list[Sentence], first: int) -> None:
    """Each invariant of its augmentation: words stay whole and in order, counts are as asked for."""
    for n, words in enumerate(sentences):
        tokens = [token for word in words for token in word]
        ((ids, _),) = viewed("shuffle_tokens", {}, [words], [first + n])
        assert sorted(ids[1:-1]) == sorted(tokens)
        ((ids, mask),) = viewed("cut_tokens", {"share": 0.3}, [words], [first + n])
        assert ids[1:-1] == tokens
        assert sum(mask) >= 3
        ((ids, _),) = viewed("mask_tokens", {"share": 0.5}, [words], [first + n])
        assert ids.count(MASK) - tokens.count(MASK) == int(len(tokens) / 2 + 0.5)
        ((ids, _),) = viewed("crop_words", {"share": 0.4}, [words], [first + n])
        starts = [sum(map(len, words[:start])) for start in range(len(words))]
        assert any(tokens[start : start + len(ids) - 2] == ids[1:-1] for start in starts)


def test_views_differ_by_pair_step_and_view() -> None:
    words = [[[n] for n in range(5, 60)]]
    seen = [viewed("shuffle_tokens", {}, words, [pair], view=view)[0][0] for pair in (0, 1) for view in (0, 1)]
    assert len({tuple(row) for row in seen}) == 4


WORDS = ["red", "green", "blue", "grey", "enormous", "tiny"]


def sentence_job(folder: Path, augment: dict[str, Any], *, pairs: bool = False, **execution: Any) -> JobConfig:
    texts = [f"the {WORDS[n % 6]} number {n} and the {WORDS[n % 5]} one" for n in range(32)]
    lines = [f"{text}\t{texts[-n]}\t{n % 7}" for n, text in enumerate(texts)]
    (folder / "judged.tsv").write_text("\n".join(["sentence1\tsentence2\tscore", *lines]))
    (folder / "train.txt").write_text("\n".join(texts))
    (folder / "pairs.tsv").write_text("\n".join(["anchor\tpositive", *(line.rpartition("\t")[0] for line in lines)]))
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 4},
            "data": {
                "train": str(folder / ("pairs.tsv" if pairs else "train.txt")),
                "confirm": str(folder / "judged.tsv"),
            },
            "model": {"name": "bert", "width": 16, "layers": 1, "heads": 2, "vocabulary": 120, "precision": "fp64"},
            "augment": augment,
            "batch": {"size": 8},
            "optimizer": {"name": "sgd", "lr": 0.01},
            "evaluate": {"times": 1},
            "execution": execution,
        }
    )  # fmt: skip


def state(job: JobConfig, folder: Path, group: Any = None) -> dict[str, Tensor]:
    return trained(job, folder, group=group).model.state_dict()


def rows_seen(job: JobConfig, world: int) -> dict[str, list[Tensor]]:
    """Every row that all ranks encode in the second step, side by side, without its padding."""
    seen: dict[str, list[Tensor]] = {"queries": [], "keys": []}
    for rank in range(world):
        batches = Batches(sentence_examples(job), job, rank=rank, world=world)
        rows = batches.rows(2)
        for pairs in batches.spans(rows):
            views = batches.micro_batch(2, rows, pairs).views
            for side, inputs in (("queries", views.queries), ("keys", views.keys)):
                ends = inputs["attention_mask"].flip(1).argmax(1)
                whole = torch.stack([inputs["input_ids"], inputs["attention_mask"]], 2)
                seen[side] += [row[: len(row) - end] for row, end in zip(whole, ends.tolist(), strict=True)]
    return seen


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("pairs", [False, True])
@pytest.mark.parametrize(("name", "options"), EACH)
def test_every_rank_and_micro_batch_sees_the_rows_of_one_process(
    folder: Path, name: str, options: dict[str, Any], pairs: bool, world: int
) -> None:
    augment = {"name": name, "options": options}
    expected = rows_seen(sentence_job(folder, augment, pairs=pairs), 1)
    for execution in ({}, {"micro": 2}, {"micro_tokens": 40}):
        seen = rows_seen(sentence_job(folder, augment, pairs=pairs, **execution), world)
        for side, rows in expected.items():
            assert all(map(torch.equal, rows, seen[side]))
            assert len(rows) == len(seen[side]) == 8


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sentences")


def on_rank(folder: Path, rank: int) -> dict[str, Tensor]:
    own = folder / str(rank)
    own.mkdir()
    return state(sentence_job(own, {"name": "cut_tokens"}, ranks=3, micro=1), folder / "trial", dist.group.WORLD)


@pytest.mark.soak
def test_ranks_make_the_steps_of_one_process(spawn_ranks: SpawnRanks, tmp_path: Path) -> None:
    (tmp_path / "ranks").mkdir()
    seen = spawn_ranks(3, partial(on_rank, tmp_path / "ranks"), timeout_s=300)
    alone = state(sentence_job(tmp_path, {"name": "cut_tokens"}), tmp_path / "alone")
    plain = state(sentence_job(tmp_path, {}), tmp_path / "plain")
    for key, expected in alone.items():
        torch.testing.assert_close(seen[0][key], expected, rtol=1e-6, atol=1e-9)
    assert any(not torch.equal(plain[key], expected) for key, expected in alone.items())


@pytest.mark.parametrize("augment", [{"name": "delete_words"}, {"name": "mylab:reversed_words"}])
def test_a_training_is_resumed_bit_for_bit_and_checked_against_one_process(
    tmp_path: Path, augment: dict[str, Any]
) -> None:
    job = sentence_job(tmp_path, augment, verify=True, checkpoint_every=2)
    whole = state(job, tmp_path / "whole")
    begun = trained(job, tmp_path / "parts", steps=2)
    begun.save()
    begun.settle()
    continued = state(job, tmp_path / "parts")
    assert all(torch.equal(continued[key], expected) for key, expected in whole.items())


def test_none_is_what_a_job_has_without_a_name(tmp_path: Path) -> None:
    """Bit for bit: dropout alone tells views apart."""
    plain, none = (
        state(sentence_job(tmp_path, augment), tmp_path / str(augment)) for augment in ({}, {"name": "none"})
    )
    assert all(torch.equal(none[key], expected) for key, expected in plain.items())


def test_the_same_dropout_of_both_views_makes_them_one(tmp_path: Path) -> None:
    """And micro-batches and the check of the gradient know it. Mutant check: masks by view fail."""
    for micro in (None, 3):
        job = sentence_job(tmp_path, {}, micro=micro, verify=True)
        same = job.model_copy(update={"model": job.model.model_copy(update={"same_dropout": True})})
        seen = {}
        for name, of in (("each", job), ("same", same)):
            training = Training(of, tmp_path / f"{name}{micro}", log=lambda _: None)
            rows = training.batches.rows(1)
            result = training._gradients(1, rows, training.batches.spans(rows))
            seen[name] = result.diagnostics.alignment
            assert trained(of, tmp_path / f"{name}{micro} trained").result is not None
        assert seen["same"] == pytest.approx(0, abs=1e-12)
        assert seen["each"] > 1e-3


def test_words_are_those_of_the_tokenizer(tmp_path: Path) -> None:
    """Special tokens and the prompt have none; what is cut off is gone."""
    job = sentence_job(tmp_path, {})
    tokenizer: Any = tokenizer_for(job)
    (ids,) = tokenizer(["the enormous, tiny one"])["input_ids"]
    pieces = tokenizer.convert_ids_to_tokens(ids)
    expected, word = [], 0
    for piece in pieces:
        word += not piece.startswith(("##", "[CLS]", "[SEP]"))
        expected.append(0 if piece in ("[CLS]", "[SEP]") else word)
    (plain,) = word_numbers(tokenizer, ["the enormous, tiny one"], max_tokens=32)
    assert plain == expected
    assert max(plain) == 5
    (after,) = word_numbers(tokenizer, ["the enormous, tiny one"], max_tokens=32, prompt="red: ")
    prompt = len(tokenizer("red: ")["input_ids"]) - 1
    assert after == [0] * prompt + expected[1:]
    (cut,) = word_numbers(tokenizer, ["the enormous, tiny one"], max_tokens=5)
    assert len(cut) == 5


def test_what_cannot_be_is_refused_before_a_run(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="is of sentences, which task = 'image' has none of"):
        JobConfig.model_validate(
            {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"},
             "augment": {"name": "delete_word"}}
        )  # fmt: skip
    with pytest.raises(ValueError, match=r"share = 1\.5"):
        check(sentence_job(tmp_path, {"name": "crop_words", "options": {"share": 1.5}}))
    check(sentence_job(tmp_path, {"name": "crop_words"}))
    mask_tokens = Augment(name="mask_tokens")
    with pytest.raises(ValueError, match="which the encoder's tokenizer has none of"):
        augmented(
            mask_tokens, *rows_of([[[5], [6]]], 0), mask_token=None, pad=0, seed=0, step=1, pairs=torch.tensor([0]),
            view=0,
        )  # fmt: skip


def heard(job: JobConfig) -> str:
    answer = examined("augmentation", job.augment.name, job.augment.options, job.model_dump(mode="json"))
    return " ".join(": ".join(fault) for fault in answer["faults"])


def test_one_of_the_user_s_own_is_tried_on_rows_of_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Alone, beside others and with other padding."""
    monkeypatch.setattr("jobs.train.components._distribution", lambda _: (None, ""))
    assert heard(sentence_job(tmp_path, {"name": "mylab:reversed_words"})) == ""
    assert "asks for images" in heard(sentence_job(tmp_path, {"name": "mylab:noisy"}))
    assert "beside other rows" in heard(sentence_job(tmp_path, {"name": "mylab:of_the_longest"}))
    image = {"task": "image", "budget": {"steps": 1}, "data": {"train": "digits", "confirm": "digits"}}
    assert "asks for tokens" in heard(JobConfig.model_validate(image | {"augment": {"name": "mylab:reversed_words"}}))
    made = reversed_words(*rows_of([[[5, 6], [7]]], 1), pairs=torch.tensor([1]), view=0)
    assert made.tolist() == [[FIRST, 7, 6, 5, LAST, PAD]]


def test_the_one_on_the_page_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = (Path(__file__).parents[3] / "docs" / "components.md").read_text("utf-8")
    (text,) = re.findall(r"^```python\n# mylab/parts.py\n(.*?)^```", page, re.M | re.S)
    (tmp_path / "parts_of_the_page.py").write_text(text)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("jobs.train.components._distribution", lambda _: (None, ""))
    job = sentence_job(tmp_path, {"name": "parts_of_the_page:without_ends", "options": {"share": 0.5}})
    assert heard(job) == ""
    plain, cut = (
        rows_seen(job.model_copy(update={"augment": of}), 1)["queries"] for of in (Augment(name="none"), job.augment)
    )
    fewer = [bool(row[:, 1].sum() < before[:, 1].sum()) for row, before in zip(cut, plain, strict=True)]
    assert 0 < sum(fewer) < len(fewer)


def test_examples_of_pairs_have_a_view_of_each_side(tmp_path: Path) -> None:
    job = sentence_job(tmp_path, {"name": "delete_word"}, pairs=True)
    examples, plain = (sentence_examples(of) for of in (job, job.model_copy(update={"augment": Augment()})))
    rows = np.arange(8)
    seen, before = (of.views(rows, seed=0, step=1, pairs=rows) for of in (examples, plain))
    for side in ("queries", "keys"):
        lengths = [getattr(of, side)["attention_mask"].sum(1) for of in (seen, before)]
        assert bool((lengths[0] < lengths[1]).all())
