"""The best encoder of each arm as a model of MLflow, which `mlflow.pyfunc.load_model` loads.

A model is looked for by its tags before it is made, and is READY only once all of its files are there: telling MLflow
again adds nothing, and what a kill left half is made anew.
"""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

from jobs.core.plain import visible
from orchestrator.ledger import Event, Run, Trial
from orchestrator.system import scratch

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import LoggedModel

MOVED, LOGGED = "tracking_moved", "encoder_logged"
"""Kinds of events: MLflow has to be told everything, or has lost the encoder of one trial; it has that encoder."""

REQUIREMENTS = ("mlflow", "numpy", "torch", "transformers")
"""What loading a model needs, in the versions that made it."""


@dataclass(frozen=True)
class Encoder:
    """An arm's best encoder."""

    trial: Trial
    folder: Path
    """As `orchestrator export` wrote it."""


def tell(client: MlflowClient, experiment: str, run: Run, encoder: Encoder, params: Mapping[str, str]) -> str:
    """Log an encoder as a model of the experiment, made by its trial's run. Returns the model's id."""
    trial = encoder.trial
    assert trial.mlflow_run_id is not None
    kept, wanted = None, (trial.id, trial.mlflow_run_id)
    for model in models(client, experiment, run):
        if model.tags.get("arm") != trial.arm:
            continue
        if kept is None and (model.tags.get("orchestrator.trial"), model.source_run_id) == wanted and _is_whole(model):
            kept = model.model_id
        else:  # half told, told twice, of a run that is gone, or of a trial that is not the best any more
            client.delete_logged_model(model.model_id)
    if kept is None:
        tags = {"arm": trial.arm, "seed": trial.seed, "orchestrator.trial": trial.id, "orchestrator.run": run.uuid}
        made = client.create_logged_model(
            experiment,
            name=name_of(trial.arm),
            source_run_id=trial.mlflow_run_id,
            tags={key: str(value) for key, value in tags.items()},
            params=dict(params),
            model_type="encoder",
        )
        kept = made.model_id
        with scratch.folder("model") as temporary:
            folder = temporary / "model"
            save(encoder.folder, folder, model_id=kept)
            client.log_model_artifacts(kept, str(folder))
        client.finalize_logged_model(kept, "READY")
    _link(client, trial.mlflow_run_id, kept, trial.step or 0)
    return str(kept)


def logged(events: Iterable[Event]) -> set[str]:
    """Find the trials whose encoders MLflow has, by the events of the ledger."""
    trials: set[str] = set()
    for event in events:
        if event.kind == MOVED:
            trials = trials - {event.trial} if event.trial else set()
        elif event.kind == LOGGED and event.trial:
            trials.add(event.trial)
    return trials


def save(encoder: Path, folder: Path, *, model_id: str | None = None) -> None:
    """Write an exported encoder as a folder in MLflow's format."""
    # MLflow warns of type hints of its own, and of a signature that it cannot infer: an encoder takes rows of any size.
    warnings.filterwarnings("ignore", message=r"(?s).*type hints? ")
    logging.getLogger("mlflow.pyfunc").setLevel(logging.ERROR)
    import mlflow

    mlflow.pyfunc.save_model(
        path=str(folder),
        mlflow_model=mlflow.models.Model(model_id=model_id),
        python_model=str(Path(__file__).with_name("pyfunc_model.py")),
        artifacts={"encoder": str(encoder)},
        pip_requirements=[f"{name}=={_public(metadata.version(name))}" for name in REQUIREMENTS],
    )


def name_of(arm: str) -> str:
    """Turn an arm's label into the name of a model, which may not hold / : . % and quotes."""
    return re.sub(r"[/:.%\"']", "-", visible(arm))


def models(client: MlflowClient, experiment: str, run: Run) -> list[LoggedModel]:
    """List MLflow's models of a run of the ledger, also those that a kill left half-made."""
    wanted = f"tags.`orchestrator.run` = '{run.uuid}'"
    page = client.search_logged_models([experiment], wanted)
    listed = [*page]
    while page.token:
        page = client.search_logged_models([experiment], wanted, page_token=page.token)
        listed += page
    return listed


def _is_whole(model: LoggedModel) -> bool:
    return str(model.status) == "READY"


def _link(client: MlflowClient, run_id: str, model_id: str, step: int) -> None:
    """Show the model on the page of the run that made it."""
    from mlflow.entities import LoggedModelOutput

    outputs = client.get_run(run_id).outputs
    if model_id not in [output.model_id for output in (outputs.model_outputs if outputs else [])]:
        client.log_outputs(run_id, [LoggedModelOutput(model_id, step)])


def _public(version: str) -> str:
    """Strip a version of its local label, such as +cpu, which no index has."""
    return version.partition("+")[0]
