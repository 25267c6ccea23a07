"""The README of an exported folder: what the encoder is, how it was judged, and code that gives its embeddings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from jobs.artifacts.trial_dir import Point
from jobs.config import EXECUTION_METRICS, JobConfig
from jobs.core.plain import markdown
from jobs.export.embed import ATTENTION, OTHER_LAYER, Settings
from jobs.models.pretrained.folder import BUILT

POOLED = {
    "cls": "the first token",
    "mean": "the mean over tokens",
    "attention": "the mean over tokens by learned weights",
    "first_last": "the mean over tokens of the first and the last layer",
    "last_two": "the mean over tokens of the last two layers",
    "map": "the mean over places",
    "max": "the largest value over tokens",
    "lasttoken": "the last token",
    "weightedmean": "the mean over tokens, weighted by their position",
    "mean_sqrt_len_tokens": "the sum over tokens divided by the root of their number",
}
HEAD = {False: ", before the projection head", True: ", after the projection head"}

LICENCE = """\
The code in this folder is under the Apache License 2.0. No licence of the weights is known: it depends on the data, and
on the encoder that training began with, if there was one."""


@dataclass(frozen=True)
class About:
    """What a trial does not know of itself."""

    question: str | None = None
    run: str | None = None
    arm: str | None = None
    stage: str | None = None
    """Where it is not the job's."""


def text(about: About, job: JobConfig, *, trial: str, step: int, points: list[Point], settings: Settings) -> str:
    """Render the page. points: the trial's, up to `step`; settings: what embedding.json says.

    It names no path of this machine, and no licence of the weights.
    """
    about = About(**{key: None if name is None else _without_folders(name, job) for key, name in asdict(about).items()})
    task = "sentence-similarity" if job.task == "sentence" else "image-feature-extraction"
    code = _sentence_code(settings) if job.task == "sentence" else _image_code(settings)
    given = "texts" if job.task == "sentence" else "images"
    own = ["from embed import load  # embed.py of this folder", f'embeddings = load("this/folder")({given})']
    parts = [
        f"---\nlibrary_name: sentence-transformers\npipeline_tag: {task}\n---",
        f"# {job.task.capitalize()} encoder" + (f": {markdown(about.arm)}" if about.arm else ""),
        markdown(about.question or "", starts=True),
        _table({"": ""} | _facts(about, job, trial, step, settings)),
        _metrics(job, points),
        "## How to load it",
        _given(settings),
        *("\n".join(["```python", *lines, "```"]) for lines in (*code, own)),
        _remarks(settings),
        LICENCE,
    ]
    return "\n\n".join(part for part in parts if part) + "\n"


def judged(points: list[Point]) -> dict[str, Point]:
    """Return the newest point of each metric."""
    return {point.key: point for point in points if not point.key.startswith(("train/", *EXECUTION_METRICS))}


def _facts(about: About, job: JobConfig, trial: str, step: int, settings: Settings) -> dict[str, str]:
    name = job.model.name or {"image": "vit", "sentence": "bert"}[job.task]
    rows = {
        "run": about.run,
        "arm": about.arm,
        "trial": f"{trial}, stage {about.stage or job.stage}, seed {job.seed}",
        "step": _of_budget(step, job),
        "encoder": f"{_without_folders(name, job)}, {_origin(name, job)}",
        "embedding": f"{settings['width']} columns: {_how(settings)}{HEAD[has_head(job)]}",
        "after training": _after(job),
        "prompt": settings["prompt"] and f"{settings['prompt']!r}{', not pooled' if settings['skipped'] else ''}",
        "loss": f"{job.loss.name}, temperature {job.loss.temperature}, {job.batch.size} pairs a batch"
        if job.trains
        else "",
    }
    return {key: value for key, value in rows.items() if value}


def _of_budget(step: int, job: JobConfig) -> str:
    if not job.trains:
        return ""
    return f"{step:,}" + (f" of {job.steps:,}" if job.steps else f", in {job.budget.seconds:g} s of training")


