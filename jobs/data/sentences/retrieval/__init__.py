"""Queries, a corpus of documents, and what people said of both: the qrels, in the layouts usual in the field.

    FOLDER or FOLDER:SPLIT     queries.*, corpus.*, and qrels/SPLIT.* or qrels.*; as BEIR has it, or in Parquet
    FOLDER/qrels/test.tsv      the qrels themselves: the others lie beside them, or one folder above

A file of qrels is a table with a header, lines of trec_eval (`query 0 document relevance`), or these three columns
without a header. Queries and corpus are tables; a TSV of two columns without a header is ids and texts, as MS MARCO has
it. Ids are texts. A document's title is put before its text. Without torch.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.data.faults import DataError, brief, counted, listed
from jobs.data.formats import SUFFIXES
from jobs.data.formats.lines import opened
from jobs.data.resolve import File, connected
from jobs.data.sentences.retrieval.files import Files, files_of, located, parts_of
from jobs.data.sentences.texts import as_text
from jobs.data.sources import Names, Rows, exactly, read

__all__ = ["Columns", "Files", "Retrieval", "files_of", "of_pairs", "read_retrieval", "tables_of"]

QUERY_IDS = ("_id", "id", "query_id", "query-id", "qid", "queryid")
DOCUMENT_IDS = ("_id", "id", "corpus_id", "corpus-id", "doc_id", "docid", "document_id", "pid", "passage_id")
QUERY_TEXTS = ("text", "query", "question", "title")
DOCUMENT_TEXTS = ("text", "contents", "content", "passage", "document", "body")
RELEVANCES = ("score", "relevance", "label", "rel", "grade")
TITLE = "title"

WIDTHS = (3, 4)
"""Cells of a judgement without a header: query, document and relevance; lines of trec_eval have one more."""


@dataclass(frozen=True)
class Columns:
    """Names of columns, where they are not the usual ones."""

    queries: tuple[str, ...] | None = None
    """Id and text."""

    corpus: tuple[str, ...] | None = None
    """Id and text; or id, title and text."""

    qrels: tuple[str, ...] | None = None
    """Query, document and relevance."""


@dataclass(frozen=True)
class Retrieval:
    """What an encoder is asked: Q queries, N documents, J judgements of them."""

    query_ids: list[str]
    queries: list[str]
    document_ids: list[str]
    documents: list[str]
    query_of: NDArray[np.int64]
    """[J], the query of each judgement."""

    document_of: NDArray[np.int64]
    """[J], its document; -1 for one that the corpus lacks, which is never found."""

    relevance: NDArray[np.int64]
    """[J]; above 0 is relevant."""

    notes: tuple[str, ...]
    """What is odd about them."""


def read_retrieval(files: Files, columns: Columns) -> Retrieval:
    """Read what an encoder is asked. Raises DataError."""
    return _retrieval(*tables_of(files, columns))


def of_pairs(rows: Rows) -> Retrieval:
    """Make queries of the texts in the first column of a table, and a corpus of those in the second: what stands in one
    row is relevant. A text that is there several times is one query, or one document. Raises DataError."""
    left, right = (rows.table.column_names[at] for at in (0, 1))
    named = as_text(rows, (left, right))
    columns = [named.table[name].to_pylist() for name in (left, right)]
    queries, documents = ({text: at for at, text in enumerate(dict.fromkeys(column))} for column in columns)
    pairs = np.array([*dict.fromkeys((queries[a], documents[b]) for a, b in zip(*columns, strict=True))])
    if len(queries) < 2 or len(documents) < 2:
        raise rows.fault("has one text only in a column; two queries and two documents at least are judged")
    return Retrieval(
        query_ids=[f"q{at}" for at in range(len(queries))],
        queries=list(queries),
        document_ids=[f"d{at}" for at in range(len(documents))],
        documents=list(documents),
        query_of=pairs[:, 0],
        document_of=pairs[:, 1],
        relevance=np.ones(len(pairs), dtype=np.int64),
        notes=(),
    )


def tables_of(files: Files, columns: Columns) -> tuple[Rows, Rows, Rows]:
    """Read the qrels, the queries and the corpus. Raises DataError."""
    return (
        _qrels(files.qrels, columns.qrels),
        _texts(files.queries, columns.queries, _query_columns),
        _texts(files.corpus, columns.corpus, _document_columns),
    )


def _query_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    return _chosen(file, names, wanted, QUERY_IDS, QUERY_TEXTS, key="query_columns")


def _document_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    chosen = _chosen(file, names, wanted, DOCUMENT_IDS, DOCUMENT_TEXTS, key="corpus_columns")
    has_title = wanted is None and TITLE in names and TITLE not in chosen
    return (chosen[0], TITLE, chosen[1]) if has_title else chosen


def _qrels_columns(file: str, names: Names, wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    if wanted is not None:
        return exactly(file, names, wanted)
    usual = [tuple(name for name in kind if name not in ("_id", "id")) for kind in (QUERY_IDS, DOCUMENT_IDS)]
    found = [next((name for name in kind if name in names), None) for kind in (*usual, RELEVANCES)]
    if None in found:
        what = ("query-id", "corpus-id", "score")[found.index(None)]
        raise DataError(
            f"is missing; the columns here are {listed(names)}; name yours in evaluate.judge_options = "
            "{ qrels_columns = ['query-id', 'corpus-id', 'score'] }",
            file=file,
            column=what,
        )
    return exactly(file, names, tuple(map(str, found)))


def _chosen(
    file: str,
    names: Names,
    wanted: tuple[str, ...] | None,
    ids: Sequence[str],
    texts: Sequence[str],
    *,
    key: str,
) -> tuple[str, ...]:
    if wanted is not None:
        return exactly(file, names, wanted)
    found = [next((name for name in kind if name in names), None) for kind in (ids, texts)]
    if None in found:
        what = "_id" if found[0] is None else "text"
        raise DataError(
            f"is missing; the columns here are {listed(names)}; name yours in evaluate.judge_options = "
            f"{{ {key} = ['_id', 'text'] }}",
            file=file,
            column=what,
        )
    return exactly(file, names, tuple(map(str, found)))


def _texts(source: str, wanted: tuple[str, ...] | None, choose: Callable[..., tuple[str, ...]]) -> Rows:
    """Read ids and texts: of a table, or of a TSV without a header."""
    if wanted is None and _plain_name(source).endswith(".tsv"):
        first = next(_cells(file := located(source), _tabs_or_blanks), (0, []))[1]
        if len(first) == 2 and not {*QUERY_IDS, *DOCUMENT_IDS} & {*first}:
            return _headless(source, file, ("_id", "text"))
    return read(source, choose, wanted)


def _qrels(source: str, wanted: tuple[str, ...] | None) -> Rows:
    """Read judgements: of a table, or of lines without a header."""
    plain = _plain_name(source)
    is_table = plain.endswith(SUFFIXES) and not plain.endswith((".tsv", ".txt"))
    if is_table or wanted is not None:
        return read(source, _qrels_columns, wanted)
    first = next(_cells(file := located(source), _judgement), (0, []))[1]
    if len(first) in WIDTHS and _is_number(first[-1]):
        return _headless(source, file, ("query-id", "corpus-id", "score"))
    if plain.endswith(".tsv"):
        return read(source, _qrels_columns, wanted)
    raise DataError(
        "is no file of qrels; each of its lines is `query 0 document relevance`, as trec_eval reads them", file=source
    )


def _plain_name(source: str) -> str:
    """Return what a source's name ends in: in lower case, without a query and what packs it."""
    return parts_of(source)[0].lower().removesuffix(".gz")


