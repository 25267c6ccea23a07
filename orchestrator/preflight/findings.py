"""What the doctor finds, and how it is told."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

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
        """Any of it may quote an address that this process was given, or an error of a library."""
        for name in ("where", "found", "remedy"):
            object.__setattr__(self, name, masked(getattr(self, name)))


def of_error(check: str, where: str, error: Exception) -> Finding:
    """A blocker, from an error of ours: they say what was found, and then what would work."""
    found, _, remedy = str(error).partition("; ")
    return Finding(check, where, BLOCKER, found, remedy or "see that it is there, then ask again")


def summary(findings: Sequence[Finding]) -> dict[str, Any]:
    """As plain values: `ready`, how many of each level, and the findings."""
    counts = {f"{level}s": sum(one.level == level for one in findings) for level in (BLOCKER, WARNING)}
    return {"ready": counts["blockers"] == 0, **counts, "findings": [asdict(one) for one in findings]}


def lines(findings: Sequence[Finding]) -> list[str]:
    """For a person: the worst first, each with its remedy below, and a last line that sums up."""
    told = []
    wide = max((len(one.check) for one in findings), default=0)
    for one in sorted(findings, key=lambda one: ORDER.index(one.level)):
        told.append(f"{one.level:<8} {one.check:<{wide}}  {one.where}: {one.found}")
        if one.level != OK:
            told.append(f"{'':<8} {'':<{wide}}  -> {one.remedy}")
    sums = summary(findings)
    counts = [f"{n} {level}{'s' * (n != 1)}" for level in (BLOCKER, WARNING) if (n := sums[f"{level}s"])]
    told.append(f"{'ready' if sums['ready'] else 'not ready'}: {', '.join(counts) or 'nothing wrong'}")
    return told
