"""Directories of the servers that are mounted into a container, and checks of paths that must be inside them."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from pangu_ms.core.errors import LaunchError


def parse_mounts(mounts: Sequence[str]) -> list[tuple[str, str]]:
    """(HOST, PATH) of each HOST:PATH.

    Raises:
        LaunchError: a value is not of that form, or a path is mounted twice.
    """
    pairs: list[tuple[str, str]] = []
    for mount in mounts:
        host, _, path = mount.partition(":")
        if not (host.startswith("/") and path.startswith("/") and ":" not in path):
            raise LaunchError(f"--mount {mount}: must be HOST:PATH, two absolute paths; write it as /data:/data")
        if path in [other for _, other in pairs]:
            raise LaunchError(f"--mount {mount}: {path} is mounted twice; a path shows one directory; leave one out")
        pairs.append((host, path))
    return pairs


def seen_config(config: str, mounts: Sequence[str]) -> str:
    """The configuration as the container sees it: the name of a shipped one, or the path of a file of this machine
    inside a mount.

    Raises:
        LaunchError: the configuration is a file that is in no mount.
    """
    if not Path(config).is_file():
        return config
    path = Path(config).resolve()
    for host, inside in parse_mounts(mounts):
        if path.is_relative_to(Path(host).resolve()):
            return str(PurePosixPath(inside) / path.relative_to(Path(host).resolve()))
    raise LaunchError(
        f"--config {config}: the job does not see this file; it must lie in a --mount; add --mount {path.parent}:PATH,"
        " or use a shipped config"
    )


def require_mounted(option: str, path: str, mounts: Sequence[str]) -> None:
    """Raise LaunchError if a path of the container is in no mount: it would be empty at the start, and data written
    there would be lost with the pod."""
    if (
        not any(PurePosixPath(path).is_relative_to(inside) for _, inside in parse_mounts(mounts))
        or ".." in PurePosixPath(path).parts
    ):
        raise LaunchError(
            f"{option} {path}: lies in no --mount, so it goes with the pod; must be on shared storage; add --mount"
            f" HOST:{path}"
        )