def _cells(file: File, split: Callable[[str], list[str]]) -> Iterator[tuple[int, list[str]]]:
    """Yield the cells of each line of a text file that is not blank, and the line's number."""
    filesystem, inside = (None, file.path) if file.uri is None else connected(file.uri)
    with opened(file.path, inside, filesystem) as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, split(line.rstrip("\r\n"))


def _tabs_or_blanks(line: str, columns: int = 0) -> list[str]:
    """Cut a line at tabs, into at most so many columns if some are given; without a tab at blanks."""
    by_tab = line.split("\t", columns - 1)
    return by_tab if len(by_tab) > 1 else line.split()


def _judgement(line: str) -> list[str]:
    """Cut a line of qrels at tabs, where ids may have blanks; or, as trec_eval does, at blanks and tabs alike."""
    by_tab = line.strip().split("\t")
    return by_tab if len(by_tab) in WIDTHS else line.split()


@functools.lru_cache(maxsize=8)
def _headless(source: str, file: File, names: tuple[str, ...]) -> Rows:
    """Read lines without a header: an id and a text, or judgements in three columns or in the four of trec_eval."""
    is_text = len(names) == 2
    widths = (2,) if is_text else WIDTHS
    split = functools.partial(_tabs_or_blanks, columns=2) if is_text else _judgement
    numbers, table = list[int](), list[list[str]]()
    for number, row in _cells(file, split):
        if len(row) not in widths:
            expected = "an id, a tab and a text" if is_text else "`query 0 document relevance`"
            raise DataError(f"has {len(row)} cells; each line is {expected}", file=source, line=number)
        numbers.append(number)
        table.append([row[0], *row[2:]] if len(row) == 4 else row)
    columns = {name: pa.array([row[at].strip() for row in table], pa.string()) for at, name in enumerate(names)}
    return Rows(
        source,
        pa.table(columns),
        ((file.path, 0, len(table)),),
        (file,),
        (numbers.__getitem__,),
        (Names(names),),
    )


