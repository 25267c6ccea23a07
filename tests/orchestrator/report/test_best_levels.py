"""Which level nothing beats; and what is said beside the verdicts, of odd seeds and of arms that unlearned."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

import pytest
from ledgers import BETTER, Begin, Run, answer_of, finished
from pydantic import JsonValue

from orchestrator.ledger import Point, Suggestion, Trial
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.summary import arms

CROSSED = """
[compare]
"loss.temperature" = [0.05, 0.1, 0.2]
"batch.size" = [16, 64]
"""


def played(run: Run, means: Mapping[str, float], *, mode: str = "max") -> Run:
    """End every confirm trial with the mean of its arm and a little noise; a larger mean is better in either mode."""
    sign = 1 if mode == "max" else -1
    for arm, mean in means.items():
        for trial in run.confirm(arm):
            run.done(trial, 0.5 + sign * (mean + random.Random(f"{arm} {trial.seed}").gauss(0, 0.002)))
    run.ledger.set_run(state="done")
    return run


MEANS = {
    "temperature=0.05, size=16": 0.0,
    "temperature=0.1, size=16": 0.0,
    "temperature=0.2, size=16": 0.05,
    "temperature=0.05, size=64": 0.10,
    "temperature=0.1, size=64": 0.10,
    "temperature=0.2, size=64": 0.0,
}


@pytest.mark.parametrize("mode", ["max", "min"])
def test_the_sentence_names_the_levels_that_nothing_beats_in_each_stratum(begin: Begin, mode: str) -> None:
    """Mutant check: a metric of which less is better, read as if more were."""
    said = answer_of(played(begin(CROSSED, seeds=8, mode=mode), MEANS, mode=mode).ledger)
    which: Any = said["which"]
    assert which["factor"] == "loss.temperature"
    assert [stratum["where"] for stratum in which["strata"]] == [{"batch.size": 16}, {"batch.size": 64}]
    assert which["strata"][0]["best"] == ["temperature=0.2, size=16"]
    assert which["strata"][1]["best"] == ["temperature=0.05, size=64", "temperature=0.1, size=64"]
    assert which["interaction_p"] < 0.02
    assert said["sentence"].startswith(
        "Best temperature at batch 16: 0.2; at batch 64: 0.05 or 0.1, which are not told apart. "
    )


def test_an_arm_that_diverged_is_never_the_best(begin: Begin) -> None:
    run = begin(CROSSED.replace(', "batch.size"', "").replace('"batch.size" = [16, 64]\n', ""), seeds=8)
    for arm, mean in {"temperature=0.05": 0.0, "temperature=0.1": 0.05}.items():
        for trial in run.confirm(arm):
            run.done(trial, 0.5 + mean + random.Random(f"{arm} {trial.seed}").gauss(0, 0.002))
    for trial in run.confirm("temperature=0.2"):
        run.done(trial, 0.0, outcome="diverged")
    said = answer_of(run.ledger)
    assert said["which"]["strata"][0]["best"] == ["temperature=0.1"]
    assert said["which"]["strata"][0]["p"][2] is None
    assert said["sentence"].startswith("Best temperature: 0.1. ")


def test_levels_without_an_order_two_levels_and_few_seeds_are_asked_no_such_question(begin: Begin) -> None:
    losses = '[compare]\n"loss.name" = ["infonce", "flatnce", "dcl"]\n'
    run = begin(losses, seeds=8)
    assert answer_of(played(run, dict.fromkeys((arm.label for arm in run.plan.arms), 0.0)).ledger)["which"] is None
    assert answer_of(finished(begin(), BETTER).ledger)["which"] is None
    run = begin(CROSSED, seeds=3)
    assert answer_of(played(run, MEANS).ledger)["which"] is None


def test_a_seed_far_from_the_others_is_named_and_left_in(begin: Begin) -> None:
    values = {"plain": BETTER["plain"], "flat": [*BETTER["flat"][:5], 0.3]}
    said = answer_of(finished(begin(), values).ledger)
    seed = said["seeds"][5]
    assert said["comparisons"][0]["outlying"] == [seed]
    assert said["comparisons"][0]["n"] == 6
    assert f"flat against plain: seed {seed} lies far from the others; nothing is left out." in said["notes"]


def test_an_arm_that_is_worse_than_before_it_was_trained_is_named(begin: Begin) -> None:
    """Every trial of these runs had 0.3 before training."""
    said = answer_of(finished(begin(), BETTER | {"flat": [0.21, 0.22, 0.2, 0.21, 0.23, 0.22]}).ledger)
    assert [arm["worse_than_untrained"] for arm in said["arms"]] == [False, True]
    assert "flat is worse than its encoder was before training, in knn_accuracy: it has unlearned." in said["notes"]


def test_what_has_collapsed_is_named_by_its_uniformity_or_its_loss(begin: Begin) -> None:
    """Mutant check: a loss that was nothing once, or that of other steps than the last."""
    run = begin()
    for arm, metrics in BETTER.items():
        for number, (trial, metric) in enumerate(zip(run.confirm(arm), metrics, strict=True)):
            low = [0.0] * 5 if arm == "flat" and number == 1 else [0.0] * 4 + [0.5]
            attempt_points = [Point(trial.id, "train/infonce", step, loss, 1e9) for step, loss in enumerate(low, 1)]
            run.done(trial, metric, points=attempt_points)
    said = answer_of(run.ledger)
    seeds = said["seeds"]
    assert [arm["collapsed"] for arm in said["arms"]] == [[], [seeds[1]]]
    assert any(note.startswith(f"flat has collapsed in 1 seed ({seeds[1]})") for note in said["notes"])
    one_place = begin()
    for arm, metrics in BETTER.items():
        for trial, metric in zip(one_place.confirm(arm), metrics, strict=True):
            one_place.done(trial, metric, more={"uniformity": -0.05 if arm == "plain" else -2.0})
    assert [arm["collapsed"] for arm in answer_of(one_place.ledger)["arms"]] == [seeds, []]


@pytest.mark.parametrize(
    ("shares", "collapsed"), [([0.0] * 6, False), ([0.0, 0.25, 0.0], True), ([0.0, 0.0, 1 / 64], True), ([], False)]
)
def test_an_anchor_without_a_negative_is_a_collapse(begin: Begin, shares: list[float], collapsed: bool) -> None:
    """Runs of earlier versions have no such number. Mutant check: the last step alone."""
    run = begin()
    for arm, metrics in BETTER.items():
        for number, (trial, metric) in enumerate(zip(run.confirm(arm), metrics, strict=True)):
            own = shares if arm == "flat" and number == 2 else [0.0] * len(shares)
            points = [Point(trial.id, "train/without_negatives", step, x, 1e9) for step, x in enumerate(own, 1)]
            run.done(trial, metric, points=points)
    said = answer_of(run.ledger)
    seed = said["seeds"][2]
    assert [arm["collapsed"] for arm in said["arms"]] == [[], [seed] if collapsed else []]
    assert any("an anchor had no negative" in note for note in said["notes"]) == collapsed


def test_what_a_rule_has_taken_in_place_of_diverging_is_counted(begin: Begin) -> None:
    """Tiger's, for gradients that are not finite: it would hide them."""
    run = begin()
    for arm, metrics in BETTER.items():
        for number, (trial, metric) in enumerate(zip(run.confirm(arm), metrics, strict=True)):
            steps = float(2 * number) if arm == "flat" and number < 3 else 0.0
            points = [Point(trial.id, "train/nan_steps", step, min(steps, step), 1e9) for step in (1, 4)]
            run.done(trial, metric, points=points, more={"train/nan_steps": steps})
    said = answer_of(run.ledger)
    (note,) = (note for note in said["notes"] if "finite gradient" in note)
    assert note.startswith("flat: 2 confirm trials went on after steps without a finite gradient (6 steps in all)")


