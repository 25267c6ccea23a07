"""What may be the matter with a file: for tests that throw each at each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

Damage = Callable[[Path], None]


def remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def garbage(path: Path) -> None:
    """Bytes that are no text."""
    remove(path)
    path.write_bytes(bytes(range(256)) * 40)


def absent(path: Path) -> None:
    remove(path)


def empty(path: Path) -> None:
    remove(path)
    path.write_bytes(b"")


def a_folder(path: Path) -> None:
    remove(path)
    path.mkdir()
    (path / "inside").write_text("x")


def nested(path: Path) -> None:
    """JSON that is deeper than a parser goes."""
    remove(path)
    path.write_text("[" * 200_000)


def another_shape(path: Path) -> None:
    """JSON of something else."""
    remove(path)
    path.write_text("[1, null]\n")


def truncated(path: Path) -> None:
    """The first half of it, as a full disk or a lost block leaves it."""
    content = path.read_bytes() if path.exists() else b""
    path.write_bytes(content[: len(content) // 2])


DAMAGES: list[Damage] = [garbage, absent, empty, a_folder]
OF_JSON: list[Damage] = [nested, another_shape, truncated]
