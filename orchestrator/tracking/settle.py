"""Finds what MLflow has of a run of the ledger, and puts it in order before anything is copied.

After the first time nothing goes by name. The ledger has recorded the ids of the experiment, of the parent run and of
the nested ones; each of these carries tags that say whose it is. So whatever a person does in MLflow's pages, or a
server's operator to the whole store, there is one experiment, the run's own (unless an earlier version put others into
it too), one parent run in it, and one nested run for each trial that was started, under that parent, beside those of
the arms (arms.py):

    deleted         restored, if what it has is still what the ledger says
    gone for good   made again, and told everything again, with the times of the ledger
    somewhere else  made again beside the parent run, and the stray one deleted
    told twice      the recorded one stays, the others are deleted
    wrong tags      set right

What is deleted here MLflow keeps until its garbage is collected.
"""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from orchestrator.ledger import Ledger, Run, Trial
from orchestrator.session.schedule import extension
from orchestrator.tracking import encoders, metadata, view
from orchestrator.tracking.arms import RECORDED, Arms, is_of_arm, recorded
from orchestrator.tracking.encoders import MOVED
from orchestrator.tracking.runs import experiments, histories, is_deleted, search

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Experiment
    from mlflow.entities import Run as TrackedRun

SWEEP, OWNER = "orchestrator.sweep", "orchestrator.run"
"""Tags of an experiment: the sweep it was made for; and, followed by a run's uuid, that this run lies in it."""


@dataclass(frozen=True)
class Settled:
    """Where a run lies in MLflow."""

    experiment: str
    parent: str
    adopted: dict[str, str]
    """MLflow's runs, by trial, that are the trials' and not recorded in the ledger yet."""
    arms: Arms


def settle(client: MlflowClient, ledger: Ledger, root: str | None) -> Settled:
    """Put in order what MLflow has of the ledger's run, and find or make its experiment and its parent run.

    root: where artifacts of a new experiment belong; None: where the server decides. Raises LeaseLost.
    """
    ledger.check()  # what follows deletes: not for a driver that another one has replaced
    there = _Store(client, ledger)
    if ledger.run.mlflow_run_id and not there.has_recorded():
        ledger.event(MOVED, "this MLflow store does not have the run; everything is written to it again")
        ledger.unproject()
    experiment = there.experiment(root)
    parent = there.parent(experiment)
    adopted = there.nested(experiment, parent)
    there.pairs()
    if (experiment, parent) != (ledger.run.mlflow_experiment_id, ledger.run.mlflow_run_id):
        ledger.set_run(mlflow_experiment_id=experiment, mlflow_run_id=parent)
    there.models(experiment, adopted)
    return Settled(experiment, parent, adopted, there.arms(experiment, parent))


