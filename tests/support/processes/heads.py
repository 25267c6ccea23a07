"""A Ray cluster that somebody has started by `ray start --head`, with its job server, in processes of its own."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import psutil
from real import children, end, free_port, wait_for


@dataclass(frozen=True)
class Head:
    """Where it is."""

    address: str
    url: str
    """Of its job server."""

    folder: Path
    """Of its sessions."""

    process: subprocess.Popen[bytes]


@contextlib.contextmanager
def head(folder: Path, env: Mapping[str, str], *, cpus: int = 1) -> Iterator[Head]:
    """A head with `cpus`, that logs to `folder` and has these variables besides those of this process. Its own files
    lie in a folder with a short name, as sockets want it, which goes with it."""
    port, dashboard, log = free_port(), free_port(), folder / "head.log"
    ports = (f"--port={port}", f"--dashboard-port={dashboard}", f"--ray-client-server-port={free_port()}")
    start = [sys.executable, "-m", "ray.scripts.scripts", "start", "--head", "--block", f"--num-cpus={cpus}"]
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    with tempfile.TemporaryDirectory(prefix="ray-") as place, log.open("wb") as file:
        process = subprocess.Popen(
            [*start, *ports, "--include-dashboard=true", "--dashboard-agent-listen-port=0", f"--temp-dir={place}"],
            stdout=file,
            stderr=file,
            start_new_session=True,
            env=kept | {"RAY_USAGE_STATS_ENABLED": "0"} | dict(env) | {"TMPDIR": place},  # its dashboard's sockets
        )
        family: list[psutil.Process] = []
        try:
            wait_for(lambda: process.poll() is not None or "will now block" in log.read_text(), what="a head")
            assert process.poll() is None, log.read_text()
            yield Head(f"127.0.0.1:{port}", f"http://127.0.0.1:{dashboard}", Path(place), process)
        finally:
            if process.poll() is None:
                family = [psutil.Process(process.pid), *children(process)]
            for one in family:
                with contextlib.suppress(psutil.NoSuchProcess):
                    one.kill()
            process.wait()
            end(family)
