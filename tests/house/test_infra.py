"""infra/: every file against the schema of what reads it; what must hold of all of them (no secrets, no root, nothing
open); and for real: MLflow's server behind its password, and a Slurm job on this machine."""

from __future__ import annotations

import base64
import contextlib
import copy
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import psutil
import pytest
import ray
import yaml
from compose_spec import PyCompose
from manifests import INFRA, OVERLAYS, containers, loaded, sent, templates
from real import QUICK, SWEEP, TRIALS, call, free_port, measured, named, wait_for
from servers import new_database, s3_server

from orchestrator import __version__
from orchestrator.preflight.requirements import GRACE_S
from orchestrator.tracking import TrackingUnavailable, check

ROOT = Path(__file__).parents[2]
SCRIPTS = [*sorted(INFRA.glob("*.sh")), ROOT / ".ci" / "run"]
PINNED = dict(line.lower().split("==") for line in (ROOT / "constraints.txt").read_text().splitlines() if "==" in line)

KUBERNETES = "1.34.0"
"""The version whose schemas the manifests must meet."""

GROUP: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["rayStartParams", "template"],
    "properties": {
        "rayStartParams": {"type": "object", "additionalProperties": {"type": "string"}},
        "template": {"type": "object", "required": ["spec"]},
        "serviceType": {"type": "string"},
        "groupName": {"type": "string"},
        "replicas": {"type": "integer"},
        "minReplicas": {"type": "integer"},
        "maxReplicas": {"type": "integer"},
    },
}
CLUSTER: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["headGroupSpec"],
    "properties": {
        "rayVersion": {"type": "string"},
        "authOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {"mode": {"enum": ["disabled", "token"]}, "secretName": {"type": "string"}},
        },
        "enableInTreeAutoscaling": {"type": "boolean"},
        "autoscalerOptions": {
            "type": "object",
            "additionalProperties": False,
            "properties": {
                "idleTimeoutSeconds": {"type": "integer"},
                "upscalingMode": {"enum": ["Default", "Aggressive", "Conservative"]},
                "resources": {"type": "object"},
                "securityContext": {"type": "object"},
                "env": {"type": "array"},
            },
        },
        "headGroupSpec": GROUP,
        "workerGroupSpecs": {
            "type": "array",
            "items": GROUP | {"required": [*GROUP["required"], "groupName", "minReplicas", "maxReplicas"]},
        },
    },
}
JOB: dict[str, Any] = {
    "type": "object",
    "additionalProperties": False,
    "required": ["entrypoint", "rayClusterSpec"],
    "properties": {
        "entrypoint": {"type": "string"},
        "activeDeadlineSeconds": {"type": "integer"},
        "backoffLimit": {"type": "integer"},
        "shutdownAfterJobFinishes": {"type": "boolean"},
        "ttlSecondsAfterFinished": {"type": "integer"},
        "submissionMode": {"enum": ["K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"]},
        "rayClusterSpec": CLUSTER,
        "submitterPodTemplate": {"type": "object", "required": ["spec"]},
    },
}
KUBERAY = {"RayCluster": CLUSTER, "RayJob": JOB}
"""The fields that we use of KubeRay's own kinds, after its reference of version 1.6; no package has their schemas, and
test_kubernetes.py needs a folder that does."""


@pytest.fixture(params=OVERLAYS)
def objects(request: pytest.FixtureRequest) -> list[dict[str, Any]]:
    return sent(request.param)


# Schemas


def test_manifests_are_what_kubernetes_and_kuberay_take(objects: list[dict[str, Any]]) -> None:
    for one in objects:
        if one["kind"] in KUBERAY:
            jsonschema.validate(one["spec"], KUBERAY[one["kind"]])
        else:
            kubernetes_validate.validate(one, KUBERNETES, strict=True)
    pods = list(templates(objects))
    assert pods
    for pod in pods:
        as_pod = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "a"} | pod.get("metadata", {})}
        kubernetes_validate.validate(as_pod | {"spec": pod["spec"]}, KUBERNETES, strict=True)


def test_the_base_is_read_without_kubectl_too() -> None:
    for path in sorted((INFRA / "kubernetes" / "base").glob("*.yaml")):
        for one in loaded(path):
            if one["kind"] in KUBERAY:
                jsonschema.validate(one["spec"], KUBERAY[one["kind"]])
            elif one["kind"] != "Kustomization":
                kubernetes_validate.validate(one, KUBERNETES, strict=True)


