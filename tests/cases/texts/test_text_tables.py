"""CSV, TSV and plain text are read as they stand, or refused with file, line and remedy.

Mutant check: pyarrow's CSV reader for .tsv as well, as before, has a quote there begin a cell of many lines.
"""

from __future__ import annotations

import csv
import gzip
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from jobs import data
from jobs.config import JobConfig
from jobs.data import DataError
from jobs.data.__main__ import main
from jobs.data.formats import reader

WORDS = [f"the {a} {b} sleeps" for a in ("old", "red", "wet") for b in ("cat", "dog", "fox", "hen")]
FOLDERS = settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])


def job(train: Path, judged: Path, **data_keys: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 3},
            "data": {"train": str(train), "confirm": str(judged), **data_keys},
            "batch": {"size": 4},
            "model": {"vocabulary": 200},
        }
    )


def write(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text.encode() if isinstance(text, str) else text)
    return path


@pytest.fixture
def judged(tmp_path: Path) -> Path:
    (tmp_path / "judged").mkdir()
    columns = {"sentence1": WORDS[:4], "sentence2": WORDS[4:8], "score": [0.5, 1.5, 2.5, 3.5]}
    pq.write_table(pa.table(columns), tmp_path / "judged/a.parquet")
    return tmp_path / "judged/a.parquet"


@pytest.fixture
def text(tmp_path: Path) -> Path:
    (tmp_path / "train").mkdir()
    return write(tmp_path / "train/text.txt", "".join(f"{line}\n" for line in WORDS))


def refusal(job: JobConfig) -> str:
    with pytest.raises(DataError) as caught:
        data.check(job)
    return str(caught.value)


def trained_on(job: JobConfig) -> list[list[str]]:
    data.check(job)
    examples = data.train_examples(job)
    assert isinstance(examples, data.SentenceExamples)
    return [column.to_pylist() for column in examples.rows.table.columns]


# --- TSV


def test_a_quote_in_a_tsv_is_a_character_like_any_other(tmp_path: Path, text: Path) -> None:
    left = [*WORDS[:2], '"It rains, he said', *WORDS[3:6], 'and then "no" again"', '"whole"', '""', *WORDS[9:]]
    lines = [
        "sentence1\tsentence2\tscore",
        *(f"{a}\t{b}\t{i % 5}" for i, (a, b) in enumerate(zip(left, WORDS, strict=True))),
    ]
    path = write(tmp_path / "sts.tsv", "\n".join(lines))
    found = data.evaluation_data(job(text, path))
    assert isinstance(found, data.SentenceEvaluation)
    assert found.left == left
    assert found.right == WORDS
    assert data.check(job(text, path)) == []


LINES = st.lists(
    st.text(st.characters(exclude_characters="\t\n\r", exclude_categories=["Cs"]), min_size=1).filter(str.strip),
    min_size=2,
    max_size=8,
)


@FOLDERS
@given(texts=LINES, ends=st.sampled_from(["\n", "\r\n"]), packed=st.booleans())
def test_any_sentences_written_as_tsv_or_txt_are_read_back(
    tmp_path: Path, texts: list[str], ends: str, packed: bool
) -> None:
    other = texts[::-1]
    for name, lines in (
        ("a.tsv", ["anchor\tpositive", *(f"{a}\t{b}" for a, b in zip(texts, other, strict=True))]),
        ("a.txt", texts),
    ):
        raw = ends.join(lines).encode() + b"\n"
        if raw.startswith(b"\xef\xbb\xbf"):
            continue
        path = write(tmp_path / (name + ".gz" * packed), gzip.compress(raw, mtime=0) if packed else raw)
        table = data.open_table(str(path))
        assert [column.to_pylist() for column in table.columns] == ([texts, other] if name == "a.tsv" else [texts])


