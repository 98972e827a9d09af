"""Checks of numbers and names that several verbs of the launch layer share."""

from pangu_ms.core.errors import LaunchError

PORTS = (1024, 65534)
"""First and last port for MindSpore's scheduler: not a privileged one, and the next one, which the leader takes, must
be a port, too."""
MIN_S, MAX_S = 0.1, 1e7
"""Least seconds of a time that must be above 0, and most of any: four months, so that none is infinite."""


def require_between(option: str, value: float, least: float, most: float) -> None:
    """Raise LaunchError unless `least <= value <= most`, which no NaN is."""
    if not least <= value <= most:
        raise LaunchError(f"{option} {value:.9g}: must be from {least:.9g} to {most:.9g}; choose such a number")


def host_names(option: str, text: str) -> list[str]:
    """Names of a list A,B.

    Raises:
        LaunchError: one is empty or there twice, or is Slurm's short form of several.
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
