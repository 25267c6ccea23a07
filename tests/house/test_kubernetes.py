"""infra/kubernetes and infra/compose.yaml: against KubeRay's and Compose's own schemas; who reaches whom; what the
documented commands delete; and which sweep each job runs."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import jsonschema
import pytest
import yaml
from crds import crd, faults, schemas
from manifests import INFRA, KUBERNETES, OVERLAYS, containers, loaded, sent, templates

from orchestrator.ledger.database import parsed
from orchestrator.sweep import Sweep, arms_of, load

ROOT = INFRA.parent
DEFINITIONS = {"RayCluster": "rayclusters", "RayJob": "rayjobs"}
JOBS = [overlay for overlay in OVERLAYS if overlay.endswith("-job")]
Object = dict[str, Any]


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[Object]:
    return sent(request.param)


def of_kind(objects: list[Object], kind: str) -> list[Object]:
    return [one for one in objects if one["kind"] == kind]


def kuberays(objects: list[Object]) -> Object:
    (found,) = (one for one in objects if one["kind"] in DEFINITIONS)
    return found


def cluster_of(one: Object) -> Object:
    found: Object = one["spec"].get("rayClusterSpec", one["spec"])
    return found


# Against the schemas of those who read them


def test_kuberays_own_definitions_take_every_field(objects: list[Object]) -> None:
    one = kuberays(objects)
    assert faults(one, crd(DEFINITIONS[one["kind"]])) == []


def test_every_overlay_has_one_of_kuberays_kinds_and_every_kind_is_checked() -> None:
    assert {kuberays(sent(overlay))["kind"] for overlay in OVERLAYS} == set(DEFINITIONS)
    own = [path for path in KUBERNETES.rglob("*.yaml") for one in loaded(path) if isinstance(one, dict)
           if one.get("apiVersion", "").startswith("ray.io/") and one["kind"] not in DEFINITIONS]  # fmt: skip
    assert not own


FREE = ("labels", "annotations", "matchLabels", "nodeSelector", "limits", "requests", "rayStartParams")
"""Fields whose keys are anybody's."""


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in an object but those in metadata, which is checked by the schemas of Kubernetes."""
    if path and path[-1] in FREE:
        return
    if path and path != ("metadata",):
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        if (*path, key) != ("metadata", "name"):
            yield from places(inner, (*path, key))


def at(value: Any, path: tuple[Any, ...]) -> Any:
    for key in path:
        value = value[key]
    return value


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_a_misspelt_field_and_a_value_of_another_type_are_found_wherever_they_stand(overlay: str) -> None:
    """The test of the test: of each place in what is sent, one after the other."""
    one = kuberays(sent(overlay))
    kind = crd(DEFINITIONS[one["kind"]])
    once = {tuple("#" if isinstance(key, int) else key for key in path): path for path in places(one)}.values()
    assert len(once) > 60
    for path in once:
        *_, last = path
        if isinstance(last, str):
            misspelt = copy.deepcopy(one)
            inside = at(misspelt, path[:-1])
            inside[f"{last}s"] = inside.pop(last)
            assert faults(misspelt, kind), f"{path} is misspelt"
        other = copy.deepcopy(one)
        at(other, path[:-1])[last] = {"no": "such"} if not isinstance(at(one, path), dict) else ["list"]
        assert faults(other, kind), f"{path} is {at(other, path)}"


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("backoffLimit", "5"), ("backoffLimit", 2**31), ("shutdownAfterJobFinishes", "yes"), ("entrypoint", None),
        ("ttlSecondsAfterFinished", 1.5), ("maxRetries", 3), ("entrypoint", ["a", "b"]), ("suspend", None),
    ],
)  # fmt: skip
def test_a_wrong_value_of_a_job_is_found(field: str, value: Any) -> None:
    one = kuberays(sent(JOBS[0]))
    one["spec"][field] = value
    assert any(field in fault for fault in faults(one, crd("rayjobs")))


def test_two_containers_or_variables_of_one_name_are_found() -> None:
    for change in ("containers", "env"):
        one = kuberays(sent(JOBS[0]))
        pod = one["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]["spec"]
        many = pod["containers"] if change == "containers" else pod["containers"][0]["env"]
        many.append(copy.deepcopy(many[0]))
        assert any("comes twice" in fault for fault in faults(one, crd("rayjobs"))), change


def test_composes_own_schema_takes_the_file_and_misses_a_misspelt_field() -> None:
    schema = json.loads((schemas() / "compose-spec.json").read_text())
    check = jsonschema.Draft7Validator(schema)
    found = yaml.safe_load((INFRA / "compose.yaml").read_text())
    assert [f"{error.json_path}: {error.message}" for error in check.iter_errors(found)] == []
    for name, service in found["services"].items():
        for key in service:
            wrong = copy.deepcopy(found)
            wrong["services"][name][f"{key}z"] = wrong["services"][name].pop(key)
            assert list(check.iter_errors(wrong)), f"{name}.{key}"
    for key, value in (("shm_size", ["2gb"]), ("cap_drop", "ALL"), ("init", "perhaps not"), ("ports", {"a": 1})):
        wrong = copy.deepcopy(found)
        wrong["services"]["ray-head"][key] = value
        if key != "init":  # a variable may stand there
            assert list(check.iter_errors(wrong)), key


# Names


LABEL = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
SUBDOMAIN = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?(\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*")
VALUE = re.compile(r"([A-Za-z0-9]([-A-Za-z0-9_.]*[A-Za-z0-9])?)?")
LONGEST = {"RayCluster": 53, "RayJob": 47, "Namespace": 63, "Service": 63}
"""As KubeRay and Kubernetes have it: the names of services and pods begin with these."""


def test_names_and_labels_are_such_as_kubernetes_takes(objects: list[Object]) -> None:
    for one in objects:
        name = one["metadata"]["name"]
        assert (LABEL if one["kind"] in LONGEST else SUBDOMAIN).fullmatch(name), name
        assert len(name) <= LONGEST.get(one["kind"], 253)
    held = [one["metadata"].get("labels", {}) for one in objects]
    held += [pod.get("metadata", {}).get("labels", {}) for pod in templates(objects)]
    for key, value in (pair for labels in held for pair in labels.items()):
        prefix, _, name = key.rpartition("/")
        assert len(value) <= 63
        assert VALUE.fullmatch(value), value
        assert VALUE.fullmatch(name), key
        assert not prefix or SUBDOMAIN.fullmatch(prefix)


# Who reaches whom


HERE = "contrastive"
HELM = {"app.kubernetes.io/name": "kuberay-operator", "app.kubernetes.io/instance": "kuberay-operator",
        "app.kubernetes.io/component": "kuberay-operator"}  # fmt: skip
PLAIN = {"app.kubernetes.io/name": "kuberay", "app.kubernetes.io/component": "kuberay-operator"}
PORTS = (6379, 8265, 10001, 52365, 30123)


def meets(selector: Object | None, labels: dict[str, str]) -> bool:
    """Whether labels meet a selector of Kubernetes; an empty one is met by all."""
    selector = selector or {}
    assert selector.keys() <= {"matchLabels", "matchExpressions"}
    for one in selector.get("matchExpressions", ()):
        given = labels.get(one["key"])
        verdicts = {
            "In": given in one.get("values", ()),
            "NotIn": given not in one.get("values", ()),
            "Exists": given is not None,
            "DoesNotExist": given is None,
        }
        if not verdicts[one["operator"]]:
            return False
    return bool(selector.get("matchLabels", {}).items() <= labels.items())


def reaches(objects: list[Object], source: tuple[str, dict[str, str]], pod: dict[str, str], port: int) -> bool:
    """Whether the policies let a pod, of that namespace with these labels, call a pod of ours on a port."""
    namespace, labels = source
    applied = [one["spec"] for one in of_kind(objects, "NetworkPolicy") if meets(one["spec"]["podSelector"], pod)]
    applied = [one for one in applied if "Ingress" in one["policyTypes"]]
    assert applied, "a pod that no policy selects is open to everybody"
    for rule in (rule for one in applied for rule in one.get("ingress", ())):
        if "ports" in rule and port not in [one["port"] for one in rule["ports"]]:
            continue
        for peer in rule.get("from", [{"namespaceSelector": {}}]):
            spaces = peer.get("namespaceSelector")
            near = namespace == HERE if spaces is None else meets(spaces, {"kubernetes.io/metadata.name": namespace})
            if near and meets(peer.get("podSelector"), labels):
                return True
    return False


def pods(objects: list[Object]) -> dict[str, dict[str, str]]:
    """The labels of each pod of ours, those that KubeRay adds included: head, worker, submitter, mlflow."""
    one, found = kuberays(objects), {}
    named = one["metadata"]["name"] + ("-x7k2p" if one["kind"] == "RayJob" else "")
    cluster = cluster_of(one)
    for role, group in (("head", cluster["headGroupSpec"]), ("worker", cluster["workerGroupSpecs"][0])):
        found[role] = ray_pod(named, role) | group["template"]["metadata"]["labels"]
    if one["kind"] == "RayJob":
        found["submitter"] = one["spec"]["submitterPodTemplate"]["metadata"]["labels"]
    (mlflow,) = of_kind(objects, "Deployment")
    found["mlflow"] = mlflow["spec"]["template"]["metadata"]["labels"]
    return found


def ray_pod(cluster: str, role: str) -> dict[str, str]:
    """What KubeRay labels every Ray pod with, whosever it is."""
    return {
        "ray.io/cluster": cluster,
        "ray.io/is-ray-node": "yes",
        "ray.io/node-type": role,
        "app.kubernetes.io/name": "kuberay",
        "app.kubernetes.io/created-by": "kuberay-operator",
    }


@pytest.mark.parametrize("operator", [HELM, PLAIN], ids=["helm", "plain"])
@pytest.mark.parametrize("space", ["default", "kuberay-system", HERE])
def test_kuberays_operator_reaches_the_job_server_and_no_more(
    objects: list[Object], operator: dict[str, str], space: str
) -> None:
    """Mutant check: the label `app.kubernetes.io/name: kuberay`, which the chart's operator has not."""
    found = pods(objects)
    for name, labels in found.items():
        open_to = [port for port in (*PORTS, 5000) if reaches(objects, (space, operator), labels, port)]
        assert open_to == ([8265] if name == "head" else []), name


