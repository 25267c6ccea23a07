"""Secrets in texts: what this process was given to get in somewhere is shown, logged and stored as `***`.

Two ways: by form, a password or a key within an address; and by value, whatever stands in a variable of the environment
whose name says that it is a secret, or in an address that a variable holds. Errors of libraries quote such things.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, unquote, urlsplit

MASK = "***"

PARAMETER = re.compile(
    r"key(?!word|board)|secret|token(?!i[sz])|password|passwd|credential|sig(nature)?$|^sas", re.IGNORECASE
)
"""Names of query parameters that carry credentials."""

VARIABLE = re.compile(
    r"key|secret|token|passw|passphrase|_pass$|_pwd$|credential|connection_string|_sas$|_auth$", re.IGNORECASE
)
"""Names of variables that do."""

HARMLESS = re.compile(r"(_id|_path|_file|_dir|_name|_user|username|_mode|_parallelism)$", re.IGNORECASE)
"""Ends of names of variables that only say where or whose."""

SHORTEST = 8
"""Characters of a secret that is looked for by its value. A shorter one may be part of many words."""

OWN = ("orchestrator",)
"""Words of every text of ours, which are no secret even where somebody has made one a password."""


def masked(text: str) -> str:
    """The text with a mask in place of each secret."""
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, MASK)
    return _by_form(text) if "://" in text or "&" in text or "?" in text else text


def masked_values(content: bytes) -> bytes:
    """The same of the content of a file, by value only: what looks like a secret there may be an example."""
    for secret in _secrets():
        content = content.replace(secret.encode(errors="surrogateescape"), MASK.encode())
    return content


def is_secret(name: str, value: str) -> bool:
    """Whether a variable of this name and value holds a secret: it says so, or one stands in the value."""
    told = VARIABLE.search(name) is not None and not HARMLESS.search(name)
    return told or masked(value) != value or re.search(r"\w://[^/:@\s]*:[^@\s]+@", value) is not None


def without_user(address: str) -> str:
    """An address for people to open, without the user and the password that it may hold."""
    return re.sub(r"^(\w[\w+.-]*://)[^/?#]*@", r"\1", address)


def _by_form(text: str) -> str:
    def parameter(match: re.Match[str]) -> str:
        return f"{match[1]}{MASK}" if PARAMETER.search(match[1].strip("?&=")) else match[0]

    nobody = re.sub(r"(https?://)[^/\s'\"]+@", rf"\1{MASK}@", text, flags=re.IGNORECASE)
    # A password may hold a slash, after which it looks like a path; a number before that is a port.
    nameless = re.sub(r"(\w://[^/:@\s'\"]*:)(?:[^/\s'\"]+|(?!\d+/)[^@\s'\"]+)@", rf"\1{MASK}@", nobody)
    return re.sub(r"([?&][^=&\s'\"]+=)[^&\s'\"]*", parameter, nameless)


def _secrets() -> tuple[str, ...]:
    """Those of the environment as it is now, the longest first."""
    for _ in range(3):
        try:
            return _found(tuple(os.environ.items()))
        except RuntimeError:  # another thread has changed it meanwhile
            continue
    return ()


@lru_cache(maxsize=4)
def _found(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    found: set[str] = set()
    for name, value in environment:
        if VARIABLE.search(name) and not HARMLESS.search(name) and not _is_path(value):
            found |= {value, value.strip(), json.dumps(value)[1:-1], *_within_json(value)}
        found |= set(_within(value))
    forms = {form for each in found for form in (each, unquote(each), quote(each, safe=""))}
    return tuple(sorted((each for each in forms if _is_long(each)), key=len, reverse=True))


def _is_path(value: str) -> bool:
    """Whether it names what lies here. A key in base64 may begin with a slash."""
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long for a name
        return False


def _within(value: str) -> Iterator[str]:
    """Secrets in an address, or in settings such as `Name=me;AccountKey=...`."""
    if "://" in value:
        try:
            yield urlsplit(value).password or ""
        except ValueError:
            return
        if (user := re.match(r"\w[\w+.-]*://[^/:@\s]*:([^@\s]+)@", value)) is not None:
            yield user[1]
        if (token := re.match(r"https?://([^/:@\s]+)@", value)) is not None:
            yield token[1]
    for name, _, text in (part.partition("=") for part in re.split(r"[?&;]", value)):
        if text and PARAMETER.search(name):
            yield text


def _within_json(value: str) -> Iterator[str]:
    """Secrets in a document such as a service account's."""
    if not value.lstrip().startswith("{"):
        return
    try:
        document = json.loads(value)
    except ValueError:
        return
    for name, text in document.items():
        if isinstance(text, str) and VARIABLE.search(name) and not HARMLESS.search(name):
            yield from (text, text.strip(), *_lines(text))


def _lines(text: str) -> Iterable[str]:
    return (line for line in text.splitlines() if not line.startswith("-----"))


def _is_long(text: str) -> bool:
    return len(text) >= SHORTEST and text not in OWN
