"""Whether the arms of several runs can be compared at all, and in what the runs differ that a reader should know."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from jobs.config import JobConfig, canonical
from orchestrator.run_dir.folder import RunError
from orchestrator.sweep import flatten, merged

JUDGED = (
    *("task", "data.confirm", "data.judged_columns"),
    *("evaluate.head", "evaluate.neighbours", "evaluate.references"),
)
"""Job keys that make a metric what it is: which rows, looked at how."""

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

Json = dict[str, Any]


def refuse(runs: Mapping[str, Json], jobs: Mapping[str, Sequence[Json]]) -> None:
    """Raise RunError for runs whose metric is not one and the same measure, naming all that differs.

    runs: name -> answer. jobs: name -> the jobs of its arms, flat.
    """
    named: dict[str, str] = {}
    for name, one in runs.items():
        if one["run"] in named:
            raise RunError(f"{named[one['run']]} and {name} are the same run; name each run once")
        named[one["run"]] = name
    measures: dict[str, dict[str, Any]] = {
        f"metric.{key}": {name: one[answer] for name, one in runs.items()}
        for key, answer in (("name", "metric"), ("mode", "mode"))
    }
    keys = list(JUDGED)
    if next(iter(runs.values()))["metric"] in ("loss", "train/loss", "train/infonce"):
        # Its scale is another for every loss, temperature and batch.
        keys += [*_keys(jobs, "loss."), *_keys(jobs, "batch.")]
    measures |= {f"job.{key}": _values(jobs, key) for key in keys}
    apart = [f"{key} is {_by_run(of_run)}" for key, of_run in measures.items() if _differ(of_run)]
    if apart:
        raise RunError(
            f"these runs cannot be compared: {'; '.join(apart)}. Arms must have one metric, judged on the same rows "
            "in the same way; name only runs that have, or one run alone for its own verdict"
        )


def planned_jobs(sweep: Json) -> list[Json]:
    """The job of every arm of a run as planned, by dotted key, defaults filled in; tuned values are not in it."""
    arms = sweep["plan"]["arms"]
    whole = [merged(sweep["job"], arm["settings"]) | {"stage": "confirm", "seed": 0} for arm in arms]
    return [flatten(JobConfig.model_validate(job).model_dump(mode="json")) for job in whole]


def differences(runs: Mapping[str, Json], jobs: Mapping[str, Sequence[Json]]) -> Iterable[str]:
    """Notes on runs that were not carried out alike: commit, versions, hardware, execution."""
    recorded = {name: _system(one["environment"]) for name, one in runs.items()}
    for title, warning in SYSTEM.items():
        keys = dict.fromkeys(key for one in recorded.values() for key in one[title])
        yield from _difference(title, warning, {key: _of_run(recorded, title, key) for key in keys})
    execution = {key.removeprefix("execution."): _values(jobs, key) for key in _keys(jobs, "execution.")}
    yield from _difference("execution", "times and memory do not compare", execution)


def _difference(title: str, warning: str, facts: Mapping[str, Mapping[str, Any]]) -> Iterable[str]:
    told = [f"{key} is {_by_run(of_run)}" for key, of_run in facts.items() if _differ(of_run)]
    if told:
        yield f"The runs differ in {title}, so {warning}: {'; '.join(told)}."


def _of_run(recorded: Mapping[str, Json], title: str, key: str) -> Json:
    return {name: one[title].get(key) for name, one in recorded.items()}


def _keys(jobs: Mapping[str, Sequence[Json]], prefix: str) -> list[str]:
    return sorted({key for arms in jobs.values() for arm in arms for key in arm if key.startswith(prefix)})


def _system(environment: Json) -> dict[str, Json]:
    """What was recorded of a run's environment, by the titles of SYSTEM."""
    titles = {"python": "versions", "packages": "versions"} | dict.fromkeys(CODE, "commit")
    found: dict[str, Json] = {title: {} for title in SYSTEM}
    for key, value in flatten(environment).items():
        if key not in ASKED:
            found[titles.get(key.partition(".")[0], "hardware")][key.removeprefix("packages.")] = value
    return found


def _values(jobs: Mapping[str, Sequence[Json]], key: str) -> dict[str, Any]:
    """name -> the value of a key in all arms of that run, or the list of its values."""
    found: dict[str, Any] = {}
    for name, arms in jobs.items():
        values = list({canonical(arm.get(key)): arm.get(key) for arm in arms}.values())
        found[name] = values[0] if len(values) == 1 else sorted(values, key=str)
    return found


def _differ(of_run: Mapping[str, Any]) -> bool:
    return len({canonical(value) for value in of_run.values()}) > 1


def _by_run(of_run: Mapping[str, Any]) -> str:
    """`0.05 in a and b, 0.1 in c`."""
    names: dict[str, list[str]] = {}
    for name, value in of_run.items():
        shown = "none" if value is None else value if isinstance(value, str) else canonical(value)
        names.setdefault(shown, []).append(name)
    return ", ".join(f"{shown} in {' and '.join(which)}" for shown, which in names.items())
