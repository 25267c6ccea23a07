"""Ray's token: which one there is, and for which address. One that nobody gave for an address never goes there.

    $RAY_AUTH_TOKEN, $RAY_AUTH_TOKEN_PATH    given, for whatever address the same person names
    ~/.ray/auth_token                        where Ray also keeps what it has made up by itself: for a cluster of this
                                             user on this machine, and for no other

Ray itself sends what lies in the home to every address. Needs neither ray nor the network.
"""

from __future__ import annotations

import contextlib
import ipaddress
import os
import secrets
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import psutil

MODE, TOKEN, PATH = "RAY_AUTH_MODE", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH"
"""Ray's variables."""

PROGRAMS = ("/gcs/gcs_server", "/raylet/raylet", "/ray/dashboard/dashboard.py", "ray.util.client.server")
"""Ends of the words by which the command lines of Ray's servers are known: GCS, raylet, job server, client server."""


class TokenUnusable(ValueError):
    """A token was given that none can be; the text says what would be one."""


def switched_off() -> bool:
    """Return whether the environment says that no token is to be used."""
    return os.environ.get(MODE, "").strip().lower() == "disabled"


def made_up() -> Path:
    """Return the file where Ray keeps this user's token, given or made up by a cluster that somebody started here."""
    try:
        home = Path.home()
    except RuntimeError:  # of a user without one, as in some containers
        home = Path("/")
    return home / ".ray" / "auth_token"


def given() -> str | None:
    """Read the token that the user has given, for any address; None if there is none. Raises TokenUnusable."""
    if text := os.environ.get(TOKEN, "").strip():
        return _usable(text, TOKEN)
    if not (named := os.environ.get(PATH)):
        return None
    try:
        text = Path(named).expanduser().read_text(errors="surrogateescape").strip()
    except (OSError, RuntimeError, ValueError) as error:  # no such file, no such user's home, no name of a file
        why = getattr(error, "strerror", None) or error
        raise TokenUnusable(f"{PATH}={named} cannot be read ({why}); name a file with the token") from error
    if not text:
        raise TokenUnusable(f"{PATH}={named} is empty; name a file with the token, or unset it")
    return _usable(text, f"what {PATH} names")


def kept() -> str | None:
    """Read the token in the home folder, which from now on only this user can read; None if there is none. Raises
    TokenUnusable."""
    keep_private()
    with contextlib.suppress(OSError):
        text = made_up().read_text(errors="surrogateescape").strip()
        return _usable(text, str(made_up())) if text else None
    return None


def keep_private() -> bool:
    """Make the token in the home folder readable by its owner alone; Ray made it with the owner's umask. Return False
    if others can still read it, since it is another user's, or a link leads to it: that may be meant for others."""
    path = made_up()
    with contextlib.suppress(OSError):
        mode = path.lstat().st_mode
        if stat.S_ISREG(mode) and mode & 0o077:
            path.chmod(0o600)
    with contextlib.suppress(OSError):
        return not (path.is_file() and path.stat().st_mode & 0o077)
    return True


def for_cluster(address: str) -> str | None:
    """Choose the token for the cluster at `address` (host:port, of its GCS or its client server); None: send none.
    Raises TokenUnusable."""
    if switched_off():
        return None
    host, _, port = address.removeprefix("ray://").rpartition(":")
    return given() or (kept() if port.isdigit() and _is_own(host.strip("[]"), int(port)) else None)


def for_server(url: str) -> str | None:
    """Choose the token for the job server at `url`; None: send none. Raises TokenUnusable."""
    if switched_off():
        return None
    if (token := given()) is not None:
        return token
    with contextlib.suppress(ValueError):  # of a port that is no number, and of brackets without an end
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        return kept() if parts.hostname and _is_own(parts.hostname, port) else None
    return None


def lacking(where: str, *, sent: bool = False) -> str:
    """Explain what to do about a token that `where` wants and did not get; sent: a token was sent and refused."""
    if switched_off():
        return f"{MODE}=disabled is set here, by which none is sent: unset it, and export {TOKEN}=..., as on its head"
    ask = f"take the cluster's from whoever runs it: export {TOKEN}=..., or {PATH}=FILE"
    if not sent and made_up().is_file():
        return (
            f"{made_up()} goes by itself to nothing but Ray's own processes of this user on this machine, and {where} "
            f"is none of them; if it holds that cluster's token: export {PATH}={made_up()}; else {ask}"
        )
    return ask


@contextlib.contextmanager
def environment(token: str | None) -> Iterator[None]:
    """Give Ray this token and no other while the context lasts, in this process and in those that it starts; with None,
    Ray sends no token."""
    names = (MODE, TOKEN, PATH)
    before = {name: os.environ.pop(name) for name in names if name in os.environ}
    os.environ |= {MODE: "disabled"} if token is None else {MODE: "token", TOKEN: token}
    try:
        yield
    finally:
        for name in names:
            os.environ.pop(name, None)
        os.environ |= before


def new() -> str:
    """Generate a token for a cluster that begins and ends with this process: it is in no file, so that none is left."""
    return secrets.token_hex(32)


def _usable(text: str, name: str) -> str:
    if not text.isascii() or not text.isprintable() or " " in text:
        raise TokenUnusable(f"{name} holds no token: one is a word of printable ASCII, in a single line")
    return text


def _is_own(host: str, port: int) -> bool:
    """Return whether a Ray process that this user has started on this machine listens at `host` and `port`, or is a
    node of the cluster there. A tunnel to another machine is no such process."""
    wanted = _addresses(host)
    here = wanted & _interfaces()
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error, OSError):
            words = process.cmdline()
            if process.uids().real != os.getuid() or not any(word.endswith(PROGRAMS) for word in words[:3]):
                continue
            joined = [word.partition("=")[2] for word in words if word.startswith("--gcs-address=")]
            is_served = (
                _serves(process, wanted, port) if here else any(_names(address, wanted, port) for address in joined)
            )
            if is_served and _shares_network(process.pid):
                return True
    return False


def _shares_network(process: int) -> bool:
    """Return whether the ports of a process are this machine's: those of a container are not."""
    try:
        return Path(f"/proc/{process}/ns/net").stat().st_ino == Path("/proc/self/ns/net").stat().st_ino
    except OSError:
        return True


def _serves(process: psutil.Process, wanted: set[str], port: int) -> bool:
    """Return whether a process takes connections to one of the addresses."""
    for connection in process.net_connections("tcp"):
        if connection.status == psutil.CONN_LISTEN and connection.laddr.port == port:
            ip = connection.laddr.ip.removeprefix("::ffff:")
            if ip in wanted or ipaddress.ip_address(ip).is_unspecified:
                return True
    return False


def _names(joined: str, wanted: set[str], port: int) -> bool:
    host, _, number = joined.rpartition(":")
    return number == str(port) and bool(_addresses(host.strip("[]")) & wanted)


def _addresses(host: str) -> set[str]:
    """Resolve a name to its IP addresses; there are none for an unknown name."""
    try:
        answers = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except (OSError, UnicodeError):
        return set()
    return {str(answer[4][0]).partition("%")[0].removeprefix("::ffff:") for answer in answers}


def _interfaces() -> set[str]:
    """Collect the IP addresses of this machine."""
    addresses = {
        interface.address.partition("%")[0] for all_of in psutil.net_if_addrs().values() for interface in all_of
    }
    return addresses | {"127.0.0.1", "::1"}


def address() -> str | None:
    """Read the address of the cluster to use; None for a cluster of this process's own, which `local` asks for too."""
    named = os.environ.get("RAY_ADDRESS", "").strip()
    return named if named.lower() not in ("", "local") else None
