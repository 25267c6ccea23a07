"""The encoder of images in this folder as sentence-transformers loads it, with trust_remote_code=True.

model.encode([PIL.Image.fromarray(image), ...])      # or [{"image": image}, ...]; image: uint8 [H, W] or [H, W, C]
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from safetensors.torch import save_file
from sentence_transformers.base.modules import InputModule
from torch import nn

from .embed import ATTENTION, Encoder, pixel_values

if TYPE_CHECKING:
    from sentence_transformers.base.modality_types import Modality


class ImageEncoder(InputModule):
    """Encoder and pooling; a head is a module after it."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.folder = Path(folder)
        self.encoder = Encoder(folder)
        self.encoder.head = nn.Sequential()

    @property
    def modalities(self) -> list[Modality]:
        """What it encodes."""
        return ["image"]

    def preprocess(self, inputs: Sequence[object], prompt: str | None = None, **kwargs: object) -> dict[str, Any]:  # noqa: ARG002
        """Return the pixel_values of PIL images, or of {"image": array or PIL image}."""
        shape = self.encoder.settings["image_shape"]
        assert shape is not None
        images = np.stack([_array(image, shape[0]) for image in inputs])
        return {"pixel_values": pixel_values(images, shape), "modality": "image"}

    def forward(self, features: dict[str, Any], **kwargs: object) -> dict[str, Any]:  # noqa: ARG002
        """Add sentence_embedding, the name that sentence-transformers has for any embedding."""
        features["sentence_embedding"] = self.encoder.pooled(features)
        return features

    def get_embedding_dimension(self) -> int:
        """Return the number of columns of what is pooled."""
        return int(self.encoder.settings["hidden"])

    def save(self, output_path: str, *args: object, **kwargs: object) -> None:  # noqa: ARG002
        """Save the encoder as it is now; sentence-transformers itself copies this file and embed.py."""
        self.encoder.model.save_pretrained(output_path)
        for name in ("embedding.json", "preprocessor_config.json", "modeling_resnet.py", "resnet.py"):
            if (self.folder / name).exists():
                shutil.copy(self.folder / name, output_path)
        if self.encoder.attention is not None:
            (weights := Path(output_path) / ATTENTION).parent.mkdir()
            save_file({"weight": self.encoder.attention.detach()}, weights)

    @classmethod
    def load(  # type: ignore[override]
        cls, model_name_or_path: str, subfolder: str = "", **options: Any
    ) -> ImageEncoder:
        """Load the encoder from a folder, or from a repository of a hub."""
        names = ("token", "cache_folder", "revision", "local_files_only")
        where = {name: options[name] for name in names if name in options}
        folder = cls.load_dir_path(model_name_or_path, subfolder, **where)
        if folder is None:
            raise FileNotFoundError(f"{model_name_or_path} has no folder {subfolder!r}")
        return cls(folder)


def _array(image: object, channels: int) -> np.ndarray:
    """Return the pixels, uint8 [H, W] or [H, W, C], of an array, a PIL image, or a dictionary of either."""
    inside = image["image"] if isinstance(image, dict) else image
    return np.asarray(inside.convert("L" if channels == 1 else "RGB") if hasattr(inside, "convert") else inside)
