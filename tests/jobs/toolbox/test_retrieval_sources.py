"""What retrieval reads: the layouts of the field, and what is refused of them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from judges import CORPUS, QRELS, QUERIES, beir
from pyarrow import fs
from servers import s3_server
from test_judges import sentences

from jobs import data
from jobs.config import JobConfig
from jobs.data import DataError
from jobs.data.sentences.retrieval import Retrieval
from jobs.data.tasks.judging import judge_of
from jobs.workers.node_info import missing


def asked(folder: Path, source: str, **options: Any) -> JobConfig:
    return sentences(folder, source, evaluate={"judge": "retrieval", "judge_options": options})


def retrieved(folder: Path, source: str, **options: Any) -> Retrieval:
    return judge_of(asked(folder, source, **options)).read(source)  # type: ignore[no-any-return]


def same(one: Retrieval, other: Retrieval) -> bool:
    """Whatever the layout: texts by id, judgements by ids."""

    def plain(own: Retrieval) -> Any:
        judged = {
            (own.query_ids[q], own.document_ids[d] if d >= 0 else None, int(rel))
            for q, d, rel in zip(own.query_of, own.document_of, own.relevance, strict=True)
        }
        texts = (
            dict(zip(own.query_ids, own.queries, strict=True)),
            dict(zip(own.document_ids, own.documents, strict=True)),
        )
        return judged, texts

    return bool(plain(one) == plain(other))


def qrels_lines(split: str, form: str) -> str:
    return "".join(form.format(q=q, d=d, rel=rel) for q, own in QRELS[split].items() for d, rel in own.items())


def in_parquet(folder: Path) -> str:
    folder.mkdir()
    rows = [{"id": name, "title": title, "text": text} for name, (title, text) in CORPUS.items()]
    pq.write_table(pa.Table.from_pylist(rows), folder / "corpus.parquet")
    pq.write_table(pa.table({"query_id": [*QUERIES], "query": [*QUERIES.values()]}), folder / "queries.parquet")
    judged = [(q, d, rel) for q, own in QRELS["test"].items() for d, rel in own.items()]
    columns = dict(zip(("query-id", "corpus-id", "score"), map(list, zip(*judged, strict=True)), strict=True))
    pq.write_table(pa.table(columns), folder / "qrels.parquet")
    return str(folder)


def as_trec_eval_reads_it(folder: Path) -> str:
    beir(folder)
    (folder / "judged.trec").write_text(qrels_lines("test", "{q} 0 {d} {rel}\n"))
    return str(folder / "judged.trec")


def as_ms_marco_is(folder: Path) -> str:
    """TSV without headers; titles are part of the texts."""
    folder.mkdir()
    lines = [f"{name}\t{' '.join(filter(None, cells))}" for name, cells in CORPUS.items()]
    (folder / "corpus.tsv").write_text("\n".join(lines))
    (folder / "queries.tsv").write_text("\n".join(f"{name}\t{text}" for name, text in QUERIES.items()))
    (folder / "qrels").mkdir()
    (folder / "qrels" / "test.tsv").write_text(qrels_lines("test", "{q}\t0\t{d}\t{rel}\n"))
    return str(folder)


def in_jsonl(folder: Path) -> str:
    beir(folder)
    (folder / "qrels" / "test.tsv").unlink()
    rows = [
        {"query_id": q, "doc_id": d, "relevance": rel} for q, own in QRELS["test"].items() for d, rel in own.items()
    ]
    (folder / "qrels" / "test.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder)


def the_qrels_themselves(folder: Path) -> str:
    return str(beir(folder) / "qrels" / "test.tsv")


def packed_lines_of_trec_eval(folder: Path) -> str:
    """Found in their folder by its split. Cells are apart by blanks and tabs alike, and lines end as on Windows."""
    beir(folder)
    for old in (folder / "qrels").iterdir():
        old.unlink()
    lines = qrels_lines("test", "{q}  0\t{d}  {rel} \r\n")
    (folder / "qrels" / "test.qrels.gz").write_bytes(gzip.compress(lines.encode()))
    return f"{folder}:test"


def with_a_tab_at_each_end(folder: Path) -> str:
    beir(folder)
    (folder / "qrels" / "test.tsv").write_text("\ufeff" + qrels_lines("test", "{q}\t{d}\t{rel}\t\n"))
    return str(folder)


@pytest.mark.parametrize(
    "layout",
    [
        *(in_parquet, as_trec_eval_reads_it, as_ms_marco_is, in_jsonl, the_qrels_themselves),
        *(packed_lines_of_trec_eval, with_a_tab_at_each_end),
    ],
    ids=lambda f: f.__name__,
)
def test_every_layout_is_the_same_corpus(tmp_path: Path, layout: Callable[[Path], str]) -> None:
    """As BEIR's, whose default split is `test`; documents with their title before the text."""
    plain = retrieved(tmp_path, str(beir(tmp_path / "beir")))
    assert plain.documents[0] == "Sparrows small brown birds of fields and towns"
    assert sorted(plain.query_ids) == ["q1", "q2", "q3"]
    assert same(retrieved(tmp_path, layout(tmp_path / "other")), plain)


