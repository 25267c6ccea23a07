"""Copies the ledger into MLflow, from a thread of its own, and catches up when MLflow was away.

One parent run for the run, one nested run for every trial that was started, and one for every arm (arms.py). A nested
run is looked for by its tags before it is made, and recorded in the ledger afterwards, so a kill in between makes no
second one. Points go with the
timestamps they have in the ledger, so copying them twice adds nothing. Whatever became of all that in MLflow since
then is put in order first (settle.py). Nothing that goes wrong here reaches the sweep: it is kept in `last_error`,
and tried again.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, ParamSpec

from jobs.core.plain import beginning, markdown
from orchestrator.ledger import LeaseLost, Ledger, Run, RunState, Trial, TrialState
from orchestrator.system import threads
from orchestrator.tracking import encoders, metadata, view
from orchestrator.tracking.arms import Arms
from orchestrator.tracking.encoders import LOGGED, Encoder
from orchestrator.tracking.settle import settle
from orchestrator.tracking.store import artifact_root, connect, prepare

if TYPE_CHECKING:
    from mlflow import MlflowClient

P = ParamSpec("P")

POINTS_PER_CALL = 900
"""Points of the ledger copied at once, which leaves room for the pairs seen at each evaluation among them."""

REFUSALS = {"INVALID_PARAMETER_VALUE", "RESOURCE_DOES_NOT_EXIST", "BAD_REQUEST", "INVALID_STATE"}
"""Error codes that are about one run or experiment, not about the server."""

LONGEST_VERDICT = 3900
"""Characters of a verdict in an experiment's description, after the question."""

