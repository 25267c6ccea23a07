"""Servers that tests start for themselves, and stop."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import subprocess
import tempfile
import uuid
from collections.abc import Callable, Iterator
from itertools import count
from pathlib import Path

import psutil
import pytest
import sqlalchemy as sa

NUMBERS = count()


def binaries() -> Path | None:
    """Folder of initdb and pg_ctl: on the PATH, or where Debian keeps them."""
    found = [*Path("/usr/lib/postgresql").glob("*/bin"), *(Path(p) for p in os.environ["PATH"].split(os.pathsep))]
    return next((folder for folder in found if (folder / "initdb").exists() and (folder / "postgres").exists()), None)


@contextlib.contextmanager
def postgres_server() -> Iterator[str]:
    """URL, with `{}` for the database, of a private PostgreSQL server on a unix socket; skips where there is none.

    initdb refuses root, which becomes `postgres`.
    """
    programs = binaries()
    if programs is None:
        pytest.skip("PostgreSQL is not installed: no initdb in /usr/lib/postgresql/*/bin or on the PATH")
    pytest.importorskip("psycopg", reason="psycopg 3 is not installed: pip install 'psycopg[binary]'")
    user: str | None = None
    if os.geteuid() == 0:
        names = {entry.pw_name for entry in pwd.getpwall()}
        user = "postgres" if "postgres" in names else "nobody"
    # Not tmp_path: that is closed to other users, and too long for the name of a socket.
    home = Path(tempfile.mkdtemp(prefix="pg"))
    try:
        if user:
            shutil.chown(home, user)

        def run(*command: str | Path) -> None:
            log = home.with_suffix(".log")
            with log.open("w") as out:
                done = subprocess.run(command, user=user, cwd="/", stdout=out, stderr=out, check=False)
            assert done.returncode == 0, log.read_text()

        run(programs / "initdb", "-D", home / "data", "-U", "postgres", "--auth=trust", "--no-sync")
        options = f"-k {home} -c listen_addresses='' -c fsync=off"
        run(programs / "pg_ctl", "-D", home / "data", "-o", options, "-l", home / "log", "-w", "start")
        try:
            yield f"postgresql://postgres:a-secret@/{{}}?host={home}"
        finally:
            if (home / "data" / "postmaster.pid").exists():  # else a test has stopped it
                run(programs / "pg_ctl", "-D", home / "data", "-m", "immediate", "-w", "stop")
    finally:
        shutil.rmtree(home, ignore_errors=True)
        home.with_suffix(".log").unlink(missing_ok=True)


def control(server: str, *arguments: str) -> None:
    """pg_ctl on a server of `postgres_server`: `restart`, `stop`, `start`, with a mode."""
    home, programs = Path(server.partition("host=")[2]), binaries()
    assert programs is not None
    options = f"-k {home} -c listen_addresses='' -c fsync=off"
    command = [str(programs / "pg_ctl"), "-D", f"{home}/data", "-o", options, "-l", f"{home}/log", "-w", *arguments]
    user = home.joinpath("data").owner() if os.geteuid() == 0 else None
    subprocess.run(command, user=user, cwd="/", stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)


def processes(server: str) -> list[psutil.Process]:
    """All processes of a server of `postgres_server`, the first one first."""
    home = Path(server.partition("host=")[2])
    first = psutil.Process(int((home / "data" / "postmaster.pid").read_text().splitlines()[0]))
    return [first, *first.children(recursive=True)]


def new_database(server: str) -> str:
    """URL of an empty database of `postgres_server`."""
    name = f"test{next(NUMBERS)}"
    engine = sa.create_engine(
        server.format("postgres").replace("postgresql:", "postgresql+psycopg:"), isolation_level="AUTOCOMMIT"
    )
    with engine.connect() as connection:
        connection.exec_driver_sql(f"CREATE DATABASE {name} STRATEGY file_copy")
    engine.dispose()
    return server.format(name)


@contextlib.contextmanager
def s3_server() -> Iterator[Callable[[str], str]]:
    """A function from a path to its URI, in a bucket of an S3 server in this process that others reach by HTTP."""
    from moto.server import ThreadedMotoServer
    from pyarrow import fs

    server = ThreadedMotoServer("127.0.0.1", port=0, verbose=False)
    server.start()
    with pytest.MonkeyPatch.context() as patch:
        for name, value in (("ACCESS_KEY_ID", "a"), ("SECRET_ACCESS_KEY", "b"), ("EC2_METADATA_DISABLED", "true")):
            patch.setenv(f"AWS_{name}", value)
        try:
            query = f"?endpoint_override=127.0.0.1:{server.get_host_and_port()[1]}&scheme=http&region=us-east-1"
            name = f"bucket-{uuid.uuid4().hex}"  # moto's servers of one process share their buckets
            fs.FileSystem.from_uri(f"s3://{name}{query}&allow_bucket_creation=true")[0].create_dir(name)
            yield lambda path: f"s3://{name}/{path}{query}"
        finally:
            server.stop()
