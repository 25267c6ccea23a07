"""Small pictures in every storage, and jobs that train on them."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import data
from jobs.config import JobConfig
from jobs.data import DataError, ImageEvaluation, ImageExamples


def job(
    train: Path | str, judged: Path | str | None = None, shape: list[int] | None = None, *, size: int = 2
) -> JobConfig:
    """An image job on `train`, judged on the same rows unless others are named."""
    return JobConfig.model_validate(
        {
            "task": "image",
            "budget": {"steps": 2},
            "data": {"train": str(train), "confirm": str(train if judged is None else judged), "image_shape": shape},
            "batch": {"size": size},
            "evaluate": {"neighbours": 1},
        }
    )


def pictures(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    """uint8 [n, *shape]."""
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), dtype=np.uint8)


def encoded(pixels: np.ndarray, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of uint8 [H, W] or [H, W, 3]."""
    from PIL import Image

    return saved(Image.fromarray(pixels), kind, **options)


def saved(image: Any, kind: str = "PNG", **options: Any) -> bytes:
    """An image file of a PIL image."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def write(path: Path, images: Any) -> Path:
    """A Parquet file of these images, an Arrow array or what makes one, with the labels 0, 1, 0, 1 and so on."""
    column = images if isinstance(images, pa.Array | pa.ChunkedArray) else pa.array(images)
    pq.write_table(pa.table({"image": column, "label": pa.array(np.arange(len(column)) % 2)}), path)
    return path


def read(source: Path | str, shape: list[int] | None = None) -> np.ndarray:
    """uint8 [n, H, W, C]: what a job would train on."""
    examples = data.train_examples(job(source, shape=shape))
    assert isinstance(examples, ImageExamples)
    return back(examples.images.unit(np.arange(len(examples))))


def judged(chosen: JobConfig) -> np.ndarray:
    """uint8 [n, H, W, C]: what a job would be judged on."""
    found = data.evaluation_data(chosen)
    assert isinstance(found, ImageEvaluation)
    return back(found.query_pixels.unit(np.arange(len(found.query_pixels))))


def back(unit: Any) -> np.ndarray:
    """uint8 [n, H, W, C] of float32 [n, C, H, W] in [0, 1]."""
    whole: np.ndarray = np.rint(unit.numpy() * 255).astype(np.uint8).transpose(0, 2, 3, 1)
    return whole


def refused(chosen: JobConfig) -> str:
    """What the check of a job says that does not pass."""
    with pytest.raises(DataError) as caught:
        data.check(chosen)
    return str(caught.value)
