"""Where a pretrained encoder lies, which of its files are loaded, and their digest. No torch.

An encoder is a local folder, or a repository of the Hub. Of the latter one snapshot is taken: configuration, weights
and tokenizer are fetched from one revision and then loaded from its folder, so that what is loaded is what is digested.
A run goes on with the revision that it began with (`hold`), whatever has become of the repository since.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from functools import lru_cache, partial
from pathlib import Path
from urllib.parse import urlsplit

from jobs.config.json_values import Json, JsonObject
from jobs.core.paths import BUILT_IN, directory, is_built, looked_in
from jobs.core.provenance import HELD, combined, file_digest, stamp
from jobs.models.pretrained.modules import (
    LENGTHS,
    MODULES,
    PROMPTS,
    FolderError,
    encoder_path,
    readable_modules,
    settings_files,
)

BUILT = BUILT_IN

CONFIG = "config.json"
ADAPTER = "adapter_config.json"

ANSWER_S = 5.0
"""How long the Hub has to answer, when it is asked whether it is there."""

COMPLETE = ".gitattributes"
"""Every repository of the Hub has it, and only who fetches all of one asks for it."""

WEIGHTS = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json")
"""Where transformers looks for weights, in its order: the first that is there is loaded. An index names more files."""

TOKENIZER = (
    *("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "added_tokens.json", "normalizer.json"),
    *(
        "vocab.json",
        "vocab.txt",
        "vocab.bpe",
        "merges.txt",
        "bpe.codes",
        "dict.txt",
        "vocab-src.json",
        "vocab-tgt.json",
    ),
    *("emoji.json", "entity_vocab.json", "byte_maps.json", "word_shape.json", "word_pronunciation.json", "tekken.json"),
    *("*.model", "*.spm", "*.tiktoken", "*.tokenizer"),
)
"""Files directly in an encoder's folder that a tokenizer of transformers may be loaded from."""


class EncoderError(ValueError):
    """The files of a pretrained encoder are not there, or cannot be read.

    reason: that alone, where the text says more.
    """

    def __init__(self, text: str, reason: str | None = None) -> None:
        self.reason = text if reason is None else reason
        super().__init__(text)

    def __reduce__(self) -> tuple[type[EncoderError], tuple[str, str], dict[str, object]]:
        return type(self), (str(self), self.reason), self.__dict__


_held: dict[str, JsonObject] = {}
"""Name -> what `digest` gave for it where the run began."""


def hold(weights: Mapping[str, JsonObject]) -> None:
    """Have names of encoders mean, in this process and from now on, what they meant where a run began: a folder stays
    a folder, and a repository the revision of then. weights: name -> answer of `digest`. Nothing else is held."""
    _held.clear()
    _held.update({name: known for name, known in weights.items() if is_comparable(known)})


def _meant(name: str) -> JsonObject | None:
    """Return what is held of a name, by this process or by the process that started it."""
    if name in _held:
        return _held[name]
    handed_down: dict[str, JsonObject] = json.loads(os.environ.get(HELD) or "{}")
    return handed_down.get(name)


def is_comparable(known: JsonObject) -> bool:
    """Return whether an answer is of this version's `digest`; earlier versions counted other files."""
    return "names" in known


def root_of(name: str) -> Path:
    """Find the folder that holds all files of an encoder, fetched if it must be. Raises EncoderError."""
    return _find(name, _meant(name))[0]


def folder_of(name: str) -> Path:
    """Find the folder that encoder and tokenizer are loaded from: within `root_of`, where its modules.json says so.
    Raises EncoderError."""
    root = root_of(name)
    try:
        return root / encoder_path(root)
    except (OSError, ValueError) as error:
        raise _error(name, error) from error


def unknown_settings(name: str) -> str | None:
    """Name a file that would say how a repository of the Hub embeds, if nobody knows whether it is there: no cache has
    it, and no Hub could be asked. None where all is known, as for a folder, and for what a run began with. Raises
    EncoderError."""
    known = _meant(name)
    root, revision = _find(name, known)
    if known is not None or revision is None or (root / COMPLETE).exists():
        return None
    if not (root / MODULES).exists():
        return MODULES if _is_unknown(name, MODULES, revision) else None
    try:
        within = encoder_path(root)
    except FolderError:  # which is reported in place of this
        return None
    lengths = [f"{within}/{file}" if within else file for file in LENGTHS]
    wanted = [PROMPTS, *([] if any((root / file).is_file() for file in lengths) else lengths)]
    return next((file for file in wanted if _is_unknown(name, file, revision)), None)


def _is_unknown(name: str, file: str, revision: str) -> bool:
    """Return whether a cache neither has a file nor knows that there is none."""
    from huggingface_hub import _CACHED_NO_EXIST, try_to_load_from_cache

    cached = try_to_load_from_cache(name, file, revision=revision)
    return not isinstance(cached, str) and cached is not _CACHED_NO_EXIST


