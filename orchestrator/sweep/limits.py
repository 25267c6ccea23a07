"""How much a sweep may ask for, and which names and numbers it may use: each refusal says its bound."""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from jobs.config import ConfigIssue
from orchestrator.sweep.model import Arm, Space, Sweep
from orchestrator.sweep.values import flatten, repeated, shown
from orchestrator.system.addresses import credentials

MOST_ARMS = 1_000
MOST_CROSSED = 10_000
"""Combinations of [compare], those that [[exclude]] leaves out counted."""

MOST_LOOKED_AT = 20
"""Seeds of the last look: sign patterns are counted up to there (orchestrator.statistics.joint.EXACT_UP_TO)."""

MOST_SEEDS = 1_000
MOST_TRIALS = 1_000_000
MOST_CHOICES = 10_000
LONGEST_NAME = 100
MOST_OF_A_NODE = 100_000
"""CPUs, or GPUs, of a rank."""


TAKEN = (
    *("mlflow.db", "mlflow.db-wal", "mlflow.db-shm", "mlflow.db-journal", "mlartifacts", "mlflow-server.log"),
    "compared",
)
"""What lies beside the runs in their folder."""

SMALLEST, LARGEST = 1e-30, 1e30
"""Sizes of numbers that fp32 holds with room to compute."""

LARGEST_INTEGER = 2**53

BOUNDS = dict.fromkeys(("loss.temperature", "loss.temperature_start", "loss.temperature_range"), (1e-6, 1e6))
"""Keys with narrower bounds. A similarity in fp32 is rounded by 6e-8; divided by less, rounding is what is learned."""

ADDRESS = re.compile(r"[a-zA-Z0-9+.-]{1,40}://[^\s'\"<>]+")
"""An address, wherever it stands in a text. (Without a bound on its first part, a long text would take minutes.)"""

LARGEST_SEED = 2**31 - 1


def crowd_issues(raw: Mapping[str, JsonValue]) -> Iterable[ConfigIssue]:
    """Yield an issue for more arms than can be looked at, before any is made.
    raw: the file's tables, with dotted keys."""
    compare, named = raw.get("compare"), raw.get("arm")
    remedy = "compare fewer levels, or tune a key in [tune.space]"
    if isinstance(compare, Mapping):
        count = math.prod(len(levels) for levels in compare.values() if isinstance(levels, list))
        if count > (MOST_CROSSED if raw.get("exclude") else MOST_ARMS):
            yield ConfigIssue("compare", "", f"crosses to {count:,} arms; at most {MOST_ARMS:,}: {remedy}")
    if isinstance(named, list) and len(named) > MOST_ARMS:
        yield ConfigIssue("arm", "", f"names {len(named):,} arms; at most {MOST_ARMS:,}: {remedy}")


def secret_issues(raw: Mapping[str, object]) -> Iterable[ConfigIssue]:
    """Yield an issue for each address with credentials in it: a sweep is stored with its run, in the ledger, MLflow and
    the report.

    raw: the file's tables.
    """
    for key, text in _texts(raw, ""):
        for address in ADDRESS.findall(text):
            if (known := credentials(address)) is not None:
                shown_as, what, remedy = known
                expected = f"was given with {what}, and a sweep is stored and shown; leave that out, and: {remedy}"
                yield ConfigIssue(key, repr(shown_as), expected)


