"""Queries, a corpus and what people call relevant: does a search by cosine find it, and early? As trec_eval counts it.

The search is exact, in tiles, shared over ranks. Of documents with equal scores, in single precision as trec_eval
compares them, the one with the higher id comes first, as there: ids are compared as text, character by character.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, cast

import numpy as np
from numpy.typing import NDArray

from jobs.config import JobConfig, components
from jobs.core.outcomes import Outcomes, RowIds, mean_of
from jobs.data.faults import counted
from jobs.data.sentences.retrieval import Columns, Retrieval, files_of, of_pairs, read_retrieval, tables_of
from jobs.data.sources import Rows, exactly, read
from jobs.data.tasks.judging import EncodeTexts

if TYPE_CHECKING:
    from torch import Tensor

TASKS = ("sentence",)

COLUMNS = ()

NDCG_AT = (10,)
MRR_AT = (10,)
RECALL_AT = (1, 10, 100)
MAP_AT = (100,)

MEASURES = (
    "ndcg_at_{ndcg_at}",
    "mrr_at_{mrr_at}",
    "recall_at_{recall_at}",
    "map_at_{map_at}",
    "alignment",
    "uniformity",
    "largest_eigenvalue_share",
    "random_pair_cosine",
)
"""The last two at the first and the last evaluation."""


class Judge:
    """Retrieval. ndcg_at, mrr_at, recall_at, map_at: how many documents each metric looks at. queries, corpus: sources
    of their own, where they do not lie beside the qrels. query_columns [id, text], corpus_columns [id, text] or [id,
    title, text], qrels_columns [query, document, relevance]: names, where they are not the usual ones. pair_columns
    [query, document]: the source is one table, in whose rows stands what is relevant to each other. skip_same_id: a
    document with the id of the query is not found for it, as in BEIR, where such a document is the query itself."""

    def __init__(
        self,
        job: JobConfig,
        *,
        ndcg_at: tuple[int, ...] = NDCG_AT,
        mrr_at: tuple[int, ...] = MRR_AT,
        recall_at: tuple[int, ...] = RECALL_AT,
        map_at: tuple[int, ...] = MAP_AT,
        queries: str | None = None,
        corpus: str | None = None,
        query_columns: list[str] | None = None,
        corpus_columns: list[str] | None = None,
        qrels_columns: list[str] | None = None,
        pair_columns: list[str] | None = None,
        skip_same_id: bool = True,
        tile: int = 1024,
    ) -> None:
        self._job, self._tile, self._skip = job, tile, skip_same_id
        self._at = {"ndcg": ndcg_at, "mrr": mrr_at, "recall": recall_at, "map": map_at}
        for name, counts in self._at.items():
            if not all(count >= 1 for count in counts):
                raise ValueError(f"{name}_at = {list(counts)}; numbers of documents are 1 or more")
        if tile < 1:
            raise ValueError(f"tile = {tile}; 1 at least is compared at once, such as 1024")
        self._beside = {"queries": queries, "corpus": corpus}
        self._pairs = _names("pair_columns", pair_columns, (2,))
        self._columns = Columns(
            _names("query_columns", query_columns, (2,)),
            _names("corpus_columns", corpus_columns, (2, 3)),
            _names("qrels_columns", qrels_columns, (3,)),
        )

    def sources(self, source: str) -> Sequence[str]:
        """Name qrels, queries and corpus; or the one table of pairs."""
        if self._pairs is not None:
            return (source,)
        files = files_of(source, **self._beside)
        return (files.qrels, files.queries, files.corpus)

    def tables(self, source: str) -> Sequence[Rows]:
        """Read qrels, queries and corpus; or the one table of pairs."""
        if self._pairs is not None:
            return (read(source, exactly, self._pairs),)
        return tables_of(files_of(source, **self._beside), self._columns)

    def read(self, source: str) -> Retrieval:
        """Read what is asked."""
        if self._pairs is not None:
            return of_pairs(*self.tables(source))
        return read_retrieval(files_of(source, **self._beside), self._columns)

    def row_ids(self, rows: Retrieval) -> RowIds:
        """Name the queries."""
        return RowIds(rows.query_ids)

    def evaluate(self, encode: EncodeTexts, rows: Retrieval, *, final: bool) -> dict[str, Outcomes]:
        """Measure what is found, how embeddings spread, and what the job asks for."""
        import torch

        from jobs.metrics.evaluate import measured, of_names
        from jobs.metrics.search import each_once

        both = each_once(encode, [*rows.queries, *rows.documents])
        queries, documents = both[: len(rows.queries)], both[len(rows.queries) :]
        plain = {f"{name}_at_{count}": (name, count) for name, counts in self._at.items() for count in counts}
        others = ("uniformity", *(("largest_eigenvalue_share", "random_pair_cosine") if final else ()))
        if not torch.isfinite(both).all():
            return dict.fromkeys([*plain, "alignment", *others], Outcomes(float("nan")))
        most = self._most()
        given = _ranked(rows, self._found(encode, queries, documents, rows, most).cpu().numpy(), most)
        metrics = {
            key: mean_of(components.called("metric", name, {"k": count})(**given))
            for key, (name, count) in plain.items()
        }
        metrics |= _alignment(rows, queries, documents)
        spread = of_names(others, len(queries), settings=self._job.evaluate, embeddings=documents)
        # No document belongs to a query, so that without some queries all documents stay.
        metrics |= {name: Outcomes(outcome.value) for name, outcome in spread.items()}
        return metrics | measured(self._job, (), len(queries), embeddings=documents, **given)

    def _most(self) -> int:
        """Return how many documents the metric looks at that looks at most: of the judge's and of those that the job
        asks for."""
        counts = [count for counts in self._at.values() for count in counts]
        for path in self._job.evaluate.metrics:
            given = self._job.evaluate.metric_options.get(components.metric_name(path), {})
            default = inspect.signature(cast("Callable[..., object]", components.load("metric", path))).parameters
            count = given.get("k", default["k"].default if "k" in default else None)
            counts += [count] if isinstance(count, int) else []
        return max(counts, default=1)

    def _found(self, encode: EncodeTexts, queries: Tensor, documents: Tensor, rows: Retrieval, most: int) -> Tensor:
        """Find so many documents of each query: rows of the corpus, [Q, K], -1 where there are fewer."""
        import torch
        import torch.nn.functional as F

        from jobs.metrics.search import top_k

        asked, known = (F.normalize(side.to(encode.device), dim=-1) for side in (queries, documents))
        descending = sorted(range(len(known)), key=rows.document_ids.__getitem__, reverse=True)
        order = np.empty(len(known), dtype=np.int64)
        order[descending] = np.arange(len(known))
        itself = {name: at for at, name in enumerate(rows.query_ids)} if self._skip else {}
        pairs = [(itself[name], at) for at, name in enumerate(rows.document_ids) if name in itself]
        _, found = top_k(
            asked,
            known,
            most,
            tile=self._tile,
            ids=order.tolist(),
            excluded=torch.tensor(pairs, dtype=torch.int64).reshape(-1, 2),
            single=True,
            group=encode.group,
        )
        return found

    def check(self, source: str, stage: str) -> Iterator[str]:  # noqa: ARG002
        """Warn of what is odd about queries, documents and judgements."""
        rows = self.read(source)
        yield from rows.notes
        itself = sum(
            document >= 0 and relevance > 0 and rows.query_ids[query] == rows.document_ids[document]
            for query, document, relevance in zip(rows.query_of, rows.document_of, rows.relevance, strict=True)
        )
        if self._skip and itself:
            yield (
                f"{source}: {counted(itself)} of its qrels call a document relevant that has the id of its query, and "
                "such a document is never found; where equal ids do not mean the same text, set "
                "evaluate.judge_options = { skip_same_id = false }"
            )


def _ranked(rows: Retrieval, found: NDArray[np.int64], most: int) -> dict[str, NDArray[np.generic]]:
    """Look up what people gave the documents that are found, as a RankingMetric asks for it, K = most."""
    count, asked = len(rows.document_ids), len(rows.query_ids)
    gains, ideal = np.zeros((asked, most)), np.zeros((asked, most))
    known = rows.document_of >= 0
    keys = (rows.query_of * count + rows.document_of)[known]
    order = np.argsort(keys)
    beyond = np.iinfo(np.int64).max
    keys, given = np.append(keys[order], beyond), np.append(rows.relevance[known][order], 0)
    wanted = np.arange(asked)[:, None] * count + found
    at = np.searchsorted(keys, wanted)
    gains[:, : found.shape[1]] = np.where((found >= 0) & (keys[at] == wanted), given[at], 0)
    best = np.lexsort((-rows.relevance, rows.query_of))
    ends = np.searchsorted(rows.query_of[best], np.arange(asked + 1))
    for query, (low, high) in enumerate(itertools.pairwise(ends.tolist())):
        own = rows.relevance[best[low : min(high, low + most)]]
        ideal[query, : len(own)] = np.maximum(own, 0)
    relevant = np.bincount(rows.query_of, weights=rows.relevance > 0, minlength=asked).astype(np.int64)
    return {"gains": gains, "ideal": ideal, "relevant": relevant}


def _alignment(rows: Retrieval, queries: Tensor, documents: Tensor) -> dict[str, Outcomes]:
    """Average |x - y|^2 of unit rows over the relevant documents of each query; nan for a query without one."""
    import torch
    import torch.nn.functional as F

    chosen = (rows.document_of >= 0) & (rows.relevance > 0)
    query_of, document_of = (torch.from_numpy(own[chosen]) for own in (rows.query_of, rows.document_of))
    pairs = (F.normalize(side.double(), dim=-1) for side in (queries[query_of], documents[document_of]))
    left, right = pairs
    apart = (left - right).square().sum(-1).numpy()
    counts = np.bincount(query_of, minlength=len(queries))
    sums = np.bincount(query_of, weights=apart, minlength=len(queries))
    of_queries = np.divide(sums, counts, out=np.full(len(queries), np.nan), where=counts > 0)
    value = float(np.nanmean(of_queries)) if counts.any() else float("nan")
    return {"alignment": Outcomes(value, {"": of_queries})} if np.isfinite(value) else {}


def _names(option: str, given: Sequence[str] | None, counts: Sequence[int]) -> tuple[str, ...] | None:
    """Return names of columns. Raises ValueError where they are not as many as there may be."""
    if given is not None and len(given) not in counts:
        raise ValueError(f"{option} = {list(given)}; name {' or '.join(map(str, counts))} columns")
    return None if given is None else tuple(given)


retrieval = Judge
