"""Everything that can be wrong with a job's data, found before any trial starts; and what data they are, as a hash."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import TypeAlias

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from jobs import models
from jobs.config import JobConfig
from jobs.config.components import is_import_path
from jobs.config.json_values import Json, JsonObject
from jobs.core.paths import DIGITS, is_built, is_folder_here
from jobs.data.batches import batch_rows
from jobs.data.faults import DataError, counted, shown
from jobs.data.images import image_rows
from jobs.data.images.arrays import is_list
from jobs.data.images.links import Links, links_of, looked_at_once
from jobs.data.resolve import HUB, locate
from jobs.data.sentences import scored, sentence_rows, tokenizer_for
from jobs.data.sources import Rows, exactly, groups_of, read
from jobs.data.tasks import task_of
from jobs.data.tasks.judging import judge_of
from jobs.data.tasks.sets import are_joined
from jobs.models.pretrained.folder import EncoderError

Hashes: TypeAlias = defaultdict[str, "hashlib.blake2b"]
"""Of the parts of a table, by their place."""


@looked_at_once()
def check(job: JobConfig) -> list[str]:
    """Read all that `job` would read. Returns warnings. Raises DataError at the first fault."""
    if job.is_function:  # which reads its rows as it likes
        digests(job)
        return []
    train = train_rows(job)
    if job.trains and not job.is_own_task and len(train) < max(job.batch.size, 2):
        raise train.fault(
            f"has {counted(len(train))}, fewer than batch.size = {job.batch.size}; give more rows, or "
            f"set batch.size to at most {len(train)}"
            if len(train) > 1
            else "has 1 row; contrastive training needs at least two, and one batch: "
            f"give at least batch.size = {job.batch.size} rows"
        )
    judged = {
        key: _judged_tables(alone, source)[0]
        for stage in ("tune", "confirm")
        for key, alone, source in _sets(job, stage)
    }
    for key, rows in judged.items():
        if not job.is_own_task and len(rows) < 2:
            raise rows.fault(f"has 1 row; data.{key} needs at least two to judge an encoder on")
    warnings = [*task_of(job).check()]
    warnings += check_model(job)
    _try_sampler(job)
    if job.trains and has_single_sentences(job):
        models.check_views(job)
    return [*dict.fromkeys(warnings), *_overlaps(train, judged, joined=are_joined(job))]


def _try_sampler(job: JobConfig) -> None:
    """Draw a batch. Raises DataError for rows that the job's sampler cannot draw from."""
    if job.data.sampler == "shuffled":
        return
    examples = task_of(job).examples()
    try:
        batch_rows(len(examples), size=job.batch.size, seed=job.seed, step=1, job=job, facts=examples.facts)
    except ValueError as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"data.sampler = '{job.data.sampler}': {error}", file=job.data.train) from error


def check_model(job: JobConfig) -> list[str]:
    """Check the job's encoder, and its guide; return what to know of them. Raises ModelError, or DataError for a
    tokenizer."""
    return [*_check_own(job), *_check_guide(job)]


def _check_guide(job: JobConfig) -> list[str]:
    if job.guide is None:
        return []
    try:
        notes = _check_own(job.guide)
    except (DataError, EncoderError, models.ModelError) as error:
        raise models.refused_guide(job, error) from error
    return [note.replace("model.name = ", "loss.guide = ") for note in notes]


def _check_own(job: JobConfig) -> list[str]:
    models.check_layers(job)
    if is_built(job.model.name):
        return []
    notes = models.check_encoder(job, None)  # without one, there is no tokenizer either
    return models.check_encoder(job, tokenizer_for(job)) if job.task == "sentence" else notes