def test_a_cluster_reaches_itself_and_mlflow(objects: list[Object]) -> None:
    found = pods(objects)
    for source in ("head", "worker"):
        for target in ("head", "worker"):
            assert all(reaches(objects, (HERE, found[source]), found[target], port) for port in PORTS)
        assert reaches(objects, (HERE, found[source]), found["mlflow"], 5000)
        assert not reaches(objects, (HERE, found[source]), found["mlflow"], 22)
    if "submitter" in found:
        assert reaches(objects, (HERE, found["submitter"]), found["head"], 8265)
        assert not reaches(objects, (HERE, found["submitter"]), found["head"], 6379)
        assert not reaches(objects, (HERE, found["submitter"]), found["worker"], 8265)


def strangers(objects: list[Object]) -> Iterator[tuple[str, dict[str, str]]]:
    """Pods of other namespaces, even with our very labels, but the operator; and other people's pods in ours."""
    for labels in pods(objects).values():
        yield "other", labels
    for role in ("head", "worker"):
        for cluster in ("ray", "other", "quickstart-abcde"):
            yield "other", ray_pod(cluster, role)
            yield "other", ray_pod(cluster, role) | {"app": "ray"}
        yield HERE, ray_pod("other", role)
        yield HERE, ray_pod("other", role) | {"app.kubernetes.io/instance": "ray"}
    yield HERE, {}
    yield "default", {}
    yield HERE, {"app": "postgres"}


