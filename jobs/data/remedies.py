"""Words for what people have in place of a table: folders of images, archives, single images; and the way on."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from pathlib import Path

IMAGES = (".jpg", ".jpeg", ".png", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".ppm", ".pgm", ".avif", ".jp2")
ARCHIVES = (".tar", ".tar.gz", ".tgz", ".tar.zst", ".zip")

_MAKE = (
    "import pathlib, pyarrow as pa, pyarrow.parquet as pq; "
    'files = sorted(p for p in pathlib.Path({folder}).rglob("*") if p.suffix.lower() in {suffixes} '
    'and p.name[0] != "."); '
    'pq.write_table(pa.table({{"image": [p.read_bytes() for p in files], "label": [p.parent.name for p in files]}}), '
    '"images.parquet")'
)


def of_file(name: str) -> str | None:
    """What is said of a file that is an image or an archive; None for any other."""
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


def of_folder(folder: Path, files: Sequence[Path]) -> str | None:
    """What is said of a folder without tables in which these files lie; None where none is an image or an archive."""
    inside = sorted(str(file.relative_to(folder)) for file in files)
    pictures = [name for name in inside if name.lower().endswith(IMAGES) and not Path(name).name.startswith(".")]
    if pictures:
        code = _MAKE.format(folder=json.dumps(str(folder)), suffixes=json.dumps(IMAGES))
        return (
            f"is a folder of image files ({len(pictures):,}, the first is {pictures[0]}), and data are rows of "
            "a table; write a CSV file with the columns image (their paths) and label, or make a Parquet file, here "
            f"with the folder of each as its label: python -c {shlex.quote(code)}"
        )
    archives = [name for name in inside if name.lower().endswith(ARCHIVES)]
    if archives:
        about = of_file(archives[0]) or ""
        return f"is a folder of archives ({len(archives):,}, the first is {archives[0]}): it {about}"
    return None
