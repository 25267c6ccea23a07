"""The same verbs on a cluster: Ray's job server at an address runs them on the head, where the driver outlives whoever
asked.

`launch` and `resume` are jobs that are followed and can be left; a run has at most one of them at a time. The verbs
that read are short jobs that leave nothing. What a run needs lies in databases and buckets (runs.py), so any of these
jobs may be lost.
"""

from .follow import attend
from .package import Order, package
from .server import Job, JobServer, ServerAway
from .verbs import ask, examine, follow_driver, launch, listed, resume

__all__ = [
    "Job", "JobServer", "Order", "ServerAway",
    "ask", "attend", "examine", "follow_driver", "launch", "listed", "package", "resume",
]  # fmt: skip
