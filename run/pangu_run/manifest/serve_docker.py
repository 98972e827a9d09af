"""Dockerfile of a server on the CPU: no compiler in the image, no root, a health check."""

import shlex

from pangu_run.manifest.docker import CPU_BASE, MINDFORMERS, MINDSPORE
from pangu_run.manifest.plan import version
from pangu_run.manifest.serving import Serving
from pangu_run.manifest.text import docker_list, docker_value, fill

KEYS = "/run/secrets/api-keys"
"""Where a container finds the API keys."""


def image() -> str:
    """Name of the image that the Dockerfile builds."""
    return f"pangu-serve:{version()}"


def dockerfile(serving: Serving, base: str | None, tag: str) -> str:
    """Text of the Dockerfile; the command of its image serves the model that is mounted at `serving.model`."""
    probe = f"import urllib.request as r; r.urlopen('http://127.0.0.1:{serving.port}/health', timeout=4)"
    return fill(
        "serve_dockerfile.tmpl",
        base=docker_value(base or CPU_BASE),
        wheel=f"pangu_ms-{version()}-py3-none-any.whl",
        mindspore=docker_value(MINDSPORE),
        mindformers=docker_value(MINDFORMERS),
        port=serving.port,
        load=serving.load_timeout,
        health=docker_list(["/opt/pangu/bin/python", "-c", probe]),
        run=f"# Run:   {how_to_run(serving, tag)}",
        tag=tag,
        command=docker_list(serving.argv()),
    )


def how_to_run(serving: Serving, tag: str) -> str:
    """The `docker run` command. The container's user must be able to read model and keys."""
    command = ["docker", "run", "--rm", "--read-only", "--tmpfs", "/tmp", "--tmpfs", "/home/pangu:uid=1000,gid=1000"]
    command += ["--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--stop-timeout", str(serving.stop_seconds)]
    if serving.memory:
        command += ["--memory", serving.memory.removesuffix("i").lower()]
    command += ["--publish", f"127.0.0.1:{serving.port}:{serving.port}", "--volume", f"DIR:{serving.model}:ro"]
    if serving.api_key_file:
        command += ["--volume", f"KEYS:{serving.api_key_file}:ro"]
    return shlex.join([*command, tag])
