"""Environment variables that make a process a rank of a cluster. A launcher sets them for its ranks; a user's shell may
have some left over."""

import os

CLUSTER_VARIABLES = {
    "MS_ROLE",
    "MS_SCHED_HOST",
    "MS_SCHED_PORT",
    "MS_TOPO_TIMEOUT",
    "MS_WORKER_NUM",
    "MS_SERVER_NUM",
    "MS_LOCAL_WORKER",
    "MS_NODE_ID",
    "MS_NODE_RANK",
    "MS_SIMULATION_LEVEL",
    "RANK_TABLE_FILE",
    "MINDSPORE_HCCL_CONFIG_PATH",
    "RANK_ID",
    "RANK_SIZE",
    "DEVICE_ID",
    "ASCEND_DEVICE_ID",
    "OMPI_COMMAND",
}
"""Names of variables that another launcher or the user's shell may have set, and that would give a rank a wrong role or
number."""
MPI = "OMPI_COMM_WORLD_"
"""Prefix of further such names.
Source: mindspore/parallel/cluster/process_entity/_api.py (msrun), mindspore/communication; Ascend Operator's and
ModelArts' pods."""


def inherited() -> dict[str, str]:
    """This process's environment without cluster variables."""
    return {
        name: value for name, value in os.environ.items() if name not in CLUSTER_VARIABLES and not name.startswith(MPI)
    }


def unset_command() -> str:
    """The shell command that unsets the cluster variables of this process; "" if it has none.

    Device numbers are not unset: a user may have chosen a device.
    """
    names = sorted(
        name
        for name in os.environ
        if name in CLUSTER_VARIABLES - {"DEVICE_ID", "ASCEND_DEVICE_ID"} or name.startswith(MPI)
    )
    return " ".join(["unset", *names]) if names else ""