def test_how_often_one_alone_diverged_is_told_with_its_p(begin: Begin) -> None:
    run = begin(seeds=8)
    for arm in BETTER:
        for number, trial in enumerate(run.confirm(arm)):
            run.done(trial, 0.9 + 0.001 * number, outcome="diverged" if arm == "flat" and number < 3 else "ok")
    said = answer_of(run.ledger)
    assert said["comparisons"][0]["divergence_p"] == 0.25
    assert (
        "flat alone diverged in 3 seeds and plain alone in 0: p = 0.25 (McNemar's test, beside the verdict)."
        in (said["notes"])
    )


@pytest.mark.parametrize(
    ("space", "chosen", "edges"),
    [
        ("{ low = 1e-4, high = 1e-1, log = true }", 9e-2, ["optimizer.lr"]),
        ("{ low = 1e-4, high = 1e-1, log = true }", 1e-3, []),
        ("{ low = 1e-4, high = 1e-1 }", 1e-3, ["optimizer.lr"]),
        ("{ low = 1e-4, high = 1e-1 }", 5e-2, []),
        ("{ choices = [1e-2, 1e-4, 1e-3] }", 1e-4, ["optimizer.lr"]),
        ("{ choices = [1e-4, 1e-3, 1e-2] }", 1e-2, ["optimizer.lr"]),
        ("{ choices = [1e-4, 1e-3, 1e-2] }", 1e-3, []),
    ],
)
def test_a_setting_at_an_edge_of_its_range_is_named_on_the_scale_of_the_range(
    begin: Begin, space: str, chosen: float, edges: list[str]
) -> None:
    """Mutant check: a share of a logarithmic range on a plain scale."""
    said = answer_of(
        tuned_to(
            begin, space, [chosen, chosen / 1.5 if "choices" not in space else 1e-3 if chosen != 1e-3 else 1e-4]
        ).ledger
    )
    assert [arm["tune"]["edges"] for arm in said["arms"]] == [edges] * 2
    assert any("tuned to an edge of its range (optimizer.lr = " in note for note in said["notes"]) == bool(edges)
    assert said["sentence"].startswith("At the settings chosen, flat beats plain by ")


