"""[3, 8, 8] arrays were read as images of 3 x 8 pixels with 8 channels, and a shape that contradicts them scrambled
their pixels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, job, pictures, read, refused, write

from jobs import data


def nested(values: np.ndarray, kind: pa.DataType | None = None) -> pa.Array:
    """Lists in lists, of uint8 unless of another type."""
    made = kind or pa.uint8()
    for _ in values.shape[1:]:
        made = pa.list_(made)
    return pa.array(values.tolist(), made)


def tensors(values: np.ndarray, permutation: list[int] | None = None) -> pa.Array:
    """Arrow tensors. permutation: where each axis of `values` lies."""
    axes = permutation or list(range(values.ndim - 1))
    kind = pa.fixed_shape_tensor(pa.uint8(), [values.shape[1:][axes.index(k)] for k in range(len(axes))], None, axes)
    lying = np.moveaxis(values, [k + 1 for k in range(len(axes))], [k + 1 for k in axes])
    flat = pa.FixedSizeListArray.from_arrays(pa.array(lying.ravel()), int(np.prod(values.shape[1:])))
    return pa.ExtensionArray.from_storage(kind, flat)


def storages(pixels: np.ndarray, folder: Path) -> dict[str, tuple[pa.Array, list[int] | None]]:
    """The same coloured images, uint8 [n, H, W, 3], in every storage; and the data.image_shape that decides."""
    shape, first = list(pixels.shape[1:]), pixels.transpose(0, 3, 1, 2)
    (folder / "png").mkdir(exist_ok=True)
    for number, one in enumerate(pixels):
        (folder / f"png/{number}.png").write_bytes(encoded(one))
    paths = [f"png/{number}.png" for number in range(len(pixels))]
    return {
        "PNG": (pa.array([encoded(one) for one in pixels]), None),
        "path": (pa.array(paths), None),
        "path in a struct": (pa.array([{"bytes": None, "path": path} for path in paths]), None),
        "nested": (nested(pixels), shape),
        "nested int64": (nested(pixels, pa.int64()), shape),
        "nested fractions": (nested(pixels / np.float64(255), pa.float64()), shape),
        "nested channels first": (nested(first), shape),
        "tensor": (tensors(pixels), shape),
        "tensor channels first": (tensors(first), shape),
        "tensor that lies otherwise": (tensors(pixels, [2, 0, 1]), shape),
        "raw": (pa.array([one.tobytes() for one in pixels]), shape),
        "flat list": (nested(pixels.reshape(len(pixels), -1)), shape),
    }


@settings(max_examples=25, deadline=None)
@given(n=st.integers(2, 3), h=st.integers(1, 5), w=st.integers(1, 5), seed=st.integers(0, 99))
def test_any_picture_is_the_same_in_every_storage(
    tmp_path_factory: pytest.TempPathFactory, n: int, h: int, w: int, seed: int
) -> None:
    """Also where its sides are alike, with the shape that decides; 3 x 3 x 3 means channels last. Mutant check: reading
    channels first as they lie, or a tensor without its permutation, fails this."""
    folder, pixels = tmp_path_factory.mktemp("storages"), pictures(n, h, w, 3, seed=seed)
    for name, (column, shape) in storages(pixels, folder).items():
        if "first" in name and h == w == 3:
            continue
        np.testing.assert_array_equal(read(write(folder / "a.parquet", column), shape), pixels, err_msg=name)


@pytest.mark.parametrize("channels", [1, 3])
def test_channels_are_where_the_lists_say_so(tmp_path: Path, channels: int) -> None:
    """With and without a shape, with height and width alone. Mutant check: taking the last list for channels fails."""
    pixels = pictures(4, 5, 6, channels)
    for column in (nested(pixels), nested(pixels.transpose(0, 3, 1, 2))):
        path = write(tmp_path / "a.parquet", column)
        for shape in (None, [5, 6], [5, 6, channels]):
            np.testing.assert_array_equal(read(path, shape), pixels)
            assert data.check(job(path, f"{path}[2:]", shape))[-1].endswith("[1000:]")
    if channels == 1:
        np.testing.assert_array_equal(read(write(tmp_path / "b.parquet", nested(pixels[..., 0]))), pixels)


@pytest.mark.parametrize(("shape", "one", "other"), [
    ((3, 5, 3), "[3, 5, 3]", "[5, 3, 3]"), ((1, 5, 3), "[1, 5, 3]", "[5, 3, 1]"), ((3, 5, 1), "[3, 5, 1]", "[5, 1, 3]"),
    ((3, 3, 3), "[3, 3, 3]", "transpose"),
])  # fmt: skip
def test_what_may_be_channels_first_or_last_is_asked_about(
    tmp_path: Path, shape: tuple[int, ...], one: str, other: str
) -> None:
    pixels = pictures(4, *shape)
    path = write(tmp_path / "a.parquet", nested(pixels))
    words = refused(job(path))
    assert "may be height, width, channels or channels, height, width" in words
    assert one in words
    assert other in words
    np.testing.assert_array_equal(read(path, list(shape)), pixels)
    if other.startswith("["):
        np.testing.assert_array_equal(read(path, [shape[1], shape[2], shape[0]]), pixels.transpose(0, 2, 3, 1))


def test_other_numbers_of_channels_are_asked_about(tmp_path: Path) -> None:
    pixels = pictures(4, 6, 7, 4)
    path = write(tmp_path / "a.parquet", nested(pixels))
    assert "set data.image_shape = [6, 7, 4] if the last are the channels" in refused(job(path))
    np.testing.assert_array_equal(read(path, [6, 7, 4]), pixels)
    first = write(tmp_path / "b.parquet", nested(pixels.transpose(0, 3, 1, 2)))
    assert "[6, 7, 4] if the first are" in refused(job(first))
    np.testing.assert_array_equal(read(first, [6, 7, 4]), pixels)


@pytest.mark.parametrize("shape", [[8, 8, 3], [16, 16], [16, 4, 1], [2, 6, 16], [12, 4, 4]])
def test_a_shape_that_contradicts_the_lists_is_refused(tmp_path: Path, shape: list[int]) -> None:
    """Though its product is theirs. Mutant check: comparing products alone fails this."""
    for column in (nested(pictures(4, 16, 4, 3)), tensors(pictures(4, 3, 4, 16))):
        words = refused(job(write(tmp_path / "a.parquet", column), shape=shape))
        assert f"data.image_shape = {shape}" in words


def test_a_shape_with_its_channels_first_is_refused(tmp_path: Path) -> None:
    for column in (pictures(4, 3 * 8 * 8), pictures(4, 3, 8, 8)):
        words = refused(job(write(tmp_path / "a.parquet", nested(column)), shape=[3, 8, 8]))
        assert "write [8, 8, 3]" in words
        assert "[3][8][8]" in words


RAGGED: dict[str, Any] = {
    "a list that is short": ([[1, 2, 3], [4, 5], [6, 7, 8, 9]], "a list of 2 where the lists before it are of 3"),
    "a list too few": ([[1, 2, 3], [4, 5, 6]], "a list of 2 where the lists before it are of 3"),
    "a list that is null": ([[1, 2, 3], None, [4, 5, 6]], "a list that is null"),
    "a number that is null": ([[1, 2, 3], [4, None, 6], [7, 8, 9]], "a number outside 0 to 255, or none"),
    "another shape of equal size": ([[1, 2, 3, 4, 5, 6, 7, 8, 9]], "a list of 1 where the lists before it are of 3"),
    "negative": ([[1, 2, 3], [4, -5, 6], [7, 8, 9]], "a number outside 0 to 255"),
    "16 bits": ([[1, 2, 3], [4, 4096, 6], [7, 8, 9]], "scale 16 bits to 8"),
}


@pytest.mark.parametrize("name", RAGGED)
def test_a_row_unlike_the_others_is_named(tmp_path: Path, name: str) -> None:
    """In whatever batch it lies. Mutant check: comparing how many numbers a row has fails this."""
    bad, found = RAGGED[name]
    good = pictures(7, 3, 3).tolist()
    path = write(tmp_path / "a.parquet", pa.array([*good[:4], bad, *good[4:]], pa.list_(pa.list_(pa.int64()))))
    words = refused(job(path))
    assert "column 'image', row 4 (the first is 0): holds " in words
    assert found in words


@pytest.mark.parametrize(("values", "found"), [
    ([0.0, 0.5, 255.0, 1.0], "outside 0 to 1, or none; divide by 255"),
    ([-1.0, 0.5, 1.0, 0.0], "outside 0 to 1"),
    ([float("nan"), 0.5, 1.0, 0.0], "outside 0 to 1, or none"),
])  # fmt: skip
def test_fractions_beyond_0_to_1_are_refused(tmp_path: Path, values: list[float], found: str) -> None:
    path = write(tmp_path / "a.parquet", [[0.0, 0.1, 0.2, 1.0], [0.0, 0.1, 0.2, 1.0], values])
    assert f"row 2 (the first is 0): holds a number {found}" in refused(job(path))


def test_true_is_white(tmp_path: Path) -> None:
    values = pictures(4, 3, 3) > 100
    np.testing.assert_array_equal(read(write(tmp_path / "a.parquet", values.tolist()))[..., 0], values * 255)


@pytest.mark.parametrize("flat", [True, False])
def test_whole_numbers_that_are_only_0_and_1_are_refused(tmp_path: Path, flat: bool) -> None:
    """They would all be black. One number above 1 anywhere is enough for the others to be what they say."""
    values = (pictures(2000, 4, 4) > 100).astype(np.uint8)

    def stored(pixels: np.ndarray) -> Path:
        return write(tmp_path / "a.parquet", [one.tobytes() for one in pixels] if flat else nested(pixels))

    assert "holds no number above 1 in any row" in refused(job(stored(values)))
    values[1999, 0, 0] = 2
    np.testing.assert_array_equal(read(stored(values))[..., 0], values)
    data.check(job(stored(values)))


def test_lists_that_are_nested_deeper_are_refused(tmp_path: Path) -> None:
    words = refused(job(write(tmp_path / "a.parquet", nested(pictures(4, 1, 3, 5, 5)))))
    assert "is nested 4 deep (1 x 3 x 5 x 5)" in words
