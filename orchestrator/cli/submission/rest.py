"""Ray's REST API of jobs, over HTTP: what its OpenAPI specification lists, with time limits and without redirects.

Two endpoints are described nowhere: Ray's own client uploads a job's folder to the one and follows a log through the
other, which is a WebSocket. tests/house/private.py lists them. Needs no ray.
"""

from __future__ import annotations

import base64
import hashlib
import io
import os
import ssl
import zipfile
from collections.abc import AsyncIterator, Callable, Iterator
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit
from urllib.request import proxy_bypass

from orchestrator.run_dir.folder import RunError
from orchestrator.system.masking import without_user

if TYPE_CHECKING:
    import httpx2

TIMEOUT_S = (5.0, 60.0)
"""To connect, and to wait for an answer."""

PACKAGES = "/api/packages/gcs"
"""Where the folders of jobs are uploaded to."""

OLDEST = 2
"""Major version of Ray from which on jobs have ids of one's own."""

BUNDLES = ("REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE")
"""Variables by which people name the certificates of their company to HTTP clients; $SSL_CERT_FILE is OpenSSL's own."""

Heard = Callable[[str | None], None]


class RequestRefused(Exception):
    """The server answered, and not with what was asked for."""

    def __init__(self, status: int, text: str) -> None:
        super().__init__(status, text)  # what it is made of again where it is pickled
        self.status, self.text = status, text

    def __str__(self) -> str:
        return self.text


class TokenRefused(Exception):
    """The server wants a token, or another one."""


class Redirected(Exception):
    """The server sends its visitors where the text says. What is asked, and the token, are for nobody else."""


class Unreachable(Exception):
    """No answer came, or none that can be read."""


class RestClient:
    """Asks the job server at an address, which may hold a user and a password: these are sent in place of the token.

    heard: takes the `Date` of each answer. Methods raise the exceptions of this module, and RunError.
    """

    def __init__(self, address: str, token: str | None, heard: Heard) -> None:
        self._address = without_user(address)
        self._headers = _authorization(address, token)
        self._heard = heard
        self._made: httpx2.Client | None = None
        self._is_known = False
        """Whether what answers at the address was seen to be Ray's."""

    def get(self, path: str) -> object:
        """Return the content of the answer."""
        return _content(self._asked("GET", path))

    def post(self, path: str, content: object = None) -> None:
        """Have something done."""
        self._asked("POST", path, content=content)

    def delete(self, path: str) -> None:
        """Have something forgotten."""
        self._asked("DELETE", path)

    def upload(self, folder: Path) -> str:
        """Have a folder where jobs can begin in it, once for the same content. Return its URI."""
        name = package_name(folder)
        try:
            self._asked("GET", f"{PACKAGES}/{name}")
        except RequestRefused as error:
            if error.status != 404:
                raise
            self._asked("PUT", f"{PACKAGES}/{name}", body=_zipped(folder))
        return f"gcs://{name}"

    async def tail(self, path: str) -> AsyncIterator[str]:
        """Yield what comes from a WebSocket until the server closes it. Raises aiohttp.ClientError too."""
        import aiohttp

        self._check_version()
        async with aiohttp.ClientSession(headers=self._headers) as session:
            socket = await session.ws_connect(self._address + path, ssl=_certificates(self._address))
            while True:
                message = await socket.receive()
                if message.type == aiohttp.WSMsgType.TEXT:
                    yield message.data
                elif message.type == aiohttp.WSMsgType.ERROR:
                    raise Unreachable(f"WebSocket error: {socket.exception()}")
                elif message.type == aiohttp.WSMsgType.CLOSED:
                    if socket.close_code == aiohttp.WSCloseCode.ABNORMAL_CLOSURE:
                        code = socket.close_code
                        raise Unreachable(f"WebSocket connection closed unexpectedly with close code {code}")
                    return

    def _check_version(self) -> None:
        """Ask once what answers at the address at all."""
        if self._is_known:
            return
        remedy = f"Please ensure the cluster is running Ray {OLDEST}.0 or higher."
        try:
            content = _content(self._answer("GET", "/api/version"))
        except RequestRefused as error:
            if error.status == 404:
                raise RequestRefused(404, f"Version check returned 404. {remedy}") from error
            raise
        version = content.get("ray_version") if isinstance(content, dict) else None
        if not isinstance(version, str):
            raise Unreachable("it says no version of Ray")
        major = version.partition(".")[0]
        if major.isdecimal() and int(major) < OLDEST:
            raise RequestRefused(200, f"Ray version {version} is running on the cluster. {remedy}")
        self._is_known = True

    def _asked(self, method: str, path: str, *, content: object = None, body: bytes | None = None) -> httpx2.Response:
        self._check_version()
        return self._answer(method, path, content=content, body=body)

    def _answer(self, method: str, path: str, *, content: object = None, body: bytes | None = None) -> httpx2.Response:
        import httpx2

        try:
            answer = self._client().request(method, self._address + path, json=content, content=body)
        except httpx2.TimeoutException as error:
            if isinstance(error, httpx2.ConnectTimeout):
                raise Unreachable(f"Failed to connect to Ray at address: {self._address}.") from error
            raise Unreachable(f"it has not answered for {TIMEOUT_S[1]:g} s") from error
        except (httpx2.TransportError, httpx2.InvalidURL) as error:
            raise Unreachable(f"Failed to connect to Ray at address: {self._address}.") from error
        except httpx2.HTTPError as error:  # such as an answer that cannot be unpacked
            raise Unreachable(str(error)) from error
        if answer.status_code in (401, 403):
            raise TokenRefused
        if answer.has_redirect_location:
            raise Redirected(answer.headers["location"])
        self._heard(answer.headers.get("Date"))
        if answer.status_code != 200:
            raise RequestRefused(
                answer.status_code, f"Request failed with status code {answer.status_code}: {answer.text}."
            )
        return answer

    def _client(self) -> httpx2.Client:
        import httpx2

        if self._made is None:
            connect_s, wait_s = TIMEOUT_S
            make = partial(
                httpx2.Client,
                headers=self._headers,
                timeout=httpx2.Timeout(wait_s, connect=connect_s),
                limits=httpx2.Limits(max_keepalive_connections=0),  # the server may have closed one meanwhile
                verify=_certificates(self._address),
            )
            try:
                self._made = make()
            except OSError as error:  # httpx2 reads them whatever the address
                named = [name for name in ("SSL_CERT_FILE", "SSL_CERT_DIR") if os.environ.get(name)]
                raise RunError(
                    f"{' and '.join(named) or 'certificates'} cannot be read ({error}); name what is there, or unset it"
                ) from error
            except (ImportError, ValueError) as error:  # of a proxy in the environment, of a kind that it cannot use
                if not proxy_bypass(urlsplit(self._address).hostname or ""):
                    raise Unreachable(str(error)) from error
                self._made = make(trust_env=False)
        return self._made


