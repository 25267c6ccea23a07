"""Pairs: what two arms have in common, seed by seed, and how far apart they are.

That a pair is one is checked by hash and never assumed: see `hashes` in a trial's result.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict

from pydantic import JsonValue

from jobs.config import canonical
from jobs.config.components import is_import_path
from orchestrator import statistics
from orchestrator.ledger import Trial, objective
from orchestrator.ledger.stored import JsonObject, SweepTable
from orchestrator.report.summary.records import ComparisonSummary, ExecutionPair
from orchestrator.statistics.rows import VarianceParts
from orchestrator.sweep import flatten

HASHES = ("data", "order", "init", "encoder")
"""Of the rows trained on and judged on, of their order, of all first weights, and of the encoder's alone."""

ROWS = ("task", "data.train", "data.columns")
SHAPES = ("data.image_shape", "data.max_tokens")
HEAD = ("model.projection", "model.projection_width")
NO_WEIGHTS = ("model.pooling", "model.dropout")
"""Job keys: what decides the rows, the shapes of what the encoder takes, the head, and what changes no weights of the
encoder."""


def levels(compared: Sequence[statistics.Comparison], smallest_difference: float) -> dict[str, float]:
    """Return at which levels these contrasts were judged, by the claim. smallest_difference: of several metrics, the
    largest: whether there is any counts."""
    tested = sum(result.p is not None for result in compared)
    return asdict(statistics.levels(tested, smallest_difference))


def comparison(
    result: statistics.Comparison, trials: Mapping[str, Sequence[Trial]], parts: VarianceParts | None = None
) -> ComparisonSummary:
    """Summarise one contrast with what its pairs share; `trials`: label of an arm -> its confirm trials. parts: where
    its uncertainty comes from."""
    of_seed = [{trial.seed: trial for trial in trials.get(arm, ())} for arm in (result.a, result.b)]
    pairs = [(of_seed[0][seed], of_seed[1][seed]) for seed in result.seeds]
    return ComparisonSummary(result, shared(pairs), apart(pairs), parts or VarianceParts())


def shared(pairs: Sequence[tuple[Trial, Trial]]) -> dict[str, bool]:
    """Return for each hash whether both trials of every pair have it; without hashes that a trial did not record."""
    both = [(a.came_to.hashes, b.came_to.hashes) for a, b in pairs]
    return {
        what: all(a[what] == b[what] for a, b in both)
        for what in HASHES
        if both and all(what in a and what in b for a, b in both)
    }


def apart(pairs: Sequence[tuple[Trial, Trial]]) -> dict[str, list[str]]:
    """Return for each hash the job keys that differ in a pair and may change it; without hashes that must be equal."""
    keys: dict[str, set[str]] = {what: set() for what in HASHES}
    for a, b in pairs:
        left, right = _decides(a.job), _decides(b.job)
        for what in HASHES:
            either = left[what].keys() | right[what].keys()
            keys[what] |= {key for key in either if left[what].get(key) != right[what].get(key)}
    return {what: sorted(values) for what, values in keys.items() if values}


def execution_only(
    of_arm: Mapping[str, Sequence[Trial]],
    values: Mapping[str, Mapping[int, float]],
    diverged: Mapping[str, Collection[int]],
    smallest: float,
    metric: str = "",
) -> list[ExecutionPair]:
    """Find the pairs of arms whose jobs differ in nothing but `execution`, and how far apart their metrics are, seed by
    seed. metric: its name, where there are several.

    Training turns rounding into something larger, so they need not be identical; they agree when no seed differs by
    more than the smallest difference that matters, and none diverged in one of them alone.
    """
    labels, alike = list(of_arm), []
    objectives = {label: _objectives(trials) for label, trials in of_arm.items()}
    for i, b in enumerate(labels):
        for a in labels[i + 1 :]:
            if not _are_same(objectives[a], objectives[b]):
                continue
            mine, other = values.get(a, {}), values.get(b, {})
            have = sorted(mine.keys() & other.keys())
            largest = max((abs(mine[seed] - other[seed]) for seed in have), default=None)
            lost, of_other = set(diverged.get(a, ())), set(diverged.get(b, ()))
            alone = sorted((lost & other.keys()) | (of_other & mine.keys()))
            agree = None if largest is None else largest == 0 or largest <= smallest
            same = [{trial.seed: canonical(trial.job) for trial in of_arm[arm]} for arm in (a, b)]
            identical = all(same[0][seed] == same[1][seed] for seed in same[0].keys() & same[1].keys())
            agree = False if alone else agree
            alike.append(ExecutionPair(a, b, identical, len(have), largest, agree, alone, metric))
    return alike


