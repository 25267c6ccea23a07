"""Ray's REST API as this program asks it: a server that keeps what it was asked and answers what it is given."""

from __future__ import annotations

import base64
import contextlib
import io
import json
import ssl
import subprocess
import sys
import threading
import zipfile
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web

from orchestrator.cli.submission import JobServer, ServerUnavailable, rest, server
from orchestrator.system.exit_codes import InfrastructureMissing

TOKEN = "0123456789abcdef" * 2
VERSION = {"version": "4", "ray_version": "2.60.0", "ray_commit": "c0ffee"}
DETAILS = {
    "type": "SUBMISSION",
    "submission_id": "small-1",
    "entrypoint": "python",
    "status": "SUCCEEDED",
    "metadata": {server.RUN: "s3://b/small", server.VERB: "launch"},
    "driver_exit_code": 0,
    "start_time": 2000,
    "end_time": 5000,
}


class Head(ThreadingHTTPServer):
    """Answers by method and path, 404 what it has no answer to, and keeps what it was asked."""

    def __init__(self, answers: dict[str, Any]) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers = {"GET /api/version": VERSION} | answers
        self.asked: list[str] = []
        self.bodies: list[bytes] = []
        self.headers: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Handler(BaseHTTPRequestHandler):
    def _answer(self) -> None:
        head: Any = self.server
        asked = f"{self.command} {self.path}"
        head.asked.append(asked)
        head.headers.append(dict(self.headers))
        head.bodies.append(self.rfile.read(int(self.headers.get("Content-Length", 0))))
        answer = head.answers.get(asked, (404, f"{asked} is nowhere"))
        if callable(answer):
            answer = answer()
        status, content = answer if isinstance(answer, tuple) else (200, answer)
        body = content.encode() if isinstance(content, str) else json.dumps(content).encode()
        with contextlib.suppress(OSError):  # of an asker that has left
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def head(answers: dict[str, Any] | None = None) -> Iterator[Head]:
    with Head(answers or {}) as serving:
        thread = threading.Thread(target=serving.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield serving
        finally:
            serving.shutdown()
            thread.join()


@pytest.fixture(autouse=True)
def token(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", TOKEN)
    for name in (
        "RAY_AUTH_MODE",
        "RAY_AUTH_TOKEN_PATH",
        *(f"{scheme}_proxy" for scheme in ("http", "https", "all", "no")),
    ):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.upper(), raising=False)


def test_jobs_are_read_stopped_deleted_and_their_logs_too() -> None:
    """The version is asked once. Variables that name another address are for Ray's own client. Mutant check: jobs that
    others submitted."""
    other = DETAILS | {"submission_id": "raysubmit_1", "metadata": None}
    bare = {"type": "SUBMISSION", "submission_id": "ask-1", "status": "PENDING", "metadata": {server.RUN: "s3://b/a"}}
    answers = {
        "GET /api/jobs/": [DETAILS, other, {"type": "DRIVER", "status": "RUNNING"}, bare],
        "GET /api/jobs/small-1": DETAILS,
        "POST /api/jobs/small-1/stop": {"stopped": True},
        "DELETE /api/jobs/small-1": {"deleted": True},
        "GET /api/jobs/small-1/logs": {"logs": "one\ntwo\n"},
    }
    with head(answers) as serving, pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ADDRESS", "http://127.0.0.1:1")
        patch.setenv("RAY_API_SERVER_ADDRESS", "http://127.0.0.1:1")
        asked = JobServer(serving.url)
        assert [(job.id, job.state, job.over) for job in asked.jobs()] == [
            ("ask-1", "PENDING", False), ("small-1", "SUCCEEDED", True)
        ]  # fmt: skip
        found = asked.job("small-1")
        assert found is not None
        assert (found.run, found.verb, found.exit_code, found.started, found.ended) == (
            "s3://b/small", "launch", 0, 2.0, 5.0
        )  # fmt: skip
        assert asked.job("small-2") is None
        asked.stop("small-1")
        asked.delete("small-1")
        assert asked.log("small-1") == "one\ntwo\n"
        assert asked.version() == "4"
    assert serving.asked == [
        "GET /api/version", "GET /api/jobs/", "GET /api/jobs/small-1", "GET /api/jobs/small-2",
        "POST /api/jobs/small-1/stop", "DELETE /api/jobs/small-1", "GET /api/jobs/small-1/logs", "GET /api/version",
    ]  # fmt: skip
    assert {headers["Authorization"] for headers in serving.headers} == {f"Bearer {TOKEN}"}


def test_a_job_is_submitted_with_all_of_its_folder_once(tmp_path: Path) -> None:
    """What goes along was chosen before; Ray's client leaves out what a .gitignore in it names. Mutant checks: a name
    that does not tell contents apart; an upload of what is there."""
    (tmp_path / "data" / "venv").mkdir(parents=True)
    for name, content in {"main.py": "x", "data/.gitignore": "*", "data/a.csv": "1", "data/venv/b.csv": "2"}.items():
        (tmp_path / name).write_text(content)
    (tmp_path / "main.py").chmod(0o755)
    env = {"working_dir": str(tmp_path), "env_vars": {"A": "b"}}
    with head({"POST /api/jobs/": {"submission_id": "small-1"}}) as serving:
        path = f"/api/packages/gcs/{rest.package_name(tmp_path)}"
        serving.answers[f"PUT {path}"] = ""
        asked = JobServer(serving.url)
        assert asked.submit("small-1", "python -m x", runtime_env=env, metadata={server.RUN: "s3://b/small"})
        serving.answers[f"GET {path}"] = ""
        assert asked.submit("small-1", "python -m x", runtime_env=env, metadata={})
        (tmp_path / "main.py").write_text("y")
        assert rest.package_name(tmp_path) != path.rpartition("/")[2]
    assert serving.asked == [
        "GET /api/version", f"GET {path}", f"PUT {path}", "POST /api/jobs/", f"GET {path}", "POST /api/jobs/"
    ]  # fmt: skip
    with zipfile.ZipFile(io.BytesIO(serving.bodies[2])) as archive:
        assert sorted(archive.namelist()) == ["data/.gitignore", "data/a.csv", "data/venv/b.csv", "main.py"]
        assert archive.read("main.py") == b"x"
        assert archive.getinfo("main.py").external_attr >> 16 & 0o777 == 0o755
    assert json.loads(serving.bodies[3]) == {
        "submission_id": "small-1",
        "entrypoint": "python -m x",
        "runtime_env": {"working_dir": f"gcs://{path.rpartition('/')[2]}", "env_vars": {"A": "b"}},
        "metadata": {server.RUN: "s3://b/small"},
    }
    assert env["working_dir"] == str(tmp_path), "the caller's is as it was"


def test_a_name_that_is_taken_and_a_head_without_an_agent_are_no_errors_of_the_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "AGENT_S", 0.3)
    (tmp_path / "main.py").write_text("x")
    env = {"working_dir": str(tmp_path)}
    answers = iter([(500, f"{server.NO_AGENT} to submit"), (500, "ValueError: Job small-1 already exists.")])
    with head({"POST /api/jobs/": lambda: next(answers)}) as serving:
        serving.answers[f"GET /api/packages/gcs/{rest.package_name(tmp_path)}"] = ""
        assert not JobServer(serving.url).submit("small-1", "python", runtime_env=env, metadata={})
        serving.answers["POST /api/jobs/"] = (500, f"{server.NO_AGENT} to submit")
        with pytest.raises(InfrastructureMissing, match="--dashboard-agent-listen-port=0"):
            JobServer(serving.url).submit("small-1", "python", runtime_env=env, metadata={})