def _origin(name: str, job: JobConfig) -> str:
    return "not trained here" if not job.trains else "from nothing" if name in BUILT else "fine-tuned"


def has_head(job: JobConfig) -> bool:
    """Return whether embeddings are those after the projection head."""
    return job.evaluate.head and job.model.projection != "none"


def _after(job: JobConfig) -> str:
    options = ", ".join(f"{key} = {value}" for key, value in job.evaluate.after_options.items())
    return f"{job.evaluate.after}{f' ({options})' if options else ''}" if job.evaluate.after else ""


def _how(settings: Settings) -> str:
    return POOLED[settings["pooling"]] + (", normalised" if settings["normalise"] else "")


def _without_folders(name: str, job: JobConfig) -> str:
    """Shorten the job's file paths in a name to their last part: an arm may be called after its encoder or its data."""
    for source in (job.model.name, job.loss.guide, *job.data.every_source):
        if source is not None and Path(source).is_absolute():
            name = name.replace(source, Path(source).name)
    return name


def _metrics(job: JobConfig, points: list[Point]) -> str:
    newest = judged(points)
    if not newest:
        return "It has not been judged yet."
    values = {key: f"{point.value:.4f}, at step {point.step:,}" for key, point in newest.items()}
    return _table({f"judged on data.{job.stage}": "value"} | values)


def _table(rows: Mapping[str, str]) -> str:
    lines = [f"| {markdown(key)} | {markdown(value)} |" for key, value in rows.items()]
    return "\n".join([lines[0], "| --- | --- |", *lines[1:]])


def _given(settings: Settings) -> str:
    if settings["task"] == "sentence":
        prompted = ", the prompt included," if settings["prompt"] else ""
        return f"`texts` is a list of sentences; what is beyond {settings['max_tokens']} tokens{prompted} is cut."
    assert settings["image_shape"] is not None
    channels, height, width = settings["image_shape"]
    return (
        f"`images` is a numpy array, uint8 [n, {height}, {width}, {channels}]. Pixels from 0 to 255 are scaled to "
        "[-1, 1]; `preprocessor_config.json` says the same."
    )


def _sentence_code(settings: Settings) -> list[list[str]]:
    options = "".join(f", {key}={value}" for key, value in settings["load"].items())
    trusted = ", trust_remote_code=True" if settings["pooling"] == "attention" else ""
    states = ", output_hidden_states=True" if settings["pooling"] in OTHER_LAYER else ""
    prompted = "texts" if not settings["prompt"] else f"[{settings['prompt']!r} + text for text in texts]"
    lowered = [
        "from tokenizers import normalizers",
        "inside = tokenizer.backend_tokenizer  # which may have forgotten that it lower-cases",
        "then = [inside.normalizer] if inside.normalizer else []",
        "inside.normalizer = normalizers.Sequence([normalizers.Lowercase(), *then])",
    ]
    return [
        [
            "from sentence_transformers import SentenceTransformer",
            f'embeddings = SentenceTransformer("this/folder"{trusted}).encode(texts)',
        ],
        [
            "from transformers import AutoModel, AutoTokenizer",
            'tokenizer = AutoTokenizer.from_pretrained("this/folder")',
            *(lowered if settings["lower"] else []),
            f'tokens = tokenizer({prompted}, padding=True, truncation=True, return_tensors="pt")',
            f'output = AutoModel.from_pretrained("this/folder"{options})(**tokens{states})',
            *_pooled(settings),
            *(["embeddings = embeddings / embeddings.norm(dim=-1, keepdim=True)"] if settings["normalise"] else []),
        ],
    ]


