"""One job from its first step to its result, on this rank. START HERE: loop.py; without Ray: __main__.py."""

from __future__ import annotations

from jobs.train.loop import Training as Training