@pytest.mark.parametrize(
    ("rows", "line", "words"),
    [
        (["a\tb", "c\td\te"], 3, "3 cells where line 1 has 2"),
        (["a\tb", "c"], 3, "1 cell where line 1 has 2"),
        (["a\tb", "", "c\td\t"], 4, "3 cells where line 1 has 2"),
    ],
)
def test_ragged_rows_are_refused_by_their_line(
    tmp_path: Path, judged: Path, rows: list[str], line: int, words: str
) -> None:
    for name, sign in (("a.tsv", "\t"), ("a.csv", ",")):
        path = write(tmp_path / name, "\n".join(["anchor\tpositive", *rows, *["x\ty"] * 6]).replace("\t", sign))
        message = refusal(job(path, judged))
        assert message.startswith(f"{path}: line {line} has {words}"), message


def test_empty_lines_are_no_rows_and_rows_are_named_with_their_lines(tmp_path: Path, judged: Path) -> None:
    rows = "\n".join(f"{word}\t{word}" for word in WORDS[:5])
    path = write(tmp_path / "a.tsv", f"anchor\tpositive\n\n{rows}\n\n\n")
    assert trained_on(job(path, judged)) == [WORDS[:5]] * 2
    path = write(tmp_path / "a.tsv", f"anchor\tpositive\n\n{rows}\n\nx\t\n")
    message = refusal(job(path, judged))
    assert f"{path}, column 'positive', row 5 (the first is 0): is empty" in message
    assert "line 9" in message
    cell = '"of\ntwo lines"'
    path = write(tmp_path / "a.csv", f"anchor,positive\n{cell},x\n{rows}".replace("\t", ",") + "\nx,\n")
    assert "row 6 " in refusal(job(path, judged))
    assert "line 9" in refusal(job(path, judged))


def test_line_ends_of_every_system_are_read(tmp_path: Path) -> None:
    for end in ("\n", "\r\n", "\r"):
        for name, sign in (("a.tsv", "\t"), ("a.csv", ",")):
            lines = [sign.join(pair) for pair in [("anchor", "positive"), *zip(WORDS, WORDS, strict=True)]]
            path = write(tmp_path / name, end.join([*lines, ""]))
            assert data.open_table(str(path)).to_pydict() == {"anchor": WORDS, "positive": WORDS}
        path = write(tmp_path / "a.txt", end.join([*WORDS, ""]))
        assert data.open_table(str(path))["text"].to_pylist() == WORDS


def test_a_column_that_is_there_twice_is_refused_only_where_it_is_used(tmp_path: Path, judged: Path) -> None:
    lines = [f"{word},x,x" for word in WORDS]
    path = write(tmp_path / "a.csv", "\n".join(["text,n,n", *lines]))
    assert trained_on(job(path, judged)) == [WORDS]
    assert "column 'n': is there twice" in refusal(job(path, judged, columns=["n"]))


def test_a_file_of_its_header_alone_has_no_rows(tmp_path: Path, judged: Path) -> None:
    for name in ("a.csv", "a.tsv"):
        assert "has no rows" in refusal(job(write(tmp_path / name, "text\n"), judged))
        assert refusal(job(write(tmp_path / name, "\n\n"), judged)).startswith(f"{tmp_path / name}")


# --- CSV


@FOLDERS
@given(
    rows=st.lists(
        st.tuples(*[st.text(st.characters(exclude_categories=["Cs"]), max_size=8)] * 2), min_size=1, max_size=8
    ),
    quoting=st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL]),
)
def test_whatever_is_written_as_csv_is_read_back(tmp_path: Path, rows: list[tuple[str, str]], quoting: Any) -> None:
    """Line breaks in a cell, quotes, numbers and names of nothing included."""
    path = tmp_path / "a.csv"
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, quoting=quoting)
        writer.writerows([("anchor", "positive"), *rows])
    table = data.open_table(str(path))
    assert list(zip(table["anchor"].to_pylist(), table["positive"].to_pylist(), strict=True)) == rows


