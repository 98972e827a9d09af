"""The secret by which the launchers of one job know each other."""

import os

from pangu_ms.core.errors import LaunchError
from pangu_ms.core.isolated import JOB_SECRET

MIN_LENGTH = 16
"""Characters of a secret. Shorter ones can be found by trying: whoever records a connection can do that offline."""
ADVICE = (
    f"give all launchers of the job the same random value, as `export {JOB_SECRET}=$(openssl rand -hex 32)` makes one"
)


def job_secret() -> bytes:
    """The secret in this process's environment; empty where there is none."""
    return os.environ.get(JOB_SECRET, "").strip().encode(errors="surrogateescape")


def require_long(secret: bytes) -> None:
    """Raise LaunchError for a secret that can be guessed."""
    if 0 < len(secret) < MIN_LENGTH:
        raise LaunchError(f"{JOB_SECRET}: has {len(secret)} characters; must have {MIN_LENGTH} or more; {ADVICE}")
