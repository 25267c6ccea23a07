"""One run of MLflow for each arm: what its seeds came to, so that MLflow's own table and charts show one row, one bar
and one interval an arm.

Like everything in MLflow it follows from the ledger, and anybody may have done anything to it: an arm's run is looked
for by the id that the ledger's events have and by its tags, brought to what the ledger says, and made again where that
cannot be done, as MLflow takes no parameter and no point back.
"""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev
from typing import TYPE_CHECKING

from jobs.config import canonical
from jobs.core.plain import markdown, visible
from orchestrator import statistics
from orchestrator.ledger import Event, Ledger, Run, Trial
from orchestrator.ledger.stored import ArmTable
from orchestrator.session.schedule import confirming
from orchestrator.session.schedule.confirming import HAS_ENDED
from orchestrator.tracking import metadata
from orchestrator.tracking.runs import Curve, histories, is_deleted

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Run as TrackedRun

ARM, STAGE, RECORDED = "arm", "arm", "arm_tracked"
"""What the tags `orchestrator.kind` and `stage` of an arm's run are, and the kind of the event that notes its id."""

LOOKS = (metadata.NAME, metadata.COLOUR, metadata.NOTE)
"""Tags that a person may change in MLflow's pages, and that nothing goes by."""


@dataclass(frozen=True)
class ArmRun:
    """What the run of an arm is to say."""

    label: str
    name: str
    status: str
    start: int
    """Unix ms, as the next."""
    end: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    latest: Mapping[str, tuple[int, int, float]]
    """The last point of each key that changes whenever a seed ends, as (step, unix ms, value)."""
    curves: Mapping[str, Curve] = field(default_factory=dict)
    """All points of the keys that are written once, when all seeds have ended."""
    has_mean: bool = False


def is_of_arm(kind: str | None, run_id: str, recorded: Collection[str]) -> bool:
    """Return whether a run of MLflow is that of an arm. recorded: ids that the ledger has noted."""
    return kind == ARM or run_id in recorded


def recorded(events: Iterable[Event]) -> dict[str, str]:
    """Map the ids of arms' runs that the ledger has noted to their labels, oldest first. Empty for a run that no
    version with arms' runs has copied to MLflow."""
    pairs = (event.text.partition(" ") for event in events if event.kind == RECORDED)
    return {run_id: label for run_id, _, label in pairs}


def wanted(ledger: Ledger, labels: Collection[str] | None = None) -> dict[str, ArmRun]:
    """Describe the run of each arm that has a confirm trial which has ended, or that none is to come of; by label and
    in the order of the plan. labels: only these arms. Empty for a ledger without a plan."""
    run = ledger.run
    arms = run.sweep["plan"].get("arms", []) if "plan" in run.sweep and "metric" in run.sweep else []
    of_arm: dict[str, list[Trial]] = defaultdict(list)
    one = next(iter(labels)) if labels is not None and len(labels) == 1 else None
    planned = set(run.sweep["plan"]["confirm_seeds"]) if arms else set()
    for trial in ledger.trials("confirm", one):
        if trial.seed in planned:  # what a run was extended by is beside its answer
            of_arm[trial.arm].append(trial)
    untuned = _untuned(ledger, run) if len(of_arm) < len(arms) and labels is None else {}
    places = _places(run, arms)
    made: dict[str, ArmRun] = {}
    for arm in arms:
        label, trials = arm["label"], of_arm[arm["label"]]
        if labels is not None and label not in labels:
            continue
        if any(trial.state in HAS_ENDED for trial in trials):
            made[label] = _of_trials(run, label, places[label], trials)
        elif not trials and label in untuned:
            made[label] = _of_none(run, label, arm["settings"], untuned[label])
    return made


def _places(run: Run, arms: Sequence[ArmTable]) -> dict[str, int]:
    """Number the arms in the order of the plan, from 1, but with the levels of the first compared key side by side."""
    first = next(iter(run.sweep.get("compare", {})), None)
    strata: dict[str, list[str]] = defaultdict(list)
    for arm in arms:
        others = {key: value for key, value in arm["settings"].items() if key != first}
        strata[canonical(others) if first else ""].append(arm["label"])
    return {label: place for place, label in enumerate(itertools.chain(*strata.values()), 1)}


def _untuned(ledger: Ledger, run: Run) -> Mapping[str, str]:
    """Map each arm of a run that is over and will have no confirm trial to why: `diverged` or `failed`."""
    if run.state != "done" or not run.sweep.get("tune"):
        return {}
    from orchestrator.session import schedule
    from orchestrator.sweep import plan as planning

    return schedule.untuned_arms(planning.stored(run.sweep, run.rules), ledger)


