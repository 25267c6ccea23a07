"""Names to code: a part of a job that a study may compare is a built-in, or an import path of the user's own.

A built-in is a module of the folder of its kind, or of one below it, and the object in it that has the module's name:
the folder is the table. An import path is `package.module:object`. Nothing is imported until `load`; no torch here.
"""

from __future__ import annotations

import ast
import difflib
import importlib
import inspect
import json
import pkgutil
import re
import sys
import sysconfig
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property, lru_cache, partial
from pathlib import Path
from typing import Annotated, Any, get_args, get_origin, get_type_hints

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, WithJsonSchema, create_model
from pydantic_core import PydanticCustomError

from jobs.config import protocols, user_code

PACKAGE = Path(__file__).parents[1]

STANDARD = Path(sysconfig.get_paths()["stdlib"])

IMPORT_PATH = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*", re.ASCII)


@dataclass(frozen=True)
class Kind:
    """One sort of component."""

    name: str
    key: str
    """Of the job, that names it."""

    options: str
    """Key of the job's table of its options."""

    folder: str
    """Of the built-ins, below jobs/; of those for images, where others are for sentences."""

    example: str
    """An import path."""

    protocols: tuple[type, ...]
    """Whose arguments a component is called with."""

    beside: tuple[str, ...] = ()
    """Names of arguments that are no options either."""

    built_with: tuple[str, ...] = ()
    """Arguments of the constructor of a class that are no options, unless they have a default."""

    builds: bool = False
    """Whether a class is built with what is provided, and not only with its options."""

    default: str = ""
    """The built-in that a job has unless it names another one."""

    names: tuple[str, ...] = ()
    """What may be named beside the built-ins: something else decides then."""

    of_sentences: str = ""
    """Folder of the built-ins for sentences, where they have one of their own."""

    @cached_property
    def provided(self) -> tuple[str, ...]:
        """Arguments that a component is called with if its signature has them. All others are options."""
        return (*protocols.arguments(*self.protocols), *self.beside)


TASK = Kind(
    "task", "task", "options", "metrics/tasks", "mylab.train:main", (protocols.Loop,),
    beside=("job", "tokenizer"), builds=True, default="image",
)  # fmt: skip
LOSS = Kind(
    "loss", "loss.name", "loss.options", "losses/builtin", "mylab.losses:focal_nce",
    (protocols.LossOfRows, protocols.Loss), built_with=("embedding_width", "data_rows"), default="infonce",
)  # fmt: skip
ENCODER = Kind(
    "encoder", "model.name", "model.options", "models/encoders", "mylab.models:MyEncoder",
    (protocols.Encoder,), builds=True, default="vit",
)  # fmt: skip
POOLING = Kind(
    "pooling", "model.pooling", "model.pooling_options", "models/poolings", "mylab.models:attention",
    (protocols.Pooling,), builds=True, default="auto", names=("auto",),
)  # fmt: skip
AUGMENTATION = Kind(
    "augmentation", "augment.name", "augment.options", "data/images/augmentations", "mylab.views:colour_jitter",
    (protocols.Augmentation, protocols.SentenceAugmentation), of_sentences="data/sentences/augmentations",
)  # fmt: skip
SAMPLER = Kind(
    "sampler", "data.sampler", "data.sampler_options", "data/samplers", "mylab.data:by_length", (protocols.Sampler,),
)  # fmt: skip
OPTIMIZER = Kind(
    "optimizer", "optimizer.name", "optimizer.options", "optim/builtin", "torch.optim:RAdam",
    (protocols.MakeOptimizer,), beside=("weight_decay",), builds=True, default="adamw",
)  # fmt: skip
SCHEDULE = Kind(
    "schedule", "optimizer.schedule", "optimizer.schedule_options", "optim/schedules", "mylab.optim:staircase",
    (protocols.Schedule,), default="cosine",
)  # fmt: skip
TRANSFORM = Kind(
    "transform", "optimizer.transform", "optimizer.transform_options", "optim/transforms", "mylab.optim:ChildTuning",
    (protocols.Transform,),
)  # fmt: skip
JUDGE = Kind(
    "judge", "evaluate.judge", "evaluate.judge_options", "metrics/judges", "mylab.judges:Reranking",
    (protocols.MakeJudge,), builds=True,
)  # fmt: skip
AFTER = Kind(
    "after", "evaluate.after", "evaluate.after_options", "metrics/after", "mylab.after:whitened", (protocols.After,),
)  # fmt: skip
METRIC = Kind(
    "metric", "evaluate.metrics", "evaluate.metric_options", "metrics/builtin", "mylab.metrics:recall",
    (protocols.ImageMetric, protocols.SentenceMetric, protocols.RankingMetric, protocols.EmbeddingsMetric),
)  # fmt: skip

