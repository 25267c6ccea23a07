"""The sweep file: one question, what is compared, what is tuned, how much. Reads it, checks every arm, names every fault.

Imports no torch, ray, optuna or mlflow: `orchestrator --help` and `plan` must be quick.
"""

from __future__ import annotations

import itertools
import json
import tomllib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, ValidationError, model_validator

from jobs.config import ConfigError, Fault, JobConfig, Section, canonical, faults, field_names, nearest

METRICS = {
    "image": ("knn_accuracy", "probe_accuracy", "alignment", "uniformity"),
    "sentence": ("spearman", "alignment", "uniformity"),
}
"""What an evaluation of each task measures."""

TRAINING_METRICS = ("train/loss", "train/infonce")
LARGEST_FILE = 1_000_000
"""Bytes. A sweep is written by hand; anything larger is not one."""

Scalar = str | int | float | bool


class Metric(Section):
    """What the arms are judged by."""

    name: str
    mode: Literal["max", "min"] = "max"
    smallest_difference: float = Field(0.0, ge=0)
    """The smallest difference worth having; arms closer than this count as equivalent. 0: never equivalent."""


class Space(Section):
    """The values one job key is tuned over: a range, or choices."""

    low: float | int | None = None
    high: float | int | None = None
    log: bool = False
    step: float | int | None = None
    choices: Annotated[list[Scalar], Field(min_length=1)] | None = None

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
    def integer(self) -> bool:
        """Whole numbers at both ends mean whole numbers between them."""
        return isinstance(self.low, int) and isinstance(self.high, int) and not isinstance(self.step, float)

    @property
    def ends(self) -> list[Scalar]:
        """The values that stand for all others when a job is checked."""
        return list(self.choices) if self.choices is not None else [v for v in (self.low, self.high) if v is not None]


class Tune(Section):
    """The first stage: an equal budget of trials inside each arm."""

    trials: int = Field(8, gt=0)
    """Suggestions per arm."""

    seeds: int | list[int] = 1
    """Seeds a suggestion is tried on; its value is their mean. A count, or a list."""

    parallel: int = Field(1, gt=0)
    """Suggestions an arm may have in flight. Suggestion n sees the results of suggestions up to n - parallel."""

    sampler: Literal["tpe", "gp", "random", "grid"] = "tpe"
    prune: Literal["none", "halving", "median"] = "none"
    seed: int = Field(0, ge=0)
    """Of the sampler."""

    defaults: list[dict[str, Any]] = []
    """Settings tried first in each arm; what is missing is filled from the arm."""

    space: dict[str, Space]
    """Job keys and their values."""

    @model_validator(mode="after")
    def _not_empty(self) -> Tune:
        if not self.space:
            raise ValueError("tune.space is empty; name a key, for example 'optimizer.lr' = { low = 1e-4, high = 1e-2 }")
        if self.sampler == "grid" and (without := [key for key, s in self.space.items() if s.choices is None]):
            raise ValueError(f"sampler = 'grid' needs choices for every key; {', '.join(without)} has a range")
        if self.prune != "none" and len(self.seed_list) > 1:
            raise ValueError(f"prune needs one tune seed, found seeds = {self.seeds}; set seeds = 1 or prune = 'none'")
        if isinstance(self.seeds, int) and self.seeds < 1:
            raise ValueError(f"seeds = {self.seeds}: at least one")
        return self

    @property
    def seed_list(self) -> list[int]:
        """The seeds themselves."""
        return list(range(self.seeds)) if isinstance(self.seeds, int) else list(self.seeds)


class Confirm(Section):
    """The second stage: each arm's best setting, frozen, on fresh seeds, the same in every arm."""

    seeds: Literal["enough"] | int | list[int] = "enough"
    """`enough`: the fewest that can reach p < 0.05 after Holm; or a count; or a list."""


class Resources(Section):
    """What a rank takes, and how many trials run at once."""

    cpus_per_rank: int = Field(1, gt=0)
    gpus_per_rank: float = Field(0, ge=0)
    concurrent: int | None = Field(None, gt=0)
    """Trials at once. None: as many as fit."""


