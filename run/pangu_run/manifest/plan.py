"""The part of a configuration that a manifest needs: the number of servers, and the number of devices on each."""

import collections
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import python_command, python_environment
from pangu_run import program
from pangu_run.program import Program

FIRST = "ascend910"
PRODUCTS = {FIRST: "910", "ascend910b": "910b", "": "910b"}
"""Product name by runtime.chip. If the configuration does not name a chip, the 910B is used, the only one that
MindSpore documents."""


@dataclass(frozen=True)
class Plan:
    """The devices that a run needs."""

    hosts: int
    devices: int
    """Number of devices on each host."""
    on_ascend: bool
    chip: str = ""
    """runtime.chip; see PRODUCTS."""

    @property
    def product(self) -> str:
        """Name of the device in image tags and labels."""
        return PRODUCTS[self.chip]


def plan_of(argv: Sequence[str]) -> Plan:
    """The plan of `pangu train ARGV`.

    Raises:
        LaunchError: the configuration is wrong, or its ranks cannot be distributed evenly over servers.
    """
    return of_program(program.placement(argv))


def of_program(answer: Program) -> Plan:
    """The plan in a program's answer.

    Raises:
        LaunchError: servers would have unequal numbers of ranks.
    """
    counts = collections.Counter(server for server, _ in answer.placement)
    if len(set(counts.values())) > 1:
        most, least = max(counts.values()), min(counts.values())
        raise LaunchError(
            f"parallel: {answer.world} ranks lie {most} on one server and {least} on another; a scheduler gives each"
            " server the same; choose a number of ranks that fills the servers, or another parallel.devices_per_server"
        )
    return Plan(len(counts), max(counts.values()), answer.device != program.CPU, answer.chip)


def require_ascend(kind: str, plan: Plan) -> None:
    """Raise LaunchError for a run on the CPU, for which a cluster's scheduler would reserve unused devices."""
    if not plan.on_ascend:
        what_to_do = "add runtime.device=Ascend, or use `pangu manifest docker`"
        raise LaunchError(
            f"runtime.device=CPU: `pangu manifest {kind}` asks a cluster for Ascend devices; {what_to_do}"
        )


def image(plan: Plan) -> str:
    """Name of the image that the Dockerfile of `pangu manifest docker` builds for a plan."""
    return f"pangu-ms:{version()}" + (f"-{plan.product}" if plan.chip == FIRST else "")


def version() -> str:
    """Version of the package that starts the run."""
    command = python_command("pangu_ms", "--version")
    done = subprocess.run(command, env=python_environment(), capture_output=True, text=True)
    if done.returncode:
        raise LaunchError(
            f"{shlex.join(command)}: ended with {done.returncode}; this package must be installed for it; mend that"
        )
    return done.stdout.strip()
