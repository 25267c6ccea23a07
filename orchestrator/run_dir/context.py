"""What one driver works on, made once and passed whole: the plan, the run's folder, its ledger, and what is asked of
the session."""

from __future__ import annotations

from dataclasses import dataclass, field

from orchestrator.ledger import Ledger
from orchestrator.run_dir.folder import RunFolder
from orchestrator.sweep.plan import Plan
from orchestrator.sweep.values import Settings


@dataclass(frozen=True)
class RetryFailed:
    """What becomes of failed trials."""

    kind: str | None = None
    """Only those of this failure class; None: all."""

    give_up: bool = False
    """They get no other attempt, and their settings count as infeasible."""


@dataclass(frozen=True)
class Extend:
    """What is added to a run whose planned trials have ended."""

    seeds: int = 0
    """Further seeds of each arm."""

    trials: int = 0
    """Further suggestions of each arm."""

    arms: tuple[str, ...] = ()
    """Of which arms; none: of all."""


@dataclass(frozen=True)
class Options:
    """How a session is carried out; none of it changes what a trial measures."""

    offline: bool = False
    """Leave MLflow for later."""

    accept_code: bool = False
    """Go on though the run was begun with other code or versions, and record that."""

    retry: RetryFailed | None = None
    """What becomes of the trials that have failed; None: they stay failed."""

    extend: Extend | None = None
    """What is added; None: nothing."""

    execution: Settings = field(default_factory=dict)
    """Settings of `job.execution` that new attempts get."""


USUAL = Options()
"""What is asked of a session unless a person says otherwise."""


@dataclass(frozen=True)
class RunContext:
    """One run, as its driver has it open."""

    plan: Plan
    folder: RunFolder
    ledger: Ledger
    options: Options = USUAL

    @property
    def is_left(self) -> bool:
        """Whether anything is still to be trained."""
        if self.options.extend is not None or self.ledger.run.state != "done" or self.ledger.trials(state="queued"):
            return True
        retry = self.options.retry
        return retry is not None and not retry.give_up and bool(self.ledger.trials(state="failed"))
