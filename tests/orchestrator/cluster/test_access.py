"""Ray's token: who gets it, and who does not. On real clusters, real servers and real processes."""

from __future__ import annotations

import base64
import contextlib
import json
import os
import re
import secrets
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from heads import Head, head
from ray._private import services
from real import QUICK, SWEEP, command

from orchestrator.cli.submission import JobServer
from orchestrator.run_dir.folder import RunError
from orchestrator.session.cluster import access
from orchestrator.system.exit_codes import InfrastructureMissing

TOKEN = secrets.token_hex(16)


@pytest.fixture(autouse=True)
def nothing_given(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A home of its own, and no variable of Ray's. Returns where that home keeps a token."""
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    (tmp_path / "home" / ".ray").mkdir(parents=True)
    return tmp_path / "home" / ".ray" / "auth_token"


# Which token there is


def test_a_token_is_given_by_a_variable_or_by_a_file_that_one_names(
    tmp_path: Path, nothing_given: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    nothing_given.write_text("made-up")
    assert access.given() is None, "what lies in the home was given by nobody"
    (tmp_path / "mine").write_text(f" {TOKEN}\n")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    assert access.given() == access.for_server("http://192.0.2.7:8265") == access.for_cluster("192.0.2.7:6379") == TOKEN
    monkeypatch.setenv("RAY_AUTH_TOKEN", "another")
    assert access.given() == "another", "as Ray has it"
    monkeypatch.setenv("RAY_AUTH_TOKEN", " ")
    assert access.given() == TOKEN
    monkeypatch.setenv("RAY_AUTH_MODE", "disabled")
    assert access.for_server("http://192.0.2.7:8265") is None


@pytest.mark.parametrize("text", ["", "two words", "two\nlines", "é", "bell\a"])
def test_what_can_be_no_token_is_told_and_not_sent(text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Mutant check: a line end in an HTTP header is a library's error, taken for a server that is away."""
    (tmp_path / "mine").write_text(text)
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "mine"))
    with pytest.raises(access.TokenUnusable, match="RAY_AUTH_TOKEN_PATH") as raised:
        access.given()
    assert not text or text not in str(raised.value).replace(str(tmp_path), "")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", str(tmp_path / "nowhere"))
    with pytest.raises(access.TokenUnusable, match="cannot be read"):
        access.given()


@pytest.mark.parametrize("mode", [0o644, 0o660, 0o600, 0o400])
def test_the_token_in_the_home_is_for_its_owner_alone(mode: int, nothing_given: Path) -> None:
    nothing_given.write_text(TOKEN)
    nothing_given.chmod(mode)
    assert access.kept() == TOKEN
    assert nothing_given.stat().st_mode & 0o777 == (mode if not mode & 0o077 else 0o600)


def test_what_is_not_there_or_no_file_is_no_token(nothing_given: Path) -> None:
    assert access.kept() is None
    assert access.keep_private()
    nothing_given.mkdir()
    nothing_given.chmod(0o755)
    assert access.kept() is None
    assert access.keep_private(), "a folder holds no token"
    assert nothing_given.stat().st_mode & 0o777 == 0o755


def test_what_a_link_leads_to_is_left_as_it_is_and_told(tmp_path: Path, nothing_given: Path) -> None:
    """It may be meant for others."""
    (tmp_path / "shared").write_text(TOKEN)
    (tmp_path / "shared").chmod(0o640)
    nothing_given.symlink_to(tmp_path / "shared")
    assert access.kept() == TOKEN
    assert (tmp_path / "shared").stat().st_mode & 0o777 == 0o640
    assert not access.keep_private()
    (tmp_path / "shared").chmod(0o600)
    assert access.keep_private()


@pytest.mark.parametrize("url", ["http://[::1", "http://", "http://h:port", "https://h:99999", "ftp://h", "http://:1"])
def test_what_is_no_url_of_a_server_is_refused(url: str, nothing_given: Path) -> None:
    nothing_given.write_text(TOKEN)
    assert access.for_server(url) is None
    with pytest.raises(RunError, match="is no job server; --address takes its URL"):
        JobServer(url)


@pytest.mark.parametrize("token", [None, "mine"])
def test_ray_has_one_token_for_a_while_and_then_what_it_had(token: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "the user's")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "/a/file")
    names = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"}
    before = dict(os.environ)
    with access.environment(token):
        now = {name: os.environ[name] for name in names & set(os.environ)}
    wanted = {"RAY_AUTH_MODE": "disabled"} if token is None else {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": token}
    assert now == wanted
    assert dict(os.environ) == before


NODE = "import sys, time; print(flush=True); time.sleep(99)"


def test_a_node_that_this_user_has_joined_to_a_cluster_elsewhere_makes_it_this_user_s(
    tmp_path: Path, nothing_given: Path
) -> None:
    """192.0.2.77 is nobody's; the process has a raylet's command line. Mutant checks: any port; a process by the words
    anywhere in its line, as an editor of raylet.py has them."""
    nothing_given.write_text(TOKEN)
    (tmp_path / "raylet").mkdir()
    (tmp_path / "raylet" / "raylet").write_text(NODE)
    joined = "--gcs-address=192.0.2.77:6379"
    for line, own in (
        ([f"{tmp_path}/raylet/raylet", "a", joined], True),
        (["-c", NODE, joined, "/raylet/raylet"], False),
    ):
        with subprocess.Popen([sys.executable, *line], stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            assert (access.for_cluster("192.0.2.77:6379") == TOKEN) == own
            assert access.for_cluster("192.0.2.77:6380") is None
            assert access.for_cluster("192.0.2.78:6379") is None
            assert access.for_cluster("127.0.0.1:6379") is None
            process.kill()


def test_a_user_without_a_home_has_no_token_there(monkeypatch: pytest.MonkeyPatch) -> None:
    def none() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", none)
    assert access.kept() is None
    assert access.keep_private()
    assert "export RAY_AUTH_TOKEN" in access.lacking("head:6379")
    monkeypatch.setenv("RAY_AUTH_TOKEN_PATH", "~nobody-of-this-name/token")
    with pytest.raises(access.TokenUnusable, match="cannot be read"):
        access.given()


# Who gets it


class Stranger(ThreadingHTTPServer):
    """A server that is no Ray of ours. Keeps the headers of what it is asked, and answers 401, or with a redirect."""

    def __init__(self, to: str = "") -> None:
        super().__init__(("127.0.0.1", 0), _Answer)
        self.to = to
        self.heard: list[dict[str, str]] = []
        self.url = f"http://127.0.0.1:{self.server_address[1]}"


class _Answer(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        server: Any = self.server
        server.heard.append(dict(self.headers))
        self.send_response(302 if server.to else 401)
        if server.to:
            self.send_header("Location", server.to + self.path)
        self.end_headers()

    def log_message(self, *_: Any) -> None:
        pass


@contextlib.contextmanager
def strangers(*servers: Stranger) -> Iterator[None]:
    for one in servers:
        threading.Thread(target=one.serve_forever, daemon=True).start()
    try:
        yield
    finally:
        for one in servers:
            one.shutdown()
            one.server_close()


def said(*arguments: str, cwd: Path, code: int, env: Mapping[str, str] | None = None) -> str:
    """What a command printed, on both streams."""
    done = subprocess.run(
        command(*arguments), cwd=cwd, env=QUICK | os.environ | dict(env or {}), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == code, done.stdout + done.stderr
    return done.stdout + done.stderr


@pytest.mark.parametrize("mode", ["", "token"])
def test_a_token_that_nobody_gave_goes_to_no_address(tmp_path: Path, nothing_given: Path, mode: str) -> None:
    """Mutant checks: looking in the home as Ray does; leaving it to Ray, which does so where RAY_AUTH_MODE=token."""
    nothing_given.write_text(TOKEN)
    server = Stranger()
    with strangers(server):
        told = said(
            "status", "--address", server.url, cwd=tmp_path, code=4, env={"RAY_AUTH_MODE": mode} if mode else {}
        )
    assert server.heard
    assert TOKEN not in json.dumps(server.heard)
    assert "Authorization" not in str(server.heard)
    assert f"export RAY_AUTH_TOKEN_PATH={nothing_given}" in told
    assert TOKEN not in told


def test_a_token_that_was_given_goes_to_the_address_and_not_where_that_sends_its_visitors(tmp_path: Path) -> None:
    there = Stranger()
    here = Stranger(there.url)
    with strangers(here, there):
        told = said("status", "--address", here.url, cwd=tmp_path, code=4, env={"RAY_AUTH_TOKEN": TOKEN})
        assert here.heard[0]["Authorization"] == f"Bearer {TOKEN}"
        assert not there.heard
        assert "give --address the URL of the job server itself" in told
        told = said("status", "--address", there.url, cwd=tmp_path, code=4, env={"RAY_AUTH_TOKEN": TOKEN})
    assert "export RAY_AUTH_TOKEN=..." in told
    assert TOKEN not in told


@pytest.mark.parametrize("user", ["me:w0rd%21", "w0rd%21"])
def test_a_user_in_an_address_is_sent_and_neither_kept_nor_told(nothing_given: Path, user: str) -> None:
    """To a proxy in front of the cluster. Mutant check: keeping the address as it is given."""
    stranger = Stranger()
    with strangers(stranger):
        server = JobServer(stranger.url.replace("://", f"://{user}@") + "/")
        with pytest.raises(InfrastructureMissing) as error:
            server.version()
    assert server.url == stranger.url
    sent = stranger.heard[0].get("Authorization", "").removeprefix("Basic ")
    assert base64.b64decode(sent) == (b"me:w0rd!" if ":" in user else b"")  # HTTP knows no user without a password
    assert "w0rd" not in str(error.value)


@pytest.mark.parametrize("rest", ["h:1?token=w0rd", "h:1/?w0rd", "h:1#w0rd", "me:w0/rd@h:1", "w0?rd@h:1"])
def test_an_address_with_more_in_it_is_refused_without_it(rest: str) -> None:
    with pytest.raises(RunError, match="--address") as error:
        JobServer(f"https://{rest}")
    assert not re.search("w0|rd", str(error.value))


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Head, Path]]:
    """A cluster that this user has begun as everybody does, and the home with its token: Ray then asks for it."""
    folder = tmp_path_factory.mktemp("head")
    (folder / ".ray").mkdir()
    (folder / ".ray" / "auth_token").write_text(TOKEN)
    with head(folder, {"HOME": str(folder)}, cpus=2) as found:
        yield found, folder


class Tunnel:
    """A port that leads to another one, as those of ssh and kubectl do. Keeps what passes."""

    def __init__(self, port: int, host: str = "127.0.0.1") -> None:
        self._to, self.passed = port, b""
        self._listening = socket.create_server((host, 0))
        self._open = [self._listening]
        self.port = self._listening.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                near, _ = self._listening.accept()
                far = socket.create_connection(("127.0.0.1", self._to))
                self._open += [near, far]
                for source, target in ((near, far), (far, near)):
                    threading.Thread(target=self._copy, args=(source, target), daemon=True).start()

    def _copy(self, source: socket.socket, target: socket.socket) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(1 << 16):
                self.passed += data
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        for one in self._open:
            with contextlib.suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()


CONNECTS = """
import os, sys
from orchestrator.session import cluster
try:
    with cluster.session(cpus=0):
        import ray

        @ray.remote
        def look(nested):
            return ray.get(nested[0])

        print(ray.get(look.remote([ray.put("answered")])))  # the task asks this process
except ConnectionError as error:
    print(f"refused: {error}")
print(os.environ.get("RAY_AUTH_MODE"), os.environ.get("RAY_AUTH_TOKEN"))
"""


def connecting(cwd: Path, env: Mapping[str, str]) -> str:
    done = subprocess.run(
        [sys.executable, "-c", CONNECTS], cwd=cwd, env=os.environ | dict(env), capture_output=True, text=True,
        check=False, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize("by", ["the file in the home", "a variable", "a file that one names", "auto"])
def test_a_session_turns_the_token_on_where_one_is_at_hand(
    cluster: tuple[Head, Path], tmp_path: Path, by: str, nothing_given: Path
) -> None:
    """Nobody has set RAY_AUTH_MODE. Mutant check: Ray by itself asks for twenty seconds and fails."""
    found, home = cluster
    kept = home / ".ray" / "auth_token"
    kept.chmod(0o644)
    env = {
        "the file in the home": {"HOME": str(home)},
        "a variable": {"RAY_AUTH_TOKEN": TOKEN},
        "a file that one names": {"RAY_AUTH_TOKEN_PATH": str(kept)},
        "auto": {"HOME": str(home), "RAY_TMPDIR": str(found.folder)},
    }[by]
    named = "auto" if by == "auto" else found.address
    printed = connecting(tmp_path, {"RAY_ADDRESS": named} | env)
    assert printed == f"answered\nNone {env.get('RAY_AUTH_TOKEN')}\n", "and the environment is as it was"
    own = "HOME" in env
    assert kept.stat().st_mode & 0o777 == (0o600 if own else 0o644), "what somebody names is theirs to keep"


@pytest.mark.few(1)
@pytest.mark.slow
@pytest.mark.parametrize(
    ("env", "words"),
    [
        ({}, "it wants a token, and none is at hand; take the cluster's from whoever runs it: export RAY_AUTH_TOKEN="),
        ({"RAY_AUTH_MODE": "token"}, "none is at hand; take the cluster's"),
        ({"RAY_AUTH_MODE": "disabled", "RAY_AUTH_TOKEN": TOKEN}, "RAY_AUTH_MODE=disabled is set here"),
        ({"RAY_AUTH_TOKEN": "0" * 32}, "it does not take the token that it was sent; take the cluster's"),
    ],
)
def test_a_cluster_that_wants_a_token_is_told_in_words_and_its_raw_lines_are_not(
    cluster: tuple[Head, Path], tmp_path: Path, env: dict[str, str], words: str
) -> None:
    """By `launch`, which makes nothing, and by the doctor."""
    (tmp_path / "sweep.toml").write_text(SWEEP)
    env = {"RAY_ADDRESS": cluster[0].address} | env
    told = said("launch", "sweep.toml", "--offline", cwd=tmp_path, code=4, env=env)
    assert words in told
    assert len(told.strip().splitlines()) == 1, told
    assert not (tmp_path / "runs").exists()
    found = json.loads(said("doctor", "sweep.toml", "--offline", "--json", cwd=tmp_path, code=4, env=env))
    (one,) = [one for one in found["findings"] if one["check"] == "token"]
    assert one["level"] == "blocker"
    assert words.partition("; ")[0] in f"{one['found']} {one['remedy']}"
    assert "RAY_AUTH_TOKEN" in one["remedy"]


@pytest.mark.soak
@pytest.mark.slow
def test_a_run_has_the_raw_lines_in_its_log(cluster: tuple[Head, Path], tmp_path: Path) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    env = {"RAY_ADDRESS": cluster[0].address, "HOME": str(cluster[1])}
    stop = {"ORCHESTRATOR_GRACE_S": "0"}
    with subprocess.Popen(
        command("launch", "sweep.toml", "--offline"), cwd=tmp_path, env=QUICK | os.environ | env | stop,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    ) as process:  # fmt: skip
        assert process.stdout is not None
        next(line for line in process.stdout if "10 done" in line or "of 10" in line)
        process.terminate()
        process.communicate(timeout=100)
    told = said("launch", "sweep.toml", "--offline", cwd=tmp_path, code=4, env={"RAY_ADDRESS": cluster[0].address})
    assert "it wants a token" in told
    assert "gcs_client.cc" not in told
    log = (tmp_path / "runs" / "small" / "driver.log").read_text()
    assert "it wants a token" in log
    assert "InvalidAuthToken" in log


@pytest.mark.soak
@pytest.mark.slow
def test_the_token_in_the_home_goes_to_a_job_server_of_this_user_and_through_no_tunnel(
    cluster: tuple[Head, Path], tmp_path: Path
) -> None:
    found, home = cluster
    env = {"HOME": str(home)}
    said("status", "--address", found.url, cwd=tmp_path, code=0, env=env)
    host = services.get_node_ip_address()  # which Ray puts in place of 127.0.0.1
    tunnel = Tunnel(int(found.url.rpartition(":")[2]))
    gcs = Tunnel(int(found.address.rpartition(":")[2]), host)
    try:
        at = f"http://127.0.0.1:{tunnel.port}"
        told = said("status", "--address", at, cwd=tmp_path, code=4, env=env)
        assert tunnel.passed
        assert TOKEN.encode() not in tunnel.passed
        assert f"export RAY_AUTH_TOKEN_PATH={home}/.ray/auth_token" in told
        given = {"RAY_AUTH_TOKEN_PATH": str(home / ".ray" / "auth_token")}
        said("status", "--address", at, cwd=tmp_path, code=0, env=env | given)
        assert TOKEN.encode() in tunnel.passed
        assert "it wants a token" in connecting(tmp_path, env | {"RAY_ADDRESS": f"{host}:{gcs.port}"})
        assert gcs.passed
        assert TOKEN.encode() not in gcs.passed
    finally:
        tunnel.close()
        gcs.close()


LOCAL = """
import json, os, psutil
from orchestrator.session import cluster
from orchestrator.session.cluster import start as cluster_start
before = dict(os.environ)
with cluster.session(cpus=1):
    import ray
    assert ray.get(ray.remote(lambda: 3).remote()) == 3
    family = [psutil.Process(), *psutil.Process().children(recursive=True)]
    words = " ".join(word for one in family for word in one.cmdline())
    (raylet,) = [one for one in family if one.name() == "raylet"]
    token = raylet.environ()["RAY_AUTH_TOKEN"]
    sockets = cluster_start.listeners(family)
    folder = cluster.own_folder()
names = {"RAY_AUTH_MODE", "RAY_AUTH_TOKEN", *cluster_start.LOOPBACK}
changed = [name for name in names if os.environ.get(name) != before.get(name)]
print(json.dumps({
    "listeners": len(sockets), "reached": [str(one.laddr) for one in sockets if not cluster_start.is_loopback(one)],
    "token": token, "shown": token in words, "changed": changed, "folder": str(folder),
}))
"""


@pytest.mark.soak
@pytest.mark.slow
@pytest.mark.parametrize("env", [{}, {"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_TOKEN": TOKEN, "RAY_ADDRESS": "local"}])
def test_a_cluster_of_ones_own_listens_on_loopback_behind_a_token_that_no_file_holds(
    tmp_path: Path, nothing_given: Path, env: dict[str, str]
) -> None:
    """Whatever the user has set for other clusters. Mutant checks: `_node_ip_address="127.0.0.1"`; metrics left on; a
    token left to Ray, which keeps it in the home for others to read."""
    done = subprocess.run(
        [sys.executable, "-c", LOCAL], cwd=tmp_path, env=os.environ | env, capture_output=True, text=True, check=False,
        timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    told = json.loads(done.stdout)
    assert told["listeners"] >= 6
    assert told["reached"] == []
    assert len(told["token"]) >= 32
    assert told["token"] != TOKEN
    assert not told["shown"]
    assert told["changed"] == []
    assert not nothing_given.exists()
    for path in Path(told["folder"]).rglob("*"):
        assert not path.is_file() or told["token"].encode() not in path.read_bytes(), path
