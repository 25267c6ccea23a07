"""What the packages use of other distributions beyond what these document: it may move in any release of theirs.
test_private.py holds the code to this table, and every name in it to what is installed.

    python tests/house/private.py     print the table

A private name is one with a leading underscore, one from a module with such a part in its path, and for those of
DOCUMENTED one from any module that is not listed there. Names that no parser finds (endpoints, keywords) are here too.
"""

from __future__ import annotations

import ast
import re
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

OWN = ("jobs", "orchestrator")

MARKS = ("_replace", "_counts_here")
"""Of named tuples, which document it; and what jobs/losses/generic.py sets by itself."""

BY_NAME = ("getattr", "setattr", "hasattr", "delattr", "object")
"""Calls whose second argument is the name of an attribute of the first; the last one is `mock.patch.object`."""

DOCUMENTED = {
    "mlflow": ("entities", "models", "pyfunc.model"),
    "ray": (
        *("actor", "exceptions", "tune.experiment", "tune.schedulers", "tune.search"),
        *("util.placement_group", "util.scheduling_strategies"),
    ),
    "transformers": ("modeling_outputs", "utils"),
}
"""Distributions most of whose modules are private without saying so, and those that are not, beside the first one."""


class Private(NamedTuple):
    """A name, or several of one use."""

    distribution: str
    names: tuple[str, ...]
    """Each with the module that it is in; where that is none that can be imported, as it stands in the code; what only
    MLflow's pages know, behind `tag:`."""

    files: tuple[str, ...]
    why: str
    test: str
    """The test that fails first where it moves and behaves differently: file::function."""

    takes: tuple[str, ...] = ()
    """Parameters of the first name that are passed."""


CLUSTER = "orchestrator/session/cluster/"
TUNE = "orchestrator/session/tune_executor.py"
CONTROLLER = "ray.tune.execution.tune_controller."
GROUPS = "ray.air.execution.resources.placement_group."
TESTS = "tests/orchestrator/cluster/"
START = TESTS + "test_cluster_start.py::test_ray_starts_apart_from_the_driver_leaves_its_signals_alone_and_dies_with_it"
LOOPBACK = TESTS + "test_access.py::test_a_cluster_of_ones_own_listens_on_loopback_behind_a_token_that_no_file_holds"
TOKEN = TESTS + "test_access.py::test_a_session_turns_the_token_on_where_one_is_at_hand"
SEEN = TESTS + "test_cluster_picture.py::test_groups_tasks_and_actors_are_seen_with_whose_they_are"
TURNS = TESTS + "test_two_sweeps.py::test_two_sweeps_that_need_the_whole_cluster_alternate_trial_by_trial"
SUBMITTED = (
    "tests/orchestrator/cli/test_submission.py::test_a_sweep_submitted_from_a_laptop_measures_what_a_local_one_does"
)
LIVING = (
    "tests/orchestrator/cli/test_submission.py::"
    "test_a_living_driver_says_how_its_run_stands_and_one_that_was_stopped_has_not_failed"
)
CURVES = "tests/orchestrator/tracking/test_tracking.py::test_the_histories_of_many_runs_are_those_of_each"
PAGES = (
    "tests/orchestrator/tracking/test_mlflow_arms.py::"
    "test_the_metric_comes_first_as_bars_with_an_interval_an_arm_beside_them"
)
ILL = "tests/orchestrator/tracking/test_mlflow_arms.py::test_what_diverged_or_failed_looks_so"
DROPOUT = "tests/jobs/models/test_models.py::test_keyed_attention_is_softmax_attention_with_dropped_weights"

