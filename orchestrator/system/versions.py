"""The version of what each verb prints as JSON. Within a version keys may be added; one that goes, or means something
else, raises it. `orchestrator schema VERB` prints what it promises."""

from __future__ import annotations

from collections.abc import Mapping

VERSIONS = {"plan": 1, "doctor": 1, "status": 1, "compare": 1, "verify": 1, "export": 1, "ui": 1}
"""By verb."""


def versioned(verb: str, answer: Mapping[str, object]) -> dict[str, object]:
    """Return what a verb prints as JSON, with its version. What another machine has answered keeps its own."""
    return {"version": VERSIONS[verb], **answer}
