"""One new arm against a stored baseline, as often as was planned: so that who tries one change after another keeps
changes and not noise.

The number of questions is fixed by the first and stored with the incumbent's run; each is a one-sided exact sign-flip
test on the seeds that both arms have, at 0.05 divided by that number (Bonferroni), so all of them together keep noise
once in twenty. Assumption: a seed's difference is symmetric about 0 where there is none. A question is an arm of a run
against an arm of the incumbent's. What is kept is confirmed on fresh seeds before it is asked against, as it was chosen
by the old ones: a keep is recorded with the run of the arm that was kept too, and questions against it on those seeds
are refused.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Literal

from jobs.config import nearest
from orchestrator import statistics
from orchestrator.ledger import Ledger, this_process
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.formatting import probability, signed
from orchestrator.report.summary import arms, compatibility, evidence
from orchestrator.report.summary.records import Summary
from orchestrator.run_dir.folder import RunError
from orchestrator.statistics.tests import one_sided_bound
from orchestrator.sweep import plan as planning
from orchestrator.system.display import counted, ranges

PLANNED, ASKED = "questions", "question"
"""Kinds of the events in which the incumbent's ledger keeps how many there may be, and each that was asked."""

KEPT = "kept"
"""Kind of the event by which the ledger of an arm's own run knows that the arm was kept, and by which seeds."""

SIDES: tuple[Literal["new", "incumbent"], ...] = ("new", "incumbent")

USUAL = 20

LEASE_S = 30.0


@dataclass(frozen=True)
class Answer:
    """What one question came to."""

    incumbent: str
    """Label of the stored baseline's arm."""
    arm: str
    run: str
    """uuid of the run of the new arm."""
    question: int
    """Counted from 1."""
    questions: int
    n: int
    delta: float
    """New minus incumbent."""
    ci95: tuple[float, float] | None
    p: float
    """One-sided."""
    alpha: float
    keep: bool
    fresh_seeds: list[int]
    """On which what is kept is to be confirmed: no trial of either run had them."""
    bound: float | None = None
    """Of the test that decided, where all trained: new minus incumbent is at least this, or at most where less is
    better. 0 lies on its other side if and only if the arm is kept."""
    mode: statistics.Mode = "max"
    n_trained: int | None = None
    """Seeds on which both trained."""
    diverged_sides: list[Literal["new", "incumbent"]] = field(default_factory=list)
    """Those that diverged in at least half of the seeds: then nothing is kept."""
    metric: str = ""
    """By which it was asked, where a run is judged by several: the first; else empty."""

    @property
    def sentence(self) -> str:
        """The answer in words, with what decided it: `ci95`, which is of another test, may say otherwise."""
        known = "" if self.bound is None else f"at {'least' if self.mode == 'max' else 'most'} {signed(self.bound)}, "
        known += f"p = {probability(self.p)} against {self.alpha:.3g}, {counted(self.n, 'seed')}, "
        lost = self.n - (self.n if self.n_trained is None else self.n_trained)
        where = " where both trained" if lost else ""
        pairs = f"{counted(lost, 'pair')} of {self.n} with a side that diverged, " if lost else ""
        evidence_ = f"{signed(self.delta)}{where} ({known}{pairs}question {self.question} of {self.questions})"
        if self.diverged_sides:
            names = {"new": self.arm, "incumbent": f"the incumbent, {self.incumbent},"}
            who = " and ".join(names[side] for side in self.diverged_sides)
            fell = f"{who} diverged in at least half of the seeds, so that nothing is compared"
            return f"Discard {self.arm}: {fell} (question {self.question} of {self.questions})."
        by = f" by {self.metric}" if self.metric else ""
        if not self.keep:
            return f"Discard {self.arm}: it is not shown to beat {self.incumbent}{by}: {evidence_}."
        kept = f"Keep {self.arm}: it beats {self.incumbent}{by}: {evidence_}"
        return f"{kept}. Confirm it on fresh seeds before the next one."

    def to_json(self) -> JsonObject:
        """Return the answer as JSON."""
        plain: JsonObject = json.loads(json.dumps(asdict(self)))
        if not self.metric:
            del plain["metric"]
        return plain | {"sentence": self.sentence}


