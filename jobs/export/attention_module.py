"""The pooling of this folder by learned weights, as sentence-transformers loads it, with trust_remote_code=True."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .embed import attended

try:
    from sentence_transformers.base.modules import Module
except ModuleNotFoundError:  # before version 5.4
    from sentence_transformers.models import Module  # type: ignore[import-not-found, no-redef]


class AttentionPooling(Module):
    """The mean of a sentence's token states by the softmax of their scores."""

    config_keys = ["embedding_dimension"]

    def __init__(self, embedding_dimension: int) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.embedding_dimension = embedding_dimension
        self.weight = nn.Parameter(torch.zeros(embedding_dimension))

    def forward(self, features: dict[str, Any], **kwargs: object) -> dict[str, Any]:  # noqa: ARG002
        """Add sentence_embedding, [n, width]."""
        states, mask = features["token_embeddings"], features["attention_mask"]
        features["sentence_embedding"] = attended(states, mask, self.weight)
        return features

    def get_embedding_dimension(self) -> int:
        """Return the number of columns of what is pooled."""
        return self.embedding_dimension

    def save(self, output_path: str, *args: object, safe_serialization: bool = True, **kwargs: object) -> None:  # noqa: ARG002
        """Save the weights, and the code where sentence-transformers looks for it: it copies it beside them alone."""
        self.save_config(output_path)
        self.save_torch_weights(output_path, safe_serialization=safe_serialization)
        for name in (Path(__file__).name, "embed.py"):
            shutil.copy(Path(__file__).with_name(name), Path(output_path).parent)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **options: Any
    ) -> AttentionPooling:
        """Load the weights from a folder, or from a repository of a hub."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        where = {name: options[name] for name in names if name in options} | {"subfolder": subfolder}
        weights = cls.load_torch_weights(model_name_or_path, **where)
        module = cls(**cls.load_config(model_name_or_path, **where)).to(weights["weight"].dtype)
        module.load_state_dict(weights)
        return module
