"""Model folders for tests: tiny encoders of transformers with a tokenizer, and what sentence-transformers writes around
them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
COLOURS, THINGS = ["red", "blue", "green"], ["boat", "lamp", "tree", "stone", "cup", "road"]
WORDS = [*SPECIAL, *COLOURS, "small", "large", "old", "fast", "round", *THINGS]
SIZES: dict[str, Any] = {
    "vocab_size": len(WORDS),
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 32,
    "pad_token_id": 0,
}
NO_DROPOUT: dict[str, Any] = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0}


def tokenizer(*, special: bool = True, side: str = "right", lower: bool = False, words: Sequence[str] = WORDS) -> Any:
    """A fast tokenizer of whole words. special: with [CLS] before and [SEP] behind each text."""
    made = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    if lower:
        made.normalizer = normalizers.Lowercase()
    if special:
        pair = [("[CLS]", 2), ("[SEP]", 3)]
        made.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=pair)
    names = {f"{name}_token": f"[{name.upper()}]" for name in ("pad", "unk", "cls", "sep", "mask")}
    make: Any = transformers.PreTrainedTokenizerFast
    return make(tokenizer_object=made, padding_side=side, **names)


def encoder(folder: Path, kind: str = "bert", tokens: Any = None, **settings: Any) -> Path:
    """An encoder of random weights, the same ones each time, and its tokenizer."""
    torch.manual_seed(0)
    config = transformers.AutoConfig.for_model(kind, **{**SIZES, "max_position_embeddings": 64, **settings})
    make: Any = transformers.AutoModel
    make.from_config(config).save_pretrained(folder)
    (tokens or tokenizer()).save_pretrained(folder)
    return folder


def modules(
    folder: Path,
    pooling: Any = "mean",
    *more: str,
    inside: str = "",
    options: dict[str, Any] | None = None,
    general: dict[str, Any] | None = None,
    **of_pooling: Any,
) -> Path:
    """What sentence-transformers writes around an encoder that lies in `inside`: the pooling, and `more` modules."""
    kinds = ["Transformer", "Pooling", *more]
    paths = [inside, *(f"{at}_{kind}" for at, kind in enumerate(kinds) if at)]
    for path in paths[1:]:
        (folder / path).mkdir()
    pooled = {"word_embedding_dimension": 16, "pooling_mode": pooling, **of_pooling}
    write(folder / paths[1] / "config.json", pooled)
    listed = [
        {"idx": at, "name": str(at), "path": path, "type": f"sentence_transformers.models.{kind}"}
        for at, (path, kind) in enumerate(zip(paths, kinds, strict=True))
    ]
    write(folder / "modules.json", listed)
    write(
        folder / inside / "sentence_bert_config.json", {"max_seq_length": 12, "do_lower_case": False} | (options or {})
    )
    if general is not None:
        write(folder / "config_sentence_transformers.json", general)
    return folder


def write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value), "utf-8")
