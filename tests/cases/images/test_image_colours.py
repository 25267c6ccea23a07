"""The first image decided that all were grey; orientation and transparency were ignored."""

from __future__ import annotations

import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, job, judged, pictures, read, refused, saved, write
from PIL import Image

from jobs import data

GREY, COLOUR = pictures(8, 6, 6), pictures(8, 6, 6, 3, seed=1)


def three(grey: np.ndarray) -> np.ndarray:
    return np.repeat(grey[..., None], 3, axis=-1)


@pytest.mark.parametrize("kind", ["PNG", "BMP", "TIFF", "WEBP", "GIF"])
@pytest.mark.parametrize("at", [0, 1, 7])
def test_all_are_read_in_colour_if_any_is_coloured(tmp_path: Path, kind: str, at: int) -> None:
    """Mutant check: asking the first image, or the last, fails this."""
    files = [encoded(GREY[k]) if k != at else encoded(COLOUR[k], kind, lossless=True) for k in range(8)]
    path = write(tmp_path / "a.parquet", files)
    found = read(path)
    assert found.shape == (8, 6, 6, 3)
    others = [k for k in range(8) if k != at]
    np.testing.assert_array_equal(found[others], three(GREY[others]))
    if kind != "GIF":
        np.testing.assert_array_equal(found[at], COLOUR[at])


def test_grey_images_stay_grey(tmp_path: Path) -> None:
    files = [
        encoded(GREY[0]),
        encoded(GREY[1], "BMP"),
        encoded(GREY[2], "TIFF"),
        saved(Image.fromarray(GREY[3]).convert("LA")),
    ]
    np.testing.assert_array_equal(read(write(tmp_path / "a.parquet", files))[..., 0], GREY[:4])
    assert read(tmp_path / "a.parquet").shape[-1] == 1