def test_a_head_that_cannot_look_for_a_folder_is_not_sent_it(tmp_path: Path) -> None:
    (tmp_path / "main.py").write_text("x")
    with head() as serving:
        path = f"/api/packages/gcs/{rest.package_name(tmp_path)}"
        serving.answers |= {f"GET {path}": (500, "Traceback"), f"PUT {path}": ""}
        with pytest.raises(ServerUnavailable, match="status code 500"):
            JobServer(serving.url).submit("small-1", "python", runtime_env={"working_dir": str(tmp_path)}, metadata={})
    assert serving.asked == ["GET /api/version", f"GET {path}"]


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((500, "Traceback\nmore"), ServerUnavailable, "Request failed with status code 500: Traceback"),
        ((503, f"{TOKEN} w"), ServerUnavailable, "Request failed with status code 503: *** w."),
        ((400, "no\nmore"), InfrastructureMissing,
         "the job server at URL refused: Request failed with status code 400: no"),
        ("<html>", ServerUnavailable, "Expecting value: line 1 column 1 (char 0)"),
        ({"jobs": []}, ServerUnavailable, "1 validation error for list[Details]"),
        ([{"status": 3}], ServerUnavailable, "1 validation error for list[Details]"),
    ],
)  # fmt: skip
def test_an_answer_that_is_none_says_what_it_is(answer: object, error: type[Exception], words: str) -> None:
    with head({"GET /api/jobs/": answer}) as serving:
        with pytest.raises(error) as raised:
            JobServer(serving.url).jobs()
        assert str(raised.value) == words.replace("URL", serving.url)


