"""The columns of scored pairs are known by their usual names, or named, and a score is the number that stands there.

Mutant check: sentence1, sentence2 and score alone, as before, refuse most of these files.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pydantic import ValidationError
from test_text_tables import WORDS, job, refusal, text, write

from jobs import data
from jobs.config import JobConfig, trial_id
from jobs.config.identity import FORMER

__all__ = ["text"]

LEFT, RIGHT, SCORES = WORDS[:6], WORDS[6:], [0, 1, 5, 3, 2, 4]


def table(path: Path, **columns: list[Any]) -> Path:
    rows = [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]
    if path.suffix == ".parquet":
        pq.write_table(pa.table(columns), path)
    elif path.suffix == ".jsonl":
        write(path, "".join(json.dumps(row) + "\n" for row in rows))
    else:
        sign = "\t" if path.suffix == ".tsv" else ","
        write(path, "\n".join([sign.join(columns), *(sign.join(map(str, row.values())) for row in rows)]))
    return path


def found(job: JobConfig) -> tuple[list[str], list[str], list[float]]:
    data.check(job)
    pairs = data.evaluation_data(job)
    assert isinstance(pairs, data.SentenceEvaluation)
    return pairs.left, pairs.right, pairs.score.tolist()


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize("score", ["score", "label", "similarity_score", "similarity"])
def test_scores_are_known_by_their_usual_names(tmp_path: Path, text: Path, suffix: str, score: str) -> None:
    path = table(tmp_path / f"a.{suffix}", id=[7] * 6, sentence1=LEFT, sentence2=RIGHT, **{score: SCORES})
    assert found(job(text, path)) == (LEFT, RIGHT, SCORES)


@pytest.mark.parametrize(
    "pair",
    [
        *(("text1", "text2"), ("sentence_A", "sentence_B"), ("question1", "question2"), ("text_a", "text_b")),
        *(("sent1", "sent2"), ("sentence_1", "sentence_2")),
    ],
)
def test_pairs_are_known_by_their_usual_names(tmp_path: Path, text: Path, pair: tuple[str, str]) -> None:
    columns: dict[str, list[Any]] = {pair[0]: LEFT, pair[1]: RIGHT, "label": SCORES}
    path = table(tmp_path / "a.tsv", **columns)
    assert found(job(text, path)) == (LEFT, RIGHT, SCORES)


def test_columns_of_any_name_can_be_named(tmp_path: Path, text: Path) -> None:
    raw = "\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n"
    rows = (f"{q}\t1\t2\t{a}\t{b}\r\n" for q, a, b in zip(SCORES, LEFT, RIGHT, strict=True))
    path = write(tmp_path / "msr.tsv", raw + "".join(rows))
    message = refusal(job(text, path))
    assert "data.judged_columns = " in message
    named = job(text, path, judged_columns=["#1 String", "#2 String", "Quality"])
    assert found(named) == (LEFT, RIGHT, SCORES)
    assert "did you mean 'Quality'" in refusal(job(text, path, judged_columns=["#1 String", "#2 String", "quality"]))


def test_two_scores_or_two_pairs_are_refused_until_one_is_named(tmp_path: Path, text: Path) -> None:
    other = [5, 4, 3, 2, 1, 0]
    for names in (("score", "label"), ("label", "similarity"), ("score", "similarity_score")):
        path = table(tmp_path / "a.csv", sentence1=LEFT, sentence2=RIGHT, **{names[0]: SCORES, names[1]: other})
        message = refusal(job(text, path))
        assert f"{names[0]} and {names[1]}" in message
        assert f"data.judged_columns = ['sentence1', 'sentence2', '{names[0]}']" in message
        for name, score in zip(names, (SCORES, other), strict=True):
            assert found(job(text, path, judged_columns=["sentence1", "sentence2", name]))[2] == score
    path = table(tmp_path / "a.csv", sentence1=LEFT, sentence2=RIGHT, text1=RIGHT, text2=LEFT, score=SCORES)
    assert "data.judged_columns = ['sentence1', 'sentence2', 'score']" in refusal(job(text, path))


def test_a_run_that_was_begun_with_two_scores_goes_on_with_score(tmp_path: Path, text: Path) -> None:
    """Only the check before a run refuses; reading does what the version before did."""
    path = table(tmp_path / "a.csv", sentence1=LEFT, sentence2=RIGHT, label=[0] * 6, score=SCORES)
    pairs = data.evaluation_data(job(text, path))
    assert isinstance(pairs, data.SentenceEvaluation)
    assert pairs.score.tolist() == SCORES


@pytest.mark.parametrize("suffix", ["parquet", "jsonl", "csv", "tsv"])
@pytest.mark.parametrize(
    ("values", "numbers"),
    [
        (["4.5", "3", "0", "1e-1", " 2 ", "+1"], [4.5, 3, 0, 0.1, 2, 1]),
        ([True, False, True, True, False, False], [1, 0, 1, 1, 0, 0]),
        (["true", "false", "True", "FALSE", "true", "true"], [1, 0, 1, 0, 1, 1]),
        (["1", "0", "1", "1", "0", "0"], [1, 0, 1, 1, 0, 0]),
        ([0.5, 1.5, 2.0, 3.0, -1.0, 4.0], [0.5, 1.5, 2, 3, -1, 4]),
    ],
)
def test_a_score_is_the_number_that_stands_there(
    tmp_path: Path, text: Path, suffix: str, values: list[Any], numbers: list[float]
) -> None:
    path = table(tmp_path / f"a.{suffix}", sentence1=LEFT, sentence2=RIGHT, score=values)
    assert found(job(text, path))[2] == numbers
    same = table(tmp_path / "same.parquet", sentence1=LEFT, sentence2=RIGHT, score=numbers)
    kinds = {type(number) for number in numbers}
    if len(kinds) == 1:
        assert data.fingerprint(job(text, path)) == data.fingerprint(job(text, same))


@pytest.mark.parametrize("suffix", ["jsonl", "csv", "tsv"])
@pytest.mark.parametrize("bad", ["", "NA", "nan", "inf", "4,5", "entailment", "1_000", "0x1"])
def test_what_is_no_number_is_refused_by_its_row(tmp_path: Path, text: Path, suffix: str, bad: str) -> None:
    if suffix == "csv":
        bad = bad.replace(",", "·")
    path = table(tmp_path / f"a.{suffix}", sentence1=LEFT, sentence2=RIGHT, label=["1", "2", "3", bad, "0", "5"])
    message = refusal(job(text, path))
    assert f"{path}, column 'label', row 3 (the first is 0): holds " in message
    assert f"line {4 if suffix == 'jsonl' else 5}" in message


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), None])
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_numbers_that_are_none_are_refused_by_their_row(tmp_path: Path, text: Path, suffix: str, bad: Any) -> None:
    path = table(tmp_path / f"a.{suffix}", sentence1=LEFT, sentence2=RIGHT, score=[1.0, 2.0, 3.0, bad, 0.0, 5.0])
    assert "column 'score', row 3 (the first is 0): holds no number" in refusal(job(text, path))


def test_scores_of_mixed_kinds_are_refused_by_their_row(tmp_path: Path, text: Path) -> None:
    path = table(tmp_path / "a.jsonl", sentence1=LEFT, sentence2=RIGHT, score=[1, 2, "3", 4, 5, 0])
    assert "column 'score', row 2 (the first is 0): holds text where row 0 holds a number" in refusal(job(text, path))


# --- the key


def test_three_different_columns_of_sentences_are_named(tmp_path: Path) -> None:
    for columns in (["a", "b"], ["a", "b", "b"], ["a", "b", "c", "d"]):
        with pytest.raises(ValidationError, match="judged_columns"):
            job(tmp_path, tmp_path, judged_columns=columns)
    image = job(tmp_path, tmp_path).model_dump(mode="json") | {"task": "image"}
    image["data"]["judged_columns"] = ["a", "b", "c"]
    with pytest.raises(ValidationError, match=r"data.judged_columns .*data.columns"):
        JobConfig.model_validate(image)


def test_the_key_renames_no_trial_unless_it_is_given(tmp_path: Path) -> None:
    """Pinned with the version before. Mutant check: a default other than None fails this."""
    plain = job(Path("train.txt"), Path("judged.tsv"))
    before = plain.model_dump(mode="json")
    del before["data"]["judged_columns"]
    assert trial_id(before) == plain.id
    as_then = before | {section: dict(before[section]) for section in ("data", "model")}
    for key, value in FORMER.items():
        section, name = key.split(".")
        as_then[section][name] = value
    assert trial_id(as_then) == "29625010e792"
    assert trial_id(before, rules=1) == trial_id(plain.model_dump(mode="json"), rules=1)
    assert job(Path("train.txt"), Path("judged.tsv"), judged_columns=["a", "b", "c"]).id != plain.id


def test_rows_are_recorded_with_the_columns_they_are_judged_by(tmp_path: Path, text: Path) -> None:
    """Mutant check: leaving the columns out of the name gives one arm the digest of the other."""
    path = table(tmp_path / "a.csv", sentence1=LEFT, sentence2=RIGHT, score=SCORES, other=SCORES[::-1])
    plain, named = job(text, path), job(text, path, judged_columns=["sentence1", "sentence2", "other"])
    first, second = data.digests(plain), data.digests(named)
    assert set(first) == {f"data.train = {text}", f"data.confirm = {path}"}
    assert set(second) - set(first) == {f'data.confirm = {path} ["sentence1", "sentence2", "other"]'}
    digests = {entry["digest"] for entry in {**first, **second}.values()}
    assert len(digests) == 3
    for known in (first, {**first, **second}):
        assert data.digests(named, known) == second
    assert data.fingerprint(plain) != data.fingerprint(named)
    assert data.dataset_info(plain)[1]["digest"] != data.dataset_info(named)[1]["digest"]
