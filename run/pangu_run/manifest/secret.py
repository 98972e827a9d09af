"""The job's secret in a manifest (see job/secret.py): each job has a fresh one."""

import secrets
from typing import Any

from pangu_ms.core.isolated import JOB_SECRET
from pangu_run.manifest.text import yaml_block

BYTES = 32
SHELL = f"""# Authenticates the launchers to each other. It is generated when the job starts and written to no file.
export {JOB_SECRET}=${{{JOB_SECRET}:-$(od -An -N{BYTES} -tx1 /dev/urandom | tr -d ' \\n')}}
"""
"""Lines of bash that create a secret, for a script that starts all launchers."""
COMMENT = (
    f"# Give the job {JOB_SECRET} among its environment variables, a random value of 16 characters or more: it"
    " authenticates the launchers to each other.\n"
)
"""Comment for a script that runs on each host separately."""


def resource(job: str, namespace: str) -> str:
    """A Kubernetes Secret with a fresh value, as a YAML document to put before that of the job."""
    metadata = {"name": _name(job), "namespace": namespace}
    body = yaml_block(
        {
            "apiVersion": "v1",
            "kind": "Secret",
            "metadata": metadata,
            "type": "Opaque",
            "stringData": {JOB_SECRET: secrets.token_hex(BYTES)},
        }
    )
    return (
        "# It authenticates the launchers to each other; `pangu manifest` makes a fresh one each time. Whoever can"
        f" read this file can stop the job.\n{body}\n---\n"
    )


def variable(job: str) -> dict[str, Any]:
    """The environment variable of a container with the value of the Secret."""
    return {"name": JOB_SECRET, "valueFrom": {"secretKeyRef": {"name": _name(job), "key": JOB_SECRET}}}


def _name(job: str) -> str:
    return f"{job}-launch"