def ask(
    new: Ledger,
    incumbent: Ledger,
    *,
    arm: str | None = None,
    baseline: str | None = None,
    questions: int | None = None,
) -> Answer:
    """Ask whether an arm of a run beats the baseline of another, and store the question with the latter.

    arm: of the new run; its only one that is not the baseline's objective unless given. baseline: arm of the other run,
    such as the one that was kept; its first contrast's baseline unless given. questions: how many there may be, as
    fixed by the first. Of several metrics the first is asked. A question that was asked has its answer, and costs no
    other one; it is known by the new run, its arm and the other run's arm. What is kept is recorded with the new run.
    Raises RunError where it cannot be asked, such as against an arm that was kept by the seeds at hand, and then it is
    not counted; LedgerError.
    """
    sides = {"new": evidence.summarize(new), "incumbent": evidence.summarize(incumbent)}
    compatibility.refuse(sides, {name: compatibility.planned_jobs(of.run.sweep) for name, of in _both(new, incumbent)})
    for name, side in sides.items():
        if side.unit == "repeat":
            raise RunError(f"the {name} run has repeats of its tuning as units, of which nothing is asked here")
    labels = {"new": _arm(new, incumbent, sides, arm, baseline), "incumbent": _baseline(sides["incumbent"], baseline)}
    label = labels["new"]
    with _held(incumbent):
        asked = [json.loads(event.text) for event in incumbent.events(ASKED)]
        planned = _planned(incumbent, questions)
        for earlier in asked:
            if (earlier["run"], earlier["arm"], earlier["incumbent"]) == (new.uuid, label, labels["incumbent"]):
                answer = _read(earlier)
                _keep(new, answer, sides, labels)
                return answer
        if len(asked) >= planned:
            raise RunError(
                f"all {planned} questions against this run were asked; confirm the incumbent anew, on fresh seeds, and "
                "ask against that run"
            )
        _refuse_chosen(incumbent, sides, labels)
        answer = _judge(sides, new, incumbent, labels, number=len(asked) + 1, questions=planned)
        _keep(new, answer, sides, labels)
        if not incumbent.events(PLANNED):
            incumbent.event(PLANNED, str(planned))
        incumbent.event(ASKED, json.dumps(asdict(answer)))
        return answer


def next_command(answer: Answer, run: str) -> str:
    """Return the command by which what is kept is confirmed on fresh seeds."""
    return _confirming(answer.fresh_seeds, f"{run}-confirmed")


def _confirming(seeds: Sequence[int], into: str) -> str:
    return f"orchestrator launch SWEEP --set {shlex.quote(f'confirm.seeds={list(seeds)}')} --into {shlex.quote(into)}"


def _keep(new: Ledger, answer: Answer, sides: dict[str, Summary], labels: dict[str, str]) -> None:
    """Record a keep with the run of the arm that was kept, once: there questions against the arm look for it."""
    if not answer.keep:
        return
    chosen = {"arm": answer.arm, "seeds": _shared(sides, labels), "fresh_seeds": answer.fresh_seeds}
    text = json.dumps(chosen)
    if text not in {event.text for event in new.events(KEPT)}:
        with _held(new):
            new.event(KEPT, text)


def _refuse_chosen(incumbent: Ledger, sides: dict[str, Summary], labels: dict[str, str]) -> None:
    """Raise RunError where the arm that is asked against was kept by seeds of this question: they flatter it."""
    shared = set(_shared(sides, labels))
    for event in incumbent.events(KEPT):
        kept = json.loads(event.text)
        if kept["arm"] == labels["incumbent"] and (again := sorted(shared & set(kept["seeds"]))):
            raise RunError(
                f"{kept['arm']} of the incumbent's run was chosen by these very seeds ({ranges(again)}), which flatter "
                "it; confirm it on fresh ones, ask against that run, and launch the new arm with these seeds too: "
                f"{_confirming(kept['fresh_seeds'], 'OTHER-confirmed')}"
            )


def _shared(sides: dict[str, Summary], labels: dict[str, str]) -> list[int]:
    """List the seeds that both arms were to train."""
    due = _due(sides["incumbent"], labels["incumbent"])
    return [seed for seed in _due(sides["new"], labels["new"]) if seed in due]


