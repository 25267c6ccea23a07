"""What a sweep file says, and the arms that follow from it."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from functools import cached_property
from typing import Annotated, Literal

from pydantic import Discriminator, Field, JsonValue, PrivateAttr, Tag, model_validator

from jobs.config import OF_SEED, JobConfig, Section, canonical
from jobs.config.after_sections import DRAWN
from jobs.config.components import builtin_names, is_import_path
from orchestrator.sweep.model.metric import Metric
from orchestrator.sweep.values import AsGiven, Level, Levels, Settings, alternatives, flatten, identity, merged, shown

OTHER_WORDS = {
    **dict.fromkeys(("min", "minimum", "lower", "lo", "from", "start"), "low"),
    **dict.fromkeys(("max", "maximum", "upper", "hi", "to", "stop", "end"), "high"),
    **dict.fromkeys(("values", "options", "categories", "categorical", "choice", "list", "grid"), "choices"),
    **dict.fromkeys(("log_scale", "logarithmic", "log10", "loguniform", "log_uniform", "scale"), "log"),
    **dict.fromkeys(("type", "distribution", "dist", "prior", "sampling"), "log"),
    **dict.fromkeys(("q", "quantum", "quantize", "increment", "stride"), "step"),
    **dict.fromkeys(("uniform", "range", "bounds"), "low and high"),
    **dict.fromkeys(("if", "condition", "conditions", "where"), "when"),
}
"""How other tools call the keys of a space."""

MOST_SAMPLES = 64
"""First values of a range that stand for all of it. A whole number below 2^53 has no 64 divisors at equal distances
(their least common multiple is larger), and where two values at a distance are multiples of a number, all are."""


class Space(Section):
    """The values one job key is tuned over: a range, or choices."""

    low: float | int | None = None
    """Lower end of a range, itself a value of it. Whole numbers at both ends mean whole numbers between them."""

    high: float | int | None = None
    """Upper end of a range, itself a value of it."""

    log: bool = False
    """Draw evenly by the logarithm of the value, as suits learning rates."""

    step: float | int | None = None
    """Distance of the values of a range, counted from its lower end. None: every value."""

    choices: Annotated[list[Level], Field(min_length=1)] | None = None
    """The values themselves, in place of a range."""

    when: dict[str, Levels] | None = None
    """Where the key is tuned: job keys, or `arm`, and the values that they must have. Everywhere, if not given."""

    @model_validator(mode="before")
    @classmethod
    def _in_other_words(cls, given: object) -> object:
        if isinstance(given, list):
            raise ValueError(f"is a list; write {{ choices = [{', '.join(map(repr, given[:3]))}] }}, or low and high")  # noqa: TRY004 - pydantic collects ValueErrors
        words = {key: OTHER_WORDS[key] for key in given if key in OTHER_WORDS} if isinstance(given, Mapping) else {}
        if words:
            example = "for example { low = 1e-4, high = 1e-2, log = true }, or { choices = [0.05, 0.1] }"
            raise ValueError(f"has {', '.join(words)}; did you mean {', '.join(words.values())}? {example}")
        return given

    @model_validator(mode="after")
    def _range_or_choices(self) -> Space:
        if self.choices is not None:
            if self.low is not None or self.high is not None or self.log or self.step is not None:
                raise ValueError("give choices, or low and high, not both")
        elif self.low is None or self.high is None or not self.low < self.high:
            raise ValueError(f"needs low < high, found {self.low} and {self.high}, for example low = 1e-4, high = 1e-2")
        elif self.log and (self.low <= 0 or self.step is not None):
            raise ValueError("log = true needs low > 0 and no step")
        elif self.step is not None and self.step <= 0:
            raise ValueError(f"step = {self.step} must be above 0")
        return self

    @property
    def conditions(self) -> dict[str, list[JsonValue]]:
        """`when`, one value as a list of one."""
        return {key: alternatives(key, value) for key, value in (self.when or {}).items()}

    @cached_property
    def permitted(self) -> dict[str, frozenset[Hashable]]:
        """`conditions`, as identities that are looked up at once."""
        return {key: frozenset(map(identity, values)) for key, values in self.conditions.items()}

    @property
    def integer(self) -> bool:
        """Whole numbers at both ends mean whole numbers between them."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    @property
    def ends(self) -> list[JsonValue]:
        """The choices, or the two ends as they are given."""
        return list(self.choices) if self.choices is not None else [v for v in (self.low, self.high) if v is not None]

    @property
    def samples(self) -> list[JsonValue]:
        """The values that stand for all others when a job is checked, as a sampler gives them: every choice; the ends;
        of whole numbers and steps the first ones and the last."""
        if self.choices is not None or self.low is None or self.high is None:
            return list(self.choices or [])
        if self.integer:
            numbers = range(int(self.low), int(self.high) + 1, int(self.step or 1))
            return [*numbers[:MOST_SAMPLES], *numbers[max(MOST_SAMPLES, len(numbers) - 1) :]]
        if self.step is None:
            return [float(self.low), float(self.high)]
        first, step = Decimal(str(self.low)), Decimal(str(self.step))
        last = int((Decimal(str(self.high)) - first) // step)
        multiples = dict.fromkeys([*range(min(last + 1, MOST_SAMPLES)), last])
        return [float(first + step * multiple) for multiple in multiples]


class Tune(Section):
    """The first stage: an equal budget of trials inside each arm."""

    trials: int = Field(8, gt=0)
    """Suggestions per arm."""

    seeds: int | list[int] = 1
    """Seeds a suggestion is tried on; its value is their mean. A count, or a list."""

    parallel: int = Field(1, gt=0)
    """Suggestions an arm may have in flight. Suggestion n sees the results of suggestions up to n - parallel."""

    sampler: Literal["tpe", "gp", "random", "grid"] = "tpe"
    """How suggestions are drawn: by Optuna's TPE or Gaussian process, at random, or every combination of choices."""

    prune: Literal["none", "halving", "median"] = "none"
    """Which tune trials end early: by successive halving, or when they are worse than the median. Needs one seed."""

    seed: int = Field(0, ge=0)
    """Of the sampler."""

    repeats: int = Field(1, ge=1)
    """How often every arm is tuned anew, the i-th time with seed + i: confirm seed k has the settings of repeat k mod
    repeats. From 6 on the repeat is the unit of the test, so that the verdict is of the method with its tuning."""

    defaults: list[dict[str, AsGiven]] = []
    """Settings tried first in each arm; what is missing is filled from the arm."""

    space: dict[str, Space]
    """Job keys and their values."""

    @model_validator(mode="after")
    def _not_empty(self) -> Tune:
        if not self.space:
            raise ValueError("tune.space is empty; give a key, such as 'optimizer.lr' = { low = 1e-4, high = 1e-2 }")
        if self.sampler == "grid" and (without := [key for key, s in self.space.items() if s.choices is None]):
            raise ValueError(f"sampler = 'grid' needs choices for every key; {', '.join(without)} has a range")
        if self.prune != "none" and (self.seeds if isinstance(self.seeds, int) else len(self.seeds)) > 1:
            raise ValueError(f"prune needs one tune seed, found seeds = {self.seeds}; set seeds = 1 or prune = 'none'")
        if self.prune != "none" and self.repeats > 1:
            raise ValueError(
                f"prune needs one repeat, found repeats = {self.repeats}; set repeats = 1 or prune = 'none'"
            )
        if isinstance(self.seeds, int) and self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds}: at least one")
        return self

    @property
    def seed_list(self) -> list[int]:
        """The seeds themselves."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


class SeedLooks(Section):
    """Seeds until the question is settled, at looks that are planned before anything runs."""

    looks: list[int]
    """How many seeds each look has, increasing, 20 at most, such as [7, 10, 14]. After each, arms that differ from
    their baseline train no further, and the sweep ends when nothing is open or more seeds would hardly help."""


def _form(seeds: object) -> str:
    """Name the form in which seeds are given, as a branch of a union (jobs.config.validation)."""
    if isinstance(seeds, dict | SeedLooks):
        return "function-looks"
    return "list[int]" if isinstance(seeds, list) else "literal[]" if isinstance(seeds, str) else "int"


class Confirm(Section):
    """The second stage: each arm's best setting, frozen, on fresh seeds, the same in every arm."""

    seeds: Annotated[
        Annotated[Literal["enough", "fewest"], Tag("literal[]")]
        | Annotated[int, Tag("int")]
        | Annotated[list[int], Tag("list[int]")]
        | Annotated[SeedLooks, Tag("function-looks")],
        Discriminator(_form),
    ] = "enough"
    """`enough`: 8 to 20, which find metric.smallest_difference four times in five by the spread of a run like it, or 10
    where there is none; `fewest`: that can reach the level at all, if all agree; or a count; or a list; or
    { looks = [7, 10, 14] }: until the question is settled."""
    swap: bool = False
    """Train each arm also at the other's setting of the keys that both tune: beside the verdict, deciding nothing."""