@pytest.fixture(scope="module")
def at() -> Iterator[Callable[[str], str]]:
    """Of a path its URI, in a bucket whose server the query of each URI names."""
    with s3_server() as uri_of:
        yield uri_of


def uploaded(folder: Path, at: Callable[[str], str]) -> None:
    """Copy a folder into the bucket, under its own name."""
    for path in folder.rglob("*"):
        if path.is_file():
            store, inside = fs.FileSystem.from_uri(at(path.relative_to(folder.parent).as_posix()))
            with store.open_output_stream(inside, compression=None) as file:
                file.write(path.read_bytes())


def of_a_split(folder: Path) -> str:
    return f"{beir(folder)}:test"


@pytest.mark.parametrize(
    "layout",
    [
        *(in_parquet, as_trec_eval_reads_it, as_ms_marco_is, in_jsonl, the_qrels_themselves, of_a_split),
        *(packed_lines_of_trec_eval, with_a_tab_at_each_end),
    ],
    ids=lambda f: f.__name__,
)
def test_every_layout_is_the_same_corpus_in_a_bucket(
    tmp_path: Path, layout: Callable[[Path], str], at: Callable[[str], str]
) -> None:
    """A folder, a split after a colon, qrels with the others beside them or one folder above; what is no table too.
    The query of a URI is no part of a name. Mutant checks: a format by the end of the URI; files beside a URI looked
    for on this machine; a split cut off behind the query, where a port follows a colon."""
    name = f"{layout.__name__}-set"
    source = layout(tmp_path / name)
    uploaded(tmp_path / name, at)
    uri = at(Path(source).relative_to(tmp_path).as_posix())
    assert same(retrieved(tmp_path, uri), retrieved(tmp_path, source))


def test_a_corpus_may_lie_in_a_bucket_and_its_qrels_here(tmp_path: Path, at: Callable[[str], str]) -> None:
    folder = beir(tmp_path / "apart")
    uploaded(folder, at)
    (tmp_path / "mine.trec").write_text(qrels_lines("test", "{q} 0 {d} {rel}\n"))
    apart = {name: at(f"apart/{name}.jsonl") for name in ("queries", "corpus")}
    assert same(retrieved(tmp_path, str(tmp_path / "mine.trec"), **apart), retrieved(tmp_path, str(folder)))


def test_what_a_bucket_lacks_is_said_with_an_address_that_works(tmp_path: Path, at: Callable[[str], str]) -> None:
    folder = beir(tmp_path / "lacking")
    (folder / "corpus.jsonl").unlink()
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    uploaded(folder, at)
    with pytest.raises(DataError) as refused:
        retrieved(tmp_path, at("lacking"))
    assert f"name one: {at('lacking:dev')}" in str(refused.value)
    with pytest.raises(DataError, match=r"there is no corpus\.jsonl") as refused:
        retrieved(tmp_path, at("lacking:dev"))
    assert f"corpus = '{at('lacking/corpus.jsonl')}'" in str(refused.value)
    with pytest.raises(DataError, match=r"has no corpus\.jsonl, \.parquet or \.tsv beside it"):
        retrieved(tmp_path, at("lacking/qrels/dev.tsv"))


