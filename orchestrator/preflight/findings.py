"""What the doctor finds, as data and as lines for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

from orchestrator.system.display import counted
from orchestrator.system.masking import masked

Level = Literal["blocker", "warning", "ok"]

BLOCKER: Level = "blocker"
WARNING: Level = "warning"
OK: Level = "ok"

ORDER = (BLOCKER, WARNING, OK)


@dataclass(frozen=True)
class Finding:
    """One thing that was looked at."""

    check: str
    where: str
    """A node, or what else was asked."""

    level: Level
    found: str
    remedy: str = ""

    def __post_init__(self) -> None:
        """Mask what quotes an address that this process was given, or an error of a library."""
        for name in ("where", "found", "remedy"):
            object.__setattr__(self, name, masked(getattr(self, name)))

    @property
    def line(self) -> str:
        """In one line, for notes."""
        return f"{self.check}, {self.where}: {self.found}; {self.remedy}"


def of_error(check: str, where: str, error: Exception) -> Finding:
    """Make a blocker from an error of this program: its text says what was found, and then what would work."""
    what, _, remedy = str(error).partition("; ")
    return Finding(check, where, BLOCKER, what, remedy or "see that it is there, then ask again")


class FindingSummary(TypedDict):
    """One thing that was looked at, as JSON."""

    check: str
    where: str
    """A node, or what else was asked."""
    level: Level
    found: str
    remedy: str
    """Empty where nothing is wrong."""


class FindingsSummary(TypedDict):
    """What the doctor has found, as JSON."""

    ready: bool
    """Whether there is no blocker."""
    blockers: int
    warnings: int
    findings: list[FindingSummary]


def summary(findings: Sequence[Finding]) -> FindingsSummary:
    """Sum the findings up as plain values: `ready`, how many of each level, and the findings."""
    blockers, warnings = (sum(finding.level == level for finding in findings) for level in (BLOCKER, WARNING))
    listed: list[FindingSummary] = [
        {"check": one.check, "where": one.where, "level": one.level, "found": one.found, "remedy": one.remedy}
        for one in findings
    ]
    return {"ready": blockers == 0, "blockers": blockers, "warnings": warnings, "findings": listed}


def lines(findings: Sequence[Finding]) -> list[str]:
    """Write the findings for a person: the worst first, each with its remedy below, and a last line that sums up."""
    shown = []
    wide = max((len(finding.check) for finding in findings), default=0)
    for finding in sorted(findings, key=lambda finding: ORDER.index(finding.level)):
        shown.append(f"{finding.level:<8} {finding.check:<{wide}}  {finding.where}: {finding.found}")
        if finding.level != OK:
            shown.append(f"{'':<8} {'':<{wide}}  -> {finding.remedy}")
    sums = summary(findings)
    of_level = ((BLOCKER, sums["blockers"]), (WARNING, sums["warnings"]))
    counts = [counted(count, level) for level, count in of_level if count]
    shown.append(f"{'ready' if sums['ready'] else 'not ready'}: {', '.join(counts) or 'nothing wrong'}")
    return shown
