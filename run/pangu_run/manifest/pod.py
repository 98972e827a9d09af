"""The pod of one server, with all devices of the server and one launcher."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_STOPPED
from pangu_run.manifest import secret
from pangu_run.manifest.mounts import parse_mounts
from pangu_run.manifest.plan import Plan
from pangu_run.manifest.run import Run
from pangu_run.manifest.text import fill, pod_argument

TABLE_DIRECTORY = "/user/serverid/devindex/config"
"""Directory of Ascend Operator's rank table, hccl.json, in a container. Source: MindCluster's user guide."""
TABLES = "/user/mindx-dl/ranktable"
"""Shared directory of the servers to which Ascend Operator writes rank tables, in one directory NAMESPACE.JOB each.
Source: its deployment's YAML."""
DRIVER = "/usr/local/Ascend/driver"
PORT = 2222
"""Port of Ascend Operator, which has a fixed name, too."""


@dataclass(frozen=True)
class VolcanoOptions:
    """What the job requests from the cluster. Each field corresponds to the option of `pangu manifest volcano` with its
    name."""

    kind: str
    """ascendjob | volcano"""
    job_name: str | None
    max_requeues: int
    namespace: str
    queue: str
    image: str | None
    mount: Sequence[str]
    """HOST:PATH"""
    resource: str
    ring_controller: str | None
    memory: str | None
    cpu: str | None
    shared_memory: str
    node_selector: Sequence[str]
    """KEY=VALUE"""
    host_network: bool
    table_timeout: int
    """Seconds."""


def pod_spec(run: Run, options: VolcanoOptions, plan: Plan, name: str, argv: list[str]) -> dict[str, Any]:
    """The pod's specification.

    Args:
        name: name of the job.
        argv: arguments of `pangu launch`, without those that name the servers.
    """
    by_operator = options.kind == "ascendjob"
    network = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if options.host_network else {}
    selector = (
        {"nodeSelector": dict(label.split("=", 1) for label in options.node_selector)} if options.node_selector else {}
    )
    return {
        **({} if by_operator else {"restartPolicy": "Never"}),
        "terminationGracePeriodSeconds": run.grace,
        **network,
        **selector,
        "affinity": apart("job-name" if by_operator else "volcano.sh/job-name", name),
        "containers": [container(run, options, plan, name, argv)],
        "volumes": [{"name": volume, **source} for volume, _, source in volumes(options, name)],
    }


def apart(label: str, name: str) -> dict[str, Any]:
    """The affinity that puts each pod of the job on a server of its own."""
    term = {
        "labelSelector": {"matchExpressions": [{"key": label, "operator": "In", "values": [name]}]},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def container(run: Run, options: VolcanoOptions, plan: Plan, name: str, argv: list[str]) -> dict[str, Any]:
    """The container. Its script starts the launcher with the arguments after the script."""
    table = {"table": f"{TABLE_DIRECTORY}/hccl.json", "table_timeout": options.table_timeout}
    script = fill(f"{options.kind}_start.sh.tmpl", **table, host=EXIT_HOST, stopped=EXIT_STOPPED)
    limits = {
        options.resource: plan.devices,
        **{key: value for key, value in (("memory", options.memory), ("cpu", options.cpu)) if value},
    }
    return {
        "name": "ascend",  # the name that Ascend Operator requires
        "image": options.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/bash", "-c"],
        "args": [pod_argument(word) for word in (script, "pangu", *argv)],
        "env": variables(run, options) + ([secret.variable(name)] if plan.hosts > 1 else []),
        "ports": [{"name": "ascendjob-port", "containerPort": PORT}],
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": [
            {"name": volume, "mountPath": path} | ({"readOnly": True} if path == DRIVER else {})
            for volume, path, _ in volumes(options, "")
        ],
    }


def variables(run: Run, options: VolcanoOptions) -> list[dict[str, Any]]:
    """Environment variables of the container; the first one is read by Ascend Docker Runtime."""
    own = [field("ASCEND_VISIBLE_DEVICES", f"metadata.annotations['{options.resource}']")]
    if options.host_network:
        own.append(field("HCCL_IF_IP", "status.hostIP"))  # without it HCCL does not find its interface
    return own + [{"name": key, "value": pod_argument(value)} for key, value in run.environment.items()]


def field(name: str, path: str) -> dict[str, Any]:
    """A variable whose value is a field of the pod."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def volumes(options: VolcanoOptions, name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, path in the container, source) of each volume."""
    shared_memory = {"medium": "Memory", "sizeLimit": options.shared_memory}
    fixed = [
        ("shm", "/dev/shm", {"emptyDir": shared_memory}),
        ("ascend-driver", DRIVER, {"hostPath": {"path": DRIVER}}),
    ]
    if options.kind == "ascendjob":  # Ascend Operator searches for a volume with this name
        fixed.append(("ranktable", TABLE_DIRECTORY, {"hostPath": {"path": f"{TABLES}/{options.namespace}.{name}"}}))
    return fixed + [
        (f"mount-{i}", path, {"hostPath": {"path": host}}) for i, (host, path) in enumerate(parse_mounts(options.mount))
    ]
