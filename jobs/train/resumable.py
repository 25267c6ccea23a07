"""A trial as it stands: what it is prepared with, its checkpoints, its end, and where it goes on."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray

from jobs import data, models, optim
from jobs.artifacts import bucket, checkpoint, manifest, rows, trial_dir
from jobs.config import JobConfig, canonical
from jobs.config.json_values import Json
from jobs.core import usage
from jobs.core.collectives import agree, rank_of, world_of
from jobs.core.device import TrialMemory, device_of
from jobs.core.outcomes import Outcomes
from jobs.losses import JobLoss
from jobs.metrics import evaluate
from jobs.mine.in_training import Mining
from jobs.models import mlm
from jobs.optim.average import WeightAverage
from jobs.train import continuing, origin
from jobs.train.budget import BudgetMeter
from jobs.train.guide import Guide
from jobs.train.microbatches import Batches

FIRST_BATCHES = 1000
"""Of a sampler of the user's own: how many batches stand for the order of its first epoch."""


TRANSFORM = "transform"
"""Key of the gradient transform's state, beside the optimizer's in a checkpoint."""

MINED = "mined"
"""Key of the hard negatives that were mined last, likewise."""

TRAINED = "trained"
"""Key of the weights that are trained, likewise, where the model of a checkpoint is their average."""