class _Store:
    """One store, as the ledger's run finds it."""

    def __init__(self, client: MlflowClient, ledger: Ledger) -> None:
        self._client, self._ledger = client, ledger
        self._arms_recorded = recorded(ledger.events(RECORDED))
        self._runs: dict[str, TrackedRun] = {}
        """MLflow's runs of the ledger's run by id: those with its tag, deleted ones too, and those it has recorded."""
        self._of_trials: list[tuple[Trial, TrackedRun]] = []
        """Trials with the runs that stay theirs."""
        self._look()

    def has_recorded(self) -> bool:
        """Return whether any run is there that the ledger has recorded."""
        return bool(self._recorded().keys() & self._runs.keys())

    def experiment(self, root: str | None) -> str:
        """Find, restore or make the experiment where the run lies, or is to lie from now on."""
        run, client = self._ledger.run, self._client
        known = {experiment.experiment_id: experiment for experiment in experiments(client)}
        chosen = self._where(run, known)
        if chosen is None:
            chosen = _named(client, run, root)
        elif known[chosen].lifecycle_stage == "deleted":
            client.restore_experiment(chosen)
            self._look()  # which has restored its runs too, whatever had been deleted of them before
        tags = client.get_experiment(chosen).tags
        wanted = {SWEEP: tags.get(SWEEP, run.name), f"{OWNER}.{run.uuid}": run.name, **view.tags(run)}
        if tags.get(metadata.NOTE):
            wanted.pop(metadata.NOTE, None)  # it may be the verdict by now
        for key, value in wanted.items():
            if tags.get(key) != value:
                client.set_experiment_tag(chosen, key, value)
        return chosen

    def parent(self, experiment: str) -> str:
        """Find, restore or make the parent run, and leave no other."""
        run, client = self._ledger.run, self._client
        kept = self._runs.get(run.mlflow_run_id or "")
        others = [other for other in self._parents() if other is not kept]
        if kept is None:
            kept = next((other for other in others if other.info.experiment_id == experiment), None)
        if kept is not None and is_deleted(kept):
            client.restore_run(kept.info.run_id)
        tags = metadata.identity(run, "sweep")
        if kept is None:
            start = int(run.created * 1000)
            note = {metadata.NOTE: view.question(run)}
            kept = client.create_run(experiment, start, {**tags, **note}, run_name=run.name)
        else:
            self._set_tags(kept, tags)
        for other in others:
            if other is not kept:
                client.delete_run(other.info.run_id)
        self._log_params(kept)
        return str(kept.info.run_id)

    def nested(self, experiment: str, parent: str) -> dict[str, str]:
        """Leave at most one run per started trial, under the parent; return those the ledger has not recorded."""
        recorded = self._recorded()
        of_trial: dict[str | None, list[TrackedRun]] = defaultdict(list)
        parents = {run.info.run_id for run in self._parents()} | {parent}
        for run_id, run in self._runs.items():
            if run_id not in parents and not self._is_of_arm(run) and (run_id in recorded or not is_deleted(run)):
                of_trial[recorded.get(run_id) or run.data.tags.get("orchestrator.trial")].append(run)
        behind = {trial.id for trial in self._ledger.unprojected_trials()}
        adopted: dict[str, str] = {}
        for trial in self._ledger.trials():
            runs = of_trial.pop(trial.id, []) if trial.attempts else []
            kept = self._kept(trial, runs, experiment)
            for other in runs:
                if other is not kept and not is_deleted(other):
                    self._client.delete_run(other.info.run_id)
            if kept is None:
                if trial.mlflow_run_id:
                    self._ledger.unproject(trial.id)
                continue
            tags = {**metadata.identity(self._ledger.run, "trial"), "orchestrator.trial": trial.id}
            self._set_tags(kept, {**tags, "mlflow.parentRunId": parent})
            lost = is_deleted(kept) or (trial.id not in behind and not _shows(kept, trial))
            if trial.mlflow_run_id and (lost or kept.info.run_id != trial.mlflow_run_id):
                self._ledger.unproject(trial.id)
            if lost or kept.info.run_id != trial.mlflow_run_id:
                adopted[trial.id] = kept.info.run_id
            self._of_trials.append((trial, kept))
        for stray in (run for runs in of_trial.values() for run in runs):  # of trials that were not begun
            if not is_deleted(stray):
                self._client.delete_run(stray.info.run_id)
        return adopted

    def pairs(self) -> None:
        """Log the pairs that trials had seen at their evaluations, as earlier versions did not."""
        from mlflow.entities import Metric

        metric = metadata.metric_of(self._ledger.run)
        for trial, run in self._of_trials:
            if metadata.PAIRS in run.data.metrics or metadata.pairs_a_step(trial, metric) is None:
                continue
            points = metadata.pairs_seen(trial, self._ledger.points(trial.id, metric), metric)
            metrics = [Metric(point.key, point.value, int(point.time * 1000), point.step) for point in points]
            for some in metadata.parts(metrics, metadata.METRICS_PER_CALL):
                self._client.log_batch(run.info.run_id, metrics=some)

    def models(self, experiment: str, adopted: Mapping[str, str]) -> None:
        """Note the trials with a logged encoder that is no longer there, or belongs to a run that is not."""
        logged = encoders.logged(self._ledger.events())
        if not logged:
            return
        models = encoders.models(self._client, experiment, self._ledger.run)
        there = {(model.tags.get("orchestrator.trial"), model.source_run_id) for model in models}
        for trial in self._ledger.trials():
            if trial.id in logged and (trial.id, adopted.get(trial.id, trial.mlflow_run_id)) not in there:
                self._ledger.event(
                    MOVED, f"MLflow does not have the encoder of {trial.arm}; it is logged again", trial.id
                )

    def arms(self, experiment: str, parent: str) -> Arms:
        """Put the runs of the arms in order."""
        arms = Arms(self._client, self._ledger, experiment, parent)
        arms.settle(self._runs.values())
        return arms

    def _log_params(self, parent: TrackedRun) -> None:
        """Describe the sweep as parameters of its parent run, and as a tag, which may change, all confirm seeds that it
        has: a run that was extended has more than the planned ones."""
        from mlflow.entities import Param

        run = self._ledger.run
        if "plan" not in run.sweep or "metric" not in run.sweep:
            return
        params = [Param(*pair) for pair in metadata.of_sweep(run).items() if pair[0] not in parent.data.params]
        for some in metadata.parts(params, metadata.PARAMS_PER_CALL):
            self._client.log_batch(parent.info.run_id, params=some)
        seeds = [*run.sweep["plan"].get("confirm_seeds", [])]
        seeds += [seed for added in extension.recorded(self._ledger) for seed in added.seeds]
        self._set_tags(parent, {"seeds": metadata.short(str(seeds))})

    def _is_of_arm(self, run: TrackedRun) -> bool:
        return is_of_arm(run.data.tags.get("orchestrator.kind"), run.info.run_id, self._arms_recorded)

    def _look(self) -> None:
        client, recorded = self._client, self._recorded()
        self._runs = {run.info.run_id: run for run in search(client, self._ledger.uuid, deleted=True)}
        missing = (recorded.keys() | self._arms_recorded.keys()) - self._runs.keys()
        parent = self._ledger.run.mlflow_run_id
        if parent in missing and not recorded.keys() & self._runs.keys() and _run(client, parent) is None:
            return  # another store: to ask for each of a thousand trials would take long
        for run_id in missing:  # somebody may have taken its tags away
            if (run := _run(client, run_id)) is not None:
                self._runs[run_id] = run

    def _recorded(self) -> dict[str, str | None]:
        """Map the ids of MLflow's runs that the ledger has recorded to their trials; None: the parent."""
        trials: dict[str, str | None] = {
            trial.mlflow_run_id: trial.id for trial in self._ledger.trials() if trial.mlflow_run_id
        }
        parent = self._ledger.run.mlflow_run_id
        return trials | ({parent: None} if parent else {})

    def _parents(self) -> list[TrackedRun]:
        """List the undeleted runs that say they are the parent run, oldest first."""
        recorded = self._recorded()
        runs = [run for run_id, run in self._runs.items() if recorded.get(run_id) is None and not is_deleted(run)]
        parents = [run for run in runs if _is_parent(run) and not self._is_of_arm(run)]
        return sorted(parents, key=lambda run: (run.info.start_time, run.info.run_id))

    def _where(self, run: Run, known: Mapping[str, Experiment]) -> str | None:
        """Find the experiment that is the run's: where its parent lies, else the recorded experiment, else where most
        of its runs lie, else an experiment with its tag; None if there is none."""
        parent = self._runs.get(run.mlflow_run_id or "") or next(iter(self._parents()), None)
        if parent is not None:
            return str(parent.info.experiment_id)
        owned = [
            experiment_id for experiment_id, experiment in known.items() if f"{OWNER}.{run.uuid}" in experiment.tags
        ]
        holding = Counter(tracked.info.experiment_id for tracked in self._runs.values())
        # An id alone says nothing: a server that was begun anew gives the same ones to others.
        if run.mlflow_experiment_id in {*owned, *holding}:
            return run.mlflow_experiment_id
        most = [experiment_id for experiment_id, _ in holding.most_common(1)]
        return next(iter([*most, *owned]), None)

    def _kept(self, trial: Trial, runs: Sequence[TrackedRun], experiment: str) -> TrackedRun | None:
        """Choose the run that stays the trial's: the recorded run, else the oldest; None: it is to be made."""
        usable = [run for run in runs if run.info.experiment_id == experiment and self._sound(trial, run)]
        return min(
            usable,
            key=lambda run: (run.info.run_id != trial.mlflow_run_id, run.info.start_time, run.info.run_id),
            default=None,
        )

    def _sound(self, trial: Trial, run: TrackedRun) -> bool:
        """Return whether a run becomes what the ledger says once more is written. If so, a deleted run is restored:
        whoever wants it made anew deletes it."""
        wanted = metadata.params(trial)
        if any(wanted.get(key) != value for key, value in run.data.params.items()):
            return False
        if not is_deleted(run):
            return True
        run_id = run.info.run_id
        self._client.restore_run(run_id)
        curves = histories(self._client, [run])[run_id]
        points, metric = self._ledger.points(trial.id), metadata.metric_of(self._ledger.run)
        if metadata.compare(trial, points, curves, metric).contradicts:
            self._client.delete_run(run_id)
            return False
        return True

    def _set_tags(self, run: TrackedRun, wanted: Mapping[str, str]) -> None:
        for key, value in wanted.items():
            if run.data.tags.get(key) != value:
                self._client.set_tag(run.info.run_id, key, value)


