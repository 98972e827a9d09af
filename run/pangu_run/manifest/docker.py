"""Dockerfile of an image that starts the run unless told otherwise: on CANN's base image for Ascend, on a small one
where runtime.device is CPU."""

import os
import shlex
from pathlib import Path

from pangu_ms.core.errors import LaunchError
from pangu_run.manifest.options import NOTHING, Parser, deliver, launch_words, train_words
from pangu_run.manifest.plan import FIRST, Plan, image, plan_of, version
from pangu_run.manifest.text import docker_list, docker_literal, docker_value, fill

ASCEND_BASE = "quay.io/ascend/cann:9.0.0-{product}-ubuntu22.04-py3.11"
CPU_BASE = "python:3.11-slim-bookworm"
MINDSPORE, MINDFORMERS = "2.9.0", "1.9.0"
"""The pair for CANN 9.0. Source: MindFormers' version table."""
CONFIG = "/etc/pangu/config.yaml"
"""Where the image has the configuration, if it is a file."""


def main(argv: list[str]) -> int:
    """Entry of the kind; returns the exit code."""
    parser = Parser("docker", __doc__, output_dir="/output")
    bases = f"{ASCEND_BASE.format(product='910b')}, or -910- where runtime.chip is {FIRST}; for the CPU {CPU_BASE}"
    parser.add_argument(
        "--base", metavar="IMAGE", default=NOTHING, help=f"base image with apt-get and Python; default: {bases}"
    )
    parser.add_argument("--mindspore", default=MINDSPORE, metavar="VERSION", help="version to install")
    parser.add_argument(
        "--mindformers",
        default=MINDFORMERS,
        metavar="VERSION",
        help="version to install; each goes with one MindSpore and one CANN",
    )
    args = parser.read(argv)
    plan = plan_of(train_words(args))
    number = version()
    tag = image(plan)
    config = CONFIG if Path(args.config).is_file() else args.config
    text = fill(
        "dockerfile.tmpl",
        config=args.config,
        base=docker_value(args.base or (ASCEND_BASE.format(product=plan.product) if plan.on_ascend else CPU_BASE)),
        packages="tini" if plan.on_ascend else "g++ tini",  # g++ builds our operators for the CPU; CANN's image has one
        group="HwHiAiUser" if plan.on_ascend else "pangu",
        wheel=f"pangu_ms-{number}-py3-none-any.whl",
        mindspore=docker_value(args.mindspore),
        mindformers=docker_value(args.mindformers),
        environment="".join(f"ENV {name}={docker_value(value)}\n" for name, value in args.env.items()),
        copy=copy_config(args.config) if config == CONFIG else "",
        output_dir=shlex.quote(args.output_dir),
        run=how_to_run(plan, args.grace, tag, args.output_dir),
        tag=tag,
        command=docker_list(["launch", *launch_words(args, config)]),
    )
    return deliver(
        args,
        plan,
        text,
        f"build it with `pip wheel --no-deps --wheel-dir dist . && docker build --file {{file}} --tag {tag} .`",
    )


def copy_config(config: str) -> str:
    """Instruction that puts a configuration file into the image.

    Raises:
        LaunchError: it is not below the present directory, which `docker build` sends.
    """
    relative = os.path.relpath(config)
    if relative.startswith(".."):
        raise LaunchError(
            f"--config {config}: lies outside {Path.cwd()}, which `docker build` copies from; must be below it; copy"
            " the file there"
        )
    return f"COPY {docker_list([docker_literal(relative), CONFIG])}\n"


def how_to_run(plan: Plan, grace: int, tag: str, output_dir: str) -> str:
    """Comment line with the `docker run` that suits the plan's devices."""
    if plan.hosts > 1:
        return (
            f"# Run:   on {plan.hosts} servers, by what `pangu manifest slurm`, `volcano` or `modelarts` writes: they"
            " say which servers there are"
        )
    devices = [f"/dev/davinci{i}" for i in range(plan.devices)] + [
        "/dev/davinci_manager",
        "/dev/devmm_svm",
        "/dev/hisi_hdc",
    ]
    words = [w for device in devices for w in ("--device", device)] + [
        "--volume",
        "/usr/local/Ascend/driver:/usr/local/Ascend/driver:ro",
    ]
    start = [
        "docker",
        "run",
        "--rm",
        "--stop-timeout",
        str(grace),
        "--shm-size",
        "16g",
        "--volume",
        f"DIR:{output_dir}",
    ]
    return f"# Run:   {shlex.join([*start, *(words if plan.on_ascend else []), tag])}"
