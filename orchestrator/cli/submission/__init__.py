"""The same verbs on a cluster: Ray's job server at an address runs them on the head, where the driver outlives whoever
asked.

`launch` and `resume` are jobs that are followed and can be left; a run has at most one of them at a time. How a run
stands is known at once while such a job lives (session/cluster/board.py); the other verbs that read are short jobs that
leave nothing, and the files that they make are brought here. What a run needs lies in databases and buckets, so any of
these jobs may be lost.
"""

from orchestrator.cli.submission.bring import Answered, export, report
from orchestrator.cli.submission.follow import run_and_follow
from orchestrator.cli.submission.package import JobSpec, package
from orchestrator.cli.submission.parcel import HERE
from orchestrator.cli.submission.server import Job, JobServer, ServerUnavailable
from orchestrator.cli.submission.verbs import (
    follow_driver,
    launch,
    listed,
    plan,
    posted,
    resume,
    run_doctor,
    run_remote,
    standing,
    wait_for_status,
)

__all__ = [
    "HERE",
    "Answered",
    "Job",
    "JobServer",
    "JobSpec",
    "ServerUnavailable",
    "export",
    "follow_driver",
    "launch",
    "listed",
    "package",
    "plan",
    "posted",
    "report",
    "resume",
    "run_and_follow",
    "run_doctor",
    "run_remote",
    "standing",
    "wait_for_status",
]  # fmt: skip