def check_encoder_here(job: JobConfig) -> list[str]:
    """Run `check_model`, and the check of its views, for an encoder that is a folder on this machine, where the rows
    may not be; return nothing for others."""
    guided = _check_guide(job) if job.loss.guide is not None and is_folder_here(job.loss.guide) else []
    if is_built(job.model.name) or not is_folder_here(str(job.model.name)):
        return guided
    notes = _check_own(job) + guided
    if not job.trains:
        return notes
    try:
        models.check_views(job)
    except models.ModelError:
        with contextlib.suppress(DataError):  # of rows that are not here nothing is known
            if has_single_sentences(job):
                raise
    return notes


def has_single_sentences(job: JobConfig) -> bool:
    """Return whether the two views of a pair are the same sentence. Raises DataError."""
    return job.task == "sentence" and len(train_rows(job).table.column_names) == 1


@looked_at_once()
def fingerprint(job: JobConfig) -> str:
    """Hash the rows that `job` trains on and is judged on: 32 hex digits, equal for equal rows in whatever files or
    formats."""
    judged = [_judged_digest(alone, source) for _, alone, source in _sets(job, job.stage)]
    digests = [_digest(job, train_rows(job), is_trained=True), *judged]
    return hashlib.blake2b("".join(digests).encode(), digest_size=16).hexdigest()


@looked_at_once()
def dataset_info(job: JobConfig) -> list[dict[str, Json]]:
    """Describe what `job` trains on and is judged on, each as `context` (`training`, `tune` or `confirm`), `source`,
    `rows` and `digest`, 32 hex digits that are equal for equal rows."""
    train = train_rows(job)
    every = [("training", job.data.train, len(train), _digest(job, train, is_trained=True))]
    for _, alone, source in _sets(job, job.stage):
        every.append((job.stage, source, len(_judged_tables(alone, source)[0]), _judged_digest(alone, source)))
    return [
        {"context": context, "source": source, "rows": rows, "digest": digest[:32]}
        for context, source, rows, digest in every
    ]


@looked_at_once()
def digests(
    job: JobConfig, known: Mapping[str, JsonObject] | None = None, *, stage_only: bool = False
) -> dict[str, dict[str, Json]]:
    """Describe the rows that `job` uses, as `data.train = SOURCE` and so on -> `source`, `rows`, `digest` (32 hex
    digits, equal for equal rows in any format) and `files`, which tells whether they are unchanged.

    known: an earlier answer; a digest of it stands while its files have their size and time. stage_only: without the
    rows that judge the other stage. Raises DataError.
    """
    uses = [("train", job, job.data.train)]
    for stage in (job.stage,) if stage_only else ("tune", "confirm"):
        uses += _sets(job, stage)
    answer: dict[str, dict[str, Json]] = {}
    for use, alone, source in uses:
        # The rows that judge sentences have columns of their own.
        is_judged = use != "train" and job.task == "sentence"
        named = alone.data.judged_columns if is_judged else job.data.columns
        plain = f"data.{use} = {source}"
        key, files = f"{plain} {json.dumps(named)}" if named else plain, _stamps(alone, use, source)
        if use == "train" and job.data.scores is not None:
            key += f" scored by {json.dumps(job.data.scores)}"
        if use != "train" and alone.evaluate.judge is not None:
            key += f" by {alone.judge} {json.dumps(alone.evaluate.judge_options, sort_keys=True)}"
        if use == "train":
            key += "".join(f" {name} {json.dumps(column)}" for name, column in _grouped_by(job).items())
        if known and key not in known and plain in known and not is_judged:  # named by a version without the columns
            key = plain
        before = (known or {}).get(key)
        if before is not None and files is not None and before["files"] == files:
            answer[key] = dict(before)
            continue
        rows = train_rows(job) if use == "train" else _judged_tables(alone, source)[0]
        links = _links(alone, rows)
        if links is not None and files is not None:
            files = None if links.entry is None else [*files, links.entry]
        if before is not None and files is not None and before["files"] == files:
            answer[key] = dict(before)
        else:
            digest = _digest(job, rows, is_trained=True) if use == "train" else _judged_digest(alone, source)
            answer[key] = {"source": source, "rows": len(rows), "digest": digest[:32], "files": files}
        if links is not None and not links.is_as_before:
            links.is_as_before.append(functools.partial(_has_digest, rows, str(answer[key]["digest"])))
    return answer