class Retry(Section):
    """Attempts that a trial gets after a failure of each class. Interruptions never count."""

    worker_lost: int = Field(5, ge=0)
    node_lost: int = Field(5, ge=0)
    out_of_memory: int = Field(0, ge=0)
    hung: int = Field(2, ge=0)
    storage_full: int = Field(0, ge=0)
    user_error: int = Field(0, ge=0)
    infrastructure: int = Field(5, ge=0)


class Sweep(Section):
    """One question and how it is answered."""

    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    question: str = Field(min_length=1)
    metric: Metric
    job: dict[str, Any]
    compare: dict[str, Annotated[list[Scalar], Field(min_length=1)]] = {}
    """Job keys and their levels, crossed: each combination is an arm."""

    arm: list[dict[str, Any]] = []
    """Named arms: a label and job keys. The first is the baseline."""

    tune: Tune | None = None
    confirm: Confirm = Confirm()
    resources: Resources = Resources()
    retry: Retry = Retry()

    @model_validator(mode="after")
    def _one_way_of_comparing(self) -> Sweep:
        if self.compare and self.arm:
            raise ValueError("give [compare] (crossed factors) or [[arm]] (named arms), not both")
        return self


@dataclass(frozen=True)
class Arm:
    """One combination of the compared factors."""

    label: str
    settings: dict[str, Any]
    """Dotted job keys that make this arm what it is."""

    job: dict[str, Any]
    """The whole job as given, settings included; neither stage nor seed."""

    @property
    def values(self) -> dict[str, Any]:
        """Every value of the arm's job by dotted key, defaults filled in."""
        return flatten(self.config(stage="confirm", seed=0).model_dump(mode="json"))

    def config(self, *, stage: str, seed: int, settings: Mapping[str, Any] | None = None) -> JobConfig:
        """The job of one trial of this arm. Raises pydantic's ValidationError."""
        return JobConfig.model_validate(merged(self.job, settings or {}) | {"stage": stage, "seed": seed})


def load(path: Path, overrides: Iterable[str] = ()) -> Sweep:
    """Read and check a sweep. `overrides` are `key=value` texts. Raises ConfigError with every fault found."""
    where = str(path)
    raw = _normal(_with_base(path))
    found: list[Fault] = []
    for text in overrides:
        found += _override(raw, text)
    try:
        sweep = Sweep.model_validate(raw)
    except ValidationError as error:
        found += faults(error, Sweep)
        sweep = None
    found += _job_faults(raw)
    if sweep is not None and not found:
        found += _contradictions(sweep)
    if sweep is None or found:
        raise ConfigError(where, "sweep", list(dict.fromkeys(found)))
    return sweep


def arms_of(sweep: Sweep) -> list[Arm]:
    """The arms in the order of the file; the first level of the first factor, or the first arm, comes first."""
    return _arms(sweep.job, sweep.compare, sweep.arm)


