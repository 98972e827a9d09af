"""The secret that authenticates the launchers of one job to each other."""

import os

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import JOB_SECRET

MIN_LENGTH = 16
"""Minimum number of characters of a secret. A shorter secret can be found by brute force, offline, from a recorded
connection."""
ADVICE = (
    f"give all launchers of the job the same random value, as `export {JOB_SECRET}=$(openssl rand -hex 32)` makes one"
)


def job_secret() -> bytes:
    """The secret in this process's environment; empty if there is none."""
    # A value that is not UTF-8 is as good as any other.
    return os.environ.get(JOB_SECRET, "").strip().encode(errors="surrogateescape")


def require_long(secret: bytes) -> None:
    """Raise LaunchError if the secret is so short that it can be guessed."""
    if 0 < len(secret) < MIN_LENGTH:
        raise LaunchError(f"{JOB_SECRET}: has {len(secret)} characters; must have {MIN_LENGTH} or more; {ADVICE}")
