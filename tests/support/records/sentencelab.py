"""A sentence-transformers trainer as a user's task, on a small encoder made from a config: no weights from anywhere."""
# mypy: ignore-errors

from __future__ import annotations

from typing import Any

import numpy as np


def encoder(texts: list[str], folder: Any, seed: int) -> Any:
    """A BERT of two layers with a WordPiece vocabulary of its texts, as sentence-transformers loads it."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.models import Pooling, Transformer
    from tokenizers.implementations import BertWordPieceTokenizer
    from transformers import BertConfig, BertModel, BertTokenizerFast

    words = BertWordPieceTokenizer()
    words.train_from_iterator(texts, vocab_size=200, show_progress=False)
    words.save_model(str(folder))
    tokenizer = BertTokenizerFast(vocab=str(folder / "vocab.txt"))
    torch.manual_seed(seed)
    shape = {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32}
    BertModel(BertConfig(vocab_size=len(tokenizer), **shape)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformer = Transformer(str(folder), max_seq_length=16)
    return SentenceTransformer(modules=[transformer, Pooling(16)], device="cpu")


def main(config: Any, context: Any) -> None:
    """Train by MultipleNegativesRankingLoss; report Spearman's correlation every four steps."""
    from datasets import Dataset
    from scipy.stats import spearmanr
    from sentence_transformers import SentenceTransformerTrainer, SentenceTransformerTrainingArguments
    from sentence_transformers.losses import MultipleNegativesRankingLoss
    from transformers import TrainerCallback

    from jobs.data import open_table

    pairs, judged = open_table(config.data.train), open_table(context.data)
    texts = pairs["anchor"].to_pylist() + pairs["positive"].to_pylist()
    model = encoder(texts, context.checkpoint_dir.parent, context.seed)

    class Reports(TrainerCallback):  # type: ignore[misc]
        """What the trainer tells our scheduler, and hears from it."""

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step % 4 == 0:
                left, right = (model.encode(judged[name].to_pylist()) for name in ("sentence1", "sentence2"))
                cosine = (left * right).sum(1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)
                context.report(
                    {"spearman": float(spearmanr(cosine, judged["score"].to_pylist())[0])}, state.global_step
                )
            control.should_save = state.global_step % 4 == 0
            control.should_training_stop = bool(context.should_stop)

    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(context.checkpoint_dir), max_steps=config.budget.steps,
        learning_rate=config.options["lr"], per_device_train_batch_size=8, seed=context.seed, save_total_limit=2,
        report_to="none", disable_tqdm=True, use_cpu=True,
    )  # fmt: skip
    rows = Dataset.from_dict({name: pairs[name].to_pylist() for name in ("anchor", "positive")})
    loss = MultipleNegativesRankingLoss(model)
    trainer = SentenceTransformerTrainer(model, arguments, rows, loss=loss, callbacks=[Reports()])
    # A kill may have left the newest one half written: the trainer writes this file last.
    whole = [path.parent for path in context.checkpoint_dir.glob("checkpoint-*/trainer_state.json")]
    newest = max(whole, key=lambda path: int(path.name.rpartition("-")[2]), default=None)
    trainer.train(resume_from_checkpoint=None if newest is None else str(newest))