TABLE = (
    Private(
        "ray",
        ("GET /api/packages/gcs", "PUT /api/packages/gcs"),
        ("orchestrator/cli/submission/rest.py",),
        "a job's folder goes along; documented is only a URI that every node can read, for which a laptop has no place",
        SUBMITTED,
    ),
    Private(
        "ray",
        ("GET /api/jobs/{submission_id}/logs/tail",),
        ("orchestrator/cli/submission/server.py",),
        "a log as it grows; the specification names the WebSocket and says nothing of its messages",
        SUBMITTED,
    ),
    Private(
        "ray",
        ("ray._private.state.actors",),
        (CLUSTER + "capacity.py",),
        "the node of an actor that died; the public list asks the dashboard, which a cluster of one's own has not",
        "tests/faults/test_nodes.py::test_a_slot_whose_raylet_was_killed_is_node_lost",
        ("actor_id",),
    ),
    Private(
        "ray",
        ("ray._common.utils.get_default_ray_temp_dir",),
        (CLUSTER + "__init__.py",),
        "where Ray keeps its sessions, to tell before it starts that nothing can be written there",
        TESTS + "test_cluster.py::test_a_ray_that_cannot_start_where_its_files_are_to_lie_is_told_with_a_place",
    ),
    Private(
        "ray",
        ("ray._private.worker._global_node",),
        (CLUSTER + "__init__.py",),
        "the folder of the own cluster's session, whose logs say why a head died",
        TESTS + "test_cluster.py::test_a_ray_of_which_a_process_dies_while_it_starts_is_told_in_words",
    ),
    Private(
        "ray",
        ("ray._private.services.canonicalize_bootstrap_address",),
        (CLUSTER + "__init__.py",),
        "what `auto` and a host's name stand for, before Ray asks there for minutes",
        TESTS + "test_cluster.py::test_it_is_knocked_at_every_kind_of_address_before_ray_asks_for_minutes",
        ("addr",),
    ),
    Private(
        "ray",
        ("ray._raylet.get_authentication_mode", "ray._raylet.AuthenticationMode"),
        (CLUSTER + "__init__.py",),
        "whether others can send commands to the cluster",
        LOOPBACK,
    ),
    Private(
        "ray",
        ("ray._raylet.Config", "ray._raylet.AuthenticationTokenLoader"),
        (CLUSTER + "start.py",),
        "have Ray read the token again, which it keeps from its first look",
        TOKEN,
    ),
    Private(
        "ray",
        ("ray._raylet.GcsClient",),
        (CLUSTER + "__init__.py", CLUSTER + "board.py"),
        "ask a head whether it takes a token, and keep a run's status in the metadata of its job",
        LIVING,
    ),
    Private(
        "ray",
        (
            "ray._private.ray_constants.KV_NAMESPACE_JOB",
            "ray.dashboard.modules.job.common.JobInfoStorageClient.JOB_DATA_KEY",
        ),
        (CLUSTER + "board.py",),
        "where the metadata of a job are stored: a driver has no public way to change its own",
        LIVING,
    ),
    Private(
        "ray",
        ("ray._private.worker.global_worker",),
        (CLUSTER + "picture.py",),
        "the client by which this process is connected, which asks for resources and waiting groups at once",
        SEEN,
    ),
    Private(
        "ray",
        (
            "ray._private.state.state._connect_and_get_accessor",
            "ray.core.generated.gcs_pb2",
            "ray.core.generated.autoscaler_pb2",
        ),
        (CLUSTER + "picture.py",),
        "whose groups, actors and jobs hold the cluster; the public lists leave out what is needed",
        SEEN,
    ),
    Private(
        "ray",
        ("ray._private.utils.set_sigterm_handler",),
        (CLUSTER + "start.py",),
        "replaced while Ray starts: it would end the driver at SIGTERM with exit code 15",
        START,
        ("sigterm_handler",),
    ),
    Private(
        "ray",
        ("ray._private.services.ConsolePopen",),
        (CLUSTER + "start.py",),
        "replaced: what Ray starts gets a session of its own, and not the driver's input",
        START,
    ),
    Private(
        "ray",
        ("ray._private.ray_constants.ENABLE_RAY_CLUSTER",),
        (CLUSTER + "start.py",),
        "replaced: a cluster of one's own listens on loopback alone",
        LOOPBACK,
    ),
    Private(
        "ray",
        tuple(f"ray._private.node.Node.{name}" for name in ("start_monitor", "start_api_server", "start_log_monitor")),
        (CLUSTER + "start.py",),
        "replaced: three processes that a cluster of one's own does not need",
        START,
    ),
    Private(
        "ray",
        ("_system_config",),
        (CLUSTER + "__init__.py",),
        "no process for each processor before anything is asked for",
        START,
    ),
    Private(
        "ray",
        (
            GROUPS + "PlacementGroupResourceManager",
            GROUPS + "PlacementGroupAcquiredResources",
            "ray.air.execution.resources.request.AcquiredResources",
            "ray.air.execution.resources.request.ResourceRequest",
        ),
        (CLUSTER + "slots.py",),
        "overridden: a placement group is asked for when the sweep's turn has come",
        TURNS,
        ("update_interval_s",),
    ),
    Private(
        "ray",
        (CONTROLLER + "TuneController",),
        (TUNE,),
        "the type of what Tune passes to a scheduler",
        TURNS,
    ),
    Private(
        "ray",
        (CONTROLLER + "PlacementGroupResourceManager", CONTROLLER + "_ActorClassCache"),
        (TUNE,),
        "replaced: `Tuner` has no option for what makes placement groups and classes of actors",
        TURNS,
    ),
    Private(
        "ray",
        tuple(
            CONTROLLER + "TuneController." + name
            for name in ("_reuse_actors", "_actor_cache", "_pending_trials", "_cleanup_cached_actors")
        ),
        (TUNE,),
        "give slots back between trials, which Tune keeps warm for as long as it runs",
        TURNS,
    ),
    Private(
        "mlflow",
        ("mlflow.tracking.client.MlflowClient._tracking_client",),
        ("orchestrator/tracking/runs.py",),
        "the store behind a client: it answers for many runs at once, and the client for one",
        CURVES,
    ),
    Private(
        "mlflow",
        ("mlflow.utils.rest_utils.http_request_safe", "/ajax-api/2.0/mlflow/metrics/get-history-bulk"),
        ("orchestrator/tracking/runs.py",),
        "the endpoint by which MLflow's own pages read the curves of many runs",
        CURVES,
        ("host_creds", "endpoint", "method"),
    ),
    Private(
        "mlflow",
        ("mlflow.entities.RunData._metric_objs",),
        ("orchestrator/tracking/runs.py",),
        "the last values with their steps and times, which the public `metrics` leaves out",
        CURVES,
    ),
    Private(
        "mlflow",
        ("tag:mlflow.sharedViewState.", "tag:mlflow.experimentKind"),
        ("orchestrator/tracking/view.py",),
        "tags of an experiment by which MLflow's pages know its kind and its saved views, and the JSON of such a view",
        PAGES,
    ),
    Private(
        "mlflow",
        ("tag:mlflow.runColor",),
        ("orchestrator/tracking/metadata.py",),
        "the tag of a run that is its colour in MLflow's pages: what diverged is red there, what failed grey",
        ILL,
    ),
    Private(
        "transformers",
        (
            "transformers.integrations.sdpa_attention.sdpa_attention_forward",
            "transformers.masking_utils.sdpa_mask",
        ),
        ("jobs/models/transformer.py",),
        "attention without dropout stays transformers' own, bit for bit, beside the keyed one",
        DROPOUT,
        ("module", "query", "key", "value", "attention_mask", "scaling"),
    ),
    Private(
        "transformers",
        ("transformers.models.auto.modeling_auto.MODEL_MAPPING",),
        ("jobs/models/pretrained/anatomy.py",),
        "the class of a pretrained encoder, from its config, before any weight is read",
        "tests/cases/texts/test_model_folders.py::test_weights_that_do_not_fit_are_refused_where_they_are_loaded_too",
    ),
    Private(
        "huggingface_hub",
        ("huggingface_hub._CACHED_NO_EXIST",),
        ("jobs/models/pretrained/folder.py",),
        "tells a file that the hub lacks from one that the cache lacks, as its documentation says",
        "tests/jobs/models/test_pretrained.py::"
        "test_settings_that_the_cache_lacks_are_not_taken_for_settings_that_there_are_none",
    ),
    Private(
        "torch",
        ("torch.Tensor._version",),
        ("jobs/train/step.py",),
        "whether a saved tensor was changed in place; autograd's own check does not see what a hook keeps",
        "tests/jobs/train/test_step.py::test_a_graph_that_was_changed_in_place_is_an_error_with_a_memory_budget_too",
    ),
    Private(
        "torch",
        ("torch.optim.AdamW.step.__wrapped__",),
        ("jobs/optim/eager.py",),
        "an optimizer's methods as they are before torch wraps them, which loads its compiler",
        "tests/jobs/test_optim.py::test_a_step_does_not_load_torchs_compiler",
    ),
    Private(
        "pyarrow",
        ("pyarrow.lib._pandas_api",),
        ("jobs/data/formats/arrow.py",),
        "pyarrow looks for pandas once, and imports it in every rank; without the name it does so as ever",
        "tests/jobs/data/test_data.py::test_data_are_read_without_pandas_which_is_there_for_whoever_wants_it",
    ),
    Private(
        "psycopg",
        ("psycopg.Connection.wait",),
        ("orchestrator/ledger/postgres.py",),
        "overridden: a server that acknowledges and never answers is given up",
        "tests/orchestrator/ledger/test_outage.py::"
        "test_a_server_that_acknowledges_and_never_answers_is_given_up_in_bounded_time",
        ("gen", "interval"),
    ),
)


