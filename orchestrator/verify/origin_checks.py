"""What the attempts of a run ran with: its numbers belong together if code, data and weights were the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from jobs.core.provenance import other_versions
from orchestrator.ledger import Attempt
from orchestrator.ledger.stored import ProvenanceRecord
from orchestrator.run_dir import own_code
from orchestrator.run_dir.provenance import behind
from orchestrator.verify.facts import Facts, Finding, counted

Recorded = Mapping[str, object]
"""What a run or an attempt has recorded of what it ran with."""

SHOWN = 8
"""Digits of a digest that are shown of code."""


@dataclass(frozen=True)
class Code:
    """The code of an attempt, and the versions of packages that are not those of the run, `none` of one not there."""

    digest: str
    versions: tuple[tuple[str, str], ...]
    own: str = ""
    """Digest of the user's code; empty without any."""

    def __str__(self) -> str:
        packages = ", ".join(f"{package} {version}" for package, version in self.versions)
        own = f" and your code {self.own[:SHOWN]}" if self.own else ""
        return f"code {self.digest[:SHOWN]}{own}{f' with {packages}' if packages else ''}"


def _data(facts: Facts) -> Iterator[Finding]:
    begun = facts.run.provenance or {}
    for trial, attempt in _recorded(facts):
        for kind in ("data", "weights"):
            recorded = _table(begun, kind)
            for what, digest in _table(attempt.provenance or {}, kind).items():
                wanted = _digests(recorded.get(what))
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


def _kept(facts: Facts) -> Iterator[Finding]:
    """Yield a fault where the user's code in the run is none of those that the run may compute with."""
    begun = facts.run.provenance or {}
    known = {code.own for code in (_first(begun), *_accepted(begun)) if code is not None and code.own}
    if known and facts.user_code not in known:
        there = "is gone or cannot be read" if facts.user_code is None else f"is {facts.user_code[:SHOWN]}"
        yield Finding(
            f"the user's code in {facts.within(own_code.CODE)} {there}, and the run computes with "
            f"{', '.join(sorted(digest[:SHOWN] for digest in known))}",
            "put back the code of then, and launch the sweep again in the same folder",
        )


def _codes(facts: Facts) -> Iterator[str]:
    begun: ProvenanceRecord = facts.run.provenance or {}
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
    """Yield the attempts with a record of what they ran with, in the order of trials."""
    for trial in facts.trials:
        for attempt in facts.attempts.get(trial, []):
            if attempt.provenance:
                yield trial, attempt


def _first(begun: Recorded) -> Code | None:
    digest = begun.get("code")
    return Code(str(digest), (), str(begun.get("user_code") or "")) if digest else None


def _accepted(begun: Recorded) -> set[Code | None]:
    entries = begun.get("accepted")
    return {_made(entry, begun) for entry in (entries if isinstance(entries, list) else ()) if isinstance(entry, dict)}


def _code_of(attempt: Attempt, begun: Recorded) -> Code | None:
    """Return the code of an attempt; None where the attempt or the run has none recorded."""
    ran = attempt.provenance or {}
    return _made(ran, begun) if ran.get("code") and begun.get("code") else None


def _made(ran: Recorded, begun: Recorded) -> Code:
    first, versions = _texts(begun, "versions"), _texts(ran, "versions")
    other = tuple((package, versions.get(package, "none")) for package in other_versions(first, versions))
    return Code(str(ran["code"]), other, str(ran.get("user_code") or ""))


def _table(recorded: Recorded, key: str) -> Recorded:
    table = recorded.get(key)
    return table if isinstance(table, dict) else {}


def _texts(recorded: Recorded, key: str) -> dict[str, str]:
    return {name: text for name, text in _table(recorded, key).items() if isinstance(text, str)}


def _digests(value: object) -> set[str]:
    """Collect what is recorded of a source: its digest, or those of several."""
    if isinstance(value, str):
        return {value}
    if isinstance(value, dict):
        own = value.get("digest")
        return {own} if isinstance(own, str) else set().union(*map(_digests, value.values()))
    return set()


CHECKS = (_data, _code, _kept)
NOTES = (_codes, _unrecorded)