@pytest.mark.parametrize(("lead", "told"), [(0.001, True), (0.2, False)])
def test_a_best_setting_within_the_noise_of_the_second_is_told(begin: Begin, lead: float, told: bool) -> None:
    run = tuned_to(begin, "{ low = 1e-4, high = 1e-1, log = true }", [1e-3, 2e-3], lead=lead)
    said = answer_of(run.ledger)
    assert [arm["tune"]["within_noise"] for arm in said["arms"]] == [told] * 2
    assert any("lie closer together than two seeds do" in note for note in said["notes"]) == told


def tuned_to(begin: Begin, space: str, rates: list[float], *, lead: float = 0.05) -> Run:
    """Play a run of which every arm is tuned to the first of two rates, which leads the second one."""
    run = begin(
        tune=f'[tune]\ntrials = {len(rates)}\ndefaults = [{{ "optimizer.lr" = 1e-3 }}]\n[tune.space]\n'
        f'"optimizer.lr" = {space}'
    )
    for arm in BETTER:
        for number, rate in enumerate(rates):
            setting: JsonObject = {"optimizer.lr": rate}
            trials = [
                Trial(p.id, "tune", arm, p.seed, p.job.model_dump(mode="json"), number=number)
                for p in run.plan.tune_trials(arm, number, setting)
            ]
            run.ledger.add_suggestion(Suggestion(arm, number, setting, tuple(t.id for t in trials)), trials)
            for trial in trials:
                run.done(trial, 0.8 - number * lead)
        run.ledger.freeze(arm, {"optimizer.lr": rates[0]}, 0, "abc")
    return finished(run, BETTER, {"optimizer.lr": rates[0]})


