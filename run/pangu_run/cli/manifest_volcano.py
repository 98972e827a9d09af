"""`pangu manifest volcano`: a Kubernetes job in YAML."""

from pangu_run.cli.manifest_options import ManifestParser, deliver, run_of
from pangu_run.manifest import volcano
from pangu_run.manifest.plan import plan_of, require_ascend
from pangu_run.manifest.pod import VolcanoOptions


def build_parser() -> ManifestParser:
    """Its parser."""
    parser = ManifestParser("volcano", volcano.__doc__)
    parser.add_job_name()
    parser.add_requeues()
    parser.add_argument(
        "--kind",
        choices=("ascendjob", "volcano"),
        default="ascendjob",
        help="resource: MindCluster's AscendJob or Volcano's Job",
    )
    parser.add_argument("--namespace", default="default", help="Kubernetes namespace")
    parser.add_argument("--queue", default="default", help="Volcano queue")
    parser.add_argument("--image", help="image; default: what `pangu manifest docker` makes for this plan")
    parser.add_argument(
        "--mount",
        action="append",
        metavar="HOST:PATH",
        default=[],
        help="mount the directory HOST of the servers as PATH into the pods; may be repeated",
    )
    parser.add_argument("--resource", default="huawei.com/Ascend910", help="the device plugin's name for a device")
    label = (
        "MindCluster's label of the product: ascend-910 or ascend-910b; default: from runtime.chip, or ascend-910b if"
        " that is empty"
    )
    parser.add_argument("--ring-controller", metavar="LABEL", help=label)
    parser.add_argument("--memory", metavar="SIZE", help="memory of each pod, such as 512Gi; default: no limit")
    parser.add_argument("--cpu", metavar="NUMBER", help="processors of each pod, such as 160; default: no limit")
    parser.add_argument("--shared-memory", metavar="SIZE", default="16Gi", help="size of /dev/shm")
    parser.add_argument(
        "--node-selector",
        action="append",
        metavar="KEY=VALUE",
        default=[],
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
    return parser


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    args = build_parser().read(argv)
    run = run_of(args)
    options = VolcanoOptions(
        kind=args.kind,
        job_name=args.job_name,
        max_requeues=args.max_requeues,
        namespace=args.namespace,
        queue=args.queue,
        image=args.image,
        mount=args.mount,
        resource=args.resource,
        ring_controller=args.ring_controller,
        memory=args.memory,
        cpu=args.cpu,
        shared_memory=args.shared_memory,
        node_selector=args.node_selector,
        host_network=args.host_network,
        table_timeout=args.table_timeout,
    )
    volcano.check(run, options)
    plan = plan_of(run.train_argv())
    require_ascend("volcano", plan)
    text = volcano.job(run, options, plan)
    return deliver(args, plan, text, "submit it with `kubectl apply -f {file}`", private=plan.hosts > 1)