PIECES = [
    "a",
    "é",
    " ",
    ",",
    "\t",
    '"',
    '""',
    "\n",
    "\r\n",
    ',"b"',
    '"b",',
    '"b\nc"',
    "x,y\n",
    '"x","y"\n',
    "x\ty\n",
    "\0",
]


@FOLDERS
@given(
    parts=st.lists(st.sampled_from([*PIECES, "\r", "\ufeff", "\udce9"]) | st.sampled_from(PIECES), max_size=24),
    suffix=st.sampled_from(["csv", "tsv", "txt"]),
    block=st.integers(1, 40),
)
def test_blocks_that_are_read_at_once_hold_what_reading_with_care_finds(
    tmp_path: Path, parts: list[str], suffix: str, block: int
) -> None:
    """Or are refused in the same words, with the same line. Mutant check: leaving out the look at quotes fails this."""
    raw = ("a,b\n" if suffix == "csv" else "a\tb\n") + "".join(parts)
    path = write(tmp_path / f"a.{suffix}", raw.encode(errors="surrogateescape"))

    def found() -> Any:
        try:
            opened = reader(str(path))
            table = opened.fetch(opened.names, 0, opened.rows)
            lines = [opened.line(row) for row in range(opened.rows)] if opened.line else None
        except DataError as error:
            return str(error)
        values = [
            value.decode(errors="surrogateescape") if isinstance(value, bytes) else value
            for column in table.columns
            for value in column.to_pylist()
        ]
        return table.column_names, values, lines

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("jobs.data.formats.lines.BLOCK", block)
        quick = found()
        patch.setattr("jobs.data.formats.tables.columns_of", lambda *_: None)
        patch.setattr("jobs.data.formats.lines.BLOCK", 1 << 20)
        assert quick == found()


@pytest.mark.parametrize("values", [["007", "1e5"], ["null", "NA"], ["true", "false"], ["2020-01-01", "2021-02-03"]])
def test_a_sentence_is_the_text_that_stands_there(tmp_path: Path, judged: Path, values: list[str]) -> None:
    path = write(tmp_path / "a.csv", "\n".join(["text", *values * 3]))
    assert trained_on(job(path, judged)) == [values * 3]


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ('x,y\n"x,y\nx,y\nx,y\n', "line 3: a quote opens in this row and none closes it"),
        ('x,y\nx,y\n"x" more,y\nx,y\n', "line 4: "),
        ('x,y\n"a" "b",y\n', "line 3: "),
    ],
)
def test_quotes_that_do_not_fit_are_refused_by_their_line(tmp_path: Path, judged: Path, rows: str, words: str) -> None:
    path = write(tmp_path / "a.csv", f"anchor,positive\n{rows}")
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}: {words}"), message
    assert "twice" in message


def test_a_quote_inside_a_cell_of_a_csv_is_a_character(tmp_path: Path, judged: Path) -> None:
    path = write(tmp_path / "a.csv", "anchor,positive\n" + "".join(f'a {n}" pipe,say "{n}"\n' for n in range(4)))
    assert trained_on(job(path, judged)) == [[f'a {n}" pipe' for n in range(4)], [f'say "{n}"' for n in range(4)]]


def test_cells_of_several_lines_and_quoted_cells_of_a_tsv_are_said(tmp_path: Path, judged: Path) -> None:
    """Both may be meant; whoever did not mean them hears of it."""
    path = write(tmp_path / "a.csv", 'anchor,positive\n"x\ny",z\n' + "".join(f"a{n},b{n}\n" for n in range(6)))
    [note] = data.check(job(path, judged))
    assert "1 cell of column 'anchor'" in note
    assert "row 0" in note
    rows = "".join(f"a{n}\tb{n}\n" for n in range(6))
    path = write(tmp_path / "a.tsv", 'anchor\tpositive\n"he said ""x"" to me"\tz\n' + rows)
    [note] = data.check(job(path, judged))
    assert "1 cell of column 'anchor'" in note
    assert "quotes" in note


