"""The answer over several runs: what each of them says by its own plan, and one table of all their arms.

Every arm of the later runs is set against the baseline of the first, seed by seed. What a run planned is judged in that
run and not once more here, and an arm that is that baseline again is no question: whether the two agree is told in its
place. So no contrast is tested twice. All are adjusted together by Holm, and all are exploratory: that these runs are
put side by side was decided when their results could be seen.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

from orchestrator import statistics
from orchestrator.ledger import Ledger
from orchestrator.report.formatting import across, code
from orchestrator.report.summary import arms, budgets, compatibility, evidence, pairs
from orchestrator.report.summary.warnings import oddities
from orchestrator.run_dir.bucket import is_uri
from orchestrator.sweep.plan import smallest_p

EXPLORATORY = (
    "Comparisons across runs were not planned together: these runs were put side by side when their results could be "
    "seen, so what follows is exploratory. The verdict of each run is by its own plan."
)

LONGEST = 100
"""Characters of a folder's name."""

Json = dict[str, Any]


def answer(named: Mapping[str, Ledger]) -> Json:
    """The answer as plain JSON; `runs` holds that of each run. named: short name of a run -> its ledger.

    Raises RunError, naming what differs, for runs whose arms cannot be compared, and LedgerError.
    """
    runs = {name: evidence.answer(ledger) for name, ledger in named.items()}
    jobs = {name: compatibility.planned_jobs(ledger.run.sweep) for name, ledger in named.items()}
    compatibility.refuse(runs, jobs)
    confirm = {name: arms.confirmed(ledger, ledger.trials("confirm")) for name, ledger in named.items()}
    trials = {label(name, arm): found for name in runs for arm, found in confirm[name].trials.items()}
    values = {label(name, arm): found for name in runs for arm, found in confirm[name].values.items()}
    first, *later = runs
    baseline = label(first, runs[first]["arms"][0]["label"])
    planned = {
        (label(name, arm["label"]), baseline): common(runs[first]["seeds"], runs[name]["seeds"])
        for name in later
        for arm in runs[name]["arms"]
        if not pairs.same_objective(trials[label(name, arm["label"])], trials[baseline])
    }
    most = max(map(len, planned.values()), default=0)
    mode, smallest = runs[first]["mode"], max(one["smallest_difference"] for one in runs.values())
    divergence = statistics.Divergence(
        {label(name, arm): lost for name in runs for arm, lost in confirm[name].diverged.items()},
        [label(name, arm) for name, ledger in named.items() for arm in evidence.unconfirmed(ledger)],
    )
    compared = statistics.compare(
        values, list(planned), seeds=planned, mode=mode, smallest_difference=smallest, divergence=divergence
    )
    found: Json = {
        "question": " ".join(dict.fromkeys(one["question"] for one in runs.values())),
        "metric": runs[first]["metric"],
        "mode": mode,
        "smallest_difference": smallest,
        "complete": all(one.complete for one in compared),
        "sentence": "",
        "arms": [
            {**arm, "run": name, "arm": arm["label"], "label": label(name, arm["label"])}
            for name, one in runs.items()
            for arm in one["arms"]
        ],
        "held_equal": None,
        "comparisons": [pairs.comparison(one, trials) for one in compared],
        "execution_only": pairs.execution_only(trials, values, smallest),
        "seeds": sorted({seed for one in runs.values() for seed in one["seeds"]}),
        "smallest_p": smallest_p(sum(one.p is not None for one in compared), most),
        "runs": [{"name": name, **one} for name, one in runs.items()],
        "notes": [],
    }
    found["held_equal"] = budgets.held_equal(found["arms"])
    found["notes"] = [
        EXPLORATORY,
        *_seeds(runs),
        *_missing(found, planned),
        *oddities(found, seeds=most),
        *_smallest(runs),
        *_codes(runs),
        *compatibility.differences(runs, jobs),
    ]
    found["sentence"] = across(found)
    return found


def curves(named: Mapping[str, Ledger], found: Json) -> Json:
    """Those of each run, by the labels of this answer."""
    drawn: Json = {}
    for one in found["runs"]:
        for arm, curve in evidence.curves(named[one["name"]], one).items():
            drawn[label(one["name"], arm)] = curve
    return drawn


def names(places: Sequence[str], ledgers: Sequence[Ledger]) -> dict[str, Ledger]:
    """A short name for each run, all different: the last part of its folder or URI, and of its uuid where needed."""
    last = [
        place.partition("?")[0].rstrip("/").rpartition("/")[2] if is_uri(place) else Path(place).resolve().name
        for place in places
    ]
    shown = [
        name if last.count(name) == 1 else f"{name}-{ledger.uuid[:6]}"
        for name, ledger in zip(last, ledgers, strict=True)
    ]
    if len(set(shown)) < len(shown):  # a run that is named twice, which `answer` refuses
        shown = [f"{name} ({place})" for place, name in enumerate(shown, 1)]
    return dict(zip(shown, ledgers, strict=True))


def folder_name(named: Iterable[str]) -> str:
    """`a+b`: where the report of these runs lies, unless told otherwise."""
    whole = "+".join(named)
    return whole if len(whole) <= LONGEST else f"{whole[:LONGEST]}-{hashlib.sha256(whole.encode()).hexdigest()[:8]}"


def label(run: str, arm: str) -> str:
    """What an arm is called among those of several runs."""
    return f"{run}: {arm}"


def common(a: Sequence[int], b: Sequence[int]) -> list[int]:
    """The confirm seeds that two runs both planned, in the order of the first."""
    return [seed for seed in a if seed in b]


def _seeds(runs: Mapping[str, Json]) -> Iterable[str]:
    first, *later = runs
    for name in later:
        mine, other = runs[first]["seeds"], runs[name]["seeds"]
        both = common(mine, other)
        if len(both) == len(mine) == len(other):
            continue
        dropped = sorted(set(mine) ^ set(other))
        shown = ", ".join(map(str, both)) or "none"
        said = f"{first} and {name} planned different confirm seeds: compared on those that both have ({shown}), "
        said += f"without {', '.join(map(str, dropped))}."
        yield said if len(both) >= 2 else f"{said} It takes two or more, so {name} is inconclusive here."


def _missing(found: Json, planned: Mapping[tuple[str, str], Sequence[int]]) -> Iterable[str]:
    for one in found["comparisons"]:
        have = {each["seed"] for each in one["differences"]}
        lost = [str(seed) for seed in planned[one["a"], one["b"]] if seed not in have]
        if lost:
            yield f"{one['a']} against {one['b']} lacks seed {', '.join(lost)}, which both planned: inconclusive."


def _codes(runs: Mapping[str, Json]) -> Iterable[str]:
    """Whether the runs were computed by different programs. Of one that has several itself, its own notes say so."""
    named: dict[str, list[str]] = {}
    for name, one in runs.items():
        for group in one["code"]:
            named.setdefault(code({**group, "accepted": False}), []).append(name)
    begun = sum(bool(one["code"]) for one in runs.values())
    if any(len(which) < begun for which in named.values()):
        shown = "; ".join(f"{program} in {' and '.join(which)}" for program, which in named.items())
        yield f"The runs were computed by different programs: {shown}."


def _smallest(runs: Mapping[str, Json]) -> Iterable[str]:
    declared = {name: one["smallest_difference"] for name, one in runs.items()}
    if len(set(declared.values())) > 1:
        shown = ", ".join(f"{value:g} in {name}" for name, value in declared.items())
        yield f"The runs declare different smallest differences that matter ({shown}); here it is the largest."