@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP", "TIFF"])
def test_a_palette_of_greys_has_no_colour(tmp_path: Path, kind: str) -> None:
    """Neither to be trained nor to be judged on."""
    palettes = [saved(Image.fromarray(one // 64 * 64).quantize(8), kind) for one in GREY]
    path = write(tmp_path / "p.parquet", palettes)
    grey = write(tmp_path / "g.parquet", [encoded(one) for one in GREY])
    np.testing.assert_array_equal(read(path)[..., 0], GREY // 64 * 64)
    np.testing.assert_array_equal(judged(job(grey, path))[..., 0], GREY // 64 * 64)
    mixed = write(tmp_path / "m.parquet", [*palettes[:3], saved(Image.fromarray(COLOUR[0]).quantize(8), kind)])
    assert "row 3 (the first is 0): is coloured" in refused(job(path, mixed))


def test_coloured_images_beside_raw_grey_ones_are_refused_with_what_works(tmp_path: Path) -> None:
    arrays = write(tmp_path / "r.parquet", [one.tobytes() for one in GREY])
    coloured = write(tmp_path / "c.parquet", [encoded(one) for one in COLOUR])
    assert "set data.image_shape = [height, width, 1] to read all as grey" in refused(job(arrays, coloured))
    data.check(job(arrays, coloured, [6, 6, 1]))


def test_images_to_be_judged_on_are_read_as_those_to_train_on(tmp_path: Path) -> None:
    """Grey ones in colour, in whatever storage; coloured ones never in grey without a word. Mutant check: asking the
    rows to be judged on by themselves fails this."""
    coloured = write(tmp_path / "c.parquet", [encoded(one) for one in COLOUR])
    grey = write(tmp_path / "g.parquet", [encoded(one) for one in GREY])
    arrays = write(tmp_path / "r.parquet", [one.tobytes() for one in GREY])
    mixed = write(tmp_path / "m.parquet", [encoded(one) for one in (*GREY[:5], *COLOUR[5:])])
    for source in (grey, arrays):
        np.testing.assert_array_equal(judged(job(coloured, source)), three(GREY))
        data.check(job(coloured, source))
    np.testing.assert_array_equal(judged(job(coloured, mixed))[5:], COLOUR[5:])
    words = refused(job(grey, mixed))
    assert words.startswith(f"{mixed}, column 'image', row 5 (the first is 0): is coloured, and all images that the")
    assert "[height, width, 3]" in words
    np.testing.assert_array_equal(judged(job(grey, mixed, [6, 6, 3]))[5:], COLOUR[5:])
    assert judged(job(grey, mixed, [6, 6, 1])).shape[-1] == 1


def test_height_and_width_leave_colours_alone(tmp_path: Path) -> None:
    """Mutant check: taking [height, width] for one channel, as of raw pixels, fails this."""
    path = write(tmp_path / "a.parquet", [encoded(one) for one in COLOUR])
    np.testing.assert_array_equal(read(path, [6, 6]), COLOUR)
    assert read(path, [6, 6, 1]).shape == (8, 6, 6, 1)
    assert "have 1 or 3 channels, and data.image_shape has 4" in refused(job(path, shape=[6, 6, 4]))


FILES = {"1": "PNG", "L": "PNG", "LA": "PNG", "P": "PNG", "RGB": "PNG", "RGBA": "PNG", "CMYK": "TIFF", "YCbCr": "TIFF"}


@pytest.mark.parametrize("mode", FILES)
def test_every_mode_is_the_picture_that_a_person_sees(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(COLOUR[0]).convert(mode)
    found = read(write(tmp_path / "a.parquet", [saved(picture, FILES[mode]), encoded(COLOUR[1])]))
    np.testing.assert_array_equal(found[0], np.asarray(picture.convert("RGB")))


@pytest.mark.parametrize("mode", ["I;16", "I", "F"])
def test_more_bits_than_8_are_refused(tmp_path: Path, mode: str) -> None:
    image = Image.fromarray(GREY[0].astype(np.uint16)) if mode == "I;16" else Image.fromarray(GREY[0]).convert(mode)
    path = write(tmp_path / "a.parquet", [encoded(GREY[0]), encoded(GREY[1]), saved(image, "TIFF")])
    assert "row 2 (the first is 0): has more than 8 bits a channel (mode " in refused(job(path))


def png(pixels: np.ndarray, *more: tuple[bytes, bytes]) -> bytes:
    """A PNG file of uint8 or uint16 [H, W, 3], chunk by chunk, with more chunks before the pixels."""
    h, w, _ = pixels.shape
    lines = b"".join(b"\x00" + one.astype(pixels.dtype.newbyteorder(">")).tobytes() for one in pixels)
    head = struct.pack(">IIBBBBB", w, h, 8 * pixels.itemsize, 2, 0, 0, 0)
    chunks = [(b"IHDR", head), *more, (b"IDAT", zlib.compress(lines)), (b"IEND", b"")]
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body)) for name, body in chunks
    )


def test_of_colours_of_16_bits_the_upper_8_are_read_and_said(tmp_path: Path) -> None:
    files = [png(COLOUR[k].astype(np.uint16) * 256 + 255 - COLOUR[k]) for k in range(3)]
    path = write(tmp_path / "a.parquet", files)
    np.testing.assert_array_equal(read(path), COLOUR[:3])
    assert f"{path}: 3 of 3 images have 16 bits a channel, of which the upper 8 are read" in data.check(job(path))


def test_one_colour_that_a_file_calls_transparent_is_white(tmp_path: Path) -> None:
    pixels = np.full((2, 2, 3), 7, np.uint8)
    pixels[0, 0] = (1, 2, 3)
    path = write(tmp_path / "a.parquet", [png(pixels, (b"tRNS", struct.pack(">HHH", 1, 2, 3))), png(pixels)])
    found = read(path)
    assert found[:, 0, 0].tolist() == [[255, 255, 255], [1, 2, 3]]
    assert (found[:, 1] == 7).all()


def transparent() -> dict[str, Image.Image]:
    """A picture whose right half cannot be seen, in every mode that can say so."""
    alpha = Image.fromarray(np.where(np.arange(6) < 3, 255, 0).astype(np.uint8)[None].repeat(6, 0))
    colour, grey = Image.fromarray(COLOUR[0]), Image.fromarray(GREY[0])
    index = Image.fromarray(np.where(np.arange(6) < 3, 1, 2).astype(np.uint8)[None].repeat(6, 0), "P")
    index.putpalette([0, 0, 0, 200, 100, 50, 9, 9, 9])
    made = {"RGBA": colour.convert("RGBA"), "LA": grey.convert("LA"), "P": index}
    for mode in ("RGBA", "LA"):
        made[mode].putalpha(alpha)
    made["P"].info["transparency"] = 2
    return made


@pytest.mark.filterwarnings("ignore:'mode' parameter is deprecated")
@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_what_is_transparent_is_white_and_said(tmp_path: Path, mode: str) -> None:
    """Not the colour that lies hidden there. Mutant check: dropping alpha fails this."""
    picture = transparent()[mode]
    opaque = Image.fromarray(COLOUR[1]).convert("RGBA")
    path = write(tmp_path / "a.parquet", [saved(opaque), saved(picture), saved(opaque)])
    found = read(path)
    assert (found[1, :, 3:] == 255).all()
    np.testing.assert_array_equal(found[1, :, :3], np.asarray(picture.convert("RGBA").convert("RGB"))[:, :3])
    np.testing.assert_array_equal(found[0], COLOUR[1])
    notes = data.check(job(path, f"{path}[:2]"))
    assert f"{path}: 1 of 3 images are transparent in places, where they are laid on white" in notes


@pytest.mark.parametrize("kind", ["GIF", "WEBP", "TIFF", "PNG"])
def test_of_several_frames_the_first_is_read_and_said(tmp_path: Path, kind: str) -> None:
    frames = [Image.fromarray(one) for one in COLOUR[:3]]
    film = saved(frames[0], kind, save_all=True, append_images=frames[1:], lossless=True)
    path = write(tmp_path / "a.parquet", [encoded(COLOUR[4]), film, encoded(COLOUR[5])])
    if kind != "GIF":
        np.testing.assert_array_equal(read(path)[1], COLOUR[0])
    notes = data.check(job(path, f"{path}[:2]"))
    assert f"{path}: 1 of 3 images have several frames or pages, of which the first is read" in notes


TURNS = Image.Transpose
HELD = {
    1: None,
    2: TURNS.FLIP_LEFT_RIGHT,
    3: TURNS.ROTATE_180,
    4: TURNS.FLIP_TOP_BOTTOM,
    5: TURNS.TRANSPOSE,
    6: TURNS.ROTATE_90,
    7: TURNS.TRANSVERSE,
    8: TURNS.ROTATE_270,
}
"""By each EXIF orientation, how the camera stores an upright picture."""


def held(pixels: np.ndarray, orientation: int, kind: str) -> bytes:
    """The file of a camera that was held so."""
    image, turn = Image.fromarray(pixels), HELD[orientation]
    image = image if turn is None else image.transpose(turn)
    exif = Image.Exif()
    exif[0x0112] = orientation
    return saved(image, kind, exif=exif, lossless=True)


@settings(max_examples=40, deadline=None)
@given(
    orientation=st.sampled_from(list(HELD)),
    kind=st.sampled_from(["PNG", "WEBP", "TIFF"]),
    h=st.integers(1, 6),
    w=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_a_picture_is_upright_however_the_camera_was_held(
    tmp_path_factory: pytest.TempPathFactory, orientation: int, kind: str, h: int, w: int, seed: int
) -> None:
    """Before sizes are compared. Mutant check: leaving any of the eight out fails this."""
    folder, (one, two) = tmp_path_factory.mktemp("held"), pictures(2, h, w, 3, seed=seed)
    path = write(folder / "a.parquet", [held(one, orientation, kind), encoded(two)])
    np.testing.assert_array_equal(read(path), np.stack([one, two]))
    turned = write(folder / "b.parquet", [encoded(two), held(one, orientation, kind)])
    np.testing.assert_array_equal(read(turned), np.stack([two, one]))


def test_a_jpeg_is_upright(tmp_path: Path) -> None:
    smooth = np.add.outer(np.arange(16) * 8, np.arange(24) * 4)[..., None].repeat(3, -1).astype(np.uint8)
    files = [held(smooth, orientation, "JPEG") for orientation in HELD]
    found = read(write(tmp_path / "a.parquet", files)).astype(int)
    assert found.shape == (8, 16, 24, 3)
    assert abs(found - smooth).max() < 12


def test_exif_that_nobody_can_read_turns_nothing(tmp_path: Path) -> None:
    files = [
        encoded(COLOUR[0], "PNG", exif=b"Exif\x00\x00nonsense"),
        encoded(COLOUR[1], "WEBP", exif=b"\x00", lossless=True),
    ]
    path = write(tmp_path / "a.parquet", files)
    np.testing.assert_array_equal(read(path), COLOUR[:2])