# --- delimiters and headers


@pytest.mark.parametrize(("name", "sign"), [("a.csv", ";"), ("a.csv", "\t"), ("a.csv", "|"), ("a.tsv", ",")])
@pytest.mark.parametrize("header", ["anchor", None])
def test_another_delimiter_is_refused(
    tmp_path: Path, text: Path, judged: Path, name: str, sign: str, header: str | None
) -> None:
    head = f"anchor{sign}positive\n" if header else ""
    path = write(tmp_path / name, head + "".join(f"{word}{sign}{word}\n" for word in WORDS))
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}")
    assert f"separated by {sign!r}" in message
    scored = write(tmp_path / name, head + "".join(f"{word}{sign}{word}{sign}{i}\n" for i, word in enumerate(WORDS)))
    message = refusal(job(text, scored))
    assert message.startswith(f"{scored}")
    commas = write(tmp_path / name, head + "".join(f"{word}, or{sign}{word}, or\n" for word in WORDS))
    assert repr(sign) in refusal(job(commas, judged))


def test_cells_in_quotes_between_other_delimiters_are_refused_for_the_delimiter(tmp_path: Path, judged: Path) -> None:
    """And not for their quotes, which are right."""
    for sign in (";", "\t"):
        rows = "".join(f'"{word}"{sign}"{word}, ""or"" not"\n' for word in WORDS)
        message = refusal(job(write(tmp_path / "a.csv", f'"anchor"{sign}"positive"\n{rows}'), judged))
        assert f"separated by {sign!r}" in message, message


def test_scores_of_csv_and_parquet_are_joined(tmp_path: Path, text: Path) -> None:
    (tmp_path / "both").mkdir()
    columns = {"sentence1": WORDS[:4], "sentence2": WORDS[4:8], "score": [0.5, 1.5, 2.5, 3.5]}
    pq.write_table(pa.table(columns), tmp_path / "both/a.parquet")
    write(tmp_path / "both/b.csv", "sentence1,sentence2,score\n" + "".join(f"{word},{word},5\n" for word in WORDS))
    found = data.evaluation_data(job(text, tmp_path / "both"))
    assert isinstance(found, data.SentenceEvaluation)
    assert found.score.tolist() == [0.5, 1.5, 2.5, 3.5, *[5.0] * 12]


def test_a_column_that_is_asked_for_twice_is_refused(tmp_path: Path, text: Path, judged: Path) -> None:
    assert "column 'text': is asked for twice" in refusal(job(text, judged, columns=["text", "text"]))


@pytest.mark.parametrize("sign", ["\t", "|||", ";", '","'])
def test_lines_that_hold_more_than_a_sentence_are_refused(tmp_path: Path, judged: Path, sign: str) -> None:
    lines = [f"{a}{sign}{b}{sign}{i % 2}" for i, (a, b) in enumerate(zip(WORDS, WORDS[::-1], strict=True))]
    path = write(tmp_path / "a.txt", "\n".join(lines))
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}, column 'text': ")
    assert ".tsv" in message or ".csv" in message
    assert trained_on(job(path, judged, columns=["text"])) == [lines]


def test_sentences_with_signs_here_and_there_are_sentences(tmp_path: Path, judged: Path) -> None:
    lines = [*WORDS, "one; two", "one\ttab", "either | or", 'a "b","c"']
    assert trained_on(job(write(tmp_path / "a.txt", "\n".join(lines)), judged)) == [lines]


def test_labels_in_front_of_every_line_are_refused(tmp_path: Path, judged: Path) -> None:
    path = write(tmp_path / "a.txt", "".join(f"__label__{i % 2} {word}\n" for i, word in enumerate(WORDS)))
    assert "__label__" in refusal(job(path, judged))