def test_nobody_else_reaches_a_pod(objects: list[Object]) -> None:
    """Mutant check: `app.kubernetes.io/name: kuberay` of any namespace, which every Ray pod has."""
    found = pods(objects)
    for source in strangers(objects):
        for name, labels in found.items():
            assert not any(reaches(objects, source, labels, port) for port in (*PORTS, 5000)), (source, name)


@pytest.mark.parametrize("overlay", OVERLAYS)
@pytest.mark.parametrize("other", OVERLAYS)
def test_clusters_of_one_namespace_are_closed_to_one_another_and_keep_their_own_policies(
    overlay: str, other: str
) -> None:
    """Both are applied, one after the other: what has one name is then the later one's."""
    first, second = kuberays(sent(overlay)), kuberays(sent(other))
    if first["metadata"]["name"] == second["metadata"]["name"]:
        return
    both = {(one["kind"], one["metadata"]["name"]): one for one in [*sent(overlay), *sent(other)]}
    ours, theirs = pods(sent(overlay)), pods(sent(other))
    there = list(both.values())
    for role in ("head", "worker"):
        assert reaches(there, (HERE, ours[role]), ours["head"], 6379)
        assert not any(reaches(there, (HERE, theirs[role]), ours["head"], port) for port in PORTS)
        assert not any(reaches(there, (HERE, theirs[role]), ours["worker"], port) for port in PORTS)
        assert reaches(there, (HERE, ours[role]), ours["mlflow"], 5000)
    budgets = [one["spec"] for one in of_kind(there, "PodDisruptionBudget")]
    for head in (ours["head"], theirs["head"]):
        assert len([one for one in budgets if meets(one["selector"], head)]) == 1, "two of a pod make it unevictable"