class Resources(Section):
    """What a rank takes, and how many trials run at once."""

    cpus_per_rank: int = Field(1, gt=0)
    """CPUs that Ray reserves for each rank."""

    gpus_per_rank: float = Field(0, ge=0)
    """Whole GPUs; or a share of one, 0.5 for two trials a GPU, where every trial is a single rank. Ray keeps the books
    of shares; the memory of the GPU is not divided."""

    placement: Literal["pack", "spread"] = "pack"
    """The ranks of a trial: on one node if they fit, or on as many as there are."""

    accelerator_type: str | None = None
    """Only nodes whose GPUs are of this type as Ray names it, such as "A100" or "H100"."""

    concurrent: int | None = Field(None, gt=0)
    """Trials at once, at most. None: as many as fit."""

    autoscale: bool = False
    """Ask for `concurrent` trials though fewer fit: the cluster adds nodes for those that wait."""

    @model_validator(mode="after")
    def _asks_for_a_number(self) -> Resources:
        if self.autoscale and self.concurrent is None:
            raise ValueError("autoscale asks a cluster for room; say for how many trials, such as concurrent = 4")
        return self


class Retry(Section):
    """Attempts that a trial gets after a failure of each class. Interruptions never count."""

    worker_lost: int = Field(5, ge=0)
    """The process of a rank died."""

    node_lost: int = Field(5, ge=0)
    """The node of a rank went away."""

    out_of_memory: int = Field(0, ge=0)
    """Memory of the node, or of a GPU, did not suffice."""

    hung: int = Field(2, ge=0)
    """A rank took longer than `execution.deadline_s`."""

    storage_full: int = Field(0, ge=0)
    """The disk, or a quota, was full."""

    user_error: int = Field(0, ge=0)
    """The job raised an exception."""

    infrastructure: int = Field(5, ge=0)
    """Ray or the storage failed under the trial."""