class Resumable:
    """One job on this rank: its parts, and its state on disk."""

    def __init__(
        self,
        job: JobConfig,
        folder: Path,
        *,
        group: dist.ProcessGroup | None = None,
        log: Callable[[str], None] = print,
        attempt: tuple[int, int] | None = None,
        remote: str | None = None,
        phase: Callable[[str], None] = lambda _: None,
        expected: origin.Expected | None = None,
        trial_memory: TrialMemory | None = None,
    ) -> None:
        self.job, self.folder, self.group, self.log, self.phase = job, folder, group, log, phase
        self.control = group
        """The group in which ranks may agree on what is no part of the training."""
        self.phase("loading")
        models.import_code(job)
        self.rank, self.world = rank_of(group), world_of(group)
        self.attempt, self.storage = attempt, bucket.at(folder, remote)
        self.device = device_of(job.execution)
        self.trial_memory = trial_memory or TrialMemory(self.device)
        self.budget = BudgetMeter(job)
        self.expected = expected or {}
        self.provenance: dict[str, Json] = {}
        """Digests of what this rank computes with: code, versions, data, weights."""
        self.step = 0
        self.seconds = 0.0
        """Of training, the same on every rank where they are the budget."""
        self.untrained: dict[str, float] = {}
        self.result: trial_dir.Result | None = None
        self.remarks: list[str] = []
        """Rank 0: what was wrong with the trial's files when it was opened, and what became of them."""
        self.notes: list[str] = []
        """Rank 0: what is odd about the batches that it has trained on. The caller may take them away."""
        self._noted = False
        self.fence = trial_dir.Fence(self.storage, attempt)
        self.records = trial_dir.Records(folder, writes=self.rank == 0, permit=self.fence.check_local)
        self.writer = checkpoint.Writer()
        self._saved = (0, 0)
        """Steps of the two newest checkpoints that the writer has or had, the older first."""
        self._judged = 0
        """Step of the newest evaluation."""
        self._outcomes: dict[str, Outcomes] = {}
        """Of the last one, row by row."""
        self._prepare()
        self._resume()
        if self.fence.remark is not None:
            self._remark(self.fence.remark)
        self._told = len(self.points)
        """Points that the caller has seen: those so far, and those that `advance` has returned."""

    @property
    def points(self) -> list[trial_dir.Point]:
        """Every point so far."""
        return self.records.points

    @property
    def reading(self) -> dict[str, object]:
        """How the encoder takes and pools its inputs, as plain JSON."""
        return self.model.reading.record if self.job.task == "sentence" else {"pooling": self.model.pooling}

    def save(self) -> None:
        """Hand a checkpoint of this step to the writer, once the one before is written; `settle` waits for it.

        Rank 0 writes, all others return at once.
        """
        self.phase("checkpoint")
        self.writer.wait()
        self.records.flush()
        if self.rank == 0:
            self._hand_over(self._snapshot())

    def settle(self) -> None:
        """Wait until everything that was handed over is committed. Raises the writer's error."""
        self.phase("checkpoint")
        self.writer.wait()

    def _news(self) -> list[trial_dir.Point]:
        """Return the points that were not reported yet. With a budget in seconds, only those that the checkpoint before
        the newest has passed, so that the newest may be damaged: a training that is continued before points that it has
        reported logs and is evaluated at other steps."""
        if self.budget.timed and self.result is None:
            self.settle()
            until = self._saved[0]
            news = [point for point in self.points[self._told :] if point.step <= until]
        else:
            news = self.points[self._told :]
        self._told += len(news)
        return news

    def _snapshot(self) -> checkpoint.Checkpoint:
        with self.average.in_model() as trained:
            beside = {TRANSFORM: dict(self.transform.state_dict()), MINED: self.mining.state_dict(), TRAINED: trained}
            return checkpoint.snapshot(
                step=self.step,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict() | {key: state for key, state in beside.items() if state},
                extra={
                    "seconds": self.seconds,
                    "untrained": self.untrained,
                    trial_dir.POINTS_TOLD: len(self.points),
                    trial_dir.READING: self.reading,
                    "world": self.world,
                    "attempt": self.attempt,
                },
            )

    def _hand_over(
        self,
        taken: checkpoint.Checkpoint | None,
        result: Mapping[str, object] | None = None,
        kept: bytes | None = None,
    ) -> None:
        keep = self.job.execution.keep_checkpoints
        self._saved = (self._saved[1], self.step)
        commit = partial(continuing.commit, self.storage, self.fence, taken=taken, result=result, kept=kept, keep=keep)
        self.writer.submit(commit)

    def _prepare(self) -> None:
        job = self.job
        torch.set_num_threads(job.execution.threads)
        if self.rank == 0:
            continuing.open_folder(self.storage, self.fence, job, named=self.attempt is not None, remark=self._remark)
        origin.begin(self.expected)
        with data.looked_at_once():
            before = origin.look(job, self.expected) if self.expected else None
            self.task = data.task_of(job)
            self.tokenizer = self.task.tokenizer
            if job.trains:
                self._train_on(self.task.examples())
            self.evaluation = self.task.judged()
            self.row_ids = self.task.row_ids(self.evaluation) if job.stage == "confirm" else None
            self.model = models.build(job, tokenizer=self.tokenizer, inputs=self.task.inputs(), device=self.device)
            loaded = origin.look(job, self.expected)
        if before is not None:
            origin.refuse_change(before, loaded)
        self.provenance = loaded.digests
        if job.trains:
            self._prepare_training()
        self.average = WeightAverage(self.model, job.optimizer, batch=job.batch.size)
        self.initial = {
            "init": models.initial_hash(self.model),
            "encoder": models.initial_hash(self.model.encoder),
        }
        self._verified = not job.execution.verify
        self.meter = usage.Meter(self.device)

    def _prepare_training(self) -> None:
        """Make what only those need that train."""
        job = self.job
        self.loss = JobLoss(job, {"embedding_width": self.model.out_width, "data_rows": len(self.examples)})
        known_by = canonical({"weights": self.provenance["weights"], "data": self.provenance["data"]})
        self.guide = None if job.guide is None else Guide(job, device=self.device, known_by=known_by)
        self.model.take_loss(self.loss.module, normalised=self.loss.normalised, momentum=self.loss.momentum)
        models.refuse_what_parts_of_a_batch_change(self.model, job, world=self.world)
        self.mining = Mining(job, self.examples, self.tokenizer)
        self.masking = mlm.masking(job, self.tokenizer)
        self.optimizer = optim.build(self.model, job.optimizer)
        self.transform = optim.GradientTransform(self.model, job.optimizer, seed=job.seed)

    def _train_on(self, examples: data.Examples) -> None:
        """Take what the batches are made of."""
        self.examples = examples
        self.batches = Batches(examples, self.job, rank=self.rank, world=self.world)

    def _resume(self) -> None:
        """Continue after the newest sound checkpoint, or begin with an evaluation of the untrained model."""
        newest, ended = continuing.find(self.storage, remark=self._remark) if self.rank == 0 else (None, None)
        held: list[Any] = [newest, ended]
        if self.group is not None:
            dist.broadcast_object_list(held, group=self.group, group_src=0)
        newest, self.result = held
        if self.result is not None:
            self.step, self.seconds = self.result["step"], self.result["seconds"]
            self.records.restore(until=self.step)
            return
        if newest is None:
            self.records.restore(until=-1)
            trains = self.job.trains
            self.untrained = self._measure(final=True, outcomes=None if trains else self._outcomes)
            self._record(self.untrained)
            if not trains:
                self._end("diverged" if evaluate.diverged(self.untrained) else "ok", "judged without training")
            return
        trial_dir.refuse_other_reading(newest.extra.get(trial_dir.READING), self.reading)
        self.step, self.seconds = newest.step, newest.extra["seconds"]
        self.untrained = newest.extra["untrained"]
        self.model.load_state_dict(newest.model)
        self.average.load(newest.optimizer.pop(TRAINED, {}))
        self.transform.load_state_dict(newest.optimizer.pop(TRANSFORM, {}))
        if mined := newest.optimizer.pop(MINED, {}):
            self.mining.load_state_dict(mined)
            self._train_on(self.mining.examples(self.examples))
        self.optimizer.load_state_dict(newest.optimizer)
        self.records.restore(until=self.step)
        self._saved = (0, self.step)
        self.log(f"continues after {self.budget.describe(self.step, self.seconds)}")
        if self.budget.is_exhausted(
            self.step, self.seconds
        ):  # its result was lost: it comes before the last checkpoint
            self._evaluate(recorded=True)

    def _remark(self, sentence: str) -> None:
        self.remarks.append(sentence)
        self.log(sentence)

    def _evaluate(self, *, recorded: bool) -> None:
        last, self._judged = self.budget.is_exhausted(self.step, self.seconds), self.step
        metrics = self._measure(final=last, outcomes=self._outcomes if last else None)
        if recorded or not all(np.isfinite(value) for value in metrics.values()):
            self._record(metrics)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        self.log(f"{self.budget.describe(self.step, self.seconds)}  {shown}")
        if evaluate.diverged(metrics):
            self._end("diverged", "the evaluation is not finite")
        elif last:
            self._end("ok", "done")

    def _measure(self, *, final: bool, outcomes: dict[str, Outcomes] | None = None) -> dict[str, float]:
        self.phase("evaluation")
        with self.average.in_model():
            return evaluate.evaluate(
                self.model, self.evaluation, job=self.job, task=self.task, group=self.group, device=self.device,
                final=final, outcomes=outcomes,
            )  # fmt: skip

    def _end(self, outcome: Literal["ok", "diverged"], why: str) -> None:
        """Commit the result, then the last checkpoint, then set it. A job that diverged has no metrics."""
        samples = self.step * self.job.batch.size
        peaks = agree([self.trial_memory.needed()], self.group, what="peak memory")
        costs = {
            "samples_per_second": samples / self.seconds if self.seconds else 0.0,
            "peak_memory_mb": max(peak for (peak,) in peaks) / 2**20,
        }
        self._record(optim.counts(self.optimizer) if self.job.trains else {})
        measured = self.records.latest()
        # Of a job that had ended before, and whose result was lost, no step is trained again: they are in its points.
        costs |= {key: measured[key] for key in costs if key in measured}
        latest: dict[str, float] = {}
        kept = None
        if outcome == "ok":
            kept = continuing.rows_of(self._outcomes, self.row_ids, threads=self.job.execution.threads)
            latest = {
                key: last for key, last in measured.items() if not key.startswith(usage.PREFIX) and key not in costs
            }
            self._record(costs)
        result: trial_dir.Result = {
            "state": "done",
            "outcome": outcome,
            "why": why,
            "step": self.step,
            "metrics": latest,
            "untrained": self.untrained,
            trial_dir.POINTS_TOLD: len(self.points),
            "samples": samples,
            "seconds": self.seconds,
            "samples_per_second": costs["samples_per_second"],
            "peak_memory_mb": costs["peak_memory_mb"],
            "negatives_per_anchor": self.job.negatives_per_anchor + self._hard_negatives(),
            "hashes": self._hashes(),
            "data": data.dataset_info(self.job),
            trial_dir.READING: self.reading,
        }
        if kept is not None:
            result["rows"] = rows.sha256(kept)
        result[manifest.DIGEST] = manifest.digest_of(result)
        self._outcomes.clear()
        self.log(f"{outcome} at step {self.step}: {why}")
        self.phase("checkpoint")
        self.writer.wait()
        self.records.flush()
        if self.rank == 0:
            self._hand_over(self._snapshot() if outcome == "ok" and self.job.trains else None, result, kept)
        else:
            self.writer.submit(partial(self.storage.publish, f"log.rank{self.rank}.txt"))
        self.settle()
        self.result = result

    def _hard_negatives(self) -> int:
        return self.examples.hard_negatives * self.job.negatives_group if self.job.trains else 0

    def _hashes(self) -> dict[str, str]:
        """Hash what paired trials must have in common: the rows, the order of the first epoch, the first weights, and
        the encoder's first weights by themselves, which arms with different heads share."""
        order = _first_epoch(self.job, self.batches, len(self.examples)).tobytes() if self.job.trains else b""
        return {
            "data": data.fingerprint(self.job),
            "order": hashlib.sha256(order).hexdigest(),
            **self.initial,
        }

    def _usage(self) -> dict[str, float]:
        return usage.points(agree(self.meter.look(), self.group, what="usage"))

    def _record(self, values: dict[str, float]) -> None:
        self.records.add(values, step=self.step)


def _first_epoch(job: JobConfig, batches: Batches, rows: int) -> NDArray[np.int64]:
    """List the rows of the first epoch, in their order; of a sampler of the user's own, those of the first batches."""
    if job.data.sampler == "shuffled":
        return data.batch_rows(rows, size=rows, seed=job.seed, step=1)
    first = range(1, 1 + min(FIRST_BATCHES, -(-rows // job.batch.size)))
    return np.concatenate([batches.rows(step) for step in first])
