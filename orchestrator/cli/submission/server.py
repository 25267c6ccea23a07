"""Ray's job server, asked over HTTP: every question has a time limit, every failure a text with the remedy."""

from __future__ import annotations

import asyncio
import contextlib
import re
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from email.utils import parsedate_to_datetime
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import BaseModel, TypeAdapter, ValidationError

from orchestrator.cli.submission.rest import Redirected, RequestRefused, RestClient, TokenRefused, Unreachable
from orchestrator.run_dir.folder import RunError
from orchestrator.session.cluster import access, board
from orchestrator.session.cluster.board import SWEEP, Posted
from orchestrator.system.exit_codes import InfrastructureMissing
from orchestrator.system.masking import masked, without_user

LOOK_S = 5.0
"""How often the server is asked about a job whose log is followed: a head that lost its power closes no connection."""

SILENT_S = 20.0
"""How long it may leave that unanswered."""

AGENT_S = 60.0
"""How long a head that has just come up may take to begin its agent, which takes the jobs."""

NO_AGENT = "No available agent"
"""Ray's words for a head without one, after it has waited for ten seconds."""

DRIVES = ("launch", "resume", "extend")
"""Verbs of the jobs that drive a run."""

RUN, VERB = "orchestrator.run", "orchestrator.verb"
"""Keys of a job's metadata: the run's URI, and what is done with it."""

ORDER = "orchestrator.order"
"""And the digest of all that was ordered, by which the same command finds its job again."""

REQUEST = "orchestrator.request"
"""And a name for what was asked, which jobs that take the place of a lost one share."""

ADDRESS, ASKER = "orchestrator.address", "orchestrator.asker"
"""And the URL by which whoever submitted it reaches the server; and of a question the process that waits for it."""


class Details(BaseModel):
    """What the server says of a job, as far as it is read here."""

    status: str
    submission_id: str | None = None
    metadata: dict[str, str] | None = None
    driver_exit_code: int | None = None
    error_type: str | None = None
    message: str | None = None
    start_time: int | None = None
    """Unix time in milliseconds, as of the end."""

    end_time: int | None = None


DETAILS, LISTED = TypeAdapter(Details), TypeAdapter(list[Details])


class Version(BaseModel):
    """What the server says of itself."""

    version: str


class Log(BaseModel):
    """What a job has printed."""

    logs: str


class ServerUnavailable(Exception):
    """The job server does not answer now; it did, or it may yet."""


@dataclass(frozen=True)
class Job:
    """A job of this program, as its server describes it."""

    id: str
    state: str
    """PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""

    run: str
    verb: str
    sweep: str | None
    order: str | None
    """None for one that an older version submitted."""

    exit_code: int | None
    """Of the driver; None while it runs, and when it was lost."""

    error: str | None
    """Ray's word for what went wrong with the job itself."""

    message: str
    started: float
    """Unix time."""

    asked: str | None = None
    """Names the request that it meets, with the jobs before it that were lost."""

    address: str | None = None
    asker: str | None = None
    ended: float = 0.0
    """Unix time; 0 while it goes on."""

    posted: Posted | None = None
    """What its driver has written of the run."""

    @property
    def over(self) -> bool:
        """Whether it will do nothing more."""
        return self.state in ("STOPPED", "SUCCEEDED", "FAILED")


def _is_server(url: str) -> bool:
    try:
        parts = urlsplit(url)
        return url.startswith(("http://", "https://")) and bool(parts.hostname) and parts.port != 0
    except ValueError:  # of a port that is no number, and of brackets without an end
        return False


BUSY = (408, 425, 429)
"""Statuses of a server that may answer the same question later."""