def _of_none(run: Run, label: str, settings: Mapping[str, object], why: str) -> ArmRun:
    at_ms = int(run.created * 1000)
    tried = "diverged or failed" if why == "diverged" else "failed"
    note = f"**{markdown(label)}**: never confirmed, as every setting that was tried {tried}"
    tags = _tags(run, label, why, "never confirmed", note)
    params = dict(metadata.flat(settings))
    return ArmRun(label, metadata.marked(visible(label), why), "FAILED", at_ms, at_ms, params, tags, {})


def _of_trials(run: Run, label: str, place: int, trials: Sequence[Trial]) -> ArmRun:
    ended = [trial for trial in trials if trial.state in HAS_ENDED]
    complete = len(ended) == len(trials) or run.state == "done"
    values = [trial.metric for trial in trials if _counts(trial) and trial.metric is not None]
    diverged = sum(trial.outcome == "diverged" for trial in ended)
    failed = sum(trial.state == "failed" for trial in ended)
    ill = None
    if complete and not (values and 2 * diverged < diverged + len(values)):
        ill = "diverged" if diverged else "failed"
    step = sum(trial.revision for trial in trials)  # goes up whenever what follows may have changed
    at_ms = int(max(trial.ended or 0.0 for trial in ended) * 1000)
    first, *further = metadata.judged_by(run)
    numbers, curves = _numbers(first, values), dict[str, Curve]()
    if complete and values:
        curves = _curves(first, numbers, place, at_ms)
    for metric in further:
        own = _numbers(metric, [*confirming.values(trials, metric).get(label, {}).values()])
        numbers |= own
        if complete and metadata.ArmKeys.of(metric).mean in own:
            curves |= _curves(metric, own, place, at_ms)
    seeds = f"{len(values)} of {len(trials)}"
    seeds += "".join(f", {count} {word}" for count, word in ((diverged, "diverged"), (failed, "failed")) if count)
    outcome = ill or ("ok" if complete else "not complete")
    tags = _tags(run, label, outcome, seeds, _note(label, [first, *further], numbers, seeds))
    job = dict(metadata.flat(trials[-1].job))
    status = ("FAILED" if ill else "FINISHED") if complete else metadata.RUN_STATUS[run.state]
    return ArmRun(
        label=label,
        name=metadata.marked(visible(label), ill),
        status=status,
        start=int(min(trial.started or trial.ended or 0.0 for trial in ended) * 1000),
        end=at_ms if complete or run.state == "stopped" else None,
        params={key: job[key] for kind in metadata.varied(run) for key in kind if key in job},
        tags=tags,
        latest={key: (step, at_ms, float(value)) for key, value in numbers.items()},
        curves=curves,
        has_mean=bool(values),
    )


def _numbers(metric: str, values: Sequence[float]) -> dict[str, float]:
    """Compute what an arm's seeds come to by a metric, under the keys of it; without any, how many there are alone."""
    keys, ci95 = metadata.ArmKeys.of(metric), statistics.t_interval(values)
    numbers: dict[str, float] = {keys.mean: fmean(values)} if values else {}
    if ci95 is not None:
        numbers |= {keys.low: ci95[0], keys.high: ci95[1], keys.sd: stdev(values)}
    numbers[keys.n] = len(values)
    return numbers


def _curves(metric: str, numbers: Mapping[str, float], place: int, at_ms: int) -> dict[str, Curve]:
    """Draw the mean of a metric between the ends of its interval, over the arm's place."""
    keys = metadata.ArmKeys.of(metric)
    drawn = [numbers[key] for key in (keys.low, keys.mean, keys.high) if key in numbers]
    return {
        keys.interval: [(at, at_ms, value) for at, value in enumerate(drawn)],
        keys.place: [(at, at_ms, float(place)) for at, _ in enumerate(drawn)],
    }


def _counts(trial: Trial) -> bool:
    """Return whether the metric of a confirm trial counts, as the report has it: it trained to its end."""
    trained = trial.state == "done" and trial.outcome != "diverged"
    return trained and trial.metric is not None and math.isfinite(trial.metric)


def _tags(run: Run, label: str, outcome: str, seeds: str, note: str) -> dict[str, str]:
    ill = outcome if outcome in ("diverged", "failed") else None
    values = {"arm": label, "stage": STAGE, "outcome": outcome, "seeds": seeds}
    values |= {metadata.NAME: metadata.marked(visible(label), ill), metadata.COLOUR: metadata.colour(ill)}
    return metadata.identity(run, ARM) | values | {metadata.NOTE: metadata.short(note)}


