"""Questions to the head: each is a short job that runs a verb there, is read as it prints, and is then forgotten.

Jobs that nobody reads any more (their laptop was killed or switched off) go with the next question, whoever asks it; a
job that is no question of this program is never touched. Few run at a time, as each takes some 200 MB on the head.
"""

from __future__ import annotations

import contextlib
import shlex
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

from orchestrator.cli.submission.package import ANSWERS, JobSpec, package
from orchestrator.cli.submission.parcel import BRINGS, Broken, Reader
from orchestrator.cli.submission.server import ADDRESS, ASKER, DRIVES, RUN, VERB, Job, JobServer, ServerUnavailable
from orchestrator.system.addresses import ADDRESS as ADDRESS_VARIABLE
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.system.process import is_gone, this_process

PREFIX = "ask-"
"""What the ids of questions begin with; those of a run's drivers may too, as they begin with its name."""

MOST = 4
"""Questions at a time."""

KEPT_S, LONGEST_S = 600.0, 3600.0
"""How long an answer is kept for an asker on another machine, and for how long a question may take."""

LOOK_S = 0.2
ITSELF_S, ENDS_S = 1.0, 10.0
"""How long a job that has answered may take to end by itself, and to end at all."""

AWAY_S = 60.0
"""How long the server may be away while an answer is read."""

Write = Callable[[str], None]


def run(server: JobServer, order: JobSpec, *, out: Write, err: Write, tell: Write, into: Path | None = None) -> int:
    """Run a verb on the head. What it prints goes to `out` and `err`, the files that it makes into the folder `into`,
    each of them checked. Returns its exit code. Raises RunError, InfrastructureMissing, OSError."""
    try:
        with _question(server, order, brings=into is not None, tell=tell) as name:
            reader = Reader(name, out=out, err=err, into=into)
            _read(server, name, reader)
    except ServerUnavailable as error:
        raise InfrastructureMissing(f"{server.url} no longer answers: {error}; ask again when it does") from error
    except Broken as error:
        raise InfrastructureMissing(f"{error}, and nothing of it was kept; ask again") from error
    if reader.code is None:
        raise InfrastructureMissing(f"the cluster at {server.url} could not run `{order.verb}`: {_why(reader)}")
    return reader.code


@contextlib.contextmanager
def _question(server: JobServer, order: JobSpec, *, brings: bool, tell: Write) -> Iterator[str]:
    """Submit the job of a question, and keep it while the context lasts."""
    name = f"{PREFIX}{order.verb}-{uuid.uuid4().hex[:8]}"
    announced = False
    try:
        while not _submitted(server, order, name, brings=brings):
            if not announced:
                tell(f"{MOST} questions are being answered on {server.url}; this one waits for its turn")
            announced = True
            time.sleep(5 * LOOK_S)
        yield name
    finally:
        with contextlib.suppress(ServerUnavailable, InfrastructureMissing):
            _forget(server, name)


def _submitted(server: JobServer, order: JobSpec, name: str, *, brings: bool) -> bool:
    """Submit a question, unless as many are being answered as may be. Of two who submit at once, the later yields."""
    if len(_living(server.jobs(), server)) >= MOST:
        return False
    command = f"{ANSWERS} {name} {BRINGS + ' ' if brings else ''}{shlex.join(order.arguments)}"
    metadata = {RUN: order.run, VERB: order.verb, ADDRESS: server.url, ASKER: this_process()}
    with package(order) as runtime_env:
        runtime_env["env_vars"][ADDRESS_VARIABLE] = server.url
        server.submit(name, command, runtime_env=runtime_env, metadata=metadata)
    first = [job.id for job in _living(server.jobs(), server)][:MOST]
    if len(first) < MOST or name in first:
        return True
    _forget(server, name)
    return False


def _living(jobs: list[Job], server: JobServer) -> list[Job]:
    """List the questions that are being answered, oldest first. Those that nobody reads any more are ended or
    forgotten."""
    living = []
    for job in jobs:
        if not job.id.startswith(PREFIX) or job.verb in DRIVES:
            continue
        gone = job.asker is not None and is_gone(job.asker)
        with contextlib.suppress(ServerUnavailable, InfrastructureMissing):
            if job.over and (gone or job.ended < server.now - KEPT_S):
                server.delete(job.id)
            elif not job.over and (gone or job.started < server.now - LONGEST_S):
                server.stop(job.id)
        if not job.over:
            living.append(job)
    return living


def _read(server: JobServer, name: str, reader: Reader) -> None:
    """Read the answer until it is whole, or its job is over. Raises ServerUnavailable, Broken."""

    class Whole(Exception):
        """The answer is there, and the log need not end."""

    def take(text: str) -> None:
        if reader.take(text):
            raise Whole

    deadline = time.monotonic() + AWAY_S
    with contextlib.suppress(Whole):
        while True:
            try:
                reader.restart()
                server.tail(name, take)
                job = server.job(name)
                if job is None:
                    return
                if job.over:
                    reader.restart()
                    take(server.log(name))
                    return
            except ServerUnavailable:
                if time.monotonic() > deadline:
                    raise
            time.sleep(LOOK_S)


def _forget(server: JobServer, name: str) -> None:
    """End a question, if it has not ended, and delete it."""
    began, asked = time.monotonic(), False
    while (job := server.job(name)) is not None:
        if job.over:
            server.delete(name)
            return
        waited = time.monotonic() - began
        if waited > ENDS_S:  # the next question clears it away
            return
        if waited > ITSELF_S and not asked:
            server.stop(name)
            asked = True
        time.sleep(LOOK_S)


def _why(reader: Reader) -> str:
    """Read from the log why a job came to no answer."""
    printed = "\n".join(line for line in reader.others[-5:] if not line.startswith("Running entrypoint"))
    if "not found" in printed or "No module named" in printed:
        printed += "\nthe cluster's ORCHESTRATOR_PYTHON names the Python that has what this package needs"
    return printed or "its job was lost"