# What ends a head, and what must not


def test_a_head_is_neither_drained_nor_scaled_away(objects: list[Object]) -> None:
    """A budget in whole numbers: Kubernetes counts shares only of kinds that it knows how to scale."""
    (budget,) = (one["spec"] for one in of_kind(objects, "PodDisruptionBudget"))
    assert (budget["minAvailable"], "maxUnavailable" in budget) == (1, False)
    found = pods(objects)
    assert [name for name, labels in found.items() if meets(budget["selector"], labels)] == ["head"]
    cluster = cluster_of(kuberays(objects))
    notes = cluster["headGroupSpec"]["template"]["metadata"]["annotations"]
    assert notes["cluster-autoscaler.kubernetes.io/safe-to-evict"] == "false"
    for group in cluster["workerGroupSpecs"]:
        assert "cluster-autoscaler.kubernetes.io/safe-to-evict" not in group["template"]["metadata"].get(
            "annotations", {}
        )


def test_mlflow_is_one_process_that_may_take_minutes_to_start(objects: list[Object]) -> None:
    (spec,) = (one["spec"] for one in of_kind(objects, "Deployment"))
    assert (spec["replicas"], spec["strategy"]) == (1, {"type": "Recreate"})
    (server,) = spec["template"]["spec"]["containers"]
    startup, liveness = server["startupProbe"], server["livenessProbe"]
    assert startup["httpGet"] == liveness["httpGet"] == server["readinessProbe"]["httpGet"]
    assert startup["failureThreshold"] * startup["periodSeconds"] >= 300
    assert "initialDelaySeconds" not in liveness, "which the startup probe is for"


# Images


NAMED = [
    ("newName: reg.example:5000/me/ours\n    newTag: 0.1.0", "reg.example:5000/me/ours:0.1.0"),
    ("newTag: of-mine", "contrastive-orchestrator:of-mine"),
    (f"newName: ghcr.example/o\n    digest: sha256:{'ab' * 32}", f"ghcr.example/o@sha256:{'ab' * 32}"),
]


@pytest.mark.parametrize(("given", "image"), NAMED, ids=["registry", "tag", "digest"])
def test_an_image_is_named_once_for_every_pod(given: str, image: str, tmp_path: Path) -> None:
    """Mutant check: `images` of the base alone, which the pod that submits a job comes too late for."""
    root = tmp_path / "kubernetes"
    shutil.copytree(KUBERNETES, root)
    base = root / "base" / "kustomization.yaml"
    base.write_text(base.read_text().replace("newTag: 0.1.0", given))
    for overlay in OVERLAYS:
        assert {one["image"] for one in containers(sent(overlay, root))} == {image}, overlay


# Secrets, and who does without


def variables(container: Object) -> dict[str, Object]:
    return {one["name"]: one.get("valueFrom", {}).get("secretKeyRef", {}) for one in container.get("env", [])}


