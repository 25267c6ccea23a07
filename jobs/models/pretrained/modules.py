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
KINDS: dict[str, Any] = {
    **dict.fromkeys(_OBJECTS, dict),
    **dict.fromkeys(_TEXTS, str),
    **dict.fromkeys(("max_seq_length", "model_max_length", "dropout", "truncate_dim"), NUMBER),
    **dict.fromkeys(("do_lower_case", "include_prompt"), YES_OR_NO),
    "pooling_mode": (str, list),
}
"""What the settings that are read must be, where they are anything."""

WORDS = {dict: "an object", str: "text", NUMBER: "a number", YES_OR_NO: "true or false"}

BUILT_IN = ("query", "document")
"""Names of prompts that sentence-transformers knows without being told, as empty ones."""


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
    """Longest sentence, in tokens, as the first module has it; None where nothing is said."""

    tokenizer_length: int | None = None
    """The same as its tokenizer has it."""

    similarity: str | None = None
    refusals: tuple[str, ...] = ()
    """What is there that training does not compute."""


def modules_of(root: Path) -> tuple[Module, ...] | None:
    """The modules of a folder, None where it is none of sentence-transformers. Raises FolderError."""
    if not (root / MODULES).exists():
        return None
    listed = _json(root / MODULES, list)
    found = tuple(_module(root, one) for one in listed)
    if not found:
        raise FolderError(f"{root / MODULES} names no module; put back what sentence-transformers has saved")
    return found


def readable_modules(root: Path) -> tuple[Module, ...] | None:
    """The same, but None of a list that cannot be read where an encoder lies at the root: it still is one, for a job
    that says how it pools."""
    try:
        return modules_of(root)
    except FolderError:
        if (root / "config.json").is_file():
            return None
        raise


def encoder_path(root: Path) -> str:
    """Where in a folder the files of the encoder lie: at its root, but for old folders of sentence-transformers.
    Raises FolderError where no module is an encoder of transformers, and none lies at the root."""
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
    """The files in a folder that say how its sentences are embedded; none of a folder of transformers alone."""
    modules = readable_modules(root)
    if modules is None:
        return [root / MODULES] if (root / MODULES).is_file() else []
    named = [root / MODULES, root / PROMPTS, *(root / modules[0].path / name for name in LENGTHS)]
    return [path for path in (*named, *(root / one.path / "config.json" for one in modules[1:])) if path.is_file()]


def says(root: Path) -> Says | None:
    """What a folder says of itself; None where it is none of sentence-transformers. Raises FolderError."""
    modules = modules_of(root)
    if modules is None:
        return None
    inside = root / encoder_path(root)
    options, general = _options(inside), _settings(root / PROMPTS)
    pooled = _settings(root / modules[1].path / "config.json") if _pools(modules) else {}
    modes = _modes(pooled, root / modules[1].path / "config.json") if _pools(modules) else ()
    prompts = _prompts(root / PROMPTS, general)
    default = general.get("default_prompt_name")
    if default is not None and default not in (*prompts, *BUILT_IN):
        raise FolderError(
            f"{root / PROMPTS} has default_prompt_name = {default!r}, and prompts only {', '.join(prompts) or 'none'}; "
            "correct the name there, or set it to null"
        )
    return Says(
        pooling=modes[0] if modes else "mean",
        include_prompt=bool(pooled.get("include_prompt", True)),
        normalise=any(one.kind == "Normalize" for one in modules),
        prompt="" if default is None else prompts.get(default, ""),
        prompts=prompts,
        default_prompt=default,
        lower=bool(options.get("do_lower_case")),
        length=_length(options["processor_kwargs"].get("model_max_length", options.get("max_seq_length"))),
        tokenizer_length=_length(
            _settings(root / encoder_path(root) / "tokenizer_config.json").get("model_max_length")
        ),
        similarity=general.get("similarity_fn_name"),
        refusals=tuple(_refusals(root, modules, modes, options, general)),
    )


def _refusals(
    root: Path, modules: tuple[Module, ...], modes: tuple[str, ...], options: dict[str, Any], general: dict[str, Any]
) -> Iterator[str]:
    """What a folder has that training does not compute, each as words that follow 'it has'."""
    if modules[0].kind != ENCODER:
        yield f"a module {modules[0].kind} in place of the {ENCODER}, and no code of a folder is run"
    if not _pools(modules):
        second = modules[1].kind if len(modules) > 1 else "nothing"
        yield f"{second} where its Pooling should be"
    if len(modes) > 1:
        yield f"{len(modes)} poolings side by side ({', '.join(modes)})"
    for one in modules[2 if _pools(modules) else 1 :]:
        settings = _settings(root / one.path / "config.json")
        if one.kind == "Normalize" and settings.get("module_input_name", "sentence_embedding") == "sentence_embedding":
            continue
        if not (one.kind == "Dropout" and settings.get("dropout") == 0):
            yield f"a module {one.kind}{f' ({one.path})' if one.path else ''}"
    kind = general.get("model_type") or "SentenceTransformer"
    if kind != "SentenceTransformer":
        yield f"the type {kind}"
    if general.get("truncate_dim"):
        yield f"truncate_dim = {general['truncate_dim']}, which cuts its embeddings"
    yield from _unusual(options)