class JobServer:
    """The job server at an address. Methods raise ServerUnavailable, and InfrastructureMissing where waiting is no
    help."""

    def __init__(self, url: str) -> None:
        self._address = url.rstrip("/")
        self.url = _without_secrets(self._address)
        """Without the user and the password that it may hold: it is printed, and kept with jobs."""
        self.now = time.time()
        """Unix time of the head when it last answered, to the second: clocks of laptops go wrong."""
        self._made: RestClient | None = None
        self._token: str | None = None

    def version(self) -> str:
        """Return the version of the API of jobs."""
        with self._asking() as client:
            return Version.model_validate(client.get("/api/version")).version

    def jobs(self) -> list[Job]:
        """List every job of this program that the server remembers, oldest first."""
        with self._asking() as client:
            jobs = LISTED.validate_python(client.get("/api/jobs/"))
        return sorted(
            (_job(info) for info in jobs if RUN in (info.metadata or {})), key=lambda job: (job.started, job.id)
        )

    def job(self, name: str) -> Job | None:
        """Return one job; None if the server knows none of that id, which is so after its head was lost."""
        with self._asking() as client:
            try:
                return _job(DETAILS.validate_python(client.get(f"/api/jobs/{name}")))
            except RequestRefused as error:
                if error.status == 404:
                    return None
                raise

    def submit(
        self, name: str, command: str, *, runtime_env: Mapping[str, object], metadata: Mapping[str, str]
    ) -> bool:
        """Submit a job, with the folder that `runtime_env` names. Returns False if there is a job of that id."""
        deadline = time.monotonic() + AGENT_S
        with self._asking() as client:
            while True:
                uploaded = {"working_dir": client.upload(Path(str(runtime_env["working_dir"])))}
                try:
                    client.post(
                        "/api/jobs/",
                        {
                            "entrypoint": command,
                            "submission_id": name,
                            "runtime_env": {**runtime_env, **uploaded},
                            "metadata": dict(metadata),
                        },
                    )
                except RequestRefused as error:
                    if "already exists" in str(error):
                        return False
                    if NO_AGENT not in str(error):
                        raise
                    if time.monotonic() > deadline:
                        raise InfrastructureMissing(
                            f"the cluster at {self.url} takes no jobs: the agent on its head, which starts them, does "
                            "not run. Most often another Ray on that machine has its port, 52365; begin the head "
                            "with one of its own: ray start --head --dashboard-agent-listen-port=0"
                        ) from error
                else:
                    return True

    def stop(self, name: str) -> None:
        """Have a job ended: SIGTERM, and three seconds later kill -9."""
        with self._asking() as client:
            client.post(f"/api/jobs/{name}/stop")

    def delete(self, name: str) -> None:
        """Forget a job that is over."""
        with self._asking() as client:
            client.delete(f"/api/jobs/{name}")

    def log(self, name: str) -> str:
        """Return what a job has printed."""
        with self._asking() as client:
            return Log.model_validate(client.get(f"/api/jobs/{name}/logs")).logs

    def tail(self, name: str, write: Callable[[str], None]) -> None:
        """Pass on what a job prints, from its first line, until it is over. Raises what `write` raises as it is."""
        failed: list[BaseException] = []

        def passed(text: str) -> None:
            try:
                write(text)
            except BaseException as error:
                failed.append(error)
                raise

        try:
            with self._asking() as client:
                asyncio.run(self._tail(client, name, passed))
        except Exception:
            if failed:  # a closed pipe is no connection to the server
                raise failed[0] from None
            raise

    async def _tail(self, client: RestClient, name: str, write: Callable[[str], None]) -> None:
        async def copy() -> None:
            async for text in client.tail(f"/api/jobs/{name}/logs/tail"):
                write(text)

        copying, answered = asyncio.create_task(copy()), time.monotonic()
        try:
            while not (await asyncio.wait({copying}, timeout=LOOK_S))[0]:
                with contextlib.suppress(ServerUnavailable):
                    job = await asyncio.to_thread(self.job, name)
                    if job is None or job.over:
                        await asyncio.wait({copying}, timeout=LOOK_S)  # the end of its log
                        return
                    answered = time.monotonic()
                if time.monotonic() - answered > SILENT_S:
                    raise ServerUnavailable(f"it has not answered for {SILENT_S:.0f} s")
            copying.result()
        finally:
            copying.cancel()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[RestClient]:
        import aiohttp

        try:
            yield self._client()
        except TokenRefused as error:
            what = f"wants a token and {'refuses this one' if self._token else 'none was sent'}"
            remedy = access.lacking(self.url, sent=self._token is not None)
            raise InfrastructureMissing(f"the cluster at {self.url} {what}; {remedy}") from error
        except Redirected as error:
            raise InfrastructureMissing(
                f"{self.url} sends its visitors to {error}; give --address the URL of the job server itself"
            ) from error
        except RequestRefused as error:
            if error.status >= 500 or error.status in BUSY:
                raise ServerUnavailable(_reason(error)) from error
            raise InfrastructureMissing(f"the job server at {self.url} refused: {_reason(error)}") from error
        except (Unreachable, ValidationError, aiohttp.ClientError, ConnectionError, TimeoutError) as error:
            raise ServerUnavailable(_reason(error)) from error

    def _client(self) -> RestClient:
        if self._made is None:
            access.keep_private()
            try:
                self._token = access.for_server(self.url)
            except access.TokenUnusable as error:
                raise RunError(str(error)) from error
            self._made = RestClient(self._address, self._token, self._heard)
        return self._made

    def _heard(self, date: str | None) -> None:
        self.now = _moment(date)


def _without_secrets(url: str) -> str:
    """Return a job server's URL as people see it. Raises RunError for what is none, without what may be secret in
    it."""
    plain = without_user(url)
    shown = "what was given" if "@" in plain else re.split("[?#]", plain)[0]
    example = "--address takes its URL, for example http://127.0.0.1:8265"
    if "@" in plain or not _is_server(plain):
        raise RunError(f"{shown} is no job server; {example}")
    if shown != plain:
        raise RunError(
            f"{shown} has more behind it, which no job server takes; {example}; a token goes into ${access.TOKEN}"
        )
    return shown


def _job(info: Details) -> Job:
    metadata = info.metadata or {}
    return Job(
        id=info.submission_id or "",
        state=info.status,
        run=metadata[RUN],
        verb=metadata.get(VERB, ""),
        sweep=metadata.get(SWEEP),
        order=metadata.get(ORDER),
        exit_code=info.driver_exit_code,
        error=info.error_type,
        message=info.message or "",
        started=(info.start_time or 0) / 1000,
        asked=metadata.get(REQUEST),
        address=metadata.get(ADDRESS),
        asker=metadata.get(ASKER),
        ended=(info.end_time or 0) / 1000,
        posted=board.read(metadata.get(board.KEY, "")),
    )


def _moment(date: str | None) -> float:
    """Parse the time in an HTTP header, as unix time; return the time of this machine's clock where there is none."""
    try:
        return parsedate_to_datetime(date or "").timestamp()
    except ValueError:
        return time.time()


def _reason(error: Exception) -> str:
    """Return the first line of an error; those of HTTP clients nest several."""
    return masked((str(error).strip() or type(error).__name__).splitlines()[0])[:300]
