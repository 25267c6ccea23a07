"""Labels of arms: what heads rows and charts, and names an arm on the command line."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable, Mapping

from pydantic import JsonValue

from jobs.config import ConfigIssue
from orchestrator.sweep.model import Arm
from orchestrator.sweep.values import shown

LONGEST_LABEL = 200

FILLERS = "\u034f\u115f\u1160\u17b4\u17b5\u180b\u180c\u180d\u180f\u2800\u3164\uffa0"
"""Characters without a picture that are no formats and no blanks by their category."""


def label_issues(named: Iterable[Mapping[str, JsonValue]], arms: Iterable[Arm]) -> Iterable[ConfigIssue]:
    """Yield an issue for each label that no line of a table or a log can show, or that nobody can tell from another.
    named: the [[arm]] tables."""
    for index, table in enumerate(named):
        label = table.get("label", "")
        if isinstance(label, bool) or not isinstance(label, str | int):
            expected = f"a label is a text; write label = {shown(str(label))}, or another one"
            yield ConfigIssue(f"arm[{index}].label", str(label)[:60], expected)
    arms = list(arms)
    yield from _alike_issues(arms)
    for arm in arms:
        text = repr(arm.label if len(arm.label) <= 60 else arm.label[:57] + "...")
        if strange := [character for character in arm.label if _breaks_lines(character)]:
            expected = f"the label holds the control character {strange[0]!r}; a label is one line of plain text"
            yield ConfigIssue("arm", text, expected)
        elif arm.label.strip() not in ("", arm.label):
            yield ConfigIssue("arm", text, f"the label begins or ends with a blank; write {arm.label.strip()!r}")
        elif len(arm.label) > LONGEST_LABEL:
            expected = (
                f"the label has {len(arm.label):,} characters; at most {LONGEST_LABEL}: it heads rows and charts "
                "(name arms with [[arm]] where [compare] makes long ones)"
            )
            yield ConfigIssue("arm", text, expected)


def _alike_issues(arms: Iterable[Arm]) -> Iterable[ConfigIssue]:
    seen: dict[str, str] = {}
    for arm in arms:
        picture = _picture(arm.label)
        other = seen.setdefault(picture, arm.label)
        if arm.label.strip() and not picture:
            yield ConfigIssue("arm", ascii(arm.label), "the label has no character that can be seen; give it a name")
        elif other != arm.label:
            expected = (
                f"the label looks like {other!a}, and nobody could tell them apart; write another one (name arms "
                "with [[arm]] where [compare] makes them alike)"
            )
            yield ConfigIssue("arm", ascii(arm.label), expected)


def _picture(label: str) -> str:
    """Return what can be seen of a label: one form of each character, one kind of blank, nothing without a picture."""
    kept = (
        character
        for character in label
        if unicodedata.category(character) != "Cf" and character not in FILLERS and not _selects(character)
    )
    return " ".join(unicodedata.normalize("NFKC", "".join(kept)).split())


def _selects(character: str) -> bool:
    """Return whether a character is a variation selector: it only chooses a variant of the character before it."""
    return "\ufe00" <= character <= "\ufe0f" or "\U000e0100" <= character <= "\U000e01ef"


def _breaks_lines(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
