"""The client of object stores: files below a prefix of what a URI names, over pyarrow.fs, which is loaded when asked.

    s3://bucket/prefix?endpoint_override=127.0.0.1:9000&scheme=http

Credentials come from the environment. Asks each question once, and raises what the store answers: a rank asks again
(bucket.py), a driver says it in words (orchestrator/run_dir/bucket.py).
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pyarrow import fs

CONNECT_S, ATTEMPTS = 5, 2
"""How long a store may take to accept a connection, and how often pyarrow tries by itself, which would be for minutes
otherwise."""

UPLOADS = 8
"""Files uploaded at once: a request to a store far away waits longer than it sends."""


@dataclass(frozen=True)
class ObjectStore:
    """A prefix of an object store. Methods take names within it, and raise OSError."""

    filesystem: fs.FileSystem
    prefix: str
    """Bucket and prefix, as `filesystem` takes paths."""

    @classmethod
    def of(cls, uri: str, *, request_s: float) -> ObjectStore:
        """Open what `uri` names; nothing is asked of the store yet. request_s: how long it may take for an answer.

        Raises ValueError, or NotImplementedError, for a URI that pyarrow does not know.
        """
        from pyarrow import fs

        filesystem, prefix = fs.FileSystem.from_uri(uri)
        if isinstance(filesystem, fs.S3FileSystem):
            # A URI cannot say how long to wait. What a store is pickled as are the options it was made with.
            _, (options,) = filesystem.__reduce__()
            limits = {"connect_timeout": CONNECT_S, "request_timeout": request_s}
            retries = fs.AwsStandardS3RetryStrategy(max_attempts=ATTEMPTS)
            filesystem = fs.S3FileSystem(**options | limits, retry_strategy=retries)
        return cls(filesystem, prefix.rstrip("/"))

    def inside(self, name: str) -> ObjectStore:
        """Return the store of the prefix `name` in it."""
        return ObjectStore(self.filesystem, self.path(name))

    def path(self, name: str) -> str:
        """Return the path of a name within the prefix, as `filesystem` takes it; for an empty name, the prefix."""
        return f"{self.prefix}/{name}".rstrip("/")

    def read(self, name: str) -> bytes | None:
        """Read the content of a file; None if it is not there."""
        try:
            with self.filesystem.open_input_stream(self.path(name)) as stream:
                return bytes(stream.read())
        except FileNotFoundError:
            return None

    def put(self, name: str, content: bytes) -> None:
        """Replace a file by one request, so that no reader sees a part of it."""
        self._make_folder_of(name)
        with self.filesystem.open_output_stream(self.path(name)) as stream:
            stream.write(content)

    def delete(self, name: str) -> None:
        """Delete a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_file(self.path(name))

    def delete_folder(self, name: str) -> None:
        """Delete all that lies below a prefix, if anything does."""
        with contextlib.suppress(FileNotFoundError):
            self.filesystem.delete_dir(self.path(name))

    def move(self, name: str, to: str) -> None:
        """Give a file another name."""
        self.filesystem.move(self.path(name), self.path(to))

    def infos(self, name: str = "", *, recursive: bool = False) -> list[fs.FileInfo]:
        """List the files and folders directly below `name`, or all below it; none where there is no such prefix."""
        from pyarrow import fs

        selector = fs.FileSelector(self.path(name), recursive=recursive, allow_not_found=True)
        return list(self.filesystem.get_file_info(selector))

    def download(self, name: str, to: Path) -> None:
        """Copy a file, or all that lies below a prefix, to a local path."""
        from pyarrow import fs

        here = fs.LocalFileSystem()
        fs.copy_files(self.path(name), str(to), source_filesystem=self.filesystem, destination_filesystem=here)

    def upload(self, path: Path, name: str) -> None:
        """Copy a local file, piece by piece."""
        from pyarrow import fs

        self._make_folder_of(name)
        here = fs.LocalFileSystem()
        fs.copy_files(str(path), self.path(name), source_filesystem=here, destination_filesystem=self.filesystem)

    def _make_folder_of(self, name: str) -> None:
        if self.filesystem.type_name == "local":  # buckets have none
            self.filesystem.create_dir(self.path(name).rpartition("/")[0])


def side_by_side(uploads: Sequence[Callable[[], object]]) -> None:
    """Call all of them, at most UPLOADS at once; after an error, start no more. Raises the first of the errors, in the
    order of `uploads`, once none of them runs any more."""
    if len(uploads) == 1:
        uploads[0]()
    elif uploads:
        with ThreadPoolExecutor(min(len(uploads), UPLOADS), thread_name_prefix="upload") as pool:
            begun = [pool.submit(upload) for upload in uploads]
            wait(begun, return_when=FIRST_EXCEPTION)
            pool.shutdown(cancel_futures=True)
        for future in begun:
            if not future.cancelled():
                future.result()
