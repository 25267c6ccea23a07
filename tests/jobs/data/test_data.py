"""Data: every format and place gives the same rows; views are functions of their keys; every fault has a name."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet as pq
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs import data
from jobs.config import Augment, JobConfig, load_job
from jobs.data import (
    DataError,
    ImageEvaluation,
    ImageExamples,
    SentenceEvaluation,
    SentenceExamples,
    resolve,
    sources,
)
from jobs.data.__main__ import main
from jobs.data.images.augmentations.crop_flip import crop_flip
from jobs.data.validate import train_rows

ROOT = Path(__file__).parents[3]
SENTENCES = [
    f"Sentence number {i}, about {topic}." for i, topic in enumerate(["rain", "größe", "猫", "tea", 'a "b", c'] * 4)
]


def job(task: str, train: Path | str, judged: Path | str = "digits[1000:]", **changes: Any) -> JobConfig:
    """A small job. changes: sections that replace or extend these."""
    raw: dict[str, Any] = {
        "task": task,
        "budget": {"steps": 3},
        "data": {"train": str(train), "confirm": str(judged)},
        "batch": {"size": 4},
        "evaluate": {"neighbours": 2},
        "model": {"vocabulary": 200},
    }
    for section, values in changes.items():
        raw[section] = {**raw.get(section, {}), **values} if isinstance(values, dict) else values
    return JobConfig.model_validate(raw)


def image_job(train: Path | str, judged: Path | str | None = None, **changes: Any) -> JobConfig:
    return job("image", train, train if judged is None else judged, **changes)


def sentence_job(train: Path | str, judged: Path | str, **changes: Any) -> JobConfig:
    return job("sentence", train, judged, **changes)


def images(job: JobConfig) -> ImageExamples:
    examples = data.train_examples(job)
    assert isinstance(examples, ImageExamples)
    return examples


def sentences(job: JobConfig, tokenizer: Any = None) -> SentenceExamples:
    examples = data.train_examples(job, tokenizer)
    assert isinstance(examples, SentenceExamples)
    return examples


@pytest.fixture
def scored(tmp_path: Path) -> Path:
    (tmp_path / "judged").mkdir()
    path = tmp_path / "judged/scored.parquet"
    table = {"sentence1": ["a cat", "a dog", "rain"], "sentence2": ["one cat", "tea", "rain"], "score": [4.5, 0.5, 5.0]}
    pq.write_table(pa.table(table), path)
    return path


def raw_images(n: int, size: int, *, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, size), dtype=np.uint8)


def labelled(pixels: np.ndarray, column: pa.Array | None = None) -> pa.Table:
    if column is None:
        column = pa.array([row.tobytes() for row in pixels], pa.binary(pixels.shape[1]))
    return pa.table({"image": column, "label": pa.array(np.arange(len(pixels)) % 3)})


def png(pixels: np.ndarray, kind: str = "PNG") -> bytes:
    from PIL import Image

    file = io.BytesIO()
    Image.fromarray(pixels).save(file, kind)
    return file.getvalue()


# --- formats and places


def write_stream(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_stream(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_file(table: pa.Table, path: Path) -> None:
    with pa.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=7)


def write_lines(table: pa.Table, path: Path) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in table.to_pylist()), "utf-8")


def write_text(table: pa.Table, path: Path) -> None:
    path.write_text("\n".join(table["text"].to_pylist()), "utf-8")


def gzipped(write: Callable[[pa.Table, Path], None]) -> Callable[[pa.Table, Path], None]:
    def both(table: pa.Table, path: Path) -> None:
        write(table, path)
        path.write_bytes(gzip.compress(path.read_bytes()))

    return both


WRITERS: dict[str, Callable[[pa.Table, Path], None]] = {
    "a.parquet": lambda table, path: pq.write_table(table, path, row_group_size=6),
    "a.arrow": write_file,
    "b.arrow": write_stream,
    "a.feather": pyarrow.feather.write_feather,
    "a.csv": pyarrow.csv.write_csv,
    "a.csv.gz": gzipped(pyarrow.csv.write_csv),
    "a.jsonl": write_lines,
    "a.jsonl.gz": gzipped(write_lines),
    "a.txt": write_text,
    "a.txt.gz": gzipped(write_text),
}


@pytest.mark.parametrize("name", WRITERS)
@pytest.mark.parametrize("part", ["", "[3:11]", "[-4:]", "[:-17]", "[6:12]"])
def test_every_format_gives_the_same_rows(tmp_path: Path, name: str, part: str) -> None:
    """Row groups and batches end inside the slices. Mutant check: not subtracting skipped row groups fails this."""
    WRITERS[name](pa.table({"text": SENTENCES}), tmp_path / name)
    bounds = [int(bound) if bound else None for bound in part.strip("[]").split(":")] if part else [None]
    assert data.open_table(f"{tmp_path / name}{part}")["text"].to_pylist() == SENTENCES[slice(*bounds)]


def test_lines_are_split_at_newlines_only(tmp_path: Path) -> None:
    """Not at the other line ends that Python knows; and Windows line ends are no part of a sentence."""
    path = tmp_path / "a.txt"
    path.write_bytes("one\u2028still one\r\ntwo\x0bstill two\r\nthree".encode())
    assert data.open_table(str(path))["text"].to_pylist() == ["one\u2028still one", "two\x0bstill two", "three"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt"])
def test_rows_are_whole_wherever_a_batch_of_them_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setattr("jobs.data.formats.lines.BLOCK", 3)
    monkeypatch.setattr("jobs.data.formats.objects.BATCH", 3)
    WRITERS[name](pa.table({"text": SENTENCES}), tmp_path / name)
    assert data.open_table(f"{tmp_path / name}[1:]")["text"].to_pylist() == SENTENCES[1:]


def test_folders_globs_and_uris_join_their_files_in_order_of_name(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    for index, name in ((0, "1.parquet"), (1, "2.csv"), (2, "in/3.jsonl")):
        WRITERS["a." + name.rpartition(".")[2]](pa.table({"text": SENTENCES[index::3]}), tmp_path / name)
    (tmp_path / ".hidden.csv").write_text("x")
    (tmp_path / "README.md").write_text("x")
    every = SENTENCES[0::3] + SENTENCES[1::3] + SENTENCES[2::3]
    for source in (f"{tmp_path}", f"{tmp_path}/**/*", tmp_path.as_uri(), f"{tmp_path.as_uri()}/**/*"):
        assert data.open_table(source)["text"].to_pylist() == every, source
        assert data.open_table(f"{source}[6:15]")["text"].to_pylist() == every[6:15], source
    for top in (f"{tmp_path}/[12].*", f"{tmp_path}/*", f"{tmp_path.as_uri()}/?.*"):
        assert data.open_table(top)["text"].to_pylist() == every[:14], top
    assert data.open_table(f"{tmp_path.as_uri()}/2.csv")["text"].to_pylist() == SENTENCES[1::3]


ODD_NAMES = (
    "a b.txt",
    "a#b.txt",
    "a.txt",
    "a.txt#2.txt",
    "a%20b.txt",
    "[1].txt",
    "x[1]é.txt",
    "q?x.txt",
    "x=1+2&3.txt",
)


def test_names_with_signs_of_a_uri_are_each_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: putting a name that was listed into a URI as it is reads another file, or raises."""
    for name in ODD_NAMES:
        (tmp_path / name).write_text(f"{name}\n")
    top = tmp_path.as_uri()

    def found(source: str) -> Any:
        return data.open_table(source)["text"].to_pylist()

    for source in (top, f"{top}/*.txt", f"{top}/**/*.txt", f"file://{tmp_path}"):
        assert found(source) == sorted(ODD_NAMES), source
    for name in ODD_NAMES:
        assert found(f"{top}/{quote(name)}") == [name]
        assert "%" in name or found(f"{top}/{name}") == [name]
    monkeypatch.setenv("ORCHESTRATOR_DATA", top)
    for name in ODD_NAMES:
        assert found(name) == [name]


