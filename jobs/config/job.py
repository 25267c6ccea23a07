"""What one training job is: frozen pydantic models and the rules between their fields.

A job says what is optimised (everything but `execution`) and how it is computed (`execution`). The id of a trial is
a hash of the job, so nothing here may depend on the machine. Imports neither torch nor ray nor the orchestrator.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Literal

from pydantic import Field, JsonValue, ValidationError, model_validator

from jobs.config import components
from jobs.config.components import TaskName, builtin_names, is_class, is_import_path, literal_of
from jobs.config.data_sections import Augment, Columns, Data, Mine
from jobs.config.identity import canonical, counted_from, hashed
from jobs.config.section import Options, Section
from jobs.config.sections import OF_TOKENS, Batch, Budget, Evaluate, Execution, Loss, Model, Optimizer
from jobs.config.validation import ConfigError, ConfigIssue, field_names, issues, nearest

__all__ = [
    "DIVIDES",
    "EXECUTION_METRICS",
    "Augment",
    "Batch",
    "Budget",
    "ConfigError",
    "ConfigIssue",
    "Data",
    "Evaluate",
    "Execution",
    "JobConfig",
    "Loss",
    "Mine",
    "Model",
    "Optimizer",
    "Section",
    "canonical",
    "field_names",
    "issues",
    "load_job",
    "nearest",
    "trial_id",
]

EXECUTION_METRICS = ("samples_per_second", "peak_memory_mb", "system/")
"""How the keys of points begin that say how a job was computed. They differ whenever it is done again."""

OF_SEED = "{seed}"
"""Stands in a name of an encoder for the seed of the job."""

POINTS = 1000
"""Most points of one key and trial that are recorded, and so what ledger and MLflow hold."""


USUAL_JUDGES = {"image": "classes", "sentence": "sts"}
"""What judges a job of each task unless it names another judge."""

DIVIDES = {"batch.negatives_group": "batch.size", "batch.pool": "batch.size", "model.heads": "model.width"}
"""Keys of whole numbers that must divide another one: between two values that do may lie some that do not."""


class JobConfig(Section):
    """One training job, complete."""

    task: TaskName
    """`image` or `sentence`; or an import path of your own: a class of rows, views and metrics, such as
    `mylab.tasks:Tabular`, or a whole training loop, such as `mylab.train:main`."""

    options: Options = {}
    """Arguments of a task of your own; a training loop reads them as `config.options`."""

    stage: Literal["tune", "confirm"] = "confirm"
    """Which rows judge it: data.tune or data.confirm."""

    seed: int = Field(0, ge=0, lt=2**31)
    """Of initialisation, order, augmentation and dropout."""

    budget: Budget
    data: Data
    mine: Mine = Mine()
    augment: Augment = Augment()
    model: Model = Model()
    loss: Loss = Loss()
    batch: Batch = Batch()
    optimizer: Optimizer = Optimizer()
    evaluate: Evaluate = Evaluate()
    execution: Execution = Execution()

    @model_validator(mode="before")
    @classmethod
    def _encoder_of_its_seed(cls, given: object) -> object:
        """Put the seed into a name of an encoder with a place for it: `encoders/{seed}` was trained with the same."""
        if not isinstance(given, Mapping) or not isinstance(model := given.get("model"), Mapping):
            return given
        name = model.get("name")
        if not isinstance(name, str) or OF_SEED not in name:
            return given
        return {**given, "model": {**model, "name": name.replace(OF_SEED, str(given.get("seed", 0)))}}

    @model_validator(mode="after")
    def _sections_agree(self) -> JobConfig:
        size, ranks = self.batch.size, self.execution.ranks
        if ranks > size:
            raise ValueError(f"execution.ranks = {ranks} leaves ranks without a pair of batch.size = {size}; use fewer")
        if self.trains and self.steps is not None and self.steps < 1:
            raise ValueError(
                f"budget.samples = {self.budget.samples} is less than one batch; give at least batch.size = {size}"
            )
        if not self.data.sets(self.stage):
            raise ValueError(f"data.{self.stage} is missing: the {self.stage} stage is judged on those rows")
        if self.model.norm == "batch" and (ranks > 1 or self.has_micro_batches):
            raise ValueError(
                "model.norm = 'batch' takes its statistics per rank and per micro-batch, so execution.ranks and "
                "execution.micro would change the result; use model.norm = 'group', or ranks = 1 and no micro"
            )
        has_heads = self.model.name != "resnet" and not is_import_path(self.model.name or "")
        if has_heads and self.model.width % self.model.heads:
            raise ValueError(f"model.heads = {self.model.heads} must divide model.width = {self.model.width}")
        self._refuse_groups_beyond_the_batch()
        _refuse_sets_that_nobody_judges(self)
        _refuse_mining(self)
        if self.is_own_task:
            self._refuse_what_own_tasks_lack()
        elif not self.is_function:
            self._refuse_what_judges_lack()
        if self.task != "sentence" and not self.is_function:
            self._refuse_columns_of_sentences()
            self._refuse_views_of_sentences()
            self._refuse_what_is_of_tokens()
        return self

    def _refuse_what_is_of_tokens(self) -> None:
        """Raise ValueError for what only tokens have."""
        for key, value in (
            ("loss.mlm_weight", self.loss.mlm_weight),
            ("execution.micro_tokens", self.execution.micro_tokens),
        ):
            if value:
                raise ValueError(f"{key} = {value} needs tokens, which task = '{self.task}' has none of; remove it")
        if self.model.pooling in OF_TOKENS:
            raise ValueError(
                f"model.pooling = '{self.model.pooling}' is of tokens, which task = '{self.task}' has none "
                "of; use 'mean', 'cls', 'first_last', 'last_two' or 'attention'"
            )

    def _refuse_groups_beyond_the_batch(self) -> None:
        """Raise ValueError where the batch has no group of pairs that gradients are squared of."""
        pairs, size = self.optimizer.fisher_pairs, self.batch.size
        if self.optimizer.transform == "child_tuning_d" and pairs > size:
            raise ValueError(
                f"optimizer.fisher_pairs = {pairs} is more than batch.size = {size}, of which the groups are cut; give "
                f"at most {size}, better a tenth of it"
            )

    def _refuse_views_of_sentences(self) -> None:
        """Raise ValueError for an augmentation of tokens."""
        if components.is_of_sentences("augmentation", self.augment.name):
            raise ValueError(
                f"augment.name = '{self.augment.name}' is of sentences, which task = '{self.task}' has none of; "
                "use 'crop_flip', or an import path of a function of images"
            )

    def _refuse_columns_of_sentences(self) -> None:
        """Raise ValueError for columns that only sentences have."""
        if self.data.judged_columns is not None:
            raise ValueError(
                f"data.judged_columns = {canonical(self.data.judged_columns)} names sentences and their score, which "
                f"task = '{self.task}' has none of; remove it"
                + (", and name the image and the label in data.columns" if self.task == "image" else "")
            )
        if self.data.hard_negatives is not None:
            raise ValueError(
                f"data.hard_negatives = {self.data.hard_negatives} is of columns of sentences, which task = "
                f"'{self.task}' has none of; remove it"
                + ("" if self.task == "image" else f", and let {self.task} have a number hard_negatives")
            )
        if self.data.scores is not None:
            raise ValueError(
                f"data.scores = '{self.data.scores}' is of pairs of sentences, which task = '{self.task}' has none "
                "of; remove it" + ("" if self.task == "image" else f", and let {self.task} have a method scores(rows)")
            )

    def _refuse_what_own_tasks_lack(self) -> None:
        """Raise ValueError for what a task of the user's own would not heed."""
        name = self.model.name
        if name is None or not (is_import_path(name) or name in builtin_names("encoder")):
            raise ValueError(
                f"model.name = {name!r} is no encoder for rows of task = '{self.task}'; give the import path of one, "
                "such as 'mylab.models:MyEncoder', or 'vit' or 'resnet' where its views are pixel_values"
            )
        if self.data.columns is not None:
            raise ValueError(
                f"data.columns = {list(self.data.columns)} are for images and sentences; let rows() of {self.task} "
                "choose its columns"
            )
        for key in ("source", "label"):
            if (column := getattr(self.data, key)) is not None:
                raise ValueError(
                    f"data.{key} = '{column}' is of images and sentences; remove it, and let {self.task} have a method "
                    f"{key}s(rows)"
                )
        if self.loss.guide is not None:
            raise ValueError(
                f"loss.guide = '{self.loss.guide}' reads images and sentences alone, and {self.task} has rows of its "
                "own; let views() of it give what its loss needs"
            )
        if self.evaluate.metrics:
            raise ValueError(
                f"evaluate.metrics = {list(self.evaluate.metrics)} are for images and sentences; let evaluate() of "
                f"{self.task} give them"
            )
        for key, value in (("after", self.evaluate.after), ("judge", self.evaluate.judge)):
            if value is not None:
                raise ValueError(
                    f"evaluate.{key} = '{value}' is for images and sentences; let evaluate() of {self.task} do it"
                )

    def _refuse_what_judges_lack(self) -> None:
        """Raise ValueError for a judge of other rows than the task's, and for what one of the user's own would not
        heed."""
        for alone in self.judged_alone().values():
            self._refuse_what_a_judge_lacks(alone.judge, alone.data.columns_of(""))

    def _refuse_what_a_judge_lacks(self, judge: str, given: Columns | None) -> None:
        if is_import_path(judge):
            if self.evaluate.metrics:
                raise ValueError(
                    f"evaluate.metrics = {list(self.evaluate.metrics)} are for built-in judges; let evaluate() of "
                    f"{judge} give them"
                )
            return
        tasks = literal_of("judge", judge, "TASKS")
        if self.task not in tasks:
            raise ValueError(
                f"evaluate.judge = '{judge}' is for task = '{tasks[0]}'; with task = '{self.task}' use "
                f"'{USUAL_JUDGES[self.task]}', or leave it out"
            )
        columns = literal_of("judge", judge, "COLUMNS")
        if self.task == "sentence" and given is not None and len(given) != len(columns):
            wanted = f"give [{', '.join(columns)}]" if columns else "remove it: the judge's options name its columns"
            raise ValueError(
                f"data.judged_columns = {list(given)} are not the columns that '{judge}' judges by; {wanted}"
            )

    @property
    def is_function(self) -> bool:
        """Whether the task is a training loop of the user's own."""
        return is_import_path(self.task) and not is_class(self.task)

    @property
    def is_own_task(self) -> bool:
        """Whether the task is a class of rows, views and metrics: neither a loop, nor one that a job has keys for."""
        return self.task not in ("image", "sentence") and not self.is_function

    @property
    def judge(self) -> str:
        """Name of what judges the job, where one judges all. Raises KeyError for a task of the user's own, which judges
        itself."""
        assert not isinstance(self.evaluate.judge, dict), "of several judges, each has a job: judged_alone"
        return self.evaluate.judge or USUAL_JUDGES[self.task]

    def judged_alone(self, stage: str | None = None) -> dict[str, JobConfig]:
        """Return the job for each set that judges a stage, its own unless given, as if it were judged on that set
        alone; of a single source the job itself, without a name."""
        return _judged_alone(self, stage or self.stage)

    @property
    def guide(self) -> JobConfig | None:
        """The job of an encoder that is the guide's, and judged as it is: its rows, and how it reads them."""
        if self.loss.guide is None:
            return None
        precision: Literal["fp32", "fp64"] = "fp64" if self.model.precision == "fp64" else "fp32"
        return self.model_copy(
            update={
                "model": Model(name=self.loss.guide, projection="none", precision=precision),
                "data": self.data.model_copy(update={"max_tokens": None}),
                "augment": Augment(),
                "loss": Loss(),
                "execution": self.execution.model_copy(update={"compile": False}),
            }
        )

    @property
    def augments_tokens(self) -> bool:
        """Whether the views of a sentence are other tokens than its own."""
        return self.task == "sentence" and self.augment.name != Augment().name

    @property
    def steps(self) -> int | None:
        """Optimizer steps that the budget pays for; None where it is in seconds."""
        return self.budget.steps if self.budget.samples is None else self.budget.samples // self.batch.size

    @property
    def trains(self) -> bool:
        """Whether it trains at all: a budget of no samples is judged once, as it is."""
        return self.budget.samples != 0

    @property
    def idle_sections(self) -> set[str]:
        """The sections that do not change the result: how it is computed and, of what does not train, how it would."""
        return {"execution"} | (set() if self.trains else {"augment", "batch", "loss", "optimizer"})

    @property
    def has_micro_batches(self) -> bool:
        """Whether a rank may encode its share of the batch in more than one piece."""
        share = -(-self.batch.size // self.execution.ranks)
        return self.execution.micro_tokens is not None or (self.execution.micro or share) < share

    @property
    def eval_split(self) -> str:
        """The source of the rows that this stage is judged on, where it is one; of several, all as text, by which
        they are told from others."""
        sets = self.data.sets(self.stage)
        return sets[""] if "" in sets else canonical(sets)

    @property
    def negatives_group(self) -> int:
        """Pairs that share negatives."""
        return self.batch.negatives_group or self.batch.pool or self.batch.size

    @property
    def negatives_per_anchor(self) -> int:
        """In-batch negatives of one anchor; hard negatives of the data come on top. 0 of a loop of the user's own, and
        where nothing is trained."""
        if self.is_function or not self.trains:
            return 0
        return (self.negatives_group - 1) * (2 if self.loss.same_side else 1)

    @property
    def evaluation_steps(self) -> list[int]:
        """Steps after which the job is evaluated, ascending; the last is the end. None are known where the budget is in
        seconds: it is evaluated after these shares of it all the same."""
        return [self._evaluation_step(number) for number in range(1, min(self.evaluate.times, self.steps or 0) + 1)]

    def _evaluation_step(self, number: int) -> int:
        """Compute the step of an evaluation, counted from 1. With more evaluations than steps, each step has its
        own."""
        steps, times = self.steps or 0, self.evaluate.times
        return number if times > steps else -(-steps * number // times)

    def is_recorded(self, before: int, now: int) -> bool:
        """Return whether the evaluation that takes those due from `before` to `now` is recorded: the last is, and of
        the others, evenly spaced, as many as make POINTS with the evaluation before the first step."""
        # Of more evaluations than steps there is one after each step.
        due, kept = min(self.evaluate.times, self.steps or self.evaluate.times), POINTS - 1
        return due <= kept or kept * min(now, due) // due > kept * before // due

    @property
    def recorded_steps(self) -> list[int]:
        """Those of `evaluation_steps` whose evaluations are recorded."""
        due, kept = min(self.evaluate.times, self.steps or 0), POINTS - 1
        numbers = range(1, due + 1) if due <= kept else (-(-due * number // kept) for number in range(1, kept + 1))
        return [self._evaluation_step(number) for number in numbers]

    @property
    def id(self) -> str:
        """Twelve hex digits, the same on every machine and Python version."""
        return trial_id(self.model_dump(mode="json"))


def _refuse_sets_that_nobody_judges(job: JobConfig) -> None:
    """Raise ValueError for sets that the task does not know, and for judges that are not of the sets that there
    are."""
    sets = {name for stage in ("tune", "confirm") for name in job.data.sets(stage)}
    if sets - {""} and (job.is_function or job.is_own_task):
        raise ValueError(
            f"data.{job.stage} is a table of sets, which task = '{job.task}' does not know; give it one source"
        )
    judge, options = job.evaluate.judge, job.evaluate.judge_options
    if not isinstance(judge, dict):
        return
    if set(judge) != sets:
        there = [name or "one without a name" for name in sorted(sets)]
        raise ValueError(
            f"evaluate.judge is a table of {', '.join(judge)}, and the sets of data.tune and data.confirm are "
            f"{', '.join(there)}; name each of them, or give one judge for all"
        )
    if unknown := sorted(options.keys() - sets):
        raise ValueError(
            f"evaluate.judge_options.{unknown[0]} is of no set; as evaluate.judge is a table, give the options of "
            f"each set by its name: {', '.join(judge)}"
        )


def _judged_alone(job: JobConfig, stage: str) -> dict[str, JobConfig]:
    evaluate = job.evaluate
    alone: dict[str, JobConfig] = {}
    for name, source in job.data.sets(stage).items():
        if not name:
            alone[name] = job if stage == job.stage else job.model_copy(update={"stage": stage})
            continue
        changed: dict[str, object] = {}
        if isinstance(evaluate.judge, dict):
            changed = {"judge": evaluate.judge[name], "judge_options": evaluate.judge_options.get(name, {})}
        parts = {
            "stage": stage,
            "data": job.data.model_copy(update={stage: source, "judged_columns": job.data.columns_of(name)}),
            "evaluate": evaluate.model_copy(update=changed),
        }
        alone[name] = job.model_copy(update=parts)
    return alone


def _refuse_mining(job: JobConfig) -> None:
    """Raise ValueError where there is nothing to mine, or a guide, which has texts of its own, would have to know of
    what the model mines."""
    if job.mine.negatives and job.task != "sentence":
        raise ValueError(
            f"mine.negatives = {job.mine.negatives} are texts, which task = '{job.task}' has none of; remove it"
        )
    if job.loss.guide is not None and job.mine.negatives:
        raise ValueError(
            f"loss.guide = '{job.loss.guide}' knows the texts of the rows, and not those that mine.negatives = "
            f"{job.mine.negatives} finds in training; mine them once, by python -m jobs.mine, or leave out one"
        )


def trial_id(
    job: Mapping[str, JsonValue],
    *,
    rules: int = 2,
    defaults: Mapping[str, JsonValue] | None = None,
    code: str | None = None,
) -> str:
    """Compute the id of a job as plain JSON, by the rules of its run (jobs/config/identity.py).

    defaults: as they were when the run was planned, None for today's. A field that they do not know counts only where
    it differs from today's default. code: digest of the user's code, None without any.
    """
    return hashed(job, rules=rules, defaults={**counted_from(JobConfig), **(defaults or {})}, code=code)


def load_job(path: Path) -> JobConfig:
    """Read one job from TOML, or from a trial's job.json. Raises ConfigError with every issue."""
    try:
        text = path.read_text("utf-8")
        raw = json.loads(text) if path.suffix == ".json" else tomllib.loads(text)
    except (OSError, ValueError, RecursionError) as error:
        raise ConfigError(str(path), "job", [ConfigIssue("", "", f"{error}; a job is a TOML file in UTF-8")]) from error
    if not isinstance(raw, dict):
        raise ConfigError(str(path), "job", [ConfigIssue("", "", "a job is a table of sections")])
    try:
        return JobConfig.model_validate(raw)
    except ValidationError as error:
        raise ConfigError(str(path), "job", list(issues(error, JobConfig))) from error
