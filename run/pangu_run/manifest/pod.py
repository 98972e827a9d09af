"""The pod of one server: all its devices, one launcher."""

import argparse
from typing import Any

from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_STOPPED
from pangu_run.manifest import secret
from pangu_run.manifest.mounts import parse_mounts
from pangu_run.manifest.plan import Plan
from pangu_run.manifest.text import fill, pod_argument

TABLE_DIRECTORY = "/user/serverid/devindex/config"
"""Where Ascend Operator's rank table stands in a container, as hccl.json. Source: MindCluster's user guide."""
TABLES = "/user/mindx-dl/ranktable"
"""Directory of the servers that Ascend Operator writes rank tables to, one directory NAMESPACE.JOB each; shared.
Source: its deployment's YAML."""
DRIVER = "/usr/local/Ascend/driver"
PORT = 2222  # Ascend Operator's own; the name is fixed


def pod_spec(args: argparse.Namespace, plan: Plan, name: str, words: list[str]) -> dict[str, Any]:
    """The pod's specification.

    Args:
        name: of the job.
        words: of `pangu launch`, without those that say which servers there are.
    """
    by_operator = args.kind == "ascendjob"
    network = {"hostNetwork": True, "dnsPolicy": "ClusterFirstWithHostNet"} if args.host_network else {}
    selector = {"nodeSelector": dict(label.split("=", 1) for label in args.node_selector)} if args.node_selector else {}
    return {
        **({} if by_operator else {"restartPolicy": "Never"}),
        "terminationGracePeriodSeconds": args.grace,
        **network,
        **selector,
        "affinity": apart("job-name" if by_operator else "volcano.sh/job-name", name),
        "containers": [container(args, plan, name, words)],
        "volumes": [{"name": volume, **source} for volume, _, source in volumes(args, name)],
    }


def apart(label: str, name: str) -> dict[str, Any]:
    """Each pod of the job on a server of its own."""
    term = {
        "labelSelector": {"matchExpressions": [{"key": label, "operator": "In", "values": [name]}]},
        "topologyKey": "kubernetes.io/hostname",
    }
    return {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [term]}}


def container(args: argparse.Namespace, plan: Plan, name: str, words: list[str]) -> dict[str, Any]:
    """The container: its script starts the launcher with the words that follow it."""
    table = {"table": f"{TABLE_DIRECTORY}/hccl.json", "table_timeout": args.table_timeout}
    script = fill(f"{args.kind}_start.sh.tmpl", **table, host=EXIT_HOST, stopped=EXIT_STOPPED)
    limits = {
        args.resource: plan.devices,
        **{key: value for key, value in (("memory", args.memory), ("cpu", args.cpu)) if value},
    }
    return {
        "name": "ascend",  # Ascend Operator wants this name
        "image": args.image,
        "imagePullPolicy": "IfNotPresent",
        "command": ["/bin/bash", "-c"],
        "args": [pod_argument(word) for word in (script, "pangu", *words)],
        "env": variables(args) + ([secret.variable(name)] if plan.hosts > 1 else []),
        "ports": [{"name": "ascendjob-port", "containerPort": PORT}],
        "resources": {"limits": limits, "requests": dict(limits)},
        "volumeMounts": [
            {"name": volume, "mountPath": path} | ({"readOnly": True} if path == DRIVER else {})
            for volume, path, _ in volumes(args, "")
        ],
    }


def variables(args: argparse.Namespace) -> list[dict[str, Any]]:
    """The container's variables; the first one is Ascend Docker Runtime's."""
    own = [field("ASCEND_VISIBLE_DEVICES", f"metadata.annotations['{args.resource}']")]
    if args.host_network:
        own.append(field("HCCL_IF_IP", "status.hostIP"))  # HCCL does not find its interface otherwise
    return own + [{"name": key, "value": pod_argument(value)} for key, value in args.env.items()]


def field(name: str, path: str) -> dict[str, Any]:
    """A variable with the value of one of the pod's fields."""
    return {"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}}


def volumes(args: argparse.Namespace, name: str) -> list[tuple[str, str, dict[str, Any]]]:
    """(name, path in the container, source) of each volume."""
    shared_memory = {"medium": "Memory", "sizeLimit": args.shared_memory}
    fixed = [
        ("shm", "/dev/shm", {"emptyDir": shared_memory}),
        ("ascend-driver", DRIVER, {"hostPath": {"path": DRIVER}}),
    ]
    if args.kind == "ascendjob":  # Ascend Operator looks for a volume of that name
        fixed.append(("ranktable", TABLE_DIRECTORY, {"hostPath": {"path": f"{TABLES}/{args.namespace}.{name}"}}))
    return fixed + [
        (f"mount-{i}", path, {"hostPath": {"path": host}}) for i, (host, path) in enumerate(parse_mounts(args.mount))
    ]