@pytest.mark.parametrize(
    "pattern", ["[!a]*", "[]a]*", "?.txt", "[ax*", "x[[]*", "**/[^a]*", "[z-a]*", "[\\\\d]*", "[!!]*"]
)
def test_a_glob_means_the_same_in_a_folder_and_behind_an_address(tmp_path: Path, pattern: str) -> None:
    for name in ("a.txt", "b.txt", "]c.txt", "x[d.txt", "^e.txt", "1.txt", "ax.txt", "!.txt", "[ax.txt"):
        (tmp_path / name).write_text(f"{name}\n")

    def found(source: str) -> Any:
        try:
            return data.open_table(source)["text"].to_pylist()
        except DataError:  # none fits
            return []

    assert found(f"{tmp_path.as_uri()}/{pattern}") == found(f"{tmp_path}/{pattern}")


@pytest.mark.soak
def test_what_a_file_system_raises_shows_no_credentials() -> None:
    """Whatever class it has: those behind hf:// raise their own."""
    for source in ("https://me:secret@host/a.csv", "s3://AKIA:secret@b/a b.csv?scheme=%zz", "nosuch://x/[1].csv"):
        with pytest.raises(DataError, match="cannot be reached: ") as caught:
            data.open_table(source)
        assert "secret" not in str(caught.value)
        assert "s3" in source or "download it" in str(caught.value)
    file = resolve.File("s3://b/a b.csv", uri="s3://AKIA:secret@b/a b.csv")
    with pytest.raises(DataError, match="cannot be read: ") as caught:
        sources._open(file)
    assert "secret" not in str(caught.value)


def test_a_name_is_looked_up_under_the_data_folder_with_or_without_its_extension(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pq.write_table(pa.table({"text": SENTENCES}), tmp_path / "wiki-en.parquet")
    for root in (str(tmp_path), tmp_path.as_uri()):
        monkeypatch.setenv("ORCHESTRATOR_DATA", root)
        for name in ("wiki-en", "wiki-en.parquet", "wiki-en[:20]"):
            assert data.open_table(name)["text"].to_pylist() == SENTENCES
    monkeypatch.setenv("ORCHESTRATOR_DATA", str(tmp_path))
    with pytest.raises(DataError, match=r"^wiki_en: .*did you mean 'wiki-en'"):
        data.open_table("wiki_en")
    monkeypatch.delenv("ORCHESTRATOR_DATA")
    with pytest.raises(DataError, match="set \\$ORCHESTRATOR_DATA"):
        data.open_table("wiki-en")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """An S3 server of our own, over HTTP, with a bucket `bucket`; the query that finds it."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("EC2_METADATA_DISABLED", "true")):
        monkeypatch.setenv(f"AWS_{name}", value)
    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        query = f"?endpoint_override=127.0.0.1:{server.get_host_and_port()[1]}&scheme=http&region=us-east-1"
        fs.FileSystem.from_uri(f"s3://bucket{query}&allow_bucket_creation=true")[0].create_dir("bucket")
        yield query
    finally:
        server.stop()


def test_sources_in_a_bucket_are_found_like_local_ones(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And no error shows the credentials of a URI. Mutant check: dropping the query of a file's URI fails this."""
    from pyarrow import fs

    store, _ = fs.FileSystem.from_uri(f"s3://bucket{bucket}")
    for name in ("in/1.parquet", "in/2.parquet", "in/more/3.parquet", "in/_other.parquet"):
        pq.write_table(pa.table({"text": [f"{name} {i}" for i in range(3)]}), f"bucket/{name}", filesystem=store)

    def found(source: str) -> list[str]:
        return [text.split()[0] for text in data.open_table(source)["text"].to_pylist()[::3]]

    assert found(f"s3://bucket/in{bucket}") == ["in/1.parquet", "in/2.parquet", "in/more/3.parquet"]
    assert found(f"s3://bucket/in/*.parquet{bucket}") == ["in/1.parquet", "in/2.parquet"]
    assert found(f"s3://bucket/in/**/[23].parquet{bucket}") == ["in/2.parquet", "in/more/3.parquet"]
    assert data.open_table(f"s3://bucket/in{bucket}[2:4]")["text"].to_pylist() == ["in/1.parquet 2", "in/2.parquet 0"]
    monkeypatch.setenv("ORCHESTRATOR_DATA", f"s3://bucket/in{bucket}")
    assert found("2") == found("2.parquet") == ["in/2.parquet"]
    assert found("more/3") == ["in/more/3.parquet"]
    for missing in ("s3://bucket/no.parquet", "s3://a:secret@bucket/in/*.csv", "s3://a:secret@no/in", "4"):
        with pytest.raises(DataError) as caught:
            data.open_table(missing + (bucket if "://" in missing else ""))
        assert "secret" not in str(caught.value)


def test_a_hub_name_says_what_it_needs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "datasets", None)
    with pytest.raises(DataError, match=r"owner/name:train: .*pip install datasets .*hf://datasets/owner/name"):
        data.open_table("owner/name:train")


def test_arrow_files_are_used_where_they_lie(tmp_path: Path) -> None:
    """Mutant check: reading the file's bytes in place of mapping it fails this."""
    pixels = raw_images(4096, 1024)
    write_file(labelled(pixels), tmp_path / "big.arrow")
    before = pa.total_allocated_bytes()
    examples = images(image_job(tmp_path / "big.arrow"))
    assert examples.image_shape == (1, 32, 32)
    np.testing.assert_array_equal(examples.images.unit(np.array([4000]))[0, 0] * 255, pixels[4000].reshape(32, 32))
    assert pa.total_allocated_bytes() - before < pixels.nbytes / 100


