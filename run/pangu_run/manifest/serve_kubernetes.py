"""Deployment and Service of a server in Kubernetes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from pangu_ms.core.errors import LaunchError
from pangu_run.manifest.mounts import parse_mounts, require_mounted
from pangu_run.manifest.run import job_name
from pangu_run.manifest.serving import Serving
from pangu_run.manifest.text import pod_argument, yaml_block

KEYS = "/etc/pangu/keys"
"""Directory of the Secret with the API keys."""
KEY = "api-keys"
"""The Secret's key: one API key a line, as for --api-key-file."""
BEFORE_STOP_S = 5
"""Seconds before SIGTERM, in which the cluster's proxies learn that the pod gets no new requests."""
USER = 1000


@dataclass(frozen=True)
class KubernetesOptions:
    """What of the cluster the server gets. Each field corresponds to the option with its name."""

    image: str
    namespace: str
    replicas: int
    cpu: int
    mount: Sequence[str]
    """HOST:PATH"""
    claim: Sequence[str]
    """NAME:PATH"""
    api_key_secret: str | None


def resources(serving: Serving, options: KubernetesOptions) -> str:
    """Text of the YAML file.

    Raises:
        LaunchError: the model is in no volume, or a name is wrong.
    """
    job_name(serving.name, "")
    labels = {"app.kubernetes.io/name": "pangu-serve", "app.kubernetes.io/instance": serving.name}
    metadata = {"name": serving.name, "namespace": options.namespace, "labels": labels}
    deployment = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": metadata,
        "spec": {
            "replicas": options.replicas,
            "selector": {"matchLabels": labels},
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0, "maxSurge": 1}},
            "progressDeadlineSeconds": serving.load_timeout + 300,  # and the image must be fetched
            "template": {"metadata": {"labels": labels}, "spec": pod(serving, options)},
        },
    }
    port = {"name": "http", "port": serving.port, "targetPort": "http", "protocol": "TCP"}
    service = {
        "apiVersion": "v1",
        "kind": "Service",
        "metadata": metadata,
        "spec": {"type": "ClusterIP", "selector": labels, "ports": [port]},
    }
    head = "# `pangu serve` in Kubernetes. Made by `pangu manifest serve --kind kubernetes`.\n"
    if options.api_key_secret:
        names = f"{options.api_key_secret} --namespace {options.namespace}"
        head += f"# Keys:  kubectl create secret generic {names} --from-file={KEY}=FILE   (a key a line)\n"
    return f"{head}{yaml_block(deployment)}\n---\n{yaml_block(service)}\n"


def pod(serving: Serving, options: KubernetesOptions) -> dict[str, Any]:
    """The pod's specification."""
    found = volumes(serving, options)
    return {
        "terminationGracePeriodSeconds": BEFORE_STOP_S + serving.stop_seconds,
        "automountServiceAccountToken": False,
        "enableServiceLinks": False,
        "securityContext": {
            "runAsNonRoot": True,
            "runAsUser": USER,
            "runAsGroup": USER,
            "fsGroup": USER,
            "seccompProfile": {"type": "RuntimeDefault"},
        },
        "containers": [container(serving, options, found)],
        "volumes": [{"name": name, **source} for name, _, source in found],
    }


def container(
    serving: Serving, options: KubernetesOptions, found: list[tuple[str, str, dict[str, Any]]]
) -> dict[str, Any]:
    """The container."""
    limits = {"cpu": str(options.cpu), "memory": serving.memory}
    written = ("tmp", "cache")
    return {
        "name": "serve",
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "args": [pod_argument(word) for word in serving.argv()],  # the image's entry is `pangu serve`
        "env": [
            {"name": "OMP_NUM_THREADS", "value": str(options.cpu)},  # not as many as the server has cores
            {"name": "XDG_CACHE_HOME", "value": "/cache"},
            {"name": "HOME", "value": "/cache"},
            {"name": "MS_OM_PATH", "value": "/tmp"},
        ],
        "workingDir": "/tmp",
        "ports": [{"name": "http", "containerPort": serving.port, "protocol": "TCP"}],
        "resources": {"requests": limits, "limits": dict(limits)},
        # Liveness begins when the startup probe has succeeded: when the model is loaded.
        "startupProbe": probe("/ready", period=5, failures=max(1, -(-serving.load_timeout // 5))),
        "livenessProbe": probe("/health", period=10, failures=6),
        "readinessProbe": probe("/ready", period=5, failures=1),
        "lifecycle": {"preStop": {"exec": {"command": ["sleep", str(BEFORE_STOP_S)]}}},
        "securityContext": {
            "allowPrivilegeEscalation": False,
            "readOnlyRootFilesystem": True,
            "capabilities": {"drop": ["ALL"]},
        },
        "volumeMounts": [
            {"name": name, "mountPath": path} | ({} if name in written else {"readOnly": True})
            for name, path, _ in found
        ],
    }


def probe(path: str, period: int, failures: int) -> dict[str, Any]:
    """A probe; the paths need no API key."""
    return {
        "httpGet": {"path": path, "port": "http"},
        "periodSeconds": period,
        "timeoutSeconds": 5,
        "failureThreshold": failures,
    }


def volumes(serving: Serving, options: KubernetesOptions) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, path in the container, source) of each volume.

    Raises:
        LaunchError: the model is in none of those that the user names.
    """
    found: list[tuple[str, str, dict[str, Any]]] = [
        ("tmp", "/tmp", {"emptyDir": {}}),
        ("cache", "/cache", {"emptyDir": {}}),
    ]
    if options.api_key_secret:
        secret = {"secretName": options.api_key_secret, "defaultMode": 0o440}
        found.append(("api-keys", KEYS, {"secret": secret}))
    claims = parse_claims(options.claim)
    for i, (host, path) in enumerate(parse_mounts(options.mount)):
        found.append((f"mount-{i}", path, {"hostPath": {"path": host, "type": "Directory"}}))
    for i, (name, path) in enumerate(claims):
        found.append((f"claim-{i}", path, {"persistentVolumeClaim": {"claimName": name, "readOnly": True}}))
    paths = [path for _, path, _ in found]
    for path in paths:
        if paths.count(path) > 1:
            raise LaunchError(f"{path}: is mounted twice; a path shows one directory; leave one out")
    if not any(PurePosixPath(serving.model).is_relative_to(path) for _, path in claims):
        require_mounted("MODEL", serving.model, options.mount)
    return found


def parse_claims(claims: Sequence[str]) -> list[tuple[str, str]]:
    """(NAME, PATH) of each NAME:PATH.

    Raises:
        LaunchError: a value is not of that form.
    """
    pairs = []
    for claim in claims:
        name, _, path = claim.partition(":")
        if not name or "/" in name or not path.startswith("/") or ":" in path:
            raise LaunchError(
                f"--claim {claim}: must be NAME:PATH, a claim and an absolute path; write it as models:/models"
            )
        pairs.append((name, path))
    return pairs