@pytest.mark.parametrize(
    ("scores", "told"),
    [
        ([(1e-3, 0.9), (1e-2, 0.5), (1e-3, 0.9)], False),
        ([(1e-3, 0.9), (1e-3, 0.9), (1e-2, 0.5), (1e-4, 0.1)], False),
        ([(1e-3, 0.9), (1e-3, 0.9), (1e-2, 0.899)], True),
        ([(1e-3, 0.9), (1e-3, 0.9)], False),
    ],
)
@pytest.mark.parametrize("mode", ["max", "min"])
def test_what_is_suggested_twice_is_one_setting(
    begin: Begin, scores: list[tuple[float, float]], told: bool, mode: str
) -> None:
    """Seen: "the best two settings lie closer together" of the best one, which tpe had suggested twice."""
    run = begin(
        tune=f'[tune]\ntrials = {len(scores)}\nsampler = "random"\n[tune.space]\n'
        '"optimizer.lr" = { choices = [1e-4, 1e-3, 1e-2] }',
        mode=mode,
    )
    for arm in BETTER:
        tuned_by(run, arm, [(rate, score if mode == "max" else -score) for rate, score in scores])
        run.ledger.freeze(arm, {"optimizer.lr": 1e-3}, 0, "abc")
    said = answer_of(finished(run, BETTER, {"optimizer.lr": 1e-3}).ledger)
    assert [arm["tune"]["within_noise"] for arm in said["arms"]] == [told] * 2


def tuned_by(run: Run, arm: str, scores: list[tuple[float, float]]) -> None:
    """Let an arm try these rates, with these scores; what it tries again has the trials of before."""
    ended: set[str] = set()
    for number, (rate, score) in enumerate(scores):
        setting: JsonObject = {"optimizer.lr": rate}
        planned = run.plan.tune_trials(arm, number, setting)
        trials = [Trial(p.id, "tune", arm, p.seed, p.job.model_dump(mode="json"), number=number) for p in planned]
        run.ledger.add_suggestion(Suggestion(arm, number, setting, tuple(t.id for t in trials)), trials)
        for trial in trials:
            if trial.id not in ended:
                run.done(trial, score)
            ended.add(trial.id)


def repeated(begin: Begin, tunings: list[list[tuple[float, float]]], space: str) -> Any:
    """The answer of a run whose arms are tuned anew so often, on these rates with these scores."""
    count = len(tunings)
    run = begin(
        tune=f'[tune]\ntrials = {len(tunings[0])}\nrepeats = {count}\nsampler = "random"\n[tune.space]\n'
        f'"optimizer.lr" = {space}',
        seeds=2 * count,
    )
    for arm in BETTER:
        tuned_by(run, arm, [score for tuning in tunings for score in tuning])
        run.ledger.freeze(arm, {"optimizer.lr": max(tunings[0], key=lambda pair: pair[1])[0]}, 0, "abc")
        best = [max(tuning, key=lambda pair: pair[1])[0] for tuning in tunings]
        for k, trial in enumerate(run.confirm(arm, {"optimizer.lr": best[0]})):
            run.done(trial, 0.9 + 0.001 * (k % 3) + 0.01 * (arm == "flat"))
    return answer_of(run.ledger)


@pytest.mark.parametrize(
    ("others", "edges", "said"),
    [
        ([1e-3, 1e-3], [], None),
        ([9.5e-2, 1e-3], ["optimizer.lr"], "(optimizer.lr = 0.095 in 1 of 3 repeats)"),
        ([9.5e-2, 1e-4], ["optimizer.lr"], "(optimizer.lr = 0.095 or 0.0001 in 2 of 3 repeats)"),
    ],
)
def test_an_edge_in_any_repeat_of_the_tuning_is_told(
    begin: Begin, others: list[float], edges: list[str], said: str | None
) -> None:
    """Seen: that of the first repeat alone. Mutant check: the first one's value for all."""
    tunings = [[(best, 0.9), (2e-3, 0.5)] for best in (1e-3, *others)]
    answer = repeated(begin, tunings, "{ low = 1e-4, high = 1e-1, log = true }")
    assert [arm["tune"]["edges"] for arm in answer["arms"]] == [edges] * 2
    assert [arm["tune"]["repeat_edges"][0] for arm in answer["arms"]] == [[], []]
    notes = [note for note in answer["notes"] if "an edge of its range" in note]
    assert bool(notes) == bool(edges)
    assert said is None or said in notes[0]


