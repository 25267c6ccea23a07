"""What the doctor finds, as data and as lines for a person."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

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


def of_error(check: str, where: str, error: Exception) -> Finding:
    """Make a blocker from an error of this program: its text says what was found, and then what would work."""
    what, _, remedy = str(error).partition("; ")
    return Finding(check, where, BLOCKER, what, remedy or "see that it is there, then ask again")


def summary(findings: Sequence[Finding]) -> dict[str, object]:
    """Sum the findings up as plain values: `ready`, how many of each level, and the findings."""
    counts = {f"{level}s": sum(finding.level == level for finding in findings) for level in (BLOCKER, WARNING)}
    return {"ready": counts["blockers"] == 0, **counts, "findings": [asdict(finding) for finding in findings]}


def lines(findings: Sequence[Finding]) -> list[str]:
    """Write the findings for a person: the worst first, each with its remedy below, and a last line that sums up."""
    shown = []
    wide = max((len(finding.check) for finding in findings), default=0)
    for finding in sorted(findings, key=lambda finding: ORDER.index(finding.level)):
        shown.append(f"{finding.level:<8} {finding.check:<{wide}}  {finding.where}: {finding.found}")
        if finding.level != OK:
            shown.append(f"{'':<8} {'':<{wide}}  -> {finding.remedy}")
    sums = summary(findings)
    counts = [f"{n} {level}{'s' * (n != 1)}" for level in (BLOCKER, WARNING) if (n := sums[f"{level}s"])]
    shown.append(f"{'ready' if sums['ready'] else 'not ready'}: {', '.join(counts) or 'nothing wrong'}")
    return shown
