"""Built-in metrics and judges against their oracles. A built-in metric without one fails the collection."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import judges as oracles
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from test_judges import sentences

from jobs.config import JobConfig, components
from jobs.core.outcomes import Outcomes, RowIds, numbers
from jobs.data.sentences.retrieval import Retrieval
from jobs.data.tasks.judging import judge_of
from jobs.metrics.builtin.v_measure import agreement, first_centres, settled
from jobs.metrics.evaluate import measured

PROVEN = {
    "knn_accuracy": "tests/jobs/test_evaluate.py",
    "probe_accuracy": "tests/jobs/test_evaluate.py",
    "alignment": "tests/jobs/test_evaluate.py",
    "uniformity": "tests/jobs/test_evaluate.py",
    "spearman": "tests/jobs/test_evaluate.py",
    **dict.fromkeys(
        (
            *("pearson", "average_precision", "pair_accuracy", "pair_f1", "v_measure"),
            *("largest_eigenvalue_share", "random_pair_cosine", "ndcg", "mrr", "recall", "map"),
        ),
        "tests/jobs/toolbox/test_judged_numbers.py",
    ),
}
"""Where each built-in metric is compared with an oracle."""

if without := sorted({*components.builtin_names("metric")} - {*PROVEN}):
    raise pytest.UsageError(f"a built-in metric is proven before it is one; nothing says where {without} are")

AT = {"ndcg": [1, 3, 10], "mrr": [2, 10], "recall": [1, 4], "map": [3, 100]}


def job(judge: str, **options: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 1},
            "data": {"train": "x", "confirm": "y"},
            "evaluate": {"judge": judge, "judge_options": options, "neighbours": 3},
        }
    )


def called(name: str, **embedded: Any) -> Any:
    return components.called("metric", name, {})(settings=job("sts").evaluate, **embedded)


def some_rows(random: np.random.Generator, count: int, width: int) -> np.ndarray[Any, np.dtype[np.float64]]:
    """Rows of which several are equal: whose cosines are, too. (Cosines of other rows that are equal on paper differ by
    what rounding of the rows leaves.)"""
    pool = random.normal(size=(1 + count // 2, width))
    pool[0] = 0
    return pool[random.integers(0, len(pool), count)]


# Retrieval


@st.composite
def searches(draw: Any) -> tuple[Retrieval, np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Queries and documents with few different embeddings, one of them zeros, so that there are ties; relevances from
    -1 to 3, of documents that are there or not."""
    seed, asked, known = draw(st.integers(0, 2**31)), draw(st.integers(2, 6)), draw(st.integers(1, 30))
    random = np.random.default_rng(seed)
    names = [f"{'dD9é'[at % 4]}{at}" for at in range(known)]
    random.shuffle(names)
    pairs = [
        (q, d) for q in range(asked) for d in range(-1, known) if random.random() < draw(st.sampled_from([0.1, 0.9]))
    ]
    pairs += [(q, -1) for q in range(asked) if not any(q == other for other, _ in pairs)]
    retrieval = Retrieval(
        [f"q{at}" for at in range(asked)],
        [f"query {at}" for at in range(asked)],
        names,
        [f"document {at}" for at in range(known)],
        np.array([q for q, _ in pairs]),
        np.array([d for _, d in pairs]),
        random.integers(-1, 4, len(pairs)),
        (),
    )
    width = draw(st.integers(1, 3))
    return retrieval, some_rows(random, asked, width), some_rows(random, known, width)


@given(searches(), st.sampled_from([1, 3, 1000]))
@settings(max_examples=40)
def test_retrieval_has_the_numbers_of_trec_eval_by_query(
    search: tuple[Retrieval, np.ndarray[Any, Any], np.ndarray[Any, Any]], tile: int
) -> None:
    """With ties, queries without a relevant document, and relevant documents that are not there. Mutant checks: ties by
    ascending ids, the ideal of the documents that are there, and a gain of 2^rel - 1 fail."""
    rows, asked, known = search
    judge = judge_of(job("retrieval", **{f"{name}_at": counts for name, counts in AT.items()}, tile=tile))
    encode = oracles.Table(dict(zip([*rows.queries, *rows.documents], [*asked, *known], strict=True)))
    found = judge.evaluate(encode, rows, final=True)
    scores = oracles.unit(asked) @ oracles.unit(known).T
    run = {
        name: {other: float(scores[q, d]) for d, other in enumerate(rows.document_ids)}
        for q, name in enumerate(rows.query_ids)
    }
    qrels: dict[str, dict[str, int]] = {}
    for number, (q, d, rel) in enumerate(zip(rows.query_of, rows.document_of, rows.relevance, strict=True)):
        qrels.setdefault(rows.query_ids[q], {})[rows.document_ids[d] if d >= 0 else f"gone {number}"] = int(rel)
    for name, by_query in oracles.trec(run, qrels, AT).items():
        expected = [by_query[query] for query in rows.query_ids]
        assert found[name].columns[""].tolist() == pytest.approx(expected, abs=1e-6), name
        assert found[name].value == pytest.approx(np.mean(expected), abs=1e-6)


