"""The sweep file: one question, what is compared, what is tuned, how much.

Imports no torch, ray, optuna or mlflow: `orchestrator --help` and `plan` must be quick.
"""

from orchestrator.sweep.components import code_of
from orchestrator.sweep.load import load, loads, renamed
from orchestrator.sweep.model import Arm, Confirm, Resources, Retry, Space, Sweep, Tune, arms_of, resolved
from orchestrator.sweep.model.metric import Metric
from orchestrator.sweep.values import flatten, merged

__all__ = [
    "Arm",
    "Confirm",
    "Metric",
    "Resources",
    "Retry",
    "Space",
    "Sweep",
    "Tune",
    "arms_of",
    "code_of",
    "flatten",
    "load",
    "loads",
    "merged",
    "renamed",
    "resolved",
]