def same_objective(a: Sequence[Trial], b: Sequence[Trial]) -> bool:
    """Return whether the trials of two arms differ in nothing but `execution`, on the seeds that both have, if any."""
    return _are_same(_objectives(a), _objectives(b))


def _objectives(trials: Sequence[Trial]) -> dict[int, str]:
    return {trial.seed: trial.objective for trial in trials}


def _are_same(a: Mapping[int, str], b: Mapping[int, str]) -> bool:
    both = a.keys() & b.keys()
    return bool(both) and all(a[seed] == b[seed] for seed in both)


def one_objective(of_arm: Mapping[str, Sequence[Trial]], sweep: SweepTable, a: str, b: str) -> bool:
    """Return whether two arms are one method, computed in two ways. Runs of the first rules tuned such arms apart, so
    there the jobs as frozen decide."""
    if of_arm.get(a) and of_arm.get(b):
        return same_objective(of_arm[a], of_arm[b])
    planned = {arm["label"]: arm.get("job") for arm in sweep["plan"]["arms"]}
    left, right = planned[a], planned[b]
    return left is not None and right is not None and objective(left) == objective(right)


def seedless(of_arm: Mapping[str, Sequence[Trial]], contrasts: Iterable[tuple[str, str]]) -> list[tuple[str, str]]:
    """List the contrasts between arms that do not train and whose seeds have all come to one number: copies of it are
    no test."""
    alike = {
        arm
        for arm, trials in of_arm.items()
        if trials and not any(_trains(trial.job) for trial in trials) and len(_ended(trials)) <= 1
    }
    return [pair for pair in contrasts if alike >= set(pair)]


def _trains(job: JsonObject) -> bool:
    budget = job.get("budget")
    return not isinstance(budget, Mapping) or budget.get("samples") != 0


def _ended(trials: Sequence[Trial]) -> set[float]:
    return {trial.metric for trial in trials if trial.metric is not None}


def without_seed(job: JsonObject) -> str:
    """Return a job without its seed, as text: what the trials of a setting share."""
    return canonical({key: value for key, value in job.items() if key != "seed"})


def _learned(name: JsonValue) -> JsonValue:
    """Return the name of a pooling or a loss that has weights, or is the user's own and may have some; else None."""
    return name if name in ("attention", "pair_classifier") or is_import_path(str(name)) else None


def _decides(job: JsonObject) -> dict[str, dict[str, JsonValue]]:
    """Return for each hash the job keys that it depends on besides the seed, and their values."""
    flat = flatten({name: job[name] for name in ("task", "data", "model", "loss") if name in job})
    rows = {key: flat.get(key) for key in ROWS}
    model = {key: value for key, value in flat.items() if key.startswith("model.") and key not in NO_WEIGHTS}
    if "model.precision" in model:  # bf16 has weights of fp32
        model["model.precision"] = model["model.precision"] == "fp64"
    encoder = {key: value for key, value in model.items() if key not in HEAD}
    shapes = rows | {key: flat.get(key) for key in SHAPES}  # a vocabulary is made from the rows
    learned = flat.get("loss.temperature") == "learned"
    loss = {
        "loss.temperature": flat.get("loss.temperature_start") if learned else None,
        "loss.mlm_weight": bool(flat.get("loss.mlm_weight")),
        "loss.name": _learned(flat.get("loss.name")),
    }
    return {
        "data": rows | {key: flat[key] for key in flat if key == "data.confirm" or key.startswith("data.confirm.")},
        "order": rows,
        "init": shapes | model | loss | {"model.pooling": _learned(flat.get("model.pooling"))},
        "encoder": shapes | encoder,
    }