def uses(source: str) -> Iterator[str]:
    """The private names that a file uses: each with its module where it comes from one by name, else `._name`."""
    tree = ast.parse(source)
    inner = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    inside = {child for node in inner for child in ast.walk(node) if child is not node}
    texts = dict(_texts(list(ast.walk(tree))))
    outer = [node for node in ast.walk(tree) if node not in inside]
    shared = dict(_aliases(outer, {}))
    for nodes in [outer, *([*ast.walk(node)] for node in inner if node not in inside)]:
        yield from (path for node in nodes for _, path, module in _imported(node) if _is_private(path, module))
        taken = {argument.arg for node in nodes if isinstance(node, ast.arguments) for argument in _arguments(node)}
        kept = {name: path for name, path in shared.items() if name not in taken}
        modules = dict(_aliases(nodes, kept))
        for path in (path for node in nodes for path in _dotted(node, texts)):
            first, _, rest = path.partition(".")
            last = path.rpartition(".")[2]
            if first in modules:
                yield from [f"{modules[first]}.{rest}"] if _is_private(f"{modules[first]}.{rest}") else []
            elif first not in ("self", "cls") and _is_underscored(last) and last not in MARKS:
                yield f".{last}"


def is_covered(use: str, file: str) -> bool:
    """Whether the table has what a file uses, or a part or the whole of it."""
    names = [f"{name}." for row in TABLE if file in row.files for name in row.names]
    if use.startswith("."):
        return any(f"{use}." in name for name in names)
    return any(f"{use}.".startswith(name) or name.startswith(f"{use}.") for name in names)


