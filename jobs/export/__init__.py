"""A trained encoder as a folder that transformers and sentence-transformers load, with the embeddings it was judged by.

python -m jobs.export runs/one encoders/one

The folder needs nothing of this package. It is written aside, its embeddings are compared with the trial's own, and
only then is it renamed, so that it is there and right, or not there. Nothing of the trial is changed.
"""

from __future__ import annotations

import contextlib
import importlib.util
import shutil
import sys
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict, TypeVar

import numpy as np
import torch
from threadpoolctl import threadpool_limits  # type: ignore[import-untyped]
from torch import Tensor, nn

from jobs import data, models
from jobs.artifacts import bucket, checkpoint, manifest, storage, trial_dir
from jobs.config import Execution, JobConfig
from jobs.config.components import is_import_path
from jobs.core.paths import is_built
from jobs.data.images.pixels import standardised
from jobs.data.sentences.tokens import tokenised
from jobs.export import card, folder
from jobs.export.card import About
from jobs.export.embed import Settings
from jobs.models import ContrastiveModel
from jobs.models.model import BESIDE

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

__all__ = ["About", "Differs", "Exported", "export"]

T = TypeVar("T")

TOLERANCE = 1e-6
"""Largest difference to the trial's own embeddings, of those whose largest value is up to 1: rounding of fp32, whose
sums may run in another order."""

LONG = 512
"""How often the sentences below are repeated at most: attention to thousands of tokens takes minutes on a CPU."""

SENTENCES = ("A man plays a guitar.", "Someone is playing the guitar outside.", "Üben, üben, üben: 今天很冷!", "no")


class Differs(RuntimeError):
    """What was written does not give the embeddings that the trial has. Nothing is left of it."""


class Exported(TypedDict):
    """What `export` has written."""

    trial: str
    step: int
    path: str
    task: str
    width: int
    """Columns of an embedding."""

    head: bool
    """Whether embeddings are those after the projection head."""

    trust_remote_code: bool
    """Whether it needs code of the folder."""

    difference: float
    """To the trial's own embeddings, at most."""

    metrics: dict[str, float]
    remarks: list[str]


def export(
    source: Path, dest: Path, *, remote: str | None = None, step: int | None = None, about: About | None = None
) -> Exported:
    """Write the encoder of the trial in `source` to the new folder `dest`. Returns what was written.

    remote: URI of pyarrow.fs at which the trial's files are kept; `source` then is a folder to work in. step: of the
    checkpoint; None: the newest that is sound. Raises ValueError for what a person can mend: no checkpoint, `dest` is
    there already, data that are not those it was trained on. Raises ConnectionError, storage.StorageFull and Differs.
    """
    refuse_existing(dest)
    name = source.resolve().name
    trial = bucket.at(source, remote)
    job = _job(trial, source, remote)
    if job.is_function:
        raise ValueError(
            f"task = '{job.task}' is a training loop of your own, and so is its encoder; what it has kept is in "
            f"{trial.scratch / 'own'}"
        )
    own = {"task": job.task, "model.name": job.model.name, "model.pooling": job.model.pooling}
    if codes := [f"{key} = '{name}'" for key, name in own.items() if is_import_path(name or "")]:
        raise ValueError(
            f"{codes[0]} is code of your own, which whoever loads a folder would not have; load "
            f"the weights with your class: {trial.scratch / 'checkpoints'}, whose names begin with 'encoder.'"
        )
    newest, weights, extra, remarks = _checkpoint(trial, job, name, step)
    if job.evaluate.after is not None and job.model.precision == "bf16":
        raise ValueError(
            f"evaluate.after = '{job.evaluate.after}' is computed in double precision, which a folder of "
            "model.precision = 'bf16' would round to 8 bits; train with 'fp32' to export it"
        )
    tokenizer, image_shape, unsure = _inputs(trial, job, source, remote)
    model = models.build(job, tokenizer=tokenizer, image_shape=image_shape).eval()
    trained = extra.get(trial_dir.READING) or None
    if trained is None and (result := _result(trial, source, remote)) is not None:
        trained = result.get(trial_dir.READING)
    trial_dir.refuse_other_reading(trained, model.reading.record)
    if trained is None and job.task == "sentence" and not is_built(job.model.name):
        unsure.append(
            f"an earlier version has not recorded how model.name = '{job.model.name}' was read when the trial began; "
            "it is exported as its folder says today"
        )
    if job.trains:
        _fill(model, weights, name)
    else:
        _refuse_other_weights(model, job, _result(trial, source, remote))
    after = _after(model, job)
    points = _points(trial, source, remote, until=newest)

    def write(into: Path) -> tuple[Settings, float]:
        settings = folder.write(into, model, job, tokenizer=tokenizer, image_shape=image_shape, after=after)
        page = card.text(about or About(), job, trial=name, step=newest, points=points, settings=settings)
        (into / "README.md").write_text(page, "utf-8")
        return settings, _difference(into, model, job, tokenizer, image_shape, after=after)

    settings, difference = _whole(dest, write, needed=sum(values.nbytes for values in model.state_dict().values()))
    return {
        "trial": name,
        "step": newest,
        "path": str(dest),
        "task": job.task,
        "width": settings["width"],
        "head": card.has_head(job),
        "trust_remote_code": job.task == "image" or model.pooling == "attention",
        "difference": difference,
        "metrics": {key: point.value for key, point in card.judged(points).items()},
        "remarks": [*remarks, *unsure],
    }


