"""An image cut short passed the check, and ended the training with a traceback."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import encoded, job, pictures, read, refused, saved, write
from PIL import Image, ImageFile

from jobs import data
from jobs.core.failures import kind_of, picklable, root_cause
from jobs.data import DataError
from jobs.data.images import survey

ROOT = Path(__file__).parents[3]
PICTURES = [np.kron(one, np.ones((8, 8, 1), np.uint8)) for one in pictures(6, 5, 5, 3)]
KINDS = ["PNG", "JPEG", "WEBP", "BMP", "TIFF", "GIF", "JPEG2000"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("share", [0.5, 0.9])
def test_an_image_cut_short_is_named(tmp_path: Path, kind: str, share: float) -> None:
    """Also where another package has told PIL to fill up what is missing. Mutant check: opening without decoding
    fails this; so does leaving LOAD_TRUNCATED_IMAGES alone."""
    files = [encoded(one, kind) for one in PICTURES]
    files[4] = files[4][: int(len(files[4]) * share)]
    path = write(tmp_path / "a.parquet", files)
    ImageFile.LOAD_TRUNCATED_IMAGES = True
    try:
        words = refused(job(path))
    finally:
        ImageFile.LOAD_TRUNCATED_IMAGES = False
    assert words.startswith(f"{path}, column 'image', row 4 (the first is 0): is no readable image (")
    assert "replace it, or remove the row" in words


@settings(max_examples=25, deadline=None)
@given(kind=st.sampled_from(["PNG", "JPEG", "WEBP", "GIF"]), place=st.floats(0, 1), byte=st.integers(0, 255))
def test_damage_of_any_kind_is_a_data_error_or_none(
    tmp_path_factory: pytest.TempPathFactory, kind: str, place: float, byte: int
) -> None:
    """Whatever PIL's decoders raise."""
    files = [encoded(one, kind) for one in PICTURES[:3]]
    at = int(place * (len(files[1]) - 1))
    files[1] = files[1][:at] + bytes([byte]) + files[1][at + 1 :]
    path = write(tmp_path_factory.mktemp("damaged") / "a.parquet", files)
    try:
        data.check(job(path))
    except DataError as error:
        assert error.row in (1, None)  # noqa: PT017 - which need not be raised


@pytest.mark.parametrize("kind", [1, 3])
def test_a_png_whose_pixels_do_not_fit_their_checksum_is_named(tmp_path: Path, kind: int) -> None:
    """One bit that the decompression does not notice. Mutant check: PIL alone reads it."""
    files = [encoded(one if kind == 3 else one[..., 0], compress_level=0) for one in PICTURES]
    at = files[2].index(b"IDAT") + 60
    files[2] = files[2][:at] + bytes([files[2][at] ^ 1]) + files[2][at + 1 :]
    words = refused(job(write(tmp_path / "a.parquet", files)))
    assert "row 2 (the first is 0): is no readable image (cut short or damaged: its pixels do not fit" in words


@pytest.mark.parametrize(("begin", "found"), [
    (saved(Image.fromarray(PICTURES[0]), "EPS"), "is PostScript (EPS), a program that draws"),
    (b"\x89HDF\r\n\x1a\n" + bytes(100), "is an HDF5 file"),
    (b"\0\0\0\x18ftypheic" + bytes(100), "HEIC, as iPhones write it; convert it to JPEG"),
])  # fmt: skip
def test_no_other_program_is_started_for_an_image(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, begin: bytes, found: str
) -> None:
    """Ghostscript, for EPS."""
    monkeypatch.setattr(subprocess, "Popen", lambda *_, **__: pytest.fail("a program was started"))
    monkeypatch.setattr("subprocess.check_call", lambda *_, **__: pytest.fail("a program was started"))
    files = [encoded(one) for one in PICTURES]
    files[3] = begin
    words = refused(job(write(tmp_path / "a.parquet", files)))
    assert "row 3 (the first is 0): is " in words
    assert found in words