def _note(label: str, metrics: Sequence[str], numbers: Mapping[str, float], seeds: str) -> str:
    """Describe an arm in Markdown: a sentence for the first metric, and one for each further one that it has."""
    first, *further = metrics
    if not numbers[metadata.ArmKeys.of(first).n]:
        return f"**{markdown(label)}**: it has no {markdown(first)}; seeds: {seeds}"
    said = f"**{markdown(label)}**: {_mean(first, numbers)}, the mean over seeds ({seeds}){_spread(first, numbers)}"
    others = [metric for metric in further if metadata.ArmKeys.of(metric).mean in numbers]
    return ". ".join([said, *(f"{_mean(metric, numbers)}{_spread(metric, numbers)}" for metric in others)])


def _mean(metric: str, numbers: Mapping[str, float]) -> str:
    return f"{markdown(metric)} {numbers[metadata.ArmKeys.of(metric).mean]:.4f}"


def _spread(metric: str, numbers: Mapping[str, float]) -> str:
    keys = metadata.ArmKeys.of(metric)
    if keys.low not in numbers:
        return ""
    return f"; sd {numbers[keys.sd]:.4f}, 95% interval {numbers[keys.low]:.4f} to {numbers[keys.high]:.4f}"


@dataclass(frozen=True)
class Difference:
    """What tells the run of an arm from what it is to say."""

    what: str
    final: bool = False
    """Whether it stays whatever is written, so that the run has to be made again."""


@dataclass(frozen=True)
class Shown:
    """What the run of an arm says."""

    status: str
    end: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    metrics: Mapping[str, Curve]
    """By step."""


def difference(want: ArmRun, shown: Shown) -> Difference | None:
    """Find the first difference between an arm's run and what it is to say; a final one before all others."""
    return next(_final(want, shown), None) or next(_passing(want, shown), None)


def _final(want: ArmRun, shown: Shown) -> Iterator[Difference]:
    for key, value in shown.params.items():
        if value != want.params.get(key):
            ours = repr(want.params[key]) if key in want.params else "nothing"
            yield Difference(f"parameter {key} is {value!r}, not {ours}", final=True)
    for key, curve in shown.metrics.items():
        allowed = {_stored(point) for point in (*want.curves.get(key, ()), *filter(None, [want.latest.get(key)]))}
        before = want.latest[key][0] if key in want.latest else -math.inf
        strange = [point for point in curve if point[0] >= before and point not in allowed]
        strange += [point for point in curve if curve.count(point) > 1]
        if strange:
            yield Difference(f"{key} has a point that is none of the arm's: {strange[0][2]}", final=True)


def _passing(want: ArmRun, shown: Shown) -> Iterator[Difference]:
    for key in want.params.keys() - shown.params.keys():
        yield Difference(f"parameter {key} is missing")
    for key, point in want.latest.items():
        curve = shown.metrics.get(key, [])
        if _stored(point) not in curve:
            yield Difference(f"{key} is {curve[-1][2] if curve else 'missing'}, not {point[2]}")
    for key, points in want.curves.items():
        if any(_stored(point) not in shown.metrics.get(key, []) for point in points):
            yield Difference(f"{key} lacks points")
    for key, value in want.tags.items():
        if key not in LOOKS and shown.tags.get(key) != value:
            yield Difference(f"tag {key} is {shown.tags.get(key, 'nothing')!r}, not {value!r}")
    if shown.status != want.status:
        yield Difference(f"it is {shown.status} and not {want.status}")
    if want.end is not None and shown.end != want.end:
        yield Difference(f"it ended at {shown.end} ms, not at {want.end} ms")


def _stored(point: tuple[int, int, float]) -> tuple[int, int, float]:
    """Return what MLflow makes of a point."""
    step, at_ms, value = point
    return step, at_ms, metadata.stored(value)