class Code(Section):
    """Code of your own that components are named from by import path."""

    paths: list[str] = Field(min_length=1)
    """Folders of packages, or Python files, relative to the sweep file. They are copied into the run and count in the
    ids of its trials. Hidden files, those that git ignores and those over 10 MB stay."""

    digest: str = ""
    """sha256 over names and contents, as they were when the file was read; not for a file to say."""


class Sweep(Section):
    """One question and how it is answered."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    """Names the run's folder and its experiment in MLflow."""

    question: str = Field(min_length=1)
    """What the sweep answers, in a sentence; it heads the report."""

    metric: Metric
    job: dict[str, AsGiven]
    """What all arms have in common; keys that are left out keep their defaults."""

    compare: dict[str, Annotated[list[Level], Field(min_length=1)]] = {}
    """Job keys and their levels, crossed: each combination is an arm."""

    exclude: list[dict[str, Levels]] = []
    """Combinations of the compared factors that are left out: each names levels of some factors."""

    arm: list[dict[str, AsGiven]] = []
    """Named arms: a label and job keys. The first is the baseline."""

    tune: Tune | None = None
    confirm: Confirm = Confirm()
    code: Code | None = None
    resources: Resources = Resources()
    retry: Retry = Retry()

    _notes: tuple[str, ...] = PrivateAttr(())

    @property
    def notes(self) -> tuple[str, ...]:
        """What a person should know of how its file was read."""
        return self._notes

    def as_read(self, digest: str | None, notes: Iterable[str]) -> Sweep:
        """Keep notes on how the sweep's file was read, and return a copy with them and with the digest of its code."""
        self._notes = tuple(notes)
        code = self.code if digest is None or self.code is None else self.code.model_copy(update={"digest": digest})
        return self.model_copy(update={"code": code} if self.code else {})

    @model_validator(mode="after")
    def _one_way_of_comparing(self) -> Sweep:
        if self.compare and self.arm:
            raise ValueError("give [compare] (crossed factors) or [[arm]] (named arms), not both")
        return self


@dataclass(frozen=True)
class Arm:
    """One combination of the compared factors."""

    label: str
    settings: dict[str, JsonValue]
    """Dotted job keys that make this arm what it is."""

    job: dict[str, JsonValue]
    """The whole job as given, settings included; neither stage nor seed."""

    @cached_property
    def values(self) -> Settings:
        """Every value of the arm's job by dotted key, defaults filled in; and its label, as `arm`."""
        return flatten(self._untuned.model_dump(mode="json")) | {"arm": self.label}

    @cached_property
    def objective(self) -> str:
        """What the arm optimises, as text: its job except for how it is computed."""
        return canonical(self._untuned.model_dump(mode="json", exclude=self._untuned.idle_sections))

    @cached_property
    def encoder_of_seed(self) -> str | None:
        """The name of its encoder as it was given, if it has a place for the seed."""
        model = self.job.get("model")
        name = model.get("name") if isinstance(model, dict) else None
        return name if isinstance(name, str) and OF_SEED in name else None

    @property
    def is_seedless(self) -> bool:
        """Whether nothing of it differs between seeds, as far as that is known before it runs."""
        return self.encoder_of_seed is None and _is_seedless(self._untuned)

    def config(self, *, stage: str, seed: int, settings: Settings | None = None) -> JobConfig:
        """Build the job of one trial of this arm. Raises pydantic's ValidationError."""
        if not settings and (stage, seed) == ("confirm", 0):
            return self._untuned
        return JobConfig.model_validate(merged(self.job, settings or {}) | {"stage": stage, "seed": seed})

    @cached_property
    def _untuned(self) -> JobConfig:
        """What stands for the arm before anything is tuned; asked for many times, of a thousand arms."""
        return JobConfig.model_validate(merged(self.job, {}) | {"stage": "confirm", "seed": 0})