def _unusual(options: dict[str, Any]) -> Iterator[str]:
    """What is unusual about how the first module is called."""
    task = options.get("transformer_task", "feature-extraction")
    if task != "feature-extraction":
        yield f"a Transformer for {task}"
    for name, known in HARMLESS.items():
        if strange := sorted(options[name].keys() - known):
            yield f"{name} {', '.join(strange)} of its Transformer"
    if options.get("tokenizer_name_or_path"):
        yield f"a tokenizer elsewhere, {options['tokenizer_name_or_path']}"
    modality = options.get("modality_config") or {}
    text = modality.get("text") or {"method": "forward", "method_output_name": "last_hidden_state"}
    if not isinstance(text, dict):
        text = {"method": json.dumps(text)[:60]}
    if "message" in modality:
        yield "sentences that are put into a chat template"
    elif "text" in modality and (text.get("method"), _first(text.get("method_output_name"))) != (
        "forward",
        "last_hidden_state",
    ):
        yield f"{text.get('method')} and {text.get('method_output_name')} in place of the encoder's last layer"
    if options.get("processing_kwargs"):
        yield f"processing_kwargs {', '.join(options['processing_kwargs'])} of its Transformer"


def _first(name: Any) -> Any:
    return name[0] if isinstance(name, list) and len(name) == 1 else name


def _pools(modules: tuple[Module, ...]) -> bool:
    return len(modules) > 1 and modules[1].kind == "Pooling"


def _modes(config: dict[str, Any], path: Path) -> tuple[str, ...]:
    """Every pooling that a configuration asks for."""
    if not config:
        raise FolderError(f"{path} is missing, which says how token states are pooled; put back what was saved there")
    given = config.get("pooling_mode")
    if given is None:
        found = [mode for flag, mode in FLAGS.items() if config.get(flag)]
    else:
        found = [given] if isinstance(given, str) else list(given)
    unknown = [mode for mode in found if mode not in FLAGS.values()]
    if unknown:
        raise FolderError(f"{path} has the pooling {unknown[0]!r}; known are {', '.join(FLAGS.values())}")
    return tuple(found) or ("mean",)


def _length(given: float | None) -> int | None:
    return int(max(given, 0)) if given is not None and given < ENDLESS else None


def _prompts(path: Path, general: dict[str, Any]) -> dict[str, str]:
    given = general.get("prompts") or {}
    for name, text in given.items():
        if not isinstance(text, str | None):
            raise FolderError(f"{path} has the prompt {name!r} = {json.dumps(text)[:60]}; it must be text")
    return {name: text or "" for name, text in given.items()}


def _options(folder: Path) -> dict[str, Any]:
    """Settings of the first module, whose options go by their newer names."""
    path, options = next(
        ((folder / name, found) for name in LENGTHS if (found := _settings(folder / name))), (folder / LENGTHS[0], {})
    )
    older = {"model_kwargs": "model_args", "config_kwargs": "config_args", "processor_kwargs": "tokenizer_args"}
    for name, before in older.items():
        options[name] = _known(path, options.get(name) or options.pop(before, None) or {})
    return options


def _module(root: Path, one: Any) -> Module:
    if not isinstance(one, dict) or not isinstance(one.get("type"), str) or not isinstance(one.get("path"), str):
        raise FolderError(f"{root / MODULES} has a module without type or path: {json.dumps(one)[:100]}; correct it")
    path = PurePosixPath(one["path"])
    if path.is_absolute() or ".." in path.parts or "\\" in one["path"]:
        raise FolderError(f"{root / MODULES} has the path {one['path']!r}, which leaves the folder; correct it")
    kind = one["type"]
    own = kind.startswith("sentence_transformers.")
    return Module(kind.rpartition(".")[2] if own else kind, "" if str(path) == "." else str(path))


def _settings(path: Path) -> dict[str, Any]:
    """A file of settings; empty where there is none. Raises FolderError for a setting that is read and is of another
    kind than it must be."""
    return _known(path, _json(path, dict)) if path.exists() else {}


def _known(path: Path, found: dict[str, Any]) -> dict[str, Any]:
    for key in sorted(found.keys() & KINDS.keys()):
        kind, value = KINDS[key], found[key]
        if value is not None and (not isinstance(value, kind) or (type(value) is bool and kind is not YES_OR_NO)):
            wanted = WORDS.get(kind, "text, or a list of it")
            raise FolderError(f"{path} has {key} = {json.dumps(value)[:60]}; it must be {wanted}")
    return found


def settings_of(path: Path) -> dict[str, Any]:
    """A file of settings that must be there. Raises FolderError."""
    if not path.exists():
        raise FolderError(f"{path} is missing; put back what was saved there")
    return _settings(path)


def _json(path: Path, kind: type[Any]) -> Any:
    try:
        found = json.loads(path.read_text("utf-8-sig"))
    except (ValueError, RecursionError, IsADirectoryError) as error:
        raise FolderError(f"{path} is no JSON ({error}); put back what sentence-transformers has saved") from error
    if not isinstance(found, kind):
        wanted = "a list of modules" if kind is list else "an object"
        raise FolderError(f"{path} is no {wanted.removeprefix('a ').removeprefix('an ')}; it must be {wanted}")
    return found