def _named(client: MlflowClient, run: Run, root: str | None) -> str:
    """Find or make an experiment for this run alone: named after the sweep, and after the run too where another run has
    that name.

    An experiment that somebody has made and left empty is taken, unless another run takes it at the same moment.
    """
    from mlflow import MlflowException

    mine = f"{OWNER}.{run.uuid}"
    for name in (run.name, f"{run.name} {run.uuid[:8]}", f"{run.name} {run.uuid}"):
        experiment = client.get_experiment_by_name(name)
        if experiment is None:
            try:  # with its owner, so that one who is killed now finds it again
                tags = {SWEEP: run.name, mine: run.name}
                return client.create_experiment(name, f"{root}/{name}" if root else None, tags)
            except MlflowException as error:
                if error.error_code != "RESOURCE_ALREADY_EXISTS":
                    raise
                continue  # somebody else was quicker
        if _is_of_others(client, experiment, run):
            continue
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment.experiment_id)
        client.set_experiment_tag(experiment.experiment_id, mine, run.name)
        if not _is_of_others(client, client.get_experiment(experiment.experiment_id), run):
            return str(experiment.experiment_id)
        client.delete_experiment_tag(experiment.experiment_id, mine)
    raise RuntimeError(f"MLflow has experiments of others named {run.name!r}, with this run's uuid; rename them")


def _is_of_others(client: MlflowClient, experiment: Experiment, run: Run) -> bool:
    """Return whether an experiment is not for this run to take: another run lies in it, or anything at all that is not
    known to be this run's. The first versions did not tag experiments."""
    from mlflow.entities import ViewType

    owners = {key for key in experiment.tags if key.startswith(f"{OWNER}.")}
    if owners:
        return owners != {f"{OWNER}.{run.uuid}"}
    return bool(client.search_runs([experiment.experiment_id], "", ViewType.ALL, 1))


def _is_parent(run: TrackedRun) -> bool:
    tags = run.data.tags
    return "orchestrator.trial" not in tags and tags.get("orchestrator.kind") != "trial"


def _shows(run: TrackedRun, trial: Trial) -> bool:
    """Return whether a run shows the state that was copied into it."""
    tags, params = run.data.tags, run.data.params
    wanted = metadata.params(trial).items()
    right = run.info.status == metadata.status_of(trial) and metadata.marks(trial).items() <= tags.items()
    return bool(right and wanted <= params.items())


def _run(client: MlflowClient, run_id: str) -> TrackedRun | None:
    """Read a run, deleted or not; None when this store does not have it."""
    from mlflow import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
