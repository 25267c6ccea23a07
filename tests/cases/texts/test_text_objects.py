"""JSON is read for the columns that are used, whatever else stands in it; lists of passages are refused in words.

Mutant check: pyarrow's JSON reader, as before, takes every key of a file for a column of one type.
"""

from __future__ import annotations

import gzip
import io
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_text_tables import FOLDERS, WORDS, job, judged, refusal, trained_on, write

from jobs import data
from jobs.data import DataError
from jobs.data.formats import decoded

__all__ = ["judged"]

ANYTHING = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(st.characters(exclude_categories=["Cs"])),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text("abc"), inner, max_size=3),
    max_leaves=5,
)


def lines(*rows: Any) -> str:
    return "".join(json.dumps(row) + "\n" for row in rows)


@FOLDERS
@given(
    rows=st.lists(
        st.tuples(st.text(st.characters(exclude_categories=["Cs"])), st.dictionaries(st.text("xyz"), ANYTHING)),
        min_size=2,  # a single object with a list of objects may be all rows, and is refused
        max_size=6,
    ),
    indent=st.sampled_from([None, 1]),
    listed=st.booleans(),
)
def test_texts_are_read_whatever_else_the_objects_hold(
    tmp_path: Path, rows: list[tuple[str, dict[str, Any]]], indent: int | None, listed: bool
) -> None:
    """Also pretty-printed, and as one list."""
    objects = [{**more, "text": text} for text, more in rows]
    raw = json.dumps(objects, indent=indent) if listed else "\n".join(json.dumps(one, indent=indent) for one in objects)
    path = write(tmp_path / "a.json", raw)
    assert data.open_table(str(path), columns=["text"])["text"].to_pylist() == [text for text, _ in rows]


PIECES = [
    '{"a": 1}',
    '{"a": [{}',
    "{}]}",
    ",",
    "\n",
    " ",
    '{"a": 1, "a": 2}',
    '"\x7f"',
    '"\\u007f"',
    "[",
    "]",
    "0",
    '{"b',
    '"',
]


@FOLDERS
@given(
    parts=st.lists(st.sampled_from(["\n", '{"a": 1}\n', *PIECES]), max_size=14), batch=st.sampled_from([1, 9, 30, 99])
)
def test_lines_that_are_decoded_at_once_hold_what_one_after_the_other_finds(parts: list[str], batch: int) -> None:
    """Or are refused in the same words. Mutant check: joining the lines by commas alone takes two lines for one."""

    def found() -> Any:
        got = []
        try:
            got += [
                (line, dict(one), isinstance(one, decoded.Twice)) for line, one in decoded.objects(given_lines, "a")
            ]
        except DataError as error:
            return str(error)
        return got

    given_lines = io.StringIO("".join(parts)).readlines()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decoded, "BATCH", batch)
        quick = found()
        patch.setattr(decoded, "_at_once", lambda _: None)
        assert quick == found()


def test_columns_of_mixed_types_matter_only_where_they_are_used(tmp_path: Path, judged: Path) -> None:
    odd = ["x0", 1, None, [1], {"a": 1}, True, 2.5, ["a", 1], {"a": []}, 10**30, "x", 7]
    path = write(tmp_path / "a.jsonl", lines(*({"id": i, "text": word} for i, word in zip(odd, WORDS, strict=True))))
    assert trained_on(job(path, judged)) == [WORDS]
    message = refusal(job(path, judged, columns=["id"]))
    assert "column 'id', row 1 (the first is 0): holds a number where row 0 holds text" in message
    assert "line 2" in message


def test_the_other_kind_of_value_is_found_far_below_too(tmp_path: Path, judged: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(*[{"text": "x"}] * 20_000, {"text": 3}))
    assert "row 20000 (the first is 0): holds a number where row " in refusal(job(path, judged))
    path = write(tmp_path / "a.jsonl", lines(*[{"text": "x", "n": 1}] * 20_000, {"text": "y", "n": 2.5}))
    assert data.open_table(str(path))["n"].to_pylist()[-2:] == [1.0, 2.5]


def test_keys_may_be_missing_where_nobody_uses_them(tmp_path: Path, judged: Path) -> None:
    rows: list[dict[str, Any]] = [{"title": "t"} | {"text": word} for word in WORDS]
    del rows[0]["title"]
    path = write(tmp_path / "a.jsonl", lines(*rows))
    assert trained_on(job(path, judged)) == [WORDS]
    message = refusal(job(path, judged, columns=["title"]))
    assert "column 'title', row 0 (the first is 0): is null or missing" in message
    rows[5]["text"] = None
    message = refusal(job(write(tmp_path / "a.jsonl", "\n\n" + lines(*rows)), judged))
    assert "column 'text', row 5 (the first is 0): is null" in message
    assert "line 8" in message