def flatten(table: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested tables as dotted keys."""
    flat: dict[str, Any] = {}
    for key, value in table.items():
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat


def merged(job: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    """`job` with dotted `settings` put in. Neither is changed."""
    result: dict[str, Any] = json.loads(json.dumps(job, default=str))  # TOML dates are nobody's job
    for key, value in settings.items():
        *sections, leaf = key.split(".")
        table = result
        for section in sections:
            inner = table.setdefault(section, {})
            table = inner if isinstance(inner, dict) else table
        if key == "budget.samples":
            table.pop("steps", None)
        elif key == "budget.steps":
            table.pop("samples", None)
        table[leaf] = value
    return result


def _read(path: Path) -> dict[str, Any]:
    def fail(what: str) -> ConfigError:
        return ConfigError(str(path), "sweep", [Fault("", "", what)])

    try:
        if path.is_dir():
            raise fail("is a folder; name the TOML file in it")
        if path.stat().st_size > LARGEST_FILE:
            raise fail(f"is {path.stat().st_size:,} bytes; a sweep is a short TOML file, such as sweeps/quickstart.toml")
        table = tomllib.loads(path.read_bytes().decode("utf-8"))
    except FileNotFoundError as error:
        beside = sorted(str(p) for p in path.parent.glob("*.toml")) if path.parent.is_dir() else []
        raise fail(f"there is no such file{nearest(str(path), beside)}") from error
    except UnicodeDecodeError as error:
        raise fail(f"is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except (OSError, ValueError) as error:  # tomllib's error names line and column
        raise fail(f"{error}; a sweep is a TOML file, such as sweeps/quickstart.toml") from error
    if not table:
        raise fail("is empty; start from sweeps/quickstart.toml")
    return table


def _with_base(path: Path) -> dict[str, Any]:
    table = _read(path)
    base = table.pop("extends", None)
    if base is None:
        return table
    if not isinstance(base, str):
        raise ConfigError(str(path), "sweep", [Fault("extends", repr(base), "must be the path of another sweep")])
    under = _read(path.parent / base)
    if "extends" in under:
        raise ConfigError(
            str(path), "sweep", [Fault("extends", repr(base), "extends another sweep itself; one level is the limit")]
        )
    return _overlaid(_normal(under), _normal(table))


def _overlaid(under: dict[str, Any], over: dict[str, Any]) -> dict[str, Any]:
    both = dict(under)
    for key, value in over.items():
        old = both.get(key)
        both[key] = _overlaid(old, value) if isinstance(old, dict) and isinstance(value, dict) else value
    return both


def _normal(raw: dict[str, Any]) -> dict[str, Any]:
    """Factors, arms and spaces with dotted keys, however they were nested in the file."""
    table = dict(raw)
    if isinstance(table.get("compare"), dict):
        table["compare"] = flatten(table["compare"])
    if isinstance(table.get("arm"), list):
        table["arm"] = [flatten(arm) if isinstance(arm, dict) else arm for arm in table["arm"]]
    tune = table.get("tune")
    if isinstance(tune, dict):
        tune = table["tune"] = dict(tune)
        if isinstance(tune.get("defaults"), list):
            tune["defaults"] = [flatten(d) if isinstance(d, dict) else d for d in tune["defaults"]]
        if isinstance(tune.get("space"), dict):
            tune["space"] = _spaces(tune["space"])
    return table


def _spaces(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    known = set(Space.model_fields)
    found: dict[str, Any] = {}
    for key, value in table.items():
        nested = isinstance(value, dict) and value and all(isinstance(v, dict) for v in value.values())
        if nested and not known & set(value):
            found |= _spaces(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def _override(raw: dict[str, Any], text: str) -> list[Fault]:
    key, equals, value = (part.strip() for part in text.partition("="))
    if not key or not equals:
        return [Fault("--set", repr(text), "must be key=value, for example --set job.loss.temperature=0.07")]
    try:
        parsed = tomllib.loads(f"value = {value}")["value"]
    except tomllib.TOMLDecodeError:
        parsed = value  # a bare word is a text
    dotted = ("compare.", "tune.space.")
    head = next((prefix for prefix in dotted if key.startswith(prefix)), None)
    path = [*head.rstrip(".").split("."), key[len(head) :]] if head else key.split(".")
    if head == "tune.space." and key.rpartition(".")[2] in Space.model_fields:
        path[-1:] = key[len(head) :].rsplit(".", 1)
    table = raw
    for part in path[:-1]:
        inner = table.setdefault(part, {})
        if not isinstance(inner, dict):
            return [Fault("--set", repr(text), f"{part} is not a table")]
        table = inner
    if key in {"job.budget.samples", "job.budget.steps"}:
        table.clear()
    table[path[-1]] = parsed
    return []


def _arms(job: dict[str, Any], compare: Mapping[str, list[Any]], named: list[dict[str, Any]]) -> list[Arm]:
    if named:
        settings = [{k: v for k, v in arm.items() if k != "label"} for arm in named]
        labels = [str(arm.get("label", "")) for arm in named]
    else:
        settings = [dict(zip(compare, levels, strict=True)) for levels in itertools.product(*compare.values())]
        labels = _labels(settings)
    return [Arm(label, chosen, merged(job, chosen)) for label, chosen in zip(labels, settings, strict=True)]


def _labels(settings: list[dict[str, Any]]) -> list[str]:
    """`flatnce, size=16`: words by themselves, numbers behind the last part of their key."""

    def text(key: str, value: Any, short: bool) -> str:
        shown = value if isinstance(value, str) else json.dumps(value)
        return str(shown) if short and isinstance(value, str) else f"{key.rpartition('.')[2] if short else key}={shown}"

    def label(chosen: dict[str, Any], short: bool) -> str:
        return ", ".join(text(key, value, short) for key, value in chosen.items()) or "the job"

    brief = [label(chosen, True) for chosen in settings]
    return brief if len(set(brief)) == len(brief) else [label(chosen, False) for chosen in settings]


def _job_faults(raw: dict[str, Any]) -> list[Fault]:
    """Faults of every arm as a job, found even when another part of the file is wrong."""
    job, compare, named = raw.get("job"), raw.get("compare", {}), raw.get("arm", [])
    if not isinstance(job, dict):
        return []
    found: list[Fault] = []
    for key in ("stage", "seed"):
        if key in job:
            found.append(Fault(f"job.{key}", repr(job[key]), "is set by the plan; remove it"))
    job = {key: value for key, value in job.items() if key not in ("stage", "seed")}
    crossed = isinstance(compare, dict) and all(isinstance(v, list) and v for v in compare.values())
    tables = isinstance(named, list) and all(isinstance(arm, dict) for arm in named)
    usable = _arms(job, compare if crossed else {}, named if tables else [])
    known = list(field_names(JobConfig))
    fixed = {"stage": "is set by the plan", "seed": "seeds belong to [confirm]", "task": "must be the same in every arm"}
    for place, settings in (("compare", compare), *((f"arm {a.label!r}", a.settings) for a in usable if named)):
        for key in settings if isinstance(settings, dict) else ():
            if key in fixed:
                found.append(Fault(f"{place}: {key}", "", fixed[key]))
            elif key not in known:
                found.append(Fault(f"{place}: {key}", "", f"is no key of a job{nearest(key, known)}"))
    stages = ["tune", "confirm"] if raw.get("tune") is not None else ["confirm"]
    unknown = {fault.key.rpartition(": ")[2] for fault in found}
    for arm, stage in itertools.product(usable, stages):
        whole = {k: v for k, v in arm.settings.items() if k not in unknown}
        try:
            Arm(arm.label, whole, merged(job, whole)).config(stage=stage, seed=0)
        except ValidationError as error:
            for fault in faults(error, JobConfig, "job."):
                of_arm = fault.key.removeprefix("job.") in arm.settings or fault.key == "job"
                suffix = f" (arm {arm.label!r})" if of_arm and arm.settings else ""
                found.append(Fault(fault.key, fault.found, fault.expected + suffix))
    return found


def _contradictions(sweep: Sweep) -> list[Fault]:
    """What is wrong although every part is well formed."""
    arms = arms_of(sweep)
    return [
        *_arm_faults(sweep, arms),
        *_seed_faults(sweep),
        *_metric_faults(sweep, arms),
        *(_space_faults(sweep.tune, arms) if sweep.tune else ()),
    ]


def _arm_faults(sweep: Sweep, arms: list[Arm]) -> Iterable[Fault]:
    if len(arms) < 2:
        yield Fault("compare", "", "a comparison needs two arms or more; give [compare] factors or two [[arm]] tables")
    labels = [arm.label for arm in arms]
    for arm in arms:
        if not arm.label:
            yield Fault("arm", json.dumps(arm.settings), "every [[arm]] needs a label")
        elif labels.count(arm.label) > 1:
            yield Fault("arm", repr(arm.label), "this label is given twice")
    seen: dict[str, str] = {}
    for arm in arms:
        same = seen.setdefault(arm.config(stage="confirm", seed=0).id, arm.label)
        if same != arm.label:
            yield Fault("compare", repr(arm.label), f"is the same trial as arm {same!r}; remove one of the two")


def _seed_faults(sweep: Sweep) -> Iterable[Fault]:
    tuned = set(sweep.tune.seed_list) if sweep.tune else set()
    for key, seeds in (("tune.seeds", sweep.tune.seed_list if sweep.tune else []), ("confirm.seeds", sweep.confirm.seeds)):
        if isinstance(seeds, list):
            if len(set(seeds)) < len(seeds):
                yield Fault(key, repr(seeds), "names a seed twice")
            if any(not 0 <= seed < 2**31 for seed in seeds):
                yield Fault(key, repr(seeds), "seeds are whole numbers from 0 to 2147483647")
    seeds = sweep.confirm.seeds
    if isinstance(seeds, list) and (both := sorted(tuned & set(seeds))):
        free = max([*tuned, *seeds]) + 1
        yield Fault(
            "confirm.seeds", repr(seeds), f"seeds {both} are tuned on too; confirm on fresh ones, such as {free}"
        )
    if isinstance(seeds, list | int) and (len(seeds) if isinstance(seeds, list) else seeds) < 2:
        yield Fault("confirm.seeds", repr(seeds), "an interval needs two seeds or more; 'enough' chooses")


def _metric_faults(sweep: Sweep, arms: list[Arm]) -> Iterable[Fault]:
    name, task = sweep.metric.name, arms[0].config(stage="confirm", seed=0).task
    known = METRICS[task]
    if name in TRAINING_METRICS or name == "loss":
        varied = set(sweep.compare) | {key for arm in sweep.arm for key in arm if key != "label"}
        varied |= set(sweep.tune.space) if sweep.tune else set()
        if blame := sorted(key for key in varied if key.startswith(("loss.", "batch."))):
            yield Fault(
                "metric.name",
                repr(name),
                f"a training loss cannot be compared while {', '.join(blame)} varies: its scale depends on them; "
                f"use {known[0]!r}",
            )
            return
        known = (*known, *TRAINING_METRICS)
    if name not in known:
        expected = f"is not measured in task {task!r}, which knows {', '.join(known)}"
        yield Fault("metric.name", repr(name), expected + nearest(name, list(known)))
    if name == "probe_accuracy" and not all(a.config(stage="confirm", seed=0).evaluate.probe for a in arms):
        yield Fault("metric.name", repr(name), "needs job.evaluate.probe = true")


def _space_faults(tune: Tune, arms: list[Arm]) -> Iterable[Fault]:
    known = list(field_names(JobConfig))
    closed = {
        "stage": "the plan sets it",
        "seed": "seeds are not tuned",
        "task": "the task is the question",
        "budget": "the budget is equal in every trial",
        "data": "every trial is judged on the same rows",
        "evaluate": "every trial is judged in the same way",
        "execution": "it does not change the result",
    }
    for key, space in tune.space.items():
        where = f"tune.space.{key}"
        if key not in known:
            yield Fault(where, "", f"is no key of a job{nearest(key, known)}")
        elif (section := key.partition(".")[0]) in closed:
            yield Fault(where, "", f"cannot be tuned: {closed[section]}")
        elif any(key in arm.settings for arm in arms):
            yield Fault(where, "", "is compared between the arms, so it cannot be tuned inside them; remove one of the two")
        else:
            yield from _value_faults(where, key, space.ends, arms)
    for index, default in enumerate(tune.defaults):
        for key, value in default.items():
            where = f"tune.defaults[{index}].{key}"
            if key not in tune.space:
                yield Fault(where, repr(value), f"is not in tune.space{nearest(key, list(tune.space))}")
            elif not _inside(tune.space[key], value):
                yield Fault(where, repr(value), f"lies outside tune.space.{key}")
            else:
                yield from _value_faults(where, key, [value], arms)


def _inside(space: Space, value: Any) -> bool:
    if space.choices is not None:
        return value in space.choices
    if isinstance(value, bool) or not isinstance(value, int | float) or space.low is None or space.high is None:
        return False
    return space.low <= value <= space.high


def _value_faults(where: str, key: str, values: list[Scalar], arms: list[Arm]) -> Iterable[Fault]:
    for arm, value in itertools.product(arms, values):
        try:
            arm.config(stage="tune", seed=0, settings={key: value})
        except ValidationError as error:
            for fault in faults(error, JobConfig):
                yield Fault(where, repr(value), fault.expected)


def resolved(sweep: Sweep) -> dict[str, Any]:
    """The sweep as plain JSON, defaults filled in; equal sweeps have equal JSON."""
    value: dict[str, Any] = json.loads(canonical(sweep.model_dump(mode="json")))
    return value
