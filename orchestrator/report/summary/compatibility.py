"""Whether the arms of several runs can be compared at all, and in what the runs differ that a reader should know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from pydantic import JsonValue

from jobs.config import JobConfig, canonical
from orchestrator.ledger.stored import JsonObject, SweepTable
from orchestrator.report.summary.records import Summary
from orchestrator.run_dir.folder import RunError
from orchestrator.sweep import flatten, merged
from orchestrator.sweep.values import RENAMED

JUDGED = (
    *("task", "data.confirm", "data.judged_columns"),
    *("evaluate.head", "evaluate.neighbours", "evaluate.references", "evaluate.judge"),
)
"""Job keys that make a metric what it is: which rows, looked at how."""

JUDGED_TABLES = ("data.confirm.", "evaluate.judge.", "evaluate.judge_options.")
"""How the keys of tables begin that do."""

SYSTEM = {
    "commit": "what changed between them may be the difference",
    "versions": "rounding, and with it results, may differ",
    "hardware": "times and memory do not compare",
}
"""What is recorded of a run's environment, and what it means when two runs differ in it."""

CODE = ("commit", "dirty", "diff", "version")
"""Keys of the environment that say which code was run."""

ASKED = ("command", "directory", "submitted")
"""And those that say how it was asked for, which may differ."""


def refuse(runs: Mapping[str, Summary], jobs: Mapping[str, Sequence[JsonObject]]) -> None:
    """Raise RunError for runs that do not share one metric, measured in the same way, naming all that differs.

    runs: name -> summary. jobs: name -> the jobs of its arms, flat.
    """
    named: dict[str, str] = {}
    for name, summary in runs.items():
        if summary.run in named:
            raise RunError(f"{named[summary.run]} and {name} are the same run; name each run once")
        named[summary.run] = name
    measures: dict[str, Mapping[str, JsonValue]] = {
        "metric.name": {name: summary.metric for name, summary in runs.items()},
        "metric.mode": {name: summary.mode for name, summary in runs.items()},
    }
    of_runs = {name: {own.name: own.mode for own in summary.metrics} for name, summary in runs.items()}
    for metric in dict.fromkeys(metric for own in of_runs.values() for metric in own):
        measures[f"the mode of {metric}"] = {name: own[metric] for name, own in of_runs.items() if metric in own}
    keys = [*JUDGED, *(key for table in JUDGED_TABLES for key in _keys(jobs, table))]
    if next(iter(runs.values())).metric in ("loss", "train/loss", "train/infonce"):
        # Its scale is another for every loss, temperature and batch.
        keys += [*_keys(jobs, "loss."), *_keys(jobs, "batch.")]
    measures |= {f"job.{key}": _values(jobs, key) for key in keys}
    apart = [f"{key} is {_by_run(of_run)}" for key, of_run in measures.items() if _differ(of_run)]
    if apart:
        raise RunError(
            f"these runs cannot be compared: {'; '.join(apart)}. Arms must have one metric, judged on the same rows "
            "in the same way; name only runs that have, or one run alone for its own verdict"
        )


def planned_jobs(sweep: SweepTable) -> list[JsonObject]:
    """Return the job of each of a run's arms as planned, by dotted key, defaults filled in, without tuned values."""
    arms = sweep["plan"]["arms"]
    whole = [merged(sweep.get("job", {}), arm["settings"]) | {"stage": "confirm", "seed": 0} for arm in arms]
    return [_by_todays_names(flatten(JobConfig.model_validate(job).model_dump(mode="json"))) for job in whole]


def _by_todays_names(job: dict[str, JsonValue]) -> JsonObject:
    """Move the values of a flat job to the names that their keys have today, and return it."""
    for former, today in RENAMED.items():
        value = job.pop(former, None)
        job[today] = job.get(today) if value is None else value
    return job


def differences(runs: Mapping[str, Summary], jobs: Mapping[str, Sequence[JsonObject]]) -> Iterable[str]:
    """Yield notes on runs that were not carried out alike: commit, versions, hardware, execution."""
    recorded = {name: _system(summary.environment) for name, summary in runs.items()}
    for title, warning in SYSTEM.items():
        keys = dict.fromkeys(key for titles in recorded.values() for key in titles[title])
        yield from _difference(title, warning, {key: _of_run(recorded, title, key) for key in keys})
    execution = {key.removeprefix("execution."): _values(jobs, key) for key in _keys(jobs, "execution.")}
    yield from _difference("execution", "times and memory do not compare", execution)


def _difference(title: str, warning: str, facts: Mapping[str, Mapping[str, JsonValue]]) -> Iterable[str]:
    differing = [f"{key} is {_by_run(of_run)}" for key, of_run in facts.items() if _differ(of_run)]
    if differing:
        yield f"The runs differ in {title}, so {warning}: {'; '.join(differing)}."


def _of_run(recorded: Mapping[str, Mapping[str, JsonObject]], title: str, key: str) -> JsonObject:
    return {name: titles[title].get(key) for name, titles in recorded.items()}


def _keys(jobs: Mapping[str, Sequence[JsonObject]], prefix: str) -> list[str]:
    return sorted({key for arms in jobs.values() for arm in arms for key in arm if key.startswith(prefix)})


def _system(environment: JsonObject) -> dict[str, JsonObject]:
    """Group what was recorded of a run's environment by the titles of SYSTEM."""
    titles = {"python": "versions", "packages": "versions"} | dict.fromkeys(CODE, "commit")
    by_title: dict[str, JsonObject] = {title: {} for title in SYSTEM}
    for key, value in flatten(environment).items():
        if key not in ASKED:
            by_title[titles.get(key.partition(".")[0], "hardware")][key.removeprefix("packages.")] = value
    return by_title


def _values(jobs: Mapping[str, Sequence[JsonObject]], key: str) -> JsonObject:
    """Return for each run the value of a key in all its arms, or the list of its values."""
    by_name: JsonObject = {}
    for name, arms in jobs.items():
        values = list({canonical(arm.get(key)): arm.get(key) for arm in arms}.values())
        by_name[name] = values[0] if len(values) == 1 else sorted(values, key=str)
    return by_name


def _differ(of_run: Mapping[str, JsonValue]) -> bool:
    return len({canonical(value) for value in of_run.values()}) > 1


def _by_run(of_run: Mapping[str, JsonValue]) -> str:
    """Say which value is in which runs: `0.05 in a and b, 0.1 in c`."""
    names: dict[str, list[str]] = {}
    for name, value in of_run.items():
        shown = "none" if value is None else value if isinstance(value, str) else canonical(value)
        names.setdefault(shown, []).append(name)
    return ", ".join(f"{shown} in {' and '.join(which)}" for shown, which in names.items())