KINDS = {
    kind.name: kind
    for kind in (
        *(TASK, LOSS, ENCODER, POOLING, AUGMENTATION, SAMPLER, OPTIMIZER, SCHEDULE, TRANSFORM),
        *(AFTER, JUDGE, METRIC),
    )
}


class ComponentError(ValueError):
    """A name is of no component, or its code cannot be imported."""


@cache
def builtin_names(kind: str) -> tuple[str, ...]:
    """List the built-ins of a kind, by the files of its folder, the default first."""
    names = sorted([*KINDS[kind].names, *built_in_files(kind)])
    return tuple(sorted(names, key=lambda name: name != KINDS[kind].default))


@cache
def built_in_files(kind: str) -> dict[str, Path]:
    """Find the file of every built-in of a kind, by name. Raises TypeError for two of one name."""
    found: dict[str, Path] = {}
    folders = filter(None, (KINDS[kind].folder, KINDS[kind].of_sentences))
    for path in (path for folder in folders for path in sorted((PACKAGE / folder).rglob("*.py"))):
        if not path.stem.startswith("_"):
            if path.stem in found:
                raise TypeError(f"the {kind} {path.stem!r} is built in twice, in {found[path.stem]} and {path}")
            found[path.stem] = path
    return found


def is_of_sentences(kind: str, name: str) -> bool:
    """Return whether a name is of a built-in that takes rows of tokens, where its kind has others for images."""
    file, folder = built_in_files(kind).get(name), KINDS[kind].of_sentences
    return bool(folder) and file is not None and file.is_relative_to(PACKAGE / folder)


def module_of(kind: str, name: str) -> str:
    """Return the module of a built-in, as Python imports it. Raises KeyError for a name that is none."""
    return ".".join(("jobs", *built_in_files(kind)[name].relative_to(PACKAGE).with_suffix("").parts))


def is_import_path(name: str) -> bool:
    """Return whether a name is the import path of code outside the built-ins: `package.module:object`."""
    return IMPORT_PATH.fullmatch(name) is not None


@cache
def is_of_batch(name: str) -> bool:
    """Return whether a built-in loss is a function, or a class, of the whole batch, and not a loss of rows: as its file
    says, since torch would be imported with it."""
    file = built_in_files("loss").get(name)
    defined = [] if file is None else ast.parse(file.read_text("utf-8")).body
    own = [node for node in defined if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name]
    return any("softmax_loss" not in map(ast.unparse, node.decorator_list) for node in own)


def loss_asks_for(name: str) -> frozenset[str] | None:
    """Find what a loss of the whole batch is called with; None of a loss of anchors, which has all negatives of the
    batch. A built-in's arguments are read from its file, as of `is_of_batch`."""
    if name in built_in_files("loss"):
        return _arguments_in_file(name) if is_of_batch(name) else None
    try:
        component = load("loss", name)
    except ComponentError:  # whoever tries it says so
        return None
    if not callable(component) or hasattr(component, "row_loss"):
        return None
    function = getattr(component, "forward", component) if isinstance(component, type) else component
    return frozenset(inspect.signature(function).parameters)


@cache
def _arguments_in_file(name: str) -> frozenset[str]:
    tree = ast.parse(built_in_files("loss")[name].read_text("utf-8"))
    own = next(node for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef) and node.name == name)
    forward = [node for node in ast.walk(own) if isinstance(node, ast.FunctionDef) and node.name in (name, "forward")]
    return frozenset(each.arg for each in (*forward[0].args.args, *forward[0].args.kwonlyargs))


@cache
def literal_of(kind: str, name: str, constant: str) -> Any:
    """Read a constant of a built-in's module from its file, as importing it may need torch. Raises KeyError where the
    module has no such constant."""
    for node in ast.parse(built_in_files(kind)[name].read_text("utf-8")).body:
        if isinstance(node, ast.Assign) and [ast.unparse(target) for target in node.targets] == [constant]:
            return ast.literal_eval(node.value)
    raise KeyError(constant)


def measures(judge: str, given: Mapping[str, Any]) -> tuple[str, ...]:
    """Name the metrics of a built-in judge with these options. One such as `recall_at_{recall_at}` stands for as many
    as that option has values, by default those of the constant RECALL_AT."""
    names: list[str] = []
    for name in literal_of("judge", judge, "MEASURES"):
        plain, _, option = name.removesuffix("}").partition("{")
        own = given.get(option)  # what is wrong with it, its check says
        usual = literal_of("judge", judge, option.upper()) if option else [""]
        names += [f"{plain}{value}" for value in (own if isinstance(own, list | tuple) else usual)]
    return tuple(names)


