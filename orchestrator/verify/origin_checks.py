"""What the attempts of a run ran with: its numbers belong together if code, data and weights were the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from jobs.core.provenance import other_versions
from orchestrator.ledger import Attempt
from orchestrator.run_dir.provenance import behind
from orchestrator.verify.facts import Facts, Finding, counted

SHOWN = 8
"""Digits of a digest that are shown of code."""


@dataclass(frozen=True)
class Code:
    """The code of an attempt, and the versions of packages that are not those of the run, `none` of one not there."""

    digest: str
    versions: tuple[tuple[str, str], ...]

    def __str__(self) -> str:
        packages = ", ".join(f"{package} {version}" for package, version in self.versions)
        return f"code {self.digest[:SHOWN]}{f' with {packages}' if packages else ''}"


def _data(facts: Facts) -> Iterator[Finding]:
    begun = facts.run.provenance or {}
    for trial, attempt in _recorded(facts):
        ran = attempt.provenance or {}
        for kind in ("data", "weights"):
            for what, digest in (ran.get(kind) or {}).items():
                wanted = _digests((begun.get(kind) or {}).get(what))
                if digest is not None and wanted and digest not in wanted:
                    yield Finding(
                        f"trial {trial}: attempt {attempt.number} ran with other {kind} than the run was begun with: "
                        f"{what} had {', '.join(sorted(wanted))}, then {digest}",
                        "its numbers do not belong with the others: put back what the run was begun with, and begin "
                        f"anew: {facts.again}",
                    )


def _code(facts: Facts) -> Iterator[Finding]:
    begun = facts.run.provenance or {}
    for trial, attempt in _recorded(facts):
        if (code := _code_of(attempt, begun)) is not None and code not in {_first(begun), *_accepted(begun)}:
            yield Finding(
                f"trial {trial}: attempt {attempt.number} ran {code}, which is not the run's ({_first(begun)}) and was "
                "not accepted",
                f"with that code at hand accept it: {facts.resume} --accept-code; or begin anew: {facts.again}",
            )


def _codes(facts: Facts) -> Iterator[str]:
    begun = facts.run.provenance or {}
    first = _first(begun)
    attempts = (attempt for of_trial in facts.attempts.values() for attempt in of_trial)
    groups = [group for group in behind(begun, facts.trials.values(), attempts) if group["code"] and first is not None]
    shown = sorted(
        ((_made(group, begun), group) for group in groups), key=lambda pair: (pair[0] != first, str(pair[0]))
    )
    if any(code != first for code, _ in shown):
        parts = [
            f"{counted(len(group['trials']), 'trial')} by {code}{' (accepted)' if group['accepted'] else ''}"
            for code, group in shown
        ]
        yield f"versions of code: {', '.join(parts)}"


def _unrecorded(facts: Facts) -> Iterator[str]:
    recorded = {trial for trial, attempt in _recorded(facts) if (attempt.provenance or {}).get("code")}
    if missing := sum(trial.id not in recorded for trial in facts.started):
        yield f"code not recorded: {counted(missing, 'trial')}"


def _recorded(facts: Facts) -> Iterator[tuple[str, Attempt]]:
    """Attempts of which is known what they ran with, in the order of trials."""
    for trial in facts.trials:
        for attempt in facts.attempts.get(trial, []):
            if attempt.provenance:
                yield trial, attempt


def _first(begun: Mapping[str, Any]) -> Code | None:
    return Code(begun["code"], ()) if begun.get("code") else None


def _accepted(begun: Mapping[str, Any]) -> set[Code | None]:
    return {_made(entry, begun) for entry in begun.get("accepted") or ()}


def _code_of(attempt: Attempt, begun: Mapping[str, Any]) -> Code | None:
    """None where the attempt or the run has none recorded."""
    ran = attempt.provenance or {}
    return _made(ran, begun) if ran.get("code") and begun.get("code") else None


def _made(ran: Mapping[str, Any], begun: Mapping[str, Any]) -> Code:
    first = begun.get("versions") or {}
    versions = ran.get("versions") or {}
    return Code(ran["code"], tuple((key, versions.get(key, "none")) for key in other_versions(first, versions)))


def _digests(value: Any) -> set[str]:
    """What is recorded of a source: its digest, or those of several."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, Mapping):
        own = value.get("digest")
        return {own} if isinstance(own, str) else set().union(*map(_digests, value.values()))
    return set()


CHECKS = (_data, _code)
NOTES = (_codes, _unrecorded)