def _arguments(node: ast.arguments) -> list[ast.arg]:
    return [*node.posonlyargs, *node.args, *node.kwonlyargs]


def _aliases(nodes: list[ast.AST], known: dict[str, str]) -> Iterator[tuple[str, str]]:
    """Names for what is imported beside those that are known, those that were given to it by an assignment too."""
    known = known | {name: path for node in nodes for name, path, _ in _imported(node)}
    yield from known.items()
    for node in nodes:
        if isinstance(node, ast.Assign | ast.AnnAssign) and isinstance(node.value, ast.Name):
            target = node.targets[0] if isinstance(node, ast.Assign) else node.target
            if isinstance(target, ast.Name) and node.value.id in known:
                yield target.id, known[node.value.id]


def _imported(node: ast.AST) -> Iterator[tuple[str, str, str]]:
    """What a statement imports: the name that the file knows it by, its whole name, and its module."""
    if isinstance(node, ast.ImportFrom) and node.module and not node.level:
        for alias in node.names:
            yield alias.asname or alias.name, f"{node.module}.{alias.name}", node.module
    elif isinstance(node, ast.Import):
        for alias in node.names:
            name = alias.name if alias.asname else alias.name.partition(".")[0]
            yield alias.asname or name, name, alias.name


def _texts(nodes: list[ast.AST]) -> Iterator[tuple[str, tuple[str, ...]]]:
    """Names that stand for texts: constants, and what a loop takes from them."""
    known: dict[str, tuple[str, ...]] = {}
    for node in nodes:
        if isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            items = node.value.elts if isinstance(node.value, ast.Tuple) else [node.value]
            known[node.targets[0].id] = tuple(
                item.value for item in items if isinstance(item, ast.Constant) and isinstance(item.value, str)
            )
    yield from known.items()
    for node in nodes:
        if isinstance(node, ast.For) and isinstance(node.target, ast.Name) and isinstance(node.iter, ast.Name):
            yield node.target.id, known.get(node.iter.id, ())


def _dotted(node: ast.AST, texts: dict[str, tuple[str, ...]]) -> Iterator[str]:
    """The names with a dot in a node: `a.b`, and of `getattr(a, "b")` and `mock.patch.object(a, "b")` too."""
    names: tuple[str, ...]
    if isinstance(node, ast.Attribute):
        of, names = ast.unparse(node.value), (node.attr,)
    elif isinstance(node, ast.Call) and ast.unparse(node.func).rpartition(".")[2] in BY_NAME and len(node.args) > 1:
        what = node.args[1]
        of, names = ast.unparse(node.args[0]), texts.get(ast.unparse(what), ())
        if isinstance(what, ast.Constant) and isinstance(what.value, str):
            names = (what.value,)
    else:
        return
    of = of if re.fullmatch(r"[\w.]+", of) else "()"
    yield from (f"{of}.{name}" for name in names)


def _is_underscored(name: str) -> bool:
    return name.startswith("_") and not name.endswith("__")


def _is_private(path: str, module: str = "") -> bool:
    """Whether another distribution does not document a name."""
    first, _, rest = module.partition(".")
    is_hidden = bool(rest) and rest not in DOCUMENTED.get(first, (rest,))
    is_another = path.partition(".")[0] not in (*OWN, *sys.stdlib_module_names)
    return is_another and (is_hidden or any(map(_is_underscored, path.split("."))))


if __name__ == "__main__":
    for row in TABLE:
        sys.stdout.write(f"{row.distribution}: {', '.join(row.names)}\n    {row.why}\n")
        sys.stdout.write(f"    in {', '.join(row.files)}\n    first: {row.test}\n")
