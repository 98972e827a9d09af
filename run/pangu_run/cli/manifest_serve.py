"""`pangu manifest serve`: a server as a systemd unit, a Dockerfile, or a Deployment and Service of Kubernetes; on the
CPU."""

import argparse
import os
import shutil
import sys

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.parser import Parser
from pangu_run.cli.manifest_options import add_output, require_plain, write
from pangu_run.cli.options import MAX_S, require_between
from pangu_run.manifest import serve_docker, serve_kubernetes, serve_systemd, serving
from pangu_run.manifest.run import job_name
from pangu_run.manifest.serving import Serving
from pangu_run.manifest.volcano import require_name

KIND_OPTIONS = {
    "host": ("systemd",),
    "executable": ("systemd",),
    "api_key_file": ("systemd",),
    "base": ("docker",),
    "image": ("docker", "kubernetes"),
    "replicas": ("kubernetes",),
    "namespace": ("kubernetes",),
    "cpu": ("kubernetes",),
    "mount": ("kubernetes",),
    "claim": ("kubernetes",),
    "api_key_secret": ("kubernetes",),
}
"""Options that only some kinds have."""


def build_parser() -> Parser:
    """Its parser."""
    parser = Parser(
        prog="pangu manifest serve",
        description=__doc__,
        epilog="Options of `pangu serve` may follow after --, such as: -- --weights bfloat16",
    )
    text = "run, checkpoint or package: its absolute path, as the server sees it"
    parser.add_argument("model", metavar="MODEL", help=text)
    parser.add_argument("--kind", required=True, choices=("systemd", "docker", "kubernetes"), help="what to write")
    text = "name of the service, and of the model in requests"
    parser.add_argument("--name", default="pangu-serve", help=text)
    _add_server(parser)
    _add_systemd(parser)
    _add_containers(parser)
    add_output(parser)
    return parser


def _add_server(parser: Parser) -> None:
    group = parser.add_argument_group("the server")
    group.add_argument("--port", type=int, default=8000, help="port to listen on")
    group.add_argument("--slots", type=int, default=8, metavar="N", help="continuations that are generated at a time")
    text = "longest prompt and continuation, in tokens; 0: the model's context"
    group.add_argument("--max-length", type=int, default=0, metavar="N", help=text)
    text = "time that running requests get after a request to stop"
    group.add_argument("--drain-timeout", type=int, default=30, metavar="SECONDS", help=text)
    text = "time in which the model must be loaded"
    group.add_argument("--load-timeout", type=int, default=600, metavar="SECONDS", help=text)
    text = "configuration of the model, from which its memory is estimated"
    group.add_argument("--config", metavar="NAME", help=text)
    text = "limit of memory, such as 8Gi; default: estimated from --config; Kubernetes needs either"
    group.add_argument("--memory", metavar="SIZE", help=text)
    group.add_argument("--no-api-key", action="store_true", help="answer everybody who reaches the server")


def _add_systemd(parser: Parser) -> None:
    group = parser.add_argument_group("systemd")
    group.add_argument("--host", help="address to listen on; default: 127.0.0.1")
    text = "the installed `pangu`; default: the one that runs this command"
    group.add_argument("--executable", metavar="FILE", help=text)
    text = "file with one API key a line; default: /etc/pangu/api-keys"
    group.add_argument("--api-key-file", metavar="FILE", help=text)


def _add_containers(parser: Parser) -> None:
    group = parser.add_argument_group("docker and kubernetes")
    text = f"docker: base image with apt-get and Python; default: {serve_docker.CPU_BASE}"
    group.add_argument("--base", metavar="IMAGE", help=text)
    group.add_argument("--image", help="name of the image; default: pangu-serve and the version")
    group.add_argument("--replicas", type=int, metavar="N", help="kubernetes: number of servers; default: 1")
    group.add_argument("--namespace", help="kubernetes: namespace; default: default")
    group.add_argument("--cpu", type=int, metavar="N", help="kubernetes: processors of each server; default: 4")
    text = "kubernetes: show the directory HOST of the nodes as PATH; may be given several times"
    group.add_argument("--mount", action="append", metavar="HOST:PATH", help=text)
    text = "kubernetes: show a PersistentVolumeClaim as PATH; may be given several times"
    group.add_argument("--claim", action="append", metavar="NAME:PATH", help=text)
    text = "kubernetes: Secret whose key `api-keys` holds one API key a line; default: NAME-api-keys"
    group.add_argument("--api-key-secret", metavar="NAME", help=text)


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    at = argv.index("--") if "--" in argv else len(argv)
    args = build_parser().parse_args(argv[:at])
    args.extra = argv[at + 1 :]
    require_plain(args)
    _check(args)
    text, submit, image = _MAKERS[args.kind](args, _serving(args))
    known = {"kind": args.kind} | ({"image": image} if image else {})
    return write(args, text, submit, known)


