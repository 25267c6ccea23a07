"""The components that a sweep names by import path: the user's code collected, and each tried in a child process.

A sweep of built-in names alone starts no process here.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TypedDict

from pydantic import JsonValue, ValidationError

from jobs.config import ConfigIssue, JobConfig, canonical
from jobs.config.components import AFTER, JUDGE, KINDS, LOSS, Kind, is_import_path, is_of_batch, is_option, metric_name
from jobs.config.user_code import HERE, CodeError, UserCode, collect
from orchestrator.sweep.model import Arm, Sweep, arms_of
from orchestrator.sweep.space import conditions

MOST_TRIED = 256
"""Settings of an arm's components that are tried, spread evenly over all that a search may come to."""

TRIAL_S = 600


class _Answer(TypedDict):
    """What `jobs.train.components` prints of a component that it was asked about."""

    faults: list[tuple[str, str, str]]
    """Key, what was found, what is expected."""

    distribution: tuple[str, str] | None
    """Name and version of installed code."""


def built_in() -> JsonValue:
    """List the built-in components, as `jobs.config.catalogue` prints them. Raises CodeError where it fails."""
    command = [sys.executable, "-m", "jobs.config.catalogue"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=TRIAL_S, check=False)
    if done.returncode != 0:
        raise CodeError(f"the built-in components cannot be listed: {_last_line(done.stderr)}")
    listed: JsonValue = json.loads(done.stdout)
    return listed


def code_of(sweep: Sweep, base: Path) -> UserCode | None:
    """Collect the user's code of a sweep, its paths starting from `base`; None without any. Raises CodeError."""
    return None if sweep.code is None else collect(sweep.code.paths, base)


def component_issues(sweep: Sweep, code: UserCode | None) -> list[ConfigIssue]:
    """Find the faults of the sweep's components: in names, options, and what they do with a few random rows."""
    issues: list[ConfigIssue] = []
    for arm, answers in _answers(sweep, code):
        for answer in answers:
            for key, seen, expected in answer["faults"]:
                suffix = f" (arm {arm.label!r})" if arm.settings else ""
                issues.append(ConfigIssue(f"job.{key}", seen, f"{expected}{suffix}"))
    distinct = {(issue.key, issue.found, issue.expected.partition(" (arm ")[0]): issue for issue in reversed(issues)}
    return list(reversed(distinct.values()))


def distributions(sweep: Sweep, code: UserCode | None) -> dict[str, str]:
    """Return the installed distributions that components come from, as name -> version."""
    answers = [answer for _, answers in _answers(sweep, code) for answer in answers]
    return {name: version for answer in answers for name, version in [answer["distribution"] or (None, "")] if name}


def _answers(sweep: Sweep, code: UserCode | None) -> Iterator[tuple[Arm, list[_Answer]]]:
    asked = {arm.label: list(_asked(sweep, arm)) for arm in arms_of(sweep)}
    distinct = list(dict.fromkeys(text for texts in asked.values() for text in texts))
    if not distinct:
        return
    answered = dict(zip(distinct, _tried(tuple(distinct), None if code is None else _Held(code)), strict=True))
    for arm in arms_of(sweep):
        yield arm, [json.loads(answered[text]) for text in asked[arm.label]]


def _asked(sweep: Sweep, arm: Arm) -> Iterator[str]:
    """Yield each component of an arm's jobs that has code or options of its own, as JSON."""
    space = sweep.tune.space if sweep.tune else {}
    deciding = [key for key in space if is_option(key) or any(key == kind.key for kind in KINDS.values())]
    keys = {key: space[key] for chosen in deciding for key in (chosen, *conditions.above(space, chosen))}
    ends = {key: own.ends for key, own in keys.items()}
    combinations: list[dict[str, JsonValue]] = [{}]
    if keys:
        combinations = list(conditions.some_combinations(keys, arm.values, ends, most=MOST_TRIED))
    for settings in combinations:
        with contextlib.suppress(ValidationError):  # it may be a job with other settings of what else is tuned
            yield from asked_of(arm.config(stage="confirm", seed=0, settings=settings))


def asked_of(job: JobConfig) -> Iterator[str]:
    """Yield each component of a job that has code or options of its own, or that not every key is of, as JSON."""
    whole = job.model_dump(mode="json")
    if isinstance(job.evaluate.judge, dict):
        for alone in (one for stage in ("tune", "confirm") for one in job.judged_alone(stage).values()):
            yield from (text for text in asked_of(alone) if json.loads(text)["kind"] == JUDGE.name)
    for kind in KINDS.values():
        for name, options in named(whole, kind):
            if options or is_import_path(name) or kind is AFTER or (kind is LOSS and is_of_batch(name)):
                yield canonical({"kind": kind.name, "name": name, "options": options, "job": whole})
    if job.evaluate.dims and job.evaluate.after is None and not (job.is_own_task or job.is_function):
        one = next(iter(job.judged_alone("confirm").values()))
        named_so = {"kind": JUDGE.name, "name": one.judge, "options": one.evaluate.judge_options}
        yield canonical({**named_so, "job": one.model_dump(mode="json")})


def named(job: Mapping[str, JsonValue], kind: Kind) -> Iterator[tuple[str, JsonValue]]:
    """Yield each name that a job, as plain JSON, has for a kind, with its options: one name, or several for metrics.
    Judges of several sets are named in the job of each."""
    value, options = (_at(job, key) for key in (kind.key, kind.options))
    if isinstance(value, list) and isinstance(options, dict):
        yield from ((name, options.get(metric_name(name), {})) for name in value if isinstance(name, str))
    elif isinstance(value, str):
        yield value, options


def _at(job: Mapping[str, JsonValue], key: str) -> JsonValue:
    section, _, name = key.rpartition(".")
    if not section:
        return job[name]
    table = job[section]
    assert isinstance(table, dict), f"{section} is a section of every job"
    return table[name]


class _Held:
    """Code that is looked up by its digest."""

    def __init__(self, code: UserCode) -> None:
        self.code = code

    def __hash__(self) -> int:
        return hash(self.code.digest)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and self.code.digest == other.code.digest


@lru_cache(maxsize=64)
def _tried(asked: Sequence[str], held: _Held | None) -> list[str]:
    """Return the answers of a child process, one line each. Raises CodeError where it ends without them."""
    with contextlib.ExitStack() as stack:
        environment = dict(os.environ)
        environment.pop(HERE, None)
        if held is not None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="orchestrator-code-"))
            held.code.write(Path(folder))
            environment[HERE] = folder
        text = json.dumps({"asked": [json.loads(entry) for entry in asked]})
        command = [sys.executable, "-m", "jobs.train.components"]
        try:
            done = subprocess.run(
                command, input=text, capture_output=True, text=True, timeout=TRIAL_S, env=environment, check=False
            )
        except subprocess.TimeoutExpired as error:
            raise CodeError(
                f"the components were tried for {TRIAL_S} s without an end; see what their module does"
            ) from error
    lines = done.stdout.splitlines()
    if done.returncode != 0 or len(lines) != len(asked):
        said = _last_line(done.stderr)
        raise CodeError(f"the process that tries the components ended with {done.returncode}: {said}")
    return lines


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or ["it printed nothing"])[-1]
