"""Words for what people have in place of a table: folders of images, archives, single images; and the way on."""

from __future__ import annotations

import json
import os
import posixpath
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip")

APPLES = (".heic", ".heif")
SPLITS = ("train", "training", "val", "valid", "validation", "dev", "test", "testing", "eval")

_MAKE = (
    "import glob, os, pyarrow as pa, pyarrow.parquet as pq; top = os.path.abspath({folder}); "
    'files = sorted(n for n in glob.glob("**/*", root_dir=top, recursive=True) if n.lower().endswith({suffixes}) '
    "and os.path.isfile(os.path.join(top, n))); "
    'kind = pa.schema([("image", pa.binary()), ("label", pa.string())]); out = pq.ParquetWriter({name}, kind); '
    '[out.write_table(pa.table([[open(os.path.join(top, n), "rb").read() for n in some], '
    "[os.path.basename(os.path.dirname(os.path.join(top, n))) for n in some]], schema=kind)) "
    "for some in (files[k : k + 500] for k in range(0, len(files), 500))]; out.close()"
)

NEVER = (b"%!PS", b"\xc5\xd0\xd3\xc6", b"\x89HDF")
"""How files begin that PIL would open, and run another program for, or take for what they are not."""

_POSTSCRIPT = "PostScript (EPS), a program that draws a picture; convert it to PNG"
_BEGINS = {
    b"version https://git-lfs": "a pointer of git-lfs in place of the file; fetch the files: git lfs pull",
    b"%!PS": _POSTSCRIPT,
    b"\xc5\xd0\xd3\xc6": _POSTSCRIPT,
    b"\x89HDF": "an HDF5 file; give the images in it, each as a row",
    b"\x93NUMPY": "what numpy.save writes; give nested lists, or the bytes of the pixels alone: array.tobytes()",
}
_HEIC = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")


def of_bytes(content: bytes) -> str | None:
    """Say what bytes are that people take for an image, and what to do; return None for any other."""
    if content[4:8] == b"ftyp" and content[8:12] in _HEIC:
        return "HEIC, as iPhones write it; convert it to JPEG"
    if content.startswith(b"<") and b"<svg" in content[:2000]:
        return "SVG, a drawing without pixels; convert it to PNG"
    return next((words for begin, words in _BEGINS.items() if content.startswith(begin)), None)


def of_text(content: bytes) -> str | None:
    """Say what bytes are if they are text; return None for others."""
    start = content[:60]
    is_text = len(start) > 3 and all(32 <= byte < 127 or byte in b"\t\n\r" or byte > 160 for byte in start)
    return f"text ({start.decode('latin1')!r}), neither pixels nor an image file" if is_text else None


def of_file(name: str) -> str | None:
    """Return what to say of a file that is an image or an archive; None for any other."""
    if name.lower().endswith(APPLES):
        return (
            "is a HEIC image, which is not read; convert it to JPEG, and write a table of the paths and labels of such"
        )
    if name.lower().endswith(IMAGES):
        return (
            "is an image file, and data are rows of a table; write a Parquet file with the columns image (the bytes of "
            "each file) and label, or a CSV file with their paths and labels"
        )
    if name.lower().endswith(ARCHIVES):
        return (
            "is an archive, and these are not read, those of webdataset neither; unpack it, and write a Parquet file "
            "with the columns image (the bytes of each file) and label, or a CSV file with their paths and labels"
        )
    return None


def of_folder(folder: Path) -> str | None:
    """Return what to say of a local folder without tables; None where no image and no archive lies in it."""
    return of_inside(str(folder), list(_inside(folder)), is_here=True)


def of_inside(folder: str, inside: Sequence[str], *, is_here: bool) -> str | None:
    """Return what to say of a folder by the names of files in it. is_here: whether a command can read them."""
    pictures = sorted(name for name in inside if name.lower().endswith(IMAGES) and not is_hidden(name))
    if pictures:
        return _of_pictures(folder, pictures, is_here=is_here)
    for kind, suffixes in (("HEIC images", APPLES), ("archives", ARCHIVES)):
        if names := sorted(name for name in inside if name.lower().endswith(suffixes) and not is_hidden(name)):
            return f"is a folder of {kind} ({len(names):,}, the first is {names[0]}): it {of_file(names[0])}"
    return None


def _of_pictures(folder: str, pictures: Sequence[str], *, is_here: bool) -> str:
    words = (
        f"is a folder of image files ({len(pictures):,}, the first is {pictures[0]}), and data are rows of a table; "
        "write a CSV file with the columns image (their paths) and label"
    )
    if not is_here:
        return f"{words}, or a Parquet file with the columns image (the bytes of each) and label"
    shared = posixpath.commonpath([posixpath.dirname(name) for name in pictures])
    tops = {name[len(shared) :].lstrip("/").partition("/")[0] for name in pictures}
    splits = sorted((name for name in tops if name.lower() in SPLITS), key=lambda name: SPLITS.index(name.lower()))
    part = splits[0] if len(splits) > 1 else ""
    top = posixpath.join(folder, shared, part) if part else folder
    code = _MAKE.format(
        folder=json.dumps(top),
        suffixes=json.dumps(IMAGES).replace("[", "(").replace("]", ")"),
        name=json.dumps(f"{part or 'images'}.parquet"),
    )
    which = f"of each of {', '.join(splits)}, here of {part}" if part else "here"
    return (
        f"{words}, or make a Parquet file{' ' if part else ', '}{which} with the folder of each as its label: "
        f"python -c {shlex.quote(code)}"
    )


def is_hidden(name: str) -> bool:
    """Return whether a file, or a folder on the way to it, is hidden."""
    return any(part.startswith(".") for part in name.split("/"))


def _inside(folder: Path) -> Iterator[str]:
    """Yield the files in a folder at any depth, also behind links to folders, by their paths in it."""
    seen = set()
    for path, folders, names in os.walk(folder, followlinks=True):
        if (real := os.path.realpath(path)) in seen:
            folders.clear()
            continue
        seen.add(real)
        for name in names:
            if (Path(path) / name).is_file():
                yield (Path(path) / name).relative_to(folder).as_posix()
