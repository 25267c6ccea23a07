"""The image job's data: two augmented views of each image, and the labelled rows that judge an encoder. Imports torch
when views are made: to check data needs none.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from jobs.config import Augment, JobConfig, components
from jobs.data.batches import FIRST, Draw, Ids, Views
from jobs.data.faults import DataError, listed
from jobs.data.formats.lines import NOT_UTF8, first_that_is_not_utf8
from jobs.data.images.arrays import is_bytes
from jobs.data.images.links import looked_at_once
from jobs.data.images.pixels import Images, images_of, standardised
from jobs.data.resolve import pictures_beside
from jobs.data.sources import Rows, exactly, groups_of, numbered, read, sources_of

if TYPE_CHECKING:
    from torch import Tensor

IMAGE_NAMES = (
    *("image", "img", "pixel_values", "pixels"),
    *("file_name", "filename", "image_path", "image_file", "img_path", "file_path", "filepath", "file", "path"),
)
"""What a column of images, or of paths of images, is usually called."""

LABEL_NAMES = ("label", "labels", "fine_label", "class", "target", "y")


@dataclass(frozen=True)
class ImageExamples:
    """Images to train on. A pair is two views of one image."""

    images: Images
    augment: Augment
    rows: Rows
    hard_negatives: int = 0
    lacks_some: bool = False
    source: str | None = None
    """Column that says where an image is from; None: its file."""

    label: str | None = None
    """Column of labels that a sampler is given; None: that by which images are judged."""

    def __len__(self) -> int:
        return len(self.images)

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """(C, H, W)."""
        return self.images.shape

    def views(self, rows: NDArray[np.int64], *, seed: int, step: int, pairs: NDArray[np.int64]) -> Views:
        """Make both views of these data rows, pixel_values [c, C, H, W]; `pairs` number the pairs of batch `step`."""
        import torch

        numbers = torch.from_numpy(np.asarray(pairs, np.int64))
        given = {
            "images": self.images.unit(rows),
            "settings": self.augment,
            "seed": seed,
            "step": step,
            "pairs": numbers,
        }
        augment = components.called("augmentation", self.augment.name, self.augment.options)
        queries, keys = ({"pixel_values": standardised(augment(**given, view=view))} for view in (0, 1))
        return Views(queries, keys)

    def pair_ids(self, rows: NDArray[np.int64]) -> Tensor:
        """Compute ids, int64 [c]: equal for equal images."""
        return self.images.content_ids(rows)

    def ids(self, rows: NDArray[np.int64], draw: Draw = FIRST) -> Ids:  # noqa: ARG002 - of lists
        """Compute the ids of what these rows show. Both sides of a pair are views of one image."""
        return Ids(self.pair_ids(rows))

    def scores(self, rows: NDArray[np.int64]) -> None:
        """Return None: nobody has scored two views of one image."""

    def facts(self, name: str) -> NDArray[np.int64]:
        """Give what a sampler may know of all rows; see `Examples.facts`."""
        if name == "ids":
            return _all_ids(self.images)
        if name == "sources":
            return sources_of(self.rows, self.source)
        return groups_of(self.rows, self.label) if self.label is not None else _numbered_labels(self.rows)


@dataclass(frozen=True)
class ImageEvaluation:
    """Labelled rows to learn from (of data.train) and to be judged on. Pixels are indexed: `pixels[low:high]`."""

    reference_pixels: Images
    reference_labels: NDArray[np.int64]
    query_pixels: Images
    query_labels: NDArray[np.int64]
    rows: Rows
    """Where the queries are from."""


def train_columns(file: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Choose the image column and, if there is one, the label column: as wanted, else by their usual names."""
    if wanted is not None:
        if len(wanted) > 2:
            raise DataError(f"data.columns = {list(wanted)} names too many; give [image] or [image, label]", file=file)
        return exactly(file, names, wanted)
    image = next((name for name in IMAGE_NAMES if name in names), None)
    if image is None:
        raise DataError(
            f"is missing; the columns here are {listed(names)}; name yours in data.columns = "
            f"{_meant(names) or '[image, label]'}",
            file=file,
            column="image",
        )
    label = next((name for name in LABEL_NAMES if name in names), None)
    return (image,) if label is None else (image, label)