class Arms:
    """The runs of the arms of one ledger, in one experiment and under one parent run."""

    def __init__(self, client: MlflowClient, ledger: Ledger, experiment: str, parent: str) -> None:
        self._client, self._ledger, self._experiment, self._parent = client, ledger, experiment, parent
        self._state = ledger.run.state
        self._recorded = recorded(ledger.events(RECORDED))
        self._shown: dict[str, tuple[str, ArmRun]] = {}
        """What MLflow has, by label: the id of the run, and what it says."""

    def settle(self, runs: Iterable[TrackedRun]) -> None:
        """Put in order what there is of the arms' runs, and make those that are missing. runs: all of the ledger's run
        that the store has, deleted ones too."""
        mine = [run for run in runs if not is_deleted(run) and _is_mine(run, self._recorded)]
        curves = histories(self._client, mine)
        of_arm: dict[str, list[TrackedRun]] = defaultdict(list)
        for run in sorted(mine, key=lambda run: (run.info.run_id not in self._recorded, run.info.start_time)):
            of_arm[self._recorded.get(run.info.run_id) or run.data.tags.get("arm", "")].append(run)
        for label, want in wanted(self._ledger).items():
            kept = None
            for run in of_arm.pop(label, []):
                found = self._difference(want, run, curves[run.info.run_id])
                if kept is not None or run.info.experiment_id != self._experiment or (found and found.final):
                    self._client.delete_run(run.info.run_id)
                    continue
                kept = run.info.run_id
                self._record(kept, label)
                if found is not None:
                    self._tell(kept, want)
            self._shown[label] = (kept or self._make(want), want)
        for stray in (run for left in of_arm.values() for run in left):
            self._client.delete_run(stray.info.run_id)

    def update(self, labels: Collection[str]) -> None:
        """Tell MLflow what has become of these arms; of all arms if the run's own state has changed."""
        state = self._ledger.run.state
        if not labels and state == self._state:
            return
        found = wanted(self._ledger, labels if state == self._state else None)
        for label in [label for label in labels if label not in found and label in self._shown]:
            self._client.delete_run(self._shown.pop(label)[0])  # all that it had is trained again
        for label, want in found.items():
            run_id, before = self._shown.get(label, (None, None))
            if want == before:
                continue
            if run_id is not None and before is not None and not _follows(before, want):
                self._client.delete_run(run_id)
                run_id = None
            if run_id is None:
                run_id = self._make(want)
            else:
                self._tell(run_id, want)
            self._shown[label] = (run_id, want)
        self._state = state

    def _difference(self, want: ArmRun, run: TrackedRun, curves: Mapping[str, Curve]) -> Difference | None:
        info, data = run.info, run.data
        metrics = {key: sorted(points) for key, points in curves.items()}
        found = difference(want, Shown(info.status, info.end_time, data.params, data.tags, metrics))
        if found is None and run.data.tags.get("mlflow.parentRunId") != self._parent:
            return Difference("it lies under another parent run")
        return found

    def _make(self, want: ArmRun) -> str:
        """Make the run of an arm. What a kill leaves half is found by its tags."""
        tags = {key: value for key, value in want.tags.items() if key != metadata.NAME}
        tags["mlflow.parentRunId"] = self._parent
        made = self._client.create_run(self._experiment, want.start, tags, run_name=want.name)
        run_id = str(made.info.run_id)
        self._record(run_id, want.label)
        self._tell(run_id, want)
        return run_id

    def _record(self, run_id: str, label: str) -> None:
        if run_id not in self._recorded:
            self._ledger.event(RECORDED, f"{run_id} {label}")
            self._recorded[run_id] = label

    def _tell(self, run_id: str, want: ArmRun) -> None:
        from mlflow.entities import Metric, Param, RunTag

        params = [Param(key, value) for key, value in want.params.items()]
        points = [(key, *point) for key, point in want.latest.items()]
        points += [(key, *point) for key, curve in want.curves.items() for point in curve]
        metrics = [Metric(key, value, at_ms, step) for key, step, at_ms, value in points]
        tags = {**want.tags, "mlflow.parentRunId": self._parent}
        for some in metadata.parts(params, metadata.PARAMS_PER_CALL):
            self._client.log_batch(run_id, params=some)
        self._client.log_batch(run_id, metrics=metrics, tags=[RunTag(key, value) for key, value in tags.items()])
        if want.end is not None:
            self._client.set_terminated(run_id, want.status, want.end)
        else:
            self._client.update_run(run_id, want.status)


def _is_mine(run: TrackedRun, recorded: Collection[str]) -> bool:
    return is_of_arm(run.data.tags.get("orchestrator.kind"), run.info.run_id, recorded)


def _follows(before: ArmRun, want: ArmRun) -> bool:
    """Return whether telling more makes the one of the other."""
    return all(want.params.get(key) == value for key, value in before.params.items()) and all(
        want.curves.get(key) == curve for key, curve in before.curves.items()
    )
