"""The training loop of one job, resumable at any step; also `python -m jobs.train job.toml --into DIR`.

A trial folder holds everything that is known of a trial:

    job.json  points.jsonl  result.json  log.rank0.txt  checkpoints/step_000500/

Rank 0 writes points and result and fsyncs them before the checkpoint that has passed them is committed, so what a
checkpoint has passed can always be told again without training again. Checkpoints are written in the background, from
a snapshot. Nothing random is ever stored: order, augmentation and dropout are functions of (seed, step, pair).
"""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from jobs import data, models, optim
from jobs.artifacts import checkpoint, manifest, storage, trial_dir
from jobs.config import JobConfig
from jobs.core import usage
from jobs.core.collectives import agree, rank_of, world_of
from jobs.core.device import TrialMemory, device_of, tensor_bytes
from jobs.losses import Diagnostics, contrastive_loss
from jobs.metrics import evaluate
from jobs.models import mlm
from jobs.train import continuing, gradient_check, origin
from jobs.train.budget import Pace
from jobs.train.microbatches import Batches
from jobs.train.step import StepResult, consecutive, diagnostics_points, exact_gradients, share


class Training:
    """One job on this rank, at some step. Every rank of `group` makes the same calls.

    `advance` trains; `points` are those since the trial's beginning, `result` is set once the job has ended and
    everything is on disk. An error of the background writer is raised by the next call, and by every later one.

    attempt: fencing token and number of this attempt at the trial; see trial.Fence.
    remote: a URI of pyarrow.fs at which the trial's files are kept; `folder` then is only where they are made.
    phase: told on every rank what begins: "loading", "evaluation", "preflight", "step 7", "checkpoint".
    expected: digests of the code, the data and the weights that the trial belongs to, as `provenance` has them.
    trial_memory: made for this trial by a caller who looks at it also while the trial is loaded.

    Raises ValueError for a job that cannot be run as asked or a folder of another job; origin.OtherOrigin for what is
    not as expected; trial.TakenOver, storage.StorageFull, and ConnectionError where `remote` cannot be reached.
    """

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
        expected: Mapping[str, Any] | None = None,
        trial_memory: TrialMemory | None = None,
    ) -> None:
        self.job, self.folder, self.group, self.log, self.phase = job, folder, group, log, phase
        self.phase("loading")
        models.import_code(job)
        self.rank, self.world = rank_of(group), world_of(group)
        self.attempt, self.place = attempt, storage.at(folder, remote)
        self.device = device_of(job.execution)
        self.trial_memory = trial_memory or TrialMemory(self.device)
        self.pace = Pace(job)
        self.expected = expected or {}
        self.provenance: dict[str, Any] = {}
        """Digests of what this rank computes with: code, versions, data, weights."""
        self.step = 0
        self.seconds = 0.0
        """Of training, the same on every rank where they are the budget."""
        self.untrained: dict[str, float] = {}
        self.result: dict[str, Any] | None = None
        self.remarks: list[str] = []
        """Rank 0: what was wrong with the trial's files when it was opened, and what became of them."""
        self.notes: list[str] = []
        """Rank 0: what is odd about the batches that it has trained on. The caller may take them away."""
        self._noted = False
        self.fence = trial_dir.Fence(self.place, attempt)
        self.records = trial_dir.Records(folder, writes=self.rank == 0, permit=self.fence.glance)
        self.writer = checkpoint.Writer()
        self._saved = (0, 0)
        """Steps of the two newest checkpoints that the writer has or had, the older first."""
        self._judged = 0
        """Step of the newest evaluation."""
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
    def reading(self) -> dict[str, Any]:
        """How the encoder takes and pools its inputs, as plain JSON."""
        return self.model.reading.record if self.job.task == "sentence" else {"pooling": self.model.pooling}

    def advance(self, steps: int) -> list[trial_dir.Point]:
        """Train for at most `steps` optimizer steps, fewer up to an evaluation or the end. Returns new points."""
        self.writer.look()
        for _ in range(steps):
            if self.result is not None:
                break
            assert not self.pace.over(self.step, self.seconds), (
                "the end of this job could not be written; make a new Training"
            )
            if not self._verified:
                self._verify(self.step + 1)
            self.phase(f"step {self.step + 1}")
            began, before_s = time.perf_counter(), self.seconds
            largest = partial(self.batches.largest, self.step + 1)
            with self.trial_memory.step(size=largest, held=self._held) as measuring_s:
                outcome = self._optimize(self.step + 1)
                self.seconds = self._clock(before_s + time.perf_counter() - began - measuring_s)
            if not outcome.finite:
                self._end("diverged", f"loss {outcome.loss}, gradient norm {outcome.gradient_norm}")
                break
            due = self.pace.evaluations(self.step + 1, self.seconds) > self.pace.evaluations(self.step, before_s)
            self.step += 1
            if self.pace.logged(self.step, before_s, self.seconds):
                self._record(diagnostics_points(outcome) | self._settings() | self._usage())
            if due:
                self._evaluate(recorded=self.pace.recorded(self.step, before_s, self.seconds))
            if self.result is None and self._is_saved(due):
                self.save()
            if due:
                break
        self.records.flush()
        return self._news()

    def save(self) -> None:
        """Hand a checkpoint of this step to the writer, once the one before is written; `settle` waits for it.

        Rank 0 writes, all others return at once.
        """
        self.phase("checkpoint")
        self.writer.settle()
        self.records.flush()
        if self.rank == 0:
            self._hand_over(self._snapshot())

    def settle(self) -> None:
        """Wait until everything that was handed over is committed. Raises the writer's error."""
        self.phase("checkpoint")
        self.writer.settle()

    def _clock(self, seconds: float) -> float:
        """Seconds of training as all ranks take them: rank 0's, where they are the budget."""
        if not self.pace.timed:
            return seconds
        return agree([int(seconds * 1e9)], self.group, what="time")[0][0] / 1e9

    def _is_saved(self, evaluated: bool) -> bool:
        """Whether this step is checkpointed. Of a budget in seconds every evaluation is, and the step after it, or
        pruning would wait (see `_news`)."""
        due = self.pace.timed and (evaluated or self.step == self._judged + 1)
        return due or self.step % self.job.execution.checkpoint_every == 0

    def _news(self) -> list[trial_dir.Point]:
        """Points that were not told yet. With a budget in seconds, only those that the checkpoint before the newest has
        passed, so that the newest may be damaged: a training that is continued before points that it has told logs and
        is evaluated at other steps."""
        if self.pace.timed and self.result is None:
            self.settle()
            until = self._saved[0]
            news = [point for point in self.points[self._told :] if point.step <= until]
        else:
            news = self.points[self._told :]
        self._told += len(news)
        return news

    def _snapshot(self) -> checkpoint.Checkpoint:
        return checkpoint.snapshot(
            step=self.step,
            model=self.model.state_dict(),
            optimizer=self.optimizer.state_dict(),
            extra={
                "seconds": self.seconds,
                "untrained": self.untrained,
                trial_dir.POINTS_TOLD: len(self.points),
                trial_dir.READING: self.reading,
                "world": self.world,
                "attempt": self.attempt,
            },
        )

    def _hand_over(self, taken: checkpoint.Checkpoint | None, result: dict[str, Any] | None = None) -> None:
        keep = self.job.execution.keep_checkpoints
        self._saved = (self._saved[1], self.step)
        self.writer.hand_over(partial(continuing.commit, self.place, self.fence, taken=taken, result=result, keep=keep))

    def _prepare(self) -> None:
        job = self.job
        torch.set_num_threads(job.execution.threads)
        if self.rank == 0:
            continuing.open_folder(self.place, self.fence, job, named=self.attempt is not None, remark=self._remark)
        origin.begin(self.expected)
        with data.looked_at_once():
            before = origin.look(job, self.expected) if self.expected else None
            self.tokenizer = data.tokenizer_for(job) if job.task == "sentence" else None
            self.examples = data.train_examples(job, self.tokenizer)
            self.batches = Batches(self.examples, job, rank=self.rank, world=self.world)
            self.evaluation = data.evaluation_data(job)
            shape = self.examples.image_shape if isinstance(self.examples, data.ImageExamples) else None
            self.model = models.build(job, tokenizer=self.tokenizer, image_shape=shape, device=self.device)
            loaded = origin.look(job, self.expected)
        if before is not None:
            origin.refuse_change(before, loaded)
        self.provenance = loaded.digests
        models.refuse_what_parts_of_a_batch_change(self.model, job, world=self.world)
        self.masking = mlm.masking(job, self.tokenizer)
        self.optimizer = optim.build(self.model, job.optimizer)
        self.initial = {
            "init": models.initial_hash(self.model),
            "encoder": models.initial_hash(self.model.encoder),
        }
        self.loss = partial(
            contrastive_loss,
            name=job.loss.name,
            symmetric=job.loss.symmetric,
            same_side=job.loss.same_side,
            hard_negative_weight=job.loss.hard_negative_weight,
            margin=job.loss.margin,
            bias=job.loss.bias,
            pool=job.batch.pool,
            tile=job.execution.tile,
            exchange=job.execution.exchange,
            group=self.group,
        )
        self._verified = not job.execution.verify
        self.meter = usage.Meter(self.device)

    def _resume(self) -> None:
        """Continue after the newest sound checkpoint, or begin with an evaluation of the untrained model."""
        found, ended = continuing.find(self.place, remark=self._remark) if self.rank == 0 else (None, None)
        held: list[Any] = [found, ended]
        if self.group is not None:
            dist.broadcast_object_list(held, group=self.group, group_src=0)
        found, self.result = held
        if self.result is not None:
            self.step, self.seconds = self.result["step"], self.result["seconds"]
            self.records.restore(until=self.step)
            return
        if found is None:
            self.records.restore(until=-1)
            self.untrained = self._measure(final=True)
            self._record(self.untrained)
            return
        trial_dir.refuse_other_reading(found.extra.get(trial_dir.READING), self.reading)
        self.step, self.seconds = found.step, found.extra["seconds"]
        self.untrained = found.extra["untrained"]
        self.model.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.optimizer)
        self.records.restore(until=self.step)
        self._saved = (0, self.step)
        self.log(f"continues after {self.pace.text(self.step, self.seconds)}")
        if self.pace.over(self.step, self.seconds):  # its result was lost: it comes before the last checkpoint
            self._evaluate(recorded=True)

    def _remark(self, sentence: str) -> None:
        self.remarks.append(sentence)
        self.log(sentence)

    def _optimize(self, step: int) -> StepResult:
        job, rows = self.job, self.batches.rows(step)
        result = self._gradients(step, rows, self.batches.cut(rows), clip=job.optimizer.clip)
        self._look_at_duplicates(step, rows, int(result.diagnostics.duplicates_masked))
        if result.finite:
            optim.set_rate(self.optimizer, self.pace.rate(step, self.seconds))
            self.optimizer.step()
            self.model.clamp_()
        return result

    def _look_at_duplicates(self, step: int, rows: NDArray[np.int64], masked: int) -> None:
        """Note the first batch of which more than half is masked. Raises DataError on every rank where all of it is."""
        note = data.note_on_batch(self.job, rows, step=step, masked=masked, hard=self.examples.hard_negatives)
        if note is not None and self.rank == 0 and not self._noted:
            self._noted = True
            self.notes.append(note)
            self.log(f"note: {note}")

    def _gradients(
        self,
        step: int,
        rows: NDArray[np.int64],
        cuts: list[range],
        *,
        clip: float | None = None,
        masks: bool = True,
        **loss: Any,
    ) -> StepResult:
        """Gradients of a global batch of data rows, cut into `cuts` on this rank; `loss` replaces options of it.

        masks: whether equal ids are looked at, where the job asks for it.
        """
        job = self.job
        own = rows[cuts[0].start : cuts[-1].stop]
        ids: dict[str, Any] = {}
        if job.loss.mask_duplicates and masks:
            ids |= self.examples.ids(own).to(self.device).given()

        def value(queries: Tensor, keys: Tensor, negatives: Tensor | None) -> tuple[Tensor, Diagnostics]:
            return self.loss(
                queries, keys, hard_negatives=negatives, temperature=self.model.temperature(), **ids, **loss
            )

        return exact_gradients(
            self.model,
            [self.batches.chunk(step, rows, pairs) for pairs in cuts],
            loss=value,
            seed=job.seed,
            step=step,
            keep_graphs=job.execution.keep_graphs,
            graph_memory_mb=job.execution.graph_memory_mb,
            masking=self.masking,
            clip=clip,
            group=self.group,
            device=self.device,
        )

    def _held(self) -> int:
        return tensor_bytes(self.model, self.optimizer)

    def _verify(self, step: int) -> None:
        """Compare the gradient of a few pairs with one process's; raises preflight.GradientMismatch on every rank."""
        self.phase("preflight")
        rows = self.batches.rows(step)
        largest = max(agree([max(map(len, self.batches.cut(rows)))], self.group, what="largest chunk"))[0]
        rows = rows[: gradient_check.pairs(self.job, world=self.world, largest=largest)]
        mine = share(len(rows), rank=self.rank, world=self.world)
        cuts = consecutive(mine, gradient_check.chunk(len(mine)) if self.job.is_chunked else None)
        whole = self.batches.chunk(step, rows, range(len(rows)))
        ids = self.examples.ids(rows) if self.job.loss.mask_duplicates else None
        if ids is not None and ids.all_alike():  # nothing would be left of these few, and 0 is equal to 0
            ids = None
        worst = gradient_check.verify(
            self.model,
            self.job,
            real=lambda: self._gradients(
                step, rows, cuts, name=gradient_check.checked_loss(self.job), masks=ids is not None
            ),
            whole=whole,
            ids=ids,
            masking=self.masking,
            step=step,
            group=self.group,
            device=self.device,
        )
        self._verified = True
        self.log(f"preflight on {len(rows)} pairs: the gradient is one process's; {worst}")

    def _evaluate(self, *, recorded: bool) -> None:
        last, self._judged = self.pace.over(self.step, self.seconds), self.step
        metrics = self._measure(final=last)
        if recorded or not all(np.isfinite(value) for value in metrics.values()):
            self._record(metrics)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        self.log(f"{self.pace.text(self.step, self.seconds)}  {shown}")
        if evaluate.diverged(metrics):
            self._end("diverged", "the evaluation is not finite")
        elif last:
            self._end("ok", "done")

    def _measure(self, *, final: bool) -> dict[str, float]:
        self.phase("evaluation")
        return evaluate.evaluate(
            self.model,
            self.evaluation,
            job=self.job,
            tokenizer=self.tokenizer,
            group=self.group,
            device=self.device,
            final=final,
        )

    def _end(self, outcome: str, why: str) -> None:
        """Commit the result, then the last checkpoint, then set it. A job that diverged has no metrics."""
        samples = self.step * self.job.batch.size
        peaks = agree([self.trial_memory.needed()], self.group, what="peak memory")
        costs = {
            "samples_per_second": samples / self.seconds if self.seconds else 0.0,
            "peak_memory_mb": max(peak for (peak,) in peaks) / 2**20,
        }
        measured = self.records.latest()
        # Of a job that had ended before, and whose result was lost, no step is trained again: they are in its points.
        costs |= {key: measured[key] for key in costs if key in measured}
        latest: dict[str, float] = {}
        if outcome == "ok":
            latest = {
                key: last for key, last in measured.items() if not key.startswith(usage.PREFIX) and key not in costs
            }
            self._record(costs)
        result = {
            "state": "done",
            "outcome": outcome,
            "why": why,
            "step": self.step,
            "metrics": latest,
            "untrained": self.untrained,
            trial_dir.POINTS_TOLD: len(self.points),
            "samples": samples,
            "seconds": self.seconds,
            **costs,
            "negatives_per_anchor": self.job.negatives_per_anchor + self._hard_negatives(),
            "hashes": self._hashes(),
            "data": data.described(self.job),
            trial_dir.READING: self.reading,
        }
        result = manifest.sealed(result)
        self.log(f"{outcome} at step {self.step}: {why}")
        self.phase("checkpoint")
        self.writer.settle()
        self.records.flush()
        if self.rank == 0:
            self._hand_over(self._snapshot() if outcome == "ok" else None, result)
        else:
            self.writer.hand_over(partial(self.place.publish, f"log.rank{self.rank}.txt"))
        self.settle()
        self.result = result

    def _hard_negatives(self) -> int:
        return self.examples.hard_negatives * self.job.pool

    def _hashes(self) -> dict[str, str]:
        """What paired trials must have in common: the rows, the order of the first epoch, the first weights, and of
        those the encoder's by themselves, which arms share that differ in the head."""
        rows = len(self.examples)
        order = data.batch_rows(rows, size=rows, seed=self.job.seed, step=1)
        return {
            "data": data.fingerprint(self.job),
            "order": hashlib.sha256(order.tobytes()).hexdigest(),
            **self.initial,
        }

    def _settings(self) -> dict[str, float]:
        temperature = self.model.temperature()
        return {
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/temperature": float(temperature.detach()) if isinstance(temperature, Tensor) else temperature,
        }

    def _usage(self) -> dict[str, float]:
        return usage.points(agree(self.meter.look(), self.group, what="usage"))

    def _record(self, values: dict[str, float]) -> None:
        self.records.add(values, step=self.step)