def digest(name: str | None, known: JsonObject | None = None, *, tokenizer: bool) -> dict[str, Json] | None:
    """Compute the digest of the files that a pretrained encoder is loaded from, fetched if they must be.

    name: `model.name` of a job. known: an earlier answer; its digest stands while its files have their size and time,
    and only its kind and revision are looked for; without it, what is held. tokenizer: whether a tokenizer is loaded.

    Returns `digest`; `revision` of the Hub, None for a folder; `names` of the files; `files`, which tells whether they
    are unchanged; and `settings`: whether those of sentence-transformers count, as they do unless the known answer is
    of a version that did not read them. None for an encoder that is built. Raises EncoderError.
    """
    if name is None or is_built(name):
        return None
    known = known if known is not None and is_comparable(known) else None
    try:
        folder, revision = _find(name, known or _meant(name))
        with_settings = known is None or bool(known.get("settings"))
        paths = _loaded(folder, tokenizer=tokenizer, settings=with_settings)
        stamps = [stamp(path) for path in paths]
        names = [path.relative_to(folder).as_posix() for path in paths]
        files: list[list[str | int]] = [list(of) for of in stamps]
        if known is not None and (known["files"], known["names"]) == (files, names):
            total = known["digest"]
        else:
            total = combined({file: file_digest(*of) for file, of in zip(names, stamps, strict=True)})
    except (OSError, FolderError) as error:
        raise _error(name, error) from error
    answer: dict[str, Json] = {"digest": total, "revision": revision, "names": names, "files": files}
    if with_settings:
        answer["settings"] = True
    return answer


def _find(name: str, known: JsonObject | None) -> tuple[Path, str | None]:
    """Find an encoder's folder, and its revision if it is of the Hub."""
    try:
        if known is not None and isinstance(revision := known["revision"], str):
            names = known["names"]
            assert isinstance(names, Sequence)
            return _snapshot(name, revision, tuple(map(str, names)))
        if (folder := directory(name)) is not None:
            return folder, None
        if known is not None:
            raise EncoderError(f"model.name = '{name}': the folder of that name is gone{looked_in(name)}; put it back")
        return _snapshot(name)
    except EncoderError:
        raise
    except Exception as error:  # of the system, of the Hub, or of whatever its client speaks to it by
        raise _error(name, error) from error


def tokenizer_files(folder: Path) -> list[Path]:
    """List the files directly in a folder that a tokenizer may be loaded from. Raises OSError."""
    return sorted(path for path in folder.iterdir() if _is_of_tokenizer(path.name) and path.is_file())


@lru_cache(maxsize=16)
def _snapshot(name: str, revision: str | None = None, names: tuple[str, ...] | None = None) -> tuple[Path, str]:
    """Fetch a whole revision of a repository; return its folder and the revision. Without network: what the cache has.

    names: the files that were loaded of it, if that is known; what the cache has of them is not asked for again. The
    answer is kept: what moves the repository may not come between tokenizer and weights.
    """
    import huggingface_hub
    from huggingface_hub import snapshot_download, try_to_load_from_cache
    from huggingface_hub.errors import EntryNotFoundError, LocalEntryNotFoundError

    if names is not None and revision is not None:
        held = [try_to_load_from_cache(name, file, revision=revision) for file in names]
        if not all(isinstance(path, str) for path in held):
            held = [huggingface_hub.hf_hub_download(name, file, revision=revision) for file in names]
        return Path(str(held[0])).parents[len(Path(names[0]).parts) - 1], revision
    silence = _silence_of_hub(name)
    # What does not answer once is not asked again, file by file, each of which the client would try for half a minute.
    hf_hub_download = partial(huggingface_hub.hf_hub_download, local_files_only=silence is not None)
    try:
        first = Path(hf_hub_download(name, CONFIG))
    except EntryNotFoundError as error:  # an old repository of sentence-transformers has it in a folder
        try:
            first = Path(hf_hub_download(name, MODULES))
        except EntryNotFoundError:
            raise error from None
    root, revision = first.parent, first.parent.name

    def fetch(file: str) -> Path | None:
        try:
            return Path(hf_hub_download(name, file, revision=revision))
        except EntryNotFoundError:  # of the Hub, or of the cache where there is no Hub
            return None

    fetch(MODULES)
    inside = encoder_path(root)
    within = f"{inside}/" if inside else ""
    for module in readable_modules(root) or ():
        fetch(f"{module.path}/{CONFIG}" if module.path else CONFIG)
    if readable_modules(root) is not None:  # one by one, so that the cache knows which are not there
        fetch(PROMPTS)
        next((file for file in LENGTHS if fetch(within + file) is not None), None)
    patterns = [PROMPTS, *(within + file for file in (*LENGTHS, *TOKENIZER))]
    with contextlib.suppress(LocalEntryNotFoundError):  # then it is loaded from what the cache has, or is missed there
        snapshot_download(name, revision=revision, allow_patterns=patterns, local_files_only=silence is not None)
    for file in (_named_by(root / inside) or WEIGHTS[0], *WEIGHTS[1:]):
        if (weights := fetch(within + file)) is not None:
            for shard in _shards(weights):
                hf_hub_download(name, within + shard, revision=revision)
            break
    return root, revision


