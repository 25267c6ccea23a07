"""What a folder of sentence-transformers says of itself: its modules, pooling, prompts, length. No torch.

modules.json names the modules in order. The first holds the encoder of transformers, whose files lie in its path; what
follows pools, normalises or maps. What training does not compute is put into words (`refusals`), and never left out in
silence. No code of a folder is run.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from typing import Any

from jobs.config.json_values import Json, JsonObject

MODULES = "modules.json"
PROMPTS = "config_sentence_transformers.json"
LENGTHS = tuple(
    f"sentence_{kind}_config.json"
    for kind in ("bert", "roberta", "distilbert", "camembert", "albert", "xlm-roberta", "xlnet")
)
"""Where the first module keeps its settings, in sentence-transformers' order: the first that says anything counts."""

ENCODER = "Transformer"

FLAGS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
"""How folders of before version 5.5 say which pooling they have."""

ENDLESS = 10**6
"""Tokenizers whose texts may have any length say a number far above this one."""

HARMLESS = {
    "model_kwargs": {"add_pooling_layer", "attn_implementation", "dtype", "torch_dtype", "device_map"},
    "config_kwargs": {"output_hidden_states", "trust_remote_code"},
    "processor_kwargs": {"model_max_length", "padding_side", "use_fast", "trust_remote_code"},
}
"""Options of the first module that change nothing that training computes, or that are honoured."""


NUMBER, YES_OR_NO = (int, float), (bool, int)
_OBJECTS = ("prompts", "modality_config", "processing_kwargs", "model_args", "config_args", "tokenizer_args", *HARMLESS)
_TEXTS = ("default_prompt_name", "model_type", "similarity_fn_name", "transformer_task", "tokenizer_name_or_path")
KINDS: dict[str, type | tuple[type, ...]] = {
    **dict.fromkeys(_OBJECTS, dict),
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(("max_seq_length", "model_max_length", "dropout", "truncate_dim"), NUMBER),
    **dict.fromkeys(("do_lower_case", "include_prompt"), YES_OR_NO),
    "pooling_mode": (str, list),
}
"""What the settings that are read must be, where they are anything."""

WORDS: dict[type | tuple[type, ...], str] = {
    dict: "an object",
    str: "text",
    NUMBER: "a number",
    YES_OR_NO: "true or false",
}

BUILT_IN = ("query", "document")
"""Names of prompts that sentence-transformers knows by itself, as empty ones."""


class FolderError(ValueError):
    """A folder of sentence-transformers cannot be read, or holds no encoder of transformers. Says what would work."""


@dataclass(frozen=True)
class Module:
    """One line of modules.json."""

    kind: str
    """Class, without where it comes from; whole where it is none of sentence-transformers."""

    path: str
    """Its folder, relative; empty for the folder itself."""


@dataclass(frozen=True)
class Says:
    """What a folder says of how its sentences are embedded."""

    pooling: str = "mean"
    include_prompt: bool = True
    """Whether the tokens of the prompt are pooled too."""

    normalise: bool = False
    """Whether what is pooled is brought to length 1."""

    prompt: str = ""
    """Put before every sentence where nothing else is asked for."""

    prompts: Mapping[str, str] = field(default_factory=dict)
    """All of them, by name."""

    default_prompt: str | None = None
    """Name of `prompt`."""

    lower: bool = False
    """Whether sentences are lower-cased before the tokenizer does what it does."""

    length: int | None = None
    """Longest sentence, in tokens, as the first module has it; None where it says nothing."""

    tokenizer_length: int | None = None
    """The same as its tokenizer has it."""

    similarity: str | None = None
    refusals: tuple[str, ...] = ()
    """What is there that training does not compute."""


def modules_of(root: Path) -> tuple[Module, ...] | None:
    """Read the modules of a folder; None where it is none of sentence-transformers. Raises FolderError."""
    if not (root / MODULES).exists():
        return None
    modules = tuple(_module(root, entry) for entry in _list(root / MODULES))
    if not modules:
        raise FolderError(f"{root / MODULES} names no module; put back what sentence-transformers has saved")
    return modules


def readable_modules(root: Path) -> tuple[Module, ...] | None:
    """Read the modules likewise, but give None for a list that cannot be read where an encoder lies at the root: it
    still is an encoder, for a job that says how it pools."""
    try:
        return modules_of(root)
    except FolderError:
        if (root / "config.json").is_file():
            return None
        raise


def encoder_path(root: Path) -> str:
    """Find where in a folder the files of the encoder lie: at its root, but for old folders of sentence-transformers.
    Raises FolderError where the first module is no encoder of transformers, and none lies at the root."""
    at_root, modules = (root / "config.json").is_file(), readable_modules(root)
    if modules is None or (modules[0].kind != ENCODER and at_root):
        return ""
    if modules[0].kind != ENCODER:
        raise FolderError(
            f"it begins with a module {modules[0].kind}, which is no encoder of transformers, and only a {ENCODER} can "
            "be trained; name a folder or a Hub model whose modules.json begins with one"
        )
    return modules[0].path


