"""What a nested run says of its trial beside numbers: a name, a description, tags to search by, the data."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from orchestrator.ledger import Attempt, Run, Trial

LONGEST_PARAM, LONGEST_TAG = 6000, 5000
"""What MLflow takes. It cuts longer parameters off in silence and refuses longer tags."""


def identity(run: Run, kind: str) -> dict[str, str]:
    """Tags by which a run of MLflow is known as ours."""
    return {"orchestrator.sweep": run.name, "orchestrator.run": run.uuid, "orchestrator.kind": kind}


def name(trial: Trial) -> str:
    """`flatnce #3 seed 0`, or `flatnce seed 7` in the confirm stage."""
    number = "" if trial.number is None else f" #{trial.number}"
    return f"{trial.arm}{number} seed {trial.seed}"


def tags(trial: Trial, attempts: Sequence[Attempt], metric: str) -> Iterator[tuple[str, str]]:
    """What a person filters by; and of every attempt that was different, or did not work, what and why."""
    told: dict[str, Any] = {"arm": trial.arm, "stage": trial.stage, "seed": trial.seed, "trial": trial.id}
    told |= {"state": trial.state, "attempts": trial.attempts}
    # A tag stays until it is overwritten, so what is over is told as empty.
    told |= {"orchestrator.outcome": trial.outcome, "orchestrator.failure": trial.failure}
    told |= {"orchestrator.message": trial.message, "orchestrator.suggestion": trial.number}
    told["mlflow.note.content"] = description(trial, metric)
    for attempt in attempts:
        if attempt.failure is not None:
            told[f"attempt.{attempt.number}.failure"] = attempt.failure
        told |= {f"attempt.{attempt.number}.{key}": value for key, value in flat(attempt.execution, "execution.")}
    for key, value in told.items():
        yield key, "" if value is None else short(str(value))


def description(trial: Trial, metric: str) -> str:
    """One sentence on a trial, in Markdown."""
    what = f"suggestion {trial.number + 1}, " if trial.number is not None else ""
    head = f"**{trial.arm}**, {trial.stage} stage, {what}seed {trial.seed}"
    value = "" if trial.metric is None else f": {metric} {trial.metric:.4f}"
    if trial.state == "failed":
        return f"{head}: failed ({trial.failure}): {trial.message}"
    diverged = ", diverged, so it has no metric" if trial.outcome == "diverged" else ""
    return f"{head}, {trial.state}{diverged}{value}"


def datasets(*trials: Trial) -> list[Any]:
    """The data of trials that have ended, as MLflow's inputs: what they trained on and were judged on, each once."""
    from mlflow.entities import Dataset, DatasetInput, InputTag

    found: dict[tuple[str, str], Any] = {}
    for one in (one for trial in trials for one in (trial.result or {}).get("data", ())):
        kind = one["source"].partition("://")[0] if "://" in one["source"] else "local"
        dataset = Dataset(
            one["source"],
            one["digest"],
            kind,
            json.dumps({"uri": one["source"]}),
            profile=json.dumps({"num_rows": one["rows"]}),
        )
        tag = InputTag("mlflow.data.context", one["context"])
        found.setdefault((one["source"], one["digest"]), DatasetInput(dataset, [tag]))
    return list(found.values())


def flat(job: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """A job as MLflow's parameters: dotted keys, the same ones for every trial, so that Compare lines them up."""
    for key, value in job.items():
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{prefix}{key}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value)
            yield f"{prefix}{key}", text if len(text) <= LONGEST_PARAM else text[: LONGEST_PARAM - 4] + " ..."


def short(text: str) -> str:
    """At most LONGEST_TAG characters."""
    return text if len(text) <= LONGEST_TAG else text[: LONGEST_TAG - 4] + " ..."