def test_a_split_is_named_after_a_colon_and_a_folder_by_its_name_under_the_root(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = beir(tmp_path / "corpora" / "birds")
    dev = retrieved(tmp_path, f"{folder}:dev")
    assert dev.query_ids == ["q2", "q5"]
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path / "corpora"))
    assert same(retrieved(tmp_path, "birds:dev"), dev)
    assert missing([f"{folder}:dev", f"{tmp_path}/gone:dev"]).keys() == {f"{tmp_path}/gone:dev"}
    assert same(retrieved(tmp_path, f"file://{folder}:dev"), dev)


def test_columns_and_files_of_other_names_are_named(tmp_path: Path) -> None:
    folder = beir(tmp_path / "beir")
    other = [{"no": name, "head": title, "words": text} for name, (title, text) in CORPUS.items()]
    (tmp_path / "passages.jsonl").write_text("".join(json.dumps(row) + "\n" for row in other))
    (folder / "corpus.jsonl").unlink()
    with pytest.raises(DataError, match=r"there is no corpus.jsonl.*judge_options = \{ corpus = "):
        retrieved(tmp_path, str(folder))
    options = {"corpus": str(tmp_path / "passages.jsonl"), "corpus_columns": ["no", "head", "words"]}
    found = retrieved(tmp_path, str(folder), **options)
    assert same(found, retrieved(tmp_path, str(beir(tmp_path / "again"))))
    with pytest.raises(ValueError, match=r"corpus_columns = \['no'\]; name 2 or 3 columns"):
        retrieved(tmp_path, str(folder), corpus_columns=["no"])


def test_a_table_of_pairs_is_queries_and_a_corpus(tmp_path: Path) -> None:
    """What stands in one row is relevant; a text that comes again is one. Slices are of rows."""
    rows = [("a", "x"), ("b", "y"), ("a", "z"), ("c", "x"), ("a", "x")]
    (tmp_path / "pairs.csv").write_text("\n".join(["ask,tell", *map(",".join, rows)]))
    found = retrieved(tmp_path, f"{tmp_path}/pairs.csv", pair_columns=["ask", "tell"])
    assert (found.queries, found.documents) == (["a", "b", "c"], ["x", "y", "z"])
    assert {*zip(found.query_of.tolist(), found.document_of.tolist(), strict=True)} == {(0, 0), (1, 1), (0, 2), (2, 0)}
    assert retrieved(tmp_path, f"{tmp_path}/pairs.csv[:2]", pair_columns=["ask", "tell"]).queries == ["a", "b"]


Break = Callable[[Path], object]


def line_more(name: str, text: str) -> Break:
    def change(folder: Path) -> None:
        with (folder / name).open("a") as file:
            file.write(text + "\n")

    return change


def only(lines: str, head: str = "query-id\tcorpus-id\tscore") -> Break:
    return lambda folder: (folder / "qrels" / "test.tsv").write_text(f"{head}\n{lines}\n")


@pytest.mark.parametrize(
    ("broken", "words"),
    [
        (line_more("corpus.jsonl", '{"_id": "d2", "title": "", "text": "x"}'), r"row 8 .*'d2' as row 1 does.*line 9"),
        (line_more("queries.jsonl", '{"_id": "q1", "text": "again"}'), "holds 'q1' as row 0 does"),
        (line_more("qrels/test.tsv", "q1\td2\t1"), "judges document 'd2' for query 'q1' as row 0 does"),
        (line_more("qrels/test.tsv", "q1\td9\t0.5"), r"holds '0.5'; a relevance is a whole number.*line 10"),
        (line_more("qrels/test.tsv", "q1\td9\tmuch"), "holds 'much'"),
        (line_more("corpus.jsonl", '{"_id": "", "title": "", "text": "x"}'), "holds no id"),
        (line_more("corpus.jsonl", '{"_id": "d9", "title": ""}'), "is null or missing; remove the row"),
        (lambda at: (at / "qrels" / "test.tsv").unlink() or (at / "qrels" / "dev.tsv").unlink(), "holds no qrels"),
        (lambda at: (at / "queries.parquet").write_bytes(b""), "could be .*queries.jsonl or .*queries.parquet"),
        (only("z\td1\t1"), "names 0 of the 5"),
        (only("q1\td1\t0\nq2\td1\t0"), "calls no document relevant"),
        (only("q1\tz\t1\nq2\tz\t1"), "names none of the 8 documents"),
        (only("q1\td1\t1e30"), "holds '1e30'; a relevance is a whole number, such as 0, 1 or 2"),
        (only("q2\td1\t1", "q1\td1\t0.5"), r"holds '0.5'; a relevance is a whole number.*line 1 "),
        (only("q1\td1\t1", "a\tb\tc"), r"qrels_columns = \['query-id'"),
    ],
)  # fmt: skip
def test_what_cannot_be_judged_is_refused_in_words(tmp_path: Path, broken: Break, words: str) -> None:
    folder = beir(tmp_path / "beir")
    broken(folder)
    with pytest.raises(DataError, match=words):
        retrieved(tmp_path, str(folder))