def _pooled(settings: Settings) -> list[str]:
    """Build the lines of code that make embeddings of what AutoModel gives."""
    how, skipped = settings["pooling"], settings["skipped"]
    if how == "cls":
        return [f"embeddings = output.last_hidden_state[:, {skipped}]"]
    if how == "attention":
        lines = ["states = output.last_hidden_state", 'scores = states @ weight + (tokens["attention_mask"] - 1) * 1e9']
        return [*_weight(), *lines, *ATTENDED]
    lines = [f"states = {_both_layers(how) if how in OTHER_LAYER else 'output.last_hidden_state'}"]
    lines.append('mask = tokens["attention_mask"][..., None]')
    if skipped:
        lines.append(f"mask[:, :{skipped}] = 0  # the prompt is not pooled")
    if how == "lasttoken":
        lines.append("last = mask.shape[1] - 1 - mask.flip(1).argmax(1, keepdim=True)")
        return [*lines, "embeddings = states.take_along_dim(last, 1)[:, 0]"]
    if how == "max":
        return [*lines, 'embeddings = states.masked_fill(mask == 0, float("-inf")).amax(1)']
    if how == "weightedmean":
        lines.append("mask = mask * (mask.new_ones(mask.shape).cumsum(1))")
    root = ".sqrt()" if how == "mean_sqrt_len_tokens" else ""
    return [*lines, f"embeddings = (states * mask).sum(1) / mask.sum(1){root}"]


ATTENDED = ("embeddings = (states * scores.softmax(1)[..., None]).sum(1)",)


def _weight() -> list[str]:
    """Build the lines of code that load the weights of a pooling by attention."""
    return ["from safetensors.torch import load_file", f'weight = load_file("this/folder/{ATTENTION}")["weight"]']


def _both_layers(how: str) -> str:
    return f"(output.hidden_states[{OTHER_LAYER[how]}] + output.last_hidden_state) / 2"


def _image_code(settings: Settings) -> list[list[str]]:
    options = "".join(f", {key}={value}" for key, value in settings["load"].items())
    scaled = "(torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - 0.5) / 0.5"
    patches = f"[:, {settings['prefix_tokens']}:].mean(1)"
    pooled = {
        "attention": [
            *_weight(),
            "states = encoder(pixels).last_hidden_state",
            f"states = states.flatten(2).mT if states.ndim == 4 else states[:, {settings['prefix_tokens']}:]",
            "scores = states @ weight",
            *ATTENDED,
        ],
        "cls": ["embeddings = encoder(pixels).last_hidden_state[:, 0]"],
        "map": ["embeddings = encoder(pixels).last_hidden_state.mean((2, 3))"],
        "mean": [f"embeddings = encoder(pixels).last_hidden_state{patches}"],
    } | {
        how: [
            "output = encoder(pixels, output_hidden_states=True)",
            f"embeddings = ({_both_layers(how)}){patches}",
        ]
        for how in OTHER_LAYER
    }
    return [
        [
            "from sentence_transformers import SentenceTransformer",
            'encoder = SentenceTransformer("this/folder", trust_remote_code=True)',
            'embeddings = encoder.encode([{"image": image} for image in images])  # or PIL images',
        ],
        [
            "import torch, transformers",
            f'encoder = transformers.AutoModel.from_pretrained("this/folder"{options})',
            f"pixels = {f'({scaled}).double()' if settings['precision'] == 'fp64' else scaled}",
            *pooled[settings["pooling"]],
        ],
    ]


def _remarks(settings: Settings) -> str:
    normal = "normalised" if settings["normalise"] and not settings["head"] else "not normalised"
    remarks = [f"Embeddings are {normal}; the encoder was trained for cosine similarity."]
    if settings["head"]:
        remarks.append(
            "AutoModel gives what goes into the linear maps behind the pooling (a projection head's, and what was "
            "fitted after training); the others apply them, as the trial was judged."
        )
    if settings["task"] == "image":
        remarks.append(
            "On a GPU, `torch.backends.cudnn.allow_tf32 = False` keeps fp32 convolutions from rounding to 10 bits."
        )
    if settings["precision"] == "bf16":
        remarks.append(
            "It was judged under `torch.autocast(device, torch.bfloat16)`, as embed.py computes; put the others inside."
        )
    return " ".join(remarks)
