"""Dockerfile of an image whose default command starts the run. It is based on CANN's image for Ascend, and on a small
image if runtime.device is CPU."""

import os
import shlex
from dataclasses import dataclass
from pathlib import Path

from pangu_ms.core.errors import LaunchError
from pangu_run.manifest.plan import Plan, image, version
from pangu_run.manifest.run import Run
from pangu_run.manifest.text import docker_list, docker_literal, docker_value, fill

ASCEND_BASE = "quay.io/ascend/cann:9.0.0-{product}-ubuntu22.04-py3.11"
CPU_BASE = "python:3.11-slim-bookworm"
MINDSPORE, MINDFORMERS = "2.9.0", "1.9.0"
"""The pair for CANN 9.0. Source: MindFormers' version table."""
CONFIG = "/etc/pangu/config.yaml"
"""Path of the configuration in the image, if the configuration is a file."""
DRIVER = "/usr/local/Ascend/driver"


@dataclass(frozen=True)
class DockerOptions:
    """Each field is the option of `pangu manifest docker` of that name."""

    base: str | None
    mindspore: str
    mindformers: str


def dockerfile(run: Run, options: DockerOptions, plan: Plan) -> str:
    """Text of the Dockerfile.

    Raises:
        LaunchError: the configuration is a file outside the build context of `docker build`.
    """
    tag = image(plan)
    config = CONFIG if Path(run.config).is_file() else run.config
    default_base = ASCEND_BASE.format(product=plan.product) if plan.on_ascend else CPU_BASE
    return fill(
        "dockerfile.tmpl",
        config=run.config,
        base=docker_value(options.base or default_base),
        packages="tini" if plan.on_ascend else "g++ tini",  # g++ builds our operators for the CPU; CANN's image has one
        group="HwHiAiUser" if plan.on_ascend else "pangu",
        wheel=f"pangu_ms-{version()}-py3-none-any.whl",
        mindspore=docker_value(options.mindspore),
        mindformers=docker_value(options.mindformers),
        environment="".join(f"ENV {name}={docker_value(value)}\n" for name, value in run.environment.items()),
        copy=copy_config(run.config) if config == CONFIG else "",
        output_dir=shlex.quote(run.output_dir),
        run=how_to_run(plan, run.grace, tag, run.output_dir),
        tag=tag,
        command=docker_list(["launch", *run.launch_argv(config)]),
    )


def copy_config(config: str) -> str:
    """Instruction that copies a configuration file into the image.

    Raises:
        LaunchError: the file is not in the current directory, which is the build context.
    """
    relative = os.path.relpath(config)
    if relative.startswith(".."):
        raise LaunchError(
            f"--config {config}: lies outside {Path.cwd()}, which `docker build` copies from; must be below it; copy"
            " the file there"
        )
    return f"COPY {docker_list([docker_literal(relative), CONFIG])}\n"


def how_to_run(plan: Plan, grace: int, tag: str, output_dir: str) -> str:
    """Comment line with the `docker run` command for the devices of the plan."""
    if plan.hosts > 1:
        return (
            f"# Run:   on {plan.hosts} servers, by what `pangu manifest slurm`, `volcano` or `modelarts` writes: they"
            " say which servers there are"
        )
    command = ["docker", "run", "--rm", "--stop-timeout", str(grace), "--shm-size", "16g"]
    command += ["--volume", f"DIR:{output_dir}"]
    if plan.on_ascend:
        for name in (*(f"davinci{i}" for i in range(plan.devices)), "davinci_manager", "devmm_svm", "hisi_hdc"):
            command += ["--device", f"/dev/{name}"]
        command += ["--volume", f"{DRIVER}:{DRIVER}:ro"]
    return f"# Run:   {shlex.join([*command, tag])}"
