"""What a nested run says of its trial: a name, a description, a status, tags to search by, numbers, the data; and what
the parent run says of the sweep.

Both the projection, which tells it, and `verify`, which looks for it, ask here.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, TypeVar

from pydantic import JsonValue

from jobs.config import JobConfig
from jobs.config.components import is_class, is_import_path
from jobs.config.identity import counted_from
from jobs.core.plain import beginning, markdown, visible
from orchestrator.ledger import Attempt, Point, Run, Trial

if TYPE_CHECKING:
    from mlflow.entities import DatasetInput

T = TypeVar("T")

TRIAL_STATUS = {"queued": "SCHEDULED", "running": "RUNNING", "done": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
RUN_STATUS = {
    "planned": "SCHEDULED",
    "queued": "RUNNING",
    "running": "RUNNING",
    "stopped": "KILLED",
    "done": "FINISHED",
}

LONGEST_PARAM, LONGEST_TAG = 6000, 5000
"""What MLflow takes. It cuts longer parameters off in silence and refuses longer tags."""

LONGEST_METRIC = 240
"""Characters of a metric's name, which gets a few more behind it: MLflow takes 250."""

METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
"""What MLflow takes at once."""

NAME, COLOUR, NOTE = "mlflow.runName", "mlflow.runColor", "mlflow.note.content"
"""Tags that are a run's name in MLflow's pages, the colour of its lines, bars and dot, and its description; the last
is an experiment's description too."""

RED, GREY = "#d62728", "#7f7f7f"
"""Colours of what diverged, and of what failed."""

PAIRS = "pairs_seen"
"""Metric of a trial's run, at each evaluation: the pairs that the encoder has seen by then. A chart has them as its x
axis, on which arms with batches of different sizes can be compared."""


def identity(run: Run, kind: str) -> dict[str, str]:
    """Build the tags that identify a run of MLflow as the ledger's."""
    return {"orchestrator.sweep": run.name, "orchestrator.run": run.uuid, "orchestrator.kind": kind}


def status_of(trial: Trial) -> str:
    """Choose the status of a trial's run in MLflow. A training that diverged counts as failed: it came to nothing."""
    return "FAILED" if (trial.state, trial.outcome) == ("done", "diverged") else TRIAL_STATUS[trial.state]


def marks(trial: Trial) -> dict[str, str]:
    """Build the tags that let a person find a trial's run, and that must be right for that."""
    values = {"trial": trial.id, "arm": trial.arm, "stage": trial.stage, "seed": trial.seed, "state": trial.state}
    if trial.outcome == "diverged":
        values["outcome"] = trial.outcome
    return {key: str(value) for key, value in values.items()}


def name(trial: Trial) -> str:
    """Name a trial's run `flatnce #3 seed 0`, `flatnce seed 7` in the confirm stage, `flatnce swapped seed 7` at
    another arm's setting; with `(diverged)` or `(failed)` behind it where it came to that."""
    number = " swapped" if trial.stage == "swap" else "" if trial.number is None else f" #{trial.number}"
    return marked(f"{visible(trial.arm)}{number} seed {trial.seed}", _ill(trial))


def marked(name: str, ill: str | None) -> str:
    """Put what became of a run behind its name, as MLflow's charts and lists show names and no status."""
    return f"{name} ({ill})" if ill else name


def colour(ill: str | None) -> str:
    """Choose the colour of what diverged or failed; for the rest none, so that MLflow chooses one."""
    return {"diverged": RED, "failed": GREY}.get(ill or "", "")


def _ill(trial: Trial) -> str | None:
    return "diverged" if trial.outcome == "diverged" else "failed" if trial.state == "failed" else None


def tags(trial: Trial, attempts: Sequence[Attempt], metric: str) -> Iterator[tuple[str, str]]:
    """Yield tags that a person filters by; and for every attempt that was different, or did not work, what and why."""
    values: dict[str, object] = {"attempts": trial.attempts, **marks(trial)}
    # A tag stays until it is overwritten, so what is over is written as empty.
    values |= {"orchestrator.outcome": trial.outcome, "orchestrator.failure": trial.failure}
    values |= {"orchestrator.message": trial.message, "orchestrator.suggestion": trial.number}
    values[NOTE] = description(trial, metric)
    if (ill := _ill(trial)) or trial.attempts > 1:  # else it has the name that it was made with
        values |= {NAME: name(trial), COLOUR: colour(ill)}
    values |= {f"reading.{key}": value for key, value in trial.came_to.reading.items()}
    for attempt in attempts:
        if attempt.failure is not None:
            values[f"attempt.{attempt.number}.failure"] = attempt.failure
        values |= {f"attempt.{attempt.number}.{key}": value for key, value in flat(attempt.execution, "execution.")}
    for key, value in values.items():
        yield key, "" if value is None else short(str(value))


