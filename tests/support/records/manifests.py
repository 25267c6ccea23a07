"""The manifests of infra/kubernetes as they are sent to a cluster, and the pods in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

INFRA = Path(__file__).parents[3] / "infra"
KUBERNETES = INFRA / "kubernetes"
OVERLAYS = sorted(path.parent.name for path in (KUBERNETES / "overlays").glob("*/kustomization.yaml"))


def loaded(path: Path) -> list[dict[str, Any]]:
    return [one for one in yaml.safe_load_all(path.read_text()) if one]


@cache
def rendered(overlay: str, root: Path = KUBERNETES) -> str:
    """What `kubectl apply -k` would send, of infra/kubernetes or of a copy."""
    kubectl = shutil.which("kubectl")
    if kubectl is None:
        pytest.skip("kubectl is not installed")
    done = subprocess.run(
        [kubectl, "kustomize", str(root / "overlays" / overlay)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def sent(overlay: str, root: Path = KUBERNETES) -> list[dict[str, Any]]:
    """The same, as new objects."""
    return [one for one in yaml.safe_load_all(rendered(overlay, root)) if one]


def templates(value: Any) -> Iterator[dict[str, Any]]:
    """Every pod template in an object."""
    if isinstance(value, dict):
        if "containers" in value.get("spec", {}) and isinstance(value["spec"], dict):
            yield value
        for inner in value.values():
            yield from templates(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from templates(inner)


def containers(objects: list[dict[str, Any]]) -> list[dict[str, Any]]:
    return [one for pod in templates(objects) for one in pod["spec"]["containers"]]