def _check(args: argparse.Namespace) -> None:
    for name, kinds in KIND_OPTIONS.items():
        if getattr(args, name) is not None and args.kind not in kinds:
            option = f"--{name.replace('_', '-')}"
            raise LaunchError(
                f"{option}: is no option of --kind {args.kind}; must be {' or '.join(kinds)}; leave it out"
            )
    for option, value, least, most in (
        ("--port", args.port, 1 if args.kind == "systemd" else 1024, 65535),  # without root no port below
        ("--slots", args.slots, 1, 100_000),
        ("--max-length", args.max_length, 0, 10_000_000),
        ("--drain-timeout", args.drain_timeout, 1, MAX_S),
        ("--load-timeout", args.load_timeout, 1, MAX_S),
        ("--replicas", 1 if args.replicas is None else args.replicas, 0, 10_000),
        ("--cpu", 1 if args.cpu is None else args.cpu, 1, 10_000),
    ):
        require_between(option, value, least, most)
    job_name(args.name, "", option="--name")
    if args.namespace is not None:
        require_name("--namespace", args.namespace)
    if args.api_key_secret is not None:
        require_name("--api-key-secret", args.api_key_secret)
    if args.no_api_key and (args.api_key_file or args.api_key_secret):
        raise LaunchError("--no-api-key: another option names the keys; leave one of the two out")


def _serving(args: argparse.Namespace) -> Serving:
    """The server that the options describe."""
    keys = {
        "systemd": serve_systemd.key_path(),
        "docker": serve_docker.KEYS,
        "kubernetes": f"{serve_kubernetes.KEYS}/{serve_kubernetes.KEY}",
    }
    host = (args.host or "127.0.0.1") if args.kind == "systemd" else "0.0.0.0"
    found = Serving(
        model=args.model,
        name=args.name,
        host=host,
        port=args.port,
        slots=args.slots,
        max_length=args.max_length,
        drain_timeout=args.drain_timeout,
        load_timeout=args.load_timeout,
        api_key_file=None if args.no_api_key else keys[args.kind],
        extra=args.extra,
        memory=args.memory or (serving.memory_of(args.config, args.slots, args.max_length) if args.config else None),
    )
    serving.check(found)
    return found


def _systemd(args: argparse.Namespace, found: Serving) -> tuple[str, str, str]:
    executable = (
        args.executable or shutil.which("pangu", path=os.path.dirname(sys.executable)) or "/opt/pangu/bin/pangu"
    )
    keys = None if args.no_api_key else args.api_key_file or "/etc/pangu/api-keys"
    text = serve_systemd.unit(found, executable, keys)
    install = f"install --mode 644 {{file}} /etc/systemd/system/{args.name}.service && systemctl daemon-reload"
    return text, f"start it with `{install} && systemctl enable --now {args.name}`", ""


def _docker(args: argparse.Namespace, found: Serving) -> tuple[str, str, str]:
    image = args.image or serve_docker.image()
    build = f"pip wheel --no-deps --wheel-dir dist . && docker build --file {{file}} --tag {image} ."
    return serve_docker.dockerfile(found, args.base, image), f"build it with `{build}`", image


def _kubernetes(args: argparse.Namespace, found: Serving) -> tuple[str, str, str]:
    if found.memory is None:
        raise LaunchError("--config, --memory: Kubernetes needs the server's memory; give one of the two")
    secret = None if args.no_api_key else args.api_key_secret or f"{args.name}-api-keys"
    options = serve_kubernetes.KubernetesOptions(
        image=args.image or serve_docker.image(),
        namespace=args.namespace or "default",
        replicas=1 if args.replicas is None else args.replicas,
        cpu=4 if args.cpu is None else args.cpu,
        mount=args.mount or [],
        claim=args.claim or [],
        api_key_secret=secret,
    )
    return serve_kubernetes.resources(found, options), "start it with `kubectl apply -f {file}`", options.image


_MAKERS = {"systemd": _systemd, "docker": _docker, "kubernetes": _kubernetes}
