"""Addresses in texts: the credentials that one may hold, and the address of the cluster whose job this process is."""

from __future__ import annotations

import os
import re
import shlex
from urllib.parse import unquote

from orchestrator.system import masking

ADDRESS = "ORCHESTRATOR_ADDRESS"
"""Variable of a job: the URL by which whoever submitted it reaches the cluster's job server. What is printed there is
read elsewhere, where the same commands need that address and no path of the head means anything."""

SECRET = masking.PARAMETER
"""Names of query parameters that carry credentials."""

PORT = re.compile(r"(?:[\w-]+(?:\.[\w-]+)+|localhost|\[[0-9a-fA-F:]+\]):\d+")
"""A host with its port, and no name with a password."""

USER = re.compile(r":[^/@]*@|://[^/]*@")
"""A password, or a user, within a parameter."""

ENVIRONMENT = {
    "s3": "AWS_ACCESS_KEY_ID=... AWS_SECRET_ACCESS_KEY=...",
    "gs": "GOOGLE_APPLICATION_CREDENTIALS=/path/of/key.json",
    "abfs": "AZURE_TENANT_ID=... AZURE_CLIENT_ID=... AZURE_CLIENT_SECRET=...",
}
"""Where credentials come from, by scheme."""


def address_option() -> str:
    """Return ` --address URL` in a job, for whoever reads what it prints; else nothing."""
    url = os.environ.get(ADDRESS)
    return f" --address {shlex.quote(url)}" if url else ""


def credentials(uri: str) -> tuple[str, str, str] | None:
    """Take the credentials out of a URI: return the rest, what they are, and where they belong; None without any."""
    head, mark, query = uri.partition("?")
    scheme, _, rest = head.partition("://")
    secrets, shown = _user(scheme.lower().rpartition("+")[2], rest)
    parameters = [part for part in query.split("&") if part]
    secret = [part.partition("=")[0] for part in parameters if _is_secret(*unquote(part).partition("=")[::2])]
    secrets += secret
    if not secrets:
        return None
    kept = "&".join(part for part in parameters if part.partition("=")[0] not in secret)
    known = next((value for name, value in ENVIRONMENT.items() if scheme.lower().startswith(name)), None)
    remedy = f"export {known}" if known else "let whatever opens it have them from its environment"
    return f"{scheme}://{shown}{mark if kept else ''}{kept}", ", ".join(secrets), remedy


def _user(scheme: str, rest: str) -> tuple[list[str], str]:
    """Find what is wrong with a user in an address, nothing or one thing, and the rest without it. What follows `@` in
    a path is part of a name."""
    authority, slash, path = rest.partition("/")
    user, _, host = authority.rpartition("@")
    what = ["a user or a password"]
    if ":" in unquote(user) or (user and scheme in ("s3", "http", "https")):
        return what, host + slash + path
    # A key of AWS may hold a slash, so that what follows it looks like a path.
    if ":" in host and (scheme == "s3" or ("@" in path and not PORT.fullmatch(host))):
        return what, rest.rpartition("@")[2] if "@" in rest else "..."
    return [], rest


def _is_secret(name: str, value: str) -> bool:
    if name == "endpoint_override" and "@" in value:
        return True
    return SECRET.search(name) is not None or USER.search(value) is not None
