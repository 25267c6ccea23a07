"""The pages of MLflow's UI on which a sweep is looked at: its arms, their curves, and what was tried to tune them.

MLflow keeps a page's state that somebody shares, or saves under a name, as a tag of the experiment; it applies it where
an address names the tag, and lists it under Views. So the pages are the same for everybody, and who wants another one
makes it without losing these.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Iterator, Sequence
from typing import Literal

from pydantic import JsonValue

from jobs.core.plain import beginning, markdown
from orchestrator.ledger import Run
from orchestrator.ledger.stored import JsonObject
from orchestrator.tracking import metadata

TAG = "mlflow.sharedViewState."
"""What the experiment's tag is called, before the key of the view."""

KIND = ("mlflow.experimentKind", "custom_model_development")
"""Tag of an experiment that trains models; MLflow's pages are else those for language-model applications."""

PRIMARY = "mlflow.experiment.primaryMetric."
"""Tags of an experiment that name the metric which charts of MLflow's own begin with, and its direction."""

TRAINING = "workflowType=machine_learning"
"""In addresses: MLflow's pages are else those for language-model applications, unless a browser remembers."""

LONGEST_QUESTION = 1000
"""Characters of a question in a description, which has room for the verdict too."""

LONGEST_STATE, LONGEST_TAG = 12_000, 20_000
"""Characters from which a view's state is compressed, as MLflow does it; and those that a tag of an experiment has."""

NAME_COLUMN, CREATED_COLUMN = "attributes.`Run Name`", "runDateAndNestInfo"
"""What MLflow's table calls its first columns, which come first wherever they are put."""

Page = Literal["arms", "curves", "search"]
"""`arms`: one run an arm; `curves`: the confirm trials by arm; `search`: the tune trials."""

SUFFIX: dict[Page, str] = {"curves": "", "arms": "a", "search": "s"}
"""Of a page's key behind that of the run: earlier versions knew one page, of the confirm trials."""


def key(uuid: str, page: Page = "curves") -> str:
    """Return the key of one of a run's views in addresses."""
    return uuid.replace("-", "")[:12] + SUFFIX[page]


def address(experiment_id: str, uuid: str, page: Page, *, charts: bool) -> str:
    """Build the address of a page, from where a server's begins."""
    shown = f"viewStateShareKey={key(uuid, page)}&compareRunsMode={'CHART' if charts else 'TABLE'}"
    return f"#/experiments/{experiment_id}/runs?{TRAINING}&{shown}"


def tags(run: Run) -> dict[str, str]:
    """Build the tags of the experiment: its kind, its description, and the metric and the views of a run that has a
    metric."""
    values = {KIND[0]: KIND[1], metadata.NOTE: question(run)}
    if not is_known(run):
        return values
    metric = run.sweep["metric"]
    values |= {f"{PRIMARY}name": metric["name"], f"{PRIMARY}greaterIsBetter": str(metric.get("mode") != "min")}
    views = {TAG + key(run.uuid, page): _saved(run, page) for page in pages(run)}
    return values | {name: view for name, view in views.items() if len(view) <= LONGEST_TAG}


def is_known(run: Run) -> bool:
    """Return whether a ledger says what its arms are compared by."""
    return "metric" in run.sweep and "plan" in run.sweep


def pages(run: Run) -> list[Page]:
    """List the pages that a run has."""
    return ["arms", "curves", *(["search"] if run.sweep.get("tune") else [])]  # type: ignore[list-item]


def question(run: Run) -> str:
    """Format a run's question, or the beginning of a long question, as a description in Markdown."""
    return markdown(beginning(str(run.sweep.get("question", "")), LONGEST_QUESTION), starts=True)


def with_links(note: str, run: Run, experiment_id: str) -> str:
    """Put links to a run's pages behind the first line of its description, which MLflow folds below a few lines."""
    if not is_known(run):
        return note
    named: list[tuple[str, Page, bool]] = [("arms as a table", "arms", False), ("as charts", "arms", True)]
    named += [(page, page, True) for page in pages(run) if page != "arms"]
    linked = [f"[{text}]({address(experiment_id, run.uuid, page, charts=charts)})" for text, page, charts in named]
    if run.mlflow_run_id is not None:
        report = f"#/experiments/{experiment_id}/runs/{run.mlflow_run_id}/artifacts/report/report.html?{TRAINING}"
        linked.insert(0, f"[report]({report})")
    head, _, rest = note.partition("\n")
    return f"{head} &nbsp; {', '.join(linked)}\n{rest}"


def _saved(run: Run, page: Page) -> str:
    """Build a view as MLflow saves it under a name."""
    state = json.dumps(_state(run, page))
    if len(state) > LONGEST_STATE:
        state = f"deflate;{base64.b64encode(zlib.compress(state.encode())).decode()}"
    created = int(run.created * 1000)
    return json.dumps({"name": page.capitalize(), "createdAt": created, "updatedAt": created, "state": state})