def _is_seedless(job: JobConfig) -> bool:
    """Return whether nothing depends on a job's seed, as far as its own keys say: it trains nothing, its encoder has
    files, and what is done to embeddings is built in and draws nothing."""
    judges = [*job.evaluate.judge.values()] if isinstance(job.evaluate.judge, dict) else [job.evaluate.judge]
    code = (job.evaluate.after, *judges, *job.evaluate.metrics)
    has_files = job.model.name is not None and job.model.name not in builtin_names("encoder")
    is_own = job.is_function or any(is_import_path(name or "") for name in (job.task, job.model.name, *code))
    return not job.trains and has_files and not is_own and job.evaluate.after not in DRAWN


def arms_of(sweep: Sweep) -> list[Arm]:
    """Build the arms in the order of the file; the first level of the first factor, or the first arm, comes first."""
    return cross(sweep.job, sweep.compare, sweep.arm, sweep.exclude)


def resolved(sweep: Sweep) -> dict[str, JsonValue]:
    """Return the sweep as JSON, defaults filled in. Keys keep their order: the first factor decides the contrasts."""
    value: dict[str, JsonValue] = json.loads(json.dumps(sweep.model_dump(mode="json"), allow_nan=False))
    return value


def cross(
    job: dict[str, JsonValue],
    compare: Mapping[str, Sequence[JsonValue]],
    named: Sequence[Settings],
    exclude: Sequence[Settings] = (),
) -> list[Arm]:
    """Build the arms of crossed factors but for those excluded, or of named tables, whether valid jobs or not."""
    if named:
        settings = [{k: v for k, v in arm.items() if k != "label"} for arm in named]
        labels = [str(arm.get("label", "")) for arm in named]
    else:
        crossed = [dict(zip(compare, levels, strict=True)) for levels in itertools.product(*compare.values())]
        excluded = _excluded(compare, exclude)
        settings = [chosen for chosen in crossed if not excluded(chosen)]
        labels = labels_of(settings)
    return [Arm(label, chosen, merged(job, chosen)) for label, chosen in zip(labels, settings, strict=True)]


def _excluded(factors: Collection[str], exclude: Sequence[Settings]) -> Callable[[Settings], bool]:
    """Return a function that decides whether some exclusion leaves out the arm of given settings: every key that the
    exclusion names has one of its levels.

    Bit n of a number is exclusion n, so that the cost of thousands of them is that of a few.
    """
    usable = [exclusion for exclusion in exclude if exclusion and exclusion.keys() <= set(factors)]
    silent = {
        key: sum(1 << number for number, exclusion in enumerate(usable) if key not in exclusion) for key in factors
    }
    """Exclusions that do not name a factor, and so take any level of it."""
    named: dict[str, dict[Hashable, int]] = {key: {} for key in factors}
    for number, exclusion in enumerate(usable):
        for key, levels in exclusion.items():
            for level in set(map(identity, alternatives(key, levels))):
                named[key][level] = named[key].get(level, silent[key]) | 1 << number

    def excluded(settings: Settings) -> bool:
        left = -1 if usable else 0
        for key, level in settings.items():
            left &= named[key].get(identity(level), silent[key])
        return left != 0

    return excluded


def labels_of(settings: Sequence[Settings]) -> list[str]:
    """Make labels such as `flatnce, size=16`: words by themselves, numbers behind the last part of their key."""

    def text(key: str, value: JsonValue, short: bool) -> str:
        name = key.rpartition(".")[2] if short else key
        if isinstance(value, str) and value:
            plain = value.rpartition(":")[2] if is_import_path(value) else value
            return plain if short else f"{name}={value}"
        return f"{name}={shown(value)}"

    def label(chosen: Settings, short: bool) -> str:
        return ", ".join(text(key, value, short) for key, value in chosen.items()) or "the job"

    brief = [label(chosen, True) for chosen in settings]
    return brief if len(set(brief)) == len(brief) else [label(chosen, False) for chosen in settings]
