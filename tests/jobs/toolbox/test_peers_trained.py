"""The same encoder trained by the trainer of sentence-transformers and by ours, on the same pairs with the same loss
and optimizer: what both come to differs by less than seeds do."""
# mypy: ignore-errors

from __future__ import annotations

import os
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pyarrow.parquet as pq
import pytest
import torch
import transformers

from jobs import export
from jobs.config import JobConfig
from jobs.train import Training

STEPS, BATCH, LR, TAU, TOKENS = 120, 64, 1e-3, 0.05, 32

SEEDS = range(5)

ASKED = 300
"""Anchors of rows that neither is trained on: which text of these follows from each of them?"""


def shelf() -> Path:
    root = os.environ.get("ORCHESTRATOR_DATA", "")
    if not (Path(root) / "nli-triplets-en-train.parquet").exists():
        pytest.skip("nli-triplets-en-train is not under $ORCHESTRATOR_DATA")
    return Path(root)


def encoder(folder: Path, texts: list[str], seed: int) -> Any:
    """A BERT of two layers with a vocabulary of its texts, as sentence-transformers saves it."""
    st = pytest.importorskip("sentence_transformers")
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from tokenizers.implementations import BertWordPieceTokenizer

    words = BertWordPieceTokenizer()
    words.train_from_iterator(texts, vocab_size=4000, show_progress=False)
    folder.mkdir()
    words.save_model(str(folder))
    tokenizer = transformers.BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(seed)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 256}
    transformers.BertModel(transformers.BertConfig(vocab_size=len(tokenizer), **sizes)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    parts = [Transformer(str(folder), max_seq_length=TOKENS), Pooling(64)]
    whole = st.SentenceTransformer(modules=parts, device="cpu")
    whole.save(str(folder / "whole"), create_model_card=False)
    return whole


def numbers(model: Any, scored: dict[str, list[Any]], asked: dict[str, list[str]]) -> tuple[float, float]:
    """Spearman's correlation and nDCG@10, both by sentence-transformers' own evaluators."""
    from sentence_transformers.sentence_transformer.evaluation import (
        EmbeddingSimilarityEvaluator,
        InformationRetrievalEvaluator,
    )

    similar = EmbeddingSimilarityEvaluator(scored["sentence1"], scored["sentence2"], scored["score"], batch_size=256)
    corpus = {str(row): text for row, text in enumerate(asked["positive"])}
    queries = {str(row): text for row, text in enumerate(asked["anchor"])}
    search = InformationRetrievalEvaluator(
        queries, corpus, {row: {row} for row in queries}, batch_size=256, show_progress_bar=False
    )
    return float(similar(model)["spearman_cosine"]), float(search(model)["cosine_ndcg@10"])


def by_them(model: Any, rows: dict[str, list[str]], seed: int, folder: Path) -> Any:
    from datasets import Dataset
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.sentence_transformer.losses import MultipleNegativesRankingLoss

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(folder), max_steps=STEPS, learning_rate=LR, lr_scheduler_type="linear", warmup_steps=0,
        weight_decay=0.0, max_grad_norm=1.0, per_device_train_batch_size=BATCH, seed=seed, save_strategy="no",
        report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    loss = MultipleNegativesRankingLoss(model, scale=1 / TAU)
    SentenceTransformerTrainer(model, arguments, Dataset.from_dict(rows), loss=loss).train()
    return model


def by_us(folder: Path, train: Path, judged: str, seed: int, into: Path) -> Any:
    from sentence_transformers import SentenceTransformer

    job = JobConfig.model_validate(
        {
            "task": "sentence",
            "seed": seed,
            "budget": {"steps": STEPS},
            "data": {"train": str(train), "confirm": judged, "max_tokens": TOKENS},
            "model": {"name": str(folder / "whole"), "projection": "none"},
            "batch": {"size": BATCH},
            "loss": {"temperature": TAU},
            "optimizer": {"lr": LR, "schedule": "linear", "warmup": 0.0, "weight_decay": 0.0, "clip": 1.0},
            "evaluate": {"times": 1},
        }
    )
    training = Training(job, into)
    training = Training(job, into, log=lambda _: None)
    while training.result is None:
        training.advance(50)
    training.settle()
    export.export(into, into.parent / "exported")
    return SentenceTransformer(str(into.parent / "exported"), device="cpu")


@pytest.mark.soak
def test_both_come_to_the_same_within_the_noise_of_seeds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = shelf()
    whole = pq.read_table(root / "nli-triplets-en-train.parquet", columns=["anchor", "positive"])
    train, asked = whole.slice(ASKED), whole.slice(0, ASKED).to_pydict()
    pq.write_table(train, tmp_path / "train.parquet")
    rows = train.to_pydict()
    scored = pq.read_table(root / "stsb-en-dev.parquet").to_pydict()
    scored["score"] = [score / 5 for score in scored["score"]]
    theirs, ours = [], []
    for seed in SEEDS:
        home = tmp_path / str(seed)
        home.mkdir()
        model = encoder(home / "encoder", rows["anchor"] + rows["positive"], seed)
        trained = by_us(
            home / "encoder", tmp_path / "train.parquet", str(root / "stsb-en-dev.parquet"), seed, home / "us"
        )
        ours.append(numbers(trained, scored, asked))
        theirs.append(numbers(by_them(model, rows, seed, home / "them"), scored, asked))
    for at, name in enumerate(("spearman", "ndcg_at_10")):
        of_us, of_them = ([values[at] for values in side] for side in (ours, theirs))
        noise = (stdev(of_us) ** 2 / len(of_us) + stdev(of_them) ** 2 / len(of_them)) ** 0.5
        with capsys.disabled():
            print(f"\n{name}: {fmean(of_us):.4f} here, {fmean(of_them):.4f} there, standard error {noise:.4f}")  # noqa: T201
        assert abs(fmean(of_us) - fmean(of_them)) < 4 * noise