def _is_number(value: pa.Scalar) -> bool:
    """Return whether a cell of CSV is a whole number."""
    text = value.as_py()
    return isinstance(text, str) and text.strip().isdecimal()


def _meant(names: Sequence[str], *, both: bool = False) -> str:
    """Find the image column and the label column, as data.columns names them, where they have usual names but for
    capitals and spaces; return an empty text without the first or, if `both`, without the second."""
    columns = []
    for usual in (IMAGE_NAMES, LABEL_NAMES):
        columns += [name for name in names if name.strip().lower() in usual][:1]
    is_there = bool(columns) and columns[0].strip().lower() in IMAGE_NAMES
    return str(columns) if is_there and len(columns) > both else ""


def judged_columns(file: str, names: Sequence[str], wanted: tuple[str, ...] | None) -> tuple[str, ...]:
    """Choose columns as in the training data; if a file to be judged on calls them otherwise, by their usual names."""
    return train_columns(file, names, wanted if wanted and set(wanted) <= set(names) else None)


def image_rows(job: JobConfig, source: str) -> Rows:
    """Read the rows of a source with an image column and, if there is one, a label column."""
    wanted = None if job.data.columns is None else tuple(job.data.columns)
    try:
        rows = read(source, train_columns if source == job.data.train else judged_columns, wanted)
    except DataError as error:
        if (words := pictures_beside(source, error.file)) is None:
            raise
        raise DataError(f"{error.found}; or else {words}", file=error.file, column=error.column) from error
    if wanted is None:
        _refuse_numbers_for_names(rows)
    return _with_labels(rows)


def _refuse_numbers_for_names(rows: Rows) -> None:
    """Raise DataError where the image column holds a number a row, and another column may name the images."""
    name, names = rows.table.column_names[0], rows.names[0]
    others = [other for other in names if other in IMAGE_NAMES and other != name]
    if others and (pa.types.is_primitive(rows.table.schema.field(name).type) or _is_number(rows.table[name][0])):
        labels = [label for label in LABEL_NAMES if label in names][:1]
        raise rows.fault(
            f"holds a number a row, and '{others[0]}' may be the images; set data.columns = {[others[0], *labels]}",
            column=name,
        )


@functools.lru_cache(maxsize=8)
def _with_labels(rows: Rows) -> Rows:
    """Convert labels of CSV and TSV to what other formats have: whole numbers as such, without spaces around them (1.0
    is 1, as pandas writes it beside empty cells), and none in an empty cell."""
    is_text = all(file.lower().removesuffix(".gz").endswith((".csv", ".tsv")) for file, _, _ in rows.spans)
    if not is_text or rows.table.num_columns < 2:
        return rows
    labels = rows.table[1]
    if is_bytes(labels.type):
        bad = first_that_is_not_utf8(labels)
        raise rows.fault(NOT_UTF8, column=rows.table.column_names[1], row=bad)
    labels = labels.cast(pa.string())
    trimmed = pc.utf8_trim_whitespace(labels)
    # A number with a zero before it is a name that looks like one: 007 is not 7.
    whole = r"(0|-?[1-9][0-9]{0,17})"
    numbers = pc.replace_substring_regex(trimmed, rf"^{whole}\.0*$", r"\1")
    is_whole = pc.match_substring_regex(numbers, f"^{whole}$")
    labels = pc.if_else(is_whole, numbers, labels)
    labels = pc.if_else(pc.equal(trimmed, ""), pa.scalar(None, pa.string()), labels)
    if pc.all(pc.or_(is_whole, labels.is_null()), min_count=0).as_py():
        labels = labels.cast(pa.int64())
    table = rows.table.set_column(1, rows.table.column_names[1], labels)
    return dataclasses.replace(rows, table=table)