@pytest.mark.parametrize(("second", "told"), [(0.5, False), (0.8999, True)])
def test_noise_of_the_tuning_is_that_within_a_repeat(begin: Begin, second: float, told: bool) -> None:
    """The best of each repeat are close where tuning is steady. Mutant check: over all repeats."""
    tunings = [[(1e-3, 0.9 + k / 10_000), (2e-3, second if k == 1 else 0.5)] for k in range(3)]
    answer = repeated(begin, tunings, "{ low = 1e-4, high = 1e-1, log = true }")
    assert [arm["tune"]["within_noise"] for arm in answer["arms"]] == [told] * 2


@pytest.mark.parametrize(
    ("own", "value", "is_edge"),
    [
        ({"choices": [True, False]}, True, False),
        ({"choices": ["cosine", "linear"]}, "linear", False),
        ({"choices": [0.1, "none"]}, 0.1, False),
        ({"choices": [0, 0.1]}, 0, True),
        ({"choices": [0.1]}, 0.1, False),
        ({"choices": [16, 64, 256]}, 64, False),
        ({"choices": [16, 64, 256]}, 512, True),
        ({"choices": [[0.9, 0.99], [0.9, 0.999]]}, [0.9, 0.99], False),
        (None, 0.1, False),
    ],
)
def test_choices_have_an_edge_where_they_are_numbers(own: JsonValue, value: JsonValue, is_edge: bool) -> None:
    """Seen: none, in every shipped sweep. A default that was filled from the arm may lie beyond."""
    assert arms._edges({"space": {"key": own}}, {"key": value}) == (["key"] if is_edge else [])


def test_a_level_that_diverges_in_some_seeds_is_not_the_best_by_the_others(begin: Begin) -> None:
    """Seen: "best: 0.5", by the six seeds of ten in which it had trained."""
    run = begin(CROSSED.replace('"batch.size" = [16, 64]\n', ""), seeds=10)
    for arm, mean in {"temperature=0.05": 0.0, "temperature=0.1": 0.0, "temperature=0.2": 0.1}.items():
        for number, trial in enumerate(run.confirm(arm)):
            fell = arm == "temperature=0.2" and number < 4
            value = 0.5 + mean + random.Random(f"{arm} {trial.seed}").gauss(0, 0.002)
            run.done(trial, value, outcome="diverged" if fell else "ok")
    said = answer_of(run.ledger)
    assert len(said["which"]["strata"][0]["best"]) > 1
    assert said["which"]["strata"][0]["seeds"] == 10


def test_levels_that_differ_between_strata_have_no_interaction_that_is_told(begin: Begin) -> None:
    left_out = "".join(
        f'[[exclude]]\n"loss.temperature" = {level}\n"batch.size" = {size}\n' for level, size in ((0.2, 64), (0.1, 16))
    )
    run = begin(CROSSED.replace("0.2]", "0.2, 0.5]") + left_out, seeds=8)
    said = answer_of(played(run, dict.fromkeys((arm.label for arm in run.plan.arms), 0.0)).ledger)
    assert said["which"]["interaction_p"] is None


def test_a_chosen_value_of_none_in_a_logarithmic_range_is_an_edge() -> None:
    """As a default that was filled from the arm may be. Seen: math domain error."""
    space: JsonObject = {"optimizer.weight_decay": {"low": 1e-6, "high": 1e-2, "log": True}}
    assert arms._edges({"space": space}, {"optimizer.weight_decay": 0.0}) == ["optimizer.weight_decay"]


