"""Images that rows name by their paths had "no image"; folders of class folders and tars, no way on."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from pictures import back, encoded, job, pictures, read, refused, write
from pyarrow import fs
from servers import s3_server

from jobs import data
from jobs.config import JobConfig
from jobs.core import provenance
from jobs.data import DataError, images
from jobs.data.images import finding, links
from jobs.data.images.links import MARK
from jobs.data.resolve import connected
from jobs.train import Training, origin

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


@pytest.fixture(scope="module")
def bucket() -> Iterator[Callable[[str, bytes], str]]:
    """Puts a file into a bucket, and says its URI."""
    with s3_server() as uri:

        def put(name: str, content: bytes) -> str:
            store, top = fs.FileSystem.from_uri(uri(""))
            with store.open_output_stream(f"{top.rstrip('/')}/{name}") as file:
                file.write(content)
            return uri(name)

        yield put


HARD = ["a b.png", "größe 猫.png", "100%0.png", "a%20b.png", "#0.png", "q?.png", "[0].png", "d d/0.png", "100%.png"]


def test_a_path_beside_a_table_in_a_bucket_is_no_uri(bucket: Callable[[str, bytes], str]) -> None:
    """Whatever the names: nothing in them is encoded. Mutant check: pasting them to the table's URI fails this."""
    pixels = pictures(len(HARD) + 2, 4, 4, 3)
    for name, one in zip([*HARD, "x.png", "../up.png"], pixels, strict=True):
        bucket(os.path.normpath(f"ta ble/{name}"), encoded(one))
    lines = [f"{name},{k % 2}" for k, name in enumerate([*HARD, ".//x.png", "../up.png"])]
    uri = bucket("ta ble/ä%20#.csv", "\n".join(["image,label", *lines]).encode())
    address, query = uri.split("?")
    quoted = f"{address.rpartition('/')[0].replace(' ', '%20')}/{quote('ä%20#.csv')}?{query}"
    np.testing.assert_array_equal(read(quoted), pixels)
    np.testing.assert_array_equal(read(quoted.replace("%20ble", " ble")), pixels)
    folder = quoted.replace(quote("ä%20#.csv"), "*.csv")
    np.testing.assert_array_equal(read(folder), pixels)


def test_uris_are_read_with_and_without_their_signs_encoded(
    bucket: Callable[[str, bytes], str], tmp_path: Path
) -> None:
    pixels = pictures(4, 4, 4, 3)
    uris = [bucket(f"uris/{name}", encoded(one)) for name, one in zip(HARD[:3], pixels, strict=False)]
    uris.append(bucket("uris/é.png", encoded(pixels[3])).replace("é", "%C3%A9"))
    np.testing.assert_array_equal(read(csv(tmp_path, uris)), pixels)