LONGEST_WAIT_S = 30.0
"""Between two attempts to reach an MLflow that is away."""


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

    The ledger's lease must be held: what MLflow has is noted there. `say` gets a line should the thread
    that copies die, which nothing of MLflow's or the ledger's makes it do.
    """

    def __init__(
        self, ledger: Ledger, uri: str, *, interval_s: float = 1.0, say: Callable[[str], object] = lambda _: None
    ) -> None:
        prepare()  # here, and not by the thread that copies, as Ray may start beside that
        self._ledger, self._uri, self._interval_s, self._say = ledger, uri, interval_s, say
        self._client: MlflowClient | None = None
        self._experiment_id, self._parent, self._metric = "", "", ""
        self._arms: Arms | None = None
        self._adopted: dict[str, str] = {}
        self._shown: tuple[RunState, Mapping[TrialState, int]] | None = None
        self._report: Report | None = None
        self._encoders: list[Encoder] = []
        self._turn = threading.Lock()
        self._wake, self._stopping = threading.Event(), threading.Event()
        self._tried, self._settled = threading.Event(), False
        self._thread: threading.Thread | None = None
        self._flushed = False
        self.last_error: BaseException | None = None

    @property
    def healthy(self) -> bool:
        """Whether the last attempt to tell MLflow worked."""
        return self.last_error is None

    def start(self) -> None:
        """Begin copying, every `interval_s` seconds."""
        self._thread = threads.start(self._loop, name="mlflow projection", died=self._died)

    def settled(self, timeout_s: float) -> bool:
        """Wait, after `start`, until what MLflow has of this run has been put in order, so that the ledger's events say
        what it lacks; or until that has failed, or for `timeout_s` seconds. Returns whether it is in order."""
        self._tried.wait(timeout_s)
        return self._settled

    def stop(self, timeout_s: float) -> bool:
        """Copy what is left, for at most `timeout_s` seconds. True when MLflow has everything.

        May be called again, for example after `log_report`.
        """
        self._stopping.set()
        self._wake.set()
        if self._thread is None or not (self._thread.is_alive() or self._has_all()):
            self.start()
        assert self._thread is not None
        self._thread.join(timeout_s)
        return not self._thread.is_alive() and self._has_all()

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

    def log_encoders(self, exported: Sequence[Encoder]) -> None:
        """Log encoders as models, one an arm. Their folders must stay until that is done, as for `log_report`."""
        self._encoders = list(exported)
        self._wake.set()

    def flush(self) -> bool:
        """Tell MLflow, now and in this thread, all that the ledger has. True when that worked, else see `last_error`.

        Raises LeaseLost. Takes as long as MLflow takes.
        """
        with self._turn:
            problem: BaseException | None = None
            try:
                problem = self._tell()
                if problem is not None:  # what it is about is put in order by connecting anew
                    self._client = None
                    problem = self._tell()
            except LeaseLost as error:
                self.last_error = error
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever ails MLflow must not end the sweep
                problem = error
            finally:
                self._tried.set()
            if problem is not None:
                self._client = None
            self._note_change(problem)
            self._flushed = problem is None
            return self._flushed

    def _has_all(self) -> bool:
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

    def _died(self, error: BaseException) -> None:
        self.last_error = error
        self._tried.set()
        self._say(f"note: nothing more is written to MLflow until the session ends: {type(error).__name__}: {error}")

    def _note_change(self, problem: BaseException | None) -> None:
        """Note in the ledger when MLflow goes away and when it is back."""
        before, self.last_error = self.last_error, problem
        if (problem is None) == (before is None):
            return
        text = "MLflow has everything again" if problem is None else f"{type(problem).__name__}: {problem}"
        try:
            self._ledger.event("tracking_back" if problem is None else "tracking_lost", text[:500])
        except LeaseLost:
            raise
        except Exception as broken:  # noqa: BLE001 - a ledger that fails is the driver's to notice
            self.last_error = broken

    # One pass. What MLflow refuses of one run is returned; everything else is raised and ends the pass.

    def _tell(self) -> Exception | None:
        client = self._client or self._connect()
        self._client = client
        problem: Exception | None = None
        changed = self._ledger.unprojected_trials()
        for trial in changed:
            problem = _refusal(self._tell_state, client, trial) or problem
        for trial_id in self._ledger.waiting():
            trial = self._ledger.trial(trial_id)
            if trial.mlflow_run_id is not None:  # else it was started after the loop above, and the next pass has it
                problem = _refusal(self._tell_points, client, trial) or problem
        assert self._arms is not None
        problem = _refusal(self._arms.update, {trial.arm for trial in changed if trial.stage == "confirm"}) or problem
        return _refusal(self._tell_run, client) or problem

    def _connect(self) -> MlflowClient:
        """Make a client, and put the experiment, the parent run and what there is of nested runs in order."""
        client = connect(self._uri)
        settled = settle(client, self._ledger, artifact_root(self._uri))
        self._experiment_id, self._parent, self._adopted = settled.experiment, settled.parent, dict(settled.adopted)
        self._arms, self._metric = settled.arms, metadata.metric_of(self._ledger.run)
        self._shown, self._settled = None, True
        self._tried.set()
        return client

    def _nested_run(self, client: MlflowClient, trial: Trial) -> str:
        """Return the id of the trial's run: recorded, else adopted, else made."""
        if trial.mlflow_run_id:
            return trial.mlflow_run_id
        run_id, made = self._adopted.pop(trial.id, None), False
        if run_id is None:
            tags = metadata.identity(self._ledger.run, "trial")
            tags |= {"mlflow.parentRunId": self._parent, "orchestrator.trial": trial.id}
            start = None if trial.started is None else int(trial.started * 1000)
            new = client.create_run(self._experiment_id, start, tags, run_name=metadata.name(trial))
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
        params = [Param(key, value) for key, value in metadata.params(trial).items()]
        attempts = self._ledger.attempts(trial.id)
        tags = [RunTag(key, value) for key, value in metadata.tags(trial, attempts, self._metric)]
        ended = int((trial.ended or 0) * 1000)
        plotted = {point.key for point in self._ledger.points(trial.id)}
        metrics = [Metric(key, value, ended, trial.step or 0) for key, value in metadata.finals(trial, plotted)]
        for some in metadata.parts(params, metadata.PARAMS_PER_CALL):
            client.log_batch(run_id, params=some)
        client.log_batch(run_id, metrics=metrics, tags=tags)
        if data := metadata.datasets(trial):
            client.log_inputs(run_id, data)
        if trial.state in ("queued", "running"):
            client.update_run(run_id, metadata.status_of(trial))
        else:
            client.set_terminated(run_id, metadata.status_of(trial), ended)
        self._ledger.mark_trial_projected(trial)

    def _tell_points(self, client: MlflowClient, trial: Trial) -> None:
        from mlflow.entities import Metric

        assert trial.mlflow_run_id is not None
        while points := self._ledger.unprojected_points(POINTS_PER_CALL, trial.id):
            told = [*points, *metadata.pairs_seen(trial, points, self._metric)]
            told.sort(key=lambda point: point.key != self._metric)  # Compare opens on the key that came first
            metrics = [Metric(point.key, point.value, int(point.time * 1000), point.step) for point in told]
            for some in metadata.parts(metrics, metadata.METRICS_PER_CALL):
                client.log_batch(trial.mlflow_run_id, metrics=some)
            self._ledger.mark_projected(points)

    def _tell_run(self, client: MlflowClient) -> None:
        """Update the parent run: its state, how many trials are in each state, and the report if there is a new one.
        Then log the encoders."""
        from mlflow.entities import RunTag

        run, counts, parent = self._ledger.run, self._ledger.counts(), self._parent
        if self._shown != (run.state, counts):
            tags = {"orchestrator.state": run.state, **{f"trials.{state}": str(n) for state, n in counts.items()}}
            client.log_batch(parent, tags=[RunTag(key, value) for key, value in tags.items()])
            if run.state in ("planned", "queued", "running"):
                client.update_run(parent, metadata.RUN_STATUS[run.state])
            else:
                ends = [trial.ended for trial in self._ledger.trials() if trial.ended is not None]
                client.set_terminated(parent, metadata.RUN_STATUS[run.state], int(max(ends) * 1000) if ends else None)
            self._shown = (run.state, counts)
        if self._report is not None:
            self._tell_report(client, run, self._report)
        while self._encoders:
            encoder = self._encoders[0]
            made = replace(encoder, trial=self._ledger.trial(encoder.trial.id))
            model = encoders.tell(client, self._experiment_id, run, made, metadata.params(encoder.trial))
            self._ledger.event(LOGGED, f"the best encoder of {made.trial.arm} is MLflow's model {model}", made.trial.id)
            self._encoders = self._encoders[1:]

    def _tell_report(self, client: MlflowClient, run: Run, report: Report) -> None:
        from mlflow.entities import Metric, RunTag

        tags = {metadata.NOTE: view.with_links(report.note, run, self._experiment_id), **report.tags}
        client.log_batch(self._parent, tags=[RunTag(key, metadata.short(value)) for key, value in tags.items()])
        if verdict := report.tags.get("verdict"):
            description = f"{view.question(run)} {markdown(beginning(verdict, LONGEST_VERDICT))}".strip()
            client.set_experiment_tag(self._experiment_id, metadata.NOTE, metadata.short(description))
        client.log_artifacts(self._parent, str(report.folder), "report")
        client.log_dict(self._parent, {"sweep": run.sweep, "environment": run.environment}, "sweep.json")
        if data := metadata.datasets(*self._ledger.trials(state="done")):
            client.log_inputs(self._parent, data)
        at_ms = int(run.created * 1000)
        metrics = [Metric(key, value, at_ms, report.step) for key, value in report.metrics.items()]
        for some in metadata.parts(metrics, metadata.METRICS_PER_CALL):
            client.log_batch(self._parent, metrics=some)
        if self._report is report:
            self._report = None


def _refusal(tell: Callable[P, None], *arguments: P.args, **keywords: P.kwargs) -> Exception | None:
    """Tell something. Return what MLflow has against it, if that is about one run and not about MLflow."""
    from mlflow import MlflowException

    try:
        tell(*arguments, **keywords)
    except MlflowException as error:
        if error.error_code not in REFUSALS:
            raise
        return error
    return None
