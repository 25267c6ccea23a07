"""How good an encoder is. A metric of your own that is no mean over rows gives what `by_row` makes of its columns."""

from jobs.core.outcomes import Outcomes, by_row

__all__ = ["Outcomes", "by_row"]