@pytest.mark.parametrize(
    ("answer", "error", "words"),
    [
        ((404, ""), InfrastructureMissing, "the job server at URL refused: Version check returned 404."),
        (VERSION | {"ray_version": "1.13.0"}, InfrastructureMissing, "Ray version 1.13.0 is running on the cluster."),
        ((502, "bad"), ServerUnavailable, "Request failed with status code 502"),
        ({}, ServerUnavailable, "it says no version of Ray"),
        ([], ServerUnavailable, "it says no version of Ray"),
        ((401, ""), InfrastructureMissing, "wants a token and refuses this one"),
        ((403, ""), InfrastructureMissing, "wants a token and refuses this one"),
        ((300, ""), InfrastructureMissing, "the job server at URL refused: Request failed with status code 300"),
    ],
)  # fmt: skip
def test_what_is_no_job_server_of_ray_says_so_before_it_is_asked_for_more(
    answer: object, error: type[Exception], words: str
) -> None:
    with head({"GET /api/version": answer}) as serving:
        with pytest.raises(error) as raised:
            JobServer(serving.url).jobs()
        assert words.replace("URL", serving.url) in str(raised.value)
        assert serving.asked == ["GET /api/version"]


def test_a_server_that_is_gone_or_silent_is_unavailable(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also one that ends the connection. Mutant check: no time limit."""
    monkeypatch.setattr(rest, "TIMEOUT_S", (5.0, 0.3))
    silence = threading.Event()
    with head({"GET /api/jobs/": lambda: silence.wait(20)}) as serving:
        asked = JobServer(serving.url)
        with pytest.raises(ServerUnavailable, match=r"^it has not answered for 0\.3 s$"):
            asked.jobs()
        silence.set()
    with pytest.raises(ServerUnavailable) as raised:
        asked.jobs()
    assert str(raised.value) == f"Failed to connect to Ray at address: {serving.url}."
    with pytest.raises(ServerUnavailable) as raised:
        JobServer(serving.url.replace("http://", "http://me:w0rd@")).jobs()
    assert str(raised.value) == f"Failed to connect to Ray at address: {serving.url}."


@pytest.mark.parametrize("proxy", ["socks5://127.0.0.1:1", "nonsense://127.0.0.1:1", "http://127.0.0.1:1", "http://["])
def test_a_proxy_that_cannot_be_used_is_said(proxy: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """And is of no account where it is not for this server. Mutant check: the import error of what SOCKS needs."""
    monkeypatch.setenv("ALL_PROXY", proxy)
    with head({"GET /api/jobs/": []}) as serving:
        with pytest.raises(ServerUnavailable):
            JobServer(serving.url).jobs()
        monkeypatch.setenv("NO_PROXY", "other.example,127.0.0.1")
        assert JobServer(serving.url).jobs() == []


@pytest.mark.parametrize("user", ["me:w%C3%B6rd%21", ":", "me:"])
def test_a_user_and_a_password_are_sent_in_place_of_the_token(user: str) -> None:
    with head({"GET /api/jobs/": []}) as serving:
        assert JobServer(serving.url.replace("://", f"://{user}@")).jobs() == []
    wanted = {"me:w%C3%B6rd%21": "me:wörd!", ":": None, "me:": "me:"}[user]
    sent = f"Basic {base64.b64encode(wanted.encode()).decode()}" if wanted else f"Bearer {TOKEN}"
    assert {headers["Authorization"] for headers in serving.headers} == {sent}


# Logs


@contextlib.contextmanager
def tailing(*, abrupt: bool = False) -> Iterator[tuple[str, list[dict[str, str]]]]:
    """A server whose job prints two pieces, and whose connection then ends, or breaks."""
    import asyncio

    loop, headers = asyncio.new_event_loop(), list[dict[str, str]]()

    async def version(_: web.Request) -> web.Response:
        return web.json_response(VERSION)

    async def tail(request: web.Request) -> web.StreamResponse:
        headers.append(dict(request.headers))
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        for text in ("one\n", "two\n"):
            await socket.send_str(text)
        if abrupt:
            assert request.transport is not None
            request.transport.abort()
        return socket

    async def serve() -> tuple[web.AppRunner, int]:
        app = web.Application()
        app.router.add_get("/api/version", version)
        app.router.add_get("/api/jobs/small-1/logs/tail", tail)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, runner.addresses[0][1]

    runner, port = loop.run_until_complete(serve())
    thread = threading.Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{port}", headers
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


@pytest.mark.parametrize("user", ["", "me:w0rd@", "me@"])
def test_what_a_job_prints_is_passed_on_until_it_ends(user: str) -> None:
    """By who may read it. Mutant check: a user in the address beside the token, which aiohttp refuses to send."""
    printed: list[str] = []
    with tailing() as (url, headers):
        JobServer(url.replace("://", f"://{user}")).tail("small-1", printed.append)
    assert printed == ["one\n", "two\n"]
    wanted = "Basic bWU6dzByZA==" if ":" in user else f"Bearer {TOKEN}"
    assert [sent["Authorization"] for sent in headers] == [wanted]


def test_a_connection_that_breaks_is_no_end_of_a_log() -> None:
    printed: list[str] = []
    with tailing(abrupt=True) as (url, _), pytest.raises(ServerUnavailable, match="close code 1006"):
        JobServer(url).tail("small-1", printed.append)


def test_an_error_of_who_takes_the_log_is_raised_as_it_is() -> None:
    def broken(_: str) -> None:
        raise BrokenPipeError("nobody reads")

    with tailing() as (url, _), pytest.raises(BrokenPipeError, match="nobody reads"):
        JobServer(url).tail("small-1", broken)


# What it takes


def test_asking_a_cluster_loads_no_ray() -> None:
    """Its client had to be overridden in private methods, and takes a second. Mutant check: its exceptions."""
    text = (
        "import sys; from orchestrator.cli.submission import JobServer\n"
        "try: JobServer('http://127.0.0.1:1').jobs()\n"
        "except Exception as error: print(type(error).__name__)\n"
        "print([name for name in ('ray', 'requests') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, check=True)
    assert done.stdout.split("\n") == ["ServerUnavailable", "[]", ""]


@pytest.mark.parametrize("name", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", None])
def test_certificates_are_checked_by_what_the_environment_names(
    name: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost", "-keyout", "key.pem", "-out", "cert.pem"],
        cwd=tmp_path, capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("openssl makes no certificate here")
    for other in ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", "SSL_CERT_FILE", "SSL_CERT_DIR"):
        monkeypatch.delenv(other, raising=False)
    if name:
        monkeypatch.setenv(name, str(tmp_path / "cert.pem"))
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(tmp_path / "cert.pem", tmp_path / "key.pem")
    with head({"GET /api/jobs/": []}) as serving:
        serving.socket = context.wrap_socket(serving.socket, server_side=True)
        asked = JobServer(f"https://localhost:{serving.server_address[1]}")
        if name:
            assert asked.jobs() == []
        else:
            with pytest.raises(ServerUnavailable, match="Failed to connect to Ray"):
                asked.jobs()
