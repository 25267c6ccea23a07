"""Secrets in texts: what this process was given to get in somewhere is shown, logged and stored as `***`.

Two ways: by form, a password or a key within an address; and by value, whatever stands in a variable of the environment
whose name says that it is a secret, or in an address that a variable holds. Errors of libraries quote such things.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
from collections.abc import Iterable, Iterator
from functools import lru_cache
from pathlib import Path
from urllib.parse import quote, quote_plus, unquote

MASK = "***"

PARAMETER = re.compile(
    r"^(?!(?:.*[_-])?(?:max|min|num|n)[_-](?:new[_-])?tokens$).*(?:secret|passw|passphrase|credential|signature|webhook"
    r"|connection_?string"
    r"|(?:account|access|api|auth|client|encryption|master|private|service|session|shared|signing|ssh)[_-]?key"
    r"|(?<![a-z])(?:auth|authorization|bearer|cookies?|creds?|dsn|jwt|keys?|pass|pat|sas|tokens?)(?![a-z])"
    r"|(?:pwd|sas|sig|tokens?|(?<!by)(?<!om)pass)$|^sas)",
    re.IGNORECASE | re.DOTALL,
)
"""Names of query parameters and of variables that carry credentials: whole words, as TOKENIZER and KEYBOARD do not."""

HARMLESS = re.compile(
    r"(_id|_path|_file|_dir|_name|_user|username|_mode|_parallelism|_sock"
    r"|(auth|tokens?|keys?)_(\w+_)?(ur[il]|endpoint|host|port|realm|type|method))$",
    re.IGNORECASE,
)
"""Ends of names that only say where or whose."""

FOLDERS = ("PWD", "OLDPWD")
"""Variables of every shell, which are no passwords."""

SHORTEST = 8
"""Characters of a secret that is looked for by its value. A shorter one may be part of many words."""

OWN = ("orchestrator", "postgres", "postgresql", "password", "minioadmin", "changeme", "change-me", "localhost")
"""Words of every text of this program, and those that everybody tries first: no secret even where somebody has made
one a password. Masked they would spoil addresses, commands and diffs."""

# Bounds keep the time of each linear in the text.
TOKEN = re.compile(r"(https?://)[^/\s'\"?#]{1,4000}@", re.IGNORECASE)
PASSWORD = re.compile(
    r"((?:(?:(?<=http)|(?<=https))://[^/:@\s'\"?#]{0,200}:(?!\d{1,5}[/?#])"
    r"|(?<=\w)(?<!http)(?<!https)://[^/:@\s'\"?#]{0,200}:(?!\d{1,5}(?:/[^@\s'\"?]{0,200})?\?)))"
    r"(?!password@)[^\s'\"]{1,4000}@",
    re.IGNORECASE,
)
"""A user and a password in an address, up to its last `@`, for a password may hold one. Not http://HOST:PORT/PATH@."""

QUERY = re.compile(r"([?&][^=&?\s'\"]{1,100}=)[^&\s'\"]*")
HEADER = re.compile(
    r"(authorization['\"]?\s?[:=,]\s?b?['\"]?(?:basic|bearer|token|digest)\s)[^\s'\",;]+", re.IGNORECASE
)
SETTING = re.compile(
    r"((?:pass(?:word|wd|phrase)|(?<![a-z])pwd|accountkey|sharedaccesskey|secret_access_key|client_secret|private_key)"
    r"(?:['\"]\s?:|\s?=)\s?)(?!\.\.\.|\$)(?:'[^']{0,4000}'|\"[^\"]{0,4000}\"|[^\s'\";&,]+)",
    re.IGNORECASE,
)
"""As in `host=h password=w`, `Uid=me;Pwd=w` and a document's `"private_key": "w"`. What tells a person to write one has
dots there, a variable, or the word PASSWORD."""

WORDS = re.compile(r"([\w.-]{1,100})\s?=\s?(?:'((?:[^'\\]|\\.)*)'|\"([^\"]*)\"|([^\s'\";&]+))")
"""NAME=VALUE among others, with or without quotes."""

PEM = "PRIVATE KEY-----"


def masked(text: str) -> str:
    """Return the text with a mask in place of each secret."""
    for secret in _secrets():
        if secret in text:
            text = text.replace(secret, MASK)
    return _by_form(text)


def masked_values(content: bytes) -> bytes:
    """Mask the content of a file, by value only: what looks like a secret there may be an example."""
    for secret in _secrets():
        content = content.replace(secret.encode(errors="surrogateescape"), MASK.encode())
    return content


def is_secret(name: str, value: str) -> bool:
    """Return whether a variable of this name and value holds a secret: its name says so, or one stands in the value."""
    is_named_so = name not in FOLDERS and _says_so(name)
    return is_named_so or masked(value) != value or PEM in value or any((*_within(value), *_within_json(value)))


def _says_so(name: str) -> bool:
    return PARAMETER.search(name) is not None and not HARMLESS.search(name)


def without_user(address: str) -> str:
    """Return an address for people to open, without the user and the password that it may hold."""
    return re.sub(r"^(\w[\w+.-]*://)[^/?#]*@", r"\1", address)