def _has_digest(rows: Rows, digest: str, links: Links) -> bool:
    """Return whether rows have this digest by what files hold now: they are read, whatever was known of such files."""
    return _hash.__wrapped__(rows, links)[:32] == digest


def _stamps(job: JobConfig, use: str, source: str) -> Sequence[Sequence[str | int | None]] | None:
    """Return the stamps of all files that a source is made of."""
    plain = (source,) if use == "train" or not _has_judge(job) else judge_of(job).sources(source)
    every = [stamps(one) for one in plain]
    return None if None in every else [stamp for one in every for stamp in one or ()]


def stamps(source: str) -> Sequence[Sequence[str | int | None]] | None:
    """Return path, size and time of change of each file of a source; None where there are no files to ask, or where a
    file system does not say when a file changed."""
    files = locate(source).files
    return (
        None
        if any(file.uri == HUB or file.path == DIGITS or file.changed is None for file in files)
        else [
            [os.path.realpath(file.path) if file.uri is None else file.path, file.size, file.changed] for file in files
        ]
    )


def train_rows(job: JobConfig) -> Rows:
    """Read the rows that `job` trains on."""
    return sentence_rows(job) if job.task == "sentence" else _rows(job, job.data.train)


def _sets(job: JobConfig, stage: str) -> list[tuple[str, JobConfig, str]]:
    """List the sources that judge a stage, each with its key in `data` and the job as if it were judged on it alone."""
    sources = job.data.sets(stage)
    return [
        (f"{stage}.{name}" if name else stage, alone, sources[name]) for name, alone in job.judged_alone(stage).items()
    ]


def _has_judge(job: JobConfig) -> bool:
    """Return whether a judge reads the rows that judge the job, and not its task."""
    return not (job.is_own_task or job.is_function)


def _judged_tables(job: JobConfig, source: str) -> Sequence[Rows]:
    """Read the tables that a source of data.tune or data.confirm is made of, those first that must not overlap."""
    return judge_of(job).tables(source) if _has_judge(job) else (read(source, exactly),)


def _judged_digest(job: JobConfig, source: str) -> str:
    """Hash all tables of a source that judges."""
    first, *others = (_digest(job, rows) for rows in _judged_tables(job, source))
    return hashlib.blake2b("".join([first, *others]).encode()).hexdigest() if others else first


def _rows(job: JobConfig, source: str) -> Rows:
    """Read rows of images, or whole rows for a task that only the user knows."""
    return image_rows(job, source) if job.task == "image" else read(source, exactly)


def _overlaps(train: Rows, judged: dict[str, Rows], *, joined: bool) -> Iterator[str]:
    """Yield a warning for each two of data.train, data.tune and data.confirm that share rows of a file. joined:
    whether some number is of all sets of a stage; else sets of one stage may share rows, and each is judged alone."""
    parts = {"train": train, **judged}
    for (a, first), (b, second) in itertools.combinations(parts.items(), 2):
        if a.partition(".")[0] == b.partition(".")[0] and not joined:
            continue
        shared = 0
        for file, low, taken in first.spans:
            for other, start, count in second.spans:
                same = file == other or ("://" not in file and os.path.realpath(file) == os.path.realpath(other))
                shared += max(min(low + taken, start + count) - max(low, start), 0) if same else 0
        if shared:
            stages = a.partition(".")[0], b.partition(".")[0]
            why = {
                ("tune", "confirm"): "the verdict is on rows that tuning has seen",
                ("train", stages[1]): "the encoder is judged on rows it trained on",
            }.get(stages, "these rows count twice")
            both = shown(f"data.{a} = {first.source} and data.{b} = {second.source}")
            yield f"{both} share {counted(shared)}: {why}; use slices such as [:1000] and [1000:]"