def joins(judge: str) -> bool:
    """Return whether a built-in judge is asked about the rows of several sets together too, as its file says."""
    try:
        return bool(literal_of("judge", judge, "JOINS"))
    except KeyError:
        return False


def checked_name(kind: str, name: str) -> str:
    """Return the name, if it is valid for this kind. Raises an error for pydantic to report."""
    known = builtin_names(kind)
    if name not in known and not is_import_path(name):
        expected = f"{', '.join(map(repr, known))} or an import path such as {KINDS[kind].example!r}"
        raise PydanticCustomError("literal_error", "Input should be {expected}", {"expected": expected})
    return name


def name_schema(kind: str) -> dict[str, Any]:
    """Describe the valid names of a kind as JSON Schema."""
    return {"anyOf": [{"enum": [*builtin_names(kind)]}, {"type": "string", "pattern": f"^{IMPORT_PATH.pattern}$"}]}


def load(kind: str, name: str) -> object:
    """Load the object that a name refers to. Raises ComponentError where there is none, or where its module fails."""
    if name in built_in_files(kind):
        module, attribute = module_of(kind, name), name
    elif is_import_path(name):
        module, _, attribute = name.partition(":")
    else:
        known = builtin_names(kind)
        close = difflib.get_close_matches(str(name), known, n=1)
        raise ComponentError(
            f"name must be one of {', '.join(known)}, or an import path such as {KINDS[kind].example}, not {name!r}"
            + (f"; did you mean {close[0]!r}?" if close else "")
        )
    user_code.activate_here()
    try:
        imported = importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{module}.".startswith(f"{error.name}."):
            if beside := _modules_beside(error.name):
                close = difflib.get_close_matches(error.name, beside, n=1)
                hint = f"did you mean '{close[0]}:{attribute}'?" if close else f"there are {', '.join(beside[:8])}"
                raise ComponentError(f"{name!r}: there is no module {error.name}; {hint}") from error
            raise ComponentError(
                f"{name!r}: there is no module {error.name}; name its folder in the sweep, [code] paths = "
                f'["{error.name.partition(".")[0]}/"], or install it'
            ) from error
        raise ComponentError(f"{name!r}: {module} cannot be imported: {error}") from error
    except Exception as error:
        raise ComponentError(f"{name!r}: {module} cannot be imported: {type(error).__name__}: {error}") from error
    if not hasattr(imported, attribute):
        close = difflib.get_close_matches(attribute, dir(imported), n=1)
        hint = f"; did you mean '{module}:{close[0]}'?" if close else f"; it has {_public(imported)}"
        raise ComponentError(f"{name!r}: {module} has no {attribute}{hint}")
    return getattr(imported, attribute)


def _modules_beside(name: str) -> list[str]:
    """List the modules of the package that a missing module should be in."""
    package = name.rpartition(".")[0]
    folders = getattr(sys.modules.get(package), "__path__", [])
    return [f"{package}.{module.name}" for module in pkgutil.iter_modules(folders)]


def _public(module: object) -> str:
    names = [name for name in vars(module) if not name.startswith("_")]
    return ", ".join(names[:8]) + (" ..." if len(names) > 8 else "") or "nothing"


def is_class(name: str) -> bool:
    """Return whether an import path is of a class, by its name: `mylab.tasks:Tabular`, where a function is `main`."""
    return is_import_path(name) and name.rpartition(":")[2].lstrip("_")[:1].isupper()


def asks_for(component: object, argument: str) -> bool:
    """Return whether a function, or the constructor of a class, has an argument of this name."""
    return callable(component) and argument in inspect.signature(component).parameters


def line_of(error: BaseException) -> str:
    """Find the innermost line of the user's code in an error's traceback. Returns it in brackets; empty for none."""
    lines, trace = [""], error.__traceback__
    while trace is not None:
        path = Path(trace.tb_frame.f_code.co_filename)
        is_own = not any(map(path.is_relative_to, (PACKAGE, STANDARD))) and "site-packages" not in path.parts
        if is_own and path.suffix == ".py":
            lines.append(f" ({path.name}, line {trace.tb_lineno})")
        trace = trace.tb_next
    return lines[-1]


def top_module(path: str) -> str:
    """Return the package, or the module, that an import path begins with."""
    return path.partition(":")[0].partition(".")[0]


def metric_name(path: str) -> str:
    """Return what a metric is called in a job and its results: the part after the colon."""
    return path.rpartition(":")[2]


def is_option(key: str) -> bool:
    """Return whether a dotted job key is an option of a component, such as `loss.options.gamma`."""
    table, _, name = key.rpartition(".")
    return name.isidentifier() and any(table == kind.options for kind in KINDS.values())


def options(kind: str, component: object, given: Mapping[str, Any]) -> dict[str, Any]:
    """Return a component's arguments from its options: with the defaults of its own model, else as given. Raises
    pydantic's ValidationError."""
    checked = options_model(kind, component).model_validate(dict(given))
    return dict(checked) if _own_model(component) else dict(given)