def description(trial: Trial, metric: str) -> str:
    """Describe a trial in one sentence, in Markdown."""
    what = f"suggestion {trial.number + 1}, " if trial.number is not None else ""
    head = f"**{markdown(trial.arm)}**, {trial.stage} stage, {what}seed {trial.seed}"
    value = "" if trial.metric is None else f": {metric} {trial.metric:.4f}"
    if trial.state == "failed":
        head = f"{head}: failed ({trial.failure}): "
        return f"{head}{markdown(beginning(trial.message or '', max(1, LONGEST_TAG - len(head))))}"
    if trial.outcome == "diverged":
        return f"{head}, {trial.state}: diverged, so it has no {metric}"
    return f"{head}, {trial.state}{value}"


def finals(trial: Trial, plotted: Iterable[str]) -> Iterator[tuple[str, float]]:
    """Yield a finished trial's final numbers that are no curve's last point: their keys are not among `plotted`."""
    if trial.state in ("done", "pruned"):
        for key, value in trial.metrics.items():
            if key not in plotted and isinstance(value, int | float):
                yield key, float(value)


PointKey = tuple[str, int]
"""Key and step of a point."""


@dataclass(frozen=True)
class Curves:
    """How the points of a trial's run in MLflow differ from those it shall have."""

    lacking: list[PointKey]
    twice: list[PointKey]
    strange: list[PointKey]
    """Of which the ledger knows nothing."""
    other_value: list[PointKey]
    other_time: list[PointKey]
    wanted: dict[PointKey, tuple[float, int]]
    """Value and unix ms of every point that there shall be."""
    there: Mapping[PointKey, list[tuple[float, int]]]

    @property
    def contradicts(self) -> bool:
        """Whether MLflow has what telling it more does not take back."""
        return bool(self.twice or self.strange or self.other_value or self.other_time)


def is_own_loop(task: str) -> bool:
    """Return whether a task is a training loop of the user's own."""
    return is_import_path(task) and not is_class(task)


def pairs_a_step(trial: Trial, metric: str) -> int | None:
    """Return how many pairs each step of a trial sees. None for a training loop of the user's own: what it takes for a
    step, only it knows."""
    batch = trial.job.get("batch")
    size = batch.get("size") if isinstance(batch, Mapping) else None
    if not isinstance(size, int) or metric == PAIRS or is_own_loop(str(trial.job.get("task"))):
        return None
    return size


def pairs_seen(trial: Trial, points: Iterable[Point], metric: str) -> list[Point]:
    """Derive the points of PAIRS from those of the sweep's metric, where they are known."""
    size = pairs_a_step(trial, metric)
    if size is None:
        return []
    return [replace(point, key=PAIRS, value=float(point.step * size)) for point in points if point.key == metric]


def compare(
    trial: Trial, points: Iterable[Point], metrics: Mapping[str, Sequence[tuple[int, int, float]]], metric: str
) -> Curves:
    """Compare what a trial's run shall have with `metrics`, which are MLflow's as `runs_of` gives them.

    metric: the sweep's. An earlier version wrote no PAIRS, and without any there is nothing to compare.
    """
    points = list(points)
    told = [*points, *(pairs_seen(trial, points, metric) if PAIRS in metrics else ())]
    wanted = {(point.key, point.step): (point.value, int(point.time * 1000)) for point in told}
    at_ms = int((trial.ended or 0) * 1000)
    last = {(key, trial.step or 0): (value, at_ms) for key, value in finals(trial, {key for key, _ in wanted})}
    wanted |= last
    there: dict[PointKey, list[tuple[float, int]]] = defaultdict(list)
    for key, curve in metrics.items():
        for step, time_ms, value in curve:
            there[key, step].append((value, time_ms))
    once = [at for at, values in there.items() if len(values) == 1 and at in wanted]
    return Curves(
        lacking=[at for at in wanted if at not in there],
        twice=[at for at, values in there.items() if len(values) > 1],
        strange=[at for at in there if at not in wanted],
        other_value=[at for at in once if not _equal(stored(wanted[at][0]), there[at][0][0])],
        other_time=[at for at in once if wanted[at][1] != there[at][0][1]],
        wanted=wanted,
        there=there,
    )


def stored(value: float) -> float:
    """Return what MLflow makes of a value: it has no infinities."""
    return min(max(value, -sys.float_info.max), sys.float_info.max) if value == value else value  # noqa: PLR0124 - NaN


def _equal(ours: float, theirs: float) -> bool:
    return ours == theirs or (ours != ours and theirs != theirs)  # noqa: PLR0124 - NaN