def test_only_the_columns_and_row_groups_asked_for_are_read(tmp_path: Path) -> None:
    """All others are destroyed on disk. Mutant check: reading all row groups, or all columns, fails this."""
    pixels, path = raw_images(40, 16), tmp_path / "a.parquet"
    pq.write_table(labelled(pixels).append_column("more", pa.array(["x" * 100] * 40)), path, row_group_size=10)
    found, whole = pq.ParquetFile(path).metadata, bytearray(path.read_bytes())
    for group in range(4):
        for column in range(3):
            if group != 1 or column == 2:
                chunk = found.row_group(group).column(column)
                start = min(chunk.dictionary_page_offset or chunk.data_page_offset, chunk.data_page_offset)
                whole[start : start + chunk.total_compressed_size] = b"\xff" * chunk.total_compressed_size
    path.write_bytes(whole)
    few = data.open_table(f"{path}[12:19]", columns=["image", "label"])
    assert few["image"].to_pylist() == [row.tobytes() for row in pixels[12:19]]
    with pytest.raises(DataError):
        data.open_table(f"{path}[9:19]", columns=["image", "label"])


def test_an_unchanged_file_is_read_once_and_a_changed_one_again(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(labelled(raw_images(5, 4)), path)
    first = images(image_job(path)).images
    assert images(image_job(path, seed=3)).images is first
    pq.write_table(labelled(raw_images(6, 4)), path)
    assert len(images(image_job(path)).images) == 6


def test_digits_are_the_images_that_scikit_learn_bundles() -> None:
    from sklearn.datasets import load_digits

    bundled = load_digits()
    table = data.open_table("digits")
    pixels = np.array([list(value) for value in table["image"].to_pylist()])
    np.testing.assert_array_equal(pixels, np.rint(bundled.data * 255 / 16))
    np.testing.assert_array_equal(table["label"].to_numpy(), bundled.target)


# --- pixels


PIXELS = raw_images(9, 2 * 3 * 3)


def storages() -> dict[str, tuple[pa.Array, list[int] | None]]:
    """The same nine 2 x 3 colour images, and the data.image_shape that each storage needs."""
    lists, nested = PIXELS.tolist(), PIXELS.reshape(9, 2, 3, 3).tolist()
    pngs = [png(row.reshape(2, 3, 3)) for row in PIXELS]
    return {
        "fixed_size_binary": (pa.array([row.tobytes() for row in PIXELS], pa.binary(18)), [2, 3, 3]),
        "raw binary": (pa.array([row.tobytes() for row in PIXELS]), [2, 3, 3]),
        "raw large binary": (pa.array([row.tobytes() for row in PIXELS], pa.large_binary()), [2, 3, 3]),
        "list of bytes": (pa.array(lists, pa.list_(pa.uint8())), [2, 3, 3]),
        "fixed list": (pa.array(lists, pa.list_(pa.uint8(), 18)), [2, 3, 3]),
        "list of int64": (pa.array(lists), [2, 3, 3]),
        "list of fractions": (pa.array((PIXELS / np.float64(255)).tolist()), [2, 3, 3]),
        "nested lists": (pa.array(nested), None),
        "PNG": (pa.array(pngs), None),
        "PNG in a struct": (pa.array([{"bytes": one, "path": None} for one in pngs]), None),
    }


@pytest.mark.parametrize("name", storages())
def test_every_storage_gives_the_same_pixels(tmp_path: Path, name: str) -> None:
    """Sliced and in several chunks, so offsets count. Mutant check: ignoring a chunk's offset fails this."""
    column, shape = storages()[name]
    table = labelled(PIXELS, column)
    write_file(pa.concat_tables([table[1:4], table[4:5], table[5:]]), tmp_path / "a.arrow")
    examples = images(image_job(f"{tmp_path}/a.arrow[1:]", data={"image_shape": shape}))
    rows = np.array([6, 0, 3, 3, 1])
    expected = torch.from_numpy(PIXELS[2:][rows].reshape(5, 2, 3, 3)).permute(0, 3, 1, 2) / 255
    assert examples.image_shape == (3, 2, 3)
    torch.testing.assert_close(examples.images.unit(rows), expected, rtol=0, atol=1e-7)
    torch.testing.assert_close(
        examples.images[1:3], (expected[[4, 0]] * 0 + examples.images.unit(np.array([1, 2])) - 0.5) / 0.5
    )
    ids = examples.pair_ids(rows)
    assert ids[2] == ids[3]
    assert len(set(ids.tolist())) == 4


def test_encoded_images_are_resized_when_a_shape_is_given(tmp_path: Path) -> None:
    pngs = [png(raw_images(1, h * w, seed=h).reshape(h, w)) for h, w in ((4, 4), (9, 5), (2, 2))]
    pq.write_table(labelled(PIXELS[:3], pa.array(pngs)), tmp_path / "a.parquet")
    assert images(image_job(tmp_path / "a.parquet", data={"image_shape": [6, 8, 3]})).images[:].shape == (3, 3, 6, 8)
    with pytest.raises(DataError, match=r"row 1 .*9 x 5 pixels where the first image is 4 x 4; set data.image_shape"):
        data.check(image_job(tmp_path / "a.parquet", batch={"size": 2}))


def test_decoded_images_are_the_same_whether_kept_or_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    column, _ = storages()["PNG"]
    pq.write_table(labelled(PIXELS, column), tmp_path / "a.parquet")
    pq.write_table(labelled(PIXELS, column), tmp_path / "b.parquet")
    kept = images(image_job(tmp_path / "a.parquet")).images
    monkeypatch.setattr("jobs.data.images.encoded.KEPT_BYTES", 0)
    decoded = images(image_job(tmp_path / "b.parquet")).images
    for rows in ([3, 1, 3], [1, 8], []):
        chosen = np.array(rows, np.int64)
        assert torch.equal(kept.unit(chosen), decoded.unit(chosen))


# --- views of images


def view_pixels(examples: ImageExamples, rows: np.ndarray, pairs: np.ndarray, **keys: int) -> torch.Tensor:
    views = examples.views(rows, pairs=pairs, **{"seed": 1, "step": 2, **keys})
    return torch.stack([views.queries["pixel_values"], views.keys["pixel_values"]], dim=1)


@pytest.fixture(scope="module")
def coloured(tmp_path_factory: pytest.TempPathFactory) -> ImageExamples:
    path = tmp_path_factory.mktemp("coloured") / "a.parquet"
    pq.write_table(labelled(raw_images(300, 9 * 13 * 3)), path)
    return images(image_job(path, data={"image_shape": [9, 13, 3]}))


@pytest.fixture(scope="module")
def whole(coloured: ImageExamples) -> tuple[np.ndarray, torch.Tensor]:
    """Data rows of a batch of 256, and all its views at once."""
    rows = np.random.default_rng(5).permutation(300)[:256]
    return rows, view_pixels(coloured, rows, np.arange(256))


@settings(max_examples=30, deadline=None)
@given(chosen=st.lists(st.integers(0, 255), min_size=1, max_size=70), threads=st.sampled_from([1, 1, 1, 2]))
def test_a_view_has_the_same_bits_whatever_else_is_in_the_chunk(
    coloured: ImageExamples, whole: tuple[np.ndarray, torch.Tensor], chosen: list[int], threads: int
) -> None:
    """Mutant check: adding a random number drawn per chunk, or numbering pairs within the chunk, fails this."""
    rows, views = whole
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        part = view_pixels(coloured, rows[chosen], np.array(chosen))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(part, views[chosen])


def test_views_differ_by_seed_step_pair_and_view(coloured: ImageExamples) -> None:
    """Mutant check: leaving any of the four keys out fails this."""
    row, pair = np.array([7]), np.array([3])
    one = view_pixels(coloured, row, pair)
    assert not torch.equal(one[:, 0], one[:, 1]), "both views are the same"
    for other in (
        view_pixels(coloured, row, pair, seed=9),
        view_pixels(coloured, row, pair, step=9),
        view_pixels(coloured, row, np.array([4])),
    ):
        assert not torch.equal(one[:, 0], other[:, 0])
        assert not torch.equal(one[:, 1], other[:, 1])


def keys_for(n: int) -> dict[str, Any]:
    return {"seed": 0, "step": 1, "pairs": torch.arange(n), "view": 0}


def test_augmentation_at_strength_zero_changes_nothing() -> None:
    unit = torch.rand(50, 3, 9, 13, generator=torch.Generator().manual_seed(0))
    assert torch.equal(crop_flip(unit, Augment(crop=1.0, flip=False, brightness=0.0), **keys_for(50)), unit)


def test_a_flip_mirrors_half_of_the_images_left_and_right() -> None:
    unit = torch.rand(1000, 1, 4, 5, generator=torch.Generator().manual_seed(0))
    flipped = crop_flip(unit, Augment(crop=1.0, flip=True, brightness=0.0), **keys_for(1000))
    is_same, is_mirrored = ((flipped == each).flatten(1).all(1) for each in (unit, unit.flip(-1)))
    assert (is_same ^ is_mirrored).all()
    assert 430 < int(is_mirrored.sum()) < 570, "1000 fair coins lie within 4.4 standard deviations of 500"


def test_brightness_multiplies_by_a_factor_within_its_range() -> None:
    unit = torch.full((1000, 1, 2, 2), 0.5)
    factor = crop_flip(unit, Augment(crop=1.0, flip=False, brightness=0.4), **keys_for(1000))[:, 0, 0, 0] / 0.5
    assert 0.6 <= float(factor.min()) < 0.62
    assert 1.38 < float(factor.max()) <= 1.4
    bright = crop_flip(torch.ones(100, 1, 2, 2), Augment(crop=1.0, brightness=0.4), **keys_for(100))
    assert float(bright.max()) == 1.0


@pytest.mark.parametrize("crop", [0.25, 0.9])
def test_a_crop_is_a_rectangle_of_the_promised_area_and_shape_within_the_image(crop: float) -> None:
    """The image holds the coordinates of its pixels, so the crop can be read off. Mutant check: crops by side in place
    of area, and crops cut off at the border for being too long, fail this."""
    n, side = 2000, 64
    axis = (torch.arange(side) + 0.5) / side
    image = torch.stack([axis[:, None].expand(side, side), axis.expand(side, side)])
    crops = crop_flip(image.expand(n, 2, side, side), Augment(crop=crop, flip=False, brightness=0.0), **keys_for(n))
    # Read off away from the border, where bilinear sampling is clamped.
    height = (crops[:, 0, 40, 0] - crops[:, 0, 24, 0]) * side / 16
    width = (crops[:, 1, 0, 40] - crops[:, 1, 0, 24]) * side / 16
    area, ratio = height * width, height / width
    assert float(crops.min()) > 0.499 / side
    assert float(crops.max()) < 1 - 0.499 / side
    assert crop - 1e-3 < float(area.min()) < crop + 0.01
    assert 0.99 < float(area.max()) < 1 + 1e-3
    spread = (1 - crop) / (12 * n) ** 0.5
    assert abs(float(area.mean()) - (1 + crop) / 2) < 4 * spread, "uniform: four standard errors"
    narrowest = max(crop, 0.75)
    assert narrowest - 1e-3 < float(ratio.min()) < narrowest + 0.02
    assert 1 / narrowest - 0.03 < float(ratio.max()) < 1 / narrowest + 1e-3
    assert abs(float(ratio.log().mean())) < 0.01, "wide as often as tall"
    slack = 1 - torch.stack([height, width], 1)
    place = ((crops.mean(dim=(2, 3)) - 0.5) / slack)[slack > 0.02]
    assert -0.52 < float(place.min()) < -0.48
    assert 0.48 < float(place.max()) < 0.52
    assert abs(float(place.mean())) < 0.03, "anywhere in the image"


def test_a_mirrored_crop_is_the_crop_of_the_mirrored_image() -> None:
    unit = torch.rand(200, 2, 6, 7, generator=torch.Generator().manual_seed(0))
    views = crop_flip(unit, Augment(flip=True, brightness=0.0), **keys_for(200))
    plain, mirrored = (
        crop_flip(each, Augment(flip=False, brightness=0.0), **keys_for(200)) for each in (unit, unit.flip(-1))
    )
    is_plain, is_mirrored = ((views - each).flatten(1).abs().amax(1) < 1e-5 for each in (plain, mirrored))
    assert (is_plain ^ is_mirrored).all()
    assert 65 < int(is_plain.sum()) < 135


# --- order


@settings(max_examples=40, deadline=None)
@given(n=st.integers(2, 60), size=st.integers(2, 40), seed=st.integers(0, 2**31 - 1))
def test_every_epoch_visits_every_row_once(n: int, size: int, seed: int) -> None:
    """Mutant check: starting a new permutation at every batch, or dropping an epoch's rest, fails this."""
    steps = -(-3 * n // size)
    order = np.concatenate([data.batch_rows(n, size=size, seed=seed, step=step) for step in range(1, steps + 1)])
    for epoch in range(3):
        assert sorted(order[epoch * n : (epoch + 1) * n]) == list(range(n))


def test_order_depends_on_seed_and_epoch_and_not_on_the_batch_size() -> None:
    first, second = (data.batch_rows(100, size=100, seed=0, step=step).tolist() for step in (1, 2))
    assert first != second
    assert first != data.batch_rows(100, size=100, seed=1, step=1).tolist()
    assert first[:50] == data.batch_rows(100, size=50, seed=0, step=1).tolist()
    assert first[50:] == data.batch_rows(100, size=50, seed=0, step=2).tolist()


# --- sentences


def write_sentences(path: Path, **columns: list[Any]) -> Path:
    pq.write_table(pa.table(columns), path)
    return path


def test_a_sentence_is_paired_with_itself(tmp_path: Path, scored: Path) -> None:
    examples = sentences(sentence_job(write_sentences(tmp_path / "a.parquet", text=SENTENCES), scored))
    views = examples.views(np.array([0, 5, 2]), seed=0, step=1, pairs=np.arange(3))
    assert examples.hard_negatives == 0
    assert views.negatives is None
    assert torch.equal(views.queries["input_ids"], views.keys["input_ids"])
    ids = examples.tokenizer(SENTENCES[2])["input_ids"]
    assert views.queries["input_ids"][2][views.queries["attention_mask"][2] == 1].tolist() == ids


@pytest.mark.parametrize(
    "names",
    [
        ("anchor", "positive", "negative"),
        ("sent0", "sent1", "hard_neg"),
        ("query", "positive", "negative_1", "negative_2"),
        ("premise", "entailment", "contradiction"),
        ("question", "answer"),
    ],
)
def test_columns_are_known_by_their_usual_names(tmp_path: Path, scored: Path, names: tuple[str, ...]) -> None:
    """Negatives of one pair lie together. Mutant check: stacking columns below one another fails this."""
    columns = {name: [f"{name} {i}" for i in range(6)] for name in reversed((*names, "source"))}
    examples = sentences(sentence_job(write_sentences(tmp_path / "a.parquet", **columns), scored))
    views = examples.views(np.array([4, 1]), seed=0, step=1, pairs=np.arange(2))

    def read(inputs: dict[str, torch.Tensor]) -> list[str]:
        return [
            text.replace(" ", "")
            for text in examples.tokenizer.batch_decode(inputs["input_ids"], skip_special_tokens=True)
        ]

    assert examples.hard_negatives == len(names) - 2
    assert read(views.queries) == [f"{names[0]}{i}" for i in (4, 1)]
    assert read(views.keys) == [f"{names[1]}{i}" for i in (4, 1)]
    if examples.hard_negatives:
        assert views.negatives is not None
        in_file_order = [name for name in columns if name in names[2:]]
        assert read(views.negatives) == [f"{name}{i}" for i in (4, 1) for name in in_file_order]


def test_data_columns_choose_other_columns(tmp_path: Path, scored: Path) -> None:
    path = write_sentences(tmp_path / "a.parquet", english=SENTENCES, german=SENTENCES[::-1])
    both = sentences(sentence_job(path, scored, data={"columns": ["german", "english"]}))
    views = both.views(np.array([0]), seed=0, step=1, pairs=np.arange(1))
    assert views.keys["input_ids"][0].tolist() == both.tokenizer(SENTENCES[0])["input_ids"]
    with pytest.raises(DataError, match="column 'text': is missing; the columns here are english, german"):
        sentences(sentence_job(path, scored))


def test_scored_pairs_are_not_taken_for_positives(scored: Path) -> None:
    with pytest.raises(DataError, match=r"column 'score': .*set data.columns = \['sentence1'\]"):
        sentences(sentence_job(scored, scored))
    assert len(sentences(sentence_job(scored, scored, data={"columns": ["sentence1"]}))) == 3


@settings(max_examples=20, deadline=None)
@given(rows=st.lists(st.integers(0, 19), min_size=1, max_size=8))
def test_tokens_of_a_row_are_the_same_in_every_chunk(tokenized: SentenceExamples, rows: list[int]) -> None:
    """Padding apart, which reaches to the longest row. Mutant check: padding to max_tokens fails this."""
    inputs = tokenized.views(np.array(rows), seed=0, step=1, pairs=np.arange(len(rows))).queries
    expected = [tokenized.tokenizer(SENTENCES[row], truncation=True, max_length=12)["input_ids"] for row in rows]
    assert inputs["input_ids"].shape == (len(rows), max(map(len, expected)))
    for ids, mask, wanted in zip(inputs["input_ids"], inputs["attention_mask"], expected, strict=True):
        assert ids[: len(wanted)].tolist() == wanted
        assert mask.tolist() == [1] * len(wanted) + [0] * (len(ids) - len(wanted))
        assert set(ids[len(wanted) :].tolist()) <= {tokenized.tokenizer.pad_token_id}


@pytest.fixture(scope="module")
def tokenized(tmp_path_factory: pytest.TempPathFactory) -> SentenceExamples:
    folder = tmp_path_factory.mktemp("tokenized")
    path = write_sentences(folder / "a.parquet", text=SENTENCES)
    return sentences(sentence_job(path, path, data={"max_tokens": 12}))


def test_a_rank_without_rows_gets_empty_tensors(tokenized: SentenceExamples, coloured: ImageExamples) -> None:
    none = np.empty(0, np.int64)
    assert tokenized.views(none, seed=0, step=1, pairs=none).queries["input_ids"].shape[0] == 0
    assert tokenized.pair_ids(none).shape == (0,)
    assert view_pixels(coloured, none, none).shape == (0, 2, 3, 9, 13)
    assert coloured.pair_ids(none).shape == (0,)


def test_pairs_with_equal_anchors_have_equal_ids(tmp_path: Path, scored: Path) -> None:
    """On every rank: a process-wide hash seed must not enter. Mutant check: Python's hash() fails this."""
    path = write_sentences(tmp_path / "a.parquet", anchor=["x", "y", "x", "z"], positive=["a", "b", "c", "d"])
    ids = sentences(sentence_job(path, scored)).pair_ids(np.array([0, 2, 1, 3]))
    assert ids[0] == ids[1]
    assert len(set(ids.tolist())) == 3
    assert ids[2].item() == int.from_bytes(hashlib.blake2b(b"y", digest_size=8).digest(), "little", signed=True)


VOCABULARY = """
import json, pathlib, sys
from jobs import config, data
vocabulary = data.tokenizer_for(config.load_job(pathlib.Path(sys.argv[1]))).get_vocab()
print(json.dumps(sorted(vocabulary, key=vocabulary.__getitem__)))
"""


def test_the_vocabulary_is_the_same_in_every_process(tmp_path: Path, scored: Path) -> None:
    """Whatever its hash seed and threads, on words with many equally frequent merges. Mutant check: training
    without handing over the inner pieces in order fails this."""
    rng = np.random.default_rng(0)
    words = ["".join(rng.choice(list("abcdefghij"), rng.integers(2, 8))) for _ in range(400)]
    texts = [" ".join(rng.choice(words, 8)) for _ in range(200)]
    path = tmp_path / "job.json"
    path.write_text(sentence_job(write_sentences(tmp_path / "a.parquet", text=texts), scored).model_dump_json())
    here = {**os.environ, "PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1"}
    command = [sys.executable, "-c", VOCABULARY, str(path)]
    other = subprocess.run(command, cwd=ROOT, env=here, stdout=subprocess.PIPE, text=True, check=True).stdout
    vocabulary = data.tokenizer_for(load_job(path)).get_vocab()
    assert json.loads(other) == sorted(vocabulary, key=vocabulary.__getitem__)
    assert len(vocabulary) == 200


def test_the_trained_tokenizer_survives_saving(tmp_path: Path, tokenized: SentenceExamples) -> None:
    from transformers import AutoTokenizer

    tokenized.tokenizer.save_pretrained(tmp_path / "saved")
    loaded = AutoTokenizer.from_pretrained(tmp_path / "saved")
    for text in (*SENTENCES, "neverseen 漢 words"):
        assert loaded(text)["input_ids"] == tokenized.tokenizer(text)["input_ids"]
    assert loaded.pad_token == "[PAD]"
    assert len(loaded) == len(tokenized.tokenizer) <= 200
    own = data.tokenizer_for(job("sentence", "unused", "unused", model={"name": str(tmp_path / "saved")}))
    assert own(SENTENCES[0])["input_ids"] == loaded(SENTENCES[0])["input_ids"]


# --- evaluation


def test_images_are_judged_by_the_first_labelled_rows_of_the_training_data(tmp_path: Path) -> None:
    table = labelled(raw_images(10, 4)).set_column(1, "label", pa.array([None, 1, 0, None, 1, 0, 1, 2, 2, 2]))
    pq.write_table(table, tmp_path / "a.parquet")
    found = data.evaluation_data(
        image_job(tmp_path / "a.parquet", f"{tmp_path}/a.parquet[4:]", evaluate={"references": 4})
    )
    assert isinstance(found, ImageEvaluation)
    everything = images(image_job(tmp_path / "a.parquet")).images
    assert found.reference_labels.tolist() == [1, 0, 1, 0]
    assert torch.equal(found.reference_pixels[0:4], everything[[1, 2, 4, 5]])
    assert torch.equal(found.reference_pixels[1:3], everything[[2, 4]])
    assert len(found.reference_pixels) == 4
    assert found.query_labels.tolist() == [1, 0, 1, 2, 2, 2]
    assert torch.equal(found.query_pixels[2:], everything[6:])


@pytest.mark.parametrize("kinds", [("text", "text"), ("int8", "float64"), ("categories", "text")])
def test_labels_of_any_type_agree_between_files(tmp_path: Path, kinds: tuple[str, str]) -> None:
    """Mutant check: numbering each file's labels by itself fails this."""

    def column(kind: str, values: list[int]) -> pa.Array:
        names = [f"class {value}" for value in values]
        made = {"text": pa.array(names), "categories": pa.array(names).dictionary_encode()}
        return made.get(kind) if kind in made else pa.array(values, pa.type_for_alias(kind))

    for name, kind, values in (("a", kinds[0], [0, 2, 1, 2]), ("b", kinds[1], [2, 2, 1, 2])):
        table = labelled(raw_images(4, 4)).set_column(1, "label", column(kind, values))
        pyarrow.feather.write_feather(table, tmp_path / f"{name}.feather")
    found = data.evaluation_data(image_job(tmp_path / "a.feather", tmp_path / "b.feather"))
    assert isinstance(found, ImageEvaluation)
    assert found.query_labels.tolist() == found.reference_labels[[1, 1, 2, 1]].tolist()
    assert len(set(found.reference_labels.tolist())) == 3


def test_sentences_are_judged_by_scored_pairs(scored: Path) -> None:
    found = data.evaluation_data(sentence_job("unused", f"{scored}[1:]"))
    assert isinstance(found, SentenceEvaluation)
    assert (found.left, found.right, found.score.tolist()) == (["a dog", "rain"], ["tea", "rain"], [0.5, 5.0])


# --- faults: file, column, row, and what would work


def fails(job: JobConfig) -> str:
    with pytest.raises(DataError) as caught:
        data.check(job)
    return str(caught.value)


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "csv", "jsonl", "txt"])
def test_an_empty_file_is_named(tmp_path: Path, scored: Path, suffix: str) -> None:
    (tmp_path / f"a.{suffix}").touch()
    assert fails(sentence_job(tmp_path / f"a.{suffix}", scored)).startswith(
        f"{tmp_path}/a.{suffix}: is empty (0 bytes)"
    )


