"""Whether this process computes with what a run was begun with: code, versions, rows and weights.

A session says what it expects of every rank, on whatever node. A rank looks before it loads, and again at what it has
loaded; what is not as expected is nobody's fault who trains, so the session ends and no trial is charged.
"""

from __future__ import annotations

import socket
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from jobs import data
from jobs.config import JobConfig, user_code
from jobs.config.json_values import Json, JsonObject
from jobs.core import provenance
from jobs.models.pretrained import folder as pretrained

PACKAGE = Path(__file__).parents[1]

Expected: TypeAlias = Mapping[str, Json | bytes]
"""What a session computes with, as `orchestrator.run_dir.provenance` has it, and the archive of the user's code. Empty
for a job alone."""


class OtherOrigin(ValueError):
    """What this process computes with is not what the session expects. The session ends; nothing was trained."""


@dataclass(frozen=True)
class Origin:
    """What a rank computes with."""

    digests: dict[str, Json]
    """`code`, `versions`, `data` by use and source, and `weights` by the encoder's name."""

    stamps: dict[str, Json]
    """Of the files of data and weights, which tell whether they have changed since."""


def begin(expected: Expected) -> None:
    """Have encoders mean what they meant where the run began."""
    pretrained.hold(_entries(expected, "weights"))
    if isinstance(archive := expected.get("archive"), bytes):
        try:
            user_code.activate(archive, str(expected["user_code"]))
        except user_code.CodeError as error:
            raise OtherOrigin(f"{error}{_here()}") from error


def look(job: JobConfig, expected: Expected) -> Origin:
    """Find what this process computes `job` with. Raises OtherOrigin where that is not as expected; DataError and
    EncoderError for what cannot be read, where nothing is expected of it."""
    _refuse_other_code(expected)
    wanted_rows, wanted_weights = _entries(expected, "data"), _entries(expected, "weights")
    encoders: dict[str, dict[str, Json]] = {}
    try:
        rows = data.digests(job, wanted_rows, stage_only=True)
        for name in filter(None, (job.model.name, job.loss.guide)):
            weights = pretrained.digest(name, wanted_weights.get(name), tokenizer=job.task == "sentence")
            encoders |= {} if weights is None else {name: weights}
    except (data.DataError, pretrained.EncoderError) as error:
        if expected:  # the session has read them when it began
            raise OtherOrigin(f"{error}; it was there when this session began, so put it back{_here()}") from error
        raise
    for is_encoder, wanted, entries in ((False, wanted_rows, rows), (True, wanted_weights, encoders)):
        for what, entry in entries.items() if expected else ():
            label = "" if not is_encoder else "model.name = " if what == job.model.name else "loss.guide = "
            if what not in wanted:
                raise OtherOrigin(f"{label}{what} is nothing that this session has looked at when it began{_here()}")
            if wanted[what]["digest"] != entry["digest"]:
                words = provenance.changed(f"{label}{what}", str(wanted[what]["digest"]), str(entry["digest"]))
                raise OtherOrigin(f"{words}{_here()}")
    return Origin(
        {
            "code": provenance.code_digest(),
            "versions": provenance.versions(_versions(expected)),
            "data": {use: entry["digest"] for use, entry in rows.items()},
            "weights": {name: entry["digest"] for name, entry in encoders.items()},
        },
        {what: entry["files"] for what, entry in {**rows, **encoders}.items()},
    )


def refuse_change(before: Origin, after: Origin) -> None:
    """Raise OtherOrigin where files have changed between two looks, so that nobody knows which were loaded."""
    for what, files in after.stamps.items():
        if before.stamps.get(what) != files:
            raise OtherOrigin(
                f"{what} has changed while it was loaded; let it be as it was when the run began{_here()}"
            )


def _entries(expected: Expected, kind: str) -> dict[str, JsonObject]:
    """Return what is expected of `data` or of `weights`, by name."""
    entries = expected.get(kind)
    named = entries.items() if isinstance(entries, Mapping) else ()
    return {name: entry for name, entry in named if isinstance(entry, Mapping)}


def _versions(expected: Expected) -> dict[str, str]:
    versions = expected.get("versions")
    return {name: str(version) for name, version in versions.items()} if isinstance(versions, Mapping) else {}


def _refuse_other_code(expected: Expected) -> None:
    lines = []
    code = provenance.code_digest()
    wanted_code = str(expected.get("code", code))
    if wanted_code != code:
        lines.append(f"jobs/ is code {code}, not {wanted_code}")
    elif "code" in expected and (edited := provenance.listed(sorted(_edited()))):
        lines.append(f"{edited} changed after this process had started")
    wanted = _versions(expected)
    versions = provenance.versions(wanted)
    for name in provenance.other_versions(wanted, versions) if wanted else ():
        if name in wanted:
            lines.append(f"{name} is {versions.get(name, 'not there')}, not {wanted[name]}")
        else:
            lines.append(f"{name} is {versions[name]}, and was not there")
    if lines:
        raise OtherOrigin(
            f"this is not the code that the session was begun with, so its numbers would come from two programs: "
            f"{'; '.join(lines)}{_here()}; go back to the code and versions of then on every node, or accept these: "
            "orchestrator resume RUN --accept-code"
        )


_imported: set[str] = set()
"""Modules of this package whose files were as expected after they had been imported."""


def _edited() -> Iterator[str]:
    """Yield the files of modules that have been imported since the last look, and are not what they were when this
    process first digested its code: a rank that lives long imports some of them late."""
    known = provenance.code_files(PACKAGE)
    for module in list(sys.modules):
        file = getattr(sys.modules[module], "__file__", None)
        if not module.startswith("jobs.") or module in _imported or file is None:
            continue
        path = Path(file)
        if path.is_relative_to(PACKAGE) and path.is_file():
            name = path.relative_to(PACKAGE).as_posix()
            if known.get(name) == provenance.of_code(path):
                _imported.add(module)
            else:
                yield f"jobs/{name}"


def _here() -> str:
    return f" (on {socket.gethostname()})"