def _whole(text: object) -> int | None:
    """Return a whole number, also where it is written as 1.0; None for anything else, and for more than a double
    precision number tells from its neighbours."""
    if not _is_number(text):
        return None
    number = float(str(text))
    return int(number) if number.is_integer() and abs(number) <= 2**53 else None


def _is_number(text: object) -> bool:
    try:
        float(str(text))
    except ValueError:
        return False
    return True


@functools.lru_cache(maxsize=4)
def _retrieval(qrels: Rows, queries: Rows, corpus: Rows) -> Retrieval:
    query_names, documents = (_by_id(rows) for rows in (queries, corpus))
    asked, query_at, document_at, relevance = _judgements(qrels, query_names, documents)
    if len(asked) < 2:
        raise qrels.fault(
            f"names {len(asked)} of the {len(query_names):,} queries of {queries.source}; two at least are judged, and "
            "ids must be the same in both"
        )
    if not (document_at >= 0).any():
        raise qrels.fault(f"names none of the {len(documents):,} documents of {corpus.source}; ids must be the same")
    if not (relevance > 0).any():
        raise qrels.fault("calls no document relevant; a relevance above 0 does", column=qrels.table.column_names[2])
    texts = _text(queries, queries.table.column_names[1:])
    chosen = np.array([query_names[name] for name in asked], dtype=np.int64)
    retrieval = Retrieval(
        query_ids=asked,
        queries=[texts[at] for at in chosen.tolist()],
        document_ids=list(documents),
        documents=_text(corpus, corpus.table.column_names[1:]),
        query_of=query_at,
        document_of=document_at,
        relevance=relevance,
        notes=(),
    )
    return replace(retrieval, notes=tuple(_notes(retrieval, qrels, corpus)))


def _by_id(rows: Rows) -> dict[str, int]:
    """Number the rows of a table by their ids. Raises DataError for an id that is there twice, or is none."""
    name = rows.table.column_names[0]
    places: dict[str, int] = {}
    for row, value in enumerate(_ids(rows, name)):
        if places.setdefault(value, row) != row:
            raise rows.fault(
                f"holds '{brief(value)}' as row {places[value]} does; every id is there once", column=name, row=row
            )
    return places


