"""What each verb prints with --json, as a JSON Schema with a version.

Made of the types that the program makes it of, so that the two cannot part. A program that goes by a schema is served
as long as its version stays: keys may be added, and none of those that are required goes or means something else.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Literal, NotRequired, TypedDict, get_args

import click

from jobs.config import nearest
from orchestrator import statistics
from orchestrator.cli.schema.shapes import Schema, Shapes
from orchestrator.cli.schema.sweep import DIALECT
from orchestrator.cli.submission.verbs import ListedJob
from orchestrator.preflight.estimate.model import EstimateSummary
from orchestrator.preflight.findings import FindingsSummary
from orchestrator.preflight.spread import PowerSummary
from orchestrator.report.incumbent import Answer
from orchestrator.report.summary import records
from orchestrator.report.swaps import SwapSummary
from orchestrator.run_dir.export import Exported
from orchestrator.run_dir.status import Status
from orchestrator.statistics import Interval
from orchestrator.statistics.rows import VarianceParts
from orchestrator.sweep.plan import Summary as PlanSummary
from orchestrator.system.versions import VERSIONS
from orchestrator.tracking.ui import Pages
from orchestrator.verify import Verified


class PlanAnswer(PlanSummary):
    """What a sweep would run, what it can show and how long it takes."""

    power: list[PowerSummary]
    """Of every contrast that is tested."""
    estimate: EstimateSummary


class Jobs(TypedDict):
    """The jobs of a cluster that drive or drove runs, oldest first: of `status --address` without a run."""

    jobs: list[ListedJob]


class Difference(TypedDict):
    """The difference of one seed."""

    seed: int
    value: float | None
    """a - b; None where a side diverged."""
    diverged: NotRequired[Literal["a", "b", "both"]]
    """Which side that was."""


ANSWERS: dict[str, tuple[type, ...]] = {
    "plan": (PlanAnswer,),
    "doctor": (FindingsSummary,),
    "status": (Status, Jobs),
    "compare": (records.Summary, records.MultiRunSummary, records.OutsideSummary, Answer),
    "verify": (Verified,),
    "export": (Exported,),
    "ui": (Pages,),
}
"""By verb: what it may print."""


def answer_schema(verb: str) -> Schema:
    """Return the schema of what a verb prints with --json. Raises UsageError for a verb that prints none."""
    if verb not in ANSWERS:
        raise click.UsageError(
            f"{verb} prints no JSON that has a schema{nearest(verb, list(ANSWERS))}; these do: {', '.join(ANSWERS)}. "
            "Without a verb: the schema of a sweep file"
        )
    shapes = Shapes(SPECIAL)
    version: Schema = {"const": VERSIONS[verb], "description": "Of this schema."}
    bodies = [_with_version(shapes.body(kind), version) for kind in ANSWERS[verb]]
    answer = bodies[0] if len(bodies) == 1 else {"anyOf": bodies}
    return {
        "$schema": DIALECT,
        "$id": f"urn:contrastive-orchestrator:{verb}:{VERSIONS[verb]}",
        "title": f"orchestrator {verb} --json",
        "version": VERSIONS[verb],
        **answer,
        "$defs": dict(sorted(shapes.defs.items())),
    }


def _with_version(body: Schema, version: Schema) -> Schema:
    properties = {"version": version, **body["properties"]} | {"version": version}
    return body | {"properties": properties, "required": list(dict.fromkeys(["version", *body["required"]]))}


# What does not become JSON field by field: see `to_json` of each.


def _arm(shapes: Shapes) -> Schema:
    """Return the schema of an arm: what training took is two keys for each kind of budget; `run` and `arm` are there
    among those of several runs."""
    body = shapes.fields(records.ArmSummary, without=["spent"], optional=["run", "arm", "by_metric"])
    spent: dict[str, Schema] = {}
    for kind in get_args(records.Kind):
        about = f"What training took in {kind}, "
        spent[kind] = shapes.of(float | None) | {"description": f"{about}on average; as planned while none has ended."}
        ends = f"{about}least and most, over the confirm trials that have ended."
        spent[f"{kind}_range"] = shapes.of(Interval | None) | {"description": ends}
    here = {name: shapes.of(str) | {"description": body["properties"][name].get("description", "")} for name in OF_RUNS}
    return body | {"properties": body["properties"] | spent | here}


OF_RUNS = ("run", "arm")
"""Keys of an arm that say whose it is, among the arms of several runs."""


class Sides(TypedDict):
    """A count for each side of a contrast."""

    a: int
    b: int
    both: int


class Compared(TypedDict):
    """What a contrast has beside what its test says."""

    n: int
    """Pairs, those with a side that diverged included."""
    interval_rows: Interval | None
    """As `interval`, on other rows of the same kind; None where nothing is known of rows."""
    diverged: Sides
    """Pairs where this side alone diverged, or both did."""
    divergence_p: float | None
    """McNemar's p that both arms diverge equally often; None where neither alone did."""
    outlying: list[int]
    """Seeds whose difference lies far from the others'."""
    differences: list[Difference]
    shared: dict[str, bool]
    """Hash -> whether both trials of every pair have it; without hashes that a trial did not record."""
    apart: dict[str, list[str]]
    """Hash -> the job keys that differ in a pair and may change it."""


def _comparison(shapes: Shapes) -> Schema:
    tested = shapes.fields(statistics.Comparison, without=["pairs"], optional=["metric"])
    own = shapes.fields(Compared)
    variance = shapes.named("Variance", shapes.fields(VarianceParts, without=["interval"]))
    return tested | {
        "properties": tested["properties"] | {"variance": variance} | own["properties"],
        "required": [*tested["required"], "variance", *own["required"]],
    }


def _judged(kind: type, shapes: Shapes, without: Sequence[str] = ()) -> Schema:
    """Return the schema of an answer, which says at which levels it judges."""
    body = shapes.fields(kind, without=without, optional=["metrics"])
    alpha = shapes.of(statistics.Alpha) | {"description": body["properties"]["alpha"].get("description", "")}
    return body | {"properties": body["properties"] | {"alpha": alpha}}


def _several(shapes: Shapes) -> Schema:
    body, run = _judged(records.MultiRunSummary, shapes, ["runs"]), _judged(records.Summary, shapes)
    name = shapes.of(str) | {"description": "What the answer calls the run."}
    run |= {"properties": {"name": name, **run["properties"]}, "required": ["name", *run["required"]]}
    items = shapes.named("RunOfSeveral", run)
    runs = {"type": "array", "items": items, "description": "Each run by its own plan."}
    return body | {"properties": body["properties"] | {"runs": runs}, "required": [*body["required"], "runs"]}


def _question(shapes: Shapes) -> Schema:
    body = shapes.fields(Answer, optional=["metric"])
    sentence = shapes.of(str) | {"description": "The answer in words."}
    return body | {
        "properties": body["properties"] | {"sentence": sentence},
        "required": [*body["required"], "sentence"],
    }


SPECIAL: dict[type, Callable[[Shapes], Schema]] = {
    records.ArmSummary: _arm,
    records.ComparisonSummary: _comparison,
    records.ExecutionPair: lambda shapes: shapes.fields(records.ExecutionPair, optional=["metric"]),
    SwapSummary: lambda shapes: shapes.fields(SwapSummary, optional=["metric"]),
    records.CodeGroup: lambda shapes: shapes.fields(records.CodeGroup, optional=["user_code"]),
    records.Summary: partial(_judged, records.Summary),
    records.OutsideSummary: partial(_judged, records.OutsideSummary),
    records.MultiRunSummary: _several,
    Answer: _question,
}