def settings_files(root: Path) -> list[Path]:
    """List the files in a folder that say how its sentences are embedded; none for a folder of transformers alone."""
    modules = readable_modules(root)
    if modules is None:
        return [root / MODULES] if (root / MODULES).is_file() else []
    named = [root / MODULES, root / PROMPTS, *(root / modules[0].path / name for name in LENGTHS)]
    return [
        path for path in (*named, *(root / module.path / "config.json" for module in modules[1:])) if path.is_file()
    ]


def says(root: Path) -> Says | None:
    """Read what a folder says of itself; None where it is none of sentence-transformers. Raises FolderError."""
    modules = modules_of(root)
    if modules is None:
        return None
    inside = root / encoder_path(root)
    options, general = _options(inside), _settings(root / PROMPTS)
    pooled = _settings(root / modules[1].path / "config.json") if _pools(modules) else {}
    modes = _modes(pooled, root / modules[1].path / "config.json") if _pools(modules) else ()
    prompts = _prompts(root / PROMPTS, general)
    default = _text(general, "default_prompt_name")
    processor = _object(options, "processor_kwargs")
    is_newer = "model_max_length" in processor
    length = _number(processor, "model_max_length") if is_newer else _number(options, "max_seq_length")
    tokenizer = _settings(root / encoder_path(root) / "tokenizer_config.json")
    if default is not None and default not in (*prompts, *BUILT_IN):
        raise FolderError(
            f"{root / PROMPTS} has default_prompt_name = {default!r}, and prompts only {', '.join(prompts) or 'none'}; "
            "correct the name there, or set it to null"
        )
    return Says(
        pooling=modes[0] if modes else "mean",
        include_prompt=bool(pooled.get("include_prompt", True)),
        normalise=any(module.kind == "Normalize" for module in modules),
        prompt="" if default is None else prompts.get(default, ""),
        prompts=prompts,
        default_prompt=default,
        lower=bool(options.get("do_lower_case")),
        length=_length(length),
        tokenizer_length=_length(_number(tokenizer, "model_max_length")),
        similarity=_text(general, "similarity_fn_name"),
        refusals=tuple(_refusals(root, modules, modes, options, general)),
    )


def _refusals(
    root: Path, modules: tuple[Module, ...], modes: tuple[str, ...], options: JsonObject, general: JsonObject
) -> Iterator[str]:
    """Yield what a folder has that training does not compute, each as words that follow 'it has'."""
    if modules[0].kind != ENCODER:
        yield f"a module {modules[0].kind} in place of the {ENCODER}, and no code of a folder is run"
    if not _pools(modules):
        second = modules[1].kind if len(modules) > 1 else "nothing"
        yield f"{second} where its Pooling should be"
    if len(modes) > 1:
        yield f"{len(modes)} poolings side by side ({', '.join(modes)})"
    for module in modules[2 if _pools(modules) else 1 :]:
        settings = _settings(root / module.path / "config.json")
        if (
            module.kind == "Normalize"
            and settings.get("module_input_name", "sentence_embedding") == "sentence_embedding"
        ):
            continue
        if not (module.kind == "Dropout" and settings.get("dropout") == 0):
            yield f"a module {module.kind}{f' ({module.path})' if module.path else ''}"
    kind = general.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        yield f"the type {kind}"
    if general.get("truncate_dim"):
        yield f"truncate_dim = {general['truncate_dim']}, which cuts its embeddings"
    yield from _unusual(options)


def _unusual(options: JsonObject) -> Iterator[str]:
    """Yield what is unusual about how the first module is called."""
    task = options.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        yield f"a Transformer for {task}"
    for name, known in HARMLESS.items():
        if strange := sorted(_object(options, name).keys() - known):
            yield f"{name} {', '.join(strange)} of its Transformer"
    if options.get("tokenizer_name_or_path"):
        yield f"a tokenizer elsewhere, {options['tokenizer_name_or_path']}"
    modality = _object(options, "modality_config")
    given = modality.get("text") or {"method": "forward", "method_output_name": "last_hidden_state"}
    text: JsonObject = given if isinstance(given, dict) else {"method": json.dumps(given)[:60]}
    if "message" in modality:
        yield "sentences that are put into a chat template"
    elif "text" in modality and (text.get("method"), _first(text.get("method_output_name"))) != (
        "forward",
        "last_hidden_state",
    ):
        yield f"{text.get('method')} and {text.get('method_output_name')} in place of the encoder's last layer"
    if processing := _object(options, "processing_kwargs"):
        yield f"processing_kwargs {', '.join(processing)} of its Transformer"


