"""Images that rows name by their paths had "no image"; folders of class folders and tars, no way on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import encoded, job, pictures, read, refused, write

from jobs import data, origin
from jobs.config import JobConfig
from jobs.data import DataError, images
from jobs.data.links import MARK

PIXELS = pictures(4, 5, 6, 3)
NAMES = [f"pics/{number}.png" for number in range(4)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Four images in `pics`."""
    (tmp_path / "pics").mkdir()
    for name, one in zip(NAMES, PIXELS, strict=True):
        (tmp_path / name).write_bytes(encoded(one))
    return tmp_path


def csv(folder: Path, names: list[str], column: str = "image", file: str = "a.csv") -> Path:
    lines = [f"{column},label", *(f'"{name}",{number % 2}' for number, name in enumerate(names))]
    (folder / file).write_text("\n".join(lines) + "\n")
    return folder / file


# --- where they lie


@pytest.mark.parametrize("column", ["image", "file_name", "path", "filename", "image_path"])
def test_a_table_of_paths_is_read(folder: Path, column: str) -> None:
    np.testing.assert_array_equal(read(csv(folder, NAMES, column)), PIXELS)


@pytest.mark.parametrize("kind", [pa.binary(), pa.large_string(), pa.dictionary(pa.int32(), pa.string())])
def test_paths_of_any_type_of_text_are_read(folder: Path, kind: pa.DataType) -> None:
    path = write(folder / "a.parquet", pa.array(NAMES).cast(kind) if kind == pa.binary() else pa.array(NAMES, kind))
    np.testing.assert_array_equal(read(path), PIXELS)
    assert data.fingerprint(job(path)) == data.fingerprint(job(csv(folder, NAMES)))


def test_a_folder_with_metadata_beside_its_images_is_read(folder: Path) -> None:
    (folder / "pics/metadata.jsonl").write_text(
        "".join(json.dumps({"file_name": Path(name).name, "label": k % 2}) + "\n" for k, name in enumerate(NAMES))
    )
    np.testing.assert_array_equal(read(folder / "pics"), PIXELS)
    data.check(job(folder / "pics"))


def test_a_row_with_its_bytes_needs_no_file(folder: Path) -> None:
    """Of the two the bytes count; rows of both kinds may be mixed."""
    held = [encoded(one) for one in PIXELS]
    rows: list[dict[str, Any]] = [{"bytes": held[0], "path": NAMES[3]}, {"bytes": held[1], "path": "gone.png"}]
    rows += [{"bytes": None, "path": name} for name in NAMES[2:]]
    np.testing.assert_array_equal(read(write(folder / "a.parquet", rows)), PIXELS)


@pytest.mark.parametrize("row", [0, 3])
@pytest.mark.parametrize("empty", [None, ""])
def test_a_row_with_neither_is_named(folder: Path, row: int, empty: str | None) -> None:
    rows: list[dict[str, Any]] = [{"bytes": None, "path": name} for name in NAMES]
    rows[row]["path"] = empty
    words = refused(job(write(folder / "a.parquet", rows)))
    assert f"row {row} (the first is 0): holds no image; remove the row" in words


