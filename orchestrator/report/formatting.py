"""How numbers are written, in one place, so that the page, the tables and the terminal agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

NOTHING = "–"
"""Written where there is no number."""

MOST_NAMED = 6
"""Of arms with one verdict, or of places, those that a sentence names; of more it says how many there are."""


def enumerated(parts: Sequence[str], last: str = "and") -> str:
    """List `a`, `a and b`, or `a, b and c`."""
    return f"{', '.join(parts[:-1])} {last} {parts[-1]}" if len(parts) > 1 else "".join(parts)


def value(x: float | None) -> str:
    """Format a metric: four decimals, or three significant digits where those would say nothing."""
    if x is None:
        return NOTHING
    x += 0.0  # minus zero is zero
    return f"{x:.4f}" if x == 0 or 1e-4 <= abs(x) < 1e4 else f"{x:.3g}"


def signed(x: float | None) -> str:
    """Format a difference of metrics, with its sign."""
    return f"+{value(x)}" if x is not None and x > 0 else value(x)


def interval(ends: Sequence[float] | None, *, sign: bool = False) -> str:
    """Format [low, high] of a metric, or of a difference (`sign`)."""
    return NOTHING if ends is None else "[" + ", ".join((signed if sign else value)(end) for end in ends) + "]"


def probability(p: float | None) -> str:
    """Format a p-value with three significant digits."""
    return NOTHING if p is None else f"{p:.3g}"


def quantity(x: float | None) -> str:
    """Format seconds, megabytes or pairs per second: about three significant digits, thousands apart."""
    if x is None:
        return NOTHING
    digits = 0 if abs(x) >= 100 else 1 if abs(x) >= 10 else 2
    return f"{x:,.{digits}f}"


def count(n: int | None) -> str:
    """Format a whole number, thousands apart."""
    return NOTHING if n is None else f"{n:,}"


def percent(rate: float | None) -> str:
    """Format a rate in whole percent."""
    return NOTHING if rate is None else f"{100 * rate:.0f}%"


def setting(params: Mapping[str, object] | None) -> str:
    """Format settings: `optimizer.lr = 0.003, loss.temperature = 0.1`."""
    if not params:
        return NOTHING
    return ", ".join(f"{key} = {f'{x:.4g}' if isinstance(x, float) else x}" for key, x in params.items())
