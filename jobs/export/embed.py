"""The embeddings of the encoder in this folder, as they were judged. Needs numpy, torch and transformers, nothing else.

    from embed import load

    embed = load("this/folder")
    embed(["a sentence", "another one"])      # float32 [n, width]; of images: uint8 [n, H, W] or [n, H, W, C]

They are normalised, and sentences lower-cased, if embedding.json says so; its prompt is put before each sentence. On a
GPU where there is one; cosine similarity is what the encoder was trained for.
"""

from __future__ import annotations

import importlib
import json
import sys
import types
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, TypedDict

import numpy as np
import torch
from safetensors.torch import load_file  # comes with transformers
from tokenizers import normalizers  # does too
from torch import Tensor, nn
from transformers import AutoModel, AutoTokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedModel

BATCH = 256
"""Rows encoded at once."""


ATTENTION = "1_AttentionPooling/model.safetensors"
"""The weights of a pooling by attention."""

OTHER_LAYER = {"first_last": 1, "last_two": -2}
"""Which states of embeddings and layers a pooling averages with the last layer's."""


class Settings(TypedDict):
    """What embedding.json says."""

    task: str
    pooling: str
    normalise: bool
    prompt: str
    """Put before each sentence."""

    lower: bool
    skipped: int
    """Tokens at the begin of a sentence that are not pooled."""

    precision: str
    hidden: int
    """Columns of what is pooled."""

    head: list[str]
    """Folders of its linear maps."""

    width: int
    """Columns of an embedding."""

    load: dict[str, bool]
    """Options of AutoModel."""

    code: str | None
    """File and class of a network that transformers does not know."""

    max_tokens: int | None
    image_shape: Sequence[int] | None
    """Channels, height, width."""

    prefix_tokens: int
    """Tokens of an image before those of its places."""


class Tokenizer(Protocol):
    """What is used of the tokenizer."""

    @property
    def pad_token_id(self) -> int:
        """Id of what a sentence is padded with."""

    def __call__(self, text: list[str], *, truncation: bool, max_length: int | None) -> Mapping[str, list[list[int]]]:
        """Return the ids of the tokens of each text, as `input_ids`."""


def load(folder: str | Path, device: str | None = None) -> Callable[[list[str] | np.ndarray], np.ndarray]:
    """Load a function from sentences, or images as uint8 [n, H, W] or [n, H, W, C], to embeddings float32 [n, width].

    device: "cpu" or "cuda"; None: a GPU where there is one. The function raises TypeError or ValueError for inputs of
    another kind or size.
    """
    encoder = Encoder(folder).to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    tokenizer = _tokenizer(folder, encoder.settings) if encoder.settings["task"] == "sentence" else None

    def embed(inputs: list[str] | np.ndarray) -> np.ndarray:
        batches = _of_pixels(encoder, inputs) if tokenizer is None else _of_tokens(encoder, tokenizer, inputs)
        return _embedded(encoder, len(inputs), batches)

    return embed


