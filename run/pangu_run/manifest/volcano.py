"""YAML of a Kubernetes job: an AscendJob, whose operator writes the rank table, or a plain Volcano Job, whose pods find
each other by name."""

import dataclasses
import re

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_STOPPED
from pangu_run.manifest import secret
from pangu_run.manifest.mounts import parse_mounts, require_mounted, seen_config
from pangu_run.manifest.plan import Plan, image
from pangu_run.manifest.pod import VolcanoOptions, pod_spec
from pangu_run.manifest.run import Run, job_name
from pangu_run.manifest.text import fill, yaml_block

_QUANTITY = re.compile(r"\d+(\.\d+)?([kMGT]i?|m)?", re.ASCII)
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def check(run: Run, options: VolcanoOptions) -> None:
    """Raise LaunchError for values that the cluster would refuse, and for paths whose content would be lost with the
    pod."""
    for option, value in (
        ("--memory", options.memory),
        ("--cpu", options.cpu),
        ("--shared-memory", options.shared_memory),
    ):
        if value is not None and not _QUANTITY.fullmatch(value):
            raise LaunchError(f"{option} {value}: is not a quantity of Kubernetes; write it as 512Gi or 160")
    require_name("--namespace", options.namespace)
    require_name("--queue", options.queue)
    for label in options.node_selector:
        if not re.fullmatch(r"[\w./-]+=[\w.-]*", label, re.ASCII):
            raise LaunchError(
                f"--node-selector {label}: must be KEY=VALUE, a label of the servers; write it as"
                " accelerator-type=module-910b-8"
            )
    parse_mounts(options.mount)
    seen_config(run.config, options.mount)
    for option, path in (("--output-dir", run.output_dir), ("--data", run.data), ("--init-from", run.init_from)):
        if path is not None:
            require_mounted(option, path, options.mount)


def require_name(option: str, value: str) -> None:
    """Raise LaunchError for what is no name of a Kubernetes resource."""
    if not _DNS_NAME.fullmatch(value):
        raise LaunchError(
            f"{option} {value}: must be at most 63 of a-z, 0-9 and -, with no hyphen at the ends; give the name that"
            " the cluster knows"
        )


def job(run: Run, options: VolcanoOptions, plan: Plan) -> str:
    """Text of the YAML file. With several servers it contains a Secret, so only the owner should be able to read it."""
    options = dataclasses.replace(options, image=options.image or image(plan))
    name = job_name(options.job_name, run.config)
    argv = run.launch_argv(seen_config(run.config, options.mount))
    scalars = {
        "name": name,
        "namespace": options.namespace,
        "queue": options.queue,
        "ring_controller": options.ring_controller or f"ascend-{plan.product}",
    }
    return fill(
        f"{options.kind}.yaml.tmpl",
        config=run.config,
        hosts=plan.hosts,
        devices=plan.devices,
        max_requeues=options.max_requeues,
        restart_policy=restart_policy(options.max_requeues),
        pod=yaml_block(pod_spec(run, options, plan, name, argv), 10),
        workers=workers(plan.hosts, options.max_requeues) if options.kind == "ascendjob" else "",
        secret=secret.resource(name, options.namespace) if plan.hosts > 1 else "",
        host=EXIT_HOST,
        stopped=EXIT_STOPPED,
        # PyYAML ends a document that is a single value with `...`.
        **{key: yaml_block(value).removesuffix("\n...") for key, value in scalars.items()},
    )


def restart_policy(max_requeues: int) -> str:
    """Restart policy of Ascend Operator: depending on the exit code of the pod, or never."""
    return "ExitCode" if max_requeues else "Never"


def workers(hosts: int, max_requeues: int) -> str:
    """The part of an AscendJob for all servers except the first. An AscendJob for MindSpore with several devices needs
    a Scheduler; here that is the first server, which has devices, too."""
    if hosts == 1:
        return ""
    worker = {"replicas": hosts - 1, "restartPolicy": restart_policy(max_requeues)}
    return yaml_block({"Worker": worker}, 4) + "\n      template: *pod\n"
