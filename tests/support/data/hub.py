"""The Hugging Face Hub for tests: a cache laid out by hand, and a server that speaks what is used of its protocol."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator, Mapping
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import transformers
from tokenizers import Tokenizer, models

Files = Mapping[str, bytes]


def save_encoder(folder: Path, width: int, *, sharded: bool = False) -> None:
    """A BERT of one layer and two words with its tokenizer, in the way of transformers. Its weights are random."""
    config = transformers.BertConfig(
        vocab_size=8, hidden_size=width, num_hidden_layers=1, num_attention_heads=1, intermediate_size=8
    )
    transformers.BertModel(config).save_pretrained(folder, max_shard_size="2KB" if sharded else "50GB")
    words = models.WordLevel({"[UNK]": 0, "[PAD]": 1, "a": 2}, unk_token="[UNK]")
    tokenizer: Any = transformers.PreTrainedTokenizerFast
    tokenizer(tokenizer_object=Tokenizer(words), unk_token="[UNK]", pad_token="[PAD]").save_pretrained(folder)


def encoder_files(folder: Path, width: int = 8) -> dict[str, bytes]:
    """The files that `save_encoder` writes, made in `folder`."""
    save_encoder(folder, width)
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def revision(number: int) -> str:
    """A commit as the Hub names them."""
    return hashlib.sha1(str(number).encode()).hexdigest()


def cached(cache: Path, name: str, number: int, files: Files, *, whole: bool = True) -> Path:
    """Have the cache hold files of a repository at a revision, which is main's from now on. Returns its snapshot.
    whole: as if the whole repository was fetched, and not these files alone."""
    files = {**files, ".gitattributes": b""} if whole else files
    repository = cache / f"models--{name.replace('/', '--')}"
    snapshot = repository / "snapshots" / revision(number)
    for folder in (repository / "blobs", repository / "refs", snapshot):
        folder.mkdir(parents=True, exist_ok=True)
    for file, content in files.items():
        blob = repository / "blobs" / hashlib.sha256(content).hexdigest()
        if not blob.exists():
            blob.write_bytes(content)
        (snapshot / file).parent.mkdir(parents=True, exist_ok=True)
        (snapshot / file).symlink_to(blob)
    (repository / "refs" / "main").write_text(revision(number))
    return snapshot


class Hub:
    """What a server holds: `repositories` by name, the files of each of its revisions, the last of which is main's."""

    def __init__(self) -> None:
        self.repositories: dict[str, list[Files]] = {}
        self.asked: list[str] = []
        """Paths that were asked for."""
        self.endpoint = ""

    def find(self, name: str, which: str) -> tuple[str, Files] | None:
        """A revision by its name or `main`."""
        held = {revision(number): files for number, files in enumerate(self.repositories.get(name, []))}
        commit = list(held)[-1] if which == "main" and held else which
        return (commit, held[commit]) if commit in held else None


@contextlib.contextmanager
def serving() -> Iterator[Hub]:
    """A Hub on 127.0.0.1; clients find it by $HF_ENDPOINT."""
    hub = Hub()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            hub.asked.append(self.path)
            parts = urlsplit(self.path).path.strip("/").split("/")
            if parts[:2] == ["api", "models"]:
                name, what, which = "/".join(parts[2:4]), parts[4] if len(parts) > 4 else "", (parts[5:] or ["main"])[0]
                found = hub.find(name, which)
                self.answer(found, None if found is None else self.told(name, what, *found))
                return
            name, which, file = "/".join(parts[:2]), parts[3], "/".join(parts[4:])
            found = hub.find(name, which)
            self.answer(found, None if found is None else found[1].get(file), "EntryNotFound")

        do_HEAD = do_GET  # noqa: N815 - the name is http.server's

        def told(self, name: str, what: str, commit: str, files: Files) -> bytes:
            if what == "tree":
                entries = [
                    {"type": "file", "path": path, "size": len(content), "oid": hashlib.sha1(content).hexdigest()}
                    for path, content in files.items()
                ]
                return json.dumps(entries).encode()
            siblings = [{"rfilename": path} for path in files]
            return json.dumps({"id": name, "sha": commit, "siblings": siblings}).encode()

        def answer(self, found: tuple[str, Files] | None, content: bytes | None, why: str = "RepoNotFound") -> None:
            self.send_response(200 if content is not None else 404)
            if found is not None:
                self.send_header("X-Repo-Commit", found[0])
            if content is None:
                self.send_header("X-Error-Code", why if found is not None else "RepoNotFound")
            else:
                self.send_header("ETag", f'"{hashlib.sha1(content).hexdigest()}"')
            self.send_header("Content-Length", str(len(content or b"")))
            self.end_headers()
            if content is not None and self.command == "GET":
                self.wfile.write(content)

        def log_message(self, *_: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
