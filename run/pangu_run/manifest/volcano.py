"""Job of a Kubernetes cluster in YAML: an AscendJob, whose operator writes the rank table, or a plain Volcano Job,
whose pods find each other by name."""

import re
from typing import Any

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.exit_codes import EXIT_HOST, EXIT_STOPPED
from pangu_run.manifest import secret
from pangu_run.manifest.mounts import parse_mounts, require_mounted, seen_config
from pangu_run.manifest.options import NOTHING, Parser, deliver, job_name, launch_words, train_words
from pangu_run.manifest.plan import image, plan_of, require_ascend
from pangu_run.manifest.pod import pod_spec
from pangu_run.manifest.text import fill, yaml_block

_QUANTITY = re.compile(r"\d+(\.\d+)?([kMGT]i?|m)?", re.ASCII)
_DNS_NAME = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    parser = Parser("volcano", __doc__)
    parser.add_job_name()
    parser.add_requeues()
    add_options(parser)
    args = parser.read(argv)
    check(args)
    plan = plan_of(train_words(args))
    require_ascend("volcano", plan)
    args.ring_controller = args.ring_controller or f"ascend-{plan.product}"
    args.image = args.image or image(plan)
    words = launch_words(args, seen_config(args.config, args.mount))
    name = job_name(args)
    scalars = {"name": name, "namespace": args.namespace, "queue": args.queue, "ring_controller": args.ring_controller}
    text = fill(
        f"{args.kind}.yaml.tmpl",
        config=args.config,
        hosts=plan.hosts,
        devices=plan.devices,
        max_requeues=args.max_requeues,
        restart_policy="ExitCode" if args.max_requeues else "Never",
        pod=yaml_block(pod_spec(args, plan, name, words), 10),
        workers=workers(plan.hosts, args.max_requeues) if args.kind == "ascendjob" else "",
        secret=secret.resource(name, args.namespace) if plan.hosts > 1 else "",
        host=EXIT_HOST,
        stopped=EXIT_STOPPED,
        **{key: yaml_block(value).removesuffix("\n...") for key, value in scalars.items()},
    )
    return deliver(args, plan, text, "submit it with `kubectl apply -f {file}`", private=plan.hosts > 1)


def add_options(parser: Parser) -> None:
    """Options of this kind."""
    parser.add_argument(
        "--kind",
        choices=("ascendjob", "volcano"),
        default="ascendjob",
        help="resource: MindCluster's AscendJob or Volcano's Job",
    )
    parser.add_argument("--namespace", default="default", help="Kubernetes namespace")
    parser.add_argument("--queue", default="default", help="Volcano queue")
    parser.add_argument(
        "--image", default=NOTHING, help="image; default: what `pangu manifest docker` makes for this plan"
    )
    parser.add_argument(
        "--mount",
        action="append",
        metavar="HOST:PATH",
        default=NOTHING,
        help="HOST of the servers is PATH in the pods; may be repeated",
    )
    parser.add_argument("--resource", default="huawei.com/Ascend910", help="what the device plugin calls a device")
    label = (
        "MindCluster's label of the product: ascend-910 or ascend-910b; default: by runtime.chip, and ascend-910b where"
        " it is not said"
    )
    parser.add_argument("--ring-controller", default=NOTHING, metavar="LABEL", help=label)
    parser.add_argument(
        "--memory", metavar="SIZE", default=NOTHING, help="memory of each pod, such as 512Gi; default: no limit"
    )
    parser.add_argument(
        "--cpu", metavar="NUMBER", default=NOTHING, help="processors of each pod, such as 160; default: no limit"
    )
    parser.add_argument("--shared-memory", metavar="SIZE", default="16Gi", help="size of /dev/shm")
    parser.add_argument(
        "--node-selector",
        action="append",
        metavar="KEY=VALUE",
        default=NOTHING,
        help="label of the servers; may be given several times",
    )
    parser.add_argument("--host-network", action="store_true", help="pods have the network of their server")
    parser.add_argument(
        "--table-timeout",
        type=int,
        default=1800,
        metavar="SECONDS",
        help="how long an AscendJob waits for its complete rank table",
    )


def check(args: Any) -> None:
    """Raise LaunchError for what the cluster would refuse, and for places that would go with the pod."""
    for option, value in (("--memory", args.memory), ("--cpu", args.cpu), ("--shared-memory", args.shared_memory)):
        if value is not None and not _QUANTITY.fullmatch(value):
            raise LaunchError(f"{option} {value}: is not a quantity of Kubernetes; write it as 512Gi or 160")
    for option, value in (("--namespace", args.namespace), ("--queue", args.queue)):
        if not _DNS_NAME.fullmatch(value):
            raise LaunchError(
                f"{option} {value}: must be at most 63 of a-z, 0-9 and -, with no hyphen at the ends; give the name"
                " that the cluster knows"
            )
    for label in args.node_selector:
        if not re.fullmatch(r"[\w./-]+=[\w.-]*", label, re.ASCII):
            raise LaunchError(
                f"--node-selector {label}: must be KEY=VALUE, a label of the servers; write it as"
                " accelerator-type=module-910b-8"
            )
    parse_mounts(args.mount)
    seen_config(args.config, args.mount)
    for option, path in (("--output-dir", args.output_dir), ("--data", args.data), ("--init-from", args.init_from)):
        if path is not None:
            require_mounted(option, path, args.mount)


def workers(hosts: int, max_requeues: int) -> str:
    """The part of an AscendJob for all servers but the first; a mindspore AscendJob of several devices needs a
    Scheduler, which has devices here."""
    if hosts == 1:
        return ""
    worker = {"replicas": hosts - 1, "restartPolicy": "ExitCode" if max_requeues else "Never"}
    return yaml_block({"Worker": worker}, 4) + "\n      template: *pod\n"