def called(kind: str, name: str, given: Mapping[str, Any]) -> Callable[..., Any]:
    """Return a named function with its options; of the arguments that it is called with, it takes those that it asks
    for. Raises as `load` and `options` do."""
    return _called(kind, name, json.dumps(dict(given), sort_keys=True))


@lru_cache(maxsize=64)
def _called(kind: str, name: str, given: str) -> Callable[..., Any]:
    """Look the function up once for all steps: checking options takes a millisecond."""
    function = load(kind, name)
    if not callable(function):
        raise ComponentError(f"{name!r} is a {type(function).__name__}; name a function")
    own = options(kind, function, json.loads(given))
    parameters = inspect.signature(function).parameters.values()
    takes_all = any(parameter.kind == parameter.VAR_KEYWORD for parameter in parameters)
    asked = {parameter.name for parameter in parameters}

    def call(**provided: Any) -> Any:
        return function(**{key: value for key, value in provided.items() if takes_all or key in asked}, **own)

    return call


def options_model(kind: str, component: object) -> type[BaseModel]:
    """Return the model that checks a component's options: its own, `component.Options`, else from its signature."""
    return _own_model(component) or _by_signature(kind, component)


def _own_model(component: object) -> type[BaseModel] | None:
    own = getattr(component, "Options", None)
    return own if isinstance(own, type) and issubclass(own, BaseModel) else None


def _by_signature(kind: str, component: object) -> type[BaseModel]:
    """Build a model of the parameters of a function, or of a class's constructor, that are not provided."""
    if not callable(component):
        return create_model("options", __config__=ConfigDict(extra="forbid"))
    known = inspect.signature(component).parameters.values()
    hints = _hints(component)
    fields: dict[str, Any] = {}
    for parameter in known:
        is_own = parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY)
        is_built = isinstance(component, type) and not KINDS[kind].builds
        if parameter.name in KINDS[kind].built_with and parameter.default is parameter.empty:
            continue
        if is_own and (is_built or parameter.name not in KINDS[kind].provided):
            hint = hints.get(parameter.name, Any)
            plain = get_args(hint)[0] if get_origin(hint) is Annotated else hint
            strict = Field(strict=False) if get_origin(plain) in (tuple, list) else Field()
            default = ... if parameter.default is parameter.empty else parameter.default
            fields[parameter.name] = (Annotated[hint, strict], default)
    is_open = any(parameter.kind == parameter.VAR_KEYWORD for parameter in known)
    config = ConfigDict(
        extra="allow" if is_open else "forbid", strict=True, arbitrary_types_allowed=True, protected_namespaces=()
    )
    return create_model("options", __config__=config, **fields)


def _hints(component: object) -> dict[str, Any]:
    target = component.__init__ if isinstance(component, type) else component  # type: ignore[misc]
    try:
        return get_type_hints(
            target, include_extras=True
        )  # with bounds, such as those of Annotated[float, Field(gt=0)]
    except Exception:  # noqa: BLE001
        return {}  # names that exist for type checkers alone; such a value is checked by the component


TaskName = Annotated[str, AfterValidator(partial(checked_name, "task")), WithJsonSchema(name_schema("task"))]
LossName = Annotated[str, AfterValidator(partial(checked_name, "loss")), WithJsonSchema(name_schema("loss"))]
OptimizerName = Annotated[
    str, AfterValidator(partial(checked_name, "optimizer")), WithJsonSchema(name_schema("optimizer"))
]
ScheduleName = Annotated[
    str, AfterValidator(partial(checked_name, "schedule")), WithJsonSchema(name_schema("schedule"))
]
PoolingName = Annotated[str, AfterValidator(partial(checked_name, "pooling")), WithJsonSchema(name_schema("pooling"))]
SamplerName = Annotated[str, AfterValidator(partial(checked_name, "sampler")), WithJsonSchema(name_schema("sampler"))]
AugmentationName = Annotated[
    str, AfterValidator(partial(checked_name, "augmentation")), WithJsonSchema(name_schema("augmentation"))
]
TransformName = Annotated[
    str, AfterValidator(partial(checked_name, "transform")), WithJsonSchema(name_schema("transform"))
]
JudgeName = Annotated[str, AfterValidator(partial(checked_name, "judge")), WithJsonSchema(name_schema("judge"))]
AfterName = Annotated[str, AfterValidator(partial(checked_name, "after")), WithJsonSchema(name_schema("after"))]
MetricPath = Annotated[str, AfterValidator(partial(checked_name, "metric")), WithJsonSchema(name_schema("metric"))]
"""Names of components: a built-in, or an import path."""