def _texts(value: object, key: str) -> Iterable[tuple[str, str]]:
    """Yield every text of nested tables and lists, with its dotted key."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, Mapping):
        for name, inner in value.items():
            yield from _texts(inner, f"{key}.{name}" if key else str(name))
    elif isinstance(value, list):
        for inner in value:
            yield from _texts(inner, key)


def count_issues(sweep: Sweep) -> Iterable[ConfigIssue]:
    """Yield an issue for a name that makes no folder, and for each count beyond its bounds."""
    name, tune, confirm = sweep.name, sweep.tune, sweep.confirm
    if len(name) > LONGEST_NAME:
        expected = f"has {len(name):,} characters and is the name of a folder; at most {LONGEST_NAME}"
        yield ConfigIssue("name", repr(name[:40] + "..."), expected)
    if name.lower() in TAKEN:
        other = f"{name.replace('.', '-')}-sweep"
        expected = f"lies in the folder of runs for MLflow or reports; give another name, such as '{other}'"
        yield ConfigIssue("name", repr(name), expected)
    for key, seeds in (("tune.seeds", tune.seeds if tune else 1), ("confirm.seeds", confirm.seeds)):
        count = len(seeds) if isinstance(seeds, list) else seeds
        if isinstance(count, int) and count > MOST_SEEDS:
            unit = "a suggestion" if key == "tune.seeds" else "an arm"
            yield ConfigIssue(
                key, f"{count:,} seeds", f"at most {MOST_SEEDS:,}: each is a trial of {unit}; 20 are many"
            )
    if tune is None:
        return
    if tune.repeats > MOST_SEEDS:
        yield ConfigIssue("tune.repeats", f"{tune.repeats:,}", f"at most {MOST_SEEDS:,}; each needs confirm seeds")
    if tune.trials > MOST_TRIALS:
        yield ConfigIssue("tune.trials", f"{tune.trials:,}", f"at most {MOST_TRIALS:,} for an arm")
    for key, space in tune.space.items():
        if len(space.choices or []) > MOST_CHOICES:
            expected = f"at most {MOST_CHOICES:,}; a range has no bound: {{ low = ..., high = ... }}"
            yield ConfigIssue(f"tune.space.{key}.choices", f"{len(space.choices or []):,} choices", expected)


def repeated_issues(sweep: Sweep) -> Iterable[ConfigIssue]:
    """Yield an issue for each key that has a level or a choice twice."""
    for key, levels in sweep.compare.items():
        for level in repeated(levels):
            expected = "is a level twice (0 and 0.0 are one); remove one of the two"
            yield ConfigIssue(f"compare.{key}", shown(level), expected)
    for key, space in (sweep.tune.space if sweep.tune else {}).items():
        for choice in repeated(space.choices or []):
            yield ConfigIssue(f"tune.space.{key}.choices", shown(choice), "is a choice twice; remove one of the two")


def number_issues(sweep: Sweep, arms: Iterable[Arm]) -> Iterable[ConfigIssue]:
    """Yield an issue for each number that a computation in fp32, or a database, cannot hold."""
    seen = set()
    given: list[tuple[str, str, JsonValue]] = [(f"job.{key}", key, value) for key, value in flatten(sweep.job).items()]
    given += [(f"job.{key}", key, value) for arm in arms for key, value in arm.settings.items()]
    if sweep.tune:
        given += [(f"tune.space.{key}", key, value) for key, space in sweep.tune.space.items() for value in space.ends]
        given += [
            (f"tune.defaults[{index}].{key}", key, value)
            for index, default in enumerate(sweep.tune.defaults)
            for key, value in default.items()
        ]
    for where, key, value in given:
        for number in value if isinstance(value, list) else [value]:
            expected = _bound(key, number)
            if expected and (where, number) not in seen:
                seen.add((where, number))
                yield ConfigIssue(where, repr(number), expected)
    if sweep.tune and not seen:
        yield from _step_issues(sweep.tune.space)


def _step_issues(spaces: Mapping[str, Space]) -> Iterable[ConfigIssue]:
    """Yield an issue for each step so small that its range holds more values than can be counted."""
    for key, space in spaces.items():
        if space.step is not None and space.low is not None and space.high is not None:
            span = space.high - space.low
            if span > LARGEST_INTEGER * space.step:
                expected = f"is so small that the range holds more than {LARGEST_INTEGER:,} values; leave it out"
                yield ConfigIssue(f"tune.space.{key}.step", repr(space.step), expected)


def _bound(key: str, number: JsonValue) -> str:
    """Return what a number should be, or an empty text if it is within its bounds."""
    if isinstance(number, bool) or not isinstance(number, int | float):
        return ""
    size = abs(number)
    if key in BOUNDS:
        low, high = BOUNDS[key]
        if number > 0 and not low <= number <= high:
            return f"must lie between {low:g} and {high:g}, for example 0.1: a similarity in fp32 is rounded by 6e-8"
    if isinstance(number, int):
        return f"must be at most {LARGEST_INTEGER:,}" if size > LARGEST_INTEGER else ""
    if size and not SMALLEST <= size <= LARGEST:
        return f"must be 0 or between {SMALLEST:g} and {LARGEST:g} in size: fp32 holds no more"
    return ""
