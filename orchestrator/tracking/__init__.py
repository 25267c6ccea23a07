"""MLflow as a projection of the ledger: what the ledger says is copied there, and nothing is ever read back from it.

MLflow is imported inside functions: it takes seconds, which a thread spends while the first trial is starting.
"""

from orchestrator.tracking.encoders import LOGGED, MOVED, Encoder, logged
from orchestrator.tracking.projection import Projection
from orchestrator.tracking.runs import MlflowRun, runs_of
from orchestrator.tracking.store import (
    UI_ENVIRONMENT,
    TrackingUnavailable,
    check,
    compare_address,
    embedded_uri,
    experiment_address,
    run_address,
    ui_command,
)

__all__ = [
    "LOGGED",
    "MOVED",
    "UI_ENVIRONMENT",
    "Encoder",
    "MlflowRun",
    "Projection",
    "TrackingUnavailable",
    "check",
    "compare_address",
    "embedded_uri",
    "experiment_address",
    "logged",
    "run_address",
    "runs_of",
    "ui_command",
]
