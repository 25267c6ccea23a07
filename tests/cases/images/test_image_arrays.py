"""[3, 8, 8] arrays were read as images of 3 x 8 pixels with 8 channels, and a shape that contradicts them scrambled
their pixels."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, job, pictures, read, refused, write

from jobs import data
from jobs.data.images.mistaken import other_than_pixels


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


# --- what would be mistaken for pixels


def smooth(h: int, w: int, c: int) -> np.ndarray:
    """Coloured slopes, uint8 [6, h, w, c]."""
    slopes = np.add.outer(np.arange(6), np.add.outer(np.arange(h), np.arange(w)))[..., None]
    made: np.ndarray = (slopes + np.array([20, 120, 200, 80])[:c]).astype(np.uint8)
    return made


FLAT: dict[str, tuple[np.ndarray, str]] = {
    "float32": (pictures(6, 9, 9) / np.float32(255), "float32"),
    "float32 of 0 to 255": (pictures(6, 9, 9).astype("f4"), "float32"),
    "float32, standardised": ((pictures(6, 9, 9) / 255 - 0.5).astype("f4"), "float32"),
    "float32, big-endian": ((pictures(6, 9, 9) / 255).astype(">f4"), "float32 (big-endian)"),
    "float64 in a row of 6 x 12": (pictures(6, 6, 12) / 255, "float64"),
    "float16": ((pictures(6, 16, 8) / 255).astype("f2"), "float16"),
    "int32": (pictures(6, 9, 9).astype("i4"), "whole numbers of 4 bytes"),
    "int64": (pictures(6, 6, 12).astype("i8"), "whole numbers of 8 bytes"),
    "uint16": (pictures(6, 16, 8).astype("u2"), "whole numbers of 2 bytes"),
    "RGBA": (np.concatenate([pictures(6, 9, 9, 3), np.full((6, 9, 9, 1), 255, np.uint8)], -1), "four channels"),
    "RGB in a row of 12 x 16": (smooth(12, 16, 3), "three channels"),
    "RGBA, opaque by degrees": (smooth(12, 12, 4), "four channels"),
    "float32, coloured": (pictures(6, 8, 8, 3) / np.float32(255), "float32"),
}


@pytest.mark.parametrize("is_fixed", [True, False])
@pytest.mark.parametrize("name", FLAT)
def test_bytes_of_other_types_are_no_pixels(tmp_path: Path, name: str, is_fixed: bool) -> None:
    """Though they make a square of twice the side. Mutant check: counting bytes alone trains on noise."""
    values, what = FLAT[name]
    held = [one.tobytes() for one in values]
    path = write(tmp_path / "a.parquet", pa.array(held, pa.binary(len(held[0]) if is_fixed else -1)))
    words = refused(job(path))
    assert f"bytes a row that look like {what}" in words
    assert "give bytes of uint8" in words
    assert "3]" not in words
    side = int(np.sqrt(len(held[0])))
    if side * side == len(held[0]):
        assert f"[{side}, {side}]" in words
        assert read(path, [side, side]).shape == (6, side, side, 1)


@pytest.mark.parametrize(("kind", "each"), [("f4", "4 bytes"), ("f8", "8 bytes"), ("i2", "2 bytes")])
def test_a_true_shape_with_numbers_of_several_bytes_is_refused_without_another_shape(
    tmp_path: Path, kind: str, each: str
) -> None:
    path = write(tmp_path / "a.parquet", [one.tobytes() for one in pictures(4, 8, 8, 3).astype(kind)])
    words = refused(job(path, shape=[8, 8, 3]))
    assert f"that is {each} for each" in words
    assert "set data.image_shape" not in words


def squares() -> dict[str, np.ndarray]:
    """Grey pictures, uint8 [n, side, side], that have something odd."""
    line, spot, light = np.zeros((6, 16, 16)), np.zeros((6, 12, 12)), np.full((6, 12, 12), 255)
    line[:, :, 4], spot[:, 4:7, 4:7], light[:, 4:7, 4:7] = 200, pictures(6, 3, 3), 30
    ramp = np.tile(np.arange(28) * 9, (6, 28, 1))
    return {"line": line, "spot": spot, "light": light, "ramp": ramp, "other ramp": ramp.transpose(0, 2, 1)} | {
        "black": np.zeros((6, 8, 8)),
        "dull": np.full((6, 28, 28), 60) + pictures(6, 28, 28) % 12,
        "two colours": (pictures(6, 8, 8) > 100) * 255,
        "framed": np.pad(pictures(6, 8, 8), ((0, 0), (4, 4), (4, 4))),
    }


@pytest.mark.parametrize("name", squares())
def test_odd_pictures_are_pixels(name: str) -> None:
    values = squares()[name].astype(np.uint8)
    assert other_than_pixels(values.reshape(len(values), -1)) is None


@settings(max_examples=200, deadline=None)
@given(side=st.integers(2, 16), n=st.integers(2, 5), seed=st.integers(0, 10**6), kind=st.integers(0, 2))
def test_noise_drawings_and_slopes_are_pixels(side: int, n: int, seed: int, kind: int) -> None:
    drawn = np.random.default_rng(seed)
    values = drawn.integers(0, 256, (n, side, side))
    values = [values, (values > 180) * 255, np.cumsum(values % 3, 2) + values[0, 0, 0] % 200][kind]
    assert other_than_pixels(values.astype(np.uint8).reshape(n, -1)) is None


@pytest.mark.parametrize(("shape", "told"), [
    ((1, 144), [12, 12]), ((144, 1), [12, 12, 1]), ((3, 144), [12, 12, 3]), ((144, 3), [12, 12, 3]),
    ((4, 36), [6, 6, 4]), ((1, 24), [4, 6]), ((1, 144, 1), [9, 16]), ((144, 1, 1), [12, 12]),
    ((3, 1, 144), [12, 12, 3]),
])  # fmt: skip
def test_a_flattened_picture_is_asked_about_and_read_as_told(
    tmp_path: Path, shape: tuple[int, ...], told: list[int]
) -> None:
    """Mutant check: reading two lists as height and width fails this."""
    c = (*told, 1)[2]
    pixels = pictures(4, *told[:2], c)
    first = c > 1 and shape[0] == c
    path = write(tmp_path / "a.parquet", nested((pixels.transpose(0, 3, 1, 2) if first else pixels).reshape(4, *shape)))
    words = refused(job(path))
    assert "may be a picture of that size or a flattened one" in words or "which may be height, width" in words
    np.testing.assert_array_equal(read(path, told), pixels)
    words = refused(job(path, shape=[5, 5]))
    assert "is another shape; write the" in words
    if len(shape) == 2:
        lists = data.open_table(str(path))["image"].to_pylist()
        np.testing.assert_array_equal(read(path, list(shape))[..., 0], np.array(lists))


def test_rows_of_flattened_channels_are_read_as_told(tmp_path: Path) -> None:
    """[H][W * C], as before."""
    pixels = pictures(4, 5, 6, 3)
    path = write(tmp_path / "a.parquet", nested(pixels.reshape(4, 5, 18)))
    np.testing.assert_array_equal(read(path, [5, 6, 3]), pixels)


@pytest.mark.parametrize(("values", "highest"), [
    (pictures(5, 8, 8) % 17, 16), (pictures(5, 8, 8) % 2 * 2, 2), (pictures(5, 8, 8) / 255**2, 0.00392157),
])  # fmt: skip
def test_images_that_are_all_dark_are_noted(tmp_path: Path, values: np.ndarray, highest: float) -> None:
    """0 to 16 is read as nearly black, and so are fractions that were divided twice."""
    path = write(tmp_path / "a.parquet", nested(values, None if values.dtype == np.uint8 else pa.float64()))
    assert any(f"holds no number above {highest:g} in any row" in note for note in data.check(job(path)))
    assert "no number above" not in " ".join(data.check(job(write(tmp_path / "b.parquet", nested(pictures(5, 8, 8))))))


def test_the_remedy_for_numbers_above_1_does_not_guess_what_white_is(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", nested((pictures(4, 4, 4) % 17).astype(float), pa.float64()))
    words = refused(job(path))
    assert "the highest here is 16; divide by what white is" in words
    assert "255" not in words


def saved_array(one: np.ndarray) -> bytes:
    file = io.BytesIO()
    np.save(file, one)
    return file.getvalue()


NO_PIXELS: dict[str, tuple[list[bytes], str]] = {
    "git-lfs": (
        [f"version https://git-lfs.github.com/spec/v1\noid sha256:{k:064}\nsize {10**k}\n".encode() for k in range(4)],
        "a pointer of git-lfs in place of the file; fetch the files: git lfs pull",
    ),
    "numpy.save": ([saved_array(one) for one in pictures(4, 28, 28)], "what numpy.save writes"),
    "SVG": ([b"<svg viewBox='0 0 1 1'>" + b" " * k + b"</svg>" for k in range(4)], "SVG, a drawing"),
    "base64": ([b"iVBORw0KGgoAAAANSUhEUg" + b"A" * k for k in range(4)], "text ('iVBORw0KGgo"),
    "a page": ([b"<html>404 not found</html>"] * 3, "text ('<html>404"),
    "names": ([b"one.picture", b"another.picture", b"x.picture"], "text ('another.picture')"),
    "PostScript": ([b"%!PS-Adobe-3.0 EPSF-3.0" + b" " * k for k in range(4)], "PostScript (EPS)"),
    "HEIC": ([b"\0\0\0\x18ftypheic" + bytes(k) for k in range(4)], "HEIC, as iPhones write it; convert it to JPEG"),
}  # fmt: skip


@pytest.mark.parametrize("name", NO_PIXELS)
def test_bytes_that_are_no_pixels_are_called_what_they_are(tmp_path: Path, name: str) -> None:
    held, found = NO_PIXELS[name]
    words = refused(job(write(tmp_path / "a.parquet", held)))
    assert found in words
    assert "numbers" not in words


@pytest.mark.parametrize("odd", [encoded(pictures(1, 9, 9)[0]), b"\xff\xd8\xff" + bytes(9)])
def test_one_odd_row_among_raw_pixels_is_the_one_that_is_named(tmp_path: Path, odd: bytes) -> None:
    held = [one.tobytes() for one in pictures(6, 5, 5)]
    held[4] = odd
    words = refused(job(write(tmp_path / "a.parquet", held)))
    assert f"row 4 (the first is 0): holds {len(odd)} numbers where the rows before it hold 25" in words