def _silence_of_hub(name: str) -> str | None:
    """Ask the Hub once for an encoder; return why it does not answer, None where it does or is not to be asked. Raises
    EncoderError where it does not and no cache has anything of the encoder."""
    from huggingface_hub import hf_hub_url, is_offline_mode, try_to_load_from_cache

    silence = None if is_offline_mode() else why_no_answer(hf_hub_url(name, CONFIG))
    if silence is None or any(isinstance(try_to_load_from_cache(name, file), str) for file in (CONFIG, MODULES)):
        return silence
    raise EncoderError(
        f"model.name = '{name}' is no folder here{looked_in(name)}, and the Hub, where it may be, does not answer "
        f"({silence}). Give a folder with {CONFIG} and {WEIGHTS[0]}, or go on where the Hub can be reached",
        f"it is no folder, and the Hub does not answer: {silence}",
    )


def why_no_answer(url: str) -> str | None:
    """Say why a server of the Hub does not answer when it is asked once; None where it answers, whatever it says."""
    import httpx2
    from huggingface_hub import get_session

    try:
        get_session().head(url, timeout=ANSWER_S, follow_redirects=False)
    except httpx2.TimeoutException:
        return f"nothing from {urlsplit(url).netloc} in {ANSWER_S:g} s"
    except httpx2.TransportError as error:
        return f"{urlsplit(url).netloc}: {first_words(error)}"
    return None


def first_words(error: Exception) -> str:
    """Return the first line of an error, or its kind where it has none."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _loaded(root: Path, *, tokenizer: bool, settings: bool) -> list[Path]:
    """List the files in a folder that an encoder is loaded from, in order of name."""
    folder = root / encoder_path(root)
    if (missing := why_no_config(folder)) is not None:
        raise FileNotFoundError(missing)
    loaded = {folder / CONFIG, *weight_files(folder)}
    if tokenizer:
        loaded |= set(tokenizer_files(folder))
    return sorted(loaded | set(settings_files(root) if settings else ()))


def weight_files(folder: Path) -> list[Path]:
    """List the files in a folder that hold the weights to load; an index of shards first. Raises OSError."""
    own = _named_by(folder)
    choice = [folder / file for file in (WEIGHTS if own is None else [own])]
    weights = next((path for path in choice if path.is_file()), None)
    if weights is None:
        raise FileNotFoundError(f"{folder} has none of {', '.join(path.name for path in choice)}{_others(folder)}")
    return [weights, *(folder / shard for shard in _shards(weights))]


def why_no_config(folder: Path) -> str | None:
    """Say why an encoder's folder has no configuration; None if it has. Raises OSError if it may not be looked at."""
    if (folder / CONFIG).is_file():
        return None
    if (folder / ADAPTER).is_file():
        return (
            f"{folder} has no {CONFIG}, but an adapter ({ADAPTER}); save the model that it belongs to, merged with it "
            "by merge_and_unload()"
        )
    return f"{folder} has no {CONFIG}"


def _others(folder: Path) -> str:
    """Say what to do about weights that torch cannot train; empty where there are none."""
    kinds = (".onnx", ".gguf", ".h5", ".msgpack", ".tflite", ".mlmodel", ".ot")
    others = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.suffix in kinds)
    return (
        f"; {others[0]} is in a format that cannot be trained, so save the model by save_pretrained" if others else ""
    )


def _named_by(folder: Path) -> str | None:
    """Read the name of the file of weights that the configuration itself names, if it does."""
    try:
        named = json.loads((folder / CONFIG).read_text("utf-8")).get("transformers_weights")
    except (ValueError, AttributeError):  # what is no configuration fails when it is loaded, in better words
        return None
    return named if isinstance(named, str) else None


def _shards(weights: Path) -> list[str]:
    """List the files that an index names; none for weights in one file."""
    if not weights.name.endswith(".index.json"):
        return []
    try:
        files = set(json.loads(weights.read_text("utf-8"))["weight_map"].values())
        if files and all(isinstance(file, str) for file in files):
            return sorted(files)
    except (ValueError, KeyError, AttributeError, TypeError):
        pass
    raise OSError(f"{weights} is no index of weights")


def _is_of_tokenizer(name: str) -> bool:
    return not name.startswith(".") and any(fnmatchcase(name, pattern) for pattern in TOKENIZER)


def _error(name: str, error: Exception) -> EncoderError:
    if isinstance(error, OSError) and error.errno is not None and error.strerror is not None:
        reason = f"{error.strerror}{f': {error.filename}' if error.filename else ''}"
    else:
        reason = first_words(error)
    return EncoderError(
        f"model.name = '{name}' cannot be looked at ({reason}). Give a folder with {CONFIG} and {WEIGHTS[0]}, a name "
        f"that the Hub knows, or {', '.join(map(repr, BUILT[:-1]))} or '{BUILT[-1]}' to train from nothing",
        reason,
    )
