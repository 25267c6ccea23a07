"""One new arm against a stored baseline, as often as was planned: so that who tries one change after another keeps
changes and not noise.

The number of questions is fixed by the first and stored with the incumbent's run; each is a one-sided exact sign-flip
test on the seeds that both arms have, at 0.05 divided by that number (Bonferroni), so all of them together keep noise
once in twenty. Assumption: a seed's difference is symmetric about 0 where there is none. What is kept is confirmed on
fresh seeds before it is asked against: it was chosen by the old ones.
"""

from __future__ import annotations

import json
import shlex
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass

from jobs.config import nearest
from orchestrator import statistics
from orchestrator.ledger import Ledger, this_process
from orchestrator.ledger.stored import JsonObject
from orchestrator.report.formatting import interval, probability, signed
from orchestrator.report.summary import arms, compatibility, evidence
from orchestrator.report.summary.records import Summary
from orchestrator.run_dir.folder import RunError
from orchestrator.sweep import plan as planning
from orchestrator.system.display import counted

PLANNED, ASKED = "questions", "question"
"""Kinds of the events in which the incumbent's ledger keeps how many there may be, and each that was asked."""

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

    @property
    def sentence(self) -> str:
        """The answer in words."""
        evidence_ = f"{signed(self.delta)} (95% {interval(self.ci95, sign=True)}, p = {probability(self.p)} against "
        evidence_ += f"{self.alpha:.3g}, {counted(self.n, 'seed')}, question {self.question} of {self.questions})"
        if not self.keep:
            return f"Discard {self.arm}: it is not shown to beat {self.incumbent}: {evidence_}."
        return (
            f"Keep {self.arm}: it beats {self.incumbent}: {evidence_}. Confirm it on fresh seeds before the next one."
        )

    def to_json(self) -> JsonObject:
        """Return the answer as JSON."""
        plain: JsonObject = json.loads(json.dumps(asdict(self)))
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
    fixed by the first. A question that was asked has its answer, and costs no other one. Raises RunError where
    it cannot be asked, and then it is not counted; LedgerError.
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
            if (earlier["run"], earlier["arm"]) == (new.uuid, label):
                return _read(earlier)
        if len(asked) >= planned:
            raise RunError(
                f"all {planned} questions against this run were asked; confirm the incumbent anew, on fresh seeds, and "
                "ask against that run"
            )
        answer = _judge(sides, new, incumbent, labels, number=len(asked) + 1, questions=planned)
        if not incumbent.events(PLANNED):
            incumbent.event(PLANNED, str(planned))
        incumbent.event(ASKED, json.dumps(asdict(answer)))
        return answer


def next_command(answer: Answer, run: str) -> str:
    """Return the command by which what is kept is confirmed on fresh seeds."""
    seeds = f"confirm.seeds={answer.fresh_seeds}"
    return f"orchestrator launch SWEEP --set {shlex.quote(seeds)} --into {shlex.quote(f'{run}-confirmed')}"


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
    both = [seed for seed in _due(sides["new"], label) if seed in _due(old, baseline)]
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
    p = statistics.one_sided_p([sign * pair.difference for pair in result.pairs])
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