class Encoder(nn.Module):
    """The encoder, its pooling and the head, if it was judged with one; in evaluation mode."""

    def __init__(self, folder: str | Path) -> None:
        super().__init__()
        self.settings: Settings = json.loads((Path(folder) / "embedding.json").read_text("utf-8"))
        self.model = _model(Path(folder), self.settings)
        self.attention: nn.Parameter | None = None
        if self.settings["pooling"] == "attention":
            self.attention = nn.Parameter(load_file(Path(folder) / ATTENTION)["weight"])
        self.head = nn.Sequential(*_head(Path(folder), self.settings["head"]))
        self.eval()

    def forward(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute embeddings [n, width]. inputs: pixel_values; or input_ids and attention_mask, padded on the right."""
        with self._autocast():
            embedded: Tensor = self.head(self.pooled(inputs))
        return embedded

    def pooled(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Compute what the head is given, [n, hidden]."""
        with self._autocast():
            pooled = self._pooled_image(inputs) if "pixel_values" in inputs else self._pooled_sentence(inputs)
            return nn.functional.normalize(pooled, dim=-1) if self.settings["normalise"] else pooled

    @property
    def device(self) -> torch.device:
        """Where the weights are."""
        return next(self.parameters()).device

    def _autocast(self) -> AbstractContextManager[object]:
        bf16 = self.settings["precision"] == "bf16"
        return torch.autocast(self.device.type, torch.bfloat16) if bf16 else nullcontext()

    def _pooled_sentence(self, inputs: Mapping[str, Tensor]) -> Tensor:
        how, skipped = self.settings["pooling"], self.settings["skipped"]
        last, other = self._states(inputs)
        if how == "cls":
            return last[:, skipped]
        if self.attention is not None:
            return attended(last, inputs["attention_mask"], self.attention)
        states = last if other is None else (other + last) / 2
        with torch.autocast(self.device.type, enabled=False):  # a sum of many is not kept in bf16
            return self._over_tokens(states if states.dtype == torch.float64 else states.float(), inputs)

    def _over_tokens(self, states: Tensor, inputs: Mapping[str, Tensor]) -> Tensor:
        how, skipped = self.settings["pooling"], self.settings["skipped"]
        places = torch.arange(1, states.shape[1] + 1, device=states.device)
        mask = inputs["attention_mask"] * (places > skipped)
        if how == "lasttoken":
            return states[torch.arange(len(states), device=states.device), (mask * places).argmax(1)]
        if how == "max":
            return states.masked_fill(mask[..., None] == 0, float("-inf")).amax(1)
        weights = (mask * places if how == "weightedmean" else mask).to(states.dtype)
        count = weights.sum(1, keepdim=True).clamp(min=1e-9)
        mean: Tensor = torch.einsum("nlc,nl->nc", states, weights) / (count.sqrt() if "sqrt" in how else count)
        return mean

    def _pooled_image(self, inputs: Mapping[str, Tensor]) -> Tensor:
        last, other = self._states({"pixel_values": inputs["pixel_values"].to(self.model.dtype)})
        if self.attention is not None:
            places = last.flatten(2).transpose(1, 2) if last.ndim == 4 else last[:, self.settings["prefix_tokens"] :]
            return attended(places, torch.ones(places.shape[:2], device=places.device), self.attention)
        if self.settings["pooling"] == "map":
            return last.mean((2, 3))
        if self.settings["pooling"] == "cls":
            return last[:, 0]
        states = last if other is None else (other + last) / 2
        return states[:, self.settings["prefix_tokens"] :].mean(1)

    def _states(self, inputs: Mapping[str, Tensor]) -> tuple[Tensor, Tensor | None]:
        """Return the output of the last layer, and of another one if the pooling averages both."""
        if self.settings["pooling"] not in OTHER_LAYER:
            return self.model(**inputs).last_hidden_state, None
        output = self.model(**inputs, output_hidden_states=True)
        return output.last_hidden_state, output.hidden_states[OTHER_LAYER[self.settings["pooling"]]]


def attended(states: Tensor, mask: Tensor, weight: Tensor) -> Tensor:
    """Compute the mean [n, width] of states [n, L, width] where mask [n, L] is 1, by the softmax of states @ weight."""
    with torch.autocast(states.device.type, enabled=False):
        whole = states if states.dtype == torch.float64 else states.float()
        scores = (whole @ weight).masked_fill(mask == 0, torch.finfo(whole.dtype).min)
        mean: Tensor = torch.einsum("nlc,nl->nc", whole, scores.softmax(1) * mask)
    return mean


def pixel_values(images: np.ndarray, image_shape: Sequence[int]) -> Tensor:
    """Scale images, uint8 [n, H, W] or [n, H, W, C], to what an encoder takes, float32 [n, C, H, W] in [-1, 1]."""
    channels, height, width = image_shape
    if images.dtype != np.uint8:
        raise TypeError(f"pixels are {images.dtype}; give uint8, 0 to 255")
    images = np.ascontiguousarray(images)
    if images.ndim == 3:
        images = images.reshape(*images.shape, 1)  # a new axis has another stride, and is rounded otherwise
    if images.shape[1:] != (height, width, channels):
        raise ValueError(
            f"images are {' x '.join(map(str, images.shape[1:]))}; this encoder knows {height} x {width} x {channels} "
            "(height, width, channels): resize them first"
        )
    unit = torch.from_numpy(np.ascontiguousarray(images.transpose(0, 3, 1, 2))) / 255
    return (unit - 0.5) / 0.5


def _of_pixels(encoder: Encoder, images: list[str] | np.ndarray) -> Iterator[tuple[slice, dict[str, Tensor]]]:
    """Yield the rows and inputs of each batch."""
    if not isinstance(images, np.ndarray):
        raise TypeError(f"images are a {type(images).__name__}; give a numpy array uint8 [n, H, W] or [n, H, W, C]")
    image_shape = encoder.settings["image_shape"]
    assert image_shape is not None
    for start in range(0, len(images), BATCH):
        rows = slice(start, start + BATCH)
        yield rows, {"pixel_values": pixel_values(images[rows], image_shape)}


def _of_tokens(
    encoder: Encoder, tokenizer: Tokenizer, texts: list[str] | np.ndarray
) -> Iterator[tuple[np.ndarray, dict[str, Tensor]]]:
    """Yield the rows and inputs of each batch, of sentences that are about equally long."""
    if isinstance(texts, str):
        raise TypeError("this is one sentence; give a list of them")
    tokens: list[list[int]] = []
    if len(texts):
        prompted = [encoder.settings["prompt"] + text for text in texts]
        tokens = tokenizer(prompted, truncation=True, max_length=encoder.settings["max_tokens"])["input_ids"]
    order = np.argsort([len(ids) for ids in tokens], kind="stable")
    for start in range(0, len(order), BATCH):
        rows = order[start : start + BATCH]
        chosen = [torch.tensor(tokens[row], dtype=torch.int64) for row in rows]
        pad = nn.utils.rnn.pad_sequence
        yield (
            rows,
            {
                "input_ids": pad(chosen, batch_first=True, padding_value=tokenizer.pad_token_id),
                "attention_mask": pad([torch.ones_like(ids) for ids in chosen], batch_first=True),
            },
        )


@torch.inference_mode()
def _embedded(encoder: Encoder, n: int, batches: Iterable[tuple[slice | np.ndarray, dict[str, Tensor]]]) -> np.ndarray:
    out = np.empty((n, encoder.settings["width"]), np.float32)
    with _whole_fp32(encoder.device):
        for rows, inputs in batches:
            embedded = encoder({name: values.to(encoder.device) for name, values in inputs.items()})
            out[rows] = embedded.float().cpu().numpy()
    return out


@contextmanager
def _whole_fp32(device: torch.device) -> Iterator[None]:
    """Have cuDNN round nothing: by default it rounds what fp32 convolutions take to 10 bits."""
    if device.type != "cuda":
        yield
        return
    # torch has had two names for this; to use the old one where somebody used the new one is an error.
    owner: object = getattr(torch.backends.cudnn, "conv", None)
    name, wanted = ("fp32_precision", "ieee") if hasattr(owner, "fp32_precision") else ("allow_tf32", False)
    owner = owner if name == "fp32_precision" else torch.backends.cudnn
    before = getattr(owner, name)
    setattr(owner, name, wanted)
    try:
        yield
    finally:
        setattr(owner, name, before)


def _tokenizer(folder: str | Path, settings: Settings) -> Tokenizer:
    tokenizer = AutoTokenizer.from_pretrained(folder)
    if settings["lower"]:  # a class of its own may have forgotten it
        inside = tokenizer.backend_tokenizer
        then = [] if inside.normalizer is None else [inside.normalizer]
        inside.normalizer = normalizers.Sequence([normalizers.Lowercase(), *then])
    return tokenizer


def _model(folder: Path, settings: Settings) -> PreTrainedModel:
    if settings["code"] is None:
        model: PreTrainedModel = AutoModel.from_pretrained(folder, **settings["load"])
        return model
    # Imported where it lies: AutoModel would copy it to a cache in the home folder, which may not be writable.
    package = types.ModuleType(f"encoder_{uuid.uuid4().hex}")
    package.__path__ = [str(folder)]
    sys.modules[package.__name__] = package
    file, _, name = settings["code"].partition(".")
    kind: type[PreTrainedModel] = getattr(importlib.import_module(f"{package.__name__}.{file}"), name)
    return kind.from_pretrained(folder)


def _head(folder: Path, names: Iterable[str]) -> Iterator[nn.Module]:
    """Yield the linear map in each of these folders of sentence-transformers, and what follows it."""
    for name in names:
        weights = load_file(folder / name / "model.safetensors")
        out, width = weights["linear.weight"].shape
        linear = nn.Linear(width, out, dtype=weights["linear.weight"].dtype)
        linear.load_state_dict({key.removeprefix("linear."): value for key, value in weights.items()})
        yield linear
        if json.loads((folder / name / "config.json").read_text("utf-8"))["activation_function"].endswith("ReLU"):
            yield nn.ReLU()