def _state(run: Run, page: Page) -> JsonObject:
    metric = run.sweep["metric"]["name"]
    stage = {"arms": "arm", "curves": "confirm", "search": "tune"}[page]
    columns, sections = _columns(run, page), list(_sections(run, page))
    shown = [name for name, _ in columns]
    order: list[JsonValue] = [NAME_COLUMN, CREATED_COLUMN, *shown, "duration"]
    widths: JsonObject = {NAME_COLUMN: 220, CREATED_COLUMN: 125, **dict(columns)}
    return {
        "searchFilter": f"tags.`orchestrator.run` = '{run.uuid}' AND tags.stage = '{stage}'",
        "orderByKey": f"metrics.`{metric}`",
        "orderByAsc": run.sweep["metric"].get("mode") == "min",
        "selectedColumns": [*shown],
        "columnOrder": order,
        "columnWidths": widths,
        "groupBy": _group(run, page),
        "groupsExpanded": {},
        "useGroupedValuesInCharts": page == "curves",
        "runsHiddenMode": "SHOW_ALL",
        "compareRunCharts": [chart for _, charts in sections for chart in charts],
        "compareRunSections": [section for section, _ in sections],
        "isAccordionReordered": True,  # else MLflow sorts the sections by name
        "globalLineChartConfig": {"xAxisKey": "step", "lineSmoothness": 0, "selectedXAxisMetricKey": ""},
    }


def _group(run: Run, page: Page) -> JsonObject | None:
    """Group confirm trials by arm; and arms by all compared keys but the first, within which the levels of the first
    are compared."""
    if page == "curves":
        keys = [("tag", "arm")]
    else:
        keys = [("param", key) for key in list(run.sweep.get("compare", {}))[1:]] if page == "arms" else []
    listed: list[JsonValue] = [{"mode": mode, "groupByData": name} for mode, name in keys]
    return {"aggregateFunction": "average", "groupByKeys": listed} if listed else None


def _columns(run: Run, page: Page) -> list[tuple[str, int]]:
    """List the columns of the table and their widths: compared keys, tuned keys, the metric, what became of it."""
    metric, (compared, tuned) = run.sweep["metric"]["name"], metadata.varied(run)
    named = [("params", key) for key in (*compared, *tuned)]
    if page == "arms":
        for keys in map(metadata.ArmKeys.of, metadata.judged_by(run)):
            named += [("metrics", key) for key in (keys.mean, keys.low, keys.high, keys.sd, keys.n)]
        named += [("tags", key) for key in ("outcome", "seeds")]
    else:
        named += [("metrics", metric), ("tags", "state"), ("tags", "outcome")]
    return [(f"{kind}.`{key}`", min(180, max(80, 24 + 8 * len(key)))) for kind, key in named]


def _sections(run: Run, page: Page) -> Iterator[tuple[JsonObject, list[JsonValue]]]:
    """Yield the parts of a page and the charts of each."""
    metric, (compared, tuned) = run.sweep["metric"]["name"], metadata.varied(run)
    for number, name in enumerate(metadata.judged_by(run) if page == "arms" else ()):
        keys, behind = metadata.ArmKeys.of(name), f" {number + 1}" if number else ""
        upright = _line(f"interval{behind}", keys.interval, x=keys.place) | {"displayPoints": True}
        title = f"{name if number else 'The metric'} by arm, 95% intervals"
        yield _section(f"metric{behind}", title, 2, [_bar(f"bars{behind}", name), upright])
    if page == "curves":
        own = metadata.is_own_loop(str(run.sweep.get("job", {}).get("task")))
        yield _section(
            "curves", "Confirm trials by arm", 1, [_line("curve", metric, x=None if own else metadata.PAIRS)]
        )
        costs = ("samples_per_second", "peak_memory_mb")
        yield _section("costs", "What they took", 2, [_bar(key, key) for key in costs])
    elif compared or tuned:
        chart: JsonObject = {"selectedParams": [*compared, *tuned], "selectedMetrics": [metric], "showAllRuns": True}
        yield _section("keys", "Compared and tuned keys", 1, [_chart("parallel", "PARALLEL", **chart)])
    if page == "search":
        yield _section("tuned", "The metric against each tuned key", 2, [_scatter(key, metric) for key in tuned])


def _section(name: str, title: str, columns: int, charts: Sequence[JsonObject]) -> tuple[JsonObject, list[JsonValue]]:
    section: JsonObject = {"uuid": name, "name": title, "display": True, "isReordered": False, "columns": columns}
    section |= {"deleted": False, "isGenerated": False}
    return section, [chart | {"metricSectionId": name} for chart in charts]


def _bar(name: str, key: str) -> JsonObject:
    return _chart(name, "BAR", metricKey=key, displayName=key)


def _line(name: str, key: str, *, x: str | None) -> JsonObject:
    """Build a line chart, not smoothed, over another metric or over steps."""
    axis: JsonObject = {"xAxisKey": "step"} if x is None else {"xAxisKey": "metric", "selectedXAxisMetricKey": x}
    own: JsonObject = {"useGlobalXaxisKey": False, "useGlobalLineSmoothing": False, "lineSmoothness": 0}
    scales: JsonObject = {"scaleType": "linear", "xAxisScaleType": "linear", "yAxisKey": "metric"}
    return _chart(name, "LINE", metricKey=key, displayName=key, **axis, **own, **scales)


def _scatter(key: str, metric: str) -> JsonObject:
    x, y = {"key": key, "type": "PARAM"}, {"key": metric, "type": "METRIC"}
    return _chart(f"scatter {key}", "SCATTER", xaxis={**x}, yaxis={**y})


def _chart(name: str, kind: str, **settings: JsonValue) -> JsonObject:
    shared: JsonObject = {"uuid": name, "type": kind, "runsCountToCompare": 100, "deleted": False, "isGenerated": False}
    return shared | settings