def test_the_compose_file_is_one() -> None:
    merged = yaml.safe_dump(yaml.safe_load((INFRA / "compose.yaml").read_text()))  # the package knows no merged keys
    found = PyCompose.from_yaml(merged)
    found.validate()
    assert set(found.service_names()) == {"postgres", "minio", "bucket", "mlflow", "ray-head", "ray-worker"}


VARIABLES = ("RAY_AUTH_TOKEN", "POSTGRES_PASSWORD", "S3_PASSWORD", "MLFLOW_ADMIN_PASSWORD", "MLFLOW_SECRET_KEY")


def compose_config(scratch: Path) -> list[str]:
    """`docker compose config` on the file; the older docker-compose does not know a project's name in it."""
    path = INFRA / "compose.yaml"
    for client in (["docker", "compose"], ["docker-compose"]):
        if shutil.which(client[0]) is None:
            continue
        told = subprocess.run([*client, "version", "--short"], capture_output=True, text=True, check=False)
        if told.returncode == 0 and told.stdout.startswith("1."):
            path = scratch / "compose.yaml"
            path.write_text(re.sub("^name:.*$", "", (INFRA / "compose.yaml").read_text(), flags=re.MULTILINE))
        if told.returncode == 0:
            return [*client, "-f", str(path), "config"]
    pytest.skip("neither `docker compose` nor docker-compose is installed")


def test_the_compose_client_takes_it_and_misses_every_secret(tmp_path: Path) -> None:
    config = compose_config(tmp_path)
    given = {name: f"value-of-{name}" for name in VARIABLES}
    done = subprocess.run(config, capture_output=True, text=True, check=False, env=os.environ | given)
    assert done.returncode == 0, done.stderr
    assert all(value in done.stdout for value in given.values())
    for name in VARIABLES:
        without = os.environ | {key: value for key, value in given.items() if key != name}
        done = subprocess.run(config, capture_output=True, text=True, check=False, env=without)
        assert done.returncode != 0
        assert "make infra/.env" in done.stderr