def _ids(rows: Rows, name: str) -> list[str]:
    column = rows.table[name]
    kind, types = column.type, pa.types
    if not (types.is_string(kind) or types.is_large_string(kind) or types.is_integer(kind)):
        raise rows.fault(f"is of type {kind}; ids are texts or whole numbers", column=name)
    values = [None if value is None else str(value).strip() for value in column.to_pylist()]
    if (row := next((row for row, value in enumerate(values) if not value), None)) is not None:
        raise rows.fault("holds no id; give the row one", column=name, row=row)
    return [value for value in values if value is not None]


def _text(rows: Rows, names: Sequence[str]) -> list[str]:
    """Join the columns of texts, row by row; a title may be missing, a text may be empty."""
    columns = []
    for name in names:
        column = rows.table[name]
        if not any(test(column.type) for test in (pa.types.is_string, pa.types.is_large_string, pa.types.is_null)):
            raise rows.fault(f"is of type {column.type}; queries and documents are texts", column=name)
        if name == names[-1] and (row := pc.index(pc.is_null(column), value=True).as_py()) >= 0:
            raise rows.fault("is null or missing; remove the row, or write its text", column=name, row=row)
        columns.append([value or "" for value in column.to_pylist()])
    return [" ".join(filter(None, (cell.strip() for cell in row))) for row in zip(*columns, strict=True)]


def _judgements(
    qrels: Rows, queries: Mapping[str, int], documents: Mapping[str, int]
) -> tuple[list[str], NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Read who judged what: the ids of the queries that are asked, and of each judgement its query among these, its
    document, -1 for one that is not there, and its relevance."""
    names = qrels.table.column_names
    query_ids, document_ids = (_ids(qrels, name) for name in names[:2])
    asked: dict[str, int] = {}
    seen: dict[tuple[str, str], int] = {}
    rows: list[tuple[int, int, int]] = []
    for row, (query, document, value) in enumerate(
        zip(query_ids, document_ids, qrels.table[names[2]].to_pylist(), strict=True)
    ):
        if (relevance := _whole(value)) is None:
            raise qrels.fault(
                f"holds '{brief(str(value))}'; a relevance is a whole number, such as 0, 1 or 2, and above 0 is "
                "relevant",
                column=names[2],
                row=row,
            )
        if seen.setdefault((query, document), row) != row:
            raise qrels.fault(
                f"judges document '{brief(document)}' for query '{brief(query)}' as row {seen[query, document]} does; "
                "every pair is judged once",
                row=row,
            )
        if query in queries:
            rows.append((asked.setdefault(query, len(asked)), documents.get(document, -1), relevance))
    table = np.array(rows, dtype=np.int64).reshape(-1, 3)
    return list(asked), table[:, 0], table[:, 1], table[:, 2]


def _notes(asked: Retrieval, qrels: Rows, corpus: Rows) -> Iterator[str]:
    """Yield what is odd about queries, documents and judgements."""
    unknown = len({*_ids(qrels, qrels.table.column_names[0])} - {*asked.query_ids})
    if unknown:
        yield f"{qrels.source} judges {_many(unknown, 'query', 'queries')} whose text is not there; they are left out"
    missing = int(((asked.document_of < 0) & (asked.relevance > 0)).sum())
    if missing:
        yield (
            f"{qrels.source} calls {_many(missing, 'document', 'documents')} relevant that {corpus.source} lacks: they "
            "count as not found, as in trec_eval"
        )
    relevant = np.bincount(asked.query_of, weights=asked.relevance > 0, minlength=len(asked.query_ids))
    if without := int((relevant == 0).sum()):
        yield f"{qrels.source} has {_many(without, 'query', 'queries')} without a relevant document: they score 0"
    for name, texts in (("query", asked.queries), ("document", asked.documents)):
        if empty := sum(not text for text in texts):
            yield f"{counted(empty)} hold a {name} without text"


def _many(count: int, one: str, several: str) -> str:
    return f"{count:,} {one if count == 1 else several}"
