"""Copies the ledger into MLflow, from a thread of its own, and catches up when MLflow was away.

One parent run for the run, one nested run for every trial that was started. A nested run is looked for by its tags
before it is made, and recorded in the ledger afterwards, so a kill in between makes no second one. Points go with the
timestamps they have in the ledger, so telling MLflow twice adds nothing. Nothing that goes wrong here reaches the
sweep: it is kept in `last_error`, and tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from orchestrator.ledger import LeaseLost, Ledger, Run, Trial

from . import encoders, told, view
from .encoders import Encoder
from .store import artifact_root, connect, search

if TYPE_CHECKING:
    from mlflow import MlflowClient

METRICS_PER_CALL, PARAMS_PER_CALL = 1000, 100
"""What MLflow takes at once."""

REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST"}
"""Error codes that are about one run, not about the server."""

LONGEST_WAIT_S = 30.0
"""Between two attempts to reach an MLflow that is away."""

MOVED, LOGGED = "tracking_moved", "encoder_logged"
"""Kinds of events: another store has to be told everything; an encoder is in this one."""

TRIAL_STATUS = {"queued": "SCHEDULED", "running": "RUNNING", "done": "FINISHED", "pruned": "KILLED", "failed": "FAILED"}
RUN_STATUS = {"planned": "SCHEDULED", "running": "RUNNING", "stopped": "KILLED", "done": "FINISHED"}


@dataclass(frozen=True)
class Report:
    """What is put on the parent run when there is an answer."""

    folder: Path
    note: str
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    step: int = 0
    """Of the metrics: goes up whenever they may have changed."""


class Projection:
    """The projection of one ledger. `start` it, `stop` it; between the two, only look at `healthy` and `last_error`.

    The ledger's lease must be held: what MLflow has been told is written there.
    """

    def __init__(self, ledger: Ledger, uri: str, *, interval_s: float = 1.0) -> None:
        self._ledger, self._uri, self._interval_s = ledger, uri, interval_s
        self._client: MlflowClient | None = None
        self._experiment_id, self._parent = "", ""
        self._nested: dict[str | None, str] = {}
        self._shown: tuple[Any, ...] | None = None
        self._report: Report | None = None
        self._encoders: list[Encoder] = []
        self._turn = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._thread: threading.Thread | None = None
        self._flushed = False
        self.last_error: Exception | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to tell MLflow worked."""
        return self.last_error is None

    def start(self) -> None:
        """Begin copying, every `interval_s` seconds."""
        self._thread = threading.Thread(target=self._loop, name="mlflow projection", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float) -> bool:
        """Copy what is left, for at most `timeout_s` seconds. True when MLflow has been told everything.

        May be called again, for example after `log_report`.
        """
        self._stopping.set()
        self._wake.set()
        if self._thread is None or not (self._thread.is_alive() or self._told_all()):
            self.start()
        assert self._thread is not None
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._told_all()

    def log_report(
        self,
        folder: Path,
        note: str,
        *,
        metrics: Mapping[str, float] | None = None,
        tags: Mapping[str, str] | None = None,
        step: int = 0,
    ) -> None:
        """Put a folder on the parent run as artifacts under `report`, and `note` (Markdown) as its description.

        Returns at once; it is done by the next flush, or by `stop`.
        """
        self._report = Report(folder, note, dict(metrics or {}), dict(tags or {}), step)
        self._wake.set()

    def log_encoders(self, found: Sequence[Encoder]) -> None:
        """Log encoders as models, one an arm. Their folders must stay until that is done, as for `log_report`."""
        self._encoders = list(found)
        self._wake.set()

    def flush(self) -> bool:
        """Tell MLflow, now and in this thread, all that the ledger has. True when that worked, else see `last_error`.

        Raises LeaseLost. Takes as long as MLflow takes.
        """
        with self._turn:
            try:
                problem = self._tell()
            except LeaseLost as error:
                self.last_error = error
                raise
            except Exception as error:  # noqa: BLE001 - whatever ails MLflow must not end the sweep
                problem, self._client = error, None
            self._note_change(problem)
            self._flushed = problem is None
            return self._flushed

    def _told_all(self) -> bool:
        return self._flushed and self._report is None and not self._encoders

    def _loop(self) -> None:
        wait_s = self._interval_s
        while True:
            last = self._stopping.is_set()
            self._wake.clear()
            try:
                worked = self.flush()
            except LeaseLost:
                return
            if last:
                return
            wait_s = self._interval_s if worked else min(2 * wait_s, LONGEST_WAIT_S)
            if not self._stopping.is_set():
                self._wake.wait(wait_s)

    def _note_change(self, problem: Exception | None) -> None:
        """Note in the ledger when MLflow goes away and when it is back."""
        before, self.last_error = self.last_error, problem
        if (problem is None) == (before is None):
            return
        text = "MLflow has been told everything again" if problem is None else f"{type(problem).__name__}: {problem}"
        try:
            self._ledger.event("tracking_back" if problem is None else "tracking_lost", text[:500])
        except LeaseLost:
            raise
        except Exception as broken:  # noqa: BLE001 - a ledger that fails is the driver's to notice
            self.last_error = broken

    # One pass. MLflow's own refusals (of one trial) are returned; everything else is raised and ends the pass.

    def _tell(self) -> Exception | None:
        client = self._client or self._connect()
        self._client = client
        problem: Exception | None = None
        for trial in self._ledger.unprojected_trials():
            problem = self._try(client, trial, self._tell_state) or problem
        for trial_id in self._ledger.waiting():
            trial = self._ledger.trial(trial_id)
            if trial.mlflow_run_id is not None:  # else it was started after the loop above, and the next pass has it
                problem = self._try(client, trial, self._tell_points) or problem
        self._tell_run(client)
        return problem

    def _try(self, client: MlflowClient, trial: Trial, tell: Callable[[MlflowClient, Trial], None]) -> Exception | None:
        """Do it, and if it is this trial's run that is the matter, mend that, so that the next pass works."""
        from mlflow import MlflowException

        try:
            tell(client, trial)
        except MlflowException as error:
            if error.error_code not in REFUSALS:
                raise
            run = trial.mlflow_run_id and _run(client, trial.mlflow_run_id)
            if trial.mlflow_run_id and not run:
                self._ledger.unproject(trial.id)
            elif run and run.info.lifecycle_stage == "deleted":
                client.restore_run(run.info.run_id)
            return error
        return None

    def _connect(self) -> MlflowClient:
        """A client, with the experiment, the parent run and what there is of nested runs settled."""
        client, run = connect(self._uri), self._ledger.run
        if run.mlflow_run_id and _run(client, run.mlflow_run_id) is None:
            self._ledger.event(MOVED, "this MLflow store does not have the run; it is told everything")
            self._ledger.unproject()
            run = self._ledger.run
        experiment = self._experiment(client, run)
        there = client.get_experiment(experiment).tags
        for key, value in view.tags(run).items():
            if key != view.NOTE or not there.get(view.NOTE):  # which may be the verdict by now
                client.set_experiment_tag(experiment, key, value)
        recorded = {trial.id: trial.mlflow_run_id for trial in self._ledger.trials()}
        self._nested = self._adopt(client, experiment, run, recorded)
        parent = self._nested.pop(None, None)
        if parent is None:
            tags = {**told.identity(run, "sweep"), view.NOTE: str(run.sweep.get("question", ""))}
            start = int(run.created * 1000)
            parent = str(client.create_run(experiment, start, tags, run_name=run.name).info.run_id)
        if (experiment, parent) != (run.mlflow_experiment_id, run.mlflow_run_id):
            self._ledger.set_run(mlflow_experiment_id=experiment, mlflow_run_id=parent)
        self._experiment_id, self._parent, self._shown = experiment, parent, None
        return client

    def _experiment(self, client: MlflowClient, run: Run) -> str:
        """The experiment named like the sweep, made or restored at need."""
        found = client.get_experiment_by_name(run.name)
        if found is None:
            root = artifact_root(self._uri)
            return client.create_experiment(run.name, artifact_location=root and f"{root}/{run.name}")
        if found.lifecycle_stage == "deleted":
            client.restore_experiment(found.experiment_id)
        return str(found.experiment_id)

    def _adopt(
        self, client: MlflowClient, experiment: str, run: Run, recorded: Mapping[str, str | None]
    ) -> dict[str | None, str]:
        """MLflow's runs of this run of the ledger, by trial id (None: the parent), one each.

        Where a driver died before it had recorded a run, that run is the trial's; of several, which takes a kill of a
        stopped driver at the wrong moment, the recorded or else the oldest one stays and the others are deleted.
        """
        kept: dict[str | None, str] = {trial: run_id for trial, run_id in recorded.items() if run_id}
        if run.mlflow_run_id:
            kept[None] = run.mlflow_run_id
        for found in sorted(search(client, run.uuid, [experiment]), key=lambda one: one.info.start_time):
            trial = found.data.tags.get("orchestrator.trial")
            if kept.setdefault(trial, found.info.run_id) != found.info.run_id:
                client.delete_run(found.info.run_id)
        return kept

    def _nested_run(self, client: MlflowClient, trial: Trial) -> str:
        """The trial's run: recorded, else adopted, else made."""
        if trial.mlflow_run_id:
            return trial.mlflow_run_id
        run_id, made = self._nested.pop(trial.id, None), False
        if run_id is None:
            tags = told.identity(self._ledger.run, "trial")
            tags |= {"mlflow.parentRunId": self._parent, "orchestrator.trial": trial.id}
            start = None if trial.started is None else int(trial.started * 1000)
            new = client.create_run(self._experiment_id, start, tags, run_name=told.name(trial))
            run_id, made = str(new.info.run_id), True
        try:
            self._ledger.set_mlflow_run(trial.id, run_id)
        except LeaseLost:
            if made:  # the driver that took over makes its own
                client.delete_run(run_id)
            raise
        return run_id

    def _tell_state(self, client: MlflowClient, trial: Trial) -> None:
        from mlflow.entities import Metric, Param, RunTag

        run_id = self._nested_run(client, trial)
        self._tell_points(
            client, replace(trial, mlflow_run_id=run_id)
        )  # first, so that a run that is over in MLflow is whole there
        params = [Param(key, value) for key, value in told.flat(trial.job)]
        attempts, metric = self._ledger.attempts(trial.id), self._metric()
        tags = [RunTag(key, value) for key, value in told.tags(trial, attempts, metric)]
        ended = int((trial.ended or 0) * 1000)
        metrics = [Metric(key, value, ended, trial.step or 0) for key, value in self._unplotted(trial)]
        for some in _parts(params, PARAMS_PER_CALL):
            client.log_batch(run_id, params=some)
        client.log_batch(run_id, metrics=metrics, tags=tags)
        if data := told.datasets(trial):
            client.log_inputs(run_id, data)
        if trial.state in ("queued", "running"):
            client.update_run(run_id, TRIAL_STATUS[trial.state])
        else:
            client.set_terminated(run_id, TRIAL_STATUS[trial.state], ended)
        self._ledger.mark_trial_projected(trial)

    def _metric(self) -> str:
        return str(self._ledger.run.sweep.get("metric", {}).get("name", "metric"))

    def _unplotted(self, trial: Trial) -> Iterator[tuple[str, float]]:
        """Final numbers of a finished trial that are no curve's last point."""
        if trial.state in ("done", "pruned"):
            plotted = {point.key for point in self._ledger.points(trial.id)}
            for key, value in trial.metrics.items():
                if key not in plotted and isinstance(value, (int, float)):
                    yield key, float(value)

    def _tell_points(self, client: MlflowClient, trial: Trial) -> None:
        from mlflow.entities import Metric

        assert trial.mlflow_run_id is not None
        while points := self._ledger.unprojected_points(METRICS_PER_CALL, trial.id):
            metrics = [Metric(point.key, point.value, int(point.time * 1000), point.step) for point in points]
            client.log_batch(trial.mlflow_run_id, metrics=metrics)
            self._ledger.mark_projected(points)

    def _tell_run(self, client: MlflowClient) -> None:
        """The parent run: its state, how many trials are in which, and the report once there is one."""
        from mlflow.entities import RunTag

        run, counts, parent = self._ledger.run, self._ledger.counts(), self._parent
        if self._shown != (run.state, counts):
            tags = {"orchestrator.state": run.state, **{f"trials.{state}": str(n) for state, n in counts.items()}}
            client.log_batch(parent, tags=[RunTag(key, value) for key, value in tags.items()])
            if run.state in ("planned", "running"):
                client.update_run(parent, RUN_STATUS[run.state])
            else:
                client.set_terminated(parent, RUN_STATUS[run.state])
            self._shown = (run.state, counts)
        if self._report is not None:
            self._tell_report(client, run, self._report)
        while self._encoders:
            encoder = self._encoders[0]
            made = replace(encoder, trial=self._ledger.trial(encoder.trial.id))
            model = encoders.tell(client, self._experiment_id, run, made, dict(told.flat(encoder.trial.job)))
            self._ledger.event(LOGGED, f"the best encoder of {made.trial.arm} is MLflow's model {model}", made.trial.id)
            self._encoders = self._encoders[1:]

    def _tell_report(self, client: MlflowClient, run: Run, report: Report) -> None:
        from mlflow.entities import Metric, RunTag

        tags = {view.NOTE: report.note, **report.tags}
        client.log_batch(self._parent, tags=[RunTag(key, told.short(value)) for key, value in tags.items()])
        if verdict := report.tags.get("verdict"):
            said = f"{run.sweep.get('question', '')} {verdict}".strip()
            client.set_experiment_tag(self._experiment_id, view.NOTE, told.short(said))
        client.log_artifacts(self._parent, str(report.folder), "report")
        client.log_dict(self._parent, {"sweep": run.sweep, "environment": run.environment}, "sweep.json")
        if data := told.datasets(*self._ledger.trials(state="done")):
            client.log_inputs(self._parent, data)
        at_ms = int(run.created * 1000)
        metrics = [Metric(key, value, at_ms, report.step) for key, value in report.metrics.items()]
        for some in _parts(metrics, METRICS_PER_CALL):
            client.log_batch(self._parent, metrics=some)
        if self._report is report:
            self._report = None


def _parts(values: Sequence[Any], size: int) -> Iterator[Sequence[Any]]:
    for start in range(0, len(values), size):
        yield values[start : start + size]


def _run(client: MlflowClient, run_id: str) -> Any:
    """A run, deleted or not; None when this store never had it."""
    from mlflow import MlflowException

    try:
        return client.get_run(run_id)
    except MlflowException as error:
        if error.error_code == "RESOURCE_DOES_NOT_EXIST":
            return None
        raise