def _checkpoint(
    trial: storage.Storage, job: JobConfig, name: str, step: int | None
) -> tuple[int, dict[str, Tensor], Mapping[str, Any], list[str]]:
    """Read the step, weights and what else the checkpoint has, and what is odd about it; nothing of a trial that did
    not train."""
    if not job.trains:
        return 0, {}, {}, []
    try:
        return checkpoint.weights(trial.inside("checkpoints"), step=step)
    except ValueError as error:
        raise ValueError(
            f"trial {name} has {error}; one is made every execution.checkpoint_every = "
            f"{job.execution.checkpoint_every} steps, when it is stopped and at its end: train it, then export"
        ) from error


def refuse_existing(dest: Path) -> None:
    """Raise ValueError unless `dest` is not there, or is an empty folder."""
    if dest.is_symlink() or (dest.exists() and not (dest.is_dir() and not any(dest.iterdir()))):
        raise ValueError(f"{dest} is there already, and nothing is overwritten; name a new folder, such as {dest}-2")


def _job(trial: storage.Storage, source: Path, remote: str | None) -> JobConfig:
    """Read the trial's job and set it to compute on one CPU: how it was computed says nothing of the encoder."""
    try:
        job = trial_dir.read_job(trial)
    except (IsADirectoryError, ValueError, RecursionError) as error:
        raise ValueError(_damaged("job.json", source, remote, error)) from error
    if job is None:
        raise ValueError(
            f"{remote or source} holds no trial: it has no job.json; name a folder that python -m jobs.train --into "
            "has made, or RUN/trials/ID"
        )
    execution = Execution(device="cpu", checkpoint_every=job.execution.checkpoint_every)
    return job.model_copy(update={"execution": execution})


def _points(trial: storage.Storage, source: Path, remote: str | None, *, until: int) -> list[trial_dir.Point]:
    """Read the points that were measured up to step `until`."""
    try:
        return trial_dir.points_of(trial.read(trial_dir.POINTS) or "", until=until)
    except (IsADirectoryError, ValueError) as error:
        raise ValueError(_damaged(trial_dir.POINTS, source, remote, error)) from error


def _result(trial: storage.Storage, source: Path, remote: str | None) -> trial_dir.Result | None:
    """Read what the trial's training ended with; None if it has no result."""
    try:
        text = trial.read(trial_dir.RESULT)
        return None if text is None else trial_dir.result_of(text)
    except (IsADirectoryError, ValueError) as error:
        raise ValueError(_damaged(trial_dir.RESULT, source, remote, error)) from error


def _damaged(name: str, source: Path, remote: str | None, error: Exception) -> str:
    """Say what to do about a file of the trial that cannot be read."""
    return (
        f"{name} of {remote or source} is damaged ({trial_dir.reason(error)}); put a copy of it there, or, if the "
        "trial is one of a run, have it written again as the ledger has it: orchestrator resume RUN"
    )


def _inputs(
    trial: storage.Storage, job: JobConfig, source: Path, remote: str | None
) -> tuple[PreTrainedTokenizerBase | None, tuple[int, int, int] | None, list[str]]:
    """Find the tokenizer or the image shape, which a job's data decide about its encoder, and what is not sure."""
    has_vocabulary = job.task == "sentence" and is_built(job.model.name)
    what = "its vocabulary" if has_vocabulary else f"evaluate.after = '{job.evaluate.after}'"
    unsure = []
    if has_vocabulary or job.evaluate.after is not None:
        result = _result(trial, source, remote)
        if result is None:
            unsure.append(
                f"the trial has not ended, so nothing says whether data.train = '{job.data.train}', which {what} is "
                "made of, still has the rows that it trains on"
            )
        elif data.fingerprint(job) != result["hashes"].get("data"):
            raise ValueError(
                f"data.train = '{job.data.train}' or the rows it was judged on have changed since this trial was "
                f"trained, and {what} is made of them; bring back the rows that it was trained on"
            )
    if job.task == "image":
        examples = data.train_examples(job)
        assert isinstance(examples, data.ImageExamples)
        return None, examples.image_shape, unsure
    return data.tokenizer_for(job), None, unsure


@torch.no_grad()
def _after(model: ContrastiveModel, job: JobConfig) -> nn.Linear | None:
    """Fit what the job does to embeddings once more, to the same rows; None where it does nothing."""
    if job.evaluate.after is None:
        return None
    from jobs.data.tasks import task_of
    from jobs.metrics.evaluate import Encoder
    from jobs.metrics.judged import linear_of

    with threadpool_limits(limits=job.execution.threads):
        return linear_of(job, task_of(job), Encoder(model, job.evaluate.batch, job.evaluate.head))


