"""A run's files in an object store, named by a URI as pyarrow.fs takes it, with whatever goes wrong put into words.

    s3://bucket/prefix/NAME?endpoint_override=127.0.0.1:9000&scheme=http      inside it: .../NAME/trials/ID?...

Credentials come from the environment. A URI that holds some is refused, since a run's address is stored and shown.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import parse_qs, quote, urlsplit

from jobs.artifacts.objects import ObjectStore, side_by_side
from orchestrator.system import masking
from orchestrator.system.addresses import ENVIRONMENT, credentials
from orchestrator.system.exit_codes import Exit

if TYPE_CHECKING:
    from pyarrow import fs

REQUEST_S = 10
"""How long a store may take for an answer: one that is not there is reported within half a minute."""

AWAY = ("NETWORK_CONNECTION", "Could not connect", "Could not resolve", "timed out", "Timeout")
"""Words of stores that cannot be reached."""


class RemoteError(Exception):
    """The store, or something else that a run in it needs, is not there; the text names the remedy."""

    exit_code = Exit.MISSING


class BadAddress(ValueError):
    """Not a URI that a run may have; the text says what would be one."""

    exit_code = Exit.BAD_USAGE


def is_uri(text: str) -> bool:
    """Return whether a person means an object store and not a folder."""
    return re.match(r"[a-z][a-z0-9+.-]*://", text) is not None


def almost_uri(text: str) -> str | None:
    """Return what was meant by `S3://bucket`, `s3:/bucket` and the like, which would be taken for a folder's name; None
    for anything else, and where there is such a folder."""
    near = re.match(r"\s*([A-Za-z][A-Za-z0-9+.-]*):/+", text)
    if near is None or is_uri(text) or os.path.lexists(text):
        return None
    scheme = near[1].lower()
    return f"{scheme}://{'/' if scheme == 'file' else ''}{text[near.end() :].strip()}"


def refuse_almost_uri(text: str) -> None:
    """Raise BadAddress for what is almost a URI."""
    if (right := almost_uri(text)) is not None:
        shown = masking.masked(text)
        raise BadAddress(f"{shown} is no URI; give it as {masking.masked(right)}, or a folder so named as ./{shown}")


@dataclass(frozen=True)
class Remote:
    """A prefix of an object store. Methods take names within it and raise RemoteError, or BadAddress."""

    uri: str

    @classmethod
    def of(cls, uri: str) -> Remote:
        """Build the prefix that a person's URI names; nothing is asked yet. Raises BadAddress if the URI holds
        credentials, or what no URI may."""
        _refuse_secrets(uri)
        _refuse_misspelled(uri)
        path, mark, query = uri.partition("?")
        return cls(path.rstrip("/") + mark + query)

    def inside(self, name: str) -> Remote:
        """Return a prefix within this one; what follows `?` stays at the end."""
        path, mark, query = self.uri.partition("?")
        return Remote(f"{path}/{name}{mark}{query}")

    def above(self) -> Remote | None:
        """Return the prefix that this one is in; None for a whole bucket."""
        path, mark, query = self.uri.partition("?")
        head = path.rpartition("/")[0]
        return None if head.endswith("/") else Remote(head + mark + query)

    def read(self, name: str) -> bytes | None:
        """Read a file's content; None if it is not there."""
        with self._asking() as objects:
            return objects.read(name)

    def put(self, name: str, content: bytes) -> None:
        """Replace a file in one piece."""
        with self._asking() as objects:
            objects.put(name, content)

    def put_files(self, folder: Path, paths: Iterable[Path]) -> None:
        """Put files of `folder` under the names that they have there, side by side."""
        side_by_side([partial(self._put_file, folder, path) for path in paths])

    def _put_file(self, folder: Path, path: Path) -> None:
        self.put(path.relative_to(folder).as_posix(), path.read_bytes())

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with self._asking() as objects:
            objects.delete(name)

    def files(self, name: str = "") -> dict[str, fs.FileInfo]:
        """List the files and folders directly in this prefix, or in `name` within it: pyarrow's FileInfo by name."""
        with self._asking() as objects:
            return {info.base_name: info for info in objects.infos(name)}

    def with_file(self, name: str) -> list[str]:
        """List the folders directly in this prefix that hold a file `name`."""
        with self._asking() as objects:
            folders = sorted(self.files())
            infos = objects.filesystem.get_file_info([objects.path(f"{folder}/{name}") for folder in folders])
            return [folder for folder, info in zip(folders, infos, strict=True) if info.is_file]

    def refuse_missing_bucket(self) -> None:
        """Raise RemoteError unless the bucket is there."""
        with self._asking() as objects:
            from pyarrow import fs

            bucket = objects.prefix.partition("/")[0]
            missing = bucket and objects.filesystem.get_file_info(bucket).type == fs.FileType.NotFound
        if missing:
            raise self._no_bucket()

    @contextlib.contextmanager
    def _asking(self) -> Iterator[ObjectStore]:
        """Open the store, and put into words whatever it answers instead of what was asked."""
        try:
            yield _opened(self.uri)
        except FileNotFoundError as error:
            raise self._no_bucket() from error
        except OSError as error:
            if "NO_SUCH_BUCKET" in str(error) or "NoSuchBucket" in str(error):
                raise self._no_bucket() from error
            reason = (str(error).splitlines() or ["it does not say why"])[0]
            raise RemoteError(f"{self.uri} cannot be used: {reason}. {self._remedy(reason)}") from error
        except (ValueError, NotImplementedError) as error:
            raise BadAddress(
                f"{self.uri} is no address of an object store: {error}; give one like s3://bucket/prefix/NAME"
            ) from error

    def _no_bucket(self) -> RemoteError:
        parts = urlsplit(self.uri)
        options = parse_qs(parts.query)
        endpoint = "".join(f" --endpoint-url {_endpoint(options)}" for _ in options.get("endpoint_override", ()))
        make = f"aws s3 mb s3://{parts.netloc}{endpoint}" if parts.scheme == "s3" else "its own tools make one"
        return RemoteError(
            f"there is no bucket {parts.netloc!r}, which {self.uri} needs; correct the name, or make it: {make}"
        )

    def _remedy(self, reason: str) -> str:
        parts = urlsplit(self.uri)
        if any(word in reason for word in AWAY):
            options = parse_qs(parts.query)
            if "endpoint_override" in options:
                return f"See that it answers: curl -sI {_endpoint(options)}"
            return "See that this machine reaches it, or name another: URI?endpoint_override=HOST:PORT&scheme=http"
        scheme = next((known for known in ENVIRONMENT if parts.scheme.startswith(known)), None)
        if scheme is None:
            return "See that it is there and may be written"
        lacks = scheme == "s3" and not any(os.environ.get(name) for name in ("AWS_ACCESS_KEY_ID", "AWS_PROFILE"))
        there = "there are none here" if lacks else "these may not do that"
        return f"It takes credentials from the environment, and {there}: export {ENVIRONMENT[scheme]}"


def _endpoint(options: dict[str, list[str]]) -> str:
    return f"{options.get('scheme', ['https'])[0]}://{options['endpoint_override'][0]}"


def _refuse_secrets(uri: str) -> None:
    if (known := credentials(uri)) is not None:
        shown, what, remedy = known
        raise BadAddress(
            f"{shown} was given with {what}. A run's address is stored and shown, so it holds no credentials; leave "
            f"them out, and: {remedy}"
        )


def _refuse_misspelled(uri: str) -> None:
    """Raise BadAddress for characters that a URI writes in another way: of a name with `#` a store would take what
    comes before it."""
    head, mark, query = uri.partition("?")
    scheme, colon, rest = head.partition("://")
    right = quote(rest, safe="/%:@!$&'()*+,;=~")
    if right != rest:
        raise BadAddress(
            f"{uri} has characters that a URI writes in another way; give it as {scheme}{colon}{right}{mark}{query}"
        )


@cache
def _opened(uri: str) -> ObjectStore:
    """Open what a URI names, with requests that do not wait for ever."""
    return ObjectStore.of(uri, request_s=REQUEST_S)