def _by_form(text: str) -> str:
    def parameter(match: re.Match[str]) -> str:
        return f"{match[1]}{MASK}" if _says_so(match[1].strip("?&=")) else match[0]

    if "://" in text:
        text = PASSWORD.sub(rf"\1{MASK}@", TOKEN.sub(rf"\1{MASK}@", text))
    if "=" in text:
        text = QUERY.sub(parameter, text)
    return SETTING.sub(rf"\1{MASK}", HEADER.sub(rf"\1{MASK}", text))


def _secrets() -> tuple[str, ...]:
    """Return the secrets of the environment as it is now, the longest first."""
    for _ in range(3):
        try:
            return _secrets_in(tuple(os.environ.items()))
        except RuntimeError:  # another thread has changed it meanwhile
            continue
    return ()


@lru_cache(maxsize=4)
def _secrets_in(environment: tuple[tuple[str, str], ...]) -> tuple[str, ...]:
    secrets: set[str] = set()
    for name, value in environment:
        if name not in FOLDERS and _says_so(name) and not _is_path(value):
            secrets |= {value, value.strip(), value.strip().partition(" ")[2], *_lines(value)}
        elif PEM in value:
            secrets |= {value, *_lines(value)}
        secrets |= {*_within(value), *_within_json(value)}
    forms = {form for secret in secrets if _is_long(secret) for form in _forms(secret)}
    return tuple(sorted(filter(_is_long, forms), key=len, reverse=True))


def _forms(secret: str) -> Iterator[str]:
    """Yield a secret as it is, and as addresses, JSON and Python's own messages write it."""
    encoded = secret.encode(errors="surrogateescape")
    yield from (secret, unquote(secret))
    for escaped in (*(quote(encoded, safe) for safe in ("", "/", " +")), quote_plus(encoded)):
        yield from (escaped, re.sub(r"%..", lambda match: match[0].lower(), escaped))
    yield from (json.dumps(secret, ensure_ascii=ascii_only)[1:-1] for ascii_only in (True, False))
    # Of a text with quotes of both kinds, that it stands in, Python escapes one.
    yield from (repr(secret)[1:-1], ascii(secret)[1:-1], repr(f"'\"{secret}")[4:-1], ascii(f"'\"{secret}")[4:-1])
    yield from (repr(encoded)[2:-1], repr(b"'\"" + encoded)[5:-1])


def _is_path(value: str) -> bool:
    """Return whether a value names an existing file or folder. A key in base64 may begin with a slash."""
    try:
        return Path(value).exists()
    except (OSError, ValueError):  # too long for a name
        return False


def _within(value: str) -> Iterator[str]:
    """Yield the secrets in an address, or in settings such as `Name=me;AccountKey=...` and `host=h password=...`."""
    for address in re.findall(r"[\w+.-]{0,30}://\S+", value):
        yield from _within_address(address)
    if (token := re.match(r"\s*(?:bearer|basic)\s+(\S+)\s*$", value, re.IGNORECASE)) is not None:
        yield token[1]
    parts = [part.partition("=") for part in re.split(r"[?&;]", value)]
    pairs = [(name.strip(), text) for name, _, text in parts if re.fullmatch(r"[\w .-]{1,100}", name)]
    pairs += [(name, text) for name, *texts in WORDS.findall(value) for text in texts]
    yield from (text for name, text in pairs if text and _says_so(name))


def _within_address(address: str) -> Iterator[str]:
    """Yield the password, or the user who is a token. A password that is not encoded may hold `@`, `/` and `?`, so that
    a library takes a piece of it for the host."""
    scheme, _, rest = address.partition("://")
    http = scheme.lower().endswith(("http", "https"))
    own = re.split(r"[/?#]", rest)[0]
    user, _, password = own.rpartition("@")[0].partition(":")
    if "@" not in own or (not http and "@" in rest.partition("?")[0][len(own) :]):
        head, _, tail = rest.partition(":")
        port = re.match(r"\d{1,5}[/?#]", tail) and (http or "@" not in tail.partition("?")[0])
        if re.search(r"[/?#@]", head) or port:
            return
        password = tail.rpartition("@")[0]
    elif http and not password:
        yield user
    yield password
    if re.search(r"[@/?#]", password):
        yield from re.split(r"[@/?#]", password)


def _within_json(value: str) -> Iterator[str]:
    """Yield the secrets in a document such as a service account's, however deep."""
    if value.lstrip()[:1] not in ("{", "["):
        return
    with contextlib.suppress(ValueError, RecursionError):
        yield from _within_document(json.loads(value), "")


def _within_document(value: object, name: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _within_document(inner, key)
    elif isinstance(value, list):
        for inner in value:
            yield from _within_document(inner, name)
    elif isinstance(value, str):
        if _says_so(name):
            yield from (value, value.strip(), *_lines(value))
        yield from _within(value)


def _lines(text: str) -> Iterable[str]:
    """Return the lines of a key, as a single one may be quoted."""
    lines = re.split(r"\n|\\n", text)
    return (line.strip() for line in lines if len(lines) > 1 and not line.startswith("-----") and " " not in line)


def _is_long(text: str) -> bool:
    return len(text) >= SHORTEST and not text.isspace() and text.lower() not in OWN