OTHERS = {
    "nothing": (b"", "is an empty file (0 bytes)"),
    "a page": (
        b"<html>\n404</html>",
        "is no readable image (it begins with '<html>\\n404</html>')",
    ),
    "a pointer": (b"version https://git-lfs.github.com/spec/v1\n", "it begins with 'version https://git-lfs"),
    "zeros": (bytes(300), "is no readable image"),
}


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("name", OTHERS)
def test_what_is_no_image_is_named_wherever_it_lies(tmp_path: Path, name: str, row: int) -> None:
    """Mutant check: telling by the first row what all are fails this."""
    bad, found = OTHERS[name]
    files = [encoded(one) for one in PICTURES]
    files[row] = bad
    words = refused(job(write(tmp_path / "a.parquet", files)))
    assert f"row {row} (the first is 0): is " in words
    assert found in words


def test_raw_pixels_that_begin_like_an_image_are_raw(tmp_path: Path) -> None:
    raw = pictures(6, 4, 4)
    raw[0, 0, :2] = list(b"BM")
    path = write(tmp_path / "a.parquet", [one.tobytes() for one in raw])
    data.check(job(path))


def test_encoded_images_of_one_size_are_no_pixels(tmp_path: Path) -> None:
    """BMP files are all of one length, and may be kept in a type that says so."""
    pixels = pictures(6, 5, 7, 3)
    files = [encoded(one, "BMP") for one in pixels]
    np.testing.assert_array_equal(
        read(write(tmp_path / "a.parquet", pa.array(files, pa.binary(len(files[0]))))), pixels
    )


