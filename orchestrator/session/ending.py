"""How a session ended: the exit code, the state of the run, and why, in the words of what happened."""

from __future__ import annotations

from dataclasses import dataclass

from orchestrator.ledger import Ledger, RunState, Trial
from orchestrator.session.schedule import (
    awaiting_oom_decision,
    is_stopped,
    no_job,
    passed_over,
    setting_of,
    stopped_arms,
    stopped_swaps,
    swapping,
    untuned_arms,
)
from orchestrator.session.session import Session
from orchestrator.sweep.plan import Plan
from orchestrator.system.exit_codes import Exit


@dataclass(frozen=True)
class Ending:
    """What a session came to."""

    code: Exit
    state: RunState
    lines: tuple[str, ...]
    """For a person, each with what to do."""


def of(session: Session) -> Ending:
    """Describe how an unbroken session has ended."""
    plan, ledger, run = session.context.plan, session.context.ledger, session.context.folder.quoted
    trials = ledger.trials()
    lines = [
        *_waiting(trials, run),
        *_arms(plan, ledger, trials),
        *_failed(trials, run, own=plan.sweep.code is not None),
    ]
    if session.stopped_by is not None:
        code = Exit.INTERRUPTED if session.interrupted else Exit.MISSING if session.storage_full else Exit.SOME_FAILED
        if session.other_origin is not None and not session.interrupted:
            code = Exit.BAD_USAGE
        lines = [f"stopped: {session.stopped_by}", f"continue:  orchestrator resume {run}", *lines]
        return Ending(code, "stopped", tuple(lines))
    untuned = untuned_arms(plan, ledger)  # nothing more can be done for them, unless a person queues trials again
    waiting = [arm.label for arm in plan.arms if arm.label not in ledger.frozen() and arm.label not in untuned]
    left = _is_left(trials)
    whole = not waiting and not left
    if not whole and not lines:
        lines = [f"the session ended before every trial did; continue: orchestrator resume {run}"]
    failed = any(trial.state == "failed" for trial in trials) or "failed" in untuned.values()
    lines += _passed_over(plan, ledger)
    return Ending(Exit.DONE if whole and not failed else Exit.SOME_FAILED, "done" if whole else "stopped", tuple(lines))


def _is_left(trials: list[Trial]) -> bool:
    """Return whether a trial is still to end. One at another arm's setting that is stopped is not waited for: the
    answer is there without it."""
    stopped, unswapped = stopped_arms(trials), stopped_swaps(trials)
    return any(
        trial.state == "running"
        or (trial.state == "queued" and not (trial.stage == "swap" and is_stopped(trial, stopped, unswapped)))
        for trial in trials
    )


def _passed_over(plan: Plan, ledger: Ledger) -> list[str]:
    """Report the arms that had fewer settings tried than the others, because some settings make no job."""
    return [
        f"arm {arm}: {len(whys)} of its {plan.asked(arm)} suggestions make no job and were passed over: {whys[0]}"
        for arm, whys in passed_over(plan, ledger).items()
    ]


def _failed(trials: list[Trial], run: str, *, own: bool) -> list[str]:
    """Explain what to do about failed trials. own: whether the run has the user's own code."""
    count = sum(trial.state == "failed" for trial in trials)
    if not count:
        return []
    what = "1 trial failed" if count == 1 else f"{count} trials failed"
    given_up = all(trial.outcome == "infeasible" for trial in trials if trial.state == "failed")
    if given_up:
        them = "it" if count == 1 else "them"
        return [f"{what}, and somebody gave {them} up; see: orchestrator status {run}"]
    mended = f"with code that you mended: orchestrator launch SWEEP --into {run} --accept-code, and then that"
    return [
        f"{what}; see:       orchestrator status {run}",
        f"try again:              orchestrator resume {run} --failed",
        *([mended] if own else []),
    ]


def _arms(plan: Plan, ledger: Ledger, trials: list[Trial]) -> list[str]:
    """Report the arms that came to no answer, and why."""
    lines = []
    stopped, untuned, frozen = stopped_arms(trials), untuned_arms(plan, ledger), ledger.frozen()
    for arm, message in stopped.items():
        lines.append(f"arm {arm} is stopped, as its trials fail in the same way: {message}")
    if unswapped := stopped_swaps(trials):
        one_of = {setting_of(trial): trial for trial in trials if trial.stage == "swap"}
        for setting, message in unswapped.items():
            at = f"another's setting ({swapping.setting_in_words(plan, one_of[setting])})"
            lines.append(f"arm {setting[0]} at {at} is stopped, as its trials fail in the same way: {message}")
    for arm, why in untuned.items():
        leader = plan.searched_with.get(arm)
        if leader in frozen:
            reason = no_job(plan, arm, "confirm", frozen[leader].params)
            lines.append(f"arm {arm} cannot be confirmed with what {leader} was tuned to: {reason}")
            continue
        within = "in a repeat of its tuning " if plan.repeats > 1 else ""
        of = f"{within}none of its {plan.asked(plan.searched_with.get(arm, arm))} suggestions trained to its end"
        if why == "diverged":
            lines.append(f"arm {arm} diverges: {of}, so it is not confirmed")
        elif arm not in stopped:
            lines.append(f"arm {arm} could not be tuned: {of}")
    return lines


def _waiting(trials: list[Trial], run: str) -> list[str]:
    arms = sorted(
        {trial.arm for trial in trials if trial.stage == "tune" and awaiting_oom_decision(trial)}
        - set(stopped_arms(trials))
    )
    if not arms:
        return []
    resume = f"orchestrator resume {run}"
    return [
        f"tuning of {', '.join(arms)} waits: a trial ran out of memory, which says nothing about its setting.",
        f"  try it with less:  {resume} --failed --class out_of_memory --set job.execution.micro=32",
        f"  or do without it:  {resume} --give-up --class out_of_memory",
    ]