def image_examples(job: JobConfig) -> ImageExamples:
    """Read the images that `job` trains on."""
    rows = image_rows(job, job.data.train)
    return ImageExamples(_images(job, rows), job.augment, rows, source=job.data.source, label=job.data.label)


@functools.lru_cache(maxsize=2)
def _all_ids(images: Images) -> NDArray[np.int64]:
    """Compute the ids of all images, int64 [n, 1]."""
    return images.content_ids(np.arange(len(images))).numpy()[:, None]


@functools.lru_cache(maxsize=2)
def _numbered_labels(rows: Rows) -> NDArray[np.int64]:
    """Number the labels by which images are judged, int64 [n]; -1 for an image without."""
    return numbered(_labels(rows))


@looked_at_once()
def image_evaluation(job: JobConfig, source: str) -> ImageEvaluation:
    """Read the first job.evaluate.references labelled rows of data.train, and the rows of `source`."""
    train, judged = image_rows(job, job.data.train), image_rows(job, source)
    references = _images(job, train)
    queries = _images(job, judged, channels=references.shape[0])
    if references.shape != queries.shape:
        c, h, w = queries.shape
        raise judged.fault(
            f"images are {h} x {w} x {c} where those of {train.source} are {references.shape[1]} x "
            f"{references.shape[2]} x {references.shape[0]}; judge on images of the training size",
            column=queries.column,
        )
    known, asked = _labels(train), _labels(judged)
    labelled = np.flatnonzero(known.is_valid().to_numpy())[: job.evaluate.references]
    if not len(labelled):
        raise train.fault("has no row with a label; images are judged by labels", column=train.table.column_names[1])
    if asked.null_count:
        row = pc.index(pc.is_null(asked), value=True).as_py()
        raise judged.fault("holds no label; remove the row", column=judged.table.column_names[1], row=row)
    known_codes, asked_codes = _codes(known.take(pa.array(labelled)), asked)
    if len(np.unique(known_codes)) < 2:
        raise train.fault(
            f"the first {len(labelled)} labelled rows are all of one class; shuffle them or raise evaluate.references",
            column=train.table.column_names[1],
        )
    return ImageEvaluation(references.subset(labelled), known_codes, queries, asked_codes, judged)


def _images(job: JobConfig, rows: Rows, *, channels: int | None = None) -> Images:
    shape = None if job.data.image_shape is None else tuple(job.data.image_shape)
    return images_of(rows, rows.table.column_names[0], shape, channels=channels)


def _labels(rows: Rows) -> pa.ChunkedArray:
    if rows.table.num_columns < 2:
        raise rows.fault(
            f"is missing: images are judged by their labels; the columns here are {listed(rows.names[0])}; add it, "
            f"or name yours in data.columns = {_meant(rows.names[0], both=True) or '[image, label]'}",
            column="label",
        )
    return rows.table[1]


def _codes(*labels: pa.ChunkedArray) -> list[NDArray[np.int64]]:
    """Convert labels to int64, equal where labels are equal: integers as they are, anything else by its position in
    order. Where some are texts, all are read as texts, so that 1 and 1.0 are '1'."""
    if all(pa.types.is_integer(column.type) for column in labels):
        return [column.to_numpy().astype(np.int64) for column in labels]
    numeric = all(pa.types.is_integer(column.type) or pa.types.is_floating(column.type) for column in labels)
    values = [np.array([value if numeric else _as_text(value) for value in column.to_pylist()]) for column in labels]
    codes = np.unique(np.concatenate(values), return_inverse=True)[1].astype(np.int64)
    return list(np.split(codes, np.cumsum([len(column) for column in values])[:-1]))


def _as_text(label: object) -> str:
    return str(int(label)) if isinstance(label, float) and label.is_integer() else str(label)