def test_objects_in_a_txt_are_refused(tmp_path: Path, judged: Path) -> None:
    path = write(tmp_path / "a.txt", "".join(f'{{"text": "{word}"}}\n' for word in WORDS))
    assert ".jsonl" in refusal(job(path, judged))


@pytest.mark.parametrize("name", ["a.csv", "a.tsv"])
def test_a_missing_header_is_refused_unless_the_column_is_named(tmp_path: Path, judged: Path, name: str) -> None:
    path = write(tmp_path / name, "\n".join(WORDS))
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}")
    assert "write text above line 1" in message
    assert trained_on(job(path, judged, columns=[WORDS[0]])) == [WORDS[1:]]
    body = write(tmp_path / name, "\n".join(["body", *WORDS]))
    assert "data.columns = ['body']" in refusal(job(body, judged))
    assert trained_on(job(body, judged, columns=["body"])) == [WORDS]


def test_a_missing_header_of_several_columns_is_refused(tmp_path: Path, text: Path, judged: Path) -> None:
    for rows in ([f"{word}\t{word}\t{i % 2}" for i, word in enumerate(WORDS)], ["今天天气很好\t天气很好今天"] * 9):
        path = write(tmp_path / "a.tsv", "\n".join(rows))
        for message in (refusal(job(path, judged)), refusal(job(text, path))):
            assert message.startswith(f"{path}")
            assert "if the file has no header" in message


# --- encodings and packing


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv", "a.jsonl", "a.json"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_byte_order_mark_is_no_part_of_the_text(tmp_path: Path, judged: Path, name: str, packed: bool) -> None:
    lines = [f'{{"text": "{word}"}}' for word in WORDS] if "json" in name else ["text", *WORDS]
    lines = lines[1:] if name == "a.txt" else lines
    raw = ("\ufeff" + "\n".join(lines)).encode()
    path = write(tmp_path / (name + ".gz" * packed), gzip.compress(raw, mtime=0) if packed else raw)
    assert trained_on(job(path, judged)) == [WORDS]


@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.tsv.gz", "a.jsonl", "a.json.gz"])
@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-32", "utf-32-le", "utf-32-be"])
@pytest.mark.parametrize(
    "words", [WORDS, [f"Предложение номер {i} о погоде" for i in range(12)], ["今天天气很好我们去公园散步吧" * 9] * 12]
)
def test_wide_encodings_are_refused_by_name(
    tmp_path: Path, judged: Path, name: str, encoding: str, words: list[str]
) -> None:
    lines = [f'{{"text": "{word}"}}' for word in words] if "json" in name else ["text", *words]
    raw = "\n".join(lines).encode(encoding)
    path = write(tmp_path / name, gzip.compress(raw, mtime=0) if name.endswith(".gz") else raw)
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}: is in {encoding.upper()[:6]}"), message
    assert "iconv -f utf-" in message


def test_bytes_that_are_not_utf8_matter_only_where_they_are_used(tmp_path: Path, judged: Path) -> None:
    rows = b"\n".join(f"{word}\tcaf".encode() + b"\xe9" for word in WORDS)
    path = write(tmp_path / "a.tsv", b"text\tplace\n" + rows)
    assert trained_on(job(path, judged)) == [WORDS]
    message = refusal(job(path, judged, columns=["place"]))
    assert "column 'place', row 0 (the first is 0): is not UTF-8" in message
    assert "line 2" in message
    assert "line 1 is not UTF-8" in refusal(job(write(tmp_path / "a.csv", b"caf\xe9,text\nx,y\n"), judged))