@pytest.mark.parametrize("name", WRITERS)
def test_a_file_without_rows_is_named(tmp_path: Path, scored: Path, name: str) -> None:
    WRITERS[name](pa.table({"text": pa.array([], pa.string())}), tmp_path / name)
    assert f"{tmp_path}/{name}" in fails(sentence_job(tmp_path / name, scored))


@pytest.mark.parametrize("name", ["a.parquet", "a.arrow", "a.feather", "a.csv.gz", "a.jsonl.gz", "a.txt.gz"])
def test_a_truncated_file_is_named(tmp_path: Path, scored: Path, name: str) -> None:
    WRITERS[name](pa.table({"text": SENTENCES}), tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: len(whole) * 2 // 3])
    message = fails(sentence_job(tmp_path / name, scored))
    assert message.startswith(f"{tmp_path}/{name}: ")
    assert "copy it again" in message


def test_a_parquet_file_damaged_inside_is_named(tmp_path: Path) -> None:
    path = tmp_path / "a.parquet"
    pq.write_table(labelled(raw_images(50, 64)), path)
    whole = bytearray(path.read_bytes())
    whole[4:2000] = b"\xff" * 1996
    path.write_bytes(whole)
    assert f"{path}: cannot be read" in fails(image_job(path))


@pytest.mark.parametrize("name", [name for name in WRITERS if "txt" not in name])
@pytest.mark.parametrize("value", [None, "", "  \t"])
def test_a_row_without_a_sentence_is_named(tmp_path: Path, scored: Path, name: str, value: str | None) -> None:
    """Mutant check: counting rows within a chunk in place of the file fails this."""
    texts = [*SENTENCES[:17], value, *SENTENCES]
    WRITERS[name](pa.table({"text": texts, "more": ["x"] * len(texts)}), tmp_path / name)
    message = fails(sentence_job(f"{tmp_path / name}[3:]", scored))
    assert message.startswith(f"{tmp_path}/{name}, column 'text', row 17 (the first is 0): is "), message
    assert "remove the row" in message


def test_an_empty_line_is_named(tmp_path: Path, scored: Path) -> None:
    (tmp_path / "a.txt").write_text("one\ntwo\n\nthree\nfour\n")
    assert f"{tmp_path}/a.txt, column 'text', row 2 " in fails(sentence_job(tmp_path / "a.txt", scored))


def test_the_row_is_counted_in_the_file_it_is_in(tmp_path: Path, scored: Path) -> None:
    write_sentences(tmp_path / "1.parquet", text=SENTENCES)
    write_sentences(tmp_path / "2.parquet", text=["fine", None, "fine"])
    assert f"{tmp_path}/2.parquet, column 'text', row 1 " in fails(sentence_job(f"{tmp_path}/*.parquet[5:]", scored))


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl", "a.txt", "a.parquet"])
def test_text_that_is_not_utf8_is_named(tmp_path: Path, scored: Path, name: str) -> None:
    if name == "a.parquet":
        bad = [text.encode() for text in SENTENCES]
        bad[12] = b"caf\xe9"
        array = pa.array(bad)
        table = pa.table({"text": pa.Array.from_buffers(pa.string(), len(array), array.buffers())})
        pq.write_table(table, tmp_path / name, store_schema=False)
        place = "column 'text', row 12"
    else:
        WRITERS[name](pa.table({"text": [*SENTENCES[:12], "café"]}), tmp_path / name)
        written = (tmp_path / name).read_bytes().replace(b"caf\\u00e9", b"caf\xe9").replace("café".encode(), b"caf\xe9")
        (tmp_path / name).write_bytes(written)
        place = {"a.txt": "line 13 is not UTF-8"}.get(name, "column 'text', row 12")
    message = fails(sentence_job(tmp_path / name, scored))
    assert message.startswith(f"{tmp_path}/{name}")
    assert place in message
    assert "UTF-8" in message


def test_missing_columns_are_named_with_those_that_are_there(tmp_path: Path, scored: Path) -> None:
    path = write_sentences(tmp_path / "a.parquet", body=SENTENCES, title=SENTENCES)
    assert "column 'text': is missing; the columns here are body, title" in fails(sentence_job(path, scored))
    asked = fails(sentence_job(path, scored, data={"columns": ["boddy"]}))
    assert "column 'boddy': is missing" in asked
    assert "did you mean 'body'" in asked
    assert "column 'sentence1': is missing" in fails(sentence_job(path, path, data={"columns": ["body"]}))
    assert "column 'image': is missing" in fails(image_job(path))


def test_a_file_that_lacks_a_column_of_the_first_is_named(tmp_path: Path, scored: Path) -> None:
    write_sentences(tmp_path / "1.parquet", text=SENTENCES)
    write_sentences(tmp_path / "2.parquet", txt=SENTENCES)
    assert f"{tmp_path}/2.parquet, column 'text': is missing" in fails(sentence_job(tmp_path / "*.parquet", scored))
    write_sentences(tmp_path / "2.parquet", text=[1, 2])
    assert f"{tmp_path}/2.parquet: does not match {tmp_path}/1.parquet" in fails(
        sentence_job(tmp_path / "*.parquet", scored)
    )


@pytest.mark.parametrize(("rows", "found"), [(1, "has 1 row; "), (3, "has 3 rows, fewer than batch.size = 4; ")])
def test_too_few_rows_for_a_batch_are_refused(tmp_path: Path, scored: Path, rows: int, found: str) -> None:
    path = write_sentences(tmp_path / "a.parquet", text=SENTENCES)
    assert f"a.parquet[:{rows}]: {found}" in fails(sentence_job(f"{path}[:{rows}]", scored))
    assert f"digits[:{rows}]: {found}" in fails(image_job(f"digits[:{rows}]", "digits[5:]"))
    assert "leaves nothing of 20 rows" in fails(sentence_job(f"{path}[20:]", scored))


def test_one_row_cannot_judge(scored: Path) -> None:
    assert "digits[:1]: has 1 row; data.confirm needs at least two" in fails(image_job("digits", "digits[:1]"))


def test_faulty_scores_are_named(tmp_path: Path) -> None:
    columns: dict[str, list[Any]] = {"sentence1": ["a", "b", "c", "d"], "sentence2": ["a", "b", "c", "d"]}
    train = write_sentences(tmp_path / "t.parquet", text=SENTENCES)
    for score, found in (
        ([1.0, 2.0, None, 3.0], "column 'score', row 2 (the first is 0): holds no number"),
        (["1", "2", "three", "4"], "column 'score', row 2 (the first is 0): holds 'three', which is no number"),
        ([[1], [2], [3], [4]], "column 'score': is of type list"),
        ([2.0, 2.0, 2.0, 2.0], "column 'score': holds one score only, 2; pairs are ranked"),
    ):
        path = write_sentences(tmp_path / "a.parquet", **columns, score=score)
        assert found in fails(sentence_job(train, path))
    path = write_sentences(
        tmp_path / "a.parquet", **{**columns, "sentence2": ["a", "", "c", "d"]}, score=[1.0, 2.0, 3.0, 4.0]
    )
    assert "column 'sentence2', row 1 (the first is 0): is empty" in fails(sentence_job(train, path))


def image_faults() -> dict[str, tuple[pa.Table, str]]:
    """A table with one fault, and what is said of it."""
    pixels = raw_images(6, 9)
    raw, lists = [row.tobytes() for row in pixels], pixels.tolist()
    encoded = [png(row.reshape(3, 3)) for row in pixels]

    def in_row_4(values: list[Any], bad: Any) -> pa.Table:
        return labelled(pixels, pa.array([*values[:4], bad, values[5]]))

    def labels(*values: int | None) -> pa.Table:
        return labelled(pixels).set_column(1, "label", pa.array(values, pa.int8()))

    image, label = "column 'image', row 4 (the first is 0): ", "column 'label', row 4 (the first is 0): "
    square = "holds 12 numbers, and that is no square grey image; set data.image_shape = [2, 2, 3]"
    structs = [{"bytes": one, "path": ""} for one in encoded]
    return {
        "null": (in_row_4(raw, None), image + "holds no image"),
        "null in a struct": (in_row_4(structs, {"bytes": None, "path": ""}), image + "holds no image"),
        "raw size": (in_row_4(raw, raw[4][1:]), image + "holds 8 numbers where"),
        "list size": (in_row_4(lists, lists[4][1:]), image + "holds 8 numbers where"),
        "encoded size": (in_row_4(encoded, png(pixels[4].reshape(1, 9))), image + "is 1 x 9 pixels where the first"),
        "not an image": (in_row_4(encoded, b"<html>404</html>"), image + "is no readable image"),
        "16 bits": (in_row_4(encoded, png(np.ones((3, 3), np.uint16))), image + "has more than 8 bits a channel"),
        "no square": (labelled(raw_images(6, 12)), square),
        "no pixels": (labelled(pixels, pa.array([b""] * 6)), "holds 0 numbers"),
        "number": (in_row_4(lists, [0, 0, 256, *lists[4][3:]]), image + "holds a number outside 0 to 255"),
        "no number": (in_row_4(lists, [0, None, *lists[4][2:]]), image + "holds a number outside 0 to 255, or none"),
        "fraction": (labelled(pixels, pa.array((pixels / 200).tolist())), "holds a number outside 0 to 1"),
        "type": (labelled(pixels, pa.array(range(6))), "column 'image': is of type int64"),
        "struct": (labelled(pixels, pa.array([{"png": b"x"}] * 6)), "a struct must have a field 'bytes' or 'path'"),
        "no label column": (labelled(pixels).select(["image"]), "column 'label': is missing: images are judged by"),
        "null label": (labels(0, 1, 2, 0, None, 1), label + "holds no label"),
        "no labels": (labels(*[None] * 6), "column 'label': has no row with a label"),
        "one class": (labels(*[3] * 6), "column 'label': the first 6 labelled rows are all of one class"),
    }


@pytest.mark.parametrize("name", image_faults())
def test_faulty_images_and_labels_are_named(tmp_path: Path, name: str) -> None:
    table, found = image_faults()[name]
    path = tmp_path / "a.parquet"
    pq.write_table(table, path, row_group_size=4)
    message = fails(image_job(path))
    assert message.startswith(f"{path}, ")
    assert found in message


def test_a_shape_that_does_not_fit_the_rows_is_refused(tmp_path: Path) -> None:
    pq.write_table(labelled(raw_images(6, 12)), tmp_path / "a.parquet")
    assert "holds 12 numbers, and data.image_shape = [3, 3] needs 9" in fails(
        image_job(tmp_path / "a.parquet", data={"image_shape": [3, 3]})
    )


def test_images_to_judge_on_must_be_of_the_training_size(tmp_path: Path) -> None:
    pq.write_table(labelled(raw_images(6, 9)), tmp_path / "a.parquet")
    assert "images are 3 x 3 x 1 where those of digits are 8 x 8 x 1" in fails(
        image_job("digits", tmp_path / "a.parquet")
    )


def test_rows_in_both_training_and_judging_are_warned_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    [warning] = data.check(image_job("digits", "digits[:500]"))
    assert "data.train = digits and data.confirm = digits[:500] share 500 rows" in warning
    assert data.check(image_job("digits[500:]", "digits[:500]")) == []
    [warning] = data.check(image_job("digits[:1000]", "digits[1100:]", data={"tune": "digits[1000:1101]"}))
    assert "data.tune" in warning
    assert "share 1 row: the verdict is on rows that tuning has seen" in warning
    pq.write_table(labelled(raw_images(20, 4)), tmp_path / "a.parquet")
    monkeypatch.chdir(tmp_path)
    [warning] = data.check(image_job("a.parquet", f"{tmp_path}/a.parquet[15:]"))
    assert "share 5 rows" in warning


def test_labels_that_cannot_be_learned_are_warned_of(tmp_path: Path) -> None:
    table = labelled(raw_images(12, 4)).set_column(1, "label", pa.array([0, 1] * 3 + [0, 2] * 3))
    pq.write_table(table, tmp_path / "a.parquet")
    few, strange = data.check(
        image_job(f"{tmp_path}/a.parquet[:6]", f"{tmp_path}/a.parquet[6:]", evaluate={"neighbours": 20})
    )
    assert "evaluate.neighbours = 20, but data.train has 6 rows with labels" in few
    assert "3 rows of data.confirm have labels that" in strange


# --- fingerprint


def test_equal_rows_have_equal_fingerprints_in_every_format(tmp_path: Path, scored: Path) -> None:
    found = set()
    for name, write in WRITERS.items():
        write(pa.table({"text": SENTENCES}), tmp_path / name)
        found.add(data.fingerprint(sentence_job(tmp_path / name, scored)))
    write_sentences(tmp_path / "longer.parquet", text=["one more", *SENTENCES])
    found.add(data.fingerprint(sentence_job(f"{tmp_path}/longer.parquet[1:]", scored)))
    assert len(found) == 1


def test_any_changed_row_changes_the_fingerprint(tmp_path: Path, scored: Path) -> None:
    """Also a letter that moves from one sentence to the next, and the order. Mutant check: hashing the text without its
    lengths fails this."""
    changed = [
        SENTENCES,
        SENTENCES[::-1],
        ["a", *SENTENCES[1:]],
        [SENTENCES[0][:-1], "." + SENTENCES[1], *SENTENCES[2:]],
    ]
    found = set()
    for number, texts in enumerate(changed):
        path = write_sentences(tmp_path / f"{number}.parquet", text=texts)
        found |= {data.fingerprint(sentence_job(path, scored)), data.fingerprint(sentence_job(path, f"{scored}[:2]"))}
    assert len(found) == 2 * len(changed)


@pytest.mark.parametrize("name", storages())
def test_a_fingerprint_does_not_depend_on_chunks(tmp_path: Path, name: str) -> None:
    column, shape = storages()[name]
    table = labelled(PIXELS, column)
    found = set()
    for number, parts in enumerate(([table], [table[:4], table[4:5], table[5:]])):
        write_file(pa.concat_tables(parts), tmp_path / f"{number}.arrow")
        found.add(data.fingerprint(image_job(tmp_path / f"{number}.arrow", data={"image_shape": shape})))
    assert len(found) == 1


# --- the command


def test_the_command_prints_what_the_data_are(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "job.json"
    chosen = image_job("digits", "digits[1500:]")
    path.write_text(chosen.model_dump_json())
    assert main([str(path)]) == 0
    printed = capsys.readouterr()
    found = json.loads(printed.out)
    assert printed.err == ""
    assert found["rows"] == 1797 == len(train_rows(chosen))
    assert found["fingerprint"] == data.fingerprint(chosen)
    assert "share 297 rows" in found["warnings"][0]


def test_the_command_ends_with_2_and_the_fault(tmp_path: Path) -> None:
    path = tmp_path / "job.json"
    path.write_text(image_job("digits[:3]", "digits").model_dump_json())
    command = [sys.executable, "-m", "jobs.data", str(path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("error: digits[:3]: has 3 rows, fewer than batch.size = 4")
    path.write_text("{")
    assert main([str(path)]) == 2
    assert main([]) == 2


# --- real data, where they are


def real(name: str) -> str:
    root = os.environ.get("ORCHESTRATOR_DATA")
    if not root or not list(Path(root).glob(f"{name}.*")):
        pytest.skip(f"{name} is not under $ORCHESTRATOR_DATA")
    return name


def test_fashion_mnist_is_read_by_name() -> None:
    source = real("fashion-mnist-train")
    chosen = image_job(f"{source}[:15000]", f"{source}[15000:]", batch={"size": 256}, evaluate={"references": 100})
    examples = images(chosen)
    assert (len(examples), examples.image_shape) == (15000, (1, 28, 28))
    assert data.check(chosen) == []
    pixels = examples.images.unit(np.arange(15000))
    assert abs(float(pixels.mean()) - 0.286) < 0.005, "the published mean"
    assert abs(float(pixels.std()) - 0.353) < 0.005, "and standard deviation"


def test_sts_sentences_are_read_by_name() -> None:
    source = real("stsb-en-dev")
    chosen = sentence_job(source, source, data={"columns": ["sentence1"]}, model={"vocabulary": 1000})
    found = data.evaluation_data(chosen)
    assert isinstance(found, SentenceEvaluation)
    assert len(found.left) == len(found.right) == len(found.score) == 1500
    assert found.score.max() == 5
    examples = sentences(chosen)
    views = examples.views(np.arange(64), seed=0, step=1, pairs=np.arange(64))
    unknown = (views.queries["input_ids"] == examples.tokenizer.unk_token_id).sum()
    assert int(unknown) == 0


def test_data_are_read_without_pandas_which_is_there_for_whoever_wants_it(tmp_path: Path) -> None:
    """pyarrow imports it with the first array. Mutant check: not looking for it in time."""
    pq.write_table(pa.table({"text": ["one", "two", None]}), tmp_path / "a.parquet")
    code = f"""
import sys
from jobs.data import open_table
for source in ("digits[:5]", {str(tmp_path / "a.parquet")!r}):
    table = open_table(source)
assert not {{"pandas", "torch", "transformers"}} & sys.modules.keys()
assert table.to_pandas()["text"].isna().sum() == 1
import pandas, pyarrow
assert pyarrow.array(pandas.Series([1.0, None])).null_count == 1
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
