# ruff: noqa: ARG002 - arguments go by name, whoever needs them
"""A user's module with a task of its own: digits as rows of 64 numbers, whose views are noisy copies."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from jobs.config import JobConfig
from jobs.data import open_table


class Tabular:
    """Rows of numbers and their labels; judged by the nearest row of data.train."""

    def __init__(self, *, noise: float = 0.1) -> None:
        self.noise = noise

    def rows(self, source: str) -> tuple[np.ndarray, np.ndarray]:
        """Pixels in [0, 1], [n, 64], and labels."""
        table = open_table(source)
        pixels = np.array([list(image) for image in table["image"].to_pylist()], dtype=np.float64)
        return pixels / 255, table["label"].to_numpy()

    def views(
        self, rows: tuple[np.ndarray, np.ndarray], seed: int, step: int, pairs: Tensor, view: int
    ) -> Tensor | Mapping[str, Tensor]:
        """A noisy copy of each row."""
        drawn = []
        for row, pair in zip(rows[0], pairs.tolist(), strict=True):
            draw = np.random.default_rng((seed, step, pair, view))
            drawn.append(row + self.noise * draw.standard_normal(64))
        return torch.from_numpy(np.array(drawn).reshape(-1, 64))

    def evaluate(
        self, encode: Callable[[Tensor], Tensor], rows: tuple[np.ndarray, np.ndarray], references: Any
    ) -> dict[str, Any]:
        """Whether each row's nearest reference has its label."""
        known, asked = (F.normalize(encode(torch.from_numpy(part[0]))) for part in (references, rows))
        nearest = (asked @ known.T).argmax(1).numpy()
        return {"nearest": references[1][nearest] == rows[1], "spread": float(asked.std(0).mean())}


class Hard(Tabular):
    """With two hard negatives of each pair, and ids that are labels; as a mapping with a name of its own."""

    hard_negatives = 2

    def __init__(self, job: JobConfig) -> None:
        super().__init__(noise=0.2)
        assert job.task.endswith("Hard")

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Mapping[str, Tensor]:
        """Those are the rows upside down, twice."""
        if view < 2:
            return {"inputs": torch.as_tensor(super().views(rows, seed, step, pairs, view))}
        return {"inputs": torch.from_numpy(1 - rows[0]).repeat_interleave(2, 0)}

    def ids(self, rows: Any) -> np.ndarray:
        """Their labels, so that rows of one class are no negatives."""
        return np.asarray(rows[1])


class Columns(Tabular):
    """Rows as an Arrow table, views as images."""

    def rows(self, source: str) -> Any:
        """The whole table."""
        return open_table(source)

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Mapping[str, Tensor]:
        """Images of 8 x 8."""
        pixels = np.array([list(image) for image in rows["image"].to_pylist()], dtype=np.float64).reshape(-1, 64) / 255
        flat = torch.as_tensor(super().views((pixels, pixels), seed, step, pairs, view))
        return {"pixel_values": flat.reshape(-1, 1, 8, 8).float()}

    def evaluate(self, encode: Any, rows: Any) -> dict[str, float]:  # type: ignore[override]
        """How far apart two views of a row are."""
        a, b = (encode(self.views(rows, 0, 0, torch.arange(len(rows)), view)) for view in (0, 1))
        return {"closeness": float(F.cosine_similarity(a, b).mean())}


class Grouped(Tabular):
    """Rows as a mapping, with ids, and the labels as groups."""

    def rows(self, source: str) -> Any:
        """Both columns of Tabular."""
        pixels, labels = super().rows(source)
        return {"pixels": pixels, "id": [f"{source}:{row}" for row in range(len(labels))], "group": labels}

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Any:
        """Noisy copies."""
        return super().views((rows["pixels"], rows["group"]), seed, step, pairs, view)

    def evaluate(self, encode: Any, rows: Any) -> dict[str, Any]:  # type: ignore[override]
        """How near the two views of each row are."""
        a, b = (encode(self.views(rows, 0, 0, torch.arange(len(rows["id"])), view)) for view in (0, 1))
        return {"closeness": F.cosine_similarity(a, b)}


class Neighbours(Tabular):
    """Wrong: a view depends on the rows beside it."""

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
        """Centred by the mean of whatever is there."""
        return torch.from_numpy(rows[0] - rows[0].mean(0) * (1 + view))


class Unkeyed(Tabular):
    """Wrong: its noise comes from a global generator."""

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
        """Other ones each time."""
        return torch.from_numpy(rows[0]) + torch.rand(len(rows[0]), 64)


class Placed(Tabular):
    """Wrong: its noise is by the place among the rows that happen to be there, so the first row's is right."""

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
        """The same numbers for whatever comes first."""
        noise = np.random.default_rng((seed, step, view)).standard_normal((len(rows[0]), 64))
        return torch.from_numpy(rows[0] + noise)


