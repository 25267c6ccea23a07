"""What may be meant in two ways is refused before a run begins, in every file of a source, with one thing that works.

Whatever the refusal proposes for data.columns is then read; so is what has other columns that mean nothing here.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from test_score_columns import table
from test_text_tables import WORDS, job, judged, refusal, text, trained_on, write

from jobs import data
from jobs.data.__main__ import main
from jobs.data.sources import read

__all__ = ["judged", "text"]

OTHER = WORDS[::-1]
THIRD = [f"{word} now" for word in WORDS]


def pairs(path: Path, **more: list[Any]) -> Path:
    return table(path, **{"sentence1": WORDS, "sentence2": OTHER, **more})


def rows_of(rows: list[str]) -> str:
    return "".join(f"{row}\n" for row in rows)


# --- columns beside a pair or a text


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
@pytest.mark.parametrize(
    ("name", "values"),
    [
        ("relevance", [i % 2 for i in range(12)]),
        ("gold", [0.1 * (i % 7) for i in range(12)]),
        ("is_match", [i % 3 == 0 for i in range(12)]),
        ("verdict", ["same", "different", "unsure"] * 4),
        ("target", [3, 1, 2, 5, 4, 0] * 2),
        ("entailment", [i % 3 for i in range(12)]),
        ("answer quality", ["good", "very bad"] * 6),
    ],
)
def test_a_column_that_scores_pairs_is_known_by_its_values(
    tmp_path: Path, judged: Path, suffix: str, name: str, values: list[Any]
) -> None:
    path = pairs(tmp_path / f"a.{suffix}", **{name: values})
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}, column '{name}': scores the pairs"), message
    assert "data.columns = ['sentence1', 'sentence2']" in message
    assert trained_on(job(path, judged, columns=["sentence1", "sentence2"])) == [WORDS, OTHER]


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_columns_that_say_something_about_pairs_are_in_nobodys_way(tmp_path: Path, judged: Path, suffix: str) -> None:
    columns: dict[str, list[Any]] = {
        **{name: [f"{name} {i % 2}" for i in range(12)] for name in ("split", "genre", "source", "language", "lang")},
        **{name: [i * 7 % 5 for i in range(12)] for name in ("id", "qid", "pair_id", "year", "length", "num_tokens")},
        "number_of_them": list(range(12)),
        "": [i * 5 % 12 for i in range(12)],
        "topic": ["sport", "news"] * 6,
        "title": ["A title", "Another"] * 6,
        "note": [f"note {i}" for i in range(12)],
        "corpus": ["one"] * 12,
    }
    path = pairs(tmp_path / f"a.{suffix}", **columns)
    assert trained_on(job(path, judged)) == [WORDS, OTHER]


@pytest.mark.parametrize(
    "name",
    [
        *("negative_passage", "neg_doc", "Negative", "hard-negative", "negative passage", "negative_passage_1"),
        *("hardNegative", "random_neg", "bm25_negatives", "HN1", "negative sentence", "Contradiction"),
    ],
)
def test_negatives_of_other_names_are_not_left_out_in_silence(tmp_path: Path, judged: Path, name: str) -> None:
    path = pairs(tmp_path / "a.csv", **{name: THIRD})
    message = refusal(job(path, judged))
    assert f"data.columns = ['sentence1', 'sentence2', '{name}'] if these are hard negatives" in message
    assert trained_on(job(path, judged, columns=["sentence1", "sentence2", name])) == [WORDS, OTHER, THIRD]
    assert trained_on(job(path, judged, columns=["sentence1", "sentence2"])) == [WORDS, OTHER]


@pytest.mark.parametrize(
    ("names", "columns"),
    [
        (("query", "passage", "answer"), ["query", "passage"]),
        (("question", "answer", "query", "passage"), ["question", "answer"]),
        (("question", "answer", "passage"), ["question", "answer"]),
        (("text", "sentence"), ["text"]),
        (("text", "text_pair"), ["text", "text_pair"]),
        (("sentence", "sentence2"), ["sentence", "sentence2"]),
        (("anchor", "positive", "sent0", "sent1"), ["sent0", "sent1"]),
    ],
)
def test_two_ways_to_read_the_columns_are_refused(
    tmp_path: Path, judged: Path, names: tuple[str, ...], columns: list[str]
) -> None:
    path = table(tmp_path / "a.tsv", **{name: [f"{name} {word}" for word in WORDS] for name in names})
    message = refusal(job(path, judged))
    assert "left out, which may be meant as well" in message
    assert f"data.columns = {columns}" in message
    assert len(trained_on(job(path, judged, columns=columns))) == len(columns)


def test_every_file_of_a_source_is_looked_at(tmp_path: Path, judged: Path, text: Path) -> None:
    """Mutant check: the names and the separator of the first file alone pass all of these."""
    kinds: list[tuple[dict[str, list[Any]], str | None]] = [
        ({"label": [0, 1] * 6}, "scores"),
        ({"hard_negative_text": THIRD}, "hard"),
        ({"text_a": THIRD}, None),
    ]
    for index, (more, words) in enumerate(kinds):
        folder = tmp_path / f"{index}"
        folder.mkdir()
        pairs(folder / "a.csv")
        pairs(folder / "b.csv", **more)
        if words is not None:
            message = refusal(job(folder, judged))
            assert message.startswith(f"{folder / 'b.csv'}, column ")
            assert words in message
        else:
            assert trained_on(job(folder, judged)) == [WORDS * 2, OTHER * 2]
    folder = tmp_path / "lists"
    folder.mkdir()
    write(folder / "a.jsonl", "".join(json.dumps({"text": word}) + "\n" for word in WORDS))
    write(folder / "b.jsonl", "".join(json.dumps({"text": word, "neg": [word]}) + "\n" for word in WORDS))
    assert refusal(job(folder, judged)).startswith(f"{folder / 'b.jsonl'}: has lists of passages")
    folder = tmp_path / "lines"
    folder.mkdir()
    write(folder / "a.txt", rows_of(WORDS))
    write(folder / "b.txt", rows_of([f"{word}\t{word}" for word in WORDS]))
    assert refusal(job(folder, judged)).startswith(f"{folder / 'b.txt'}, column 'text': has '\\t' in 12 of 12 rows")
    folder = tmp_path / "judged-too"
    folder.mkdir()
    pairs(folder / "a.jsonl", score=[1, 2, 3] * 4)
    pairs(folder / "b.jsonl", score=[1, 2, 3] * 4, relatedness_score=[3, 2, 1] * 4)
    assert refusal(job(text, folder)).startswith(f"{folder / 'b.jsonl'}: has score and relatedness_score")
    folder = tmp_path / "notes"
    folder.mkdir()
    pairs(folder / "a.jsonl")
    write(folder / "b.tsv", 'sentence1\tsentence2\n"say ""x"" to me"\tz\na\tb\nc\td\n')
    assert [note.split(":")[0] for note in data.check(job(folder, judged))][:1] == [f"{folder / 'b.tsv'}"]


def test_an_empty_file_does_not_stand_for_those_after_it(tmp_path: Path, judged: Path) -> None:
    write(tmp_path / "0.jsonl", "\n")
    pairs(tmp_path / "1.jsonl")
    assert trained_on(job(tmp_path / "*.jsonl", judged)) == [WORDS, OTHER]


@pytest.mark.parametrize(
    ("first", "second"), [("README.txt", "a.jsonl"), ("a.csv", "a.csv.gz"), ("a.csv", "a.parquet")]
)
def test_files_that_are_likely_no_shards_are_refused(tmp_path: Path, judged: Path, first: str, second: str) -> None:
    import gzip

    folder = tmp_path / "in"
    folder.mkdir()
    for name in (first, second):
        if name.endswith("parquet"):
            pq.write_table(pa.table({"text": WORDS}), folder / name)
        elif name.endswith("jsonl"):
            write(folder / name, "".join(json.dumps({"text": word}) + "\n" for word in WORDS))
        else:
            raw = rows_of(["text", *WORDS]).encode()
            write(folder / name, gzip.compress(raw) if name.endswith("gz") else raw)
    message = refusal(job(folder, judged))
    assert "lies beside" in message
    assert "data.columns = ['text']" in message
    assert len(trained_on(job(folder, judged, columns=["text"]))[0]) >= 24
    assert trained_on(job(folder / second, judged)) == [WORDS]


# --- cells


QUOTES = [f'"{word}"' for word in WORDS]


@pytest.mark.parametrize(
    ("name", "cells", "words"),
    [
        ("a.tsv", QUOTES, "TSV has no quotes"),
        ("a.csv", [f" {cell}" for cell in QUOTES], "no space between comma and quote"),
        ("a.tsv", [f"['{word}', 'x']" for word in WORDS], "one text in each cell"),
        ("a.jsonl", [json.dumps([word, "x"]) for word in WORDS], "one text in each cell"),
        ("a.parquet", [json.dumps({"en": word}) for word in WORDS], "one text in each cell"),
    ],
)
def test_cells_that_are_mostly_something_else_are_refused(
    tmp_path: Path, text: Path, judged: Path, name: str, cells: list[str], words: str
) -> None:
    path = table(tmp_path / name, sentence1=WORDS, sentence2=cells)
    message = refusal(job(path, judged))
    assert "column 'sentence2', row 0 (the first is 0): " in message
    assert words in message
    named = job(path, judged, columns=["sentence1", "sentence2"])
    assert trained_on(named) == [WORDS, cells]
    assert any("'sentence2'" in note for note in data.check(named))
    scores = table(tmp_path / name, sentence1=WORDS, sentence2=cells, score=[1, 2, 3] * 4)
    assert "data.judged_columns = ['sentence1', 'sentence2', 'score']" in refusal(job(text, scores))
    assert data.check(job(text, scores, judged_columns=["sentence1", "sentence2", "score"]))


def test_few_of_such_cells_are_sentences(tmp_path: Path, judged: Path) -> None:
    cells = ['"whole"', "[1] is cited", "{x}", *THIRD[3:]]
    path = table(tmp_path / "a.tsv", sentence1=WORDS, sentence2=cells)
    assert trained_on(job(path, judged)) == [WORDS, cells]
    marked = [f"[CLS] {word} [SEP]" for word in WORDS]
    assert trained_on(job(table(tmp_path / "a.tsv", text=marked), judged)) == [marked]


def test_a_header_in_quotes_is_refused_for_them(tmp_path: Path, judged: Path) -> None:
    for header in ('"anchor"\t"positive"', '"text"'):
        path = write(
            tmp_path / "a.tsv", rows_of([header, *["\t".join(QUOTES[:2])[: None if "\t" in header else 3]] * 9])
        )
        assert "TSV has no quotes" in refusal(job(path, judged))


def test_line_breaks_and_second_headers_in_cells_are_said(tmp_path: Path, judged: Path) -> None:
    path = write(tmp_path / "a.tsv", rows_of(["text", *WORDS, '"a cell', 'of two lines"']))
    [note] = data.check(job(path, judged))
    assert "1 cell of column 'text', the first in row 12, begins with a quote that the next row closes" in note
    both = ["sentence1,sentence2", *(f"{a},{b}" for a, b in zip(WORDS, OTHER, strict=True))]
    path = write(tmp_path / "a.csv", rows_of([*both, "\ufeffsentence1,sentence2", "x,y"]))
    assert "column 'sentence1', row 12 (the first is 0): holds the name of its column" in refusal(job(path, judged))
    path = write(tmp_path / "a.txt", rows_of([*WORDS, "\ufeffwell"]))
    [note] = data.check(job(path, judged))
    assert "byte order mark" in note


@pytest.mark.parametrize(
    "lines",
    [
        ["\t".join(WORDS[: 1 + i % 5]) for i in range(20)],
        [";".join(WORDS[: 2 + i % 5]) for i in range(20)],
        [f"{a},{b},{i % 2}" for i, (a, b) in enumerate(zip(WORDS, OTHER, strict=True))],
        [f'{i},"{word}"' for i, word in enumerate(WORDS)],
        ["# made by hand", *(json.dumps({"text": word}) for word in WORDS)],
        ["[", *(json.dumps({"text": word}) + "," for word in WORDS), "]"],
        [json.dumps([a, b]) for a, b in zip(WORDS, OTHER, strict=True)],
        ["no label", *(f"__label__x {word}" for word in WORDS)],
        [f"{a}\x01{b}" for a, b in zip(WORDS, OTHER, strict=True)],
    ],
)
def test_lines_that_are_rows_of_cells_are_refused_though_not_all_alike(
    tmp_path: Path, judged: Path, lines: list[str]
) -> None:
    path = write(tmp_path / "a.txt", rows_of(lines))
    assert "or set data.columns = ['text'] if they are sentences" in refusal(job(path, judged))
    assert trained_on(job(path, judged, columns=["text"])) == [lines]


def test_true_among_fractions_and_scores_that_are_no_numbers_are_refused(tmp_path: Path, text: Path) -> None:
    path = pairs(tmp_path / "a.jsonl", score=[0.5, 1.5, None, 2.5, True, *[3.5] * 7])
    assert "row 4 (the first is 0): holds true or false where row 0 holds a number" in refusal(job(text, path))
    path = pairs(tmp_path / "a.csv", score=[1, 2, "9" * 5000, *[3] * 9])
    assert "row 2 (the first is 0): holds no number" in refusal(job(text, path))
    path = pairs(tmp_path / "a.csv", label=[0, 1, 2, -1] * 3)
    assert "missing label" in refusal(job(text, path))
    assert data.check(job(text, path, judged_columns=["sentence1", "sentence2", "label"])) == []
    path = write(
        tmp_path / "a.jsonl", "".join(json.dumps({"n": 2**60 + 1 if i < 9000 else 0.5}) + "\n" for i in range(9001))
    )
    assert data.open_table(str(path))["n"].to_pylist()[::9000] == [float(2**60), 0.5]


# --- words


@pytest.mark.parametrize(
    "names",
    [
        ("기준문장텍스트", "비교문장텍스트"),
        ("First sentence text", "Second sentence text"),
        ("", "body"),
        ("2012", "body"),
    ],
)
def test_a_header_of_other_names_is_refused_with_the_key_that_names_it(
    tmp_path: Path, judged: Path, names: tuple[str, str]
) -> None:
    path = table(tmp_path / "a.csv", **dict(zip(names, (WORDS, OTHER), strict=True)))
    message = refusal(job(path, judged))
    example = [name for name in names if name][:2]
    assert f"data.columns = {example[:1]}" in message
    assert trained_on(job(path, judged, columns=example[:1]))


def test_another_sign_in_a_right_header_is_no_delimiter(tmp_path: Path, judged: Path) -> None:
    for name, raw in (
        ("a.csv", "anchor,positive,note; optional\na,b,c\na,b,c,d\n"),
        ("a.tsv", "sentence1, normalised\tsentence2\tmore\na\tb\tc\na\tb\n"),
        ("a.csv", 'anchor,positive|other,more\na,b,c\n"a,b,c\n'),
    ):
        message = refusal(job(write(tmp_path / name, raw), judged))
        assert "separated by" not in message
        assert "line 3" in message


@pytest.mark.parametrize("encoding", ["gb18030", "euc-kr", "shift_jis", "cp1251", "cp1252"])
def test_other_encodings_are_refused_with_more_than_one_to_try(tmp_path: Path, judged: Path, encoding: str) -> None:
    words = {"gb18030": "天气", "euc-kr": "날씨", "shift_jis": "天気", "cp1251": "погода", "cp1252": "café"}[encoding]
    path = write(tmp_path / "a.txt", rows_of([words] * 5).encode(encoding))
    assert encoding in refusal(job(path, judged))


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.csv.xz", b"x", "unxz"),
        ("a.jsonl.zip", b"x", "unzip"),
        ("a.txt.tar.gz", b"x", "tar -xf"),
        ("a.parquet.gz", b"x", "gunzip"),
        ("a.xlsx", b"x", "CSV in UTF-8"),
        ("a.csv", b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ("a.txt", b"\n<!DOCTYPE HTML>\n<html>\n", "a page of HTML"),
        ("a.arrow", b"FEA1" + bytes(20), "version 2"),
    ],
)
def test_what_is_no_text_is_named(tmp_path: Path, judged: Path, name: str, raw: bytes, words: str) -> None:
    message = refusal(job(write(tmp_path / name, raw), judged))
    assert words in message
    assert "image" not in message


def test_line_ends_that_were_doubled_or_end_otherwise_are_ends(tmp_path: Path) -> None:
    for raw in ("\r\r\n".join([*WORDS, ""]), "\r".join(WORDS) + "\n"):
        path = write(tmp_path / "a.txt", raw)
        assert read(str(path), lambda _file, names, _wanted: tuple(names)).table["text"].to_pylist() == WORDS


def test_a_file_of_known_data_that_is_not_there_is_an_error_in_words(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["--known", str(tmp_path / "no.json"), "job.toml"]) == 2
    assert "no.json cannot be read" in capsys.readouterr().err