def _fill(model: ContrastiveModel, weights: dict[str, Tensor], name: str) -> None:
    own = {key: values for key, values in weights.items() if not key.startswith(BESIDE)}  # not the encoder's
    try:
        model.load_state_dict(own)
    except RuntimeError as error:
        lines = str(error).splitlines()
        raise ValueError(
            f"the checkpoint of trial {name} is not of the encoder that its job and its data describe "
            f"({lines[min(1, len(lines) - 1)].strip()}); bring back the data and the encoder that it was trained from"
        ) from error


def _refuse_other_weights(model: ContrastiveModel, job: JobConfig, result: trial_dir.Result | None) -> None:
    """Raise ValueError where an encoder that was not trained is no longer what was judged."""
    if result is not None and result["hashes"]["init"] != models.initial_hash(model):
        raise ValueError(
            f"model.name = '{job.model.name}' holds other weights than when this trial judged it; bring these back"
        )


@torch.no_grad()
def _difference(
    written: Path,
    model: ContrastiveModel,
    job: JobConfig,
    tokenizer: PreTrainedTokenizerBase | None,
    image_shape: tuple[int, int, int] | None,
    *,
    after: nn.Linear | None,
) -> float:
    """Compute how far the embeddings of `written` are from the model's, at most. Raises Differs if that is too far."""
    inputs: dict[str, Tensor]
    given: list[str] | np.ndarray
    if image_shape is None:
        assert tokenizer is not None
        read = model.reading
        longest = min(read.max_tokens, LONG)
        given = [" ".join([text] * repeats) for repeats in (1, 2, longest) for text in SENTENCES]
        tokens = tokenised(tokenizer, given, max_tokens=read.max_tokens, prompt=read.prompt)
        rows = [torch.tensor(ids) for ids in tokens]
        pad = torch.nn.utils.rnn.pad_sequence
        inputs = {
            "input_ids": pad(rows, batch_first=True, padding_value=tokenizer.pad_token_id),
            "attention_mask": pad([torch.ones_like(ids) for ids in rows], batch_first=True),
        }
    else:
        channels, height, width = image_shape
        given = np.random.default_rng(0).integers(0, 256, (8, height, width, channels), np.uint8)
        # As Images gives them: a copy in another memory layout is rounded otherwise by a convolution.
        inputs = {
            "pixel_values": standardised(torch.from_numpy(np.ascontiguousarray(given.transpose(0, 3, 1, 2))) / 255)
        }
    hidden = model.encode(inputs)
    judged = model.project(hidden) if job.evaluate.head else hidden
    expected, largest = judged.float().numpy(), float(judged.abs().max())
    if after is not None:
        expected = after(judged.double()).float().numpy()
        # fp32 rounds each term of its sums, which may be larger than they are.
        largest = float((judged.double().abs() @ after.weight.T.abs() + after.bias.abs()).max())
    with _no_bytecode():
        embedded = _embed_of(written)(given)
    difference = float(np.abs(embedded - expected).max())
    if not difference <= TOLERANCE * max(1.0, largest):
        raise Differs(f"the exported encoder differs from the trial's by {difference:.2g}; please report this")
    return difference


@contextlib.contextmanager
def _no_bytecode() -> Iterator[None]:
    """Import inside without a trace: compiled files would be left in the folder, and name where they were made."""
    before, sys.dont_write_bytecode = sys.dont_write_bytecode, True
    try:
        yield
    finally:
        sys.dont_write_bytecode = before


def _embed_of(written: Path) -> Callable[[list[str] | np.ndarray], np.ndarray]:
    """Load the embedding function by `load` of the folder's own embed.py."""
    spec = importlib.util.spec_from_file_location("exported_embed", written / "embed.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    load: Callable[..., Callable[[list[str] | np.ndarray], np.ndarray]] = module.load
    return load(written, device="cpu")  # as the model that it is compared with


def _whole(dest: Path, write: Callable[[Path], T], *, needed: int) -> T:
    """Make the folder `dest` in one piece: written aside, fsynced, renamed. Returns what `write` does."""
    parent, name = dest.absolute().parent, dest.absolute().name
    storage.clean_asides(parent, name)
    aside = storage.temp_path(parent, name)

    def undo() -> None:
        shutil.rmtree(aside, ignore_errors=True)

    with storage.disk_full_guard(f"export to {dest}", needed=needed, folder=parent, undo=undo):
        aside.mkdir(parents=True)
        written = write(aside)
        for path in sorted(aside.rglob("*"), reverse=True):
            manifest.fsync(path)
        manifest.fsync(aside)
        refuse_existing(dest)
        aside.rename(dest)  # over an empty folder, and never over one that is not
        manifest.fsync(parent)
    return written