def test_paths_are_looked_for_beside_their_data_then_where_the_run_began_then_here(
    folder: Path, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Mutant check: any other order fails this."""
    base, here = tmp_path_factory.mktemp("base"), tmp_path_factory.mktemp("here")
    for place, one in ((base, PIXELS[1]), (here, PIXELS[2])):
        (place / "pics").mkdir()
        (place / NAMES[0]).write_bytes(encoded(one))
    monkeypatch.setenv("ORCHESTRATOR_BASE", str(base))
    monkeypatch.chdir(here)
    path = csv(folder, [NAMES[0], NAMES[3]])
    np.testing.assert_array_equal(read(path), PIXELS[[0, 3]])
    (folder / NAMES[0]).unlink()
    np.testing.assert_array_equal(read(path), PIXELS[[1, 3]])
    (base / NAMES[0]).unlink()
    np.testing.assert_array_equal(read(path), PIXELS[[2, 3]])
    (here / NAMES[0]).unlink()
    words = refused(job(path))
    assert f"{path}, column 'image', row 0 (the first is 0): names {NAMES[0]}, which cannot be read" in words
    assert f"looked for as {folder / NAMES[0]}, then {base / NAMES[0]}, then {here / NAMES[0]}" in words


def test_absolute_paths_uris_and_odd_names_are_read(folder: Path) -> None:
    odd = ["ein bild.png", "größe 猫.png", "#1.png", "[0].png"]
    for name, old in zip(odd, NAMES, strict=True):
        (folder / name).write_bytes((folder / old).read_bytes())
    for names in (odd, [str(folder / name) for name in odd], [(folder / name).as_uri() for name in odd]):
        np.testing.assert_array_equal(read(csv(folder, names)), PIXELS)


def test_each_file_of_several_has_its_own_folder(folder: Path) -> None:
    for part in ("a", "b"):
        (folder / part / "pics").mkdir(parents=True)
        csv(folder / part, [NAMES[0], NAMES[1]])
    for part, number in (("a", 0), ("b", 2)):
        for k in (0, 1):
            (folder / part / NAMES[k]).write_bytes(encoded(PIXELS[number + k]))
    np.testing.assert_array_equal(read(f"{folder}/[ab]/*.csv[1:]"), PIXELS[1:])


def test_paths_beside_a_table_in_a_bucket_are_read_there(folder: Path) -> None:
    """A URI of pyarrow.fs stands for the bucket."""
    path = csv(folder, [NAMES[0], "pics/gone.png", NAMES[1]])
    words = refused(job(path.as_uri()))
    assert "row 1 (the first is 0): names pics/gone.png, which cannot be read" in words
    np.testing.assert_array_equal(read(csv(folder, NAMES).as_uri()), PIXELS)


@pytest.mark.parametrize(("name", "found"), [
    ("pics", "names pics, which is no file"),
    ("https://example.org/a.png", "which is not downloaded"),
    ("nonsense://a/b.png", "names nonsense://a/b.png, which cannot be read"),
    ("s3://me:secret@bucket/a.png", "names s3://bucket/a.png, which cannot be read"),
    ("data:image/png;base64,iVBORw0KGgo=", "images written as text (base64) must be decoded to bytes"),
    ("iVBORw0KGgo" * 300, "images written as text (base64) must be decoded to bytes"),
    ("a" * 300 + ".png", "which cannot be read"),
])  # fmt: skip
def test_what_names_no_file_is_named_itself(
    folder: Path, monkeypatch: pytest.MonkeyPatch, name: str, found: str
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    words = refused(job(csv(folder, [*NAMES[:2], name])))
    assert "row 2 (the first is 0): " in words
    assert found in words
    assert "secret" not in words
    assert len(words) < 1500


def test_a_damaged_file_is_named_with_its_row(folder: Path) -> None:
    (folder / NAMES[2]).write_bytes(encoded(PIXELS[2])[:-40])
    words = refused(job(csv(folder, NAMES)))
    assert "row 2 (the first is 0): is no readable image (cut short" in words
    assert f"({folder / NAMES[2]})" in words


# --- what they are


def embedded(folder: Path) -> Path:
    return write(folder / "embedded.parquet", [(folder / name).read_bytes() for name in NAMES])


def test_images_count_as_what_their_files_hold(folder: Path) -> None:
    """Wherever these lie, and as if they lay in the rows. Mutant check: hashing the paths fails this."""
    elsewhere = folder / "elsewhere"
    (elsewhere / "pics").mkdir(parents=True)
    for name in NAMES:
        (elsewhere / name).write_bytes((folder / name).read_bytes())
    sources = [
        embedded(folder),
        csv(folder, NAMES),
        csv(elsewhere, NAMES),
        csv(folder, [str(elsewhere / n) for n in NAMES], file="b.csv"),
    ]
    sources.append(write(folder / "c.parquet", [{"bytes": None, "path": name} for name in NAMES]))
    assert len({data.fingerprint(job(path)) for path in sources}) == 1
    before = data.fingerprint(job(sources[1]))
    (folder / NAMES[1]).write_bytes(encoded(PIXELS[0]))
    assert data.fingerprint(job(sources[1])) != before


def looked(chosen: JobConfig, known: Any = None) -> tuple[str, Any]:
    """Digest and stamps of the rows that a job trains on."""
    entry = data.digests(chosen, known)[f"data.train = {chosen.data.train}"]
    return entry["digest"], entry["files"]


def overwrite(file: Path) -> None:
    """Another picture of the same size, with the time of the one before."""
    before = file.stat()
    other = encoded(PIXELS[0])
    file.write_bytes(other[: before.st_size].ljust(before.st_size, b"\0"))
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns))


def test_another_image_behind_a_path_is_noticed(folder: Path) -> None:
    """By whoever looks again, also in a process that has read it before. Mutant check: stamps of the table alone."""
    chosen = job(csv(folder, NAMES))
    known = data.digests(chosen)
    digest, files = looked(chosen)
    assert files[-1][0] == MARK
    assert looked(chosen, known) == (digest, files)
    overwrite(folder / NAMES[2])
    assert looked(chosen, known)[0] != digest
    with pytest.raises(origin.OtherOrigin, match="is not what the run was begun with"):
        origin.look(chosen, {"data": known})
    (folder / NAMES[2]).unlink()
    with pytest.raises(origin.OtherOrigin, match=r"row 2 .*names pics/2.png, which cannot be read"):
        origin.look(chosen, {"data": known})


def test_known_images_are_not_read_again(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = json.loads(json.dumps(data.digests(job(csv(folder, NAMES)))))
    monkeypatch.setattr("jobs.data.links.Links.read", lambda *_: pytest.fail("the file was read"))
    looked(job(folder / "a.csv"), known)


@pytest.mark.parametrize("harm", [overwrite, Path.unlink])
def test_an_image_that_changes_while_a_job_trains_is_named(folder: Path, harm: Callable[[Path], None]) -> None:
    """Nobody trains on it unnoticed. Mutant check: reading whatever is there fails this."""
    examples = data.train_examples(job(csv(folder, NAMES)))
    harm(folder / NAMES[3])
    examples.pair_ids(np.array([0, 1]))
    with pytest.raises(DataError, match=r"row 3 \(the first is 0\): names pics/3.png, which (is gone|has changed)"):
        examples.pair_ids(np.array([2, 3]))


def test_images_that_changed_between_two_jobs_are_decoded_again(folder: Path) -> None:
    path = csv(folder, NAMES)
    np.testing.assert_array_equal(read(path), PIXELS)
    (folder / NAMES[0]).write_bytes(encoded(255 - PIXELS[0]))
    np.testing.assert_array_equal(read(path)[0], 255 - PIXELS[0])


# --- what is no table


def tree(folder: Path) -> Path:
    for number, one in enumerate(PIXELS):
        place = folder / "a tree, it's" / "train" / ("cat", "dog")[number % 2]
        place.mkdir(parents=True, exist_ok=True)
        (place / f"{number}.PNG").write_bytes(encoded(one))
    return folder / "a tree, it's"


def test_a_folder_of_class_folders_is_refused_with_a_command_that_makes_a_table_of_it(folder: Path) -> None:
    """Which is run. Mutant check: a snippet that nobody has tried."""
    words = refused(job(tree(folder)))
    assert f"{folder}/a tree, it's: is a folder of image files (4, the first is train/cat/0.PNG)" in words
    command = words[words.index("python -c") :]
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=folder, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    table = pq.read_table(folder / "images.parquet")
    assert table["label"].to_pylist() == ["cat", "cat", "dog", "dog"]
    np.testing.assert_array_equal(read(folder / "images.parquet"), PIXELS[[0, 2, 1, 3]])
    data.check(job(folder / "images.parquet"))


@pytest.mark.parametrize(("make", "source", "found"), [
    ("shard-0.tar", "shard-0.tar", "is an archive"),
    ("shards/shard-0.tar", "shards", "is a folder of archives (1, the first is shard-0.tar)"),
    ("shards/shard-0.tar", "shards/*.tar", "is an archive"),
    ("images.zip", "images.zip", "is an archive"),
    ("cat.jpg", "cat.jpg", "is an image file"),
    ("pngs/cat.png", "pngs/*.png", "is an image file"),
])  # fmt: skip
def test_archives_and_single_images_are_refused_with_the_way_on(
    tmp_path: Path, make: str, source: str, found: str
) -> None:
    (tmp_path / make).parent.mkdir(exist_ok=True)
    (tmp_path / make).write_bytes(b"x")
    words = refused(job(tmp_path / source))
    assert found in words
    assert "Parquet" in words
    assert "image" in words
    assert "label" in words


def test_a_path_in_a_table_of_other_types_is_refused(folder: Path) -> None:
    for values in (pa.array([1, 2, 3]), pa.array([{"url": "a"}] * 3), pa.array([{"bytes": "aGk=", "path": "a"}] * 3)):
        assert "column 'image': is of type " in refused(job(write(folder / "a.parquet", values)))


def test_labels_of_a_csv_are_those_of_any_other_format(folder: Path) -> None:
    """Whole numbers are numbers, and an empty cell is no label. Mutant check: labels as text are other labels, in
    another order, and an empty one is a class of its own."""
    rows = [*zip(NAMES, ["10", "9", "", *["10"] * len(NAMES)], strict=False)]
    path = folder / "labels.csv"
    path.write_text("file_name,label\n" + "".join(f"{name},{label}\n" for name, label in rows))
    table = images.image_rows(job(path), str(path)).table
    assert table["label"].to_pylist() == [int(label) if label else None for _, label in rows]
    path.write_text("file_name,label\n" + "".join(f"{name},cat {label}\n" for name, label in rows))
    table = images.image_rows(job(path), str(path)).table
    assert table["label"].to_pylist() == [f"cat {label}" for _, label in rows]
