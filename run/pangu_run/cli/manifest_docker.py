"""`pangu manifest docker`: a Dockerfile."""

from pangu_run.cli.manifest_options import ManifestParser, deliver, run_of
from pangu_run.manifest import docker
from pangu_run.manifest.plan import FIRST, image, plan_of


def build_parser() -> ManifestParser:
    """Its parser."""
    parser = ManifestParser("docker", docker.__doc__, output_dir="/output")
    ascend = docker.ASCEND_BASE.format(product="910b")
    bases = f"{ascend}, or -910- where runtime.chip is {FIRST}; for the CPU {docker.CPU_BASE}"
    parser.add_argument("--base", metavar="IMAGE", help=f"base image with apt-get and Python; default: {bases}")
    parser.add_argument("--mindspore", default=docker.MINDSPORE, metavar="VERSION", help="version to install")
    parser.add_argument(
        "--mindformers",
        default=docker.MINDFORMERS,
        metavar="VERSION",
        help="version to install; each goes with one MindSpore and one CANN",
    )
    return parser


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    args = build_parser().read(argv)
    run, options = run_of(args), docker.DockerOptions(args.base, args.mindspore, args.mindformers)
    plan = plan_of(run.train_argv())
    text = docker.dockerfile(run, options, plan)
    build = f"pip wheel --no-deps --wheel-dir dist . && docker build --file {{file}} --tag {image(plan)} ."
    return deliver(args, plan, text, f"build it with `{build}`")
