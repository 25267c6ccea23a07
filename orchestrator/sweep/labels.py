"""Labels of arms: what heads rows and charts, and names an arm on the command line."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from jobs.config import Fault
from orchestrator.sweep.model import Arm

LONGEST_LABEL = 200


def label_faults(arms: Iterable[Arm]) -> Iterable[Fault]:
    """Labels that no line of a table or a log can show."""
    for arm in arms:
        text = repr(arm.label if len(arm.label) <= 60 else arm.label[:57] + "...")
        if strange := [character for character in arm.label if _breaks_lines(character)]:
            expected = f"the label holds the control character {strange[0]!r}; a label is one line of plain text"
            yield Fault("arm", text, expected)
        elif arm.label.strip() not in ("", arm.label):
            yield Fault("arm", text, f"the label begins or ends with a blank; write {arm.label.strip()!r}")
        elif len(arm.label) > LONGEST_LABEL:
            expected = (
                f"the label has {len(arm.label):,} characters; at most {LONGEST_LABEL}: it heads rows and charts "
                "(name arms with [[arm]] where [compare] makes long ones)"
            )
            yield Fault("arm", text, expected)


def _breaks_lines(character: str) -> bool:
    return unicodedata.category(character) in ("Cc", "Cs", "Zl", "Zp")
