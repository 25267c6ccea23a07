"""What trials have kept row by row, read where a run is kept; and what was computed of it, for whoever asks next.

Rows are known by the digest that the ledger has of them. What is computed of some is kept under a key made of their
digests, in report/rows.json: written whole, like the report beside it, so that whoever reads meanwhile finds one or the
other; a damaged one is none. Nothing depends on it but how long an answer takes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Final

from pydantic import JsonValue

from jobs.artifacts import manifest, rows
from orchestrator.ledger.stored import JsonObject
from orchestrator.run_dir.bucket import RemoteError
from orchestrator.run_dir.folder import RunFolder

NAME: Final = "rows.json"

VERSION = 1
"""Of what is computed: goes up where the same rows give something else."""

AT_ONCE = 16
"""Files asked of a bucket at once."""


class RowFiles:
    """The rows that the trials of one run have kept, or of several."""

    def __init__(self, folders: Sequence[RunFolder], known: Mapping[str, JsonValue] | None = None) -> None:
        self._folders, self._known = folders, dict(known or {})
        self._used: dict[str, JsonValue] = {}

    @classmethod
    def of(cls, *folders: RunFolder, within: Path | None = None) -> RowFiles:
        """Open those of runs, with what was computed of them before. within: the folder of a report of several."""
        before = [_content(folder) for folder in folders]
        if within is not None:
            before.append(_bytes(within / NAME))
        return cls(folders, {key: value for content in before for key, value in _known(content).items()})

    def read(self, kept: Sequence[tuple[str, str]]) -> list[bytes | None]:
        """Read the rows of trials, given their ids and digests; None where they are not there, or damaged."""
        if any(folder.remote is not None for folder in self._folders):
            with ThreadPoolExecutor(AT_ONCE) as pool:
                return list(pool.map(self._read, kept))
        return [self._read(one) for one in kept]

    def _read(self, kept: tuple[str, str]) -> bytes | None:
        trial, digest = kept
        for folder in self._folders:
            for source in (_here, _there):
                content = source(folder, trial)
                if content is not None and rows.sha256(content) == digest:
                    return content
        return None

    def recall(self, key: str) -> tuple[bool, JsonValue]:
        """Return whether something was computed under this key, and what."""
        if key in self._known:
            self._used[key] = self._known[key]
        return key in self._known, self._known.get(key)

    def remember(self, key: str, value: JsonValue) -> None:
        """Keep what was computed under a key, which may be None."""
        self._known[key] = self._used[key] = value

    def to_keep(self) -> str | None:
        """Return the content of the file for the next time: what was asked for; None without any."""
        if not self._used:
            return None
        whole: JsonObject = {"version": VERSION, "known": self._used}
        return json.dumps(manifest.sealed(whole), sort_keys=True)


def key_of(*parts: JsonValue) -> str:
    """Hash what a value is computed of."""
    return hashlib.sha256(json.dumps([VERSION, *parts]).encode()).hexdigest()


def _known(text: bytes | None) -> Mapping[str, JsonValue]:
    """Parse the file; nothing for one that is damaged, or of another version."""
    try:
        content = manifest.intact(json.loads(text or b"{}"), NAME, known=())
    except (ValueError, RecursionError):
        return {}
    known = content.get("known")
    return known if content.get("version") == VERSION and isinstance(known, dict) else {}


def _content(folder: RunFolder) -> bytes | None:
    here = _bytes(folder.report / NAME)
    return _asked(folder, f"{folder.report.name}/{NAME}") if here is None else here


def _here(folder: RunFolder, trial: str) -> bytes | None:
    return _bytes(folder.trial(trial) / rows.NAME)


def _there(folder: RunFolder, trial: str) -> bytes | None:
    return _asked(folder, f"trials/{trial}/{rows.NAME}")


def _bytes(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except OSError:
        return None


def _asked(folder: RunFolder, name: str) -> bytes | None:
    """Read a file of a run that is kept in a bucket; None of any other, and where it does not answer."""
    try:
        return None if folder.remote is None else folder.remote.read(name)
    except RemoteError:
        return None
