"""What the ids of texts and images say, to all that compare them. Imports nothing."""

from __future__ import annotations

ABSENT = -(2**63)
"""Id of a hard negative that is not there, as a row has fewer than others: a negative of nobody. No hash is this."""