def package_name(folder: Path) -> str:
    """Derive a folder's name on the server: the same for the same files alone."""
    digest = hashlib.sha256()
    for path in _files(folder):
        content = path.read_bytes()
        name = path.relative_to(folder).as_posix().encode(errors="surrogateescape")
        digest.update(b"%d %d %o " % (len(name), len(content), path.stat().st_mode) + name + content)
    return f"_ray_pkg_{digest.hexdigest()[:32]}.zip"


def _files(folder: Path) -> Iterator[Path]:
    yield from sorted(path for path in folder.rglob("*") if path.is_file())


def _zipped(folder: Path) -> bytes:
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w", zipfile.ZIP_DEFLATED, compresslevel=1, strict_timestamps=False) as archive:
        for path in _files(folder):
            archive.write(path, path.relative_to(folder))
    return content.getvalue()


def _content(answer: httpx2.Response) -> object:
    try:
        return answer.json()
    except ValueError as error:
        raise Unreachable(str(error)) from error


def _authorization(address: str, token: str | None) -> dict[str, str]:
    """Build the header that tells the server who asks. HTTP knows no user without a password."""
    parts = urlsplit(address)
    user, password = unquote(parts.username or ""), unquote(parts.password or "")
    if parts.password is not None and (user or password):
        return {"Authorization": f"Basic {base64.b64encode(f'{user}:{password}'.encode()).decode()}"}
    return {"Authorization": f"Bearer {token}"} if token else {}


def _certificates(address: str) -> ssl.SSLContext | bool:
    """Choose what the server's certificate is checked against: what the environment names, else what HTTP clients take
    by themselves. Raises RunError."""
    named = next(((name, path) for name in BUNDLES if (path := os.environ.get(name))), None)
    if named is None or not address.startswith("https://"):
        return True
    try:
        if Path(named[1]).is_dir():
            return ssl.create_default_context(capath=named[1])
        return ssl.create_default_context(cafile=named[1])
    except OSError as error:
        raise RunError(
            f"{named[0]}={named[1]} cannot be read as certificates ({error}); name a file of them, or unset it"
        ) from error
