"""Whether SQLite still understands the file of a ledger."""

from __future__ import annotations

import contextlib
import sqlite3
from pathlib import Path
from urllib.parse import quote

from orchestrator.ledger.database import parsed

TOLD = 3
"""How many of its complaints are told."""

BUSY_S = 10
"""How long another process may keep the file."""


def damage_at(url: str) -> str | None:
    """What SQLite has against the file of a ledger: a page that is damaged, an index that lacks a row, another format.

    None where there is nothing, or no file, or where that is for a server to say. Changes nothing, needs no lease, and
    makes no side files beside a file that nobody has open. Reads all of it.
    """
    where = parsed(url)
    path = Path(where.database or "")
    return damage(path) if where.get_backend_name() == "sqlite" and path.is_file() else None


def damage(path: Path) -> str | None:
    """The same of a file."""
    mode = "mode=ro" if path.with_name(path.name + "-shm").exists() else "immutable=1"
    address = f"file:{quote(str(path.absolute()))}?{mode}"
    try:
        with contextlib.closing(sqlite3.connect(address, uri=True, timeout=BUSY_S)) as database:
            complaints = [str(row[0]) for row in database.execute(f"PRAGMA integrity_check({TOLD})")]
    except sqlite3.OperationalError:  # busy, or not to be opened: nothing is known of what is in it
        return None
    except sqlite3.DatabaseError as error:
        return str(error)
    return None if complaints == ["ok"] else "; ".join(" ".join(text.split()) for text in complaints)