def test_the_launcher_file_is_what_ray_takes() -> None:
    from ray.autoscaler._private.util import prepare_config, validate_config

    found = yaml.safe_load((INFRA / "ray-hosts.yaml").read_text())
    schema = json.loads((Path(ray.__file__).parent / "autoscaler" / "ray-schema.json").read_text())
    jsonschema.validate(found, schema)
    ready = prepare_config(copy.deepcopy(found))
    validate_config(ready)
    assert ready["max_workers"] == len(found["provider"]["worker_ips"])


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_scripts_are_clean(path: Path) -> None:
    shellcheck = shutil.which("shellcheck")
    if shellcheck is None:
        pytest.skip("shellcheck is not installed")
    done = subprocess.run([shellcheck, str(path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    assert os.access(path, os.X_OK)


# What must hold of all of them


SECRET = re.compile(r"(password|token|secret_key|secret_access_key)\w*[:=] *['\"]?[A-Za-z0-9]", re.IGNORECASE)
NO_SECRET = re.compile(r"\$\{|secretKeyRef|RAY_AUTH_MODE|mode: token|automountServiceAccountToken")


def test_no_file_holds_a_secret() -> None:
    """Values come from the environment or from a secret of the cluster's."""
    for path in INFRA.rglob("*"):
        if not path.is_file() or path.suffix == ".md" or path.name == ".env":
            continue
        for line in path.read_text().splitlines():
            if line.lstrip().startswith("#"):
                continue
            assert not SECRET.search(line) or NO_SECRET.search(line), f"{path.name}: {line}"
            for password in re.findall(r"://\w+:([^@\s]+)@", line):
                assert password == "PASSWORD" or password.startswith("${"), f"{path.name}: {line}"
        if path.suffix == ".yaml":
            kinds = [one.get("kind") for one in loaded(path) if isinstance(one, dict)]
            assert "Secret" not in kinds


def test_secrets_of_pods_are_references(objects: list[dict[str, Any]]) -> None:
    for container in containers(objects):
        for variable in container.get("env", []):
            if re.search("PASSWORD|SECRET|TOKEN|LEDGER|URI$|KEY", variable["name"]):
                assert "secretKeyRef" in variable.get("valueFrom", {}), variable


def test_pods_run_without_privileges_and_within_limits(objects: list[dict[str, Any]]) -> None:
    for pod in templates(objects):
        context = pod["spec"]["securityContext"]
        assert context["runAsNonRoot"] is True
        assert context["runAsUser"] > 0
        assert context["seccompProfile"] == {"type": "RuntimeDefault"}
    for container in containers(objects):
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        assert container["securityContext"]["allowPrivilegeEscalation"] is False
        for kind in ("requests", "limits"):
            assert {"cpu", "memory"} <= container["resources"][kind].keys()


def test_only_the_head_may_ask_kubernetes(objects: list[dict[str, Any]]) -> None:
    """Its autoscaler asks for workers."""
    for pod in templates(objects):
        head = any(port["name"] == "gcs" for one in pod["spec"]["containers"] for port in one.get("ports", []))
        assert pod["spec"].get("automountServiceAccountToken", True) is head


def test_a_pre_empted_worker_has_longer_than_the_drivers_grace(objects: list[dict[str, Any]]) -> None:
    (settings,) = (one["data"] for one in objects if one["kind"] == "ConfigMap")
    graces = [
        pod["spec"]["terminationGracePeriodSeconds"]
        for pod in templates(objects)
        if "ray" in [one["name"] for one in pod["spec"]["containers"]]
    ]
    assert graces
    assert min(graces) >= float(settings["ORCHESTRATOR_GRACE_S"]) + 30


def test_every_pod_is_behind_a_policy_and_only_what_must_reaches_it(objects: list[dict[str, Any]]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in objects if one["kind"] == "NetworkPolicy"}
    assert policies["nobody"] == {"podSelector": {}, "policyTypes": ["Ingress"]}
    labels = [pod.get("metadata", {}).get("labels", {}) for pod in templates(objects)]
    for name, spec in policies.items():
        wanted = {k: v for k, v in spec["podSelector"].get("matchLabels", {}).items() if not k.startswith("ray.io/")}
        assert any(wanted.items() <= one.items() for one in labels), f"{name} selects no pod"
        for rule in spec.get("ingress", []):
            peers = [peer["podSelector"].get("matchLabels") for peer in rule["from"]]
            assert peers, f"{name} lets everybody in"
            assert all(peers), f"{name} lets every pod in"


def test_what_listens_everywhere_asks_who_is_there(objects: list[dict[str, Any]]) -> None:
    for one in objects:
        if one["kind"] in KUBERAY:
            cluster = one["spec"].get("rayClusterSpec", one["spec"])
            assert cluster["authOptions"]["mode"] == "token"
    for container in containers(objects):
        if any(one["name"] == "MLFLOW_HOST" for one in container.get("env", [])):
            assert container["command"] == ["infra/mlflow.sh"]
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for name, service in services.items():
        for port in service.get("ports", []):
            assert port.startswith("127.0.0.1:"), f"{name} publishes {port}"
        if "0.0.0.0" in json.dumps(service):
            asks = service["environment"].get("RAY_AUTH_MODE") == "token" or "infra/mlflow.sh" in service["command"]
            assert asks, name
    served = (INFRA / "mlflow.sh").read_text()
    for text in ("--app-name basic-auth", '--host "${MLFLOW_HOST:-127.0.0.1}"', "default_permission = NO_PERMISSIONS"):
        assert text in served
    assert "ENV RAY_AUTH_MODE=token" in (INFRA / "Dockerfile").read_text()
    assert "export RAY_AUTH_TOKEN RAY_AUTH_MODE=token" in (INFRA / "slurm.sh").read_text()
    launcher = (INFRA / "ray-hosts.yaml").read_text()
    assert "0.0.0.0" not in launcher
    for kind in ("head", "worker"):
        (start,) = yaml.safe_load(launcher)[f"{kind}_start_ray_commands"]
        assert "RAY_AUTH_MODE=token" in start


def test_compose_services_are_hardened_and_limited() -> None:
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for name in ("ray-head", "ray-worker"):
        assert int(services[name]["stop_grace_period"].removesuffix("s")) > GRACE_S, "checkpoints take that long"
    for name, service in services.items():
        assert service["cap_drop"] == ["ALL"], name
        assert "no-new-privileges:true" in service["security_opt"], name
        assert service["deploy"]["resources"]["limits"].keys() >= {"cpus", "memory"}, name


def test_versions_are_those_of_the_constraints(objects: list[dict[str, Any]]) -> None:
    for one in objects:
        if one["kind"] in KUBERAY:
            assert one["spec"].get("rayClusterSpec", one["spec"])["rayVersion"] == PINNED["ray"]
    images = {one["image"] for one in containers(objects)}
    assert images == {f"contrastive-orchestrator:{__version__}"}
    services = yaml.safe_load((INFRA / "compose.yaml").read_text())["services"]
    for service in services.values():
        name, _, tag = service["image"].rpartition(":")
        assert name
        assert re.search(r"\d", tag), "an image is named with its version"
        assert name != "contrastive-orchestrator" or tag == __version__


def test_the_image_is_pinned_and_runs_as_nobody_special() -> None:
    lines = (INFRA / "Dockerfile").read_text().splitlines()
    commands = [line for line in lines if line and not line.startswith("#")]
    assert re.fullmatch(r"FROM python:3\.\d+\.\d+-slim-\w+", commands[0])
    installs = [line for line in commands if "pip install" in line]
    assert installs
    assert all("-c constraints.txt" in line for line in installs)
    assert [line for line in commands if line.startswith("USER")] == ["USER 1000"]
    copied = {path for line in commands if line.startswith("COPY") for path in line.split()[1:-1]}
    ignored = (INFRA / "Dockerfile.dockerignore").read_text().split()
    assert ignored[0] == "*"
    assert copied == {line[1:] for line in ignored if line.startswith("!")}, "what is copied, and nothing else, is sent"
    assert all((ROOT / path).exists() for path in copied)


@pytest.mark.soak
def test_the_image_has_the_package_as_it_is(tmp_path: Path) -> None:
    """Its steps that concern pip, in a virtual environment, without the dependencies. They install twice; what the
    first left behind was once taken into the second, where modules then had no content."""
    venv, app = tmp_path / "venv", tmp_path / "app"
    subprocess.run([sys.executable, "-m", "venv", venv], check=True)
    packages = next((venv / "lib").glob("python*/site-packages"))
    for old in packages.glob("setuptools*"):
        shutil.rmtree(old)
    (packages / "build.pth").write_text(next(path for path in sys.path if path.endswith("site-packages")))
    app.mkdir()
    offline = {"PIP_NO_INDEX": "1", "PIP_NO_DEPS": "1", "PIP_NO_BUILD_ISOLATION": "0"}  # which means: without
    env = os.environ | offline | {"PATH": f"{venv / 'bin'}:{os.environ['PATH']}"}
    lines = re.sub(r"\\\n", " ", (INFRA / "Dockerfile").read_text()).splitlines()
    for step, _, rest in (line.partition(" ") for line in lines):
        if step == "COPY":
            *sources, place = rest.split()
            for source in sources:
                end = app / place if len(sources) == 1 else app / source
                end.parent.mkdir(parents=True, exist_ok=True)
                if (ROOT / source).is_dir():
                    shutil.copytree(ROOT / source, end, ignore=shutil.ignore_patterns("__pycache__"))
                else:
                    shutil.copy2(ROOT / source, end)
        elif step == "RUN" and "pip" in rest:
            done = subprocess.run(["bash", "-c", rest], cwd=app, env=env, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stdout + done.stderr
    for name in ("jobs", "orchestrator"):
        for path in (ROOT / name).rglob("*.py"):
            assert (packages / path.relative_to(ROOT)).read_bytes() == path.read_bytes(), path
    assert sorted(path.name for path in app.iterdir()) == [
        "LICENSE", "README.md", "constraints.txt", "infra", "jobs", "orchestrator", "pyproject.toml", "sweeps",
    ]  # fmt: skip


def test_gpu_workers_are_pre_emptible_and_none_while_nothing_runs() -> None:
    for overlay, kind in (("gpu", "RayCluster"), ("gpu-job", "RayJob")):
        objects = sent(overlay)
        (found,) = (one["spec"] for one in objects if one["kind"] in KUBERAY)
        assert [one["kind"] for one in objects if one["kind"] in KUBERAY] == [kind]
        (group,) = found.get("rayClusterSpec", found)["workerGroupSpecs"]
        pod = group["template"]["spec"]
        assert group["replicas"] == group["minReplicas"] == 0
        assert pod["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == "1"
        assert any("spot" in key for key in pod["nodeSelector"])
        assert {one["key"] for one in pod["tolerations"]} >= set(pod["nodeSelector"]) & {"cloud.google.com/gke-spot"}
        assert pod["volumes"][1]["emptyDir"]["sizeLimit"] == "16Gi"


# For real


@pytest.fixture
def mlflow(postgres: str, tmp_path: Path) -> Iterator[str]:
    """infra/mlflow.sh with its databases in PostgreSQL and its files in a bucket. Yields its address."""
    port = free_port()
    with s3_server() as bucket, (tmp_path / "mlflow.log").open("wb") as log:
        place, _, query = bucket("mlflow").partition("?")
        endpoint = re.search("endpoint_override=([^&]+)", query)
        assert endpoint is not None
        env = os.environ | {
            "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
            "MLFLOW_BACKEND_STORE_URI": new_database(postgres),
            "MLFLOW_AUTH_DATABASE_URI": new_database(postgres),
            "MLFLOW_ARTIFACTS_DESTINATION": place,
            "MLFLOW_S3_ENDPOINT_URL": f"http://{endpoint[1]}",
            "MLFLOW_AUTH_ADMIN_USERNAME": "admin",
            "MLFLOW_AUTH_ADMIN_PASSWORD": "a-password-of-20-char",
            "MLFLOW_FLASK_SERVER_SECRET_KEY": "a-key",
            "MLFLOW_PORT": str(port),
            "MLFLOW_WORKERS": "1",
        }
        server = subprocess.Popen([INFRA / "mlflow.sh"], env=env, stdout=log, stderr=log, start_new_session=True)
        try:
            wait_for(lambda: server.poll() is not None or answers(port), seconds=90, what="MLflow's answer")
            assert server.poll() is None, (tmp_path / "mlflow.log").read_text()
            for secret in ("a-secret", "a-password-of-20-char", "a-key"):
                assert not seen_by_others(secret, server.pid), "neither command lines nor files hold it"
            yield f"http://127.0.0.1:{port}"
        finally:
            os.killpg(server.pid, signal.SIGKILL)
            server.wait()


def seen_by_others(secret: str, server: int) -> list[str]:
    """Command lines of a server's processes, and its files in memory, in which a secret stands."""
    family = [psutil.Process(server), *psutil.Process(server).children(recursive=True)]
    lines = []
    for process in family:
        with contextlib.suppress(psutil.ZombieProcess, psutil.NoSuchProcess):  # one that starts others, and has ended
            lines.append(" ".join(process.cmdline()))
    settings = Path(family[0].environ()["MLFLOW_AUTH_CONFIG_PATH"])
    return [text for text in (*lines, settings.read_text()) if secret in text]


SAYS = """#!/usr/bin/env bash
cat "$MLFLOW_AUTH_CONFIG_PATH"
printf 'word: %s\\n' "${PGPASSWORD:-}"
rm -r "$(dirname "$MLFLOW_AUTH_CONFIG_PATH")"
tr '\\0' ' ' </proc/$$/cmdline
"""


@pytest.mark.parametrize(
    ("given", "kept", "word"),
    [
        ("postgresql://me:p%40s%5Cn%25%2Fw@h/users?host=/tmp", "postgresql://me@h/users?host=/tmp", "p@s\\n%/w"),
        ("postgresql+psycopg://me:a/b\\n@h/users", "postgresql+psycopg://me@h/users", "a/b\\n"),
        ("postgresql://me@h/users", "postgresql://me@h/users", ""),
        ("sqlite:////users.db", "sqlite:////users.db", ""),
        ("postgresql://me:w0rd-1@h/users?sslmode=require", "postgresql://me@h/users?sslmode=require", "w0rd-1"),
        ("postgresql://me:100%@h/users", "postgresql://me@h/users", "100%"),
        ("postgresql+psycopg2://me:p%zz%4g%25%%41\\x41@h/users", "postgresql+psycopg2://me@h/users", "p%zz%4g%%A\\x41"),
        ("postgresql://me:a:c%C3%A9%0Ad@h:5/users?a=b", "postgresql://me@h:5/users?a=b", "a:cé"),
    ],
)
def test_the_password_of_mlflow_s_users_is_in_no_file(tmp_path: Path, given: str, kept: str, word: str) -> None:
    """`mlflow` is one that tells what it was given. Mutant check: the URL as it is in auth.ini, which stayed behind."""
    (tmp_path / "mlflow").write_text(SAYS)
    (tmp_path / "mlflow").chmod(0o755)
    names = ("BACKEND_STORE_URI", "ARTIFACTS_DESTINATION", "AUTH_ADMIN_USERNAME", "AUTH_ADMIN_PASSWORD")
    env = dict.fromkeys((f"MLFLOW_{name}" for name in (*names, "FLASK_SERVER_SECRET_KEY")), "x")
    env |= {"PATH": f"{tmp_path}:{os.environ['PATH']}", "MLFLOW_AUTH_DATABASE_URI": given}
    done = subprocess.run([INFRA / "mlflow.sh"], env=env, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 0, done.stderr
    settings, _, rest = done.stdout.partition("word: ")
    assert f"database_uri = {kept.replace('%', '%%')}\n" in settings
    assert rest.partition("\n")[0] == word
    assert not word or word not in settings + rest.partition("\n")[2]


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"MLFLOW_AUTH_DATABASE_URI": "mysql+pymysql://me:w0rd-1@h/users"}, "names no PostgreSQL"),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql://me@h/users?a=b&password=w0rd-1"}, "a password behind its '?'"),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql://me:w0rd-1@h/users", "PGPASSWORD": "w0rd-2"}, "unset it"),
        ({"MLFLOW_AUTH_DATABASE_URI": "mssql+pyodbc://h/users?UID=me&PWD=w0rd-1"}, "names no PostgreSQL"),
        (
            {"MLFLOW_AUTH_DATABASE_URI": "mssql+pyodbc:///?odbc_connect=Driver%3Da%3BPWD%3Dw0rd-1"},
            "names no PostgreSQL",
        ),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql+asyncpg://me:w0rd-1@h/users"}, "names no PostgreSQL"),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql://me:w0rd@w0rd-1@h/users"}, "write them %40"),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql://me:w0@rd/w0rd@h/users?a=b"}, "write them %40"),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql://me:w0?w0rd@h/users"}, "write them %40"),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql://m/e:w0rd-1@h/users"}, "percent-encoded"),
        ({"MLFLOW_AUTH_DATABASE_URI": "postgresql://me:w0rd%00-1@h/users"}, "%00"),
    ],
)
def test_a_password_that_cannot_be_kept_out_of_a_file_is_refused(more: dict[str, str], words: str) -> None:
    names = ("BACKEND_STORE_URI", "ARTIFACTS_DESTINATION", "AUTH_ADMIN_USERNAME", "AUTH_ADMIN_PASSWORD")
    env = os.environ | dict.fromkeys((f"MLFLOW_{name}" for name in (*names, "FLASK_SERVER_SECRET_KEY")), "x") | more
    done = subprocess.run([INFRA / "mlflow.sh"], env=env, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert words in done.stderr
    assert "w0rd" not in done.stderr


def answers(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=1) as answer:
            return bool(answer.read() == b"OK")
    except OSError:
        return False


@pytest.mark.soak
@pytest.mark.slow
def test_mlflow_lets_in_who_has_the_password_and_shows_the_sweep(
    mlflow: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A stranger sees nothing; a sweep with the password is tracked, its report in the bucket, by the server alone."""
    monkeypatch.setenv("HOME", str(tmp_path))
    for page in ("/", "/api/2.0/mlflow/experiments/get?experiment_id=0", "/ajax-api/2.0/mlflow/experiments/search"):
        with pytest.raises(urllib.error.HTTPError) as caught:
            urllib.request.urlopen(mlflow + page, timeout=10)
        assert caught.value.code == 401, page
        caught.value.close()
    with pytest.raises(TrackingUnavailable, match="wants a user and a password"):
        check(mlflow)
    (tmp_path / "sweep.toml").write_text(SWEEP)
    env = {"MLFLOW_TRACKING_URI": mlflow}
    assert "MLFLOW_TRACKING_USERNAME" in call("launch", "sweep.toml", cwd=tmp_path, code=4, env=env)
    assert not (tmp_path / "runs").exists()
    env |= {"MLFLOW_TRACKING_USERNAME": "admin", "MLFLOW_TRACKING_PASSWORD": "a-password-of-20-char"}
    keys = dict.fromkeys(("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"), "")
    assert f"[{TRIALS}/{TRIALS}]" in call("launch", "sweep.toml", cwd=tmp_path, env=env | keys)
    found = json.loads(call("verify", "small", "--json", cwd=tmp_path, env=env | keys))
    assert found["ok"], found["faults"]
    assert found["mlflow_runs"] == TRIALS
    word = base64.b64encode(b"admin:a-password-of-20-char").decode()
    ask = urllib.request.Request(
        f"{mlflow}/api/2.0/mlflow-artifacts/artifacts", headers={"Authorization": f"Basic {word}"}
    )
    with urllib.request.urlopen(ask, timeout=10) as answer:
        assert json.loads(answer.read())["files"], "its files went through the server"


def test_mlflow_does_not_start_without_what_it_needs() -> None:
    env = {name: value for name, value in os.environ.items() if not name.startswith("MLFLOW_")}
    done = subprocess.run([INFRA / "mlflow.sh"], env=env, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert "MLFLOW_BACKEND_STORE_URI is not set" in done.stderr


SRUN = """#!/usr/bin/env bash
while [[ ${1:-} == --* ]]; do shift; done
exec "$@"
"""

SCONTROL = """#!/usr/bin/env bash
if [[ $1 == show ]]; then echo "$3"; else echo "$*" >>"$SCONTROL_LOG"; fi
"""


@pytest.fixture
def slurm(tmp_path: Path) -> dict[str, str]:
    """The environment of a Slurm job of one node, this one; `srun` starts its command here."""
    for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
        path = tmp_path / "bin" / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)
        path.chmod(0o755)
    return QUICK | os.environ | {
        "PATH": f"{tmp_path}/bin:{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SLURM_JOB_ID": str(free_port()),
        "SLURM_JOB_NODELIST": socket.gethostname(),
        "SLURM_CPUS_PER_TASK": "2",
        "SLURM_GPUS_ON_NODE": "0",
        "SCONTROL_LOG": str(tmp_path / "scontrol.log"),
        "ORCHESTRATOR_HEAD_IP": "127.0.0.1",
        "RAY_TMPDIR": f"/tmp/ray-{os.getpid()}",
    }  # fmt: skip


@pytest.mark.soak
def test_a_slurm_job_that_is_told_to_end_checkpoints_and_goes_on_when_it_is_queued_again(
    slurm: dict[str, str], undisturbed: dict[str, float], tmp_path: Path
) -> None:
    (tmp_path / "sweep.toml").write_text(SWEEP)
    job = [str(INFRA / "slurm.sh"), "launch", "sweep.toml", "--offline"]
    with (tmp_path / "job.log").open("wb") as log:
        first = subprocess.Popen(job, cwd=tmp_path, env=slurm, stdout=log, stderr=log, start_new_session=True)
        said = tmp_path / "job.log"
        wait_for(lambda: first.poll() is not None or "[1/10]" in said.read_text(), what="the first trial's end")
        assert first.poll() is None, said.read_text()
        first.send_signal(signal.SIGTERM)
        first.wait(timeout=90)
    assert first.returncode == 130, said.read_text()
    assert (tmp_path / "scontrol.log").read_text() == f"requeue {slurm['SLURM_JOB_ID']}\n"
    done = subprocess.run(job, cwd=tmp_path, env=slurm, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stdout + done.stderr
    assert measured(tmp_path) == undisturbed
    time.sleep(1)
    assert not named(("raylet", "gcs_server")), "nothing of Ray is left"
    assert not Path(slurm["RAY_TMPDIR"]).exists()


def test_a_slurm_script_without_a_job_says_how_it_is_submitted(slurm: dict[str, str]) -> None:
    done = subprocess.run([INFRA / "slurm.sh"], env=slurm, capture_output=True, text=True, check=False, timeout=10)
    assert done.returncode == 2
    assert "usage: sbatch" in done.stderr
    without = {name: value for name, value in slurm.items() if name != "SLURM_JOB_ID"}
    done = subprocess.run(
        [INFRA / "slurm.sh", "launch"], env=without, capture_output=True, text=True, check=False, timeout=10
    )
    assert "submit this with sbatch" in done.stderr