@pytest.mark.parametrize(
    ("tail", "words"),
    [
        ('{"text": "cut sh', "line 13 "),
        ('{"text": "x"', "line 13 "),
        ("[1, 2]\n", "line 13 holds a list"),
        ('"text"\n', "line 13 holds text"),
        ("{'text': 'x'}\n", "line 13 "),
        ('{"text": "x"},\n', "line 13 "),
        ('{"text": "x", "text": "y"}\n', "row 12 (the first is 0): is given twice"),
        ('{"text": "\\ud800"}\n', "row 12 (the first is 0): holds half of a character"),
        ('{"text": "a\tb"}\n', "line 13 "),
        ('{"text": ' + "[" * 100_000 + "\n", "line 13 "),
    ],
)
def test_a_line_that_is_no_object_is_named(tmp_path: Path, judged: Path, tail: str, words: str) -> None:
    path = write(tmp_path / "a.jsonl", lines(*({"text": word} for word in WORDS)) + tail)
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}")
    assert words in message


def test_a_list_that_is_cut_short_is_named(tmp_path: Path, judged: Path) -> None:
    whole = json.dumps([{"text": word} for word in WORDS], indent=1)
    assert trained_on(job(write(tmp_path / "a.json", whole), judged)) == [WORDS]
    for cut in (len(whole) - 2, len(whole) // 2):
        assert "cut short" in refusal(job(write(tmp_path / "a.json", whole[:cut]), judged))


@pytest.mark.parametrize(
    "columns", [{"text": WORDS}, {"text": {str(i): word for i, word in enumerate(WORDS)}}, {"a": WORDS, "b": WORDS}]
)
def test_a_file_of_columns_is_refused(tmp_path: Path, judged: Path, columns: dict[str, Any]) -> None:
    message = refusal(job(write(tmp_path / "a.json", json.dumps(columns)), judged))
    assert "holds one object (" in message
    assert '{"text": ' in message


@pytest.mark.parametrize("name", ["a.json.gz", "a.jsonl.gz", "a.ndjson.gz", "a.ndjson"])
def test_packed_json_is_read(tmp_path: Path, judged: Path, name: str) -> None:
    raw = lines(*({"text": word} for word in WORDS)).encode()
    path = write(tmp_path / name, gzip.compress(raw) if name.endswith("gz") else raw)
    assert trained_on(job(path, judged)) == [WORDS]


# --- lists of passages


LISTS: dict[str, dict[str, Any]] = {
    "pos and neg": {"query": "q", "pos": ["a", "b"], "neg": ["c"]},
    "without negatives": {"query": "q", "pos": ["a"]},
    "objects": {
        "query_id": "1",
        "query": "q",
        "positive_passages": [{"docid": "1", "text": "a"}],
        "negative_passages": [{"docid": "2", "text": "b"}],
    },
    "contexts": {"question": "q", "answers": ["x"], "positive_ctxs": [{"text": "a"}], "hard_negative_ctxs": []},
    "usual names": {"query": "q", "positive": ["a", "b"], "negative": ["c"]},
    "negatives alone": {"anchor": "q", "positive": "a", "negatives": ["c", "d"]},
    "beside a text": {"text": "q", "pos": ["a"], "neg": ["b"]},
    "scores too": {"query": "q", "pos": ["a"], "neg": ["b"], "pos_scores": [1.0], "neg_scores": [0.5]},
}


@pytest.mark.parametrize("name", LISTS)
@pytest.mark.parametrize("suffix", ["jsonl", "parquet"])
def test_lists_of_passages_are_refused_with_what_to_write(tmp_path: Path, judged: Path, name: str, suffix: str) -> None:
    """Never with a column that would train something else."""
    path = tmp_path / f"a.{suffix}"
    rows = [LISTS[name]] * 6
    if suffix == "jsonl":
        write(path, lines(*rows))
    else:
        pq.write_table(pa.Table.from_pylist(rows), path)
    message = refusal(job(path, judged))
    assert message.startswith(f"{path}")
    assert "lists" in message
    assert "one row for each" in message
    assert "anchor" in message
    assert "negative_1" in message
    assert "data.columns = ['" not in message


def test_a_list_that_is_named_as_a_column_is_refused_too(tmp_path: Path, judged: Path) -> None:
    rows = [LISTS["pos and neg"] | {"query": word} for word in WORDS]
    path = write(tmp_path / "a.jsonl", lines(*rows))
    message = refusal(job(path, judged, columns=["query", "pos"]))
    assert "column 'pos'" in message
    assert "one row for each" in message
    assert trained_on(job(path, judged, columns=["query"])) == [WORDS]


def test_lists_that_nobody_uses_are_in_nobodys_way(tmp_path: Path, judged: Path) -> None:
    path = write(tmp_path / "a.jsonl", lines(*({"text": word, "tokens": word.split()} for word in WORDS)))
    assert trained_on(job(path, judged)) == [WORDS]