def test_a_larger_search_with_embeddings_like_real_ones_is_trec_evals(tmp_path: Path) -> None:
    random = np.random.default_rng(3)
    asked, known = random.normal(size=(20, 24)) + 1, random.normal(size=(900, 24)) + 1
    known[:20] = asked
    pairs = [(q, int(d)) for q in range(20) for d in random.choice(900, 12, replace=False)]
    rows = Retrieval(
        [str(at) for at in range(20)],
        [f"query {at}" for at in range(20)],
        [str(at) for at in range(900)],
        [f"document {at}" for at in range(900)],
        np.array([q for q, _ in pairs]),
        np.array([d for _, d in pairs]),
        random.integers(0, 3, len(pairs)),
        (),
    )
    encode = oracles.Table(dict(zip([*rows.queries, *rows.documents], [*asked, *known], strict=True)))
    found = numbers(judge_of(job("retrieval", skip_same_id=False)).evaluate(encode, rows, final=False))
    scores = oracles.unit(asked) @ oracles.unit(known).T
    run = {str(q): {str(d): float(scores[q, d]) for d in range(900)} for q in range(20)}
    qrels: dict[str, dict[str, int]] = {}
    for q, d, rel in zip(rows.query_of, rows.document_of, rows.relevance, strict=True):
        qrels.setdefault(str(q), {})[str(d)] = int(rel)
    at = {"ndcg": [10], "mrr": [10], "recall": [1, 10, 100], "map": [100]}
    for name, by_query in oracles.trec(run, qrels, at).items():
        assert found[name] == pytest.approx(np.mean([*by_query.values()]), abs=1e-6), name
    skipped = numbers(judge_of(job("retrieval")).evaluate(encode, rows, final=False))
    for query, found_documents in run.items():
        del found_documents[query]  # the document that is the query, as BEIR takes it away
    for name, by_query in oracles.trec(run, qrels, at).items():
        assert skipped[name] == pytest.approx(np.mean([*by_query.values()]), abs=1e-6), name
    assert all(skipped[name] != found[name] for name in ("ndcg_at_10", "map_at_100"))


# Pairs and translations


@given(st.integers(0, 2**31), st.integers(3, 40), st.integers(1, 4))
@settings(max_examples=40)
def test_pairs_are_told_by_a_threshold_of_the_other_half(seed: int, count: int, width: int) -> None:
    """Accuracy row by row, F1 and average precision. Mutant check: the threshold of all rows, or of the half itself,
    fails."""
    random = np.random.default_rng(seed)
    left, right = (some_rows(random, count, width) for _ in range(2))
    labels = random.integers(0, 2, count).astype(float)
    labels[0] = 1
    halves = RowIds.positions(count).halves
    embedded = {"left": torch.from_numpy(left), "right": torch.from_numpy(right), "scores": labels, "halves": halves}
    cosine = oracles.cosine(left, right)
    says = oracles.told_by_other_half(cosine, labels > 0, halves, oracles.accuracy)
    assert called("pair_accuracy", **embedded).tolist() == [
        said == (own > 0) for said, own in zip(says, labels, strict=True)
    ]
    by_f1 = np.array(oracles.told_by_other_half(cosine, labels > 0, halves, oracles.f1))
    assert called("pair_f1", **embedded).value == pytest.approx(oracles.f1(by_f1, labels > 0), rel=1e-12)
    expected = oracles.average_precision(left, right, labels)
    assert called("average_precision", **embedded).value == pytest.approx(expected, rel=1e-9)