def datasets(*trials: Trial) -> list[DatasetInput]:
    """List the data of ended trials as MLflow's inputs: what they trained on and were judged on, each once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    inputs: dict[tuple[str, str], DatasetInput] = {}
    for rows in (rows for trial in trials for rows in trial.came_to.data):
        kind = rows.source.partition("://")[0] if "://" in rows.source else "local"
        dataset = Dataset(
            rows.source,
            rows.digest,
            kind,
            json.dumps({"uri": rows.source}),
            profile=json.dumps({"num_rows": rows.rows}),
        )
        tag = InputTag("mlflow.data.context", rows.context)
        inputs.setdefault((rows.source, rows.digest), DatasetInput(dataset, [tag]))
    return list(inputs.values())


def params(trial: Trial) -> dict[str, str]:
    """Return a trial's job as MLflow's parameters, of which `stage` is the trial's own: a swapped one has the job of a
    confirm trial and is none."""
    return dict(flat({**trial.job, "stage": trial.stage} if trial.stage == "swap" else trial.job))


def flat(job: Mapping[str, object], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield a job as MLflow's parameters: dotted keys, the same for every trial, so that Compare lines them up."""
    for key, value in job.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{prefix}{key}", text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 4] + " ..."


def varied(run: Run) -> tuple[list[str], list[str]]:
    """List the job keys that the arms of a run differ in, and those that are tuned besides."""
    compared = dict.fromkeys(key for arm in run.sweep["plan"].get("arms", []) for key in arm["settings"])
    return list(compared), [key for key in _spaces(run) if key not in compared]


def of_sweep(run: Run) -> dict[str, str]:
    """Describe a sweep as parameters of its parent run: the metric, how much of it there is, the job keys that all
    arms share and that are not at their defaults, the levels of those that are compared, the spaces of those that are
    tuned."""
    sweep, plan, metric = run.sweep, run.sweep["plan"], run.sweep["metric"]
    compared, _ = varied(run)
    defaults = dict(flat(plan.get("defaults") or counted_from(JobConfig)))
    tune = sweep.get("tune") or {}
    values: dict[str, JsonValue] = {f"metric.{key}": value for key, value in metric.items()}  # type: ignore[misc]
    values |= {key: value for key, value in flat(sweep.get("job", {})) if defaults.get(key) != value}
    values |= {key: _levels(run, key) for key in compared}
    values |= {key: space for key, space in _spaces(run).items() if key not in compared}
    values |= {f"tune.{key}": tune[key] for key in ("trials", "seeds", "sampler", "seed", "prune") if key in tune}
    return dict(flat(values | {"confirm.seeds": [*plan.get("confirm_seeds", [])]}))


def _levels(run: Run, key: str) -> list[JsonValue]:
    """List what the arms have at a compared key, each level once."""
    levels: list[JsonValue] = []
    for arm in run.sweep["plan"].get("arms", []):
        if key in arm["settings"] and arm["settings"][key] not in levels:
            levels.append(arm["settings"][key])
    return levels


def _spaces(run: Run) -> dict[str, JsonValue]:
    """Return the spaces of the tuned keys as one text each, without what they leave open."""
    spaces = (run.sweep.get("tune") or {}).get("space")
    return {
        key: json.dumps({name: value for name, value in space.items() if value not in (None, False)})
        for key, space in (spaces if isinstance(spaces, dict) else {}).items()
        if isinstance(space, dict)
    }


def metric_of(run: Run) -> str:
    """Return the name of a sweep's metric, or a word in its place where a ledger has none."""
    metric = run.sweep.get("metric")
    return metric["name"] if metric else "metric"


def parts(values: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    """Yield the values in as many parts as MLflow takes."""
    for start in range(0, len(values), size):
        yield values[start : start + size]


@dataclass(frozen=True)
class ArmKeys:
    """Names of an arm's metrics: of the mean that of the sweep's metric, and of the rest with something behind it, so
    that the mean comes first wherever MLflow sorts them."""

    mean: str
    sd: str
    n: str
    low: str
    high: str
    """Ends of the 95% t interval."""
    interval: str
    """Both ends with the mean between them, as three points of one curve: a chart draws it upright over `place`."""
    place: str
    """Where the arm stands among the arms, from 1, at each of these points."""

    @classmethod
    def of(cls, metric: str) -> ArmKeys:
        """Name them after the sweep's metric."""
        rest = ("sd", "n", "low", "high", "interval", "arm")
        return cls(metric, *(f"{metric[:LONGEST_METRIC]}_{what}" for what in rest))


def judged_by(run: Run) -> list[str]:
    """Name the metrics by which a run is judged, the first one first."""
    metric = run.sweep["metric"]
    return [own["name"] for own in (metric, *metric.get("also", ()))]


def short(text: str) -> str:
    """Shorten a text to at most LONGEST_TAG characters."""
    return text if len(text) <= LONGEST_TAG else text[: LONGEST_TAG - 4] + " ..."