def test_a_source_that_is_no_corpus_is_refused_in_words(tmp_path: Path) -> None:
    folder = beir(tmp_path / "beir")
    for source, words in (
        (f"{folder}[:3]", "ends in a slice of rows"),
        (f"{folder}:train", "has no qrels/train; there are dev, test"),
        (str(tmp_path / "nowhere"), "there is no such file|is neither a file here nor a name"),
    ):
        with pytest.raises(DataError, match=words):
            retrieved(tmp_path, source)
    (folder / "qrels" / "test.tsv").rename(folder / "qrels" / "train.tsv")
    with pytest.raises(DataError, match=f"several splits: dev, train; name one: {folder}:dev"):
        retrieved(tmp_path, str(folder))


def test_what_is_odd_is_counted(tmp_path: Path) -> None:
    """And splits of one corpus do not overlap, though they share its files; the same qrels do."""
    folder = beir(tmp_path / "beir")
    more = "q1\tgone\t1\nq9\td1\t1\nq4\td1\t0\n"
    (folder / "qrels" / "test.tsv").write_text((folder / "qrels" / "test.tsv").read_text() + more)
    (folder / "corpus.jsonl").write_text(
        (folder / "corpus.jsonl").read_text() + '{"_id": "d0", "title": "", "text": ""}\n'
    )
    config = asked(tmp_path, str(folder))
    warned = data.check(config)
    for words in (
        "judges 1 query whose text is not there",
        "calls 1 document relevant that",
        "has 1 query without a relevant document: they score 0",
        "1 row hold a document without text",
    ):
        assert any(words in line for line in warned), (words, warned)
    both = config.data.model_copy(update={"tune": f"{folder}:dev"})
    assert not any("share" in line for line in data.check(config.model_copy(update={"data": both})))
    twice = config.data.model_copy(update={"tune": str(folder)})
    assert any(
        "the verdict is on rows that tuning has seen" in line
        for line in data.check(config.model_copy(update={"data": twice}))
    )


def test_relevant_documents_that_are_never_found_are_counted(tmp_path: Path) -> None:
    """Numbers as ids, as MS MARCO has them, are the same for queries and documents, and not the same texts. Mutant
    check: without the note all scores are 0, and nothing says why."""
    for name, texts in {"queries": ["one", "two"], "corpus": ["1", "2", "3"]}.items():
        lines = (json.dumps({"_id": at, "text": text}) for at, text in enumerate(texts))
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    (tmp_path / "qrels.trec").write_text("0 0 0 1\n0 0 1 1\n1 0 1 2\n1 0 2 0\n")
    (note,) = (line for line in data.check(asked(tmp_path, str(tmp_path))) if "skip_same_id" in line)
    assert "2 rows of its qrels call a document relevant that has the id of its query" in note
    without = data.check(asked(tmp_path, str(tmp_path), skip_same_id=False))
    assert not any("skip_same_id" in line for line in without)


def test_a_document_that_changes_is_noticed(tmp_path: Path) -> None:
    """By the files of all three, and by what is in them."""
    folder = beir(tmp_path / "beir")
    config = asked(tmp_path, str(folder))
    before = data.digests(config)
    (key,) = (key for key in before if key.startswith("data.confirm"))
    assert len(before[key]["files"]) == 3  # type: ignore[arg-type]
    (folder / "corpus.jsonl").write_text((folder / "corpus.jsonl").read_text().replace("brown", "grey"))
    assert data.digests(config, before)[key]["digest"] != before[key]["digest"]
    assert data.fingerprint(config) is not None
    assert np.array_equal(
        replace(retrieved(tmp_path, str(folder)), notes=()).relevance, retrieved(tmp_path, str(folder)).relevance
    )