def _links(job: JobConfig, rows: Rows) -> Links | None:
    is_image = job.task == "image" and (rows.source == job.data.train or not is_import_path(job.judge))
    return links_of(rows, rows.table.column_names[0]) if is_image else None


def _digest(job: JobConfig, rows: Rows, *, is_trained: bool = False) -> str:
    """Hash rows, those that are trained on with the scores that they are trained with, and the columns by which a
    sampler groups them."""
    digest = _hash(rows, _links(job, rows))
    if not is_trained:
        return digest
    beside = [] if job.data.scores is None else [scored.train_scores(job.data.train, job.data.scores)]
    for numbers in (*beside, *(groups_of(rows, column) for column in _grouped_by(job).values())):
        digest = hashlib.blake2b(digest.encode() + numbers.tobytes()).hexdigest()
    return digest


def _grouped_by(job: JobConfig) -> dict[str, str]:
    """Return the columns that a job names for its sampler, by key."""
    named = {"source": job.data.source, "label": job.data.label}
    return {name: column for name, column in named.items() if column is not None}


@functools.lru_cache(maxsize=8)
def _hash(rows: Rows, links: Links | None) -> str:
    """Hash the values of a table, column after column, however they are chunked and named. Images that rows name by
    their paths count as if they lay in the rows."""
    hashes: Hashes = defaultdict(lambda: hashlib.blake2b(digest_size=16))
    for index, column in enumerate(rows.table.columns):
        if index == 0 and links is not None:
            for content in links.contents():
                _add(pa.array([content], pa.large_binary()), hashes, f"{index}")
            continue
        for chunk in column.chunks:
            _add(chunk, hashes, f"{index}")
    return hashlib.blake2b("".join(f"{key}:{hashes[key].hexdigest()}" for key in sorted(hashes)).encode()).hexdigest()


def _add(array: pa.Array, hashes: Hashes, key: str) -> None:
    """Add values, lengths and nulls of an array to hashes of their own, so that it does not matter where chunks end."""
    kind = array.type
    if pa.types.is_dictionary(kind):
        return _add(array.dictionary_decode(), hashes, key)
    if isinstance(kind, pa.BaseExtensionType):
        return _add(array.storage, hashes, f"{key} {kind}")
    hashes[f"{key} null"].update(array.is_null().to_numpy(zero_copy_only=False))
    if pa.types.is_struct(kind):
        for index in range(kind.num_fields):
            _add(array.field(index), hashes, f"{key}.{kind.field(index).name}")
    elif pa.types.is_fixed_size_binary(kind):
        width = kind.byte_width
        hashes[key].update(array.buffers()[1][array.offset * width : (array.offset + len(array)) * width])
    elif _is_bytes(kind):
        wide = array.cast(pa.large_binary())
        offsets = np.frombuffer(wide.buffers()[1], np.int64)[wide.offset : wide.offset + len(wide) + 1]
        hashes[f"{key} size"].update(np.diff(offsets).tobytes())
        hashes[key].update(wide.buffers()[2][int(offsets[0]) : int(offsets[-1])] if wide.buffers()[2] else b"")
    elif is_list(kind):
        hashes[f"{key} size"].update(pc.fill_null(pc.list_value_length(array), 0).to_numpy().astype(np.int64))
        _add(array.flatten(), hashes, key + "[]")
    elif pa.types.is_integer(kind):
        hashes[key].update(pc.fill_null(array, 0).to_numpy().astype(np.int64))
    elif pa.types.is_floating(kind):
        hashes[key].update(pc.fill_null(array, 0).to_numpy().astype(np.float64))
    else:
        for value in array.to_pylist():
            hashes[key].update(f"{value!r}\n".encode())
    return None


def _is_bytes(kind: pa.DataType) -> bool:
    tests = (pa.types.is_binary, pa.types.is_large_binary, pa.types.is_string, pa.types.is_large_string)
    return any(test(kind) for test in tests)
