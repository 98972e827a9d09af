"""Checks of numbers and names that several verbs of the launch layer share."""

from pangu_ms.core.errors import LaunchError

PORTS = (1024, 65534)
"""First and last allowed port of MindSpore's scheduler: it is not privileged, and the next number, which the leader
uses, is a valid port, too."""
MIN_S, MAX_S = 0.1, 1e7
"""Smallest time that must be above 0, and largest time (four months, which excludes infinity), in seconds."""


def require_between(option: str, value: float, least: float, most: float) -> None:
    """Raise LaunchError unless `least <= value <= most`; NaN is refused, too."""
    if not least <= value <= most:
        raise LaunchError(f"{option} {value:.9g}: must be from {least:.9g} to {most:.9g}; choose such a number")


def host_names(option: str, text: str) -> list[str]:
    """Names of a list A,B.

    Raises:
        LaunchError: a name is empty, given twice, or Slurm's short form for several hosts.
    """
    names = [name.strip() for name in text.split(",")]
    if "[" in text:
        raise LaunchError(
            f"{option} {text}: has Slurm's short form of names; must be NAME,NAME; give \"$(scontrol show hostnames"
            ' LIST | paste -sd, -)"'
        )
    if "" in names:
        raise LaunchError(
            f"{option} {text!r}: has an empty name; must be NAME,NAME; name each host, or leave {option} out for a job"
            " of this host alone"
        )
    if twice := {name for name in names if names.count(name) > 1}:
        raise LaunchError(
            f"{option} {text}: has {', '.join(sorted(twice))} twice; each host has one launcher; name each once"
        )
    return names