class Numbered(Tabular):
    """Views that are numbers of an embedding's rows, [c]."""

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Tensor:
        """The brightest of each row's pixels, or the one after it."""
        return torch.from_numpy(rows[0].argmax(1)) + view

    def evaluate(self, encode: Any, rows: Any) -> dict[str, float]:  # type: ignore[override]
        """How far apart the two views are."""
        left, right = (encode(self.views(rows, 0, 0, torch.arange(0), view)) for view in (0, 1))
        return {"closeness": float(F.cosine_similarity(left, right).mean())}


class Stateful(Tabular):
    """Keeps what `rows` has read."""

    def rows(self, source: str) -> Any:
        """And the largest value."""
        rows = super().rows(source)
        self.largest = float(rows[0].max())
        return rows

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Any:
        """In shares of it."""
        return super().views((rows[0] / self.largest, rows[1]), seed, step, pairs, view)


class Counted(Tabular):
    """Wrong: as many values as it likes."""

    def evaluate(self, encode: Any, rows: Any) -> dict[str, Any]:  # type: ignore[override]
        """Two values."""
        return {"nearest": [0.1, 0.2]}


class Raises(Tabular):
    """Wrong: a column that is not there."""

    def rows(self, source: str) -> Any:
        """As many a first draft."""
        return open_table(source)["pixels"]


class Blind:
    """Wrong: no evaluate."""

    def __init__(self, *, noise: float = 0.1) -> None:
        self.noise = noise

    def rows(self, source: str) -> Any:
        """Whatever."""
        return open_table(source)

    def views(self, rows: Any, seed: int, step: int, pairs: Tensor, view: int) -> Any:
        """Whatever."""
        return rows


def Small(config: Any, context: Any) -> None:  # noqa: N802
    """A function with the name of a class."""


class MLP(nn.Module):
    """Two layers with dropout, of rows of numbers."""

    def __init__(self, inputs: Mapping[str, Tensor], *, width: int = 16, dropout: float = 0.1) -> None:
        super().__init__()
        self.width = width
        columns = inputs["inputs"].shape[1]
        self.layers = nn.Sequential(nn.Linear(columns, width), nn.GELU(), nn.Dropout(dropout), nn.Linear(width, width))

    def forward(self, inputs: Tensor) -> Tensor:
        """Embeddings [n, width]."""
        embedded: Tensor = self.layers(inputs)
        return embedded * float(os.environ.get("TASKLAB_SCALE", "1"))


class Table(nn.Module):
    """An embedding of numbers."""

    width = 8

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(65, 8)

    def forward(self, inputs: Tensor) -> Tensor:
        """Its rows."""
        embedded: Tensor = self.table(inputs)
        return embedded


class Broken(MLP):
    """Wrong: a layer that does not fit."""

    def forward(self, inputs: Tensor) -> Tensor:
        """Fails."""
        return super().forward(inputs[:, :3])


def leaky(states: Tensor, mask: Tensor) -> Tensor:
    """Wrong: dropout that nobody can key."""
    return F.dropout(states, 0.5)[:, 0]


class Dropping(nn.Module):
    """A pooling with dropout, as it should be."""

    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)

    def forward(self, states: Tensor, mask: Tensor) -> Tensor:
        """The first state, some of it."""
        dropped: Tensor = self.dropout(states[:, 0])
        return dropped


def strongest(states: Tensor, mask: Tensor, *, power: float = 2.0) -> Tensor:
    """A pooling: the states weighed by their norms."""
    weights = states.norm(dim=2) ** power * mask
    mean: Tensor = (states * weights[..., None]).sum(1) / weights.sum(1, keepdim=True)
    return mean


class Attention(nn.Module):
    """A pooling with parameters: each state's weight is learned, from the first layer's too."""

    def __init__(self, width: int, *, sharpness: float = 1.0) -> None:
        super().__init__()
        self.score = nn.Linear(width, 1)
        self.sharpness = sharpness

    def forward(self, states: Tensor, mask: Tensor, first: Tensor) -> Tensor:
        """The weighted mean."""
        scores = self.score(states + first.to(states.dtype)).squeeze(2) * self.sharpness
        weights = scores.masked_fill(mask == 0, float("-inf")).softmax(1)
        mean: Tensor = (states * weights[..., None]).sum(1)
        return mean


def both_ends(states: Tensor, mask: Tensor, first: Tensor, before_last: Tensor) -> Tensor:
    """A pooling of two other layers: the first token's states."""
    return first[:, 0] - 2 * before_last[:, 0]


def careless(states: Tensor) -> Tensor:
    """Wrong: padding counts."""
    return states.mean(1)