# A stratum that cannot be judged takes nothing from the others.

FOUR = '[compare]\n"loss.temperature" = [0.05, 0.1, 0.2, 0.5]\n"batch.size" = [16, 64]\n'


def ended_as(run: Run, ends: Callable[[str, int], str]) -> Any:
    """The answer of a run in which 0.2 is the best at either batch, and each trial has ended `ok`, `lost` or
    `diverged`, or is still to come."""
    for arm in run.plan.arms:
        best = arm.settings["loss.temperature"] == 0.2
        for number, trial in enumerate(run.confirm(arm.label)):
            value = 0.5 + 0.05 * best + random.Random(f"{arm.label} {trial.seed}").gauss(0, 0.002)
            match ends(arm.label, number):
                case "lost":
                    run.lost(trial)
                case "to come":
                    pass
                case outcome:
                    run.done(trial, value, outcome=outcome)
    return answer_of(run.ledger)


@pytest.mark.parametrize(
    ("bad", "why"),
    [
        (lambda arm, n: "to come" if arm == "temperature=0.1, size=64" and n == 7 else "ok", "to come"),
        (lambda arm, _: "lost" if arm == "temperature=0.1, size=64" else "ok", "0.1 has no result"),
        (lambda arm, _: "lost" if arm.endswith("size=64") else "ok", "0.05, 0.1, 0.2, 0.5 have no result"),
        (lambda arm, _: "diverged" if arm.endswith("size=64") else "ok", "every level diverged"),
        (lambda arm, n: "lost" if arm == "temperature=0.5, size=64" and n > 3 else "ok", "share 4 seeds and 6 are"),
    ],
)
def test_a_stratum_that_cannot_be_judged_says_why_and_the_others_are_judged(
    begin: Begin, bad: Callable[[str, int], str], why: str
) -> None:
    """Seen: nothing of any stratum, after one seed was lost. Mutant check: the level of the judged ones alone."""
    said = ended_as(begin(FOUR, seeds=8), bad)
    first, other = said["which"]["strata"]
    assert said["which"]["alpha"] == 0.025, "as planned"
    assert (first["best"], first["not_judged"]) == (["temperature=0.2, size=16"], None)
    assert why in other["not_judged"]
    assert (other["best"], other["p"]) == ([], [None] * 4)
    assert said["which"]["interaction_p"] is None
    assert said["sentence"].startswith("Best temperature at batch 16: 0.2; at batch 64: not judged, as ")


@pytest.mark.parametrize(
    "lost", [{"temperature=0.1, size=64"}, {"temperature=0.05, size=16", "temperature=0.5, size=64"}]
)
def test_after_a_lost_seed_the_levels_are_judged_on_the_seeds_that_they_share(begin: Begin, lost: set[str]) -> None:
    said = ended_as(begin(FOUR, seeds=8), lambda arm, n: "lost" if arm in lost and n == 3 else "ok")
    assert not said["complete"]
    strata = said["which"]["strata"]
    assert [stratum["seeds"] for stratum in strata] == [8 - any(arm in lost for arm in s["arms"]) for s in strata]
    assert [stratum["best"] for stratum in strata] == [["temperature=0.2, size=16"], ["temperature=0.2, size=64"]]


def test_where_no_stratum_can_be_judged_nothing_is_said_of_the_best(begin: Begin) -> None:
    assert ended_as(begin(FOUR, seeds=8), lambda _, n: "to come" if n == 7 else "ok")["which"] is None


def test_an_arm_that_is_stopped_has_nothing_to_come(begin: Begin) -> None:
    """Its trials stay queued. Mutant check: every trial that has not ended."""

    def bad(arm: str, number: int) -> str:
        return ("lost" if number < 3 else "to come") if arm == "temperature=0.1, size=64" else "ok"

    said = ended_as(begin(FOUR, seeds=8), bad)
    assert said["which"]["strata"][1]["not_judged"] == "0.1 has no result"