def _judge(
    sides: dict[str, Summary],
    new: Ledger,
    incumbent: Ledger,
    labels: dict[str, str],
    *,
    number: int,
    questions: int,
) -> Answer:
    old, label, baseline = sides["incumbent"], labels["new"], labels["incumbent"]
    confirm = {name: arms.confirmed(ledger, ledger.trials("confirm")) for name, ledger in _both(new, incumbent)}
    mine, theirs = confirm["new"].values.get(label, {}), confirm["incumbent"].values.get(baseline, {})
    fallen = confirm["new"].diverged[label] | confirm["incumbent"].diverged[baseline]
    both = _shared(sides, labels)
    if missing := [seed for seed in both if seed not in fallen and not (seed in mine and seed in theirs)]:
        raise RunError(
            f"{counted(len(missing), 'seed')} that both runs planned ({', '.join(map(str, missing[:5]))}) have no "
            "value in both; resume the run that lacks them"
        )
    alpha = statistics.ALPHA / questions
    fewest = next(n for n in range(1, 64) if 2.0**-n <= alpha)
    if len(both) < fewest:
        helps = f"launch the new arm with confirm.seeds = {list(old.seeds)}"
        if len(old.seeds) < fewest:
            helps = f"ask fewer questions, or confirm the incumbent with confirm.seeds = {fewest} first"
        raise RunError(
            f"the runs share {counted(len(both), 'seed')}, and {counted(questions, 'question')} take {fewest} to be "
            f"able to keep anything; {helps}"
        )
    values = {"new": mine, "incumbent": theirs}
    diverged = statistics.Divergence(
        {"new": confirm["new"].diverged[label], "incumbent": confirm["incumbent"].diverged[baseline]}
    )
    (result,) = statistics.compare(values, [("new", "incumbent")], seeds=both, mode=old.mode, divergence=diverged)
    sign = 1 if old.mode == "max" else -1
    differences = [sign * pair.difference for pair in result.pairs]
    p = statistics.one_sided_p(differences)
    bound = one_sided_bound(differences, alpha) if result.n_trained == result.n else None
    fell: list[Literal["new", "incumbent"]] = [side for side in SIDES if side in result.diverged_arms]
    used = {
        *sides["new"].seeds,
        *old.seeds,
        *(trial.seed for _, ledger in _both(new, incumbent) for trial in ledger.trials()),
    }
    first = max(used) + 1
    return Answer(
        incumbent=baseline,
        arm=label,
        run=new.uuid,
        question=number,
        questions=questions,
        n=result.n,
        delta=result.delta_trained or 0.0,
        ci95=result.ci95,
        p=p,
        alpha=alpha,
        keep=p <= alpha and result.verdict != "diverges",
        fresh_seeds=list(range(first, first + len(both))),
        bound=None if bound is None else sign * bound + 0.0,  # 0 has no sign
        mode=old.mode,
        n_trained=result.n_trained,
        diverged_sides=fell,
        metric=old.metric if any(side.metrics for side in sides.values()) else "",
    )


def _both(new: Ledger, incumbent: Ledger) -> list[tuple[str, Ledger]]:
    return [("new", new), ("incumbent", incumbent)]


def _due(summary: Summary, label: str) -> Sequence[int]:
    """List the seeds that an arm was to train: with looks that have ended, no more than it had by then."""
    return summary.seeds if summary.looks is None else summary.seeds[: summary.looks.due.get(label, 0)]


def _baseline(summary: Summary, label: str | None) -> str:
    """Choose the arm that is asked against."""
    labels = [arm.label for arm in summary.arms]
    if label is None:
        return summary.comparisons[0].result.b if summary.comparisons else labels[0]
    if label not in labels:
        raise RunError(
            f"{label!r} is no arm of the incumbent's run{nearest(label, labels)}; it has {', '.join(labels)}"
        )
    return label


def _arm(new: Ledger, incumbent: Ledger, sides: dict[str, Summary], label: str | None, baseline: str | None) -> str:
    """Choose the arm that is asked about."""
    labels = [arm.label for arm in sides["new"].arms]
    if label is None:
        old = _objectives(incumbent)[_baseline(sides["incumbent"], baseline)]
        other = [name for name, objective in _objectives(new).items() if objective != old]
        if len(other) != 1:
            raise RunError(f"the run has several arms; say which one is new: --arm {shlex.quote(labels[-1])}")
        return other[0]
    if label not in labels:
        raise RunError(f"{label!r} is no arm of the run{nearest(label, labels)}; it has {', '.join(labels)}")
    return label


def _objectives(ledger: Ledger) -> dict[str, str]:
    """Return what each arm of a run optimises, as text."""
    plan = planning.stored(ledger.run.sweep, ledger.run.rules)
    return {arm.label: arm.objective for arm in plan.arms}


def _planned(incumbent: Ledger, questions: int | None) -> int:
    """Return how many questions there may be, as stored, or as asked for by the first."""
    stored = [int(event.text) for event in incumbent.events(PLANNED)]
    if stored and questions not in (None, stored[0]):
        raise RunError(f"the first question fixed their number at {stored[0]}; leave out --questions {questions}")
    return stored[0] if stored else questions or USUAL


def _read(kept: JsonObject) -> Answer:
    values: dict[str, object] = {**kept}
    if isinstance(ends := values["ci95"], list):
        values["ci95"] = tuple(ends)
    return Answer(**values)  # type: ignore[arg-type] # as `ask` wrote it


@contextmanager
def _held(ledger: Ledger) -> Iterator[None]:
    """Hold the lease of a run that nobody drives, for as long as a question takes."""
    ledger.acquire(this_process(), LEASE_S)
    try:
        yield
    finally:
        ledger.release()
