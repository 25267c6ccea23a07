"""The training loop of one job, resumable at any step; also `python -m jobs.train job.toml --into DIR`.

A trial folder holds everything that is known of a trial:

    job.json  points.jsonl  result.json  log.rank0.txt  checkpoints/step_000500/

Rank 0 writes points and result and fsyncs them before the checkpoint that has passed them is committed, so what a
checkpoint has passed can always be told again without training again. Nothing random is ever stored: order,
augmentation and dropout are functions of (seed, step, pair).
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor

from jobs import checkpoint, data, evaluate, models, optim
from jobs.collectives import agree, rank_of, world_of
from jobs.config import JobConfig
from jobs.losses import Diagnostics, contrastive_loss
from jobs.step import Chunk, StepResult, diagnostics_points, exact_gradients, share

LOGGED_STEPS = 50
"""Training points of each key over a whole job, whatever its length: enough for a curve, few enough to compare."""


@dataclass(frozen=True)
class Point:
    """One value of one curve."""

    key: str
    step: int
    value: float
    time: float
    """Unix seconds."""


class Training:
    """One job on this rank, at some step. Every rank of `group` makes the same calls.

    `advance` trains; `points` are those since the folder's beginning, `result` is set once the job has ended.
    """

    def __init__(
        self,
        job: JobConfig,
        folder: Path,
        *,
        group: dist.ProcessGroup | None = None,
        log: Callable[[str], None] = print,
    ) -> None:
        self.job, self.folder, self.group, self.log = job, folder, group, log
        self.rank, self.world = rank_of(group), world_of(group)
        self.step = 0
        self.seconds = 0.0
        self.points: list[Point] = []
        self.untrained: dict[str, float] = {}
        self.result: dict[str, Any] | None = None
        self._unwritten = 0
        self._prepare()
        self._resume()

    def advance(self, steps: int) -> list[Point]:
        """Train for at most `steps` optimizer steps, fewer up to an evaluation or the end. Returns new points."""
        told = len(self.points)
        evaluations = set(self.job.evaluation_steps)
        for _ in range(steps):
            if self.result is not None:
                break
            began = time.perf_counter()
            outcome = self._optimize(self.step + 1)
            self.seconds += time.perf_counter() - began
            if not outcome.finite:
                self._end("diverged", f"loss {outcome.loss}, gradient norm {outcome.gradient_norm}")
                break
            self.step += 1
            if self._is_logged(self.step):
                self._record(diagnostics_points(outcome) | self._settings())
            if self.step in evaluations:
                self._evaluate()
            if self.result is None and self.step % self.job.execution.checkpoint_every == 0:
                self.save()
            if self.step in evaluations:
                break
        self._write_points()
        return self.points[told:]

    def save(self) -> None:
        """Commit a checkpoint of this step; rank 0 writes, all others return at once."""
        self._write_points()
        if self.rank == 0:
            checkpoint.save(
                self.folder / "checkpoints",
                step=self.step,
                model=self.model.state_dict(),
                optimizer=self.optimizer.state_dict(),
                extra={"seconds": self.seconds, "untrained": self.untrained, "world": self.world},
                keep=self.job.execution.keep_checkpoints,
            )

    def _prepare(self) -> None:
        job = self.job
        torch.set_num_threads(job.execution.threads)
        self.device = _device(job)
        if self.rank == 0:
            self.folder.mkdir(parents=True, exist_ok=True)
            self._refuse_another_job()
            _write_whole(self.folder / "job.json", json.dumps(job.model_dump(mode="json"), indent=1))
        self.tokenizer = data.tokenizer_for(job) if job.task == "sentence" else None
        self.examples = data.train_examples(job, self.tokenizer)
        self.evaluation = data.evaluation_data(job)
        shape = self.examples.image_shape if isinstance(self.examples, data.ImageExamples) else None
        self.model = models.build(job, tokenizer=self.tokenizer, image_shape=shape, device=self.device)
        if self.model.unreplayable and (self.world > 1 or job.execution.micro):
            raise ValueError(
                f"this encoder's dropout cannot be replayed ({self.model.unreplayable}), so ranks and micro would "
                "change the result; set model.dropout = 0, or execution.ranks = 1 without micro"
            )
        self.optimizer = optim.build(self.model, job.optimizer)
        self.initial = models.initial_hash(self.model)
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
        _forget_peak_memory(self.device)

    def _refuse_another_job(self) -> None:
        """A folder belongs to one objective; how it is computed may change."""
        path = self.folder / "job.json"
        if not path.exists():
            return
        there = JobConfig.model_validate_json(path.read_text())
        if there.model_dump(exclude={"execution"}) != self.job.model_dump(exclude={"execution"}):
            raise ValueError(
                f"{self.folder} holds another job ({there.id}), and only its execution may change; use another folder"
            )

    def _resume(self) -> None:
        """Continue after the newest sound checkpoint, or begin with an evaluation of the untrained model."""
        found, remarks = checkpoint.newest(self.folder / "checkpoints") if self.rank == 0 else (None, [])
        for remark in remarks:
            self.log(remark)
        held: list[Any] = [found, self._read_result(found) if self.rank == 0 else None]
        if self.group is not None:
            dist.broadcast_object_list(held, group=self.group, group_src=0)
        found, self.result = held
        if self.result is not None:
            self.step, self.seconds = self.result["step"], self.result["seconds"]
            self._drop_points(after=self.step)
            return
        if found is None:
            if remarks:
                self.log("no sound checkpoint is left: training starts again from step 0")
            self._drop_points(after=-1)
            self.untrained = self._measure(final=True)
            self._record(self.untrained)
            return
        self.step, self.seconds = found.step, found.extra["seconds"]
        self.untrained = found.extra["untrained"]
        self.model.load_state_dict(found.model)
        self.optimizer.load_state_dict(found.optimizer)
        self._drop_points(after=self.step)
        self.log(f"continues after step {self.step} of {self.job.steps}")

    def _read_result(self, found: checkpoint.Checkpoint | None) -> dict[str, Any] | None:
        """The result on disk, if the checkpoint that belongs to it is sound (a diverged trial has none)."""
        path = self.folder / "result.json"
        if not path.exists():
            return None
        result: dict[str, Any] = json.loads(path.read_text())
        whole = result["outcome"] == "diverged" or (found is not None and found.step == result["step"])
        return result if whole else None

    def _optimize(self, step: int) -> StepResult:
        job = self.job
        rows = data.batch_rows(len(self.examples), size=job.batch.size, seed=job.seed, step=step)
        mine = share(job.batch.size, rank=self.rank, world=self.world)
        micro = job.execution.micro or len(mine)
        chunks = []
        for start in range(mine.start, mine.stop, micro):
            pairs = np.arange(start, min(start + micro, mine.stop))
            views = self.examples.views(rows[pairs], seed=job.seed, step=step, pairs=pairs)
            chunks.append(Chunk(views, torch.from_numpy(pairs)))
        own = rows[mine.start : mine.stop]
        ids = self.examples.pair_ids(own).to(self.device) if job.loss.mask_duplicates else None

        def loss(queries: Tensor, keys: Tensor, negatives: Tensor | None) -> tuple[Tensor, Diagnostics]:
            return self.loss(
                queries, keys, hard_negatives=negatives, pair_ids=ids, temperature=self.model.temperature()
            )

        result = exact_gradients(
            self.model,
            chunks,
            loss=loss,
            seed=job.seed,
            step=step,
            keep_graphs=job.execution.keep_graphs,
            clip=job.optimizer.clip,
            group=self.group,
            device=self.device,
        )
        if result.finite:
            optim.set_rate(self.optimizer, optim.rate(job.optimizer, step=step, steps=job.steps))
            self.optimizer.step()
            self.model.clamp_()
        return result

    def _evaluate(self) -> None:
        last = self.step == self.job.steps
        metrics = self._measure(final=last)
        self._record(metrics)
        shown = "  ".join(f"{key} {value:.4f}" for key, value in metrics.items())
        self.log(f"step {self.step}/{self.job.steps}  {shown}")
        if not all(np.isfinite(value) for value in metrics.values()):
            self._end("diverged", "the evaluation is not finite")
        elif last:
            self._end("ok", "done")

    def _measure(self, *, final: bool) -> dict[str, float]:
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
        """Set the result, and commit it before the last checkpoint. A diverged job scores as if it had not trained."""
        samples = self.step * self.job.batch.size
        peaks = agree([_peak_memory_bytes(self.device)], self.group, what="peak memory")
        speed = samples / self.seconds if self.seconds else 0.0
        peak = max(peak for (peak,) in peaks) / 2**20
        latest = {point.key: point.value for point in self.points}
        if outcome == "diverged":
            latest |= self.untrained
        else:
            self._record({"samples_per_second": speed, "peak_memory_mb": peak})
        self.result = {
            "state": "done",
            "outcome": outcome,
            "why": why,
            "step": self.step,
            "metrics": latest,
            "untrained": self.untrained,
            "samples": samples,
            "seconds": self.seconds,
            "samples_per_second": speed,
            "peak_memory_mb": peak,
            "negatives_per_anchor": self.job.negatives_per_anchor + self._hard_negatives(),
            "hashes": self._hashes(),
        }
        self._write_points()
        if self.rank == 0:
            _write_whole(self.folder / "result.json", json.dumps(self.result, indent=1))
        if outcome == "ok":
            self.save()
        self.log(f"{outcome} at step {self.step}: {why}")

    def _hard_negatives(self) -> int:
        return self.examples.hard_negatives * self.job.pool

    def _hashes(self) -> dict[str, str]:
        """What paired trials must have in common: the rows, the order of the first epoch, the first weights."""
        rows = len(self.examples)
        order = data.batch_rows(rows, size=rows, seed=self.job.seed, step=1)
        return {
            "data": data.fingerprint(self.job),
            "order": hashlib.sha256(order.tobytes()).hexdigest(),
            "init": self.initial,
        }

    def _settings(self) -> dict[str, float]:
        temperature = self.model.temperature()
        return {
            "train/learning_rate": self.optimizer.param_groups[0]["lr"],
            "train/temperature": float(temperature.detach()) if isinstance(temperature, Tensor) else temperature,
        }

    def _is_logged(self, step: int) -> bool:
        return step % max(1, self.job.steps // LOGGED_STEPS) == 0 or step == self.job.steps

    def _record(self, values: dict[str, float]) -> None:
        now = time.time()
        self.points += [Point(key, self.step, float(value), now) for key, value in values.items()]

    def _write_points(self) -> None:
        fresh, self._unwritten = self.points[self._unwritten :], len(self.points)
        if self.rank == 0 and fresh:
            with (self.folder / "points.jsonl").open("a") as file:
                file.writelines(json.dumps(asdict(point)) + "\n" for point in fresh)
                file.flush()
                os.fsync(file.fileno())

    def _drop_points(self, *, after: int) -> None:
        """Read the points up to `after` back; later ones will be measured again, bit for bit."""
        path = self.folder / "points.jsonl"
        if self.rank != 0 or not path.exists():
            return
        read = []
        for line in path.read_text().splitlines():
            try:
                point = Point(**json.loads(line))
            except ValueError:  # the line that a kill cut short
                continue
            if point.step <= after:
                read.append(point)
        self.points, self._unwritten = read, len(read)
        _write_whole(path, "".join(json.dumps(asdict(point)) + "\n" for point in read))


def _device(job: JobConfig) -> torch.device:
    wanted = job.execution.device
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ValueError("execution.device = 'cuda', but torch sees no GPU here; use 'auto' or 'cpu'")
    if wanted == "cpu" or not torch.cuda.is_available():
        return torch.device("cpu")
    return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")) % torch.cuda.device_count())


def _forget_peak_memory(device: torch.device) -> None:
    """Peaks are per trial, while the process may have trained others before."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        try:
            Path("/proc/self/clear_refs").write_text("5")
        except OSError:  # not Linux, or not allowed: the peak is then the process's own
            return


def _peak_memory_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        status = Path("/proc/self/status").read_text()
        return int(status.partition("VmHWM:")[2].split()[0]) * 1024
    except (OSError, IndexError):
        import resource

        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def _write_whole(path: Path, text: str) -> None:
    """Replace a file in one piece."""
    aside = path.with_name(f".{path.name}.{os.getpid()}")
    with aside.open("w") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    aside.replace(path)


if __name__ == "__main__":
    from jobs.alone import main

    main()
