"""Metrics are those of their definitions, and the same for any number of ranks."""

from __future__ import annotations

import math
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from ranks import SpawnRanks
from scipy.stats import spearmanr
from sklearn.neighbors import KNeighborsClassifier
from torch import Tensor

from jobs import data, models
from jobs.config import JobConfig
from jobs.config.components import measures
from jobs.core.outcomes import Outcomes, numbers
from jobs.metrics import evaluate as module
from jobs.metrics.builtin.knn_accuracy import knn_classify
from jobs.metrics.builtin.probe_accuracy import probe_accuracy
from jobs.metrics.builtin.spearman import rank_correlation as spearman
from jobs.metrics.builtin.uniformity import over_pairs as uniformity
from jobs.metrics.builtin.uniformity import over_pairs_without as uniformity_without
from jobs.metrics.evaluate import diverged, evaluate


def image_metrics(*given: Any, **named: Any) -> dict[str, float]:
    return numbers(module.image_metrics(*given, **named))


def sentence_metrics(*given: Any, **named: Any) -> dict[str, float]:
    return numbers(module.sentence_metrics(*given, **named))


def unit(n: int, width: int = 8, *, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return F.normalize(torch.randn(n, width, generator=torch.Generator().manual_seed(seed), dtype=dtype), dim=-1)


def labels(n: int, *, classes: int = 3, seed: int = 0) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.random.default_rng(seed).integers(0, classes, n)


# kNN


@settings(deadline=None, max_examples=20)
@given(st.integers(1, 40), st.integers(1, 30), st.integers(0, 99))
def test_knn_is_sklearns_weighted_vote(rows: int, neighbours: int, seed: int) -> None:
    references, queries, known = unit(rows, seed=seed), unit(25, seed=seed + 1), labels(rows, seed=seed)
    oracle = KNeighborsClassifier(
        min(neighbours, rows), metric="cosine", weights=lambda far: np.exp((1 - far) / 0.07), algorithm="brute"
    ).fit(references.numpy(), known)
    guessed = knn_classify(references, known, queries, neighbours=neighbours)
    assert guessed.tolist() == oracle.predict(queries.numpy()).tolist()


def test_a_near_neighbour_outweighs_two_far_ones() -> None:
    """Mutant check: a vote by count fails this."""
    references = torch.tensor([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    query = F.normalize(torch.tensor([[1.0, 0.4]]), dim=-1)
    assert knn_classify(references, np.array([7, 2, 2]), query, neighbours=3).tolist() == [7]


def test_ties_go_to_the_earlier_reference_and_the_lower_label() -> None:
    """Mutant check: taking every tied neighbour, or topk's indices in place of the first, fails this."""
    same = torch.tensor([[1.0, 0.0]]).expand(6, 2)
    assert knn_classify(same, np.array([5, 5, 1, 1, 1, 1]), same[:1], neighbours=3).tolist() == [5]
    assert knn_classify(same, np.array([5, 1, 9, 9, 9, 9]), same[:1], neighbours=2).tolist() == [1]


def test_more_queries_than_fit_at_once_are_all_classified() -> None:
    references, queries, known = unit(50), unit(2500, seed=1), labels(50)
    whole = knn_classify(references, known, queries, neighbours=5)
    alone = [knn_classify(references, known, queries[row : row + 1], neighbours=5)[0] for row in (0, 1023, 1024, 2499)]
    assert len(whole) == 2500
    assert whole[[0, 1023, 1024, 2499]].tolist() == alone


# The probe


def test_the_probe_separates_what_is_linear_whatever_the_scale_of_a_feature() -> None:
    """Mutant check: leaving out the standardisation fails this."""
    x = torch.randn(400, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    y = (x[:, 0] > 0).long().numpy()
    scaled = x * torch.tensor([1e-4, 1.0, 1e3, 0.0])
    assert probe_accuracy(scaled[:200], y[:200], scaled[200:], y[200:]).mean() > 0.95


def test_a_probe_that_does_not_settle_is_scored_without_a_warning(monkeypatch: pytest.MonkeyPatch) -> None:
    """Warnings are errors here."""
    monkeypatch.setattr("jobs.metrics.builtin.probe_accuracy.PROBE_ITERATIONS", 1)
    assert 0 <= probe_accuracy(unit(90), labels(90), unit(30, seed=1), labels(30)).mean() <= 1


def test_the_probe_is_deterministic_and_takes_a_single_class() -> None:
    first, second = (probe_accuracy(unit(90), labels(90), unit(90, seed=1), labels(90, seed=1)) for _ in range(2))
    assert first.tolist() == second.tolist()
    assert probe_accuracy(unit(9), np.ones(9), unit(4), np.array([1, 1, 0, 1])).mean() == 0.75


# Alignment, uniformity, rank correlation


def test_uniformity_is_the_mean_over_all_pairs(monkeypatch: pytest.MonkeyPatch) -> None:
    x = unit(37)
    expected = math.log(torch.exp(-2 * torch.pdist(x).square()).mean())
    assert uniformity(x) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("jobs.metrics.builtin.uniformity.ROWS_AT_ONCE", 5)
    assert uniformity(x) == pytest.approx(expected, rel=1e-12)
    monkeypatch.setattr("jobs.metrics.builtin.uniformity.UNIFORMITY_ROWS", 3)
    few = x[[0, 18, 36]]
    assert uniformity(x) == pytest.approx(math.log(torch.exp(-2 * torch.pdist(few).square()).mean()), rel=1e-12)


def test_uniformity_of_a_collapsed_encoder_is_zero() -> None:
    assert uniformity(unit(1, dtype=torch.float32).expand(50, 8)) == pytest.approx(0, abs=1e-5)


def test_alignment_of_images_is_the_mean_distance_within_labels() -> None:
    queries, wanted = unit(30), labels(30)
    far = torch.cdist(queries, queries).square()
    pairs = torch.from_numpy(wanted[:, None] == wanted) & ~torch.eye(30, dtype=torch.bool)
    metrics = image_metrics(unit(9), labels(9), 3 * queries, wanted, neighbours=2, probe=False)
    assert metrics["alignment"] == pytest.approx(float(far[pairs].mean()), rel=1e-12)
    assert set(metrics) == {"knn_accuracy", "alignment", "uniformity"}


def test_alignment_is_left_out_where_no_two_images_share_a_label() -> None:
    metrics = image_metrics(unit(9), labels(9), unit(5), np.arange(5), neighbours=2, probe=False)
    assert "alignment" not in metrics


@settings(deadline=None, max_examples=40)
@given(st.lists(st.tuples(st.integers(-5, 5), st.integers(-5, 5)), min_size=2, max_size=20))
def test_rank_correlation_is_scipys_and_zero_for_a_constant(pairs: list[tuple[int, int]]) -> None:
    a, b = np.array(pairs, dtype=np.float64).T
    if np.ptp(a) == 0 or np.ptp(b) == 0:
        assert spearman(a, b) == 0
    else:
        assert spearman(a, b) == pytest.approx(spearmanr(a, b).statistic, abs=1e-12)


def test_sentence_metrics_are_those_of_cosines_and_of_the_close_pairs() -> None:
    left, right, score = 2 * unit(40), 5 * unit(40, seed=1), np.round(np.random.default_rng(0).uniform(0, 5, 40), 1)
    score[0] = 5.0
    metrics = sentence_metrics(left, right, score)
    cosine = F.cosine_similarity(left, right).numpy()
    assert metrics["spearman"] == pytest.approx(spearmanr(cosine, score).statistic, abs=1e-12)
    a, b = F.normalize(left, dim=-1), F.normalize(right, dim=-1)
    assert metrics["alignment"] == pytest.approx(float((a - b)[score >= 4].square().sum(1).mean()), rel=1e-12)
    assert metrics["uniformity"] == uniformity(torch.cat([a, b]))


@pytest.mark.parametrize(
    ("score", "close"),
    [
        ([-1.0, -2.0, -3.0, -1.0, -1.3], [0, 3, 4]),  # the top fifth of -3 to -1 begins at -1.4
        ([0.0, -5.0, -1.0, -0.9, -4.0], [0, 2, 3]),
        ([-1e-9, -1.0, -0.3, -0.1, -0.2], [0, 3, 4]),
        ([-7.0, -7.0, -7.0, -7.0, -7.0], [0, 1, 2, 3, 4]),
        ([-1.7e308, -1e308, -1.6e308, -1.2e308, -1.3e308], [1]),
        ([1.0, 5.0, 4.0, 3.9, -9.0], [1, 2]),  # above 0: four fifths of the highest
        ([-1.0, 1.0, 0.8, 0.7, -0.5], [1, 2]),
        ([3.0, 2.4, 1.0, 0.0, 2.3999], [0, 1]),  # 0.8 * 3 is above 2.4 in fp64
        ([7.0, 5.6, 5.5, 6.0, 1.0], [0, 1, 3]),
    ],
)
def test_pairs_of_high_scores_are_found_on_any_scale(score: list[float], close: list[int]) -> None:
    """Mutant check: four fifths of a highest score below 0 are above it, and alignment that of no pair."""
    a, b = unit(5), unit(5, seed=1)
    metrics = sentence_metrics(a, b, np.array(score))
    assert list(metrics) == ["spearman", "alignment", "uniformity"]
    assert metrics["alignment"] == pytest.approx(float((a - b)[close].square().sum(1).mean()), rel=1e-12)
    assert not diverged(metrics)


def test_what_is_not_defined_is_left_out_and_decides_nothing() -> None:
    """One query has no other to be far from, and no other of its label. Mutant check: nan in place of nothing."""
    alone = image_metrics(unit(9), labels(9), unit(1), np.array([1]), neighbours=2, probe=True)
    assert set(alone) == {"knn_accuracy", "probe_accuracy"}
    assert uniformity(unit(1)) is None
    assert not diverged(alone)


def test_a_collapsed_encoder_has_not_diverged() -> None:
    """All embeddings the same, or zero: every metric has its value, 0 for a correlation with a constant."""
    for same in (unit(1).expand(12, 8), torch.zeros(12, 8, dtype=torch.float64)):
        sentences = sentence_metrics(same, same, np.arange(12) - 20.0)
        images = image_metrics(same.float(), labels(12), same.float(), labels(12), neighbours=2, probe=True)
        assert sentences["spearman"] == 0
        assert sentences["alignment"] == 0
        assert all(math.isfinite(value) for value in (*sentences.values(), *images.values()))
        assert set(images) == {"knn_accuracy", "probe_accuracy", "alignment", "uniformity"}
        assert not diverged(sentences)
        assert not diverged(images)


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), scale=st.floats(0.1, 30))
def test_a_collapsed_encoder_ranks_nothing_whatever_its_lengths(seed: int, scale: float) -> None:
    """One direction, other lengths: cosines are 1 but for rounding, by which a correlation of -0.87 was measured."""
    direction = torch.randn(1, 8, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    lengths = torch.tensor([[scale if k % 2 else 1.0] for k in range(12)], dtype=torch.float64)
    assert sentence_metrics(direction * lengths, direction.expand(12, 8), np.arange(12.0))["spearman"] == 0


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_embedding_that_is_not_finite_makes_every_metric_nan(bad: float) -> None:
    """A diverged model must not crash inside scikit-learn."""
    broken = unit(9)
    broken[3, 2] = bad
    images = image_metrics(unit(9), labels(9), broken, labels(9), neighbours=2, probe=True)
    assert set(images) == {"knn_accuracy", "probe_accuracy", "alignment", "uniformity"}
    sentences = sentence_metrics(unit(9), broken, np.arange(9))
    assert set(sentences) == {"spearman", "alignment", "uniformity"}
    assert all(math.isnan(value) for value in (images | sentences).values())
    assert diverged(images)
    assert diverged(sentences)


# The whole, on real data


def digits_job(**evaluation: Any) -> JobConfig:
    return JobConfig.model_validate(
        {
            "task": "image",
            "budget": {"steps": 1},
            "data": {"train": "digits[:400]", "confirm": "digits[1200:1300]"},
            "model": {"width": 16, "heads": 2, "patch": 4, "dropout": 0.1},
            "evaluate": {"references": 150, "batch": 40} | evaluation,
        }
    )


def sentence_job(folder: Path) -> JobConfig:
    words = ["a", "the", "cat", "dog", "sat", "ran", "on", "under", "big", "small", "red", "blue", "mat", "slowly"]
    rng = np.random.default_rng(0)
    lines = [" ".join(rng.choice(words, rng.integers(2, 12))) for _ in range(60)]
    (folder / "train.txt").write_text("\n".join(lines))
    rows = [f"{a}\t{b}\t{i % 6}" for i, (a, b) in enumerate(zip(lines[:25], lines[25:50], strict=True))]
    (folder / "sts.csv").write_text("\n".join(["sentence1,sentence2,score", *(r.replace("\t", ",") for r in rows)]))
    return JobConfig.model_validate(
        {
            "task": "sentence",
            "budget": {"steps": 1},
            "data": {"train": str(folder / "train.txt"), "confirm": str(folder / "sts.csv"), "max_tokens": 16},
            "model": {"width": 16, "heads": 2, "vocabulary": 100},
            "evaluate": {"batch": 8},
        }
    )


def measured(job: JobConfig, group: dist.ProcessGroup | None = None, *, spoil: bool = False) -> dict[str, float]:
    tokenizer = data.tokenizer_for(job) if job.task == "sentence" else None
    model = models.build(job, tokenizer=tokenizer, image_shape=(1, 8, 8))
    if spoil:
        torch.nn.init.constant_(next(model.encoder.parameters()), math.nan)
    metrics = evaluate(model, data.evaluation_data(job), job=job, tokenizer=tokenizer, group=group, final=True)
    assert model.training, "the model's mode must be left as it was"
    return metrics


def measured_by_rank(jobs: list[JobConfig], _rank: int) -> list[dict[str, float]]:
    return [measured(job, dist.group.WORLD) for job in jobs]


def test_an_untrained_encoder_is_measured_on_real_digits() -> None:
    """Random features of digits do far better than chance, which is 0.1, and every metric is there."""
    metrics = measured(digits_job())
    assert tuple(metrics) == measures("classes", {})
    assert 0.3 < metrics["knn_accuracy"] <= 1
    assert 0.3 < metrics["probe_accuracy"] <= 1
    assert metrics["uniformity"] < 0 < metrics["alignment"] < 4


def test_the_head_is_judged_where_the_job_says_so() -> None:
    assert measured(digits_job(head=True)) != measured(digits_job(head=False))


def test_the_probe_can_be_switched_off() -> None:
    assert "probe_accuracy" not in measured(digits_job(probe=False))


def test_a_diverged_model_measures_nan() -> None:
    assert all(math.isnan(value) for value in measured(digits_job(), spoil=True).values())


def test_sentences_keep_their_order_though_batches_are_cut_by_length(tmp_path: Path) -> None:
    """Against each sentence encoded alone. Mutant check: leaving the rows in the order of length fails this."""
    job = sentence_job(tmp_path)
    tokenizer = data.tokenizer_for(job)
    model = models.build(job, tokenizer=tokenizer).eval()
    pairs = data.evaluation_data(job)
    assert isinstance(pairs, data.SentenceEvaluation)
    with torch.no_grad():
        left, right = (
            torch.cat([model.encode(dict(tokenizer([text], return_tensors="pt"))) for text in texts])
            for texts in (pairs.left, pairs.right)
        )
    alone = sentence_metrics(left, right, pairs.score)
    model.train()
    whole = evaluate(model, pairs, job=job, tokenizer=tokenizer)
    assert {name: whole[name] for name in alone} == pytest.approx(alone, rel=1e-5)


@pytest.mark.soak
def test_metrics_do_not_depend_on_the_number_of_ranks(tmp_path: Path, spawn_ranks: SpawnRanks) -> None:
    """Bit for bit, on real gloo processes: three ranks share batches whose number three does not divide.

    Mutant check: gathering without putting the batches back in order fails this.
    """
    jobs = [digits_job(batch=30), sentence_job(tmp_path)]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        alone = [measured(job) for job in jobs]
    finally:
        torch.set_num_threads(threads)
    assert spawn_ranks(3, partial(measured_by_rank, jobs), timeout_s=250) == [alone] * 3


# Row by row


def test_pairs_without_a_block_are_the_metric_of_the_other_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of images and of sentences, whose two sides go together; in parts whose size divides nothing. Mutant check:
    taking away the sums of a block once in place of twice fails."""
    monkeypatch.setattr("jobs.metrics.builtin.uniformity.ROWS_AT_ONCE", 7)
    blocks = np.random.default_rng(0).integers(0, 4, 30)
    kept = [blocks != block for block in range(4)]
    queries, wanted = unit(30), labels(30)
    images = module.image_metrics(unit(9, seed=1), labels(9), queries, wanted, neighbours=2, probe=False)
    of_images = [image_metrics(unit(9), labels(9), queries[k], wanted[k], neighbours=2, probe=False) for k in kept]
    left, right, scores = unit(30, seed=2), unit(30, seed=3), np.arange(30.0)
    sentences = module.sentence_metrics(left, right, scores)
    of_sentences = [sentence_metrics(left[k], right[k], scores[k]) for k in kept]
    for outcomes, alone in ((images, of_images), (sentences, of_sentences)):
        for name in {"alignment", "uniformity", "spearman"} & outcomes.keys():
            if (without := outcomes[name].without) is not None:
                assert without(blocks) == pytest.approx([one[name] for one in alone], rel=1e-9)
    assert sentences["alignment"].is_mean
    assert images["alignment"].without is not None


def test_uniformity_without_a_block_compares_the_rows_that_uniformity_does(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("jobs.metrics.builtin.uniformity.UNIFORMITY_ROWS", 10)
    rows, blocks = unit(37), np.arange(37) % 3
    chosen = torch.linspace(0, 36, 10, dtype=torch.float64).long()
    left = [rows[chosen][torch.from_numpy(blocks[chosen.numpy()] != block)] for block in range(3)]
    expected = [uniformity(some) for some in left]
    assert uniformity_without(rows, blocks) == pytest.approx(expected, rel=1e-12)


def test_what_is_kept_of_a_row_is_its_part_of_the_metric() -> None:
    wanted, asked = labels(25, seed=1), unit(25, seed=1)
    images = module.image_metrics(unit(40), labels(40), asked, wanted, neighbours=5, probe=True)
    guessed = knn_classify(unit(40), labels(40), asked, neighbours=5)
    assert images["knn_accuracy"].columns[""].tolist() == (guessed == wanted).tolist()
    for name in ("knn_accuracy", "probe_accuracy"):
        assert float(np.mean(images[name].columns[""])) == images[name].value
    left, right, scores = unit(12, seed=2), unit(12, seed=3), np.arange(12.0)
    kept = module.sentence_metrics(left, right, scores)
    apart = kept["alignment"].columns[""]
    assert np.isnan(apart).tolist() == (scores < 8.8).tolist()
    assert float(np.nanmean(apart)) == pytest.approx(kept["alignment"].value, rel=1e-12)
    assert kept["spearman"].columns["wanted"].tolist() == scores.tolist()


def test_evaluate_gives_what_the_metrics_say_of_rows_where_it_is_asked_to() -> None:
    job, kept = digits_job(), dict[str, Outcomes]()
    model = models.build(job, image_shape=(1, 8, 8))
    metrics = evaluate(model, data.evaluation_data(job), job=job, final=True, outcomes=kept)
    assert metrics == numbers(kept)
    assert len(kept["knn_accuracy"].columns[""]) == 100