def test_a_later_frame_that_is_damaged_does_no_harm(tmp_path: Path) -> None:
    """The first is what is read."""
    frames = [Image.fromarray(one) for one in PICTURES[:3]]
    film = saved(frames[0], "GIF", save_all=True, append_images=frames[1:])
    path = write(tmp_path / "a.parquet", [film, film[: len(film) * 2 // 3], film])
    assert f"{path}: 3 of 3 images have several frames" in data.check(job(path))[0]


def test_a_file_made_to_fill_the_memory_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10_000)
    path = write(
        tmp_path / "a.parquet", [encoded(PICTURES[0]), saved(Image.new("RGB", (300, 300))), encoded(PICTURES[1])]
    )
    assert "row 1 (the first is 0): is larger than the 20,000 pixels that are read" in refused(job(path, shape=[8, 8]))


def test_a_very_large_image_that_is_read_says_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60_000)
    path = write(tmp_path / "a.parquet", [saved(Image.new("RGB", (300, 300))), encoded(PICTURES[1])])
    data.check(job(path, shape=[8, 8]))
    assert not [one for one in recwarn if "DecompressionBomb" in str(one.category)]


# --- how many are looked at


@given(n=st.integers(1, 3000), most=st.integers(1, 500))
def test_a_sample_lies_evenly_at_any_moment(n: int, most: int) -> None:
    """Mutant check: the first rows in place of a sample fail this, and so do rows in order that are not all seen."""
    order = list(survey.evenly(n, most))
    assert order[0] == 0
    assert len(set(order)) == len(order) == min(n, most)
    for until in (len(order), -(-len(order) // 2)):
        gaps = np.diff(sorted(order[:until]), append=n)
        assert gaps.max() <= 4 * -(-n // until)


def test_the_first_bad_row_is_named_whatever_thread_finds_one(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("os.sched_getaffinity", lambda _: range(4))

    def look(row: int) -> list[str]:
        if row % 7 == 5:
            raise DataError("is bad", file="a", row=row)
        return []

    for _ in range(20):
        with pytest.raises(DataError, match="row 5 "):
            survey.survey(100, look)


def test_of_many_images_a_sample_is_decoded_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And once, however many jobs share the data. Mutant check: forgetting what was looked at fails this."""
    monkeypatch.setattr(survey, "MOST", 50)
    files = [encoded(one) for one in pictures(200, 4, 4)]
    path = write(tmp_path / "a.parquet", files)
    seen: Counter[int] = Counter()
    look = data.images.encoded.Encoded._look
    monkeypatch.setattr(
        data.images.encoded.Encoded, "_look", lambda self, row: (seen.update([row]), look(self, row))[1]
    )
    for seed in range(3):
        notes = data.check(job(path, f"{path}[:2]").model_copy(update={"seed": seed}))
        assert notes[0].startswith(f"{path}: 50 of 200 images were decoded, evenly spaced; one of the others that ")
    assert sum(seen.values()) == 50 + 2
    assert set(range(0, 200, 4)) <= set(seen)


def test_the_check_takes_no_longer_than_it_may(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "SECONDS", -1.0)
    path = write(tmp_path / "a.parquet", [encoded(one) for one in pictures(200, 4, 4)])
    assert " of 200 images were decoded, evenly spaced" in data.check(job(path, f"{path}[:2]"))[0]


# --- what the sample has missed

ALONE = """
import sys
from jobs.data.images import survey
survey.MOST = 2
from jobs.train.__main__ import main
main(sys.argv[1:])
"""


@pytest.mark.soak
def test_a_bad_image_that_a_step_meets_ends_the_training_with_2_and_its_row(tmp_path: Path) -> None:
    """Mutant check: leaving the error to Python ends with 1 and a traceback."""
    files = [encoded(one) for one in pictures(12, 8, 8, 3)]
    files[7] = files[7][:-60]
    path = write(tmp_path / "a.parquet", files)
    (tmp_path / "job.json").write_text(job(path, f"{path}[:2]", size=12).model_dump_json())
    order = [sys.executable, "-c", ALONE, str(tmp_path / "job.json"), "--into", str(tmp_path / "trial")]
    done = subprocess.run(order, cwd=ROOT, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert f"error: {path}, column 'image', row 7 (the first is 0): is no readable image (cut short" in done.stderr
    assert "images were decoded, evenly spaced" in done.stderr


@pytest.mark.soak
def test_of_two_ranks_the_one_that_meets_it_says_so_and_the_other_that_it_waited(tmp_path: Path) -> None:
    """Mutant check: without words for it the other rank ends with a traceback of gloo's."""
    files = [encoded(one) for one in pictures(12, 8, 8, 3)]
    files[7] = files[7][:-60]
    path = write(tmp_path / "a.parquet", files)
    (tmp_path / "job.json").write_text(job(path, f"{path}[:2]", size=12).model_dump_json())
    (tmp_path / "alone.py").write_text(ALONE)
    order = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
             str(tmp_path / "alone.py"), str(tmp_path / "job.json"), "--into", str(tmp_path / "trial")]  # fmt: skip
    env = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(order, cwd=ROOT, env=env, capture_output=True, text=True, check=False, timeout=200)
    assert done.returncode != 0
    assert f"error: {path}, column 'image', row 7 (the first is 0): is no readable image (cut short" in done.stderr
    assert "Connection closed by peer" not in done.stderr
    assert "RuntimeError" not in done.stderr


def test_a_bad_image_fails_a_trial_as_what_it_is(tmp_path: Path) -> None:
    """`user_error`, which is not tried again, in the words of the rank that met it."""
    error = DataError("is no readable image", file=str(tmp_path / "a.parquet"), column="image", row=7)
    copy = picklable(error)
    failure = root_cause({0: RuntimeError("Connection closed by peer"), 1: copy})
    assert kind_of(copy) == failure.kind == "user_error"
    assert (
        failure.message
        == f"rank 1: DataError: {tmp_path}/a.parquet, column 'image', row 7 (the first is 0): is no readable image"
    )
    assert json.loads(json.dumps(failure.message))
