"""The training loop of one job, resumable at any step; also `python -m jobs.train job.toml --into DIR`.

A trial folder holds everything that is known of a trial:

    job.json  points.jsonl  result.json  log.rank0.txt  checkpoints/step_000500/

Rank 0 writes points and result and fsyncs them before the checkpoint that has passed them is committed, so what a
checkpoint has passed can always be told again without training again. Checkpoints are written in the background, from
a snapshot. Nothing random is ever stored: order, augmentation and dropout are functions of (seed, step, pair).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from functools import partial

import numpy as np
import torch
import torch.distributed as dist
from numpy.typing import NDArray
from torch import Tensor

from jobs import data, optim
from jobs.artifacts import trial_dir
from jobs.core.collectives import Group, agree
from jobs.core.device import tensor_bytes
from jobs.losses import BatchFacts, Diagnostics, LossInputs
from jobs.train import gradient_check
from jobs.train.resumable import Resumable
from jobs.train.step import (
    StepContext,
    StepResult,
    consecutive,
    diagnostics_points,
    exact_gradients,
    momentum_keys,
    share,
)


class Training(Resumable):
    """One job on this rank, at some step. Every rank of `group` makes the same calls.

    `advance` trains; `points` are those since the trial's beginning, `result` is set once the job has ended and
    everything is on disk. An error of the background writer is raised by the next call, and by every later one.

    attempt: fencing token and number of this attempt at the trial; see trial_dir.Fence.
    remote: a URI of pyarrow.fs at which the trial's files are kept; `folder` then is only where they are made.
    phase: told on every rank what begins: "loading", "evaluation", "gradient check", "step 7", "checkpoint".
    expected: digests of the code, the data and the weights that the trial belongs to, as `provenance` has them.
    trial_memory: made for this trial by a caller who looks at it also while the trial is loaded.

    Raises ValueError for a job that cannot be run as asked or a folder of another job; origin.OtherOrigin for what is
    not as expected; trial_dir.TakenOver, storage.StorageFull, and ConnectionError where `remote` cannot be reached.
    """

    def advance(self, steps: int) -> list[trial_dir.Point]:
        """Train for at most `steps` optimizer steps, fewer up to an evaluation or the end. Returns new points."""
        self.writer.raise_if_failed()
        for _ in range(steps):
            if self.result is not None:
                break
            assert not self.budget.is_exhausted(self.step, self.seconds), (
                "the end of this job could not be written; make a new Training"
            )
            before_s = self.seconds
            mining_s = self._mine(self.step + 1) if self.mining.is_due(self.step + 1) else 0.0
            if not self._verified:
                self._verify(self.step + 1)
            if self.step == 0 and self.transform.looks_first:
                self._prepare_transform()
            self.phase(f"step {self.step + 1}")
            began = time.perf_counter()
            largest = partial(self.batches.largest, self.step + 1)
            with self.trial_memory.step(size=largest, held=self._held) as measuring_s:
                outcome = self._optimize(self.step + 1)
                self.seconds = self._clock(before_s + mining_s + time.perf_counter() - began - measuring_s)
            if not outcome.finite and not optim.takes_nan(self.optimizer):
                self._end("diverged", f"loss {outcome.loss}, gradient norm {outcome.gradient_norm}")
                break
            due = self.budget.evaluations(self.step + 1, self.seconds) > self.budget.evaluations(self.step, before_s)
            self.step += 1
            if self.budget.logged(self.step, before_s, self.seconds):
                points = diagnostics_points(outcome) | self._settings() | self._usage()
                if not outcome.finite:  # what a rule of the optimizer has taken is counted, and is no value to draw
                    points = {key: value for key, value in points.items() if np.isfinite(value)}
                self._record(points)
            if due:
                self._evaluate(recorded=self.budget.recorded(self.step, before_s, self.seconds))
            if self.result is None and self._is_saved(due):
                self.save()
            if due:
                break
        self.records.flush()
        return self._news()

    def _clock(self, seconds: float) -> float:
        """Return the seconds of training as all ranks take them: rank 0's, where they are the budget."""
        if not self.budget.timed:
            return seconds
        return agree([int(seconds * 1e9)], self.group, what="time")[0][0] / 1e9

    def _is_saved(self, evaluated: bool) -> bool:
        """Return whether this step is checkpointed. With a budget in seconds every evaluation is, and the step after
        it, or pruning would wait (see `_news`)."""
        due = self.budget.timed and (evaluated or self.step == self._judged + 1)
        return due or self.step % self.job.execution.checkpoint_every == 0

    def _settings(self) -> dict[str, float]:
        temperature = self.model.temperature()
        return {
            "train/learning_rate": optim.rate_of(self.optimizer),
            "train/temperature": float(temperature.detach()) if isinstance(temperature, Tensor) else temperature,
        } | optim.counts(self.optimizer)

    def _mine(self, step: int) -> float:
        """Mine hard negatives by the model as it is before the step. Returns the seconds that it took, which are of the
        training."""
        self.phase("mining")
        began = time.perf_counter()
        found = self.mining.search(step, self.model, self.group, self.device)
        self._train_on(self.mining.examples(self.examples))
        seconds = time.perf_counter() - began
        self.log(f"mined before step {step}: {found} in {seconds:.1f} s")
        return seconds

    def _optimize(self, step: int) -> StepResult:
        job, rows = self.job, self.batches.rows(step)
        result = self._gradients(step, rows, self.batches.spans(rows, step), clip=job.optimizer.clip)
        self._look_at_duplicates(step, rows, int(result.diagnostics.duplicates_masked))
        if result.finite or optim.takes_nan(self.optimizer):
            self.transform(step)
            optim.set_rate(self.optimizer, self.budget.rate(step, self.seconds))
            self.transform.step(self.optimizer, step)
            self.model.clamp_()
            self.model.follow_()
            self.average.update(step)
        return result

    def _look_at_duplicates(self, step: int, rows: NDArray[np.int64], masked: int) -> None:
        """Note the first batch that is more than half masked. Raises DataError on every rank where all of it is."""
        note = data.note_on_batch(self.job, rows, step=step, masked=masked, hard=self.examples.hard_negatives)
        if note is not None and self.rank == 0 and not self._noted:
            self._noted = True
            self.notes.append(note)
            self.log(f"note: {note}")

    def _gradients(
        self,
        step: int,
        rows: NDArray[np.int64],
        spans: list[range],
        *,
        clip: float | None = None,
        masks: bool = True,
        same_as: str | None = None,
        alone: bool = False,
    ) -> StepResult:
        """Compute the gradients of a global batch of data rows, cut into `spans` on this rank.

        masks: whether equal ids are looked at, where the job asks for it. same_as: another loss, computed in its place.
        alone: these spans are the whole batch, and no other rank takes part.
        """
        job, group = self.job, None if alone else self.group
        mine = range(spans[0].start, spans[-1].stop)
        own = rows[mine.start : mine.stop]
        said = self.batches.ids(step, rows, mine, masks=job.loss.mask_duplicates and masks)
        ids = {} if said is None else said.to(self.device).given()
        scores = self.examples.scores(own)
        micro_batches = [self.batches.micro_batch(step, rows, pairs) for pairs in spans]
        facts = BatchFacts(
            torch.from_numpy(own),
            step,
            job.seed,
            None if scores is None else torch.from_numpy(scores),
            momentum_keys(self.model, micro_batches, self._context(step, group)),
            None if self.guide is None else self.guide.rows(own, self.batches.draw(step, mine)),
        )

        def value(queries: Tensor, keys: Tensor, negatives: Tensor | None) -> tuple[Tensor, Diagnostics]:
            inputs = LossInputs(queries, keys, negatives, temperature=self.model.temperature(), **ids)
            return self.loss(inputs, facts, group, same_as=same_as)

        return exact_gradients(
            self.model,
            micro_batches,
            self._context(step, group),
            loss=value,
            keep_graphs=job.execution.keep_graphs,
            graph_memory_mb=job.execution.graph_memory_mb,
            masking=self.masking,
            clip=clip,
        )

    def _context(self, step: int, group: Group) -> StepContext:
        return StepContext(self.job.seed, step, group, self.device)

    def _prepare_transform(self) -> None:
        """Let rank 0 prepare the gradient transform, and give its state to all: what it chooses is then one choice,
        and that of one process."""
        self.phase("gradients of groups")
        if self.rank == 0:
            self.transform.prepare(self._gradients_of_groups)
        state = [dict(self.transform.state_dict()) if self.rank == 0 else {}]
        if self.group is not None:
            dist.broadcast_object_list(state, group=self.group, group_src=0)
            self.transform.load_state_dict(state[0])

    def _gradients_of_groups(self, step: int, pairs: int) -> Iterator[dict[str, Tensor]]:
        """Yield the gradient of each group of consecutive pairs of a step's batch, as if it were a batch of its own."""
        rows = self.batches.rows(step)
        for first in range(0, len(rows) - pairs + 1, pairs):
            with gradient_check.untouched(self.model), torch.random.fork_rng(), torch.enable_grad():
                self._gradients(step, rows, [range(first, first + pairs)], alone=True)
                gradients = gradient_check.taken(self.model)
            yield {name: gradient for name, gradient in gradients.items() if gradient is not None}

    def _held(self) -> int:
        beside = (*self.average.weights.values(), *self.transform.state_dict().values())
        return tensor_bytes(self.model, self.optimizer, beside)

    def _verify(self, step: int) -> None:
        """Compare the gradient of a few pairs with one process's; raises GradientMismatch on every rank."""
        self.phase("gradient check")
        rows = self.batches.rows(step)
        largest = max(agree([max(map(len, self.batches.spans(rows, step)))], self.group, what="largest micro-batch"))[0]
        rows = rows[: gradient_check.pairs(self.job, world=self.world, largest=largest)]
        mine = share(len(rows), rank=self.rank, world=self.world)
        spans = consecutive(mine, gradient_check.micro_batch_size(len(mine)) if self.job.has_micro_batches else None)
        whole = self.batches.micro_batch(step, rows, range(len(rows)))
        masks, everything = self.job.loss.mask_duplicates, range(len(rows))
        if masks and self.examples.ids(rows).all_alike():  # nothing would be left of these few, and 0 is equal to 0
            masks = False
        ids = self.batches.ids(step, rows, everything, masks=masks)
        worst = gradient_check.verify(
            self.model,
            self.job,
            real=lambda: self._gradients(step, rows, spans, same_as=gradient_check.checked_loss(self.job), masks=masks),
            loss=self.loss,
            whole=whole,
            ids=ids,
            rows=rows,
            scores=self.examples.scores(rows),
            guide=None if self.guide is None else self.guide.rows(rows, self.batches.draw(step, everything)),
            masking=self.masking,
            context=self._context(step, self.group),
        )
        self._verified = True
        self.log(f"gradient check on {len(rows)} pairs: the gradient is one process's; {worst}")
