"""The page of MLflow's UI on which a sweep is looked at: confirm trials grouped by arm, the charts that matter first.

MLflow keeps a page's state that somebody shares as a tag of the experiment, and applies it where an address names the
tag. So the page is the same for everybody, and who wants another one makes it without losing this one.
"""

from __future__ import annotations

import json

from pydantic import JsonValue

from jobs.core.plain import beginning, markdown
from orchestrator.ledger import Run

TAG = "mlflow.sharedViewState."
"""What the experiment's tag is called, before the key of the view."""

KIND = ("mlflow.experimentKind", "custom_model_development")
"""Tag of an experiment that trains models; MLflow's pages are else those for language-model applications."""

NOTE = "mlflow.note.content"
"""Tag that MLflow shows as a description, of a run or of an experiment."""

LONGEST_QUESTION = 1000
"""Characters of a question in a description, which has room for the verdict too."""

SECTION = "comparison"


def key(uuid: str) -> str:
    """Return the key of a run's view in addresses."""
    return uuid.replace("-", "")[:12]


def tags(run: Run) -> dict[str, str]:
    """Build the tags of the experiment: its kind, its description, and the view of this run, if it has a metric."""
    values = {KIND[0]: KIND[1], NOTE: question(run)}
    return values | ({TAG + key(run.uuid): state(run)} if "metric" in run.sweep else {})


def question(run: Run) -> str:
    """Format a run's question, or the beginning of a long question, as a description in Markdown."""
    return markdown(beginning(str(run.sweep.get("question", "")), LONGEST_QUESTION), starts=True)


def state(run: Run) -> str:
    """Build the view as MLflow keeps it."""
    metric = run.sweep["metric"]["name"]
    own = f"tags.`orchestrator.run` = '{run.uuid}'"
    charts = [
        _chart("metric", "LINE", metricKey=metric, displayName=metric),
        _chart("speed", "BAR", metricKey="samples_per_second", displayName="samples_per_second"),
        _chart("memory", "BAR", metricKey="peak_memory_mb", displayName="peak_memory_mb"),
    ]
    section = {"uuid": SECTION, "name": "Comparison by arm, confirm seeds", "display": True, "isReordered": False}
    view = {
        "searchFilter": f"{own} AND tags.stage = 'confirm'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": run.sweep["metric"].get("mode") == "min",
        "groupBy": {"aggregateFunction": "average", "groupByKeys": [{"mode": "tag", "groupByData": "arm"}]},
        "groupsExpanded": {},
        "useGroupedValuesInCharts": True,
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": charts,
        "compareRunSections": [section | {"deleted": False, "isGenerated": False}],
        "isAccordionReordered": False,
    }
    return json.dumps(view)


def _chart(name: str, kind: str, **settings: str) -> dict[str, JsonValue]:
    shared: dict[str, JsonValue] = {
        "uuid": f"{SECTION}-{name}",
        "type": kind,
        "metricSectionId": SECTION,
        "runsCountToCompare": 100,
    }
    return shared | {"deleted": False, "isGenerated": False} | settings