def test_the_buckets_keys_may_be_missing_and_nothing_else(objects: list[Object]) -> None:
    seen = set()
    for container in containers(objects):
        for name, secret in variables(container).items():
            if secret:
                assert secret.get("optional", False) is name.startswith("AWS_"), name
                seen.add(name)
    assert {"AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "ORCHESTRATOR_LEDGER"} <= seen


def test_every_pod_that_uses_the_bucket_has_an_account_to_be_known_by(objects: list[Object]) -> None:
    accounts = {one["metadata"]["name"]: one for one in of_kind(objects, "ServiceAccount")}
    used = set()
    for pod in templates(objects):
        if any("AWS_ACCESS_KEY_ID" in variables(one) for one in pod["spec"]["containers"]):
            assert pod["spec"]["serviceAccountName"] in accounts
            used.add(pod["spec"]["serviceAccountName"])
    assert used == set(accounts)
    head = cluster_of(kuberays(objects))["headGroupSpec"]["template"]["spec"]["serviceAccountName"]
    others = [pod["spec"].get("serviceAccountName") for pod in templates(objects)]
    assert others.count(head) == 1, "KubeRay lets the head's account change pods: nobody else has it"


def test_the_documented_secrets_are_those_that_the_pods_read(objects: list[Object]) -> None:
    page = (INFRA / "README.md").read_text()
    made: dict[str, set[str]] = {}
    for name, text in re.findall(
        r"create secret generic (\S+) --from-env-file=/dev/stdin <<END\n(.*?)\nEND", page, re.DOTALL
    ):
        made.setdefault(name, set()).update(line.split("=")[0] for line in text.splitlines())
    for container in containers(objects):
        for secret in filter(None, variables(container).values()):
            assert secret["key"] in made[secret["name"]], secret
    assert "auth_token" in made[cluster_of(kuberays(objects))["authOptions"]["secretName"]]


@pytest.mark.parametrize("word", ["p@s/s%w:0?d#", "$a 'b' \"c\" é", "plain"])
def test_a_password_is_written_in_addresses_as_they_want_it(word: str) -> None:
    """By the documented command; it is no argument of a program."""
    page = (INFRA / "README.md").read_text()
    (command,) = re.findall(r"^quoted=.*?\n.*?$", page, re.M)
    env = os.environ | {"DATABASE_PASSWORD": word}
    done = subprocess.run(["bash", "-c", f'{command}; printf %s "$quoted"'], env=env, capture_output=True, check=True)
    assert done.stdout.decode() == quote(word, safe="")
    assert parsed(f"postgresql://me:{done.stdout.decode()}@host/ledger").password == word
    assert page.count("postgresql://USER:$quoted@HOST/") == page.count("postgresql://USER:$")


def test_no_documented_command_takes_a_secret_as_an_argument() -> None:
    """Everybody on the machine can read the arguments of a command while it runs."""
    for words in documented():
        assert not [word for word in words if "--from-literal" in word or "PASSWORD" in word or "$(openssl" in word], (
            words
        )


# What the documented commands delete


KEPT = ("Namespace", "Secret", "PersistentVolumeClaim", "CustomResourceDefinition")


def commands(page: str) -> list[list[str]]:
    """The `kubectl` commands of a page's blocks, without their comments."""
    blocks = re.findall(r"^```\n(.*?)^```", page, re.M | re.S)
    lines = [line for block in blocks for line in re.sub(r"\\\n", " ", block).splitlines()]
    single = [part.strip() for line in lines for part in re.split(r"&&|;", line.split(" #")[0])]
    return [shlex.split(line) for line in single if line.startswith("kubectl")]


def documented() -> list[list[str]]:
    found = commands((INFRA / "README.md").read_text())
    for path in KUBERNETES.rglob("*.yaml"):
        found += commands("```\n" + "\n".join(re.findall(r"^#.*?(kubectl .*)$", path.read_text(), re.M)) + "\n```\n")
    return found


def test_nothing_that_is_deleted_by_its_folder_was_made_by_hand() -> None:
    deleted = [words for words in documented() if "delete" in words]
    folders = [Path(words[words.index("-k") + 1]).name for words in deleted if "-k" in words]
    assert folders
    for overlay in OVERLAYS:
        assert not [one["metadata"]["name"] for one in sent(overlay) if one["kind"] in KEPT], overlay
    for words in deleted:
        if "namespace" in words or "secret" in words:
            line = next(line for line in (INFRA / "README.md").read_text().splitlines() if shlex.join(words) in line)
            assert "secrets" in line, "it says what goes with it"


def test_a_finished_job_is_resumed_without_touching_anything_else() -> None:
    """A RayJob that has ended does not begin again when it is applied; what is deleted for that is the job alone."""
    lines = [line for line in (INFRA / "README.md").read_text().splitlines() if "# resume" in line and "delete" in line]
    assert lines
    for line in lines:
        (words,) = (words for words in commands(f"```\n{line}\n```\n") if "delete" in words)
        assert words[words.index("delete") + 1] == "rayjob"
        assert words[words.index("delete") + 2] in {kuberays(sent(overlay))["metadata"]["name"] for overlay in JOBS}
        assert "-k" not in words


def test_every_folder_and_file_that_a_command_names_is_there() -> None:
    for words in documented():
        for flag in ("-k", "-f"):
            if flag in words:
                assert (ROOT / words[words.index(flag) + 1]).exists(), words


def test_the_namespace_refuses_roots_and_is_made_before_what_is_in_it() -> None:
    (space,) = loaded(KUBERNETES / "namespace.yaml")
    assert (space["kind"], space["metadata"]["name"]) == ("Namespace", HERE)
    assert space["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
    said = [words for words in documented() if {"apply", "create"} & set(words)]
    assert said[0] == ["kubectl", "apply", "-f", "infra/kubernetes/namespace.yaml"]


# Jobs


def ordered(overlay: str) -> tuple[Sweep, Object]:
    """The sweep that a job's command runs, with its `--set`, and the job."""
    one = kuberays(sent(overlay))
    words = shlex.split(one["spec"]["entrypoint"])
    assert words[:2] == ["orchestrator", "launch"]
    overrides = [words[k + 1] for k, word in enumerate(words) if word == "--set"]
    path = Path(words[2])
    assert path.is_relative_to("/app/sweeps"), "where the image has them"
    return load(ROOT / path.relative_to("/app"), overrides), one


@pytest.mark.parametrize("overlay", JOBS)
def test_a_job_runs_a_sweep_that_its_workers_can_run(overlay: str) -> None:
    """Mutant check: a GPU job whose sweep asks for no GPU leaves the GPUs that it pays for idle."""
    sweep, one = ordered(overlay)
    (group,) = one["spec"]["rayClusterSpec"]["workerGroupSpecs"]
    limits = group["template"]["spec"]["containers"][0]["resources"]["limits"]
    gpus, cpus = int(limits.get("nvidia.com/gpu", "0")), int(limits["cpu"])
    assert (gpus > 0) is overlay.startswith("gpu")
    assert (sweep.resources.gpus_per_rank > 0) is (gpus > 0)
    assert sweep.resources.autoscale, "there is no worker when it begins"
    for arm in arms_of(sweep):
        ranks = arm.config(stage="confirm", seed=0).execution.ranks
        most, concurrent = group["maxReplicas"], sweep.resources.concurrent
        assert concurrent is not None
        assert most * (gpus // sweep.resources.gpus_per_rank if gpus else cpus) >= ranks * concurrent


@pytest.mark.parametrize("overlay", JOBS)
def test_a_job_finds_its_variables_where_its_command_is_expanded(overlay: str) -> None:
    """KubeRay's submitter hands the command to its own shell: a variable that only the head has is empty there."""
    one = kuberays(sent(overlay))
    named = set(re.findall(r"\$\{?(\w+)", one["spec"]["entrypoint"]))
    assert named
    (settings,) = (one["data"] for one in of_kind(sent(overlay), "ConfigMap"))
    pods = [one["spec"]["submitterPodTemplate"], one["spec"]["rayClusterSpec"]["headGroupSpec"]["template"]]
    for pod in pods:
        (container,) = pod["spec"]["containers"]
        maps = [each["configMapRef"]["name"] for each in container.get("envFrom", [])]
        assert maps == ["settings"], f"{container['name']} has no settings"
        assert named <= settings.keys()


@pytest.mark.parametrize("overlay", JOBS)
def test_a_job_ends_its_cluster_and_is_known_by_its_sweeps_name(overlay: str) -> None:
    sweep, one = ordered(overlay)
    spec = one["spec"]
    assert spec["shutdownAfterJobFinishes"] is True
    assert 0 < spec["ttlSecondsAfterFinished"] <= 3600
    assert spec["backoffLimit"] >= 1
    assert 3600 <= spec["activeDeadlineSeconds"] <= 14 * 86400
    assert one["metadata"]["name"] == sweep.name.replace("_", "-")
    groups = [spec["rayClusterSpec"]["headGroupSpec"], *spec["rayClusterSpec"]["workerGroupSpecs"]]
    for pod in [spec["submitterPodTemplate"], *(group["template"] for group in groups)]:
        assert one["metadata"]["name"] in pod["metadata"]["labels"].values(), "its policies know it by this"


def test_the_data_of_a_shipped_gpu_sweep_is_where_every_node_reads_it() -> None:
    (settings,) = (one["data"] for one in of_kind(sent("gpu-job"), "ConfigMap"))
    assert settings["ORCHESTRATOR_DATA"].startswith("s3://")


def test_continuous_integration_finds_the_schemas_as_it_finds_the_data() -> None:
    text = (ROOT / ".ci" / "run").read_text()
    for name, folder in (("ORCHESTRATOR_DATA", "data"), ("ORCHESTRATOR_SCHEMAS", "schemas")):
        assert f"-z ${{{name}:-}} && -d ../shared/{folder}" in text