def _first(name: Json) -> Json:
    return name[0] if isinstance(name, list) and len(name) == 1 else name


def _pools(modules: tuple[Module, ...]) -> bool:
    return len(modules) > 1 and modules[1].kind == "Pooling"


def _modes(config: JsonObject, path: Path) -> tuple[str, ...]:
    """List every pooling that a configuration asks for."""
    if not config:
        raise FolderError(f"{path} is missing, which says how token states are pooled; put back what was saved there")
    given = config.get("pooling_mode")
    if given is None:
        modes: list[Json] = [mode for flag, mode in FLAGS.items() if config.get(flag)]
    else:
        modes = given if isinstance(given, list) else [given]
    unknown = [mode for mode in modes if mode not in FLAGS.values()]
    if unknown:
        raise FolderError(f"{path} has the pooling {unknown[0]!r}; known are {', '.join(FLAGS.values())}")
    return tuple(map(str, modes)) or ("mean",)


def _length(given: float | None) -> int | None:
    return int(max(given, 0)) if given is not None and given < ENDLESS else None


def _prompts(path: Path, general: JsonObject) -> dict[str, str]:
    prompts: dict[str, str] = {}
    for name, text in _object(general, "prompts").items():
        if not isinstance(text, str | None):
            raise FolderError(f"{path} has the prompt {name!r} = {json.dumps(text)[:60]}; it must be text")
        prompts[name] = text or ""
    return prompts


def _text(settings: JsonObject, key: str) -> str | None:
    """Return a setting that is text, as `_known` has seen, or None where it is not there."""
    value = settings.get(key)
    return value if isinstance(value, str) else None


def _number(settings: JsonObject, key: str) -> float | None:
    """Return a setting that is a number likewise."""
    value = settings.get(key)
    return value if isinstance(value, int | float) else None


def _object(settings: JsonObject, key: str) -> JsonObject:
    """Return a setting that is an object likewise, empty where it is not there."""
    value = settings.get(key)
    return value if isinstance(value, dict) else {}


def _options(folder: Path) -> dict[str, Json]:
    """Read the settings of the first module, with its options under their newer names."""
    path, options = next(
        ((folder / name, settings) for name in LENGTHS if (settings := _settings(folder / name))),
        (folder / LENGTHS[0], dict[str, Json]()),
    )
    older = {"model_kwargs": "model_args", "config_kwargs": "config_args", "processor_kwargs": "tokenizer_args"}
    for name, before in older.items():
        given = options.get(name) or options.pop(before, None)
        options[name] = _known(path, given if isinstance(given, dict) else {})
    return options


def _module(root: Path, entry: Json) -> Module:
    kind, within = (entry.get("type"), entry.get("path")) if isinstance(entry, dict) else (None, None)
    if not isinstance(kind, str) or not isinstance(within, str):
        raise FolderError(f"{root / MODULES} has a module without type or path: {json.dumps(entry)[:100]}; correct it")
    path = PurePosixPath(within)
    if path.is_absolute() or ".." in path.parts or "\\" in within:
        raise FolderError(f"{root / MODULES} has the path {within!r}, which leaves the folder; correct it")
    own = kind.startswith("sentence_transformers.")
    return Module(kind.rpartition(".")[2] if own else kind, "" if str(path) == "." else str(path))


def _settings(path: Path) -> dict[str, Json]:
    """Read a file of settings; empty where there is none. Raises FolderError for a setting that is read and is of
    another kind than it must be."""
    return _known(path, _dict(path)) if path.exists() else {}


def _known(path: Path, settings: dict[str, Json]) -> dict[str, Json]:
    for key in sorted(settings.keys() & KINDS.keys()):
        kind, value = KINDS[key], settings[key]
        if value is not None and (not isinstance(value, kind) or (type(value) is bool and kind is not YES_OR_NO)):
            wanted = WORDS.get(kind, "text, or a list of it")
            raise FolderError(f"{path} has {key} = {json.dumps(value)[:60]}; it must be {wanted}")
    return settings


def settings_of(path: Path) -> dict[str, Any]:
    """Read a file of settings that must be there. Raises FolderError."""
    if not path.exists():
        raise FolderError(f"{path} is missing; put back what was saved there")
    return _settings(path)


def _list(path: Path) -> list[Json]:
    value = _json(path)
    if not isinstance(value, list):
        raise FolderError(f"{path} is no list of modules; it must be a list of modules")
    return value


def _dict(path: Path) -> dict[str, Json]:
    value = _json(path)
    if not isinstance(value, dict):
        raise FolderError(f"{path} is no object; it must be an object")
    return value


def _json(path: Path) -> Json:
    try:
        value: Json = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise FolderError(f"{path} is no JSON ({error}); put back what sentence-transformers has saved") from error
    return value