def test_what_a_bucket_lacks_is_not_taken_from_here(
    bucket: Callable[[str, bytes], str], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where another image may be called so."""
    monkeypatch.chdir(folder)
    bucket(f"lacking/{NAMES[0]}", encoded(PIXELS[0]))
    uri = bucket("lacking/a.csv", f"image,label\n{NAMES[0]},0\n{NAMES[1]},1\n".encode())
    words = refused(job(uri))
    assert "row 1 (the first is 0): names pics/1.png, which cannot be read: there is no such file" in words
    assert "/lacking/pics/1.png" in words


def test_a_check_of_images_in_a_bucket_reads_each_of_them_three_times(
    bucket: Callable[[str, bytes], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """For its colours (the begin), what it shows, and its digest; through one connection. Mutant check: a file system
    for each image fails this."""
    names = [f"{number}.png" for number in range(12)]
    for name, one in zip(names, pictures(12, 4, 4), strict=True):
        bucket(f"few/{name}", encoded(one))
    uri = bucket("few/a.csv", "\n".join(["image,label", *(f"{name},{k % 2}" for k, name in enumerate(names))]).encode())
    seen: Counter[str] = Counter()
    reading = links._remote
    monkeypatch.setattr(links, "_remote", lambda *given: (seen.update(["read"]), reading(*given))[1])
    monkeypatch.setattr(
        "jobs.data.images.finding.connected", lambda uri: (seen.update(["connected"]), connected(uri))[1]
    )
    data.check(job(uri))
    data.digests(job(uri))
    assert seen["read"] <= 3 * len(names) + 2
    assert seen["connected"] <= 2


@pytest.mark.parametrize("name", ["a b.csv", "größe.csv", "a#b?.csv", "a%20b.csv"])
def test_a_table_named_by_a_file_uri_is_read_like_one_named_by_its_path(folder: Path, name: str) -> None:
    """And so are its images, which may be called like encoded URIs."""
    (folder / "a%20b.png").write_bytes(encoded(PIXELS[3]))
    (folder / "a b.png").write_bytes(encoded(PIXELS[0]))
    path = csv(folder, [*NAMES[:3], "a%20b.png"], file=name)
    np.testing.assert_array_equal(read(path.as_uri()), PIXELS)
    if "%" not in name:
        np.testing.assert_array_equal(read(f"file://{path}"), PIXELS)


@pytest.mark.parametrize("kind", [
    pa.struct([("bytes", pa.binary_view()), ("path", pa.string_view())]),
    pa.struct([("bytes", pa.binary()), ("path", pa.binary())]),
    pa.struct([("path", pa.dictionary(pa.int32(), pa.string()))]),
    pa.string_view(),
])  # fmt: skip
def test_paths_of_any_type_in_an_arrow_file_are_read(folder: Path, kind: pa.DataType) -> None:
    """As polars writes them. Mutant check: leaving views within structs fails this."""
    rows = [{"bytes": None, "path": name} for name in NAMES] if pa.types.is_struct(kind) else NAMES
    table = pa.table({"image": pa.array(rows, kind), "label": pa.array([0, 1, 0, 1], pa.int8())})
    feather(folder / "a.arrow", table)
    np.testing.assert_array_equal(read(folder / "a.arrow"), PIXELS)


def feather(path: Path, table: pa.Table) -> None:
    with pa.OSFile(str(path), "wb") as sink, pa.ipc.new_file(sink, table.schema) as writer:
        writer.write_table(table)


@pytest.mark.parametrize("kind", [pa.binary_view(), pa.struct([("bytes", pa.binary_view())])])
def test_bytes_in_views_are_read(folder: Path, kind: pa.DataType) -> None:
    held = [encoded(one) for one in PIXELS]
    rows = [{"bytes": one} for one in held] if pa.types.is_struct(kind) else held
    feather(folder / "a.arrow", pa.table({"image": pa.array(rows, kind), "label": [0, 1, 0, 1]}))
    np.testing.assert_array_equal(read(folder / "a.arrow"), PIXELS)
    lists = pa.array(PIXELS.reshape(4, -1).tolist(), pa.list_view(pa.uint8()))
    feather(folder / "b.arrow", pa.table({"image": lists, "label": [0, 1, 0, 1]}))
    np.testing.assert_array_equal(read(folder / "b.arrow", [5, 6, 3]), PIXELS)


@pytest.mark.parametrize("kind", [pa.int64(), pa.list_(pa.string())])
def test_paths_that_are_no_text_are_refused(folder: Path, kind: pa.DataType) -> None:
    rows = pa.array([{"path": 1 if kind == pa.int64() else ["a"]}] * 4, pa.struct([("path", kind)]))
    assert "its 'path' must be text" in refused(job(write(folder / "a.parquet", rows)))


def test_images_among_names_are_named(folder: Path) -> None:
    path = write(folder / "a.parquet", [NAMES[0].encode(), NAMES[1].encode(), encoded(PIXELS[2])])
    assert "row 2 (the first is 0): holds bytes that are no text, where other rows name files" in refused(job(path))


def test_names_that_are_not_utf8_are_named(folder: Path) -> None:
    (folder / "a.csv").write_bytes(b"image,label\npics/0.png,0\npics/gr\xf6\xdfe.png,1\n")
    assert "column 'image', row 1 (the first is 0): is not UTF-8" in refused(job(folder / "a.csv"))
    (folder / "a.csv").write_bytes(b"image,label\npics/0.png,caf\xe9\npics/1.png,tea\n")
    assert "column 'label', row 0 (the first is 0): is not UTF-8" in refused(job(folder / "a.csv"))


@pytest.mark.parametrize(("name", "found"), [
    ("pics", "names pics, which is no file"),
    ("https://example.org/a.png", "which is not downloaded"),
    ("nonsense://a/b.png", "names nonsense://a/b.png, which cannot be read"),
    pytest.param(
        "s3://me:secret@bucket/a.png", "names s3://bucket/a.png, which cannot be read", marks=pytest.mark.soak
    ),
    ("data:image/png;base64,iVBORw0KGgo=", "images written as text (base64) must be decoded to bytes"),
    ("iVBORw0KGgo" * 300, "images written as text (base64) must be decoded to bytes"),
    ("a" * 300 + ".png", "which cannot be read"),
    ("pics\\\\9.png", "write / in place of"),
    ("70 80 82 " * 200, "numbers in a text"),
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
    entry: Any = data.digests(chosen, known)[f"data.train = {chosen.data.train}"]
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
    monkeypatch.setattr("jobs.data.images.links.Links.read", lambda *_: pytest.fail("the file was read"))
    looked(job(folder / "a.csv"), known)


@pytest.mark.parametrize("harm", [overwrite, Path.unlink])
def test_an_image_that_changes_while_a_job_trains_is_named(folder: Path, harm: Callable[[Path], None]) -> None:
    """Nobody trains on it unnoticed. Mutant check: reading whatever is there fails this."""
    examples = data.train_examples(job(csv(folder, NAMES)))
    harm(folder / NAMES[3])
    examples.ids(np.array([0, 1]))
    with pytest.raises(DataError, match=r"row 3 \(the first is 0\): names pics/3.png, which (is gone|has changed)"):
        examples.ids(np.array([2, 3]))


def rewrite(file: Path) -> None:
    file.write_bytes(file.read_bytes())


TOUCHES: dict[str, Callable[[Path], None]] = {
    "its mode": lambda file: file.chmod(0o600),
    "a hard link": lambda file: (file.parent / "backup").hardlink_to(file),
    "the same bytes again": rewrite,
    "its time": lambda file: os.utime(file, (1, 1)),
}


@pytest.mark.parametrize("touch", TOUCHES)
@pytest.mark.parametrize("is_known", [False, True])
def test_an_image_that_is_only_touched_while_a_job_trains_is_read(folder: Path, touch: str, is_known: bool) -> None:
    """Also where this process had no need to read it before. Mutant check: times alone fail this."""
    chosen = job(csv(folder, NAMES))
    known = data.digests(chosen) if is_known else None
    with data.looked_at_once():
        data.digests(chosen, known)
        examples = data.train_examples(chosen)
    for name in NAMES[2:]:
        TOUCHES[touch](folder / name)
        (folder / "pics/backup").unlink(missing_ok=True)
    assert isinstance(examples, data.ImageExamples)
    np.testing.assert_array_equal(back(examples.images.unit(np.arange(3))), PIXELS[:3])
    overwrite(folder / NAMES[3])
    with pytest.raises(DataError, match=r"names pics/3.png, which has changed since it was first looked at"):
        examples.pair_ids(np.array([3]))


def test_a_training_looks_at_each_image_once(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """When it begins. Mutant check: looking anew for the digest, the batches or the evaluation fails this."""
    seen: Counter[int] = Counter()
    find = finding.Finder.find
    monkeypatch.setattr(finding.Finder, "find", lambda self, row, name: (seen.update([row]), find(self, row, name))[1])
    chosen = job(csv(folder, NAMES), shape=[8, 8])
    record: Any = {"code": provenance.code_digest(), "versions": provenance.versions(), "data": data.digests(chosen)}
    seen.clear()
    Training(chosen, folder / "trial", expected=record).settle()
    assert seen == dict.fromkeys(range(4), 1)


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


def made(words: str, folder: Path, name: str = "images.parquet") -> pa.Table:
    """The table that the command in these words makes."""
    command = words[words.index("python -c") :]
    done = subprocess.run(
        [sys.executable, *shlex.split(command)[1:]], cwd=folder, check=False, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return pq.read_table(folder / name)


def test_a_folder_of_class_folders_is_refused_with_a_command_that_makes_a_table_of_it(folder: Path) -> None:
    """Which is run. Mutant check: a snippet that nobody has tried."""
    words = refused(job(tree(folder)))
    assert f"{folder}/a tree, it's: is a folder of image files (4, the first is train/cat/0.PNG)" in words
    table = made(words, folder)
    assert table["label"].to_pylist() == ["cat", "cat", "dog", "dog"]
    np.testing.assert_array_equal(read(folder / "images.parquet"), PIXELS[[0, 2, 1, 3]])
    data.check(job(folder / "images.parquet"))


def test_the_command_leaves_out_what_is_no_image_and_follows_links(folder: Path) -> None:
    """Hidden copies, broken links, folders that are called like images; class folders may be links themselves."""
    top = folder / "tree"
    for name in ("cat", ".ipynb_checkpoints", "dog/odd.png"):
        (top / name).mkdir(parents=True)
    (folder / "elsewhere").mkdir()
    (top / "bird").symlink_to(folder / "elsewhere")
    for name, one in zip(["cat/0.png", "cat/._0.png", ".ipynb_checkpoints/0.png", "bird/1.png"], PIXELS, strict=True):
        (top / name).write_bytes(encoded(one))
    (top / "cat/gone.png").symlink_to(folder / "nowhere.png")
    words = refused(job(top))
    assert "is a folder of image files (2, the first is bird/1.png)" in words
    table = made(words, folder)
    assert table["label"].to_pylist() == ["bird", "cat"]
    assert table["image"].to_pylist() == [encoded(PIXELS[3]), encoded(PIXELS[0])]


def test_splits_are_not_mixed(folder: Path) -> None:
    top = folder / "tree/data"
    for number, name in enumerate(["train/cat/0.png", "train/dog/1.png", "val/cat/2.png", "val/dog/3.png"]):
        (top / name).parent.mkdir(parents=True, exist_ok=True)
        (top / name).write_bytes(encoded(PIXELS[number]))
    words = refused(job(folder / "tree"))
    assert "make a Parquet file of each of train, val, here of train" in words
    assert made(words, folder, "train.parquet")["label"].to_pylist() == ["cat", "dog"]


@pytest.mark.parametrize(("name", "text"), [
    ("README.txt", "Cats and dogs.\n"), ("classes.json", '{"0": "cat", "1": "dog"}'), ("words.csv", "id,word\n0,cat\n"),
    ("cat/notes.jsonl", '{"who": "me"}\n'),
])  # fmt: skip
def test_a_file_beside_images_that_is_no_table_of_them_does_not_hide_them(folder: Path, name: str, text: str) -> None:
    top = tree(folder)
    (top / name).parent.mkdir(exist_ok=True)
    (top / name).write_text(text)
    for source in (top, f"{top}[:10]", top.as_uri()):
        words = refused(job(source))
        assert f"/{name}" in words.partition(": ")[0]
        assert f"or else {top} is a folder of image files (4, the first is train/cat/0.PNG)" in words
        assert "python -c" in words


@pytest.mark.parametrize("root", [None, "elsewhere"])
@pytest.mark.parametrize("source", ["tree/*", "tree/**", "{uri}", "{uri}/*/*"])
def test_a_folder_of_images_is_one_however_it_is_named(
    folder: Path, monkeypatch: pytest.MonkeyPatch, source: str, root: str | None
) -> None:
    """Also where a name would be looked for under $ORCHESTRATOR_DATA as well."""
    monkeypatch.delenv("ORCHESTRATOR_DATA", raising=False)
    if root is not None:
        (folder / root).mkdir()
        monkeypatch.setenv("ORCHESTRATOR_DATA", str(folder / root))
    tree(folder).rename(folder / "tree")
    monkeypatch.chdir(folder)
    words = refused(job(source.format(uri=(folder / "tree").as_uri())))
    assert "folder of image files (4, the first is train/cat/0.PNG)" in words


def test_a_folder_in_a_bucket_is_told_to_be_one_of_images(bucket: Callable[[str, bytes], str]) -> None:
    uri = bucket("tree/cat/0.png", encoded(PIXELS[0])).replace("/cat/0.png", "")
    words = refused(job(uri))
    assert "is a folder of image files (1, the first is cat/0.png)" in words
    assert "python -c" not in words


def test_hidden_files_are_not_named_as_images(folder: Path) -> None:
    for name in ("cat/a.JPEG", "cat/._0.JPEG"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    assert refused(job(f"{folder}/**/*.JPEG")).startswith(f"{folder}/cat/a.JPEG: is an image file")


def test_a_folder_that_datasets_has_saved_is_read(folder: Path) -> None:
    """Without what it says of itself; and splits are named one by one."""
    for split in ("train", "test"):
        (folder / "saved" / split).mkdir(parents=True)
        held = pa.array([{"bytes": encoded(one), "path": None} for one in PIXELS])
        feather(folder / f"saved/{split}/data-00000-of-00001.arrow", pa.table({"image": held, "label": [0, 1, 0, 1]}))
        for name in ("state.json", "dataset_info.json"):
            (folder / "saved" / split / name).write_text("{}")
    np.testing.assert_array_equal(read(folder / "saved/train"), PIXELS)
    np.testing.assert_array_equal(read((folder / "saved/train").as_uri()), PIXELS)
    (folder / "saved/dataset_dict.json").write_text('{"splits": ["train", "test"]}')
    for source in (folder / "saved", (folder / "saved").as_uri()):
        assert f"holds test, train, the splits of a data set; name one of them: {source}/test" in refused(job(source))


@pytest.mark.parametrize(("make", "source", "found"), [
    ("heics/cat/0.HEIC", "heics", "is a folder of HEIC images (1, the first is cat/0.HEIC)"),
    ("0.heic", "0.heic", "convert it to JPEG"),
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
    (tmp_path / make).parent.mkdir(exist_ok=True, parents=True)
    (tmp_path / make).write_bytes(b"x")
    words = refused(job(tmp_path / source))
    assert found in words
    assert "Parquet" in words or "table" in words
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


CLASSES: dict[str, tuple[list[str], list[Any]]] = {
    "zeros before": (["007", "7", "07"], ["007", "7", "07"]),
    "as pandas writes numbers beside empty cells": (["1.0", "", "2.0"], [1, None, 2]),
    "spaces": ([" 0", "1 ", "2"], [0, 1, 2]),
    "one text": (["1.0", "2", "new"], ["1", "2", "new"]),
    "fractions": (["0.5", "1.5", "2.0"], ["0.5", "1.5", "2"]),
    "large": (["9" * 19, "8", "7"], ["9" * 19, "8", "7"]),
    "signs": (["-1", "-0", "0"], ["-1", "-0", "0"]),
}


@pytest.mark.parametrize("name", CLASSES)
def test_labels_that_differ_stay_different(folder: Path, name: str) -> None:
    """Mutant check: casting whatever looks like a number makes one class of 007 and 7."""
    cells, labels = CLASSES[name]
    path = folder / "labels.csv"
    path.write_text("image,label\n" + "".join(f"{one},{cell}\n" for one, cell in zip(NAMES, cells, strict=False)))
    assert images.image_rows(job(path), str(path)).table["label"].to_pylist() == labels


@pytest.mark.parametrize(("train", "judged"), [
    (["01", "02", "01"], ["01", "02", "new"]), (["1", "2", "1"], ["1", "2", "new"]),
    (["1.0", "2.0", ""], ["1", "2", "1"]), (["1", "2", "1"], ["1.0", "2.0", "new"]),
])  # fmt: skip
def test_labels_are_compared_as_what_both_tables_can_be(folder: Path, train: list[str], judged: list[str]) -> None:
    """Though one is of numbers by itself. Mutant check: deciding over each alone calls all of them unknown."""
    for name, labels in (("train.csv", train), ("judged.csv", judged)):
        lines = [f"{one},{label}\n" for one, label in zip(NAMES, labels, strict=False)]
        (folder / name).write_text("image,label\n" + "".join(lines))
    notes = data.check(job(folder / "train.csv", folder / "judged.csv"))
    assert any("1 row of data.confirm have labels" in note for note in notes) == ("new" in judged)
    assert not any("3 rows" in note for note in notes)


def test_numbers_judged_by_texts_are_the_same_classes(folder: Path) -> None:
    """Fractions of Parquet too."""
    train = folder / "train.parquet"
    pq.write_table(pa.table({"image": NAMES, "label": [1.0, 2.0, 1.0, 2.0]}), train)
    lines = [f"{one},{label}\n" for one, label in zip(NAMES, ["1", "2", "other", "1"], strict=True)]
    (folder / "judged.csv").write_text("image,label\n" + "".join(lines))
    assert any("1 row of data.confirm have labels" in note for note in data.check(job(train, folder / "judged.csv")))


@pytest.mark.parametrize(("header", "found"), [
    ("Image,Label", "data.columns = ['Image', 'Label']"), ("label, path", "data.columns = [' path', 'label']"),
    (",".join(f"pixel{k}" for k in range(784)), "and 764 more"),
])  # fmt: skip
def test_a_table_without_the_usual_columns_is_refused_briefly(folder: Path, header: str, found: str) -> None:
    (folder / "a.csv").write_text(f"{header}\n" + ",".join(["0"] * len(header.split(","))) + "\n")
    words = refused(job(folder / "a.csv"))
    assert found in words
    assert len(words) < 600


def test_a_number_called_image_beside_paths_is_asked_about(folder: Path) -> None:
    pq.write_table(pa.table({"image": [0, 1, 2, 3], "file_name": NAMES, "label": [0, 1, 0, 1]}), folder / "a.parquet")
    (folder / "a.csv").write_text(
        "image,file_name,label\n" + "".join(f"{k},{n},{k % 2}\n" for k, n in enumerate(NAMES))
    )
    for path in (folder / "a.parquet", folder / "a.csv"):
        assert "'file_name' may be the images; set data.columns = ['file_name', 'label']" in refused(job(path))
    (folder / "1").write_bytes(encoded(PIXELS[1]))
    np.testing.assert_array_equal(read(csv(folder, ["1", NAMES[0]])), PIXELS[[1, 0]])