@pytest.mark.parametrize(
    ("name", "raw", "words"),
    [
        ("a.csv", gzip.compress(b"text\nx\n", mtime=0), "gzip"),
        ("a.csv.gz", b"text\nx\ny\n", "is not gzip"),
        ("a.tsv", b"PK\x03\x04" + bytes(30), "zip"),
        ("a.txt", b"PAR1" + bytes(30), "Parquet"),
        ("a.jsonl", b"\x28\xb5\x2f\xfd" + bytes(30), "zstd"),
        ("a.xlsx", b"PK\x03\x04" + bytes(30), "the name must end in"),
        ("a.csv.bz2", b"BZh91AY&SY" + bytes(30), "the name must end in"),
        ("a.txt.zst", b"\x28\xb5\x2f\xfd" + bytes(30), "the name must end in"),
    ],
)
def test_packed_files_are_named_for_what_they_are(
    tmp_path: Path, judged: Path, name: str, raw: bytes, words: str
) -> None:
    path = write(tmp_path / name, raw)
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}: ")
    assert words in message


def test_packed_files_of_two_parts_and_capital_names_are_read(tmp_path: Path, judged: Path) -> None:
    parts = ["text\n" + "\n".join(WORDS[:6]) + "\n", "\n".join(WORDS[6:])]
    path = write(tmp_path / "A.CSV.GZ", b"".join(gzip.compress(part.encode()) for part in parts))
    assert trained_on(job(path, judged)) == [WORDS]


def test_every_kind_of_line_break_but_a_newline_stays_in_its_line(tmp_path: Path, judged: Path) -> None:
    lines = [f"{word}{sign}{word}" for word, sign in zip(WORDS[:5], "\u2028\x85\x0b\x0c\x1e", strict=True)]
    for name in ("a.txt", "a.tsv", "a.csv"):
        head = [] if name == "a.txt" else ["text"]
        assert trained_on(job(write(tmp_path / name, "\n".join([*head, *lines])), judged)) == [lines]


# --- the same rows as ever, and the same words everywhere


def test_rows_that_were_read_right_before_have_their_digests_of_before(tmp_path: Path) -> None:
    """Runs that were begun compare them. The digests are those of the version before."""
    texts = [f"Sentence {i}, with größe {i * i}" for i in range(7)]
    other = [f'Other "{i}"' for i in range(7)]
    txt = write(tmp_path / "t.txt", "".join(f"{text}\n" for text in texts))
    for score, digest in (
        ([0, 5, 3, 1, 2, 4, 0], "f006fa363e9786aa59fdbc35eafaab7c"),
        ([0.0, 4.75, 3.2, 1e-3, 2.5, 5.0, 0.1], "ae6337144c6ae99309229ce6448a62a2"),
    ):
        table = pa.table({"sentence1": texts, "sentence2": other, "score": score})
        pq.write_table(table, tmp_path / "a.parquet")
        write(tmp_path / "a.jsonl", "".join(f"{row}\n" for row in map(__import__("json").dumps, table.to_pylist())))
        with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([table.column_names, *zip(texts, other, score, strict=True)])
        for name in ("a.parquet", "a.jsonl", "a.csv"):
            found = data.digests(job(txt, tmp_path / name))
            assert list(found) == [f"data.train = {txt}", f"data.confirm = {tmp_path / name}"]
            assert [one["digest"] for one in found.values()] == ["6e5302bb80bb950ac21d5d65a8006787", digest], name
        plain = [text.replace('"', "") for text in other]
        rows = ("\t".join(map(str, row)) + "\n" for row in zip(texts, plain, score, strict=True))
        tsv = write(tmp_path / "a.tsv", "sentence1\tsentence2\tscore\n" + "".join(rows))
        [_, entry] = data.digests(job(txt, tsv)).values()
        known = {"f": "fb89295c5c2d3d4882e1010f48bb480f", "a": "caa563ce6414e7004b33c78b962c6357"}
        assert entry["digest"] == known[digest[0]]


def test_the_check_ends_with_2_and_words(tmp_path: Path, judged: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = write(tmp_path / "a.csv", "\n".join(["text", *WORDS]).encode("utf-16"))
    (tmp_path / "job.json").write_text(job(path, judged).model_dump_json())
    assert main([str(tmp_path / "job.json")]) == 2
    assert capsys.readouterr().err.startswith(f"error: {path}: is in UTF-16")