def test_halves_are_halves_and_keep_groups_together() -> None:
    """The same whatever the order of the rows."""
    ids = RowIds(range(1001), [at // 3 for at in range(1001)])
    halves = ids.halves
    assert abs(int(halves.sum()) - 500) <= 3
    assert all(len({*halves[at : at + 3].tolist()}) == 1 for at in range(0, 999, 3))
    order = np.random.default_rng(0).permutation(1001).tolist()
    again = RowIds([ids.ids[at] for at in order], [at // 3 for at in order]).halves
    assert (again == halves[order]).all() or (again == 1 - halves[order]).all()


@given(st.integers(0, 2**31), st.integers(2, 25), st.integers(1, 3))
@settings(max_examples=40)
def test_bitext_finds_translations_both_ways(seed: int, count: int, width: int) -> None:
    """With ties, which go to the earlier row. Mutant check: ties to the row itself fail."""
    random = np.random.default_rng(seed)
    left, right = (some_rows(random, count, width) for _ in range(2))
    rows = judged_bitext(count)
    encode = oracles.Table(dict(zip([*rows.left, *rows.right], [*left, *right], strict=True)))
    found = judge_of(job("bitext")).evaluate(encode, rows, final=False)
    ahead, back = np.array(oracles.places(left, right)), np.array(oracles.places(right, left))
    expected = {
        "accuracy_forward": ahead == 1,
        "accuracy_backward": back == 1,
        "accuracy": ((ahead == 1).astype(float) + (back == 1)) / 2,
        "mrr_forward": 1 / ahead,
        "mrr_backward": 1 / back,
        "mrr": (1 / ahead + 1 / back) / 2,
    }
    for name, by_row in expected.items():
        assert found[name].columns[""].tolist() == pytest.approx(by_row.astype(float).tolist(), rel=1e-12), name


def judged_bitext(count: int) -> Any:
    from pyarrow import table

    from jobs.data.sentences.judged import BitextEvaluation
    from jobs.data.sources import Names, Rows

    left, right = ([f"{side} {at}" for at in range(count)] for side in ("left", "right"))
    rows = Rows("x", table({"left": left, "right": right}), (("x", 0, count),), (), (), (Names(("left", "right")),))
    return BitextEvaluation(left, right, rows)


# Correlation, isotropy, clusters


@given(st.integers(0, 2**31), st.integers(3, 30), st.integers(2, 6))
@settings(max_examples=40)
def test_correlation_and_isotropy_are_those_of_their_definitions(seed: int, count: int, width: int) -> None:
    random = np.random.default_rng(seed)
    left, right, scores = (
        random.normal(size=(count, width)),
        random.normal(size=(count, width)),
        random.normal(size=count),
    )
    found = called("pearson", left=torch.from_numpy(left), right=torch.from_numpy(right), scores=scores)
    assert found.value == pytest.approx(oracles.pearson(left, right, scores), abs=1e-9)
    rows = left + random.normal(size=width)
    for name in ("largest_eigenvalue_share", "random_pair_cosine"):
        value = called(name, embeddings=torch.from_numpy(rows))
        assert value == pytest.approx(getattr(oracles, name)(rows), rel=1e-9, abs=1e-12), name


def test_isotropy_is_computed_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rows = np.random.default_rng(0).normal(size=(40, 3)) + 1
    for name in ("largest_eigenvalue_share", "random_pair_cosine"):
        monkeypatch.setattr(f"jobs.metrics.builtin.isotropy.{name}.ROWS_AT_ONCE", 7)
        assert called(name, embeddings=torch.from_numpy(rows)) == pytest.approx(getattr(oracles, name)(rows), rel=1e-9)


def test_isotropy_of_an_encoder_that_has_collapsed() -> None:
    """All cosines are 1, and there is no variance to have a share of."""
    same = torch.ones(12, 5)
    assert called("random_pair_cosine", embeddings=same) == pytest.approx(1)
    assert called("largest_eigenvalue_share", embeddings=same) is None
    assert called("random_pair_cosine", embeddings=same[:1]) is None
    line = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [1.0, 0.0]])
    assert called("largest_eigenvalue_share", embeddings=line) == pytest.approx(1)
    assert called("pearson", left=same, right=same, scores=np.arange(12.0)).value == 0


@given(st.integers(0, 2**31), st.integers(2, 6))
@settings(max_examples=20)
def test_clusters_are_those_of_scikit_learn_from_the_same_centres(seed: int, count: int) -> None:
    """And their agreement with labels that of its V-measure, and that of an oracle from entropies."""
    from sklearn.cluster import KMeans
    from sklearn.metrics import v_measure_score

    random = np.random.default_rng(seed)
    rows = oracles.unit(random.normal(size=(60, 3)) + 2 * np.eye(3)[random.integers(0, 3, 60)])
    centres = first_centres(rows, count, random)
    assert all(any(np.array_equal(centre, row) for row in rows) for centre in centres)
    found, squares = settled(rows, centres)
    peer = KMeans(count, init=centres, n_init=1, max_iter=1000, tol=0).fit(rows)
    assert found.tolist() == peer.labels_.tolist()
    assert squares == pytest.approx(peer.inertia_, rel=1e-9)
    labels = random.integers(0, 4, 60)
    assert agreement(labels, found) == pytest.approx(v_measure_score(labels, found), abs=1e-12)
    assert agreement(labels, found) == pytest.approx(oracles.v_measure(labels.tolist(), found.tolist()), abs=1e-12)


def test_clusters_that_fall_together_with_labels_and_those_that_do_not() -> None:
    """The same each time, and the tightest of some starts."""
    random = np.random.default_rng(0)
    centres = np.eye(3)[random.integers(0, 3, 60)]
    labels = np.array(["a", "b", "c"])[centres.argmax(1)]
    rows = centres + 0.4 * random.normal(size=(60, 3))
    value = called("v_measure", queries=torch.from_numpy(rows), query_labels=labels)
    assert 0.3 < value < 1
    assert called("v_measure", queries=torch.from_numpy(rows), query_labels=labels) == value
    assert called("v_measure", queries=torch.from_numpy(centres), query_labels=labels) == pytest.approx(1)
    assert called("v_measure", queries=torch.ones(9, 2), query_labels=labels[:9]) is None
    assert called("v_measure", queries=torch.from_numpy(rows), query_labels=np.array(["a"] * 60)) is None


def test_sentences_learn_each_half_from_the_other(tmp_path: Path) -> None:
    """kNN by scikit-learn of the other half. Mutant check: learning from all rows finds the row itself."""
    from sklearn.neighbors import KNeighborsClassifier

    random = np.random.default_rng(1)
    labels = random.integers(0, 3, 40)
    vectors = np.eye(3)[labels] + 0.5 * random.normal(size=(40, 3))
    texts = [f"text {at}" for at in range(40)]
    (tmp_path / "own.csv").write_text(
        "\n".join(["text,label", *(f"{t},c{n}" for t, n in zip(texts, labels, strict=True))])
    )
    judge = judge_of(sentences(tmp_path, "own.csv", evaluate={"judge": "classes", "neighbours": 3}))
    rows = judge.read(str(tmp_path / "own.csv"))
    found = judge.evaluate(oracles.Table(dict(zip(texts, vectors, strict=True))), rows, final=True)
    halves, near, right = judge.row_ids(rows).halves, oracles.unit(vectors), np.zeros(40, dtype=bool)
    for half in (0, 1):
        knn = KNeighborsClassifier(3, metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07), algorithm="brute")
        knn.fit(near[halves != half], labels[halves != half])
        right[halves == half] = knn.predict(near[halves == half]) == labels[halves == half]
    assert found["knn_accuracy"].columns[""].tolist() == right.tolist()
    assert {"probe_accuracy", "v_measure", "alignment", "largest_eigenvalue_share"} <= found.keys()
    (tmp_path / "more.csv").write_text((tmp_path / "own.csv").read_text())
    evaluation = {"judge": "classes", "neighbours": 1, "judge_options": {"references": str(tmp_path / "more.csv")}}
    judge = judge_of(sentences(tmp_path, "own.csv", evaluate=evaluation))
    rows = judge.read(str(tmp_path / "own.csv"))
    assert (
        numbers(judge.evaluate(oracles.Table(dict(zip(texts, vectors, strict=True))), rows, final=False))[
            "knn_accuracy"
        ]
        == 1
    )


# What is kept of rows


@pytest.mark.parametrize("judge", ["sts", "pairs", "bitext", "classes", "retrieval"])
def test_what_is_not_finite_is_not_a_number_in_every_metric(judge: str, tmp_path: Path) -> None:
    from test_judges import judged_source

    judging = judge_of(sentences(tmp_path, "x", evaluate={"judge": judge}))
    rows = judging.read(judged_source(judge, tmp_path))

    class Broken:
        group, device = None, "cpu"

        def __call__(self, texts: list[str]) -> torch.Tensor:
            return torch.full((len(texts), 4), math.nan)

    found = judging.evaluate(Broken(), rows, final=True)
    assert all(isinstance(outcome, Outcomes) and math.isnan(outcome.value) for outcome in found.values())
    assert {*found} == {*components.measures(judge, {})}


# What a job asks for


def asked(judge: str, **evaluation: Any) -> dict[str, Outcomes]:
    whole = job(judge)
    given = whole.model_dump() | {"evaluate": whole.evaluate.model_dump() | evaluation}
    draw = torch.Generator().manual_seed(0)
    left, right = (torch.randn(12, 4, generator=draw) for _ in range(2))
    pairs: dict[str, Any] = {
        "left": left,
        "right": right,
        "scores": np.arange(12.0),
        "embeddings": torch.cat([left, right]),
    }
    return measured(JobConfig.model_validate(given), ["spearman", "pearson"], 12, **pairs)


def test_a_metric_of_ones_own_replaces_a_built_in_one_of_its_name(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """So that a sweep goes on that was written before there was one. Of those of ever the name is taken."""
    (tmp_path / "own_numbers.py").write_text("def pearson(left, scores):\n    return len(left) + scores[0]\n")
    monkeypatch.syspath_prepend(tmp_path)
    found = asked("sts", metrics=["own_numbers:pearson"])
    assert found["pearson"].value == 12
    assert found["spearman"].value == asked("sts")["spearman"].value
    with pytest.raises(ValidationError, match="is called spearman, as another one is"):
        asked("sts", metrics=["own_numbers:spearman"])


def test_a_built_in_metric_that_is_named_has_its_options() -> None:
    """And is measured where it is not anyway."""
    found = asked("sts", metrics=["random_pair_cosine"])
    assert list(found) == ["spearman", "pearson", "random_pair_cosine"]
    rows = np.array([[3, 0, 1.0], [0, 2, 0]])
    given = {"gains": rows, "ideal": -np.sort(-rows), "relevant": np.array([2, 1])}
    whole = job("retrieval")
    evaluation = {"metrics": ["mrr"], "metric_options": {"mrr": {"k": 1}}}
    config = JobConfig.model_validate(whole.model_dump() | {"evaluate": whole.evaluate.model_dump() | evaluation})
    assert measured(config, [], 2, **given)["mrr"].columns[""].tolist() == [1, 0]


def test_a_metric_that_looks_at_more_documents_than_the_judge_has_them(tmp_path: Path) -> None:
    """By its option k, or by the default of it. Mutant check: as many as `recall_at` alone asks for."""
    at: dict[str, Any] = {"ndcg_at": [], "mrr_at": [], "map_at": []}
    rows = Retrieval(
        ["q0", "q1"], ["a", "b"], ["d0", "d1", "d2"], ["x", "y", "z"],
        np.array([0, 1]), np.array([2, 0]), np.array([1, 1]), (),
    )  # fmt: skip
    encode = oracles.Table({"a": [1, 0], "b": [0, 1], "x": [1, 0.1], "y": [1, 0.2], "z": [1, 0.3]})
    asked_for = {"metrics": ["recall", "mrr"], "metric_options": {"recall": {"k": 3}}}
    whole = job("retrieval", recall_at=[1], **at).model_dump()
    config = JobConfig.model_validate(whole | {"evaluate": whole["evaluate"] | asked_for})
    found = numbers(judge_of(config).evaluate(encode, rows, final=False))
    assert (found["recall_at_1"], found["recall"], found["mrr"]) == (0, 1, 1 / 3)
    with pytest.raises(ValueError, match="tile = 0; 1 at least"):
        judge_of(job("retrieval", tile=0))


def test_a_built_in_metric_of_what_is_not_there_is_refused_in_words() -> None:
    with pytest.raises(ValueError, match="ndcg is computed of gains, ideal, which this judge does not give"):
        asked("sts", metrics=["ndcg"])
    assert list(asked("sts", metrics=["knn_accuracy"])) == ["spearman", "pearson"]  # as ever
