"""The ledger: the database that says what is true of a sweep.

Optuna's studies and MLflow's runs are rebuilt from it, and Ray Tune only carries out what it says. Every change of
state is one transaction; every write of a driver checks the fencing token of its lease inside that transaction; the
first value of a point stands. Imports neither torch nor ray nor mlflow nor optuna.
"""

from orchestrator.ledger.database import damage_at, probe, sqlite_url
from orchestrator.ledger.ledger import Ledger
from orchestrator.ledger.outage import OUTAGE_S, Outage
from orchestrator.ledger.readonly import Finished, finished
from orchestrator.ledger.records import (
    NOTED,
    TRIAL_STATES,
    WAITS,
    Attempt,
    AttemptState,
    Event,
    Frozen,
    LeaseHeld,
    LeaseLost,
    LedgerAway,
    LedgerDamaged,
    LedgerError,
    LedgerMissing,
    LedgerUnavailable,
    Outcome,
    Point,
    Run,
    RunState,
    Stage,
    Suggestion,
    Trial,
    TrialState,
    objective,
)
from orchestrator.system.process import this_process

__all__ = [
    "NOTED",
    "OUTAGE_S",
    "TRIAL_STATES",
    "WAITS",
    "Attempt",
    "AttemptState",
    "Event",
    "Finished",
    "Frozen",
    "LeaseHeld",
    "LeaseLost",
    "Ledger",
    "LedgerAway",
    "LedgerDamaged",
    "LedgerError",
    "LedgerMissing",
    "LedgerUnavailable",
    "Outage",
    "Outcome",
    "Point",
    "Run",
    "RunState",
    "Stage",
    "Suggestion",
    "Trial",
    "TrialState",
    "damage_at",
    "finished",
    "objective",
    "probe",
    "sqlite_url",
    "this_process",
]
